"""The exact threshold search against one sort of the same scores, and against a grid of 100 thresholds with
scikit-learn's F1; memory for 1000 tasks; what `ThresholdSearch` adds to a fit"""

import threading, time
import numpy as np, torch
from pathlib import Path
from sklearn.metrics import f1_score
from fastai_condmtl.tasks.thresholds import best_threshold
from timing import alternate


def resident():
    return (
        int(next(l for l in Path('/proc/self/status').read_text().split('\n') if l.startswith('VmRSS')).split()[1])
        / 2**10
    )


def peak(f):
    "Result of `f`, seconds, and how many MiB it took beyond what was there"
    start, most, done = resident(), [0], threading.Event()

    def watch():
        while not done.wait(0.01):
            most[0] = max(most[0], resident())

    t = threading.Thread(target=watch)
    t.start()
    s = time.perf_counter()
    res = f()
    s = time.perf_counter() - s
    done.set()
    t.join()
    return res, s, most[0] - start


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


if __name__ == '__main__':
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
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
    (thr, exact), (g, _) = best_threshold(p[:, 0], y[:, 0]), grid()
    print(
        f"one label: exact {t0 * 1e3:.1f} ms, F1 {exact:.6f}; 100-point grid {t1 * 1e3:.0f} ms, F1 {g:.6f}; {r:.0f} "
        "times as long (promised > 100)"
    )
    many = rng.random((100_000, 1000), dtype=np.float32)
    yes = many > 0.3
    best_threshold(many[:, :50], yes[:, :50])
    (thr, _), s, mib = peak(lambda: best_threshold(many, yes))
    print(
        f"100,000 rows x 1000 tasks: {s:.1f} s; {mib:.0f} MiB beyond the {many.nbytes / 2**20:.0f} MiB of scores; all "
        f"thresholds within {np.abs(thr - 0.3).max():.1e} of the truth"
    )
    import tempfile

    with tempfile.TemporaryDirectory() as d:
        sides = [learner(Path(d), tune) for tune in (None, 'f1_score')]

        def fit(learn):
            with learn.no_bar(), learn.no_logging():
                learn.fit(1)

        (t0, t1), (_, r) = alternate(lambda: fit(sides[0]), lambda: fit(sides[1]), rounds=5, inner=1, warmup=1)
    print(f"a fit of one epoch, 14 tasks: {t0:.2f} s without, {t1:.2f} s with ThresholdSearch; ratio {r:.3f}")
