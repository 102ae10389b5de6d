"""The core install is enough for all that names no extra; what needs an extra says which, in one wording; little
is imported beside fastai."""

import json
import os
import re
import subprocess
import sys

import pytest

import core_only


def python(root, *args):
    "The last line that a process of its own prints, read as JSON"
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join([str(root), str(root / 'tests')])}
    res = subprocess.run([sys.executable, '-W', 'ignore', *map(str, args)], env=env, capture_output=True, text=True)
    assert res.returncode == 0, res.stdout[-2000:] + res.stderr[-4000:]
    return json.loads(res.stdout.splitlines()[-1])


def core(root, *args):
    "The same, with `core_only.py`"
    return python(root, root / 'tests' / 'helpers' / 'core_only.py', *args)


def test_what_extras_bring():
    "What the other tests hide: packages of extras, what these need in turn, and nothing of the core's."
    hidden = core_only.beyond_core()
    assert hidden & {'nbdev', 'hypothesis', 'accelerate', 'onnx', 'timm', 'gradio', 'wandb'}, (
        'none of the extras is installed'
    )
    assert not hidden & {
        'fastai',
        'fastcore',
        'torch',
        'torchvision',
        'pandas',
        'numpy',
        'sklearn',
        'PIL',
        'treelib',
        'matplotlib',
        'fasthtml',
        'plum',
    }


def test_every_module_is_imported(root):
    assert core(root, 'import') == {'fastai_condmtl.callback.distributed': ['accelerate', 'distributed']}


def test_the_readmes_minute(root, tmp_path):
    assert core(root, 'minute', tmp_path).startswith('FlowPrediction(')


def test_what_needs_an_extra_says_which(root, tmp_path):
    said = core(root, 'extras', tmp_path)
    assert not [call for call, names in said.items() if names is None], said
    wanted = core_only.settings()
    of_core = core_only.brought(wanted[''])
    for call, (package, extra) in said.items():
        assert package not in core_only.importable(of_core), call
        assert package in {re.split(r'\W', line)[0] for line in wanted[extra]}, (
            f'{call}: the extra {extra} does not bring {package}'
        )
    extras = set(wanted) - {'', 'bench', 'dev', 'docs'}
    assert {extra for _, extra in said.values()} == extras, 'each extra is asked for by something'


def test_one_wording(root):
    "Only `core.extras` says how an extra is installed; whoever misses one asks it, with names that settings.ini holds."
    wanted = core_only.settings()
    for path in sorted((root / 'fastai_condmtl').rglob('*.py')):
        text = path.read_text(encoding='utf-8')
        if path.name == 'extras.py':
            continue
        assert 'pip install' not in text, path
        for extra in re.findall(r"(?:import|missing)_extra\(.*'(\w+)'\)", text):
            assert extra in wanted, f'{path}: {extra}'


BESIDE_FASTAI = '''
import json, sys
import fastai.vision.all
before = set(sys.modules)
import fastai_condmtl.vision.all
new = {name.partition('.')[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(new - sys.stdlib_module_names)))
'''


def test_little_is_imported_beside_fastai(root):
    "Packages, not seconds: `benchmarks/bench_import.py` measures these."
    assert {*python(root, '-c', BESIDE_FASTAI)} - {'six'} == {'fastai_condmtl', 'treelib'}  # six: treelib's


FASTAIS_LATER = '''
import inspect, json
from fastai.learner import Learner
import fastai_condmtl.callback.parallel
import fastai.distributed
learn_methods = {n: list(inspect.signature(getattr(Learner, n)).parameters) for n in ('to_parallel', 'parallel_ctx')}
print(json.dumps(learn_methods))
'''


def test_fastais_parallel_imported_later(root):
    "fastai's own methods, which are patched in when it is imported, do not displace ours."
    pytest.importorskip('accelerate')
    params = ['self', 'device_ids', 'balance_memory']
    assert python(root, '-c', FASTAIS_LATER) == dict(to_parallel=params, parallel_ctx=params)
