"""Set-up time and memory of many rows, tasks, classes and deep flows, with the exponent of growth; and what
loader workers hold of the label table"""

import gc, re, sys, time, tracemalloc, warnings
from pathlib import Path
import numpy as np, pandas as pd, torch
from fastai_condmtl.all import *
from fastai_condmtl.data.target_block import EncodedRows
from fastai_condmtl.data.split import StratifiedSplitter
from timing import environment


def measure(f, trace=True):
    "Least seconds of up to three calls, and the peak of one call in MB"
    best, start = float('inf'), time.perf_counter()
    for _ in range(3):
        gc.collect()
        t = time.perf_counter()
        f()
        best = min(best, time.perf_counter() - t)
        if time.perf_counter() - start > 3:
            break
    if not trace:
        return best, 0.0
    tracemalloc.start()
    f()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return best, peak / 2**20


def exponent(sizes, values):
    "Slope of log value over log size"
    if len(sizes) < 2:
        return float("nan")
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def table(n, seed=0):
    "Rows of four kinds of task, a gate, and gaps"
    rng = np.random.default_rng(seed)
    blank = rng.random(n) < 0.1
    return pd.DataFrame(
        dict(
            gate=rng.random(n) < 0.5,
            kind=rng.integers(0, 10, n),
            size=np.where(blank, np.nan, rng.random(n)),
            a=rng.integers(0, 2, n),
            b=rng.integers(0, 2, n),
            age=rng.normal(size=n),
        )
    )


def of_kinds():
    gate, kind = BinaryBlock('gate'), SingleLabelBlock('kind')
    return Flow(
        'rows',
        gate,
        kind,
        BoundedRegressionBlock('size', y_range=(0, 1)) | gate,
        MultiLabelBlock('ab', cols=['a', 'b']) | kind.ne(3),
        UnboundedRegressionBlock('age'),
    )


def of_tasks(n):
    return Flow('tasks', BinaryBlock('t0'), *[BinaryBlock(f't{i}') | task(f't{(i - 1) // 10}') for i in range(1, n)])


def of_depth(n):
    "A chain of conditions, in flows within flows, each with a condition"
    flow = Flow(f'f{n}', BinaryBlock(f't{n}'))
    for i in range(n - 1, 0, -1):
        flow = Flow(f'f{i}', BinaryBlock(f't{i}'), flow | task(f't{i}'))
    return flow


def ones(names):
    return pd.DataFrame(np.ones((50, len(names)), dtype=np.int64), columns=names)


def steps(flow, df, split=True):
    "What happens between a flow and the first batch, `{name: call}`"
    bound = flow.bind(df)
    y = bound.encode(df)
    res = dict(
        bind=lambda: flow.bind(df),
        encode=lambda: bound.encode(df),
        subset=lambda: EncodedRows(y)[list(range(0, len(df), 2))],
    )
    if split:
        res['stratify'] = lambda: StratifiedSplitter(flow, seed=0)(df)
    if len(df) < 10**5:
        res |= dict(
            repr=lambda: (repr(flow), repr(bound)),
            json=lambda: Flow.from_json(flow.to_json()),
            audit=lambda: flow.audit(df),
            loss=lambda: bound.loss_func(torch.zeros(len(y[:50]), bound.c), y[:50]),
            reached=lambda: bound.reached(y),
        )
    return res


CASES = dict(
    rows=([10**5, 10**6, 10**7], lambda n: steps(of_kinds(), table(n), n <= 10**6)),
    tasks=([125, 250, 500, 1000], lambda n: steps(of_tasks(n), ones([f't{i}' for i in range(n)]))),
    classes=(
        [1250, 2500, 5000, 10000],
        lambda n: steps(
            Flow('classes', SingleLabelBlock('x')),
            pd.DataFrame(dict(x=[f'class {i}' for i in np.repeat(np.arange(n), 3)])),
        ),
    ),
    labels=(
        [1250, 2500, 5000, 10000],
        lambda n: steps(
            Flow('labels', MultiLabelBlock('x')),
            pd.DataFrame(
                dict(x=[f'l{i % n},l{(i + 1) % n}' for i in range(200)] + [','.join(f'l{i}' for i in range(n))])
            ),
        ),
    ),
    depth=([12, 25, 50, 100], lambda n: steps(of_depth(n), ones([f't{i}' for i in range(1, n + 1)]))),
)


class Rows:
    "A data set with nothing but labels"

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.rows[i]


def held(pid):
    "MB that a process holds alone (USS), and its share of what it holds with others (PSS)"
    text = Path(f'/proc/{pid}/smaps_rollup').read_text()
    kb = lambda k: sum(map(int, re.findall(rf'^{k}:\s+(\d+)', text, re.M)))
    return (kb('Private_Clean') + kb('Private_Dirty')) / 1024, kb('Pss') / 1024


def workers(n, as_list=False, batches=50, context='fork'):
    """MB that each of two workers holds alone after `batches` batches drawn at random, of `n` rows; `as_list`:
    with positions in a list"""
    y = torch.rand(n, 2, 8)
    rows = EncodedRows(y)[np.random.default_rng(0).permutation(n)]
    if as_list:
        rows.idx, rows.__class__ = rows.idx.tolist(), ListedRows
    dl = torch.utils.data.DataLoader(
        Rows(rows), batch_size=512, shuffle=True, num_workers=2, collate_fn=torch.stack, multiprocessing_context=context
    )
    it = iter(dl)
    for _ in range(batches):
        next(it)
    res = [held(w.pid) for w in it._workers]
    del it
    return res


class ListedRows(EncodedRows):
    "Positions in a list: each look-up counts a reference, and a worker copies the page"

    def __getitem__(self, i):
        return self.y[self.idx[i]]


def show(found):
    "Print the figures of a case: `found` is `{name: [(size, seconds, MB), ...]}`"
    for name, rows in found.items():
        ns, seconds, peaks = zip(*rows)
        times, memory = ('  '.join(f'{x:8.{digits}f}' for x in xs) for xs, digits in ((seconds, 4), (peaks, 1)))
        print(
            f"  {name:9} seconds {times:42} grows as n^{exponent(ns, seconds):4.2f}   "
            f"peak MB {memory:42} n^{exponent(ns, peaks):4.2f}",
            flush=True,
        )


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    print(environment())
    small = '--small' in sys.argv
    for name, (sizes, make) in CASES.items():
        if small:
            sizes = [s // 10 for s in sizes] if name == 'rows' else sizes[:3]
        found = {}
        for n in sizes:
            for step, call in make(n).items():
                found.setdefault(step, []).append((n, *measure(call, step != 'stratify')))
            gc.collect()
        print(f"\n{name}: {', '.join(f'{s:,}' for s in sizes)}")
        show(found)
    n = 10**5 if small else 2 * 10**6
    print(
        f"\nloader workers, {n:,} rows, a label table of {n * 2 * 8 * 4 / 2**20:.0f} MB: MB that each of two holds "
        "alone (USS)"
    )
    for what, as_list in (
        ('positions in an array (this package)', False),
        ('positions in a list of Python integers', True),
    ):
        print(f"  {what:40} {'  '.join(f'{u:7.1f}' for u, _ in workers(n, as_list))}", flush=True)
