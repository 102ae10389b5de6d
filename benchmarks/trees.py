"""Is another tree of this project as fast? Both are measured in turn.

python benchmarks/trees.py ../old_checkout     prints the ratio of this tree to the other, with its 95 % interval

Loss and encoding are measured in one process that has loaded both trees. An item and an epoch lean on what a tree
adds to fastai, so each tree has a process of its own for them, which measures itself in seconds of its processor.
"""

import importlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

PACKAGE = 'fastai_condmtl'


def load(root):
    "The parts of the package at `root` that are measured, loaded anew beside any other tree"
    for name in [m for m in sys.modules if m.partition('.')[0] == PACKAGE]:
        del sys.modules[name]
    sys.path.insert(0, str(Path(root).resolve()))
    importlib.invalidate_caches()
    try:
        names = dict(importlib.import_module(f'{PACKAGE}.all').__dict__)
        rooms = (Path(root) / PACKAGE / 'datasets').is_dir()
        names |= importlib.import_module(f'{PACKAGE}.datasets.synthetic' if rooms else f'{PACKAGE}.synthetic').__dict__
    finally:
        sys.path.pop(0)
    assert Path(names['__file__']).is_relative_to(Path(root).resolve()), names['__file__']
    return names


def security(tree):
    "The flow and the table of the drawn scenes"
    return tree['security_flow'](box_weight=1.0), tree['security_scenes'](256, size=16)[1]


def many(tree, n=500):
    "`n` binary tasks and `n` regressions given the first"
    rng = np.random.default_rng(0)
    first = tree['BinaryBlock']('b0')
    binary = [tree['BinaryBlock'](f'b{i}') | first for i in range(1, n)]
    numbers = [tree['BoundedRegressionBlock'](f'r{i}', y_range=(0, 64), loss='mse') | first for i in range(n)]
    cols = {f'b{i}': rng.integers(0, 2, 256).astype(float) for i in range(n)} | {
        f'r{i}': rng.random(256) * 64 for i in range(n)
    }
    df = tree['pd'].DataFrame(cols)
    return tree['Flow']('many', first, *binary, *numbers), df.mask(rng.random(df.shape) < 0.2)


def loss_step(tree, data):
    "Heads, loss and backward of a batch of 32"
    flow, df = data(tree)
    bound = flow.bind(df)
    torch.manual_seed(0)
    x, linear = torch.randn(32, 512), nn.Linear(512, bound.c)
    y = torch.stack(list(bound.encode(df)[:32].as_subclass(torch.Tensor)))
    loss_func = bound.loss_func

    def step():
        linear.zero_grad(set_to_none=True)
        loss = loss_func(linear(x), y)
        loss.backward()
        return loss.item()

    return step


def encode_step(tree, data):
    "A table bound and encoded"
    flow, df = data(tree)

    def step():
        return float(flow.bind(df).encode(df).sum())

    return step


def interval(ratios, n_boot=2000):
    "The median of `ratios` and its 95 % bootstrap interval"
    draws = np.median(np.random.default_rng(0).choice(ratios, (n_boot, len(ratios))), axis=1)
    return float(np.median(ratios)), *np.quantile(draws, [0.025, 0.975])


def compare(name, other, ours, rounds=200, inner=5):
    assert np.isclose(other(), ours(), rtol=1e-5), 'the trees do not compute the same'
    steps, times = (other, ours), np.zeros((rounds, 2))
    for r in range(rounds):
        for k in (0, 1) if r % 2 else (1, 0):
            start = time.perf_counter()
            for _ in range(inner):
                steps[k]()
            times[r, k] = time.perf_counter() - start
    ratio, low, high = interval(times[:, 1] / times[:, 0])
    print(f'{name:28} ratio to the other tree {ratio:.3f}, 95 % interval {low:.3f} to {high:.3f}', flush=True)


def item_step(tree, folder):
    "500 items of the target side, read as bench_target does"
    from fastai.data.all import DataBlock, IndexSplitter, TransformBlock

    flow, df = many(tree, 7)
    df = tree['pd'].concat([df] * 8, ignore_index=True)
    blocks = (TransformBlock, flow)
    targets = DataBlock(blocks=blocks, splitter=IndexSplitter([0])).datasets(df).train.tls[1]

    def step():
        for i in range(500):
            targets[i]

    return step


def train_step(tree, folder):
    "A training epoch of the drawn scenes with a metric a task, without workers"
    torch.manual_seed(0)
    df = tree['save_scenes'](Path(folder), n=450)
    learn = tree['make_learner'](df, tree['security_flow'](), folder, 64)
    for loader in learn.dls.loaders:
        loader.fake_l.num_workers = 0
    learn.metrics = learn.dls.flow.metrics()

    def step():
        with learn.no_bar(), learn.no_logging():
            learn.fit(1, 1e-3)

    return step


def serve(root, kind):
    "Run a step at each line that comes in, and answer with its seconds of the processor"
    tree = load(root)
    room = 'tools.demo' if (Path(root) / PACKAGE / 'tools').is_dir() else 'demo'
    tree |= importlib.import_module(f'{PACKAGE}.{room}').__dict__
    with tempfile.TemporaryDirectory() as folder:
        step = {'item': item_step, 'train': train_step}[kind](tree, folder)
        step()
        for _ in sys.stdin:
            start = time.process_time()
            step()
            print(f'answer {time.process_time() - start}', flush=True)


class Served:
    "A process of `root` that measures itself"

    def __init__(self, root, kind):
        command = [sys.executable, '-W', 'ignore', __file__, root, kind]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def seconds(self):
        self.process.stdin.write('\n')
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith('answer '):
                return float(line.split()[1])
        raise RuntimeError('a measured process has ended')

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare_processes(name, other, ours, kind, pairs=3, rounds=7):
    "As `compare`, by `pairs` pairs of processes: what a process happens to be given (memory, addresses) averages out"
    ratios = []
    for pair in range(pairs):
        sides = [Served(root, kind) for root in (other, ours)]
        for r in range(rounds):
            times = {k: sides[k].seconds() for k in ((0, 1) if (r + pair) % 2 else (1, 0))}
            ratios.append(times[1] / times[0])
        for side in sides:
            side.close()
    ratio, low, high = interval(ratios)
    print(f'{name:28} ratio to the other tree {ratio:.3f}, 95 % interval {low:.3f} to {high:.3f}', flush=True)


def main(root):
    here = Path(__file__).resolve().parents[1]
    compare_processes('item, target side', root, str(here), 'item')
    compare_processes('training epoch', root, str(here), 'train')
    other = load(root)
    ours = load(here)
    compare('loss, security flow', loss_step(other, security), loss_step(ours, security))
    compare('loss, 1000 tasks', loss_step(other, many), loss_step(ours, many), inner=2)
    compare('bind and encode, security', encode_step(other, security), encode_step(ours, security), rounds=60, inner=1)


if __name__ == '__main__':
    torch.set_num_threads(1)
    if len(sys.argv) == 2:
        main(sys.argv[1])
    else:
        serve(*sys.argv[1:])
