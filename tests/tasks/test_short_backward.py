"Losses whose backward takes few operations, against how they were written before"

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
import fastai_condmtl.all  # noqa: F401  methods of flows and learners
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.tasks.count import CountBlock
from fastai_condmtl.tasks.ordinal import OrdinalBlock, is_above


def count_before(block, logits, targets, weight):
    bent = logits.clamp(max=block.steep)
    rate = torch.addcmul(bent.exp(), bent.exp(), logits - bent)
    losses = torch.addcmul(rate + torch.xlogy(targets, targets) - targets, targets, logits, value=-1)
    return (losses * weight).sum()


def ordinal_before(block, logits, targets, weight):
    above = logits[..., 1:] + logits[..., :1]
    losses = F.binary_cross_entropy_with_logits(above, is_above(targets, above), reduction='none')
    return (losses.sum(-1) / max(1, above.shape[-1]) * weight).sum()


def count_cells(dtype):
    "Logits on both sides of the bend, and at it"
    torch.manual_seed(0)
    logits = torch.randn(32, 3, dtype=dtype) * 3
    logits[0], logits[1], logits[2] = torch.tensor([14.99, 15.0, 15.01]), 20.0, -1e4
    return CountBlock('k'), logits, torch.randint(0, 6, (32, 3)).to(dtype), torch.rand(32, 3, dtype=dtype)


def ordinal_cells(dtype):
    torch.manual_seed(0)
    logits = torch.randn(96, 5, dtype=dtype) * 3
    return OrdinalBlock('k', vocab=range(5)), logits, torch.randint(0, 5, (96,)).to(dtype), torch.rand(96, dtype=dtype)


KINDS = dict(count=(count_cells, count_before), ordinal=(ordinal_cells, ordinal_before))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('kind', KINDS)
def test_values_and_both_derivatives_are_those_of_before(kind, dtype):
    cells, before = KINDS[kind]
    block, logits, targets, weight = cells(dtype)
    derivatives = []
    for loss in (block.loss, lambda *cells: before(block, *cells)):
        z = logits.clone().requires_grad_()
        value = loss(z, targets, weight)
        (first,) = torch.autograd.grad(value, z, create_graph=True)
        (second,) = torch.autograd.grad((first * torch.linspace(0, 1, len(z), dtype=dtype)[:, None]).sum(), z)
        derivatives.append((value.detach(), first.detach(), second))
    for ours, theirs in zip(*derivatives):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_the_graph_compiles_whole(kind):
    block, logits, targets, weight = KINDS[kind][0](torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(lambda z: block.loss(z, targets, weight), fullgraph=True, backend='aot_eager')
    gradients = []
    for loss in (compiled, lambda z: block.loss(z, targets, weight)):
        z = logits.clone().requires_grad_()
        loss(z).backward()
        gradients.append(z.grad)
    torch.testing.assert_close(*gradients)
    torch._dynamo.reset()


class Operations(TorchDispatchMode):
    "Names of the operators that run"

    def __enter__(self):
        self.seen = []
        return super().__enter__()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize('kind', KINDS)
def test_backward_takes_fewer_operations(kind):
    cells, before = KINDS[kind]
    block, logits, targets, weight = cells(torch.float32)
    n_operations = []
    for loss in (block.loss, lambda *cells: before(block, *cells)):
        value = loss(logits.clone().requires_grad_(), targets, weight)
        with Operations() as operations:
            value.backward()
        n_operations.append(len(operations.seen))
        assert operations.seen
    ours, theirs = n_operations
    assert ours <= theirs - 2, n_operations


@pytest.mark.parametrize('kind', KINDS)
def test_one_class_and_logits_that_are_no_numbers(kind):
    "A flow with a single class keeps a loss of 0; a NaN stays one in the loss and reaches the gradient"
    block, logits, targets, weight = KINDS[kind][0](torch.float32)
    z = logits.clone()
    z[5] = torch.nan
    z.requires_grad_()
    value = block.loss(z, targets, weight)
    value.backward()
    assert value.isnan() and z.grad[5].isnan().all() and z.grad[6].isfinite().all()
    only = Flow('f', OrdinalBlock('k', vocab=['a'])).bind(pd.DataFrame(dict(k=['a', 'a'])))
    alone = torch.zeros(2, only.c, requires_grad=True)
    loss = only.loss_func(alone, only.encode(pd.DataFrame(dict(k=['a', 'a']))))
    loss.backward()
    assert loss.item() == 0 and (alone.grad == 0).all()
