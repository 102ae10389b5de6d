"How the site shows a function: docs/renderer.py"

import pytest
from repository import module_of_docs


def what(
    a,  # The first
    *args,  # More of them
    b: int = 1,  # How many
    **kwargs,  # For `dls.test_dl`
) -> list:
    "What it does"


def gives(
    **kwargs,  # For `dls.test_dl`
) -> list:  # What is given back
    "What it does"


def in_two_lines(a):
    """What it does, told in a sentence that is longer than a line of code may be, so that
    it goes on here

    And more of it"""


@pytest.fixture(scope='module')
def renderer(root):
    return module_of_docs(root, 'renderer')


@pytest.mark.parametrize('f, told', [(what, ''), (gives, 'What is given back')])
def test_a_comment_stands_beside_its_parameter(renderer, f, told):
    cells = [[cell.strip(' *') for cell in line.split('|')[1:-1]] for line in renderer.table(f).splitlines()]
    rows = {line[0]: line[-1] for line in cells}
    assert rows['kwargs'] == 'For `dls.test_dl`' and rows['Returns'] == told
    if f is what:
        assert (rows['a'], rows['args'], rows['b']) == ('The first', 'More of them', 'How many')


def test_a_sentence_is_in_italics_to_its_end(renderer):
    entry = renderer.TableRenderer(in_two_lines).entry()
    assert (
        '*What it does, told in a sentence that is longer than a line of code may be, so that it goes on here*' in entry
    )
    assert entry.endswith('\n\nAnd more of it')
    assert '*What it does*' in renderer.TableRenderer(what).entry()
