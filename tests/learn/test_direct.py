"""`learn.predict` without a validation around a single item: the numbers of fastai's way, and each reason why an item
goes that way"""

import random, re
import numpy as np, pandas as pd, pytest, torch
from torch import nn
from PIL import Image
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.data.core import TfmdDL
from fastai.data.load import DataLoader
from fastai.learner import CastToTensor, Learner, load_learner
from fastai.vision.all import (
    ColReader,
    DataBlock,
    ImageBlock,
    Normalize,
    PILImage,
    Resize,
    Transform,
    aug_transforms,
    imagenet_stats,
)
from fastai.text.all import AWD_LSTM, awd_lstm_clas_config
from fastai_condmtl.vision.all import (
    BinaryBlock,
    Branch,
    ConditionalDataLoaders,
    CountBlock,
    Flow,
    FlowError,
    MultiLabelBlock,
    SingleLabelBlock,
    UnboundedRegressionBlock,
    conditional_vision_learner,
)
from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders, conditional_tabular_learner
from fastai_condmtl.text.all import ConditionalTextDataLoaders, conditional_text_learner
from fastai_condmtl.tasks.all import BoxBlock, KeypointsBlock
from fastai_condmtl.core.target import TensorConditional
from fastai_condmtl.vision import frames as frames_module
from fastai_condmtl.learn import direct, learner as learner_module

pytestmark = pytest.mark.filterwarnings('ignore')
SIZES = [(64, 48), (50, 80), (90, 40), (64, 64)]


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    folder, rng, rows = tmp_path_factory.mktemp('pictures'), np.random.default_rng(0), []
    for i in range(24):
        width, height = SIZES[i % len(SIZES)]
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(folder / f'{i}.png')
        xy = rng.uniform(0.1, 0.6, 6) * np.array([width, height] * 3)
        row = dict(img=f'{i}.png', yes=i % 2, kind='abc'[i % 3], tags=['p', 'q;p', ''][i % 3], n=i % 5, number=i / 7)
        row |= dict(zip('ax ay bx by'.split(), xy)) | dict(x=xy[4], y=xy[5], w=width * 0.3, h=height * 0.3)
        rows.append(row)
    return folder, pd.DataFrame(rows)


def flow_of(points=False, features=None):
    yes = BinaryBlock('yes')
    others = [SingleLabelBlock('kind'), MultiLabelBlock('tags', label_delim=';'), CountBlock('n')]
    shapes = [KeypointsBlock('points', cols=['ax', 'ay', 'bx', 'by']), BoxBlock('box', cols=['x', 'y', 'w', 'h'])]
    inner = Flow('inner', *others, UnboundedRegressionBlock('number'), features=features) | yes
    return Flow('f', yes, inner, *(shapes if points else []))


def tiny(pretrained=False):
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1))


def make_learner(table, points=False, item_tfms=None, batch_tfms=None, **kwargs):
    folder, df = table
    item_tfms = Resize(32) if item_tfms is None else item_tfms
    batch_tfms = [*aug_transforms(), Normalize.from_stats(*imagenet_stats)] if batch_tfms is None else batch_tfms
    dls = ConditionalDataLoaders.from_df(
        df,
        flow_of(points, 'look' if 'branches' in kwargs else None),
        path=folder,
        fn_col='img',
        valid_idx=range(0, 24, 3),
        item_tfms=item_tfms,
        batch_tfms=batch_tfms,
        num_workers=0,
        bs=8,
    )
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, dls.c))
    if 'branches' not in kwargs:
        kwargs['custom_head'] = head
    learn = conditional_vision_learner(dls, tiny, pretrained=False, normalize=False, cut=-3, start=None, **kwargs)
    with torch.no_grad():
        for parameter in learn.model.parameters():
            parameter.mul_(3)  # decisions of all kinds
    return learn


@pytest.fixture(scope='module')
def learn(table):
    return make_learner(table)


@pytest.fixture(scope='module')
def with_points(table):
    return make_learner(table, points=True)


def by_stock(learn, item, **kwargs):
    "`learn.predict` by fastai's way"
    with pytest.MonkeyPatch.context() as patched, learn.no_bar():
        patched.setattr(learner_module, 'why_not_direct', lambda learn: 'asked for')
        return learn.predict(item, **kwargs)


def assert_same_prediction(ours, stock):
    for a, b in zip(ours[1:], stock[1:]):
        assert type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=0, atol=1e-6)
    a, b = ours[0], stock[0]
    assert type(a) is type(b) and list(a) == list(b) and repr(a) == repr(b)
    np.testing.assert_allclose(a.natural, b.natural, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(a.known, b.known)
    assert a.probabilities.keys() == b.probabilities.keys()
    assert (a.frame is None) == (b.frame is None)
    if a.frame is not None:
        np.testing.assert_allclose(a.frame.affine, b.frame.affine, atol=1e-6)
        assert a.frame.size == b.frame.size


ITEMS = dict(
    row=lambda folder, df: df.iloc[5],
    table_of_one=lambda folder, df: df.iloc[[5]],
    dict=lambda folder, df: dict(df.iloc[5]),
    text=lambda folder, df: str(folder / '5.png'),
    path=lambda folder, df: folder / '5.png',
    array=lambda folder, df: np.array(Image.open(folder / '5.png')),
    bytes=lambda folder, df: (folder / '5.png').read_bytes(),
    pil=lambda folder, df: Image.open(folder / '5.png'),
    fastai=lambda folder, df: PILImage.create(folder / '5.png'),
)


@pytest.mark.parametrize('item', ITEMS)
@pytest.mark.parametrize('points', [False, True])
def test_items_of_each_make(table, learn, with_points, item, points):
    own = with_points if points else learn
    assert direct.why_not_direct(own) == ''
    make = ITEMS[item]
    assert_same_prediction(own.predict(make(*table)), by_stock(own, make(*table)))


@pytest.mark.parametrize('i', range(8))
def test_pictures_of_each_size(table, with_points, i):
    item = table[0] / f'{i}.png'
    assert_same_prediction(with_points.predict(item), by_stock(with_points, item))


def counted(monkeypatch, learn, item):
    "How often a loader is made and run, and events are called, for one prediction"
    counts = dict(made=0, passes=0, events=0)

    def count(cls, name, key):
        stock = getattr(cls, name)

        def f(self, *args, **kwargs):
            counts[key] += 1
            return stock(self, *args, **kwargs)

        patched.setattr(cls, name, f)

    with monkeypatch.context() as patched:
        count(TfmdDL, '__init__', 'made')
        count(DataLoader, '__iter__', 'passes')
        count(Callback, '__call__', 'events')
        learn.predict(item)
    return counts


@pytest.mark.parametrize('points', [False, True])
def test_no_loader_and_no_event(table, learn, with_points, points, monkeypatch):
    own, item = with_points if points else learn, table[0] / '5.png'
    assert counted(monkeypatch, own, item) == dict(made=0, passes=0, events=0)
    own.predict(item)
    opened, stock = [], Image.open
    monkeypatch.setattr(Image, 'open', lambda *a, **k: opened.append(a) or stock(*a, **k))
    own.predict(item)
    assert len(opened) == 1  # of points, too


def test_nothing_random_is_drawn_and_the_record_stays(table):
    learn = make_learner(table, batch_tfms=Normalize.from_stats(*imagenet_stats))
    item = table[0] / '5.png'
    learn.recorder.losses, state = [torch.tensor(3.0)], (random.getstate(), torch.get_rng_state())
    learn.model.train()
    learn.predict(item)
    assert learn.recorder.losses == [torch.tensor(3.0)] and not learn.model.training
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])


class Doubles(Callback):
    order = 20

    def after_pred(self):
        self.learn.pred = self.pred * 2


class Clips(Callback):
    def before_step(self):
        raise AssertionError


class Trains(Callback):
    run_valid = False

    def after_pred(self):
        raise AssertionError


class OwnLearner(Learner):
    def _do_one_batch(self):
        super()._do_one_batch()
        self.pred = self.pred * 2


def test_a_callback_that_changes_predictions_is_heard(table, learn, with_points):
    for own in (learn, with_points):
        item = table[0] / '5.png'
        before = own.predict(item)
        own.add_cb(Doubles())
        try:
            assert 'Doubles' in direct.why_not_direct(own)
            with own.no_bar():
                assert not torch.allclose(own.predict(item)[2], before[2])
            assert_same_prediction(own.predict(item), by_stock(own, item))
        finally:
            own.remove_cb(Doubles)
        assert_same_prediction(own.predict(item), before)


@pytest.mark.parametrize('callback', [Clips, Trains, EarlyStoppingCallback, SaveModelCallback])
def test_callbacks_that_leave_predictions_alone(table, learn, callback):
    with learn.added_cbs(callback()):
        assert direct.why_not_direct(learn) == ''


@pytest.mark.parametrize('event', direct._EVENTS)
def test_any_event_of_an_unknown_callback_is_a_reason(learn, event):
    given = Callback(**{event: lambda self: None})
    inherits = type('Subclass', (EarlyStoppingCallback,), {event: lambda self: None})()
    for callback in (given, inherits):
        with learn.added_cbs(callback):
            assert 'takes part' in direct.why_not_direct(learn)


def test_a_missing_callback_is_a_reason(learn):
    with learn.removed_cbs(learn.cbs.filter(lambda cb: isinstance(cb, CastToTensor))):
        assert 'missing' in direct.why_not_direct(learn)


def test_replaced_methods_are_a_reason(table, learn, monkeypatch):
    item = table[0] / '5.png'
    own = OwnLearner(learn.dls, learn.model, loss_func=learn.loss_func)
    assert '_do_one_batch' in direct.why_not_direct(own)
    with own.no_bar():
        assert not torch.allclose(own.predict(item)[2], learn.predict(item)[2])
    with monkeypatch.context() as patched:
        patched.setattr(learn, '_split', lambda b: None, raising=False)
        assert '_split' in direct.why_not_direct(learn)
    with monkeypatch.context() as patched:
        patched.setattr(Learner, 'get_preds', lambda self, **kwargs: None)
        assert 'get_preds' in direct.why_not_direct(learn)
    assert direct.why_not_direct(learn) == ''


def test_another_loss_and_other_networks_are_reasons(learn):
    other = Learner(learn.dls, learn.model, loss_func=nn.MSELoss())
    assert 'loss' in direct.why_not_direct(other)
    shared = Learner(learn.dls, nn.DataParallel(learn.model), loss_func=learn.loss_func)
    assert 'several devices' in direct.why_not_direct(shared)
    nothing = Learner(learn.dls, nn.Flatten(), loss_func=learn.loss_func)
    assert 'different devices' in direct.why_not_direct(nothing)
    there = Learner(learn.dls, nn.Linear(3, 4, device='meta'), loss_func=learn.loss_func)
    assert 'different devices' in direct.why_not_direct(there)


class Darker(Transform):
    order = 2

    def encodes(self, x: PILImage):
        return PILImage(x.point(lambda value: value // 2))


class ShiftsTarget(Transform):
    order = 3

    def encodes(self, x: TensorConditional):
        return x

    def decodes(self, x: TensorConditional):
        return x * 0


def test_transforms_of_ones_own(table):
    item = table[0] / '5.png'
    own = make_learner(table, item_tfms=[Resize(32), Darker()])
    assert direct.why_not_direct(own) == ''
    assert_same_prediction(own.predict(item), by_stock(own, item))
    assert not torch.allclose(own.predict(item)[2], make_learner(table).predict(item)[2])
    decoding = make_learner(table, item_tfms=[Resize(32), ShiftsTarget()])
    assert 'ShiftsTarget decodes' in direct.why_not_direct(decoding)
    assert_same_prediction(decoding.predict(item), by_stock(decoding, item))
    own.dls.valid.after_item.add(Darker())  # what a callback may do between two predictions
    assert_same_prediction(own.predict(item), by_stock(own, item))


def test_loaders_that_do_more_are_a_reason(table):
    own = make_learner(table)
    own.dls.valid.before_iter = lambda: None
    assert 'before or after a pass' in direct.why_not_direct(own)
    own = make_learner(table)
    own.dls.valid.after_batch = lambda b: b
    assert 'after_batch' in direct.why_not_direct(own)
    own = make_learner(table)
    own.dls.valid.do_item = lambda i: None
    assert 'do_item' in direct.why_not_direct(own)


def test_with_input_and_rm_type_tfms_go_the_way_of_fastai(table, learn, monkeypatch):
    monkeypatch.setattr(learner_module, 'predict_directly', None)
    item = table[0] / '5.png'
    with learn.no_bar():
        assert len(learn.predict(item, with_input=True)) == 4
        learn.predict(item, rm_type_tfms=1)


def test_half_precision(table, learn):
    item = table[0] / '5.png'
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert direct.why_not_direct(learn) == ''
        assert_same_prediction(learn.predict(item), by_stock(learn, item))
    own = make_learner(table).to_fp16()
    assert 'MixedPrecision' in direct.why_not_direct(own)


def test_branches_run_on_every_row(table):
    own = make_learner(table, branches={'look': Branch(8)})
    assert direct.why_not_direct(own) == ''
    assert_same_prediction(own.predict(table[0] / '5.png'), by_stock(own, table[0] / '5.png'))


def test_after_export_and_after_a_fit(table, with_points, tmp_path):
    item = table[0] / '5.png'
    with_points.export(tmp_path / 'x.pkl')
    loaded = load_learner(tmp_path / 'x.pkl')
    assert direct.why_not_direct(loaded) == ''
    assert_same_prediction(loaded.predict(item), with_points.predict(item))
    own = make_learner(table, points=True)
    with own.no_bar(), own.no_logging():
        own.fit(1, 1e-3)
    assert direct.why_not_direct(own) == ''
    assert_same_prediction(own.predict(item), by_stock(own, item))


def test_a_stock_data_block_and_two_pictures(table):
    folder, df = table
    block = DataBlock(
        blocks=(ImageBlock, ImageBlock, flow_of()),
        n_inp=2,
        getters=[ColReader('img', pref=f'{folder}/'), ColReader('img', pref=f'{folder}/'), lambda row: row],
        item_tfms=Resize(16),
    )

    class Two(nn.Module):
        def __init__(self, c):
            super().__init__()
            self.last = nn.Linear(6 * 16 * 16, c)

        def forward(self, a, b):
            return self.last(torch.cat([a.flatten(1), b.flatten(1)], 1))

    dls = block.dataloaders(df, bs=4, num_workers=0)
    own = Learner(dls, Two(dls.c))
    assert direct.why_not_direct(own) == ''
    assert_same_prediction(own.predict(df.iloc[3]), by_stock(own, df.iloc[3]))


def test_tables_and_texts(table):
    df = table[1].assign(text=[f'word{i % 4} and word{i % 3}' for i in range(24)])
    kwargs = dict(valid_idx=range(0, 24, 3), num_workers=0, bs=8)
    dls = ConditionalTabularDataLoaders.from_df(df, flow_of(), cat_names=['img'], cont_names=['ax', 'ay'], **kwargs)
    own = conditional_tabular_learner(dls, [8])
    assert direct.why_not_direct(own) != ''  # a table is no `Datasets`
    assert_same_prediction(own.predict(df.iloc[2]), by_stock(own, df.iloc[2]))
    dls = ConditionalTextDataLoaders.from_df(df, flow_of(), text_col='text', **kwargs)
    small = dict(awd_lstm_clas_config, emb_sz=16, n_hid=16, n_layers=1)
    own = conditional_text_learner(dls, AWD_LSTM, pretrained=False, config=small, seq_len=8)
    assert 'ModelResetter' in direct.why_not_direct(own)
    assert_same_prediction(own.predict(df.iloc[2]), by_stock(own, df.iloc[2]))
    own = Learner(dls, nn.Sequential(nn.EmbeddingBag(200, 8), nn.Linear(8, dls.c)))
    assert direct.why_not_direct(own) == ''
    for item in (df.iloc[2], 'word1 and a word nobody knows'):
        assert_same_prediction(own.predict(item), by_stock(own, item))


def told(error):
    return re.sub('0x[0-9a-f]+', '', str(error.value))


def test_errors_are_those_of_fastai_s_way(table, learn, with_points):
    for own in (learn, with_points):
        for item in (table[0] / 'missing.png', 3.5, b'no picture'):
            with pytest.raises(Exception) as ours:
                own.predict(item)
            with pytest.raises(Exception) as stock:
                by_stock(own, item)
            assert type(ours.value) is type(stock.value) and told(ours) == told(stock)
    with pytest.raises(FlowError, match='missing.png'):
        learn.predict(table[0] / 'missing.png')


@pytest.mark.parametrize('suffix', ['png', 'jpg', 'gif'])
def test_frames_of_many_are_those_of_each(table, with_points, tmp_path, monkeypatch, suffix):
    for i in range(8):
        Image.open(table[0] / f'{i}.png').save(tmp_path / f'{i}.{suffix}')
    files = [tmp_path / f'{i}.{suffix}' for i in (3, 0, 2, 1, 7)]
    dl, flow = with_points.dls.test_dl(files, num_workers=0), with_points.dls.flow
    opened, stock = [], frames_module.OpenImage.__call__
    with monkeypatch.context() as patched:
        patched.setattr(frames_module.OpenImage, '__call__', lambda *a, **k: opened.append(a) or stock(*a, **k))
        frames = learner_module.frames_of(flow, dl)
    assert len(opened) == (len(files) if suffix == 'gif' else len(SIZES))  # one of each size goes through all
    for file, frame in zip(files, frames):
        alone = with_points.predict(file)[0].frame
        np.testing.assert_allclose(frame.affine, alone.affine, atol=1e-6)
        assert frame.size == alone.size
