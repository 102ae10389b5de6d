"Tables of picture files: what a cell names is the file that is read, and what names none is an error"

import warnings
from pathlib import Path
import numpy as np, pandas as pd, pytest
from fastai.vision.all import Image, Resize
from fastai_condmtl.vision.all import BinaryBlock, ConditionalDataLoaders, Flow, FlowError, FlowWarning
from fastai_condmtl.data.leaks import files_in_column


@pytest.fixture(scope='module')
def pics(tmp_path_factory):
    "Six pictures of one gray each, 10 times their number, and one whose name is that of a blank"
    tmp = tmp_path_factory.mktemp('pics')
    for i in range(6):
        Image.new('L', (20, 16), 10 * i).save(tmp / f'{i}.png')
    Image.new('L', (20, 16), 255).save(tmp / 'nan.png')
    return tmp


def table(names, **more):
    return pd.DataFrame(dict(img=names, a=[0, 1, 0, 1, 0, 1], **more))


def loaders(pics, df, fn_col='img', flow=None, **kwargs):
    given = dict(path=pics, suff='.png', item_tfms=Resize(8), bs=1, num_workers=0, seed=0, **kwargs)
    return ConditionalDataLoaders.from_df(df, flow or Flow('f', BinaryBlock('a')), fn_col=fn_col, **given)


def grays(dls, df):
    "What is read of the rows of a table, in tens"
    return [round(float(batch[0].mean()) * 25.5) for batch in dls.test_dl(df)]


@pytest.mark.parametrize('more', [{}, dict(size=np.linspace(0.5, 3, 6)), dict(size=['s', 'm', 'l'] * 2)])
@pytest.mark.parametrize('fn_col', ['img', 0, -1])
def test_whole_numbers_are_names_of_files(pics, more, fn_col):
    "pandas makes a row of numbers alone one of floats, so that 3 is read as 3.0"
    df = table(range(6), **more)
    if fn_col == -1:
        df = df[[*df.columns[1:], 'img']]
    assert grays(loaders(pics, df, fn_col), df) == list(range(6))


def test_whole_numbers_beside_a_gap(pics):
    with pytest.warns(FlowWarning, match=r'left out 1 of 6 rows .*: row 2 without a file name'):
        dls = loaders(pics, table([0, 1, None, 3, 4, 5]), bad_images='skip')
    assert len(dls.train_ds) + len(dls.valid_ds) == 5
    assert [Path(f).name for f in files_in_column(table([0, 1, 2, 3, 4, 5.0]), 'img', pics, '.png')] == [
        f'{i}.png' for i in range(6)
    ]


def test_numbers_of_more_digits_than_a_float_keeps(pics):
    with pytest.raises(FlowError, match=r'the file name 900719925474099. is a number of more digits .*astype\(str\)'):
        loaders(pics, table([2**53 + 1] * 6, size=0.5)).one_batch()


def test_a_column_whose_name_is_a_number(pics):
    "As everywhere, a name goes before a position"
    df = table([f'{i}' for i in range(6)])[['a', 'img']].set_axis([1, 0], axis=1)
    assert grays(loaders(pics, df, 0, Flow('f', BinaryBlock('a', col=1))), df) == list(range(6))


BAD_COLUMNS = {
    'beyond the last': (99, "fn_col=99 reads column '99', which the table does not have"),
    'two': (['img', 'a'], r"fn_col=\['img', 'a'\] must be the name or the position of the column with the file names"),
    'none': (None, 'fn_col=None must be the name or the position'),
    'a yes': (True, 'fn_col=True must be the name or the position'),
    'misspelt': ('imgs', "fn_col='imgs' reads column 'imgs', which the table does not have: did you mean 'img'?"),
    'twice': ('twice', "fn_col='twice' reads column 'twice', which stands 2 times in the table: keep one"),
}


@pytest.mark.parametrize('what', list(BAD_COLUMNS))
def test_what_is_no_column_of_files(pics, what):
    fn_col, text = BAD_COLUMNS[what]
    df = pd.concat([table(list('012345')), pd.DataFrame(0, index=range(6), columns=['twice', 'twice'])], axis=1)
    with pytest.raises(FlowError, match=text):
        loaders(pics, df, fn_col)


@pytest.mark.parametrize('blank', [None, np.nan, pd.NA])
def test_a_cell_without_a_name_is_no_file_called_nan(pics, blank):
    names = ['0', '1', '2', blank, '4', '5']
    with pytest.raises(FlowError, match="row 3, column 'img': there is no file name. Leave such rows out"):
        loaders(pics, table(names))
    with pytest.warns(FlowWarning, match='left out 1 of 6 rows .*: row 3 without a file name'):
        loaders(pics, table(names), bad_images='skip')
    dls = loaders(pics, table(list('012345')))
    with pytest.raises(FlowError, match="column 'img': there is no file name. Take such rows out"):
        grays(dls, table(names))


def test_rows_that_are_left_out_are_told_where_the_loaders_were_asked_for(pics):
    "A warning points at the line that asked, with row and file"
    for argument in (dict(bad_images='skip'), dict(cache=4)):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter('always')
            ConditionalDataLoaders.from_df(
                table(['0', 'gone', '2', '3', '4', '5']).set_index('a', drop=False),
                Flow('f', BinaryBlock('a')),
                path=pics,
                fn_col='img',
                suff='.png',
                item_tfms=Resize(8),
                valid_idx=[4, 5],
                **{'bad_images': 'skip', **argument},
            )
        texts = {str(w.message): w.filename for w in seen if issubclass(w.category, FlowWarning)}
        told = [text for text in texts if 'left out 1 of 6' in text or 'cache=4' in text]
        assert len(told) == len(argument) + ('cache' in argument)
        assert {texts[text] for text in told} == {__file__}
        assert any(f"row 1 (index 1) '{pics / 'gone.png'}'" in text or "row 1 '" in text for text in told)


def test_a_part_of_which_no_picture_can_be_read(pics):
    "Without training rows nothing can be built; a part that vanishes is told"
    names = np.array([f'{i}' for i in range(6)], dtype=object)
    no_train, no_valid = names.copy(), names.copy()
    no_train[:4], no_valid[4:] = 'gone', 'gone'
    split = dict(valid_idx=[4, 5], bad_images='skip')
    with pytest.warns(FlowWarning), pytest.raises(FlowError, match='no image of the training rows, 4 in all, can be'):
        loaders(pics, table(no_train), **split)
    with pytest.warns(FlowWarning, match='no image of the validation rows, 2 in all, can be read'):
        assert len(loaders(pics, table(no_valid), **split).valid_ds) == 0


def test_rows_to_train_on_must_be_left(pics):
    with pytest.raises(FlowError, match='valid_idx names all 6 rows of the table: leave some out of it'):
        loaders(pics, table(list('012345')), valid_idx=range(6))


@pytest.mark.parametrize(
    'method, args, told',
    [
        ('from_df', dict(df=None), 'from_df takes a DataFrame, not None'),
        ('from_df', dict(df='labels.csv'), 'from_df takes a DataFrame, not a str: .* or from_csv'),
        ('from_df', dict(path=None), 'path=None must be a folder, a string or a Path'),
        ('from_df', dict(folder=3), 'folder=3 must be a folder'),
        ('from_csv', dict(csv_fname=None), 'csv_fname=None must be a file, a string or a Path'),
        ('from_csv', dict(path=3), 'path=3 must be a folder'),
        ('from_path_func', dict(fnames=None), 'fnames= takes a list of files, not None: write'),
        ('from_path_func', dict(fnames=3), 'fnames= takes a list of files, not an int'),
        ('from_path_func', dict(fnames=['0.png', None]), 'fnames= holds None: it takes names of files'),
        ('from_path_func', dict(label_func=None), 'label_func is None: hand over a function from a file'),
        (
            'from_path_func',
            dict(label_func={'a': len}),
            'label_func is a dict: .* or from_path_funcs for a dict of func',
        ),
        ('from_path_funcs', dict(fnames=None), 'fnames= takes a list of files'),
        (
            'from_path_funcs',
            dict(label_funcs={'a': 'a'}),
            r"label_funcs\['a'\] is a str: hand over a function from a file",
        ),
        ('from_path_funcs', dict(label_funcs=[len]), 'label_funcs must be a dict'),
    ],
)
def test_odd_arguments_are_one_error(pics, method, args, told):
    files = [pics / f'{i}.png' for i in range(6)]
    given = dict(
        from_df=dict(df=table([f'{i}.png' for i in range(6)])),
        from_csv={},
        from_path_func=dict(fnames=files, label_func=lambda file: 1),
        from_path_funcs=dict(fnames=files, label_funcs=dict(a=lambda file: 1)),
    )[method]
    with pytest.raises(FlowError, match=told):
        getattr(ConditionalDataLoaders, method)(**dict(path=pics, flow=Flow('f', BinaryBlock('a'))) | given | args)
