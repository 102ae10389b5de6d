"""A network of members: the loss of several answers a row against a loop over the answers, the members against a loop
over the layers, and what a user does with such a learner"""

import copy
import numpy as np, pandas as pd, pytest, torch
from torch.nn import functional as F
from fastai.callback.training import GradientAccumulation
from fastai.learner import Learner, load_learner
from fastai.tabular.all import TabularModel, set_seed, tabular_learner
from fastai_condmtl.all import (
    BinaryBlock,
    Flow,
    FlowError,
    GradientCosine,
    MultiLabelBlock,
    SingleLabelBlock,
    UnboundedRegressionBlock,
)
from fastai_condmtl.callback.parallel import BalancedTrainer
from fastai_condmtl.learn.last_layers import last_layers
from fastai_condmtl.loss.conditional import ConditionalLoss
from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders, TableNetwork, conditional_tabular_learner
from fastai_condmtl.tabular.members import MemberHead, MemberLinear

N, K = 160, 8


def table(n=N, seed=0):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame(dict(x=rng.normal(size=n), z=rng.gamma(2, 3, n), same=1.5, colour=rng.choice(list('rgb'), n)))
    df['a'] = (df.x > 0).map({True: 'yes', False: 'no'})
    df['b'] = np.where(df.z > 5, 'big', rng.choice(['mid', 'low'], n))
    df['n'] = df.z * 3 + 50 + rng.normal(size=n)
    df['m'], df['o'] = rng.random(n) < 0.3, rng.random(n) < 0.6
    df['w'] = rng.integers(1, 4, n)
    df.loc[rng.random(n) < 0.1, 'b'] = None
    df.loc[rng.random(n) < 0.1, 'z'] = None
    return df


def flow(**kwargs):
    a = BinaryBlock('a', vocab=('no', 'yes'))
    tasks = SingleLabelBlock('b') | a, UnboundedRegressionBlock('n') | a, MultiLabelBlock('m', cols=['m', 'o'])
    return Flow('f', a, *tasks, **kwargs)


def loaders(df=None, own=None, **kwargs):
    df, own = table() if df is None else df, flow() if own is None else own
    names = dict(cat_names=['colour'], cont_names=['x', 'z', 'same'])
    return ConditionalTabularDataLoaders.from_df(df, own, **{**names, 'seed': 0, 'bs': 32, **kwargs})


def learner(dls=None, *args, layers=(16, 8), **kwargs):
    set_seed(0)
    return conditional_tabular_learner(loaders() if dls is None else dls, list(layers), *args, **kwargs)


def quiet(learn, n=1, **kwargs):
    with learn.no_bar(), learn.no_logging():
        learn.fit(n, 1e-2, **kwargs)
    return learn


# ---- the loss of several answers a row
@pytest.fixture(scope='module', params=[None, 'w'], ids=['rows_alike', 'rows_weigh'])
def answers(request):
    bound = flow(weight_col=request.param).bind(table())
    y = bound.encode(table())
    pred = torch.randn(N, K, bound.c, generator=torch.Generator().manual_seed(0))
    return ConditionalLoss(bound), pred, y


def test_the_loss_is_the_mean_of_the_losses_of_all_answers(answers):
    loss, pred, y = answers
    of_each = lambda f: torch.stack([f(pred[:, j]) for j in range(K)]).mean(0)
    torch.testing.assert_close(loss(pred, y), of_each(lambda p: loss(p, y)))
    torch.testing.assert_close(loss(pred, y.flatten(1)), loss(pred, y))
    torch.testing.assert_close(loss.per_task(pred, y), of_each(lambda p: loss.per_task(p, y)))
    torch.testing.assert_close(loss.sums(pred, y), of_each(lambda p: loss.sums(p, y)))
    rows = loss.per_sample(pred, y)
    assert rows.shape == (N, 4) and rows.isnan().any()
    torch.testing.assert_close(rows, of_each(lambda p: loss.per_sample(p, y)), equal_nan=True)
    share = torch.rand(N, generator=torch.Generator().manual_seed(1))
    for own in (None, 0.25, share):
        found, present = loss.task_losses(pred, y, own)
        torch.testing.assert_close(found, of_each(lambda p: loss.task_losses(p, y, own)[0]))
        assert present.all()


@pytest.mark.parametrize('reduction', ['none', 'sum'])
def test_reductions_count_rows_and_not_answers(answers, reduction):
    loss, pred, y = ConditionalLoss(answers[0].flow, reduction), *answers[1:]
    found = loss(pred, y)
    torch.testing.assert_close(found, torch.stack([loss(pred[:, j], y) for j in range(K)]).mean(0))
    assert found.shape == ((N,) if reduction == 'none' else ())


def test_answers_of_a_wrong_width_are_an_error(answers):
    loss, pred, y = answers
    with pytest.raises(FlowError, match='the flow needs'):
        loss(pred[:, :, :3], y)


# ---- the network
def one_member(net, j, cats, conts):
    "What member `j` says, layer by layer, in prediction"
    x = torch.cat([*(embed(cats[:, i]) for i, embed in enumerate(net.embeds)), net.numbers(conts)], 1)
    for layer in [layer for part in net.layers[1:] for layer in part]:
        if isinstance(layer, MemberLinear):
            x = F.linear(x * layer.scale_in[j], layer.shared.weight) * layer.scale_out[j] + layer.bias[j]
        elif isinstance(layer, torch.nn.ReLU):
            x = x.relu()
        elif isinstance(layer, torch.nn.BatchNorm1d):
            x = (x - layer.running_mean) / (layer.running_var + layer.eps).sqrt() * layer.weight + layer.bias
        elif isinstance(layer, MemberHead):
            x = F.linear(x, layer.weight[:, j], layer.bias[:, j])
    return x


def test_logits_are_the_mean_of_the_members():
    learn = quiet(learner(start=None))
    net, (cats, conts, _) = learn.model.eval(), learn.dls.valid.one_batch()
    each = torch.stack([one_member(net, j, cats, conts) for j in range(K)], 1)
    torch.testing.assert_close(net(cats, conts), each.mean(1), atol=1e-5, rtol=1e-4)
    assert (each.std(1) > 1e-4).all()  # members differ
    net.training = True  # members apart, batch norm and dropout as in prediction
    torch.testing.assert_close(net(cats, conts), each, atol=1e-5, rtol=1e-4)


def test_fastais_network_is_an_argument_away():
    dls = loaders()
    set_seed(3)
    stock = tabular_learner(dls, [16, 8], config=dict(embed_p=0.1))
    set_seed(3)
    ours = conditional_tabular_learner(
        dls, [16, 8], dict(embed_p=0.1), numbers=None, members=1, ps=0.0, start=None, tune=None, metrics=[]
    )
    assert type(ours.model) is TabularModel and str(ours.model) == str(stock.model)
    for a, b in zip(ours.model.state_dict().values(), stock.model.state_dict().values()):
        assert torch.equal(a, b)


def test_defaults_and_arguments():
    net = learner().model
    drops = lambda net: [m.p for m in net.layers.modules() if isinstance(m, torch.nn.Dropout)]
    assert isinstance(net, TableNetwork) and net.members == 8 and net.numbers.weight.shape == (3, 16, 8)
    assert drops(net) == [0.3, 0.3] and drops(learner(ps=0.1).model) == [0.1, 0.1]
    assert drops(learner(config=dict(ps=[0.2, 0.5])).model) == [0.2, 0.5] and drops(learner(ps=0.0).model) == []
    assert learner(members=3).model.layers[0].k == 3 and learner(numbers=None).model.numbers is None
    assert learner(members=1).model.numbers is not None
    assert learner(emb_szs=dict(colour=5)).model.embeds[0].embedding_dim == 5
    for wrong in (True, 0, 2.5, '8', None):
        with pytest.raises(FlowError, match=r'members=.* must be a positive whole number'):
            learner(members=wrong)
    with pytest.raises(FlowError, match='numbers='):
        learner(numbers='linear')


@pytest.mark.parametrize(
    'names', [dict(cat_names=[]), dict(cont_names=[]), dict(cat_names=['colour'], cont_names=['same'])]
)
@pytest.mark.parametrize('layers', [(8,), ()])
def test_tables_of_any_columns(names, layers):
    learn = quiet(learner(loaders(**names), layers=layers))
    with learn.no_bar():
        assert learn.get_preds()[0].isfinite().all()


@pytest.mark.parametrize('config', [dict(bn_final=True), dict(lin_first=False), dict(use_bn=False, embed_p=0.2)])
def test_every_config_trains(config):
    learn = quiet(learner(config=config))
    assert np.isfinite(learn.recorder.values).all()


def test_numbers_far_away_and_a_constant_column():
    "What a constant column said once is all that it can say"
    learn, df = quiet(learner()), table()[:5]
    far = df.assign(x=1e12, z=-1e12)
    with learn.no_bar(), learn.no_logging():
        assert learn.get_preds(dl=learn.dls.test_dl(far))[0].isfinite().all()
        same, other = (learn.get_preds(dl=learn.dls.test_dl(d))[0] for d in (df, df.assign(same=7.0)))
    assert torch.equal(same, other)


# ---- what one does with it
def test_each_member_starts_at_the_trivial_predictors():
    learn = learner()
    layer = last_layers(learn.model, learn.dls.flow)[0]
    bias = layer.module.bias
    assert bias.shape == (learn.dls.c, K) and (bias == bias[:, :1]).all()
    trivial = bias[:, 0].detach().expand(32, K, -1)
    cats, conts, y = learn.dls.train.one_batch()
    for train in (True, False):
        own = trivial if train else trivial[:, 0]
        found = learn.loss_func(learn.model.train(train)(cats, conts), y)
        torch.testing.assert_close(found, learn.loss_func(own, y), rtol=0.01, atol=0)


def test_learners_learn():
    learn = quiet(learner(loaders(table(600))), 8)
    first, last = learn.recorder.values[0], learn.recorder.values[-1]
    assert last[1] < first[1]
    with learn.no_bar():
        assert learn.evaluate(metrics='roc_auc').set_index('task_path').metric_res['a'] > 0.95


def test_a_stock_learner_trains_the_same_network():
    learn = learner()
    quiet(Learner(learn.dls, learn.model))


def test_files_and_other_data(tmp_path):
    learn, df = quiet(learner(path=tmp_path)), table()
    with learn.no_bar(), learn.no_logging():
        before = learn.predict_df(df)
        learn.export('all.pkl')
        again = load_learner(tmp_path / 'all.pkl')
        with again.no_bar():
            pd.testing.assert_frame_equal(again.predict_df(df), before, atol=1e-5)
        assert str(again.predict(df.iloc[0])[0]) == str(learn.predict(df.iloc[0])[0])
        learn.save('w')
        shifted = df.assign(x=df.x * 3 + 1, z=df.z + 2)
        other = learner(loaders(shifted), path=tmp_path)
        edges = other.model.numbers.left.clone()
        other.load('w')  # edges are loaded with the weights
        assert not torch.equal(other.model.numbers.left, edges)
        assert torch.equal(other.model.numbers.left, learn.model.numbers.left)
        learn.dls = loaders(shifted)
        pd.testing.assert_frame_equal(learn.predict_df(df), before, atol=1e-4)
        assert learn.explain(df[:2]).contains((0, 'a')) and len(learn.explain(max_n=2).children('')) == 2
    quiet(learn)


@pytest.mark.parametrize('members', [1, 8])
def test_an_exported_table_network_of_fastai_loads(tmp_path, members):
    learn = quiet(learner(path=tmp_path, numbers=None, members=members))
    learn.export('old.pkl')
    again = load_learner(tmp_path / 'old.pkl')
    with again.no_bar(), learn.no_bar():
        pd.testing.assert_frame_equal(again.predict_df(table()), learn.predict_df(table()), atol=1e-5)


def test_the_flow_changes():
    "Kept tasks say what they said, in original units, also where the new table has another mean and spread"
    learn, df = quiet(learner(), 3), table()
    with learn.no_bar(), learn.no_logging():
        before = learn.predict_df(df)
        acts = learn.get_preds(dl=learn.dls.test_dl(df))[0]
        more = df.assign(n=df.n * 2 + 7, new=df.x < 1)
        a = BinaryBlock('a', vocab=('no', 'yes'))
        new = Flow('f', BinaryBlock('new'), UnboundedRegressionBlock('n') | a, a)
        notes = learn.change_flow(loaders(more, new)).set_index('task_path').note
        after = learn.get_preds(dl=learn.dls.test_dl(df))[0]
        values = learn.predict_df(df)
    assert notes['n'] == 'standardised anew, same predictions' and notes['new'] == 'new' and notes['a'] == ''
    head = last_layers(learn.model, learn.dls.flow)[0].module
    assert type(head) is MemberHead and head.weight.shape == (3, K, 8)
    torch.testing.assert_close(after[:, learn.dls.flow.slices['a'].acts.start], acts[:, 0])
    both = before.n.notna() & values.n.notna()
    np.testing.assert_allclose(values.n[both].astype(float), before.n[both].astype(float), rtol=1e-4)
    assert both.any() and learn.loss_func.flow.c == 3
    quiet(learn)


def test_frozen_and_unfrozen():
    learn = learner()
    learn.freeze()
    learn.unfreeze()
    assert all(p.requires_grad for p in learn.model.parameters())
    moved = {name: p.detach().clone() for name, p in learn.model.named_parameters()}
    quiet(learn)
    same = [name for name, p in learn.model.named_parameters() if torch.equal(p, moved[name])]
    assert same == []


def test_biases_have_no_weight_decay():
    learn = learner()
    learn.create_opt()
    spared = [p for p, state in learn.opt.state.items() if not state.get('do_wd', True)]
    net = learn.model
    for own in (net.numbers.bias, last_layers(net, learn.dls.flow)[0].module.bias):
        assert any(p is own for p in spared)
    assert not any(p is net.numbers.weight for p in spared)


@pytest.mark.parametrize('balance', ['static', 'uncertainty', 'famo', 'stch', 'pcgrad', 'mgda'])
def test_balancers_see_rows(balance):
    learn = quiet(learner(balance=balance))
    assert learn.task_balance.weights.notna().any(axis=None)


def test_static_balance_trains_as_none_does():
    plain, static = quiet(learner()), quiet(learner(balance='static'))
    for a, b in zip(plain.model.parameters(), static.model.parameters()):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_gradients_are_watched():
    cosine = GradientCosine(every=1)
    quiet(learner(), cbs=cosine)
    assert (cosine.counts.to_numpy() > 0).all() and np.allclose(np.diag(cosine.cosine), 1, atol=1e-4)


def test_scores_of_training_batches_are_those_of_the_mean():
    learn = learner()
    learn.recorder.train_metrics = True
    quiet(learn)
    assert len(learn.recorder.metric_names) > len(learn.metrics) and np.isfinite(learn.recorder.values[0][0])


def test_accumulated_gradients_count_rows(monkeypatch):
    "A step for each 64 rows: of 128 rows in batches of 32 these are two"
    learn, steps = learner(), []
    learn.create_opt()
    step = learn.opt.step
    monkeypatch.setattr(learn.opt, 'step', lambda *args, **kwargs: (steps.append(1), step(*args, **kwargs)))
    quiet(learn, cbs=GradientAccumulation(64))
    assert len(learn.dls.train_ds) == 128 and len(steps) == 2


@pytest.mark.parametrize('chunks', [1, 2])
def test_parts_of_a_batch_on_several_devices(chunks):
    "With dropout and batch norm out, parts train as the whole does"
    config = dict(use_bn=False)
    plain = quiet(learner(config=config, ps=0.0))
    parts = quiet(learner(config=config, ps=0.0, cbs=BalancedTrainer(chunks=chunks)))
    for a, b in zip(plain.model.parameters(), parts.model.parameters()):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_lr_find_leaves_the_network():
    learn = learner()
    before = copy.deepcopy(learn.model.state_dict())
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=5, show_plot=False)
    assert all(torch.equal(value, before[name]) for name, value in learn.model.state_dict().items())


def test_a_column_may_be_called_c():
    "`dls.c` is then this column"
    df = table().rename(columns=dict(colour='c'))
    assert learner(loaders(df, cat_names=['c'])).model.layers[-1][0].out_features == flow().bind(df).c
