"""Points and boxes: against fastai's own point and box types under the same random transforms, against what is
seen in the picture, and against hand-made maps back to the original."""

import random, warnings
import numpy as np, pandas as pd, pytest, torch
from PIL import ImageOps
from fastai.vision.all import (
    CropPad,
    DataBlock,
    DihedralItem,
    Flip,
    FlipItem,
    Image,
    ImageBlock,
    Learner,
    Normalize,
    PILImage,
    PointScaler,
    RandomCrop,
    RandomResizedCrop,
    RandomResizedCropGPU,
    RatioResize,
    Resize,
    Rotate,
    TensorBBox,
    TensorPoint,
    TransformBlock,
    aug_transforms,
    imagenet_stats,
    load_learner,
    nn,
    plt,
    xresnet18,
)
from fastai_condmtl.vision.all import (
    BinaryBlock,
    BoundedRegressionBlock,
    ConditionalDataLoaders,
    Flow,
    FlowError,
    MultiLabelBlock,
    SingleLabelBlock,
    UnboundedRegressionBlock,
    conditional_vision_learner,
    task,
)
from fastai_condmtl.tasks.box import BoxBlock
from fastai_condmtl.tasks.keypoints import KeypointsBlock
from fastai_condmtl.vision.frames import _png_size, original_frames
from fastai_condmtl.vision.points import TensorConditionalPoints
from fastai_condmtl.datasets.faces import POINTS, XY, faces

SIZES = [(64, 48), (50, 80), (90, 40), (64, 64), (33, 57), (120, 121)]
PTS, BOX = [f'{p}_{a}' for p in 'abc' for a in 'xy'], ['bx', 'by', 'bw', 'bh']


def draw(tmp, n=6, seed=0):
    "Pictures of different sizes with coordinates well inside"
    rng, rows = np.random.default_rng(seed), []
    for i in range(n):
        w, h = SIZES[i % len(SIZES)]
        Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)).save(tmp / f'{i}.png')
        xy = rng.uniform(0.3, 0.7, (3, 2)) * (w, h)
        x1, y1, bw, bh = *rng.uniform(0.25, 0.4, 2) * (w, h), *rng.uniform(0.2, 0.35, 2) * (w, h)
        rows.append([f'{i}.png', *xy.flatten(), x1, y1, bw, bh, float(i % 2)])
    return pd.DataFrame(rows, columns=['img', *PTS, *BOX, 'odd'])


@pytest.fixture(scope='module')
def pics(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('points')
    return tmp, draw(tmp)


def both(**kwargs):
    return Flow('f', BinaryBlock('odd'), KeypointsBlock('pts', PTS, **kwargs), BoxBlock('box', BOX))


def loaders(pics, y_block, get_y, item_tfms=None, batch_tfms=None, **kwargs):
    tmp, df = pics
    d = DataBlock(
        blocks=(ImageBlock, y_block),
        get_x=lambda r: tmp / r.img,
        get_y=get_y,
        splitter=lambda o: (list(range(len(df))), [0, 1]),
        item_tfms=item_tfms,
        batch_tfms=batch_tfms,
    )
    return d.dataloaders(df, bs=len(df), num_workers=0, **kwargs)


def rolled(dls, idx=0, seed=3):
    "One batch under seeded transforms"
    dl = dls[idx].new(shuffle=False, drop_last=False)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    x, y = dl.one_batch()
    return x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor)


class FirstScaler(PointScaler):
    "fastai's, but before the item transforms of order 0, which its own comes after"

    order = -100


def corners(df):
    return df.assign(r=df.bx + df.bw, b=df.by + df.bh)[['bx', 'by', 'r', 'b']].to_numpy()


def reference(pics, scaler=PointScaler, **kwargs):
    "The same coordinates as fastai's points, and as its boxes"
    tmp, df = pics
    p = loaders(
        pics,
        TransformBlock(type_tfms=TensorPoint.create, item_tfms=scaler),
        lambda r: r[PTS].to_numpy(dtype=float).reshape(-1, 2),
        **kwargs,
    )
    b = loaders(
        pics,
        TransformBlock(type_tfms=TensorBBox.create, item_tfms=scaler),
        lambda r: [r.bx, r.by, r.bx + r.bw, r.by + r.bh],
        **kwargs,
    )
    return p, b


def compare(pics, idx, scaler=PointScaler, make=lambda: dict(item_tfms=Resize(48)), boxes=True):
    (x, y), (xp, p), *xb = [
        rolled(d, idx) for d in (loaders(pics, both(), None, **make()), *reference(pics, scaler, **make())[: 1 + boxes])
    ]
    assert torch.equal(x, xp) and all(torch.equal(x, o) for o, _ in xb)  # the same pictures
    vals, mask = y.unbind(1)
    own, ref = vals[:, 1:7].reshape(-1, 3, 2), p.reshape(-1, 3, 2)
    inside_ = (ref.abs() <= 1).all(-1)
    assert inside_.float().mean() > 0.4
    assert torch.allclose(own[inside_], ref[inside_], atol=1e-5)
    assert torch.equal(mask[:, 1:7].reshape(-1, 3, 2).bool().all(-1), inside_)  # what has left counts no more
    assert (own[~inside_] == 0).all()
    for _, b in xb:
        c = b.reshape(-1, 2, 2)
        ref = torch.cat([c.amin(1), c.amax(1)], 1).clamp(-1, 1)  # fastai leaves a flipped box's corners where they are
        left = ((ref[:, 2:] - ref[:, :2]) > 0).all(1)
        assert torch.allclose(vals[left, 7:], ref[left], atol=1e-5) and torch.equal(mask[:, 7:].bool().all(1), left)
    assert (
        torch.equal(vals[:, 0], torch.tensor([0.0, 1] * 3)[: len(vals)]) and (mask[:, 0] == 1).all()
    )  # others are left alone


ITEM = dict(
    squish=lambda: Resize(48, method='squish'),
    crop=lambda: Resize(48),
    pad=lambda: Resize(48, method='pad', pad_mode='zeros'),
    oblong=lambda: Resize((40, 72)),
    random_crop=lambda: RandomCrop(32),
)


@pytest.mark.parametrize('idx', [0, 1])
@pytest.mark.parametrize('name', ['squish', 'crop', 'pad', 'oblong', 'random_crop'])
def test_item_transforms(pics, name, idx):
    compare(pics, idx, make=lambda: dict(item_tfms=ITEM[name]()))


def test_random_resized_crop(pics):
    compare(pics, 0, make=lambda: dict(item_tfms=RandomResizedCrop(40, min_scale=0.3)))


@pytest.mark.parametrize('tfm', [lambda: FlipItem(p=0.5), lambda: DihedralItem(p=0.9), lambda: CropPad(60)])
def test_item_transforms_of_order_0(pics, tfm):
    "After these fastai resizes right too, where its points are scaled first (`PointBlock` itself scales them too late)"
    compare(
        pics,
        0,
        FirstScaler,
        make=lambda: dict(item_tfms=[tfm(), *([] if isinstance(tfm(), CropPad) else [Resize(48, method='squish')])]),
        boxes=not isinstance(tfm(), FlipItem),
    )  # a resize after FlipItem raises for fastai's boxes


BATCH = dict(
    flip=lambda: aug_transforms(max_rotate=0, max_zoom=1, max_warp=0, max_lighting=0),
    rotate=lambda: aug_transforms(do_flip=False, max_rotate=40, p_affine=1, max_zoom=1, max_warp=0),
    zoom=lambda: aug_transforms(do_flip=False, max_rotate=0, min_zoom=0.7, max_zoom=1.8, p_affine=1, max_warp=0),
    warp=lambda: aug_transforms(do_flip=False, max_rotate=0, max_zoom=1, max_warp=0.4, p_affine=1),
    all=lambda: aug_transforms(max_rotate=30, max_zoom=1.5, max_warp=0.3, p_affine=1),
    dihedral=lambda: aug_transforms(flip_vert=True, max_rotate=20, p_affine=1),
    size=lambda: aug_transforms(size=(32, 48), max_rotate=30, p_affine=1),
    normalize=lambda: [*aug_transforms(), Normalize.from_stats(*imagenet_stats)],
)


@pytest.mark.parametrize('idx', [0, 1])
@pytest.mark.parametrize('name', list(BATCH))
def test_batch_transforms(pics, name, idx):
    compare(pics, idx, make=lambda: dict(item_tfms=Resize(48, method='squish'), batch_tfms=BATCH[name]()))


# --- what is seen in the picture ------------------------------------------------------------------------------------
def blobs(tmp, n=8):
    "Red, green and blue discs on black, where the points are; the red one is also the middle of a box"
    rng, rows = np.random.default_rng(5), []
    for i in range(n):
        w, h = [(160, 120), (130, 170), (150, 150)][i % 3]
        im, xy = (
            np.zeros((h, w, 3), np.uint8),
            np.array([[0.35, 0.35], [0.65, 0.4], [0.45, 0.65]]) * (w, h) + rng.uniform(-8, 8, (3, 2)),
        )
        yy, xx = np.mgrid[:h, :w] + 0.5
        for c, (x, y) in enumerate(xy):
            im[..., c] = 255 * ((xx - x) ** 2 + (yy - y) ** 2 < 36)
        Image.fromarray(im).save(tmp / f'{i}.png')
        rows.append([f'{i}.png', *xy.flatten(), *(xy[0] - 10), 20, 20, 0.0])
    return pd.DataFrame(rows, columns=['img', *PTS, *BOX, 'odd'])


SEEN = dict(
    two_resizes=dict(item_tfms=[Resize(110), CropPad(90)]),
    two_crops=dict(item_tfms=[RandomCrop(100), Resize(80, method='pad', pad_mode='zeros')]),
    chain=dict(item_tfms=[CropPad(140), FlipItem(), DihedralItem(), RandomResizedCrop(100, min_scale=0.5)]),
    valid_crop=dict(item_tfms=RandomResizedCrop(96)),
    gpu_crop=dict(item_tfms=Resize(128), batch_tfms=RandomResizedCropGPU((90, 70), min_scale=0.5)),
    gpu_crop_oblong=dict(
        item_tfms=Resize((96, 160), method='squish'),
        batch_tfms=RandomResizedCropGPU(80, min_scale=0.4, valid_scale=0.8),
    ),
    all=dict(
        item_tfms=Resize(128, method='squish'),
        batch_tfms=aug_transforms(max_rotate=30, max_warp=0.3, p_affine=1, max_lighting=0),
    ),
    two_affine=dict(
        item_tfms=RatioResize(100),
        batch_tfms=[*aug_transforms(size=96, max_lighting=0), RandomResizedCropGPU(64, min_scale=0.7)],
    ),
)
SEEN['two_affine']['item_tfms'] = [SEEN['two_affine']['item_tfms'], CropPad(100)]


@pytest.mark.parametrize('idx', [0, 1])
@pytest.mark.parametrize('name', list(SEEN))
def test_points_are_where_the_picture_shows_them(tmp_path, name, idx):
    """No reference but the pixels: also where fastai's own points go wrong (two crops in a row, the crop of a
    validation set, RandomResizedCropGPU)"""
    df, seen = blobs(tmp_path), 0
    x, y = rolled(loaders((tmp_path, df), both(), None, **SEEN[name]), idx)
    h, w = x.shape[-2:]
    yy, xx = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing='ij')
    for im, vals, mask in zip(x, y[:, 0, 1:7].reshape(-1, 3, 2), y[:, 1, 1:7].reshape(-1, 3, 2)):
        for c in range(3):
            px, py = ((vals[c] + 1) / 2 * torch.tensor([w, h])).tolist()
            if not mask[c].all() or not (9 < px < w - 9 and 9 < py < h - 9):
                continue  # cut, or mirrored at the edge
            near = im[c] * ((xx - px) ** 2 + (yy - py) ** 2 < 14**2)
            assert (
                near.sum() > 5
                and abs((near * xx).sum() / near.sum() - px) < 1.3
                and abs((near * yy).sum() / near.sum() - py) < 1.3
            )
            seen += 1
    assert seen >= 4


# --- masks, clamps, pairs -------------------------------------------------------------------------------------------
def test_outside(pics):
    tmp, df = pics
    df = df.copy()
    df.loc[0, ['a_x', 'a_y']] = -3.0, 10.0
    df.loc[1, ['a_x', 'a_y']] = np.nan
    df.loc[2, 'bx'] = 85.0
    df.loc[3, 'bx'] = 70.0
    df.loc[4, 'bh'] = np.nan
    _, y = rolled(loaders((tmp, df), both(), None, item_tfms=Resize(48, method='squish')))
    assert (
        y[0, 1, 1:3].tolist() == [0, 0]
        and y[0, 1, 3:7].tolist() == [1] * 4
        and y[1, 1, 1:7].tolist() == [0, 0, 1, 1, 1, 1]
    )
    assert (
        y[2, 1, 7:].tolist() == [1] * 4 and y[2, 0, 9] == 1 and y[2, 0, 7] == pytest.approx(85 / 90 * 2 - 1, abs=1e-5)
    )  # cut off at the right edge
    assert y[3, 1, 7:].tolist() == [0] * 4 and y[4, 1, 7:].tolist() == [0] * 4  # nothing left; height not known
    _, y = rolled(loaders((tmp, df), both(outside='clamp'), None, item_tfms=Resize(48, method='squish')))
    assert (
        y[0, 1, 1:3].tolist() == [1, 1] and y[0, 0, 1] == -1 and y[0, 0, 2] == pytest.approx(10 / 48 * 2 - 1, abs=1e-5)
    )
    assert y[1, 1, 1:3].tolist() == [0, 0] and not y.isnan().any()  # a label that is missing is not clamped into being


@pytest.mark.parametrize('name', ['squish', 'crop'])
def test_weights_of_rows_move_no_point(pics, name):
    "A packed mask holds the weights of rows, which are no part of the coordinates"
    tmp, df = pics
    weights = torch.tensor([0.5, 2, 0, 1, 3, 0.25])
    df = df.assign(w=weights.numpy())
    flow = Flow('f', KeypointsBlock('pts', PTS, weight_col='w', outside='clamp'), BoxBlock('box', BOX, weight_col='w'))
    plain = Flow('f', KeypointsBlock('pts', PTS, outside='clamp'), BoxBlock('box', BOX))
    for batch_tfms in (None, aug_transforms(max_rotate=30, p_affine=1)):
        how = dict(item_tfms=ITEM[name](), batch_tfms=batch_tfms)
        (_, got), (_, want) = (rolled(loaders((tmp, df), f, None, **how)) for f in (flow, plain))
        assert torch.equal(got[:, 1], want[:, 1] * weights[:, None])
        assert want[:, 1].mean() > 0.9 and torch.equal(got[:, 0], want[:, 0] * (weights[:, None] > 0))


def test_gates_and_points(pics):
    "A point counts where its task has meaning and the point is known and inside"
    tmp, df = pics
    odd = BinaryBlock('odd')
    flow = Flow('f', odd, KeypointsBlock('pts', PTS) | odd, BoxBlock('box', BOX) | ~odd)
    _, y = rolled(loaders((tmp, df), flow, None, item_tfms=Resize(48, method='squish')))
    assert torch.equal(
        y[:, 1, 1:7].bool().all(1), df.odd.eq(1).pipe(lambda s: torch.tensor(s.to_numpy()))
    ) and torch.equal(y[:, 1, 7:].bool().all(1), torch.tensor(df.odd.eq(0).to_numpy()))


FLIPS = dict(
    item=dict(item_tfms=[FlipItem(p=1.0), Resize(48, method='squish')]),
    batch=dict(item_tfms=Resize(48, method='squish'), batch_tfms=Flip(p=1.0)),
)


@pytest.mark.parametrize('how', list(FLIPS))
def test_flip_pairs(pics, how):
    tmp, df = pics
    df = df.copy()
    df.loc[0, 'a_x'] = np.nan
    _, plain = rolled(loaders((tmp, df), both(), None, **FLIPS[how]))
    _, y = rolled(loaders((tmp, df), both(flip_pairs=[('a', 'c')]), None, **FLIPS[how]))
    assert torch.equal(y, plain[..., [0, 5, 6, 3, 4, 1, 2, 7, 8, 9, 10]]) and y[0, 1, 5:7].tolist() == [
        0,
        0,
    ]  # values and masks


def test_flip_pairs_of_half_a_batch(pics):
    "Sample by sample, and only where an odd number of mirrors met"
    kw = lambda: dict(
        item_tfms=Resize(48, method='squish'), batch_tfms=[Flip(draw=[0, 1, 0, 1, 1, 0], p=1.0), Rotate(30, p=1.0)]
    )
    _, plain = rolled(loaders(pics, both(outside='clamp'), None, **kw()))
    _, y = rolled(loaders(pics, both(outside='clamp', flip_pairs=[('a', 'b')]), None, **kw()))
    swapped = plain[..., [0, 3, 4, 1, 2, 5, 6, 7, 8, 9, 10]]
    assert [torch.equal(a, s) for a, s in zip(y, swapped)] == [False, True, False, True, True, False] and [
        torch.equal(a, p) for a, p in zip(y, plain)
    ] == [True, False, True, False, False, True]


@pytest.mark.parametrize('k', range(8))
def test_dihedral_swaps_where_it_mirrors(k):
    from fastai_condmtl.core.geometry import Geometry
    from fastai_condmtl.core.mirror_rule import MirrorRule

    y = torch.tensor([[-0.5, -0.2, 0.7, 0.1], [1.0, 1, 1, 1]]).as_subclass(TensorConditionalPoints)
    y.geo, y.img_size = Geometry(points=(0, 1, 2, 3), mirror=MirrorRule((2, 3, 0, 1))), (64, 48)
    plain = TensorPoint(torch.tensor([[-0.5, -0.2], [0.7, 0.1]])).dihedral(k).as_subclass(torch.Tensor)
    e = TensorPoint(torch.tensor([[0.0, 0], [1, 0], [0, 1]])).dihedral(k).as_subclass(torch.Tensor)
    mirrored = bool(torch.linalg.det(e[1:] - e[0]) < 0)
    got = y.dihedral(k)
    assert torch.equal(
        got[0].as_subclass(torch.Tensor).reshape(2, 2), plain.flip(0) if mirrored else plain
    ) and got.img_size == tuple(Image.new('L', (64, 48)).size if k in (0, 1, 2, 4) else (48, 64))


# --- back to the original -------------------------------------------------------------------------------------------
def crop_back(w, h, s):
    m = min(w, h) / s
    c = int(m * s)
    return lambda x, y: (int(0.5 * (w - c)) + (x + 1) / 2 * c, int(0.5 * (h - c)) + (y + 1) / 2 * c)


def pad_back(w, h, s):
    m = max(w, h) / s
    c = int(m * s)
    return lambda x, y: (int(0.5 * (w - c)) + (x + 1) / 2 * c, int(0.5 * (h - c)) + (y + 1) / 2 * c)


def squish_back(w, h, s):
    return lambda x, y: ((x + 1) / 2 * w, (y + 1) / 2 * h)


@pytest.mark.parametrize('method,back', [('crop', crop_back), ('pad', pad_back), ('squish', squish_back)])
def test_original_pixels(pics, method, back):
    "Told by `predict`, `predict_df` and `explain` alike: the activations, mapped back by hand"
    tmp, df = pics
    dls = loaders(
        pics, both(), None, item_tfms=Resize(48, method=method), batch_tfms=aug_transforms(size=32, max_rotate=30)
    )
    torch.manual_seed(1)
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, dls.c)))
    tree, table = learn.explain(df), learn.predict_df(df)
    for i, (w, h) in enumerate(SIZES):
        pred, dec, _ = learn.predict(df.iloc[i])
        f, v = back(w, h, 48), dec.as_subclass(torch.Tensor)[0].tolist()
        for j, l in enumerate('abc'):
            want = f(v[1 + 2 * j], v[2 + 2 * j])
            assert pred['pts'][l] == pytest.approx(want, abs=1e-2) and table.loc[
                i, [f'{l}_x', f'{l}_y']
            ].tolist() == pytest.approx(want, abs=1e-2)
            assert tree[(i, 'pts')].data['value'][l] == pytest.approx(want, abs=1e-2) and pred.shapes()[
                f'pts.{l}'
            ] == pytest.approx((want[0] / w, want[1] / h), abs=1e-3)
        (x1, y1), (x2, y2) = f(*v[7:9]), f(*v[9:])
        assert pred['box'] == pytest.approx(
            (min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)), abs=2e-2
        ) and table.loc[i, BOX].tolist() == pytest.approx(pred['box'], abs=2e-2)
        assert pred['pts'].keys() == {'a', 'b', 'c'} and isinstance(pred['odd'], bool)


def test_validation_crop_back(pics):
    "A validation crop, and one more on the batch, are undone too: labels go there and back"
    tmp, df = pics
    dls = loaders(
        pics,
        both(outside='clamp'),
        None,
        item_tfms=RandomResizedCrop(64),
        batch_tfms=RandomResizedCropGPU(40, valid_scale=0.9),
    )
    from fastai_condmtl.learn.learner import frames_of

    dl = dls.test_dl(df, with_labels=True)
    y = torch.cat([b[1].as_subclass(torch.Tensor) for b in dl])
    back = dls.flow.to_frame(y, frames_of(dls.flow, dl))
    sure = (y[:, 0, 1:7].abs() < 1).numpy()
    assert sure.mean() > 0.8 and np.abs(back[PTS].to_numpy() - df[PTS].to_numpy())[sure].max() < 1e-2


def test_shown_pixels(pics):
    "show_batch tells pixels of what it shows"
    dls = loaders(pics, both(), None, item_tfms=Resize((40, 72), method='squish'))
    b = dls.train.new(shuffle=False).one_batch()
    _, y = dls.train.decode_batch(b)[0]
    v = b[1].as_subclass(torch.Tensor)[0, 0].tolist()
    assert y['pts']['a'] == pytest.approx(((v[1] + 1) / 2 * 72, (v[2] + 1) / 2 * 40), abs=1e-3) and y.shapes()[
        'pts.a'
    ] == pytest.approx(((v[1] + 1) / 2, (v[2] + 1) / 2), abs=1e-5)
    assert set(y.shapes()) == {'pts.a', 'pts.b', 'pts.c', 'box'} and len(y.shapes()['box']) == 4
    dls.show_batch(max_n=2)
    ax = plt.gcf().axes[0]
    assert len(ax.lines) == 3 and len(ax.patches) == 1
    dls.show_batch(max_n=2, nrows=1, ncols=1)  # fewer places than pictures, as fastai's own grids have
    assert len(plt.gcf().axes) == 2


# --- the rest of the library ----------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def mixed(tmp_path_factory):
    "Faces and a flow of all kinds of task, after two epochs"
    tmp = tmp_path_factory.mktemp('faces')
    ims, df = faces(48, size=32, seed=3)
    for im, n in zip(ims, df.img):
        Image.fromarray(im).save(tmp / n)
    df = df.assign(
        hx=6.0, hy=5.0, hr=df.nose_x + 8, hb=27.0, marks=np.where(df.smile.eq(1), 'smile', 'other'), years=df.age
    )
    smile = BinaryBlock('smile')
    flow = Flow(
        'face',
        smile,
        KeypointsBlock('landmarks', list(XY), flip_pairs=[('left_eye', 'right_eye'), ('left_mouth', 'right_mouth')]),
        BoxBlock('head', ['hx', 'hy', 'hr', 'hb'], fmt='xyxy', loss='l1') | smile,
        SingleLabelBlock('pose'),
        MultiLabelBlock('marks'),
        BoundedRegressionBlock('age', y_range=(0, 120)),
        UnboundedRegressionBlock('years'),
    )
    dls = ConditionalDataLoaders.from_df(
        df,
        flow,
        path=tmp,
        fn_col='img',
        item_tfms=Resize(24),
        batch_tfms=aug_transforms(),
        bs=16,
        seed=1,
        num_workers=0,
    )
    torch.manual_seed(0)
    learn = conditional_vision_learner(dls, xresnet18, pretrained=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    return tmp, df, learn


def test_loss_is_that_of_fastai(pics):
    "A lone KeypointsBlock trains as PointBlock with y_range=(-1, 1) does"
    from fastai.losses import MSELossFlat
    from fastai.layers import sigmoid_range

    _, y = rolled(loaders(pics, KeypointsBlock('pts', PTS), None, item_tfms=Resize(48, method='squish')))
    _, p = rolled(reference(pics, item_tfms=Resize(48, method='squish'))[0])
    raw = torch.randn(6, 6)
    loss = Flow('f', KeypointsBlock('pts', PTS, loss='mse')).bind(pics[1]).loss_func
    assert loss(raw, y).item() == pytest.approx(MSELossFlat()(sigmoid_range(raw, -1, 1), p).item(), rel=1e-5)
    assert torch.allclose(loss.activation(raw), sigmoid_range(raw, -1, 1))


@pytest.mark.trains
def test_metrics_and_baseline(mixed):
    """Against loops over rows; the baseline against the mean shape of the training rows, read from their pictures
    one by one"""
    tmp, df, learn = mixed
    ev = learn.evaluate().set_index(['task_path', 'metric_name'])
    preds, y = learn.get_preds()
    s, h = learn.dls.flow.slices['landmarks'], learn.dls.flow.slices['head']
    p, t, m = preds[:, s.acts].numpy(), y[:, 0, s.targets].numpy(), y[:, 1, s.targets].numpy() > 0
    errs = [abs(p[i, j] - t[i, j]) / 2 for i in range(len(p)) for j in range(10) if m[i, j]]
    assert ev.loc[('landmarks', 'mae'), 'metric_res'] == pytest.approx(np.mean(errs), rel=1e-5) and ev.loc[
        ('landmarks', 'rmse'), 'metric_res'
    ] == pytest.approx(np.mean(np.square(errs)) ** 0.5, rel=1e-5)
    hits = [
        np.hypot(*(p[i, 2 * j : 2 * j + 2] - t[i, 2 * j : 2 * j + 2])) / 2 < 0.05
        for i in range(len(p))
        for j in range(5)
        if m[i, 2 * j]
    ]
    assert ev.loc[('landmarks', 'pck'), 'metric_res'] == pytest.approx(np.mean(hits))
    train = learn.dls.train_ds.items
    assert len(train) == 39  # of 48
    shares = train[list(XY)].to_numpy() / 32 * 2 - 1  # pictures of one size, squashed as a whole
    want = np.nanmean(shares, 0)
    base = [(want[j] - t[i, j]) ** 2 / 4 for i in range(len(p)) for j in range(10) if m[i, j]]
    assert ev.loc[('landmarks', 'rmse'), 'baseline'] == pytest.approx(np.mean(base) ** 0.5, rel=1e-3)

    def iou(a, b):
        a = [min(a[0], a[2]), min(a[1], a[3]), max(a[0], a[2]), max(a[1], a[3])]
        w, h = max(0, min(a[2], b[2]) - max(a[0], b[0])), max(0, min(a[3], b[3]) - max(a[1], b[1]))
        return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)

    rows = (y[:, 1, h.targets] > 0).all(1)
    assert ev.loc[('head', 'iou'), 'metric_res'] == pytest.approx(
        np.mean([iou(a, b) for a, b in zip(preds[rows][:, h.acts].tolist(), y[rows][:, 0, h.targets].tolist())]),
        rel=1e-4,
    )
    assert ev.baseline.loc['head'].notna().all() and ev.loc[('head', 'iou'), 'baseline'] > 0.3


def test_per_point(mixed):
    flow = mixed[2].dls.flow
    names = [m.name for m in flow.metrics('pck', tasks=['landmarks'], by_label=True)]
    assert names == [f'landmarks.{p}.pck' for p in POINTS]
    p = torch.zeros(4, 10).uniform_(-1, 1)
    b, s = flow.tasks['landmarks'], p.numpy()[..., None]
    true, mask = p.numpy().copy(), np.ones((4, 10), dtype=bool)
    true[:, 4] += 0.5
    true[0, 4] -= 0.5  # the nose is right in one row of four
    assert [b.label_scores('pck', s[:, c], true[:, c], mask[:, c])[0] for l in POINTS for c in [b.columns_of(l)]] == [
        1,
        1,
        0.25,
        1,
        1,
    ] and b.score('pck', s, true, mask) == pytest.approx(0.85)


def test_the_rest_of_the_library(mixed, tmp_path):
    tmp, df, learn = mixed
    flow = learn.dls.flow
    assert 'landmarks' in repr(flow.audit(df)) and "5 points: left_eye" in repr(flow)
    again = Flow.from_json(flow.flow.to_json())
    assert (
        repr(again) == repr(flow.flow)
        and torch.equal(again.bind(df).encode(df), flow.flow.bind(df).encode(df))
        and again.to_json() == flow.flow.to_json()
    )
    from fastai_condmtl.evaluate.interpret import ConditionalInterpretation

    interp = ConditionalInterpretation.from_learner(learn)
    r, y = interp.residuals('landmarks'), learn.get_preds()[1]
    assert (
        len(r) == int((y[:, 1, flow.slices['landmarks'].targets] > 0).sum())
        and set(r.coordinate) == {f'{p}.{a}' for p in POINTS for a in 'xy'}
        and r.truth.between(0, 1).all()
    )
    nose = interp.residuals('landmarks', 'nose')
    assert set(nose.coordinate) == {'nose.x', 'nose.y'} and len(interp.residuals('head')) == int(
        (y[:, 1, flow.slices['head'].targets] > 0).sum()
    )
    with pytest.raises(FlowError, match="no label 'ear'"):
        interp.residuals('landmarks', 'ear')
    interp.plot_residuals('landmarks', label='nose')
    interp.plot_top_losses('landmarks', k=2)
    learn.show_results(max_n=2)
    learn.summary()
    assert learn.get_marginals().shape[0] == len(y) and learn.cascade_report() is not None
    blank = df.copy()
    blank.loc[:3, list(XY)] = np.nan
    full, filled, _ = learn.fill_labels(blank, min_confidence=0, tasks=['landmarks'])
    want = learn.predict_df(df)
    assert filled.loc[:3, list(XY)].all(None) and np.allclose(full.loc[:3, list(XY)], want.loc[:3, list(XY)], atol=1e-3)
    learn.calibrate()
    assert 'landmarks' not in learn.loss_func.temperatures


def test_export_keeps_baseline_and_frames(mixed, tmp_path):
    tmp, df, learn = mixed
    want, ev = learn.predict(tmp / df.img[0])[0], learn.evaluate(learn.dls.test_dl(df, with_labels=True))
    learn.export(tmp_path / 'x.pkl')
    new = load_learner(tmp_path / 'x.pkl')
    assert dict(new.predict(tmp / df.img[0])[0]) == dict(want) and new.predict(tmp / df.img[0])[0].frame.size == (
        32,
        32,
    )
    got = new.evaluate(new.dls.test_dl(df, with_labels=True))
    assert (
        np.allclose(got.baseline, ev.baseline, equal_nan=True)
        and got.baseline[got.task_path.eq('landmarks')].notna().all()
    )


def test_workers_mixup_and_twice(mixed):
    "Geometry travels through worker processes; MixUp trains; one DataBlock serves two tables"
    from fastai.callback.mixup import MixUp

    tmp, df, learn = mixed
    dls = learn.dls.train.new(shuffle=False, drop_last=False)
    one = [b[1] for b in learn.dls.valid]
    two = [b[1] for b in learn.dls.valid.new(num_workers=1)]
    assert all(torch.equal(a, b) for a, b in zip(one, two))
    again = conditional_vision_learner(learn.dls, xresnet18, pretrained=False, cbs=MixUp())
    with again.no_bar(), again.no_logging():
        again.fit(1, 1e-3)
    assert np.isfinite(again.recorder.losses[-1])
    d = DataBlock(
        blocks=(ImageBlock, Flow('f', SingleLabelBlock('pose'), KeypointsBlock('p', ['nose_x', 'nose_y']))),
        get_x=lambda r: tmp / r.img,
        item_tfms=Resize(24),
    )
    a = d.dataloaders(df, bs=4, num_workers=0)
    b = d.dataloaders(df[df.pose.isin(['left', 'right'])], bs=4, num_workers=0)
    assert a.c == 7 and b.c == 4 and a.one_batch()[1].shape == b.one_batch()[1].shape == (4, 2, 3)


@pytest.mark.trains
def test_it_learns(tmp_path):
    "A disc that is somewhere: found to within few pixels of a picture of another shape than the network's"
    rng, rows = np.random.default_rng(0), []
    for i in range(160):
        x, y, im = rng.uniform(8, 56), rng.uniform(8, 40), rng.integers(0, 60, (48, 64, 3))
        yy, xx = np.mgrid[:48, :64] + 0.5
        im[(xx - x) ** 2 + (yy - y) ** 2 < 30] = 230
        Image.fromarray(im.astype(np.uint8)).save(tmp_path / f'{i}.png')
        rows.append([f'{i}.png', x, y, x - 5.5, y - 5.5, 11, 11])
    df = pd.DataFrame(rows, columns=['img', 'x', 'y', *BOX])
    dls = ConditionalDataLoaders.from_df(
        df,
        Flow('f', KeypointsBlock('p', ['x', 'y']), BoxBlock('b', BOX)),
        path=tmp_path,
        item_tfms=Resize(32, method='squish'),
        batch_tfms=[Flip()],
        bs=32,
        seed=0,
        num_workers=0,
    )
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, dls.c),
    )
    learn = Learner(dls, net)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(10, 1e-2)
    got = learn.predict_df(dls.valid_ds.items)
    d = np.hypot(got.x - df.x[got.index], got.y - df.y[got.index])
    assert d.median() < 2.5 and learn.evaluate().set_index(['task_path', 'metric_name']).loc[('b', 'iou')].pipe(
        lambda r: r.metric_res > 0.4 > 2 * r.baseline
    )


# --- bad input ------------------------------------------------------------------------------------------------------
D = pd.DataFrame(dict(x=[10.0, 20], y=[5.0, 6], w=[3.0, 4], h=[5.0, 6]))
BAD = {
    'odd number of columns': (
        lambda: KeypointsBlock('p', ['x', 'y', 'z']),
        'cols names 3 columns: points need an x and a y each',
    ),
    'no column': (lambda: KeypointsBlock('p', []), 'cols names 0 columns'),
    'column twice': (lambda: KeypointsBlock('p', ['x', 'x']), "column 'x' stands twice"),
    'outside': (
        lambda: KeypointsBlock('p', ['x', 'y'], outside='drop'),
        "outside='drop' is not known: use 'mask' or 'clamp'",
    ),
    'loss': (lambda: KeypointsBlock('p', ['x', 'y'], loss='ce'), "loss='ce' is not known"),
    'names': (lambda: KeypointsBlock('p', ['x', 'y'], points=['a', 'b']), "points=.* must be 1 different names"),
    'n_points': (lambda: KeypointsBlock('p', ['x', 'y'], n_points=2), 'cols names 1 points: leave n_points out'),
    'n_points is no number': (lambda: KeypointsBlock('p', n_points=0), 'must be a positive integer'),
    'pair of three': (
        lambda: KeypointsBlock('p', ['a_x', 'a_y', 'b_x', 'b_y'], flip_pairs=[('a', 'b', 'c')]),
        'give pairs of two points',
    ),
    'unknown in a pair': (
        lambda: KeypointsBlock('p', ['eye_x', 'eye_y', 'b_x', 'b_y'], flip_pairs=[('eyes', 'b')]),
        "names the point 'eyes': did you mean 'eye'",
    ),
    'twice in pairs': (
        lambda: KeypointsBlock('p', ['a_x', 'a_y', 'b_x', 'b_y', 'c_x', 'c_y'], flip_pairs=[('a', 'b'), ('b', 'c')]),
        "names the point 'b' twice",
    ),
    'pairs of a list column': (
        lambda: KeypointsBlock('p', flip_pairs=[('left', 'right')]).bind(pd.DataFrame(dict(p=[[(1, 2), (3, 4)]]))),
        "names the point 'left': there are '1', '2'",
    ),
    'text': (
        lambda: KeypointsBlock('p', ['x', 'y']).bind(D.assign(y=['5', 'here'])),
        "task 'p', row 0, column 'y', value '5': this is text",
    ),
    'text in a cell of lists': (
        lambda: KeypointsBlock('p').bind(pd.DataFrame(dict(p=['(1, 2)']))),
        "row 0, column 'p'.*this is text: a cell holds a list of .x, y. pairs",
    ),
    'lists of different length': (
        lambda: KeypointsBlock('p').bind(pd.DataFrame(dict(p=[[(1, 2)], [(1, 2), (3, 4)]]))),
        "row 1.*4 numbers instead of 2",
    ),
    'not a point': (
        lambda: KeypointsBlock('p').bind(pd.DataFrame(dict(p=[[(1, 2)], 5]))),
        "row 1, column 'p', value 5: a cell holds",
    ),
    'infinite': (lambda: KeypointsBlock('p', ['x', 'y']).bind(D.assign(y=[1, np.inf])), 'not a finite number'),
    'no column in the table': (
        lambda: Flow('f', KeypointsBlock('p', ['x', 'yy'])).bind(D),
        "reads column 'yy', which the table does not have: did you mean 'y'",
    ),
    'shares': (
        lambda: KeypointsBlock('p', ['x', 'y']).bind(
            pd.DataFrame(np.linspace(0, 1, 20).reshape(10, 2), columns=['x', 'y'])
        ),
        'all coordinates lie between 0 and 1',
    ),
    'box of three': (lambda: BoxBlock('b', ['x', 'y', 'w']), 'cols names 3 columns: a box has four, x1, y1, w, h'),
    'format': (
        lambda: BoxBlock('b', ['x', 'y', 'w', 'h'], fmt='cxcywh'),
        "fmt='cxcywh' is not known: use 'xywh' or 'xyxy'",
    ),
    'negative width': (
        lambda: BoxBlock('b', ['x', 'y', 'w', 'h']).bind(D.assign(w=[1, -4.0])),
        "row 1, column 'w', value -4.0: the box has a negative width.*say fmt='xyxy'",
    ),
    'width for right edge': (
        lambda: BoxBlock('b', ['x', 'y', 'w', 'h'], fmt='xyxy').bind(D),
        "negative width.*say fmt='xywh'",
    ),
    'asked by a condition': (
        lambda: Flow('f', p := KeypointsBlock('p', ['x', 'y']), BinaryBlock('a') | (task('p') > 3)).bind(D.assign(a=1)),
        "KeypointsBlock",
    ),
    'as a condition': (lambda: BinaryBlock('a') | KeypointsBlock('p', ['x', 'y']), "KeypointsBlock|condition"),
}


@pytest.mark.parametrize('what', list(BAD))
def test_bad_input(what):
    make, text = BAD[what]
    with pytest.raises(FlowError, match=text):
        make()


def test_bad_pictures(pics):
    tmp, df = pics
    with pytest.raises(
        FlowError,
        match="task 'pts': coordinate 4000 lies far outside its picture of 64 x 48 pixels: correct the label",
    ):
        rolled(loaders((tmp, df.assign(a_x=4000.0)), both(), None, item_tfms=Resize(48)))
    with pytest.raises(FlowError, match="task 'box': coordinate 40.* lies far outside its picture"):
        rolled(loaders((tmp, df.assign(by=4000.0)), both(), None, item_tfms=Resize(48)))
    d = DataBlock(
        blocks=(TransformBlock, Flow('f', KeypointsBlock('p', ['a_x', 'a_y']))), get_x=lambda r: torch.tensor([r.a_x])
    )
    with pytest.raises(FlowError, match="task 'p' tells coordinates, but there is no picture among the inputs"):
        d.dataloaders(df, bs=2, num_workers=0)


def test_warning_names_the_block(pics):
    tmp, df = pics
    plain = lambda: Flow('f', *[BoundedRegressionBlock(f'a_{c}', y_range=(0, 200), draws=c) for c in 'xy'])
    for kw, tfm in (
        (dict(item_tfms=[FlipItem(), Resize(48)]), 'FlipItem'),
        (dict(item_tfms=RandomResizedCrop(48)), 'RandomResizedCrop'),
        (dict(item_tfms=Resize(48), batch_tfms=aug_transforms()), 'Flip'),
    ):
        with pytest.warns(
            UserWarning,
            match=(
                f"'a_x', 'a_y' are plain numbers, which stay as they are while {tfm} moves the picture: use "
                "KeypointsBlock or BoxBlock"
            ),
        ):
            loaders((tmp, df), plain(), None, **kw)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        loaders(
            (tmp, df),
            plain(),
            None,
            item_tfms=Resize(48, method='squish'),
            batch_tfms=aug_transforms(do_flip=False, max_rotate=0, max_zoom=1, max_warp=0, p_affine=0),
        )
        loaders((tmp, df), both(), None, item_tfms=Resize(48), batch_tfms=aug_transforms())
    assert not [w for w in seen if 'plain numbers' in str(w.message)]


def test_cells_of_lists(pics):
    "A list a cell reads and writes as columns do"
    tmp, df = pics
    one = df.assign(
        pts=[
            [(r.a_x, r.a_y), None if i == 2 else (r.b_x, r.b_y)] if i else None for i, r in enumerate(df.itertuples())
        ],
        box=df[BOX].apply(list, axis=1),
    )
    flow = Flow('f', KeypointsBlock('pts', points=['a', 'b']), BoxBlock('box')).bind(one)
    y = flow.encode(one)
    assert y[:, 1, :4].tolist() == [[0] * 4, [1] * 4, [1, 1, 0, 0], *[[1] * 4] * 3]
    back = flow.to_frame(y)
    assert (
        back.pts[0] is None
        and back.pts[2] == [pytest.approx((df.a_x[2], df.a_y[2]), rel=1e-5), None]
        and back.box[3] == pytest.approx(tuple(df.loc[3, BOX]), rel=1e-5)
    )
    assert torch.allclose(flow.encode(back), y, rtol=1e-5)


@pytest.mark.parametrize('name', ['a.png', 'a.jpg', 'a.bmp', 'a.gif', 'a.webp', 'png_inside.jpg', 'sixteen_bits.png'])
def test_points_come_back_in_pixels_of_files_of_any_format(name, tmp_path):
    "Width and height are read from the first bytes where a format tells them there: they are PIL's"
    noise = np.random.default_rng(0).integers(0, 255, (37, 83, 3), dtype=np.uint8)
    picture = Image.fromarray(noise[..., 0].astype(np.uint16) if name == 'sixteen_bits.png' else noise)
    picture.save(tmp_path / name, format='PNG' if 'png' in name else None)
    df = pd.DataFrame(dict(img=[name] * 4, x=[10.0, 20, 70, 80], y=[5.0, 36, 20, 1]))
    flow = Flow('f', KeypointsBlock('p', ['x', 'y']))
    dls = ConditionalDataLoaders.from_df(df, flow, path=tmp_path, fn_col='img', item_tfms=Resize(24), bs=2)
    (frame, *others) = original_frames(dls.test_dl(df))
    with Image.open(tmp_path / name) as read:
        assert frame.size == read.size == (83, 37) and all(other is frame for other in others)


class Turned(PILImage):
    "Pictures that are turned as their EXIF data say, which fastai does not do"

    @classmethod
    def create(cls, fn, **kwargs):
        return cls(ImageOps.exif_transpose(Image.open(fn)).convert('RGB'))


@pytest.mark.parametrize('img_cls', [PILImage, Turned])
def test_points_come_back_in_pixels_of_the_picture_that_a_class_opens(img_cls, tmp_path):
    "Every second file says that it is to be turned: files of one size are pictures of two"
    turned = Image.Exif()
    turned[0x0112] = 6
    for i in range(4):
        Image.new('RGB', (83, 37)).save(tmp_path / f'{i}.jpg', **(dict(exif=turned) if i % 2 else {}))
    df = pd.DataFrame(dict(img=[f'{i}.jpg' for i in range(4)], x=[10.0, 20, 30, 35], y=[5.0, 36, 20, 1]))
    dls = ConditionalDataLoaders.from_df(
        df,
        Flow('f', KeypointsBlock('p', ['x', 'y'])),
        path=tmp_path,
        fn_col='img',
        img_cls=img_cls,
        item_tfms=Resize(24, method='squish'),
        bs=2,
        num_workers=0,
    )
    dl = dls.test_dl(df, with_labels=True)
    frames = original_frames(dl)
    assert [frame.size for frame in frames] == [img_cls.create(tmp_path / name).size for name in df.img]
    labels = torch.cat([batch[1].as_subclass(torch.Tensor) for batch in dl])
    back = dls.flow.to_frame(labels, frames)
    assert np.allclose(back[['x', 'y']], df[['x', 'y']], atol=1e-3)


def test_a_file_that_ends_within_its_first_bytes_has_no_size(tmp_path):
    "It is left to PIL, whose error names the file"
    whole, cut = tmp_path / 'whole.png', tmp_path / 'cut.png'
    Image.new('RGB', (83, 37)).save(whole)
    assert _png_size(whole) == (83, 37)
    for n in (0, 7, 20, 23):
        cut.write_bytes(whole.read_bytes()[:n])
        assert _png_size(cut) is None
