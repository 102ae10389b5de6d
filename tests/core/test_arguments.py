"""An argument that nothing reads is an error that names what is near; what fastai's own loaders and learners take
is taken."""

import inspect

import numpy as np
import pandas as pd
import pytest
from fastai.data.core import FilteredBase, TfmdDL
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.tabular.core import TabDataLoader
from fastai.text.data import SortedDL
from fastai.text.models.awdlstm import AWD_LSTM
from fastai.vision.all import resnet18
from PIL import Image
from torch import nn

from fastai_condmtl.all import *
from fastai_condmtl.core.arguments import UnknownArgument, arguments_of, check_arguments
from fastai_condmtl.tabular.all import *
from fastai_condmtl.text.all import *
from fastai_condmtl.vision.all import *

N = 12
DF = pd.DataFrame(
    dict(
        img=[f'{i}.png' for i in range(N)],
        x=np.arange(N) / N,
        text=['good food', 'bad'] * (N // 2),
        y=[0, 1] * (N // 2),
    )
)
Y = BinaryBlock('y')


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp('data')
    for f in DF.img:
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(path / f)
    DF.to_csv(path / 'labels.csv', index=False)
    return path


LOADERS = {
    'pictures': lambda p, **kw: ConditionalDataLoaders.from_df(DF, Y, path=p, fn_col='img', **kw),
    'pictures, csv': lambda p, **kw: ConditionalDataLoaders.from_csv(p, Y, fn_col='img', **kw),
    'pictures, function': lambda p, **kw: ConditionalDataLoaders.from_path_func(
        p, [p / f for f in DF.img], lambda f: int(f.stem) % 2, Y, **kw
    ),
    'pictures, functions': lambda p, **kw: ConditionalDataLoaders.from_path_funcs(
        p, [p / f for f in DF.img], dict(y=lambda f: int(f.stem) % 2), Y, **kw
    ),
    'table': lambda p, **kw: ConditionalTabularDataLoaders.from_df(DF[['x', 'y']], Y, **kw),
    'table, csv': lambda p, **kw: ConditionalTabularDataLoaders.from_csv(
        p / 'labels.csv', Y, cat_names=[], cont_names=['x'], **kw
    ),
    'texts': lambda p, **kw: ConditionalTextDataLoaders.from_df(DF, Y, **kw),
    'texts, csv': lambda p, **kw: ConditionalTextDataLoaders.from_csv(p, Y, **kw),
}


def refused(do, name, near=''):
    with pytest.raises(TypeError) as e:
        do()
    text = str(e.value)
    assert isinstance(e.value, FlowError) and f'{name}=' in text and (not near or repr(near) in text), text


@pytest.mark.parametrize('load', LOADERS.values(), ids=LOADERS)
@pytest.mark.parametrize(
    'name, near',
    [
        ('nonsense', ''),
        ('label_col', ''),
        ('valid_column', 'valid_col'),
        ('strattify', 'stratify'),
        ('valididx', 'valid_idx'),
        ('batchsize', 'batch_size'),
        ('val_shufle', ''),
        ('num_worker', 'num_workers'),
    ],
)
def test_loaders_refuse_what_nothing_reads(path, load, name, near):
    refused(lambda: load(path, **{name: 1}), name, near)


@pytest.mark.parametrize('load', LOADERS.values(), ids=LOADERS)
def test_loaders_heed_valid_idx(path, load):
    dls = load(path, valid_idx=[5, 2, 7], bs=2, num_workers=0)
    ds = dls.valid_ds
    assert len(ds) == 3 and len(dls.train_ds) == N - 3
    rows = ds.xs.index.tolist() if hasattr(ds, 'xs') else ds.tls[0].items.index.tolist()
    assert sorted(rows) == [2, 5, 7]


@pytest.mark.parametrize('load', LOADERS.values(), ids=LOADERS)
def test_loaders_take_what_fastai_takes(path, load):
    dls = load(
        path,
        bs=2,
        val_bs=3,
        shuffle=True,
        drop_last=True,
        device='cpu',
        pin_memory=False,
        verbose=False,
        num_workers=0,
        n=8,
        timeout=0,
        persistent_workers=False,
        wif=None,
        val_drop_last=True,
        dl_kwargs=[dict(shuffle=False), dict(bs=1)],
    )
    assert dls.train.bs == 2 and dls.valid.bs == 1 and dls.train.n == 8 and not dls.train.shuffle
    dls.one_batch()
    refused(lambda: load(path, dl_kwargs=[dict(shufle=False), {}]), 'shufle', 'shuffle')
    assert load(path, batch_size=4).train.bs == 4


def test_names_come_from_fastai():
    own = (
        set(inspect.signature(FilteredBase.dataloaders).parameters)
        | set(inspect.signature(DataLoader.__init__).parameters)
        | set(DataLoader._methods) - {'self'}
    )
    assert own - {'self', 'kwargs'} <= arguments_of(FilteredBase.dataloaders, TfmdDL)
    assert {'sort_func', 'res'} <= arguments_of(SortedDL) - arguments_of(TfmdDL) and 'after_batch' in arguments_of(
        TabDataLoader
    )


class OwnDL(TfmdDL):
    def __init__(self, *args, own=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.own = own


def test_a_loader_of_ones_own_brings_its_arguments(path):
    assert LOADERS['pictures'](path, dl_type=OwnDL, own=3, num_workers=0).train.own == 3
    refused(lambda: LOADERS['pictures'](path, own=3), 'own')


@pytest.mark.parametrize('load', ['pictures', 'table', 'texts'])
def test_new_and_test_dl(path, load):
    dls = LOADERS[load](path, bs=2, num_workers=0)
    refused(lambda: dls.test_dl(DF, batchsize=4), 'batchsize', 'batch_size')
    refused(lambda: dls.new(shufle=True), 'shufle', 'shuffle')
    refused(lambda: dls.valid.new(nonsense=True), 'nonsense')
    assert dls.test_dl(DF, bs=4).bs == 4 and dls.new(bs=3).bs == 3 and len(list(dls.balanced('y', seed=0).train))


def test_stock_data_is_left_alone():
    from fastai.data.core import Datasets

    dl = TfmdDL(Datasets(list(range(4)), [[lambda x: x]]), bs=2, num_workers=0)
    assert dl.new(nonsense=1).bs == 2


LEARNERS = {
    'conditional_vision_learner': lambda p, **kw: conditional_vision_learner(
        LOADERS['pictures'](p, num_workers=0), resnet18, pretrained=False, **kw
    ),
    'conditional_tabular_learner': lambda p, **kw: conditional_tabular_learner(LOADERS['table'](p, bs=2), [4], **kw),
    'conditional_text_learner': lambda p, **kw: conditional_text_learner(
        LOADERS['texts'](p, bs=2), AWD_LSTM, pretrained=False, **kw
    ),
    'conditional_lm_learner': lambda p, **kw: conditional_lm_learner(
        LOADERS['texts'](p, bs=2), d_model=8, n_layers=1, n_heads=1, **kw
    ),
    'conditional_image_tabular_learner': lambda p, **kw: conditional_image_tabular_learner(
        LOADERS['pictures'](p, num_workers=0), resnet18, pretrained=False, **kw
    ),
    'equip': lambda p, **kw: equip(Learner(LOADERS['table'](p, bs=2), nn.Linear(1, 1)), **kw),
}


@pytest.mark.parametrize('make', LEARNERS.values(), ids=LEARNERS)
def test_learners_refuse_what_nothing_reads(path, make):
    refused(lambda: make(path, metric='f1_score'), 'metric', 'metrics')
    refused(lambda: make(path, nonsense=1), 'nonsense')


@pytest.mark.parametrize(
    'name, args',
    [
        ('conditional_vision_learner', dict(ps=0.1, wd=0.1, n_in=3, model_dir='m')),
        ('conditional_tabular_learner', dict(emb_szs={}, wd=0.1, model_dir='m')),
        ('conditional_text_learner', dict(drop_mult=0.1, wd=0.1, model_dir='m')),
        ('conditional_lm_learner', dict(wd=0.1, model_dir='m')),
    ],
)
def test_learners_take_what_fastai_takes(path, name, args):
    assert LEARNERS[name](path, **args).wd == 0.1


def test_the_error_is_of_both_kinds():
    with pytest.raises(UnknownArgument) as e:
        check_arguments('f', ['bss'], TfmdDL)
    assert isinstance(e.value, (TypeError, FlowError)) and "'bs'" in str(e.value)
