"The iterative stratification: against the paper's algorithm as a loop, against chance, with many classes; folds."

import tracemalloc
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from scipy import sparse
from fastai_condmtl.all import *
from fastai_condmtl.data.split import stratified_folds
from fastai_condmtl.data.stratify import label_groups, stratify


def paper(labels, shares, rng):
    "Sechidis et al. 2011, algorithm 1, as it stands: of each row the subset"
    left, want = np.ones(len(labels), dtype=bool), np.outer(shares, labels.sum(0)).astype(float)
    room, res = np.asarray(shares) * len(labels), np.zeros(len(labels), dtype=int)
    while left.any():
        n = labels[left].sum(0)
        if not n.any():
            for i in np.flatnonzero(left):
                res[i] = rng.choice(np.flatnonzero(room == room.max()))
                room[res[i]] -= 1
            return res
        l = rng.choice(np.flatnonzero(n == n[n > 0].min()))
        for i in np.flatnonzero(labels[:, l] & left):
            most = np.flatnonzero(want[:, l] == want[:, l].max())
            most = most[room[most] == room[most].max()]
            res[i] = rng.choice(most)
            left[i] = False
            want[res[i], labels[i]] -= 1
            room[res[i]] -= 1
    return res


def many_labels(n, k, rng):
    "Labels from common to rare, that go together"
    z = np.exp(rng.normal(size=(n, 3)) @ rng.normal(size=(3, k)) * 0.7)
    return rng.random((n, k)) < np.minimum(0.5, 1.2 / np.arange(1, k + 1)) * z / z.mean(0)


def off(labels, valid, pct):
    "Mean over labels of how far their share of validation rows is from `pct`, in parts of `pct`"
    size = labels.sum(0)
    return np.abs(labels[valid].sum(0) / size - pct)[size > 4].mean() / pct


@pytest.mark.parametrize('pct', [0.1, 0.2, 0.5])
@pytest.mark.parametrize('n,k', [(400, 12), (2000, 40)])
def test_as_good_as_the_paper_and_far_better_than_chance(n, k, pct):
    ours, theirs, chance = [], [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        labels = many_labels(n, k, rng)
        valid = stratify(labels, pct, rng)
        assert (
            abs(valid.mean() - pct) < 0.02
            and (valid == stratify(sparse.csr_array(labels), pct, _after(rng, seed, n, k))).all()
        )
        ours.append(off(labels, valid, pct))
        theirs.append(off(labels, paper(labels, [1 - pct, pct], rng) == 1, pct))
        chance.append(off(labels, rng.permutation(n) < pct * n, pct))
    assert np.mean(ours) < 1.15 * np.mean(theirs) + 0.002 and np.mean(ours) < np.mean(chance) / 4, (
        ours,
        theirs,
        chance,
    )


def _after(rng, seed, n, k):
    "The generator as it was when the labels had been drawn"
    res = np.random.default_rng(seed)
    many_labels(n, k, res)
    return res


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.2, 0.5, 0.8]))
def test_classes_keep_their_share(seed, pct):
    "Classes exclude each other: each comes within a row of its share; pairs are parted; rows alone go where room is"
    rng = np.random.default_rng(seed)
    sizes = np.r_[rng.integers(3, 60, rng.integers(1, 8)), [2] * rng.integers(0, 5), [1] * rng.integers(0, 60)].astype(
        int
    )
    of = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    valid = stratify(of[:, None] == np.arange(len(sizes)), pct, rng)
    n = np.bincount(of[valid], minlength=len(sizes))
    some = sizes > 1
    assert (np.abs(n - np.clip(sizes * pct, 1, sizes - 1))[some] < 1).all() and ((n > 0) & (n < sizes))[some].all(), (
        sizes,
        n,
    )


def test_single_rows_are_spread_too():
    "A thousand classes of one row: a fifth of them is for validation"
    valid = stratify(sparse.csr_array(sparse.eye(1000, dtype=bool)), 0.2, np.random.default_rng(0))
    assert valid.sum() == 200


def test_groups_of_every_kind_of_task():
    a = BinaryBlock('a')
    df = pd.DataFrame(
        dict(a=[1, 0, None, 1], k=['u', 'v', 'u', 'w'], t=['x', 'x,y', '', None], r=[1.0, None, 2.0, 3.0])
    )
    bound = Flow('f', a, SingleLabelBlock('k') | a, MultiLabelBlock('t'), UnboundedRegressionBlock('r')).bind(df)
    g = label_groups(bound, bound.encode(df)).toarray().astype(int).T.tolist()
    assert g == [
        [1, 1, 0, 1],
        [0, 1, 0, 0],
        [1, 0, 0, 1],  # a counts, no, yes
        [1, 0, 0, 1],
        [1, 0, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 0, 1],  # k counts, u v w
        [1, 1, 1, 0],
        [0, 0, 1, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [1, 0, 1, 0],
        [0, 1, 0, 0],  # x and y
        [1, 0, 1, 1],
    ]  # r counts


def test_thousands_of_classes_take_little_memory():
    "5000 classes of 20 000 rows: a boolean column a class would be 100 MB, three of them a label"
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(k=(rng.random(20_000) ** 2 * 5000).astype(int)))
    tracemalloc.start()
    train, valid = StratifiedSplitter(SingleLabelBlock('k'), 0.2, seed=0)(df)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25e6, peak
    n, v = np.bincount(df.k, minlength=5000), np.bincount(df.k[valid], minlength=5000)
    assert (np.abs(v - np.clip(0.2 * n, 1, None))[n > 1] < 1).all() and abs(len(valid) / 20_000 - 0.2) < 0.06


@pytest.mark.parametrize('k', [2, 5])
def test_folds(k):
    rng = np.random.default_rng(0)
    labels = many_labels(600, 15, rng)
    cols = [f'l{j}' for j in range(15)]
    df = pd.DataFrame(labels.astype(float), columns=cols).assign(
        r=np.where(rng.random(600) < 0.05, 1.0, np.nan), x=range(600)
    )
    flow = Flow('f', MultiLabelBlock('l', cols=cols), UnboundedRegressionBlock('r'))
    folds = stratified_folds(flow, df, k, seed=3)
    assert sorted(i for _, v in folds for i in v) == list(range(600)) and all(
        sorted([*t, *v]) == list(range(600)) for t, v in folds
    )
    assert max(len(v) for _, v in folds) - min(len(v) for _, v in folds) <= 6
    of = paper(np.c_[labels, df.r.notna()], [1 / k] * k, rng)
    ours, theirs = (
        np.mean([off(labels, np.isin(np.arange(600), v), 1 / k) for v in parts])
        for parts in ([v for _, v in folds], [np.flatnonzero(of == j) for j in range(k)])
    )
    assert ours < 2 * theirs + 0.02, (ours, theirs)
    assert all(df.r[v].notna().any() for _, v in folds)
    assert (
        [list(v) for _, v in folds]
        == [list(v) for _, v in stratified_folds(flow, df, k, seed=3)]
        != [list(v) for _, v in stratified_folds(flow, df, k, seed=4)]
    )


def test_folds_that_cannot_be():
    df = pd.DataFrame(dict(a=[0, 1, 1]))
    for n in (1, 4):
        with pytest.raises(FlowError, match=f'n={n} folds of 3 rows'):
            stratified_folds(BinaryBlock('a'), df, n)
    assert len(stratified_folds(BinaryBlock('a'), df, 3)) == 3
