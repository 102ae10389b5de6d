"Tests of tasks/multi_label"

import pandas as pd
import pytest
from fastai_condmtl.all import Flow, MultiLabelBlock


def test_rows_that_are_lists_of_labels():
    bound = Flow('f', MultiLabelBlock('m', vocab=[1, 2])).bind([[1, 2], [2]])
    assert bound.encode([[1], [2]])[:, 0].tolist() == [[1, 0], [0, 1]]


def test_arrow_lists():
    pa = pytest.importorskip('pyarrow')
    df = pd.DataFrame(dict(m=pd.array([['a', 'b'], None, []], dtype=pd.ArrowDtype(pa.list_(pa.string())))))
    assert Flow('f', MultiLabelBlock('m')).bind(df).encode(df).tolist() == [
        [[1, 1], [1, 1]],
        [[0, 0], [0, 0]],
        [[0, 0], [1, 1]],
    ]


def test_a_label_that_holds_the_delimiter_stays_whole():
    bound = Flow('f', MultiLabelBlock('m')).bind(df := pd.DataFrame(dict(m=[['a,b', 'c'], ['c']])))
    assert bound.to_frame(bound.encode(df)).m.tolist() == [['a,b', 'c'], ['c']]
