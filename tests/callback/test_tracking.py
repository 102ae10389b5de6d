"""What TensorBoard and Weights & Biases are given, read back from their files, against pandas and numpy on a learner
whose logits stand in its rows (a learning
rate of 0 keeps them); which inputs are shown, by the colour of their pictures; that looking changes nothing."""

import copy, importlib.util, io, json, pickle, random, struct, sys
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from torch import nn
from fastai.vision.all import (
    Callback,
    ColReader,
    CSVLogger,
    DataBlock,
    EarlyStoppingCallback,
    FetchPredsCallback,
    ImageBlock,
    IndexSplitter,
    Learner,
    MixUp,
    SaveModelCallback,
    Transform,
    TransformBlock,
    load_learner,
)
from fastai_condmtl.vision.all import *
from fastai_condmtl.callback.tracking import ConditionalTensorBoard, ConditionalWandb
from fastai_condmtl.callback.tracked_rows import Kept, Tracked
import matplotlib.pyplot as plt

pytestmark = [
    pytest.mark.filterwarnings('ignore'),
    pytest.mark.skipif(
        importlib.util.find_spec('tensorboard') is None, reason="needs tensorboard: pip install 'fastai_condmtl[track]'"
    ),
]
N, TRAIN, KINDS = 96, 64, list('uvw')
sigmoid = lambda z: 1 / (1 + np.exp(-z))


class Logits(Transform):
    "Row → its logits."

    def __call__(self, r, **kwargs):
        return torch.tensor([r[f'z{i}'] for i in range(6)], dtype=torch.float32)


class Known(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.eye(6))

    def forward(self, x):
        return x @ self.w


def make_flow():
    a = BinaryBlock('a')
    return Flow(
        'f',
        a,
        Flow(
            'deep',
            SingleLabelBlock('k', vocab=KINDS, weight=2.0),
            BinaryBlock('b', weight=0.5),
            BoundedRegressionBlock('r', y_range=(0, 8)),
        )
        | a,
    )


def make_table():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(N, 6)) * 2
    df = pd.DataFrame(
        dict(a=rng.random(N) < 0.7, k=rng.choice(KINDS, N), b=rng.random(N) < 0.5, r=rng.random(N) * 8)
    ).astype(object)
    return df.mask(rng.random(df.shape) < 0.1).assign(**{f'z{i}': z[:, i] for i in range(6)})


DF = make_table()


def make_learn(*cbs, df=DF, flow=None, metrics=('accuracy', 'mae'), lr=0.0, **kwargs):
    block = DataBlock(
        blocks=(TransformBlock, flow or make_flow()),
        get_x=Logits(),
        splitter=IndexSplitter(list(range(TRAIN, len(df)))),
    )
    dls = block.dataloaders(df, bs=16, val_bs=10, num_workers=0)
    return Learner(dls, Known(), lr=lr, metrics=dls.flow.metrics(*metrics) if metrics else None, cbs=cbs, **kwargs)


def quietly(f, *args, **kwargs):
    learn = f.__self__
    with learn.no_bar(), learn.no_logging():
        return f(*args, **kwargs)


def read(log_dir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(log_dir), size_guidance=dict(scalars=0, images=0, tensors=0))
    events.Reload()
    return events


def scalars(log_dir):
    e = read(log_dir)
    return {t: [(s.step, s.value) for s in e.Scalars(t)] for t in e.Tags()['scalars']}


def text(events, tag):
    return events.Tensors(f'{tag}/text_summary')[-1].tensor_proto.string_val[0].decode()


def files(path):
    return sorted(p.name for p in path.rglob('*'))


def by_hand(learn, rows):
    "{path: Series of losses of the rows that count}, from the table alone."
    s, df = learn.dls.flow.slices, DF.loc[rows]
    z = lambda p: df[[f'z{i}' for i in range(6)]].to_numpy(float)[:, s[p].logits]
    bce = lambda p, y: pd.Series(np.where(y, -np.log(sigmoid(z(p)[:, 0])), -np.log(sigmoid(-z(p)[:, 0]))), df.index)
    nll = (
        np.log(np.exp(z('deep.k')).sum(1))
        - z('deep.k')[np.arange(len(df)), [KINDS.index(k) if isinstance(k, str) else 0 for k in df.k]]
    )
    asked = df.a.eq(True)
    counted = DF.loc[range(TRAIN)][lambda rows: rows.a.eq(True) & rows.r.notna()].r.astype(float) / 8
    unit = (counted - counted.median()).abs().mean()  # a loss of numbers is measured by that of the best constant
    return {
        'a': bce('a', df.a.eq(True))[df.a.notna()],
        'deep.k': pd.Series(nll, df.index)[asked & df.k.notna()],
        'deep.b': bce('deep.b', df.b.eq(True))[asked & df.b.notna()],
        'deep.r': pd.Series(np.abs(sigmoid(z('deep.r')[:, 0]) - df.r.astype(float) / 8) / unit, df.index)[
            asked & df.r.notna()
        ],
    }


class Passes(Callback):
    "How many batches were predicted without training, and which losses were trained on."

    def __init__(self):
        self.n, self.trained = 0, []

    def after_loss(self):
        if self.training:
            self.trained.append(self.learn.loss.item())

    def after_pred(self):
        self.n += not self.training


def test_losses_weights_and_metrics_as_pandas_has_them(tmp_path):
    learn = make_learn(Passes())
    quietly(learn.fit, 2, cbs=ConditionalTensorBoard(tmp_path))
    got, train, valid = scalars(tmp_path), by_hand(learn, range(TRAIN)), by_hand(learn, range(TRAIN, N))
    weights = {'a': 1, 'deep.k': 2, 'deep.b': 0.5, 'deep.r': 1}
    total = sum(weights[p] * train[p].mean() for p in weights)
    for p, w in weights.items():
        want = dict(
            train_loss=train[p].mean(), valid_loss=valid[p].mean(), weight=w, loss_share=w * train[p].mean() / total
        )
        for k, v in want.items():
            assert [s for s, _ in got[f'{p}/{k}']] == [4, 8]
            np.testing.assert_allclose([x for _, x in got[f'{p}/{k}']], v, rtol=1e-4, err_msg=f'{p}/{k}')
    for m, v in zip(learn.metrics, learn.recorder.values[-1][2:]):
        assert got[f'{m.path}/{m.metric}'][-1] == (8, pytest.approx(v))
    assert got['_total/valid_loss'][-1][1] == pytest.approx(learn.recorder.values[-1][1]) and got['_total/train_loss'][
        -1
    ][1] == pytest.approx(learn.recorder.values[-1][0])
    assert [s for s, _ in got['_total/smooth_loss']] == list(range(1, 9)) and got['_hypers/lr_0'][0][1] == 0
    assert got['a/threshold'] == [(8, 0.5)] and 'deep.r/threshold' not in got
    assert learn.passes.n == 2 * 4  # the epochs' own validations, and no more


def test_labels_have_their_own_tags_and_train_metrics_too(tmp_path):
    df = DF.assign(m=['x,y' if i % 2 else 'x' if i % 3 else '' for i in range(N)])
    flow = Flow('f', MultiLabelBlock('m', vocab=['x', 'y']), BinaryBlock('a'))
    dls = DataBlock(
        blocks=(TransformBlock, flow), get_x=Logits(), splitter=IndexSplitter(list(range(TRAIN, N)))
    ).dataloaders(df, bs=16, num_workers=0)
    learn = Learner(dls, nn.Linear(6, 3), metrics=dls.flow.metrics(by_label=True), lr=0.0)
    learn.recorder.train_metrics = True
    quietly(learn.fit, 1, cbs=ConditionalTensorBoard(tmp_path))
    got = scalars(tmp_path)
    assert {
        'm/f1_score_x_train',
        'm/f1_score_x_valid',
        'm/f1_score_y_valid',
        'a/accuracy_valid',
        'm/threshold_x',
        'm/threshold_y',
        '_total/valid_loss',
    } <= set(got)
    assert {'m/threshold_curve', 'a/threshold_curve'} <= set(read(tmp_path).Tags()['images'])


def test_a_task_without_rows_has_no_losses(tmp_path):
    learn = make_learn(df=DF.assign(b=np.where(DF.index < TRAIN, DF.b, None)))
    quietly(learn.fit, 1, cbs=ConditionalTensorBoard(tmp_path))
    got = scalars(tmp_path)
    assert 'deep.b/train_loss' in got and not {'deep.b/valid_loss', 'deep.b/accuracy'} & set(got)
    assert (
        all(np.isfinite(v) for vs in got.values() for _, v in vs)
        and 'deep.b/threshold_curve' not in read(tmp_path).Tags()['images']
    )


def test_mixup_counts_both_labels(tmp_path):
    whole = DF.assign(
        a=np.random.default_rng(1).random(N) < 0.5
    )  # one task, every row labelled: batches are as large as each other, and so is what they count
    learn = make_learn(MixUp(), Passes(), df=whole, flow=Flow('f', BinaryBlock('a')), metrics=())
    learn.model = nn.Linear(6, 1)
    quietly(learn.fit, 1, cbs=ConditionalTensorBoard(tmp_path))
    got = scalars(tmp_path)['a/train_loss']
    assert got == [(4, pytest.approx(np.mean(learn.passes.trained), rel=1e-5))]
    y = learn.dls.flow.encode(whole[:TRAIN]).vals[:, 0]
    x = torch.tensor(whole[[f'z{i}' for i in range(6)]].to_numpy()[:TRAIN], dtype=torch.float32)
    assert got[0][1] != pytest.approx(
        nn.functional.binary_cross_entropy_with_logits(learn.model(x)[:, 0], y.as_subclass(torch.Tensor)).item(),
        rel=1e-3,
    )  # and not as without MixUp


def test_two_fits_go_on_counting(tmp_path):
    learn = make_learn()
    learn.add_cb(ConditionalTensorBoard(tmp_path))
    quietly(learn.fit, 1)
    quietly(learn.fit, 2)
    assert [s for s, _ in scalars(tmp_path)['a/valid_loss']] == [4, 8, 12]
    events = read(tmp_path)
    assert [s.step for s in events.Images('a/threshold_curve')] == [4, 12] and [
        s.step for s in events.Images('_flow/tasks')
    ] == [0]


def test_what_is_no_fit_writes_nothing(tmp_path):
    learn = make_learn(ConditionalTensorBoard(tmp_path / 'runs'), lr=1e-3, path=tmp_path)
    quietly(learn.validate)
    quietly(learn.get_preds)
    quietly(learn.lr_find, show_plot=False, num_it=4)
    quietly(learn.evaluate)
    assert not (tmp_path / 'runs').exists()
    quietly(learn.fit, 1)
    before = files(tmp_path / 'runs'), len(scalars(tmp_path / 'runs')['a/valid_loss'])
    quietly(learn.validate)
    quietly(learn.evaluate)
    assert (files(tmp_path / 'runs'), len(scalars(tmp_path / 'runs')['a/valid_loss'])) == before and len(before[0]) == 1


def test_every_so_many_epochs(tmp_path):
    learn = make_learn()
    quietly(learn.fit, 5, cbs=ConditionalTensorBoard(tmp_path, every=2))
    events = read(tmp_path)
    assert [s.step for s in events.Images('a/threshold_curve')] == [8, 16, 20]
    assert [t.step for t in events.Tensors('a/worst/text_summary')] == [8, 16, 20]


def test_looking_changes_nothing(tmp_path):
    class Dice(Callback):
        "What anything random in training would get."

        def before_batch(self):
            self.rolled.append((random.random(), np.random.rand(), torch.rand(1).item()))

    def run(*cbs):
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)
        learn, dice = make_learn(Passes(), FetchPredsCallback(), lr=0.1), Dice()
        dice.rolled = []
        quietly(learn.fit, 3, cbs=[dice, *cbs])
        return learn.passes.trained, dice.rolled

    alone, watched = run(), run(ConditionalTensorBoard(tmp_path, every=1))
    assert alone == watched and len(alone[0]) == 12 and len(read(tmp_path).Images('a/threshold_curve')) == 3


def test_mixed_precision(tmp_path):
    learn = make_learn().to_bf16()
    quietly(learn.fit, 3, cbs=ConditionalTensorBoard(tmp_path, every=1))
    got, train = scalars(tmp_path), by_hand(learn, range(TRAIN))
    for p in train:
        assert got[f'{p}/train_loss'][-1] == (12, pytest.approx(train[p].mean(), rel=0.03))
    assert [s.step for s in read(tmp_path).Images('a/threshold_curve')] == [4, 8, 12]


def test_early_stopping_does_not_cut_the_last_epoch_off(tmp_path):
    learn = make_learn(EarlyStoppingCallback(monitor='valid_loss', patience=1))
    quietly(learn.fit, 9, cbs=ConditionalTensorBoard(tmp_path))
    assert [s for s, _ in scalars(tmp_path)['a/valid_loss']] == [4, 8] and [
        s.step for s in read(tmp_path).Images('a/threshold_curve')
    ] == [8]


def test_rows_are_predicted_again_only_where_weights_were_put_back(tmp_path):
    learn = make_learn(Passes(), lr=5.0, path=tmp_path)  # a learning rate that does harm: the first epoch is the best
    quietly(
        learn.fit, 3, cbs=[SaveModelCallback(monitor='valid_loss'), ConditionalTensorBoard(tmp_path / 'runs', n=100)]
    )
    assert learn.recorder.values[0][1] < learn.recorder.values[2][1] and learn.passes.n == 4 * 4
    listed = text(read(tmp_path / 'runs'), 'a/worst')
    _, _, losses = quietly(learn.get_preds, with_loss=True)
    own = learn.loss_func.per_sample(quietly(learn.get_preds, act=nn.Identity())[0], quietly(learn.get_preds)[1])[:, 0]
    want = own[~own.isnan()].sort(descending=True)[0]
    got = [float(l.rpartition('loss ')[2]) for l in listed.split('\n') if l.startswith('row ')]
    np.testing.assert_allclose(got, want, rtol=6e-3)


def test_without_metrics_and_with_thresholds_moved(tmp_path):
    learn = make_learn(Passes(), metrics=(), df=DF)
    learn.add_cb(ThresholdSearch(metric={'a': 'f1_score', 'b': None}, gates=None, verbose=False))
    quietly(learn.fit, 1, cbs=ConditionalTensorBoard(tmp_path))
    got = scalars(tmp_path)
    assert (
        learn.passes.n == 4
        # without metrics the search keeps the rows of the validation itself; the tracker asks for no pass of its own
        # either
    )
    assert got['a/threshold'][-1][1] == pytest.approx(learn.loss_func.thresholds['a'].item()) and got['a/valid_loss'][
        0
    ][1] == pytest.approx(by_hand(learn, range(TRAIN, N))['a'].mean(), rel=1e-4)


def test_texts_where_the_input_is_no_image(tmp_path):
    learn = make_learn()
    quietly(learn.fit, 1, cbs=ConditionalTensorBoard(tmp_path, tasks=['k'], n=3))
    events, losses = read(tmp_path), by_hand(learn, range(TRAIN, N))['deep.k'].sort_values()
    assert [t for t in events.Tags()['images'] if not t.startswith('_flow')] == []
    for tag, want in (('worst', losses[::-1][:3]), ('best', losses[:3])):
        heads = [l for l in text(events, f'deep.k/{tag}').split('\n') if l.startswith('row ')]
        assert heads == [f'row {i - TRAIN}, loss {l:.3g}' for i, l in want.items()]
    trees = text(events, '_flow/trees')
    assert trees.startswith('```\n') and trees.count('validation row') == 3
    for i in range(3):
        z = DF[f'z{learn.dls.flow.slices["a"].logits.start}'][TRAIN + i]
        assert f"a: {'yes' if z > 0 else 'no'} ({sigmoid(abs(z)):.2f}, logit {z:.1f})" in trees
    assert 'given a' in text(events, '_flow/text')


def image_learn(tmp_path, *cbs, **kwargs):
    "Pictures of one colour each; the network says what the red channel says."
    path = tmp_path / 'images'
    path.mkdir(exist_ok=True)
    rng = np.random.default_rng(2)
    red = rng.permutation(N) * 2
    df = pd.DataFrame(
        dict(
            a=rng.random(N) < 0.5, x=rng.random(N) * 8, y=rng.random(N) * 8, img=[f'{i}.png' for i in range(N)], red=red
        )
    )
    for i, r in enumerate(red):
        Image.fromarray(np.full((12, 12, 3), (r, 90, i), np.uint8)).save(path / f'{i}.png')

    class Red(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return ((x[:, :1].mean((2, 3)) - 0.4) * 6 * self.w).expand(-1, 3)

    flow = Flow('f', BinaryBlock('a'), *[BoundedRegressionBlock(c, y_range=(0, 8), draws=c) for c in 'xy'])
    dls = DataBlock(
        blocks=(ImageBlock, flow),
        get_x=ColReader('img', pref=f'{path}/'),
        splitter=IndexSplitter(list(range(TRAIN, N))),
    ).dataloaders(df, bs=16, num_workers=0)
    return Learner(dls, Red(), lr=0.0, metrics=dls.flow.metrics(), cbs=cbs, **kwargs), df


def colours(image):
    "The red and blue of each of four pictures, in reading order."
    px = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)).convert('RGB')).astype(int)
    return [tuple(px[int(px.shape[0] * y), int(px.shape[1] * x), [0, 2]]) for y in (0.44, 0.95) for x in (0.25, 0.75)]


def test_best_and_worst_pictures(tmp_path):
    learn, df = image_learn(tmp_path)
    quietly(learn.fit, 1, cbs=ConditionalTensorBoard(tmp_path / 'runs'))
    events, v = read(tmp_path / 'runs'), df[TRAIN:]
    z = (v.red / 255 - 0.4) * 6
    losses = pd.Series(np.where(v.a, -np.log(sigmoid(z)), -np.log(sigmoid(-z))), v.index).sort_values()
    for tag, rows in (('a/best', losses.index[:4]), ('a/worst', losses.index[::-1][:4])):
        np.testing.assert_allclose(colours(events.Images(tag)[-1]), [(df.red[i], i) for i in rows], atol=1)
    assert {f'{t}/{w}' for t in 'axy' for w in ('best', 'worst')} <= set(events.Tags()['images'])
    assert not any(
        '/worst' in t for t in events.Tags()['tensors']
    )  # trees of the best and worst: only where there is no picture


def test_rows_of_a_loader_with_an_order_of_its_own(tmp_path):
    "fastai's text loaders sort by length: the text shown is the one that the loss belongs to."
    from fastai.text.all import SortedDL, TextBlock

    rng = np.random.default_rng(4)
    words = [f'word{i}' for i in range(N)]
    df = pd.DataFrame(dict(t=[f'{w} ' + 'the ' * int(rng.integers(1, 9)) for w in words], a=rng.random(N) < 0.5))

    class Length(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return ((x != 1).sum(1, keepdim=True).float() - 6) + self.w

    dls = DataBlock(
        blocks=(TextBlock.from_df('t', min_freq=1, n_workers=1, max_vocab=1000), Flow('f', BinaryBlock('a'))),
        get_x=ColReader('text'),
        splitter=IndexSplitter(list(range(TRAIN, N))),
    ).dataloaders(df, bs=16, num_workers=0)
    assert isinstance(dls.valid, SortedDL)
    learn = Learner(dls, Length(), lr=0.0)
    quietly(learn.fit, 1, cbs=ConditionalTensorBoard(tmp_path))
    shown, n = text(read(tmp_path), 'a/worst').split('\n'), 0
    for i, l in enumerate(shown):
        if not l.startswith('row '):
            continue
        row, loss, n = int(l.split()[1].rstrip(',')), float(l.rpartition(' ')[2]), n + 1
        x = dls.valid_ds[row][0]
        assert words[TRAIN + row] in shown[i + 1].split()
        z = len(x) - 6.0
        assert loss == pytest.approx(-np.log(sigmoid(z if df.a[TRAIN + row] else -z)), rel=1e-2)
    assert n == 4


def test_fastais_own_tensorboard_callback(tmp_path):
    from fastai.callback.tensorboard import TensorBoardCallback

    learn, _ = image_learn(tmp_path)
    quietly(learn.fit, 1, cbs=TensorBoardCallback(tmp_path / 'stock', n_preds=4))
    events = read(tmp_path / 'stock')
    image = Image.open(io.BytesIO(events.Images('Sample results')[-1].encoded_image_string))
    assert (
        image.size[0] > image.size[1] > 100
        and np.asarray(image.convert('RGB')).std() > 10
        and 'a.accuracy' in events.Tags()['scalars']
    )


def wandb_records(raw):
    """The records of a LevelDB log: after 7 bytes of header, blocks of 32 KiB of parts (4 bytes of checksum,
    length, kind: 1 whole, 2 first, 3 middle, 4 last)."""
    at, part = 7, b''
    while at + 7 <= len(raw):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        n, kind = struct.unpack('<HB', raw[at + 4 : at + 7])
        part, at = part + raw[at + 7 : at + 7 + n], at + 7 + n
        if kind in (1, 4):
            yield part
            part = b''


def wandb_rows(folder):
    "All that a run logged, from the file that it would sync: tag → list of (step, value)."
    from wandb.proto import wandb_internal_pb2 as pb

    res = {}
    for data in wandb_records(next(folder.glob('offline-run*/*.wandb')).read_bytes()):
        rec = pb.Record.FromString(data)
        if rec.WhichOneof('record_type') != 'history':
            continue
        row = {}
        for i in rec.history.item:
            name, *inner = [i.key] if i.key else i.nested_key  # of a picture: its type, path, size
            if inner:
                row.setdefault(name, {})['.'.join(inner)] = json.loads(i.value_json)
            else:
                row[name] = json.loads(i.value_json)
        for k, v in row.items():
            res.setdefault(k, []).append((rec.history.step.num, v))
    return res


def test_the_same_in_weights_and_biases(tmp_path, monkeypatch):
    wandb = pytest.importorskip('wandb', reason='needs wandb: pip install wandb')
    from fastai.callback.wandb import WandbCallback

    monkeypatch.setenv('WANDB_SILENT', 'true')
    learn, _ = image_learn(tmp_path, ThresholdSearch(verbose=False))
    wandb.init(mode='offline', dir=tmp_path, project='p', settings=wandb.Settings(console='off', x_disable_stats=True))
    try:
        quietly(learn.fit, 2, cbs=[ConditionalTensorBoard(tmp_path / 'runs'), ConditionalWandb()])
        assert not hasattr(learn, 'wandb')  # what was brought along is taken away
        quietly(learn.fit, 1, cbs=[WandbCallback(n_preds=3), ConditionalWandb(tasks=['a'])])
    finally:
        wandb.finish()
        wandb.teardown()  # what is still on its way is on disk then
    rows, events = wandb_rows(tmp_path / 'wandb'), read(tmp_path / 'runs')
    ours, tags = scalars(tmp_path / 'runs'), events.Tags()
    for t in ours:
        if not t.startswith(('_hypers', '_total/smooth')):
            np.testing.assert_allclose(
                [v for _, v in rows[t]][: len(ours[t])], [v for _, v in ours[t]], rtol=1e-5, err_msg=t
            )
    assert set(tags['images']) | {t.removesuffix('/text_summary') for t in tags['tensors']} <= set(rows)
    assert (
        rows['a/worst'][0][1]['_type'] == 'image-file'
        and rows['_flow/trees'][0][1]['_type'] == 'html-file'
        and 'train_loss' in rows
    )
    assert len(rows['a/valid_loss']) == 3 and len(rows['a/worst']) == 2 and len(rows['x/worst']) == 1
    assert [s for s, _ in rows['a/valid_loss']] == sorted({s for s, _ in rows['a/valid_loss']})
    table = json.loads(next((tmp_path / 'wandb').rglob('Prediction_Samples*.table.json')).read_text())
    assert (
        table['columns'] == ['Input image', 'Ground_Truth', 'Predictions']
        and len(table['data']) == 3
        and all('a: ' in r[2] for r in table['data'])
    )
    page = next((tmp_path / 'wandb').rglob('media/html/_flow/trees*.html')).read_text()
    assert '<pre>validation row 0\nf\n' in page


def test_csv_logger(tmp_path):
    learn = make_learn(CSVLogger(), path=tmp_path)
    quietly(learn.fit, 2)
    log = pd.read_csv(tmp_path / 'history.csv')
    assert list(log.columns) == [
        'epoch',
        'train_loss',
        'valid_loss',
        *(m.name for m in learn.metrics),
        'time',
    ] and list(log.epoch) == [0, 1]
    np.testing.assert_allclose(
        log.iloc[:, 1:-1].to_numpy(float), np.array(learn.recorder.values, dtype=float), rtol=1e-5
    )
    p = [f'z{learn.dls.flow.slices["a"].logits.start}']
    known = DF[TRAIN:][DF.a[TRAIN:].notna()]
    assert log['a.accuracy'].iloc[-1] == pytest.approx(((known[p[0]] > 0) == known.a.eq(True)).mean(), abs=1e-6)


def test_export_and_pickle(tmp_path):
    learn, _ = image_learn(tmp_path, ConditionalTensorBoard(tmp_path / 'runs'), path=tmp_path)
    learn.model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    quietly(learn.fit, 1)
    learn.export('l.pkl')
    again = load_learner(tmp_path / 'l.pkl')
    with again.no_bar():
        assert again.predict(tmp_path / 'images' / '0.png')[0]['a'] in (True, False)
    assert again.conditional_tensor_board.writer is None and len(files(tmp_path / 'runs')) == 1
    cb = ConditionalTensorBoard(tmp_path / 'more')
    learn = make_learn(cb)

    class Stop(Callback):
        order = 90

        def after_validate(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quietly(learn.fit, 1, cbs=Stop())
    assert cb.writer is not None
    copy = pickle.loads(pickle.dumps({k: v for k, v in cb.__getstate__().items() if k != 'learn'}))
    assert copy['batches'] == 4 and 'writer' not in copy and 'acc' not in copy


def test_an_interrupted_fit_is_not_taken_up_by_validate(tmp_path):
    learn = make_learn(ConditionalTensorBoard(tmp_path))

    class Stop(Callback):
        order = 90

        def after_validate(self):
            if self.learn.conditional_tensor_board.trained:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quietly(learn.fit, 1, cbs=Stop())
    learn.remove_cb(Stop)
    quietly(learn.validate)
    assert read(tmp_path).Tags()['images'] == ['_flow/tasks']
    quietly(learn.fit, 1)
    assert [s.step for s in read(tmp_path).Images('a/threshold_curve')] == [8]


def test_wrong_use(tmp_path, monkeypatch):
    learn = make_learn(Passes())
    with pytest.raises(FlowError, match='kk'):
        quietly(learn.fit, 1, cbs=ConditionalTensorBoard(tmp_path / 'r', tasks=['kk']))
    assert learn.passes.n == 0 and not learn.passes.trained and not (tmp_path / 'r').exists()
    for package in ('tensorboard', 'wandb'):
        monkeypatch.setitem(sys.modules, package, None)  # as if they were not installed
    with pytest.raises(ImportError, match=r'fastai_condmtl\[track\]'):
        ConditionalTensorBoard()
    with pytest.raises(ImportError, match='wandb'):
        ConditionalWandb()


def test_weights_are_those_of_the_learners_own_loss(tmp_path):
    "A learner given a loss of its own trains on that one's weights, and these are told."
    learn = make_learn()
    learn.loss_func = copy.deepcopy(learn.dls.flow.loss_func)
    learn.loss_func.set_weights(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    quietly(learn.fit, 1, cbs=ConditionalTensorBoard(tmp_path))
    got = scalars(tmp_path)
    assert [got[f'{p}/weight'][-1][1] for p in learn.dls.flow.paths] == [4.0, 3.0, 2.0, 1.0]


def test_tracked_by_itself():
    "What the writers write can be had without them."
    learn = make_learn()
    t = Tracked(learn, collect_kept(learn), tasks=['a'], n=2)
    assert [tag for tag, _ in t.figures()] == ['a/threshold_curve'] and [tag for tag, _ in t.texts()] == [
        '_flow/trees',
        'a/worst',
        'a/best',
    ]
    want = by_hand(learn, range(TRAIN, N))['a']
    assert t.picks['a/worst'][0] == (pytest.approx(want.max(), rel=1e-4), want.idxmax() - TRAIN)
    assert learn.loss_func.task_weights().tolist() == [1.0, 2.0, 0.5, 1.0]
    with learn.no_bar():
        assert Tracked(learn, tasks=['a']).picks['a/worst'][0] == t.picks['a/worst'][0]


def collect_kept(learn):
    acc = Kept(learn.dls.flow, 2)
    for b in learn.dls.valid:  # by hand, batch by batch
        with torch.no_grad():
            learn.pred, learn.yb = learn.model(b[0].as_subclass(torch.Tensor)), (b[1].as_subclass(torch.Tensor),)
        acc.accumulate(learn)
    return acc


def test_dollars_are_no_formulas():
    m = MultiLabelBlock('$m_{', 'm', vocab=['$a_{', 'b$'])
    bound = Flow('f$', m).bind(pd.DataFrame(dict(m=['$a_{,b$', ''])))
    from fastai_condmtl.vision.show import draw_tree

    fig, ax = plt.subplots()
    draw_tree(ax, FlowPrediction(bound, bound.encode(pd.DataFrame(dict(m=['$a_{,b$'])))[0]).tree())
    bound.plot()
    for f in plt.get_fignums():
        plt.figure(f).canvas.draw()
    plt.close('all')
