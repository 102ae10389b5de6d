"""A flow over a table, from raw rows to an exported learner. Reference values come from `flow.bind(df).encode(df)`,
from scikit-learn on what `predict_df` says,
from fastai's own tabular learner trained beside ours, and from the published rules of AI4I 2020 checked row by row."""

import contextlib, io, subprocess, sys, textwrap
import numpy as np, pandas as pd, pytest, torch
from sklearn import metrics as skm
from fastai.tabular.all import (
    BCEWithLogitsLossFlat,
    CategoryBlock,
    Categorify,
    CrossEntropyLossFlat,
    FillMissing,
    IndexSplitter,
    Normalize,
    RegressionBlock,
    TabularPandas,
    set_seed,
    tabular_learner,
)
from fastai_condmtl.datasets.machines import MACHINE_CATS, MACHINE_CONTS, MODES, machines, machines_flow
from fastai_condmtl.tabular.all import (
    BinaryBlock,
    BoundedRegressionBlock,
    Cleaner,
    ConditionalInterpretation,
    ConditionalTabularDataLoaders,
    ConditionalTensorBoard,
    FillGaps,
    Flow,
    FlowError,
    FlowPrediction,
    FlowWarning,
    MultiLabelBlock,
    SingleLabelBlock,
    UnboundedRegressionBlock,
    conditional_tabular_learner,
    rows_table,
)

pytestmark = pytest.mark.filterwarnings('ignore')
N = 400


def make_flow():
    late, why = BinaryBlock('late', vocab=('no', 'yes')), SingleLabelBlock('why')
    return Flow(
        'parcel',
        late,
        why | late,
        BoundedRegressionBlock('days', y_range=(0, 30)) | late,
        UnboundedRegressionBlock('cost') | why.eq('customs'),
        MultiLabelBlock('marks'),
        MultiLabelBlock('seen', cols=['door', 'bell']),
    )


def make_table(n=N, seed=0):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame(
        dict(
            weight=rng.gamma(2, 2, n).round(1),
            country=rng.choice(['DE', 'FR', 'IT'], n),
            express=rng.random(n) < 0.3,
            stops=rng.integers(0, 60, n),
        )
    )
    late = (df.weight > 3.5) & ~df.express
    df['late'] = np.where(late, 'yes', 'no')
    df['why'] = np.where(late, np.where(df.country == 'IT', 'customs', 'truck'), None)
    df['days'] = np.where(late, df.stops / 3, np.nan)
    df['cost'] = np.where(late & (df.country == 'IT'), df.weight * 10, np.nan)
    df['marks'] = [[m for m, on in (('heavy', w > 4), ('far', c != 'DE')) if on] for w, c in zip(df.weight, df.country)]
    df['door'], df['bell'] = (df.stops > 30) * 1.0, (df.weight > 2) * 1.0
    for c in ('late', 'why', 'days', 'weight', 'country', 'door', 'marks'):
        df.loc[rng.random(n) < 0.08, c] = None
    return df


CATS, CONTS = ('country', 'express'), ('weight', 'stops')  # fastai appends to a list it is given


def make_dls(df, flow=None, **kw):
    return ConditionalTabularDataLoaders.from_df(
        df, make_flow() if flow is None else flow, **(dict(seed=0, bs=64) | kw)
    )


@contextlib.contextmanager
def muted(learn):
    with learn.no_bar(), learn.no_logging(), contextlib.redirect_stdout(io.StringIO()):
        yield


@pytest.fixture(scope='module')
def df():
    return make_table()


@pytest.fixture(scope='module')
def learn(df):
    set_seed(0, reproducible=True)
    learn = conditional_tabular_learner(make_dls(df), [32])
    with muted(learn):
        learn.fit_one_cycle(12, 2e-2)
    return learn


# data


def test_packed_labels_are_those_of_the_flow(df):
    dls = make_dls(df)
    for ds in (dls.train_ds, dls.valid_ds):
        own = make_flow().bind(df, dls.train_ds.items.index).encode(df)[ds.items.index.to_numpy()]
        assert torch.equal(ds.packed(), own)
    assert sorted([*dls.train_ds.items.index, *dls.valid_ds.items.index]) == list(range(N))
    cat, cont, y = dls.train.one_batch()
    assert y.shape == (64, 2 * dls.flow.n_targets) and y.dtype == torch.float32 and dls.c == dls.flow.c


@pytest.mark.parametrize('reduce_memory', [True, False])
def test_a_stock_tabular_pandas_takes_the_flow(df, reduce_memory):
    "fastai shrinks types before it asks the block; lists in cells it cannot shrink at all"
    flow = Flow(
        'parcel',
        late := BinaryBlock('late', vocab=('no', 'yes')),
        SingleLabelBlock('why') | late,
        BoundedRegressionBlock('days', y_range=(0, 30)) | late,
        MultiLabelBlock('seen', cols=['door', 'bell']),
    )
    df = df.drop(columns='marks')
    df[[*CATS]] = df[[*CATS]].where(
        df[[*CATS]].notna(), np.nan
    )  # before pandas 3 a None stays one, and fastai cannot sort it
    to = TabularPandas(
        df,
        [Categorify, FillMissing, Normalize],
        [*CATS],
        [*CONTS],
        y_names=['late', 'why'],
        y_block=flow,
        splits=IndexSplitter(range(60))(df),
        reduce_memory=reduce_memory,
    )
    dls = to.dataloaders(bs=32)
    torch.testing.assert_close(dls.train_ds.packed(), flow.bind(df, range(60, N)).encode(df)[60:], atol=1e-6, rtol=1e-6)
    learn = tabular_learner(dls, [16])
    with muted(learn):
        learn.fit(1)
        pred = learn.predict(df.iloc[0])[0]
    assert isinstance(pred, FlowPrediction) and set(pred) == {'late', 'why', 'days', 'seen'}


def test_inputs_are_what_no_task_reads(df):
    dls = make_dls(df.assign(is_valid=[i < 50 for i in range(N)]), valid_col='is_valid')
    assert (list(dls.cat_names), list(dls.cont_names)) == (['country', 'express', 'weight_na'], [*CONTS])
    assert sorted(dls.valid_ds.items.index) == list(range(50))
    assert list(make_dls(df, cat_names=['country']).cont_names) == [*CONTS]
    assert list(make_dls(df, cont_names=['weight']).cat_names)[:2] == [*CATS]


def test_inputs_are_prepared_as_fastai_does(df):
    dls = make_dls(df, valid_idx=range(80))
    to = TabularPandas(
        df[[*CATS, *CONTS]],
        [Categorify, FillMissing, Normalize],
        [*CATS],
        [*CONTS],
        splits=IndexSplitter(range(80))(df),
    )
    for ours, stock in ((dls.train_ds, to.train), (dls.valid_ds, to.valid)):
        assert np.array_equal(ours.cats, stock.cats)
        np.testing.assert_allclose(ours.conts, stock.conts, rtol=1e-5)


def test_splits_and_two_tables_of_one_flow(df):
    flow = Flow('parcel', late := BinaryBlock('late', vocab=('no', 'yes')), SingleLabelBlock('why') | late)
    few = df[(df.why != 'customs')].reset_index(drop=True)
    a, b = (
        make_dls(df, flow, cat_names=CATS, cont_names=CONTS, stratify=True),
        make_dls(few, flow, cat_names=CATS, cont_names=CONTS, splitter=IndexSplitter([0, 1, 2])),
    )
    assert (a.c, b.c) == (3, 2) and a.loss_func is not b.loss_func and len(b.valid_ds) == 3
    assert make_dls(df, seed=3).valid_ds.items.index.equals(make_dls(df, seed=3).valid_ds.items.index)


def test_new_rows_with_gaps_and_unseen_categories(df, learn):
    "Gaps in columns that had none, types of other makes, and fastai's trap: codes of a categorical of these rows"
    new = df[:40].drop(columns=['late', 'why', 'days', 'cost', 'marks', 'door', 'bell'])
    plain = learn.dls.test_dl(new).dataset
    for other in (
        new.astype({'country': 'category'}).iloc[::-1],
        new.astype({'country': 'string', 'weight': 'Float64', 'stops': 'Int64'}).iloc[::-1],
        new.astype(object).iloc[::-1],
    ):
        ds = learn.dls.test_dl(other).dataset
        assert np.array_equal(ds.cats, plain.cats.iloc[::-1])
        np.testing.assert_allclose(ds.conts, plain.conts.iloc[::-1], rtol=1e-5)
    only = new[new.country == 'IT'].astype({'country': 'category'})
    assert (learn.dls.test_dl(only).dataset['country'] == 3).all()
    odd = new.assign(country='XX', stops=None)
    ds = learn.dls.test_dl(odd).dataset
    median = df.stops[learn.dls.train_ds.items.index].median()
    np.testing.assert_allclose(
        ds['stops'], (median - learn.dls.train_ds.means['stops']) / learn.dls.train_ds.stds['stops'], rtol=1e-4
    )
    assert (ds['country'] == 0).all()
    with muted(learn):
        assert len(learn.predict_df(odd)) == 40 and learn.predict_df(odd[:0]).shape == (0, 7)


def test_a_hundred_thousand_rows(learn):
    "Columns at once, also where rows are many"
    import time

    t = time.process_time()  # of this process: what runs beside it does not count
    df = machines(100_000, 1)
    dls = ConditionalTabularDataLoaders.from_df(
        df, machines_flow(), cat_names=MACHINE_CATS, cont_names=MACHINE_CONTS, seed=0, bs=4096
    )
    assert torch.equal(dls.train_ds.packed(), dls.flow.encode(df)[dls.train_ds.items.index.to_numpy()])
    assert sum(len(b[0]) for b in dls.valid) == 20_000
    assert time.process_time() - t < 15


# training


@pytest.mark.trains
def test_one_task_trains_as_plain_fastai():
    """Two classes by cross entropy, and yes or no by binary cross entropy: the same losses batch by batch with
    the same seeds"""
    df = (
        make_table(300)[[*CATS, *CONTS]]
        .fillna(dict(weight=1.0, country='DE'))
        .assign(y=lambda d: ((d.weight > 3) & ~d.express).map({True: 'a', False: 'b'}))
    )
    df['z'] = (df.y == 'a') * 1.0
    procs, splits = [Categorify, FillMissing, Normalize], IndexSplitter(range(60))(df)

    def losses(y_block, y_names, **kw):
        to = TabularPandas(df, procs, [*CATS], [*CONTS], y_names=y_names, y_block=y_block, splits=splits)
        set_seed(5, reproducible=True)
        learn = tabular_learner(to.dataloaders(bs=32), [16], **kw)
        set_seed(6, reproducible=True)
        with muted(learn):
            learn.fit(3, 1e-2)
        return np.array(learn.recorder.losses), np.array(learn.recorder.values)

    for flow, stock, name, loss in (
        (SingleLabelBlock('y'), CategoryBlock, 'y', CrossEntropyLossFlat()),
        (BinaryBlock('z'), RegressionBlock, 'z', BCEWithLogitsLossFlat()),
    ):
        ours, theirs = losses(flow, None), losses(stock, name, loss_func=loss)
        for a, b in zip(ours, theirs):
            np.testing.assert_allclose(a, b, rtol=1e-5)
        assert ours[0][-1] < ours[0][0]


def test_loss_reads_flat_targets(df, learn):
    dls = learn.dls
    cat, cont, y = dls.valid.one_batch()
    with torch.no_grad():
        pred = learn.model.eval()(cat, cont)
    assert torch.equal(dls.loss_func(pred, y), dls.loss_func(pred, y.reshape(len(y), 2, -1)))
    assert torch.equal(y.reshape(len(y), 2, -1), dls.valid_ds.packed()[: len(y)])


def untuned(learn):
    "The same weights with thresholds of .5"
    new = conditional_tabular_learner(learn.dls, [32], tune=None)
    new.model.load_state_dict(learn.model.state_dict())
    return new


@pytest.mark.trains
def test_evaluate_agrees_with_scikit_learn_on_what_predict_df_says(df, learn):
    rows, learn = df.loc[learn.dls.valid_ds.items.index], untuned(learn)
    with muted(learn):
        ev = learn.evaluate(metrics='accuracy').query("metric_name == 'accuracy'").set_index('task_path')
        pred = learn.predict_df(rows)
    assert list(pred.index) == list(rows.index)
    known = rows.late.notna()
    assert ev.metric_res['late'] == pytest.approx(skm.accuracy_score(rows.late[known], pred.late[known]))
    both = (rows.late == 'yes') & rows.why.notna() & pred.why.notna()
    assert (
        ev.cascade_res['why'] == pytest.approx(skm.accuracy_score(rows.why[both], pred.why[both]))
        and ev.cascade_samples['why'] == both.sum()
    )
    assert ev.metric_res['why'] > 0.85 and ev.num_samples['late'] == known.sum()
    with muted(learn):
        mae = learn.evaluate(metrics='mae').query("metric_name == 'mae'").set_index('task_path')
    asked = (rows.late == 'yes') & rows.days.notna() & pred.days.notna()
    assert mae.cascade_res['days'] == pytest.approx(
        skm.mean_absolute_error(rows.days[asked], pred.days[asked].astype(float)), rel=1e-4
    )


def test_predict_is_a_triple_with_a_prediction_first(df, learn):
    with muted(learn):
        table = learn.predict_df(df[:6])
        for row in (df.iloc[2], df.iloc[2].to_dict(), df.iloc[[2]]):
            pred, dec, acts = learn.predict(row)
            assert dec.shape == (2, learn.dls.flow.n_targets) and acts.shape == (learn.dls.c,)
            assert pred['late'] == table.late[2] and (pred['why'] if pred['why'] else None) == (
                None if pd.isna(table.why[2]) else table.why[2]
            )
            assert 0 <= pred.probabilities['late'] <= 1
        x, *_ = learn.predict(df.iloc[2], with_input=True)
    assert x.country == df.country[2] and x.stops == pytest.approx(df.stops[2], abs=1e-3) and 'weight_na' not in x


def test_everything_else_of_the_library(df, learn, capsys):
    with muted(learn):
        assert set(learn.cascade_report().task_path) <= {'why', 'days', 'cost'}
        assert list(learn.search_thresholds().columns)[:4] == ['task_path', 'label', 'threshold', 'score']
        marg = learn.get_marginals(df[:5])
        assert np.allclose(marg['why', 'P(reached)'], marg['late', 'yes']) and marg.shape[0] == 5
        gaps = df.assign(why=None)
        filled, cells, report = learn.fill_labels(gaps, min_confidence=0.0)
        assert cells.why.sum() == report.set_index('task_path').filled['why'] == filled.why.notna().sum() > 0 and set(
            filled.why.dropna()
        ) <= {'customs', 'truck'}
        clean = Cleaner(learn, df, k=2, tasks=['late', 'why'])
        assert set(clean.table.task_path) <= {'late', 'why'}
        tree = learn.explain(df[:3])
        assert tree.contains((0, 'late'))
        assert learn.explain(max_n=2).contains((1, 'late'))
        cal = untuned(learn)
        with muted(cal):
            assert len(cal.calibrate()) == 4
    interp = ConditionalInterpretation.from_learner(learn)
    loss, rows = interp.top_losses('why', 3)
    with learn.no_bar():
        raw, y = learn.get_preds()
    own = learn.loss_func.per_sample(raw_logits(learn), y)[:, learn.dls.flow.paths.index('why')]
    torch.testing.assert_close(loss, own[rows])
    assert loss[0] == own[~own.isnan()].max()
    assert interp.confusion_matrix('why').sum() == (~own.isnan()).sum()
    capsys.readouterr()
    interp.plot_top_losses('why', 2)
    assert f'(row {rows[0]})' in capsys.readouterr().out


def raw_logits(learn):
    with learn.no_bar(), learn.no_logging():
        return learn.get_preds(act=torch.nn.Identity())[0]


def test_shown_rows_are_readable(df, learn, capsys):
    b = learn.dls.valid.one_batch()
    x = learn.dls.valid.show_batch(b, show=False)[0]
    first = df.loc[learn.dls.valid_ds.items.index[0]]
    res, css = rows_table(x)
    assert (
        res.country[0] == ('' if pd.isna(first.country) else first.country)
        and res.stops[0] == str(first.stops)
        and res.express[0] == ('yes' if first.express else 'no')
    )
    assert res.late[0] == ('' if pd.isna(first.late) else first.late)
    shown, rows = rows_table(x, max_n=64)[0], df.loc[learn.dls.valid_ds.items.index[:64]]
    assert (
        shown.weight.eq('') == rows.weight.isna().to_numpy()
    ).all() and rows.weight.isna().any()  # a gap that was filled is told as a gap
    y = x.packed().clone()
    y[:, 0, 0] = 1 - y[:, 0, 0]
    res, css = rows_table(x, y)
    known = x.packed()[:10, 1, 0].bool().numpy()
    assert (res.late.str.startswith('✗') == known).all() and (css.late.str.contains('crimson') == known).all()
    capsys.readouterr()
    with learn.no_bar():
        learn.show_results(max_n=3)
        learn.dls.show_batch(max_n=3)
    out = capsys.readouterr().out
    assert out.count('country') == 2 and '<' not in out
    import fastai.text.all, fastai.vision.all  # noqa: F401  loosely typed methods that are registered later must not win

    with learn.no_bar():
        learn.show_results(max_n=2)
    assert 'country' in capsys.readouterr().out


def test_tracking_writes_a_table_learner(df, tmp_path):
    pytest.importorskip('tensorboard')
    learn = conditional_tabular_learner(make_dls(df), [8], cbs=ConditionalTensorBoard(tmp_path, n=2))
    with muted(learn):
        learn.fit(1)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    acc = EventAccumulator(str(tmp_path))
    acc.Reload()
    assert 'why/valid_loss' in acc.Tags()['scalars'] and any('worst' in t for t in acc.Tags()['tensors'])


def test_a_learner_is_loaded_in_a_new_process(df, learn, tmp_path):
    "Ours, and a stock learner on a stock table"
    d = df.drop(columns='marks')
    flow = Flow('parcel', late := BinaryBlock('late', vocab=('no', 'yes')), SingleLabelBlock('why') | late)
    stock = tabular_learner(
        TabularPandas(
            d, [Categorify, FillGaps, Normalize], [*CATS], [*CONTS], y_block=flow, splits=IndexSplitter(range(60))(d)
        ).dataloaders(bs=32),
        [16],
    )
    with muted(stock):
        stock.fit(2, 1e-2)
    df[:8].to_pickle(tmp_path / 'rows.pkl')
    for name, l in (('ours', learn), ('stock', stock)):
        (tmp_path / name).mkdir()
        l.export(tmp_path / name / 'l.pkl')
        with muted(l):
            want, text = l.predict_df(df[:8]), str(l.explain(df[:2]))
        want.to_pickle(tmp_path / name / 'want.pkl')
        (tmp_path / name / 'text').write_text(text, encoding='utf-8')
    code = textwrap.dedent('''
        import sys, warnings; warnings.filterwarnings('ignore')
        from pathlib import Path
        import pandas as pd, torch; torch.set_num_threads(1)
        from fastai.learner import load_learner
        df = pd.read_pickle(Path(sys.argv[1])/'rows.pkl')
        for d in (Path(sys.argv[1])/'stock', Path(sys.argv[1])/'ours'):
            learn = load_learner(d/'l.pkl')
            assert not len(learn.dls.train_ds)
            pred = learn.predict(df.iloc[0])[0]
            assert type(pred).__name__ == 'FlowPrediction'
            with learn.no_bar():
                pd.testing.assert_frame_equal(learn.predict_df(df), pd.read_pickle(d/'want.pkl'))
                assert str(learn.explain(df[:2])) == (d/'text').read_text(encoding='utf-8')
                assert len(learn.evaluate(dl=learn.dls.test_dl(df, with_labels=True), metrics=None)) >= 2
                learn.show_results(dl=learn.dls.test_dl(df, with_labels=True), max_n=2)
        print('good')''')
    res = subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True)
    assert res.stdout.strip().endswith('good'), res.stderr[-2000:]


def test_labels_of_new_rows(df, learn):
    with_, without = learn.dls.test_dl(df[:50], with_labels=True), learn.dls.test_dl(df[:50])
    assert torch.equal(with_.dataset.packed(), learn.dls.flow.encode(df[:50])) and len(without.one_batch()) == 2
    with pytest.warns(UserWarning, match="no column 'why' in the table"):
        part = learn.dls.test_dl(df[:50].drop(columns='why'), with_labels=True).dataset.packed()
    assert part[:, 1, learn.dls.flow.slices['why'].targets].sum() == 0 and part[:, 1, 0].sum() > 0
    with muted(learn), pytest.raises(FlowError, match='no labels to compare with'):
        learn.evaluate(dl=without)


# bad input


@pytest.mark.parametrize(
    'kw, text',
    [
        (dict(cont_names=['weight', 'days']), 'would be given away'),
        (dict(cat_names=['door']), 'would be given away'),
        (dict(cat_names=['contry']), "did you mean 'country'"),
        (dict(cat_names='country'), r"write \['country'\]"),
        (dict(cat_names=['country'], cont_names=['country']), 'keep it in one of them'),
        (dict(cat_names=[], cont_names=['country']), "input 'country', row 0"),
        (dict(procs=[Categorify, Normalize]), "column 'weight' has blanks that nothing fills"),
        (dict(valid_pct=1.5), 'share of the rows'),
        (dict(valid_col='x'), "valid_col='x'"),
    ],
)
def test_wrong_arguments(df, kw, text):
    with pytest.raises(FlowError, match=text):
        make_dls(df, **kw)


@pytest.mark.parametrize(
    'change, text',
    [
        (lambda d: d[:0], 'the table is empty'),
        (lambda d: d.assign(sent=pd.Timestamp('2024-01-01')), r"add_datepart\(df, 'sent'\)"),
        (lambda d: d[['late', 'why', 'days', 'cost', 'marks', 'door', 'bell']], 'there is no input'),
        (lambda d: d.assign(bag=[[1]] * N), 'say which columns are inputs'),
        (lambda d: d.assign(weight=np.inf), "input 'weight', row 0"),
        (lambda d: d.assign(weight=np.nan), "'weight' holds no number in the training rows"),
        (
            lambda d: d.assign(late=['yes'] * 11 + ['maybe'] + ['no'] * (N - 12)),
            "task 'late', row 11, column 'late', value 'maybe'",
        ),
        (lambda d: d.drop(columns='why'), "reads column 'why'"),
        (lambda d: pd.concat([d, d.country], axis=1), 'stands twice'),
    ],
)
def test_wrong_tables(df, change, text):
    with pytest.raises(FlowError, match=text):
        make_dls(change(df))


def test_a_stock_table_gives_no_answer_away(df):
    d = df.drop(columns='marks')
    flow = Flow('f', BinaryBlock('late', vocab=('no', 'yes')))
    with pytest.raises(FlowError, match='is an input as well'):
        TabularPandas(d, [Categorify], ['country', 'late'], ['stops'], y_block=flow)
    with pytest.raises(FlowError, match='leave y_names= out'):
        TabularPandas(d, [Categorify], ['country'], ['stops'], y_names='why', y_block=flow)


def test_wrong_rows(df, learn):
    with muted(learn):
        with pytest.raises(FlowError, match="no column 'stops'"):
            learn.predict(df.drop(columns='stops').iloc[0])
        with pytest.raises(FlowError, match="input 'stops', row 1, value 'many'"):
            learn.predict_df(pd.DataFrame(dict(weight=[1.0, 2.0], country='DE', express=True, stops=[1, 'many'])))
        with pytest.raises(FlowError, match='predict_df'):
            learn.predict(df[:2])
        with pytest.raises(FlowError, match='a dict of the inputs'):
            learn.predict('DE')
    to = TabularPandas(
        df.drop(columns='marks'), [Categorify, FillMissing, Normalize], [*CATS], ['stops'], y_block=BinaryBlock('door')
    )
    with pytest.raises(FlowError, match='FillGaps'):
        to.dataloaders(bs=8).test_dl(df[:3].assign(stops=None))


def test_processed_rows_are_no_rows_of_the_table(df, learn):
    "Codes and scaled numbers are not encoded and scaled again; rows of the table are taken, whatever has been asked"
    items = learn.dls.valid.items
    asked = [
        learn.predict_df,
        learn.evaluate,
        lambda rows: Cleaner(learn, rows),
        lambda rows: learn.predict(rows.iloc[0]),
        lambda rows: learn.get_preds(dl=rows),
    ]
    for rows in (items, items.iloc[3:9], learn.dls.train.items.sample(5, random_state=0), items.copy()):
        for ask in asked:
            with (
                muted(learn),
                pytest.raises(FlowError, match=r'already processed.*df\.loc\[dls\.valid\.items\.index\]'),
            ):
                ask(rows)
    unlabelled = ConditionalTabularDataLoaders.test_dl(learn.dls, df)
    learn.dls.loaders.append(unlabelled)
    try:
        with pytest.raises(FlowError, match='already processed'):
            learn.dls.test_dl(unlabelled.items)
    finally:
        learn.dls.loaders.pop()
    with muted(learn):
        own = learn.predict_df(df.loc[items.index])
        for rows in (learn.dls.valid.dataset.inputs(), df.loc[items.index].assign(weight_na=False)):
            pd.testing.assert_frame_equal(learn.predict_df(rows)[own.columns], own)
    assert len(learn.dls.test_dl(items, process=False).items) == len(items)


@pytest.mark.parametrize('gaps', [False, True])
def test_a_boolean_is_known_however_it_is_written(df, gaps):
    table = df.assign(express=df.express.astype(object).where(df.index % 7 > 0)) if gaps else df
    dls = make_dls(table)
    want = dls.test_dl(df).dataset['express'].tolist()
    assert [*dls.train_ds.classes['express']] == ['#na#', False, True] and want == (df.express + 1).tolist()
    for dtype in (int, float, str, object, 'boolean', 'Int64', 'category', 'string', 'float32'):
        assert dls.test_dl(df.assign(express=df.express.astype(dtype))).dataset['express'].tolist() == want, dtype
    some = pd.Series([True, 1, '0', ' false', 'TRUE', None, 2, 'yes', np.nan, 0.0], dtype=object)
    ds = dls.test_dl(df[:10].assign(express=some)).dataset
    assert ds['express'].tolist() == [2, 2, 1, 1, 2, 0, 0, 0, 0, 1]
    assert [dls.test_dl(dict(df.iloc[0], express=x)).dataset['express'].item() for x in (1, 'True', 0)] == [2, 2, 1]
    texts = make_dls(df.assign(express=df.express.astype(str)))
    assert texts.test_dl(df.assign(express='True')).dataset['express'].tolist() == [2] * N


@pytest.mark.filterwarnings('error::fastai_condmtl.core.errors.FlowWarning')
def test_a_category_of_which_no_value_is_known_is_told(df):
    dls = make_dls(df.assign(stops=df.stops.astype(str)), cat_names=['country', 'stops', 'express'])
    with pytest.warns(FlowWarning, match=r"input 'stops': none of its 400 values.*'?\d+ is not one of '0', '1'"):
        assert (dls.test_dl(df).dataset['stops'] == 0).all()
    with pytest.warns(FlowWarning, match="input 'express'.*'maybe' is not one of False, True; write"):
        dls.test_dl(df.assign(stops=df.stops.astype(str), express='maybe'))
    good = df.assign(stops=df.stops.astype(str))
    for fine in (
        good,
        good.assign(country=['XX'] * (N - 1) + ['IT']),
        good.assign(country=None),
        good[:1].assign(country='XX'),
        good[:0],
    ):
        dls.test_dl(fine)


def test_an_id_among_the_inputs_is_told(df):
    with pytest.warns(UserWarning, match="column 'parcel' has 400 different values"):
        make_dls(df.assign(parcel=[f'p{i}' for i in range(N)]))


# machines


def check_rules(df, margin=0.0):
    "AI4I's published rules, row by row; temperatures within `margin` of 8.6 K are left out"
    wear, torque, speed = df['Tool wear [min]'], df['Torque [Nm]'], df['Rotational speed [rpm]']
    gap = (df['Process temperature [K]'] - df['Air temperature [K]']).round(1)
    power, limit = torque * speed * 2 * np.pi / 60, df.Type.map(dict(L=11000, M=12000, H=13000))
    sure = (gap - 8.6).abs() >= margin
    assert (df.HDF.eq(1) == ((gap < 8.6) & (speed < 1380)))[sure].all()
    assert (df.PWF.eq(1) == ((power < 3500) | (power > 9000))).all()
    assert (df.OSF.eq(1) == (wear * torque > limit)).all()
    step = df.Type.map(dict(L=2, M=3, H=5))[:-1].to_numpy()
    up = wear.diff()[1:].to_numpy()
    new = wear[1:].to_numpy() == 0
    assert (
        (up[~new] == step[~new]).all()
        and (wear[:-1][new] >= 198).all()
        and set(np.flatnonzero(df.TWF[:-1])) <= set(np.flatnonzero(new))
    )


def test_machines_follow_the_published_rules():
    for seed in (0, 1):
        check_rules(machines(seed=seed))
    df = machines(seed=2)
    assert (df['Machine failure'].eq(1) == df[[*MODES, 'RNF']].any(axis=1)).all()
    assert df['Air temperature [K]'].std() == pytest.approx(2, abs=0.02) and df['Torque [Nm]'].min() > 0


@pytest.mark.data
def test_machines_look_like_the_real_file(shared_data):
    path = shared_data / 'ai4i2020.csv'
    if not path.exists():
        pytest.skip(f'no {path}')
    real, ours = pd.read_csv(path), pd.concat([machines(seed=s) for s in range(6)])
    assert list(real.columns) == list(ours.columns)
    check_rules(real, margin=0.05)  # the file was rounded after its rules had looked
    pd.testing.assert_series_equal(
        ours.Type.value_counts(normalize=True), real.Type.value_counts(normalize=True), atol=0.01, check_names=False
    )
    for d in (real, ours):
        d['Process temperature [K]'] -= d['Air temperature [K]']  # two random walks may lean on each other, or not
    for c in MACHINE_CONTS:
        assert ours[c].mean() == pytest.approx(real[c].mean(), abs=0.1 * real[c].std()) and ours[
            c
        ].std() == pytest.approx(real[c].std(), rel=0.25), c
    for c, tolerance in dict(TWF=0.5, HDF=0.7, PWF=0.3, OSF=0.5, **{'Machine failure': 0.3}).items():
        assert ours[c].mean() == pytest.approx(real[c].mean(), rel=tolerance), c


@pytest.mark.trains
@pytest.mark.data
def test_the_real_file_trains(shared_data):
    path = shared_data / 'ai4i2020.csv'
    if not path.exists():
        pytest.skip(f'no {path}')
    set_seed(0, reproducible=True)
    dls = ConditionalTabularDataLoaders.from_csv(
        path, machines_flow(), cat_names=MACHINE_CATS, cont_names=MACHINE_CONTS, stratify=True, seed=0, bs=128
    )
    assert (
        dls.valid_ds.packed()[:, 1, 1].sum() == pd.read_csv(path)['Machine failure'].loc[dls.valid_ds.items.index].sum()
    )
    learn = conditional_tabular_learner(dls, [64, 32])
    with muted(learn):
        learn.fit_one_cycle(4, 1e-2)
        ev = (
            learn.evaluate(metrics='average_precision')
            .query("metric_name == 'average_precision'")
            .set_index('task_path')
        )
    assert (ev.metric_res > ev.baseline + 0.3).all()


def test_decoded_tables_hold_the_labels_that_count(df):
    "Inputs as fastai decodes them, labels in the table's words; blank where a label does not count."
    dls = make_dls(df)
    y, s = dls.valid_ds.packed(), dls.flow.slices
    back = dls.valid_ds.decode()  # as fastai has it: in place
    at = back.items.index
    assert list(back.y_names) == [c for b in dls.flow.tasks.values() for c in b.cols]
    for p in ('late', 'why', 'days'):
        path = dls.flow.path(p)
        for i, row in enumerate(at):
            got, counts = back.items.at[row, p], bool(y[i, 1, s[path].targets.start])
            assert (
                (
                    got == pytest.approx(df.at[row, p], abs=1e-3)
                    if p == 'days'
                    else got == df.at[row, p] or got is True and df.at[row, p] == 'yes'
                )
                if counts
                else pd.isna(got)
            ), (p, row, got)
    assert set(back.items.country.dropna()) <= {'DE', 'FR', 'IT', '#na#'} and len(back) == len(dls.valid_ds)


# numbers, dates and rows as they stand in the table


def test_decimals_as_categories_and_large_numbers_stay_apart():
    rng, n = np.random.default_rng(0), 400
    d = pd.DataFrame(
        dict(
            dose=rng.choice([0.1, 0.2, 0.3], n),
            key=rng.choice([100000001.0, 100000002.0, 100000003.0], n),
            t=1.7e9 + rng.uniform(0, 3600, n),
        )
    )
    dls = make_dls(d.assign(y=d.dose > 0.15), BinaryBlock('y'), cat_names=['dose', 'key'], cont_names=['t'])
    assert list(dls.train_ds.classes['dose']) == ['#na#', 0.1, 0.2, 0.3] and list(dls.train_ds.classes['key']) == [
        '#na#',
        100000001.0,
        100000002.0,
        100000003.0,
    ]
    new = dls.test_dl(d).dataset.items
    assert new.dose.tolist() == [{0.1: 1, 0.2: 2, 0.3: 3}[v] for v in d.dose] and new.key.tolist() == [
        int(v - 1e8) for v in d.key
    ]
    train, b = d.t.iloc[dls.train_ds.items.index], dls.train.one_batch()
    np.testing.assert_allclose(new.t, (d.t - train.mean()) / train.std(ddof=0), atol=1e-6)
    assert b[0].dtype == torch.int64 and b[1].dtype == torch.float32


def test_decimals_as_categories_are_known_in_new_rows():
    rng, n = np.random.default_rng(0), 400
    d = pd.DataFrame(dict(dose=rng.choice([0.1, 0.2, 0.3], n), x=rng.normal(size=n)))
    set_seed(0, reproducible=True)
    learn = conditional_tabular_learner(
        make_dls(d := d.assign(y=d.dose > 0.15), BinaryBlock('y'), cat_names=['dose'], cont_names=['x']), [20]
    )
    with muted(learn):
        learn.fit_one_cycle(8, 1e-2)
        assert skm.accuracy_score(d.y, learn.predict_df(d.drop(columns='y')).y.astype(bool)) == 1


DATES = dict(
    dates=lambda n: pd.to_datetime('2024-01-01') + pd.to_timedelta(np.arange(n), 'D'),
    zones=lambda n: pd.date_range('2024-01-01', periods=n, tz='UTC'),
    durations=lambda n: pd.to_timedelta(np.arange(n), 's'),
    objects=lambda n: pd.Series(pd.date_range('2024-01-01', periods=n)).dt.date.astype(object),
    periods=lambda n: pd.period_range('2024-01', periods=n, freq='M'),
)


@pytest.mark.parametrize('kind', DATES)
def test_dates_and_durations_are_no_numbers(kind):
    d = pd.DataFrame(dict(x=np.arange(60.0)))
    d = d.assign(y=d.x > 30, when=DATES[kind](60))
    d.loc[3, 'when'] = None
    for names in (dict(cat_names=[], cont_names=['x', 'when']), {}, dict(cat_names=[])):
        with pytest.raises(
            FlowError, match=r"input 'when' holds dates or durations: df = add_datepart\(df, 'when'\) first"
        ):
            make_dls(d, BinaryBlock('y'), **names)
    learn = make_dls(d.drop(columns='when').assign(when=1.0), BinaryBlock('y'), cat_names=[], cont_names=['x', 'when'])
    with pytest.raises(FlowError, match="input 'when' holds dates"):
        learn.test_dl(d.drop(columns='y'))


@pytest.mark.parametrize(
    'cats, conts', [(['b', 'a'], ['y', 'x']), (['a', 'b'], ['x', 'y']), (['b', 'a'], []), ([], ['y', 'x'])]
)
def test_inputs_are_named_in_any_order(cats, conts):
    d = pd.DataFrame(
        dict(a=list('uv') * 20, b=list('wxyz') * 10, x=np.arange(40.0), y=np.arange(40.0)[::-1], t=[0, 1] * 20)
    )
    dls = make_dls(d, BinaryBlock('t'), cat_names=cats, cont_names=conts, procs=[Categorify], bs=8)
    rows = dls.valid_ds.items.index
    got = dls.valid.one_batch()
    for j, c in enumerate(cats):
        assert [dls.classes[c][k] for k in got[0][:, j]] == d[c].loc[rows].tolist()[: len(got[0])]
    for j, c in enumerate(conts):
        assert got[1 if cats else 1][:, j].tolist() == d[c].loc[rows].tolist()[: len(got[-1])]


def test_a_bad_label_is_named_by_its_row_in_a_shuffled_table():
    d = pd.DataFrame(dict(x=np.arange(50.0), y=[0, 1] * 25)).sample(frac=1, random_state=1).astype(dict(y=object))
    d.iloc[7, 1] = 'maybe'
    for splits in (
        dict(valid_idx=list(range(20))),
        dict(seed=3),
        dict(splitter=lambda o: (list(range(30, 49)), [7, 3])),
    ):
        with pytest.raises(FlowError, match=rf"task 'y', row 7 \(index {d.index[7]}\), column 'y', value 'maybe'"):
            make_dls(d, BinaryBlock('y'), **splits)
    d.iloc[7, 1] = 1
    dls = make_dls(d, BinaryBlock('y'), splitter=lambda o: (list(range(30, 49)), [7, 3]), bs=8)
    assert (
        dls.train_ds.packed()[:, 0, 0].tolist() == d.y.iloc[30:49].tolist()
        and dls.valid_ds.packed()[:, 0, 0].tolist() == d.y.iloc[[7, 3]].tolist()
    )


def test_weights_of_rows_are_read_and_are_no_input():
    d = pd.DataFrame(dict(x=np.arange(50.0), y=[0, 1] * 25, w=np.linspace(0, 3, 50)))
    dls = make_dls(d, Flow('f', BinaryBlock('y'), weight_col='w'), bs=8)
    assert list(dls.cont_names) == ['x'] and list(dls.cat_names) == []
    np.testing.assert_allclose(dls.train_ds.packed()[:, 1, 0], d.w.iloc[dls.train_ds.items.index], rtol=1e-6)


def test_a_table_by_hand_keeps_the_decimals_of_its_labels():
    d = pd.DataFrame(dict(x=np.arange(60.0), dose=[0.1, 0.2, 0.3] * 20, y=[0, 1] * 30))
    dose = SingleLabelBlock('dose')
    flow, splits = Flow('f', dose, BinaryBlock('y') | dose.eq(0.1)), IndexSplitter(range(20))(d)
    with pytest.raises(
        FlowError,
        match=r"task 'dose': column 'dose' has been rounded to float32, .*TabularPandas\(..., reduce_memory=False\)",
    ):
        TabularPandas(d, [Normalize], [], ['x'], y_block=flow, splits=splits)
    to = TabularPandas(d, [Normalize], [], ['x'], y_block=flow, splits=splits, reduce_memory=False)
    assert torch.equal(to.packed(), flow.bind(d, range(20, 60)).encode(d)[[*range(20, 60), *range(20)]])
    lists = pd.DataFrame(dict(x=np.arange(60.0), tags=[['a'], ['a', 'b'], []] * 20))
    to = TabularPandas(
        lists, [Normalize], [], ['x'], y_block=MultiLabelBlock('tags'), splits=splits, reduce_memory=False
    )
    assert to.packed()[:3, 0].tolist() == [[0, 0], [1, 0], [1, 1]]


def test_csv_lines_that_end_in_a_comma(tmp_path):
    f = tmp_path / 't.csv'
    lines = [f'{i},{i % 3},{int(i > 20)}' for i in range(40)]
    dls = {}
    for end in ('', ','):
        f.write_text('\n'.join(['x,k,y', *(l + end for l in lines)]))
        dls[end] = ConditionalTabularDataLoaders.from_csv(
            f, BinaryBlock('y'), cat_names=['k'], cont_names=['x'], seed=0, bs=8
        )
    assert dls[''].train_ds.items.equals(dls[','].train_ds.items)
    f.write_text('\n'.join(['x,k,y', *(l + ',' for l in lines), '1,2,0,left over']))
    with pytest.raises(FlowError, match="lines of '.*t.csv' hold more cells than the first line names columns"):
        ConditionalTabularDataLoaders.from_csv(f, BinaryBlock('y'))


@pytest.mark.parametrize('balance', ['uncertainty', 'dwa'])
def test_balance_as_in_other_applications(df, balance):
    from fastai_condmtl.callback.balance import TaskBalance

    learn = conditional_tabular_learner(make_dls(df), [8], balance=balance)
    assert sum(isinstance(cb, TaskBalance) for cb in learn.cbs) == 1
    with muted(learn):
        learn.fit(1, 1e-3)
    assert np.isfinite(learn.recorder.values[-1][:2]).all()


def test_without_ipython():
    "A plain install has none: it imports, and shows text"
    code = """
    import sys
    class Block:
        def find_spec(self, name, *_):
            if name.split('.')[0] == 'IPython': raise ImportError(name)
    sys.meta_path.insert(0, Block())
    import pandas as pd
    from fastai_condmtl.tabular.all import *
    df = pd.DataFrame(dict(weight=range(20), late=[0, 1]*10))
    dls = ConditionalTabularDataLoaders.from_df(df, BinaryBlock('late'), bs=4, seed=0)
    dls.show_batch(max_n=2)
    print('IPython' in sys.modules)
    """
    res = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )
    assert res.returncode == 0, res.stderr
    lines = res.stdout.split('\n')
    assert lines[0].split() == ['weight', 'late'] and lines[1].split()[1] in ('yes', 'no') and lines[3] == 'False'


def test_data_of_another_table_stay_as_they_are():
    "A learner reads rows by its own processors; the loader that it was handed can be read again"
    df = pd.DataFrame(dict(kind=['a', 'b', 'c', 'd'] * 25, size=np.arange(100) * 1.0, good=[0.0, 1, 1, 0] * 25))
    make = lambda rows: ConditionalTabularDataLoaders.from_df(rows, Flow('f', BinaryBlock('good')), seed=0, bs=16)
    learn, other = conditional_tabular_learner(make(df), [8]), make(df[df.kind != 'a'])
    before = other.valid_ds.items.copy()
    with learn.no_bar():
        first = learn.get_preds(dl=other.valid)
        assert before.equals(other.valid_ds.items)
        for a, b in zip(first, learn.get_preds(dl=other.valid)):
            assert torch.equal(a.as_subclass(torch.Tensor), b.as_subclass(torch.Tensor))


def test_rows_are_told_apart_by_inputs_as_the_table_has_them():
    "A loader has inputs scaled, filled and numbered: its groups are those of the table, or an error"
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(age=rng.choice([20.0, 30.0, np.nan], 80), city=rng.choice(['x', 'y', None], 80)))
    df['a'] = rng.integers(0, 2, 80)
    dls = ConditionalTabularDataLoaders.from_df(
        df, BinaryBlock('a'), cont_names=['age'], cat_names=['city'], valid_idx=range(30), bs=16
    )
    learn = conditional_tabular_learner(dls, [4])
    new = df.assign(city=df.city.where(np.arange(80) % 4 > 0, 'new'))

    def told(rows, by):
        name = by if isinstance(by, str) else by.name
        return learn.evaluate(rows, by=by, metrics='accuracy').set_index(name).num_samples.to_dict()

    plain = lambda groups: {None if pd.isna(group) else group: n for group, n in groups.items()}
    with learn.no_bar():
        for rows in (df, new):
            for by in ('age', 'city'):
                assert plain(told(rows, by)) == plain(rows[by].value_counts(dropna=False))
        assert plain(told(None, 'city')) == plain(df.city[:30].value_counts(dropna=False))
        assert plain(told(None, df.age[:30])) == plain(df.age[:30].value_counts(dropna=False))
        with pytest.raises(FlowError, match="column 'age' is an input of numbers, which tabular data keeps scaled"):
            learn.evaluate(by='age')
    with pytest.raises(FlowError, match="column 'age' is an input of numbers"):
        dls.balanced('age')
    drawn = dls.balanced('city', seed=0).train
    cities = df.city[30:].iloc[np.concatenate([drawn.get_idxs() for _ in range(40)])].value_counts(dropna=False)
    assert cities['x'] / cities['y'] == pytest.approx(1, abs=0.15)
    blank = cities[cities.index.isna()].sum() / cities.sum()  # rows without a city come as often as before
    assert blank == pytest.approx(df.city[30:].isna().mean(), abs=0.05)
