"""Where networks start: in eval mode, over all training rows, each task loses what its trivial predictor loses. What
that is comes from somewhere else: scikit-learn's log loss of the prior, the errors of its dummy predictors, and a
search over constants that knows only the loss"""

import tempfile
import numpy as np, pandas as pd, pytest, torch
from fastai.tabular.all import Categorify, IndexSplitter, Normalize
from fastai.text.all import AWD_LSTM, awd_lstm_clas_config
from fastai.vision.all import (
    DataBlock,
    DataLoaders,
    ImageBlock,
    Learner,
    PILImage,
    Resize,
    ResizeMethod,
    aug_transforms,
    load_learner,
    nn,
    set_seed,
    vision_learner,
)
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.metrics import log_loss, mean_absolute_error, mean_squared_error
from fastai_condmtl.learn.last_layers import last_layers
from fastai_condmtl.tabular.all import *
from fastai_condmtl.text.all import *
from fastai_condmtl.vision.all import *


def first_losses(learn):
    "Each task's masked mean on all training rows, in eval mode, not divided by its unit"
    dl = learn.dls.train.new(shuffle=False, drop_last=False, num_workers=0)
    with learn.no_bar(), torch.no_grad():
        batches = [[part.as_subclass(torch.Tensor) for part in batch] for batch in dl]
        model = learn.model.eval()
        logits = torch.cat([out_of(model(*batch[: dl.n_inp])) for batch in batches]).cpu()
    y = torch.cat([batch[-1].cpu() for batch in batches])
    losses = learn.loss_func.cpu().per_task(logits, y) * learn.loss_func.units()
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
        UnboundedRegressionBlock('width', loss='mse'),
        BoundedRegressionBlock('share', y_range=(0, 1)),
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
    return dict(zip(flow.paths, (least * loss.units()).tolist()))


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
    assert found == pytest.approx(least, rel=0.01)


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
    vision_frozen=lambda df: frozen(vision(picture_dls(df, all_kinds_flow()))),
    heads=lambda df: vision(
        picture_dls(df, all_kinds_flow(uses=True, features='own', hidden=8)), branches=dict(own=16)
    ),
    text=lambda df: conditional_text_learner(
        text_dls(df, all_kinds_flow()), AWD_LSTM, pretrained=False, config=SMALL_AWD, drop_mult=0.2
    ),
    transformer=lambda df: conditional_lm_learner(text_dls(df, all_kinds_flow()), d_model=16, n_layers=1, n_heads=2),
    picture_and_row=lambda df: conditional_image_tabular_learner(
        joined_dls(df, all_kinds_flow()), arch, n_image=10, pretrained=False, normalize=False, cut=-3
    ),
    your_own_network=lambda df: Learner(picture_dls(df, all_kinds_flow()), OwnNet(all_kinds_flow())).start_at_trivial(),
    heads_frozen=lambda df: frozen(
        vision(picture_dls(df, all_kinds_flow(uses=True, features='own', hidden=8)), branches=dict(own=16))
    ),
    text_frozen=lambda df: frozen(
        conditional_text_learner(
            text_dls(df, all_kinds_flow()), AWD_LSTM, pretrained=False, config=SMALL_AWD, drop_mult=0.2
        )
    ),
    encoder_frozen=lambda df: conditional_transformer_learner(encoder_dls(df, all_kinds_flow())),
    encoder_unfrozen=lambda df: unfrozen(conditional_transformer_learner(encoder_dls(df, all_kinds_flow()))),
    encoder_heads=lambda df: conditional_transformer_learner(
        encoder_dls(df, all_kinds_flow(uses=True, features='own', hidden=8)), branches=dict(own=16)
    ),
    # flows that grow: what is new starts, what was there stays where it started
    vision_changed=lambda df: changed(vision(picture_dls(df, gate_alone())), all_kinds_flow()),
    heads_changed=lambda df: changed(
        vision(picture_dls(df, gate_and_branch()), branches=dict(own=16)),
        all_kinds_flow(uses=True, features='own', hidden=8),
    ),
    tabular_changed=lambda df: changed(
        conditional_tabular_learner(tabular_dls(df, gate_alone(), valid_idx=sides(df))),
        tabular_dls(df, all_kinds_flow(), valid_idx=sides(df)),
    ),
    encoder_changed=lambda df: changed(
        conditional_transformer_learner(encoder_dls(df, gate_alone())), all_kinds_flow()
    ),
)
SMALL_AWD = awd_lstm_clas_config | dict(emb_sz=24, n_hid=48, n_layers=1)


class OwnNet(nn.Module):
    "A network of a kind that nobody knows"

    def __init__(self, flow):
        super().__init__()
        self.trunk, self.pool = small_net(), nn.AdaptiveAvgPool2d(1)
        self.unused = nn.Linear(32, 10)
        self.last = nn.Linear(32, flow.bind(all_kinds_table()).c)

    def forward(self, x):
        return self.last(self.pool(self.trunk(x)).flatten(1))


def frozen(learn):
    learn.freeze()
    learn.start_at_trivial()  # the optimizer is there
    assert learn.opt is None or all(p is not None for p in learn.opt.all_params())
    return learn


def unfrozen(learn):
    learn.unfreeze()
    return learn


def gate_alone():
    return Flow('all', BinaryBlock('gate'))


def gate_and_branch():
    return Flow('all', BinaryBlock('gate'), BinaryBlock('dropped', 'yes', features='own'))


def changed(learn, flow, **kwargs):
    "The learner goes on with another flow"
    learn.change_flow(flow, **kwargs)
    return learn


def encoder_dls(df, flow):
    "Texts for a tiny encoder of `transformers`"
    pytest.importorskip('transformers', reason='the extra transformers is not installed')
    from fastai_condmtl.datasets.tiny_encoder import save_tiny_encoder

    df = with_texts(df)
    encoder = save_tiny_encoder(tempfile.mkdtemp(), df.text)
    return ConditionalTransformerDataLoaders.from_df(df, flow, encoder, valid_col='valid', bs=64, num_workers=0)


def with_texts(df, words=40):
    "Texts of random words, some of which are common"
    rng = np.random.default_rng(3)
    weights = 1 / np.arange(1, words + 1)
    vocab = [f'word{chr(97 + i % 26)}{i}' for i in range(words)]
    texts = [' '.join(rng.choice(vocab, rng.integers(8, 12), p=weights / weights.sum())) for _ in range(len(df))]
    return df.assign(text=texts, valid=[i % 5 == 0 for i in range(len(df))])


def text_dls(df, flow, words=40, **kwargs):
    df = with_texts(df, words)
    return ConditionalTextDataLoaders.from_df(
        df, flow, text_col='text', valid_col='valid', bs=64, num_workers=0, min_freq=1, **kwargs
    )


def joined_dls(df, flow):
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 255, (len(df), 32, 32, 3), dtype=np.uint8)
    block = DataBlock(
        blocks=(ImageBlock, TabularRowBlock(['colour'], ['x0', 'x1']), flow),
        n_inp=2,
        getters=[lambda row: PILImage.create(pictures[int(row['picture'])]), noop, noop],
        splitter=IndexSplitter(sides(df)),
    )
    return block.dataloaders(df.assign(picture=range(len(df))), bs=64, num_workers=0)


def noop(x):
    return x


def sides(df):
    return list(range(0, len(df), 5))


@pytest.mark.parametrize('name', VARIANTS)
def test_all_kinds_start_at_the_least_loss(name, least):
    learn = VARIANTS[name](all_kinds_table())
    assert_within_a_percent(first_losses(learn), least)


def test_trained_on_the_whole_space():
    "A child's answer and its parents' in one probability: its logit is searched with the parents at their priors"
    df, gate = all_kinds_table(), BinaryBlock('gate')
    for how in (True, 'detach', 'both'):
        flow = Flow('f', gate, BinaryBlock('yes', whole_space=how) | gate)
        dls = tabular_dls(df, flow, valid_idx=sides(df))
        learn = conditional_tabular_learner(dls)
        y, loss = training_targets(dls), learn.loss_func
        prior = float(y[:, 0, 0].mean())
        logits = torch.tensor(np.log(prior / (1 - prior))).expand(len(y), 2).clone()
        least = 9.0
        for logit in np.linspace(-4, 4, 801):
            logits[:, dls.flow.slices['yes'].logits.start] = float(logit)
            least = min(least, float(loss.per_task(logits, y)[1]))
        assert first_losses(learn)['yes'] == pytest.approx(least, rel=0.01)


def test_masked_words_start_at_how_common_they_are():
    "The bias alone: the decoder's weight is the embedding of words"
    df = all_kinds_table()
    flow = Flow(
        'f', BinaryBlock('yes'), MaskedLMBlock('words', n_masks=4), UnboundedRegressionBlock('width', loss='mse')
    )
    dls = text_dls(df, flow)
    set_seed(0)
    learn = conditional_lm_learner(dls, d_model=16, n_layers=1, n_heads=2)
    set_seed(0)
    plain = conditional_lm_learner(dls, d_model=16, n_layers=1, n_heads=2, start=None)
    started, stock = first_losses(learn), first_losses(plain)
    y = training_targets(dls)[:, :, dls.flow.slices['words'].targets]
    words = y[:, 0][y[:, 1] > 0].long()
    shares = words.bincount(minlength=len(dls.vocab)).double() / len(words)
    unigram = float(-(shares * shares.clamp(min=1e-9).log()).sum())
    print(f'words: unigram {unigram:.3f}, started {started["words"]:.3f}, stock {stock["words"]:.3f}')
    assert started['words'] < stock['words'] - 0.2
    assert torch.equal(learn.model[0].emb.weight, plain.model[0].emb.weight)
    bias = learn.model[1].decoder.bias.detach()
    counted = torch.tensor(dls.flow.constants['words'])
    asked = torch.from_numpy(dls.flow.tasks['words'].asked)
    expected = (counted + 0.5).double().log()[asked]
    assert torch.allclose(bias[asked].double() - bias[asked].double().mean(), expected - expected.mean(), atol=0.05)
    assert started['yes'] < stock['yes'] and started['width'] == pytest.approx(1, rel=0.01)


# Points and boxes


def shapes_table(n=60, seed=0):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame(dict(yes=rng.random(n) < 0.3, picture=range(n)))
    df[['px', 'qx', 'x1']] = rng.uniform(2, 16, (n, 3))
    df[['py', 'qy', 'y1']] = rng.uniform(2, 12, (n, 3))
    df[['w', 'h']] = rng.uniform(3, 8, (n, 2))
    df.loc[rng.random(n) < 0.2, ['px', 'py']] = None
    return df


def shapes_dls(df, **kwargs):
    flow = Flow(
        'shapes',
        BinaryBlock('yes'),
        *(KeypointsBlock(f'eyes_{loss}', ['px', 'py', 'qx', 'qy'], loss=loss) for loss in ('mse', 'l1')),
        BoxBlock('box', ['x1', 'y1', 'w', 'h']),
    )
    sizes = [(40, 20), (20, 40), (30, 30)]
    block = DataBlock(
        blocks=(ImageBlock, flow),
        get_x=lambda row: PILImage.create(np.zeros((*sizes[int(row['picture']) % 3][::-1], 3), dtype=np.uint8)),
        splitter=IndexSplitter(sides(df)),
        item_tfms=Resize(32, method=ResizeMethod.Squish),
        **kwargs,
    )
    return block.dataloaders(df, bs=16, num_workers=0), sizes


@pytest.mark.parametrize('augment', [False, True])
def test_points_and_boxes_start_at_the_mean_shape(augment):
    "Pictures of three sizes, squashed; the shares of width and height are worked out by hand"
    df = shapes_table()
    dls, sizes = shapes_dls(df, batch_tfms=aug_transforms(size=32, max_rotate=30) if augment else None)
    learn = vision(dls)
    train = df[df.index % 5 > 0]
    size = np.array([sizes[i % 3] for i in train.picture])
    to_scale = lambda cols: train[cols].astype(float) / size[:, [0, 1] * (len(cols) // 2)] * 2 - 1
    corners = train.assign(x2=train.x1 + train.w, y2=train.y1 + train.h)
    points = to_scale(['px', 'py', 'qx', 'qy'])
    box = corners[['x1', 'y1', 'x2', 'y2']] / size[:, [0, 1, 0, 1]] * 2 - 1
    by_row = lambda errors: errors.mean(axis=1).mean()
    expected = dict(
        eyes_mse=by_row((points - points.mean()) ** 2),
        eyes_l1=by_row((points - points.median()).abs()),
        box=by_row((box - box.median()).abs()),
        yes=log_loss(train.yes, [train.yes.mean()] * len(train)),
    )
    with torch.no_grad(), dls.train_ds.set_split_idx(1):
        dl = dls.valid.new(dls.train_ds, shuffle=False, drop_last=False)
        batches = [batch for batch in dl]
        logits = torch.cat([learn.model.eval()(x.as_subclass(torch.Tensor)) for x, _ in batches])
        losses = learn.loss_func.per_task(logits, torch.cat([y.as_subclass(torch.Tensor) for _, y in batches]))
        losses = losses * learn.loss_func.units()
    found = dict(zip(dls.flow.paths, losses.tolist()))
    assert found == pytest.approx(expected, rel=0.015)  # points and lines weigh alike where one of two is missing
    assert dls.flow.constants['box'] is not None  # the same reading


# What a user may ask for


def test_a_start_is_named_as_it_is_called():
    dls = tabular_dls(table(), small_flow())
    with pytest.raises(FlowError, match="start='zero' is not known.*trivial"):
        conditional_tabular_learner(dls, start='zero')


def test_equip_starts_nothing_and_start_at_trivial_does():
    dls = picture_dls(table(), small_flow())
    set_seed(0)
    learn = vision_learner(dls, arch, pretrained=False, normalize=False, cut=-3)
    before = {name: p.clone() for name, p in learn.model.state_dict().items()}
    equip(learn)
    assert all(torch.equal(p, before[name]) for name, p in learn.model.state_dict().items())
    assert learn.start_at_trivial() is learn
    after = learn.model.state_dict()
    assert set(after) - set(before) == {'1.8.bias'}
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert changed == {'1.8.weight'}
    assert torch.allclose(after['1.8.weight'], before['1.8.weight'] * 1e-3)


def test_weights_that_are_loaded_take_its_place(tmp_path):
    dls = picture_dls(table(), small_flow())
    learn = vision(dls, path=tmp_path)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    learn.save('trained')
    other = vision(dls, path=tmp_path).load('trained')
    assert all(torch.equal(a, b) for a, b in zip(learn.model.state_dict().values(), other.model.state_dict().values()))
    # from a head without a bias, as fastai makes it
    stock = vision(dls, start=None, path=tmp_path)
    stock.save('stock')
    other = vision(dls, path=tmp_path).load('stock')
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(other.model.eval()(x), stock.model.eval()(x))


def test_the_bias_trains_and_is_in_the_last_group():
    learn = vision(picture_dls(table(), small_flow()))
    learn.create_opt()
    bias = last_layers(learn.model, learn.dls.flow)[0].module.bias
    assert any(p is bias for p in learn.opt.param_lists[-1])
    before = bias.detach().clone()
    learn.freeze()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert not torch.equal(before, bias)


def test_a_head_that_ends_otherwise_is_left_alone():
    dls = picture_dls(table(), small_flow())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, dls.c), nn.Softplus())
    before = head[2].weight.detach().clone()
    with pytest.warns(FlowWarning, match=r'ends in Softplus.*nn.Linear\(..., dls.c\).*start=None'):
        vision(dls, custom_head=head, init=None)
    assert torch.equal(before, head[2].weight)


def test_a_loaded_learner_has_no_rows(tmp_path):
    learn = conditional_tabular_learner(tabular_dls(table(), small_flow()), path=tmp_path)
    learn.export('learner.pkl')
    loaded = load_learner(tmp_path / 'learner.pkl')
    with pytest.raises(FlowError, match='no training rows.*build it with its data'):
        loaded.start_at_trivial()


def test_labels_that_only_batches_tell():
    "Data sets without a table: up to 500 rows are read as batches"
    df = table()
    flow = small_flow().bind(df)
    y, x = flow.encode(df), torch.randn(len(df), 8)
    dls = DataLoaders.from_dsets(list(zip(x, y)), list(zip(x, y)), bs=64, num_workers=0)
    dls.flow, dls.c = flow, flow.c
    learn = Learner(dls, nn.Sequential(nn.Linear(8, flow.c)), loss_func=flow.loss_func).start_at_trivial()
    with torch.no_grad():
        losses = learn.loss_func.per_task(learn.model(x), y) * learn.loss_func.units()
    expected = by_sklearn(df, list(range(len(df))))
    assert dict(zip(flow.paths, losses.tolist())) == pytest.approx(expected, rel=0.01)


def test_no_row_counts_for_a_task():
    df = table().assign(never=None)
    flow = Flow('f', BinaryBlock('fault'), UnboundedRegressionBlock('never'), OrdinalBlock('kind', vocab=['a', 'b']))
    df['kind'] = None
    with pytest.warns(FlowWarning, match='never'):
        dls = tabular_dls(df, flow)
    bias = last_layers(conditional_tabular_learner(dls).model, dls.flow)[0].module.bias
    assert bias.isfinite().all() and bias[1:].abs().sum() == 0


# Another flow


def test_new_tasks_of_a_changed_flow_start_too():
    df = table()
    dls = picture_dls(df, Flow('parts', BinaryBlock('fault')))
    learn = vision(dls, start=None)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    x = torch.rand(4, 3, 32, 32)
    learn.model.eval()
    with torch.no_grad():
        before = learn.model(x)[:, 0]
    learn.change_flow(small_flow())
    flow = learn.dls.flow
    with torch.no_grad():
        now = learn.model.eval()(x)
    assert torch.allclose(now[:, flow.slices['fault'].logits.start], before, atol=1e-6)
    found = first_losses(learn)
    expected = by_sklearn(df, [i for i in range(len(df)) if i % 5])
    assert {k: found[k] for k in ('kind', 'width', 'share')} == pytest.approx(
        {k: expected[k] for k in ('kind', 'width', 'share')}, rel=0.01
    )
    stock = vision(picture_dls(df, Flow('parts', BinaryBlock('fault'))), start=None)
    stock.change_flow(small_flow(), start=None)
    assert last_layers(stock.model, stock.dls.flow)[0].module.bias is None


def test_a_new_class_starts_beside_the_old_ones():
    df = table()
    dls = picture_dls(df, Flow('f', SingleLabelBlock('kind', vocab=['often', 'rare', 'some'])))
    learn = vision(dls)
    kept = last_layers(learn.model, dls.flow)[0].module.bias.detach().clone()
    learn.change_flow(Flow('f', SingleLabelBlock('kind', vocab=['often', 'new', 'rare', 'some'])))
    bias = last_layers(learn.model, learn.dls.flow)[0].module.bias
    assert torch.equal(bias[[0, 2, 3]], kept)
    n_rows = int(training_targets(dls)[:, 1].sum())
    assert float(bias[1]) == pytest.approx(np.log(0.5 / (n_rows + 2)), abs=1e-3)


@pytest.mark.parametrize('kwargs', [{}, dict(label_smoothing=0.2), dict(loss='focal'), dict(class_weights='balanced')])
def test_classes_within_classes(kwargs):
    "A softmax among the sub-classes of each class"
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(x0=rng.normal(size=400), x1=0.0, colour='r'))
    df['sub'] = rng.choice(['a1', 'a2', 'a3', 'b1', 'b2'], 400, p=[0.4, 0.15, 0.05, 0.1, 0.3])
    df['main'] = df['sub'].str[0]
    main = SingleLabelBlock('main')
    flow = Flow('f', main, SingleLabelBlock('sub', within=main, **kwargs))
    dls = tabular_dls(df, flow, valid_idx=sides(df))
    least = best_losses(dls.flow, dls.flow.loss_func.clone(), training_targets(dls), n_starts=2)
    assert first_losses(conditional_tabular_learner(dls)) == pytest.approx(least, rel=0.01)
