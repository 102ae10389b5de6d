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
