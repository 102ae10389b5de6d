"Tests of core/prediction"

import matplotlib.figure
import pandas as pd
import pytest
import torch
from fastai_condmtl.tasks.binary import BinaryBlock
from fastai_condmtl.tasks.regression import BoundedRegressionBlock, UnboundedRegressionBlock
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.core.prediction import FlowPrediction, shortened
from fastai_condmtl.tasks.multi_label import MultiLabelBlock
from fastai_condmtl.tasks.single_label import SingleLabelBlock

A, B, C = map(BinaryBlock, 'abc')


def test_a_prediction_reads_as_the_table(capsys):
    df = pd.DataFrame(dict(a=[1, 0], k=['x', 'y'], n=[0.0, 2.0], tags=['r', 'g']))
    bound = Flow(
        'f', A, Flow('g', SingleLabelBlock('k'), UnboundedRegressionBlock('n') | A), MultiLabelBlock('tags')
    ).bind(df)
    decoded, acts = (
        torch.tensor([[0.0, 1.0, 0.25, 1.0, 0.0], [1.0, 1.0, 0.0, 1.0, 1.0]]),
        torch.tensor([0.25, 0.125, 0.875, 0.5, 0.75, 0.0625]),
    )
    pred = FlowPrediction(bound, decoded, acts)
    assert dict(pred) == {'a': False, 'g.k': 'y', 'g.n': None, 'tags': ['g']} and (
        len(pred),
        list(pred),
        pred['k'],
        pred['g.k'],
    ) == (4, ['a', 'g.k', 'g.n', 'tags'], 'y', 'y')
    assert pred.reached == {'a': False, 'g.k': 'y', 'tags': ['g']} and pred.probabilities == {
        'a': 0.25,
        'g.k': {'x': 0.125, 'y': 0.875},
        'tags': {'g': 0.75, 'r': 0.0625},
    }
    assert (
        FlowPrediction(bound, decoded).probabilities is None
        and pred.activations is acts
        and pred.decoded is decoded
        and pred.logits is None
        and pred.flow is bound
        and FlowPrediction(bound, decoded, None, acts).logits is acts
    )
    with pytest.raises(KeyError, match="asked for task 'nope'"):
        pred['nope']
    assert 'nope' not in pred and 'k' in pred and pred.get('nope', 3) == 3 and pred.frame is None
    assert pred.show() is None and capsys.readouterr().out.strip() == str(pred.tree()).strip() != ''
    ax = matplotlib.figure.Figure().subplots()
    assert pred.show(ctx=ax) is ax and ax.get_title() == 'a: no\nk: y\ntags: g'
    on = FlowPrediction(bound, torch.tensor([[1.0, 0.0, 0.25, 0.0, 0.0], [0.5, 2.0, 0.1, 1.0, 0.0]]))
    assert dict(on) == {'a': True, 'g.k': 'x', 'g.n': 1.25, 'tags': []}
    assert (
        repr(on) == "FlowPrediction(a=True, g.k='x', g.n=1.25, tags=[])"
        and repr(FlowPrediction(bound, torch.tensor([[1.0, 0.0, 1 / 3, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]])))
        == 'FlowPrediction(g.n=1.333)'
    )


def test_predictions_read_back_exactly_and_shortly():
    bound = Flow('f', BoundedRegressionBlock('s', y_range=(0, 640)), SingleLabelBlock('k')).bind(
        pd.DataFrame(dict(s=[1.0, 2.0, 3.0], k=pd.Series([(1,), (1, 2.5), (3, 'x')], dtype=object)))
    )
    pred = FlowPrediction(bound, torch.tensor([[0.3, 0.0], [1.0, 1.0]]))
    assert (
        pred['s'] == 192.0
        and repr(pred) == 'FlowPrediction(s=192, k=(1,))'
        and repr(FlowPrediction(bound, torch.tensor([[0.3, 1.0], [0.0, 1.0]]))) == 'FlowPrediction(k=(1, 2.5))'
    )
    assert shortened({'a': (1.0, 2.0), 'b': 0.123456, 'c': 'x'}) == "{a: (1, 2), b: 0.1235, c: 'x'}"
