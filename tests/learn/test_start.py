"""Where networks start: in eval mode, over all training rows, each task loses what its trivial predictor loses. What
that is comes from somewhere else: scikit-learn's log loss of the prior, the errors of its dummy predictors, and a search
over constants that knows only the loss"""

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
