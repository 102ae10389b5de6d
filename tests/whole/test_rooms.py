"Rooms import down and never up: read off the imports of every module, those inside of functions too"

import ast, json, pickle, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[2]
PKG = 'fastai_condmtl'
FLOORS = [
    ['core'],
    ['tasks'],
    ['loss'],
    ['data'],
    ['learn'],
    ['evaluate'],
    ['deploy'],
    ['callback'],
    ['block_checks'],
    ['check_block'],
    ['equip'],
    ['all'],
    ['vision', 'tabular', 'text'],
    ['datasets'],
    ['tools'],
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
# Imports of our own within functions: who, whom, why
LATE = {
    ('deploy.predictor', 'data.pictures'): 'only a predictor of pictures loads vision',
    ('deploy.predictor', 'data.cache'): 'only a predictor of pictures loads vision',
    ('deploy.predictor', 'data.cache_format'): 'only a predictor of pictures loads vision',
    ('tabular.*', 'vision.show'): 'only a table with pictures loads vision',
    ('tabular.*', 'vision.learner'): 'only a table with pictures loads vision',
}


def is_late(m, o):
    return (m, o) in LATE or (f'{room(m)}.*', o) in LATE


def modules():
    "Dotted name below the package → path"
    files = (p for p in (ROOT / PKG).rglob('*.py') if p.name not in ('__init__.py', '_modidx.py'))
    return {'.'.join(p.relative_to(ROOT / PKG).with_suffix('').parts): p for p in files}


MODULES = modules()


def imports(name, source, known):
    "`(imported module, whether within a function)` of our own"

    def below(dotted):
        parts = dotted.split('.')
        while parts and '.'.join(parts) not in known:
            parts.pop()
        return '.'.join(parts)

    def visit(node, late):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for a in child.names:
                    if a.name.startswith(PKG + '.'):
                        yield below(a.name[len(PKG) + 1 :]), late
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ''
                if child.level:
                    base = '.'.join([*name.split('.')[: -child.level], *filter(None, [child.module])])
                elif base == PKG or base.startswith(PKG + '.'):
                    base = base[len(PKG) + 1 :]
                else:
                    continue
                for a in child.names:
                    yield below('.'.join(filter(None, [base, a.name]))), late
            yield from visit(child, late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    return {(m, late) for m, late in visit(ast.parse(source), False) if m and m != name}


GRAPH = {name: imports(name, p.read_text(encoding='utf-8'), MODULES) for name, p in MODULES.items()}


def room(name):
    return name.split('.')[0]


def test_every_module_has_a_room():
    assert {room(m) for m in MODULES} <= set(FLOOR)


def test_imports_are_read():
    source = (
        'from ..core.errors import FlowError\nimport fastai_condmtl.data.split\ndef f():\n    from '
        'fastai_condmtl.vision import show\n    import fastai\n'
    )
    known = ['core.errors', 'data.split', 'vision.show', 'learn.x']
    assert imports('learn.x', source, known) == {('core.errors', False), ('data.split', False), ('vision.show', True)}


def test_imports_go_down():
    up = [(m, o) for m, os in GRAPH.items() for o, _ in os if FLOOR[room(o)] > FLOOR[room(m)]]
    aside = [
        (m, o)
        for m, os in GRAPH.items()
        for o, _ in os
        if FLOOR[room(o)] == FLOOR[room(m)] and room(o) != room(m) and not is_late(m, o)
    ]
    assert not up + aside


def test_no_circle():
    done, way = set(), []

    def visit(m):
        assert m not in way, ' → '.join([*way[way.index(m) :], m])
        if m in done:
            return
        way.append(m)
        for o, _ in sorted(GRAPH[m]):
            visit(o)
        done.add(way.pop())

    for m in sorted(GRAPH):
        visit(m)


def test_functions_import_extras_and_applications_only():
    "The tools are programs, which begin quickly: they may load what they need when they need it"
    late = {(m, o) for m, os in GRAPH.items() for o, within in os if within and room(m) != 'tools'}
    assert not {(m, o) for m, o in late if not is_late(m, o)}
    assert all(any(who in (m, f'{room(m)}.*') and whom == o for m, o in late) for who, whom in LATE), (
        'an exception that nobody needs'
    )


def test_data_sets_and_tools_are_not_part_of_all():
    seen, todo = set(), ['all']
    while todo:
        m = todo.pop()
        if m not in seen:
            todo += [o for o, _ in GRAPH[seen.add(m) or m]]
    assert not {room(m) for m in seen} & {'datasets', 'tools', 'vision', 'tabular', 'text'}


def loaded(code):
    out = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code + "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr
    return set(json.loads(out.stdout.splitlines()[-1]))


def test_conditions_alone_are_light():
    mods = loaded('import fastai_condmtl.core.conditions')
    assert not {m for m in mods if m == 'fastai' or m.startswith('fastai.') or m == 'torch'}
    assert {m for m in mods if m.startswith(PKG)} == {
        PKG,
        f'{PKG}.core',
        f'{PKG}.core.conditions',
        f'{PKG}.core.errors',
        f'{PKG}.core.question_text',
        f'{PKG}.core.question_values',
        f'{PKG}.core.questions',
    }


@pytest.mark.parametrize(
    'module', ['core.conditions', 'core.flow', 'tasks.all', 'loss.conditional', 'data.target_block']
)
def test_lower_rooms_leave_fastai_as_it_is(module):
    "What replaces or adds methods of a `Learner` is in `learn` and above"
    code = f"""
from fastai.learner import Learner
from fastai.callback.core import GatherPredsCallback
was = [dict(vars(c)) for c in (Learner, GatherPredsCallback)]
import fastai_condmtl.{module}
assert was == [dict(vars(c)) for c in (Learner, GatherPredsCallback)]"""
    mods = loaded(code)
    assert not {m for m in mods if m.startswith((f'{PKG}.learn', f'{PKG}.vision'))}


def test_pickles_of_before_say_what_to_do():
    "A learner exported by 0.1.0 begins with a class of its module `data`, which is a room now."
    old = b'cfastai_condmtl.data\nConditionalLists\n.'
    with pytest.raises(ValueError, match='version 0.1.0.*learn.save_safe'):
        pickle.loads(old)
