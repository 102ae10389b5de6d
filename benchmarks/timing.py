"What the benchmarks share: alternating measurements, medians of ratios, the folder of data sets"

import os, platform, statistics, time
from pathlib import Path
import torch

# Data sets that do not come with the repository, as in tests/conftest.py
DATA = Path(os.environ.get('FASTAI_CONDMTL_DATA') or Path(__file__).resolve().parents[2] / 'shared' / 'data')


def alternate(*fns, rounds=60, inner=10, warmup=5, wait=None):
    """Median seconds a call of each of `fns`, measured in turn, and the median over rounds of each ratio to the first;
    `wait` is called before the clock is read (a device's synchronize)"""
    wait = wait or (lambda: None)
    for f in fns:
        for _ in range(warmup):
            f()
    times = [[] for _ in fns]
    for r in range(rounds):
        for k in range(len(fns)):
            k = (k + r) % len(fns)  # nobody is always first
            wait()
            t = time.perf_counter()
            for _ in range(inner):
                fns[k]()
            wait()
            times[k].append((time.perf_counter() - t) / inner)
    med = [statistics.median(t) for t in times]
    ratios = [statistics.median(b / a for a, b in zip(times[0], t)) for t in times]
    return med, ratios


def environment():
    "One line on what was measured on, without names of machines"
    import fastai, pandas

    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, fastai {fastai.__version__}, pandas "
        f"{pandas.__version__}, {os.cpu_count()} cores"
    )
