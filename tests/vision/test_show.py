"""What is long in a tree beside a picture goes on below: nothing is cut off while there is room"""

import matplotlib.pyplot as plt
import pytest

from fastai_condmtl.core.prediction_tree import FlowTree
from fastai_condmtl.vision.all import *
from fastai_condmtl.vision.show import wrapped


@pytest.fixture
def ax():
    figure = plt.figure(figsize=(7, 2.7))
    yield figure.add_axes([0.38, 0.01, 0.6, 0.98])
    plt.close(figure)


def tree_of(*texts, depth=1):
    tree = FlowTree()
    tree.create_node('flow', '')
    parent = ''
    for level in range(depth - 1):
        tree.create_node(f'inner{level}', level, parent=parent)
        parent = level
    for i, text in enumerate(texts):
        tree.create_node(text, f'n{i}', parent=parent, data=dict(wrong=i == 0))
    return tree


def written(ax):
    return [text.get_text() for text in ax.texts]


def flat(ax):
    return ' '.join(' '.join(written(ax)).replace('✗', '').replace('│', ' ').split())


FACE = 'face: 120.5 148.2 375.1 340.7, truth 112.3 115.9 374.6 204.8'
POINTS = 'points: ' + ', '.join(f'p{i} {i}.25 {i}.75' for i in range(12)) + ', truth none'


@pytest.mark.parametrize('depth', [1, 3, 5])
def test_truths_of_boxes_and_points_are_written_out(ax, depth):
    draw_tree(ax, tree_of(FACE, POINTS, 'age: 3', depth=depth))
    assert '…' not in flat(ax)
    for text in (FACE, POINTS, 'age: 3'):
        assert text in flat(ax)


@pytest.mark.parametrize('depth', [1, 4])
def test_all_stays_within_the_axes(ax, depth):
    draw_tree(ax, tree_of(FACE, POINTS, POINTS, FACE, depth=depth))
    ax.figure.canvas.draw()
    frame = ax.get_window_extent()
    for text in ax.texts:
        box = text.get_window_extent()
        assert box.x1 <= frame.x1 + 1 and box.y0 >= frame.y0 - 2 and box.y1 <= frame.y1 + 2


def test_a_sign_stands_once_and_the_colour_on_each_line(ax):
    draw_tree(ax, tree_of(POINTS, 'age: 3'))
    of_points = [text for text in ax.texts if text.get_color() == 'crimson']
    assert len(of_points) > 1 and [text.get_text()[0] for text in of_points] == ['✗', *' ' * (len(of_points) - 1)]


def test_what_fits_has_a_line_each(ax):
    draw_tree(ax, tree_of('a: yes', 'b: no'))
    assert written(ax) == ['✗ a: yes', '  b: no'] or [line.strip('✗ ├└─') for line in written(ax)] == [
        'a: yes',
        'b: no',
    ]


def test_lines_break_between_parts_and_beside_branches():
    (lines,) = wrapped(['├── eyes: l 9.8 14.8, r 18.3 35.1, truth l 11.2 11.5'], 26, 10)
    assert lines == ['├── eyes: l 9.8 14.8,', '│     r 18.3 35.1,', '│     truth l 11.2 11.5']
    (lines,) = wrapped(['    └── note: one two three four five six'], 24, 10)
    assert all(len(line) <= 24 for line in lines) and lines[1].startswith('          ')


def test_too_much_is_cut_at_its_end_and_says_so():
    parts = wrapped(['short', 'a, ' * 200], 30, 6)
    assert sum(map(len, parts)) == 6 and parts[0] == ['short'] and parts[1][-1].endswith('…')
    assert wrapped(['one', 'two'], 30, 1) == [['one'], ['two']]
    assert wrapped([''], 30, 3) == [['']]
