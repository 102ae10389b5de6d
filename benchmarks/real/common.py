"""What the benchmarks on real tables share: splits in three parts, the networks beside ours, scores and the table"""

import argparse, os, sys, tempfile, time, warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Callable
import numpy as np, pandas as pd, torch
from fastai.tabular.all import SaveModelCallback, set_seed
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import accuracy_score, average_precision_score, mean_absolute_error, r2_score, roc_auc_score
from torch import nn
from torch.nn import functional as F
from fastai_condmtl.evaluate.skill import skill
from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders, conditional_tabular_learner
from fastai_condmtl.tabular.members import TableNetwork
from fastai_condmtl.tabular.piecewise import PiecewiseNumbers

sys.path.append(str(Path(__file__).resolve().parents[1]))
from timing import DATA  # noqa: F401  for the tables' own files

SCORES = dict(
    accuracy=(accuracy_score, 'decided'),
    AUC=(roc_auc_score, 'guess'),
    AP=(average_precision_score, 'guess'),
    MAE=(mean_absolute_error, 'decided'),
    r2=(r2_score, 'guess'),
)
OF_KIND = dict(binary=('accuracy', 'AUC', 'AP'), number=('MAE', 'r2'))
HEADLINES = ('accuracy', 'MAE')


@dataclass
class Task:
    "A task as a person writes it who has no flow: a column, what it is, and where it has meaning"

    column: str
    kind: str = 'binary'
    asked: Callable = lambda df: np.ones(len(df), dtype=bool)

    def labels(self, df):
        "Labels `(N,)`, NaN where there is none or the task has no meaning"
        return df[self.column].where(self.asked(df)).to_numpy(dtype=float)


@dataclass
class Guesses:
    "Of one task: its graded answer, and what is decided for the headline score"

    guess: np.ndarray
    decided: np.ndarray


@dataclass
class Bench:
    "A table with a flow over it, the same tasks written by hand, and how it is trained"

    df: pd.DataFrame
    flow: Callable  # Makes a `Flow`
    tasks: dict  # Path → `Task`
    cats: list
    conts: list
    groups: str = None  # Column of what stays on one side of a split
    strata: str = None  # Column whose shares are kept
    layers: tuple = (200, 100)
    epochs: int = 20
    bs: int = 256
    lr: float = 3e-3


def three_parts(bench, seed):
    "Positions of training (64 %), validation (16 %) and test rows (20 %)"
    rng, df = np.random.default_rng(seed), bench.df
    groups = np.arange(len(df)) if bench.groups is None else df[bench.groups].to_numpy()
    strata = np.zeros(len(df)) if bench.strata is None else df[bench.strata].to_numpy()
    part_of = {}
    for value in np.unique(strata):
        ids = rng.permutation(np.unique(groups[strata == value]))
        places = (np.arange(len(ids)) + 0.5) / len(ids)
        part_of.update(zip(ids.tolist(), np.digitize(places, [0.64, 0.8]).tolist()))
    part = np.array([part_of[group] for group in groups.tolist()])
    return [np.flatnonzero(part == p) for p in range(3)]


def loaders(bench, parts):
    "The data as our factory reads them"
    return ConditionalTabularDataLoaders.from_df(
        bench.df,
        bench.flow(),
        cat_names=bench.cats,
        cont_names=bench.conts,
        splitter=lambda _: parts[:2],
        bs=bench.bs,
    )


def ours(bench, parts, seed):
    "`Guesses` a task for the test rows by stock calls, and the seconds of training that the processor counts"
    set_seed(seed)
    dls = loaders(bench, parts)
    with tempfile.TemporaryDirectory() as folder:
        learn = conditional_tabular_learner(dls, list(bench.layers), path=folder)
        with learn.no_bar(), learn.no_logging():
            start = time.process_time()
            with redirect_stdout(StringIO()):  # the callback prints each better epoch
                learn.fit_one_cycle(bench.epochs, bench.lr, cbs=SaveModelCallback())
            seconds = time.process_time() - start
            dl = dls.test_dl(bench.df.iloc[parts[2]])
            acts, _, decided = learn.get_preds(dl=dl, with_decoded=True)
    found = {}
    for path, place in dls.flow.slices.items():
        block = dls.flow.tasks[path]
        guess = acts[:, place.acts.start].double().numpy()
        own = decided[:, 0, place.targets.start].double().numpy()
        if bench.tasks[path].kind == 'number':
            guess, own = block.unscale(guess), block.unscale(own)
        found[path] = Guesses(guess, own)
    return found, seconds


# By hand: what a person writes in plain PyTorch, without a flow


@dataclass
class HandTable:
    "The inputs of a table as tensors, prepared by the training rows: codes of categories, standardised numbers"

    codes: torch.Tensor
    numbers: torch.Tensor
    sizes: list


def hand_table(bench, train):
    codes, sizes, numbers = [], [], []
    for name in bench.cats:
        known = sorted(bench.df[name].iloc[train].dropna().unique().tolist(), key=str)
        codes.append(pd.Categorical(bench.df[name], categories=known).codes.astype(np.int64) + 1)
        sizes.append(len(known) + 1)
    for name in bench.conts:
        column = bench.df[name].to_numpy(dtype=float)
        blank, own = np.isnan(column), column[train]
        if blank[train].any():
            codes.append(blank.astype(np.int64))
            sizes.append(2)
        column = np.where(blank, np.nanmedian(own), column)
        numbers.append((column - column[train].mean()) / (column[train].std() + 1e-7))
    stacked = np.stack(numbers, 1).astype(np.float32)
    return HandTable(torch.from_numpy(np.stack(codes, 1)), torch.from_numpy(stacked), sizes)


class FastaiNetwork(nn.Module):
    "Embeddings beside numbers, two hidden layers with batch norm: fastai's `TabularModel`, written out"

    def __init__(self, table, layers, n_out, train):
        super().__init__()
        self.embeds = nn.ModuleList(nn.Embedding(*sizes) for sizes in embedding_sizes(table))
        self.norm = nn.BatchNorm1d(table.numbers.shape[1])
        n_in, parts = sum(embed.embedding_dim for embed in self.embeds) + table.numbers.shape[1], []
        for width in layers:
            parts += [nn.Linear(n_in, width), nn.ReLU(), nn.BatchNorm1d(width)]
            n_in = width
        self.layers = nn.Sequential(*parts, nn.Linear(n_in, n_out))

    def forward(self, codes, numbers):
        embedded = [embed(codes[:, i]) for i, embed in enumerate(self.embeds)]
        return self.layers(torch.cat([*embedded, self.norm(numbers)], 1))


def embedding_sizes(table):
    return [(n, min(600, round(1.6 * n**0.56))) for n in table.sizes]


def our_network(table, layers, n_out, train):
    "The network that `conditional_tabular_learner` makes, with random last layers"
    numbers = PiecewiseNumbers(table.numbers[train].numpy())
    return TableNetwork(embedding_sizes(table), table.numbers.shape[1], n_out, list(layers), numbers, ps=0.3)


def hand_loss(logits, labels, kinds):
    "The masked loss of each task, summed, of logits `(bs, n)`, or of members `(bs, k, n)`: the mean over them"
    if logits.ndim == 2:
        logits = logits[:, None]
    total = 0.0
    for j, kind in enumerate(kinds):
        known = ~labels[:, j].isnan()
        if not known.any():
            continue
        loss = F.binary_cross_entropy_with_logits if kind == 'binary' else F.l1_loss
        own = logits[known, :, j]
        total = total + loss(own, labels[known, j, None].expand_as(own))
    return total


def by_hand(bench, parts, seed, seconds, paths=None, network=our_network):
    "`Guesses` a task of one network for some tasks, trained for these seconds; weights of the best validation epoch"
    torch.manual_seed(seed)
    paths = list(paths or bench.tasks)
    kinds = [bench.tasks[path].kind for path in paths]
    table = hand_table(bench, parts[0])
    labels = np.stack([bench.tasks[path].labels(bench.df) for path in paths], 1)
    means = np.array([0.0 if k == 'binary' else np.nanmean(labels[parts[0], j]) for j, k in enumerate(kinds)])
    stds = np.array([1.0 if k == 'binary' else np.nanstd(labels[parts[0], j]) for j, k in enumerate(kinds)])
    y = torch.from_numpy(((labels - means) / stds).astype(np.float32))
    train, valid, test = (torch.from_numpy(part) for part in parts)
    net = network(table, bench.layers, len(paths), train)
    fit_by_hand(net, table, y, train[~y[train].isnan().all(1)], valid, kinds, bench, seconds)
    with torch.no_grad():
        logits = net(table.codes[test], table.numbers[test]).double().numpy() * stds + means
    return {path: Guesses(logits[:, j], decide(kinds[j], logits[:, j])) for j, path in enumerate(paths)}


def decide(kind, logits):
    return (logits > 0).astype(float) if kind == 'binary' else logits


def fit_by_hand(net, table, y, train, valid, kinds, bench, seconds):
    "One cycle of as many epochs as the seconds hold, measured by the second of two epochs that are undone"
    start_state = {name: value.clone() for name, value in net.state_dict().items()}
    for _ in range(2):
        start = time.process_time()
        run_epochs(net, table, y, train, valid, kinds, bench, 1)
        of_epoch = time.process_time() - start
    epochs = int(np.clip(seconds / of_epoch, 1, 10 * bench.epochs))
    net.load_state_dict(start_state)
    net.load_state_dict(run_epochs(net, table, y, train, valid, kinds, bench, epochs))
    net.eval()


def run_epochs(net, table, y, train, valid, kinds, bench, epochs):
    "The weights of the epoch whose validation loss is lowest"
    steps = max(len(train) // bench.bs, 1)
    opt = torch.optim.AdamW(net.parameters(), bench.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, bench.lr, total_steps=epochs * steps + 1)
    lowest, best = np.inf, None
    for _ in range(epochs):
        net.train()
        order = train[torch.randperm(len(train))]
        for step in range(steps):
            rows = order[step * bench.bs : (step + 1) * bench.bs]
            loss = hand_loss(net(table.codes[rows], table.numbers[rows]), y[rows], kinds)
            if not torch.is_tensor(loss):
                continue
            opt.zero_grad()
            loss.backward()
            opt.step()
            schedule.step()
        net.eval()
        with torch.no_grad():
            now = float(hand_loss(net(table.codes[valid], table.numbers[valid]), y[valid], kinds))
        if now < lowest or best is None:
            lowest, best = now, {name: value.clone() for name, value in net.state_dict().items()}
    return best


def single_tasks(bench, parts, seed, seconds):
    "A network a task, which share the seconds"
    share, found = seconds / len(bench.tasks), {}
    for path in bench.tasks:
        found.update(by_hand(bench, parts, seed, share, [path]))
    return found


def boosting(bench, parts, seed):
    "Gradient boosting a task, with its defaults; of a number one model for the squared and one for the absolute error"
    x = bench.df[[*bench.cats, *bench.conts]].astype(dict.fromkeys(bench.cats, 'category'))
    options, found = dict(categorical_features='from_dtype', random_state=seed), {}
    for path, task in bench.tasks.items():
        labels = task.labels(bench.df)
        rows = parts[0][~np.isnan(labels[parts[0]])]
        own = x[[name for name in x if x[name].iloc[rows].nunique() > 1]]
        train, test = (own.iloc[rows], labels[rows]), own.iloc[parts[2]]
        if task.kind == 'binary':
            guess = HistGradientBoostingClassifier(**options).fit(*train).predict_proba(test)[:, 1]
            found[path] = Guesses(guess, (guess > 0.5).astype(float))
            continue
        models = [HistGradientBoostingRegressor(loss=loss, **options) for loss in ('squared_error', 'absolute_error')]
        found[path] = Guesses(*[model.fit(*train).predict(test) for model in models])
    return found


def trivial(bench, parts):
    "The more frequent answer, the mean, the median"
    found, n = {}, len(parts[2])
    for path, task in bench.tasks.items():
        labels = task.labels(bench.df)[parts[0]]
        mean, median = np.nanmean(labels), np.nanmedian(labels)
        decided = float(mean > 0.5) if task.kind == 'binary' else median
        found[path] = Guesses(np.full(n, mean), np.full(n, decided))
    return found


def scores_of(bench, parts, found):
    "(task, score) → value, over the test rows where the task has meaning and a label"
    res = {}
    for path, task in bench.tasks.items():
        labels = task.labels(bench.df)[parts[2]]
        known = ~np.isnan(labels)
        for name in OF_KIND[task.kind]:
            function, what = SCORES[name]
            res[path, name] = function(labels[known], getattr(found[path], what)[known])
    return pd.Series(res)


def skills(scores, of_trivial):
    "Each score so that the trivial predictor has 0 and the best one 1; then their means"
    rows = pd.Series({key: skill(value, of_trivial[key], key[1] == 'MAE') for key, value in scores.items()})
    headline = rows.index.get_level_values(1).isin(HEADLINES)
    ranking = rows.index.get_level_values(1).isin(('AUC', 'r2'))
    return {('skill', 'headline'): rows[headline].mean(), ('skill', 'AUC, r2'): rows[ranking].mean()}


def one_split(bench, seed):
    "Arm → its scores and skills on the test rows, and the seconds of the networks"
    parts = three_parts(bench, seed)
    guesses = {}
    guesses['ours'], seconds = ours(bench, parts, seed)
    guesses['by hand'] = by_hand(bench, parts, seed, seconds)
    guesses['fastai by hand'] = by_hand(bench, parts, seed, seconds, network=FastaiNetwork)
    guesses['single tasks'] = single_tasks(bench, parts, seed, seconds)
    guesses['boosting'] = boosting(bench, parts, seed)
    guesses['trivial'] = trivial(bench, parts)
    scores = {arm: scores_of(bench, parts, found) for arm, found in guesses.items()}
    base = scores['trivial']
    return {arm: pd.concat([own, pd.Series(skills(own, base))]) for arm, own in scores.items()}, seconds


def show(runs, published):
    "A line a task and score: mean ± standard error over the splits"
    arms = list(runs[0])
    print(
        f'{"task":<22}{"score":<10}'
        + ''.join(f'{arm:<17}' for arm in arms)
        + 'ours - boosting (of MAE, less is better)'
    )
    for key in runs[0]['ours'].index:
        table = pd.DataFrame([{arm: run[arm][key] for arm in arms} for run in runs])
        spread = table.sem().fillna(0)
        cells = ''.join(f'{table[arm].mean():.3f} ± {spread[arm]:.3f}'.ljust(17) for arm in arms)
        gap = table.ours - table.boosting
        print(f'{key[0]:<22}{key[1]:<10}{cells}{gap.mean():+.3f} ± {gap.sem() if len(gap) > 1 else 0:.3f}')
    print(published)


def main(bench, about, published):
    "Read the arguments, run the splits, print the table"
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument('--quick', action='store_true', help='one split, two epochs')
    parser.add_argument('--splits', type=int, default=5)
    parser.add_argument('--first', type=int, default=5, help='of the splits; 0 to 4 chose the settings of our learner')
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 2)))
    if args.quick:
        bench.epochs, args.splits = 2, 1
    splits = range(args.first, args.first + args.splits)
    runs, seconds = zip(*[one_split(bench, split) for split in splits])
    print(
        f'{about} {len(bench.df)} rows, splits {splits[0]} to {splits[-1]} (64/16/20), test rows, mean ± standard '
        f'error; {bench.epochs} epochs, {np.mean(seconds):.0f} s of training a split for each kind of network'
    )
    show(list(runs), published)
