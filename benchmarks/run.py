"""Run benchmarks in turn, and keep what each prints as its section of RESULTS.md, with date and command; other sections
stay as they are.

python benchmarks/run.py                          all that take minutes: `make bench`
python benchmarks/run.py bench_loss bench_train   these"""

import ast, datetime, re, subprocess, sys, time
from pathlib import Path
from timing import environment

HERE = Path(__file__).parent
RESULTS = HERE / 'RESULTS.md'
LATE = ('bench_size', 'bench_ablation')  # the longest, whose figures are no ratios
ASKED_FOR = ('bench_beyond', 'bench_scorer')  # gigabytes of disk, or an engine of its own


def all_names():
    "The benchmarks that `make bench` runs, the longest last"
    names = sorted(path.stem for path in HERE.glob('bench_*.py') if path.stem not in ASKED_FOR)
    return [name for name in names if name not in LATE] + list(LATE)


def section(name):
    "What a benchmark is and prints, as a section"
    path, start = HERE / f'{name}.py', time.perf_counter()
    run = subprocess.run([sys.executable, '-W', 'ignore', path], cwd=HERE, stdout=subprocess.PIPE, text=True)
    print(run.stdout, flush=True)
    if run.returncode:
        sys.exit(f'{name} failed')
    about = ' '.join(ast.get_docstring(ast.parse(path.read_text())).split()).rstrip('.')
    minutes = (time.perf_counter() - start) / 60
    where = f'`python benchmarks/{name}.py` on {datetime.date.today()}, {minutes:.0f} min: {environment()}'
    return f'## {name}\n\n{about}.\n\n{where}.\n\n```text\n{run.stdout.rstrip()}\n```\n\n'


def with_section(text, name, new):
    "RESULTS.md with a section in the place of the one of that name; a new one stands last"
    old = re.search(rf'^## {name}\n.*?(?=^## |\Z)', text, re.M | re.S)
    if old is None:
        return text.rstrip() + '\n\n' + new.rstrip() + '\n'
    return (text[: old.start()] + new + text[old.end() :]).rstrip() + '\n'


if __name__ == '__main__':
    for name in sys.argv[1:] or all_names():
        print(f'== {name}', flush=True)
        new = section(name)
        RESULTS.write_text(with_section(RESULTS.read_text(), name, new))  # at once: a run broken off keeps what it has
