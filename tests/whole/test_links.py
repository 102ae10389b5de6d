"The site links a word in backticks only where it means one function or class of this package"

import ast
from collections import defaultdict
import pytest
from repository import module_of_docs

NbdevLookup = pytest.importorskip('nbdev.doclinks', reason='the site is made by nbdev').NbdevLookup


@pytest.fixture(scope='module')
def links(root):
    return module_of_docs(root, 'links')


@pytest.fixture()
def lookup(links, monkeypatch):
    "As the build of the site uses it"
    monkeypatch.setattr(NbdevLookup, 'doc', NbdevLookup.doc)  # put back afterwards
    links.use()
    return NbdevLookup()


WORDS = 'new answer evaluate show decode decide predict train gain share words numbers points leaves fit'.split()
TWICE = ['TaskRows', 'show_batch', 'columns_of']  # of several modules
CODE = ['__init__', '_do_fit', 'transformers', 'infer_labels']


@pytest.mark.parametrize('word', [*WORDS, *TWICE, *CODE])
def test_no_link(lookup, word):
    for text in (f'`{word}`', f'a `{word}()` b'):
        assert lookup.linkify(text) == text


@pytest.mark.parametrize(
    'word, page',
    [
        ('Flow', 'core/flow.html'),
        ('task', 'core/conditions.html'),  # `Accumulator.task` is written so
        ('equip', 'equip.html'),
        ('load_safe', 'deploy/safe.html'),
        ('TaskSets', 'loss/sets.html'),
        ('with_implied', 'core/nesting.html'),
        ('ConditionalDataLoaders.from_df', 'vision/data.html'),
        ('fastai.learner.Learner', 'learner.html'),
    ],
)
def test_a_link(lookup, word, page):
    for text, shown in ((f'`{word}`', word), (f'`{word}()`', f'{word}()')):
        assert lookup.linkify(text).startswith(f'[`{shown}`](') and f'{page}#' in lookup.linkify(text)


def is_patch(line):
    "True for `@patch` and `@patch(...)`: such a function belongs to a class"
    return ast.unparse(line).partition('(')[0] == 'patch'


def test_each_link_leads_to_the_only_definition(root, lookup):
    "By the source of all modules; nbdev indexes none with `auto` in its name"
    defined, package = defaultdict(list), root / 'fastai_condmtl'
    for file in (file for file in package.rglob('*.py') if 'auto' not in file.name):
        for line in ast.parse(file.read_text(encoding='utf-8')).body:
            if isinstance(line, (ast.FunctionDef, ast.ClassDef)) and not any(map(is_patch, line.decorator_list)):
                defined[line.name].append(file.relative_to(package).with_suffix('.html').as_posix())
    linked = {name: lookup.doc(name) for name in defined if lookup.doc(name) is not None}
    assert len(linked) > 500
    assert not {name for name, url in linked.items() if len(defined[name]) != 1 or f'{defined[name][0]}#' not in url}
