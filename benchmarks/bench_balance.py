"A training step with each balancer against the plain sum: 12 tasks, batch 64 of 64×64, the demo's trunk, one thread"

import numpy as np, pandas as pd, torch
from torch import nn
from fastai.vision.all import DataLoaders, Learner, TfmdDL
from fastai_condmtl.tasks.binary import BinaryBlock
from fastai_condmtl.tasks.regression import BoundedRegressionBlock
from fastai_condmtl.tasks.single_label import SingleLabelBlock
from fastai_condmtl.callback.gradients import GradientCosine
from fastai_condmtl.tools.demo import trunk
from fastai_condmtl.equip import equip
from fastai_condmtl.core.flow import Flow
from timing import alternate

BS = 64
METHODS = ['uncertainty', 'dwa', 'famo', 'stch', 'mgda', 'pcgrad', 'upgrad']


def data():
    "One batch of noise with labels of 12 tasks, some missing"
    rng = np.random.default_rng(0)
    gate = BinaryBlock('gate')
    flow = Flow(
        'f',
        gate,
        *[BinaryBlock(f'b{i}') | gate for i in range(3)],
        *[BoundedRegressionBlock(f'r{i}', y_range=(0, 1)) | gate for i in range(5)],
        *[SingleLabelBlock(f's{i}', vocab=list('abcd')) for i in range(3)],
    )
    df = pd.DataFrame(
        {'gate': rng.random(BS) < 0.7}
        | {f'b{i}': rng.random(BS) < 0.5 for i in range(3)}
        | {f'r{i}': rng.random(BS) for i in range(5)}
        | {f's{i}': rng.choice(list('abcd'), BS) for i in range(3)},
        dtype=object,
    )
    df = df.mask(rng.random(df.shape) < 0.1, None)
    bound = flow.bind(df)
    y = bound.encode(df).as_subclass(torch.Tensor)
    return bound, torch.randn(BS, 3, 64, 64), y


def head(c):
    "As fastai's, after an average over the picture"
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(64),
        nn.Dropout(0.25),
        nn.Linear(64, 512, bias=False),
        nn.ReLU(inplace=True),
        nn.BatchNorm1d(512),
        nn.Dropout(0.5),
        nn.Linear(512, c, bias=False),
    )


def wide(c):
    "As the demo's"
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64 * 64, 256, bias=False), nn.BatchNorm1d(256), nn.ReLU(inplace=True), nn.Linear(256, c)
    )


class One:
    "A set of one batch"

    def __init__(self, *b):
        self.b = b

    def __len__(self):
        return BS

    def __getitem__(self, i):
        return tuple(x[i] for x in self.b)


def step(balance=None, cosine=0, head=head):
    "A function that runs one training step of a learner, all callbacks included"
    torch.manual_seed(0)
    bound, x, y = data()
    dls = DataLoaders(*[TfmdDL(One(x, y), bs=BS, num_workers=0)] * 2)
    dls.flow, dls.loss_func = bound, bound.loss_func
    net = nn.Sequential(nn.Sequential(*list(trunk())[:-3]), head(bound.c))
    cbs = GradientCosine(cosine) if cosine else None
    learn = equip(Learner(dls, net, loss_func=bound.loss_func, cbs=cbs), tune=None, balance=balance)
    learn.create_opt()
    learn.opt.set_hypers(lr=1e-3)
    learn.epoch, learn.n_epoch = 0, 1
    learn.train_iter, learn.n_iter = 0, 100
    cbs = [cb for cb in learn.cbs if type(cb).__name__ not in ('ProgressCallback', 'Recorder')]
    learn.cbs = type(learn.cbs)(cbs)
    learn.iter, learn.model.training, learn.training, learn.dl = 0, True, True, dls.train
    learn.model.train()
    learn('before_train')

    def run():
        learn.training = True
        learn.one_batch(0, (x, y))

    return run


if __name__ == '__main__':
    torch.set_num_threads(1)
    for name, h in (("fastai's head", head), ("the demo's head on the whole map", wide)):
        fns = [step(head=h), *[step(m, head=h) for m in METHODS], step(cosine=10, head=h)]
        times, ratios = alternate(*fns, rounds=15, inner=4, warmup=2)
        print(f'{name}: plain sum {times[0] * 1e3:.1f} ms a step')
        for m, r in zip(METHODS, ratios[1:]):
            print(f"  {m:12} {r:.3f}  (promised <= {1.5 if m in ('mgda', 'pcgrad', 'upgrad') else 1.1})")
        print(f'  {"GradientCosine(10)":12} {ratios[-1]:.3f}')
