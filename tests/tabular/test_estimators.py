"""Tests of tabular/estimators: a learner of estimators against scikit-learn by hand, and all that a learner does"""

import copy
import pickle
import warnings

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from estimator_table import HALF, LINES, N, TREES, ByHand, flow, table
from fastai.learner import load_learner
from scaled_logits import quiet
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import Ridge
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from fastai_condmtl.all import *
from fastai_condmtl.tabular.all import fit_estimators
from fastai_condmtl.tabular.estimators import EstimatorNetwork

INPUTS = dict(cat_names=['colour'], cont_names=['x', 'z'], valid_idx=range(HALF, N))


def fitted(df=None, own=None, estimators=TREES, **kwargs):
    df, own = table() if df is None else df, flow() if own is None else own
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message=".*'votes'")
        return fit_estimators(own, df, estimators, **{**INPUTS, **kwargs})


@pytest.fixture(scope='module', params=['trees', 'lines'])
def learned(request):
    pair, df = dict(trees=TREES, lines=LINES)[request.param], table()
    learn = fitted(df, estimators=pair)
    return learn, ByHand(df, learn.dls), pair


def test_scores_are_those_of_the_estimators_by_hand(learned):
    learn, by_hand, pair = learned
    found = quiet(learn, 'evaluate', baselines=dict(alone=pair)).set_index(['task_path', 'metric_name'])
    same = found.drop(['stars', 'votes', 'part'])  # decided by the median class; by the trivial predictor; in its range
    assert len(same) > 40 and same.metric_res.notna().all()
    assert np.allclose(same.metric_res, same.alone, rtol=1e-4, atol=1e-5)
    said = by_hand.fitted(pair[1], 'part', float)
    inside = np.abs(said[0].clip(0, 64) - said[2]).mean()
    assert found.metric_res['part', 'mae'] == pytest.approx(inside, rel=1e-4)
    _, prob, true = by_hand.fitted(pair[0], 'stars', int)
    median = (prob[:, ::-1].cumsum(1)[:, ::-1][:, 1:] > 0.5).sum(1) - 2
    assert found.metric_res['stars', 'accuracy'] == accuracy_score(true, median)
    assert found.metric_res['stars', 'mae'] == pytest.approx(np.abs(true - median).mean())
    votes = found.loc['votes']
    assert np.allclose(votes.metric_res[['mae', 'log_loss']], votes.baseline[['mae', 'log_loss']], atol=1e-3)


def test_cells_are_those_of_the_estimators_where_a_task_is_reached(learned):
    learn, by_hand, (classifier, regressor) = learned
    cells = learn.predict_df(by_hand.df[HALF:])
    x, y, _, _ = by_hand.parts('gate', bool)
    gate = classifier.fit(x, y).predict(by_hand.new_x)
    assert (cells.gate.astype(bool) == gate).all() and gate.any() and not gate.all()
    for column, estimator, as_type in (
        ('kind', classifier, str),
        ('many', classifier, int),
        ('size', regressor, float),
    ):
        x, y, _, _ = by_hand.parts(column, as_type)
        said = estimator.fit(x, y).predict(by_hand.new_x)
        assert (cells[column].notna() == gate).all()
        if as_type is float:
            assert np.allclose(cells[column][gate].astype(float), said[gate], rtol=1e-4, atol=1e-4)
        else:
            assert (cells[column][gate].astype(as_type) == said[gate]).all()


def test_marginals_multiply_along_the_conditions(learned):
    learn, by_hand, (classifier, _) = learned
    marginals = quiet(learn, 'get_marginals', by_hand.df[HALF:])
    x, y, _, _ = by_hand.parts('gate', bool)
    gate = classifier.fit(x, y).predict_proba(by_hand.new_x)[:, 1]
    x, y, _, _ = by_hand.parts('kind', str)
    kind = classifier.fit(x, y).predict_proba(by_hand.new_x)
    assert np.allclose(marginals['kind', 'P(reached)'], gate, atol=1e-5)
    for j, name in enumerate(['big', 'mid', 'red']):
        assert np.allclose(marginals['kind', name], gate * kind[:, j], atol=1e-5)


def test_trees_predictions_and_validation_are_those_of_any_learner(learned):
    learn, by_hand, _ = learned
    few = by_hand.df[HALF : HALF + 3]
    tree = quiet(learn, 'explain', few)
    assert 'gate' in str(tree) and len(tree.children('')) == 3
    cells = learn.predict_df(few)
    for i in range(3):
        prediction, decoded, acts = learn.predict(few.iloc[i])
        assert bool(prediction['gate']) == bool(cells.gate.iloc[i]) and acts.shape == (learn.dls.flow.c,)
    values = quiet(learn, 'validate')
    headline = quiet(learn, 'evaluate', metrics=None).metric_res
    assert np.allclose(list(values)[1:], headline, equal_nan=True)
    assert np.isfinite(values[0])


def test_thresholds_and_temperatures_are_searched_as_for_a_network():
    learn = fitted()
    found = quiet(learn, 'search_thresholds', 'f1_score', gates=None)
    assert set(found.task_path) == {'gate', 'both'} and found.score.notna().all()
    learn.loss_func.thresholds['gate'] = torch.tensor([0.3])
    decided = learn.predict_df(table()[HALF:]).gate.astype(bool)
    acts = quiet(learn, 'get_preds')[0][:, learn.dls.flow.slices['gate'].acts][:, 0].numpy()
    assert (decided.to_numpy() == (acts > 0.3)).all() and ((acts > 0.3) != (acts > 0.5)).any()
    nll = quiet(learn, 'calibrate')
    assert len(nll) and learn.loss_func.decisions.temperature is not None


def test_files_keep_it(tmp_path, learned):
    learn, by_hand, _ = learned
    learn.path, new = tmp_path, by_hand.df[HALF:]
    quiet(learn, 'export', 'it.pkl')
    expected = learn.predict_df(new)
    loaded = load_learner(tmp_path / 'it.pkl')
    pd.testing.assert_frame_equal(loaded.predict_df(new), expected)
    pd.testing.assert_frame_equal(copy.deepcopy(learn).predict_df(new), expected)
    joblib.dump(learn.model.fitted, tmp_path / 'it.joblib')
    (tmp_path / 'flow.json').write_text(flow().to_json())
    again = EstimatorNetwork(learn.dls.flow, learn.model.trivial.detach().clone())
    again.fitted = joblib.load(tmp_path / 'it.joblib')
    cats, conts, _ = learn.dls.valid.one_batch()
    assert torch.equal(again(cats, conts), learn.model(cats, conts))
    assert repr(Flow.from_json((tmp_path / 'flow.json').read_text())) == repr(flow())
    assert pickle.loads(pickle.dumps(learn.model))(cats, conts).shape == (len(cats), learn.dls.flow.c)
    assert learn.model(cats[:0], conts[:0]).shape == (0, learn.dls.flow.c)


def test_weights_of_rows_count():
    df = table()
    learn = fitted(df, flow(weight_col='w'), metrics='rmse')
    by_hand = ByHand(df, learn.dls)
    x, y, _, _ = by_hand.parts('size', float)
    w = df.w.to_numpy()[:HALF][by_hand.counts('size')[:HALF]]
    said = TREES[1].fit(x, y, sample_weight=w).predict(by_hand.new_x)
    acts = quiet(learn, 'get_preds')[0][:, learn.dls.flow.slices['size'].acts][:, 0].numpy()
    assert np.allclose(learn.dls.flow.tasks['size'].unscale(acts), said, atol=1e-4)


def test_what_no_estimator_answers_is_trivial_and_said_aloud():
    df = table()
    df.loc[: HALF - 1, 'kind'] = df.kind[:HALF].where(df.kind[:HALF].isna(), 'mid')
    df.loc[: HALF - 1, 'n'] = np.nan
    df.loc[: HALF - 1, 'p'] = False
    own = flow()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        learn = fit_estimators(own, df, TREES, **INPUTS)
    (text,) = [str(w.message) for w in told if 'trivial predictor speaks' in str(w.message)]
    assert text.startswith("'kind', 'n', 'both', 'votes':")
    plain = learn.model.fitted['both']
    assert plain[0] is None and plain[1] is not None
    found = quiet(learn, 'evaluate', metrics='accuracy').set_index('task_path')
    assert found.metric_res['kind'] == found.baseline['kind']
    probs = quiet(learn, 'get_preds')[0][:, learn.dls.flow.slices['both'].acts]
    assert (probs[:, 0] == probs[0, 0]).all() and probs[0, 0] < 0.01 and probs[:, 1].std() > 0.05
    with pytest.warns(FlowWarning, match="'size', 'part', 'n', 'share', 'votes': here the trivial"):
        fit_estimators(flow(), table(), TREES[0], **INPUTS)
    with pytest.warns(FlowWarning, match="'gate', 'kind', 'many', 'stars', 'both', 'votes': here the trivial"):
        fit_estimators(flow(), table(), (None, Ridge()), **INPUTS)


def test_a_class_that_no_training_row_has_is_never_said():
    df = table()
    df.loc[: HALF - 1, 'kind'] = df.kind[:HALF].where(df.kind[:HALF] != 'mid')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn = fit_estimators(flow(), df, TREES, **INPUTS)
        assert set(learn.predict_df(df[HALF:]).kind.dropna()) == {'big', 'red'}
    probs = quiet(learn, 'get_preds')[0][:, learn.dls.flow.slices['kind'].acts]
    assert (probs[:, 1] < 1e-6).all()  # `mid`


def test_sub_classes_stay_within_their_class():
    df = table()
    df['top'] = np.where(df.z > 0, 'up', 'down')
    df['sub'] = df.top + np.where(df.x > 0.2, '1', '2')
    top = SingleLabelBlock('top')
    learn = fit_estimators(Flow('f', top, SingleLabelBlock('sub', within=top)), df, TREES, **INPUTS)
    cells = learn.predict_df(df[HALF:])
    assert all(sub.startswith(top) for sub, top in zip(cells['sub'], cells.top))
    assert accuracy_score(df['sub'][HALF:], cells['sub']) > 0.9


def test_it_is_not_trained_and_needs_probabilities():
    learn = fitted()
    with pytest.raises(FlowError, match='call fit_estimators again'):
        quiet(learn, 'fit', 1)
    margin = make_pipeline(StandardScaler(), LinearSVC())
    with pytest.raises(
        FlowError, match=r"estimators=, task 'gate': Pipeline has no predict_proba.*CalibratedClassifierCV"
    ):
        fit_estimators(flow(), table(), (margin, None), **INPUTS)
    with pytest.raises(FlowError, match='estimators=: HistGradientBoostingRegressor stands first'):
        fit_estimators(flow(), table(), TREES[::-1], **INPUTS)
    with pytest.raises(FlowError, match='estimators=: .*is a class'):
        fit_estimators(flow(), table(), HistGradientBoostingClassifier, **INPUTS)
    with pytest.raises(FlowError, match='estimators=: HistGrad.*cannot be fitted for task .gate.'):
        fit_estimators(flow(), table(), HistGradientBoostingClassifier(max_iter=-1), **INPUTS)
    wrapped = CalibratedClassifierCV(margin)
    found = quiet(fitted(estimators=(wrapped, Ridge())), 'evaluate', metrics='roc_auc')
    df = table()
    assert found.set_index('task_path').metric_res['gate'] > 0.7 > roc_auc_score(df.gate, -df.x)
