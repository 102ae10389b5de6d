"""Simulated labelling: what score so many answers reach, chosen by `learn.label_next`, or of random rows

python benchmarks/label_next.py nhanes                            reads nhanes/NHANES.csv out of FASTAI_CONDMTL_DATA
python benchmarks/label_next.py scenes                            drawn scenes, their pixels as 48 principal components
python benchmarks/label_next.py bracol FOLDER --cache FILE.npy    leaves, frozen features as 48 principal components

All arms begin with the same random rows, train the same small network anew in each round, and pay one for each answer:

- ours: the rows that `label_next` names, and of these the questions that turn out to be asked
- without P(reached): the same, with gains that are not multiplied by P(reached)
- random: random rows, and of these the questions that are asked
- whole rows: random rows where every question is paid, asked or not, as in a form without conditions

The score is the mean skill of the tasks on held-out rows: 0 is the trivial predictor, 1 perfect."""

import argparse, sys, tempfile, time, warnings
from dataclasses import dataclass
from pathlib import Path
import numpy as np, pandas as pd, torch
from fastai.torch_core import set_seed

sys.path.append(str(Path(__file__).parent / 'real'))
from fastai_condmtl.all import Flow, MultiLabelBlock, SingleLabelBlock
from fastai_condmtl.datasets.synthetic import save_scenes, security_flow
from fastai_condmtl.evaluate.label_next import prices_of, questions_of, unlike_rows
from fastai_condmtl.evaluate.skill import skill_of_tasks
from fastai_condmtl.learn.accumulate import collect
from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders, conditional_tabular_learner

ARMS = ('ours', 'without P(reached)', 'random', 'whole rows')
N_COMPONENTS, N_CANDIDATES, N_STEPS = 48, 1500, 100


@dataclass
class Pool:
    "A table with all answers, and how it is learnt"

    df: pd.DataFrame
    flow: object
    cats: list
    conts: list
    rows: np.ndarray  # that can be labelled
    test: np.ndarray  # that are scored
    start: int  # rows that are labelled first
    answers: int  # that are bought in each round

    def __post_init__(self):
        bound = self.flow.bind(self.df)
        self.paths, self.columns = bound.paths, [block.cols[0] for block in bound.tasks.values()]
        counts = bound.encode(self.df).numpy()[:, 1] > 0
        self.asked = np.stack([counts[:, own].any(1) for own in bound.target_slices], 1)  # and answered


def components(x):
    "Pictures or features `(N, ...)` as the columns of their principal components"
    from sklearn.decomposition import PCA

    x = PCA(N_COMPONENTS, random_state=0).fit_transform(np.reshape(x, (len(x), -1)))
    return pd.DataFrame(x / x.std(0), columns=[f'x{i}' for i in range(N_COMPONENTS)]).astype(np.float32)


def halves(n, seed=0):
    "Positions of the pool (70 %) and of the rows to be scored"
    rows = np.random.default_rng(seed).permutation(n)
    return rows[: int(0.7 * n)], rows[int(0.7 * n) :]


def nhanes_pool(args):
    import nhanes

    bench = nhanes.bench()
    df = bench.df[bench.df.Age >= 20].drop_duplicates('ID').reset_index(drop=True)
    full = lambda names: [name for name in names if df[name].notna().mean() > 0.8]
    return Pool(df, nhanes.health_flow(), full(bench.cats), full(bench.conts), *halves(len(df)), 300, 400)


def scenes_pool(args):
    from fastai.vision.core import PILImage

    with tempfile.TemporaryDirectory() as folder:
        df = save_scenes(folder, n=2000)
        pictures = np.stack([np.asarray(PILImage.create(Path(folder) / name).resize((32, 32))) for name in df.img])
    x = components(pictures / 255)
    df = pd.concat([df.reset_index(drop=True), x], axis=1)
    flow = with_vocabularies(security_flow(), df)
    return Pool(df, flow, [], list(x), *halves(len(df)), 60, 300)


def with_vocabularies(flow, df):
    "The flow with the classes and labels of the whole table: the first rows do not show them all"
    for task in flow.tasks:
        if isinstance(task, Flow):
            with_vocabularies(task, df)
        elif isinstance(task, (SingleLabelBlock, MultiLabelBlock)):
            task.vocab = list(Flow('one', type(task)(task.name)).bind(df).find(task.name).vocab)
    return flow


def bracol_pool(args):
    import bracol
    from pictures_common import cached_features

    df = bracol.read(args.folder)
    features, _ = cached_features(Path(args.cache), df, Path(args.folder), (128, 256), n_views=1)
    x = components(features[:, 0].numpy())
    df = pd.concat([df, x], axis=1)
    train = (df.part == 'train').to_numpy()
    return Pool(df, bracol.bracol_flow(), [], list(x), np.flatnonzero(train), np.flatnonzero(~train), 40, 60)


class Labelling:
    "One run: what is known, and what was paid for it"

    def __init__(self, pool, arm, seed):
        self.pool, self.arm, self.rng, self.seed = pool, arm, np.random.default_rng(seed), seed
        self.order = self.rng.permutation(pool.rows)
        self.known = np.zeros(pool.asked.shape, dtype=bool)  # questions that were put
        self.paid = int(pool.asked[self.order[: pool.start]].sum())  # the first rows cost each arm the same
        self.known[self.order[: pool.start]] = True

    def table(self):
        "The table with the answers that are known"
        table = self.pool.df.copy()
        for i, column in enumerate(self.pool.columns):
            table[column] = table[column].where(self.known[:, i] & self.pool.asked[:, i])
        return table

    def learner(self, table):
        pool, labelled = self.pool, np.flatnonzero((self.known & self.pool.asked).any(1))
        set_seed(self.seed)
        part = table.iloc[labelled].reset_index(drop=True)
        dls = ConditionalTabularDataLoaders.from_df(
            part,
            pool.flow,
            cat_names=pool.cats,
            cont_names=pool.conts,
            splitter=lambda _: (list(range(len(part))), list(range(min(50, len(part))))),
            bs=128 if len(part) >= 128 else len(part),
            device='cpu',
        )
        learn = conditional_tabular_learner(dls, [64], tune=None, members=1, numbers=None)
        with learn.no_bar(), learn.no_logging():
            learn.fit_one_cycle(max(3, N_STEPS * 128 // max(len(part), 128)), 3e-3)
        return learn

    def score(self, learn):
        with learn.no_bar(), learn.no_logging():
            dl = learn.dls.test_dl(self.pool.df.iloc[self.pool.test], with_labels=True)
            return float(np.nanmean(list(skill_of_tasks(collect(learn, dl)).values())))

    def candidates(self, n):
        rows = self.rng.permutation(self.pool.rows[~self.known[self.pool.rows].any(1)])
        return rows[:n]

    def chosen(self, learn, table, n):
        "Positions of the next rows"
        if self.arm in ('random', 'whole rows'):
            return self.candidates(n)
        rows = self.candidates(N_CANDIDATES)
        part = table.iloc[rows]
        with learn.no_bar(), learn.no_logging():
            if self.arm == 'ours':
                return rows[part.index.get_indexer(learn.label_next(part, n=n).row.unique())]
            asks = questions_of(learn, part, prices_of(learn.dls.flow, None))
            gains = np.where(asks.open, asks.gains / np.maximum(asks.reached, 1e-12), 0)
            return rows[unlike_rows(learn, part, gains.sum(1), n)]

    def buy(self, learn, table):
        "One round of answers"
        target = self.paid + self.pool.answers
        each = self.pool.asked[self.known.any(1)].sum(1).mean()
        while self.paid < target:
            n = max(2, round((target - self.paid) / each))
            for row in self.chosen(learn, table, n):
                self.known[row] = True
                self.paid += len(self.pool.paths) if self.arm == 'whole rows' else int(self.pool.asked[row].sum())
                if self.paid >= target:
                    break
            table = self.table()

    def curve(self, n_rounds):
        "Answers paid and score, after each round"
        found = []
        for i in range(n_rounds + 1):
            table = self.table()
            learn = self.learner(table)
            found.append((self.paid, self.score(learn)))
            if i < n_rounds:
                self.buy(learn, table)
        return found


def needed(paid, scores, wanted):
    "Answers after which a mean curve first reaches a score, between rounds by a line; inf: it does not"
    for (a, x), (b, y) in zip(zip(paid, scores), zip(paid[1:], scores[1:])):
        if x >= wanted:
            return a
        if y >= wanted:
            return a + (b - a) * (wanted - x) / (y - x)
    return np.inf


def show(curves, seconds):
    "A line an arm: mean ± standard deviation over the seeds; then differences in pairs, and answers that are needed"
    paid = np.array(curves['random'])[..., 0].mean(0)
    print('answers'.ljust(20), *(f'{n:13.0f}' for n in paid))
    for arm, runs in curves.items():
        scores = np.array(runs)[..., 1]
        cells = [f'{m:6.3f} ± {s:.3f}'.rjust(13) for m, s in zip(scores.mean(0), scores.std(0, ddof=1))]
        print(arm.ljust(20), *cells, f'  {seconds[arm]:.0f} s')
    ours = np.array(curves['ours'])[..., 1]
    for arm in ARMS[1:]:
        if arm in curves:
            gain = ours - np.array(curves[arm])[..., 1]
            errors = gain.std(0, ddof=1) / len(gain) ** 0.5
            print(f'ours − {arm}'.ljust(20), *(f'{m:+6.3f} ± {s:.3f}'.rjust(13) for m, s in zip(gain.mean(0), errors)))
    for arm in [arm for arm in ARMS[2:] if arm in curves]:
        last = np.array(curves[arm])[..., 1].mean(0)[-1]
        mine = needed(np.array(curves['ours'])[..., 0].mean(0), ours.mean(0), last)
        with_ours = 'not' if np.isinf(mine) else f'with {mine:.0f}'
        print(f"what '{arm}' reaches with {paid[-1]:.0f} answers ({last:.3f}), ours reaches {with_ours}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', choices=('nhanes', 'scenes', 'bracol'))
    parser.add_argument('folder', nargs='?', help='of BRACOL: dataset.csv and leaf/*.jpg')
    parser.add_argument('--cache', default='bracol_256_feats.npy', help='file of the features of BRACOL')
    parser.add_argument('--seeds', type=int, default=5)
    parser.add_argument('--rounds', type=int, default=4)
    parser.add_argument('--arms', nargs='+', default=ARMS)
    args = parser.parse_args()
    warnings.filterwarnings('ignore')
    torch.set_num_threads(1)
    pool = dict(nhanes=nhanes_pool, scenes=scenes_pool, bracol=bracol_pool)[args.data](args)
    print(f'{args.data}: {len(pool.rows)} rows to label, {len(pool.test)} scored, {len(pool.paths)} tasks')
    curves, seconds = {}, {}
    for arm in args.arms:
        start = time.process_time()
        curves[arm] = [Labelling(pool, arm, seed).curve(args.rounds) for seed in range(args.seeds)]
        seconds[arm] = time.process_time() - start
    show(curves, seconds)


if __name__ == '__main__':
    main()
