"""How the code reads, in figures: widths, statements sharing a line, conditional expressions, short names, sizes of
cells and classes, minutes of the reading path

python benchmarks/house.py            this package, a line a figure
python benchmarks/house.py fastai     an installed package beside it
python benchmarks/house.py --where core/plan   what is to be mended in a module: cells over 40 lines, nested
                                               conditional expressions, names of one or two letters
"""

import ast
import collections
import importlib.util
import json
import re
import statistics
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 120
CELL = 40
# The chapters that lead a reader who has never seen the code from a condition to a decision
PATH = [f'core/{chapter}' for chapter in ('conditions', 'block', 'flow', 'plan', 'target', 'bound')]
PATH += [f'loss/{chapter}' for chapter in ('layout', 'masked_mean', 'conditional', 'decisions')]
WORDS_A_MINUTE, LINES_A_MINUTE = 230, 25


def modules(package):
    "The files of a package, without what is made for nbdev's index"
    where = ROOT / package if (ROOT / package).is_dir() else Path(importlib.util.find_spec(package).origin).parent
    return [p for p in sorted(where.rglob('*.py')) if p.name != '_modidx.py']


def statements(tree):
    "All statements of a module, docstrings apart"
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            yield node


def shared_lines(tree):
    "Statements that do not begin a line of their own: after a `;`, or behind the colon of another"
    first = {}
    for node in statements(tree):
        first.setdefault(node.lineno, []).append(node.col_offset)
    return sum(len(columns) - 1 for columns in first.values())


def conditionals(tree):
    "Conditional expressions, and those that hold another"
    found = [n for n in ast.walk(tree) if isinstance(n, ast.IfExp)]
    nested = [n for n in found if any(isinstance(m, ast.IfExp) for m in ast.walk(n) if m is not n)]
    return len(found), len(nested)


def own_names(tree):
    "Names that a module gives: arguments and variables, each use counted"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg) and node.arg not in ('self', 'cls'):
            yield node.arg


def figures(package):
    "Figure -> value of one package"
    lines, names, methods = [], [], {}
    n_statements = shared = n_conditionals = nested = 0
    defined = set()  # classes of the package: patches of others, such as `Learner`, are not its classes
    for path in modules(package):
        with tokenize.open(path) as f:
            text = f.read()
        tree = ast.parse(text)
        lines += [len(line) for line in text.splitlines()]
        n_statements += sum(1 for _ in statements(tree))
        shared += shared_lines(tree)
        some, inner = conditionals(tree)
        n_conditionals, nested = n_conditionals + some, nested + inner
        names += own_names(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                defined.add(node.name)
                own = sum(isinstance(m, (ast.FunctionDef, ast.AsyncFunctionDef)) for m in node.body)
                methods[node.name] = methods.get(node.name, 0) + own
        for owner, _ in patched(tree):
            methods[owner] = methods.get(owner, 0) + 1
    wide = [n for n in lines if n > WIDTH]
    largest = max((c for c in methods if c in defined), key=methods.get)
    return {
        'modules': len(modules(package)),
        'lines': len(lines),
        f'lines over {WIDTH} characters': f'{100 * len(wide) / len(lines):.1f} % ({len(wide)}, longest {max(lines)})',
        'statements sharing a line': f'{100 * shared / n_statements:.1f} %',
        'conditional expressions per 100 lines': f'{100 * n_conditionals / len(lines):.1f} ({nested} hold another)',
        'names of one or two letters': f'{100 * sum(len(n) < 3 for n in names) / len(names):.0f} %',
        'methods of the largest class': f'{methods[largest]} ({largest})',
    }


def patched(tree):
    "Pairs (class, name) of methods that `@patch` adds to a class, and of those that are properties or class methods"
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef) or not node.args.args:
            continue
        decorators = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
        if any(isinstance(d, ast.Name) and d.id == 'patch' for d in decorators):
            owner = node.args.args[0].annotation
            if isinstance(owner, ast.Name):
                yield owner.id, node.name


def cells(path):
    "Kind and source of each cell of a notebook: `prose`, `export`, `hidden` or `shown`"
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            yield 'prose', source
        elif re.search(r'^#\| *export', source, re.M):
            yield 'export', source
        else:
            yield 'hidden' if re.search(r'^#\| *hide', source, re.M) else 'shown', source


def export_cells():
    "Lines of each exported cell of the notebooks"
    for path in sorted((ROOT / 'nbs').rglob('*.ipynb')):
        for kind, source in cells(path):
            if kind == 'export':
                yield len(source.splitlines()) - 1


def reading_minutes(chapter):
    """Minutes of reading a chapter such as `core/plan`: its prose and exported code, and its shown cells. Blank lines,
    cells of imports and hidden cells are not read"""
    words, lines = 0, dict(export=0, shown=0)
    for kind, source in cells(ROOT / 'nbs' / f'{chapter}.ipynb'):
        if kind == 'prose':
            words += len(source.split())
        elif kind == 'shown' or kind == 'export' and not is_imports(source):
            lines[kind] += sum(bool(line.strip()) and not line.strip().startswith('#|') for line in source.splitlines())
    return words / WORDS_A_MINUTE + lines['export'] / LINES_A_MINUTE, lines['shown'] / LINES_A_MINUTE


def is_imports(source):
    "True if a cell only imports"
    return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(source).body)


def path_minutes():
    "Minutes of the reading path, without and with the shown cells"
    minutes = [reading_minutes(chapter) for chapter in PATH]
    return sum(text for text, _ in minutes), sum(text + shown for text, shown in minutes)


def where(module):
    "Print what is to be mended in one module"
    for i, (kind, source) in enumerate(cells(ROOT / 'nbs' / f'{module}.ipynb')):
        if kind == 'export' and (n := len(source.splitlines()) - 1) > CELL:
            print(f"  cell {i}: {n} lines")
    text, shown = reading_minutes(module)
    print(f'  {text:.1f} minutes to read, with shown cells {text + shown:.1f}')
    text = (ROOT / 'fastai_condmtl' / f'{module}.py').read_text(encoding='utf-8')
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.IfExp) and any(isinstance(m, ast.IfExp) for m in ast.walk(node) if m is not node):
            print(f'  line {node.lineno}: a conditional expression holds another')
    names = collections.Counter(n for n in own_names(tree) if len(n) < 3)
    print(f"  short names: {', '.join(f'{n} {k}' for n, k in names.most_common())}")
    print(f'  {len(text.splitlines())} lines')


def hooks():
    "Attributes and methods of the base class of all kinds of task"
    given = set()
    for path in (ROOT / 'fastai_condmtl' / 'core' / f'{module}.py' for module in ('hooks', 'block')):
        tree = ast.parse(path.read_text(encoding='utf-8'))
        for cls in (n for n in tree.body if isinstance(n, ast.ClassDef)):
            given |= set(declared(cls))
        given |= {name for _, name in patched(tree)}
    return len({name for name in given if not name.startswith('_')})


def declared(cls):
    "Names that the body of a class gives: attributes, annotations and methods"
    for node in cls.body:
        if isinstance(node, ast.Assign):
            yield from (t.id for t in ast.walk(node.targets[0]) if isinstance(t, ast.Name))
        elif isinstance(node, ast.AnnAssign):
            yield node.target.id
        elif isinstance(node, ast.FunctionDef):
            yield node.name


def main(packages):
    for package in packages:
        print(f'{package}')
        for name, value in figures(package).items():
            print(f'  {name:42} {value}')
        if package == 'fastai_condmtl':
            sizes = list(export_cells())
            print(f"  {'lines of an exported cell':42} median {statistics.median(sizes):.0f}, longest {max(sizes)}")
            print(f"  {'names a new kind of task may meet':42} {hooks()}")
            text, with_shown = path_minutes()
            print(f"  {'minutes of the reading path':42} {text:.0f}, with shown cells {with_shown:.0f}")


if __name__ == '__main__':
    if sys.argv[1:2] == ['--where']:
        for module in sys.argv[2:]:
            print(module)
            where(module)
        raise SystemExit
    main(['fastai_condmtl', *sys.argv[1:]])
