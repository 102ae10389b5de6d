"""A flow over AI4I's machines against scikit-learn's HistGradientBoostingClassifier, one a task on the rows where
it has meaning; a training epoch against plain fastai with one label"""

import os, time
from pathlib import Path
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
from timing import alternate

FILE = (
    Path(os.environ.get('FASTAI_CONDMTL_DATA') or Path(__file__).resolve().parents[2] / 'shared' / 'data')
    / 'ai4i2020.csv'
)
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
        t = time.perf_counter()
        learn.fit_one_cycle(epochs, 1e-2)
        t = time.perf_counter() - t
        acts = learn.get_preds()[0]
    return {p: acts[:, s.acts.start].numpy() for p, s in dls.flow.slices.items()}, t


def boosting(df, splits, seed):
    "The same of one classifier a task, with its defaults, on the rows where the task has meaning"
    x = df[MACHINE_CATS + MACHINE_CONTS].astype({c: 'category' for c in MACHINE_CATS})
    res, t = {}, time.perf_counter()
    for p, c in COLS.items():
        train = df.iloc[splits[0]]
        train = train if p == 'failure' else train[train['Machine failure'] == 1]
        res[p] = HistGradientBoostingClassifier(categorical_features='from_dtype', random_state=seed).fit(
            x.loc[train.index], train[c]
        )
    t = time.perf_counter() - t
    return {p: m.predict_proba(x.iloc[splits[1]])[:, 1] for p, m in res.items()}, t


if __name__ == '__main__':
    torch.set_num_threads(1)
    df = pd.read_csv(FILE) if FILE.exists() else machines(seed=1)
    print(
        f"{'AI4I 2020, the real file' if FILE.exists() else 'machines(seed=1), AI4I simulated (no file here)'}: "
        f"{len(df)} rows, {df['Machine failure'].sum()} failures; {SPLITS} stratified splits, 30 % held out; "
        "thresholds .5 on both sides; the gap is that of a split, with twice its standard error"
    )
    rows, times = [], []
    for seed in range(SPLITS):
        splits = StratifiedSplitter(machines_flow(), 0.3, seed)(df)
        (ours, t1), (hgb, t2) = network(df, splits, seed), boosting(df, splits, seed)
        times.append((t1, t2))
        valid = df.iloc[splits[1]]
        for p, c in COLS.items():
            m = np.ones(len(valid), dtype=bool) if p == 'failure' else valid['Machine failure'].to_numpy() == 1
            for k, f in SCORES.items():
                rows.append((p, k, m.sum(), f(valid[c][m], ours[p][m]), f(valid[c][m], hgb[p][m])))
    res = pd.DataFrame(rows, columns=['task', 'score', 'rows', 'flow', 'boosting']).assign(
        gap=lambda d: d.flow - d.boosting
    )
    by, won = res.groupby(['task', 'score'], sort=False), dict(flow=0, boosting=0, even=0)
    for k, r in by.mean().iterrows():
        se = 2 * by.gap.sem()[k]
        who = 'even' if abs(r.gap) <= se else 'flow' if r.gap > 0 else 'boosting'
        won[who] += 1
        print(
            f"  {k[0]:9} {k[1]:9} rows {r.rows:5.0f}  flow {r.flow:.3f}  boosting {r.boosting:.3f}  gap {r.gap:+.3f} "
            f"+- {se:.3f}  {who}"
        )
    print(
        f"better by more than twice the standard error: the flow in {won['flow']}, boosting in {won['boosting']} of "
        f"{sum(won.values())} scores"
    )
    t1, t2 = np.mean(times, 0)
    print(f"training: one network for 5 tasks, 30 epochs {t1:.1f} s; 5 boosted classifiers {t2:.1f} s")
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
    fastais = dict(numbers=None, members=1, ps=0.0)  # the same network on both sides
    ours = conditional_tabular_learner(dls, [128, 64], **fastais)

    def epoch(learn):
        def f():
            with learn.no_bar(), learn.no_logging():
                learn.fit(1, 1e-3)

        return f

    bare, metrics = (
        conditional_tabular_learner(dls, [128, 64], metrics=[], tune=None, **fastais),
        conditional_tabular_learner(dls, [128, 64], tune=None, **fastais),
    )
    (t0, t1, t2, t3), (_, r1, r2, _) = alternate(
        epoch(plain), epoch(bare), epoch(metrics), epoch(ours), rounds=9, inner=1, warmup=1
    )
    print(
        f"an epoch of training and validation, {len(splits[0])} + {len(splits[1])} rows: plain fastai, one label "
        f"{t0:.2f} s; ours, 5 tasks {t1:.2f} s, ratio {r1:.3f}; with a metric a task {t2:.2f} s, ratio {r2:.3f}; "
        "the "
        f"threshold search adds {t3 - t2:.2f} s a fit"
    )
