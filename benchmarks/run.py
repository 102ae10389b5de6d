"Run every benchmark in turn and keep what they print in RESULTS.md, with date and command"

import datetime, subprocess, sys, time
from pathlib import Path
from timing import environment

HERE = Path(__file__).parent

if __name__ == '__main__':
    late = ('bench_size', 'bench_ablation')  # the longest, whose figures are no ratios
    names = sys.argv[1:] or sorted(
        (p.stem for p in HERE.glob('bench_*.py')), key=lambda n: (late.index(n) if n in late else -1, n)
    )
    parts = [
        '# Results of the benchmarks',
        '',
        (
            f'`make bench` on {datetime.date.today()}: {environment()}. Each figure is a ratio of two sides measured '
            'in '
            'the same run, in turn; times are of this machine, which was shared.'
        ),
        '',
    ]
    for name in names:
        path = HERE / f'{name}.py'
        print(f'== {name}', flush=True)
        start = time.perf_counter()
        run = subprocess.run([sys.executable, '-W', 'ignore', path], cwd=HERE, stdout=subprocess.PIPE, text=True)
        print(run.stdout, flush=True)
        if run.returncode:
            sys.exit(f'{name} failed')
        parts += [
            f'## {name}',
            '',
            path.read_text().split('"')[1]
            + f' (`python benchmarks/{name}.py`, {(time.perf_counter() - start) / 60:.0f} min).',
            '',
            '```text',
            run.stdout.rstrip(),
            '```',
            '',
        ]
        if not sys.argv[1:]:
            (HERE / 'RESULTS.md').write_text('\n'.join(parts))  # after each: a run that is broken off keeps what it has
