"""No argument that takes a number takes `True`, NaN, infinity or text for one: all blocks, and what core and tasks
offer"""

import pytest

from fastai_condmtl.all import *
from fastai_condmtl.core.arguments import check_number, check_share, check_whole

KINDS = {
    'binary': BinaryBlock,
    'multi_label': MultiLabelBlock,
    'single_label': SingleLabelBlock,
    'ordinal': OrdinalBlock,
    'bounded': BoundedRegressionBlock,
    'unbounded': UnboundedRegressionBlock,
    'count': CountBlock,
    'keypoints': KeypointsBlock,
    'box': BoxBlock,
}
NO_NUMBERS = (True, float('nan'), float('inf'), '3')
OF_ALL = ('weight', 'hidden')
OF_KINDS = {
    'binary': dict(threshold=None, pos_weight=None, gamma=dict(loss='focal'), alpha=dict(loss='focal')),
    'multi_label': dict(threshold=None, pos_weight=None, gamma=dict(loss='focal'), alpha=dict(loss='focal')),
    'single_label': dict(label_smoothing=None, gamma=dict(loss='focal')),
    'keypoints': dict(n_points=None),
}
ARGUMENTS = [(kind, argument, {}) for kind in KINDS for argument in OF_ALL] + [
    (kind, argument, others or {}) for kind, arguments in OF_KINDS.items() for argument, others in arguments.items()
]


@pytest.mark.parametrize('value', NO_NUMBERS, ids=str)
@pytest.mark.parametrize('kind, argument, others', ARGUMENTS)
def test_blocks(kind, argument, others, value):
    with pytest.raises(FlowError, match=rf"task 'x'.*{argument}="):
        KINDS[kind]('x', **{argument: value}, **others)


@pytest.mark.parametrize('value', NO_NUMBERS, ids=str)
@pytest.mark.parametrize('kind, arguments', [('bounded', dict(y_range=1)), ('single_label', dict(class_weights=1))])
def test_pairs_and_lists(kind, arguments, value):
    (argument,) = arguments
    with pytest.raises(FlowError, match=rf"task 'x'.*{argument}="):
        KINDS[kind]('x', **{argument: (0.5, value)})


@pytest.mark.parametrize('value', NO_NUMBERS, ids=str)
@pytest.mark.parametrize('check', [check_number, check_whole, check_share])
def test_checks(check, value):
    with pytest.raises(FlowError, match="task 'x': size=.* must be"):
        check('size', value, who="task 'x'")


@pytest.mark.parametrize('value', [float('nan'), '3'], ids=str)
def test_conditions(value):
    "A number is compared with numbers; infinity is one, as a bound"
    with pytest.raises(FlowError, match='not a number to compare with'):
        UnboundedRegressionBlock('x') > value
