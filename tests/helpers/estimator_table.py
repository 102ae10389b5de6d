"A table with a task of each kind that scikit-learn can answer, and estimators fitted to it by hand"

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fastai_condmtl.all import *
from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders

N, HALF = 400, 250
TREES = HistGradientBoostingClassifier(max_iter=20), HistGradientBoostingRegressor(max_iter=20)
LINES = make_pipeline(StandardScaler(), LogisticRegression()), make_pipeline(StandardScaler(), Ridge())


def table(seed=0):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame(dict(x=rng.normal(size=N), z=rng.normal(size=N), colour=rng.choice(list('rgb'), N)))
    df['gate'] = rng.random(N) < 1 / (1 + np.exp(-2 * df.x - 1))
    df['kind'] = np.where(df.z + rng.normal(size=N) / 2 > 0.5, 'big', np.where(df.colour == 'r', 'red', 'mid'))
    df['many'] = rng.choice(5, N) * (df.z > 0)
    df['stars'] = np.clip(np.round(2 * df.x + rng.normal(size=N)), -2, 2).astype(int)
    df['size'] = 10 * df.x + rng.normal(size=N)
    df['part'] = rng.random(N) * 64
    df['n'] = rng.poisson(np.exp(df.x))
    df['share'] = 1 / (1 + np.exp(-df.z))
    df['p'], df['q'] = df.x + rng.normal(size=N) > 0, df.z + rng.normal(size=N) > 1
    df['v0'], df['v1'] = rng.integers(1, 9, (2, N))
    df['px'], df['py'] = rng.random((2, N))
    df['w'] = rng.integers(1, 6, N).astype(float)
    df['p'] = df.p.astype(object)
    df.loc[rng.random(N) < 0.2, 'kind'] = None
    df.loc[rng.random(N) < 0.2, 'p'] = None
    df.loc[rng.random(N) < 0.2, 'size'] = None
    return df


def flow(**kwargs):
    gate = BinaryBlock('gate')
    tasks = [
        SingleLabelBlock('kind'),
        SingleLabelBlock('many'),
        OrdinalBlock('stars'),
        UnboundedRegressionBlock('size'),
        BoundedRegressionBlock('part', y_range=(0, 64)),
        CountBlock('n'),
        BinaryBlock('share', soft=True),
        MultiLabelBlock('both', cols=['p', 'q']),
        VotesBlock('votes', cols=['v0', 'v1']),
    ]
    return Flow('f', gate, *(block | gate for block in tasks), **kwargs)


def loaders(df, own, **kwargs):
    return ConditionalTabularDataLoaders.from_df(
        df, own, cat_names=['colour'], cont_names=['x', 'z'], valid_idx=range(HALF, N), bs=64, **kwargs
    )


def inputs(ds):
    return np.concatenate([ds.cats, ds.conts], 1).astype(np.float32)


class ByHand:
    "Features and labels of the rows where a cell is known and the gate is yes"

    def __init__(self, df, dls):
        self.df, self.x, self.new_x = df, inputs(dls.train_ds), inputs(dls.valid_ds)

    def counts(self, column):
        known = self.df[column].notna()
        return (known if column == 'gate' else known & self.df.gate).to_numpy()

    def parts(self, column, as_type=None):
        "Training features and labels, and those of the rows to be scored"
        rows, y = self.counts(column), self.df[column].to_numpy()
        train, new = rows[:HALF], rows[HALF:]
        y = y.astype(as_type) if as_type else y
        return self.x[train], y[:HALF][train], self.new_x[new], y[HALF:][new]

    def fitted(self, estimator, column, as_type=None):
        x, y, new_x, new_y = self.parts(column, as_type)
        estimator.fit(x, y)
        prob = estimator.predict_proba(new_x) if hasattr(estimator, 'predict_proba') else None
        return estimator.predict(new_x), prob, new_y
