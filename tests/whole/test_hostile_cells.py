"""A cell that nobody would write, in a column of each kind: it is read as it is, or one error names its row; nothing
else is raised by setting up, encoding, auditing, guessing or explaining"""

from decimal import Decimal
import warnings
import numpy as np, pandas as pd, pytest, torch
import fuzz
from fastai_condmtl.all import *
from fastai_condmtl.data.guess_not_asked import says_not_asked

CELLS = dict(
    huge=10**400,
    low=-(10**400),
    decimal=Decimal(10) ** 400,
    tensor=torch.tensor([1.0, 2.0]),
    matrix=torch.zeros(2, 2),
    array=np.array([1, 2]),
    odd=fuzz.OddEq(),
    unhashable=fuzz.OddHash(),
)
COLUMNS = dict(words=['a', 'b'], numbers=[1, 2], answers=[0, 1], decimals=[0.5, 1.5], huge=[1, 10**400], signs=[-1, 1])
BLOCKS = dict(
    binary=lambda: BinaryBlock('x'),
    words=lambda: BinaryBlock('x', vocab=('a', 'b')),
    soft=lambda: BinaryBlock('x', soft=True),
    unsure=lambda: BinaryBlock('x', uncertain={-1: None}),
    single=lambda: SingleLabelBlock('x'),
    ordinal=lambda: OrdinalBlock('x'),
    multi=lambda: MultiLabelBlock('x'),
    cols=lambda: MultiLabelBlock('x', cols=['x', 'y']),
    bounded=lambda: BoundedRegressionBlock('x'),
    unbounded=lambda: UnboundedRegressionBlock('x'),
    count=lambda: CountBlock('x'),
    votes=lambda: VotesBlock('x', cols=['x', 'y']),
)


def table(column, cell):
    values = pd.Series([*COLUMNS[column] * 8, CELLS[cell]], dtype=object)
    return pd.DataFrame(dict(x=values, y=[0, 1] * 8 + [1], gate=[1, 1, 0, 1] * 4 + [0]))


def ends_well(f):
    "The result, or the text of a `FlowError`; warnings of NumPy are errors"
    with warnings.catch_warnings():
        warnings.simplefilter('error', RuntimeWarning)
        warnings.simplefilter('ignore', FlowWarning)
        try:
            return f(), None
        except FlowError as e:
            return None, str(e)


@pytest.mark.parametrize('cell', CELLS)
@pytest.mark.parametrize('kind', BLOCKS)
def test_a_cell_is_read_or_refused(kind, cell):
    for column in COLUMNS:
        df, gate = table(column, cell), BinaryBlock('gate')
        flow = Flow('f', gate, BLOCKS[kind]() | gate)
        bound, error = ends_well(lambda: flow.bind(df))
        if error is None:
            y, error = ends_well(lambda: bound.encode(df))
        if error is None:
            assert torch.isfinite(y.as_subclass(torch.Tensor)).all()
            ends_well(lambda: bound.to_frame(y))
        else:
            assert len(error) < 2000
        ends_well(lambda: str(flow.audit(df)))


@pytest.mark.parametrize('cell', CELLS)
def test_a_guess_of_any_cell(cell):
    for column in COLUMNS:
        df = table(column, cell)
        guess, error = ends_well(lambda: guess_flow(df))
        if error is None:
            repr(guess), str(guess.flow.audit(df))
            ends_well(guess.flow.to_json)


@pytest.mark.parametrize('cell', ['tensor', 'matrix', 'array'])
@pytest.mark.parametrize('kind', ['single', 'ordinal', 'binary'])
def test_several_numbers_are_no_label(kind, cell):
    "A tensor has a hash, and equals nothing in a way that a class can"
    with pytest.raises(FlowError, match="task 'x', row 16"):
        df = table('words' if kind == 'single' else 'answers', cell)
        Flow('f', BLOCKS[kind]()).bind(df).encode(df)


@pytest.mark.parametrize('x, y', [([0, -1], [None, 1]), ([0, 2], [1, None]), ([1, 0.5], [None, None])])
def test_the_fix_of_a_cell_compares_nothing_that_cannot_be(x, y):
    "A column beside the wrong cell holds what raises when it is compared"
    odd = [fuzz.OddEq() if value is None else value for value in y]
    df = pd.DataFrame(dict(x=pd.Series(x, dtype=object), y=pd.Series(odd, dtype=object)))
    with pytest.raises(FlowError, match="task 'm', row"):
        Flow('f', MultiLabelBlock('m', cols=['x', 'y'])).bind(df).encode(df)


def test_a_number_too_large_for_a_float_is_asked_as_a_number():
    assert not says_not_asked(10**400) and says_not_asked(-(10**400)) and not says_not_asked(10**5000)
    assert says_not_asked(999) and not says_not_asked(float('inf')) and not says_not_asked(float('nan'))
    assert says_not_asked(0) and says_not_asked(0.0) and not says_not_asked(0.5) and not says_not_asked(True)


# ---- arrays and tensors of one value are that value
ONE_VALUE = dict(
    array=lambda v: np.array(v),
    objects=lambda v: np.array(v, dtype=object),
    tensor=lambda v: torch.tensor(v),
    scalar=lambda v: np.array(v)[()],
)


def column_of(*cells):
    "Cells as they are: pandas unpacks arrays that it is given in a list"
    column = pd.Series([None] * len(cells), dtype=object)
    for row, cell in enumerate(cells):
        column.iat[row] = cell
    return column


def read(block, *cells):
    "Packed labels of the one column of a task, as numbers"
    df = pd.DataFrame(dict(x=column_of(*cells)))
    bound = Flow('f', block).bind(df)
    return bound, bound.encode(df).tolist()


@pytest.mark.parametrize('wrap', ONE_VALUE.values(), ids=ONE_VALUE)
@pytest.mark.parametrize('kind', [kind for kind in BLOCKS if kind not in ('words', 'cols', 'votes')])
def test_one_value_in_an_array_is_that_value(kind, wrap):
    plain, wrapped = [0, 1, 1, None, 0], [wrap(0), wrap(1), 1, wrap(float('nan')), 0]
    (a, want), (b, got) = read(BLOCKS[kind](), *plain), read(BLOCKS[kind](), *wrapped)
    assert got == want and repr(b.tasks['x'].vocab) == repr(a.tasks['x'].vocab)


@pytest.mark.parametrize('wrap', [np.array, torch.tensor])
def test_the_row_of_a_wrong_cell_is_told_where_arrays_of_one_value_stand_before_it(wrap):
    for kind, wrong in dict(ordinal='red', binary=[1], single=[1], cols=[1], multi={}, unbounded='red').items():
        block = MultiLabelBlock('x', cols=['x', 'y']) if kind == 'cols' else BLOCKS[kind]()
        df = pd.DataFrame(dict(x=column_of(wrap(1.0), 0, wrong, 1), y=[0, 1, 0, 1]))
        with pytest.raises(FlowError, match="task 'x', row 2"):
            Flow('f', block).bind(df).encode(df)


def test_a_gap_of_pandas_in_an_array_is_a_gap():
    for block in (UnboundedRegressionBlock('x'), CountBlock('x'), SingleLabelBlock('x')):
        _, y = read(block, 1, np.array(pd.NA, dtype=object), 0)
        assert [row[1] for row in y] == [[1], [0], [1]]


def test_text_in_an_array_is_no_number():
    with pytest.raises(FlowError, match="task 'x', row 1.*this is text"):
        read(UnboundedRegressionBlock('x'), 1, np.array('5'))


@pytest.mark.parametrize(
    'as_cell', [list, tuple, np.array, torch.Tensor.clone], ids=['list', 'tuple', 'array', 'tensor']
)
def test_lists_of_tensors_are_lists_of_numbers(as_cell):
    "`list(tensor)` holds tensors of one value"
    for numbers, block in [
        ([[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]], BoxBlock('x')),
        ([[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]], KeypointsBlock('x', n_points=2)),
        ([[1, 0, 1], [0, 0, 1]], MultiLabelBlock('x', vocab=['a', 'b', 'c'])),
    ]:
        assert read(block, *[as_cell(torch.tensor(row)) for row in numbers])[1] == read(block, *numbers)[1]


def test_points_of_tensors_of_one_value():
    nested = [[(np.array(1.0), torch.tensor(2.0)), (3, float('nan'))], [(np.array(float('nan')), 2.0), None]]
    want = [[(1.0, 2.0), (3, None)], [(None, 2.0), None]]
    assert read(KeypointsBlock('x'), *nested)[1] == read(KeypointsBlock('x'), *want)[1]
    assert read(KeypointsBlock('x'), want[0], np.array(np.nan))[1] == read(KeypointsBlock('x'), want[0], None)[1]


# ---- what NumPy makes of dates and whole numbers
DAY = '2020-01-01'
MOMENTS = dict(
    days=(np.datetime64(DAY), pd.Timestamp(DAY)),
    nanoseconds=(np.datetime64(DAY, 'ns'), pd.Timestamp(DAY)),
    odd=(np.datetime64(DAY + 'T01:02:03.000000004'), pd.Timestamp(DAY + 'T01:02:03.000000004')),
    far=(np.datetime64('20000-01-01'), pd.Timestamp(np.datetime64('20000-01-01'))),
    hours=(np.timedelta64(3, 'h'), pd.Timedelta(hours=3)),
    short=(np.timedelta64(3, 'ns'), pd.Timedelta(3, 'ns')),
)


@pytest.mark.parametrize('beside', [(), ('a',), (5,)])
@pytest.mark.parametrize('moment', MOMENTS)
def test_a_date_of_numpy_is_the_date_of_pandas(moment, beside):
    "Found in the table, or named in vocab=, and in both forms"
    numpys, pandas = MOMENTS[moment]
    bound, y = read(SingleLabelBlock('x'), numpys, *beside, pandas, numpys)
    assert set(bound.tasks['x'].vocab) == {pandas, *beside} and all(row[1] == [1] for row in y)
    assert y[0] == y[-1] == y[-2]
    for named in (numpys, pandas):
        block = SingleLabelBlock('x', vocab=[named, *beside, 'z'])
        flow = Flow('f', block, BinaryBlock('x2', col='one') | block.eq(numpys))
        df = pd.DataFrame(dict(x=column_of(numpys, pandas, *beside), one=1))
        y = flow.bind(df).encode(df)
        assert y[:2, 0, 0].tolist() == [0, 0] and y[:, 1, 1].tolist() == [1, 1] + [0] * len(beside)
        if moment not in ('far', 'hours', 'short'):  # files hold no durations, and no years beyond 9999
            assert repr(Flow.from_json(flow.to_json())) == repr(flow)


def test_a_date_that_pandas_cannot_hold_is_a_class_like_others():
    far = np.datetime64(10**18, 'Y')
    _, y = read(SingleLabelBlock('x'), far, 'a', far)
    assert y[0] == y[2] != y[1]


def test_whole_numbers_of_numpy_beside_decimals():
    "`Decimal(7) == np.int64(7)` raises"
    cells = Decimal(7), np.int64(7), 7, Decimal('0.5')
    bound, y = read(SingleLabelBlock('x'), *cells)
    assert y[0] == y[1] == y[2] != y[3] and len(bound.tasks['x'].vocab) == 2
    for named in (7, np.int64(7), Decimal(7)):
        block = SingleLabelBlock('x', vocab=[named, Decimal('0.5')])
        assert [row[0] for row in read(block, *cells)[1]] == [[0], [0], [0], [1]]
        flow = Flow('f', block, BinaryBlock('one') | block.isin([np.int64(7)]))
        df = pd.DataFrame(dict(x=column_of(*cells), one=1))
        assert flow.bind(df).encode(df)[:, 1, 1].tolist() == [1, 1, 1, 0]
    with pytest.raises(FlowError, match='stands twice'):
        SingleLabelBlock('x', vocab=[Decimal(7), np.int64(7)])


def test_classes_of_a_numpy_array_are_plain():
    words = SingleLabelBlock('x', vocab=np.array(['a', 'b']))
    assert repr(words.vocab) == "['a', 'b']" and repr(OrdinalBlock('x', vocab=np.arange(3)).vocab) == '[0, 1, 2]'


def test_a_list_written_as_text_beside_what_cannot_be_compared():
    with pytest.raises(FlowError, match="task 'x', row 1.*a list that was written as text"):
        read(SingleLabelBlock('x'), fuzz.OddEq(), np.array("['a', 'b']"))


def test_nan_in_a_nullable_column_of_classes_is_a_gap():
    for dtype in ('Float64', 'Float32'):
        share = pd.Series([0.0, 1.0, 2.0, None], dtype=dtype) / pd.Series(
            [0.0, 1.0, 1.0, 1.0], dtype=dtype
        )  # nan, 1, 2, NA
        df = pd.DataFrame(dict(k=share))
        assert Flow('f', SingleLabelBlock('k')).bind(df).encode(df)[:, 1, 0].tolist() == [0, 1, 1, 0]


def test_the_complex_number_is_blamed_and_not_what_stands_beside_it():
    df = pd.DataFrame(dict(x=pd.Series([1.25, 2j, np.nan], dtype=object)))
    with pytest.raises(FlowError, match="row 1, column 'x', value 2j"):
        Flow('f', UnboundedRegressionBlock('x')).bind(df)


def test_large_whole_numbers_beside_others_stay_classes_of_their_own():
    large = 2**53
    df = pd.DataFrame(dict(k=pd.Series([large, large + 1, 0.5, np.int64(7)], dtype=object)))
    assert len(Flow('f', SingleLabelBlock('k')).bind(df).tasks['k'].vocab) == 4
