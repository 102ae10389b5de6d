"""Train on one GPU or on many; nothing but the launcher differs.

python train_many_gpus.py                                                # one process, on a GPU if there is one
accelerate launch --multi_gpu --num_processes 4 train_many_gpus.py       # four GPUs
torchrun --nproc-per-node 2 train_many_gpus.py                           # two processes, on CPUs where there is no GPU
"""

from argparse import ArgumentParser
from pathlib import Path
import pandas as pd
from fastai.vision.all import *
from fastai_condmtl.vision.all import *
from fastai_condmtl.callback.distributed import *
from fastai_condmtl.datasets.synthetic import save_scenes, security_flow


def table(path, n=401, size=32):
    "Pictures of a security camera and their labels: drawn by the first process, read by the others"
    return pd.read_csv(path / 'labels.csv') if (path / 'labels.csv').exists() else save_scenes(path, n=n, size=size)


def learner(df, path, bs, arch=None):
    set_seed(42)
    dls = ConditionalDataLoaders.from_df(
        df,
        security_flow(32),
        path=path,
        fn_col='img',
        seed=42,
        bs=bs,
        num_workers=0,
        valid_pct=81 / 401,
        item_tfms=Resize(32, method='squish'),
        batch_tfms=Normalize.from_stats(*imagenet_stats),
    )
    if arch:
        return conditional_vision_learner(dls, globals()[arch], pretrained=False, normalize=False)
    conv = [
        ConvLayer(a, b, stride=2, norm_type=None) for a, b in ((3, 16), (16, 32), (32, 64))
    ]  # no batch norm: the CPU cannot share it
    return equip(Learner(dls, nn.Sequential(*conv, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, dls.c))))


if __name__ == '__main__':
    p = ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--path', type=Path, default=Path('scenes'), help='where the pictures are, or will be drawn')
    p.add_argument('--out', type=Path, default=Path('result'), help='folder for what comes out')
    p.add_argument('--bs', type=int, default=32, help='rows a step, of all processes together')
    p.add_argument('--epochs', type=int, default=3)
    p.add_argument('--arch', help="a torchvision network, such as resnet34; by default a small one without batch norm")
    a = p.parse_args()
    df = rank0_first(table, a.path)
    learn = learner(df, a.path, a.bs // max(1, num_distrib()), a.arch)
    with learn.no_bar():
        with learn.distrib_ctx():
            learn.fit_one_cycle(a.epochs, 3e-3)
            scores = learn.evaluate()  # each process predicts its part, all know the result
    if not rank_distrib():  # one process writes and prints
        a.out.mkdir(parents=True, exist_ok=True)
        scores.to_csv(a.out / 'scores.csv', index=False)
        learn.threshold_search.result.to_csv(a.out / 'thresholds.csv', index=False)
        learn.export((a.out / 'model.pkl').absolute())
        print(f'trained by {max(1, num_distrib())} process(es)')
        print(
            scores[scores.metric_name.isin(['accuracy', 'mae'])][
                ['task_path', 'metric_name', 'metric_res', 'num_samples']
            ].to_string(index=False)
        )
