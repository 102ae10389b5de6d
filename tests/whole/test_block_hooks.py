"""What the library reads off a block is declared in the base class: no module asks whether a block has an
attribute, and each attribute of a kind that another room reads is one of the base"""

import ast
import inspect
import json
import textwrap
from pathlib import Path

import pytest

import fastai_condmtl
from fastai_condmtl.all import *
from fastai_condmtl.core.conditions import Comparable
from fastai_condmtl.core.hooks import missing_hooks
from fastai_condmtl.text.all import MaskedLMBlock

PACKAGE = Path(fastai_condmtl.__file__).parent
FILES = {p.relative_to(PACKAGE).as_posix(): p for p in PACKAGE.rglob('*.py') if p.name != '_modidx.py'}
TREES = {name: ast.parse(p.read_text(encoding='utf-8')) for name, p in FILES.items()}
FAMILIES = dict(
    labels=['setup', 'encode', 'to_cell', 'scale', 'unscale', 'describe'],
    network=['family', 'loss', 'activate', 'decide'],
    questions=['parse_question', 'answer', 'implied_labels', 'state_probs'],
    scores=['summarise', 'score', 'fit_baseline', 'baseline'],
)
REQUIRED = ['encode', 'to_cell', 'loss', 'activate', 'decide', 'answer', 'summarise', 'score']
BLOCKS = {'b', 'block', 'blk', 'a_block', 'new_block', 'old_block'}


def kinds(cls=ConditionalBlock):
    "Classes of the library below the base, parts of kinds too"
    for c in cls.__subclasses__():
        if c.__module__.startswith('fastai_condmtl'):
            yield c
            yield from kinds(c)


def set_on_self(cls):
    "Names of attributes that the methods of a class set, also those that are patched on it"
    sources = [inspect.getsource(cls), *(inspect.getsource(m) for m in vars(cls).values() if inspect.isfunction(m))]
    return {
        n.attr
        for source in sources
        for n in ast.walk(ast.parse(textwrap.dedent(source)))
        if isinstance(n, ast.Attribute)
        and isinstance(n.ctx, ast.Store)
        and isinstance(n.value, ast.Name)
        and n.value.id == 'self'
    }


def public(cls):
    return {k for k in {*vars(cls), *set_on_self(cls)} if not k.startswith('_')}


ANNOTATED = {name for cls in ConditionalBlock.__mro__ for name in vars(cls).get('__annotations__', {})}
DECLARED = {*dir(ConditionalBlock), *ANNOTATED, *set_on_self(ConditionalBlock)}
OF_KINDS = set().union(*map(public, kinds()))


def probes(tree):
    "Lines of `hasattr(b, ...)`, `getattr(b, 'x')`, `getattr(b, x, default)`, and attempts at an attribute of a block"
    for n in ast.walk(tree):
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id in ('getattr', 'hasattr'):
            asks = n.func.id == 'hasattr' or len(n.args) == 3 or isinstance(n.args[1], ast.Constant)
            if asks and names_a_block(n.args[0]):
                yield n.lineno
        if isinstance(n, ast.Try) and any(catches_attribute_error(h) for h in n.handlers):
            inside = [m for s in n.body for m in ast.walk(s) if isinstance(m, ast.Attribute)]
            if any(names_a_block(m.value) for m in inside):
                yield n.lineno


def names_a_block(n):
    "Is an expression called as blocks are: `b`, `block`, `flow.tasks[p]`, `plan.blocks[i]`, `self.block`?"
    if isinstance(n, ast.Name):
        return n.id in BLOCKS
    if isinstance(n, ast.Attribute):
        return n.attr in BLOCKS - {'b'}
    return isinstance(n, ast.Subscript) and isinstance(n.value, ast.Attribute) and n.value.attr in ('tasks', 'blocks')


def catches_attribute_error(handler):
    return handler.type is not None and any(
        isinstance(n, ast.Name) and n.id == 'AttributeError' for n in ast.walk(handler.type)
    )


@pytest.mark.parametrize(
    'source, n',
    [
        ("getattr(b, 'vocab', None)", 1),
        ("getattr(block, name, None)", 1),
        ("hasattr(flow.tasks[p], 'config')", 1),
        ("getattr(plan.blocks[i], 'vocab')", 1),
        ("try:\n    x = self.block.vocab\nexcept (TypeError, AttributeError):\n    x = None", 1),
        ("getattr(block, name)", 0),
        ("getattr(learn, 'dls', None)", 0),
        ("try:\n    x = learn.dls\nexcept AttributeError:\n    x = None", 0),
        ("try:\n    x = block.vocab\nexcept KeyError:\n    x = None", 0),
    ],
)
def test_probes_are_found(source, n):
    assert len(list(probes(ast.parse(source)))) == n


@pytest.mark.parametrize('name', FILES)
def test_no_module_asks_whether_a_block_has_an_attribute(name):
    assert not list(probes(TREES[name]))


@pytest.mark.parametrize('name', FILES)
def test_what_only_kinds_have_is_not_asked_for_by_name(name):
    "Whatever the variable is called: an attribute of kinds and of the base is read, not probed"
    other = {k for k in dir(object) if k.startswith('__')} | {'__dict__', '__module__', 'item_tfms'}  # of any class
    other |= {'name', 'path', 'cols', 'index', 'mean', 'std', 'split', 'join', 'read', 'loss', 'names', 'uses'}
    found = [
        (n.lineno, n.args[1].value)
        for n in ast.walk(TREES[name])
        if isinstance(n, ast.Call)
        and isinstance(n.func, ast.Name)
        and n.func.id in ('getattr', 'hasattr')
        and isinstance(n.args[1], ast.Constant)
        and n.args[1].value in (DECLARED | OF_KINDS) - other
    ]
    assert not found


def test_what_other_rooms_read_off_a_block_is_declared():
    """An attribute that only kinds set, read off a variable that is called as blocks are; in `tasks`, where kinds
    stand, and in `text`, which reads its own kind, they may"""
    undeclared = OF_KINDS - DECLARED - {'index', 'read'}  # lists have an index, a layer that uses others reads
    read = {
        (name, n.lineno, n.attr)
        for name, tree in TREES.items()
        if not name.startswith(('tasks/', 'text/'))
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and n.attr in undeclared and names_a_block(n.value)
    }
    assert not read
    assert {'vocab', 'threshold', 'thresholds', 'tune', 'whole_space', 'label_scores', 'lo', 'span'} <= DECLARED


@pytest.mark.parametrize('cls', kinds(), ids=lambda c: c.__name__)
def test_hooks_that_kinds_share_are_declared(cls):
    "A public method that a kind has and the base calls or declares nowhere is called within its room alone"
    own = {k for k, f in vars(cls).items() if callable(f) and not k.startswith('_')} - DECLARED
    elsewhere = {
        n.func.attr
        for name, tree in TREES.items()
        if not name.startswith(('tasks/', 'text/'))
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute) and names_a_block(n.func.value)
    }
    assert not own & elsewhere


def test_families_stand_in_order():
    names = [k for cls in ConditionalBlock.__mro__ for k in vars(cls)]
    order = [k for hooks in FAMILIES.values() for k in hooks]
    at = {k: names.index(k) for k in order}
    groups = [[at[k] for k in hooks] for hooks in FAMILIES.values()]
    assert all(max(a) < min(b) for a, b in zip(groups, groups[1:]))
    text = ConditionalBlock.__doc__.partition('Labels:')[2]
    said = [[text.index(f'`{k}') for k in hooks] for hooks in FAMILIES.values()]
    assert all(max(a) < min(b) for a, b in zip(said, said[1:]))


def test_every_hook_has_a_docstring_of_a_statement():
    members = {k: getattr(ConditionalBlock, k) for k in dir(ConditionalBlock) if not k.startswith('_')}
    hooks = {k: f for k, f in members.items() if inspect.isfunction(f) and k not in dir(Comparable)}
    assert set(REQUIRED) <= set(hooks)
    assert all((f.__doc__ or '').strip() and '?' not in f.__doc__ for f in hooks.values())


class Bare(ConditionalBlock):
    "Nothing is written"

    ops = ('eq',)


@pytest.mark.parametrize('hook', REQUIRED)
def test_a_required_hook_says_who_lacks_it(hook):
    with pytest.raises(FlowError, match=rf'Bare\.{hook} is not written.*05_own_block.*check_block'):
        getattr(Bare('x'), hook)()


def test_required_hooks():
    assert missing_hooks(Bare('x')) == REQUIRED
    mute = type('Mute', (Bare,), dict(ops=()))
    assert missing_hooks(mute('x')) == [k for k in REQUIRED if k != 'answer']
    one = type('One', (Bare,), dict(encode=BinaryBlock.encode))
    assert missing_hooks(one('x')) == REQUIRED[1:]
    assert not any(missing_hooks(b) for b in (BinaryBlock('x'), CountBlock('x'), MaskedLMBlock('x'), BoxBlock('x')))


class Forgetful(BinaryBlock):
    "`tune` of the base is not an argument that was kept"

    def __init__(self, name, *, lo: float = 0.0, **kwargs):
        super().__init__(name, **kwargs)


class Reminding(Forgetful):
    def __init__(self, name, *, lo: float = 0.0, **kwargs):
        super().__init__(name, **kwargs)
        self.lo = lo


def test_what_the_base_declares_is_no_argument_that_a_kind_keeps():
    with pytest.raises(FlowError, match="does not keep its argument 'lo'"):
        Flow('f', Forgetful('x', lo=2.0)).to_json()
    assert json.loads(Flow('f', Reminding('x', lo=2.0)).to_json())['tasks'][0]['lo'] == 2.0


def test_a_list_of_labels_is_a_cell():
    assert BinaryBlock('x').join(('a', 'b')) == ['a', 'b']
    assert MultiLabelBlock('x', vocab=['a', 'b'], label_delim=';').join(['a', 'b']) == 'a;b'
