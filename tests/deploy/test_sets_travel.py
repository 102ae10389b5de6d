"Prediction sets in a safe file, in the predictor that reads it, and in the metadata of a graph"

import json

import numpy as np
import pandas as pd
import pytest
from fastai.vision.all import ColSplitter, DataBlock, ImageBlock, PILImage, Resize, resnet18

from fastai_condmtl.all import *
from fastai_condmtl.deploy.onnx import meaning_of_columns
from fastai_condmtl.deploy.safe import set_decisions
from fastai_condmtl.loss.conditional import ConditionalLoss
from fastai_condmtl.vision.all import conditional_vision_learner

pytest.importorskip('mapie')
pytest.importorskip('safetensors')


@pytest.fixture(scope='module')
def learn():
    "An untrained network on noise: its sets are large, and that is what they should say"
    rng = np.random.default_rng(0)
    kind = SingleLabelBlock('kind')
    flow = Flow('f', kind, BinaryBlock('b') | kind.eq('x'), UnboundedRegressionBlock('z'), MultiLabelBlock('tags'))
    n = 36
    df = pd.DataFrame(dict(kind=rng.choice(list('xy'), n), b=rng.integers(0, 2, n), z=rng.normal(size=n)))
    df['tags'], df['valid'] = rng.choice(['p', 'q', 'p,q'], n), np.arange(n) >= 6
    df['img'] = [rng.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(n)]
    dls = DataBlock(
        (ImageBlock, flow), get_x=lambda r: PILImage.create(r.img), splitter=ColSplitter('valid'), item_tfms=Resize(32)
    ).dataloaders(df, bs=6, num_workers=0)
    learn = conditional_vision_learner(dls, resnet18, pretrained=False, start=None)
    with learn.no_bar(), learn.no_logging():
        learn.conformal(0.75)
    learn.df = df
    return learn


def alike(one, other):
    "True if two predictions are equal, numbers up to rounding"
    near = lambda a, b: a == pytest.approx(b, rel=1e-4) if isinstance(b, float) else a == b
    return list(one) == list(other) and all(near(one[path], other[path]) for path in one)


def test_a_safe_file_holds_the_sets_and_its_predictor_abstains(learn, tmp_path):
    predictor = load_safe(learn.save_safe(tmp_path / 'm.safetensors'))
    assert predictor.loss.decisions.limits == learn.loss_func.decisions.limits
    n_undecided = 0
    for _, row in learn.df.iloc[:6].iterrows():
        with learn.no_bar(), learn.no_logging():
            ours = learn.predict(row, abstain=True)
        theirs = predictor.predict(row.img, abstain=True)
        assert alike(theirs[0], ours[0]) and theirs[0].undecided == ours[0].undecided
        assert (theirs[1][1] == ours[1][1]).all()
        with learn.no_bar(), learn.no_logging():
            assert alike(predictor.predict(row.img)[0], learn.predict(row)[0])
        n_undecided += len(ours[0].undecided)
    assert n_undecided
    images = list(learn.df.img[:6])
    frame, ours = predictor.predict_df(images, abstain=True), learn.predict_df(learn.df.iloc[:6], abstain=True)
    pd.testing.assert_frame_equal(frame, ours, rtol=1e-4)
    for abstain in (True, False):
        told = predictor.predict_sets(images, abstain=abstain).to_dict('records')
        wanted = learn.predict_sets(learn.df.iloc[:6], abstain=abstain).to_dict('records')
        assert [row.pop('z') for row in told] == [pytest.approx(row.pop('z'), rel=1e-4) for row in wanted]
        assert told == wanted and list(told[0]) == ['kind', 'b', 'tags']
    assert list(predictor.predict_sets([])) == ['kind', 'b', 'z', 'tags']
    predictor.loss.decisions.limits = {}
    with pytest.raises(FlowError, match='no prediction sets: call learn.conformal.* before learn.save_safe'):
        predictor.predict_sets(images)


def test_a_cell_with_several_labels_is_blank_where_one_is_open(learn):
    with learn.no_bar(), learn.no_logging():
        frame, sets = learn.predict_df(learn.df, abstain=True), learn.predict_sets(learn.df).tags
    is_open = [any(len(answers) > 1 for answers in own.values()) for own in sets]
    assert any(is_open) and frame.tags.isna().tolist() == is_open


def test_metadata_of_graphs_tell_the_sets(learn):
    tasks = json.loads(json.dumps(meaning_of_columns(learn.loss_func)))['tasks']
    limits = learn.loss_func.decisions.limits
    for task in tasks:
        assert task['sets']['limits'] == [list(own) for own in limits[task['path']].limits]
        assert task['sets']['coverage'] == 0.75
    assert [task['sets']['kind'] for task in tasks] == ['answers', 'answers', 'interval', 'answers']


@pytest.mark.parametrize(
    'wrong',
    [
        None,
        {},
        dict(coverage=1, limits=[[0.5, 0.5]], rows=1),
        dict(coverage=True, limits=[[0.5, 0.5]], rows=1),
        dict(coverage=0.9, limits=[[0.5]], rows=1),
        dict(coverage=0.9, limits=[[0.5, float('nan')]], rows=1),
        dict(coverage=0.9, limits=[[0.5, -1]], rows=1),
        dict(coverage=0.9, limits=[[0.5, '1']], rows=1),
        dict(coverage=0.9, limits='ab', rows=1),
        dict(coverage=0.9, limits=[[0.5, 0.5]], rows=0.5),
    ],
)
def test_limits_of_a_stranger_are_checked(learn, wrong):
    loss = ConditionalLoss(learn.dls.flow)
    header = dict(thresholds={path: [0.5] for path in loss.thresholds}, temperatures={})
    with pytest.raises(FlowError, match="the sets of task 'kind'"):
        set_decisions(loss, header | dict(limits=dict(kind=wrong)))
    with pytest.raises(FlowError, match='does not have'):
        set_decisions(loss, header | dict(limits=dict(nobody=wrong)))
    set_decisions(loss, header)
    assert loss.decisions.limits == {}
