"The arrangements of `make arrangements`: what they cover, and that they reach the tests"

import re, subprocess, sys
import pytest
import arrangements


def test_six_cover_each_pair_but_four_of_processors_and_seeds():
    assert len(arrangements.ARRANGEMENTS) == 6
    for kind, values in arrangements.KINDS.items():
        assert {a[kind] for a in arrangements.ARRANGEMENTS} == set(values), kind
    gone = arrangements.missing()
    assert len(gone) == 4 and all({kind for kind, _ in pair} == {'processor', 'seed'} for pair in gone)


def test_the_variables_of_an_arrangement(monkeypatch):
    monkeypatch.setenv('ATEN_CPU_CAPABILITY', 'avx2')
    env = arrangements.environment(dict(processor='as it comes', threads=2, seed=43, torch='newest'))
    assert (
        'ATEN_CPU_CAPABILITY' not in env and env['FASTAI_CONDMTL_SEED'] == '43' and env['FASTAI_CONDMTL_THREADS'] == '2'
    )
    assert arrangements.environment(arrangements.ARRANGEMENTS[-1])['ATEN_CPU_CAPABILITY'] == 'default'


def test_what_pytest_says_is_counted():
    assert arrangements.counts('x\n1 failed, 2 passed, 3 skipped in 4.5s') == dict(failed=1, passed=2, skipped=3)
    assert arrangements.counts('') == {}


PROBE = """
import torch
def test_probe():
    torch.manual_seed(0)
    print('PROBE', torch.initial_seed(), torch.get_num_threads(), torch.backends.cpu.get_cpu_capability())
"""


@pytest.mark.parametrize('i, want', [(5, 'PROBE 2 2 (DEFAULT|NO AVX)'), (2, 'PROBE 1 1 ')])
def test_seed_threads_and_processor_reach_a_test(i, want, root, tmp_path):
    "Also where a test sets a seed of its own"
    file = tmp_path / 'test_probe.py'
    file.write_text(PROBE)
    cmd = [
        sys.executable,
        '-m',
        'pytest',
        '-q',
        '-s',
        '-p',
        'no:cacheprovider',
        '-c',
        str(root / 'pyproject.toml'),
        '--rootdir',
        str(root),
        '-p',
        'conftest',
        str(file),
    ]
    env = arrangements.environment(arrangements.ARRANGEMENTS[i])
    env['PYTHONPATH'] = f"{root / 'tests'}:{root}"
    out = subprocess.run(cmd, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert re.search(want, out.stdout), out.stdout + out.stderr
