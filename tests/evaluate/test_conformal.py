"""Tests of evaluate/conformal: the promise on 200 splits of frozen features, limits and sets against MAPIE, and what a
learner does with them"""

import itertools
import math
import os
import pickle
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import betabinom, chisquare
from fastai.vision.all import DataBlock, IndexSplitter, Learner, Transform, TransformBlock, load_learner
from torch import nn

from fastai_condmtl.all import *
from fastai_condmtl.core.extras import MissingExtra
from fastai_condmtl.evaluate.conformal import ScoredLabels, least_rows, limit_of, limit_of_rows
from scaled_logits import learner, quiet, table

pytest.importorskip('mapie')
COVERAGE = 0.9


class Fitted:
    "An estimator that says what stands in X"

    is_fitted = fitted_ = True

    def __init__(self, classes=None):
        if classes is not None:
            self.classes_ = np.arange(classes)

    def fit(self, X, y):
        return self

    def predict_proba(self, X):
        return X

    def predict(self, X):
        return X.argmax(1) if hasattr(self, 'classes_') else X[:, 0]


def drawn(kind, n, seed=0):
    "A bound block of a kind, activations `(n, W*n_out)` and values `(n, W)` that follow them"
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 4)) * 1.5
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    classes = np.array([rng.choice(4, p=row) for row in p])
    yes = rng.random((n, 3)) < 1 / (1 + np.exp(-z[:, :3]))
    counts = rng.negative_binomial(4, 4 / (4 + np.exp(z[:, 0] + 2)))  # more dispersed than Poisson
    votes = np.array([rng.multinomial(12, row) for row in p])
    rows = pd.DataFrame(dict(y=yes[:, 0], k=np.array(list('abcd'))[classes], o=classes + 1, n=counts))
    rows['z'] = z[:, 1] + rng.standard_t(3, n)
    rows['x'] = np.clip(50 + 10 * rows.z, 0, 100)
    rows = rows.assign(**{f'v{j}': votes[:, j] for j in range(4)}, **{f'l{j}': yes[:, j] for j in range(3)})
    block = dict(
        binary=lambda: BinaryBlock('y'),
        single=lambda: SingleLabelBlock('k'),
        ordinal=lambda: OrdinalBlock('o'),
        labels=lambda: MultiLabelBlock('l', cols=['l0', 'l1', 'l2']),
        votes=lambda: VotesBlock('v', cols=['v0', 'v1', 'v2', 'v3']),
        unbounded=lambda: UnboundedRegressionBlock('z'),
        bounded=lambda: BoundedRegressionBlock('x', y_range=(0, 100)),
        count=lambda: CountBlock('n'),
    )[kind]()
    bound = Flow('f', block).bind(rows)
    block = next(iter(bound.tasks.values()))
    acts = dict(
        binary=1 / (1 + np.exp(-z[:, :1])),
        labels=1 / (1 + np.exp(-z[:, :3])),
        unbounded=(z[:, 1:2] - block.lo) / block.span,
        bounded=np.clip(0.5 + 0.1 * z[:, 1:2], 0, 1),
        count=np.exp(z[:, :1] + 2) / block.span,
    ).get(kind, p)
    return block, torch.tensor(acts), bound.encode(rows)[:, 0].double().as_subclass(torch.Tensor)


KINDS = ['binary', 'single', 'ordinal', 'labels', 'votes', 'unbounded', 'bounded', 'count']


def sets_of(block, acts, limits):
    "The sets of rows by limits, with what is decided"
    limits = torch.tensor(limits, dtype=torch.float64)
    if block.set_kind == 'interval':
        return block.interval(acts, limits)
    cells = acts.reshape(-1, block.n_out) if block.per_cell else acts
    values = block.decide(cells, 0.5) if block.thresholded else block.decide(cells)
    return block.answer_sets(acts, limits, values.reshape(len(acts), -1))


@pytest.mark.parametrize('kind', KINDS)
def test_coverage_is_that_of_the_beta_binomial_on_200_splits(kind):
    """The labels of new rows below a limit are beta-binomial, exactly, in every random split of distinct scores: a task
    at a time, and a class at a time where classes have limits of their own"""
    block, acts, vals = drawn(kind, 900)
    score, answer = block.nonconformity(acts, vals).numpy(), block.answer_of(vals).numpy()
    score = score + np.random.default_rng(1).random(score.shape) * 1e-12  # counts are tied: ties are broken by lot
    known, rng = np.ones_like(score, dtype=bool), np.random.default_rng(2)
    n_answers, z_top, z_var, ranks, in_set = block.n_answers, 0.0, 0.0, [], []
    for _ in range(200):
        order = rng.permutation(len(score))
        old, new = order[:400], order[400:]
        limits = np.array(ScoredLabels(block, score[old], answer[old], known[old]).limits(COVERAGE)[0])
        for j in range(score.shape[1]):
            for k in range(n_answers):
                n_old, here = (answer[old, j] == k).sum(), answer[new, j] == k
                rank = math.ceil(Fraction('0.9') * (int(n_old) + 1))
                law = betabinom(here.sum(), rank, n_old + 1 - rank)
                covered = (score[new, j][here] <= limits[j, k]).sum()
                assert law.ppf(1e-7) <= covered <= law.ppf(1 - 1e-7)
                z_top, z_var = z_top + covered - law.mean(), z_var + law.var()
                ranks.append(law.cdf(covered) - law.pmf(covered) * rng.random())  # uniform, if the law is right
        sets = sets_of(block, acts[new], limits)
        if block.set_kind == 'answers':
            inside = sets.gather(-1, block.answer_of(vals[new])[..., None])
            in_set.append(float(inside.double().mean()))
        else:
            low, high = sets[..., 0] - 1e-6, sets[..., 1] + 1e-6
            in_set.append(float(((low <= vals[new]) & (vals[new] <= high)).double().mean()))
    if n_answers * score.shape[1] == 1:
        assert chisquare(np.histogram(ranks, 10, (0, 1))[0]).pvalue > 1e-4
    # tasks of several labels share their splits: their counts hang together, hence the wider margin
    assert abs(z_top) < 4 * math.sqrt(z_var * score.shape[1])
    assert COVERAGE - 0.005 < np.mean(in_set)  # the decided answer only adds


def test_coverage_on_real_machines():
    "AI4I 2020: the failure of a machine by a logistic regression, each answer at a time"
    file = Path(os.environ.get('FASTAI_CONDMTL_DATA', '')) / 'ai4i2020.csv'
    if not file.is_file():
        pytest.skip('no AI4I 2020 here')
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    df = pd.read_csv(file)
    X, y = df.select_dtypes('number').iloc[:, 1:6].to_numpy(), df['Machine failure'].to_numpy()
    fit = make_pipeline(StandardScaler(), LogisticRegression()).fit(X[:4000], y[:4000])
    block = Flow('f', BinaryBlock('y')).bind(pd.DataFrame(dict(y=y))).tasks['y']
    acts, vals = torch.tensor(fit.predict_proba(X[4000:])[:, 1:]), torch.tensor(y[4000:, None]).double()
    score, answer = block.nonconformity(acts, vals).numpy(), vals.long().numpy()
    rng, z, var = np.random.default_rng(0), np.zeros(2), np.zeros(2)
    for _ in range(200):
        order = rng.permutation(len(score))
        old, new = order[:3000], order[3000:]
        limits = ScoredLabels(block, score[old], answer[old], np.ones_like(score[old], bool)).limits(COVERAGE)[0]
        for k in (0, 1):
            n_old, here = int((answer[old] == k).sum()), answer[new, 0] == k
            rank = math.ceil(Fraction('0.9') * (n_old + 1))
            law = betabinom(here.sum(), rank, n_old + 1 - rank)
            z[k], var[k] = z[k] + (score[new, 0][here] <= limits[0][k]).sum() - law.mean(), var[k] + law.var()
    assert (np.abs(z) < 4 * np.sqrt(var)).all()


def test_limits_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    for coverage in (0.3, 0.5, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99):
        least = least_rows(coverage)
        for n in (least, least + 1, 100, 101, 1000):
            if n < least:
                continue
            scores, rank = rng.random(n), math.ceil(Fraction(str(coverage)) * (n + 1))
            assert rank <= n and limit_of(scores, coverage) == np.sort(scores)[rank - 1]
    assert [least_rows(c) for c in (0.5, 0.8, 0.9, 0.95, 0.99)] == [2, 4, 9, 19, 99]


def test_class_sets_are_those_of_mapie_class_by_class():
    from mapie.classification import SplitConformalClassifier

    block, acts, vals = drawn('single', 600)
    probs, classes = acts.numpy(), vals[:, 0].long().numpy()
    old = ScoredLabels.of(block, acts[:300], vals[:300], np.ones((300, 1), bool)).limits(COVERAGE)[0]
    ours = sets_of(block, acts[300:], old)[:, 0].numpy()
    theirs = np.zeros_like(ours)
    for k in range(4):
        rows = classes[:300] == k
        split = SplitConformalClassifier(Fitted(4), confidence_level=COVERAGE, conformity_score='lac', prefit=True)
        split.conformalize(probs[:300][rows], classes[:300][rows])
        theirs[:, k] = split.predict_set(probs[300:])[1][:, k, 0]
    theirs[np.arange(300), probs[300:].argmax(1)] = True  # the decided answer is always in the set
    np.testing.assert_array_equal(ours, theirs)


def test_intervals_are_those_of_mapie():
    from mapie.regression import SplitConformalRegressor

    block, acts, vals = drawn('unbounded', 600)
    natural, labels = block.unscale(acts.numpy()), block.unscale(vals.numpy())[:, 0]
    limits = ScoredLabels.of(block, acts[:300], vals[:300], np.ones((300, 1), bool)).limits(COVERAGE)[0]
    ours = block.unscale(sets_of(block, acts[300:], limits).numpy())[:, 0]
    split = SplitConformalRegressor(Fitted(), confidence_level=COVERAGE, prefit=True)
    theirs = split.conformalize(natural[:300], labels[:300]).predict_interval(natural[300:])[1][:, :, 0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_small_classes_share_a_limit_and_small_labels_too():
    block = Flow('f', SingleLabelBlock('k', vocab=list('ab'))).bind(pd.DataFrame(dict(k=['a', 'b']))).tasks['k']
    score, answer = np.linspace(0, 1, 25)[:, None], np.repeat([0, 1], [17, 8])[:, None]
    limits, records = ScoredLabels(block, score, answer, np.ones((25, 1), bool)).limits(COVERAGE)
    assert limits == ((limit_of(score[:17, 0], 0.9), limit_of(score[:, 0], 0.9)),)
    assert [record['note'] for record in records] == ['', 'the limit of all answers: 8 rows, 9 are needed']
    too_few = ScoredLabels(block, score[:8], answer[:8], np.ones((8, 1), bool)).limits(COVERAGE)
    assert too_few[0] is None and too_few[1][0]['note'] == 'no sets: 8 rows, 9 are needed'
    labels = MultiLabelBlock('l', vocab=['p', 'q']).bind(pd.DataFrame(dict(l=['p,q', 'p'])))
    known = np.stack([np.arange(25) < 25, np.arange(25) < 3], 1)
    limits, records = ScoredLabels(labels, np.tile(score, 2), np.tile(answer, 2), known).limits(COVERAGE)
    pooled = limit_of(np.tile(score, 2)[known], 0.9)
    assert limits[1] == (pooled, pooled) and records[2]['note'] == 'the limit of all labels: 3 rows, 9 are needed'
    assert [(record['label'], record['answer']) for record in records] == [
        ('p', False), ('p', True), ('q', False), ('q', True)
    ]  # fmt: skip


def test_labels_that_hang_together_do_not_count_as_rows():
    "Ten labels with one score a row, each known on too few rows for a limit of its own: the promise holds by counting"
    block = MultiLabelBlock('l', vocab=list('abcdefghij')).bind(pd.DataFrame(dict(l=['a,b', 'c'])))
    rng, coverages = np.random.default_rng(0), []
    for _ in range(1000):
        scores = np.repeat(rng.random((11, 1)), 10, axis=1)
        known = np.ones((11, 10), dtype=bool)
        for j in range(10):
            known[rng.choice(11, 3, replace=False), j] = False  # 8 rows, 9 are needed
        found, _ = ScoredLabels(block, scores, np.zeros((11, 10), dtype=int), known).limits(COVERAGE)
        assert len(set(itertools.chain(*found))) == 1
        coverages.append(found[0][0])  # a new score is uniform: it lies below with this probability
    assert np.mean(coverages) > COVERAGE - 4 * np.std(coverages) / 1000**0.5
    few = ScoredLabels(block, scores[:5], np.zeros((5, 10), dtype=int), np.ones((5, 10), dtype=bool)).limits(COVERAGE)
    assert few[0] is None and few[1][0]['note'] == 'no sets: 5 rows, 9 are needed'


def test_the_limit_of_rows_by_a_loop():
    "Of one label a row it is the limit of the definition; of several, the least score that enough shares do not exceed"
    rng = np.random.default_rng(1)
    for n in (9, 10, 30, 99, 100):
        scores = rng.random((n, 1))
        assert limit_of_rows(scores, np.ones((n, 1), dtype=bool), COVERAGE) == limit_of(scores[:, 0], COVERAGE)
        scores, known = rng.random((n + 5, 4)).round(2), rng.random((n + 5, 4)) < 0.5
        known[:n, 0], known[n:] = True, False
        enough = [
            q for q in scores[known] if sum(np.mean(scores[i, known[i]] <= q) for i in range(n)) >= 0.9 * (n + 1) - 1e-9
        ]
        assert limit_of_rows(scores, known, COVERAGE) == min(enough)


# A learner whose logits stand in the table


class Z(Transform):
    "Row → the logits that stand in it"

    def __call__(self, r, **kwargs):
        return torch.tensor([float(r[f'z{j}']) for j in range(9)], dtype=torch.float32)


class Placed(nn.Module):
    "Puts the numbers of a row where the flow wants its logits"

    def __init__(self, order):
        super().__init__()
        self.order, self.s = order, nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x[:, self.order] * self.s


def animals(n=900, seed=0):
    "A table of animals with logits z0 … z8 in flow order"
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 9)) * 1.5
    p = np.exp(z[:, :3]) / np.exp(z[:, :3]).sum(1, keepdims=True)
    kind = np.array([rng.choice(3, p=row) for row in p])
    breed = 2 * kind + (rng.random(n) < 1 / (1 + np.exp(z[:, 3] - z[:, 4])))
    df = pd.DataFrame(dict(kind=np.array(['cat', 'dog', 'cow'])[kind]))
    df['breed'] = np.where(kind < 2, np.array(['c0', 'c1', 'd0', 'd1', '', ''])[breed], None)
    df['weight'] = 20 + 5 * z[:, 7] + rng.normal(0, 1.5, n)
    df['vaccinated'] = np.where((kind != 1) | (df.weight <= 20), None, rng.random(n) < 1 / (1 + np.exp(-z[:, 8])))
    z[:, 5:7] = z[:, 3:5]  # the breeds of dogs are as those of cats
    z[:, 7] = z[:, 7] * 5 / df.weight[: n // 3].std() + (20 - df.weight[: n // 3].mean()) / df.weight[: n // 3].std()
    return df.assign(**{f'z{j}': z[:, j] for j in range(9)})


def animal_flow():
    kind = SingleLabelBlock('kind', vocab=['cat', 'dog', 'cow'])
    weight = UnboundedRegressionBlock('weight')
    breed = SingleLabelBlock('breed', vocab=['c0', 'c1', 'd0', 'd1'], within=kind)
    return Flow('pets', kind, breed, weight, BinaryBlock('vaccinated') | (kind.eq('dog') & (weight > 20)))


@pytest.fixture()
def learn():
    df = animals()
    third = len(df) // 3
    dls = DataBlock(
        blocks=(TransformBlock, animal_flow()), get_x=Z(), splitter=IndexSplitter(range(third, 2 * third))
    ).dataloaders(df.iloc[: 2 * third], bs=100, num_workers=0)
    flow, order = dls.flow, torch.empty(9, dtype=torch.long)
    for own in flow.slices.values():
        order[own.logits] = torch.arange(own.acts.start, own.acts.stop)
    learn = Learner(dls, Placed(order), lr=1e-6, metrics=dls.flow.metrics())
    learn.df = df.iloc[2 * third :].reset_index(drop=True)
    return learn


def test_sets_hold_the_truth_of_new_rows_and_evaluate_says_so(learn):
    "Each column of evaluate by a loop over the sets"
    found = quiet(learn, 'conformal', 0.9)
    assert set(found.task_path) == {'kind', 'breed', 'weight', 'vaccinated'} and (found.note == '').all()
    res = quiet(learn, 'evaluate', learn.df, metrics=None).set_index('task_path')
    df, sets = learn.df, quiet(learn, 'predict_sets', learn.df)
    kinds = [label in own for label, own in zip(df.kind, sets.kind)]
    assert res.coverage['kind'] == pytest.approx(np.mean(kinds)) and 0.85 < np.mean(kinds)
    assert res.set_size['kind'] == pytest.approx(np.mean([len(own) for own in sets.kind]))
    alone = np.array([len(own) == 1 for own in sets.kind])
    assert res.decided['kind'] == pytest.approx(alone.mean())
    right = np.array([own == [label] for label, own in zip(df.kind, sets.kind)])
    assert res.decided_res['kind'] == pytest.approx(right[alone].mean())
    assert res.decided_res['kind'] > res.metric_res['kind']
    inside = [low <= weight <= high for weight, (low, high) in zip(df.weight, sets.weight)]
    assert res.coverage['weight'] == pytest.approx(np.mean(inside), abs=0.004)
    assert res.decided['weight'] == 1 and res.set_size['weight'] == pytest.approx(np.ptp(sets.weight[0]), rel=1e-4)
    for path in ('breed', 'vaccinated'):
        assert 0.8 < res.coverage[path] <= 1
    abstained = quiet(learn, 'predict_sets', learn.df, abstain=True)
    told = [(label in own) for label, own in zip(df.breed, abstained.breed) if own is not None and pd.notna(label)]
    assert res.cascade_coverage['breed'] == pytest.approx(np.mean(told))


def test_the_promise_holds_for_each_class_of_each_task_by_counting_what_evaluate_says(learn):
    "On 10 random splits of its rows: a class, a class below it, yes and no, and a number, each on its gt mask"
    rows, rng, counted = pd.concat([learn.df, animals(seed=7)], ignore_index=True), np.random.default_rng(3), {}
    for _ in range(10):
        order = rng.permutation(len(rows))
        limits = quiet(learn, 'conformal', COVERAGE, rows.iloc[order[:600]])
        res = quiet(learn, 'evaluate', rows.iloc[order[600:]], metrics=None, by_label=True)
        res = res.assign(label=res.label.replace(dict(no=False, yes=True))).drop_duplicates(['task_path', 'label'])
        for limit in limits.itertuples():
            is_own = res.label.isna() if limit.answer is None else res.label == limit.answer
            own = res[(res.task_path == limit.task_path) & is_own].iloc[0]
            rank = math.ceil(Fraction('0.9') * (limit.num_samples + 1))
            law = betabinom(own.support, rank, limit.num_samples + 1 - rank)
            covered = round(own.coverage * own.support)
            mean_var = counted.setdefault((limit.task_path, limit.answer), [0.0, 0.0])
            mean_var[0], mean_var[1] = mean_var[0] + covered - law.mean(), mean_var[1] + law.var()
    assert len(counted) == 3 + 4 + 1 + 2
    for apart, var in counted.values():
        assert apart > -4 * math.sqrt(var)  # answers that are decided, and those that are possible, only add
    apart, var = counted['weight', None]
    assert abs(apart) < 4 * math.sqrt(var)


def test_undecided_is_unknown_by_the_rule_of_labels(learn):
    "Decisions written to a table with blanks where undecided, and read as labels: the same tasks have meaning"
    quiet(learn, 'conformal', 0.9)
    flow, loss = learn.dls.flow, learn.loss_func
    acts = torch.cat([loss.activation(learn.model(Z()(row)[None]))
                      for _, row in learn.df.iloc[:200].iterrows()]).detach()  # fmt: skip
    packed, sets = loss.decisions.abstains(acts)
    vals, told = packed[:, 0], torch.ones_like(packed[:, 1])
    for path, own in sets.items():
        told[:, flow.slices[path].targets] = (~own.cells(own.undecided())).float()
    straddles = sets['weight'].unknown()[:, 0]
    assert 0 < straddles.sum() < 200  # a bound of a condition within the interval: nothing hangs on this number
    told[:, flow.slices['weight'].targets] = (~straddles).float()[:, None]
    labels = flow.to_frame(torch.stack([vals, told], 1))
    for path in ('kind', 'vaccinated'):
        columns = flow.slices[path].targets
        by_labels = flow.encode(labels)[:, 1, columns]
        np.testing.assert_array_equal(packed[:, 1, columns].numpy(), by_labels.numpy())


def test_abstain_stops_at_the_class_where_the_sub_class_is_open(learn):
    quiet(learn, 'conformal', 0.9)
    df = learn.df.copy()
    df.loc[:, [f'z{j}' for j in range(9)]] = [0, 9, 0, 0, 9, 0, 0.2, 3, 2]  # a dog, of which breed is open
    df.loc[1, ['z0', 'z1']] = 5  # cat or dog
    df.loc[2, ['z5', 'z6']] = 9, -9  # a dog of the first breed
    row = lambda i, **kwargs: quiet(learn, 'predict', df.iloc[i], **kwargs)[0]
    stopped = row(0, abstain=True)
    assert stopped['kind'] == 'dog' and stopped['breed'] is None and stopped.undecided == dict(breed=['d0', 'd1'])
    assert stopped['vaccinated'] in (True, None) and stopped.sets['vaccinated']
    assert row(0)['breed'] == 'd1' and row(0).undecided == {} and row(0).sets['breed'] == ['d0', 'd1']
    open_class = row(1, abstain=True)
    assert open_class['kind'] is None and open_class.undecided == dict(kind=['cat', 'dog'])
    assert open_class['breed'] is None and open_class['vaccinated'] is None and 'breed' not in open_class.sets
    sure = row(2, abstain=True)
    assert sure['kind'] == 'dog' and sure['breed'] == 'd0' and 'breed' not in sure.undecided
    low, high = sure.sets['weight']
    assert low < sure['weight'] < high
    tree = str(stopped.tree())
    assert 'd0 or d1, undecided' in tree and ' to ' in tree and 'cat or dog, undecided' in str(open_class.tree())
    assert repr(open_class).endswith("kind undecided: ['cat', 'dog'])")
    table = quiet(learn, 'predict_df', df.iloc[:3], abstain=True)
    assert table.breed.isna().tolist() == [True, True, False] and table.kind.isna().tolist() == [False, True, False]
    explained = quiet(learn, 'explain', df.iloc[:1], abstain=True)
    assert 'd0 or d1, undecided' in str(explained)


def state(cell, own):
    "What a cell of `predict_df` and the set beside it say of a task"
    if pd.notna(cell):
        return 'decided'
    return 'not reached' if own is None else 'undecided'


def test_sets_tell_a_blank_of_an_undecided_task_from_one_of_a_task_not_reached(learn):
    "Cell by cell, the two tables say what `predict` says of each row alone; the docstring leads from one to the other"
    assert 'predict_sets(items, abstain=True)' in Learner.predict_df.__doc__
    quiet(learn, 'conformal', 0.9)
    df, seen = learn.df.iloc[:80], set()
    table, sets = (quiet(learn, name, df, abstain=True) for name in ('predict_df', 'predict_sets'))
    for i, row in df.iterrows():
        alone = quiet(learn, 'predict', row, abstain=True)[0]
        for path in sets:
            of_blank = 'undecided' if path in alone.undecided else 'not reached'
            want = of_blank if alone[path] is None else 'decided'
            assert state(table[path][i], sets[path][i]) == want, (i, path)
            seen.add((path, want))
    assert {('kind', 'undecided'), ('breed', 'undecided'), ('breed', 'not reached'), ('breed', 'decided')} <= seen


def test_the_page_shows_sets(learn):
    from fastai_condmtl.tools.page import decide, tree_html

    quiet(learn, 'conformal', 0.9)
    row = learn.df.iloc[0].copy()
    row[[f'z{j}' for j in range(9)]] = [0, 9, 0, 0, 9, 0, 0.2, 3, 2]
    logits = learn.model(Z()(row)[None])[0].detach()
    html = tree_html(decide(learn.loss_func, logits))
    assert 'may be d0 or d1' in html and 'undecided' not in html
    html = tree_html(decide(learn.loss_func, logits, abstain=True))
    assert '>undecided<' in html and 'may be d0 or d1' in html


def test_sets_travel_and_are_dropped(learn, tmp_path):
    quiet(learn, 'conformal', 0.8)
    limits = learn.loss_func.decisions.limits
    assert learn.dls.flow.loss_func.decisions.limits == {}  # of this learner alone
    assert pickle.loads(pickle.dumps(learn.loss_func)).decisions.limits == limits
    learn.path = tmp_path
    learn.export('learner.pkl')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        loaded = load_learner(tmp_path / 'learner.pkl')
    assert loaded.loss_func.decisions.limits == limits
    item = learn.df.iloc[5]
    assert quiet(loaded, 'predict', item, abstain=True)[0].sets == quiet(learn, 'predict', item, abstain=True)[0].sets
    with pytest.warns(FlowWarning, match='learn.conformal'):
        quiet(learn, 'fit', 1)
    assert learn.loss_func.decisions.limits == {}
    learn.save('trained')
    quiet(learn, 'conformal')
    with warnings.catch_warnings():
        warnings.simplefilter('error', FlowWarning)
        learn.load('trained')  # the weights they were found for
    assert learn.loss_func.decisions.limits.keys() == limits.keys()
    with pytest.warns(FlowWarning, match='learn.conformal'):
        quiet(learn, 'calibrate')
    assert learn.loss_func.decisions.limits == {}
    with pytest.raises(FlowError, match='learn.conformal'):
        quiet(learn, 'predict', item, abstain=True)
    with pytest.raises(FlowError, match='learn.conformal'):
        quiet(learn, 'predict_sets', learn.df)


def test_other_weights_from_a_file_drop_what_was_found_for_these(tmp_path):
    learn = learner()
    learn.path = tmp_path
    learn.save('before')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        quiet(learn, 'fit', 1)
        learn.loss_func.temperatures = {
            path: 2.0 for path, block in learn.dls.flow.tasks.items() if block.nll is not None
        }
        quiet(learn, 'conformal')
    decisions, acts = learn.loss_func.decisions, torch.linspace(-3, 3, learn.dls.flow.c)[None]
    before = decisions.decodes(decisions.activation(acts))
    assert decisions.temperature is not None and decisions.limits
    with pytest.warns(FlowWarning, match='other weights'), pytest.warns(FlowWarning, match='learn.conformal'):
        learn.load('before')
    assert decisions.temperature is None and decisions.limits == {}
    assert torch.equal(decisions.decodes(decisions.activation(acts)), before)


def test_rows_that_tuned_thresholds_are_told():
    learn = learner()
    quiet(learn, 'search_thresholds', 'f1')
    with pytest.warns(FlowWarning, match='tuned on these rows'):
        quiet(learn, 'conformal')
    with warnings.catch_warnings():
        warnings.simplefilter('error', FlowWarning)
        quiet(learn, 'conformal', dl=table(seed=5))
    assert quiet(learn, 'evaluate', table(seed=5)).own_sets
    assert not quiet(learn, 'evaluate', table(seed=6)).own_sets
    assert 'no test of the promise' in quiet(learn, 'evaluate', table(seed=5)).show().caption


@pytest.mark.parametrize('coverage', [0, 1, True, -0.1, 1.5, float('nan'), None, '0.9'])
def test_coverage_is_a_share(coverage):
    with pytest.raises(FlowError, match='coverage=.*above 0 and below 1'):
        learner().conformal(coverage)


def test_wrong_rows_are_refused():
    learn = learner()
    with pytest.raises(FlowError, match='ds_idx=0 are the rows that trained'):
        learn.conformal(ds_idx=0)
    with pytest.raises(FlowError, match='at least 99 rows of a task, and no task has more than 50 here'):
        quiet(learn, 'conformal', 0.99, dl=table().iloc[:50])
    assert learn.loss_func.decisions.limits == {}
    learn.model.s.data.fill_(float('nan'))
    with pytest.raises(FlowError, match="task 'a' hold NaN"):
        quiet(learn, 'conformal')


def test_the_extra_is_named(monkeypatch):
    import importlib

    real = importlib.import_module

    def without(name, *args):
        if name.startswith('mapie'):
            raise ModuleNotFoundError("No module named 'mapie'", name='mapie')
        return real(name, *args)

    monkeypatch.setattr('fastai_condmtl.core.extras.import_module', without)
    with pytest.raises(MissingExtra, match=r"mapie: pip install 'fastai_condmtl\[conformal\]'"):
        quiet(learner(), 'conformal')
