"""Where the nearest peer, dnn_cool, breaks on conditions, masks, targets and losses (PEERS.md): each a promise of
ours."""

import pickle, subprocess, sys
import pandas as pd, pytest, torch
import torch.nn.functional as F
from fastai_condmtl.tasks.binary import BinaryBlock
from fastai_condmtl.tasks.regression import BoundedRegressionBlock, UnboundedRegressionBlock
from fastai_condmtl.tasks.multi_label import MultiLabelBlock
from fastai_condmtl.tasks.single_label import SingleLabelBlock
from fastai_condmtl.core.conditions import any_of, task
from fastai_condmtl.core.flow import Flow
from fastai_condmtl.loss.conditional import ConditionalLoss
from fastai_condmtl.loss.inputs import TaskSums

pytestmark = pytest.mark.filterwarnings('ignore')
T, N = True, None
DF = pd.DataFrame(
    dict(
        a=[T, T, False, False, N, N],
        b=[T, False, T, False, T, N],
        x=[T] * 6,
        kind=['k0', 'k1', 'k2', 'k0', N, 'k1'],
        tags=['red,blue', 'red', '', N, 'blue', 'red'],
        age=[-5.0, 0.0, 18.0, 30.0, N, -1.0],
        red=[1, N, 0, 1, N, 0],
        blue=[N, N, 1, 0, N, 1],
    ),
    dtype=object,
)
A, B, X = BinaryBlock('a'), BinaryBlock('b'), BinaryBlock('x')
KIND, TAGS, AGE = SingleLabelBlock('kind'), MultiLabelBlock('tags'), UnboundedRegressionBlock('age')


def encode(*items, df=DF, **kw):
    bound = Flow('f', *items, **kw).bind(df)
    return bound, torch.as_tensor(bound.encode(df))


def mask(path, *items, df=DF):
    bound, y = encode(*items, df=df)
    return y[:, 1, bound.slices[path].targets].squeeze(1).int().tolist()


def total(bound, y, pred=None):
    pred = (torch.linspace(-1, 1, len(y) * bound.c).view(len(y), bound.c) if pred is None else pred).requires_grad_()
    loss = bound.loss_func(pred, y)
    loss.backward()
    return loss.item(), pred.grad


# ---- conditions
# -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    'cond, want',
    [
        (A & B, [1, 0, 0, 0, 0, 0]),
        (any_of(A, B), [1, 1, 1, 0, 1, 0]),
        (~A, [0, 0, 1, 1, 0, 0]),
        (~(A & B), [0, 1, 1, 1, 0, 0]),
        (~any_of(A, B), [0, 0, 0, 1, 0, 0]),
        (A & ~B, [0, 1, 0, 0, 0, 0]),
    ],
)
def test_and_or_not_with_gaps(cond, want):
    assert mask('x', A, B, X | cond) == want


@pytest.mark.parametrize(
    'cond, want',
    [
        (KIND.eq('k0'), [1, 0, 0, 1, 0, 0]),
        (KIND.eq('k2'), [0, 0, 1, 0, 0, 0]),
        (KIND.ne('k0'), [0, 1, 1, 0, 0, 1]),
        (~KIND.eq('k0'), [0, 1, 1, 0, 0, 1]),
        (KIND.isin(['k0', 'k2']), [1, 0, 1, 1, 0, 0]),
    ],
)
def test_a_single_label_condition_names_its_class(cond, want):
    "There it means 'not the first class' in training."
    assert mask('x', KIND, X | cond) == want


@pytest.mark.parametrize(
    'cond, want',
    [
        (TAGS.has('red'), [1, 1, 0, 0, 0, 1]),
        (~TAGS.has('red'), [0, 0, 1, 0, 1, 0]),
        (TAGS.has_any(['red', 'blue']), [1, 1, 0, 0, 1, 1]),
        (TAGS.has_all(['red', 'blue']), [1, 0, 0, 0, 0, 0]),
    ],
)
def test_a_multi_label_condition(cond, want):
    assert mask('x', TAGS, X | cond) == want


@pytest.mark.parametrize(
    'cond, want',
    [
        (AGE > 0, [0, 0, 1, 1, 0, 0]),
        (AGE <= -1, [1, 0, 0, 0, 0, 1]),
        (~(AGE < 0), [0, 1, 1, 1, 0, 0]),
        (AGE.between(-2, 19), [0, 1, 1, 0, 0, 1]),
    ],
)
def test_a_regression_condition(cond, want):
    assert mask('x', AGE, X | cond) == want


def test_inner_tasks_are_named_from_outside():
    inner = Flow('outer', Flow('inner', A))
    for name in ('outer.inner.a', 'a'):
        assert mask('x', inner, X | task(name)) == [1, 1, 0, 0, 0, 0]
    assert mask('x', inner, X | A) == [1, 1, 0, 0, 0, 0]


def test_several_conditions_all_count():
    want = [1, 0, 0, 0, 0, 0]
    for x in (X | A | B, X | (A & B), X | B | A, BinaryBlock('x', given=A) | B):
        assert mask('x', A, B, x) == want
    assert mask('g.x', A, B, Flow('g', X | A) | B) == want and mask('g.x', A, B, Flow('g', X) | A | B) == want


def test_conditions_chain_through_gaps():
    "A gap in `a` makes `b` not applicable, hence `x` as well, though `b` has a label there."
    assert mask('x', A, B | A, X | B) == [1, 0, 0, 0, 0, 0] and mask('x', A, B | A, X | ~B) == [0, 1, 0, 0, 0, 0]


# ---- flows
# ------------------------------------------------------------------------------------------------------------
def test_adding_twice_is_an_error():
    with pytest.raises((ValueError, TypeError), match=r'\ba\b'):
        Flow('f', A, B, A).bind(DF)


def test_a_typo_is_named():
    with pytest.raises((ValueError, TypeError), match=r'(?s)\bx\b.*camera_bloked|camera_bloked.*\bx\b'):
        Flow('f', A, X | task('camera_bloked')).bind(DF)


def test_everything_pickles_here_and_elsewhere(tmp_path):
    fl = Flow('f', A, B | ~A, KIND, TAGS, AGE, Flow('g', X | any_of(B, KIND.eq('k0') & (AGE > 0))) | TAGS.has('red'))
    bound = fl.bind(DF)
    assert isinstance(bound.loss_func, ConditionalLoss)
    bound.loss_func.thresholds['a'] = 0.75
    (tmp_path / 'flow.pkl').write_bytes(pickle.dumps((fl, bound, bound.loss_func, bound.encode(DF), DF)))
    code = (
        f"import pickle, torch; fl, bound, loss, y, df = pickle.load(open({str(tmp_path / 'flow.pkl')!r}, 'rb')); "
        "assert torch.equal(torch.as_tensor(fl.bind(df).encode(df)), torch.as_tensor(y)); assert "
        "float(loss.thresholds['a']) == .75; "
        "print(loss(torch.zeros(len(df), bound.c), torch.as_tensor(y)).item())"
    )
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert float(out.stdout) == pytest.approx(
        bound.loss_func(torch.zeros(6, bound.c), torch.as_tensor(bound.encode(DF))).item()
    )


# ---- targets and losses
# -----------------------------------------------------------------------------------------------
def test_a_partly_labelled_multi_label_row():
    bound, y = encode(MultiLabelBlock('m', cols=['red', 'blue']))
    assert y[:, 1].tolist() == [[1, 0], [0, 0], [1, 1], [1, 1], [0, 0], [1, 1]] and y[:, 0].tolist() == [
        [1, 0],
        [0, 0],
        [0, 1],
        [1, 0],
        [0, 0],
        [0, 1],
    ]
    loss, grad = total(bound, y, torch.full((6, 2), 2.0))
    up, down = (
        F.softplus(torch.tensor(-2.0)).item(),
        F.softplus(torch.tensor(2.0)).item(),
    )  # a target of -1 would push beyond these
    assert loss == pytest.approx((up + (down + up) / 2 * 3) / 4) and (grad[y[:, 1] == 0] == 0).all()


def test_an_empty_list_is_a_label():
    bound, y = encode(TAGS)
    assert y[:, 1].tolist() == [[1, 1], [1, 1], [1, 1], [0, 0], [1, 1], [1, 1]] and y[2, 0].tolist() == [0, 0]
    assert encode(MultiLabelBlock('tags', nan_is_empty=True))[1][:, 1].all()


@pytest.mark.parametrize('blk', [AGE, BoundedRegressionBlock('age', y_range=(-10, 40)), BoundedRegressionBlock('age')])
def test_negative_numbers_and_zero_are_labels(blk):
    bound, y = encode(blk)
    assert y[:, 1, 0].tolist() == [1, 1, 1, 1, 0, 1]
    units = torch.as_tensor(bound.to_units(bound.encode(DF)))[:, 0, 0]
    assert units[[0, 1, 2, 3, 5]].tolist() == pytest.approx([-5, 0, 18, 30, -1], abs=1e-4)
    loss, grad = total(bound, y)
    assert (grad[:, 0] != 0).tolist() == [True, True, True, True, False, True]


def test_a_batch_without_any_label_backpropagates():
    bound, y = encode(
        A,
        KIND,
        TAGS,
        AGE,
        BoundedRegressionBlock('r', col='age', y_range=(-9, 40)) | A,
        MultiLabelBlock('m', cols=['red', 'blue']),
    )
    empty = torch.zeros_like(y)
    loss, grad = total(bound, empty)
    assert loss == 0 and grad is not None and (grad == 0).all()
    model = torch.nn.Linear(3, bound.c)
    bound.loss_func(model(torch.randn(6, 3)), empty).backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters())


def test_the_mean_is_over_valid_rows():
    "A task is not diluted by rows where it does not apply."
    bound, y = encode(A, X | A)
    pred = torch.zeros(6, 2)
    assert bound.loss_func.per_task(pred, y).tolist() == pytest.approx([torch.tensor(2.0).log().item()] * 2)


def test_no_row_is_recorded_where_there_is_none():
    bound, y = encode(A, X | A)
    per = bound.loss_func.per_sample(torch.zeros(6, 2), y)
    assert per[:, 1].isnan().tolist() == [False, False, True, True, True, True]


def test_one_row_and_many_rows_agree():
    "No dependence on the batch beyond the mean: a row by itself loses what it loses in company."
    bound, y = encode(A, KIND, X | KIND.ne('k0'), TAGS, AGE)
    pred = torch.randn(6, bound.c, generator=torch.Generator().manual_seed(0))
    whole = bound.loss_func.per_sample(pred, y)
    torch.testing.assert_close(
        torch.cat([bound.loss_func.per_sample(pred[i : i + 1], y[i : i + 1]) for i in range(6)]), whole, equal_nan=True
    )


def test_memory_balancing_keeps_the_mean():
    """There losses are reduced on each device; here sums and counts are, so that the mean over valid rows is the
    whole batch's, however rows are dealt."""
    bound, y = encode(A, KIND, X | A, AGE)
    pred = torch.randn(6, bound.c, generator=torch.Generator().manual_seed(0))
    parts = torch.stack([bound.loss_func.sums(pred[s], y[s]) for s in (slice(0, 1), slice(1, 4), slice(4, 6))])
    assert parts.numel() == 3 * 2 * 4
    torch.testing.assert_close(parts[:, 0].sum(0) / parts[:, 1].sum(0), bound.loss_func.per_task(pred, y))
    torch.testing.assert_close(bound.loss_func(parts.as_subclass(TaskSums), y), bound.loss_func(pred, y))
