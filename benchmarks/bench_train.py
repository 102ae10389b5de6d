"""A training epoch against a hand-written PyTorch loop; an epoch of validation with all metrics against one without;
a training epoch against plain fastai over the same trunk; what the security scenes reach"""

import copy, math, sys, tempfile, time
from collections import deque
from functools import partial
from pathlib import Path
import numpy as np, pandas as pd, torch
import torch.nn.functional as F
from PIL import Image
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
    aug_transforms,
    imagenet_stats,
    set_seed,
)
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.tasks.keypoints import KeypointsBlock
from fastai_condmtl.tools.demo import head, make_learner, trunk
from fastai_condmtl.datasets.synthetic import save_scenes, security_flow
from fastai_condmtl.data import steps
from fastai_condmtl.vision.all import ConditionalDataLoaders, conditional_vision_learner
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


MEAN, STD = (torch.tensor(x)[:, None, None] for x in imagenet_stats)


class ByHand(torch.utils.data.Dataset):
    "A file and its packed labels, as somebody writes it for one project"

    def __init__(self, files, labels):
        self.files, self.labels = files, labels

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        picture = Image.open(self.files[i]).convert('RGB').resize((64, 64), Image.BILINEAR)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1), self.labels[i]


def turned(x, y, columns):
    """Pictures flipped, turned by up to 10 degrees and zoomed by up to 1.1, each by its own draw; points, in these
    `columns` of `y`, go with them, and do not count outside"""
    angle = (torch.rand(len(x)) * 2 - 1) * 10 * math.pi / 180
    zoom, side = 1 / (1 + torch.rand(len(x)) * 0.1), torch.where(torch.rand(len(x)) < 0.5, -1.0, 1.0)
    cos, sin, none = angle.cos() * zoom, angle.sin() * zoom, torch.zeros(len(x))
    matrix = torch.stack([torch.stack([cos * side, -sin, none], 1), torch.stack([sin * side, cos, none], 1)], 1)
    grid = F.affine_grid(matrix, x.shape, align_corners=False)
    x = F.grid_sample(x, grid, mode='bilinear', padding_mode='reflection', align_corners=False)
    if columns:
        values, mask = y.unbind(1)
        moved = torch.linalg.solve(matrix[:, :, :2], values[:, columns].unflatten(1, (-1, 2)).mT).mT
        inside = (moved.abs() <= 1).all(2, keepdim=True).expand_as(moved).flatten(1)
        mask[:, columns] *= inside
        values[:, columns] = moved.flatten(1) * mask[:, columns]
    return x, y


def by_hand(learn, files, augment):
    "A function that trains the same network for an epoch, without fastai"
    rows = learn.dls.train_ds.tls[1].items
    labels, columns = rows.packed().as_subclass(torch.Tensor).clone(), [] if rows.geo is None else list(rows.geo.cols)
    labels[:, 0, columns] = (labels[:, 0, columns] / 64 - 1) * labels[:, 1, columns]  # pixels of 128 become -1 to 1
    names = [files[i] for i in learn.dls.train_ds.tls[0].items.index]
    model, loss_func = copy.deepcopy(learn.model), learn.loss_func.clone()
    loader = torch.utils.data.DataLoader(
        ByHand(names, labels), batch_size=64, shuffle=True, drop_last=True, num_workers=1
    )
    opt = torch.optim.Adam(model.parameters(), 1e-3)

    def epoch():
        model.train()
        for x, y in loader:
            x = x.float().div_(255)
            if augment:
                x, y = turned(x, y, columns)
            x = (x - MEAN) / STD
            loss = loss_func(model(x), y)
            opt.zero_grad()
            loss.backward()
            opt.step()

    return epoch


def against_by_hand(n=1000, rounds=7):
    "A training epoch of ours against a loop by hand over the same files, network, loss, augmentation and workers"
    with tempfile.TemporaryDirectory() as folder:
        df, points = scenes_with_points(folder, n)
        files = [Path(folder) / name for name in df['img']]
        for what, flow in (('labels', security_flow(128)), ('labels and points', points)):
            for augment in (False, True):
                learn = small_learner(df, flow, folder, augment)
                hand = by_hand(learn, files, augment)
                sides = hand, partial(own_epoch, learn), partial(with_stock_items, learn)
                (t0, t1, t2), (_, ours, before) = alternate(*sides, rounds=rounds, inner=1, warmup=1)
                print(
                    f"training epoch, {len(learn.dls.train_ds)} files of 128 px at 64 px, {what}, "
                    f"{'flip, turn and zoom' if augment else 'no augmentation'}: by hand {t0:.2f} s; ours {t1:.2f} s, "
                    f"ratio {ours:.3f} (promised <= 1.10); with fastai's dispatch {t2:.2f} s, ratio {before:.3f}"
                )


def points_against_labels(n=1000, rounds=9):
    "The batches of an epoch, coordinates among the labels, against those of labels only; no network"
    with tempfile.TemporaryDirectory() as folder:
        df, points = scenes_with_points(folder, n)
        for augment in (False, True):
            both = [small_learner(df, flow, folder, augment).dls.train for flow in (security_flow(128), points)]
            (t0, t1), (_, ratio) = alternate(*[partial(deque, dl, 0) for dl in both], rounds=rounds, inner=1, warmup=1)
            print(
                f"batches of {len(both[0].dataset)} files, one worker, "
                f"{'flip, turn and zoom' if augment else 'no augmentation'}: labels {t0:.2f} s; and points {t1:.2f} s, "
                f"ratio {ratio:.3f} (promised <= 1.10)"
            )


def scenes_with_points(folder, n):
    "A table of `n` scenes of 128 pixels with two points, and the flow of all its labels"
    df = save_scenes(Path(folder), n=n, size=128)
    names = ['ax', 'ay', 'bx', 'by']
    df = pd.concat([df, pd.DataFrame(np.random.default_rng(0).uniform(5, 120, (n, 4)), columns=names)], axis=1)
    return df, Flow('f', security_flow(128), KeypointsBlock('points', cols=names))


def small_learner(df, flow, folder, augment):
    "The demo's network on pictures of 128 pixels, read at 64"
    tfms = aug_transforms(max_rotate=10, max_zoom=1.1, max_lighting=0.0, max_warp=0.0, p_affine=1.0) if augment else []
    dls = ConditionalDataLoaders.from_df(
        df,
        flow,
        path=folder,
        fn_col='img',
        seed=0,
        num_workers=1,
        item_tfms=Resize(64, method='squish'),
        batch_tfms=[*tfms, Normalize.from_stats(*imagenet_stats)],
    )
    args = dict(pretrained=False, normalize=False, custom_head=head(dls.c, 64))
    return conditional_vision_learner(dls, trunk, metrics=[], tune=None, **args)


def own_epoch(learn):
    "One training epoch, without validation"
    with learn.no_bar(), learn.no_logging():
        learn._do_epoch_validate = lambda *args, **kwargs: None
        try:
            learn.fit(1, 1e-3)
        finally:
            del learn._do_epoch_validate


def with_stock_items(learn):
    "One training epoch whose items go through fastai's dispatch"
    why, steps.why_no_steps = steps.why_no_steps, lambda dl: 'asked for'
    try:
        own_epoch(learn)
    finally:
        steps.why_no_steps = why


def epoch(learn):
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)


def against_fastai():
    "An epoch of validation without metrics and with them; a training epoch beside plain fastai's"
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

        (t0, t1), (_, r) = alternate(*[partial(epoch, learn) for learn in (plain, ours)], rounds=3, inner=1, warmup=0)
        print(
            f"training epoch, {len(ours.dls.train_ds)} pictures: plain fastai, one label {t0:.2f} s; ours, 14 tasks "
            f"with metrics {t1:.2f} s; ratio {r:.3f} (promised <= 1)"
        )


def what_scenes_reach():
    "A training of the demo's network, and the scores of each task beside the trivial ones"
    with tempfile.TemporaryDirectory() as d:
        df = save_scenes(Path(d), n=6000)
        learn = make_learner(df, security_flow(), d, 64)
        t = time.perf_counter()
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(12, 8e-3)
        print(f"security scenes, 6000 pictures, 12 epochs: {time.perf_counter() - t:.0f} s of training")
        with learn.no_bar():
            res = learn.evaluate(metrics=None)
        promises = dict(accuracy='>= .99', mae='<= .02 of the range')
        for r in res.itertuples():
            unit = 64 if r.metric_name == 'mae' else 1
            print(
                f"  {r.task_path:58} {r.metric_name:9} {r.metric_res / unit:.4f}  "
                f"{promises.get(r.metric_name, ''):20} trivial {r.baseline / unit:.4f}  rows {r.num_samples}"
            )


if __name__ == '__main__':
    torch.set_num_threads(1)  # the loader's worker has the other core
    points_against_labels()
    against_by_hand()
    if '--by-hand' not in sys.argv:
        set_seed(0)
        against_fastai()
        what_scenes_reach()
