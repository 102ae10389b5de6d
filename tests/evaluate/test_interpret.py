"Tests of evaluate/interpret"

import numpy as np
import pytest
import torch
from fastai_condmtl.all import ConditionalInterpretation, FlowError
from scaled_logits import learner, quiet, table


def test_an_interpretation_is_of_its_time():
    learn = learner(s=4.0)
    quiet(learn, 'search_thresholds')
    interp = ConditionalInterpretation.from_learner(learn)
    before = interp.confusion_matrix('b')
    quiet(learn, 'calibrate')
    learn.loss_func.thresholds['b'] = torch.tensor([0.9])
    np.testing.assert_array_equal(interp.confusion_matrix('b'), before)


def test_without_rows_that_count_there_is_nothing_to_draw():
    learn = learner()
    interp = ConditionalInterpretation.from_learner(learn, dl=table().assign(a=None, b=None))
    for path, said in (('a', "task 'a'"), (None, 'any task')):
        with pytest.raises(FlowError, match=f'no row counts for {said}: there is nothing to plot'):
            interp.plot_top_losses(path)
    with pytest.raises(FlowError, match="no row counts for task 'b'"):
        interp.plot_confusion_matrix('b')
    with pytest.raises(FlowError, match='max_classes=0 must be a positive number of classes'):
        interp.plot_confusion_matrix('b', max_classes=0)
