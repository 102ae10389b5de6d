"""Classes that nest, against the oracle: which rows count, losses, activations, decisions, P(sub-class) and
hierarchical scores, in random trees of classes within random flows of every other kind."""

import math
import random

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from of_tables import Row, hard_series
from oracle import Oracle, a_task, atom, build, flow, frame, n_rows, raw_row
from random_flows import checks, random_spec, random_table, rngs
from scipy.special import log_softmax

from fastai.learner import Learner
from fastai_condmtl.all import *
from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders, equip

pytestmark = pytest.mark.filterwarnings('ignore')
OTHERS = ['binary', 'single', 'multi', 'cols', 'unbounded', 'count', 'ordinal']
CERTAIN = ['binary', 'single', 'multi', 'cols', 'unbounded']


def made(rng, n=None, max_tasks=4, trees=1, **kw):
    "(oracle, table, flow, df) at random."
    spec = random_spec(rng, max_tasks, trees=trees, **dict(kinds=OTHERS) | kw)
    table = random_table(rng, spec, n=n)
    index = rng.choice([None, [rng.choice('ab') for _ in range(n_rows(table))]])
    return Oracle(spec), table, build(spec, rng), frame(spec, table, rng, index=index, series=hard_series)


def vocab_in(bound, path):
    return list(bound.tasks[path].vocab)


def siblings(o, bound, path, of):
    "Positions of the sub-classes of class `of`."
    return [i for i, v in enumerate(vocab_in(bound, path)) if o.above(path, v) == of]


# ---- the oracle, by hand
# -------------------------------------------------------------------------------------------
def by_hand(**kw):
    top = a_task('single', 'top', vocab=['a', 'b', 'c'])
    mid_of, leaf_of = dict(a1='a', a2='a', b1='b'), dict(x='a1', y='a1', z='b1')
    mid = a_task('single', 'mid', vocab=list(mid_of), within='top', class_of=mid_of, told=True, **kw)
    leaf = a_task('single', 'leaf', vocab=list(leaf_of), within='mid', class_of=leaf_of, told=True)
    return top, mid, leaf


HAND = [  # top, mid, leaf → which count
    (('a', 'a1', 'x'), (1, 1, 1)),
    (('a', 'a1', 'z'), (1, 1, 0)),  # the leaf contradicts its class
    (('a', 'b1', None), (1, 0, 0)),
    (('a', None, 'x'), (1, 0, 1)),
    (('b', None, 'x'), (1, 0, 0)),  # two levels up
    ((None, 'a1', None), (0, 1, 0)),
    ((None, None, 'z'), (0, 0, 1)),
    ((None, 'a2', 'x'), (0, 1, 0)),
    (('c', 'a1', None), (1, 0, 0)),  # no sub-classes
    (('b', 'a1', 'x'), (1, 0, 0)),  # both contradict
]


@pytest.mark.parametrize('labels, count', HAND)
def test_the_oracle_and_the_library_on_rows_worked_out_by_hand(labels, count):
    spec = flow('f', *by_hand())
    table = {p: [v] for p, v in zip(('top', 'mid', 'leaf'), labels)}
    out = Oracle(spec).row(raw_row(table, 0))
    assert tuple(int(r['mask'][0]) for r in out.values()) == count
    y = build(spec, random.Random(0))
    df = pd.DataFrame({p: pd.Series(v, dtype=object) for p, v in table.items()})
    assert tuple(y.bind(df).encode(df).mask[0].int().tolist()) == count


def test_implied_classes_open_their_own_gate_alone():
    top, mid, leaf = by_hand()
    items = [
        top,
        mid,
        leaf,
        a_task('binary', 'of_a', atom('top', 'eq', 'a')),
        a_task('binary', 'of_x', atom('leaf', 'eq', 'x')),
    ]
    table = dict(top=None, mid=None, leaf='x', of_a=True, of_x=True)
    count = lambda **kw: {p for p, r in Oracle(flow('f', *items) | kw).row(table).items() if r['mask'][0]}
    assert count() == {'leaf', 'of_x'}
    assert count(infer_labels=True) == {'leaf', 'of_a', 'of_x'}
    assert count(infer_labels='train') == {'top', 'mid', 'leaf', 'of_a', 'of_x'}


# ---- which rows count
# -------------------------------------------------------------------------------------------
def check_masks(o, table, bound, df):
    y = bound.encode(df)
    units = bound.to_units(y)
    for i in range(len(df)):
        for path, want in o.row(raw_row(table, i)).items():
            if want['clash']:
                continue
            at, task = bound.slices[path].targets, o.entries[path][0]
            where = f'row {i}, {path}: {raw_row(table, i)}'
            assert y.mask[i, at].tolist() == [float(m) for m in want['mask']], where
            if task['kind'] == 'single' and want['mask'][0]:
                assert vocab_in(bound, path)[int(units.vals[i, at])] == want['value'][0], where


def check_vocabs(o, bound):
    for p, (t, *_) in o.entries.items():
        if t['kind'] == 'single':
            got = vocab_in(bound, p)
            assert set(got) == set(t['vocab'])
            assert got == t['vocab'] or not t['vocab_given']


@checks(60)
@given(rngs)
def test_rows_that_count(rng):
    o, table, fl, df = made(rng, trees=rng.choice([1, 1, 2]), na=True)
    kept, bound = df.copy(deep=True), fl.bind(df)
    check_vocabs(o, bound)
    check_masks(o, table, bound, df)
    pd.testing.assert_frame_equal(df, kept)
    i = rng.randrange(len(df))
    assert torch.equal(torch.as_tensor(bound.encode(df.iloc[[i]])), torch.as_tensor(bound.encode(df)[i : i + 1]))


@checks(40)
@given(rngs)
def test_rows_that_count_where_labels_imply_others(rng):
    o, table, fl, df = made(rng, infer=True)
    check_masks(o, table, fl.bind(df), df)


# ---- activations and losses
# -------------------------------------------------------------------------------------------
def random_logits(rng, bound, n):
    gen = torch.Generator().manual_seed(rng.randrange(10**6))
    return torch.randn(n, bound.c, generator=gen) * rng.choice([0.3, 2, 6, 30])


@checks(40)
@given(rngs)
def test_losses_and_activations(rng):
    "SciPy's softmax among the sub-classes of the labelled class; no other logit of the task gets a gradient"
    o, table, fl, df = made(rng, kinds=['single', 'binary'], losses=True, max_tasks=3)
    bound = fl.bind(df)
    rows = [rng.randrange(len(df)) for _ in range(rng.choice([1, 6]))]
    pred = random_logits(rng, bound, len(rows)).requires_grad_()
    y, loss = bound.encode(df)[rows], bound.loss_func
    acts = loss.activation(pred).detach().double().numpy()
    per_sample, per_task = loss.per_sample(pred, y).detach(), loss.per_task(pred, y).detach()
    total = 0
    (grad,) = torch.autograd.grad(loss(pred, y), pred)
    assert grad.isfinite().all()
    for k, p in enumerate(o.paths):
        if p not in o.over:
            total += 0 if per_task[k].isnan() else float(per_task[k]) * o.entries[p][0]['kw'].get('weight', 1)
            continue
        t, at = o.entries[p][0], bound.slices[p]
        vocab, smoothing = vocab_in(bound, p), o.entries[p][0]['kw'].get('label_smoothing', 0)
        got = []
        for r, i in enumerate(rows):
            z, want = pred[r, at.logits].detach().double().numpy(), o.row(raw_row(table, i))[p]
            for c in set(t['class_of'].values()):
                sibs = siblings(o, bound, p, c)
                np.testing.assert_allclose(acts[r, at.acts][sibs], np.exp(log_softmax(z[sibs])), atol=1e-5)
            if want['clash']:
                return
            one, touched = math.nan, []
            if want['mask'][0]:
                value = want['value'][0]
                touched = siblings(o, bound, p, o.above(p, value))
                logp = log_softmax(z[touched])
                one = -(1 - smoothing) * logp[touched.index(vocab.index(value))] - smoothing * logp.mean()
                got.append(one)
            assert float(per_sample[r, k]) == pytest.approx(one, rel=1e-4, abs=1e-4, nan_ok=True), p
            others = [j for j in range(len(vocab)) if j not in touched]
            assert (grad[r, at.logits][others] == 0).all(), p
        if got:
            assert float(per_task[k]) == pytest.approx(np.mean(got), rel=1e-4, abs=1e-4), p
            total += np.mean(got) * t['kw'].get('weight', 1)
        else:
            assert per_task[k].isnan() or per_task[k] == 0
    assert float(loss(pred, y)) == pytest.approx(total, rel=1e-4, abs=1e-4)


# ---- decisions
# -------------------------------------------------------------------------------------------
def chain(o, path):
    "The task, its class task, the class task of that, ..."
    return [path] + (chain(o, o.over[path]) if path in o.over else [])


def best_leaf(o, bound, path, p_of):
    "{path: class} of the most likely leaf on the way from the outermost class task to `path`, None below it."
    way, leaves = chain(o, path)[::-1], []

    def descend(k, of, p, so_far):
        if k == len(way):
            return leaves.append((p, so_far))
        vocab = vocab_in(bound, way[k])
        at = range(len(vocab)) if k == 0 else siblings(o, bound, way[k], of)
        if not at:
            return leaves.append((p, so_far | dict.fromkeys(way[k:])))
        for i in at:
            descend(k + 1, vocab[i], p * p_of(way[k])[i], so_far | {way[k]: vocab[i]})

    descend(0, None, 1.0, {})
    return max(leaves, key=lambda x: x[0])[1]


def decided_classes(o, bound, acts, over=None):
    "{path: class or None} of one row, of tasks of classes: the class decided, or the best leaf where asked."
    p_of = lambda p: acts[bound.slices[p].acts].double().tolist()
    out = {}
    for p in o.over:
        if o.entries[p][0].get('decode') == 'joint':
            out |= best_leaf(o, bound, p, p_of)
    nested = {*o.over, *o.over.values()}
    for p in sorted(nested, key=lambda p: len(chain(o, p))):
        if p in out:
            continue
        vocab, probs = vocab_in(bound, p), p_of(p)
        of = out[o.over[p]] if p in o.over else None
        at = siblings(o, bound, p, of) if p in o.over else range(len(vocab))
        out[p] = vocab[max(at, key=lambda i: probs[i])] if at else None
    return out


def decided(o, bound, acts, vals):
    "{path: decided label} of one row."
    cells = decided_classes(o, bound, acts)
    for p, (t, *_) in o.entries.items():
        if p in cells:
            continue
        a, at = acts[bound.slices[p].acts], bound.slices[p].targets
        if t['kind'] == 'binary':
            cells[p] = a.item() > 0.5
        elif t['kind'] in ('multi', 'cols'):
            names = sorted(t['vocab']) if t['kind'] == 'multi' and not t['vocab_given'] else t['vocab']
            cells[p] = dict(zip(names, (a > 0.5).tolist()))
        elif t['kind'] == 'single':
            cells[p] = vocab_in(bound, p)[int(a.argmax())]
        else:
            cells[p] = float(vals[at])
    return cells


@checks(60)
@given(rngs)
def test_decisions(rng):
    "Decided in the class that was decided, or the best leaf; reached where the oracle says; None without sub-classes"
    o, table, fl, df = made(rng, kinds=CERTAIN, trees=rng.choice([1, 1, 2]))
    bound = fl.bind(df)
    loss = bound.loss_func
    acts = loss.activation(random_logits(rng, bound, 5).clip(-8, 8))
    decoded = loss.decodes(acts)
    units = bound.to_units(decoded)
    back = bound.to_frame(decoded)
    for i in range(5):
        cells = decided(o, bound, acts[i], units.vals[i])
        pred = FlowPrediction(bound, decoded[i], activations=acts[i])
        for p, reached in o.reached(cells).items():
            t, at = o.entries[p][0], bound.slices[p].targets
            assert decoded.mask[i, at].tolist() == [float(reached)] * (at.stop - at.start), (i, p, cells)
            if not reached:
                assert pred[p] is None and p not in pred.reached
            elif t['kind'] == 'single':
                assert pred[p] == cells[p], p
                assert back[t.get('col') or t['name']].iloc[i] == cells[p], p
            if p in o.over and pred[p] is not None:
                assert pred[o.over[p]] == o.above(p, pred[p])


@checks(30)
@given(rngs)
def test_probabilities(rng):
    "Products along the classes, over all leaves 1; where all classes have sub-classes this is the plain product"
    o, table, fl, df = made(rng, kinds=['binary'], max_tasks=2)
    bound = fl.bind(df)
    acts = bound.loss_func.activation(random_logits(rng, bound, 3).clip(-8, 8))
    decoded = bound.loss_func.decodes(acts)
    for i in range(3):
        probs = FlowPrediction(bound, decoded[i], activations=acts[i]).probabilities
        for p in o.over:
            own = dict(zip(vocab_in(bound, p), acts[i, bound.slices[p].acts].double().tolist()))

            def product(p, v):
                a = acts[i, bound.slices[p].acts].double().tolist()[vocab_in(bound, p).index(v)]
                return a * (product(o.over[p], o.above(p, v)) if p in o.over else 1)

            want = {v: product(p, v) for v in own}
            total = sum(want.values())
            assert sum(probs[p].values()) == pytest.approx(1, abs=1e-5)
            assert probs[p] == pytest.approx({v: q / total for v, q in want.items()}, abs=1e-4), p
            assert list(probs[p]) == vocab_in(bound, p)


# ---- P(reached)
# -------------------------------------------------------------------------------------------
@checks(40)
@given(rngs)
def test_marginals(rng):
    "P(reached) and P(sub-class and reached), against every combination of what may be drawn"
    o, table, fl, df = made(rng, kinds=['binary', 'single'], max_tasks=3)
    bound = fl.bind(df)
    acts = bound.loss_func.activation(random_logits(rng, bound, 2).clip(-8, 8))
    decoded = bound.loss_func.decodes(acts)
    order = sorted(o.paths, key=lambda p: len(chain(o, p)))
    for i in range(2):
        reached_p = dict.fromkeys(o.paths, 0.0)
        value_p = {}

        def draw(k, cells, weight):
            if k == len(order):
                for p, reached in o.reached(cells).items():
                    reached_p[p] += weight * reached
                    if reached:
                        value_p[p, cells[p]] = value_p.get((p, cells[p]), 0) + weight
                return
            p = order[k]
            a = acts[i, bound.slices[p].acts].double().tolist()
            if o.entries[p][0]['kind'] == 'binary':
                some = [(True, a[0]), (False, 1 - a[0])]
            elif p in o.over:
                at = siblings(o, bound, p, cells[o.over[p]])
                some = [(vocab_in(bound, p)[j], a[j]) for j in at] or [(None, 1.0)]
            else:
                some = list(zip(vocab_in(bound, p), a))
            for v, q in some:
                draw(k + 1, cells | {p: v}, weight * q)

        if math.prod(len(bound.tasks[p].vocab or [0, 1]) for p in o.paths) > 3000:
            return
        draw(0, {}, 1.0)
        marginals = FlowPrediction(bound, decoded[i], activations=acts[i]).marginals
        for p in o.paths:
            assert marginals[p].reached == pytest.approx(reached_p[p], abs=1e-5), p
            if o.entries[p][0]['kind'] == 'single':
                want = {v: value_p.get((p, v), 0) for v in vocab_in(bound, p)}
                assert marginals[p].values == pytest.approx(want, abs=1e-5), p


def test_marginals_of_a_sub_task_that_asks_its_class():
    df = pd.DataFrame(dict(c=['a', 'b'], s=['a1', 'b1']))
    c = SingleLabelBlock('c')
    bound = Flow('f', c, SingleLabelBlock('s', within=c) | c.eq('a')).bind(df)
    acts = bound.loss_func.activation(torch.zeros(1, bound.c))
    pred = FlowPrediction(bound, bound.loss_func.decodes(acts)[0], activations=acts[0])
    assert pred.marginals['s'].reached == pytest.approx(0.5)
    assert pred.marginals['s'].values == pytest.approx(dict(a1=0.5, b1=0))


# ---- a learner
# -------------------------------------------------------------------------------------------
def if_there_were_one(o, bound, acts, path):
    """The sub-class that is scored where the decided class has none: the best on the ways that lead to one; None
    where another sub-task decides classes above"""
    way, p_of = chain(o, path)[::-1], lambda p: acts[bound.slices[p].acts].double().tolist()
    joint = {q for p in o.over if o.entries[p][0].get('decode') == 'joint' for q in chain(o, p)}
    if joint & set(way):
        return None
    leads = [set(vocab_in(bound, path))]
    for p in way[:0:-1]:
        leads.insert(0, {o.above(p, v) for v in leads[0]})
    of = None
    for k, p in enumerate(way):
        vocab = vocab_in(bound, p)
        at = [i for i in (siblings(o, bound, p, of) if k else range(len(vocab))) if vocab[i] in leads[k]]
        of = vocab[max(at, key=lambda i: p_of(p)[i])]
    return of


def path_of(o, path, value):
    return (
        set()
        if value is None
        else {(path, value)} | (path_of(o, o.over[path], o.above(path, value)) if path in o.over else set())
    )


def scores(o, bound, acts, table, rows):
    "(sub-task, metric) → (score, rows scored, of those reached)"
    out = {}
    for p in o.over:
        sets, hits, reached = [], [], []
        for i in rows:
            want = o.row(raw_row(table, i))[p]
            if not want['mask'][0]:
                continue
            cells = decided(o, bound, acts[i], None)
            deepest = next((q for q in chain(o, p) if cells[q] is not None))
            sets.append((path_of(o, deepest, cells[deepest]), path_of(o, p, want['value'][0])))
            scored = if_there_were_one(o, bound, acts[i], p) if cells[p] is None else cells[p]
            hits.append(math.nan if scored is None else scored == want['value'][0])
            reached.append(o.reached(cells)[p])
        common = sum(len(a & b) for a, b in sets)
        div = lambda x, y: x / y if y else math.nan
        precision, recall = div(common, sum(len(a) for a, _ in sets)), div(common, sum(len(b) for _, b in sets))
        f1 = div(2 * precision * recall, precision + recall) if common else (0 if sets else math.nan)
        out[p, 'accuracy'] = np.mean(hits) if hits else math.nan, len(sets), sum(reached)
        out[p, 'hierarchical_precision'] = precision, len(sets), sum(reached)
        out[p, 'hierarchical_recall'] = recall, len(sets), sum(reached)
        out[p, 'hierarchical_f1_score'] = f1, len(sets), sum(reached)
    return out


@checks(15)
@given(rngs)
def test_scores_of_a_learner(rng):
    "Hierarchical scores by sets of nodes over the rows that count (micro), beside the accuracy"
    o, table, fl, df = made(rng, kinds=['binary', 'single'], max_tasks=3, n=60)
    df = df.assign(row=np.arange(60.0)).reset_index(drop=True)
    valid = sorted(rng.sample(range(60), 33))
    dls = ConditionalTabularDataLoaders.from_df(df, fl, procs=[], cont_names=['row'], valid_idx=valid, bs=16)
    bound = dls.flow
    logits = random_logits(rng, bound, 60).clip(-8, 8)
    learn = equip(Learner(dls, Row(logits), loss_func=dls.loss_func), tune=None)
    with learn.no_bar(), learn.no_logging():
        found = learn.evaluate().set_index(['task_path', 'metric_name'])
    acts = bound.loss_func.activation(logits)
    for key, (score, n, reached) in scores(o, bound, acts, table, valid).items():
        row = found.loc[key]
        assert (row.num_samples, row.cascade_samples) == (n, reached), key
        if n == 0 or not math.isnan(score):
            assert row.metric_res == pytest.approx(score, abs=1e-5, nan_ok=True), key


# ---- in which class a sub-class stands
# -------------------------------------------------------------------------------------------
@checks(40)
@given(rngs)
def test_a_sub_class_under_two_classes(rng):
    "An error that names two rows, the sub-class and both classes, wherever the rows stand"
    n, classes = rng.randint(4, 12), rng.choice([['a', 'b', 'c'], [1, 2, 3], [False, True]])
    stands = {f's{k}': rng.choice(classes) for k in range(3)}
    rows = [(stands[s], s) for s in (rng.choice(list(stands)) for _ in range(n - 1))]
    sub = rng.choice([s for _, s in rows])
    rows.insert(rng.randrange(n), (rng.choice([c for c in classes if c != stands[sub]]), sub))
    gap = [rng.random() < 0.3 for _ in rows]
    of = [None if g else c for g, (c, _) in zip(gap, rows)]
    df = pd.DataFrame(dict(c=pd.Series(of, dtype=object), s=hard_series([s for _, s in rows], rng, None)))
    flow = Flow('f', SingleLabelBlock('c', vocab=classes), SingleLabelBlock('s', within='c'))
    known = {s: {c for c, (_, t) in zip(of, rows) if t == s and c is not None} for s in df.s}
    try:
        bound = flow.bind(df)
    except FlowError as error:
        bad = [s for s, cs in known.items() if len(cs) > 1 and repr(s) in str(error)]
        if len(bad) != 1:
            assert any(not cs and f'no row with the sub-class {s!r}' in str(error) for s, cs in known.items())
            return
        told = [
            i for i in range(n) if rows[i][1] == bad[0] and f'row {i}' in str(error).replace(',', '').replace('.', '')
        ]
        assert {of[i] for i in told} >= known[bad[0]] or len({of[i] for i in told} - {None}) == 2
        assert sum(repr(c) in str(error) for c in known[bad[0]]) >= 2
        return
    assert all(len(cs) == 1 for cs in known.values())
    assert {s: classes[p] for s, p in zip(bound.tasks['s'].vocab, bound.tasks['s'].parents)} == {
        s: next(iter(cs)) for s, cs in known.items()
    }


def test_a_sub_class_that_only_validation_rows_have():
    "It stands in the class that they say; one that training rows place elsewhere does not count there"
    df = pd.DataFrame(dict(c=['a', 'a', 'b', 'b', 'b', 'c'], s=['a1', 'a2', 'b1', 'b9', 'a1', 'c1'], x=1.0))
    flow = Flow('f', SingleLabelBlock('c'), SingleLabelBlock('s', within='c'))
    dls = ConditionalTabularDataLoaders.from_df(df, flow, procs=[], cont_names=['x'], valid_idx=[3, 4, 5], bs=3)
    task = dls.flow.tasks['s']
    assert dict(zip(task.vocab, task.parents)) == dict(a1=0, a2=0, b1=1, b9=1, c1=2)
    y = TensorConditional(next(iter(dls.valid))[-1].reshape(3, 2, 2))
    assert y.mask.tolist() == [[1, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize('sub', ['float32', 'Int8', 'category', 'str'])
@pytest.mark.parametrize('over', ['float64', 'Int64', 'category', 'object', 'str'])
@pytest.mark.parametrize('told', [None, {11: 1, 21: 2, 22: 2}, {22.0: 2.0, 21.0: 2.0, 11.0: 1.0}])
def test_classes_that_are_numbers(over, sub, told):
    df = pd.DataFrame(dict(c=pd.Series([1, 2, 2, None], dtype=over), s=pd.Series([11, 21, 22, 11], dtype=sub)))
    if told and 'str' in (over, sub):
        return
    y = Flow('f', SingleLabelBlock('c'), SingleLabelBlock('s', within=('c', told) if told else 'c')).bind(df).encode(df)
    assert y.mask.tolist() == [[1, 1], [1, 1], [1, 1], [0, 1]]
