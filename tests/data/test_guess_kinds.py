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


DAYS = pd.date_range('2023-12-20 09:30:15', periods=40, freq='D')
FORMS = '%Y-%m-%d|%d.%m.%Y|%m/%d/%Y|%Y/%m/%d|%d %b %Y|%d-%b-%Y|%B %d, %Y|%Y%m%d|%Y-%m-%dT%H:%M:%SZ|%d.%m.%Y %H:%M'


@pytest.mark.parametrize('form', FORMS.split('|'))
@pytest.mark.parametrize('n_days', [2, 40])
def test_dates_as_text_are_left_out_however_often_they_come(form, n_days):
    cells = [day.strftime(form) for day in DAYS[:n_days]] * (200 // n_days)
    for s in (pd.Series(cells), pd.Series(pd.Categorical(cells)), pd.Series([*cells, 'unknown', None])):
        block, why = guess_kind(s, 'x')
        assert block is None and why.startswith(f'it holds dates, written as text such as {cells[0]!r}: turn them')


@pytest.mark.parametrize(
    'cells', [DAYS, list(DAYS.date), DAYS.astype(object), [int(day.strftime('%Y%m%d')) for day in DAYS]]
)
def test_dates_of_other_types_are_left_out(cells):
    block, why = guess_kind(pd.Series(list(cells) * 5), 'x')
    assert (
        block is None and why.startswith('it holds dates') and why.endswith(': turn them into numbers of a known unit')
    )


@pytest.mark.parametrize(
    'cells',
    [
        ['1.2.3', '1.10.0', '2.0.1'],
        ['2024-13-01', '2024-14-02', '2024-01-99'],
        ['2023/24', '2024/25', '2025/26'],
        ['12-16', '16-24', '24-30'],
        ['may', 'june', 'july'],
        [20249901, 20240001, 99990101],
        ['2024-03-01', 'soon', 'never'],
        [1e300, 2e8, 10**400],
    ],
)
def test_what_only_looks_like_dates_is_none(cells):
    assert 'date' not in guess_kind(pd.Series(cells * 20, dtype=object), 'x').why
