"""BRACOL (Esgario, Krohling, Ventura 2020): stress and severity of coffee leaves, with EfficientNet-Lite0

python benchmarks/real/bracol.py FOLDER                   FOLDER/dataset.csv, FOLDER/leaf/*.jpg: on frozen features
python benchmarks/real/bracol.py FOLDER --finetune 3      one long fine-tuning, three minutes for each arm
python benchmarks/real/bracol.py FOLDER --epochs 20       one long fine-tuning of so many epochs for each arm

Both questions have meaning given that the leaf is not healthy. As published they are scored as decisions over five
classes: healthy, or one of four. The split is the published one (fold 1). Choices are made on the validation rows; the
test rows are read once, at the end.

Two cores train an epoch of the whole network in some 65 s at 256×128 (--size 256 128), 85 s at 320×160 and 270 s at
512×256, the size of the pictures; the frozen features at these sizes take 80, 130 and 340 s."""

import argparse, math, time, warnings
from pathlib import Path
import numpy as np, pandas as pd, torch
from fastai.callback.all import ChannelsLast
from fastai.vision.all import (
    DataBlock,
    Learner,
    Normalize,
    Resize,
    ResizeMethod,
    TransformBlock,
    apply_init,
    aug_transforms,
    create_body,
    create_head,
    defaults,
    set_seed,
)
from torch import nn
from fastai_condmtl.evaluate.skill import skill
from fastai_condmtl.learn.start import start_learner
from fastai_condmtl.vision.all import (
    BinaryBlock,
    ConditionalDataLoaders,
    Flow,
    SingleLabelBlock,
    conditional_vision_learner,
    equip,
)
from pictures_common import (
    LITE0_STATS,
    ByHand,
    cached_features,
    decided_by,
    decided_by_hand,
    lite0,
    show_columns,
    show_row,
    train_by_hand,
)

TASKS = dict(stress=('miner', 'rust', 'phoma', 'cercospora'), severity=('very low', 'low', 'high', 'very high'))
PUBLISHED = dict(stress=0.9524, severity=0.8651)  # ResNet50, ImageNet weights, multi-task, on a GPU
LR = 4e-3
SIZE = (512, 256)  # of the pictures as they are published: width, height
EPOCHS, SEEDS = (10, 30, 90), 3


def read(folder):
    "Leaves with blanks where a question does not apply; `part` is train, valid or test"
    df = pd.read_csv(Path(folder) / 'dataset.csv')
    df = pd.DataFrame(
        dict(
            img='leaf/' + df.id.astype(str) + '.jpg',
            sick=(df.predominant_stress > 0).astype(int),
            stress=df.predominant_stress.map(dict(enumerate(TASKS['stress'], 1))),
            severity=df.severity.map(dict(enumerate(TASKS['severity'], 1))),
        )
    )
    order = np.arange(len(df))
    np.random.RandomState(150).shuffle(order)
    df['part'] = 'test'
    df.loc[order[: math.ceil(0.85 * len(df))], 'part'] = 'valid'
    df.loc[order[: math.ceil(0.7 * len(df))], 'part'] = 'train'
    df['is_valid'] = df.part == 'valid'
    return df


def bracol_flow():
    sick = BinaryBlock('sick')
    return Flow('bracol', sick, *[SingleLabelBlock(task, vocab=list(names)) | sick for task, names in TASKS.items()])


def classes(flow, decided):
    "Task → 0 where a leaf is decided healthy, else 1 to 4, of decided values `(N, D)` that may lack tasks"
    column = lambda path: decided[:, flow.slices[path].targets.start]
    return {
        task: torch.where(column('sick') > 0, column(task) + 1, 0.0).numpy()
        for task in TASKS
        if not column(task).isnan().all()
    }


def labelled_classes(df):
    "Task → 0 for a healthy leaf, else 1 to 4"
    numbers = {task: {name: i for i, name in enumerate(names, 1)} for task, names in TASKS.items()}
    return {task: df[task].map(numbers[task]).fillna(0).to_numpy() for task in TASKS}


def accuracies(df, guessed):
    "Over five classes, of each task that was guessed"
    truth = labelled_classes(df)
    return {task: float((truth[task] == guess).mean()) for task, guess in guessed.items()}


class Frozen:
    """The arms on frozen features: a head a training. What is random is the start of the head, the order of the rows,
    dropout, and which of four mirrored views of a leaf is drawn"""

    def __init__(self, df, features):
        self.df, self.features = df, features
        self.parts = {part: np.flatnonzero(df.part == part) for part in ('train', 'valid', 'test')}

    def loaders(self):
        place, train = pd.Series(np.arange(len(self.df)), index=self.df.index), set(self.parts['train'])

        def view(row):
            i = place[row.name]
            return self.features[i, np.random.randint(self.features.shape[1]) if i in train else 0]

        dblock = DataBlock(
            blocks=(TransformBlock, bracol_flow()),
            get_x=view,
            splitter=lambda _: (self.parts['train'], self.parts['valid']),
        )
        return dblock.dataloaders(self.df, bs=64, num_workers=0, device='cpu')

    def head(self, n_out):
        return create_head(1280 * 2, n_out, pool=False)  # fastai's, without its pooling

    def ours(self, epochs, seed):
        "By stock calls, every weight 1"
        set_seed(seed)
        dls = self.loaders()
        head = self.head(dls.c)
        apply_init(head, nn.init.kaiming_normal_)  # as `vision_learner` has it
        learn = equip(start_learner(Learner(dls, head), 'trivial'))
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(epochs, LR)
        test = {part: dls.test_dl(self.df[self.df.part == part]) for part in ('valid', 'test')}
        return {part: self.score(part, dls.flow, decided_by(learn, dl)) for part, dl in test.items()}

    def by_hand(self, epochs, seed, paths=('sick', *TASKS)):
        "The same network in plain PyTorch; or one of some tasks"
        set_seed(seed)
        dls = self.loaders()
        hand = ByHand(dls.flow, list(paths))
        model = train_by_hand(hand, self.head(hand.n_out), dls.train, epochs, LR)
        test = {part: dls.test_dl(self.df[self.df.part == part]) for part in ('valid', 'test')}
        return {part: self.score(part, dls.flow, decided_by_hand(hand, model, dl)) for part, dl in test.items()}

    def single(self, epochs, seed):
        "A network a task, half of the epochs each"
        runs = [self.by_hand(max(1, epochs // 2), seed, ('sick', task)) for task in TASKS]
        return {part: runs[0][part] | runs[1][part] for part in ('valid', 'test')}

    def score(self, part, flow, decided):
        return accuracies(self.df[self.df.part == part], classes(flow, decided))


def frozen_table(df, path, size, cache):
    "Print all arms on frozen features; each arm's epochs are chosen on the validation rows"
    features, seconds = cached_features(cache, df, path, size[::-1])
    print(f'features of {len(df)} leaves at {size[0]}×{size[1]}, {features.shape[1]} views each: {seconds:.0f} s')
    arms, trivial = Frozen(df, features), trivial_accuracies(df)
    show_columns(f'accuracy over five classes, {SEEDS} seeds', [*TASKS, 'skill'])
    for name, arm in dict(ours=arms.ours, hand=arms.by_hand, single=arms.single).items():
        tried, seconds = {}, {}
        for epochs in EPOCHS:
            start = time.perf_counter()
            tried[epochs] = arm(epochs, seed=0)
            seconds[epochs] = time.perf_counter() - start
        best = max(EPOCHS, key=lambda epochs: mean_skill(tried[epochs]['valid'], trivial))
        runs = [arm(best, seed)['test'] for seed in range(SEEDS)]
        show_arm(f'{name}, {best} epochs, {seconds[best]:.0f} s', runs, trivial)
    show_others(trivial)


def show_arm(name, runs, trivial):
    show_row(name, [{task: run[task] for task in TASKS} | dict(skill=mean_skill(run, trivial)) for run in runs])


def show_others(trivial):
    show_arm('trivial', [trivial], trivial)
    show_arm('published (ResNet50, GPU)', [PUBLISHED], trivial)


def trivial_accuracies(df):
    "The most frequent class of the training rows"
    train, test = (labelled_classes(df[df.part == part]) for part in ('train', 'test'))
    return {task: float((test[task] == pd.Series(train[task]).mode()[0]).mean()) for task in TASKS}


def mean_skill(scores, trivial):
    "0 of the trivial predictor, 1 of a perfect one: the mean of both tasks"
    return float(np.mean([skill(scores[task], trivial[task]) for task in TASKS]))


class Finetuned:
    """The arms of a fine-tuning, one seed: the whole network trains, on pictures that are turned, zoomed and lit anew.
    Channels last, with which a processor takes half the time for a step"""

    def __init__(self, df, path, size, workers, bs):
        self.df, self.path, self.size, self.workers, self.bs = df, path, size, workers, bs

    def loaders(self, normalize=False):
        norm = [Normalize.from_stats(*LITE0_STATS)] if normalize else []
        return ConditionalDataLoaders.from_df(
            self.df[self.df.part != 'test'],
            bracol_flow(),
            path=self.path,
            fn_col='img',
            valid_col='is_valid',
            bs=self.bs,
            num_workers=self.workers,
            item_tfms=Resize(self.size[::-1], method=ResizeMethod.Squish),
            batch_tfms=[*aug_transforms(flip_vert=True), *norm],
        )

    def ours(self, epochs):
        "By stock calls, every weight 1"
        dls = self.loaders()
        learn = conditional_vision_learner(dls, lite0, cbs=ChannelsLast())
        with learn.no_bar(), learn.no_logging():
            learn.fine_tune(max(1, epochs - 1), LR)
        return self.scores(dls, lambda dl: decided_by(learn, dl))

    def by_hand(self, epochs, paths=('sick', *TASKS)):
        "The same network in plain PyTorch, on the same batches; or one of some tasks"
        dls = self.loaders(normalize=True)
        hand = ByHand(dls.flow, list(paths))
        model = nn.Sequential(create_body(lite0(), cut=-3), create_head(1280, hand.n_out))
        model.to(memory_format=torch.channels_last)
        train_by_hand(hand, model, dls.train, max(0, epochs - 1), LR / 2, body_lr=LR / 20, frozen=1)
        return self.scores(dls, lambda dl: decided_by_hand(hand, model, dl))

    def single(self, epochs):
        "A network a task, half of the epochs each"
        runs = [self.by_hand(epochs // 2, ('sick', task)) for task in TASKS]
        return {part: runs[0][part] | runs[1][part] for part in runs[0]}

    def scores(self, dls, decide):
        parts = {part: self.df[self.df.part == part] for part in ('valid', 'test')}
        return {part: accuracies(rows, classes(dls.flow, decide(dls.test_dl(rows)))) for part, rows in parts.items()}

    def seconds_of_an_epoch(self):
        "Of the whole network, by hand, once the loaders are warm"
        dls = self.loaders(normalize=True)
        hand = ByHand(dls.flow, ['sick', *TASKS])
        model = nn.Sequential(create_body(lite0(), cut=-3), create_head(1280, hand.n_out))
        model.to(memory_format=torch.channels_last)
        train_by_hand(hand, model, dls.train, 1, 1e-4)
        start = time.perf_counter()
        train_by_hand(hand, model, dls.train, 1, 1e-4)
        return time.perf_counter() - start


def epochs_in(arms, minutes):
    "Epochs of the whole network that so many minutes hold"
    set_seed(0)
    seconds = arms.seconds_of_an_epoch()
    print(f'{seconds:.1f} s an epoch at {arms.size[0]}×{arms.size[1]} on {arms.loaders().device}')
    return max(2, round(60 * minutes / seconds))


def finetuned_table(arms, epochs, names):
    "Print the arms of one long fine-tuning, `epochs` each"
    print(f'{epochs} epochs an arm', flush=True)
    trivial = trivial_accuracies(arms.df)
    show_columns('accuracy over five classes, one seed', [*TASKS, 'skill'])
    for name in names:
        set_seed(0)
        start, busy = time.perf_counter(), time.process_time()
        found = dict(ours=arms.ours, hand=arms.by_hand, single=arms.single)[name](epochs)
        took, busy = (time.perf_counter() - start) / 60, (time.process_time() - busy) / 60
        print(f'{name}: {busy:.1f} minutes of a core')
        for part, scores in found.items():
            show_arm(f'{name}, {part}, {took:.1f} min', [scores], trivial)
    show_others(trivial)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder', type=Path)
    parser.add_argument('--finetune', type=float, metavar='MINUTES', help='one long fine-tuning, so long an arm')
    parser.add_argument('--epochs', type=int, help='of one long fine-tuning, an arm')
    parser.add_argument('--arms', nargs='+', default=['ours', 'hand', 'single'], help='of the fine-tuning')
    parser.add_argument('--size', type=int, nargs=2, default=SIZE, help='width and height of the pictures')
    parser.add_argument('--bs', type=int, default=32)
    parser.add_argument('--workers', type=int, default=min(12, defaults.cpus), help='that read pictures')
    parser.add_argument('--cache', type=Path, help='file for the frozen features, .npy')
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    df = read(args.folder)
    if args.finetune is None and args.epochs is None:
        frozen_table(df, args.folder, args.size, args.cache)
    else:
        arms = Finetuned(df, args.folder, args.size, args.workers, args.bs)
        finetuned_table(arms, args.epochs or epochs_in(arms, args.finetune), args.arms)


if __name__ == '__main__':
    main()
