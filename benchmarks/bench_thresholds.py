"The exact threshold search against one sort of the same scores, and against a grid of 100 thresholds with scikit-learn's F1"
import numpy as np, torch
from sklearn.metrics import f1_score
from fastai_condmtl.thresholds import best_threshold
from timing import alternate

if __name__ == '__main__':
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    p = rng.random((100_000, 8)).astype(np.float32)
    y = rng.random(p.shape) < p**2
    t = torch.from_numpy(p)
    (t0, t1), (_, r) = alternate(lambda: t.sort(0), lambda: best_threshold(p, y), rounds=9, inner=1, warmup=1)
    print(f"100,000 rows x 8 labels: torch.sort {t0*1e3:.1f} ms, exact search {t1*1e3:.1f} ms, ratio {r:.2f} (promised <= 1.5)")
    def grid(): return max((f1_score(y[:, 0], p[:, 0] > c), c) for c in np.linspace(0, 1, 100))
    (t0, t1), (_, r) = alternate(lambda: best_threshold(p[:, 0], y[:, 0]), grid, rounds=3, inner=1, warmup=1)
    (thr, exact), (g, _) = best_threshold(p[:, 0], y[:, 0]), grid()
    print(f"one label: exact {t0*1e3:.1f} ms, F1 {exact:.6f}; 100-point grid {t1*1e3:.0f} ms, F1 {g:.6f}; {r:.0f} times as long")
