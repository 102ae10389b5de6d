"""`average_folds`: what its learner says is the mean, in NumPy, of what the learners of the folds say, for every kind
of task; thresholds come from rows that were not seen; and the learner evaluates, explains, calibrates and exports"""

import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import DataBlock, IndexSplitter, Learner, Transform, TransformBlock, load_learner
from sklearn.metrics import accuracy_score, roc_auc_score
from torch import nn
from fastai_condmtl.all import *
from fastai_condmtl.evaluate.average import AveragedNetwork
from fastai_condmtl.evaluate.task_threshold import as_aim, tune_task
from fastai_condmtl.tasks.numeric import Regression

N = 60


class Features(Transform):
    "Row → its numbers"

    def __call__(self, r, **kwargs):
        return torch.tensor([r.x0, r.x1], dtype=torch.float32)


def flow():
    a = BinaryBlock('a')
    kind = SingleLabelBlock('kind', vocab=list('uvw'))
    return Flow(
        'f',
        a,
        kind | a,
        SingleLabelBlock('sub', vocab=['u1', 'u2', 'v1', 'w1'], within=(kind, dict(u1='u', u2='u', v1='v', w1='w'))),
        MultiLabelBlock('tags', vocab=['g', 'r']) | a,
        OrdinalBlock('stars', vocab=[1, 2, 3, 4]),
        BoundedRegressionBlock('share', y_range=(-2, 5)),
        UnboundedRegressionBlock('size') | kind.eq('u'),
        CountBlock('people'),
        VotesBlock('shape', cols=['disk', 'ring', 'none']),
        VotesBlock('sure', cols=['yes', 'no'], loss='dirichlet'),
    )


def table(n=N, seed=0):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame(rng.normal(size=(n, 2)), columns=['x0', 'x1'])
    df['a'] = 1 * (df.x0 + rng.normal(size=n) > 0)
    df['sub'] = rng.choice(['u1', 'u2', 'v1', 'w1'], n)
    df['kind'] = df['sub'].str[0]
    df['tags'] = rng.choice(['g', 'r', 'g,r', ''], n)
    df['stars'] = rng.integers(1, 5, n)
    df['share'] = rng.uniform(-2, 5, n)
    df['size'] = 100 + 30 * rng.normal(size=n)
    df['people'] = rng.poisson(3, n)
    for col in ('disk', 'ring', 'none', 'yes', 'no'):
        df[col] = rng.integers(1, 6, n)
    return df.assign(who=np.arange(n) // 3).set_axis([f'row{i}' for i in range(n)])


def fitter(df, of=flow, spread=1.0):
    "A function for `fit_folds`: linear layers with weights of their own"

    def fit(valid_idx):
        block = DataBlock(blocks=(TransformBlock, of()), get_x=Features(), splitter=IndexSplitter(valid_idx))
        dls = block.dataloaders(df, bs=16, num_workers=0)
        model = nn.Linear(2, dls.c)
        nn.init.normal_(model.weight, std=spread)
        nn.init.normal_(model.bias, std=spread)
        return equip(Learner(dls, model))

    return fit


@pytest.fixture(scope='module')
def folds():
    torch.manual_seed(0)
    df = table()
    res = fit_folds(fitter(df), flow(), df, n=3, seed=0, group_col='who')
    for k, learn in enumerate(res.learners):
        learn.loss_func.temperatures = dict(a=1.5 + k, kind=0.5 + k)
    return res


@pytest.fixture(scope='module')
def few_tasks():
    "Folds of which a graph is quickly made"
    torch.manual_seed(0)
    a = BinaryBlock('a')
    of = lambda: Flow('f', a, SingleLabelBlock('kind', vocab=list('uvw')) | a, UnboundedRegressionBlock('size') | a)
    return fit_folds(fitter(table(), of), of(), table(), n=2, seed=0)


def natural(learn, rows):
    "Path → activations of rows, numbers in natural units, in float64"
    flow, res = learn.dls.flow, {}
    with learn.no_bar():
        acts = learn.get_preds(dl=learn.dls.test_dl(rows))[0].as_subclass(torch.Tensor).double().numpy()
    for path, own in flow.slices.items():
        block = flow.tasks[path]
        res[path] = block.unscale(acts[:, own.acts]) if block.has_unit else acts[:, own.acts]
    return res


def test_it_says_the_mean(folds):
    learn, new = average_folds(folds), table(40, seed=1)
    got, each = natural(learn, new), [natural(one, new) for one in folds.learners]
    assert isinstance(learn.model, AveragedNetwork) and len(each) == 3
    for path, said in got.items():
        want = np.mean([one[path] for one in each], 0)
        assert np.abs(want - each[0][path]).max() > 0.01 * np.abs(want).max(), path
        np.testing.assert_allclose(said, want, rtol=2e-5, atol=2e-6 * max(1, np.abs(want).max()), err_msg=path)


def test_extreme_logits():
    "Members that are as sure as can be, some of yes and some of no"
    torch.manual_seed(1)
    df = table()
    sure = fit_folds(fitter(df, spread=40.0), flow(), df, n=2, seed=0)
    learn, new = average_folds(sure), table(40, seed=1)
    got, each = natural(learn, new), [natural(one, new) for one in sure.learners]
    for path, said in got.items():
        want = np.mean([one[path] for one in each], 0)
        np.testing.assert_allclose(said, want, rtol=2e-5, atol=2e-6 * max(1, np.abs(want).max()), err_msg=path)
    with learn.no_bar():
        losses = learn.loss_func.per_task(*raw(learn, new))
    assert np.isfinite(list(losses.values()) if isinstance(losses, dict) else losses.tolist()).all()


def raw(learn, rows):
    "Logits and packed labels"
    dl = learn.dls.test_dl(rows, with_labels=True)
    x, y = zip(*[(batch[0], batch[-1]) for batch in dl])
    with torch.no_grad():
        return learn.model.eval()(torch.cat(x)), torch.cat(y)


def test_decisions_follow_from_the_mean(folds):
    "Tables of predictions: the class with the highest mean, the mean number, blanks where a task is not reached"
    learn, new = average_folds(folds, tune=None), table(40, seed=2)
    mean = {path: np.mean([natural(one, new)[path] for one in folds.learners], 0) for path in flow_paths(learn)}
    with learn.no_bar():
        told = learn.predict_df(new)
    yes = mean['a'][:, 0] > 0.5
    assert told.a.astype(bool).tolist() == yes.tolist() and 2 < yes.sum() < 38
    kind = np.array(list('uvw'))[mean['kind'].argmax(1)]
    assert [k if isinstance(k, str) else None for k in told.kind] == [k if y else None for k, y in zip(kind, yes)]
    size = mean['size'][:, 0]
    for said, number, reached in zip(told['size'], size, yes & (kind == 'u')):
        assert said == pytest.approx(number, rel=1e-4) if reached else pd.isna(said)


def flow_paths(learn):
    return learn.dls.flow.paths


def test_thresholds_come_from_rows_that_were_not_seen(folds):
    learn = average_folds(folds)
    probs, truth = [], []
    for one, part in zip(folds.learners, folds.parts):
        rows = folds.df.iloc[part]
        probs += natural(one, rows)['a'][:, 0].tolist()
        truth += rows.a.tolist()
    probs, truth = np.array(probs), np.array(truth) > 0
    acc = learn.out_of_fold
    np.testing.assert_allclose(acc.task('a').summary[:, 0, 0], probs, atol=1e-6)
    groups = np.concatenate([folds.df.who.to_numpy()[part] for part in folds.parts])
    assert pd.factorize(acc.groups)[0].tolist() == pd.factorize(groups)[0].tolist()
    block = learn.dls.flow.tasks['a']
    start = block.thresholds().numpy()
    everywhere = np.ones((N, 1), dtype=bool)
    found, _ = tune_task(
        probs[:, None], truth[:, None], everywhere, as_aim('headline', block=block), start, 0, 5, start, groups
    )
    assert learn.loss_func.thresholds['a'].tolist() == pytest.approx(found.tolist(), abs=1e-5)
    with learn.no_bar():
        scores = learn.evaluate(acc=acc).set_index(['task_path', 'metric_name']).metric_res
    assert scores['a', 'roc_auc'] == pytest.approx(roc_auc_score(truth, probs))
    assert average_folds(folds, tune=None).loss_func.thresholds['a'].tolist() == [0.5]
    assert all(one.loss_func.temperatures['a'] == 1.5 + k for k, one in enumerate(folds.learners))


def test_evaluate_and_explain(folds):
    learn, new = average_folds(folds, tune=None), table(40, seed=3)
    mean = np.mean([natural(one, new)['a'][:, 0] for one in folds.learners], 0)
    with learn.no_bar():
        scores = learn.evaluate(new).set_index(['task_path', 'metric_name']).metric_res
        tree = learn.explain(new[:2])
        assert len(learn.get_marginals(new)) > 0
        prediction = learn.predict(new.iloc[0])[0]
        learn.calibrate(dl=new)
    assert scores['a', 'accuracy'] == pytest.approx(accuracy_score(new.a, mean > 0.5))
    assert scores['a', 'roc_auc'] == pytest.approx(roc_auc_score(new.a, mean))
    assert tree.contains((0, 'a')) and prediction['a'] == (mean[0] > 0.5)


def test_files(few_tasks, tmp_path):
    learn, new = average_folds(few_tasks), table(12, seed=4)
    learn.path = tmp_path
    learn.export('mean.pkl')
    loaded = load_learner(tmp_path / 'mean.pkl')
    with learn.no_bar(), loaded.no_bar():
        want = learn.predict_df(new)
        assert loaded.predict_df(new).equals(want)
        acts = learn.get_preds(dl=learn.dls.test_dl(new))[0].numpy()
    x = torch.tensor(new[['x0', 'x1']].to_numpy(), dtype=torch.float32)
    values, probabilities, reached = learn.deployed()(x)
    np.testing.assert_allclose(probabilities.detach().numpy(), acts, atol=1e-5, rtol=1e-5)
    program = learn.to_exported(example=torch.zeros(2, 2)).module()
    np.testing.assert_allclose(program(x)[1].detach().numpy(), acts, atol=1e-5, rtol=1e-5)


def test_a_graph_for_onnx(few_tasks, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime', reason='the extra onnx')
    learn, new = average_folds(few_tasks), table(12, seed=4)
    with learn.no_bar():
        acts = learn.get_preds(dl=learn.dls.test_dl(new))[0].numpy()
    session = onnxruntime.InferenceSession(str(learn.to_onnx(tmp_path / 'mean.onnx', example=torch.zeros(2, 2))))
    x = new[['x0', 'x1']].to_numpy().astype(np.float32)
    np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: x})[1], acts, atol=1e-5, rtol=1e-4)


def test_members_stay_as_they_are(folds):
    learn, new = average_folds(folds, tune=None), table(10, seed=5)
    before = natural(learn, new)['a']
    with torch.no_grad():
        weight = folds.learners[0].model.weight
        weight.add_(1.0)
        try:
            assert np.array_equal(natural(learn, new)['a'], before)
        finally:
            weight.sub_(1.0)


class Silent(UnboundedRegressionBlock):
    "A kind that does not say which logits give its activations"

    def logits_at(self, acts):
        return super(Regression, self).logits_at(acts)


def test_what_is_refused(folds):
    df = folds.df
    learn = average_folds(folds, tune=None)
    with pytest.raises(FlowError, match='takes Folds, not list'):
        average_folds(folds.learners)
    learn.dls = folds.learners[0].dls
    with learn.no_bar(), pytest.raises(FlowError, match='mean of trained learners'):
        learn.fit(1)
    ranges = iter([(-2, 5), (-2, 6)])
    of = lambda: Flow('f', BoundedRegressionBlock('share', y_range=next(ranges)))
    fit, parts = fitter(df, of), stratified_folds(BoundedRegressionBlock('share'), df, 2, seed=0)
    learners = [fit(valid) for _, valid in parts]
    with pytest.raises(FlowError, match="task 'share': folds 0 and 1 have the ranges -2 to 5 and -2 to 6"):
        average_folds(Folds(learners, df, parts))
    silent = lambda: Flow('f', Silent('size'))
    with pytest.raises(FlowError, match="task 'size' .Silent. does not say which logits give activations"):
        average_folds(fit_folds(fitter(df, silent), silent(), df, n=2, seed=0))


def test_groups_of_collected_rows(folds):
    "`by=` and `group_col=` beside `acc=` are about the rows that were collected, whatever the learner's own rows are"
    learn = average_folds(folds, tune=None)
    df, acc = folds.df, learn.out_of_fold
    rows = df.iloc[np.concatenate(folds.parts)]
    half = np.where(df.x1 > 0, 'high', 'low')
    says_yes = acc.task('a').summary[:, 0, 0] > 0.5
    with learn.no_bar():
        by_array = learn.evaluate(acc=acc, by=half, metrics='accuracy')
        by_column = learn.evaluate(acc=acc, by='stars', metrics='accuracy')
        alone, together = (learn.evaluate(acc=acc, group_col=col, n_boot=60) for col in ('x0', 'who'))
    of_a = by_array[by_array.task_path == 'a'].set_index('group')
    for group in ('high', 'low'):
        inside = (rows.x1 > 0).to_numpy() == (group == 'high')
        assert of_a.num_samples[group] == inside.sum()
        assert of_a.metric_res[group] == pytest.approx((says_yes == (rows.a > 0).to_numpy())[inside].mean())
    stars = by_column[by_column.task_path == 'a'].set_index('stars')
    for star in (1, 2, 3, 4):
        inside = (rows.stars == star).to_numpy()
        assert stars.metric_res[star] == pytest.approx((says_yes == (rows.a > 0).to_numpy())[inside].mean())
    assert not np.allclose(alone.ci_low, together.ci_low, equal_nan=True)
    with pytest.raises(FlowError, match='a label a row|one label a row'):
        learn.evaluate(acc=acc, by=half[:7])


def test_groups_of_collected_rows_are_not_those_of_the_validation_set(folds):
    from fastai_condmtl.learn.accumulate import collect

    learn, new = folds.learners[0], table(50, seed=5)
    with learn.no_bar():
        acc = collect(learn, new)
        beside, found = learn.evaluate(new, by='stars'), learn.evaluate(acc=acc, by='stars')
        pd.testing.assert_frame_equal(pd.DataFrame(found), pd.DataFrame(beside))
        with pytest.raises(FlowError, match='acc= holds 50 rows, and the groups of by= are of 20'):
            learn.evaluate(new[:20], acc=acc, by='stars')
