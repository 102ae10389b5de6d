"""What tests of mutants (`tests/mutate.py`) showed to be held by no other test: each case says what comes out by hand, by the definition or by a loop."""
import collections, itertools, math, random, warnings
import matplotlib.figure, numpy as np, pandas as pd, pytest, torch
from fastai_condmtl.blocks import BinaryBlock, BoundedRegressionBlock, MultiLabelBlock, SingleLabelBlock, UnboundedRegressionBlock
from fastai_condmtl.conditions import And, AnyOf, Atom, Comparable, FlowError, Not, any_of, as_condition, atoms, both, conjuncts, forced, kleene, task
from fastai_condmtl.flow import Flow
from fastai_condmtl.blocks import OrdinalBlock
from fastai_condmtl.loss.conditional import ConditionalLoss
from fastai_condmtl.loss.decisions import move_threshold, as_plain
from fastai_condmtl.masks import MASKS
from fastai_condmtl.points import KeypointsBlock
from fastai_condmtl.target import FlowPrediction, TensorConditional, shortened, as_table, packed
from fastai_condmtl.thresholds import best_threshold, cross_fit, gain, score_of_counts, threshold_curve, threshold_interval, threshold_scores

A, B, C = map(BinaryBlock, 'abc')
LEVEL = OrdinalBlock('level')
KIND, TAGS, AGE = SingleLabelBlock('kind'), MultiLabelBlock('tags'), UnboundedRegressionBlock('age')

def says(text, f, *args, error=FlowError):
    "`f(*args)` is refused in just these words, or in words that begin so."
    with pytest.raises(error) as e: f(*args)
    assert str(e.value).startswith(text), str(e.value)

# ---- conditions: questions -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize('c, op, value', [
    (KIND.eq('x'), 'eq', 'x'), (KIND.ne('x'), 'ne', 'x'), (KIND.isin(['x', 'y']), 'isin', ('x', 'y')), (TAGS.has('r'), 'has', 'r'), (TAGS.has_any({'r': 1}), 'has_any', ('r',)),
    (TAGS.has_all(iter('rg')), 'has_all', ('r', 'g')), (AGE.gt(3), 'gt', 3), (AGE.ge(3), 'ge', 3), (AGE.lt(3), 'lt', 3), (AGE.le(3), 'le', 3), (AGE.between(1, 2), 'between', (1, 2)),
    (AGE > 3, 'gt', 3), (AGE >= 3, 'ge', 3), (AGE < 3, 'lt', 3), (AGE <= 3, 'le', 3), (3 < AGE, 'gt', 3), (AGE.between(2, 2), 'between', (2, 2)), (as_condition(A), 'true', None)])
def test_a_question_is_an_atom(c, op, value):
    block = {'eq': KIND, 'ne': KIND, 'isin': KIND, 'has': TAGS, 'has_any': TAGS, 'has_all': TAGS, 'true': A}.get(op, AGE)
    assert type(c) is Atom and (c.task, c.op, c.value, c.given, c.cols) == (block.name, op, value, None, (block.name,)) and type(c.value) is type(value)

def test_an_atom_carries_what_its_block_is_given_and_reads():
    c = as_condition(BinaryBlock('x', col='column') | A)
    assert (c.given, c.cols) == (Atom('a'), ('column',)) and as_condition(MultiLabelBlock('m', cols=['p', 'q']).has('p')).cols == ('p', 'q')
    assert c == Atom('x') == Atom('x', 'true', None) and hash(c) == hash(Atom('x')) and (as_condition(task('x')).given, as_condition(task('x')).cols) == (None, None)

def test_a_task_by_name_may_be_a_key():
    assert {task('a'): 1}[task('a')] == 1 and task('a') in {task('a')} and task('a') != Atom('a') and task('a') != task('b') and repr(task('a.b')) == "task('a.b')"

class Nameless(Comparable): pass
def test_what_may_be_asked_must_have_a_name():
    assert Comparable.ops is None and (Comparable.given, Comparable.cols) == (None, None)
    says('Nameless must say which task it asks about', Nameless()._name, error=NotImplementedError)

@pytest.mark.parametrize('make, text', [
    (lambda: KIND.eq(['x']), "kind.eq(['x']) wants one value: for several write kind.isin(['x'])"), (lambda: KIND.ne({}), "kind.ne({}) wants one value: for several write kind.isin({})"),
    (lambda: TAGS.has(['x']), "tags.has(['x']) wants one value: for several write tags.has_any(['x'])"), (lambda: LEVEL > ['x'], "level.gt(['x']) wants one value: for several write level.isin(['x'])"),
    (lambda: KIND.isin('xy'), "isin('xy') wants several values: write isin(['xy'])"), (lambda: KIND.isin(3), "isin(3) wants several values: write isin([3])"),
    (lambda: TAGS.has_any('xy'), "has_any('xy') wants several values"), (lambda: TAGS.has_all(3), "has_all(3) wants several values"), (lambda: KIND.isin([]), "isin([]) asks about nothing"),
    (lambda: TAGS.has_any(()), "has_any([]) asks about nothing"), (lambda: TAGS.has_all(set()), "has_all([]) asks about nothing"), (lambda: KIND.isin([[1]]), "isin([[1]]): values must be hashable"),
    (lambda: AGE.between(2, 1), "age.between(2, 1) is never true"), (lambda: any_of(), "any_of() of nothing is never true"), (lambda: AGE > '3', "'3' is not a number"), (lambda: AGE >= b'3', "b'3' is not a number"),
    (lambda: AGE < None, "None is not a number"), (lambda: AGE <= 10**400, f"{10**400} is not a number"), (lambda: AGE.between(float('nan'), 1), "nan is not a number"), (lambda: LEVEL > float('nan'), "nan is not a number"),
    (lambda: LEVEL > None, "None is not a number"), (lambda: as_condition(True), "True is not a condition. Was it written with `==`?"), (lambda: as_condition(np.bool_(False)), "False is not a condition. Was it written with `==`?"),
    (lambda: as_condition(type('bool_', (), dict(__repr__=lambda self: 'True'))()), "True is not a condition. Was it written with `==`?"), # as NumPy 1 calls it
   
    (lambda: as_condition(3), "3 (int) is not a condition"), (lambda: as_condition(Flow('f', A)), "Flow 'f' is not a condition"), (lambda: as_condition(KIND), "task 'kind' (SingleLabelBlock) cannot be used bare as a condition"),
    (lambda: True & as_condition(A), "True is not a condition"), (lambda: True & A, "True is not a condition"), (lambda: as_condition(A) | B, "`a | ...`"), (lambda: 3 | as_condition(A), "`3 | a`"), (lambda: KIND.has('x'), "task 'kind' (SingleLabelBlock) cannot be asked .has")])
def test_a_wrong_question_is_refused(make, text): says(text, make)

def test_a_task_by_name_may_be_of_any_kind():
    assert (task('x') > 'b').value == 'b' and (LEVEL > 'b').value == 'b' and task('x').between('b', 'a').value == ('b', 'a') and LEVEL.between('b', 'a').value == ('b', 'a') and (LEVEL > 2).value == 2

# ---- conditions: joined ------------------------------------------------------------------------------------------------------
def test_joining():
    a, b, c = map(as_condition, (A, B, C))
    assert A & B == a & b == a & B == A & b == And((a, b)) and a & (b & c) == (a & b) & c == And((a, b, c)) and a.__rand__(B) == And((b, a)) == A.__rand__(B)
    assert any_of(A, any_of(B, C)) == AnyOf((a, b, c)) and any_of(A) == a and any_of(A & B, C) == AnyOf((And((a, b)), c)) and (any_of(A, B) & C) == And((AnyOf((a, b)), c)) and ~A == ~a == Not(a)
    assert conjuncts(None) == () and conjuncts(a) == (a,) and conjuncts(a & b) == (a, b) and conjuncts(any_of(a, b)) == (any_of(a, b),)
    assert both(None, None) is None and both(a, None) == a == both(None, a) and both(a, b) == And((a, b))
    assert list(atoms(None)) == [] and list(atoms(~(b & any_of(a, ~c)) & a)) == [b, a, c, a]

def test_conditions_print_as_they_are_written():
    for source in ('age > 3', 'age >= 3', 'age < 3', 'age <= 3', '~(age > 3)', '~(age <= 3)', '(age >= 3) & a', '~a & ~(a & b)', '~any_of(a, age < 3)', "kind.isin(['x', 'y'])", 'age.between(1, 2)', "~task('g.a')"):
        assert repr(eval(source, dict(age=AGE, a=A, b=B, kind=KIND, any_of=any_of, task=task))) == source

def random_formula(rng, names, depth=3):
    "Each name once"
    if len(names) == 1 or not depth:
        c = And(tuple(map(Atom, names))) if len(names) > 1 else Atom(names[0])
    else:
        cut = sorted(rng.sample(range(1, len(names)), rng.randint(1, min(2, len(names) - 1))))
        c = rng.choice([And, AnyOf])(tuple(random_formula(rng, names[i:j], depth - 1) for i,j in zip([0, *cut], [*cut, len(names)])))
    if rng.random() < .2: c = rng.choice([And, AnyOf])((c,)) # may be of one
    return Not(c) if rng.random() < .4 else c

def holds(c, world):
    if isinstance(c, Atom): return world[c.task]
    if isinstance(c, Not): return not holds(c.arg, world)
    return (all if isinstance(c, And) else any)([holds(a, world) for a in c.args])

@pytest.mark.parametrize('seed', range(60))
def test_what_is_forced_is_what_all_worlds_share(seed):
    "Where each task is asked once, all that follows from a condition's truth is what each world in which it has that truth has in common."
    rng = random.Random(seed)
    names = list('abcde'[:rng.randint(1, 5)])
    c = random_formula(rng, names)
    worlds = [dict(zip(names, w)) for w in itertools.product([False, True], repeat=len(names))]
    for truth in (True, False):
        those = [w for w in worlds if holds(c, w) == truth]
        want = {(n, v) for n in names for v in (True, False) if all(w[n] == v for w in those)}
        got = [(a.task, t) for a,t in forced(c, truth)]
        assert set(got) == want and len(got) == len(want)
    assert list(forced(c)) == list(forced(c, True)) and list(forced(None)) == [] == list(forced(None, False))

@pytest.mark.parametrize('seed', range(20))
def test_what_is_known_is_what_all_fillings_share(seed):
    "Kleene's logic, where each task is asked once: true where the condition holds however the gaps are filled, false where it never does."
    rng = random.Random(seed)
    names = list('abcd'[:rng.randint(1, 4)])
    c, rows = random_formula(rng, names), list(itertools.product([False, True, None], repeat=len(names)))
    cols = {n: np.array([r[i] for r in rows], dtype=object) for i,n in enumerate(names)}
    t, f = kleene(c, lambda a: tuple(np.array([v is truth for v in cols[a.task]]) for truth in (True, False)))
    for k,r in enumerate(rows):
        fills = {holds(c, dict(zip(names, w))) for w in itertools.product(*[[False, True] if v is None else [v] for v in r])}
        assert (t[k], f[k]) == (fills == {True}, fills == {False})

# ---- target: tables ----------------------------------------------------------------------------------------------------------
Pair = collections.namedtuple('Pair', 'a b')

@pytest.mark.parametrize('rows', [
    [dict(a=1, b=0), dict(a=0, b=1)], [pd.Series(dict(a=1, b=0)), pd.Series(dict(a=0, b=1))], [dict(b=0, a=1), pd.Series(dict(b=1, a=0))], [(1, 0), (0, 1)], [[1, 0], [0, 1]], np.array([[1, 0], [0, 1]]),
    [Pair(1, 0), Pair(b=1, a=0)], iter([(1, 0), (0, 1)]), (np.array([1, 0]), [0, 1])])
def test_rows_of_any_form_are_a_table(rows):
    got = as_table(rows, [A, B])
    assert sorted(got.columns) == ['a', 'b'] and got[['a', 'b']].astype(int).values.tolist() == [[1, 0], [0, 1]]

def test_a_table_stays_and_a_row_is_a_table_of_one():
    df = pd.DataFrame(dict(x=[1]))
    assert as_table(df, [A, B]) is df
    for row in (dict(a=1, b=0), pd.Series(dict(a=1, b=0))):
        got = as_table(row, [A, B])
        assert list(got.columns) == ['a', 'b'] and got.values.tolist() == [[1, 0]]
    none = as_table([], [A, MultiLabelBlock('m', cols=['p', 'q'])])
    assert len(none) == 0 and list(none.columns) == ['a', 'p', 'q']

@pytest.mark.parametrize('rows, block, want', [
    ([1, 0], A, [[1], [0]]), ([(1,), (0,)], A, [[1], [0]]), ([[1], [0]], A, [[1], [0]]), (['no', 'yes'], A, [['no'], ['yes']]), ([True, None], A, [[True], [None]]), ([(1,), 0], A, [[(1,)], [0]]), ([(1,), (0, 1)], A, [[(1,)], [(0, 1)]]),
    ([(1, 0), (0, 1)], A, [[(1, 0)], [(0, 1)]]), ([['x'], ['y']], TAGS, [[['x']], [['y']]]), ([['x', 'y'], []], TAGS, [[['x', 'y']], [[]]]), ([(1, 0), (0, 1)], MultiLabelBlock('m', cols=['p', 'q']), [[1, 0], [0, 1]]),
    ([(1,), (0,)], MultiLabelBlock('m', cols=['p']), [[(1,)], [(0,)]])])
def test_rows_of_a_single_task(rows, block, want):
    got = as_table(rows, [block])
    assert list(got.columns) == block.cols and got.values.tolist() == want

@pytest.mark.parametrize('rows, shown', [(['ab', 'cd'], "'ab'"), ([b'ab'], "b'ab'"), ([3, 4], '3'), ([(1, 2, 3)], '(1, 2, 3)'), ([(1, 2), (1,)], '(1, 2)')])
def test_rows_that_do_not_fit(rows, shown): says(f"row {shown} does not fit the columns ['a', 'b']", as_table, rows, [A, B])

# ---- target: binding -------------------------------------------------------------------------------------------------------
WEIGHED = pd.DataFrame(dict(a=[1, 0, 1, None, 1], b=[1, 1, 0, 1, None], p=[1, 0, None, 1, 1], q=[0, 1, 1, None, 1], n=[1., 2., None, 4., 5.], w=[2., .5, 0., 3., 1.]))
def weighed(**kw): return Flow('f', A, BinaryBlock('b') | A, MultiLabelBlock('m', cols=['p', 'q']), UnboundedRegressionBlock('n'), **{'weight_col': 'w', **kw})

def test_what_cannot_be_bound():
    f, df = weighed(), WEIGHED
    says("flow 'f' met an empty table: hand over at least one row", f.bind, df[:0])
    says("flow 'f': train_idx goes beyond the 5 rows", f.bind, df, [0, 5])
    says("task 'a' reads column 'a', which the table does not have", f.bind, df.drop(columns='a'))
    says("task 'm' reads column 'q', which stands 2 times in the table", f.bind, pd.concat([df, df[['q']]], axis=1))
    says("task 'a' reads the weights of its rows from column 'w', which the table does not have", f.bind, df.drop(columns='w'))
    says("task 'a' reads the weights of its rows from column 'w', which stands 2 times", f.bind, pd.concat([df, df[['w']]], axis=1))
    says("task 'g.b' reads the weights of its rows from column 'v'", Flow('f', A, Flow('g', B, weight_col='v')).bind, df)
    says("asked for task 'nope', which the flow does not have", f.bind(df).find, 'nope')

def test_found_by_path_or_leaf():
    bound = Flow('f', A, Flow('g', B, Flow('h', C))).bind(pd.DataFrame(dict(a=[1, 0], b=[1, 0], c=[0, 1])))
    assert bound.find('c') is bound.tasks['g.h.c'] is bound.find('h.c') and bound.path('b') == 'g.b' and bound.path('g.b') == 'g.b'

def test_blanks_of_a_source_without_the_column():
    tags = MultiLabelBlock('tags', nan_is_empty=True)
    df = pd.DataFrame(dict(tags=['x', None]))
    df.attrs['lacks'] = {'tags': ['second', 'third'], 'other': ['first']}
    says("task 'tags' reads a blank in column 'tags' as \"none of the labels\" (nan_is_empty=True), and source 'second' and 'third' has no such column", Flow('f', tags).bind, df)
    assert Flow('f', MultiLabelBlock('tags')).bind(df).encode(df)[:, 1].tolist() == [[1], [0]]
    df.attrs['lacks'] = {'other': ['first']}
    assert Flow('f', tags).bind(df).encode(df)[:, 1].tolist() == [[1], [1]]

def test_tasks_are_laid_out_by_family_wide_ones_first():
    "Logits: sigmoid tasks first, of these those with many columns; activations and targets in the order written."
    df = pd.DataFrame(dict(k=['x', 'y', 'z'], a=[1, 0, 1], n=[1., 2., 3.], p=[1, 0, 1], q=[1, 1, 0], b=[1, 0, 0]))
    bound = Flow('f', SingleLabelBlock('k'), A, UnboundedRegressionBlock('n'), MultiLabelBlock('m', cols=['p', 'q']), B).bind(df)
    assert [(f.tasks, f.columns, f.n_out) for f in bound.families] == [((3, 1, 4), (3, 4, 1, 5), 1), ((0,), (0,), 3), ((2,), (2,), 1)]
    assert [(s.targets, s.logits, s.acts) for s in bound.slices.values()] == [(slice(0, 1), slice(4, 7), slice(0, 3)), (slice(1, 2), slice(2, 3), slice(3, 4)),
        (slice(2, 3), slice(7, 8), slice(4, 5)), (slice(3, 5), slice(0, 2), slice(5, 7)), (slice(5, 6), slice(3, 4), slice(7, 8))]
    assert (bound.n_targets, bound.c, bound.target_slices) == (6, 8, [s.targets for s in bound.slices.values()])

def test_balanced_weights_are_counted_from_training_rows():
    "Positives weigh as much as negatives, by rows that train (and by their weight); tasks of one weight stay one family."
    df = pd.DataFrame(dict(a=[1, 0, 0, 0, 1, 1], k=['x', 'x', 'x', 'y', 'y', 'y'], w=[1., 1., 1., 3., 1., 1.]))
    flow = lambda **kw: Flow('f', BinaryBlock('a', pos_weight='balanced'), SingleLabelBlock('k', class_weights='balanced'), **kw)
    bound = flow().bind(df, [0, 1, 2, 3])
    assert bound.tasks['a'].pos_weight == pytest.approx([3]) and np.divide(*bound.tasks['k'].class_weights) == pytest.approx(1/3)
    assert bound.families[1].n_out == 2 and any(bound.tasks['k'].class_weights == part for part in bound.plan.blocks[1].family)
    assert flow(weight_col='w').bind(df, [0, 1, 2, 3]).tasks['a'].pos_weight == pytest.approx([5])
    assert BinaryBlock('a', pos_weight='balanced').pos_weight == 'balanced'
    n = Flow('f', UnboundedRegressionBlock('w')).bind(df, [0, 3]).tasks['w']
    assert (n.mean, n.std) == pytest.approx((2, 1)) and Flow('f', UnboundedRegressionBlock('w')).bind(df).tasks['w'].mean == pytest.approx(8/6)

# ---- target: encoding ------------------------------------------------------------------------------------------------------
def test_weights_of_rows_are_in_the_mask():
    "By hand: the weight where a label counts, 0 where it does not; b counts where a is 1."
    y = weighed().bind(WEIGHED).encode(WEIGHED)
    assert y.mask.tolist() == [[2, 2, 2, 2, 2], [.5, 0, .5, .5, .5], [0, 0, 0, 0, 0], [0, 0, 3, 0, 3], [1, 0, 1, 1, 1]] and y[:, 1].tolist() == y.mask.tolist()
    assert y.vals[:, :4].tolist() == [[1, 1, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1], [0, 1, 1, 0], [1, 0, 1, 1]] and y.dtype == torch.float32
    assert y.vals[:, 4].tolist() == pytest.approx([-2/2.5**.5, -1/2.5**.5, 0, 1/2.5**.5, 2/2.5**.5])

def test_a_weight_may_be_blank_where_nothing_counts():
    f, df = Flow('f', BinaryBlock('a'), weight_col='w'), WEIGHED[['a', 'w']].assign(w=[2., .5, 0., None, 1.])
    assert f.bind(df).encode(df)[:, 1, 0].tolist() == [2, .5, 0, 0, 1]
    for bad in (None, -.1, -3., 3.1e38):
        wrong = df.assign(w=[2., .5, bad, 1., 1.])
        with pytest.raises(FlowError, match=r"^task 'a', row 2, column 'w', value .*: the weight of a row must be a number that is not negative"): f.bind(df).encode(wrong)
    far = df.assign(w=[0., .5, 2.9e38, 1., 1.])
    assert f.bind(far).encode(far)[:, 1, 0].tolist() == [0, .5, np.float32(2.9e38), 0, 1]

def test_columns_that_new_rows_lack():
    df = WEIGHED.assign(tags=['x', None, 'y', None, 'x,y'])
    bound = Flow('f', *weighed().tasks, MultiLabelBlock('tags', nan_is_empty=True), weight_col='w').bind(df)
    whole = bound.encode(df)
    for gone, cols, names in ((['a'], [0, 1], "'a'"), (['b', 'n'], [1, 4], "'b', 'n'"), (['q'], [3], "'q'"), (['tags'], [5, 6], "'tags'")):
        with pytest.warns(UserWarning, match=f"^no column {names} in the table: its labels count as missing$"): y = bound.encode(df.drop(columns=gone), missing_ok=True)
        kept = [c for c in range(7) if c not in cols]
        assert torch.equal(y[..., kept], whole[..., kept]) and not y[:, 1, cols].any() and not y[:, 0, [c for c in cols if c != 1 or 'b' in gone]].any()
        says(f"task '{'m' if gone == ['q'] else gone[0]}' reads column '{gone[0]}', which the table does not have", bound.encode, df.drop(columns=gone))
    assert torch.equal(bound.encode(df.drop(columns='w'), missing_ok=True), bound.encode(df.assign(w=1.)))
    says("task 'a' reads the weights of its rows from column 'w', which the table does not have", bound.encode, df.drop(columns='w'))
    odd = Flow('f', BinaryBlock('a', col=7), B).bind(pd.DataFrame({7: [1, 0], 'b': [1, 0]}))
    with pytest.warns(UserWarning, match='^no column 7 '): y = odd.encode(pd.DataFrame(dict(b=[1, 0]), index=[5, 5]), missing_ok=True)
    assert y.tolist() == [[[0, 1], [0, 1]], [[0, 0], [0, 1]]]

@pytest.mark.parametrize('mode, call, want', [(False, {}, [[0, 0], [1, 1]]), (True, {}, [[0, 1], [1, 1]]), (True, dict(inferred=True), [[1, 1], [1, 1]]), ('train', {}, [[1, 1], [1, 1]]), ('train', dict(inferred=True), [[1, 1], [1, 1]])])
def test_a_label_implies_its_condition(mode, call, want):
    df = pd.DataFrame(dict(a=[None, 1], b=[1, 0]))
    y = Flow('f', A, BinaryBlock('b') | A, infer_labels=mode).bind(df).encode(df, **call)
    assert y.mask.tolist() == want and y.vals[0].tolist() == [float(want[0][0]), 1]

def test_what_float32_cannot_hold():
    "A label that is a number, but none on the scale of the loss."
    bound = Flow('f', Flow('g', UnboundedRegressionBlock('n'))).bind(pd.DataFrame(dict(n=[1., 2., 3.])))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(FlowError, match=r"^task 'g\.n', row 1, column 'n', value 1e\+200: on the scale of the loss this is more than float32 holds"): bound.encode(pd.DataFrame(dict(n=[None, 1e200, 3.])))

def test_what_the_trivial_predictor_learns():
    "Counted by rows, whatever their weight."
    bound = weighed().bind(WEIGHED)
    bound.learn_constants(bound.encode(WEIGHED))
    assert set(bound.constants) == {'a', 'b', 'm', 'n'} and [bound.constants[p].tolist() for p in 'abm'] == [pytest.approx([2/3]), pytest.approx([1.]), pytest.approx([.75, 2/3])]
    z = (np.array([1, 2, 4, 5]) - 3)/2.5**.5
    assert bound.constants['n'] == pytest.approx((z.mean(), np.median(z)), abs=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        bound.learn_constants(bound.encode(WEIGHED[:1]))
        with pytest.raises(UserWarning, match=r"^no training row counts for 'b', 'n' \(not labelled"): bound.learn_constants(bound.encode(WEIGHED.assign(n=[None]*5)[1:2]))

# ---- target: reading ------------------------------------------------------------------------------------------------------
def test_back_to_units():
    df = pd.DataFrame(dict(k=['x', 'y', 'z'], r=[10., 15., 20.], n=[0., 0., 3.]))
    bound = Flow('f', SingleLabelBlock('k'), BoundedRegressionBlock('r', y_range=(10, 30)), UnboundedRegressionBlock('n')).bind(df)
    y = bound.encode(df)
    back = bound.to_units(y)
    assert type(back) is TensorConditional and back.dtype == torch.float32 and back.shape == y.shape and np.allclose(back.vals, [[0, 10, 0], [1, 15, 0], [2, 20, 3]], atol=1e-6) and torch.equal(back.mask, y.mask) and y.vals[:, 1].tolist() == [0, .25, .5]
    assert bound.to_units(y.double()).dtype == torch.float64 and np.allclose(bound.to_units(y[1]).vals, [1, 15, 0], atol=1e-6) and bound.to_units(y[None]).shape == (1, 3, 2, 3)

def test_packed():
    y = torch.arange(12.).reshape(3, 4)
    assert torch.equal(packed(y), torch.stack([y[:, :2], y[:, 2:]], 1)) and packed(y.reshape(3, 2, 2)) is not None and torch.equal(packed(y.reshape(3, 2, 2)), y.reshape(3, 2, 2)) and packed(torch.zeros(0, 2, 2)).shape == (0, 2, 2)

def test_reached_and_known_to_be_false():
    "c counts where a and not b; a row by what is known of a and b."
    df = pd.DataFrame(dict(a=[1, 1, 0, 0, None, None, 1], b=[0, 1, 0, None, 0, 1, None], c=[1]*7))
    bound = Flow('f', A, B, BinaryBlock('c') | (A & ~B)).bind(df)
    y = bound.encode(df)
    assert bound.false_conditions(y).tolist() == [[False, False, v] for v in (False, True, True, True, False, True, False)]
    assert y.mask[:, 2].tolist() == [1, 0, 0, 0, 0, 0, 0]
    vals = torch.tensor([[1., 0, 0], [1, 1, 1], [0, 0, 1], [.6, .4, 0]])
    want = [[True, True, v] for v in (True, False, False, True)]
    for given in (vals, torch.stack([vals, torch.zeros_like(vals)], 1), TensorConditional(torch.stack([vals, torch.ones_like(vals)], 1)), TensorConditional(vals)):
        got = bound.reached(given)
        assert type(got) is torch.Tensor and got.dtype == torch.bool and got.tolist() == want
    assert bound.reached(vals[:0]).shape == (0, 3) and bound.false_conditions(y[:0]).shape == (0, 3)
    scaled = Flow('f', BoundedRegressionBlock('a', y_range=(0, 10)), UnboundedRegressionBlock('b'), BinaryBlock('c') | ((task('a') >= 1) & (task('b') < 1))).bind(df) # asked in the table's units
    assert scaled.false_conditions(scaled.encode(df))[:, 2].tolist() == [False, True, True, True, False, True, False]
    half = Flow('f', A, BinaryBlock('b') | A, weight_col='w').bind(df.assign(w=.5))
    assert half.false_conditions(half.encode(df.assign(w=.5))).tolist() == [[False, v] for v in (False, False, True, True, False, False, False)]

def test_a_prediction_reads_as_the_table(capsys):
    df = pd.DataFrame(dict(a=[1, 0], k=['x', 'y'], n=[0., 2.], tags=['r', 'g']))
    bound = Flow('f', A, Flow('g', SingleLabelBlock('k'), UnboundedRegressionBlock('n') | A), MultiLabelBlock('tags')).bind(df)
    decoded, acts = torch.tensor([[0., 1., .25, 1., 0.], [1., 1., 0., 1., 1.]]), torch.tensor([.25, .125, .875, .5, .75, .0625])
    pred = FlowPrediction(bound, decoded, acts)
    assert dict(pred) == {'a': False, 'g.k': 'y', 'g.n': None, 'tags': ['g']} and (len(pred), list(pred), pred['k'], pred['g.k']) == (4, ['a', 'g.k', 'g.n', 'tags'], 'y', 'y')
    assert pred.reached == {'a': False, 'g.k': 'y', 'tags': ['g']} and pred.probabilities == {'a': .25, 'g.k': {'x': .125, 'y': .875}, 'tags': {'g': .75, 'r': .0625}}
    assert FlowPrediction(bound, decoded).probabilities is None and pred.activations is acts and pred.decoded is decoded and pred.logits is None and pred.flow is bound and FlowPrediction(bound, decoded, None, acts).logits is acts
    with pytest.raises(KeyError, match="asked for task 'nope'"): pred['nope']
    assert 'nope' not in pred and 'k' in pred and pred.get('nope', 3) == 3 and pred.frame is None
    assert pred.show() is None and capsys.readouterr().out.strip() == str(pred.tree()).strip() != ''
    ax = matplotlib.figure.Figure().subplots()
    assert pred.show(ctx=ax) is ax and ax.get_title() == 'a: no\nk: y\ntags: g'
    on = FlowPrediction(bound, torch.tensor([[1., 0., .25, 0., 0.], [.5, 2., .1, 1., 0.]]))
    assert dict(on) == {'a': True, 'g.k': 'x', 'g.n': 1.25, 'tags': []}
    assert repr(on) == "FlowPrediction(a=True, g.k='x', g.n=1.25, tags=[])" and repr(FlowPrediction(bound, torch.tensor([[1., 0., 1/3, 0., 0.], [0., 0., 1., 0., 0.]]))) == 'FlowPrediction(g.n=1.333)'

# ---- thresholds -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('s, lo, hi', [([.2, .6], 0, 1), ([0., .6], -1e-6, 1), ([.2, 1.], 0, 1 + 1e-6), ([0., 1.], -1e-6, 1 + 1e-6), ([-3., 5.], -3 - 3e-6, 5 + 5e-6), ([.5, 1.5], .5 - 1e-6, 1.5 + 1.5e-6),
    ([-.5, .5], -.5 - 1e-6, .5 + 1e-6), ([-5., -2.], -5 - 5e-6, -2 + 2e-6), ([.3, .3], 0, 1), ([1., 1.], 0, 1 + 1e-6), ([0., 0.], -1e-6, 1), ([1e3, 2e3], 1e3 - 1e-3, 2e3 + 2e-3)])
def test_how_far_thresholds_may_go(s, lo, hi):
    "To 0 and 1 where scores can be probabilities, else a millionth beyond the scores; a threshold that decides all alike is in the middle of that."
    s = np.array(s)
    cuts = threshold_curve(s, [0, 1])[0]
    assert cuts.tolist() == pytest.approx([lo, *([s.mean()] if s[0] < s[1] else []), hi], rel=1e-14, abs=1e-20)
    assert best_threshold(s, [1, 1], metric='accuracy') == (pytest.approx((lo + s[0])/2, rel=1e-12), 1) and best_threshold(s, [0, 0], metric='accuracy') == (pytest.approx((hi + s[1])/2, rel=1e-12), 1)

def lower_quantiles(x, n): # the smallest score that at least a share of q reaches
    return [sorted(x)[max(0, int(np.ceil(q*len(x) - 1e-9)) - 1)] for q in np.linspace(0, 1, n)]

@pytest.mark.parametrize('rate', [.1, .5, .9])
def test_a_long_curve_is_thinned_where_it_moves(rate):
    "Half of the cut-offs are scores of the rarer answer, half of all; counted there one by one."
    rng = np.random.default_rng(3)
    s, y = rng.random(1000), np.arange(1000) < 1000*rate
    few = s[y] if rate <= .5 else s[~y]
    for points in (9, 40): assert threshold_curve(s, y, points=points)[0].tolist() == sorted({0., 1., *lower_quantiles(s, points//2 - 1), *lower_quantiles(few, points//2 - 1)})
    cuts, vals, _ = threshold_curve(s, y, 'accuracy')
    assert 300 < len(cuts) <= 512 and vals.tolist() == pytest.approx([((s > t) == y).mean() for t in cuts])
    assert len(threshold_curve(s[:511], y[:511])[0]) == 512 and len(threshold_curve(s[:512], y[:512])[0]) < 512 and len(threshold_curve(s, y*0)[0]) < 512

def test_curves_of_nothing_and_of_seeds():
    cuts, vals, draws = threshold_curve([], [], n_boot=3)
    assert (cuts.shape, vals.shape, draws.shape) == ((0,), (0,), (3, 0)) and np.isnan(threshold_interval([], [])).all()
    rng = np.random.default_rng(0)
    s, y = rng.random(50), rng.random(50) < .5
    assert threshold_curve(s, y)[2].shape == (0, 51) and np.array_equal(threshold_curve(s, y, n_boot=4)[2], threshold_curve(s, y, 'f1', 512, 4, 0)[2]) and not np.array_equal(threshold_curve(s, y, n_boot=4)[2], threshold_curve(s, y, n_boot=4, seed=1)[2])
    assert threshold_interval(s, y) == threshold_interval(s, y, 'f1', None, 200, .95, 0) != threshold_interval(s, y, seed=1)
    low, high = threshold_interval(s, y, 'accuracy', level=1.)
    assert all(isinstance(v, float) for v in (low, high)) and 0 <= low <= threshold_interval(s, y, 'accuracy')[0] <= high <= 1

def test_an_interval_of_what_is_sure():
    "Two groups far apart: any draw has its best thresholds between them, at the one cut-off that there is."
    s, y = np.repeat([.2, .6], 50), np.repeat([0, 1], 50)
    assert threshold_interval(s, y) == pytest.approx((.4, .4)) and threshold_interval(s, y, 'recall', ('precision', .99)) == pytest.approx((.4, .4)) and np.isnan(threshold_interval(s, y, 'f1', ('accuracy', 1.1))).all()
    s4 = np.repeat([.1, .3, .5, .7, .9], 40) # equally good from .3 to .7: the middle one
    assert threshold_interval(s4[[*range(40), *range(160, 200)]], np.repeat([0, 1], 40)) == pytest.approx((.5, .5))
    assert threshold_interval(s4, np.repeat([0, 1, 1, 1, 1], 40), lambda tp, fp, fn, tn: np.minimum(tp, 40.)) == pytest.approx((.2, .4), abs=.2)

@pytest.mark.parametrize('constraint', [None, ('precision', .6)])
def test_an_interval_is_that_of_each_draws_middle(constraint):
    "The draws are those of the curve: of each the middle of its best cut-offs, of these the quantiles."
    rng = np.random.default_rng(4)
    y = rng.random(60) < .5
    s = np.round((rng.random(60) + y*.4)/1.4, 1)
    cuts, _, draws = threshold_curve(s, y, 'f1', 2048, 200, 9)
    held = np.ones(draws.shape, dtype=bool) if constraint is None else threshold_curve(s, y, constraint[0], 2048, 200, 9)[2] >= constraint[1]
    mids = []
    for v, ok in zip(draws, held):
        if not ok.any(): continue
        at = [k for k in range(len(cuts)) if ok[k] and v[k] >= v[ok].max() - 1e-12]
        mids.append(cuts[(at[0] + at[-1])//2])
    assert threshold_interval(s, y, 'f1', constraint, seed=9) == pytest.approx(tuple(np.quantile(mids, [.025, .975]))) and len(set(mids)) > 2
    assert threshold_interval(s, y, 'f1', constraint, 200, .5, 9) == pytest.approx(tuple(np.quantile(mids, [.25, .75])))

def test_gain_counts_decisions():
    "By hand: 4 rows, two right against one."
    acc = lambda tp, fp, fn, tn: (tp + tn)/np.maximum(tp + fp + fn + tn, 1)
    rec = lambda tp, fp, fn, tn: tp/np.maximum(tp + fn, 1)
    true, ours, other = (np.array(v, dtype=bool) for v in ([1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0]))
    assert gain(acc, true, ours, other)[0] == .25 and gain(rec, true, ours, other)[0] == .5 and gain(lambda tp, fp, fn, tn: fp + 10*tn + 100*fn, true, ours, other)[0] == -100
    assert gain(acc, true, ours, other) == gain(acc, true, ours, other, 400, 0) != gain(acc, true, ours, other, seed=1) and gain(acc, *[np.zeros(0, dtype=bool)]*3) == (0, 0)
    assert gain(acc, *(np.array([v], dtype=bool) for v in (1, 1, 0))) == (1, 0) and gain(acc, *(np.array([v], dtype=bool) for v in (0, 1, 0))) == (-1, 0)
    assert gain(acc, true, ours, other, n_boot=3)[1] != gain(acc, true, ours, other)[1]

def test_folds_and_starts():
    rng = np.random.default_rng(5)
    s, y = rng.random((40, 2)), rng.random((40, 2)) < .4
    mask = np.ones((40, 2), dtype=bool)
    fold = np.random.default_rng(7).permutation(40) % 4
    got = cross_fit(s, y, folds=4, seed=7)
    for k in range(4):
        for j in range(2): assert got[fold == k, j] == pytest.approx(best_threshold(s[fold != k, j], y[fold != k, j])[0])
    assert np.array_equal(cross_fit(s, y), cross_fit(s, y, None, 'f1', None, None, .5, 5, 0)) and np.array_equal(cross_fit(s, y), cross_fit(s, y, mask))
    micro = cross_fit(s, y, average='micro', folds=4, seed=7)
    for k in range(4): assert np.allclose(micro[fold == k], best_threshold(s[fold != k], y[fold != k], average='micro')[0])
    assert not np.allclose(micro, got)
    mask[:, 1] = False
    assert (cross_fit(s, y, mask, start=np.array([.1, .3]))[:, 1] == .3).all() and (cross_fit(s, y, mask)[:, 1] == .5).all() and (cross_fit(s, y, mask*.5)[:, 1] == .5).all()

def test_more_than_is_searched_at_once():
    "Columns are searched some at a time; each is still its own."
    rng = np.random.default_rng(0)
    y = rng.random((600_000, 4)) < [.2, .4, .5, .7]
    s = (y*[.1, .2, .4, .6] + rng.random(y.shape)).astype(np.float32)
    t, score = best_threshold(s, y, metric='accuracy')
    for j in (0, 3): assert (t[j], score[j]) == pytest.approx(best_threshold(s[:, j], y[:, j], metric='accuracy'))
    assert score.tolist() == pytest.approx([((s[:, j] > t[j]) == y[:, j]).mean() for j in range(4)])

def test_scores_of_any_number_type():
    y = np.array([0, 1, 0, 1])
    for dtype in (np.int64, np.int32, np.float16, np.uint8): assert best_threshold(np.array([1, 5, 2, 8]).astype(dtype), y) == (pytest.approx(3.5), 1)
    assert best_threshold(np.array([-3, 1, -0., 2]).astype(np.float32), y)[0] == pytest.approx(.5) and best_threshold(np.array([0., 1, -0., 2], dtype=np.float32), y, np.array([.5, 2, 0, 1]))[1] == 1
    fine = np.array([1, 1 + 1e-9, 1 + 2e-9, 1 + 3e-9]) # too close for single precision
    assert best_threshold(torch.tensor(fine), np.array([0, 0, 1, 1]))[1] == 1

@pytest.mark.parametrize('metric, text', [
    ('f1_scor', "metric 'f1_scor' has no threshold to search: did you mean 'f1_score'? Known: "), ('zzz', "metric 'zzz' has no threshold to search: Known: "), (('fbeta', 1, 2), "metric ('fbeta', 1, 2) is not known"), (('beta', 2), "metric ('beta', 2) is not known"),
    ([[1, 2]], "metric [[1, 2]] is not known"), (object, None)])
def test_what_can_be_maximised(metric, text):
    if text: says(text, score_of_counts, metric)
    else: assert score_of_counts(metric) is metric

def test_what_is_maximised():
    tp, fp, fn, tn = 3., 2., 1., 4.
    assert score_of_counts(('fbeta', 2))(tp, fp, fn, tn) == pytest.approx(15/(15 + 4*1 + 2)) and score_of_counts('f1')(tp, fp, fn, tn) == pytest.approx(6/9) == score_of_counts('f1_score')(tp, fp, fn, tn)
    assert score_of_counts([[.5, 2], [5, 1]])(tp, fp, fn, tn) == pytest.approx(-(.5*4 + 2*2 + 5*1 + 1*3)/10) and score_of_counts(((0, 1), (1, 0)))(tp, fp, fn, tn) == pytest.approx(-.3)
    assert score_of_counts('youden')(tp, fp, fn, tn) == pytest.approx(3/4 + 4/6 - 1) and 'youden' in threshold_scores and set(threshold_scores) > {'accuracy', 'f1_score', 'precision', 'recall', 'mcc', 'balanced_accuracy'}

@pytest.mark.parametrize('kw, text', [
    (dict(targets=[0, 1, 1]), "scores (2,) and targets (3,) must have one shape"), (dict(scores=np.ones((2, 1, 1)), targets=np.ones((2, 1, 1))), "scores (2, 1, 1) and targets (2, 1, 1) must have one shape, (N,) or (N, T)"), (dict(scores=.5, targets=1), "scores () and targets () must"),
    (dict(mask=[True]), "mask (1,) must have the shape of the scores, (2,)"), (dict(scores=[[.1, .2], [.3, np.nan]], targets=[[0, 1], [0, 1]]), "scores of column 1 hold NaN or infinite values"), (dict(average='macro'), "average='macro' is not known: None for a threshold a column, or 'micro'"),
    (dict(average='micro', metric='accuracy'), "average='micro' is for 'f1' and ('fbeta', beta), without a constraint"), (dict(average='micro', constraint=('recall', .5)), "average='micro' is for"),
    (dict(constraint='precision'), "constraint='precision' must be a metric and the least it may be"), (dict(constraint=('recall', '.5')), "constraint=('recall', '.5') must be"), (dict(constraint=('recall', .5, .6)), "constraint=('recall', 0.5, 0.6) must be"), (dict(constraint=dict(recall=.5)), "constraint={'recall': 0.5} must be")])
def test_a_search_that_is_refused(kw, text): says(text, lambda: best_threshold(**{'scores': [.2, .7], 'targets': [0, 1], **kw}))

def test_constraints_of_any_form():
    s, y = [.1, .3, .5, .7], [0, 1, 0, 1]
    assert best_threshold(s, y, constraint=['precision', 1]) == (pytest.approx(.6), pytest.approx(2/3)) == best_threshold(s, y, constraint=('precision', .9)) and np.isnan(best_threshold(s, y, constraint=('precision', 1.01))).all()
    assert best_threshold(s, y, metric='precision', constraint=('recall', 1)) == (pytest.approx(.2), pytest.approx(2/3)) and best_threshold(s, y, constraint=(lambda tp, fp, fn, tn: -fp, -1))[1] == pytest.approx(.8)
    assert best_threshold(s, y, metric=lambda tp, fp, fn, tn: 1e9*(tp - 2*fp)) == (pytest.approx(.6), 1e9) # more than a difference of 1e-12 can be told in
    nan = lambda tp, fp, fn, tn: np.where(tp > 1, np.nan, tp)
    assert best_threshold(s, y, metric=nan) == (pytest.approx(.5), 1) and np.isnan(best_threshold(s, y, metric=lambda *c: c[0]*np.nan)).all()
    micro = best_threshold(s, y, average='micro')
    assert micro == pytest.approx(best_threshold(s, y)) and type(micro[0]) is float is type(micro[1])
    assert [v.shape for v in best_threshold(np.zeros((3, 0)), np.zeros((3, 0)))] == [(0,), (0,)]

# ---- losses ---------------------------------------------------------------------------------------------------------------
ALL = pd.DataFrame(dict(k=['x', 'y', 'z', 'x'], a=[1, 0, 1, 1], n=[1., 2., 3., 9.], p=[1, 0, 1, 0], q=[1, 1, 0, 0], r=[0, 1, 1, 0], b=[1, 0, 0, 1], s=[0., 1., .5, 1.], x1=[1., 2., 3., 4.], y1=[4., 1., 2., 3.], l=['v', 'u', 'u', 'v'], w=[1., 2., .5, 0.]))
class Pooled(MultiLabelBlock):
    "The mean over all labels that count, not over rows of each row's mean"
    pooled = True
def all_kinds(pair=MultiLabelBlock, **kw):
    "Tasks of each family, narrow and wide, in an order that is not that of the logits; of two weights in each family."
    return Flow('f', SingleLabelBlock('k', weight=2.), A, UnboundedRegressionBlock('n', loss='l1'), MultiLabelBlock('m', cols=['p', 'q', 'r'], weight=3.), KeypointsBlock('face', cols=['x1', 'y1'], weight=.5), BinaryBlock('b', weight=5., pos_weight=4.),
        pair('pair', cols=['p', 'q'], pos_weight=[2., 3.]), BoundedRegressionBlock('s', y_range=(0, 2)), SingleLabelBlock('l', class_weights=[2., 3.]), SingleLabelBlock('kk', col='k'), **kw)
PATHS, TASK_WEIGHTS = ['k', 'a', 'n', 'm', 'face', 'b', 'pair', 's', 'l', 'kk'], [2., 1, 1, 3, .5, 5, 1, 1, 1, 1]

def one_cell(path, z, v, j):
    "Loss of one cell from its logits, by the formula."
    bce = lambda z, v, pos=1.: pos*v*math.log1p(math.exp(-z)) + (1 - v)*math.log1p(math.exp(z))
    if path in ('k', 'kk'): return math.log(sum(math.exp(x) for x in z)) - z[int(v)]
    if path == 'l': return [2., 3.][int(v)]*(math.log(sum(math.exp(x) for x in z)) - z[int(v)])
    if path in ('a', 'm'): return bce(z[0], v)
    if path in ('b', 'pair'): return bce(z[0], v, 4. if path == 'b' else [2., 3.][j])
    if path == 'n': return abs(z[0] - v)
    share = 1/(1 + math.exp(-z[0]))
    return (share - v)**2 if path == 's' else (2*share - 1 - v)**2

def batch_of_all(bound, seed, weighted, bs=6):
    g = torch.Generator().manual_seed(seed)
    pred, y = torch.randn(bs, bound.c, generator=g, dtype=torch.float64)*2, torch.zeros(bs, 2, bound.n_targets, dtype=torch.float64)
    w = torch.tensor([2., .5, 1, 3, 0, .25]) if weighted else torch.ones(bs)
    y[:, 1] = (torch.rand(bs, bound.n_targets, generator=g) < .7)*w[:bs, None]
    for p,s in bound.slices.items():
        shape = (bs, s.targets.stop - s.targets.start)
        y[:, 0, s.targets] = torch.randn(shape, generator=g, dtype=torch.float64) if p == 'n' else torch.rand(shape, generator=g, dtype=torch.float64)*2 - 1 if p == 'face' else torch.rand(shape, generator=g, dtype=torch.float64) if p == 's' else \
            torch.randint(3 if p in ('k', 'kk') else 2, shape, generator=g).double()
    return pred, y

def by_loop(bound, pred, y):
    "(loss of a row and what the row weighs, a list of rows each) for each task: None where no cell of the row counts."
    res = []
    for p in PATHS:
        s, rows = bound.slices[p], []
        for z, (v, m) in zip(pred[:, s.logits].tolist(), y[:, :, s.targets].tolist()):
            each = len(z)//len(v)
            cells = [one_cell(p, z[j*each:(j + 1)*each], v[j], j) for j in range(len(v)) if m[j]]
            rows.append((sum(cells)/len(cells), sum(m) if bound.tasks[p].pooled else max(m)) if cells else (None, 0.))
        res.append(rows)
    return res

def task_mean(rows):
    total = sum(w for _,w in rows)
    return sum(l*w for l,w in rows if w)/total if total else None

@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('pair', [MultiLabelBlock, Pooled])
@pytest.mark.parametrize('seed', range(4))
def test_the_loss_of_all_kinds_is_that_of_a_loop(seed, weighted, pair):
    "Weights of tasks, of rows, of classes and of positives, gaps, tasks of several widths: total, rows, tasks."
    bound = all_kinds(pair, **(dict(weight_col='w') if weighted else {})).bind(ALL)
    pred, y = batch_of_all(bound, seed, weighted)
    if seed == 3: y[:, 1, bound.slices['a'].targets] = y[:, 1, bound.slices['m'].targets] = 0. # two tasks without a row
    if seed == 2: y[2:5, 1, bound.slices['m'].targets] = 0.
    rows, loss = by_loop(bound, pred, y), bound.loss_func
    means = [task_mean(r) for r in rows]
    total = sum(w*m for w,m in zip(TASK_WEIGHTS, means) if m is not None)
    close = lambda got, want: torch.testing.assert_close(got.double(), torch.as_tensor(want, dtype=torch.float64), rtol=1e-6, atol=1e-7, equal_nan=True)
    nan = lambda xs: torch.tensor([float('nan') if x is None else x for x in xs], dtype=torch.float64)
    before = pred.clone(), y.clone()
    close(loss(pred, y), total)
    close(loss(pred, y.flatten(1)), total)
    close(ConditionalLoss(bound, 'sum')(pred, y), total*6)
    each = ConditionalLoss(bound, reduction='none')(pred, y)
    want = [sum(t*r[i][0]*r[i][1]/sum(w for _,w in r) for t,r in zip(TASK_WEIGHTS, rows) if r[i][1])*6 for i in range(6)]
    close(each, want)
    for target in (y, y.flatten(1)):
        close(loss.per_sample(pred, target), torch.stack([nan([l for l,_ in r]) for r in rows], 1))
        close(loss.per_task(pred, target), nan(means))
        got, there = loss.task_losses(pred, target)
        close(got, nan(means).nan_to_num(0.))
        assert there.tolist() == [m is not None for m in means]
    factor = torch.tensor([.5, 2., 0., 1., 3., 1.])
    close(loss.task_losses(pred, y, factor)[0], [sum(l*w*f for (l,w),f in zip(r, factor.tolist()) if w)/max(sum(w for _,w in r), 1e-9) for r in rows])
    close(loss.task_losses(pred, y, .25)[0], nan(means).nan_to_num(0.)*.25)
    assert torch.equal(pred, before[0]) and torch.equal(y, before[1]) # in place on copies only
    close(loss.task_weights(), TASK_WEIGHTS)
    assert loss.task_weights().tolist() == TASK_WEIGHTS and list(loss.flow.paths) == PATHS
    assert loss(pred.float(), y).dtype == torch.float32 and loss(pred.half(), y.float()).dtype == torch.float32 and loss(pred, y.float()).dtype == torch.float64
    torch.testing.assert_close(loss(pred.float(), y).double(), torch.tensor(total, dtype=torch.float64), rtol=1e-5, atol=1e-6)

def test_gradients_are_those_of_the_loop():
    bound = all_kinds(weight_col='w').bind(ALL)
    pred, y = batch_of_all(bound, 0, True)
    grad, = torch.autograd.grad(bound.loss_func(pred.requires_grad_(), y), pred)
    with torch.no_grad():
        for i,c in itertools.product((0, 3), range(bound.c)):
            step = torch.zeros_like(pred)
            step[i, c] = 1e-5
            up, down = (sum(w*m for w,m in zip(TASK_WEIGHTS, map(task_mean, by_loop(bound, p, y))) if m is not None) for p in (pred + step, pred - step))
            assert grad[i, c].item() == pytest.approx((up - down)/2e-5, abs=1e-5)
    parts, there = bound.loss_func.task_losses(pred, y)
    assert there.all() and torch.autograd.grad((parts*torch.tensor(TASK_WEIGHTS)).sum(), pred)[0].allclose(grad)

def test_activations_and_decisions_of_all_kinds():
    bound = all_kinds().bind(ALL)
    z, loss, s = batch_of_all(bound, 1, False)[0].float(), bound.loss_func, bound.slices
    form = dict(k=lambda v: v.softmax(1), kk=lambda v: v.softmax(1), l=lambda v: v.softmax(1), n=lambda v: v, face=lambda v: v.sigmoid()*2 - 1)
    acts, plain = loss.activation(z), loss.activation(TensorConditional(z))
    assert type(plain) is torch.Tensor and torch.equal(acts, plain) and loss.activation(z.half()).dtype == torch.float32
    for p in PATHS: torch.testing.assert_close(acts[:, s[p].acts], form.get(p, torch.sigmoid)(z[:, s[p].logits]))
    loss.thresholds |= dict(a=.2, b=torch.tensor([.9]), m=[.1, .5, .95], pair=.7)
    cut = dict(a=[.2], b=[.9], m=[.1, .5, .95], pair=[.7, .7])
    got = loss.decodes(acts)
    assert type(got) is TensorConditional and got.shape == (6, 2, bound.n_targets) and (got.mask == 1).all() and torch.equal(loss.decisions.with_reached(got.vals.as_subclass(torch.Tensor)), got)
    for p in PATHS:
        a, want = acts[:, s[p].acts], got.vals[:, s[p].targets].as_subclass(torch.Tensor)
        assert torch.equal(want, (a > torch.tensor(cut[p])).float() if p in cut else a.argmax(1, keepdim=True).float() if p in ('k', 'l', 'kk') else a), p
    assert [loss.decisions.thresholds_of(0).tolist(), loss.decisions.thresholds_of(0, 'cpu', torch.float64).dtype] == [pytest.approx([.1, .5, .95, .7, .7, .2, .9]), torch.float64]
    del loss.thresholds['b'] # then what the block says
    assert loss.decisions.thresholds_of(0).tolist() == pytest.approx([.1, .5, .95, .7, .7, .2, .5])
    for wrong, text in ((dict(m=[.1, .2]), "thresholds['m'] has 2 values for 3 labels: give one value, or one a label"), (dict(aa=.5), "thresholds has no task 'aa' to use it for: did you mean 'a'?"), (dict(k=.5), "thresholds has no task 'k' to use it for")):
        other = loss.clone()
        other.thresholds |= wrong
        says(text, other.decodes, acts)

def test_reached_in_decisions():
    df = pd.DataFrame(dict(a=[1, 0], p=[1, 0], q=[0, 1], n=[1., 2.]))
    loss = Flow('f', MultiLabelBlock('m', cols=['p', 'q']) | A, A, UnboundedRegressionBlock('n') | task('m').has('q')).bind(df).loss_func
    acts = torch.tensor([[.9, .9, .9, .3], [.9, .9, .1, .3], [.9, .1, .9, -.3]])
    got = loss.decodes(acts)
    assert got.mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 0], [1, 1, 1, 0]] and got.vals.tolist() == [[1, 1, 1, pytest.approx(.3)], [1, 1, 0, pytest.approx(.3)], [1, 0, 1, pytest.approx(-.3)]]
    assert loss.decodes(acts.half()).dtype == torch.float32

def test_a_clone_has_its_own():
    bound = all_kinds().bind(ALL)
    loss = ConditionalLoss(bound, 'sum')
    loss.thresholds['a'], loss.tuned, loss.temperatures = .125, {'a': 'by hand'}, {'k': 2}
    seven = loss.task_weights()
    seven[list(bound.paths).index('m')] = 7.
    loss.set_weights(seven)
    twin = loss.clone()
    assert twin is not loss and type(twin) is ConditionalLoss and twin.flow is bound and twin.reduction == 'sum' and dict(twin.temperatures) == {'k': 2} and twin.thresholds == loss.thresholds and twin.tuned == {'a': 'by hand'} and torch.equal(twin.task_weights(), loss.task_weights()) and 7 in twin.task_weights()
    twin.thresholds['a'], twin.tuned['b'], twin.temperatures = .5, 1, {}
    twin.set_weights(torch.ones(len(bound.paths)))
    assert loss.thresholds['a'] == .125 and loss.tuned == {'a': 'by hand'} and dict(loss.temperatures) == {'k': 2} and loss.task_weights()[3] == 7
    assert loss.y_int is True and ConditionalLoss(bound).reduction == 'mean' and bound.loss_func is bound.loss_func and bound.loss_func.tuned == {} and not loss.state_dict()

def test_temperatures():
    bound = all_kinds().bind(ALL)
    loss, z = bound.loss_func, batch_of_all(all_kinds().bind(ALL), 2, False)[0]
    plain = loss.activation(z)
    assert dict(loss.temperatures) == {} and loss.decisions.tempered(z) is z
    loss.temperatures = dict(k=2, b=.5, m=4., a=1)
    assert dict(loss.temperatures) == dict(k=2., b=.5, m=4.) and set(map(type, loss.temperatures.values())) == {float}
    heat = torch.ones(bound.c)
    for p,t in dict(k=2., b=.5, m=4.).items(): heat[bound.slices[p].logits] = t
    assert torch.equal(loss.decisions.tempered(z), z/heat) and not loss.activation(z).allclose(plain) and loss.activation(z*heat).allclose(plain)
    with pytest.raises(TypeError): loss.temperatures['k'] = 3.
    for bad, text in ((dict(n=2.), "task 'n' (UnboundedRegressionBlock) has no probabilities to calibrate: leave it out"), ([('k', 2.)], "temperatures=[('k', 2.0)] must be a dict"), (dict(nope=2.), "asked for task 'nope'"),
            *((dict(k=t), f"temperature {t!r} of task 'k' must be a positive number") for t in (0, -1., True, '2', None, float('inf'), float('nan')))): says(text, setattr, loss, 'temperatures', bad)
    assert dict(loss.temperatures) == dict(k=2., b=.5, m=4.)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        loss(z, batch_of_all(bound, 2, False)[1]) # no gradient, no training
        loss.temperatures = dict(k=1e-3)
        assert dict(loss.temperatures) == pytest.approx(dict(k=1e-3))
        loss.temperatures = {}
        assert loss.decisions.temperature is None and dict(loss.temperatures) == {}
        loss(z.clone().requires_grad_(), batch_of_all(bound, 2, False)[1])

def test_training_drops_temperatures_and_keeps_decisions():
    "What was decided by p > t of logits over a temperature is decided by plain logits at the threshold that moves along."
    bound = all_kinds().bind(ALL)
    loss, (z, y) = bound.loss_func, batch_of_all(bound, 2, False, bs=6)
    loss.temperatures, loss.tuned = dict(b=.5, m=4., k=2.), dict(b='x')
    loss.thresholds |= dict(b=.3, m=[.2, .5, .6], a=.4)
    before = loss.decodes(loss.activation(z))
    with pytest.warns(UserWarning, match='^the model is trained again: temperatures of the last calibration are dropped'): loss(z.clone().requires_grad_(), y)
    assert dict(loss.temperatures) == {} and loss.tuned == {} and loss.decisions.temperature is None and loss.thresholds['a'] == .4
    logit = lambda p: math.log(p/(1 - p))
    sigmoid = lambda v: 1/(1 + math.exp(-v))
    assert loss.thresholds['b'].tolist() == pytest.approx([sigmoid(logit(.3)*.5)]) and loss.thresholds['m'].tolist() == pytest.approx([sigmoid(logit(p)*4) for p in (.2, .5, .6)])
    assert torch.equal(loss.decodes(loss.activation(z)), before)
    assert move_threshold(.3, 2.).tolist() == pytest.approx([sigmoid(logit(.3)*2)]) and move_threshold([0., 1.], 3.).tolist() == [0, 1] and move_threshold(.5, 9.).dtype == torch.float32 and move_threshold(1 - 1e-9, .1).item() == pytest.approx(sigmoid(logit(1 - 1e-9)*.1))

def test_one_target_only():
    bound = Flow('f', A).bind(ALL)
    y = bound.encode(ALL)
    says("the data has 3 targets, and a flow is the only one that its loss can train: put all tasks into one flow, or say with n_inp= which blocks are inputs", bound.loss_func, torch.zeros(4, 1), y, torch.zeros(4), torch.zeros(4))
    with pytest.raises(FlowError) as e: bound.loss_func(torch.zeros(4, 1), y, torch.zeros(4, 8, 8, dtype=torch.long))
    with pytest.raises(FlowError) as e2: bound.loss_func(torch.zeros(4, 1), y, torch.zeros(4, 8, 8))
    with pytest.raises(FlowError) as e3: bound.loss_func(torch.zeros(4, 1), y, torch.zeros(4, dtype=torch.long))
    assert MASKS in str(e.value) and 'has 2 targets' in str(e.value) and MASKS not in str(e2.value) and MASKS not in str(e3.value)

def test_plain_and_single():
    for x, dtype in ((torch.zeros(2, dtype=torch.float16), torch.float32), (torch.zeros(2, dtype=torch.bfloat16), torch.float32), (torch.zeros(2), torch.float32), (torch.zeros(2, dtype=torch.float64), torch.float64), (TensorConditional(torch.zeros(2)), torch.float32)):
        got = as_plain(x)
        assert type(got) is torch.Tensor and got.dtype == dtype
    same = torch.zeros(2)
    assert as_plain(same) is same

@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('way', [True, 'detach', 'both'])
def test_the_whole_space_is_the_chain_of_probabilities(way, weighted):
    "b given a, trained on every row that tells it: P(a)P(b|a); by a loop, the other tasks as before."
    df = pd.DataFrame(dict(n=[1., 2., 3., 4.], a=[1, 1, 0, None], b=[1, 0, 1, 1], w=[1., 2., 4., 1.]))
    bound = Flow('f', UnboundedRegressionBlock('n'), A, BinaryBlock('b', whole_space=way, weight=3., pos_weight=2.) | A, **(dict(weight_col='w') if weighted else {})).bind(df)
    y, z = bound.encode(df).double(), torch.tensor([[.3, -.5, 1.], [1.2, .4, -1.], [-.7, .1, .2], [.5, .5, .5]], dtype=torch.float64)
    w, loss = df.w.tolist() if weighted else [1.]*4, bound.loss_func
    sigmoid = lambda v: 1/(1 + math.exp(-v))
    za, zb, zn = (z[:, bound.slices[p].logits.start].tolist() for p in 'abn')
    rows = []
    for i,(a,b) in enumerate([(1, 1), (1, 0), (0, None)]): # the fourth row tells nothing of b
        pa, pb = sigmoid(za[i]), sigmoid(zb[i])
        l = -2*math.log(pa*pb) if a and b else -math.log(1 - pa*pb)
        if way == 'both' and a: l += -2*math.log(pb) if b else -math.log(1 - pb)
        rows.append(l)
    want_b = sum(l*v for l,v in zip(rows, w))/sum(w[:3])
    want_a = sum(v*(-math.log(sigmoid(x) if a else 1 - sigmoid(x))) for v,x,a in zip(w, za, (1, 1, 0)))/sum(w[:3])
    want_n = sum(v*(x - t)**2 for v,x,t in zip(w, zn, y[:, 0, bound.slices['n'].targets.start].tolist()))/sum(w)
    assert loss(z, y).item() == pytest.approx(want_a + 3*want_b + want_n) and loss.per_task(z, y).tolist() == pytest.approx([want_n, want_a, want_b]) and loss.task_losses(z, y)[0].tolist() == pytest.approx([want_n, want_a, want_b])
    assert loss.per_sample(z, y)[:, 2].tolist() == pytest.approx([*rows, float('nan')], nan_ok=True)
    assert ConditionalLoss(bound, 'none')(z, y).mean().item() == pytest.approx(want_a + 3*want_b + want_n) and ConditionalLoss(bound, 'sum')(z, y).item() == pytest.approx(4*(want_a + 3*want_b + want_n))

# ---- devices: `meta` is one, on any machine ----------------------------------------------------------------------------------
def chain_flow(): return Flow('f', UnboundedRegressionBlock('n'), A, BinaryBlock('b', whole_space=True) | A, BoundedRegressionBlock('s', y_range=(0, 2)) | SingleLabelBlock('k').eq('x'), SingleLabelBlock('k'), weight_col='w').bind(ALL)

@pytest.mark.parametrize('make', [lambda: all_kinds().bind(ALL), lambda: all_kinds(Pooled, weight_col='w').bind(ALL), chain_flow])
def test_all_goes_where_the_batch_is(make):
    bound = make()
    loss, pred, y = bound.loss_func, torch.zeros(4, bound.c, device='meta'), TensorConditional(torch.zeros(4, 2, bound.n_targets, device='meta'))
    loss.temperatures = dict(k=2.)
    n, D = len(bound.paths), bound.n_targets
    for got, shape in ((loss(pred, y), ()), (ConditionalLoss(bound, 'none')(pred, y), (4,)), (loss.per_sample(pred, y), (4, n)), (loss.per_task(pred, y), (n,)), (loss.activation(pred), (4, bound.c)), (loss.decisions.tempered(pred), (4, bound.c)), (loss.decide(pred), (4, D)),
        *((x, (n,)) for x in loss.task_losses(pred, y)), (loss.task_losses(pred, y, torch.ones(4))[0], (n,)), (bound.to_units(y), (4, 2, D)), (bound.reached(y), (4, n)), (bound.reached(y.vals), (4, n)), (bound.false_conditions(y), (4, n))):
        assert got.device.type == 'meta' and tuple(got.shape) == shape
    assert {b.device.type for name,b in loss.named_buffers() if 'whole' not in name} == {'cpu'} and loss.decisions.thresholds_of(0).device.type == 'cpu' and loss.decisions.thresholds_of(0, 'meta').device.type == 'meta'

def test_predictions_read_back_exactly_and_shortly():
    bound = Flow('f', BoundedRegressionBlock('s', y_range=(0, 640)), SingleLabelBlock('k')).bind(pd.DataFrame(dict(s=[1., 2., 3.], k=pd.Series([(1,), (1, 2.5), (3, 'x')], dtype=object))))
    pred = FlowPrediction(bound, torch.tensor([[.3, 0.], [1., 1.]]))
    assert pred['s'] == 192. and repr(pred) == 'FlowPrediction(s=192, k=(1,))' and repr(FlowPrediction(bound, torch.tensor([[.3, 1.], [0., 1.]]))) == 'FlowPrediction(k=(1, 2.5))'
    assert shortened({'a': (1., 2.), 'b': .123456, 'c': 'x'}) == "{a: (1, 2), b: 0.1235, c: 'x'}"
