"Tests of callback/thresholds"

import pytest
import torch
from fastai.vision.all import set_seed
from fastai.callback.tracker import SaveModelCallback, TerminateOnNaNCallback
from fastai_condmtl.all import ThresholdSearch
from scaled_logits import learner, quiet


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
