"""`Cleaner`: which labels it doubts, of one learner and of folds, by a loop over rows; and corrections that go back
into a copy of the table and into a file."""

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


def z_of_a(learn, r):
    return r[f"z{learn.dls.flow.slices['a'].logits.start}"]


def test_it_lists_the_dearest_labels_that_are_not_predicted(learn):
    "Of the k rows with the greatest losses of a task, those whose label is not what is predicted."
    s, tab = learn.dls.flow.slices, clean(learn, k=12, tasks=['a', 'kind']).table
    want = []
    for path in ('a', 'kind'):
        rows = []
        for name, r in learn.df.iterrows():
            z = [r[f'z{i}'] for i in range(9)][s[path].logits]
            if pd.isna(r[path]) or path == 'kind' and (pd.isna(r.a) or not r.a or z_of_a(learn, r) <= 0):
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


class Features(Transform):
    "Row → its numbers"

    def __call__(self, r, **kwargs):
        return torch.tensor([r.x0, r.x1], dtype=torch.float32)


def of_folds(n=60, seed=0):
    "A table, and folds whose learners are linear layers with weights of their own"
    rng = np.random.default_rng(seed)
    a = BinaryBlock('a')
    flow = Flow('f', a, SingleLabelBlock('kind', vocab=list('uvw')) | a, UnboundedRegressionBlock('size') | a)
    df = pd.DataFrame(rng.normal(size=(n, 2)), columns=['x0', 'x1'])
    df['a'] = 1 * (rng.random(n) < 0.6)
    df['kind'] = pd.Series(rng.choice(list('uvw'), n)).where((df.a == 1) & (rng.random(n) < 0.8))
    df['size'] = pd.Series(10 + 3 * rng.normal(size=n)).where(df.a == 1)
    df = df.set_axis([f'row{i}' for i in range(n)])

    def fit(valid_idx):
        block = DataBlock(blocks=(TransformBlock, flow), get_x=Features(), splitter=IndexSplitter(valid_idx))
        dls = block.dataloaders(df, bs=16, num_workers=0)
        model = nn.Linear(2, dls.c)
        torch.nn.init.normal_(model.weight)
        return equip(Learner(dls, model))

    torch.manual_seed(seed)
    return df, fit_folds(fit, flow, df, n=3, seed=seed, group_col=None)


def losses_of_row(learn, r):
    "Path → loss, label, predicted of a row by a learner, where the task is judged, in plain Python"
    flow, res = learn.dls.flow, {}
    with torch.no_grad():
        z = learn.model(torch.tensor([r.x0, r.x1], dtype=torch.float32)).tolist()
    own = {path: z[place.logits] for path, place in flow.slices.items()}
    yes = own['a'][0] > 0
    res['a'] = math.log1p(math.exp(-own['a'][0] if r.a else own['a'][0])), bool(r.a), yes
    if r.a and yes:
        if not pd.isna(r.kind):
            nll = math.log(sum(map(math.exp, own['kind']))) - own['kind']['uvw'.index(r.kind)]
            res['kind'] = nll, r.kind, 'uvw'[int(np.argmax(own['kind']))]
        train = learn.dls.train_ds.items['size'].dropna().to_numpy()
        scaled = (r['size'] - train.mean()) / train.std()
        unit = np.abs((train - np.median(train)) / train.std()).mean()
        res['size'] = abs(own['size'][0] - scaled) / unit, r['size'], own['size'][0] * train.std() + train.mean()
    return res


def test_folds_judge_the_rows_that_they_have_not_seen():
    "Each label by the learner that was not trained on it; below an error, nothing is listed once more"
    df, folds = of_folds()
    tab = Cleaner(folds, k=8).table
    want = {path: [] for path in ('a', 'kind', 'size')}
    for learn, part in zip(folds.learners, folds.parts):
        for i in part:
            for path, (loss, label, predicted) in losses_of_row(learn, df.iloc[i]).items():
                want[path].append((loss, df.index[i], label, predicted))
    for path, rows in want.items():
        rows = [row for row in sorted(rows, key=lambda row: -row[0])[:8] if row[2] != row[3]]
        got = tab[tab.task_path == path]
        assert got.row.tolist() == [row for _, row, *_ in rows] and len(rows) > 3
        assert got.loss.tolist() == pytest.approx([loss for loss, *_ in rows], rel=1e-4)
        for column, place in (('label', 2), ('predicted', 3)):
            told = [row[place] for row in rows]
            assert got[column].tolist() == (pytest.approx(told, rel=1e-4) if path == 'size' else told)
    no = ~df.a[tab.row[tab.task_path != 'a']].astype(bool)
    assert not no.any()


def test_the_order_is_that_of_the_self_confidence_of_cleanlab():
    rank = pytest.importorskip('cleanlab.rank', reason='a benchmark asks for cleanlab')
    df, folds = of_folds(seed=1)
    tab = Cleaner(folds, k=len(df), tasks='kind').table
    quality = {}
    for learn, rows in folds.rows():
        with learn.no_bar():
            probs = learn.get_preds(dl=learn.dls.test_dl(rows))[0][:, learn.dls.flow.slices['kind'].acts].numpy()
        known = rows.kind.notna().to_numpy()
        codes = rows.kind[known].map(dict(u=0, v=1, w=2)).to_numpy().astype(int)
        scores = rank.get_label_quality_scores(codes, probs[known], method='self_confidence')
        quality |= dict(zip(rows.index[known], scores))
    assert len(tab) > 5 and np.all(np.diff([quality[row] for row in tab.row]) >= 0)
    assert np.exp(-tab.loss).tolist() == pytest.approx([quality[row] for row in tab.row], rel=1e-4)


def test_folds_take_corrections_and_show_rows(monkeypatch):
    df, folds = of_folds()
    c = Cleaner(folds, k=8)
    first = c.table[c.table.task_path == 'kind'].iloc[0]
    new = c.correct(first.row, 'kind').apply()
    assert new.at[first.row, 'kind'] == first.predicted and new.drop(columns='kind').equals(df.drop(columns='kind'))
    shown = {}
    monkeypatch.setattr(
        type(folds.learners[0].dls.valid), 'show_results', lambda self, b, out, **kw: shown.update(b=b, out=out, **kw)
    )
    c.show('size', k=4)
    listed = c.table[c.table.task_path == 'size'][:4]
    flow = c.flow
    assert shown['max_n'] == 4 and all(row in title for row, title in zip(listed.row, shown['titles']))
    assert shown['b'][0][:, 0].tolist() == pytest.approx(df.x0[listed.row].tolist(), rel=1e-5)
    sizes = flow.tasks['size'].unscale(shown['out'][:, 0, flow.slices['size'].targets][:, 0].double())
    assert sizes.tolist() == pytest.approx(listed.predicted.tolist(), rel=1e-4)


def test_folds_and_tables_that_are_refused(learn):
    df, folds = of_folds()
    for call, says in (
        (lambda: Cleaner(folds, df.iloc[:5]), r'Cleaner\(folds, df\): the folds know their table, of 60 rows'),
        (lambda: Cleaner(learn), r'Cleaner\(learn\) needs the table'),
        (lambda: Cleaner(folds, k=1, tasks='nose'), 'nose'),
        (lambda: Cleaner(folds, k=0).show('a'), "no label of task 'a' is listed"),
    ):
        with pytest.raises(FlowError, match=says):
            call()
    assert Cleaner(folds, df, k=1).df is df


@pytest.mark.parametrize('k', [-1, 2.5, True])
def test_k_is_a_number_of_rows(learn, k):
    with pytest.raises(FlowError, match='k=.* must be how many rows a task'):
        Cleaner(learn, learn.dls.train_ds.items, k=k)


def test_numbers_are_filled_where_they_are_asked_for(learn):
    "Nobody knows how sure a number is: it is no label unless it was named, or all that is reached is to be filled"
    blank = learn.df['size'].isna()
    assert blank.any()
    with learn.no_bar():
        table, filled, report = learn.fill_labels(learn.df, 0.6)
        assert not filled['size'].any() and table['size'].isna().equals(blank)
        assert filled.a.any() and filled.tags.any()  # what has probabilities is filled as ever
        of_size = report.set_index('task_path').loc['size']
        assert of_size.tolist() == [blank.sum(), blank.sum(), 0]
        for options in (dict(tasks='size'), dict(tasks=['a', 'size']), dict(min_confidence=0)):
            filled = learn.fill_labels(learn.df, **options)[1]
            assert filled['size'].equals(blank)


def test_a_column_that_was_not_there_has_the_dtype_of_its_answers(learn):
    with learn.no_bar():
        table = learn.fill_labels(learn.df.drop(columns=['a', 'size', 'p', 'q']), 0)[0]
    assert [str(table[column].dtype) for column in ('a', 'size', 'p', 'q')] == ['boolean', 'float64'] + ['boolean'] * 2


@pytest.mark.parametrize('method', ['fill_labels', 'Cleaner'])
def test_a_model_that_gives_no_numbers_is_told(learn, method):
    df = learn.df.assign(z4=np.nan)
    with learn.no_bar(), pytest.raises(FlowError, match="the predictions of task 'a' hold NaN"):
        Cleaner(learn, df) if method == 'Cleaner' else learn.fill_labels(df)


def test_what_a_label_rules_out_is_not_filled_whatever_its_row_weighs():
    "A row of weight 0 trains nothing; what stands in it is still so"
    asked = BinaryBlock('a')
    flow = Flow('f', asked, BinaryBlock('b') | asked, BinaryBlock('c') | ~asked, weight_col='w')
    df = pd.DataFrame(dict(a=[1, 0] * 20, b=[1, None, 0, None] * 10, c=[None, 0, None, 1] * 10, w=1.0))
    dls = DataBlock(
        blocks=(TransformBlock, flow), get_x=lambda r: torch.zeros(1), splitter=IndexSplitter(range(8))
    ).dataloaders(df, bs=8, num_workers=0)
    learn = equip(Learner(dls, nn.Linear(1, dls.c)), tune=None)
    new = pd.DataFrame(dict(a=[0.0, 1.0, 0.0, 1.0], b=None, c=None, w=[0.0, 0.0, 1.0, 1.0]))
    table, filled, _ = learn.fill_labels(new, 0)
    assert filled.b.tolist() == [False, True, False, True] and filled.c.tolist() == [True, False, True, False]
    assert table.a.tolist() == new.a.tolist()
