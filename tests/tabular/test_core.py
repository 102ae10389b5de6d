"""Batches of tables have memory of their own"""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.tabular.all import TabDataLoader

from fastai_condmtl.tabular.all import *

N = 40
RNG = np.random.default_rng(0)
TABLE = pd.DataFrame(
    dict(
        x=RNG.normal(size=N), z=RNG.normal(size=N), job=RNG.choice(list('uvw'), N), a=[0, 1] * 20, n=RNG.normal(size=N)
    )
)
FLOW = Flow('f', BinaryBlock('a'), UnboundedRegressionBlock('n'))
INPUTS = [dict(cont_names=['x', 'z']), dict(cont_names=['x', 'z'], cat_names=['job']), dict(cat_names=['job'])]


@pytest.fixture(params=INPUTS, ids=str)
def learn(request):
    dls = ConditionalTabularDataLoaders.from_df(TABLE, FLOW, valid_idx=range(30, N), bs=8, **request.param)
    return conditional_tabular_learner(dls, layers=[4], tune=None)


def test_torch_warns_of_no_array_that_is_read_only(learn, capsys):
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(record=True) as caught, learn.no_bar(), learn.no_logging():
            warnings.simplefilter('always')
            learn.fit(1)
            learn.predict(TABLE.iloc[0])
            learn.predict_df(TABLE)
            learn.evaluate(TABLE)
            learn.dls.show_batch()
            learn.show_results()
    finally:
        torch.set_warn_always(False)
    assert not [str(warning.message) for warning in caught if 'writable' in str(warning.message)]


def test_batches_are_those_of_stock_fastai_and_leave_the_table_alone(learn):
    dl = learn.dls.valid
    batch, stock = dl.one_batch(), TabDataLoader(dl.dataset, bs=8).one_batch()
    assert [part.dtype for part in batch] == [part.dtype for part in stock]
    for part, other in zip(batch, stock):
        assert torch.equal(part, other)
    before = dl.dataset.items.copy()
    for part in batch:
        part.fill_(7)
    pd.testing.assert_frame_equal(dl.dataset.items, before)


def test_a_loader_with_other_transforms_of_batches_keeps_them():
    seen = []
    dls = ConditionalTabularDataLoaders.from_df(TABLE, FLOW, cont_names=['x'], valid_idx=range(30, N), bs=8)
    stock = dls.valid.after_batch.fs
    dl = dls.valid.new(after_batch=[*stock, lambda batch: seen.append(len(batch)) or batch])
    dl.one_batch()
    assert seen
