"""What each application leaves a training with: JSON of the flow, `export`, a safe file, a graph. Each says what the
learner says, on the same rows"""

import json, subprocess, sys, textwrap, warnings
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.tabular.all import Categorify, Normalize
from fastai.text.all import AWD_LSTM, awd_lstm_clas_config
from fastai.vision.all import DataBlock, ImageBlock, IndexSplitter, PILImage, load_learner, nn, resnet18
from fastai_condmtl.tabular.all import *
from fastai_condmtl.text.all import *
from fastai_condmtl.vision.all import *
from fastai_condmtl.core.bound import BoundFlow

pytestmark = [pytest.mark.filterwarnings('ignore::UserWarning'), pytest.mark.filterwarnings('ignore::FutureWarning')]
ROOT = Path(__file__).resolve().parents[2]
N = 40


def table():
    rng = np.random.default_rng(0)
    df = pd.DataFrame(
        dict(a=rng.random(N) < 0.4, picture=range(N), x0=rng.normal(size=N), colour=rng.choice(list('rg'), N))
    )
    df['b'] = rng.choice(list('xyz'), N)
    df['n'] = rng.gamma(2.0, 3.0, N)
    df['text'] = [' '.join(rng.choice(['good', 'bad', 'food', 'slow', 'ünï'], rng.integers(3, 9))) for _ in range(N)]
    return df


def flow():
    a = BinaryBlock('a')
    return Flow('f', a, SingleLabelBlock('b', features='own') | a, UnboundedRegressionBlock('n', hidden=4))


def plain_flow():
    a = BinaryBlock('a')
    return Flow('f', a, SingleLabelBlock('b') | a, UnboundedRegressionBlock('n'))


def picture(row):
    return PILImage.create(np.full((64, 64, 3), 5 * int(row['picture']), dtype=np.uint8))


def small_arch(pretrained=False, **kwargs):
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
    return nn.Sequential(*trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


SPLIT, KW = IndexSplitter(range(8)), dict(bs=8, num_workers=0)
SMALL_AWD = awd_lstm_clas_config | dict(emb_sz=24, n_hid=48, n_layers=1)


def vision(df, folder):
    dls = DataBlock(blocks=(ImageBlock, flow()), get_x=picture, splitter=SPLIT).dataloaders(df, **KW)
    return conditional_vision_learner(dls, resnet18, pretrained=False, branches=dict(own=8), path=folder)


def tabular(df, folder):
    dls = ConditionalTabularDataLoaders.from_df(
        df, plain_flow(), cat_names=['colour'], cont_names=['x0'], procs=[Categorify, Normalize], splitter=SPLIT, **KW
    )
    return conditional_tabular_learner(dls, path=folder)


def picture_and_row(df, folder):
    blocks = (ImageBlock, TabularRowBlock(['colour'], ['x0']), plain_flow())
    block = DataBlock(blocks=blocks, n_inp=2, getters=[picture, same, same], splitter=SPLIT)
    return conditional_image_tabular_learner(
        block.dataloaders(df, **KW), small_arch, n_image=4, pretrained=False, normalize=False, cut=-3, path=folder
    )


def same(row):
    return row


def words(df, folder):
    dls = ConditionalTextDataLoaders.from_df(df, plain_flow(), splitter=SPLIT, min_freq=1, seq_len=16, **KW)
    return conditional_text_learner(dls, AWD_LSTM, pretrained=False, config=SMALL_AWD, path=folder)


def masked_words(df, folder):
    f = Flow('f', *plain_flow().tasks, MaskedLMBlock('words', n_masks=2))
    dls = ConditionalTextDataLoaders.from_df(df, f, splitter=SPLIT, min_freq=1, seq_len=16, **KW)
    return conditional_lm_learner(dls, d_model=16, n_layers=1, n_heads=2, path=folder)


def transformer(df, folder):
    pytest.importorskip('transformers', reason='the extra transformers is not installed')
    from fastai_condmtl.datasets.tiny_encoder import save_tiny_encoder

    encoder = save_tiny_encoder(folder / 'encoder', df.text)
    dls = ConditionalTransformerDataLoaders.from_df(df, flow(), encoder, splitter=SPLIT, **KW)
    return conditional_transformer_learner(dls, branches=dict(own=8), path=folder)


APPLICATIONS = dict(
    vision=vision,
    tabular=tabular,
    picture_and_row=picture_and_row,
    words=words,
    masked_words=masked_words,
    transformer=transformer,
)
NAMED = ('vision', 'transformer')  # a safe file says all that it takes to predict


@pytest.fixture(scope='module', params=APPLICATIONS)
def app(request, tmp_path_factory):
    "Name, table, folder and a learner that has trained"
    folder, df = tmp_path_factory.mktemp(request.param), table()
    learn = APPLICATIONS[request.param](df, folder)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
    learn.model.cpu().eval()
    return request.param, df, folder, learn


def logits_of(model, learn):
    x = learn.dls.valid.one_batch()[: learn.dls.n_inp]
    with torch.no_grad():
        out = model.eval()(*[part.as_subclass(torch.Tensor).cpu() for part in x])
    return out[0] if isinstance(out, tuple) else out


def test_flow_goes_through_json(app):
    bound = app[3].dls.flow
    again = BoundFlow.from_dict(json.loads(json.dumps(bound.to_dict())))
    assert Flow.from_json(bound.flow.to_json()).to_json() == bound.flow.to_json() == again.flow.to_json()
    encoded = bound.encode(app[1]) if 'words' not in bound.tasks else None
    assert encoded is None or torch.equal(again.encode(app[1]), encoded)


def test_export_says_the_same(app):
    name, df, folder, learn = app
    learn.export(folder / 'learner.pkl')
    again, rows = load_learner(folder / 'learner.pkl'), df.drop(columns=['a', 'b', 'n'])[:5]
    with learn.no_bar(), again.no_bar():
        pd.testing.assert_frame_equal(again.predict_df(rows), learn.predict_df(rows), atol=1e-5)
        assert str(again.predict(rows.iloc[0])[0]) == str(learn.predict(rows.iloc[0])[0])


def test_a_safe_file_holds_network_flow_and_decisions(app):
    name, df, folder, learn = app
    with warnings.catch_warnings():
        warnings.simplefilter('error' if name in NAMED else 'ignore', FlowWarning)
        file = learn.save_safe(folder / 'a.safetensors')
    read = load_safe(file) if name in NAMED else load_safe(file, APPLICATIONS[name](df, folder).model.cpu())
    assert read.flow.to_dict() == json.loads(json.dumps(learn.dls.flow.to_dict()))
    assert torch.allclose(logits_of(read.model, learn), logits_of(learn.model, learn), atol=1e-6)
    assert repr(read.loss.thresholds) == repr(learn.loss_func.cpu().thresholds)


def test_a_graph_says_the_same(app):
    name, df, folder, learn = app
    if name == 'words':
        pytest.skip('the weights that AWD-LSTM drops are no leaves, so that no copy of it becomes a graph')
    x = tuple(part.as_subclass(torch.Tensor).cpu() for part in learn.dls.valid.one_batch()[: learn.dls.n_inp])
    if name in ('vision', 'picture_and_row'):
        pixels = torch.Generator().manual_seed(0)
        x = (torch.randint(0, 256, x[0].shape, dtype=torch.uint8, generator=pixels), *x[1:])
    with torch.no_grad():
        wanted = learn.deployed()(*x)
    found = learn.to_exported(folder / 'a.pt2').module()(*x)
    for ours, theirs in zip(found, wanted):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    pytest.importorskip('onnx', reason='the extra onnx is not installed')
    ort = pytest.importorskip('onnxruntime', reason='the extra onnx is not installed')
    session = ort.InferenceSession(learn.to_onnx(folder / 'a.onnx'))
    found = session.run(None, {i.name: part.numpy() for i, part in zip(session.get_inputs(), x)})
    for ours, theirs in zip(found, wanted):
        np.testing.assert_allclose(ours, theirs, atol=1e-3, rtol=1e-3)


def test_texts_are_predicted_from_a_safe_file_in_a_process_without_folder_and_network(tmp_path):
    df = table()
    learn = transformer(df, tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
    learn.loss_func.thresholds['a'] = torch.tensor([0.37])
    learn.save_safe(tmp_path / 'texts.safetensors')
    for file in (tmp_path / 'encoder').iterdir():
        file.unlink()
    texts = df[['text']][:9].set_axis(list('ihgfedcba'))
    with learn.no_bar():
        learn.predict_df(texts).to_pickle(tmp_path / 'wanted.pkl')
        wanted = str(learn.predict(texts.text.iloc[0])[0])
    texts.to_pickle(tmp_path / 'rows.pkl')
    code = '''
        import sys, pandas as pd
        from fastai_condmtl.text.all import *
        folder = sys.argv[1]
        texts = pd.read_pickle(folder + '/rows.pkl')
        predictor = load_safe(folder + '/texts.safetensors')
        wanted = pd.read_pickle(folder + '/wanted.pkl')
        pd.testing.assert_frame_equal(predictor.predict_df(texts, bs=4), wanted, atol=1e-5)
        in_list = predictor.predict_df(texts.text.tolist(), bs=4)
        pd.testing.assert_frame_equal(in_list, wanted.reset_index(drop=True), atol=1e-5)
        assert str(predictor.predict(texts.text.iloc[0])[0]) == sys.argv[2]
        assert str(predictor.predict(texts.iloc[0])[0]) == sys.argv[2]
        assert 'fastai.vision.all' not in sys.modules
    '''
    command = [sys.executable, '-c', textwrap.dedent(code), str(tmp_path), wanted]
    subprocess.run(command, check=True, cwd=ROOT, env=offline())


def offline():
    import os

    return os.environ | dict(HF_HUB_OFFLINE='1', PYTHONPATH=str(ROOT))
