"""Groups that a loader was given hold wherever rows are dealt or drawn again: folds of cross-fits, bootstraps of
scores, gains, curves and thresholds, temperatures; against loops that draw whole groups with the same draws"""

import numpy as np, pandas as pd, pytest, torch
from fastai.data.all import DataBlock, TransformBlock
from fastai.data.transforms import ColReader
from fastai.learner import Learner, load_learner
from fastai.tabular.all import Categorify, Normalize
from fasttransform import Transform
from fastai_condmtl.data.target_block import flow_transform
from fastai_condmtl.evaluate.evaluation import judged
from fastai_condmtl.tabular.all import *
from fastai_condmtl.tasks import resample, thresholds
from fastai_condmtl.tasks.resample import deal, drawn_cells, drawn_rows
from fastai_condmtl.tasks.thresholds import cross_fit, gain, score_of_counts, threshold_curve, threshold_interval
from fastai_condmtl.vision.all import GroupSplitter


def patients(n=400, n_patients=60, seed=0):
    "Rows of patients of unequal number; what tells the label belongs to the patient"
    rng = np.random.default_rng(seed)
    patient = np.sort(rng.integers(0, n_patients, n))
    trait = rng.normal(size=n_patients)[patient]
    size = trait + 0.3 * rng.normal(size=n)
    ill = (trait + rng.normal(size=n_patients)[patient] > 0.3).astype(float)
    df = pd.DataFrame(dict(size=size, ill=ill, patient=[f'p{p}' for p in patient]))
    df['severe'] = np.where(ill > 0, rng.random(n) < 0.4, np.nan)
    return df.sample(frac=1, random_state=seed).reset_index(drop=True)


def flow():
    ill = BinaryBlock('ill')
    return Flow('f', ill, BinaryBlock('severe') | ill)


class Scale(torch.nn.Module):
    "Logits that follow the one input"

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([2.0, 0.7]))

    def forward(self, cats, conts):
        return conts[:, :1] * self.weight - torch.tensor([1.0, 0.2])


def learner(df=None, **kwargs):
    df = patients() if df is None else df
    kwargs = dict(group_col='patient') | kwargs
    dls = ConditionalTabularDataLoaders.from_df(
        df, flow(), cat_names=[], cont_names=['size'], procs=[Categorify, Normalize], seed=0, valid_pct=0.5, **kwargs
    )
    return Learner(dls, Scale(), loss_func=dls.loss_func)


def brute_draws(numbers, n_boot, seed=0):
    "Rows of each draw: as many groups as there are, one after the other, all rows of each"
    rng, names = np.random.default_rng(seed), np.unique(numbers)
    for _ in range(n_boot):
        picked = rng.integers(0, len(names), len(names))
        yield np.concatenate([np.flatnonzero(numbers == names[g]) for g in picked])


def scored(n=200, n_groups=25, seed=1):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, n_groups, n)
    true = rng.random(n_groups)[groups] > rng.random(n)
    return (true * 0.3 + rng.random(n) * 0.7).astype(np.float32), true, groups


# Dealing and drawing


@pytest.mark.parametrize('seed', range(4))
def test_no_fold_tears_a_group_and_folds_are_alike(seed):
    _, _, groups = scored(seed=seed)
    fold = deal(200, 5, seed, groups)
    assert pd.Series(fold).groupby(groups).nunique().max() == 1
    sizes = np.bincount(fold, minlength=5)
    assert sizes.max() - sizes.min() <= 2 * np.bincount(groups).max()
    assert sorted(np.bincount(deal(200, 5, seed, np.arange(200)))) == [40] * 5


def test_rows_and_cells_are_drawn_as_a_loop_draws_them():
    _, true, groups = scored()
    brute = list(brute_draws(groups, 30))
    assert all(np.array_equal(a, b) for a, b in zip(drawn_rows(200, 30, groups=groups), brute, strict=True))
    cells = true.astype(int)
    assert np.array_equal(drawn_cells(cells, 2, 30, groups=groups), [np.bincount(cells[r], minlength=2) for r in brute])


def test_groups_of_one_row_are_rows():
    "The same draws of rows, and errors of the same size"
    assert all(map(np.array_equal, drawn_rows(50, 5), drawn_rows(50, 5, groups=np.arange(50))))
    values = np.random.default_rng(0).normal(size=300)
    assert resample.mean_error(values, np.arange(300)) == pytest.approx(values.std() / 300**0.5)


def test_the_gain_is_that_of_a_loop_over_draws():
    p, true, groups = scored()
    fn, ours, other = score_of_counts('f1_score'), p > 0.35, p > 0.5
    better, error = gain(fn, true, ours, other, groups=groups)
    loop = [skm_f1(true[r], ours[r]) - skm_f1(true[r], other[r]) for r in brute_draws(groups, 400)]
    assert better == pytest.approx(skm_f1(true, ours) - skm_f1(true, other))
    assert error == pytest.approx(np.std(loop))


def skm_f1(true, decided):
    from sklearn.metrics import f1_score

    return f1_score(true, decided, zero_division=0)


def test_the_curve_and_the_interval_are_those_of_a_loop_over_draws():
    p, true, groups = scored(80, 12)
    x, _, draws = threshold_curve(p, true, 'f1_score', n_boot=40, groups=groups)
    brute = list(brute_draws(groups, 40))
    loop = [[skm_f1(true[r], p[r].astype(float) > t) for t in x] for r in brute]
    assert np.allclose(draws, loop)
    best = []
    for values in np.array(loop):
        top = np.flatnonzero(values >= values.max() - 1e-12)
        best.append(x[(top[0] + top[-1]) // 2])
    interval = threshold_interval(p, true, 'f1_score', n_boot=40, groups=groups)
    assert interval == pytest.approx(tuple(np.quantile(best, [0.025, 0.975])))


def test_cross_fit_chooses_by_other_groups():
    "For each row: the best threshold of the rows of all other folds, none of which holds a row of its group"
    p, true, groups = scored()
    chosen, fold = cross_fit(p, true, groups=groups), deal(200, 5, groups=groups)
    for k in range(5):
        expected = thresholds.best_threshold(p[fold != k], true[fold != k])[0]
        assert np.all(chosen[fold == k] == expected)
        assert not set(groups[fold == k]) & set(groups[fold != k])
    one = np.zeros(200, dtype=int)  # of one group there are no others
    assert (cross_fit(p, true, groups=one, start=0.4) == 0.4).all()


# A learner


@pytest.fixture
def spy(monkeypatch):
    "What is dealt: the folds and groups of each call, in all modules that deal"
    from fastai_condmtl.evaluate import calibrate

    calls = []

    def spied(n_rows, folds, seed=0, groups=None):
        fold = deal(n_rows, folds, seed, groups)
        calls.append((fold, groups))
        return fold

    for module in (thresholds, calibrate):
        monkeypatch.setattr(module, 'deal', spied)
    return calls


def untorn(calls):
    "How many folds were dealt, after the check that none tears a group"
    for fold, groups in calls:
        assert groups is not None and len(groups) == len(fold)
        assert pd.Series(fold).groupby(groups).nunique().max() == 1
        assert pd.Series(groups).value_counts().max() > 1
    return len(calls)


def test_the_search_the_evaluation_and_temperatures_deal_groups(spy):
    learn = learner()
    with learn.no_bar(), learn.no_logging():
        learn.search_thresholds()
        assert untorn(spy) == 2
        spy.clear()
        res = learn.evaluate(metrics=None)
        assert untorn(spy) == len(res.cross_fit)
        spy.clear()
        learn.calibrate()
        assert untorn(spy) == 2
        spy.clear()
        learn.search_thresholds('f1_micro', tasks=dict(ill='f1_micro'))
        assert untorn(spy) == 2


def test_the_callback_deals_groups(spy):
    learn = learner()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=[ThresholdSearch(verbose=False)])
    assert untorn(spy) == 2


def test_metrics_share_their_rows_with_the_callback(spy):
    learn = learner()
    learn.metrics = learn.dls.flow.metrics()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, cbs=[ThresholdSearch(verbose=False)])
    assert untorn(spy) == 2


@pytest.mark.parametrize('metric', ['roc_auc', 'f1_score'])
def test_intervals_of_evaluate_are_those_of_a_loop_over_groups(metric):
    learn = learner()
    with learn.no_bar(), learn.no_logging():
        res = learn.evaluate(metrics=metric, n_boot=40).set_index('task_path')
        acc = judged(learn)
    patient = pd.factorize(learn.dls.valid.dataset.items.patient)[0]  # numbered as they come
    for path, block in learn.dls.flow.tasks.items():
        task = acc.task(path)
        counts = task.mask.any(1)
        part = [x[counts] for x in task[:3]]
        loop = [block.score(metric, *(x[r] for x in part), 0.5) for r in brute_draws(patient[counts], 40)]
        expected = np.nanquantile(loop, [0.025, 0.975])
        assert np.allclose(res.loc[path, ['ci_low', 'ci_high']].astype(float), expected), path


def test_intervals_without_groups_are_narrower():
    "Each row of a patient counts as a new one where groups are not known"
    learn = learner()
    with learn.no_bar(), learn.no_logging():
        by_group = learn.evaluate(metrics='roc_auc', n_boot=200).iloc[0]
        flow_transform(learn.dls.valid.dataset).group_col = None
        alone = learn.evaluate(metrics='roc_auc', n_boot=200).iloc[0]
    assert by_group.ci_high - by_group.ci_low > 1.3 * (alone.ci_high - alone.ci_low)


def test_groups_hold_within_the_groups_of_by():
    learn = learner(patients().assign(site=lambda df: np.where(df.index % 2, 'a', 'b')))
    with learn.no_bar(), learn.no_logging():
        res = learn.evaluate(metrics='roc_auc', n_boot=40, by='site')
        acc = judged(learn)
    table, task = learn.dls.valid.dataset.items, acc.task('ill')
    of_site = (table.site == 'a').to_numpy()
    part, names = [x[of_site] for x in task[:3]], pd.factorize(table.patient)[0][of_site]
    block = learn.dls.flow.tasks['ill']
    loop = [block.score('roc_auc', *(x[r] for x in part), 0.5) for r in brute_draws(names, 40)]
    row = res[(res.task_path == 'ill') & (res.site == 'a')].iloc[0]
    assert np.allclose([row.ci_low, row.ci_high], np.nanquantile(loop, [0.025, 0.975]))


def test_an_exported_learner_knows_its_groups(tmp_path):
    learn = learner()
    df = patients(seed=3)
    learn.export(tmp_path / 'a.pkl')
    loaded = load_learner(tmp_path / 'a.pkl')
    with learn.no_bar(), loaded.no_bar():
        expected, found = (each.evaluate(df, metrics='roc_auc', n_boot=40) for each in (learn, loaded))
        other = loaded.evaluate(df.rename(columns=dict(patient='who')), metrics='roc_auc', n_boot=40, group_col='who')
    pd.testing.assert_frame_equal(found, expected)
    pd.testing.assert_frame_equal(other, expected)


def test_a_table_without_the_groups_is_said():
    learn = learner()
    with learn.no_bar(), pytest.warns(FlowWarning, match="no column 'patient'.*group_col="):
        learn.evaluate(patients().drop(columns='patient'), metrics='roc_auc', n_boot=40)
    with learn.no_bar(), pytest.raises(FlowError, match="group_col='patent' reads column 'patent'"):
        learn.evaluate(patients(), n_boot=40, group_col='patent')
    blank = patients().assign(patient=lambda df: df.patient.where(df.index != 4))
    with learn.no_bar(), pytest.raises(FlowError, match="group_col='patient' is blank in row 4"):
        learn.evaluate(blank, n_boot=40)


def block_learner(splitter):
    class Size(Transform):
        def encodes(self, x: float):
            return torch.tensor([float(x)])

    dls = DataBlock(
        blocks=(TransformBlock(type_tfms=[Size()]), flow()), get_x=ColReader('size'), splitter=splitter
    ).dataloaders(patients(), bs=64)
    return Learner(dls, torch.nn.Linear(1, 2), loss_func=dls.loss_func)


def test_a_data_block_with_a_splitter_of_groups_knows_them(spy):
    "No argument is given twice: the splitter's column is that of the learner; another flow keeps it"
    learn = block_learner(GroupSplitter('patient', 0.5, seed=0))
    assert learn.dls.group_col == 'patient'
    with learn.no_bar(), learn.no_logging():
        learn.search_thresholds()
        assert untorn(spy) == 2
        learn.change_flow(Flow('g', BinaryBlock('ill')))
        assert learn.dls.group_col == 'patient'
        spy.clear()
        learn.search_thresholds()
    assert untorn(spy) == 1


def test_rows_that_stand_alone_are_dealt_as_before():
    from fastai.data.transforms import RandomSplitter

    learn = block_learner(RandomSplitter(0.5, seed=0))
    assert getattr(learn.dls, 'group_col', None) is None
    rng = np.random.default_rng(0)
    assert np.array_equal(deal(100, 5), rng.permutation(100) % 5)
