"Counts that are summed over pieces are those of the rows, counted one by one"

import random
import warnings
import pandas as pd, pytest
from fastai_condmtl.all import FlowError, Flow, MultiLabelBlock, SingleLabelBlock
from fastai_condmtl.data.packed import encode_pieces
from fastai_condmtl.data.task_counts import TaskCounts
from oracle import build, frame
from random_flows import ALL_KINDS, random_spec, random_table, rows_for_trees


def counted(block, rows):
    "A row at a time: `{value: number of rows}` of each column, and their weight, of packed rows `[(values, mask)]`"
    n_rows, weights = [{} for _ in range(block.n_targets)], [{} for _ in range(block.n_targets)]
    classes = not block.thresholded and block.exact and block.per_cell and block.n_targets == 1 and block.n_out > 1
    for values, mask in rows:
        for j, (value, weight) in enumerate(zip(values, mask)):
            if block.thresholded:  # a share of yes is a part of a yes, the rest of a no
                shares = {1.0: value, 0.0: 1 - value}
            else:
                shares = {value if classes else 0.0: 1.0}
            for answer, share in shares.items():
                n_rows[j][answer] = n_rows[j].get(answer, 0) + share * (weight > 0)
                weights[j][answer] = weights[j].get(answer, 0) + share * weight
    return n_rows, weights


@pytest.mark.filterwarnings('ignore::fastai_condmtl.core.errors.FlowWarning')
@pytest.mark.parametrize('seed', range(24))
def test_pieces_of_random_tables(seed):
    rng = random.Random(seed)
    spec = random_spec(rng, max_tasks=6, losses=True, kinds=ALL_KINDS, na=seed % 2 == 0, trees=seed % 4 == 1)
    df = frame(spec, random_table(rng, spec, max(rng.choice([5, 40]), rows_for_trees(spec))), rng)
    try:
        bound = build(spec, rng).bind(df)
        y = bound.encode(df).numpy()
    except FlowError:
        return
    counts, start = TaskCounts(bound), 0
    while start < len(y):
        end = rng.randint(start + 1, len(y))
        counts.add(y[start:end])
        start = end
    for path, block in bound.tasks.items():
        columns = bound.slices[path].targets
        for weighted, expected in enumerate(counted(block, y[:, :, columns].tolist())):
            values, n = counts.cells(weighted=bool(weighted))[path]
            assert n.shape == (len(values), block.n_targets)
            for j, of_column in enumerate(expected):
                ours = dict(zip(values[:, min(j, values.shape[1] - 1)].tolist(), n[:, j].tolist()))
                assert {k: v for k, v in ours.items() if v} == pytest.approx(
                    {k: v for k, v in of_column.items() if v}, rel=1e-5
                ), path


def test_no_row_says_so(tmp_path):
    "What no training row tells is found over all pieces, and not in each"
    df = pd.DataFrame(dict(kind=['a', 'b', 'c', 'a'] * 5, tag_x=[None] * 20, tag_y=[0, 1] * 10))
    flow = Flow('f', SingleLabelBlock('kind'), MultiLabelBlock('tags', cols=['tag_x', 'tag_y']))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        packed = encode_pieces(flow, [df[i : i + 1] for i in range(20)], tmp_path / 'p')
    assert packed.flow.untold == {'tags': ('tag_x',)}
    assert len([w for w in told if 'tag_x' in str(w.message)]) == 1
    assert not [w for w in told if "'kind'" in str(w.message)]
