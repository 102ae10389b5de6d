"""A trained learner is given other data: what it says of an item stays, and labels are encoded as its network was
trained"""

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.all import ColReader, DataBlock, IndexSplitter, Normalize, TransformBlock
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import TensorImage
from torch import nn

from fastai_condmtl.all import *
import fastai_condmtl.learn.transfer  # noqa: F401  learn.change_flow
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.learn.reread import same_reading

N = 48
FIX = 'learn.change_flow'


class Inputs:
    "Row → its numbers; picklable"

    def __call__(self, r):
        return torch.tensor([float(r['x']), float(r['x']) ** 2])


def table():
    rng = np.random.default_rng(0)
    df = pd.DataFrame(
        dict(
            x=rng.normal(size=N),
            kind=[*'cba'] * (N // 3),
            mass=rng.normal(50, 9, N).round(2),
            n=rng.integers(0, 6, N),
            grade=rng.integers(1, 5, N),
        )
    )
    df['there'] = df.x > 0
    df['tags'] = [','.join(t for t in 'uvw' if rng.random() < 0.5) for _ in range(N)]
    df['cm'] = rng.uniform(0, 100, N).round(1)
    df.loc[::7, 'mass'] = np.nan
    df.loc[::5, 'kind'] = None
    df.loc[::9, 'tags'] = None
    return df


def flow(**kw):
    there = BinaryBlock('there')
    return Flow(
        'all',
        there,
        SingleLabelBlock('kind', **kw),
        MultiLabelBlock('tags'),
        OrdinalBlock('grade'),
        UnboundedRegressionBlock('mass') | there,
        BoundedRegressionBlock('cm'),
        CountBlock('n'),
    )


def data(df, valid=range(8), f=None, bs=8):
    return DataBlock(
        blocks=(TransformBlock, f or flow()), get_x=Inputs(), splitter=IndexSplitter(list(valid))
    ).dataloaders(df, bs=bs, num_workers=0)


def learner(dls, seed=0):
    torch.manual_seed(seed)
    return Learner(dls, nn.Linear(2, dls.c))


def says(learn, df):
    return [dict(learn.predict(df.iloc[i])[0]) for i in range(0, 12, 2)]


def counted(y):
    "Packed labels, 0 where they do not count"
    vals, mask = y.as_subclass(torch.Tensor).cpu().unbind(1)
    return torch.stack([vals * (mask > 0), mask], 1)


def labels_of(dl):
    "Packed labels that count as the loader's batches hold them, in the order of the rows"
    return counted(torch.cat([b[1].as_subclass(torch.Tensor).cpu() for b in dl.new(shuffle=False, drop_last=False)]))


@pytest.fixture
def learn():
    res = learner(data(table()))
    with res.no_bar(), res.no_logging():
        yield res


SWAPS = dict(
    same=lambda df: df,
    a_class_less=lambda df: df[df.kind != 'a'],
    a_label_less=lambda df: df.assign(tags=df.tags.str.replace('u', '').str.strip(',').str.replace(',,', ',')),
    other_range=lambda df: df.assign(cm=df.cm / 2),
    a_grade_less=lambda df: df[df.grade > 1],
    heavy=lambda df: df.assign(mass=df.mass * 3, n=df.n * 2),
)


@pytest.mark.parametrize('what', SWAPS)
@pytest.mark.parametrize('valid', [range(8), range(20, 34)])
def test_what_is_said_of_a_row_stays_and_labels_are_encoded_as_the_network_was_trained(learn, what, valid):
    df, flow0 = table(), learn.dls.flow
    before, new = says(learn, df), SWAPS[what](df)
    dls = data(new, valid)
    learn.dls = dls
    assert says(learn, df) == before
    assert same_reading(learn.dls.flow, flow0)
    want = counted(flow0.encode(new))  # the raw table, by the flow of the network
    train = [i for i in range(len(new)) if i not in set(valid)]
    torch.testing.assert_close(labels_of(learn.dls.train), want[train], rtol=0, atol=1e-6)
    torch.testing.assert_close(labels_of(learn.dls.valid), want[list(valid)], rtol=0, atol=1e-6)


@pytest.mark.parametrize('how', ['swapped', 'loader', 'table'])
def test_scores_of_other_data(learn, how):
    """Swapped, handed over as a loader of other data, or as a table: the scores of these rows are those of the
    test loader"""
    df = table()
    new = df[df.kind != 'a'].reset_index(drop=True)
    other = data(new, range(len(new) - 14, len(new)))
    rows = new.iloc[-14:]
    want = learn.evaluate(learn.dls.test_dl(rows, with_labels=True))
    if how == 'swapped':
        learn.dls = other
    dl = dict(swapped=None, loader=other.valid, table=rows)[how]
    pd.testing.assert_frame_equal(learn.evaluate(dl), want)
    test = learn.dls.test_dl(rows, with_labels=True)
    assert list(learn.validate(dl=dl)) == pytest.approx(list(learn.validate(dl=test)), rel=1e-6)
    probs, y = learn.get_preds(dl=dl)[:2]
    assert torch.equal(counted(y), counted(learn.get_preds(dl=test)[1])) and torch.equal(
        probs, learn.get_preds(dl=test)[0]
    )
    a, b = (ConditionalInterpretation.from_learner(learn, dl=d) for d in (dl, test))
    assert np.array_equal(a.confusion_matrix('kind'), b.confusion_matrix('kind')) and torch.equal(
        a.losses('cm').nan_to_num(), b.losses('cm').nan_to_num()
    )


@pytest.mark.parametrize(
    'spoil, said',
    [
        (lambda df: df.replace(dict(kind={'b': 'bear'})), "task 'kind', row .*bear"),
        (lambda df: df.assign(tags=df.tags.str.replace('w', 'wet')), "task 'tags'.*wet"),
        (lambda df: df.assign(grade=df.grade + 1), "task 'grade'.*5"),
    ],
)
def test_what_the_network_does_not_know_is_an_error_at_the_assignment(learn, spoil, said):
    df, before = table(), learn.dls
    other = data(spoil(df))
    with pytest.raises(FlowError, match=said) as e:
        learn.dls = other
    assert FIX in str(e.value) and learn.dls is before
    with pytest.raises(FlowError, match=said):
        learn.get_preds(dl=other.valid)
    with pytest.raises(FlowError, match=said):
        learn.evaluate(other.valid)


@pytest.mark.parametrize(
    'other, said',
    [
        (lambda: Flow('all', BinaryBlock('there')), "only the network has 'kind'"),
        (lambda: Flow('all', BinaryBlock('there'), BinaryBlock('more', 'there')), "only the new data has 'more'"),
        (
            lambda: flow_with(SingleLabelBlock('grade')),
            "'grade' is an OrdinalBlock of the network and a SingleLabelBlock",
        ),
        (lambda: flow_with(CountBlock('n') | BinaryBlock('there')), "'n' has other conditions"),
        (lambda: flow_with(CountBlock('n', weight_col='x2')), "have weights"),
    ],
)
def test_another_flow_is_an_error_that_names_change_flow(learn, other, said):
    dls = data(table().assign(x2=2.0).sample(frac=1, random_state=0), f=other())
    with pytest.raises(FlowError, match=said) as e:
        learn.dls = dls
    assert FIX in str(e.value)


def flow_with(block):
    f = flow()
    f.tasks = tuple(block if t.name == block.name else t for t in f.tasks)
    return f


def test_other_weights_and_thresholds_of_blocks_do_not_matter(learn):
    learn.loss_func.thresholds['there'] = torch.tensor([0.3])
    f = flow_with(BinaryBlock('there', threshold=0.9, pos_weight=3))
    f.tasks = tuple(
        t if t.name != 'mass' else UnboundedRegressionBlock('mass', weight=2) | BinaryBlock('there') for t in f.tasks
    )
    loss, before = learn.loss_func, says(learn, table())
    learn.dls = data(table(), f=f)
    assert learn.loss_func is loss and says(learn, table()) == before


def test_the_data_that_is_handed_over_is_left_alone(learn):
    df = table()
    other = data(df[df.kind != 'a'], range(5))
    mine = learner(other)
    y, vocab = labels_of(other.valid), other.flow.find('kind').vocab
    learn.dls = other
    assert (
        learn.dls is not other
        and other.flow.find('kind').vocab == vocab == ['b', 'c']
        and torch.equal(labels_of(other.valid), y)
    )
    assert mine.dls is other and mine.dls.flow.find('kind').vocab == ['b', 'c']


def test_one_loader_that_is_replaced(learn):
    df, before = table(), says(learn, table())
    other = data(df[df.kind != 'a'], range(9))
    learn.dls.train = other.train
    assert says(learn, df) == before and learn.dls.flow.find('kind').vocab == ['a', 'b', 'c']
    want = counted(learn.loss_func.flow.encode(df[df.kind != 'a']))
    torch.testing.assert_close(labels_of(learn.dls.train), want[9:], rtol=0, atol=1e-6)
    learn.fit(1, 1e-3)
    with pytest.raises(FlowError, match=FIX):
        learn.dls.valid = data(df.replace(dict(kind={'b': 'bear'}))).valid
        learn.validate()


def test_swapped_then_trained_then_exported(learn, tmp_path):
    df = table()
    learn.path = tmp_path
    learn.dls = data(df[df.kind != 'a'], range(9))
    learn.fit(1, 1e-2)
    after = says(learn, df)
    learn.export('a.pkl')
    again = load_learner(tmp_path / 'a.pkl')
    with again.no_bar(), again.no_logging():
        assert says(again, df) == after
    again.dls = data(df, range(3, 20))  # a loaded learner keeps its reading too
    with again.no_bar(), again.no_logging():
        assert says(again, df) == after


def test_the_same_loader_otherwise():
    "Size of batches, weights of rows, shuffling: what a loader does beside its labels stays as it was"
    df = table()
    learn = learner(data(df))
    other = data(df[df.kind != 'a'].reset_index(drop=True), range(4), bs=5).balanced('there', seed=3)
    learn.dls = other
    assert (
        learn.dls.train.bs == 5
        and learn.dls.train.shuffle
        and np.array_equal(learn.dls.train.wgts, other.train.wgts)
        and learn.dls.train is not other.train
    )
    assert len([*learn.dls.train]) == len([*other.train])


def test_tuning_a_swapped_learner_leaves_others_alone():
    "A stock learner shares its loss with its data; thresholds found after a swap are its own"
    df = table()
    dls = data(df)
    learn, beside = learner(dls), learner(dls, 1)
    learn.dls = data(df, range(8))
    with learn.no_bar(), learn.no_logging():
        learn.search_thresholds(min_support=1)
    assert learn.loss_func is not beside.loss_func


def test_data_without_a_flow(learn):
    df = table().dropna(subset=['kind'])
    from fastai.data.block import CategoryBlock

    plain = DataBlock(blocks=(TransformBlock, CategoryBlock), get_x=Inputs(), get_y=ColReader('kind')).dataloaders(
        df, bs=8
    )
    with pytest.raises(FlowError, match='has no flow'):
        learn.dls = plain
    learn.loss_func = CrossEntropyLossFlat()
    learn.dls = plain
    assert learn.dls is plain


def test_change_flow_reads_anew(learn):
    df = table().replace(dict(kind={'b': 'bear'}))
    new = data(df)
    learn.change_flow(new)
    assert learn.dls is new and learn.dls.flow.find('kind').vocab == ['a', 'bear', 'c']
    other = data(df[df.kind != 'a'], range(3))
    before = says(learn, df)
    learn.dls = other
    assert says(learn, df) == before


class Pixels:
    def __call__(self, r):
        return TensorImage(torch.full((3, 2, 2), float(r['x'])))


def test_normalisation_of_a_pretrained_body_goes_along():
    "`vision_learner` adds `Normalize` to the data of a pretrained network; larger pictures get it too"
    df = table()
    dls, other = (
        DataBlock(blocks=(TransformBlock, flow()), get_x=Pixels(), splitter=IndexSplitter(list(range(8)))).dataloaders(
            df, bs=8
        )
        for _ in range(2)
    )
    dls.add_tfms([Normalize.from_stats([5.0] * 3, [2.0] * 3, cuda=False)], 'after_batch')
    learn = Learner(dls, nn.Linear(12, dls.c))
    learn.dls = other
    x = next(iter(learn.dls.valid))[0]
    torch.testing.assert_close(*(o.cpu().as_subclass(torch.Tensor) for o in (x, (next(iter(other.valid))[0] - 5) / 2)))
    assert not any(isinstance(t, Normalize) for t in other.valid.after_batch.fs)


def test_words_of_a_binary_task_and_columns_of_labels():
    df = pd.DataFrame(dict(x=np.linspace(-1, 1, 20), ok=['no', 'yes'] * 10, u=[0, 1, None, 1] * 5, v=[1, 0] * 10))

    def make(vocab, cols):
        return data(df, range(4), Flow('f', BinaryBlock('ok', vocab=vocab), MultiLabelBlock('tags', cols=cols)))

    learn = learner(make(('no', 'yes'), ['u', 'v']))
    flow0 = learn.dls.flow
    learn.dls = make(('yes', 'no'), ['v', 'u'])
    torch.testing.assert_close(labels_of(learn.dls.train), counted(flow0.encode(df))[4:], rtol=0, atol=0)


def test_a_mask_of_weights_and_of_conditions_stays():
    df = table().assign(w=np.r_[0, np.linspace(0.5, 2, N - 1)])

    def make(rows, valid):
        return data(
            rows,
            valid,
            Flow(
                'f',
                SingleLabelBlock('kind'),
                UnboundedRegressionBlock('mass') | SingleLabelBlock('kind').eq('b'),
                weight_col='w',
            ),
        )

    learn = learner(make(df, range(5)))
    flow0, new = learn.dls.flow, df[df.kind != 'a']
    learn.dls = make(new, range(7))
    torch.testing.assert_close(labels_of(learn.dls.valid)[:, 1], counted(flow0.encode(new))[:7, 1], rtol=0, atol=0)
