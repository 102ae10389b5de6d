"Rows that are predicted and rows that are not: each good one, whatever stands beside it"

import numpy as np, pandas as pd, pytest, torch
from fastai_condmtl.all import *
from fastai_condmtl.deploy.batches import Batch
from fastai_condmtl.deploy.predicted import Predicted, by_halves, predict_batch, told_in_row


@pytest.fixture(scope='module')
def flow():
    return Flow('f', BinaryBlock('a')).bind(pd.DataFrame(dict(a=[0, 1])))


class Numbers:
    "Predicts numbers as themselves, and fails as a whole if one of them is bad"

    def __init__(self, flow, bad=()):
        self.flow, self.bad = flow, set(bad)

    def columns(self):
        return None

    def takes_cells(self):
        return True

    def __call__(self, items):
        if self.bad & set(items):
            raise ValueError('bad')
        acts = torch.tensor(items, dtype=torch.float)[:, None]
        return Predicted(acts, torch.zeros(len(items), 2, 1), list(range(len(items))), {})


@pytest.mark.parametrize('seed', range(20))
def test_halves_leave_out_the_bad_ones_only(flow, seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 30))
    items = rng.permutation(100)[:n].tolist()
    bad = {item for item in items if rng.random() < 0.2}
    found = by_halves(Numbers(flow, bad), items, flow)
    good = [i for i, item in enumerate(items) if item not in bad]
    assert found.rows == good and found.acts[:, 0].tolist() == [items[i] for i in good]
    assert found.errors == {i: 'ValueError: bad' for i in range(n) if i not in good}


def test_a_full_memory_is_no_bad_row(flow):
    def full(items):
        raise MemoryError

    with pytest.raises(MemoryError):
        by_halves(full, [1, 2], flow)


def test_cells_of_several_makes_keep_their_places(flow):
    "Numbers are items, and 9 is a bad one; blanks and lists that are no picture are told"
    cells = [4, None, 7, [['a']], 9, np.nan, 5]
    found = predict_batch(Numbers(flow, [9]), Batch(dict(x=cells)), ['x'])
    assert dict(zip(found.rows, found.acts[:, 0].tolist())) == {0: 4, 2: 7, 6: 5}
    assert sorted(found.errors) == [1, 3, 4, 5]
    assert 'is blank' in found.errors[1] and 'is blank' in found.errors[5]
    assert 'no picture' in found.errors[3] and found.errors[4] == 'ValueError: bad'


def test_a_table_of_one_row_has_no_number_of_its_row():
    assert told_in_row(FlowError("task 'a', row 0 (index 7), value 3: x, row 0, y")) == "task 'a', value 3: x, row 0, y"
