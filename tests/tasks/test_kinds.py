"""Classes in an order and counts against SciPy, scikit-learn, PyTorch and loops; in a learner whose logits stand in
its rows, through every tool that knows
kinds of task; thousands of classes that cost other tasks nothing; numbers at the end of their range."""

import pickle, tracemalloc, warnings
import numpy as np, pandas as pd, pytest, torch
from scipy.special import expit
from scipy.stats import poisson
from sklearn import metrics as skm
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from fastai.vision.all import DataBlock, IndexSplitter, Learner, Transform, TransformBlock, load_learner
from fastai_condmtl.vision.all import *
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.data.guess import guess_flow
from fastai_condmtl.data.guess_kinds import guess_kind
from fastai_condmtl.tasks.count import CountBlock
from fastai_condmtl.tasks.ordinal import OrdinalBlock
from fastai_condmtl.tasks.ordinal import ordinal_score
from fastai_condmtl.tasks.count import poisson_median
from fastai_condmtl.learn.accumulate import Accumulator

pytestmark = pytest.mark.filterwarnings('ignore')
N, CUT, C = 900, 300, 9
PAIN = ['none', 'mild', 'severe', 'worst']


class Logits(Transform):
    "Row → its logits."

    def __call__(self, r, **kwargs):
        return torch.tensor([r[f'z{i}'] for i in range(C)], dtype=torch.float32)


class Known(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.eye(C))

    def forward(self, x):
        return x @ self.w


def make_flow():
    pain, visits = OrdinalBlock('pain', vocab=PAIN), CountBlock('visits')
    return Flow(
        'clinic',
        pain,
        visits | pain.between('mild', 'worst'),
        BinaryBlock('drug') | (pain > 'mild'),
        BinaryBlock('often') | (visits >= 3),
        BinaryBlock('twice') | (visits.eq(2) & (pain < 'worst')),
        BinaryBlock('plain'),
    )


def make_table():
    "Labels drawn as the logits over a temperature of 2 say, with gaps."
    rng = np.random.default_rng(1)
    z, n = rng.normal(size=(N, C)) * 2, len(PAIN)
    blank = pd.DataFrame(dict(pain=PAIN, visits=[1] * n, drug=[0] * n, often=[0] * n, twice=[0] * n, plain=[0] * n))
    s = {p: z[:, v.logits] for p, v in make_flow().bind(blank).slices.items()}
    above = np.sort(s['pain'][:, :1] + s['pain'][:, 1:], 1)[:, ::-1] / 2
    df = pd.DataFrame(
        dict(
            pain=[PAIN[k] for k in (rng.random((N, 1)) < expit(above)).sum(1)],
            visits=rng.poisson(2 * np.exp(s['visits'][:, 0] / 2)),
            **{k: rng.random(N) < 0.5 for k in ('drug', 'often', 'twice', 'plain')},
        )
    ).astype(object)
    return df.mask(rng.random(df.shape) < 0.1).assign(**{f'z{i}': z[:, i] for i in range(C)})


DF = make_table()


def make_learn(df=DF):
    dls = DataBlock(
        blocks=(TransformBlock, make_flow()), get_x=Logits(), splitter=IndexSplitter(list(range(CUT, N)))
    ).dataloaders(df, bs=64, val_bs=50, num_workers=0)
    return Learner(dls, Known())


@pytest.fixture(scope='module')
def learn():
    return make_learn()


@pytest.fixture(scope='module')
def hand(learn):
    """What follows from the rows, in float64: positions of the validation rows that count for pain and visits,
    class probabilities and rates."""
    flow, valid = learn.dls.flow, DF.iloc[CUT:]
    z = valid[[f'z{i}' for i in range(C)]].to_numpy(float)
    at = {p: z[:, v.logits] for p, v in flow.slices.items()}
    above = expit(np.sort(at['pain'][:, :1] + at['pain'][:, 1:], 1)[:, ::-1])
    probs = -np.diff(np.concatenate([np.ones((len(z), 1)), above, np.zeros((len(z), 1))], 1))
    return dict(
        probs=probs,
        above=above,
        rate=np.exp(at['visits'][:, 0]) * flow.tasks['visits'].span,
        at=at,
        valid=valid,
        pain=valid.pain.notna().to_numpy(),
        visits=(valid.pain.notna() & valid.pain.ne('none') & valid.visits.notna()).to_numpy(),
    )


def quietly(learn, f, *args, **kwargs):
    with learn.no_bar(), learn.no_logging():
        return f(*args, **kwargs)


def codes(s):
    return s.map(PAIN.index).to_numpy()


# ---- in a learner
# --------------------------------------------------------------------------------------------------------
def test_scores_baselines_and_gates(learn, hand):
    res = quietly(learn, learn.evaluate).set_index(['task_path', 'metric_name'])
    valid, train = hand['valid'], DF.iloc[:CUT]
    true, pred = codes(valid.pain[hand['pain']]), (hand['probs'].cumsum(1) < 0.5).sum(1)[hand['pain']]
    assert res.metric_res['pain', 'mae'] == pytest.approx(np.abs(true - pred).mean()) and res.metric_res[
        'pain', 'accuracy'
    ] == pytest.approx((true == pred).mean())
    assert res.metric_res['pain', 'kappa'] == pytest.approx(skm.cohen_kappa_score(true, pred, weights='quadratic'))
    own = codes(train.pain.dropna())
    assert res.baseline['pain', 'mae'] == pytest.approx(np.abs(true - np.sort(own)[(len(own) - 1) // 2]).mean())
    assert (
        res.baseline['pain', 'accuracy'] == pytest.approx((true == np.bincount(own).argmax()).mean())
        and res.baseline['pain', 'kappa'] == 0
    )
    y, rate = valid.visits[hand['visits']].to_numpy(int), hand['rate'][hand['visits']]
    want = dict(
        mae=np.abs(y - poisson.median(rate)).mean(),
        rmse=skm.mean_squared_error(y, rate) ** 0.5,
        r2=skm.r2_score(y, rate),
        deviance=skm.mean_poisson_deviance(y, rate),
    )
    for k, v in want.items():
        assert res.metric_res['visits', k] == pytest.approx(v, rel=1e-4), k
    t = train.visits[train.pain.notna() & train.pain.ne('none') & train.visits.notna()].to_numpy(int)
    assert res.baseline['visits', 'mae'] == pytest.approx(
        np.abs(y - np.floor(np.median(t))).mean(), rel=1e-5
    ) and res.baseline['visits', 'deviance'] == pytest.approx(
        skm.mean_poisson_deviance(y, np.full(len(y), t.mean())), rel=1e-5
    )
    reached = (hand['probs'].cumsum(1) < 0.5).sum(1) > 0
    assert res.cascade_samples['visits', 'mae'] == (hand['visits'] & reached).sum() and res.missed[
        'visits', 'mae'
    ] == pytest.approx((hand['visits'] & ~reached).sum() / hand['visits'].sum())
    assert (
        res.num_samples['often', 'accuracy']
        == (hand['visits'] & (valid.visits.fillna(0) >= 3).to_numpy() & valid.often.notna().to_numpy()).sum()
    )
    shown = quietly(learn, learn.evaluate)
    assert {'mae', 'rmse', 'deviance'} <= set(shown.lower) and 'deviance' in shown.show().to_html()
    assert [m.name for m in learn.dls.flow.metrics()][:2] == ['pain.mae', 'visits.mae'] and len(
        learn.dls.flow.metrics('quadratic_weighted_kappa', 'deviance')
    ) == 2


def test_probabilities_along_the_path(learn, hand):
    "By hand, and by drawing."
    m = quietly(learn, learn.get_marginals)
    p, r = hand['probs'], hand['rate']
    some = p[:, 1:].sum(1)
    pr = lambda t: m[t, 'P(reached)'].to_numpy()
    for k, name in enumerate(PAIN):
        np.testing.assert_allclose(m['pain', name], p[:, k], atol=1e-5)
    np.testing.assert_allclose(pr('visits'), some, atol=1e-5)
    np.testing.assert_allclose(pr('drug'), p[:, 2:].sum(1), atol=1e-5)
    np.testing.assert_allclose(pr('often'), some * poisson.sf(2, r), atol=1e-5)
    np.testing.assert_allclose(pr('twice'), p[:, 1:3].sum(1) * poisson.pmf(2, r), atol=1e-5)
    rng, i = np.random.default_rng(0), int(np.argmax(pr('twice')))
    pain, visits = rng.choice(4, 200_000, p=p[i] / p[i].sum()), rng.poisson(r[i], 200_000)
    assert pr('twice')[i] == pytest.approx(((pain > 0) & (pain < 3) & (visits == 2)).mean(), abs=0.005)


def test_decided_yes_where_it_is_likelier_than_not(learn, hand):
    out = quietly(learn, learn.predict_df, hand['valid'])
    p, r = hand['probs'], hand['rate']
    reached = p[:, 0] < 0.5
    assert (out.pain.map(PAIN.index).to_numpy() == (p.cumsum(1) < 0.5).sum(1)).all()
    assert (
        str(out.visits.dtype) == 'Int64'
        and (out.visits.notna().to_numpy() == reached).all()
        and (out.visits[reached].to_numpy(int) == poisson.median(r[reached])).all()
    )
    assert (out.often.notna().to_numpy() == (reached & (poisson.sf(2, r) > 0.5))).all() and (
        out.drug.notna().to_numpy() == (p[:, 2:].sum(1) > 0.5)
    ).all()
    back = learn.dls.flow.encode(out.astype(object))  # predictions are labels of the same table
    assert torch.equal(back[:, 1] > 0, learn.dls.flow.encode(out)[:, 1] > 0)


def test_calibration_moves_no_decision(learn, hand):
    other, before = make_learn(), quietly(learn, learn.predict_df, hand['valid'])
    table = quietly(other, other.calibrate).set_index('task_path')
    assert (
        'visits' not in table.index
        and table.temperature['pain'] == pytest.approx(2, rel=0.2)
        and table.nll_after['pain'] < table.nll_before['pain']
    )
    k = np.arange(3)
    above, t = (
        np.sort(hand['at']['pain'][:, :1] + hand['at']['pain'][:, 1:], 1)[:, ::-1][hand['pain']],
        codes(hand['valid'].pain[hand['pain']])[:, None] > k,
    )
    assert table.nll_before['pain'] == pytest.approx(
        np.mean([skm.log_loss(t[:, j], expit(above[:, j])) for j in k]), rel=1e-4
    )
    pd.testing.assert_frame_equal(quietly(other, other.predict_df, hand['valid'])[['pain']], before[['pain']])


def test_trees_interpretation_app_and_table(learn, hand, tmp_path):
    valid = hand['valid']
    tree = str(quietly(learn, learn.explain, valid[:8], logits=True))
    assert 'pain: ' in tree and 'given pain.between' in tree and 'visits: ' in tree
    interp = quietly(learn, ConditionalInterpretation.from_learner, learn)
    true, pred = codes(valid.pain[hand['pain']]), (hand['probs'].cumsum(1) < 0.5).sum(1)[hand['pain']]
    np.testing.assert_array_equal(interp.confusion_matrix('pain'), skm.confusion_matrix(true, pred, labels=range(4)))
    assert interp.plot_confusion_matrix('pain').get_title() == f'pain, {len(true)} rows'
    r = interp.residuals('visits')
    np.testing.assert_allclose(r.predicted, hand['rate'][hand['visits']], rtol=1e-4)
    with pytest.raises(FlowError, match='has no classes to confuse'):
        interp.confusion_matrix('visits')
    worst = interp.top_losses('visits', 3)[0]
    y, rate, span = (
        valid.visits[hand['visits']].to_numpy(int),
        hand['rate'][hand['visits']],
        learn.dls.flow.tasks['visits'].span,
    )
    deviances = [skm.mean_poisson_deviance([a], [b]) / 2 / span for a, b in zip(y, rate)]
    worst = worst * learn.dls.flow.loss_units['visits']  # tests/loss/test_unit.py has it by hand
    np.testing.assert_allclose(worst, np.sort(deviances)[::-1][:3], rtol=1e-4)
    from fastai_condmtl.tools.page import tree_html

    pred = quietly(learn, learn.predict, valid.iloc[int(np.argmin(hand['probs'][:, 0]))])[0]
    assert pred['visits'] in pred.probabilities['visits'] and sum(
        pred.probabilities['visits'].values()
    ) == pytest.approx(1, abs=0.01)
    html = tree_html(pred)
    assert 'P(visits' in html and 'mild' in html
    learn.export(tmp_path / 'l.pkl')
    pd.testing.assert_frame_equal(
        load_learner(tmp_path / 'l.pkl').predict_df(valid[:20]), quietly(learn, learn.predict_df, valid[:20])
    )


def test_labels_are_certain_where_they_are_known(learn):
    "A blank below a labelled count is filled as sure as its own probability, not as Poisson counts vary."
    df = DF.iloc[CUT : CUT + 4].copy()
    df['pain'], df['visits'], df['often'] = 'mild', [3, 2, 3, 4], None
    filled = quietly(learn, learn.fill_labels, df, min_confidence=0.5, tasks='often')[0]
    assert filled.often.notna().tolist() == [True, False, True, True]


def test_training_learns_them():
    torch.manual_seed(0)
    learn = make_learn()
    learn.model = nn.Linear(C, learn.dls.c)
    before = quietly(learn, learn.validate)[0]
    quietly(learn, learn.fit, 4, 5e-2)
    res = quietly(learn, learn.evaluate).set_index(['task_path', 'metric_name'])
    assert quietly(learn, learn.validate)[0] < before
    assert (
        res.metric_res['pain', 'mae'] < 0.9 * res.baseline['pain', 'mae']
        and res.metric_res['pain', 'kappa'] > 0.3
        and res.metric_res['visits', 'deviance'] < 0.8 * res.baseline['visits', 'deviance']
    )


# ---- blocks alone
# ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('k', [1, 2, 3, 7])
def test_ordinal_probabilities_are_proper(k):
    b = OrdinalBlock('o', vocab=range(k)).bind(pd.DataFrame(dict(o=[0])))
    z = torch.cat(
        [torch.randn(500, k) * s for s in (0.1, 3, 1e4)] + [torch.full((4, k), v) for v in (-1e4, 1e4)]
    ).requires_grad_()
    t = torch.arange(len(z)).float() % k
    p = b.activate(z)
    assert p.shape == z.shape and (p >= 0).all() and torch.allclose(p.sum(1), torch.ones(len(z)), atol=1e-5)
    loss = b.loss(z, t)
    assert (
        loss.isfinite().all()
        and (loss >= 0).all()
        and b.nll(z, t).isfinite().all()
        and (b.nll(z, t) <= loss + 1e-4 * (1 + loss)).all()
    )  # sorting never costs
    loss.sum().backward()
    assert z.grad.isfinite().all() and torch.allclose(b.loss(z, t, torch.ones(len(z))), loss.sum(), rtol=1e-4)
    assert k > 1 or (loss == 0).all() and (z.grad == 0).all()
    if k == 2:
        np.testing.assert_allclose(p[:, 1].detach(), expit(z.detach().sum(1).double()), atol=1e-6)


def test_no_class_in_the_middle_and_one_class():
    df = pd.DataFrame(dict(o=['a', 'c', None, 'a']))
    b = OrdinalBlock('o', vocab=['a', 'b', 'c']).bind(df)
    assert b.fit_baseline(b.encode(df)[0], b.encode(df)[1]).tolist() == [2, 0, 1]
    one = Flow('f', OrdinalBlock('o')).bind(pd.DataFrame(dict(o=[3.0, None, 3.0])))
    assert (
        one.c == 1
        and one.tasks['o'].vocab == [3]
        and one.loss_func(torch.randn(3, 1), one.encode(pd.DataFrame(dict(o=[3.0, None, 3.0])))) == 0
    )
    assert (
        np.isnan(ordinal_score('kappa', [1, 1], [1, 1]))
        and ordinal_score('kappa', [1, 1], [0, 2]) == 0
        and np.isnan(ordinal_score('mae', [], []))
    )
    none = Flow('f', OrdinalBlock('o')).bind(pd.DataFrame(dict(o=[None, None])))
    assert none.c == 1 and none.loss_func(torch.randn(2, 1), none.encode(pd.DataFrame(dict(o=[None, None])))) == 0


def test_categoricals_bring_their_order():
    s = pd.Series(pd.Categorical(['mild', 'none', None], categories=PAIN, ordered=True))
    assert OrdinalBlock('p').bind(pd.DataFrame(dict(p=s))).vocab == PAIN
    with pytest.raises(FlowError, match="row 0, column 'p', value 'mild': only numbers have an order of their own"):
        OrdinalBlock('p').bind(pd.DataFrame(dict(p=s.cat.as_unordered())))
    bands = pd.cut(pd.Series([1.0, 5.0, 9.0]), [0, 3, 6, 10])
    b = OrdinalBlock('p').bind(pd.DataFrame(dict(p=bands)))
    assert b.encode(pd.DataFrame(dict(p=bands)))[0][:, 0].tolist() == [0, 1, 2] and b.to_cell([1.0]) == bands[1]


@pytest.mark.parametrize(
    'make, why',
    [
        (lambda: OrdinalBlock('o', vocab='abc'), 'must be a list of values'),
        (lambda: OrdinalBlock('o', vocab=[1, 2, 1]), '1 stands twice in vocab'),
        (lambda: OrdinalBlock('o', class_weights=[1]), 'class_weights'),
        (
            lambda: Flow('f', OrdinalBlock('o', vocab=PAIN), BinaryBlock('x') | (OrdinalBlock('o') > 'wurst')).bind(
                pd.DataFrame(dict(o=PAIN, x=1))
            ),
            "compares task 'o' with 'wurst', which is not one of its classes: did you mean 'worst'",
        ),
        (
            lambda: Flow('f', OrdinalBlock('o', vocab=PAIN), BinaryBlock('x') | (task('o') >= 2)).bind(
                pd.DataFrame(dict(o=PAIN, x=1))
            ),
            "compares task 'o' with 2",
        ),
        (
            lambda: Flow(
                'f', OrdinalBlock('o', vocab=PAIN), BinaryBlock('x') | task('o').between('worst', 'none')
            ).bind(pd.DataFrame(dict(o=PAIN, x=1))),
            'is never true: the lower class comes first',
        ),
        (
            lambda: Flow('f', UnboundedRegressionBlock('o'), BinaryBlock('x') | task('o').between(3, 1)).bind(
                pd.DataFrame(dict(o=[1.0, 2.0], x=1))
            ),
            'o.between(3.0, 1.0) is never true: the lower bound comes first',
        ),
        (lambda: CountBlock('n').between(3, 1), 'lower bound comes first'),
        (lambda: OrdinalBlock('o') > None, 'not a number to compare with'),
        (lambda: OrdinalBlock('o') > [1], 'wants one value'),
        (
            lambda: BinaryBlock('x') | OrdinalBlock('o'),
            'cannot be used bare as a condition: compare classes by .eq .ne .isin; compare by >',
        ),
        (
            lambda: Flow('f', UnboundedRegressionBlock('o'), BinaryBlock('x') | (task('o') > 'mild')).bind(
                pd.DataFrame(dict(o=[1.0, 2.0], x=1))
            ),
            "'mild' is not a number to compare with",
        ),
        (
            lambda: CountBlock('n').bind(pd.DataFrame(dict(n=[1, -1]))).encode(pd.DataFrame(dict(n=[1, -1]))),
            "task 'n', row 1, column 'n', value -1: a count is 0, 1, 2",
        ),
        (lambda: CountBlock('n').bind(pd.DataFrame(dict(n=['x']))), 'this is text in a column of numbers'),
        (lambda: CountBlock('n') > 'x', 'not a number to compare with'),
        (
            lambda: Flow('f', CountBlock('n'), BinaryBlock('x') | CountBlock('n').eq(1.5)).bind(
                pd.DataFrame(dict(n=[1], x=1))
            ),
            'is 1.5: counts are 0, 1, 2',
        ),
        (
            lambda: UnboundedRegressionBlock('d').bind(pd.DataFrame(dict(d=pd.to_datetime(['2020-01-01'])))),
            'holds datetime64',
        ),
        (
            lambda: UnboundedRegressionBlock('d').bind(pd.DataFrame(dict(d=[1e308, -1e308]))),
            'too large to be standardised',
        ),
    ],
)
def test_errors(make, why):
    with pytest.raises((FlowError, TypeError)) as e:
        make()
    assert why in str(e.value)


def test_medians_and_huge_rates():
    r = np.concatenate([np.linspace(0, 20, 4001), [1e3, 1e4 + 0.3, 1e5]])
    assert (poisson_median(r) == poisson.median(r)).all()
    t = torch.tensor(r, dtype=torch.float32)
    assert ((poisson_median(t).numpy() == poisson.median(r)).mean() > 0.999) and (
        poisson_median(torch.arange(5e6, 5e6 + 50)) == torch.arange(5e6, 5e6 + 50)
    ).all()


@pytest.mark.parametrize('scale', [1, 1000, 100_000])
def test_counts_read_back_and_weigh_alike(scale):
    "Packed and read back every count is what it was, and gradients are of one size."
    y = np.random.default_rng(0).poisson(3, 300) * scale + np.arange(300) % 7
    df = pd.DataFrame(dict(n=y))
    bound = Flow('f', CountBlock('n')).bind(df)
    assert (bound.to_frame(bound.encode(df)).n.to_numpy(int) == y).all()
    z = torch.zeros(300, 1, requires_grad=True)
    bound.loss_func(z, bound.encode(df)).backward()
    assert 1e-4 < z.grad.norm() < 0.2 and abs(z.grad.sum()) < 1e-4  # starts at the mean


def test_json_and_pickle():
    flow = make_flow()
    again = Flow.from_json(flow.to_json())
    assert (
        repr(again) == repr(flow)
        and again.to_json() == flow.to_json()
        and "pain > 'mild'" in flow.to_json()
        and again.tasks[0].vocab == PAIN
    )
    a, b = (f.bind(DF).encode(DF) for f in (flow, pickle.loads(pickle.dumps(again))))
    assert torch.equal(a, b)


def test_inference_of_labels():
    pain, n = OrdinalBlock('pain', vocab=PAIN), CountBlock('n')
    flow = Flow(
        'f',
        pain,
        n,
        BinaryBlock('x') | (pain > 'severe'),
        BinaryBlock('y') | n.eq(2),
        BinaryBlock('z') | (n < 1),
        infer_labels='train',
    )
    df = pd.DataFrame(
        dict(pain=[None, 'none', None], n=[None, None, None], x=[1, None, None], y=[None, 1, None], z=[None, None, 0])
    ).astype(object)
    y = flow.bind(df.assign(pain=[None, 'none', 'mild'])).encode(df)
    flow = flow.bind(df.assign(n=[1, 1, 1]))
    y = flow.encode(df)
    assert (
        y[:, 1, 0].tolist() == [1, 1, 0]
        and y[0, 0, 0] == 3
        and y[:, 1, 1].tolist() == [0, 1, 1]
        and y[:, 0, 1].tolist() == [0, 2, 0]
    )


def test_guesses():
    n = 300
    rng = np.random.default_rng(0)
    df = pd.DataFrame(
        dict(
            n_birds=rng.poisson(4, n),
            stars=rng.integers(1, 6, n),
            severity=rng.choice(['Low', 'high', 'medium'], n),
            kind=rng.integers(0, 4, n),
            band=pd.Categorical(rng.choice(['x', 'w', 'a'], n), categories=['x', 'w', 'a'], ordered=True),
        )
    )
    flow = guess_flow(df).flow
    assert [type(t).__name__ for t in flow.tasks if t.name != 'kind'] == [
        'CountBlock',
        'OrdinalBlock',
        'OrdinalBlock',
        'OrdinalBlock',
    ] and type(flow.tasks[3]).__name__ in ('SingleLabelBlock', 'OrdinalBlock')
    kinds = {t.name: t for t in flow.tasks}
    assert (
        kinds['severity'].vocab == ['Low', 'medium', 'high']
        and kinds['band'].vocab == ['x', 'w', 'a']
        and type(kinds['kind']) is SingleLabelBlock
        and 'OrdinalBlock' in kinds['kind'].note
    )
    df['size'] = np.where(df.severity == 'high', rng.random(n) * 50, np.nan)
    assert str({t.name: t.given for t in guess_flow(df).flow.tasks}['size']) == "severity.eq('high')"


# ---- numbers at the end of their range
# ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    'x, std',
    [
        ([0.1] * 50, 1.0),
        ([1e15] * 9, 1.0),
        ([5], 1.0),
        ([0, 0], 1.0),
        ([1e-100, 3e-100], 1e-100),
        ([1.7e9 + i for i in range(10)], np.std(range(10))),
        ([-1e150, 1e150], 1e150),
    ],
)
def test_unbounded_regressions(x, std):
    df = pd.DataFrame(dict(x=x))
    b = UnboundedRegressionBlock('x').bind(df)
    assert b.std == pytest.approx(std, rel=1e-6)
    bound = Flow('f', UnboundedRegressionBlock('x')).bind(df)
    y = bound.encode(df)
    assert torch.isfinite(y).all() and y[:, 0].abs().max() < 10
    np.testing.assert_allclose(bound.to_frame(y).x, x, rtol=1e-6)


# ---- thousands of classes
# --------------------------------------------------------------------------------------------------
class Work(TorchDispatchMode):
    "Elements that operators write, of tensors that do not hold the logits of the large task"

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        res = f(*args, **(kwargs or {}))
        self.calls.append((f.overloadpacket.__name__, tuple(res.shape) if isinstance(res, torch.Tensor) else None))
        return res


def wide(k, n=400):
    rng = np.random.default_rng(0)
    tasks = (
        [BinaryBlock(f'b{i}') for i in range(6)]
        + [BoundedRegressionBlock(f'r{i}', y_range=(0, 1)) for i in range(7)]
        + [SingleLabelBlock('small', vocab=list('abc'))]
    )
    df = pd.DataFrame(
        {f'b{i}': rng.integers(0, 2, n) for i in range(6)}
        | {f'r{i}': rng.random(n) for i in range(7)}
        | dict(small=rng.choice(list('abc'), n), species=rng.integers(0, k, n))
    )
    return Flow('f', *tasks, SingleLabelBlock('species', vocab=list(range(k)))), df


def test_thousands_of_classes_cost_other_tasks_nothing():
    """The operators that run on other tasks' logits are the same, call by call, whether a task beside them has 10
    classes or 5,000."""
    seen = {}
    for k in (10, 5000):
        flow, df = wide(k)
        bound = flow.bind(df)
        y, z = bound.encode(df)[:32].as_subclass(torch.Tensor), torch.randn(32, bound.c, requires_grad=True)
        loss_func = bound.loss_func
        with Work() as w:
            loss_func(z, y).backward()
        size = lambda s: None if s is None else tuple('C' if d == bound.c else 'K' if d == k else d for d in s)
        seen[k] = [(f, size(s)) for f, s in w.calls]
        acc = Accumulator(bound)
        assert acc.pack(z.detach(), y).shape == (
            32,
            6 + 7 + 2 + 2 + 2 * 15,
        )  # two numbers of each class task, whatever its classes
    assert seen[10] == seen[5000] and len(seen[10]) < 80


def test_tools_of_thousands_of_classes():
    "No square table, no list of all names, where nobody asks for one."
    k, n = 5000, 400
    flow, df = wide(k, n)
    bound = flow.bind(df)
    assert 'species' in repr(bound) and len(repr(bound)) < 3000 and bound.tasks['species'].describe() == '5000 classes'
    audit = flow.audit(df)
    assert len(str(audit)) < 6000
    acc = Accumulator(bound)
    acc.parts.append(acc.pack(torch.randn(n, bound.c), bound.encode(df)))
    interp = ConditionalInterpretation(None, None, acc)
    tracemalloc.start()
    pairs = interp.most_confused('species')
    ax = interp.plot_confusion_matrix('species')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (
        peak < 60e6
        and len(pairs) > 390
        and 'between 40 of 5000 classes' in ax.get_title()
        and len(ax.get_xticklabels()) == 40
    )
    summary, true, mask, _ = acc.task('species')
    want = {}
    for a, b in zip(true[:, 0].astype(int), summary[:, 0, 0].astype(int)):
        if a != b:
            want[a, b] = want.get((a, b), 0) + 1
    assert {(a, b): c for a, b, c in pairs} == want
    from fastai_condmtl.core.prediction import FlowPrediction

    acts = bound.loss_func.activation(torch.randn(2, bound.c))
    pred = FlowPrediction(bound, bound.loss_func.decodes(acts)[0], acts[0])
    assert len(str(pred.tree())) < 2000
    diagrams = bound.diagrams
    tracemalloc.start()
    diagrams(torch.rand(2000, bound.c), torch.rand(2000, bound.n_targets))
    assert tracemalloc.get_traced_memory()[1] < 5e6  # nothing asks the species
    tracemalloc.stop()


def test_guess_of_bands():
    x = pd.Series(np.random.default_rng(0).uniform(0, 9, 200))
    b = guess_kind(pd.cut(x, [0, 3, 6, 9]), 'band')[0]
    assert (
        type(b) is OrdinalBlock
        and b.vocab is None
        and len(b.bind(pd.DataFrame(dict(band=pd.cut(x, [0, 3, 6, 9])))).vocab) == 3
    )


def test_numbers_from_high_to_low():
    "An order may fall: the first prize is the best."
    b = OrdinalBlock('prize', vocab=[3, 2, 1])
    flow = Flow('f', b, BinaryBlock('x') | b.between(2, 1), BinaryBlock('y') | (b > 3))
    df = pd.DataFrame(dict(prize=[3, 2, 1], x=1, y=1))
    for f in (flow, Flow.from_json(flow.to_json())):
        assert f.bind(df).encode(df)[:, 1].tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 1]]


def test_a_box_beyond_all_numbers_is_one_error_without_a_warning():
    df = pd.DataFrame(dict(x=[1.0, 1e308], y=[1.0, 2.0], w=[1.0, 1.7e308], h=[2.0, 2.0]))
    bound = Flow('f', BoxBlock('b', list('xywh'))).bind(df[:1])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(FlowError, match=r"task 'b', row 1.*more than float32 holds: correct the cell"):
            bound.encode(df)
