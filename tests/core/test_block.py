"Tests of core/block"

import numpy as np
import pytest
import torch
from fastai_condmtl.all import BinaryBlock, FlowError, KeypointsBlock, MultiLabelBlock, SingleLabelBlock


def test_scalars_of_numpy_and_torch_are_numbers():
    f4, i8, t = np.float32(2), np.int64(3), torch.tensor(3.0)
    b = BinaryBlock(
        'b',
        weight=f4,
        pos_weight=t,
        hidden=i8,
        threshold=torch.tensor(0.25),
        loss='focal',
        gamma=f4,
        alpha=np.float32(0.5),
    )
    assert (b.weight, b.pos_weight, b.hidden, b.gamma, b.alpha) == (2.0, 3.0, 3, 2.0, 0.5) and all(
        type(v) in (int, float) for v in (b.weight, b.pos_weight, b.hidden, b.gamma, b.alpha)
    )
    assert (
        SingleLabelBlock('s', label_smoothing=np.float32(0.5)).label_smoothing == 0.5
        and KeypointsBlock('p', n_points=i8).n_points == 3
        and MultiLabelBlock('m', pos_weight=t).pos_weight == 3
    )
    with pytest.raises(FlowError, match='weight='):
        BinaryBlock('b', weight=torch.tensor([1.0, 2.0]))
