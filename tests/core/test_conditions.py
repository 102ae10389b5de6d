"""Random flows on random tables: masks, values and reached tasks must be what a row-by-row reading of the rule
says (`oracle`)."""

import copy, math, pickle
import numpy as np, pandas as pd, pytest, torch
from hypothesis import assume, given
from scipy.stats import poisson
from fastai_condmtl.tasks.binary import BinaryBlock
from fastai_condmtl.tasks.regression import BoundedRegressionBlock, UnboundedRegressionBlock
from fastai_condmtl.tasks.multi_label import MultiLabelBlock
from fastai_condmtl.tasks.single_label import SingleLabelBlock
from fastai_condmtl.core.conditions import any_of, task
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.loss.conditional import ConditionalLoss
from oracle import Oracle, build, frame, n_rows, raw_row, vocab_of, walk
from random_flows import blank, checks, random_spec, random_table, random_value, rngs
from fastai_condmtl.core.conditions import (
    And,
    AnyOf,
    Atom,
    Comparable,
    Not,
    as_condition,
    atoms,
    both,
    conjuncts,
    forced,
    kleene,
)
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.tasks.ordinal import OrdinalBlock
import itertools
import random
from fastai_condmtl.all import CountBlock
from fastai_condmtl.core.condition_text import read_condition, write_condition

pytestmark = pytest.mark.filterwarnings('ignore')


# ---- what encode must give
# --------------------------------------------------------------------------------------------
def unit(t, b, value):
    "A label on the loss scale."
    if t['kind'] in ('single', 'ordinal'):
        return vocab_of(t).index(value)
    if t['kind'] == 'count':
        return value / b.span
    if t['kind'] == 'bounded':
        lo, hi = t.get('y_range') or (-8, 8)
        return (value - lo) / (hi - lo)
    return (value - b.mean) / b.std if t['kind'] == 'unbounded' else float(value)


def check_encoded(spec, table, bound, y, clashes=True):
    "Hold `y` against the oracle, cell by cell."
    o, n = Oracle(spec), n_rows(table)
    y = torch.as_tensor(y)
    assert y.dtype == torch.float32 and tuple(y.shape) == (n, 2, bound.n_targets) and torch.isfinite(y).all()
    assert list(bound.paths) == list(bound.tasks) == o.paths
    compared = 0
    for i in range(n):
        for path, want in o.row(raw_row(table, i)).items():
            if want['clash'] and not clashes:
                continue
            (t, *_), b, compared = o.entries[path], bound.tasks[path], compared + 1
            vals, mask = y[i, :, bound.slices[path].targets].tolist()
            where = f'row {i}, {path}: {raw_row(table, i)[path]!r}'
            assert [m == 1 for m in mask] == want['mask'] and set(mask) <= {0.0, 1.0}, where
            certain = b.certain(y[i, 0, bound.slices[path].targets]).tolist()
            assert [m == 1 and c for m, c in zip(mask, certain)] == want['scored'], where
            for got, value, m in zip(vals, want['value'], want['mask']):
                if value is None:
                    assert got == 0 or o.infer, where  # a filled label may show its value
                else:
                    assert math.isclose(got, unit(t, b, value), rel_tol=1e-4, abs_tol=1e-4) or (got == 0 and not m), (
                        where
                    )
    return compared


def made(rng, **kw):
    "(spec, table, flow, df) at random."
    spec = random_spec(rng, **dict(unsure=True) | kw)
    table = random_table(rng, spec)
    return spec, table, build(spec, rng), frame(spec, table, rng)


@checks(120)
@given(rngs)
def test_encode_equals_the_oracle(rng):
    spec, table, fl, df = made(rng)
    bound = fl.bind(df)
    check_encoded(spec, table, bound, bound.encode(df))


@checks(200)
@given(rngs)
def test_encode_equals_the_oracle_where_values_stand_for_a_blank(rng):
    "`na=` on blocks and flows, in columns of every dtype; the table stays as it was."
    spec, table, fl, df = made(rng, na=True)
    kept, bound = df.copy(deep=True), fl.bind(df)
    check_encoded(spec, table, bound, bound.encode(df))
    pd.testing.assert_frame_equal(df, kept)


@checks(40)
@given(rngs)
def test_slices_tile_the_columns(rng):
    spec, table, fl, df = made(rng)
    bound, width = fl.bind(df), lambda t: len(t['vocab']) if t['kind'] in ('multi', 'cols') else 1
    at = 0
    for p, t, *_ in walk(spec):
        s, n_logits = bound.slices[p], len(t['vocab']) if t['kind'] in ('single', 'ordinal') else width(t)
        assert (s.targets.start, s.targets.stop) == (at, at + width(t))  # in the order written
        assert s.logits.stop - s.logits.start == s.acts.stop - s.acts.start == n_logits
        at += width(t)
        if t['kind'] in ('single', 'ordinal', 'multi', 'cols'):
            assert list(bound.tasks[p].vocab) == vocab_of(t)
    assert bound.n_targets == at
    for name in ('logits', 'acts'):
        spans = sorted((getattr(s, name).start, getattr(s, name).stop) for s in (bound.slices[p] for p in bound.paths))
        assert spans[0][0] == 0 and spans[-1][1] == bound.c and all(a[1] == b[0] for a, b in zip(spans, spans[1:]))
        if name == 'acts':
            assert spans == [(bound.slices[p].acts.start, bound.slices[p].acts.stop) for p in bound.paths]


@checks(30)
@given(rngs)
def test_bind_leaves_the_flow_alone(rng):
    spec, table, fl, df = made(rng)
    before, first = pickle.dumps(fl), fl.bind(df)
    y = first.encode(df)
    table2 = random_table(rng, spec)
    df2 = frame(spec, table2, rng)
    kept, second = df2.copy(deep=True), fl.bind(df2)
    check_encoded(spec, table2, second, second.encode(df2))
    check_encoded(spec, table, first, first.encode(df))
    assert torch.equal(torch.as_tensor(y), torch.as_tensor(first.encode(df))) and pickle.dumps(fl) == before
    pd.testing.assert_frame_equal(df2, kept)


@checks(30)
@given(rngs)
def test_any_index_and_other_rows(rng):
    spec, table, fl, df = made(rng)
    bound = fl.bind(df)
    y = torch.as_tensor(bound.encode(df))
    order = [rng.randrange(len(df)) for _ in range(len(df) + 3)]  # rows shuffled, repeated, left out
    assert torch.equal(torch.as_tensor(bound.encode(df.iloc[order])), y[order])
    named = df.set_axis([rng.choice(['a', 'b', 'c']) for _ in range(len(df))])
    assert torch.equal(torch.as_tensor(fl.bind(named).encode(named)), y)
    extra = df.assign(unused=1)[sorted(['unused', *df.columns])]
    assert torch.equal(torch.as_tensor(bound.encode(extra)), y)


@checks(30)
@given(rngs)
def test_pickles_and_copies(rng):
    spec, table, fl, df = made(rng)
    bound = fl.bind(df)
    y = torch.as_tensor(bound.encode(df))
    for twin in (
        pickle.loads(pickle.dumps(bound)),
        copy.deepcopy(bound),
        pickle.loads(pickle.dumps(fl)).bind(df),
        copy.deepcopy(fl).bind(df),
    ):
        assert twin.paths == bound.paths and torch.equal(torch.as_tensor(twin.encode(df)), y)


@checks(40)
@given(rngs)
def test_order_of_writing_does_not_matter(rng):
    spec, table, fl, df = made(rng)
    bound, other = fl.bind(df), build(spec, rng, order=lambda items: rng.sample(items, len(items))).bind(df)
    y, z = torch.as_tensor(bound.encode(df)), torch.as_tensor(other.encode(df))
    assert sorted(other.paths) == sorted(bound.paths)
    for p in bound.paths:
        assert torch.equal(y[:, :, bound.slices[p].targets], z[:, :, other.slices[p].targets]), p


@checks(30)
@given(rngs)
def test_to_units_gives_the_raw_numbers_back(rng):
    spec, table, fl, df = made(rng)
    bound = fl.bind(df)
    y = torch.as_tensor(bound.encode(df))
    units = torch.as_tensor(bound.to_units(bound.encode(df)))
    assert torch.equal(units[:, 1], y[:, 1]) and units.shape == y.shape
    for p, t, *_ in walk(spec):
        at = bound.slices[p].targets
        for i in range(len(df)):
            if not y[i, 1, at].any():
                continue
            if t['kind'] in ('bounded', 'unbounded', 'count'):
                assert units[i, 0, at].item() == pytest.approx(table[p][i], abs=1e-4)
            else:
                assert torch.equal(units[i, 0, at], y[i, 0, at])


def test_names_are_looked_up_from_the_inside_out():
    "Three tasks called t; which one a condition means depends on where it is written."
    t = lambda i: BinaryBlock('t', col=f't{i}')

    def masks(by):
        df = pd.DataFrame(dict(t0=[1, 0, 0], t1=[0, 1, 0], t2=[0, 0, 1], x=[1] * 3, y=[1] * 3, z=[1] * 3))
        c = task(by)
        deep = Flow('deep', t(2), BinaryBlock('z') | c)
        bound = Flow('f', t(0), BinaryBlock('x') | c, Flow('g', t(1), BinaryBlock('y') | c, deep)).bind(df)
        y = torch.as_tensor(bound.encode(df))[:, 1]
        return [y[:, bound.slices[p].targets.start].nonzero().flatten().tolist() for p in ('x', 'g.y', 'g.deep.z')]

    assert masks('t') == [[0], [1], [2]]
    assert masks('g.t') == [[1], [1], [1]] and masks('g.deep.t') == [[2], [2], [2]]


def test_unbounded_scale_comes_from_the_training_rows():
    df = pd.DataFrame(dict(n=[1.0, None, 5.0, 100.0, 3.0], same=[2, 2, 2, 9, 2]))
    fl = Flow('f', UnboundedRegressionBlock('n'), UnboundedRegressionBlock('same'))
    n, same = fl.bind(df, train_idx=[0, 1, 2, 4]).tasks.values()
    assert (n.mean, n.std) == pytest.approx((3, (8 / 3) ** 0.5)) and (same.mean, same.std) == pytest.approx((2, 1))
    assert fl.bind(df).tasks['n'].mean == pytest.approx(109 / 4)
    assert fl.bind(df, train_idx=np.array([3])).tasks['n'].mean == 100


# ---- the same rule on predictions
# -------------------------------------------------------------------------------------
@checks(80)
@given(rngs)
def test_reached_equals_the_oracle(rng):
    spec, table, fl, df = made(rng)
    bound, bs, o = fl.bind(df), 6, Oracle(spec)
    gen = torch.Generator().manual_seed(rng.randint(0, 2**30))
    acts, loss = torch.rand(bs, bound.c, generator=gen), bound.loss_func
    cut = {}
    for p, t, *_ in walk(spec):
        at = bound.slices[p].acts
        if t['kind'] in ('single', 'ordinal'):
            acts[:, at] = acts[:, at].softmax(1)
        if t['kind'] == 'count':
            acts[:, at] = acts[:, at] * 3
        if t['kind'] == 'unbounded':
            acts[:, at] = acts[:, at] * 4 - 2
        if t['kind'] in ('binary', 'multi', 'cols'):
            cut[p] = (
                rng.choice([[0.5], [0.25], [0.8]])
                if t['kind'] == 'binary' or rng.random() < 0.5
                else [rng.choice([0.1, 0.5, 0.9]) for _ in t['vocab']]
            )
            form = rng.choice([list, torch.tensor, np.array])  # one value, or one a label
            loss.thresholds[p] = cut[p][0] if len(cut[p]) == 1 else form(cut[p])
    assert isinstance(loss, ConditionalLoss)
    decoded = torch.as_tensor(loss.decodes(acts))
    assert tuple(decoded.shape) == (bs, 2, bound.n_targets) and torch.isfinite(decoded).all()
    units, reached = torch.as_tensor(bound.to_units(decoded)), torch.as_tensor(bound.reached(decoded))
    assert tuple(reached.shape) == (bs, len(o.paths)) and reached.dtype == torch.bool
    for i in range(bs):
        cells = {}
        for p, (t, *_) in o.entries.items():
            a, b = acts[i, bound.slices[p].acts], bound.tasks[p]
            if t['kind'] == 'binary':
                cells[p] = a.item() > cut[p][0]
            elif t['kind'] == 'single':
                cells[p] = vocab_of(t)[a.argmax()]
            elif t['kind'] == 'ordinal':
                cells[p] = vocab_of(t)[sum(a[k:].sum() > 0.5 for k in range(1, len(a)))]
            elif t['kind'] == 'count':
                cells[p] = int(poisson.median(a.double().item() * b.span))
            elif t['kind'] == 'bounded':
                cells[p] = (lambda lo, hi: lo + a.item() * (hi - lo))(*(t.get('y_range') or (-8, 8)))
            elif t['kind'] == 'unbounded':
                cells[p] = b.mean + a.item() * b.std
            else:
                cells[p] = dict(
                    zip(vocab_of(t) if t['kind'] == 'multi' else t['vocab'], (a > torch.tensor(cut[p])).tolist())
                )
        for k, (p, want) in enumerate(o.reached(cells).items()):
            at, t = bound.slices[p].targets, o.entries[p][0]
            assert decoded[i, 1, at].tolist() == [float(want)] * (at.stop - at.start), (i, p, cells)
            assert reached[i, k].item() == want, (i, p)
            if want and t['kind'] == 'count':
                assert units[i, 0, at].item() == pytest.approx(
                    acts[i, bound.slices[p].acts].item() * bound.tasks[p].span, rel=1e-4
                )
            elif want and t['kind'] in ('bounded', 'unbounded'):
                assert units[i, 0, at].item() == pytest.approx(cells[p], abs=1e-3)
            elif want:
                v = (
                    list(cells[p].values())
                    if isinstance(cells[p], dict)
                    else [vocab_of(t).index(cells[p])]
                    if t['kind'] in ('single', 'ordinal')
                    else [cells[p]]
                )
                assert units[i, 0, at].tolist() == [float(x) for x in v]


@checks(60)
@given(rngs)
def test_one_rule_for_labels_and_predictions(rng):
    """Labels without a gap, read as predictions, reach the tasks that they make applicable: also at the very edge
    of a comparison."""
    spec = random_spec(rng)
    o = Oracle(spec)
    for t, *_ in o.entries.values():
        t |= dict(vocab_given=True) | (dict(y_range=(-8, 8)) if t['kind'] == 'bounded' else {})
    table = {p: [random_value(rng, t) for _ in range(5)] for p, (t, *_) in o.entries.items()}
    df = frame(spec, table, rng)
    bound = build(spec, rng).bind(df)
    want = [[r['applicable'] for r in o.row(raw_row(table, i)).values()] for i in range(5)]
    assert bound.reached(bound.encode(df)).tolist() == want


# ---- infer_labels
# -----------------------------------------------------------------------------------------------------
def consistent_table(rng, spec, n=6):
    """Rows as the world could be (a task has a label only where its condition holds), then gaps at random:
    nothing contradicts."""
    o, rows = Oracle(spec | dict(infer_labels=False)), []
    for _ in range(n):
        raw = {p: random_value(rng, t) for p, (t, *_) in o.entries.items()}
        out = o.reached({p: o.cell(p, v) for p, v in raw.items()})
        rows.append({p: blank(rng, o.entries[p][0], raw[p], 0.5 if out[p] else 1) for p in raw})
    return {p: [r[p] for r in rows] for p in o.paths}


@checks(100)
@given(rngs)
def test_infer_labels_equals_the_fixpoint(rng):
    kinds = ['binary', 'binary', 'single', 'ordinal', 'multi', 'cols', 'unbounded', 'count']
    spec = random_spec(rng, infer=True, kinds=kinds, unsure=True)
    for _, t, *_ in walk(spec):
        t |= dict(vocab_given=True, nan_is_empty=False)
    table = consistent_table(rng, spec) if rng.random() < 0.7 else random_table(rng, spec)
    df = frame(spec, table, rng)
    bound = build(spec, rng).bind(df)
    assume(check_encoded(spec, table, bound, bound.encode(df), clashes=False))


@checks(30)
@given(rngs)
def test_infer_labels_only_opens_gates(rng):
    "Filled labels train nothing of their own, and no row of a consistent table is lost by filling."
    spec = random_spec(rng, kinds=['binary', 'single', 'ordinal', 'multi', 'cols'])
    for _, t, *_ in walk(spec):
        t['vocab_given'] = True
    table = consistent_table(rng, spec)
    df, y = frame(spec, table, rng), {}
    for mode in (False, True, 'train'):
        bound = build(spec | dict(infer_labels=mode), rng).bind(df)
        y[mode] = torch.as_tensor(bound.encode(df))[:, 1]
    assert (y[False] <= y[True]).all() and (y[True] <= y['train']).all()
    for p, t, *_ in walk(spec):
        if t['kind'] != 'cols' and not t.get('nan_is_empty'):
            gap = torch.tensor([v is None for v in table[p]])
            assert not y[True][gap][:, bound.slices[p].targets].any()


# ---- conditions as data
# -----------------------------------------------------------------------------------------------
NAMES = dict(
    a=BinaryBlock('a'),
    b=BinaryBlock('b'),
    kind=SingleLabelBlock('kind'),
    colours=MultiLabelBlock('colours'),
    age=UnboundedRegressionBlock('age'),
    size=BoundedRegressionBlock('size', y_range=(0, 9)),
    any_of=any_of,
    task=task,
)
SOURCES = [
    "~a",
    "a & b",
    "~a & kind.eq('x')",
    "a & ~b & colours.has('red')",
    "any_of(a, b)",
    "any_of(a, ~b) & kind.ne('y')",
    "~any_of(a, b)",
    "~(a & b)",
    "any_of(a & b, age > 18)",
    "(age > 18) & a",
    "~(age > 18)",
    "kind.isin(['x', 'y'])",
    "colours.has_any(['red', 'blue'])",
    "colours.has_all(['red', 'blue'])",
    "age.between(1, 2.5)",
    "size <= 3",
    "size < 3",
    "size >= 3",
    "kind.eq(3)",
    "kind.eq('it')",
    "a & (b & ~kind.eq('x'))",
    "~any_of(a, ~(b & kind.eq('x')))",
]
read = lambda source: eval(source, dict(NAMES))
plain = lambda text: ''.join(text.replace('"', "'").split())


@pytest.mark.parametrize('source', SOURCES)
def test_a_condition_reads_compares_and_pickles(source):
    c = read(source)
    assert read(repr(c)) == c, f'{c!r} does not read back'
    drop = lambda text: plain(text).translate(str.maketrans('', '', '()[]'))  # brackets are a matter of taste
    assert drop(repr(c)) == drop(source) and plain(str(c)) == plain(repr(c))
    assert (
        c == read(source) and not (c != read(source)) and pickle.loads(pickle.dumps(c)) == c and copy.deepcopy(c) == c
    )
    assert c != ~c and c is not None and c != source
    for bad in (bool, lambda c: c and read('b'), lambda c: not c):
        with pytest.raises((TypeError, ValueError), match='any_of|&|~'):
            bad(c)


def test_conditions_differ_by_structure():
    cs = [read(s) for s in SOURCES]
    assert [i for i, c in enumerate(cs) if c in cs[:i]] == []
    assert (
        read("age.gt(18)") == read("age > 18") == read("18 < age")
        and read("age.le(18)") == read("age <= 18")
        and read("age.ge(1)") != read("age.gt(1)")
    )
    assert read("~task('b') & a") == read("~b & a") and read("task('age') > 18") == read("age > 18")
    assert read("kind.eq('1')") != read("kind.eq(1)") and task('a') == task('a') != task('b')


@checks(40)
@given(rngs)
def test_random_conditions_read_back(rng):
    def cond(depth):
        shape = rng.choice(['atom', 'not', 'and', 'any']) if depth else 'atom'
        if shape == 'atom':
            return rng.choice(
                [s for s in SOURCES if '&' not in s and '~' not in s and 'any_of' not in s] + ["~task('a')", "~a"]
            )
        if shape == 'not':
            return f'~({cond(depth - 1)})'
        parts = [cond(depth - 1) for _ in range(rng.randint(2, 3))]
        return ' & '.join(f'({p})' for p in parts) if shape == 'and' else f"any_of({', '.join(parts)})"

    source = cond(3)
    c = read(source)
    assert read(repr(c)) == c and pickle.loads(pickle.dumps(c)) == c


def test_double_bounds_do_not_slip_through():
    for source in ('1 < age < 10', '1 < size <= 3'):  # "(1 < age) and (age < 10)" would keep the second alone
        with pytest.raises((TypeError, ValueError)):
            read(source)


def test_using_a_block_leaves_it_alone():
    a, b, x = map(BinaryBlock, 'abx')
    y = x | a
    z = y | ~b
    df = pd.DataFrame(dict(a=[True, True, False], b=[True, False, False], x=[1, 1, 1]))
    mask = lambda t: torch.as_tensor(Flow('f', a, b, t).bind(df).encode(df))[:, 1, 2].tolist()
    assert [mask(x), mask(y), mask(z), mask(x)] == [[1, 1, 1], [1, 1, 0], [0, 1, 0], [1, 1, 1]]
    assert mask(BinaryBlock('x', given=a & ~b)) == mask(x | (a & ~b)) == mask(z)
    inner = Flow('g', x)
    inner | a
    assert torch.as_tensor(Flow('f', a, b, inner).bind(df).encode(df))[:, 1, 2].tolist() == [1, 1, 1]


A, B, C = map(BinaryBlock, 'abc')

LEVEL = OrdinalBlock('level')

KIND, TAGS, AGE = SingleLabelBlock('kind'), MultiLabelBlock('tags'), UnboundedRegressionBlock('age')


def says(text, f, *args, error=FlowError):
    "`f(*args)` is refused in just these words, or in words that begin so."
    with pytest.raises(error) as e:
        f(*args)
    assert str(e.value).startswith(text), str(e.value)


# ---- conditions: questions
# -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    'c, op, value',
    [
        (KIND.eq('x'), 'eq', 'x'),
        (KIND.ne('x'), 'ne', 'x'),
        (KIND.isin(['x', 'y']), 'isin', ('x', 'y')),
        (TAGS.has('r'), 'has', 'r'),
        (TAGS.has_any({'r': 1}), 'has_any', ('r',)),
        (TAGS.has_all(iter('rg')), 'has_all', ('r', 'g')),
        (AGE.gt(3), 'gt', 3),
        (AGE.ge(3), 'ge', 3),
        (AGE.lt(3), 'lt', 3),
        (AGE.le(3), 'le', 3),
        (AGE.between(1, 2), 'between', (1, 2)),
        (AGE > 3, 'gt', 3),
        (AGE >= 3, 'ge', 3),
        (AGE < 3, 'lt', 3),
        (AGE <= 3, 'le', 3),
        (3 < AGE, 'gt', 3),
        (AGE.between(2, 2), 'between', (2, 2)),
        (as_condition(A), 'true', None),
    ],
)
def test_a_question_is_an_atom(c, op, value):
    block = {'eq': KIND, 'ne': KIND, 'isin': KIND, 'has': TAGS, 'has_any': TAGS, 'has_all': TAGS, 'true': A}.get(
        op, AGE
    )
    assert (
        type(c) is Atom
        and (c.task, c.op, c.value, c.given, c.cols) == (block.name, op, value, None, (block.name,))
        and type(c.value) is type(value)
    )


def test_an_atom_carries_what_its_block_is_given_and_reads():
    c = as_condition(BinaryBlock('x', col='column') | A)
    assert (c.given, c.cols) == (Atom('a'), ('column',)) and as_condition(
        MultiLabelBlock('m', cols=['p', 'q']).has('p')
    ).cols == ('p', 'q')
    assert (
        c == Atom('x') == Atom('x', 'true', None)
        and hash(c) == hash(Atom('x'))
        and (as_condition(task('x')).given, as_condition(task('x')).cols) == (None, None)
    )


def test_a_task_by_name_may_be_a_key():
    assert (
        {task('a'): 1}[task('a')] == 1
        and task('a') in {task('a')}
        and task('a') != Atom('a')
        and task('a') != task('b')
        and repr(task('a.b')) == "task('a.b')"
    )


class Nameless(Comparable):
    pass


def test_what_may_be_asked_must_have_a_name():
    assert Comparable.ops is None and (Comparable.given, Comparable.cols) == (None, None)
    says('Nameless must say which task it asks about', Nameless()._name, error=NotImplementedError)


@pytest.mark.parametrize(
    'make, text',
    [
        (lambda: KIND.eq(['x']), "kind.eq(['x']) wants one value: for several write kind.isin(['x'])"),
        (lambda: KIND.ne({}), "kind.ne({}) wants one value: for several write kind.isin({})"),
        (lambda: TAGS.has(['x']), "tags.has(['x']) wants one value: for several write tags.has_any(['x'])"),
        (lambda: LEVEL > ['x'], "level.gt(['x']) wants one value: for several write level.isin(['x'])"),
        (lambda: KIND.isin('xy'), "isin('xy') wants several values: write isin(['xy'])"),
        (lambda: KIND.isin(3), "isin(3) wants several values: write isin([3])"),
        (lambda: TAGS.has_any('xy'), "has_any('xy') wants several values"),
        (lambda: TAGS.has_all(3), "has_all(3) wants several values"),
        (lambda: KIND.isin([]), "isin([]) asks about nothing"),
        (lambda: TAGS.has_any(()), "has_any([]) asks about nothing"),
        (lambda: TAGS.has_all(set()), "has_all([]) asks about nothing"),
        (lambda: KIND.isin([[1]]), "isin([[1]]): values must be hashable, as labels are: write strings or numbers"),
        (lambda: AGE.between(2, 1), "age.between(2, 1) is never true"),
        (lambda: any_of(), "any_of() of nothing is never true"),
        (lambda: AGE > '3', "'3' is not a number"),
        (lambda: AGE >= b'3', "b'3' is not a number"),
        (lambda: AGE < None, "None is not a number"),
        (lambda: AGE <= 10**400, f"{10**400} is not a number"),
        (lambda: AGE.between(float('nan'), 1), "nan is not a number"),
        (lambda: LEVEL > float('nan'), "nan is not a number"),
        (lambda: LEVEL > None, "None is not a number"),
        (lambda: as_condition(True), "True is not a condition. Was it written with `==`?"),
        (lambda: as_condition(np.bool_(False)), "False is not a condition. Was it written with `==`?"),
        (
            lambda: as_condition(type('bool_', (), dict(__repr__=lambda self: 'True'))()),
            "True is not a condition. Was it written with `==`?",
        ),  # as NumPy 1 calls it
        (lambda: as_condition(3), "3 (int) is not a condition"),
        (lambda: as_condition(Flow('f', A)), "Flow 'f' is not a condition"),
        (lambda: as_condition(KIND), "task 'kind' (SingleLabelBlock) cannot be used bare as a condition"),
        (lambda: True & as_condition(A), "True is not a condition"),
        (lambda: True & A, "True is not a condition"),
        (lambda: as_condition(A) | B, "`a | ...`"),
        (lambda: 3 | as_condition(A), "`3 | a`"),
        (lambda: KIND.has('x'), "task 'kind' (SingleLabelBlock) cannot be asked .has"),
    ],
)
def test_a_wrong_question_is_refused(make, text):
    says(text, make)


def test_a_task_by_name_may_be_of_any_kind():
    assert (
        (task('x') > 'b').value == 'b'
        and (LEVEL > 'b').value == 'b'
        and task('x').between('b', 'a').value == ('b', 'a')
        and LEVEL.between('b', 'a').value == ('b', 'a')
        and (LEVEL > 2).value == 2
    )


# ---- conditions: joined
# ------------------------------------------------------------------------------------------------------
def test_joining():
    a, b, c = map(as_condition, (A, B, C))
    assert (
        A & B == a & b == a & B == A & b == And((a, b))
        and a & (b & c) == (a & b) & c == And((a, b, c))
        and a.__rand__(B) == And((b, a)) == A.__rand__(B)
    )
    assert (
        any_of(A, any_of(B, C)) == AnyOf((a, b, c))
        and any_of(A) == a
        and any_of(A & B, C) == AnyOf((And((a, b)), c))
        and (any_of(A, B) & C) == And((AnyOf((a, b)), c))
        and ~A == ~a == Not(a)
    )
    assert (
        conjuncts(None) == ()
        and conjuncts(a) == (a,)
        and conjuncts(a & b) == (a, b)
        and conjuncts(any_of(a, b)) == (any_of(a, b),)
    )
    assert both(None, None) is None and both(a, None) == a == both(None, a) and both(a, b) == And((a, b))
    assert list(atoms(None)) == [] and list(atoms(~(b & any_of(a, ~c)) & a)) == [b, a, c, a]


def test_conditions_print_as_they_are_written():
    for source in (
        'age > 3',
        'age >= 3',
        'age < 3',
        'age <= 3',
        '~(age > 3)',
        '~(age <= 3)',
        '(age >= 3) & a',
        '~a & ~(a & b)',
        '~any_of(a, age < 3)',
        "kind.isin(['x', 'y'])",
        'age.between(1, 2)',
        "~task('g.a')",
    ):
        assert repr(eval(source, dict(age=AGE, a=A, b=B, kind=KIND, any_of=any_of, task=task))) == source


def random_formula(rng, names, depth=3):
    "Each name once"
    if len(names) == 1 or not depth:
        c = And(tuple(map(Atom, names))) if len(names) > 1 else Atom(names[0])
    else:
        cut = sorted(rng.sample(range(1, len(names)), rng.randint(1, min(2, len(names) - 1))))
        c = rng.choice([And, AnyOf])(
            tuple(random_formula(rng, names[i:j], depth - 1) for i, j in zip([0, *cut], [*cut, len(names)]))
        )
    if rng.random() < 0.2:
        c = rng.choice([And, AnyOf])((c,))  # may be of one
    return Not(c) if rng.random() < 0.4 else c


def holds(c, world):
    if isinstance(c, Atom):
        return world[c.task]
    if isinstance(c, Not):
        return not holds(c.arg, world)
    return (all if isinstance(c, And) else any)([holds(a, world) for a in c.args])


@pytest.mark.parametrize('seed', range(60))
def test_what_is_forced_is_what_all_worlds_share(seed):
    """Where each task is asked once, all that follows from a condition's truth is what each world in which it has
    that truth has in common."""
    rng = random.Random(seed)
    names = list('abcde'[: rng.randint(1, 5)])
    c = random_formula(rng, names)
    worlds = [dict(zip(names, w)) for w in itertools.product([False, True], repeat=len(names))]
    for truth in (True, False):
        those = [w for w in worlds if holds(c, w) == truth]
        want = {(n, v) for n in names for v in (True, False) if all(w[n] == v for w in those)}
        got = [(a.task, t) for a, t in forced(c, truth)]
        assert set(got) == want and len(got) == len(want)
    assert list(forced(c)) == list(forced(c, True)) and list(forced(None)) == [] == list(forced(None, False))


@pytest.mark.parametrize('seed', range(20))
def test_what_is_known_is_what_all_fillings_share(seed):
    """Kleene's logic, where each task is asked once: true where the condition holds however the gaps are filled,
    false where it never does."""
    rng = random.Random(seed)
    names = list('abcd'[: rng.randint(1, 4)])
    c, rows = random_formula(rng, names), list(itertools.product([False, True, None], repeat=len(names)))
    cols = {n: np.array([r[i] for r in rows], dtype=object) for i, n in enumerate(names)}
    t, f = kleene(c, lambda a: tuple(np.array([v is truth for v in cols[a.task]]) for truth in (True, False)))
    for k, r in enumerate(rows):
        fills = {
            holds(c, dict(zip(names, w))) for w in itertools.product(*[[False, True] if v is None else [v] for v in r])
        }
        assert (t[k], f[k]) == (fills == {True}, fills == {False})


def test_conditions_on_many_values():
    k = SingleLabelBlock('k')
    df = pd.DataFrame(dict(k=range(3000), b=[1] * 3000))
    assert Flow('f', k, BinaryBlock('b') | k.isin(range(2000))).bind(df).encode(df)[:, 1, 1].sum() == 2000


# ---- a second review: conditions, kinds, scores
# ---------------------------------------------------------------------------
def table(**cols):
    return pd.DataFrame({c: pd.Series(v, dtype=object) for c, v in cols.items()})


def refused(why, *tasks, **cols):
    with pytest.raises(FlowError, match=why):
        Flow('f', *tasks).bind(table(**cols)).loss_func


@pytest.mark.parametrize(
    'cond',
    [
        lambda o, n, r: o > 3,
        lambda o, n, r: o > 9,
        lambda o, n, r: o < 1,
        lambda o, n, r: o <= 0.5,
        lambda o, n, r: o.between(3, 1),
        lambda o, n, r: n < 0,
        lambda o, n, r: n.between(2.2, 2.8),
        lambda o, n, r: n <= -1,
        lambda o, n, r: n.between(-3, -1),
        lambda o, n, r: r > 5,
        lambda o, n, r: r >= 5.5,
        lambda o, n, r: r < 0,
        lambda o, n, r: r <= -0.1,
        lambda o, n, r: r.between(6, 7),
        lambda o, n, r: r.between(-2, -1),
    ],
)
def test_what_can_never_be_is_an_error(cond):
    o, n, r = OrdinalBlock('o', vocab=[1, 2, 3]), CountBlock('n'), BoundedRegressionBlock('r', y_range=(0, 5))
    refused(
        "the condition `(.*)` of 'x': \\1 is never true: ",
        o,
        n,
        r,
        BinaryBlock('x') | cond(o, n, r),
        o=[1, 2, 3],
        n=[1, 2, 3],
        r=[1, 2, 3],
        x=[1, 0, 1],
    )


def test_what_is_always_so_passes():
    o, n, r = OrdinalBlock('o', vocab=[1, 2, 3]), CountBlock('n'), BoundedRegressionBlock('r', y_range=(0, 5))
    free = BoundedRegressionBlock('s', col='r')
    df = table(o=[1, 2, 3], n=[1, 2, 3], r=[1, 2, 3], x=[1, 0, 1])
    for cond in (o >= 1, o < 7, o > 2, n >= 0, n > -1, n < 1, r <= 9, r >= 5, r.between(5, 9), free > 5):
        assert Flow('f', o, n, r, free, BinaryBlock('x') | cond).bind(df)


def test_conditions_print_as_they_are_written_again():
    for c in (
        task('a b').eq(1),
        ~task('class') & task('k').isin(['x', 'y']),
        any_of(task('f.x') > 3, ~(task('y') < 2)),
        ~(task('a') & task('b')),
        task('k').eq((1,)),
        task('n').between(1, 2),
        task('m').has_any(['p']),
    ):
        assert repr(c) == write_condition(c) and read_condition(repr(c)) == c
