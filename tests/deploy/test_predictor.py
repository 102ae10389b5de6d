"A `Predictor` says what the learner says, and opens each picture once"

import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import L, Resize, squeezenet1_1
from PIL import Image
from fastai_condmtl.all import *
from fastai_condmtl.vision.all import ConditionalDataLoaders, conditional_vision_learner
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
    for several in (column, tuple(files), L(files), iter(files)):
        pd.testing.assert_frame_equal(predictor.predict_df(several), want)
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
