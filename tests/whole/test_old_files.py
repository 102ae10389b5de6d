"""What version 0.1.0 wrote is read by this one: a flow as JSON, a safe file with its thresholds and temperatures, and
thresholds apart. `files_of_0_1_0` holds the files that its code wrote (all kinds under a condition, 24 rows, a network
of one convolution), and what it made of the table and of four pictures"""

import importlib, json, pickle
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import AdaptiveAvgPool, Flatten, Image, Learner, Resize
from pandas.testing import assert_frame_equal
from torch import nn
import fastai_condmtl
from fastai_condmtl.vision.all import *
from fastai_condmtl.deploy.safe import load_safe

# pickle.dumps(BoundedRegressionBlock('a'), protocol=4), before its loss was the absolute error
PICKLED = (
    b'\x80\x04\x95\x00\x01\x00\x00\x00\x00\x00\x00\x8c\x1ffastai_condmtl.tasks.regression\x94\x8c\x16BoundedRegressionBlock'
    b'\x94\x93\x94)\x81\x94}\x94(\x8c\nweight_col\x94N\x8c\x02na\x94N\x8c\tnormalise\x94N\x8c\x08features\x94N\x8c\x06hidden'
    b'\x94N\x8c\x0bdetach_uses\x94\x89\x8c\x04uses\x94)\x8c\x04name\x94\x8c\x01a\x94\x8c\x06weight\x94G?\xf0\x00\x00\x00\x00\x00'
    b'\x00\x8c\x03col\x94N\x8c\x05given\x94N\x8c\x06mirror\x94N\x8c\tloss_name\x94\x8c\x03mse\x94\x8c\x05draws\x94N'
    b'\x8c\x07y_range\x94N\x8c\x0bgiven_range\x94Nub.'
)
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


def test_numbers_without_a_loss(table):
    "They had squared errors: a flow, its part in a safe file and pickles of before still have them, by hand"
    bound = Flow.from_json((OLD / 'flow.json').read_text()).bind(table)
    safe = load_safe(OLD / 'model.safetensors', model=network(20)).flow
    logits, targets = torch.tensor([[0.3, -2.0, 1.1, 0.0]]), torch.tensor([[0.1, 0.9, -0.4, 0.5]])
    wanted = dict(r=(logits.sigmoid() - targets) ** 2, u=(logits - targets).abs())  # which is named in the file
    wanted |= dict.fromkeys(['pts', 'box'], (2 * logits.sigmoid() - 1 - targets) ** 2)
    for flow in (bound, safe):
        for name, losses in wanted.items():
            torch.testing.assert_close(flow.tasks[f'g.{name}'].loss(logits, targets).reshape(1, 4), losses)
    block = pickle.loads(PICKLED)
    assert block.loss_name == 'mse' and '"loss"' not in Flow('f', block).to_json()


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


@pytest.mark.parametrize(
    'module, name',
    [('deploy.scorer', 'Scorer'), ('deploy.scorer', 'ModelFile')]
    + [('data.cache', 'PictureCache'), ('data.cache', 'OpenCached')],
)
def test_classes_of_pickles_stay_where_they_are(module, name):
    "A scorer and an exported learner of cached pictures name their classes so"
    cls = pickle.loads(f'cfastai_condmtl.{module}\n{name}\n.'.encode())
    assert (cls.__module__, cls.__name__) == (f'fastai_condmtl.{module}', name)
