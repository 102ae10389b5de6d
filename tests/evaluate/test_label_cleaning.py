"""`Cleaner`: which labels it doubts, by a loop over rows; and corrections that go back into a copy of the table
and into a file."""

import math
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import DataBlock, IndexSplitter, Learner, Transform, TransformBlock
from torch import nn
from fastai_condmtl.all import *

N = 40


class Logits(Transform):
    "Row → the logits that stand in it: a model that is known by heart"

    def __call__(self, r, **kwargs):
        return torch.tensor([r[f'z{i}'] for i in range(9)], dtype=torch.float32)


@pytest.fixture(scope='module')
def learn():
    rng = np.random.default_rng(0)
    flow = Flow(
        'f',
        BinaryBlock('a'),
        SingleLabelBlock('kind', vocab=list('uvw')) | task('a'),
        MultiLabelBlock('tags', vocab=['g', 'r']),
        MultiLabelBlock('m', cols=['p', 'q']),
        BoundedRegressionBlock('size', y_range=(0, 8)),
    )
    df = pd.DataFrame(
        dict(
            a=rng.random(N) < 0.6,
            kind=rng.choice(list('uvw'), N),
            tags=rng.choice(['g', 'r', 'g,r', ''], N),
            p=rng.integers(0, 2, N),
            q=rng.integers(0, 2, N),
            size=rng.random(N) * 8,
        )
    ).astype(object)
    df = (
        df.mask(rng.random(df.shape) < 0.1)
        .assign(**{f'z{i}': rng.normal(size=N) * 2 for i in range(9)})
        .set_axis([f'row{i}' for i in range(N)])
    )
    dls = DataBlock(
        blocks=(TransformBlock, flow), get_x=Logits(), splitter=IndexSplitter(list(range(20, N)))
    ).dataloaders(df, bs=8, num_workers=0)
    model = nn.Linear(9, 9, bias=False)
    model.weight.data = torch.eye(9)
    res = Learner(dls, model)
    res.df = df
    return res


def clean(learn, df=None, **kw):
    with learn.no_bar(), learn.no_logging():
        return Cleaner(learn, learn.df if df is None else df, **kw)


def test_it_lists_the_dearest_labels_that_are_not_predicted(learn):
    "Of the k rows with the greatest losses of a task, those whose label is not what is predicted."
    s, tab = learn.dls.flow.slices, clean(learn, k=12, tasks=['a', 'kind']).table
    want = []
    for path in ('a', 'kind'):
        rows = []
        for name, r in learn.df.iterrows():
            z = [r[f'z{i}'] for i in range(9)][s[path].logits]
            if pd.isna(r[path]) or path == 'kind' and (pd.isna(r.a) or not r.a):
                continue
            if path == 'a':
                rows.append((math.log1p(math.exp(-z[0] if r.a else z[0])), name, r.a, z[0] > 0))
            else:
                rows.append(
                    (math.log(sum(map(math.exp, z))) - z['uvw'.index(r.kind)], name, r.kind, 'uvw'[int(np.argmax(z))])
                )
        want += [(path, *x) for x in sorted(rows, key=lambda x: -x[0])[:12] if x[2] != x[3]]
    assert list(tab.columns) == ['task_path', 'row', 'label', 'predicted', 'loss'] and 5 < len(want) < 24
    assert [(t.task_path, t.row, t.label, t.predicted) for t in tab.itertuples()] == [
        (p, n, bool(l) if p == 'a' else l, bool(v) if p == 'a' else v) for p, _, n, l, v in want
    ]
    assert tab.loss.tolist() == pytest.approx([l for _, l, *_ in want], rel=1e-4)
    assert (
        set(clean(learn, k=3).table.task_path) == {'a', 'kind', 'tags', 'm', 'size'}
        and len(clean(learn, k=1, tasks='size').table) == 1
    )


def test_corrections(learn, tmp_path):
    c, before = clean(learn, k=12), learn.df.copy()
    first = c.table[c.table.task_path == 'kind'].iloc[0]
    assert c.correct(first.row, 'kind') is c and c.blank('row3', 'a') is c  # what was predicted; nothing
    c.correct('row4', 'a', False).correct('row5', 'tags', ['g']).correct('row6', 'tags', []).correct(
        'row7', 'size', 2.5
    ).correct('row7', 'size', 3.5)
    new, want = c.apply(), before.copy()
    for row, col, v in (
        (first.row, 'kind', first.predicted),
        ('row3', 'a', None),
        ('row4', 'a', False),
        ('row5', 'tags', 'g'),
        ('row6', 'tags', ''),
        ('row7', 'size', 3.5),
    ):
        want.at[row, col] = v
    changed = {
        (r, col)
        for r in new.index
        for col in new.columns
        if not (new.at[r, col] == before.at[r, col] or pd.isna(new.at[r, col]) and pd.isna(before.at[r, col]))
    }
    assert (
        changed
        <= {(first.row, 'kind'), ('row3', 'a'), ('row4', 'a'), ('row5', 'tags'), ('row6', 'tags'), ('row7', 'size')}
        and (first.row, 'kind') in changed
    )
    for r, col in changed:
        assert new.at[r, col] == want.at[r, col] or pd.isna(new.at[r, col]) and want.at[r, col] is None
    for r, col, v in (('row4', 'a', False), ('row5', 'tags', 'g'), ('row6', 'tags', ''), ('row7', 'size', 3.5)):
        assert new.at[r, col] == v
    assert pd.isna(new.at['row3', 'a'])
    pd.testing.assert_frame_equal(learn.df, before)  # a copy
    file = tmp_path / 'fixes.csv'
    assert c.to_csv(file) == file
    got = pd.read_csv(file, dtype=str, keep_default_na=False)
    old = lambda row, col: '' if pd.isna(before.at[row, col]) else str(before.at[row, col])
    assert got.values.tolist() == [
        [first.row, 'kind', old(first.row, 'kind'), first.predicted],
        ['row3', 'a', old('row3', 'a'), ''],
        ['row4', 'a', old('row4', 'a'), 'False'],
        ['row5', 'tags', old('row5', 'tags'), 'g'],
        ['row6', 'tags', old('row6', 'tags'), '[]'],
        ['row7', 'size', old('row7', 'size'), '3.5'],
    ] and list(got.columns) == ['row', 'task_path', 'old', 'new']


def test_corrections_that_cannot_be(learn):
    c = clean(learn, k=2)
    for call, says in (
        (
            lambda: c.correct('row1', 'm', [1, 0]),
            "task 'm' has a column a label: correct the table's columns \\['p', 'q'\\] directly",
        ),
        (lambda: c.correct('row99', 'a', True), "the table has no row 'row99': did you mean"),
        (lambda: c.correct('row1', 'kind', 'z'), "task 'kind', row 0 .*row1.*value 'z': not in the vocabulary"),
        (lambda: c.correct('row1', 'nope', 1), "asked for task 'nope'"),
        (lambda: c.blank('row99', 'a'), "has no row 'row99'"),
        (lambda: c.blank('row1', 'nope'), "asked for task 'nope'"),
        (
            lambda: c.correct(next(r for r in learn.df.index if r not in set(c.table.row)), 'a'),
            "is not listed for task 'a': say what is right with value=",
        ),
        (lambda: clean(learn, learn.df.set_axis(['x'] * N)), 'index has duplicates'),
        (lambda: clean(learn, learn.df[:0]), 'the table is empty'),
        (lambda: clean(learn, tasks='nope'), "asked for task 'nope'"),
    ):
        with pytest.raises(FlowError, match=says):
            call()
    assert c.fixes == {}
    pd.testing.assert_frame_equal(c.apply(), learn.df)
