"""What is no item is one error that names what was expected, whatever the learner and the method"""

import numpy as np
import pandas as pd
import pytest
from fastai.text.all import AWD_LSTM
from fastai.vision.all import PILImage, Resize, resnet18

from fastai_condmtl.tabular.all import *
from fastai_condmtl.text.all import *
from fastai_condmtl.vision.all import *

N = 12
TABLE = pd.DataFrame(dict(a=np.arange(N) * 1.0, text=['good film', 'a bad film'] * (N // 2), y=[0, 1] * (N // 2)))
FLOW = Flow('f', BinaryBlock('y'))
WRONG = [5, None, float('nan'), True, pytest.param(object(), id='object')]
SEVERAL = 'predict_df', 'explain', 'get_marginals'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    for i in range(N):
        PILImage.create(np.full((20, 20, 3), i * 5, np.uint8)).save(folder / f'{i}.png')
    return folder


@pytest.fixture(scope='module')
def pictures(folder):
    df = TABLE.assign(img=[f'{i}.png' for i in range(N)])
    options = dict(fn_col='img', item_tfms=Resize(16), bs=4, num_workers=0)
    dls = ConditionalDataLoaders.from_df(df, FLOW, path=folder, **options)
    return conditional_vision_learner(dls, resnet18, pretrained=False)


@pytest.fixture(scope='module')
def texts():
    dls = ConditionalTextDataLoaders.from_df(TABLE, FLOW, text_col='text', bs=4)
    return conditional_text_learner(dls, AWD_LSTM, pretrained=False)


@pytest.fixture(scope='module')
def tables():
    dls = ConditionalTabularDataLoaders.from_df(TABLE, FLOW, cont_names=['a'], bs=4)
    return conditional_tabular_learner(dls, layers=[4])


@pytest.fixture(params=['pictures', 'texts', 'tables'])
def learn(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize('item', WRONG, ids=repr)
def test_predict_names_what_it_takes(learn, item):
    name = 'None' if item is None else rf'an? {type(item).__name__}'
    with (
        learn.no_bar(),
        pytest.raises(FlowError, match=rf'predict takes one .*, not {name}: .*df\.iloc\[0\], or a dict'),
    ):
        learn.predict(item)


@pytest.mark.parametrize('method', SEVERAL)
@pytest.mark.parametrize('item', WRONG, ids=repr)
def test_a_list_names_the_item_that_is_none(learn, method, item):
    good = TABLE.assign(img='0.png').iloc[0]
    with learn.no_bar(), pytest.raises(FlowError, match=rf'{method} takes items .*, and item 1 is .*: each is a row'):
        getattr(learn, method)([good, item])


@pytest.mark.parametrize('method', ['predict', *SEVERAL])
def test_rows_without_the_columns_are_told(learn, method):
    row = dict(q=1)
    for items in [row] if method == 'predict' else ([row], pd.DataFrame([row])):
        with learn.no_bar(), pytest.raises(FlowError, match="no column '(img|text|a)'.*there are 'q'"):
            getattr(learn, method)(items)


def test_dicts_are_rows_one_and_several(learn):
    rows = TABLE.assign(img=[f'{i}.png' for i in range(N)])[:3]
    with learn.no_bar():
        want = learn.predict_df(rows).reset_index(drop=True)
        pd.testing.assert_frame_equal(learn.predict_df(rows.to_dict('records')), want)
        assert learn.predict(rows.to_dict('records')[0])[0]['y'] == want.y[0]


def test_advice_fits_what_items_are(pictures, texts, tables):
    "A column may hold texts or files, and never the items of a table"
    for learn in (pictures, texts):
        with pytest.raises(FlowError, match=r"list\(df\['column'\]\) where items stand in a column"):
            learn.predict_df(TABLE.iloc[0])
    for items in (TABLE.iloc[0], TABLE['a']):
        with pytest.raises(FlowError, match=r'not one row or column: write df\.loc\[\[i\]\] for a row') as error:
            tables.predict_df(items)
        assert "df['column']" not in str(error.value)
    with pytest.raises(FlowError, match='not one str: hand over a DataFrame, or a list of rows'):
        tables.predict_df('good film')
