"""What DataParallel gathers in a training step, and what the first device keeps for the loss, with and without
balance_memory=True: batch 256 in 4 parts, one thread"""

import numpy as np, pandas as pd, torch
from torch import nn
from fastai_condmtl.tasks.binary import BinaryBlock
from fastai_condmtl.tasks.regression import BoundedRegressionBlock
from fastai_condmtl.tasks.single_label import SingleLabelBlock
from fastai_condmtl.callback.parallel import ChunkedParallel
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.datasets.synthetic import security_flow, security_scenes
from timing import alternate

BS, PARTS = 256, 4


def table(kinds, n=BS, seed=0):
    "A flow of tasks given a binary one, a fifth of the labels missing"
    rng, first = np.random.default_rng(seed), BinaryBlock('first')
    tasks, cols = [], {'first': rng.integers(0, 2, n)}
    for i, k in enumerate(kinds):
        if isinstance(k, int):
            tasks.append(SingleLabelBlock(f't{i}', vocab=range(k)))
            cols[f't{i}'] = rng.integers(0, k, n)
        else:
            tasks.append(BinaryBlock(f't{i}') if k == 'b' else BoundedRegressionBlock(f't{i}', y_range=(0, 1)))
            cols[f't{i}'] = rng.integers(0, 2, n) if k == 'b' else rng.random(n)
    df = pd.DataFrame(cols).astype(object)
    return Flow('f', first, *[t | first for t in tasks]), df.mask(rng.random(df.shape) < 0.2)


class Kept:
    "Bytes that the loss keeps for the backward pass"

    def __enter__(self):
        self.seen = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.keep, lambda x: x)
        self.hooks.__enter__()
        return self

    def keep(self, x):
        s = x.untyped_storage()
        self.seen[s.data_ptr()] = s.nbytes()
        return x

    def __exit__(self, *args):
        self.hooks.__exit__(*args)

    @property
    def bytes(self):
        return sum(self.seen.values())


def size(n):
    return f'{n / 2**20:8.2f} MiB' if n >= 2**20 else f'{n / 2**10:8.2f} KiB'


def compare(name, flow, df, features=64):
    torch.manual_seed(0)
    bound = flow.bind(df)
    y, loss = bound.encode(df).as_subclass(torch.Tensor), bound.loss_func
    x, net = torch.randn(len(y), features), nn.Linear(features, bound.c)
    plain, balanced = ChunkedParallel(net, lambda: None, PARTS), ChunkedParallel(net, lambda: (loss, y), PARTS)
    res = {}
    for model in (plain, balanced):
        net.zero_grad(set_to_none=True)
        out = model(x)
        with Kept() as k:
            total = loss(out, y)
        total.backward()
        res[model] = total, net.weight.grad.clone(), sum(model.gathered.values()), k.bytes
    (a, ga, n1, k1), (b, gb, n2, k2) = res[plain], res[balanced]
    assert torch.allclose(a, b, rtol=1e-5) and torch.allclose(ga, gb, rtol=1e-4, atol=1e-7), (
        'totals or gradients differ'
    )

    def step(model):
        def run():
            net.zero_grad(set_to_none=True)
            loss(model(x), y).backward()

        return run

    _, (_, r) = alternate(step(plain), step(balanced), rounds=15, inner=2)
    print(
        f'{name:34} {len(bound.paths):5} tasks {bound.c:6} logits   gathered {size(n1)} -> {size(n2)} '
        f'(1/{n1 / n2:.0f})   kept there for the loss {size(k1)} -> {size(k2)} (1/{k1 / k2:.0f})   '
        f'gradients differ by {(ga - gb).abs().max() / ga.abs().max():.0e}   time of a step {r:.2f}'
    )


if __name__ == '__main__':
    torch.set_num_threads(1)
    compare('security scenes', security_flow(), security_scenes(BS, seed=0)[1])
    compare('100 binary, 100 regressions', *table(['b'] * 100 + ['r'] * 100))
    compare('10 of 1000 classes', *table([1000] * 10))
    compare('one of 10000 classes', *table([10_000]))
