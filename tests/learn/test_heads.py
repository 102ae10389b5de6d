"""Fused heads against one module a task, branches where they are needed against branches everywhere, and what a
fastai user does with a learner that has
them. The reference networks are built here, task by task, from the paths alone."""

import contextlib, copy, io, pickle, random, subprocess, sys, textwrap
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given
from PIL import Image
from torch import nn
from fastai.vision.all import Callback, GradientAccumulation, Learner, MixUp, Resize, resnet18, set_seed
from fastai_condmtl.vision.all import (
    BinaryBlock,
    BoundedRegressionBlock,
    Branch,
    ConditionalDataLoaders,
    Flow,
    FlowError,
    MultiLabelBlock,
    SingleLabelBlock,
    UnboundedRegressionBlock,
    any_of,
    conditional_head,
    conditional_vision_learner,
)
from fastai_condmtl.learn.heads import NeededRows, head_of
from oracle import build, frame, walk
from random_flows import checks, names_for, random_spec, random_table, rngs

pytestmark = pytest.mark.filterwarnings('ignore')
NF = 7


# ---- random flows with heads
# --------------------------------------------------------------------------------------------
def random_heads(rng, max_tasks=8):
    "A random spec whose tasks name branches, hidden layers and each other; its table bound"
    spec = random_spec(rng, max_tasks=max_tasks, losses=True)
    tasks, around = {p: t for p, t, *_ in walk(spec)}, {p: prefixes for p, _, prefixes, _ in walk(spec)}
    rank = rng.sample(list(tasks), len(tasks))
    for i, p in enumerate(rank):
        kw = tasks[p].setdefault('kw', {})
        if rng.random() < 0.4:
            kw['hidden'] = rng.choice([2, 2, 3])
        if rng.random() < 0.6:
            kw['features'] = rng.choice(['a', 'b', 'c'])
        free = [names[0] for q in rank[:i] if (names := names_for(q, around[p], tasks))]
        if free and rng.random() < 0.5:
            kw |= dict(uses=rng.sample(free, rng.randint(1, min(2, len(free)))), detach_uses=rng.random() < 0.5)
    table = random_table(rng, spec, rng.randint(5, 9))
    df = frame(spec, table, rng)
    flow = build(spec, rng)
    return flow.bind(df), df


def make(bound, rng, only_needed=False):
    "A head without dropout whose branches wait for some rows"
    names = [f for f in dict.fromkeys(bound.plan.features) if f]
    neck = lambda: nn.Sequential(nn.Linear(NF, 5), nn.Tanh(), nn.Linear(5, rng.randint(2, 4)))
    torch.manual_seed(rng.randint(0, 2**20))
    head = conditional_head(
        bound, NF, {n: Branch(neck(), only_needed=only_needed and rng.random() < 0.8) for n in names}
    )
    for m in head.modules():
        if isinstance(m, nn.Dropout):
            m.p = 0.0
    return head


class OneByOne(nn.Module):
    """The same network, a module a task, in double precision; `rows` says where each parameter's values stand in
    the head"""

    def __init__(self, head, bound):
        super().__init__()
        self.bound, self.necks, self.heads, self.adds, self.rows = (
            bound,
            nn.ModuleDict(),
            nn.ModuleDict(),
            nn.ModuleDict(),
            [],
        )
        key = lambda p: p.replace('.', '/')
        for name, unit in zip(head.names, head.units):
            if unit.neck is not None:
                self.necks[str(name)] = copy.deepcopy(unit.neck).double()
            at = 0
            for h in unit.heads:
                n = h.out_features if isinstance(h, nn.Linear) else h.weight.shape[0] * h.weight.shape[1]
                cols = unit.cols[at : at + n]
                at += n
                for p, s in bound.slices.items():
                    if s.logits.start not in cols:
                        continue
                    k, w = cols.index(s.logits.start), s.logits.stop - s.logits.start
                    assert cols[k : k + w] == list(range(s.logits.start, s.logits.stop))
                    if isinstance(h, nn.Linear):
                        m = nn.Linear(h.in_features, w)
                        parts = [(m.weight, h.weight, slice(k, k + w))] + (
                            [(m.bias, h.bias, slice(k, k + w))] if h.bias is not None else []
                        )
                    else:
                        H = h.shape[1]
                        m = nn.Sequential(nn.Linear(h.first.in_features, H), nn.ReLU(), nn.Linear(H, w))
                        t = k // h.weight.shape[1]
                        parts = [
                            (m[0].weight, h.first.weight, slice(t * H, t * H + H)),
                            (m[0].bias, h.first.bias, slice(t * H, t * H + H)),
                            (m[2].weight, h.weight, t),
                            (m[2].bias, h.bias, t),
                        ]
                    with torch.no_grad():
                        for mine, theirs, at_ in parts:
                            mine.copy_(theirs[at_])
                    self.rows += parts
                    self.heads[key(p)] = m
        for u in head.uses:
            p = bound.paths[u.task]
            self.adds[key(p)] = m = nn.Linear(u.lin.in_features, u.lin.out_features, bias=False)
            with torch.no_grad():
                m.weight.copy_(u.lin.weight)
            self.rows.append((m.weight, u.lin.weight, slice(None)))
        self.double()

    def forward(self, x):
        "Logits `(bs, C)`; tasks that are used come first, by recursion"
        x, b, seen = x.double(), self.bound, {}

        def logits(i):
            if i in seen:
                return seen[i]
            p, name = b.paths[i], str(b.plan.features[i])
            z = self.heads[p.replace('.', '/')](self.necks[name](x) if name in self.necks else x)
            if b.plan.blocks[i].uses:
                acts = []
                for u in b.plan.blocks[i].uses:
                    j = b.paths.index(b.plan.names.find(u, p.rpartition('.')[0]))
                    block, a = b.plan.blocks[j], logits(j)
                    if b.plan.blocks[i].detach_uses:
                        a = a.detach()
                    acts.append(
                        a.softmax(1)
                        if isinstance(block, SingleLabelBlock)
                        else a
                        if isinstance(block, UnboundedRegressionBlock)
                        else a.sigmoid()
                        if isinstance(block, (BinaryBlock, MultiLabelBlock, BoundedRegressionBlock))
                        else block.activate(a)
                    )  # other kinds have tests of their own
                z = z + self.adds[p.replace('.', '/')](torch.cat(acts, 1))
            seen[i] = z
            return z

        res = x.new_zeros(len(x), b.c)
        return torch.cat(
            [
                res[:, :0],
                *[logits(i) for i in sorted(range(len(b.paths)), key=lambda i: b.slices[b.paths[i]].logits.start)],
            ],
            1,
        )


@checks(40)
@given(rngs)
def test_fused_heads_equal_one_module_a_task(rng):
    bound, df = random_heads(rng)
    head = make(bound, rng)
    naive = OneByOne(head, bound)
    x = torch.randn(6, NF, requires_grad=True)
    z = x.detach().clone().requires_grad_()
    a, b = head(x), naive(z)
    torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
    w = torch.randn(a.shape)
    (a * w).sum().backward()
    (b * w).sum().backward()
    torch.testing.assert_close(x.grad, z.grad, rtol=1e-3, atol=1e-4)
    for mine, theirs, at in naive.rows:
        torch.testing.assert_close(theirs.grad[at].double(), mine.grad, rtol=1e-3, atol=1e-4)
    for name, unit in zip(head.names, head.units):
        if str(name) in naive.necks:
            for p, q in zip(
                unit.parameters() if unit.neck is None else unit.neck.parameters(), naive.necks[str(name)].parameters()
            ):
                torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-3, atol=1e-4)


def labels(bound, df, rng, share):
    "Packed labels, each row's mask kept with probability `share`"
    y = bound.encode(df).as_subclass(torch.Tensor).clone()
    keep = torch.tensor([rng.random() < share for _ in range(len(y))])
    y[~keep] = 0
    return y


@checks(60)
@given(rngs)
def test_gated_training_equals_ungated(rng):
    bound, df = random_heads(rng)
    head, loss = make(bound, rng, True), bound.loss_func
    other = copy.deepcopy(head)
    y = labels(bound, df, rng, rng.choice([0, 0.1, 0.5, 1]))
    x = torch.randn(len(y), NF)
    xs = [x.clone().requires_grad_() for _ in range(2)]
    a = loss(other(xs[0]), y)
    head.context = NeededRows(len(y), y[:, 1])
    b = loss(head(xs[1]), y)
    torch.testing.assert_close(a, b)
    a.backward()
    b.backward()
    torch.testing.assert_close(xs[0].grad, xs[1].grad, rtol=1e-4, atol=1e-6)
    for (n, p), q in zip(other.named_parameters(), head.parameters()):
        assert q.grad is not None, n  # DDP asks for every parameter
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-6, msg=n)


@checks(60)
@given(rngs)
def test_gated_predictions_equal_ungated_where_a_task_is_reached(rng):
    bound, df = random_heads(rng)
    head, loss = make(bound, rng, True).eval(), bound.loss_func
    for p in loss.thresholds:
        loss.thresholds[p] = rng.choice([0.3, 0.5, 0.6])
    n = rng.choice([1, 2, 9])
    x = torch.randn(n, NF) * rng.choice([1, 4])
    full = loss.decodes(loss.activation(head(x)))
    head.context = NeededRows(n, None, loss)
    some = loss.decodes(loss.activation(head(x)))
    assert torch.equal(full[:, 1], some[:, 1])
    on = full[:, 1] > 0
    torch.testing.assert_close(some[:, 0][on], full[:, 0][on])
    y = labels(bound, df, rng, 0.7)[:n]
    x = x[: len(y)]
    head.context = None
    full = head(x)
    head.context = NeededRows(len(y), y[:, 1], loss)
    some = head(x)
    torch.testing.assert_close(loss(some, y), loss(full, y))
    assert some.isfinite().all()
    torch.testing.assert_close(loss.per_sample(some, y), loss.per_sample(full, y), equal_nan=True, rtol=1e-4, atol=1e-5)
    a, b = (loss.decodes(loss.activation(z)) for z in (some, full))
    assert torch.equal(a[:, 1], b[:, 1])


# ---- a branch that waits for another
# --------------------------------------------------------------------------------------
def chain(n=40, seed=0):
    "Branches whose conditions ask tasks of other branches, one of them through a negation of a task that waits"
    a = BinaryBlock('a')
    b = BinaryBlock('b', features='left') | a
    c = BinaryBlock('c', features='right') | ~b
    d = SingleLabelBlock('d', vocab=['u', 'v'], features='deep') | any_of(c, b)
    rng = np.random.default_rng(seed)
    df = pd.DataFrame(
        dict(a=rng.random(n) < 0.5, b=rng.random(n) < 0.5, c=rng.random(n) < 0.5, d=rng.choice(['u', 'v'], n))
    )
    return Flow('chain', d, c, b, a).bind(df), df


def test_rows_follow_the_conditions_across_branches():
    bound, df = chain()
    torch.manual_seed(0)
    head = conditional_head(
        bound, NF, {n: Branch(nn.Linear(NF, 4), only_needed=True) for n in ('left', 'right', 'deep')}
    ).eval()
    loss, x = bound.loss_func, torch.randn(40, NF) * 3
    dec = loss.decodes(loss.activation(head(x)))
    v = {p: dec[:, 0, s.targets.start] > 0 for p, s in bound.slices.items()}
    head.context = NeededRows(40, None, loss)
    head(x)
    a = v['a']
    assert head.ran == {
        k: max(1, int(m.sum())) for k, m in dict(left=a, right=a & ~v['b'], deep=a & (v['b'] | v['c'])).items()
    }
    y = bound.encode(df)
    head.train().context = NeededRows(40, y.mask.as_subclass(torch.Tensor))
    head(x)
    a, b, c = df.a, df.b, df.c
    # c is not applicable where b is true, so any_of(c, b) is true there by b alone; where a is false, nothing is known
    assert head.ran == dict(left=int(a.sum()), right=int((a & ~b).sum()), deep=int((a & (b | c)).sum()))


@pytest.mark.parametrize('share', [0, 1])
def test_no_row_and_every_row(share):
    bound, df = chain()
    head = conditional_head(
        bound, NF, {n: Branch(nn.Linear(NF, 4), only_needed=True) for n in ('left', 'right', 'deep')}
    )
    y = bound.encode(df.assign(a=bool(share), b=True)).as_subclass(torch.Tensor)
    head.context = NeededRows(40, y[:, 1])
    out = head(x := torch.randn(40, NF))
    assert head.ran['left'] == (40 if share else 2) and head.ran['right'] == 2  # batch norm wants two rows
    loss = bound.loss_func(out, y)
    head.context = None
    torch.testing.assert_close(loss, bound.loss_func(head(x), y))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_a_batch_of_one_row():
    bound, df = chain()
    head = conditional_head(
        bound, NF, {n: Branch(nn.Linear(NF, 4), only_needed=True) for n in ('left', 'right', 'deep')}
    )
    for i in range(4):
        y = bound.encode(df)[i : i + 1].as_subclass(torch.Tensor)
        x = torch.randn(1, NF)
        full = bound.loss_func(head(x), y)
        head.context = NeededRows(1, y[:, 1])
        torch.testing.assert_close(bound.loss_func(head(x), y), full)
        head.context = None


def test_chain_of_uses_across_branches_with_a_stop():
    "Gradients of `third` reach `second` and end at its activations' reader, as detach_uses says"
    first = BinaryBlock('first', features='left')
    second = SingleLabelBlock('second', vocab=['x', 'y', 'z'], features='right', uses=first, hidden=3)
    third = UnboundedRegressionBlock('third', uses='second', detach_uses=True)
    df = pd.DataFrame(dict(first=[0, 1, 1], second=['x', 'y', 'z'], third=[1.0, 2.0, 4.0]))
    bound = Flow('f', third, second, first).bind(df)
    torch.manual_seed(0)
    head = conditional_head(bound, NF, dict(left=nn.Linear(NF, 2), right=nn.Linear(NF, 2))).eval()
    x = torch.randn(5, NF)
    out = head(x)
    s = bound.slices
    out[:, s['third'].logits].sum().backward(retain_graph=True)
    grad = {n: 0.0 if p.grad is None else float(p.grad.abs().sum()) for n, p in head.named_parameters()}
    assert [n for n, g in grad.items() if g and 'uses' in n] == ['uses.1.lin.weight']  # uses.0: second reads first
    left, right = (head.names.index(n) for n in ('left', 'right'))
    assert all(g == 0 for n, g in grad.items() if n.startswith((f'units.{left}.', f'units.{right}.')))
    head.zero_grad()
    out[:, s['second'].logits][:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.units[left].parameters())  # not detached


# ---- errors
# ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    'branches, text',
    [
        (None, "reads features='face', which branches= does not have: hand over {'face': 256}"),
        (dict(fase=8), "did you mean 'fase'"),
        (dict(face=8, hand=8), "no task reads the branch 'hand'"),
        (['face'], 'must be a dict'),
        (dict(face='wide'), 'a branch is a module, or an int'),
        (dict(face=True), 'a branch is a module, or an int'),
        (dict(face=0), 'a branch is a module, or an int'),
        (dict(face=nn.Linear(99, 3)), "the branch 'face' cannot read the body's features of shape (2, 7)"),
        (dict(face=nn.Linear(99, 3)), 'hand over a module that does, or the width of a neck, such as 256'),
        (dict(face=nn.Unflatten(1, (7, 1))), 'it must give features (bs, nf) or a map'),
        (dict(face=nn.LSTM(NF, 3)), 'it must give features'),
    ],
)
def test_branches_that_do_not_fit(branches, text):
    bound = Flow('f', BinaryBlock('x'), BinaryBlock('y', features='face')).bind(pd.DataFrame(dict(x=[0, 1], y=[0, 1])))
    with pytest.raises(FlowError) as e:
        conditional_head(bound, NF, branches)
    assert text in str(e.value)


def test_blocks_and_flows_that_do_not_fit():
    df = pd.DataFrame(dict(x=[0, 1], y=[0, 1]))
    for f, text in [
        (lambda: BinaryBlock('x', hidden=0), 'positive whole number'),
        (lambda: BinaryBlock('x', hidden=2.0), 'positive whole number'),
        (lambda: BinaryBlock('x', features='a b'), 'name of a branch'),
        (lambda: Flow('f', BinaryBlock('x'), features=''), 'name of a branch'),
        (lambda: BinaryBlock('x', uses=[3]), 'must be tasks'),
        (lambda: BinaryBlock('x', uses=[~BinaryBlock('y')]), 'must be tasks'),
        (
            lambda: Flow('f', BinaryBlock('x', uses='y'), BinaryBlock('y', uses='x')).bind(df),
            "Take one of these uses= away",
        ),
        (lambda: Flow('f', BinaryBlock('x', uses='x')).bind(df), 'circle'),
        (
            lambda: Flow('f', BinaryBlock('x', uses='z'), BinaryBlock('y')).bind(df),
            "'x' uses task 'z', which the flow does not have",
        ),
    ]:
        with pytest.raises(FlowError) as e:
            f()
        assert text in str(e.value), str(e.value)


def test_inner_names_win_and_paths_are_taken():
    "features= of the innermost flow that names one; a task's own beats it; uses= finds names from the inside outwards"
    inner = Flow(
        'in',
        BinaryBlock('x', 'x2'),
        BinaryBlock('y', uses='x'),
        BinaryBlock('z', features='own', uses='x'),
        features='inner',
    )
    bound = Flow('f', BinaryBlock('x'), Flow('mid', inner, BinaryBlock('w', uses='mid.in.x'), features='mid')).bind(
        pd.DataFrame(dict(x=[0, 1], x2=[1, 0], y=[0, 1], z=[0, 1], w=[1, 1]))
    )
    assert dict(zip(bound.paths, bound.plan.features)) == {
        'x': None,
        'mid.in.x': 'inner',
        'mid.in.y': 'inner',
        'mid.in.z': 'own',
        'mid.w': 'mid',
    }
    assert [[bound.paths[j] for j in u] for u in bound.plan.uses] == [[], [], ['mid.in.x'], ['mid.in.x'], ['mid.in.x']]


def test_a_branch_that_is_used_runs_everywhere_and_says_so():
    bound = Flow(
        'f', BinaryBlock('x'), BinaryBlock('y', features='b') | BinaryBlock('x'), BinaryBlock('z', uses='y')
    ).bind(pd.DataFrame(dict(x=[0, 1], y=[0, 1], z=[0, 1])))
    with pytest.warns(UserWarning, match="task 'z' uses 'y', so branch 'b' runs on every row"):
        head = conditional_head(bound, NF, dict(b=Branch(3, only_needed=True)))
    assert head.waits == []


# ---- learners
# ---------------------------------------------------------------------------------------------------------------
def make_flow(uses=True):
    on, hue = BinaryBlock('on'), SingleLabelBlock('hue', hidden=6)
    look = Flow(
        'look',
        hue,
        MultiLabelBlock('tags', hidden=6),
        BoundedRegressionBlock('level', y_range=(10, 40)),
        features='look',
    )
    return Flow(
        'lamp',
        on,
        look | on,
        UnboundedRegressionBlock('heat', features='heat') | (on & hue.eq('red')),
        BinaryBlock('warm', uses=['on'] if uses else ()),
    )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('lamps')


@pytest.fixture(scope='module')
def df(folder, n=64):
    rng, rows = np.random.default_rng(0), []
    for i in range(n):
        on, hue, level, tags = (
            rng.random() < 0.5,
            int(rng.integers(3)),
            float(rng.uniform(10, 40)),
            [t for t in ('left', 'right') if rng.random() < 0.5],
        )
        im = np.full((16, 16, 3), 15)
        if on:
            im[4:12, :, hue] = 60 + level * 4
        Image.fromarray(np.clip(im + rng.integers(-6, 7, im.shape), 0, 255).astype(np.uint8)).save(folder / f'{i}.png')
        rows.append(
            dict(
                img=f'{i}.png',
                on=on,
                hue=('red', 'green', 'blue')[hue] if on else None,
                tags=','.join(tags) if on else None,
                level=level if on else np.nan,
                heat=level * 3 if on and hue == 0 else np.nan,
                warm=on and level > 20 if rng.random() < 0.9 else None,
            )
        )
    return pd.DataFrame(rows)


def make_dls(df, folder, flow=None, **kw):
    return ConditionalDataLoaders.from_df(
        df, flow or make_flow(), path=folder, **(dict(item_tfms=Resize(16), bs=16, num_workers=0, seed=1) | kw)
    )


def waiting(**kw):
    return dict(
        look=Branch(nn.Sequential(nn.Conv2d(kw.pop('nf', 512), 8, 1), nn.ReLU()), only_needed=True),
        heat=Branch(8, only_needed=True),
    )


@contextlib.contextmanager
def quiet(learn):
    with learn.no_bar(), learn.no_logging(), contextlib.redirect_stdout(io.StringIO()):
        yield


@pytest.fixture(scope='module')
def dls(df, folder):
    return make_dls(df, folder)


@pytest.fixture
def learn(dls):
    set_seed(3)
    return conditional_vision_learner(dls, 'test_resnet', pretrained=False, branches=waiting(nf=96))


def test_freeze_groups_rates_and_summary(dls):
    learn = conditional_vision_learner(dls, resnet18, pretrained=False, branches=waiting())
    stock = conditional_vision_learner(make_dls_plain(dls), resnet18, pretrained=False)
    learn.freeze()
    stock.freeze()
    groups, theirs = learn.opt.param_lists, stock.opt.param_lists
    assert len(groups) == len(theirs) == 3
    assert [len(g) for g in groups[:2]] == [len(g) for g in theirs[:2]]
    assert {id(p) for p in groups[2]} == {id(p) for p in learn.model[1].parameters()}
    assert all(p.requires_grad for p in groups[2]) and not any(p.requires_grad for p, m in _not_norm(learn.model[0]))
    with quiet(learn):
        learn.fit_one_cycle(1, slice(1e-5, 1e-3))
    lrs = [h['lr'] for h in learn.opt.hypers]
    assert lrs[0] < lrs[1] < lrs[2]
    assert 'ConditionalHead' in repr(learn.model) and 'Total params' in str(learn.summary())


def make_dls_plain(dls):
    "The same pictures with a flow that asks for nothing"
    return make_dls(dls.train.items, dls.path, Flow('lamp', BinaryBlock('on')))


def _not_norm(body):
    return [(p, m) for m in body.modules() if not isinstance(m, nn.BatchNorm2d) for p in m.parameters(recurse=False)]


@pytest.mark.trains
def test_what_a_user_does(learn, df, folder):
    with quiet(learn):
        learn.fine_tune(1)
        assert set(learn.model[1].ran) == {'look', 'heat'}
        on, dec = learn.get_preds()[0], learn.get_preds(with_decoded=True)[2]
        every = learn.evaluate()
        table, tta = learn.predict_df(df.iloc[:10]), learn.tta(n=2)
        got = learn.validate()
        res, tree = learn.predict(folder / df.img[0]), learn.explain(df[:3])
        marg = learn.get_marginals(df[:4])
    assert learn.model[1].context is None
    # validation: the same numbers as with every row
    head = learn.model[1]
    waits, head.waits = head.waits, []
    with quiet(learn):
        full = learn.validate()
        dec2, table2 = learn.get_preds(with_decoded=True)[2], learn.predict_df(df.iloc[:10])
        every2, tta2, marg2 = learn.evaluate(), learn.tta(n=2), learn.get_marginals(df[:4])
    head.waits = waits
    np.testing.assert_allclose(
        np.array(list(got), dtype=float), np.array(list(full), dtype=float), rtol=1e-5, equal_nan=True
    )
    reached = dec2[:, 1] > 0
    assert torch.equal(dec[:, 1], dec2[:, 1])
    torch.testing.assert_close(dec[:, 0][reached], dec2[:, 0][reached], rtol=1e-4, atol=1e-5)
    pd.testing.assert_frame_equal(table, table2, rtol=1e-4)
    pd.testing.assert_frame_equal(every, every2, rtol=1e-4)
    pd.testing.assert_frame_equal(marg, marg2, rtol=1e-4)
    assert tta[0].isfinite().all() and tta2[0].isfinite().all()
    assert res[2].isfinite().all() and 'on' in str(tree)


def test_mixup_and_accumulation_run_every_row(learn):
    with quiet(learn):
        learn.fit_one_cycle(1, 1e-3, cbs=[MixUp(), GradientAccumulation(32)])
    assert all(p.isfinite().all() for p in learn.model.parameters())


class Ran(Callback):
    "What ran in each training batch"

    def before_fit(self):
        self.rows = []

    def after_pred(self):
        if self.training:
            self.rows.append(dict(head_of(self.learn).ran))


def test_unlabelled_rows_and_missing_tasks(df, folder):
    "A training set in which no row counts for a branch, and one in which none counts at all for most"
    none = df.assign(heat=np.nan)
    dls = make_dls(none, folder)
    learn = conditional_vision_learner(dls, 'test_resnet', pretrained=False, branches=waiting(nf=96))
    with quiet(learn):
        learn.fit(1, cbs=(ran := Ran()))
    assert {r['heat'] for r in ran.rows} == {2}
    assert all(p.isfinite().all() for p in learn.model.parameters())
    learn = conditional_vision_learner(
        make_dls(df.assign(on=None, warm=None), folder), 'test_resnet', pretrained=False, branches=waiting(nf=96)
    )
    with quiet(learn):
        learn.fit(1, cbs=(ran := Ran()))
    assert {tuple(r.values()) for r in ran.rows} == {(2, 2)}
    assert all(p.isfinite().all() for p in learn.model.parameters())


def test_export_reads_in_a_new_process(learn, df, folder, tmp_path):
    learn.path = tmp_path
    with quiet(learn):
        learn.fit(1)
        want = learn.predict_df(df.iloc[:6])
    learn.export('x.pkl')
    code = f"""
        import warnings; warnings.filterwarnings('ignore')
        import torch, pandas as pd; torch.set_num_threads(1)
        from fastai.learner import load_learner
        learn = load_learner({str(tmp_path / 'x.pkl')!r})
        learn.predict_df(pd.read_pickle({str(tmp_path / 'df.pkl')!r}).iloc[:6]).to_pickle({str(tmp_path / 'out.pkl')!r})
        print(learn.model[1].ran)"""
    df.assign(img=[str(folder / f) for f in df.img]).to_pickle(tmp_path / 'df.pkl')
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(pd.read_pickle(tmp_path / 'out.pkl'), want, rtol=1e-4)


def test_copies_are_independent(learn):
    other = copy.deepcopy(learn.model)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    x = torch.randn(3, 3, 16, 16)
    learn.model.eval()
    other.eval()
    assert other(x).abs().sum() == 0 and learn.model(x).abs().sum() > 0
    again = pickle.loads(pickle.dumps(learn.model))
    torch.testing.assert_close(again.eval()(x), learn.model(x))


def test_a_learner_of_ones_own(df, folder):
    "A body of one's own, no vision_learner: the head alone and `equip`"
    from fastai_condmtl.equip import equip
    from fastai_condmtl.learn.heads import RunNeeded

    dls = make_dls(df, folder)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU())
    feats = body(torch.zeros(2, 3, 16, 16))
    learn = equip(Learner(dls, nn.Sequential(body, conditional_head(dls.flow, feats, waiting(nf=8)))))
    learn.add_cb(RunNeeded())
    with quiet(learn):
        learn.fit(1)
    assert set(learn.model[1].ran) == {'look', 'heat'}


def _rank(rank, sync, out):
    import torch.distributed as dist

    dist.init_process_group('gloo', init_method=f'file://{sync}', rank=rank, world_size=2)
    bound, head, y, x = _halves()
    model, s = nn.parallel.DistributedDataParallel(head), slice(20 * rank, 20 * rank + 20)
    head.context = NeededRows(20, y[s, 1])
    bound.loss_func(model(x[s]), y[s]).backward()
    torch.save([p.grad for p in head.parameters()], f'{out}{rank}')
    dist.destroy_process_group()


def _halves():
    bound, df = chain()
    torch.manual_seed(0)
    head = conditional_head(
        bound, NF, {n: Branch(nn.Linear(NF, 4), only_needed=True) for n in ('left', 'right', 'deep')}
    )
    return (
        bound,
        head,
        bound.encode(df.assign(a=[i >= 20 for i in range(40)])).as_subclass(torch.Tensor),
        torch.randn(40, NF),
    )


def test_two_processes_agree_with_one(tmp_path):
    """DistributedDataParallel (gloo) over a head whose branches have no row on one rank: no parameter is left
    out, gradients are the mean of both"""
    ps = [
        torch.multiprocessing.get_context('fork').Process(target=_rank, args=(r, tmp_path / 'sync', tmp_path / 'grads'))
        for r in range(2)
    ]
    for p in ps:
        p.start()
    for p in ps:
        p.join(60)
    assert [p.exitcode for p in ps] == [0, 0]
    bound, head, y, x = _halves()
    for s in (slice(0, 20), slice(20, 40)):
        (bound.loss_func(head(x[s]), y[s]) / 2).backward()
    for r in range(2):
        for a, b in zip(torch.load(f"{tmp_path / 'grads'}{r}"), head.parameters()):
            torch.testing.assert_close(a, b.grad)


def test_rows_of_a_broken_batch_do_not_leave():
    """A batch that fails between `before_batch` and `after_pred` leaves its rows on the head; copies and files do
    not take them along."""
    rng = random.Random(3)
    head = make(random_heads(rng)[0], rng)
    head.context = NeededRows(4, torch.ones(4, 2))
    assert copy.deepcopy(head).context is None and head.context is not None
