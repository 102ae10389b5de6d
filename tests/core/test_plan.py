"""`infer_labels`, form by form: what a labelled task says of the tasks that its condition names. (Random flows:
test_conditions_property.)"""

import pandas as pd, pytest, torch
from fastai_condmtl.tasks.binary import BinaryBlock
from fastai_condmtl.tasks.multi_label import MultiLabelBlock
from fastai_condmtl.tasks.single_label import SingleLabelBlock
from fastai_condmtl.tasks.regression import UnboundedRegressionBlock
from fastai_condmtl.core.conditions import any_of, task
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.loss.conditional import ConditionalLoss
from fastai_condmtl.all import FlowError
from fastai.data.all import DataBlock, IndexSplitter, Transform, TransformBlock
from fastai.learner import Learner
from torch import nn
import fastai_condmtl.all  # noqa: F401  methods of flows and learners

pytestmark = pytest.mark.filterwarnings('ignore')
A, B, X, Y = (BinaryBlock(n) for n in 'abxy')
KIND, DUO = SingleLabelBlock('kind', vocab=['p', 'q', 'r']), SingleLabelBlock('duo', vocab=['s', 't'])
TAGS, COLS, AGE = (
    MultiLabelBlock('tags', vocab=['u', 'v']),
    MultiLabelBlock('m', cols=['m1', 'm2']),
    UnboundedRegressionBlock('age'),
)
ROOTS = [A, B, KIND, DUO, TAGS, COLS, AGE]


def row(given, mode, *more, **labels):
    "{column: value, or None outside the mask} of a row where only `x`, given `given`, and `labels` are labelled."
    df = pd.DataFrame(
        {
            c: pd.Series([labels.get(c)], dtype=object)
            for c in ['a', 'b', 'kind', 'duo', 'tags', 'm1', 'm2', 'age', 'x', 'y', 'z']
        }
    )
    bound = Flow('f', *ROOTS, X | given, *more, infer_labels=mode).bind(df)
    ((vals, mask),) = torch.as_tensor(bound.encode(df)).tolist()
    names = ['a', 'b', 'kind', 'duo', 'tags.u', 'tags.v', 'm1', 'm2', 'age', 'x', 'y', 'z']
    return {n: v if m else None for n, v, m in zip(names, vals, mask)}


def filled(given, *more, **labels):
    return {n: v for n, v in row(given, 'train', *more, x=1, **labels).items() if v is not None and n != 'x'}


@pytest.mark.parametrize(
    'given, want',
    [
        (A, dict(a=1)),
        (~A, dict(a=0)),
        (~~A, dict(a=1)),
        (A & ~B, dict(a=1, b=0)),
        (~any_of(A, ~B), dict(a=0, b=1)),
        (~any_of(A, A & B), dict(a=0)),
        (any_of(A, B), {}),
        (~(A & B), {}),
        (A & any_of(B, KIND.eq('p')), dict(a=1)),
        (A & ~(B & KIND.eq('p')), dict(a=1)),
        (KIND.eq('q'), dict(kind=1)),
        (KIND.ne('q'), {}),
        (~KIND.ne('q'), dict(kind=1)),
        (~KIND.eq('q'), {}),
        (KIND.isin(['r']), dict(kind=2)),
        (KIND.isin(['p', 'r']), {}),
        (~KIND.isin(['p', 'r']), dict(kind=1)),
        (~KIND.isin(['p']), {}),
        (DUO.ne('s'), dict(duo=1)),
        (~DUO.eq('t'), dict(duo=0)),
        (TAGS.has('u'), {'tags.u': 1}),
        (~TAGS.has('v'), {'tags.v': 0}),
        (TAGS.has_all(['u', 'v']), {'tags.u': 1, 'tags.v': 1}),
        (~TAGS.has_all(['u', 'v']), {}),
        (TAGS.has_any(['u', 'v']), {}),
        (~TAGS.has_any(['u', 'v']), {'tags.u': 0, 'tags.v': 0}),
        (COLS.has('m2'), dict(m2=1)),
        (~COLS.has_any(['m1', 'm2']), dict(m1=0, m2=0)),
        (AGE > 3, {}),
        (~(AGE > 3), {}),
        (AGE.between(1, 2) & B, dict(b=1)),
        (task('a') & ~task('b'), dict(a=1, b=0)),
    ],
    ids=str,
)
def test_what_a_condition_forces(given, want):
    assert filled(given) == want


def test_filled_labels_open_gates_and_train_nothing():
    assert row(A & B, True, x=1) | dict(x=None) == dict.fromkeys(row(A, True, x=1))  # only x itself counts
    assert row(A & B, True, x=1)['x'] == 1 and row(A & B, False, x=1)['x'] is None
    assert row(COLS.has('m2'), True, x=1, m1=0)['m2'] is None and row(COLS.has('m2'), True, x=1, m1=0)['m1'] == 0
    assert row(AGE > 3, True, x=1)['x'] is None  # nothing forced: stays out


def test_it_goes_up_step_by_step():
    df = pd.DataFrame(dict(a=[None] * 3, b=[None, None, True], x=[None, None, 1], y=[1, None, None]), dtype=object)
    mask = lambda mode: (
        torch.as_tensor(Flow('f', A, B | ~A, X | B, Y | ~X, infer_labels=mode).bind(df).encode(df))[:, 1].int().tolist()
    )
    assert mask('train') == [[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 0]]
    assert mask(True) == [[0, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0]]
    assert mask(False) == [[0, 0, 0, 0]] * 3


def test_a_flows_condition_forces_too():
    df = pd.DataFrame(dict(a=[None, None], b=[None, 1], x=[1, None]), dtype=object)
    y = torch.as_tensor(Flow('f', A, B, Flow('g', X | ~B) | A, infer_labels='train').bind(df).encode(df))
    assert y[:, 1].tolist() == [[1, 1, 1], [0, 1, 0]] and y[0, 0].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    'more, labels, path',
    [([Y | ~A], dict(y=1), 'a'), ([Y | KIND.eq('p')], dict(y=1), 'kind'), ([Y | ~COLS.has('m1')], dict(y=0), 'm1')],
)
def test_tasks_that_force_opposites_fill_nothing(more, labels, path):
    given = dict(a=A, kind=KIND.eq('q'), m1=COLS.has('m1'))[path]
    for mode in (True, 'train'):
        got = row(given, mode, *more, x=1, **labels)
        assert got[path] is None and got['x'] is None and got['y'] is None


@pytest.mark.parametrize(
    'given, labels',
    [
        (A, dict(a=False)),
        (~A, dict(a=True)),
        (KIND.eq('q'), dict(kind='p')),
        (TAGS.has('u'), dict(tags='v')),
        (COLS.has('m1'), dict(m1=0)),
    ],
)
def test_a_label_that_says_otherwise_stays(given, labels):
    plain = {n: v for n, v in row(given, False, x=1, **labels).items() if v is not None}
    assert plain and 'x' not in plain
    for mode in (True, 'train'):
        assert {n: v for n, v in row(given, mode, x=1, **labels).items() if v is not None} == plain


def test_the_same_value_forced_twice_is_no_contradiction():
    assert filled(A & B, Y | A, y=0) == dict(a=1, b=1, y=0)


def test_predictions_do_not_infer():
    df = pd.DataFrame(dict(a=[1, None], x=[1, 0]))
    bound = Flow('f', A, X | A, infer_labels=True).bind(df)
    assert isinstance(bound.loss_func, ConditionalLoss)
    assert bound.loss_func.decodes(torch.tensor([[0.1, 0.9], [0.9, 0.9]]))[:, 1].tolist() == [[1, 0], [1, 1]]


def test_a_block_in_a_condition_is_the_task_it_looks_like():
    face, body = BinaryBlock('visible', col='fv'), BinaryBlock('visible', col='bv')
    with pytest.raises(FlowError, match="reads 'fv'.*task 'visible', which reads 'bv'"):
        Flow('f', Flow('face', face), body, BinaryBlock('smile') | face).bind(
            pd.DataFrame(dict(fv=[1], bv=[1], smile=[1]))
        )


class No(nn.Module):
    "Says no to everything"

    def __init__(self, c):
        super().__init__()
        self.w = nn.Parameter(torch.full((c,), -5.0))

    def forward(self, x):
        return self.w.expand(len(x), -1)


class One(Transform):
    def __call__(self, r, **kwargs):
        return torch.ones(1)


@pytest.mark.parametrize('infer', [True, 'train'])
def test_what_labels_imply_is_filled_in(infer):
    a = BinaryBlock('a')
    df = pd.DataFrame(dict(a=[None] * 6 + [0, 1], b=[0, 1] * 3 + [None, 1]))
    dls = DataBlock(
        blocks=(TransformBlock, Flow('f', a, BinaryBlock('b') | a, infer_labels=infer)),
        get_x=One(),
        splitter=IndexSplitter([6, 7]),
    ).dataloaders(df, bs=4, num_workers=0)
    learn = Learner(dls, No(dls.c))
    with learn.no_bar():
        full, filled, report = learn.fill_labels(df, min_confidence=0)
    assert full.a.tolist()[:6] == [1] * 6 and filled.a.sum() == 6
    with learn.no_bar():
        assert len(learn.fill_labels(df[:0])[0]) == 0


def test_column_types_outlive_filling():
    df = pd.DataFrame(
        dict(
            size=pd.Categorical(['small', 'large', None, 'medium'] * 3, ['small', 'medium', 'large'], ordered=True),
            tags=[['x'], ['x', 'y,z'], None, []] * 3,
        )
    )
    dls = DataBlock(
        blocks=(TransformBlock, Flow('f', SingleLabelBlock('size'), MultiLabelBlock('tags'))),
        get_x=One(),
        splitter=IndexSplitter([1]),
    ).dataloaders(df, bs=4, num_workers=0)
    learn = Learner(dls, No(dls.c))
    with learn.no_bar():
        full = learn.fill_labels(df, 0)[0]
    assert full['size'].dtype == df['size'].dtype and full.tags[2] == [] and dls.flow.encode(full).mask.all()


def test_infer_labels_is_one_of_three():
    with pytest.raises(FlowError, match='infer_labels'):
        Flow('f', BinaryBlock('a'), infer_labels=1)
