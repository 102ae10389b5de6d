"""Cached pictures in loaders: against the same loaders without a cache, and against PIL by hand"""

import multiprocessing, random, re
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from fastai.vision.all import (
    ColReader,
    CropPad,
    DataBlock,
    FlipItem,
    IndexSplitter,
    Learner,
    Normalize,
    PILImage,
    PILImageBW,
    RandomCrop,
    RandomResizedCrop,
    RatioResize,
    Resize,
    TransformBlock,
    aug_transforms,
    imagenet_stats,
    load_learner,
    nn,
)
from fastai_condmtl.vision.all import (
    BinaryBlock,
    BoxBlock,
    CachedImageBlock,
    ConditionalDataLoaders,
    Flow,
    FlowError,
    FlowWarning,
    KeypointsBlock,
    load_safe,
)
from fastai_condmtl.data.cache_format import file_size
from fastai_condmtl.data.pictures import OpenImage
from fastai_condmtl.deploy.predictor import opener_of
from fastai_condmtl.vision.cached import needed
from fastai_condmtl.vision.data import readable
from fastai_condmtl.vision.frames import original_frames

SIZES = [(160, 120), (100, 165), (130, 90), (128, 128), (97, 141), (256, 128)]
PTS, BOX = [f'{p}_{a}' for p in 'abc' for a in 'xy'], ['bx', 'by', 'bw', 'bh']


def smooth(rng, w, h):
    "A picture as photos are: no pixel is far from its neighbours"
    coarse = rng.integers(0, 256, (h // 16 + 2, w // 16 + 2, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((w, h), Image.BICUBIC)


def draw(tmp, n=12, seed=0):
    rng, rows = np.random.default_rng(seed), []
    for i in range(n):
        w, h = SIZES[i % len(SIZES)]
        smooth(rng, w, h).save(tmp / f'{i}.png')
        xy = rng.uniform(0.4, 0.6, (3, 2)) * (w, h)
        x1, y1, bw, bh = *rng.uniform(0.35, 0.4, 2) * (w, h), *rng.uniform(0.15, 0.2, 2) * (w, h)
        rows.append([f'{i}.png', *xy.flatten(), x1, y1, bw, bh, float(i % 2)])
    return pd.DataFrame(rows, columns=['img', *PTS, *BOX, 'odd'])


@pytest.fixture(scope='module')
def pics(tmp_path_factory):
    tmp = tmp_path_factory.mktemp('cached')
    return tmp, draw(tmp)


def both():
    return Flow('f', BinaryBlock('odd'), KeypointsBlock('pts', PTS), BoxBlock('box', BOX))


def loaders(pics, cache, item_tfms, flow=None, **kwargs):
    tmp, df = pics
    kwargs = dict(valid_pct=0.5, seed=0, bs=3, num_workers=0, fn_col='img') | kwargs
    return ConditionalDataLoaders.from_df(
        df, both() if flow is None else flow, tmp, item_tfms=item_tfms, cache=cache, **kwargs
    )


def cache_of(dls):
    return dls.train_ds.tls[0].tfms.fs[-1].cache


def items(dl):
    return [torch.cat(parts) for parts in zip(*dl)]


@pytest.mark.parametrize('method', ['crop', 'squish', 'pad'])
def test_validation_items_are_those_without_a_cache(pics, tmp_path, method):
    "Pictures to the rounding of resizing, points to a pixel of the small picture"
    with_cache, without = (loaders(pics, cache, Resize(64, method=method)) for cache in (str(tmp_path), None))
    (x, y), (x0, y0) = items(with_cache.valid), items(without.valid)
    assert ((x - x0).abs() * 255).mean() < dict(crop=1.5, squish=1.5, pad=3)[method]
    assert torch.equal(y[:, 1], y0[:, 1])
    assert (y[:, 0] - y0[:, 0]).abs().max() <= 1.5 * 2 / 64
    assert torch.equal(y[:, 0, 0], y0[:, 0, 0])


def test_a_square_picture_is_that_of_resize_bit_for_bit(pics, tmp_path):
    tmp, df = pics
    square = df[[i % 6 == 3 for i in range(len(df))]]
    dls = [loaders((tmp, square), cache, Resize(64)) for cache in (str(tmp_path), None)]
    (x, y), (x0, y0) = (items(d.valid) for d in dls)
    assert torch.equal(x, x0) and torch.equal(y, y0)


def test_points_follow_the_pixels_under_random_crops(tmp_path):
    "A white dot where the point is: after each random crop the dot is still there"
    rng, rows = np.random.default_rng(0), []
    for i in range(24):
        w, h = SIZES[i % len(SIZES)]
        canvas, (x, y) = np.zeros((h, w, 3), np.uint8), (rng.uniform(0.35, 0.65, 2) * (w, h)).astype(int)
        canvas[y - 4 : y + 4, x - 4 : x + 4] = 255
        Image.fromarray(canvas).save(tmp_path / f'{i}.png')
        rows.append([f'{i}.png', x, y])
    df, flow = pd.DataFrame(rows, columns=['img', 'x', 'y']), KeypointsBlock('p', ['x', 'y'])
    for tfms in ([FlipItem(), RandomResizedCrop(64, min_scale=0.5)], Resize(64), [RandomCrop(80), Resize(64)]):
        folder = tmp_path / type(tfms).__name__
        dls = loaders((tmp_path, df), str(folder), tfms, flow, batch_tfms=aug_transforms(size=64, max_warp=0), bs=12)
        n_seen = 0
        for x, y in [b for _ in range(4) for b in dls.train]:
            for picture, row in zip(x, y):
                if row[1, 0] == 0:
                    continue
                light = picture.mean(0).as_subclass(torch.Tensor)
                if light.max() < 0.5:
                    continue
                rows_, columns = torch.where(light > light.max() / 2)
                at = torch.stack([columns.float().mean(), rows_.float().mean()]) + 0.5
                told = (row[0, :2].as_subclass(torch.Tensor) + 1) * 32
                if 6 < told.min() and told.max() < 58:
                    assert (at - told).abs().max() < 2
                    n_seen += 1
        assert n_seen > 20


def test_frames_lead_back_to_pixels_of_the_file(pics, tmp_path):
    for method in ('crop', 'squish', 'pad'):
        dls = [loaders(pics, cache, Resize(64, method=method)) for cache in (str(tmp_path), None)]
        for with_cache, without in zip(*(original_frames(d.valid) for d in dls)):
            assert with_cache.size == without.size
            places = np.array([-0.5, -0.5, 0, 0, 0.5, 0.3])
            assert np.abs(with_cache.pixels(places) - without.pixels(places)).max() < 2.6  # a pixel of 64


def network(dls):
    torch.manual_seed(0)
    return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(3 * 64, dls.flow.c))


def test_an_exported_learner_predicts_files_as_the_cached_ones(pics, tmp_path):
    "To the last bit, without the cache; it names no folder"
    from fastai_condmtl.equip import equip

    tmp, df = pics
    dls = loaders(
        pics, str(tmp_path / 'c'), Resize(48, method='squish'), batch_tfms=Normalize.from_stats(*imagenet_stats)
    )
    learn = equip(Learner(dls, network(dls)))
    with learn.no_bar():
        acts = learn.get_preds(dl=dls.test_dl(df))[0]
        told = learn.predict(tmp / '2.png')[0]
        learn.export(tmp_path / 'e.pkl')
        assert str(tmp_path / 'c').encode() not in (tmp_path / 'e.pkl').read_bytes()
        loaded = load_learner(tmp_path / 'e.pkl')
        (tmp_path / 'c').rename(tmp_path / 'away')
        with loaded.no_bar():
            assert torch.equal(loaded.get_preds(dl=loaded.dls.test_dl(df))[0], acts)
            fresh = loaded.predict(tmp / '2.png')[0]
            of_bytes = loaded.predict((tmp / '2.png').read_bytes())[0]
    assert fresh['pts'] == told['pts'] == of_bytes['pts']
    assert fresh.frame.size == (130, 90)


def test_a_safe_file_predicts_as_the_cached_learner(pics, tmp_path):
    from fastai_condmtl.vision.all import conditional_vision_learner
    from fastai.vision.all import resnet18

    tmp, df = pics
    dls = loaders(pics, str(tmp_path / 'c'), Resize(40, method='squish'))
    learn = conditional_vision_learner(dls, resnet18, pretrained=False)
    learn.model.eval()
    learn.save_safe(tmp_path / 'm.safetensors')
    predictor = load_safe(tmp_path / 'm.safetensors')
    files = [str(tmp / name) for name in df.img]
    with learn.no_bar():
        want = learn.get_preds(dl=dls.test_dl(df))[0]
    assert torch.allclose(predictor.get_preds(files)[0], want, atol=1e-5)
    assert [f.size for f in predictor.frames(files)] == [Image.open(f).size for f in files]


def test_tta_moves_points_back_to_the_file(pics, tmp_path):
    from fastai_condmtl.equip import equip

    tfms = dict(batch_tfms=aug_transforms(size=48, max_warp=0))
    learn = [
        equip(Learner(dls, network(dls)))
        for dls in (loaders(pics, cache, Resize(48, method='squish'), **tfms) for cache in (str(tmp_path), None))
    ]
    res = []
    for one in learn:
        one.model.load_state_dict(learn[0].model.state_dict())
        random.seed(0), torch.manual_seed(0), np.random.seed(0)
        with one.no_bar():
            res.append(one.tta(n=2)[0])
    assert (res[0] - res[1]).abs().max() < 0.1


@pytest.mark.parametrize('context', ['fork', 'spawn'])
def test_workers_read_the_cache(pics, tmp_path, context, monkeypatch):
    dls = loaders(pics, str(tmp_path), Resize(32))
    alone = items(dls.valid)
    opened = dls.valid_ds.tls[0].tfms.fs[-1]
    monkeypatch.setattr(opened, 'cls', None)  # what is not in the cache cannot be opened
    own = multiprocessing.get_context(context)
    monkeypatch.setattr(type(dls.valid.fake_l), 'multiprocessing_context', property(lambda self: own))
    for x, x0 in zip(items(dls.valid.new(num_workers=1)), alone):
        assert torch.equal(x, x0)


def test_each_picture_is_decoded_once_and_crops_are_drawn_anew(pics, tmp_path, monkeypatch):
    opened, create = [], PILImage.create.__func__
    from fastai_condmtl.data import pictures

    real = pictures.load_image
    monkeypatch.setattr(pictures, 'load_image', lambda fn, *args: opened.append(str(fn)) or real(fn, *args))
    dls = loaders(pics, str(tmp_path), RandomResizedCrop(32))
    assert sorted(opened) == sorted(str(pics[0] / name) for name in pics[1].img)
    epochs = [items(dls.train)[0] for _ in range(3)]
    assert len(opened) == len(pics[1])
    assert not torch.equal(epochs[0].sort(0).values, epochs[1].sort(0).values)
    loaders(pics, str(tmp_path), RandomResizedCrop(32))
    assert len(opened) == len(pics[1])
    again = loaders(pics, None, Resize(32))
    items(again.valid)
    assert len(opened) > len(pics[1])  # the counter counts


def test_every_factory_has_it(pics, tmp_path):
    tmp, df = pics
    df = df.assign(img=[str(tmp / name) for name in df.img])
    df.to_csv(tmp_path / 'labels.csv', index=False)
    files, flow = list(df.img), BinaryBlock('odd')
    common = dict(item_tfms=Resize(24), cache=True, bs=3, num_workers=0)
    odd = lambda fn: float(int(fn.stem) % 2)
    for dls in (
        ConditionalDataLoaders.from_df(df, flow, tmp_path, fn_col='img', **common),
        ConditionalDataLoaders.from_csv(tmp_path, flow, fn_col='img', **common),
        ConditionalDataLoaders.from_path_func(tmp_path, files, odd, flow, **common),
        ConditionalDataLoaders.from_path_funcs(tmp_path, files, {'odd': odd}, flow, **common),
    ):
        assert cache_of(dls).folder.parent == tmp_path / 'picture_cache'
        assert all(cache_of(dls).get(fn) is not None for fn in files)
        assert dls.one_batch()[0].shape == (3, 3, 24, 24)


def test_a_stock_datablock(pics, tmp_path, capsys):
    tmp, df = pics
    blocks = (CachedImageBlock(32, tmp_path / 'c'), CachedImageBlock(16, tmp_path / 'c', PILImageBW), both())
    dblock = DataBlock(
        blocks=blocks,
        n_inp=2,
        getters=[lambda r: tmp / r.img, lambda r: str(tmp / r.img), lambda r: r],
        item_tfms=Resize(32),
    )
    dls = dblock.dataloaders(df, bs=2, num_workers=0)
    assert capsys.readouterr().out.count('cache: 12 of 12 pictures') == 2
    x, gray, y = dls.one_batch()
    assert (x.shape, gray.shape) == ((2, 3, 32, 32), (2, 1, 32, 32))
    fn = tmp / '0.png'
    want = Image.open(fn).convert('RGB').resize((42, 32), Image.BILINEAR)
    found = dls.train_ds.tls[0].tfms.fs[-1](fn)
    assert np.array_equal(np.asarray(found), np.asarray(want)) and file_size(found) == (160, 120)


def test_errors_name_row_and_file(pics, tmp_path):
    tmp, df = pics
    draw(tmp_path)
    (tmp_path / '7.png').write_bytes(b'none')
    with pytest.raises(FlowError, match=r"cannot read image '.*7\.png', row 7 of the table.*bad_images='skip'"):
        loaders((tmp_path, df), True, Resize(32))
    with pytest.warns(FlowWarning, match='left out 1 of 12'):
        dls = loaders((tmp_path, df), True, Resize(32), bad_images='skip')
    assert len(cache_of(dls).entries) == 11
    (tmp_path / '7.png').unlink()
    with pytest.raises(FlowError, match=r"there is no image file '.*7\.png', row 7 of the table"):
        loaders((tmp_path, df), True, Resize(32))
    draw(tmp_path)
    dls = loaders((tmp_path, df), True, Resize(32))
    pixels = cache_of(dls).folder / 'pixels'
    pixels.write_bytes(bytes(pixels.stat().st_size))
    with pytest.raises(FlowError, match='delete this folder'):
        items(loaders((tmp_path, df), True, Resize(32)).valid)


@pytest.mark.parametrize('cache', [None, True])
def test_rows_of_another_table_are_taken_out_by_hand(pics, tmp_path, cache):
    "A table to predict takes no `bad_images`; the table of the data does"
    tmp, df = pics
    (tmp_path / 'torn.png').write_bytes(b'none')
    dls = loaders(pics, cache, Resize(32))
    for name, says in (('torn.png', 'cannot read image'), ('gone.png', 'there is no image file')):
        new = df[:2].assign(img=[str(tmp_path / name), df.img[0]])
        with pytest.raises(FlowError, match=f'{says}.*{name}.*take such rows out') as error:
            items(dls.test_dl(new))
        assert 'bad_images' not in str(error.value)


@pytest.mark.parametrize('name, says', [('torn.png', 'cannot read image'), ('gone.png', 'there is no image file')])
def test_a_stock_data_block_hears_of_no_argument_of_our_loaders(pics, tmp_path, name, says):
    "Nor does who predicts a list: the fix can be done there, and `readable` finds the rows"
    tmp, df = pics
    (tmp_path / 'torn.png').write_bytes(b'none')
    new = df[:4].assign(img=[str(tmp_path / name), *(str(tmp / file) for file in df.img[1:4])])
    flow, get_x = Flow('f', BinaryBlock('odd')), ColReader('img')

    def of_stock(image, table):
        data = DataBlock((image, flow), get_x=get_x, splitter=IndexSplitter([1])).datasets(table)
        return [data[i] for i in range(len(table))]

    images = TransformBlock(OpenImage()), CachedImageBlock(32, tmp_path / 'cache')
    by_hand = [lambda image=image: of_stock(image, new) for image in images]
    for read in (*by_hand, lambda: opener_of({})(new.img[0])):
        with pytest.raises(FlowError, match=f'{says}.*{name}.*take such rows out') as error:
            read()
        assert not re.search('bad_images|path=|folder=|suff=', str(error.value))
    with pytest.warns(FlowWarning, match=name):
        rest = new[readable(new, get_x)]
    assert [len(of_stock(image, rest)) for image in images] == [3, 3]


@pytest.mark.parametrize('cache', [0, -3, 2.5, '', [3], float('nan'), {}])
def test_what_is_no_cache(pics, cache):
    with pytest.raises(FlowError, match='cache='):
        loaders(pics, cache, Resize(32))


def test_pixels_that_are_counted_are_those_of_the_file(pics, tmp_path):
    "CropPad takes 50 pixels of the file: the cache keeps full size, and says so; a number warns"
    dls = [loaders(pics, cache, [CropPad(90), Resize(45)]) for cache in (str(tmp_path), None)]
    for x, x0 in zip(*(items(d.valid) for d in dls)):
        assert torch.equal(x, x0)
    with pytest.warns(FlowWarning, match='CropPad sees pictures that are shrunk'):
        loaders((pics[0], pics[1]), 60, [CropPad(90), Resize(45)])
    with pytest.warns(FlowWarning, match='Resize asks for 45 px'):
        loaders(pics, 30, Resize(45))


def test_what_transforms_need():
    class Own(Resize):
        pass

    assert needed(Resize((40, 90))).px == 90
    assert needed([Own(40)]).px is None
    assert needed([lambda x: x, Resize(40)]).px is None
    assert needed(RandomResizedCrop(100)).px == 354  # 100 / sqrt(.08)
    assert needed(RatioResize(77)).px == 77
