"""Dirty cells of every kind in every kind of block: read right, refused with row and fix, or told before the training
and by the audit, with a fix that works; real tables, which are clean, have none of these findings."""

import re, warnings
import numpy as np, pandas as pd, PIL.Image, pytest, torch
from fastai_condmtl.core.alike import plain_word
from fastai_condmtl.all import *
from fastai_condmtl.core.odd_cells import ODD_KINDS
from fastai_condmtl.data.findings import KINDS
from fastai_condmtl.data.leaks import same_files
from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders
from fastai_condmtl.vision.all import ConditionalDataLoaders

N = 60
rng = np.random.default_rng(0)
WORDS = list(rng.choice(['cat', 'dog', 'owl'], N))
LISTS = [','.join(w for w in ('cat', 'dog', 'owl') if rng.random() < 0.5) for _ in range(N)]
YES_NO = list(rng.choice(['no', 'yes'], N))
BITS = [int(v) for v in rng.integers(0, 2, N)]
STARS = [int(v) for v in rng.integers(1, 6, N)]
WEIGHTS = [float(v) for v in rng.normal(60, 9, N).round(1)]
COUNTS = [int(v) for v in rng.poisson(3, N)]


def single(**kwargs):
    return SingleLabelBlock('m', **kwargs)


def multi(**kwargs):
    return MultiLabelBlock('m', **kwargs)


def table(cells, dirty, rows=(7, 20, 33)):
    cells = list(cells)
    for row in rows:
        cells[row] = dirty
    return pd.DataFrame(dict(m=pd.Series(cells, dtype=object), x=np.arange(N) / N))


def told_by_loader(df, block):
    "What is warned of when a loader is made, before anything trains"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter('always')
        ConditionalTabularDataLoaders.from_df(df, block, cat_names=[], cont_names=['x'], bs=8, valid_idx=[0, 1, 2, 3])
    return '\n'.join(str(w.message) for w in seen if issubclass(w.category, FlowWarning))


def odd(df, block):
    return [f for f in Flow('f', block).audit(df).findings if f.kind in ODD_KINDS]


# ---- labels that hardly mean what they say: kind of block × cell
FOUND = [
    (single, WORDS, 'cat ', 'twins'),
    (single, WORDS, '\tcat', 'twins'),
    (single, WORDS, 'Cat', 'twins'),
    (single, WORDS, 'cat\xa0', 'twins'),
    (single, WORDS, 'c\u200bat', 'twins'),
    (single, WORDS, '"cat"', 'twins'),
    (single, STARS, '4', 'twins'),
    (single, [str(v) for v in STARS], '4.0', 'twins'),
    (single, WORDS, '', 'empty'),
    (single, WORDS, '  ', 'empty'),
    (single, WORDS, 'nan', 'empty'),
    (single, WORDS, '<NA>', 'empty'),
    (single, WORDS, 'cat,dog', 'several'),
    (single, WORDS, 'cat; dog', 'several'),
    (single, WORDS, 'cat|owl', 'several'),
    (single, WORDS, 5, 'mixed'),
    (single, WORDS, -999, 'sentinel'),
    (single, WORDS, '-999', 'sentinel'),
    (single, STARS, -9, 'sentinel'),
    (single, STARS, 99, 'sentinel'),
    (lambda: OrdinalBlock('m'), STARS, -9, 'sentinel'),
    (lambda: OrdinalBlock('m'), STARS, -1, 'sentinel'),
    (lambda: OrdinalBlock('m'), STARS, 9, 'sentinel'),
    (multi, LISTS, 'Cat,owl', 'twins'),
    (multi, LISTS, ['cat ', 'owl'], 'twins'),
    (multi, LISTS, "'cat','owl'", 'twins'),
    (multi, LISTS, [''], 'empty'),
    (multi, LISTS, 'nan', 'empty'),
    (multi, LISTS, 'cat;dog', 'several'),
    (multi, LISTS, ['cat|dog'], 'several'),
    (multi, LISTS, "'cat,grey',owl", 'quotes'),
    (multi, LISTS, [0, 1, 0], 'mixed'),
    (multi, LISTS, -999, 'sentinel'),
    (lambda: UnboundedRegressionBlock('m'), WEIGHTS, -999, 'sentinel'),
    (lambda: UnboundedRegressionBlock('m'), WEIGHTS, -9, 'sentinel'),
    (lambda: UnboundedRegressionBlock('m'), WEIGHTS, -1, 'sentinel'),
    (lambda: UnboundedRegressionBlock('m'), WEIGHTS, 999, 'sentinel'),
    (lambda: UnboundedRegressionBlock('m'), WEIGHTS, 9999.0, 'sentinel'),
    (lambda: BoundedRegressionBlock('m', y_range=(-1000, 200)), WEIGHTS, -999, 'sentinel'),
    (lambda: CountBlock('m'), COUNTS, 99, 'sentinel'),
    (lambda: CountBlock('m'), COUNTS, 9999, 'sentinel'),
]
ONLY_TO_KNOW = {'mixed'}


@pytest.mark.parametrize('make, cells, dirty, kind', FOUND, ids=lambda v: v if isinstance(v, str) else '')
def test_found_by_the_audit_and_told_before_training(make, cells, dirty, kind):
    df = table(cells, dirty)
    found = [f for f in odd(df, make()) if f.kind == kind]
    assert len(found) == 1 and found[0].rows.tolist() == [7, 20, 33], odd(df, make())
    assert "column 'm'" in found[0].text and '3 rows, first row 7' in found[0].text
    assert found[0].fix and found[0].text.endswith(found[0].fix)
    told = told_by_loader(df, make())
    assert (found[0].text in told) == found[0].serious
    assert found[0].serious == (kind not in ONLY_TO_KNOW and dirty not in (9, -1) or dirty == -1 and cells is WEIGHTS)


@pytest.mark.parametrize('make, cells, dirty, kind', FOUND, ids=lambda v: v if isinstance(v, str) else '')
def test_the_fix_is_the_fix(make, cells, dirty, kind):
    "The line is run, or the argument is written: nothing is found any more, and no other row is changed"
    df = table(cells, dirty)
    (found,) = [f for f in odd(df, make()) if f.kind == kind]
    clean = Flow('f', make()).bind(table(cells, None)).encode(table(cells, None))
    if na := re.search(r'na=(\([^)]*\)|[^.;, ]+)', found.fix):
        block = make()
        block.na = type(block)('m', na=eval(na[1])).na
        if isinstance(block, MultiLabelBlock) and isinstance(dirty, list):
            return  # of several labels in a cell, na= is the whole cell
        mended = df
    elif line := re.search(r"(df\['m'\] = .+?)(?:\. If |$)", found.fix):
        mended, block = df.copy(), make()
        exec(line[1], dict(df=mended, read_list=read_list))
    else:
        assert 'MultiLabelBlock(' in found.fix or kind == 'mixed'
        return
    assert not [f for f in odd(mended, block) if f.kind == kind]
    bound = Flow('f', block).bind(mended)
    y, rest = bound.encode(mended), [i for i in range(N) if i not in (7, 20, 33)]
    if 'na=' in found.fix:
        assert not y.mask[[7, 20, 33]].any()
    if kind != 'quotes' and y.shape == clean.shape and bound.tasks['m'].labels is None:
        assert torch.allclose(y[rest].as_subclass(torch.Tensor), clean[rest].as_subclass(torch.Tensor), atol=1e-5)


def test_what_is_named_is_meant():
    "vocab= and na=() say that nothing is odd"
    assert not odd(table(WORDS, 'cat '), single(vocab=['cat', 'cat ', 'dog', 'owl']))
    assert not odd(table(WORDS, ''), single(vocab=['', 'cat', 'dog', 'owl']))
    assert not odd(table(STARS, -9), OrdinalBlock('m', vocab=[-9, 1, 2, 3, 4, 5]))
    assert not odd(table(WEIGHTS, -999), UnboundedRegressionBlock('m', na=()))


@pytest.mark.parametrize(
    'make, cells',
    [
        (single, WORDS),
        (single, STARS),
        (single, list('aAbB') * (N // 4)),
        (single, ['01', '1'] * (N // 2)),
        (single, list(range(10)) * (N // 10)),
        (single, [4, 6, 8] * (N // 3)),
        (single, ['none', 'some'] * (N // 2)),
        (single, ['red, dark', 'red', 'green'] * (N // 3)),
        (lambda: OrdinalBlock('m'), [-1, 0, 1] * (N // 3)),
        (multi, LISTS),
        (multi, ["rock 'n' roll,d'or", "d'or", ''] * (N // 3)),
        (lambda: CountBlock('m'), [*COUNTS[:-1], 9]),
        (lambda: UnboundedRegressionBlock('m'), [-9.0, -1.0, *np.linspace(-20, 30, N - 2)]),
        (lambda: UnboundedRegressionBlock('m'), [99.0, 99.0, *np.linspace(1, 98, N - 2)]),
        (lambda: UnboundedRegressionBlock('m'), [-1.0, *np.linspace(0, 1, N - 1)]),
        (lambda: BinaryBlock('m'), YES_NO),
    ],
)
def test_clean_cells_are_no_finding(make, cells):
    df = table(cells, None, rows=())
    assert not odd(df, make()) and told_by_loader(df, make()) == ''


# ---- read right, since there is one sensible reading
@pytest.mark.parametrize('delim', [',', ';', '|'])
def test_a_label_in_double_quotes_holds_the_delimiter(delim):
    cells = [f'"a{delim} b"{delim}c', 'c', '', f'c{delim}"say ""x"""', '"a' + delim + ' b"']
    df = pd.DataFrame(dict(m=cells))
    bound = Flow('f', MultiLabelBlock('m', label_delim=delim)).bind(df)
    assert bound.tasks['m'].vocab == [f'a{delim} b', 'c', 'say "x"']
    y = bound.encode(df)
    assert y.vals.numpy().tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 1, 1], [1, 0, 0]] and y.mask.all()
    again = bound.to_frame(y)
    assert torch.equal(bound.encode(again), y)


def test_labels_that_hold_quotes_as_they_are_named():
    df = pd.DataFrame(dict(m=['"a,b"', '"a', 'b"']))
    assert MultiLabelBlock('m', vocab=['"a', 'b"']).bind(df).encode(df)[0].tolist() == [[1, 1], [1, 0], [0, 1]]
    block = MultiLabelBlock('m', vocab=['"a"', 'b']).bind(df[:0])
    assert block.join(['"a"']) == ['"a"']  # a list, since text would read back without the quotes


# ---- no labels: errors with row, value and fix
REFUSED = [
    (lambda: single(), WORDS, ['cat'], 'MultiLabelBlock'),
    (lambda: single(), WORDS, "['cat']", 'MultiLabelBlock'),
    (lambda: single(), WORDS, {'cat': 0.6}, 'a dict is no label'),
    (lambda: single(vocab=['cat', 'dog', 'owl']), WORDS, 'cat ', "if it is 'cat' (they differ by blanks around them)"),
    (lambda: single(vocab=['cat', 'dog', 'owl']), WORDS, 'DOG', "if it is 'dog' (they differ by capital letters)"),
    (lambda: multi(vocab=['cat', 'dog', 'owl']), LISTS, 'Cat,owl', "if it is 'cat' (they differ by capital letters)"),
    (lambda: multi(), LISTS, "['cat']", 'read_list'),
    (lambda: multi(), LISTS, "{'cat'}", 'read_list'),
    (lambda: multi(), LISTS, '["cat"]', 'read_list'),
    (lambda: multi(), LISTS, [['cat']], "write ['a', 'b']"),
    (lambda: multi(), LISTS, ['cat', None], 'missing'),
    (lambda: multi(), LISTS, {'cat': 0.6}, 'soft=True'),
    (lambda: BinaryBlock('m'), YES_NO, 'yes ', "if it is 'yes' (they differ by blanks around them)"),
    (lambda: BinaryBlock('m'), YES_NO, 'Yes', "if it is 'yes' (they differ by capital letters)"),
    (lambda: OrdinalBlock('m'), STARS, '4', 'only numbers have an order'),
    (lambda: BinaryBlock('m'), BITS, '1', "if it is 1 (one is text and one a number)"),
    (lambda: BinaryBlock('m'), BITS, -999, '.where('),
    (lambda: BinaryBlock('m'), YES_NO, '', '.where('),
    (lambda: CountBlock('m'), COUNTS, -999, 'na='),
    (lambda: UnboundedRegressionBlock('m'), WEIGHTS, '', 'na='),
    (lambda: UnboundedRegressionBlock('m'), WEIGHTS, 'n/a', 'na='),
    (lambda: UnboundedRegressionBlock('m'), WEIGHTS, '60 ', 'pd.to_numeric'),
]


@pytest.mark.parametrize('make, cells, dirty, says', REFUSED, ids=lambda v: v if isinstance(v, str) else '')
def test_refused_with_row_value_and_fix(make, cells, dirty, says):
    df = table(cells, dirty)
    with pytest.raises(FlowError) as e:
        Flow('f', make()).bind(df).encode(df)
    text = str(e.value)
    assert says in text and "task 'm'" in text
    if 'read_list' not in says:
        assert 'row 7' in text and repr(dirty)[:20] in text
    line = re.search(r"df\['m'\] = .+?na_action='ignore'\)", text)
    if line and 'if it is' in text:
        mended = df.copy()
        exec(line[0], dict(df=mended, read_list=read_list))
        assert Flow('f', make()).bind(mended).encode(mended).mask.all()


@pytest.mark.parametrize(
    'block, dirty', [(UnboundedRegressionBlock, 'n/a'), (UnboundedRegressionBlock, ''), (CountBlock, -999)]
)
def test_na_takes_what_the_error_names(block, dirty):
    df = table(COUNTS, dirty)
    y = Flow('f', block('m', na=dirty)).bind(df).encode(df)
    assert np.flatnonzero(~y.mask[:, 0].bool()).tolist() == [7, 20, 33]


def test_dicts_of_shares_by_the_lines_of_the_error():
    df = pd.DataFrame(dict(m=[{'a': 0.6, 'b': 1}, {'b': 0.25}, None, {}]), index=[3, 5, 8, 9])
    for block in (lambda: MultiLabelBlock('m', soft=True), lambda: Flow('f', MultiLabelBlock('m')).bind(df)):
        with pytest.raises(FlowError) as e:
            block()
        first, second, third = re.search(r"(shares = .+); (df = .+); (MultiLabelBlock.+\))", str(e.value)).groups()
        scope = dict(df=df.copy(), pd=pd, MultiLabelBlock=MultiLabelBlock)
        exec(f'{first}\n{second}\nblock = {third}', scope)
        y = Flow('f', scope['block']).bind(scope['df']).encode(scope['df'])
        assert np.allclose(y.vals, [[0.6, 1], [0, 0.25], [0, 0], [0, 0]], atol=1e-6)
        assert y.mask.numpy().tolist() == [[1, 1], [1, 1], [0, 0], [1, 1]]


# ---- a guess sees labels that stand where nobody was asked
@pytest.mark.parametrize('word', ['none', 'not asked', 'N/A'])
@pytest.mark.parametrize('delim', [',', ';', None])
def test_guess_of_labels_where_nobody_was_asked(word, delim):
    rng = np.random.default_rng(0)
    pet = rng.random(300) < 0.5
    toys = [[w for w in ('ball', 'mouse', 'rope') if rng.random() < 0.5] or ['ball'] for _ in pet]
    toys = [own if has else [word] for own, has in zip(toys, pet)]
    df = pd.DataFrame(
        dict(has_pet=np.where(pet, 'yes', 'no'), toys=[t if delim is None else delim.join(t) for t in toys])
    )
    guess = guess_flow(df)
    bound = guess.flow.bind(df)
    assert str(bound.needs('toys')) == 'has_pet' and bound.tasks['toys'].vocab == ['ball', 'mouse', 'rope']
    assert word in guess.why['toys'] and 'has_pet' in guess.why['toys']
    y = bound.encode(df)
    assert (y.mask[:, bound.slices['toys'].targets].numpy() > 0).all(1).tolist() == pet.tolist()
    mixed = df.assign(toys=df.toys.map(lambda v: v + ['ball'] if delim is None else f'{v}{delim}ball'))
    assert guess_flow(mixed).flow.bind(mixed).needs('toys') is None  # beside other labels it is one of them


# ---- real tables
def labels_of(df, most=60):
    "A flow for every column that can be read as classes, and one for all numbers"
    names = [c for c in df if 1 < df[c].nunique() < most]
    numbers = [c for c in df if pd.api.types.is_numeric_dtype(df[c]) and df[c].nunique() > 1]
    yield Flow('classes', *(SingleLabelBlock(f't{i}', col) for i, col in enumerate(names)))
    yield Flow('numbers', *(UnboundedRegressionBlock(f't{i}', col) for i, col in enumerate(numbers)))


@pytest.mark.parametrize('name', ['ai4i', 'bracol', 'nhanes', 'galaxyzoo2', 'edos'])
@pytest.mark.filterwarnings('ignore')
def test_no_false_alarm_on_real_tables(name, shared_data):
    files = dict(
        ai4i='ai4i2020.csv',
        bracol='bracol/dataset-full.csv',
        nhanes='nhanes/NHANES.csv',
        galaxyzoo2='galaxyzoo2/table5.csv.gz',
        edos='edos/edos_labelled_aggregated.csv',
    )
    df = pd.read_csv(shared_data / files[name], encoding='utf-8-sig', low_memory=False)
    if name == 'edos':
        flow = Flow('edos', *map(SingleLabelBlock, ('label_sexist', 'label_category', 'label_vector')))
        found = flow.audit(df, group_col='rewire_id', valid_col='split').findings
        assert len(df) == 20000 and not [f for f in found if f.kind in (*ODD_KINDS, 'torn')]
        return
    for flow in labels_of(df):
        assert not [f for f in flow.audit(df).findings if f.kind in ODD_KINDS], flow.name


@pytest.mark.filterwarnings('ignore')
def test_no_false_alarm_on_points(shared_data):
    from fastai_condmtl.datasets.readers import mtfl_flow, read_mtfl

    df = read_mtfl(shared_data / 'mtfl_mini')
    assert not [f for f in mtfl_flow().audit(df, valid_col='is_valid').findings if f.kind in ODD_KINDS]
    hidden = df.copy()
    hidden.loc[hidden.index[:9], ['nose_x', 'nose_y']] = -1  # as many tables write "not visible"
    nose = Flow('f', KeypointsBlock('nose', cols=['nose_x', 'nose_y']))
    assert not [f for f in nose.audit(df).findings if f.kind in ODD_KINDS]
    found = [f for f in nose.audit(hidden).findings if f.kind == 'sentinel']
    assert [f.rows.tolist() for f in found] == [list(range(9))] * 2 and "column 'nose_x'" in found[0].text


# ---- torn groups and copies, against pandas
@pytest.mark.parametrize('seed', range(3))
def test_torn_groups_against_pandas(seed):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame(
        dict(m=rng.integers(0, 2, N), patient=rng.integers(0, 30, N), split=rng.choice(['train', 'dev', 'test'], N))
    )
    report = Flow('f', BinaryBlock('m')).audit(df, group_col='patient', valid_col='split')
    torn = df.groupby('patient').split.transform('nunique') > 1
    assert report.rows(kind='torn') == np.flatnonzero(torn).tolist()
    (found,) = [f for f in report.findings if f.kind == 'torn']
    assert f'{df.patient[torn].nunique()} of {df.patient.nunique()} groups' in repr(found) and 'valid_col=' in found.fix
    whole = df.assign(split=np.where(df.patient < 10, 'dev', 'train'))
    assert 'torn' not in {
        f.kind for f in Flow('f', BinaryBlock('m')).audit(whole, group_col='patient', valid_col='split').findings
    }


def test_copies_of_pictures_against_their_bytes(tmp_path):
    "Names differ, contents are equal; files of one size and one beginning with other ends are no copies"
    rng = np.random.default_rng(0)
    contents = [bytes(6000) + bytes([k]) for k in range(3)] + [b'x', b'y', b'longer']
    which = rng.integers(0, len(contents), 30)
    for i, k in enumerate(which):
        (tmp_path / f'{i}.png').write_bytes(contents[k])
    df = pd.DataFrame(dict(m=[0, 1] * 15, fn=[f'{i}.png' for i in range(30)], split=rng.random(30) < 0.2))
    report = Flow('f', BinaryBlock('m')).audit(df, valid_col='split', fn_col='fn', path=tmp_path)
    both = df.split.groupby(which).transform('nunique') > 1
    assert both.any() and report.rows(kind='same_file') == np.flatnonzero(both).tolist()
    codes = same_files([tmp_path / fn for fn in df.fn])
    assert (codes[:, None] == codes).tolist() == (which[:, None] == which).tolist()
    (anywhere,) = [
        f for f in Flow('f', BinaryBlock('m')).audit(df, fn_col='fn', path=tmp_path).findings if f.kind == 'same_file'
    ]
    assert (
        not anywhere.serious
        and anywhere.rows.tolist() == np.flatnonzero(pd.Series(which).duplicated(keep=False)).tolist()
    )
    with pytest.raises(FlowError, match=r"fn_col='fn', row 4: there is no file .*path="):
        Flow('f', BinaryBlock('m')).audit(
            df.assign(fn=df.fn.where(df.index != 4, 'none.png')), fn_col='fn', path=tmp_path
        )


@pytest.mark.parametrize('fn_col', ['fn', 1])
@pytest.mark.parametrize('suff', ['', '.png'])
@pytest.mark.parametrize('folder', [None, 'pictures'])
def test_the_audit_finds_the_files_of_the_loaders(tmp_path, fn_col, suff, folder):
    "The same arguments name the same files: a table with names without their end, in a folder inside `path`"
    (tmp_path / 'pictures').mkdir()
    for i in range(10):
        PIL.Image.new('RGB', (8, 8), (i // 2 * 9, 0, 0)).save(tmp_path / 'pictures' / f'{i}.png')
    df = pd.DataFrame(dict(m=[0, 1] * 5, fn=list(range(10)), side=['train'] * 9 + ['valid']))
    if not suff:
        df['fn'] = df.fn.map('{}.png'.format)
    files = dict(fn_col=fn_col, path=tmp_path if folder else tmp_path / 'pictures', folder=folder, suff=suff)
    dls = ConditionalDataLoaders.from_df(df, Flow('f', BinaryBlock('m')), valid_col='side', bs=2, **files)
    assert dls.valid_ds[0][0].size == (8, 8)
    report = Flow('f', BinaryBlock('m')).audit(df, valid_col='side', **files)
    assert report.rows(kind='same_file') == [8, 9] and "column 'fn'" in repr(report)
    with pytest.raises(FlowError, match='row 0: there is no file .*suff='):
        Flow('f', BinaryBlock('m')).audit(df, **{**files, 'suff': '.jpg'})


@pytest.mark.parametrize(
    'args, told',
    [
        (dict(group_col='patient'), 'name its column, valid_col='),
        (dict(group_col='pat', valid_col='split'), "group_col='pat' reads column 'pat'.*did you mean 'patient'"),
        (dict(valid_col='spl'), "valid_col='spl' reads column 'spl'"),
        (dict(fn_col='m'), 'there is no file'),
    ],
)
def test_bad_arguments_of_audit(args, told):
    df = pd.DataFrame(dict(m=[0, 1] * 5, patient=range(10), split=['train', 'dev'] * 5))
    with pytest.raises(FlowError, match=told):
        Flow('f', BinaryBlock('m')).audit(df, **args)


def test_kinds_are_named():
    assert {*ODD_KINDS, 'torn', 'same_file'} <= set(KINDS)


def test_a_number_that_no_float_holds_is_not_like_infinity():
    assert plain_word('1' + '0' * 400) != plain_word(float('inf')) and plain_word(10**400) == '1' + '0' * 400
    assert plain_word('1e5') != plain_word('100000') and plain_word('1.0') == plain_word(1)
