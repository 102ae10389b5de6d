"""A heavy branch on the rows that need it, against the trunk plus that share of the branch, and against the
branch on every row: batch 32, one thread"""

import numpy as np, pandas as pd, torch
from torch import nn
from fastai_condmtl.tasks.binary import BinaryBlock
from fastai_condmtl.tasks.regression import BoundedRegressionBlock
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.learn.heads import Branch, NeededRows, conditional_head
from timing import alternate


def conv(ni, nf, stride=1):
    return nn.Sequential(nn.Conv2d(ni, nf, 3, stride, 1, bias=False), nn.BatchNorm2d(nf), nn.ReLU())


def trunk():
    return nn.Sequential(conv(3, 32, 2), conv(32, 64, 2))


def heavy():
    return nn.Sequential(*[conv(64, 64) for _ in range(8)])


class NoBranch(nn.Module):
    "Zeros in place of what the branch and its heads give"

    def forward(self, x):
        return x.new_zeros((len(x), 5))


def network(share, only_needed, bs):
    "A network whose branch `share` of the rows of its batch need, its packed labels and its input"
    torch.manual_seed(0)
    person = BinaryBlock('person')
    flow = Flow(
        'f',
        person,
        Flow(
            'face',
            *[BoundedRegressionBlock(f'x{i}', y_range=(0, 1)) for i in range(4)],
            BinaryBlock('smile'),
            features='face',
        )
        | person,
    )
    rng = np.random.default_rng(0)
    df = pd.DataFrame(
        dict(
            person=rng.permutation(np.arange(bs) < round(share * bs)),
            smile=rng.random(bs) < 0.5,
            **{f'x{i}': rng.random(bs) for i in range(4)},
        )
    )
    bound = flow.bind(df)
    body = trunk()
    head = conditional_head(bound, torch.zeros(2, 64, 16, 16), dict(face=Branch(heavy(), only_needed)))
    return bound, nn.Sequential(body, head), bound.encode(df).as_subclass(torch.Tensor), torch.randn(bs, 3, 64, 64)


def train(bound, model, y, x):
    loss = bound.loss_func

    def step():
        model.zero_grad(set_to_none=True)
        model[1].context = NeededRows(len(x), y[:, 1])
        loss(model(x), y).backward()

    return step


def infer(bound, model, y, x):
    "Decisions of `person` are forced to be its labels, so that the share is the one wanted"
    model.eval()
    loss = bound.loss_func
    with torch.no_grad():
        unit = model[1].units[0]
        unit.register_forward_hook(lambda m, i, out: out * 0 + (y[:, 0, :1] * 2 - 1) * 9)

    @torch.no_grad()
    def step():
        model[1].context = NeededRows(len(x), None, loss)
        return loss.decodes(loss.activation(model(x)))

    return step


if __name__ == '__main__':
    torch.set_num_threads(1)
    bs = 32
    for name, make in (('training', train), ('inference', infer)):
        nothing = network(0.0, True, bs)
        nothing[1][1].units[1] = NoBranch()  # what is left is the trunk and all that is not the branch
        always = make(*network(1.0, False, bs))
        for share in (0.1, 0.3, 0.6, 1.0):
            bare = make(*[*nothing[:2], *network(share, True, bs)[2:]])
            ours = make(*network(share, True, bs))
            (t_bare, t_all, t_ours), _ = alternate(bare, always, ours, rounds=15, inner=2)
            expected = t_bare + share * (t_all - t_bare)
            print(
                f'{name:9} rows needed {share:4.0%}: {t_ours * 1e3:6.1f} ms, of trunk + share of the branch '
                f'{t_ours / expected:.3f} (promised 1.15), of the branch on every row {t_ours / t_all:.3f}'
                + (' (promised 1.05)' if share == 1 else '')
            )
