"""Real faces (MTFL) as a flow with conditions, and a network small enough for a few hundred of them: what
tests/datasets/test_mtfl.py trains, and benchmarks/bench_ablation.py compares"""

from torch import nn
from fastai_condmtl.datasets.faces import POSES
from fastai_condmtl.datasets.readers import read_mtfl
from fastai_condmtl.vision.all import BinaryBlock, BoundedRegressionBlock, Flow, SingleLabelBlock

SIZE = 40  # pixels


def flow(weight=0.33):
    """Smile and landmarks of the mouth are asked of faces that look about ahead; the eyes' landmarks where no glasses
    hide them. `weight`: of each coordinate"""
    point = lambda p: [BoundedRegressionBlock(f'{p}_{a}', y_range=(0, SIZE), weight=weight) for a in 'xy']
    glasses = BinaryBlock('glasses')
    pose = SingleLabelBlock('pose', vocab=list(POSES))
    ahead = pose.isin(['left', 'frontal', 'right'])
    eyes = Flow('eyes', *point('left_eye'), *point('right_eye')) | ~glasses
    mouth = Flow('mouth', *point('left_mouth'), *point('right_mouth'), BinaryBlock('smile')) | ahead
    gender, nose = BinaryBlock('gender', vocab=('female', 'male')), Flow('nose', *point('nose'))
    return Flow('face', gender, glasses, pose, eyes, nose, mouth)


def table(folder):
    "400 rows of the training list, every third one of it"
    return read_mtfl(folder, 'train', SIZE).drop(columns='is_valid').iloc[::3].reset_index(drop=True)


def tiny(pretrained=False):
    "An architecture as `vision_learner` takes one: it is cut at its last pooling layer"
    return nn.Sequential(
        nn.InstanceNorm2d(3),
        nn.AvgPool2d(3, 2, 1),
        nn.Conv2d(3, 8, 3, padding=1),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 1),
    )


def head(n_out):
    "For the map of `tiny`; three hundred faces do not carry more"
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(8 * 10 * 10, n_out))
