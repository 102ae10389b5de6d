"""What the mean of five folds reaches on rows that none of them has seen, beside one learner

python benchmarks/real/mean_of_folds.py                                       digits of scikit-learn
python benchmarks/real/mean_of_folds.py FOLDER --size 256 128 --cache FILE    BRACOL, frozen features

One learner is trained on nine tenths of the rows that are left (the others choose its thresholds), each fold on four
fifths. A fifth of the table are the test rows, others for each seed. Accuracy and loss (cross entropy) of each task, on
the rows where it has meaning."""

import argparse, warnings
from pathlib import Path
import numpy as np
from fastai.vision.all import set_seed
from torch import nn
from fastai_condmtl.all import Folds, StratifiedSplitter, average_folds, stratified_folds
from cleaning import FOLDS, bracol, digits


def scores(learn, rows):
    "(Path, name) → accuracy and loss"
    with learn.no_bar(), learn.no_logging():
        told = learn.evaluate(rows, metrics='accuracy').set_index('task_path').metric_res
        logits = learn.get_preds(dl=learn.dls.test_dl(rows, with_labels=True), act=nn.Identity())
    losses = np.nanmean(learn.loss_func.per_sample(*logits).numpy(), 0)
    of_task = {(path, 'accuracy'): told[path] for path in learn.dls.flow.paths}
    return of_task | {(path, 'loss'): loss for path, loss in zip(learn.dls.flow.paths, losses)}


def one_seed(data, seed):
    "Arm → scores on the test rows"
    set_seed(seed)
    rest, test = (np.array(part) for part in StratifiedSplitter(data.flow, 0.2, seed)(data.df))
    df, rows = data.df.iloc[rest], data.df.iloc[test]
    valid = StratifiedSplitter(data.flow, 0.1, seed)(df)[1]
    one = data.learner(data.df, rest[list(valid)], leave_out=test)
    parts = stratified_folds(data.flow, df, FOLDS, seed)
    learners = [data.learner(data.df, rest[list(part)], leave_out=test) for _, part in parts]
    folds = Folds(learners, df, parts)
    singles = [scores(learn, rows) for learn in learners]
    mean_of_singles = {key: np.mean([single[key] for single in singles]) for key in singles[0]}
    return {'one learner': scores(one, rows), 'a fold': mean_of_singles, 'mean': scores(average_folds(folds), rows)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path, nargs='?', help='of BRACOL; by default digits')
    parser.add_argument('--size', type=int, nargs=2, default=(256, 128), help='width and height of the pictures')
    parser.add_argument('--cache', type=Path, help='file for the frozen features, .npy')
    parser.add_argument('--seeds', type=int, default=3)
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    data = digits() if args.folder is None else bracol(args.folder, args.size, args.cache)
    runs = [one_seed(data, seed) for seed in range(args.seeds)]
    print(f'{len(data.df)} rows, {data.epochs} epochs, {args.seeds} seeds, test rows: mean ± standard error')
    print(f'{"task":<14}{"":<10}' + ''.join(f'{arm:<18}' for arm in runs[0]) + 'mean - one learner')
    for key in runs[0]['mean']:
        each = np.array([[run[arm][key] for arm in run] for run in runs])
        error = each.std(0, ddof=1) / len(runs) ** 0.5 if len(runs) > 1 else 0 * each[0]
        gain = each[:, 2] - each[:, 0]
        cells = ''.join(f'{m:.3f} ± {e:.3f}'.ljust(18) for m, e in zip(each.mean(0), error))
        print(f'{key[0]:<14}{key[1]:<10}{cells}{gain.mean():+.3f}')


if __name__ == '__main__':
    main()
