"""What is told before the first step: trackers, metrics of one target, small tables, accumulated gradients,
labels that nobody told."""

import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.basics import (
    load_learner,
    AvgMetric,
    Callback,
    CancelBatchException,
    CrossEntropyLossFlat,
    DataBlock,
    DataLoaders,
    IndexSplitter,
    Learner,
    Metric,
    RandomSplitter,
    TfmdDL,
    TransformBlock,
    SGD,
)
from fastai.callback.schedule import lr_find  # noqa: F401
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback, TrackerCallback
from fastai.callback.training import GradientAccumulation
from fastai.metrics import (
    AccumMetric,
    Dice,
    F1Score,
    LossMetric,
    R2Score,
    RocAucBinary,
    accuracy,
    accuracy_multi,
    error_rate,
    mae,
    mse,
    optim_metric,
    perplexity,
    rmse,
    top_k_accuracy,
)
from sklearn.metrics import f1_score
from torch import nn

from fastai_condmtl.all import *
from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders, conditional_tabular_learner

TRACKERS = (SaveModelCallback, EarlyStoppingCallback, ReduceLROnPlateau, TrackerCallback)


def table(n=40, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    return pd.DataFrame(
        dict(
            x0=x[:, 0],
            x1=x[:, 1],
            there=(x[:, 0] > 0) * 1.0,
            kind=rng.choice(list('uvw'), n),
            mass=x[:, 1] * 2 + 5,
            stars=rng.integers(1, 6, n),
            n=rng.poisson(3, n),
            marks=rng.choice(['p', 'p,q', 'q', ''], n),
            px=rng.random(n),
            py=rng.random(n),
        )
    )


def inputs(row):
    return torch.tensor([row['x0'], row['x1']], dtype=torch.float32)


def data(df, *tasks, splitter=None, name='f', **kwargs):
    flow = tasks[0] if isinstance(tasks[0], Flow) else Flow(name, *tasks)
    block = DataBlock(blocks=(TransformBlock, flow), get_x=inputs, splitter=splitter or RandomSplitter(0.3, seed=0))
    return block.dataloaders(df, **dict(dict(bs=8, device='cpu'), **kwargs))


def silent(*_):
    "Logs nothing"


def learner(dls, cbs=(), metrics=None, **kwargs):
    "A stock `Learner`, silent"
    torch.manual_seed(0)
    metrics = dls.flow.metrics() if metrics is None else metrics
    learn = Learner(dls, nn.Linear(2, dls.c), metrics=metrics, cbs=list(cbs), **dict(dict(opt_func=SGD), **kwargs))
    if hasattr(learn, 'progress'):
        learn.remove_cb(learn.progress)
    learn.logger = silent
    return learn


def weights(learn):
    return torch.cat([p.detach().flatten().clone() for p in learn.model.parameters()])


def refused(learn, *args, match, **kwargs):
    "A `FlowError` before any weight has moved"
    before = weights(learn)
    with pytest.raises(FlowError, match=match):
        learn.fit(*args, **kwargs)
    assert torch.equal(before, weights(learn))


def told(call):
    "The texts of the library's own warnings"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        call()
    return [str(w.message) for w in seen if issubclass(w.category, FlowWarning)]


# ---- trackers
# ----------------------------------------------------------------------------------------------------------------
FLOW = lambda: (
    BinaryBlock('there'),
    SingleLabelBlock('kind'),
    UnboundedRegressionBlock('mass'),
    OrdinalBlock('stars'),
    CountBlock('n'),
    MultiLabelBlock('marks'),
    KeypointsBlock('at', cols=['px', 'py'], points=['p']),
)
LESS = {
    'mass.mae',
    'mass.rmse',
    'stars.mae',
    'n.mae',
    'n.rmse',
    'n.deviance',
    'at.mae',
    'at.rmse',
    'train_loss',
    'valid_loss',
}


def test_each_score_is_watched_the_right_way_round():
    "Of errors, deviances and losses less is better, of all else more: written out here by hand."
    dls = data(table(), *FLOW()[:-1])
    learn = learner(dls, metrics=dls.flow.metrics('all'))
    names = ['train_loss', 'valid_loss', *(m.name for m in learn.metrics)]
    assert len(names) > 25
    cbs = [TrackerCallback(monitor=n, min_delta=0.1) for n in names]
    for i, cb in enumerate(cbs):
        learn.add_cb(cb)
    learn.fit(1, 0.0)
    for name, cb in zip(names, cbs):
        assert cb.comp is (np.less if name in LESS else np.greater), name
        assert cb.min_delta == (-0.1 if name in LESS else 0.1), name
    learn.fit(1, 0.0)  # and it stays so
    assert all(cb.comp is (np.less if n in LESS else np.greater) for n, cb in zip(names, cbs))


@pytest.mark.parametrize('at_construction', [False, True])
def test_the_best_epoch_is_kept(tmp_path, at_construction):
    df = table(60)
    dls = data(df, UnboundedRegressionBlock('mass'))
    save = SaveModelCallback(monitor='mass.mae')
    learn = learner(dls, cbs=[save] if at_construction else [], path=tmp_path)
    learn.fit(4, 0.1, cbs=[] if at_construction else save)
    maes = [v[2] for v in learn.recorder.values]
    ds, preds = dls.valid_ds, learn.get_preds()[0]
    block = dls.flow.tasks['mass']
    own = np.mean(
        [abs(block.lo + block.span * float(p) - float(df.mass[i])) for p, i in zip(preds[:, 0], ds.splits[1])]
    )
    assert maes[0] > min(maes) and own == pytest.approx(min(maes), rel=1e-4)


def test_plateaus_and_stops_go_by_the_falling_error():
    dls = data(table(60), UnboundedRegressionBlock('mass'))
    learn = learner(dls)
    learn.fit(
        4,
        0.05,
        cbs=[EarlyStoppingCallback(monitor='mass.mae', patience=1), ReduceLROnPlateau(monitor='mass.mae', patience=1)],
    )
    maes = [v[2] for v in learn.recorder.values]
    assert len(maes) == 4 and np.all(np.diff(maes) < 0) and learn.opt.hypers[-1]['lr'] == 0.05


def test_a_given_comp_stays():
    dls = data(table(), UnboundedRegressionBlock('mass'), BinaryBlock('there'))
    learn = learner(dls)
    cb = EarlyStoppingCallback(monitor='mass.mae', comp=np.greater, patience=9)
    seen = told(lambda: learn.fit(1, 0.1, cbs=cb))
    assert cb.comp is np.greater and len(seen) == 1 and 'comp=np.less' in seen[0] and 'mass.mae' in seen[0]
    right = EarlyStoppingCallback(monitor='mass.mae', comp=np.less, patience=9)
    assert told(lambda: learn.fit(1, 0.1, cbs=right)) == [] and right.comp is np.less
    other = EarlyStoppingCallback(monitor='there.accuracy', comp=np.less)
    assert 'more is better' in told(lambda: learn.fit(1, 0.1, cbs=other))[0] and other.comp is np.less


ZOO = lambda: Flow(
    'zoo', Flow('cage', BinaryBlock('there'), SingleLabelBlock('kind')), UnboundedRegressionBlock('mass')
)


@pytest.mark.parametrize(
    'short, full',
    [
        ('kind.accuracy', 'cage.kind.accuracy'),
        ('cage.kind.accuracy', 'cage.kind.accuracy'),
        ('kind.acc', 'cage.kind.accuracy'),
        ('mae', 'mass.mae'),
        ('mean_absolute_error', 'mass.mae'),
        ('valid_loss', 'valid_loss'),
    ],
)
def test_short_names(short, full):
    learn = learner(data(table(), ZOO()))
    cb = TrackerCallback(monitor=short)
    learn.fit(1, 0.1, cbs=cb)
    assert cb.monitor == full and cb.best == learn.recorder.values[-1][learn.recorder.metric_names[1:].index(full)]


@pytest.mark.parametrize('kind', TRACKERS)
@pytest.mark.parametrize(
    'name, match',
    [
        ('kind_accuracy', "did you mean 'cage.kind.accuracy'"),
        ('accuracy', 'cage.there.accuracy.*cage.kind.accuracy'),
        ('mass.mea', 'mass.mae'),
        ('kind.f1_score', r"flow\.metrics\('f1_score'\)"),
        ('time', 'no such score'),
        ('nonsense', 'cage.kind.accuracy'),
    ],
)
def test_wrong_names(kind, name, match):
    refused(learner(data(table(), ZOO())), 1, 0.1, cbs=kind(monitor=name), match=match)


def test_names_with_metrics_of_training_rows():
    learn = learner(data(table(), ZOO()))
    learn.recorder.train_metrics = True
    cb, own = TrackerCallback(monitor='mass.mae'), TrackerCallback(monitor='train_mass.mae')
    learn.fit(1, 0.1, cbs=[cb, own])
    assert cb.monitor == 'valid_mass.mae' and own.monitor == 'train_mass.mae' and cb.comp is own.comp is np.less
    names = list(learn.recorder.metric_names[1:])
    assert cb.best == learn.recorder.values[-1][names.index('valid_mass.mae')]


def half(df, bad):
    "Rows 0 to 9 for validation, changed by `bad`"
    df = df.astype(dict(kind=object, stars=object, n=object))
    for col, value in bad.items():
        df.loc[:9, col] = value
    return df


@pytest.mark.parametrize(
    'name, bad, always',
    [
        ('kind.accuracy', dict(kind=None), True),
        ('mass.mae', dict(mass=np.nan), True),
        ('marks.p.f1_score', dict(marks=None), True),
        ('there.roc_auc', dict(there=1.0), True),
        ('there.accuracy', dict(there=1.0), False),
        ('mass.r2', dict(mass=3.0), True),
        ('mass.mae', dict(mass=3.0), False),
        ('kind.accuracy', dict(kind='u'), False),
        ('marks.roc_auc', dict(marks='p'), True),
        ('kind.accuracy', {}, False),
    ],
)
@pytest.mark.parametrize('kind', TRACKERS[:3])
def test_what_is_always_nan(kind, name, bad, always, tmp_path):
    "Told beforehand, and only where it is so: the training itself is asked"
    df = half(table(), bad)
    dls = data(df, *FLOW()[:-1], splitter=IndexSplitter(range(10)))
    metrics = dls.flow.metrics(name.rpartition('.')[2], by_label='.p.' in name)
    plain = learner(dls, metrics=metrics)
    plain.fit(2, 0.01)
    at = list(plain.recorder.metric_names[1:]).index(name)
    assert np.isnan([v[at] for v in plain.recorder.values]).all() == always
    learn = learner(dls, metrics=metrics, path=tmp_path)
    if always:
        refused(learn, 2, 0.01, cbs=kind(monitor=name), match=f'{name}.*NaN in every epoch')
    else:
        learn.fit(2, 0.01, cbs=kind(monitor=name))


def test_a_table_whose_validation_rows_give_no_score():
    df = half(table(), dict(kind=None))
    dls = ConditionalTabularDataLoaders.from_df(
        df,
        Flow('f', SingleLabelBlock('kind'), BinaryBlock('there')),
        cat_names=[],
        cont_names=['x0', 'x1'],
        valid_idx=list(range(10)),
        bs=8,
    )
    learn = conditional_tabular_learner(dls, [4])
    refused(learn, 1, cbs=SaveModelCallback(monitor='kind.accuracy'), match="kind.accuracy.*NaN in every epoch")


@pytest.mark.parametrize('name', ['valid_loss', 'there.accuracy'])
def test_no_validation_rows(name, tmp_path):
    dls = data(table(), BinaryBlock('there'), splitter=IndexSplitter([]))
    refused(learner(dls), 1, 0.1, cbs=SaveModelCallback(monitor=name), match='no validation rows')
    learner(dls, path=tmp_path).fit(2, 0.1, cbs=SaveModelCallback(monitor='train_loss'))
    every = learner(dls, path=tmp_path)
    every.fit(2, 0.1, cbs=SaveModelCallback(monitor=name, every_epoch=True, fname='e'))  # it looks at no score
    assert (tmp_path / 'models' / 'e_1.pth').exists()


def test_lr_find_with_trackers():
    df = half(table(), dict(kind=None))
    learn = learner(
        data(df, *FLOW()[:2], splitter=IndexSplitter(range(10))), cbs=[TrackerCallback(monitor='kind.accuracy')]
    )
    learn.lr_find(num_it=5, show_plot=False)
    refused(learn, 1, 0.1, match='kind.accuracy')


# ---- metrics
# -----------------------------------------------------------------------------------------------------------------
FOREIGN = dict(
    accuracy=accuracy,
    error_rate=error_rate,
    accuracy_multi=accuracy_multi,
    top_k=top_k_accuracy,
    part=partial(accuracy_multi, thresh=0.3),
    twice=partial(partial(accuracy, axis=1)),
    f1=F1Score(),
    not_called=F1Score,
    auc=RocAucBinary(),
    r2=R2Score(),
    dice=Dice(),
    dice_class=Dice,
    rmse=rmse,
    mae=mae,
    mse=mse,
    perplexity=perplexity,
    searched=optim_metric(accuracy_multi, 'thresh', (0, 1)),
    torch=F.mse_loss,
    module=nn.MSELoss(),
    loss=CrossEntropyLossFlat(),
    sklearn=f1_score,
    wrapped=AvgMetric(accuracy),
    flat=AccumMetric(lambda p, t: 0.0),
    sklearn_not_flat=AccumMetric(f1_score, flatten=False),
    word='accuracy',
)


@pytest.mark.parametrize('name', FOREIGN)
def test_metrics_of_one_target(name):
    dls = data(table(), *FLOW()[:3])
    refused(
        learner(dls, metrics=[*dls.flow.metrics(), FOREIGN[name]]), 1, 0.1, match=r'metric.*flow\.metrics\(.*accuracy'
    )
    if name != 'word':  # which `equip` takes
        with pytest.raises(FlowError, match=r'flow\.metrics'):
            equip(learner(dls), metrics=FOREIGN[name])


def share(logits, y, scale=1.0):
    "Of logits and packed targets"
    assert y.shape[1] == 2
    return y[:, 1].float().mean() * scale


class Mine(AvgMetric):
    @property
    def name(self):
        return 'mine'


class Counted(Metric):
    n = 0

    def reset(self):
        self.n = 0

    def accumulate(self, learn):
        self.n += len(learn.y)

    @property
    def value(self):
        return self.n


def test_metrics_of_ones_own():
    dls = data(table(), *FLOW()[:3])
    own = [
        share,
        partial(share, scale=2.0),
        lambda p, y: p.mean(),
        Mine(share),
        Counted(),
        AccumMetric(lambda p, t: float(t[:, 1].mean()), flatten=False, name='acc'),
    ]
    for learn in (learner(dls, metrics=own), equip(learner(dls), metrics=[*own, 'accuracy'], tune=None)):
        learn.logger = silent
        learn.fit(1, 0.1)
        row = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
        assert row['share'] in (1.0, 2.0) and row['counted'] == len(dls.valid_ds) and row['acc'] == pytest.approx(1.0)


class LossWithParts(nn.Module):
    "A loss of the user's own that keeps a value for `LossMetric`"

    def __init__(self, loss):
        super().__init__()
        self.loss, self.reduction = loss, 'mean'

    def forward(self, pred, y):
        self.part = pred.pow(2).mean()
        return self.loss(pred, y)


def test_a_value_that_the_loss_keeps():
    dls = data(table(), *FLOW()[:3])
    learn = learner(dls, metrics=LossMetric('part'), loss_func=LossWithParts(dls.loss_func))
    learn.fit(1, 0.1)
    assert learn.recorder.values[-1][-1] > 0


# ---- small tables
# ------------------------------------------------------------------------------------------------------------
def by_hand(df, **kwargs):
    dls = data(df, BinaryBlock('there'), **kwargs)
    train = TfmdDL(dls.train_ds, bs=64, shuffle=True, drop_last=True)
    return DataLoaders(train, dls.valid, device='cpu')


def as_table_rows(df, **kwargs):
    return ConditionalTabularDataLoaders.from_df(
        df, BinaryBlock('there'), cat_names=[], cont_names=['x0', 'x1'], valid_pct=0.3, seed=0, **kwargs
    )


@pytest.mark.parametrize('n', [4, 10, 60])
@pytest.mark.parametrize(
    'make',
    [
        lambda df: data(df, BinaryBlock('there'), bs=64),
        lambda df: data(df, BinaryBlock('there'), bs=64, drop_last=True),
        lambda df: data(df, BinaryBlock('there'), bs=64).balanced('there', seed=0),
        by_hand,
    ],
    ids=['block', 'drop_last', 'balanced', 'by_hand'],
)
def test_a_small_table_is_trained_on(n, make):
    "All rows of the only batch, each once an epoch"
    df = table(n)
    df['there'] = [0.0, 1.0] * (n // 2)
    dls = make(df)
    learn = learner(dls, metrics=[])
    seen = []

    class Rows(Callback):
        def before_batch(self):
            if self.training:
                seen.append(len(self.y))

    before = weights(learn)
    learn.fit(2, 0.1, cbs=Rows())
    assert seen == [len(dls.train_ds)] * 2 and (weights(learn) != before).any()


@pytest.mark.parametrize('n', [4, 40])
def test_a_small_table_of_numbers(n):
    learn = conditional_tabular_learner(as_table_rows(table(n)), [4])
    before = weights(learn)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.1)
        learn.lr_find(num_it=30, show_plot=False)
    assert (weights(learn) != before).any()


def test_large_tables_drop_their_last_batch_as_ever():
    dls = data(table(60), BinaryBlock('there'), bs=8)
    assert dls.train.drop_last and len(dls.train) == len(dls.train_ds) // 8
    even = data(table(60), BinaryBlock('there'), bs=len(dls.train_ds))
    assert even.train.drop_last and len(even.train) == 1


def test_no_training_rows():
    learn = learner(data(table(10), BinaryBlock('there')))
    learn.dls = learn.dls.new_empty()  # as an exported learner has them
    refused(learn, 1, 0.1, match='no training rows')
    learn.fit(0)


@pytest.mark.parametrize(
    'n, bs, drop_last, warns', [(9, 8, False, True), (9, 8, True, False), (10, 8, False, False), (1, 8, True, True)]
)
def test_one_row_alone_and_batch_norm(n, bs, drop_last, warns):
    dls = data(table(n + 4), BinaryBlock('there'), splitter=IndexSplitter(range(4)), bs=bs, drop_last=drop_last)
    learn = learner(dls, metrics=[])
    assert told(lambda: learn.fit(1, 0.1)) == []
    learn.model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, dls.c))
    learn.opt = None

    def fit():
        try:
            learn.fit(1, 0.1)
        except ValueError as e:
            assert 'more than 1 value per channel' in str(e)

    assert bool([t for t in told(fit) if 'batch norm' in t and ('bs=' in t)]) == warns


class Skip(Callback):
    def before_batch(self):
        if self.training:
            raise CancelBatchException


class SkipStep(Callback):
    def before_step(self):
        raise CancelBatchException


def tuned(n=200):
    "A learner with a `ThresholdSearch` that would like another threshold than .5"
    df = table(n)
    df['there'] = (df.x0 > 1) * 1.0
    learn = equip(learner(data(df, BinaryBlock('there'), bs=8)), tune='f1_score')
    learn.logger = silent
    with torch.no_grad():
        learn.model.weight.copy_(torch.tensor([[1.0, 0.0]]))
        learn.model.bias.fill_(-3)
    return learn


@pytest.mark.parametrize(
    'fit',
    [
        lambda l: l.fit(0),
        lambda l: l.fit(1, 0.1, cbs=Skip()),
        lambda l: l.fit(1, 0.1, cbs=SkipStep()),
        lambda l: l.fit(2, 0.0, wd=0.0),
        lambda l: l.validate(),
        lambda l: l.get_preds(),
    ],
    ids=['no_epoch', 'no_batch', 'no_step', 'lr_0', 'validate', 'get_preds'],
)
def test_thresholds_stay_where_nothing_was_trained(fit):
    learn = tuned()
    fit(learn)
    assert learn.loss_func.thresholds['there'].tolist() == [0.5] and learn.threshold_search.result is None


def test_thresholds_move_after_a_training():
    learn = tuned()
    learn.fit(1, 1e-3)
    assert learn.loss_func.thresholds['there'].item() < 0.45


# ---- accumulated gradients
# ---------------------------------------------------------------------------------------------------
class Grab(Callback):
    "The gradient of the first step"

    order, seen = 99, None

    def before_step(self):
        if self.seen is None:
            self.seen = self.learn.model.weight.grad.clone()


def first_gradient(dls, *cbs):
    grab = Grab()
    learner(dls, cbs=[grab, *cbs], metrics=[]).fit(1, 0.0)
    return grab.seen


def accumulated(df, *tasks, n=16, bs=4):
    "Gradients of one batch and of accumulated small ones, and what was said"
    kwargs = dict(splitter=IndexSplitter([]), shuffle=False, drop_last=False)
    whole, res = first_gradient(data(df, *tasks, bs=n, **kwargs)), []
    seen = told(lambda: res.append(first_gradient(data(df, *tasks, bs=bs, **kwargs), GradientAccumulation(n))))
    return whole, res[0], seen


@pytest.mark.parametrize('bs', [2, 4, 8])
def test_accumulation_is_exact_where_all_rows_count(bs):
    df = table(16)
    df['marks'] = df.marks.where(df.marks != '', 'p')
    whole, small, seen = accumulated(
        df,
        BinaryBlock('there'),
        SingleLabelBlock('kind'),
        MultiLabelBlock('marks'),
        UnboundedRegressionBlock('mass'),
        bs=bs,
    )
    torch.testing.assert_close(small, whole, rtol=1e-4, atol=1e-6)
    assert seen == []


@pytest.mark.parametrize('what', ['blank', 'gated', 'weighted', 'labels'])
def test_accumulation_warns_where_it_is_off(what):
    df = table(16).assign(w=[1.0] * 8 + [5.0] * 8, q=1.0)
    there, kind = BinaryBlock('there'), SingleLabelBlock('kind')
    if what == 'blank':
        df.loc[[3, 4, 9, 11, 12], 'kind'] = None
    tasks = dict(
        blank=(there, kind),
        gated=(there, kind | there),
        weighted=(there, SingleLabelBlock('kind', weight_col='w')),
        labels=(there, MultiLabelBlock('marks')),
    )[what]
    if what == 'labels':
        df.loc[:8, 'marks'] = None
    whole, small, seen = accumulated(df, *tasks, bs=2)
    assert (small - whole).abs().max() > 0.05 * whole.abs().max()
    assert (
        len(seen) == 1
        and 'GradientAccumulation' in seen[0]
        and ('kind' in seen[0] or 'marks' in seen[0])
        and "'there'" not in seen[0]
    )


def test_accumulation_that_adds_nothing_up():
    df = table(16)
    df.loc[:7, 'kind'] = None
    _, _, seen = accumulated(df, BinaryBlock('there'), SingleLabelBlock('kind'), n=8, bs=8)
    assert seen == []


def test_accumulation_and_balance_from_gradients():
    dls = data(table(16), BinaryBlock('there'), UnboundedRegressionBlock('mass'), splitter=IndexSplitter([]), bs=4)

    def fit(balance):
        learn = learner(dls, metrics=[])
        learn.model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, dls.c))
        return told(lambda: equip(learn, tune=None, balance=balance).fit(1, 0.01, cbs=GradientAccumulation(16)))

    assert fit('static') == [] and any('balance=' in t and 'GradientAccumulation' in t for t in fit('mgda'))


# ---- labels that nobody told
# -------------------------------------------------------------------------------------------------
def untold_table(n=40):
    df = table(n)
    return df.assign(
        crack=[0.0, 1.0] * (n // 2),
        rust=np.nan,
        blank=np.nan,
        no_kind=pd.Series([None] * n, dtype=object),
        never=0.0,
        always=1.0,
    )


def eager(dls):
    "A network that says yes to everything"
    learn = learner(dls)
    with torch.no_grad():
        learn.model.bias.fill_(8)
    return learn


@pytest.mark.parametrize(
    'task, word',
    [
        (lambda: MultiLabelBlock('damage', cols=['crack', 'rust']), 'rust'),
        (lambda: MultiLabelBlock('marks', vocab=['p', 'q', 'z']), "'z'"),
        (lambda: BinaryBlock('blank'), 'blank'),
        (lambda: BinaryBlock('never'), 'never'),
        (lambda: BinaryBlock('always'), 'always'),
        (lambda: SingleLabelBlock('kind', vocab=['u', 'v', 'w', 'owl']), 'owl'),
        (lambda: SingleLabelBlock('no_kind', vocab=['a', 'b']), 'no_kind'),
        (lambda: OrdinalBlock('stars', vocab=[1, 2, 3, 4, 5, 77]), '77'),
    ],
)
def test_the_audit_and_the_set_up_name_it(task, word):
    df = untold_table()
    assert any(word in str(f) for f in Flow('f', task(), UnboundedRegressionBlock('mass')).audit(df).findings)
    assert any(word in t for t in told(lambda: data(df, task(), UnboundedRegressionBlock('mass'))))
    rows = told(
        lambda: ConditionalTabularDataLoaders.from_df(
            df, Flow('f', task(), UnboundedRegressionBlock('mass')), cat_names=[], cont_names=['x0', 'x1'], bs=8
        )
    )
    assert any(word in t for t in rows)


def test_nothing_is_said_of_what_is_told():
    assert told(lambda: data(table(60), *FLOW()[:-1])) == []


def test_an_untold_label_never_comes_out_without_a_word():
    df = untold_table()
    dls = data(df, MultiLabelBlock('damage', cols=['crack', 'rust']), BinaryBlock('blank'), BinaryBlock('there'))
    learn = equip(eager(dls))
    learn.logger = silent
    learn.fit(1, 1e-3)
    for predict in (
        lambda: learn.predict_df(df),
        lambda: learn.predict(df.iloc[0]),
        lambda: learn.get_preds(with_decoded=True),
        lambda: learn.explain(df[:2]),
    ):
        said = told(predict)
        assert said and all(
            "'rust' of 'damage', 'blank'" in t and "'crack'" not in t and "'there'" not in t for t in said
        )
    found = learn.search_thresholds()
    assert found[found.label == 'rust'].threshold.tolist() == [0.5]  # and no threshold is searched for it


def test_what_was_told_is_kept_in_a_file(tmp_path):
    df = untold_table()
    learn = learner(data(df, MultiLabelBlock('damage', cols=['crack', 'rust'])))
    learn.fit(1, 1e-3)
    learn.export(tmp_path / 'l.pkl')
    loaded = load_learner(tmp_path / 'l.pkl')
    assert any("'rust'" in t for t in told(lambda: loaded.predict(df.iloc[0])))


def test_an_untold_class_or_number_is_told_when_it_is_predicted():
    df = untold_table().assign(empty=np.nan)
    dls = data(
        df, SingleLabelBlock('no_kind', vocab=['a', 'b']), BinaryBlock('there'), UnboundedRegressionBlock('empty')
    )
    learn = learner(dls)
    learn.fit(1, 1e-3)
    said = told(lambda: learn.predict_df(df))
    assert len(said) == 1 and 'no_kind' in said[0] and 'empty' in said[0] and "'there'" not in said[0]
    told_all = learner(data(df, SingleLabelBlock('kind'), BinaryBlock('there')))
    assert told(lambda: told_all.predict_df(df)) == []


def test_data_without_any_label_leave_a_network_from_elsewhere_alone():
    df = untold_table()
    learn = eager(data(df.assign(there=np.nan), BinaryBlock('there'), SingleLabelBlock('no_kind', vocab=['a', 'b'])))
    assert learn.predict_df(df).there.all() and told(lambda: learn.predict_df(df)) == []


def test_a_label_that_another_table_tells():
    """Who goes on with a table that tells the label hears nothing of it; nor who goes on without, as the network
    has learnt it"""
    df = untold_table()
    full = df.assign(rust=[0.0, 1.0] * 20, blank=[0.0, 1.0] * 20)
    block = lambda: Flow(
        'f', MultiLabelBlock('damage', cols=['crack', 'rust']), BinaryBlock('blank'), BinaryBlock('there')
    )

    def after(*tables):
        learn = eager(data(tables[0], block()))
        for t in tables[1:]:
            learn.change_flow(block(), df=t)
        return learn.dls.flow.untold

    assert after(df) == dict(damage=('rust',), blank=()) and after(full) == {}
    assert after(df, full) == {} and after(full, df) == {} and after(df, df) == dict(damage=('rust',), blank=())
    assert after(df, df.assign(crack=np.nan)) == dict(damage=('rust',), blank=())
