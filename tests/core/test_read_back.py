"""What is written into a table: the dtype of a column is that of all it can hold, and it has one kind of blank"""

import numpy as np
import pandas as pd
import pytest
import torch

from fastai_condmtl.all import *

GATE = BinaryBlock('gate')
TABLE = pd.DataFrame(
    dict(
        gate=[1, 1, 0, 1],
        yes=[True, False, None, True],
        word=['no', 'yes', None, 'yes'],
        code=[1, 2, None, 2],
        kind=['a', 'b', None, 'c'],
        number=[1, 5, None, 7],
        half=[0.5, 1.5, None, 2.5],
        mixed=['a', 1, None, 'a'],
        size=['small', 'big', None, 'big'],
        n=[3, 0, None, 1],
        x=[0.5, 2.0, None, -1],
        tags=['p,q', '', None, 'q'],
        odd_tags=[[1, 2], [], None, [2]],
        one=[1, 0, None, 1],
        two=[0, 0, None, 1],
        for_it=[3, 1, None, 0],
        against=[0, 2, None, 9],
    )
)
BLOCKS = (
    BinaryBlock('yes'),
    BinaryBlock('word', vocab=('no', 'yes')),
    BinaryBlock('code', vocab=(1, 2)),
    SingleLabelBlock('kind'),
    SingleLabelBlock('number'),
    SingleLabelBlock('half'),
    SingleLabelBlock('mixed', vocab=['a', 1]),
    OrdinalBlock('size', vocab=['small', 'big']),
    CountBlock('n'),
    UnboundedRegressionBlock('x'),
    MultiLabelBlock('tags'),
    MultiLabelBlock('odd_tags'),
    MultiLabelBlock('hot', cols=['one', 'two']),
    VotesBlock('votes', cols={'for': 'for_it', 'against': 'against'}),
)
TEXT = str(pd.Series(['a', None]).dtype)  # `str` in pandas 3, `object` before
DTYPES = dict(
    gate='boolean',
    yes='boolean',
    word=TEXT,
    code='Int64',
    kind=TEXT,
    number='Int64',
    half='float64',
    mixed='object',
    size=TEXT,
    n='Int64',
    x='float64',
    tags=TEXT,
    odd_tags='object',
    one='boolean',
    two='boolean',
    for_it='float64',
    against='float64',
)


@pytest.fixture(scope='module')
def bound():
    flow = Flow('all', GATE, *(block | GATE for block in BLOCKS))
    return flow.bind(TABLE)


def frame_of(bound, rows):
    return bound.to_frame(bound.encode(TABLE)[rows])


@pytest.mark.parametrize('rows', [[0, 1, 2, 3], [0, 1], [2], [2, 2], []])
def test_dtypes_do_not_depend_on_the_rows(bound, rows):
    frame = frame_of(bound, rows)
    assert {column: str(dtype) for column, dtype in frame.dtypes.items()} == DTYPES


def test_blanks_are_those_of_the_table(bound):
    frame = frame_of(bound, [0, 1, 2, 3])
    assert frame.isna().equals(TABLE[list(frame)].isna())
    for column in frame.columns.drop('gate'):
        blank = frame[column].array[2]
        is_nan = isinstance(blank, float) and np.isnan(blank)
        assert blank is None if frame[column].dtype == object else blank is pd.NA or is_nan


def test_what_is_written_reads_back_the_same(bound, tmp_path):
    frame, want = frame_of(bound, [0, 1, 2, 3]), bound.encode(TABLE)
    torch.testing.assert_close(bound.encode(frame), want)
    frame.to_csv(tmp_path / 'table.csv', index=False)
    through = pd.read_csv(tmp_path / 'table.csv')
    assert through.drop(columns='tags').isna().equals(frame.drop(columns='tags').isna())  # '' is a blank of a csv
    np.testing.assert_array_equal(through.number.astype('Int64'), frame.number)


def test_parquet_keeps_values_dtypes_and_blanks(bound, tmp_path):
    pytest.importorskip('pyarrow')
    frame = frame_of(bound, [0, 1, 2, 3]).drop(columns='mixed')  # of texts and numbers Arrow makes no column
    frame.to_parquet(tmp_path / 'table.parquet')
    again = pd.read_parquet(tmp_path / 'table.parquet')
    pd.testing.assert_frame_equal(again.drop(columns='odd_tags'), frame.drop(columns='odd_tags'))
    assert again.odd_tags.isna().equals(frame.odd_tags.isna())
