"""UTKFace: age, gender and race of faces, told by their files' names, a small network from scratch

python benchmarks/real/utkface.py FOLDER     pictures named age_gender_race_date….jpg, in folders or not

Accuracy, and the mean absolute error of the age in years, on a fifth of the pictures that is drawn once. There is no
official split, so published figures differ in what they were measured on."""

import warnings
import numpy as np
from fastai_condmtl.datasets.readers import read_utkface, utkface_flow
from small_net import SmallNet, face_options, face_parser, show_table


def main():
    args = face_parser(__doc__).parse_args()
    warnings.filterwarnings('ignore')
    df = read_utkface(args.folder)
    df['is_valid'] = np.random.default_rng(0).permutation(len(df)) < 0.2 * len(df)
    arms = SmallNet(df, utkface_flow(), args.folder, **face_options(args))
    show_table(arms, args.seeds, title=f'{(~df.is_valid).sum()} faces, {df.is_valid.sum()} to judge')


if __name__ == '__main__':
    main()
