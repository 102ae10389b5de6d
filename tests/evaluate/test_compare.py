"Tests of evaluate/compare"

import numpy as np
import pytest
from fastai.vision.all import DataBlock, IndexSplitter, Learner, TransformBlock
from scaled_logits import HALF, Scale, Z, learner, table
from sklearn.metrics import accuracy_score, roc_auc_score
from torch import nn
from fastai_condmtl.all import BinaryBlock, Flow, FlowError, compare, equip
from fastai_condmtl.evaluate.compare import COLUMNS


def pair(df=None, s=(1.0, -1.0)):
    "Two learners of the same rows, whose logits are those of the table times a number"
    df = table() if df is None else df
    return [learner(df=df, s=one) for one in s]


def logits_and_labels(df, task):
    rows = df[300:] if task == 'a' else df[300:][df.a[300:].astype(bool)]
    return rows[dict(a='z0', b='z1')[task]].astype(float).to_numpy(), rows[task].astype(bool).to_numpy()


@pytest.mark.parametrize('metric, score', [('accuracy', accuracy_score), ('auc', roc_auc_score)])
def test_scores_gains_and_intervals_are_those_by_hand(metric, score):
    df = table()
    learn_a, learn_b = pair(df, (1.0, -0.5))
    found = compare(learn_a, learn_b, metrics=metric, n_boot=200).set_index('task_path')
    assert list(found.columns) == COLUMNS[1:]
    for path, row in found.iterrows():
        logits, labels = logits_and_labels(df, path.rpartition('.')[2])
        guess = lambda sign, at: sign * logits[at] if metric == 'auc' else sign * logits[at] > 0
        everything = np.arange(len(labels))
        assert row.a == pytest.approx(score(labels, guess(1, everything)))
        assert row.b == pytest.approx(score(labels, guess(-1, everything)))
        assert row.gain == pytest.approx(row.b - row.a) and row.num_samples == len(labels)
        draws = np.random.default_rng(0).integers(0, len(labels), (200, len(labels)))
        gains = [score(labels[at], guess(-1, at)) - score(labels[at], guess(1, at)) for at in draws]
        assert (row.ci_low, row.ci_high) == pytest.approx(tuple(np.quantile(gains, [0.025, 0.975])))
        assert row.better == 'a'


def test_rows_of_a_group_are_drawn_together():
    df = table()
    wide = pd_repeat(df, 10)
    alone = compare(*pair(wide, (1.0, 0.0)), dl=wide, n_boot=200)
    together = compare(*pair(wide, (1.0, 0.0)), dl=wide, n_boot=200, group_col='who')
    width = lambda found: (found.ci_high - found.ci_low).iloc[0]
    assert np.allclose(alone.gain, together.gain)
    assert 2 < width(together) / width(alone) < 5  # the root of ten copies is 3.2


def pd_repeat(df, n):
    "Each of the first rows n times, with its number as `who`"
    few = df.iloc[: len(df) // n]
    res = few.loc[few.index.repeat(n)].reset_index(drop=True)
    res['who'] = np.arange(len(res)) // n
    return res


def test_other_rows_are_told():
    learn_a, learn_b = learner(df=table(0)), learner(df=table(1))
    with pytest.raises(
        FlowError, match=r"task 'a': .* other labels, first in row \d+: .*compare\(learn_a, learn_b, df\)"
    ):
        compare(learn_a, learn_b)
    assert len(compare(learn_a, learn_b, table(2), n_boot=40)) == 2  # one table for both


def test_nothing_in_common_is_told():
    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Scale()

        def forward(self, x):
            return self.inner(x)[:, :1]

    df = table().rename(columns=dict(a='c'))
    block = DataBlock(blocks=(TransformBlock, Flow('g', BinaryBlock('c'))), get_x=Z(), splitter=IndexSplitter(HALF))
    other = Learner(block.dataloaders(df, bs=50, num_workers=0), One())
    with pytest.raises(FlowError, match='share no task: one has a, b, the other c'):
        compare(learner(), equip(other))


@pytest.mark.parametrize('n_boot', [0, True, 2.5, 39])
def test_a_wrong_number_of_draws_is_told(n_boot):
    with pytest.raises(FlowError, match='n_boot='):
        compare(*pair(), n_boot=n_boot)
