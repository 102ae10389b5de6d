"""A table becomes batches: the right labels beside the right images, by every road that a fastai user takes. Each
image carries its row's number in its
pixels; labels are held to an encoding written out here by hand, row by row."""

import copy, pickle, subprocess, sys, tracemalloc, warnings
from collections import namedtuple
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, strategies as st
from PIL import Image
from fastai.tabular.all import TabularPandas
from fastai.vision.all import (
    CategoryBlock,
    ColReader,
    DataBlock,
    DataLoader,
    DataLoaders,
    ImageBlock,
    ImageDataLoaders,
    IndexSplitter,
    RandomSplitter,
    Resize,
    Transform,
    TransformBlock,
    get_image_files,
    aug_transforms,
    noop,
)
from fastai_condmtl.vision.all import (
    BinaryBlock,
    BoundedRegressionBlock,
    ConditionalDataLoaders,
    Flow,
    FlowError,
    FlowPrediction,
    KeypointsBlock,
    MultiLabelBlock,
    SingleLabelBlock,
    StratifiedSplitter,
    TensorConditional,
    UnboundedRegressionBlock,
)
from fastai_condmtl.core import applications
from fastai_condmtl.data.stratify import stratify
from fastai_condmtl.data.target_block import EncodedRows, FlowTransform, flow_transform, keep_only_batch
from random_flows import checks
import fastai_condmtl.all  # noqa: F401  methods of flows and learners
import fastai_condmtl.tabular.all  # noqa: F401  what a table's target is

pytestmark = pytest.mark.filterwarnings('ignore:.*(no row of|no training row|no column).*')
N, KW = 48, dict(bs=8, num_workers=0)
KINDS, TAGS = ['ball', 'cube', 'kite'], ['big', 'red']
COLS = ['seen', 'kind', 'tags', 'x', 'p', 'q', 'age']


def make_flow():
    seen = BinaryBlock('seen')
    kind = SingleLabelBlock('kind', vocab=KINDS)
    return Flow(
        'toys',
        seen,
        Flow('toy', kind, MultiLabelBlock('tags', vocab=TAGS), BoundedRegressionBlock('x', y_range=(0, 8))) | seen,
        MultiLabelBlock('marks', cols=['p', 'q']) | kind.ne('ball'),
        UnboundedRegressionBlock('age') | ~seen,
    )


def make_table(n=N, seed=0):
    rng = np.random.default_rng(seed)
    gap = lambda vs, p=0.2: pd.Series([None if rng.random() < p else v for v in vs], dtype=object)
    return pd.DataFrame(
        dict(
            img=[f'{i}.png' for i in range(n)],
            seen=gap([bool(v) for v in rng.random(n) < 0.6]),
            kind=gap(rng.choice(KINDS, n).tolist()),
            tags=gap([','.join(t for t in TAGS if rng.random() < 0.5) for _ in range(n)]),
            x=rng.random(n) * 8,
            p=gap([int(v) for v in rng.random(n) < 0.5]),
            q=gap([int(v) for v in rng.random(n) < 0.5]),
            age=rng.normal(40, 9, n),
        )
    )


def by_hand(df, train):
    "Packed labels of `make_flow()` in flow order: seen, kind, tags (2), x, marks (2), age."
    known = lambda v: not (v is None or v is pd.NA or v != v)
    ages = [r['age'] for i, (_, r) in enumerate(df.iterrows()) if i in set(train) and known(r['age'])]
    mean, std = (np.mean(ages), np.std(ages)) if ages else (0, 1)
    out = []
    for _, r in df.iterrows():
        seen = bool(r['seen']) if known(r['seen']) else None
        kind = r['kind'] if known(r['kind']) and seen else None  # as a condition: unknown where it does not apply
        row = [
            (0.0 if seen is None else float(seen), seen is not None),
            (KINDS.index(r['kind']) if known(r['kind']) else 0, kind is not None),
        ]
        tags = r['tags'].split(',') if known(r['tags']) else []
        row += [(float(t in tags), known(r['tags']) and seen is True) for t in TAGS]
        row += [(r['x'] / 8 if known(r['x']) else 0, known(r['x']) and seen is True)]
        row += [(float(r[c]) if known(r[c]) else 0, known(r[c]) and kind not in (None, 'ball')) for c in 'pq']
        row += [((r['age'] - mean) / std if known(r['age']) else 0, known(r['age']) and seen is False)]
        out.append([[v for v, _ in row], [float(m) for _, m in row]])
    return torch.tensor(out, dtype=torch.float32)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('images')
    for i in range(N):
        Image.fromarray(np.full((8, 8, 3), (i, 255 - i, 7), dtype=np.uint8)).save(path / f'{i}.png')
    return path


def row_numbers(x):
    x = torch.Tensor(x)
    return [round(v) for v in (x[:, 0, 0, 0] * (255 if x.is_floating_point() else 1)).tolist()]


def check(dls, want=None, df=None, rows=None, cols=slice(None)):
    """Every batch of both sides holds each of its rows once, with float32 labels `(bs, 2, D)` as by hand. Returns
    the rows of training and validation."""
    sides = []
    for dl in dls:
        got = []
        for x, y in dl.new(shuffle=dl.shuffle, drop_last=False):
            i = row_numbers(x)
            assert type(y) is TensorConditional and y.dtype == torch.float32 and y.shape == (len(i), 2, y.shape[2]), (
                type(y),
                y.shape,
            )
            got += zip(i, torch.Tensor(y))
        sides.append([i for i, _ in got])
        if want is None:
            want = by_hand(make_table() if df is None else df, sides[0])
        for i, y in got:
            torch.testing.assert_close(y[1], want[i, 1, cols], rtol=0, atol=0)
            torch.testing.assert_close(y[0], want[i, 0, cols], rtol=0, atol=1e-5)
    assert sorted(sides[0] + sides[1]) == list(range(N) if rows is None else rows)
    return sides


def stock(df, folder, flow=None, splitter=None, bs=8, num_workers=0, **kw):
    return DataBlock(
        blocks=(ImageBlock, make_flow() if flow is None else flow),
        get_x=ColReader('img', pref=folder),
        splitter=splitter or RandomSplitter(0.25, seed=1),
        **kw,
    ).dataloaders(df, bs=bs, num_workers=num_workers)


# ---- a stock DataBlock
# ------------------------------------------------------------------------------------------------
Row = namedtuple('Row', COLS)
GETS = dict(
    none=None,
    dict=lambda r: {c: r[c] for c in COLS},
    named_tuple=lambda r: Row(*(r[c] for c in COLS)),
    list=lambda r: [r[c] for c in COLS],
    tuple=lambda r: tuple(r[c] for c in COLS),
    row=lambda r: r,
    part_of_row=lambda r: r[COLS],
    cols=ColReader(COLS),
    cols_in_another_order=ColReader(COLS[::-1]),
    cols_by_position=ColReader(list(range(1, 8))),
    shuffled_dict=lambda r: {c: r[c] for c in sorted(COLS)},
)


@pytest.mark.parametrize('get_y', GETS)
def test_get_y(folder, get_y):
    check(stock(make_table(), folder, **({} if get_y == 'none' else dict(get_y=GETS[get_y]))))


def test_getters(folder):
    dls = DataBlock(blocks=(ImageBlock, make_flow()), getters=[ColReader('img', pref=folder), noop]).dataloaders(
        make_table(), **KW
    )
    check(dls)


def test_rows_that_are_no_table(folder):
    "Items as named tuples or dicts, and files whose labels a function knows."
    df = make_table()
    check(
        DataBlock(
            blocks=(ImageBlock, make_flow()),
            get_items=lambda d: list(d.itertuples(index=False)),
            get_x=lambda r: folder / r.img,
        ).dataloaders(df, **KW)
    )
    check(
        DataBlock(
            blocks=(ImageBlock, make_flow()),
            get_items=lambda d: d.to_dict('records'),
            get_x=lambda r: folder / r['img'],
        ).dataloaders(df, **KW)
    )
    check(
        DataBlock(
            blocks=(ImageBlock, make_flow()), get_items=get_image_files, get_y=lambda f: df.iloc[int(f.stem)]
        ).dataloaders(folder, **KW)
    )


@pytest.mark.parametrize('names', [COLS, list(range(1, 8))])
def test_image_data_loaders_from_df(folder, names):
    check(
        ImageDataLoaders.from_df(
            make_table(), path=folder, y_block=make_flow(), label_col=names, fn_col='img', valid_pct=0.3, seed=3, **KW
        )
    )


@pytest.mark.parametrize(
    'block, cols', [(lambda: BinaryBlock('seen'), [0]), (lambda: MultiLabelBlock('marks', cols=['p', 'q']), [5, 6])]
)
@pytest.mark.parametrize('get_y', [True, False])
def test_a_bare_task_is_a_block(folder, block, cols, get_y):
    names = block().cols
    dls = stock(make_table(), folder, block(), **(dict(get_y=ColReader(names)) if get_y else {}))
    want = by_hand(make_table().assign(seen=make_table().seen if cols == [0] else True, kind='cube'), range(N))
    check(dls, want, cols=cols)
    assert dls.c == len(cols) and dls.flow.paths == [block().name]


def test_a_bare_task_with_bare_values(folder):
    df = make_table()
    want = by_hand(df.assign(seen=True), range(N))
    for get_y in (ColReader('kind'), lambda r: r['kind'], lambda r: {'kind': r['kind']}):
        check(stock(df, folder, SingleLabelBlock('kind'), get_y=get_y), want, cols=[1])
    check(
        ImageDataLoaders.from_df(df, path=folder, y_block=SingleLabelBlock('kind'), label_col='kind', **KW),
        want,
        cols=[1],
    )


def test_what_stock_learners_ask_of_the_data(folder):
    dls = stock(make_table(), folder)
    assert (
        dls.c == 1 + 3 + 2 + 1 + 2 + 1
        and dls.flow.n_targets == 8
        and list(dls.flow.slices) == dls.flow.paths == ['seen', 'toy.kind', 'toy.tags', 'toy.x', 'marks', 'age']
    )
    assert (
        dls.loss_func is dls.loss_func
        and dls.loss_func is dls.flow.loss_func
        and dls.loss_func.y_int
        and not hasattr(dls, 'vocab')
    )
    s = dls.flow.slices
    for part, n in (('targets', 8), ('logits', dls.c), ('acts', dls.c)):
        assert sorted(c for v in s.values() for c in range(getattr(v, part).start, getattr(v, part).stop)) == list(
            range(n)
        )
    assert [v.targets.start for v in s.values()] == sorted(v.targets.start for v in s.values()) and [
        v.acts.start for v in s.values()
    ] == sorted(v.acts.start for v in s.values())


def test_items_are_labels_and_decode_to_predictions(folder):
    df = make_table()
    dsets = DataBlock(
        blocks=(ImageBlock, make_flow()), get_x=ColReader('img', pref=folder), splitter=IndexSplitter(range(40, N))
    ).datasets(df)
    assert len(dsets) == N and len(dsets.train) == 40 and len(dsets.valid) == 8
    want = by_hand(df, range(40))
    for i in (0, 7, 39):
        torch.testing.assert_close(torch.Tensor(dsets.train[i][1]), want[i], rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.Tensor(dsets.valid[3][1]), want[43], rtol=0, atol=1e-5)
    y = dsets.decode(dsets[0])[1]
    assert isinstance(y, FlowPrediction) and list(y) == ['seen', 'toy.kind', 'toy.tags', 'toy.x', 'marks', 'age']
    for i in range(N):
        y, r = dsets.decode(dsets[i])[1], df.iloc[i]
        m = dict(
            zip(
                ['seen', 'toy.kind', 'toy.tags', 'toy.x', 'marks', 'age'],
                [want[i, 1, c].any() for c in ([0], [1], [2, 3], [4], [5, 6], [7])],
            )
        )
        assert {p: v is not None for p, v in y.items()} == m
        if m['toy.kind']:
            assert (
                y['kind'] == r['kind']
                and y['toy.x'] == pytest.approx(r['x'], abs=1e-4)
                and (not m['toy.tags'] or y['tags'] == [t for t in r['tags'].split(',') if t])
            )
        if m['age']:
            assert y['age'] == pytest.approx(r['age'], abs=1e-3)


def test_a_slice_of_a_dataset(folder):
    "`dsets.train[:3]` and `dsets.train[[0, 2]]`, as stock fastai has them."
    make = lambda block, **kw: DataBlock(
        blocks=(ImageBlock, block), get_x=ColReader('img', pref=folder), splitter=IndexSplitter(range(40, N)), **kw
    ).datasets(make_table())
    assert len(make(CategoryBlock, get_y=ColReader('img')).train[:3]) == 3
    got = make(make_flow()).train[:3]
    want = by_hand(make_table(), range(40))
    assert len(got) == 3
    for i, (_, y) in enumerate(got):
        torch.testing.assert_close(torch.Tensor(y), want[i], rtol=0, atol=1e-5)
    got = make(make_flow()).train[[0, 2]]
    torch.testing.assert_close(torch.Tensor(got[1][1]), want[2], rtol=0, atol=1e-5)


def test_data_block_summary_runs(folder, capsys):
    DataBlock(
        blocks=(ImageBlock, make_flow()),
        get_x=ColReader('img', pref=folder),
        item_tfms=Resize(8),
        batch_tfms=aug_transforms(),
    ).summary(make_table())
    assert 'FlowTransform' in capsys.readouterr().out


# ---- workers, shuffles, copies
# ----------------------------------------------------------------------------------------
def test_workers_and_shuffle(folder):
    dls = ConditionalDataLoaders.from_df(
        make_table(), make_flow(), path=folder, bs=8, num_workers=2, seed=1, batch_tfms=[]
    )
    first, _ = check(dls)
    assert first != sorted(first)  # it was shuffled


def test_a_data_loader_travels(folder):
    "Pickled and deep-copied, and made anew with other sizes."
    dls = ConditionalDataLoaders.from_df(make_table(), make_flow(), path=folder, seed=1, **KW)
    check(pickle.loads(pickle.dumps(dls)))
    check(copy.deepcopy(dls))
    check(DataLoaders(*[dl.new(bs=5) for dl in dls]))


def test_one_data_block_used_twice(folder):
    block = DataBlock(
        blocks=(ImageBlock, make_flow()), get_x=ColReader('img', pref=folder), splitter=RandomSplitter(0.25, seed=1)
    )
    df = make_table()
    a, want = block.dataloaders(df, **KW), None
    small = df.iloc[:20].reset_index(drop=True)
    c, age = a.c, a.flow.tasks['age'].mean
    b = block.dataloaders(small.assign(age=small.age + 100), **KW)
    assert (
        a.flow is not b.flow
        and a.loss_func is not b.loss_func
        and a.c == c
        and a.flow.tasks['age'].mean == age != b.flow.tasks['age'].mean
    )
    a.loss_func.thresholds['seen'] = 0.9
    assert float(b.loss_func.thresholds['seen']) == 0.5
    check(a)
    check(b, df=small.assign(age=small.age + 100), rows=range(20))


def test_one_block_with_inferred_vocabularies_on_two_tables(folder):
    flow = Flow('f', SingleLabelBlock('kind'), MultiLabelBlock('tags'), BoundedRegressionBlock('x'))
    df = make_table()
    a, b = stock(df, folder, flow), stock(df.assign(kind='only', tags='one,two,three', x=df.x * 2), folder, flow)
    assert (
        (a.c, b.c) == (3 + 2 + 1, 1 + 3 + 1)
        and stock(df, folder, flow).c == a.c
        and a.one_batch()[1].shape == (8, 2, 4)
        and b.one_batch()[1].shape == (8, 2, 5)
    )
    assert all(getattr(t, 'vocab', None) is None for t in flow.tasks)


def test_k_fold_with_one_flow(folder):
    df, flow = make_table(), make_flow()
    before, folds = repr(flow), []
    state = pickle.dumps(flow)
    for k in range(5):
        valid = list(range(k, N, 5))
        dls = stock(df, folder, flow, IndexSplitter(valid))
        train, got = check(dls, by_hand(df, [i for i in range(N) if i not in valid]))
        assert sorted(got) == valid
        ages = df.age[[i for i in range(N) if i not in valid]]
        assert dls.flow.tasks['age'].mean == pytest.approx(ages.mean()) and dls.flow.tasks['age'].std == pytest.approx(
            ages.std(ddof=0)
        )
        folds.append(dls)
    assert repr(flow) == before and pickle.dumps(flow) == state
    assert (
        len({id(d.flow) for d in folds})
        == len({id(d.loss_func) for d in folds})
        == len({d.flow.tasks['age'].mean for d in folds})
        == 5
    )
    for k, d in enumerate(folds):
        check(d, by_hand(df, [i for i in range(N) if i not in range(k, N, 5)]))  # the first is still what it was


# ---- ConditionalDataLoaders
# -------------------------------------------------------------------------------------------
def cdl(df, folder, flow=None, **kw):
    return ConditionalDataLoaders.from_df(df, make_flow() if flow is None else flow, path=folder, **(KW | kw))


def test_from_df(folder):
    dls = cdl(make_table(), folder, valid_pct=0.25, fn_col='img')
    train, valid = check(dls)
    assert len(valid) == N // 4 and isinstance(dls, DataLoaders) and dls.path == folder


def test_seed(folder):
    split = lambda **kw: sorted(check(cdl(make_table(), folder, **kw))[1])
    for kw in ({}, dict(stratify=True)):
        torch.manual_seed(1)
        np.random.seed(1)
        a = split(seed=7, **kw)
        torch.manual_seed(2)
        np.random.seed(2)
        assert split(seed=7, **kw) == a and split(seed=8, **kw) != a


@pytest.mark.parametrize('dtype', [bool, int, object, 'boolean', 'Int64'])
def test_valid_col(folder, dtype):
    df = make_table().assign(v=pd.Series([i % 3 == 0 for i in range(N)]).astype(dtype))
    assert sorted(check(cdl(df, folder, valid_col='v'))[1]) == list(range(0, N, 3))


@pytest.mark.parametrize('gaps', [lambda v: v.astype('boolean'), lambda v: v.astype(float), lambda v: v])
def test_a_gap_in_valid_col_is_no_validation_row(folder, gaps):
    """NaN is true to Python; a row that nobody marked must not slip into validation. An error that says so would
    do as well."""
    v = gaps(pd.Series([True] * 9 + [False] * 30 + [np.nan] * (N - 39), dtype=object))
    try:
        valid = check(cdl(make_table().assign(v=v), folder, valid_col='v'))[1]
    except FlowError as e:
        assert "'v'" in str(e)
    else:
        assert sorted(valid) == list(range(9))


def test_splitter(folder):
    assert sorted(check(cdl(make_table(), folder, splitter=IndexSplitter([3, 1, 40])))[1]) == [1, 3, 40]


@pytest.mark.parametrize('pct', [1.5, 1.0, -0.1])
@pytest.mark.parametrize('stratify', [True, False])
def test_a_share_that_is_none(folder, pct, stratify):
    with pytest.raises(FlowError, match='valid_pct'):
        cdl(make_table(), folder, valid_pct=pct, stratify=stratify)


def test_folder_and_suff(folder):
    df = make_table().assign(img=range(N))
    check(ConditionalDataLoaders.from_df(df, make_flow(), path=folder.parent, folder=folder.name, suff='.png', **KW))
    check(
        ConditionalDataLoaders.from_df(
            df.assign(img=[str(i) for i in range(N)]),
            make_flow(),
            path=str(folder.parent),
            folder=folder.name,
            suff='.png',
            **KW,
        )
    )


@pytest.mark.parametrize('as_type', [str, Path])
def test_absolute_file_names(folder, as_type):
    df = make_table()
    check(cdl(df.assign(img=pd.Series([as_type(folder / f) for f in df.img], dtype=object)), folder))


def test_file_column_elsewhere(folder):
    df = make_table()
    df = df[[c for c in df.columns if c != 'img'] + ['img']]
    check(cdl(df, folder, fn_col='img'))
    check(cdl(df, folder, fn_col=len(df.columns) - 1))
    with pytest.raises(FlowError, match="image.*did you mean 'img'"):
        cdl(df, folder, fn_col='image')
    with pytest.raises(FlowError, match='is_valid'):
        cdl(df, folder, fn_col='img', valid_col='is_valid')


def test_from_csv(folder, tmp_path):
    make_table().to_csv(tmp_path / 'labels.csv', index=False)
    make_table().to_csv(tmp_path / 'other.txt', index=False, sep=';')
    df = make_table()
    df.loc[df.tags.isin(['']), 'tags'] = None  # an empty cell of a csv is a gap
    kw = dict(folder=folder, seed=2, **KW)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore', category=DeprecationWarning)
        warnings.filterwarnings('ignore', category=FutureWarning)
        warnings.filterwarnings('ignore', message='.*(no row of|no training row|pin_memory).*')
        dls = ConditionalDataLoaders.from_csv(tmp_path, make_flow(), **kw)
    check(dls, df=df)
    check(ConditionalDataLoaders.from_csv(tmp_path, make_flow(), csv_fname='other.txt', delimiter=';', **kw), df=df)


def test_from_csv_of_one_label(folder, tmp_path):
    "The separator of a csv is a comma, whatever else its cells hold."
    pd.DataFrame(
        dict(img=[f'{i}.png' for i in range(N)], what=[['x;y', 'z;w', 'a;b'][i % 3] for i in range(N)])
    ).to_csv(tmp_path / 'labels.csv', index=False)
    dls = ConditionalDataLoaders.from_csv(tmp_path, SingleLabelBlock('what'), folder=folder, **KW)
    assert dls.flow.tasks['what'].vocab == ['a;b', 'x;y', 'z;w'] and dls.one_batch()[1].shape == (8, 2, 1)


LABELS = dict(
    dict=lambda r: {c: r[c] for c in COLS},
    row=lambda r: r,
    named_tuple=lambda r: Row(*(r[c] for c in COLS)),
    sequence=lambda r: [r[c] for c in COLS],
)


@pytest.mark.parametrize('kind', LABELS)
def test_from_path_func(folder, kind):
    df, seen = make_table(), []

    def labels(f):
        assert isinstance(f, Path)
        seen.append(f)
        return LABELS[kind](df.iloc[int(f.stem)])

    files = get_image_files(folder)
    check(ConditionalDataLoaders.from_path_func(folder, files, labels, make_flow(), **KW))
    assert len(seen) == N  # each file was asked once


@pytest.mark.parametrize('method', ['from_path_func', 'from_path_funcs'])
def test_files_come_in_a_list(folder, method):
    labels = {} if method == 'from_path_funcs' else lambda file: {}
    for wrong in ('0.png', Path('0.png'), pd.DataFrame(dict(img=['0.png'])), dict(img=['0.png'])):
        with pytest.raises(FlowError, match=rf'fnames= takes a list of files, not a {type(wrong).__name__}: .*from_df'):
            getattr(ConditionalDataLoaders, method)(folder, wrong, labels, make_flow(), **KW)


def test_from_path_func_of_one_task(folder):
    df = make_table()
    files = [str(f) for f in get_image_files(folder)]
    check(
        ConditionalDataLoaders.from_path_func(
            folder, files, lambda f: df.kind[int(f.stem)], SingleLabelBlock('kind'), **KW
        ),
        by_hand(df.assign(seen=True), range(N)),
        cols=[1],
    )


def test_from_path_funcs(folder):
    df = make_table()
    funcs = {c: (lambda f, c=c: df[c][int(f.stem)]) for c in COLS}
    check(ConditionalDataLoaders.from_path_funcs(folder, get_image_files(folder), funcs, make_flow(), **KW))
    with pytest.raises(FlowError, match='kind'):
        ConditionalDataLoaders.from_path_funcs(
            folder, get_image_files(folder), {c: f for c, f in funcs.items() if c != 'kind'}, make_flow(), **KW
        )
    with pytest.raises(FlowError, match='no files'):
        ConditionalDataLoaders.from_path_funcs(folder, [], funcs, make_flow(), **KW)


def test_relative_files(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    df = make_table()
    files = [Path(folder.name) / f'{i}.png' for i in range(N)]
    check(ConditionalDataLoaders.from_path_func('.', files, lambda f: df.iloc[int(f.stem)], make_flow(), **KW))


def test_an_error_comes_with_its_row(folder):
    df = make_table().astype({'kind': object})
    df.loc[11, 'kind'] = 'kyte'
    for make in (lambda: cdl(df, folder), lambda: stock(df, folder), lambda: stock(df, folder, get_y=ColReader(COLS))):
        with pytest.raises(FlowError, match=r"(?s)toy\.kind.*row 11.*kyte.*kite"):
            make()


# ---- the stratified split
# ---------------------------------------------------------------------------------------------
def test_stratify_puts_rare_things_on_both_sides(folder):
    "A gate, a class, a label and a task with few labels."
    rng = np.random.default_rng(3)
    for seed in range(12):
        df = make_table(N, seed)
        df['seen'] = False
        df.loc[rng.choice(N, 6, replace=False), 'seen'] = True  # the gate is rare
        on = df.index[df.seen]
        df['kind'] = pd.Series(['ball'] * N, dtype=object)
        df.loc[on[:2], 'kind'] = 'kite'
        df.loc[on[2:4], 'kind'] = 'cube'
        df['p'] = pd.Series([None] * N, dtype=object)
        df.loc[on[1:3], 'p'] = [0, 0]
        df['q'] = pd.Series([None] * N, dtype=object)  # pairs that no split can part would ask too much
        df['tags'] = pd.Series(['big'] * N, dtype=object)
        df.loc[on[4:], 'tags'] = 'red'
        y = by_hand(df, range(N))
        train, valid = check(cdl(df, folder, stratify=True, seed=seed, valid_pct=0.2), df=df)
        assert abs(len(valid) - 0.2 * N) <= 5
        for c in range(8):
            m = y[:, 1, c] > 0
            for v in y[m, 0, c].unique() if c not in (4, 7) else [None]:
                rows = {i for i in range(N) if m[i] and (v is None or y[i, 0, c] == v)}
                if len(rows) >= 2:
                    assert rows & set(train) and rows & set(valid), (seed, c, v, rows)


def test_stratify_takes_any_index_and_leaves_the_table(folder):
    df = make_table().set_axis([0] * N)
    kept = df.copy()
    a = sorted(check(cdl(df, folder, stratify=True, seed=5))[1])
    pd.testing.assert_frame_equal(df, kept)
    assert sorted(check(cdl(make_table(), folder, stratify=True, seed=5))[1]) == a
    train, valid = StratifiedSplitter(make_flow(), 0.2, seed=5)(make_table())
    assert sorted(valid) == a and sorted([*train, *valid]) == list(range(N))
    assert sorted(check(stock(make_table(), folder, splitter=StratifiedSplitter(make_flow(), 0.2, seed=5)))[1]) == a


@checks(60)
@given(st.data())
def test_stratify_with_any_groups(data):
    n, k = data.draw(st.integers(2, 60)), data.draw(st.integers(1, 8))
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    pct = data.draw(st.sampled_from([0.01, 0.1, 0.2, 0.5, 0.9]))
    groups = rng.random((n, k)) < rng.choice([0, 0.02, 0.1, 0.5, 0.98, 1], k)
    if data.draw(st.booleans()):
        groups[:, 0] = True  # one that all rows are in
    valid = stratify(groups, pct, np.random.default_rng(1))
    assert valid.dtype == bool and valid.shape == (n,) and abs(valid.sum() - pct * n) <= k + 1
    assert (valid == stratify(groups, pct, np.random.default_rng(1))).all()
    alone = [g for g in groups.T if g.sum() >= 2]
    if len(alone) == 1:
        assert 0 < valid[alone[0]].sum() < alone[0].sum()  # nothing stands in its way


@checks(60)
@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.2, 0.5]))
def test_stratify_with_hostile_imbalance(seed, pct):
    """Classes that exclude each other, of any sizes: every one with two rows or more stands on both sides, and
    large ones near their share."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1, 2, 2, 3, 5, 40, 200], rng.integers(1, 9))
    of = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    groups = of[:, None] == np.arange(len(sizes))
    valid = stratify(groups, pct, rng)
    for j, size in enumerate(sizes):
        n = valid[of == j].sum()
        if size >= 2:
            assert 0 < n < size, (sizes, j, n)
        if size >= 40:
            assert abs(n - pct * size) <= 2, (sizes, j, n)


@checks(40)
@given(st.integers(0, 10**6))
def test_stratify_with_overlapping_groups(seed):
    "Groups that share rows, four rows or more each: there is room for all of them."
    rng = np.random.default_rng(seed)
    n, k = int(rng.integers(20, 80)), int(rng.integers(2, 7))
    groups = np.zeros((n, k), dtype=bool)
    for j in range(k):
        groups[rng.choice(n, rng.integers(4, n), replace=False), j] = True
    valid = stratify(groups, 0.2, rng)
    inside = np.array([valid[g].sum() for g in groups.T])
    assert ((inside > 0) & (inside < groups.sum(0))).all(), (inside, groups.sum(0))


# ---- what encoding costs
# ----------------------------------------------------------------------------------------------
class Counting(BinaryBlock):
    calls = []

    def encode(self, df):
        type(self).calls.append(len(df))
        return super().encode(df)


def test_labels_are_encoded_once_and_by_column(folder):
    Counting.calls.clear()
    dls = stock(make_table(), folder, Flow('f', Counting('seen'), SingleLabelBlock('kind') | Counting('seen')))
    assert Counting.calls == [N]
    for _ in range(2):
        for dl in dls:
            for b in dl:
                pass
    assert Counting.calls == [N]
    test = dls.test_dl(make_table().iloc[:12], with_labels=True)
    for b in test:
        pass
    assert Counting.calls == [N, 12]
    for b in dls.test_dl(make_table().iloc[:12]):
        pass
    assert Counting.calls == [N, 12]


def test_encoding_needs_little_memory():
    "Fourteen tasks of all kinds on 200,000 rows: beside the packed tensor itself, no more than a few times its size."
    n = 200_000
    rng = np.random.default_rng(0)
    df = pd.DataFrame(
        {f'b{i}': rng.random(n) < 0.5 for i in range(6)}
        | {f'r{i}': rng.random(n) for i in range(4)}
        | {f's{i}': rng.choice(list('abcde'), n) for i in range(3)}
        | {'m': rng.choice(['', 'p', 'q', 'p,q'], n)}
    )
    gate = BinaryBlock('b0')
    flow = Flow(
        'f',
        gate,
        *[BinaryBlock(f'b{i}') | gate for i in range(1, 6)],
        *[
            (UnboundedRegressionBlock if i % 2 else BoundedRegressionBlock)(f'r{i}') | BinaryBlock('b1')
            for i in range(4)
        ],
        *[SingleLabelBlock(f's{i}') for i in range(3)],
        MultiLabelBlock('m') | ~gate,
    )
    tracemalloc.start()
    try:
        y = flow.bind(df).encode(df)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert y.shape == (n, 2, 15) and y.dtype == torch.float32
    assert peak < 4 * y.numel() * 4, f'{peak / (y.numel() * 4):.1f} times the packed tensor'


# ---- dtypes
# -----------------------------------------------------------------------------------------------------------
def gaps_of(kind):
    return {'None': None, 'nan': float('nan'), 'NA': pd.NA, 'NaT': pd.NaT}[kind]


@pytest.mark.parametrize('gap', ['None', 'nan', 'NA', 'NaT'])
def test_object_columns_with_any_gap(folder, gap):
    df = make_table()
    for c in ['seen', 'kind', 'tags', 'p', 'q', 'x', 'age']:
        df[c] = pd.Series(
            [v if isinstance(v, (str, bool, int, float)) and v == v else gaps_of(gap) for v in df[c]], dtype=object
        )
    df.loc[::7, 'x'] = df.loc[::5, 'age'] = gaps_of(gap)
    check(cdl(df, folder), df=df)


DTYPES = [
    dict(seen='boolean', kind='string', tags='string', x='Float64', p='Int64', q='boolean', age='Float32'),
    dict(seen='float64', kind='category', tags='category', x='float64', p='float32', q='Int8', age='float64'),
    dict(seen='Int64', kind='str', tags='str', x='float64', p='Float64', q='category', age='Float64'),
]
ARROW = dict(
    seen='bool[pyarrow]',
    kind='string[pyarrow]',
    tags='string[pyarrow]',
    x='double[pyarrow]',
    p='int64[pyarrow]',
    q='bool[pyarrow]',
    age='double[pyarrow]',
)


@pytest.mark.parametrize('dtypes', [*DTYPES, ARROW])
@pytest.mark.parametrize('gaps', [True, False])
def test_dtypes(folder, dtypes, gaps):
    if dtypes is ARROW:
        pytest.importorskip('pyarrow')
    plain = (
        make_table()
        if gaps
        else make_table().assign(
            seen=[i % 3 > 0 for i in range(N)],
            kind=[KINDS[i % 3] for i in range(N)],
            tags=[['', 'big', 'red,big'][i % 3] for i in range(N)],
            p=[i % 2 for i in range(N)],
            q=[i // 2 % 2 for i in range(N)],
        )
    )
    if gaps:
        plain.loc[::6, 'x'] = np.nan
    df = plain.copy()
    for c, t in dtypes.items():
        s = df[c]
        if t in ('float64', 'float32', 'Int8', 'Int64', 'Float64') and c in ('seen', 'p', 'q'):
            s = s.map(lambda v: np.nan if v is None else float(v)).astype('float64')
        df[c] = s.astype(t).where(s.notna()) if t == 'str' else s.astype(t)  # pandas 2 makes the word 'None' of None
    want = plain.copy()
    check(
        cdl(df, folder, splitter=IndexSplitter(range(0, N, 4))),
        by_hand(want, [i for i in range(N) if i % 4]).round(decimals=6) if dtypes['age'] != 'Float32' else None,
        df=want,
    )


def test_integers_with_gaps_are_classes(folder):
    "They arrive as floats; 3.0 is the class 3."
    df = make_table().assign(kind=[[3, 7, np.nan][i % 3] for i in range(N)])
    dls = cdl(df, folder, SingleLabelBlock('kind'))
    assert dls.flow.tasks['kind'].vocab == [3, 7] and dls.flow.encode(df)[:3, :, 0].tolist() == [[0, 1], [1, 1], [0, 0]]
    assert dls.valid_ds.decode(dls.valid_ds[0])[1]['kind'] in (3, 7, None)


# ---- test_dl
# ----------------------------------------------------------------------------------------------------------
def test_test_dl(folder):
    for dls in (
        cdl(make_table(), folder, seed=1),
        stock(make_table(), folder),
        stock(make_table(), folder, get_y=ColReader(COLS)),
    ):
        want = by_hand(
            make_table(), row_numbers(torch.cat([b[0] for b in dls.train.new(drop_last=False, shuffle=False)]))
        )
        (x,) = dls.test_dl(make_table().iloc[10:15]).one_batch()
        assert row_numbers(x) == list(range(10, 15))
        x, y = dls.test_dl(make_table().iloc[[20, 3, 3]], with_labels=True).one_batch()
        assert row_numbers(x) == [20, 3, 3] and type(y) is TensorConditional
        torch.testing.assert_close(torch.Tensor(y), want[[20, 3, 3]], rtol=0, atol=1e-5)
        (x,) = dls.test_dl([folder / '5.png', folder / '6.png']).one_batch()
        assert row_numbers(x) == [5, 6]
        (x,) = dls.test_dl(make_table().iloc[10:12], bs=1).one_batch()
        assert row_numbers(x) == [10]


def test_a_label_column_that_is_not_there_counts_as_missing(folder):
    dls = cdl(make_table(), folder, seed=1)
    with pytest.warns(UserWarning, match="'kind', 'p'"):
        test = dls.test_dl(make_table().iloc[:9].drop(columns=['kind', 'p']), with_labels=True, bs=16)
    x, y = test.one_batch()
    assert (
        y[:, 1, [1, 5, 6]].sum() == 0
        and torch.equal(torch.Tensor(y[:, 1, 0]), by_hand(make_table(), range(N))[:9, 1, 0])
        and row_numbers(x) == list(range(9))
    )
    with pytest.warns(UserWarning):
        y = dls.test_dl(make_table().iloc[:9][['img']], with_labels=True).one_batch()[1]
    assert y.shape == (8, 2, 8) and not y.any()


def test_a_wrong_label_in_a_test_set_is_an_error(folder):
    with pytest.raises(FlowError, match='(?s)kind.*row 1.*kyte'):
        cdl(make_table(), folder).test_dl(make_table().iloc[:3].assign(kind=['ball', 'kyte', None]), with_labels=True)


def test_new_empty(folder):
    "What `export` keeps."
    dls = cdl(make_table(), folder)
    empty = dls.new_empty()
    assert len(empty.train_ds) == len(empty.valid_ds) == 0 and empty.c == dls.c and empty.flow is dls.flow
    assert len(pickle.dumps(empty)) < 60_000
    x, y = empty.test_dl(make_table().iloc[:2], with_labels=True).one_batch()
    assert row_numbers(x) == [0, 1] and y.shape == (2, 2, 8)


# ---- bad input
# --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def bad_images(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp('bad')
    rng = np.random.default_rng(0)
    for i in range(N):
        (path / f'{i}.png').write_bytes((folder / f'{i}.png').read_bytes())
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path / 'whole.png')
    whole = (path / 'whole.png').read_bytes()
    (path / 'truncated.png').write_bytes(whole[: len(whole) // 2])
    (path / 'empty.png').write_bytes(b'')
    (path / 'text.png').write_text('no image, but text')
    (path / 'dir.png').mkdir()
    return path


BAD = ['truncated.png', 'empty.png', 'text.png', 'dir.png', 'missing.png']


@pytest.mark.parametrize('name', BAD)
def test_an_unreadable_image_is_named(bad_images, name):
    df = make_table()
    df.loc[5, 'img'] = name
    with pytest.raises(FlowError, match=f"{name}.*bad_images='skip'"):
        for dl in cdl(df, bad_images):
            for b in dl.new(drop_last=False):
                pass


def test_unreadable_images_are_left_out(bad_images):
    df = make_table()
    df.loc[[0, 5, 6, 20, 47], 'img'] = BAD
    df.loc[30, 'img'] = None
    df = df.assign(v=[i % 4 == 1 for i in range(N)])
    good = [i for i in range(N) if i not in (0, 5, 6, 20, 30, 47)]
    want = by_hand(df, [i for i in good if i % 4 != 1])
    with pytest.warns(UserWarning, match='(?s)left out 6 of 48 .*truncated.png.*empty.png'):
        dls = cdl(df, bad_images, bad_images='skip', valid_col='v')
    train, valid = check(dls, want, rows=good)
    assert sorted(valid) == [i for i in good if i % 4 == 1]
    for kw in (dict(stratify=True, seed=1), dict(seed=1), dict(stratify=True)):
        with pytest.warns(UserWarning):
            check(cdl(df.set_axis(['same'] * N), bad_images, bad_images='skip', **kw), df=df, rows=good)


def test_positions_of_a_splitter_are_those_of_the_table(bad_images):
    "Folds are written for the table handed over; leaving rows out must not shift them."
    df = make_table()
    df.loc[[0, 5, 6], 'img'] = BAD[:3]
    with pytest.warns(UserWarning):
        dls = cdl(df, bad_images, bad_images='skip', splitter=IndexSplitter([4, 5, 10, 40, 47]))
    assert sorted(check(dls, rows=[i for i in range(N) if i not in (0, 5, 6)], df=df)[1]) == [4, 10, 40, 47]


def test_no_readable_image(bad_images):
    with pytest.warns(UserWarning), pytest.raises(FlowError, match='(?s)image.*path='):
        cdl(make_table().assign(img='missing.png'), bad_images, bad_images='skip')
    with pytest.raises(FlowError, match="'raise' or 'skip'"):
        cdl(make_table(), bad_images, bad_images='ignore')


def test_a_task_without_a_label_warns_and_goes_on(folder):
    with pytest.warns(UserWarning, match=r'toy\.kind'):
        dls = cdl(make_table().assign(kind=None), folder)
    with pytest.warns(UserWarning, match='marks'):
        dls = cdl(make_table().assign(p=np.nan, q=pd.NA), folder)
    model = torch.nn.Linear(3, dls.c)
    x, y = dls.one_batch()
    loss = dls.loss_func(model(x.mean((2, 3))), y)
    loss.backward()
    assert (
        loss.isfinite()
        and model.weight.grad.isfinite().all()
        and (model.weight.grad[dls.flow.slices['marks'].logits] == 0).all()
    )


def test_no_label_in_training_rows_only(folder):
    "Labels that stand in validation rows alone cannot be learnt: said at set-up."
    df = make_table().assign(age=[50.0 if i % 4 == 0 else None for i in range(N)], seen=False)
    with pytest.warns(UserWarning, match='(?s)training.*age'):
        cdl(df, folder, splitter=IndexSplitter(range(0, N, 4)))


def test_no_label_at_all(folder):
    from fastai.vision.all import vision_learner

    df = make_table().assign(**{c: None for c in COLS})
    with pytest.warns(UserWarning, match='(?s)seen.*toy.kind.*age'):
        dls = cdl(df, folder)
    learn = vision_learner(dls, 'test_resnet', pretrained=False, metrics=dls.flow.metrics())
    before = [p.detach().clone() for p in learn.model.parameters()]
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, wd=0)
    assert learn.recorder.values[0][:2] == [0, 0] and all(np.isnan(v) for v in learn.recorder.values[0][2:])
    assert all(p.isfinite().all() for p in learn.model.parameters()) and all(
        torch.equal(a, b) for a, b in zip(before, learn.model.parameters())
    )


def test_a_batch_without_labels_among_others(folder):
    from fastai.vision.all import vision_learner

    df = make_table()
    df.loc[:23, COLS] = None
    dls = cdl(df, folder, splitter=IndexSplitter(range(40, N)))
    learn = vision_learner(dls, 'test_resnet', pretrained=False)
    learn.dls.train = dls.train.new(shuffle=False)  # three batches of nothing, then two of something
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    assert (
        all(np.isfinite(v) for v in learn.recorder.values[0])
        and learn.recorder.losses[:3] == [0, 0, 0]
        and learn.recorder.losses[3] > 0
    )
    assert all(p.isfinite().all() for p in learn.model.parameters())


def test_empty_table(folder):
    with pytest.raises(FlowError, match='empty'):
        cdl(make_table().iloc[:0], folder)


INDEXES = dict(
    duplicated=[0] * N,
    text=[f'r{i}' for i in range(N)],
    reversed=list(range(N))[::-1],
    shifted=range(1000, 1000 + N),
    dates=pd.date_range('2020', periods=N),
    two_levels=pd.MultiIndex.from_arrays([[i % 3 for i in range(N)], ['a'] * N]),
    floats=np.linspace(0, 1, N),
)


@pytest.mark.parametrize('index', INDEXES)
def test_any_index(folder, index):
    df = make_table().set_axis(INDEXES[index])
    check(cdl(df, folder, seed=1), df=df)
    check(stock(df, folder, get_y=ColReader(COLS)), df=df)
    x, y = cdl(df, folder).test_dl(df.iloc[:4], with_labels=True).one_batch()
    assert row_numbers(x) == [0, 1, 2, 3] and y.shape == (4, 2, 8)


def test_the_table_is_left_alone(folder):
    df = make_table()
    dls = cdl(df, folder, stratify=True)
    for dl in dls:
        for b in dl:
            pass
    dls.test_dl(df.iloc[:3], with_labels=True).one_batch()
    pd.testing.assert_frame_equal(df, make_table())


def test_grey_and_transparent_images(folder, tmp_path):
    for name, mode in (('g', 'L'), ('a', 'RGBA'), ('p', 'P'), ('b', '1')):
        Image.open(folder / '9.png').convert(mode).save(tmp_path / f'{name}.png')
    df = make_table(8).assign(img=[f'{"gapb"[i % 4]}.png' for i in range(8)])
    assert cdl(df, tmp_path, bs=2).one_batch()[0].shape == (2, 3, 8, 8)


def test_inputs_other_than_images():
    "A flow is a block like any other."
    df = make_table()
    dls = DataBlock(
        blocks=(TransformBlock, make_flow()),
        get_x=lambda r: torch.tensor([float(r['img'][:-4])]),
        splitter=RandomSplitter(seed=1),
    ).dataloaders(df, **KW)
    want = by_hand(df, [int(x) for x in torch.cat([x for x, _ in dls.train.new(drop_last=False)])[:, 0]])
    for x, y in dls.valid:
        torch.testing.assert_close(torch.Tensor(y), want[x[:, 0].long()], rtol=0, atol=1e-5)


def test_two_inputs(folder):
    get = ColReader('img', pref=folder)
    dls = DataBlock(blocks=(ImageBlock, ImageBlock, make_flow()), n_inp=2, getters=[get, get, noop]).dataloaders(
        make_table(), **KW
    )
    a, b, y = dls.one_batch()
    assert torch.equal(a, b) and type(y) is TensorConditional and y.shape == (8, 2, 8)


class row_reviewed:
    def __call__(self, r):
        return torch.ones(3)

    __name__ = 'row'


def test_a_test_set_that_lacks_a_column_under_a_getter():
    flow, df = Flow('f', BinaryBlock('a'), BinaryBlock('b')), pd.DataFrame(dict(a=[0, 1, 1], b=[1, 0, 1]))
    dls = DataBlock(
        blocks=(TransformBlock, flow), get_x=row_reviewed(), get_y=ColReader(['a', 'b']), splitter=IndexSplitter([0])
    ).dataloaders(df, bs=2, num_workers=0)
    with pytest.warns(UserWarning, match="no column 'b'"):
        assert dls.test_dl(df[['a']], with_labels=True).one_batch()[1][:, 1].sum(0).tolist() == [2, 0]


def test_points_without_vision_are_an_error(monkeypatch):
    "fastai takes an error of `flow.item_tfms` as no transforms, and points would stay in pixels"
    monkeypatch.setattr(applications, '_provided', {})
    with pytest.raises(FlowError, match='from fastai_condmtl.vision.all import'):
        DataBlock(blocks=(ImageBlock, Flow('f', KeypointsBlock('p', ['x', 'y']))))
    assert DataBlock(blocks=(ImageBlock, Flow('f', BoundedRegressionBlock('x', y_range=(0, 9), draws='x'))))


def test_loaders_of_pictures_load_the_transforms_of_points(root):
    code = """
import sys
from fastai_condmtl.vision.data import ConditionalDataLoaders
sys.exit('fastai_condmtl.vision.points' not in sys.modules)
"""
    assert subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=root, timeout=100).returncode == 0


# ---- what a sample of mutants showed to be untested
# ---------------------------------------------------------------
def test_rows_of_no_position():
    rows = EncodedRows(torch.arange(12.0).reshape(3, 2, 2))
    assert len(rows[[]]) == 0 and rows[[]].packed().shape == (0, 2, 2)
    assert rows[[2, 0]].packed()[:, 0, 0].tolist() == [8, 0]


@pytest.mark.parametrize('idx', [None, range(1, 4), [3, 0, 2], np.array([2, 2]), (1, 3)])
def test_rows_by_position_are_those_of_the_tensor(idx):
    "Rows, parts of them and what a pickle holds: all with the geometry that travels with a row"
    y, geo = torch.arange(16.0).reshape(4, 2, 2), object()
    rows = EncodedRows(y, idx, geo)
    picked = y[list(range(4) if idx is None else idx)]
    assert len(rows) == len(picked) and torch.equal(torch.Tensor(rows.packed()), picked)
    for i in range(len(picked)):
        assert type(rows[i]) is TensorConditional and rows[i].tolist() == picked[i].tolist() and rows[i].geo is geo
    for part in (slice(1, None), [1, 0], np.array([1])):
        assert rows[part].packed().tolist() == picked[part].tolist() and rows[part][0].geo is geo
    state = rows.__getstate__()
    assert state['y'].tolist() == picked.tolist() and list(state['idx']) == list(range(len(picked)))
    assert state['geo'] is geo


def test_a_worker_is_handed_the_table_and_a_file_its_own_rows(monkeypatch):
    "torch puts a whole tensor into shared memory once; a slice would be copied for each worker"
    rows = EncodedRows(torch.arange(16.0).reshape(4, 2, 2))[[3, 1]]
    assert rows.__getstate__()['y'].shape == (2, 2, 2)
    monkeypatch.setattr('fastai_condmtl.data.target_block.get_spawning_popen', lambda: 'a process that begins')
    state = rows.__getstate__()
    assert state['y'].data_ptr() == rows.y.data_ptr() and state['idx'].tolist() == [3, 1]


class Shifted(Transform):
    "A transform that stands behind a flow: one more on each value"

    order = 2

    def encodes(self, y: TensorConditional):
        return y + 1


def test_a_transform_behind_the_flow_is_applied_to_each_row():
    df = pd.DataFrame(dict(a=[0, 1, 1, 0]))
    target = TransformBlock(type_tfms=[FlowTransform(Flow('f', BinaryBlock('a'))), Shifted()])
    ds = DataBlock((TransformBlock, target), get_x=ColReader('a'), get_y=ColReader('a')).datasets(df)
    targets = [ds[i][1] for i in range(4)]
    assert sorted(t[0].item() for t in targets) == [1, 1, 2, 2] and all(t[1].item() == 2 for t in targets)


def test_weights_that_get_y_does_not_name(folder):
    "Rows of weight 0 do not count; the column of weights is read though `get_y` names the labels only"
    df = pd.DataFrame(dict(img=[f'{i}.png' for i in range(8)], a=[0, 1] * 4, w=[0.0, 2.0] + [1.0] * 6))
    flow = Flow('f', BinaryBlock('a'), weight_col='w')
    dls = stock(df, folder, flow, IndexSplitter([6, 7]), bs=6, get_y=ColReader(['a']))
    y = dls.train_ds.tls[1].items.packed()
    assert y[:6, 1, 0].tolist() == [0.0, 2.0, 1.0, 1.0, 1.0, 1.0] and y[:6, 0, 0].tolist() == [0, 1, 0, 1, 0, 1]


def test_columns_of_other_names_are_those_of_the_tasks_in_order(folder):
    df = pd.DataFrame(dict(img=[f'{i}.png' for i in range(8)], p=[0, 1] * 4, q=[1, 1, 0, 0] * 2, w=[3.0] * 8))
    flow = Flow('f', BinaryBlock('a'), BinaryBlock('b'), weight_col='w')
    y = stock(df, folder, flow, IndexSplitter([7]), get_y=ColReader(['p', 'q'])).train_ds.tls[1].items.packed()
    assert y[:, 0].tolist() == df[['p', 'q']][:7].to_numpy().tolist() and (y[:, 1] == 3).all()


def test_a_column_of_weights_that_get_y_names_is_read_once(folder):
    df = pd.DataFrame(dict(img=[f'{i}.png' for i in range(8)], a=[0, 1] * 4, w=[0.0, 2.0] + [1.0] * 6))
    flow = Flow('f', BinaryBlock('a'), weight_col='w')
    y = stock(df, folder, flow, IndexSplitter([7]), get_y=ColReader(['a', 'w'])).train_ds.tls[1].items.packed()
    assert y[:, 0, 0].tolist() == df.a[:7].tolist() and y[:, 1, 0].tolist() == df.w[:7].tolist()


@pytest.mark.parametrize('reader', [dict(pref='big '), dict(suff=' ball'), dict(pref='a ', suff=' ball')])
def test_what_a_reader_puts_around_a_cell_is_part_of_the_label(reader):
    df, around = pd.DataFrame(dict(kind=['red', 'blue', 'red'])), (reader.get('pref', ''), reader.get('suff', ''))
    block = SingleLabelBlock('kind', vocab=[f'{around[0]}{v}{around[1]}' for v in ('blue', 'red')])
    ds = DataBlock(
        (TransformBlock, block), get_x=ColReader('kind'), get_y=ColReader('kind', **reader), splitter=IndexSplitter([2])
    ).datasets(df)
    assert [ds[i][1][0].item() for i in range(3)] == [1, 0, 1] and all(ds[i][1][1].item() == 1 for i in range(3))


def test_the_transform_of_a_target_is_found_wherever_it_stands():
    df = pd.DataFrame(dict(a=[0, 1, 1, 0], x=[1.0, 2.0, 3.0, 4.0]))
    of_block = lambda block: DataBlock((TransformBlock, block), get_x=ColReader('x'), get_y=ColReader('a'))
    flow = Flow('f', BinaryBlock('a'))
    assert flow_transform(of_block(flow).datasets(df)).unbound is flow
    table = TabularPandas(df, cont_names=['x'], y_block=TransformBlock(type_tfms=[target := FlowTransform(flow)]))
    assert flow_transform(table) is target
    for other in (of_block(CategoryBlock).datasets(df), TabularPandas(df, cont_names=['x'], y_names='a'), [], None):
        assert flow_transform(other) is None


@pytest.mark.parametrize('n, bs, batches', [(5, 8, 1), (8, 8, 1), (12, 8, 1), (16, 8, 2), (1, 8, 1)])
def test_an_incomplete_batch_is_kept_where_it_is_the_only_one(n, bs, batches):
    df = pd.DataFrame(dict(a=[i % 2 for i in range(n + 1)]))
    dblock = DataBlock((TransformBlock, BinaryBlock('a')), get_x=ColReader('a'), splitter=IndexSplitter([n]))
    dls = dblock.dataloaders(df, bs=bs, num_workers=0)
    assert [len(y) for _, y in dls.train] == [min(n, bs)] * batches and dls.train.drop_last == (n >= bs)


def test_what_keeps_batches_otherwise_is_left_alone():
    rows = list(range(5))
    assert not keep_only_batch(DataLoader(rows, bs=8, drop_last=False)).drop_last
    assert keep_only_batch(DataLoader(iter(rows), bs=8, drop_last=True)).drop_last  # nobody knows how many


def test_what_is_asked_before_the_set_up_is_named():
    for name in ('flow', 'c', 'loss_func'):
        with pytest.raises(AttributeError, match=f'^{name}$'):
            getattr(FlowTransform(Flow('f', BinaryBlock('a'))), name)


def test_a_block_has_one_transform():
    tfms = BinaryBlock('a').type_tfms
    assert len(tfms) == len(list(tfms)) == 1 and next(iter(tfms)) is not next(iter(tfms))
