"The kind of a column, and that its block reads what stands there."

import numpy as np, pandas as pd, pytest
from fastai_condmtl.all import *
from fastai_condmtl.data.guess_kinds import guess_kind


@pytest.mark.parametrize(
    'vals, kind, extra',
    [
        ([True, False, None], 'BinaryBlock', {}),
        (['True', 'False', 'True'], 'BinaryBlock', dict(vocab=('False', 'True'))),
        (['N', 'Y', 'Y'], 'BinaryBlock', dict(vocab=('N', 'Y'))),
        ([1.0, 0.0, np.nan], 'BinaryBlock', {}),
        (pd.array([1, 0, None], dtype='Int64'), 'BinaryBlock', {}),
        (['male', 'female', 'male', 'female'], 'SingleLabelBlock', {}),
        ([1, 2] * 30, 'SingleLabelBlock', {}),
        (pd.Categorical(['lo', 'hi', 'mid'] * 4), 'SingleLabelBlock', {}),
        (['a|b', 'b', 'a', None], 'MultiLabelBlock', dict(label_delim='|')),
        (
            ['cat dog', 'cat', 'dog', 'dog cow', 'cow', 'cat cow', 'cow dog cat'] * 3,
            'MultiLabelBlock',
            dict(label_delim=' '),
        ),
        ([('a',), ('b', 'a'), ()], 'MultiLabelBlock', {}),
        ([0.25, 0.5, 1.0], 'BoundedRegressionBlock', dict(y_range=(0.0, 1.0))),
        ([3.7, 120.5, -4], 'UnboundedRegressionBlock', {}),
        (range(100, 5, -1), 'UnboundedRegressionBlock', {}),
    ],
)
def test_kinds(vals, kind, extra):
    block, why = guess_kind(pd.Series(vals), 'x')
    assert type(block).__name__ == kind and why
    assert {k: getattr(block, k) for k in extra} == extra
    s = pd.Series(vals, name='x')
    np.testing.assert_array_equal(Flow('f', block).bind(s.to_frame()).encode(s.to_frame())[:, 1].any(1), s.notna())
