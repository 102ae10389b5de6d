"""Inputs of a table in the types, names and orders that tables have. What a column becomes is compared with fastai's
own `TabularPandas` on plain columns; what cannot be read is a `FlowError` that names the column."""

import re, warnings
import numpy as np, pandas as pd, pytest
from fastai.data.all import DataBlock, RandomSplitter
from fastai.tabular.all import Categorify, CategoryBlock, FillMissing, Normalize, TabularPandas
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.tabular.all import BinaryBlock, ConditionalTabularDataLoaders, Flow, RowModel, TabularRowBlock
from fastai_condmtl.tabular.inputs import clean_inputs, warn_of_unseen

N = 60


@pytest.fixture(scope='module')
def df():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        dict(
            size=rng.normal(size=N),
            kind=rng.choice(list('abc'), N),
            grade=rng.integers(0, 3, N),
            new=rng.random(N) < 0.5,
            ok=rng.integers(0, 2, N),
        )
    )


CATS, CONTS = ['kind', 'grade', 'new'], ['size']


def make(df, cat_names=CATS, cont_names=CONTS, **kwargs):
    return ConditionalTabularDataLoaders.from_df(
        df, BinaryBlock('ok'), cat_names=cat_names, cont_names=cont_names, **{'seed': 0, 'bs': 8, **kwargs}
    )


def make_rows(df, cat_names=CATS, cont_names=CONTS, **kwargs):
    blocks = TabularRowBlock(cat_names, cont_names, **kwargs), Flow('f', BinaryBlock('ok'))
    return DataBlock(blocks, splitter=RandomSplitter(seed=0)).dataloaders(df, bs=8, num_workers=0)


def with_gaps(df, dtypes=None):
    "Gaps in each column, as plain objects, or in the types that are asked for"
    gaps = {name: [None, *df[name][1:-1], None] for name in CATS}
    return df.assign(**{k: pd.Series(v, dtype=(dtypes or {}).get(k, object)) for k, v in gaps.items()})


NULLABLE = [
    dict(kind='string', grade='Int64', new='boolean'),
    dict(kind='category', grade='category', new='category'),
]


@pytest.mark.parametrize('dtypes', NULLABLE)
def test_gaps_in_nullable_columns_are_those_of_plain_ones(df, dtypes):
    table = with_gaps(df, dtypes)
    dls = make(table)
    plain = with_gaps(df).where(lambda d: d.notna(), np.nan)
    splits = [list(part.items.index) for part in (dls.train_ds, dls.valid_ds)]
    procs = [Categorify, FillMissing, Normalize]
    to = TabularPandas(
        plain, procs, [*CATS], [*CONTS], y_names='ok', y_block=CategoryBlock(), splits=splits, reduce_memory=False
    )
    for own, stock in ((dls.train_ds, to.train), (dls.valid_ds, to.valid)):
        assert np.array_equal(own.cats.to_numpy(), stock.cats.to_numpy())
        assert np.allclose(own.conts, stock.conts)
    # plain new rows are read as the nullable ones that trained, and the other way round
    assert dls.test_dl(plain).dataset.cats.equals(dls.test_dl(table).dataset.cats)
    assert make(plain).test_dl(table).dataset.cats.equals(make(plain).test_dl(plain).dataset.cats)
    rows = make_rows(table).train_ds
    assert rows[0][0].tolist() == make_rows(plain).train_ds[0][0].tolist()


def test_types_that_cannot_be_sorted_are_told_with_their_row(df):
    mixed = df.assign(kind=['a', 1, None] * (N // 3))
    for build in (make, make_rows):
        with pytest.raises(FlowError, match="value (1|'a'): not to be sorted among others such as (1|'a')") as error:
            build(mixed)
        row, value = re.search(r"input 'kind', row (\d+)(?: \(index .*?\))?, value (.*?):", str(error.value)).groups()
        assert repr(mixed.kind[int(row)]) == value
    only_valid = df.assign(kind=['a'] * (N - 1) + [1])  # what is not learnt from need not be sorted
    assert len(make(only_valid, valid_idx=[N - 1, N - 2]).train_ds.classes['kind']) == 2
    numbers = df.assign(kind=[2, 0.5, True] * (N // 3))
    assert len(make(numbers).train_ds.classes['kind']) == 4  # numbers and booleans have an order
    assert (make(df).test_dl(mixed).dataset.cats.kind[:3] == [1, 0, 0]).all()  # in new rows, they are unknown


def test_names_of_inputs_may_be_any_iterable(df):
    expected = make(df)
    for dls in (make(df, pd.Index(CATS), np.array(CONTS)), make(df, (name for name in CATS), iter(CONTS))):
        assert (list(dls.cat_names), list(dls.cont_names)) == (CATS, CONTS)
        assert dls.train_ds.items.equals(expected.train_ds.items)
    assert make_rows(df, pd.Index(CATS), iter(CONTS)).one_batch()[0].shape == (8, 4)


@pytest.mark.parametrize('build', [make, make_rows])
@pytest.mark.parametrize(
    'kwargs, text',
    [
        (dict(cat_names=['kind', 'kind']), "cat_names has 'kind' twice"),
        (dict(cont_names=['size', 'size']), "cont_names has 'size' twice"),
        (dict(cat_names='kind'), r"cat_names='kind' must be a list of columns: write \['kind'\]"),
        (dict(procs=Normalize), "column 'kind' holds categories that nothing turns into codes"),
    ],
)
def test_wrong_names_and_processors(df, build, kwargs, text):
    with pytest.raises(FlowError, match=text):
        build(df, **kwargs)


@pytest.mark.parametrize('build', [make, make_rows])
def test_a_column_without_numbers_is_told(df, build):
    with pytest.raises(FlowError, match="column 'size' holds no number in the training rows"):
        build(df.assign(size=np.nan))


@pytest.mark.parametrize('build', [make, make_rows])
def test_the_column_that_tells_of_blanks_is_not_one_of_the_table(df, build):
    "An own column `size_na` was overwritten, or an error of pandas"
    gaps = df.assign(size=df['size'].where(df['size'] > 0))
    for values in (True, 1.5, 'u'):
        with pytest.raises(FlowError, match="column that tells of them would be 'size_na', which is one of the table"):
            build(gaps.assign(size_na=values), ['kind', 'size_na'], ['size'])
    procs = [Categorify, FillMissing(add_col=False), Normalize]
    dls = make(gaps.assign(size_na=True), ['kind', 'size_na'], ['size'], procs=procs)
    assert list(dls.cat_names) == ['kind', 'size_na']


def test_new_rows_may_hold_any_column_beside_the_inputs(df):
    gaps = df.assign(size=df['size'].where(df['size'] > 0))
    dls = make(gaps)
    for values in (1.5, 'u'):
        assert dls.test_dl(gaps.assign(size_na=values)).dataset.cats.equals(dls.test_dl(gaps).dataset.cats)
    with pytest.raises(FlowError, match="column 'size' stands twice in the rows"):
        dls.test_dl(pd.concat([gaps, gaps[['size']]], axis=1))


def test_rows_of_a_picture_fill_gaps_as_a_table_does(df):
    "`FillMissing` refuses a blank that only the validation rows have; both ways to a table take `FillGaps` for it"
    valid = RandomSplitter(seed=0)(df)[1]
    table = df.assign(size=df['size'].where(~df.index.isin(valid[:5])))
    procs = [Categorify, FillMissing, Normalize]
    rows = make_rows(table, procs=procs).valid_ds
    prepared = make(table, splitter=RandomSplitter(seed=0), procs=procs).valid_ds.conts['size']
    assert np.allclose([float(row[-1]) for row, _ in rows], prepared)


def test_an_answer_is_no_input_of_a_row(df):
    with pytest.raises(FlowError, match="column 'ok' is read by a task and is an input as well"):
        RowModel(make_rows(df, ['kind', 'ok']), 3)
    RowModel(make_rows(df), 3)


def test_wrong_tables(df):
    with pytest.raises(FlowError, match='several levels'):
        make(df.set_axis(pd.MultiIndex.from_product([df.columns, ['']]), axis=1))
    with pytest.raises(FlowError, match='leave some out of it, to train on'):
        make(df, valid_idx=range(N))


def test_one_processor_needs_no_list(df):
    assert make(df, procs=Categorify).train_ds.cats.equals(make(df, procs=[Categorify]).train_ds.cats)


def test_looking_for_unseen_categories_warns_of_nothing_else(df):
    "pandas is about to refuse values that are no category"
    known = make(df).train_ds
    rows = df.assign(kind=['a', 'zz'] * (N // 2), grade=[0.0, np.nan] * (N // 2))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        warn_of_unseen(clean_inputs(rows, CATS, CONTS), CATS, known)
    assert not told, [str(warning.message) for warning in told]


def test_an_input_whose_blanks_tell_an_answer_is_told():
    "A follow-up that is no task is asked of smokers only: its blanks say who smokes. Blanks at random say nothing"
    rng, n = np.random.default_rng(0), 400
    smoke = rng.random(n) < 0.3
    df = pd.DataFrame(dict(smoke=smoke, a_day=np.where(smoke, rng.poisson(9, n), np.nan), age=rng.normal(size=n)))
    df.loc[rng.random(n) < 0.1, 'age'] = np.nan

    def told(df, **kwargs):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter('always')
            ConditionalTabularDataLoaders.from_df(df, BinaryBlock('smoke'), seed=0, bs=64, **kwargs)
        return [(str(w.message), w.filename) for w in found if 'tells the answer' in str(w.message)]

    ((message, file),) = told(df)
    assert message.startswith("input 'a_day' is blank where 'smoke' is False") and file == __file__
    assert not told(df, cat_names=[], cont_names=['age'])
    df.loc[smoke & (rng.random(n) < 0.5), 'a_day'] = np.nan  # half of the smokers do not say
    assert len(told(df)) == 1
    df.loc[~smoke & (rng.random(n) < 0.1), 'a_day'] = 1.0  # some of the others do
    assert not told(df)
