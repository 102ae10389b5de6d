"What `import fastai_condmtl.vision.all` adds to `import fastai.vision.all`, each in a process of its own, in turn"

import json, statistics, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = '''
import json, sys, time
sys.path.insert(0, {root!r})
def took(name):
    start = time.perf_counter(), time.process_time()
    __import__(name)
    return time.perf_counter() - start[0], time.process_time() - start[1]
fastai = took('fastai.vision.all')
before = set(sys.modules)
ours = took('fastai_condmtl.vision.all')
new = sorted({{name.partition('.')[0] for name in set(sys.modules) - before}} - sys.stdlib_module_names)
print(json.dumps([fastai, ours, new]))
'''


def imported():
    """Seconds of fastai's import and of ours after it, by the clock and of the processor, and the packages that
    ours loads"""
    run = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', CODE.format(root=str(ROOT))],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout.splitlines()[-1])


if __name__ == '__main__':
    imported()  # compiles and warms the disk's cache
    runs = [imported() for _ in range(7)]
    (fastai, fastai_cpu), (ours, ours_cpu) = (
        [statistics.median(r[side][k] for r in runs) for k in (0, 1)] for side in (0, 1)
    )
    ratio = statistics.median((r[0][1] + r[1][1]) / r[0][1] for r in runs)
    print(
        f"fastai.vision.all {fastai:.2f} s ({fastai_cpu:.2f} s of processor), fastai_condmtl.vision.all after it "
        f"{ours:.2f} s ({ours_cpu:.2f} s; promised <= 0.5); both against the first {ratio:.3f}"
    )
    print(f"packages beyond fastai's: {', '.join(runs[0][2])}")
