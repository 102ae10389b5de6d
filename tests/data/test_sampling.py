"Tests of data/sampling"

import pandas as pd, pytest
from fastai_condmtl.all import BinaryBlock, Flow, FlowError, task
from fastai_condmtl.data.sampling import balanced_weights, group_rows


# ---- a second review: conditions, kinds, scores
# ---------------------------------------------------------------------------
def table(**cols):
    return pd.DataFrame({c: pd.Series(v, dtype=object) for c, v in cols.items()})


def test_rows_of_weight_0_in_conditions_of_a_draw():
    "Known for the conditions of the flow, hence for a draw by a condition; of packed labels they are gone"
    a = BinaryBlock('a', weight_col='w')
    flow, df = Flow('f', a, BinaryBlock('c') | a), pd.DataFrame(dict(a=[0, 1, 0], c=[1, 1, 1], w=[0, 0, 1.0]))
    groups = lambda by: {k: v.tolist() for k, v in group_rows(df, by, flow).items()}
    assert (
        groups(a & a) == {'true': [1], 'false': [0, 2]}
        and groups(['a']) == {'a': [2]}
        and groups(~task('c')) == {'false': [1]}
    )
    y = flow.bind(df).encode(df)
    assert y[:, 1].tolist() == [[0, 0], [0, 1], [1, 0]] and flow.bind(df).encode(df, weighted=False)[:, 1].tolist() == [
        [1, 0],
        [1, 1],
        [1, 0],
    ]
    assert flow.bind(df).false_conditions(y)[:, 1].tolist() == [False, False, True]


def test_no_row_in_any_group():
    with pytest.raises(FlowError, match="by 'a': no training row is in any group: balance by what is labelled"):
        balanced_weights(table(a=[None, None], b=[1, 0]), 'a')


def test_a_draw_by_a_condition_reads_inferred_labels():
    a = BinaryBlock('a')
    flow = Flow('f', a, BinaryBlock('c') | a, infer_labels=True)
    assert {k: v.tolist() for k, v in group_rows(table(a=[None, 0, None], c=[1, None, None]), a & a, flow).items()} == {
        'true': [0],
        'false': [1],
    }
