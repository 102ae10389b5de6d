"""What is predicted in the midst of a fit ends it for no callback: each sees, searches, schedules and writes what it
does where nobody looks"""

import pandas as pd, pytest, torch
from fastai.callback.core import Callback
from scaled_logits import learner, quiet
from fastai_condmtl.all import (
    Checkpoint,
    ConditionalTensorBoard,
    EarlyStoppingTasks,
    FlowError,
    SkillRecorder,
    ThresholdSearch,
    WeightSchedule,
    equip,
)

pytestmark = pytest.mark.filterwarnings('ignore')


class Looks(Callback):
    "Evaluates the learner after each epoch, before all others act"

    order = 1

    def after_epoch(self):
        if not hasattr(self.learn, 'gather_preds'):
            self.learn.evaluate()


class Writes(Checkpoint):
    "Notes when it writes"

    def __init__(self, path):
        super().__init__(path, verbose=False)
        self.when = []

    def write(self, epoch, batch, done=False):
        self.when.append((epoch, batch, done))
        super().write(epoch, batch, done)


@pytest.fixture(params=['alone', 'looked at'])
def look(request):
    return [Looks()] if request.param == 'looked at' else []


@pytest.mark.parametrize('metrics', [None, []], ids=['rows of metrics', 'own rows'])
def test_skills_and_thresholds(look, metrics):
    learn = learner(SkillRecorder(), ThresholdSearch(verbose=False), *look, metrics=metrics)
    quiet(learn, 'fit', 3)
    assert len(learn.skill_recorder.skills) == 3 and learn.threshold_search.result is not None


def test_early_stopping_remembers_the_best_epoch(look, monkeypatch):
    learn = learner(EarlyStoppingTasks(patience=2, verbose=False), *look)
    skills = iter([0.5, 0.1, 0.1, 0.1])
    by_path = lambda acc, metric: dict.fromkeys(learn.dls.flow.paths, next(skills))
    monkeypatch.setattr('fastai_condmtl.callback.early_stopping.skill_of_tasks', by_path)
    quiet(learn, 'fit', 4)
    stopper = learn.early_stopping_tasks
    assert (stopper.stopped, stopper.best_epoch, len(stopper.rows)) == (True, 0, 3)


def test_schedules(look):
    learn = learner(*look)
    schedule = WeightSchedule(learn.dls.flow.paths[0], lambda share: share)
    quiet(learn, 'fit', 3, cbs=schedule)
    (weights,) = schedule.hps.values()
    assert len(weights) == 3 * len(learn.dls.train)
    assert torch.equal(learn.loss_func.task_weights(), learn.dls.flow.loss_func.task_weights())


def test_two_schedules_of_different_tasks_are_both_in_force():
    class Weights(Callback):
        def before_fit(self):
            self.seen = []

        def after_loss(self):
            self.seen.append((self.training, self.learn.loss_func.task_weights().tolist()))

    learn = learner(Weights())
    one, other = learn.dls.flow.paths
    own = learn.dls.flow.loss_func.task_weights().tolist()
    quiet(learn, 'fit', 2, cbs=[WeightSchedule(one, lambda share: 2.0), WeightSchedule(other, lambda share: 3.0)])
    assert {tuple(weights) for training, weights in learn.weights.seen if training} == {(2.0, 3.0)}
    assert all(weights == own for training, weights in learn.weights.seen if not training)
    assert learn.loss_func.task_weights().tolist() == own


def test_a_second_checkpoint_would_never_be_written(tmp_path):
    learn = learner(Checkpoint(tmp_path / 'a.pth'), Checkpoint(tmp_path / 'b.pth', every=2))
    with pytest.raises(FlowError, match=r"one file, and there are Checkpoints of '.*a.pth' and '.*b.pth': leave all"):
        quiet(learn, 'fit', 1)


def test_checkpoints(look, tmp_path):
    learn = learner(Writes(tmp_path / 'last.pth'), *look)
    quiet(learn, 'fit', 2)
    assert learn.writes.when == [(1, 0, False), (2, 0, False), (2, 0, True)]


def test_trackers(look, tmp_path):
    pytest.importorskip('tensorboard')
    learn = learner(ConditionalTensorBoard(tmp_path), *look)
    quiet(learn, 'fit', 2)
    assert learn.conditional_tensor_board.batches == 2 * len(learn.dls.train)
    assert not learn.conditional_tensor_board.trained  # it was closed


def test_predictions_put_other_rows_into_the_metrics():
    "The search finds what it finds on the validation rows, and not on those that were predicted last"

    class Predicts(Callback):
        order = 1

        def after_epoch(self):
            if not hasattr(self.learn, 'gather_preds'):
                self.learn.get_preds(ds_idx=0)

    found = []
    for more in ([], [Predicts()]):
        torch.manual_seed(0)
        learn = learner(ThresholdSearch(verbose=False), *more)
        quiet(learn, 'fit', 1)
        found.append(learn.threshold_search.result)
    pd.testing.assert_frame_equal(*found)


def test_an_interrupted_lr_find_does_not_switch_a_tracker_off(tmp_path):
    pytest.importorskip('tensorboard')

    class Stop(Callback):
        def after_pred(self):
            raise KeyboardInterrupt

    learn = learner(ConditionalTensorBoard(tmp_path))
    learn.add_cb(Stop())
    with pytest.raises(KeyboardInterrupt):
        quiet(learn, 'lr_find', show_plot=False)
    learn.remove_cb(Stop)
    quiet(learn, 'fit', 1)
    assert learn.conditional_tensor_board.batches == len(learn.dls.train)


def test_equip_again_leaves_one_search_and_one_balancer():
    learn = learner()
    searches = lambda: [cb.metric for cb in learn.cbs if isinstance(cb, ThresholdSearch)]
    equip(learn)
    equip(learn)
    assert searches() == ['headline']
    equip(learn, tune='f1', balance='dwa')
    assert searches() == ['f1']
    equip(learn, balance='famo')  # the search that was asked for stays
    assert searches() == ['f1'] and type(learn.task_balance.method).__name__ == 'FAMO'
    quiet(learn, 'fit', 1)
