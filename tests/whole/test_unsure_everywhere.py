"""Shares, uncertain answers and votes go wherever other labels go: files of learners and networks, mixed labels, lower
precision, gathered gradients, balancers, several sources, another flow. Against the same numbers before, or by hand"""

import copy
import numpy as np, pandas as pd, pytest, torch
import torch.nn.functional as F
from fastai.callback.fp16 import MixedPrecision  # noqa: F401
from fastai.callback.core import Callback
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.training import GradientAccumulation
from fastai.data.all import DataBlock, RandomSplitter, TransformBlock
from fastai.learner import Learner, load_learner
from fastai.optimizer import SGD
from fastai.torch_core import set_seed
from fastai.vision.all import ConvLayer, ImageBlock, Resize
from torch import nn
from fastai_condmtl.deploy.safe import load_safe
from fastai_condmtl.vision.all import *

N = 48
PICTURES = np.random.default_rng(0).integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)


class Picture:
    def __call__(self, row):
        return PICTURES[int(row['i'])]


class Inputs:
    "Three numbers a row"

    def __call__(self, row):
        return torch.tensor([row['f0'], row['f1'], row['f2']], dtype=torch.float32)


def table(n=N, seed=0):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame(rng.normal(size=(n, 3)), columns=['f0', 'f1', 'f2'])
    df['i'] = np.arange(n) % N
    df['share'] = np.round(rng.random(n), 2)
    df['a'] = rng.choice([0, 1, -1], n)
    df['m1'], df['m2'] = np.round(rng.random(n), 2), np.round(rng.random(n), 2)
    df['w'] = rng.choice(['no', 'yes', 'maybe', 'skip'], n)
    votes = rng.multinomial(9, [0.5, 0.3, 0.2], n)
    df['v0'], df['v1'], df['v2'] = votes.T
    df['x'], df['z'] = rng.integers(0, 2, n), rng.normal(size=n)
    df.loc[::7, 'share'] = np.nan
    return df


def tasks():
    share, a = BinaryBlock('share', soft=True), BinaryBlock('a', uncertain={-1: 0.6})
    votes = VotesBlock('votes', cols=['v0', 'v1', 'v2'])
    return [
        share,
        a,
        MultiLabelBlock('m', cols=['m1', 'm2'], soft=True) | share,
        BinaryBlock('w', vocab=('no', 'yes'), uncertain={'maybe': 0.3, 'skip': None}) | ~a,
        votes,
        BinaryBlock('x') | (votes.share('v1') > 0.3),
        UnboundedRegressionBlock('z') | (a & votes.eq('v0')),
    ]


def flow(*names):
    return Flow('f', *(t for t in tasks() if not names or t.name in names))


def body(pretrained=False):
    return nn.Sequential(ConvLayer(3, 8, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1))


@pytest.fixture(scope='module')
def pictures():
    dls = DataBlock(
        blocks=(ImageBlock, flow()), get_x=Picture(), splitter=RandomSplitter(seed=0), item_tfms=Resize(16)
    ).dataloaders(table(), bs=16, num_workers=0, device='cpu')
    learn = conditional_vision_learner(dls, body, pretrained=False, normalize=False)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
        learn.calibrate(min_support=5)
    for parameter in learn.model[1].parameters():
        parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.3
    return learn


def numbers(df=None, model=None, **kwargs):
    "A learner of three numbers"
    df = table() if df is None else df
    set_seed(0)  # of the order of the rows, too
    dls = DataBlock(
        blocks=(TransformBlock, kwargs.pop('flow', flow())), get_x=Inputs(), splitter=RandomSplitter(seed=0)
    ).dataloaders(df, bs=kwargs.pop('bs', 16), num_workers=0, device='cpu', drop_last=False)
    return Learner(dls, model or nn.Linear(3, dls.c), loss_func=dls.loss_func, opt_func=SGD, lr=0.1, **kwargs)


def said(learn, **kwargs):
    "Activations and decisions of the table"
    with learn.no_bar():
        dl = learn.dls.test_dl(table(), num_workers=0)
        acts, _, decided = learn.get_preds(dl=dl, with_decoded=True)
    return acts.as_subclass(torch.Tensor), decided.as_subclass(torch.Tensor)


def same(one, other):
    for a, b in zip(said(one), said(other), strict=True):
        assert torch.allclose(a, b, atol=1e-6, equal_nan=True)


# Files


def test_an_exported_learner_is_the_learner(pictures, tmp_path):
    pictures.export(tmp_path / 'a.pkl')
    loaded = load_learner(tmp_path / 'a.pkl')
    same(pictures, loaded)
    df = table(seed=3)
    with pictures.no_bar(), loaded.no_bar():
        assert loaded.validate(dl=df)[0] == pytest.approx(pictures.validate(dl=df)[0], abs=1e-6)
        pd.testing.assert_frame_equal(loaded.evaluate(df), pictures.evaluate(df), atol=1e-6)


def test_a_safe_file_is_the_learner(pictures, tmp_path):
    pytest.importorskip('safetensors')
    with pytest.warns(FlowWarning, match='hands it over'):
        pictures.save_safe(tmp_path / 'a.safetensors')
    predictor = load_safe(tmp_path / 'a.safetensors', copy.deepcopy(pictures.model))
    found = predictor.get_preds(list(PICTURES))
    for got, want in zip(found, said(pictures), strict=True):
        assert torch.allclose(got.as_subclass(torch.Tensor), want, atol=1e-6, equal_nan=True)
    bound, again = pictures.dls.flow, predictor.flow
    assert torch.equal(bound.encode(table(20)), again.encode(table(20)))


def test_onnx_says_what_the_learner_says(pictures, tmp_path):
    ort = pytest.importorskip('onnxruntime')
    session = ort.InferenceSession(str(pictures.to_onnx(tmp_path / 'a.onnx')))
    values, probs, reached = session.run(None, {'image': PICTURES.transpose(0, 3, 1, 2).copy()})
    acts, decided = said(pictures)
    bound = pictures.dls.flow
    np.testing.assert_allclose(probs, acts.numpy(), atol=2e-5)
    mask = np.stack([decided[:, 1, s.targets.start].numpy() > 0 for s in bound.slices.values()], 1)
    np.testing.assert_array_equal(reached, mask)
    assert 0 < mask.mean() < 1
    want = bound.to_units(decided.as_subclass(TensorConditional))[:, 0].as_subclass(torch.Tensor).numpy()
    np.testing.assert_allclose(values, want, atol=1e-4)


# Training


def entropy(logit, target):
    return F.binary_cross_entropy_with_logits(logit, target, reduction='none')


@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixed_labels_have_the_mixed_loss_of_both(mix, pictures):
    """By hand for a share and an uncertain answer: each row's entropy towards its own label and towards the other
    row's, by their shares; a mean over the rows that have the label"""
    df = table().assign(share=table().share.fillna(0.5))
    df['a'] = np.where(df.a == 0, 1, df.a)  # all rows count for both
    one = Flow('f', BinaryBlock('share', soft=True), BinaryBlock('a', uncertain={-1: 0.6}))
    dls = DataBlock(
        blocks=(ImageBlock, one), get_x=Picture(), splitter=RandomSplitter(seed=0), item_tfms=Resize(16)
    ).dataloaders(df, bs=8, num_workers=0, device='cpu')
    learn, seen = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(768, 2)), loss_func=dls.loss_func), []

    class Look(Callback):
        order = 90

        def after_loss(self):
            if self.training:
                cb = next(cb for cb in self.learn.cbs if isinstance(cb, mix))
                seen.append((self.pred.detach(), self.yb[0].clone(), cb.yb1[0].clone(), cb.lam, self.loss.detach()))

    torch.manual_seed(0)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3, cbs=[mix(), Look()])
    assert len(seen) > 2
    for pred, own, other, lam, loss in seen:
        each = [entropy(pred, y.as_subclass(torch.Tensor)[:, 0]) for y in (own, other)]
        lam = torch.as_tensor(lam).reshape(-1, 1) if torch.as_tensor(lam).ndim else torch.as_tensor(lam)
        by_hand = (lam * each[0] + (1 - lam) * each[1]).mean(0).sum()
        assert float(loss) == pytest.approx(float(by_hand), rel=1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_lower_precision_has_the_loss_of_single_precision(dtype):
    "Logits of half the bits: the loss is computed in single precision, of each task"
    bound = flow().bind(table())
    loss, y = ConditionalLoss(bound), bound.encode(table())
    logits = torch.randn(N, bound.c, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.autocast('cpu', dtype=dtype):
        low = loss.per_task(logits, y)
    assert low.dtype == torch.float32
    assert torch.allclose(low, loss.per_task(logits.float(), y), rtol=1e-5, atol=1e-6)


def test_autocast_trains_to_where_single_precision_does():
    learn, low = numbers(), numbers()

    class Lower(Callback):
        order = 10

        def before_batch(self):
            self.context = torch.autocast('cpu', dtype=torch.bfloat16)
            self.context.__enter__()

        def after_loss(self):
            self.context.__exit__(None, None, None)

        after_cancel_batch = after_loss

    for each, cbs in ((learn, []), (low, [Lower()])):
        with each.no_bar(), each.no_logging():
            each.fit(2, 0.1, cbs=cbs)
    for a, b in zip(learn.model.parameters(), low.model.parameters()):
        assert torch.allclose(a, b, atol=0.05) and b.isfinite().all()


@pytest.mark.filterwarnings('ignore:GradientAccumulation')
def test_gathered_gradients_are_the_sum_of_the_batches():
    "Two batches, one step: the weights move by what both losses ask for, by hand"
    learn = numbers(bs=20)
    model, loss = copy.deepcopy(learn.model), learn.loss_func
    batches, seen = [], []

    class Keep(Callback):
        def before_batch(self):
            if self.training:
                batches.append((self.xb[0].clone(), self.yb[0].clone()))

        def after_step(self):
            seen.append(copy.deepcopy(self.learn.model))

    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.1, wd=0.0, cbs=[GradientAccumulation(30), Keep()])
    assert len(batches) == 2 and len(seen) == 1
    sum(loss(model(x), y) * len(y) / 30 for x, y in batches).backward()  # fastai's shares of a step
    for moved, start in zip(seen[0].parameters(), model.parameters()):
        assert torch.allclose(start - 0.1 * start.grad, moved, atol=1e-6)


@pytest.mark.parametrize('method', ['uncertainty', 'stch'])
def test_balancers_with_a_loss_of_their_own_train(method):
    learn = numbers(bs=4)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.05, cbs=[TaskBalance(method)])
        assert np.isfinite(learn.validate()[0])
    assert all(p.isfinite().all() for p in learn.model.parameters())


@pytest.mark.parametrize('method', ['static', 'dwa', 'famo'])
def test_balancers_are_given_the_loss_of_each_task(method):
    "What is weighed is the loss of each task on the batch, and which tasks have a row that counts in it"
    learn, seen, batches = numbers(bs=4), [], []
    balance = TaskBalance(method)
    factors = balance.method.factors

    def spied(state, losses, there):
        seen.append((losses.detach().clone(), there.clone()))
        return factors(state, losses, there)

    class Keep(Callback):
        def after_pred(self):
            if self.training:
                batches.append((self.pred.detach().clone(), self.yb[0].clone()))

    balance.method.factors = spied
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.05, cbs=[balance, Keep()])
    assert len(seen) == len(batches) > 5
    bound, missing = learn.dls.flow, 0
    for (losses, there), (pred, y) in zip(seen, batches):
        counts = torch.stack([(y[:, 1, s.targets] > 0).any() for s in bound.slices.values()])
        order = [bound.paths.index(path) for path in bound.slices]
        assert torch.equal(there.cpu(), counts[order].as_subclass(torch.Tensor))
        own = bound.loss_func.per_task(pred, y).as_subclass(torch.Tensor)
        assert torch.allclose(losses[there], own[there], atol=1e-5)
        missing += int((~there).sum())
    assert missing and all(p.isfinite().all() for p in learn.model.parameters())


# Several sources, another flow


def test_sources_of_which_one_has_no_shares():
    "Each task's score of a source is that of its rows alone; where the column is lacking it counts nowhere"
    crowd, expert = table(seed=1), table(seed=2).drop(columns=['share', 'm1', 'm2', 'v0', 'v1', 'v2'])
    df = concat_sources(dict(crowd=crowd, expert=expert), flow=flow())
    learn = numbers(df)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.05)
        res = learn.evaluate(metrics=None, by='source').set_index(['task_path', 'source'])
        probs = learn.get_preds()[0].as_subclass(torch.Tensor).numpy()
    rows = learn.dls.valid.dataset.items
    of_crowd = ((rows.source == 'crowd') & rows.share.notna()).to_numpy()
    by_hand = np.abs(probs[:, learn.dls.flow.slices['share'].acts][of_crowd, 0] - rows.share[of_crowd]).mean()
    assert res.loc[('share', 'crowd'), 'metric_res'] == pytest.approx(by_hand, abs=1e-6)
    for task in ('share', 'm', 'votes', 'x'):
        assert res.loc[(task, 'expert'), 'num_samples'] == 0
    certain = ((rows.source == 'expert') & (rows.a >= 0)).sum()
    assert res.loc[('a', 'expert'), 'num_samples'] == certain > 0


def test_another_flow_keeps_what_was_learnt_of_shares_and_votes(pictures):
    learn = copy.deepcopy(pictures)
    before, _ = said(learn)
    was = {path: before[:, s.acts] for path, s in learn.dls.flow.slices.items()}
    more = Flow('g', *reversed([t for t in tasks() if t.name in ('share', 'a', 'w', 'votes')]), BinaryBlock('n', 'x'))
    learn.change_flow(more)
    after, _ = said(learn)
    for path in ('share', 'a', 'w', 'votes'):
        assert torch.allclose(after[:, learn.dls.flow.slices[path].acts], was[path], atol=1e-6), path
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
        assert np.isfinite(learn.validate()[0])
