"""UTKFace: age, gender and race of faces, told by their files' names, a small network from scratch

python benchmarks/real/utkface.py FOLDER     pictures named age_gender_race_date….jpg, in folders or not

Accuracy, and the mean absolute error of the age in years, on a fifth of the pictures that is drawn once. There is no
official split, so published figures differ in what they were measured on."""

import argparse, warnings
from pathlib import Path
import numpy as np
from fastai.vision.augment import Flip
from fastai_condmtl.datasets.readers import read_utkface, utkface_flow
from small_net import SmallNet, show_table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--epochs', type=int, default=7)
    parser.add_argument('--size', type=int, default=64, help='width and height that the pictures are squashed to')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--workers', type=int, help='that read pictures')
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    df = read_utkface(args.folder)
    df['is_valid'] = np.random.default_rng(0).permutation(len(df)) < 0.2 * len(df)
    arms = SmallNet(
        df,
        utkface_flow(),
        args.folder,
        size=args.size,
        epochs=args.epochs,
        lr=8e-3,
        batch_tfms=[Flip()],
        workers=args.workers,
    )
    show_table(arms, args.seeds, title=f'{(~df.is_valid).sum()} faces, {df.is_valid.sum()} to judge')


if __name__ == '__main__':
    main()
