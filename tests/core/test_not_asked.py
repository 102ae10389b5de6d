"`na=`: values that stand where a question was not asked are blank cells, in all that reads a table."

import pickle
import numpy as np, pandas as pd, pytest, torch
from fastai_condmtl.all import *
from fastai_condmtl.core.bound import BoundFlow
import fastai_condmtl.deploy.bound_dict  # noqa: F401  to_dict, from_dict


def counts(flow, df):
    "Which cells count: rows of 0 and 1, a column a target."
    return flow.bind(df).encode(df).mask.numpy().astype(int).T.tolist()


def test_of_every_kind_by_hand():
    df = pd.DataFrame(
        dict(
            b=[1, 0, -1, 1],
            s=['x', 'none', 'y', ' none '],
            o=[3, 1, 0, 2],
            m=['u', 'none', 'u,v', ''],
            r=[1.5, -1.0, 2.0, 0.0],
            c=[0, 2, -1, 5],
            p=[0, 1, -1, 1],
            q=[-1, 1, 0, 0],
        )
    )
    flow = Flow(
        'f',
        BinaryBlock('b'),
        SingleLabelBlock('s'),
        OrdinalBlock('o', na=0),
        MultiLabelBlock('m'),
        UnboundedRegressionBlock('r'),
        CountBlock('c', na=-1),
        MultiLabelBlock('pq', cols=['p', 'q']),
        na=('none', -1),
    )
    want = [[1, 1, 0, 1], [1, 0, 1, 0], [1, 1, 0, 1], *[[1, 0, 1, 1]] * 2, [1, 0, 1, 1], [1, 1, 0, 1]]
    assert counts(flow, df) == [*want, [1, 1, 0, 1], [0, 1, 1, 1]]
    bound = flow.bind(df)
    assert bound.find('s').vocab == ['x', 'y'] and bound.find('o').vocab == [1, 2, 3]
    assert all(type(v) is int for v in bound.find('o').vocab) and bound.find('m').vocab == ['u', 'v']
    assert bound.find('r').mean == pytest.approx((1.5 + 2 + 0) / 3)


def test_numbers_as_numbers():
    "0 is 0.0, and never False or '0'; text is compared without the blanks around it, and as it is written."
    na = lambda values, na: counts(Flow('f', SingleLabelBlock('x', na=na)), pd.DataFrame(dict(x=values)))[0]
    mixed = pd.Series([0, 0.0, False, '0', ' a', 'A', None], dtype=object)
    assert Flow('f', SingleLabelBlock('x', na=(0, 'a'))).bind(pd.DataFrame(dict(x=['b', 'c'])))
    for value, want in ((0, [0, 0, 1, 1, 1, 1, 0]), (False, [1, 1, 0, 1, 1, 1, 0]), ('0', [1, 1, 1, 0, 1, 1, 0])):
        block = SingleLabelBlock('x', na=value)
        assert block.with_blanks(pd.DataFrame(dict(x=mixed))).x.notna().astype(int).tolist() == want, value
    assert na([1.0, 0.0, 2.0], 0) == na([1, 0, 2], 0.0) == na(['u', 'a ', 'v'], ' a') == [1, 0, 1]
    assert na(['0', '1'], 0) == [1, 1]


@pytest.mark.parametrize('dtype', ['int8', 'uint16', 'float32', 'Int32', 'Float64', 'category', 'object', 'str'])
def test_columns_of_every_type(dtype):
    values = [7, 9, 8, 9] if dtype not in ('object', 'str') else ['7', '9', '8', '9']
    df = pd.DataFrame(dict(x=pd.Series(values).astype(dtype)))
    bound = Flow('f', SingleLabelBlock('x', na=values[1])).bind(df)
    assert bound.encode(df).mask[:, 0].tolist() == [1, 0, 1, 0] and list(bound.find('x').vocab) == values[::2]


def test_a_block_replaces_what_its_flow_says():
    df = pd.DataFrame(dict(a=['none', 'u', '-'], b=['none', 'u', '-'], c=['none', 'u', '-']))
    inner = Flow('g', SingleLabelBlock('b'), SingleLabelBlock('c', na=()), na='-')
    flow = Flow('f', SingleLabelBlock('a'), inner, na=('none', '?'))
    assert counts(flow, df) == [[0, 1, 1], [1, 1, 0], [1, 1, 1]]
    again = Flow.from_json(flow.to_json())
    assert again.to_json() == flow.to_json() and counts(again, df) == counts(flow, df)
    assert again.na == ('none', '?') and again.tasks[1].na == ('-',) and again.tasks[1].tasks[1].na == ()
    bound = pickle.loads(pickle.dumps(flow.bind(df)))
    assert torch.equal(bound.encode(df), flow.bind(df).encode(df))
    assert torch.equal(BoundFlow.from_dict(bound.to_dict()).encode(df), bound.encode(df))


def test_a_whole_cell_of_labels():
    df = pd.DataFrame(dict(m=pd.Series([['none'], ['a'], "['none']", [], None, 'none'], dtype=object)))
    for empty, want in ((False, [0, 1, 0, 1, 0, 0]), (True, [0, 1, 0, 1, 1, 0])):
        flow = Flow('f', MultiLabelBlock('m', vocab=['a'], na='none', nan_is_empty=empty))
        assert counts(flow, df.iloc[[0, 1, 3, 4, 5]]) == [[want[i] for i in (0, 1, 3, 4, 5)]]
        assert counts(flow, pd.DataFrame(dict(m=["['none']", "['a']", '[]']))) == [[0, 1, 1]]
    with pytest.raises(FlowError, match=r"task 'm': 'none' stands in na=.* answer"):
        Flow('f', MultiLabelBlock('m', na='none')).bind(pd.DataFrame(dict(m=['none', 'a,none'])))


@pytest.mark.parametrize(
    'block, na',
    [
        (BinaryBlock('x'), 0),
        (BinaryBlock('x', vocab=('none', 'some')), 'none'),
        (BinaryBlock('x'), False),
        (SingleLabelBlock('x', vocab=['none ', 'b']), 'none'),
        (SingleLabelBlock('x', vocab=[0, 1]), 0.0),
        (OrdinalBlock('x', vocab=['low', 'high']), 'low'),
        (MultiLabelBlock('x', vocab=['a', 'b']), 'a,b'),
        (MultiLabelBlock('y', cols=['x']), 1),
    ],
)
def test_a_value_that_is_an_answer_too(block, na):
    df = pd.DataFrame(dict(x=pd.Series([None, None], dtype=object)))
    with pytest.raises(FlowError, match=rf"task 'g.{block.name}': .* stands in na=.*take it out"):
        Flow('f', Flow('g', block), na=(na,)).bind(df)
    assert Flow('f', block, na=('not asked',)).bind(df)


@pytest.mark.parametrize('na', [None, [None], {'none': 1}, [float('nan')], [['none']], object()])
def test_bad_values(na):
    if na is None:
        assert BinaryBlock('x', na=na).na is None
        return
    for make in (lambda: BinaryBlock('x', na=na), lambda: Flow('x', BinaryBlock('y'), na=na)):
        with pytest.raises(FlowError, match=r"'x': na=.*must be a text or a number"):
            make()


def test_nothing_is_copied_without_na():
    df = pd.DataFrame(dict(x=[1, 0]))
    assert BinaryBlock('x').with_blanks(df) is df and UnboundedRegressionBlock('x', na=7).with_blanks(df) is df


def test_errors_name_the_row_of_the_table():
    df = pd.DataFrame(dict(x=[1, -1, 0, 'many', 1]))
    with pytest.raises(FlowError, match=r"row 3\b.*many"):
        BoundFlow(Flow('f', UnboundedRegressionBlock('x', na=-1)), df, [4, 3, 1])


def test_predictions_and_labels_are_written_as_blanks():
    df = pd.DataFrame(dict(a=[1, 0, 1], s=['u', 'none', 'v']))
    bound = Flow('f', BinaryBlock('a'), SingleLabelBlock('s', na='none')).bind(df)
    assert bound.to_frame(bound.encode(df)).s.isna().tolist() == [False, True, False]


def test_what_a_label_does_not_say_opens_no_condition():
    df = pd.DataFrame(dict(kind=['cat', 'none', 'dog', 'none'], age=[3, 1, 2, 0]))
    kind = SingleLabelBlock('kind', na='none')
    assert counts(Flow('f', kind, UnboundedRegressionBlock('age') | kind.ne('dog')), df) == [[1, 0, 1, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize('dtype', ['float16', 'float32', 'Float32', 'float[pyarrow]', 'category'])
def test_a_number_that_a_narrow_column_rounds(dtype):
    "A table holds -99.9 in float32 as -99.90000153: it is what was written"
    cells = pd.Series([-99.9, 1, 2], dtype='float32' if dtype == 'category' else dtype)
    df = pd.DataFrame(dict(x=cells.astype(dtype)))
    assert counts(Flow('f', UnboundedRegressionBlock('x', na=-99.9)), df) == [[0, 1, 1]]


def test_a_number_that_a_column_cannot_hold():
    for dtype in ('int8[pyarrow]', 'int64[pyarrow]', 'uint8', 'Int16', 'float16', 'float[pyarrow]'):
        df = pd.DataFrame(dict(x=pd.Series([3, 2, 1], dtype=dtype)))
        flow = Flow('f', UnboundedRegressionBlock('x', na=(2, 1e300, 2**70, -1, 2.5)))
        assert counts(flow, df) == [[1, 0, 1]], dtype
    df = pd.DataFrame(dict(x=[2**53, 2**53 + 1, 0]))
    for dtype in ('int64', 'Int64', 'int64[pyarrow]'):  # beside 0.5, too
        block = SingleLabelBlock('x', na=(2**53 + 1, 0.5))
        assert block.with_blanks(df.astype(dtype)).x.isna().tolist() == [False, True, False]


def test_in_lists_of_points_and_boxes():
    "A value of `na` in a list is blank as in a column a coordinate; what is blank is nothing odd, and is found"
    cells = [[(3.0, 4.0), (7, 8)], [(-1, -1), (5, 6)], None, [(10.0, 12.0), (-1, 6)], [(-1, -1), (-1, -1)]] * 5
    lists = pd.DataFrame(dict(p=cells))
    flat = [[x for pair in cell for x in pair] if cell else [None] * 4 for cell in cells]
    columns = pd.DataFrame(flat, columns=list('abcd'))
    want = [[1, 0, 0, 1, 0] * 5] * 2 + [[1, 1, 0, 0, 0] * 5] * 2
    for frame in (
        lists,
        lists.assign(p=pd.Series([None if c[0] is None else c for c in flat])),
        lists.assign(p=[None if c is None else np.array(c, dtype=float) for c in cells]),
    ):
        kept = frame.p.map(repr).tolist()
        assert counts(Flow('f', KeypointsBlock('p', na=-1)), frame) == want
        assert counts(Flow('f', KeypointsBlock('p'), na=('none', -1)), frame) == want
        assert frame.p.map(repr).tolist() == kept  # the table is as it was
        texts = [str(f) for f in Flow('f', KeypointsBlock('p', na=(-1, -99))).audit(frame).lines()]
        assert not any('apart' in text for text in texts) and len(texts) == 1 and 'no cell holds -99' in texts[0]
    assert counts(Flow('f', KeypointsBlock('p', list('abcd'), na=-1)), columns) == want
    boxes = pd.DataFrame(dict(b=[(1, 2, 30, 40), (-1, -1, -1, -1), [2, 3, 40, 50], None, np.full(4, -1)] * 5))
    for fmt in ('xywh', 'xyxy'):
        flow = Flow('f', BoxBlock('b', fmt=fmt, na=-1))
        assert counts(flow, boxes) == [[1, 0, 1, 0, 0] * 5] * 4
        assert not flow.audit(boxes).lines()
    with pytest.raises(FlowError, match='negative width'):
        Flow('f', BoxBlock('b')).bind(boxes)
