"""`learn.tta` averages views of the same rows, whichever rows the loader reads"""

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.vision.all import PILImage, Resize, resnet18

from fastai_condmtl.vision.all import *

N = 12


@pytest.fixture(scope='module', params=['plain', 'with a box'])
def learn(request, tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp('pictures'), np.random.default_rng(0)
    for i in range(N + 4):
        PILImage.create(rng.integers(0, 255, (20, 20, 3)).astype(np.uint8)).save(folder / f'{i}.png')
    df = pd.DataFrame(dict(img=[f'{i}.png' for i in range(N + 4)], y=[0, 1] * (N // 2 + 2)))
    tasks = [BinaryBlock('y')]
    if request.param == 'with a box':
        df['face'] = [[2.0, 3.0, 10.0, 12.0 + i % 4] for i in range(N + 4)]
        tasks.append(BoxBlock('face'))
    options = dict(path=folder, fn_col='img', item_tfms=Resize(16), bs=4, valid_idx=range(N), num_workers=0)
    dls = ConditionalDataLoaders.from_df(df, Flow('f', *tasks), **options)
    return conditional_vision_learner(dls, resnet18, pretrained=False, tune=None)


class Drawn:
    "Other rows in each pass"

    def __init__(self, rows):
        self.rows, self.rng = rows, np.random.default_rng(1)

    def __call__(self):
        return self.rng.permutation(self.rows).tolist()


class Random:
    def __call__(self):
        return np.random.choice(N, 7, replace=False).tolist()


@pytest.mark.parametrize('rows', [[5, 3, 9], [11, 0], list(range(N))[::-1], [4, 4, 2, 2, 7], list(range(N))])
@pytest.mark.parametrize('beta', [0.25, None])
def test_rows_are_those_of_the_loader_in_the_order_of_the_data(learn, rows, beta):
    whole = learn.dls.valid
    with learn.no_bar():
        want, of_whole = learn.tta(dl=whole, n=2, beta=beta)
        found, y = learn.tta(dl=whole.new(get_idxs=Drawn(rows)), n=2, beta=beta)
    one = lambda preds: torch.stack(preds) if isinstance(preds, tuple) else preds[None]
    torch.testing.assert_close(one(found), one(want)[:, sorted(rows)], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(y, of_whole[sorted(rows)])


def test_a_loader_that_draws_anew_gives_all_views_the_same_rows(learn):
    "Predictions are of the labels beside them: each row's mean is that of its own views"
    np.random.seed(0)
    whole = learn.dls.valid
    with learn.no_bar():
        want, labels = learn.tta(dl=whole, n=3)
        found, y = learn.tta(dl=whole.new(get_idxs=Random()), n=3)
    assert len(found) == 7
    rows = [int((want - one).abs().amax(1).argmin()) for one in found]
    assert len(set(rows)) == 7 and rows == sorted(rows)
    torch.testing.assert_close(found, want[rows], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(y, labels[rows])
