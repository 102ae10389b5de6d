"Tests of core/bound"

import numpy as np
import pandas as pd
import pytest
import torch
import warnings
from fastai_condmtl.tasks.binary import BinaryBlock
from fastai_condmtl.tasks.regression import BoundedRegressionBlock, UnboundedRegressionBlock
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.tasks.multi_label import MultiLabelBlock
from fastai_condmtl.tasks.single_label import SingleLabelBlock
from fastai_condmtl.core.target import TensorConditional
from fastai_condmtl.core.conditions import task
from fastai_condmtl.all import FlowPrediction
from fastai_condmtl.data.sampling import group_rows

A, B, C = map(BinaryBlock, 'abc')


def says(text, f, *args, error=FlowError):
    "`f(*args)` is refused in just these words, or in words that begin so."
    with pytest.raises(error) as e:
        f(*args)
    assert str(e.value).startswith(text), str(e.value)


# ---- target: binding
# -------------------------------------------------------------------------------------------------------
WEIGHED = pd.DataFrame(
    dict(
        a=[1, 0, 1, None, 1],
        b=[1, 1, 0, 1, None],
        p=[1, 0, None, 1, 1],
        q=[0, 1, 1, None, 1],
        n=[1.0, 2.0, None, 4.0, 5.0],
        w=[2.0, 0.5, 0.0, 3.0, 1.0],
    )
)


def weighed(**kw):
    return Flow(
        'f',
        A,
        BinaryBlock('b') | A,
        MultiLabelBlock('m', cols=['p', 'q']),
        UnboundedRegressionBlock('n'),
        **{'weight_col': 'w', **kw},
    )


def test_what_cannot_be_bound():
    f, df = weighed(), WEIGHED
    says("flow 'f' met an empty table: hand over at least one row", f.bind, df[:0])
    says("flow 'f': train_idx goes beyond the 5 rows", f.bind, df, [0, 5])
    says("task 'a' reads column 'a', which the table does not have", f.bind, df.drop(columns='a'))
    says("task 'm' reads column 'q', which stands 2 times in the table", f.bind, pd.concat([df, df[['q']]], axis=1))
    says(
        "task 'a' reads the weights of its rows from column 'w', which the table does not have",
        f.bind,
        df.drop(columns='w'),
    )
    says(
        "task 'a' reads the weights of its rows from column 'w', which stands 2 times",
        f.bind,
        pd.concat([df, df[['w']]], axis=1),
    )
    says(
        "task 'g.b' reads the weights of its rows from column 'v'", Flow('f', A, Flow('g', B, weight_col='v')).bind, df
    )
    says("asked for task 'nope', which the flow does not have", f.bind(df).find, 'nope')


def test_found_by_path_or_leaf():
    bound = Flow('f', A, Flow('g', B, Flow('h', C))).bind(pd.DataFrame(dict(a=[1, 0], b=[1, 0], c=[0, 1])))
    assert (
        bound.find('c') is bound.tasks['g.h.c'] is bound.find('h.c')
        and bound.path('b') == 'g.b'
        and bound.path('g.b') == 'g.b'
    )


def test_blanks_of_a_source_without_the_column():
    tags = MultiLabelBlock('tags', nan_is_empty=True)
    df = pd.DataFrame(dict(tags=['x', None]))
    df.attrs['lacks'] = {'tags': ['second', 'third'], 'other': ['first']}
    says(
        (
            "task 'tags' reads a blank in column 'tags' as \"none of the labels\" (nan_is_empty=True), and source "
            "'second' and 'third' has no such column"
        ),
        Flow('f', tags).bind,
        df,
    )
    assert Flow('f', MultiLabelBlock('tags')).bind(df).encode(df)[:, 1].tolist() == [[1], [0]]
    df.attrs['lacks'] = {'other': ['first']}
    assert Flow('f', tags).bind(df).encode(df)[:, 1].tolist() == [[1], [1]]


def test_tasks_are_laid_out_by_family_wide_ones_first():
    "Logits: sigmoid tasks first, of these those with many columns; activations and targets in the order written."
    df = pd.DataFrame(dict(k=['x', 'y', 'z'], a=[1, 0, 1], n=[1.0, 2.0, 3.0], p=[1, 0, 1], q=[1, 1, 0], b=[1, 0, 0]))
    bound = Flow(
        'f', SingleLabelBlock('k'), A, UnboundedRegressionBlock('n'), MultiLabelBlock('m', cols=['p', 'q']), B
    ).bind(df)
    assert [(f.tasks, f.columns, f.n_out) for f in bound.families] == [
        ((3, 1, 4), (3, 4, 1, 5), 1),
        ((0,), (0,), 3),
        ((2,), (2,), 1),
    ]
    assert [(s.targets, s.logits, s.acts) for s in bound.slices.values()] == [
        (slice(0, 1), slice(4, 7), slice(0, 3)),
        (slice(1, 2), slice(2, 3), slice(3, 4)),
        (slice(2, 3), slice(7, 8), slice(4, 5)),
        (slice(3, 5), slice(0, 2), slice(5, 7)),
        (slice(5, 6), slice(3, 4), slice(7, 8)),
    ]
    assert (bound.n_targets, bound.c, bound.target_slices) == (6, 8, [s.targets for s in bound.slices.values()])


def test_balanced_weights_are_counted_from_training_rows():
    """Positives weigh as much as negatives, by rows that train (and by their weight); tasks of one weight stay
    one family."""
    df = pd.DataFrame(dict(a=[1, 0, 0, 0, 1, 1], k=['x', 'x', 'x', 'y', 'y', 'y'], w=[1.0, 1.0, 1.0, 3.0, 1.0, 1.0]))
    flow = lambda **kw: Flow(
        'f', BinaryBlock('a', pos_weight='balanced'), SingleLabelBlock('k', class_weights='balanced'), **kw
    )
    bound = flow().bind(df, [0, 1, 2, 3])
    assert bound.tasks['a'].pos_weight == pytest.approx([3]) and np.divide(
        *bound.tasks['k'].class_weights
    ) == pytest.approx(1 / 3)
    assert bound.families[1].n_out == 2 and any(
        bound.tasks['k'].class_weights == part for part in bound.plan.blocks[1].family
    )
    assert flow(weight_col='w').bind(df, [0, 1, 2, 3]).tasks['a'].pos_weight == pytest.approx([5])
    assert BinaryBlock('a', pos_weight='balanced').pos_weight == 'balanced'
    n = Flow('f', UnboundedRegressionBlock('w')).bind(df, [0, 3]).tasks['w']
    assert (n.mean, n.std) == pytest.approx((2, 1)) and Flow('f', UnboundedRegressionBlock('w')).bind(df).tasks[
        'w'
    ].mean == pytest.approx(8 / 6)


# ---- target: encoding
# ------------------------------------------------------------------------------------------------------
def test_weights_of_rows_are_in_the_mask():
    "By hand: the weight where a label counts, 0 where it does not; b counts where a is 1."
    y = weighed().bind(WEIGHED).encode(WEIGHED)
    assert (
        y.mask.tolist() == [[2, 2, 2, 2, 2], [0.5, 0, 0.5, 0.5, 0.5], [0, 0, 0, 0, 0], [0, 0, 3, 0, 3], [1, 0, 1, 1, 1]]
        and y[:, 1].tolist() == y.mask.tolist()
    )
    assert (
        y.vals[:, :4].tolist() == [[1, 1, 1, 0], [0, 1, 0, 1], [1, 0, 0, 1], [0, 1, 1, 0], [1, 0, 1, 1]]
        and y.dtype == torch.float32
    )
    assert y.vals[:, 4].tolist() == pytest.approx([-2 / 2.5**0.5, -1 / 2.5**0.5, 0, 1 / 2.5**0.5, 2 / 2.5**0.5])


def test_a_weight_may_be_blank_where_nothing_counts():
    f, df = Flow('f', BinaryBlock('a'), weight_col='w'), WEIGHED[['a', 'w']].assign(w=[2.0, 0.5, 0.0, None, 1.0])
    assert f.bind(df).encode(df)[:, 1, 0].tolist() == [2, 0.5, 0, 0, 1]
    for bad in (None, -0.1, -3.0, 3.1e38):
        wrong = df.assign(w=[2.0, 0.5, bad, 1.0, 1.0])
        with pytest.raises(
            FlowError,
            match=r"^task 'a', row 2, column 'w', value .*: the weight of a row must be a number that is not negative",
        ):
            f.bind(df).encode(wrong)
    far = df.assign(w=[0.0, 0.5, 2.9e38, 1.0, 1.0])
    assert f.bind(far).encode(far)[:, 1, 0].tolist() == [0, 0.5, np.float32(2.9e38), 0, 1]


def test_columns_that_new_rows_lack():
    df = WEIGHED.assign(tags=['x', None, 'y', None, 'x,y'])
    bound = Flow('f', *weighed().tasks, MultiLabelBlock('tags', nan_is_empty=True), weight_col='w').bind(df)
    whole = bound.encode(df)
    for gone, cols, names in (
        (['a'], [0, 1], "'a'"),
        (['b', 'n'], [1, 4], "'b', 'n'"),
        (['q'], [3], "'q'"),
        (['tags'], [5, 6], "'tags'"),
    ):
        with pytest.warns(UserWarning, match=f"^no column {names} in the table: its labels count as missing$"):
            y = bound.encode(df.drop(columns=gone), missing_ok=True)
        kept = [c for c in range(7) if c not in cols]
        assert (
            torch.equal(y[..., kept], whole[..., kept])
            and not y[:, 1, cols].any()
            and not y[:, 0, [c for c in cols if c != 1 or 'b' in gone]].any()
        )
        says(
            f"task '{'m' if gone == ['q'] else gone[0]}' reads column '{gone[0]}', which the table does not have",
            bound.encode,
            df.drop(columns=gone),
        )
    assert torch.equal(bound.encode(df.drop(columns='w'), missing_ok=True), bound.encode(df.assign(w=1.0)))
    says(
        "task 'a' reads the weights of its rows from column 'w', which the table does not have",
        bound.encode,
        df.drop(columns='w'),
    )
    odd = Flow('f', BinaryBlock('a', col=7), B).bind(pd.DataFrame({7: [1, 0], 'b': [1, 0]}))
    with pytest.warns(UserWarning, match='^no column 7 '):
        y = odd.encode(pd.DataFrame(dict(b=[1, 0]), index=[5, 5]), missing_ok=True)
    assert y.tolist() == [[[0, 1], [0, 1]], [[0, 0], [0, 1]]]


@pytest.mark.parametrize(
    'mode, call, want',
    [
        (False, {}, [[0, 0], [1, 1]]),
        (True, {}, [[0, 1], [1, 1]]),
        (True, dict(inferred=True), [[1, 1], [1, 1]]),
        ('train', {}, [[1, 1], [1, 1]]),
        ('train', dict(inferred=True), [[1, 1], [1, 1]]),
    ],
)
def test_a_label_implies_its_condition(mode, call, want):
    df = pd.DataFrame(dict(a=[None, 1], b=[1, 0]))
    y = Flow('f', A, BinaryBlock('b') | A, infer_labels=mode).bind(df).encode(df, **call)
    assert y.mask.tolist() == want and y.vals[0].tolist() == [float(want[0][0]), 1]


def test_what_float32_cannot_hold():
    "A label that is a number, but none on the scale of the loss."
    bound = Flow('f', Flow('g', UnboundedRegressionBlock('n'))).bind(pd.DataFrame(dict(n=[1.0, 2.0, 3.0])))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(
            FlowError,
            match=(
                r"^task 'g\.n', row 1, column 'n', value 1e\+200: on the scale of the loss this is more than float32 "
                r"holds"
            ),
        ):
            bound.encode(pd.DataFrame(dict(n=[None, 1e200, 3.0])))


def test_what_the_trivial_predictor_learns():
    "Counted by rows, whatever their weight."
    bound = weighed().bind(WEIGHED)
    bound.learn_constants(bound.encode(WEIGHED))
    assert set(bound.constants) == {'a', 'b', 'm', 'n'} and [bound.constants[p].tolist() for p in 'abm'] == [
        pytest.approx([2 / 3]),
        pytest.approx([1.0]),
        pytest.approx([0.75, 2 / 3]),
    ]
    z = (np.array([1, 2, 4, 5]) - 3) / 2.5**0.5
    assert bound.constants['n'] == pytest.approx((z.mean(), np.median(z)), abs=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        bound.learn_constants(bound.encode(WEIGHED[:1]))
        with pytest.raises(UserWarning, match=r"^no training row counts for 'b', 'n' \(not labelled"):
            bound.learn_constants(bound.encode(WEIGHED.assign(n=[None] * 5)[1:2]))


# ---- target: reading
# ------------------------------------------------------------------------------------------------------
def test_back_to_units():
    df = pd.DataFrame(dict(k=['x', 'y', 'z'], r=[10.0, 15.0, 20.0], n=[0.0, 0.0, 3.0]))
    bound = Flow(
        'f', SingleLabelBlock('k'), BoundedRegressionBlock('r', y_range=(10, 30)), UnboundedRegressionBlock('n')
    ).bind(df)
    y = bound.encode(df)
    back = bound.to_units(y)
    assert (
        type(back) is TensorConditional
        and back.dtype == torch.float32
        and back.shape == y.shape
        and np.allclose(back.vals, [[0, 10, 0], [1, 15, 0], [2, 20, 3]], atol=1e-6)
        and torch.equal(back.mask, y.mask)
        and y.vals[:, 1].tolist() == [0, 0.25, 0.5]
    )
    assert (
        bound.to_units(y.double()).dtype == torch.float64
        and np.allclose(bound.to_units(y[1]).vals, [1, 15, 0], atol=1e-6)
        and bound.to_units(y[None]).shape == (1, 3, 2, 3)
    )


def test_reached_and_known_to_be_false():
    "c counts where a and not b; a row by what is known of a and b."
    df = pd.DataFrame(dict(a=[1, 1, 0, 0, None, None, 1], b=[0, 1, 0, None, 0, 1, None], c=[1] * 7))
    bound = Flow('f', A, B, BinaryBlock('c') | (A & ~B)).bind(df)
    y = bound.encode(df)
    assert bound.false_conditions(y).tolist() == [
        [False, False, v] for v in (False, True, True, True, False, True, False)
    ]
    assert y.mask[:, 2].tolist() == [1, 0, 0, 0, 0, 0, 0]
    vals = torch.tensor([[1.0, 0, 0], [1, 1, 1], [0, 0, 1], [0.6, 0.4, 0]])
    want = [[True, True, v] for v in (True, False, False, True)]
    for given in (
        vals,
        torch.stack([vals, torch.zeros_like(vals)], 1),
        TensorConditional(torch.stack([vals, torch.ones_like(vals)], 1)),
        TensorConditional(vals),
    ):
        got = bound.reached(given)
        assert type(got) is torch.Tensor and got.dtype == torch.bool and got.tolist() == want
    assert bound.reached(vals[:0]).shape == (0, 3) and bound.false_conditions(y[:0]).shape == (0, 3)
    scaled = Flow(
        'f',
        BoundedRegressionBlock('a', y_range=(0, 10)),
        UnboundedRegressionBlock('b'),
        BinaryBlock('c') | ((task('a') >= 1) & (task('b') < 1)),
    ).bind(df)  # asked in the table's units
    assert scaled.false_conditions(scaled.encode(df))[:, 2].tolist() == [False, True, True, True, False, True, False]
    half = Flow('f', A, BinaryBlock('b') | A, weight_col='w').bind(df.assign(w=0.5))
    assert half.false_conditions(half.encode(df.assign(w=0.5))).tolist() == [
        [False, v] for v in (False, False, True, True, False, False, False)
    ]


def test_a_blank_read_as_none_is_no_evidence():
    p = BinaryBlock('p')
    flow = Flow('f', p, MultiLabelBlock('m', nan_is_empty=True) | p, infer_labels='train')
    df = pd.DataFrame(dict(p=[None, None, 1], m=[None, 'x', None]))
    assert flow.bind(df).encode(df)[:, 1].tolist() == [[0, 0], [1, 1], [1, 1]]


def test_an_absent_column_is_missing_whatever_blanks_mean():
    flow = Flow('f', BinaryBlock('b'), MultiLabelBlock('m', nan_is_empty=True))
    bound = flow.bind(pd.DataFrame(dict(b=[1, 0], m=['x', None])))
    with pytest.warns(UserWarning, match="no column 'm'"):
        assert bound.encode(pd.DataFrame(dict(b=[1])), missing_ok=True)[0, 1].tolist() == [1, 0]


def test_tasks_that_share_a_column():
    house = BinaryBlock('house')
    flow = Flow(
        'f',
        house,
        UnboundedRegressionBlock('hp', col='price') | house,
        UnboundedRegressionBlock('cp', col='price') | ~house,
    )
    df = pd.DataFrame(dict(house=[1, 0, 1], price=[3.0, 4.0, 5.0]))
    bound = flow.bind(df)
    assert bound.to_frame(bound.encode(df)).price.tolist() == pytest.approx([3, 4, 5])


def test_a_partly_labelled_row_on_the_way_back():
    flow = Flow('f', MultiLabelBlock('m', cols=['a', 'b']))
    bound = flow.bind(pd.DataFrame(dict(a=[1, 0], b=[np.nan, 1])))
    y = bound.encode(pd.DataFrame(dict(a=[1], b=[np.nan])))
    frame = bound.to_frame(y)
    assert frame.a[0] and pd.isna(frame.b[0])
    both = FlowPrediction(bound, bound.encode(pd.DataFrame(dict(a=[1], b=[1])))[0])
    assert not both.tree(truth=FlowPrediction(bound, y[0]))['m'].data['wrong']  # b is not known: not wrong


def test_columns_that_are_not_there_or_twice():
    df = pd.DataFrame([[1, 2, 3]], columns=['a', 'a', 'b'])
    for make, why in (
        (
            lambda: Flow('f', BinaryBlock('a')).bind(df),
            "task 'a' reads column 'a', which stands 2 times in the table: keep one",
        ),
        (
            lambda: Flow('f', BinaryBlock('b', weight_col='a')).bind(df),
            "the weights of its rows from column 'a', which stands 2 times",
        ),
        (lambda: group_rows(df, 'a'), "column 'a', which stands 2 times"),
        (lambda: group_rows(df, 'bb'), "column 'bb', which the table does not have: did you mean 'b'"),
        (
            lambda: Flow('f', BinaryBlock('b', weight_col='c')).bind(df),
            "column 'c', which the table does not have.*weight_col=",
        ),
    ):
        with pytest.raises(FlowError, match=why):
            make()


def test_rows_without_names_are_read_in_the_order_of_the_tasks():
    flow, rows = Flow('f', BinaryBlock('a'), SingleLabelBlock('k') | task('a')), [(1, 'u'), (0, None), (1, 'v')]
    by_rows, by_table = flow.bind(rows), flow.bind(pd.DataFrame(rows, columns=['a', 'k']))
    assert by_rows.tasks['k'].vocab == by_table.tasks['k'].vocab == ['u', 'v']
    assert torch.equal(by_rows.encode(rows), by_table.encode(rows))
