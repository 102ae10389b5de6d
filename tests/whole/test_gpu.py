"""What runs on a GPU: each body runs on the CPU too, so that none is written blind; numbers of the GPU are
compared with the CPU's."""

import copy
from contextlib import contextmanager
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision  # noqa: F401
from fastai.callback.channelslast import ChannelsLast  # noqa: F401
from fastai.data.block import DataBlock, TransformBlock
from fastai.data.transforms import RandomSplitter
from fastai.layers import ConvLayer
from fastai.learner import Learner, load_learner
from fastai.torch_core import TensorImage, set_seed
from fastai_condmtl.all import (
    BinaryBlock,
    Branch,
    Checkpoint,
    CountBlock,
    Flow,
    MultiLabelBlock,
    OrdinalBlock,
    SingleLabelBlock,
    UnboundedRegressionBlock,
    conditional_head,
    equip,
)
import fastai_condmtl.callback.parallel  # noqa: F401  learn.to_parallel(balance_memory=)
from fastai_condmtl.learn.heads import NeededRows, RunNeeded
from fastai_condmtl.loss.inputs import TaskSums
from fastai_condmtl.learn.accumulate import Accumulator
from fastai_condmtl.core.prediction import FlowPrediction
from fastai_condmtl.text.masks import MASK, MaskedLMBlock, MaskTokens, text_random, unpack
from kinds_of_task import bound_with_labels, logits, simulate_devices

N_GPUS = torch.cuda.device_count()
cuda = pytest.param(
    'cuda', marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')]
)
two_gpus = pytest.param(
    'cuda', marks=[pytest.mark.gpu, pytest.mark.skipif(N_GPUS < 2, reason=f'needs two GPUs, and there are {N_GPUS}')]
)
pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(autouse=True)
def _single_precision():
    "Convolutions as the CPU has them, not in TF32 (products are so by default)"
    was, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = was


@pytest.fixture(params=['cpu', cuda])
def device(request):
    return request.param


@pytest.fixture
def every(device):
    "Every kind of task, its labels and logits, here and on the CPU"
    bound, y = bound_with_labels()
    pred = logits(bound)
    here, yy = bound_with_labels()
    here.loss_func.to(device)
    return (here, yy.to(device), pred.to(device)), (bound, y, pred)


class Numbers:
    def __call__(self, r):
        x = torch.zeros(3, 8, 8)
        for k, c in enumerate('pqr'):
            x[k] = r[c]
        return TensorImage(x + 0.1 * torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(int(r.name))))


def table(n=160):
    rng = np.random.default_rng(0)
    df = pd.DataFrame(rng.normal(size=(n, 3)), columns=list('pqr'))
    df['seen'] = np.where(rng.random(n) < 0.9, (df.p > -0.3).astype(float), np.nan)
    df['kind'], df['tags'] = (
        np.where(df.q > 0.4, 'x', np.where(df.r > 0, 'y', 'z')),
        np.where(df.q > 0, np.where(df.r > 0, 'warm,big', 'warm'), ''),
    )
    df['size'], df['n'], df['stars'] = (
        df.r,
        np.floor(np.exp(df.q / 2)),
        np.clip(np.round(df.p * 1.2) + 3, 1, 5).astype(int),
    )
    df['more'] = np.where(df.p + df.q > 0, 1.0, 0.0)
    return df


def flow():
    seen, kind = BinaryBlock('seen'), SingleLabelBlock('kind')
    return Flow(
        'f',
        seen,
        kind | seen,
        MultiLabelBlock('tags'),
        CountBlock('n'),
        OrdinalBlock('stars'),
        Flow('g', UnboundedRegressionBlock('size'), BinaryBlock('more', uses=kind), features='neck')
        | (seen & kind.ne('z')),
    )


def make(device, *cbs, norm=True, only_needed=True, **kwargs):
    set_seed(1)
    dls = DataBlock(blocks=(TransformBlock, flow()), get_x=Numbers(), splitter=RandomSplitter(seed=0)).dataloaders(
        table(), bs=32, num_workers=0, device=torch.device(device, 0) if device == 'cuda' else torch.device(device)
    )
    body = nn.Sequential(
        *([ConvLayer(3, 8)] if norm else [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()]),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
    )
    head = conditional_head(
        dls.flow,
        32,
        dict(neck=Branch(nn.Sequential(nn.Linear(32, 16), nn.ReLU()), only_needed)),
        nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1)),
    )
    return equip(
        Learner(dls, nn.Sequential(body, head), lr=1e-2, cbs=[*([RunNeeded()] if only_needed else []), *cbs]), **kwargs
    )


def quietly(learn, f, *args, **kwargs):
    with learn.no_bar(), learn.no_logging():
        return f(*args, **kwargs)


def fit(learn, n=2, seed=2):
    set_seed(seed)
    quietly(learn, learn.fit, n)
    return learn


def close(a, b, rtol=1e-4, atol=1e-5):
    torch.testing.assert_close(torch.as_tensor(a).cpu(), torch.as_tensor(b).cpu(), rtol=rtol, atol=atol, equal_nan=True)


class Waits(TorchDispatchMode):
    "An operation that must know a number to go on is an error."

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        by_mask = f.overloadpacket.__name__ in ('index', 'index_put_', 'index_put') and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if by_mask or f.overloadpacket.__name__ in (
            '_local_scalar_dense',
            'nonzero',
            'masked_select',
            'is_nonzero',
            '_unique2',
        ):
            raise AssertionError(f'{f} waits for the device')
        return f(*args, **(kwargs or {}))


@contextmanager
def no_waiting(device):
    if device == 'cpu':
        with Waits():
            yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


# the loss and its kin -----------------------------------------------------------------------------------------------


def test_loss_and_decisions_are_the_cpus(every):
    (here, y, pred), (bound, y0, pred0) = every
    z, z0 = pred.clone().requires_grad_(), pred0.clone().requires_grad_()
    a, b = here.loss_func(z, y), bound.loss_func(z0, y0)
    a.backward()
    b.backward()
    assert a.device == pred.device
    close(a, b)
    close(z.grad, z0.grad, atol=1e-7)
    for name in ('per_task', 'per_sample', 'sums'):
        close(getattr(here.loss_func, name)(pred, y), getattr(bound.loss_func, name)(pred0, y0))
    acts, acts0 = here.loss_func.activation(pred), bound.loss_func.activation(pred0)
    close(acts, acts0)
    for l in (here.loss_func, bound.loss_func):
        l.thresholds['gate'], l.thresholds['all.tags'] = 0.4, torch.tensor([0.3, 0.5, 0.6])
    dec, dec0 = here.loss_func.decodes(acts), bound.loss_func.decodes(acts0)
    assert dec.device == pred.device
    close(dec.as_subclass(torch.Tensor), dec0.as_subclass(torch.Tensor))
    assert torch.equal(here.false_conditions(y).cpu(), bound.false_conditions(y0)) and torch.equal(
        here.reached(dec).cpu(), bound.reached(dec0)
    )
    np.testing.assert_allclose(
        here.diagrams(acts, here.loss_func.decide(acts)),
        bound.diagrams(acts0, bound.loss_func.decide(acts0)),
        atol=1e-5,
    )
    p, q = FlowPrediction(here, dec[0], acts[0], pred[0]), FlowPrediction(bound, dec0[0], acts0[0], pred0[0])
    assert str(p.tree()) == str(q.tree()) and p.marginals['gate'].reached == q.marginals['gate'].reached
    assert p.probabilities['gate'] == pytest.approx(q.probabilities['gate'], abs=1e-5)
    close(here.to_units(dec).as_subclass(torch.Tensor), bound.to_units(dec0).as_subclass(torch.Tensor), atol=1e-3)


def test_temperatures(every):
    (here, y, pred), (bound, y0, pred0) = every
    for b in (here, bound):
        b.loss_func.temperatures = {'gate': 2.0, 'all.single': 0.5}
    close(here.loss_func.activation(pred), bound.loss_func.activation(pred0))
    here.loss_func.thresholds['gate'] = torch.tensor(0.4, device=pred.device)
    with pytest.warns(UserWarning, match='dropped'):
        here.loss_func(pred.clone().requires_grad_(), y)
    assert not here.loss_func.temperatures and float(here.loss_func.thresholds['gate']) == pytest.approx(
        1 / (1 + 1.5**2)
    )


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_nothing_waits_for_the_device(every, device, dtype):
    (here, y, pred), _ = every
    loss, acc = here.loss_func, Accumulator(here)

    def step():
        z = pred.to(dtype).requires_grad_()
        loss(z, y).backward()
        losses, there = loss.task_losses(z, y)
        losses.sum().backward()
        loss(torch.stack([loss.sums(z[:9], y[:9]), loss.sums(z[9:], y[9:])]).as_subclass(TaskSums), y).backward()
        return acc.pack(z, y), loss.per_task(z, y), loss.activation(z)

    step()  # libraries load at first use
    with no_waiting(device):
        out = step()
    assert all(o.device == pred.device for o in out)


def test_the_watch_bites(device):
    x = torch.ones(3, device=device)
    with no_waiting(device):
        for f in (lambda: x.sum().item(), lambda: x[x > 0], lambda: x.nonzero()):
            with pytest.raises((RuntimeError, AssertionError)):
                f()


def test_compiled_loss(device):
    bound, y = bound_with_labels(['weighed', 'focal', 'single', 'tags', 'huber', 'count'])
    loss, y, pred = bound.loss_func.to(device), y.to(device), logits(bound).to(device)
    torch._dynamo.reset()
    fast = torch.compile(
        loss, fullgraph=True, backend='inductor' if device == 'cuda' else 'aot_eager'
    )  # on a CPU the other asks for a compiler of C++
    z, w = pred.clone().requires_grad_(), pred.clone().requires_grad_()
    a, b = fast(z, y), loss(w, y)
    a.backward()
    b.backward()
    close(a, b)
    close(z.grad, w.grad, atol=1e-6)
    torch._dynamo.reset()


def test_masked_words(device):
    vocab = ['xxunk', 'xxpad', MASK, *(f'w{i}' for i in range(200))]
    bound = Flow('f', MaskedLMBlock('word', 'text', vocab=vocab, n_masks=5)).bind(pd.DataFrame(dict(text=['a'] * 6)))

    class Items:
        pass

    items = Items()
    items.flow, items.vocab = bound, vocab
    x, y, res = torch.randint(3, len(vocab), (6, 40)), torch.ones(6, 2, 5), []
    for d in ('cpu', device):
        tfm = MaskTokens()
        tfm.setup(items)
        res.append(tfm((x.to(d), y.to(d)), split_idx=1))
        shown, whole, asked = unpack(tfm((x.to(d), y.to(d)), split_idx=0)[0], len(vocab))
        assert torch.equal(whole.cpu(), x) and asked.any() and shown.max() < len(vocab)
    assert torch.equal(res[0][0].cpu(), res[1][0].cpu()) and torch.equal(
        res[0][1].cpu(), res[1][1].cpu()
    )  # the same masks on any device
    u = text_random(x.to(device), (x == 1).to(device), 3)
    assert torch.equal(u.cpu(), text_random(x, x == 1, 3))


def test_an_epoch_of_rows_waits_for_nothing(every, device):
    "What the metrics need stays on the device, and comes to the CPU in one copy when it is asked for"
    (here, y, pred), (bound, y0, pred0) = every
    acc, expected = Accumulator(here), Accumulator(bound)
    learn = SimpleNamespace(loss_func=here.loss_func)
    learn.pred, learn.yb = pred.clone(), (y,)
    acc.accumulate(learn)  # libraries load at first use
    acc.reset()
    with no_waiting(device):
        for _ in range(3):
            learn.pred = pred.clone()
            acc.accumulate(learn)
    expected.parts += [expected.pack(pred0, y0)] * 3
    assert acc.parts[0].device == pred.device
    for path in bound.paths:
        rows, of_cpu = acc.task(path), expected.task(path)
        assert np.array_equal(rows.values, of_cpu.values, equal_nan=True) and np.array_equal(rows.mask, of_cpu.mask)
        np.testing.assert_allclose(rows.summary, of_cpu.summary, atol=1e-5)


# learners -----------------------------------------------------------------------------------------------------------


class Types(Callback):
    "What the network itself gives, before it is made single again."

    order = 0

    def __init__(self):
        self.kinds = set()

    def after_pred(self):
        if self.training:
            self.kinds.add((self.pred.dtype, self.pred.device.type))


@pytest.mark.trains
@pytest.mark.parametrize(
    'how, dtype', [('to_fp16', torch.float16), ('to_bf16', torch.bfloat16), ('to_channelslast', torch.float16)]
)
@pytest.mark.parametrize('balance', [None, 'uncertainty', 'famo'])
def test_mixed_precision(device, how, dtype, balance):
    types = Types()
    learn = make(device, types, balance=balance)
    getattr(learn, how)()
    fit(learn, 3)
    losses = [float(x) for x in learn.recorder.losses]
    assert types.kinds == {(dtype if device == 'cuda' else torch.float32, device)}
    assert (
        np.isfinite(losses).all()
        and np.mean(losses[-4:]) < np.mean(losses[:4])
        and all(p.isfinite().all() and p.dtype == torch.float32 for p in learn.model.parameters())
    )
    if how == 'to_channelslast':
        assert next(m for m in learn.model.modules() if isinstance(m, nn.Conv2d)).weight.is_contiguous(
            memory_format=torch.channels_last
        )
    plain = fit(make(device, balance=balance), 3)
    np.testing.assert_allclose(losses[0], float(plain.recorder.losses[0]), rtol=0.02)
    res = quietly(learn, learn.evaluate)
    assert np.isfinite(res.metric_res[res.num_samples > 5].astype(float)).all()


@pytest.fixture(scope='module')
def trained():
    "Weights, the CPU's predictions and what follows from them"
    learn = fit(make('cpu'), 4)
    return copy.deepcopy(learn.model.state_dict()), learn


def loaded(device, state):
    learn = make(device)
    learn.model.load_state_dict(state)
    learn.model.to(learn.dls.device)
    return learn


@pytest.mark.trains
def test_thresholds_evaluation_and_tables_are_the_cpus(device, trained):
    state, cpu = trained
    learn = loaded(device, state)
    here, there = (quietly(l, l.search_thresholds) for l in (learn, loaded('cpu', state)))
    np.testing.assert_allclose(here.threshold.astype(float), there.threshold.astype(float), atol=1e-3)
    np.testing.assert_allclose(here.cross_fit_score.astype(float), there.cross_fit_score.astype(float), atol=1e-3)
    cpu = loaded('cpu', state)
    cpu.loss_func.thresholds = {p: torch.as_tensor(t).cpu() for p, t in learn.loss_func.thresholds.items()}
    a, b = (quietly(l, l.evaluate) for l in (learn, cpu))
    pd.testing.assert_frame_equal(
        pd.DataFrame(a)[['task_path', 'metric_name', 'num_samples']],
        pd.DataFrame(b)[['task_path', 'metric_name', 'num_samples']],
    )
    x, y = (quietly(l, l.get_preds, with_decoded=True) for l in (learn, cpu))
    close(x[0], y[0], 1e-3, 1e-4)
    (m, n), df = (quietly(l, l.get_marginals) for l in (learn, cpu)), table(20)
    np.testing.assert_allclose(m.to_numpy(float), n.to_numpy(float), atol=1e-3)
    assert quietly(learn, learn.predict_df, df).shape == quietly(cpu, cpu.predict_df, df).shape
    assert 'seen' in str(quietly(learn, learn.explain, df[:2])) and quietly(learn, learn.predict, df.iloc[0])[
        0
    ].probabilities['seen'] == pytest.approx(quietly(cpu, cpu.predict, df.iloc[0])[0].probabilities['seen'], abs=1e-3)
    table_ = quietly(learn, learn.calibrate, min_support=10)
    assert (
        np.isfinite(table_.nll_after.astype(float)).all()
        and quietly(learn, learn.get_preds)[0].isfinite().float().mean() > 0.5
    )


@pytest.mark.trains
def test_branches_run_where_they_are_needed(device, trained):
    state, cpu = trained
    learn = loaded(device, state)
    b = learn.dls.train.one_batch()
    x, y = (t.as_subclass(torch.Tensor) for t in b)
    head, loss, model = learn.model[1], learn.loss_func.to(x.device), learn.model.eval()
    grads = []
    for context in (None, NeededRows(len(x), y[:, 1])):
        model.zero_grad()
        head.context = context
        total = loss(model(x), y)
        total.backward()
        grads.append([total.detach(), *(p.grad.clone() for p in model.parameters())])
    assert 0 < head.ran['neck'] < len(x)
    for p, q in zip(*grads):
        close(p, q, 1e-3, 1e-5)
    head.context = NeededRows(len(x), None, loss)  # no labels: what can be reached
    with torch.no_grad():
        some = loss.decodes(loss.activation(model(x))).as_subclass(torch.Tensor)
    head.context = None
    with torch.no_grad():
        all_ = loss.decodes(loss.activation(model(x))).as_subclass(torch.Tensor)
    reached = all_[:, 1] > 0
    assert torch.equal(some[:, 1], all_[:, 1])
    close(
        some[:, 0][reached], all_[:, 0][reached]
    )  # the order of a sum, hence its last bit, depends on the number of rows


@pytest.mark.trains
def test_exported_here_opened_on_a_cpu(device, trained, tmp_path):
    learn = loaded(device, trained[0])
    want = quietly(learn, learn.predict_df, table(10))
    learn.export(tmp_path / 'a.pkl')
    back = load_learner(tmp_path / 'a.pkl', cpu=True)
    pd.testing.assert_frame_equal(quietly(back, back.predict_df, table(10)), want, check_exact=False, atol=1e-2)


class Stop(Callback):
    def __init__(self, at):
        self.at, self.n = at, 0

    def after_batch(self):
        if not self.training:
            return
        self.n += 1
        if self.n == self.at:
            raise KeyboardInterrupt


@pytest.mark.trains
@pytest.mark.parametrize('balance', [None, 'famo'])
def test_resumed_training(device, tmp_path, balance):
    whole = fit(make(device, balance=balance), 3)
    broken = make(device, balance=balance)
    with pytest.raises(KeyboardInterrupt):
        set_seed(2)
        with broken.no_bar(), broken.no_logging():
            broken.fit(3, cbs=[Checkpoint(tmp_path / 'last.pth'), Stop(6)])
    again = make(device, balance=balance)
    set_seed(99)
    with again.no_bar(), again.no_logging():
        again.fit(3, cbs=Checkpoint(tmp_path / 'last.pth'))
    for (k, p), q in zip(whole.model.state_dict().items(), again.model.state_dict().values()):
        assert p.device == q.device and p.device.type == device
        close(p, q, *((0, 0) if device == 'cpu' else (1e-2, 1e-3)))
    assert len(again.recorder.values) == 3


# several devices ----------------------------------------------------------------------------------------------------


@pytest.mark.trains
@pytest.mark.parametrize('device', ['cpu', two_gpus])
@pytest.mark.parametrize('mixed', [False, True])
def test_two_devices(device, mixed, monkeypatch):
    "The CPU plays two, with torch's own replicas."
    one = make(device, norm=False)
    if mixed:
        one.to_bf16()
    fit(one)
    if device == 'cpu':
        simulate_devices(monkeypatch)
    for balance_memory in (False, True):
        two = make(device, norm=False)
        if mixed:
            two.to_bf16()
        with two.parallel_ctx([0, 1], balance_memory=balance_memory):
            fit(two)
        tol = (1e-3, 1e-4) if not mixed or device == 'cpu' else (5e-2, 1e-2)
        for p, q in zip(one.model.parameters(), two.model.parameters()):
            close(p, q, *tol)
        np.testing.assert_allclose(
            np.array(one.recorder.values, dtype=float),
            np.array(two.recorder.values, dtype=float),
            rtol=0.05 if mixed else 1e-2,
            atol=0.05 if mixed else 1e-3,
        )


@pytest.mark.trains
def test_one_device_in_parallel(device):
    one, same = fit(make(device)), make(device)
    with same.parallel_ctx([0], balance_memory=True):
        fit(same)
    for p, q in zip(one.model.parameters(), same.model.parameters()):
        close(p, q, 1e-3, 1e-4)
    assert next(same.model.parameters()).device.type == device


@pytest.mark.parametrize('device', ['cpu', two_gpus])
def test_the_first_device_holds_less(device, monkeypatch):
    "Thousands of logits a row stay where they are"
    C, n = 4000, 256
    bound = Flow('f', *[SingleLabelBlock(f'k{i}', vocab=range(C)) for i in range(4)]).bind(
        pd.DataFrame({f'k{i}': [1] for i in range(4)})
    )
    gathered = simulate_devices(monkeypatch) if device == 'cpu' else None
    y = torch.stack([torch.randint(0, C, (n, 4)).float(), torch.ones(n, 4)], 1).to(device)
    x, net, loss = torch.randn(n, 8).to(device), nn.Linear(8, bound.c).to(device), bound.loss_func.to(device)
    from fastai_condmtl.callback.parallel import BalancedParallel

    peaks, grads = [], []
    for asked in (lambda: None, lambda: (loss, y)):
        model = BalancedParallel(net, asked, [0, 1])
        net.zero_grad()
        if device == 'cuda':
            torch.cuda.reset_peak_memory_stats(0)
        out = model(x)
        loss(out, y).backward()
        grads.append(net.weight.grad.clone())
        peaks.append(torch.cuda.max_memory_allocated(0) if device == 'cuda' else sum(np.prod(s) for s in gathered[-1]))
    close(*grads, atol=1e-7)
    assert peaks[1] < (0.75 if device == 'cuda' else 0.001) * peaks[0]
