"""What `learn.load` makes of a file whose outputs are other tasks or classes than those of the learner"""

import io
import re

import numpy as np
import pandas as pd
import pytest
import torch

from fastai_condmtl.tabular.all import *
from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders, conditional_tabular_learner

rng = np.random.default_rng(0)
DF = pd.DataFrame(dict(x=rng.normal(size=40), a=rng.integers(0, 2, 40), b=rng.integers(0, 2, 40)))
DF['kind'] = rng.choice(['u', 'v'], 40)
DF['other'] = DF['b']


def learner(*tasks, folder):
    dls = ConditionalTabularDataLoaders.from_df(DF, Flow('f', *tasks), cont_names=['x'], bs=8, seed=0)
    return conditional_tabular_learner(dls, [4], path=folder, tune=None)


def a_b(kinds=('u', 'v')):
    return BinaryBlock('a'), BinaryBlock('b'), SingleLabelBlock('kind', vocab=list(kinds))


def outputs(learn):
    return {path: learn.get_preds()[0][:, s.acts] for path, s in learn.dls.flow.slices.items()}


@pytest.mark.filterwarnings('error::UserWarning')
@pytest.mark.parametrize('with_opt', [True, False])
def test_the_same_tasks_load(tmp_path, with_opt):
    one, other = learner(*a_b(), folder=tmp_path), learner(*a_b(), folder=tmp_path)
    with one.no_bar(), other.no_bar():
        one.create_opt()
        one.save('m', with_opt=with_opt)
        other.load('m', with_opt=with_opt)
        for path, acts in outputs(one).items():
            torch.testing.assert_close(acts, outputs(other)[path])
    assert not one.model._state_dict_hooks and not other.model._load_state_dict_pre_hooks


def test_tasks_in_another_order_are_an_error_and_nothing_is_loaded(tmp_path):
    a, b, kind = a_b()
    one, other = learner(a, b, kind, folder=tmp_path), learner(b, a, kind, folder=tmp_path)
    before = {name: x.clone() for name, x in other.model.state_dict().items()}
    one.save('m')
    buffer = io.BytesIO()
    one.save(buffer, with_opt=False)
    buffer.seek(0)
    says = 'the tasks of the file stand in another order (a, b, kind) than here (b, a, kind)'
    for file in ('m', buffer):
        with pytest.raises(FlowError, match=re.escape(says)):
            other.load(file, with_opt=False)
    assert all(torch.equal(x, before[name]) for name, x in other.model.state_dict().items())
    assert not other.model._load_state_dict_pre_hooks


def test_classes_in_another_order_are_an_error(tmp_path):
    one, other = learner(*a_b(), folder=tmp_path), learner(*a_b('vu'), folder=tmp_path)
    one.save('m')
    says = "the classes of task 'kind' of the file stand in another order (u, v) than here (v, u)"
    with pytest.raises(FlowError, match=re.escape(says)):
        other.load('m')


def test_a_task_of_another_name_is_told(tmp_path):
    a, b, kind = a_b()
    one, other = learner(a, b, kind, folder=tmp_path), learner(a, BinaryBlock('other'), kind, folder=tmp_path)
    one.save('m')
    with pytest.warns(FlowWarning, match="of the tasks 'a', 'b', 'kind', and this learner's are 'a', 'other', 'kind'"):
        other.load('m')
    torch.testing.assert_close(list(other.model.parameters()), list(one.model.parameters()))


@pytest.mark.filterwarnings('error::UserWarning')
def test_files_of_fastai_load_and_ours_load_there(tmp_path):
    "The file of a stock `torch.save` says nothing of tasks; a plain network takes the weights of ours"
    one, other = learner(*a_b(), folder=tmp_path), learner(*reversed(a_b()), folder=tmp_path)
    one.save('m', with_opt=False)
    state = torch.load(tmp_path / 'models' / 'm.pth', weights_only=True)
    other.model.load_state_dict(state)
    torch.save({**state}, tmp_path / 'models' / 'plain.pth')
    other.load('plain', with_opt=False)
