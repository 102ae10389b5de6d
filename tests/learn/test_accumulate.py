"Tests of learn/accumulate, and of the rows that it keeps"

from types import SimpleNamespace
import numpy as np
import pytest
import torch
import fastai_condmtl.all  # noqa: F401  methods of flows and learners
from fastai_condmtl.datasets.synthetic import security_flow, security_scenes
from fastai_condmtl.evaluate.interpret import Losses
from fastai_condmtl.learn.accumulate import Accumulator
from fastai_condmtl.loss.ranks import Rows, gather_rows, in_order

COPIES = []


class Away(torch.Tensor):
    "A tensor that says it is on another device, and notes when it is copied to the CPU"

    device = property(lambda self: torch.device('cuda'))

    def cpu(self):
        COPIES.append(self.shape)
        return self.as_subclass(torch.Tensor)


@pytest.fixture
def copies():
    COPIES.clear()
    return COPIES


def away(start, n=2, width=3):
    return (torch.arange(n * width).view(n, width) + 100.0 * start).as_subclass(Away)


def test_rows_come_from_the_device_at_once(copies):
    rows = Rows()
    for k in range(10):
        rows.append(away(k))
    assert not copies and len(rows) == 10
    expected = torch.cat([away(k).as_subclass(torch.Tensor) for k in range(10)])
    assert torch.equal(in_order(rows, []), expected) and len(copies) == 1
    assert len(rows) == 10  # a part a batch, as before
    rows.append(away(10))
    assert len(in_order(rows, [])) == 22 and copies[1:] == [(2, 3)]  # what is here does not come again
    at = [torch.tensor([2 * k + 1, 2 * k]) for k in range(11)]
    assert torch.equal(in_order(rows, at)[:2], expected[[1, 0]]) and len(copies) == 2


def test_the_device_does_not_fill_up(copies, monkeypatch):
    "Beyond some millions of numbers the rows go to the CPU, all that are there in one copy"
    monkeypatch.setattr(Rows, 'at_most', 20)
    rows = Rows()
    for k in range(9):
        rows.append(away(k))
        assert sum(part.numel() for part in rows if type(part) is Away) <= 20
    assert copies == [(8, 3), (8, 3)]  # after 24 numbers, twice
    assert torch.equal(in_order(rows, [])[::2, 0], 100.0 * torch.arange(9))


def test_rows_of_several_processes_stay_on_the_device_until_the_last(copies, monkeypatch):
    "7 rows on two ranks: the eighth was appended, and must not count"
    monkeypatch.setattr('fastai_condmtl.loss.ranks.maybe_gather', lambda x: torch.cat([x, x + 4]))
    dl, rows, at = SimpleNamespace(world_size=2, n=7, n_padded=8), Rows(), []
    for dl.i in (2, 4):
        part, positions = gather_rows(dl, torch.arange(dl.i - 2.0, dl.i)[:, None])
        rows.append(part)
        at.append(positions)
    assert in_order(rows, at)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize('kind', [Accumulator, Losses])
def test_no_batch_is_waited_for(kind, monkeypatch):
    "Nothing is read off a tensor while batches come in, whatever is read at the end"
    df = security_scenes(96, size=16)[1]
    bound = security_flow().bind(df)
    labels, logits = bound.encode(df), torch.randn(96, bound.c)
    learn = SimpleNamespace(loss_func=bound.loss_func)
    read = []
    for name in ('cpu', 'item', 'tolist', 'numpy', '__bool__', '__float__', '__int__', 'nonzero'):
        stock = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda x, *a, n=name, f=stock, **kw: (read.append(n), f(x, *a, **kw))[1]
        )
    acc = kind(bound)
    for k in range(0, 96, 16):
        learn.pred, learn.yb = logits[k : k + 16].clone(), (labels[k : k + 16],)
        for _ in range(3):  # three metrics share it
            acc.accumulate(learn)
    assert not read and len(acc.parts) == 6
    rows = acc.task(bound.paths[0])
    assert 'numpy' in read and len(rows.values) == 96  # the watch sees what is read
    first = bound.paths[bound.families[0].tasks[0]]  # its columns stand first
    assert np.array_equal(torch.cat(acc.parts)[:, 0].numpy(), acc.task(first).summary[:, 0, 0])
