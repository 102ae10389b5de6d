"""What version 0.1.0 wrote is read by this one: a flow as JSON, a safe file with its thresholds and temperatures, and
thresholds apart. `files_of_0_1_0` holds the files that its code wrote (all kinds under a condition, 24 rows, a network
of one convolution), and what it made of the table and of four pictures"""

import importlib, json, pickle
from pathlib import Path
import numpy as np, pandas as pd, pytest
from fastai.vision.all import AdaptiveAvgPool, Flatten, Image, Learner, Resize
from pandas.testing import assert_frame_equal
from torch import nn
import fastai_condmtl
from fastai_condmtl.vision.all import *
from fastai_condmtl.deploy.safe import load_safe

OLD = Path(__file__).parents[1] / 'helpers' / 'files_of_0_1_0'


@pytest.fixture(scope='module')
def expected():
    return json.loads((OLD / 'expected.json').read_text())


@pytest.fixture(scope='module')
def table():
    return pd.read_csv(OLD / 'table.csv')


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp('pictures')
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 255, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f'{i}.png')
    return folder


def network(n_out=17):
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), AdaptiveAvgPool(), Flatten(), nn.Linear(4, n_out))


def test_a_flow(table, expected):
    "The flow is the same, written again it is the same text, and its targets are those of before"
    text = (OLD / 'flow.json').read_text()
    flow = Flow.from_json(text)
    assert flow.to_json() == text
    assert np.array_equal(flow.bind(table).encode(table).double(), expected['targets'])


def test_a_safe_file(table, pictures, expected):
    "Activations, decisions, thresholds and temperatures are those of before, and the bound flow encodes as before"
    predictor = load_safe(OLD / 'model.safetensors', model=network(len(expected['activations'][0])))
    files = [pictures / f'{i}.png' for i in range(4)]
    assert np.allclose(predictor.get_preds(files)[0], expected['activations'], atol=1e-6)
    was = expected['table']
    now = json.loads(predictor.predict_df(files).to_json(orient='split'))
    assert_frame_equal(pd.DataFrame(**now), pd.DataFrame(**was), atol=1e-5)
    assert [row[0] for row in was['data']] == [False, True, True, False]  # its threshold and temperature decide so
    assert np.array_equal(predictor.flow.encode(table).double(), expected['targets_of_learner'])


def test_thresholds(table, pictures):
    "`learn.load_thresholds` puts in force what the file holds"
    flow = Flow.from_json((OLD / 'flow.json').read_text())
    resize = Resize(16, method='squish')
    dls = ConditionalDataLoaders.from_df(table, flow, path=pictures, bs=8, item_tfms=resize, num_workers=0)
    learn = Learner(dls, network(dls.c))
    learn.load_thresholds(OLD / 'thresholds.json')
    written = json.loads((OLD / 'thresholds.json').read_text())
    assert float(learn.loss_func.thresholds['a']) == pytest.approx(written['thresholds']['a'])
    assert written['thresholds']['a'] != 0.5
    assert dict(learn.loss_func.temperatures) == written['temperatures'] == {'a': 1.5}


@pytest.mark.parametrize('name', ['flow', 'bound', 'loss'])
def test_pickles_say_what_to_do(name):
    "Its modules stood elsewhere: the error says so, and what to write there"
    with pytest.raises(ModuleNotFoundError, match='module of version 0.1.0.*learn.save_safe, flow.to_json'):
        pickle.loads((OLD / f'{name}.pkl').read_bytes())


def test_only_modules_of_before_are_told_so():
    with pytest.raises(ModuleNotFoundError, match="^No module named 'fastai_condmtl.nothing'$"):
        importlib.import_module('fastai_condmtl.nothing')
    moved = [m for m in fastai_condmtl._MOVED if (Path(fastai_condmtl.__file__).parent / f'{m}.py').exists()]
    assert not moved  # none hides a module of today
