"""Cells that no task can read: the audit tells all of them, and counts as if they were blank, while binding and
encoding stop at the first one."""

import re
import numpy as np, pandas as pd, pytest
from fastai_condmtl.all import *
from fastai_condmtl.data.unreadable import MOST

N = 60
rng = np.random.default_rng(0)
GATE = np.where(np.arange(N) % 3, 'yes', 'no')
POINTS = [(float(x), float(y)) for x, y in rng.uniform(5, 90, (N, 2)).round(1)]


def drawn(*values):
    return list(rng.choice(np.array(values, dtype=object), N))


def found_in(report):
    "(task, value) → rows, of what cannot be read"
    found = [f for f in report.findings if f.kind == 'unreadable']
    assert all(f.serious for f in found)
    value = lambda f: re.match(r"column '\w+': (.*?) cannot be read \((\d+) rows?, row \d+", f.text)
    assert all(int(value(f)[2]) == len(f.rows) for f in found)
    return {(f.task_path, value(f)[1]): f.rows.tolist() for f in found}


def counted_alike(dirty, clean):
    "The rest of two audits is the same"
    pd.testing.assert_frame_equal(dirty.table, clean.table)
    assert [f for f in dirty.findings if f.kind != 'unreadable'] == clean.findings
    assert clean.findings


# block, its column, what it cannot read
IN_ONE_COLUMN = [
    (BinaryBlock('m'), drawn(0, 1), ['maybe', 7]),
    (BinaryBlock('m', vocab=('off', 'on')), drawn('off', 'on'), ['On ', 'x']),
    (BinaryBlock('m', soft=True), drawn(0.25, 0.75, 1), [1.5, 'all']),
    (SingleLabelBlock('m', vocab=['cat', 'dog']), drawn('cat', 'dog'), ['dgo', 'Cat', ('cat', 'dog')]),
    (OrdinalBlock('m', vocab=['low', 'high']), drawn('low', 'high'), ['hihg', 3]),
    (OrdinalBlock('m'), drawn(1, 2, 3), ['two', 'none']),
    (MultiLabelBlock('m', vocab=['hat', 'scarf']), drawn('hat', 'hat,scarf', ''), ['hut', 'hat,cap']),
    (UnboundedRegressionBlock('m'), drawn(1.5, 2.5, 9.0), ['n/a', np.inf]),
    (BoundedRegressionBlock('m', y_range=(0, 9)), drawn(1.5, 2.5, 9.0), [9.5, -1, 'big']),
    (CountBlock('m'), drawn(0, 1, 4), [-1, 2.5]),
    (KeypointsBlock('m', n_points=1), POINTS, ['3, 4', (1, 2, 3)]),
]


@pytest.mark.parametrize('block, cells, wrong', IN_ONE_COLUMN)
def test_all_cells_of_a_kind_are_told(block, cells, wrong):
    "Each value with its rows; all else as in an audit of the table in which they are blank"
    df = pd.DataFrame(dict(gate=GATE, m=pd.Series(cells, dtype=object)))
    clean, at = df.copy(), {}
    for k, row in enumerate(rng.permutation(N)[:9].tolist()):
        df.at[row, 'm'], clean.at[row, 'm'] = wrong[k % len(wrong)], None
        at.setdefault(('m', repr(wrong[k % len(wrong)])), []).append(row)
    gate = BinaryBlock('gate')
    flow = Flow('f', gate, block | gate, BinaryBlock('n', 'gate') | ~gate)
    report = flow.audit(df)
    assert found_in(report) == {key: sorted(rows) for key, rows in at.items()}
    counted_alike(report, flow.audit(clean))
    first = min(row for rows in at.values() for row in rows)
    with pytest.raises(FlowError, match=r"task 'm', row \d+, column 'm'") as told:
        flow.bind(df).encode(df)
    assert int(re.search(r'row (\d+)', str(told.value))[1]) >= first
    assert found_in(flow.bind(clean).audit(df)) == found_in(report)


@pytest.mark.parametrize(
    'block, cols',
    [
        (BoxBlock('m', cols=['a', 'b', 'c', 'd'], fmt='xywh'), dict(a=5.0, b=6.0, c=7.0, d=8.0)),
        (VotesBlock('m', cols=['a', 'b']), dict(a=3.0, b=4.0)),
    ],
)
def test_a_row_that_cannot_be_read_as_a_whole(block, cols):
    "A negative size or number of votes: other rows with the same number in another column can be read"
    df = pd.DataFrame(dict(gate=GATE)).assign(**cols)
    last = list(cols)[-1]
    df.loc[[3, 8, 20], last], df.loc[30, 'a'] = -2, 2
    clean = df.copy()
    clean.loc[[3, 8, 20], list(cols)] = np.nan
    gate = BinaryBlock('gate')
    flow = Flow('f', gate, block | gate)
    report = flow.audit(df)
    assert found_in(report) == {('m', '-2.0'): [3, 8, 20]}
    counted_alike(report, flow.audit(clean))


def test_one_column_a_label_loses_only_its_cell():
    df = pd.DataFrame(dict(a=[0, 1] * 20, b=[1, 0] * 20), dtype=object)
    df.loc[[4, 6], 'a'], df.loc[6, 'b'] = 'x', 'y'
    report = Flow('f', MultiLabelBlock('m', cols=['a', 'b'])).audit(df)
    assert found_in(report) == {('m', "'x'"): [4, 6], ('m', "'y'"): [6]}
    clean = df.where(~df.isin(['x', 'y']), None)
    pd.testing.assert_frame_equal(report.table, Flow('f', MultiLabelBlock('m', cols=['a', 'b'])).audit(clean).table)


def test_a_blank_that_is_an_answer_does_not_take_the_place_of_what_cannot_be_read():
    df = pd.DataFrame(dict(m=['hat', None, 'hut', 'hat,scarf', 'hut'] * 4))
    report = Flow('f', MultiLabelBlock('m', vocab=['hat', 'scarf'], nan_is_empty=True)).audit(df)
    assert report.rows('m', 'unreadable') == [i for i in range(20) if i % 5 in (2, 4)]
    assert report.table.labelled.tolist() == [12]


def test_the_audit_of_a_bound_flow_tells_what_its_vocabulary_lacks():
    df = pd.DataFrame(dict(m=['u', 'v'] * 10))
    bound = Flow('f', SingleLabelBlock('m')).bind(df)
    report = bound.audit(pd.DataFrame(dict(m=['u', 'w', 'x', 'w'])))
    assert found_in(report) == {('m', "'w'"): [1, 3], ('m', "'x'"): [2]} and report.flow is bound
    assert "no row counts, since no label can be read" in repr(bound.audit(pd.DataFrame(dict(m=['w', None]))))


def test_rows_are_called_as_in_the_table_of_the_user():
    df = pd.DataFrame(dict(m=['u', 'w', 'w', 'w', 'w'])).rename('p{}'.format)
    (text,) = [f.text for f in Flow('f', SingleLabelBlock('m', vocab=['u', 'v'])).audit(df).findings[:1]]
    assert text.startswith(
        "column 'm': 'w' cannot be read (4 rows, row 1 (index 'p1'), row 2 (index 'p2'), row 3 (index 'p3') …): not in "
        "the vocabulary"
    )


NOTES = [f'see note {i}' for i in range(20)]


@pytest.mark.parametrize(
    'blocks, m, value',
    [
        ([UnboundedRegressionBlock('m')], NOTES, "row 0, column 'm', value 'see note 0'"),
        ([SingleLabelBlock('m', vocab=['u'])], [f'c{i}' for i in range(MOST + 1)], "row 0, column 'm', value 'c0'"),
        ([SingleLabelBlock('m')], [f'{i}.png' for i in range(20)], 'names of picture files'),
        ([UnboundedRegressionBlock('m'), SingleLabelBlock('n', 'm')], [1, 2, 'x'], "row 2, column 'm', value 'x'"),
    ],
)
def test_a_column_of_another_kind_is_an_error_as_when_it_is_bound(blocks, m, value):
    "Nothing is left to read, too much is wrong, or another task reads the column too"
    with pytest.raises(FlowError, match=re.escape(value)):
        Flow('f', *blocks).audit(pd.DataFrame(dict(m=pd.Series(m, dtype=object))))


def test_errors_keep_their_parts_in_pickles():
    import pickle

    with pytest.raises(FlowError) as told:
        Flow('f', UnboundedRegressionBlock('m')).bind(pd.DataFrame(dict(m=[1, 'x'])))
    again = pickle.loads(pickle.dumps(told.value))
    assert str(again) == str(told.value) and (again.cell.col, again.cell.row, again.cell.shown) == ('m', 1, "'x'")


PETS = pd.DataFrame(dict(kind=['cat', 'dog', 'cat', None] * 10, legs=[4, 3, 4, 4] * 10, wild=[0, 1, 0, None] * 10))
NAMED = SingleLabelBlock('kind', vocab=['cat', 'cow', 'dog'])


@pytest.mark.parametrize(
    'block, named, cond, n_true',
    [
        (SingleLabelBlock('kind'), NAMED, lambda t: t.eq('cow'), 0),
        (SingleLabelBlock('kind'), NAMED, lambda t: t.ne('cow'), 30),
        (SingleLabelBlock('kind'), NAMED, lambda t: t.isin(['cow', 'dog']), 10),
        (SingleLabelBlock('kind'), NAMED, lambda t: ~t.eq('cow') & t.eq('cat'), 20),
        (MultiLabelBlock('kind'), MultiLabelBlock('kind', vocab=['cat', 'cow', 'dog']), lambda t: t.has('cow'), 0),
        (
            MultiLabelBlock('kind'),
            MultiLabelBlock('kind', vocab=['cat', 'cow', 'dog']),
            lambda t: t.has_any(['cow', 'dog']),
            10,
        ),
        (OrdinalBlock('legs'), OrdinalBlock('legs', vocab=[3, 4, 5]), lambda t: t.eq(5), 0),
        (OrdinalBlock('legs'), OrdinalBlock('legs', vocab=[3, 4, 5]), lambda t: t > 4, 0),
        (OrdinalBlock('legs'), OrdinalBlock('legs', vocab=[2, 3, 4]), lambda t: t <= 2, 0),
        (OrdinalBlock('legs'), OrdinalBlock('legs', vocab=[2, 3, 4]), lambda t: t < 3, 0),
    ],
)
def test_a_condition_on_a_class_that_no_row_has_is_told(block, named, cond, n_true):
    "All else as in an audit of the flow whose vocabulary names the class"
    flow_of = lambda block: Flow('f', block, Flow('g', BinaryBlock('wild')) | cond(block))
    flow = flow_of(block)
    with pytest.raises(FlowError) as told:
        flow.bind(PETS)
    for table in (PETS, PETS.to_dict('records')):
        report, expected = flow.audit(table), flow_of(named).audit(table)
        (found,) = [f for f in report.findings if f.kind == 'absent']
        assert found.task_path == 'g.wild' and found.serious and str(told.value) in found.text
        assert found.fix == f'vocab={named.vocab!r}' and found.text.endswith(f"name all in '{block.name}', {found.fix}")
        pd.testing.assert_frame_equal(report.table, expected.table)
        assert [f for f in report.findings if f.kind != 'absent'] == expected.findings
        assert report.table.set_index('task_path').applicable['g.wild'] == n_true
    assert report.flow.flow is flow and block.vocab is None


def test_an_audit_goes_on_after_its_own_fix():
    "Two spellings are made one, and the condition asks for the one that is gone"
    df = pd.DataFrame(dict(kind=['cat', 'Cat', 'dog', 'cat'] * 10, age=[1.0, 2, None, 3] * 10))
    kind = SingleLabelBlock('kind')
    flow = Flow('f', kind, UnboundedRegressionBlock('age') | kind.isin(['cat', 'Cat']))
    (twins,) = [f for f in flow.audit(df).findings if f.kind == 'twins']
    exec(twins.fix.partition('. If')[0], dict(df=df))
    (found,) = [f for f in flow.audit(df).findings if f.kind == 'absent']
    assert "'Cat': did you mean 'cat'? Training stops here" in found.text
    assert flow.audit(df).table.applicable.tolist() == [40, 30]


def test_conditions_on_several_absent_classes_and_on_no_label_at_all():
    df = pd.DataFrame(dict(kind=pd.Categorical(['b', 'a'] * 10, ['b', 'a']), empty=None, c=[1, 0] * 10))
    kind, empty = SingleLabelBlock('kind'), MultiLabelBlock('empty')
    tasks = BinaryBlock('c') | kind.eq('x'), BinaryBlock('d', 'c') | kind.isin(['y', 'a']) & empty.has('z')
    report = Flow('f', kind, empty, *tasks).audit(df)
    assert [f.task_path for f in report.findings if f.kind == 'absent'] == ['c', 'd', 'd']
    assert report.flow.tasks['kind'].vocab == ['b', 'a', 'x', 'y'] and report.table.unknown.tolist() == [0, 0, 0, 10]


@pytest.mark.parametrize(
    'block, cond',
    [
        (NAMED, task('kind').eq('bird')),
        (MultiLabelBlock('kind', cols=['wild']), task('kind').has('x')),
        (OrdinalBlock('legs'), task('legs') > np.inf),
    ],
)
def test_a_condition_that_a_flow_contradicts_itself_is_an_error(block, cond):
    with pytest.raises(FlowError, match='the condition'):
        Flow('f', block, BinaryBlock('b', 'wild') | cond).audit(PETS)
