"""Every misuse that DESIGN.md lists is an error that names the tasks, and ends with the fix. Whether it comes when
the flow is written or when it
meets its table is left open: both happen inside `refused`."""

import re, warnings
import numpy as np, pandas as pd, pytest, torch
from fastai.data.all import DataBlock, TransformBlock
from fastai_condmtl.tasks.binary import BinaryBlock
from fastai_condmtl.tasks.regression import BoundedRegressionBlock, UnboundedRegressionBlock
from fastai_condmtl.tasks.multi_label import MultiLabelBlock
from fastai_condmtl.tasks.ordinal import OrdinalBlock
from fastai_condmtl.tasks.single_label import SingleLabelBlock
from fastai_condmtl.core.conditions import any_of, task
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.core.target import TensorConditional
from fastai_condmtl.all import StratifiedSplitter

DF = pd.DataFrame(
    dict(
        a=[True, False, True, None],
        b=[0, 1, 1, 0],
        x=[1, 0, None, 1],
        kind=['kite', 'ball', None, 'kite'],
        tags=['red,blue', '', None, 'red'],
        age=[3.0, 18.5, None, -2.0],
        size=[0.0, 9.0, 4.0, None],
        red=[0, 1, None, 1],
        blue=[1, 1, 0, None],
    )
)
A, B, X = (lambda: BinaryBlock('a')), (lambda: BinaryBlock('b')), (lambda: BinaryBlock('x'))
KIND, TAGS, AGE = (
    (lambda: SingleLabelBlock('kind')),
    (lambda: MultiLabelBlock('tags')),
    (lambda: UnboundedRegressionBlock('age')),
)
SIZE = lambda: BoundedRegressionBlock('size', y_range=(0, 9))


def refused(make, *words, df=DF):
    """`make()`, bound to `df` and encoding it, raises with every one of `words` (regular expressions, case
    ignored) in the message."""
    with pytest.raises((ValueError, TypeError)) as e:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            made = make()
            (made if isinstance(made, Flow) else Flow('f', made)).bind(df).encode(df)
    text = str(e.value)
    for w in words:
        assert re.search(w, text, re.I | re.S), f'{w!r} not in: {text}'
    return text


def bound(*items, df=DF, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return Flow('f', *items, **kw).bind(df)


def test_the_table_itself_is_fine():
    bound(A(), B(), X(), KIND(), TAGS(), AGE(), SIZE(), MultiLabelBlock('m', cols=['red', 'blue']))
    assert issubclass(FlowError, ValueError)


# ---- tables
# -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    'make, words',
    [
        (lambda: BinaryBlock('nope'), ['nope']),
        (lambda: BinaryBlock('a', col='nope'), [r'\ba\b', 'nope']),
        (lambda: MultiLabelBlock('m', cols=['red', 'green']), [r'\bm\b', 'green']),
        (lambda: Flow('f', A(), Flow('g', BinaryBlock('nope'))), [r'g\.nope']),
    ],
)
def test_unknown_column(make, words):
    refused(make, *words, 'column')


@pytest.mark.parametrize(
    'blk, values, bad, row',
    [
        (SingleLabelBlock('v', vocab=['p', 'q']), ['p', None, 'zebra', 'q'], 'zebra', 2),
        (MultiLabelBlock('v', vocab=['p', 'q']), ['p', 'p,q', None, 'q,zebra'], 'zebra', 3),
        (MultiLabelBlock('v', vocab=['p', 'q']), [['p'], ['zebra'], None, []], 'zebra', 1),
        (BinaryBlock('v'), [1, 0, None, 7], '7', 3),
        (BinaryBlock('v'), [1.0, 0.5, None, 0], r'0?\.5', 1),
        (BinaryBlock('v', vocab=('no', 'yes')), ['yes', 'no', 'maybe', None], 'maybe', 2),
        (BinaryBlock('v'), [1, 0, None, -1], '-1', 3),
        (SingleLabelBlock('v'), ['p', None, {'k': 'q'}, 'q'], "{'k': 'q'}", 2),
        (BinaryBlock('v'), [1, [1], None, 0], r'\[1\]', 1),
        (UnboundedRegressionBlock('v'), [1.0, None, float('inf'), 0.0], 'inf', 2),
        (MultiLabelBlock('m', cols=['v']), [1, 0, None, 3], '3', 3),
        (BoundedRegressionBlock('v', y_range=(0, 10)), [0, 10, 10.5, None], r'10\.5', 2),
        (BoundedRegressionBlock('v', y_range=(0, 10)), [0, -1, 10, None], '-1', 1),
        (UnboundedRegressionBlock('v'), [1.0, 2.0, 'tall', None], 'tall', 2),
        (BoundedRegressionBlock('v', y_range=(0, 10)), [1.0, 'tall', 2.0, None], 'tall', 1),
        (BoundedRegressionBlock('v'), [1.0, 'tall', 2.0, None], 'tall', 1),
    ],
)
def test_a_label_that_cannot_be(blk, values, bad, row):
    "Task, row and value are named, in a flow within a flow as well, whatever the index of the table."
    name = blk.name
    df = pd.DataFrame({'a': [True] * 4, 'v': pd.Series(values, dtype=object)})
    refused(lambda: Flow('f', A(), Flow('g', blk | A())), rf'g\.{name}\b', bad, rf'\brow\b.*{row}', df=df)
    named = df.set_axis(['r0', 'r1', 'r2', 'r3'])
    refused(lambda: Flow('f', A(), Flow('g', blk | A())), rf'g\.{name}\b', bad, rf'\brow\b.*{row}', df=named)


@pytest.mark.parametrize(
    'blk, first, later',
    [
        (SingleLabelBlock('v'), ['p', 'q'], 'zebra'),
        (MultiLabelBlock('v'), ['p', 'q'], 'p,zebra'),
        (BinaryBlock('v'), [0, 1], 5),
        (UnboundedRegressionBlock('v'), [1.0, 2.0], 'tall'),
        (BoundedRegressionBlock('v', y_range=(0, 5)), [0.0, 1.0], 7.0),
    ],
)
def test_a_label_that_later_rows_may_not_have(blk, first, later):
    "The bound flow keeps its vocabulary: other rows do not widen it."
    fl = bound(blk, df=pd.DataFrame(dict(v=first)))
    with pytest.raises(
        (ValueError, TypeError),
        match=rf'(?s)\bv\b.*{later if isinstance(later, (int, float)) else later.split(",")[-1]}',
    ):
        fl.encode(pd.DataFrame({'v': pd.Series([first[0], later], dtype=object)}))


def test_an_inferred_range_is_not_an_error_source():
    "Out of a *given* range is an error; the range that is inferred is that of the whole table."
    b = bound(BoundedRegressionBlock('age')).tasks['age']
    assert tuple(b.y_range) == (-2, 18.5)


def test_empty_table():
    refused(lambda: Flow('f', A(), KIND()), 'empty|no rows|0 rows', df=DF.iloc[:0])


@pytest.mark.parametrize(
    'blk',
    [
        BinaryBlock('v'),
        SingleLabelBlock('v', vocab=['p', 'q']),
        MultiLabelBlock('v', vocab=['p', 'q']),
        UnboundedRegressionBlock('v'),
        BoundedRegressionBlock('v', y_range=(0, 1)),
        MultiLabelBlock('v', cols=['v', 'w']),
    ],
)
@pytest.mark.parametrize('dtype', [object, 'float64'])
def test_a_task_without_any_label_warns_and_goes_on(blk, dtype):
    "Whether it says so when bound or when a DataBlock sets its data up is left open."
    df = pd.DataFrame(
        dict(a=[True, False] * 3, v=pd.Series([None] * 6, dtype=dtype), w=pd.Series([None] * 6, dtype=dtype))
    )
    fl = Flow('f', A(), Flow('g', blk))
    with pytest.warns(Warning, match=r'(?s)g\.v\b'):
        bound = fl.bind(df)
        y = bound.encode(df)
        dls = DataBlock(blocks=(TransformBlock, fl), get_x=lambda row: torch.zeros(1)).dataloaders(df, bs=2)
    assert (
        isinstance(y, TensorConditional)
        and y.isfinite().all()
        and not y[:, 1, bound.slices['g.v'].targets].any()
        and y[:, 1, 0].all()
    )
    assert dls.one_batch()[1].shape == (2, 2, bound.n_targets) and dls.flow.paths == ['a', 'g.v']


def test_a_full_table_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        Flow('f', A(), B() | A(), KIND(), AGE()).bind(DF).encode(DF)


# ---- names
# ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    'make, words',
    [
        (lambda: BinaryBlock('a.b', col='a'), [r'a\.b']),
        (lambda: BinaryBlock('a,b', col='a'), ['a,b']),
        (lambda: Flow('f', Flow('g.h', A())), [r'g\.h']),
        (lambda: Flow('f', Flow('g,h', A())), ['g,h']),
        (lambda: Flow('f', A(), A()), [r'\ba\b']),
        (lambda: Flow('f', Flow('g', A()), Flow('g', B())), [r'\bg\b']),
        (lambda: Flow('f', A(), Flow('a', B())), [r'\ba\b']),
        (lambda: Flow('f', BinaryBlock('t', col='a'), SingleLabelBlock('t', col='kind')), [r'\bt\b']),
    ],
)
def test_names(make, words):
    refused(make, *words)


def test_two_tasks_on_one_column():
    "The same leaf name in two flows reads the same column by default: almost always a mistake."
    refused(lambda: Flow('f', Flow('g', A()), Flow('h', A())), r'g\.a', r'h\.a', r'\bcol\b')
    fl = bound(BinaryBlock('p', col='a'), BinaryBlock('q', col='a'))  # both say so: they mean it
    assert np.array_equal(*np.asarray(fl.encode(DF)).transpose(2, 0, 1))


def test_empty_flow():
    refused(lambda: Flow('nothing'), 'nothing', 'empty|no task')
    refused(lambda: Flow('f', A(), Flow('nothing')), 'nothing', 'empty|no task')


# ---- conditions
# -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    'make, words',
    [
        (lambda: X() | task('persn'), [r'\bx\b', 'persn']),
        (lambda: X() | ~BinaryBlock('persn'), [r'\bx\b', 'persn']),
        (lambda: Flow('f', A(), Flow('g', X()) | task('persn')), ['persn']),
        (lambda: Flow('f', Flow('g', A()), X() | task('g.persn')), [r'\bx\b', r'g\.persn']),
    ],
)
def test_unknown_task(make, words):
    refused(make, *words)


def test_an_ambiguous_leaf_name_is_not_guessed():
    two = lambda: (Flow('g', BinaryBlock('t', col='a')), Flow('h', BinaryBlock('t', col='b')))
    refused(lambda: Flow('f', *two(), X() | task('t')), r'\bx\b', r'g\.t', r'h\.t')
    bound(*two(), X() | task('h.t'))


@pytest.mark.parametrize(
    'make, words',
    [
        (lambda: Flow('f', A() | B(), B() | A()), [r'\ba\b', r'\bb\b']),
        (lambda: Flow('f', A() | A()), [r'\ba\b']),
        (lambda: Flow('f', A() | X(), B() | A(), X() | ~B()), [r'\ba\b', r'\bb\b', r'\bx\b']),
        (lambda: Flow('f', Flow('g', A(), X()) | A()), [r'g\.a']),
        (lambda: Flow('f', A() | task('g.x'), Flow('g', X()) | A()), [r'\ba\b', r'g\.x']),
        (lambda: Flow('f', A(), B()) | A(), [r'\ba\b']),
    ],
)
def test_cycle(make, words):
    refused(make, *words, 'cycl|circ|depend')


@pytest.mark.parametrize(
    'make, words',
    [
        (lambda: (KIND(), X() | KIND().eq('kyte')), ['kyte', 'kind', 'kite']),
        (lambda: (KIND(), X() | KIND().ne('kyte')), ['kyte', 'kind']),
        (lambda: (KIND(), X() | KIND().isin(['kite', 'kyte'])), ['kyte', 'kind']),
        (lambda: (SingleLabelBlock('kind', vocab=['kite', 'ball']), X() | ~task('kind').eq('kyte')), ['kyte', 'kind']),
        (lambda: (TAGS(), X() | TAGS().has('read')), ['read', 'tags']),
        (lambda: (TAGS(), X() | TAGS().has_any(['red', 'read'])), ['read', 'tags']),
        (
            lambda: (MultiLabelBlock('m', cols=['red', 'blue']), X() | task('m').has_all(['read', 'red'])),
            ['read', r'\bm\b'],
        ),
    ],
)
def test_a_value_that_is_not_in_the_vocabulary(make, words):
    refused(lambda: Flow('f', *make()), r'\bx\b', *words)


COMPARISONS = dict(
    eq="kite",
    ne="kite",
    isin=['kite'],
    has='red',
    has_any=['red'],
    has_all=['red'],
    gt=3,
    ge=3,
    lt=3,
    le=3,
    between=(1, 2),
)
OWN = dict(
    a=[],
    kind=['eq', 'ne', 'isin'],
    tags=['has', 'has_any', 'has_all'],
    age=['gt', 'ge', 'lt', 'le', 'between'],
    size=['gt', 'ge', 'lt', 'le', 'between'],
)
LACKS = [
    (name, op)
    for name, own in OWN.items()
    for op in COMPARISONS
    if op not in own and not (op in ('eq', 'ne', 'isin') and name != 'tags')
]


@pytest.mark.parametrize('name, op', LACKS + [('tags', 'eq')])
@pytest.mark.parametrize('by_path', [False, True])
def test_a_comparison_the_kind_lacks(name, op, by_path):
    owner = dict(a=A, kind=KIND, tags=TAGS, age=AGE, size=SIZE)[name]

    def make():
        thing, arg = task(name) if by_path else owner(), COMPARISONS[op]
        return Flow('f', owner(), X() | (getattr(thing, op)(*arg) if op == 'between' else getattr(thing, op)(arg)))

    try:
        refused(make, rf'\b{name}\b')
    except AttributeError as e:
        assert name in str(e) or op in str(e)  # a block that has no such method says so itself


@pytest.mark.parametrize('other', [AGE, SIZE, KIND, TAGS])
@pytest.mark.parametrize('wrap', [lambda c: c, lambda c: ~c, lambda c: A() & c, lambda c: any_of(A(), c)])
def test_only_a_binary_task_is_a_condition_by_itself(other, wrap):
    name = other().name
    fix = {'age': 'between|>|gt', 'size': 'between|>|gt', 'kind': r'\beq\b', 'tags': r'\bhas\b'}[name]
    refused(lambda: Flow('f', A(), other(), X() | wrap(other())), rf'\b{name}\b', fix)
    refused(lambda: Flow('f', A(), other(), X() | wrap(task(name))), rf'\b{name}\b', fix)


@pytest.mark.parametrize('given', [True, False, None, 'a', 1, [A()], lambda row: True])
def test_what_is_no_condition(given):
    words = ['==', r'\beq\b'] if given is True or given is False else []
    refused(lambda: Flow('f', A(), X() | given), r'\bx\b', *words)
    refused(lambda: Flow('f', A(), Flow('gg', X()) | given), r'\bgg\b', *words)


def test_a_stray_equals_sign():
    refused(lambda: Flow('f', KIND(), X() | (KIND() == 'kite')), r'\bx\b', '==', r'\beq\b')


@pytest.mark.parametrize(
    'item',
    [
        lambda: ~A(),
        lambda: A() & B(),
        lambda: task('a'),
        lambda: any_of(A(), B()),
        lambda: AGE() > 3,
        lambda: 'a',
        lambda: None,
        lambda: BinaryBlock,
    ],
)
def test_a_condition_where_a_block_belongs(item):
    refused(lambda: Flow('ff', B(), item()), 'ff|block')


@pytest.mark.parametrize(
    'make',
    [
        lambda: Flow('f', A(), B(), X() | (A() | B())),
        lambda: Flow('f', A(), B() | ~A(), X() | (B() | A())),
        lambda: Flow('f', A(), B(), KIND(), Flow('g', X()) | (A() | KIND().eq('kite'))),
    ],
)
def test_or_written_with_a_bar(make):
    refused(make, 'any_of', r'\ba\b')


def test_a_block_with_the_condition_of_the_flow_may_be_named():
    b = B() | ~A()
    bound(A(), b, X() | b)  # b's condition is b's in the flow too


def test_a_list_where_one_class_belongs():
    refused(lambda: Flow('f', KIND(), X() | KIND().eq(['kite'])), r'\bkind\b', r'\bisin\b')


def test_several_wrong_arguments():
    for bad in (
        lambda: any_of(),
        lambda: any_of(A(), True),
        lambda: A() & True,
        lambda: A() & 'b',
        lambda: any_of(A(), None),
    ):
        with pytest.raises((ValueError, TypeError)):
            bad()
    for bad in (
        lambda: BoundedRegressionBlock('v', y_range=(5, 5)),
        lambda: BoundedRegressionBlock('v', y_range=(5, 1)),
        lambda: UnboundedRegressionBlock('v', loss='mape'),
        lambda: SingleLabelBlock('v', vocab=['p', 'p']),
    ):
        refused(bad, r'\bv\b', df=pd.DataFrame(dict(v=[5, 5])))


# ---- found by tests/helpers/fuzz.py
# -------------------------------------------------------------------------------------------
HALF = 'caf\ud83d'


@pytest.mark.parametrize(
    'make, df, words',
    [
        (lambda: BinaryBlock(HALF), DF, ['half of a character', 'rename']),
        (lambda: Flow(HALF, A()), DF, ['half of a character', 'rename']),
        (
            lambda: SingleLabelBlock('kind', vocab=['kite', HALF]),
            DF,
            ["task 'kind'", 'in vocab', 'half of a character', 'right encoding'],
        ),
        (
            lambda: SingleLabelBlock('kind'),
            DF.assign(kind=pd.Series(['kite', 'ball', HALF, None], dtype=object)),
            ["task 'kind', row 2", 'half of a character', 'right encoding'],
        ),
        (
            lambda: MultiLabelBlock('tags'),
            DF.assign(tags=pd.Series([['red'], ['red', HALF], None, []], dtype=object)),
            ["task 'tags', row 1", 'half of a character'],
        ),
    ],
)
def test_halves_of_characters_are_refused(make, df, words):
    refused(make, *words, df=df)


def test_other_languages_are_not():
    assert bound(SingleLabelBlock('kind'), df=DF.assign(kind=['é', '日本', '😀', None])).tasks['kind'].vocab == [
        'é',
        '日本',
        '😀',
    ]


class OddOrder:
    "Neither less nor more than anything; asking is an error of its own kind"

    def __init__(self, s):
        self.s = s

    def __lt__(self, o):
        raise RuntimeError('no order')

    def __repr__(self):
        return f'odd {self.s}'


def test_labels_without_an_order_are_sorted_by_their_names():
    b, a = OddOrder('b'), OddOrder('a')
    assert bound(SingleLabelBlock('kind'), df=DF.assign(kind=pd.Series([b, a, None, b], dtype=object))).tasks[
        'kind'
    ].vocab == [a, b]


def test_an_ordinal_task_of_words_blames_a_row_that_has_one():
    refused(
        lambda: OrdinalBlock('kind'),
        "row 2, column 'kind', value 'mild'",
        'only numbers have an order',
        df=DF.assign(kind=pd.Series([pd.NA, None, 'mild', 3], dtype=object)),
    )


def test_warnings_have_a_class_of_their_own():
    "So that a command, or a user's filter, can tell them from those of other packages; and they name the caller's line"
    import ast, fastai_condmtl
    from pathlib import Path
    from fastai_condmtl.core.errors import FlowWarning

    found = 0
    for f in Path(fastai_condmtl.__file__).parent.rglob('*.py'):
        for c in ast.walk(ast.parse(f.read_text(encoding='utf-8'))):
            if not (isinstance(c, ast.Call) and ast.unparse(c.func) == 'warnings.warn'):
                continue
            found += 1
            assert (
                len(c.args) == 2
                and ast.unparse(c.args[1]) == 'FlowWarning'
                and [k.arg for k in c.keywords] == ['stacklevel']
            ), f'{f.name}:{c.lineno}'
    assert found > 10 and issubclass(FlowWarning, UserWarning)
    with pytest.warns(FlowWarning, match="no training row counts for 'a'"):
        DataBlock(blocks=(TransformBlock, BinaryBlock('a')), get_x=lambda r: r['b']).datasets(DF.assign(a=None))


def test_a_tensor_of_one_value_is_that_value():
    "Tensors hash by where they are: whether two equal ones were one label used to be a matter of luck."
    kind = pd.Series([1.0, torch.tensor(1.0), np.array(2), None], dtype=object)
    for block in (
        OrdinalBlock('kind', vocab=[1, 2]),
        SingleLabelBlock('kind', vocab=[1, 2]),
        SingleLabelBlock('kind'),
        OrdinalBlock('kind'),
    ):
        b = bound(block, df=DF.assign(kind=kind))
        assert b.tasks['kind'].vocab == [1, 2] and b.encode(DF.assign(kind=kind)).as_subclass(torch.Tensor)[
            :, :, 0
        ].tolist() == [[0, 1], [0, 1], [1, 1], [0, 0]]
    assert bound(X(), df=DF.assign(x=pd.Series([torch.tensor(1), 0, torch.tensor(True), None], dtype=object))).encode(
        DF.assign(x=pd.Series([torch.tensor(1), 0, torch.tensor(True), None], dtype=object))
    )[:, 0, 0].tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    'make, words',
    [
        (lambda: BinaryBlock('x', pos_weight=[1, 2]), 'pos_weight'),
        (lambda: BinaryBlock('x', pos_weight=-1), 'pos_weight'),
        (lambda: BinaryBlock('x', vocab=('a', 'a')), 'twice'),
        (lambda: BinaryBlock('x', vocab=5), 'vocab'),
        (lambda: SingleLabelBlock('x', class_weights=[-1, 1]), 'class_weights'),
        (lambda: SingleLabelBlock('x', label_smoothing=2), 'label_smoothing'),
        (lambda: MultiLabelBlock('x', label_delim=''), 'label_delim'),
        (lambda: MultiLabelBlock('x', cols=['a', 'a']), 'different columns'),
        (lambda: MultiLabelBlock('x', cols=['a'], nan_is_empty=True), 'nan_is_empty'),
        (lambda: StratifiedSplitter([BinaryBlock('x')]), 'neither a flow nor a task'),
    ],
)
def test_arguments(make, words):
    with pytest.raises(FlowError, match=words):
        make()


def test_an_index_with_gaps_in_messages():
    df = pd.DataFrame(dict(x=['maybe', 1]), index=[pd.NA, 'b'])
    with pytest.raises(FlowError, match="task 'x', row 0"):
        Flow('f', BinaryBlock('x')).bind(df).encode(df)
