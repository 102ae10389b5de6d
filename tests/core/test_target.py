"Tests of core/target"

import collections
import numpy as np
import pandas as pd
import pytest
import torch
from fastai_condmtl.tasks.binary import BinaryBlock
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.tasks.multi_label import MultiLabelBlock
from fastai_condmtl.tasks.single_label import SingleLabelBlock
from fastai_condmtl.tasks.regression import UnboundedRegressionBlock
from fastai_condmtl.core.target import as_table, packed

A, B, C = map(BinaryBlock, 'abc')

KIND, TAGS, AGE = SingleLabelBlock('kind'), MultiLabelBlock('tags'), UnboundedRegressionBlock('age')


def says(text, f, *args, error=FlowError):
    "`f(*args)` is refused in just these words, or in words that begin so."
    with pytest.raises(error) as e:
        f(*args)
    assert str(e.value).startswith(text), str(e.value)


# ---- target: tables
# ----------------------------------------------------------------------------------------------------------
Pair = collections.namedtuple('Pair', 'a b')


@pytest.mark.parametrize(
    'rows',
    [
        [dict(a=1, b=0), dict(a=0, b=1)],
        [pd.Series(dict(a=1, b=0)), pd.Series(dict(a=0, b=1))],
        [dict(b=0, a=1), pd.Series(dict(b=1, a=0))],
        [(1, 0), (0, 1)],
        [[1, 0], [0, 1]],
        np.array([[1, 0], [0, 1]]),
        [Pair(1, 0), Pair(b=1, a=0)],
        iter([(1, 0), (0, 1)]),
        (np.array([1, 0]), [0, 1]),
    ],
)
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


@pytest.mark.parametrize(
    'rows, block, want',
    [
        ([1, 0], A, [[1], [0]]),
        ([(1,), (0,)], A, [[1], [0]]),
        ([[1], [0]], A, [[1], [0]]),
        (['no', 'yes'], A, [['no'], ['yes']]),
        ([True, None], A, [[True], [None]]),
        ([(1,), 0], A, [[(1,)], [0]]),
        ([(1,), (0, 1)], A, [[(1,)], [(0, 1)]]),
        ([(1, 0), (0, 1)], A, [[(1, 0)], [(0, 1)]]),
        ([['x'], ['y']], TAGS, [[['x']], [['y']]]),
        ([['x', 'y'], []], TAGS, [[['x', 'y']], [[]]]),
        ([(1, 0), (0, 1)], MultiLabelBlock('m', cols=['p', 'q']), [[1, 0], [0, 1]]),
        ([(1,), (0,)], MultiLabelBlock('m', cols=['p']), [[(1,)], [(0,)]]),
    ],
)
def test_rows_of_a_single_task(rows, block, want):
    got = as_table(rows, [block])
    assert list(got.columns) == block.cols and got.values.tolist() == want


@pytest.mark.parametrize(
    'rows, shown',
    [(['ab', 'cd'], "'ab'"), ([b'ab'], "b'ab'"), ([3, 4], '3'), ([(1, 2, 3)], '(1, 2, 3)'), ([(1, 2), (1,)], '(1, 2)')],
)
def test_rows_that_do_not_fit(rows, shown):
    says(f"row {shown} does not fit the columns ['a', 'b']", as_table, rows, [A, B])


def test_packed():
    y = torch.arange(12.0).reshape(3, 4)
    assert (
        torch.equal(packed(y), torch.stack([y[:, :2], y[:, 2:]], 1))
        and packed(y.reshape(3, 2, 2)) is not None
        and torch.equal(packed(y.reshape(3, 2, 2)), y.reshape(3, 2, 2))
        and packed(torch.zeros(0, 2, 2)).shape == (0, 2, 2)
    )
