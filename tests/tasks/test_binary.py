"Tests of tasks/binary"

import re
import pandas as pd
import pytest
from fastai_condmtl.all import BinaryBlock, Flow, FlowError, MultiLabelBlock, SingleLabelBlock


# ---- a second review: conditions, kinds, scores
# ---------------------------------------------------------------------------
def table(**cols):
    return pd.DataFrame({c: pd.Series(v, dtype=object) for c, v in cols.items()})


@pytest.mark.parametrize(
    'vocab, cells, wrong',
    [((-1, 1), [-1, 1], 0), ((1, 2), [1, 2], 0), ((1, 0), [1, 0], 2), ((0, 2), [0, 2], 1), ((2, 'x'), [2, 'x'], 1)],
)
def test_words_that_are_numbers_leave_no_bits(vocab, cells, wrong):
    bound = Flow('f', BinaryBlock('b', vocab=vocab)).bind(table(b=cells))
    assert bound.encode(table(b=cells))[:, 0, 0].tolist() == [0, 1]
    with pytest.raises(
        FlowError, match=rf"row 2, column 'b', value {wrong}: not a binary label: use a word of \("
    ) as e:
        bound.encode(table(b=cells + [wrong]))
    assert 'True/False' not in str(e.value)


def test_words_beside_bits():
    bound = Flow('f', BinaryBlock('b', vocab=('no', 'yes'))).bind(table(b=['no']))
    assert bound.encode(table(b=['no', 'yes', 0, True]))[:, 0, 0].tolist() == [0, 1, 0, 1]
    with pytest.raises(FlowError, match=r"use True/False or 1/0, or a word of \('no', 'yes'\)"):
        bound.encode(table(b=['maybe']))


def test_bad_tune_is_an_error_where_it_is_written():
    for make in (
        lambda: BinaryBlock('b', tune='acuracy'),
        lambda: MultiLabelBlock('b', tune='acuracy'),
        lambda: BinaryBlock('b', tune=dict(metric='acuracy')),
    ):
        with pytest.raises(FlowError, match="task 'b': tune=.*did you mean 'accuracy'"):
            make()
    for ok in (
        'auto',
        None,
        'f1',
        'youden',
        'mcc',
        max,
        ('fbeta', 2),
        [[0, 1], [5, 0]],
        dict(metric='f1'),
        dict(constraint=('precision', 0.9)),
    ):
        BinaryBlock('b', tune=ok)
    assert MultiLabelBlock('b', tune='f1_micro').tune == 'f1_micro'


def test_words_that_tell_no_order_are_offered_both_ways():
    "No line of the fix may be pasted without a choice; words that are likely come in one order"
    for words, lines in [(('Ja', 'Nein'), 2), (('off', 'on'), 1)]:
        df = pd.DataFrame(dict(a=[words[0], words[1], words[0], None]))
        with pytest.raises(FlowError) as error:
            Flow('f', BinaryBlock('a')).bind(df).encode(df)
        offered = re.findall(r"vocab=(\(.*?\))", str(error.value))
        assert [eval(line) for line in offered] == [words, words[::-1]][:lines]


def test_a_hint_tells_numbers_from_words():
    df = pd.DataFrame(dict(k=[1, 2, 3], b=[0, 1, 1]))
    kind = SingleLabelBlock('k')
    with pytest.raises(FlowError, match=r"for the class '1': did you mean 1\?"):
        Flow('f', kind, BinaryBlock('b') | kind.eq('1')).bind(df)


@pytest.mark.parametrize(
    'cells, answers, block',
    [
        (['yes', 'Y', 'no', None], [1, 1, 0, None], BinaryBlock('b')),
        (['yes', 'y', 'no', 'N '], [1, 1, 0, 0], BinaryBlock('b')),
        (['no', 'Y'], [0, 1], BinaryBlock('b')),
        (['Yes', 'yes', 'no'], [1, 1, 0], BinaryBlock('b')),
        (['TRUE', 'yes', 'false', 'No'], [1, 1, 0, 0], BinaryBlock('b')),
        (['1', 'yes', 'no', '0'], [1, 1, 0, 0], BinaryBlock('b')),
        ([True, 'yes', 'no', 0], [1, 1, 0, 0], BinaryBlock('b')),
        (['yes', 'N', 'no', 'Yes'], [1, 0, 0, 1], BinaryBlock('b', vocab=('no', 'yes'))),
        (['yes', 'Y', 'no'], [1, 1, 0], MultiLabelBlock('m', cols=['b'])),
        (['ja', 'Ja', 'nein'], [1, 1, 0], BinaryBlock('b')),
    ],
)
def test_the_lines_that_are_told_make_words_one_spelling(cells, answers, block):
    "Each error is mended by the line in it, and no answer is lost"
    df, n_lines = table(b=cells * 3), 0
    while True:
        try:
            packed = Flow('f', block).bind(df).encode(df)
            break
        except FlowError as error:
            n_lines, text = n_lines + 1, str(error)
            line = re.search(r"write (df\['b'\] = .*)$|the one for no first: (vocab=.*) or ", text)
            assert line and n_lines < 4, text
            if line[1]:
                exec(line[1], dict(df=df))
            else:  # which of two unknown words says yes, only the user knows
                block = eval(
                    f"BinaryBlock('b', {line[2].replace('Ja', 'x').replace('nein', 'Ja').replace('x', 'nein')})"
                )
    assert n_lines
    told = [None if not known else int(value) for value, known in packed[:, :, 0].tolist()]
    assert told == answers * 3


@pytest.mark.parametrize(
    'cells, told', [(['1', '2', '3'], "if it is 1 "), (['maybe', 'so', 'no'], 'leave the cell blank')]
)
def test_words_that_say_neither_yes_nor_no_are_no_spellings(cells, told):
    df = table(b=cells)
    with pytest.raises(FlowError, match=told) as error:
        Flow('f', BinaryBlock('b')).bind(df).encode(df)
    assert 'several ways' not in str(error.value)
