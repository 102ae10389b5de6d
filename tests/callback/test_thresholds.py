"Tests of callback/thresholds"

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import DataBlock, IndexSplitter, Learner, Transform, TransformBlock, set_seed
from fastai.callback.tracker import SaveModelCallback, TerminateOnNaNCallback
from torch import nn
from fastai_condmtl.all import BinaryBlock, Flow, ThresholdSearch

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


@pytest.mark.parametrize('every', ['fit', 'epoch'])
@pytest.mark.parametrize('metrics', [True, False])
def test_the_training_does_not_notice(every, metrics, tmp_path):
    runs = []
    for cbs in ([], [ThresholdSearch(every=every)]):
        set_seed(0)
        learn = learner(
            SaveModelCallback(fname='best'),
            TerminateOnNaNCallback(),
            *cbs,
            path=tmp_path,
            **({} if metrics else dict(metrics=[])),
        )
        quiet(learn, 'fit_one_cycle', 3, 1e-2)
        runs.append(learn)
    plain, tuned = runs
    assert (
        tuned.recorder.hps.keys() == plain.recorder.hps.keys()
        and tuned.recorder.hps['lr'] == plain.recorder.hps['lr']
        and len(tuned.recorder.hps['lr']) == 18
    )
    drop = (
        slice(None) if every == 'fit' else slice(2)
    )  # after an epoch's search its metrics are those of the new thresholds
    assert (
        [v[drop] for v in tuned.recorder.values] == [v[drop] for v in plain.recorder.values]
        and torch.equal(tuned.model.s, plain.model.s)
        and len(tuned.threshold_search.result) == 2
    )


def test_nan_predictions_cost_no_training():
    learn = learner(ThresholdSearch(), TerminateOnNaNCallback(), s=float('nan'))
    with pytest.warns(UserWarning, match="not searched.*'a'"):
        quiet(learn, 'fit', 1)


def test_an_interrupted_lr_find_does_not_switch_the_search_off():
    class Stop(Exception):
        pass

    learn = learner(ThresholdSearch())

    def stop(*args):
        raise Stop

    forward, learn.model.forward = learn.model.forward, stop
    with pytest.raises(Stop):
        quiet(learn, 'lr_find', show_plot=False)
    learn.model.forward = forward
    for cb in [c for c in learn.cbs if c.name == 'lr_finder']:
        learn.remove_cb(cb)
    quiet(learn, 'fit', 1)
    assert learn.threshold_search.result is not None
