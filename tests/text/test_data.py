"Texts that are odd: cells that are no text, columns that are not clear, arguments that nothing can be made of"

import numpy as np, pandas as pd, pytest, torch
from decimal import Decimal
from fastai.text.all import AWD_LSTM, awd_lstm_clas_config, defaults
from fastai_condmtl.text.all import ConditionalTextDataLoaders, FlowError, MaskedLMBlock
from fastai_condmtl.text.all import conditional_lm_learner, conditional_text_learner
from fastai_condmtl.text.data import TextColumns, text_columns
from fastai_condmtl.datasets.reviews import review_flow, reviews

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(scope='module')
def df():
    return reviews(40)


def loaders(df, flow=None, **kwargs):
    kwargs = dict(seed=0, bs=8, num_workers=0, min_freq=1) | kwargs
    return ConditionalTextDataLoaders.from_df(df, review_flow() if flow is None else flow, **kwargs)


NO_TEXT = [
    np.array([1, 2]),
    np.array(['a']),
    np.array('a'),
    torch.tensor([1.0, 2.0]),
    torch.tensor(3),
    pd.Series(['a']),
    ['a'],
    ('a',),
    {'a': 1},
    b'a',
    Decimal('1.5'),
    pd.Timestamp('2024-01-01'),
]


@pytest.mark.parametrize('cell', NO_TEXT, ids=lambda cell: type(cell).__name__)
def test_a_cell_that_is_no_text_is_one_error(cell):
    table = pd.DataFrame(dict(t=pd.Series(['x', cell], dtype=object)))
    for read in (lambda: TextColumns('t').texts(table), lambda: TextColumns('t')(table.iloc[1])):
        with pytest.raises(FlowError, match=f"(?s)^row 1, column 't', value .*a {type(cell).__name__} is no text"):
            read()
    with pytest.raises(FlowError, match="^the row, column 't'"):
        TextColumns('t')(dict(t=cell))


@pytest.mark.parametrize('cell', [None, float('nan'), pd.NA, pd.NaT, np.float32('nan'), Decimal('NaN')], ids=repr)
def test_what_pandas_calls_missing_is_no_text(cell):
    table = pd.DataFrame(dict(t=pd.Series(['x', cell], dtype=object)))
    for read in (lambda: TextColumns('t').texts(table), lambda: TextColumns('t')(table.iloc[1])):
        with pytest.raises(FlowError, match='^row 1.*there is no text'):
            read()


@pytest.mark.parametrize('cells', [[True, False], [1, 2], [0.5, 2.0]], ids=str)
def test_a_row_is_read_as_its_table_was(cells):
    table = pd.DataFrame(dict(t=cells))
    get = TextColumns('t')
    assert get.texts(table) == [get(table.iloc[i]) for i in range(2)] == [str(cell) for cell in cells]


def test_half_a_character_is_told(df):
    half = df.assign(text=pd.Series([*df.text[:3], 'Ein M\ud83d', *df.text[4:]], dtype=object))
    with pytest.raises(FlowError, match=r"^row 3, column 'text': the text 'Ein M.*half of a character"):
        loaders(half)
    assert TextColumns('text').texts(half.assign(text='Müller 😀 日本語'))[3] == 'Müller 😀 日本語'


def test_columns_that_are_not_clear(df):
    table = df.assign(title='a')
    assert text_columns(table, np.int64(0)) == text_columns(table, pd.Index(['text'])) == ['text']
    assert text_columns(table, np.array(['title', 'text'])) == ['title', 'text']
    for bad in (True, None, 1.5, {'text': 1}, [['text']]):
        with pytest.raises(FlowError, match='text_col=.* is not a column of the table'):
            text_columns(table, bad)
    with pytest.raises(FlowError, match="text_col names column 'text' twice"):
        text_columns(table, ['text', 'text'])
    twice = pd.concat([df, df[['text']]], axis=1)
    with pytest.raises(FlowError, match="column 'text', which stands 2 times in the table: keep one"):
        loaders(twice)
    with pytest.raises(FlowError, match="column 'text', which stands 2 times"):
        TextColumns('text').texts(twice)
    with pytest.raises(FlowError, match="no column 'text' with the text"):
        TextColumns('text').texts(df[['stars']])


def test_only_a_table_will_do():
    for bad in ([1], dict(text=['a']), None):
        with pytest.raises(FlowError, match='from_df takes a DataFrame'):
            loaders(bad)


@pytest.mark.parametrize(
    'argument, values',
    [
        ('min_freq', ['3', -1, 2.5, True, None]),
        ('max_vocab', ['3', 0, -1, 2.5, len(defaults.text_spec_tok)]),
        ('seq_len', ['3', 0, -1, 2.5, None]),
        ('tok_workers', ['2', -1, None]),
        ('tok_tfm', ['spacy', 3]),
        ('rules', ['a', [3], str.upper]),
        ('text_vocab', [3, 'xxunk xxpad', ['xxunk', 'xxpad', 3], []]),
    ],
)
def test_arguments_of_texts(df, argument, values):
    for value in values:
        with pytest.raises(FlowError, match=argument):
            loaders(df, **{argument: value})


def test_a_word_stands_once_in_a_vocabulary(df):
    with pytest.raises(FlowError, match="'a' stands twice in text_vocab"):
        loaders(df, text_vocab=['xxunk', 'xxpad', 'a', 'a'])
    filled = loaders(df, text_vocab=['xxunk', 'xxpad', 'a', 'xxfake', 'xxfake'])  # as fastai fills them up
    assert len(filled.vocab) == 5


def test_the_word_for_masked_ones_has_room(df):
    n_special = len(defaults.text_spec_tok) + 1
    with pytest.raises(FlowError, match=f'max_vocab={n_special} must be .*, {n_special + 1} or more'):
        loaders(df, MaskedLMBlock('word'), max_vocab=n_special)
    assert len(loaders(df, MaskedLMBlock('word'), max_vocab=n_special + 8).vocab) >= n_special + 8
    assert len(loaders(df, max_vocab=None).vocab) > len(loaders(df, max_vocab=40).vocab)


def test_numbers_of_networks(df):
    dls = loaders(df)
    for name, bad in (
        *(('d_model', n) for n in (0, -4, 16.0, 'a')),
        *(('n_heads', n) for n in (0, True)),
        *(('n_layers', n) for n in (0, -1, 1.5)),
        *(('dropout', p) for p in (2, 'a', float('nan'))),
    ):
        with pytest.raises(FlowError, match=f'^{name}='):
            conditional_lm_learner(dls, **{name: bad})
    config = awd_lstm_clas_config | dict(emb_sz=8, n_hid=8, n_layers=1)
    for name, bad in (('seq_len', 0), ('max_len', 0), ('max_len', 71)):
        with pytest.raises(FlowError, match=f'^{name}='):
            conditional_text_learner(dls, AWD_LSTM, pretrained=False, config=config, **{name: bad})
    learn = conditional_text_learner(dls, AWD_LSTM, pretrained=False, config=config, max_len=72)
    with learn.no_bar():
        assert torch.isfinite(learn.get_preds()[0]).all()
