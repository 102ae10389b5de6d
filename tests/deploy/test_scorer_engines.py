"The engines themselves: Ray and Spark call a scorer in processes of their own"

import os, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest
from fastai_condmtl.all import *
from fastai_condmtl.tabular.all import ConditionalTabularDataLoaders, conditional_tabular_learner

ROOT = str(Path(__file__).resolve().parents[2])


@pytest.fixture(scope='module')
def learn():
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(x=rng.normal(size=120)))
    df['big'] = (df.x > 0).astype(object)
    df['huge'] = (df.x > 1).where(df.x > 0)
    big = BinaryBlock('big')
    flow = Flow('f', big, BinaryBlock('huge') | big)
    dls = ConditionalTabularDataLoaders.from_df(df, flow, cont_names=['x'], cat_names=[], bs=64, seed=0)
    return conditional_tabular_learner(dls, [8], metrics=[], tune=None)


def rows(n=200):
    return pd.DataFrame(dict(key=range(n), x=np.random.default_rng(1).normal(size=n)))


def assert_scored(scored, learn, df):
    scored, expected = scored.sort_values('key', ignore_index=True), learn.scorer()(df)
    assert scored.key.tolist() == df.key.tolist()
    for name in expected:
        if expected[name].dtype == float:
            np.testing.assert_allclose(scored[name].astype(float), expected[name], atol=1e-5)
        else:
            got, want = (c.astype(object).where(c.notna(), None).tolist() for c in (scored[name], expected[name]))
            assert got == want


@pytest.fixture(scope='module')
def ray():
    ray = pytest.importorskip('ray', reason='needs ray (extra ray)')
    pytest.importorskip('pyarrow', reason='needs pyarrow (extra parquet)')
    environment = dict(env_vars=dict(PYTHONPATH=ROOT, OMP_NUM_THREADS='1'))
    ray.init(num_cpus=1, include_dashboard=False, runtime_env=environment, log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_ray_data(ray, learn, tmp_path):
    df, scorer = rows(), learn.scorer(keep=['key'])
    data = ray.data.from_pandas(df)
    assert_scored(data.map_batches(scorer, batch_format='pyarrow', batch_size=64).to_pandas(), learn, df)
    assert_scored(data.map_batches(scorer, batch_size=64).to_pandas(), learn, df)
    from fastai_condmtl.deploy.shards import score_shards

    for i, part in enumerate([df[:90], df[90:]]):
        part.to_parquet(tmp_path / f'{i}.parquet')
    done = score_shards(scorer, sorted(tmp_path.glob('*.parquet')), tmp_path / 'out', ray=True)
    assert done.rows == len(df) and done.errors == 0
    assert_scored(pd.read_parquet(tmp_path / 'out'), learn, df)


@pytest.mark.spark
@pytest.mark.slow
def test_spark(learn, monkeypatch):
    sql = pytest.importorskip('pyspark.sql', reason='needs pyspark')
    if not any(os.access(os.path.join(folder, 'java'), os.X_OK) for folder in os.environ['PATH'].split(os.pathsep)):
        pytest.skip('needs Java')
    monkeypatch.setenv('PYTHONPATH', ROOT)
    monkeypatch.setenv('PYSPARK_PYTHON', sys.executable)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    spark = sql.SparkSession.builder.master('local[1]').config('spark.ui.enabled', 'false').getOrCreate()
    try:
        df, scorer = rows(), learn.scorer(keep=dict(key='bigint'))
        scored = spark.createDataFrame(df).mapInPandas(scorer.iterate, scorer.schema)
        assert_scored(scored.toPandas(), learn, df)
        assert scored.filter('`huge:p_reached` > 0.5').count() == (learn.scorer()(df)['huge:p_reached'] > 0.5).sum()
    finally:
        spark.stop()
