"Tests of callback/validation_rows"

import pickle

import numpy as np
import pytest
from fastai.callback.core import Callback
from scaled_logits import learner, quiet, table
from fastai_condmtl.all import EarlyStoppingTasks, SkillRecorder, ThresholdSearch, ValidationRows
from fastai_condmtl.evaluate.metrics import TaskMetric


class Seen(ValidationRows):
    "Labels and the number of rows at the end of each epoch"

    order = 60

    def __init__(self):
        self.labels = []

    def after_epoch(self):
        if self.trained:
            self.labels.append(self.acc.packed()[0])


class Passes(Callback):
    "Counts validation batches"

    n = 0

    def after_pred(self):
        self.n += not self.training


@pytest.mark.parametrize('metrics', [True, False])
def test_it_holds_the_labels_of_each_validation_predicted_once(metrics):
    learn = learner(Seen(), Passes(), **({} if metrics else dict(metrics=[])))
    quiet(learn, 'fit', 2)
    assert learn.seen.shared == metrics and learn.passes.n == 2 * len(learn.dls.valid)
    rows = table()[300:]
    want = np.stack([rows.a.astype(float), rows.b.astype(float) * rows.a.astype(float)], 1)
    for labels in learn.seen.labels:
        assert np.array_equal(labels[:, 0] * labels[:, 1], want)


@pytest.mark.parametrize('make', [ThresholdSearch, SkillRecorder, EarlyStoppingTasks])
def test_callbacks_share_the_rows_of_the_metrics(make):
    callback = make()
    learn = learner(callback)
    quiet(learn, 'fit', 1)
    metric = next(m for m in learn.metrics if isinstance(m, TaskMetric))
    assert isinstance(callback, ValidationRows) and callback.acc is metric.acc and callback.acc.parts


def test_metrics_of_another_flow_and_metrics_of_training_alone_are_not_taken():
    learn = learner(Seen(), metrics=learner().dls.flow.metrics())
    quiet(learn, 'fit', 1)
    assert not learn.seen.shared and len(learn.seen.labels[0]) == 300
    learn = learner(Seen())
    learn.recorder.train_metrics, learn.recorder.valid_metrics = True, False
    quiet(learn, 'fit', 1)
    assert not learn.seen.shared and len(learn.seen.labels[0]) == 300


def test_its_own_rows_end_with_the_fit_and_leave_with_no_pickle():
    learn = learner(Seen(), metrics=[])
    quiet(learn, 'fit', 1)
    seen = learn.seen
    assert not seen.acc.parts
    seen.learn, seen.labels = None, []
    assert pickle.loads(pickle.dumps(seen)).acc is None


def test_what_is_no_fit_has_no_rows():
    learn = learner(Seen())
    quiet(learn, 'validate')
    assert learn.seen.labels == [] and not learn.seen.trained
    quiet(learn, 'get_preds')
    assert learn.seen.labels == []
