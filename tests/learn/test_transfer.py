"""Change the flow of a trained learner: what is kept predicts as before. Reference numbers are the learner's own
from before the change, in original units,
and weights written down row by row."""

import contextlib, copy, io
import numpy as np, pandas as pd, pytest, torch
from torch import nn
from hypothesis import given
from fastai.basics import DataBlock, Learner, RandomSplitter, load_learner, set_seed
from fastai.data.transforms import ColReader, IndexSplitter
from fastai.metrics import AvgMetric
from fastai_condmtl.all import *
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.equip import equip
from fastai_condmtl.learn.transfer_weights import copy_tasks, kept_tasks
from fastai_condmtl.learn.heads import last_layer
from fastai_condmtl.learn.heads import RunNeeded, head_of
from fastai_condmtl.learn.state import flow_of
from fastai_condmtl.tasks.binary import BinaryBlock
from fastai_condmtl.tasks.regression import BoundedRegressionBlock, UnboundedRegressionBlock
from fastai_condmtl.tasks.multi_label import MultiLabelBlock
from fastai_condmtl.tasks.single_label import SingleLabelBlock
from oracle import build, frame, walk
from random_flows import checks, random_spec, random_table, rngs

pytestmark = pytest.mark.filterwarnings('ignore')
N = 48


class Vec:
    "Row → its numbers as a vector"

    def __call__(self, r):
        return torch.tensor([float(r[c]) for c in ('p', 'q', 'r')])


def table(n=N, seed=0):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame(rng.normal(size=(n, 3)), columns=['p', 'q', 'r'])
    df['on'] = df.p > 0
    df['hue'] = np.where(df.q > 0.3, 'red', np.where(df.q < -0.3, 'blue', 'green'))
    df['tags'] = [','.join(t for t, x in zip(('hat', 'scarf'), (a, b)) if x > 0) for a, b in zip(df.r, df.p)]
    df['level'] = rng.uniform(10, 40, n)
    df['heat'] = df.q * 7 + 30
    df['new'] = df.r > 0
    return df


def flow_a(**kw):
    on = BinaryBlock('on')
    return Flow(
        'f',
        on,
        SingleLabelBlock('hue', **kw),
        Flow('look', MultiLabelBlock('tags'), BoundedRegressionBlock('level', y_range=(10, 40))) | on,
        UnboundedRegressionBlock('heat'),
    )


def make_dls(df, flow, idx=range(36, 48)):
    return DataBlock(blocks=(None_block(), flow), get_x=Vec(), splitter=IndexSplitter(list(idx))).dataloaders(
        df, bs=8, num_workers=0
    )


def None_block():
    from fastai.data.block import TransformBlock

    return TransformBlock


def learner(flow, df=None, branches=None, bias=True, **kw):
    set_seed(0)
    dls = make_dls(table() if df is None else df, flow)
    body = nn.Sequential(nn.Linear(3, 6), nn.ReLU())
    b = dls.flow
    head = (
        conditional_head(
            b,
            6,
            branches,
            nn.Sequential(
                nn.Linear(6, 6),
                nn.ReLU(),
                nn.Linear(
                    6,
                    max(
                        1,
                        sum(
                            s.logits.stop - s.logits.start
                            for p, s in b.slices.items()
                            if b.plan.features[b.paths.index(p)] is None and not b.tasks[p].hidden
                        ),
                    ),
                ),
            ),
        )
        if branches is not None or kw.pop('deep', False)
        else nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, b.c, bias=bias))
    )
    learn = equip(Learner(dls, nn.Sequential(body, head), splitter=two_groups, **kw))
    if head_of(learn):
        learn.add_cb(RunNeeded())
    with quiet(learn):
        learn.fit(2, 1e-2)
    return learn


def two_groups(m):
    return [list(m[0].parameters()), list(m[1].parameters())]


@contextlib.contextmanager
def quiet(learn):
    with learn.no_bar(), learn.no_logging(), contextlib.redirect_stdout(io.StringIO()):
        yield


def units(learn, df=None):
    "Per task path: activations (regressions in original units) on the whole table"
    flow = flow_of(learn)
    with quiet(learn):
        acts = learn.get_preds(dl=learn.dls.test_dl(table() if df is None else df))[0]
    head = head_of(learn)
    if head is not None:  # every row
        was, head.waits = head.waits, []
        with quiet(learn):
            acts = learn.get_preds(dl=learn.dls.test_dl(table() if df is None else df))[0]
        head.waits = was
    res = {}
    for p, s in flow.slices.items():
        a, b = acts[:, s.acts], flow.tasks[p]
        res[p] = a * b.span + b.lo if hasattr(b, 'span') else a
    return res


def assert_kept(before, after, names, **kw):
    for q, p in names.items():
        torch.testing.assert_close(after[q], before[p], rtol=1e-5, atol=1e-6, msg=lambda m: f'{q}: {m}', **kw)


SAME = {p: p for p in ('on', 'hue', 'look.tags', 'look.level', 'heat')}


@pytest.mark.parametrize('bias', [True, False])
def test_add_remove_regate_rename(bias):
    learn = learner(flow_a(), bias=bias)
    learn.loss_func.thresholds |= {'on': torch.tensor(0.31), 'look.tags': torch.tensor([0.2, 0.7])}
    before, body = units(learn), copy.deepcopy(learn.model[0].state_dict())
    on = BinaryBlock('on')
    t = learn.change_flow(
        Flow(
            'f',
            BinaryBlock('new'),
            Flow('seen', MultiLabelBlock('tags'), BoundedRegressionBlock('level', y_range=(10, 40)))
            | ~BinaryBlock('new'),
            on,
            UnboundedRegressionBlock('warmth', 'heat') | on,
        ),
        renamed={'look': 'seen', 'heat': 'warmth'},
    )
    assert t.values.tolist() == [
        ['new', '', 'new'],
        ['seen.tags', 'look.tags', ''],
        ['seen.level', 'look.level', ''],
        ['on', 'on', ''],
        ['warmth', 'heat', ''],
        ['', 'hue', 'gone'],
    ]
    after = units(learn)
    assert_kept(before, after, {'on': 'on', 'seen.tags': 'look.tags', 'seen.level': 'look.level', 'warmth': 'heat'})
    assert set(after) == {'new', 'on', 'seen.tags', 'seen.level', 'warmth'} and learn.dls.c == 6
    assert float(learn.loss_func.thresholds['on']) == pytest.approx(0.31) and torch.as_tensor(
        learn.loss_func.thresholds['seen.tags']
    ).tolist() == pytest.approx([0.2, 0.7])
    assert float(learn.loss_func.thresholds['new']) == 0.5 and 'look.tags' not in learn.loss_func.thresholds
    for k, v in body.items():
        assert torch.equal(v, learn.model[0].state_dict()[k])
    assert [m.name for m in learn.metrics] == [
        'new.accuracy',
        'seen.tags.f1_score',
        'seen.level.mae',
        'on.accuracy',
        'warmth.mae',
    ]
    was = [p.clone() for p in learn.model.parameters()]
    with quiet(learn):
        learn.fit(1, 1e-2)
    assert all(not torch.equal(a, b) for a, b in zip(was, learn.model.parameters()))
    assert {'seen.tags', 'on', 'new'} <= set(learn.threshold_search.result.task_path)


def test_same_weights_are_bit_for_bit_the_same_rows():
    learn = learner(flow_a())
    old, rows = flow_of(learn), learn.model[1][-1].weight.detach().clone()
    learn.change_flow(
        Flow(
            'f',
            SingleLabelBlock('hue', vocab=['violet', 'red', 'green', 'blue']),
            MultiLabelBlock('tags', vocab=['scarf', 'belt', 'hat']),
        ),
        renamed={'look.tags': 'tags'},
    )
    new, now = flow_of(learn), learn.model[1][-1].weight
    at = lambda f, p, i: f.slices[p].logits.start + i
    for i, c in enumerate(['blue', 'green', 'red']):
        assert torch.equal(rows[at(old, 'hue', i)], now[at(new, 'hue', ['violet', 'red', 'green', 'blue'].index(c))])
    for i, c in enumerate(['hat', 'scarf']):
        assert torch.equal(rows[at(old, 'look.tags', i)], now[at(new, 'tags', ['scarf', 'belt', 'hat'].index(c))])


def test_classes_come_and_go_with_thresholds_and_temperatures():
    learn = learner(flow_a())
    learn.loss_func.thresholds['look.tags'] = torch.tensor([0.2, 0.7])  # hat, scarf
    learn.loss_func.temperatures = {'hue': 2.0, 'on': 0.5}
    before = units(learn)
    on = BinaryBlock('on')
    t = learn.change_flow(
        Flow(
            'f',
            on,
            SingleLabelBlock('hue', vocab=['red', 'pink', 'green', 'blue']),
            Flow('look', MultiLabelBlock('tags', vocab=['scarf', 'hat', 'sock'])) | on,
        )
    )
    assert dict(zip(t.task_path, t.note)) == {
        'on': '',
        'hue': '3 of 4 rows kept, 1 start anew',
        'look.tags': '2 of 3 rows kept, 1 start anew',
        '': 'gone',
    }
    after = units(learn)
    p = after['hue'][:, [3, 2, 0]]  # blue green red
    torch.testing.assert_close(p / p.sum(1, keepdim=True), before['hue'], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(after['look.tags'][:, [1, 0]], before['look.tags'])
    torch.testing.assert_close(after['on'], before['on'])
    assert learn.loss_func.thresholds['look.tags'].tolist() == pytest.approx([0.7, 0.2, 0.5])
    assert dict(learn.loss_func.temperatures) == {'hue': 2.0, 'on': 0.5}


@pytest.mark.trains
@pytest.mark.parametrize('bias', [True, False])
def test_standardised_anew(bias):
    "A table with other means: kept regressions go on in original units; a range that was inferred anew is said"
    learn = learner(Flow('f', UnboundedRegressionBlock('heat'), BoundedRegressionBlock('level')), bias=bias)
    before, df = units(learn), table()
    df.loc[5, ['heat', 'level']] = 900.0, 60.0
    t = learn.change_flow(
        Flow('f', UnboundedRegressionBlock('heat'), BoundedRegressionBlock('level'), BinaryBlock('new')), df
    )
    assert learn.dls.flow.find('heat').std > 50
    torch.testing.assert_close(units(learn)['heat'], before['heat'], rtol=1e-4, atol=1e-2)
    assert t.note[0] == 'standardised anew, same predictions' and t.note[1].startswith('range was 10.')
    with quiet(learn):
        learn.fit(1)


def heads_flow(more=(), uses=('on',), **kw):
    on = BinaryBlock('on')
    look = Flow(
        'look', MultiLabelBlock('tags', hidden=4), BoundedRegressionBlock('level', y_range=(10, 40)), features='face'
    )
    return Flow(
        'f', on, SingleLabelBlock('hue', hidden=4), look | on, UnboundedRegressionBlock('heat', uses=uses), *more
    )


def test_heads_branches_and_uses():
    """Deep heads, a branch that waits, tasks that feed tasks: kept tasks predict the same where a task of each
    sort is added, and a new branch"""
    learn = learner(
        heads_flow(), branches=dict(face=Branch(nn.Sequential(nn.Linear(6, 5), nn.Tanh()), only_needed=True))
    )
    before = units(learn)
    necks = {n: copy.deepcopy(u.neck) for n, u in zip(learn.model[1].names, learn.model[1].units)}
    more = [
        BinaryBlock('new', hidden=4, features='hand', uses='hue'),
        BinaryBlock('new2', 'new', hidden=4, features='face'),
    ]
    t = learn.change_flow(heads_flow(more, uses=('on', 'hue')), branches=dict(hand=Branch(3, only_needed=True)))
    assert dict(zip(t.task_path, t.note)) == {p: '' for p in SAME} | {'new': 'new', 'new2': 'new'}
    assert_kept(before, units(learn), SAME)
    head = learn.model[1]
    for n, neck in necks.items():
        for a, b in zip(neck.state_dict().values(), head.units[head.names.index(n)].neck.state_dict().values()):
            assert torch.equal(a, b)
    assert sorted(map(str, (head.names[k] for k in head.waits))) == ['face', 'hand']
    with quiet(learn):
        learn.fit(1)
    before = units(learn)
    t = learn.change_flow(flow_a())  # back: level and heat have no hidden layer, tags and hue had
    assert head_of(learn) is not None  # the learner keeps its kind of head
    note = dict(zip(t.task_path, t.note))
    assert (
        note['on'] == ''
        and note['hue'].startswith('starts anew')
        and note['look.tags'].startswith('starts anew')
        and note['look.level'].startswith('starts anew')
        and note['heat'] == "no longer reads 'on', 'hue'"
    )
    assert_kept(before, units(learn), {'on': 'on'})
    with quiet(learn):
        learn.fit(1)


def test_a_stock_head_gets_branches():
    learn = learner(flow_a())
    before = units(learn)
    t = learn.change_flow(
        Flow(
            'f', *flow_a().tasks, BinaryBlock('new', features='face', uses='hue'), BinaryBlock('new2', 'new', hidden=4)
        ),
        branches=dict(face=Branch(4, only_needed=True)),
    )
    assert isinstance(learn.model[1], ConditionalHead) and any(isinstance(cb, RunNeeded) for cb in learn.cbs)
    assert_kept(before, units(learn), SAME)
    with quiet(learn):
        learn.fit(1)
    assert 'face' in learn.model[1].ran or not learn.model[1].waits
    again = units(learn)
    learn.change_flow(Flow('f', *flow_a().tasks))
    assert_kept(again, units(learn), SAME)


def test_many_changes_do_not_nest():
    learn = learner(heads_flow(), branches=dict(face=nn.Linear(6, 5)))
    names = list(learn.model.state_dict())
    before = units(learn)
    for _ in range(3):
        learn.change_flow(heads_flow())
    assert list(learn.model.state_dict()) == names
    for k, v in before.items():
        assert torch.equal(v, units(learn)[k]), k  # the same shapes: bit for bit


@checks(30)
@given(rngs)
def test_random_flows_shuffled(rng):
    "Any flow, its tasks in another order, some left out: what is kept gives the same logits"
    spec = random_spec(rng, max_tasks=7, losses=True, unsure=True)
    df = frame(spec, random_table(rng, spec, 9), rng)
    paths = [p for p, *_ in walk(spec)]
    old = build(spec, rng).bind(df)

    def shuffled(node):
        return node | dict(
            items=rng.sample([shuffled(x) if x['kind'] == 'flow' else x for x in node['items']], len(node['items']))
        )

    new = build(shuffled(spec), rng).bind(df)
    kept, a, b = kept_tasks(old, new), nn.Linear(4, old.c), nn.Linear(4, new.c)
    assert kept == {p: p for p in paths}
    notes = copy_tasks(a, old, b, new, kept)
    assert set(notes.values()) == {''}
    x = torch.randn(5, 4)
    for p in paths:
        torch.testing.assert_close(a(x)[:, old.slices[p].logits], b(x)[:, new.slices[p].logits])


def test_data_built_anew_and_other_rows():
    """DataLoaders by hand; a table with more rows keeps the split; other rows want a splitter; nothing is changed
    by an error"""
    learn = learner(flow_a())
    before = units(learn)
    dls = make_dls(table(60, 1), Flow('f', BinaryBlock('new'), *flow_a().tasks))
    learn.change_flow(dls)
    assert learn.dls is dls
    heat = units(learn)
    assert_kept(before, heat, {p: p for p in SAME if p != 'heat'})
    torch.testing.assert_close(heat['heat'], before['heat'], rtol=1e-4, atol=1e-3)
    learn = learner(flow_a())
    more = pd.concat([table(), table(6, 2).set_axis(range(100, 106))])
    learn.change_flow(flow_a(), more)
    assert (len(learn.dls.train_ds), len(learn.dls.valid_ds)) == (42, 12) and list(
        learn.dls.valid_ds.items.index
    ) == list(range(36, 48))
    was, model, metrics = learn.dls, learn.model, list(learn.metrics)
    for f, text in [
        (lambda: learn.change_flow(flow_a(), table(20)), 'hand over splitter='),
        (lambda: learn.change_flow(3), 'takes a flow, or DataLoaders'),
        (lambda: learn.change_flow(learn.dls, table()), 'leave df= and splitter= out'),
        (lambda: learn.change_flow(heads_flow()), "reads features='face'"),
        (lambda: learn.change_flow(flow_a(), renamed=dict(hui='hue')), "did you mean 'hue'"),
        (
            lambda: learn.change_flow(flow_a(), renamed=dict(on='hue')),
            "'on' is a BinaryBlock and 'hue' a SingleLabelBlock",
        ),
        (
            lambda: learn.change_flow(flow_a(), renamed=dict(look='lok')),
            "renamed=: the new flow has no 'lok' with tasks of 'look'",
        ),
        (lambda: learn.change_flow(Flow('f', BinaryBlock('zzz'))), "reads column 'zzz'"),
        (lambda: learn.change_flow(flow_a(), branches=dict(x=3)), "no task reads the branch 'x'"),
    ]:
        with pytest.raises(FlowError) as e:
            f()
        assert text in str(e.value), str(e.value)
        assert learn.dls is was and learn.model is model and learn.metrics == metrics
    with quiet(learn):
        learn.fit(1)
    learn.change_flow(flow_a(), table(20), RandomSplitter(seed=0))
    assert len(learn.dls.train_ds) == 16


def test_branch_that_is_there_is_not_named_again():
    learn = learner(heads_flow(), branches=dict(face=nn.Linear(6, 5)))
    with pytest.raises(FlowError, match="the branch 'face' is there already and keeps what it has learnt"):
        learn.change_flow(heads_flow(), branches=dict(face=nn.Linear(6, 5)))


def test_frozen_stays_frozen_and_settings_follow():
    learn = learner(flow_a())
    learn.metrics = learn.dls.flow.metrics('f1_score', 'roc_auc', 'rmse') + [AvgMetric(lambda p, y: 0.0)]
    learn.threshold_search.metric = {'on': 'accuracy', 'tags': None}
    learn.freeze()
    with quiet(learn):
        learn.change_flow(
            Flow('f', BinaryBlock('lit', 'on'), UnboundedRegressionBlock('heat'), BinaryBlock('new')),
            renamed=dict(on='lit'),
        )
    assert [m.name for m in learn.metrics][:-1] == ['lit.f1_score', 'lit.roc_auc', 'heat.rmse', 'new.accuracy'] and len(
        learn.metrics
    ) == 5
    assert learn.threshold_search.metric == {'lit': 'accuracy'}
    assert not any(p.requires_grad for p in learn.model[0].parameters()) and all(
        p.requires_grad for p in learn.model[1].parameters()
    )
    body = [p.clone() for p in learn.model[0].parameters()]
    with quiet(learn):
        learn.fit(1)
    assert all(torch.equal(a, b) for a, b in zip(body, learn.model[0].parameters()))


def test_export_load_and_grow_again(tmp_path):
    learn = learner(flow_a())
    learn.path = tmp_path
    learn.change_flow(Flow('f', BinaryBlock('new'), *flow_a().tasks))
    with quiet(learn):
        learn.fit(1)
    want = units(learn)
    learn.export('x.pkl')
    again = load_learner(tmp_path / 'x.pkl')
    for k, v in units(again).items():
        torch.testing.assert_close(v, want[k])
    with pytest.raises(FlowError, match='a loaded learner has no rows'):
        again.change_flow(flow_a())
    again.change_flow(flow_a(), table(), RandomSplitter(seed=0))
    got = units(again)
    assert_kept(want, got, {p: p for p in SAME if p != 'heat'})
    torch.testing.assert_close(got['heat'], want['heat'], rtol=1e-4, atol=1e-3)
    with quiet(again):
        again.fit(1)


def test_vocab_rules():
    df = pd.DataFrame(dict(a=[0, 1]))
    b = lambda **kw: BinaryBlock('a', **kw).bind(df)
    assert b().matching_logits(b()) == b(vocab=("n", "y")).matching_logits(b()) == [(0, 0)]
    assert b(vocab=("n", "y")).matching_logits(b(vocab=("y", "n"))) == []  # no and yes exchanged
    with pytest.raises(FlowError, match="cannot both be 'c'"):
        kept_tasks(
            Flow('f', BinaryBlock('a'), BinaryBlock('b')).bind(df.assign(b=1)),
            Flow('f', BinaryBlock('c')).bind(df.assign(c=1)),
            dict(a='c', b='c'),
        )


def test_networks_without_a_last_layer():
    learn = learner(flow_a())
    learn.model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with pytest.raises(FlowError, match='and the flow has 8 logits'):
        learn.change_flow(flow_a())
    learn.model = nn.ReLU()
    with pytest.raises(FlowError, match='the last linear layer of this'):
        learn.change_flow(flow_a())


def test_a_bare_linear_model():
    dls = make_dls(table(), flow_a())
    learn = equip(Learner(dls, nn.Linear(3, dls.c)))
    before = units(learn)
    learn.change_flow(Flow('f', BinaryBlock('new'), *flow_a().tasks))
    assert_kept(before, units(learn), SAME)
    with pytest.raises(FlowError, match='tasks with features=, hidden= or uses= need a network'):
        learn.change_flow(Flow('f', BinaryBlock('new', hidden=3)))


def test_body_of_another_learner():
    a, b = learner(flow_a()), learner(Flow('g', BinaryBlock('new')))
    assert a.body_from(b) is a
    for x, y in zip(a.model[0].state_dict().values(), b.model[0].state_dict().values()):
        assert torch.equal(x, y)
    b.model[0] = nn.Sequential(nn.Linear(3, 7), nn.ReLU())
    with pytest.raises(FlowError, match=r"parameter '0.weight' is \(6, 3\) here and \(7, 3\) in the other body"):
        a.body_from(b)
    b.model[0] = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 6))
    with pytest.raises(FlowError, match="this body has no parameter '2.weight'"):
        a.body_from(b)
    with pytest.raises(FlowError, match="the other body has no parameter '2.weight'"):
        b.body_from(a)
    with pytest.raises(FlowError, match=r'no nn.Sequential\(body, head\)'):
        a.body_from(nn.Linear(3, 3))


def test_stock_text_and_tabular_networks():
    "The last layer of fastai's text classifier is changed in its place; that of its tabular network is found"
    from fastai.tabular.model import TabularModel
    from fastai.text.all import AWD_LSTM, TextBlock, text_classifier_learner

    rng, a = np.random.default_rng(0), BinaryBlock('a')
    b = SingleLabelBlock('b', vocab=['x', 'y']) | a
    df = pd.DataFrame(
        dict(
            text=[' '.join(rng.choice(['red', 'kite', 'door', 'the'], 6)) for _ in range(24)],
            a=rng.random(24) < 0.5,
            b=rng.choice(['x', 'y'], 24),
            new=rng.random(24) < 0.5,
        )
    )
    dls = DataBlock(
        blocks=(TextBlock.from_df('text', seq_len=6, min_freq=1), Flow('f', a, b)),
        get_x=ColReader('text'),
        splitter=RandomSplitter(seed=0),
    ).dataloaders(df, bs=8, num_workers=0)
    learn = equip(
        text_classifier_learner(
            dls, AWD_LSTM, pretrained=False, config=dict(copy.deepcopy(text_config()), emb_sz=8, n_hid=8, n_layers=2)
        )
    )
    with quiet(learn):
        before = dict(zip('ab', learn.get_preds()[0].split([1, 2], 1)))
        learn.change_flow(Flow('f', BinaryBlock('new'), b, a))
        after = learn.get_preds()[0]
        for p in 'ab':
            torch.testing.assert_close(after[:, flow_of(learn).slices[p].acts], before[p])
        learn.fit(1)
    bound = flow_of(learn)
    net = TabularModel([], 3, bound.c, [8])
    assert last_layer(net, bound) is [m for m in net.modules() if isinstance(m, nn.Linear)][-1]


def text_config():
    from fastai.text.all import awd_lstm_clas_config

    return awd_lstm_clas_config


# ---- what a review found
# ----------------------------------------------------------------------------------------------
def stars_table():
    return table().assign(stars=lambda df: np.clip(np.round(df.p + 2.5), 1, 4).astype(int))


@pytest.mark.parametrize('new', [[2, 3, 4], [1, 2, 3], [1, 3, 4]])
def test_the_edges_between_ordered_classes_are_kept(new):
    "P(above a class) is what an ordinal task has learnt; classes that go take their own edge along, and no other"
    df = stars_table()
    learn = learner(Flow('f', OrdinalBlock('stars', vocab=[1, 2, 3, 4])), df)
    with torch.no_grad():
        learn.model[1][-1].bias.copy_(torch.tensor([0.3, 2.0, 0.5, -1.0]))  # edges that stand in their order
    before = units(learn, df)['stars']
    df = df[df.stars.isin(new)]
    learn.change_flow(Flow('f', OrdinalBlock('stars', vocab=new)), df, IndexSplitter([0, 1, 2]))
    after = units(learn, df)['stars']
    above = lambda p, vocab, v: p[:, vocab.index(v) + 1 :].sum(1)
    kept = [v for v in new[:-1]]
    for v in kept:
        torch.testing.assert_close(above(after, new, v), above(before, [1, 2, 3, 4], v)[df.index], rtol=1e-4, atol=1e-6)


def test_ordinal_logits_by_hand():
    b = lambda *vocab: OrdinalBlock('s', vocab=list(vocab)).bind(pd.DataFrame(dict(s=[])))
    assert b(1, 2, 3, 4).matching_logits(b(2, 3, 4)) == [(0, 0), (2, 1), (3, 2)] and b(1, 2, 3).matching_logits(
        b(0, 1, 2, 3)
    ) == [(0, 0), (1, 2), (2, 3)]
    assert b('a', 'b').matching_logits(b('c', 'd')) == [] and b('a').matching_logits(b('a')) == [(0, 0)]
    assert b(1, 2, 3, 4).matching_acts(b(2, 3, 4)) == [
        (1, 0),
        (2, 1),
        (3, 2),
    ]  # what other tasks read: a probability a class


def test_points_are_known_by_their_names():
    df = pd.DataFrame(
        {f'{p}_{a}': np.arange(12.0) * k for k, (p, a) in enumerate([(p, a) for p in 'abc' for a in 'xy'], 1)}
    )
    b = lambda names, **kw: KeypointsBlock('p', [f'{p}_{a}' for p in names for a in 'xy'], **kw).bind(df)
    assert (
        b('abc').matching_logits(b('ba')) == [(0, 2), (1, 3), (2, 0), (3, 1)] and b('ab').matching_logits(b('c')) == []
    )
    assert b('ab').matching_logits(b('ab')) == [(i, i) for i in range(4)]


@pytest.mark.trains
@pytest.mark.parametrize('bias', [True, False])
def test_counts_go_on_where_their_mean_is_another(bias):
    "The logit is a logarithm: a new unit moves it"
    df = table().assign(k=np.arange(N) % 5)
    learn = learner(Flow('f', CountBlock('k')), df, bias=bias)
    before = units(learn, df)
    t = learn.change_flow(Flow('f', CountBlock('k')), pd.concat([df, df.assign(k=9)], ignore_index=True))
    assert t.note.tolist() == ['standardised anew, same predictions'] and learn.dls.flow.find('k').span > 3
    torch.testing.assert_close(units(learn, df)['k'], before['k'], rtol=1e-4, atol=1e-5)


def test_what_is_read_of_tasks_is_rescaled_too():
    """A task reads a yes, two numbers and a count that are all standardised anew, and is itself: predictions
    stay, in original units"""
    df = table().assign(k=np.arange(N) % 5)

    def flow():
        return Flow(
            'f',
            BinaryBlock('on'),
            UnboundedRegressionBlock('level'),
            BoundedRegressionBlock('part', 'level'),
            CountBlock('k'),
            UnboundedRegressionBlock('heat', uses=('on', 'level', 'part', 'k')),
            BinaryBlock('new', uses='heat', hidden=3),
            CountBlock('k2', 'k', uses='k'),
        )

    learn = learner(flow(), df, deep=True)
    with torch.no_grad():
        for u in head_of(learn).uses:
            u.lin.weight.copy_(torch.linspace(0.3, 1.0, u.lin.weight.numel()).view_as(u.lin.weight))
    before = units(learn, df)
    t = learn.change_flow(
        flow(), pd.concat([df, df.assign(heat=df.heat * 3 + 50, level=df.level * 2, k=df.k + 4)], ignore_index=True)
    )
    after = units(learn, df)
    assert t.set_index('task_path').note.to_dict() == {p: '' for p in ('on', 'new')} | {
        p: 'standardised anew, same predictions' for p in ('level', 'k', 'k2', 'heat')
    } | {'part': t.set_index('task_path').note['part']}
    for p in ('on', 'level', 'heat', 'new', 'k', 'k2'):
        torch.testing.assert_close(after[p], before[p], rtol=1e-4, atol=1e-3, msg=lambda m: f'{p}: {m}')


def test_the_third_part_stays_apart_in_another_flow():
    "Rows that neither train nor validate do neither afterwards: with the learner's own rows, and with a larger table"
    parts = ['train'] * 24 + ['valid'] * 12 + ['test'] * 12
    more = pd.concat([table().assign(part=parts), table(6, 2).set_axis(range(100, 106)).assign(part='train')])
    for df in (None, more):
        learn = learner_of_parts(parts)
        learn.change_flow(Flow('g', BinaryBlock('new'), *flow_a().tasks), df)
        train, valid, test = (list(part.dataset.items.index) for part in learn.dls.loaders)
        assert train == [*range(24), *(range(100, 106) if df is not None else ())]
        assert valid == list(range(24, 36)) and test == list(range(36, 48))
        heat = learn.dls.flow.tasks['heat']
        assert heat.mean == pytest.approx((table() if df is None else df).loc[train].heat.mean())
        with learn.no_bar():
            scores = learn.evaluate(ds_idx=2, metrics='accuracy').set_index('task_path')
        assert scores.num_samples['new'] == 12


def learner_of_parts(parts):
    "A learner whose data has three parts"
    where = lambda part: [i for i, name in enumerate(parts) if name == part]
    splitter = lambda df: tuple(where(part) for part in ('train', 'valid', 'test'))
    block = DataBlock(blocks=(None_block(), flow_a()), get_x=Vec(), splitter=splitter)
    dls = block.dataloaders(table().assign(part=parts), bs=8, num_workers=0)
    return equip(Learner(dls, nn.Sequential(nn.Sequential(nn.Linear(3, 6), nn.ReLU()), nn.Linear(6, dls.c))))


def test_a_new_row_of_a_group_that_validates_is_told():
    df = table().assign(who=np.arange(N) // 4)
    splitter = GroupSplitter('who', seed=0)
    dls = DataBlock(blocks=(None_block(), flow_a()), get_x=Vec(), splitter=splitter).dataloaders(
        df, bs=8, num_workers=0
    )
    learn = equip(Learner(dls, nn.Sequential(nn.Sequential(nn.Linear(3, 6), nn.ReLU()), nn.Linear(6, dls.c))))
    of_valid, of_train = (part.items.who.iloc[0] for part in (dls.valid_ds, dls.train_ds))
    more = lambda who: pd.concat([df, table(2, 3).set_axis([100, 101]).assign(who=who)])
    with pytest.raises(FlowError, match="group_col='who': group .* stands on both sides of the split"):
        learn.change_flow(flow_a(), more(of_valid))
    learn.change_flow(flow_a(), more(of_train))
    assert len(learn.dls.train_ds) == len(dls.train_ds) + 2


def test_classes_in_another_order_start_anew():
    "P(above a class) means something else where other classes stand above it"
    df = stars_table()
    for vocab, note in (([4, 3, 2, 1], 'starts anew'), ([2, 1, 3, 4], 'starts anew'), ([1, 2, 3, 4, 5], '4 of 5 rows')):
        told = learner(Flow('f', OrdinalBlock('stars', vocab=[1, 2, 3, 4])), df)
        told = told.change_flow(Flow('f', OrdinalBlock('stars', vocab=vocab)))
        assert told.note[0].startswith(note), (vocab, told.note[0])


def test_weighted_draws_stay_with_their_rows():
    "`dls.balanced` holds for the learner's own rows in another flow; other rows have no weights, which is said"
    df = table().assign(rare=[1.0] + [0.0] * 11 + [1.0] + [0.0] * 35)
    learn = learner(flow_a(), df)
    learn.dls = learn.dls.balanced('rare', seed=0)
    grown = Flow('g', BinaryBlock('new'), *flow_a().tasks)
    learn.change_flow(grown)
    drawn = np.concatenate([learn.dls.train.get_idxs() for _ in range(50)])
    assert len(drawn) == 50 * 36 and np.isin(drawn, [0, 12]).mean() == pytest.approx(0.5, abs=0.05)
    with pytest.warns(FlowWarning, match='drawn by weights'):
        learn.change_flow(grown, pd.concat([df, table(6, 2).set_axis(range(100, 106)).assign(rare=0.0)]))
    assert sorted(learn.dls.train.get_idxs()) == list(range(42))
