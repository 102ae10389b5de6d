"""`make test`: every notebook, then pytest, whatever failed before; what failed is listed in the end.

python tests/helpers/run.py [WORKERS]
"""

import os
import re
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sysconfig.get_path('scripts'))


def notebooks():
    "Notebooks as paths, without those whose name or folder begins with `_` or `.`"
    paths = sorted(p.relative_to(ROOT) for p in (ROOT / 'nbs').rglob('*.ipynb'))
    return [p for p in paths if not any(part[0] in '_.' for part in p.parts)]


def run_notebook(path):
    """`(path, did it pass?)`; what a notebook that failed has said is printed. A process each: `@patch` of one
    must not reach the next"""
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
    command = [SCRIPTS / 'nbdev-test', path, '--n-workers', '0', '--do-print']
    res = subprocess.run(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if res.returncode:
        print(res.stdout, flush=True)
    return path, res.returncode == 0


def run_pytest(workers):
    "Exit code of pytest and the tests that failed, as its own last lines name them"
    by_file = ['-n', str(workers), '--dist', 'loadfile', '--no-loadscope-reorder']  # what a file sets up is set up once
    command = [sys.executable, '-m', 'pytest', '-q', *by_file]
    failed = []
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end='', flush=True)
            failed += re.findall(r'^(?:FAILED|ERROR) (\S+\.py.*?)(?: - .*)?$', line)
    return process.returncode, failed


def main(workers=2):
    with ThreadPoolExecutor(int(workers)) as pool:
        results = list(pool.map(run_notebook, notebooks()))
    failed = [str(path) for path, passed in results if not passed]
    print(f'notebooks: {len(results) - len(failed)} passed' + (f', {len(failed)} failed' if failed else ''), flush=True)
    code, tests = run_pytest(workers)
    failed += tests
    if code and not tests:
        failed.append(f'pytest (exit code {code})')
    if failed:
        sys.exit('\n'.join(['failed:', *(f'  {name}' for name in failed)]))


if __name__ == '__main__':
    main(*sys.argv[1:])
