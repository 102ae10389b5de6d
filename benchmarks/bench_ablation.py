"""What branches and balancers bring on the drawn security scenes, and on real faces where these are: each choice
alone, a few seeds, a small budget"""

import sys, tempfile, time, warnings
from pathlib import Path
import numpy as np, torch
from torch import nn
from fastai.vision.all import Normalize, Resize, ResizeMethod, imagenet_stats, set_seed
from fastai_condmtl.tools.demo import trunk
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.learn.heads import Branch
from fastai_condmtl.datasets.synthetic import save_scenes, security_flow
from fastai_condmtl.vision.all import ConditionalDataLoaders, conditional_vision_learner
from timing import DATA

sys.path.append(str(Path(__file__).resolve().parents[1] / 'tests' / 'helpers'))
import faces_of_mtfl as small

SIZE = 32
BALANCERS = ['uncertainty', 'dwa', 'famo', 'stch', 'upgrad']


def neck():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64 * (SIZE // 8) ** 2, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU(inplace=True)
    )


def branched(flow, own):
    "`flow` with the features `all`, and those of the flows face and body of their own if asked"
    *rest, part = flow.tasks
    part = Flow(
        part.name,
        *[Flow(t.name, *t.tasks, given=t.given, features=t.name if own else None) for t in part.tasks],
        given=part.given,
    )
    branches = {'all': neck()}
    if own:
        branches |= {t.name: Branch(neck(), only_needed=True) for t in part.tasks}
    return Flow(flow.name, *rest, part, features='all', normalise=False), branches


def scores(learn, size):
    "Mean accuracy, and mean absolute error in percent of the picture's `size`, over the tasks that have one"
    with learn.no_bar(), learn.no_logging():
        means = learn.evaluate(metrics=None).groupby('metric_name').metric_res.mean()
    return 100 * means['accuracy'], 100 / size * means['mae']


def table(name, runs, seeds):
    "Run each of `runs` with each seed and print what came out"
    print(f'{name}: mean and spread over {seeds} seeds\n  {"":44} accuracy %       error, % of range   s a run')
    for what, run in runs:
        start, found = time.perf_counter(), []
        for seed in range(seeds):
            set_seed(seed)
            found.append(run())
        each = (time.perf_counter() - start) / seeds
        (right, off), (of_right, of_off) = np.mean(found, 0), np.std(found, 0)
        print(f'  {what:44} {right:6.2f} ± {of_right:4.2f}    {off:7.2f} ± {of_off:4.2f}    {each:8.1f}', flush=True)


def scenes(path, n=1200, epochs=6):
    "Pairs of a name and a function that trains on drawn scenes, and gives the scores"
    df = save_scenes(path, n=n, size=SIZE)
    df['valid'] = np.arange(n) >= n * 0.7
    of_table = dict(path=path, fn_col='img', valid_col='valid', num_workers=0, bs=32)
    norm = Normalize.from_stats(*imagenet_stats)

    def run(balance=None, weight=1.0, own=False):
        def f():
            flow, branches = branched(security_flow(SIZE, box_weight=weight), own)
            dls = ConditionalDataLoaders.from_df(df, flow, batch_tfms=norm, **of_table)
            learn = conditional_vision_learner(
                dls, trunk, pretrained=False, normalize=False, branches=branches, balance=balance, tune=None
            )
            with learn.no_bar(), learn.no_logging():
                learn.fit_one_cycle(epochs, 8e-3)
            return scores(learn, SIZE)

        return f

    return [
        ('plain sum, every weight 1', run()),
        ('sum tuned by hand, boxes x10', run(weight=10.0)),
        *[(b, run(b)) for b in BALANCERS],
        ('uncertainty, boxes x10', run('uncertainty', 10.0)),
        ('branches for face and body, every weight 1', run(own=True)),
        ('branches, boxes x10', run(own=True, weight=10.0)),
    ]


def faces(path, epochs=10):
    "The same of real faces: the learner of tests/datasets/test_mtfl.py, half as long"
    df = small.table(path)
    of_table = dict(path=path, valid_pct=0.25, seed=4, stratify=True, bs=32, num_workers=0)
    squash = Resize(small.SIZE, method=ResizeMethod.Squish)

    def run(balance=None, weight=1.0):
        def f():
            flow = small.flow(weight)
            flow = Flow(flow.name, *flow.tasks, normalise=False)
            dls = ConditionalDataLoaders.from_df(df, flow, item_tfms=squash, **of_table)
            options = dict(pretrained=False, normalize=False, custom_head=small.head(dls.c))
            learn = conditional_vision_learner(dls, small.tiny, balance=balance, tune=None, **options)
            with learn.no_bar(), learn.no_logging():
                learn.fine_tune(epochs, base_lr=1e-2, wd=0.3)
            return scores(learn, small.SIZE)

        return f

    return [
        ('plain sum, every weight 1', run()),
        ('sum tuned by hand, landmarks x20', run(weight=20.0)),
        *[(b, run(b)) for b in ('uncertainty', 'famo', 'upgrad')],
    ]


if __name__ == '__main__':
    torch.set_num_threads(1)
    warnings.filterwarnings('ignore')
    with tempfile.TemporaryDirectory() as d:
        name = 'security scenes, 14 tasks, 840 to learn from, 360 to judge by, 6 epochs from scratch'
        table(name, scenes(Path(d)), seeds=2)
    mtfl = DATA / 'mtfl_mini'
    if (mtfl / 'training.txt').exists():
        table('MTFL, 400 faces, 14 tasks, 10 epochs', faces(mtfl), seeds=2)
    else:
        print('(no pictures of MTFL here: set FASTAI_CONDMTL_DATA to the folder that holds mtfl_mini)')
