"Parquet is scored file by file: killed at any moment, no row is lost or doubled"

import os, random, signal, time
from multiprocessing import get_context
import numpy as np, pandas as pd, pytest
from fastai_condmtl.all import *
from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders, conditional_tabular_learner

pq = pytest.importorskip('pyarrow.parquet', reason='needs pyarrow (extra parquet)')
from fastai_condmtl.deploy import shards
from fastai_condmtl.deploy.scorer import pool_of
from fastai_condmtl.deploy.shards import score_shards


@pytest.fixture(scope='module')
def learn():
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(x=rng.normal(size=200), y=rng.normal(size=200)))
    df = df.assign(up=df.y > 0, right=(df.x > 0).astype(object)).assign(far=df.x.abs())
    df.loc[~df.up, 'right'] = None
    up = BinaryBlock('up')
    flow = Flow('f', up, BinaryBlock('right') | up, UnboundedRegressionBlock('far'))
    dls = ConditionalTabularDataLoaders.from_df(df, flow, cont_names=['x', 'y'], cat_names=[], bs=64, seed=0)
    learn = conditional_tabular_learner(dls, [8], metrics=[], tune=None)
    with learn.no_bar(), learn.no_logging():
        learn.fit(3, 0.1)
    return learn


def write(folder, sizes, seed=0):
    rng, start, files = np.random.default_rng(seed), 0, []
    folder.mkdir(exist_ok=True)
    for i, n in enumerate(sizes):
        df = pd.DataFrame(dict(x=rng.normal(size=n), key=np.arange(start, start + n), y=rng.normal(size=n)))
        files.append(folder / f'{i:03}.parquet')
        df.to_parquet(files[-1])
        start += n
    return files


def read(folder):
    return pd.concat([pd.read_parquet(file) for file in sorted(folder.glob('*.parquet'))], ignore_index=True)


def test_sigkill_at_random_moments(learn, tmp_path):
    files, scorer = write(tmp_path / 'in', [40, 0, 70, 1, *[30] * 8]), learn.scorer(keep=['key'])
    start = time.perf_counter()
    expected = score_shards(scorer, files, tmp_path / 'whole', n_rows=16)
    seconds, out, context = time.perf_counter() - start, tmp_path / 'out', get_context('fork')
    draw, midway, kills = random.Random(0), 0, 0
    while kills < 25:
        process = context.Process(target=score_shards, args=(scorer, files, out, 16))
        process.start()
        process.join(draw.uniform(0, 0.7 * seconds))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        there = sorted(out.glob('*.parquet'))
        for file in there:  # whatever is there is whole
            assert pq.read_metadata(file).num_rows == pq.read_metadata(tmp_path / 'in' / file.name).num_rows
        midway += 0 < len(there) < len(files)
        if len(there) == len(files):  # begin again, so that kills go on to meet work
            for file in draw.sample(there, 9):
                file.unlink()
    assert midway >= 3
    done = score_shards(scorer, files, out, n_rows=16)
    assert (done.rows, done.files) == (expected.rows, len(files)) and done.sums.keys() == expected.sums.keys()
    for name in expected.sums:
        np.testing.assert_allclose(done.sums[name], expected.sums[name])
    pd.testing.assert_frame_equal(read(out), read(tmp_path / 'whole'))
    assert read(out).key.tolist() == list(range(expected.rows))


def test_as_the_learner_says(learn, tmp_path):
    files = write(tmp_path / 'in', [33, 5])
    done = score_shards(learn.scorer(), files, tmp_path / 'out', n_rows=8)
    df = read(tmp_path / 'in')
    scored, expected = read(tmp_path / 'out'), learn.predict_df(df)
    for name in expected:
        got, want = (frame[name].astype(object).where(frame[name].notna(), None) for frame in (scored, expected))
        assert got.tolist() == pytest.approx(want.tolist()) if name == 'far' else got.tolist() == want.tolist()
    drift = done.drift(done.sums)
    assert (drift['shift'].fillna(0) == 0).all()
    p = drift.set_index('column').here
    assert p['right:p_reached'] == pytest.approx(learn.get_marginals(df)['right', 'P(reached)'].mean(), abs=1e-6)
    assert p['right:blank'] == pytest.approx(expected.right.isna().mean())
    assert p['far'] == pytest.approx(expected.far.mean(), abs=1e-5)


def test_another_model_and_a_changed_file_are_scored_anew(learn, tmp_path):
    files = write(tmp_path / 'in', [5, 5])
    scorer = learn.scorer()
    score_shards(scorer, files, tmp_path / 'out')
    assert score_shards(scorer, files, tmp_path / 'out').found == 2
    write(tmp_path / 'in', [6])
    assert score_shards(scorer, files, tmp_path / 'out').found == 1
    assert score_shards(learn.scorer(probabilities=False), files, tmp_path / 'out').found == 0


def test_a_file_that_changes_while_it_is_read(learn, tmp_path, monkeypatch):
    files, scorer = write(tmp_path / 'in', [5, 5, 5]), learn.scorer()
    sums_of = shards.sums_of

    def change(*args):
        if not (tmp_path / 'out/001.parquet').exists() and (tmp_path / 'out/000.parquet').exists():
            os.utime(files[1])
        return sums_of(*args)

    monkeypatch.setattr(shards, 'sums_of', change)
    with pytest.raises(FlowError, match='001.parquet. was written to while it was read.*2 of 3 files are finished'):
        score_shards(scorer, files, tmp_path / 'out')
    assert [file.name for file in sorted((tmp_path / 'out').iterdir())] == ['000.parquet', '002.parquet']
    monkeypatch.setattr(shards, 'sums_of', sums_of)
    assert score_shards(scorer, files, tmp_path / 'out').found == 2


def test_what_cannot_be_scored_is_told_before(learn, tmp_path):
    files, scorer = write(tmp_path / 'in', [5, 5]), learn.scorer(keep=['key'])
    out = tmp_path / 'out'
    pd.DataFrame(dict(x=[1.0], key=[1])).to_parquet(files[1])
    with pytest.raises(FlowError, match="001.parquet' has no column 'y'"):
        score_shards(scorer, files, out)
    pd.DataFrame(dict(x=[1.0], y=[1.0], key=['a'])).to_parquet(files[1])
    with pytest.raises(FlowError, match="column 'key' is int64 in .* and .*string in"):
        score_shards(scorer, files, out)
    files[1].write_bytes(b'no parquet')
    with pytest.raises(FlowError, match="001.parquet' cannot be read as Parquet"):
        score_shards(scorer, files, out)
    with pytest.raises(FlowError, match='there is no Parquet file'):
        score_shards(scorer, [tmp_path / 'none.parquet'], out)
    with pytest.raises(FlowError, match='there are no Parquet files'):
        score_shards(scorer, [], out)
    with pytest.raises(FlowError, match='have one name'):
        score_shards(scorer, [files[0], *write(tmp_path / 'b', [5])], out)
    with pytest.raises(FlowError, match='000.parquet. is named twice: name it once'):
        score_shards(scorer, [files[0], files[0]], out)
    for argument in ('n_rows', 'n_workers'):
        with pytest.raises(FlowError, match=f'{argument}=0 must be a positive whole number'):
            score_shards(scorer, files[:1], out, **{argument: 0})
    with pytest.raises(FlowError, match='written over by its own scores'):
        score_shards(scorer, files[:1], tmp_path / 'in')
    assert not out.exists()
    out.mkdir()
    (out / files[0].name).write_bytes(files[0].read_bytes())
    with pytest.raises(FlowError, match='was not written by score_shards'):
        score_shards(scorer, files[:1], out)


def test_rows_that_cannot_be_read_are_counted(learn, tmp_path):
    (file,) = write(tmp_path / 'in', [6])
    df = pd.read_parquet(file).astype(dict(x=object))
    df['x'] = [*map(str, df.x[:5]), 'a word']
    df.to_parquet(file)
    done = score_shards(learn.scorer(), [file], tmp_path / 'out')
    assert (done.rows, done.errors) == (6, 1)
    assert 'a word' in read(tmp_path / 'out').error[5] and read(tmp_path / 'out').error[:5].isna().all()


def test_a_file_a_pattern_and_an_iterator(learn, tmp_path):
    files, scorer = write(tmp_path / 'in', [3, 4]), learn.scorer()
    for given in (tmp_path / 'in/*.parquet', str(tmp_path / 'in/*.parquet'), iter(files), tuple(files)):
        assert score_shards(scorer, given, tmp_path / 'out').rows == 7
    assert score_shards(scorer, str(files[1]), tmp_path / 'one').rows == 4


def test_what_waits_is_not_scored_after_an_error(learn, tmp_path):
    files, scorer = write(tmp_path / 'in', [2000] * 12), learn.scorer()
    with pytest.raises(ZeroDivisionError), pool_of(scorer, 1, 'file', 'a fix') as pool:
        jobs = [pool.submit(shards._one_of_worker, file, tmp_path / file.name, 50) for file in files]
        jobs[0].result()
        raise ZeroDivisionError
    assert jobs[-1].cancelled() and not (tmp_path / files[-1].name).exists()
