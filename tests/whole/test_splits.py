"Which rows validate: by a column of words or bits, by positions, by a splitter; and by one of them only."

import warnings

import numpy as np
import pandas as pd
import pytest
from fastai.data.transforms import IndexSplitter
from fastai.vision.all import Resize
from PIL import Image

from fastai_condmtl.all import *
from fastai_condmtl.data.split import ColumnSplitter, RowsSplitter, as_splitter
from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders
from fastai_condmtl.text.all import ConditionalTextDataLoaders
from fastai_condmtl.vision.all import ConditionalDataLoaders


def split(cells, dtype=None):
    "Training and validation positions, and what was warned of"
    df = pd.DataFrame(dict(s=pd.Series(cells, dtype=dtype)))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        train, valid = ColumnSplitter('s')(df)
    return list(train), list(valid), ' '.join(str(w.message) for w in seen if issubclass(w.category, FlowWarning))


@pytest.mark.parametrize('train', ['train', 'Training', ' TRAIN ', 'trn'])
@pytest.mark.parametrize('valid', ['valid', 'Val', 'VALIDATION', 'dev'])
@pytest.mark.parametrize('dtype', [None, object, 'category'])
def test_words(train, valid, dtype):
    assert split([train, valid, train, valid], dtype) == ([0, 2], [1, 3], '')


@pytest.mark.parametrize('test', ['test', 'Test', 'testing'])
@pytest.mark.parametrize('dtype', [None, object, 'category'])
def test_rows_called_test_are_a_third_part(test, dtype):
    df = pd.DataFrame(dict(s=pd.Series(['train', 'valid', test, 'train', test], dtype=dtype)))
    assert [list(part) for part in ColumnSplitter('s')(df)] == [[0, 3], [1], [2, 4]]


def test_train_and_test_without_validation_rows():
    "The error says what divides the rest, and that works"
    df = pd.DataFrame(dict(s=['train'] * 20 + ['test'] * 5, y=[0, 1, 0, 1, 1] * 5))
    with pytest.raises(FlowError, match="none for valid: .*write test_col='s' in place of valid_col="):
        as_splitter(BinaryBlock('y'), valid_col='s')(df)
    train, valid, test = as_splitter(BinaryBlock('y'), test_col='s', seed=0)(df)
    assert list(test) == [20, 21, 22, 23, 24] and len(valid) == 4 and sorted([*train, *valid]) == list(range(20))


@pytest.mark.parametrize('other', [dict(test_pct=0.2), dict(test_col='t')])
def test_two_arguments_that_name_a_third_part(other):
    df = pd.DataFrame(dict(s=['train', 'valid', 'test'] * 10, t=[False] * 28 + [True] * 2, y=[0, 1, 0] * 10))
    with pytest.raises(FlowError, match=f'leave {next(iter(other))}= out'):
        as_splitter(BinaryBlock('y'), valid_col='s', seed=0, **other)(df)
    same = as_splitter(BinaryBlock('y'), valid_col='s', test_col='s')(df)  # the same column twice is no contradiction
    assert [list(part) for part in same] == [list(range(k, 30, 3)) for k in range(3)]


@pytest.mark.parametrize(
    'cells',
    [
        [False, True, False],
        [0, 1, 0],
        [0.0, 1.0, 0.0],
        ['0', '1', '0'],
        ['False', 'True', 'False'],
        ['no', 'yes', 'no'],
        [np.False_, np.True_, np.False_],
    ],
)
@pytest.mark.parametrize('dtype', [None, object, 'category'])
def test_bits(cells, dtype):
    assert split(cells, dtype) == ([0, 2], [1], '')


@pytest.mark.parametrize(
    'cells, dtype',
    [
        ([True, None, False, None], object),
        ([True, None, False, None], 'boolean'),
        ([1, None, 0, None], float),
        (['valid', None, 'train', None], None),
    ],
)
def test_a_blank_is_a_training_row_and_named(cells, dtype):
    train, valid, told = split(cells, dtype)
    assert (train, valid) == ([1, 2, 3], [0]) and 'row 1 and 1 more' in told


@pytest.mark.parametrize(
    'cells',
    [
        ['train', 'held', 'train'],
        [0, 1, 2],
        ['a', 'b', 'b'],
        ['valid', 'other', 'other'],
        [[1], [2], [1]],
        ['2020', '2021', '2021'],
    ],
)
def test_other_words_end_with_a_line_that_works(cells):
    df = pd.DataFrame(dict(s=pd.Series(cells, dtype=object)))
    with pytest.raises(FlowError) as e:
        ColumnSplitter('s')(df)
    text = str(e.value)
    assert 'valid_col=' in text and 'row ' in text and 'task' not in text and 'vocab' not in text
    if isinstance(cells[0], list):
        return
    scope = dict(df=df)
    exec(text[text.rindex("df['is_valid']") :], scope)
    train, valid = ColumnSplitter('is_valid')(scope['df'])
    assert len(train) and len(valid) and len(train) + len(valid) == 3


@pytest.mark.parametrize(
    'cells, lacks',
    [
        (['train'] * 3, 'valid'),
        (['valid'] * 3, 'train'),
        ([True] * 3, 'train'),
        ([0] * 3, 'valid'),
        (['test'] * 3, 'train'),
        ([None] * 3, 'valid'),
    ],
)
def test_one_side_only(cells, lacks):
    with pytest.raises(FlowError, match=f"valid_col='s' has rows for .* none for {lacks}"):
        split(cells)


@pytest.mark.parametrize('idx', [[4, 1], (4, 1), np.array([4, 1]), pd.Series([4, 1]), [np.int64(4), 1, 4]])
def test_positions(idx):
    train, valid = RowsSplitter(idx)(range(6))
    assert list(valid) == [4, 1] and list(train) == [0, 2, 3, 5]


def test_positions_of_all_kinds():
    assert list(RowsSplitter(np.array([True, False, True]))(range(3))[1]) == [0, 2]
    assert list(RowsSplitter([])(range(3))[0]) == [0, 1, 2]


@pytest.mark.parametrize('idx', [[6], [-1], ['a'], [0.5], [[1, 2]], 'abc'])
def test_positions_that_are_none(idx):
    with pytest.raises(FlowError, match='valid_idx'):
        RowsSplitter(idx)(range(6))


@pytest.mark.parametrize(
    'given',
    [
        dict(splitter=IndexSplitter([0]), valid_idx=[1]),
        dict(valid_col='s', valid_idx=[1]),
        dict(splitter=IndexSplitter([0]), valid_col='s'),
        dict(stratify=True, valid_idx=[0]),
        dict(stratify=True, splitter=IndexSplitter([0])),
    ],
)
def test_what_contradicts_itself(given):
    with pytest.raises(FlowError) as e:
        as_splitter(BinaryBlock('a'), **given)
    assert all(f'{k}=' in str(e.value) for k in given)


def test_a_seed_goes_with_all():
    assert as_splitter(BinaryBlock('a'), seed=0, valid_idx=[1])(range(3))[1] == [1]


def no_rows(items):
    return [], list(range(len(items)))


def loaders_of_pictures(df, folder, **kwargs):
    return ConditionalDataLoaders.from_df(df, BinaryBlock('a'), folder, item_tfms=Resize(8), **kwargs)


def loaders_of_tables(df, folder, **kwargs):
    return ConditionalTabularDataLoaders.from_df(df, BinaryBlock('a'), folder, cont_names=['x'], **kwargs)


def loaders_of_texts(df, folder, **kwargs):
    return ConditionalTextDataLoaders.from_df(df, BinaryBlock('a'), folder, text_col='text', **kwargs)


@pytest.mark.parametrize('loaders', [loaders_of_pictures, loaders_of_tables, loaders_of_texts])
def test_a_splitter_that_leaves_nothing_to_train_on(loaders, tmp_path):
    names = [f'{i}.png' for i in range(6)]
    for name in names:
        Image.new('RGB', (8, 8)).save(tmp_path / name)
    df = pd.DataFrame(dict(image=names, x=range(6), text=['a word'] * 6, a=[0, 1] * 3))
    for given in (dict(splitter=no_rows), dict(splitter=IndexSplitter(range(6))), dict(valid_idx=range(6))):
        with pytest.raises(FlowError, match='to train on'):
            loaders(df, tmp_path, **given)


ROWS = pd.DataFrame(dict(x=np.arange(20.0), y=[0, 1] * 10, t=np.arange(20) % 5 == 4, g=np.arange(20) // 2))


@pytest.mark.parametrize('valid', [[3, 5, 6], np.isin(np.arange(20), [3, 5, 6])], ids=['positions', 'booleans'])
def test_positions_beside_a_third_part_count_from_the_whole_table(valid):
    "Rows 4, 9, … are the third part: positions do not move up where they are taken out"
    train, found, test = as_splitter(BinaryBlock('y'), valid_idx=valid, test_col='t')(ROWS)
    assert list(found) == [3, 5, 6] and list(test) == [4, 9, 14, 19]
    assert sorted([*train, *found, *test]) == list(range(20))
    dls = ConditionalTabularDataLoaders.from_df(
        ROWS, BinaryBlock('y'), cont_names=['x'], valid_idx=valid, test_col='t', bs=4
    )
    assert dls.valid.items.index.tolist() == [3, 5, 6]


def test_a_splitter_of_positions_beside_a_third_part():
    train, valid, test = as_splitter(BinaryBlock('y'), splitter=IndexSplitter([3, 4, 5]), test_col='t')(ROWS)
    assert list(valid) == [3, 5] and list(test) == [4, 9, 14, 19]  # row 4 neither trains nor validates
    assert sorted([*train, *valid, *test]) == list(range(20))


def test_a_row_of_the_third_part_that_is_to_validate():
    with pytest.raises(FlowError, match="row 4 is named by valid_idx=, and test_col='t' puts it into the third part"):
        as_splitter(BinaryBlock('y'), valid_idx=[3, 4], test_col='t')(ROWS)


@pytest.mark.parametrize('group_col', [None, 'g'])
def test_a_third_part_is_drawn_beside_the_rows_that_validate(group_col):
    for seed in range(8):
        own = dict(valid_idx=[18, 19, 0, 1], test_pct=0.2, seed=seed, group_col=group_col)
        train, valid, test = as_splitter(BinaryBlock('y'), **own)(ROWS)
        assert list(valid) == [18, 19, 0, 1] and len(test) == 4
        assert sorted([*train, *valid, *test]) == list(range(20))
    of_files = as_splitter(BinaryBlock('y'), valid_idx=[7, 1], test_pct=0.2, seed=0)(list('abcdefghij'))
    assert list(of_files[1]) == [7, 1] and len(of_files[2]) == 2
    with pytest.raises(FlowError, match='leaves none to train on beside valid_idx='):
        as_splitter(BinaryBlock('y'), valid_idx=range(16), test_pct=0.2, valid_pct=0.1)(ROWS)
