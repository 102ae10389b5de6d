"Masked words of tables whose text stands in several columns, and the numbers that the task takes"

import numpy as np, pandas as pd, pytest, torch
from fastai_condmtl.text.all import BinaryBlock, ConditionalTextDataLoaders, Flow, FlowError, MaskedLMBlock
from fastai_condmtl.datasets.reviews import reviews
from fastai_condmtl.text.masks import MASK, text_random

pytestmark = pytest.mark.filterwarnings('ignore')


def loaders(df, block, **kwargs):
    flow = Flow('mails', BinaryBlock('complaint'), block)
    kwargs = dict(text_col=['title', 'text'], seed=0, bs=8, num_workers=0, min_freq=1) | kwargs
    return ConditionalTextDataLoaders.from_df(df, flow, **kwargs)


@pytest.fixture
def mails():
    df = reviews(60).assign(title='hello great world')
    df.loc[:29, 'title'] = None
    return df


def counts(dls, df, at=1):
    "Rows of a table with labels whose words are asked"
    y = dls.test_dl(df, with_labels=True, shuffle=False, bs=len(df)).one_batch()[1]
    return y.mask[:, at].tolist()


def test_a_text_is_there_where_one_of_its_columns_holds_some(mails):
    "As if the blank title held ''"
    filled = mails.fillna({'title': ''})
    ours, theirs = loaders(mails, MaskedLMBlock('word')), loaders(filled, MaskedLMBlock('word'))
    assert ours.vocab == theirs.vocab
    assert torch.equal(ours.valid.one_batch()[1], theirs.valid.one_batch()[1])
    np.testing.assert_array_equal(ours.flow.constants['word'], theirs.flow.constants['word'])
    assert ours.train_ds.tls[-1].items.packed()[:, 1, 1].all()
    assert counts(ours, mails) == counts(theirs, filled) == [1] * 60


def test_columns_of_the_text_are_written_down_with_the_flow(mails):
    dls = loaders(mails, MaskedLMBlock('word'))
    again = Flow.from_json(dls.flow.flow.to_json())
    assert again.tasks[1].cols == ['title', 'text']
    one = loaders(mails, MaskedLMBlock('word'), text_col='text')
    assert one.flow.tasks['word'].cols == ['text']
    own = loaders(mails, MaskedLMBlock('word', 'title'))  # only where there is a title
    assert own.flow.tasks['word'].cols == ['title'] and sum(counts(own, mails)) == 30


def test_numbers_of_masked_words():
    block = MaskedLMBlock('w', mask_prob=np.float32(0.25), n_masks=np.int64(3), seed=np.int64(4))
    assert (block.mask_prob, block.n_masks, block.seed) == (0.25, 3, 4)
    assert not isinstance(block.n_masks, np.generic)  # plain, so that a file can hold it
    for name, bad in (
        *(('mask_prob', p) for p in (0, 15, True, '0.1', float('nan'), None)),
        *(('n_masks', n) for n in (0, 2.0, True, '3', None)),
        *(('seed', s) for s in (-1, 2.5, 'a', None, True)),
    ):
        with pytest.raises(FlowError, match=f"task 'w': {name}=.* must be"):
            MaskedLMBlock('w', **{name: bad})


def test_any_seed_draws_masks():
    "Of 32 bits a seed says all; one beyond 64 bits is no error"
    ids = torch.tensor([[2, 7, 9, 30]])
    pad = ids == 1
    assert torch.equal(text_random(ids, pad, 5), text_random(ids, pad, 5 + 2**32))
    assert torch.equal(text_random(ids, pad, 5), text_random(ids, pad, 5 + 2**90))
    assert not torch.equal(text_random(ids, pad, 5), text_random(ids, pad, 6))


def test_own_columns_must_be_names():
    vocab = ['xxunk', 'xxpad', MASK, 'a', 'b']
    df = pd.DataFrame(dict(title=['a', None, None], text=[None, 'b', None]))
    bound = Flow('f', MaskedLMBlock('w', cols=['title', 'text'], vocab=vocab, n_masks=2)).bind(df)
    assert bound.encode(df)[:, 1].tolist() == [[1, 1], [1, 1], [0, 0]]
    for bad in ('title', [], 3):
        with pytest.raises(FlowError, match="task 'w': cols=.* must be a list"):
            MaskedLMBlock('w', cols=bad)
    with pytest.raises(FlowError, match="task 'w'.*col= or cols="):
        MaskedLMBlock('w', 'title', cols=['title', 'text'])
