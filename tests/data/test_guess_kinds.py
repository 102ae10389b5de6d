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


@pytest.mark.parametrize('as_cell', [lambda pairs: [tuple(p) for p in pairs], lambda pairs: pairs, np.array])
def test_lists_of_pairs_are_points(as_cell):
    "As tuples, lists and arrays; a condition tells where they are labelled, and no condition asks them"
    rng = np.random.default_rng(0)
    there = rng.integers(0, 2, 60)
    cells = [as_cell((rng.random((3, 2)) * 9).tolist()) if yes else None for yes in there]
    df = pd.DataFrame(dict(there=there, tips=pd.Series(cells, dtype=object), worn=np.where(there, 0.5, np.nan)))
    df.loc[df.index[there == 1][:9], 'worn'] = 0.25
    flow = guess_flow(df).flow
    block = flow.tasks[1]
    assert isinstance(block, KeypointsBlock) and block.n_points == 3 and str(block.given) == 'there'
    assert str(flow.tasks[2].given) == 'there'
    assert flow.bind(df).encode(df).shape[0] == 60


def test_pairs_that_are_no_points():
    ragged = guess_kind(pd.Series([[(1.0, 2.0)], [(1.0, 2.0), (3.0, 4.0)]]), 'x')
    assert ragged.block is None and '1 to 2 (x, y) pairs' in ragged.why
    words = guess_kind(pd.Series([[('a', 'b')], [('a', 'b'), ('c', 'd')]]), 'x')
    assert isinstance(words.block, MultiLabelBlock)
