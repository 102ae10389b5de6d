"Tests of evaluate/calibrate"

import re

import numpy as np
import pandas as pd
import pytest
import torch
from fastai_condmtl.all import BinaryBlock, Flow, FlowError, SingleLabelBlock
from fastai_condmtl.evaluate.calibrate import _sure, _temperature, bins_of, calibration_error, reliability
from fastai_condmtl.loss.conditional import ConditionalLoss
from sklearn.calibration import calibration_curve
from scaled_logits import learner, quiet


def test_temperatures_of_the_learners_own_loss_are_scored():
    learn = learner(s=4.0)
    learn.loss_func = ConditionalLoss(learn.dls.flow)
    quiet(learn, 'search_thresholds')
    before = quiet(learn, 'evaluate', metrics=('recall', 'f1'))
    assert quiet(learn, 'calibrate').temperature.max() > 2
    pd.testing.assert_frame_equal(
        pd.DataFrame(quiet(learn, 'evaluate', metrics=('recall', 'f1'))), pd.DataFrame(before), rtol=1e-5
    )


def test_temperatures_do_not_outlive_their_weights():
    learn = learner(s=6.0)
    quiet(learn, 'search_thresholds')
    raw = {p: t.clone() for p, t in learn.loss_func.thresholds.items()}
    quiet(learn, 'calibrate')
    assert learn.loss_func.temperatures
    with pytest.warns(UserWarning, match='calibrate'):
        quiet(learn, 'fit', 1)
    assert not learn.loss_func.temperatures
    for p, t in raw.items():
        torch.testing.assert_close(learn.loss_func.thresholds[p], t, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    'method, given, said',
    [
        ('evaluate', dict(n_boot=-3), 'n_boot=-3 must be how many draws'),
        ('evaluate', dict(n_boot=True), 'n_boot=True must be'),
        ('search_thresholds', dict(n_boot=2.5), 'n_boot=2.5 must be'),
        ('evaluate', dict(n_boot=39), 'n_boot=39 draws are too few for the ends of a 95% interval'),
        ('search_thresholds', dict(n_boot=1), 'write n_boot=200 (0: no interval)'),
        ('plot_threshold', dict(task='a', n_boot=5), 'n_boot=5 draws are too few'),
        ('search_thresholds', dict(min_support='a'), "min_support='a' must be how many rows"),
        ('plot_threshold', dict(task='a', n_boot=-1), 'n_boot=-1 must be'),
        ('calibrate', dict(folds=1), 'folds=1 must be a whole number of at least 2: a temperature is judged by rows'),
        ('calibrate', dict(folds=2.5), 'folds=2.5 must be'),
        ('calibrate', dict(min_support=-1), 'min_support=-1 must be how many cells'),
        ('plot_reliability', dict(task='a', bins=0), 'bins=0 must be a positive number'),
    ],
)
def test_numbers_that_cannot_be_are_told(method, given, said):
    learn = learner(s=4.0)
    before = {path: t.clone() for path, t in learn.loss_func.thresholds.items()}
    with pytest.raises(FlowError, match=re.escape(said)):
        quiet(learn, method, **given)
    assert all((learn.loss_func.thresholds[path] == t).all() for path, t in before.items())


@pytest.mark.parametrize('n, rows_are', [(0, '0 rows are'), (1, '1 row is')])
def test_a_cell_alone_keeps_its_temperature(n, rows_are):
    "No other row could choose it"
    block = Flow('f', BinaryBlock('a')).bind(pd.DataFrame(dict(a=[0, 1]))).tasks['a']
    cells = torch.full((n,), 0.3, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
    assert _temperature(block, *cells, 0, 5, 2.0) == (2.0, f'kept 2: {rows_are} too few')


def test_the_error_and_the_curve_have_the_same_bins():
    "Of confidences on the borders of bins, too, where scikit-learn's curve puts them"
    rng = np.random.default_rng(0)
    for bins in (3, 5, 10, 15):
        conf = rng.integers(0, bins + 1, 200) / bins
        hit = rng.random(200) < conf
        share, mean = reliability(conf, hit, bins)
        np.testing.assert_allclose((share, mean), calibration_curve(hit, conf, n_bins=bins))
        n_rows = np.unique(bins_of(conf, bins), return_counts=True)[1]
        assert calibration_error(conf, hit, bins) == pytest.approx((n_rows * np.abs(share - mean)).sum() / 200)


def test_sub_classes_are_as_sure_as_they_are_within_the_true_class():
    "Truth that is drawn by the model's own P(sub-class | class) is calibrated; a class with one sub-class says nothing"
    rng, n = np.random.default_rng(0), 4000
    of = dict(u1='u', u2='u', u3='u', v1='v', w1='w', w2='w')
    classes, subs = list('uvw'), list(of)
    logits = 1.5 * rng.normal(size=(n, 6))
    parent = rng.choice(classes, n)
    confidence, drawn, best = np.empty(n), [], []
    for i in range(n):
        own = [k for k, sub in enumerate(subs) if of[sub] == parent[i]]
        p = np.exp(logits[i, own]) / np.exp(logits[i, own]).sum()
        drawn.append(rng.choice(own, p=p))
        confidence[i] = p.max()
        best.append(own[p.argmax()])
    drawn, best = np.array(drawn), np.array(best)
    kind = SingleLabelBlock('kind', vocab=classes)
    df = pd.DataFrame(dict(kind=parent, sub=np.array(subs)[drawn]))
    block = Flow('f', kind, SingleLabelBlock('sub', vocab=subs, within=(kind, of))).bind(df).tasks['sub']
    found, hit = _sure(block, torch.tensor(logits), torch.tensor(drawn, dtype=torch.float64))
    np.testing.assert_allclose(found, confidence, atol=1e-12)
    assert (hit == (best == drawn)).all()
    assert calibration_error(found, hit) < 0.03
    too_sure, hit = _sure(block, torch.tensor(3 * logits), torch.tensor(drawn, dtype=torch.float64))
    assert calibration_error(too_sure, hit) > 0.05
