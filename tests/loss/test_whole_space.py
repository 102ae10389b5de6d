"""Whole-space training against a loop over rows in plain probabilities (float64), the labels' truth by the second
implementation of the conditional rule."""

import copy, math, pickle
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from fastai_condmtl.tasks.binary import BinaryBlock
from fastai_condmtl.tasks.regression import BoundedRegressionBlock
from fastai_condmtl.tasks.multi_label import MultiLabelBlock
from fastai_condmtl.tasks.single_label import SingleLabelBlock
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.core.conditions import any_of
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.learn.heads import Branch, conditional_head
from random_flows import checks, rngs
from fastai_condmtl.loss.conditional import ConditionalLoss
from fastai_condmtl.tasks.regression import UnboundedRegressionBlock
from fastai_condmtl.all import CountBlock, OrdinalBlock

pytestmark = pytest.mark.filterwarnings('ignore')
VOCAB = ['u', 'v', 'w']


def random_chain(rng, whole=None):
    """A flow of binary, single- and multi-label tasks whose conditions are conjunctions; per task its parts
    `(parent, kind, argument, wanted)`"""
    blocks, parts = {}, {}
    for i in range(rng.randint(3, 7)):
        name, conds = f't{i}', []
        for p in rng.sample(list(blocks), min(len(blocks), rng.choice([0, 1, 1, 2]))):
            b = blocks[p]
            if isinstance(b, BinaryBlock):
                conds.append((p, 'is', None, rng.random() < 0.7))
            elif isinstance(b, SingleLabelBlock):
                conds.append((p, 'in', tuple(rng.sample(VOCAB, rng.randint(1, 2))), rng.random() < 0.7))
            else:
                conds.append((p, 'has', rng.choice(['x', 'y']), rng.random() < 0.7))
        kind = rng.choice(['binary', 'binary', 'single', 'multi'])
        kw = dict(weight=rng.choice([1.0, 2.5]))
        if kind == 'binary':
            if conds and rng.random() < 0.8:
                kw |= dict(
                    whole_space=rng.choice([True, 'detach', 'both']) if whole is None else whole,
                    pos_weight=rng.choice([None, 3.0]),
                )
            b = BinaryBlock(name, **kw)
        else:
            b = (
                SingleLabelBlock(name, vocab=VOCAB, **kw)
                if kind == 'single'
                else MultiLabelBlock(name, vocab=['x', 'y'], **kw)
            )
        for p, k, arg, want in conds:
            q = blocks[p]
            c = q if k == 'is' else (q.eq(arg[0]) if len(arg) == 1 else q.isin(arg)) if k == 'in' else q.has(arg)
            if not want:
                c = ~c if k != 'in' or len(arg) > 1 or rng.random() < 0.5 else q.ne(arg[0])
            b = b | c
        blocks[name], parts[name] = b, conds
    return Flow('f', *rng.sample(list(blocks.values()), len(blocks))), blocks, parts


def random_labels(rng, blocks, n):
    value = lambda b: (
        rng.random() < 0.6
        if isinstance(b, BinaryBlock)
        else rng.choice(VOCAB)
        if isinstance(b, SingleLabelBlock)
        else ','.join(t for t in ('x', 'y') if rng.random() < 0.6)
    )
    return pd.DataFrame(
        {
            p: pd.Series([None if rng.random() < 0.25 else value(b) for _ in range(n)], dtype=object)
            for p, b in blocks.items()
        }
    )


class ByHand:
    "One row at a time"

    def __init__(self, bound, parts, df, z):
        self.bound, self.parts, self.df, self.z = bound, parts, df, z.double()

    def holds(self, i, part):
        "True, False or None of one condition, its task's own conditions included"
        p, k, arg, want = part
        if self.applies(i, p) is not True or (v := self.df[p].iloc[i]) is None or v != v:
            return None
        return (bool(v) if k == 'is' else v in arg if k == 'in' else arg in v.split(',')) == want

    def applies(self, i, name):
        said = [self.holds(i, part) for part in self.parts[name]]
        return False if False in said else None if None in said else True

    def all_parts(self, name):
        "Every condition of the chain, each once"
        res = dict.fromkeys(part for p in self.parts[name] for part in [*self.all_parts(p[0]), p])
        return list(res)

    def chance(self, i, part, stop):
        p, k, arg, want = part
        s, z = self.bound.slices[p].logits, self.z[i]
        if stop:
            z = z.detach()
        if k == 'in':
            q = sum(z[s].softmax(0)[VOCAB.index(c)] for c in arg)
        else:
            q = z[s][0 if k == 'is' else 'xy'.index(arg)].sigmoid()
        return q if want else 1 - q

    def merged(self, name):
        "Conditions on one task's class as one: sets of classes meet"
        res = {}
        for p, k, arg, want in self.all_parts(name):
            if k == 'in':
                res.setdefault((p, k), set(VOCAB)).intersection_update(arg if want else set(VOCAB) - set(arg))
            else:
                res[p, k, arg] = want
        return [(key[0], 'in', tuple(sorted(v)), True) if key[1] == 'in' else (*key, v) for key, v in res.items()]

    def cells(self, name, block):
        "Per row the loss of a task, None where nothing is known"
        out, s = [], self.bound.slices[name].logits
        for i in range(len(self.df)):
            on, v = self.applies(i, name), self.df[name].iloc[i]
            mine = on is True and v is not None
            said = [self.holds(i, part) for part in self.all_parts(name)]
            if not mine and False not in said:
                out.append(None)
                continue
            t, own = bool(v) if mine else False, self.z[i][s][0].sigmoid()
            P = own
            for part in self.merged(name):
                P = P * self.chance(i, part, block.whole_space == 'detach')
            w = block.pos_weight or 1.0
            cell = -w * P.log() if t else -(1 - P).log()
            if block.whole_space == 'both' and mine:
                cell = cell - (w * own.log() if t else (1 - own).log())
            out.append(cell)
        return out


def contradicts(e):
    return 'exclude each other' in str(e) or 'never' in str(e)


@checks(80)
@given(rngs)
def test_equals_a_loop_over_rows(rng):
    flow, blocks, parts = random_chain(rng)
    df = random_labels(rng, blocks, n := rng.randint(1, 8))
    bound = flow.bind(df)
    try:
        loss = bound.loss_func
    except FlowError as e:
        assert contradicts(e)
        return
    z = torch.randn(n, bound.c, generator=torch.Generator().manual_seed(rng.randint(0, 2**20)))
    y = bound.encode(df).as_subclass(torch.Tensor)
    a, b = z.clone().requires_grad_(), z.double().requires_grad_()
    plain = Flow('f', *[_without(t) for t in flow.tasks]).bind(df)
    hand, total = ByHand(bound, parts, df, b), 0.0
    rows = plain.loss_func.per_sample(b, y)  # other tasks: as always
    want = []
    for k, p in enumerate(bound.paths):
        block = bound.tasks[p]
        if getattr(block, 'whole_space', False):
            cells = hand.cells(p, block)
            have = [c for c in cells if c is not None]
            want.append(torch.tensor([math.nan if c is None else float(c) for c in cells]))
            if have:
                total = total + block.weight * sum(have) / len(have)
        else:
            want.append(rows[:, k].detach())
            m = ~rows[:, k].isnan()
            if m.any():
                total = total + block.weight * rows[:, k][m].mean()
    got = loss.per_sample(a, y)
    torch.testing.assert_close(got.double(), torch.stack(want, 1).double(), rtol=1e-4, atol=1e-5, equal_nan=True)
    res = loss(a, y)
    torch.testing.assert_close(res.double(), torch.as_tensor(total).double().detach(), rtol=1e-4, atol=1e-5)
    res.backward()
    if torch.is_tensor(total) and total.requires_grad:
        total.backward()
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=1e-3, atol=1e-5)
    else:
        assert a.grad.abs().sum() == 0
    each = copy.deepcopy(loss)
    each.reduction = 'none'
    torch.testing.assert_close(each(z, y).mean(), loss(z, y), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss(z, y.reshape(n, -1)), loss(z, y))
    torch.testing.assert_close(pickle.loads(pickle.dumps(loss))(z, y), loss(z, y))
    torch.testing.assert_close(loss.clone()(z.double(), y.double()).float(), loss(z, y), rtol=1e-4, atol=1e-5)
    # what a prediction is does not change
    assert torch.equal(loss.activation(z), plain.loss_func.activation(z))


def _without(t):
    if isinstance(t, BinaryBlock):
        t = copy.copy(t)
        t.whole_space = False
    return t


def simple(whole=True, n=6):
    a = BinaryBlock('a')
    b = BinaryBlock('b', whole_space=whole) | a
    c = BinaryBlock('c', whole_space=whole) | ~b
    d = SingleLabelBlock('d', vocab=VOCAB)
    e = BinaryBlock('e', whole_space=whole) | (c & d.isin(['u', 'v']))
    df = pd.DataFrame(
        dict(
            a=[1, 0, 1, 1, None, 1],
            b=[0, None, 1, 0, 1, None],
            c=[1, 1, None, 0, None, 1],
            d=['u', 'w', 'v', 'u', 'w', None],
            e=[1, None, 0, 1, 0, 1],
        )
    )
    return Flow('f', a, b, c, d, e).bind(df), df


def test_sure_predictions_have_finite_loss_and_gradients():
    bound, df = simple()
    y = bound.encode(df).as_subclass(torch.Tensor)
    for scale in (30.0, 1e3, 1e5):
        for seed in range(5):
            z = (torch.randn(6, bound.c, generator=torch.Generator().manual_seed(seed)).sign() * scale).requires_grad_()
            loss = bound.loss_func(z, y)
            loss.backward()
            assert loss.isfinite() and z.grad.isfinite().all()
    # in double precision by hand: log(1 - sigmoid(20)sigmoid(20)) of row 1 (a is false) at the task b
    z = torch.full((6, bound.c), 20.0)
    got = bound.loss_func.per_sample(z, y)[1, 1]
    p = 1 / (1 + math.exp(-20))
    assert float(got) == pytest.approx(-math.log(1 - p * p), rel=1e-4)


def test_gradients_stop_at_the_parents_where_asked():
    for whole, flows in ((True, True), ('detach', False), ('both', True)):
        bound, df = simple(whole)
        y = bound.encode(df).as_subclass(torch.Tensor)
        z = torch.randn(6, bound.c, requires_grad=True)
        bound.loss_func.per_sample(z, y)[:, 1].nansum().backward()  # b alone
        own, parent = (z.grad[:, bound.slices[p].logits].abs().sum() for p in 'ba')
        assert own > 0 and (parent > 0) == flows


def test_a_batch_without_labels_and_a_batch_of_one():
    bound, df = simple()
    z = torch.randn(6, bound.c, requires_grad=True)
    loss = bound.loss_func(z, torch.zeros(6, 2, bound.n_targets))
    loss.backward()
    assert loss == 0 and z.grad.abs().sum() == 0
    assert bound.loss_func(z[:1], bound.encode(df)[:1].as_subclass(torch.Tensor)).isfinite()


class Ops(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        self.seen.append(f.overloadpacket.__name__)
        return f(*args, **(kwargs or {}))


def test_nothing_waits_and_work_does_not_grow_with_tasks():
    counts = []
    for n in (2, 30):
        a = BinaryBlock('a')
        bound = Flow('f', a, *[BinaryBlock(f'b{i}', whole_space=True) | a for i in range(n)]).bind(
            df := pd.DataFrame({c: [0, 1] for c in ('a', *[f'b{i}' for i in range(n)])})
        )
        z, y = torch.randn(2, bound.c, requires_grad=True), bound.encode(df).as_subclass(torch.Tensor)
        loss = bound.loss_func  # made here
        with Ops() as ops:
            loss(z, y).backward()
        assert not {'_local_scalar_dense', 'nonzero', 'item', 'masked_select'} & set(ops.seen)
        counts.append(len(ops.seen))
    assert counts[0] == counts[1]


def test_compiles_in_one_graph():
    bound, df = simple()
    y, z = bound.encode(df).as_subclass(torch.Tensor), torch.randn(6, bound.c)
    torch.testing.assert_close(
        torch.compile(bound.loss_func, fullgraph=True, backend='eager')(z, y), bound.loss_func(z, y)
    )


def test_mixup_keeps_both_targets():
    "fastai's MixUp: `reduction='none'` on either target, mixed row by row"
    bound, df = simple()
    y, z = bound.encode(df).as_subclass(torch.Tensor), torch.randn(6, bound.c)
    from fastai.layers import NoneReduce

    with NoneReduce(bound.loss_func) as f:
        a, b = f(z, y), f(z, y.flip(0))
    lam = torch.rand(6)
    assert (a * lam + b * (1 - lam)).mean().isfinite() and a.shape == (6,)
    torch.testing.assert_close(a.mean(), bound.loss_func(z, y))


@pytest.mark.parametrize(
    'cond, text',
    [
        (lambda a, b, n, m: any_of(a, b), '`any_of(a, b)` is true in several ways'),
        (lambda a, b, n, m: ~(a & b), 'is true in several ways'),
        (lambda a, b, n, m: n > 1, "asks 'n' (BoundedRegressionBlock), whose logits are no yes, no or softmax"),
        (lambda a, b, n, m: m.has_any(['x', 'y']), 'is true in several ways'),
        (lambda a, b, n, m: ~m.has_all(['x', 'y']), 'is true in several ways'),
        (lambda a, b, n, m: a & ~a, "its conditions exclude each other at 'a': correct one of them"),
    ],
)
def test_conditions_that_are_no_chain(cond, text):
    a, b, n, m = (
        BinaryBlock('a'),
        BinaryBlock('b'),
        BoundedRegressionBlock('n', y_range=(0, 2)),
        MultiLabelBlock('m', vocab=['x', 'y']),
    )
    df = pd.DataFrame(dict(a=[0, 1], b=[0, 1], n=[1.0, 2.0], m=['x', 'y'], c=[0, 1], d=[0, 1]))
    c = BinaryBlock('c') | cond(a, b, n, m)
    for flow in (
        Flow('f', a, b, n, m, BinaryBlock('c', whole_space=True) | cond(a, b, n, m)),
        Flow('f', a, b, n, m, c, BinaryBlock('d', whole_space=True) | c),
    ):  # its own, or one further up
        with pytest.raises(FlowError) as e:
            flow.bind(df).loss_func
        assert text in str(e.value) and f"task '{flow.tasks[-1].name}'" in str(e.value)


def test_conjunctions_in_other_words_are_chains():
    a, b, m = BinaryBlock('a'), BinaryBlock('b'), MultiLabelBlock('m', vocab=['x', 'y'])
    df = pd.DataFrame(dict(a=[0, 1], b=[0, 1], m=['x', 'y'], c=[0, 1]))
    z = torch.randn(2, 5)
    for one, two in [
        (~any_of(a, b), ~a & ~b),
        (m.has_all(['x', 'y']), m.has('x') & m.has('y')),
        (~m.has_any(['x', 'y']), ~m.has('x') & ~m.has('y')),
    ]:
        fs = [Flow('f', a, b, m, BinaryBlock('c', whole_space=True) | c).bind(df) for c in (one, two)]
        torch.testing.assert_close(fs[0].loss_func(z, fs[0].encode(df)), fs[1].loss_func(z, fs[1].encode(df)))


def test_option_is_checked():
    for bad in ('yes', 1, None, 'Both'):
        with pytest.raises(FlowError, match="must be False, True, 'detach' or 'both'"):
            BinaryBlock('c', whole_space=bad)
    with pytest.raises(FlowError, match="it has no condition: leave whole_space= out"):
        Flow('f', BinaryBlock('c', whole_space=True)).bind(pd.DataFrame(dict(c=[0, 1]))).loss_func


def test_branches_of_the_chain_run_on_every_row():
    a = BinaryBlock('a', features='one')
    b = BinaryBlock('b', features='two') | a
    c = BinaryBlock('c', features='three', whole_space=True) | b
    d = BinaryBlock('d', features='four') | c
    bound = Flow('f', a, b, c, d).bind(pd.DataFrame({k: [0, 1] for k in 'abcd'}))
    with pytest.warns(UserWarning, match="task 'c' is trained on the whole space, so branch"):
        head = conditional_head(
            bound, 3, {n: Branch(nn.Linear(3, 2), only_needed=True) for n in ('one', 'two', 'three', 'four')}
        )
    assert [head.names[k] for k in head.waits] == ['four']


# ---- what it is for
# -------------------------------------------------------------------------------------------------------
def visitors(n, quota, seed=3):
    """P(buy | click) by kind of visitor, exactly known; blanks fall among clicks without a purchase (quota), or
    on half of all clicks"""
    rng, P, C = np.random.default_rng(seed), np.array([0.5, 0.7]), np.array([0.6, 0.3])
    kind = rng.integers(2, size=n)
    click = rng.random(n) < P[kind]
    buy = click & (rng.random(n) < C[kind])
    lost = 1 - ((1 - P * C) * 0.8 - (1 - P)) / (
        P * (1 - C)
    )  # then 80 % are known, of those who bought and of those who did not
    keep = rng.random(n) >= (np.where(buy, 0.2, lost[kind]) if quota else 0.5)
    return kind, C, pd.DataFrame(dict(click=click, buy=pd.Series(buy, dtype=object).where(keep & click, None)))


@pytest.mark.parametrize('quota', [True, False])
def test_selection_bias_goes_under_its_own_assumption_and_only_there(quota):
    kind, C, df = visitors(30_000, quota)
    x, off = torch.nn.functional.one_hot(torch.tensor(kind), 2).float(), {}
    for whole in (False, True, 'detach'):
        click = BinaryBlock('click')
        bound = Flow('f', click, BinaryBlock('buy', whole_space=whole) | click).bind(df)
        lin, y = nn.Linear(2, 2, bias=False), bound.encode(df).as_subclass(torch.Tensor)
        opt = torch.optim.LBFGS(lin.parameters(), max_iter=50, line_search_fn='strong_wolfe')

        def closure():
            opt.zero_grad()
            loss = bound.loss_func(lin(x), y)
            loss.backward()
            return loss

        opt.step(closure)
        off[whole] = float(
            (lin.weight[bound.slices['buy'].logits.start].sigmoid().detach() - torch.tensor(C)).abs().max()
        )
    if quota:
        assert off[False] > 0.08 and off[True] < 0.03 and off['detach'] < 0.03
    else:
        assert off[False] < 0.03 and off[True] > 0.08


A, B, C = map(BinaryBlock, 'abc')


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('way', [True, 'detach', 'both'])
def test_the_whole_space_is_the_chain_of_probabilities(way, weighted):
    "b given a, trained on every row that tells it: P(a)P(b|a); by a loop, the other tasks as before."
    df = pd.DataFrame(dict(n=[1.0, 2.0, 3.0, 4.0], a=[1, 1, 0, None], b=[1, 0, 1, 1], w=[1.0, 2.0, 4.0, 1.0]))
    bound = Flow(
        'f',
        UnboundedRegressionBlock('n'),
        A,
        BinaryBlock('b', whole_space=way, weight=3.0, pos_weight=2.0) | A,
        **(dict(weight_col='w') if weighted else {}),
    ).bind(df)
    y, z = (
        bound.encode(df).double(),
        torch.tensor([[0.3, -0.5, 1.0], [1.2, 0.4, -1.0], [-0.7, 0.1, 0.2], [0.5, 0.5, 0.5]], dtype=torch.float64),
    )
    w, loss = df.w.tolist() if weighted else [1.0] * 4, bound.loss_func
    sigmoid = lambda v: 1 / (1 + math.exp(-v))
    za, zb, zn = (z[:, bound.slices[p].logits.start].tolist() for p in 'abn')
    rows = []
    for i, (a, b) in enumerate([(1, 1), (1, 0), (0, None)]):  # the fourth row tells nothing of b
        pa, pb = sigmoid(za[i]), sigmoid(zb[i])
        l = -2 * math.log(pa * pb) if a and b else -math.log(1 - pa * pb)
        if way == 'both' and a:
            l += -2 * math.log(pb) if b else -math.log(1 - pb)
        rows.append(l)
    want_b = sum(l * v for l, v in zip(rows, w)) / sum(w[:3])
    want_a = sum(v * (-math.log(sigmoid(x) if a else 1 - sigmoid(x))) for v, x, a in zip(w, za, (1, 1, 0))) / sum(w[:3])
    want_n = sum(v * abs(x - t) for v, x, t in zip(w, zn, y[:, 0, bound.slices['n'].targets.start].tolist())) / sum(w)
    assert (
        loss(z, y).item() == pytest.approx(want_a + 3 * want_b + want_n)
        and loss.per_task(z, y).tolist() == pytest.approx([want_n, want_a, want_b])
        and loss.task_losses(z, y)[0].tolist() == pytest.approx([want_n, want_a, want_b])
    )
    assert loss.per_sample(z, y)[:, 2].tolist() == pytest.approx([*rows, float('nan')], nan_ok=True)
    assert ConditionalLoss(bound, 'none')(z, y).mean().item() == pytest.approx(
        want_a + 3 * want_b + want_n
    ) and ConditionalLoss(bound, 'sum')(z, y).item() == pytest.approx(4 * (want_a + 3 * want_b + want_n))


# ---- a second review: conditions, kinds, scores
# ---------------------------------------------------------------------------
def table(**cols):
    return pd.DataFrame({c: pd.Series(v, dtype=object) for c, v in cols.items()})


def refused(why, *tasks, **cols):
    with pytest.raises(FlowError, match=why):
        Flow('f', *tasks).bind(table(**cols)).loss_func


@pytest.mark.parametrize(
    'parent, cond',
    [
        (OrdinalBlock('o', vocab=[1, 2, 3]), lambda o: o.eq(2)),
        (OrdinalBlock('o', vocab=[1, 2, 3]), lambda o: o >= 2),
        (CountBlock('o'), lambda o: o.eq(0)),
        (CountBlock('o'), lambda o: ~o.eq(3)),
    ],
)
def test_whole_space_knows_the_logits_it_reads(parent, cond):
    refused(
        f"task 'c': whole_space=.*asks 'o' \\({type(parent).__name__}\\), whose logits are no yes, no or softmax",
        parent,
        BinaryBlock('c', whole_space=True) | cond(parent),
        o=[1, 2, 3],
        c=[1, None, 0],
    )
