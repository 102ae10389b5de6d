"Tests of tasks/answer_sets and of the sets of each kind, by loops over answers"

import numpy as np
import pandas as pd
import pytest
import torch

from fastai_condmtl.all import *


def acts_of(n, k, seed=0):
    return torch.softmax(torch.randn(n, k, generator=torch.Generator().manual_seed(seed)).double() * 2, 1)


def test_ordinal_sets_have_no_gap_and_score_tails():
    block = OrdinalBlock('o', vocab=[1, 2, 3, 4, 5]).bind(pd.DataFrame(dict(o=[1])))
    acts, limits = acts_of(200, 5), torch.rand(1, 5, generator=torch.Generator().manual_seed(1)).double()
    decided = block.decide(acts)[:, None]
    sets = block.answer_sets(acts, limits, decided)[:, 0].numpy()
    for p, own, first in zip(acts.numpy(), sets, decided[:, 0].long().tolist()):
        tails = [max(p[:k].sum(), p[k + 1 :].sum()) for k in range(5)]
        inside = [k for k in range(5) if tails[k] <= limits[0, k] + 1e-12 or k == first]
        assert np.flatnonzero(own).tolist() == list(range(inside[0], inside[-1] + 1))


def test_sub_classes_stay_within_a_class():
    df = pd.DataFrame(dict(c=['a', 'a', 'b', 'b', 'b'], s=['a0', 'a1', 'b0', 'b1', 'b2']))
    over = SingleLabelBlock('c')
    block = Flow('f', over, SingleLabelBlock('s', within=over)).bind(df).tasks['s']
    acts, limits = block.activate(torch.randn(100, 5).double()), torch.full((1, 5), 0.7).double()
    decided, labels = torch.randint(5, (2, 100, 1))
    of_class = np.array([0, 0, 1, 1, 1])
    for beside in (None, labels):
        sets = block.answer_sets(acts, limits, decided, beside)[:, 0].numpy()
        for i, own in enumerate(sets):
            around = of_class[int((decided if beside is None else beside)[i])]
            siblings = np.flatnonzero(of_class == around)
            p, first = acts[i].numpy(), int(decided[i])
            best = first if first in siblings else siblings[p[siblings].argmax()]
            assert set(np.flatnonzero(own)) == {k for k in siblings if 1 - p[k] <= 0.7} | {best}


def test_votes_and_shares_answer_by_the_larger_part():
    votes = VotesBlock('v', cols=['p', 'q']).bind(pd.DataFrame(dict(p=[3, 0], q=[1, 5])))
    vals = torch.tensor([[3.0, 1], [0, 5]])
    assert votes.answer_of(vals).tolist() == [[0], [1]]
    assert votes.nonconformity(torch.tensor([[0.8, 0.2], [0.3, 0.7]]), vals).tolist() == [[pytest.approx(0.2)]] + [
        [pytest.approx(0.3)]
    ]
    shares = BinaryBlock('s', soft=True).bind(pd.DataFrame(dict(s=[0.2, 0.9])))
    assert shares.answer_of(torch.tensor([[0.2], [0.9]])).tolist() == [[0], [1]]


def test_thresholds_decide_and_the_set_holds_the_decision():
    block = BinaryBlock('b', threshold=0.2).bind(pd.DataFrame(dict(b=[0, 1])))
    acts = torch.tensor([[0.3]])
    sets = block.answer_sets(acts, torch.tensor([[0.5, 0.5]]), block.decide(acts, 0.2))
    assert block.told_set(sets[0]) == [False, True]  # .3 is a likely no, and decided yes


@pytest.mark.parametrize('op, bounds', [('gt', (5,)), ('le', (5,)), ('between', (3, 6))])
def test_a_number_answers_a_condition_where_its_whole_interval_does(op, bounds):
    size = UnboundedRegressionBlock('size')
    ask = dict(gt=lambda: size > 5, le=lambda: size <= 5, between=lambda: size.between(3, 6))[op]()
    df = pd.DataFrame(dict(size=[0.0, 4, 8], b=[1, 0, 1]))
    block = Flow('f', size, BinaryBlock('b') | ask).bind(df).tasks['size']
    rng = np.random.default_rng(0)
    ends = np.sort(rng.uniform(0, 9, (300, 2)), 1)
    one = block.one_answer(torch.tensor(block.scale(ends))[:, None])
    yes = dict(gt=lambda x: x > 5, le=lambda x: x <= 5, between=lambda x: (x >= 3) & (x <= 6))[op]
    for (low, high), has_one in zip(ends, one.tolist()):
        assert has_one == (len(set(yes(np.linspace(low, high, 400)))) == 1)


def test_a_count_answers_a_condition_where_its_whole_interval_does():
    birds = CountBlock('birds')
    conditions = [birds.eq(2), birds > 3, birds.between(1, 4), birds < 1]
    yes = [lambda n: n == 2, lambda n: n > 3, lambda n: 1 <= n <= 4, lambda n: n < 1]
    for condition, truth in zip(conditions, yes):
        df = pd.DataFrame(dict(birds=[0, 2, 5], b=[1, 0, 1]))
        block = Flow('f', birds, BinaryBlock('b') | condition).bind(df).tasks['birds']
        for low in range(7):
            for high in range(low, 7):
                one = block.one_answer(torch.tensor([[[low, high]]]) / block.span)
                assert one.tolist() == [len({truth(n) for n in range(low, high + 1)}) == 1]


def test_kinds_without_sets_say_so():
    block = KeypointsBlock('p', cols=['x', 'y'])
    assert block.set_kind is None
    with pytest.raises(FlowError, match='set_kind'):
        block.nonconformity(torch.zeros(1, 2), torch.zeros(1, 2))
