"Tests of evaluate/interpret"

import numpy as np
import pandas as pd
import torch
from fastai.vision.all import DataBlock, IndexSplitter, Learner, Transform, TransformBlock
from torch import nn
from fastai_condmtl.all import BinaryBlock, ConditionalInterpretation, Flow

N, HALF = 600, list(range(300, 600))


class Z(Transform):
    "Row → the logits that stand in it"

    def __call__(self, r, **kwargs):
        return torch.tensor([r.z0, r.z1], dtype=torch.float32)


class Scale(nn.Module):
    "A model that is known by heart, and can be trained: logits times a number"

    def __init__(self, s=1.0):
        super().__init__()
        self.s = nn.Parameter(torch.tensor(float(s)))

    def forward(self, x):
        return x * self.s


def table(seed=0, shift=-1.5, scale=1.0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(N, 2)) + [0, shift]
    y = rng.random((N, 2)) < 1 / (1 + np.exp(-z * scale))
    return pd.DataFrame(dict(a=y[:, 0], b=y[:, 1], z0=z[:, 0], z1=z[:, 1])).astype(object)


def learner(*cbs, df=None, dls=None, s=1.0, **kwargs):
    a = BinaryBlock('a')
    if dls is None:
        dls = DataBlock(
            blocks=(TransformBlock, Flow('f', a, BinaryBlock('b') | a)), get_x=Z(), splitter=IndexSplitter(HALF)
        ).dataloaders(table() if df is None else df, bs=50, num_workers=0)
    return Learner(dls, Scale(s), lr=1e-6, cbs=list(cbs), **{'metrics': dls.flow.metrics(), **kwargs})


def quiet(learn, f, *args, **kwargs):
    with learn.no_bar(), learn.no_logging():
        return getattr(learn, f)(*args, **kwargs)


def test_an_interpretation_is_of_its_time():
    learn = learner(s=4.0)
    quiet(learn, 'search_thresholds')
    interp = ConditionalInterpretation.from_learner(learn)
    before = interp.confusion_matrix('b')
    quiet(learn, 'calibrate')
    learn.loss_func.thresholds['b'] = torch.tensor([0.9])
    np.testing.assert_array_equal(interp.confusion_matrix('b'), before)
