"""Half and double precision, channels-last, devices without float64: the loss of what half precision holds is the
loss of those numbers in single
precision, for every kind of task; what a mask leaves out is never seen, however large; nothing makes a float64 on a
device."""

import numpy as np, pandas as pd, pytest, torch
from torch import nn
from torch.amp import GradScaler, autocast
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.channelslast import ChannelsLast  # noqa: F401  learn.to_channelslast
from fastai.data.block import DataBlock, TransformBlock
from fastai.data.transforms import RandomSplitter
from fastai.layers import ConvLayer, Flatten
from fastai.learner import Learner
from fastai.torch_core import TensorImage, set_seed
import fastai_condmtl.vision.all  # noqa: F401  what is known of points
from fastai_condmtl.all import Branch, FlowPrediction, conditional_head, equip
from fastai_condmtl.loss.weighting import METHODS
from fastai_condmtl.evaluate.calibrate import fit_temperature  # noqa: F401  learn.calibrate
from fastai_condmtl.learn.heads import RunNeeded
from fastai_condmtl.learn.accumulate import Accumulator
from fastai_condmtl.tasks.binary import BinaryBlock
from fastai_condmtl.tasks.regression import BoundedRegressionBlock
from fastai_condmtl.tasks.single_label import SingleLabelBlock
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.tasks.count import CountBlock
from fastai_condmtl.tasks.ordinal import OrdinalBlock
from fastai_condmtl.core.target import doubles
from fastai_condmtl.text.masks import MASK, MaskedLMBlock, MaskTokens, text_random, unpack
from kinds_of_task import KINDS, bound_with_labels, flow, logits, table

pytestmark = pytest.mark.filterwarnings('ignore')
HALF = [torch.float16, torch.bfloat16]


@pytest.fixture(scope='module')
def every():
    return bound_with_labels()


def grad_of(bound, pred, y, **kwargs):
    pred = pred.clone().requires_grad_()
    total = bound.loss_func(pred, y, **kwargs)
    total.backward()
    return total.detach(), pred.grad


# half precision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', HALF)
def test_half_is_single_precision_of_the_same_numbers(every, dtype):
    bound, y = every
    loss, low = bound.loss_func, logits(bound).to(dtype)
    high = low.float()
    (a, ga), (b, gb) = grad_of(bound, low, y), grad_of(bound, high, y)
    assert a.dtype == torch.float32 and a == b and ga.dtype == dtype and torch.equal(ga, gb.to(dtype))
    for f in (loss.per_task, loss.per_sample, loss.sums):
        assert torch.equal(f(low, y).nan_to_num(-1), f(high, y).nan_to_num(-1)) and f(low, y).dtype == torch.float32
    for p, q in zip(loss.task_losses(low, y), loss.task_losses(high, y)):
        assert torch.equal(p, q)
    acts = loss.activation(low)
    assert (
        acts.dtype == torch.float32
        and torch.equal(acts, loss.activation(high))
        and torch.equal(loss.decodes(acts), loss.decodes(loss.activation(high)))
    )
    assert torch.equal(Accumulator(bound).pack(low, y), Accumulator(bound).pack(high, y))
    np.testing.assert_array_equal(
        bound.diagrams(acts, loss.decide(acts)), bound.diagrams(loss.activation(high), loss.decide(acts))
    )
    dec = loss.decodes(acts)[0]
    assert isinstance(FlowPrediction(bound, dec.to(torch.float32), acts[0]).marginals['gate'].reached, float)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', HALF)
def test_what_is_masked_is_never_seen(kind, dtype):
    "Rows that do not count may hold the largest numbers; a task of which none counts is worth 0"
    bound, y = bound_with_labels([kind])
    s = bound.slices[f'all.{kind}']
    pred, top = logits(bound).to(dtype), min(torch.finfo(dtype).max, 1e18)  # single precision holds its square
    mask = y[:, 1, s.targets].any(1)
    if kind in ('whole', 'detach', 'both'):
        mask = torch.from_numpy(
            np.asarray(~bound.loss_func.per_sample(pred.float(), y)[:, bound.paths.index(f'all.{kind}')].isnan())
        )
    assert mask.any() and not mask.all()
    want, g = grad_of(bound, pred, y)
    for extreme in (top, -top):
        wild = pred.clone()
        wild[~mask, s.logits] = extreme
        total, grad = grad_of(bound, wild, y)
        assert (
            total == want
            and grad.isfinite().all()
            and (grad[~mask, s.logits] == 0).all()
            and torch.equal(grad[mask], g[mask])
        )
    none = y.clone()
    none[:, 1, s.targets] = 0
    if kind not in ('whole', 'detach', 'both'):  # which learn of false conditions, without a label of their own
        total, grad = grad_of(bound, wild, none)
        assert (
            total.isfinite()
            and grad.isfinite().all()
            and (grad[:, s.logits] == 0).all()
            and bound.loss_func.per_task(wild, none)[-1].isnan()
        )
    total, grad = grad_of(bound, torch.where(pred > 0, top, -top).to(dtype), torch.zeros_like(y))
    assert total == 0 and (grad == 0).all()


@pytest.mark.parametrize('dtype', HALF)
def test_the_largest_numbers_that_count(every, dtype):
    """Single precision holds the loss of whatever logit half precision holds (but bfloat16's largest, squared);
    only gradients of counts leave it, for which there is the scaler"""
    bound, y = every
    top = 6e4
    pred = torch.where(logits(bound) > 0, top, -top).to(dtype)
    total, grad = grad_of(bound, pred, y)
    assert total.isfinite() and total > 0
    counts = bound.slices['all.count'].logits
    rest = [c for c in range(bound.c) if c not in range(*counts.indices(bound.c))]
    assert (
        grad[:, rest].isfinite().all() and not grad.isnan().any() and bound.loss_func.activation(pred).isfinite().all()
    )
    assert bound.loss_func.decodes(bound.loss_func.activation(pred)).isfinite().all()


@pytest.mark.parametrize('reduction', ['none', 'sum'])
def test_half_under_other_reductions(every, reduction):
    bound, y = every
    loss = bound.loss_func.clone()
    loss.reduction = reduction
    low = logits(bound).to(torch.bfloat16)
    assert torch.equal(loss(low, y), loss(low.float(), y))
    torch.testing.assert_close(
        loss(low, y).mean() if reduction == 'none' else loss(low, y) / len(y),
        bound.loss_func(low, y),
        rtol=1e-5,
        atol=1e-6,
    )


def test_autocast_around_loss_and_decisions(every):
    """As fastai has it: the loss stands inside the autocast block; an operation that autocast would lower is not
    part of it"""
    bound, y = every
    pred = logits(bound)
    with autocast('cpu', dtype=torch.bfloat16):
        total, grad = grad_of(bound, pred, y)
        acts = bound.loss_func.activation(pred)
        dec = bound.loss_func.decodes(acts)
        sums = bound.loss_func.sums(pred, y)
    want, g = grad_of(bound, pred, y)
    torch.testing.assert_close(total, want, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, g, rtol=1e-5, atol=1e-8)
    assert (
        torch.equal(acts, bound.loss_func.activation(pred))
        and torch.equal(dec, bound.loss_func.decodes(acts))
        and torch.equal(sums, bound.loss_func.sums(pred, y))
    )


# double precision ---------------------------------------------------------------------------------------------------


def test_double_all_through(every):
    bound, y = every
    pred = logits(bound)
    (a, ga), (b, gb) = grad_of(bound, pred.double(), y.double()), grad_of(bound, pred, y)
    assert a.dtype == ga.dtype == torch.float64
    torch.testing.assert_close(a.float(), b, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ga.float(), gb, rtol=1e-4, atol=1e-6)
    loss = bound.loss_func
    assert loss(pred.double(), y).dtype == torch.float64 and loss(pred, y.double()).dtype == torch.float32
    for f in (loss.per_task, loss.per_sample):
        torch.testing.assert_close(
            f(pred.double(), y.double()).float(), f(pred, y), rtol=1e-4, atol=1e-5, equal_nan=True
        )
    acts = loss.activation(pred.double())
    assert acts.dtype == torch.float64
    torch.testing.assert_close(loss.decodes(acts).float(), loss.decodes(loss.activation(pred)), rtol=1e-5, atol=1e-6)


# learners -----------------------------------------------------------------------------------------------------------


class Half(MixedPrecision):
    "Mixed precision on a CPU: bfloat16, with a scaler of losses if asked."

    name = 'mixed_precision'

    def __init__(self, scaler=False, seen=None):
        super().__init__('bf16')
        self.scaler_on, self.seen = scaler, set() if seen is None else seen

    def before_fit(self):
        self.autocast, self.learn.scaler, self.scales = (
            autocast('cpu', dtype=torch.bfloat16),
            GradScaler('cpu', init_scale=1024.0, enabled=self.scaler_on),
            [],
        )

    def after_pred(self):
        self.seen.add(self.pred.dtype)
        super().after_pred()


class Picture:
    "Row → a picture whose first channel tells the gate."

    def __init__(self, dtype=torch.float32):
        self.dtype = dtype

    def __call__(self, r):
        g = torch.Generator().manual_seed(int(r.name))
        x = torch.randn(3, 8, 8, generator=g)
        x[0] += 2 * (r['gate'] is True or r['gate'] == 1) - 1
        return x.to(self.dtype).as_subclass(TensorImage)  # `TensorImage(x)` would make it single


def make(
    *cbs,
    dtype=torch.float32,
    kinds=('weighed', 'focal', 'whole', 'single', 'tags', 'l1', 'huber', 'ordinal', 'count', 'points'),
    branches=False,
    bs=16,
    net=None,
    **kwargs,
):
    set_seed(3)
    dls = DataBlock(
        blocks=(TransformBlock, flow(kinds)), get_x=Picture(dtype), splitter=RandomSplitter(seed=0)
    ).dataloaders(table(80), bs=bs, num_workers=0, device='cpu')
    body = nn.Sequential(ConvLayer(3, 8), ConvLayer(8, 8, stride=2))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, dls.c))
    return equip(Learner(dls, nn.Sequential(body, head) if net is None else net(dls), cbs=list(cbs)), **kwargs)


def quietly(learn, f, *args, **kwargs):
    with learn.no_bar(), learn.no_logging():
        return f(*args, **kwargs)


def fitted(learn, n=2):
    set_seed(4)
    quietly(learn, learn.fit, n, 1e-3)
    return learn


def steps(learn):
    return np.array([float(x) for x in learn.recorder.losses])


@pytest.mark.trains
@pytest.mark.parametrize(
    'name, scaler',
    [(None, True), (None, False), *[(m, i % 2 == 0) for i, m in enumerate([*METHODS, 'mgda', 'upgrad'])]],
)
def test_training_in_bfloat16(name, scaler):
    half = Half(scaler)
    a, b = fitted(make(balance=name), 1), fitted(make(half, balance=name), 1)
    assert half.seen == {torch.bfloat16} and all(
        p.dtype == torch.float32 and p.isfinite().all() for p in b.model.parameters()
    )
    x, y = steps(a), steps(b)
    assert np.isfinite(y).all() and not np.array_equal(x, y) and np.abs(x / y - 1).max() < 0.05
    scores = quietly(b, b.evaluate)
    assert np.isfinite(scores.metric_res[scores.num_samples > 5].astype(float)).mean() > 0.8


@pytest.mark.parametrize('how', ['to_fp16', 'to_bf16'])
def test_fastais_callbacks_without_cuda(how):
    "Autocast and scaler are made for CUDA: on a CPU they do nothing, and nothing changes."
    a, b = fitted(make()), fitted(getattr(make(), how)())
    np.testing.assert_allclose(steps(a), steps(b), rtol=1e-5)


def with_branches(dls):
    body = nn.Sequential(ConvLayer(3, 8), ConvLayer(8, 8, stride=2))
    return nn.Sequential(
        body,
        conditional_head(
            dls.flow,
            torch.zeros(2, 8, 4, 4),
            dict(neck=Branch(8, only_needed=True)),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(8, 16)),
        ),
    )


class WithBranches:
    """A learner whose inner flow reads a branch that runs where it is needed, and whose head uses tasks of every
    activation"""

    def __call__(self, *cbs):
        set_seed(3)
        gate, k, n, st = BinaryBlock('gate'), SingleLabelBlock('k'), CountBlock('n'), OrdinalBlock('stars')
        f = Flow(
            'f',
            gate,
            k,
            n,
            st,
            BoundedRegressionBlock('x', uses=[gate, k, n, st]),
            Flow('inner', BinaryBlock('b0', hidden=4), BoundedRegressionBlock('z'), features='neck') | gate,
        )
        dls = DataBlock(blocks=(TransformBlock, f), get_x=Picture(), splitter=RandomSplitter(seed=0)).dataloaders(
            table(80, gaps=0.1), bs=16, num_workers=0, device='cpu'
        )
        return equip(Learner(dls, with_branches(dls), cbs=[RunNeeded(), *cbs]))


@pytest.mark.trains
def test_branches_in_bfloat16():
    half = Half()
    a, b = fitted(WithBranches()()), fitted(WithBranches()(half))
    assert half.seen <= {torch.bfloat16, torch.float32} and np.abs(steps(a) / steps(b) - 1).max() < 0.05
    acts = quietly(b, b.get_preds)[0]
    assert acts.shape[1] == b.dls.c and np.isfinite(quietly(b, b.validate)[0])
    reached = b.loss_func.decodes(acts)[:, 1] > 0
    assert (
        b.loss_func.decodes(acts)[:, 0][reached].isfinite().all()
    )  # a branch that did not run leaves NaN, where nobody is to read


@pytest.mark.parametrize('make', [make, WithBranches()], ids=['plain', 'branches'])
def test_channels_last(make):
    a, b = fitted(make()), make()
    b.to_channelslast(use_amp=False)
    fitted(b)
    convs = [m.weight for m in b.model.modules() if isinstance(m, nn.Conv2d)]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in convs)
    np.testing.assert_allclose(steps(a), steps(b), rtol=2e-3)
    x = torch.randn(5, 3, 8, 8)
    net = b.model.eval()
    for m in net.modules():
        if hasattr(m, 'context'):
            m.context = None
    with torch.no_grad():
        torch.testing.assert_close(net(x.to(memory_format=torch.channels_last)), net(x), rtol=1e-4, atol=1e-5)


class Told(Callback):
    "fastai's recorder keeps a running mean in single precision, and takes no other losses."

    order = -1

    def after_loss(self):
        kept.append(self.learn.loss.dtype)
        self.learn.loss = self.learn.loss.float()


kept = []


def test_double_inputs_and_network():
    a, b = fitted(make()), make(Told(), dtype=torch.float64)
    b.model.double()
    fitted(b)
    assert set(kept) == {torch.float64} and all(p.dtype == torch.float64 for p in b.model.parameters())
    np.testing.assert_allclose(steps(a), steps(b), rtol=1e-3)
    acts, y, dec = quietly(b, b.get_preds, with_decoded=True)
    assert acts.dtype == torch.float64 and acts.isfinite().all()
    x, z = (quietly(l, l.evaluate).metric_res for l in (a, b))
    np.testing.assert_allclose(x.astype(float), z.astype(float), atol=0.02)
    assert len(quietly(b, b.predict_df, table(5))) == 5


def test_a_network_in_half_precision():
    """No autocast: the network's own numbers are half. It trains, and decides as the same weights do in single
    precision, nearly."""
    learn = fitted(make(), 3)
    x = torch.stack([Picture()(r) for _, r in table(80).iloc[:24].iterrows()]).as_subclass(torch.Tensor)
    y, net = torch.stack([learn.dls.train_ds[i][1] for i in range(24)]).as_subclass(torch.Tensor), learn.model.eval()
    with torch.no_grad():
        want = learn.loss_func.activation(net(x))
    net.to(torch.bfloat16)
    low = net(x.bfloat16())
    learn.loss_func(low, y).backward()
    assert low.dtype == torch.bfloat16 and all(
        p.grad.dtype == torch.bfloat16 and p.grad.isfinite().all() for p in net.parameters()
    )
    acts = learn.loss_func.activation(low.detach())
    assert acts.dtype == torch.float32 and (acts - want).abs().mean() < 0.01


# devices without float64 --------------------------------------------------------------------------------------------


class NoDoubles(TorchFunctionMode):
    """Tensors that `mark` has put "on a device" stay there through every call but `.cpu()` and the like; what
    would make a float64 of them, there, raises as MPS does."""

    def __init__(self, factories=True):
        super().__init__()
        self.on, self.made, self.factories = {}, 0, factories

    def mark(self, x):
        self.on[x.untyped_storage().data_ptr()] = x
        return x  # by memory: views and subclasses are there as well

    def here(self, x):
        return x.untyped_storage().data_ptr() in self.on

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, flat = (
            getattr(func, '__name__', ''),
            [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, torch.Tensor)],
        )
        if name == 'untyped_storage' or name == '__get__':
            return func(*args, **kwargs)
        here, res = any(map(self.here, flat)), func(*args, **kwargs)
        if name == 'cpu' or name == 'to' and 'cpu' in map(str, [*args[1:], kwargs.get('device')]):
            return res.clone() if here else res  # other memory
        if self.factories and isinstance(kwargs.get('device'), torch.device):
            here = True  # made where some tensor is
        for r in tree_flatten(res)[0] if here else ():
            if not isinstance(r, torch.Tensor):
                continue
            if r.dtype == torch.float64:
                raise TypeError(
                    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64"
                )
            if r.numel():
                self.mark(r)
                self.made += 1
        return res


def test_the_watch_bites():
    x = torch.ones(2)
    with NoDoubles() as m:
        m.mark(x)
        for f in (
            lambda: x.double(),
            lambda: (x * 2)[:1].to(torch.float64),
            lambda: torch.as_tensor(x + 1, dtype=torch.float64),
            lambda: torch.rand(2, device=x.device, dtype=torch.float64),
            lambda: torch.mul(x, torch.ones(2, dtype=torch.float64)),
            lambda: x.as_subclass(TensorImage).double(),
        ):
            with pytest.raises(TypeError, match='MPS'):
                f()
        assert x.cpu().double().dtype == (x + 1).cpu().double().dtype == doubles(x).dtype == torch.float64


def test_no_double_on_a_device(every):
    bound, y = every
    loss = bound.loss_func.clone()
    loss.temperatures = {'gate': 2.0, 'all.single': 0.7}
    loss.thresholds['gate'] = torch.tensor([0.4])
    pred = logits(bound)
    with NoDoubles() as m:
        for b in loss.buffers():
            m.mark(b)
        for t in (y, pred, loss.thresholds['gate']):
            m.mark(t)
        loss.activation(pred)
        loss.per_task(pred, y)
        loss.per_sample(pred, y)
        loss.task_losses(pred, y)
        acts = loss.activation(pred)
        dec = loss.decodes(acts)
        bound.reached(dec)
        bound.false_conditions(y)
        bound.to_units(dec)
        bound.diagrams(acts, loss.decide(acts))
        Accumulator(bound).pack(pred, y, loss)
        p = FlowPrediction(bound, dec[0], acts[0], pred[0])
        p.probabilities, p.marginals, p.tree(), repr(p)
        z = m.mark(pred.clone().requires_grad_())
        loss.decisions.reset_temperatures()
        loss(z, y).backward()
        for method in METHODS.values():
            w = method()
            s = {
                k: m.mark(t)
                for k, t in w.state(
                    len(bound.paths), torch.tensor([b.nll is not None for b in bound.plan.blocks])
                ).items()
            }
            l, there = loss.task_losses(z, y)
            w.total(s, l, there, loss.task_weights())
            w.note(s, l.detach(), there)
            w.epoch(s)
        assert m.made > 300 and m.here(dec)
    assert loss.thresholds['gate'].item() == pytest.approx(
        1 / (1 + (0.6 / 0.4) ** 2)
    )  # of logits over a temperature of 2


def test_balancing_from_gradients_makes_no_double_on_a_device():
    from fastai_condmtl.loss.weighting import balancer

    pytest.importorskip('torchjd')
    w, j = balancer('mgda'), torch.randn(5, 30)
    want = w.solve(j @ j.T, torch.ones(5, dtype=torch.bool))
    with NoDoubles(factories=False) as m:
        got = w.solve(m.mark(j) @ j.T, m.mark(torch.ones(5, dtype=torch.bool)))
    assert torch.equal(got, want)


def test_masked_words_make_no_double_on_a_device():
    vocab = ['xxunk', 'xxpad', MASK, *(f'w{i}' for i in range(200))]
    bound = Flow('f', MaskedLMBlock('word', 'text', vocab=vocab, n_masks=5)).bind(pd.DataFrame(dict(text=['a'] * 6)))
    tfm = MaskTokens()

    class Items:
        pass

    items = Items()
    items.flow, items.vocab = bound, vocab
    tfm.setup(items)
    x, y = torch.randint(3, len(vocab), (6, 40)), torch.ones(6, 2, 5)
    for split in (0, 1):
        with NoDoubles() as m:
            for t in (x, y, tfm.can, tfm.words):
                m.mark(t)
            xx, yy = tfm((x, y), split_idx=split)
        shown, whole, asked = unpack(xx, len(vocab))
        assert (
            torch.equal(whole, x)
            and asked.any()
            and (asked.sum(1) <= 5).all()
            and shown.min() >= 0
            and shown.max() < len(vocab)
        )
    u = text_random(torch.randint(3, 30000, (300, 200)), torch.zeros(300, 200, dtype=torch.bool), 7)
    assert (
        u.dtype == torch.float32
        and u.min() >= 0
        and u.max() < 1
        and abs(u.mean() - 0.5) < 0.01
        and (u * 2**24 == (u * 2**24).floor()).all()
    )
    h = torch.histc(u, 20, 0, 1) / u.numel()
    assert (h - 0.05).abs().max() < 0.003


def test_vocabularies_beyond_32_bits():
    "Two words make one number: with 70,000 words that is more than 32 bits hold"
    n = 70_000
    vocab = ['xxunk', 'xxpad', MASK, *(f'w{i}' for i in range(n - 3))]
    bound = Flow('f', MaskedLMBlock('word', 'text', vocab=vocab, n_masks=4)).bind(pd.DataFrame(dict(text=['a'])))
    tfm = MaskTokens()

    class Items:
        pass

    items = Items()
    items.flow, items.vocab = bound, vocab
    tfm.setup(items)
    x = torch.randint(n - 500, n, (8, 30), dtype=torch.int32)
    x[:, 3] = 2  # a mask that stands in the text
    for b in ((x, torch.ones(8, 2, 4)), (x,)):
        shown, whole, asked = unpack(tfm(b, split_idx=1)[0], n)
        assert torch.equal(whole.int(), x) and asked.any() and shown.min() >= 0 and shown.max() < n


# a GPU that is only pretended ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'device',
    [
        'meta',
        pytest.param(
            'cuda', marks=pytest.mark.skipif(not torch.backends.cuda.is_built(), reason='this torch knows no CUDA')
        ),
    ],
)
@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split('.')[:2])) < (2, 9),
    reason='FakeTensorMode of an older torch does not take subclasses of tensors',
)
def test_nothing_waits_or_strays_on_a_pretended_device(device):
    "Tensors without numbers: an operation on two devices is an error, and so is whatever must know a number to go on"
    bound = flow().bind(table())
    with FakeTensorMode(allow_non_fake_inputs=False):
        y = torch.zeros(40, 2, bound.n_targets, device=device)
        with pytest.raises((DynamicOutputShapeException, DataDependentOutputException)):
            (y > 0).nonzero()
        with pytest.raises((DynamicOutputShapeException, DataDependentOutputException)):
            float(y.sum())
        with pytest.raises(RuntimeError, match='device'):
            y + torch.zeros(40, 2, bound.n_targets)
        loss = bound.loss_func
        loss._apply(lambda t: t.to(device))
        pred = torch.randn(40, bound.c, device=device, requires_grad=device == 'meta')  # autograd asks CUDA itself
        for out in (
            loss(pred, y),
            loss.per_task(pred, y),
            loss.per_sample(pred, y),
            *loss.task_losses(pred, y),
            loss.sums(pred, y),
            loss.activation(pred),
            loss.decisions.tempered(pred),
            Accumulator(bound).pack(pred, y),
        ):
            assert out.device.type == device and out.dtype != torch.float64
        reached = bound.reached(loss.decide(loss.activation(pred.detach())))
        assert (
            reached.shape == (40, len(bound.paths))
            and reached.device.type == bound.false_conditions(y).device.type == device
        )
        assert (
            loss.layout.column_tasks.device.type == device
        )  # `decodes` is `decide` and `reached`, a column each; a type of its own, which fake tensors cannot have
        if device == 'meta':
            loss(pred.half(), y).backward()
            assert pred.grad.shape == pred.shape
        loss.reduction = 'none'
        assert loss(pred.half(), y).shape == (40,)
