"A block in a file is made again with the arguments it had, and only classes that its reader knows are made."

import datetime as dt
import numpy as np, pandas as pd, pytest
from fastai_condmtl.all import *
from fastai_condmtl.core.block_json import block_class, block_config, register_block


def again(block):
    "A block after a file"
    return Flow.from_json(Flow('f', block).to_json()).tasks[0]


every = [
    BinaryBlock('x'),
    BinaryBlock('x', 'col x', threshold=0.25, pos_weight=3.0, vocab=('no', 'yes'), tune=None, weight=2),
    BinaryBlock('x', tune={'metric': 'f1_score', 'constraint': ['precision', 0.9]}),
    BinaryBlock('x', vocab=(False, True)),
    BinaryBlock('x', vocab=(1, 2)),
    SingleLabelBlock('x'),
    SingleLabelBlock('x', vocab=[3, 1, 2], class_weights=[1, 2, 0.5], label_smoothing=0.1),
    SingleLabelBlock('x', vocab=[1, 'one', (1, 2), None, 2.5, False]),
    SingleLabelBlock('x', vocab=np.array([4, 5])),
    SingleLabelBlock('x', vocab=[pd.Timestamp('2024-02-29 13:00', tz='UTC'), dt.date(2024, 2, 29)]),
    SingleLabelBlock('x', vocab=['ünï', '"quoted\\"', 'new\nline', '}']),
    MultiLabelBlock('x', vocab=['a', 'b c'], label_delim=';', nan_is_empty=True, threshold=[0.2, 0.7]),
    MultiLabelBlock('x', vocab=['a', 'b'], threshold=np.array([0.25, 0.5])),
    MultiLabelBlock('x', cols=['c 1', 'c 2']),
    MultiLabelBlock('x', cols=['c1', 'c2'], vocab=['p', 'q'], tune='f1_micro'),
    BoundedRegressionBlock('x'),
    BoundedRegressionBlock('x', y_range=(-1, 64), loss='huber', draws='nose.x'),
    UnboundedRegressionBlock('x'),
    UnboundedRegressionBlock('x', loss='l1', weight=0),
]


@pytest.mark.parametrize('block', every, ids=lambda b: f'{type(b).__name__}{every.index(b)}')
def test_every_argument(block):
    back = again(block)
    a, b = vars(back), vars(block)
    assert type(back) is type(block) and a.keys() == b.keys()
    for k in a:
        assert type(a[k]) is type(b[k]) or k == 'threshold'
        np.testing.assert_array_equal(np.array(a[k], dtype=object), np.array(b[k], dtype=object))


class Loud(BinaryBlock):
    def __init__(self, name, col=None, *, volume=1, **kwargs):
        super().__init__(name, col, **kwargs)
        self.volume = volume


class Forgetful(BinaryBlock):
    def __init__(self, name, lost=1, **kwargs):
        super().__init__(name, **kwargs)


class Sayer(BinaryBlock):
    def __init__(self, name, a=0, b=0, **kwargs):
        super().__init__(name, **kwargs)
        self.total = a + b

    def config(self):
        return dict(a=self.total)


def test_blocks_of_ones_own():
    text = Flow('f', Loud('x', volume=3, threshold=0.2)).to_json()
    assert f'{__name__}.Loud' in text
    with pytest.raises(FlowError, match=r'call register_block\(Loud\)'):
        Flow.from_json(text)
    register_block(Loud)
    x = Flow.from_json(text).tasks[0]
    assert (type(x), x.volume, x.threshold) == (Loud, 3, 0.2)
    with pytest.raises(FlowError, match="does not keep its argument 'lost'"):
        Flow('f', Forgetful('x')).to_json()
    register_block(Sayer, 'sayer')
    assert '"sayer", "a": 5' in Flow('f', Sayer('x', 2, 3)).to_json() and again(Sayer('x', 2, 3)).total == 5
    with pytest.raises(FlowError, match='inherits from ConditionalBlock'):
        register_block(dict)
    assert block_class('BinaryBlock') is BinaryBlock and block_config(BinaryBlock('x')) == {}


class Grams(UnboundedRegressionBlock):
    "Keeps its arguments under their names"

    def __init__(self, name, col=None, *, decimals=1, **kwargs):
        super().__init__(name, col, **kwargs)
        self.decimals = decimals


class Share(BoundedRegressionBlock):
    "Writes none of its arguments"

    def __init__(self, name, col=None, **kwargs):
        super().__init__(name, col, y_range=(0, 1), **kwargs)

    def config(self):
        return {}


class Robust(UnboundedRegressionBlock):
    "Has a default of its own"

    def __init__(self, name, col=None, *, loss='huber', **kwargs):
        super().__init__(name, col, loss=loss, **kwargs)


NUMBERS = [
    (BoundedRegressionBlock, {}),
    (UnboundedRegressionBlock, {}),
    (KeypointsBlock, dict(n_points=2)),
    (BoxBlock, {}),
    (Grams, dict(decimals=2)),
    (Share, {}),
    (Robust, {}),
]


@pytest.mark.parametrize('cls, own', NUMBERS)
def test_the_loss_of_numbers_in_files(cls, own):
    "The default comes back; what names no loss means what it meant before the default changed, or the class's own"
    register_block(cls, cls.__name__)
    back = again(cls('x', **own))
    assert vars(back) == vars(cls('x', **own)) and back.loss_name == ('huber' if cls is Robust else 'l1')
    if cls is not Share:  # which writes no loss, and so has its default only
        for loss in ('mse', 'l1', 'huber'):
            assert again(cls('x', loss=loss, **own)).loss_name == loss
    entry = dict(name='x', block=cls.__name__, **own)
    silent = Flow.from_json(dict(format='fastai_condmtl.flow', version=1, flow='f', tasks=[entry])).tasks[0]
    assert silent.loss_name == {Share: 'l1', Robust: 'huber'}.get(cls, 'mse')


@pytest.mark.parametrize('kind, own', [(KeypointsBlock, dict(n_points=2)), (BoxBlock, dict(fmt='xyxy'))])
def test_points_in_files_keep_all_arguments(kind, own):
    k = kind(
        'p', col='where', weight=3, weight_col='w', hidden=32, features='face', uses=['b'], detach_uses=True, **own
    )
    back = Flow.from_json(Flow('f', k, BinaryBlock('b')).to_json()).tasks[0]
    assert (
        vars(back) == vars(k)
        and back.cols == ['where']
        and (back.weight_col, back.hidden, back.features, back.uses, back.detach_uses, back.weight)
        == ('w', 32, 'face', ('b',), True, 3.0)
    )
    with pytest.raises(FlowError, match='leave one out'):
        kind('p', ['a', 'b', 'c', 'd'], col='where')
