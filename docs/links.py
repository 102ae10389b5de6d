"""Which words in backticks become links. nbdev links each that any module of the package uses as a name: `new`,
`answer` or `train` in a sentence would lead to a function that the sentence does not mean."""

import ast, re
from collections import defaultdict
from pathlib import Path
from nbdev.doclinks import NbdevLookup

PACKAGE = Path(__file__).resolve().parents[1] / 'fastai_condmtl'


def names_for_users(package=PACKAGE):
    "What `import *` of the package's `all` modules gives by name"
    found = set()
    for file in package.rglob('all.py'):
        for line in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
            if isinstance(line, ast.ImportFrom):
                found.update(name.asname or name.name for name in line.names)
    return found


def owners(symbols):
    "Last part of a name → where it stands within its modules: `task` → `['task', 'Accumulator.task']`"
    found = defaultdict(list)
    for module, names in symbols.items():
        for name in names:
            within = name.removeprefix(f'{module}.')
            found[within.rpartition('.')[2]].append(within)
    return found


def is_one_thing(word, owners, for_users):
    """True if a bare word means one function or class. A name that users import is known to them, and a method of the
    same name is written with what it belongs to. Any other must be the only one, and look like code"""
    where = owners.get(word, [])
    if word.startswith('_') or where.count(word) != 1:
        return False
    return word in for_users or len(where) == 1 and not re.fullmatch('[a-z]+', word)


def use():
    "From now on nbdev links a bare word only where it means one thing; one with a dot is looked up as ever"
    stock, for_users = NbdevLookup.doc, names_for_users()
    where = owners(NbdevLookup().entries[PACKAGE.name]['syms'])

    def doc(self, word):
        "Link to the page of `word`, None where it has none"
        return stock(self, word) if '.' in word or is_one_thing(word, where, for_users) else None

    NbdevLookup.doc = doc
