"`make test` runs on after a failure, lists all that failed in the end, and says so by its exit code."

import pytest

import run


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A folder with notebooks and tests, and a stand-in for nbdev-test, to which notebooks called `bad` fail"
    for name in ('nbs/bad.ipynb', 'nbs/good.ipynb', 'nbs/sub/bad.ipynb', 'nbs/_draft/bad.ipynb', 'nbs/_bad.ipynb'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('')
    tool = tmp_path / 'nbdev-test'
    tool.write_text('#!/bin/sh\ncase "$1" in *bad*) echo "$1 went wrong"; exit 1;; esac\n')
    tool.chmod(0o755)
    (tmp_path / 'pytest.ini').write_text('[pytest]\naddopts = -rfEs -p no:hypothesispytest\n')
    monkeypatch.setattr(run, 'ROOT', tmp_path)
    monkeypatch.setattr(run, 'SCRIPTS', tmp_path)
    return tmp_path


TESTS = '''
import pytest
def test_right(): pass
@pytest.mark.parametrize('x', ['a b', 'c'])
def test_wrong(x): assert x == 'c'
def test_broken(missing_fixture): pass
'''


def test_all_that_failed_is_listed(project, capfd):
    (project / 'test_some.py').write_text(TESTS)
    with pytest.raises(SystemExit) as stop:
        run.main(1)
    lines = stop.value.code.splitlines()
    assert lines[0] == 'failed:'
    assert {line.strip() for line in lines[1:]} == {
        'nbs/bad.ipynb',
        'nbs/sub/bad.ipynb',
        'test_some.py::test_wrong[a b]',
        'test_some.py::test_broken',
    }
    said = capfd.readouterr().out
    assert 'nbs/sub/bad.ipynb went wrong' in said and 'notebooks: 1 passed, 2 failed' in said and '2 passed' in said


def test_nothing_failed(project, capfd):
    (project / 'nbs' / 'bad.ipynb').unlink()
    (project / 'nbs' / 'sub' / 'bad.ipynb').unlink()
    (project / 'test_some.py').write_text('def test_right(): pass')
    run.main(1)
    said = capfd.readouterr().out.strip().splitlines()
    assert 'notebooks: 1 passed' in said and said[-1].startswith('1 passed')


def test_no_tests_is_a_failure(project):
    with pytest.raises(SystemExit, match=r'pytest \(exit code 5\)'):
        run.main(1)
