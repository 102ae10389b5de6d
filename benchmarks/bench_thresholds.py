"""The exact threshold search against one sort of the same scores, and against a grid of 100 thresholds with
scikit-learn's F1; memory for 1000 tasks; what `ThresholdSearch` adds to a fit"""

import re, tempfile, threading, time
from functools import partial
from pathlib import Path
import numpy as np, torch
from sklearn.metrics import f1_score
from fastai_condmtl.tasks.thresholds import best_threshold
from timing import alternate


def resident():
    "MiB that this process holds"
    return int(re.search(r'VmRSS:\s+(\d+)', Path('/proc/self/status').read_text())[1]) / 2**10


def peak(f):
    "Result of `f`, seconds, and how many MiB it took beyond what was there"
    start, done = resident(), threading.Event()
    most = [start]

    def watch():
        while not done.wait(0.01):
            most[0] = max(most[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    res = f()
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    return res, seconds, most[0] - start


def learner(path, tune):
    from fastai.vision.all import set_seed
    from fastai_condmtl.tools.demo import head, trunk
    from fastai_condmtl.datasets.synthetic import save_scenes, security_flow
    from fastai_condmtl.vision.all import ConditionalDataLoaders, conditional_vision_learner

    set_seed(0)
    df = save_scenes(path, n=1500)
    dls = ConditionalDataLoaders.from_df(df, security_flow(), path=path, fn_col='img', seed=0, num_workers=0)
    return conditional_vision_learner(
        dls, trunk, pretrained=False, normalize=False, custom_head=head(dls.c, 64), tune=tune
    )


def against_sort_and_grid(rng):
    "The search on 8 labels beside one sort, and on one label beside 100 thresholds"
    p = rng.random((100_000, 8)).astype(np.float32)
    y = rng.random(p.shape) < p**2
    t = torch.from_numpy(p)
    (t0, t1), (_, r) = alternate(lambda: t.sort(0), lambda: best_threshold(p, y), rounds=9, inner=1, warmup=1)
    print(
        f"100,000 rows x 8 labels: torch.sort {t0 * 1e3:.1f} ms, exact search {t1 * 1e3:.1f} ms, ratio {r:.2f} "
        "(promised <= 1.5)"
    )

    def grid():
        return max((f1_score(y[:, 0], p[:, 0] > c), c) for c in np.linspace(0, 1, 100))

    (t0, t1), (_, r) = alternate(lambda: best_threshold(p[:, 0], y[:, 0]), grid, rounds=3, inner=1, warmup=1)
    (_, exact), (g, _) = best_threshold(p[:, 0], y[:, 0]), grid()
    print(
        f"one label: exact {t0 * 1e3:.1f} ms, F1 {exact:.6f}; 100-point grid {t1 * 1e3:.0f} ms, F1 {g:.6f}; {r:.0f} "
        "times as long (promised > 100)"
    )


def memory_of_many_tasks(rng):
    many = rng.random((100_000, 1000), dtype=np.float32)
    yes = many > 0.3
    best_threshold(many[:, :50], yes[:, :50])
    (found, _), seconds, mib = peak(lambda: best_threshold(many, yes))
    print(
        f"100,000 rows x 1000 tasks: {seconds:.1f} s; {mib:.0f} MiB beyond the {many.nbytes / 2**20:.0f} MiB of "
        f"scores; all thresholds within {np.abs(found - 0.3).max():.1e} of the truth"
    )


def after_a_fit():
    "What the callback adds to an epoch"

    def fit(learn):
        with learn.no_bar(), learn.no_logging():
            learn.fit(1)

    with tempfile.TemporaryDirectory() as folder:
        sides = [learner(Path(folder), tune) for tune in (None, 'f1_score')]
        (t0, t1), (_, r) = alternate(*[partial(fit, learn) for learn in sides], rounds=5, inner=1, warmup=1)
    print(f"a fit of one epoch, 14 tasks: {t0:.2f} s without, {t1:.2f} s with ThresholdSearch; ratio {r:.3f}")


if __name__ == '__main__':
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    against_sort_and_grid(rng)
    memory_of_many_tasks(rng)
    after_a_fit()
