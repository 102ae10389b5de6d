"A learner that is known by heart: two tasks, whose logits stand in the table and are scaled by one number"

import numpy as np
import pandas as pd
import torch
from fastai.vision.all import DataBlock, IndexSplitter, Learner, Transform, TransformBlock
from torch import nn
from fastai_condmtl.all import BinaryBlock, Flow

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
    "Logits `z0`, `z1` and labels `a`, `b` that follow them; `scale`: how sure the labels are of the logits"
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(N, 2)) + [0, shift]
    y = rng.random((N, 2)) < 1 / (1 + np.exp(-z * scale))
    return pd.DataFrame(dict(a=y[:, 0], b=y[:, 1], z0=z[:, 0], z1=z[:, 1])).astype(object)


def learner(*cbs, df=None, dls=None, s=1.0, **kwargs):
    "A learner of `a` and `b | a`, whose logits are those of the table times `s`"
    a = BinaryBlock('a')
    if dls is None:
        dls = DataBlock(
            blocks=(TransformBlock, Flow('f', a, BinaryBlock('b') | a)), get_x=Z(), splitter=IndexSplitter(HALF)
        ).dataloaders(table() if df is None else df, bs=50, num_workers=0)
    return Learner(dls, Scale(s), lr=1e-6, cbs=list(cbs), **{'metrics': dls.flow.metrics(), **kwargs})


def quiet(learn, f, *args, **kwargs):
    "`learn.f(...)` without a bar and a log"
    with learn.no_bar(), learn.no_logging():
        return getattr(learn, f)(*args, **kwargs)
