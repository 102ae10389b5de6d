"""Hostile input ends in a right answer or in one clear error: bounded runs of `fuzz`, and each kind of fault it
once found"""

import os
from decimal import Decimal
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, strategies as st
from PIL import Image
import fuzz
from random_flows import checks
from fastai_condmtl.all import *
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.data.target_block import as_flow
from fastai_condmtl.data.guess import guess_flow
from fastai_condmtl.data.guess_shapes import shared_size
from fastai_condmtl.data.pictures import OpenImage


@pytest.mark.parametrize('case, n', [('table', 80), ('points', 80), ('guess', 40), ('json', 80), ('image', 50)])
def test_hostile(case, n):
    @checks(n)
    @given(st.integers(0, 2**32))
    def go(seed):
        fuzz.run(case, seed)

    go()


# ---- the oracle of cells bites
@pytest.mark.parametrize(
    'v, says',
    [
        (1, 1.0),
        (True, 1.0),
        (np.float32(0.5), 0.5),
        (Decimal('2'), 2.0),
        ('1', fuzz.BAD),
        (1j, fuzz.BAD),
        (10**400, fuzz.BAD),
        (float('inf'), fuzz.BAD),
        (pd.Timestamp('2020'), fuzz.BAD),
    ],
)
def test_says_number(v, says):
    assert fuzz.says_number(v) == says


def test_a_wrong_mask_is_found(monkeypatch):
    from fastai_condmtl.core.plan import Plan

    states = Plan.states
    monkeypatch.setattr(
        Plan, 'states', lambda self, *a, **k: [s if s is None else (s[0] | s[1], s[1]) for s in states(self, *a, **k)]
    )
    found = 0
    for seed in range(40):
        try:
            fuzz.run('table', seed)
        except fuzz.Wrong as e:
            found += 'wrong mask' in str(e)
    assert found > 3


def test_a_hang_is_found(monkeypatch):
    def wait(rng):
        while True:
            pass

    monkeypatch.setitem(fuzz.CASES, 'wait', wait)
    with pytest.raises(fuzz.Wrong, match='hangs'):
        fuzz.run('wait', 0, seconds=0.2)


# ---- what it found
def bind(block, values, **kw):
    df = pd.DataFrame({'x': pd.Series(values, **kw)})
    flow = Flow('f', block).bind(df)
    return flow, flow.encode(df)


def test_numbers_that_no_float_holds_name_their_row():
    with pytest.raises(FlowError, match=r"task 'x', row 1, column 'x', value 1000.*too large.*leave it blank"):
        bind(UnboundedRegressionBlock('x'), [1, 10**400], dtype=object)
    with pytest.raises(FlowError, match=r"row 1.*not a number"):
        bind(UnboundedRegressionBlock('x'), [1, len], dtype=object)
    with pytest.raises(FlowError, match=r"row 1.*a count is"):
        bind(CountBlock('x'), [1, 1e300], dtype=float)
    with pytest.raises(FlowError, match=r"row 1.*this is text"):
        bind(UnboundedRegressionBlock('x'), [1, bytearray(b'1')], dtype=object)


def test_what_float32_cannot_hold_names_its_row():
    df = pd.DataFrame(dict(x=[0.0, 1.0, 1e300]))
    flow = Flow('f', UnboundedRegressionBlock('x')).bind(df, [0, 1])
    with pytest.raises(FlowError, match=r"task 'x', row 2, column 'x', value 1e\+300.*float32.*another unit"):
        flow.encode(df)
    assert torch.isfinite(flow.encode(df[:2])).all()


def test_nan_of_arrow_is_missing():
    pa = pytest.importorskip('pyarrow')
    col = pd.arrays.ArrowExtensionArray(pa.array([float('nan'), 1.0, 0.0], from_pandas=False))
    for b in (BinaryBlock('x'), SingleLabelBlock('x')):
        assert bind(b, col)[1][:, 1, 0].tolist() == [0, 1, 1]


def test_labels_with_blanks_at_their_ends_read_back():
    flow, y = bind(MultiLabelBlock('x', vocab=['a', '\n', ' b']), [['a', '\n'], [' b'], []], dtype=object)
    assert flow.encode(flow.to_frame(y)).tolist() == y.tolist()


def test_text_is_no_coordinate():
    with pytest.raises(FlowError, match=r"row 0, column 'x'.*a list of four numbers"):
        bind(BoxBlock('x'), [['1', '2', 'nan', '4']], dtype=object)


def test_columns_of_several_levels_and_halves_of_pairs_in_files(tmp_path):
    flow = Flow('f', x := SingleLabelBlock('x', col=(1, 'x')), BinaryBlock('y') | x.eq('\ud800'))
    assert Flow.from_json(flow.to_json(tmp_path / 'f.json')).tasks[0].col == (1, 'x')
    assert Flow.from_json(tmp_path / 'f.json').tasks[1].given == flow.tasks[1].given
    with pytest.raises(FlowError, match='half of a character'):
        SingleLabelBlock('x', vocab=['a', '\ud800'])


def test_a_long_value_is_cut():
    with pytest.raises(FlowError) as e:
        bind(BinaryBlock('x'), ['a' * 100000], dtype=object)
    assert len(str(e.value)) < 600


@pytest.mark.parametrize(
    'values',
    [
        [np.datetime64('NaT'), 1, 0] * 5,
        [{}, slice(1)] * 5,
        [10**400, 1] * 5,
        [float('inf'), 1.5] * 5,
        [1j, 2j] * 5,
        [fuzz.OddHash()] * 3,
    ],
)
def test_odd_columns_are_left_out_of_a_guess(values):
    df = pd.DataFrame({'odd': pd.Series(values, dtype=object), 'y': ([0, 1] * 8)[: len(values)]})
    g = guess_flow(df)
    assert [t.name for t in g.flow.tasks][-1] == 'y' and g.flow.bind(df) is not None


def test_not_one_or_more_is_none():
    df = pd.DataFrame(dict(n=[None, None, 3.0], x=[1, 0, None]))
    for cond in (~(task('n') >= 0.5), task('n') < 1, ~(task('n') > 0)):
        y = Flow('f', CountBlock('n'), BinaryBlock('x') | cond, infer_labels='train').bind(df).encode(df)
        assert y[:, 1].tolist() == [[1, 1], [1, 1], [1, 0]] and y[:2, 0, 0].tolist() == [0, 0]


def test_a_bare_task_is_a_target():
    assert as_flow(BinaryBlock('x')).name == 'x' and BinaryBlock('x').item_tfms == []


def test_pipes_folders_and_links_do_not_wait(tmp_path):
    os.mkfifo(tmp_path / 'pipe.png')
    (tmp_path / 'folder.png').mkdir()
    (tmp_path / 'loop.png').symlink_to('loop.png')
    with fuzz.within(5):
        for f in ('pipe.png', 'folder.png', 'loop.png'):
            with pytest.raises(FlowError, match=rf'{f}.*no file.*take such rows out'):
                OpenImage()(tmp_path / f)
            assert shared_size([tmp_path / f]) is None
        with pytest.raises(FlowError, match='there is no image file'):
            OpenImage()(tmp_path / 'gone.png')


def test_sixteen_bits_keep_their_grays(tmp_path):
    x = np.linspace(0, 65535, 256).reshape(16, 16).round().astype(np.uint16)
    for f in ('a.png', 'a.tif'):
        Image.fromarray(x).save(tmp_path / f)
        for src in (tmp_path / f, (tmp_path / f).read_bytes(), Image.open(tmp_path / f)):
            assert np.abs(np.asarray(OpenImage()(src))[..., 0].astype(int) - np.round(x / 257)).max() <= 1
    Image.fromarray(np.array([[0.0, 0.5], [1.0, 1.0]], dtype=np.float32)).save(tmp_path / 'f.tif')
    with pytest.raises(FlowError, match='nobody can tell what is white'):
        OpenImage()(tmp_path / 'f.tif')
