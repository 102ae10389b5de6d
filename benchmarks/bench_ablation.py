"""What branches and balancers bring on the drawn security scenes, and on real faces where these are: each choice
alone, a few seeds, a small budget"""

import os, sys, tempfile, time, warnings
from copy import copy
from pathlib import Path
import numpy as np, torch
from torch import nn
from fastai.vision.all import Flatten, Normalize, Resize, ResizeMethod, imagenet_stats, set_seed
from fastai_condmtl.tools.demo import trunk
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.learn.heads import Branch
from fastai_condmtl.datasets.synthetic import save_scenes, security_flow
from fastai_condmtl.vision.all import ConditionalDataLoaders, conditional_vision_learner

HERE = Path(__file__).parent
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
    return Flow(flow.name, *rest, part, features='all', normalise=False), {'all': neck()} | (
        {t.name: Branch(neck(), only_needed=True) for t in part.tasks} if own else {}
    )


def scores(learn, unit):
    "Mean accuracy, and mean absolute error in percent of the range, over the tasks that have one"
    with learn.no_bar(), learn.no_logging():
        t = learn.evaluate(metrics=None)
    return 100 * t[t.metric_name == 'accuracy'].metric_res.mean(), 100 / unit * t[
        t.metric_name == 'mae'
    ].metric_res.mean()


def table(name, runs, seeds):
    "Run each of `runs` with each seed and print what came out"
    print(f'{name}: mean and spread over {seeds} seeds\n  {"":44} accuracy %       error, % of range   s a run')
    for what, run in runs:
        t, res = time.perf_counter(), []
        for s in range(seeds):
            set_seed(s)
            res.append(run(s))
        (a, e), (da, de) = np.mean(res, 0), np.std(res, 0)
        print(
            f'  {what:44} {a:6.2f} ± {da:4.2f}    {e:7.2f} ± {de:4.2f}    {(time.perf_counter() - t) / seeds:8.1f}',
            flush=True,
        )


def scenes(path, n=1200, epochs=6):
    df = save_scenes(path, n=n, size=SIZE)
    df['valid'] = np.arange(n) >= n * 0.7

    def run(balance=None, weight=1.0, own=False):
        def f(seed):
            flow, branches = branched(security_flow(SIZE, box_weight=weight), own)
            dls = ConditionalDataLoaders.from_df(
                df,
                flow,
                path=path,
                fn_col='img',
                valid_col='valid',
                num_workers=0,
                bs=32,
                batch_tfms=Normalize.from_stats(*imagenet_stats),
            )
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


def faces(path):
    "The learner of tests/test_mtfl.py, half as long"
    sys.path.insert(0, str(HERE.parent / 'tests'))
    import test_mtfl as m

    df = m.read_mtfl(path, 'train', m.SIZE).drop(columns='is_valid').iloc[::3].reset_index(drop=True)

    def flow(weight):
        def same(f):
            return Flow(
                f.name,
                *[same(t) if isinstance(t, Flow) else reweigh(t) for t in f.tasks],
                given=f.given,
                normalise=False,
            )

        def reweigh(t):
            t = copy(t)
            t.weight = weight if t.weight != 1 else 1.0
            return t

        return same(m.make_flow())

    def run(balance=None, weight=1.0):
        def f(seed):
            dls = ConditionalDataLoaders.from_df(
                df,
                flow(weight),
                path=path,
                valid_pct=0.25,
                seed=4,
                stratify=True,
                item_tfms=Resize(m.SIZE, method=ResizeMethod.Squish),
                bs=32,
                num_workers=0,
            )
            head = nn.Sequential(Flatten(), nn.Dropout(0.5), nn.Linear(8 * 10 * 10, dls.c))
            learn = conditional_vision_learner(
                dls, m.tiny, pretrained=False, custom_head=head, normalize=False, balance=balance, tune=None
            )
            with learn.no_bar(), learn.no_logging():
                learn.fine_tune(10, base_lr=1e-2, wd=0.3)
            return scores(learn, m.SIZE)

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
        table(
            'security scenes, 14 tasks, 840 to learn from, 360 to judge by, 6 epochs from scratch', scenes(Path(d)), 2
        )
    mtfl = Path(os.environ.get('FASTAI_CONDMTL_DATA') or HERE.parents[1] / 'shared' / 'data') / 'mtfl_mini'
    if (mtfl / 'training.txt').exists():
        table('MTFL, 400 faces, 14 tasks, 10 epochs', faces(mtfl), 2)
    else:
        print('(no pictures of MTFL here: set FASTAI_CONDMTL_DATA to the folder that holds mtfl_mini)')
