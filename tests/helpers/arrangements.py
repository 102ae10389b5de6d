"""Run the tests that are marked `trains` (they say what a training reached) as other machines would: `make
arrangements`

    python tests/helpers/arrangements.py [--only 1 4] [--lowest .venv-lowest/bin/python] [pytest's own arguments,
    such as -k bf16]

What a trained network reaches, and the last bit of a sum, differ between processors (`ATEN_CPU_CAPABILITY`), numbers
of threads, seeds and versions of torch. Six arrangements cover each pair of two values of different kinds, but for four
pairs of a processor and a seed: of three by three, all would take nine arrangements. The lowest torch is that of
`make test-lowest`; where it is not installed, its arrangements run with the newest, and the table says so."""

import argparse, itertools, os, re, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KINDS = dict(
    processor=('default', 'avx2', 'as it comes'), threads=(1, 2), seed=(42, 43, 44), torch=('newest', 'lowest')
)
ARRANGEMENTS = [
    dict(zip(KINDS, values))
    for values in (
        ('as it comes', 1, 42, 'newest'),
        ('as it comes', 2, 43, 'lowest'),
        ('avx2', 1, 43, 'newest'),
        ('avx2', 2, 42, 'lowest'),
        ('default', 1, 44, 'lowest'),
        ('default', 2, 44, 'newest'),
    )
]


def pairs(values_of):
    "All pairs of values of two different kinds, `values_of` being `{kind: values}`"
    return {
        frozenset([(a, x), (b, y)])
        for a, b in itertools.combinations(values_of, 2)
        for x in values_of[a]
        for y in values_of[b]
    }


def missing():
    "Pairs that no arrangement has"
    covered = set().union(*(pairs({kind: [value] for kind, value in a.items()}) for a in ARRANGEMENTS))
    return pairs(KINDS) - covered


def environment(arrangement):
    "Variables of an arrangement; `tests/conftest.py` reads those that begin with FASTAI_CONDMTL"
    env = os.environ | dict(
        FASTAI_CONDMTL_SEED=str(arrangement['seed']),
        FASTAI_CONDMTL_THREADS=str(arrangement['threads']),
        OMP_NUM_THREADS=str(arrangement['threads']),
    )
    env.pop('ATEN_CPU_CAPABILITY', None)
    if arrangement['processor'] != 'as it comes':
        env['ATEN_CPU_CAPABILITY'] = arrangement['processor']
    return env


def run(arrangement, python, extra):
    "Output of the tests in this arrangement"
    cmd = [python, '-m', 'pytest', '-q', '-m', 'trains', '-p', 'no:cacheprovider', 'tests', *extra]
    return subprocess.run(cmd, cwd=ROOT, env=environment(arrangement), capture_output=True, text=True).stdout


def counts(output):
    "`{'passed': n, 'failed': n, ...}` of pytest's last line"
    last = output.strip().splitlines()[-1:] or ['']
    return {what: int(n) for n, what in re.findall(r'(\d+) (passed|failed|error|skipped)', last[0])}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        '--only',
        type=int,
        nargs='+',
        choices=range(1, len(ARRANGEMENTS) + 1),
        help='numbers of arrangements; by default all',
    )
    p.add_argument(
        '--lowest', default=str(ROOT / '.venv-lowest' / 'bin' / 'python'), help='Python that has the lowest torch'
    )
    args, extra = p.parse_known_args()
    passed = [has_passed(i, args.lowest, extra) for i in args.only or range(1, len(ARRANGEMENTS) + 1)]
    sys.exit(not all(passed))


def has_passed(i, lowest, extra):
    "Run the arrangement of number `i`, print how it went, and tell whether all tests have passed"
    arrangement = ARRANGEMENTS[i - 1]
    is_lowest = arrangement['torch'] == 'lowest' and Path(lowest).exists()
    out = run(arrangement, lowest if is_lowest else sys.executable, extra)
    result, arrangement = counts(out), arrangement | dict(torch='lowest' if is_lowest else 'newest')
    told = ', '.join(f'{kind} {value}' for kind, value in arrangement.items())
    print(f"{i}  {told}: {result or out[-2000:]}")
    failed = [f'     {line[:300]}' for line in out.splitlines() if line.startswith(('FAILED', 'ERROR'))]
    print('\n'.join(failed), flush=True)
    return result.get('passed', 0) > 0 and not result.get('failed') and not result.get('error')


if __name__ == '__main__':
    main()
