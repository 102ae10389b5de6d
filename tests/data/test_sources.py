"""Several data sets as one: what a joined table says, how often each source is drawn, whose transforms run, and
scores a source."""

import pickle, warnings
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import (
    CropPad,
    ColReader,
    DataBlock,
    FlipItem,
    ImageBlock,
    IndexSplitter,
    Learner,
    Path,
    PILImage,
    Resize,
    Transform,
    TransformBlock,
    WeightedDL,
    load_learner,
    get_image_files,
)
from PIL import Image
from scipy import stats
from sklearn.metrics import f1_score
from torch import nn
from fastai_condmtl.vision.all import *
from fastai_condmtl.data.sampling import balanced_weights
from fastai_condmtl.data.source_tfms import SourceTfms
from fastai_condmtl.data.sources import concat_sources


# ---- one table
# --------------------------------------------------------------------------------------------------------
def tables(seed=0):
    "Three sources: every kind of task, each column missing somewhere, with gaps, under hostile index labels"
    rng = np.random.default_rng(seed)

    def gaps(x, p=0.3):
        return [None if rng.random() < p else v for v in x]

    street = pd.DataFrame(
        dict(
            img=[f's{i}' for i in range(9)],
            seen=rng.random(9) < 0.5,
            kind=rng.permutation([1, 2, 3] * 3),
            tags=['a', 'a,b', *gaps(rng.choice(['a', 'a,b', ''], 7))],
            bits_x=rng.integers(0, 2, 9),
        ),
        index=[0] * 9,
    )
    porch = pd.DataFrame(
        dict(
            img=[f'p{i}' for i in range(7)],
            seen=gaps(rng.random(7) < 0.5),
            kind=rng.permutation([2.0, 3.0, 4.0, 2.0, None, None, 4.0]).astype(float),
            age=rng.random(7) * 9,
            mood=pd.Categorical(rng.choice(['so', 'good'], 7), ['bad', 'so', 'good']),
        )
    )
    hall = pd.DataFrame(
        dict(
            img=[f'h{i}' for i in range(8)],
            age=pd.array(gaps(rng.integers(0, 9, 8)), dtype='Int64'),
            mood=pd.Categorical(rng.permutation(['so', 'odd'] * 4)),
            tags=['c', *gaps(rng.choice(['b', 'c'], 7))],
            bits_y=pd.array(gaps(rng.random(8) < 0.5), dtype='boolean'),
        ),
        index=list('abcdefgh'),
    )
    return dict(street=street, porch=porch, hall=hall)


def all_kinds():
    seen, kind = BinaryBlock('seen'), SingleLabelBlock('kind')
    return Flow(
        'f',
        seen,
        kind | seen,
        UnboundedRegressionBlock('age') | kind.isin([2, 3, 4]),
        SingleLabelBlock('mood'),
        MultiLabelBlock('tags'),
        MultiLabelBlock('bits', cols=['bits_x', 'bits_y']),
    )


@pytest.mark.parametrize('seed', range(5))
def test_the_whole_says_what_its_parts_say(seed):
    parts = tables(seed)
    kept = {n: d.copy() for n, d in parts.items()}
    for flow in (None, all_kinds()):
        df = concat_sources(parts, flow=flow)
        assert df.source.tolist() == [n for n, d in parts.items() for _ in range(len(d))] and df.index.tolist() == list(
            range(24)
        )
        bound = all_kinds().bind(df)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # a column that is not there counts as missing
            apart = torch.cat([bound.encode(d, missing_ok=True) for d in parts.values()])
        assert torch.equal(bound.encode(df), apart)
        assert bound.find('kind').vocab == sorted(
            set(parts['street'].kind) | set(parts['porch'].kind.dropna().astype(int))
        )
        assert bound.find('mood').vocab == ['bad', 'so', 'good', 'odd'] and bound.find('tags').vocab == ['a', 'b', 'c']
        assert (
            str(df.kind.dtype) == 'Int64'
            and str(df.seen.dtype) == 'boolean'
            and str(df.mood.dtype) == 'category'
            and df.age.dtype == float
        )
    for n in parts:
        pd.testing.assert_frame_equal(parts[n], kept[n])  # handed-over tables are left alone
    assert bound.tasks['bits'].encode(df)[1].tolist() == [
        [c in d and pd.notna(d[c].iloc[i]) for c in ('bits_x', 'bits_y')] for d in parts.values() for i in range(len(d))
    ]


def test_labels_survive_a_csv(tmp_path):
    "Written and read again: the same labels"
    df = concat_sources(tables())
    df.to_csv(tmp_path / 'all.csv', index=False)
    again = pd.read_csv(tmp_path / 'all.csv', keep_default_na=True)
    bound = all_kinds().bind(df)
    a, b = bound.encode(df), bound.encode(again)
    t = bound.slices['tags'].targets
    keep = [c for c in range(a.shape[2]) if not t.start <= c < t.stop]  # '' and blank are one in a csv
    torch.testing.assert_close(a[:, :, keep].as_subclass(torch.Tensor), b[:, :, keep].as_subclass(torch.Tensor))


@pytest.mark.parametrize(
    'a,b,dtype,joined',
    [
        ([1, 2], [3, None], 'Int64', [1, 2, 3, None]),  # integers with gaps arrive as floats
        ([1, 2], [3.5, None], 'float64', [1.0, 2.0, 3.5, None]),
        ([1.0, 2.0], [3.0, 4.0], 'float64', [1.0, 2.0, 3.0, 4.0]),
        ([2**60 + 1, 1], [None, None], 'Int64', [2**60 + 1, 1, None, None]),  # beyond what a float holds
        ([True, False], [None, True], 'boolean', [True, False, None, True]),
        ([True, False], [True, True], 'bool', [True, False, True, True]),
        ([True, False], [0, None], 'Int64', [1, 0, 0, None]),  # two ways to say no
        (
            ['x', 'y'],
            [None, None],
            str(pd.Series(['x']).dtype),
            ['x', 'y', None, None],
        ),  # `str`, before pandas 3 `object`
        ([None, None], [None, None], 'object', [None] * 4),
        (['x', ''], [['y', 'z'], None], 'object', ['x', '', ['y', 'z'], None]),
    ],
)
def test_values_stay_what_they_are(a, b, dtype, joined):
    x = concat_sources(dict(a=pd.DataFrame(dict(x=a)), b=pd.DataFrame(dict(x=b)))).x
    assert str(x.dtype) == dtype and [None if not isinstance(v, list) and pd.isna(v) else v for v in x] == joined


def test_kept_dtypes():
    day = pd.DataFrame(dict(d=pd.to_datetime(['2024-01-01', None]), s=pd.array(['u', None], dtype='string')))
    df = concat_sources(dict(a=day, b=day, c=pd.DataFrame(dict(z=[1]))))
    assert (
        df.d.dtype == day.d.dtype
        and df.s.dtype == day.s.dtype
        and str(df.z.dtype) == 'Int64'
        and df.d.isna().tolist() == [False, True, False, True, True]
    )


def test_categories():
    def join(*cs):
        return concat_sources({f'd{i}': pd.DataFrame(dict(x=c)) for i, c in enumerate(cs)}).x

    cat = lambda v, c, o=False: pd.Categorical(v, c, ordered=o)
    assert list(join(cat(['b'], ['b', 'a']), cat(['c'], ['a', 'c'])).cat.categories) == ['b', 'a', 'c']
    assert list(join(cat(['b'], ['b', 'a']), ['z', 'a', 'c']).cat.categories) == ['b', 'a', 'c', 'z']
    up = join(cat(['lo'], ['lo', 'mid', 'hi'], True), cat(['hi'], ['lo', 'hi'], True), ['mid'])
    assert list(up.cat.categories) == ['lo', 'mid', 'hi'] and up.cat.ordered and up.tolist() == ['lo', 'hi', 'mid']
    with pytest.raises(FlowError, match=r"'x' is ordered otherwise in source 'd1' \(hi < lo\) than in 'd0'"):
        join(cat(['lo'], ['lo', 'mid', 'hi'], True), cat(['hi'], ['hi', 'lo'], True))
    with pytest.raises(FlowError, match="ordered in source 'd0'.*'huge' besides"):
        join(cat(['lo'], ['lo', 'hi'], True), ['huge'])


def test_a_blank_that_means_none():
    a, b = pd.DataFrame(dict(tags=['x', None, 'y'], z=1)), pd.DataFrame(dict(z=[2, 2]))
    none, asked = MultiLabelBlock('tags', nan_is_empty=True), MultiLabelBlock('tags')
    for make in (
        lambda: concat_sources(dict(a=a, b=b), flow=none),
        lambda: Flow('f', none).bind(concat_sources(dict(a=a, b=b))),
        lambda: DataBlock(blocks=(TransformBlock, none), get_x=ColReader('z')).dataloaders(
            concat_sources(dict(a=a, b=b)), bs=2
        ),
    ):
        with pytest.raises(
            FlowError, match=r"task 'tags'.*nan_is_empty=True.*source 'b' has no such column.*empty=\['tags'\]"
        ):
            make()
    df = concat_sources(dict(a=a, b=b), flow=asked, empty='tags')
    y = Flow('f', asked).bind(df).encode(df)
    assert y[:, 1].tolist() == [[1, 1]] * 3 + [[0, 0]] * 2 and y[:, 0].tolist() == [
        [1, 0],
        [0, 0],
        [0, 1],
        [0, 0],
        [0, 0],
    ]
    both = concat_sources(dict(a=a, b=b.assign(tags=None)), flow=none)  # every source asked
    assert Flow('f', none).bind(both).encode(both)[:, 1].all()


def test_numbers_among_the_words_of_a_multi_label_column():
    "A csv whose rows have one digit each reads back as numbers"
    parts = dict(a=pd.DataFrame(dict(d=['0 3', '1'])), b=pd.DataFrame(dict(d=[3, 1])))
    with pytest.raises(
        FlowError, match=r"'d' holds words in source 'a' \('0 3'\) and numbers in source 'b' \(3\).*flow="
    ):
        concat_sources(parts)
    flow = MultiLabelBlock('d', label_delim=' ')
    df = concat_sources(parts, flow=flow)
    bound = Flow('f', flow).bind(df)
    assert bound.find('d').vocab == ['0', '1', '3'] and bound.encode(df)[:, 0].tolist() == [
        [1, 0, 1],
        [0, 1, 0],
        [0, 0, 1],
        [0, 1, 0],
    ]


def test_files():
    a, b = pd.DataFrame(dict(img=['1.png'])), pd.DataFrame(dict(file=['/abs/2.png', 'sub/3.png']))
    df = concat_sources(dict(a=a, b=b), fn_col=dict(a='img', b='file'), folders=dict(a='left', b='right'))
    assert df.img.tolist() == [str(Path('left/1.png')), '/abs/2.png', str(Path('right/sub/3.png'))] and list(df) == [
        'source',
        'img',
    ]
    assert concat_sources([('a', a), ('b', a)], fn_col='img').img.tolist() == ['1.png', '1.png']


A = pd.DataFrame(dict(img=['1'], x=[1], n=['u']))


@pytest.mark.parametrize(
    'call,says',
    [
        (lambda: concat_sources({}), 'there are no sources'),
        (lambda: concat_sources([A, A]), 'has no name: hand over a dict'),
        (lambda: concat_sources([('a', A), ('a', A)]), "two sources are called 'a': rename one"),
        (lambda: concat_sources({'': A}), 'source name'),
        (lambda: concat_sources({'a': A, 'b': [1]}), "source 'b' is a list: hand over a DataFrame"),
        (lambda: concat_sources({'a': A, 'b': A[:0]}), "source 'b' has no rows: leave it out"),
        (lambda: concat_sources({'a': A.assign(source=1)}), "source 'a' has a column 'source' already.*source_col="),
        (lambda: concat_sources({'a': pd.concat([A, A], axis=1)}), "column 'img' stands several times in source 'a'"),
        (
            lambda: concat_sources({'a': A, 'b': A.assign(x='w')}),
            r"column 'x' holds numbers in source 'a' \(1\) and words in source 'b' \('w'\): convert",
        ),
        (
            lambda: concat_sources({'a': A, 'b': A.assign(n=pd.Timestamp(0))}),
            "words in source 'a'.*dates in source 'b'",
        ),
        (
            lambda: concat_sources({'a': A.assign(x=True), 'b': A.assign(x=0.5)}),
            "yes/no in source 'a'.*numbers in source 'b'",
        ),
        (
            lambda: concat_sources({'a': A}, flow=BinaryBlock('y')),
            "task 'y' reads column 'y', which no source has.*col=",
        ),
        (
            lambda: concat_sources({'a': A}, flow=MultiLabelBlock('m', cols=['x', 'y'])),
            "task 'm' reads column '.', which no source has.* with cols=",
        ),
        (lambda: concat_sources({'a': A}, folders={'a': 'f'}), 'fn_col='),
        (lambda: concat_sources({'a': A}, fn_col='imgs'), "fn_col='imgs' is not a column of source 'a'.*img"),
        (lambda: concat_sources({'a': A, 'b': A}, fn_col='img', folders={'a': 'f'}), "does not name source 'b'"),
        (lambda: concat_sources({'a': A}, fn_col='img', folders={'a': 'f', 'aa': 'f'}), "names source 'aa'"),
        (lambda: concat_sources({'a': A, 'b': A.assign(img=[None])}, fn_col='img'), "source 'b', row 0: no file name"),
        (
            lambda: concat_sources({'a': A, 'b': A.assign(f='q')}, fn_col={'a': 'img', 'b': 'f'}),
            "has its file names in 'f', but also a column 'img'",
        ),
        (lambda: concat_sources({'a': A}, empty='tags'), "empty='tags' is not a column"),
    ],
)
def test_what_does_not_fit(call, says):
    with pytest.raises(FlowError, match=says):
        call()


def test_only_the_flows_columns_need_to_fit():
    parts = {'a': A, 'b': A.assign(n=7)}
    assert concat_sources(parts, flow=UnboundedRegressionBlock('x')).n.tolist() == ['u', 7]


# ---- balanced draws
# ---------------------------------------------------------------------------------------------------
N = 1200


def uneven(rng=None):
    "900 rows of one source, 250 and 50 of others; a parent, its child, a task that one source has"
    rng = rng or np.random.default_rng(0)
    df = pd.DataFrame(dict(x=np.arange(N), source=np.repeat(['big', 'mid', 'small'], [900, 250, 50])))
    df['a'] = pd.Series(rng.random(N) < 0.3).astype(object).mask(df.source == 'small', None)
    df['kind'] = pd.Series(rng.choice(list('uvw'), N, p=[0.8, 0.15, 0.05])).astype(object)
    df['r'] = np.where(df.source == 'small', rng.random(N), np.nan)
    return df.sample(frac=1, random_state=0).reset_index(drop=True)


def uneven_flow():
    a = BinaryBlock('a')
    return Flow('f', a, SingleLabelBlock('kind') | a, UnboundedRegressionBlock('r'))


class Number(Transform):
    "Row → its number"

    def __call__(self, r, **kwargs):
        return torch.tensor([float(r['x'])])


def plain(df, bs=64, **kw):
    return DataBlock(
        blocks=(TransformBlock, uneven_flow()), get_x=Number(), splitter=IndexSplitter(list(range(0, N, 6)))
    ).dataloaders(df, bs=bs, num_workers=0, **kw)


def draws(dls, epochs=5):
    return np.concatenate([b[0][:, 0].numpy().astype(int) for _ in range(epochs) for b in dls.train])


def near(hits, n, p):
    assert stats.binomtest(int(hits), n, p).pvalue > 1e-4, (hits, n, p)


def test_sources_are_drawn_alike():
    df = uneven()
    of, dls = df.set_index('x').source, plain(df)
    d = draws(dls.balanced('source', seed=1))
    assert len(d) == 5 * (1000 // 64) * 64
    for s in ('big', 'mid', 'small'):
        near((of[d] == s).sum(), len(d), 1 / 3)
        rows = df[(df.source == s) & (np.arange(N) % 6 > 0)].x
        if s == 'big':
            assert stats.chisquare([(d == x).sum() for x in rows]).pvalue > 1e-4  # within a source, rows alike
    assert set(d) <= set(dls.train_ds.items.x)  # no validation row
    assert np.isclose(
        np.mean(of[draws(dls)] == 'small'), (of[dls.train_ds.items.x] == 'small').mean(), atol=0.01
    )  # the data it came from are as they were


def by_hand(groups, n):
    "First a group, then a row, written as a loop; rows in no group keep their share"
    inside = set(i for g in groups for i in g)
    p = np.zeros(n)
    for i in range(n):
        if i not in inside:
            p[i] = 1 / n
        for g in groups:
            if i in g:
                p[i] += len(inside) / n / len(groups) / len(g)
    return p


def test_weights_are_what_they_are_said_to_be():
    df = uneven()
    dls = plain(df)
    t = dls.train_ds.items
    y = dls.train_ds.tls[1].items.packed()
    counts = {p: set(np.flatnonzero(y[:, 1, s.targets.start] > 0)) for p, s in dls.flow.slices.items()}
    rows = lambda m: set(np.flatnonzero(np.asarray(m)))
    yes = t.a.eq(True)
    for by, groups in {
        'source': [rows(t.source == s) for s in ('big', 'mid', 'small')],
        'kind': [rows(yes & (t.kind == k)) for k in 'uvw'],  # a task's answers, where it counts
        'a': [rows(yes), rows(t.a.eq(False))],
        ('a', 'kind', 'r'): [counts['a'], counts['kind'], counts['r']],
        (SingleLabelBlock('kind').eq('w'),): [rows(yes & (t.kind == 'w')), rows(yes & (t.kind != 'w'))],
    }.items():
        by = by if isinstance(by, str) else by[0] if len(by) == 1 else list(by)
        w = balanced_weights(dls, by)
        np.testing.assert_allclose(w, by_hand(groups, len(t)), rtol=1e-9)
        assert np.isclose(w.sum(), 1) and (w > 0).all()
        shares, inside = [w[list(g)].sum() for g in groups], len(set.union(*groups)) / len(t)
        assert min(shares) >= inside / len(groups) - 1e-9  # the promise
        if sum(map(len, groups)) == len(set.union(*groups)):
            np.testing.assert_allclose(shares, inside / len(groups))
    np.testing.assert_allclose(balanced_weights(dls, task('a')), balanced_weights(dls, BinaryBlock('a')))
    np.testing.assert_allclose(balanced_weights(dls, t.source.to_numpy()), balanced_weights(dls, 'source'))
    np.testing.assert_allclose(balanced_weights(dls, df.source), balanced_weights(dls, 'source'))  # of the whole table
    np.testing.assert_allclose(
        balanced_weights(df, ['a', 'r'], flow=uneven_flow()), by_hand([rows(df.a.notna()), rows(df.r.notna())], N)
    )
    np.testing.assert_allclose(
        balanced_weights(df, 'source'), by_hand([rows(df.source == s) for s in ('big', 'mid', 'small')], N)
    )


def test_tasks_are_drawn_as_promised():
    dls = plain(uneven())
    d = draws(dls.balanced(['a', 'kind', 'r'], seed=0))
    t = dls.train_ds.items.set_index('x')
    w = pd.Series(balanced_weights(dls, ['a', 'kind', 'r']), t.index)
    for rows in (t.a.notna(), t.a.eq(True), t.r.notna()):
        near(rows[d].sum(), len(d), w[rows].sum())


def test_draws_repeat_with_a_seed_and_not_without():
    dls = plain(uneven())
    a, b = (draws(dls.balanced('source', seed=3), 2) for _ in range(2))
    assert (a == b).all() and (a[:960] != a[960:]).any()  # each epoch anew
    assert (a != draws(dls.balanced('source', seed=4), 2)).any()
    res = []
    for _ in range(2):
        np.random.seed(7)
        res.append(draws(dls.balanced('source'), 1))
    assert (res[0] == res[1]).all()
    assert (a != draws(dls.balanced('source'), 2)).any()


def test_as_many_rows_as_asked_for():
    dls = plain(uneven()).balanced('source', seed=0, n=300)
    assert len(dls.train) == 300 // 64 and len(draws(dls, 1)) == 256
    assert len(dls.balanced('a').train) == 1000 // 64  # the last word counts


def test_fastais_own_weighted_loader_takes_the_weights():
    df = uneven()
    block = DataBlock(blocks=(TransformBlock, uneven_flow()), get_x=Number(), splitter=IndexSplitter([]))
    np.random.seed(0)
    dls = block.weighted_dataloaders(df, balanced_weights(df, 'source'), bs=64, num_workers=0)
    assert isinstance(dls.train, WeightedDL)
    d = draws(dls)
    for s in ('big', 'mid', 'small'):
        near((df.set_index('x').source[d] == s).sum(), len(d), 1 / 3)


def test_tabular():
    from fastai.tabular.all import Categorify, TabDataLoader, TabularPandas, CategoryBlock

    df = uneven()
    splits = (list(range(200, N)), list(range(200)))
    for cats in (['kind'], ['source', 'kind']):  # as an input the source is a code
        dls = TabularPandas(
            df.assign(y=df.x % 2), [Categorify], cats, ['x'], 'y', CategoryBlock(), splits=splits
        ).dataloaders(bs=64)
        even = dls.balanced('source', seed=0)
        assert isinstance(even.train, TabDataLoader)
        d = np.concatenate([b[1][:, 0].numpy().astype(int) for _ in range(8) for b in even.train])
        for s in ('big', 'mid', 'small'):
            near((df.set_index('x').source[d] == s).sum(), len(d), 1 / 3)
        assert type(even.train.new()) is type(dls.train) and list(even.train.new(shuffle=False).get_idxs()) == list(
            range(1000)
        )


def test_what_cannot_be_balanced():
    df = uneven()
    dls = plain(df)
    for by, says in {
        'sauce': "'sauce': neither a task nor a column: did you mean 'source'",
        'r': "'r': an UnboundedRegressionBlock has no answers",
        3: 'by 3: name a column',
    }.items():
        with pytest.raises(FlowError, match=says):
            dls.balanced(by)
    with pytest.raises(FlowError, match="'q'"):
        dls.balanced(['a', 'q'])
    with pytest.raises(FlowError, match=r'shape \(5,\) does not fit 1000 rows'):
        dls.balanced(np.zeros(5))
    with pytest.raises(FlowError, match='need the flow, flow='):
        balanced_weights(df, ['a'])
    with pytest.raises(FlowError, match="column 'sauce', which the table does not have.*source"):
        balanced_weights(df, 'sauce')
    with pytest.warns(UserWarning):
        never = plain(df.assign(r=np.nan))
    with pytest.raises(FlowError, match="no training row counts for 'r'"):
        never.balanced(['a', 'r'])
    lists = DataBlock(
        blocks=(TransformBlock, BinaryBlock('a')), get_x=Number(), splitter=IndexSplitter([0])
    ).dataloaders([dict(x=i, a=i % 2) for i in range(9)], bs=4, num_workers=0)
    with pytest.raises(FlowError, match="'source': neither a task nor a column"):
        lists.balanced('source')
    assert np.isclose(balanced_weights(lists, 'a')[[0, 1]], [1 / 8, 1 / 8]).all()


# ---- pictures: everything together
# ------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Left: tall dark pictures, a bright stripe at the left edge; right: wide bright ones"
    root = tmp_path_factory.mktemp('pictures')
    for d, (w, h, v) in dict(left=(20, 40, 40), right=(40, 20, 200)).items():
        (root / d).mkdir()
        for i in range(12):
            x = np.full((h, w, 3), v, dtype=np.uint8)
            x[:, :4] = 255 if d == 'left' else 0
            Image.fromarray(x).save(root / d / f'{i}.png')
    return root


def pictures():
    left = pd.DataFrame(dict(img=[f'{i}.png' for i in range(12)], dark=[True] * 12))
    right = pd.DataFrame(dict(img=[f'{i}.png' for i in range(6)], dark=[False] * 6, size=list('ab') * 3))
    return concat_sources(dict(left=left, right=right), fn_col='img', folders=dict(left='left', right='right'))


def two_tasks():
    return Flow('f', BinaryBlock('dark'), SingleLabelBlock('size'))


LEFT, RIGHT = [Resize(16, method='squish'), FlipItem(1.0)], CropPad(16)


def own(**kw):
    return SourceTfms(dict(left=LEFT, right=RIGHT), **{'default': 'right', **kw})


def from_table(folder, df, **kw):
    return ConditionalDataLoaders.from_df(
        df,
        two_tasks(),
        path=folder,
        fn_col='img',
        **{'item_tfms': own(), 'bs': 6, 'num_workers': 0, 'splitter': IndexSplitter([0, 1, 16, 17]), **kw},
    )


def stock(folder, df, num_workers=0, **kw):
    return DataBlock(
        blocks=(ImageBlock, two_tasks()),
        get_x=ColReader('img', pref=folder),
        splitter=IndexSplitter([0, 1, 16, 17]),
        **{'item_tfms': own(), **kw},
    ).dataloaders(df, bs=6, num_workers=num_workers, path=folder)


def expected(folder, df, side, i):
    "The picture as these transforms make it, called one by one"
    im = PILImage.create(folder / df.img.iloc[i])
    for t in (
        (LEFT if df.source.iloc[i] == 'left' else [RIGHT]) if side is None else (LEFT if side == 'left' else [RIGHT])
    ):
        im = t(im, split_idx=0 if isinstance(t, FlipItem) else 1)
    return torch.from_numpy(np.array(im)).permute(2, 0, 1) / 255


@pytest.mark.parametrize('make', [from_table, stock])
@pytest.mark.parametrize('workers', [0, 2])
def test_each_source_gets_its_own(folder, make, workers):
    df = pictures()
    dls = make(folder, df, num_workers=workers)
    assert dls.one_batch()[0].shape[2:] == (16, 16)
    train = [i for i in range(18) if i not in (0, 1, 16, 17)]
    x = torch.cat([b[0] for b in dls.train.new(shuffle=False, drop_last=False)])
    for row, i in zip(x, train):
        torch.testing.assert_close(row.cpu().as_subclass(torch.Tensor), expected(folder, df, None, i))
    valid = torch.cat([b[0] for b in dls.valid])
    assert valid[0, 0, 8, 0] == 1 and valid[2, 0, 8, 0] < 1  # FlipItem is for training only; both came at their size
    t = torch.cat([b[0] for b in dls.test_dl(df.iloc[[12, 0]], num_workers=workers)])
    torch.testing.assert_close(t[0].cpu().as_subclass(torch.Tensor), expected(folder, df, 'right', 12))
    none = torch.cat([b[0] for b in dls.test_dl(df.iloc[[0]].drop(columns='source'), num_workers=workers)])
    torch.testing.assert_close(
        none[0].cpu().as_subclass(torch.Tensor), expected(folder, df, 'right', 0)
    )  # no source: the default
    assert dls.decode_batch(dls.valid.one_batch())[0][1]['dark'] == True
    dls.show_batch()


def test_a_source_by_function_and_defaults_of_its_own(folder):
    block = lambda get: DataBlock(
        blocks=(ImageBlock, BinaryBlock('dark')),
        get_items=get_image_files,
        get_y=dark,
        item_tfms=SourceTfms(dict(left=LEFT), default=Resize(16, method='squish'), get=get),
        splitter=IndexSplitter([0, 1]),
    )
    dls = block(parent).dataloaders(folder, bs=4, num_workers=0)
    x = torch.cat([b[0] for b in dls.train.new(shuffle=False, drop_last=False)])
    for p, f in zip(x[:, 0, 8], dls.train_ds.items):
        assert p[[0, -1]].tolist() == ([p[8], 1] if f.parent.name == 'left' else [0, p[8]]), (
            f
        )  # only left pictures are flipped
    dls.test_dl([folder / 'left' / '1.png']).one_batch()
    assert pickle.loads(pickle.dumps(dls.new_empty())) is not None


def parent(f):
    return Path(f).parent.name


def dark(f):
    return parent(f) == 'left'


def test_learner_predicts_and_travels(folder, tmp_path):
    "Trained, exported, loaded: neither weights nor rows travel; the transforms do"
    df = pictures()
    dls = from_table(folder, df, balance_by='source', seed=0)
    assert np.isclose(dls.train.wgts[:10].sum(), 0.5) and len(dls.train.wgts) == 14
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, dls.c))
    learn = Learner(dls, model, lr=0.1, path=tmp_path, metrics=dls.flow.metrics())
    with learn.no_bar(), learn.no_logging():
        learn.fit(3)
        table = learn.evaluate(ds_idx=0, metrics='accuracy', by='source').set_index(['task_path', 'source'])
        assert table.num_samples.to_dict() == {
            ('dark', 'left'): 10,
            ('dark', 'right'): 4,
            ('size', 'left'): 0,
            ('size', 'right'): 4,
        }  # each training row once, weights or not
        row, name, im = (
            learn.predict(o) for o in (df.iloc[12], str(folder / df.img[12]), PILImage.create(folder / df.img[12]))
        )
        torch.testing.assert_close(row[2], name[2]), torch.testing.assert_close(row[2], im[2])
        other = learn.predict(df.iloc[0])[2]
        assert not torch.allclose(
            other, learn.predict(str(folder / df.img[0]))[2]
        )  # its row says left, the file alone gets the default
        learn.export('l.pkl')
    again = load_learner(tmp_path / 'l.pkl')
    assert not hasattr(again.dls.train, 'wgts') and type(again.dls.train).__name__ == 'TfmdDL'
    with again.no_bar(), again.no_logging():
        torch.testing.assert_close(again.predict(df.iloc[0])[2], other)
        torch.testing.assert_close(
            again.get_preds(dl=again.dls.test_dl(df))[0], learn.get_preds(dl=learn.dls.test_dl(df))[0]
        )
    assert (
        pickle.loads(pickle.dumps(dls.train)).wgts.tolist() == dls.train.wgts.tolist()
    )  # as worker processes that are spawned get it


def test_wrong_source_transforms(folder):
    df = pictures()
    for call, says in [
        (lambda: SourceTfms([Resize(8)], default=()), 'takes a dict, source → transforms'),
        (
            lambda: SourceTfms(dict(left=LEFT), default='lefd'),
            "default='lefd' is none of the sources: did you mean 'left'",
        ),
        (
            lambda: stock(folder, df, item_tfms=SourceTfms(dict(left=LEFT, rigth=RIGHT), default='left')),
            "source 'rigth', and no training row is of it: did you mean 'right'",
        ),
        (
            lambda: stock(folder, df, item_tfms=own(get='sauce')),
            "column 'sauce', which the table does not have: did you mean 'source'",
        ),
        (
            lambda: (
                DataBlock(blocks=(TransformBlock, two_tasks()), get_x=ColReader('img'), item_tfms=own())
                .dataloaders(df, bs=4, num_workers=0)
                .one_batch()
            ),
            'cannot mark an input of type str',
        ),
    ]:
        with pytest.raises(FlowError, match=says):
            call()


# ---- scores by group
# --------------------------------------------------------------------------------------------------
class Logits(Transform):
    "Row → the logits that stand in it"

    def __call__(self, r, **kwargs):
        return torch.tensor([r[f'z{i}'] for i in range(5)], dtype=torch.float32)


def same():
    "The model is the identity: logits are the input"
    res = nn.Linear(1, 1, bias=False)
    res.weight.data = torch.ones(1, 1)
    return res


@pytest.fixture(scope='module')
def judge():
    rng = np.random.default_rng(0)
    n, a = 500, BinaryBlock('a')
    df = pd.DataFrame(dict(a=rng.random(n) < 0.6, kind=rng.choice(list('uvw'), n), r=rng.random(n) * 8)).astype(object)
    df = df.mask(rng.random(df.shape) < 0.15).assign(
        source=rng.choice(['s1', 's2', 's3'], n, p=[0.6, 0.3, 0.1]), **{f'z{i}': rng.normal(size=n) for i in range(5)}
    )
    df.loc[df.source == 's3', 'kind'] = None
    df.loc[7:9, 'source'] = None
    flow = Flow('f', a, SingleLabelBlock('kind') | a, BoundedRegressionBlock('r', y_range=(0, 8)))
    dls = DataBlock(
        blocks=(TransformBlock, flow), get_x=Logits(), splitter=IndexSplitter(list(range(0, 300)))
    ).dataloaders(df, bs=32, val_bs=7, num_workers=0)
    model = nn.Linear(5, 5, bias=False)
    model.weight.data = torch.eye(5)
    learn = Learner(dls, model)
    learn.df = df
    return learn


def quietly(learn, **kw):
    with learn.no_bar(), learn.no_logging():
        return learn.evaluate(**kw)


def test_each_group_is_scored_as_if_alone(judge):
    "Against `evaluate` on the rows of that group only: same scores, same trivial predictor, same cascade"
    df = judge.df.iloc[:300]
    table = quietly(judge, by='source')
    assert list(table)[:4] == ['task_path', 'metric_name', 'source', 'metric_res']
    assert [None if pd.isna(s) else s for s in dict.fromkeys(table.source)] == ['s1', 's2', 's3', None]
    for s in ('s1', 's2', 's3', None):
        rows = df[df.source.isna() if s is None else df.source == s]
        alone = quietly(judge, dl=judge.dls.test_dl(rows, with_labels=True))
        one = (
            table[table.source.isna() if s is None else table.source == s].drop(columns='source').reset_index(drop=True)
        )
        pd.testing.assert_frame_equal(pd.DataFrame(one), pd.DataFrame(alone), check_dtype=False)
    whole = quietly(judge).set_index(['task_path', 'metric_name'])
    n = table.groupby(['task_path', 'metric_name']).num_samples.sum()
    assert (n == whole.num_samples[n.index]).all()
    acc = table[table.metric_name == 'accuracy'].dropna(subset=['metric_res'])
    acc = acc.assign(hits=acc.metric_res * acc.num_samples).groupby('task_path')
    np.testing.assert_allclose((acc.hits.sum() / acc.num_samples.sum())['a'], whole.metric_res['a', 'accuracy'])
    assert (
        table[(table.task_path == 'kind') & (table.source == 's3')][['metric_res', 'baseline']].isna().all(None)
    )  # never labelled there


def test_groups_by_array_test_set_and_boot(judge):
    df = judge.df
    a = quietly(judge, by='source', metrics='mae')
    for by in (df.source[:300].to_numpy(), df.source[:300], df.source):
        b = quietly(judge, by=by, metrics='mae')
        pd.testing.assert_frame_equal(pd.DataFrame(a), pd.DataFrame(b.rename(columns={'group': 'source'})))
    test = quietly(judge, dl=judge.dls.test_dl(df.iloc[:300], with_labels=True), by='source', metrics='mae')
    pd.testing.assert_frame_equal(pd.DataFrame(a), pd.DataFrame(test))
    boot = quietly(judge, by=pd.Series(np.arange(300) % 2 == 0, name='even'), metrics='mae', n_boot=50)
    assert (
        boot.even.tolist() == [False, True]
        and (boot.ci_low <= boot.metric_res).all()
        and (boot.metric_res <= boot.ci_high).all()
    )
    html = a.show().to_html()
    assert 's1' in html and '–' in html and 'None' not in html and html.count('>source<') == 1


def test_tuned_thresholds_are_judged_across_folds_group_by_group(judge):
    rows = judge.df.assign(z0=lambda d: d.z0 - 2 + 2 * d.a.eq(True))  # yes is decided too seldom at .5
    dls = DataBlock(
        blocks=(TransformBlock, BinaryBlock('a')),
        get_x=lambda r: torch.tensor([r['z0']]).float(),
        splitter=IndexSplitter(list(range(300))),
    ).dataloaders(rows, bs=32, num_workers=0)
    learn = Learner(dls, same())
    with learn.no_bar():
        learn.search_thresholds()
    table = quietly(learn, by='source', metrics='f1')
    assert table.cross_fit == ('a',)
    from fastai_condmtl.evaluate.evaluation import judged

    with learn.no_bar():
        t = judged(learn).thresholds['a'][:, 0]
    p, y, m = 1 / (1 + np.exp(-rows.z0[:300].astype(np.float32))), rows.a[:300].eq(True), rows.a[:300].notna()
    for s in ('s1', 's2', 's3'):
        k = m & (rows.source[:300] == s)
        np.testing.assert_allclose(table[table.source == s].metric_res, f1_score(y[k], p[k] > t[k.to_numpy()]))


def test_sorted_texts_keep_their_groups():
    "A loader that sorts its rows by length"
    from fastai.text.data import SortedDL

    words = ['a ' * k for k in np.random.default_rng(0).integers(1, 30, 60)]
    df = pd.DataFrame(dict(n=[len(w) for w in words], long=[len(w) > 30 for w in words]))
    df['group'] = df.n.astype(str)
    block = DataBlock(
        blocks=(TransformBlock, BinaryBlock('long')),
        get_x=lambda r: torch.tensor([float(r['n'])]),
        splitter=IndexSplitter(list(range(40))),
        dl_type=SortedDL,
    )
    dls = block.dataloaders(df, bs=8, num_workers=0, sort_func=lambda o: float(o[0]), shuffle=False)
    learn = Learner(dls, same())  # decides yes always
    table = quietly(learn, by='group', metrics='accuracy').set_index('group')
    assert (
        table.metric_res == df.iloc[:40].groupby('group').long.first().astype(float)[table.index]
    ).all() and table.metric_res.nunique() == 2


def test_groups_that_are_not_known(judge):
    for by, says in {
        'sauce': "column 'sauce', which the table does not have: did you mean 'source'",
        'z9': "column 'z9', which the table does not have",
    }.items():
        with pytest.raises(FlowError, match=says):
            quietly(judge, by=by)
    with pytest.raises(FlowError, match=r'shape \(4,\) does not fit 300 rows'):
        quietly(judge, by=np.zeros(4))
    with pytest.raises(FlowError, match="'baseline' is the name of a column of the result"):
        quietly(judge, by=pd.Series(np.zeros(300), name='baseline'))
    rows = [r for _, r in judge.df.iloc[:20].iterrows()]
    with pytest.raises(FlowError, match='not made from a DataFrame: hand over an array'):
        quietly(judge, dl=judge.dls.test_dl(rows, with_labels=True), by='source')


def test_large_whole_numbers_of_sources_stay_as_they_are():
    for a, b in (([2**63 + 5], [1]), ([1, 2], [1e20, 3.0]), ([-(2**70)], [1.0, None])):
        df = concat_sources(
            {'a': pd.DataFrame(dict(v=np.array(a, dtype='u8') if a[0] > 2**62 else a)), 'b': pd.DataFrame(dict(v=b))}
        )
        assert [v for v in df.v if not pd.isna(v)] == [v for v in a + b if v is not None]
    assert Flow('f', UnboundedRegressionBlock('v')).bind(
        concat_sources({'a': pd.DataFrame(dict(v=[1, 2])), 'b': pd.DataFrame(dict(v=[1e20, 3.0]))})
    )
