"Tests of core/condition_text"

import pytest
from fastai_condmtl.all import BinaryBlock, Flow, FlowError, SingleLabelBlock, task


def test_long_conditions_are_read_back_or_not_written():
    k = SingleLabelBlock('k')
    for values in (
        [f'a-b-i.{i}' for i in range(3000)],
        [-i - 0.5 for i in range(3000)],
        ['~&([' * 50 for _ in range(30)],
    ):
        flow = Flow('f', k, BinaryBlock('z') | k.isin(values))
        assert Flow.from_json(flow.to_json()).tasks[1].given == flow.tasks[1].given
    deep = task('a')
    for _ in range(600):
        deep = ~deep
    with pytest.raises(FlowError, match="of 'z'.*too long"):
        Flow('f', BinaryBlock('a'), BinaryBlock('z') | deep).to_json()
