"Odd cells, rows and batches of a scorer: a bad one gives an error in its own row, and changes no other"

import io, pickle
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from fastai.text.all import AWD_LSTM, awd_lstm_clas_config
from fastai.vision.all import ColReader, DataBlock, ImageBlock, IndexSplitter, Resize, noop, squeezenet1_1
from torch import nn
from fastai_condmtl.all import *
from fastai_condmtl.tabular.all import (
    ConditionalTabularDataLoaders,
    TabularRowBlock,
    conditional_image_tabular_learner,
    conditional_tabular_learner,
)
from fastai_condmtl.text.all import ConditionalTextDataLoaders, conditional_text_learner
from fastai_condmtl.vision.all import ConditionalDataLoaders, conditional_vision_learner
from fastai_condmtl.datasets.synthetic import save_scenes, security_flow

pa = pytest.importorskip('pyarrow', reason='needs pyarrow (extra parquet)')
pytestmark = pytest.mark.filterwarnings('ignore')
N = 40


def cells_of(column):
    "A column as a list, None for each blank"
    cells = column.to_pylist() if isinstance(column, pa.ChunkedArray) else list(column)
    return [None if x is None or x is pd.NA or isinstance(x, float) and x != x else x for x in cells]


def assert_rows(scored, rows, whole, wanted):
    "Scored `rows` say what the rows `wanted` of `whole` say"
    for name in whole:
        if whole[name].dtype == float:
            got, want = (np.array(column, dtype=float) for column in (scored[name], whole[name]))
            np.testing.assert_allclose(got[rows], want[wanted], atol=1e-4, err_msg=name)
        else:
            assert [cells_of(scored[name])[i] for i in rows] == [cells_of(whole[name])[i] for i in wanted], name


def assert_blank(scored, rows, why):
    "Nothing is said of `rows` but an error"
    for name in scored:
        if name != 'error':
            assert [cells_of(scored[name])[i] for i in rows] == [None] * len(rows), name
    for i in rows:
        assert why in cells_of(scored['error'])[i]


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes')
    return folder, save_scenes(folder, n=N, size=32)


@pytest.fixture(scope='module')
def picture_scorers(scenes):
    "Of a learner, and of the safe file that it writes"
    pytest.importorskip('safetensors', reason='needs safetensors (extra safe)')
    torch.manual_seed(0)
    folder, df = scenes
    tfms = dict(item_tfms=Resize(32, method='squish'), num_workers=0, bs=16)
    dls = ConditionalDataLoaders.from_df(df, security_flow(32), path=folder, fn_col='img', seed=0, **tfms)
    learn = conditional_vision_learner(dls, squeezenet1_1, pretrained=False)
    learn.save_safe(folder / 'model.safetensors')
    return learn.scorer(), Scorer(folder / 'model.safetensors', columns='img', folder=folder)


@pytest.fixture(scope='module')
def table():
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(a=rng.random(N) < 0.4, x=rng.normal(size=N), colour=rng.choice(list('rg'), N)))
    df['b'] = rng.choice(list('xyz'), N)
    df['text'] = [' '.join(rng.choice(['good', 'bad', 'food', 'slow', 'ünï'], rng.integers(3, 9))) for _ in range(N)]
    return df


def small_flow():
    a = BinaryBlock('a')
    return Flow('f', a, SingleLabelBlock('b') | a)


@pytest.fixture(scope='module')
def texts(table):
    dls = ConditionalTextDataLoaders.from_df(
        table, small_flow(), text_col='text', valid_idx=range(8), min_freq=1, seq_len=16, bs=8, num_workers=0
    )
    config = awd_lstm_clas_config | dict(emb_sz=8, n_hid=16, n_layers=1)
    return conditional_text_learner(dls, AWD_LSTM, pretrained=False, config=config)


def small_arch(pretrained=False, **kwargs):
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
    return nn.Sequential(*trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


@pytest.fixture(scope='module')
def both(table, scenes):
    "Pictures and columns beside them"
    folder, scene_df = scenes
    df = table.assign(img=scene_df.img.to_numpy())
    block = DataBlock(
        blocks=(ImageBlock, TabularRowBlock(['colour'], ['x']), small_flow()),
        n_inp=2,
        getters=[ColReader('img', pref=f'{folder}/'), noop, noop],
        splitter=IndexSplitter(range(8)),
        item_tfms=Resize(32, method='squish'),
    )
    args = dict(n_image=4, pretrained=False, normalize=False, cut=-3)
    return df, conditional_image_tabular_learner(block.dataloaders(df, bs=8, num_workers=0), small_arch, **args)


def coded(image, kind='PNG'):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def in_all_makes(rgb):
    "A gray picture in every make that holds it without loss, and bytes of other modes"
    gray = np.asarray(Image.fromarray(rgb).convert('L'))
    deep, alpha = gray.astype(np.uint16) * 257, np.full_like(gray, 9)
    opaque = np.dstack([gray, gray, gray])
    picture = Image.fromarray(opaque)
    return [
        opaque,
        np.dstack([opaque, alpha]),
        gray,
        gray[..., None],
        deep,
        deep.astype(np.int32),
        opaque.tolist(),
        gray.tolist(),
        picture,
        picture.convert('RGBA'),
        picture.convert('L'),
        Image.fromarray(deep),
        torch.as_tensor(opaque.copy()),
        coded(picture),
        bytearray(coded(picture.convert('RGBA'))),
        memoryview(coded(picture.convert('LA'))),
        coded(Image.fromarray(deep)),
        coded(Image.fromarray(deep), 'TIFF'),
        dict(bytes=coded(picture.convert('L')), path=None),
    ]


def as_column(cells):
    column = np.empty(len(cells), dtype=object)
    column[:] = [None] * len(cells)
    for i, cell in enumerate(cells):
        column[i] = cell
    return column


def test_one_picture_in_every_make_in_one_column(picture_scorers, scenes):
    folder, df = scenes
    cells = in_all_makes(np.asarray(Image.open(folder / df.img[0]).convert('RGB')))
    for scorer in picture_scorers:
        whole = scorer(dict(img=as_column(cells[:1])))
        scored = scorer(dict(img=as_column(cells)))
        assert cells_of(scored['error']) == [None] * len(cells)
        assert_rows(scored, list(range(len(cells))), pd.DataFrame(whole), [0] * len(cells))


def test_cells_that_are_no_picture_beside_one_that_is(picture_scorers, scenes):
    folder, df = scenes
    rgb = np.asarray(Image.open(folder / df.img[0]).convert('RGB'))
    bad = [
        rgb / 255,
        np.moveaxis(rgb, 2, 0),
        rgb[0, 0],
        rgb[:0],
        np.array(3),
        rgb.astype(int),
        (rgb / 255).tolist(),
        (rgb.astype(int) * 2).tolist(),
        (-rgb.astype(int)).tolist(),
        [],
        [[1, 2], [3]],
        3,
        True,
        {'x': 1},
        {1},
        b'',
        '',
        'a\0b',
        'x' * 5000,
        object(),
    ]
    blank = [None, np.nan, np.float32('nan'), pd.NA, pd.NaT, {'bytes': None, 'path': None}]
    for scorer in picture_scorers:
        whole = scorer(dict(img=as_column([rgb])))
        scored = scorer(dict(img=as_column([rgb, *bad, *blank, rgb])))
        last = len(bad) + len(blank) + 1
        assert_rows(scored, [0, last], pd.DataFrame(whole), [0, 0])
        assert_blank(scored, range(1, 1 + len(bad)), '')
        assert_blank(scored, range(1 + len(bad), last), "column 'img' is blank")
        assert all(cells_of(scored['error'])[1:last])
        alone = scorer(dict(img=as_column(bad[:4])))
        assert_blank(alone, range(4), 'is no picture; it must be')


def test_names_in_other_scripts_and_rows_with_one_index(picture_scorers, scenes):
    folder, df = scenes
    names = ['é ü 图.png', 'a b#%.png', "q'uote.png"]
    for i, name in enumerate(names):
        (folder / name).write_bytes((folder / df.img[i]).read_bytes())
    for scorer in picture_scorers:
        whole = scorer(df[:3])
        for index in ([7, 7, 7], pd.MultiIndex.from_tuples([(1, 2)] * 3), list('aab')):
            scored = scorer(pd.DataFrame(dict(img=names), index=index))
            assert scored.index.equals(pd.Index(index)) and len(scored) == 3
            assert_rows(scored, [0, 1, 2], whole, [0, 1, 2])
        scored = scorer(pd.DataFrame(dict(img=[names[0], '图 not there.png', names[0]]), index=[7, 7, 7]))
        assert_blank(scored, [1], '图 not there.png')
        assert_rows(scored, [0, 2], whole, [0, 0])


@pytest.mark.parametrize('cells', [[], [None, None], ['nowhere.png', 'nor here.png']])
def test_batches_of_which_nothing_is_predicted(picture_scorers, cells):
    for scorer in picture_scorers:
        batches = (
            dict(img=cells),
            dict(img=as_column(cells)),
            pd.DataFrame(dict(img=pd.Series(cells, dtype=object))),
            pa.table(dict(img=pa.array(cells, pa.string()))),
        )
        for batch in batches:
            scored = scorer(batch)
            assert len(scored['error']) == len(cells) and all(cells_of(scored['error']))
        assert str(scorer(batches[-1]).schema) == str(scorer.scored_columns.arrow())


def test_columns_that_are_unknown_or_there_twice(picture_scorers, scenes):
    _, df = scenes
    for scorer in picture_scorers:
        whole = scorer(df[:2])
        pd.testing.assert_frame_equal(scorer(df[:2].assign(error='mine', unknown=object())), whole)
        twice = pd.DataFrame([df.img[:2].tolist()] * 2, columns=['img', 'img'])
        with pytest.raises(FlowError, match="two columns 'img', which the network reads: rename one"):
            scorer(twice)
        with pytest.raises(FlowError, match="no column 'img'"):
            scorer({})


def test_columns_of_texts(texts, table):
    scorer = pickle.loads(pickle.dumps(texts.scorer()))
    assert scorer.reads == ['text']
    whole, expected = scorer(table), texts.predict_df(table)
    for name in expected:
        assert cells_of(whole[name]) == cells_of(expected[name]), name
    marginals = texts.get_marginals(table)
    np.testing.assert_allclose(whole['b:p_reached'], marginals['b', 'P(reached)'], atol=1e-5)
    by_length = table[:12].assign(text=[t * (1 + i % 3) for i, t in enumerate(table.text[:12])])
    one_by_one = pd.concat([scorer(by_length[i : i + 1]) for i in range(12)])
    pd.testing.assert_frame_equal(scorer(by_length), one_by_one, atol=1e-4)  # texts are sorted by length on the way
    odd = ['', 'é 图 \U0001f600', None, 3, ['good'], table.text[5]]
    for batch in (dict(text=as_column(odd)), pd.DataFrame(dict(text=pd.Series(odd, dtype=object)))):
        scored = scorer(batch)
        assert_rows(scored, [5], whole, [5])
        assert cells_of(scored['error'])[:2] == [None, None] and all(cells_of(scored['error'])[2:5])
        assert_blank(scored, [2], "column 'text' is blank")
    arrow = scorer(pa.Table.from_pandas(table[['text']], preserve_index=False))
    assert_rows(arrow.to_pandas(), list(range(N)), whole, list(range(N)))


def test_pictures_and_columns_beside_them(both):
    df, learn = both
    scorer = pickle.loads(pickle.dumps(learn.scorer(keep=['row'])))
    assert sorted(scorer.reads) == ['colour', 'img', 'x']
    df = df.assign(row=range(N))
    whole, expected = scorer(df), learn.predict_df(df)
    for name in expected:
        assert cells_of(whole[name]) == cells_of(expected[name]), name
    assert whole.row.tolist() == list(range(N)) and cells_of(whole.error) == [None] * N
    odd = df[:6].set_axis([3] * 6).astype(object)
    odd['img'] = [df.img[0], 'nowhere.png', df.img[2], None, df.img[4], df.img[5]]
    odd['x'] = [df.x[0], df.x[1], 'a word', df.x[3], df.x[4], df.x[5]]
    odd['colour'] = [df.colour[0], df.colour[1], df.colour[2], df.colour[3], ['r'], df.colour[5]]
    for scored in (scorer(odd), pd.DataFrame(scorer({name: odd[name].tolist() for name in odd}))):
        assert scored['row'].tolist() == list(range(6))
        assert_rows(scored, [0, 5], whole, [0, 5])
        scored = scored.drop(columns='row')
        assert_blank(scored, [1], 'nowhere.png')
        assert_blank(scored, [2], "input 'x', value 'a word': not a finite number")
        assert_blank(scored, [3], '')
        assert_blank(scored, [4], "input 'colour', value ['r']: not a category")
    with pytest.raises(FlowError, match="no column 'x', which the network reads"):
        scorer(df.drop(columns='x'))


def test_rows_of_a_table(table):
    args = dict(cat_names=['colour'], cont_names=['x'], bs=8, valid_idx=range(8))
    dls = ConditionalTabularDataLoaders.from_df(table, small_flow(), **args)
    learn = conditional_tabular_learner(dls, layers=[8])
    scorer = learn.scorer()
    whole = scorer(table)
    odd = table[:6].set_axis([9] * 6).astype(object)
    odd['x'] = [table.x[0], None, str(table.x[2]), np.inf, table.x[4], table.x[5]]
    odd['colour'] = [table.colour[0], 'r', table.colour[2], 'r', ['r', 'g'], table.colour[5]]
    scored = scorer(odd)
    assert list(scored.index) == [9] * 6
    assert_rows(scored, [0, 2, 5], whole, [0, 2, 5])
    assert_blank(scored, [3], "input 'x', value inf: not a finite number")
    assert_blank(scored, [4], "input 'colour', value ['r', 'g']: not a category")
