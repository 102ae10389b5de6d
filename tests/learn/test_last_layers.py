"""The bias that a start adds to fastai's stock heads, which have none: in a graph and in an exported file"""

import subprocess, sys, textwrap
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.text.all import AWD_LSTM, awd_lstm_clas_config, text_classifier_learner
from fastai.vision.all import DataBlock, ImageBlock, IndexSplitter, PILImage, nn, vision_learner
from fastai_condmtl.learn.last_layers import last_layers
from fastai_condmtl.text.all import *
from fastai_condmtl.vision.all import *

pytestmark = pytest.mark.filterwarnings('ignore')
ROOT, N = Path(__file__).resolve().parents[2], 40


def table():
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(rare=rng.random(N) < 0.15, picture=range(N), number=rng.gamma(2.0, 3.0, N)))
    df['kind'] = rng.choice(list('xyz'), N, p=[0.7, 0.2, 0.1])
    df['text'] = [' '.join(rng.choice(['good', 'bad', 'food'], 6)) for _ in range(N)]
    return df


def flow():
    rare = BinaryBlock('rare')
    return Flow('f', rare, SingleLabelBlock('kind') | ~rare, UnboundedRegressionBlock('number'))


def picture(row):
    return PILImage.create(np.full((32, 32, 3), 6 * int(row['picture']), dtype=np.uint8))


def arch(pretrained=False, **kwargs):
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
    return nn.Sequential(*trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


PLAIN = dict(pretrained=False, normalize=False, cut=-3)
SMALL_AWD = awd_lstm_clas_config | dict(emb_sz=24, n_hid=48, n_layers=1)
SPLIT = IndexSplitter(range(8))


def pictures(folder):
    block = DataBlock(blocks=(ImageBlock, flow()), get_x=picture, splitter=SPLIT)
    return block.dataloaders(table(), bs=8, num_workers=0, path=folder)


def ours(folder):
    return conditional_vision_learner(pictures(folder), arch, **PLAIN)


def stock(folder):
    return equip(vision_learner(pictures(folder), arch, **PLAIN)).start_at_trivial()


def of_texts(folder):
    dls = ConditionalTextDataLoaders.from_df(
        table(), flow(), splitter=SPLIT, min_freq=1, bs=8, num_workers=0, path=folder
    )
    learn = text_classifier_learner(dls, AWD_LSTM, pretrained=False, config=SMALL_AWD)
    return equip(learn).start_at_trivial()


LEARNERS = dict(ours=ours, stock=stock, texts=of_texts)


def trained(name, folder):
    learn = LEARNERS[name](folder)
    layer = last_layers(learn.model, learn.dls.flow)[0].module
    begun = layer.bias.detach().clone()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
    assert not torch.equal(layer.bias, begun)
    return learn, layer.bias.detach().cpu()


@pytest.mark.parametrize('name', LEARNERS)
def test_the_bias_is_exported_and_read_in_a_new_process(name, tmp_path):
    learn, bias = trained(name, tmp_path)
    learn.export('learner.pkl')
    rows = table()[['text', 'picture']][:6]
    rows.to_pickle(tmp_path / 'rows.pkl')
    torch.save(bias, tmp_path / 'bias.pth')
    with learn.no_bar():
        torch.save(learn.get_preds(dl=learn.dls.test_dl(rows))[0].as_subclass(torch.Tensor), tmp_path / 'acts.pth')
    code = """
        import sys, pandas as pd, torch
        from fastai.learner import load_learner
        folder = sys.argv[1]
        learn = load_learner(folder + '/learner.pkl')
        rows = pd.read_pickle(folder + '/rows.pkl')
        with learn.no_bar():
            acts = learn.get_preds(dl=learn.dls.test_dl(rows))[0]
        wanted = torch.load(folder + '/acts.pth')
        torch.testing.assert_close(acts.as_subclass(torch.Tensor), wanted, atol=1e-5, rtol=1e-5)
        bias = torch.load(folder + '/bias.pth')
        assert any(p.shape == bias.shape and torch.equal(p, bias) for p in learn.model.parameters())
    """
    subprocess.run([sys.executable, '-c', textwrap.dedent(code), str(tmp_path)], check=True, cwd=ROOT)


@pytest.mark.parametrize('name', ['ours', 'stock'])
def test_the_bias_is_in_a_graph(name, tmp_path):
    pytest.importorskip('onnx', reason='the extra onnx is not installed')
    ort = pytest.importorskip('onnxruntime', reason='the extra onnx is not installed')
    learn, bias = trained(name, tmp_path)
    session = ort.InferenceSession(learn.to_onnx(tmp_path / 'a.onnx'))
    images = np.stack([np.asarray(picture(dict(picture=i))).transpose(2, 0, 1) for i in range(5)])
    wanted = learn.get_preds(dl=learn.dls.test_dl(table()[:5]))[0]
    found = session.run(None, {session.get_inputs()[0].name: images})[1]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    # without it the graph would say something else
    with torch.no_grad():
        last_layers(learn.model, learn.dls.flow)[0].module.bias.zero_()
    without = learn.get_preds(dl=learn.dls.test_dl(table()[:5]))[0]
    assert (without - wanted).abs().max() > 0.05
