"Tests of callback/early_stopping"

import pickle
import random

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.tracker import SaveModelCallback
from fastai.torch_core import set_seed
from scaled_logits import learner, quiet
from fastai_condmtl.all import EarlyStoppingTasks, FlowError, SkillRecorder, ThresholdSearch
from fastai_condmtl.callback import early_stopping


class Script(Callback):
    "Puts a given number into the network after each epoch's training: its skill is then known"

    order = 1

    def __init__(self, numbers):
        self.numbers = numbers

    def after_train(self):
        with torch.no_grad():
            self.model.s.fill_(self.numbers[self.epoch])


def scripted(monkeypatch, skills, *, n_epochs=None, metrics=True, **kwargs):
    "A learner whose skills after each epoch are `skills` (path → list), and whose weight says the epoch"
    n = len(next(iter(skills.values())))
    stop = EarlyStoppingTasks(**kwargs)
    learn = learner(stop, Script([10.0 + i for i in range(n)]), **({} if metrics else dict(metrics=[])))

    def of_this_epoch(acc, metric=None):
        assert acc.parts  # rows were accumulated
        return {path: values[learn.epoch] for path, values in skills.items()}

    monkeypatch.setattr(early_stopping, 'skill_of_tasks', of_this_epoch)
    quiet(learn, 'fit', n if n_epochs is None else n_epochs)
    return learn, stop


@pytest.mark.parametrize('metrics', [True, False])
def test_it_stops_when_the_last_task_has_stopped(monkeypatch, metrics):
    a = [0.1, 0.5, 0.5, 0.4, 0.4, 0.4, 0.4, 0.9]
    b = [0.0, 0.0, 0.3, 0.302, 0.1, 0.304, 0.2, 0.9]  # at 3 and 5 it is better by less than .005
    learn, stop = scripted(monkeypatch, dict(a=a, b=b), patience=3, metrics=metrics)
    assert learn.epoch == 5 and stop.stopped and len(stop.skills) == 6
    assert stop.best_at == dict(a=1, b=2)
    assert stop.best_epoch == 2 and learn.model.s.item() == 12.0  # the mean of .5 and .3


def test_small_steps_add_up(monkeypatch):
    "A task that rises by .003 an epoch gets better by .005 every other epoch"
    values = [0.003 * i for i in range(12)]
    learn, stop = scripted(monkeypatch, dict(a=values, b=[0.0] * 12), patience=2)
    assert not stop.stopped and learn.epoch == 11 and stop.best_at['a'] == 10
    assert learn.model.s.item() == 21.0  # the last epoch is the best: nothing is put back


def test_a_task_without_rows_is_not_waited_for(monkeypatch):
    nan = float('nan')
    learn, stop = scripted(monkeypatch, dict(a=[0.3, 0.2, 0.2, 0.2], b=[nan] * 4), patience=2)
    assert stop.stopped and learn.epoch == 2 and learn.model.s.item() == 10.0
    assert 'b' not in stop.best_at and 'a' in stop.summary()


def test_no_task_with_rows_stops_nothing(monkeypatch):
    nan = float('nan')
    learn, stop = scripted(monkeypatch, dict(a=[nan] * 4, b=[nan] * 4), patience=1)
    assert not stop.stopped and learn.epoch == 3 and learn.model.s.item() == 13.0


def test_each_fit_starts_anew_and_the_table_goes_on(monkeypatch):
    learn, stop = scripted(monkeypatch, dict(a=[0.9, 0.1, 0.1], b=[0.9, 0.1, 0.1]), patience=2)
    assert stop.stopped and learn.model.s.item() == 10.0
    quiet(learn, 'fit', 1)
    assert not stop.stopped and stop.best_epoch == 0 and len(stop.skills) == 4


def test_the_search_sees_the_weights_that_were_put_back():
    class Worse(Callback):
        order = 1

        def after_train(self):
            with torch.no_grad():
                self.model.s.fill_(1.5 if self.epoch == 0 else -1.0)  # from the second epoch on all is the wrong way

    learn = learner(EarlyStoppingTasks(patience=2), Worse(), ThresholdSearch())
    quiet(learn, 'fit', 9)
    assert len(learn.early_stopping_tasks.skills) == 3 and learn.model.s.item() == 1.5
    alone = learner(s=1.5)
    with alone.no_bar():
        want = alone.search_thresholds()
    assert np.allclose(learn.threshold_search.result.threshold, want.threshold)


def test_the_training_is_the_same_up_to_the_stop():
    plain, watched = learner(), learner(SkillRecorder())
    for learn in (plain, watched):
        set_seed(0)
        learn.dls.train.rng = random.Random(0)
        quiet(learn, 'fit_one_cycle', 3, 1e-2)
    assert torch.equal(plain.model.s, watched.model.s) and plain.recorder.values == watched.recorder.values
    assert list(watched.skill_recorder.skills) == ['a', 'b'] and len(watched.skill_recorder.skills) == 3


def test_only_a_fit_counts(tmp_path):
    learn = learner(EarlyStoppingTasks(), SaveModelCallback(), path=tmp_path)
    quiet(learn, 'validate')
    quiet(learn, 'get_preds')
    quiet(learn, 'lr_find', show_plot=False)
    assert learn.early_stopping_tasks.rows == []
    quiet(learn, 'fit', 2)
    assert len(learn.early_stopping_tasks.rows) == 2


def test_it_leaves_no_rows_and_no_weights_in_an_export():
    learn = learner(EarlyStoppingTasks(), metrics=[])
    quiet(learn, 'fit', 1)
    stop = learn.early_stopping_tasks
    assert stop.weights is None and not stop.acc.parts
    stop.learn = None
    assert pickle.loads(pickle.dumps(stop)).rows == stop.rows


@pytest.mark.parametrize('kwargs', [dict(patience=0), dict(patience=True), dict(patience=2.5), dict(min_delta=-0.1)])
def test_a_wrong_number_is_told(kwargs):
    name, value = next(iter(kwargs.items()))
    with pytest.raises(FlowError, match=f'{name}={value!r} must be'):
        EarlyStoppingTasks(**kwargs)


def test_a_wrong_metric_is_told_before_training():
    learn = learner(EarlyStoppingTasks(metric='f2'))
    with pytest.raises(FlowError, match="has a metric 'f2'"):
        quiet(learn, 'fit', 1)


def test_the_plot_has_a_line_a_task():
    learn = learner(SkillRecorder())
    quiet(learn, 'fit', 2)
    ax = learn.skill_recorder.plot()
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    assert np.allclose(lines['a'], learn.skill_recorder.skills.a) and 'b' in lines
    assert len(learn.skill_recorder.plot(tasks=['b']).lines) == 2
