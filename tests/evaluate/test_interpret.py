"Tests of evaluate/interpret"

import numpy as np
import torch
from fastai_condmtl.all import ConditionalInterpretation
from scaled_logits import learner, quiet


def test_an_interpretation_is_of_its_time():
    learn = learner(s=4.0)
    quiet(learn, 'search_thresholds')
    interp = ConditionalInterpretation.from_learner(learn)
    before = interp.confusion_matrix('b')
    quiet(learn, 'calibrate')
    learn.loss_func.thresholds['b'] = torch.tensor([0.9])
    np.testing.assert_array_equal(interp.confusion_matrix('b'), before)
