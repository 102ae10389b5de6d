"""Inputs of other data go through what the network's own were prepared by: words, categories, means; pictures of
another size"""

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.tabular.all import Categorify, FillMissing, Normalize
from fastai.text.all import AWD_LSTM
from fastai.vision.all import ColReader, DataBlock, ImageBlock, IndexSplitter, Learner, Resize, load_learner, noop
from PIL import Image
from torch import nn

from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.tabular.all import *
from fastai_condmtl.text.all import *
from fastai_condmtl.vision.all import *


def quiet(learn):
    return learn.no_bar()


def shop(n=80):
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(town=rng.choice([*'abcd'], n), weight=rng.normal(3, 1, n), cost=rng.normal(9, 4, n)))
    df.loc[::11, 'cost'] = np.nan
    df['late'] = df.weight > 3
    df['days'] = rng.integers(0, 9, n) * 1.5
    df['why'] = rng.choice(['snow', 'strike', 'road'], n)
    return df


def goods(df, valid):
    flow = Flow(
        'shop', BinaryBlock('late'), UnboundedRegressionBlock('days') | BinaryBlock('late'), SingleLabelBlock('why')
    )
    return ConditionalTabularDataLoaders.from_df(
        df, flow, procs=[Categorify, FillMissing, Normalize], valid_idx=list(valid), bs=16
    )


@pytest.mark.parametrize(
    'rows, valid',
    [
        (lambda d: d, range(40, 60)),
        (lambda d: d[d.town != 'a'].reset_index(drop=True), range(9)),
        (lambda d: d[d.why != 'road'].reset_index(drop=True), range(9)),
        (lambda d: d.assign(weight=d.weight * 5), range(12)),
    ],
)
def test_a_table_with_other_codes_and_means(rows, valid):
    df = shop()
    learn = conditional_tabular_learner(goods(df, range(20)), [8])
    with quiet(learn):
        learn.fit(1)
        before, flow0 = learn.predict_df(df), learn.dls.flow
        new = rows(df)
        want = learn.get_preds(dl=learn.dls.test_dl(new.loc[list(valid)], with_labels=True))
        learn.dls = goods(new, valid)
        pd.testing.assert_frame_equal(learn.predict_df(df), before)
        got = learn.get_preds()
        torch.testing.assert_close(got[0], want[0], rtol=1e-4, atol=1e-4)
        (v, m), (v2, m2) = (o[1].reshape(-1, 2, flow0.n_targets).unbind(1) for o in (got, want))
        assert torch.equal(m, m2)
        torch.testing.assert_close(v * m, v2 * m2, rtol=0, atol=1e-6)
        learn.fit(1)
        learn.evaluate()


def test_a_table_that_is_exported_after_the_swap(tmp_path):
    df = shop()
    learn = conditional_tabular_learner(goods(df, range(20)), [8])
    learn.dls = goods(df[df.why != 'road'].reset_index(drop=True), range(30))
    learn.path = tmp_path
    with quiet(learn):
        want = learn.predict_df(df)
    learn.export('t.pkl')
    again = load_learner(tmp_path / 't.pkl')
    with quiet(again):
        pd.testing.assert_frame_equal(again.predict_df(df), want)


def test_a_table_of_which_a_class_is_new():
    df = shop()
    learn = conditional_tabular_learner(goods(df, range(20)), [8])
    other = goods(df.replace(dict(why={'road': 'flood'})), range(20))
    with pytest.raises(FlowError, match='flood') as e:
        learn.dls = other
    assert 'learn.change_flow' in str(e.value)
    with pytest.raises(FlowError, match='flood'):
        learn.validate(dl=other.valid)


def texts(n=60, also=()):
    rng = np.random.default_rng(1)
    words = np.array(['good', 'bad', 'slow', 'food', 'nice', 'place', *also])
    df = pd.DataFrame(dict(text=[' '.join(rng.choice(words, 6)) for _ in range(n)], stars=rng.integers(1, 6, n) * 1.0))
    return df.assign(topic=np.where(df.text.str.contains('food'), 'food', 'place'))


def told(df, valid, **kw):
    flow = Flow('review', SingleLabelBlock('topic'), UnboundedRegressionBlock('stars'))
    return ConditionalTextDataLoaders.from_df(
        df, flow, splitter=IndexSplitter(list(valid)), bs=8, seq_len=16, min_freq=1, **kw
    )


def test_texts_with_another_vocabulary():
    df, new = texts(), texts(also=['zebra', 'aardvark', 'awful'])
    learn = conditional_text_learner(told(df, range(10)), AWD_LSTM, pretrained=False)
    with quiet(learn):
        before, rows = learn.predict_df(df), new.iloc[:12]
        want = learn.get_preds(dl=learn.dls.test_dl(rows, with_labels=True))
        other = told(new, range(12))
        assert list(other.vocab) != list(learn.dls.vocab)
        got = learn.get_preds(dl=other.valid)
        for a, b in zip(got, want):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        learn.dls = other
        pd.testing.assert_frame_equal(learn.predict_df(df), before)
        got = learn.get_preds()
        for a, b in zip(got, want):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert learn.dls.vocab == told(df, range(10)).vocab
        learn.fit(1)


def test_change_flow_keeps_the_words_of_the_network():
    df, new = texts(), texts(also=['zebra', 'aardvark'])
    learn = conditional_text_learner(told(df, range(10)), AWD_LSTM, pretrained=False)
    words = list(learn.dls.vocab)
    learn.change_flow(told(new, range(10)))
    assert list(learn.dls.vocab) == words


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    d = tmp_path_factory.mktemp('swapped')
    rng = np.random.default_rng(0)
    for i in range(30):
        im = np.zeros((24, 24, 3), np.uint8)
        im[:, :, i % 3] = 200
        im[0, 0] = rng.integers(0, 255, 3)
        Image.fromarray(im).save(d / f'{i}.png')
    return d


def pictures(n=30):
    rng = np.random.default_rng(0)
    df = pd.DataFrame(
        dict(
            img=[f'{i}.png' for i in range(n)],
            kind=np.array(['cat', 'dog', 'owl'])[np.arange(n) % 3],
            mass=rng.normal(9, 3, n),
            town=rng.choice([*'abc'], n),
            cents=rng.normal(size=n),
        )
    )
    for c in ('nose_x', 'nose_y'):
        df[c] = rng.uniform(4, 20, n).round()
    return df


def images(df, folder, size, valid, flow):
    return ConditionalDataLoaders.from_df(
        df,
        flow,
        path=folder,
        fn_col='img',
        splitter=IndexSplitter(list(valid)),
        item_tfms=Resize(size),
        bs=8,
        num_workers=0,
    )


class Net(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.lin = nn.Linear(3, c)

    def forward(self, x):
        return self.lin(x.mean((2, 3)))


def test_progressive_resizing(folder):
    flow = Flow('animals', SingleLabelBlock('kind'), UnboundedRegressionBlock('mass'))
    df = pictures()
    learn = Learner(images(df, folder, 24, range(6), flow), Net(4))
    files = [folder / f for f in df.img[:6]]
    with quiet(learn):
        before = learn.predict_df(files)
        for size, valid, rows in ((48, range(6), df), (24, range(10, 20), df), (24, range(5), df[df.kind != 'cat'])):
            learn.dls = images(rows, folder, size, valid, flow)
            assert learn.dls.one_batch()[0].shape[-1] == size
            pd.testing.assert_frame_equal(learn.predict_df(files), before, rtol=1e-4)
            learn.fit(1, 0.0)
            pd.testing.assert_frame_equal(learn.predict_df(files), before, rtol=1e-4)


def test_points_with_other_scales(folder):
    from fastai_condmtl.tasks.keypoints import KeypointsBlock

    flow = Flow('f', SingleLabelBlock('kind'), KeypointsBlock('nose', ['nose_x', 'nose_y']))
    df = pictures()
    learn = Learner(images(df, folder, 24, range(6), flow), Net(images(df, folder, 24, range(6), flow).c))
    new = df[df.kind != 'cat'].reset_index(drop=True)
    with quiet(learn):
        want = learn.get_preds(dl=learn.dls.test_dl(new.iloc[:5], with_labels=True))
        learn.dls = images(new, folder, 24, range(5), flow)
        got = learn.get_preds()
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)


def test_a_row_beside_a_picture(folder):
    df = pictures()

    def make(rows, valid):
        block = DataBlock(
            blocks=(ImageBlock, TabularRowBlock(['town'], ['cents']), Flow('f', SingleLabelBlock('kind'))),
            n_inp=2,
            get_x=[ColReader('img', pref=f'{folder}/'), noop],
            splitter=IndexSplitter(list(valid)),
        )
        return block.dataloaders(rows, bs=8, num_workers=0)

    dls = make(df, range(6))
    learn = Learner(dls, nn.Linear(1, dls.c))
    new = df[(df.town != 'a') & (df.kind != 'cat')].reset_index(drop=True)
    want = learn.dls.test_dl(new.iloc[:4], with_labels=True).one_batch()
    learn.dls = make(new, range(4))
    got = learn.dls.valid.one_batch()
    for a, b in zip(got, want):
        torch.testing.assert_close(a.as_subclass(torch.Tensor), b.as_subclass(torch.Tensor), rtol=1e-4, atol=1e-4)
    want = learn.dls.test_dl(new.iloc[4:6]).one_batch()[
        1
    ]  # raw rows still go through the new getters and the old processors
    assert want.shape == (2, 2)
