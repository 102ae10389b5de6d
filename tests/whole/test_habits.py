"""What users of stock fastai write out of habit ends as there, or in an error that says what to write; the page
of the site runs the rest."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.mixup import MixUp
from fastai.interpret import Interpretation
from fastai.layers import SigmoidRange
from fastai.losses import (
    BCEWithLogitsLossFlat,
    CrossEntropyLossFlat,
    FocalLoss,
    FocalLossFlat,
    LabelSmoothingCrossEntropy,
    LabelSmoothingCrossEntropyFlat,
    MSELossFlat,
)
from fastai.tabular.all import tabular_learner
from fastai.text.all import AWD_LSTM, language_model_learner, text_classifier_learner
from fastai.vision.all import (
    BBoxBlock,
    CategoryBlock,
    Learner,
    MultiCategoryBlock,
    PointBlock,
    RegressionBlock,
    load_learner,
    vision_learner,
)
from PIL import Image
from torch import nn

from fastai_condmtl.all import *
from fastai_condmtl.callback.checks import last_activation, why_not_loss
from fastai_condmtl.tabular.all import *
from fastai_condmtl.text.all import *
from fastai_condmtl.vision.all import *

N = 20
THERE = BinaryBlock('there')
FLOW = Flow('f', THERE, SingleLabelBlock('kind') | THERE, UnboundedRegressionBlock('mass'))


@pytest.fixture(scope='module')
def df():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        dict(
            img=[f'{i}.png' for i in range(N)],
            x=rng.normal(size=N),
            text=['good food', 'bad food'] * (N // 2),
            there=[1, 0] * (N // 2),
            kind=list('uv') * (N // 4) + list('vu') * (N // 4),
            mass=rng.normal(size=N),
        )
    )


@pytest.fixture(scope='module')
def path(tmp_path_factory, df):
    path = tmp_path_factory.mktemp('habits')
    for i, f in enumerate(df.img):
        Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(path / f)
    return path


def small(**kwargs):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))


def silent(*_):
    "Logs nothing"


def quiet(learn):
    if hasattr(learn, 'progress'):
        learn.remove_cb(learn.progress)
    learn.logger = silent
    return learn


@pytest.fixture(params=['pictures', 'table', 'texts'])
def data(request, df, path):
    if request.param == 'pictures':
        dls = ConditionalDataLoaders.from_df(df, FLOW, path=path, fn_col='img', bs=4, seed=0, num_workers=0)
    elif request.param == 'table':
        dls = ConditionalTabularDataLoaders.from_df(df, FLOW, path=path, cat_names=[], cont_names=['x'], bs=4, seed=0)
    else:
        dls = ConditionalTextDataLoaders.from_df(df, FLOW, path=path, bs=4, seed=0, min_freq=1)
    dls.what = request.param
    return dls


@pytest.fixture
def pictures(df, path):
    dls = ConditionalDataLoaders.from_df(df, FLOW, path=path, fn_col='img', bs=4, seed=0, num_workers=0)
    dls.what = 'pictures'
    return dls


def stock(dls, **kwargs):
    "fastai's learner for the kind of input"
    if dls.what == 'table':
        return quiet(tabular_learner(dls, layers=[4], **kwargs))
    if dls.what == 'texts':
        return quiet(text_classifier_learner(dls, AWD_LSTM, pretrained=False, **kwargs))
    return quiet(vision_learner(dls, small, pretrained=False, **kwargs))


def ours(dls, **kwargs):
    "The same by this library"
    if dls.what == 'table':
        return conditional_tabular_learner(dls, layers=[4], **kwargs)
    if dls.what == 'texts':
        return conditional_text_learner(dls, AWD_LSTM, pretrained=False, **kwargs)
    return conditional_vision_learner(dls, small, pretrained=False, **kwargs)


LOSSES = [
    CrossEntropyLossFlat(weight=torch.tensor([1.0, 2.0])),
    BCEWithLogitsLossFlat(),
    MSELossFlat(),
    LabelSmoothingCrossEntropyFlat(),
    LabelSmoothingCrossEntropy(),
    FocalLoss(),
    FocalLossFlat(),
    nn.CrossEntropyLoss(),
    F.cross_entropy,
    partial(F.cross_entropy, label_smoothing=0.1),
]


@pytest.mark.parametrize('loss', LOSSES, ids=range(len(LOSSES)))
def test_a_loss_of_one_target_is_told_before_the_first_step(pictures, loss):
    learn = stock(pictures, loss_func=loss)
    before = [p.clone() for p in learn.model.parameters()]
    with pytest.raises(FlowError, match='leave loss_func= out'):
        learn.fit(1)
    assert all(torch.equal(a, b) for a, b in zip(before, learn.model.parameters()))
    with pytest.raises(FlowError, match='leave loss_func= out'):
        ours(pictures, loss_func=loss)


def test_such_a_loss_is_told_whatever_the_input(data):
    with pytest.raises(FlowError, match='CrossEntropyLossFlat compares one output with one target'):
        stock(data, loss_func=CrossEntropyLossFlat()).fit(1)


def test_a_partial_loss_is_called_by_its_name(pictures):
    assert 'loss_func=cross_entropy ' in why_not_loss(partial(F.cross_entropy, label_smoothing=0.1))


def of_all_logits(pred, y):
    return pred.square().mean()


class OwnLoss(nn.Module):
    def forward(self, pred, y):
        return pred.square().mean()


@pytest.mark.parametrize('loss', [of_all_logits, OwnLoss(), lambda pred, y: pred.mean()])
def test_a_loss_of_ones_own_trains(pictures, loss):
    learn = stock(pictures, loss_func=loss)
    learn.fit(1)
    assert np.isfinite(learn.recorder.losses).all()


def test_the_loss_of_the_flow_trains_also_mixed(data):
    learn = stock(data)
    learn.fit(1)
    if data.what == 'pictures':
        learn.fit(1, cbs=MixUp())
    assert np.isfinite(learn.recorder.losses).all()


def test_a_range_of_all_logits_is_told(data):
    with pytest.raises(FlowError, match='y_range= would squash'):
        stock(data, y_range=(0, 5)).fit(1)
    with pytest.raises(FlowError, match='y_range= would squash'):
        ours(data, y_range=(0, 5))


@pytest.mark.parametrize('last', [nn.Softmax(1), nn.LogSoftmax(1), nn.Sigmoid()])
def test_a_network_that_does_not_end_in_logits_is_told(pictures, last):
    body = nn.Sequential(nn.Flatten(), nn.Linear(192, pictures.c))
    with pytest.raises(FlowError, match=f'ends in {type(last).__name__}'):
        quiet(Learner(pictures, nn.Sequential(body, last))).fit(1)


def test_what_stands_further_inside_is_no_last_layer():
    assert last_activation(nn.Sequential(nn.Sigmoid(), nn.Linear(2, 3))) is None
    assert last_activation(nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), SigmoidRange(0, 1)))).high == 1
    gate = nn.Module()
    gate.first, gate.gate = nn.Linear(2, 3), nn.Sigmoid()  # in which order it runs is not known
    assert last_activation(gate) is None


@pytest.mark.parametrize('n', [1, 9])
def test_a_network_of_another_width_is_told(data, n):
    with pytest.raises(FlowError, match=f'n_out={n}, and the flow needs 4 logits'):
        ours(data, n_out=n)
    learn = stock(data, n_out=n)
    for act in (lambda: learn.fit(1), learn.validate, learn.get_preds):
        with pytest.raises(FlowError, match=f'puts out {n} numbers? a row, and the flow needs 4'):
            act()


def test_the_width_of_the_flow_may_be_written(data):
    assert ours(data, n_out=data.c).dls is data


def test_tta_and_interpretation_hand_on_what_no_loader_reads(data):
    learn = stock(data)
    if data.what != 'table':  # fastai's tta knows no tables
        assert torch.allclose(learn.tta()[0], learn.get_preds()[0], atol=1e-6)  # nothing is drawn by chance here
    interp = Interpretation.from_learner(learn)
    losses, rows = interp.top_losses(3)
    assert len(rows) == 3 and losses.tolist() == sorted(losses.tolist(), reverse=True)
    if data.what == 'pictures':
        interp.plot_top_losses(3)


def test_rows_without_labels_are_not_validated(data, df):
    learn = stock(data, metrics=data.flow.metrics())
    with pytest.raises(FlowError, match='have no labels to compare with'):
        learn.validate(dl=data.test_dl(df[:4]))
    want = learn.validate(dl=data.test_dl(df[:4], with_labels=True))
    assert np.isfinite(want[0]) and learn.validate(dl=df[:4]) == want


def test_the_language_model_of_texts_is_told(df):
    dls = ConditionalTextDataLoaders.from_df(df, FLOW, bs=4, min_freq=1)
    with pytest.raises(FlowError, match='brings its own loss'):
        quiet(language_model_learner(dls, AWD_LSTM, pretrained=False)).fit(1)


LOADERS = [ConditionalDataLoaders, ConditionalTabularDataLoaders, ConditionalTextDataLoaders]


@pytest.mark.parametrize('cls', LOADERS)
@pytest.mark.parametrize(
    'name, says',
    [
        ('label_col', 'columns that the tasks of the flow are named after'),
        ('y_names', 'columns that the tasks'),
        ('y_block', 'the flow is the target'),
        ('label_delim', 'MultiLabelBlock(name, label_delim='),
        ('is_lm', 'MaskedLMBlock'),
        ('get_y', 'the flow reads the columns itself'),
    ],
)
def test_arguments_of_one_target_lead_to_the_flow(df, cls, name, says):
    with pytest.raises(TypeError) as e:
        cls.from_df(df, FLOW, **{name: 'kind'})
    assert f'no argument {name}=' in str(e.value) and says in str(e.value) and str(e.value).endswith('leave it out')


@pytest.mark.parametrize('cls', LOADERS)
def test_the_folder_in_place_of_the_flow_is_told(df, path, cls):
    with pytest.raises(FlowError, match='neither a flow nor a task'):
        cls.from_df(df, path, FLOW)


@pytest.mark.parametrize(
    'cls, names',
    [
        (ConditionalDataLoaders, ['from_folder', 'from_name_func', 'from_name_re', 'from_path_re', 'from_lists']),
        (ConditionalTextDataLoaders, ['from_folder']),
    ],
)
def test_loaders_of_one_label_say_what_to_write(cls, names):
    stock = {ConditionalDataLoaders: 'ImageDataLoaders', ConditionalTextDataLoaders: 'TextDataLoaders'}[cls]
    import fastai.text.all
    import fastai.vision.all

    theirs = getattr(fastai.vision.all, stock, None) or getattr(fastai.text.all, stock)
    assert (
        set(names)
        <= {n for n in vars(theirs) if n.startswith('from_')}
        <= {n for n in dir(cls) if n.startswith('from_')}
    )
    for name in names:
        with pytest.raises(FlowError, match=f'has no {name}.*write from_'):
            getattr(cls, name)('folder', valid='test')


@pytest.mark.parametrize(
    'block, instead',
    [
        (CategoryBlock, 'SingleLabelBlock'),
        (MultiCategoryBlock, 'MultiLabelBlock'),
        (RegressionBlock, 'RegressionBlock'),
        (PointBlock, 'KeypointsBlock'),
        (BBoxBlock, 'BoxBlock'),
    ],
)
def test_blocks_of_one_target_have_counterparts(block, instead):
    with pytest.raises(FlowError, match='neither a block nor a flow') as e:
        Flow('f', block)
    if callable(block) and hasattr(block, '__name__'):
        assert instead in str(e.value) and '0x' not in str(e.value)


@pytest.mark.parametrize('name', ['metrics', 'find', 'slices', 'c', 'paths', 'loss_func'])
def test_what_needs_data_is_asked_of_the_bound_flow(pictures, name):
    assert hasattr(pictures.flow, name) and not hasattr(FLOW, name)
    with pytest.raises(FlowError, match=f'write dls.flow.{name}'):
        getattr(FLOW, name)
    with pytest.raises(AttributeError, match='nonsense'):
        FLOW.nonsense


def test_flows_are_copied_and_pickled_as_ever():
    import copy
    import pickle

    for f in (copy.copy(FLOW), copy.deepcopy(FLOW), pickle.loads(pickle.dumps(FLOW))):
        assert repr(f) == repr(FLOW)


def test_a_loaded_learner_keeps_all_this(pictures, path):
    stock(pictures, metrics=pictures.flow.metrics()).export('habits.pkl')
    with pytest.raises(FlowError, match='no training rows'):
        load_learner(path / 'habits.pkl').fit(1)


REPLACED = """
import sys, types
from fastai.vision.all import *; from fastai.tabular.all import *; from fastai.text.all import *
import fastai.callback.all
def below(c, seen):
    for s in type.__subclasses__(c):
        if s not in seen and s is not type:
            seen.add(s)
            below(s, seen)
    return seen
theirs = ('fastai', 'fastcore', 'fasttransform', 'torch')
before = {c: dict(vars(c)) for c in below(object, set()) if (c.__module__ or '').split('.')[0] in theirs}
from fastai_condmtl.vision.all import *; from fastai_condmtl.tabular.all import *; from fastai_condmtl.text.all import *
def replaced():
    kinds = (types.FunctionType, classmethod, property)
    methods = [(c, k, v) for c, d in before.items() for k, v in d.items() if isinstance(v, kinds)]
    changed = [(c, k) for c, k, v in methods if vars(c).get(k) is not v]
    return sorted(f'{c.__name__}.{k}' for c, k in changed if k != '__abstractmethods__')
now = replaced()
listed = set(stock_methods().method)
assert len(now) > 15 and set(now) <= listed, set(now) - listed
assert all(stock_methods().iloc[:, 1].str.len() > 10)
restore_stock()
assert not replaced(), replaced()
"""


def test_every_replaced_method_is_listed_and_given_back(root):
    "Against the classes of fastai and PyTorch as they were before the import, in a process of its own"
    import os
    import subprocess
    import sys

    env = {**os.environ, 'PYTHONPATH': str(root)}
    res = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', REPLACED], cwd=root, env=env, capture_output=True, text=True
    )
    assert res.returncode == 0, res.stderr[-2000:]


def test_the_page_shows_what_came():
    "Each habit of the page has its outcome in a committed table"
    nb = json.loads(
        (Path(__file__).resolve().parents[2] / 'nbs/tutorials/16_from_stock_fastai.ipynb').read_text(encoding='utf-8')
    )
    text = ''.join(
        ''.join(o.get('data', {}).get('text/markdown', '')) for c in nb['cells'] for o in c.get('outputs', [])
    )
    assert text.count('\n| ') > 100 and text.count('| works') > 50 and 'Learner.predict' in text
