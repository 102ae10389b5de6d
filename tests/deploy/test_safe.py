"""A bound flow that is written as plain values and read again is the flow that was written: all that each kind
has learnt, by structure, and what it says"""

import datetime as dt, json, re, warnings
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import DataBlock, ImageBlock, Learner, PILImage, load_learner, nn, resnet18
from fastai_condmtl.all import *
import fastai_condmtl.deploy.safe  # noqa: F401  to_dict, from_dict
from fastai_condmtl.core.conditions import Condition
from fastai_condmtl.core.bound import BoundFlow
from fastai_condmtl.text.masks import MASK, MaskedLMBlock
from fastai_condmtl.vision.all import conditional_vision_learner
from kinds_of_task import KINDS, bound_with_labels, logits, table

FAKE = ['xxunk', 'xxpad', MASK, *'abcdefg', 'xxfake', 'xxfake', 'xxfake']  # as fastai fills a vocabulary up
MORE = dict(
    spoken=lambda n, **k: BinaryBlock(n, 'word', vocab=('no', 'yes'), pos_weight='balanced', **k),
    tagged=lambda n, **k: MultiLabelBlock(n, 'tags', pos_weight='balanced', threshold=[0.2, 0.5, 0.7], **k),
    named=lambda n, **k: MultiLabelBlock(n, cols=['b0', 'b1'], vocab=['p', 'q'], loss='focal', **k),
    listed=lambda n, **k: MultiLabelBlock(n, 'lists', **k),
    days=lambda n, **k: SingleLabelBlock(n, 'day', class_weights='balanced', **k),
    graded=lambda n, **k: OrdinalBlock(n, 'grade', vocab=['low', 'mid', 'high'], **k),
    spans=lambda n, **k: BoundedRegressionBlock(n, 'x', y_range=(-1, 64), loss='huber', **k),
    spots=lambda n, **k: KeypointsBlock(n, 'spots', flip_pairs=[('1', '2')], outside='clamp', **k),
    edges=lambda n, **k: BoxBlock(n, 'box', fmt='xyxy', **k),
    filled=lambda n, **k: MaskedLMBlock(n, 'text', vocab=FAKE, n_masks=2, mask_prob=0.3, seed=5, **k),
)


def labels(n=40, seed=0):
    "The table of `kinds_of_task`, with cells for the kinds above"
    rng = np.random.default_rng(seed + 1)
    days = [dt.date(2024, 2, 28 + i) for i in (0, 1)]
    more = pd.DataFrame(
        dict(
            word=rng.choice(['no', 'yes'], n),
            day=[days[i] for i in rng.integers(0, 2, n)],
            grade=rng.choice(['low', 'mid', 'high'], n),
        ),
        dtype=object,
    )
    more['lists'] = [[('a', 1)] if b else [('a', 1), ('b', 2)] for b in rng.integers(0, 2, n)]
    more['spots'] = [rng.uniform(0, 60, (2, 2)).tolist() for _ in range(n)]
    more['box'] = [[1.0, 2.0, 30.0, 40 + x] for x in rng.random(n)]
    return table(n, seed=seed).join(more)


def kept(o):
    "All that an object holds, by structure: types, shapes and values, attributes of whatever class"
    if isinstance(o, BoundFlow):
        return {
            k: kept(v) for k, v in vars(o).items() if k != 'constants' and 'loss' not in k
        }  # these belong to the learner
    if isinstance(o, (np.ndarray, torch.Tensor)):
        return type(o).__name__, str(o.dtype), tuple(o.shape), kept(o.tolist())
    if isinstance(o, dict):
        return [(kept(k), kept(v)) for k, v in o.items()]
    if isinstance(o, (list, tuple)):
        return type(o).__name__, [kept(v) for v in o]
    if isinstance(o, np.generic):
        return kept(o.item())
    if isinstance(o, Condition):
        return str(o)  # in a file it names the task it asks, and not the columns that this one reads
    if hasattr(o, '__dict__') and not isinstance(o, type):
        return type(o).__qualname__, {k: kept(v) for k, v in vars(o).items()}
    return type(o).__name__, repr(o)


def written(bound):
    return json.loads(json.dumps(bound.to_dict()))


@pytest.mark.parametrize('kinds', [*KINDS, *MORE, 'all at once'])
def test_every_kind_is_read_as_it_was_written(kinds):
    makers, df = {**KINDS, **MORE}, labels()
    some = makers if kinds == 'all at once' else {kinds: makers[kinds]}
    some = {k: v for k, v in some.items() if k != 'words' or len(some) == 1}  # one task of masked words a flow
    gate, g2 = BinaryBlock('gate'), SingleLabelBlock('g2')
    flow = Flow('f', gate, g2, Flow('all', *[make(name) | (gate & g2.isin(['u', 'v'])) for name, make in some.items()]))
    bound = flow.bind(df)
    again = BoundFlow.from_dict(written(bound))
    assert kept(again) == kept(bound)
    assert written(again) == written(bound)
    assert repr(again) == repr(bound)
    assert torch.equal(again.encode(df), bound.encode(df))
    raw = logits(bound)
    for ours, theirs in zip(says(bound, raw), says(again, raw)):
        pd.testing.assert_frame_equal(ours, theirs)


def says(bound, raw):
    "Decisions and probabilities of raw logits, as tables"
    from fastai_condmtl.loss.conditional import ConditionalLoss

    loss = ConditionalLoss(bound)
    acts = loss.activation(raw)
    dec = loss.decodes(acts)
    yield bound.to_frame(dec)
    yield pd.DataFrame([[repr(FlowPrediction(bound, d, a).probabilities)] for d, a in zip(dec, acts)])


def test_the_comparison_sees_what_is_lost():
    "A round trip that forgets one learnt thing of one block is told from one that does not"
    bound = Flow('f', SingleLabelBlock('k'), UnboundedRegressionBlock('z')).bind(labels())
    d = written(bound)
    for path, state in d['learnt'].items():
        for name in state:
            less = {**d, 'learnt': {**d['learnt'], path: {k: v for k, v in state.items() if k != name}}}
            try:
                again = BoundFlow.from_dict(less)
            except FlowError:
                continue
            assert kept(again) != kept(bound), (path, name)


@pytest.mark.parametrize('parents', [[0, 2], [0, -1], [0]])
def test_sub_classes_of_a_file_that_stand_in_no_class(parents):
    animal = SingleLabelBlock('animal')
    flow = Flow('zoo', animal, SingleLabelBlock('species', within=animal))
    bound = flow.bind(pd.DataFrame(dict(animal=['bird', 'fish'], species=['duck', 'eel'])))
    d = bound.to_dict()
    assert d['learnt']['species']['parents'] == {'list': [0, 1]}
    d['learnt']['species']['parents'] = {'list': parents}
    with pytest.raises(FlowError) as e:
        BoundFlow.from_dict(d)
    assert "task 'species': its sub-classes do not fit the classes of 'animal': write the file" in str(e.value)


def test_conditions_are_no_part_of_what_masked_words_know():
    "`asked` are the words that may be masked; what conditions ask of a task are its `questions`"
    bound, _ = bound_with_labels(['words', 'binary'])
    words, gate = bound.tasks['all.words'], bound.tasks['gate']
    assert words.asked.tolist() == [False] * 3 + [True] * 7 and words.questions == ()
    assert [op for op, _ in gate.questions] == ['true'] and not hasattr(gate, 'asked')


def test_fillers_may_stand_in_a_vocabulary_several_times_and_words_may_not():
    flow = Flow('f', MaskedLMBlock('text', vocab=FAKE))
    assert Flow.from_json(flow.to_json()).tasks[0].vocab == FAKE
    with pytest.raises(FlowError, match="'a' stands twice in vocab"):
        MaskedLMBlock('text', vocab=[*FAKE, 'a'])
    with pytest.raises(FlowError, match="'xxfake' stands twice in vocab"):
        SingleLabelBlock('k', vocab=FAKE)


def test_masked_words_go_through_a_safe_file(tmp_path):
    """`save_safe`, `load_safe`: a learner's own vocabulary, which fastai has filled up, and what is told of it in
    a graph's metadata"""
    from copy import deepcopy
    from fastai_condmtl.deploy.onnx import meaning_of_columns
    from fastai_condmtl.text.all import ConditionalTextDataLoaders, conditional_lm_learner

    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(text=[' '.join(rng.choice(['good', 'bad', 'food', 'slow'], 6)) for _ in range(40)]))
    flow = Flow('reviews', MaskedLMBlock('words', n_masks=3), BinaryBlock('good'))
    dls = ConditionalTextDataLoaders.from_df(
        df.assign(good=df.text.str.contains('good')), flow, bs=8, seq_len=16, seed=0, min_freq=1
    )
    assert list(dls.vocab).count('xxfake') > 1
    learn = conditional_lm_learner(dls, d_model=16, n_layers=1, n_heads=2)
    with pytest.warns(UserWarning, match='cannot be made by a name'):
        f = learn.save_safe(tmp_path / 'a.safetensors')
    read = load_safe(f, deepcopy(learn.model))
    assert kept(read.flow) == kept(dls.flow)
    y = dls.valid.one_batch()[1].cpu()
    pd.testing.assert_frame_equal(read.flow.to_frame(y), dls.flow.to_frame(y))
    assert meaning_of_columns(read.loss) == meaning_of_columns(dls.flow.loss_func)


def warned(learn, file):
    "What `save_safe` says is missing"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        learn.save_safe(file)
    (said,) = [str(one.message) for one in told if issubclass(one.category, FlowWarning)]
    return said


def test_who_saves_rows_learns_what_is_missing_and_what_to_call(tmp_path):
    "Rows are prepared by what `learn.export` alone keeps; a picture is prepared by what the file tells"
    from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders, conditional_tabular_learner

    df = pd.DataFrame(dict(x=np.linspace(-1, 1, 16), a=[0, 1] * 8))
    dls = ConditionalTabularDataLoaders.from_df(
        df, Flow('f', BinaryBlock('a')), cont_names=['x'], valid_idx=range(4), bs=4
    )
    of_rows = conditional_tabular_learner(dls, [4], tune=None)
    said = warned(of_rows, tmp_path / 'rows.safetensors')
    assert 'load_safe(file, model=network)' in said and 'scales of a row' in said
    assert re.search(r"learn\.export\('model\.pkl'\).*load_learner", said)
    of_rows.path = tmp_path
    of_rows.export('model.pkl')  # what it says to call predicts rows
    assert len(load_learner(tmp_path / 'model.pkl').predict_df(df[['x']])) == 16
    black = PILImage.create(np.zeros((8, 8, 3), dtype=np.uint8))
    dls = DataBlock((ImageBlock, Flow('f', BinaryBlock('a'))), get_x=lambda row: black).dataloaders(df, bs=4)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, dls.c))
    said = warned(Learner(dls, network), tmp_path / 'pictures.safetensors')
    assert 'load_safe(file, model=network)' in said and 'row' not in said and 'learn.export' not in said
    item = load_safe(tmp_path / 'pictures.safetensors', network).predict(black)
    assert set(item[0]) == {'a'}


# ---- a second review: conditions, kinds, scores
# ---------------------------------------------------------------------------
def table_reviewed(**cols):
    return pd.DataFrame({c: pd.Series(v, dtype=object) for c, v in cols.items()})


def test_points_in_safe_files_keep_all_arguments():
    df = table_reviewed(b=[0, 1], x=[1, 20], y=[2, 30], w=[1, 2])
    bound = Flow('f', BinaryBlock('b'), KeypointsBlock('p', ['x', 'y'], uses='b', hidden=4, weight_col='w')).bind(df)
    import fastai_condmtl.deploy.safe  # noqa: F401  to_dict, from_dict

    back = type(bound).from_dict(bound.to_dict())
    assert (
        back.plan.uses == bound.plan.uses == [(), (0,)]
        and back.plan.weight_cols == [None, 'w']
        and back.tasks['p'].hidden == 4
    )


def test_a_flow_that_is_the_name_of_a_file_is_not_read(tmp_path):
    bound, _ = bound_with_labels(['binary'])
    whole = written(bound)
    for text in (str(bound.flow.to_json(tmp_path / 'flow.json')), bound.flow.to_json(), None):
        with pytest.raises(FlowError, match='does not hold its flow'):
            BoundFlow.from_dict(whole | dict(flow=text))


@pytest.mark.parametrize('label', [{'date': 'never'}, {'pairs': 1}, {'tuple': 1}, {'list': 1}])
def test_labels_that_no_row_told_and_that_are_none(label):
    bound = Flow('f', SingleLabelBlock('k')).bind(labels())
    with pytest.raises(FlowError, match="flow 'f'"):
        BoundFlow.from_dict(written(bound) | dict(untold=dict(k=[label])))


def test_more_labels_than_memory_holds():
    whole = written(Flow('f', KeypointsBlock('spots')).bind(labels()))
    whole['learnt']['spots']['n_points'] = 4 * 10**6
    with pytest.raises(FlowError, match='8,000,000 labels'):
        BoundFlow.from_dict(whole)


@pytest.mark.parametrize('branches', [None, dict(own=8)])
def test_the_bias_of_a_started_network_is_in_the_file(branches, tmp_path):
    "fastai's head has none, and one that starts at the trivial predictor does"
    features = None if branches is None else 'own'
    flow = Flow('f', BinaryBlock('a'), SingleLabelBlock('b', vocab=['x', 'y', 'z'], features=features))
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(a=rng.random(12) < 0.3, b=rng.choice(list('xyz'), 12), picture=range(12)))
    picture = lambda row: PILImage.create(np.full((64, 64, 3), int(row['picture']), dtype=np.uint8))
    dls = DataBlock(blocks=(ImageBlock, flow), get_x=picture).dataloaders(df, bs=4, num_workers=0)
    learn = conditional_vision_learner(dls, resnet18, pretrained=False, branches=branches)
    with warnings.catch_warnings():
        warnings.simplefilter('error', FlowWarning)  # the network has a name
        file = learn.save_safe(tmp_path / 'a.safetensors')
    model = load_safe(file).model
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(model.eval()(x), learn.model.eval()(x), atol=1e-6)
    assert any(name.endswith('bias') and p.shape[0] in (1, dls.c) for name, p in model.state_dict().items())
