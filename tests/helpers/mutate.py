"""Mutation testing: change the package one small thing at a time, and see whether a test notices.

    python tests/helpers/mutate.py --module loss.conditional --sample 150 --seed 0      # a sample
    python tests/helpers/mutate.py --module loss.conditional --all --out loss.json    # every mutant of the module
    python tests/helpers/mutate.py --module loss.conditional --only 1f0c2a,77ab01       # these mutants again, by
    their ids

Mutants are those of mutmut's operators (`mutmut.mutation.mutators`), and three of our own: a condition is negated, a
statement that is a call
or a `raise` is left out, `return x` gives None. The runner is ours, since mutmut leaves decorated functions (all of
`@patch`) out and
importing torch and fastai once a mutant would take hours: one process imports all that is not the package, and forks
a child for each mutant.
The child imports the package with the mutated source in place of one module and runs, in this process and up to the
first failure, the tests
that run the mutated line (known from one run under `coverage`), those first that killed mutants of the same
function, then the quick ones.

Not mutated, by rule: imports and `__all__`, docstrings, type annotations, `__repr__`, the wording of errors and
warnings (strings within
`raise` and `warnings.warn`, the arguments of exceptions, and what is listed in `WORDING`). That an error is raised,
where, and which row and
column it names, is mutated.

A mutant is *killed* when a test fails, when the package no longer imports, or when a test uses ten times its time
(and 10 s). A test that starts a process
of its own sees the package as it is on disk: it kills nothing."""

from __future__ import annotations
import argparse, hashlib, importlib, importlib.machinery, json, os, random, resource, signal, sys, tempfile, time
from pathlib import Path

ROOT, TESTS = Path(__file__).resolve().parents[2], Path(__file__).resolve().parents[1]
PACKAGE = 'fastai_condmtl'
SLOW, BUDGET = 4.0, 40.0  # seconds: slower tests are left out; so much is spent on a mutant that no test kills
FILES = {  # tests that are about the module: folder/module
    'core.conditions': 'core/conditions whole/oracle core/flow_json whole/errors tasks/votes',
    'core.questions': 'core/conditions core/flow_json whole/errors tasks/votes',
    'core.bound': (
        'core/conditions core/bound core/target core/prediction core/plan whole/oracle data/target_block '
        'whole/errors data/mask_facts vision/points vision/mirror tasks/kinds tasks/nested tasks/votes core/not_asked '
        'data/packed tasks/unsure evaluate/conformal data/sampling'
    ),
    'loss.conditional': (
        'loss/conditional whole/oracle whole/training callback/balance tasks/kinds learn/heads loss/whole_space '
        'data/mask_facts evaluate/calibrate evaluate/calibrate_interpret loss/unit whole/peer_behaviours'
    ),
    'loss.masked_mean': 'loss/conditional loss/unit whole/oracle loss/whole_space',
    'tasks.thresholds': 'tasks/thresholds evaluate/tune',
    'tasks.votes': (
        'tasks/votes tasks/kinds tasks/answer_sets tasks/unsure whole/oracle whole/check_block loss/unit '
        'evaluate/by_label evaluate/metrics core/marginals learn/start'
    ),
    'data.target_block': (
        'data/target_block data/packed vision/points vision/mirror vision/steps tabular/rows learn/sides '
        'tabular/tabular data/odd_cells whole/one_target'
    ),
    'evaluate.metrics': 'evaluate/metrics evaluate/evaluation evaluate/by_label tasks/kinds learn/transfer',
}
WORDING = {'hint', 'what', 'asked', 'fix', '_hints'}  # names that hold nothing but words of errors


# ---- mutants
# ----------------------------------------------------------------------------------------------------------
class Mutant:
    "One change of one node"

    def __init__(self, module, old, new, line, stmt, where, body, op, n):
        self.module, self.old, self.new, self.line, self.stmt, self.where, self.body, self.op = (
            module,
            old,
            new,
            line,
            stmt,
            where,
            body,
            op,
        )
        code = lambda x: '' if x is None else module.code_for_node(x).strip()
        self.before, self.after = code(old), 'pass' if op == 'leave_out' else code(new)
        self.id = hashlib.sha1(f'{where}|{self.before}|{self.after}|{n}'.encode()).hexdigest()[
            :6
        ]  # the same wherever the function stands

    def source(self):
        return self.module.deep_replace(self.old, self.new).code

    def as_dict(self):
        return dict(id=self.id, line=self.line, where=self.where, op=self.op, before=self.before, after=self.after)


def find_mutants(path):
    "All mutants of a file, in order of their lines"
    import libcst as cst
    from libcst.metadata import MetadataWrapper, PositionProvider
    from mutmut.mutation.mutators import mutation_operators

    wrapper = MetadataWrapper(cst.parse_module(path.read_text()))
    module, pos, res, seen = wrapper.module, wrapper.resolve(PositionProvider), [], {}

    def negate(n):
        if isinstance(n, (cst.If, cst.IfExp, cst.CompIf, cst.While)):
            yield n.with_changes(
                test=cst.UnaryOperation(
                    cst.Not(cst.SimpleWhitespace(' ')),
                    n.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()]),
                )
            )

    def leave_out(n):
        if isinstance(n, cst.Raise) or isinstance(n, cst.Expr) and isinstance(n.value, cst.Call):
            yield cst.Pass()

    def return_none(n):
        if (
            isinstance(n, cst.Return)
            and n.value is not None
            and not (isinstance(n.value, cst.Name) and n.value.value == 'None')
        ):
            yield cst.Return(cst.Name('None'))

    ops = [*mutation_operators, (cst.CSTNode, negate), (cst.CSTNode, leave_out), (cst.CSTNode, return_none)]

    is_text = lambda n: isinstance(n, (cst.SimpleString, cst.FormattedString, cst.ConcatenatedString))
    name_of = lambda n: (
        getattr(n, 'value', None) if isinstance(n, cst.Name) else getattr(getattr(n, 'attr', None), 'value', '')
    )

    def skipped(n, says):  # nodes below which nothing is mutated
        if isinstance(n, (cst.Import, cst.ImportFrom, cst.Annotation)):
            return True
        if isinstance(n, cst.Expr) and is_text(n.value):
            return True
        if isinstance(n, cst.FunctionDef) and n.name.value == '__repr__':
            return True
        if isinstance(n, cst.Assign) and any(name_of(t.target) in {'__all__', *WORDING} for t in n.targets):
            return True
        return says and is_text(n)

    def walk(n, where, says, decl, body, stmt):
        if skipped(n, says):
            return
        if isinstance(n, (cst.FunctionDef, cst.ClassDef)):
            where = f'{where}.{n.name.value}'.strip('.')
        if isinstance(n, cst.Decorator):
            decl = True
        if isinstance(n, (cst.BaseSmallStatement, cst.BaseCompoundStatement)) and n in pos:
            stmt = pos[n].start.line
        call = isinstance(n, cst.Call)
        texts_only = call and (
            name_of(n.func) == 'warn'
            or says
            and name_of(n.func) in ('FlowError', 'TypeError', 'KeyError', 'NotImplementedError')
        )
        for kind, op in ops:
            if not isinstance(n, kind) or decl or texts_only and op.__name__ == 'operator_arg_removal':
                continue
            for new in op(n):
                if (
                    says
                    and op.__name__ == 'operator_arg_removal'
                    and any(is_text(a.value) for a in n.args)
                    and len(new.args)
                    and is_text(n.args[-1].value)
                    and new.args[-1] is not n.args[-1]
                ):
                    continue  # the text comes last
                p = pos[n].start if n in pos else None
                m = Mutant(
                    module, n, new, p.line if p else line[0], stmt, where, body, op.__name__.replace('operator_', ''), 0
                )
                k = seen[m.id] = seen.get(m.id, -1) + 1
                if k:
                    m = Mutant(module, n, new, m.line, stmt, where, body, m.op, k)
                res.append(m)
        if n in pos:
            line[0] = pos[n].start.line
        if texts_only:
            return
        if isinstance(n, cst.Raise):
            says = True
        for c in n.children:
            walk(c, where, says, decl, body or isinstance(n, (cst.FunctionDef, cst.Lambda)) and c is n.body, stmt)

    line = [1]
    walk(module, '', False, False, False, 1)
    return sorted(res, key=lambda m: m.line)


# ---- the child: a fresh package, the tests in this process
# -------------------------------------------------------------
class _Swap(importlib.machinery.SourceFileLoader):
    source = None

    def get_code(self, fullname):
        return compile(self.source, self.path, 'exec', dont_inherit=True)


class _Finder:
    def __init__(self, name, path, source):
        self.name, self.path, self.source = name, path, source

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        loader = _Swap(fullname, str(self.path))
        loader.source = self.source
        return importlib.machinery.ModuleSpec(fullname, loader, origin=str(self.path))


class _Plugin:
    "Keep the chosen tests, in the order they were chosen; no shrinking; a limit of time for each"

    def __init__(self, chosen=None, limits=None, cov=None):
        self.chosen, self.limits, self.cov, self.times, self.failed, self.started = (
            chosen,
            limits or {},
            cov,
            {},
            [],
            [],
        )

    def pytest_sessionstart(self, session):
        from hypothesis import Phase, settings

        settings.register_profile(
            'mutate',
            parent=settings.get_profile('ci'),
            phases=(Phase.explicit, Phase.generate),
            report_multiple_bugs=False,
        )
        settings.load_profile('mutate')

    def pytest_collection_modifyitems(self, session, config, items):
        if self.chosen is not None:
            items[:] = sorted((i for i in items if i.nodeid in self.chosen), key=lambda i: self.chosen[i.nodeid])

    def pytest_runtest_logstart(self, nodeid, location):
        self.started.append(nodeid)
        if self.cov:
            self.cov.switch_context(nodeid)
        if self.limits:
            signal.setitimer(
                signal.ITIMER_PROF, 10 * self.limits.get(nodeid, 1.0) + 10
            )  # of its own time: others may keep the machine busy

    def pytest_runtest_logreport(self, report):
        self.times[report.nodeid] = self.times.get(report.nodeid, 0) + report.duration
        if report.failed:
            self.failed.append(report.nodeid)
        if report.skipped:
            self.times[report.nodeid] = float('inf')

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_runtest_logfinish(self, nodeid, location):
        if self.cov:
            self.cov.switch_context('')


def _pytest(plugin, files, *more):
    import pytest

    return pytest.main(
        [
            '-q',
            '-p',
            'no:cacheprovider',
            '-p',
            'no:cov',
            '-m',
            'not slow and not data and not gpu',
            '--tb=no',
            '--no-header',
            *more,
            *files,
        ],
        plugins=[plugin],
    )


def in_child(work, limit, quiet=True):
    "What `work(tell)` tells by calling `tell(x)`, in a forked child; the last thing told, and how the child ended"
    r, w = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(r)
            os.setpgid(0, 0)
            resource.setrlimit(resource.RLIMIT_DATA, (12 << 30, 12 << 30))
            if quiet:
                null = os.open(os.devnull, os.O_RDWR)
                for fd in (0, 1, 2):
                    os.dup2(null, fd)
            signal.setitimer(signal.ITIMER_REAL, limit)
            work(lambda x: os.write(w, (json.dumps(x) + '\n').encode()))
        except BaseException as e:  # noqa: B036 a child never returns to the loop of its parent
            os.write(w, (json.dumps(dict(error=f'{type(e).__name__}: {e}'[:300])) + '\n').encode())
            os._exit(3)
        os._exit(0)
    os.close(w)
    data = b''
    while chunk := os.read(r, 1 << 16):
        data += chunk
    os.close(r)
    _, status = os.waitpid(pid, 0)
    try:
        os.killpg(pid, signal.SIGKILL)  # what its tests started and left
    except ProcessLookupError:
        pass
    return [json.loads(x) for x in data.decode().splitlines()], os.waitstatus_to_exitcode(status)


# ---- one module
# -------------------------------------------------------------------------------------------------------
class Run:
    def __init__(self, module):
        self.name, self.path = f'{PACKAGE}.{module}', (ROOT / PACKAGE).joinpath(*module.split('.')).with_suffix('.py')
        self.files = [
            str(p)
            for f in FILES[module].split()
            if (p := TESTS / f.rpartition('/')[0] / f"test_{f.rpartition('/')[2]}.py").exists()
        ]
        self.kills = {}  # (function, test) → mutants

    def preload(self):
        "Import all that tests import, but the package and the tests"

        def work(tell):
            _pytest(_Plugin(), self.files, '--collect-only')
            tell(
                [
                    m
                    for m in sys.modules
                    if m.split('.')[0] not in (PACKAGE, 'conftest', '__main__')
                    and not str(getattr(sys.modules[m], '__file__', '')).startswith(str(TESTS))
                ]
            )

        (names,), _ = in_child(work, 300)
        for n in names:
            try:
                importlib.import_module(n)
            except Exception:
                continue  # made by code, not importable by name
        import torch

        torch.set_num_threads(1)

    def baseline(self):
        "What each test takes, and which tests run which line"

        def work(tell):
            import coverage

            cov = coverage.Coverage(data_file=None, config_file=False, include=[str(self.path)])
            cov.start()
            plugin = _Plugin(cov=cov)
            _pytest(plugin, self.files)
            cov.stop()
            data = cov.get_data()
            lines = data.contexts_by_lineno(str(self.path))
            tell(
                dict(
                    times={k: t for k, t in plugin.times.items() if t < float('inf')},
                    failed=plugin.failed,
                    lines={k: v for k, v in lines.items()},
                )
            )

        key = hashlib.sha1(
            b''.join(Path(f).read_bytes() for f in [*self.files, *sorted(map(str, (ROOT / PACKAGE).rglob('*.py')))])
        ).hexdigest()[:12]
        cache = Path(tempfile.gettempdir()) / f'{self.name}.{key}.json'  # the same for the same sources
        if cache.exists():
            res = json.loads(cache.read_text())
        else:
            (res,), _ = in_child(work, 1200)
            if not res.get('error'):
                cache.write_text(json.dumps(res))
        if res.get('error'):
            sys.exit(f"the tests do not run: {res['error']}")
        if res['failed']:
            print('these fail without any change, and are left out:', *res['failed'], sep='\n  ')
        self.times = {k: t for k, t in res['times'].items() if t < SLOW and k not in res['failed']}
        self.lines = {int(k): set(v) for k, v in res['lines'].items()}
        slow = [k for k, t in res['times'].items() if t >= SLOW]
        print(
            (
                f"{self.name}: {len(self.times)} tests of {len(self.files)} files in {sum(self.times.values()):.0f} s; "
                f"{len(slow)} of {SLOW:.0f} s and more left out"
            ),
            flush=True,
        )

    def tests_of(self, m):
        "The tests that run the mutant's lines, the likely killers first"
        lines = range(m.line, m.line + m.before.count('\n') + 1)
        ctx = set().union(*(self.lines.get(i, set()) for i in lines)) or self.lines.get(m.stmt, set())
        names = (ctx if m.body else set(self.times)) & set(self.times)  # what is run on import any test may see

        def cost(t):
            return (
                t not in ctx,
                self.times[t] / (1 + 20 * self.kills.get((m.where, t), 0) + self.kills.get(('', t), 0)),
            )

        res, spent = sorted(names, key=cost), 0
        for k, t in enumerate(res):
            if (spent := spent + self.times[t]) > BUDGET:
                return res[:k]
        return res

    def try_(self, m):
        "Which test killed the mutant; None: it lives"
        tests = self.tests_of(m)
        try:
            source = m.source()
            compile(source, str(self.path), 'exec', dont_inherit=True)
        except SyntaxError:
            return 'does not compile'

        def work(tell):
            sys.meta_path.insert(0, _Finder(self.name, self.path, source))
            tell(dict(at='import'))
            importlib.import_module(self.name)
            importlib.import_module(f'{PACKAGE}.all')
            for part in (tests[:6], tests[6:60], tests[60:]):
                if not part:
                    break
                plugin = _Plugin({t: i for i, t in enumerate(part)}, self.times)
                plugin.pytest_runtest_logstart = lambda nodeid, location, f=plugin.pytest_runtest_logstart: (
                    tell(dict(at=nodeid)),
                    f(nodeid, location),
                )[0]
                files = list(dict.fromkeys(t.split('::')[0] for t in part))
                code = _pytest(plugin, files, '-x')
                if plugin.failed:
                    return tell(dict(killed=plugin.failed[0]))
                if code not in (0, 5):
                    return tell(dict(killed=f'pytest ended with {code}'))
            tell(dict(lives=len(tests)))

        told, code = in_child(work, 600 + 20 * sum(self.times[t] for t in tests))
        last = told[-1]
        if 'lives' in last:
            return None
        if 'killed' in last:
            killer = last['killed']
        elif told[-1].get('error'):
            return 'import' if told[0].get('at') == 'import' and len(told) == 2 else f"child: {last['error']}"
        else:
            killer = last['at'] if last['at'] != 'import' else 'import'
        if killer in self.times:
            for key in ((m.where, killer), ('', killer)):
                self.kills[key] = self.kills.get(key, 0) + 1
        return killer + (' (crash or time)' if 'killed' not in last else '')


def equivalents():
    "Ids in tests/MUTATION.md: mutants that no test can see, each with the reason"
    doc = TESTS / 'MUTATION.md'
    return (
        {
            w.strip('`')
            for line in doc.read_text().splitlines()
            if line.startswith('| `')
            for w in line.split('|')[1].replace(',', ' ').split()
        }
        if doc.exists()
        else set()
    )


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--module', required=True, choices=FILES)
    ap.add_argument('--sample', type=int, default=150, help='mutants drawn at random')
    ap.add_argument('--seed', type=int, default=0)
    ap.add_argument('--all', action='store_true', help='every mutant')
    ap.add_argument('--only', help='ids of mutants, or lines, with commas')
    ap.add_argument(
        '--tests', help='names of test files, with commas, instead of those of FILES: `core/bound,whole/oracle`'
    )
    ap.add_argument('--list', action='store_true', help='print the mutants and stop')
    ap.add_argument('--out', help='JSON file to write')
    ap.add_argument('--minutes', type=float, default=1e9, help='stop after so many')
    a = ap.parse_args()
    start, known = time.time(), equivalents()
    if a.tests:
        FILES[a.module] = a.tests.replace(',', ' ')
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    os.environ.setdefault('MPLBACKEND', 'Agg')
    sys.setrecursionlimit(5000)  # of libcst, on long expressions
    run = Run(a.module)
    ms = find_mutants(run.path)
    total = len(ms)
    if a.only:
        ms = [m for m in ms if m.id in a.only.split(',') or str(m.line) in a.only.split(',')]
    elif not a.all:
        ms = sorted(random.Random(a.seed).sample(ms, min(a.sample, len(ms))), key=lambda m: m.line)
    if a.list:
        for m in ms:
            print(f'{m.id}  {m.line:4} {m.where}  [{m.op}]  {m.before[:100]!r}  →  {m.after[:100]!r}')
        return print(f'{len(ms)} of {total}')
    run.files = [os.path.relpath(f, ROOT) for f in run.files]
    run.preload()
    run.baseline()
    print(f'{len(ms)} of {total} mutants, ready after {time.time() - start:.0f} s', flush=True)
    res = []
    for i, m in enumerate(ms):
        if time.time() - start > 60 * a.minutes:
            print(f'stopped after {i} of {len(ms)}')
            break
        t = time.time()
        killer = run.try_(m)
        res.append(dict(m.as_dict(), killer=killer, seconds=round(time.time() - t, 1)))
        if killer is None:
            print(
                (
                    f"{'equivalent' if m.id in known else 'LIVES'} {m.id} line {m.line} {m.where} [{m.op}]\n    - "
                    f"{m.before}\n    + {m.after}"
                ),
                flush=True,
            )
        if a.out and (i % 20 == 19):
            Path(a.out).write_text(json.dumps(res, indent=1))
    if a.out:
        Path(a.out).write_text(json.dumps(res, indent=1))
    killed, eq = sum(r['killer'] is not None for r in res), sum(r['killer'] is None and r['id'] in known for r in res)
    on_import, by_time = sum(r['killer'] == 'import' for r in res), sum('time)' in (r['killer'] or '') for r in res)
    print(
        f"{a.module}: {len(res)} mutants tried, {killed} killed ({on_import} on import, {by_time} by time or crash), "
        f"{len(res) - killed - eq} survived, {eq} equivalent: "
        f"{killed / max(1, len(res)):.1%} killed, {killed / max(1, len(res) - eq):.1%} of those that can be; "
        f"{time.time() - start:.0f} s"
    )


if __name__ == '__main__':
    main()
