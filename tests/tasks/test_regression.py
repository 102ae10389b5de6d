"A range that was given: which labels fit it, and which comparisons none of its numbers can make true"

import itertools
import operator
import warnings
import numpy as np, pandas as pd, pytest
from fastai_condmtl.all import (
    BinaryBlock,
    BoundedRegressionBlock,
    CountBlock,
    Flow,
    FlowError,
    UnboundedRegressionBlock,
)

LOW, HIGH = -1.0, 3.0
AT = [-2.0, LOW, 0.5, HIGH, 4.0]
INSIDE = np.linspace(LOW, HIGH, 401)


@pytest.mark.parametrize('op', ['gt', 'ge', 'lt', 'le'])
@pytest.mark.parametrize('bound', AT)
def test_a_comparison_is_an_error_where_no_number_of_the_range_makes_it_true(op, bound):
    x = BoundedRegressionBlock('x', y_range=(LOW, HIGH)).bind(pd.DataFrame(dict(x=[0.0])))
    if getattr(operator, op)(INSIDE, bound).any():
        assert x.parse_question(op, bound) == [bound]
    else:
        with pytest.raises(FlowError, match=r"x .* is never true: y_range=\(-1.0, 3.0\)"):
            x.parse_question(op, bound)


@pytest.mark.parametrize('bounds', [*itertools.combinations_with_replacement(AT, 2)])
def test_an_interval_beside_the_range_is_an_error(bounds):
    x = BoundedRegressionBlock('x', y_range=(LOW, HIGH)).bind(pd.DataFrame(dict(x=[0.0])))
    if ((INSIDE >= bounds[0]) & (INSIDE <= bounds[1])).any():
        assert x.parse_question('between', bounds) == list(bounds)
    else:
        with pytest.raises(FlowError, match='never true'):
            x.parse_question('between', bounds)


def test_a_range_that_was_learnt_refuses_no_comparison():
    x = BoundedRegressionBlock('x').bind(pd.DataFrame(dict(x=[LOW, HIGH])))
    assert (x.y_range, x.parse_question('gt', 9)) == ((LOW, HIGH), [9.0])


@pytest.mark.parametrize('dtype', ['f4', 'f8'])
def test_ends_of_the_range_are_labels(dtype):
    "A column of float32 holds .1 as .10000000149; what is further off is an error that names its row"
    df = pd.DataFrame(dict(x=np.array([0.1, 0.7, np.nan], dtype=dtype)))
    flow = Flow('f', BoundedRegressionBlock('x', y_range=(0.1, 0.7)))
    y = flow.bind(df).encode(df)
    assert y[:, 1, 0].tolist() == [1, 1, 0]
    np.testing.assert_allclose(y[:2, 0, 0], [0, 1], atol=1e-6)
    df.loc[2, 'x'] = 0.7001
    with pytest.raises(FlowError, match=r"task 'x', row 2, column 'x'.*outside y_range=\(0.1, 0.7\)"):
        flow.bind(df).encode(df)


@pytest.mark.parametrize('value', [0.0, 0.1, -1e9])
def test_a_constant_column_is_standardised_by_one(value):
    df = pd.DataFrame(dict(x=[value] * 7))
    bound = Flow('f', UnboundedRegressionBlock('x')).bind(df)
    assert bound.find('x').std == 1.0
    np.testing.assert_allclose(bound.encode(df)[:, 0, 0], 0, atol=1e-6)


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
