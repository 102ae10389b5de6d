"""A flow over AI4I's machines against scikit-learn's HistGradientBoostingClassifier, one a task on the rows where
it has meaning; a training epoch against plain fastai with one label"""

import time
from functools import partial
import numpy as np, pandas as pd, torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score
from fastai.tabular.all import (
    Categorify,
    CategoryBlock,
    FillMissing,
    Normalize,
    TabularPandas,
    set_seed,
    tabular_learner,
)
from fastai_condmtl.data.split import StratifiedSplitter
from fastai_condmtl.datasets.machines import MACHINE_CATS, MACHINE_CONTS, MODES, machines, machines_flow
from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders, conditional_tabular_learner
from timing import DATA, alternate

FILE = DATA / 'ai4i2020.csv'
SPLITS = 5
SCORES = dict(
    AP=average_precision_score,
    F1=lambda y, p: f1_score(y, p > 0.5),
    balanced=lambda y, p: balanced_accuracy_score(y, p > 0.5),
)
COLS = {'failure': 'Machine failure', **{f'mode.{m}': m for m in MODES}}


def network(df, splits, seed, epochs=30):
    "Probabilities of all tasks on the validation rows, and seconds of training"
    set_seed(seed)
    dls = ConditionalTabularDataLoaders.from_df(
        df, machines_flow(), cat_names=MACHINE_CATS, cont_names=MACHINE_CONTS, splitter=lambda _: splits, bs=128
    )
    learn = conditional_tabular_learner(dls, [128, 64], metrics=[], tune=None)
    with learn.no_bar(), learn.no_logging():
        start = time.perf_counter()
        learn.fit_one_cycle(epochs, 1e-2)
        seconds = time.perf_counter() - start
        acts = learn.get_preds()[0]
    return {path: acts[:, place.acts.start].numpy() for path, place in dls.flow.slices.items()}, seconds


def boosting(df, splits, seed):
    "The same of one classifier a task, with its defaults, on the rows where the task has meaning"
    x = df[MACHINE_CATS + MACHINE_CONTS].astype({c: 'category' for c in MACHINE_CATS})
    models, start = {}, time.perf_counter()
    for path, column in COLS.items():
        train = df.iloc[splits[0]]
        train = train if path == 'failure' else train[train['Machine failure'] == 1]
        model = HistGradientBoostingClassifier(categorical_features='from_dtype', random_state=seed)
        models[path] = model.fit(x.loc[train.index], train[column])
    seconds = time.perf_counter() - start
    return {path: model.predict_proba(x.iloc[splits[1]])[:, 1] for path, model in models.items()}, seconds


def against_boosting(df):
    "Print the scores of both on the held-out rows of each split"
    rows, times = [], []
    for seed in range(SPLITS):
        splits = StratifiedSplitter(machines_flow(), 0.3, seed)(df)
        (ours, of_flow), (trees, of_boosting) = network(df, splits, seed), boosting(df, splits, seed)
        times.append((of_flow, of_boosting))
        valid = df.iloc[splits[1]]
        for path, column in COLS.items():
            asked = np.ones(len(valid), dtype=bool) if path == 'failure' else valid['Machine failure'].to_numpy() == 1
            truth = valid[column][asked]
            for name, score in SCORES.items():
                rows.append((path, name, asked.sum(), *[score(truth, side[path][asked]) for side in (ours, trees)]))
    found = pd.DataFrame(rows, columns=['task', 'score', 'rows', 'flow', 'boosting'])
    show_scores(found.assign(gap=found.flow - found.boosting))
    of_flow, of_boosting = np.mean(times, 0)
    print(f"training: one network for 5 tasks, 30 epochs {of_flow:.1f} s; 5 boosted classifiers {of_boosting:.1f} s")


def show_scores(found):
    "Print a line a score: means over the splits, and who is better by more than twice the standard error"
    by, won = found.groupby(['task', 'score'], sort=False), dict(flow=0, boosting=0, even=0)
    for key, mean in by.mean().iterrows():
        error, better = 2 * by.gap.sem()[key], 'flow' if mean.gap > 0 else 'boosting'
        who = 'even' if abs(mean.gap) <= error else better
        won[who] += 1
        print(
            f"  {key[0]:9} {key[1]:9} rows {mean.rows:5.0f}  flow {mean.flow:.3f}  boosting {mean.boosting:.3f}  "
            f"gap {mean.gap:+.3f} +- {error:.3f}  {who}"
        )
    print(
        f"better by more than twice the standard error: the flow in {won['flow']}, boosting in {won['boosting']} of "
        f"{sum(won.values())} scores"
    )


def against_fastai(df):
    "Print the seconds of an epoch beside plain fastai's, the network being the same on both sides"
    splits = StratifiedSplitter(machines_flow(), 0.3, 0)(df)
    to = TabularPandas(
        df,
        [Categorify, FillMissing, Normalize],
        [*MACHINE_CATS],
        [*MACHINE_CONTS],
        y_names='Machine failure',
        y_block=CategoryBlock,
        splits=splits,
    )
    plain = tabular_learner(to.dataloaders(bs=128), [128, 64])
    dls = ConditionalTabularDataLoaders.from_df(
        df, machines_flow(), cat_names=MACHINE_CATS, cont_names=MACHINE_CONTS, splitter=lambda _: splits, bs=128
    )
    make = partial(conditional_tabular_learner, dls, [128, 64], numbers=None, members=1, ps=0.0)
    sides = plain, make(metrics=[], tune=None), make(tune=None), make()
    seconds, ratios = alternate(*[partial(epoch, learn) for learn in sides], rounds=9, inner=1, warmup=1)
    print(
        f"an epoch of training and validation, {len(splits[0])} + {len(splits[1])} rows: plain fastai, one label "
        f"{seconds[0]:.2f} s; ours, 5 tasks {seconds[1]:.2f} s, ratio {ratios[1]:.3f}; with a metric a task "
        f"{seconds[2]:.2f} s, ratio {ratios[2]:.3f}; the threshold search adds {seconds[3] - seconds[2]:.2f} s a fit"
    )


def epoch(learn):
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)


if __name__ == '__main__':
    torch.set_num_threads(1)
    df = pd.read_csv(FILE) if FILE.exists() else machines(seed=1)
    print(
        f"{'AI4I 2020, the real file' if FILE.exists() else 'machines(seed=1), AI4I simulated (no file here)'}: "
        f"{len(df)} rows, {df['Machine failure'].sum()} failures; {SPLITS} stratified splits, 30 % held out; "
        "thresholds .5 on both sides; the gap is that of a split, with twice its standard error"
    )
    against_boosting(df)
    against_fastai(df)
