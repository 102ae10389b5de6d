"""`DataParallel` with the loss taken on each device: sums and counts of the parts make the total and the gradients
of the whole batch, for every kind of task
and any deal of the rows; a learner trains as on one device, and what is gathered is two numbers a task and device."""

import numpy as np, pandas as pd, pytest, torch
from torch import nn
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision  # noqa: F401
from fastai.callback.mixup import MixUp
from fastai.callback.schedule import lr_find  # noqa: F401
from fastai.callback.training import GradientAccumulation
from fastai.data.block import DataBlock, TransformBlock
from fastai.data.transforms import RandomSplitter
from fastai.distributed import ParallelTrainer
from fastai.learner import Learner
from fastai.losses import MSELossFlat
from fastai.optimizer import SGD
from fastai.torch_core import set_seed
from hypothesis import given, settings, strategies as st
from fastai_condmtl.all import (
    BinaryBlock,
    Branch,
    Checkpoint,
    Flow,
    FlowError,
    GradientCosine,
    MultiLabelBlock,
    SingleLabelBlock,
    TaskBalance,
    UnboundedRegressionBlock,
    conditional_head,
    equip,
)
from fastai_condmtl.callback.parallel import BalancedParallel, BalancedTrainer, ChunkedParallel
from fastai_condmtl.callback.parallel import ParallelTrainer as our_trainer
from fastai_condmtl.callback.tracking import ConditionalTracker
from fastai_condmtl.learn.heads import RunNeeded
from fastai_condmtl.loss.inputs import TaskSums
from kinds_of_task import bound_with_labels, flow as every_flow, logits, simulate_devices, table as every_table

pytestmark = pytest.mark.filterwarnings('ignore')

# sums and counts ----------------------------------------------------------------------------------------------------


def in_parts(bound, pred, y, cuts):
    z = pred.clone().requires_grad_()
    parts = torch.stack(
        [bound.loss_func.sums(a, b) for a, b in zip(z.tensor_split(cuts), y.tensor_split(cuts))]
    ).as_subclass(TaskSums)
    total = bound.loss_func(parts, y)
    total.backward()
    return total.detach(), z.grad, parts.detach()


def whole(bound, pred, y):
    z = pred.clone().requires_grad_()
    total = bound.loss_func(z, y)
    total.backward()
    return total.detach(), z.grad


@pytest.fixture(scope='module', params=[None, 'w'], ids=['plain', 'weighted rows'])
def every(request):
    df = every_table().assign(w=np.random.default_rng(5).choice([0.0, 0.3, 1.0, 2.5], 40))
    if request.param is None:
        return bound_with_labels(df=df)
    bound = every_flow(weight_col='w').bind(df)
    _, y = bound_with_labels(df=df)
    y[:, 1] = bound.encode(df).as_subclass(torch.Tensor)[:, 1]
    return bound, y


@settings(max_examples=25)
@given(cuts=st.lists(st.integers(0, 40), max_size=5), seed=st.integers(0, 10**6))
def test_any_deal_of_the_rows_is_the_whole_batch(every, cuts, seed):
    bound, y = every
    pred = logits(bound, seed=seed)
    (a, ga), (b, gb, parts) = whole(bound, pred, y), in_parts(bound, pred, y, sorted(cuts))
    torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gb, ga, rtol=1e-4, atol=1e-7)
    assert type(b) is torch.Tensor and parts.shape == (len(cuts) + 1, 2, len(bound.paths))
    for p, q in zip(bound.loss_func.task_losses(parts, y), bound.loss_func.task_losses(pred, y)):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_a_mean_of_means_would_be_another_number():
    "Three rows that count here, one there, none in the last part"
    bound = Flow('f', UnboundedRegressionBlock('x', loss='mse')).bind(pd.DataFrame(dict(x=[-1.0, 1.0])))
    y = torch.zeros(6, 2, 1)
    y[:4, 1] = 1
    pred = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])[:, None]
    total, grad, parts = in_parts(bound, pred, y, [3, 4])
    assert parts[:, :, 0].tolist() == [[14.0, 3.0], [16.0, 1.0], [0.0, 0.0]]
    assert total.item() == 30 / 4 != pytest.approx((14 / 3 + 16 / 1) / 2) and grad[:, 0].tolist() == [
        0.5,
        1.0,
        1.5,
        2.0,
        0.0,
        0.0,
    ]


def test_no_label_anywhere(every):
    bound, y = every
    total, grad, _ = in_parts(bound, logits(bound), torch.zeros_like(y), [7, 7, 20])
    assert total == 0 and (grad == 0).all()


def test_weights_and_temperatures(every):
    bound, y = every
    loss, pred = bound.loss_func.clone(), logits(bound)
    loss.temperatures = {'gate': 2.0}
    with pytest.warns(UserWarning, match='dropped'):
        loss(loss.sums(pred.requires_grad_(), y)[None].as_subclass(TaskSums), y)
    assert not loss.temperatures
    w = loss.task_weights()
    assert w[bound.paths.index('all.weighed')] == 0.5 and loss(
        loss.sums(pred, y)[None].as_subclass(TaskSums), y
    ).item() == pytest.approx((w * loss.per_task(pred, y).nan_to_num()).sum().item(), rel=1e-5)


def test_sums_are_no_predictions(every):
    bound, y = every
    sums = bound.loss_func.sums(logits(bound), y)[None].as_subclass(TaskSums)
    for f in (
        lambda: bound.loss_func.per_sample(sums, y),
        lambda: bound.loss_func.activation(sums),
        lambda: bound.loss_func.per_task(sums, y),
    ):
        with pytest.raises(FlowError, match='balance_memory=True there are no predictions.*leave balance_memory out'):
            f()


# learners -----------------------------------------------------------------------------------------------------------


class Numbers:
    def __call__(self, r):
        return torch.tensor(r[list('pqrs')].to_numpy(dtype=np.float32))


def table(n=150):
    rng = np.random.default_rng(0)
    df = pd.DataFrame(rng.normal(size=(n, 4)), columns=list('pqrs'))
    df['seen'] = np.where(rng.random(n) < 0.9, (df.p > 0).astype(float), np.nan)
    df['kind'], df['tags'] = (
        np.where(df.q > 0, 'x', np.where(df.r > 0, 'y', 'z')),
        np.where(df.q > 0, 'warm,big', 'cold'),
    )
    df['rare'] = np.where((rng.random(n) < 0.05) | (np.arange(n) < 2), df.r, np.nan)
    return df


def flow():
    seen = BinaryBlock('seen')
    return Flow(
        'f',
        seen,
        SingleLabelBlock('kind') | seen,
        MultiLabelBlock('tags', weight=0.5),
        Flow('g', UnboundedRegressionBlock('rare'), BinaryBlock('more', 'seen'), features='neck') | ~seen,
    )


def make(*cbs, head=False, **kwargs):
    set_seed(1)
    dls = DataBlock(blocks=(TransformBlock, flow()), get_x=Numbers(), splitter=RandomSplitter(seed=0)).dataloaders(
        table(), bs=32, num_workers=0, device='cpu', drop_last=False
    )
    body = nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.ReLU())
    net = nn.Sequential(
        body,
        conditional_head(
            dls.flow,
            16,
            dict(neck=Branch(nn.Sequential(nn.Linear(16, 8), nn.ReLU()), only_needed=True)),
            nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)),
        )
        if head
        else nn.Linear(16, dls.c),
    )
    return equip(Learner(dls, net, opt_func=SGD, lr=0.05, cbs=[*([RunNeeded()] if head else []), *cbs]), **kwargs)


def quietly(learn, f, *args, **kwargs):
    with learn.no_bar(), learn.no_logging():
        return f(*args, **kwargs)


def fit(learn, n=2):
    set_seed(2)
    quietly(learn, learn.fit, n)
    return learn


def same(a, b, rtol=1e-4, atol=1e-5):
    for p, q in zip(a.model.parameters(), b.model.parameters()):
        torch.testing.assert_close(p, q, rtol=rtol, atol=atol)
    np.testing.assert_allclose(np.array(a.recorder.values), np.array(b.recorder.values), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose([float(x) for x in a.recorder.losses], [float(x) for x in b.recorder.losses], rtol=1e-3)
    for p in a.loss_func.thresholds:
        torch.testing.assert_close(
            torch.as_tensor(a.loss_func.thresholds[p]), torch.as_tensor(b.loss_func.thresholds[p]), atol=1e-3, rtol=0
        )


@pytest.mark.trains
@pytest.mark.parametrize('head', [False, True], ids=['linear', 'branches'])
@pytest.mark.parametrize('n', [2, 3])
def test_training_is_that_of_one_device(monkeypatch, n, head):
    one = fit(make(head=head))
    gathered = simulate_devices(monkeypatch, n)
    plain, balanced = make(head=head), make(head=head)
    with plain.parallel_ctx():
        fit(plain)
    n_plain = len(gathered)
    with balanced.parallel_ctx(balance_memory=True):
        fit(balanced)
    same(one, plain)
    same(one, balanced)
    T, C = len(one.dls.flow.paths), one.dls.c
    widths = [{s[-1] for s in shapes} for shapes in gathered]
    assert all(w == {C} for w in widths[:n_plain]) and {T, C} == set().union(*widths[n_plain:])
    training = [s for s in gathered[n_plain:] if s[0][-1] == T]
    assert len(training) == 2 * 4 and all(
        s == ((1, 2, T),) * n for s in training
    )  # 120 rows by 32: four steps an epoch, the last of 24
    assert not isinstance(balanced.model, nn.DataParallel) and not any(
        isinstance(cb, ParallelTrainer) for cb in balanced.cbs
    )
    x, y = (quietly(l, l.evaluate) for l in (one, balanced))
    pd.testing.assert_frame_equal(pd.DataFrame(x), pd.DataFrame(y), atol=1e-3, check_exact=False)


def test_a_branch_runs_on_the_rows_of_its_device(monkeypatch):
    "Each replica knows which of its rows need the branch; plain DataParallel runs it on all."
    rows = []

    class Count(nn.Module):
        def forward(self, x):
            rows.append(len(x))
            return x

    simulate_devices(monkeypatch, 2)
    learn = make(head=True)
    learn.model[1].units[1].neck = nn.Sequential(Count(), learn.model[1].units[1].neck)
    for balance in (False, True):
        rows.clear()
        with learn.parallel_ctx(balance_memory=balance):
            learn.dls.train.rng.seed(0)
            fit(learn, 1)
        total = sum(rows[:8])
        assert total == 120 if not balance else 8 * 2 <= total < 100


@pytest.mark.trains
@pytest.mark.parametrize('method', ['uncertainty', 'dwa', 'famo', 'stch'])
def test_balanced_tasks_too(monkeypatch, method):
    opts = dict(every=1) if method == 'famo' else {}
    one = fit(make(balance=TaskBalance(method, **opts)))
    simulate_devices(monkeypatch)
    two = make(balance=TaskBalance(method, **opts))
    two.to_parallel(balance_memory=True)
    fit(two)
    same(one, two, 1e-3, 1e-4)
    np.testing.assert_allclose(
        one.task_balance.weights.to_numpy(), two.task_balance.weights.to_numpy(), rtol=1e-3, atol=1e-4
    )
    two.detach_parallel()
    assert not any(isinstance(cb, ParallelTrainer) for cb in two.cbs)


@pytest.mark.parametrize('balance_memory', [False, True])
def test_gradients_of_tasks_cannot_be_seen_on_several_devices(monkeypatch, balance_memory):
    pytest.importorskip('torchjd')
    simulate_devices(monkeypatch)
    for learn in (make(balance='mgda'), make(GradientCosine(1))):
        with pytest.raises(FlowError, match="DataParallel.*'uncertainty'.*distrib_ctx"):
            with learn.parallel_ctx(balance_memory=balance_memory):
                fit(learn)
        assert not isinstance(learn.model, nn.DataParallel)  # what broke off is unwrapped


def test_with_other_callbacks(monkeypatch, tmp_path):
    from torch.amp import GradScaler, autocast

    class Half(MixedPrecision):
        name = 'mixed_precision'

        def __init__(self):
            super().__init__('bf16')

        def before_fit(self):
            self.autocast, self.learn.scaler, self.scales = (
                autocast('cpu', dtype=torch.bfloat16),
                GradScaler('cpu', enabled=False),
                [],
            )

    for cbs in (lambda: [GradientAccumulation(64)], lambda: [Half()], lambda: [Checkpoint(tmp_path / 'last.pth')]):
        with monkeypatch.context() as m:
            (tmp_path / 'last.pth').unlink(missing_ok=True)
            one = fit(make(*cbs()))
            (tmp_path / 'last.pth').unlink(missing_ok=True)
            gathered = simulate_devices(m)
            two = make(*cbs())
            with two.parallel_ctx(balance_memory=True):
                fit(two)
        same(one, two, 1e-2, 1e-3)
        assert (1, 2, 5) in {s[0] for s in gathered}


def test_lr_find(monkeypatch):
    simulate_devices(monkeypatch)
    learn = make()
    with learn.parallel_ctx(balance_memory=True):
        res = quietly(learn, learn.lr_find, num_it=12, show_plot=False)
    assert 1e-8 < res.valley < 10 and not isinstance(learn.model, nn.DataParallel)


@pytest.mark.trains
def test_tracked_training_losses(monkeypatch):
    "Trackers find each task's training loss in the sums."

    class Here(ConditionalTracker):
        def __init__(self):
            super().__init__()
            self.told = []

        def open(self):
            self.writer = self

        def close(self):
            pass

        def write_scalars(self, scalars):
            self.told.append(dict(scalars))

        def write_text(self, *args):
            pass

        def write_figure(self, *args):
            pass

        def draw(self, *args):
            pass

        def write_pictures(self):
            pass

    a = fit(make(Here()))
    simulate_devices(monkeypatch)
    b = make(Here())
    with b.parallel_ctx(balance_memory=True):
        fit(b)
    x, y = ([s for s in next(c for c in l.cbs if isinstance(c, Here)).told][0] for l in (a, b))
    keys = [k for k in x if 'train' in k]
    assert len(keys) == 5 + 1 and x.keys() == y.keys()
    for k in keys:
        assert x[k] == pytest.approx(y[k], rel=1e-3)


def test_who_needs_predictions_gets_them(monkeypatch):
    gathered = simulate_devices(monkeypatch)
    one = fit(make(MixUp()))
    two = make(MixUp())
    with pytest.warns(UserWarning, match='balance_memory=True saves nothing here: MixUp takes the loss') as w:
        with two.parallel_ctx(balance_memory=True):
            fit(two)
    assert len([x for x in w if 'balance_memory' in str(x.message)]) == 1  # once a fit
    same(one, two)
    assert {s[0][-1] for s in gathered} == {two.dls.c}
    learn = make()
    learn.recorder.train_metrics = True
    with pytest.warns(UserWarning, match='metrics of training batches'):
        with learn.parallel_ctx(balance_memory=True):
            fit(learn)
    assert np.isfinite(np.array(learn.recorder.values)[:, 1:3]).all()


def test_without_devices():
    "On a CPU the loss is taken in the same way, in one part."
    one, cpu = fit(make()), make()
    with cpu.parallel_ctx(balance_memory=True):
        fit(cpu)
    same(one, cpu)
    pred = BalancedParallel(cpu.model, lambda: None)(torch.randn(5, 4))
    assert pred.shape == (5, cpu.dls.c)


def test_in_parts_on_one_device():
    class Watch(BalancedTrainer):
        def after_fit(self):
            self.gathered = self.learn.model.gathered
            super().after_fit()

    one, three = fit(make()), fit(make(Watch(chunks=3)))
    same(one, three)
    assert three.watch.gathered[3, 2, 5] == 3 * 2 * 5 * 4 and three.watch.gathered[30, one.dls.c] == 30 * one.dls.c * 4
    assert ChunkedParallel(nn.Linear(4, 2), lambda: None, 3)(torch.randn(7, 4)).shape == (7, 2)


def test_only_a_flows_loss_can_be_taken_in_parts():
    learn = make()
    learn.loss_func = MSELossFlat()
    with pytest.raises(FlowError, match="compares one output with one target"):
        with learn.parallel_ctx(balance_memory=True):
            fit(learn)
    assert isinstance(learn.model, nn.Sequential)


class Interrupts(Callback):
    "Stops a training in its second batch, as Ctrl-C does"

    def after_pred(self):
        if self.training and self.iter == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize('balance_memory', [False, True])
def test_an_interrupted_fit_leaves_no_wrapper_around_the_next(balance_memory):
    learn = make()
    learn.to_parallel(balance_memory=balance_memory)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            quietly(learn, learn.fit, 1, cbs=Interrupts())
    assert isinstance(learn.model, nn.DataParallel) and isinstance(learn.model.module, nn.Sequential)
    fit(learn, 1)
    assert isinstance(learn.model, nn.Sequential)
    with pytest.raises(KeyboardInterrupt):
        quietly(learn, learn.fit, 1, cbs=Interrupts())
    learn.detach_parallel()
    assert isinstance(learn.model, nn.Sequential)


def test_asked_twice_it_is_there_once():
    learn = make()
    learn.to_parallel()
    learn.to_parallel(balance_memory=True)
    assert [type(cb) for cb in learn.cbs if isinstance(cb, our_trainer)] == [BalancedTrainer]
    fit(learn, 1)
    assert isinstance(learn.model, nn.Sequential)


@pytest.mark.parametrize('balance_memory', [False, True])
def test_predictions_in_the_midst_of_a_fit_leave_it_on_all_devices(balance_memory):
    class Looks(Callback):
        order = 1
        kinds = set()

        def after_pred(self):
            if self.training:
                self.kinds.add(type(self.learn.model))

        def after_epoch(self):
            if not hasattr(self.learn, 'gather_preds'):
                self.learn.evaluate()

    learn = make(Looks())
    learn.to_parallel(balance_memory=balance_memory)
    fit(learn, 2)
    assert learn.looks.kinds == {BalancedParallel if balance_memory else nn.DataParallel}
    assert isinstance(learn.model, nn.Sequential)
    quietly(learn, learn.get_preds)
    assert isinstance(learn.model, nn.Sequential)
