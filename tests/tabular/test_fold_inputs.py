"""Tables of folds that are averaged: each fold reads rows as it was trained to, with its own scales, fillings and
categories, and what they say together is the mean of what each says of the raw rows"""

import numpy as np, pandas as pd, pytest
from fastai.tabular.all import Categorify, FillMissing, Normalize
from fastai_condmtl.tabular.all import *
from fastai_condmtl.tabular.fold_inputs import TableChange

N = 80


def table(n=N, seed=0):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame(dict(x=1000 + 50 * rng.normal(size=n), w=rng.normal(size=n) ** 2))
    df['c'], df['d'] = rng.choice(list('uvw'), n), rng.choice([1, 2, 3], n).astype(str)
    df.loc[rng.random(n) < 0.2, 'x'] = None
    df.loc[rng.random(n) < 0.2, 'c'] = None
    df['a'] = 1 * (df.w + rng.normal(size=n) > 1)
    df['size'] = (df.w * 10 + 3).where(df.a == 1)
    return df


def flow():
    a = BinaryBlock('a')
    return Flow('f', a, UnboundedRegressionBlock('size') | a)


def loaders(df, valid_idx, **kwargs):
    columns = dict(cat_names=['c', 'd'], cont_names=['x', 'w'])
    return ConditionalTabularDataLoaders.from_df(df, flow(), bs=16, valid_idx=valid_idx, **{**columns, **kwargs})


def fitter(df, **kwargs):
    def fit(valid_idx):
        learn = conditional_tabular_learner(loaders(df, valid_idx, **kwargs), [8], members=2)
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-2)
        return learn

    return fit


def natural(learn, rows):
    "Probability of `a` and `size` in natural units"
    with learn.no_bar():
        acts = learn.get_preds(dl=learn.dls.test_dl(rows))[0].double().numpy()
    size = learn.dls.flow.tasks['size'].unscale(acts[:, learn.dls.flow.slices['size'].acts][:, 0])
    return np.stack([acts[:, learn.dls.flow.slices['a'].acts][:, 0], size], 1)


def test_it_says_the_mean_of_raw_rows(tmp_path):
    "Gaps, unknown categories and numbers far from 0"
    from fastai.learner import load_learner

    df, new = table(), table(30, seed=1)
    new.loc[3, 'c'], new.loc[4, 'd'] = 'unknown', None
    folds = fit_folds(fitter(df), flow(), df, n=3, seed=0)
    learn = average_folds(folds)
    want = np.mean([natural(one, new) for one in folds.learners], 0)
    np.testing.assert_allclose(natural(learn, new), want, rtol=2e-4, atol=2e-5)
    with learn.no_bar():
        yes = learn.predict(new.iloc[0])[0]['a']
        learn.path = tmp_path
        learn.export('mean.pkl')
        loaded = load_learner(tmp_path / 'mean.pkl')
        assert loaded.predict_df(new).equals(learn.predict_df(new))
        assert yes == learn.predict_df(new).a.iloc[0]
        assert learn.evaluate(new).metric_res.notna().any()


@pytest.mark.parametrize('procs', [(Categorify, FillMissing, Normalize), (Categorify, Normalize), (Categorify,), ()])
def test_rows_become_those_of_another_fold(procs):
    df = table() if FillMissing in procs else table().fillna(dict(x=900.0))
    one, other = (loaders(df, range(k, k + 30), procs=procs, cat_names=['c', 'd'] if procs else []) for k in (0, 40))
    new = df.sample(20, random_state=0)
    change = TableChange(one.train_ds, other.train_ds)
    inputs, want = (dls.test_dl(new, bs=20).one_batch() for dls in (one, other))
    for got, wanted in zip(change(*inputs[:2]), want[:2]):
        np.testing.assert_allclose(got.numpy(), wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_categories_that_one_fold_does_not_know():
    "What only another fold knows counts as unknown, with a warning; what only the first knows is unknown to the other"
    df = table().assign(c='u')
    df.loc[:4, 'c'], df.loc[40:44, 'c'] = 'rare', 'odd'
    one, other = loaders(df, range(10)), loaders(df, range(40, 50))  # `rare` is unknown to the one, `odd` to the other
    with pytest.warns(FlowWarning, match="column 'c': 'rare' does not stand in the training rows of the first fold"):
        change = TableChange(one.train_ds, other.train_ds)
    names = other.train_ds.cat_names
    cats = change(*one.test_dl(df, bs=N).one_batch()[:2])[0][:, names.index('c')]
    told = np.array(list(other.train_ds.classes['c']))[cats.numpy()]
    want = df.c.replace(dict(rare='#na#', odd='#na#'))
    assert told.tolist() == want.tolist()


def test_what_is_refused():
    df = table()
    one = loaders(df, range(10)).train_ds
    for other, says in (
        (loaders(df.fillna(dict(x=900.0)), range(10)), None),
        (loaders(df.assign(w=df.w.mask(df.index == 50)), range(10)), "column 'w' has gaps"),
        (loaders(df, range(10), cat_names=['c']), "only one reads column 'd'"),
        (loaders(df.fillna(dict(x=900.0)), range(10), procs=(Categorify,)), 'prepared by other steps'),
    ):
        if says is None:
            assert isinstance(TableChange(one, other.train_ds), TableChange)
            continue
        with pytest.raises(FlowError, match=says):
            TableChange(one, other.train_ds)
    folds = Folds(
        [
            fitter(df, cat_names=names)(valid)
            for names, (_, valid) in zip((['c'], ['c', 'd']), stratified_folds(flow(), df, 2, seed=0))
        ],
        df,
        stratified_folds(flow(), df, 2, seed=0),
    )
    with pytest.raises(FlowError, match="folds 0 and 1 do not read the same inputs: only one reads column 'd'"):
        average_folds(folds)
