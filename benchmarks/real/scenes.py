"""The drawn security scenes at the demo's budget: 5000 scenes, ten epochs of its small network

python benchmarks/real/scenes.py              our flow by stock calls, by hand, a network a task, trivial
python benchmarks/real/scenes.py --weights    what each of the eight coordinates should weigh, and with which loss

Accuracy, macro-F1 of what a face wears, and the mean absolute error of coordinates as a share of their range."""

import argparse, tempfile, warnings
from itertools import product
from pathlib import Path
import numpy as np
from fastai_condmtl.datasets.synthetic import save_scenes, security_flow
from fastai_condmtl.vision.all import Flow
from pictures_common import ERROR
from small_net import SmallNet, row, show_columns, show_row, show_table

SIZE = 64


class Scenes(SmallNet):
    "The coordinates of a box have one network of their own, and one score: their mean"

    def alone(self, paths):
        boxes = [[path for path in paths if path.rpartition('.')[2].startswith(name)] for name in ('face_', 'body_')]
        return [[path] for path in paths if path not in sum(boxes, [])] + boxes

    def scores(self, dls, decided):
        scores = super().scores(dls, decided)
        shares = {name: score / SIZE for name, score in scores.items() if name.endswith(ERROR)}
        rest = {name: score for name, score in scores.items() if name not in shares}
        own = dict(coordinates=np.mean(list(shares.values())), worst=max(shares.values()))
        rest = {name.rpartition('.')[2]: score for name, score in rest.items()}
        return rest | {name + ERROR: float(score) for name, score in own.items()}


def flow_of_scenes(loss='mse', **kwargs):
    "`security_flow`, with another loss of its coordinates"
    kind = '"block": "BoundedRegressionBlock"'
    return Flow.from_json(security_flow(**kwargs).to_json().replace(kind, f'{kind}, "loss": "{loss}"'))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--n', type=int, default=5000, help='scenes')
    parser.add_argument('--epochs', type=int, default=10)
    parser.add_argument('--seeds', type=int, default=1)
    parser.add_argument('--workers', type=int, help='that read pictures')
    parser.add_argument('--weights', type=float, nargs='*', help='a row a weight of a coordinate instead')
    parser.add_argument('--losses', nargs='+', default=['mse', 'l1'], help='of the coordinates, for --weights')
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    with tempfile.TemporaryDirectory() as folder:
        df = save_scenes(folder, n=args.n)
        df['is_valid'] = np.random.default_rng(0).permutation(len(df)) < 0.2 * len(df)

        def arms(**kwargs):
            return Scenes(df, flow_of_scenes(**kwargs), Path(folder), SIZE, args.epochs, lr=8e-3, workers=args.workers)

        title = f'{args.n} scenes, {args.epochs} epochs'
        if args.weights is None:
            show_table(arms(), args.seeds, title=title)
            return
        trivial = arms().trivial()
        show_columns(title, [*trivial, 'skill'])
        for loss, weight in product(args.losses, args.weights or (0.1, 0.33, 1.0, 3.3)):
            own = arms(box_weight=weight, loss=loss)
            runs = [row(own.ours(seed), trivial, list(trivial)) for seed in range(args.seeds)]
            show_row(f'{loss}, each weighs {weight:g}', runs, digits=4)


if __name__ == '__main__':
    main()
