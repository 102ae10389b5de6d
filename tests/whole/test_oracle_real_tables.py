"""What tables really hold, against the oracle: values that stand for a blank, uncertain answers, shares and votes, in
random flows with every other kind, in columns of every make. Masks, labels, losses, decisions and P(reached) on every
row."""

import itertools
import math


import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from of_tables import Row, hard_series
from oracle import Oracle, Votes, build, frame, n_rows, raw_row, stands_for_blank, vocab_of, vote_column
from random_flows import ALL_KINDS, checks, random_spec, random_table, rngs
from scipy.special import gammaln
from scipy.stats import dirichlet_multinomial, multinomial

from fastai.learner import Learner
from fastai_condmtl.all import *
from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders, equip

pytestmark = pytest.mark.filterwarnings('ignore')
UNSURE_KINDS = ['binary', 'cols', 'votes', 'votes', 'single', 'unbounded']


def made(rng, n=None, max_tasks=8, **kw):
    "(spec, table, flow, df) at random."
    spec = random_spec(rng, max_tasks, **dict(kinds=ALL_KINDS, na=True, unsure=True) | kw)
    table = random_table(rng, spec, n=n)
    index = rng.choice([None, [rng.choice('ab') for _ in range(n_rows(table))]])
    return spec, table, build(spec, rng), frame(spec, table, rng, index=index, series=hard_series)


def n_targets(task):
    return len(task['vocab']) if task['kind'] in ('multi', 'cols', 'votes') else 1


def natural(task, value):
    "What a label is as a number."
    return vocab_of(task).index(value) if task['kind'] in ('single', 'ordinal') else float(value)


def check_labels(o, table, bound, df):
    "Masks, labels and what is certain, row by row; a row of votes weighs as many as there are, of shares 1."
    y, plain = bound.encode(df), bound.encode(df, weighted=False)
    units = bound.to_units(plain)
    assert y.shape == (len(df), 2, bound.n_targets) and y.isfinite().all()
    assert torch.equal(torch.as_tensor(y.mask) > 0, torch.as_tensor(plain.mask) > 0)
    for i in range(len(df)):
        for path, want in o.row(raw_row(table, i)).items():
            if want['clash']:
                continue
            task, at = o.entries[path][0], bound.slices[path].targets
            where = f'row {i}, {path}: {raw_row(table, i)[path]!r}'
            assert at.stop - at.start == n_targets(task)
            mask, weights = plain.mask[i, at].tolist(), y.mask[i, at].tolist()
            assert mask == [float(m) for m in want['mask']], where
            votes = sum(want['value']) if task['kind'] == 'votes' and any(mask) else 1
            assert weights == pytest.approx([m * votes for m in mask]), where
            certain = bound.tasks[path].certain(plain.vals[i, at]).tolist()
            assert [bool(m and c) for m, c in zip(mask, certain)] == want['scored'], where
            for got, value, m, scored in zip(units.vals[i, at].tolist(), want['value'], mask, want['scored']):
                if m:
                    assert got == pytest.approx(natural(task, value), rel=1e-4, abs=1e-4), where
                    assert scored or 0 < got < 1, where


@checks(60)
@given(rngs)
def test_labels_of_every_kind(rng):
    spec, table, fl, df = made(rng)
    kept, bound = df.copy(deep=True), fl.bind(df)
    check_labels(Oracle(spec), table, bound, df)
    pd.testing.assert_frame_equal(df, kept)


@checks(40)
@given(rngs)
def test_labels_that_imply_others(rng):
    spec, table, fl, df = made(rng, infer=True)
    check_labels(Oracle(spec), table, fl.bind(df), df)


@checks(40)
@given(rngs)
def test_a_single_row_and_a_table_of_blanks(rng):
    "One row of a table, and rows that hold no label at all, encode as in the whole table."
    spec, table, fl, df = made(rng)
    bound, i = fl.bind(df), rng.randrange(n_rows(table))
    y, one = bound.encode(df), bound.encode(df.iloc[[i]])
    assert torch.equal(torch.as_tensor(one), torch.as_tensor(y[i : i + 1]))
    blank = pd.DataFrame({c: hard_series([None] * 3, rng, None) for c in df})
    empty = Oracle(spec)
    nothing = {p: [[None] * n_targets(t) if t['kind'] == 'cols' else None] * 3 for p, (t, *_) in empty.entries.items()}
    check_labels(empty, nothing, bound, blank)


# ---- losses
# -------------------------------------------------------------------------------------------
def multinomial_nll(p, votes):
    "Of one row, by vote, without the constant; SciPy's where the votes are counts."
    p = p / p.sum()
    if all(v == int(v) for v in votes):
        constant = gammaln(sum(votes) + 1) - gammaln(np.array(votes) + 1).sum()
        return (constant - multinomial.logpmf(votes, sum(votes), p)) / sum(votes)
    return -sum(v * math.log(q) for v, q in zip(votes, p) if v) / sum(votes)


def dirichlet_nll(z, votes):
    alpha, n, votes = 1 + 100 / (1 + np.exp(-z)), sum(votes), np.array(votes, float)
    if all(v == int(v) for v in votes):
        constant = gammaln(n + 1) - gammaln(votes + 1).sum()
        return (constant - dirichlet_multinomial.logpmf(votes.astype(int), alpha, int(n))) / n
    ratio = (gammaln(alpha + votes) - gammaln(alpha)).sum()
    return -(gammaln(alpha.sum()) - gammaln(alpha.sum() + n) + ratio) / n


def row_loss(block, task, z, values, mask):
    "Loss of one row that counts, in float64."
    if task['kind'] == 'votes':
        dirichlet = task['kw'].get('loss') == 'dirichlet'
        return dirichlet_nll(z, values) if dirichlet else multinomial_nll(np.exp(z - z.max()), values)
    if task['kind'] == 'single':
        return np.log(np.exp(z - z.max()).sum()) + z.max() - z[vocab_of(task).index(values[0])]
    if task['kind'] == 'unbounded':
        return abs(z[0] - (values[0] - block.mean) / block.std)
    each = [max(x, 0) - x * float(v) + math.log1p(math.exp(-abs(x))) for x, v, m in zip(z, values, mask) if m]
    return sum(each) / len(each)


def losses_by_hand(o, table, bound, pred, rows):
    "path → [(loss, weight) or None of each row]"
    out = {p: [] for p in o.paths}
    for z, i in zip(pred.double().numpy(), rows):
        for p, r in o.row(raw_row(table, i)).items():
            task, one = o.entries[p][0], None
            if any(r['mask']):
                loss = row_loss(bound.tasks[p], task, z[bound.slices[p].logits], r['value'], r['mask'])
                one = loss, sum(r['value']) if task['kind'] == 'votes' else 1
            out[p].append(one)
    return out


def check_losses(o, table, bound, pred, y, rows, tol=2e-4):
    loss, hand, total = bound.loss_func, losses_by_hand(o, table, bound, pred, rows), 0
    per_task, per_sample = loss.per_task(pred, y), loss.per_sample(pred, y)
    for k, p in enumerate(o.paths):
        some = [x for x in hand[p] if x]
        want = [math.nan if x is None else x[0] for x in hand[p]]
        np.testing.assert_allclose(per_sample[:, k].numpy(), want, rtol=tol, atol=tol, err_msg=p)
        if some:
            mean = sum(x * w for x, w in some) / sum(w for _, w in some)
            assert float(per_task[k]) == pytest.approx(mean, rel=tol, abs=tol), p
            total += mean
        else:
            assert per_task[k].isnan() or per_task[k] == 0
    assert float(loss(pred, y)) == pytest.approx(total, rel=tol, abs=tol)


@checks(40)
@given(rngs)
def test_losses_of_every_batch(rng):
    "Of a batch of some rows, drawn with repetition, the losses are those of its own votes."
    spec, table, fl, df = made(rng, kinds=UNSURE_KINDS, n=rng.choice([5, 12]))
    o, bound = Oracle(spec), fl.bind(df)
    rows = [rng.randrange(len(df)) for _ in range(rng.choice([1, 4, 9]))]
    gen = torch.Generator().manual_seed(rng.randrange(10**6))
    pred = torch.randn(len(rows), bound.c, generator=gen) * rng.choice([0.1, 1, 4])
    y = bound.encode(df)[rows]
    check_losses(o, table, bound, pred, y, rows)
    check_losses(o, table, bound, pred, y.flatten(1), rows)
    pred.requires_grad_()
    total = bound.loss_func(pred, y)
    total.backward()
    assert pred.grad.isfinite().all()
    for p, (t, *_) in o.entries.items():
        unseen = ~(torch.as_tensor(y[:, 1, bound.slices[p].targets]) > 0).any(1)
        assert (pred.grad[unseen][:, bound.slices[p].logits] == 0).all(), p


# ---- decisions
# -------------------------------------------------------------------------------------------
def random_acts(rng, bound, n):
    gen = torch.Generator().manual_seed(rng.randrange(10**6))
    logits = torch.randn(n, bound.c, generator=gen) * rng.choice([0.3, 2, 6])
    if rng.random() < 0.2:
        logits[0] = 0  # every answer is as good
    return logits


def decided(o, bound, acts, vals):
    "{path: decided label} of one row; numbers, counts and ordinal classes as the library decides them."
    cells = {}
    for p, (t, *_) in o.entries.items():
        a, at = acts[bound.slices[p].acts], bound.slices[p].targets
        if t['kind'] == 'votes':
            cells[p] = Votes.decided(t['vocab'], a.double().tolist())
        elif t['kind'] == 'binary':
            cells[p] = a.item() > 0.5
        elif t['kind'] in ('multi', 'cols'):
            cells[p] = dict(zip(vocab_of(t) if t['kind'] == 'multi' else t['vocab'], (a > 0.5).tolist()))
        elif t['kind'] == 'single':
            cells[p] = vocab_of(t)[int(a.argmax())]
        elif t['kind'] == 'ordinal':
            cells[p] = vocab_of(t)[int(vals[at])]
        else:
            cells[p] = float(vals[at])
    return cells


def certainly(o):
    "The oracle of decisions: they are yes or no, also of shares."
    for t, *_ in o.entries.values():
        t.pop('soft', None)
    return o


DECIDED_KINDS = ['binary', 'single', 'multi', 'cols', 'bounded', 'unbounded', 'votes', 'votes']


@checks(40)
@given(rngs)
def test_decisions(rng):
    spec, table, fl, df = made(rng, kinds=DECIDED_KINDS)
    bound, o = fl.bind(df), certainly(Oracle(spec))
    loss = bound.loss_func
    acts = loss.activation(random_acts(rng, bound, 6))
    decoded = loss.decodes(acts)
    units = bound.to_units(decoded)
    for i in range(6):
        cells = decided(o, bound, acts[i], units.vals[i])
        pred = FlowPrediction(bound, decoded[i], activations=acts[i])
        for p, reached in o.reached(cells).items():
            t, at = o.entries[p][0], bound.slices[p].targets
            assert decoded.mask[i, at].tolist() == [float(reached)] * (at.stop - at.start), (i, p)
            if not reached:
                assert pred[p] is None
            elif t['kind'] == 'votes':
                assert {pred[p]} == cells[p].gave
            elif t['kind'] == 'single':
                assert pred[p] == cells[p]
    back = bound.to_frame(decoded)
    for p, (t, *_) in o.entries.items():
        if t['kind'] == 'votes':
            shares = back[[vote_column(t, a) for a in t['vocab']]].astype(float)
            reached = decoded.mask[:, bound.slices[p].targets.start].bool().numpy()
            assert shares[~reached].isna().all(None)
            want = acts[:, bound.slices[p].acts].numpy()[reached]
            np.testing.assert_allclose(shares[reached].to_numpy(), want, atol=1e-6)


@checks(25)
@given(rngs)
def test_labels_go_back_to_the_table(rng):
    "What `to_frame` writes of labels reads as the same labels (lists aside, of which a blank may be an answer)."
    spec, table, fl, df = made(rng, kinds=[k for k in ALL_KINDS if k != 'multi'])
    bound = fl.bind(df)
    y = bound.encode(df, weighted=False)
    again = bound.encode(bound.to_frame(y), weighted=False)
    assert torch.equal(torch.as_tensor(again.mask), torch.as_tensor(y.mask))
    torch.testing.assert_close(torch.as_tensor(again.vals * again.mask), torch.as_tensor(y.vals * y.mask))


# ---- P(reached)
# -------------------------------------------------------------------------------------------
def draws(t, a, label):
    "(label, probability) of all that one task can say"
    if t['kind'] == 'votes':
        return [(Votes.drawn(t['vocab'], a, x), q / sum(a)) for x, q in zip(t['vocab'], a)]
    if t['kind'] == 'binary':
        return [(True, a[0]), (False, 1 - a[0])]
    if t['kind'] == 'single':
        return list(zip(vocab_of(t), a))
    if t['kind'] in ('multi', 'cols'):
        names = vocab_of(t) if t['kind'] == 'multi' else t['vocab']
        all_bits = itertools.product([True, False], repeat=len(a))
        return [(dict(zip(names, bits)), math.prod(q if b else 1 - q for b, q in zip(bits, a))) for bits in all_bits]
    return [(label, 1.0)]


@checks(40)
@given(rngs)
def test_expected_shares_along_the_path(rng):
    "An answer is that of one random volunteer, a share is a number: against every draw."
    kinds = ['binary', 'single', 'cols', 'votes', 'votes', 'votes', 'unbounded']
    spec, table, fl, df = made(rng, kinds=kinds, max_tasks=5)
    bound, o = fl.bind(df), certainly(Oracle(spec))
    loss = bound.loss_func
    acts = loss.activation(random_acts(rng, bound, 2))
    decoded = loss.decodes(acts)
    vals = bound.to_units(torch.stack([loss.decide(acts), torch.ones(2, bound.n_targets)], 1))[:, 0]
    for i in range(2):
        cells = decided(o, bound, acts[i], vals[i])
        every = [
            draws(t, acts[i, bound.slices[p].acts].double().tolist(), cells[p]) for p, (t, *_) in o.entries.items()
        ]
        want = dict.fromkeys(o.paths, 0.0)
        said = {p: dict.fromkeys(t['vocab'], 0.0) for p, (t, *_) in o.entries.items() if t['kind'] == 'votes'}
        for draw in itertools.product(*every):
            weight = math.prod(q for _, q in draw)
            drawn = dict(zip(o.paths, (label for label, _ in draw)))
            for p, reached in o.reached(drawn).items():
                want[p] += weight * reached
                if p in said and reached:
                    said[p][min(drawn[p].gave, key=str)] += weight
        marginals = FlowPrediction(bound, decoded[i], activations=acts[i]).marginals
        for p in o.paths:
            assert marginals[p].reached == pytest.approx(want[p], abs=1e-5), p
            if p in said:
                assert marginals[p].values == pytest.approx(said[p], abs=1e-5), p


# ---- na=: which cells are blank
# -------------------------------------------------------------------------------------------
CELLS = [
    0,
    0.0,
    False,
    True,
    '0',
    ' 0',
    1,
    1.0,
    '1',
    'none',
    ' none\n',
    'None',
    -1,
    -1.0,
    '-1',
    2.5,
    '2.5',
    None,
    -99.9,
]
CELLS += [
    np.int8(0),
    np.bool_(True),
    np.float32(2.5),
    np.str_('none'),
    float('nan'),
    pd.NA,
    2**53 + 1,
    2**53,
    'ünï',
    'n',
]
NA = [
    0,
    0.0,
    False,
    True,
    '0',
    '0 ',
    1,
    '1',
    'none',
    ' none',
    -1,
    np.int64(-1),
    '-1',
    2.5,
    '2.5',
    -99.9,
    2**53 + 1,
    'ünï',
]


def plain(v):
    return v.item() if isinstance(v, np.generic) else v


@checks(150)
@given(rngs)
def test_cells_that_stand_for_a_blank(rng):
    "Numbers as numbers, text without the blanks around it, never one for the other; else an error that names the task"
    na = tuple(rng.sample(NA, rng.randint(0, 3)))
    cells = [rng.choice(CELLS) for _ in range(rng.randint(1, 6))]
    gone = [pd.isna(v) or stands_for_blank(plain(v), [plain(x) for x in na]) for v in cells]
    left = [plain(v) for v, g in zip(cells, gone) if not g]
    df = pd.DataFrame(dict(x=pd.Series(cells, dtype=object)))
    own = rng.random() < 0.5
    inner = Flow('g', SingleLabelBlock('x', na=na if own else None), na=('ünï', 0) if own else None)
    flow = Flow('f', inner, na=('n',) if own else na)
    try:
        got = flow.bind(df).encode(df).mask[:, 0].bool().tolist()
    except FlowError as e:
        assert "'g.x'" in str(e) and 'stands in na=' in str(e)
        assert any(v == plain(x) for v in left for x in na)  # False is 0 as an answer, if not as a blank
        return
    assert got == [not g for g in gone]


@checks(60)
@given(rngs)
def test_numbers_that_stand_for_a_blank(rng):
    "A number is taken out of a range and a standardisation, in columns of every make"
    pool = [-1, 2, 3, 99] if rng.random() < 0.5 else [-1.5, 2, 3.25, 99.75]
    values = [rng.choice([*pool, None]) for _ in range(rng.randint(1, 7))]
    na = tuple(rng.sample(pool, rng.randint(0, 2))) + tuple(rng.sample(['none', False, 1e300, 2**70, 0.3], 2))
    df = pd.DataFrame(dict(x=hard_series(values, rng, None)))
    block = rng.choice([BoundedRegressionBlock, UnboundedRegressionBlock])('x', na=na)
    bound = Flow('f', block).bind(df)
    known = [v is not None and not stands_for_blank(v, na) for v in values]
    left = [v for v, k in zip(values, known) if k]
    units = bound.to_units(bound.encode(df))
    assert units.mask[:, 0].tolist() == [float(k) for k in known]
    assert units.vals[:, 0][units.mask[:, 0] > 0].tolist() == pytest.approx(left, abs=1e-4)
    if left and isinstance(block, BoundedRegressionBlock):
        assert bound.tasks['x'].y_range[0] == min(left)
    elif left:
        assert bound.tasks['x'].mean == pytest.approx(np.mean(left))


# ---- whole numbers of votes that are large, shares that are small
# -------------------------------------------------------------------------------------------
@checks(60)
@given(rngs)
def test_votes_of_any_size(rng):
    "From one vote to a million, logits of any size: SciPy's likelihood, in float32"
    n, dirichlet = rng.randint(2, 5), rng.random() < 0.5
    vocab = [f'a{i}' for i in range(n)]
    votes = [[int(rng.random() * 10 ** rng.randint(0, 6)) for _ in vocab] for _ in range(rng.randint(1, 5))]
    df = pd.DataFrame(votes, columns=vocab)
    bound = Flow('g', VotesBlock('v', cols=vocab, loss='dirichlet' if dirichlet else 'multinomial')).bind(df)
    gen = torch.Generator().manual_seed(rng.randrange(10**6))
    pred = torch.randn(len(df), n, generator=gen) * rng.choice([0.01, 1, 10])
    got = bound.loss_func.per_sample(pred, bound.encode(df))[:, 0].tolist()
    task = dict(kind='votes', kw=dict(loss='dirichlet' if dirichlet else 'multinomial'))
    for z, row, loss in zip(pred.double().numpy(), votes, got):
        want = row_loss(None, task, z, row, None) if any(row) else math.nan
        assert loss == pytest.approx(want, rel=2e-3, abs=2e-3, nan_ok=True), row
    some = [(x, sum(r)) for x, r in zip(got, votes) if any(r)]
    if some:
        mean = sum(x * w for x, w in some) / sum(w for _, w in some)
        assert float(bound.loss_func(pred, bound.encode(df))) == pytest.approx(mean, rel=1e-4, abs=1e-4)


# ---- a learner
# -------------------------------------------------------------------------------------------
def scores_by_hand(o, bound, acts, table, rows):
    "(path, metric) → (score, rows that were scored)"
    out = {}
    for p, (t, *_) in o.entries.items():
        at, seen = bound.slices[p].acts, []
        for i in rows:
            r = o.row(raw_row(table, i))[p]
            seen.append((acts[i, at].double().numpy(), r['value'], r['scored']))
        cells = [(a, v) for acts_, vals, scored in seen for a, v, s in zip(acts_, vals, scored) if s]
        if t['kind'] == 'votes':
            kept = [(a / a.sum(), np.array(v, float)) for a, v, s in seen if all(s)]
            share = lambda v: v / v.sum()
            out[p, 'mae'] = [abs(a - share(v)).mean() for a, v in kept], None
            out[p, 'accuracy'] = [a.argmax() == v.argmax() for a, v in kept], None
            out[p, 'log_loss'] = [-(share(v) * np.log(a)).sum() for a, v in kept], [v.sum() for _, v in kept]
        elif t['kind'] == 'binary' and t.get('soft'):
            out[p, 'mae'] = [abs(a - v) for a, v in cells], None
            out[p, 'accuracy'] = [(a > 0.5) == (v > 0.5) for a, v in cells], None
        elif t['kind'] == 'binary':
            out[p, 'accuracy'] = [(a > 0.5) == bool(v) for a, v in cells], None
        elif t['kind'] == 'single':
            hits = [a.argmax() == vocab_of(t).index(v[0]) for a, v, s in seen if s[0]]
            out[p, 'accuracy'] = hits, None
    return {k: (np.average(x, weights=w) if x else math.nan, len(x)) for k, (x, w) in out.items()}


@checks(15)
@given(rngs)
def test_batches_and_scores_of_a_learner(rng):
    "The masks of a loader's batches, the loss of an epoch's batches, which rows are scored, and how"
    spec, table, fl, df = made(rng, kinds=['binary', 'votes', 'single', 'cols'], n=24, max_tasks=6)
    df = df.assign(row=np.arange(24.0)).reset_index(drop=True)
    valid = sorted(rng.sample(range(24), 13))
    dls = ConditionalTabularDataLoaders.from_df(df, fl, procs=[], cont_names=['row'], valid_idx=valid, bs=5)
    o, bound = Oracle(spec), dls.flow
    logits = torch.randn(24, bound.c, generator=torch.Generator().manual_seed(rng.randrange(999)))
    for dl, rows in zip(dls, (sorted(set(range(24)) - set(valid)), valid)):
        seen = []
        for _, cont, y in dl:
            batch = cont[:, 0].long().tolist()
            y = TensorConditional(y.reshape(len(batch), 2, -1))
            assert torch.equal(torch.as_tensor(y), torch.as_tensor(bound.encode(df.iloc[batch])))
            check_losses(o, table, bound, logits[batch], y, batch)
            seen += batch
        assert set(seen) <= set(rows) and (dl is dls.train or sorted(seen) == rows)
    learn = equip(Learner(dls, Row(logits), loss_func=dls.loss_func), tune=None)
    with learn.no_bar(), learn.no_logging():
        table_of_scores = learn.evaluate().set_index(['task_path', 'metric_name'])
    acts = bound.loss_func.activation(logits)
    for key, (score, n) in scores_by_hand(o, bound, acts, table, valid).items():
        row = table_of_scores.loc[key]
        assert row.num_samples == n, key
        assert row.metric_res == pytest.approx(score, abs=1e-5, nan_ok=True), key


@checks(15)
@given(rngs)
def test_mixup_mixes_the_losses_of_two_targets(rng):
    "A row of votes weighs as many as its target has, on both sides"
    spec, table, fl, df = made(rng, kinds=UNSURE_KINDS, n=6, max_tasks=5)
    o, bound, other = Oracle(spec), fl.bind(df), list(rng.sample(range(6), 6))
    pred, lam = torch.randn(6, bound.c, generator=torch.Generator().manual_seed(0)), rng.random()
    y, loss = bound.encode(df), bound.loss_func
    assert loss.y_int
    total = lambda rows: sum(
        sum(x * w for x, w in some) / sum(w for _, w in some)
        for each in losses_by_hand(o, table, bound, pred, rows).values()
        if (some := [x for x in each if x])
    )
    want = lam * total(range(6)) + (1 - lam) * total(other)
    assert float(torch.lerp(loss(pred, y[other]), loss(pred, y), lam)) == pytest.approx(want, rel=2e-4, abs=2e-4)
