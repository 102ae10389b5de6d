"Numbers by which nothing can be drawn or written, and lines that are written from rows of a table"

import numpy as np, pandas as pd, pytest
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.datasets.faces import faces, mtfl_line, save_faces, utkface_name
from fastai_condmtl.datasets.machines import machines
from fastai_condmtl.datasets.readers import read_mtfl, read_utkface
from fastai_condmtl.datasets.reviews import reviews
from fastai_condmtl.datasets.synthetic import digits_table, save_pictures, save_scenes, security_scenes
from fastai_condmtl.datasets.tiny_encoder import save_tiny_encoder

NUMBERS = dict(
    n=[-1, 2.5, '3', None, True],
    seed=[-1, 'a', None, 2.5],
    missing=[-0.1, 1.1, 'a', float('nan'), None],
    size=[0, -1, 2.5, (3, 4), None],
    test=[-0.1, 2, 'a'],
)


@pytest.mark.parametrize(
    'draw, names',
    [
        (faces, 'n seed missing size'),
        (security_scenes, 'n seed missing size'),
        (digits_table, 'missing size'),
        (machines, 'n missing'),
        (reviews, 'n missing'),
    ],
    ids=lambda value: getattr(value, '__name__', ''),
)
def test_numbers_by_which_nothing_can_be_drawn(draw, names):
    for name in names.split():
        for bad in NUMBERS[name]:
            with pytest.raises(FlowError, match=f'^{name}=.* must be'):
                draw(**{name: bad})


def test_nothing_is_written_of_what_cannot_be_drawn(tmp_path):
    for name, values in NUMBERS.items():
        for bad in values:
            with pytest.raises(FlowError, match=f'^{name}='):
                save_faces(tmp_path / 'faces', **{name: bad})
    with pytest.raises(FlowError, match='^missing='):
        save_scenes(tmp_path / 'scenes', n=3, missing=2)
    assert not list(tmp_path.iterdir())


def test_few_rows_and_all_gaps():
    for n in (0, 1, 2):
        assert len(machines(n)) == len(reviews(n)) == len(faces(n)[1]) == len(security_scenes(n)[1]) == n
    assert reviews(9, missing=1).drop(columns='text').isna().all(axis=None)
    assert faces(3, missing=1)[1].drop(columns='img').isna().all(axis=None)


def test_each_picture_has_a_row(tmp_path):
    images = np.zeros((3, 4, 4, 3), np.uint8)
    for table in (pd.DataFrame(dict(img=['a.png'])), pd.DataFrame(dict(name=['a', 'b', 'c']))):
        with pytest.raises(FlowError, match="3 pictures need a table of as many rows, with their file names in 'img'"):
            save_pictures(tmp_path / 'new', images, table)
    assert not list(tmp_path.iterdir())


def test_a_row_of_the_table_becomes_a_line_that_is_read_back(tmp_path):
    "Numbers of a table are floats, and codes are whole"
    images, df = faces(20, missing=0)
    rows = df.dropna()
    assert len(rows) > 3 and df.smile.dtype == float
    lines = [mtfl_line(f'{i}.jpg', row) for i, row in rows.iterrows()]
    for name, text in (('training', ''.join(lines)), ('testing', '')):
        (tmp_path / f'{name}.txt').write_text(text)
    again = read_mtfl(tmp_path, size=None).set_index(rows.index)
    columns = [c for c in rows if c in again and c != 'img']
    assert {'smile', 'glasses', 'pose', 'gender', 'nose_x'} <= set(columns)
    pd.testing.assert_frame_equal(again[columns], rows[columns], check_dtype=False, atol=1e-5)
    for i, row in rows.iterrows():
        (tmp_path / utkface_name(row, i)).touch()
    named = read_utkface(tmp_path, races=list(range(5)))
    assert sorted(zip(named.age, named.gender, named.race)) == sorted(zip(rows.age, rows.gender, rows.race))
    with pytest.raises(ValueError):
        mtfl_line('a.jpg', rows.iloc[0].to_dict() | dict(gender=None))


def test_a_tiny_encoder_of_numbers_that_fit(tmp_path):
    pytest.importorskip('transformers', reason='the extra transformers is not installed')
    for name, bad in (
        *(('n_words', n) for n in (0, -1, 20.5)),
        *(('d_model', n) for n in (0, 30, 'a')),
        *(('n_layers', n) for n in (0, -1)),
        *(('max_len', n) for n in (0, 2)),
    ):
        with pytest.raises(FlowError, match=f'^{name}=.* must be'):
            save_tiny_encoder(tmp_path / 'tiny', ['a text'], **{name: bad})
    with pytest.raises(FlowError, match='^texts=.* must be a list of texts'):
        save_tiny_encoder(tmp_path / 'tiny', 'a text')
    assert not list(tmp_path.iterdir())
