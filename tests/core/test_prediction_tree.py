"""A tree tells the threshold that decided, where it is not .5"""

import pandas as pd
import pytest
import torch
from fastai.tabular.all import range_of

from fastai_condmtl.all import *
from fastai_condmtl.core.prediction import FlowPrediction
from fastai_condmtl.tabular.all import *

TABLE = pd.DataFrame(dict(a=range(8), work=[1, 0] * 4, tags=['p,q', 'p', 'q', ''] * 2, word=['open', 'shut'] * 4))


@pytest.fixture(scope='module')
def bound():
    tasks = BinaryBlock('work'), MultiLabelBlock('tags'), BinaryBlock('word', vocab=('shut', 'open'))
    return Flow('f', *tasks).bind(TABLE)


def line(bound, path, acts, thresholds, decided):
    packed = torch.stack([torch.tensor(decided), torch.ones(4)])
    tree = FlowPrediction(bound, packed, torch.tensor(acts), thresholds=thresholds).tree()
    return tree[path].tag


@pytest.mark.parametrize(
    'path, thresholds, told',
    [
        ('work', None, 'work: yes (0.25)'),
        ('work', {'work': torch.tensor(0.5)}, 'work: yes (0.25)'),
        ('work', {'work': torch.tensor([0.2])}, 'work: yes (0.25, yes above 0.20)'),
        ('work', {'work': 0.2}, 'work: yes (0.25, yes above 0.20)'),
        ('word', {'word': 0.8}, 'word: shut (0.30, open above 0.80)'),
        ('tags', {'tags': torch.tensor([0.1, 0.5])}, 'tags: p 0.15 (above 0.10), q 0.90'),
        ('tags', {'tags': 0.1}, 'tags: p 0.15 (above 0.10), q 0.90 (above 0.10)'),
        ('tags', {'work': 0.1}, 'tags: p 0.15, q 0.90'),
    ],
)
def test_the_threshold_is_told_where_it_is_not_half(bound, path, thresholds, told):
    assert line(bound, path, [0.25, 0.15, 0.9, 0.7], thresholds, [1.0, 1, 1, 0]) == told


def test_explain_and_predict_tell_it_as_loss_func_has_it():
    flow = Flow('f', BinaryBlock('work'))
    dls = ConditionalTabularDataLoaders.from_df(TABLE, flow, cont_names=['a'], valid_idx=range_of(TABLE)[4:], bs=4)
    learn = conditional_tabular_learner(dls, layers=[4], tune=None)
    with learn.no_bar():
        assert 'above' not in str(learn.explain(TABLE[:2])) + str(learn.predict(TABLE.iloc[0])[0].tree())
        learn.loss_func.thresholds['work'] = 0.125
        for text in (str(learn.explain(TABLE[:2])), str(learn.predict(TABLE.iloc[0])[0].tree())):
            assert 'yes above 0.12' in text
