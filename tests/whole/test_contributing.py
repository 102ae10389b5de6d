"The recipes of CONTRIBUTING.md, followed to the letter in a copy of the repository; style and types as they promise"

import json, os, re, subprocess, sys, sysconfig
from pathlib import Path
import pytest
from repository import nbdev, tree  # noqa: F401  a fixture

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
SECTIONS = dict(re.findall(r'^## (Add [^\n]*)\n(.*?)(?=^## |\Z)', TEXT, re.M | re.S))


def edits(section):
    "`(notebook, old, new)` of each diff, in order."
    res, nb = [], None
    for name, diff in re.findall(r'^`(nbs/[^`]*)`$|^```diff\n(.*?)^```', section, re.M | re.S):
        nb = name or nb
        if diff:
            res.append((nb, *('\n'.join(l[2:] for l in diff.splitlines() if l[:1] == s) for s in '-+')))
    return res


def apply(path, old, new):
    nb, n = json.loads(path.read_text(encoding='utf-8')), 0
    for c in nb['cells']:
        s = ''.join(c['source'])
        if c['cell_type'] == 'code' and s.startswith('#| export') and old in s:
            c['source'], n = s.replace(old, new, 1).splitlines(True), n + 1
    assert n == 1, f'{old!r} stands in {n} cells of {path.name}'
    path.write_text(json.dumps(nb), encoding='utf-8')


@pytest.mark.parametrize('title', SECTIONS)
def test_recipes(tree, title):  # noqa: F811
    section = SECTIONS[title]
    assert len(edits(section)) >= 1
    for nb, old, new in edits(section):
        apply(tree / nb, old, new)
    nbdev('nbdev-export', tree)
    (code,) = re.findall(r'^```python\n(.*?)^```', section, re.M | re.S)
    run = lambda cwd: subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        cwd=cwd,
        env={**os.environ, 'PYTHONPATH': str(cwd)},
        capture_output=True,
        text=True,
    )
    res = run(tree)
    assert res.returncode == 0, res.stderr
    assert run(ROOT).returncode != 0  # it is the recipe that makes it so


def test_commands_and_files_are_there():
    for path in re.findall(r'\b(?:nbs|tests|docs)/[\w/]+\.(?:ipynb|py)', TEXT):
        assert (ROOT / path).exists() or path.endswith('/x.ipynb'), path
    targets = (ROOT / 'Makefile').read_text()
    for t in set(re.findall(r'make ((?:[a-z-]+ ?)+)', TEXT)):
        for w in t.split():
            assert re.search(rf'^{w}:', targets, re.M) or w not in (
                'install',
                'lint',
                'test',
                'docs',
                'coverage',
                'mutate',
                'bench',
            ), w


@pytest.mark.parametrize('tool', [['ruff', 'check', '-q', '.'], ['mypy']], ids=lambda c: c[0])
def test_style_and_types(tool):
    res = subprocess.run(
        [Path(sysconfig.get_path('scripts')) / tool[0], *tool[1:]], cwd=ROOT, capture_output=True, text=True
    )
    assert res.returncode == 0, res.stdout + res.stderr
