"""Several targets beside a flow are an error where the data is built; what data of one target has is said to
stand elsewhere"""

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.all import ColReader, DataBlock, Datasets, L, RandomSplitter, TransformBlock
from fastai.data.block import CategoryBlock, RegressionBlock
from fastai.interpret import ClassificationInterpretation, Interpretation, SegmentationInterpretation
from fastai.learner import Learner
from fastai.tabular.all import TabularPandas, TabularDataLoaders
from torch import nn

from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.data.target_block import FlowTransform
from fastai_condmtl.tabular.all import *
from fastai_condmtl.text.all import *

DF = pd.DataFrame(dict(x=np.linspace(0, 1, 20), a=[0, 1] * 10, b=[1, 1, 0, 0] * 5, kind=[*'uvwx'] * 5))
FIX = r'one flow, .*Flow\('


class Inputs:
    def __call__(self, r):
        return torch.tensor([float(r['x'])])


def data(*blocks, n_inp=1, **kw):
    return DataBlock(
        blocks=(TransformBlock, *blocks), n_inp=n_inp, get_x=Inputs(), splitter=RandomSplitter(seed=0), **kw
    ).dataloaders(DF, bs=5)


TARGETS = dict(
    two_tasks=lambda: (BinaryBlock('a'), BinaryBlock('b')),
    two_flows=lambda: (Flow('f', BinaryBlock('a')), Flow('g', BinaryBlock('b'))),
    three=lambda: (BinaryBlock('a'), BinaryBlock('b'), SingleLabelBlock('kind')),
    flow_and_stock=lambda: (Flow('f', BinaryBlock('a')), CategoryBlock),
    stock_and_flow=lambda: (CategoryBlock, BinaryBlock('a')),
    number_and_task=lambda: (RegressionBlock, BinaryBlock('a')),
)


@pytest.mark.parametrize('what', TARGETS)
def test_several_targets(what):
    blocks = TARGETS[what]()
    with pytest.raises(FlowError, match=FIX) as e:
        data(
            *blocks,
            get_y=[
                ColReader('kind') if b is CategoryBlock else ColReader('x') if b is RegressionBlock else lambda r: r
                for b in blocks
            ],
        )
    assert f'{len(blocks)} targets' in str(e.value)


def test_a_task_among_the_inputs():
    with pytest.raises(FlowError, match='among the 2 inputs.*' + FIX):
        DataBlock(
            blocks=(TransformBlock, BinaryBlock('a'), BinaryBlock('b')), getters=[Inputs(), lambda r: r, lambda r: r]
        ).dataloaders(DF, bs=5)


def test_data_sets_that_are_built_by_hand():
    with pytest.raises(FlowError, match=FIX):
        Datasets(
            DF,
            [[Inputs()], [FlowTransform(BinaryBlock('a'))], [FlowTransform(BinaryBlock('b'))]],
            n_inp=1,
            splits=[list(range(15)), list(range(15, 20))],
        )


def test_what_has_one_target_goes_on_working():
    assert data(Flow('f', BinaryBlock('a'), BinaryBlock('b'))).c == 2 and data(BinaryBlock('a')).c == 1
    dls = DataBlock(
        blocks=(TransformBlock, TransformBlock, BinaryBlock('a')), n_inp=2, getters=[Inputs(), Inputs(), lambda r: r]
    ).dataloaders(DF, bs=5)
    assert (
        len(dls.one_batch()) == 3
        and len(dls.test_dl(DF[:3]).one_batch()) == 2
        and len(dls.test_dl(DF[:3], with_labels=True).one_batch()) == 3
    )
    stock = DataBlock(
        blocks=(TransformBlock, CategoryBlock, CategoryBlock),
        n_inp=1,
        get_x=Inputs(),
        get_y=[ColReader('kind'), ColReader('a')],
    ).dataloaders(DF, bs=5)
    assert len(stock.vocab) == 2 and len(stock.one_batch()) == 3


@pytest.mark.parametrize(
    'blocks',
    [
        lambda: [BinaryBlock('a'), BinaryBlock('b')],
        lambda: (Flow('f', BinaryBlock('a')), CategoryBlock()),
        lambda: L(BinaryBlock('a'), BinaryBlock('b')),
    ],
)
def test_a_table_with_a_list_of_blocks(blocks):
    with pytest.raises(FlowError, match='one flow'):
        TabularPandas(DF, [], [], ['x'], y_block=blocks())
    with pytest.raises(FlowError, match='one flow'):
        TabularDataLoaders.from_df(DF, procs=[], cat_names=[], cont_names=['x'], y_block=blocks())


@pytest.mark.parametrize(
    'make',
    [
        lambda f: ConditionalTabularDataLoaders.from_df(DF[['x', 'a', 'b']], f),
        lambda f: ConditionalTextDataLoaders.from_df(DF.assign(text='so it is'), f),
    ],
)
@pytest.mark.parametrize(
    'blocks', [lambda: [BinaryBlock('a'), BinaryBlock('b')], lambda: (BinaryBlock('a'), BinaryBlock('b'))]
)
def test_a_loader_with_a_list_of_blocks(make, blocks):
    with pytest.raises(FlowError, match='one flow'):
        make(blocks())


# ---- what fastai has for one target
# -----------------------------------------------------------------------------------
def sources():
    flow = Flow('f', BinaryBlock('a'), SingleLabelBlock('kind'))
    yield 'items', data(flow)
    yield 'table', ConditionalTabularDataLoaders.from_df(DF[['x', 'a', 'kind']], flow, bs=5)


@pytest.mark.parametrize('name', ['vocab', 'categorize', 'multi_categorize'])
@pytest.mark.parametrize('which', [0, 1])
def test_the_classes_are_said_to_be_in_the_flow(name, which):
    dls = list(sources())[which][1]
    learn = Learner(dls, nn.Linear(1, 5))
    for o in (dls, dls.train, dls.valid, dls.train_ds, learn.dls):
        with pytest.raises(AttributeError, match='dls.flow'):
            getattr(o, name)
        assert not hasattr(o, name) and getattr(o, name, 3) == 3
    with pytest.raises(AttributeError) as e:
        dls.nothing_of_this_name
    assert 'dls.flow' not in str(e.value)
    assert dls.flow.find('kind').vocab == [*'uvwx']  # as the error says


def test_words_are_still_a_vocabulary():
    dls = ConditionalTextDataLoaders.from_df(DF.assign(text='so it is'), BinaryBlock('a'), bs=5)
    assert 'xxunk' in dls.vocab and hasattr(dls, 'vocab')


@pytest.mark.parametrize('cls', [ClassificationInterpretation, SegmentationInterpretation])
def test_interpretations_of_one_target(cls):
    learn = Learner(data(BinaryBlock('a')), nn.Linear(1, 1))
    for kw in ({}, dict(dl=learn.dls.valid), dict(ds_idx=0)):
        with pytest.raises(FlowError, match=cls.__name__ + '.*ConditionalInterpretation'):
            cls.from_learner(learn, **kw)


def test_plain_interpretations_go_on_working():
    learn = Learner(data(BinaryBlock('a')), nn.Linear(1, 1))
    with learn.no_bar(), learn.no_logging():
        assert len(Interpretation.from_learner(learn).top_losses(2)[0]) == 2
    stock = DataBlock(
        blocks=(TransformBlock, CategoryBlock), get_x=Inputs(), get_y=ColReader('kind'), splitter=RandomSplitter(seed=0)
    ).dataloaders(DF, bs=5)
    learn = Learner(stock, nn.Linear(1, 4))
    with learn.no_bar(), learn.no_logging():
        assert ClassificationInterpretation.from_learner(learn).confusion_matrix().shape == (4, 4)
