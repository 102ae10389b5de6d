"New items without labels are shown with their predictions: pictures, rows, texts, several inputs at once"

import contextlib, io
import matplotlib.pyplot as plt
import numpy as np, pandas as pd, pytest, torch
from fastai.data.block import DataBlock
from fastai.data.transforms import ColReader, IndexSplitter
from fastai.learner import Learner, load_learner
from fastai.text.models.awdlstm import AWD_LSTM
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.data import ImageBlock
from fastai.vision.learner import vision_learner
from fastcore.basics import noop
from torchvision.models import squeezenet1_1
from fastai_condmtl.tabular.all import *
from fastai_condmtl.text.all import *
from fastai_condmtl.vision.all import *
from fastai_condmtl.core.prediction_tree import tell
from PIL import Image

SIDES = (40, 24)  # width and height of the pictures


@pytest.fixture(autouse=True)
def _no_figures():
    plt.close('all')
    yield
    plt.close('all')


class Mean(torch.nn.Module):
    "A linear layer on the mean colour"

    def __init__(self, c):
        super().__init__()
        self.last = torch.nn.Linear(3, c)

    def forward(self, x):
        return self.last(x.float().mean((2, 3)))


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    "Table and folder of pictures that are dark or red, with a box, and with columns as a second input"
    path, rng, n = tmp_path_factory.mktemp('pics'), np.random.default_rng(0), 24
    red = rng.random(n) < 0.5
    for i, r in enumerate(red):
        Image.fromarray(np.full((SIDES[1], SIDES[0], 3), (220 * r, 30, 30), np.uint8)).save(path / f'{i}.png')
    df = pd.DataFrame(
        dict(
            img=[f'{i}.png' for i in range(n)],
            red=red,
            kind=np.where(red, rng.choice(['cat', 'dog'], n), None),
            x1=5.0,
            y1=6.0,
            w=20.0,
            h=10.0,
            age=rng.random(n),
            town=rng.choice(['Rome', 'Oslo'], n),
        )
    )
    return path, df


def vision_flow():
    red = BinaryBlock('red')
    return Flow('animals', red, SingleLabelBlock('kind') | red, BoxBlock('box', cols=['x1', 'y1', 'w', 'h']))


def fitted(learn):
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
    return learn


@pytest.fixture(scope='module')
def vision(scene):
    path, df = scene
    dls = ConditionalDataLoaders.from_df(
        df,
        vision_flow(),
        path=path,
        fn_col='img',
        bs=8,
        num_workers=0,
        seed=0,
        item_tfms=Resize((30, 50), method='squish'),
        batch_tfms=aug_transforms(),
    )
    return fitted(equip(Learner(dls, Mean(dls.c))))


def lines():
    "What is written on the current figure, a list an axes with text"
    return [[t.get_text().strip() for t in ax.texts] for ax in plt.gcf().axes if ax.texts]


def agrees(tree, row):
    "Does a tree tell what a row of `predict_df` holds, and no truth?"
    text = '\n'.join(tree)
    for name in ('red', 'kind'):
        known = not pd.isna(row[name])
        assert (f'{name}: ' in text) == known
        if known:
            assert f'{name}: {tell(row[name] if name == "kind" else bool(row[name]))}' in text
    assert 'truth' not in text and '✗' not in text


@pytest.mark.parametrize('of', ['files', 'rows'])
def test_pictures(vision, scene, of):
    path, df = scene
    items = [path / f for f in df.img[:6]] if of == 'files' else df[['img']][:6]
    with vision.no_bar():
        vision.show_results(dl=vision.dls.test_dl(items))
        want = vision.predict_df(items)
    got = lines()
    assert len(got) == 6 == len([ax for ax in plt.gcf().axes if ax.images])
    for tree, (_, row) in zip(got, want.iterrows()):
        agrees(tree, row)


def test_boxes_lie_in_the_picture_that_is_shown(vision, scene):
    "One box a picture, of the prediction, in pixels of the shrunk picture; as `predict_df` tells it of the original"
    path, df = scene
    items = [path / f for f in df.img[:3]]
    with vision.no_bar():
        vision.show_results(dl=vision.dls.test_dl(items))
        want = vision.predict_df(items)
    axs = [ax for ax in plt.gcf().axes if ax.images]
    for ax, (_, row) in zip(axs, want.iterrows()):
        (box,), (h, w) = ax.patches, ax.images[0].get_array().shape[:2]
        assert (w, h) == (50, 30)
        got = (box.get_x() + 0.5) / w, (box.get_y() + 0.5) / h, box.get_width() / w, box.get_height() / h
        np.testing.assert_allclose(
            got, row[['x1', 'y1', 'w', 'h']].astype(float) / np.array([*SIDES, *SIDES]), atol=1e-4
        )


def test_how_many_and_where(vision, scene):
    path, df = scene
    items = [path / f for f in df.img[:6]]
    dl = vision.dls.test_dl(items)
    with vision.no_bar():
        vision.show_results(dl=dl, max_n=2)
        assert len(lines()) == 2
        axs = plt.subplots(2, 4)[1].flatten()
        vision.show_results(dl=dl, max_n=4, ctxs=axs, shuffle=True)
        assert [bool(ax.images) for ax in axs] == [True, False] * 4 and len(plt.get_fignums()) == 2
        vision.show_results(dl=dl, max_n=1, figsize=(3, 2), titles=['new'])
    assert tuple(plt.gcf().get_size_inches()) == (3, 2) and plt.gcf().axes[0].get_title(loc='left') == 'new'


def test_stock_and_loaded_learners(scene, tmp_path):
    path, df = scene
    dls = DataBlock(
        blocks=(ImageBlock, vision_flow()), get_x=ColReader('img', pref=path), splitter=IndexSplitter(range(6))
    ).dataloaders(df, bs=8, num_workers=0)
    learn = fitted(vision_learner(dls, squeezenet1_1, pretrained=False, path=tmp_path))
    learn.export('a.pkl')
    for which in (learn, load_learner(tmp_path / 'a.pkl')):
        plt.close('all')
        with which.no_bar():
            which.show_results(dl=which.dls.test_dl(df[['img']][:3]))
        assert len(lines()) == 3


def test_labels_are_shown_where_there_are_some(vision, scene):
    path, df = scene
    with vision.no_bar():
        vision.show_results(dl=vision.dls.test_dl(df[:3], with_labels=True))
    assert any('truth' in t for tree in lines() for t in tree)


def test_batches_of_new_items(vision, scene):
    path, df = scene
    vision.dls.test_dl([path / f for f in df.img[:5]]).show_batch(max_n=3)
    assert len([ax for ax in plt.gcf().axes if ax.images]) == 3 and not lines()


def test_picture_and_row(scene):
    path, df = scene
    dls = DataBlock(
        blocks=(ImageBlock, TabularRowBlock(['town'], ['age']), vision_flow()),
        n_inp=2,
        get_x=[ColReader('img', pref=f'{path}/'), noop],
        splitter=IndexSplitter(range(6)),
    ).dataloaders(df, bs=8, num_workers=0)
    learn = fitted(conditional_image_tabular_learner(dls, squeezenet1_1, pretrained=False))
    new = df[['img', 'town', 'age']][:4]
    dl = learn.dls.test_dl(new)
    with learn.no_bar():
        learn.show_results(dl=dl)
        want = learn.predict_df(new)
    titles = [t for ax in plt.gcf().axes if (t := ax.get_title(loc='left'))]
    assert all(f'town {t}' in title for t, title in zip(new.town, titles)) and len(titles) == 4
    for tree, (_, row) in zip(lines(), want.iterrows()):
        agrees(tree, row)
    plt.close('all')
    dl.show_batch(max_n=2)
    titles = [t for ax in plt.gcf().axes if (t := ax.get_title(loc='left'))]
    assert len(titles) == 2 and 'town' in titles[0]


# Tables


@pytest.fixture(scope='module')
def tabular():
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(age=rng.random(60), job=rng.choice(['a', 'b'], 60)))
    sick = BinaryBlock('sick')
    flow = Flow('health', sick, UnboundedRegressionBlock('cost') | sick)
    dls = ConditionalTabularDataLoaders.from_df(df.assign(sick=rng.random(60) < 0.5, cost=rng.random(60)), flow, bs=8)
    return fitted(conditional_tabular_learner(dls, [8])), df


def test_rows_of_a_table(tabular, capsys):
    learn, df = tabular
    capsys.readouterr()
    with learn.no_bar():
        learn.show_results(dl=learn.dls.test_dl(df[:5]), max_n=4)
        want = learn.predict_df(df[:4])
    head, *rows = capsys.readouterr().out.strip().split('\n')
    assert head.split() == ['job', 'age', 'sick', 'cost'] and len(rows) == 4
    for row, (_, w) in zip(rows, want.iterrows()):
        job, age, sick, *cost = row.split()
        assert sick == tell(bool(w.sick)) and len(cost) == int(w.sick)
        if cost:
            assert float(cost[0]) == pytest.approx(w.cost, rel=1e-3)
    learn.dls.test_dl(df[:5]).show_batch(max_n=2)
    assert 'sick' not in capsys.readouterr().out


# Texts


def texts(flow, **kwargs):
    rng = np.random.default_rng(0)
    df = pd.DataFrame(
        dict(
            text=[
                ' '.join(rng.choice(['good', 'bad', 'food', 'slow', 'fine', 'dear', 'near'], 5, replace=False))
                for _ in range(40)
            ]
        )
    )
    told = df.assign(good=df.text.str.contains('good'), topic=rng.choice(['food', 'price'], 40))
    return ConditionalTextDataLoaders.from_df(told, flow, bs=8, seq_len=16, seed=0, **kwargs), df


def printed(do):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        do()
    return out.getvalue()


def test_texts():
    good = BinaryBlock('good')
    dls, df = texts(Flow('reviews', good, SingleLabelBlock('topic') | good), min_freq=1)
    learn = fitted(conditional_text_learner(dls, AWD_LSTM, pretrained=False))
    dl = dls.test_dl(df[:4])
    with learn.no_bar():
        shown = printed(lambda: learn.show_results(dl=dl, max_n=3)).strip().split('\n\n')
        want = learn.predict_df(df[:4])
    by_text = dict(zip(df.text, want.good))
    assert len(shown) == 3 and 'truth' not in '\n'.join(shown)
    for block in shown:
        text, *tree = block.split('\n')
        assert f'good: {tell(bool(by_text[text]))}' in tree[0]
    alone = printed(lambda: dl.show_batch(max_n=2)).strip().split('\n\n')
    assert len(alone) == 2 and set(alone) <= set(df.text)


def test_texts_of_which_words_are_guessed():
    "Nothing is masked in a new text, so no word is asked; the other tasks are told"
    dls, df = texts(Flow('reviews', MaskedLMBlock('words', n_masks=2), BinaryBlock('good')), min_freq=1)
    learn = fitted(conditional_lm_learner(dls, d_model=16, n_layers=1, n_heads=2))
    with learn.no_bar():
        shown = printed(lambda: learn.show_results(dl=dls.test_dl(df[:2])))
    assert shown.count('good: ') == 2 and 'truth' not in shown


# Losses need labels


def test_losses_of_unlabelled_rows_are_a_clear_error(vision, tabular, scene):
    path, df = scene
    for learn, items in ((vision, [path / f for f in df.img[:3]]), (tabular[0], tabular[1][:4])):
        with pytest.raises(FlowError, match='no labels to compare with'):
            ConditionalInterpretation.from_learner(learn, dl=learn.dls.test_dl(items))
