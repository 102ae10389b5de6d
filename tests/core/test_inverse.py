"""`logits_at`: activations of every kind lead back to logits that give them, means of several and the ends, too"""

import numpy as np, pytest, torch
from scipy.special import logit
from fastai_condmtl.core.inverse import log_odds_of, log_of
import kinds_of_task


def test_against_scipy():
    shares = np.array([1e-12, 0.001, 0.3, 0.5, 0.999, 1 - 1e-12])
    assert log_odds_of(torch.from_numpy(shares)).numpy() == pytest.approx(logit(shares), rel=1e-9, abs=1e-12)
    assert log_of(torch.tensor([0.5, 3.0])).tolist() == pytest.approx(np.log([0.5, 3.0]).tolist())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_ends_are_finite(dtype):
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    odds = log_odds_of(ends)
    assert odds.isfinite().all() and log_of(ends).isfinite().all() and odds[0] < -5 and odds[1] > 4
    assert torch.allclose(odds.sigmoid(), ends, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize('scale', [0.1, 3.0, 60.0])
def test_every_kind(scale):
    "In one flow, with nothing of the library's but `activation` on both sides: the mean of three networks"
    bound, _ = kinds_of_task.bound_with_labels()
    decisions = bound.loss_func.decisions
    each = [decisions.activation(kinds_of_task.logits(bound, scale=scale, seed=seed).double()) for seed in range(3)]
    for acts in (each[0], torch.stack(each).mean(0)):
        again = decisions.activation(decisions.logits_at(acts))
        torch.testing.assert_close(again, acts, rtol=1e-9, atol=1e-12)
    acts = torch.stack(each).mean(0).float()
    torch.testing.assert_close(decisions.activation(decisions.logits_at(acts)), acts, rtol=1e-4, atol=1e-6)
