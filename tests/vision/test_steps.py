"Known steps give the items and batches of fastai's own dispatch, bit for bit; they step aside where more is asked for"

import random
import numpy as np, pandas as pd, pytest, torch
from fastai.data.core import TfmdDL
from fastai.data.load import DataLoader
from fastai.vision.all import (
    CropPad,
    DataBlock,
    FlipItem,
    ImageBlock,
    ItemTransform,
    PILImage,
    PILImageBW,
    RandomResizedCrop,
    Resize,
    ToTensor,
    Transform,
    aug_transforms,
    get_image_files,
)
from PIL import Image
from plum import Function
from fastai_condmtl.vision.all import BinaryBlock, ConditionalDataLoaders, Flow
from fastai_condmtl.tasks.all import BoxBlock, KeypointsBlock
from fastai_condmtl.data import steps

SIZES = [(64, 48), (50, 80), (90, 40), (64, 64), (33, 57), (120, 121)]


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    "Pictures of several sizes and modes, with labels, points and a box each"
    folder, rng, rows = tmp_path_factory.mktemp('pictures'), np.random.default_rng(0), []
    for i in range(24):
        width, height = SIZES[i % len(SIZES)]
        picture = Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        mode = ('RGB', 'L', 'P', 'RGBA')[i % 4]
        picture.convert(mode).save(folder / f'{i}.png')
        xy = rng.uniform(0.1, 0.6, 6) * np.array([width, height] * 3)
        rows.append(dict(img=f'{i}.png', yes=i % 2, ax=xy[0], ay=xy[1], bx=xy[2], by=xy[3]))
        rows[-1] |= dict(x=xy[4], y=xy[5], w=width * 0.3, h=height * 0.3)
    df = pd.DataFrame(rows)
    df.loc[3, ['ax', 'ay']] = np.nan
    return folder, df


def flow_of_kind(kind):
    points = KeypointsBlock('points', cols=['ax', 'ay', 'bx', 'by']), BoxBlock('box', cols=['x', 'y', 'w', 'h'])
    return Flow('f', BinaryBlock('yes'), *(points if kind == 'points' else ()))


def loaders(table, kind='labels', item_tfms=None, **kwargs):
    folder, df = table
    item_tfms = Resize(32) if item_tfms is None else item_tfms
    kwargs = dict(num_workers=0, bs=8) | kwargs
    return ConditionalDataLoaders.from_df(
        df, flow_of_kind(kind), path=folder, fn_col='img', valid_idx=range(0, 24, 3), item_tfms=item_tfms, **kwargs
    )


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        plain = a.as_subclass(torch.Tensor), b.as_subclass(torch.Tensor)
        assert a.shape == b.shape and a.stride() == b.stride()
        # fastai moves coordinates there and back by the size of the picture, which rounds: four times the last bit
        torch.testing.assert_close(*plain, rtol=0, atol=5e-7 if getattr(a, 'geo', None) else 0)
        assert a.__dict__ == b.__dict__
    elif isinstance(a, (tuple, list)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    else:
        assert a == b


def read_both_ways(dl, n=8):
    "Items and a batch by fastai's way and by known steps, from the same seed"
    assert steps.why_no_steps(dl) == ''
    dl.before_iter()
    random.seed(1)
    stock = [dl.do_item(i) for i in range(n)]
    random.seed(1)
    read = steps.item_reader(dl)
    ours = [read(i) for i in range(n)]
    return (stock, dl.do_batch(stock)), (ours, steps.batch_maker(dl)(ours))


@pytest.mark.parametrize('kind', ['labels', 'points'])
@pytest.mark.parametrize('method', ['crop', 'pad', 'squish'])
@pytest.mark.parametrize('img_cls', [PILImage, PILImageBW])
@pytest.mark.parametrize('size', [32, (20, 50)])
def test_items_and_batches_are_those_of_fastai(table, kind, method, img_cls, size):
    dls = loaders(table, kind, Resize(size, method=method), img_cls=img_cls)
    for dl in (dls.train, dls.valid):
        assert_same(*read_both_ways(dl))


@pytest.mark.parametrize('kind', ['labels', 'points'])
@pytest.mark.parametrize('img_cls', [PILImage, PILImageBW])
@pytest.mark.parametrize(
    'kwargs', [dict(), dict(min_scale=0.9), dict(min_scale=1.0, ratio=(2.0, 3.0)), dict(val_xtra=0)]
)
@pytest.mark.parametrize('size', [32, (20, 50)])
def test_random_crops_are_those_of_fastai(table, kind, img_cls, kwargs, size):
    dls = loaders(table, kind, RandomResizedCrop(size, **kwargs), img_cls=img_cls)
    for dl in (dls.train, dls.valid):
        assert_same(*read_both_ways(dl))


def test_a_column_by_its_place_is_read_without_a_row(table, monkeypatch):
    "As the file names are, where no `fn_col=` is said"
    folder, df = table
    dl = ConditionalDataLoaders.from_df(
        df, flow_of_kind('labels'), path=folder, valid_pct=0.3, seed=0, item_tfms=Resize(32), bs=8, num_workers=0
    ).train
    assert_same(*read_both_ways(dl))
    read, rows = steps.item_reader(dl), []
    stock = type(df.iloc).__getitem__
    monkeypatch.setattr(type(df.iloc), '__getitem__', lambda self, i: rows.append(i) or stock(self, i))
    read(0)
    assert not rows
    dl.do_item(0)
    assert rows


def test_a_random_crop_of_labels_is_not_looked_up(table, monkeypatch):
    dl = loaders(table, 'labels', RandomResizedCrop(32)).train
    dl.before_iter()
    read = steps.item_reader(dl)
    assert dispatches(monkeypatch, lambda: [read(i) for i in (0, 4)]) == 0


def test_a_stock_data_block_too(table):
    folder, df = table
    names = dict(zip(df['img'], df['yes']))
    block = DataBlock(
        blocks=(ImageBlock, BinaryBlock('yes')),
        get_items=get_image_files,
        get_y=lambda file: names[file.name],
        item_tfms=[Resize(40), FlipItem(0.5)],
    )
    dl = block.dataloaders(folder, bs=4, num_workers=0).train
    assert_same(*read_both_ways(dl))


def dispatches(monkeypatch, f):
    "How often fastai looks for the function of a transform while `f` runs"
    calls, stock = [], Function._resolve_method_with_cache
    with monkeypatch.context() as patched:
        patched.setattr(Function, '_resolve_method_with_cache', lambda *a, **k: calls.append(a) or stock(*a, **k))
        f()
    return len(calls)


@pytest.mark.parametrize('kind', ['labels', 'points'])
def test_nothing_is_looked_up_for_an_item(table, kind, monkeypatch):
    dl = loaders(table, kind).train
    dl.before_iter()
    read = steps.item_reader(dl)
    assert dispatches(monkeypatch, lambda: [read(i) for i in (0, 4)]) == 0
    assert dispatches(monkeypatch, lambda: [dl.do_item(i) for i in (0, 4)]) >= 8


def test_a_loader_takes_known_steps_and_its_workers_too(table, monkeypatch):
    dls = loaders(table)
    calls, stock = [], steps.item_reader
    monkeypatch.setattr(steps, 'item_reader', lambda dl: calls.append(dl) or stock(dl))
    here = list(dls.valid)
    assert calls == [dls.valid]
    there = list(dls.valid.new(num_workers=2))
    for a, b in zip(here, there):
        assert_same(a, b)


class Other(Resize):
    "A subclass that turns the picture"

    def encodes(self, x: PILImage):
        return x.transpose(Image.ROTATE_180).resize((16, 16))


def test_subclasses_and_unknown_transforms_go_the_way_of_fastai(table):
    class Inverted(Transform):
        order = 2

        def encodes(self, x: PILImage):
            return PILImage(Image.fromarray(255 - np.asarray(x)))

    class Swapped(ItemTransform):
        order = 3

        def encodes(self, o):
            return (PILImage(o[0].transpose(Image.FLIP_TOP_BOTTOM)), *o[1:])

    for tfms in ([Other(32)], [Resize(32), Inverted(), Swapped()], [CropPad(30), Resize(16)]):
        dls = loaders(table, item_tfms=tfms)
        assert_same(*read_both_ways(dls.train))


def test_a_function_for_one_more_type_is_asked(table, monkeypatch):
    dls = loaders(table)
    dl = dls.train
    monkeypatch.setattr(ToTensor, 'encodes', Function(lambda self, x: x).dispatch(_white))
    assert ToTensor not in steps.known_steps(dl.after_item) and Resize in steps.known_steps(dl.after_item)
    assert (steps.item_reader(dl)(0)[0] == 255).all()


def _white(self, x: PILImage):
    return torch.full((3, 32, 32), 255)


def test_an_instance_with_its_own_function_is_asked(table):
    dls = loaders(table)
    dl = dls.train
    resize = next(tfm for tfm in dl.after_item.fs if isinstance(tfm, Resize))
    resize.encodes = Function(_small).dispatch(_small)
    assert steps.item_reader(dl)(0)[0].shape == dl.do_item(0)[0].shape == (3, 8, 8)


def _small(x: PILImage):
    return x.resize((8, 8))


def test_what_a_callback_changes_holds_for_the_next_item(table):
    dl = loaders(table).train
    read = steps.item_reader(dl)
    assert read(0)[0].shape[-1] == 32
    resize = next(tfm for tfm in dl.after_item.fs if isinstance(tfm, Resize))
    resize.size = (24, 24)
    assert read(0)[0].shape[-1] == 24
    resize.do, resize.p = False, 0.0
    resize.before_call = lambda b, split_idx: setattr(resize, 'pcts', (0, 0))
    assert read(0)[0].shape[-2:] == dl.do_item(0)[0].shape[-2:] != (24, 24)


def test_replaced_methods_of_a_loader_are_called(table):
    dls = loaders(table)

    class Own(TfmdDL):
        def create_item(self, s):
            return super().create_item(0)

    own = dls.valid.new(cls=Own)
    assert steps.why_no_steps(own) == 'its create_item is replaced'
    x = next(iter(own))[0]
    assert (x == x[:1]).all()
    given = dls.valid.new(create_batch=lambda items: len(items))
    assert steps.why_no_steps(given) == 'its create_batch is replaced'
    assert DataLoader.create_batches is not TfmdDL.create_batches


def test_training_items_are_read_as_validation_items_where_asked(table):
    dls = loaders(table)
    with dls.train_ds.set_split_idx(1):
        dls.train.before_iter()
        random.seed(0)
        read = steps.item_reader(dls.train)
        first, second = read(0), read(0)
    assert_same(first, second)  # the middle is cut out, nothing is drawn


def test_items_that_do_not_fit_together_are_explained(table):
    dls = loaders(table, item_tfms=[ToTensor()])
    with pytest.raises(RuntimeError, match='Mismatch found on axis 0'):
        next(iter(dls.valid.new(bs=8)))


def test_summary_and_show_batch_go_on_working(table, capsys):
    folder, df = table
    block = DataBlock(
        blocks=(ImageBlock, flow_of_kind('points')),
        get_x=lambda row: folder / row['img'],
        item_tfms=Resize(32),
        batch_tfms=aug_transforms(),
    )
    block.summary(df)
    assert 'Building one batch' in capsys.readouterr().out
    dls = block.dataloaders(df, bs=4, num_workers=0)
    dls.show_batch(max_n=2)
