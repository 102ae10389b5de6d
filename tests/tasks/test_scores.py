"Tests of tasks/scores"

import numpy as np
import pytest
from sklearn import metrics as skm
import fastai_condmtl.all  # noqa: F401  methods of flows and learners
from fastai_condmtl.tasks.scores import binary_score, regression_score


def test_predictions_that_are_not_numbers():
    assert np.isnan(binary_score('roc_auc', [np.nan, 0.5], [0, 1]))


def test_a_constant_truth_has_no_r2():
    assert all(np.isnan(regression_score('r2', np.full(n, 0.2), np.full(n, 0.1))) for n in (1, 3, 6, 10, 100))
    a, b = np.random.default_rng(0).normal(size=(2, 50))
    assert regression_score('r2', a, b) == pytest.approx(skm.r2_score(b, a))
