"""The packed, grouped loss against a loop over tasks, rows and labels in float64, its gradients included."""

import math
import pandas as pd, pytest, torch
import torch.nn.functional as F
from hypothesis import given
from fastai_condmtl.tasks.binary import BinaryBlock
from fastai_condmtl.tasks.regression import BoundedRegressionBlock, UnboundedRegressionBlock
from fastai_condmtl.tasks.multi_label import MultiLabelBlock
from fastai_condmtl.tasks.single_label import SingleLabelBlock
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.loss.conditional import ConditionalLoss
from fastai_condmtl.core.target import TensorConditional
from oracle import build, frame, walk
from random_flows import checks, random_spec, random_table, rngs
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.tasks.keypoints import KeypointsBlock
from fastai_condmtl.core.mask_labels import MASKS
from fastai_condmtl.loss.inputs import as_plain
from fastai_condmtl.loss.temperatures import move_threshold
import itertools
from fastai_condmtl.core.conditions import task
import warnings
import fastai_condmtl.all  # noqa: F401  methods of flows and learners

pytestmark = pytest.mark.filterwarnings('ignore')


# ---- the loop
# ---------------------------------------------------------------------------------------------------------
def one(t, z, v):
    """Loss of one row of task `t` (multi label: of one label) from its logits `z` and its value `v`, straight
    from the formula."""
    kw = t.get('kw', {})
    if kw.get('loss') == 'focal':  # the cross entropy weighs by the distance of the probability from the answer
        alpha, pos = kw['alpha'], kw.get('pos_weight', 1.0)
        answer = -v * F.logsigmoid(z) - (1 - v) * F.logsigmoid(-z)
        weight = (pos * v + 1 - v) * (1 if alpha is None else alpha * v + (1 - alpha) * (1 - v))
        return weight * (v - z.sigmoid()).abs() ** kw['gamma'] * answer
    if t['kind'] in ('binary', 'multi', 'cols'):
        return -(kw.get('pos_weight', 1.0) * v * F.logsigmoid(z) + (1 - v) * F.logsigmoid(-z))
    if t['kind'] == 'single':
        k, eps, logp = int(v), kw.get('label_smoothing', 0.0), z - z.logsumexp(0)
        w = torch.tensor(kw.get('class_weights', [1.0] * len(z)), dtype=z.dtype)
        return -(1 - eps) * w[k] * logp[k] - eps / len(z) * (w * logp).sum()
    if t['kind'] == 'ordinal':
        above = [z[0] + x for x in z[1:]]
        return sum((-F.logsigmoid(x if v > k else -x) for k, x in enumerate(above)), 0 * z.sum()) / max(1, len(above))
    if t['kind'] == 'count':
        return (z.exp() if z <= 15 else math.exp(15) * (z - 14)) - v * z - (v - v * v.log() if v > 0 else 0)
    d = (z.sigmoid() if t['kind'] == 'bounded' else z) - v
    return {'mse': d * d, 'l1': d.abs(), 'huber': d * d / 2 if d.abs() <= 1 else d.abs() - 0.5}[kw.get('loss', 'l1')]


def by_hand(spec, bound, pred, y):
    "(per sample (bs, T) with None outside the mask, per task, total), row by row."
    pred, y, rows, tasks, total = pred.double(), y.double(), [], [], pred.double().sum() * 0
    for p, t, *_ in walk(spec):
        s, out = bound.slices[p], []
        for i in range(len(pred)):
            z, v, m = pred[i, s.logits], y[i, 0, s.targets], y[i, 1, s.targets]
            if t['kind'] in ('multi', 'cols'):
                ls = [one(t, z[j], v[j]) for j in range(len(m)) if m[j]]
                out.append(sum(ls) / len(ls) if ls else None)
            else:
                out.append(one(t, z if t['kind'] in ('single', 'ordinal') else z[0], v[0]) if m[0] else None)
        some = [x for x in out if x is not None]
        mean = sum(some) / len(some) if some else None
        if some:
            total = total + t.get('kw', {}).get('weight', 1.0) * mean
        rows.append(out)
        tasks.append(mean)
    return rows, tasks, total


def rowwise(spec, rows):
    "`reduction='none'`: each row's share, scaled so that the mean is the total."
    bs, ws = len(rows[0]), [t.get('kw', {}).get('weight', 1.0) for _, t, *_ in walk(spec)]
    part = lambda r, i: 0.0 if r[i] is None else r[i] / sum(x is not None for x in r)
    return [bs * sum(w * part(r, i) for w, r in zip(ws, rows)) for i in range(bs)]


def random_batch(rng, spec, bound, bs=None, hole=None):
    "(logits, target) with a mask drawn label by label; `hole`: share of gaps."
    bs, gen = bs or rng.randint(1, 6), torch.Generator().manual_seed(rng.randint(0, 2**30))
    y = torch.zeros(bs, 2, bound.n_targets)
    for p, t, *_ in walk(spec):
        at = bound.slices[p].targets
        n = at.stop - at.start
        m = (torch.rand(bs, n, generator=gen) > (rng.choice([0, 0.3, 0.7, 1]) if hole is None else hole)).float()
        v = torch.randn(bs, n, generator=gen) * 2 if t['kind'] == 'unbounded' else torch.rand(bs, n, generator=gen)
        if t['kind'] in ('single', 'ordinal'):
            v = (v * len(t['vocab'])).floor()
        elif t['kind'] == 'count':
            v = (v * 8).floor() / bound.tasks[p].span
        elif t.get('uncertain'):
            v = torch.where(torch.rand(v.shape, generator=gen) < 0.3, v, v.round())
        elif t['kind'] in ('binary', 'multi', 'cols') and not t.get('soft'):
            v = v.round()
        y[:, 0, at], y[:, 1, at] = v * m, m
    return torch.randn(bs, bound.c, generator=gen) * rng.choice([1.0, 4.0]), y


def made(rng, **kw):
    spec = random_spec(rng, losses=True, unsure=True, **kw)
    bound = build(spec, rng).bind(frame(spec, random_table(rng, spec), rng))
    return spec, bound


def close(a, b):
    torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=2e-4, atol=2e-5)


def num(x):
    return float('nan') if x is None else float(x)


class rows_of:
    "`loss` with `reduction='none'` inside the block."

    def __init__(self, loss):
        self.loss = loss

    def __enter__(self):
        self.loss.reduction = 'none'

    def __exit__(self, *_):
        self.loss.reduction = 'mean'


# ---- value and gradient
# -----------------------------------------------------------------------------------------------
@checks(80)
@given(rngs)
def test_total_parts_and_gradient(rng):
    spec, bound = made(rng)
    loss, (pred, y) = bound.loss_func, random_batch(rng, spec, bound)
    pred.requires_grad_()
    rows, tasks, total = by_hand(spec, bound, pred, y)
    got = loss(pred, TensorConditional(y))
    assert got.shape == () and got.item() == pytest.approx(total.item(), rel=2e-4, abs=2e-5)
    (want,) = torch.autograd.grad(total, pred)
    (grad,) = torch.autograd.grad(got, pred)
    close(grad, want)
    close(loss(pred, y.flatten(1)).item(), total.item())  # tabular batches are flat
    with torch.no_grad():
        for target in (y, y.flatten(1)):
            per_task, per_sample = loss.per_task(pred, target), loss.per_sample(pred, target)
            assert tuple(per_task.shape) == (len(tasks),) and tuple(per_sample.shape) == (len(pred), len(tasks))
            torch.testing.assert_close(
                per_sample.double(),
                torch.tensor([[num(x) for x in r] for r in rows]).T.double(),
                rtol=2e-4,
                atol=2e-5,
                equal_nan=True,
            )
            for k, mean in enumerate(tasks):
                if mean is not None:
                    close(per_task[k], mean)
                else:
                    assert per_task[k] == 0 or per_task[k].isnan()
            with rows_of(loss):
                each = loss(pred, target)
            assert tuple(each.shape) == (len(pred),)
            close(each, torch.tensor([num(x) for x in rowwise(spec, rows)]))
            close(each.mean(), total)


@checks(20)
@given(rngs)
def test_per_task_carries_gradients(rng):
    "Balancing needs each task's own gradient."
    spec, bound = made(rng, max_tasks=4)
    pred, y = random_batch(rng, spec, bound, bs=4, hole=0.3)
    pred.requires_grad_()
    per_task, tasks = bound.loss_func.per_task(pred, y), by_hand(spec, bound, pred, y)[1]
    for k, mean in enumerate(tasks):
        if mean is None:
            continue
        close(
            torch.autograd.grad(per_task[k], pred, retain_graph=True)[0],
            torch.autograd.grad(mean, pred, retain_graph=True)[0],
        )


@checks(25)
@given(rngs)
def test_a_batch_with_no_label(rng):
    spec, bound = made(rng)
    pred, y = random_batch(rng, spec, bound, hole=1)
    pred.requires_grad_()
    assert not y[:, 1].any()
    total = bound.loss_func(pred, y)
    total.backward()
    assert total.item() == 0 and pred.grad is not None and (pred.grad == 0).all()
    with rows_of(bound.loss_func), torch.no_grad():
        assert (bound.loss_func(pred, y) == 0).all()
    assert bound.loss_func.per_sample(pred, y).isnan().all()


@checks(25)
@given(rngs)
def test_what_is_outside_the_mask_does_not_count(rng):
    spec, bound = made(rng)
    pred, y = random_batch(rng, spec, bound)
    junk = y.clone()
    junk[:, 0] = torch.where(y[:, 1] > 0, y[:, 0], torch.ones(()))  # a class index in every vocabulary
    grads = []
    for target in (y, junk):
        z = pred.clone().requires_grad_()
        bound.loss_func(z, target).backward()
        grads.append(z.grad)
    assert torch.equal(*grads)
    for p, t, *_ in walk(spec):
        s = bound.slices[p]
        if t['kind'] in ('multi', 'cols'):
            assert (grads[0][:, s.logits][y[:, 1, s.targets] == 0] == 0).all()
        else:
            assert (grads[0][:, s.logits][y[:, 1, s.targets.start] == 0] == 0).all()


@checks(25)
@given(rngs)
def test_huge_logits_stay_finite(rng):
    spec, bound = made(rng)
    pred, y = random_batch(rng, spec, bound)
    pred = (pred.sign() * 1e4).requires_grad_()
    total = bound.loss_func(pred, y)
    total.backward()
    assert total.isfinite() and pred.grad.isfinite().all()
    assert total.item() == pytest.approx(by_hand(spec, bound, pred, y)[2].item(), rel=1e-3, abs=1e-3)


@checks(25)
@given(rngs)
def test_order_of_tasks_does_not_change_the_total(rng):
    spec = random_spec(rng, losses=True, unsure=True)
    df = frame(spec, random_table(rng, spec), rng)
    a, b = build(spec, rng).bind(df), build(spec, rng, order=lambda items: rng.sample(items, len(items))).bind(df)
    pred, y = random_batch(rng, spec, a)
    pred2, y2 = torch.empty_like(pred), torch.empty_like(y)
    for p in a.paths:
        pred2[:, b.slices[p].logits] = pred[:, a.slices[p].logits]
        y2[:, :, b.slices[p].targets] = y[:, :, a.slices[p].targets]
    close(a.loss_func(pred, y), b.loss_func(pred2, y2))
    close(
        a.loss_func.per_task(pred, y).nan_to_num(0),
        b.loss_func.per_task(pred2, y2).nan_to_num(0)[[b.paths.index(p) for p in a.paths]],
    )


@checks(25)
@given(rngs)
def test_a_weight_scales_its_own_task(rng):
    spec = random_spec(rng, losses=True, unsure=True)
    df = frame(spec, random_table(rng, spec), rng)
    bound = build(spec, rng).bind(df)
    pred, y = random_batch(rng, spec, bound, bs=4)
    before, parts = bound.loss_func(pred, y), bound.loss_func.per_task(pred, y).nan_to_num(0)
    at = rng.randrange(len(bound.paths))
    t = [t for _, t, *_ in walk(spec)][at]
    old = t['kw'].get('weight', 1.0)
    t['kw']['weight'] = old * 3
    other = build(spec, rng).bind(df)
    close(other.loss_func(pred, y) - before, 2 * old * parts[at])
    close(other.loss_func.per_task(pred, y).nan_to_num(0), parts)  # unweighted


@checks(25)
@given(rngs)
def test_mixup_mixes_two_targets_each_with_its_mask(rng):
    "fastai's MixUp: `torch.lerp(loss(pred, y1), loss(pred, y), lam).mean()` under `reduction='none'`."
    spec, bound = made(rng)
    pred, y = random_batch(rng, spec, bound, bs=5)
    other, lam = y[torch.tensor([3, 0, 4, 1, 2])], torch.rand(5, generator=torch.Generator().manual_seed(0))
    with rows_of(bound.loss_func):
        got = torch.lerp(bound.loss_func(pred, other), bound.loss_func(pred, y), lam)
    a, b = ([num(x) for x in rowwise(spec, by_hand(spec, bound, pred, v)[0])] for v in (other, y))
    close(got, [u + (v - u) * w for u, v, w in zip(a, b, lam.tolist())])


# ---- one kind at a time, against torch's own functions
# -----------------------------------------------------------------
DF = pd.DataFrame(
    dict(
        b=[0, 1, 1, 0],
        s=['x', 'y', 'z', 'x'],
        m=['u,v', 'u', '', 'v'],
        r=[0.0, 10.0, 5.0, 2.5],
        n=[-4.0, 0.0, 4.0, None],
    )
)
LOSSES = dict(mse=F.mse_loss, l1=F.l1_loss, huber=F.huber_loss)


def loss_of(blk):
    bound = Flow('f', blk).bind(DF)
    gen = torch.Generator().manual_seed(1)
    return bound, torch.randn(4, bound.c, generator=gen), torch.as_tensor(bound.encode(DF))


def test_against_torch():
    bound, z, y = loss_of(BinaryBlock('b', pos_weight=3.0))
    close(bound.loss_func(z, y), F.binary_cross_entropy_with_logits(z[:, 0], y[:, 0, 0], pos_weight=torch.tensor(3.0)))
    w = torch.tensor([1.0, 2.0, 5.0])
    bound, z, y = loss_of(SingleLabelBlock('s', class_weights=w.tolist(), label_smoothing=0.1))
    close(
        bound.loss_func(z, y),
        F.cross_entropy(z, y[:, 0, 0].long(), weight=w, label_smoothing=0.1, reduction='none').mean(),
    )
    bound, z, y = loss_of(MultiLabelBlock('m'))
    close(bound.loss_func(z, y), F.binary_cross_entropy_with_logits(z, y[:, 0]))
    for name, f in LOSSES.items():
        bound, z, y = loss_of(BoundedRegressionBlock('r', y_range=(0, 10), loss=name))
        close(bound.loss_func(z, y), f(z[:, 0].sigmoid(), torch.tensor([0.0, 1.0, 0.5, 0.25])))
        bound, z, y = loss_of(UnboundedRegressionBlock('n', loss=name))
        close(bound.loss_func(z, y), f(z[:3, 0], torch.tensor([-(1.5**0.5), 0.0, 1.5**0.5])))


def test_activation_is_in_flow_order():
    fl = Flow(
        'f',
        UnboundedRegressionBlock('n'),
        SingleLabelBlock('s'),
        BinaryBlock('b'),
        MultiLabelBlock('m'),
        BoundedRegressionBlock('r', y_range=(0, 10)),
    )
    bound = fl.bind(DF)
    z = torch.randn(4, bound.c, generator=torch.Generator().manual_seed(2))
    acts = bound.loss_func.activation(z)
    shape = dict(n=lambda v: v, s=lambda v: v.softmax(1), b=torch.sigmoid, m=torch.sigmoid, r=torch.sigmoid)
    for p in bound.paths:
        close(acts[:, bound.slices[p].acts], shape[p](z[:, bound.slices[p].logits]))
    assert (
        isinstance(bound.loss_func, ConditionalLoss)
        and bound.loss_func is bound.loss_func
        and bound.loss_func.y_int
        and acts.shape == z.shape
    )


A, B, C = map(BinaryBlock, 'abc')


def says(text, f, *args, error=FlowError):
    "`f(*args)` is refused in just these words, or in words that begin so."
    with pytest.raises(error) as e:
        f(*args)
    assert str(e.value).startswith(text), str(e.value)


# ---- losses
# ---------------------------------------------------------------------------------------------------------------
ALL = pd.DataFrame(
    dict(
        k=['x', 'y', 'z', 'x'],
        a=[1, 0, 1, 1],
        n=[1.0, 2.0, 3.0, 9.0],
        p=[1, 0, 1, 0],
        q=[1, 1, 0, 0],
        r=[0, 1, 1, 0],
        b=[1, 0, 0, 1],
        s=[0.0, 1.0, 0.5, 1.0],
        x1=[1.0, 2.0, 3.0, 4.0],
        y1=[4.0, 1.0, 2.0, 3.0],
        l=['v', 'u', 'u', 'v'],
        w=[1.0, 2.0, 0.5, 0.0],
    )
)


class Pooled(MultiLabelBlock):
    "The mean over all labels that count, not over rows of each row's mean"

    reduce = 'cells'


def all_kinds(pair=MultiLabelBlock, **kw):
    "Tasks of each family, narrow and wide, in an order that is not that of the logits; of two weights in each family."
    return Flow(
        'f',
        SingleLabelBlock('k', weight=2.0),
        A,
        UnboundedRegressionBlock('n', loss='l1'),
        MultiLabelBlock('m', cols=['p', 'q', 'r'], weight=3.0),
        KeypointsBlock('face', cols=['x1', 'y1'], weight=0.5, loss='mse'),
        BinaryBlock('b', weight=5.0, pos_weight=4.0),
        pair('pair', cols=['p', 'q'], pos_weight=[2.0, 3.0]),
        BoundedRegressionBlock('s', y_range=(0, 2), loss='mse'),
        SingleLabelBlock('l', class_weights=[2.0, 3.0]),
        SingleLabelBlock('kk', col='k'),
        **kw,
    )


PATHS, TASK_WEIGHTS = ['k', 'a', 'n', 'm', 'face', 'b', 'pair', 's', 'l', 'kk'], [2.0, 1, 1, 3, 0.5, 5, 1, 1, 1, 1]


def one_cell(path, z, v, j):
    "Loss of one cell from its logits, by the formula."
    bce = lambda z, v, pos=1.0: pos * v * math.log1p(math.exp(-z)) + (1 - v) * math.log1p(math.exp(z))
    if path in ('k', 'kk'):
        return math.log(sum(math.exp(x) for x in z)) - z[int(v)]
    if path == 'l':
        return [2.0, 3.0][int(v)] * (math.log(sum(math.exp(x) for x in z)) - z[int(v)])
    if path in ('a', 'm'):
        return bce(z[0], v)
    if path in ('b', 'pair'):
        return bce(z[0], v, 4.0 if path == 'b' else [2.0, 3.0][j])
    if path == 'n':
        return abs(z[0] - v)
    share = 1 / (1 + math.exp(-z[0]))
    return (share - v) ** 2 if path == 's' else (2 * share - 1 - v) ** 2


def batch_of_all(bound, seed, weighted, bs=6):
    g = torch.Generator().manual_seed(seed)
    pred, y = (
        torch.randn(bs, bound.c, generator=g, dtype=torch.float64) * 2,
        torch.zeros(bs, 2, bound.n_targets, dtype=torch.float64),
    )
    w = torch.tensor([2.0, 0.5, 1, 3, 0, 0.25]) if weighted else torch.ones(bs)
    y[:, 1] = (torch.rand(bs, bound.n_targets, generator=g) < 0.7) * w[:bs, None]
    for p, s in bound.slices.items():
        shape = (bs, s.targets.stop - s.targets.start)
        y[:, 0, s.targets] = (
            torch.randn(shape, generator=g, dtype=torch.float64)
            if p == 'n'
            else torch.rand(shape, generator=g, dtype=torch.float64) * 2 - 1
            if p == 'face'
            else torch.rand(shape, generator=g, dtype=torch.float64)
            if p == 's'
            else torch.randint(3 if p in ('k', 'kk') else 2, shape, generator=g).double()
        )
    return pred, y


def by_loop(bound, pred, y):
    "(loss of a row and what the row weighs, a list of rows each) for each task: None where no cell of the row counts."
    res = []
    for p in PATHS:
        s, rows = bound.slices[p], []
        for z, (v, m) in zip(pred[:, s.logits].tolist(), y[:, :, s.targets].tolist()):
            each = len(z) // len(v)
            cells = [one_cell(p, z[j * each : (j + 1) * each], v[j], j) for j in range(len(v)) if m[j]]
            rows.append(
                (sum(cells) / len(cells), sum(m) if bound.tasks[p].reduce == 'cells' else max(m))
                if cells
                else (None, 0.0)
            )
        res.append(rows)
    return res


def task_mean(rows):
    total = sum(w for _, w in rows)
    return sum(l * w for l, w in rows if w) / total if total else None


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('pair', [MultiLabelBlock, Pooled])
@pytest.mark.parametrize('seed', range(4))
def test_the_loss_of_all_kinds_is_that_of_a_loop(seed, weighted, pair):
    "Weights of tasks, of rows, of classes and of positives, gaps, tasks of several widths: total, rows, tasks."
    bound = all_kinds(pair, **(dict(weight_col='w') if weighted else {})).bind(ALL)
    pred, y = batch_of_all(bound, seed, weighted)
    if seed == 3:
        y[:, 1, bound.slices['a'].targets] = y[:, 1, bound.slices['m'].targets] = 0.0  # two tasks without a row
    if seed == 2:
        y[2:5, 1, bound.slices['m'].targets] = 0.0
    rows, loss = by_loop(bound, pred, y), bound.loss_func
    means = [task_mean(r) for r in rows]
    total = sum(w * m for w, m in zip(TASK_WEIGHTS, means) if m is not None)
    close = lambda got, want: torch.testing.assert_close(
        got.double(), torch.as_tensor(want, dtype=torch.float64), rtol=1e-6, atol=1e-7, equal_nan=True
    )
    nan = lambda xs: torch.tensor([float('nan') if x is None else x for x in xs], dtype=torch.float64)
    before = pred.clone(), y.clone()
    close(loss(pred, y), total)
    close(loss(pred, y.flatten(1)), total)
    close(ConditionalLoss(bound, 'sum')(pred, y), total * 6)
    each = ConditionalLoss(bound, reduction='none')(pred, y)
    want = [
        sum(t * r[i][0] * r[i][1] / sum(w for _, w in r) for t, r in zip(TASK_WEIGHTS, rows) if r[i][1]) * 6
        for i in range(6)
    ]
    close(each, want)
    for target in (y, y.flatten(1)):
        close(loss.per_sample(pred, target), torch.stack([nan([l for l, _ in r]) for r in rows], 1))
        close(loss.per_task(pred, target), nan(means))
        got, there = loss.task_losses(pred, target)
        close(got, nan(means).nan_to_num(0.0))
        assert there.tolist() == [m is not None for m in means]
    factor = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0, 1.0])
    close(
        loss.task_losses(pred, y, factor)[0],
        [sum(l * w * f for (l, w), f in zip(r, factor.tolist()) if w) / max(sum(w for _, w in r), 1e-9) for r in rows],
    )
    close(loss.task_losses(pred, y, 0.25)[0], nan(means).nan_to_num(0.0) * 0.25)
    assert torch.equal(pred, before[0]) and torch.equal(y, before[1])  # in place on copies only
    close(loss.task_weights(), TASK_WEIGHTS)
    assert loss.task_weights().tolist() == TASK_WEIGHTS and list(loss.flow.paths) == PATHS
    assert (
        loss(pred.float(), y).dtype == torch.float32
        and loss(pred.half(), y.float()).dtype == torch.float32
        and loss(pred, y.float()).dtype == torch.float64
    )
    torch.testing.assert_close(
        loss(pred.float(), y).double(), torch.tensor(total, dtype=torch.float64), rtol=1e-5, atol=1e-6
    )


def test_gradients_are_those_of_the_loop():
    bound = all_kinds(weight_col='w').bind(ALL)
    pred, y = batch_of_all(bound, 0, True)
    (grad,) = torch.autograd.grad(bound.loss_func(pred.requires_grad_(), y), pred)
    with torch.no_grad():
        for i, c in itertools.product((0, 3), range(bound.c)):
            step = torch.zeros_like(pred)
            step[i, c] = 1e-5
            up, down = (
                sum(w * m for w, m in zip(TASK_WEIGHTS, map(task_mean, by_loop(bound, p, y))) if m is not None)
                for p in (pred + step, pred - step)
            )
            assert grad[i, c].item() == pytest.approx((up - down) / 2e-5, abs=1e-5)
    parts, there = bound.loss_func.task_losses(pred, y)
    assert there.all() and torch.autograd.grad((parts * torch.tensor(TASK_WEIGHTS)).sum(), pred)[0].allclose(grad)


def test_activations_and_decisions_of_all_kinds():
    bound = all_kinds().bind(ALL)
    z, loss, s = batch_of_all(bound, 1, False)[0].float(), bound.loss_func, bound.slices
    form = dict(
        k=lambda v: v.softmax(1),
        kk=lambda v: v.softmax(1),
        l=lambda v: v.softmax(1),
        n=lambda v: v,
        face=lambda v: v.sigmoid() * 2 - 1,
    )
    acts, plain = loss.activation(z), loss.activation(TensorConditional(z))
    assert type(plain) is torch.Tensor and torch.equal(acts, plain) and loss.activation(z.half()).dtype == torch.float32
    for p in PATHS:
        torch.testing.assert_close(acts[:, s[p].acts], form.get(p, torch.sigmoid)(z[:, s[p].logits]))
    loss.thresholds |= dict(a=0.2, b=torch.tensor([0.9]), m=[0.1, 0.5, 0.95], pair=0.7)
    cut = dict(a=[0.2], b=[0.9], m=[0.1, 0.5, 0.95], pair=[0.7, 0.7])
    got = loss.decodes(acts)
    assert (
        type(got) is TensorConditional
        and got.shape == (6, 2, bound.n_targets)
        and (got.mask == 1).all()
        and torch.equal(loss.decisions.with_reached(got.vals.as_subclass(torch.Tensor)), got)
    )
    for p in PATHS:
        a, want = acts[:, s[p].acts], got.vals[:, s[p].targets].as_subclass(torch.Tensor)
        assert torch.equal(
            want,
            (a > torch.tensor(cut[p])).float()
            if p in cut
            else a.argmax(1, keepdim=True).float()
            if p in ('k', 'l', 'kk')
            else a,
        ), p
    assert [loss.decisions.thresholds_of(0).tolist(), loss.decisions.thresholds_of(0, 'cpu', torch.float64).dtype] == [
        pytest.approx([0.1, 0.5, 0.95, 0.7, 0.7, 0.2, 0.9]),
        torch.float64,
    ]
    del loss.thresholds['b']  # then what the block says
    assert loss.decisions.thresholds_of(0).tolist() == pytest.approx([0.1, 0.5, 0.95, 0.7, 0.7, 0.2, 0.5])
    for wrong, text in (
        (dict(m=[0.1, 0.2]), "thresholds['m'] has 2 values for 3 labels: give one value, or one a label"),
        (dict(aa=0.5), "thresholds has no task 'aa' to use it for: did you mean 'a'?"),
        (dict(k=0.5), "thresholds has no task 'k' to use it for"),
    ):
        other = loss.clone()
        other.thresholds |= wrong
        says(text, other.decodes, acts)


def test_reached_in_decisions():
    df = pd.DataFrame(dict(a=[1, 0], p=[1, 0], q=[0, 1], n=[1.0, 2.0]))
    loss = (
        Flow('f', MultiLabelBlock('m', cols=['p', 'q']) | A, A, UnboundedRegressionBlock('n') | task('m').has('q'))
        .bind(df)
        .loss_func
    )
    acts = torch.tensor([[0.9, 0.9, 0.9, 0.3], [0.9, 0.9, 0.1, 0.3], [0.9, 0.1, 0.9, -0.3]])
    got = loss.decodes(acts)
    assert got.mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 0], [1, 1, 1, 0]] and got.vals.tolist() == [
        [1, 1, 1, pytest.approx(0.3)],
        [1, 1, 0, pytest.approx(0.3)],
        [1, 0, 1, pytest.approx(-0.3)],
    ]
    assert loss.decodes(acts.half()).dtype == torch.float32


def test_a_clone_has_its_own():
    bound = all_kinds().bind(ALL)
    loss = ConditionalLoss(bound, 'sum')
    loss.thresholds['a'], loss.tuned, loss.temperatures = 0.125, {'a': 'by hand'}, {'k': 2}
    seven = loss.task_weights()
    seven[list(bound.paths).index('m')] = 7.0
    loss.set_weights(seven)
    twin = loss.clone()
    assert (
        twin is not loss
        and type(twin) is ConditionalLoss
        and twin.flow is bound
        and twin.reduction == 'sum'
        and dict(twin.temperatures) == {'k': 2}
        and twin.thresholds == loss.thresholds
        and twin.tuned == {'a': 'by hand'}
        and torch.equal(twin.task_weights(), loss.task_weights())
        and 7 in twin.task_weights()
    )
    twin.thresholds['a'], twin.tuned['b'], twin.temperatures = 0.5, 1, {}
    twin.set_weights(torch.ones(len(bound.paths)))
    assert (
        loss.thresholds['a'] == 0.125
        and loss.tuned == {'a': 'by hand'}
        and dict(loss.temperatures) == {'k': 2}
        and loss.task_weights()[3] == 7
    )
    assert (
        loss.y_int is True
        and ConditionalLoss(bound).reduction == 'mean'
        and bound.loss_func is bound.loss_func
        and bound.loss_func.tuned == {}
        and not loss.state_dict()
    )


def test_temperatures():
    bound = all_kinds().bind(ALL)
    loss, z = bound.loss_func, batch_of_all(all_kinds().bind(ALL), 2, False)[0]
    plain = loss.activation(z)
    assert dict(loss.temperatures) == {} and loss.decisions.tempered(z) is z
    loss.temperatures = dict(k=2, b=0.5, m=4.0, a=1)
    assert dict(loss.temperatures) == dict(k=2.0, b=0.5, m=4.0) and set(map(type, loss.temperatures.values())) == {
        float
    }
    heat = torch.ones(bound.c)
    for p, t in dict(k=2.0, b=0.5, m=4.0).items():
        heat[bound.slices[p].logits] = t
    assert (
        torch.equal(loss.decisions.tempered(z), z / heat)
        and not loss.activation(z).allclose(plain)
        and loss.activation(z * heat).allclose(plain)
    )
    with pytest.raises(TypeError):
        loss.temperatures['k'] = 3.0
    for bad, text in (
        (dict(n=2.0), "task 'n' (UnboundedRegressionBlock) has no probabilities to calibrate: leave it out"),
        ([('k', 2.0)], "temperatures=[('k', 2.0)] must be a dict"),
        (dict(nope=2.0), "asked for task 'nope'"),
        *(
            (dict(k=t), f"temperature {t!r} of task 'k' must be a positive number")
            for t in (0, -1.0, True, '2', None, float('inf'), float('nan'))
        ),
    ):
        says(text, setattr, loss, 'temperatures', bad)
    assert dict(loss.temperatures) == dict(k=2.0, b=0.5, m=4.0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        loss(z, batch_of_all(bound, 2, False)[1])  # no gradient, no training
        loss.temperatures = dict(k=1e-3)
        assert dict(loss.temperatures) == pytest.approx(dict(k=1e-3))
        loss.temperatures = {}
        assert loss.decisions.temperature is None and dict(loss.temperatures) == {}
        loss(z.clone().requires_grad_(), batch_of_all(bound, 2, False)[1])


def test_training_drops_temperatures_and_keeps_decisions():
    """What was decided by p > t of logits over a temperature is decided by plain logits at the threshold that
    moves along."""
    bound = all_kinds().bind(ALL)
    loss, (z, y) = bound.loss_func, batch_of_all(bound, 2, False, bs=6)
    loss.temperatures, loss.tuned = dict(b=0.5, m=4.0, k=2.0), dict(b='x')
    loss.thresholds |= dict(b=0.3, m=[0.2, 0.5, 0.6], a=0.4)
    before = loss.decodes(loss.activation(z))
    with pytest.warns(
        UserWarning, match='^the model has other weights: temperatures of the last calibration are dropped'
    ):
        loss(z.clone().requires_grad_(), y)
    assert (
        dict(loss.temperatures) == {}
        and loss.tuned == {}
        and loss.decisions.temperature is None
        and loss.thresholds['a'] == 0.4
    )
    logit = lambda p: math.log(p / (1 - p))
    sigmoid = lambda v: 1 / (1 + math.exp(-v))
    assert loss.thresholds['b'].tolist() == pytest.approx([sigmoid(logit(0.3) * 0.5)]) and loss.thresholds[
        'm'
    ].tolist() == pytest.approx([sigmoid(logit(p) * 4) for p in (0.2, 0.5, 0.6)])
    assert torch.equal(loss.decodes(loss.activation(z)), before)
    assert (
        move_threshold(0.3, 2.0).tolist() == pytest.approx([sigmoid(logit(0.3) * 2)])
        and move_threshold([0.0, 1.0], 3.0).tolist() == [0, 1]
        and move_threshold(0.5, 9.0).dtype == torch.float32
        and move_threshold(1 - 1e-9, 0.1).item() == pytest.approx(sigmoid(logit(1 - 1e-9) * 0.1))
    )


def test_one_target_only():
    bound = Flow('f', A).bind(ALL)
    y = bound.encode(ALL)
    says(
        (
            "the data has 3 targets, and a flow is the only one that its loss can train: put all tasks into one flow, "
            "or "
            "say with n_inp= which blocks are inputs"
        ),
        bound.loss_func,
        torch.zeros(4, 1),
        y,
        torch.zeros(4),
        torch.zeros(4),
    )
    with pytest.raises(FlowError) as e:
        bound.loss_func(torch.zeros(4, 1), y, torch.zeros(4, 8, 8, dtype=torch.long))
    with pytest.raises(FlowError) as e2:
        bound.loss_func(torch.zeros(4, 1), y, torch.zeros(4, 8, 8))
    with pytest.raises(FlowError) as e3:
        bound.loss_func(torch.zeros(4, 1), y, torch.zeros(4, dtype=torch.long))
    assert (
        MASKS in str(e.value)
        and 'has 2 targets' in str(e.value)
        and MASKS not in str(e2.value)
        and MASKS not in str(e3.value)
    )


def test_plain_and_single():
    for x, dtype in (
        (torch.zeros(2, dtype=torch.float16), torch.float32),
        (torch.zeros(2, dtype=torch.bfloat16), torch.float32),
        (torch.zeros(2), torch.float32),
        (torch.zeros(2, dtype=torch.float64), torch.float64),
        (TensorConditional(torch.zeros(2)), torch.float32),
    ):
        got = as_plain(x)
        assert type(got) is torch.Tensor and got.dtype == dtype
    same = torch.zeros(2)
    assert as_plain(same) is same


# ---- devices: `meta` is one, on any machine
# ----------------------------------------------------------------------------------
def chain_flow():
    return Flow(
        'f',
        UnboundedRegressionBlock('n'),
        A,
        BinaryBlock('b', whole_space=True) | A,
        BoundedRegressionBlock('s', y_range=(0, 2)) | SingleLabelBlock('k').eq('x'),
        SingleLabelBlock('k'),
        weight_col='w',
    ).bind(ALL)


@pytest.mark.parametrize(
    'make', [lambda: all_kinds().bind(ALL), lambda: all_kinds(Pooled, weight_col='w').bind(ALL), chain_flow]
)
def test_all_goes_where_the_batch_is(make):
    bound = make()
    loss, pred, y = (
        bound.loss_func,
        torch.zeros(4, bound.c, device='meta'),
        TensorConditional(torch.zeros(4, 2, bound.n_targets, device='meta')),
    )
    loss.temperatures = dict(k=2.0)
    n, D = len(bound.paths), bound.n_targets
    for got, shape in (
        (loss(pred, y), ()),
        (ConditionalLoss(bound, 'none')(pred, y), (4,)),
        (loss.per_sample(pred, y), (4, n)),
        (loss.per_task(pred, y), (n,)),
        (loss.activation(pred), (4, bound.c)),
        (loss.decisions.tempered(pred), (4, bound.c)),
        (loss.decide(pred), (4, D)),
        *((x, (n,)) for x in loss.task_losses(pred, y)),
        (loss.task_losses(pred, y, torch.ones(4))[0], (n,)),
        (bound.to_units(y), (4, 2, D)),
        (bound.reached(y), (4, n)),
        (bound.reached(y.vals), (4, n)),
        (bound.false_conditions(y), (4, n)),
    ):
        assert got.device.type == 'meta' and tuple(got.shape) == shape
    assert (
        {b.device.type for name, b in loss.named_buffers() if 'whole' not in name} == {'cpu'}
        and loss.decisions.thresholds_of(0).device.type == 'cpu'
        and loss.decisions.thresholds_of(0, 'meta').device.type == 'meta'
    )


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_many_classes_in_half_precision(dtype):
    bound = Flow('f', SingleLabelBlock('k', vocab=list(range(3000)))).bind(pd.DataFrame(dict(k=[1])))
    x = torch.zeros(1, 3000, dtype=dtype)
    x[0, 2301] = 5
    acts = bound.loss_func.activation(x)
    assert bound.loss_func.decodes(acts)[0, 0, 0].item() == 2301
