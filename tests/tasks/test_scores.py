"Tests of tasks/scores"

import sys
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn import metrics as skm
import fastai_condmtl.all  # noqa: F401  methods of flows and learners
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.datasets.synthetic import security_flow, security_scenes
from fastai_condmtl.learn.accumulate import Accumulator
from fastai_condmtl.tasks.all import BinaryBlock, CountBlock, MultiLabelBlock, SingleLabelBlock
from fastai_condmtl.tasks.scores import binary_score, class_score, regression_score


def test_predictions_that_are_not_numbers():
    assert np.isnan(binary_score('roc_auc', [np.nan, 0.5], [0, 1]))


def test_a_constant_truth_has_no_r2():
    assert all(np.isnan(regression_score('r2', np.full(n, 0.2), np.full(n, 0.1))) for n in (1, 3, 6, 10, 100))
    a, b = np.random.default_rng(0).normal(size=(2, 50))
    assert regression_score('r2', a, b) == pytest.approx(skm.r2_score(b, a))


RANKINGS = dict(roc_auc=skm.roc_auc_score, average_precision=skm.average_precision_score)
MACRO = dict(
    precision=lambda true, best: skm.precision_score(true, best, average='macro', zero_division=0),
    recall=lambda true, best: skm.recall_score(true, best, average='macro', zero_division=0),
    f1_score=lambda true, best: skm.f1_score(true, best, average='macro', zero_division=0),
)


@pytest.mark.parametrize('name', RANKINGS)
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rankings_are_scikit_learns(name, dtype, data):
    "Few distinct probabilities: most rows tie, also at 0 and at 1"
    n, n_values = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 9))
    prob = np.array(data.draw(st.lists(st.integers(0, n_values), min_size=n, max_size=n)), dtype=dtype) / n_values
    share = np.array(data.draw(st.lists(st.sampled_from([0, 0.3, 0.5, 0.7, 1]), min_size=n, max_size=n)))
    true, got = share > 0.5, binary_score(name, prob, share)
    if true.all() or not true.any():
        assert np.isnan(got)
        return
    assert got == pytest.approx(RANKINGS[name](true, prob), abs=1e-12)
    weights = np.random.default_rng(0).integers(0, 4, n)  # a row of weight 3 is three rows that tie
    if np.unique(true.repeat(weights)).size == 2:
        expected = RANKINGS[name](true, prob, sample_weight=weights)
        assert binary_score(name, prob.repeat(weights), true.repeat(weights)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize('name', RANKINGS)
def test_rankings_of_many_rows(name):
    "Scores of a network: single precision, nearly all distinct; and a predictor that says the same of all"
    rng = np.random.default_rng(1)
    prob, true = rng.random(30_000).astype(np.float32), rng.random(30_000) < 0.02
    assert binary_score(name, prob, true) == pytest.approx(RANKINGS[name](true, prob), abs=1e-12)
    always = np.ones(30_000, dtype=bool)
    assert binary_score(name, always, true) == pytest.approx(RANKINGS[name](true, always * 1.0), abs=1e-12)


@pytest.mark.parametrize('name', MACRO)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_macro_scores_are_scikit_learns(name, data):
    "Classes that never occur, classes that nobody decides, a single class"
    n, classes = data.draw(st.integers(1, 40)), st.integers(0, data.draw(st.integers(0, 7)))
    true, best = (np.array(data.draw(st.lists(classes, min_size=n, max_size=n))) for _ in range(2))
    assert class_score(name, best, best * 0.0, true) == pytest.approx(MACRO[name](true, best), abs=1e-12)


def mixed_table(rng, n=80):
    "Tasks of all kinds of scores, a third of the cells blank, one column with a single class"
    df = pd.DataFrame(
        dict(
            first=rng.integers(0, 2, n),
            yes=rng.integers(0, 2, n),
            one=np.ones(n),
            organ=rng.choice(list('abcd'), n),
            birds=rng.poisson(2, n),
        )
    ).astype(object)
    df = df.mask(rng.random(df.shape) < 0.3)
    df['tags'] = [list(rng.choice(list('xyz'), rng.integers(0, 3), replace=False)) for _ in range(n)]
    first = BinaryBlock('first')
    tags = MultiLabelBlock('tags', vocab=list('xyz'))
    rest = [BinaryBlock('yes'), BinaryBlock('one'), SingleLabelBlock('organ', vocab=list('abcd')), CountBlock('birds')]
    return Flow('f', first, tags | first, *[block | first for block in rest]), df


@pytest.mark.parametrize('seed', range(4))
def test_scores_of_random_tables_are_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    flow, df = mixed_table(rng)
    bound = flow.bind(df)
    labels, acc = bound.encode(df), Accumulator(bound)
    logits = torch.from_numpy(rng.normal(size=(len(df), bound.c)).round(1)).float()  # rounded: rows tie
    acc.parts.append(acc.pack(logits, labels))
    for path, block in bound.tasks.items():
        summary, true, mask, _ = acc.task(path)
        for name in block.metrics:
            got, kind = block.score(name, summary, true, mask), type(block)
            if name in RANKINGS:
                each = []
                for j, rows in enumerate(mask.T):
                    yes = true[rows, j] > 0.5
                    if 0 < yes.sum() < len(yes):
                        each.append(RANKINGS[name](yes, summary[rows, j, 0]))
                assert np.isnan(got) if not each else got == pytest.approx(np.mean(each), abs=1e-9)
            elif kind is SingleLabelBlock and name in MACRO:
                rows = mask[:, 0]
                assert got == pytest.approx(MACRO[name](true[rows, 0], summary[rows, 0, 0]), abs=1e-9)
            elif name == 'deviance':
                rows, unscale = mask[:, 0], lambda x: np.float64(x) * block.span
                counts, rates = unscale(true[rows, 0]).round(), unscale(summary[rows, 0, 0])
                assert got == pytest.approx(skm.mean_poisson_deviance(counts, rates), rel=1e-9)


def test_a_count_that_cannot_be_has_the_largest_deviance_that_is_finite():
    bound = Flow('f', CountBlock('birds')).bind(pd.DataFrame(dict(birds=[0, 1, 2])))
    block, rates = bound.find('birds'), np.zeros((3, 1, 1))
    got = block.score('deviance', rates, np.array([[0.0], [1], [2]]) / block.span, np.ones((3, 1), dtype=bool))
    assert got == pytest.approx(skm.mean_poisson_deviance([0, 1, 2], [1e-9] * 3))


def test_an_epoch_of_all_scores_calls_no_other_library():
    "Each call into scikit-learn costs its checks, some half a millisecond: 72 scores a validation would be felt"
    df = security_scenes(64, size=16)[1]
    bound = security_flow().bind(df)
    metrics = bound.metrics('all')
    acc = metrics[0].acc
    acc.parts.append(acc.pack(torch.randn(64, bound.c), bound.encode(df)))
    seen = []

    def watch(frame, event, arg):
        if event == 'call' and 'sklearn' in frame.f_code.co_filename:
            seen.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        values = [metric.value for metric in metrics]
        n_of_scores = len(seen)
        skm.f1_score([0, 1], [1, 1])
    finally:
        sys.setprofile(before)
    assert len(values) == 72 and np.isfinite(values).any()
    assert n_of_scores == 0 and seen  # the watch sees scikit-learn where it is called
