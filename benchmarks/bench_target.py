"The target side of an item against stock fastai's one `CategoryBlock`; encoding a million rows"

import resource, time
import numpy as np, pandas as pd, torch
from fastai.data.all import CategoryBlock, ColReader, DataBlock, IndexSplitter, TransformBlock
from fastai_condmtl.tasks.single_label import SingleLabelBlock
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.datasets.synthetic import security_flow, security_scenes
from bench_loss import mixed, table
from timing import alternate


def target(df, block, **kw):
    "The target's part of the data set that a `DataBlock` makes of `df`"
    return DataBlock(blocks=(TransformBlock, block), splitter=IndexSplitter([0]), **kw).datasets(df).train.tls[1]


def items(n=2000):
    rng = np.random.default_rng(0)
    idx = [int(i) for i in rng.integers(0, n - 1, 500)]

    def read(tl):
        def f():
            for i in idx:
                tl[i]

        return f

    label = pd.DataFrame(dict(label=rng.choice(list('abcdefgh'), n)))
    flows = {t: table((t + 1) // 2, t // 2, n) for t in (1, 14, 100, 1000)}
    wide = pd.DataFrame(dict(species=rng.integers(0, 5000, n)))
    others = {
        'three of each kind of task': mixed(n=n),
        '14 tasks and one of 5,000 classes': (
            Flow('f', table(7, 7)[0], SingleLabelBlock('species', vocab=range(5000))),
            pd.concat([table(7, 7, n)[1], wide], axis=1),
        ),
    }
    stock = target(label, CategoryBlock, get_y=ColReader('label'))
    stock14 = target(pd.concat([flows[14][1], label], axis=1), CategoryBlock, get_y=ColReader('label'))
    ours = [target(df, flow) for flow, df in (*flows.values(), *others.values())]
    med, _ = alternate(read(stock), read(stock14), *map(read, ours), rounds=15, inner=1, warmup=1)
    us = [m / len(idx) * 1e6 for m in med]
    print(f"one CategoryBlock, table of 1 column: {us[0]:.1f} us an item; of 15 columns: {us[1]:.1f} us")
    for t, u in zip([*(f'flow of {t:4} tasks' for t in flows), *others], us[2:]):
        print(f"{t}: {u:5.1f} us an item   ratio {u / us[0]:.3f} (15 columns: {u / us[1]:.3f}; promised <= 0.5)")


def encode(n=1_000_000):
    "Time and memory of encoding the security table, drawn with replacement to a million rows"
    df = security_scenes(2000, size=16)[1]
    df = df.iloc[np.random.default_rng(0).integers(0, len(df), n)].reset_index(drop=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    t = time.perf_counter()
    bound = security_flow().bind(df)
    t_bind = time.perf_counter() - t
    y = bound.encode(df)
    t = time.perf_counter() - t
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    size = y.numel() * 4 / 2**20
    print(
        f"{n:,} rows x {len(bound.paths)} tasks: {t:.2f} s (of which {t_bind:.2f} s to learn vocabularies); packed "
        f"tensor {size:.0f} MiB, peak above the table {extra:.0f} MiB = {extra / size:.2f} x the packed tensor"
    )


if __name__ == '__main__':
    torch.set_num_threads(1)
    encode()  # first: what it measures is a peak
    items()
