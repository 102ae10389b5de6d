"""MTFL (Zhang et al., ECCV 2014): five landmarks, gender, smile, glasses and pose of faces, a small net from scratch

python benchmarks/real/mtfl.py FOLDER             training.txt, testing.txt and the pictures that they name
python benchmarks/real/mtfl.py FOLDER --weights   what landmarks should weigh beside one smile, on validation rows

Landmarks in % of the distance between the eyes, the others as accuracy. A fifth of the training list is held back for
choices; the rows of testing.txt are judged once, by networks that learn from the whole training list."""

import warnings
from pathlib import Path
import numpy as np
from fastai_condmtl.datasets.faces import POSES, XY
from fastai_condmtl.datasets.readers import read_mtfl, size_of
from fastai_condmtl.vision.all import (
    BinaryBlock,
    BoundedRegressionBlock,
    Flow,
    KeypointsBlock,
    SingleLabelBlock,
)
from pictures_common import ERROR, packed_labels, scores_of
from small_net import SmallNet, face_options, face_parser, row, show_columns, show_row, show_table

ATTRIBUTES = ('gender', 'smile', 'glasses', 'pose')
PAIRS = [('left_eye', 'right_eye'), ('left_mouth', 'right_mouth')]
POINTS = [name.removesuffix('_x') for name in XY[::2]]
LANDMARKS = 'landmarks %' + ERROR


def face_flow(weight=1.0, as_tasks=False):
    "All questions are asked of every face: MTFL has all labels"
    if as_tasks:
        points = [BoundedRegressionBlock(col, y_range=(0, 1), weight=weight) for col in XY]
    else:
        points = [KeypointsBlock('landmarks', XY, points=POINTS, flip_pairs=PAIRS, weight=weight)]
    turned = {'left profile': 'right profile', 'left': 'right'}
    return Flow(
        'mtfl',
        BinaryBlock('gender', vocab=('male', 'female')),
        BinaryBlock('smile'),
        BinaryBlock('glasses'),
        SingleLabelBlock('pose', vocab=list(POSES), mirror=turned),
        *points,
    )


class Faces(SmallNet):
    "Landmarks of all points and both coordinates are one task and one score"

    def __init__(self, df, path, weight=1.0, as_tasks=False, **kwargs):
        self.sizes = np.array([size_of(Path(path) / file) for file in df.img[df.is_valid]])
        self.xy = df.loc[df.is_valid, XY].to_numpy().reshape(-1, 5, 2)
        if as_tasks:  # shares of the picture
            sizes = np.array([size_of(Path(path) / file) for file in df.img])
            df = df.assign(**{col: df[col] / sizes[:, i % 2] for i, col in enumerate(XY)})
        super().__init__(df, face_flow(weight, as_tasks), path, **kwargs)

    def alone(self, paths):
        return [[name] for name in ATTRIBUTES] + [[path for path in paths if path not in ATTRIBUTES]]

    def scores(self, dls, decided):
        flow, y = dls.flow, packed_labels(dls.valid)
        scores = scores_of(flow, decided, y)
        own = slice(flow.n_targets - 10, flow.n_targets)  # the last tasks
        shares = decided[:, own].double().numpy().reshape(-1, 5, 2)
        if 'landmarks' in flow.tasks:
            shares = (shares + 1) / 2
        off = np.linalg.norm(shares * self.sizes[:, None] - self.xy, axis=2).mean(1)
        between = np.linalg.norm(self.xy[:, 0] - self.xy[:, 1], axis=1)
        return {name: scores[name] for name in ATTRIBUTES} | {LANDMARKS: float((100 * off / between).mean())}


def weights_table(make, seeds):
    "Print what each weight of the landmarks gives, all else at 1"
    shown, title = None, f'landmarks, {seeds} seeds'
    for as_tasks in (False, True):
        for weight in (0.33, 1.0, 3.3, 10.0):
            own = weight / 10 if as_tasks else weight
            arms = make(own, as_tasks)
            if shown is None:
                shown = arms.trivial()
                show_columns(title, [*shown, 'skill'])
            runs = [row(arms.ours(seed), shown, list(shown)) for seed in range(seeds)]
            show_row(f"{'ten tasks' if as_tasks else 'one block'}, weight {own:g}", runs)
    show_row('trivial', [row(shown, shown, list(shown))])


def main():
    parser = face_parser(__doc__)
    parser.add_argument('--weights', action='store_true', help='a row a weight of the landmarks instead')
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    df = read_mtfl(args.folder, size=None)
    options = face_options(args)
    if args.weights:
        train = df[~df.is_valid].reset_index(drop=True)
        train['is_valid'] = np.random.default_rng(0).random(len(train)) < 0.2
        weights_table(lambda *own: Faces(train, args.folder, *own, **options), args.seeds)
        return
    title = f'{(~df.is_valid).sum()} faces, {df.is_valid.sum()} to judge'
    show_table(Faces(df, args.folder, **options), args.seeds, title=title)
    print('published: landmarks 8.0 on the full download (Zhang et al. 2014, on crops by a face detector)')


if __name__ == '__main__':
    main()
