"""What tests of mutants (`tests/mutate.py`) showed to be held by no other test: each case says what comes out by hand, by the definition or by a loop."""
import itertools, math, random, re
import numpy as np, pandas as pd, pytest, torch
from fastai_condmtl.blocks import BinaryBlock, BoundedRegressionBlock, MultiLabelBlock, SingleLabelBlock, UnboundedRegressionBlock
from fastai_condmtl.conditions import And, AnyOf, Atom, Comparable, FlowError, Not, any_of, as_condition, atoms, both, conjuncts, forced, kleene, task
from fastai_condmtl.flow import Flow
from fastai_condmtl.kinds import OrdinalBlock

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
    t, f = kleene(c, lambda a: (cols[a.task] == True, cols[a.task] == False))
    for k,r in enumerate(rows):
        fills = {holds(c, dict(zip(names, w))) for w in itertools.product(*[[False, True] if v is None else [v] for v in r])}
        assert (t[k], f[k]) == (fills == {True}, fills == {False})
