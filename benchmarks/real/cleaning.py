"""How many of the labels that are listed first are wrong? 5 % of them are exchanged; ways to rank them are compared

python benchmarks/real/cleaning.py                                       digits of scikit-learn
python benchmarks/real/cleaning.py FOLDER --size 256 128 --cache FILE    BRACOL, frozen features of EfficientNet-Lite0

Whoever errs about the question above (is the leaf sick?) also answers what hangs on it: at random where it has no
meaning, not at all where it has. What is listed for a task counts as found if the label of this very task was
exchanged. Precision at k: k is the number of exchanged labels of the task, and 50."""

import argparse, warnings
from dataclasses import dataclass
from pathlib import Path
import numpy as np, pandas as pd, torch
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from fastai.vision.all import DataBlock, Learner, TransformBlock, create_head, set_seed
from sklearn.datasets import load_digits
from torch import nn
from fastai_condmtl.all import BinaryBlock, Cleaner, Flow, SingleLabelBlock, equip, fit_folds
from fastai_condmtl.learn.start import start_learner
from bracol import bracol_flow, read
from pictures_common import cached_features

NOISE, SEEDS, FOLDS = 0.05, 5, 5


@dataclass
class Data:
    "A table whose rows have features, a question above and questions below"

    df: pd.DataFrame
    features: torch.Tensor  # `(N, views, F)`
    flow: Flow
    above: str
    below: dict  # Task → answer above at which it has meaning
    epochs: int
    lr: float

    def head(self, n_out):
        n_in = self.features.shape[-1]
        if n_in < 1000:
            return nn.Sequential(nn.Linear(n_in, 128), nn.ReLU(), nn.BatchNorm1d(128), nn.Linear(128, n_out))
        return create_head(n_in, n_out, pool=False)

    def learner(self, df, valid_idx, leave_out=()):
        "A head on the features, trained on the rows beside `valid_idx` and `leave_out`"
        own = set(range(len(df))) - set(np.asarray(valid_idx).tolist()) - set(np.asarray(leave_out).tolist())
        train, position = sorted(own), pd.Series(np.arange(len(df)), index=df.index)

        def view(row):
            i = position[row.name]
            return self.features[i, np.random.randint(self.features.shape[1]) if i in own else 0]

        splits = train, [int(i) for i in valid_idx]
        dblock = DataBlock(blocks=(TransformBlock, self.flow), get_x=view, splitter=lambda _: splits)
        dls = dblock.dataloaders(df, bs=64, num_workers=0, device='cpu')
        learn = equip(start_learner(Learner(dls, self.head(dls.c)), 'trivial'))
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(self.epochs, self.lr)
        return learn


def digits():
    "Is a digit 5 or more, and which of the five is it?"
    x, y = load_digits(return_X_y=True)
    large = y >= 5
    df = pd.DataFrame(dict(large=1 * large))
    df['which_small'] = pd.Series(y.astype(str)).where(~large)
    df['which_large'] = pd.Series(y.astype(str)).where(large)
    block = BinaryBlock('large')
    tasks = [
        SingleLabelBlock('which_small', vocab=list('01234')) | ~block,
        SingleLabelBlock('which_large', vocab=list('56789')) | block,
    ]
    features = torch.from_numpy(x.astype(np.float32) / 16)[:, None]
    return Data(df, features, Flow('digits', block, *tasks), 'large', dict(which_small=0, which_large=1), 10, 1e-2)


def bracol(folder, size, cache):
    df = read(folder)
    features, _ = cached_features(cache, df, folder, size[::-1])
    return Data(df, features, bracol_flow(), 'sick', dict(stress=1, severity=1), 10, 4e-3)


def exchanged(data, rng):
    "The table with 5 % of the labels exchanged, and task → positions of these"
    df, wrong = data.df.copy(), {}
    flipped = rng.random(len(df)) < NOISE
    wrong[data.above] = np.flatnonzero(flipped)
    df.loc[flipped, data.above] = 1 - df.loc[flipped, data.above]
    for task, meaning in data.below.items():
        vocab = sorted(data.df[task].dropna().unique())
        has_meaning = (data.df[data.above] == meaning).to_numpy()
        wrong[task] = np.flatnonzero(has_meaning & ~flipped & (rng.random(len(df)) < NOISE))
        for i in wrong[task]:
            df.loc[df.index[i], task] = rng.choice([name for name in vocab if name != data.df[task].iloc[i]])
        df.loc[flipped & has_meaning, task] = None
        df.loc[flipped & ~has_meaning, task] = rng.choice(vocab, int((flipped & ~has_meaning).sum()))
    return df, wrong


class Judged:
    "Probabilities and labels of each task, by learners of folds or by one learner, in the order of the table"

    def __init__(self, df, pairs):
        self.flow = pairs[0][0].dls.flow
        position = pd.Series(np.arange(len(df)), index=df.index)
        rows = np.concatenate([position[part.index].to_numpy() for _, part in pairs])
        acts, labels = zip(*[self.predicted(learn, part) for learn, part in pairs])
        order = np.argsort(rows)
        self.acts, self.labels = torch.cat(acts)[order], torch.cat(labels)[order]
        self.reached = self.flow.reached(self.flow.loss_func.decide(self.acts)).numpy()

    @staticmethod
    def predicted(learn, part):
        with learn.no_bar(), learn.no_logging():
            acts, y = learn.get_preds(dl=learn.dls.test_dl(part, with_labels=True))
        return acts.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor)

    def task(self, path, with_rule):
        "Positions, classes as numbers and probabilities of the labels that are judged"
        own, i = self.flow.slices[path], self.flow.paths.index(path)
        values, mask = self.labels[:, :, own.targets].unbind(1)
        rows = (mask[:, 0] > 0).numpy() & (self.reached[:, i] if with_rule else True)
        probs = self.acts[:, own.acts].double().numpy()
        probs = np.concatenate([1 - probs, probs], 1) if probs.shape[1] == 1 else probs
        probs = probs / probs.sum(1, keepdims=True)
        return np.flatnonzero(rows), values[rows, 0].long().numpy(), probs[rows]


def by_score(method, adjusted=False):
    "Ranked by one of cleanlab's scores of a label"

    def rank(labels, probs):
        return np.argsort(get_label_quality_scores(labels, probs, method=method, adjust_pred_probs=adjusted))

    return rank


def confident(filter_by):
    "First what confident learning takes for an error, then the others; each by the probability of the label"

    def rank(labels, probs):
        chosen = find_label_issues(labels, probs, filter_by=filter_by, n_jobs=1)
        own = probs[np.arange(len(labels)), labels]
        return np.lexsort([own, ~chosen])

    return rank


RANKINGS = {
    'probability of the label': by_score('self_confidence'),
    'margin to the likeliest other': by_score('normalized_margin'),
    'probability over entropy': by_score('confidence_weighted_entropy'),
    'probability, class by class': by_score('self_confidence', adjusted=True),
    'margin, class by class': by_score('normalized_margin', adjusted=True),
    'confident learning': confident('confident_learning'),
    'confident learning, by noise rate': confident('prune_by_noise_rate'),
    'confident learning, both': confident('both'),
}


def precisions(listed, wrong):
    "At as many as there are errors, and at 50"
    return [np.isin(listed[:k], wrong).sum() / k for k in (len(wrong), 50)]


def one_seed(data, seed):
    "(Arm, task) → precisions"
    set_seed(seed)
    df, wrong = exchanged(data, np.random.default_rng(seed))
    folds = fit_folds(lambda valid_idx: data.learner(df, valid_idx), data.flow, df, FOLDS, seed)
    out_of_fold = Judged(df, list(zip(folds.learners, [df.iloc[part] for part in folds.parts])))
    in_sample = Judged(df, [(folds.learners[0], df)])
    res = {}
    for where, judged in dict(fold=out_of_fold, seen=in_sample).items():
        for with_rule in (False, True):
            for name, rank in RANKINGS.items():
                if where == 'seen' and name != 'probability of the label':
                    continue
                for path in wrong:
                    rows, labels, probs = judged.task(path, with_rule)
                    listed = rows[rank(labels, probs)]
                    res[f'{where} {"reached" if with_rule else "all    "} {name}', path] = precisions(
                        listed, wrong[path]
                    )
    position = pd.Series(np.arange(len(df)), index=df.index)
    with folds.learners[0].no_bar():
        table = Cleaner(folds, k=len(df)).table
    for path in wrong:
        listed = position[table[table.task_path == path].row].to_numpy()
        res['Cleaner(folds)', path] = precisions(listed, wrong[path])
    return res


def show(runs, tasks):
    "A line an arm: of each task the two precisions, mean over the seeds, and the mean over the tasks with its spread"
    print(f'{"":<52}' + ''.join(f'{task:<16}' for task in tasks) + 'mean of the tasks, ± standard error')
    for arm in dict.fromkeys(arm for arm, _ in runs[0]):
        each = np.array([[run[arm, task] for task in tasks] for run in runs])  # seeds, tasks, 2
        cells = ''.join(f'{own[0]:.2f}  {own[1]:.2f}'.ljust(16) for own in each.mean(0))
        means = each.mean(1)
        errors = means.std(0, ddof=1) / len(runs) ** 0.5 if len(runs) > 1 else 0 * means[0]
        print(f'{arm:<52}{cells}' + '  '.join(f'{m:.3f} ± {e:.3f}' for m, e in zip(means.mean(0), errors)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path, nargs='?', help='of BRACOL; by default digits')
    parser.add_argument('--size', type=int, nargs=2, default=(256, 128), help='width and height of the pictures')
    parser.add_argument('--cache', type=Path, help='file for the frozen features, .npy')
    parser.add_argument('--epochs', type=int)
    parser.add_argument('--seeds', type=int, default=SEEDS)
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    data = digits() if args.folder is None else bracol(args.folder, args.size, args.cache)
    data.epochs = args.epochs or data.epochs
    runs = [one_seed(data, seed) for seed in range(args.seeds)]
    print(f'{len(data.df)} rows, {FOLDS} folds of {data.epochs} epochs, {args.seeds} seeds: precision at errors, at 50')
    show(runs, [data.above, *data.below])


if __name__ == '__main__':
    main()
