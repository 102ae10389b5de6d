"""The packed, grouped loss against a loop over tasks, rows and labels in float64, its gradients included."""
import math
import pandas as pd, pytest, torch
import torch.nn.functional as F
from hypothesis import given
from fastai_condmtl.blocks import BinaryBlock, BoundedRegressionBlock, MultiLabelBlock, SingleLabelBlock, UnboundedRegressionBlock
from fastai_condmtl.flow import Flow
from fastai_condmtl.loss.conditional import ConditionalLoss
from fastai_condmtl.target import TensorConditional
from oracle import build, frame, walk
from random_flows import checks, random_spec, random_table, rngs

pytestmark = pytest.mark.filterwarnings('ignore')

# ---- the loop ---------------------------------------------------------------------------------------------------------
def one(t, z, v):
    "Loss of one row of task `t` (multi label: of one label) from its logits `z` and its value `v`, straight from the formula."
    kw = t.get('kw', {})
    if t['kind'] in ('binary', 'multi', 'cols'):
        return -(kw.get('pos_weight', 1.) * v * F.logsigmoid(z) + (1 - v) * F.logsigmoid(-z))
    if t['kind'] == 'single':
        k, eps, logp = int(v), kw.get('label_smoothing', 0.), z - z.logsumexp(0)
        w = torch.tensor(kw.get('class_weights', [1.] * len(z)), dtype=z.dtype)
        return -(1 - eps) * w[k] * logp[k] - eps / len(z) * (w * logp).sum()
    if t['kind'] == 'ordinal':
        above = [z[0] + x for x in z[1:]]
        return sum((-F.logsigmoid(x if v > k else -x) for k, x in enumerate(above)), 0*z.sum())/max(1, len(above))
    if t['kind'] == 'count': return (z.exp() if z <= 15 else math.exp(15)*(z - 14)) - v*z - (v - v*v.log() if v > 0 else 0)
    d = (z.sigmoid() if t['kind'] == 'bounded' else z) - v
    return {'mse': d * d, 'l1': d.abs(), 'huber': d * d / 2 if d.abs() <= 1 else d.abs() - .5}[kw.get('loss', 'mse')]

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
            else: out.append(one(t, z if t['kind'] in ('single', 'ordinal') else z[0], v[0]) if m[0] else None)
        some = [x for x in out if x is not None]
        mean = sum(some) / len(some) if some else None
        if some: total = total + t.get('kw', {}).get('weight', 1.) * mean
        rows.append(out)
        tasks.append(mean)
    return rows, tasks, total

def rowwise(spec, rows):
    "`reduction='none'`: each row's share, scaled so that the mean is the total."
    bs, ws = len(rows[0]), [t.get('kw', {}).get('weight', 1.) for _, t, *_ in walk(spec)]
    part = lambda r, i: 0. if r[i] is None else r[i] / sum(x is not None for x in r)
    return [bs * sum(w * part(r, i) for w, r in zip(ws, rows)) for i in range(bs)]

def random_batch(rng, spec, bound, bs=None, hole=None):
    "(logits, target) with a mask drawn label by label; `hole`: share of gaps."
    bs, gen = bs or rng.randint(1, 6), torch.Generator().manual_seed(rng.randint(0, 2**30))
    y = torch.zeros(bs, 2, bound.n_targets)
    for p, t, *_ in walk(spec):
        at = bound.slices[p].targets
        n = at.stop - at.start
        m = (torch.rand(bs, n, generator=gen) > (rng.choice([0, .3, .7, 1]) if hole is None else hole)).float()
        v = torch.randn(bs, n, generator=gen) * 2 if t['kind'] == 'unbounded' else torch.rand(bs, n, generator=gen)
        if t['kind'] in ('single', 'ordinal'): v = (v * len(t['vocab'])).floor()
        elif t['kind'] == 'count': v = (v * 8).floor() / bound.tasks[p].span
        elif t['kind'] in ('binary', 'multi', 'cols'): v = v.round()
        y[:, 0, at], y[:, 1, at] = v * m, m
    return torch.randn(bs, bound.c, generator=gen) * rng.choice([1., 4.]), y

def made(rng, **kw):
    spec = random_spec(rng, losses=True, **kw)
    bound = build(spec, rng).bind(frame(spec, random_table(rng, spec), rng))
    return spec, bound

def close(a, b): torch.testing.assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), rtol=2e-4, atol=2e-5)
def num(x): return float('nan') if x is None else float(x)

class rows_of:
    "`loss` with `reduction='none'` inside the block."
    def __init__(self, loss): self.loss = loss
    def __enter__(self): self.loss.reduction = 'none'
    def __exit__(self, *_): self.loss.reduction = 'mean'

# ---- value and gradient -----------------------------------------------------------------------------------------------
@checks(80)
@given(rngs)
def test_total_parts_and_gradient(rng):
    spec, bound = made(rng)
    loss, (pred, y) = bound.loss_func, random_batch(rng, spec, bound)
    pred.requires_grad_()
    rows, tasks, total = by_hand(spec, bound, pred, y)
    got = loss(pred, TensorConditional(y))
    assert got.shape == () and got.item() == pytest.approx(total.item(), rel=2e-4, abs=2e-5)
    want, = torch.autograd.grad(total, pred)
    grad, = torch.autograd.grad(got, pred)
    close(grad, want)
    close(loss(pred, y.flatten(1)).item(), total.item())                                      # tabular batches are flat
    with torch.no_grad():
        for target in (y, y.flatten(1)):
            per_task, per_sample = loss.per_task(pred, target), loss.per_sample(pred, target)
            assert tuple(per_task.shape) == (len(tasks),) and tuple(per_sample.shape) == (len(pred), len(tasks))
            torch.testing.assert_close(per_sample.double(), torch.tensor([[num(x) for x in r] for r in rows]).T.double(), rtol=2e-4, atol=2e-5, equal_nan=True)
            for k, mean in enumerate(tasks):
                if mean is not None: close(per_task[k], mean)
                else: assert per_task[k] == 0 or per_task[k].isnan()
            with rows_of(loss): each = loss(pred, target)
            assert tuple(each.shape) == (len(pred),)
            close(each, torch.tensor([num(x) for x in rowwise(spec, rows)]))
            close(each.mean(), total)

@checks(20)
@given(rngs)
def test_per_task_carries_gradients(rng):
    "Balancing needs each task's own gradient."
    spec, bound = made(rng, max_tasks=4)
    pred, y = random_batch(rng, spec, bound, bs=4, hole=.3)
    pred.requires_grad_()
    per_task, tasks = bound.loss_func.per_task(pred, y), by_hand(spec, bound, pred, y)[1]
    for k, mean in enumerate(tasks):
        if mean is None: continue
        close(torch.autograd.grad(per_task[k], pred, retain_graph=True)[0], torch.autograd.grad(mean, pred, retain_graph=True)[0])

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
    with rows_of(bound.loss_func), torch.no_grad(): assert (bound.loss_func(pred, y) == 0).all()
    assert bound.loss_func.per_sample(pred, y).isnan().all()

@checks(25)
@given(rngs)
def test_what_is_outside_the_mask_does_not_count(rng):
    spec, bound = made(rng)
    pred, y = random_batch(rng, spec, bound)
    junk = y.clone()
    junk[:, 0] = torch.where(y[:, 1] > 0, y[:, 0], torch.ones(()))                            # a class index in every vocabulary
    grads = []
    for target in (y, junk):
        z = pred.clone().requires_grad_()
        bound.loss_func(z, target).backward()
        grads.append(z.grad)
    assert torch.equal(*grads)
    for p, t, *_ in walk(spec):
        s = bound.slices[p]
        if t['kind'] in ('multi', 'cols'): assert (grads[0][:, s.logits][y[:, 1, s.targets] == 0] == 0).all()
        else: assert (grads[0][:, s.logits][y[:, 1, s.targets.start] == 0] == 0).all()

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
    spec = random_spec(rng, losses=True)
    df = frame(spec, random_table(rng, spec), rng)
    a, b = build(spec, rng).bind(df), build(spec, rng, order=lambda items: rng.sample(items, len(items))).bind(df)
    pred, y = random_batch(rng, spec, a)
    pred2, y2 = torch.empty_like(pred), torch.empty_like(y)
    for p in a.paths:
        pred2[:, b.slices[p].logits] = pred[:, a.slices[p].logits]
        y2[:, :, b.slices[p].targets] = y[:, :, a.slices[p].targets]
    close(a.loss_func(pred, y), b.loss_func(pred2, y2))
    close(a.loss_func.per_task(pred, y).nan_to_num(0), b.loss_func.per_task(pred2, y2).nan_to_num(0)[[b.paths.index(p) for p in a.paths]])

@checks(25)
@given(rngs)
def test_a_weight_scales_its_own_task(rng):
    spec = random_spec(rng, losses=True)
    df = frame(spec, random_table(rng, spec), rng)
    bound = build(spec, rng).bind(df)
    pred, y = random_batch(rng, spec, bound, bs=4)
    before, parts = bound.loss_func(pred, y), bound.loss_func.per_task(pred, y).nan_to_num(0)
    at = rng.randrange(len(bound.paths))
    t = [t for _, t, *_ in walk(spec)][at]
    old = t['kw'].get('weight', 1.)
    t['kw']['weight'] = old * 3
    other = build(spec, rng).bind(df)
    close(other.loss_func(pred, y) - before, 2 * old * parts[at])
    close(other.loss_func.per_task(pred, y).nan_to_num(0), parts)                             # unweighted

@checks(25)
@given(rngs)
def test_mixup_mixes_two_targets_each_with_its_mask(rng):
    "fastai's MixUp: `torch.lerp(loss(pred, y1), loss(pred, y), lam).mean()` under `reduction='none'`."
    spec, bound = made(rng)
    pred, y = random_batch(rng, spec, bound, bs=5)
    other, lam = y[torch.tensor([3, 0, 4, 1, 2])], torch.rand(5, generator=torch.Generator().manual_seed(0))
    with rows_of(bound.loss_func): got = torch.lerp(bound.loss_func(pred, other), bound.loss_func(pred, y), lam)
    a, b = ([num(x) for x in rowwise(spec, by_hand(spec, bound, pred, v)[0])] for v in (other, y))
    close(got, [u + (v - u) * w for u, v, w in zip(a, b, lam.tolist())])

# ---- one kind at a time, against torch's own functions -----------------------------------------------------------------
DF = pd.DataFrame(dict(b=[0, 1, 1, 0], s=['x', 'y', 'z', 'x'], m=['u,v', 'u', '', 'v'], r=[0., 10., 5., 2.5], n=[-4., 0., 4., None]))
LOSSES = dict(mse=F.mse_loss, l1=F.l1_loss, huber=F.huber_loss)

def loss_of(blk):
    bound = Flow('f', blk).bind(DF)
    gen = torch.Generator().manual_seed(1)
    return bound, torch.randn(4, bound.c, generator=gen), torch.as_tensor(bound.encode(DF))

def test_against_torch():
    bound, z, y = loss_of(BinaryBlock('b', pos_weight=3.))
    close(bound.loss_func(z, y), F.binary_cross_entropy_with_logits(z[:, 0], y[:, 0, 0], pos_weight=torch.tensor(3.)))
    w = torch.tensor([1., 2., 5.])
    bound, z, y = loss_of(SingleLabelBlock('s', class_weights=w.tolist(), label_smoothing=.1))
    close(bound.loss_func(z, y), F.cross_entropy(z, y[:, 0, 0].long(), weight=w, label_smoothing=.1, reduction='none').mean())
    bound, z, y = loss_of(MultiLabelBlock('m'))
    close(bound.loss_func(z, y), F.binary_cross_entropy_with_logits(z, y[:, 0]))
    for name, f in LOSSES.items():
        bound, z, y = loss_of(BoundedRegressionBlock('r', y_range=(0, 10), loss=name))
        close(bound.loss_func(z, y), f(z[:, 0].sigmoid(), torch.tensor([0., 1., .5, .25])))
        bound, z, y = loss_of(UnboundedRegressionBlock('n', loss=name))
        close(bound.loss_func(z, y), f(z[:3, 0], torch.tensor([-1.5**.5, 0., 1.5**.5])))

def test_activation_is_in_flow_order():
    fl = Flow('f', UnboundedRegressionBlock('n'), SingleLabelBlock('s'), BinaryBlock('b'), MultiLabelBlock('m'), BoundedRegressionBlock('r', y_range=(0, 10)))
    bound = fl.bind(DF)
    z = torch.randn(4, bound.c, generator=torch.Generator().manual_seed(2))
    acts = bound.loss_func.activation(z)
    shape = dict(n=lambda v: v, s=lambda v: v.softmax(1), b=torch.sigmoid, m=torch.sigmoid, r=torch.sigmoid)
    for p in bound.paths: close(acts[:, bound.slices[p].acts], shape[p](z[:, bound.slices[p].logits]))
    assert isinstance(bound.loss_func, ConditionalLoss) and bound.loss_func is bound.loss_func and bound.loss_func.y_int and acts.shape == z.shape
