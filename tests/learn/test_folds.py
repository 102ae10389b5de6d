"""`fit_folds` and `Folds`: each learner is asked about the rows that it was not trained on, and no other"""

import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import DataBlock, IndexSplitter, Learner, TransformBlock
from torch import nn
from fastai_condmtl.all import *
from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders, conditional_tabular_learner

N = 40


def table(seed=0):
    rng = np.random.default_rng(seed)
    a = rng.random(N) < 0.5
    kind = pd.Series(rng.choice(list('uvw'), N)).where(a)
    df = pd.DataFrame(dict(x=rng.normal(size=N), a=1 * a, kind=kind, size=rng.normal(size=N), who=np.arange(N) // 2))
    return df.set_axis([f'row{i}' for i in range(N)])


def flow(vocab=tuple('uvw')):
    a = BinaryBlock('a')
    return Flow('f', a, SingleLabelBlock('kind', vocab=list(vocab)) | a, UnboundedRegressionBlock('size'))


def tabular(df, asked=None, **kwargs):
    "A function for `fit_folds`, which notes what it was asked for"

    def fit(valid_idx):
        if asked is not None:
            asked.append([int(i) for i in valid_idx])
        dls = ConditionalTabularDataLoaders.from_df(
            df, kwargs.get('flow', flow()), cont_names=['x'], bs=8, valid_idx=valid_idx
        )
        return conditional_tabular_learner(dls, [4], members=1)

    return fit


def test_each_row_is_in_the_validation_part_of_one_learner():
    df, asked = table(), []
    folds = fit_folds(tabular(df, asked), flow(), df, n=4, seed=1)
    assert asked == [list(valid) for _, valid in stratified_folds(flow(), df, 4, seed=1)]
    seen = []
    for learn, rows in folds.rows():
        seen += list(rows.index)
        train = set(learn.dls.train_ds.items.index)
        assert not train & set(rows.index) and train | set(rows.index) == set(df.index)
    assert sorted(seen) == sorted(df.index) and len(folds) == 4 and '4 learners of 3 tasks, 40 rows' in repr(folds)


def test_no_group_is_torn():
    df = table()
    folds = fit_folds(tabular(df), flow(), df, n=3, seed=0, group_col='who')
    fold_of = {row: k for k, (_, rows) in enumerate(folds.rows()) for row in rows.index}
    assert all(fold_of[f'row{i}'] == fold_of[f'row{i + 1}'] for i in range(0, N, 2))


def test_loaded_learners(tmp_path):
    "A learner from a file has no rows that could be compared; its predictions are those of before"
    df = table()
    folds = fit_folds(tabular(df), flow(), df, n=2, seed=0)
    for k, learn in enumerate(folds.learners):
        learn.path = tmp_path
        learn.export(f'{k}.pkl')
    loaded = [load(tmp_path / f'{k}.pkl') for k in range(2)]
    again = Folds(loaded, df, stratified_folds(flow(), df, 2, seed=0))
    for (one, rows), (other, same) in zip(folds.rows(), again.rows()):
        assert rows is not same and rows.equals(same)
        with one.no_bar(), other.no_bar():
            assert one.predict_df(rows).equals(other.predict_df(rows))


def load(file):
    from fastai.learner import load_learner

    return load_learner(file)


def other_flow():
    return Flow('f', BinaryBlock('a'), SingleLabelBlock('kind', vocab=list('uvw')), UnboundedRegressionBlock('size'))


def test_what_is_refused():
    df = table()
    parts = stratified_folds(flow(), df, 2, seed=0)
    learners = fit_folds(tabular(df), flow(), df, n=2, seed=0).learners
    of = lambda f, valid: tabular(df, flow=f)(valid)
    for given, says in (
        ((learners[0], df, parts), 'train two or more'),
        (([learners[0], 'x'], df, parts), 'fold 1: str is no Learner'),
        ((learners, df, parts[:1]), '1 fold and 2 learners'),
        ((learners, df[:10], parts), 'table of 10 rows'),
        ((learners, df, [parts[0], parts[0]]), 'of two folds'),
        ((learners, df, [valid for _, valid in parts]), 'a pair'),
        ((learners[::-1], df, parts), 'pass valid_idx=valid_idx'),
        ((learners, df.assign(a=1 - df.a), parts), 'fold 0: the validation rows'),
        (([learners[0], of(flow('uvwx'), parts[1][1])], df, parts), "task 'kind' has other classes, such as 'x'"),
        (([learners[0], of(other_flow(), parts[1][1])], df, parts), "task 'kind' has other conditions"),
        (([learners[0], of(Flow('f', BinaryBlock('a')), parts[1][1])], df, parts), "only the first has 'kind', 'size'"),
    ):
        with pytest.raises(FlowError, match=says):
            Folds(*given)
    with pytest.raises(FlowError, match='fold 0: the validation rows of the learner are not the'):
        fit_folds(lambda _: tabular(df)([1, 2, 3]), flow(), df, n=2)
    with pytest.raises(FlowError, match='n=1 folds'):
        fit_folds(tabular(df), flow(), df, n=1)


def test_points_and_weights_are_compared_as_the_loaders_read_them():
    "Rows with weights: the labels of the fold are those of the loader"
    df = table().assign(w=np.linspace(1, 2, N))
    weighted = Flow('f', BinaryBlock('a', weight_col='w'))

    def fit(valid_idx):
        block = DataBlock(
            blocks=(TransformBlock, weighted), get_x=lambda r: torch.tensor([r.x]), splitter=IndexSplitter(valid_idx)
        )
        return Learner(block.dataloaders(df, bs=8, num_workers=0), nn.Linear(1, 1))

    assert len(fit_folds(fit, weighted, df, n=2, seed=0)) == 2
