"A scorer says what `predict_df` and `get_marginals` say, row by row, whatever make the batch is of"

import os, pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import Resize, squeezenet1_1
from fastai_condmtl.all import *
from fastai_condmtl.deploy import scorer as scorer_module
from fastai_condmtl.deploy.scored import ScoredColumns, types_of_decisions
from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders, conditional_tabular_learner
from fastai_condmtl.vision.all import ConditionalDataLoaders, conditional_vision_learner
from fastai_condmtl.datasets.machines import MACHINE_CATS, MACHINE_CONTS, machines, machines_flow
from fastai_condmtl.datasets.synthetic import save_scenes, security_flow

pa = pytest.importorskip('pyarrow', reason='needs pyarrow (extra parquet)')


def plain(column):
    "Cells with None for whatever stands for a blank"
    return [None if x is None or x is pd.NA or isinstance(x, float) and x != x else x for x in column]


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes')
    return folder, save_scenes(folder, n=60, size=32)


@pytest.fixture(scope='module')
def pictures(scenes):
    torch.manual_seed(0)
    folder, df = scenes
    dls = ConditionalDataLoaders.from_df(
        df,
        security_flow(32),
        path=folder,
        fn_col='img',
        seed=0,
        num_workers=0,
        bs=16,
        item_tfms=Resize(32, method='squish'),
    )
    return conditional_vision_learner(dls, squeezenet1_1, pretrained=False)


@pytest.fixture(scope='module')
def tables():
    df = machines(seed=1)[:300]
    dls = ConditionalTabularDataLoaders.from_df(
        df, machines_flow(), cat_names=MACHINE_CATS, cont_names=MACHINE_CONTS, bs=64, seed=0
    )
    return df, conditional_tabular_learner(dls, [8], metrics=[], tune=None)


def assert_as_learner(scored, learn, df):
    expected, marginals = learn.predict_df(df), learn.get_marginals(df)
    for name in expected:
        assert plain(scored[name]) == plain(expected[name]), name
    for (path, value), numbers in marginals.items():
        name = f'{path}:p_reached' if value == 'P(reached)' else f'{path}:p:{value}'
        np.testing.assert_allclose(np.asarray(scored[name], dtype=float), numbers, atol=1e-5)
    assert plain(scored['error']) == [None] * len(df)


@pytest.mark.parametrize('method', ['iterate', 'map'])
def test_one_batch_is_no_run_of_batches(tables, method):
    df, learn = tables
    scorer, batch = learn.scorer(), df[MACHINE_CATS + MACHINE_CONTS]
    for one in (batch, dict(batch), pa.Table.from_pandas(batch)):
        says = rf'scorer\.{method} takes batches.*not one {type(one).__name__}: write scorer\(batch\)'
        with pytest.raises(FlowError, match=says):
            next(getattr(scorer, method)(one))


def test_rows_of_a_table_in_every_make(tables):
    df, learn = tables
    scorer = pickle.loads(pickle.dumps(learn.scorer(keep=['id'])))
    batch = df[MACHINE_CATS + MACHINE_CONTS].assign(id=range(len(df)), unread='x')
    assert set(scorer.reads) == {*MACHINE_CATS, *MACHINE_CONTS}
    frame = scorer(batch.set_axis(batch.index + 7))
    assert list(frame.index) == list(df.index + 7)
    arrow = scorer(pa.Table.from_pandas(batch, preserve_index=False))
    arrays = scorer({name: batch[name].to_numpy() for name in batch})
    lists = scorer({name: batch[name].tolist() for name in batch})
    for scored in (frame, arrow.to_pandas(), pd.DataFrame(arrays), pd.DataFrame(lists)):
        assert_as_learner(scored, learn, df)
        assert scored['id'].tolist() == list(range(len(df)))
    assert 'unread' not in frame


def test_one_schema_whatever_is_blank(tables):
    df, learn = tables
    scorer = learn.scorer()
    table = pa.Table.from_pandas(df[MACHINE_CATS + MACHINE_CONTS], preserve_index=False)
    schemas = {str(scorer(table.slice(i, n)).schema) for i, n in [(0, 300), (0, 1), (5, 2), (0, 0)]}
    assert len(schemas) == 1


def test_files_bytes_arrays_and_what_is_torn(pictures, scenes):
    folder, df = scenes
    scorer = pictures.scorer()
    assert scorer.reads == ['img']
    assert_as_learner(scorer(df), pictures, df)
    from PIL import Image

    torn = folder / 'torn.png'
    torn.write_bytes((folder / df.img[0]).read_bytes()[:200])
    cells = [
        df.img[0],
        (folder / df.img[1]).read_bytes(),
        np.asarray(Image.open(folder / df.img[2])),
        {'bytes': (folder / df.img[3]).read_bytes(), 'path': 'a.png'},
        str(folder / df.img[4]),
        np.asarray(Image.open(folder / df.img[5])).tolist(),
        'torn.png',
        'nowhere.png',
        None,
        b'no picture',
        {'bytes': b'no picture', 'path': 'of_dict.png'},
        [['a']],
        np.nan,
    ]
    scored = scorer(dict(img=cells))
    whole = scorer(df[:6])
    for name in whole.columns.drop('error'):
        if whole[name].dtype == float:
            np.testing.assert_allclose(scored[name][:6], whole[name], atol=1e-5)
        else:
            assert plain(scored[name][:6]) == plain(whole[name])
        assert plain(scored[name][6:]) == [None] * 7, name
    errors = scored['error'].tolist()
    assert errors[:6] == [None] * 6 and all(errors[6:])
    assert str(torn) in errors[6] and 'nowhere.png' in errors[7] and 'of_dict.png' in errors[10]


def test_batches_without_a_column_or_a_row(pictures):
    scorer = pictures.scorer(keep=['id'])
    with pytest.raises(FlowError, match="no column 'img', which the network reads"):
        scorer(dict(id=[1], image=['a.png']))
    with pytest.raises(FlowError, match="no column 'id', which keep= names"):
        scorer(dict(img=['a.png']))
    empty = scorer(pd.DataFrame(dict(img=[], id=[])))
    assert len(empty) == 0 and list(empty) == ['id', *scorer.scored_columns.types]
    with pytest.raises(FlowError, match='column of the decisions'):
        pictures.scorer(keep=['camera_blocked'])(dict(img=[], camera_blocked=[]))


def test_a_model_is_loaded_once_a_process(pictures, scenes, monkeypatch):
    _, df = scenes
    scorer_module._loaded.clear()
    scorer, calls = pictures.scorer(), []
    load = scorer_module.load_learner
    monkeypatch.setattr(scorer_module, 'load_learner', lambda *args, **kwargs: calls.append(1) or load(*args, **kwargs))
    for _ in range(3):
        pickle.loads(pickle.dumps(scorer))(df[:2])
    assert len(calls) == 1


def test_a_path_travels_without_the_weights(pictures, scenes, tmp_path):
    _, df = scenes
    scorer = pictures.scorer(tmp_path / 'model.pkl')
    assert len(pickle.dumps(scorer)) < 1000
    expected = scorer(df[:3])
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(scorer))(df[:3]), expected)
    with open(tmp_path / 'model.pkl', 'ab') as file:
        file.write(b' ')
    scorer_module._loaded.clear()
    with pytest.raises(FlowError, match='has changed since the scorer was made'):
        scorer(df[:3])
    (tmp_path / 'model.pkl').unlink()
    with pytest.raises(FlowError, match='no file .* on this machine'):
        scorer(df[:3])


def test_predictor_and_safe_file(pictures, scenes, tmp_path):
    pytest.importorskip('safetensors', reason='needs safetensors (extra safe)')
    folder, df = scenes
    pictures.save_safe(tmp_path / 'model.safetensors')
    expected = pictures.scorer()(df[:8])
    of_file = Scorer(tmp_path / 'model.safetensors', columns='img', folder=folder)
    of_predictor = load_safe(tmp_path / 'model.safetensors').scorer(columns='img', folder=folder)
    for scorer in (of_file, pickle.loads(pickle.dumps(of_predictor))):
        pd.testing.assert_frame_equal(scorer(df[:8]), expected, atol=1e-5)
        errors = scorer(dict(img=[df.img[0], 'nowhere.png', df.img[1]]))['error'].tolist()
        assert errors[0] is None and 'nowhere.png' in errors[1] and errors[2] is None
    with pytest.raises(FlowError, match="scorer\\(columns='path'\\)"):
        load_safe(tmp_path / 'model.safetensors').scorer()(df[:8])


def test_pool_of_processes(tables):
    df, learn = tables
    batch = df[MACHINE_CATS + MACHINE_CONTS].reset_index(drop=True)
    scorer = learn.scorer()
    parts = [batch[i : i + 60] for i in range(0, 300, 60)]
    whole = scorer(batch)
    pd.testing.assert_frame_equal(pd.concat(scorer.map(iter(parts), n_workers=1)), whole, atol=1e-5)
    with ProcessPoolExecutor(1, get_context('spawn')) as pool:  # the plain way, too
        pd.testing.assert_frame_equal(pd.concat(pool.map(scorer, parts[:2])), whole[:120], atol=1e-5)


@pytest.mark.parametrize(
    'bad',
    [
        ['a.png'],
        'a.png',
        dict(img='a.png'),
        dict(img=b'PNG'),
        dict(img=np.array('a.png')),
        dict(img=['a'], id=[1, 2]),
        pa.array(['a.png']),
    ],
)
def test_what_is_no_batch(pictures, bad):
    with pytest.raises(FlowError, match='batch of columns|one value and no array|different lengths'):
        pictures.scorer()(bad)
    with pytest.raises(FlowError, match='must be a list of columns'):
        pictures.scorer(keep='img')


def test_which_columns_are_read(pictures):
    for none in ([], ()):
        with pytest.raises(FlowError, match=r"columns=.* names no column to read: write columns='path'"):
            pictures.scorer(columns=none)
    with pytest.raises(FlowError, match="no column 3, which the network reads: there are 'img'"):
        pictures.scorer(columns=3)(dict(img=['a.png']))


@pytest.mark.parametrize('name', ['model.onnx', 'model.pt2'])
def test_a_graph_is_no_model_of_a_scorer(tmp_path, name):
    (tmp_path / name).write_bytes(b'a graph')
    with pytest.raises(FlowError, match=f"{name}' is a graph, .*: write a file with learn.save_safe or learn.export"):
        Scorer(tmp_path / name, columns='img')


@pytest.mark.parametrize('content', [b'', b'hello', b'PK no model'])
def test_what_is_no_file_of_a_learner(tmp_path, content):
    (tmp_path / 'model.pkl').write_bytes(content)
    with pytest.raises(FlowError, match=r"model.pkl' is no file of learn.export \(.*\): write it anew"):
        Scorer(tmp_path / 'model.pkl', columns='img')(dict(img=['a.png']))


def test_a_file_of_a_learner_that_is_cut_off(tmp_path):
    torch.save(torch.zeros(1000), tmp_path / 'model.pkl')
    (tmp_path / 'model.pkl').write_bytes((tmp_path / 'model.pkl').read_bytes()[:2000])
    with pytest.raises(FlowError, match=r"model.pkl' is no file of learn.export \(RuntimeError\): write it anew"):
        Scorer(tmp_path / 'model.pkl', columns='img')(dict(img=['a.png']))


@pytest.mark.parametrize('n_workers', [0, -1, True, 1.5])
def test_how_many_processes(pictures, n_workers):
    with pytest.raises(FlowError, match='n_workers=.* must be a positive whole number'):
        next(pictures.scorer().map([dict(img=[])], n_workers=n_workers))


class Exits:
    "A cell that ends the process that reads it"

    def __reduce__(self):
        return os._exit, (1,)


def test_a_process_that_ends_is_told(tables):
    df, learn = tables
    batches = [df[:5], df[5:10].assign(**{MACHINE_CONTS[0]: [Exits(), *[0.0] * 4]}), *[df[10:15]] * 9]
    with pytest.raises(FlowError, match='a process ended before its batch was scored: .* smaller batches'):
        list(learn.scorer().map(batches, n_workers=1))


def test_types_of_all_kinds():
    df = pd.DataFrame(
        dict(
            yes=[True, False],
            word=['no', 'yes'],
            kind=['a', 'b'],
            number=[3, 4],
            n=[1, 2],
            share=[0.5, 1],
            tags=['x;y', 'y'],
            points=[[(1, 2), (3, 4)]] * 2,
        )
    )
    flow = Flow(
        'f',
        BinaryBlock('yes'),
        BinaryBlock('word', vocab=('no', 'yes')),
        SingleLabelBlock('kind'),
        SingleLabelBlock('number'),
        CountBlock('n'),
        BoundedRegressionBlock('share', y_range=(0, 1)),
        MultiLabelBlock('tags', label_delim=';'),
        KeypointsBlock('points', points=['p', 'q']),
    ).bind(df)
    types = types_of_decisions(flow)
    assert types == dict(
        yes='boolean',
        word='string',
        kind='string',
        number='bigint',
        n='bigint',
        share='double',
        tags='string',
        points='array<array<double>>',
    )
    assert 'kind:p:a' in ScoredColumns(flow).types and 'kind:p:a' not in ScoredColumns(flow, False).types
