"Segmentation masks handed over as if they were labels: each way in says what to do instead."

import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import ColReader, DataBlock, ImageBlock, MaskBlock, PILMask, Resize, TensorMask, noop, resnet18
from PIL import Image
from fastai_condmtl.vision.all import *
from fastai_condmtl.data.mask_facts import SegmentationBlock, mask_facts

INSTEAD = r'Segmentation masks are no tasks of a flow.*unet_learner.*mask_facts.*BoundedRegressionBlock'


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    root, rng, rows = tmp_path_factory.mktemp('masks'), np.random.default_rng(0), []
    for i in range(8):
        mask = np.zeros((20, 30), dtype=np.uint8)
        if i % 2:
            mask[3 : 3 + i, 5:15] = 1
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(root / f'{i}.jpg')
        Image.fromarray(mask).save(root / f'{i}_mask.png')
        rows.append(dict(img=str(root / f'{i}.jpg'), mask=str(root / f'{i}_mask.png'), a=i % 2))
    return pd.DataFrame(rows)


def test_by_name():
    with pytest.raises(FlowError, match=INSTEAD):
        SegmentationBlock('mask', codes=['road'])
    for o in (MaskBlock, MaskBlock(codes=['road'])):
        with pytest.raises(FlowError, match=INSTEAD):
            Flow('f', BinaryBlock('a'), o)
        with pytest.raises(FlowError, match=INSTEAD):
            ConditionalDataLoaders.from_df(pd.DataFrame(dict(f=['x'])), o, fn_col='f')


CELLS = dict(
    array=lambda f: np.array(Image.open(f)),
    mask=PILMask.create,
    tensor=lambda f: TensorMask(np.array(Image.open(f))),
    image=lambda f: Image.open(f).convert('L'),
    file=str,
)


@pytest.mark.parametrize(
    'block', [BinaryBlock, SingleLabelBlock, MultiLabelBlock, BoundedRegressionBlock, UnboundedRegressionBlock]
)
@pytest.mark.parametrize('cell', CELLS)
def test_in_a_cell(table, block, cell):
    df = pd.DataFrame(dict(m=pd.Series([None, *map(CELLS[cell], table['mask'])], dtype=object)))
    with pytest.raises(FlowError, match="task 'm', row 1.*column 'm', value .*" + INSTEAD) as e:
        Flow('f', block('m')).bind(df).encode(df)
    assert len(str(e.value)) < 900  # no dump of pixels
    if cell in ('array', 'tensor'):
        assert '20x30' in str(e.value)


def test_what_is_no_mask_stays_a_label(table):
    assert (
        Flow('f', SingleLabelBlock('k', vocab=['a.png', 'b.png'])).bind(pd.DataFrame(dict(k=['a.png', 'b.png']))).c == 2
    )
    assert Flow('f', SingleLabelBlock('k')).bind(pd.DataFrame(dict(k=['a.png', 'other']))).c == 2
    assert Flow('f', SingleLabelBlock('k')).bind(pd.DataFrame(dict(k=['a.png', 'a.png']))).c == 1
    with pytest.raises(FlowError, match='for several labels a row use MultiLabelBlock$'):
        Flow('f', SingleLabelBlock('k')).bind(pd.DataFrame(dict(k=[np.array([1, 2]), np.array([1])])))
    maybe = pd.DataFrame(dict(k=['maybe']))
    with pytest.raises(FlowError, match='not a binary label') as e:
        Flow('f', BinaryBlock('k')).bind(maybe).encode(maybe)
    assert 'mask' not in str(e.value)


def test_as_a_block_of_its_own(table):
    def data(n_inp, **kw):
        return DataBlock(
            blocks=(ImageBlock, MaskBlock, BinaryBlock('a')),
            getters=[ColReader('img'), ColReader('mask'), noop],
            n_inp=n_inp,
            item_tfms=Resize(16),
        ).dataloaders(table, bs=2, num_workers=0, **kw)

    with pytest.raises(FlowError, match='the data has 2 targets.*' + INSTEAD):
        conditional_vision_learner(data(1), resnet18, pretrained=False)
    with pytest.raises(FlowError, match='a mask is an input.*all but the last.*' + INSTEAD):
        conditional_vision_learner(data(None), resnet18, pretrained=False)
    with pytest.raises(FlowError, match='the data has 2 targets.*' + INSTEAD):
        data(1)  # whatever learner it is meant for

    def two():
        return DataBlock(
            blocks=(ImageBlock, BinaryBlock('a'), BinaryBlock('b', col='a')),
            n_inp=1,
            get_x=ColReader('img'),
            get_y=[noop, noop],
            item_tfms=Resize(16),
        ).dataloaders(table, bs=2, num_workers=0)

    with pytest.raises(FlowError, match='the data has 2 targets.*one flow') as e:
        two()
    assert 'Segmentation' not in str(e.value)


def test_what_a_mask_says_makes_tasks(table):
    "The way out, walked to its end"
    facts = pd.DataFrame([mask_facts(Image.open(f), {0: None, 1: 'car'}) for f in table['mask']], index=table.index)
    assert facts.car.tolist() == [False, True] * 4 and facts.car_share[3] == 3 * 10 / 600 and pd.isna(facts.car_x[0])
    assert facts.loc[5, ['car_x', 'car_y', 'car_w', 'car_h']].tolist() == [5, 3, 10, 5]
    car = BinaryBlock('car')
    flow = Flow(
        'f',
        car,
        BoundedRegressionBlock('share', 'car_share', y_range=(0, 1)) | car,
        *[BoundedRegressionBlock(f'car_{c}', y_range=(0, 30), draws=c) | car for c in 'xywh'],
    )
    dls = ConditionalDataLoaders.from_df(
        table.join(facts),
        flow,
        fn_col='img',
        item_tfms=Resize(16),
        bs=2,
        num_workers=0,
        splitter=lambda d: (list(range(6)), [6, 7]),
    )
    y = torch.cat([b[1] for b in dls.valid])
    assert y[:, 1].tolist() == [[1, 0, 0, 0, 0, 0], [1] * 6]


def test_masks_that_are_none():
    with pytest.raises(FlowError, match=r'not one of shape \(4, 4, 3\)'):
        mask_facts(np.zeros((4, 4, 3)), ['a'])
    with pytest.raises(FlowError, match='the mask has code 7'):
        mask_facts(np.full((4, 4), 7), ['a'])
