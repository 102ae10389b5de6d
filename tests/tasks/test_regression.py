"Tests of tasks/regression"

import warnings
import numpy as np
import pandas as pd
import pytest
from fastai_condmtl.all import (
    BinaryBlock,
    BoundedRegressionBlock,
    CountBlock,
    Flow,
    FlowError,
    FlowPrediction,
    UnboundedRegressionBlock,
)


@pytest.mark.parametrize('v', [0.1, 0.2, 0.3, 0.7])
def test_bounds_of_single_precision_columns(v):
    "A column of float32 holds .2 as .20000000298: whatever is said of it, the table and packed labels say the same"
    for dtype in ('f4', 'f8'):
        age, df = (
            BoundedRegressionBlock('age', y_range=(0, 1)),
            pd.DataFrame(dict(age=np.array([0.05, v, 0.9], dtype=dtype), c=[1, 0, 1])),
        )
        for block in (age, BoundedRegressionBlock('age'), UnboundedRegressionBlock('age')):
            for cond, above in (
                (block > v, [False, False, True]),
                (block <= v, [True, True, False]),
                (~(block >= v), [True, False, False]),
                (block.between(v, 1), [False, True, True]),
            ):
                bound = Flow('f', block, BinaryBlock('c') | cond).bind(df)
                y = bound.encode(df)
                got = y[:, 1, 1].tolist()
                assert (
                    bound.false_conditions(y)[:, 1].tolist() == [not a for a in got]
                    and bound.reached(y)[:, 1].tolist() == got
                    and got[::2] == above[::2]
                )
                if dtype == 'f8' or block is age:
                    assert got == above  # on a scale that is that of the column, equal is equal


def test_bounds_beside_large_numbers():
    t, df = (
        UnboundedRegressionBlock('t'),
        pd.DataFrame(dict(t=[0, 1.7e9 + 1, 1.7e9 + 6000, 1.7e9 - 6000], c=[1, 0, 1, 1])),
    )
    bound = Flow('f', t, BinaryBlock('c') | (t > 1.7e9)).bind(df)
    y = bound.encode(df)
    assert y[:, 1, 1].tolist() == [0, 0, 1, 0] and bound.false_conditions(y)[:, 1].tolist() == [
        True,
        True,
        False,
        True,
    ]  # a second is less than float32 tells apart there


@pytest.mark.parametrize(
    'x',
    [
        [37.0, 12, 100],
        [1000.0, 37, 5, 0.5],
        [36.6, 41.25, 39.9, -0.1],
        [0.0, 0, 0],
        [120000.0, 37000, 5000],
        [1e-3, 2e-3, 3.5e-3],
    ],
)
@pytest.mark.parametrize(
    'make',
    [
        lambda x: BoundedRegressionBlock('x'),
        lambda x: BoundedRegressionBlock('x', y_range=(-2 * max(x) - 1, 2 * max(x))),
        lambda x: UnboundedRegressionBlock('x'),
    ],
)
def test_numbers_read_back_as_they_stood(make, x):
    "Labels of few digits are told without the noise of single precision, and no more than that is lost of others"
    df = pd.DataFrame(dict(x=x))
    bound = Flow('f', make(x)).bind(df)
    y, b = bound.encode(df), bound.find('x')
    if max(x) > 0.01 or b.span < 0.01:
        assert [FlowPrediction(bound, r)['x'] for r in y] == x and bound.to_frame(y).x.tolist() == x
    odd = np.random.default_rng(0).uniform(min(x), max(x) + 1e-9, 500)
    assert np.abs(b.digits(odd) - odd).max() <= 5 * b.span * 2.0**-23 and np.isnan(b.digits(np.array([np.nan]))).all()


def test_an_outlier_that_hides_a_bound_is_an_error():
    """Standardised beside 2**64, -3.75 and 6.5 are one number in single precision: which side of a bound they are
    on must not be guessed."""
    a = UnboundedRegressionBlock('a')
    flow = Flow('f', a, BinaryBlock('b') | (a < 0.5))
    df = pd.DataFrame(dict(a=[-3.75, 6.5, 2.0**64], b=[0, 1, 0]))
    with pytest.raises(
        FlowError,
        match=(
            r"task 'a': a condition compares it with 0.5, from which the label .* cannot be told in single "
            r"precision.*outliers"
        ),
    ):
        flow.bind(df).encode(df)
    df.loc[2, 'a'] = 100.0
    assert flow.bind(df).encode(df)[:, 1, 1].tolist() == [1, 0, 0]


# ---- numbers beyond those that people write
def bound_to(block, *cells):
    "The task bound to a column, and the labels that come back from what is packed"
    df = pd.DataFrame(dict(x=cells))
    with warnings.catch_warnings():
        warnings.simplefilter('error', RuntimeWarning)
        flow = Flow('f', block).bind(df)
        return flow.tasks['x'], flow.to_frame(flow.encode(df))['x'].tolist()


@pytest.mark.parametrize('number', [0.0, 5.0, 2.0**53, 1.6e18, 1e300, -1e20])
def test_a_range_of_one_number_has_some_length(number):
    "Beyond 2**53 a number and one more are the same"
    block, back = bound_to(BoundedRegressionBlock('x'), number, number)
    assert block.span > 0 and back == pytest.approx([number] * 2, rel=1e-12)
    flow = Flow('f', x := BoundedRegressionBlock('x'), BinaryBlock('y') | (x <= number))
    df = pd.DataFrame(dict(x=[number], y=[1]))
    assert flow.bind(df).encode(df)[0, 1].tolist() == [1, 1]


def test_a_range_that_is_wider_than_any_number_is_one_error():
    with pytest.raises(FlowError, match="task 'x'.*column 'x'.*use another unit"):
        bound_to(BoundedRegressionBlock('x'), 0.0, 1e308, -1e308)


@pytest.mark.parametrize('cells', [(1e300, 2e300), (1e308, 1.7e308)])
def test_a_scale_beyond_all_numbers_is_one_error_without_a_warning(cells):
    with pytest.raises(FlowError, match='too large to be standardised'):
        bound_to(UnboundedRegressionBlock('x'), *cells)
    with pytest.raises(FlowError, match='a count is 0, 1, 2'):
        bound_to(CountBlock('x'), *cells)
