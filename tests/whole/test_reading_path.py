"A reader who has never seen the code follows it from a condition to a decision in about an hour"

import json, sys
from pathlib import Path
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / 'benchmarks'))
import house

MOST = 60  # minutes, without the shown cells


def notebook(folder, *cells):
    "A chapter `a/b` of cells: pairs of kind and text"
    path = folder / 'nbs' / 'a' / 'b.ipynb'
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(dict(cells=[dict(cell_type=kind, source=[text]) for kind, text in cells])))
    return 'a/b'


def test_what_counts(tmp_path, monkeypatch):
    "Prose, exported code and shown code; no blank lines, imports and hidden cells"
    chapter = notebook(
        tmp_path,
        ('markdown', 'word ' * 460),
        ('code', '#| export\nimport json\nfrom pathlib import Path'),
        ('code', '#| export\n' + 'def f():\n    return 1\n\n\n' * 25),
        ('code', '#| hide\n' + 'f()\n' * 100),
        ('code', '#| echo: false\n' + 'f()\n' * 75),
    )
    monkeypatch.setattr(house, 'ROOT', tmp_path)
    assert house.reading_minutes(chapter) == pytest.approx((460 / 230 + 50 / 25, 75 / 25))


def test_the_path_is_read_in_about_an_hour():
    text, _ = house.path_minutes()
    each = ', '.join(f'{chapter} {house.reading_minutes(chapter)[0]:.1f}' for chapter in house.PATH)
    assert text <= MOST, f'{text:.1f} minutes: {each}'
