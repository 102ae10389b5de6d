"What scores a learner takes a table of rows; predict takes one item, and predict_df several"

import inspect

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.tabular.all import Categorify, FillMissing, Normalize
from fastai.text.all import AWD_LSTM
from fastai.vision.all import IndexSplitter, L, Learner, Resize
from PIL import Image
from torch import nn

from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.tabular.all import *
from fastai_condmtl.text.all import *
from fastai_condmtl.vision.all import *

matplotlib.use('agg')


class Net(nn.Module):
    def __init__(self, c):
        super().__init__()
        torch.manual_seed(0)
        self.lin = nn.Linear(3, c)

    def forward(self, x):
        return self.lin(x.mean((2, 3)))


def flow():
    return Flow(
        'f', BinaryBlock('there'), SingleLabelBlock('kind') | BinaryBlock('there'), UnboundedRegressionBlock('mass')
    )


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    d, rng, n = tmp_path_factory.mktemp('pictures'), np.random.default_rng(0), 40
    for i in range(n):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(d / f'{i}.png')
    return pd.DataFrame(
        dict(
            img=[str(d / f'{i}.png') for i in range(n)],
            text=[' '.join(rng.choice(['good', 'bad', 'food'], 1 + i % 5)) for i in range(n)],
            x=rng.normal(size=n),
            there=np.arange(n) % 3 > 0,
            kind=rng.choice([*'ab'], n),
            mass=rng.normal(9, 2, n),
            city=[*'uv'] * (n // 2),
        )
    )


def vision(df):
    dls = ConditionalDataLoaders.from_df(
        df, flow(), path='/', fn_col='img', splitter=IndexSplitter(range(10)), item_tfms=Resize(16), bs=8, num_workers=0
    )
    return Learner(dls, Net(dls.c), metrics=dls.flow.metrics())


def tabular(df):
    return conditional_tabular_learner(
        ConditionalTabularDataLoaders.from_df(
            df.drop(columns=['img', 'text']),
            flow(),
            procs=[Categorify, FillMissing, Normalize],
            valid_idx=list(range(10)),
            bs=8,
        ),
        [8],
    )


def text(df):
    return conditional_text_learner(
        ConditionalTextDataLoaders.from_df(df, flow(), splitter=IndexSplitter(range(10)), bs=8, seq_len=16, min_freq=1),
        AWD_LSTM,
        pretrained=False,
    )


APPS = dict(vision=vision, tabular=tabular, text=text)


@pytest.fixture(scope='module', params=APPS)
def learn(request, table):
    res = APPS[request.param](table)
    with res.no_bar():
        yield res


def quiet(ax):
    matplotlib.pyplot.close('all')
    return ax.get_title() if hasattr(ax, 'get_title') else None


def interp(learn, dl, what):
    return what(ConditionalInterpretation.from_learner(learn, dl=dl))


CALLS = dict(
    evaluate=lambda learn, dl: learn.evaluate(dl),
    by=lambda learn, dl: learn.evaluate(dl, metrics='accuracy', by=np.array([*'xy'] * 6)),
    cascade_report=lambda learn, dl: learn.cascade_report(dl),
    search=lambda learn, dl: learn.search_thresholds(dl=dl),
    plot_threshold=lambda learn, dl: learn.plot_threshold('there', dl=dl, n_boot=0).get_lines()[0].get_ydata().tolist(),
    calibrate=lambda learn, dl: learn.calibrate(dl=dl, min_support=1, folds=2),
    reliability=lambda learn, dl: learn.plot_reliability('there', dl=dl).get_lines()[1].get_ydata().tolist(),
    confusion=lambda learn, dl: interp(learn, dl, lambda i: i.confusion_matrix('there').tolist()),
    top=lambda learn, dl: interp(learn, dl, lambda i: i.top_losses('mass', 3)[1].tolist()),
    validate=lambda learn, dl: list(learn.validate(dl=dl)),
    get_preds=lambda learn, dl: [o.tolist() for o in learn.get_preds(dl=dl)],
    marginals=lambda learn, dl: learn.get_marginals(dl=dl),
)


def alike(a, b):
    if isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(a, b)
    else:
        assert repr(a) == repr(b) and len(a)


@pytest.mark.parametrize('what', CALLS)
def test_the_same_as_the_loader_of_its_rows(learn, table, what):
    rows, loss = table.iloc[5:29:2], learn.loss_func

    def ask(dl):
        learn.loss_func = loss.clone()
        return CALLS[what](learn, dl)

    with learn.no_logging():
        alike(ask(rows), ask(learn.dls.test_dl(rows, with_labels=True)))
    learn.loss_func = loss
    matplotlib.pyplot.close('all')


@pytest.mark.parametrize('what', [w for w in CALLS if w not in ('validate', 'get_preds', 'marginals')])
def test_items_without_labels_are_told(learn, table, what):
    rows = table.drop(columns=['there', 'kind', 'mass'])
    for dl in (rows, [1, 2, 3], [table.iloc[0], table.iloc[1]]):
        with pytest.raises(FlowError, match='with_labels=True'):
            CALLS[what](learn, dl)
    with pytest.raises(FlowError, match='empty'):
        CALLS[what](learn, table.iloc[:0])
    with pytest.raises(FlowError, match='dls.valid'):
        CALLS[what](learn, learn.dls)


def test_predictions_of_a_table_without_labels(learn, table):
    rows = table.drop(columns=['there', 'kind', 'mass']).iloc[:6]
    probs, y = learn.get_preds(dl=rows)[:2]
    assert torch.equal(probs, learn.get_preds(dl=learn.dls.test_dl(rows))[0]) and y is None


def test_results_of_a_table_are_shown(learn, table):
    learn.show_results(dl=table.iloc[:4], max_n=2)
    matplotlib.pyplot.close('all')


def test_groups_by_a_column_of_the_table(learn, table):
    res = learn.evaluate(table.iloc[:20], metrics='accuracy', by='city')
    each = [learn.evaluate(table.iloc[:20][table.city.iloc[:20] == c], metrics='accuracy') for c in 'uv']
    for c, e in zip('uv', each):
        assert res[res.city == c].metric_res.tolist() == pytest.approx(e.metric_res.tolist(), nan_ok=True)


def test_views_of_a_table(table):
    learn = vision(table)
    with learn.no_bar(), learn.no_logging():
        assert torch.equal(
            learn.tta(dl=table.iloc[:5], n=1)[1].as_subclass(torch.Tensor),
            learn.tta(dl=learn.dls.test_dl(table.iloc[:5], with_labels=True), n=1)[1].as_subclass(torch.Tensor),
        )


def test_a_stock_learner_is_left_alone(table):
    from fastai.vision.all import ImageDataLoaders

    dls = ImageDataLoaders.from_df(
        table,
        path='/',
        fn_col='img',
        label_col='kind',
        valid_pct=0.3,
        seed=0,
        item_tfms=Resize(16),
        bs=8,
        num_workers=0,
    )
    learn = Learner(dls, Net(2))
    with learn.no_bar(), learn.no_logging():
        assert len(learn.validate(dl=dls.valid)) == 1 and len(learn.get_preds()[0]) == 12
        assert learn.predict(table.img[0])[0] in ('a', 'b')
        learn.dls = dls
    assert dls.vocab == ['a', 'b'] and hasattr(dls, 'vocab')


# ---- one item and several
# ---------------------------------------------------------------------------------------------
def several(learn, df):
    "Two items in all the ways they may be handed over; those of a table first"
    col = 'img' if 'Net' in type(learn.model).__name__ else 'text'
    res = dict(
        frame=df[:2],
        rows=[df.iloc[0], df.iloc[1]],
        L=L(df.iloc[0], df.iloc[1]),
        tuple=(df.iloc[0], df.iloc[1]),
        generator=(df.iloc[i] for i in range(2)),
    )
    if type(learn).__name__ != 'TabularLearner':
        two = df[col].tolist()[:2]
        res |= dict(items=two, item_tuple=tuple(two), item_L=L(two), array=np.array(two), item_generator=iter(two))
    return res


@pytest.mark.parametrize(
    'how', ['frame', 'rows', 'L', 'tuple', 'generator', 'items', 'item_tuple', 'item_L', 'array', 'item_generator']
)
def test_predict_of_several_names_predict_df_which_gives_the_rows(learn, table, how):
    items, again = (several(learn, table).get(how) for _ in range(2))
    if items is None:
        pytest.skip('a table has rows only')
    with pytest.raises(FlowError, match=r'learn\.predict_df') as e:
        learn.predict(items)
    assert 'takes one' in str(e.value)
    got = learn.predict_df(again)
    pd.testing.assert_frame_equal(got.reset_index(drop=True), learn.predict_df(table[:2]).reset_index(drop=True))


@pytest.mark.parametrize('method', ['predict_df', 'explain', 'get_marginals'])
def test_a_dict_of_columns_is_no_list_of_items(learn, table, method):
    with pytest.raises(FlowError, match=rf'{method} takes a DataFrame or.*not one dict: .*pd\.DataFrame\(item\)'):
        getattr(learn, method)(dict(table))


def test_one_item_goes_on_working(learn, table):
    want = learn.predict_df(table[:1]).iloc[0]
    singles = [table.iloc[0], table[:1], dict(table.iloc[0])] + (
        []
        if type(learn).__name__ == 'TabularLearner'
        else [table.img[0] if 'Net' in type(learn.model).__name__ else table.text[0]]
    )
    for one in singles:
        assert learn.predict(one)[0]['mass'] == pytest.approx(want.mass, rel=1e-4)


def test_a_picture_as_numbers_is_one_item(table):
    learn, im = vision(table), Image.open(table.img[0])
    with learn.no_bar():
        want = learn.predict(table.img[0])[0]['mass']
        assert learn.predict(np.asarray(im))[0]['mass'] == pytest.approx(want, rel=1e-4)
        with pytest.raises(FlowError, match='predict_df'):
            learn.predict(np.stack([np.asarray(im)] * 2))
        with pytest.raises(FlowError, match='predict_df'):
            learn.predict(table.img[:3])  # a column of files is no row
        assert len(learn.predict_df(np.stack([np.asarray(im)] * 2))) == 2
        with pytest.raises(FlowError, match=r"list\(df"):
            learn.predict_df(table.img[:3])
    assert 'item' in inspect.signature(learn.predict).parameters
