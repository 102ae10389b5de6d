"""Tests of evaluate/estimators: columns beside scores, against scikit-learn fitted by hand on the same rows"""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import DataBlock, IndexSplitter, Learner, Transform, TransformBlock
from estimator_table import HALF, LINES, TREES, ByHand, flow, inputs, loaders, table
from scaled_logits import learner as yes_no_learner, quiet, table as yes_no_table
from sklearn.calibration import CalibratedClassifierCV
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    mean_absolute_error,
    mean_poisson_deviance,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
    top_k_accuracy_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from torch import nn

from fastai_condmtl.all import *
from fastai_condmtl.evaluate.estimators import training_rows
from fastai_condmtl.tabular.all import conditional_tabular_learner
from fastai_condmtl.tasks.count import poisson_median


def evaluated(df, own, baselines, **kwargs):
    "A learner that was not trained, its loaders and its table"
    dls = loaders(df, own)
    learn = conditional_tabular_learner(dls, [4], members=1)
    return learn, dls, quiet(learn, 'evaluate', baselines=baselines, **kwargs)


@pytest.fixture(scope='module', params=['trees', 'lines'])
def scored(request):
    df, pair = table(), dict(trees=TREES, lines=LINES)[request.param]
    learn, dls, found = evaluated(df, flow(), {request.param: pair})
    scores = found.set_index(['task_path', 'metric_name'])[request.param]
    return scores, ByHand(df, dls), pair, found


def test_yes_and_no_are_scored_as_scikit_learn_scores_them(scored):
    scores, by_hand, (classifier, _), _ = scored
    said, prob, true = by_hand.fitted(classifier, 'gate', bool)
    assert scores['gate', 'accuracy'] == accuracy_score(true, said)
    assert scores['gate', 'f1_score'] == pytest.approx(f1_score(true, said), abs=1e-12)
    assert scores['gate', 'roc_auc'] == pytest.approx(roc_auc_score(true, prob[:, 1]), abs=1e-12)
    assert scores['gate', 'average_precision'] == pytest.approx(average_precision_score(true, prob[:, 1]), abs=1e-12)


def test_classes_are_scored_as_scikit_learn_scores_them(scored):
    scores, by_hand, (classifier, _), _ = scored
    said, prob, true = by_hand.fitted(classifier, 'kind', str)
    assert scores['kind', 'accuracy'] == accuracy_score(true, said)
    assert scores['kind', 'f1_score'] == pytest.approx(f1_score(true, said, average='macro'), abs=1e-12)
    assert scores['kind', 'balanced_accuracy'] == pytest.approx(balanced_accuracy_score(true, said), abs=1e-12)
    said, prob, true = by_hand.fitted(classifier, 'many', int)
    assert scores['many', 'accuracy_3'] == top_k_accuracy_score(true, prob, k=3, labels=range(5))
    said, _, true = by_hand.fitted(classifier, 'stars', int)
    assert scores['stars', 'mae'] == pytest.approx(mean_absolute_error(true, said), abs=1e-12)
    kappa = cohen_kappa_score(true, said, weights='quadratic')
    assert scores['stars', 'kappa'] == pytest.approx(kappa, abs=1e-12)


def test_numbers_are_scored_as_scikit_learn_scores_them(scored):
    scores, by_hand, (_, regressor), _ = scored
    for column in ('size', 'part'):
        said, _, true = by_hand.fitted(regressor, column, float)
        assert scores[column, 'mae'] == pytest.approx(mean_absolute_error(true, said), rel=1e-6)
        assert scores[column, 'rmse'] == pytest.approx(root_mean_squared_error(true, said), rel=1e-6)
        assert scores[column, 'r2'] == pytest.approx(r2_score(true, said), rel=1e-5, abs=1e-6)
    said, _, true = by_hand.fitted(regressor, 'n', float)
    said = said.clip(min=0)
    assert scores['n', 'mae'] == pytest.approx(mean_absolute_error(true, poisson_median(said)), rel=1e-6)
    assert scores['n', 'rmse'] == pytest.approx(root_mean_squared_error(true, said), rel=1e-6)
    assert scores['n', 'deviance'] == pytest.approx(mean_poisson_deviance(true, said.clip(min=1e-9)), rel=1e-5)


def test_shares_have_a_regressor_and_each_label_a_classifier(scored):
    scores, by_hand, (classifier, regressor), _ = scored
    said, _, true = by_hand.fitted(regressor, 'share', float)
    said = said.clip(0, 1)
    assert scores['share', 'mae'] == pytest.approx(mean_absolute_error(true, said), rel=1e-6)
    least = np.finfo(np.float32).eps
    cut = said.clip(least, 1 - least)
    by_formula = -(true * np.log(cut) + (1 - true) * np.log(1 - cut)).mean()
    assert scores['share', 'log_loss'] == pytest.approx(by_formula, rel=1e-5)
    assert scores['share', 'accuracy'] == accuracy_score(true > 0.5, said > 0.5)
    each = [by_hand.fitted(classifier, column, bool) for column in ('p', 'q')]
    f1 = np.mean([f1_score(true, said) for said, _, true in each])
    auc = np.mean([roc_auc_score(true, prob[:, 1]) for _, prob, true in each])
    assert scores['both', 'f1_score'] == pytest.approx(f1, abs=1e-12)
    assert scores['both', 'roc_auc'] == pytest.approx(auc, abs=1e-12)


def test_votes_are_blank_and_all_other_columns_are_as_before(scored):
    scores, by_hand, _, found = scored
    assert scores['votes'].isna().all() and len(scores['votes'])
    assert scores.drop('votes').notna().all()
    dls = loaders(by_hand.df, flow())
    assert list(found.columns)[4:6] == ['baseline', scores.name]
    learn = conditional_tabular_learner(dls, [4], members=1)
    torch.manual_seed(0)
    plain = quiet(learn, 'evaluate')
    beside = quiet(learn, 'evaluate', baselines={'trees': TREES})
    pd.testing.assert_frame_equal(pd.DataFrame(plain), pd.DataFrame(beside[list(plain.columns)]))
    assert f'{scores["gate", "accuracy"]:.3f}' in found.show().to_html()


def test_what_is_handed_over_stays_unfitted_and_several_columns_stand_in_their_order():
    pair = HistGradientBoostingClassifier(max_iter=2), HistGradientBoostingRegressor(max_iter=2)
    _, _, found = evaluated(table(), flow(), dict(b=pair, a=Ridge()), metrics=None)
    assert not hasattr(pair[0], 'classes_') and found.beside == ('b', 'a')
    assert list(found.columns)[4:7] == ['baseline', 'b', 'a']
    headline = found.set_index('task_path')
    assert headline.a.notna().to_dict() == {
        f'f.{name}' if f'f.{name}' in headline.index else name: name in ('size', 'part', 'n', 'share')
        for name in ('gate', 'kind', 'many', 'stars', 'size', 'part', 'n', 'share', 'both', 'votes')
    }
    _, _, one = evaluated(table(), flow(), dict(c=(None, LinearRegression())), metrics=None)
    assert one.set_index('task_path').c.notna().sum() == 4


def test_groups_of_rows_and_labels_have_their_own_scores():
    df = table()
    learn, dls, found = evaluated(df, flow(), dict(trees=TREES), metrics=['accuracy', 'mae'], by='colour')
    by_hand = ByHand(df, dls)
    said, _, true = by_hand.fitted(TREES[0], 'kind', str)
    colours = df.colour.to_numpy()[HALF:][by_hand.counts('kind')[HALF:]]
    for colour in 'rgb':
        row = found[(found.task_path == 'kind') & (found.colour == colour)].iloc[0]
        assert row.trees == accuracy_score(true[colours == colour], said[colours == colour])
    labels = quiet(learn, 'evaluate', metrics=['recall', 'roc_auc'], by_label=True, baselines=dict(trees=TREES))
    _, prob, _ = by_hand.fitted(TREES[0], 'kind', str)
    for j, name in enumerate(['big', 'mid', 'red']):
        of_class = labels[(labels.task_path == 'kind') & (labels.label == name)].set_index('metric_name').trees
        assert of_class['recall'] == pytest.approx((said == name)[true == name].mean())
        assert of_class['roc_auc'] == pytest.approx(roc_auc_score(true == name, prob[:, j]), abs=1e-12)


def test_other_rows_are_scored_and_training_rows_teach():
    df, new = table(), table(seed=1)
    learn, dls, _ = evaluated(df, flow(), None)
    found = quiet(learn, 'evaluate', dl=new, metrics=None, baselines=dict(trees=TREES)).set_index('task_path').trees
    by_hand, new_x = ByHand(df, dls), inputs(dls.test_dl(new, with_labels=True).dataset)
    x, y, _, _ = by_hand.parts('gate', bool)
    said = HistGradientBoostingClassifier(max_iter=20).fit(x, y).predict(new_x)
    assert found['gate'] == accuracy_score(new.gate, said)
    of_train = quiet(learn, 'evaluate', ds_idx=0, metrics=None, baselines=dict(trees=TREES)).set_index('task_path')
    assert of_train.num_samples['gate'] == HALF
    again = HistGradientBoostingClassifier(max_iter=20).fit(x, y)
    assert of_train.trees['gate'] == accuracy_score(y, again.predict(x))


def test_weights_of_rows_go_to_estimators_that_take_them():
    df = table()
    _, dls, found = evaluated(df, flow(weight_col='w'), dict(plain=TREES, piped=LINES), metrics=['accuracy', 'rmse'])
    scores, by_hand = found.set_index(['task_path', 'metric_name']), ByHand(df, dls)
    for column, estimator, metric, score in [
        ('gate', TREES[0], 'accuracy', accuracy_score),
        ('size', TREES[1], 'rmse', root_mean_squared_error),
    ]:
        x, y, new_x, new_y = by_hand.parts(column, bool if column == 'gate' else float)
        w = df.w.to_numpy()[:HALF][by_hand.counts(column)[:HALF]]
        weighed = score(new_y, estimator.fit(x, y, sample_weight=w).predict(new_x))
        unweighed = score(new_y, estimator.fit(x, y).predict(new_x))
        assert scores.plain[column, metric] == pytest.approx(weighed, rel=1e-6)
        if column == 'size':
            assert abs(weighed - unweighed) > 1e-3
    said, _, true = by_hand.fitted(LINES[1], 'size', float)  # a pipeline takes none
    assert scores.piped['size', 'rmse'] == pytest.approx(root_mean_squared_error(true, said), rel=1e-6)


def test_a_margin_ranks_where_there_are_no_probabilities():
    df = table()
    svc = make_pipeline(StandardScaler(), LinearSVC())
    _, dls, found = evaluated(df, flow(), dict(svc=(svc, None)))
    scores, by_hand = found.set_index(['task_path', 'metric_name']).svc, ByHand(df, dls)
    x, y, new_x, true = by_hand.parts('gate', bool)
    svc.fit(x, y)
    assert scores['gate', 'accuracy'] == accuracy_score(true, svc.predict(new_x))
    auc = roc_auc_score(true, svc.decision_function(new_x))
    assert scores['gate', 'roc_auc'] == pytest.approx(auc, abs=1e-12)
    x, y, new_x, true = by_hand.parts('many', int)
    margins = svc.fit(x, y).decision_function(new_x)
    assert scores['many', 'accuracy_3'] == top_k_accuracy_score(true, margins, k=3, labels=range(5))


class OnlyDecides(DummyClassifier):
    "A classifier that says answers and nothing else"

    predict_proba = property()


def test_a_ranking_of_what_only_decides_is_an_error_that_names_it():
    only = OnlyDecides(strategy='prior')
    assert not hasattr(only, 'predict_proba')
    learn, _, found = evaluated(table(), flow(), dict(only=only), metrics=['accuracy', 'f1_score', 'mae'])
    assert found.set_index(['task_path', 'metric_name']).only['gate', 'accuracy'] > 0.5
    with pytest.raises(FlowError, match="baselines\\['only'\\], task 'gate': roc_auc needs.*CalibratedClassifierCV"):
        quiet(learn, 'evaluate', metrics='roc_auc', baselines=dict(only=only))
    with pytest.raises(FlowError, match="'kind': accuracy_3 needs probabilities"):
        quiet(learn, 'evaluate', metrics='accuracy_3', baselines=dict(only=only))
    one_against_one = SVC(decision_function_shape='ovo', break_ties=False)
    with pytest.raises(FlowError, match="'kind': accuracy_3 needs"):
        quiet(learn, 'evaluate', metrics='accuracy_3', baselines=dict(svc=one_against_one))
    wrapped = CalibratedClassifierCV(LinearSVC())
    assert quiet(learn, 'evaluate', metrics='roc_auc', baselines=dict(w=wrapped)).w.notna().sum() == 2


def test_training_rows_of_one_class_say_this_class_aloud():
    df = table()
    df.loc[: HALF - 1, 'kind'] = df.kind[:HALF].where(df.kind[:HALF].isna(), 'mid')
    df.loc[: HALF - 1, 'p'] = False
    with pytest.warns(FlowWarning, match="baselines\\['trees'\\].*'kind', 'both.p' have one class only"):
        _, dls, found = evaluated(df, flow(), dict(trees=TREES), metrics=['accuracy', 'roc_auc'])
    scores, by_hand = found.set_index(['task_path', 'metric_name']), ByHand(df, dls)
    _, _, _, true = by_hand.parts('kind', str)
    assert scores.trees['kind', 'accuracy'] == scores.baseline['kind', 'accuracy'] == (true == 'mid').mean()
    _, _, p = by_hand.fitted(DummyClassifier(), 'p', bool)
    said, _, q = by_hand.fitted(TREES[0], 'q', bool)
    assert scores.trees['both', 'accuracy'] == pytest.approx(((~p).mean() + (said == q).mean()) / 2)


def test_a_task_without_training_rows_is_blank():
    df = table()
    df.loc[: HALF - 1, 'size'] = None
    df.loc[: HALF - 1, 'kind'] = None
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        _, _, found = evaluated(df, flow(), dict(trees=TREES), metrics=None)
    scores = found.set_index('task_path').trees
    assert scores[['size', 'kind']].isna().all() and scores['gate'] > 0.5


@pytest.mark.parametrize(
    'given, text',
    [
        (TREES, 'must be a dict'),
        (
            {'trees': TREES[::-1]},
            r"baselines\['trees'\]: HistGradientBoostingRegressor stands first and is no classifier",
        ),
        ({'trees': (TREES[0], TREES[0])}, 'stands second and is no regressor'),
        ({'trees': HistGradientBoostingClassifier}, r'is a class: write HistGradientBoostingClassifier\(\)'),
        ({'trees': 'trees'}, 'no estimator of scikit-learn'),
        ({'trees': True}, 'no estimator of scikit-learn'),
        ({'trees': (*TREES, TREES[0])}, r'hand over \(classifier, regressor\)'),
        ({'trees': None}, 'or one of them'),
        ({'trees': (None, None)}, 'or one of them'),
        ({'trees': StandardScaler()}, 'no estimator of scikit-learn'),
        ({'missed': TREES}, "names a column 'missed'"),
        ({'baseline': TREES}, "names a column 'baseline'"),
        ({'colour': TREES}, "names a column 'colour'"),
        ({3: TREES}, 'names a column 3'),
    ],
)
def test_other_things_are_errors_before_anything_is_predicted(given, text):
    learn = conditional_tabular_learner(loaders(table(), flow()), [4], members=1)
    learn.model.forward = None
    with pytest.raises(FlowError, match=text):
        learn.evaluate(baselines=given, by='colour')


def test_an_estimator_that_fails_is_named_with_task_and_rows():
    df = table()
    by_hand = ByHand(df, loaders(df, flow()))
    rows = by_hand.counts('gate')[:HALF].sum()
    bad = HistGradientBoostingClassifier(max_iter=-1)
    with pytest.raises(
        FlowError, match=f"baselines\\['bad'\\]: HistGrad.*cannot be fitted for task 'gate' on {rows} rows"
    ):
        evaluated(df, flow(), dict(bad=bad))


class Body(nn.Module):
    "Two numbers → three features"

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(2, 3)

    def forward(self, x):
        return self.lin(x).tanh()


@pytest.mark.parametrize('plain', [True, False])
def test_other_inputs_are_read_as_features_of_the_network(plain):
    torch.manual_seed(0)
    df = yes_no_table()
    learn = yes_no_learner(df=df)
    flow = learn.dls.flow
    body = Body()
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    if not plain:
        head = conditional_head(flow, 3, stock=head)
    learn.model = nn.Sequential(body, head)
    pair = LogisticRegression(), None
    found = quiet(learn, 'evaluate', metrics=['accuracy', 'roc_auc'], baselines=dict(line=pair))
    scores = found.set_index(['task_path', 'metric_name']).line
    with torch.no_grad():
        x = body(torch.tensor(df[['z0', 'z1']].astype(np.float32).to_numpy())).numpy()
    for path, rows in (('a', np.full(len(df), True)), ('b', df.a.astype(bool).to_numpy())):
        train, new = rows & (df.index < 300), rows & (df.index >= 300)
        line = LogisticRegression().fit(x[train], df[path][train].astype(bool))
        true = df[path][new].astype(bool)
        assert scores[path, 'accuracy'] == accuracy_score(true, line.predict(x[new]))
        assert scores[path, 'roc_auc'] == pytest.approx(
            roc_auc_score(true, line.predict_proba(x[new])[:, 1]), abs=1e-12
        )
    assert not any(module._forward_pre_hooks for module in learn.model.modules())


def test_a_map_is_pooled_and_training_rows_are_not_augmented():
    class Shift(Transform):
        "Spoils training rows"

        split_idx = 0

        def encodes(self, x: torch.Tensor):
            return x + 100

    class Picture(Transform):
        def __call__(self, r, **kwargs):
            return torch.full((1, 4, 4), float(r.z0)) * torch.linspace(0, 1, 4)

    df = yes_no_table()
    dls = DataBlock(
        blocks=(TransformBlock, Flow('f', BinaryBlock('a'))),
        get_x=Picture(),
        splitter=IndexSplitter(range(300, 600)),
        batch_tfms=[Shift()],
    ).dataloaders(df, bs=50, num_workers=0)
    head = conditional_head(dls.flow, torch.zeros(2, 1, 4, 4))
    learn = Learner(dls, nn.Sequential(nn.Sequential(nn.Identity()), head), lr=1e-3)
    with learn.no_bar(), learn.no_logging():
        features = training_rows(learn).x()
        found = learn.evaluate(metrics='roc_auc', baselines=dict(line=LogisticRegression()))
    z = df.z0[:300].astype(np.float32).to_numpy()
    assert np.allclose(features, np.stack([np.maximum(z, 0), z / 2], 1), atol=1e-5)
    assert found.line[0] > 0.5 and len(learn.dls.train_ds) == 300


def test_a_network_that_gives_no_head_its_rows_is_an_error():
    learn = yes_no_learner()

    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(2, 2)

        def forward(self, x):
            return x * self.lin.weight.sum()

    learn.model = Unused()
    with pytest.raises(FlowError, match='needs the features of each row'):
        quiet(learn, 'evaluate', baselines=dict(line=LogisticRegression()))


def test_a_learner_without_training_rows_says_so(tmp_path):
    from fastai.vision.all import load_learner

    df = table()
    learn = conditional_tabular_learner(loaders(df, flow()), [4], members=1, path=tmp_path)
    learn.export('it.pkl')
    with pytest.raises(FlowError, match='a loaded learner has none'):
        quiet(load_learner(tmp_path / 'it.pkl'), 'evaluate', dl=df, baselines=dict(trees=TREES))
