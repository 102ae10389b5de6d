"Heads + loss + backward against one `nn.Linear` with a masked loss fused by hand: features 512, batch 32, one thread"

import argparse
from functools import partial
import numpy as np, pandas as pd, torch, torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
import fastai_condmtl.all  # noqa: F401  bind, loss_func
from fastai_condmtl.tasks.binary import BinaryBlock
from fastai_condmtl.tasks.numeric import regression_losses
from fastai_condmtl.tasks.regression import BoundedRegressionBlock, UnboundedRegressionBlock
from fastai_condmtl.tasks.single_label import SingleLabelBlock
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.tasks.count import CountBlock
from fastai_condmtl.tasks.ordinal import OrdinalBlock
from fastai_condmtl.datasets.synthetic import security_flow, security_scenes
from timing import alternate


def table(n_bin, n_reg, n=256, seed=0):
    "A flow of binary tasks and regressions on the first, with a fifth of the labels missing"
    rng = np.random.default_rng(seed)
    first = BinaryBlock('b0')
    flow = Flow(
        'f',
        first,
        *[BinaryBlock(f'b{i}') | first for i in range(1, n_bin)],
        *[BoundedRegressionBlock(f'r{i}', y_range=(0, 64)) | first for i in range(n_reg)],
    )
    cols = {f'b{i}': rng.integers(0, 2, n).astype(float) for i in range(n_bin)} | {
        f'r{i}': rng.random(n) * 64 for i in range(n_reg)
    }
    df = pd.DataFrame(cols)
    return flow, df.mask(rng.random(df.shape) < 0.2)


def hand_fused(bound, linear):
    """What an expert writes for exactly these tasks: masks, order and sizes known beforehand, one call a kind.
    Targets come as the data loader gives them, packed; the logits stand in the order that suits."""
    sig, reg, cls = [], [], []
    kinds = {SingleLabelBlock: cls, BoundedRegressionBlock: reg}
    for p, b in bound.tasks.items():
        kinds.get(type(b), sig).append((bound.slices[p].targets, p))
    sig.sort(key=lambda x: x[0].start - x[0].stop)
    error = next((regression_losses[bound.tasks[p].loss_name] for _, p in reg), None)  # the same of all numbers
    device = linear.weight.device
    order = torch.tensor([c for s, _ in sig + reg + cls for c in range(s.start, s.stop)], device=device)
    widths = [s.stop - s.start for s, _ in sig + reg + cls]
    weights = [bound.tasks[p].weight / bound.loss_units.get(p, 1.0) for _, p in sig + reg + cls]
    share = torch.tensor([weight / n for weight, n in zip(weights, widths) for _ in range(n)], device=device)
    a, b = sum(widths[: len(sig)]), sum(widths[: len(sig) + len(reg)])

    def step(x, y):
        z = linear(x)
        v, m = y.index_select(2, order).unbind(1)
        g = m * (share / m.sum(0).clamp(min=1))
        loss = F.binary_cross_entropy_with_logits(z[:, :a], v[:, :a], weight=g[:, :a], reduction='sum')
        if b > a:
            loss = loss + (error(z[:, a:b].sigmoid(), v[:, a:b], reduction='none') * g[:, a:b]).sum()
        if cls:
            loss = loss + (F.cross_entropy(z[:, b:], v[:, b].long(), reduction='none') * g[:, b]).sum()
        loss.backward()
        return loss

    return step


def bce(z, v, g):
    return F.binary_cross_entropy_with_logits(z, v, weight=g, reduction='sum')


def steps(z, v, g):
    "Of an ordinal task with five classes: is it above the first, the second, ...?"
    z = z.reshape(-1, 5)
    z = z[:, 1:] + z[:, :1]
    return F.binary_cross_entropy_with_logits(
        z, (v.reshape(-1, 1) > torch.arange(4, device=v.device)).float(), weight=g.reshape(-1, 1) / 4, reduction='sum'
    )


# Each kind of task once: name → (block, a column of its labels, how an expert writes its loss)
MIXED = dict(
    binary=(lambda n: BinaryBlock(n), lambda r, n: r.integers(0, 2, n), bce),
    bounded=(
        lambda n: BoundedRegressionBlock(n, y_range=(0, 64)),
        lambda r, n: r.random(n) * 64,
        lambda z, v, g: (F.l1_loss(z.sigmoid(), v, reduction='none') * g).sum(),
    ),
    single=(
        lambda n: SingleLabelBlock(n, vocab=range(5)),
        lambda r, n: r.integers(0, 5, n),
        lambda z, v, g: (
            F.cross_entropy(z.reshape(-1, 5), v.reshape(-1).long(), reduction='none') * g.reshape(-1)
        ).sum(),
    ),
    unbounded=(
        lambda n: UnboundedRegressionBlock(n),
        lambda r, n: r.normal(size=n),
        lambda z, v, g: (F.l1_loss(z, v, reduction='none') * g).sum(),
    ),
    ordinal=(lambda n: OrdinalBlock(n, vocab=range(5)), lambda r, n: r.integers(0, 5, n), steps),
    count=(
        lambda n: CountBlock(n),
        lambda r, n: r.poisson(3, n),
        lambda z, v, g: (F.poisson_nll_loss(z, v, reduction='none') * g).sum(),
    ),
)


def finite_poisson(z, v, g, steep=15.0):
    "What `CountBlock` computes: 0 where the rate is the label, finite whatever the logit"
    bent = F.hardtanh(z, -float('inf'), steep)
    rate = bent.exp()
    losses = torch.addcmul(rate, rate, z - bent) + torch.xlogy(v, v) - v
    return (torch.addcmul(losses, v, z, value=-1) * g).sum()


SAME_COUNTS = MIXED | dict(count=(*MIXED['count'][:2], finite_poisson))


def mixed(each=3, n=256, seed=0, kinds=MIXED):
    "A flow of `each` tasks of each kind, all but the first given a binary one, a fifth of the labels missing"
    rng, first = np.random.default_rng(seed), BinaryBlock('first')
    names = [(f'{k}{i}', k) for k in kinds for i in range(each)]
    df = pd.DataFrame({'first': rng.random(n) < 0.7} | {c: kinds[k][1](rng, n) for c, k in names}).astype(object)
    return Flow('f', first, *[kinds[k][0](c) | first for c, k in names]), df.mask(rng.random(df.shape) < 0.2)


def hand_mixed(bound, linear, kinds=MIXED):
    "Each kind by itself, one call a kind, its sizes known beforehand"
    losses, device = [], linear.weight.device
    for family in bound.families:
        first = family.tasks[0]
        kind = 'binary' if bound.plan.blocks[first].thresholded else bound.paths[first].rstrip('0123456789')
        losses.append(kinds[kind][2])
    cols = [len(family.columns) for family in bound.families]
    logits = [len(family.columns) * family.n_out for family in bound.families]
    order = torch.tensor([c for family in bound.families for c in family.columns], device=device)
    paths = [bound.paths[t] for family in bound.families for t in family.tasks]
    units = torch.tensor([bound.loss_units.get(path, 1.0) for path in paths], device=device)

    def step(x, y):
        v, m = y.index_select(2, order).unbind(1)
        g = m / (m.sum(0).clamp(min=1) * units)
        loss = sum(
            f(a, b, c) for f, a, b, c in zip(losses, linear(x).split(logits, 1), v.split(cols, 1), g.split(cols, 1))
        )
        loss.backward()
        return loss

    return step


class Calls(TorchDispatchMode):
    "Names of the operators a step runs"

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        self.seen.append(f.overloadpacket.__name__)
        return f(*args, **(kwargs or {}))


def compare(name, flow, df, limit, bs=32, rounds=60, inner=20, by_hand=hand_fused, same=True, device='cpu'):
    torch.manual_seed(0)
    bound = flow.bind(df)
    y = torch.stack(list(bound.encode(df)[:bs].as_subclass(torch.Tensor))).to(device)
    x, ours = torch.randn(bs, 512, device=device), nn.Linear(512, bound.c).to(device)
    theirs = nn.Linear(512, bound.c).to(device)
    theirs.load_state_dict(ours.state_dict())
    loss_func, step = bound.loss_func.to(device), by_hand(bound, theirs)

    def hand():
        theirs.zero_grad(set_to_none=True)
        return step(x, y)

    def lib():
        ours.zero_grad(set_to_none=True)
        loss = loss_func(ours(x), y)
        loss.backward()
        return loss

    a, b = hand(), lib()
    assert not same or torch.allclose(a, b, rtol=1e-5), (a, b)  # PyTorch's Poisson loss is ours but for a constant
    assert torch.allclose(theirs.weight.grad, ours.weight.grad, atol=1e-6), 'gradients differ'
    with Calls() as c:
        lib()
    waits = sorted({'_local_scalar_dense', 'nonzero'} & set(c.seen))
    wait = torch.cuda.synchronize if device == 'cuda' else None
    (t0, t1), (_, r) = alternate(hand, lib, rounds=rounds, inner=inner, wait=wait)
    print(
        f"{name:34} by hand {t0 * 1e3:7.3f} ms   ours {t1 * 1e3:7.3f} ms   ratio {r:.3f} (promised <= {limit})   "
        f"waits for the device: {waits or 'none'}"
    )


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', default='cpu', help='cpu or cuda; on cuda every round ends with a synchronize')
    device = parser.parse_args().device
    torch.set_num_threads(1)
    compare('14 tasks, binary and regression', *table(6, 8), 1.15, device=device)
    compare('security flow', security_flow(), security_scenes(256, size=16)[1], 1.2, device=device)
    compare('18 tasks, three of each kind', *mixed(), 1.2, by_hand=hand_mixed, same=False, device=device)
    # PyTorch's Poisson loss grows without bound, to infinity at a logit of 88; ours does not
    same_counts = partial(hand_mixed, kinds=SAME_COUNTS)
    compare('the same, with counts as ours', *mixed(), 1.12, by_hand=same_counts, device=device)
    compare('1000 tasks', *table(500, 500), 1.12, inner=3, device=device)
