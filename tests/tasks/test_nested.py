"""Classes that nest: masks, losses, decisions, probabilities and scores against loops over rows, sets and paths; a
conflict is an error that names the row; everything survives files"""

import math
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.learner import load_learner
from hypothesis import given, settings, strategies as st

from fastai_condmtl.all import *
from fastai_condmtl.core.bound import BoundFlow
from fastai_condmtl.deploy.onnx import Deployed
import fastai_condmtl.deploy.bound_dict  # noqa: F401

DEPTH = ('top', 'mid', 'leaf')


def tree(seed, depth=3):
    "Of each level: class → the class above it; some classes have none below"
    rng = np.random.default_rng(seed)
    levels = [{f'top{k}': None for k in range(rng.integers(2, 4))}]
    for level in DEPTH[1:depth]:
        above = list(levels[-1])
        with_parts = rng.choice(above, rng.integers(1, len(above) + 1), replace=False)
        names = [(of, j) for of in with_parts for j in range(rng.integers(1, 4))]
        rng.shuffle(names)
        levels.append({f'{level}{k}': str(of) for k, (of, _) in enumerate(names)})
    return levels


def rows_of(levels, n, seed, blank=0.2):
    "A table with a random path a row, and blanks"
    rng, rows = np.random.default_rng(seed), []
    for k in range(n):
        row, above = {}, None
        for name, level in zip(DEPTH, levels):
            below = [c for c, of in level.items() if of == above]
            above = str(rng.choice(below)) if below else math.nan
            row[name] = above
            if above != above:
                above = object()
        rows.append(row)
    df = pd.DataFrame(rows, dtype=object)
    return df.mask(rng.random(df.shape) < blank)


def blocks_of(levels, decode='path', told=True, **kwargs):
    res = [SingleLabelBlock('top', vocab=list(levels[0]))]
    for name, level in zip(DEPTH[1:], levels[1:]):
        joint = decode if name == DEPTH[len(levels) - 1] else 'path'
        within = (res[-1], dict(level)) if told else res[-1]
        res.append(SingleLabelBlock(name, within=within, decode=joint, **kwargs))
    return res


def flow_of_levels(levels, *more, **kwargs):
    blocks = blocks_of(levels, **kwargs)
    return Flow('f', *reversed(blocks), *more)  # any order of writing


def acts_of(bound, n, seed):
    loss = ConditionalLoss(bound)
    logits = torch.randn(n, bound.c, generator=torch.Generator().manual_seed(seed)) * 2
    return loss, logits, loss.activation(logits)


def by_name(bound, acts):
    "For each row: level → class → P(class | class above)"
    names = [p for p in DEPTH if p in bound.tasks]
    own = {p: acts[:, bound.slices[p].acts].double().numpy() for p in names}
    return [{p: dict(zip(bound.tasks[p].vocab, own[p][i])) for p in names} for i in range(len(acts))]


def chain_of(levels, name):
    "A class with those above it, outermost first"
    level = next(k for k, classes in enumerate(levels) if name in classes)
    res = [name]
    for k in range(level, 0, -1):
        res.insert(0, levels[k][res[0]])
    return res


def leaves_of(levels):
    "All paths that end where nothing stands below"
    names = [c for level in levels for c in level]
    above = {of for level in levels[1:] for of in level.values()}
    return [chain_of(levels, name) for name in names if name not in above]


SEEDS = st.integers(0, 10_000)


@given(SEEDS)
@settings(deadline=None, max_examples=25)
def test_labels_count_where_the_classes_above_are_known_or_follow(seed):
    levels = tree(seed)
    df = rows_of(levels, 30, seed)
    bound = flow_of_levels(levels).bind(df)
    y = bound.encode(df)
    for i, row in enumerate(df.to_dict('records')):
        known = {name: row[name] == row[name] and row[name] is not None for name in DEPTH}
        for level, name in enumerate(DEPTH):
            counts = known[name]
            column = bound.slices[name].targets.start
            assert bool(y[i, 1, column]) == counts, (row, name)
            if counts:
                assert bound.tasks[name].vocab[int(y[i, 0, column])] == row[name]


def test_a_class_that_says_otherwise_is_not_overruled():
    df = pd.DataFrame(dict(top=['a', 'b', None, 'b'], mid=['a1', 'b1', 'b1', 'a1'], leaf=['x', None, None, 'x']))
    told = SingleLabelBlock('top'), dict(a1='a', b1='b')
    mid = SingleLabelBlock('mid', within=told)
    flow = Flow('f', told[0], mid, BinaryBlock('leaf', vocab=('y', 'x')) | mid.eq('a1'))
    y = flow.bind(df).encode(df)
    assert y[:, 1].int().tolist() == [[1, 1, 1], [1, 1, 0], [0, 1, 0], [1, 0, 0]]
    found = flow.bind(df).audit(df)
    assert found.table.set_index('task_path').labelled_if_false['mid'] == 1
    assert "1 row holds a sub-class of another class than 'top' says" in str(found)


def test_infer_labels_fills_the_class():
    df = pd.DataFrame(dict(top=['a', None, None], mid=['a1', 'b1', None]))
    top = SingleLabelBlock('top', vocab=['a', 'b'])
    mid = SingleLabelBlock('mid', within=(top, dict(a1='a', b1='b')))
    asks = BinaryBlock('asks') | top.eq('b')
    table = df.assign(asks=[None, 1, None])
    masks = {
        infer: Flow('f', top, mid, asks, infer_labels=infer).bind(table).encode(table)[:, 1].int().tolist()
        for infer in (False, True, 'train')
    }
    assert masks[False] == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]  # other conditions do not see what follows
    assert masks[True] == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert masks['train'] == [[1, 1, 0], [1, 1, 1], [0, 0, 0]]
    both = Flow('f', top, mid, infer_labels='train').bind(df)
    assert both.encode(df)[1, 0].tolist() == [1, 1]


@given(SEEDS, st.sampled_from([{}, dict(label_smoothing=0.2), dict(loss='focal', gamma=1.5), dict(weights=True)]))
@settings(deadline=None, max_examples=25)
def test_the_loss_is_a_cross_entropy_among_siblings(seed, how):
    levels = tree(seed)
    how = dict(how)
    df = rows_of(levels, 20, seed)
    if how.pop('weights', False):
        weights = {name: np.random.default_rng(seed).uniform(0.5, 2, len(levels[k])) for k, name in enumerate(DEPTH)}
    else:
        weights = {name: None for name in DEPTH}
    top = SingleLabelBlock('top', vocab=list(levels[0]))
    mid = SingleLabelBlock('mid', within=(top, levels[1]), class_weights=weights['mid'], **how)
    leaf = SingleLabelBlock('leaf', within=(mid, levels[2]), class_weights=weights['leaf'], **how)
    bound = Flow('f', top, mid, leaf).bind(df)
    loss, logits, acts = acts_of(bound, len(df), seed)
    y = bound.encode(df)
    per_row = loss.per_sample(logits, y)
    for level, name in enumerate(DEPTH[1:], 1):
        vocab, own = bound.tasks[name].vocab, logits[:, bound.slices[name].logits]
        for i, value in enumerate(df[name]):
            if value is None or value != value:
                assert torch.isnan(per_row[i, level])
                continue
            among = [k for k, c in enumerate(vocab) if levels[level][c] == levels[level][value]]
            target = torch.tensor([among.index(vocab.index(value))])
            weight = None if weights[name] is None else torch.tensor(weights[name][among], dtype=torch.float32)
            if 'loss' in how:
                p = own[i, among].softmax(0)[target]
                expected = -((1 - p) ** 1.5) * p.log()
            else:
                expected = F.cross_entropy(
                    own[i : i + 1, among],
                    target,
                    weight=weight,
                    label_smoothing=how.get('label_smoothing', 0.0),
                    reduction='none',
                )
            torch.testing.assert_close(per_row[i, level], expected[0], rtol=1e-4, atol=1e-5)
    logits = logits.requires_grad_()
    loss(logits, y).backward()
    assert torch.isfinite(logits.grad).all()


def best_path(levels, probs, joint):
    "The decided path of one row, by trying all"
    if joint:
        value = lambda path: math.prod(probs[DEPTH[k]][c] for k, c in enumerate(path))
        return max(leaves_of(levels), key=value)
    path, above = [], None
    for name, level in zip(DEPTH, levels):
        below = [c for c, of in level.items() if of == above]
        if not below:
            break
        above = max(below, key=probs[name].get)
        path.append(above)
    return path


@given(SEEDS, st.sampled_from(['path', 'joint']), st.integers(2, 3))
@settings(deadline=None, max_examples=40)
def test_decisions_are_the_best_path_and_never_contradict(seed, decode, depth):
    levels = tree(seed, depth)
    df = rows_of(levels, 5, seed)
    bound = flow_of_levels(levels, decode=decode).bind(df)
    loss, logits, acts = acts_of(bound, 40, seed)
    decoded = loss.decodes(acts)
    for i, probs in enumerate(by_name(bound, acts)):
        pred = FlowPrediction(bound, decoded[i], acts[i])
        path = best_path(levels, probs, decode == 'joint')
        decided = [pred[name] for name in DEPTH[:depth]]
        assert decided == [*path, *[None] * (depth - len(path))]
        assert chain_of(levels, path[-1]) == path
    values = loss.decide(acts)  # unreached tasks decide, too: sub-classes stand in a class that leads to some
    assert torch.equal(decoded[:, 0].as_subclass(torch.Tensor), values)


@given(SEEDS)
@settings(deadline=None, max_examples=25)
def test_probabilities_are_products_and_marginals_count_paths(seed):
    levels = tree(seed)
    asked = list(levels[2])[: max(1, len(levels[2]) // 2)]
    blocks = blocks_of(levels)
    more = [BinaryBlock('x') | blocks[2].isin(asked), BinaryBlock('z') | ~blocks[1].eq(list(levels[1])[0])]
    df = rows_of(levels, 5, seed).assign(x=[0, 1, 0, 1, 1], z=1)
    bound = Flow('f', *blocks, *more).bind(df)
    loss, logits, acts = acts_of(bound, 6, seed)
    decoded = loss.decodes(acts)
    for i, probs in enumerate(by_name(bound, acts)):
        pred = FlowPrediction(bound, decoded[i], acts[i])
        whole = {c: math.prod(probs[DEPTH[k]][a] for k, a in enumerate(chain_of(levels, c))) for l in levels for c in l}
        for level, name in enumerate(DEPTH):
            told, reached = pred.probabilities[name], sum(whole[c] for c in levels[level])
            assert sum(told.values()) == pytest.approx(1, abs=1e-5)
            assert pred.marginals[name].reached == pytest.approx(reached, abs=1e-5)
            for c in levels[level]:
                assert told[c] == pytest.approx(whole[c] / reached, abs=1e-5)
                assert pred.marginals[name].values[c] == pytest.approx(whole[c], abs=1e-5)
        assert pred.marginals['x'].reached == pytest.approx(sum(whole[c] for c in asked), abs=1e-5)
        not_first = sum(whole[c] for c in list(levels[1])[1:])
        assert pred.marginals['z'].reached == pytest.approx(not_first, abs=1e-5)


def learner(bound_df, flow, seed=0, **kwargs):
    torch.manual_seed(seed)
    df = bound_df.assign(**{f'x{k}': np.random.default_rng(k).normal(size=len(bound_df)) for k in range(3)})
    from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders, conditional_tabular_learner

    dls = ConditionalTabularDataLoaders.from_df(df, flow, cont_names=['x0', 'x1', 'x2'], valid_pct=0.5, seed=0, bs=16)
    return df, conditional_tabular_learner(dls, **kwargs)


@pytest.mark.parametrize('decode', ['path', 'joint'])
def test_hierarchical_scores_are_those_of_sets(decode):
    "HiClass's definition, by sets of nodes; the accuracy is that of what is decided"
    levels = [dict(a=None, b=None, c=None), dict(a1='a', a2='a', b1='b', b2='b'), dict(x='a1', y='a1', z='b2', w='b2')]
    df, learn = learner(rows_of(levels, 400, 5), flow_of_levels(levels, decode=decode), numbers=None, members=1)
    for parameter in learn.model.layers[-1].parameters():
        torch.nn.init.normal_(parameter)  # so that all is decided somewhere
    names = ('hierarchical_precision', 'hierarchical_recall', 'hierarchical_f1', 'accuracy')
    table = learn.evaluate(metrics=names).set_index(['task_path', 'metric_name'])
    rows = learn.dls.valid_ds.items
    preds = [learn.predict(row)[0] for _, row in df.loc[rows.index].iterrows()]
    for level, name in enumerate(DEPTH[1:], 1):
        n_common = n_decided = n_true = 0
        for (_, row), pred in zip(df.loc[rows.index].iterrows(), preds):
            if row[name] is None or row[name] != row[name]:
                continue
            beta = set(chain_of(levels, row[name]))
            alpha = {pred[of] for of in DEPTH[: level + 1]} - {None}
            n_common, n_decided, n_true = n_common + len(alpha & beta), n_decided + len(alpha), n_true + len(beta)
        precision, recall = n_common / n_decided, n_common / n_true
        got = table.metric_res[name]
        assert got['hierarchical_precision'] == pytest.approx(precision)
        assert got['hierarchical_recall'] == pytest.approx(recall)
        assert got['hierarchical_f1_score'] == pytest.approx(2 * precision * recall / (precision + recall))
        reached = [
            pred[name] == row[name]
            for (_, row), pred in zip(df.loc[rows.index].iterrows(), preds)
            if isinstance(row[name], str) and pred[name] is not None
        ]
        assert table.cascade_res[name]['accuracy'] == pytest.approx(np.mean(reached))
    acc = [m.name for m in learn.dls.flow.metrics('hierarchical_f1')]
    assert acc == ['leaf.hierarchical_f1_score', 'mid.hierarchical_f1_score']


def test_a_training_and_what_comes_after(tmp_path):
    "Learn a table that can be learnt; predictions, trees, files and graphs say the same"
    rng = np.random.default_rng(0)
    n, levels = 400, [dict(a=None, b=None, c=None), dict(a1='a', a2='a', b1='b', b2='b')]
    x = rng.normal(size=(n, 2))
    top = np.where(x[:, 0] > 0.4, 'a', np.where(x[:, 0] < -0.4, 'b', 'c'))
    mid = [None if t == 'c' else f'{t}{1 + int(v > 0)}' for t, v in zip(top, x[:, 1])]
    df = pd.DataFrame(dict(top=top, mid=mid, u=x[:, 0], v=x[:, 1]))
    from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders, conditional_tabular_learner

    t = SingleLabelBlock('top')
    flow = Flow('f', t, SingleLabelBlock('mid', within=t))
    dls = ConditionalTabularDataLoaders.from_df(df, flow, cont_names=['u', 'v'], valid_pct=0.25, seed=0, bs=32)
    learn = conditional_tabular_learner(dls, layers=[32])
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(15, 0.02)
    scores = learn.evaluate(metrics=['accuracy', 'hierarchical_f1']).set_index(['task_path', 'metric_name'])
    assert (scores.metric_res > 0.8).all()
    table = learn.predict_df(df)
    assert (table.mid.isna() == (table.top == 'c')).all()
    inside = table.mid.notna()
    assert (table.mid[inside].str[0] == table.top[inside]).all()
    print(learn.explain(df[:2]))
    learn.export(tmp_path / 'a.pkl')
    again = load_learner(tmp_path / 'a.pkl')
    assert again.predict_df(df).equals(table)
    marginals = learn.get_marginals(df[:5])
    assert np.allclose(marginals['mid'].drop(columns='P(reached)').sum(axis=1), marginals['mid', 'P(reached)'])
    learn.calibrate()
    deployed = Deployed(learn.model.cpu(), learn.loss_func).eval()
    inputs = torch.zeros(5, 0, dtype=torch.long), torch.randn(5, 2)
    with torch.no_grad():
        vals, acts, reached = deployed(*inputs)
        expected = learn.loss_func.decodes(learn.loss_func.activation(learn.model.eval()(*inputs)))
    assert torch.equal(vals, expected[:, 0].as_subclass(torch.Tensor))
    rows = torch.export.Dim('rows', min=1, max=1000)
    program = torch.export.export(deployed, inputs, dynamic_shapes=(({0: rows}, {0: rows}),), strict=True)
    more = torch.zeros(9, 0, dtype=torch.long), torch.randn(9, 2)
    for got, want in zip(program.module()(*more), deployed(*more)):
        torch.testing.assert_close(got, want)


def test_files():
    levels = tree(3)
    df = rows_of(levels, 40, 3)
    for told in (True, False):
        flow = flow_of_levels(levels, decode='joint', told=told)
        if not told:
            df = df.dropna()
        again = Flow.from_json(flow.to_json())
        assert again.to_json() == flow.to_json() and repr(again) == repr(flow)
        bound, other = flow.bind(df), again.bind(df)
        assert repr(bound) == repr(other)
        assert torch.equal(bound.encode(df), other.encode(df))
        kept = BoundFlow.from_dict(bound.to_dict())
        pickled = pickle.loads(pickle.dumps(bound))
        loss, logits, acts = acts_of(bound, 20, 0)
        for copy in (kept, pickled, other):
            assert repr(copy) == repr(bound)
            assert torch.equal(ConditionalLoss(copy).decodes(acts), loss.decodes(acts))


def test_the_mapping_is_read_off_training_rows_first():
    df = pd.DataFrame(dict(top=['a', 'b', 'a', 'b', None], mid=['a1', 'b1', 'a2', 'a1', 'b1']))
    top = SingleLabelBlock('top')
    flow = Flow('f', top, SingleLabelBlock('mid', within=top))
    bound = flow.bind(df, [0, 1])
    assert bound.tasks['mid'].parents == [0, 0, 1]  # a2 stands in another row alone
    assert bound.encode(df)[:, 1, 1].tolist() == [1, 1, 1, 0, 1]  # the row that says otherwise does not count
    with pytest.raises(FlowError) as e:
        flow.bind(df)
    for part in (
        "task 'mid', row 3, column 'mid', value 'a1'",
        "'a' in 1 row, row 0",
        "'b' in 1 row, row 3",
        'Correct',
        "within=(",
    ):
        assert part in str(e.value), str(e.value)


def test_what_is_wrong_is_said():
    top, other = SingleLabelBlock('top'), BinaryBlock('other')
    df = pd.DataFrame(dict(top=['a', 'b', None], mid=['a1', 'b1', 'c1'], other=[0, 1, 1]))
    wrong = {
        "no row with the sub-class 'c1' knows its class": Flow('f', top, SingleLabelBlock('mid', within=top)),
        "does not say in which class 'c1' stands": Flow(
            'f', top, SingleLabelBlock('mid', vocab=None, within=(top, dict(a1='a', b1='b'))), infer_labels=False
        ),
        "has no such class: ": Flow('f', top, SingleLabelBlock('mid', within=(top, dict(a1='a', b1='b', c1='d')))),
        'make it a SingleLabelBlock': Flow('f', other, SingleLabelBlock('mid', within=other)),
        "is within task 'tops', which the flow does not have": Flow('f', top, SingleLabelBlock('mid', within='tops')),
        'round in a circle': Flow('f', SingleLabelBlock('top', within='mid'), SingleLabelBlock('mid', within='top')),
        "'mid' is within a block 'top' that reads 'Top'": Flow(
            'f', top, SingleLabelBlock('mid', within=SingleLabelBlock('top', 'Top'))
        ),
    }
    del wrong["does not say in which class 'c1' stands"]
    for text, flow in wrong.items():
        with pytest.raises(FlowError) as e:
            flow.bind(df)
        assert text in str(e.value), str(e.value)
    with pytest.raises(FlowError, match="'c1': not in the vocabulary"):
        Flow('f', top, SingleLabelBlock('mid', within=(top, dict(a1='a', b1='b')))).bind(df).encode(df)
    makes = {
        'must be a task or its name': lambda: SingleLabelBlock('mid', within=3),
        'hand over a dict': lambda: SingleLabelBlock('mid', within=('top', 3)),
        "puts 'x' under 'a' and under 'b'": lambda: SingleLabelBlock('mid', within=('top', [('x', 'a'), ('x', 'b')])),
        'tells no sub-class': lambda: SingleLabelBlock('mid', within=('top', {})),
        'decode=': lambda: SingleLabelBlock('mid', within='top', decode='greedy'),
        'add within=': lambda: SingleLabelBlock('mid', decode='joint'),
        'does not say in which class it stands': lambda: SingleLabelBlock(
            'm', vocab=['x', 'y'], within=('top', dict(x='a'))
        ),
    }
    for text, make in makes.items():
        with pytest.raises(FlowError) as e:
            make()
        assert text in str(e.value), str(e.value)
    mids = [SingleLabelBlock(n, 'mid', within=(top, dict(a1='a', b1='b', c1='a')), decode='joint') for n in 'mn']
    with pytest.raises(FlowError, match="both have decode='joint'"):
        bound = Flow('f', top, *mids).bind(df)
        bound.leaves


def test_two_sub_tasks_of_one_class_and_half_precision():
    df = pd.DataFrame(dict(top=['a', 'b'], m=['a1', 'b1'], k=['u', 'v']))
    top = SingleLabelBlock('top')
    flow = Flow('f', top, SingleLabelBlock('m', within=top), SingleLabelBlock('k', within=top))
    bound = flow.bind(df)
    loss, logits, acts = acts_of(bound, 8, 0)
    assert torch.equal(loss.decide(acts)[:, 0], loss.decide(acts)[:, 1])
    y = bound.encode(df)
    half = loss(logits[:2].half(), y)
    torch.testing.assert_close(half, loss(logits[:2].half().float(), y))
    assert not torch.isnan(half)


def test_compiled_without_breaks():
    levels = tree(4)
    df = rows_of(levels, 16, 4)
    bound = flow_of_levels(levels, label_smoothing=0.1).bind(df)
    loss, logits, acts = acts_of(bound, 16, 4)
    y = bound.encode(df)
    explained = torch._dynamo.explain(loss)(logits, y.as_subclass(torch.Tensor))
    assert explained.graph_break_count == 0


def test_change_flow_keeps_what_nests():
    levels = tree(2)
    df, learn = learner(rows_of(levels, 60, 2), flow_of_levels(levels))
    before = learn.dls.flow
    blocks = blocks_of(levels)
    new = Flow('f', *blocks, BinaryBlock('b') | blocks[2].eq(list(levels[2])[0]))
    table = df.assign(b=1.0)
    from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders

    dls = ConditionalTabularDataLoaders.from_df(table, new, cont_names=['x0', 'x1', 'x2'], valid_pct=0.5, seed=0, bs=16)
    logits = learn.get_preds(act=torch.nn.Identity())[0]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn.change_flow(dls)
    after = learn.get_preds(act=torch.nn.Identity())[0]
    for name in DEPTH:
        own, now = before.slices[name].logits, learn.dls.flow.slices[name].logits
        torch.testing.assert_close(after[:, now], logits[:, own], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('decode', ['path', 'joint'])
def test_blanks_are_filled_in_step_with_the_labels_beside_them(decode):
    levels = [dict(a=None, b=None, c=None), dict(a1='a', a2='a', b1='b', b2='b'), dict(x='a1', y='a1', z='b2', w='b2')]
    df = rows_of(levels, 150, 1, blank=0.4)
    df, learn = learner(df, flow_of_levels(levels, decode=decode))
    table = learn.fill_labels(df, min_confidence=0)[0]
    for before, row in zip(df.to_dict('records'), table.to_dict('records')):
        path = [row[name] for name in DEPTH if isinstance(row[name], str)]
        assert path == chain_of(levels, path[-1])
        assert path[-1] not in {of for level in levels[1:] for of in level.values()}
        assert all(row[name] == before[name] for name in DEPTH if isinstance(before[name], str))


def inputs_of(row):
    return torch.tensor([row.u, row.v], dtype=torch.float32)


def test_mixed_rows_keep_both_labels():
    from fastai.callback.mixup import MixUp
    from fastai.data.block import DataBlock, TransformBlock
    from fastai.learner import Learner

    levels = [dict(a=None, b=None), dict(a1='a', a2='a', b1='b')]
    df = rows_of(levels, 80, 0).assign(u=np.linspace(-1, 1, 80), v=0.5)
    blocks = DataBlock(blocks=(TransformBlock, flow_of_levels(levels)), get_x=inputs_of)
    dls = blocks.dataloaders(df, bs=16)
    learn = Learner(dls, torch.nn.Linear(2, dls.c), loss_func=dls.loss_func, cbs=MixUp())
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    xb, yb = dls.one_batch()
    perm, lam = torch.randperm(len(xb)), torch.rand(len(xb))
    none = ConditionalLoss(dls.flow, reduction='none')
    mixed = (none(learn.model(xb), yb) * lam + none(learn.model(xb), yb[perm]) * (1 - lam)).mean()
    mixed.backward()
    assert mixed.isfinite() and all(p.grad.isfinite().all() for p in learn.model.parameters())


def test_branches_run_where_a_joint_decision_needs_them():
    from fastai_condmtl.learn.heads import NeededRows

    levels = [dict(a=None, b=None), dict(a1='a', a2='a')]
    for decode, rows in (('path', [0]), ('joint', [0, 1])):
        bound = flow_of_levels(levels, decode=decode).bind(rows_of(levels, 20, 0, blank=0))
        top, mid = bound.paths.index('top'), bound.paths.index('mid')
        logits = torch.full((2, bound.c), float('nan'))
        logits[:, bound.slices['top'].logits] = torch.tensor([[3.0, -3], [-3, 3]])
        needed = NeededRows(2, loss=ConditionalLoss(bound)).reachable(bound, [mid], [top], logits)
        assert needed.nonzero()[:, 0].tolist() == rows


def test_scores_by_label_are_those_of_the_whole():
    from sklearn.metrics import roc_auc_score

    levels = [dict(a=None, b=None, c=None), dict(a1='a', a2='a', b1='b', b2='b')]
    # a network that starts at the trivial predictor gives nearly equal scores, which rounding may put in another order
    df, learn = learner(rows_of(levels, 200, 2, blank=0), flow_of_levels(levels), start=None)
    table = learn.evaluate(metrics=['roc_auc'], by_label=True)
    rows = df.loc[learn.dls.valid_ds.items.index]
    has = rows.mid.notna().to_numpy()
    preds = [learn.predict(row)[0] for _, row in rows[has].iterrows()]
    told = table[(table.task_path == 'mid') & (table.metric_name == 'roc_auc')].set_index('label').metric_res
    for name in levels[1]:
        whole = [pred.probabilities['mid'][name] for pred in preds]
        assert told[name] == pytest.approx(roc_auc_score(rows.mid[has] == name, whole), abs=1e-6)


def test_a_condition_of_a_sub_task_reads_the_class_that_its_label_implies():
    df = pd.DataFrame(dict(top=[None, None, 'a', 'b'], mid=['a1', 'b1', 'a1', 'b1'], other=[1, 1, 1, 1]), dtype=object)
    top = SingleLabelBlock('top', vocab=['a', 'b'])
    mid = SingleLabelBlock('mid', within=(top, dict(a1='a', b1='b'))) | top.eq('a')
    flow = Flow('f', top, mid, BinaryBlock('other') | top.eq('a'))
    assert flow.bind(df).encode(df).mask.tolist() == [[0, 1, 0], [0, 0, 0], [1, 1, 1], [1, 0, 0]]


def test_a_sub_task_without_any_label():
    df = pd.DataFrame(dict(top=['a', 'b'], mid=[None, None]))
    top = SingleLabelBlock('top')
    bound = Flow('f', top, SingleLabelBlock('mid', within=top)).bind(df)
    assert bound.encode(df).mask.tolist() == [[1, 0], [1, 0]]
    loss = bound.loss_func
    decoded = loss.decodes(loss.activation(torch.zeros(2, bound.c)))
    assert decoded.mask.tolist() == [[1, 0], [1, 0]]


def test_marginals_where_there_is_one_class_only():
    df = pd.DataFrame(dict(top=['a', 'a'], mid=['a1', 'a2'], other=[0, 1]))
    top = SingleLabelBlock('top')
    bound = Flow('f', top, SingleLabelBlock('mid', within=top), BinaryBlock('other') | top.eq('a')).bind(df)
    acts = bound.loss_func.activation(torch.zeros(1, bound.c))
    pred = FlowPrediction(bound, bound.loss_func.decodes(acts)[0], activations=acts[0])
    assert pred.marginals['mid'] == (1, dict(a1=0.5, a2=0.5)) and pred.marginals['other'] == (1, 0.5)


# ---- labels that say two things
# -------------------------------------------------------------------------------------------
def test_a_row_beyond_training_that_says_another_class_is_told():
    "It does not count, and the warning has the row and both classes"
    df = pd.DataFrame(dict(c=['a', 'b', 'a', 'b', 'a'], s=['a1', 'b1', 'a2', 'a1', 'b1'])).rename(lambda i: f'id{i}')
    c = SingleLabelBlock('c')
    flow = Flow('f', c, SingleLabelBlock('s', within=c))
    with pytest.warns(FlowWarning) as told:
        bound = BoundFlow(flow, df, [0, 1, 2])
    (text,) = [str(w.message) for w in told if 'training rows put' in str(w.message)]
    assert "row 3 (index 'id3')" in text and "'a1' into 'a'" in text and "says 'b'" in text and '1 more' in text
    assert bound.encode(df)[:, 1, 1].tolist() == [1, 1, 1, 0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter('error', FlowWarning)
        BoundFlow(flow, df[:3], [0, 1])
    with pytest.raises(FlowError, match="under two classes of 'c'"):
        BoundFlow(flow, df, [0, 1, 2, 3])


def test_sub_classes_under_two_classes_are_counted():
    "Of each class how many rows, and up to three of them; the class of most rows is the one that may be meant"
    df = pd.DataFrame(dict(c=list('baaaabbab'), s=['x'] * 6 + ['y', 'y', 'z'])).rename(lambda i: i + 10)
    c = SingleLabelBlock('c')
    with pytest.raises(FlowError) as told:
        Flow('f', c, SingleLabelBlock('s', within=c)).bind(df)
    text = str(told.value)
    assert text.startswith("task 's', row 1 (index 11), column 's', value 'x': ")
    assert "under 'a' in 4 rows, row 1 (index 11), row 2 (index 12), row 3 (index 13) … and under 'b' in 2 rows" in text
    assert "2 in all: 'x', 'y'. Correct" in text and "{'x': 'a', ...}" in text
    with pytest.raises(FlowError) as told:
        Flow('f', c, SingleLabelBlock('s', within=c)).bind(df[:6].set_axis(range(6)))
    assert "under 'b' in 2 rows, row 0, row 5. Correct" in str(told.value)


@pytest.mark.parametrize('deep', [False, True])
def test_two_sub_tasks_that_say_two_classes_of_a_blank_are_told(deep):
    "By a warning when the flow is bound and by the audit, with the row; the first of them counts"
    df = pd.DataFrame(
        dict(c=['a', 'b', None, None, 'a'], s=['a1', 'b1', 'a1', 'b1', 'b1'], t=['x', 'y', 'y', 'y', 'y'])
    ).assign(u=['u1', 'u2', 'u2', 'u2', 'u2'])
    c = SingleLabelBlock('c')
    s = SingleLabelBlock('s', within=(c, dict(a1='a', b1='b')))
    t = SingleLabelBlock('t', within=(c, dict(x='a', y='b')))
    flow = Flow('f', c, s, t)
    if deep:  # `t` is blank, and known by what stands within it
        df['t'] = None
        t = SingleLabelBlock('t', within=(c, dict(x='a', y='b')))
        flow = Flow('f', c, s, t, SingleLabelBlock('u', within=(t, dict(u1='x', u2='y'))))
    with pytest.warns(FlowWarning) as told:
        bound = flow.bind(df)
    (text,) = [str(w.message) for w in told if 'different classes' in str(w.message)]
    assert text.startswith("task 'c', row 2: 's' and 't'") and 'more)' not in text
    found = [f for f in bound.audit(df).findings if 'different classes' in f.text]
    assert [(f.task_path, f.kind, f.serious, f.rows.tolist()) for f in found] == [('c', 'contradiction', True, [2])]
    assert bound.encode(df)[2, 1, :2].tolist() == [0, 1]  # of the class `s` says: `s` counts
