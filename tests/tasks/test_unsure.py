"Shares and uncertain answers: what is trained, scored and asked, against scikit-learn, SciPy and numbers by hand"

import pickle
import random
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from oracle import Oracle, build, frame, n_rows, raw_row, walk
from random_flows import checks, random_spec, random_table, rngs
from scipy.optimize import minimize_scalar
from sklearn import metrics as skm

from fastai_condmtl.all import *
from fastai_condmtl.core.bound import BoundFlow
from fastai_condmtl.evaluate.calibrate import fit_temperature, reliability
from fastai_condmtl.evaluate.task_threshold import aims
from fastai_condmtl.learn.accumulate import Accumulator

pytestmark = pytest.mark.filterwarnings('ignore')
UNSURE = dict(a=[-1, 1, 0, -1, None], x=[1, 1, 1, None, 1])


def accumulated(bound, y, pred):
    "What metrics hold after one batch"
    acc = Accumulator(bound)
    acc.accumulate(SimpleNamespace(pred=pred, yb=(y,), loss_func=bound.loss_func))
    return acc


def by_hand(name, prob, truth):
    "A metric by scikit-learn; `truth` are shares"
    yes = truth > 0.5
    if name == 'mae':
        return skm.mean_absolute_error(truth, prob)
    if name == 'log_loss':
        votes = np.concatenate([truth, 1 - truth])
        return skm.log_loss([1] * len(prob) + [0] * len(prob), [*prob, *prob], sample_weight=votes, labels=[0, 1])
    if name in ('roc_auc', 'average_precision'):
        f = dict(roc_auc=skm.roc_auc_score, average_precision=skm.average_precision_score)[name]
        return f(yes, prob) if 0 < yes.sum() < len(yes) else np.nan
    f = dict(accuracy=skm.accuracy_score, recall=skm.recall_score)[name]
    return f(yes, prob > 0.5)


@checks(40)
@given(rngs)
def test_scores_look_at_certain_labels_alone(rng):
    spec = random_spec(rng, 6, kinds=['binary', 'cols'], unsure=True)
    table = random_table(rng, spec, n=25)
    df = frame(spec, table, rng)
    bound, o = build(spec, rng).bind(df), Oracle(spec)
    pred = torch.randn(25, bound.c, generator=torch.Generator().manual_seed(rng.randrange(99)))
    acc = accumulated(bound, bound.encode(df), pred)
    rows = [o.row(raw_row(table, i)) for i in range(n_rows(table))]
    acts = bound.loss_func.activation(pred).numpy()
    for path, task, *_ in walk(spec):
        names = ['accuracy', 'recall', 'roc_auc', 'average_precision'] + ['mae', 'log_loss'] * bool(task.get('soft'))
        data, block = acc.task(path), bound.tasks[path]
        assert set(names) <= set(block.metrics) and (block.metrics[0] == 'mae') == bool(task.get('soft'))
        for name in names:
            scores = []
            for j, prob in enumerate(acts[:, bound.slices[path].acts].T):
                scored = np.array([r[path]['scored'][j] for r in rows])
                truth = np.array([float(r[path]['value'][j]) for r, s in zip(rows, scored) if s])
                scores.append(by_hand(name, prob[scored], truth) if scored.any() else np.nan)
            want = np.nan if np.isnan(scores).all() else np.nanmean(scores)
            assert block.score(name, *data) == pytest.approx(want, abs=1e-6, nan_ok=True), (path, name)
            # the trivial predictor has learnt from the same cells
            constant = block.fit_baseline(data.values, data.mask.astype(float))
            assert block.baseline(name, constant, data.values).shape == data.summary.shape


def test_the_median_and_the_mean_are_the_trivial_predictors_of_a_share():
    shares = np.random.default_rng(0).random((200, 1)) ** 3
    block, all_rows = BinaryBlock('a', soft=True), np.ones((200, 1))
    constant = block.fit_baseline(shares, all_rows)
    for name in ('mae', 'log_loss'):
        score = lambda p: block.score(name, np.full((200, 1, 1), p), shares, all_rows > 0)
        best = minimize_scalar(score, bounds=(0, 1), method='bounded').fun
        assert block.score(name, block.baseline(name, constant, shares), shares, all_rows > 0) == pytest.approx(
            best, abs=1e-5
        )


@pytest.mark.parametrize(
    'infer, of_a, counts_a, counts_x',
    [
        (False, [0.6, 1, 0, 0.6, None], [1, 1, 1, 1, 0], [0, 1, 0, 0, 0]),
        (True, [0.6, 1, 0, 0.6, None], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]),
        ('train', [1, 1, 0, 0.6, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 1]),
    ],
)
def test_what_labels_imply_fills_an_uncertain_one_as_a_blank(infer, of_a, counts_a, counts_x):
    a = BinaryBlock('a', uncertain={-1: 0.6})
    df = pd.DataFrame(UNSURE)
    y = Flow('f', a, BinaryBlock('x') | a, infer_labels=infer).bind(df).encode(df)
    assert y[:, 1, 0].tolist() == counts_a and y[:, 1, 1].tolist() == counts_x
    assert [v for v in y[:, 0, 0].tolist()] == pytest.approx([0 if v is None else v for v in of_a])


def test_a_share_that_says_the_same_is_no_contradiction():
    a = BinaryBlock('a', soft=True)
    df = pd.DataFrame(dict(a=[0.7, 0.3], x=[1, 1]))
    audit = Flow('f', a, BinaryBlock('x') | a, infer_labels=True).audit(df)
    assert list(audit.rows('a', 'contradiction')) == [1]


@pytest.mark.parametrize('left_out', [None, 0.5])
def test_uncertain_cells_go_back_to_the_table(left_out):
    df = pd.DataFrame(dict(a=['no', 'yes', 'maybe', None], m1=[0, 1, -1, None], m2=[0.25, 1, 0.7, None]))
    many, shares = (
        MultiLabelBlock('m', cols=['m1'], uncertain={-1: left_out}),
        MultiLabelBlock('s', cols=['m2'], soft=True),
    )
    bound = Flow('f', BinaryBlock('a', uncertain={'maybe': left_out}), many, shares).bind(df)
    back = bound.to_frame(bound.encode(df))
    assert bound.tasks['a'].vocab == ('no', 'yes')
    want = [None, None] if left_out is None else ['maybe', -1]
    assert [None if pd.isna(v) else v for v in back.loc[2, ['a', 'm1']]] == want
    assert back.m2.tolist()[:3] == [0.25, 1, 0.7] and np.isnan(back.m2[3])
    assert pd.isna(back.a[3]) and back.a.tolist()[:2] == ['no', 'yes']
    for again in (pickle.loads(pickle.dumps(bound)), BoundFlow.from_dict(bound.to_dict())):
        assert torch.equal(again.encode(df), bound.encode(df)) and again.tasks['s'].metrics[0] == 'mae'
    assert Flow.from_json(bound.flow.to_json()).to_json() == bound.flow.to_json()


def test_balanced_positives_count_a_share_in_parts():
    df = pd.DataFrame(dict(a=[0.1, 0.3, 0.2, None], b=[1, 0, 0, -1]))
    flow = Flow(
        'f',
        BinaryBlock('a', soft=True, pos_weight='balanced'),
        BinaryBlock('b', uncertain={-1: 0.5}, pos_weight='balanced'),
    )
    tasks = flow.bind(df).tasks
    assert tasks['a'].pos_weight == pytest.approx([2.4 / 0.6])
    assert tasks['b'].pos_weight == pytest.approx([2.5 / 1.5])


@pytest.mark.parametrize('whole', [True, 'both'])
def test_whole_space_by_hand(whole):
    "x given a (a share) and b (uncertain): rows say yes, no by a, no by b, nothing"
    a, b = BinaryBlock('a', soft=True, weight=0), BinaryBlock('b', uncertain={-1: 0.4}, weight=0)
    df = pd.DataFrame(dict(a=[0.7, 0.3, 0.9, 0.9], b=[1, -1, 0, -1], x=[0.8, None, None, None]))
    flow = Flow('f', a, b, BinaryBlock('x', soft=True, whole_space=whole) | a & b).bind(df)
    pred = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = flow.loss_func.activation(pred)
    joint, own = p.prod(1), p[0, 2]
    cells = [-(0.8 * joint[0].log() + 0.2 * (1 - joint[0]).log()), -(1 - joint[1]).log(), -(1 - joint[2]).log()]
    if whole == 'both':
        cells[0] = cells[0] - 0.8 * own.log() - 0.2 * (1 - own).log()
    got = flow.loss_func.per_sample(pred, flow.encode(df))[:, 2]
    torch.testing.assert_close(got[:3], torch.stack(cells), rtol=1e-5, atol=1e-6)
    assert got[3].isnan() or got[3] == 0


def test_mixup_mixes_the_losses_of_both_targets():
    df = pd.DataFrame(dict(a=[0.7, 0.2], b=[-1, 1]))
    flow = Flow('f', BinaryBlock('a', soft=True), BinaryBlock('b', uncertain={-1: 0.4})).bind(df)
    y, loss = flow.encode(df), flow.loss_func
    pred = torch.randn(2, 2, generator=torch.Generator().manual_seed(1))
    assert loss.y_int  # fastai's MixUp then calls the loss twice
    entropy = lambda t: F.binary_cross_entropy_with_logits(pred, torch.tensor(t), reduction='none').mean(0).sum()
    mixed = torch.lerp(loss(pred, y.flip(0)), loss(pred, y), 0.3)
    want = 0.3 * entropy([[0.7, 0.4], [0.2, 1]]) + 0.7 * entropy([[0.2, 1], [0.7, 0.4]])
    assert float(mixed) == pytest.approx(float(want), rel=1e-5)


def test_no_threshold_of_a_share_is_searched():
    df = pd.DataFrame(dict(a=[0.7, 0.2], b=[0, 1]))
    flow = Flow('f', BinaryBlock('a', soft=True), BinaryBlock('b')).bind(df)
    assert list(aims(flow)) == ['b']
    with pytest.raises(FlowError, match=r"task 'a' is of shares \(soft=True\), of which .5 decides"):
        aims(flow, tasks=dict(a='f1'))
    with pytest.raises(FlowError, match="has a metric 'mea'.*did you mean 'mae'"):
        flow.metrics('mea')
    assert [m.name for m in flow.metrics()] == ['a.mae', 'b.accuracy']


def test_the_temperature_of_shares_is_the_one_that_made_them():
    logits = torch.randn(4000, generator=torch.Generator().manual_seed(0)).double() * 3
    block = BinaryBlock('a', soft=True)
    assert fit_temperature(block, logits, (logits / 2.5).sigmoid()) == pytest.approx(2.5, rel=0.02)


def test_reliability_is_the_curve_of_scikit_learn():
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(0)
    conf = np.concatenate([rng.random(300), [0, 0.1, 0.5, 1]])
    hit = rng.integers(0, 2, 304)
    np.testing.assert_allclose(reliability(conf, hit, 10), calibration_curve(hit, conf, n_bins=10))


def test_groups_of_answers():
    df = pd.DataFrame(dict(a=[0.7, 0.2, 0.9, None], b=[-1, 1, 0, 1]))
    flow = Flow('f', BinaryBlock('a', soft=True), BinaryBlock('b', uncertain={-1: 0.6})).bind(df)
    from fastai_condmtl.data.sampling import rows_of_answers
    from fastai_condmtl.data.stratify import label_groups

    y = flow.encode(df)
    found = {p: {k: v.tolist() for k, v in rows_of_answers(flow, p, torch.as_tensor(y)).items()} for p in 'ab'}
    assert found == dict(a={0.0: [1], 1.0: [0, 2]}, b={0.0: [2], 1.0: [1, 3]})
    groups = label_groups(flow, y).toarray().T
    assert (
        groups.tolist()
        == np.array(  # counts, no, yes; of a and of b
            [[1, 1, 1, 0], [0, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 1, 0], [0, 1, 0, 1]], dtype=bool
        ).tolist()
    )


def test_a_tree_judges_a_share_by_its_side_and_an_uncertain_label_not_at_all():
    df = pd.DataFrame(dict(a=[0.7, 0.3, 0.7], b=[-1, 1, 0]))
    flow = Flow('f', BinaryBlock('a', soft=True), BinaryBlock('b', uncertain={-1: 0.6})).bind(df)
    truth, yes = flow.encode(df), flow.loss_func.decodes(torch.ones(3, 2))
    trees = [FlowPrediction(flow, d).tree(truth=FlowPrediction(flow, t)) for d, t in zip(yes, truth)]
    assert [[tree[p].data['wrong'] for p in 'ab'] for tree in trees] == [[False, False], [True, False], [False, True]]
    assert [tree['a'].data['truth'] for tree in trees] == [0.7, 0.3, 0.7]
    assert [tree['b'].data['truth'] for tree in trees] == [-1, True, False]


@pytest.mark.parametrize(
    'block, cells, says',
    [
        (dict(soft=True), [0.2, 1.5], r"row 1, column 'a', value 1.5: a share is a number from 0 to 1"),
        (dict(soft=True), [-0.1, 0.5], r"row 0, column 'a', value -0.1: a share"),
        (dict(soft=True), [0.5, '0.7'], r"row 1, column 'a', value '0.7': this is text"),
        (dict(soft=True), [0.5, float('inf')], r"row 1, column 'a', value inf: not a finite number"),
        (dict(), [0.5, 1], r"row 0, column 'a', value 0.5: not a binary label.*soft=True"),
        (dict(), [-1, 0, 1], r"row 0, column 'a', value -1: .*means maybe: uncertain=\{-1: None\}"),
        (dict(uncertain={-2: 0.5}), [-1, 0, 1], r"row 0, column 'a', value -1: not a binary label"),
        (dict(uncertain={'no': 0.5}), ['yes', 'no'], r"'no' is uncertain by uncertain=, and a yes or a no"),
    ],
)
@pytest.mark.parametrize('many', [False, True])
def test_bad_cells(block, cells, says, many):
    df = pd.DataFrame(dict(a=pd.Series(cells, dtype=object)))
    task = MultiLabelBlock('m', cols=['a'], **block) if many else BinaryBlock('a', **block)
    with pytest.raises(FlowError, match=says):
        Flow('f', task).bind(df).encode(df)


@pytest.mark.parametrize(
    'make, says',
    [
        (lambda: BinaryBlock('a', soft=True, uncertain={-1: 0.5}), 'leave uncertain= out'),
        (lambda: BinaryBlock('a', soft=True, threshold=0.3), 'leave threshold= out'),
        (lambda: BinaryBlock('a', soft=True, tune='f1'), 'leave tune= out'),
        (lambda: BinaryBlock('a', soft=True, vocab=('no', 'yes')), 'leave vocab= out'),
        (lambda: BinaryBlock('a', soft=1), 'soft=1 must be True'),
        (lambda: BinaryBlock('a', uncertain={1: 0.5}), '1 is uncertain'),
        (lambda: BinaryBlock('a', vocab=('n', 'y'), uncertain={'y': 0.5}), "'y' is uncertain"),
        (lambda: BinaryBlock('a', uncertain={-1: True}), 'must be a dict'),
        (lambda: BinaryBlock('a', uncertain=-1), 'must be a dict'),
        (lambda: MultiLabelBlock('a', soft=True), 'give each label its own column, cols='),
        (lambda: MultiLabelBlock('a', uncertain={-1: None}), 'give each label its own column, cols='),
        (lambda: MultiLabelBlock('a', cols=['b', 'c'], soft=True, threshold=[0.5, 0.4]), 'leave threshold= out'),
    ],
)
def test_bad_arguments(make, says):
    with pytest.raises(FlowError, match=says):
        make()


def test_words_that_are_numbers_leave_0_and_1_to_the_uncertain():
    df = pd.DataFrame(dict(a=[1, 2, 0, 2]))
    y = Flow('f', BinaryBlock('a', vocab=(1, 2), uncertain={0: 0.3})).bind(df).encode(df)
    assert y[:, 0, 0].tolist() == pytest.approx([0, 1, 0.3, 1])


@pytest.mark.parametrize(
    'task',
    [BinaryBlock('a', soft=True), BinaryBlock('b', uncertain={-1: 0.6}), BinaryBlock('b', uncertain={-1: None})]
    + [MultiLabelBlock('m', cols=['a', 'c'], soft=True), MultiLabelBlock('m', cols=['b'], uncertain={-1: 0.3})]
    + [BinaryBlock('a', soft=True, loss='focal', pos_weight='balanced')],
)
def test_check_block_finds_nothing(task):
    rng = random.Random(0)
    df = pd.DataFrame(
        dict(
            a=rng.choices([0, 0.2, 0.5, 0.7, 1], k=40),
            b=rng.choices([0, 1, -1], k=40),
            c=rng.choices([0, 0.3, 1], k=40),
        )
    ).astype(float)
    df.loc[3] = None
    check_block(task, df)
