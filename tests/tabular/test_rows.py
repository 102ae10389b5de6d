"""Two inputs, one flow: cards whose shape only the picture shows and whose team only the table tells. What a network
uses is seen by taking one input away; prepared
rows are compared with fastai's `TabularPandas`."""

import contextlib, io, subprocess, sys, textwrap
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, torch
from PIL import Image, ImageDraw
from sklearn import metrics as skm
from torch import nn
from fastai.tabular.all import Categorify, FillMissing, TabularPandas
from fastai.vision.all import (
    ColReader,
    DataBlock,
    ImageBlock,
    ImageDataLoaders,
    IndexSplitter,
    Learner,
    Normalize,
    aug_transforms,
    noop,
    set_seed,
)
from fastai_condmtl.tabular.all import (
    BinaryBlock,
    ConditionalInterpretation,
    ConditionalTensorBoard,
    Flow,
    FlowError,
    FlowPrediction,
    JoinedModel,
    RowModel,
    SingleLabelBlock,
    TabularRowBlock,
    TensorRow,
    conditional_image_tabular_learner,
    equip,
)

pytestmark = pytest.mark.filterwarnings('ignore')
N, VALID = 320, 80


@contextlib.contextmanager
def muted(learn):
    with learn.no_bar(), learn.no_logging(), contextlib.redirect_stdout(io.StringIO()):
        yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('cards')


@pytest.fixture(scope='module')
def df(folder):
    rng, rows = np.random.default_rng(0), []
    for i in range(N):
        square, town, cents = rng.random() < 0.5, str(rng.choice(['Ulm', 'Bonn', 'Kiel'])), float(rng.integers(60, 140))
        im = Image.new('RGB', (24, 24), (30, 30, 40))
        x, y = rng.integers(1, 10, 2).tolist()
        getattr(ImageDraw.Draw(im), 'rectangle' if square else 'ellipse')([x, y, x + 12, y + 12], fill=(230, 200, 80))
        im.save(folder / f'{i}.png')
        team = 'blue' if town == 'Ulm' or cents > 110 else 'red'
        rows.append(
            dict(
                img=f'{i}.png',
                town=town,
                cents=cents,
                shape='square' if square else 'disc',
                team=team,
                prize=float(square) if team == 'red' else np.nan,
            )
        )
    df = pd.DataFrame(rows)
    for c in ('cents', 'shape', 'team'):
        df.loc[(np.random.default_rng(1).random(N) < 0.1) & (df.index >= (VALID if c == 'cents' else 0)), c] = None
    return df


def make_flow():
    return Flow(
        'card', SingleLabelBlock('shape'), team := SingleLabelBlock('team'), BinaryBlock('prize') | team.eq('red')
    )


def make_block(folder, **kw):
    return DataBlock(
        **(
            dict(
                blocks=(ImageBlock, TabularRowBlock(['town'], ['cents']), make_flow()),
                n_inp=2,
                get_x=[ColReader('img', pref=f'{folder}/'), noop],
                splitter=IndexSplitter(range(VALID)),
            )
            | kw
        )
    )


def tiny(pretrained=False, weights=None):
    "An architecture as `vision_learner` takes one."
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2),
        nn.ReLU(),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 16, 3, 2),
        nn.ReLU(),
        nn.BatchNorm2d(16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 1),
    )


@pytest.fixture(scope='module')
def dls(df, folder):
    return make_block(folder).dataloaders(df, bs=32, num_workers=0)


@pytest.fixture(scope='module')
def learn(dls):
    set_seed(0, reproducible=True)
    learn = conditional_image_tabular_learner(dls, tiny, pretrained=False, n_image=16, ps=0.0, lin_ftrs=[], tune=None)
    with muted(learn):
        learn.fit_one_cycle(10, 2e-2)
    return learn


def test_batches(df, folder, dls):
    img, row, y = dls.one_batch()
    assert (type(row), row.shape, y.shape, dls.n_inp, dls.c) == (TensorRow, (32, 3), (32, 2, 3), 2, 5)
    to = TabularPandas(
        df,
        [Categorify, FillMissing, Normalize],
        ['town'],
        ['cents'],
        splits=IndexSplitter(range(VALID))(df),
        reduce_memory=False,
    )
    for ds, stock in ((dls.train_ds, to.train), (dls.valid_ds, to.valid)):
        got = torch.stack([ds[i][1] for i in range(len(ds))]).as_subclass(torch.Tensor)
        np.testing.assert_allclose(
            got, np.concatenate([stock.cats.to_numpy(), stock.conts.to_numpy()], 1), rtol=1e-4, atol=1e-5
        )
    got = torch.stack([dls.valid_ds[i][2] for i in range(VALID)]).as_subclass(torch.Tensor)
    assert torch.equal(got, dls.flow.encode(df[:VALID]).as_subclass(torch.Tensor))
    two = make_block(folder).dataloaders(df, bs=8, num_workers=2, batch_tfms=aug_transforms())
    assert two.valid.one_batch()[1].shape == (8, 3)


def test_getters_of_every_make(df, folder, dls):
    want = dls.valid.one_batch()[1]
    for get in (
        ColReader(['town', 'cents']),
        lambda r: (r['town'], r['cents']),
        lambda r: r[['cents', 'town']],
        lambda r: dict(town=r['town'], cents=r['cents']),
    ):
        other = make_block(folder, get_x=[ColReader('img', pref=f'{folder}/'), get]).dataloaders(
            df, bs=32, num_workers=0
        )
        assert torch.equal(other.valid.one_batch()[1], want)


@pytest.mark.trains
def test_the_network_uses_both_inputs(df, learn):
    "Without the picture nothing is known of the shape, without the row nothing of the team"
    rows = df[:VALID]
    with muted(learn):
        ev = learn.evaluate(metrics='accuracy').query("metric_name == 'accuracy'").set_index('task_path')
        both, blank = learn.predict_df(rows), learn.predict_df(rows.assign(img=rows.img[0]))
        shuffled = learn.predict_df(
            rows.assign(town=rows.town.iloc[::-1].to_numpy(), cents=rows.cents.iloc[::-1].to_numpy())
        )
    score = lambda t, p: skm.accuracy_score(rows[t][rows[t].notna()], p[t][rows[t].notna()])
    assert ev.metric_res['shape'] == pytest.approx(score('shape', both)) and ev.metric_res['team'] == pytest.approx(
        score('team', both)
    )
    assert score('shape', both) > 0.9 and score('team', both) > 0.9
    assert score('shape', blank) < 0.7 and score('team', blank) > 0.85
    assert score('team', shuffled) < 0.7 and score('shape', shuffled) > 0.85
    assert blank['shape'].nunique() == 1


def test_predict_explain_and_interpret(df, learn):
    with muted(learn):
        table = learn.predict_df(df[:5])
        pred, dec, acts = learn.predict(df.iloc[3])
        assert (
            isinstance(pred, FlowPrediction)
            and pred['team'] == table.team[3]
            and dec.shape == (2, 3)
            and acts.shape == (5,)
        )
        assert learn.explain(df[:2]).contains((1, 'shape'))
        odd = learn.predict_df(df[:2].assign(town='Rome', cents=None))
        assert len(odd) == 2
        interp = ConditionalInterpretation.from_learner(learn)
        interp.plot_top_losses('team', 2)
    assert len(interp.top_losses('team', 4)[1]) == 4


def test_pictures_stand_beside_trees_and_rows(learn):
    plt.close('all')
    with learn.no_bar():
        learn.show_results(max_n=2, shuffle=False)
    fig = plt.gcf()
    texts = [t.get_text().strip() for ax in fig.axes for t in ax.texts]
    titles = [ax.get_title(loc='left') for ax in fig.axes]
    assert (
        len(fig.axes) == 4
        and sum(bool(ax.images) for ax in fig.axes) == 2
        and any('shape:' in t for t in texts)
        and sum('town' in t and 'cents' in t and 'cents_na' not in t for t in titles) == 2
    )
    plt.close('all')
    learn.dls.show_batch(max_n=3)
    assert len([ax for ax in plt.gcf().axes if ax.images]) == 3
    import fastai.text.all  # noqa: F401  loosely typed methods that are registered later must not win

    with learn.no_bar():
        learn.show_results(max_n=1)


def test_two_rows_without_a_picture_are_told_in_words(df, capsys):
    flow = make_flow()
    dls = DataBlock(
        blocks=(TabularRowBlock(['town']), TabularRowBlock([], ['cents']), flow),
        n_inp=2,
        splitter=IndexSplitter(range(VALID)),
    ).dataloaders(df, bs=16, num_workers=0)
    learn = equip(Learner(dls, JoinedModel([RowModel(dls, 4), nn.Linear(2, 4)], (4, 4), dls.c)))
    with learn.no_logging(), learn.no_bar():
        learn.fit(1, 1e-2)
    capsys.readouterr()
    with learn.no_bar():
        learn.show_results(max_n=2)
    out = capsys.readouterr().out
    assert out.count('town ') == 2 and 'cents' in out and 'shape' in out


def test_parameter_groups(learn, dls):
    groups = learn.splitter(learn.model)
    assert sum(len(g) for g in groups) == len(list(learn.model.parameters())) and len(
        {id(p) for g in groups for p in g}
    ) == sum(map(len, groups))
    assert len(groups) == 2 and all(any(p is q for q in groups[-1]) for p in learn.model.models[1].parameters())
    assert len(learn.opt.param_groups) == 2


def test_tracking_and_fine_tune(df, dls, tmp_path):
    pytest.importorskip('tensorboard')
    learn = conditional_image_tabular_learner(
        dls, tiny, pretrained=False, n_image=8, lin_ftrs=[], cbs=ConditionalTensorBoard(tmp_path, n=2)
    )
    with muted(learn):
        learn.fine_tune(1)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    acc = EventAccumulator(str(tmp_path))
    acc.Reload()
    assert 'team/worst' in acc.Tags()['images']


def test_a_learner_is_loaded_in_a_new_process(df, dls, tmp_path):
    learn = conditional_image_tabular_learner(
        dls, 'test_resnet', pretrained=False, normalize=False, n_image=8, lin_ftrs=[]
    )  # a tiny timm model
    with muted(learn):
        learn.fit(1)
    learn.export(tmp_path / 'l.pkl')
    df[:4].to_pickle(tmp_path / 'rows.pkl')
    with muted(learn):
        learn.predict_df(df[:4]).to_pickle(tmp_path / 'want.pkl')
    code = textwrap.dedent('''
        import sys, warnings; warnings.filterwarnings('ignore')
        import pandas as pd, torch; torch.set_num_threads(1)
        from fastai.learner import load_learner
        d = sys.argv[1]
        learn, df = load_learner(f'{d}/l.pkl'), pd.read_pickle(f'{d}/rows.pkl')
        with learn.no_bar():
            pd.testing.assert_frame_equal(learn.predict_df(df), pd.read_pickle(f'{d}/want.pkl'))
            assert type(learn.predict(df.iloc[0])[0]).__name__ == 'FlowPrediction'
            learn.show_results(dl=learn.dls.test_dl(df, with_labels=True), max_n=1)
        print('good')''')
    res = subprocess.run([sys.executable, '-c', code, str(tmp_path)], capture_output=True, text=True)
    assert res.stdout.strip().endswith('good'), res.stderr[-2000:]


def test_wrong_blocks_and_rows(df, folder, learn):
    with pytest.raises(FlowError, match='has no column'):
        TabularRowBlock()
    with pytest.raises(FlowError, match=r"write \['town'\]"):
        TabularRowBlock('town')
    with pytest.raises(FlowError, match='keep it in one of them'):
        TabularRowBlock(['town'], ['town'])
    with pytest.raises(FlowError, match="no column 'twon'"):
        make_block(folder, blocks=(ImageBlock, TabularRowBlock(['twon']), make_flow())).dataloaders(df)
    with pytest.raises(FlowError, match='has blanks that nothing fills'):
        make_block(
            folder,
            blocks=(ImageBlock, TabularRowBlock(['town'], ['cents'], procs=[Categorify, Normalize]), make_flow()),
        ).dataloaders(df)
    with pytest.raises(FlowError, match="no column 'town'"):
        learn.dls.test_dl(df[:3].drop(columns='town'))
    with pytest.raises(FlowError, match='TabularRowBlock'):
        RowModel(ImageDataLoaders.from_df(df.dropna(), path=folder, label_col='shape', bs=8, num_workers=0), 3)


def test_balance_as_in_other_applications(dls):
    from fastai_condmtl.callback.balance import TaskBalance

    learn = conditional_image_tabular_learner(dls, tiny, pretrained=False, n_image=8, balance='uncertainty')
    assert sum(isinstance(cb, TaskBalance) for cb in learn.cbs) == 1
    with muted(learn):
        learn.fit(1, 1e-3)
    assert np.isfinite(learn.recorder.values[-1][:2]).all()


def test_predict_takes_rows_as_dicts(learn, df):
    with muted(learn):
        want = learn.predict(df.iloc[3])
        assert repr(learn.predict(df.iloc[3].to_dict())[-3]) == repr(want[-3])
        with pytest.raises(FlowError, match='not a tuple'):
            learn.predict(tuple(df.iloc[3]))


def test_decimals_and_large_numbers_as_a_plain_table_has_them(df, folder):
    "One rule for a table alone and a table beside pictures"
    rng = np.random.default_rng(0)
    d = df.assign(dose=rng.choice([0.1, 0.2, 0.3], N), t=1.7e9 + rng.uniform(0, 3600, N))
    dls = make_block(folder, blocks=(ImageBlock, TabularRowBlock(['dose'], ['t']), make_flow())).dataloaders(
        d, bs=32, num_workers=0
    )
    rows = torch.stack([dls.valid_ds[i][1] for i in range(VALID)]).as_subclass(torch.Tensor).numpy()
    train = d.t[VALID:]
    np.testing.assert_array_equal(rows[:, 0], d.dose[:VALID].map({0.1: 1, 0.2: 2, 0.3: 3}))
    np.testing.assert_allclose(rows[:, 1], (d.t[:VALID] - train.mean()) / train.std(ddof=0), atol=1e-5)
