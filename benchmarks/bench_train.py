"""An epoch of validation with all metrics against one without; a training epoch against plain fastai over the
same trunk; what the security scenes reach"""

import tempfile, time
from pathlib import Path
import torch
from torch import nn
from fastai.vision.all import (
    CategoryBlock,
    ColReader,
    CrossEntropyLossFlat,
    DataBlock,
    ImageBlock,
    Learner,
    Normalize,
    RandomSplitter,
    Resize,
    imagenet_stats,
    set_seed,
)
from fastai_condmtl.tools.demo import head, make_learner, trunk
from fastai_condmtl.datasets.synthetic import save_scenes, security_flow
from timing import alternate


def plain_learner(df, path, c):
    "Stock fastai over the same trunk, images and batch size: one label of many classes, its own loss, no metrics"
    dls = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_x=ColReader('img', pref=f'{path}/'),
        get_y=ColReader('scene'),
        splitter=RandomSplitter(seed=0),
        item_tfms=Resize(64),
        batch_tfms=Normalize.from_stats(*imagenet_stats),
    ).dataloaders(df, bs=64, num_workers=1)
    return Learner(dls, nn.Sequential(*list(trunk())[:-3], head(c, 64)), loss_func=CrossEntropyLossFlat())


if __name__ == '__main__':
    torch.set_num_threads(1)  # the loader's worker has the other core
    set_seed(0)
    with tempfile.TemporaryDirectory() as d:
        df = save_scenes(Path(d), n=5000)  # the demo's size
        ours = make_learner(df, security_flow(), d, 64)
        plain = plain_learner(df, d, ours.dls.c)
        every = ours.dls.flow.metrics('all')

        def validate(metrics):
            def f():
                ours.metrics = metrics
                with ours.no_bar(), ours.no_logging():
                    ours.validate()

            return f

        (t0, t1, t2), (_, r1, r2) = alternate(
            validate([]), validate(ours.dls.flow.metrics()), validate(every), rounds=7, inner=1, warmup=1
        )
        print(
            f"validation epoch, {len(ours.dls.valid_ds)} pictures: {t0:.2f} s without metrics; {t1:.2f} s with one a "
            f"task, ratio {r1:.3f}; {t2:.2f} s with all {len(every)}, ratio {r2:.3f} (promised <= 1.05)"
        )
        ours.metrics = ours.dls.flow.metrics()

        def epoch(learn):
            def f():
                with learn.no_bar(), learn.no_logging():
                    learn.fit(1, 1e-3)

            return f

        (t0, t1), (_, r) = alternate(epoch(plain), epoch(ours), rounds=3, inner=1, warmup=0)
        print(
            f"training epoch, {len(ours.dls.train_ds)} pictures: plain fastai, one label {t0:.2f} s; ours, 14 tasks "
            f"with metrics {t1:.2f} s; ratio {r:.3f} (promised <= 1)"
        )
    with tempfile.TemporaryDirectory() as d:
        df = save_scenes(Path(d), n=6000)
        learn = make_learner(df, security_flow(), d, 64)
        t = time.perf_counter()
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(12, 8e-3)
        print(f"security scenes, 6000 pictures, 12 epochs: {time.perf_counter() - t:.0f} s of training")
        with learn.no_bar():
            res = learn.evaluate(metrics=None)
        for r in res.itertuples():
            promise = (
                '>= .99'
                if r.metric_name == 'accuracy' and 'facial' not in r.task_path
                else '<= .02 of the range'
                if r.metric_name == 'mae'
                else ''
            )
            score = r.metric_res / 64 if r.metric_name == 'mae' else r.metric_res
            print(
                f"  {r.task_path:58} {r.metric_name:9} {score:.4f}  {promise:20} trivial "
                f"{r.baseline / 64 if r.metric_name == 'mae' else r.baseline:.4f}  rows {r.num_samples}"
            )
