"""Training some of it: frozen rows to the last bit, rates and weights of tasks, weights of rows, balanced
weights, focal loss."""

import pickle, subprocess, sys
from functools import partial
import numpy as np, pandas as pd, pytest, torch
import torch.nn.functional as F
from torch import nn
from fasttransform import Transform
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import MixUp
from fastai.callback.schedule import SchedCos, SchedLin
from fastai.callback.training import GradientAccumulation, GradientClip
from fastai.data.block import DataBlock, TransformBlock
from fastai.data.transforms import IndexSplitter, RandomSplitter
from fastai.learner import Learner, load_learner
from fastai.optimizer import SGD, Adam, Lamb, OptimWrapper, RAdam, RMSProp, ranger
from sklearn.utils.class_weight import compute_class_weight
from torchvision.ops import sigmoid_focal_loss
from fastai_condmtl.tasks.binary import BinaryBlock
from fastai_condmtl.tasks.regression import BoundedRegressionBlock, UnboundedRegressionBlock
from fastai_condmtl.tasks.multi_label import MultiLabelBlock
from fastai_condmtl.tasks.single_label import SingleLabelBlock
from fastai_condmtl.callback.schedule import TaskLR, WeightSchedule
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.equip import equip
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.learn.heads import RunNeeded, Branch, conditional_head
from fastai_condmtl.loss.conditional import ConditionalLoss
from fastai_condmtl.learn.partial import PartialTraining

pytestmark = pytest.mark.filterwarnings('ignore')


class Input(Transform):
    "Row -> its input"

    def __call__(self, r, **kwargs):
        return torch.tensor(r['inp'])


def table(n=160, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    kinds = np.array(list('pqr'))[x[:, :3].argmax(1)]
    df = pd.DataFrame(
        dict(
            gate=(x[:, 0] > -0.5).astype(float),
            kind=kinds,
            tags=[','.join(t for t, v in zip('uvw', r) if v > 0.3) for r in x],
            size=x @ np.arange(6.0),
            spot=1 / (1 + np.exp(-x[:, 4])),
        )
    )
    df = df.astype(object).mask(rng.random(df.shape) < 0.15)
    return df.assign(inp=list(x), w=rng.choice([0.0, 0.001, 0.5, 3.0], n))


def flow_of_all(**kw):
    gate = BinaryBlock('gate')
    return Flow(
        'f',
        gate,
        Flow('look', SingleLabelBlock('kind', **kw), MultiLabelBlock('tags', **kw)) | gate,
        UnboundedRegressionBlock('size', **kw),
        BoundedRegressionBlock('spot', y_range=(0, 1), **kw),
    )


def data(flow, df=None, bs=32, **kw):
    return DataBlock(blocks=(TransformBlock, flow), get_x=Input(), splitter=RandomSplitter(seed=0)).dataloaders(
        table() if df is None else df, bs=bs, num_workers=0, **kw
    )


def two_groups(m):
    return [list(m[0].parameters()), list(m[1].parameters())]


def body():
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))


def stock(dls, **kw):
    return Learner(
        dls,
        nn.Sequential(
            body(), nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, dls.c, bias=False))
        ),
        splitter=two_groups,
        **kw,
    )


def branched(**kw):
    gate, size = BinaryBlock('gate', hidden=5), UnboundedRegressionBlock('size', features='wide')
    flow = Flow(
        'f',
        gate,
        Flow('look', SingleLabelBlock('kind', features='wide'), MultiLabelBlock('tags', hidden=5, uses='size')) | gate,
        size,
        BoundedRegressionBlock('spot', y_range=(0, 1), hidden=5, uses=['gate', 'size'], detach_uses=True),
    )
    dls = data(flow)
    stock_neck = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    head = conditional_head(
        dls.flow,
        16,
        {'wide': Branch(nn.Sequential(nn.Linear(16, 7), nn.BatchNorm1d(7), nn.ReLU()), only_needed=True)},
        stock_neck,
    )
    return Learner(dls, nn.Sequential(body(), head), splitter=two_groups, cbs=RunNeeded(), **kw)


def fit(learn, *args, **kw):
    with learn.no_bar(), learn.no_logging():
        learn.fit(*args, **kw)


def preds(learn, **kw):
    with learn.no_bar(), learn.no_logging():
        return learn.get_preds(**kw)[0]


def state(learn):
    return {k: v.clone() for k, v in learn.model.state_dict().items()}


def moved(before, now):
    return {k for k in before if not torch.equal(before[k], now[k])}


# ---- freeze_except
# ----------------------------------------------------------------------------------------------------
opts = dict(
    adam=Adam,
    sgd=partial(SGD, mom=0.9),
    l2=partial(SGD, mom=0.9, decouple_wd=False),
    rms=RMSProp,
    radam=RAdam,
    lamb=Lamb,
    lookahead=ranger,
    torch_adamw=partial(OptimWrapper, opt=torch.optim.AdamW),
    torch_sgd=partial(OptimWrapper, opt=partial(torch.optim.SGD, momentum=0.9, nesterov=True)),
)


@pytest.mark.trains
@pytest.mark.parametrize('opt', opts)
def test_frozen_rows_are_equal_to_the_last_bit_whatever_steps(opt):
    learn = stock(data(flow_of_all()), opt_func=opts[opt], wd=0.1)
    fit(learn, 2, 1e-2)  # momentum and gradients are left of this
    before, was, flow = state(learn), preds(learn), learn.dls.flow
    learn.freeze_except('kind')
    assert isinstance(learn.opt, type(learn.opt_func(learn.splitter(learn.model), lr=1e-3)))
    fit(learn, 2, 1e-2)
    now, rows = state(learn), set(range(*flow.slices['look.kind'].logits.indices(flow.c)))
    assert moved(before, now) == {'1.3.weight'}
    assert {int(i) for i, _ in (before['1.3.weight'] != now['1.3.weight']).nonzero()} == rows
    new, acts = preds(learn), flow.slices['look.kind'].acts
    others = [c for c in range(flow.c) if not acts.start <= c < acts.stop]
    assert torch.equal(new[:, others], was[:, others]) and not torch.equal(new[:, acts], was[:, acts])


@pytest.mark.trains
def test_what_is_trained_is_trained_as_if_it_were_alone():
    "Against torch's AdamW on a layer of three rows, on the features of the frozen network"
    dls = data(flow_of_all(), shuffle=False)
    learn = stock(dls, opt_func=partial(OptimWrapper, opt=torch.optim.AdamW), wd=0.1)
    learn.model[0][3].p = 0.0  # dropout would differ
    fit(learn, 1, 1e-2)
    learn.freeze_except('look.kind')
    s = dls.flow.slices['look.kind']
    lin = nn.Parameter(learn.model[1][3].weight.detach()[s.logits].clone())
    opt = torch.optim.AdamW([lin], lr=1e-2, weight_decay=0.1)
    neck = nn.Sequential(learn.model[0], *learn.model[1][:3])
    batches = list(dls.train)
    for _ in range(3):
        for x, y in batches:
            neck.eval()
            with torch.no_grad():
                feats = neck(x)
            v, m = y[:, 0, s.targets].reshape(-1).long(), y[:, 1, s.targets].reshape(-1) > 0
            v, m = v.as_subclass(torch.Tensor), m.as_subclass(torch.Tensor)
            opt.zero_grad()
            F.cross_entropy(F.linear(feats, lin)[m], v[m]).backward()
            opt.step()
    fit(learn, 3, 1e-2)
    torch.testing.assert_close(learn.model[1][3].weight.detach()[s.logits], lin.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    'cb',
    [GradientAccumulation(64), GradientClip(0.01), MixedPrecision(amp_mode='bf16'), MixUp()],
    ids=lambda c: type(c).__name__,
)
def test_other_callbacks_do_not_move_frozen_rows(cb):
    learn = stock(data(flow_of_all()), wd=0.1)
    fit(learn, 1, 1e-2)
    learn.freeze_except('size', 'tags')
    before = state(learn)
    fit(learn, 1, 1e-2, cbs=cb)
    rows = {i for t in ('size', 'look.tags') for i in range(*learn.dls.flow.slices[t].logits.indices(learn.dls.c))}
    assert moved(before, state(learn)) == {'1.3.weight'}
    assert {int(i) for i, _ in (before['1.3.weight'] != learn.model[1][3].weight).nonzero()} == rows


def test_clipping_sees_the_trained_rows_only():
    learn = stock(data(flow_of_all(), shuffle=False), opt_func=SGD, wd=0.0)
    learn.freeze_except('size')
    norms = []

    class Norm(Callback):
        order = 90

        def before_step(self):
            norms.append(self.model[1][3].weight.grad.norm().item())
            rows.append(self.model[1][3].weight.grad[learn.dls.flow.slices['size'].logits].norm().item())

    rows = []
    fit(learn, 1, 1e-2, cbs=Norm())
    assert norms == pytest.approx(rows) and min(norms) > 0


@pytest.mark.parametrize('name', ['gate', 'look.kind', 'look.tags', 'size', 'spot', 'wide', 'look'])
def test_heads_of_every_shape(name):
    learn = branched(wd=0.1)
    fit(learn, 2, 1e-2)
    flow, before, was = learn.dls.flow, state(learn), preds(learn)
    paths = flow.select(name)
    learn.freeze_except(name)
    fit(learn, 2, 1e-2)
    now, new = state(learn), preds(learn)
    assert not any('neck' in k or k.startswith('0.') for k in moved(before, now))
    uses = {'look.tags': {'size'}, 'spot': {'gate', 'size'}}
    for p, s in flow.slices.items():  # a task changes if it is trained, or uses one that is
        a, b = was[:, s.acts], new[:, s.acts]
        there = ~(a.isnan() | b.isnan()).any(1)
        assert torch.equal(a[there], b[there]) == (p not in paths and not uses.get(p, set()) & set(paths)), p


def test_units_of_a_task_are_the_ones_its_logits_depend_on():
    """By brute force: a head's parameter belongs to a task if its logits have a gradient with respect to it, and
    no other task's have (uses apart)"""
    from fastai_condmtl.learn.partial import task_params

    learn = branched()
    head, flow = learn.model[1].eval(), learn.dls.flow
    own = {p: {(id(t), int(r)) for t, rows in task_params(learn.model, flow, [p]) for r in rows} for p in flow.paths}
    assert not any(own[p] & own[q] for p in own for q in own if p < q)
    names = {id(t): k for k, t in head.named_parameters() if 'neck' not in k}
    assert {
        (i, r) for i, t in ((id(t), t) for k, t in head.named_parameters() if 'neck' not in k) for r in range(len(t))
    } == set.union(*own.values())
    for p, s in flow.slices.items():
        head.zero_grad(set_to_none=True)
        out = head(torch.randn(64, 16))
        (out[:, s.logits] * torch.randn(64, s.logits.stop - s.logits.start)).sum().backward()
        touched = {
            (i, r)
            for t in head.parameters()
            if (i := id(t)) in names and t.grad is not None
            for r in range(len(t))
            if t.grad[r].abs().sum() > 0
        }
        mine = {(i, r) for i, r in own[p]}
        used = set.union(set(), *(own[flow.paths[j]] for j in flow.plan.uses[flow.paths.index(p)]))
        assert touched - used <= mine and len(touched & mine) > 0.5 * len(mine), p


@pytest.mark.parametrize(
    'make', [lambda: stock(data(flow_of_all()), wd=0.1), lambda: branched(wd=0.1)], ids=['stock', 'branched']
)
def test_neck(make):
    learn = make()
    fit(learn, 1, 1e-2)
    before = state(learn)
    learn.freeze_except('size', neck=True)
    fit(learn, 1, 1e-2)
    changed = moved(before, state(learn))
    assert not any(k.startswith('0.') for k in changed)
    want = '1.1.' if '1.1.weight' in before else '1.units.1.neck.1.'
    assert {want + k for k in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')} <= changed
    if want != '1.1.':
        assert not any(k.startswith('1.units.0') for k in changed)


def test_learners_without_groups_export_and_go_on(tmp_path):
    """The stock splitter takes parameters that are trained: an optimizer made anew (by export, by a fit) must not
    lose the others"""
    dls = data(flow_of_all())
    learn = Learner(dls, nn.Sequential(body(), nn.Linear(16, dls.c)), path=tmp_path, wd=0.1)
    fit(learn, 1, 1e-2)
    learn.freeze_except('gate')
    fit(learn, 1, 1e-2, reset_opt=True)
    learn.export('l.pkl')
    n = sum(len(g) for g in learn.opt.param_lists)
    assert n == len(list(learn.model.parameters()))
    before = state(learn)
    fit(learn, 1, 1e-2)
    assert moved(before, state(learn)) == {'1.weight', '1.bias'}
    learn.save('m')
    learn.load('m')
    loaded = load_learner(tmp_path / 'l.pkl')
    assert {k: v for k, v in loaded.model.state_dict().items()}.keys() == before.keys() and not moved(
        before, loaded.model.state_dict()
    )
    loaded.unfreeze()
    assert all(p.requires_grad for p in loaded.model.parameters()) and not any(
        isinstance(c, PartialTraining) for c in loaded.cbs
    )
    learn.unfreeze()
    before = state(learn)
    fit(learn, 1, 1e-2)
    assert moved(before, state(learn)) == set(before)
    learn.freeze_except('gate')
    learn.freeze_to(0)
    assert not any(isinstance(c, PartialTraining) for c in learn.cbs)


def test_freeze_is_what_it_was():
    learn = stock(data(flow_of_all()), wd=0.1)
    learn.freeze_except('size')
    learn.freeze_except('gate', 'kind')
    assert sum(isinstance(c, PartialTraining) for c in learn.cbs) == 1 and learn.partial_training.paths == [
        'gate',
        'look.kind',
    ]
    learn.freeze()
    trained = [k for k, p in learn.model.named_parameters() if p.requires_grad]
    other = stock(learn.dls)
    other.freeze()
    assert trained == [k for k, p in other.model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize(
    'names,text',
    [(['gat'], "no task, flow or branch 'gat': did you mean 'gate'"), ([], 'name the tasks'), ([3], '3 names no task')],
)
def test_freeze_except_says_what_is_wrong(names, text):
    learn = stock(data(flow_of_all()))
    with pytest.raises(FlowError, match=text):
        learn.freeze_except(*names)
    assert all(p.requires_grad for p in learn.model.parameters())


def test_a_network_without_a_last_layer_of_logits():
    dls = data(flow_of_all())
    learn = Learner(dls, nn.Sequential(nn.Linear(6, dls.c), nn.Linear(dls.c, dls.c + 1)))
    with pytest.raises(FlowError, match=f'has {dls.c + 1} outputs'):
        learn.freeze_except('gate')


def test_last_layers_of_fastai_models():
    from fastai.tabular.model import TabularModel
    from fastai.text.models.core import get_text_classifier
    from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_clas_config
    from fastai.vision.learner import create_vision_model
    from torchvision.models import resnet18

    flow = flow_of_all().bind(table())
    config = {**awd_lstm_clas_config, 'emb_sz': 8, 'n_hid': 8, 'n_layers': 2}
    from fastai_condmtl.learn.partial import task_params

    for model in (
        TabularModel([(3, 2)], 2, flow.c, [8]),
        get_text_classifier(AWD_LSTM, 20, flow.c, config=config, lin_ftrs=[8]),
        create_vision_model(resnet18, flow.c, pretrained=False),
    ):
        found = task_params(model, flow, ['size'])
        s = flow.slices['size'].logits
        assert all(len(t) == flow.c and rows.tolist() == [s.start] for t, rows in found) and found


@pytest.mark.parametrize('branches', [None, {'face': 8}])
def test_a_vision_learner(tmp_path, branches):
    "A pretrained-style network with batch norm in the body: nothing of it moves, fine_tune ends it"
    from PIL import Image
    from fastai_condmtl.vision.data import ConditionalDataLoaders
    from fastai_condmtl.vision.learner import conditional_vision_learner

    rng = np.random.default_rng(0)
    for i in range(16):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f'{i}.png')
    df = pd.DataFrame(
        dict(
            img=[f'{i}.png' for i in range(16)],
            a=rng.integers(0, 2, 16),
            b=rng.random(16),
            k=rng.choice(list('xyz'), 16),
            w=rng.random(16),
        )
    )
    a = BinaryBlock('a', pos_weight='balanced', loss='focal')
    flow = Flow(
        'f',
        a,
        Flow('face', UnboundedRegressionBlock('b'), features='face' if branches else None) | a,
        SingleLabelBlock('k', class_weights='balanced'),
        weight_col='w',
    )
    dls = ConditionalDataLoaders.from_df(df, flow, path=tmp_path, bs=6, num_workers=0, seed=0)
    learn = conditional_vision_learner(
        dls, 'resnet18', pretrained=False, wd=0.1, branches=branches, cbs=TaskLR({'a': 2.0})
    )
    fit(learn, 1, 1e-2)
    before = state(learn)
    learn.freeze_except('face')
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, 1e-2, cbs=WeightSchedule('face', SchedLin(0.5, 1)))
    changed, now = moved(before, state(learn)), state(learn)
    assert changed == (
        {'1.units.1.heads.0.weight', '1.units.1.heads.0.bias'} if branches else {'1.8.weight', '1.8.bias'}
    )
    if not branches:
        assert {int(i) for i, _ in (before['1.8.weight'] != now['1.8.weight']).nonzero()} == {
            dls.flow.slices['face.b'].logits.start
        }
    learn.export('v.pkl')
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(1)
    assert len(moved(before, state(learn))) > 50 and not any(isinstance(c, PartialTraining) for c in learn.cbs)
    assert not moved(now, load_learner(tmp_path / 'v.pkl').model.state_dict())


@pytest.mark.parametrize('kind', ['tabular', 'text'])
def test_networks_of_other_applications_train_a_row(kind):
    "Bit by bit, with embeddings, weight drop and their own batch norms"
    from fastai.tabular.model import TabularModel
    from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_clas_config
    from fastai.text.models.core import get_text_classifier
    from fastai.callback.rnn import ModelResetter

    df = table(64)

    class Words(nn.Module):
        "Inputs as words of a text"

        def __init__(self, m):
            super().__init__()
            self.m = m

        def reset(self):
            self.m.reset()

        def forward(self, x):
            return self.m((x.abs() * 6).long().clamp(2, 19))[0]

    class Cells(nn.Module):
        "Inputs as a category and numbers"

        def __init__(self, m):
            super().__init__()
            self.m = m

        def forward(self, x):
            return self.m((x[:, :1] > 0).long(), x[:, 1:3])

    dls = data(flow_of_all(), df, bs=16)
    model = (
        Cells(TabularModel([(3, 2)], 2, dls.c, [8]))
        if kind == 'tabular'
        else Words(
            get_text_classifier(
                AWD_LSTM,
                20,
                dls.c,
                config={**awd_lstm_clas_config, 'emb_sz': 8, 'n_hid': 8, 'n_layers': 2},
                lin_ftrs=[8],
            )
        )
    )
    learn = Learner(dls, model, wd=0.1, cbs=[] if kind == 'tabular' else [ModelResetter])
    fit(learn, 1, 1e-2)
    before, was = {k: p.detach().clone() for k, p in model.named_parameters()}, preds(learn)
    bufs = {k: b.clone() for k, b in model.named_buffers()}
    learn.freeze_except('spot')
    fit(learn, 2, 1e-2)
    now, s = dict(model.named_parameters()), dls.flow.slices['spot']
    changed = {k for k in before if not torch.equal(before[k], now[k])}
    assert changed and all(len(now[k]) == dls.c for k in changed)
    assert all({int(i) for i in (before[k] != now[k]).nonzero()[:, 0]} == {s.logits.start} for k in changed)
    assert all(torch.equal(b, bufs[k]) for k, b in model.named_buffers())
    new = preds(learn)
    assert (
        torch.equal(new[:, : s.acts.start], was[:, : s.acts.start])
        and torch.equal(new[:, s.acts.stop :], was[:, s.acts.stop :])
        and not torch.equal(new, was)
    )


# ---- TaskLR
# -----------------------------------------------------------------------------------------------------------
class Apart(nn.Module):
    "A linear layer a task, out of one"

    def __init__(self, lin, flow):
        super().__init__()
        self.cols = sorted(flow.slices.values(), key=lambda s: s.logits.start)
        self.heads = nn.ModuleList([nn.Linear(lin.in_features, s.logits.stop - s.logits.start) for s in self.cols])
        for h, s in zip(self.heads, self.cols):
            h.weight.data, h.bias.data = lin.weight.data[s.logits].clone(), lin.bias.data[s.logits].clone()

    def forward(self, x):
        return torch.cat([h(x) for h in self.heads], 1)


def head_groups(m):
    return [list(h.parameters()) for h in m.heads]


@pytest.mark.trains
@pytest.mark.parametrize('opt', ['adam', 'sgd', 'l2', 'rms', 'radam', 'torch_adamw', 'torch_sgd'])
def test_rates_are_those_of_parameter_groups(opt):
    dls = data(flow_of_all(), shuffle=False)
    lin = nn.Linear(6, dls.c)
    mult = {'gate': 1.0, 'look.kind': 0.3, 'look.tags': 0.3, 'size': 0.0, 'spot': 2.5}
    apart = Learner(dls, Apart(lin, dls.flow), splitter=head_groups, opt_func=opts[opt], wd=0.1)
    order = [p for p, s in sorted(dls.flow.slices.items(), key=lambda x: x[1].logits.start)]
    first = lin.weight.detach().clone()
    learn = Learner(dls, lin, opt_func=opts[opt], wd=0.1, cbs=TaskLR({'look': 0.3, 'size': 0, 'spot': 2.5}))
    fit(apart, 3, [5e-3 * mult[p] for p in order])
    fit(learn, 3, 5e-3)
    torch.testing.assert_close(lin.weight, torch.cat([h.weight for h in apart.model.heads]), rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(lin.bias, torch.cat([h.bias for h in apart.model.heads]), rtol=1e-4, atol=2e-6)
    s = dls.flow.slices['size'].logits
    assert torch.equal(first[s], lin.weight[s])  # a rate of 0 is exact
    assert not torch.allclose(first, lin.weight)


def test_rates_and_freezing_go_together_and_pickle():
    learn = branched(wd=0.1, opt_func=Adam)
    learn.add_cb(TaskLR({'look': 0.5, 'look.kind': 0.1}))
    learn.freeze_except('look')
    before = state(learn)
    fit(learn, 1, 1e-2)
    assert any('heads' in k for k in moved(before, state(learn))) and not any(
        'neck' in k for k in moved(before, state(learn))
    )
    assert pickle.loads(pickle.dumps(next(c for c in learn.cbs if isinstance(c, TaskLR)))).rates == {
        'look': 0.5,
        'look.kind': 0.1,
    }


# ---- WeightSchedule
# ---------------------------------------------------------------------------------------------------
@pytest.mark.trains
def test_scheduled_weights_train_as_weights_of_blocks():
    "A constant schedule of 3 is a block of weight 3; one of 0 a task left out"

    def flow(a, b):
        return Flow(
            'f', BinaryBlock('gate', weight=a), UnboundedRegressionBlock('size', weight=b), SingleLabelBlock('kind')
        )

    df, res = table(), []
    for f, cbs in (
        (flow(3.0, 0.0), None),
        (flow(1.0, 1.0), WeightSchedule({'gate': SchedLin(3, 3), 'size': SchedLin(0, 0)})),
    ):
        torch.manual_seed(0)
        dls = data(f, df, shuffle=False)
        learn = Learner(dls, nn.Linear(6, dls.c), cbs=cbs)
        fit(learn, 2, 1e-2)
        res.append(learn.model.weight.detach())
    assert torch.equal(*res)


def test_an_interrupted_fit_gives_weights_back():
    class Stop(Callback):
        def after_batch(self):
            if self.training and self.pct_train > 0.4:
                raise KeyboardInterrupt

    dls = data(flow_of_all(weight=2.0))
    cb = WeightSchedule('look', SchedCos(0, 1))
    learn = Learner(dls, nn.Linear(6, dls.c), cbs=cb)
    with pytest.raises(KeyboardInterrupt):
        fit(learn, 2, cbs=Stop())
    assert learn.loss_func.task_weights().tolist() != [1, 2, 2, 2, 2]
    with learn.no_bar(), learn.no_logging():
        learn.validate()
    assert learn.loss_func.task_weights().tolist() == [1, 2, 2, 2, 2] == dls.loss_func.task_weights().tolist()
    fit(learn, 1)
    assert learn.loss_func.task_weights().tolist() == [1, 2, 2, 2, 2]
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(show_plot=False, num_it=5)
        learn.get_preds()
    assert learn.loss_func.task_weights().tolist() == [1, 2, 2, 2, 2]


def test_schedules_with_mixup_and_export(tmp_path):
    dls = data(flow_of_all())
    learn = Learner(dls, nn.Linear(6, dls.c), path=tmp_path, cbs=[WeightSchedule('look', SchedCos(0, 1)), MixUp()])
    fit(learn, 2)
    w = learn.recorder.hps['weight of look']
    assert w[0] == 0 and w == sorted(w) and len(w) == 2 * len(dls.train)
    assert isinstance(learn.loss_func, ConditionalLoss) and learn.loss_func.task_weights().tolist() == [1] * 5
    learn.export('l.pkl')
    assert load_learner(tmp_path / 'l.pkl').loss_func.task_weights().tolist() == [1] * 5


# ---- weights of rows
# --------------------------------------------------------------------------------------------------
def weighted_by_hand(bound, z, y, w):
    "Total of rows with weights, row by row: per task the weighted mean over rows of the mean over the row's cells"
    total = 0.0
    for p, b in bound.tasks.items():
        s, up, down = bound.slices[p], 0.0, 0.0
        for i in range(len(z)):
            v, m, x = y[i, 0, s.targets], y[i, 1, s.targets] > 0, z[i, s.logits]
            if not m.any():
                continue
            if isinstance(b, SingleLabelBlock):
                l = F.cross_entropy(x[None], v.long())
            elif b.thresholded:
                l = F.binary_cross_entropy_with_logits(x[m], v[m])
            else:
                l = ((x.sigmoid() if b.bounded else x) - v).abs().sum()
            up, down = up + w[i] * l, down + w[i]
        total = total + b.weight * (up / down if down else 0.0)
    return total


@pytest.mark.parametrize('scale', [1.0, 1e-20, 1e6])
def test_row_weights_by_hand(scale):
    df = table()
    df['w'] = df.w * scale
    plain, bound = flow_of_all().bind(df), Flow('g', flow_of_all(), weight_col='w').bind(df)
    y, y1 = bound.encode(df).as_subclass(torch.Tensor), plain.encode(df).as_subclass(torch.Tensor)
    w = torch.tensor(df.w.to_numpy())
    assert torch.equal(y[:, 1] > 0, (y1[:, 1] > 0) & (w[:, None] > 0)) and torch.equal(y[:, 0], y1[:, 0])
    bound = Flow('f', *flow_of_all().tasks, weight_col='w').bind(df)
    y = bound.encode(df).as_subclass(torch.Tensor)
    z = torch.randn(len(df), bound.c, requires_grad=True)
    loss = bound.loss_func(z, y)
    z64 = z.detach().double().requires_grad_()
    want = weighted_by_hand(bound, z64, y1.double(), w)
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-6)
    loss.backward()
    want.backward()
    torch.testing.assert_close(z.grad.double(), z64.grad, rtol=1e-4, atol=1e-7)
    per = bound.loss_func.per_task(z.detach(), y)
    torch.testing.assert_close((per * bound.loss_func.task_weights()).sum(), loss.detach(), rtol=1e-5, atol=1e-6)
    rows = ConditionalLoss(bound, 'none')(z.detach(), y)
    torch.testing.assert_close(rows.mean(), loss.detach(), rtol=1e-5, atol=1e-6)
    sample, sample1 = (f.loss_func.per_sample(z.detach(), t) for f, t in ((bound, y), (plain, y1)))
    there = (w > 0)[:, None] & ~sample1.isnan()
    assert torch.equal(there, ~sample.isnan())
    torch.testing.assert_close(sample[there], sample1[there])  # unweighted


def test_whole_weights_are_repeated_rows():
    "A row of weight 3 is three rows, a row of weight 0 none; also where labels are missing one by one"
    rng = np.random.default_rng(0)
    df = table(60).assign(
        w=rng.integers(0, 4, 60), c1=rng.choice([0, 1, np.nan], 60), c2=rng.choice([0, 1, np.nan], 60)
    )
    flow = Flow('f', *flow_of_all().tasks, MultiLabelBlock('cells', cols=['c1', 'c2']), weight_col='w')
    bound = flow.bind(df)
    z = torch.randn(60, bound.c)
    again = np.repeat(np.arange(60), df.w)
    ones = bound.encode(df.iloc[again].assign(w=1))
    torch.testing.assert_close(
        bound.loss_func(z, bound.encode(df)), bound.loss_func(z[again], ones), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(
        bound.loss_func.per_task(z, bound.encode(df)), bound.loss_func.per_task(z[again], ones), rtol=1e-5, atol=1e-6
    )


def test_a_batch_without_weight_is_zero_and_has_gradients():
    df = table(20).assign(w=0.0)
    bound = Flow('f', *flow_of_all().tasks, weight_col='w').bind(df)
    z = torch.randn(20, bound.c, requires_grad=True)
    loss = bound.loss_func(z, bound.encode(df))
    loss.backward()
    assert loss.item() == 0 and not z.grad.any() and bound.loss_func.per_task(z, bound.encode(df)).isnan().all()


def test_own_column_of_a_task_and_inheritance():
    df = table(40).assign(v=2.0)
    gate = BinaryBlock('gate')
    flow = Flow(
        'f',
        gate,
        Flow('look', SingleLabelBlock('kind'), MultiLabelBlock('tags', weight_col='w'), weight_col='v'),
        UnboundedRegressionBlock('size'),
    )
    bound = flow.bind(df)
    assert bound.plan.weight_cols == [None, 'v', 'w', None]
    m = bound.encode(df).as_subclass(torch.Tensor)[:, 1]
    at = lambda p: m[:, bound.slices[p].targets]
    assert set(at('gate').unique().tolist()) <= {0, 1} and set(at('look.kind').unique().tolist()) == {0, 2}
    assert torch.equal(
        at('look.tags'), torch.tensor((df.tags.notna() * df.w).to_numpy(dtype='float32'))[:, None].expand(-1, 3)
    )
    again = Flow.from_json(flow.to_json())
    assert again.to_json() == flow.to_json() and again.bind(df).plan.weight_cols == bound.plan.weight_cols


@pytest.mark.parametrize(
    'value,text',
    [
        (np.nan, "row 3, column 'w', value nan: the weight of a row must be a number that is not negative"),
        (-1.0, "row 3, column 'w', value -1.0: the weight"),
        (np.inf, 'not a finite number'),
        ('x', 'text in a column of numbers'),
        (1e39, "row 3, column 'w', value 1e[+]39: the weight"),
    ],
)
def test_bad_weights_name_the_row(value, text):
    df = table(10).assign(size=1.0, w=1.0)
    df['w'] = df.w.astype(object)
    df.loc[3, 'w'] = value
    with pytest.raises(FlowError, match=text):
        Flow('f', UnboundedRegressionBlock('size'), weight_col='w').bind(df).encode(df)
    if value is not np.nan:
        return
    df.loc[3, 'size'] = None  # does not count anyway
    assert Flow('f', UnboundedRegressionBlock('size'), weight_col='w').bind(df).encode(df)[3, 1].item() == 0


def test_wrong_weight_columns():
    df = table(10)
    with pytest.raises(FlowError, match="weights of its rows from column 'ww'.*did you mean 'w'"):
        Flow('f', BinaryBlock('gate'), weight_col='ww').bind(df)
    with pytest.raises(FlowError, match='must be the name of one column'):
        Flow('f', BinaryBlock('gate'), weight_col=['w'])
    with pytest.raises(FlowError, match='must be the name of one column'):
        BinaryBlock('gate', weight_col=True)


def test_learners_with_row_weights_score_rows_alike(tmp_path):
    "Metrics, thresholds, baselines, predictions and evaluation are those of the mask; and they train"
    df = table(200)
    df.loc[:9, 'w'] = 0.0
    res = []
    for weights in (None, 'w'):
        torch.manual_seed(0)
        flow = Flow('f', *flow_of_all().tasks, weight_col=weights)
        block = DataBlock(blocks=(TransformBlock, flow), get_x=Input(), splitter=IndexSplitter(list(range(100, 200))))
        dls = block.dataloaders(df if weights else df.assign(w=1.0), bs=50, num_workers=0)
        learn = equip(Learner(dls, nn.Linear(6, dls.c), path=tmp_path))
        with learn.no_bar(), learn.no_logging():
            t = learn.evaluate()
            m = [float(v) for v in learn.validate()]
        res.append((t, m, learn))
    heavy = df.iloc[100:][df.w.iloc[100:] > 0]
    (t0, m0, l0), (t1, m1, l1) = res
    assert t1.groupby('task_path', sort=False).num_samples.first().tolist() == [
        int((l0.dls.flow.encode(heavy)[:, 1, s.targets] > 0).any(1).sum()) for s in l0.dls.flow.slices.values()
    ]
    with l0.no_bar(), l0.no_logging():
        same = l0.validate(dl=l0.dls.test_dl(heavy, with_labels=True))
    np.testing.assert_allclose(m1[1:], [float(v) for v in same][1:], rtol=1e-6)
    fit(l1, 2, 1e-2)
    with l1.no_bar(), l1.no_logging():
        new = l1.dls.test_dl(df.drop(columns='w'), with_labels=True)
        assert set(torch.cat([b[1].as_subclass(torch.Tensor)[:, 1] for b in new]).unique().tolist()) == {
            0,
            1,
        }  # new rows weigh alike
        assert len(l1.predict_df(df.iloc[:5].drop(columns='w'))) == 5
    l1.export('w.pkl')
    assert len(load_learner(tmp_path / 'w.pkl').predict_df(df.iloc[:3])) == 3


def test_weights_beside_a_column_reader():
    from fastai.data.transforms import ColReader

    df = table(30)
    flow = Flow('f', BinaryBlock('gate'), UnboundedRegressionBlock('size'), weight_col='w')
    for cols in (['gate', 'size'], ['gate', 'size', 'w']):
        dls = DataBlock(
            blocks=(TransformBlock, flow), get_x=Input(), get_y=ColReader(cols), splitter=IndexSplitter(range(20, 30))
        ).dataloaders(df, bs=30, num_workers=0, shuffle=False)
        y = dls.valid.one_batch()[1].as_subclass(torch.Tensor)
        assert torch.equal(y[:, 1, 0], torch.tensor((df.gate.notna() * df.w).iloc[20:].to_numpy(dtype='float32')))


# ---- balanced
# ---------------------------------------------------------------------------------------------------------
def test_balanced_weights_are_those_of_scikit_learn_on_rows_that_train():
    df = table(300)
    gate = BinaryBlock('gate', pos_weight='balanced')
    flow = Flow(
        'f',
        gate,
        SingleLabelBlock('kind', class_weights='balanced', vocab=list('pqrs')) | gate,
        MultiLabelBlock('tags', pos_weight='balanced') | gate,
    )
    train = np.arange(120)
    bound = flow.bind(df, train)
    t = df.iloc[train]
    g = t.gate.dropna().astype(float)
    w = compute_class_weight('balanced', classes=np.array([0.0, 1.0]), y=g.to_numpy())
    assert bound.tasks['gate'].pos_weight == pytest.approx([w[1] / w[0]])
    assert w[1] / w[0] == pytest.approx((g == 0).sum() / (g == 1).sum())
    k = t.kind[(t.gate == 1) & t.kind.notna()]
    want = compute_class_weight('balanced', classes=np.array(list('pqr')), y=k.to_numpy(dtype=str))
    assert bound.tasks['kind'].class_weights == pytest.approx([*want, 1.0])  # no row of s
    tags = t.tags[(t.gate == 1) & t.tags.notna()].str.split(',')
    yes = np.array([[l in x for l in 'uvw'] for x in tags])
    assert bound.tasks['tags'].pos_weight == pytest.approx(((~yes).sum(0) / yes.sum(0)).tolist())
    assert 'pos_weight' in repr(bound) and 'class_weights' in repr(bound)
    assert flow.tasks[0].pos_weight == 'balanced' and Flow.from_json(flow.to_json()).tasks[0].pos_weight == 'balanced'
    assert flow.bind(df, np.arange(120, 300)).tasks['kind'].class_weights != bound.tasks['kind'].class_weights
    y, z = bound.encode(df).as_subclass(torch.Tensor), torch.randn(300, bound.c)

    def hand():
        total = 0.0
        for p, b in bound.tasks.items():
            s = bound.slices[p]
            m = y[:, 1, s.targets] > 0
            if p == 'kind':
                l = F.cross_entropy(
                    z[:, s.logits],
                    y[:, 0, s.targets][:, 0].long(),
                    weight=torch.tensor(b.class_weights),
                    reduction='none',
                )[m[:, 0]].mean()
            else:
                l = (
                    F.binary_cross_entropy_with_logits(
                        z[:, s.logits], y[:, 0, s.targets], pos_weight=torch.tensor(b.pos_weight), reduction='none'
                    )
                    .mean(1)[m[:, 0]]
                    .mean()
                )
            total = total + l
        return total

    torch.testing.assert_close(bound.loss_func(z, y), hand(), rtol=1e-5, atol=1e-6)


def test_balanced_weights_count_rows_by_their_weight():
    df = table(80).assign(w=np.random.default_rng(1).integers(0, 4, 80))
    flow = Flow(
        'f',
        BinaryBlock('gate', pos_weight='balanced'),
        SingleLabelBlock('kind', class_weights='balanced'),
        weight_col='w',
    )
    bound, k = flow.bind(df), df[df.kind.notna()]
    assert bound.tasks['kind'].class_weights == pytest.approx(
        compute_class_weight('balanced', classes=np.array(list('pqr')), y=np.repeat(k.kind.to_numpy(dtype=str), k.w))
    )


@pytest.mark.parametrize('gates', [[1, 1, 1], [0, 0], [None, None]])
def test_balanced_of_one_answer_only(gates):
    df = pd.DataFrame(dict(gate=pd.Series(gates, dtype=object), kind=pd.Series(['a'] * len(gates), dtype=object)))
    bound = Flow(
        'f', BinaryBlock('gate', pos_weight='balanced'), SingleLabelBlock('kind', class_weights='balanced')
    ).bind(df)
    assert bound.tasks['gate'].pos_weight == [1.0] and bound.tasks['kind'].class_weights == (1.0,)


@pytest.mark.parametrize(
    'make,text',
    [
        (lambda: BinaryBlock('x', pos_weight='balance'), "pos_weight='balance'.*or 'balanced'"),
        (lambda: SingleLabelBlock('x', class_weights='balance'), "or 'balanced'"),
        (lambda: SingleLabelBlock('x', class_weights=3), 'one a class'),
        (lambda: MultiLabelBlock('x', pos_weight=[1, -1]), 'or one a label'),
        (
            lambda: MultiLabelBlock('x', vocab=list('ab'), pos_weight=[1, 2, 3]).bind(pd.DataFrame(dict(x=['a']))),
            '3 values in pos_weight for 2 labels',
        ),
        (lambda: BinaryBlock('x', loss='focl'), "did you mean 'focal'"),
        (lambda: BinaryBlock('x', gamma=1), "add loss='focal'"),
        (lambda: SingleLabelBlock('x', loss='focal', gamma=-1), 'gamma=-1'),
        (lambda: BinaryBlock('x', loss='focal', alpha=2), 'alpha=2'),
        (lambda: SingleLabelBlock('x', loss='focal', label_smoothing=0.1), 'label_smoothing'),
    ],
)
def test_bad_arguments(make, text):
    with pytest.raises(FlowError, match=text):
        make()


# ---- focal
# ------------------------------------------------------------------------------------------------------------
def test_focal_tasks_in_a_flow_equal_torchvision():
    df = table(100)
    flow = Flow(
        'f',
        BinaryBlock('gate', loss='focal'),
        BinaryBlock('b', 'gate', loss='focal', pos_weight=3.0),
        BinaryBlock('c', 'gate', loss='focal', gamma=1, alpha=0.25),
        BinaryBlock('d', 'gate'),
        MultiLabelBlock('tags', loss='focal'),
        SingleLabelBlock('kind', loss='focal', gamma=1.5, class_weights=[1, 2, 3]),
    )
    bound = flow.bind(df)
    assert [sorted(bound.paths[i] for i in f.tasks) for f in bound.families] == [
        ['b', 'gate', 'tags'],
        ['c'],
        ['d'],
        ['kind'],
    ]
    y, z = bound.encode(df).as_subclass(torch.Tensor), torch.randn(100, bound.c) * 3
    per = bound.loss_func.per_task(z, y)
    for p, gamma, alpha in (('gate', 2, -1), ('c', 1, 0.25), ('tags', 2, -1)):
        s = bound.slices[p]
        m = y[:, 1, s.targets][:, 0] > 0
        want = sigmoid_focal_loss(z[:, s.logits], y[:, 0, s.targets], alpha=alpha, gamma=gamma).mean(1)[m].mean()
        torch.testing.assert_close(per[bound.paths.index(p)], want)
    s = bound.slices['b']
    m, v = y[:, 1, s.targets] > 0, y[:, 0, s.targets]
    torch.testing.assert_close(
        per[1], (sigmoid_focal_loss(z[:, s.logits], v, alpha=-1, gamma=2) * (1 + 2 * v))[m].mean()
    )
    s = bound.slices['kind']
    m, v = y[:, 1, s.targets][:, 0] > 0, y[:, 0, s.targets][:, 0].long()
    p = z[:, s.logits].softmax(1).gather(1, v[:, None])[:, 0]
    torch.testing.assert_close(per[-1], (-((1 - p) ** 1.5) * p.log() * torch.tensor([1.0, 2, 3])[v])[m].mean())
    torch.testing.assert_close(bound.loss_func(z, y), per.sum(), rtol=1e-5, atol=1e-6)
    again = Flow.from_json(flow.to_json())
    assert again.to_json() == flow.to_json() and torch.equal(again.bind(df).loss_func(z, y), bound.loss_func(z, y))
    assert '"loss": "focal"' in flow.to_json() and flow.to_json().count('gamma') == 2


def test_probabilities_and_temperatures_are_those_of_the_logits():
    df = table(100)
    a, b = (
        Flow('f', BinaryBlock('gate', **kw), SingleLabelBlock('kind', **kw)).bind(df) for kw in ({}, dict(loss='focal'))
    )
    z = torch.randn(100, a.c)
    assert torch.equal(a.loss_func.activation(z), b.loss_func.activation(z))
    for p in a.paths:
        assert torch.equal(
            a.tasks[p].nll(torch.ones(2, 3), torch.ones(2, 3) if p == 'gate' else torch.ones(2)),
            b.tasks[p].nll(torch.ones(2, 3), torch.ones(2, 3) if p == 'gate' else torch.ones(2)),
        )


def test_the_core_does_not_import_vision():
    code = (
        "import sys, fastai_condmtl.tasks.all, fastai_condmtl.learn.partial, fastai_condmtl.callback.schedule; "
        "assert 'torchvision' not in sys.modules and 'fastai.vision' not in sys.modules"
    )
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('make', ['stock', 'branched'])
def test_normalisation_without_parameters_belongs_to_its_neck(make):
    "Its statistics move where the layers around it are trained, and stay where they are not"
    dls = data(flow_of_all())
    neck = lambda n: nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.Linear(8, n))
    norm = nn.BatchNorm1d(6, affine=False)  # of the body, which is not trained
    head = neck(dls.c) if make == 'stock' else conditional_head(dls.flow, 16, None, neck(dls.c))
    learn = Learner(dls, nn.Sequential(nn.Sequential(norm, nn.Linear(6, 16)), head), splitter=two_groups)
    inner = next(m for m in head.modules() if isinstance(m, nn.BatchNorm1d))
    for neck_too in (True, False):
        learn.freeze_except('size', neck=neck_too)
        was = inner.running_mean.clone(), norm.running_mean.clone()
        fit(learn, 1, 1e-2)
        assert torch.equal(was[0], inner.running_mean) == (not neck_too) and torch.equal(was[1], norm.running_mean)


def test_weights_of_tasks_go_in_and_come_out():
    "Whatever the order in which the loss keeps them"
    dls = data(flow_of_all())
    loss = dls.loss_func.clone()
    want = torch.arange(1.0, len(dls.flow.paths) + 1)
    loss.set_weights(want)
    assert torch.equal(loss.task_weights(), want) and torch.equal(loss.clone().task_weights(), want)
    x, y = torch.randn(32, dls.c), dls.one_batch()[1]
    torch.testing.assert_close(
        loss(x, y).as_subclass(torch.Tensor),
        (loss.per_task(x, y).nan_to_num() * want).sum().as_subclass(torch.Tensor),
        rtol=1e-5,
        atol=1e-6,
    )
