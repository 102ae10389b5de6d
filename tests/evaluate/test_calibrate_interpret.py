"""Temperatures against an optimisation by scipy, and `ConditionalInterpretation` against scikit-learn and loops, on
a learner whose logits stand in its rows;
both kinds of plot by what their artists hold; fastai's own Interpretation on tiny pictures."""

import gc, json
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, torch
from PIL import Image
from scipy.optimize import minimize_scalar
from sklearn import metrics as skm
from torch import nn
from fastai.vision.all import DataBlock, IndexSplitter, Interpretation, Learner, Transform, TransformBlock, load_learner
from fastai_condmtl.evaluate.calibrate import calibration_error
from fastai_condmtl.vision.all import *

pytestmark = pytest.mark.filterwarnings('ignore')
N, CUT, C, WIDE = 1300, 200, 9, 613
KINDS, TAGS, TASKS = list('uvw'), ['hat', 'scarf'], ['a', 'k', 'm', 'r', 'rare', 'good']
sigmoid = lambda z: 1 / (1 + np.exp(-z))


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


class Logits(Transform):
    "Row → its logits, and much else that a network would not see."

    def __call__(self, r, **kwargs):
        x = torch.zeros(WIDE)
        x[:C] = torch.tensor([r[f'z{i}'] for i in range(C)], dtype=torch.float32)
        return x


class Known(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.eye(C))

    def forward(self, x):
        return x[:, :C] @ self.w


def make_flow():
    a, k, m = BinaryBlock('a'), SingleLabelBlock('k', vocab=KINDS, weight=2.0), MultiLabelBlock('m', vocab=TAGS)
    return Flow(
        'f',
        a,
        k | a,
        m | a,
        BoundedRegressionBlock('r', y_range=(0, 8)) | k.ne('u'),
        BinaryBlock('rare') | a,
        BinaryBlock('good'),
    )


def make_table():
    """Labels drawn as the logits over a temperature say: a 3 (too sure), k .5 (not sure enough), m 2, good 1;
    with gaps, and labels where nothing is asked."""
    rng = np.random.default_rng(3)
    z = rng.normal(size=(N, C)) * 2.5
    blank = pd.DataFrame(
        dict(a=[True, False], k=['u', 'v'], m=['hat', ''], r=[1.0, 2.0], rare=[True, False], good=[True, False])
    )
    s = {p: z[:, v.logits] for p, v in make_flow().bind(blank).slices.items()}
    df = pd.DataFrame(
        dict(
            a=rng.random(N) < sigmoid(s['a'][:, 0] / 3),
            k=[rng.choice(KINDS, p=p) for p in softmax(s['k'] / 0.5)],
            m=[','.join(t for t, x in zip(TAGS, row) if rng.random() < x) for row in sigmoid(s['m'] / 2)],
            r=rng.random(N) * 8,
            rare=np.where(rng.random(N) < 0.04, rng.random(N) < 0.5, None),
            good=rng.random(N) < sigmoid(s['good'][:, 0]),
        )
    ).astype(object)
    df = df.mask(rng.random(df.shape) < 0.1).assign(**{f'z{i}': z[:, i] for i in range(C)})
    df.loc[CUT + 7, TASKS] = None  # a row that says nothing
    return df


DF = make_table()


def make_learn(df=DF):
    dls = DataBlock(
        blocks=(TransformBlock, make_flow()), get_x=Logits(), splitter=IndexSplitter(list(range(CUT, len(df))))
    ).dataloaders(df, bs=64, val_bs=50, num_workers=0)
    return Learner(dls, Known())


def quietly(learn, f, *args, **kwargs):
    with learn.no_bar(), learn.no_logging():
        return f(*args, **kwargs)


def by_hand(learn, df):
    "{task: (positions, logits (n, c), labels)} of the rows that count; labels as numbers, one a label for m."
    s, z = learn.dls.flow.slices, df[[f'z{i}' for i in range(C)]].to_numpy(float)
    code = dict(a=bool, good=bool, rare=bool, k=KINDS.index, m=lambda v: [t in v.split(',') for t in TAGS], r=float)

    def counts(i, t):
        if pd.isna(df[t].iloc[i]):
            return False
        if t in ('a', 'good'):
            return True
        if pd.isna(df.a.iloc[i]) or not df.a.iloc[i]:
            return False
        return t != 'r' or (not pd.isna(df.k.iloc[i]) and df.k.iloc[i] != 'u')

    res = {}
    for t in TASKS:
        rows = [i for i in range(len(df)) if counts(i, t)]
        res[t] = np.array(rows), z[rows][:, s[t].logits], np.array([code[t](df[t].iloc[i]) for i in rows])
    return res


def nll(t, z, y, T=1.0):
    if t == 'k':
        return skm.log_loss(y, softmax(z / T).astype(float), labels=range(3))
    p = sigmoid(z.ravel() / T)
    return -np.mean(np.where(y.ravel(), np.log(p), np.log1p(-p)))


def conf_hit(t, z, y, T=1.0):
    if t == 'k':
        return softmax(z / T).max(1), z.argmax(1) == y
    return sigmoid(z.ravel() / T), y.ravel().astype(bool)


def ece(conf, hit, bins=15):
    total = 0
    for b in range(bins):
        rows = [i for i in range(len(conf)) if min(int(conf[i] * bins), bins - 1) == b]
        if rows:
            total += abs(sum(hit[i] for i in rows) - sum(conf[i] for i in rows))
    return total / len(conf)


# ---- calibration
# ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def done():
    "A learner with thresholds of its own, calibrated: (learn, table, what it decided before, losses before)."
    learn = make_learn()
    learn.loss_func.thresholds = dict(a=0.8, m=[0.2, 0.95], rare=0.4, good=0.3)
    before = quietly(learn, learn.get_preds, with_decoded=True, with_loss=True)
    valid = quietly(learn, learn.validate)[0]
    return learn, quietly(learn, learn.calibrate).set_index('task_path'), before, valid


def test_temperatures(done):
    learn, table, *_ = done
    hand = by_hand(learn, DF[CUT:])
    assert list(table.columns) == [
        'temperature',
        'nll_before',
        'nll_after',
        'ece_before',
        'ece_after',
        'num_samples',
        'note',
    ] and list(table.index) == ['a', 'k', 'm', 'rare', 'good']
    for t, row in table.iterrows():
        _, z, y = hand[t]
        assert row.num_samples == y.size
        assert row.nll_before == pytest.approx(nll(t, z, y), rel=1e-4) and row.ece_before == pytest.approx(
            ece(*conf_hit(t, z, y)), abs=1e-4
        )
        assert row.nll_after == pytest.approx(
            nll(t, z, y, row.temperature), rel=1e-4
        ) and row.ece_after == pytest.approx(ece(*conf_hit(t, z, y, row.temperature)), abs=1e-4)
    for t, true in dict(a=3, k=0.5, m=2).items():
        _, z, y = hand[t]
        best = np.exp(minimize_scalar(lambda x: nll(t, z, y, np.exp(x)), bounds=(-4, 4), method='bounded').x)
        assert (
            table.temperature[t] == pytest.approx(best, rel=0.05)
            and best == pytest.approx(true, rel=0.25)
            and not table.note[t]
        )
        assert table.nll_after[t] < table.nll_before[t] and table.ece_after[t] < table.ece_before[t]
    assert (
        table.temperature['rare'] == table.temperature['good'] == 1
        and table.note['rare']
        and table.note['good']
        and str(table.num_samples['rare']) in table.note['rare']
    )


def test_what_changes_and_what_does_not(done):
    learn, table, (acts, y, dec, loss), valid = done
    s, z = learn.dls.flow.slices, DF[CUT:][[f'z{i}' for i in range(C)]].to_numpy(float)
    new, y2, dec2, loss2 = quietly(learn, learn.get_preds, with_decoded=True, with_loss=True)
    for t in ('a', 'k', 'm', 'rare', 'good'):
        f = softmax if t == 'k' else sigmoid
        np.testing.assert_allclose(acts[:, s[t].acts], f(z[:, s[t].logits]), atol=1e-5)
        np.testing.assert_allclose(new[:, s[t].acts], f(z[:, s[t].logits] / table.temperature[t]), atol=1e-5)
    assert torch.equal(acts[:, s['r'].acts], new[:, s['r'].acts])
    assert torch.equal(torch.as_tensor(dec), torch.as_tensor(dec2)) and torch.equal(
        torch.as_tensor(loss), torch.as_tensor(loss2)
    )
    assert quietly(learn, learn.validate)[0] == valid
    xb = torch.as_tensor(z, dtype=torch.float32)
    assert float(learn.loss_func(xb, torch.as_tensor(y))) == float(make_learn().loss_func(xb, torch.as_tensor(y)))
    pred, *_ = quietly(learn, learn.predict, DF.iloc[CUT])
    assert pred.probabilities['a'] == pytest.approx(sigmoid(z[0, s['a'].logits][0] / table.temperature['a']), abs=1e-5)


def test_again_changes_nothing(done):
    learn, table, *_ = done
    old = {k: np.array(v) for k, v in learn.loss_func.thresholds.items()}
    again = quietly(learn, learn.calibrate).set_index('task_path')
    np.testing.assert_allclose(again.temperature, table.temperature, rtol=1e-4)
    for k, v in learn.loss_func.thresholds.items():
        np.testing.assert_allclose(v, old[k], atol=1e-5)


def test_a_row_on_its_threshold():
    "No decision changes, also of a row whose probability is the threshold."
    learn, flips = make_learn(), []
    col = learn.dls.flow.slices['a'].acts
    p = quietly(learn, learn.get_preds)[0][:, col][:, 0]
    decide = lambda: torch.as_tensor(quietly(learn, learn.get_preds, with_decoded=True)[2])[:, 0, 0]
    for i in (6, 9, 13, 15):
        learn.loss_func.temperatures, learn.loss_func.thresholds = {}, dict(a=float(p[i]))
        before = decide()
        quietly(learn, learn.calibrate, tasks=['a'])
        if not torch.equal(before, decide()):
            flips.append(i)
    assert not flips


def test_kept(done, tmp_path):
    learn, table, *_ = done
    want = quietly(learn, learn.get_preds, with_decoded=True)
    learn.path = tmp_path
    learn.export('l.pkl')
    learn.save_thresholds(tmp_path / 't.json')
    json.loads((tmp_path / 't.json').read_text())
    again, fresh = load_learner(tmp_path / 'l.pkl'), make_learn()
    fresh.load_thresholds(tmp_path / 't.json')
    for l, dl in ((again, again.dls.test_dl(DF[CUT:])), (fresh, None)):
        assert dict(l.loss_func.temperatures) == pytest.approx(dict(learn.loss_func.temperatures))
        got = quietly(l, l.get_preds, dl=dl, with_decoded=True)
        torch.testing.assert_close(torch.as_tensor(got[0]), torch.as_tensor(want[0]))
        assert torch.equal(torch.as_tensor(got[2]), torch.as_tensor(want[2]))


def test_some_tasks_and_other_rows():
    learn = make_learn()
    t = quietly(learn, learn.calibrate, tasks=['k'])
    assert list(t.task_path) == ['k'] and set(learn.loss_func.temperatures) == {'k'}
    assert set(quietly(learn, learn.calibrate, tasks=['a']).task_path) == {'a'} and set(
        learn.loss_func.temperatures
    ) == {'a', 'k'}
    rows = by_hand(learn, DF[300:800])
    t = quietly(learn, learn.calibrate, dl=learn.dls.test_dl(DF[300:800], with_labels=True), min_support=10).set_index(
        'task_path'
    )
    assert dict(t.num_samples) == {p: rows[p][2].size for p in t.index}
    before = dict(learn.loss_func.temperatures)
    t = quietly(learn, learn.calibrate, ds_idx=0, min_support=10**6).set_index('task_path')
    assert (
        t.note.str.startswith('kept').all()
        and before
        and dict(learn.loss_func.temperatures) == before == {p: v for p, v in t.temperature.items() if v != 1}
    )  # too few rows: what is in force stays
    learn.loss_func.temperatures = dict(a=2.0)
    assert dict(learn.loss_func.temperatures) == dict(a=2.0)


@pytest.mark.parametrize(
    'tasks, match', [(['r'], "'r'.*leave it out"), (['nope'], "'nope'"), ('nope', "'nope'"), ('rare', None)]
)
def test_calibrate_tasks(tasks, match):
    "A name by itself is a task, not its letters."
    learn = make_learn()
    if match is None:
        assert list(quietly(learn, learn.calibrate, tasks=tasks).task_path) == [tasks]
    else:
        with pytest.raises(FlowError, match=match):
            quietly(learn, learn.calibrate, tasks=tasks)


@pytest.mark.parametrize('bad', [dict(zz=2.0), dict(a=0.0), dict(a=-1.0), dict(a=float('nan')), dict(r=2.0)])
def test_bad_temperatures(bad):
    learn = make_learn()
    with pytest.raises(FlowError, match=f"'{list(bad)[0]}'"):
        learn.loss_func.temperatures = bad
    assert dict(learn.loss_func.temperatures) == {}


def test_calibrate_wants_two_folds():
    "With one, every gain would be judged on rows that nothing was fitted for."
    with pytest.raises(FlowError, match='folds'):
        quietly(learn := make_learn(), learn.calibrate, folds=1)


def test_calibrate_without_labels_or_flow():
    learn = make_learn()
    with pytest.raises(FlowError, match='with_labels=True'):
        quietly(learn, learn.calibrate, dl=learn.dls.test_dl(DF))
    dls = DataBlock(blocks=(TransformBlock, TransformBlock)).dataloaders([1, 2, 3, 4], bs=2, num_workers=0)
    plain = Learner(dls, nn.Linear(1, 1), loss_func=nn.MSELoss())
    for f in (
        plain.calibrate,
        lambda: plain.plot_reliability('a'),
        lambda: ConditionalInterpretation.from_learner(plain),
    ):
        with pytest.raises(FlowError, match='flow'):
            f()


def test_calibration_error():
    rng = np.random.default_rng(0)
    for n, bins in ((1, 15), (7, 3), (400, 15), (400, 1)):
        conf, hit = rng.random(n), rng.random(n) < 0.6
        for as_ in (np.array, torch.tensor):
            assert calibration_error(as_(conf), as_(hit), bins) == pytest.approx(ece(conf, hit, bins), abs=1e-6)
    assert calibration_error(np.array([0.0, 1.0, 1.0]), np.array([False, True, False])) == pytest.approx(
        1 / 3
    )  # both ends count
    assert calibration_error(np.array([0.1, 0.1, 0.9, 0.9]), np.array([0, 1, 1, 1]), 2) == pytest.approx(
        (2 * 0.4 + 2 * 0.1) / 4
    )
    assert np.isnan(calibration_error(np.array([]), np.array([])))


def test_plot_reliability(done):
    learn, table, *_ = done
    hand = by_hand(learn, DF[CUT:])
    for t, bins in (('a', 10), ('k', 6), ('m', 10)):
        _, ax0 = plt.subplots()
        ax = learn.plot_reliability(t, bins=bins, ax=ax0)
        assert ax is ax0
        drawn = [l.get_xydata() for l in ax.lines]
        for T in (1, table.temperature[t]):
            conf, hit = conf_hit(t, *hand[t][1:], T)
            which = np.minimum((conf * bins).astype(int), bins - 1)
            want = np.array([(conf[which == b].mean(), hit[which == b].mean()) for b in sorted(set(which))])
            assert any(d.shape == want.shape and np.allclose(d, want, atol=1e-4) for d in drawn), (t, T)
    assert quietly(learn, learn.plot_reliability, 'good').figure is not None
    with pytest.raises(FlowError, match="'r'"):
        learn.plot_reliability('r')


# ---- interpretation
# ---------------------------------------------------------------------------------------------------
THRESHOLDS = dict(a=0.7, m=[0.3, 0.8], good=0.4)


@pytest.fixture(scope='module')
def learn():
    learn = make_learn()
    learn.loss_func.thresholds = THRESHOLDS
    return learn


@pytest.fixture(scope='module')
def interp(learn):
    return quietly(learn, ConditionalInterpretation.from_learner, learn)


@pytest.fixture(scope='module')
def hand(learn):
    return by_hand(learn, DF[CUT:])


def losses_of(t, z, y):
    "One loss a row that counts; of numbers divided by that of the best constant, the median of the training rows."
    if t == 'k':
        return -np.log(softmax(z)[range(len(y)), y])
    if t == 'r':
        return np.abs(sigmoid(z[:, 0]) - y / 8) / training_unit()
    p = sigmoid(z)
    return -np.log(np.where(y.reshape(p.shape), p, 1 - p)).mean(1)


def training_unit():
    "What the best constant loses of `r`, which has meaning where k is known not to be 'u', and k where a is true."
    rows = DF[:CUT]
    counts = [
        a is True and k in KINDS and k != 'u' and r == r and r is not None for a, k, r in zip(rows.a, rows.k, rows.r)
    ]
    numbers = rows.r[counts].astype(float) / 8
    return (numbers - numbers.median()).abs().mean()


def check_top(got, rows, losses, largest=True, k=None):
    (l, at), order = got, np.argsort(-losses if largest else losses)[:k]
    np.testing.assert_allclose(np.asarray(l), losses[order], atol=1e-5)
    want = dict(zip(rows, losses))
    assert len(set(map(int, at))) == len(order) and all(
        want[int(i)] == pytest.approx(float(x), abs=1e-5) for i, x in zip(at, l)
    )


@pytest.mark.parametrize('t', TASKS)
def test_top_losses(interp, hand, t):
    rows, z, y = hand[t]
    check_top(interp.top_losses(t), rows, losses_of(t, z, y))
    check_top(interp.top_losses(t, 5), rows, losses_of(t, z, y), k=5)
    check_top(interp.top_losses(t, 5, largest=False), rows, losses_of(t, z, y), False, 5)
    assert len(interp.top_losses(t, 10**6)[0]) == len(rows)


def weighted(hand, n):
    total, counts = np.zeros(n), np.zeros(n, bool)
    for t in TASKS:
        total[hand[t][0]] += losses_of(t, *hand[t][1:]) * (2 if t == 'k' else 1)
        counts[hand[t][0]] = True
    return np.flatnonzero(counts), total[counts]


def test_top_losses_as_fastai_asks(interp):
    "A number alone is how many, as in fastai's `Interpretation`; what is no name at all is an error with names."
    for a, b in zip(interp.top_losses(5), interp.top_losses(None, 5)):
        assert torch.equal(a, b) and len(a) == 5
    with pytest.raises(FlowError, match="asked for 1.5: call a task by its name or path, a string; there are "):
        interp.top_losses(1.5)


def test_top_losses_of_all(interp, hand):
    rows, total = weighted(hand, N - CUT)
    check_top(interp.top_losses(), rows, total)
    check_top(interp.top_losses(k=7), rows, total, k=7)
    assert 7 not in interp.top_losses()[1].tolist()  # the row without labels


def test_shuffled_training_rows_and_other_tables(learn):
    "Positions are those of the data set, whatever order batches come in."
    for df, kw in (
        (DF[:CUT], dict(ds_idx=0)),
        (DF[150:260], dict(dl=learn.dls.test_dl(DF[150:260], with_labels=True))),
    ):
        it, rows = quietly(learn, ConditionalInterpretation.from_learner, learn, **kw), by_hand(learn, df)
        for t in ('a', 'k', 'r'):
            check_top(it.top_losses(t), rows[t][0], losses_of(t, *rows[t][1:]))
        check_top(it.top_losses(), *weighted(rows, len(df)))
        assert list(it.residuals('r').index) == rows['r'][0].tolist()


def decided(t, z, label=None):
    if t == 'k':
        return z.argmax(1)
    p, th = sigmoid(z), np.array(THRESHOLDS.get(t, 0.5))
    return (p > th)[:, TAGS.index(label) if label else 0]


CASES = [('a', None), ('good', None), ('rare', None), ('k', None), ('m', 'hat'), ('m', 'scarf')]


def matrix(hand, t, label):
    _, z, y = hand[t]
    return skm.confusion_matrix(
        y[:, TAGS.index(label)] if label else y, decided(t, z, label), labels=range(3) if t == 'k' else [False, True]
    )


@pytest.mark.parametrize('t, label', CASES)
def test_confusion(interp, hand, t, label):
    want = matrix(hand, t, label)
    np.testing.assert_array_equal(interp.confusion_matrix(t, label), want)
    _, mine = plt.subplots()
    ax = interp.plot_confusion_matrix(t, label, ax=mine)
    assert ax is mine and [int(x.get_text()) for x in ax.texts] == want.ravel().tolist()
    ax = interp.plot_confusion_matrix(t, label, normalize=True)
    np.testing.assert_allclose(
        [float(x.get_text()) for x in ax.texts], (want / want.sum(1, keepdims=True)).ravel(), atol=0.0051
    )
    assert 'true' in ax.get_ylabel().lower() and len(ax.get_xticklabels()) == len(want)
    np.testing.assert_array_equal(np.asarray(ax.images[0].get_array()).shape, want.shape)


def test_most_confused(interp, hand):
    cm = matrix(hand, 'k', None)
    want = {(KINDS[i], KINDS[j]): cm[i, j] for i in range(3) for j in range(3) if i != j and cm[i, j]}
    got = interp.most_confused('k')
    assert {(a, b): n for a, b, n in got} == want and [n for *_, n in got] == sorted(want.values(), reverse=True)
    least = sorted(want.values())[2]
    assert {(a, b): n for a, b, n in interp.most_confused('k', min_val=least)} == {
        k: v for k, v in want.items() if v >= least
    }
    assert interp.most_confused('k', min_val=10**6) == []


def drawn(ax):
    return [np.asarray(l.get_xydata(), dtype=float) for l in ax.lines]


@pytest.mark.parametrize('t, label', [('a', None), ('m', 'hat'), ('m', 'scarf')])
def test_curves(interp, hand, t, label):
    _, z, y = hand[t]
    j = TAGS.index(label) if label else 0
    y, p = y.reshape(z.shape)[:, j], sigmoid(z[:, j])
    area = lambda c: np.sum(np.diff(c[:, 0]) * (c[1:, 1] + c[:-1, 1]) / 2)
    _, mine = plt.subplots()
    roc = interp.plot_roc(t, label, ax=mine)
    assert roc is mine and any(np.isclose(area(c), skm.roc_auc_score(y, p), atol=1e-4) for c in drawn(roc))
    fpr, tpr, _ = skm.roc_curve(y, p)
    assert any(c.shape == (len(fpr), 2) and np.allclose(c, np.c_[fpr, tpr], atol=1e-6) for c in drawn(roc))
    precision, recall, _ = skm.precision_recall_curve(y, p)
    assert any(
        c.shape == (len(recall), 2) and np.allclose(c, np.c_[recall, precision], atol=1e-6)
        for c in drawn(interp.plot_precision_recall(t, label))
    )


def test_a_curve_a_label(interp):
    for ax in (interp.plot_roc('m'), interp.plot_precision_recall('m')):
        text = ' '.join(x.get_text() for x in ax.get_legend().get_texts())
        assert all(t in text for t in TAGS) and len(drawn(ax)) >= 2


def test_residuals(interp, hand):
    rows, z, y = hand['r']
    got = interp.residuals('r')
    assert list(got.columns) == ['truth', 'predicted', 'residual'] and list(got.index) == rows.tolist()
    np.testing.assert_allclose(got.truth, y, atol=1e-4)
    np.testing.assert_allclose(got.predicted, 8 * sigmoid(z[:, 0]), atol=1e-4)
    np.testing.assert_allclose(np.abs(got.residual), np.abs(y - 8 * sigmoid(z[:, 0])), atol=1e-4)
    pts = np.concatenate([c.get_offsets() for c in interp.plot_residuals('r').collections])
    np.testing.assert_allclose(sorted(map(tuple, pts)), sorted(zip(8 * sigmoid(z[:, 0]), y)), atol=1e-4)
    pts = np.concatenate(
        [c.get_offsets() for c in interp.plot_residuals('r', kind='residual_vs_predicted').collections]
    )
    np.testing.assert_allclose(
        sorted(map(tuple, pts)), sorted(zip(got.predicted, got.residual)), atol=1e-4
    )  # the same sign in the plot and the table


def test_cascade_report(interp, hand, learn):
    "Of a chain: the first wrong parent loses the row."
    z, s = DF[CUT:][[f'z{i}' for i in range(C)]].to_numpy(float), learn.dls.flow.slices
    a, k = decided('a', z[:, s['a'].logits]), decided('k', z[:, s['k'].logits])
    got = interp.cascade_report().set_index(['parent', 'task_path'])
    for t in ('k', 'm', 'rare'):
        rows = hand[t][0]
        assert (
            got.missed['a', t] == sum(not a[i] for i in rows)
            and got.num_samples['a', t] == len(rows)
            and got.reached['a', t] == a.sum()
        )
        assert got.spurious['a', t] == sum(a[i] and DF.a.iloc[CUT + i] is False for i in range(N - CUT))
    rows = hand['r'][0]
    assert got.missed['a', 'r'] == sum(not a[i] for i in rows) and got.missed['k', 'r'] == sum(
        a[i] and k[i] == 0 for i in rows
    )
    assert set(got.index) == {('a', 'k'), ('a', 'm'), ('a', 'rare'), ('a', 'r'), ('k', 'r')}


def test_it_holds_no_inputs(learn):
    "Each input has 613 numbers: not many more than a batch of them may live on."
    it = quietly(learn, ConditionalInterpretation.from_learner, learn)
    it.top_losses('a', 3), it.confusion_matrix('k')
    gc.collect()
    alive = sum(
        len(x) if x.ndim > 1 else 1
        for x in gc.get_objects()
        if type(x).__name__.startswith('Tensor') and isinstance(x, torch.Tensor) and x.ndim and x.shape[-1] == WIDE
    )
    assert alive <= 200


@pytest.mark.parametrize(
    'call, match',
    [
        (lambda i: i.confusion_matrix('r'), "'r'.*residuals"),
        (lambda i: i.plot_confusion_matrix('r'), "'r'.*residuals"),
        (lambda i: i.most_confused('r'), "'r'.*residuals"),
        (lambda i: i.residuals('a'), "'a'.*confusion_matrix"),
        (lambda i: i.plot_residuals('k'), "'k'.*confusion_matrix"),
        (lambda i: i.residuals('m'), "'m'.*confusion_matrix"),
        (lambda i: i.confusion_matrix('m'), "'m'.*label=.*'hat'"),
        (lambda i: i.confusion_matrix('m', 'bag'), "'m'.*'bag'.*'scarf'"),
        (lambda i: i.plot_roc('m', 'bag'), "'m'.*'bag'.*'scarf'"),
        (lambda i: i.plot_roc('r'), "'r'"),
        (lambda i: i.plot_precision_recall('k'), "'k'"),
        (lambda i: i.plot_roc('k'), "'k'.*confusion_matrix"),
        (lambda i: i.plot_roc('r'), "'r'.*residuals"),
    ],
)
def test_what_a_kind_lacks(interp, call, match):
    with pytest.raises(FlowError, match=match):
        call(interp)


@pytest.mark.parametrize(
    'call',
    [
        lambda i: i.top_losses('zz'),
        lambda i: i.confusion_matrix('zz'),
        lambda i: i.residuals('zz'),
        lambda i: i.plot_roc('zz'),
        lambda i: i.learn.plot_reliability('zz'),
    ],
)
def test_no_such_task(interp, call):
    "It is the caller who asks, not a condition."
    with pytest.raises(FlowError, match="'zz'") as e:
        call(interp)
    assert "'rare'" in str(e.value) and 'condition' not in str(e.value)


def test_without_labels(learn):
    with pytest.raises(FlowError, match='with_labels=True'):
        quietly(learn, ConditionalInterpretation.from_learner, learn, dl=learn.dls.test_dl(DF[:30]))


def test_a_task_without_rows(learn):
    it = quietly(
        learn,
        ConditionalInterpretation.from_learner,
        learn,
        dl=learn.dls.test_dl(DF[:30].assign(r=np.nan, k=None, rare=None), with_labels=True),
    )
    assert (
        len(it.top_losses('k')[0]) == len(it.residuals('r')) == 0
        and it.confusion_matrix('k').sum() == 0
        and it.confusion_matrix('k').shape == (3, 3)
        and it.most_confused('k') == []
    )


# ---- what a review found
# ----------------------------------------------------------------------------------------------
def test_one_rule_for_the_cascade():
    """Rows that tuned the thresholds are judged by cross-fit ones, whoever asks; the interpretation itself keeps
    those in force"""
    learn = make_learn()
    quietly(learn, learn.search_thresholds, gates=None)
    it = quietly(learn, ConditionalInterpretation.from_learner, learn)
    before = it.confusion_matrix('a')
    assert quietly(learn, learn.evaluate).cross_fit
    pd.testing.assert_frame_equal(it.cascade_report(), quietly(learn, learn.cascade_report))
    assert (it.confusion_matrix('a') == before).all()


def test_the_total_loss_is_the_one_that_is_trained():
    learn = make_learn()
    flow, want = learn.dls.flow, torch.tensor([0.0, 3.0, 1.0, 0.5, 2.0, 1.0])
    own = learn.loss_func = flow.loss_func.clone()
    own.set_weights(want)
    it = quietly(learn, ConditionalInterpretation.from_learner, learn)
    each = torch.stack([it.losses(p) for p in flow.paths], 1)
    torch.testing.assert_close(
        it.losses()[~it.losses().isnan()], (each.nan_to_num() * want).sum(1)[~it.losses().isnan()]
    )


def test_confusions_of_one_label(interp):
    for l in TAGS:
        cm = interp.confusion_matrix('m', label=l)
        assert sorted(interp.most_confused('m', label=l)) == sorted(
            (bool(i), bool(j), cm[i, j]) for i, j in ((0, 1), (1, 0)) if cm[i, j]
        )
    with pytest.raises(FlowError, match='say which with label='):
        interp.most_confused('m')


def test_tables_with_fewer_columns_are_shown(learn):
    t = quietly(learn, learn.evaluate)
    for cols in (
        ['metric_name', 'metric_res', 'baseline'],
        ['task_path', 'metric_name', 'metric_res'],
        ['task_path', 'metric_res', 'baseline'],
        ['num_samples'],
    ):
        assert '<table' in t[cols].show().to_html()
    assert (
        'seagreen' in t.drop(columns='task_path').show().to_html()
        and 'seagreen' not in t.drop(columns='baseline').show().to_html()
    )


@pytest.mark.parametrize('max_n', [0, -1, 2.5, True, None])
def test_how_many_items_to_explain(learn, max_n):
    for items in (None, DF[:3]):
        with pytest.raises(FlowError, match='max_n=.*positive whole number'):
            learn.explain(items, max_n=max_n)


def test_a_task_by_its_name_alone(learn):
    "A string is one name, not a list of letters"
    flow = learn.dls.flow
    assert flow.named() == flow.paths and flow.named('rare') == ['rare'] and flow.named(('rare', 'a')) == ['rare', 'a']
    assert [m.name for m in flow.metrics(tasks='rare')] == ['rare.accuracy'] and set(
        quietly(learn, learn.fill_labels, DF[:20], 0, tasks='rare')[2].task_path
    ) == {'rare'}
    from fastai_condmtl.callback.tracked_rows import Tracked

    assert quietly(learn, Tracked, learn, tasks='rare').tasks == ['rare']
    with pytest.raises(FlowError, match="did you mean 'rare'"):
        flow.metrics(tasks='rar')


def test_what_was_switched_off_stays_off():
    learn = make_learn()
    learn.recorder.run = False
    quietly(learn, learn.evaluate)
    assert learn.recorder.run is False
    learn.recorder.run = True
    quietly(learn, learn.evaluate)
    assert learn.recorder.run is True


# ---- pictures
# ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def vision(tmp_path_factory):
    path, rng, rows = tmp_path_factory.mktemp('pics'), np.random.default_rng(0), []
    for i in range(24):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path / f'{i}.png')
        rows.append(dict(img=f'{i}.png', on=i % 3 > 0, hue='red' if i % 2 else 'blue', is_valid=i >= 12))
    on = BinaryBlock('on')
    dls = ConditionalDataLoaders.from_df(
        pd.DataFrame(rows),
        Flow('lamp', on, SingleLabelBlock('hue') | on),
        path=path,
        fn_col='img',
        valid_col='is_valid',
        bs=5,
        num_workers=0,
    )
    return conditional_vision_learner(dls, 'test_resnet', pretrained=False)


def titles():
    return ' '.join(
        [ax.get_title(loc) for ax in plt.gcf().axes for loc in ('left', 'center', 'right')]
        + [t.get_text() for ax in plt.gcf().axes for t in ax.texts]
    )


def test_plot_top_losses(vision):
    it = quietly(vision, ConditionalInterpretation.from_learner, vision)
    for task, k in (('hue', 3), (None, 2)):
        plt.close('all')
        quietly(vision, it.plot_top_losses, task, k)
        assert len([ax for ax in plt.gcf().axes if ax.images]) == k
        for loss in it.top_losses(task, k)[0]:
            assert any(f'{float(loss):.{d}f}' in titles() for d in (1, 2, 3, 4)), titles()
        shown = [np.asarray(ax.images[0].get_array(), dtype=float) for ax in plt.gcf().axes if ax.images]
        for im, i in zip(shown, it.top_losses(task, k)[1]):
            true = np.asarray(Image.open(vision.dls.path / f'{12 + int(i)}.png'), dtype=float)
            assert np.abs(im * (255 if im.max() <= 1.01 else 1) - true).max() < 2, 'another picture'


def test_fastai_interpretation(vision):
    it = quietly(vision, Interpretation.from_learner, vision)
    quietly(vision, it.plot_top_losses, 3)
    assert len([ax for ax in plt.gcf().axes if ax.images]) == 3 and 'on: ' in titles()
