"Tests of evaluate/coverage: each column by a loop over the sets of each row, also of labels and groups"

import numpy as np
import pytest

from fastai_condmtl.all import *
from fastai_condmtl.evaluate.coverage import JudgedSets, set_scores
from scaled_logits import learner, quiet, table

pytest.importorskip('mapie')


def test_without_sets_the_table_is_as_before():
    assert 'coverage' not in quiet(learner(), 'evaluate')


def test_answers_and_groups_of_rows_are_counted_one_by_one():
    learn, new = learner(), table(seed=3)
    quiet(learn, 'conformal', 0.8)
    new['part'] = np.arange(len(new)) % 2
    sets = quiet(learn, 'predict_sets', new).a
    labels = new.a.to_numpy(dtype=bool)
    res = quiet(learn, 'evaluate', new, metrics=None, by_label=True)
    for answer in (False, True):
        row = res[(res.task_path == 'a') & (res.label == ('yes' if answer else 'no'))].iloc[0]
        rows = labels == answer
        assert row.coverage == pytest.approx(np.mean([answer in own for own in sets[rows]]))
        assert row.set_size == pytest.approx(np.mean([len(own) for own in sets[rows]]))
        assert row.decided == pytest.approx(np.mean([len(own) == 1 for own in sets[rows]]))
    by = quiet(learn, 'evaluate', new, metrics=None, by='part')
    for part in (0, 1):
        row = by[(by.task_path == 'a') & (by.part == part)].iloc[0]
        rows = new.part == part
        assert row.coverage == pytest.approx(np.mean([label in own for label, own in zip(labels[rows], sets[rows])]))
        alone = np.array([len(own) == 1 for own in sets[rows]])
        decided = np.array([z > 0 for z in new.z0[rows]])
        assert row.decided_res == pytest.approx((decided == labels[rows])[alone].mean())


def test_a_task_of_several_labels_has_a_set_for_each():
    rng = np.random.default_rng(0)
    sets = JudgedSets(
        *(rng.random((40, 3)) < 0.6 for _ in range(3)), rng.random((40, 1)) < 0.5, rng.random((40, 3)) < 0.4
    )
    mask = rng.random((40, 3)) < 0.7
    whole = set_scores(sets, mask, lambda rows: rows.sum())
    assert whole['coverage'] == sets.covers[mask].mean() and whole['decided_res'] == (mask & sets.decided).sum()
    one = set_scores(sets, mask, lambda rows: rows.sum(), None, 1)
    assert one['coverage'] == sets.covers[mask[:, 1], 1].mean()
    assert one['cascade_coverage'] == sets.covers_decided[mask[:, 1] & sets.reached[:, 0], 1].mean()
    assert np.isnan(set_scores(sets, mask & False, lambda rows: 0.0)['coverage'])
