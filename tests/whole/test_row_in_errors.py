"""A bad cell in row 13 of the user's table is said to stand in row 13: by every kind, with every split and index,
for pictures, tables and texts."""

import json
import re
import warnings

import numpy as np
import pandas as pd
import pytest
from fastai.data.all import DataBlock, IndexSplitter, RandomSplitter, TransformBlock
from fastai.tabular.core import TabularPandas
from PIL import Image

from fastai_condmtl.all import *
from fastai_condmtl.core.errors import RowsOf, row_name
from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders
from fastai_condmtl.text.all import ConditionalTextDataLoaders
from fastai_condmtl.vision.all import BoxBlock, ConditionalDataLoaders, KeypointsBlock

AT, N = 13, 24


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('pictures')
    for i in range(N):
        Image.fromarray(np.full((8, 8, 3), 10 * i, np.uint8)).save(path / f'{i:03d}.png')
    return path


def column(a, b, bad):
    res = pd.Series([a, b] * (N // 2), dtype=object)
    res.iloc[AT] = bad
    return res


MASK = np.zeros((4, 4))
KINDS = {
    'a word': (BinaryBlock('y'), column(0, 1, 'maybe')),
    'a picture mask': (BinaryBlock('y'), column(0, 1, MASK)),
    'text of a list': (SingleLabelBlock('y'), column('a', 'b', "['a', 'b']")),
    'mask of a number': (UnboundedRegressionBlock('y'), column(1.0, 2.0, MASK)),
    'a count': (CountBlock('y'), column(1, 2, 'two')),
    'standardised': (UnboundedRegressionBlock('y'), column(1.0, 2.0, '1,85')),
    'infinite': (UnboundedRegressionBlock('y'), column(1.0, 2.0, np.inf)),
    'a date': (UnboundedRegressionBlock('y'), column(1.0, 2.0, np.datetime64('2020-01-01'))),
    'list text': (MultiLabelBlock('y'), column("['a']", "['b']", '[a, b]')),
    'mixed': (MultiLabelBlock('y'), column("['a']", "['b']", 'a,b')),
    'cols': (MultiLabelBlock('m', cols=['z', 'y']), column(0, 1, 'maybe')),
    'weights': (BinaryBlock('z', weight_col='y'), column(1.0, 2.0, -1.0)),
    'weights, a word': (UnboundedRegressionBlock('z', weight_col='y'), column(1.0, 2.0, 'much')),
    'pos_weight counted': (BinaryBlock('y', pos_weight='balanced'), column(0, 1, 'maybe')),
    'class weights counted': (SingleLabelBlock('y', vocab=['a', 'b'], class_weights='balanced'), column('a', 'b', 'z')),
    'weights of counted': (BinaryBlock('z', weight_col='y', pos_weight='balanced'), column(1.0, 2.0, -1.0)),
}
SPLITS = {
    'first': dict(valid_col='first'),
    'random': dict(seed=3),
    'every third': dict(splitter=IndexSplitter(list(range(0, N, 3)))),
    'valid_idx': dict(valid_idx=[0, 1, 2, 20]),
    'words': dict(valid_col='words'),
}
INDICES = {
    'plain': list(range(N)),
    'twice': [i // 2 for i in range(N)],
    'words': [f'r{100 + i}' for i in range(N)],
    'shuffled': np.random.default_rng(0).permutation(N).tolist(),
}


def table(y, index):
    df = pd.DataFrame(
        dict(
            img=[f'{i:03d}.png' for i in range(N)],
            x=[1.0 + i % 3 for i in range(N)],
            text=['good food', 'bad'] * (N // 2),
            z=[0, 1] * (N // 2),
            first=[i < 5 for i in range(N)],
            words=['valid'] * 4 + ['test'] * 2 + ['train'] * (N - 6),
        )
    )
    return df.assign(y=y.to_numpy(), h=2.0).set_axis(index)


def of_pictures(df, block, folder, **split):
    return ConditionalDataLoaders.from_df(df, block, path=folder, fn_col='img', bs=4, num_workers=0, **split)


def of_table(df, block, folder, **split):
    return ConditionalTabularDataLoaders.from_df(df, block, cat_names=[], cont_names=['x'], bs=4, **split)


def of_texts(df, block, folder, **split):
    return ConditionalTextDataLoaders.from_df(df, block, bs=4, **split)


def refused(do):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(FlowError) as e:
            do()
    return str(e.value)


@pytest.mark.parametrize(
    'load, kind',
    [
        *((load, kind) for load in (of_pictures, of_table) for kind in KINDS),
        (of_texts, 'standardised'),
        (of_texts, 'pos_weight counted'),
    ],
)
def test_row_13(folder, load, kind):
    block, y = KINDS[kind]
    for split, index in zip(SPLITS.values(), [*INDICES.values(), *INDICES.values()]):
        text = refused(lambda: load(table(y, index), block, folder, **split))
        assert re.search(r'\brow 13\b', text) and (index[AT] == AT or f'index {index[AT]!r}' in text), text


@pytest.mark.parametrize('block', [KeypointsBlock('p', ['y', 'z']), BoxBlock('p', ['y', 'z', 'x', 'h'])])
def test_points_and_boxes(folder, block):
    for split in SPLITS.values():
        assert re.search(
            r'\brow 13\b',
            refused(lambda: of_pictures(table(column(1.0, 2.0, 'left'), INDICES['words']), block, folder, **split)),
        )


@pytest.mark.parametrize('index', INDICES.values(), ids=INDICES)
def test_rows_after_pictures_that_were_left_out(folder, index):
    df = table(column(1.0, 2.0, '1,85'), index)
    df.iloc[[3, 7, 20], 0] = 'gone.png'
    assert re.search(
        r'\brow 13\b',
        refused(lambda: of_pictures(df, UnboundedRegressionBlock('y'), folder, bad_images='skip', seed=0)),
    )
    assert re.search(
        r'\brow 13\b',
        refused(
            lambda: of_pictures(
                df.assign(y=column(0, 1, 'maybe').to_numpy()), BinaryBlock('y'), folder, bad_images='skip', seed=0
            )
        ),
    )


def test_what_pictures_left_out_leave_can_be_written(folder, tmp_path):
    df = table(column(1.0, 2.0, 1.0), INDICES['plain'])
    df.iloc[3, 0] = 'gone.png'
    with pytest.warns(FlowWarning, match='gone.png'):
        items = of_pictures(df, UnboundedRegressionBlock('y'), folder, bad_images='skip', seed=0).train_ds.items
    assert json.dumps(items.attrs) == '{"rows_of": {}}' and len(pd.concat([items, items])) == 2 * len(items)


@pytest.mark.parametrize('index', INDICES.values(), ids=INDICES)
def test_file_names(folder, index):
    df = table(column(1.0, 2.0, 1.0), index)
    df.iloc[AT, 0] = None
    assert re.search(r'\brow 13\b', refused(lambda: of_pictures(df, UnboundedRegressionBlock('y'), folder)))
    df.iloc[AT, 0] = 'gone.png'
    dls = of_pictures(df, UnboundedRegressionBlock('y'), folder, valid_idx=[0])
    text = refused(lambda: [dls.train_ds[i] for i in range(N - 1)])
    assert 'gone.png' in text and re.search(r'\brow 13\b', text)
    (folder / 'broken.png').write_text('no picture')
    df.iloc[AT, 0] = 'broken.png'
    dls = of_pictures(df, UnboundedRegressionBlock('y'), folder, valid_idx=[0])
    assert re.search(r'\brow 13\b', refused(lambda: [dls.train_ds[i] for i in range(N - 1)]))


def test_texts_and_inputs(folder):
    df = table(column(1.0, 2.0, 1.0), INDICES['words'])
    for bad in (None, ['words']):
        text = df.assign(text=[bad if i == AT else t for i, t in enumerate(df.text)])
        assert re.search(r'\brow 13\b', refused(lambda: of_texts(text, UnboundedRegressionBlock('y'), folder)))
    x = df.assign(x=[np.inf if i == AT else v for i, v in enumerate(df.x)])
    assert re.search(
        r'\brow 13\b', refused(lambda: of_table(x, UnboundedRegressionBlock('y'), folder, valid_col='first'))
    )


@pytest.mark.parametrize('index', INDICES.values(), ids=INDICES)
def test_stock_datablock_and_new_rows(folder, index):
    good, bad = table(column(1.0, 2.0, 1.0), index), table(column(1.0, 2.0, 'tall'), index)
    block = DataBlock(
        blocks=(TransformBlock, UnboundedRegressionBlock('y')), get_x=lambda r: r.x, splitter=RandomSplitter(seed=1)
    )
    assert re.search(r'\brow 13\b', refused(lambda: block.dataloaders(bad, bs=4, num_workers=0)))
    for load in (of_pictures, of_table, of_texts):
        dls = load(good, UnboundedRegressionBlock('y'), folder, valid_col='first')
        assert re.search(r'\brow 13\b', refused(lambda: dls.test_dl(bad, with_labels=True)))


def test_stock_tabular_pandas_tells_the_index():
    "fastai reorders the rows and keeps no positions: the index is what can be said"
    df = table(column(1.0, 2.0, 'tall'), INDICES['words'])
    text = refused(
        lambda: TabularPandas(
            df,
            cont_names=['x'],
            y_block=TransformBlock(type_tfms=UnboundedRegressionBlock('y').type_tfms),
            splits=RandomSplitter(seed=1)(df),
        )
    )
    assert "row 'r113' (by its index)" in text


def test_joined_sources(folder):
    flow = UnboundedRegressionBlock('y')
    a, b = table(column(1.0, 2.0, 1.0), INDICES['plain']), table(column(1.0, 2.0, 1.0), INDICES['plain'])
    df = concat_sources(dict(a=a[:10], b=b), flow)
    df['y'] = df.y.astype(object)
    df.loc[AT, 'y'] = 'tall'
    assert re.search(r'\brow 13\b', refused(lambda: of_table(df, flow, folder, seed=1)))


def test_folds():
    df = table(column(1.0, 2.0, 'tall'), INDICES['words'])
    for train, valid in stratified_folds(BinaryBlock('z'), df, 3, seed=0):
        assert re.search(
            r'\brow 13\b',
            refused(lambda: of_table(df, UnboundedRegressionBlock('y'), None, splitter=IndexSplitter(valid))),
        )


def test_a_block_of_ones_own_needs_nothing(folder):
    class Own(UnboundedRegressionBlock):
        def setup(self, df, train):
            if (bad := train[self.cols[0]].map(lambda v: isinstance(v, str)).to_numpy()).any():
                raise self.bad(train, self.cols[0], int(bad.argmax()), 'no')
            super().setup(df, train)

    assert re.search(
        r'\brow 13\b',
        refused(
            lambda: of_table(table(column(1.0, 2.0, 'tall'), INDICES['twice']), Own('y'), folder, valid_col='first')
        ),
    )


def test_marks_are_of_these_rows_only():
    df = pd.DataFrame(dict(a=range(10)), index=list('abcdefghij'))
    part = RowsOf.mark(df.iloc[[4, 6, 8]], df, [4, 6, 8])
    assert [row_name(part, i) for i in range(3)] == ["row 4 (index 'e')", "row 6 (index 'g')", "row 8 (index 'i')"]
    assert row_name(part[['a']], 1) == "row 6 (index 'g')"  # pandas hands the mark on
    assert row_name(part.iloc[1:], 0) == "row 0 (index 'g')"  # other rows: the mark no longer counts
    again = RowsOf.mark(part.iloc[[2, 0]], part, [2, 0])
    assert row_name(again, 0) == "row 8 (index 'i')" and 'rows_of' not in df.attrs
