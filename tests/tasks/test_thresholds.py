"The threshold search against brute force over every cut-off, plain loops, plain resampling and scikit-learn."

import itertools, time
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from sklearn import metrics as skm
from fastai_condmtl.all import *
from fastai_condmtl.tasks.thresholds import best_threshold, cross_fit, gain, threshold_curve, threshold_interval
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.tasks.thresholds import score_of_counts, threshold_scores

div = lambda a, b: a / b if b else 0.0


def fbeta(b):
    return lambda tp, fp, fn, tn: div((1 + b * b) * tp, (1 + b * b) * tp + b * b * fn + fp)


def balanced(tp, fp, fn, tn):
    return np.mean(
        [r for r in [tp / (tp + fn) if tp + fn else None, tn / (tn + fp) if tn + fp else None] if r is not None]
    )


COST = [[0.1, 2], [5, 0.0]]
OWN = dict(
    accuracy=lambda tp, fp, fn, tn: (tp + tn) / (tp + fp + fn + tn),
    balanced_accuracy=balanced,
    f1=fbeta(1),
    f1_score=fbeta(1),
    precision=lambda tp, fp, fn, tn: div(tp, tp + fp),
    recall=lambda tp, fp, fn, tn: div(tp, tp + fn),
    mcc=lambda tp, fp, fn, tn: div(tp * tn - fp * fn, ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5),
    youden=lambda tp, fp, fn, tn: div(tp, tp + fn) + div(tn, tn + fp) - 1,
    f2=fbeta(2),
    f_half=fbeta(0.5),
    cost=lambda tp, fp, fn, tn: -(0.1 * tn + 2 * fp + 5 * fn) / (tp + fp + fn + tn),
    own=lambda tp, fp, fn, tn: tp - 0.5 * fp,
)
NAMES = dict(f2=('fbeta', 2), f_half=('fbeta', 0.5), cost=COST, own=lambda tp, fp, fn, tn: tp - 0.5 * fp)
SKLEARN = dict(
    accuracy=skm.accuracy_score,
    f1=lambda t, p: skm.f1_score(t, p, zero_division=0),
    precision=lambda t, p: skm.precision_score(t, p, zero_division=0),
    recall=lambda t, p: skm.recall_score(t, p, zero_division=0),
    f2=lambda t, p: skm.fbeta_score(t, p, beta=2, zero_division=0),
    mcc=skm.matthews_corrcoef,
    balanced_accuracy=lambda t, p: np.mean([(np.asarray(p)[t == c] == c).mean() for c in (0, 1) if (t == c).any()]),
)
metric = lambda name: NAMES.get(name, name)


def counts(s, y, t):
    p, y = s > t, y.astype(bool)
    return int((p & y).sum()), int((p & ~y).sum()), int((~p & y).sum()), int((~p & ~y).sum())


def cuts(s):
    u = np.unique(s.astype(float))
    return np.r_[u[0] - 1, u]


def brute(s, y, fn, constraint=None):
    "The best score over every cut-off that meets the constraint, and the scores of all"
    s = s.astype(float)
    vals = np.array(
        [
            fn(*counts(s, y, t))
            if constraint is None or OWN[constraint[0]](*counts(s, y, t)) >= constraint[1]
            else np.nan
            for t in cuts(s)
        ]
    )
    return (np.nan if np.isnan(vals).all() else np.nanmax(vals)), vals


def check(s, y, name, constraint=None, mask=None, got=None):
    t, score = got or best_threshold(
        torch.as_tensor(s),
        torch.as_tensor(y),
        mask=None if mask is None else torch.as_tensor(mask),
        metric=metric(name),
        constraint=constraint,
    )
    if mask is not None:
        s, y = s[mask], y[mask]
    best = brute(s, y, OWN[name], constraint)[0] if len(s) else np.nan
    assert score == pytest.approx(best, abs=1e-6, nan_ok=True), (name, constraint)
    assert np.isnan(t) == np.isnan(best)
    if np.isnan(t):
        return
    rule = counts(s, y, float(t))
    assert OWN[name](*rule) == pytest.approx(best, abs=1e-6)  # the threshold does what its score says
    if constraint:
        assert OWN[constraint[0]](*rule) >= constraint[1]


@st.composite
def tables(draw, n=14, dtypes=(np.float32, np.float64)):
    "Scores with many ties (probabilities, logits, neighbouring floats), targets, mask"
    n, rng = draw(st.integers(1, n)), np.random.default_rng(draw(st.integers(0, 2**32)))
    kind, dtype = draw(st.sampled_from(['prob', 'ties', 'logit', 'near', 'equal'])), draw(st.sampled_from(dtypes))
    near = np.nextafter(dtype(0.7), dtype(1))
    s = dict(
        prob=lambda: rng.random(n),
        ties=lambda: rng.integers(0, 5, n) / 4,
        logit=lambda: rng.integers(-6, 7, n) * 1.7,
        equal=lambda: np.full(n, rng.normal()),
        near=lambda: rng.choice(
            [dtype(0.7), near, np.nextafter(near, dtype(1)), dtype(-1e-30), dtype(0), dtype(1e-30)], n
        ),
    )[kind]().astype(dtype)
    return (
        s,
        (rng.random(n) < rng.choice([0, 0.2, 0.5, 0.8, 1])).astype(int),
        rng.random(n) < rng.choice([0, 0.5, 0.8, 1]),
    )


@given(tables())
def test_every_metric_constraint_and_mask(case):
    s, y, mask = case
    for name in OWN:
        if name == 'youden' and len(set(y[mask])) < 2:
            continue
        for constraint in [None, ('precision', 0.9), ('precision', 0.6), ('recall', 0.7), ('accuracy', 0.5)]:
            check(s, y, name, constraint, mask)
    for name in ('f1', 'accuracy'):
        check(s, y, name)


@given(tables(dtypes=[np.float32]))
def test_a_rule_that_float32_can_follow(case):
    s, y, _ = case
    for name in ('f1', 'accuracy', 'mcc'):
        t, score = best_threshold(torch.tensor(s), torch.tensor(y), metric=name)
        p = (
            (torch.tensor(s) > torch.tensor(t, dtype=torch.float32)).numpy().astype(int)
        )  # as `thresholds`, a float32 tensor, are applied
        assert OWN[name](*counts(p, y, 0.5)) == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize('name', SKLEARN)
def test_scores_are_scikit_learns(name):
    rng = np.random.default_rng(1)
    for rate in (0.1, 0.5, 0.9):
        y, s = (rng.random(40) < rate).astype(int), rng.integers(0, 12, 40) / 11
        vals = [SKLEARN[name](y, (s > t).astype(int)) for t in cuts(s)]
        t, score = best_threshold(s, y, metric=metric(name))
        assert score == pytest.approx(max(vals), abs=1e-6) and SKLEARN[name](y, (s > t).astype(int)) == pytest.approx(
            score, abs=1e-6
        )


@given(st.integers(0, 10**6), st.sampled_from([np.float32, np.float64]))
def test_many_columns_are_many_searches(seed, dtype):
    rng = np.random.default_rng(seed)
    s, y, mask = (rng.integers(0, 8, (12, 4)) / 7).astype(dtype), rng.integers(0, 2, (12, 4)), rng.random((12, 4)) < 0.6
    mask[:, 3] = rng.random() < 0.5
    for name in ('f1', 'balanced_accuracy', 'cost', 'mcc'):
        for constraint in (None, ('precision', 0.75)):
            ts, scores = best_threshold(torch.tensor(s), torch.tensor(y), torch.tensor(mask), metric(name), constraint)
            assert len(ts) == len(scores) == 4
            for j in range(4):
                check(s[:, j], y[:, j], name, constraint, mask[:, j], (float(ts[j]), float(scores[j])))
                one = best_threshold(
                    torch.tensor(s[:, j]), torch.tensor(y[:, j]), torch.tensor(mask[:, j]), metric(name), constraint
                )
                assert one == pytest.approx((float(ts[j]), float(scores[j])), nan_ok=True)


def test_types_and_shapes():
    s, y = [0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]
    want = best_threshold(np.array(s), np.array(y))
    assert all(isinstance(x, float) for x in want) and want == pytest.approx(((0.1 + 0.35) / 2, 0.8))
    for a, b in [
        (torch.tensor(s), torch.tensor(y)),
        (s, y),
        (torch.tensor(s), torch.tensor(y).float()),
        (np.array(s), np.array(y, bool)),
        (torch.tensor(s).half(), torch.tensor(y).bool()),
    ]:
        assert best_threshold(a, b) == pytest.approx(want, abs=1e-3)
    ts, scores = best_threshold(torch.tensor(s)[:, None], torch.tensor(y)[:, None])
    assert np.shape(ts) == np.shape(scores) == (1,)


@pytest.mark.parametrize(
    's', [torch.tensor([0.125, 0.5, 0.25, 0.75]).bfloat16(), torch.tensor([0.125, 0.5, 0.25, 0.75]).requires_grad_()]
)
def test_what_a_model_hands_over(s):
    assert best_threshold(s, torch.tensor([0, 0, 1, 1])) == pytest.approx((0.1875, 0.8))


# ---- degenerate ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('n, mask', [(0, None), (3, [False] * 3)])
def test_no_rows(n, mask):
    for name in OWN:
        assert np.isnan(
            best_threshold(torch.rand(n), torch.ones(n), None if mask is None else torch.tensor(mask), metric(name))
        ).all()
        ts, scores = best_threshold(
            torch.rand(n, 2),
            torch.ones(n, 2),
            None if mask is None else torch.tensor(mask)[:, None].expand(-1, 2),
            metric(name),
        )
        assert np.shape(ts) == (2,) and np.isnan(ts).all() and np.isnan(scores).all()


@pytest.mark.parametrize(
    's, y, name, t, score',
    [
        ([0.3] * 4, [1] * 4, 'f1', 0.15, 1),
        ([0.3] * 4, [0] * 4, 'accuracy', 0.65, 1),
        ([0.3] * 4, [1, 1, 0, 1], 'accuracy', 0.15, 0.75),
        ([0.2, 0.6], [0, 0], 'f1', 0.5, 0),
        ([0.2, 0.6], [0, 0], 'accuracy', 0.8, 1),
        ([0.2, 0.6], [1, 1], 'accuracy', 0.1, 1),
        ([0.2, 0.6], [1, 1], 'balanced_accuracy', 0.1, 1),
        ([0.2, 0.6], [0, 1], 'f1', 0.4, 1),
        ([1.0, 1.0], [0, 0], 'accuracy', 1, 1),
        ([0.4], [1], 'recall', 0.2, 1),
        ([0.1, 0.12, 0.5, 0.55, 0.9], [0, 1, 0, 1, 1], 'accuracy', 0.525, 0.8),
        ([0.1, 0.2, 0.5, 0.55, 0.9], [0, 1, 0, 1, 1], 'accuracy', 0.15, 0.8),
        ([0.0, 0.0], [1, 1], 'f1', 0, 1),
        ([-3.0, -3], [1, 1], 'f1', -3, 1),
        ([-3.0, -3], [0, 0], 'accuracy', -3, 1),
    ],
)
def test_by_hand(s, y, name, t, score):
    got = best_threshold(np.array(s), np.array(y), metric=name)
    assert got == pytest.approx((t, score), abs=1e-5)


@given(tables(), st.sampled_from(['accuracy', 'f1', 'recall', 'precision']))
def test_the_middle_of_the_widest_stretch(case, name):
    s, y, _ = case
    s = np.abs(s.astype(float)) % 1
    (best, vals), edges = (
        brute(s, y, OWN[name]),
        np.r_[0, np.unique(s), 1],
    )  # cut j: thresholds from edges[j] up to edges[j+1]
    runs, good = [], np.isclose(vals, best, atol=1e-12)
    for j in range(len(vals)):
        if not good[j]:
            continue
        if j and good[j - 1]:
            runs[-1][1] = edges[j + 1]
        else:
            runs.append([edges[j], edges[j + 1]])
    widest = max(b - a for a, b in runs)
    if widest > 1e-6:
        assert any(
            best_threshold(s, y, metric=name)[0] == pytest.approx((a + b) / 2, abs=1e-6)
            for a, b in runs
            if b - a >= widest - 1e-9
        )


def test_nan_counts_only_where_it_is_masked():
    s, y = torch.tensor([0.2, float('nan'), 0.8]), torch.tensor([0, 1, 1])
    with pytest.raises(FlowError, match='(?i)nan'):
        best_threshold(s, y)
    with pytest.raises(FlowError, match='(?i)nan'):
        best_threshold(s[:, None], y[:, None])
    assert best_threshold(s, y, torch.tensor([True, False, True])) == pytest.approx((0.5, 1))
    assert best_threshold(
        torch.tensor([0.2, 0.5, 0.8]), torch.tensor([0, float('nan'), 1]), torch.tensor([True, False, True])
    ) == pytest.approx((0.5, 1))


@pytest.mark.parametrize(
    'name, says',
    [
        ('f3', 'f1'),
        ('auc', 'f1'),
        ('roc_auc', 'f1'),
        (('fbeta',), 'fbeta'),
        (('fbta', 2), 'fbeta'),
        (3, '3'),
        ([[1, 2]], 'tn'),
        (None, 'None'),
    ],
)
def test_bad_metric(name, says):
    with pytest.raises(FlowError, match=says):
        best_threshold(torch.rand(5), torch.ones(5), metric=name)


@pytest.mark.parametrize(
    'bad',
    [
        dict(constraint='precision'),
        dict(constraint=('precison', 0.9)),
        dict(constraint=('precision', '.9')),
        dict(average='micr'),
        dict(mask=torch.ones(4, dtype=torch.bool)),
        dict(average='micro', metric='accuracy'),
        dict(targets=torch.ones(4)),
        dict(targets=torch.ones(5, 2)),
    ],
)
def test_bad_input(bad):
    with pytest.raises(FlowError):
        best_threshold(
            **(
                dict(
                    scores=torch.rand(5, 1) if 'average' in bad else torch.rand(5),
                    targets=torch.ones(5, 1) if 'average' in bad else torch.ones(5),
                )
                | bad
            )
        )


# ---- invariants ----------------------------------------------------------------------------------------------------
@given(tables(dtypes=[np.float64]), st.sampled_from(list(OWN)))
def test_invariants(case, name):
    s, y, _ = case
    if name == 'youden' and len(set(y)) < 2:
        return
    t, score = best_threshold(s, y, metric=metric(name))
    i = np.random.default_rng(0).permutation(len(s))
    assert best_threshold(s[i], y[i], metric=metric(name)) == pytest.approx(
        (t, score), nan_ok=True
    )  # order does not matter
    assert best_threshold(np.unique(s, return_inverse=True)[1] * 0.3 - 2, y, metric=metric(name))[1] == pytest.approx(
        score
    )  # nor the scale
    twice = best_threshold(np.r_[s, s], np.r_[y, y], metric=metric(name))
    if name != 'own':
        assert twice == pytest.approx((t, score))  # nor each row twice
    out = best_threshold(np.r_[s, s + 9], np.r_[y, 1 - y], np.r_[s < np.inf, s > np.inf], metric(name))
    assert out == pytest.approx((t, score))  # nor what is masked out
    for c in ('precision', 'recall'):
        held = best_threshold(s, y, metric=metric(name), constraint=(c, 0.8))[1]
        assert np.isnan(held) or held <= score + 1e-9


@given(tables(dtypes=[np.float64]))
def test_complement(case):
    "Balanced accuracy, accuracy and MCC do not mind which class is called yes"
    s, y, _ = case
    for name in ('balanced_accuracy', 'accuracy', 'mcc'):
        assert best_threshold(-s, 1 - y, metric=name)[1] == pytest.approx(best_threshold(s, y, metric=name)[1])


def test_transforms_of_probabilities():
    g = torch.Generator().manual_seed(0)
    s, y = torch.randn(200, generator=g).double(), torch.rand(200, generator=g) < 0.4
    for name in ('f1', 'mcc'):
        assert (
            best_threshold(s, y, metric=name)[1]
            == best_threshold(s.sigmoid(), y, metric=name)[1]
            == best_threshold(s.exp() * 1e6, y, metric=name)[1]
        )


# ---- micro ---------------------------------------------------------------------------------------------------------
@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 3), st.sampled_from(['f1', 'f2', 'f_half']))
def test_micro_over_the_product_of_cuts(seed, T, name):
    rng = np.random.default_rng(seed)
    n = 6 if T < 3 else 5
    s, y, mask = (
        rng.integers(0, 6, (n, T)) / 5,
        (rng.random((n, T)) < rng.choice([0, 0.3, 0.6])).astype(int),
        rng.random((n, T)) < 0.8,
    )
    cols = [(s[m, j], y[m, j]) for j, m in enumerate(mask.T)]
    pooled = lambda ts: np.sum([counts(*c, t) for c, t in zip(cols, ts)], axis=0)
    best = max(OWN[name](*pooled(ts)) for ts in itertools.product(*[cuts(a) if len(a) else [0.5] for a, _ in cols]))
    ts, score = best_threshold(torch.tensor(s), torch.tensor(y), torch.tensor(mask), metric(name), average='micro')
    if not mask.any():
        assert np.isnan(score)
    else:
        assert np.ndim(score) == 0 and len(ts) == T and float(score) == pytest.approx(best, abs=1e-6)
        assert OWN[name](*pooled(np.asarray(ts))) == pytest.approx(best, abs=1e-6)


# ---- cross_fit -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('name, constraint', [('f1', None), ('balanced_accuracy', None), ('f1', ('precision', 0.4))])
def test_cross_fit_by_a_loop(name, constraint):
    "Rows with one threshold are one fold (or more): it is what all the other rows choose"
    for seed in range(50):
        rng = np.random.default_rng(seed)
        s, y, mask = rng.random(120), (rng.random(120) < 0.3).astype(int), rng.random(120) < 0.8
        got = np.asarray(cross_fit(s, y, mask, name, constraint))
        assert got.shape == s.shape and (got == np.asarray(cross_fit(s, y, mask, name, constraint))).all()
        groups = [np.flatnonzero(mask & (got == t)) for t in np.unique(got[mask])]
        if len(groups) == 5:
            break
    assert len(groups) == 5
    for rows in groups:
        rest = np.setdiff1d(np.flatnonzero(mask), rows)
        t = best_threshold(s[rest], y[rest], metric=name, constraint=constraint)[0]
        assert got[rows] == pytest.approx(t, abs=1e-6)
        moved = s.copy()
        moved[rows] = rng.random(len(rows))  # a fold's own scores say nothing about its threshold
        assert np.asarray(cross_fit(moved, y, mask, name, constraint))[rows] == pytest.approx(t, abs=1e-6)


def test_cross_fit_shapes_and_ends():
    g = np.random.default_rng(0)
    s, y, mask = g.random((60, 3)), (g.random((60, 3)) < 0.4).astype(int), g.random((60, 3)) < 0.7
    got = np.asarray(cross_fit(s, y, mask))
    assert got.shape == (60, 3) and np.isfinite(got[mask]).all()
    hopeless = np.asarray(cross_fit(s[:, 0], np.zeros(60), None, 'f1', ('precision', 0.9), start=0.37))
    assert hopeless == pytest.approx(np.full(60, 0.37))  # where the others find none: the start
    assert (
        not np.array_equal(got, np.asarray(cross_fit(s, y, mask, seed=1)))
        and len(np.unique(np.asarray(cross_fit(s[:, 0], y[:, 0], folds=2)))) <= 2
    )
    for n in (0, 1, 2, 4):
        assert np.isfinite(np.asarray(cross_fit(s[:n, 0], y[:n, 0]))).all()
    micro = np.asarray(cross_fit(s, y, mask, 'f1', average='micro'))
    assert micro.shape == (60, 3) and np.isfinite(micro[mask]).all()


def test_cross_fit_is_honest():
    "Noise: the search sees a gain in its own rows that no new row gives; cross-fit does not promise it"
    rng, own, honest = np.random.default_rng(0), [], []
    for _ in range(30):
        s, y = rng.random(60), (rng.random(60) < 0.5).astype(int)
        own.append(best_threshold(s, y, metric='accuracy')[1])
        honest.append(((s > np.asarray(cross_fit(s, y, metric='accuracy'))) == y).mean())
    assert np.mean(own) > 0.56 and abs(np.mean(honest) - 0.5) < 0.04


# ---- curve, interval, gain -----------------------------------------------------------------------------------------
@pytest.mark.parametrize('name', ['f1', 'accuracy', 'balanced_accuracy', 'mcc', 'cost'])
def test_curve(name):
    rng = np.random.default_rng(0)
    s, y = rng.integers(0, 30, 80) / 31 + 0.01, (rng.random(80) < 0.4).astype(int)
    ts, vals, draws = map(np.asarray, threshold_curve(s, y, metric(name)))
    assert (np.diff(ts) > 0).all() and len(ts) == len(vals) and len(draws) == 0
    assert vals == pytest.approx([OWN[name](*counts(s, y, t)) for t in ts], abs=1e-6)
    assert vals.max() == pytest.approx(
        best_threshold(s, y, metric=metric(name))[1]
    )  # few cut-offs: all are on the curve
    few = threshold_curve(s, y, metric(name), points=7)
    assert len(few[0]) <= 7 and np.asarray(few[1]) == pytest.approx(
        [OWN[name](*counts(s, y, t)) for t in np.asarray(few[0])], abs=1e-6
    )


def test_band_is_a_plain_bootstrap():
    rng = np.random.default_rng(0)
    y = (rng.random(150) < 0.4).astype(int)
    s = (rng.random(150) + y * 0.6) / 1.6
    ts, vals, draws = map(np.asarray, threshold_curve(s, y, 'f1', points=20, n_boot=400))
    own = np.array(
        [[OWN['f1'](*counts(s[i], y[i], t)) for t in ts] for i in (rng.integers(0, 150, 150) for _ in range(400))]
    )
    assert (
        draws.shape == (400, len(ts))
        and np.abs(draws.mean(0) - own.mean(0)).max() < 0.015
        and np.abs(draws.std(0) - own.std(0)).max() < 0.012
    )
    again = np.asarray(threshold_curve(s, y, 'f1', points=20, n_boot=400)[2])
    assert np.array_equal(draws, again)


def test_interval_is_a_plain_bootstrap():
    rng = np.random.default_rng(0)
    y = (rng.random(200) < 0.4).astype(int)
    s = 1 / (1 + np.exp(-(rng.normal(size=200) + 2 * y - 1)))
    for name, constraint in (('f1', None), ('balanced_accuracy', None), ('recall', ('precision', 0.6))):
        own = [
            best_threshold(s[i], y[i], metric=name, constraint=constraint)[0]
            for i in (rng.integers(0, 200, 200) for _ in range(400))
        ]
        low, high = threshold_interval(s, y, name, constraint, n_boot=400)
        assert (low, high) == pytest.approx(tuple(np.nanquantile(own, [0.025, 0.975])), abs=0.06)
        low2, high2 = threshold_interval(s, y, name, constraint, n_boot=400, level=0.5)
        assert low <= low2 <= high2 <= high
    assert np.isnan(threshold_interval(s, y * 0, 'f1', ('precision', 0.9), n_boot=40)).all()


@pytest.mark.parametrize('level', [0, 1.1, 95, -0.5, 'most', float('nan')])
def test_the_level_of_an_interval_is_a_share(level):
    with pytest.raises(FlowError, match='level=.* must be a share of the draws, such as .95'):
        threshold_interval([0.2, 0.8], [0, 1], level=level)


def test_few_draws_for_a_level_are_told():
    with pytest.raises(FlowError, match='n_boot=399 draws are too few for the ends of a 99.5% interval.* n_boot=400$'):
        threshold_interval([0.2, 0.8], [0, 1], n_boot=399, level=0.995)
    threshold_interval([0.2, 0.8], [0, 1], n_boot=4, level=0.5)


def test_gain():
    rng = np.random.default_rng(0)
    t = rng.random(300) < 0.4
    a, b = (np.where(rng.random(300) < p, ~t, t) for p in (0.1, 0.3))
    for f in (OWN['accuracy'], lambda tp, fp, fn, tn: 2 * tp / (2 * tp + fp + fn)):
        own = lambda i, p: f(*counts(p[i], t[i], 0.5))
        diff, se = gain(f, t, a, b)
        assert float(diff) == pytest.approx(own(slice(None), a) - own(slice(None), b))
        assert float(se) == pytest.approx(
            np.std([own(i, a) - own(i, b) for i in (rng.integers(0, 300, 300) for _ in range(500))]), rel=0.2
        )
        assert tuple(map(float, gain(f, t, a, a))) == (0, 0)


# ---- size ----------------------------------------------------------------------------------------------------------
def test_large():
    g = torch.Generator().manual_seed(0)
    y = torch.rand(100_000, 8, generator=g) < torch.linspace(0.02, 0.6, 8)
    s, start = torch.sigmoid(torch.randn(100_000, 8, generator=g) + y * 1.5 - 0.7), time.time()
    got = {n: best_threshold(s, y, metric=n) for n in ('f1', 'mcc', 'balanced_accuracy')}
    assert time.time() - start < 8
    prec, rec, thr = skm.precision_recall_curve(y[:, 3].numpy(), s[:, 3].numpy())
    assert float(got['f1'][1][3]) == pytest.approx((2 * prec * rec / (prec + rec + 1e-12)).max(), abs=1e-6)
    fpr, tpr, _ = skm.roc_curve(y[:, 3].numpy(), s[:, 3].numpy())
    assert float(got['balanced_accuracy'][1][3]) == pytest.approx(((tpr + 1 - fpr) / 2).max(), abs=1e-6)
    for j in range(8):
        assert float(got['mcc'][1][j]) == pytest.approx(
            skm.matthews_corrcoef(y[:, j].numpy(), s[:, j].numpy() > float(got['mcc'][0][j])), abs=1e-6
        )


def test_mcc_of_many_rows_does_not_overflow():
    y = torch.arange(400_000) % 2
    t, score = best_threshold(y * 0.5 + 0.25, y, metric='mcc')
    assert (t, score) == pytest.approx((0.5, 1))


@pytest.mark.filterwarnings('error::RuntimeWarning')
@pytest.mark.parametrize('name', OWN)
def test_quiet(name):
    rng = np.random.default_rng(0)
    for _ in range(30):
        n = rng.integers(1, 12)
        best_threshold(rng.integers(0, 4, n) / 3, rng.integers(0, 2, n), rng.random(n) < 0.6, metric(name))


@pytest.mark.parametrize('s', [[np.inf, 0.5], [-np.inf, 0.5]])
def test_infinite_scores(s):
    "No threshold tells an infinite score from the others on both sides; where it does not count it may stand."
    with pytest.raises(FlowError, match='infinite'):
        best_threshold(np.array(s), np.array([1, 0]), metric='accuracy')
    assert best_threshold(np.array(s), np.array([1, 1]), np.array([0, 1]), metric='accuracy')[1] == 1


def test_targets_that_are_not_known():
    "NaN is neither yes nor no: left out by the mask, or an error"
    p, y = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, np.nan])
    for f in (best_threshold, cross_fit):
        with pytest.raises(FlowError, match='targets hold NaN, 1 of them.*mask='):
            f(p, y)
        f(p, y, ~np.isnan(y))
    assert best_threshold(p, y, ~np.isnan(y)) == best_threshold(p[:3], y[:3])
    with pytest.raises(FlowError, match='folds=1'):
        cross_fit(p, [0, 0, 1, 1], folds=1)


def says(text, f, *args, error=FlowError):
    "`f(*args)` is refused in just these words, or in words that begin so."
    with pytest.raises(error) as e:
        f(*args)
    assert str(e.value).startswith(text), str(e.value)


# ---- thresholds ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    's, lo, hi',
    [
        ([0.2, 0.6], 0, 1),
        ([0.0, 0.6], -1e-6, 1),
        ([0.2, 1.0], 0, 1 + 1e-6),
        ([0.0, 1.0], -1e-6, 1 + 1e-6),
        ([-3.0, 5.0], -3 - 3e-6, 5 + 5e-6),
        ([0.5, 1.5], 0.5 - 1e-6, 1.5 + 1.5e-6),
        ([-0.5, 0.5], -0.5 - 1e-6, 0.5 + 1e-6),
        ([-5.0, -2.0], -5 - 5e-6, -2 + 2e-6),
        ([0.3, 0.3], 0, 1),
        ([1.0, 1.0], 0, 1 + 1e-6),
        ([0.0, 0.0], -1e-6, 1),
        ([1e3, 2e3], 1e3 - 1e-3, 2e3 + 2e-3),
    ],
)
def test_how_far_thresholds_may_go(s, lo, hi):
    "To 0 and 1 where scores can be probabilities, else just beyond them; one that decides all alike is in between"
    s = np.array(s)
    cuts = threshold_curve(s, [0, 1])[0]
    assert cuts.tolist() == pytest.approx([lo, *([s.mean()] if s[0] < s[1] else []), hi], rel=1e-14, abs=1e-20)
    assert best_threshold(s, [1, 1], metric='accuracy') == (
        pytest.approx((lo + s[0]) / 2, rel=1e-12),
        1,
    ) and best_threshold(s, [0, 0], metric='accuracy') == (pytest.approx((hi + s[1]) / 2, rel=1e-12), 1)


def lower_quantiles(x, n):  # the smallest score that at least a share of q reaches
    return [sorted(x)[max(0, int(np.ceil(q * len(x) - 1e-9)) - 1)] for q in np.linspace(0, 1, n)]


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9])
def test_a_long_curve_is_thinned_where_it_moves(rate):
    "Half of the cut-offs are scores of the rarer answer, half of all; counted there one by one."
    rng = np.random.default_rng(3)
    s, y = rng.random(1000), np.arange(1000) < 1000 * rate
    few = s[y] if rate <= 0.5 else s[~y]
    for points in (9, 40):
        assert threshold_curve(s, y, points=points)[0].tolist() == sorted(
            {0.0, 1.0, *lower_quantiles(s, points // 2 - 1), *lower_quantiles(few, points // 2 - 1)}
        )
    cuts, vals, _ = threshold_curve(s, y, 'accuracy')
    assert 300 < len(cuts) <= 512 and vals.tolist() == pytest.approx([((s > t) == y).mean() for t in cuts])
    assert (
        len(threshold_curve(s[:511], y[:511])[0]) == 512
        and len(threshold_curve(s[:512], y[:512])[0]) < 512
        and len(threshold_curve(s, y * 0)[0]) < 512
    )


def test_curves_of_nothing_and_of_seeds():
    cuts, vals, draws = threshold_curve([], [], n_boot=3)
    assert (cuts.shape, vals.shape, draws.shape) == ((0,), (0,), (3, 0)) and np.isnan(threshold_interval([], [])).all()
    rng = np.random.default_rng(0)
    s, y = rng.random(50), rng.random(50) < 0.5
    assert (
        threshold_curve(s, y)[2].shape == (0, 51)
        and np.array_equal(threshold_curve(s, y, n_boot=4)[2], threshold_curve(s, y, 'f1', 512, 4, 0)[2])
        and not np.array_equal(threshold_curve(s, y, n_boot=4)[2], threshold_curve(s, y, n_boot=4, seed=1)[2])
    )
    assert (
        threshold_interval(s, y)
        == threshold_interval(s, y, 'f1', None, 200, 0.95, 0)
        != threshold_interval(s, y, seed=1)
    )
    low, high = threshold_interval(s, y, 'accuracy', level=1.0)
    assert (
        all(isinstance(v, float) for v in (low, high))
        and 0 <= low <= threshold_interval(s, y, 'accuracy')[0] <= high <= 1
    )


def test_an_interval_of_what_is_sure():
    "Two groups far apart: any draw has its best thresholds between them, at the one cut-off that there is."
    s, y = np.repeat([0.2, 0.6], 50), np.repeat([0, 1], 50)
    assert (
        threshold_interval(s, y) == pytest.approx((0.4, 0.4))
        and threshold_interval(s, y, 'recall', ('precision', 0.99)) == pytest.approx((0.4, 0.4))
        and np.isnan(threshold_interval(s, y, 'f1', ('accuracy', 1.1))).all()
    )
    s4 = np.repeat([0.1, 0.3, 0.5, 0.7, 0.9], 40)  # equally good from .3 to .7: the middle one
    assert threshold_interval(s4[[*range(40), *range(160, 200)]], np.repeat([0, 1], 40)) == pytest.approx((0.5, 0.5))
    assert threshold_interval(
        s4, np.repeat([0, 1, 1, 1, 1], 40), lambda tp, fp, fn, tn: np.minimum(tp, 40.0)
    ) == pytest.approx((0.2, 0.4), abs=0.2)


@pytest.mark.parametrize('constraint', [None, ('precision', 0.6)])
def test_an_interval_is_that_of_each_draws_middle(constraint):
    "The draws are those of the curve: of each the middle of its best cut-offs, of these the quantiles."
    rng = np.random.default_rng(4)
    y = rng.random(60) < 0.5
    s = np.round((rng.random(60) + y * 0.4) / 1.4, 1)
    cuts, _, draws = threshold_curve(s, y, 'f1', 2048, 200, 9)
    held = (
        np.ones(draws.shape, dtype=bool)
        if constraint is None
        else threshold_curve(s, y, constraint[0], 2048, 200, 9)[2] >= constraint[1]
    )
    mids = []
    for v, ok in zip(draws, held):
        if not ok.any():
            continue
        at = [k for k in range(len(cuts)) if ok[k] and v[k] >= v[ok].max() - 1e-12]
        mids.append(cuts[(at[0] + at[-1]) // 2])
    assert (
        threshold_interval(s, y, 'f1', constraint, seed=9) == pytest.approx(tuple(np.quantile(mids, [0.025, 0.975])))
        and len(set(mids)) > 2
    )
    assert threshold_interval(s, y, 'f1', constraint, 200, 0.5, 9) == pytest.approx(
        tuple(np.quantile(mids, [0.25, 0.75]))
    )


def test_gain_counts_decisions():
    "By hand: 4 rows, two right against one."
    acc = lambda tp, fp, fn, tn: (tp + tn) / np.maximum(tp + fp + fn + tn, 1)
    rec = lambda tp, fp, fn, tn: tp / np.maximum(tp + fn, 1)
    true, ours, other = (np.array(v, dtype=bool) for v in ([1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0]))
    assert (
        gain(acc, true, ours, other)[0] == 0.25
        and gain(rec, true, ours, other)[0] == 0.5
        and gain(lambda tp, fp, fn, tn: fp + 10 * tn + 100 * fn, true, ours, other)[0] == -100
    )
    assert gain(acc, true, ours, other) == gain(acc, true, ours, other, 400, 0) != gain(
        acc, true, ours, other, seed=1
    ) and gain(acc, *[np.zeros(0, dtype=bool)] * 3) == (0, 0)
    assert gain(acc, *(np.array([v], dtype=bool) for v in (1, 1, 0))) == (1, 0) and gain(
        acc, *(np.array([v], dtype=bool) for v in (0, 1, 0))
    ) == (-1, 0)
    assert gain(acc, true, ours, other, n_boot=3)[1] != gain(acc, true, ours, other)[1]


def test_folds_and_starts():
    rng = np.random.default_rng(5)
    s, y = rng.random((40, 2)), rng.random((40, 2)) < 0.4
    mask = np.ones((40, 2), dtype=bool)
    fold = np.random.default_rng(7).permutation(40) % 4
    got = cross_fit(s, y, folds=4, seed=7)
    for k in range(4):
        for j in range(2):
            assert got[fold == k, j] == pytest.approx(best_threshold(s[fold != k, j], y[fold != k, j])[0])
    assert np.array_equal(cross_fit(s, y), cross_fit(s, y, None, 'f1', None, None, 0.5, 5, 0)) and np.array_equal(
        cross_fit(s, y), cross_fit(s, y, mask)
    )
    micro = cross_fit(s, y, average='micro', folds=4, seed=7)
    for k in range(4):
        assert np.allclose(micro[fold == k], best_threshold(s[fold != k], y[fold != k], average='micro')[0])
    assert not np.allclose(micro, got)
    mask[:, 1] = False
    assert (
        (cross_fit(s, y, mask, start=np.array([0.1, 0.3]))[:, 1] == 0.3).all()
        and (cross_fit(s, y, mask)[:, 1] == 0.5).all()
        and (cross_fit(s, y, mask * 0.5)[:, 1] == 0.5).all()
    )


def test_more_than_is_searched_at_once():
    "Columns are searched some at a time; each is still its own."
    rng = np.random.default_rng(0)
    y = rng.random((600_000, 4)) < [0.2, 0.4, 0.5, 0.7]
    s = (y * [0.1, 0.2, 0.4, 0.6] + rng.random(y.shape)).astype(np.float32)
    t, score = best_threshold(s, y, metric='accuracy')
    for j in (0, 3):
        assert (t[j], score[j]) == pytest.approx(best_threshold(s[:, j], y[:, j], metric='accuracy'))
    assert score.tolist() == pytest.approx([((s[:, j] > t[j]) == y[:, j]).mean() for j in range(4)])


def test_scores_of_any_number_type():
    y = np.array([0, 1, 0, 1])
    for dtype in (np.int64, np.int32, np.float16, np.uint8):
        assert best_threshold(np.array([1, 5, 2, 8]).astype(dtype), y) == (pytest.approx(3.5), 1)
    assert (
        best_threshold(np.array([-3, 1, -0.0, 2]).astype(np.float32), y)[0] == pytest.approx(0.5)
        and best_threshold(np.array([0.0, 1, -0.0, 2], dtype=np.float32), y, np.array([0.5, 2, 0, 1]))[1] == 1
    )
    fine = np.array([1, 1 + 1e-9, 1 + 2e-9, 1 + 3e-9])  # too close for single precision
    assert best_threshold(torch.tensor(fine), np.array([0, 0, 1, 1]))[1] == 1


@pytest.mark.parametrize(
    'metric, text',
    [
        ('f1_scor', "metric 'f1_scor' has no threshold to search: did you mean 'f1_score'? Known: "),
        ('zzz', "metric 'zzz' has no threshold to search: Known: "),
        (('fbeta', 1, 2), "metric ('fbeta', 1, 2) is not known"),
        (('beta', 2), "metric ('beta', 2) is not known"),
        ([[1, 2]], "metric [[1, 2]] is not known"),
        (object, None),
    ],
)
def test_what_can_be_maximised(metric, text):
    if text:
        says(text, score_of_counts, metric)
    else:
        assert score_of_counts(metric) is metric


def test_what_is_maximised():
    tp, fp, fn, tn = 3.0, 2.0, 1.0, 4.0
    assert score_of_counts(('fbeta', 2))(tp, fp, fn, tn) == pytest.approx(15 / (15 + 4 * 1 + 2)) and score_of_counts(
        'f1'
    )(tp, fp, fn, tn) == pytest.approx(6 / 9) == score_of_counts('f1_score')(tp, fp, fn, tn)
    assert score_of_counts([[0.5, 2], [5, 1]])(tp, fp, fn, tn) == pytest.approx(
        -(0.5 * 4 + 2 * 2 + 5 * 1 + 1 * 3) / 10
    ) and score_of_counts(((0, 1), (1, 0)))(tp, fp, fn, tn) == pytest.approx(-0.3)
    assert (
        score_of_counts('youden')(tp, fp, fn, tn) == pytest.approx(3 / 4 + 4 / 6 - 1)
        and 'youden' in threshold_scores
        and set(threshold_scores) > {'accuracy', 'f1_score', 'precision', 'recall', 'mcc', 'balanced_accuracy'}
    )


@pytest.mark.parametrize(
    'kw, text',
    [
        (dict(targets=[0, 1, 1]), "scores (2,) and targets (3,) must have one shape"),
        (
            dict(scores=np.ones((2, 1, 1)), targets=np.ones((2, 1, 1))),
            "scores (2, 1, 1) and targets (2, 1, 1) must have one shape, (N,) or (N, T)",
        ),
        (dict(scores=0.5, targets=1), "scores () and targets () must"),
        (dict(mask=[True]), "mask (1,) must have the shape of the scores, (2,)"),
        (
            dict(scores=[[0.1, 0.2], [0.3, np.nan]], targets=[[0, 1], [0, 1]]),
            "scores of column 1 hold NaN or infinite values",
        ),
        (dict(average='macro'), "average='macro' is not known: None for a threshold a column, or 'micro'"),
        (
            dict(average='micro', metric='accuracy'),
            "average='micro' is for 'f1' and ('fbeta', beta), without a constraint",
        ),
        (dict(average='micro', constraint=('recall', 0.5)), "average='micro' is for"),
        (dict(constraint='precision'), "constraint='precision' must be a metric and the least it may be"),
        (dict(constraint=('recall', '.5')), "constraint=('recall', '.5') must be"),
        (dict(constraint=('recall', 0.5, 0.6)), "constraint=('recall', 0.5, 0.6) must be"),
        (dict(constraint=dict(recall=0.5)), "constraint={'recall': 0.5} must be"),
    ],
)
def test_a_search_that_is_refused(kw, text):
    says(text, lambda: best_threshold(**{'scores': [0.2, 0.7], 'targets': [0, 1], **kw}))


def test_constraints_of_any_form():
    s, y = [0.1, 0.3, 0.5, 0.7], [0, 1, 0, 1]
    assert (
        best_threshold(s, y, constraint=['precision', 1])
        == (pytest.approx(0.6), pytest.approx(2 / 3))
        == best_threshold(s, y, constraint=('precision', 0.9))
        and np.isnan(best_threshold(s, y, constraint=('precision', 1.01))).all()
    )
    assert best_threshold(s, y, metric='precision', constraint=('recall', 1)) == (
        pytest.approx(0.2),
        pytest.approx(2 / 3),
    ) and best_threshold(s, y, constraint=(lambda tp, fp, fn, tn: -fp, -1))[1] == pytest.approx(0.8)
    assert best_threshold(s, y, metric=lambda tp, fp, fn, tn: 1e9 * (tp - 2 * fp)) == (
        pytest.approx(0.6),
        1e9,
    )  # more than a difference of 1e-12 can be told in
    nan = lambda tp, fp, fn, tn: np.where(tp > 1, np.nan, tp)
    assert (
        best_threshold(s, y, metric=nan) == (pytest.approx(0.5), 1)
        and np.isnan(best_threshold(s, y, metric=lambda *c: c[0] * np.nan)).all()
    )
    micro = best_threshold(s, y, average='micro')
    assert micro == pytest.approx(best_threshold(s, y)) and type(micro[0]) is float is type(micro[1])
    assert [v.shape for v in best_threshold(np.zeros((3, 0)), np.zeros((3, 0)))] == [(0,), (0,)]


def test_curves_of_rare_answers_reach_the_peak():
    rng = np.random.default_rng(0)
    n, k = 200_000, 150
    p, y = np.concatenate([rng.beta(1, 40, n - k), rng.beta(8, 8, k)]).astype(np.float32), np.arange(n) >= n - k
    t, score = best_threshold(p, y)
    _, values, _ = threshold_curve(p, y)
    lo, hi = threshold_interval(p, y, n_boot=50)
    assert values.max() == pytest.approx(score, abs=0.005) and lo <= t <= hi
