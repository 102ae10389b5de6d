"A flow with every kind of task and every variant of its loss, for tests of precision and devices."

import importlib
import numpy as np, pandas as pd, torch
from fastai_condmtl.tasks.binary import BinaryBlock
from fastai_condmtl.tasks.regression import BoundedRegressionBlock, UnboundedRegressionBlock
from fastai_condmtl.tasks.count import CountBlock
from fastai_condmtl.tasks.multi_label import MultiLabelBlock
from fastai_condmtl.tasks.ordinal import OrdinalBlock
from fastai_condmtl.tasks.single_label import SingleLabelBlock
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.tasks.box import BoxBlock
from fastai_condmtl.tasks.keypoints import KeypointsBlock
from fastai_condmtl.tasks.votes import VotesBlock
from fastai_condmtl.text.masks import MASK, MaskedLMBlock

KINDS = dict(
    binary=lambda n, **k: BinaryBlock(n, 'b0', **k),
    weighed=lambda n, **k: BinaryBlock(n, 'b1', pos_weight=3.0, weight=0.5, **k),
    focal=lambda n, **k: BinaryBlock(n, 'b1', loss='focal', alpha=0.3, **k),
    whole=lambda n, **k: BinaryBlock(n, 'b1', whole_space=True, **k),
    detach=lambda n, **k: BinaryBlock(n, 'b0', whole_space='detach', **k),
    both=lambda n, **k: BinaryBlock(n, 'b1', whole_space='both', **k),
    single=lambda n, **k: SingleLabelBlock(n, 'k', **k),
    smooth=lambda n, **k: SingleLabelBlock(n, 'k', label_smoothing=0.1, class_weights='balanced', **k),
    softfocal=lambda n, **k: SingleLabelBlock(n, 'k', loss='focal', gamma=1.5, **k),
    many=lambda n, **k: SingleLabelBlock(n, 'id', vocab=range(2500), **k),
    tags=lambda n, **k: MultiLabelBlock(n, 'tags', **k),
    cols=lambda n, **k: MultiLabelBlock(n, cols=['b0', 'b1', 'b2'], **k),
    bounded=lambda n, **k: BoundedRegressionBlock(n, 'x', **k),
    l1=lambda n, **k: BoundedRegressionBlock(n, 'x', loss='l1', **k),
    unbounded=lambda n, **k: UnboundedRegressionBlock(n, 'z', **k),
    huber=lambda n, **k: UnboundedRegressionBlock(n, 'z', loss='huber', **k),
    ordinal=lambda n, **k: OrdinalBlock(n, 'stars', **k),
    count=lambda n, **k: CountBlock(n, 'n', **k),
    votes=lambda n, **k: VotesBlock(n, cols={'one': 'v0', 'two': 'v1', 'three': 'v2'}, **k),
    dispersed=lambda n, **k: VotesBlock(n, cols=['v0', 'v1', 'v2'], loss='dirichlet', **k),
    points=lambda n, **k: KeypointsBlock(n, cols=['px', 'py', 'qx', 'qy'], points=['p', 'q'], **k),
    box=lambda n, **k: BoxBlock(n, cols=['px', 'py', 'w', 'h'], **k),
    words=lambda n, **k: MaskedLMBlock(n, 'text', vocab=['xxunk', 'xxpad', MASK, *'abcdefg'], n_masks=3, **k),
)


def table(n=40, gaps=0.2, seed=0):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame(
        dict(
            gate=rng.random(n) < 0.7,
            g2=rng.choice(list('uvw'), n),
            **{f'b{i}': rng.integers(0, 2, n) for i in range(3)},
            k=rng.choice(list('abcd'), n),
            id=rng.integers(0, 2500, n),
            tags=rng.choice(['p', 'p,q', 'q,r', ''], n),
            x=rng.random(n) * 64,
            z=rng.normal(5, 2, n),
            stars=rng.integers(1, 6, n),
            n=rng.poisson(3, n),
            **{c: rng.random(n) * 60 for c in ('px', 'py', 'qx', 'qy')},
            w=4.0,
            h=5.0,
            text='a b',
        )
    ).astype(object)
    df = df.mask(rng.random(df.shape) < gaps)
    votes = np.random.default_rng(seed).multinomial(12, [0.5, 0.3, 0.2], n).astype(object)
    votes[np.random.default_rng(seed + 1).random(n) < gaps] = None  # a row has all of its votes or none
    return df.assign(**{f'v{j}': votes[:, j] for j in range(3)})


def flow(kinds=KINDS, weight_col=None):
    "Every kind given two others; the one of thousands of classes alone is an own family"
    gate, g2 = BinaryBlock('gate'), SingleLabelBlock('g2')
    tasks = [make(name) | (gate & g2.isin(['u', 'v'])) for name, make in KINDS.items() if name in kinds]
    return Flow('f', gate, g2, Flow('all', *tasks, weight_col=weight_col))


def bound_with_labels(kinds=KINDS, n=40, seed=0, df=None):
    "A bound flow and packed labels as a network meets them: coordinates from -1 to 1, words where there is a text"
    df = table(n, seed=seed) if df is None else df
    bound = flow(kinds).bind(df)
    y, rng = bound.encode(df).as_subclass(torch.Tensor).clone(), np.random.default_rng(seed + 1)
    for p, b in bound.tasks.items():
        s = bound.slices[p].targets
        if b.geometry:
            y[:, 0, s] = torch.from_numpy(rng.uniform(-1, 1, y[:, 0, s].shape)).float() * y[:, 1, s]
        if b.self_supervised:
            y[:, 0, s] = torch.from_numpy(rng.integers(3, b.n_out, y[:, 0, s].shape)).float() * y[:, 1, s]
    return bound, y


def logits(bound, n=40, scale=3.0, seed=0):
    return torch.randn(n, bound.c, generator=torch.Generator().manual_seed(seed)) * scale


def simulate_devices(monkeypatch, n=2):
    """`DataParallel` on `n` devices without any: torch's own replicas, whose parameters and buffers are copies with a
    graph back to the network's, each in a thread of its own. Returns a list that fills with what is gathered"""
    from concurrent.futures import ThreadPoolExecutor
    from torch.nn import DataParallel

    rep = importlib.import_module('torch.nn.parallel.replicate')  # the package has a function of that name
    gathered = []
    init = DataParallel.__init__

    def started(self, module, device_ids=None, output_device=None, dim=0):
        init(self, module, None)
        self.module, self.device_ids, self.dim, self.output_device = module, list(range(n)), dim, None
        self.src_device_obj = next(module.parameters()).device

    def copied(x, detach):
        return x * 1.0 if x.requires_grad and x.is_floating_point() and not detach else x.detach().clone()

    def copies(tensors, devices, detach=False):
        return [[copied(x, detach) for x in tensors] for _ in devices]

    def scatter(self, inputs, kwargs, ids):
        parts = list(zip(*[x.chunk(len(ids)) for x in inputs]))
        return parts, [kwargs] * len(parts)

    def apply(self, replicas, inputs, kwargs):
        grad, lower = torch.is_grad_enabled(), (torch.is_autocast_enabled('cpu'), torch.get_autocast_dtype('cpu'))

        def run(m, x, kw):
            with torch.set_grad_enabled(grad), torch.autocast('cpu', dtype=lower[1], enabled=lower[0]):
                return m(*x, **kw)

        with ThreadPoolExecutor(len(replicas)) as pool:
            return [f.result() for f in [pool.submit(run, *a) for a in zip(replicas, inputs, kwargs)]]

    def gather(self, outputs, device):
        gathered.append(tuple(tuple(o.shape) for o in outputs))
        return torch.cat(outputs)

    monkeypatch.setattr(DataParallel, '__init__', started)
    monkeypatch.setattr('fastai_condmtl.callback.parallel.on_gpu', lambda module: True)
    monkeypatch.setattr(rep, '_broadcast_coalesced_reshape', copies)
    monkeypatch.setattr(rep, '_get_device_index', lambda x, *a: x)
    for k, f in dict(scatter=scatter, parallel_apply=apply, gather=gather).items():
        monkeypatch.setattr(DataParallel, k, f)
    return gathered
