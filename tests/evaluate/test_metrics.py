"Tests of evaluate/metrics"

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as skm
from fastai.metrics import AvgMetric
from fastai_condmtl.evaluate.metrics import _grown_metrics
from fastai_condmtl.learn.accumulate import Accumulator
from fastai_condmtl.all import (
    BinaryBlock,
    BoundedRegressionBlock,
    CountBlock,
    Flow,
    FlowError,
    MultiLabelBlock,
    OrdinalBlock,
    SingleLabelBlock,
)


def test_labels_do_not_turn_trackers_round():
    bound = Flow('f', MultiLabelBlock('m', vocab=['error_dialog', 'loss', 'ok'])).bind([['ok']])
    names = [m.name for m in bound.metrics(by_label=True)]
    assert len(set(names)) == 3 and not [n for n in names if 'loss' in n or 'error' in n]


def test_metrics_leave_the_loss_where_it_is():
    bound = Flow('f', BinaryBlock('a'), SingleLabelBlock('k', vocab=list('xyz'), class_weights=[1, 2, 3])).bind(
        pd.DataFrame(dict(a=[1], k=['x']))
    )
    loss = bound.loss_func.to('meta')  # as after training on another device
    x, y = torch.randn(4, 4, device='meta'), torch.zeros(4, 2, 2, device='meta')
    assert loss(x, y).device.type == 'meta' and {b.device.type for b in loss.buffers()} == {'meta'}


# ---- a second review: conditions, kinds, scores
# ---------------------------------------------------------------------------
def table(**cols):
    return pd.DataFrame({c: pd.Series(v, dtype=object) for c, v in cols.items()})


def test_ties_rank_as_they_are_decided():
    "All equal: the first class is decided, the second is second, ..."
    k = Flow('f', SingleLabelBlock('k', vocab=range(10))).bind(table(k=[5])).find('k')
    true = torch.tensor([0.0, 1, 2, 3, 4, 9])
    for logits in (torch.zeros(6, 10), torch.full((6, 10), -700.0)):
        s = k.summarise(k.activate(logits), true)
        assert s[:, 0].tolist() == [0] * 6 and s[:, 1].tolist() == true.tolist()
    score = lambda m, p: k.score(
        m, k.summarise(p, t).numpy()[:, None], t.numpy()[:, None], np.ones((len(t), 1), dtype=bool)
    )
    t = true
    assert [score(m, torch.full((6, 10), 0.1)) for m in ('accuracy', 'accuracy_3', 'accuracy_5')] == pytest.approx(
        [1 / 6, 3 / 6, 5 / 6]
    )
    t = torch.randint(0, 10, (200,)).float()
    p = torch.rand(200, 10)
    for m, n in (('accuracy_3', 3), ('accuracy_5', 5)):
        assert score(m, p) == pytest.approx(skm.top_k_accuracy_score(t.numpy(), p.numpy(), k=n, labels=range(10)))


@pytest.mark.parametrize(
    'task',
    [
        BinaryBlock('k'),
        MultiLabelBlock('k', vocab=['a', 'b']),
        SingleLabelBlock('k', vocab=['a', 'b', 'c']),
        OrdinalBlock('k', vocab=['a', 'b', 'c']),
        BoundedRegressionBlock('k', y_range=(0, 1)),
        CountBlock('k'),
    ],
)
def test_predictions_that_are_no_numbers_score_nothing(task):
    "A NaN on a row that counts: no score. On a row that does not: no matter"
    cells = {
        'BinaryBlock': [1, 0, 1, 0],
        'MultiLabelBlock': [['a'], [], ['a', 'b'], ['b']],
        'BoundedRegressionBlock': [0.2, 0.3, 0.4, 1],
        'CountBlock': [0, 1, 2, 5],
    }.get(type(task).__name__, ['a', 'b', 'c', 'a'])
    bound = Flow('f', task).bind(table(k=cells))
    b, y = bound.find('k'), bound.encode(table(k=cells))
    z = torch.randn(4, bound.c)
    z[2] = torch.nan
    acc = Accumulator(bound)
    acc.parts.append(acc.pack(z, y))
    summary, true, mask, _ = acc.task('k')
    metrics = [m for m in b.metrics if m not in ('roc_auc', 'average_precision')]
    assert all(np.isnan(b.score(m, summary, true, mask)) for m in metrics)
    mask = mask.copy()
    mask[2] = False
    assert all(np.isfinite(b.score(m, summary, true, mask)) for m in metrics)
    assert not b.exact or np.isfinite(acc.packed()[1].numpy()).all()  # decisions stay classes


def test_all_scores_and_one_more():
    "A name beside `all` adds to it; each score is there once"
    bound = Flow('f', SingleLabelBlock('k', vocab=list('abcdefgh')), BinaryBlock('a')).bind(
        pd.DataFrame(dict(k=['a'], a=[1]))
    )
    all_of = {path: [m.metric for m in bound.metrics('all', tasks=[path])] for path in bound.paths}
    assert [m.metric for m in bound.metrics('all', 'accuracy_2', tasks=['k'])] == [*all_of['k'], 'accuracy_2']
    assert [m.metric for m in bound.metrics('accuracy_2', 'all', 'acc', tasks=['a'])] == all_of['a']


# ---- what a sample of mutants showed to be untested
# ---------------------------------------------------------------
def test_the_score_at_another_threshold():
    bound = Flow('f', BinaryBlock('a')).bind(pd.DataFrame(dict(a=[0, 1])))
    block, (metric,) = bound.tasks['a'], bound.metrics('f1')
    p, true = np.array([[0.1], [0.4], [0.6], [0.8]]), np.array([[0.0], [1.0], [0.0], [1.0]])
    summary = block.summarise(torch.tensor(p), torch.tensor(true)).numpy()
    for at in (0.3, 0.5, 0.7):
        found = metric.of(block, summary, true, np.ones((4, 1), dtype=bool), torch.tensor([at]))
        assert found == pytest.approx(skm.f1_score(true[:, 0], p[:, 0] > at))


@pytest.mark.parametrize('n_classes, told', [(2, []), (3, []), (4, ['accuracy_3']), (6, ['accuracy_3', 'accuracy_5'])])
def test_the_first_k_of_k_classes_say_nothing(n_classes, told):
    "Of all metrics those of the first k are there where a wrong answer is left"
    k = Flow('f', SingleLabelBlock('k', vocab=list('abcdef')[:n_classes])).bind(table(k=['a']))
    assert [m.metric for m in k.metrics('all') if m.metric.startswith('accuracy_')] == told


def test_a_metric_that_no_task_has():
    bound = Flow('f', BinaryBlock('a')).bind(pd.DataFrame(dict(a=[0, 1])))
    with pytest.raises(FlowError, match='f2x'):
        bound.metrics('f2x')


def test_metrics_go_along_to_another_flow():
    "Kept tasks keep their metrics, in the order of the new flow; new ones get their headline; foreign ones stand last"
    old = Flow('f', SingleLabelBlock('k', vocab=list('xyz')), BinaryBlock('a'), BinaryBlock('gone')).bind(
        pd.DataFrame(dict(k=['x'], a=[1], gone=[0]))
    )
    new = Flow(
        'f',
        BinaryBlock('b'),
        SingleLabelBlock('k2', vocab=list('xy')),
        BinaryBlock('a'),
        OrdinalBlock('o', vocab=['a', 'b']),
    ).bind(pd.DataFrame(dict(b=[1], k2=['x'], a=[1], o=['a'])))
    foreign = AvgMetric(lambda pred, y: 0)
    shown = old.metrics('recall', tasks=['k'], by_label=True)
    metrics = [*old.metrics('accuracy_2', 'f1', tasks=['k', 'a']), foreign, *shown, *old.metrics(tasks=['gone'])]
    grown = _grown_metrics(metrics, new, {'k2': 'k', 'a': 'a'})
    assert grown[-1] is foreign
    names = [m.name for m in grown[:-1]]
    headlines = {m.path: m.name for m in new.metrics()}
    assert names[0] == headlines['b'] and names[-1] == headlines['o']
    assert set(names[1:-1]) == {'k2.accuracy_2', 'k2.f1_score', 'k2.x.recall', 'k2.y.recall', 'a.f1_score'}
    assert names.index('a.f1_score') == len(names) - 2
    assert _grown_metrics([foreign], new, {}) == [foreign]
