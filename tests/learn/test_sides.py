"Labels that speak of sides are told before the training where pictures are mirrored, and nothing is said elsewhere"

import warnings
import numpy as np, pandas as pd, pytest, torch
from fastai.learner import Learner
from fastai.torch_core import TensorImage
from fastai.vision.augment import *
from fastai.vision.core import PILImage
from fastcore.foundation import L
from PIL import Image
from fastai_condmtl.vision.all import *
from fastai_condmtl.learn.side_words import speaks_of, words_of
from fastai_condmtl.learn.sides import mirrors_of

N, SIZE = 8, 16
STILL = dict(max_rotate=0, max_zoom=1, max_warp=0, max_lighting=0)


@pytest.fixture(scope='module')
def pics(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp('sides'), np.random.default_rng(0)
    for i in range(N):
        Image.fromarray(rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)).save(path / f'{i}.png')
    df = pd.DataFrame(
        dict(
            img=[f'{i}.png' for i in range(N)],
            yes=[0, 1] * 4,
            side=['left', 'right'] * 4,
            colour=['white', 'grey'] * 4,
            marks=['left_door', 'right_door'] * 4,
            left_eye=[0, 1] * 4,
            right_eye=[1, 0] * 4,
            turn=['clockwise', 'none'] * 4,
            wind=['east', 'west'] * 4,
            storey=['upper', 'lower'] * 4,
            answer=['right', 'wrong'] * 4,
            rest=['leftover', 'bright'] * 4,
            grade=['far left', 'middle'] * 4,
            number=np.linspace(1, 9, N),
        )
    )
    for c in ('a_x', 'a_y', 'b_x', 'b_y'):
        df[c] = np.linspace(3, 12, N)
    return path, df


class Mean(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.last = torch.nn.Linear(3, c)

    def forward(self, x):
        return self.last(x.float().mean((2, 3)))


def data(pics, flow, **tfms):
    path, df = pics
    return ConditionalDataLoaders.from_df(
        df, flow, path=path, fn_col='img', bs=4, num_workers=0, splitter=lambda d: (L(range(N)), L()), **tfms
    )


def said(pics, flow, make=Learner, **tfms):
    "The warnings of flips, from the data to the end of a fit of one epoch"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        learn = make(data(pics, flow, **tfms))
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-3)
    return [str(w.message) for w in seen if issubclass(w.category, FlowWarning) and 'flip' in str(w.message).lower()]


def stock(dls):
    return Learner(dls, Mean(dls.c))


def equipped(dls):
    return equip(stock(dls))


# What is said

SAID = {
    'classes': (lambda: SingleLabelBlock('side'), "'side' ('left', 'right')"),
    'an ordinal': (lambda: OrdinalBlock('grade', vocab=['far left', 'middle']), "'grade' ('far left')"),
    'words for yes and no': (lambda: BinaryBlock('side', vocab=('left', 'right')), "'side' ('left', 'right')"),
    'labels': (lambda: MultiLabelBlock('marks'), "'marks' ('left_door', 'right_door')"),
    'labels of columns': (
        lambda: MultiLabelBlock('eyes', cols=['left_eye', 'right_eye']),
        "'eyes' ('left_eye', 'right_eye')",
    ),
    'columns whose labels have other names': (
        lambda: MultiLabelBlock('eyes', cols=['left_eye', 'right_eye'], vocab=['one', 'other']),
        "task 'eyes'",
    ),
    'names of tasks': (
        lambda: Flow('f', BinaryBlock('left_eye'), BinaryBlock('right_eye')),
        "task 'left_eye', task 'right_eye'",
    ),
    'one name alone': (lambda: BinaryBlock('LeftEye', col='yes'), "task 'LeftEye'"),
    'the name of a flow': (lambda: Flow('f', Flow('left_eye', BinaryBlock('open', 'yes'))), "task 'left_eye.open'"),
    'the name of a column': (lambda: BinaryBlock('eye', col='left_eye'), "task 'eye'"),
    'numbers': (lambda: BoundedRegressionBlock('left_margin', 'number'), "task 'left_margin'"),
    'counts': (lambda: CountBlock('cars_on_the_left', 'yes'), "task 'cars_on_the_left'"),
    'angles': (lambda: UnboundedRegressionBlock('steering_angle', 'number'), "task 'steering_angle'"),
    'coordinates as numbers': (
        lambda: Flow('f', UnboundedRegressionBlock('nose_x', 'a_x'), UnboundedRegressionBlock('nose_y', 'a_y')),
        "task 'nose_x'",
    ),
    'the sense of rotation': (lambda: SingleLabelBlock('turn'), "'turn' ('clockwise')"),
    'points of the compass': (lambda: SingleLabelBlock('wind'), "'wind' ('east', 'west')"),
    'letters': (
        lambda: Flow('f', BinaryBlock('l_eye', 'yes'), BinaryBlock('r_eye', 'yes')),
        "task 'l_eye', task 'r_eye'",
    ),
    'a box with a side': (
        lambda: BoxBlock('left_hand', cols=['a_x', 'a_y', 'b_x', 'b_y'], fmt='xyxy'),
        "task 'left_hand'",
    ),
}


@pytest.mark.parametrize('what', list(SAID))
def test_labels_of_sides_are_told(pics, what):
    make, name = SAID[what]
    (text,) = said(pics, make(), stock, item_tfms=FlipItem())
    assert text.startswith('FlipItem flips pictures') and name in text and 'leave FlipItem out' in text
    assert not said(pics, make(), stock, batch_tfms=aug_transforms(do_flip=False))


QUIET = {
    'colours': lambda: SingleLabelBlock('colour'),
    'other words that hold these': lambda: SingleLabelBlock('rest'),
    'right and wrong': lambda: SingleLabelBlock('answer'),
    'top and bottom': lambda: SingleLabelBlock('storey'),
    'a number': lambda: UnboundedRegressionBlock('x', 'number'),
    'copyright': lambda: BinaryBlock('copyright', 'yes'),
    'bread that is left over': lambda: BinaryBlock('left_over', 'yes'),
    'one letter': lambda: BinaryBlock('l_shape', 'yes'),
    'a dog': lambda: BinaryBlock('West_Highland_terrier', 'yes'),
    'points': lambda: KeypointsBlock('nose', cols=['a_x', 'a_y']),
    'a box': lambda: BoxBlock('box', cols=['a_x', 'a_y', 'b_x', 'b_y'], fmt='xyxy'),
}


@pytest.mark.parametrize('what', list(QUIET))
def test_nothing_is_said_where_no_label_speaks_of_sides(pics, what):
    assert not said(pics, QUIET[what](), stock, item_tfms=FlipItem(), batch_tfms=aug_transforms())


def test_points_with_sides_need_counterparts(pics):
    points = lambda **kw: KeypointsBlock('eyes', cols=['a_x', 'a_y', 'b_x', 'b_y'], points=['left', 'right'], **kw)
    (text,) = said(pics, points(), stock, batch_tfms=aug_transforms())
    assert "point 'left', 'right' of task 'eyes'" in text and "write flip_pairs=[('left', 'right')]" in text
    assert not said(pics, points(flip_pairs=[('left', 'right')]), stock, batch_tfms=aug_transforms())
    assert not said(pics, points(), stock, batch_tfms=aug_transforms(do_flip=False))


@pytest.mark.parametrize(
    'make', [stock, equipped, lambda dls: vision_learner_of(dls)], ids=['stock', 'equipped', 'conditional']
)
def test_every_learner_says_it(pics, make):
    (text,) = said(pics, SingleLabelBlock('side'), make, item_tfms=Resize(64), batch_tfms=aug_transforms())
    assert "Flip flips pictures" in text and 'aug_transforms(do_flip=False)' in text


def vision_learner_of(dls):
    from torchvision.models import squeezenet1_1

    return conditional_vision_learner(dls, squeezenet1_1, pretrained=False)


def test_vertical_flips(pics):
    flow = lambda: Flow('f', SingleLabelBlock('storey'), SingleLabelBlock('side'))
    (text,) = said(pics, flow(), stock, batch_tfms=aug_transforms(flip_vert=True, **STILL))
    assert text.startswith('Dihedral') and "'storey' ('lower', 'upper')" in text and "'side' ('left', 'right')" in text
    (text,) = said(pics, flow(), stock, item_tfms=DihedralItem())
    assert 'DihedralItem' in text and 'storey' in text
    (text,) = said(pics, flow(), stock, batch_tfms=aug_transforms(**STILL))
    assert 'storey' not in text and 'side' in text


def test_transforms_by_source(pics):
    path, df = pics
    both = (path, df.assign(source=['street', 'porch'] * 4))
    dls = lambda p: dict(item_tfms=SourceTfms({'street': FlipItem(p), 'porch': CropPad(SIZE)}, default='porch'))
    assert said(both, SingleLabelBlock('side'), stock, **dls(0.5)) and not said(
        both, SingleLabelBlock('side'), stock, **dls(0.0)
    )


# Transforms: what is said of them is what they do

RANDOM = dict(flip=Flip, dihedral=Dihedral, flip_item=FlipItem, dihedral_item=DihedralItem)
TFMS = {
    **{f'{k} p={p}': (f, dict(p=p)) for k, f in RANDOM.items() for p in (0.0, 0.5, 1.0)},
    **{f'flip draw={d}': (Flip, dict(draw=d)) for d in (0, 1, [0] * 8, [0, 1] * 4)},
    **{f'dihedral draw={d}': (Dihedral, dict(draw=d, p=1.0)) for d in range(8)},
    'rotate 10': (Rotate, dict(max_deg=10)),
    'rotate 180': (Rotate, dict(draw=180, p=1.0)),
    'zoom': (Zoom, {}),
    'brightness': (Brightness, {}),
    'erasing': (RandomErasing, dict(p=1.0)),
    'deterministic': (DeterministicFlip, {}),
    'warp': (Warp, {}),
}


@pytest.mark.parametrize('what', list(TFMS))
def test_what_transforms_do(what):
    "A dark and a bright half are seen exchanged by some call, or by none"
    make, args = TFMS[what]
    tfm = make(**args)
    done = set()
    torch.manual_seed(0)
    import random

    random.seed(0)
    for way, cut in (('across', (slice(None), slice(SIZE // 2))), ('upright', (slice(SIZE // 2), slice(None)))):
        for _ in range(60):
            px = np.zeros((SIZE, SIZE, 3), np.uint8)
            px[cut] = 255
            if isinstance(tfm, (FlipItem, DihedralItem)):
                x = torch.from_numpy(np.array(tfm(PILImage.create(px), split_idx=0))).permute(2, 0, 1)[None].float()
            else:
                x = tfm(
                    TensorImage(torch.from_numpy(px).permute(2, 0, 1)[None].repeat(8, 1, 1, 1).float() / 255),
                    split_idx=0,
                )
            x = x.as_subclass(torch.Tensor)[:, 0]
            bright, dark = (
                (x[:, :, :6].mean((1, 2)), x[:, :, -6:].mean((1, 2)))
                if way == 'across'
                else (x[:, :6].mean((1, 2)), x[:, -6:].mean((1, 2)))
            )
            if ((dark - bright) > 0.5 * x.max()).any():
                done.add(way)
    told = set().union(*(m.ways for m in mirrors_of([tfm]))) - {'handed'}
    assert told == done or what.startswith('dihedral draw=') and told >= done


def test_composed_transforms_are_seen_and_those_of_validation_are_not():
    assert [m.name for m in mirrors_of(aug_transforms())] == ['Flip'] and not mirrors_of(aug_transforms(do_flip=False))
    assert [m.name for m in mirrors_of(aug_transforms(flip_vert=True))] == ['Dihedral'] and [
        m.name for m in mirrors_of(aug_transforms(do_flip=False, max_rotate=180))
    ] == ['Rotate']
    late = FlipItem()
    late.split_idx = 1
    assert not mirrors_of([late])


# Words


@pytest.mark.parametrize(
    'text, words',
    [
        ('left_eye_open', 'left eye open'),
        ('LeftEye', 'left eye'),
        ('leftEYE2', 'left eye 2'),
        ('eyeL', 'eye l'),
        ('a.b-c d', 'a b c d'),
        ('œil gauche', 'œil gauche'),
    ],
)
def test_words(text, words):
    assert ' '.join(words_of(text)) == words


@pytest.mark.parametrize(
    'others, yes',
    [
        (['lx', 'rx'], False),
        (['L', 'R'], True),
        (['eye L', 'eye R'], True),
        (['S', 'M', 'L'], False),
        (['north', 'east', 'west'], True),
        (['right', 'left', 'wrong'], False),
        (['port', 'airport'], False),
        (['port', 'starboard'], True),
    ],
)
def test_ambiguous_words_need_their_counterpart(others, yes):
    beside = {words_of(o) for o in others}
    assert any(speaks_of(o, ('across',), beside) for o in others if o != 'left') == yes


# Views


def test_views_that_are_averaged(pics):
    def heard(flow, **tfms):
        learn = stock(data(pics, flow, **tfms))
        with warnings.catch_warnings(record=True) as seen, learn.no_bar(), learn.no_logging():
            warnings.simplefilter('always')
            learn.tta(ds_idx=0, n=2)
        return [str(w.message) for w in seen if 'learn.tta averages' in str(w.message)]

    box = BoxBlock('box', cols=['a_x', 'a_y', 'b_x', 'b_y'], fmt='xyxy')
    (text,) = heard(Flow('f', SingleLabelBlock('side'), SingleLabelBlock('colour'), box), batch_tfms=aug_transforms())
    assert "of 'side' are not moved back: write learn.get_preds" in text and 'box' not in text
    assert not heard(SingleLabelBlock('colour'), batch_tfms=aug_transforms()) and not heard(SingleLabelBlock('side'))
    assert not heard(Flow('f', box), item_tfms=CropPad(SIZE)) and not heard(
        SingleLabelBlock('side'), batch_tfms=aug_transforms(do_flip=False)
    )
