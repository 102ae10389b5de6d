"""What the benchmarks of tables rest on: the network by hand is ours in each shape, its loss is that of a loop, and
splits keep people together and shares as they are"""

import sys
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from torch.nn.functional import binary_cross_entropy_with_logits

sys.path.append(str(Path(__file__).resolve().parents[2] / 'benchmarks' / 'real'))
import common
from fastai_condmtl.tabular.all import BinaryBlock, Flow, UnboundedRegressionBlock, conditional_tabular_learner

pytestmark = [pytest.mark.filterwarnings('ignore')]


def flow_of_table():
    sick = BinaryBlock('sick')
    return Flow('f', sick, UnboundedRegressionBlock('age', loss='l1') | sick)


@pytest.fixture(scope='module')
def bench():
    "300 rows of 100 people, with blanks in a number"
    rng, n = np.random.default_rng(0), 300
    df = pd.DataFrame(
        dict(
            person=np.repeat(np.arange(100), 3),
            a=rng.normal(size=n),
            b=rng.normal(size=n),
            kind=rng.choice(['x', 'y', 'z'], n),
        )
    )
    df['sick'] = (df.a + rng.normal(size=n) > 0).astype(float)
    df['age'] = 40 + 5 * df.b
    df.loc[::7, 'b'] = np.nan
    tasks = dict(sick=common.Task('sick'), age=common.Task('age', 'number', lambda df: (df.sick == 1).to_numpy()))
    options = dict(groups='person', layers=(16, 8), epochs=2, bs=32)
    return common.Bench(df, flow_of_table, tasks, ['kind'], ['a', 'b'], **options)


def test_network_by_hand_has_the_shapes_of_ours(bench):
    "Where no number is blank; fastai gives a flag of blanks a third code, which no row has"
    bench = replace(bench, df=bench.df.fillna(dict(b=0.0)))
    parts = common.three_parts(bench, 0)
    dls = common.loaders(bench, parts)
    ours = conditional_tabular_learner(dls, list(bench.layers)).model
    hand = common.our_network(common.hand_table(bench, parts[0]), bench.layers, 2, parts[0])
    shapes = lambda net: [(name, tuple(value.shape)) for name, value in net.state_dict().items()]
    assert shapes(hand) == shapes(ours)
    assert [layer.p for layer in hand.modules() if isinstance(layer, torch.nn.Dropout)] == [
        layer.p for layer in ours.modules() if isinstance(layer, torch.nn.Dropout)
    ]
    assert torch.allclose(hand.numbers.left, ours.numbers.left, atol=0.02)  # edges of the same standardised numbers


@pytest.mark.parametrize('members', [None, 3])
def test_hand_loss_is_that_of_a_loop(members):
    rows = torch.randn(6, *([members] if members else []), 2)
    labels = torch.tensor([[1.0, 0.5], [0.0, np.nan], [1.0, -1.0], [np.nan, 2.0], [1.0, np.nan], [0.0, 0.0]])
    by_loop = []
    for j, loss in enumerate((binary_cross_entropy_with_logits, lambda a, b: (a - b).abs())):
        known = [(row, label) for row, label in zip(rows[..., j], labels[:, j]) if not label.isnan()]
        by_loop.append(np.mean([float(loss(said, label)) for row, label in known for said in row.reshape(-1)]))
    assert abs(float(common.hand_loss(rows, labels, ('binary', 'number'))) - sum(by_loop)) < 1e-5


def test_splits_keep_people_together(bench):
    parts = common.three_parts(bench, 5)
    people = [set(bench.df.person.iloc[part]) for part in parts]
    assert sorted(np.concatenate(parts)) == list(range(300)) and list(map(len, people)) == [64, 16, 20]
    assert len(set.union(*people)) == 100


@pytest.mark.parametrize('network', [common.our_network, common.FastaiNetwork])
def test_by_hand_learns_what_is_easy(bench, network):
    parts = common.three_parts(bench, 5)
    found = common.by_hand(bench, parts, 5, 3.0, network=network)
    scores, base = (common.scores_of(bench, parts, own) for own in (found, common.trivial(bench, parts)))
    assert list(found) == ['sick', 'age'] and scores['sick', 'AUC'] > base['sick', 'AUC'] + 0.1
    assert scores['age', 'MAE'] < base['age', 'MAE']
