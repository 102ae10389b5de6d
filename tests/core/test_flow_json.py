"A flow as a file means what it meant, and a file can do no more than name and set values."

import datetime as dt, json, pickle, random
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given
from fastai_condmtl.all import *
from fastai_condmtl.core.condition_text import read_condition, write_condition
from fastai_condmtl.core.conditions import atoms
from fastai_condmtl.core.block_json import registered
from fastai_condmtl.core.flow_json import VERSION
from fastai_condmtl.datasets.synthetic import digits_flow, digits_table, security_flow, security_scenes
from oracle import build, frame
from random_flows import checks, random_spec, random_table, rngs


def shape(o):
    "All that a flow or block holds, by structure."
    if isinstance(o, Flow):
        return (o.name, o.given, o.infer_labels, getattr(o, 'note', None), [shape(t) for t in o.tasks])
    return type(o), {k: repr(v) if k != 'given' else v for k, v in vars(o).items()}


def again(flow):
    return Flow.from_json(flow.to_json())


@checks(60)
@given(rngs)
def test_random_flows_encode_alike(rng):
    """Blocks of every kind, nested flows, conditions in every shape: the flow read back packs a table to the same
    numbers."""
    spec = random_spec(rng, losses=True, infer=rng.random() < 0.5, na=True, unsure=True)
    flow = build(spec, rng)
    back = again(flow)
    assert shape(back) == shape(flow) and back.to_json() == flow.to_json()
    df = frame(spec, random_table(rng, spec), rng)
    try:
        bound = flow.bind(df)
    except FlowError as e:
        with pytest.raises(FlowError, match='.'):
            back.bind(df)
        assert 'task' in str(e)
        return
    assert torch.equal(back.bind(df).encode(df), bound.encode(df))


def test_bound_and_pickled_flows_are_written_as_they_were():
    df = security_scenes(n=60)[1]
    flow = security_flow()
    text = flow.to_json()
    bound = flow.bind(df)
    assert bound.flow.to_json() == text == pickle.loads(pickle.dumps(flow)).to_json()
    assert torch.equal(Flow.from_json(text).bind(df).encode(df), bound.encode(df))


def test_digits(tmp_path):
    df = digits_table()[1]
    assert digits_flow().to_json(tmp_path / 'd.json') == tmp_path / 'd.json'
    for source in (
        tmp_path / 'd.json',
        str(tmp_path / 'd.json'),
        (tmp_path / 'd.json').read_text(),
        json.loads((tmp_path / 'd.json').read_text()),
    ):
        assert torch.equal(Flow.from_json(source).bind(df).encode(df), digits_flow().bind(df).encode(df))


age, kind, marks, a = (
    UnboundedRegressionBlock('age'),
    SingleLabelBlock('kind'),
    MultiLabelBlock('marks'),
    BinaryBlock('a'),
)


@pytest.mark.parametrize(
    'c',
    [
        ~a,
        ~~a,
        a & ~a,
        any_of(a, ~a & (age > 3)),
        ~any_of(a, age <= -2.5),
        ~(age < 3),
        (age >= 1) & (age <= 2) & a,
        age.between(-1, float('inf')),
        age > float('-inf'),
        age > np.float32(0.1),
        age > True,
        kind.eq('a.b & c'),
        kind.ne("it's"),
        kind.isin(['x', 2, False, None, (1, ('y',)), ()]),
        kind.eq((1,)),
        kind.eq(np.int64(3)),
        kind.eq(''),
        kind.eq(dt.date(2020, 1, 2)),
        kind.eq(pd.Timestamp('2020-01-02 03:04:05.678')),
        marks.has('a'),
        marks.has_any(['a', 'b']),
        marks.has_all(['a']),
        task('f.g.x') > 1e-30,
        ~task('has loop'),
        task('class').eq(1),
        task('ﬁn').eq(1),
        task("it's \"x\"\\").eq(1),
        task('any_of') & task('task') & task('inf'),
    ],
)
def test_conditions(c):
    back = read_condition(write_condition(c))
    assert back == c and write_condition(back) == write_condition(c)
    assert all(
        type(x.value) is type(y.value) or isinstance(y.value, np.generic) for x, y in zip(atoms(back), atoms(c))
    )  # True == 1, but they are different classes


@pytest.mark.parametrize(
    'text',
    [
        "__import__('os').mkdir('{0}')",
        "open('{0}','w')",
        "(lambda: open('{0}','w'))()",
        "[open('{0}','w') for x in (1,)]",
        "a.eq(open('{0}','w'))",
        "a.eq(f'{{open(chr(47))}}')",
        "a.__class__.__mro__",
        "a if open('{0}','w') else b",
        "(x := a)",
        "a.eq(*b)",
        "a.eq(value=1)",
        "task('a').bind(1)",
        "task(path='a')",
        "task(open('{0}','w'))",
        "any_of(*a)",
        "a.eq(1+1)",
        "a.eq(b'x')",
        "a.eq(1j)",
        "a.eq(...)",
        "a.eq(-'x')",
        "a.eq(~1)",
        "a.eq(timestamp(1))",
        "a.eq(date('x'))",
        "a; b",
        "import os",
        "",
        "   ",
        "a\nb",
        "\0",
        "a b",
        "a.eq",
        "a.eq()",
        "a.has_any('x')",
        "3",
        "3 < 4",
        "a > b",
        "a > None",
        "a > nan",
        "a.isin([])",
        "a.isin({{1}})",
        "a.eq({{}})",
        "a.eq([1])",
        "(a)(b)",
        "1 < a < 3",
        "a is b",
        "a in b",
        "a @ b",
        "a ^ b",
        "-a",
        "await a",
        "x" * 30_000,
        "(" * 300 + "a" + ")" * 300,
        "~" * 501 + "a",
        "not " * 4000 + "a",
        "a" + ".b" * 5000,
        "a&" * 3000 + "a",
        "9" * 6000 + " < a",
        "lambda:" * 2000 + "a",
    ],
)
def test_text_that_is_no_condition(text, tmp_path):
    "An error of ours that says what is meant, whatever the text; and nothing was run."
    mark = tmp_path / 'run'
    with pytest.raises(FlowError):
        read_condition(text.format(mark) if '{0}' in text or '{{' in text else text)
    assert not mark.exists()


@checks(300)
@given(rngs)
def test_mangled_files_are_errors_or_flows(rng):
    "A file with a character changed, lost or doubled is read or refused with a FlowError: nothing else ever escapes."
    text = list(random.Random(rng.random()).choice([security_flow(), digits_flow()]).to_json())
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(text))
        text[i] = rng.choice(['', text[i] * 2, rng.choice('{}[]",:~&|()x0-.\\')])
    try:
        assert isinstance(Flow.from_json('{' + ''.join(text).lstrip('{')), Flow)
    except FlowError as e:
        assert str(e)


ok = {'format': 'fastai_condmtl.flow', 'version': VERSION, 'flow': 'f'}
x = {'name': 'x', 'block': 'BinaryBlock'}


@pytest.mark.parametrize(
    'doc, says',
    [
        ({**ok, 'tasks': [x], 'version': VERSION + 1}, 'update the package'),
        ({**ok, 'tasks': [x], 'version': True}, 'has version True'),
        ({**ok, 'tasks': [x], 'version': 0}, f'"version": {VERSION}'),
        ({k: v for k, v in ok.items() if k != 'version'}, 'has version None'),
        ({**ok, 'tasks': [x], 'format': 'x'}, 'is no flow'),
        ([], 'is no flow'),
        ({k: v for k, v in ok.items() if k != 'flow'}, 'no "flow"'),
        ({**ok}, "flow 'f'.*at least one"),
        ({**ok, 'tasks': {}}, 'must be a list'),
        ({**ok, 'tasks': [x], 'taks': 1}, "did you mean 'tasks'"),
        ({**ok, 'tasks': [3]}, 'a task is an object'),
        ({**ok, 'tasks': [{'name': 'x'}]}, "'x' does not say what kind"),
        ({**ok, 'tasks': [{**x, 'flow': 'y'}]}, 'a task has "name"'),
        ({**ok, 'tasks': [{**x, 'name': 3}]}, 'name 3'),
        ({**ok, 'tasks': [{**x, 'name': 'a.b'}]}, "holds '.'"),
        ({**ok, 'tasks': [{**x, 'block': 'BinariBlock'}]}, "task 'x'.*did you mean 'BinaryBlock'"),
        ({**ok, 'tasks': [{**x, 'block': 'os.system'}]}, r"task 'x'.*not registered.*register_block\(system\)"),
        ({**ok, 'tasks': [{**x, 'block': ['BinaryBlock']}]}, 'not known'),
        ({**ok, 'tasks': [{**x, 'block': '_Sigmoid'}]}, 'not known'),
        ({**ok, 'tasks': [{**x, 'treshold': 1}]}, "task 'x'.*did you mean 'threshold'"),
        ({**ok, 'tasks': [{**x, 'threshold': 'x'}]}, "task 'x': threshold='x'"),
        ({**ok, 'tasks': [{**x, 'vocab': 7}]}, "task 'x'"),
        ({**ok, 'tasks': [{**x, 'block': 'SingleLabelBlock', 'class_weights': [[]]}]}, "task 'x'"),
        ({**ok, 'tasks': [{**x, 'block': 'SingleLabelBlock', 'vocab': [{'timestamp': 'never'}]}]}, "task 'x'"),
        ({**ok, 'tasks': [{**x, 'given': '~y'}]}, "'y', which the flow does not have"),
        ({**ok, 'tasks': [{**x, 'given': 'x'}]}, 'circle'),
        ({**ok, 'tasks': [{**x, 'given': ['a']}]}, "condition of 'x'"),
        ({**ok, 'tasks': [x, {**x, 'name': 'y', 'given': 'x == 1'}]}, "condition of 'y'.*write .eq"),
        (
            {**ok, 'tasks': [x, {'flow': 'g', 'tasks': [{**x, 'name': 'z', 'given': 'q and r'}]}]},
            "condition of 'g.z'.*write a & b",
        ),
        ({**ok, 'tasks': [{**x, 'note': 3}]}, "task 'x': note=3"),
        ({**ok, 'tasks': [x], 'infer_labels': 'yes'}, 'infer_labels'),
        ({**ok, 'tasks': [x, x]}, 'added twice|rename one'),
        ({**ok, 'tasks': [{**x, 'tune': json.loads('[' * 150 + ']' * 150)}]}, "task 'x'.*nested more than 20 deep"),
        ({**ok, 'tasks': [{**x, 'vocab': json.loads('{"tuple":[' * 99 + ']}' * 99)}]}, "task 'x'.*more than 20 deep"),
        ({**ok, 'tasks': [x], 'na': {'date': 'never'}}, "flow 'f' cannot be made of .*'never'"),
        ({**ok, 'tasks': [x], 'weight_col': {'timestamp': []}}, "flow 'f' cannot be made of"),
        ({**ok, 'tasks': [{'flow': 'g', 'tasks': [x], 'na': [{'float': 'x'}]}]}, "flow 'g' cannot be made of"),
        ({**ok, 'tasks': [x, {**x, 'name': 'y', 'given': 'z > 0x' + 'f' * 5000}]}, "condition of 'y'.*of digits"),
        (
            {**ok, 'tasks': [x, {**x, 'name': 'y', 'given': 'z.eq(-0x' + 'f' * 5000 + ')'}]},
            "condition of 'y'.*of digits",
        ),
        ({**ok, 'tasks': [x, {**x, 'name': 'y', 'given': "z.eq(-date('2020-01-01'))"}]}, "condition of 'y'"),
        (
            {**ok, 'tasks': [{**x, 'block': 'KeypointsBlock', 'n_points': 10**12}]},
            "task 'x': n_points=.*at most 10,000",
        ),
    ],
)
def test_wrong_files(doc, says, tmp_path):
    f = tmp_path / 'wrong.json'
    f.write_text(json.dumps(doc))
    with pytest.raises(FlowError, match=says) as e:
        Flow.from_json(f)
    assert 'wrong.json' in str(e.value)


@pytest.mark.parametrize(
    'text, says',
    [
        ('{"a": 1, "a": 2}', 'stands twice'),
        ('{', 'is no JSON'),
        ('[' * 100_000, 'nested too deeply|is no JSON'),
        ('{"a": ' + '9' * 5000 + '}', 'is no JSON|is no flow'),
    ],
)
def test_wrong_text(text, says):
    with pytest.raises(FlowError, match=says):
        Flow.from_json(text)


def test_wrong_sources(tmp_path):
    (tmp_path / 'latin').write_bytes('{"é'.encode('latin-1'))
    for source, says in (
        (tmp_path / 'none.json', 'no file'),
        (tmp_path, 'cannot be read'),
        (tmp_path / 'latin', 'cannot be read.*Name a file that flow.to_json wrote'),
        (3, 'hand over a path'),
    ):
        with pytest.raises(FlowError, match=says):
            Flow.from_json(source)
    deep = {**x}
    for _ in range(3000):
        deep = {'flow': 'g', 'tasks': [deep]}
    with pytest.raises(FlowError, match='nested too deeply'):
        Flow.from_json({**ok, 'tasks': [deep]})


@pytest.mark.parametrize('name', [float('inf'), float('nan'), 3, 'w'])
def test_any_name_of_a_column_of_weights_stays(name):
    assert repr(again(Flow('f', BinaryBlock('x'), weight_col=name)).weight_col) == repr(name)


def test_a_kind_that_raises_whatever_it_likes_is_one_error():
    class Odd(BinaryBlock):
        def __init__(self, name, col=None, *, key='a', **kwargs):
            super().__init__(name, col, **kwargs)
            self.key = dict(a=1, b='a')[key] and key

    with registered(Odd):
        text = Flow('f', Odd('x', key='b')).to_json()
        assert Flow.from_json(text).tasks[0].key == 'b'
        with pytest.raises(FlowError, match=r"task 'x' \(Odd\) cannot be made of .*KeyError"):
            Flow.from_json(text.replace('"b"', '"c"'))


def test_a_part_of_a_flow():
    part = Flow('face', UnboundedRegressionBlock('w')) | task('present')
    with pytest.raises(FlowError, match="'present', which the flow does not have"):
        again(part)
    back = Flow.from_json(part.to_json(), check=False)
    assert str(back.given) == 'present' and repr(Flow('f', BinaryBlock('present'), back)) == repr(
        Flow('f', BinaryBlock('present'), part)
    )


@pytest.mark.parametrize(
    'flow, says',
    [
        (Flow('f', SingleLabelBlock('x', vocab=[object()])), "task 'x': vocab="),
        (Flow('f', BinaryBlock('x', tune=max)), "task 'x': tune="),
        (Flow('f', a, BinaryBlock('y') | SingleLabelBlock('k').eq(frozenset([1]))), "of 'y'.*cannot stand in a file"),
    ],
)
def test_what_cannot_be_written(flow, says):
    with pytest.raises(FlowError, match=says):
        flow.to_json()


def test_notes_stay():
    flow = Flow('f', BinaryBlock('x'), Flow('g', BinaryBlock('y')))
    flow.note, flow.tasks[0].note, flow.tasks[1].note = ['one', 'two'], 'of x', 'of g'
    back = again(flow)
    assert (back.note, back.tasks[0].note, back.tasks[1].note) == (['one', 'two'], 'of x', 'of g')
    assert (back.tasks[0] | BinaryBlock('z')).note == 'of x' and json.loads(flow.to_json())['tasks'][0][
        'note'
    ] == 'of x'


@pytest.mark.parametrize(
    'change', [dict(weight=10**400), dict(threshold='0.5'), dict(threshold=10**400), dict(col=['b'])]
)
def test_hostile_numbers_in_json(change):
    d = json.loads(Flow('f', BinaryBlock('a')).to_json())
    d['tasks'][0].update(change)
    with pytest.raises(FlowError, match="'a'"):
        Flow.from_json(json.dumps(d))
