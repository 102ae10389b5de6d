"Tests of evaluate/skill"

import math

import numpy as np
import pytest
from scaled_logits import learner
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from fastai_condmtl.all import FlowError
from fastai_condmtl.evaluate.skill import skill, skill_of_tasks
from fastai_condmtl.learn.accumulate import collect


def rows_of(path, learn):
    "Decided by logit > 0 and labels of a task, of the validation rows that have the label, by hand"
    df = learn.dls.valid.items
    df = df if path == 'f.a' or path == 'a' else df[df.a.astype(bool)]
    name = path[-1]
    return df[dict(a='z0', b='z1')[name]].astype(float).to_numpy(), df[name].astype(bool).to_numpy()


@pytest.mark.parametrize('metric, score', [(None, accuracy_score), ('f1', f1_score), ('auc', roc_auc_score)])
def test_it_is_scikit_learns_score_on_the_way_to_one(metric, score):
    learn = learner()
    with learn.no_bar():
        found = skill_of_tasks(collect(learn), metric)
    train = learn.dls.train.items
    for path, value in found.items():
        logits, labels = rows_of(path, learn)
        counted = train if path == 'a' else train[train.a.astype(bool)]
        most_frequent = counted[path[-1]].astype(float).mean() >= 0.5
        constant = np.full(len(labels), 1.0 if metric == 'f1' else float(most_frequent))
        guess = logits if metric == 'auc' else logits > 0
        trivial = score(labels, constant)
        assert value == pytest.approx((score(labels, guess) - trivial) / (1 - trivial), abs=1e-6)


def test_ends_of_the_scale():
    assert skill(1, 0.4) == 1 and skill(0.4, 0.4) == 0 and skill(0, 3, is_error=True) == 1
    assert skill(3, 3, is_error=True) == 0 and skill(6, 3, is_error=True) == -1
    assert math.isnan(skill(1, 1)) and math.isnan(skill(0, 0, is_error=True)) and math.isnan(skill(math.nan, 0.5))


def test_a_name_that_no_task_has_is_told():
    learn = learner()
    with learn.no_bar(), pytest.raises(FlowError, match="no task of flow 'f' has a metric 'f2'"):
        skill_of_tasks(collect(learn), 'f2')
