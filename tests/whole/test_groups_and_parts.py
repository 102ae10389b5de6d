"""No loader tears a group, and each has a third part that neither trains nor validates: pictures, tables, texts; folds
and splits against a count by pandas"""

import numpy as np, pandas as pd, pytest, torch
from fastai.tabular.all import Categorify, Normalize
from fastai.vision.all import PILImage, Resize
from fastai_condmtl.tabular.all import *
from fastai_condmtl.datasets.tiny_encoder import save_tiny_encoder
from fastai_condmtl.text.all import ConditionalTextDataLoaders, ConditionalTransformerDataLoaders
from fastai_condmtl.vision.all import *

KINDS = ['vision', 'tabular', 'text']


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    "120 rows of 40 patients; who is ill may be severely so"
    folder = tmp_path_factory.mktemp('pictures')
    PILImage.create(np.zeros((8, 8, 3), np.uint8)).save(folder / 'a.png')
    rng = np.random.default_rng(0)
    patient = rng.permutation(np.repeat(np.arange(40), 3))
    ill = (rng.random(40) < 0.5)[patient]
    df = pd.DataFrame(dict(img='a.png', words='one two three', size=rng.normal(size=120), kind='k', patient=patient))
    df['ill'], df['severe'] = ill.astype(int), np.where(ill, rng.integers(0, 2, 120), np.nan)
    df['row'] = range(120)
    return df, folder


def flow():
    ill = BinaryBlock('ill')
    return Flow('f', ill, BinaryBlock('severe') | ill)


def loaders(kind, table, **kwargs):
    df, folder = table
    if kind == 'vision':
        return ConditionalDataLoaders.from_df(
            df, flow(), path=folder, fn_col='img', item_tfms=Resize(8), bs=16, num_workers=0, **kwargs
        )
    if kind == 'text':
        return ConditionalTextDataLoaders.from_df(df, flow(), text_col='words', bs=16, seq_len=8, **kwargs)
    return ConditionalTabularDataLoaders.from_df(
        df, flow(), cat_names=['kind'], cont_names=['size'], procs=[Categorify, Normalize], bs=16, **kwargs
    )


def rows_of_part(dls, i, df):
    "Positions in the table of the rows of a part"
    part = dls.loaders[i].dataset
    if hasattr(part, 'all_cols'):
        return part.items.index.to_numpy()
    return part.items['row'].to_numpy() if 'row' in part.items else part.items.index.to_numpy()


def first_labels(loader):
    "Values of the first task, of all rows"
    return torch.cat([batch[-1].as_subclass(torch.Tensor).flatten(1)[:, 0] for batch in loader]).tolist()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('stratify', [False, True])
def test_no_group_is_torn(kind, stratify, table):
    "By pandas: each patient stands in one part; the sides are within five points of what was asked for"
    dls = loaders(kind, table, group_col='patient', valid_pct=0.25, test_pct=0.2, seed=1, stratify=stratify)
    assert len(dls.loaders) == 3
    parts = [rows_of_part(dls, i, table[0]) for i in range(3)]
    assert sorted(np.concatenate(parts)) == list(range(120))
    side = pd.Series(np.repeat(range(3), list(map(len, parts))), index=np.concatenate(parts)).sort_index()
    assert side.groupby(table[0].patient).nunique().max() == 1
    assert abs(len(parts[1]) / 120 - 0.25) <= 0.05 and abs(len(parts[2]) / 120 - 0.2) <= 0.05


@pytest.mark.parametrize('kind', KINDS)
def test_the_third_part_is_scored_and_trains_nothing(kind, table):
    "`ds_idx=2` scores its rows; scalers and vocabularies have not seen it"
    df = table[0].assign(part=['test'] * 30 + ['train'] * 60 + ['valid'] * 30)
    dls = loaders(kind, (df, table[1]), test_col='part', seed=0)
    assert sorted(rows_of_part(dls, 2, df)) == list(range(30))
    if kind == 'tabular':
        learn = conditional_tabular_learner(dls, [4])
        with learn.no_bar():
            res = learn.evaluate(ds_idx=2, metrics=None)
        assert res.set_index('task_path').num_samples['ill'] == 30
        train = rows_of_part(dls, 0, df)
        assert dls.procs.normalize.means['size'] == pytest.approx(df['size'][train].mean())
        xs = np.concatenate([b[1].numpy()[:, 0] for b in dls.loaders[2]])
        expected = (df['size'][:30] - df['size'][train].mean()) / dls.procs.normalize.stds['size']
        assert np.allclose(np.sort(xs), np.sort(expected), atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_the_word_test_in_valid_col_is_a_third_part(kind, table):
    "As `test_col=`: the same rows in the same parts, and scored"
    df = table[0].assign(part=['test'] * 30 + ['train'] * 60 + ['dev'] * 30)
    dls = loaders(kind, (df, table[1]), valid_col='part')
    parts = [sorted(rows_of_part(dls, i, df)) for i in range(3)]
    assert parts == [list(range(30, 90)), list(range(90, 120)), list(range(30))] and len(dls.loaders) == 3
    assert sorted(first_labels(dls.loaders[2])) == sorted(df.ill[:30].tolist())
    if kind == 'tabular':
        learn = conditional_tabular_learner(dls, [4])
        with learn.no_bar():
            n_rows = learn.evaluate(ds_idx=2, metrics=None).set_index('task_path').num_samples
        assert n_rows['ill'] == 30 and n_rows['severe'] == df.severe[:30].notna().sum()


@pytest.mark.parametrize('kind', KINDS)
def test_groups_hold_against_the_third_part_of_valid_col(kind, table):
    df = table[0].assign(part=['test'] * 30 + ['train'] * 60 + ['dev'] * 30)
    with pytest.raises(FlowError, match="group_col='patient': group .* stands on both sides of the split"):
        loaders(kind, (df, table[1]), valid_col='part', group_col='patient')


@pytest.mark.parametrize('kind', ['tabular', 'text'])
def test_the_split_of_edos(kind, shared_data):
    "`train`, `dev` and `test` as they are published: 14,000, 2,000 and 4,000 rows, of which some here"
    df = pd.read_csv(shared_data / 'edos' / 'edos_labelled_aggregated.csv').groupby('split').head(60)
    df = df.reset_index(drop=True).assign(n_words=lambda df: df.text.str.split().str.len())
    sexist = BinaryBlock('sexist', 'label_sexist', vocab=('not sexist', 'sexist'))
    flow = Flow('edos', sexist, SingleLabelBlock('category', 'label_category', na='none') | sexist)
    if kind == 'text':
        dls = ConditionalTextDataLoaders.from_df(df, flow, valid_col='split', bs=16, min_freq=1)
    else:
        dls = ConditionalTabularDataLoaders.from_df(
            df, flow, cat_names=[], cont_names=['n_words'], valid_col='split', bs=16
        )
    assert [len(loader.dataset) for loader in dls.loaders] == [60, 60, 60]
    yes = [sum(first_labels(loader.new(shuffle=False, drop_last=False))) for loader in dls.loaders]
    assert yes == [(df.label_sexist[df.split == part] == 'sexist').sum() for part in ('train', 'dev', 'test')]


@pytest.mark.parametrize('kind', KINDS)
def test_a_split_that_tears_a_group_is_an_error(kind, table):
    with pytest.raises(FlowError, match="group_col='patient': group .* stands on both sides of the split"):
        loaders(kind, table, group_col='patient', valid_idx=[0, 1, 2, 3])


# ---- every way in
# -------------------------------------------------------------------------------------------
PICTURES = dict(item_tfms=Resize(8), bs=16, num_workers=0)
INPUTS = dict(cat_names=['kind'], cont_names=['size'], procs=[Categorify, Normalize], bs=16)


def in_csv(df, folder):
    df.to_csv(folder / 'labels.csv', index=False)
    return folder


def picture_of_each_row(df, folder):
    for i in range(len(df)):
        if not (folder / f'{i}.png').exists():
            (folder / f'{i}.png').write_bytes((folder / 'a.png').read_bytes())
    return [folder / f'{i}.png' for i in range(len(df))]


def encoder_of(df, folder):
    pytest.importorskip('transformers', reason='the extra transformers is not installed')
    return save_tiny_encoder(folder / 'encoder', df.words)


WAYS = {
    (ConditionalDataLoaders, 'from_df'): lambda way, df, folder, **kw: way(
        df, flow(), path=folder, fn_col='img', **PICTURES, **kw
    ),
    (ConditionalDataLoaders, 'from_csv'): lambda way, df, folder, **kw: way(
        in_csv(df, folder), flow(), fn_col='img', **PICTURES, **kw
    ),
    (ConditionalDataLoaders, 'from_path_func'): lambda way, df, folder, **kw: way(
        folder, picture_of_each_row(df, folder), lambda file: df.iloc[int(file.stem)], flow(), **PICTURES, **kw
    ),
    (ConditionalDataLoaders, 'from_path_funcs'): lambda way, df, folder, **kw: way(
        folder,
        picture_of_each_row(df, folder),
        {col: lambda file, col=col: df[col].iloc[int(file.stem)] for col in df},
        flow(),
        **PICTURES,
        **kw,
    ),
    (ConditionalTabularDataLoaders, 'from_df'): lambda way, df, folder, **kw: way(df, flow(), **INPUTS, **kw),
    (ConditionalTabularDataLoaders, 'from_csv'): lambda way, df, folder, **kw: way(
        in_csv(df, folder) / 'labels.csv', flow(), **INPUTS, **kw
    ),
    (ConditionalTextDataLoaders, 'from_df'): lambda way, df, folder, **kw: way(
        df, flow(), text_col='words', bs=16, **kw
    ),
    (ConditionalTextDataLoaders, 'from_csv'): lambda way, df, folder, **kw: way(
        in_csv(df, folder), flow(), text_col='words', bs=16, **kw
    ),
    (ConditionalTransformerDataLoaders, 'from_df'): lambda way, df, folder, **kw: way(
        df, flow(), encoder_of(df, folder), text_col='words', bs=16, **kw
    ),
    (ConditionalTransformerDataLoaders, 'from_csv'): lambda way, df, folder, **kw: way(
        in_csv(df, folder), flow(), encoder_of(df, folder), text_col='words', bs=16, **kw
    ),
}


def test_these_are_all_ways_in():
    "Each `from_*` of our loaders but fastai's own, and those that say that there is none"
    found = set()
    for cls in {cls for cls, _ in WAYS}:
        for name in dir(cls):
            method = getattr(cls, name)
            ours = name.startswith('from_') and method.__func__.__module__.startswith('fastai_condmtl')
            if ours and not method.__doc__.startswith('There is none'):
                found.add((cls, name))
    assert found - {(ConditionalDataLoaders, 'from_shards')} == set(WAYS)  # the parts of shards are the packed file's


@pytest.mark.parametrize('way', WAYS, ids=lambda way: f'{way[0].__name__}.{way[1]}')
def test_every_way_in_knows_groups_and_three_parts(way, table):
    "Groups stay whole; `test_pct=`, `test_col=` and the words of `valid_col=` make a third part, with its labels"
    df, folder = table
    df = df.assign(part=['test'] * 30 + ['train'] * 60 + ['dev'] * 30, held=[True] * 30 + [False] * 90)
    make = lambda **kw: WAYS[way](getattr(*way), df, folder, **kw)
    dls = make(group_col='patient', valid_pct=0.25, test_pct=0.2, seed=1)
    parts = [rows_of_part(dls, i, df) for i in range(3)]
    assert sorted(np.concatenate(parts)) == list(range(120)) and len(dls.loaders) == 3
    patients = [set(df.patient.iloc[rows]) for rows in parts]
    assert sum(map(len, patients)) == df.patient.nunique()
    for kwargs in (dict(test_col='held', valid_pct=0.25, seed=1), dict(valid_col='part')):
        dls = make(**kwargs)
        assert sorted(rows_of_part(dls, 2, df)) == list(range(30)) and len(dls.loaders) == 3
        assert sorted(first_labels(dls.loaders[2])) == sorted(df.ill[:30].tolist())
    assert [sorted(rows_of_part(dls, i, df)) for i in range(2)] == [list(range(30, 90)), list(range(90, 120))]
    with pytest.raises(FlowError, match="group .* stands on both sides of the split"):
        make(valid_col='part', group_col='patient')


@pytest.mark.parametrize('kind', KINDS)
def test_blank_groups_are_an_error(kind, table):
    df = table[0].astype(dict(patient=object))
    df.loc[7, 'patient'] = None
    with pytest.raises(FlowError, match="group_col='patient' is blank in row 7"):
        loaders(kind, (df, table[1]), group_col='patient')


@pytest.mark.parametrize(
    'args, told',
    [
        (dict(test_pct=1.5), 'test_pct=1.5 must be'),
        (dict(test_pct=True), 'test_pct=True must be'),
        (dict(test_pct=0.5, valid_pct=0.5), 'leave no row to train on'),
        (dict(test_pct=0.5, test_col='side'), 'test_col= and test_pct= both say'),
        (dict(test_col='side'), "test_col='side', row 0, value 'k': it is neither true nor false"),
        (dict(test_col='kin'), "test_col='kin' reads column 'kin', which the table does not have"),
        (dict(group_col='patent'), "group_col='patent' reads column 'patent'.*did you mean 'patient'"),
    ],
)
def test_bad_arguments(args, told, table):
    with pytest.raises(FlowError, match=told):
        loaders('tabular', (table[0].assign(side='k'), table[1]), **args)


@pytest.mark.parametrize('seed', range(5))
def test_folds_tear_no_group(seed, table):
    "Each patient validates in one fold; each row once; labels have near equal shares"
    df = table[0]
    folds = stratified_folds(flow(), df, 4, seed=seed, group_col='patient')
    assert sorted(np.concatenate([valid for _, valid in folds])) == list(range(120))
    for train, valid in folds:
        assert not set(df.patient.iloc[train]) & set(df.patient.iloc[valid])
        assert abs(df.ill.iloc[valid].mean() - df.ill.mean()) < 0.2


@pytest.mark.parametrize('n_classes', [2, 9, 40, 120])
def test_labels_that_are_rarer_than_folds_have_rows(n_classes):
    "Groups stay whole and sides near their share, down to one row a class (scikit-learn refuses such labels)"
    df = pd.DataFrame(dict(group=np.arange(120) // 2, label=[f'c{i % n_classes}' for i in range(120)], x=0.5))
    labels = Flow('f', SingleLabelBlock('label', vocab=[f'c{i}' for i in range(n_classes)]))
    dls = ConditionalTabularDataLoaders.from_df(
        df, labels, cont_names=['x'], cat_names=[], group_col='group', stratify=True, test_pct=0.2, seed=0, bs=8
    )
    parts = [rows_of_part(dls, i, df) for i in range(3)]
    assert sorted(np.concatenate(parts)) == list(range(120))
    assert sum(df.group.iloc[rows].nunique() for rows in parts) == 60
    assert abs(len(parts[1]) / 120 - 0.2) <= 0.05 and abs(len(parts[2]) / 120 - 0.2) <= 0.05
    for train, valid in stratified_folds(labels, df, 6, seed=0, group_col='group'):
        assert not set(df.group.iloc[train]) & set(df.group.iloc[valid]) and 10 <= len(valid) <= 30


def test_a_part_that_is_not_there_is_told(table):
    "Whatever takes `ds_idx=` names the part and what makes it; a part that is there is taken"
    df, _ = table
    learn = conditional_tabular_learner(loaders('tabular', table, seed=0), [8], members=1)
    asked = [
        learn.evaluate,
        learn.report,
        learn.conformal,
        learn.cascade_report,
        learn.calibrate,
        learn.classification_report,
        learn.search_thresholds,
        lambda ds_idx: ConditionalInterpretation.from_learner(learn, ds_idx),
    ]
    with learn.no_bar(), learn.no_logging():
        for ask in asked:
            with pytest.raises(
                FlowError, match=r'ds_idx=2: these data have no third part.*test_pct= or test_col=.*dl=df'
            ):
                ask(ds_idx=2)
            with pytest.raises(FlowError, match='ds_idx=3: these data have 2 parts, counted from 0'):
                ask(ds_idx=3)
        assert len(learn.evaluate(ds_idx=-1)) == len(learn.evaluate(ds_idx=1))
    three = conditional_tabular_learner(loaders('tabular', table, seed=0, test_pct=0.2), [8], members=1)
    with three.no_bar(), three.no_logging():
        assert (three.evaluate(ds_idx=2).num_samples > 0).any()
