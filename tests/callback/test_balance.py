"""Balancers against TorchJD's own and against numbers by hand; what they keep, save and leave alone in a
learner's training."""

import math, random, sys
import numpy as np, pandas as pd, pytest, torch
from torch import nn
from torchjd import aggregation, scalarization
from fastai.basics import Callback, Learner, SGD, TransformBlock, DataBlock, load_learner, set_seed, tensor
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.schedule import lr_find  # noqa: F401
from fastai.callback.training import GradientAccumulation
from fastai.data.all import IndexSplitter
from fastai.losses import MSELossFlat
from torch.amp import GradScaler, autocast
from fastai_condmtl.all import (
    BinaryBlock,
    Branch,
    Flow,
    SingleLabelBlock,
    UnboundedRegressionBlock,
    conditional_head,
    equip,
)
from fastai_condmtl.loss.weighting import DWA, FAMO, METHODS, STCH, WEIGHTINGS, Gramian, Uncertainty
from fastai_condmtl.callback.balance import TaskBalance
from fastai_condmtl.callback.gradients import GradientCosine, SharedFeatures
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.learn.heads import RunNeeded

pytestmark = pytest.mark.filterwarnings('ignore')
READY = [w for w in WEIGHTINGS if w != 'cagrad']  # which wants cvxpy
ALL = [*METHODS, 'mgda', 'upgrad', 'pcgrad']
YES = torch.ones(3, dtype=torch.bool)


def close(a, b, tol=1e-6):
    torch.testing.assert_close(torch.as_tensor(a).float(), torch.as_tensor(b).float(), rtol=tol, atol=tol)


# formulas -----------------------------------------------------------------------------------------------------------


def test_uncertainty_by_hand():
    m, w = Uncertainty(), tensor([1.0, 3.0])
    s = m.state(2, tensor([True, False]))  # classes; numbers
    total, b = m.total(s, tensor([0.7, 0.2]), YES[:2], w)
    close(b, [1.0, 1.0])  # begins as the plain sum
    with torch.no_grad():
        s['log_vars'].copy_(tensor([0.4, -1.0]))
    total, b = m.total(s, tensor([0.7, 0.2]), YES[:2], w)
    want = 1 * (math.exp(-0.4) * 0.7 + 0.4 / 2) + 3 * (
        0.5 * math.exp(1) * 0.2 - 1 / 2
    )  # equations 10 and 7, log σ = s/2
    assert total.item() == pytest.approx(want, abs=1e-6)
    total.backward()
    close(s['log_vars'].grad, [1 / 2 - math.exp(-0.4) * 0.7, 3 * (1 / 2 - 0.5 * math.exp(1) * 0.2)])
    close(b, [math.exp(-0.4), 0.5 * math.exp(1)])


def test_uncertainty_of_numbers_is_torchjds():
    ours, theirs, losses = Uncertainty(), scalarization.UW(3), torch.rand(3)
    s = ours.state(3, ~YES)
    with torch.no_grad():
        theirs.log_var.copy_(torch.randn(3))
        s['log_vars'].copy_(theirs.log_var)
    close(ours.total(s, losses, YES, torch.ones(3))[0], theirs(losses))


def test_uncertainty_leaves_absent_tasks_out():
    s = Uncertainty().state(3, YES)
    total, b = Uncertainty().total(s, tensor([0.7, 0.0, 0.1]), tensor([True, False, True]), torch.ones(3))
    total.backward()
    assert s['log_vars'].grad[1] == 0 and b[1] == 0 and (s['log_vars'].grad[[0, 2]] != 0).all()


def test_dwa_over_epochs_is_torchjds():
    ours, theirs = DWA(), scalarization.DWA()
    s, rng = ours.state(3, YES), np.random.default_rng(0)
    for _ in range(4):
        for _ in range(3):
            losses = tensor(rng.random(3)).float()
            close(ours.total(s, losses, YES, torch.ones(3))[0], theirs(losses))
            ours.note(s, losses, YES)
        ours.epoch(s)
        theirs.step()


def test_dwa_means_are_over_the_steps_where_a_task_was_there():
    m = DWA()
    s = m.state(2, YES[:2])
    m.note(s, tensor([1.0, 2.0]), tensor([True, True]))
    m.note(s, tensor([3.0, 0.0]), tensor([True, False]))
    m.epoch(s)
    close(s['history'][1], [2.0, 2.0])
    m.note(s, tensor([1.0, 0.0]), tensor([True, False]))
    m.epoch(s)
    close(s['history'].nan_to_num(-1), [[2.0, -1.0], [1.0, 2.0]])
    r = [math.exp(0.5 / 2), math.exp(1 / 2)]  # the second task has no ratio yet: neither fast nor slow
    close(m.factors(s, None, YES[:2]), [2 * x / sum(r) for x in r])


def test_famo_is_torchjds_step_by_step():
    ours, theirs = FAMO(every=1), scalarization.FAMO(3)
    s, x = ours.state(3, YES), torch.rand(3).add(0.1)
    for _ in range(5):
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        total, f = ours.total(s, a, YES, torch.ones(3))
        total.backward()
        theirs(b).backward()
        close(a.grad, 3 * b.grad, 1e-5)  # theirs mixes to 1, ours to the number of tasks
        after = x * torch.rand(3)
        ours.update(s, x, after, YES)
        theirs.update(after)
        close(s['logits'], theirs._w.detach(), 1e-5)
        x = after + 0.05


def test_famo_by_hand_with_an_absent_task():
    m = FAMO()
    s = m.state(3, YES)
    s['logits'].copy_(tensor([0.1, 0.2, 0.3]))
    there = tensor([True, True, False])
    m.update(s, tensor([2.0, 1.0, 0.0]), tensor([1.0, 1.0, 0.0]), there)
    z = np.exp([0.1, 0.2])
    z /= z.sum()
    d = np.array([math.log(2), 0.0])
    g = z * (d - (z * d).sum()) + 1e-3 * np.array([0.1, 0.2])
    want = np.array([0.1, 0.2]) - 0.025 * g / (np.abs(g) + 1e-8)  # Adam's first step
    close(s['logits'], [*want, 0.3], 1e-6)
    assert s['steps'].tolist() == [1, 1, 0] and s['mean'][2] == 0
    q = np.exp(s['logits'][:2].double().numpy())
    q = q / q.sum() / [2.0, 1.0]
    close(m.factors(s, tensor([2.0, 1.0, 0.0]), there), [*(2 * q / q.sum()), 0.0])


@pytest.mark.parametrize('mu', [0.05, 0.7])
def test_stch_is_torchjds(mu):
    w, losses = tensor([1.0, 2.0, 0.5]), torch.rand(3, requires_grad=True)
    m = STCH(mu=mu, warmup=0)
    total, _ = m.total(m.state(3, YES), losses, YES, w)
    ours = torch.autograd.grad(total, losses)[0]
    theirs = torch.autograd.grad(scalarization.STCH(mu, weights=w)(losses), losses)[0]
    close(ours, 3 * theirs, 1e-5)


def test_stch_units_are_the_first_epochs_means():
    m = STCH(mu=0.5)
    s = m.state(2, YES[:2])
    first, now = tensor([[1.0, 10.0], [3.0, 30.0]]), tensor([1.0, 20.0])
    for l in first:
        close(m.total(s, l, YES[:2], torch.ones(2))[1], [1.0, 1.0])
        m.note(s, l, YES[:2])
    m.epoch(s)
    e = np.exp(np.array([1 / 2, 20 / 20]) / 0.5)
    p = e / e.sum()
    close(m.total(s, now, YES[:2], torch.ones(2))[1], 2 * p * 11 / np.array([2, 20]), 1e-5)


@pytest.mark.parametrize('name', ['mgda', 'upgrad', 'dual_proj', 'imtl_g', 'aligned_mtl', 'fairgrad'])
def test_gramian_weights_are_torchjds_aggregation(name):
    torch.manual_seed(1)
    for n in (2, 5):
        j = torch.randn(n, 7, dtype=torch.float64)
        j *= (n / (j * j).sum()).sqrt()
        agg = getattr(aggregation, WEIGHTINGS[name])(**dict(fairgrad=dict(alpha=1.0)).get(name, {}))
        eye = torch.eye(n, dtype=torch.float64)
        theirs = agg(j) * n / agg(eye).sum()  # at the scale of a sum of n
        close(Gramian(name).solve(1e-9 * j @ j.T, torch.ones(n, dtype=bool)) @ j, theirs, 1e-3)


def test_weightings_see_present_tasks_only_and_any_function_will_do():
    seen = []

    def plain(g):
        seen.append(g)
        return torch.ones(len(g))

    there = tensor([True, False, True])
    close(Gramian(plain).solve(torch.diag(tensor([1.0, 0.0, 3.0])), there), [1.0, 0.0, 1.0])
    assert all(g.shape == (2, 2) for g in seen)
    close(torch.diag(seen[0]), [0.5, 1.5])
    for bad in (torch.full((3, 3), math.nan), torch.zeros(3, 3)):
        close(Gramian(plain).solve(bad, there), [1.0, 0.0, 1.0])
    pref = aggregation.UPGradWeighting(pref_vector=tensor([1.0, 5.0, 3.0]))
    close(Gramian(pref).solve(torch.eye(3), YES), [3 / 9, 15 / 9, 9 / 9], 1e-3)
    close(Gramian(pref).solve(torch.eye(3), there), [2 / 4, 0, 6 / 4], 1e-3)


# in a learner --------------------------------------------------------------------------------------------------------


def table(n=192, seed=0, gaps=0.3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    df = (
        pd.DataFrame(x, columns=list('abcd'))
        .assign(
            warm=x[:, 0] > 0, hot=x[:, 1] > 0.5, degrees=x[:, 0] * 10 + 20, kind=np.where(x[:, 2] > 0, 'sun', 'rain')
        )
        .astype(dict(warm=object, hot=object, kind=object))
    )
    for c in ('warm', 'hot', 'degrees', 'kind'):
        df.loc[rng.random(n) < gaps, c] = None
    return df


def flow(weight=1.0):
    warm = BinaryBlock('warm')
    return Flow(
        'weather',
        warm,
        BinaryBlock('hot', weight=weight) | warm,
        UnboundedRegressionBlock('degrees', loss='mse'),
        SingleLabelBlock('kind'),
    )


def read(r):
    return tensor([r.a, r.b, r.c, r.d]).float()


def data(df=None, f=None, bs=32):
    return DataBlock(
        blocks=(TransformBlock, flow() if f is None else f), get_x=read, splitter=IndexSplitter(range(32))
    ).dataloaders(table() if df is None else df, bs=bs, num_workers=0)


def net(c):
    return nn.Sequential(
        nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU()),
        nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, c)),
    )


def body_head(m):
    return [list(m[0].parameters()), list(m[1].parameters())]


def make(balance=None, dls=None, seed=0, **kw):
    torch.manual_seed(seed)
    dls = data() if dls is None else dls
    return equip(Learner(dls, net(dls.c), **{**dict(splitter=body_head), **kw}), tune=None, balance=balance)


def fit(learn, *args, seed=3, **kw):
    set_seed(seed)
    learn.dls.train.rng = random.Random(seed)  # who comes when
    with learn.no_bar(), learn.no_logging():
        learn.fit(*args, **kw)
    return learn


def params(learn):
    return {k: v.clone() for k, v in learn.model.state_dict().items()}


def step(learn, batch=None, times=1):
    "Training steps on one batch, by the learner's own callbacks."
    if learn.opt is None:
        learn.create_opt()
    batch = learn.dls.one_batch() if batch is None else batch
    learn.epoch, learn.n_epoch, learn.n_iter, learn.dl = 0, 1, 1, learn.dls.train
    learn.opt.set_hypers(lr=1e-2)
    with learn.no_bar(), learn.no_logging():
        for event in ('before_fit', 'before_epoch', 'before_train'):
            learn(event)
        for _ in range(times):
            learn.one_batch(0, batch)
    return batch


@pytest.mark.trains
@pytest.mark.parametrize('name', ALL)
def test_trains_with_gaps_and_logs_by_path(name, tmp_path):
    learn = fit(make(name), 3, 1e-2)
    df = learn.task_balance.weights
    assert list(df.columns) == ['warm', 'hot', 'degrees', 'kind'] and df.index.names == ['epoch', 'step']
    assert list(df.index.get_level_values('step')) == list(range(15)) and df.index.get_level_values('epoch').max() == 2
    assert np.isfinite(df.to_numpy()).all() and all(p.isfinite().all() for p in learn.model.parameters())
    if name not in ('static',):
        assert (
            (df.iloc[-1] - df.iloc[0]).abs().max() > 1e-3
            or name == 'stch'
            and df.groupby('epoch').mean().diff().abs().max(axis=None) > 1e-3
        )
    close(learn.task_balance.recent, df.loc[2].mean().to_numpy(), 1e-5)
    ax = learn.task_balance.plot()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(df.columns)


@pytest.mark.trains
def test_static_changes_nothing():
    a, b = fit(make(), 2, 1e-2), fit(make('static'), 2, 1e-2)
    for (k, x), (_, y) in zip(params(a).items(), params(b).items()):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6, msg=k)
    assert [r[0] for r in a.recorder.values] == pytest.approx([r[0] for r in b.recorder.values], rel=1e-4)


def test_the_recorder_shows_the_plain_sum():
    learn, seen = make('uncertainty'), []
    batch = step(learn)
    with torch.no_grad():
        seen.append(float(learn.loss_func(learn.pred, *learn.yb)))
    assert float(learn.loss) == pytest.approx(seen[0], rel=1e-5)


@pytest.mark.parametrize('name', ALL)
def test_a_task_that_is_absent_is_left_out(name):
    "A batch without `hot`: as if the flow had no such task, and its own state stays."
    learn = fit(make(name), 2, 1e-2)
    x, y = learn.dls.one_batch()
    y = y.clone()
    y[:, :, learn.dls.flow.slices['hot'].targets] = 0
    before = {k: v.detach().clone() for k, v in learn.task_balance.state.items()}
    every = getattr(learn.task_balance.method, 'every', 1)
    head = learn.model[1][-1].weight.detach().clone()
    step(learn, (x, y), every)
    w = learn.task_balance.new[-1][1]
    assert w[1].isnan() and w[[0, 2, 3]].isfinite().all()
    for k, v in learn.task_balance.state.items():
        if v.shape[-1] == 4:
            assert torch.equal(v[..., 1].nan_to_num(-1), before[k][..., 1].nan_to_num(-1)), k
    step(learn, (x, torch.zeros_like(y)))  # and one without any label
    assert all(p.isfinite().all() for p in learn.model.parameters()) and all(
        v.nan_to_num(0).isfinite().all() for v in learn.task_balance.state.values()
    )


def test_absent_is_as_if_the_flow_had_no_such_task():
    x, y = (m := make('dwa')).dls.one_batch()
    y = y.clone()
    y[:, :, m.dls.flow.slices['hot'].targets] = 0
    for name in ('famo', 'stch', 'mgda', 'upgrad'):
        learn = make(name if name != 'stch' else TaskBalance('stch', warmup=0))
        step(learn, (x, y))
        w = learn.task_balance.new[-1][1]
        losses, there = learn.loss_func.task_losses(make(name).model(x).float(), y)
        if name in ('famo', 'stch'):
            l = losses[[0, 2, 3]].detach().double().numpy()
            want = 1 / l if name == 'famo' else np.exp((l - l.max()) / 0.5)
            close(w[[0, 2, 3]], 3 * want / want.sum(), 1e-3)
        else:
            twin = make(name)
            feats = twin.model[0](x).detach().requires_grad_()
            losses = twin.loss_func.task_losses(twin.model[1](feats), y)[0]
            j = torch.stack([torch.autograd.grad(l, feats, retain_graph=True)[0].flatten() for l in losses])[[0, 2, 3]]
            close(w[[0, 2, 3]], Gramian(name).solve(j @ j.T, YES), 1e-3)


@pytest.mark.parametrize('name', ['uncertainty', 'dwa', 'famo', 'stch'])
def test_weights_of_blocks_multiply(name):
    a, b = (make(name, data(f=flow(w))) for w in (1.0, 4.0))
    x = torch.randn(16, a.dls.c)
    losses = torch.rand(4)
    w = b.loss_func.task_weights()
    close(w, [1, 4, 1, 1])
    m, s, there = a.task_balance.method, a.task_balance.state, torch.ones(4, dtype=bool)
    g1, g4 = (m.total(s, l := losses.clone().requires_grad_(), there, w) for w in (torch.ones(4), w))
    close(g4[1], g1[1])  # factors know nothing of them (before STCH has its units)


def test_a_task_of_weight_zero_takes_no_part():
    learn = make('famo', data(f=flow(0.0)))
    step(learn)
    w = learn.task_balance.new[-1][1]
    assert w[1].isnan()
    close(w[[0, 2, 3]].sum(), 3.0, 1e-4)


@pytest.mark.trains
def test_log_variances_are_trained_without_decay_frozen_or_not():
    learn = make('uncertainty', opt_func=SGD, wd=0.5)
    s = learn.model[-1].balance_log_vars
    learn.freeze()
    assert s.requires_grad and not learn.model[0][0].weight.requires_grad
    with torch.no_grad():
        s.copy_(tensor([0.3, -0.2, 0.1, 0.4]))
    was = s.detach().clone()
    step(learn)
    l = learn.task_balance.losses
    want = 1 / 2 - tensor([1.0, 1.0, 0.5, 1.0]) * torch.exp(-was) * l  # the gradient of Kendall's sum
    assert learn.opt.state[s]['do_wd'] is False
    close(s.detach(), was - 1e-2 * want, 1e-6)
    learn.unfreeze()
    fit(learn, 2, 1e-2)
    assert (s.detach() - was).abs().min() > 1e-4
    assert any(s is p for p in learn.opt.param_lists[-1])


@pytest.mark.trains
def test_added_to_a_learner_that_has_an_optimizer():
    learn = make()
    learn.freeze()
    fit(learn, 1, 1e-2)
    old = {id(p): dict(learn.opt.state[p]) for p in learn.model[1].parameters()}
    learn.add_cb(TaskBalance('uncertainty'))
    assert learn.opt.frozen_idx == 1 and not learn.model[0][0].weight.requires_grad
    assert all(
        torch.equal(learn.opt.state[p]['grad_avg'], old[id(p)]['grad_avg']) for p in learn.model[1][-1].parameters()
    )
    fit(learn, 1, 1e-2)
    assert (learn.model[-1].balance_log_vars.detach() - tensor([0, 0, -math.log(2), 0])).abs().min() > 1e-4


@pytest.mark.trains
@pytest.mark.parametrize('name', ALL)
def test_saving_and_loading_goes_on_where_it_stood(name, tmp_path):
    a = fit(make(name, path=tmp_path), 2, 1e-2)
    a.save('half')
    fit(a, 2, 1e-2, seed=7)
    b = make(name, seed=9, path=tmp_path)
    b.load('half')
    fit(b, 2, 1e-2, seed=7)
    for (k, x), (_, y) in zip(params(a).items(), params(b).items()):
        assert torch.equal(x.nan_to_num(-1), y.nan_to_num(-1)), k
    np.testing.assert_array_equal(a.task_balance.weights.loc[2:].to_numpy(), b.task_balance.weights.to_numpy())


@pytest.mark.parametrize('name', ['uncertainty', 'famo', 'upgrad'])
def test_export_keeps_it(name, tmp_path, monkeypatch):
    learn = fit(make(name, path=tmp_path), 1, 1e-2)
    learn.export('l.pkl')
    for m in [m for m in sys.modules if m.startswith('torchjd')]:
        monkeypatch.delitem(sys.modules, m)
    monkeypatch.setitem(sys.modules, 'torchjd', None)  # where it will be used needs no TorchJD
    again = load_learner(tmp_path / 'l.pkl')
    for k, v in learn.task_balance.state.items():
        assert torch.equal(v, again.task_balance.state[k])
    pd.testing.assert_frame_equal(again.task_balance.weights, learn.task_balance.weights)
    row = table().iloc[0]
    with learn.no_bar(), again.no_bar():
        assert str(learn.predict(row)[0]) == str(again.predict(row)[0])


@pytest.mark.parametrize('name', ALL)
def test_lr_find_leaves_no_trace(name):
    learn = fit(make(name), 2, 1e-2)
    before, log = params(learn), learn.task_balance.weights
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=12, show_plot=False)
    for k, v in params(learn).items():
        assert torch.equal(v.nan_to_num(-1), before[k].nan_to_num(-1)), k
    pd.testing.assert_frame_equal(learn.task_balance.weights, log)


@pytest.mark.parametrize('mix', [MixUp, CutMix])
@pytest.mark.parametrize('name', ['static', 'famo', 'mgda', 'uncertainty'])
def test_mixup_balances_the_mixed_losses(mix, name):
    df = table()

    def image(r):
        return tensor(np.random.default_rng(int(abs(r.a) * 1e6)).random((3, 4, 4))).float()

    dls = DataBlock(blocks=(TransformBlock, flow()), get_x=image, splitter=IndexSplitter(range(32))).dataloaders(
        df, bs=32, num_workers=0
    )
    learn = equip(
        Learner(
            dls,
            nn.Sequential(
                nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.Sequential(nn.Flatten(), nn.Linear(16, dls.c))
            ),
            cbs=mix(),
        ),
        tune=None,
        balance=name,
    )
    seen = []

    class Compare(TaskBalance):
        name = 'task_balance'

        def after_loss(self):
            plain = self.learn.loss.clone()
            super().after_loss()
            seen.append((float(plain), float((self.losses * self.flow_loss.task_weights()).sum())))

    learn.remove_cb(learn.task_balance)
    learn.add_cb(Compare(name))
    fit(learn, 2, 1e-2)
    assert len(seen) == 10
    for a, b in seen:
        assert a == pytest.approx(b, rel=1e-4)
    assert learn.loss_func.reduction == 'mean' and all(p.isfinite().all() for p in learn.model.parameters())


class Half(MixedPrecision):
    "Mixed precision on a CPU: bfloat16, with a scaler of losses if asked."

    def __init__(self, scaler=False):
        super().__init__('bf16')
        self.scaler_on = scaler

    name = 'mixed_precision'

    def before_fit(self):
        self.autocast, self.learn.scaler, self.scales = (
            autocast('cpu', dtype=torch.bfloat16),
            GradScaler('cpu', init_scale=1024.0, enabled=self.scaler_on),
            [],
        )


@pytest.mark.trains
@pytest.mark.parametrize('scaler', [False, True])
@pytest.mark.parametrize('name', ['uncertainty', 'famo', 'upgrad'])
def test_mixed_precision_weighs_as_single_does(name, scaler):
    opts = dict(every=1) if name == 'famo' else {}
    a = fit(make(TaskBalance(name, **opts), opt_func=SGD), 2, 1e-2)
    b = fit(make(TaskBalance(name, **opts), opt_func=SGD, cbs=Half(scaler)), 2, 1e-2)
    x, y = (l.task_balance.weights.to_numpy() for l in (a, b))
    assert not np.array_equal(x, y) and np.abs(x - y).max() < 0.1  # bfloat16 keeps two or three digits
    if scaler:
        assert len(b.mixed_precision.scales or []) == 0 and b.model[-1][-1].weight.dtype == torch.float32


def test_overflow_skips_famos_update():
    learn = make(TaskBalance('famo', every=1))
    batch = step(learn)
    n = learn.task_balance.state['steps'].clone()
    assert n.tolist() == [1, 1, 1, 1]
    learn.task_balance.before_step()
    learn.task_balance.after_cancel_step()
    learn.task_balance.after_step()
    assert torch.equal(learn.task_balance.state['steps'], n)


def test_accumulated_gradients_update_once_a_step():
    "Four micro-batches of 32 make a step: 5 batches an epoch, 4 epochs, 5 steps."
    steps = []

    class Count(TaskBalance):
        name = 'task_balance'

        def after_step(self):
            super().after_step()
            steps.append(self.state[self.names[0]].detach().clone())

    a = fit(
        make(Count('famo', every=1), cbs=GradientAccumulation(128)),
        4,
        1e-2,
    )
    assert len(steps) == a.task_balance.state['steps'].max() == len(steps) and len(steps) < 8
    n = len(steps)
    steps.clear()
    learn = make('uncertainty', cbs=GradientAccumulation(128), opt_func=SGD)
    moved = []

    class Watch(TaskBalance):
        name = 'task_balance'

        def before_batch(self):
            moved.append(self.state['log_vars'].detach().clone())

    learn.remove_cb(learn.task_balance)
    learn.add_cb(Watch('uncertainty'))
    fit(learn, 4, 1e-2)
    assert (
        sum(not torch.equal(x, y) for x, y in zip(moved, moved[1:])) <= n
    )  # it moves with the others' steps, not with micro-batches


def test_accumulation_gives_the_gradient_of_the_sum():
    "The same batch twice as two micro-batches, SGD: the step of log-variances is that of one batch."

    def run(cbs, times):
        learn = make('uncertainty', opt_func=SGD, cbs=cbs)
        for m in learn.model.modules():
            if isinstance(m, nn.BatchNorm1d):
                m.momentum = 0.0
        step(learn, batch, times)
        return params(learn)

    batch = make().dls.one_batch()
    one, two = run(None, 1), run(GradientAccumulation(64), 2)
    assert not torch.equal(two['1.balance_log_vars'], params(make('uncertainty'))['1.balance_log_vars'])
    for k in one:
        torch.testing.assert_close(
            two[k].float(), one[k].float() if 'num_batches' not in k else two[k].float(), rtol=1e-4, atol=1e-6, msg=k
        )


# gradients -----------------------------------------------------------------------------------------------------------


def naive_gramian(learn, x, y, module=None):
    feats = learn.model[0](x).detach().requires_grad_()
    losses = learn.loss_func.task_losses(learn.model[1](feats), y)[0]
    j = torch.stack([torch.autograd.grad(l, feats, retain_graph=True)[0].flatten() for l in losses])
    return j @ j.T


def test_gramian_is_that_of_a_loop():
    learn = make()
    x, y = learn.dls.one_batch()
    for f, at in ((None, None), ('0', '0'), (learn.model[0], None)):
        shared = SharedFeatures(learn.model, f)
        shared.listen()
        learn.model.train()
        losses = learn.loss_func.task_losses(learn.model(x), y)[0]
        close(shared.products(losses), naive_gramian(learn, x, y), 1e-7)
        shared.stop()
    assert not learn.model[1]._forward_pre_hooks and not learn.model[0]._forward_hooks


@pytest.mark.trains
def test_a_frozen_body_can_be_balanced():
    learn = make('mgda', train_bn=False)
    learn.freeze()
    body = {k: v.clone() for k, v in learn.model[0].named_parameters()}
    fit(learn, 1, 1e-2)
    assert all(torch.equal(v, body[k]) for k, v in learn.model[0].named_parameters())
    assert learn.task_balance.weights.std().max() > 1e-3
    assert not learn.model[1]._forward_pre_hooks


def test_branches_and_the_conditional_head():
    warm = BinaryBlock('warm')
    f = Flow(
        'weather',
        warm,
        Flow('side', BinaryBlock('hot'), UnboundedRegressionBlock('degrees', hidden=4), features='b') | warm,
        SingleLabelBlock('kind', uses=['warm']),
    )
    dls = data(f=f)
    for name in ('famo', 'upgrad'):
        torch.manual_seed(0)
        head = conditional_head(
            dls.flow,
            8,
            dict(b=Branch(nn.Sequential(nn.Linear(8, 6), nn.ReLU()), only_needed=True)),
            nn.Sequential(nn.ReLU(), nn.Linear(8, 3)),
        )
        learn = equip(
            Learner(dls, nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), head), cbs=RunNeeded()),
            tune=None,
            balance=TaskBalance(name, **(dict(every=1) if name == 'famo' else {})),
        )
        batch = step(learn)
        ran = dict(head.ran)
        assert 0 < ran['b'] < 32 and head.context is None  # FAMO's second look, too, runs where needed
        fit(learn, 1, 1e-2)
        assert np.isfinite(learn.task_balance.weights.to_numpy()).all()


@pytest.mark.trains
def test_cosines_are_those_of_a_loop_and_training_is_as_without():
    a, b = make(), make(cbs=GradientCosine(1))
    fit(a, 1, 1e-2)
    fit(b, 1, 1e-2)
    for (k, x), (_, y) in zip(params(a).items(), params(b).items()):
        assert torch.equal(x, y), k
    table_ = b.gradient_cosine.cosine
    assert list(table_.columns) == list(table_.index) == b.dls.flow.paths
    close(np.diag(table_), np.ones(4), 1e-4)
    close(table_.to_numpy(), table_.to_numpy().T, 1e-5)
    c = make(cbs=GradientCosine(1))
    x, y = c.dls.one_batch()
    c.model.train()
    g = naive_gramian(c, x, y)
    d = g.diagonal().sqrt()
    step(c, (x, y))
    close(c.gradient_cosine.cosine.to_numpy(), g / d / d[:, None], 1e-4)
    assert c.gradient_cosine.counts.to_numpy().tolist() == [[1] * 4] * 4
    ax = b.gradient_cosine.plot()
    assert [t.get_text() for t in ax.get_xticklabels()] == b.dls.flow.paths


def test_cosine_of_tasks_that_never_meet():
    df = table()
    df.loc[32:, 'hot'] = None  # labels in validation rows only
    learn = fit(make(None, data(df), cbs=GradientCosine(2)), 1, 1e-2)
    c = learn.gradient_cosine
    assert c.cosine.loc['hot'].isna().all() and c.counts.loc['hot', 'warm'] == 0
    c.plot()


# errors --------------------------------------------------------------------------------------------------------------


def test_errors_say_what_to_do(monkeypatch):
    dls = data()
    with pytest.raises(FlowError, match="'unsertainty' is no method: did you mean 'uncertainty'"):
        make('unsertainty', dls)
    with pytest.raises(FlowError, match="leave loss_func= out"):
        make('dwa', dls, loss_func=MSELossFlat())
    with pytest.raises(FlowError, match="no option 'temp': did you mean 'temperature'|no option 'temp'"):
        TaskBalance('dwa', temp=1)
    with pytest.raises(FlowError, match="balance='static' has no option 'temp': leave it out"):
        TaskBalance('static', temp=1)
    with pytest.raises(FlowError, match="goes with a name"):
        TaskBalance(aggregation.MGDAWeighting(), epsilon=1)
    with pytest.raises(FlowError, match="is no module of the model"):
        make(TaskBalance('mgda', features='neck'), dls)
    with pytest.raises(FlowError, match="one task, 'warm'"):
        make('famo', data(f=BinaryBlock('warm')))
    with pytest.raises(FlowError, match="the splitter .* let it return all parameters"):
        fit(make('uncertainty', dls, splitter=lambda m: [list(m[0].parameters())]), 1)
    with pytest.raises(FlowError, match="has no flow"):
        Learner(
            DataBlock(get_x=read, get_y=lambda r: tensor(1.0)).dataloaders(table(), num_workers=0),
            nn.Linear(4, 1),
            loss_func=MSELossFlat(),
            cbs=TaskBalance(),
        )
    with pytest.raises(FlowError, match="fit the learner first"):
        make('famo', dls).task_balance.plot()
    with pytest.raises(FlowError, match="fit the learner first"):
        make(None, dls, cbs=GradientCosine()).gradient_cosine.cosine
    monkeypatch.setattr(aggregation._cagrad.CAGradWeighting, '_REQUIRED_DEPS', ['a_package_nobody_has'])
    with pytest.raises(ImportError, match=r"torchjd\[cagrad\]"):
        Gramian('cagrad')
    monkeypatch.setitem(sys.modules, 'torchjd', None)
    for m in [m for m in sys.modules if m.startswith('torchjd.')]:
        monkeypatch.delitem(sys.modules, m)
    with pytest.raises(ImportError, match=r"fastai_condmtl\[balance\]"):
        make('upgrad', dls)


class Interrupts(Callback):
    "Stops a training in its second batch, as Ctrl-C does"

    order = -4  # after the loss was balanced, and before its gradients

    def after_loss(self):
        if self.iter == 1:
            raise KeyboardInterrupt


def n_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize('watch', [lambda: TaskBalance('upgrad'), lambda: GradientCosine(every=1)])
def test_an_interrupted_fit_leaves_no_hook_to_the_next(watch, monkeypatch):
    learn = make(None, cbs=watch())
    if hasattr(learn, 'gradient_cosine'):  # it lets go after each look: interrupted in its midst
        products = SharedFeatures.products
        monkeypatch.setattr(SharedFeatures, 'products', lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit(learn, 1, cbs=Interrupts())
    if hasattr(learn, 'gradient_cosine'):
        monkeypatch.setattr(SharedFeatures, 'products', products)
    fit(learn, 1)
    assert n_hooks(learn.model) == 0


def test_two_balancers_are_an_error():
    learn = make('uncertainty')
    with pytest.raises(FlowError, match=r"has a TaskBalance already: .* learn.remove_cb\(learn.task_balance\)"):
        fit(learn, 1, cbs=TaskBalance('dwa'))
    fit(learn, 1)
    assert [k for k in learn.model.state_dict() if 'balance_' in k] == ['1.balance_log_vars', '1.balance_scale']


@pytest.mark.parametrize('log_every', [0, -1, 1.5, True])
def test_weights_are_kept_every_so_many_steps(log_every):
    with pytest.raises(FlowError, match='log_every=.* must be a positive whole number'):
        TaskBalance('dwa', log_every=log_every)


def test_another_loss_while_training_is_an_error():
    learn = make('dwa')

    class Swap(MixUp):
        def before_train(self):
            self.learn.loss_func = lambda pred, y: pred.sum()

        def before_batch(self):
            pass

        def after_train(self):
            pass

    learn.add_cb(Swap())
    with pytest.raises(FlowError, match="replaced the learner's loss_func"):
        fit(learn, 1)


def test_switching_the_method_takes_the_old_one_out():
    learn = make('uncertainty')
    learn.remove_cb(TaskBalance)
    learn.add_cb(TaskBalance('dwa'))
    names = [k for k in learn.model.state_dict() if 'balance_' in k]
    assert sorted(names) == ['1.balance_history', '1.balance_sums']
    fit(learn, 1)


def test_tensorboard_sees_the_weights_in_force():
    from fastai_condmtl.callback.tracked_rows import Tracked

    learn = fit(make('famo'), 2, 1e-2)
    with learn.no_bar():
        t = Tracked(learn).scalars()
    for p, w in zip(learn.dls.flow.paths, learn.task_balance.recent):
        assert t[f'{p}/weight'] == pytest.approx(float(w), rel=1e-5)
