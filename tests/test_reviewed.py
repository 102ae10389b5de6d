"Faults that a review found, each with the smallest table that showed it."
import numpy as np, pandas as pd, pytest, torch, warnings
from fastai.vision.all import ColReader, DataBlock, IndexSplitter, Learner, TransformBlock
from torch import nn
from fastai_condmtl.all import *
from fastai_condmtl.scores import binary_score

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
