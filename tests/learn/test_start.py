"""Where networks start: in eval mode, over all training rows, each task loses what its trivial predictor loses. What
that is comes from somewhere else: scikit-learn's log loss of the prior, the errors of its dummy predictors, and a
search over constants that knows only the loss"""

import numpy as np, pandas as pd, pytest, torch
from fastai.tabular.all import Categorify, IndexSplitter, Normalize
from fastai.vision.all import DataBlock, ImageBlock, PILImage, nn, set_seed
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.metrics import log_loss, mean_absolute_error, mean_squared_error
from fastai_condmtl.tabular.all import *
from fastai_condmtl.vision.all import *


def first_losses(learn):
    "Each task's masked mean on all training rows, in eval mode"
    dl = learn.dls.train.new(shuffle=False, drop_last=False, num_workers=0)
    with learn.no_bar(), torch.no_grad():
        x = [batch for batch in dl]
        model = learn.model.eval()
        logits = torch.cat([out_of(model(*(part for part in batch[: dl.n_inp]))) for batch in x]).cpu()
    y = torch.cat([batch[-1].as_subclass(torch.Tensor).cpu() for batch in x])
    losses = learn.loss_func.cpu().per_task(logits, y)
    return dict(zip(learn.dls.flow.paths, losses.tolist()))


def out_of(out):
    "Of text classifiers the first of three"
    return (out[0] if isinstance(out, tuple) else out).as_subclass(torch.Tensor)


def table(n=300, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    df = pd.DataFrame(dict(x0=x[:, 0], x1=x[:, 1], colour=rng.choice(list('rgb'), n)))
    df['fault'] = (rng.random(n) < 0.15).astype(object)
    df['kind'] = rng.choice(['rare', 'some', 'often'], n, p=[0.1, 0.3, 0.6])
    df['width'] = rng.gamma(2, 3, n)
    df['share'] = rng.beta(1, 5, n)
    df.loc[rng.random(n) < 0.2, 'kind'] = None
    return df


def small_flow():
    fault = BinaryBlock('fault')
    return Flow(
        'parts',
        fault,
        SingleLabelBlock('kind') | ~fault,
        UnboundedRegressionBlock('width'),
        BoundedRegressionBlock('share', y_range=(0, 1), loss='l1'),
    )


def tabular_dls(df, flow, **kwargs):
    dls_kw = dict(cat_names=['colour'], cont_names=['x0', 'x1'], procs=[Categorify, Normalize], bs=64)
    return ConditionalTabularDataLoaders.from_df(df, flow, **dls_kw, **kwargs)


def picture_dls(df, flow, **kwargs):
    "Random pictures of 32 by 32, read as arrays"
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 255, (len(df), 32, 32, 3), dtype=np.uint8)
    df = df.assign(picture=range(len(df)))
    block = DataBlock(
        blocks=(ImageBlock, flow),
        get_x=lambda row: PILImage.create(pictures[int(row['picture'])]),
        splitter=IndexSplitter(list(range(0, len(df), 5))),
    )
    return block.dataloaders(df, bs=64, num_workers=0, **kwargs)


def small_net(c_in=3, c=16):
    return nn.Sequential(nn.Conv2d(c_in, c, 3, 2, 1), nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 2 * c, 3, 2, 1))


def arch(pretrained=False, **kwargs):
    "A trunk of two layers, as `vision_learner` takes an architecture"
    return nn.Sequential(*small_net(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def vision(dls, **kwargs):
    return conditional_vision_learner(dls, arch, pretrained=False, normalize=False, cut=-3, **kwargs)


LEARNERS = dict(
    tabular=(tabular_dls, conditional_tabular_learner),
    vision=(picture_dls, vision),
)


def by_sklearn(df, train):
    "What trivial predictors lose, by scikit-learn"
    df, none = df.iloc[train], np.zeros(len(train))
    fault = df.fault.astype(int)
    kind = df.kind[(fault == 0) & df.kind.notna()]
    prior = lambda labels: log_loss(labels, DummyClassifier().fit(none[: len(labels)], labels).predict_proba(labels))
    mean, median = (
        DummyRegressor(strategy=how).fit(none, df[col]) for how, col in (('mean', 'width'), ('median', 'share'))
    )
    return dict(
        fault=prior(fault),
        kind=prior(kind),
        width=mean_squared_error(df.width, mean.predict(none)) / df.width.var(ddof=0),
        share=mean_absolute_error(df.share, median.predict(none)),
    )


@pytest.mark.parametrize('name', LEARNERS)
def test_first_losses_are_those_of_sklearn(name):
    df, (make_dls, make) = table(), LEARNERS[name]
    dls = make_dls(df, small_flow())
    train = dls.train_ds.items.index.tolist() if name == 'tabular' else [i for i in range(len(df)) if i % 5]
    expected = by_sklearn(df, train)
    found = first_losses(make(dls))
    assert found == pytest.approx({f'{path}': loss for path, loss in expected.items()}, rel=0.01)


@pytest.mark.parametrize('name', LEARNERS)
def test_without_a_start_losses_are_elsewhere(name):
    df, (make_dls, make) = table(), LEARNERS[name]
    dls = make_dls(df, small_flow())
    set_seed(0)
    started = first_losses(make(dls))
    set_seed(0)
    stock = first_losses(make(dls, start=None))
    assert sum(stock.values()) > 1.05 * sum(started.values())


# Every kind, against a search that knows only the loss


class Pinball(UnboundedRegressionBlock):
    "A kind that a user writes: the loss has no formula for its best constant"

    @property
    def family(self):
        return ('pinball',)

    def loss(self, logits, targets, weight=None):
        losses = torch.maximum(3 * (logits - targets), targets - logits)
        return losses if weight is None else (losses * weight).sum()


def all_kinds_table(n=400, seed=0):
    rng = np.random.default_rng(seed)
    df = table(n, seed)
    df['gate'] = (rng.random(n) < 0.7).astype(object)
    df['yes'] = (rng.random(n) < 0.1).astype(object)
    df['often'] = (rng.random(n) < 0.8).astype(object)
    df['opinion'] = rng.beta(1, 4, n)
    df['maybe'] = rng.choice([0, 1, -1], n, p=[0.6, 0.2, 0.2])
    df['tags'] = rng.choice(['p', 'p,q', 'q,r', ''], n, p=[0.5, 0.1, 0.1, 0.3])
    for j, p in enumerate((0.1, 0.4, 0.9)):
        df[f'label{j}'] = np.where(rng.random(n) < 0.3 * j, np.nan, rng.random(n) < p)
    df['temperature'] = rng.standard_t(2, n) * 3 + 10
    df['stars'] = rng.choice([1, 2, 3, 4, 5], n, p=[0.05, 0.1, 0.1, 0.25, 0.5])
    df['birds'] = rng.poisson(0.7, n)
    votes = rng.multinomial(12, [0.6, 0.3, 0.1], n)
    df[['smooth', 'disk', 'star']] = votes
    df['weight'] = rng.choice([0.0, 0.5, 3.0], n)
    for col in ('opinion', 'stars', 'birds', 'temperature', 'tags'):
        df[col] = df[col].astype(object).mask(rng.random(n) < 0.2)
    return df


def all_kinds_flow(uses=False, features=None, hidden=None):
    gate = BinaryBlock('gate')
    deep = dict(hidden=hidden) if hidden else {}
    reads = dict(uses=('rare', 'mse')) if uses else {}
    votes = ['smooth', 'disk', 'star']
    labels = ['label0', 'label1', 'label2']
    inner = Flow(
        'inner',
        BinaryBlock('rare', 'yes'),
        BinaryBlock('weighed', 'yes', pos_weight=4.0, **deep),
        BinaryBlock('balanced', 'often', pos_weight='balanced'),
        BinaryBlock('focal', 'yes', loss='focal', alpha=0.3, gamma=1.5),
        BinaryBlock('soft', 'opinion', soft=True),
        BinaryBlock('softfocal', 'opinion', soft=True, loss='focal'),
        BinaryBlock('uncertain', 'maybe', uncertain={-1: 0.4}),
        SingleLabelBlock('single', 'kind', **reads),
        SingleLabelBlock('smoothed', 'kind', label_smoothing=0.1, class_weights=[1.0, 2.0, 5.0], **deep),
        SingleLabelBlock('classfocal', 'kind', loss='focal', gamma=2.0, class_weights='balanced'),
        MultiLabelBlock('tags', **reads),
        MultiLabelBlock('masked', cols=labels, pos_weight=[1.0, 2.0, 3.0], features=features),
        MultiLabelBlock('maskedfocal', cols=labels, loss='focal'),
        *(BoundedRegressionBlock(loss, 'share', loss=loss) for loss in ('mse', 'l1', 'huber')),
        *(UnboundedRegressionBlock(f'u{loss}', 'temperature', loss=loss, **deep) for loss in ('mse', 'l1', 'huber')),
        Pinball('pinball', 'temperature'),
        OrdinalBlock('n_stars', 'stars', **reads, features=features),
        CountBlock('n_birds', 'birds'),
        VotesBlock('votes', cols=votes),
        VotesBlock('dirichlet', cols=votes, loss='dirichlet'),
    )
    weighed = Flow(
        'weighed_rows',
        BinaryBlock('is_yes', 'yes'),
        SingleLabelBlock('of_kind', 'kind'),
        UnboundedRegressionBlock('warm', 'temperature', loss='l1'),
        MultiLabelBlock('masked', cols=labels),
        CountBlock('n_birds', 'birds'),
        weight_col='weight',
    )
    return Flow('all', gate, inner | gate, weighed)


def best_losses(flow, loss, y, n_starts=4):
    "The least that each task can lose with the same logits on every row: the best of several searches"
    least = torch.full((len(flow.paths),), torch.inf, dtype=torch.float64)
    loss, y = loss.double(), y.double()
    for seed in range(n_starts):
        at = torch.randn(flow.c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * seed
        at.requires_grad_()
        opt = torch.optim.LBFGS([at], max_iter=300, line_search_fn='strong_wolfe')

        def closure():
            opt.zero_grad()
            losses = loss.per_task(at.expand(len(y), -1), y)
            total = losses.sum()
            total.backward()
            return total

        opt.step(closure)
        # kinks: one logit after the other, in ever smaller steps
        best = at.detach().clone()
        lowest = loss.per_task(best.expand(len(y), -1), y).detach()
        for step in np.geomspace(0.5, 1e-3, 12):
            for column in range(flow.c):
                for sign in (1, -1):
                    moved = best.clone()
                    moved[column] += sign * step
                    losses = loss.per_task(moved.expand(len(y), -1), y).detach()
                    if losses.sum() < lowest.sum():
                        best, lowest = moved, losses
        least = torch.minimum(least, lowest)
    return dict(zip(flow.paths, least.tolist()))


def training_targets(dls):
    dl = dls.train.new(shuffle=False, drop_last=False, num_workers=0)
    y = torch.cat([batch[-1].as_subclass(torch.Tensor).cpu() for batch in dl])
    return y.reshape(len(y), 2, -1)


@pytest.fixture(scope='module')
def least():
    "The least losses of all kinds, of the training rows of `tabular_dls`"
    df = all_kinds_table()
    dls = tabular_dls(df, all_kinds_flow(), valid_idx=list(range(0, len(df), 5)))
    y = training_targets(dls)
    rows = torch.from_numpy(np.lexsort(y.reshape(len(y), -1).numpy().T))
    return best_losses(dls.flow, dls.flow.loss_func.clone(), y[rows])


def assert_within_a_percent(found, least):
    wrong = {path: (loss, least[path]) for path, loss in found.items() if not abs(loss - least[path]) <= 0.01 * least[path]}
    assert not wrong


VARIANTS = dict(
    tabular=lambda df: conditional_tabular_learner(tabular_dls(df, all_kinds_flow(), valid_idx=sides(df))),
    tabular_bn_final=lambda df: conditional_tabular_learner(
        tabular_dls(df, all_kinds_flow(), valid_idx=sides(df)), config=dict(bn_final=True)
    ),
    tabular_lin_first=lambda df: conditional_tabular_learner(
        tabular_dls(df, all_kinds_flow(), valid_idx=sides(df)), config=dict(lin_first=False, bn_final=True)
    ),
    vision=lambda df: vision(picture_dls(df, all_kinds_flow())),
    vision_bn_final=lambda df: vision(picture_dls(df, all_kinds_flow()), bn_final=True),
    vision_lin_first=lambda df: vision(picture_dls(df, all_kinds_flow()), lin_first=True),
    heads=lambda df: vision(
        picture_dls(df, all_kinds_flow(uses=True, features='own', hidden=8)), branches=dict(own=16)
    ),
)


def sides(df):
    return list(range(0, len(df), 5))


@pytest.mark.parametrize('name', VARIANTS)
def test_all_kinds_start_at_the_least_loss(name, least):
    learn = VARIANTS[name](all_kinds_table())
    assert_within_a_percent(first_losses(learn), least)
