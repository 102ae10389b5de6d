"""Do classes that nest cost anything? EDOS (Kirk et al. 2023): is a post sexist, of which of 4 categories, which of 11
vectors; `within=` against three heads that know nothing of each other.

python benchmarks/nested.py ../shared/data/edos     prints one table: macro-F1, and how many rows contradict themselves

Both networks are a linear layer on the same features (TF-IDF of words and of parts of words, reduced to 512 numbers on
the training rows), with the same optimiser. The number of epochs and the weights of classes are chosen for each by the
macro-F1 of the vectors on the development rows, averaged over the seeds; the test rows are looked at once. Categories
and vectors are scored on the rows whose gold label is sexist, as in the shared task. A row contradicts itself where its
vector belongs to another category than the one that was decided."""

import argparse
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import f1_score
from torch import nn

from fastai_condmtl.all import ConditionalLoss, Flow, SingleLabelBlock

EPOCHS = (5, 10, 20, 40)
WEIGHTS = (None, 'balanced')
TASKS = ('label_sexist', 'label_category', 'label_vector')


def read(folder):
    "The table; a label of 'none' is a blank"
    df = pd.read_csv(Path(folder) / 'edos_labelled_aggregated.csv')
    return df.assign(**{task: df[task].where(df[task] != 'none') for task in TASKS[1:]})


def features(df, size=512):
    "TF-IDF of each text, reduced on the training rows: `(N, size)`, each column of unit variance there"
    train = (df.split == 'train').to_numpy()
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=3, sublinear_tf=True)
    parts = TfidfVectorizer(analyzer='char_wb', ngram_range=(3, 5), min_df=5, max_features=60_000, sublinear_tf=True)
    res = []
    for vectorizer in (words, parts):
        vectorizer.fit(df.text[train])
        svd = TruncatedSVD(size // 2, n_iter=3, random_state=0)
        svd.fit(vectorizer.transform(df.text[train]))
        res.append(svd.transform(vectorizer.transform(df.text)))
    x = np.concatenate(res, 1)
    return torch.tensor((x - x[train].mean(0)) / x[train].std(0), dtype=torch.float32)


def nested(weights, decode='path'):
    "Categories stand in sexist, vectors in their categories"
    sexist = SingleLabelBlock('label_sexist')
    category = SingleLabelBlock('label_category', within=sexist, class_weights=weights)
    vector = SingleLabelBlock('label_vector', within=category, decode=decode, class_weights=weights)
    return Flow('edos', sexist, category, vector)


def flat(weights):
    "Three heads; categories and vectors are asked of sexist posts"
    sexist = SingleLabelBlock('label_sexist')
    given = sexist.eq('sexist')
    rest = [SingleLabelBlock(task, given=given, class_weights=weights) for task in TASKS[1:]]
    return Flow('edos', sexist, *rest)


# name → how a network is trained, and the flows that decide with it
FLOWS = dict(flat=(flat, dict(flat=flat)), within=(nested, dict(within=nested, joint=partial(nested, decode='joint'))))


def train(flow, x, y, seed, bs=512, lr=2e-3):
    "Yield the number of epochs and the network after each of `EPOCHS`"
    torch.manual_seed(seed)
    model, loss = nn.Sequential(nn.Dropout(0.3), nn.Linear(x.shape[1], flow.c)), ConditionalLoss(flow)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.1)
    for epoch in range(1, max(EPOCHS) + 1):
        model.train()
        for rows in torch.randperm(len(x)).split(bs):
            optimiser.zero_grad()
            loss(model(x[rows]), y[rows]).backward()
            optimiser.step()
        if epoch in EPOCHS:
            yield epoch, model.eval()


@torch.no_grad()
def decide(flow, model, x):
    "Decided classes `(N, 3)`, each as if its row were known to have one"
    loss = ConditionalLoss(flow)
    return loss.decide(loss.activation(model(x))).numpy().astype(int)


def judge(decided, y, parents):
    "Macro-F1 of each task, and the share of sexist rows whose vector is of another category than the decided one"
    true, counts = y[:, 0].numpy().astype(int), y[:, 1].numpy() > 0
    res = {}
    for k, task in enumerate(TASKS):
        rows = counts[:, k]
        res[task] = f1_score(true[rows, k], decided[rows, k], average='macro', zero_division=0)
    rows = counts[:, 2]
    right = (decided[rows, 1] == true[rows, 1]).astype(int) + (decided[rows, 2] == true[rows, 2])
    res['hierarchical_f1'] = right.mean() / 2
    res['contradict'] = float((parents[decided[rows, 2]] != decided[rows, 1]).mean())
    return res


def runs(df, x, make, deciders, seeds, parents):
    "A row a choice, seed and way to decide, with its dev and test scores"
    where = {part: torch.tensor((df.split == part).to_numpy()) for part in ('train', 'dev', 'test')}
    idx, rows = np.flatnonzero(df.split == 'train'), []
    for weights in WEIGHTS:
        flow = make(weights).bind(df, idx)
        decide_by = {name: other(weights).bind(df, idx) for name, other in deciders.items()}
        y = flow.encode(df).as_subclass(torch.Tensor)
        for seed in range(seeds):
            for epochs, model in train(flow, x[where['train']], y[where['train']], seed):
                for part, (name, decider) in product(('dev', 'test'), decide_by.items()):
                    scores = judge(decide(decider, model, x[where[part]]), y[where[part]], parents)
                    rows.append(dict(name=name, weights=str(weights), epochs=epochs, seed=seed, part=part, **scores))
    return pd.DataFrame(rows)


def chosen(table):
    "The choice with the best macro-F1 of vectors on the development rows, and its rows of the test"
    dev = table[table.part == 'dev'].groupby(['weights', 'epochs']).label_vector.mean()
    weights, epochs = dev.idxmax()
    test = table[(table.part == 'test') & (table.weights == weights) & (table.epochs == epochs)]
    return weights, epochs, float(dev.max()), test


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', help='with edos_labelled_aggregated.csv')
    parser.add_argument('--seeds', type=int, default=5)
    args = parser.parse_args()
    df = read(args.folder)
    x = features(df)
    parents = np.array(nested(None).bind(df).tasks['label_vector'].parents)
    columns = [*TASKS, 'hierarchical_f1', 'contradict']
    print(f"{'':14}{'chosen on dev':28}{'dev vector':>12}" + ''.join(f'{column:>20}' for column in columns))
    for make, deciders in FLOWS.values():
        for name, table in runs(df, x, make, deciders, args.seeds, parents).groupby('name', sort=False):
            weights, epochs, dev, test = chosen(table)
            scores = ''.join(f'{f"{test[c].mean():.3f} ± {test[c].std():.3f}":>20}' for c in columns)
            print(f"{name:14}{f'weights {weights}, {epochs} epochs':28}{dev:12.3f}{scores}", flush=True)


if __name__ == '__main__':
    main()
