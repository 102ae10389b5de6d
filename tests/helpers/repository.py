"A copy of the repository to work in, and its commands"

from pathlib import Path
import importlib.util
import os
import pytest
import re
import shutil
import subprocess
import sysconfig

PKG = 'fastai_condmtl'

SKIP = re.compile(r'(^|/)([_.].*|__pycache__|build|dist|.*\.egg-info|.*\.py[cod])(/|$)')


def module_of_docs(root, name):
    "A module of `docs`, which is no package"
    spec = importlib.util.spec_from_file_location(name, root / 'docs' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def repo_files(root):
    """What belongs to the repository, as paths relative to `root`: git's word, or a walk where git has none (an
    unpacked archive)."""
    try:
        out = subprocess.run(
            ['git', 'ls-files', '-coz', '--exclude-standard'], cwd=root, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        out = ''
    if f'{PKG}/__init__.py\0' not in out:
        files = (p.relative_to(root).as_posix() for p in root.rglob('*') if p.is_file())
        return [f for f in files if Path(f).name in ('__init__.py', '_modidx.py') or not SKIP.search(f)]
    return [f for f in out.split('\0') if f and (root / f).is_file()]


@pytest.fixture
def tree(root, tmp_path):
    "A copy of the repository to work in."
    for f in repo_files(root):
        (tmp_path / 'tree' / f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / f, tmp_path / 'tree' / f)
    return tmp_path / 'tree'


def run(*cmd, cwd):
    "Run `cmd` away from the user's nbdev settings and from nbdev-test's switch; show what it said if it fails."
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | {'XDG_CONFIG_HOME': str(cwd.parent / 'config')}
    res = subprocess.run(
        [str(o) for o in cmd], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert res.returncode == 0, f'{cmd} failed:\n{res.stdout}'
    return res.stdout


def nbdev(cmd, cwd):
    return run(Path(sysconfig.get_path('scripts')) / cmd, cwd=cwd)
