"""`learn.evaluate`: oracle- and cascade-gated scores beside the trivial predictor, against a loop over rows; and
what the nearest peer's table got wrong."""

import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import DataBlock, IndexSplitter, Learner, Transform, TransformBlock, load_learner
from sklearn import metrics as skm
from torch import nn
from fastai_condmtl.all import *
import warnings

N = 300


class Logits(Transform):
    "Row → the logits that stand in it: a model that is known by heart"

    def __call__(self, r, **kwargs):
        return torch.tensor([r[f'z{i}'] for i in range(6)], dtype=torch.float32)


@pytest.fixture(scope='module')
def learn():
    rng = np.random.default_rng(0)
    a, kind = BinaryBlock('a'), SingleLabelBlock('kind', vocab=list('uvw'))
    flow = Flow(
        'f', a, kind | a, BoundedRegressionBlock('r', y_range=(0, 8)) | kind.isin(['u', 'v']), BinaryBlock('never') | a
    )
    df = pd.DataFrame(
        dict(a=rng.random(N) < 0.7, kind=rng.choice(list('uvw'), N, p=[0.6, 0.3, 0.1]), r=rng.random(N) * 8)
    ).astype(object)
    df = df.mask(rng.random(df.shape) < 0.15).assign(never=np.nan, **{f'z{i}': rng.normal(size=N) for i in range(6)})
    block = DataBlock(blocks=(TransformBlock, flow), get_x=Logits(), splitter=IndexSplitter(list(range(100, N))))
    with pytest.warns(UserWarning, match='never'):
        dls = block.dataloaders(df, bs=32, val_bs=7, num_workers=0)
    model = nn.Linear(6, 6, bias=False)
    model.weight.data = torch.eye(6)
    res = Learner(dls, model)
    res.df = df
    return res


def quietly(learn, **kwargs):
    with learn.no_bar(), learn.no_logging():
        return learn.evaluate(**kwargs)


@pytest.fixture(scope='module')
def table(learn):
    return quietly(learn).set_index(['task_path', 'metric_name'])


@pytest.fixture(scope='module')
def rows(learn):
    "Of each validation row: labels that count, decided values, what is reached; one at a time, in plain Python"
    s, res = learn.dls.flow.slices, []
    missing = pd.isna
    for _, r in learn.df.iloc[100:].iterrows():
        z = np.array([r[f'z{i}'] for i in range(6)])
        lab = dict(
            a=None if missing(r.a) else bool(r.a),
            kind=None if missing(r.kind) else r.kind,
            r=None if missing(r.r) else r.r,
        )
        ok = dict(a=True, kind=lab['a'] is True)
        ok['r'] = ok['kind'] and lab['kind'] in ('u', 'v')
        p = dict(
            a=z[s['a'].logits][0], kind='uvw'[z[s['kind'].logits].argmax()], r=8 / (1 + np.exp(-z[s['r'].logits][0]))
        )
        hit = dict(a=True, kind=p['a'] > 0)
        hit['r'] = hit['kind'] and p['kind'] in ('u', 'v')
        false = dict(a=False, kind=lab['a'] is False, r=lab['a'] is True and lab['kind'] == 'w')
        res.append(
            dict(label={t: lab[t] if ok[t] else None for t in ok}, pred={**p, 'a': p['a'] > 0}, hit=hit, false=false)
        )
    return res


@pytest.mark.parametrize(
    'task, metric, score, trivial',
    [
        ('a', 'accuracy', skm.accuracy_score, lambda t: [True] * len(t)),
        ('a', 'f1_score', skm.f1_score, lambda t: [True] * len(t)),
        ('a', 'balanced_accuracy', skm.balanced_accuracy_score, lambda t: [True] * len(t)),
        ('kind', 'accuracy', skm.accuracy_score, lambda t: ['u'] * len(t)),
        (
            'kind',
            'recall',
            lambda t, p: skm.recall_score(t, p, average='macro', zero_division=0),
            lambda t: ['u'] * len(t),
        ),
        ('r', 'mae', skm.mean_absolute_error, None),
    ],
)
def test_against_a_loop(learn, table, rows, task, metric, score, trivial):
    row = table.loc[(task, metric)]
    counts = [r for r in rows if r['label'][task] is not None]
    true = [r['label'][task] for r in counts]
    assert row.num_samples == len(counts)
    assert row.metric_res == pytest.approx(score(true, [r['pred'][task] for r in counts]), abs=1e-5)
    reached = [r for r in counts if r['hit'][task]]
    assert row.cascade_samples == len(reached)
    assert row.cascade_res == pytest.approx(
        score([r['label'][task] for r in reached], [r['pred'][task] for r in reached]), abs=1e-5
    )
    assert row.missed == pytest.approx(1 - len(reached) / len(counts))
    hits = [r for r in rows if r['hit'][task]]
    assert row.spurious == pytest.approx(sum(r['false'][task] for r in hits) / len(hits))
    if trivial is None:  # the median of the training rows that count
        train = [
            r.r for _, r in learn.df.iloc[:100].iterrows() if r.a is True and r.kind in ('u', 'v') and not pd.isna(r.r)
        ]
        trivial = lambda t: [np.median(train)] * len(t)
    assert row.baseline == pytest.approx(score(true, trivial(true)), abs=1e-5)


def test_a_task_without_rows_keeps_its_place(table):
    row = table.loc[('never', 'accuracy')]
    assert np.isnan(row.metric_res) and row.num_samples == 0 and np.isnan(row.missed)


def test_invariants(table):
    assert (table.cascade_samples <= table.num_samples).all()
    for share in (table.missed, table.spurious):
        assert share.dropna().between(0, 1).all()
    p, r, f = (table.loc[('a', m)].metric_res for m in ('precision', 'recall', 'f1_score'))
    assert min(p, r) <= f <= max(p, r)
    assert list(table.reset_index().columns) == COLUMNS


COLUMNS = [
    'task_path',
    'metric_name',
    'metric_res',
    'num_samples',
    'baseline',
    'cascade_res',
    'cascade_samples',
    'missed',
    'spurious',
]


def test_thresholds_in_force(learn, table):
    learn.loss_func.thresholds['a'] = 0.8
    try:
        strict = quietly(learn).set_index(['task_path', 'metric_name'])
    finally:
        learn.loss_func.thresholds['a'] = torch.tensor([0.5])
    assert strict.loc[('a', 'recall')].metric_res < table.loc[('a', 'recall')].metric_res
    assert strict.loc[('kind', 'accuracy')].missed > table.loc[('kind', 'accuracy')].missed
    assert (
        strict.loc[('kind', 'accuracy')].metric_res == table.loc[('kind', 'accuracy')].metric_res
    )  # oracle-gated: parents do not matter


def test_kept_through_export(learn, table, tmp_path):
    learn.path = tmp_path
    learn.export('l.pkl')
    again = load_learner(tmp_path / 'l.pkl')
    dl = again.dls.test_dl(learn.df.iloc[100:], with_labels=True)
    res = quietly(again, dl=dl).set_index(['task_path', 'metric_name'])
    pd.testing.assert_frame_equal(res, table, check_exact=False, rtol=1e-5)


def test_training_rows_too(learn):
    assert quietly(learn, ds_idx=0, metrics='accuracy').num_samples.max() <= 100


def test_without_labels_or_flow(learn):
    with pytest.raises(ValueError, match='with_labels=True'):
        quietly(learn, dl=learn.dls.test_dl(learn.df))
    with pytest.raises(ValueError, match='no flow'):
        Learner(
            DataBlock(blocks=(TransformBlock, TransformBlock)).dataloaders([1, 2, 3, 4], bs=2, num_workers=0),
            nn.Linear(1, 1),
            loss_func=nn.MSELoss(),
        ).evaluate()


def test_the_model_is_plain(learn):
    "The peer's networks fail torch.export; ours is the network alone, from a tensor to a tensor."
    x = torch.randn(4, 6)
    assert torch.equal(torch.export.export(learn.model, (x,)).module()(x), learn.model(x))


def learner(df, *tasks):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        dls = DataBlock(
            blocks=(TransformBlock, Flow('f', *tasks)), get_x=Row(), splitter=IndexSplitter([0])
        ).dataloaders(df, bs=2, num_workers=0)
    return Learner(dls, nn.Linear(3, dls.c), metrics=dls.flow.metrics('all'))


class Row:
    def __call__(self, r):
        return torch.ones(3)

    __name__ = 'row'


def test_numbers_as_classes_can_be_wrong():
    bound = Flow('f', SingleLabelBlock('k')).bind(df := pd.DataFrame(dict(k=[0.5, 1.5])))
    a, b = (FlowPrediction(bound, y) for y in bound.encode(df))
    assert a.tree(truth=b)['k'].data['wrong'] and not a.tree(truth=a)['k'].data['wrong']


def test_unknown_metric_in_evaluate():
    learn = learner(pd.DataFrame(dict(a=[0, 1] * 3)), BinaryBlock('a'))
    with pytest.raises(FlowError, match="acuracy.*did you mean 'accuracy'"):
        learn.evaluate(metrics='acuracy')
    with pytest.raises(FlowError, match='not one str: hand over a DataFrame, or a list of rows'):
        learn.predict_df('1.png')


def test_tasks_that_no_row_reaches_are_told_with_what_stands_before_them(learn):
    "All logits of `a` say no; with its threshold at 0 all rows reach `kind`"
    table = learn.df.assign(z0=-3.0)
    with pytest.warns(
        FlowWarning, match=r"no row reaches 'kind', 'r' \(up to \d+ rows count\): 'a' is never decided so"
    ):
        quietly(learn, dl=table)
    with warnings.catch_warnings():
        warnings.simplefilter('error', FlowWarning)
        quietly(learn)
