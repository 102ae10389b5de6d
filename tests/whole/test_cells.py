"""Cells as tables really hold them: lists that a csv made text of, rows of 0 and 1, words for no and yes; each
advice of an error is followed to the letter."""

import io
import json
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from fastai_condmtl.all import *
from fastai_condmtl.core.cell_text import no_yes, read_list
from fastai_condmtl.data.guess import guess_flow

NAMES = ['a', 'b', 'it, is "c"']
rng = np.random.default_rng(0)
HOT = rng.random((30, 3)) < 0.4
HOT[0], HOT[1] = [True, True, False], [False, False, False]
LISTS = [[n for n, on in zip(NAMES, row) if on] for row in HOT]


def numpy_text(labels):
    return str(np.array(labels, dtype=object)) if labels else '[]'


WRITERS = {
    'python': str,
    'tuple': lambda l: str(tuple(l)),
    'set': lambda l: str(set(l)),
    'json': json.dumps,
    'numpy': numpy_text,
    'blanks around': lambda l: f'  {l} ',
    'array': lambda l: repr(np.array(l, dtype=object)),
}


def read(cells, block):
    "Values, mask and vocabulary of one task"
    df = pd.DataFrame(dict(m=pd.Series(list(cells), dtype=object)))
    bound = Flow('f', block).bind(df)
    y = bound.encode(df)
    return y.vals.numpy() > 0.5, y.mask.numpy() > 0, bound.tasks['m'].vocab


def refused(do):
    with pytest.raises(FlowError) as e:
        do()
    return str(e.value)


def followed(text, df):
    "The table after the line for it that an error tells"
    line = re.search(r"(df\[.+?\] = .+?)(?:\. If |$)", text)[1]
    scope = dict(df=df.copy(), read_list=read_list, pd=pd)
    exec(line, scope)
    return scope['df']


# ---- lists written as text
@pytest.mark.parametrize('how', WRITERS)
@pytest.mark.parametrize('vocab', [None, NAMES])
def test_a_list_written_as_text_is_the_list(how, vocab):
    vals, mask, found = read(map(WRITERS[how], LISTS), MultiLabelBlock('m', vocab=vocab))
    assert (vals == HOT).all() and mask.all() and found == NAMES


def test_through_a_csv_with_gaps():
    df = pd.read_csv(io.StringIO(pd.DataFrame(dict(m=[*LISTS, None])).to_csv(index=False)))
    bound = Flow('f', MultiLabelBlock('m')).bind(df)
    y = bound.encode(df)
    assert (y.vals[:-1].numpy() == HOT).all() and y.mask[:-1].all() and not y.mask[-1].any()
    assert (bound.encode(pd.DataFrame(dict(m=["['b']"]))).vals.numpy() == [[0, 1, 0]]).all()  # a new row


@pytest.mark.parametrize('delim', [',', ';', ' '])
def test_the_delimiter_does_not_cut_lists(delim):
    assert (read(map(str, LISTS), MultiLabelBlock('m', label_delim=delim))[0] == HOT).all()


def test_plain_text_stays_plain():
    cells = ['(other),a', 'a', '', 'b,(other)', '(other)']
    vals, _, vocab = read(cells, MultiLabelBlock('m'))
    assert (
        vocab == ['(other)', 'a', 'b']
        and vals[0].tolist() == [True, True, False]
        and vals[4].tolist() == [True, False, False]
    )


def test_brackets_that_belong_to_labels():
    text = refused(lambda: read(['[x],[y]', '[y]'], MultiLabelBlock('m')))
    assert 'row 0' in text and 'vocab=' in text
    vals, _, _ = read(['[x],[y]', '[y]'], MultiLabelBlock('m', vocab=['[x]', '[y]']))
    assert vals.tolist() == [[True, True], [False, True]]


@pytest.mark.parametrize(
    'cells', [["['a', 'b']", 'a,b', "['b']"], ['a', "['a' 'b']"], ['["a", null]'.replace('null', '"b"'), 'b']]
)
@pytest.mark.parametrize('vocab', [None, ['a', 'b']])
def test_lists_beside_plain_text_are_not_guessed(cells, vocab):
    df = pd.DataFrame(dict(m=cells))
    text = refused(lambda: Flow('f', MultiLabelBlock('m', vocab=vocab)).bind(df).encode(df))
    assert 'plain text' in text and f"row {next(i for i, c in enumerate(cells) if c[0] != '[')}" in text
    mended = followed(text, df)
    want = [set(re.findall('[ab]', c)) for c in cells]
    assert [set(m) for m in mended.m] == want
    bound = Flow('f', MultiLabelBlock('m', vocab=vocab)).bind(mended)
    assert (bound.encode(mended).vals.numpy() == [['a' in w, 'b' in w] for w in want]).all()


@pytest.mark.parametrize(
    'cell, says',
    [
        ('[a, b]', 'brackets'),
        ("{'a': 1}", 'brackets'),
        ("['a' ... 'b']", 'brackets'),
        ('["a", null]', 'missing'),
        ("[['a'], ['b']]", 'list of lists'),
        ("['d']", "'d'"),
    ],
)
def test_text_that_is_no_list_of_labels(cell, says):
    text = refused(lambda: read(["['a', 'b']", cell], MultiLabelBlock('m', vocab=['a', 'b'])))
    assert 'row 1' in text and says in text


def test_nothing_is_evaluated():
    for cell in ("[__import__('os').getcwd()]", '[1 + 1]', 'set(dir())'):
        try:
            assert read_list(cell) is None
        except ValueError:
            pass


# ---- rows of 0 and 1
HOT_WRITERS = {
    'lists': lambda r: r.astype(int).tolist(),
    'arrays': lambda r: r.astype(int),
    'floats': lambda r: r.astype(float),
    'bools': lambda r: r.tolist(),
    'tuples': lambda r: tuple(r.astype(int).tolist()),
    'tensors': lambda r: torch.tensor(r.astype(int)),
    'text': lambda r: str(r.astype(int).tolist()),
    'numpy text': lambda r: str(r.astype(int)),
    'bool text': lambda r: str(r),
    'delimited': lambda r: ','.join(map(str, r.astype(int))),
    'delimited, with blanks': lambda r: ', '.join(map(str, r.astype(int))),
}


@pytest.mark.parametrize('how', HOT_WRITERS)
def test_rows_of_0_and_1(how):
    cells = [HOT_WRITERS[how](r) for r in HOT]
    vals, mask, _ = read(cells, MultiLabelBlock('m', vocab=NAMES))
    assert (vals == HOT).all() and mask.all()
    text = refused(lambda: read(cells, MultiLabelBlock('m')))
    names = eval(re.search(r'vocab=(\[.*?\]),', text)[1])
    assert 'one-hot' in text and (read(cells, MultiLabelBlock('m', vocab=names))[0] == HOT).all()
    text = refused(lambda: read(cells, MultiLabelBlock('m', vocab=['a', 'b'])))
    assert '3 numbers' in text and '2 labels' in text


def test_labels_that_are_0_and_1():
    cells = [[0], [1], [0, 1], []]
    assert read(cells, MultiLabelBlock('m'))[0].tolist() == [[True, False], [False, True], [True, True], [False, False]]
    assert read([[0, 1], [1, 0]], MultiLabelBlock('m', vocab=[0, 1]))[0].all()


def test_delimited_0_and_1_that_are_labels():
    "Where 0 or 1 is a label, or where each cell may be a list of the labels 0 and 1, that is what they are"
    cells = ['0,1', '1', '0', '0,1']
    both = [[True, True], [False, True], [True, False], [True, True]]
    assert read(cells, MultiLabelBlock('m'))[0].tolist() == both
    assert read(['0,1', '1,0'], MultiLabelBlock('m'))[0].tolist() == [[True, True]] * 2
    assert read(['0,1', '1,0'], MultiLabelBlock('m', vocab=['0', '1']))[0].tolist() == [[True, True]] * 2
    assert read(['0,1', '1,0'], MultiLabelBlock('m', vocab=['a', 'b']))[0].tolist() == [[False, True], [True, False]]
    assert 'one-hot' in refused(lambda: read(['0,1', '1,1'], MultiLabelBlock('m')))
    assert "label '0'" in refused(lambda: read(['0,1', '1', '0,1'], MultiLabelBlock('m', vocab=['a', 'b'])))


@pytest.mark.parametrize('delim', [',', ';', '|'])
def test_delimited_0_and_1_are_told(delim):
    "By the audit, and by a guess, which cannot name the labels"
    df = pd.DataFrame(dict(m=[delim.join(map(str, row.astype(int))) for row in HOT] * 3))
    block = MultiLabelBlock('m', vocab=NAMES, label_delim=delim)
    found = [f for f in Flow('f', block).audit(df).findings if f.kind == 'one_hot']
    assert [(f.serious, len(f.rows)) for f in found] == [(False, len(df))] and 'in this order' in str(found[0])
    lists = df.assign(m=[list(np.array(NAMES)[row]) for row in HOT] * 3)
    assert not [f for f in Flow('f', block).audit(lists).findings if f.kind == 'one_hot']
    guess = guess_flow(df.assign(other=[0, 1, 1] * 30))
    assert "vocab=[...]" in str(guess) and 'one-hot' in str(guess)


def test_arrays_of_words_name_plain_labels():
    vals, _, vocab = read([np.array(['b', 'a']), np.array([], dtype=str)], MultiLabelBlock('m'))
    assert (
        vocab == ['a', 'b'] and all(type(v) is str for v in vocab) and vals.tolist() == [[True, True], [False, False]]
    )


# ---- kinds of one label
@pytest.mark.parametrize(
    'block',
    [
        SingleLabelBlock('m'),
        SingleLabelBlock('m', vocab=['a', 'b']),
        OrdinalBlock('m'),
        BinaryBlock('m'),
        UnboundedRegressionBlock('m'),
        BoundedRegressionBlock('m'),
        CountBlock('m'),
    ],
)
@pytest.mark.parametrize('cell', [['a', 'b'], "['a', 'b']", '[]', '["a", "b"]'])
def test_kinds_of_one_label_name_multilabelblock(block, cell):
    text = refused(lambda: read([cell, cell], block))
    assert 'MultiLabelBlock' in text and 'row 0' in text


def test_bands_are_classes():
    cells = ['(0, 10)', '[10, 20]', '(0, 10)']
    assert read(cells, SingleLabelBlock('m'))[2] == ['(0, 10)', '[10, 20]']


# ---- guessed
def test_guess_flow_reads_them():
    n = len(LISTS)
    df = pd.DataFrame(
        dict(
            tags=map(str, LISTS),
            hot=HOT.astype(int).tolist(),
            mixed=["['a']", 'a,b', 'b'] * (n // 3),
            kind=['u', 'v', 'w'] * (n // 3),
        )
    )
    guess = guess_flow(df)
    assert [type(b).__name__ for b in guess.flow.tasks] == ['MultiLabelBlock', 'SingleLabelBlock'] and guess.flow.tasks[
        0
    ].name == 'tags'
    assert 'vocab=' in guess.left_out['hot'] and 'read_list' in guess.left_out['mixed']
    assert guess.flow.bind(df).tasks['tags'].vocab == NAMES
    assert 'tags' in guess.flow.audit(df).table.task_path.tolist()


# ---- words for no and yes
PAIRS = [
    ('no', 'yes'),
    ('No', 'Yes'),
    ('NO', 'YES'),
    ('False', 'True'),
    ('n', 'y'),
    ('0', '1'),
    (-1, 1),
    (-1.0, 1.0),
    ('-1', '1'),
]


@pytest.mark.parametrize('no, yes', PAIRS)
@pytest.mark.parametrize('dtype', [None, object, 'category'])
def test_words_that_can_mean_nothing_else(no, yes, dtype):
    df = pd.DataFrame(
        {c: pd.Series([*np.where(HOT[:, i], yes, no).tolist(), None], dtype=dtype) for i, c in enumerate('abm')}
    )
    bound = Flow('f', BinaryBlock('m'), MultiLabelBlock('l', cols=['a', 'b'])).bind(df)
    y = bound.encode(df)
    assert (y.vals[:-1].numpy() == HOT[:, [2, 0, 1]]).all() and y.mask[:-1].all() and not y.mask[-1].any()
    back = bound.to_frame(y)
    assert (
        back.a.iloc[:-1].tolist() == df.a.iloc[:-1].tolist()
        and back.m.iloc[:-1].tolist() == df.m.iloc[:-1].tolist()
        and back.iloc[-1].isna().all()
    )
    assert torch.equal(bound.encode(back), y)
    assert torch.equal(bound.encode(df.iloc[3:4]), y[3:4])  # one row says as much as the whole table did


def test_one_column_knows_only_yes():
    df = pd.DataFrame(dict(a=['yes', None, 'yes'], b=['no', 'yes', 'no']))
    y = Flow('f', MultiLabelBlock('l', cols=['a', 'b'])).bind(df).encode(df)
    assert y.vals.tolist() == [[1, 0], [0, 1], [1, 0]] and y.mask.tolist() == [[1, 1], [0, 1], [1, 1]]


def test_minus_one_beside_a_column_with_zero_is_not_told():
    df = pd.DataFrame(dict(a=[1, 0, -1, 1], b=[1, -1, 1, -1]))
    text = refused(lambda: Flow('f', MultiLabelBlock('l', cols=['a', 'b'])).bind(df).encode(df))
    mended = followed(text, df)
    y = Flow('f', MultiLabelBlock('l', cols=['a', 'b'])).bind(mended).encode(mended)
    assert y.mask.tolist() == [[1, 1], [1, 0], [0, 1], [1, 0]] and (y.vals * y.mask).tolist() == [
        [1, 1],
        [0, 0],
        [0, 1],
        [1, 0],
    ]


@pytest.mark.parametrize('dtype', [None, object, float, 'Int64', 'category'])
@pytest.mark.parametrize('block', [BinaryBlock('a'), MultiLabelBlock('l', cols=['a', 'b'])])
def test_each_line_about_minus_one_works(dtype, block):
    cells = [1, 0, -1, 1, 0, -1]
    df = pd.DataFrame(dict(a=pd.Series(cells, dtype=dtype), b=pd.Series(cells[::-1], dtype=dtype)))
    text = refused(lambda: Flow('f', block).bind(df).encode(df))
    assert 'row 2' in text and '-1' in text and 'vocab=' not in text
    lines = r'unknown: (.*?)\. If -1(?:\.0)? means no: (.*?)\. If it means maybe: (uncertain=.*? None\})'
    blank, as_no, maybe = re.search(lines, text).groups()
    assert re.fullmatch(r'uncertain=\{-1(?:\.0)?: None\}', maybe)
    kind = (
        type(block)('a', uncertain={-1: None})
        if len(block.cols) == 1
        else type(block)('l', cols=block.cols, uncertain={-1: None})
    )
    unsure = Flow('f', kind).bind(df).encode(df)
    assert unsure.mask[:, 0].tolist() == [1, 1, 0, 1, 1, 0]
    for line, mask, vals in ((blank, [1, 1, 0, 1, 1, 0], [1, 0, 0, 1, 0, 0]), (as_no, [1] * 6, [1, 0, 0, 1, 0, 0])):
        scope = dict(df=df.copy())
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            exec(line, scope)
        y = Flow('f', block).bind(scope['df']).encode(scope['df'])
        assert y.mask[:, 0].tolist() == mask and (y.vals * y.mask)[:, 0].tolist() == vals


def test_two_words_of_ones_own():
    df = pd.DataFrame(dict(a=['neg', 'pos', None, 'neg']))
    text = refused(lambda: Flow('f', BinaryBlock('a')).bind(df).encode(df))
    vocab = eval(re.search(r'vocab=(\(.*?\))', text)[1])
    assert vocab == ('neg', 'pos') and Flow('f', BinaryBlock('a', vocab=vocab)).bind(df).encode(df).vals[
        :, 0
    ].tolist() == [0, 1, 0, 0]
    text = refused(lambda: Flow('f', MultiLabelBlock('l', cols=['a'])).bind(df).encode(df))
    mended = followed(text, df)
    y = Flow('f', MultiLabelBlock('l', cols=['a'])).bind(mended).encode(mended)
    assert 'vocab=' not in text and y.vals[:, 0].tolist() == [0, 1, 0, 0] and y.mask[:, 0].tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize(
    'cells, bad',
    [(['yes', 'no', 'maybe'], "'maybe'"), ([1, 0, 'maybe'], "'maybe'"), ([1, 0, 7], '7'), ([True, False, 0.5], '.5')],
)
@pytest.mark.parametrize('block', [BinaryBlock('a'), MultiLabelBlock('l', cols=['a'])])
def test_the_word_that_is_too_many_is_named(block, cells, bad):
    df = pd.DataFrame(dict(a=pd.Series(cells, dtype=object)))
    text = refused(lambda: Flow('f', block).bind(df).encode(df))
    assert 'row 2' in text and bad in text and 'vocab=' not in text
    mended = followed(text, df)
    y = Flow('f', block).bind(mended).encode(mended)
    assert y.mask[:, 0].tolist() == [1, 1, 0] and y.vals[:, 0].tolist() == [1, 0, 0]


def test_words_travel_with_the_bound_flow(tmp_path):
    import pickle

    df = pd.DataFrame(dict(a=[-1, 1, 1], b=['no', 'yes', 'no']))
    bound = Flow('f', BinaryBlock('b'), MultiLabelBlock('l', cols=['a'])).bind(df)
    again = pickle.loads(pickle.dumps(bound))
    assert (
        torch.equal(again.encode(df), bound.encode(df))
        and again.tasks['b'].vocab == ('no', 'yes')
        and again.tasks['l'].col_words == {'a': (-1, 1)}
    )


def test_unclear_words_are_not_guessed():
    assert no_yes(['on', 'off']) is None and no_yes([-1]) is None and no_yes([0, -1]) is None
