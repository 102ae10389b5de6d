"""P(reached) and P(value and reached) against an enumeration of every draw: each draw is one row of certain labels,
read by a three-valued logic of
ours, row by row; plain products where a flow is too large to enumerate. Nothing here uses the library's own rule."""

import itertools, math, random
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import DataBlock, IndexSplitter, Learner, Transform, TransformBlock
from hypothesis import assume, given
from torch import nn
from fastai_condmtl.all import *
from oracle import And, Any, Not, a_task, atom, build, flow, frame, resolve, vocab_of, walk
from random_flows import KINDS, checks, random_spec, random_table, rngs

pytestmark = pytest.mark.filterwarnings('ignore')
DISCRETE = ('binary', 'single', 'ordinal', 'multi', 'cols')
NO_COUNTS = [k for k in KINDS if k != 'count']  # of those see test_kinds


# ---- every draw, row by row
# -------------------------------------------------------------------------------------------
def truth(cond, prefixes, draw, entries):
    "True, False or None of a condition on one draw (path → label)."
    op, *rest = cond
    if op in ('not', 'and', 'any'):
        got = [truth(c, prefixes, draw, entries) for c in rest]
        if op == 'not':
            return None if got[0] is None else not got[0]
        settles = op == 'any'  # one True settles an or, one False an and
        return settles if settles in got else None if None in got else not settles
    path, how, x = resolve(rest[0], prefixes, list(entries)), *rest[1:]
    if not is_reached(path, draw, entries):
        return None
    v = draw[path]
    if entries[path][0]['kind'] == 'ordinal':
        place = vocab_of(entries[path][0]).index
        v, x = place(v), tuple(map(place, x)) if isinstance(x, tuple) else place(x)
    return dict(
        eq=lambda: v == x,
        ne=lambda: v != x,
        isin=lambda: v in x,
        has=lambda: x in v,
        has_any=lambda: any(o in v for o in x),
        has_all=lambda: all(o in v for o in x),
        gt=lambda: v > x,
        ge=lambda: v >= x,
        lt=lambda: v < x,
        le=lambda: v <= x,
        between=lambda: x[0] <= v <= x[1],
        **{'is': lambda: v},
    )[how]()


def is_reached(path, draw, entries):
    return all(truth(c, pre, draw, entries) is True for c, pre in entries[path][2])


def outcomes(task, p):
    "(value, probability) of one task by itself."
    if task['kind'] == 'binary':
        return [(False, 1 - p[0]), (True, p[0])]
    if task['kind'] in ('single', 'ordinal'):
        return list(zip(vocab_of(task), p))
    return [
        (tuple(v for v, b in zip(vocab_of(task), bits) if b), math.prod(q if b else 1 - q for b, q in zip(bits, p)))
        for bits in itertools.product([False, True], repeat=len(p))
    ]


def enumerated(entries, acts, numbers):
    "{path: (P(reached), {value: P(value and reached)})} of one row; `numbers`: path → predicted number."
    drawn = [p for p, (t, *_) in entries.items() if t['kind'] in DISCRETE]
    res = {p: [0.0, {}] for p in entries}
    for draw in itertools.product(*[outcomes(entries[p][0], acts[p]) for p in drawn]):
        w, row = math.prod(q for _, q in draw), dict(zip(drawn, (v for v, _ in draw))) | numbers
        for path, (t, *_) in entries.items():
            if not is_reached(path, row, entries):
                continue
            res[path][0] += w
            for v in row[path] if t['kind'] in ('multi', 'cols') else [row[path]] if t['kind'] in DISCRETE else []:
                res[path][1][v] = res[path][1].get(v, 0) + w
    return res


def n_draws(entries):
    return math.prod(
        2 if t['kind'] == 'binary' else len(t['vocab']) if t['kind'] in ('single', 'ordinal') else 2 ** len(t['vocab'])
        for t, *_ in entries.values()
        if t['kind'] in DISCRETE
    )


def entries_of(spec):
    return {path: (t, pre, conds) for path, t, pre, conds in walk(spec)}


def bind(spec, rng=None):
    rng = rng or random.Random(0)
    return build(spec, rng).bind(frame(spec, random_table(rng, spec, n=12), rng))


def units(bound, path, v):
    b = bound.tasks[path]
    return (
        v * b.std + b.mean
        if isinstance(b, UnboundedRegressionBlock)
        else b.y_range[0] + v * (b.y_range[1] - b.y_range[0])
    )


def check(spec, bound, logits):
    "Hold `diagrams` and `FlowPrediction.marginals` to the enumeration; the marginals."
    entries, loss = entries_of(spec), bound.loss_func
    acts = loss.activation(logits)
    vals = loss.decide(acts)
    got = bound.diagrams(acts, vals)
    assert got.shape == (len(logits), len(entries)) and got.dtype in (np.float64, torch.float64)
    for i in range(len(logits)):
        numbers = {
            p: units(bound, p, float(vals[i, bound.slices[p].targets]))
            for p, (t, *_) in entries.items()
            if t['kind'] not in DISCRETE
        }
        want = enumerated(entries, {p: acts[i, bound.slices[p].acts].double().tolist() for p in entries}, numbers)
        pred = FlowPrediction(bound, loss.decodes(acts)[i], activations=acts[i]).marginals
        assert list(pred) == list(entries)
        for j, (path, (t, *_)) in enumerate(entries.items()):
            reached, values = want[path]
            where = f'row {i}, {path}: {entries[path]}'
            assert float(got[i, j]) == pytest.approx(reached, abs=1e-5), where
            assert pred[path].reached == pytest.approx(reached, abs=1e-5), where
            if t['kind'] == 'binary':
                assert pred[path].values == pytest.approx(values.get(True, 0), abs=1e-5), where
            elif t['kind'] in DISCRETE:
                assert pred[path].values == pytest.approx({v: values.get(v, 0) for v in vocab_of(t)}, abs=1e-5), where
            else:
                assert pred[path].values is None
    return pred


B = lambda name, given=None: a_task('binary', name, given)
K = lambda name, given=None: a_task('single', name, given, vocab=list('uvw'), vocab_given=True)
ML = lambda name, given=None: a_task('multi', name, given, vocab=['hat', 'scarf', 'shoes'], vocab_given=True)
R = lambda name, given=None: a_task('bounded', name, given, y_range=(0, 8))
a, b, c = map(atom, 'abc')
eq, ne, isin = (lambda x, op=op: atom('k', op, x) for op in ('eq', 'ne', 'isin'))
has, any_has, all_has = (lambda x, op=op: atom('m', op, x) for op in ('has', 'has_any', 'has_all'))
HAND = dict(
    chain=flow('f', B('a'), B('b', a), B('c', b), B('d', Not(c))),
    diamond=flow(
        'f',
        B('a'),
        B('b', a),
        B('c', a),
        B('d', And(b, c)),
        B('e', Any(b, c)),
        B('g', Any(b, Not(c))),
        B('h', And(Not(b), Any(a, c))),
    ),
    unknown_or=flow(
        'f',
        B('a'),
        B('b', a),
        B('c'),
        B('d', Any(b, c)),
        B('e', Not(Any(b, c))),
        B('g', Not(And(b, c))),
        B('h', Any(Not(b), And(c, b))),
    ),
    itself=flow(
        'f',
        B('a'),
        B('b', a),
        B('never', And(b, Not(b))),
        B('either', Any(b, Not(b))),
        B('deep', Any(atom('never'), atom('either'))),
    ),
    classes=flow(
        'f',
        B('a'),
        K('k', a),
        B('c', Any(eq('u'), eq('v'))),
        B('d', And(eq('u'), eq('v'))),
        B('e', ne('w')),
        B('g', Not(isin(('u', 'w')))),
        B('h', And(ne('u'), ne('v'))),
        B('i', Any(ne('u'), a)),
    ),
    labels=flow(
        'f',
        B('a'),
        ML('m', Not(a)),
        B('c', has('hat')),
        B('d', any_has(('hat', 'scarf'))),
        B('e', all_has(('hat', 'scarf'))),
        B('g', Not(all_has(('hat', 'shoes')))),
        B('h', And(has('hat'), Not(any_has(('scarf', 'shoes'))))),
        B('i', Any(has('shoes'), a)),
    ),
    numbers=flow(
        'f',
        B('a'),
        R('r', a),
        B('b', atom('r', 'gt', 3.0)),
        B('c', Not(atom('r', 'gt', 3.0))),
        B('d', Any(atom('r', 'between', (2.0, 5.0)), Not(a))),
        B('e', And(atom('r', 'le', 6.0), b)),
        R('s', atom('r', 'lt', 4.0)),
        B('g', Any(atom('s', 'ge', 1.0), atom('c'))),
    ),
    nested=flow(
        'f',
        K('k'),
        flow(
            'g',
            B('a', eq('u')),
            flow('h', B('b', a), ML('m'), given=Any(a, eq('v'))),
            B('c', has('hat')),
            given=ne('w'),
        ),
        B('d', Any(b, c)),
        B('e', And(has('scarf'), Not(b))),
    ),
    backwards=flow('f', B('d', Any(b, Not(c))), B('c', b), B('b', a), B('a')),
)


@pytest.mark.parametrize('name', HAND)
def test_flows_by_hand(name):
    bound = bind(HAND[name])
    logits = torch.randn(6, bound.c) * 2
    logits[4], logits[5] = logits[4] * 30, 0.0  # certain ones, and even odds
    check(HAND[name], bound, logits)


@checks(90)
@given(rngs)
def test_random_flows(rng):
    spec = random_spec(rng, max_tasks=7, kinds=NO_COUNTS)
    entries = entries_of(spec)
    assume(n_draws(entries) <= 600)
    bound = bind(spec, rng)
    check(
        spec,
        bound,
        torch.randn(2, bound.c, generator=torch.Generator().manual_seed(rng.randrange(10**6)))
        * rng.choice([1.0, 2.0, 20.0]),
    )


@checks(40)
@given(rngs)
def test_what_must_hold(rng):
    """Also of flows too large to enumerate: shares; classes that sum to P(reached); no child is likelier than
    what it is given."""
    spec = random_spec(rng, max_tasks=14, kinds=NO_COUNTS)
    entries, bound = entries_of(spec), bind(spec, rng)
    logits = torch.randn(3, bound.c, generator=torch.Generator().manual_seed(rng.randrange(10**6))) * 2
    acts = bound.loss_func.activation(logits)
    for i, dec in enumerate(bound.loss_func.decodes(acts)):
        got = FlowPrediction(bound, dec, activations=acts[i]).marginals
        for path, (t, pre, conds) in entries.items():
            mine, values = got[path]
            assert 0 <= mine <= 1 + 1e-9 and (conds or mine == 1)
            if t['kind'] in ('single', 'ordinal'):
                assert sum(values.values()) == pytest.approx(mine, abs=1e-6)
            for v in values.values() if isinstance(values, dict) else [values] if values is not None else []:
                assert -1e-9 <= v <= mine + 1e-9
            parts = [(x, p) for cond, p in conds for x in (cond[1:] if cond[0] == 'and' else [cond])]
            for (op, *rest), p in parts:
                if op != 'atom':
                    continue
                parent = resolve(rest[0], p, list(entries))
                how = {
                    'is': lambda v: v,
                    'eq': lambda v: v[rest[2]],
                    'has': lambda v: v[rest[2]],
                    'ne': lambda v: sum(v.values()) - v[rest[2]],
                }
                assert mine <= (how[rest[1]](got[parent].values) if rest[1] in how else got[parent].reached) + 1e-6, (
                    path,
                    parent,
                    rest,
                )


# ---- closed forms where no enumeration could go
# -----------------------------------------------------------------------
def reach(f, df, logits):
    "{path: P(reached) (n,)}, the bound flow, and activations."
    bound = f.bind(df)
    acts = bound.loss_func.activation(logits(bound.c))
    return (
        dict(zip(bound.paths, torch.as_tensor(bound.diagrams(acts, bound.loss_func.decide(acts))).T)),
        bound,
        acts.double(),
    )


def table(names):
    return pd.DataFrame({n: [True, False] * 3 for n in names})


def test_a_long_chain():
    tasks = [BinaryBlock('t0')]
    for i in range(1, 60):
        tasks.append(BinaryBlock(f't{i}') | tasks[-1])
    got, bound, acts = reach(Flow('f', *tasks), table([f't{i}' for i in range(60)]), lambda c: torch.randn(5, c) + 3)
    for i in range(60):
        torch.testing.assert_close(got[f't{i}'], acts[:, :i].prod(1))


def test_a_wide_or_and_pairs_far_apart():
    xs, ys = [BinaryBlock(f'x{i}') for i in range(14)], [BinaryBlock(f'y{i}') for i in range(14)]
    f = Flow(
        'f',
        *xs,
        *ys,
        BinaryBlock('some') | any_of(*xs, *ys),
        BinaryBlock('pair') | any_of(*[x & y for x, y in zip(xs, ys)]),
        BinaryBlock('none') | ~any_of(*xs),
    )
    got, bound, acts = reach(
        f, table([*(t.name for t in (*xs, *ys)), 'some', 'pair', 'none']), lambda c: torch.randn(4, c) - 2
    )
    x, y = acts[:, :14], acts[:, 14:28]
    torch.testing.assert_close(got['some'], 1 - (1 - x).prod(1) * (1 - y).prod(1))
    torch.testing.assert_close(got['pair'], 1 - (1 - x * y).prod(1))
    torch.testing.assert_close(got['none'], (1 - x).prod(1))


def test_a_large_vocabulary():
    vocab = [f'c{i}' for i in range(1000)]
    kind = SingleLabelBlock('kind', vocab=vocab)
    f = Flow(
        'f',
        kind,
        BinaryBlock('even') | kind.isin(vocab[::2]),
        BinaryBlock('not_7') | kind.ne('c7'),
        BinaryBlock('both') | kind.isin(vocab[:500]) & kind.isin(vocab[400:]),
    )
    got, bound, acts = reach(f, table(['even', 'not_7', 'both']).assign(kind=vocab[:6]), lambda c: torch.randn(3, c))
    torch.testing.assert_close(got['even'], acts[:, :1000:2].sum(1))
    torch.testing.assert_close(got['not_7'], 1 - acts[:, 7], atol=1e-6, rtol=0)
    torch.testing.assert_close(got['both'], acts[:, 400:500].sum(1))


def test_too_many_nodes():
    "Every row and every column of a grid has a yes: exponential in any order of the tasks."
    n = 11
    x = [[BinaryBlock(f'x{i}_{j}') for j in range(n)] for i in range(n)]
    every = None
    for line in [*x, *zip(*x)]:
        every = any_of(*line) if every is None else every & any_of(*line)
    f = Flow('f', *sum(x, []), BinaryBlock('hit') | every)
    bound = f.bind(table([*(t.name for t in sum(x, [])), 'hit']))
    acts = bound.loss_func.activation(torch.randn(2, bound.c))
    vals = bound.loss_func.decide(acts)
    assert bound.reached(vals).shape == (2, n * n + 1)  # all else still works
    pred = FlowPrediction(bound, bound.loss_func.decodes(acts)[0], activations=acts[0])
    assert 'x0_0' in str(pred.tree()) and pred.probabilities['x0_0'] == pytest.approx(float(acts[0, 0]))
    with pytest.raises(FlowError, match='hit'):
        bound.diagrams(acts, vals)


def test_no_rows():
    bound = Flow('f', x := BinaryBlock('x'), BinaryBlock('y') | x).bind(table('xy'))
    assert tuple(bound.diagrams(torch.zeros(0, bound.c), torch.zeros(0, bound.n_targets)).shape) == (0, 2)
    assert bound.loss_func.activation(torch.zeros(0, bound.c)).shape == (0, 2)


# ---- predictions and learners
# -----------------------------------------------------------------------------------------
N = 60


class Logits(Transform):
    "Row → the logits that stand in it: a model known by heart."

    def __call__(self, r, **kwargs):
        return torch.tensor([r[f'z{i}'] for i in range(9)], dtype=torch.float32)


def make_learn():
    rng = np.random.default_rng(0)
    a, k, m, r = (
        BinaryBlock('a', vocab=('no', 'yes')),
        SingleLabelBlock('k', vocab=list('uvw')),
        MultiLabelBlock('m', vocab=['hat', 'scarf', 'shoes']),
        BoundedRegressionBlock('r', y_range=(0, 8)),
    )
    f = Flow('f', a, k | a, Flow('g', m, r) | k.ne('u'), BinaryBlock('late') | any_of(m.has('hat'), r > 4))
    df = pd.DataFrame(
        dict(
            a=rng.choice(['no', 'yes'], N),
            k=rng.choice(list('uvw'), N),
            m=rng.choice(['hat', 'scarf,shoes', ''], N),
            r=rng.random(N) * 8,
            late=rng.random(N) < 0.5,
        )
    )
    df = df.assign(**{f'z{i}': rng.normal(size=N) * 1.5 for i in range(9)})
    dls = DataBlock(blocks=(TransformBlock, f), get_x=Logits(), splitter=IndexSplitter(list(range(20, N)))).dataloaders(
        df, bs=8, num_workers=0
    )
    model = nn.Linear(9, 9, bias=False)
    model.weight.data = torch.eye(9)
    learn = Learner(dls, model)
    learn.df = df
    return learn


@pytest.fixture(scope='module')
def learn():
    return make_learn()


SPEC = flow(
    'f',
    B('a') | dict(vocab=('no', 'yes')),
    K('k', a),
    flow('g', ML('m'), R('r'), given=ne('u')),
    B('late', Any(has('hat'), atom('r', 'gt', 4.0))),
)


def rows_by_hand(learn, df):
    "The enumeration of each row, from the logits that stand in it."
    s, entries, res = learn.dls.flow.slices, entries_of(SPEC), []
    for _, row in df.iterrows():
        z = np.array([row[f'z{i}'] for i in range(9)], dtype=float)
        p = {t: 1 / (1 + np.exp(-z[s[t].logits])) for t in entries}
        p['k'] = np.exp(z[s['k'].logits]) / np.exp(z[s['k'].logits]).sum()
        res.append(enumerated(entries, p, {'g.r': 8 * p['g.r'][0]}))
    return res


def check_frame(out, want):
    assert list(out.columns) == [
        ('a', 'P(reached)'),
        ('a', 'no'),
        ('a', 'yes'),
        ('k', 'P(reached)'),
        *(('k', v) for v in 'uvw'),
        ('g.m', 'P(reached)'),
        *(('g.m', v) for v in ('hat', 'scarf', 'shoes')),
        ('g.r', 'P(reached)'),
        ('late', 'P(reached)'),
        ('late', False),
        ('late', True),
    ]
    assert len(out) == len(want)
    for (_, row), w in zip(out.iterrows(), want):
        for (path, v), x in row.items():
            y = w[path][0] if v == 'P(reached)' else w[path][1].get({'no': False, 'yes': True}.get(v, v), 0)
            assert x == pytest.approx(y, abs=1e-5), (path, v)


def quietly(learn, f, *args, **kwargs):
    with learn.no_bar(), learn.no_logging():
        return f(*args, **kwargs)


def test_get_marginals(learn):
    check_frame(quietly(learn, learn.get_marginals), rows_by_hand(learn, learn.df[20:]))
    check_frame(quietly(learn, learn.get_marginals, ds_idx=0), rows_by_hand(learn, learn.df[:20]))
    some = learn.df.iloc[[5, 50, 7]].set_axis(['x', 'y', 'z'])
    out = quietly(learn, learn.get_marginals, some)
    check_frame(out, rows_by_hand(learn, some))
    assert list(out.index) == ['x', 'y', 'z']
    unlabelled = some.drop(columns=['a', 'k', 'm', 'r', 'late'])
    check_frame(quietly(learn, learn.get_marginals, dl=learn.dls.test_dl(unlabelled)), rows_by_hand(learn, some))


def test_temperatures_count_and_thresholds_do_not():
    learn = make_learn()
    before = quietly(learn, learn.get_marginals)
    learn.loss_func.thresholds = learn.loss_func.thresholds | dict(a=0.99, late=0.01)
    pd.testing.assert_frame_equal(quietly(learn, learn.get_marginals), before)
    learn.loss_func.temperatures = dict(a=3.0)
    col = learn.dls.flow.slices['a'].logits.start
    want = 1 / (1 + np.exp(-learn.df[f'z{col}'][20:].to_numpy() / 3))
    after = quietly(learn, learn.get_marginals)
    np.testing.assert_allclose(after[('a', 'yes')], want, atol=1e-5)
    np.testing.assert_allclose(after[('k', 'P(reached)')], want, atol=1e-5)


def test_predictions_carry_marginals(learn):
    want = rows_by_hand(learn, learn.df[20:23])
    for i in range(3):
        got = quietly(learn, learn.predict, learn.df.iloc[20 + i])[0].marginals
        for path in learn.dls.flow.paths:
            assert got[path].reached == pytest.approx(want[i][path][0], abs=1e-5)
        assert got['a'].values == pytest.approx(want[i]['a'][1].get(True, 0), abs=1e-5) and got['g.r'].values is None
        assert got['k'].values == pytest.approx({v: want[i]['k'][1].get(v, 0) for v in 'uvw'}, abs=1e-5)
    bound = learn.dls.flow
    assert FlowPrediction(bound, torch.zeros(2, bound.n_targets)).marginals is None


def test_no_flow():
    dls = DataBlock(blocks=(TransformBlock, TransformBlock)).dataloaders([1, 2, 3, 4], bs=2, num_workers=0)
    with pytest.raises(FlowError, match='flow'):
        Learner(dls, nn.Linear(1, 1), loss_func=nn.MSELoss()).get_marginals()
