"A release writes the version once, everywhere, and the day into the changelog; nothing is released by mistake"

import datetime, importlib.util, re, subprocess, sys
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[2]
DAY = datetime.date(2027, 1, 2)


@pytest.fixture
def release():
    spec = importlib.util.spec_from_file_location('release', ROOT / 'docs' / 'release.py')
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def tree(tmp_path):
    "Copies of the three files that a release changes"
    (tmp_path / 'fastai_condmtl').mkdir()
    for file in ('settings.ini', 'fastai_condmtl/__init__.py', 'CHANGELOG.md'):
        (tmp_path / file).write_text((ROOT / file).read_text(encoding='utf-8'), encoding='utf-8')
    log = (tmp_path / 'CHANGELOG.md').read_text(encoding='utf-8')
    news = log.replace('## Unreleased\n', '## Unreleased\n\n- **Doors**: they open.\n', 1)
    (tmp_path / 'CHANGELOG.md').write_text(news, encoding='utf-8')
    return tmp_path


def lines_of(root, file):
    return (root / file).read_text(encoding='utf-8').splitlines()


def test_writes_three_files(release, tree):
    before = {file: lines_of(tree, file) for file in ('settings.ini', 'fastai_condmtl/__init__.py')}
    release.write(tree, '9.8.7', DAY)
    for file, line in {
        'settings.ini': 'version = 9.8.7',
        'fastai_condmtl/__init__.py': '__version__ = "9.8.7"',
    }.items():
        changed = [new for old, new in zip(before[file], lines_of(tree, file), strict=True) if old != new]
        assert changed == [line]
    log = '\n'.join(lines_of(tree, 'CHANGELOG.md'))
    assert re.search(r'## Unreleased\n\n## 9\.8\.7 - 2027-01-02\n\n- \*\*Doors\*\*: they open\.\n', log)


def test_once(release, tree):
    "A second call has nothing to tell, and the version is there"
    release.write(tree, '9.8.7', DAY)
    with pytest.raises(SystemExit, match='has version 9.8.7 already'):
        release.write(tree, '9.8.7', DAY)
    with pytest.raises(SystemExit, match='nothing under Unreleased'):
        release.write(tree, '9.8.8', DAY)


@pytest.mark.parametrize('version', ['', '1', '1.2', 'v1.2.3', '1.2.3rc1'])
def test_refuses_what_is_no_version(release, tree, version):
    with pytest.raises(SystemExit, match='is no version: make release VERSION='):
        release.write(tree, version, DAY)


def test_refuses_an_older_one(release, tree):
    with pytest.raises(SystemExit, match='must be a later one'):
        release.write(tree, '0.0.9', DAY)


def test_refuses_what_is_not_committed(tmp_path):
    "Of a repository with a changed file: nothing is written"
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'docs' / 'release.py').write_text((ROOT / 'docs' / 'release.py').read_text(encoding='utf-8'))
    subprocess.run(['git', 'init', '-q', tmp_path], check=True)
    res = subprocess.run(
        [sys.executable, tmp_path / 'docs' / 'release.py', '9.8.7'], cwd=tmp_path, capture_output=True, text=True
    )
    assert res.returncode == 1 and 'not committed' in res.stderr


def test_one_version():
    "settings.ini and the package name the same"
    of = {
        f: re.search(p, '\n'.join(lines_of(ROOT, f)), re.M)[1]
        for f, p in (('settings.ini', r'^version = (.*)$'), ('fastai_condmtl/__init__.py', r'^__version__ = "(.*)"$'))
    }
    assert len(set(of.values())) == 1, of
