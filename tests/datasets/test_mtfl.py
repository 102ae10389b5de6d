"""The main job on real faces (MTFL; the pictures do not come with the repository): five landmarks, gender, smile,
glasses and pose, with gaps, from the published lists to an exported learner"""

import contextlib, io
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import CSVLogger, Resize, ResizeMethod, aug_transforms, load_learner, set_seed
from fastai_condmtl.vision.all import (
    BoundedRegressionBlock,
    ConditionalDataLoaders,
    Flow,
    FlowPrediction,
    conditional_vision_learner,
)
from fastai_condmtl.datasets.faces import POSES
from fastai_condmtl.datasets.readers import read_mtfl
import faces_of_mtfl as faces
from faces_of_mtfl import SIZE

pytestmark = [pytest.mark.data, pytest.mark.filterwarnings('ignore')]
POINTS = ['left_eye', 'right_eye', 'nose', 'left_mouth', 'right_mouth']
AXES = [f'{p}_{a}' for p in POINTS for a in 'xy']
EPOCHS = 20


@contextlib.contextmanager
def quiet(learn):
    with learn.no_bar(), learn.no_logging(), contextlib.redirect_stdout(io.StringIO()):
        yield


@pytest.fixture(scope='module')
def root(shared_data):
    path = shared_data / 'mtfl_mini'
    if not (path / 'training.txt').exists():
        pytest.skip(f'no MTFL at {path}')
    return path


@pytest.fixture(scope='module')
def full(root):
    return faces.table(root)


@pytest.fixture(scope='module')
def df(full):
    "With random gaps: an attribute here, a landmark's two coordinates there."
    rng, df = np.random.default_rng(0), full.astype({c: object for c in ('gender', 'smile', 'glasses', 'pose')})
    for c in ('gender', 'smile', 'glasses', 'pose'):
        df.loc[rng.random(len(df)) < 0.1, c] = None
    for p in POINTS:
        df.loc[rng.random(len(df)) < 0.1, [f'{p}_x', f'{p}_y']] = np.nan
    return df


def by_hand(df):
    "path -> rows that count."
    known = df.notna()
    ahead = df.pose.isin(['left', 'frontal', 'right'])
    bare = df.glasses.eq(0) & known.glasses
    res = {c: known[c] for c in ('gender', 'glasses', 'pose')} | {f'nose.nose_{a}': known[f'nose_{a}'] for a in 'xy'}
    res |= {f'eyes.{p}_{a}': known[f'{p}_{a}'] & bare for p in POINTS[:2] for a in 'xy'}
    res |= {f'mouth.{p}_{a}': known[f'{p}_{a}'] & ahead for p in POINTS[3:] for a in 'xy'} | {
        'mouth.smile': known.smile & ahead
    }
    return {p: v.to_numpy(bool) for p, v in res.items()}


@pytest.fixture(scope='module')
def learn(root, df, tmp_path_factory):
    set_seed(3, reproducible=True)
    dls = ConditionalDataLoaders.from_df(
        df,
        faces.flow(),
        path=root,
        valid_pct=0.25,
        seed=5,
        stratify=True,
        item_tfms=Resize(SIZE, method=ResizeMethod.Squish),
        bs=32,
        num_workers=0,
    )
    learn = conditional_vision_learner(
        dls,
        faces.tiny,
        pretrained=False,
        custom_head=faces.head(dls.c),
        normalize=False,
        path=tmp_path_factory.mktemp('mtfl'),
    )
    with quiet(learn):
        learn.fine_tune(EPOCHS, base_lr=1e-2, wd=0.3, cbs=CSVLogger())
    learn.last = list(learn.recorder.values[-1])  # later predictions clear the recorder
    return learn


def test_lists_are_read(root):
    train, test = read_mtfl(root, 'train', SIZE), read_mtfl(root, 'test', SIZE)
    assert (
        (len(train), len(test)) == (1200, 400)
        and not train.img.str.contains(r'\\').any()
        and all((root / f).is_file() for f in [*train.img[:20], *test.img[:20]])
    )
    for d in (train, test):
        assert (
            d[AXES].min().min() > 0
            and d[AXES].max().max() < SIZE
            and set(d.pose) == set(POSES)
            and set(d.gender) == {'male', 'female'}
            and all(set(d[c]) == {0, 1} for c in ('smile', 'glasses'))
        )
        assert (d.left_eye_x < d.right_eye_x).mean() > 0.99 and (d.nose_y > d.left_eye_y).mean() > 0.97


def test_masks_of_real_rows(learn, df):
    bound = learn.dls.flow
    y, want = torch.Tensor(bound.encode(df)), by_hand(df)
    assert bound.paths == [
        'gender',
        'glasses',
        'pose',
        *[f'eyes.{p}_{a}' for p in POINTS[:2] for a in 'xy'],
        'nose.nose_x',
        'nose.nose_y',
        *[f'mouth.{p}_{a}' for p in POINTS[3:] for a in 'xy'],
        'mouth.smile',
    ]
    for path, s in bound.slices.items():
        assert np.array_equal(y[:, 1, s.targets][:, 0].numpy() > 0, want[path]), path
        assert 200 < want[path].sum() < len(df)
        col = path.rpartition('.')[2]
        m = want[path]
        vals = y[:, 0, s.targets][:, 0].numpy()[m]
        if col in AXES:
            np.testing.assert_allclose(vals * SIZE, df[col].to_numpy(float)[m], atol=1e-4)
        elif col != 'pose':
            assert np.array_equal(vals == 1, df[col].to_numpy()[m] == ('male' if col == 'gender' else 1))
        else:
            assert [bound.tasks['pose'].vocab[int(v)] for v in vals] == df.pose[m].tolist()


@pytest.mark.trains
def test_it_learns_faces(learn, df):
    "Landmarks beat the mean (here: median) shape of the training rows; the other tasks are better than a coin."
    flow = learn.dls.flow
    preds, targs, dec = learn.get_preds(with_decoded=True)
    y, pred = torch.Tensor(targs), torch.Tensor(dec)
    train = torch.Tensor(flow.encode(df.loc[learn.dls.train_ds.items.index]))
    with quiet(learn):
        res = dict(zip(['valid', *[m.name for m in learn.metrics]], learn.validate()))
    ours, mean = [], []
    for path, s in flow.slices.items():
        c = s.targets.start
        m, t = y[:, 1, c] > 0, train[:, 1, c] > 0
        if path.rpartition('.')[2] in AXES:
            ours.append((pred[m, 0, c] - y[m, 0, c]).abs().mean().item() * SIZE)
            mean.append((train[t, 0, c].median() - y[m, 0, c]).abs().mean().item() * SIZE)
            assert res[f'{path}.mae'] == pytest.approx(ours[-1], rel=1e-3)
    assert np.mean(ours) < 0.9 * np.mean(mean), (np.mean(ours), np.mean(mean))
    assert sum(a < b for a, b in zip(ours, mean)) >= 7, list(zip(flow.paths, ours, mean))
    assert all(res[f'{p}.accuracy'] >= 0.5 for p in ('gender', 'glasses', 'pose', 'mouth.smile'))


@pytest.mark.trains
def test_metrics_and_log(learn):
    names = [m.name for m in learn.metrics]
    assert names == [f"{p}.{'mae' if p.rpartition('.')[2] in AXES else 'accuracy'}" for p in learn.dls.flow.paths]
    log = pd.read_csv(learn.path / 'history.csv')
    assert (
        list(log.columns) == ['epoch', 'train_loss', 'valid_loss', *names, 'time'] and len(log) == EPOCHS
    )  # the log of the second, unfrozen, phase
    np.testing.assert_allclose(log.iloc[-1, 1:-1].to_numpy(float), learn.last, rtol=1e-5)
    assert log.valid_loss.iloc[-1] < log.valid_loss.iloc[0] and np.isfinite(learn.last).all()


def test_predictions(learn, root):
    test = read_mtfl(root, 'test', SIZE).iloc[:60]
    pred, dec, acts = learn.predict(root / test.img.iloc[0])
    assert (
        isinstance(pred, FlowPrediction)
        and set(pred) == set(learn.dls.flow.paths)
        and pred['gender'] in ('male', 'female')
        and pred['pose'] in POSES
        and 0 <= pred['nose_x'] <= SIZE
    )
    assert (pred['left_eye_x'] is None) == (pred['glasses'] is True) and (pred['smile'] is None) == (
        'profile' in pred['pose']
    )
    assert (
        sum(pred.probabilities['pose'].values()) == pytest.approx(1, abs=1e-4)
        and 0 <= pred.probabilities['gender'] <= 1
    )
    out = learn.predict_df(test)
    assert list(out.columns) == [
        'gender',
        'glasses',
        'pose',
        *AXES[:4],
        *AXES[4:6],
        *AXES[6:],
        'smile',
    ] and out.index.equals(test.index)
    assert (
        out.nose_x.between(0, SIZE).all() and out.pose.isin(POSES).all() and out.gender.isin(['male', 'female']).all()
    )
    assert (out.left_eye_x.isna() == out.glasses.eq(True)).all() and (
        out.smile.isna() == out.pose.str.contains('profile')
    ).all()
    y = torch.Tensor(learn.dls.flow.encode(out))  # predictions are labels of the same table
    dec = torch.Tensor(learn.get_preds(dl=learn.dls.test_dl(test), with_decoded=True)[2])
    torch.testing.assert_close(y[:, 1], dec[:, 1])
    torch.testing.assert_close(y[:, 0], dec[:, 0] * dec[:, 1], rtol=1e-4, atol=1e-4)


def test_labelled_test_rows(learn, root):
    "Other pictures of other sizes, grey ones among them, scored by `validate`."
    test = read_mtfl(root, 'test', SIZE).iloc[::4]
    with quiet(learn):
        res = learn.validate(dl=learn.dls.test_dl(test, with_labels=True))
    assert np.isfinite(res).all() and len(res) == 1 + len(learn.metrics)


def test_pictures(learn):
    import matplotlib.pyplot as plt

    with quiet(learn):
        learn.show_results(max_n=4)
    text = '\n'.join(t.get_text() for ax in plt.gcf().axes for t in ax.texts)
    for word in ('gender', 'glasses', 'pose', 'nose_x', 'truth'):
        assert word in text
    plt.close('all')
    learn.dls.show_batch(max_n=4)
    assert len([ax for ax in plt.gcf().axes if ax.images]) == 4


def test_export(learn, root):
    learn.export('faces.pkl')
    other = load_learner(learn.path / 'faces.pkl')
    rows = read_mtfl(root, 'test', SIZE).iloc[:12]
    pd.testing.assert_frame_equal(other.predict_df(rows), learn.predict_df(rows), rtol=1e-3)
    assert str(other.predict(root / rows.img.iloc[3])[0].tree()) == str(
        learn.predict(root / rows.img.iloc[3])[0].tree()
    )


def test_fractions_instead_of_pixels(root, full):
    "The same faces with landmarks as fractions of the picture, augmented, through one batch."
    df = full.iloc[:64].assign(**{c: full[c].iloc[:64] / SIZE for c in AXES})
    flow = Flow('marks', *[BoundedRegressionBlock(c, y_range=(0, 1)) for c in AXES])
    dls = ConditionalDataLoaders.from_df(
        df,
        flow,
        path=root,
        item_tfms=Resize(SIZE, method=ResizeMethod.Squish),
        batch_tfms=aug_transforms(do_flip=False, max_rotate=0, max_zoom=1.0, max_warp=0),
        bs=8,
        num_workers=0,
        seed=1,
    )
    x, y = dls.one_batch()
    assert (
        x.shape == (8, 3, SIZE, SIZE)
        and y.shape == (8, 2, 10)
        and y[:, 1].all()
        and y[:, 0].min() > 0.1
        and y[:, 0].max() < 0.9
    )
