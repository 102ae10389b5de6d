"Tests of evaluate/label_next: what is asked and what it gains, against SciPy, single predictions and loops over rows"

import itertools
import warnings
import weakref

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.text.all import AWD_LSTM, awd_lstm_clas_config
from fastai.vision.all import DataBlock, Learner, RandomSplitter, Transform, TransformBlock
from scipy.stats import entropy
from sklearn.ensemble import RandomForestClassifier
from torch import nn

from fastai_condmtl.all import *
from fastai_condmtl.evaluate import label_next
from fastai_condmtl.evaluate.label_next import COLUMNS, Questions, affordable, features_of_rows
from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders, conditional_tabular_learner, fit_estimators
from fastai_condmtl.text.all import ConditionalTextDataLoaders, conditional_text_learner

C = 8  # logits of the flow below


def own_flow():
    a, kind = BinaryBlock('a'), SingleLabelBlock('kind', vocab=['u', 'v', 'w'])
    tags = MultiLabelBlock('tags', vocab=['x', 'y'])
    return Flow(
        'f', a, kind | a, BinaryBlock('b') | (kind.eq('u')), tags | ~a, BinaryBlock('c') | a & kind.isin(['u', 'v'])
    )


class Logits(Transform):
    "Row → its logits"

    def __call__(self, r, **kwargs):
        return torch.tensor([float(r[f'z{i}']) for i in range(C)])


def rows(n, seed=0):
    "Rows with logits, no labels"
    z = 2 * np.random.default_rng(seed).normal(size=(n, C))
    df = pd.DataFrame(z, columns=[f'z{i}' for i in range(C)], index=[f'r{i}' for i in range(n)])
    return df.assign(a=None, kind=None, b=None, tags=None, c=None)


def some_answers(df, seed=1):
    "Answers in some of the cells, whether they have meaning or not"
    rng, df = np.random.default_rng(seed), df.copy()
    words = dict(a=[0, 1], kind=['u', 'v', 'w'], b=[0, 1], tags=[['x'], ['x', 'y']], c=[0, 1])
    for column, answers in words.items():
        cells = [answers[i] for i in rng.integers(0, len(answers), len(df))]
        df[column] = [cell if there else None for cell, there in zip(cells, rng.random(len(df)) < 0.3)]
    return df


@pytest.fixture(scope='module')
def learn():
    "A learner whose logits are the columns z0 to z7, in the order of the flow"
    train = some_answers(rows(60, 5)).reset_index(drop=True)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        block = DataBlock((TransformBlock, own_flow()), get_x=Logits(), splitter=RandomSplitter(seed=0))
        dls = block.dataloaders(train, bs=16, num_workers=0, device='cpu')
    model = nn.Linear(C, C, bias=False)
    slices = dls.flow.slices
    order = [j for path in dls.flow.paths for j in range(slices[path].logits.start, slices[path].logits.stop)]
    model.weight.data = torch.eye(C)[np.argsort(order)]
    return Learner(dls, model)


def asked(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging():
        return learn.label_next(*args, **kwargs)


def test_gain_is_p_reached_times_the_entropy_that_scipy_gives(learn):
    "On rows without labels, against the marginals of single predictions"
    df = rows(12)
    found = asked(learn, df, n=12).set_index(['row', 'task_path'])
    assert len(found) == 12 * 5 and list(found.columns) == COLUMNS[2:]
    for name in df.index:
        with learn.no_bar():
            marginals = learn.predict(df.loc[name])[0].marginals
        for path, of_task in marginals.items():
            share = of_task.reached
            if path == 'tags':
                given = [v / share for v in of_task.values.values()]
                teaches = np.mean([entropy([p, 1 - p], base=2) for p in given])
            elif path == 'kind':
                given = np.array(list(of_task.values.values())) / share
                teaches = entropy(given, base=3)
            else:
                teaches = entropy([of_task.values / share, 1 - of_task.values / share], base=2)
            assert found.p_reached[name, path] == pytest.approx(share, abs=1e-6)
            assert found.gain[name, path] == pytest.approx(share * teaches, abs=1e-5)


def can_be_reached(path, row):
    "Whether a task may still be asked, by the answers of a row; by hand for the flow above"
    no = lambda column, *values: row[column] is not None and row[column] not in values
    if path == 'kind':
        return not no('a', 1)
    if path == 'b':
        return not no('a', 1) and not no('kind', 'u')
    if path == 'tags':
        return not no('a', 0)
    if path == 'c':
        return not no('a', 1) and not no('kind', 'u', 'v')
    return True


def test_what_has_an_answer_or_is_ruled_out_is_never_asked_and_all_else_is(learn):
    df = some_answers(rows(80))
    plain = df.astype(object).where(df.notna(), None)
    wanted = {
        (name, path)
        for name, path in itertools.product(df.index, ('a', 'kind', 'b', 'tags', 'c'))
        if plain.at[name, path] is None and can_be_reached(path, plain.loc[name])
    }
    found = asked(learn, df, n=80)
    assert set(zip(found.row, found.task_path)) == wanted
    known = found[(found.task_path == 'kind') & found.row.isin(df.index[(df.a == 1).to_numpy()])]
    assert len(known) and (known.p_reached == 1).all()  # an answer is certain


def test_rows_that_gain_most_come_first_and_their_questions_as_they_are_asked(learn):
    found = asked(learn, rows(30), n=8)
    total = found.groupby('row', sort=False).gain.sum()
    assert len(total) == 8 and total.is_monotonic_decreasing
    order = [learn.dls.flow.paths[i] for i in learn.dls.flow.plan.order]
    for _, own in found.groupby('row', sort=False):
        assert own.task_path.tolist() == [path for path in order if path in set(own.task_path)]


def test_a_question_stands_with_the_open_ones_above_it_although_the_model_is_sure_of_them(learn):
    df = rows(3).assign(z0=60.0, z1=60.0)  # a is yes and kind is u, in float32 with probability 1
    found = asked(learn, df, n=3).set_index(['row', 'task_path'])
    for name in df.index:
        assert found.gain[name, 'a'] == 0 and found.p_reached[name, 'b'] == 1 and found.gain[name, 'b'] > 0


@pytest.mark.parametrize('n', [2, 5, 50])
def test_copies_of_a_row_get_one_pick(learn, n):
    few = rows(6, 3)
    pool = pd.concat([few] * 40, ignore_index=True)
    picked = asked(learn, pool, n=n).row.unique()
    assert len(picked) == min(n, 6) and len({int(i) % 6 for i in picked}) == len(picked)
    best = asked(learn, few.reset_index(drop=True), n=6).groupby('row').gain.sum()
    mine = asked(learn, pool, n=n).groupby('row').gain.sum()
    assert np.allclose(mine, best.loc[[int(i) % 6 for i in mine.index]])


def test_copies_of_the_best_row_do_not_hide_the_others(learn):
    "Hundreds of copies fill the shortlist; the rows behind them are found"
    other = rows(4, 3).assign(z0=4.0)
    best = pd.concat([rows(1).assign(**{f'z{i}': 0.0 for i in range(C)})] * 300)
    pool = pd.concat([best, other], ignore_index=True)
    assert set(asked(learn, pool, n=5).row) == {0, 300, 301, 302, 303}


def test_rows_far_apart_are_preferred_to_one_cluster(learn):
    "Fifty rows that are nearly the same gain a little more than five that differ"
    rng = np.random.default_rng(0)
    near = pd.DataFrame(rng.normal(size=(50, C)) / 100, columns=[f'z{i}' for i in range(C)])
    far = pd.DataFrame(np.eye(C)[1:6] * 1.5, columns=near.columns)
    pool = pd.concat([near, far], ignore_index=True).assign(a=None, kind=None, b=None, tags=None, c=None)
    picked = asked(learn, pool, n=11).row.unique()
    assert (picked >= 50).sum() >= 4


def bought_by_hand(asks, budget):
    "The rule again, a step at a time: of all questions the one with the greatest gain by cost that still fits"
    flow, open_ = asks.flow, asks.open
    above = {path: set() for path in flow.paths}
    above |= dict(kind={'a'}, b={'a', 'kind'}, tags={'a'}, c={'a', 'kind'})
    tried, listed, left = set(), set(), budget
    while True:
        best = None
        for row, path in itertools.product(range(len(open_)), flow.paths):
            i = flow.paths.index(path)
            if (row, path) in tried or not open_[row, i] or not asks.gains[row, i]:
                continue
            way = [flow.paths.index(p) for p in (*above[path], path)]
            way = [j for j in way if open_[row, j]]
            worth = sum(asks.gains[row, j] for j in way) / sum(asks.prices[j] for j in way)
            if best is None or worth > best[0] + 1e-12:
                best = worth, row, path, way
        if best is None:
            return listed
        _, row, path, way = best
        tried.add((row, path))
        new = [j for j in way if (row, j) not in listed]
        if sum(asks.prices[j] for j in new) <= left + 1e-9:
            left -= sum(asks.prices[j] for j in new)
            listed |= {(row, j) for j in new}


@pytest.mark.parametrize('seed', range(5))
def test_a_budget_buys_what_a_loop_over_all_questions_buys(learn, seed):
    rng, flow = np.random.default_rng(seed), learn.dls.flow
    is_open, reached = rng.random((7, 5)) < 0.7, rng.random((7, 5))
    gains = np.where(is_open & (rng.random((7, 5)) < 0.9), rng.random((7, 5)), 0)
    asks = Questions(flow, rng.choice([0.5, 1, 2, 3.5], 5), is_open, reached, gains)
    for budget in (4, 9.5, 21, 1000):
        listed = affordable(asks, budget, list(range(7)))
        assert set(zip(*map(np.ndarray.tolist, np.nonzero(listed)))) == bought_by_hand(asks, budget)
        assert (listed * asks.prices).sum() <= budget
        assert not (listed & ~is_open).any()


def test_budget_and_costs_in_the_table(learn):
    df = rows(20)
    costs = {'kind': 3, 'tags': 0.5}
    found = asked(learn, df, n=10, budget=12, costs=costs)
    assert found.cost.sum() <= 12 and found.row.nunique() <= 10
    assert (found.cost == found.task_path.map(costs).fillna(1)).all()
    everything = asked(learn, df, n=10, budget=1000, costs=costs)
    pd.testing.assert_frame_equal(everything, asked(learn, df, n=10, costs=costs))
    assert set(found.row) <= set(everything.row)


def test_bad_arguments(learn):
    df = rows(4)
    with pytest.raises(
        FlowError, match=r"budget=0.5 is below one question: the cheapest, task 'a' of row 'r\d', costs 1 "
    ):
        asked(learn, df, budget=0.5)
    with pytest.raises(FlowError, match='budget=0 must be a number above 0'):
        asked(learn, df, budget=0)
    for n in (0, True, 1.5, -1):
        with pytest.raises(FlowError, match='n='):
            asked(learn, df, n=n)
    for cost in (0, True, -1, float('nan'), '1'):
        with pytest.raises(FlowError, match="costs, task 'kind': cost=.* must be a number above 0"):
            asked(learn, df, costs={'kind': cost})
    with pytest.raises(FlowError, match='must be a dict'):
        asked(learn, df, costs=3)
    with pytest.raises(FlowError, match='kidn'):
        asked(learn, df, costs={'kidn': 1})
    with pytest.raises(FlowError, match='the table is empty'):
        asked(learn, df[:0])
    with pytest.raises(FlowError, match='stands twice'):
        asked(learn, pd.concat([df, df]))
    for wrong in ([1, 2], df['kind'], dict(df), 'rows.csv'):
        with pytest.raises(FlowError, match=rf'takes a DataFrame.*, not a {type(wrong).__name__}: .*df\.loc\[rows\]$'):
            asked(learn, wrong)


def test_answers_go_back_and_are_not_asked_again(learn, tmp_path):
    df = some_answers(rows(30), 2)
    found = asked(learn, df, n=6)
    words = dict(a=1, kind='v', b=0, c=1)
    found['new'] = [words.get(path) for path in found.task_path]
    found.to_csv(tmp_path / 'asked.csv', index=False)
    filled = pd.read_csv(tmp_path / 'asked.csv')
    after = learn.dls.flow.put_answers(df, filled)
    given = found[found.new.notna()]
    for name, path, new in zip(given.row, given.task_path, given.new):
        assert after.at[name, path] == new
    touched = set(zip(given.row, given.task_path))
    for name, path in itertools.product(df.index, df.columns):
        if (name, path) not in touched:
            before = df.at[name, path]
            assert after.at[name, path] is before or after.at[name, path] == before or pd.isna(before)
    again = asked(learn, after, n=30)
    assert touched.isdisjoint(zip(again.row, again.task_path))


def test_answers_that_cannot_be(learn):
    df, put = rows(3), learn.dls.flow.put_answers
    line = lambda **kwargs: pd.DataFrame([dict(row='r1', task_path='kind', new='u') | kwargs])
    assert put(df, line()).kind.tolist()[1] == 'u' and df.kind.isna().all()
    for bad, text in (
        (line(new='q'), "'q'"),
        (line(row='r9'), "no row 'r9'"),
        (line(task_path='kin'), 'kin'),
        (pd.concat([line(), line()]), "task 'kind' of row 'r1' is answered twice"),
        (line().drop(columns='row'), "no column 'row'"),
    ):
        with pytest.raises(FlowError, match=text):
            put(df, bad)
    with pytest.raises(FlowError, match='duplicates'):
        put(pd.concat([df, df]), line())


def test_a_question_under_two_names_is_one_question():
    from fastai_condmtl.evaluate.label_next import prices_of

    df = pd.DataFrame(dict(a=[1, 0], b=[1, 0], x=[0.0, 1.0]), index=['r0', 'r1'])
    flow = Flow('f', BinaryBlock('a'), Flow('in', BinaryBlock('b'))).bind(df)
    asked = pd.DataFrame(dict(row=['r0', 'r0'], task_path=['b', 'in.b'], new=[0, 1]))
    with pytest.raises(FlowError, match="task 'in.b' of row 'r0' is answered twice"):
        flow.put_answers(df, asked)
    after = flow.put_answers(df, asked.assign(row=['r0', 'r1']))  # two rows, each under its own name
    assert after.b.tolist() == [0, 1]
    assert flow.put_answers(df, asked.assign(new=[None, 0])).b.tolist() == [0, 0]  # a blank is no answer
    with pytest.raises(FlowError, match="names task 'in.b' twice"):
        prices_of(flow, {'b': 1, 'in.b': 2})


def test_a_table_without_columns_of_labels_and_one_that_needs_nothing(learn):
    df = rows(5)
    bare = df.drop(columns=['a', 'kind', 'b', 'tags', 'c'])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        pd.testing.assert_frame_equal(asked(learn, bare, n=3), asked(learn, df, n=3))
    done = df.assign(a=0, tags=[['x']] * 5)
    assert asked(learn, done).empty and list(asked(learn, done, budget=1).columns) == COLUMNS


def numbers_table(n=120):
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(x=rng.normal(size=n), y=rng.normal(size=n)))
    df['gate'] = (df.x > 0).astype(float)
    df['size'] = np.where(df.x > 0, 10 * df.y, np.nan)
    return df


def numbers_flow():
    gate = BinaryBlock('gate')
    return Flow('f', gate, UnboundedRegressionBlock('size') | gate)


def test_numbers_are_asked_where_passes_with_dropout_differ():
    df = numbers_table()
    dls = ConditionalTabularDataLoaders.from_df(df, numbers_flow(), cont_names=['x', 'y'], seed=0, bs=32, device='cpu')
    learn = conditional_tabular_learner(dls, [16], members=1)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(3, 1e-2)
    pool = df.assign(gate=np.nan, size=np.nan)
    found = asked(learn, pool, n=20)
    size = found[found.task_path == 'size']
    assert len(size) == 20 and (size.gain > 0).all() and (size.gain <= size.p_reached).all()
    assert not any(m.training for m in learn.model.modules())  # dropout is off again
    assert asked(learn, pool.assign(gate=0.0), n=20).empty


def test_a_model_that_gives_no_numbers_is_told(learn):
    "It would have an empty list of questions"
    with pytest.raises(FlowError, match="the predictions of task 'a' hold NaN"):
        asked(learn, rows(6).assign(z1=[0, 0, np.nan, 0, 0, 0]), n=2)


def test_passes_with_dropout_are_summed_and_not_kept(monkeypatch):
    "The gain of numbers is that of all passes side by side, of which two are there at a time at most"
    df = numbers_table()
    dls = ConditionalTabularDataLoaders.from_df(df, numbers_flow(), cont_names=['x', 'y'], seed=0, bs=32, device='cpu')
    learn = conditional_tabular_learner(dls, [16], members=1)
    pool, copies, alive, most = df.assign(gate=np.nan, size=np.nan), [], weakref.WeakSet(), []
    plain = label_next.predicted

    def watched(*args, **kwargs):
        acts, values = plain(*args, **kwargs)
        copies.append(acts.clone())
        alive.add(acts)
        most.append(len(alive))
        return acts, values

    monkeypatch.setattr(label_next, 'predicted', watched)
    with learn.no_bar(), learn.no_logging():
        flow, labels = learn.dls.flow, label_next.given_answers(learn.dls.flow, pool)
        found = label_next.lessons_of_numbers(learn, pool, labels)
    acts = np.stack([one[:, flow.slices['size'].acts].double().numpy() for one in copies])
    unit = flow.loss_units.get('size', 1.0)
    unit = unit**0.5 if flow.tasks['size'].loss_name == 'mse' else unit
    assert len(copies) == label_next.N_PASSES and max(most) <= 2 and list(found) == ['size']
    np.testing.assert_allclose(found['size'], np.minimum(acts.std(0)[:, 0] / unit, 1), atol=1e-9)
    assert (found['size'] > 0).all()


def test_a_learner_of_estimators_asks_and_says_that_it_leaves_numbers_out():
    df = numbers_table()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        learn = fit_estimators(
            numbers_flow(), df, RandomForestClassifier(20, random_state=0), cont_names=['x', 'y'], seed=0
        )
    pool = df.assign(gate=np.nan, size=np.nan)
    with pytest.warns(FlowWarning, match="'size': how sure the model is of numbers is read off dropout"):
        found = asked(learn, pool, n=4)
    assert set(found.task_path) == {'gate'} and found.row.nunique() == 4
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for row, gain in zip(found.row, found.gain):
            p = learn.predict(pool.loc[row])[0].marginals['gate'].values
            assert gain == pytest.approx(entropy([p, 1 - p], base=2), abs=1e-5)


def test_the_network_stays_as_it_was(learn):
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    asked(learn, rows(5), n=2)
    assert all((before[k] == v).all() for k, v in learn.model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in learn.model.modules())


def test_texts_which_loaders_sort_by_length_keep_their_rows():
    "Each text has its own gain and its own features, whatever the order of the table"
    rng, words = np.random.default_rng(0), 'good bad food drink slow quick'.split()
    df = pd.DataFrame(dict(text=[' '.join(rng.choice(words, rng.integers(2, 40))) for _ in range(24)]))
    df['food'] = [1 * (text.count('food') > 2) for text in df.text]
    config = {**awd_lstm_clas_config, 'emb_sz': 8, 'n_hid': 8, 'n_layers': 1}
    dls = ConditionalTextDataLoaders.from_df(df, BinaryBlock('food'), seed=0, bs=8, num_workers=0)
    learn = conditional_text_learner(dls, AWD_LSTM, pretrained=False, config=config)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
        pool = df.assign(food=None)
        forth, back = features_of_rows(learn, pool), features_of_rows(learn, pool[::-1])[::-1]
        assert np.allclose(forth, back, atol=1e-4) and len(np.unique(forth.round(3), axis=0)) > 12
        found = learn.label_next(pool, n=24).set_index('row')
        for row in found.index[:5]:
            p = learn.predict(pool.text[row])[0].marginals['food'].values
            assert found.gain[row] == pytest.approx(entropy([p, 1 - p], base=2), abs=1e-4)


def test_a_pool_without_any_label_is_no_surprise(learn):
    "All columns absent: nobody was asked yet. One absent among others may be a mistake, and is told"
    table, cols = rows(6), [col for block in learn.dls.flow.tasks.values() for col in block.cols]
    blank = asked(learn, table.assign(**dict.fromkeys(cols, np.nan)), n=3)
    with warnings.catch_warnings():
        warnings.simplefilter('error', FlowWarning)
        assert asked(learn, table.drop(columns=cols, errors='ignore'), n=3).equals(blank)
    with pytest.warns(FlowWarning, match=f"no column '{cols[0]}'"):
        asked(learn, table.assign(**dict.fromkeys(cols[1:], np.nan)).drop(columns=cols[0], errors='ignore'), n=3)
