"""A scorer on two workers of one thread (Ray Data, a pool of processes) against one process of one thread: pictures
as bytes of PNG, 96 px, ResNet-18. Needs ray and pyarrow, and two idle cores"""

import os, sys, tempfile, time
from importlib.util import find_spec
from pathlib import Path

os.environ['OMP_NUM_THREADS'] = '1'  # before torch, here and in the workers
ROOT = Path(__file__).resolve().parents[1]
ROWS, BATCH, PAIRS = 1536, 64, 5


def ratios(one, two):
    "Of each pair of runs how many times as fast the second side is, and the seconds of both; they begin by turns"
    times = {one: [], two: []}
    for i in range(PAIRS):
        for side in (one, two) if i % 2 else (two, one):
            start = time.perf_counter()
            side()
            times[side].append(time.perf_counter() - start)
    return [a / b for a, b in zip(times[one], times[two])], times


def told(name, one, two):
    "One line on how many times as fast the second side is"
    import numpy as np

    found, times = ratios(one, two)
    low, middle, high = np.quantile(found, [0.25, 0.5, 0.75])
    print(
        f'{name}: {middle:.2f} times as fast as one process (quartiles {low:.2f} to {high:.2f}, {PAIRS} pairs; '
        f'{np.median(times[one]):.2f} s and {np.median(times[two]):.2f} s for {ROWS} pictures)'
    )


def main():
    import pandas as pd, torch
    from fastai.vision.all import Resize, resnet18
    from fastai_condmtl.datasets.synthetic import save_scenes, security_flow
    from fastai_condmtl.vision.all import ConditionalDataLoaders, conditional_vision_learner

    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    df = save_scenes(folder, n=64, size=96)
    resize = Resize(96, method='squish')
    dls = ConditionalDataLoaders.from_df(
        df, security_flow(96), path=folder, fn_col='img', num_workers=0, item_tfms=resize
    )
    learn = conditional_vision_learner(dls, resnet18, pretrained=False)
    scorer = learn.scorer(folder / 'model.pkl', columns='picture')
    pictures = [(folder / name).read_bytes() for name in df.img]
    table = pd.DataFrame(dict(picture=(pictures * (ROWS // len(pictures) + 1))[:ROWS]))
    batches = [table[i : i + BATCH] for i in range(0, ROWS, BATCH)]

    def one():
        assert sum(len(scorer(batch)) for batch in batches) == ROWS

    one()
    with_ray(scorer, table, one)
    with_pool(scorer, batches, one)


def with_ray(scorer, table, one):
    "Ray Data on two workers that have loaded the model"
    import ray

    environment = dict(env_vars=dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    ray.data.DataContext.get_current().enable_progress_bars = False
    data = ray.data.from_pandas(table).repartition(ROWS // BATCH).materialize()

    def two():
        scored = data.map_batches(scorer, batch_format='pyarrow', batch_size=BATCH).materialize()
        assert scored.count() == ROWS

    two(), two()  # both workers load the model
    told('Ray Data, two workers', one, two)
    ray.shutdown()


def with_pool(scorer, batches, one):
    "A plain pool of two processes"
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(2, get_context('spawn')) as pool:

        def two():
            assert sum(len(scored) for scored in pool.map(scorer, batches)) == len(batches) * BATCH

        two(), two()
        told('ProcessPoolExecutor, two workers', one, two)


if __name__ == '__main__':
    missing = [name for name in ('ray', 'pyarrow') if find_spec(name) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} is not installed: pip install 'fastai_condmtl[ray]'")
    main()
