"""What tests/callback/test_distributed.py runs: as a script one of several gloo processes on CPU, imported the
one process that they are compared with."""

import sys, warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest import mock
import numpy as np, pandas as pd, torch
from torch import nn
from fastai.basics import SGD, DataBlock, IndexSplitter, Learner, TransformBlock, set_seed
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.torch_core import num_distrib, rank_distrib
from fastai_condmtl.all import (
    BinaryBlock,
    Branch,
    Checkpoint,
    ConditionalInterpretation,
    Flow,
    GradientCosine,
    MultiLabelBlock,
    SingleLabelBlock,
    UnboundedRegressionBlock,
    conditional_head,
    equip,
)
from fastai_condmtl.callback.balance import TaskBalance
from fastai_condmtl.learn.heads import RunNeeded
from fastai_condmtl.learn.ranks import without_ranks

N, N_TRAIN, BS, RANKS = 76, 45, 8, 2  # 45 and 31 rows: neither divides by two, and the last batches are short


def table():
    "The first half of the training rows, which rank 0 is given, has no `deep` task"
    rng = np.random.default_rng(0)
    df = pd.DataFrame(rng.normal(size=(N, 4)), columns=list('pqrs'))
    df['gate'] = (df.p + 0.3 * df.s > 0) & (df.index >= 23)
    df['deep'] = np.where(df.gate, df.q * 2 + df.r, np.nan)
    df['tags'] = [
        ','.join(t for t, on in zip('uvw', row) if on) if g else np.nan
        for g, row in zip(df.gate, rng.random((N, 3)) < 0.5)
    ]
    df['kind'] = np.where(df.q > 0.5, 'x', np.where(df.r > 0, 'y', 'z'))
    df['rare'] = (df.s > 0).astype(float)
    df.loc[rng.random(N) < 0.6, 'rare'] = np.nan
    df.loc[rng.random(N) < 0.2, 'kind'] = np.nan
    df['heed'] = rng.integers(0, 3, N).astype(float)
    return df


def flow():
    gate = BinaryBlock('gate')
    return Flow(
        'f',
        gate,
        Flow('look', UnboundedRegressionBlock('deep'), MultiLabelBlock('tags', vocab=list('uvw')), features='look')
        | gate,
        SingleLabelBlock('kind', weight=2.0),
        BinaryBlock('rare', weight_col='heed'),
    )


class Row:
    def __call__(self, r):
        return torch.tensor(r[list('pqrs')].to_numpy(dtype=np.float32))


class Dealt:
    "Rows of one process in the order in which `RANKS` processes see them, a batch of each side by side"

    def __init__(self, n):
        each = -(-n // RANKS)
        self.idxs = [
            r * each + k
            for i in range(0, each, BS)
            for r in range(RANKS)
            for k in range(i, min(i + BS, each))
            if r * each + k < n
        ]

    def __call__(self):
        return self.idxs


def data(shuffle=False):
    "Batches of `BS` rows a process, or on one process of all these rows together"
    bs = BS if num_distrib() else BS * RANKS
    dls = DataBlock(
        blocks=(TransformBlock, flow()), get_x=Row(), splitter=IndexSplitter(range(N_TRAIN, N))
    ).dataloaders(table(), bs=bs, num_workers=0, device='cpu')
    kw = {} if num_distrib() or shuffle else dict(get_idxs=Dealt(N_TRAIN))
    dls.loaders[0] = dls.train.new(shuffle=shuffle, drop_last=False, **kw)
    return dls


def make(balance=None, cbs=(), shuffle=False, metrics='all', noise=0.0, **kwargs):
    set_seed(3)
    dls = data(shuffle)
    body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(noise))
    net = nn.Sequential(
        body,
        conditional_head(dls.flow, 8, {'look': Branch(nn.Sequential(nn.Linear(8, 6), nn.Tanh()), only_needed=True)}),
    )
    learn = Learner(
        dls,
        net,
        splitter=lambda m: [list(m[0].parameters()), list(m[1].parameters())],
        cbs=[RunNeeded(), *cbs],
        **kwargs,
    )
    return equip(learn, metrics=learn.dls.flow.metrics('all') if metrics == 'all' else metrics, balance=balance)


def together(learn):
    return learn.distrib_ctx() if num_distrib() else nullcontext()


def numbers(model):
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def thresholds(learn):
    return {p: torch.as_tensor(t).clone() for p, t in learn.loss_func.thresholds.items()}


class Watch(Callback):
    "Gradients of the first step, as the optimizer gets them; which branches ran on how many rows"

    def __init__(self):
        self.grads, self.ran = None, []

    def before_step(self):
        if self.grads is None:
            self.grads = {
                n.removeprefix('module.'): p.grad.clone()
                for n, p in self.model.named_parameters()
                if p.grad is not None
            }
        head = next(m for m in self.model.modules() if hasattr(m, 'ran'))
        self.ran.append(head.ran.get('look'))


def trained():
    "`fine_tune`, with metrics and thresholds"
    watch = Watch()
    learn = make(cbs=[watch])
    with learn.no_bar(), together(learn):
        learn.fine_tune(1, base_lr=2e-2)
    metrics = dict(zip(learn.recorder.metric_names[3:], learn.recorder.values[-1][2:]))
    return learn, dict(
        weights=numbers(learn.model),
        grads=watch.grads,
        ran=watch.ran,
        metrics=metrics,
        thresholds=thresholds(learn),
        table=learn.threshold_search.result,
        train_loss=float(learn.recorder.losses[-1]),
    )


def judged(learn, inside):
    "All that asks for predictions, in or out of the context"
    res, df = {}, table()
    with learn.no_bar(), learn.no_logging(), together(learn) if inside else nullcontext():
        res['evaluate'] = pd.DataFrame(learn.evaluate(n_boot=40))
        res['by'] = pd.DataFrame(learn.evaluate(metrics=None, by='kind'))
        res['train'] = pd.DataFrame(learn.evaluate(ds_idx=0))
        res['cascade'] = learn.cascade_report()
        res['validate'] = [float(x) for x in learn.validate()[1:]]
        res['preds'] = learn.get_preds(with_decoded=True)
        res['predict_df'] = learn.predict_df(df.iloc[50:57])
        res['marginals'] = learn.get_marginals(df.iloc[50:53])
        res['explain'] = str(learn.explain(df.iloc[50:53]))
        res['losses'] = ConditionalInterpretation.from_learner(learn).losses('deep')
        res['one'] = None
        if not rank_distrib():  # nobody waits
            res['one'] = learn.predict(df.iloc[50])[2]
            with without_ranks(learn):
                pd.testing.assert_frame_equal(learn.evaluate(metrics=None), learn.evaluate(metrics=None))
                assert len(learn.get_preds()[0]) == N - N_TRAIN
    return res


def tuned():
    "Thresholds and temperatures, sought in the context"
    learn = trained_learner()
    with learn.no_bar(), together(learn):
        res = dict(
            search=learn.search_thresholds(),
            calibrate=learn.calibrate(),
            temperatures=dict(learn.loss_func.temperatures),
            thresholds=thresholds(learn),
        )
    return res


def trained_learner():
    learn = make()
    learn.model.load_state_dict(torch.load(WEIGHTS)['weights'])
    return learn


def balanced(method, **kwargs):
    "Weights of each step, and what the network is in the end"
    learn = make(cbs=[TaskBalance(method, **kwargs), GradientCosine(every=2)], opt_func=SGD, metrics=[])
    with learn.no_bar(), learn.no_logging(), together(learn):
        learn.fit(3, 2e-2)
    return dict(
        weights=learn.task_balance.weights.to_numpy(),
        model=numbers(learn.model),
        cosine=learn.gradient_cosine.cosine.to_numpy(),
        counts=learn.gradient_cosine.counts.to_numpy(),
    )


class Stop(Callback):
    order = 2000

    def __init__(self, at):
        self.at, self.n = at, 0

    def after_batch(self):
        if not self.training:
            return
        self.n += 1
        if self.n == self.at:
            raise KeyboardInterrupt


def went_on(path, at=None):
    "A training with a checkpoint, broken off after `at` batches"
    learn = make('famo', shuffle=True, metrics=[], noise=0.3)
    torch.manual_seed(100 + rank_distrib())  # dropout of each process is its own
    cbs = [Checkpoint(path, every=2, verbose=False)] + ([Stop(at)] if at else [])
    with learn.no_bar(), learn.no_logging():
        try:
            with together(learn):
                learn.fit_one_cycle(2, 1e-2, cbs=cbs)
        except KeyboardInterrupt:
            return None
    return dict(weights=numbers(learn.model), thresholds=thresholds(learn))


def with_added_bias(folder):
    "A head without a bias, as fastai's stock heads, which gets one as it starts; and its `export`"
    set_seed(3)
    dls = data()
    body = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Unflatten(1, (8, 2, 2)))
    net = nn.Sequential(body, nn.Sequential(nn.Flatten(), nn.Linear(32, dls.c, bias=False)))
    learn = equip(Learner(dls, net, path=folder, opt_func=SGD), metrics=[], tune=None).start_at_trivial()
    begun = numbers(learn.model)
    with learn.no_bar(), learn.no_logging(), together(learn):
        learn.fit(2, 2e-2)
        learn.export(f'bias{num_distrib()}.pkl')
    return dict(begun=begun, weights=numbers(learn.model))


class ExportAt(Callback):
    "Export the learner when so many batches are done, and after each epoch"

    order = 2000

    def __init__(self, at, head):
        self.at, self.head, self.n = at, head, 0

    def after_batch(self):
        self.n += self.training
        if self.training and self.n == self.at:
            self.learn.export(f'{self.head}_batch.pkl')

    def after_epoch(self):
        self.learn.export(f'{self.head}_epoch{self.epoch}.pkl')


def exported_in_mid_fit(folder):
    "Weights after a fit that exports on its way, and after one that does not"
    res = {}
    for name, cbs in dict(with_exports=[ExportAt(2, f'ranks{num_distrib()}')], without=[]).items():
        learn = make(cbs=cbs, opt_func=SGD, metrics=[], path=folder)
        with learn.no_bar(), learn.no_logging(), together(learn):
            learn.fit(2, 2e-2)
        res[name] = numbers(learn.model)
    return res


class GivenMixUp(MixUp):
    "fastai's MixUp, whose draws follow from epoch, batch and process: on one process, those of all of them together"

    def before_batch(self):
        ranks = [rank_distrib()] if num_distrib() else range(RANKS)
        shares, order = [], []
        for rank in ranks:
            n_own, n_rows = rows_of(self.iter, rank)
            rng = np.random.default_rng([self.epoch, self.iter, rank])
            here = [*rng.permutation(n_own), *range(n_own, n_rows if num_distrib() else n_own)]
            order += [int(i) + len(shares) for i in here]
            shares += [*rng.beta(0.4, 0.4, n_own), *[1.0] * (len(here) - n_own)]
        self.distrib = SimpleNamespace(sample=lambda size: torch.tensor(shares, dtype=torch.float32))
        with mock.patch('torch.randperm', lambda n: torch.tensor(order)):
            super().before_batch()


def rows_of(batch, rank):
    "Of a batch of one process: rows that are its own, and rows with those that were appended"
    each = -(-N_TRAIN // RANKS)
    rows = range(rank * each + batch * BS, rank * each + min(batch * BS + BS, each))
    return sum(row < N_TRAIN for row in rows), len(rows)


def mixed_up():
    "Gradients of the first step and weights in the end, with MixUp"
    watch = Watch()
    learn = make(cbs=[watch, GivenMixUp()], opt_func=SGD, metrics=[])
    with learn.no_bar(), learn.no_logging(), together(learn):
        learn.fit(2, 2e-2)
    return dict(grads=watch.grads, weights=numbers(learn.model))


def pictures(n=30):
    "A table of pictures, which `draw` draws"
    rng = np.random.default_rng(7)
    light = rng.integers(20, 236, n)
    df = pd.DataFrame(dict(file=[f'{i}.png' for i in range(n)], light=light, dark=light < 120))
    df['kind'] = np.where(df.dark, rng.choice(['x', 'y', 'z'], n), None)
    return df


def draw(folder):
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(8)
    for file, light in pictures()[['file', 'light']].itertuples(index=False):
        pixels = light + rng.integers(-20, 20, (rng.integers(30, 60), rng.integers(30, 60), 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / file)


def with_cached_pictures(folder):
    "Training and scores on pictures whose cache all processes build at once"
    from fastai.vision.all import Resize
    from fastai_condmtl.vision.all import ConditionalDataLoaders

    set_seed(3)
    n_train, dark = 21, BinaryBlock('dark')
    bs = BS if num_distrib() else BS * RANKS
    dls = ConditionalDataLoaders.from_df(
        pictures(),
        Flow('f', dark, SingleLabelBlock('kind') | dark),
        folder / 'pictures',
        fn_col='file',
        splitter=IndexSplitter(range(n_train, 30)),
        item_tfms=Resize(12, method='squish'),
        cache=str(folder / f'cache{num_distrib()}'),
        bs=bs,
        num_workers=0,
        device='cpu',
    )
    dealt = {} if num_distrib() else dict(get_idxs=Dealt(n_train))
    dls.loaders[0] = dls.train.new(shuffle=False, drop_last=False, **dealt)
    net = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.Tanh()), nn.Linear(8, dls.c))
    learn = equip(Learner(dls, net, opt_func=SGD, path=folder), metrics=[], tune=None)
    with learn.no_bar(), learn.no_logging(), together(learn):
        learn.fit(2, 0.1)
        preds, table = learn.get_preds()[0], pd.DataFrame(learn.evaluate(metrics=None))
    cache = dls.train_ds.tls[0].tfms.fs[-1].cache.load()
    return dict(weights=numbers(learn.model), preds=preds, table=table, n_cached=len(cache.entries))


def more(folder):
    "What `test_distributed.py` asks in a launch of its own"
    return dict(mid_fit=exported_in_mid_fit(folder), mixed=mixed_up(), cached=with_cached_pictures(folder))


METHODS = ['uncertainty', 'dwa', 'famo', 'stch', 'upgrad', 'pcgrad']
WEIGHTS = 'weights.pth'


def all_(folder, ranks):
    global WEIGHTS
    WEIGHTS = Path(folder) / 'weights.pth'
    learn, res = trained()
    if not ranks:
        torch.save(dict(weights=res['weights']), WEIGHTS)  # the same network is judged by both
    return res


def main(folder):
    from fastai_condmtl.callback.distributed import DistributedDL  # noqa: F401  this is all that a script needs

    folder, rank = Path(folder), rank_distrib()
    res = dict(trained=all_(folder, True))
    learn = trained_learner()
    learn.path = folder
    res['inside'], res['outside'] = judged(learn, True), judged(learn, False)
    res['tuned'] = tuned()
    for m in METHODS:
        res[m] = balanced(m)
    with together(learn):
        learn.save('saved', with_opt=False)
        learn.export('inside.pkl')
    learn.export('outside.pkl')
    learn.load('saved', with_opt=False)
    res['whole'] = went_on(folder / 'a.pth')
    assert went_on(folder / 'b.pth', 3) is None
    res['on'] = went_on(folder / 'b.pth')
    torch.save(res, folder / f'rank{rank}.pt')
    print(f'rank {rank} is done')


if __name__ == '__main__':
    torch.set_num_threads(1)
    warnings.filterwarnings('ignore')
    if len(sys.argv) > 2:
        import fastai_condmtl.callback.distributed  # noqa: F401  this is all that a script needs

        asked = dict(bias=with_added_bias, more=more)[sys.argv[2]]
        torch.save(asked(Path(sys.argv[1])), f'{sys.argv[1]}/{sys.argv[2]}{rank_distrib()}.pt')
    else:
        main(sys.argv[1])
