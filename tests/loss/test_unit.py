"""The unit of a task's loss is what its best constant loses in training: against scikit-learn's dummies, SciPy's
search with the formulas of the losses, and numbers by hand. All that the loss says is in units, weights apart"""

import math
import pickle
import random

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.mixup import MixUp
from fastai.vision.all import Image, Learner, Resize, load_learner
from hypothesis import given
from scipy.optimize import minimize_scalar
from sklearn.dummy import DummyRegressor
from sklearn.metrics import mean_absolute_error, mean_poisson_deviance, mean_squared_error
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastai_condmtl.all import *
from fastai_condmtl.callback.training_state import loss_state, set_loss
from fastai_condmtl.deploy.safe import load_safe
from fastai_condmtl.loss.inputs import TaskSums
from fastai_condmtl.loss.masked_mean import MaskedMean
from fastai_condmtl.loss.unit import SEARCH_ROWS
from fastai_condmtl.equip import equip
from fastai_condmtl.tabular.all import *
from fastai_condmtl.vision.all import *
from oracle import build, frame, walk
from random_flows import checks, random_spec, random_table, rngs

pytestmark = pytest.mark.filterwarnings('ignore')


def learnt(flow, df):
    "A flow bound to all rows of a table, its units learnt from them, and its packed rows"
    bound = flow.bind(df)
    y = bound.encode(df)
    bound.learn_units(y)
    return bound, y


def labels(bound, y, path):
    "Labels of one task on the loss scale that count, and the weights of their rows"
    (column,) = range(bound.n_targets)[bound.slices[path].targets]
    values, weights = y[:, :, column].double().numpy().T
    return values[weights > 0], weights[weights > 0]


# ---- the number
# ---------------------------------------------------------------------------------------------------------
def test_by_hand():
    "0, 1, 1, 2 have mean 1 and squares 1, 0, 0, 1; around the median 1 the distances are the same"
    df = pd.DataFrame(dict(x=[0.0, 1, 1, 2], c=[0, 0, 2, 2]))
    bound, _ = learnt(
        Flow(
            'f',
            BoundedRegressionBlock('x', y_range=(0, 4), loss='mse'),
            BoundedRegressionBlock('a', 'x', y_range=(0, 4), loss='l1'),
            UnboundedRegressionBlock('s', 'x', loss='mse'),
            CountBlock('c'),
        ),
        df,
    )
    units = bound.loss_units
    assert units['x'] == pytest.approx(0.5 / 16, rel=1e-6)
    assert units['a'] == pytest.approx(0.5 / 4, rel=1e-6)
    assert units['s'] == pytest.approx(1, rel=1e-6)  # standardised
    assert units['c'] == pytest.approx((1 + 1 - 2 * math.log(1) + 2 * math.log(2) - 2 + 2 * 0) / 2, rel=1e-6)


def test_a_mean_without_units_divides_by_the_rows_that_count_alone():
    "Three rows of `a` count with weight 2, two of `b` with weight 3"
    df = pd.DataFrame(dict(a=[1, 0, 1, None], b=[0, None, None, 1]))
    bound = Flow('f', BinaryBlock('a'), BinaryBlock('b')).bind(df)
    layout = bound.loss_func.layout
    mask = layout.targets_of(bound.encode(df).as_subclass(torch.Tensor))[1]
    weights = layout.to_flow_order(MaskedMean(layout, [2.0, 3.0]).cell_weights(mask))
    assert weights.numpy() == pytest.approx(np.array([[2 / 3, 1.5], [2 / 3, 0], [2 / 3, 0], [0, 1.5]]))


@pytest.mark.parametrize('weighted', [False, True])
def test_dummies_of_scikit_learn(weighted):
    "Mean, median and rate; on rows that are labelled, under the condition, with the weights of rows"
    rng, n = np.random.default_rng(0), 400
    df = pd.DataFrame(
        dict(
            there=rng.integers(0, 2, n),
            x=rng.gamma(2, size=n),
            c=rng.poisson(2.5, n),
            w=rng.integers(0, 4, n) if weighted else np.ones(n),
        )
    )
    df.loc[rng.random(n) < 0.3, ['x', 'c']] = np.nan
    there = BinaryBlock('there')
    numbers = [
        UnboundedRegressionBlock('square', 'x', loss='mse'),
        BoundedRegressionBlock('bounded', 'x', loss='mse'),
        UnboundedRegressionBlock('absolute', 'x'),
        BoundedRegressionBlock('in_range', 'x', loss='l1'),
        CountBlock('c'),
    ]
    bound, y = learnt(Flow('f', there, Flow('n', *numbers) | there, weight_col='w'), df)
    for path, strategy, error in [
        ('n.square', 'mean', mean_squared_error),
        ('n.bounded', 'mean', mean_squared_error),
        ('n.absolute', 'median', mean_absolute_error),
        ('n.in_range', 'median', mean_absolute_error),
        ('n.c', 'mean', lambda *args, **kwargs: mean_poisson_deviance(*args, **kwargs) / 2),
    ]:
        values, weights = labels(bound, y, path)
        assert len(values) < 0.5 * n and (len(set(weights)) > 1) == weighted
        inputs = np.zeros((len(values), 1))
        dummy = DummyRegressor(strategy=strategy).fit(inputs, values, sample_weight=weights)
        assert bound.loss_units[path] == pytest.approx(
            error(values, dummy.predict(inputs), sample_weight=weights), rel=1e-5
        )


def best_by_search(f, low, high):
    "The lowest value of `f`, by SciPy, from the best of a grid on"
    grid = np.linspace(low, high, 400)
    k = int(np.argmin([f(c) for c in grid]))
    bounds = grid[max(k - 1, 0)], grid[min(k + 1, len(grid) - 1)]
    return min(f(grid[k]), minimize_scalar(f, bounds=bounds, method='bounded', options=dict(xatol=1e-10)).fun)


FORMULAS = dict(
    mse=lambda c, t: (c - t) ** 2,
    l1=lambda c, t: abs(c - t),
    huber=lambda c, t: (c - t) ** 2 / 2 if abs(c - t) <= 1 else abs(c - t) - 0.5,
)


def poisson(rate, t):
    return rate - t * math.log(rate) + (t * math.log(t) if t > 0 else 0) - t


@checks(40)
@given(rngs)
def test_random_flows(rng):
    "Each normalised task of a random flow, its labels few and with ties, against SciPy"
    spec = random_spec(rng, losses=True)
    df = frame(spec, random_table(rng, spec, rng.randint(5, 40)), rng)
    bound, y = learnt(build(spec, rng), df)
    for path, t, *_ in walk(spec):
        if t['kind'] not in ('bounded', 'unbounded', 'count'):
            assert path not in bound.loss_units
            continue
        values, _ = labels(bound, y, path)
        if not len(values):
            assert path not in bound.loss_units
            continue
        formula = poisson if t['kind'] == 'count' else FORMULAS[t.get('kw', {}).get('loss', 'l1')]
        low, high = min(values) - 1e-9, max(values) + 1e-9
        low = max(low, 1e-9) if t['kind'] == 'count' else low
        want = best_by_search(lambda c: np.mean([formula(c, v) for v in values]), low, max(high, 2e-9))
        assert bound.loss_units.get(path, 1.0) == pytest.approx(want if want > 1.1e-6 else 1.0, rel=1e-4)


def test_the_best_constant_loses_one():
    "In eval, over the training rows of real loaders, a network that gives SciPy's constants has a loss of 1 a task"
    rng, n = np.random.default_rng(1), 3 * SEARCH_ROWS
    df = pd.DataFrame(dict(x=rng.normal(size=n), u=rng.normal(3, 9, n), h=rng.standard_t(2, n), c=rng.poisson(0.4, n)))
    df['b'], df['p'] = rng.beta(2, 9, n), rng.integers(0, 2, n)
    df.loc[rng.random(n) < 0.4, 'h'] = np.nan
    p = BinaryBlock('p')
    flow = Flow(
        'f',
        p,
        UnboundedRegressionBlock('u', weight=2, loss='mse') | p,
        UnboundedRegressionBlock('h', loss='huber'),
        BoundedRegressionBlock('b'),
        BoundedRegressionBlock('raw', 'b', loss='mse', normalise=False),
        CountBlock('c'),
    )
    dls = ConditionalTabularDataLoaders.from_df(df, flow, cont_names=['x'], bs=1024)
    y, flow = dls.train_ds.packed(), dls.flow
    huber = labels(flow, y, 'h')[0]
    at = minimize_scalar(
        lambda c: np.mean([FORMULAS['huber'](c, v) for v in huber]), bounds=(-5, 5), method='bounded'
    ).x
    middle = np.median(labels(flow, y, 'b')[0])
    constants = dict(p=0.0, u=labels(flow, y, 'u')[0].mean(), h=at, b=math.log(middle / (1 - middle)), raw=0.0, c=0.0)
    pred = torch.zeros(1, flow.c)
    for path, constant in constants.items():
        pred[:, flow.slices[path].logits] = constant
    means = dict(zip(flow.paths, dls.loss_func.per_task(pred.expand(len(y), -1), y).tolist()))
    assert [means[path] for path in ('u', 'h', 'b', 'c')] == pytest.approx([1] * 4, abs=1e-3)
    assert means['p'] == pytest.approx(math.log(2), rel=1e-4)  # as it was
    assert means['raw'] == pytest.approx(float(np.mean((0.5 - labels(flow, y, 'raw')[0]) ** 2)), rel=1e-4)
    total = dls.loss_func(pred.expand(len(y), -1), y)
    assert float(total) == pytest.approx(math.log(2) + 2 + 1 + 1 + means['raw'] + 1, rel=1e-3)


# ---- where there is none
# ---------------------------------------------------------------------------------------------------------
def test_one_where_it_would_mean_nothing():
    "Labels that are all alike, or almost; no label; kinds of classes"
    df = pd.DataFrame(dict(x=[2.0] * 4, t=[0, 0, 0, 1e-6], n=[None] * 4, k=list('abab'), o=[1, 2, 3, 1], c=[0] * 4))
    flow = Flow(
        'f',
        UnboundedRegressionBlock('x'),
        BoundedRegressionBlock('t', y_range=(0, 1)),
        UnboundedRegressionBlock('n'),
        SingleLabelBlock('k'),
        OrdinalBlock('o'),
        CountBlock('c'),
    )
    bound, y = learnt(flow, df)
    assert bound.loss_units == {}
    assert bound.loss_func.units().tolist() == [1] * 6
    assert 'unit' not in repr(bound)


def test_normalise_is_inherited():
    "A task's own word, else that of the innermost flow that says one, else True"
    x = lambda name, **kwargs: UnboundedRegressionBlock(name, 'x', loss='l1', **kwargs)
    inner = Flow('inner', x('a'), x('b', normalise=True), normalise=False)
    flow = Flow('f', x('c'), x('d', normalise=False), inner, Flow('other', x('e')))
    df = pd.DataFrame(dict(x=[0.0, 1, 5]))
    assert [*learnt(flow, df)[0].loss_units] == ['c', 'inner.b', 'other.e']
    assert not learnt(Flow('f', x('a'), normalise=False), df)[0].loss_units
    again = Flow.from_json(flow.to_json())
    assert again.to_json() == flow.to_json() and flow.to_json().count('normalise') == 3
    assert learnt(again, df)[0].loss_units == learnt(flow, df)[0].loss_units


@pytest.mark.parametrize('wrong', [1, 0, 'yes', 2.0])
def test_what_normalise_takes(wrong):
    with pytest.raises(FlowError, match=f"'x': normalise={wrong!r} must be True or False"):
        UnboundedRegressionBlock('x', normalise=wrong)
    with pytest.raises(FlowError, match=f"'f': normalise={wrong!r} must be True or False"):
        Flow('f', UnboundedRegressionBlock('x'), normalise=wrong)


def test_a_kind_of_your_own():
    "A kind says by `has_unit` that its loss is one of numbers; its constant is found by its `loss` alone"

    class Cubes(UnboundedRegressionBlock):
        family = ('cubes',)

        def loss(self, logits, targets, weight=None):
            losses = (logits - targets).abs() ** 3
            return losses if weight is None else (losses * weight).sum()

    class Plain(Cubes):
        has_unit = False

    df = pd.DataFrame(dict(x=[0.0, 1, 1, 7]))
    bound, y = learnt(Flow('f', Cubes('a', 'x'), Plain('b', 'x')), df)
    values = labels(bound, y, 'a')[0]
    want = best_by_search(lambda c: np.mean(np.abs(c - values) ** 3), min(values), max(values))
    assert bound.loss_units == dict(a=pytest.approx(want, rel=1e-6))


# ---- all that the loss says
# ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def units():
    "A flow whose units are learnt, its rows, and some logits; then the same without units"
    rng, n = np.random.default_rng(2), 12
    df = pd.DataFrame(dict(b=rng.integers(0, 2, n), x=rng.gamma(2, size=n), w=rng.integers(1, 4, n)))
    df.loc[::4, 'x'] = np.nan
    b = BinaryBlock('b', weight=3)
    flow = Flow('f', b, UnboundedRegressionBlock('x', weight=2, loss='l1') | b, CountBlock('w'), weight_col='w')
    bound, y = learnt(flow, df)
    plain = flow.bind(df)
    pred = torch.from_numpy(rng.normal(size=(n, bound.c)))
    assert len(bound.loss_units) == 2 and not plain.loss_units
    return bound.loss_func, plain.loss_func, pred, y


def test_every_form_of_the_loss(units):
    "Total, rows, means, sums, losses for balancers: each is that without units, divided by them"
    loss, plain, pred, y = units
    u, w = loss.units(), loss.task_weights()
    assert u[0] == 1 and w.tolist() == [3, 2, 1] == plain.task_weights().tolist()
    torch.testing.assert_close(loss.per_task(pred, y), plain.per_task(pred, y) / u)
    torch.testing.assert_close(loss.per_sample(pred, y), plain.per_sample(pred, y) / u, equal_nan=True)
    sums, plain_sums = loss.sums(pred, y), plain.sums(pred, y)
    torch.testing.assert_close(sums[0], plain_sums[0] / u)
    assert sums[1].equal(plain_sums[1])
    losses, there = loss.task_losses(pred, y)
    torch.testing.assert_close(losses, plain.task_losses(pred, y)[0] / u)
    assert there.all()
    total = float((w * losses).sum())
    assert float(loss(pred, y)) == pytest.approx(total, rel=1e-6)
    assert float(loss.of_sums(sums[None].as_subclass(TaskSums))) == pytest.approx(total, rel=1e-6)
    loss.reduction = 'none'
    assert float(loss(pred, y).mean()) == pytest.approx(total, rel=1e-6)
    loss.reduction = 'mean'


def test_weights_change_and_units_stay(units):
    "What a schedule or a balancer sets are weights"
    loss, plain, pred, y = units
    copied = pickle.loads(pickle.dumps(loss)).clone()
    copied.set_weights(torch.tensor([0.5, 4.0, 0.0]))
    assert copied.units().equal(loss.units()) and copied.task_weights().tolist() == [0.5, 4, 0]
    want = torch.tensor([0.5, 4.0, 0.0]) * plain.per_task(pred, y) / loss.units()
    assert float(copied(pred, y)) == pytest.approx(float(want.sum()), rel=1e-6)
    assert loss.task_weights().tolist() == [3, 2, 1]


def test_gradients(units):
    "The gradient of a task's logit is that without units, divided by its unit"
    loss, plain, pred, y = units
    grads = [torch.autograd.grad(f(z := pred.clone().requires_grad_(), y), z)[0] for f in (loss, plain)]
    slices = loss.flow.slices
    for i, path in enumerate(loss.flow.paths):
        own = slices[path].logits
        torch.testing.assert_close(grads[0][:, own], grads[1][:, own] / loss.units()[i])


class Calls(TorchDispatchMode):
    "Names of the operators that run, in order"

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        self.seen.append(f.overloadpacket.__name__)
        return f(*args, **(kwargs or {}))


def test_a_step_costs_nothing_more(units):
    "With units the same operators run in the same order"
    loss, plain, pred, y = units
    seen = []
    for f in (loss, plain):
        with Calls() as calls:
            f(pred.clone().requires_grad_(), y).backward()
        seen.append(calls.seen)
    assert seen[0] == seen[1] and len(seen[0]) > 20


# ---- a learner
# ---------------------------------------------------------------------------------------------------------
def table(n=60, seed=0):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame(dict(x=rng.normal(size=n), b=rng.integers(0, 2, n)))
    return df.assign(y=3 * df.x + rng.normal(size=n), z=rng.gamma(2, size=n))


def learner(df=None, start='trivial', **kwargs):
    df = table() if df is None else df
    b = BinaryBlock('b')
    flow = Flow('f', b, UnboundedRegressionBlock('y', loss='l1') | b, BoundedRegressionBlock('z', weight=0.5), **kwargs)
    dls = ConditionalTabularDataLoaders.from_df(df, flow, cont_names=['x'], bs=16, valid_idx=range(12), num_workers=0)
    return conditional_tabular_learner(dls, layers=[8], start=start)


def test_the_flow_shows_weight_and_unit():
    flow = learner().dls.flow
    text = repr(flow).splitlines()
    assert f'unit {flow.loss_units["y"]:.3g}  ' in text[2] and 'weight' not in text[2]
    assert f'weight 0.5, unit {flow.loss_units["z"]:.3g}' in text[3]
    assert 'unit' not in text[1]


def test_only_training_rows_count():
    "Other labels on validation rows leave the units alone"
    df = table()
    other = df.copy()
    other.loc[:11, 'y'] *= 100
    assert learner(other).dls.flow.loss_units['y'] == pytest.approx(learner(df).dls.flow.loss_units['y'])


def test_validation_loss_and_mixup():
    "The validation loss is in units; so is the loss that MixUp mixes"
    learn, plain = learner(start=None), learner(start=None, normalise=False)
    plain.model.load_state_dict(learn.model.state_dict())
    assert plain.loss_func.units().tolist() == [1, 1, 1]
    pred, y = plain.get_preds(act=nn.Identity())
    u, w = learn.loss_func.units(), learn.loss_func.task_weights()
    parts = w * plain.loss_func.per_task(pred, y) / u
    with learn.no_bar():
        assert learn.validate()[0] == pytest.approx(float(parts.sum()), rel=1e-4)
    mixed = MixUp(0.4)
    mixed.learn, mixed.lam, mixed.stack_y = learn, torch.full((len(y),), 0.3), True
    mixed.old_lf, mixed.yb1 = learn.loss_func, (y.flip(0),)
    learn.training = True
    got = float(mixed.lf(pred, y))
    learn.loss_func.reduction = 'none'
    first, second = learn.loss_func(pred, y), learn.loss_func(pred, y.flip(0))
    learn.loss_func.reduction = 'mean'
    assert got == pytest.approx(float((0.3 * first + 0.7 * second).mean()), rel=1e-4)
    assert got != pytest.approx(float(parts.sum()), rel=1e-3)


def test_metrics_never_see_units():
    learn, plain = learner(start=None), learner(start=None, normalise=False)
    plain.model.load_state_dict(learn.model.state_dict())
    with learn.no_bar(), plain.no_bar():
        pd.testing.assert_frame_equal(learn.evaluate(), plain.evaluate())


def test_kept_by_export_and_other_data(tmp_path):
    learn = learner()
    units, had = dict(learn.dls.flow.loss_units), learn.loss_func.units()
    learn.path = tmp_path
    learn.export('m.pkl')
    loaded = load_learner(tmp_path / 'm.pkl')
    assert loaded.dls.flow.loss_units == units and loaded.loss_func.units().equal(had)
    learn.dls = learner(table(seed=5)).dls
    assert learn.dls.flow.loss_units == units and learn.loss_func.units().equal(had)


# ---- pictures
# ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    "Pictures of several sizes with a point each, some without a label, and a number"
    folder, rng, rows = tmp_path_factory.mktemp('pictures'), np.random.default_rng(0), []
    for i in range(24):
        width, height = [(40, 30), (64, 20), (33, 57)][i % 3]
        Image.fromarray(rng.integers(0, 255, (height, width, 3)).astype(np.uint8)).save(folder / f'{i}.png')
        x, y = (np.nan, np.nan) if i % 5 == 4 else rng.uniform(0.2, 0.8, 2) * (width, height)
        rows.append([f'{i}.png', x, y, width, height, rng.normal()])
    return folder, pd.DataFrame(rows, columns=['img', 'x', 'y', 'width', 'height', 'n'])


def picture_loaders(pictures, **kwargs):
    folder, df = pictures
    flow = Flow('f', KeypointsBlock('p', ['x', 'y'], **kwargs), UnboundedRegressionBlock('n', loss='l1'))
    resize = Resize(16, method='squish')
    return ConditionalDataLoaders.from_df(
        df, flow, path=folder, valid_idx=range(6), bs=6, item_tfms=resize, num_workers=0
    )


def network(dls):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, dls.c))


@pytest.mark.parametrize('loss', ['mse', 'l1'])
def test_points(pictures, loss):
    "The unit of points is learnt when one of our learners is made; squished, a point lies at its share of the picture"
    dls = picture_loaders(pictures, loss=loss)
    stock = Learner(dls, network(dls))
    assert 'p' not in dls.flow.loss_units and stock.loss_func.units()[0] == 1  # a stock learner does not ask
    learn = Learner(dls, network(dls))
    before = torch.get_rng_state(), random.getstate()
    equip(learn)
    assert before[0].equal(torch.get_rng_state()) and before[1] == random.getstate()
    known = pictures[1].iloc[6:].dropna()
    shares = np.stack([known.x / known.width, known.y / known.height], 1) * 2 - 1
    dummy = DummyRegressor(strategy=dict(mse='mean', l1='median')[loss]).fit(shares[:, :1] * 0, shares)
    error = dict(mse=mean_squared_error, l1=mean_absolute_error)[loss]
    want = error(shares, dummy.predict(shares[:, :1] * 0))
    assert dls.flow.loss_units['p'] == pytest.approx(want, rel=1e-4)
    assert learn.loss_func.units()[0] == pytest.approx(want, rel=1e-4) == dls.loss_func.units()[0]
    assert f'unit {want:.3g}' in repr(dls.flow)


def test_points_without_a_unit(pictures):
    dls = picture_loaders(pictures, normalise=False)
    learn = equip(Learner(dls, network(dls)))
    assert [*dls.flow.loss_units] == ['n'] and learn.loss_func.units()[0] == 1


def test_kept_by_safe_files(pictures, tmp_path):
    pytest.importorskip('safetensors')
    dls = picture_loaders(pictures)
    learn = equip(Learner(dls, network(dls)))
    with pytest.warns(FlowWarning, match='cannot be made by a name'):
        learn.save_safe(tmp_path / 'm.safetensors')
    flow = load_safe(tmp_path / 'm.safetensors', model=learn.model).flow
    assert flow.loss_units == dls.flow.loss_units and len(flow.loss_units) == 2 and repr(flow) == repr(dls.flow)
    data = dls.flow.to_dict()
    del data['loss_units']  # as version 0.1.0 wrote
    assert type(flow).from_dict(data).loss_func.units().tolist() == [1, 1]


def test_kept_by_checkpoints():
    "A training goes on with the units that it had; a checkpoint of before has none"
    learn, other = learner(), learner(table(seed=9))
    had = learn.loss_func.units()
    state = loss_state(learn.loss_func)
    assert not other.loss_func.units().equal(had)
    set_loss(other, state)
    assert other.loss_func.units().equal(had)
    del state['units']
    set_loss(other, state)
    assert other.loss_func.units().tolist() == [1, 1, 1]


def test_another_flow(pictures):
    "`change_flow` learns the units of points, too, those of new tasks among them"
    dls = picture_loaders(pictures)
    learn = equip(Learner(dls, network(dls)))
    before, df = learn.loss_func.units(), pictures[1]
    small = BinaryBlock('small')
    flow = Flow('f', small, KeypointsBlock('p', ['x', 'y']), KeypointsBlock('q', ['x', 'y']) | small)
    learn.change_flow(flow, df.assign(small=df.width < 64))
    units = dict(zip(learn.dls.flow.paths, learn.loss_func.units().tolist()))
    assert units == dict(small=1, p=pytest.approx(float(before[0])), q=pytest.approx(learn.dls.flow.loss_units['q']))
    assert 0 < units['q'] < 0.5 and units['q'] != units['p']


@pytest.mark.parametrize('units', [dict(nobody=1.0), dict(y=0), dict(y=-1.0), dict(y=True), dict(y='1'), [1], None])
def test_units_of_a_stranger(units):
    flow = learner().dls.flow
    with pytest.raises(FlowError, match='units of losses'):
        type(flow).from_dict(flow.to_dict() | dict(loss_units=units))
