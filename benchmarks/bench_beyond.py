"""Labels beyond memory: rows × 14 tasks from Parquet into a packed file. Time, peak memory, and how both grow.

Each size runs in a process of its own, which says its CPU time and its peak of resident memory (`getrusage`); making
the table is another process and is not measured. The growth exponent is the slope of log time over log rows.

    python benchmarks/bench_beyond.py [--rows 100000 1000000 10000000] [--out DIR]
    python benchmarks/bench_beyond.py --rows 1000000 10000000 100000000     # 8 GB of disk, removed afterwards
"""

import argparse, json, os, resource, shutil, subprocess, sys, tempfile, time, warnings
from pathlib import Path
import numpy as np, pandas as pd

STEP = 500_000  # rows of a Parquet file


def the_flow():
    from fastai_condmtl.all import (
        BinaryBlock,
        BoundedRegressionBlock,
        CountBlock,
        Flow,
        OrdinalBlock,
        SingleLabelBlock,
        UnboundedRegressionBlock,
    )

    seen = BinaryBlock('seen')
    kind = SingleLabelBlock('kind') | seen
    yes = [BinaryBlock(f'yes_{i}') | seen for i in range(5)]
    return Flow(
        'f',
        seen,
        kind,
        *yes,
        SingleLabelBlock('colour') | kind.ne('ball'),
        OrdinalBlock('grade') | seen,
        CountBlock('n') | seen,
        BoundedRegressionBlock('share', y_range=(0, 1)) | yes[0],
        UnboundedRegressionBlock('size') | kind.eq('cube'),
        UnboundedRegressionBlock('weight') | seen,
        BoundedRegressionBlock('x'),
    )


def make(folder, n_rows):
    "Write a table of `n_rows` rows, a file of `STEP` rows at a time"
    for start in range(0, n_rows, STEP):
        n, rng = min(STEP, n_rows - start), np.random.default_rng(start)
        gap = lambda values, n=n, rng=rng: pd.Series(values).where(rng.random(n) < 0.8)
        df = pd.DataFrame(dict(seen=gap((rng.random(n) < 0.6).astype(float))))
        df['kind'] = gap(np.array(['ball', 'cube', 'kite'], dtype=object)[rng.integers(0, 3, n)])
        df['colour'] = gap(np.array(['red', 'green', 'blue', 'grey'], dtype=object)[rng.integers(0, 4, n)])
        for i in range(5):
            df[f'yes_{i}'] = gap((rng.random(n) < 0.1 * (i + 1)).astype(float))
        df['grade'], df['n'] = gap(rng.integers(1, 6, n)), gap(rng.poisson(3, n))
        df['share'], df['x'] = gap(rng.random(n)), gap(rng.random(n) * 640)
        df['size'], df['weight'] = gap(rng.normal(40, 9, n)), gap(rng.lognormal(1, 1, n))
        df['is_valid'] = rng.random(n) < 0.1
        df.to_parquet(folder / f'{start:012d}.parquet', row_group_size=1 << 17)


def encode(folder):
    "Encode what stands in `folder`; what it took"
    from fastai_condmtl.data.packed import PackedLabels  # noqa: F401  imports are not measured
    import torch

    torch.set_num_threads(1)
    flow = the_flow()
    idle = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    packed = flow.encode_parquet(folder / '*.parquet', folder / 'labels.packed', valid_col='is_valid')
    wall, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    size = (folder / 'labels.packed').stat().st_size
    at = np.random.default_rng(0).integers(0, len(packed), 2000)
    start = time.perf_counter()
    for i in at.tolist():
        packed[i]
    look_up = (time.perf_counter() - start) / len(at)
    return dict(
        rows=len(packed),
        wall_s=wall,
        cpu_s=used.ru_utime + used.ru_stime - idle.ru_utime - idle.ru_stime,
        peak_mb=used.ru_maxrss / 1024,
        idle_mb=idle.ru_maxrss / 1024,
        file_mb=size / 2**20,
        look_up_us=look_up * 1e6,
    )


def measured(n_rows, out):
    "What one size took, in a folder that is removed"
    folder = Path(tempfile.mkdtemp(dir=out, prefix='beyond_'))
    try:
        subprocess.run([sys.executable, __file__, '--make', str(n_rows), '--out', str(folder)], check=True)
        done = subprocess.run(
            [sys.executable, __file__, '--encode', '--out', str(folder)], check=True, capture_output=True, text=True
        )
        return json.loads(done.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(folder)


def exponent(results, name):
    "The slope of log of a figure over log rows, between neighbours"
    pairs = zip(results, results[1:])
    return [np.log(b[name] / a[name]) / np.log(b['rows'] / a['rows']) for a, b in pairs]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rows', type=int, nargs='+', default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument('--out', default=tempfile.gettempdir())
    parser.add_argument('--make', type=int, help=argparse.SUPPRESS)
    parser.add_argument('--encode', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        return make(Path(args.out), args.make)
    if args.encode:
        warnings.simplefilter('ignore')
        return print(json.dumps(encode(Path(args.out))))
    results = []
    for n_rows in args.rows:
        results.append(measured(n_rows, args.out))
        print(json.dumps({name: round(value, 2) for name, value in results[-1].items()}), flush=True)
    for name in ('cpu_s', 'wall_s'):
        print(f'growth exponent of {name}:', ', '.join(f'{slope:.3f}' for slope in exponent(results, name)))
    if results[-1]['rows'] < 10**9:
        last = results[-1]
        times = 10**9 / last['rows']
        print(
            f'10^9 rows on paper: {last["file_mb"] * times / 1024:.0f} GB, {last["cpu_s"] * times / 3600:.1f} hours of '
            f'one core; positions of a shuffled epoch as a Python list 36 GB a process, as an Order 0'
        )


if __name__ == '__main__':
    sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[1]))
    main()
