"""The search on a learner and all that hangs on it, with a model whose logits are its input, against own loops
over rows."""

import itertools, json, random, warnings
from collections import Counter
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import (
    Callback,
    CSVLogger,
    DataBlock,
    EarlyStoppingCallback,
    IndexSplitter,
    Learner,
    SaveModelCallback,
    Transform,
    TransformBlock,
    load_learner,
)
from hypothesis import Phase, given, settings
from sklearn import metrics as skm
from torch import nn
import oracle
from oracle import Any, And, Not, Oracle, a_task, atom, flow as spec_flow
from random_flows import checks, random_spec, random_table, rngs
from scaled_logits import HALF, Z, learner, quiet, table
from fastai_condmtl.all import *
from fastai_condmtl.tasks.thresholds import best_threshold, cross_fit, gain


class Logits(Transform):
    "Row → the logits that stand in it"

    def __call__(self, r, **kwargs):
        return torch.tensor(np.asarray([r[c] for c in r.index if str(c)[:2] == 'z_'], dtype=np.float32))


class Known(nn.Module):
    "Its logits are its input; there is something to train"

    def __init__(self, c):
        super().__init__()
        self.weight, self.idle = nn.Parameter(torch.ones(c)), nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x * self.weight


class Moves(Callback):
    "Trains what no prediction reads: after a fit that changes no weight thresholds would stay"

    def after_train(self):
        self.model.idle.data.add_(1)


def make(flow, df, z=lambda slices, c: None, n_train=30, **kwargs):
    "A learner on rows `n_train:`; `z(slices, c)` gives the logits"

    def learner(df):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            dls = DataBlock(
                blocks=(TransformBlock, flow), get_x=Logits(), splitter=IndexSplitter(list(range(n_train, len(df))))
            ).dataloaders(df, bs=16, val_bs=32, num_workers=0)
        return Learner(dls, Known(dls.c), **kwargs)

    dls = learner(df.assign(z_=0.0)).dls
    logits = np.asarray(z(dls.flow.slices, dls.c), dtype=np.float32)
    df = pd.concat([df, pd.DataFrame(logits, columns=[f'z_{i}' for i in range(dls.c)], index=df.index)], axis=1)
    res = learner(df)
    res.df, res.rows, res.z = df, df.iloc[n_train:], logits[n_train:]
    return res


def search(learn, *args, **kwargs):
    return quiet(learn, 'search_thresholds', *args, **kwargs)


# leaf, tags, rare | gate: (path, column, label) of what is tuned; leaf is written before its parent
COLS = dict(gate='gate', free='free', leaf='leaf', t0='t0', t1='t1', t2='t2', rare='rare')
PATHS = dict(gate='gate', free='free', leaf='sub.leaf', t0='sub.tags', t1='sub.tags', t2='sub.tags', rare='rare')


def security(n=330, seed=0, leaf={}, tags={}, gate={}, poison=None, **kwargs):
    rng, g = np.random.default_rng(seed), BinaryBlock('gate', **gate)
    flow = Flow(
        'f',
        Flow('sub', BinaryBlock('leaf', **leaf) | g, MultiLabelBlock('tags', cols=['t0', 't1', 't2'], **tags) | g),
        g,
        SingleLabelBlock('kind', vocab=list('uv')),
        BinaryBlock('rare') | g,
        BinaryBlock('free'),
    )
    true = {
        c: rng.random(n) < p for c, p in dict(gate=0.7, leaf=0.3, t0=0.2, t1=0.4, t2=0.3, rare=0.01, free=0.3).items()
    }
    df = pd.DataFrame(true | dict(kind=rng.choice(list('uv'), n))).astype(object)
    df = df.mask(rng.random(df.shape) < 0.1)

    def z(s, c):
        z = rng.normal(size=(n, c))
        for name, path in PATHS.items():
            z[:, s[path].logits.start + (int(name[1]) if name[0] == 't' else 0)] += np.where(true[name], 1.3, -1)
        if poison is not None:
            z[(df.gate.ne(True)).to_numpy(), s['sub.leaf'].logits] = poison
        return z

    return make(flow, df, z, **kwargs)


def support(learn, name):
    "(probability, truth) of the rows in the mask, one at a time"
    s, j = learn.dls.flow.slices[PATHS[name]].logits, int(name[1]) if name[0] == 't' else 0
    p = torch.tensor(learn.z[:, s.start + j]).sigmoid().numpy()
    keep = [not pd.isna(r[name]) and (name in ('gate', 'free') or r.gate is True) for _, r in learn.rows.iterrows()]
    return p[keep], np.array([r[name] is True for _, r in learn.rows[keep].iterrows()])


SCORES = dict(
    f1_score=lambda t, p: skm.f1_score(t, p, zero_division=0),
    balanced_accuracy=skm.balanced_accuracy_score,
    accuracy=skm.accuracy_score,
    mcc=skm.matthews_corrcoef,
)
FNS = dict(
    f1_score=lambda tp, fp, fn, tn: 2 * tp / (2 * tp + fp + fn),
    balanced_accuracy=lambda tp, fp, fn, tn: (tp / (tp + fn) + tn / (tn + fp)) / 2,
    accuracy=lambda tp, fp, fn, tn: (tp + tn) / (tp + fp + fn + tn),
)


def by_name(table):
    return {r.label if isinstance(r.label, str) else r.task_path.split('.')[-1]: r for _, r in table.iterrows()}


def in_force(learn):
    return {k: v.tolist() for k, v in learn.loss_func.thresholds.items()}


def reset(learn):
    for k, v in learn.loss_func.thresholds.items():
        learn.loss_func.thresholds[k] = torch.full_like(v, 0.5)


@pytest.fixture(scope='module')
def shared():
    return security()


@pytest.fixture
def learn(shared):
    reset(shared)
    return shared


# ---- the table
# --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    'metric, gates',
    [
        ('f1_score', 'balanced_accuracy'),
        ('accuracy', 'accuracy'),
        ('balanced_accuracy', None),
        ('f1_score', 'f1_score'),
    ],
)
def test_table_by_a_loop(learn, metric, gates):
    table = search(learn, metric, gates=gates)
    assert (
        list(table.columns)
        == (
            'task_path label threshold score score_at_half cross_fit_score ci_low ci_high num_pos num_samples metric '
            'note'
        ).split()
    )
    assert [(r.task_path, None if pd.isna(r.label) else r.label) for r in table.itertuples()] == [
        (PATHS[n], n if n[0] == 't' else None) for n in PATHS
    ]  # parents first
    for name, row in by_name(table).items():
        (p, t), m = support(learn, name), (gates or metric) if name == 'gate' else metric
        assert (row.num_pos, row.num_samples, row.metric) == (t.sum(), len(t), m)
        assert row.score_at_half == pytest.approx(SCORES[m](t, p > 0.5), abs=1e-6)
        best, best_score = best_threshold(p, t, metric=m)
        honest = p > np.asarray(cross_fit(torch.tensor(p), torch.tensor(t), None, m))
        diff, se = gain(FNS[m], t, honest, p > 0.5)
        assert (row.note == '') == bool(diff > se and name != 'rare'), (name, row.note)
        if row.note == '':
            assert (row.threshold, row.score, row.cross_fit_score) == pytest.approx(
                (best, best_score, SCORES[m](t, honest)), abs=1e-6
            )
        else:
            assert row.note.startswith('kept 0.5') and (row.threshold, row.score, row.cross_fit_score) == pytest.approx(
                (0.5, row.score_at_half, row.score_at_half)
            )
        assert in_force(learn)[PATHS[name]][int(name[1]) if name[0] == 't' else 0] == pytest.approx(row.threshold)
    assert 'too few' in by_name(table)['rare'].note and (table.note == '').any()
    assert {k: v.shape for k, v in learn.loss_func.thresholds.items()} == {
        p: torch.Size([3 if p == 'sub.tags' else 1]) for p in PATHS.values()
    }


def test_a_second_search(learn):
    "A second search on the same rows starts from the block's threshold, not from what was found"
    pd.testing.assert_frame_equal(search(learn), search(learn))


def test_rows_out_of_the_mask_say_nothing():
    tables = [search(security(poison=x)) for x in (None, 40, -40, float('nan'))]
    for t in tables[1:]:
        pd.testing.assert_frame_equal(t, tables[0])


def test_other_rows(learn):
    train = search(learn, ds_idx=0, min_support=3)
    assert by_name(train)['free'].num_samples == learn.df.free.iloc[:30].notna().sum()
    some = learn.rows.iloc[:100]
    assert (
        by_name(search(learn, dl=learn.dls.test_dl(some, with_labels=True)))['free'].num_samples
        == some.free.notna().sum()
    )


def test_constraint_moves_or_is_infeasible(learn):
    seen = set()
    for name, row in by_name(search(learn, 'f1', ('precision', 0.85))).items():
        p, t = support(learn, name)
        if name == 'rare':
            assert 'too few' in row.note
            continue
        assert skm.precision_score(t, p > row.threshold) >= 0.85
        fitted = p > np.asarray(cross_fit(p, t, None, 'f1', ('precision', 0.85)))
        better, se = gain(FNS['f1_score'], t, fitted, p > 0.5)
        if skm.precision_score(t, p > 0.5) >= 0.85 and better <= se:  # .5 will do, and moving does not pay
            assert (
                row.note.startswith('kept 0.5: cross-fit gain')
                and row.threshold == 0.5
                and row.score == row.cross_fit_score == row.score_at_half
            )
            seen.add('kept')
        else:
            assert (row.note, row.threshold, row.score) == (
                '',
                *map(pytest.approx, best_threshold(p, t, metric='f1_score', constraint=('precision', 0.85))),
            )
            assert row.cross_fit_score == pytest.approx(skm.f1_score(t, fitted))
            seen.add('moved')
    assert seen == {'kept', 'moved'}
    for row in search(learn, constraint=('precision', 1.01)).itertuples():
        assert row.threshold == 0.5 and ('infeasible' in row.note or 'too few' in row.note)


def test_precedence():
    metrics = lambda learn, *a, **kw: {n: r.metric for n, r in by_name(search(learn, *a, **kw)).items()}
    plain, own = (
        security(),
        security(leaf=dict(tune='mcc'), gate=dict(tune='recall'), tags=dict(tune=dict(metric='accuracy'))),
    )
    with_gates = metrics(plain, 'f1_score', gates='balanced_accuracy')
    assert with_gates == dict.fromkeys(COLS, 'f1_score') | dict(gate='balanced_accuracy')
    assert metrics(plain, 'mcc') == dict.fromkeys(COLS, 'mcc')
    assert metrics(own, 'f1') == dict.fromkeys(COLS, 'f1_score') | dict(leaf='mcc', gate='recall') | dict.fromkeys(
        ['t0', 't1', 't2'], 'accuracy'
    )
    labels = dict.fromkeys(['t0', 't1', 't2'], 'f1_score')
    assert metrics(plain) == metrics(plain, 'headline') == dict.fromkeys(COLS, 'accuracy') | labels
    assert metrics(own, tasks=dict(leaf='youden', gate='f1')) == metrics(own) | dict(leaf='youden', gate='f1_score')
    assert metrics(own, tasks={'sub.leaf': None, 'gate': None}) == {
        n: m for n, m in metrics(own).items() if n not in ('leaf', 'gate')
    }
    assert (
        'leaf' not in metrics(off := security(leaf=dict(tune=None)))
        and metrics(off, tasks=dict(leaf='mcc'))['leaf'] == 'mcc'
    )
    given_ = metrics(plain, 'f1', ('recall', 0.9), gates='balanced_accuracy')
    assert given_['gate'].startswith('f1_score')  # a constraint is for all, gates too
    both = metrics(plain, tasks=dict(leaf=dict(metric='mcc', constraint=('recall', 0.9))))
    assert both['leaf'].startswith('mcc') and 'recall' in both['leaf'] and both['free'] == 'accuracy'
    assert metrics(plain, ('fbeta', 2))['free'] != metrics(plain, [[0, 1], [5, 0]])['free']


def test_a_task_left_alone_keeps_its_threshold(learn):
    learn.loss_func.thresholds['free'] = torch.tensor([0.123])
    assert 'free' not in by_name(search(learn, tasks=dict(free=None))) and in_force(learn)['free'] == pytest.approx(
        [0.123]
    )


def test_starts_from_the_blocks_threshold():
    row = by_name(search(security(leaf=dict(threshold=0.62)), 'f1'))
    p, t = support(security(), 'leaf')
    assert row['leaf'].note.startswith('kept 0.62') and (row['leaf'].threshold, row['leaf'].score) == pytest.approx(
        (0.62, skm.f1_score(t, p > 0.62))
    )
    assert row['leaf'].score_at_half == pytest.approx(skm.f1_score(t, p > 0.5))
    few = by_name(search(security(leaf=dict(threshold=0.62)), min_support=1000))
    assert few['leaf'].threshold == pytest.approx(0.62) and all('too few' in r.note for r in few.values())


def test_n_boot(learn):
    table = search(learn, n_boot=60, min_support=5)
    moved = table[table.note == '']
    assert len(moved) and (moved.ci_low < moved.ci_high).all() and moved.ci_low.notna().all()
    own = np.random.default_rng(1)
    p, t = support(learn, 'gate')
    ts = [
        best_threshold(p[i], t[i], metric='balanced_accuracy')[0]
        for i in (own.integers(0, len(p), len(p)) for _ in range(200))
    ]
    assert (by_name(table)['gate'].ci_low, by_name(table)['gate'].ci_high) == pytest.approx(
        tuple(np.quantile(ts, [0.025, 0.975])), abs=0.08
    )


def test_f1_micro(learn):
    rows = by_name(search(learn, 'f1_micro'))
    s = learn.dls.flow.slices['sub.tags'].logits
    mask = np.array([[not pd.isna(r[f't{j}']) and r.gate is True for j in range(3)] for _, r in learn.rows.iterrows()])
    true, p = (
        np.array([[r[f't{j}'] is True for j in range(3)] for _, r in learn.rows.iterrows()]),
        torch.tensor(learn.z[:, s]).sigmoid().numpy(),
    )
    ts, score = best_threshold(p, true, mask, 'f1', average='micro')
    assert [rows[f't{j}'].threshold for j in range(3)] == pytest.approx(list(ts)) and rows['t0'].score == rows[
        't2'
    ].score == pytest.approx(float(score))
    assert float(score) == pytest.approx(skm.f1_score(true[mask], (p > ts)[mask])) and rows[
        't0'
    ].score_at_half == pytest.approx(skm.f1_score(true[mask], p[mask] > 0.5))
    ev = quiet(learn, 'evaluate', metrics='f1_micro').set_index('task_path')
    assert ev.loc['sub.tags'].metric_res == pytest.approx(rows['t0'].cross_fit_score)
    assert (
        rows['rare'].score
        == pytest.approx(rows['rare'].score_at_half)
        == pytest.approx(by_name(search(learn, 'f1'))['rare'].score)
    )  # one label: F1 itself


# ---- in force
# ---------------------------------------------------------------------------------------------------------
def decisions(learn):
    "Own decisions under the thresholds in force: what each row says, None where not reached"
    th, s, res = in_force(learn), learn.dls.flow.slices, []
    yes = lambda z, path, j=0: 1 / (1 + np.exp(-float(z[s[path].logits.start + j]))) > th[path][j]
    for z in learn.z:
        g = yes(z, 'gate')
        res.append(
            dict(gate=g, free=yes(z, 'free'), kind='uv'[z[s['kind'].logits].argmax()])
            | {
                n: yes(z, PATHS[n], int(n[1]) if n[0] == 't' else 0) if g else None
                for n in ('leaf', 't0', 't1', 't2', 'rare')
            }
        )
    return res


def check_in_force(learn):
    want = decisions(learn)
    got = quiet(learn, 'predict_df', learn.rows)
    for n in want[0]:
        assert [None if pd.isna(v) else v for v in got[n]] == [w[n] for w in want], n
    preds, targs, dec = quiet(learn, 'get_preds', dl=learn.dls.test_dl(learn.rows, with_labels=True), with_decoded=True)
    s = learn.dls.flow.slices['sub.tags'].targets
    assert dec[:, 1, s.start].bool().tolist() == [w['gate'] for w in want]
    for i, w in enumerate(want):
        if w['gate']:
            assert dec[i, 0, s].bool().tolist() == [w[f't{j}'] for j in range(3)]
    for i in range(3):
        p = quiet(learn, 'predict', learn.rows.iloc[i])[0]
        assert (p['gate'], p['sub.leaf']) == (want[i]['gate'], want[i]['leaf'])


def test_in_force_everywhere_and_after_export(learn, tmp_path):
    search(learn, constraint=('precision', 0.85), min_support=2)
    assert len(set(itertools.chain(*in_force(learn).values()))) > 4
    check_in_force(learn)
    learn.path = tmp_path
    learn.export('l.pkl')
    again = load_learner(tmp_path / 'l.pkl')
    again.rows, again.z = learn.rows, learn.z
    assert in_force(again) == in_force(learn)
    check_in_force(again)
    dl = lambda l: l.dls.test_dl(learn.rows.iloc[:120], with_labels=True)
    pd.testing.assert_frame_equal(
        quiet(again, 'evaluate', dl=dl(again)), quiet(learn, 'evaluate', dl=dl(learn)), check_exact=False
    )


def test_metrics_and_evaluate_follow(learn):
    learn.metrics = learn.dls.flow.metrics('f1_score', 'accuracy')
    try:
        half = dict(zip([m.name for m in learn.metrics], quiet(learn, 'validate')[1:]))
        learn.loss_func.thresholds['free'], learn.loss_func.thresholds['sub.tags'] = (
            torch.tensor([0.7]),
            torch.tensor([0.2, 0.5, 0.9]),
        )
        strict = dict(zip([m.name for m in learn.metrics], quiet(learn, 'validate')[1:]))
    finally:
        learn.metrics = []
    p, t = support(learn, 'free')
    assert half['free.f1_score'] == pytest.approx(skm.f1_score(t, p > 0.5)) and strict[
        'free.f1_score'
    ] == pytest.approx(skm.f1_score(t, p > 0.7))
    macro = np.mean(
        [skm.f1_score(t, p > th) for (p, t), th in zip([support(learn, f't{j}') for j in range(3)], (0.2, 0.5, 0.9))]
    )
    ev = quiet(learn, 'evaluate').set_index(['task_path', 'metric_name']).metric_res
    assert strict['sub.tags.f1_score'] == pytest.approx(macro) == ev['sub.tags', 'f1_score'] and ev[
        'free', 'accuracy'
    ] == pytest.approx(strict['free.accuracy'])


# ---- cross-fit evaluation
# ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    'metric, constraint', [('f1_score', None), ('accuracy', None), ('f1_score', ('precision', 0.85))]
)
def test_evaluate_on_the_rows_that_tuned(learn, metric, constraint):
    assert quiet(learn, 'evaluate').cross_fit == ()
    rows, ev = by_name(search(learn, metric, constraint, gates=None)), quiet(learn, 'evaluate')
    assert set(ev.cross_fit) == {PATHS[n] for n, r in rows.items() if r.note == ''}
    ev = ev.set_index(['task_path', 'metric_name']).metric_res
    for n in ('gate', 'free', 'leaf', 'rare'):
        assert ev[PATHS[n], metric] == pytest.approx(rows[n].cross_fit_score), n
    assert ev['sub.tags', metric] == pytest.approx(np.mean([rows[f't{j}'].cross_fit_score for j in range(3)]))
    p, t = support(learn, 'gate')
    honest = p > (np.asarray(cross_fit(p, t, None, metric, constraint)) if rows['gate'].note == '' else 0.5)
    for m in ('precision', 'recall', 'mcc'):
        assert ev['gate', m] == pytest.approx(
            getattr(skm, dict(mcc='matthews_corrcoef').get(m, m + '_score'))(t, honest)
        ), m
    assert ev['gate', 'roc_auc'] == pytest.approx(skm.roc_auc_score(t, p))  # no threshold in it


def test_other_rows_are_not_cross_fit(learn):
    search(learn, constraint=('precision', 0.8))
    assert quiet(learn, 'evaluate', ds_idx=0).cross_fit == ()
    same = quiet(learn, 'evaluate', dl=learn.dls.test_dl(learn.rows, with_labels=True))
    pd.testing.assert_frame_equal(same, quiet(learn, 'evaluate'), check_exact=False)
    learn.loss_func.thresholds['free'] = torch.tensor([0.9])  # set by hand since: no longer found on these rows
    ev, (p, t) = quiet(learn, 'evaluate'), support(learn, 'free')
    assert 'free' not in ev.cross_fit and ev.set_index(['task_path', 'metric_name']).metric_res[
        'free', 'recall'
    ] == pytest.approx(skm.recall_score(t, p > 0.9))


@pytest.mark.parametrize('calibrated', [False, True])
def test_part_of_the_rows_that_tuned_is_cross_fit(learn, calibrated):
    """Rows left out, in another order, or with some others among them; rows of which most are others are judged
    by what is in force"""
    search(learn, constraint=('precision', 0.8))
    if calibrated:
        quiet(learn, 'calibrate')
    of = lambda rows: quiet(learn, 'evaluate', dl=learn.dls.test_dl(rows, with_labels=True))
    whole = quiet(learn, 'evaluate').cross_fit
    fresh = learn.rows.assign(
        **{
            c: learn.rows[c] + np.random.default_rng(1).normal(size=len(learn.rows))
            for c in learn.rows
            if c.startswith('z_')
        }
    )
    assert 'free' in whole
    for rows in (learn.rows.iloc[1:], learn.rows.iloc[::-1].iloc[:150], pd.concat([learn.rows, fresh.iloc[:100]])):
        assert of(rows).cross_fit == whole
    for rows in (fresh, fresh.iloc[:50], pd.concat([learn.rows.iloc[:100], fresh])):
        assert of(rows).cross_fit == ()
    part = learn.rows.iloc[:-1]
    k = part.free.notna().to_numpy()
    z = torch.from_numpy(learn.z[:-1][k, learn.dls.flow.slices['free'].logits.start])
    p, t = (z / learn.loss_func.temperatures.get('free', 1.0)).sigmoid().numpy(), part.free[k].astype(bool).to_numpy()
    start = float(learn.loss_func.tuned['free'].start[0])
    honest = np.where(k, 0.0, np.nan)
    honest[k] = cross_fit(p, t, None, 'f1', ('precision', 0.8), start=start)
    assert of(part).set_index(['task_path', 'metric_name']).metric_res['free', 'f1_score'] == pytest.approx(
        skm.f1_score(t, p > honest[k])
    )


def test_rows_that_are_alike_are_not_recognised():
    "One task and a score of two values: any other rows look the same, and only the very rows are cross-fit"
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(a=rng.random(600) < 0.5)).astype(object)
    z = np.where(df.a.astype(bool) ^ (rng.random(600) < 0.2), -2.0, -3.0)[:, None]
    learn = make(Flow('f', BinaryBlock('a')), df, lambda s, c: z, n_train=100)
    search(learn)
    assert learn.loss_func.tuned["a"].seen.alike == 1 and quiet(learn, 'evaluate').cross_fit == ('a',)
    assert quiet(learn, 'evaluate', dl=learn.dls.test_dl(learn.df.iloc[:100], with_labels=True)).cross_fit == ()


def test_a_sample_of_many_rows_is_kept(monkeypatch):
    "What is remembered does not grow with the rows"
    from fastai_condmtl.evaluate import fingerprint as seen

    monkeypatch.setattr(seen, "SAMPLE", 64)
    learn = security(n=900)
    search(learn)
    assert (
        all(len(t.seen.hashes) <= 64 for t in learn.loss_func.tuned.values())
        and len(learn.loss_func.tuned["free"].seen.hashes) == 64
    )
    whole = quiet(learn, 'evaluate').cross_fit
    assert (
        whole
        and quiet(learn, 'evaluate', dl=learn.dls.test_dl(learn.rows.iloc[200:], with_labels=True)).cross_fit == whole
    )


def test_a_metric_that_is_never_a_number_changes_nothing():
    "Neither an error after a fit, which would lose it, nor a threshold"
    learn = security(cbs=ThresholdSearch(lambda tp, fp, fn, tn: tp * np.nan, gates=None, verbose=False))
    quiet(learn, 'fit', 1, lr=0.0, cbs=Moves())
    t = learn.threshold_search.result
    assert set(t.threshold) == {0.5} and set(t.note[t.num_samples > 20]) <= {
        'kept 0.5: the metric is NaN at every threshold'
    } | {n for n in t.note if 'too few' in n}
    assert t.note.str.contains('NaN').any()


def test_which_rows_tuned_what(learn):
    search(learn)
    assert 'sub.tags' in quiet(learn, 'evaluate').cross_fit
    search(learn, tasks=dict(tags=None))  # not searched anew: still found on these rows
    assert 'sub.tags' in quiet(learn, 'evaluate').cross_fit
    search(learn, ds_idx=0, constraint=('recall', 1.0), min_support=1)  # which .5 does not meet
    assert 'sub.tags' in quiet(learn, 'evaluate', ds_idx=0).cross_fit and quiet(learn, 'evaluate').cross_fit == ()


def test_evaluate_intervals(learn):
    plain, ev = (
        quiet(learn, 'evaluate', metrics=['f1_score', 'accuracy']),
        quiet(learn, 'evaluate', metrics=['f1_score', 'accuracy'], n_boot=200),
    )
    pd.testing.assert_frame_equal(ev.drop(columns=['ci_low', 'ci_high']), plain)
    some = ev.dropna(subset='metric_res')
    assert ((some.ci_low <= some.metric_res) & (some.metric_res <= some.ci_high)).all()
    rng, (p, t) = np.random.default_rng(0), support(learn, 'free')
    own = np.quantile(
        [skm.f1_score(t[i], p[i] > 0.5) for i in (rng.integers(0, len(p), len(p)) for _ in range(400))], [0.025, 0.975]
    )
    row = ev.set_index(['task_path', 'metric_name']).loc[('free', 'f1_score')]
    assert (row.ci_low, row.ci_high) == pytest.approx(tuple(own), abs=0.02)
    assert 'free' in ev.show().to_html()


# ---- files
# ------------------------------------------------------------------------------------------------------------
def test_json_round_trip(learn, tmp_path):
    search(learn, constraint=('precision', 0.85))
    found = in_force(learn)
    learn.save_thresholds(tmp_path / 't.json')
    reset(learn)
    learn.load_thresholds(str(tmp_path / 't.json'))
    assert in_force(learn) == found and all(v.dtype == torch.float32 for v in learn.loss_func.thresholds.values())


TAGS = lambda *labels: [dict(label=l, threshold=0.1) for l in labels]


@pytest.mark.parametrize(
    'thresholds',
    [
        dict(nope=0.5),
        dict(kind=0.5),
        dict(gate='.5'),
        dict(gate=None),
        dict(gate=float('nan')),
        dict(gate=7),
        dict(gate=-0.1),
        dict(gate=[]),
        dict(gate=[0.5, 0.6]),
        dict(gate={}),
        {'sub.tags': TAGS('t0')},
        {'sub.tags': TAGS('t0', 't1', 'x')},
        {'sub.tags': TAGS('t0', 't0', 't1')},
        {'sub.tags': [0.1, 0.2]},
        {'sub.tags': [dict(label=f't{i}') for i in range(3)]},
        3,
        [],
        None,
    ],
)
def test_hostile_thresholds(learn, tmp_path, thresholds):
    before = in_force(learn)
    whole = {'free': 0.9, **thresholds} if isinstance(thresholds, dict) else thresholds
    (tmp_path / 't.json').write_text(json.dumps(dict(flow='f', thresholds=whole, temperatures={})))
    with pytest.raises(FlowError) as e:
        learn.load_thresholds(tmp_path / 't.json')
    assert in_force(learn) == before
    if isinstance(thresholds, dict):
        assert next(iter(thresholds)) in str(e.value) and 'condition asks' not in str(e.value)


@pytest.mark.parametrize('text', ['', '{', '[]', '{}', '3', 'null', '\x00', '[' * 10**5])
def test_hostile_files(learn, tmp_path, text):
    (tmp_path / 't.json').write_text(text)
    with pytest.raises(FlowError):
        learn.load_thresholds(tmp_path / 't.json')


@pytest.mark.parametrize('temperature', [1e300, 10**400, 1e-320, 0, -1, float('inf'), float('nan'), True, '2', [1]])
def test_hostile_temperatures(learn, tmp_path, temperature):
    (tmp_path / 't.json').write_text(json.dumps(dict(thresholds={}, temperatures=dict(gate=temperature))))
    with pytest.raises(FlowError, match="of task 'gate' must be a positive number"):
        learn.load_thresholds(tmp_path / 't.json')


# ---- the callback
# -----------------------------------------------------------------------------------------------------
def test_searches_after_a_fit_only():
    cb = ThresholdSearch(verbose=False)
    learn = security(cbs=cb)
    assert learn.threshold_search is cb and getattr(cb, 'result', None) is None
    for f in ('validate', 'get_preds'):
        quiet(learn, f)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        quiet(learn, 'lr_find', num_it=20, show_plot=False)
    assert getattr(cb, 'result', None) is None and set(itertools.chain(*in_force(learn).values())) == {0.5}
    quiet(learn, 'fit', 1, lr=0.0, cbs=Moves())
    other = security()
    pd.testing.assert_frame_equal(cb.result, search(other))
    assert in_force(learn) == in_force(other)
    found = in_force(learn)
    quiet(learn, 'get_preds')
    assert in_force(learn) == found


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(metric='mcc', gates=None),
        dict(constraint=('precision', 0.8)),
        dict(tasks=dict(leaf=None, free='youden')),
        dict(n_boot=40),
        dict(min_support=60),
    ],
)
def test_the_callback_takes_what_the_search_takes(kwargs):
    learn = security(cbs=ThresholdSearch(verbose=False, **kwargs))
    quiet(learn, 'fit', 1, lr=0.0, cbs=Moves())
    pd.testing.assert_frame_equal(learn.threshold_search.result, search(security(), **kwargs))


def test_every_epoch_and_what_it_says(capsys):
    learn = security(cbs=ThresholdSearch(every='epoch', verbose=False))
    learn.metrics = learn.dls.flow.metrics('f1_score')
    quiet(learn, 'fit', 2, lr=0.0, cbs=Moves())
    (first, second) = learn.recorder.values
    assert len(first) == len(second) and learn.threshold_search.result is not None and capsys.readouterr().out == ''
    loud = security(cbs=ThresholdSearch())
    with loud.no_bar():
        loud.fit(1, lr=0.0, cbs=Moves())
    assert 't0' in capsys.readouterr().out
    with pytest.raises(FlowError):
        security(cbs=ThresholdSearch(every='sometimes'))


def test_nothing_is_disturbed(tmp_path):
    def run(*cbs):
        random.seed(0)
        learn = security(
            path=tmp_path,
            cbs=[
                SaveModelCallback(monitor='valid_loss', fname=f'm{len(cbs)}'),
                EarlyStoppingCallback(patience=9),
                CSVLogger(fname=f'{len(cbs)}.csv'),
                *cbs,
            ],
        )
        learn.metrics = learn.dls.flow.metrics('f1_score')
        torch.manual_seed(1)
        random.seed(1)
        quiet(learn, 'fit', 3, lr=0.01)
        return learn

    with_, without = run(ThresholdSearch(verbose=False)), run()
    assert (
        with_.recorder.values == without.recorder.values
        and with_.recorder.metric_names == without.recorder.metric_names
        and len(with_.recorder.values) == 3
    )
    assert (
        torch.equal(torch.stack(with_.recorder.losses), torch.stack(without.recorder.losses))
        and with_.recorder.iters == without.recorder.iters
    )
    assert with_.save_model.best == without.save_model.best and torch.equal(with_.model.weight, without.model.weight)
    drop = lambda f: pd.read_csv(tmp_path / f).drop(columns='time')
    pd.testing.assert_frame_equal(drop('1.csv'), drop('0.csv'))
    z = security(path=tmp_path)
    z.model = with_.model
    pd.testing.assert_frame_equal(
        with_.threshold_search.result, search(z)
    )  # the model that stays is the one that is searched


# ---- errors
# -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    'kwargs, says',
    [
        (dict(metric='f3'), 'f1_score'),
        (dict(gates='zz'), 'balanced_accuracy'),
        (dict(tasks=dict(leef='f1')), "did you mean 'leaf'"),
        (dict(tasks=dict(kind='f1')), 'kind'),
        (dict(tasks=dict(leaf='f9')), 'f1_score'),
        (dict(tasks=dict(leaf='f9')), 'leaf'),
        (dict(tasks=dict(leaf=dict(metrc='f1'))), 'leaf'),
        (dict(tasks=dict(leaf=dict(metrc='f1'))), "'metric'"),
        (dict(tasks=['leaf']), 'leaf'),
        (dict(constraint='precision'), 'precision'),
        (dict(constraint=('precison', 0.9)), 'precision'),
    ],
)
def test_bad_search(learn, kwargs, says):
    before = in_force(learn)
    with pytest.raises(FlowError, match=says) as e:
        search(learn, **kwargs)
    assert in_force(learn) == before and 'condition asks' not in str(e.value)


def test_nan_predictions_name_the_task(learn):
    bad = learn.rows.copy()
    bad.loc[bad[bad.free.notna()].index[3], f"z_{learn.dls.flow.slices['free'].logits.start}"] = np.nan
    before = in_force(learn)
    with pytest.raises(FlowError, match='free'):
        search(learn, dl=learn.dls.test_dl(bad, with_labels=True))
    assert in_force(learn) == before


def test_without_flow_or_labels(learn):
    with pytest.raises(FlowError, match='with_labels'):
        search(learn, dl=learn.dls.test_dl(learn.rows))
    bare = Learner(
        DataBlock(blocks=(TransformBlock, TransformBlock)).dataloaders([1, 2, 3, 4], bs=2, num_workers=0),
        nn.Linear(1, 1),
        loss_func=nn.MSELoss(),
    )
    for f, a in [
        ('search_thresholds', ()),
        ('evaluate', ()),
        ('cascade_report', ()),
        ('save_thresholds', ('x.json',)),
        ('load_thresholds', ('x.json',)),
        ('plot_threshold', ('a',)),
    ]:
        with pytest.raises(FlowError):
            quiet(bare, f, *a)


def test_bad_block_tune():
    for bad in ('f9', dict(metrc='f1'), 3, ('fbeta',)):
        with pytest.raises(FlowError, match='leaf'):
            search(security(leaf=dict(tune=bad)))


def test_plot(learn):
    ax = quiet(learn, 'plot_threshold', 'leaf', 'f1', n_boot=40)
    p, t = support(learn, 'leaf')
    lines = [l for l in ax.lines if len(l.get_xdata()) > 5]
    x, y = map(np.asarray, lines[0].get_data())
    i = len(x) // 2
    assert y.max() == pytest.approx(best_threshold(p, t)[1], abs=0.01) and y[:-1][i] == pytest.approx(
        skm.f1_score(t, p > x[i]), abs=0.03
    )
    assert quiet(learn, 'plot_threshold', 'tags', label='t1', n_boot=0, ax=ax) is ax
    for bad in (
        dict(task='kind'),
        dict(task='leef'),
        dict(task='tags', label='t9'),
        dict(task='leaf', label='x'),
        dict(task='leaf', metric='zz'),
    ):
        with pytest.raises(FlowError):
            quiet(learn, 'plot_threshold', n_boot=0, **bad)


# ---- cascade_report
# ---------------------------------------------------------------------------------------------------
def atoms(cond):
    return [cond] if cond[0] == 'atom' else [a for c in cond[1:] for a in atoms(c)]


class Charges(Oracle):
    "Row by row: which ancestors may be charged (none of their own ancestors is wrong), who is missed, who is spurious"

    def __init__(self, spec):
        super().__init__(spec)
        self.asked = {
            p: [r for x in {p} | self.ancestors(p) for r in self.parents(x)] for p in self.paths
        }  # on the way to p: task asked, atom, scope

    def parents(self, path):
        return [(oracle.resolve(a[1], pre, self.paths), a, pre) for c, pre in self.entries[path][2] for a in atoms(c)]

    def ancestors(self, path):
        seen = {p for p, *_ in self.parents(path)}
        return seen.union(*map(self.ancestors, seen))

    def state(self, path, cells):
        return oracle.k_and(self.evaluate(c, pre, cells) for c, pre in self.entries[path][2])

    def scored(self, path, value):
        "Is some label there, and not an uncertain one?"
        values = value.values() if isinstance(value, dict) else [value]
        return any(v is not None and not oracle.is_code(self.entries[path][0], v) for v in values)

    def run(self, labels, preds):
        res = {p: dict(missed=0, spurious=0, n=0, reached=0, sure=Counter(), maybe=Counter()) for p in self.paths}
        for lab, pred in zip(labels, preds):
            reached, mask = (
                self.reached(pred),
                {p: self.applicable(p, lab) and self.scored(p, lab[p]) for p in self.paths},
            )
            for p, r in res.items():
                r['n'] += mask[p]
                r['reached'] += reached[p]
                kind = (
                    'missed'
                    if mask[p] and not reached[p]
                    else 'spurious'
                    if reached[p] and self.state(p, lab) is False
                    else None
                )
                if not kind:
                    continue
                r[kind] += 1
                wrong = [
                    q
                    for q in self.ancestors(p)
                    if reached[q]
                    and mask[q]
                    and any(
                        self.evaluate(a, pre, lab) not in (None, self.evaluate(a, pre, pred))
                        for t, a, pre in self.asked[p]
                        if t == q
                    )
                ]
                first = [q for q in wrong if not self.ancestors(q) & set(wrong)]
                assert first
                for q in first:
                    r['sure'][q, kind] += len(first) == 1
                    r['maybe'][q, kind] += 1
        return res


def check_cascade(spec, table, seed, n_train=2):
    rng, lib = np.random.default_rng(seed), Charges(spec)
    df = oracle.frame(spec, table, random.Random(seed))
    for c in df:
        df[c] = df[c].astype(object)
    learn = make(
        oracle.build(spec, random.Random(seed)), df, lambda s, c: rng.normal(size=(len(df), c)) * 1.5, n_train=n_train
    )
    slices = learn.dls.flow.slices

    def decide(path, z):
        t, z = lib.entries[path][0], z[slices[path].logits]
        if t['kind'] == 'binary':
            return bool(z[0] > 0)
        if t['kind'] == 'single':
            return oracle.vocab_of(t)[z.argmax()]
        if t['kind'] == 'bounded':
            return float(t['y_range'][0] + (t['y_range'][1] - t['y_range'][0]) / (1 + np.exp(-float(z[0]))))
        return dict(zip(t['vocab'] if t['kind'] == 'cols' else oracle.vocab_of(t), (z > 0).tolist()))

    labels = [{p: lib.cell(p, table[p][i]) for p in lib.paths} for i in range(n_train, len(df))]
    own = lib.run(labels, [{p: decide(p, z) for p in lib.paths} for z in learn.z])
    got = quiet(learn, 'cascade_report')
    assert list(got.columns) == ['parent', 'task_path', 'missed', 'spurious', 'num_samples', 'reached']
    assert not got.duplicated(['parent', 'task_path']).any() and (got.missed + got.spurious > 0).all()
    for p, r in own.items():
        mine = got[got.task_path == p]
        assert (mine.missed.sum(), mine.spurious.sum()) == (r['missed'], r['spurious']), p
        assert set(mine.num_samples) <= {r['n']} and set(mine.reached) <= {r['reached']}
        for kind in ('missed', 'spurious'):
            charged = dict(zip(mine.parent, mine[kind]))
            for q in set(charged) | {q for q, k in r['maybe'] if k == kind}:
                assert r['sure'][q, kind] <= charged.get(q, 0) <= r['maybe'][q, kind], (p, q, kind)
    ev = quiet(learn, 'evaluate').drop_duplicates('task_path').set_index('task_path')
    for p, row in ev.iterrows():
        mine = got[got.task_path == p]
        assert mine.missed.sum() == pytest.approx(np.nan_to_num(row.missed * row.num_samples))
        assert mine.spurious.sum() == pytest.approx(np.nan_to_num(row.spurious * own[p]['reached']))


B = lambda name, given=None: a_task('binary', name, given)


@pytest.mark.parametrize(
    'items',
    [
        [B('a'), B('b', atom('a')), B('c', atom('b')), B('d', Not(atom('c')))],  # a chain
        [B('a'), B('b'), B('c', And(atom('a'), atom('b'))), B('d', Any(atom('a'), Not(atom('b'))))],  # two parents
        [
            B('d', Any(atom('b'), atom('c'))),
            B('b', atom('a')),
            B('c', Not(atom('a'))),
            B('a'),
        ],  # a diamond, children first
        [
            B('a'),
            B('b', atom('a')),
            B('c', And(atom('a'), Not(atom('b')))),
            B('d', Any(And(atom('b'), atom('a')), Not(atom('c')))),
        ],
        [
            a_task('single', 'k', vocab=['u', 'v', 'w']),
            B('b'),
            B('x', Any(atom('k', 'eq', 'u'), atom('b'))),
            B('y', atom('k', 'isin', ('u', 'v'))),
            B('z', Not(atom('k', 'eq', 'v'))),
        ],
        [
            a_task('multi', 'm', vocab=['p', 'q', 'r']),
            B('x', atom('m', 'has', 'p')),
            B('y', atom('m', 'has_all', ('p', 'q'))),
            B('z', And(Not(atom('m', 'has_any', ('q', 'r'))), atom('x'))),
        ],
        [
            a_task('cols', 'm', vocab=['p', 'q', 'r'], col=None),
            B('x', Any(atom('m', 'has', 'p'), atom('m', 'has', 'q'))),
            B('y', Not(atom('m', 'has_all', ('p', 'r')))),
        ],
        [
            a_task('bounded', 'r', y_range=(-8, 8)),
            B('g'),
            B('x', And(atom('r', 'gt', 0.5), atom('g'))),
            B('y', Any(atom('r', 'between', (-2.0, 2.0)), Not(atom('g')))),
            B('z', Not(atom('r', 'le', 1.0))),
        ],
    ],
)
def test_cascade_by_hand(items):
    spec = spec_flow('root', *items)
    for seed in range(2):
        check_cascade(spec, random_table(random.Random(seed), spec, n=60, whole=False), seed, 3)


@settings(checks(25), phases=[Phase.generate])
@given(rngs)
def test_cascade_on_random_flows(rng):
    spec = random_spec(rng, 8, kinds=['binary', 'single', 'multi', 'cols', 'bounded'], unsure=True)
    for _, t, *_ in oracle.walk(spec):
        t['vocab_given'] = True
        if t['kind'] == 'bounded':
            t['y_range'] = (-8, 8)
        t.pop('nan_is_empty', None)
    check_cascade(spec, random_table(rng, spec, n=24), rng.randint(0, 10**6))


def test_cascade_first_mistake_of_a_chain():
    "a → b → c by hand: labels all yes; rows differ in who is wrong"
    a, b = BinaryBlock('a'), BinaryBlock('b')
    flow, rows = Flow('f', a, b | a, BinaryBlock('c') | b), [(1, 1), (-1, 1), (1, -1), (-1, -1), (1, -1)]
    df = pd.DataFrame([dict(a=True, b=True, c=True)] * (2 + len(rows)))

    def z(s, n):
        res = np.ones((len(df), n))
        for i, (x, y) in enumerate(rows):
            res[2 + i, s['a'].logits], res[2 + i, s['b'].logits] = x, y
        return res

    got = quiet(make(flow, df, z, n_train=2), 'cascade_report')
    assert {(r.parent, r.task_path): (r.missed, r.spurious, r.num_samples, r.reached) for r in got.itertuples()} == {
        ('a', 'b'): (2, 0, 5, 3),
        ('a', 'c'): (2, 0, 5, 1),
        ('b', 'c'): (2, 0, 5, 1),
    }


@pytest.mark.parametrize('v', [0.3, 1.1, 3.3, 6.7])
def test_cascade_asks_the_label_not_the_rounded_one(v):
    "A label on the very boundary, on a range that float32 cannot scale back exactly; r is decided 6.999"
    r, vals = BoundedRegressionBlock('r', y_range=(0, 7)), [i / 10 for i in range(71)]
    for cond, holds in [
        (r >= v, [x >= v for x in vals]),
        (r > v, [x > v for x in vals]),
        (r < v, [x < v for x in vals]),
        (r.between(v, v), [x == v for x in vals]),
    ]:
        learn = make(
            Flow('f', r, BinaryBlock('x') | cond),
            pd.DataFrame(dict(r=vals, x=True)),
            lambda s, c: np.full((len(vals), c), 9.0),
            n_train=1,
        )
        up, n, row = holds[-2], sum(holds[1:]), quiet(learn, 'cascade_report').iloc[0]
        assert (row.parent, row.missed, row.spurious, row.num_samples, row.reached) == (
            'r',
            *((0, 70 - n) if up else (n, 0)),
            n,
            70 if up else 0,
        )


def test_cascade_charges_a_task_only_for_what_is_asked_of_it():
    "k is wrong, but not about u: x is lost by b alone"
    k, b = SingleLabelBlock('k', vocab=list('uvw')), BinaryBlock('b')
    flow, df = (
        Flow('f', k, b, BinaryBlock('x') | any_of(k.eq('u'), b), BinaryBlock('y') | k.eq('v')),
        pd.DataFrame([dict(k='w', b=True, x=True, y=None)] * 5),
    )

    def z(s, c):
        res = np.full((5, c), -1.0)
        res[:, s['k'].logits.start + 1] = 3  # decided v
        return res

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        got = quiet(make(flow, df, z, n_train=2), 'cascade_report').set_index('task_path').parent
    assert got.to_dict() == dict(x='b', y='k')


def test_cascade_without_a_labelled_parent():
    a = BinaryBlock('a')
    df = pd.DataFrame([dict(a=True, b=True)] * 2 + [dict(a=None, b=True)] * 4).astype(object)
    got = quiet(
        make(Flow('f', a, BinaryBlock('b') | a, infer_labels=True), df, lambda s, c: -np.ones((6, c)), n_train=1),
        'cascade_report',
    )
    assert (
        [None if pd.isna(p) else p for p in got.parent] == [None, 'a']
        and got.missed.tolist() == [4, 1]
        and set(got.num_samples) == {5}
        and set(got.reached) == {0}
    )


def test_cascade_and_evaluate_agree_after_a_search(learn):
    search(learn, constraint=('precision', 0.9))
    ev, got = (
        quiet(learn, 'evaluate').drop_duplicates('task_path').set_index('task_path'),
        quiet(learn, 'cascade_report'),
    )
    assert set(got.parent) == {'gate'} and set(got.task_path) == {'sub.leaf', 'sub.tags', 'rare'}
    for r in got.itertuples():
        assert (r.missed, r.spurious) == (
            pytest.approx(ev.missed[r.task_path] * r.num_samples),
            pytest.approx(ev.spurious[r.task_path] * r.reached),
        )


def test_two_learners_on_one_dls():
    one = learner(ThresholdSearch())
    quiet(one, 'fit', 1)
    before = dict(one.loss_func.thresholds)
    two = learner(ThresholdSearch(metric='recall', gates=None), dls=one.dls, s=-1.0)
    quiet(two, 'fit', 1)
    quiet(two, 'calibrate')
    assert (
        dict(one.loss_func.thresholds) == before
        and not one.loss_func.temperatures
        and not torch.equal(two.loss_func.thresholds['b'], before['b'])
    )


def test_training_metrics_do_not_tune():
    learn = learner(ThresholdSearch(), train_bn=True)
    learn.recorder.train_metrics, learn.recorder.valid_metrics = True, False
    quiet(learn, 'fit', 1)
    assert learn.threshold_search.result.num_samples.iloc[0] == len(HALF)


def test_probabilities_of_exactly_zero():
    df = table().assign(z0=-200.0, a=True)
    df.loc[df.index[::3], 'a'] = False
    learn = learner(df=df)
    res = quiet(learn, 'search_thresholds', gates=None).set_index('task_path')
    quiet(learn, 'calibrate')
    assert 0 <= res.threshold['a'] <= 1 and all(
        torch.isfinite(torch.as_tensor(t)).all() for t in learn.loss_func.thresholds.values()
    )


def test_other_rows_with_the_same_labels_are_other_rows():
    df = table()
    learn = learner(df=df)
    assert '' in set(quiet(learn, 'search_thresholds', 'f1').note)
    assert quiet(learn, 'evaluate').cross_fit
    rng = np.random.default_rng(5)
    other = df.iloc[HALF].assign(z0=rng.normal(size=len(HALF)), z1=rng.normal(size=len(HALF)))
    assert not quiet(learn, 'evaluate', dl=learn.dls.test_dl(other, with_labels=True)).cross_fit


def test_too_few_rows_leave_what_is_in_force():
    learn = learner()
    learn.loss_func.thresholds['b'] = torch.tensor([0.9])
    res = quiet(learn, 'search_thresholds', min_support=10_000).set_index('task_path')
    assert (
        res.threshold['b'] == pytest.approx(0.9)
        and 'kept 0.9' in res.note['b']
        and float(learn.loss_func.thresholds['b']) == pytest.approx(0.9)
    )
    with pytest.raises(FlowError, match='constraint'):
        quiet(learn, 'search_thresholds', 'f1_micro', constraint=('precision', 0.9))
    empty = table().assign(b=None)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn = learner(df=empty)
    assert quiet(learn, 'search_thresholds', min_support=0).num_samples.tolist()[1] == 0


def test_own_metrics_and_order_of_writing():
    ratio = lambda tp, fp, fn, tn: tp / (tp + fp)
    with np.errstate(invalid='ignore'):
        assert best_threshold([0.1, 0.4, 0.9], [0, 0, 1], metric=ratio)[1] == 1
    names = [f't{i}' for i in range(800)]
    bound = Flow('f', *map(BinaryBlock, names), BinaryBlock('last') | any_of(*map(task, reversed(names)))).bind(
        pd.DataFrame({n: [0, 1] for n in [*names, 'last']})
    )
    assert len(bound.diagrams.nodes) == 802


def test_partial_thresholds():
    learn = learner(s=4.0)
    learn.loss_func.thresholds = {'a': 0.3}
    quiet(learn, 'calibrate')
    assert set(learn.loss_func.thresholds) >= {'a'} and learn.loss_func.temperatures


def test_a_foreign_loss_and_no_validation_rows():
    learn = learner(loss_func=nn.BCEWithLogitsLoss(), metrics=[])
    for f, args in [
        ('evaluate', ()),
        ('search_thresholds', ()),
        ('explain', (table()[:2],)),
        ('calibrate', ()),
        ('get_marginals', ()),
    ]:
        with pytest.raises(FlowError, match='loss_func'):
            quiet(learn, f, *args)
    a = BinaryBlock('a')
    dls = DataBlock(
        blocks=(TransformBlock, Flow('f', a, BinaryBlock('b') | a)), get_x=Z(), splitter=IndexSplitter([])
    ).dataloaders(table(), bs=50, num_workers=0)
    learn = learner(dls=dls)
    for f in ('evaluate', 'search_thresholds', 'explain', 'calibrate', 'get_marginals'):
        with pytest.raises(FlowError):
            quiet(learn, f)


def headlines(learn):
    "Headline scores on all rows, by scikit-learn and a loop over labels, `{path: (in force, at one half)}`"
    own, half = {}, {}
    thresholds = in_force(learn)
    for name in COLS:
        p, t = support(learn, name)
        path, j = PATHS[name], int(name[1]) if name[0] == 't' else 0
        measure = SCORES['f1_score'] if name[0] == 't' else skm.accuracy_score
        own.setdefault(path, []).append(measure(t, p > np.ravel(thresholds[path])[j]))
        half.setdefault(path, []).append(measure(t, p > 0.5))
    return {path: (np.mean(own[path]), np.mean(half[path])) for path in own}


@pytest.mark.parametrize('seed', range(6))
def test_the_headline_is_searched_and_never_worse_than_one_half(seed):
    learn = security(seed=seed)
    table = search(learn)
    for path, (own, half) in headlines(learn).items():
        assert own >= half - 1e-9, path
    told = quiet(learn, 'evaluate').set_index(['task_path', 'metric_name']).metric_res
    fresh = quiet(security(seed=seed), 'evaluate').set_index(['task_path', 'metric_name']).metric_res
    for path in {*PATHS.values()}:
        name = 'f1_score' if path == 'sub.tags' else 'accuracy'
        assert told[path, name] >= fresh[path, name] - 1e-9  # what is shown is cross-fit
    for row in table[table.note == ''].itertuples():
        assert row.cross_fit_score >= row.score_at_half
        p, t = support(learn, row.label if row.label else row.task_path.rpartition('.')[2])
        cuts = [-1, *np.unique(p)]
        measure = SCORES['f1_score'] if row.label else skm.accuracy_score
        assert row.score == pytest.approx(max(measure(t, p > cut) for cut in cuts))  # by all cuts there are


def test_a_headline_without_a_threshold_leaves_accuracy():
    class Ranked(BinaryBlock):
        metrics = ('roc_auc', *[m for m in BinaryBlock.metrics if m != 'roc_auc'])

    class Matthews(BinaryBlock):
        metrics = ('mcc', *[m for m in BinaryBlock.metrics if m != 'mcc'])

    from fastai_condmtl.evaluate.task_threshold import aims

    df = pd.DataFrame(dict(a=[0, 1], b=[0, 1], c=[0, 1], d=[0, 1]))
    flow = Flow(
        'f', Ranked('a'), Matthews('b'), MultiLabelBlock('c', cols=['c', 'd']), BinaryBlock('d', tune='headline')
    )
    found = {path: str(aim) for path, aim in aims(flow.bind(df)).items()}
    assert found == dict(a='accuracy', b='mcc', c='f1_score', d='accuracy')
    assert MultiLabelBlock.metrics[0] == 'f1_score'
