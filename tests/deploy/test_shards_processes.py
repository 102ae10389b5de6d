"Parquet is scored by several processes, which are killed: none goes on by itself, and each row is scored once"

import os, pickle, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest
from fastai_condmtl.all import *
from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders, conditional_tabular_learner

pq = pytest.importorskip('pyarrow.parquet', reason='needs pyarrow (extra parquet)')
from fastai_condmtl.deploy.shards import score_shards

ROOT = str(Path(__file__).resolve().parents[2])
RUN = """
import pickle, sys
from pathlib import Path
from fastai_condmtl.deploy.shards import score_shards
if __name__ == '__main__':
    folder = Path(sys.argv[1])
    scorer = pickle.loads((folder / 'scorer.pkl').read_bytes())
    done = score_shards(scorer, sorted((folder / 'in').glob('*.parquet')), folder / 'out', 16, n_workers=2)
    print(done.rows, done.errors, done.files, done.found)
"""


@pytest.fixture(scope='module')
def scorer():
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(x=rng.normal(size=200), y=rng.normal(size=200)))
    df = df.assign(up=df.y > 0, right=(df.x > 0).astype(object))
    df.loc[~df.up, 'right'] = None
    up = BinaryBlock('up')
    flow = Flow('f', up, BinaryBlock('right') | up)
    dls = ConditionalTabularDataLoaders.from_df(df, flow, cont_names=['x', 'y'], cat_names=[], bs=64, seed=0)
    return conditional_tabular_learner(dls, [8], metrics=[], tune=None).scorer(keep=['key'])


@pytest.fixture
def folder(scorer, tmp_path):
    "A folder with a scorer, eight files of rows and a script that scores them by two processes"
    (tmp_path / 'in').mkdir()
    rng, start = np.random.default_rng(0), 0
    for i, n in enumerate([400, 400, 0, 1, 400, 400, 400, 400]):
        df = pd.DataFrame(dict(x=rng.normal(size=n), key=np.arange(start, start + n), y=rng.normal(size=n)))
        df.to_parquet(tmp_path / f'in/{i}.parquet')
        start += n
    (tmp_path / 'scorer.pkl').write_bytes(pickle.dumps(scorer))
    (tmp_path / 'run.py').write_text(RUN)
    return tmp_path


def begin(folder):
    env = os.environ | dict(PYTHONPATH=ROOT, OMP_NUM_THREADS='1')
    args = [sys.executable, '-W', 'ignore', str(folder / 'run.py'), str(folder)]
    return subprocess.Popen(args, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(pid):
    "The processes that `pid` has started, and theirs"
    own = [int(one) for one in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
    return own + [one for child in own for one in children(child)]


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited too long'
        time.sleep(0.01)


def is_alive(pid):
    "True for a process that runs; one that has ended and is not yet collected runs no more"
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


def assert_each_row_once(folder, scorer):
    scored = pd.concat([pd.read_parquet(file) for file in sorted((folder / 'out').glob('*.parquet'))])
    rows = pd.concat([pd.read_parquet(file) for file in sorted((folder / 'in').glob('*.parquet'))])
    assert scored.key.tolist() == rows.key.tolist() == list(range(len(rows)))
    np.testing.assert_allclose(scored['right:p_reached'], scorer(rows)['right:p_reached'], atol=1e-5)


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='needs /proc')
def test_killed_processes_leave_nothing_that_goes_on_and_each_row_is_scored_once(folder, scorer):
    out = folder / 'out'
    process = begin(folder)
    wait_for(lambda: process.poll() is not None or len(list(out.glob('*.parquet'))) >= 1)
    workers = [one for one in children(process.pid) if 'spawn_main' in Path(f'/proc/{one}/cmdline').read_text()]
    os.kill(workers[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 1 and 'FlowError: a process ended before its file was scored' in errors
    assert not any(map(is_alive, workers))
    found = len(list(out.glob('*.parquet')))
    assert 1 <= found < 8
    process = begin(folder)  # goes on, and is killed itself
    wait_for(lambda: process.poll() is not None or len(list(out.glob('*.parquet'))) > found)
    started = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(started) >= 2
    wait_for(lambda: not any(map(is_alive, started)))
    there = sorted(out.glob('*.parquet'))
    assert found < len(there) < 8
    for file in there:
        assert pq.read_metadata(file).num_rows == pq.read_metadata(folder / 'in' / file.name).num_rows
    files = sorted((folder / 'in').glob('*.parquet'))
    done = score_shards(scorer, files, out, n_rows=16)
    assert (done.rows, done.errors, done.files, done.found) == (2401, 0, 8, len(there))
    assert_each_row_once(folder, scorer)
