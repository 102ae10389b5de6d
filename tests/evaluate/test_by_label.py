"""Scores of each label and class: `learn.evaluate(by_label=True)`, `learn.classification_report` and metrics of
trackers, against scikit-learn on rows that are picked one at a time"""

import csv
import pickle
import warnings

import numpy as np, pandas as pd, pytest, torch
from fastai.callback.progress import CSVLogger
from fastai.callback.tracker import SaveModelCallback
from fastai.vision.all import DataBlock, IndexSplitter, Learner, Transform, TransformBlock
from sklearn import metrics as skm
from torch import nn
from fastai_condmtl.all import *
from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders, conditional_tabular_learner

N, TRAIN = 400, 100
KINDS, STARS, TAGS, VOTES = ['u', 'v', 'w', 'q'], [1, 2, 3], ['p', 'r', 'never', 'blank'], ['smooth', 'disk', 'odd']
C = 1 + 4 + 3 + 4 + 3 + 1


class Logits(Transform):
    "Row → the logits that stand in it: a model that is known by heart"

    def __call__(self, r, **kwargs):
        return torch.tensor([r[f'z{i}'] for i in range(C)], dtype=torch.float32)


def table():
    rng = np.random.default_rng(4)
    df = pd.DataFrame(
        dict(
            there=rng.choice(['absent', 'present'], N, p=[0.3, 0.7]),
            kind=rng.choice(KINDS[:3], N, p=[0.6, 0.3, 0.1]),
            stars=rng.choice(STARS, N),
            p=rng.integers(0, 2, N),
            r=rng.random(N) < 0.2,
            never=0,
            blank=np.nan,
            size=rng.random(N) * 8,
        )
    ).astype(object)
    df = df.mask(rng.random(df.shape) < 0.15)
    df['never'] = 0
    df.loc[:3, ['there', 'kind']] = ['present', 'q']  # q stands in rows of the training alone
    df[VOTES] = rng.integers(0, 4, (N, 3))
    df.loc[5:8, VOTES] = [2, 2, 0]
    return df.assign(**{f'z{i}': rng.normal(size=N).astype(np.float32) for i in range(C)})


@pytest.fixture(scope='module')
def learn():
    there = BinaryBlock('there', vocab=('absent', 'present'))
    flow = Flow(
        'f',
        there,
        SingleLabelBlock('kind', vocab=KINDS) | there,
        OrdinalBlock('stars', vocab=STARS),
        MultiLabelBlock('tags', cols=TAGS, threshold=[0.5, 0.4, 0.5, 0.5]),
        VotesBlock('shape', cols=VOTES),
        BoundedRegressionBlock('size', y_range=(0, 8)) | there,
    )
    df = table()
    block = DataBlock(blocks=(TransformBlock, flow), get_x=Logits(), splitter=IndexSplitter(list(range(TRAIN, N))))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of labels that no row of the training tells
        dls = block.dataloaders(df, bs=64, val_bs=37, num_workers=0)
    assert dls.c == C
    model = nn.Linear(C, C, bias=False)
    model.weight.data = torch.eye(C)
    res = Learner(dls, model)
    res.df = df.iloc[TRAIN:]
    return res


def quietly(f, *args, **kwargs):
    "With a warning as an error: neither ours nor scikit-learn's"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore', module='torch|fastai|fastprogress')
        return f(*args, **kwargs)


@pytest.fixture(scope='module')
def found(learn):
    with learn.no_bar(), learn.no_logging():
        res = quietly(learn.evaluate, by_label=True)
    return res


def logits(learn, task):
    where = learn.dls.flow.slices[task].logits
    return learn.df[[f'z{i}' for i in range(C)]].to_numpy(dtype=float)[:, where]


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def answers(learn, task, label):
    "Of the rows where the label is known: is it the truth, is it decided, how probable is it; all by hand"
    df, z = learn.df, logits(learn, task)
    if task == 'there':
        known, p = df.there.notna(), 1 / (1 + np.exp(-z[:, 0]))
        yes = label == 'present'
        true, says, prob = df.there == label, (p > 0.5) == yes, p if yes else 1 - p
    elif task == 'kind':
        known = df.kind.notna() & (df.there == 'present')
        j = KINDS.index(label)
        true, says, prob = df.kind == label, z.argmax(1) == j, softmax(z)[:, j]
    elif task == 'stars':  # above 1, above 2: sorted sigmoids
        known, j = df.stars.notna(), STARS.index(label)
        above = np.sort(1 / (1 + np.exp(-(z[:, 1:] + z[:, :1]))), 1)[:, ::-1]
        probs = np.stack([1 - above[:, 0], above[:, 0] - above[:, 1], above[:, 1]], 1)
        true, says, prob = df.stars == label, (above > 0.5).sum(1) == j, probs[:, j]
    elif task == 'tags':
        j = TAGS.index(label)
        known, prob = df[label].notna(), 1 / (1 + np.exp(-z[:, j]))
        true, says = df[label].fillna(0).astype(bool), prob > [0.5, 0.4, 0.5, 0.5][j]
    else:
        votes, j = df[VOTES].to_numpy(dtype=float), VOTES.index(label)
        known, shares = votes.sum(1) > 0, softmax(z)
        true, says, prob = votes.argmax(1) == j, shares.argmax(1) == j, shares[:, j]
    known = np.asarray(known, dtype=bool)
    return [np.asarray(part)[known] for part in (true, says, prob)]


LABELS = [('there', label) for label in ('absent', 'present')]
LABELS += [('kind', label) for label in KINDS] + [('stars', label) for label in STARS]
LABELS += [('tags', label) for label in TAGS] + [('shape', label) for label in VOTES]


@pytest.mark.parametrize('task, label', LABELS)
def test_against_scikit_learn(learn, found, task, label):
    true, says, prob = answers(learn, task, label)
    row = found[(found.task_path == task) & (found.label == label)].set_index('metric_name')
    assert (row.num_samples == len(true)).all() and (row.support == true.sum()).all()
    if not len(true):
        assert label == 'blank' and row.metric_res.isna().all()
        return
    p, r, f, _ = skm.precision_recall_fscore_support(true, says, average='binary', zero_division=0)
    told = true.any() or says.any()
    wanted = dict(
        precision=p if told else np.nan,
        recall=r if true.any() else np.nan,
        f1_score=f if told else np.nan,
        roc_auc=skm.roc_auc_score(true, prob) if true.any() else np.nan,
        average_precision=skm.average_precision_score(true, prob) if true.any() else np.nan,
    )
    assert row.metric_res[list(wanted)].tolist() == pytest.approx(list(wanted.values()), abs=1e-6, nan_ok=True)
    share = true.mean()
    lazy = dict(precision=share, recall=1, f1_score=2 * share / (1 + share), roc_auc=0.5, average_precision=share)
    if true.any():
        assert row.baseline[list(lazy)].tolist() == pytest.approx(list(lazy.values()))


def test_labels_without_a_row_are_nan_and_the_picture_says_why(found):
    at = found.set_index(['task_path', 'label', 'metric_name']).sort_index()
    assert at.loc[('kind', 'q', 'recall')].support == 0 and np.isnan(at.loc[('kind', 'q', 'recall')].metric_res)
    assert np.isnan(at.loc[('tags', 'never', 'roc_auc')].metric_res)
    html = found.show().to_html()
    assert 'no row that counts here has q of kind, never of tags, blank of tags' in html


def test_the_table_of_tasks_stays(learn, found):
    with learn.no_bar(), learn.no_logging():
        plain = learn.evaluate()
    of_tasks = found[found.label.isna()].reset_index(drop=True)
    assert 'label' not in plain and (of_tasks.support == of_tasks.num_samples).all()
    pd.testing.assert_frame_equal(
        pd.DataFrame(of_tasks.drop(columns=['label', 'support'])), pd.DataFrame(plain), check_exact=False
    )
    assert not found[found.task_path == 'size'].label.notna().any()


def test_scores_of_classes_average_to_the_tasks(found):
    at = found[found.task_path == 'kind']
    for metric in ('precision', 'recall', 'f1_score'):
        rows = at[at.metric_name == metric]
        task = rows[rows.label.isna()].metric_res.item()
        assert rows[rows.label.notna()].metric_res.fillna(0).mean() == pytest.approx(task)


def test_the_cascade_of_a_class(learn, found):
    df, z = learn.df, logits(learn, 'kind')
    reached = logits(learn, 'there')[:, 0] > 0
    counts = (df.kind.notna() & (df.there == 'present')).to_numpy()
    row = found[(found.task_path == 'kind') & (found.label == 'u')].set_index('metric_name').loc['precision']
    both = counts & reached
    assert row.cascade_samples == both.sum() and row.missed == pytest.approx(1 - both.sum() / counts.sum())
    assert row.cascade_res == pytest.approx(skm.precision_score(df.kind[both] == 'u', z[both].argmax(1) == 0))


def test_votes_of_one_answer_are_off_by(learn, found):
    votes, shares = learn.df[VOTES].to_numpy(dtype=float), softmax(logits(learn, 'shape'))
    asked = votes.sum(1) > 0
    off = np.abs(votes[asked] / votes[asked].sum(1, keepdims=True) - shares[asked]).mean(0)
    rows = found[(found.task_path == 'shape') & (found.metric_name == 'mae') & found.label.notna()]
    assert rows.metric_res.tolist() == pytest.approx(off.tolist(), abs=1e-5)


def test_intervals_are_the_bootstraps(learn):
    with learn.no_bar(), learn.no_logging():
        res = learn.evaluate(metrics='recall', by_label=True, n_boot=60)
    row = res[(res.task_path == 'tags') & (res.label == 'r')].iloc[0]
    true, says, _ = answers(learn, 'tags', 'r')
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(true), len(true)) for _ in range(60)]
    scores = [skm.recall_score(true[d], says[d]) for d in draws]
    assert (row.ci_low, row.ci_high) == pytest.approx(tuple(np.quantile(scores, [0.025, 0.975])))
    assert res[res.label == 'q'][['ci_low', 'ci_high']].isna().all(axis=None)


def test_by_groups_and_by_names(learn):
    groups = pd.Series(np.array(list('xyz') * 100), name='city')
    with learn.no_bar(), learn.no_logging():
        res = learn.evaluate(metrics=['auc'], by=groups, by_label=True)
        with pytest.raises(FlowError, match="by='label' .*by_label"):
            learn.evaluate(by=groups.rename('label'), by_label=True)
        with pytest.raises(FlowError, match='has a metric'):
            learn.evaluate(metrics='f2', by_label=True)
        assert 'label' in learn.evaluate(metrics='recall', by=groups.rename('label'))
    one = res[(res.task_path == 'stars') & (res.label == 2) & (res.city == 'y')]
    at = np.flatnonzero(learn.df.stars.notna())
    true, _, prob = answers(learn, 'stars', 2)
    here = groups.to_numpy()[at] == 'y'
    assert one.metric_res.item() == pytest.approx(skm.roc_auc_score(true[here], prob[here]), abs=1e-6)


# ---- the report
@pytest.mark.parametrize('task, names', [('there', ['absent', 'present']), ('kind', KINDS), ('stars', STARS)])
def test_the_report_is_scikit_learns(learn, task, names):
    with learn.no_bar(), learn.no_logging():
        report = quietly(learn.classification_report, task)
    parts = [answers(learn, task, label) for label in names]
    true, says = (np.stack([part[i] for part in parts], 1).argmax(1) for i in (0, 1))
    wanted = skm.classification_report(
        true, says, labels=range(len(names)), target_names=list(map(str, names)), output_dict=True, zero_division=0
    )
    columns = ['precision', 'recall', 'f1-score', 'support']
    for label in [*names, 'macro avg', 'weighted avg']:
        row = [wanted[str(label)][column] for column in columns]
        if label == 'q':
            assert report.loc['q', 'support'] == 0 and np.isnan(report.loc['q', 'recall'])
            continue
        assert report.loc[label].tolist() == pytest.approx(row)
    assert report.loc['accuracy', 'f1-score'] == pytest.approx((true == says).mean())
    if task == 'there':
        assert str(report) == skm.classification_report(true, says, target_names=names)


@pytest.mark.parametrize('names', [['macro avg', 'b'], ['accuracy', 'accuracy (label)'], ['weighted avg', 'micro avg']])
def test_labels_that_are_called_as_an_average(names):
    "Each row of the report has a name of its own, and the averages keep theirs"
    df = pd.DataFrame(dict(x=np.arange(40.0), kind=names * 20))
    dls = ConditionalTabularDataLoaders.from_df(
        df, SingleLabelBlock('kind', vocab=names), cont_names=['x'], cat_names=[], valid_pct=0.5, seed=0, bs=8
    )
    learn = conditional_tabular_learner(dls, [4])
    with learn.no_bar(), learn.no_logging():
        report = quietly(learn.classification_report, 'kind')
    assert report.index.is_unique and list(report.index[2:]) == ['accuracy', 'macro avg', 'weighted avg']
    assert report.support[:2].sum() == report.loc['macro avg', 'support'] == 20
    assert str(report).count('macro avg') == 1 + ('macro avg' in names) and 'f1-score' in str(report)


def test_the_report_of_labels_with_gaps(learn):
    with learn.no_bar(), learn.no_logging():
        report = quietly(learn.classification_report, 'tags')
    told = [answers(learn, 'tags', label) for label in TAGS]
    for label, (true, says, _) in zip(TAGS[:2], told):
        p, r, f, _ = skm.precision_recall_fscore_support(true, says, average='binary')
        assert report.loc[label].tolist() == pytest.approx([p, r, f, true.sum()])
    true, says = (np.concatenate([part[i] for part in told]) for i in (0, 1))
    assert report.loc['micro avg', 'f1-score'] == pytest.approx(skm.f1_score(true, says))
    assert report.loc['never', 'precision'] == 0 and report.loc['blank'].isna()[:3].all()
    macro = [skm.recall_score(true, says, zero_division=0) for true, says, _ in told[:3]]
    assert report.loc['macro avg', 'recall'] == pytest.approx(np.mean(macro))


def test_the_report_of_all_tasks(learn):
    with learn.no_bar(), learn.no_logging():
        report = learn.classification_report()
        one = learn.classification_report('shape')
        interp = ConditionalInterpretation.from_learner(learn)
        with pytest.raises(FlowError, match='size.*no classes or labels'):
            learn.classification_report('size')
    assert report.index.get_level_values(0).unique().tolist() == ['there', 'kind', 'stars', 'tags', 'shape']
    pd.testing.assert_frame_equal(pd.DataFrame(report.loc['shape']), pd.DataFrame(one), check_names=False)
    pd.testing.assert_frame_equal(pd.DataFrame(interp.classification_report('shape')), pd.DataFrame(one))
    assert str(report).count('weighted avg') == 5 and 'no row that counts here has q of kind' in report.show().to_html()
    assert str(pickle.loads(pickle.dumps(report))) == str(report)


def test_interpretation_prints_as_fastai_does(learn, capsys):
    with learn.no_bar(), learn.no_logging():
        ConditionalInterpretation.from_learner(learn).print_classification_report('there')
    true, says = (np.stack([answers(learn, 'there', v)[i] for v in ('absent', 'present')], 1).argmax(1) for i in (0, 1))
    wanted = skm.classification_report(true, says, target_names=['absent', 'present'])
    assert capsys.readouterr().out == wanted + '\n'


# ---- trackers
def test_metrics_of_labels_are_the_tables(learn, found):
    names = ('f1', 'auc', 'accuracy')
    other = Learner(learn.dls, learn.model, metrics=learn.dls.flow.metrics(*names, by_label=True))
    with other.no_bar(), other.no_logging():
        values = dict(zip([m.name for m in other.metrics], quietly(other.validate)[1:]))
    assert {'kind.u.f1_score', 'kind.q.roc_auc', 'stars.3.f1_score', 'shape.disk.roc_auc'} <= set(values)
    assert {'there.f1_score', 'there.roc_auc', 'kind.accuracy', 'tags.never.accuracy'} <= set(values)
    assert 'kind.f1_score' not in values
    at = found.set_index(['task_path', 'label', 'metric_name'])
    for name, value in values.items():
        task, *label, metric = name.split('.')
        if label and task != 'stars':
            assert value == pytest.approx(at.loc[(task, label[0], metric)].metric_res, abs=1e-6, nan_ok=True), name


def test_trackers_watch_a_label(learn, tmp_path):
    metrics = learn.dls.flow.metrics('auc', 'f1', by_label=True, tasks=['kind'])
    other = Learner(learn.dls, nn.Linear(C, C), metrics=metrics, path=tmp_path, lr=0.01)
    with other.no_bar(), other.no_logging():
        other.fit(2, cbs=[CSVLogger(), SaveModelCallback(monitor='kind.u.roc_auc')])
    with open(tmp_path / 'history.csv') as file:
        history = list(csv.DictReader(file))
    assert len(history) == 2 and {'kind.u.roc_auc', 'kind.w.f1_score'} <= set(history[0])
    assert (tmp_path / 'models' / 'model.pth').exists()
    assert pickle.loads(pickle.dumps(metrics[0])).name == 'kind.u.roc_auc'
    with pytest.raises(FlowError, match='kind.q.roc_auc.*NaN in every epoch'):
        other.fit(1, cbs=SaveModelCallback(monitor='kind.q.roc_auc'))
    lacks = Learner(learn.dls, nn.Linear(C, C), metrics=learn.dls.flow.metrics())
    with pytest.raises(FlowError, match=r"metrics=dls.flow.metrics\('roc_auc', by_label=True\)"):
        lacks.fit(1, cbs=SaveModelCallback(monitor='kind.u.roc_auc'))


def test_activations_are_kept_where_a_ranking_asks():
    bound = Flow('f', SingleLabelBlock('k', vocab=list('xyz'))).bind(pd.DataFrame(dict(k=['x'])))
    assert not bound.metrics('f1', by_label=True)[0].acc.with_acts
    assert not bound.metrics('all')[0].acc.with_acts
    assert bound.metrics('auc', by_label=True)[0].acc.with_acts == {0}


def test_points_have_scores_and_no_report():
    "A point is near or far: it has the errors of its task, and is no answer"
    bound = Flow('f', KeypointsBlock('eye', ['x', 'y', 'u', 'v'], points=['left', 'right'])).bind(
        pd.DataFrame(dict(x=[1], y=[1], u=[2], v=[2]))
    )
    block = bound.tasks['eye']
    assert block.label_names == ['left', 'right'] and block.label_metrics == block.metrics
    assert block.says_label(0, np.zeros((1, 4))) is None
    assert {m.label for m in bound.metrics('mae', by_label=True)} == {'left', 'right'}


def test_names_of_labels_in_metrics():
    bound = Flow('f', SingleLabelBlock('k', vocab=['', 'no loss', 'a.b', 'a,b', 3])).bind(pd.DataFrame(dict(k=[''])))
    names = [m.name for m in bound.metrics(by_label=True)]
    assert names == [f'k.{v}.f1_score' for v in ('blank', 'no lo-ss', 'a_b_2', 'a_b_3', '3')]
