"Faults that a review of thresholds, calibration and trees found, each with the rows that showed it"
import numpy as np, pandas as pd, pytest, torch, warnings
import matplotlib.pyplot as plt
from fastai.callback.tracker import SaveModelCallback, TerminateOnNaNCallback
from fastai.callback.schedule import *
from fastai.vision.all import DataBlock, IndexSplitter, Learner, Transform, TransformBlock, set_seed
from torch import nn
from fastai_condmtl.all import *
from fastai_condmtl.loss.conditional import ConditionalLoss
from fastai_condmtl.thresholds import threshold_curve, threshold_interval

N, HALF = 600, list(range(300, 600))

class Z(Transform):
    "Row → the logits that stand in it"
    def __call__(self, r, **kwargs): return torch.tensor([r.z0, r.z1], dtype=torch.float32)

class Scale(nn.Module):
    "A model that is known by heart, and can be trained: logits times a number"
    def __init__(self, s=1.): super().__init__(); self.s = nn.Parameter(torch.tensor(float(s)))
    def forward(self, x): return x*self.s

def table(seed=0, shift=-1.5, scale=1.):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(N, 2)) + [0, shift]
    y = rng.random((N, 2)) < 1/(1 + np.exp(-z*scale))
    return pd.DataFrame(dict(a=y[:, 0], b=y[:, 1], z0=z[:, 0], z1=z[:, 1])).astype(object)

def learner(*cbs, df=None, dls=None, s=1., **kwargs):
    a = BinaryBlock('a')
    if dls is None: dls = DataBlock(blocks=(TransformBlock, Flow('f', a, BinaryBlock('b') | a)), get_x=Z(), splitter=IndexSplitter(HALF)).dataloaders(table() if df is None else df, bs=50, num_workers=0)
    return Learner(dls, Scale(s), lr=1e-6, cbs=list(cbs), **{'metrics': dls.flow.metrics(), **kwargs})

def quiet(learn, f, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): return getattr(learn, f)(*args, **kwargs)

def test_two_learners_on_one_dls():
    one = learner(ThresholdSearch())
    quiet(one, 'fit', 1)
    before = dict(one.loss_func.thresholds)
    two = learner(ThresholdSearch(metric='recall', gates=None), dls=one.dls, s=-1.)
    quiet(two, 'fit', 1)
    quiet(two, 'calibrate')
    assert dict(one.loss_func.thresholds) == before and not one.loss_func.temperatures and not torch.equal(two.loss_func.thresholds['b'], before['b'])

def test_temperatures_of_the_learners_own_loss_are_scored():
    learn = learner(s=4.)
    learn.loss_func = ConditionalLoss(learn.dls.flow)
    quiet(learn, 'search_thresholds')
    before = quiet(learn, 'evaluate', metrics=('recall', 'f1'))
    assert quiet(learn, 'calibrate').temperature.max() > 2
    pd.testing.assert_frame_equal(pd.DataFrame(quiet(learn, 'evaluate', metrics=('recall', 'f1'))), pd.DataFrame(before), rtol=1e-5)

def test_an_interpretation_is_of_its_time():
    learn = learner(s=4.)
    quiet(learn, 'search_thresholds')
    interp = ConditionalInterpretation.from_learner(learn)
    before = interp.confusion_matrix('b')
    quiet(learn, 'calibrate')
    learn.loss_func.thresholds['b'] = torch.tensor([.9])
    np.testing.assert_array_equal(interp.confusion_matrix('b'), before)

def test_curves_of_rare_answers_reach_the_peak():
    rng = np.random.default_rng(0)
    n, k = 200_000, 150
    p, y = np.concatenate([rng.beta(1, 40, n - k), rng.beta(8, 8, k)]).astype(np.float32), np.arange(n) >= n - k
    t, score = best_threshold(p, y)
    _, values, _ = threshold_curve(p, y)
    lo, hi = threshold_interval(p, y, n_boot=50)
    assert values.max() == pytest.approx(score, abs=.005) and lo <= t <= hi

def test_training_metrics_do_not_tune():
    learn = learner(ThresholdSearch(), train_bn=True)
    learn.recorder.train_metrics, learn.recorder.valid_metrics = True, False
    quiet(learn, 'fit', 1)
    assert learn.threshold_search.result.num_samples.iloc[0] == len(HALF)

def test_probabilities_of_exactly_zero():
    df = table().assign(z0=-200., a=True)
    df.loc[df.index[::3], 'a'] = False
    learn = learner(df=df)
    res = quiet(learn, 'search_thresholds', gates=None).set_index('task_path')
    quiet(learn, 'calibrate')
    assert 0 <= res.threshold['a'] <= 1 and all(torch.isfinite(torch.as_tensor(t)).all() for t in learn.loss_func.thresholds.values())

def test_temperatures_do_not_outlive_their_weights():
    learn = learner(s=6.)
    quiet(learn, 'search_thresholds')
    raw = {p: t.clone() for p, t in learn.loss_func.thresholds.items()}
    quiet(learn, 'calibrate')
    assert learn.loss_func.temperatures
    with pytest.warns(UserWarning, match='calibrate'): quiet(learn, 'fit', 1)
    assert not learn.loss_func.temperatures
    for p, t in raw.items(): torch.testing.assert_close(learn.loss_func.thresholds[p], t, atol=1e-4, rtol=1e-3)

def test_other_rows_with_the_same_labels_are_other_rows():
    df = table()
    learn = learner(df=df)
    assert '' in set(quiet(learn, 'search_thresholds', gates=None).note)
    assert quiet(learn, 'evaluate').cross_fit
    rng = np.random.default_rng(5)
    other = df.iloc[HALF].assign(z0=rng.normal(size=len(HALF)), z1=rng.normal(size=len(HALF)))
    assert not quiet(learn, 'evaluate', dl=learn.dls.test_dl(other, with_labels=True)).cross_fit

def test_too_few_rows_leave_what_is_in_force():
    learn = learner()
    learn.loss_func.thresholds['b'] = torch.tensor([.9])
    res = quiet(learn, 'search_thresholds', min_support=10_000).set_index('task_path')
    assert res.threshold['b'] == pytest.approx(.9) and 'kept 0.9' in res.note['b'] and float(learn.loss_func.thresholds['b']) == pytest.approx(.9)
    with pytest.raises(FlowError, match='constraint'): quiet(learn, 'search_thresholds', 'f1_micro', constraint=('precision', .9))
    empty = table().assign(b=None)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn = learner(df=empty)
    assert quiet(learn, 'search_thresholds', min_support=0).num_samples.tolist()[1] == 0

@pytest.mark.parametrize('every', ['fit', 'epoch'])
@pytest.mark.parametrize('metrics', [True, False])
def test_the_training_does_not_notice(every, metrics, tmp_path):
    runs = []
    for cbs in ([], [ThresholdSearch(every=every)]):
        set_seed(0)
        learn = learner(SaveModelCallback(fname='best'), TerminateOnNaNCallback(), *cbs, path=tmp_path, **({} if metrics else dict(metrics=[])))
        quiet(learn, 'fit_one_cycle', 3, 1e-2)
        runs.append(learn)
    plain, tuned = runs
    assert tuned.recorder.hps.keys() == plain.recorder.hps.keys() and tuned.recorder.hps['lr'] == plain.recorder.hps['lr'] and len(tuned.recorder.hps['lr']) == 18
    drop = slice(None) if every == 'fit' else slice(2) # after an epoch's search its metrics are those of the new thresholds
    assert [v[drop] for v in tuned.recorder.values] == [v[drop] for v in plain.recorder.values] and torch.equal(tuned.model.s, plain.model.s) and len(tuned.threshold_search.result) == 2

def test_nan_predictions_cost_no_training():
    learn = learner(ThresholdSearch(), TerminateOnNaNCallback(), s=float('nan'))
    with pytest.warns(UserWarning, match="not searched.*'a'"): quiet(learn, 'fit', 1)

def test_an_interrupted_lr_find_does_not_switch_the_search_off():
    class Stop(Exception): pass
    learn = learner(ThresholdSearch())
    def stop(*args): raise Stop
    forward, learn.model.forward = learn.model.forward, stop
    with pytest.raises(Stop): quiet(learn, 'lr_find', show_plot=False)
    learn.model.forward = forward
    for cb in [c for c in learn.cbs if c.name == 'lr_finder']: learn.remove_cb(cb)
    quiet(learn, 'fit', 1)
    assert learn.threshold_search.result is not None

def test_dollars_are_no_formulas():
    m = MultiLabelBlock('$m_{', 'm', vocab=['$a_{', 'b$'])
    bound = Flow('f$', m).bind(pd.DataFrame(dict(m=['$a_{,b$', ''])))
    from fastai_condmtl.vision.show import draw_tree
    fig, ax = plt.subplots()
    draw_tree(ax, FlowPrediction(bound, bound.encode(pd.DataFrame(dict(m=['$a_{,b$'])))[0]).tree())
    bound.plot()
    for f in plt.get_fignums(): plt.figure(f).canvas.draw()
    plt.close('all')

def test_own_metrics_and_order_of_writing():
    ratio = lambda tp, fp, fn, tn: tp/(tp + fp)
    with np.errstate(invalid='ignore'): assert best_threshold([.1, .4, .9], [0, 0, 1], metric=ratio)[1] == 1
    names = [f't{i}' for i in range(800)]
    bound = Flow('f', *map(BinaryBlock, names), BinaryBlock('last') | any_of(*map(task, reversed(names)))).bind(pd.DataFrame({n: [0, 1] for n in [*names, 'last']}))
    assert len(bound.diagrams.nodes) == 802

def test_partial_thresholds():
    learn = learner(s=4.)
    learn.loss_func.thresholds = {'a': .3}
    quiet(learn, 'calibrate')
    assert set(learn.loss_func.thresholds) >= {'a'} and learn.loss_func.temperatures

def test_a_foreign_loss_and_no_validation_rows():
    learn = learner(loss_func=nn.BCEWithLogitsLoss(), metrics=[])
    for f, args in [('evaluate', ()), ('search_thresholds', ()), ('explain', (table()[:2],)), ('calibrate', ()), ('get_marginals', ())]:
        with pytest.raises(FlowError, match='loss_func'): quiet(learn, f, *args)
    a = BinaryBlock('a')
    dls = DataBlock(blocks=(TransformBlock, Flow('f', a, BinaryBlock('b') | a)), get_x=Z(), splitter=IndexSplitter([])).dataloaders(table(), bs=50, num_workers=0)
    learn = learner(dls=dls)
    for f in ('evaluate', 'search_thresholds', 'explain', 'calibrate', 'get_marginals'):
        with pytest.raises(FlowError): quiet(learn, f)
