"Tests of evaluate/calibrate"

import pandas as pd
import pytest
import torch
from fastai_condmtl.loss.conditional import ConditionalLoss
from scaled_logits import learner, quiet


def test_temperatures_of_the_learners_own_loss_are_scored():
    learn = learner(s=4.0)
    learn.loss_func = ConditionalLoss(learn.dls.flow)
    quiet(learn, 'search_thresholds')
    before = quiet(learn, 'evaluate', metrics=('recall', 'f1'))
    assert quiet(learn, 'calibrate').temperature.max() > 2
    pd.testing.assert_frame_equal(
        pd.DataFrame(quiet(learn, 'evaluate', metrics=('recall', 'f1'))), pd.DataFrame(before), rtol=1e-5
    )


def test_temperatures_do_not_outlive_their_weights():
    learn = learner(s=6.0)
    quiet(learn, 'search_thresholds')
    raw = {p: t.clone() for p, t in learn.loss_func.thresholds.items()}
    quiet(learn, 'calibrate')
    assert learn.loss_func.temperatures
    with pytest.warns(UserWarning, match='calibrate'):
        quiet(learn, 'fit', 1)
    assert not learn.loss_func.temperatures
    for p, t in raw.items():
        torch.testing.assert_close(learn.loss_func.thresholds[p], t, atol=1e-4, rtol=1e-3)
