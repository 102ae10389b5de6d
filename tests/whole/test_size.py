"""Nothing grows faster than it must: operations are counted, not seconds; loader workers share the table of labels"""

import pickle, sys
from pathlib import Path
import numpy as np, pytest, torch
import fastai_condmtl
from fastai_condmtl.all import *
from fastai_condmtl.core.conditions import Not, as_condition
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.data.target_block import EncodedRows

sys.path.append(str(Path(__file__).resolve().parents[2] / 'benchmarks'))
import bench_size as size

PACKAGE = str(Path(fastai_condmtl.__file__).parent)


def calls(f):
    """How many functions of this package `f` calls. A checkout is often called like the package and holds an
    environment: what pandas and torch
    call there, more the first time, does not count."""
    n = 0

    def count(frame, event, arg):
        nonlocal n
        if event == 'call' and frame.f_code.co_filename.startswith(PACKAGE):
            n += 1

    sys.setprofile(count)
    try:
        f()
    finally:
        sys.setprofile(None)
    return n


@pytest.mark.parametrize('what', ['bind', 'encode', 'repr', 'json', 'audit', 'loss', 'reached', 'stratify'])
@pytest.mark.parametrize(
    'case, sizes, most',
    [('tasks', (100, 200, 400), 1.25), ('classes', (500, 1000, 2000), 1.25), ('depth', (25, 50, 100), 2.0)],
)
def test_operations_grow_like_the_data(case, sizes, most, what):
    counts = [calls(size.CASES[case][1](n)[what]) for n in sizes]
    assert size.exponent(sizes, counts) < most, counts


def test_the_exponent_tells_a_square_from_a_line():
    assert size.exponent([1, 2, 4], [3, 6, 12]) == pytest.approx(1) and size.exponent(
        [1, 2, 4], [3, 12, 48]
    ) == pytest.approx(2)


def test_rows_are_not_looped_over():
    def n(rows):
        steps = size.steps(size.of_kinds(), size.table(rows), split=False)
        return [calls(steps[k]) for k in ('bind', 'encode', 'subset')]

    assert n(200) == n(2000)


def test_positions_are_one_array_and_tell_the_same_rows():
    y, idx = torch.arange(60.0).reshape(10, 2, 3), [7, 2, 2, 9]
    rows = EncodedRows(y)[idx]
    assert isinstance(rows.idx, np.ndarray) and rows.idx.dtype == np.int64
    for j, i in enumerate(idx):
        assert torch.equal(rows[j].as_subclass(torch.Tensor), y[i])
    assert (
        rows[-1].tolist() == y[9].tolist()
        and rows[1:3].packed().tolist() == y[[2, 2]].tolist()
        and rows[[3, 0]].packed().tolist() == y[[9, 7]].tolist()
    )
    assert (
        EncodedRows(y)[2:6].packed().tolist() == y[2:6].tolist() and EncodedRows(y).packed().data_ptr() == y.data_ptr()
    )
    assert EncodedRows(y)[np.array([], dtype=int)].packed().shape == (0, 2, 3)


@pytest.mark.skipif(not Path('/proc/self/smaps_rollup').exists(), reason='memory of a process is read from /proc')
def test_workers_do_not_copy_the_labels():
    """What a worker holds alone beyond what it holds for a small table: a copy of the labels would be 64 MB,
    positions as a list of integers 40 MB"""
    small, alone, lists = (
        max(u for u, _ in size.workers(n, as_list, batches=20))
        for n, as_list in ((20_000, False), (10**6, False), (10**6, True))
    )
    assert alone - small < 20 and alone < lists, (small, alone, lists)


def test_spawned_workers_share_the_labels():
    "What a worker that is not forked is sent holds the table as shared memory, and the rows it reads are right"
    y = torch.rand(1000, 2, 8)
    rows = EncodedRows(y)[np.random.default_rng(0).permutation(1000)]
    want = rows.packed().as_subclass(torch.Tensor).clone()
    dl = torch.utils.data.DataLoader(
        size.Rows(rows), batch_size=64, num_workers=1, collate_fn=torch.stack, multiprocessing_context='spawn'
    )
    assert torch.equal(torch.cat(list(dl)).as_subclass(torch.Tensor), want)
    assert rows.y.is_shared() and rows.y.data_ptr() == y.data_ptr()  # one table, whoever reads it
    assert len(pickle.dumps(rows[:2])) < 2000  # a file still carries its own rows only


@pytest.mark.parametrize('depth', [50, 190])
def test_deep_flows(depth):
    flow = size.of_depth(depth)
    df = size.ones([f't{i}' for i in range(1, depth + 1)])
    df.loc[3, f't{depth // 2}'] = 0
    bound = flow.bind(df)
    y = bound.encode(df)
    assert y[0, 1].tolist() == [1] * depth and y[3, 1].tolist() == [1] * (depth // 2) + [0] * (depth - depth // 2)
    assert repr(Flow.from_json(flow.to_json())) == repr(flow) and torch.equal(
        pickle.loads(pickle.dumps(bound)).encode(df), y
    )


def test_too_deep_is_one_clear_error():
    with pytest.raises(FlowError, match='flows are nested more than 200 deep: write it flatter'):
        size.of_depth(300).bind(size.ones(['t1']))
    c = as_condition(BinaryBlock('t1'))
    for _ in range(3000):
        c = Not(c)
    with pytest.raises(FlowError, match='conditions are nested more than 100 deep: write it flatter'):
        Flow('f', BinaryBlock('t1'), BinaryBlock('t2') | c).bind(size.ones(['t1', 't2']))
