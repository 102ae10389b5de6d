"""One small network from scratch on pictures with several questions: our flow by stock calls, the same network by hand
in plain PyTorch, a network a task, the trivial predictor. What mtfl.py, utkface.py and scenes.py share."""

import argparse, time
from functools import partial
from pathlib import Path
import numpy as np, torch
from fastai.vision.all import Flip, Normalize, Resize, ResizeMethod, defaults, imagenet_stats, set_seed
from torch import nn
from fastai_condmtl.tools.demo import head, trunk
from fastai_condmtl.vision.all import ConditionalDataLoaders, conditional_vision_learner
from pictures_common import (
    ByHand,
    decided_by,
    decided_by_hand,
    packed_labels,
    scores_of,
    show_columns,
    show_row,
    skills_of,
    train_by_hand,
    trivial_decided,
)


class SmallNet:
    """Arms on one table: the demo's five convolutions and its head, in so many epochs. A subclass says what is scored;
    `valid_col` says which rows are judged"""

    def __init__(self, df, flow, path, size, epochs, lr, bs=64, batch_tfms=(), workers=None):
        self.size, self.epochs, self.lr = size, epochs, lr
        self.loaders = partial(
            ConditionalDataLoaders.from_df,
            df,
            flow,
            path=path,
            fn_col='img',
            valid_col='is_valid',
            bs=bs,
            num_workers=min(8, defaults.cpus - 1) if workers is None else workers,
            item_tfms=Resize(size, method=ResizeMethod.Squish),
            batch_tfms=[*batch_tfms, Normalize.from_stats(*imagenet_stats)],
        )

    def ours(self, seed):
        "By stock calls"
        set_seed(seed)
        dls = self.loaders()
        learn = conditional_vision_learner(
            dls, trunk, pretrained=False, normalize=False, custom_head=head(dls.c, self.size)
        )
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(self.epochs, self.lr)
        return self.scores(dls, decided_by(learn, dls.valid))

    def by_hand(self, seed, groups=None):
        "The same network in plain PyTorch; or one for each group of tasks, which share its epochs"
        set_seed(seed)
        dls = self.loaders()
        groups = groups or [list(dls.flow.paths)]
        decided = torch.full((dls.valid.n, dls.flow.n_targets), torch.nan)
        for paths in groups:
            hand = ByHand(dls.flow, paths)
            model = nn.Sequential(trunk()[:5], head(hand.n_out, self.size))
            train_by_hand(hand, model, dls.train, max(1, round(self.epochs / len(groups))), self.lr)
            own = decided_by_hand(hand, model, dls.valid)
            decided = torch.where(own.isnan(), decided, own)
        return self.scores(dls, decided)

    def single(self, seed):
        "A network a task"
        return self.by_hand(seed, self.alone(list(self.loaders().flow.paths)))

    def trivial(self):
        dls = self.loaders()
        train = packed_labels(dls.train.new(shuffle=False, drop_last=False))
        return self.scores(dls, trivial_decided(dls.flow, train, dls.valid.n))

    def alone(self, paths):
        "Groups of tasks that have a network of their own; a subclass keeps coordinates together"
        return [[path] for path in paths]

    def scores(self, dls, decided):
        "Name → score of decided values `(N, D)` of the rows that are judged"
        return scores_of(dls.flow, decided, packed_labels(dls.valid))


def face_parser(about):
    "The parser of a script that takes a folder of faces"
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--epochs', type=int, default=7)
    parser.add_argument('--size', type=int, default=64, help='width and height that the pictures are squashed to')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--workers', type=int, help='that read pictures')
    return parser


def face_options(args):
    "What `SmallNet` takes of these arguments"
    return dict(size=args.size, epochs=args.epochs, lr=8e-3, batch_tfms=[Flip()], workers=args.workers)


def show_table(arms, seeds, names=('ours', 'by_hand', 'single'), title='', columns=None):
    "Print a row an arm; `columns` picks and orders the scores"
    trivial = arms.trivial()
    columns = columns or list(trivial)
    show_columns(title, [*columns, 'skill'])
    for name in names:
        start = time.perf_counter()
        runs = [getattr(arms, name)(seed) for seed in range(seeds)]
        took = (time.perf_counter() - start) / seeds
        show_row(f'{name}, {took:.0f} s', [row(run, trivial, columns) for run in runs])
    show_row('trivial', [row(trivial, trivial, columns)])


def row(scores, trivial, columns):
    "The columns of a run, and its mean skill; the worst of several is in their mean already"
    skills = skills_of(scores, trivial)
    mean = np.nanmean([skills[name] for name in columns if not name.startswith('worst')])
    return {name: scores[name] for name in columns} | dict(skill=float(mean))
