"""What `evaluate` says of a flow whose conditions go through all kinds of tasks, five deep, with gaps, unsure labels,
votes and rows of weight 0: held to a loop over rows in plain Python, and to scikit-learn."""

import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import DataBlock, IndexSplitter, Learner, TransformBlock
from scipy.stats import poisson
from sklearn.metrics import cohen_kappa_score, f1_score, mean_poisson_deviance, r2_score, roc_auc_score
from torch import nn
from fastai_condmtl.all import *

pytestmark = pytest.mark.filterwarnings('ignore')
N, N_VALID = 1300, 1200


def deep_flow():
    a, u, sup = BinaryBlock('a'), UnboundedRegressionBlock('u'), SingleLabelBlock('sup')
    c = SingleLabelBlock('c') | a
    o = OrdinalBlock('o', vocab=[0, 1, 2, 3]) | any_of(c.eq('p'), ~a)
    k = CountBlock('k') | (u > 48) & ~c.eq('q')
    v = VotesBlock('v', cols=['v1', 'v2']) | any_of(o >= 2, k > 3)
    sub = SingleLabelBlock('sub', within=sup)
    unc = BinaryBlock('unc', uncertain={-1: 0.6, -2: None}) | v.eq('v1')
    m = MultiLabelBlock('m') | any_of(unc, ~any_of(a, o.isin([0, 3])))
    far = BinaryBlock('far') | m.has_any(['s', 'u']) & ~sub.eq('x0')
    share = BoundedRegressionBlock('bd', y_range=(0, 9)) | (v.share('v1') > 0.4)
    return Flow('f', a, c, o, u, sup, k, v, sub, unc, m, far, share, weight_col='w')


def deep_table(rng):
    df = pd.DataFrame(dict(a=rng.integers(0, 2, N).astype(float), c=rng.choice(list('pqr'), N)))
    df = df.assign(o=rng.integers(0, 4, N).astype(float), m=rng.choice(['s', 's,t', '', 't', 'u,t'], N))
    df = df.assign(u=rng.normal(50, 10, N), bd=rng.uniform(0, 9, N), k=rng.poisson(3, N).astype(float))
    df = df.assign(unc=rng.choice([0.0, 1.0, -1.0, -2.0], N), far=rng.integers(0, 2, N).astype(float))
    df = df.assign(v1=rng.integers(0, 4, N), v2=rng.integers(0, 4, N), sup=rng.choice(['x', 'y'], N))
    df = df.assign(sub=[s + str(i) for s, i in zip(df['sup'], rng.integers(0, 2, N))], w=rng.integers(0, 3, N) * 1.0)
    for column in ('a', 'c', 'o', 'm', 'u', 'bd', 'k', 'sub', 'far'):
        df.loc[rng.random(N) < 0.15, column] = None
    return df.assign(row=np.arange(N))


def none(value):
    return value is None or value != value


def k_not(state):
    return None if state is None else not state


def k_and(*states):
    return False if False in states else None if None in states else True


def k_or(*states):
    return True if True in states else None if None in states else False


def reach(value):
    "Task → whether its condition is true, false or unknown (None), of a dict of values with None where unknown"
    res = dict(a=True, u=True, sup=True, sub=True)

    def ask(task, question):
        return None if res[task] is not True or value[task] is None else bool(question(value[task]))

    a = ask('a', lambda x: x)
    res['c'] = a
    is_class = lambda name: ask('c', lambda x: x == name)
    res['o'] = k_or(is_class('p'), k_not(a))
    res['k'] = k_and(ask('u', lambda x: x > 48), k_not(is_class('q')))
    res['v'] = k_or(ask('o', lambda x: x >= 2), ask('k', lambda x: x > 3))
    res['unc'] = ask('v', lambda x: x[0])
    res['bd'] = ask('v', lambda x: x[1] > 0.4)
    res['m'] = k_or(ask('unc', lambda x: x), k_not(k_or(a, ask('o', lambda x: x in (0, 3)))))
    res['far'] = k_and(ask('m', lambda x: x & {'s', 'u'}), k_not(ask('sub', lambda x: x == 'x0')))
    return res


def labels_of_row(row):
    value = {p: None if none(row[p]) else row[p] for p in ('a', 'c', 'o', 'u', 'sup', 'k', 'sub', 'bd', 'far', 'm')}
    value['m'] = None if value['m'] is None else {label for label in row.m.split(',') if label}
    n_votes = row.v1 + row.v2
    value['v'] = None if n_votes == 0 else (row.v1 > 0, row.v1 / n_votes)
    return value | dict(unc=None if row.unc < 0 else bool(row.unc))


def decisions(flow, logits):
    "Task → what plain NumPy decides of logits, and scores of what is ranked or expected"
    own = {path: logits[:, of_task.logits] for path, of_task in flow.slices.items()}
    sigmoid, tasks = lambda x: 1 / (1 + np.exp(-x)), flow.tasks
    said = {path: own[path][:, 0] > 0 for path in ('a', 'unc', 'far')}
    said |= {path: np.array(tasks[path].vocab)[own[path].argmax(1)] for path in ('c', 'sup')}
    said['o'] = (own['o'][:, 1:] + own['o'][:, :1] > 0).sum(1)
    said['u'] = own['u'][:, 0] * tasks['u'].std + tasks['u'].mean
    rate = np.exp(own['k'][:, 0]) * tasks['k'].span
    said['k'], said['bd'] = poisson.median(rate), 9 * sigmoid(own['bd'][:, 0])
    share = np.exp(own['v'][:, 0]) / np.exp(own['v']).sum(1)
    said['v'] = list(zip(share >= 0.5, share))
    subs = tasks['sub'].vocab
    best = lambda row, sup: max((x, sub) for x, sub in zip(row, subs) if sub[0] == sup)[1]
    said['sub'] = np.array([best(row, sup) for row, sup in zip(own['sub'], said['sup'])])
    said['m'] = [{label for label, x in zip(tasks['m'].vocab, row) if x > 0} for row in own['m']]
    return said, dict(a=own['a'][:, 0], k=rate, v=share)


def as_matrix(sets, labels):
    return np.array([[label in (s or ()) for label in labels] for s in sets])


def test_scores_and_cascades_of_a_deep_flow():
    rng = np.random.default_rng(3)
    df, z = deep_table(rng), rng.normal(size=(N, 40)).astype(np.float32)
    dls = DataBlock(
        blocks=(TransformBlock, deep_flow()),
        get_x=lambda row: torch.tensor(z[int(row['row'])]),
        splitter=IndexSplitter(range(N_VALID)),
    ).dataloaders(df, bs=32, num_workers=0)
    learn = equip(Learner(dls, FirstNumbers(dls.c)), tune=None)
    with learn.no_bar():
        found = learn.evaluate(metrics='all').set_index(['task_path', 'metric_name'])
    valid = df[:N_VALID]
    said, scores = decisions(dls.flow, z[:N_VALID].astype(float))
    labels = [labels_of_row(row) for _, row in valid.iterrows()]
    by_labels = [reach(value) for value in labels]
    by_said = [reach({path: said[path][i] for path in said}) for i in range(N_VALID)]
    n_votes, tags = valid.v1 + valid.v2, dls.flow.tasks['m'].vocab
    told, guessed = as_matrix([value['m'] for value in labels], tags), as_matrix(said['m'], tags)
    by_hand = dict(
        a=('roc_auc', lambda k: roc_auc_score(valid.a[k].astype(int), scores['a'][k])),
        unc=('accuracy', lambda k: (valid.unc[k] == said['unc'][k]).mean()),
        far=('f1_score', lambda k: f1_score(valid.far[k].astype(int), said['far'][k])),
        c=('f1_score', lambda k: f1_score(valid.c[k], said['c'][k], average='macro')),
        o=('kappa', lambda k: cohen_kappa_score(valid.o[k].astype(int), said['o'][k], weights='quadratic')),
        u=('rmse', lambda k: np.sqrt(((valid.u - said['u'])[k] ** 2).mean())),
        k=('deviance', lambda k: mean_poisson_deviance(valid.k[k], scores['k'][k])),
        sub=('accuracy', lambda k: (valid['sub'][k] == said['sub'][k]).mean()),
        v=('mae', lambda k: np.abs(scores['v'][k] - (valid.v1 / n_votes)[k]).mean()),
        m=('f1_score', lambda k: f1_score(told[k], guessed[k], average='macro', zero_division=0)),
        bd=('r2', lambda k: r2_score(valid.bd[k], said['bd'][k])),
    )
    for path, (metric, score) in by_hand.items():
        row = found.loc[path, metric]
        counts = [r[path] is True and v[path] is not None for r, v in zip(by_labels, labels)] & (valid.w > 0).to_numpy()
        reached = np.array([r[path] is True for r in by_said])
        assert row.num_samples == counts.sum() > 10 and row.cascade_samples == (counts & reached).sum() > 2, path
        assert row.metric_res == pytest.approx(score(counts), abs=1e-5), (path, metric)
        assert row.cascade_res == pytest.approx(score(counts & reached), abs=1e-5), (path, metric)
        assert row.missed == pytest.approx((counts & ~reached).sum() / counts.sum()), path


class FirstNumbers(nn.Module):
    "Logits are the first numbers of a row"

    def __init__(self, n):
        super().__init__()
        self.n, self.scale = n, nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x.as_subclass(torch.Tensor)[:, : self.n] * self.scale
