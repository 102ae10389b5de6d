"A `Predictor` says what the learner says, and opens each picture once"

from copy import deepcopy
from copy import copy
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import CropPad, L, Resize, squeezenet1_1
from PIL import Image
from fastai_condmtl.all import *
from fastai_condmtl.vision.all import ConditionalDataLoaders, conditional_vision_learner
from fastai_condmtl.data.source_tfms import SourceTfms
from fastai_condmtl.datasets.synthetic import save_scenes, security_flow

pytest.importorskip('safetensors', reason='needs safetensors (extra safe)')
pytestmark = pytest.mark.filterwarnings('ignore')
N = 30


def boxes():
    "A flow whose answers are pixels of the file"
    return Flow('f', BinaryBlock('camera_blocked'), BoxBlock('face', cols=['face_x1', 'face_y1', 'face_w', 'face_h']))


@pytest.fixture(scope='module', params=['boxes', 'numbers', 'cached boxes'])
def both(request, tmp_path_factory):
    "A learner and the predictor of its safe file, and a table of pictures of several sizes"
    folder = tmp_path_factory.mktemp('scenes')
    df = save_scenes(folder, n=N, size=48)
    torch.manual_seed(0)
    dls = ConditionalDataLoaders.from_df(
        df,
        security_flow(48) if request.param == 'numbers' else boxes(),
        path=folder,
        fn_col='img',
        valid_idx=range(6),
        bs=8,
        num_workers=0,
        item_tfms=Resize(32, method='squish'),
        **(dict(cache=40) if request.param.startswith('cached') else {}),
    )
    learn = conditional_vision_learner(dls, squeezenet1_1, pretrained=False)
    learn.save_safe(folder / 'model.safetensors')
    return learn, load_safe(folder / 'model.safetensors'), [folder / name for name in df.img]


def counting(monkeypatch, predictor):
    opened, open_ = [], predictor.open
    monkeypatch.setattr(predictor, 'open', lambda item: opened.append(item) or open_(item))
    return opened


def test_one_picture_is_opened_once(both, monkeypatch):
    learn, predictor, files = both
    opened = counting(monkeypatch, predictor)
    for file in files[:4]:
        prediction, decided, acts = predictor.predict(file)
        with learn.no_bar():
            want, want_decided, want_acts = learn.predict(file)
        assert torch.allclose(acts, want_acts, atol=1e-5) and torch.allclose(decided, want_decided, atol=1e-5)
        assert str(prediction) == str(want)
    assert opened == files[:4]


def test_many_are_opened_once_each(both, monkeypatch):
    learn, predictor, files = both
    opened = counting(monkeypatch, predictor)
    ours, theirs = predictor.predict_df(files, bs=7), learn.predict_df(files)
    assert opened == files
    for name in theirs:
        got, want = (table[name].astype(object).where(table[name].notna(), None) for table in (ours, theirs))
        if theirs[name].dtype == float:
            np.testing.assert_allclose(ours[name], theirs[name], atol=1e-3)
        else:
            assert got.astype(str).tolist() == want.astype(str).tolist(), name
    acts, decided = predictor.get_preds(files, bs=7)
    assert len(acts) == len(decided) == N
    assert len(predictor.get_preds([])[0]) == 0
    with pytest.raises(FlowError, match='hand over a list of pictures'):
        predictor.get_preds(str(files[0]))


@pytest.mark.parametrize('method', ['predict_df', 'get_preds'])
def test_a_table_and_a_single_item_are_no_list(both, method):
    "Iterated over, they would be names of columns, keys, characters and lines of pixels"
    call, files = getattr(both[1], method), both[2]
    with pytest.raises(FlowError, match=r"not a DataFrame: .*write list\(df\['column'\]\)$"):
        call(pd.DataFrame(dict(img=files)))
    picture = Image.open(files[0])
    for one in (files[0], str(files[0]), files[0].read_bytes(), picture):
        with pytest.raises(FlowError, match=rf'not one {type(one).__name__}: write \[item\], or predict\(item\)$'):
            call(one)
    with pytest.raises(FlowError, match=r'not one array: write \[array\], or list\(array\)'):
        call(np.asarray(picture))
    with pytest.raises(FlowError, match=r'not one dict: write \[item\] for a row'):
        call(dict(img=files))


def test_several_in_any_make(both):
    predictor, files = both[1], both[2][:3]
    want, column = predictor.predict_df(files), pd.Series(files, index=list('xyz'))
    for several in (tuple(files), L(files), iter(files)):
        pd.testing.assert_frame_equal(predictor.predict_df(several), want)
    pd.testing.assert_frame_equal(predictor.predict_df(column), want.set_axis(column.index))
    for several in (column.to_frame(), files, tuple(files), L(files), set(files), iter(files)):
        with pytest.raises(FlowError, match=r'predict takes one item, not a .*: for several write predict_df'):
            predictor.predict(several)
    for row in (column, dict(img=files[0])):
        with pytest.raises(FlowError, match=f'of type {type(row).__name__}: .*Hand over a file, its bytes, an array'):
            predictor.predict(row)


def test_frames_lead_to_the_pixels_of_the_file(both):
    learn, predictor, files = both
    if predictor.flow.geometry is None:
        assert predictor.frames(files[:2]) == [None, None]
    else:
        assert [tuple(frame.size) for frame in predictor.frames(files[:2])] == [(48, 48)] * 2


@pytest.mark.parametrize('bs', [0, -1, 1.5, True])
def test_how_many_at_a_time(both, bs):
    "With -1 a list would seem to be empty"
    predictor, files = both[1], both[2][:3]
    for call in (predictor.predict_df, predictor.get_preds):
        with pytest.raises(FlowError, match='bs=.* must be a positive whole number'):
            call(files, bs=bs)


def test_transforms_by_source_are_no_part_of_a_safe_file(both, tmp_path):
    "It would say something else of each picture, and nobody would notice"
    df = pd.DataFrame(dict(img=both[2], camera_blocked=[0, 1] * (N // 2), source=['street', 'porch'] * (N // 2)))
    tfms = SourceTfms(dict(street=CropPad(32), porch=Resize(32)), default='porch')
    dls = ConditionalDataLoaders.from_df(
        df, Flow('f', BinaryBlock('camera_blocked')), path='/', fn_col='img', bs=8, num_workers=0, item_tfms=tfms
    )
    learn = conditional_vision_learner(dls, squeezenet1_1, pretrained=False)
    with pytest.raises(FlowError, match='item transform SourceTfms runs on validation items'):
        learn.save_safe(tmp_path / 'model.safetensors')
    assert not (tmp_path / 'model.safetensors').exists()


def test_averaged_folds_go_through_a_safe_file_with_their_network_handed_over(tmp_path):
    df, flow = save_scenes(tmp_path, n=N, size=48), security_flow(48)

    def fit(valid_idx):
        dls = ConditionalDataLoaders.from_df(
            df,
            flow,
            path=tmp_path,
            fn_col='img',
            valid_idx=valid_idx,
            bs=8,
            num_workers=0,
            item_tfms=Resize(32, method='squish'),
        )
        learn = conditional_vision_learner(dls, squeezenet1_1, pretrained=False, metrics=[], tune=None)
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-3)
        return learn

    learn = average_folds(fit_folds(fit, flow, df, n=2, seed=0))
    file = tmp_path / 'mean.safetensors'
    with pytest.warns(FlowWarning, match='whoever loads the file makes the same network and hands it over'):
        learn.save_safe(file)
    with pytest.raises(FlowError, match='does not name its network: hand over'):
        load_safe(file)
    network = deepcopy(learn.model)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)  # the weights come from the file
    files = [tmp_path / name for name in df.img[:5]]
    with learn.no_bar():
        acts, _, decided = learn.get_preds(dl=learn.dls.test_dl(df[:5]), with_decoded=True)
        cells = learn.predict_df(df[:5])
    predictor = load_safe(file, model=network)
    found = predictor.get_preds(files)
    assert torch.allclose(found[0], acts, atol=1e-5) and torch.allclose(found[1], decided, atol=1e-4)
    pd.testing.assert_frame_equal(predictor.predict_df(files), cells.reset_index(drop=True), atol=1e-3)


def test_a_file_that_makes_no_floats_of_pictures(both):
    predictor, files = copy(both[1]), both[2][:2]
    predictor.item, predictor.batch = [], []
    with pytest.raises(FlowError, match=r'come to the network as torch.uint8.*save_safe, of a learner of pictures'):
        predictor.predict_df(files)
