"Faults that a review found, each with the smallest table that showed it."
import numpy as np, pandas as pd, pytest, torch, warnings
from fastai.vision.all import ColReader, DataBlock, IndexSplitter, Learner, TransformBlock
from torch import nn
from fastai_condmtl.all import *
from sklearn import metrics as skm
from fastai_condmtl.condition_text import read_condition, write_condition
from fastai_condmtl.draw import group_rows
from fastai_condmtl.masks import mask_facts
from fastai_condmtl.metrics import Accumulator
from fastai_condmtl.scores import binary_score, regression_score
from fastai_condmtl.sources import concat_sources

def learner(df, *tasks):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        dls = DataBlock(blocks=(TransformBlock, Flow('f', *tasks)), get_x=Row(), splitter=IndexSplitter([0])).dataloaders(df, bs=2, num_workers=0)
    return Learner(dls, nn.Linear(3, dls.c), metrics=dls.flow.metrics('all'))

class Row:
    def __call__(self, r): return torch.ones(3)
    __name__ = 'row'

@pytest.mark.parametrize('task, column', [(SingleLabelBlock('k'), [None]*6), (SingleLabelBlock('k'), ['one', None]*3), (MultiLabelBlock('k'), [None]*6), (MultiLabelBlock('k'), ['', None]*3),
                                          (BoundedRegressionBlock('k'), [None]*6), (UnboundedRegressionBlock('k'), [np.nan]*6), (BinaryBlock('k'), [pd.NA]*6)])
def test_training_goes_on_without_labels_or_with_one_class(task, column):
    learn = learner(pd.DataFrame(dict(a=[0, 1]*3, k=column)), BinaryBlock('a'), task, SingleLabelBlock('c', col='a'))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        assert np.isfinite(learn.validate()[0]) and all(torch.isfinite(p).all() for p in learn.model.parameters())
        assert learn.predict(pd.Series(dict(a=1)))[0]['a'] in (True, False)
        learn.evaluate()

def test_a_blank_read_as_none_is_no_evidence():
    p = BinaryBlock('p')
    flow = Flow('f', p, MultiLabelBlock('m', nan_is_empty=True) | p, infer_labels='train')
    df = pd.DataFrame(dict(p=[None, None, 1], m=[None, 'x', None]))
    assert flow.bind(df).encode(df)[:, 1].tolist() == [[0, 0], [1, 1], [1, 1]]

def test_an_absent_column_is_missing_whatever_blanks_mean():
    flow = Flow('f', BinaryBlock('b'), MultiLabelBlock('m', nan_is_empty=True))
    bound = flow.bind(pd.DataFrame(dict(b=[1, 0], m=['x', None])))
    with pytest.warns(UserWarning, match="no column 'm'"): assert bound.encode(pd.DataFrame(dict(b=[1])), missing_ok=True)[0, 1].tolist() == [1, 0]

def test_tasks_that_share_a_column():
    house = BinaryBlock('house')
    flow = Flow('f', house, UnboundedRegressionBlock('hp', col='price') | house, UnboundedRegressionBlock('cp', col='price') | ~house)
    df = pd.DataFrame(dict(house=[1, 0, 1], price=[3., 4., 5.]))
    bound = flow.bind(df)
    assert bound.to_frame(bound.encode(df)).price.tolist() == pytest.approx([3, 4, 5])

def test_a_partly_labelled_row_on_the_way_back():
    flow = Flow('f', MultiLabelBlock('m', cols=['a', 'b']))
    bound = flow.bind(pd.DataFrame(dict(a=[1, 0], b=[np.nan, 1])))
    y = bound.encode(pd.DataFrame(dict(a=[1], b=[np.nan])))
    frame = bound.to_frame(y)
    assert frame.a[0] and pd.isna(frame.b[0])
    both = FlowPrediction(bound, bound.encode(pd.DataFrame(dict(a=[1], b=[1])))[0])
    assert not both.tree(truth=FlowPrediction(bound, y[0]))['m'].data['wrong']  # b is not known: not wrong

def test_numbers_as_classes_can_be_wrong():
    bound = Flow('f', SingleLabelBlock('k')).bind(df := pd.DataFrame(dict(k=[.5, 1.5])))
    a, b = (FlowPrediction(bound, y) for y in bound.encode(df))
    assert a.tree(truth=b)['k'].data['wrong'] and not a.tree(truth=a)['k'].data['wrong']

def test_a_block_in_a_condition_is_the_task_it_looks_like():
    face, body = BinaryBlock('visible', col='fv'), BinaryBlock('visible', col='bv')
    with pytest.raises(FlowError, match="reads 'fv'.*task 'visible', which reads 'bv'"):
        Flow('f', Flow('face', face), body, BinaryBlock('smile') | face).bind(pd.DataFrame(dict(fv=[1], bv=[1], smile=[1])))

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_many_classes_in_half_precision(dtype):
    bound = Flow('f', SingleLabelBlock('k', vocab=list(range(3000)))).bind(pd.DataFrame(dict(k=[1])))
    x = torch.zeros(1, 3000, dtype=dtype)
    x[0, 2301] = 5
    acts = bound.loss_func.activation(x)
    assert bound.loss_func.decodes(acts)[0, 0, 0].item() == 2301

def test_conditions_on_many_values():
    k = SingleLabelBlock('k')
    df = pd.DataFrame(dict(k=range(3000), b=[1]*3000))
    assert Flow('f', k, BinaryBlock('b') | k.isin(range(2000))).bind(df).encode(df)[:, 1, 1].sum() == 2000

def test_rows_that_are_lists_of_labels():
    bound = Flow('f', MultiLabelBlock('m', vocab=[1, 2])).bind([[1, 2], [2]])
    assert bound.encode([[1], [2]])[:, 0].tolist() == [[1, 0], [0, 1]]

def test_arrow_lists():
    pa = pytest.importorskip('pyarrow')
    df = pd.DataFrame(dict(m=pd.array([['a', 'b'], None, []], dtype=pd.ArrowDtype(pa.list_(pa.string())))))
    assert Flow('f', MultiLabelBlock('m')).bind(df).encode(df).tolist() == [[[1, 1], [1, 1]], [[0, 0], [0, 0]], [[0, 0], [1, 1]]]

def test_a_label_that_holds_the_delimiter_stays_whole():
    bound = Flow('f', MultiLabelBlock('m')).bind(df := pd.DataFrame(dict(m=[['a,b', 'c'], ['c']])))
    assert bound.to_frame(bound.encode(df)).m.tolist() == [['a,b', 'c'], ['c']]

def test_a_test_set_that_lacks_a_column_under_a_getter():
    flow, df = Flow('f', BinaryBlock('a'), BinaryBlock('b')), pd.DataFrame(dict(a=[0, 1, 1], b=[1, 0, 1]))
    dls = DataBlock(blocks=(TransformBlock, flow), get_x=Row(), get_y=ColReader(['a', 'b']), splitter=IndexSplitter([0])).dataloaders(df, bs=2, num_workers=0)
    with pytest.warns(UserWarning, match="no column 'b'"): assert dls.test_dl(df[['a']], with_labels=True).one_batch()[1][:, 1].sum(0).tolist() == [2, 0]

def test_labels_do_not_turn_trackers_round():
    bound = Flow('f', MultiLabelBlock('m', vocab=['error_dialog', 'loss', 'ok'])).bind([['ok']])
    names = [m.name for m in bound.metrics(per_label=True)]
    assert len(set(names)) == 3 and not [n for n in names if 'loss' in n or 'error' in n]

def test_predictions_that_are_not_numbers(): assert np.isnan(binary_score('roc_auc', [np.nan, .5], [0, 1]))

def test_metrics_leave_the_loss_where_it_is():
    bound = Flow('f', BinaryBlock('a'), SingleLabelBlock('k', vocab=list('xyz'), class_weights=[1, 2, 3])).bind(pd.DataFrame(dict(a=[1], k=['x'])))
    loss = bound.loss_func.to('meta')  # as after training on another device
    x, y = torch.randn(4, 4, device='meta'), torch.zeros(4, 2, 2, device='meta')
    assert loss(x, y).device.type == 'meta' and {b.device.type for b in loss.buffers()} == {'meta'}

@pytest.mark.parametrize('make, words', [
    (lambda: BinaryBlock('x', pos_weight=[1, 2]), 'pos_weight'), (lambda: BinaryBlock('x', pos_weight=-1), 'pos_weight'), (lambda: BinaryBlock('x', vocab=('a', 'a')), 'twice'),
    (lambda: BinaryBlock('x', vocab=5), 'vocab'), (lambda: SingleLabelBlock('x', class_weights=[-1, 1]), 'class_weights'), (lambda: SingleLabelBlock('x', label_smoothing=2), 'label_smoothing'),
    (lambda: MultiLabelBlock('x', label_delim=''), 'label_delim'), (lambda: MultiLabelBlock('x', cols=['a', 'a']), 'different columns'), (lambda: MultiLabelBlock('x', cols=['a'], nan_is_empty=True), 'nan_is_empty'),
    (lambda: StratifiedSplitter([BinaryBlock('x')]), 'neither a flow nor a task')])
def test_arguments(make, words):
    with pytest.raises(FlowError, match=words): make()

def test_an_index_with_gaps_in_messages():
    df = pd.DataFrame(dict(x=['maybe', 1]), index=[pd.NA, 'b'])
    with pytest.raises(FlowError, match="task 'x', row 0"): Flow('f', BinaryBlock('x')).bind(df).encode(df)

def test_unknown_metric_in_evaluate():
    learn = learner(pd.DataFrame(dict(a=[0, 1]*3)), BinaryBlock('a'))
    with pytest.raises(FlowError, match="acuracy.*did you mean 'accuracy'"): learn.evaluate(metrics='acuracy')
    with pytest.raises(FlowError, match=r'\[item\]'): learn.predict_df('1.png')

# ---- a second review: conditions, kinds, scores ---------------------------------------------------------------------------
def table(**cols): return pd.DataFrame({c: pd.Series(v, dtype=object) for c, v in cols.items()})
def refused(why, *tasks, **cols):
    with pytest.raises(FlowError, match=why): Flow('f', *tasks).bind(table(**cols)).loss_func

@pytest.mark.parametrize('parent, cond', [(OrdinalBlock('o', vocab=[1, 2, 3]), lambda o: o.eq(2)), (OrdinalBlock('o', vocab=[1, 2, 3]), lambda o: o >= 2), (CountBlock('o'), lambda o: o.eq(0)), (CountBlock('o'), lambda o: ~o.eq(3))])
def test_whole_space_knows_the_logits_it_reads(parent, cond):
    refused(f"task 'c': whole_space=.*asks 'o' \\({type(parent).__name__}\\), whose logits are no yes, no or softmax", parent, BinaryBlock('c', whole_space=True) | cond(parent), o=[1, 2, 3], c=[1, None, 0])

@pytest.mark.parametrize('kind, own', [(KeypointsBlock, dict(n_points=2)), (BoxBlock, dict(fmt='xyxy'))])
def test_points_in_files_keep_all_arguments(kind, own):
    k = kind('p', col='where', weight=3, weight_col='w', hidden=32, features='face', uses=['b'], detach_uses=True, **own)
    back = Flow.from_json(Flow('f', k, BinaryBlock('b')).to_json()).tasks[0]
    assert vars(back) == vars(k) and back.cols == ['where'] and (back.weight_col, back.hidden, back.features, back.uses, back.detach_uses, back.weight) == ('w', 32, 'face', ('b',), True, 3.)
    with pytest.raises(FlowError, match='leave one out'): kind('p', ['a', 'b', 'c', 'd'], col='where')

def test_points_in_safe_files_keep_all_arguments():
    df = table(b=[0, 1], x=[1, 20], y=[2, 30], w=[1, 2])
    bound = Flow('f', BinaryBlock('b'), KeypointsBlock('p', ['x', 'y'], uses='b', hidden=4, weight_col='w')).bind(df)
    import fastai_condmtl.safe # noqa: F401  to_dict, from_dict
    back = type(bound).from_dict(bound.to_dict())
    assert back.plan.uses == bound.plan.uses == [(), (0,)] and back.plan.weight_cols == [None, 'w'] and back.tasks['p'].hidden == 4

def test_ties_rank_as_they_are_decided():
    "All equal: the first class is decided, the second is second, ..."
    k = Flow('f', SingleLabelBlock('k', vocab=range(10))).bind(table(k=[5])).find('k')
    true = torch.tensor([0., 1, 2, 3, 4, 9])
    for logits in (torch.zeros(6, 10), torch.full((6, 10), -700.)):
        s = k.summarise(k.activate(logits), true)
        assert s[:, 0].tolist() == [0]*6 and s[:, 1].tolist() == true.tolist()
    score = lambda m, p: k.score(m, k.summarise(p, t).numpy()[:, None], t.numpy()[:, None], np.ones((len(t), 1), dtype=bool))
    t = true
    assert [score(m, torch.full((6, 10), .1)) for m in ('accuracy', 'accuracy_3', 'accuracy_5')] == pytest.approx([1/6, 3/6, 5/6])
    t = torch.randint(0, 10, (200,)).float()
    p = torch.rand(200, 10)
    for m, n in (('accuracy_3', 3), ('accuracy_5', 5)): assert score(m, p) == pytest.approx(skm.top_k_accuracy_score(t.numpy(), p.numpy(), k=n, labels=range(10)))

@pytest.mark.parametrize('task', [BinaryBlock('k'), MultiLabelBlock('k', vocab=['a', 'b']), SingleLabelBlock('k', vocab=['a', 'b', 'c']), OrdinalBlock('k', vocab=['a', 'b', 'c']), BoundedRegressionBlock('k', y_range=(0, 1)), CountBlock('k')])
def test_predictions_that_are_no_numbers_score_nothing(task):
    "A NaN on a row that counts: no score. On a row that does not: no matter"
    cells = {'BinaryBlock': [1, 0, 1, 0], 'MultiLabelBlock': [['a'], [], ['a', 'b'], ['b']], 'BoundedRegressionBlock': [.2, .3, .4, 1], 'CountBlock': [0, 1, 2, 5]}.get(type(task).__name__, ['a', 'b', 'c', 'a'])
    bound = Flow('f', task).bind(table(k=cells))
    b, y = bound.find('k'), bound.encode(table(k=cells))
    z = torch.randn(4, bound.c)
    z[2] = torch.nan
    acc = Accumulator(bound)
    acc.parts.append(acc.pack(z, y))
    summary, true, mask, _ = acc.task('k')
    metrics = [m for m in b.metrics if m not in ('roc_auc', 'average_precision')]
    assert all(np.isnan(b.score(m, summary, true, mask)) for m in metrics)
    mask = mask.copy()
    mask[2] = False
    assert all(np.isfinite(b.score(m, summary, true, mask)) for m in metrics)
    assert not b.exact or np.isfinite(acc.packed()[1].numpy()).all() # decisions stay classes

@pytest.mark.parametrize('v', [.1, .2, .3, .7])
def test_bounds_of_single_precision_columns(v):
    "A column of float32 holds .2 as .20000000298: whatever is said of it, the table and packed labels say the same"
    for dtype in ('f4', 'f8'):
        age, df = BoundedRegressionBlock('age', y_range=(0, 1)), pd.DataFrame(dict(age=np.array([.05, v, .9], dtype=dtype), c=[1, 0, 1]))
        for block in (age, BoundedRegressionBlock('age'), UnboundedRegressionBlock('age')):
            for cond, above in ((block > v, [False, False, True]), (block <= v, [True, True, False]), (~(block >= v), [True, False, False]), (block.between(v, 1), [False, True, True])):
                bound = Flow('f', block, BinaryBlock('c') | cond).bind(df)
                y = bound.encode(df)
                got = y[:, 1, 1].tolist()
                assert bound.false_conditions(y)[:, 1].tolist() == [not a for a in got] and bound.reached(y)[:, 1].tolist() == got and got[::2] == above[::2]
                if dtype == 'f8' or block is age: assert got == above # on a scale that is that of the column, equal is equal

def test_bounds_beside_large_numbers():
    t, df = UnboundedRegressionBlock('t'), pd.DataFrame(dict(t=[0, 1.7e9 + 1, 1.7e9 + 6000, 1.7e9 - 6000], c=[1, 0, 1, 1]))
    bound = Flow('f', t, BinaryBlock('c') | (t > 1.7e9)).bind(df)
    y = bound.encode(df)
    assert y[:, 1, 1].tolist() == [0, 0, 1, 0] and bound.false_conditions(y)[:, 1].tolist() == [True, True, False, True] # a second is less than float32 tells apart there

@pytest.mark.parametrize('vocab, cells, wrong', [((-1, 1), [-1, 1], 0), ((1, 2), [1, 2], 0), ((1, 0), [1, 0], 2), ((0, 2), [0, 2], 1), ((2, 'x'), [2, 'x'], 1)])
def test_words_that_are_numbers_leave_no_bits(vocab, cells, wrong):
    bound = Flow('f', BinaryBlock('b', vocab=vocab)).bind(table(b=cells))
    assert bound.encode(table(b=cells))[:, 0, 0].tolist() == [0, 1]
    with pytest.raises(FlowError, match=rf"row 2, column 'b', value {wrong}: not a binary label: use a word of \(") as e: bound.encode(table(b=cells + [wrong]))
    assert 'True/False' not in str(e.value)

def test_words_beside_bits():
    bound = Flow('f', BinaryBlock('b', vocab=('no', 'yes'))).bind(table(b=['no']))
    assert bound.encode(table(b=['no', 'yes', 0, True]))[:, 0, 0].tolist() == [0, 1, 0, 1]
    with pytest.raises(FlowError, match=r"use True/False or 1/0, or a word of \('no', 'yes'\)"): bound.encode(table(b=['maybe']))

def test_two_codes_of_one_class():
    res = mask_facts(np.array([[1, 2, 0, 3]]), {0: None, 1: 'cat', 2: 'cat', 3: 'dog'})
    assert list(res) == [f'{n}{e}' for n in ('cat', 'dog') for e in ('', '_share', '_x', '_y', '_w', '_h')] and (res['cat_share'], res['cat_x'], res['cat_w'], res['dog_share'], res['dog_x']) == (.5, 0, 2, .25, 3)
    assert mask_facts(np.array([[True, False]]), ['bg', 'x'])['x_share'] == .5

def test_rows_of_weight_0_in_conditions_of_a_draw():
    "Known for the conditions of the flow, hence for a draw by a condition; of packed labels they are gone"
    a = BinaryBlock('a', weight_col='w')
    flow, df = Flow('f', a, BinaryBlock('c') | a), pd.DataFrame(dict(a=[0, 1, 0], c=[1, 1, 1], w=[0, 0, 1.]))
    groups = lambda by: {k: v.tolist() for k, v in group_rows(df, by, flow).items()}
    assert groups(a & a) == {'true': [1], 'false': [0, 2]} and groups(['a']) == {'a': [2]} and groups(~task('c')) == {'false': [1]}
    y = flow.bind(df).encode(df)
    assert y[:, 1].tolist() == [[0, 0], [0, 1], [1, 0]] and flow.bind(df).encode(df, weighted=False)[:, 1].tolist() == [[1, 0], [1, 1], [1, 0]]
    assert flow.bind(df).false_conditions(y)[:, 1].tolist() == [False, False, True]

def test_a_draw_by_a_condition_reads_inferred_labels():
    a = BinaryBlock('a')
    flow = Flow('f', a, BinaryBlock('c') | a, infer_labels=True)
    assert {k: v.tolist() for k, v in group_rows(table(a=[None, 0, None], c=[1, None, None]), a & a, flow).items()} == {'true': [0], 'false': [1]}

def test_classes_that_nobody_knows():
    for o in (OrdinalBlock('o'), SingleLabelBlock('o')): refused("compares task 'o', of which the table has no label: name its classes with vocab=", o, BinaryBlock('z') | (o > 3 if isinstance(o, OrdinalBlock) else o.eq(3)), o=[None, None], z=[1, 0])

@pytest.mark.parametrize('cond', [lambda o, n, r: o > 3, lambda o, n, r: o > 9, lambda o, n, r: o < 1, lambda o, n, r: o <= .5, lambda o, n, r: o.between(3, 1), lambda o, n, r: n < 0, lambda o, n, r: n.between(2.2, 2.8), lambda o, n, r: n <= -1, lambda o, n, r: n.between(-3, -1),
                                  lambda o, n, r: r > 5, lambda o, n, r: r >= 5.5, lambda o, n, r: r < 0, lambda o, n, r: r <= -.1, lambda o, n, r: r.between(6, 7), lambda o, n, r: r.between(-2, -1)])
def test_what_can_never_be_is_an_error(cond):
    o, n, r = OrdinalBlock('o', vocab=[1, 2, 3]), CountBlock('n'), BoundedRegressionBlock('r', y_range=(0, 5))
    refused("the condition `(.*)` of 'x': \\1 is never true: ", o, n, r, BinaryBlock('x') | cond(o, n, r), o=[1, 2, 3], n=[1, 2, 3], r=[1, 2, 3], x=[1, 0, 1])

def test_what_is_always_so_passes():
    o, n, r = OrdinalBlock('o', vocab=[1, 2, 3]), CountBlock('n'), BoundedRegressionBlock('r', y_range=(0, 5))
    free = BoundedRegressionBlock('s', col='r')
    df = table(o=[1, 2, 3], n=[1, 2, 3], r=[1, 2, 3], x=[1, 0, 1])
    for cond in (o >= 1, o < 7, o > 2, n >= 0, n > -1, n < 1, r <= 9, r >= 5, r.between(5, 9), free > 5): assert Flow('f', o, n, r, free, BinaryBlock('x') | cond).bind(df)

def test_large_whole_numbers_of_sources_stay_as_they_are():
    for a, b in (([2**63 + 5], [1]), ([1, 2], [1e20, 3.]), ([-2**70], [1., None])):
        df = concat_sources({'a': pd.DataFrame(dict(v=np.array(a, dtype='u8') if a[0] > 2**62 else a)), 'b': pd.DataFrame(dict(v=b))})
        assert [v for v in df.v if not pd.isna(v)] == [v for v in a + b if v is not None]
    assert Flow('f', UnboundedRegressionBlock('v')).bind(concat_sources({'a': pd.DataFrame(dict(v=[1, 2])), 'b': pd.DataFrame(dict(v=[1e20, 3.]))}))

@pytest.mark.parametrize('x', [[37., 12, 100], [1000., 37, 5, .5], [36.6, 41.25, 39.9, -.1], [0., 0, 0], [120000., 37000, 5000], [1e-3, 2e-3, 3.5e-3]])
@pytest.mark.parametrize('make', [lambda x: BoundedRegressionBlock('x'), lambda x: BoundedRegressionBlock('x', y_range=(-2*max(x) - 1, 2*max(x))), lambda x: UnboundedRegressionBlock('x')])
def test_numbers_read_back_as_they_stood(make, x):
    "Labels of few digits are told without the noise of single precision, and no more than that is lost of others"
    df = pd.DataFrame(dict(x=x))
    bound = Flow('f', make(x)).bind(df)
    y, b = bound.encode(df), bound.find('x')
    if max(x) > .01 or b.span < .01:
        assert [FlowPrediction(bound, r)['x'] for r in y] == x and bound.to_frame(y).x.tolist() == x
    odd = np.random.default_rng(0).uniform(min(x), max(x) + 1e-9, 500)
    assert np.abs(b.digits(odd) - odd).max() <= 5*b.span*2.**-23 and np.isnan(b.digits(np.array([np.nan]))).all()

def test_bad_tune_is_an_error_where_it_is_written():
    for make in (lambda: BinaryBlock('b', tune='acuracy'), lambda: MultiLabelBlock('b', tune='acuracy'), lambda: BinaryBlock('b', tune=dict(metric='acuracy'))):
        with pytest.raises(FlowError, match="task 'b': tune=.*did you mean 'accuracy'"): make()
    for ok in ('auto', None, 'f1', 'youden', 'mcc', max, ('fbeta', 2), [[0, 1], [5, 0]], dict(metric='f1'), dict(constraint=('precision', .9))): BinaryBlock('b', tune=ok)
    assert MultiLabelBlock('b', tune='f1_micro').tune == 'f1_micro'

def test_scalars_of_numpy_and_torch_are_numbers():
    f4, i8, t = np.float32(2), np.int64(3), torch.tensor(3.)
    b = BinaryBlock('b', weight=f4, pos_weight=t, hidden=i8, threshold=torch.tensor(.25), loss='focal', gamma=f4, alpha=np.float32(.5))
    assert (b.weight, b.pos_weight, b.hidden, b.gamma, b.alpha) == (2., 3., 3, 2., .5) and all(type(v) in (int, float) for v in (b.weight, b.pos_weight, b.hidden, b.gamma, b.alpha))
    assert SingleLabelBlock('s', label_smoothing=np.float32(.5)).label_smoothing == .5 and KeypointsBlock('p', n_points=i8).n_points == 3 and MultiLabelBlock('m', pos_weight=t).pos_weight == 3
    with pytest.raises(FlowError, match='weight='): BinaryBlock('b', weight=torch.tensor([1., 2.]))

@pytest.mark.parametrize('gap', [float('nan'), np.float32('nan'), pd.NaT, pd.NA])
def test_a_gap_is_no_class(gap):
    for ask in (lambda: task('k').eq(gap), lambda: SingleLabelBlock('k').ne(gap), lambda: task('k').isin(['a', gap]), lambda: MultiLabelBlock('k').has(gap)):
        with pytest.raises(FlowError, match='is a missing value, and no class can be that'): ask()

def test_conditions_print_as_they_are_written():
    for c in (task('a b').eq(1), ~task('class') & task('k').isin(['x', 'y']), any_of(task('f.x') > 3, ~(task('y') < 2)), ~(task('a') & task('b')), task('k').eq((1,)), task('n').between(1, 2), task('m').has_any(['p'])):
        assert repr(c) == write_condition(c) and read_condition(repr(c)) == c

def test_long_conditions_are_read_back_or_not_written():
    k = SingleLabelBlock('k')
    for values in ([f'a-b-i.{i}' for i in range(3000)], [-i - .5 for i in range(3000)], ['~&(['*50 for _ in range(30)]):
        flow = Flow('f', k, BinaryBlock('z') | k.isin(values))
        assert Flow.from_json(flow.to_json()).tasks[1].given == flow.tasks[1].given
    deep = task('a')
    for _ in range(600): deep = ~deep
    with pytest.raises(FlowError, match="of 'z'.*too long"): Flow('f', BinaryBlock('a'), BinaryBlock('z') | deep).to_json()

def test_columns_that_are_not_there_or_twice():
    df = pd.DataFrame([[1, 2, 3]], columns=['a', 'a', 'b'])
    for make, why in ((lambda: Flow('f', BinaryBlock('a')).bind(df), "task 'a' reads column 'a', which stands 2 times in the table: keep one"), (lambda: Flow('f', BinaryBlock('b', weight_col='a')).bind(df), "the weights of its rows from column 'a', which stands 2 times"),
                      (lambda: group_rows(df, 'a'), "column 'a', which stands 2 times"), (lambda: group_rows(df, 'bb'), "column 'bb', which the table does not have: did you mean 'b'"), (lambda: Flow('f', BinaryBlock('b', weight_col='c')).bind(df), "column 'c', which the table does not have.*weight_col=")):
        with pytest.raises(FlowError, match=why): make()

def test_a_constant_truth_has_no_r2():
    assert all(np.isnan(regression_score('r2', np.full(n, .2), np.full(n, .1))) for n in (1, 3, 6, 10, 100))
    a, b = np.random.default_rng(0).normal(size=(2, 50))
    assert regression_score('r2', a, b) == pytest.approx(skm.r2_score(b, a))

def test_an_outlier_that_hides_a_bound_is_an_error():
    "Standardised beside 2**64, -3.75 and 6.5 are one number in single precision: which side of a bound they are on must not be guessed."
    a = UnboundedRegressionBlock('a')
    flow = Flow('f', a, BinaryBlock('b') | (a < .5))
    df = pd.DataFrame(dict(a=[-3.75, 6.5, 2.**64], b=[0, 1, 0]))
    with pytest.raises(FlowError, match=r"task 'a': a condition compares it with 0.5, from which the label .* cannot be told in single precision.*outliers"): flow.bind(df).encode(df)
    df.loc[2, 'a'] = 100.
    assert flow.bind(df).encode(df)[:, 1, 1].tolist() == [1, 0, 0]
