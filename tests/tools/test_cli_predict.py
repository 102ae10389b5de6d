"`condmtl_predict` on a run folder: the numbers of the learner, resumed, with what has moved since training"

from pathlib import Path
import numpy as np, pandas as pd, pytest
from fastai.vision.all import load_learner
from fastai_condmtl.all import *
from fastai_condmtl.datasets.synthetic import save_scenes, security_flow
from fastai_condmtl.tools.cli import condmtl_train
from fastai_condmtl.tools.cli_common import status
from fastai_condmtl.tools.cli_predict import condmtl_predict

pytest.importorskip('pyarrow', reason='needs pyarrow (extra parquet)')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    d = tmp_path_factory.mktemp('scenes')
    df = save_scenes(d, n=60, seed=1, size=32)
    security_flow(32).to_json(d / 'flow.json')
    small = '--arch squeezenet1_1 --no-pretrained --size 32 --bs 16 --epochs 1 --workers 0 --quiet'.split()
    paths = ['--csv', d / 'labels.csv', '--flow', d / 'flow.json', '--images', d, '--out', d / 'run']
    condmtl_train([str(arg) for arg in [*paths, *small]])
    (d / 'in').mkdir()
    for i in range(3):
        df[['img']].assign(id=range(60))[20 * i : 20 * i + 20].to_parquet(d / f'in/{i}.parquet')
    return d, df


def give(*args):
    return status(condmtl_predict, [str(arg) for arg in args])


def test_scores_and_resumes(run):
    d, df = run
    code, said = give('--run', d / 'run', '--in', d / 'in/*.parquet', '--out', d / 'out', '--keep', 'id')
    assert code == 0, said
    assert '3 of 3 files, 60 rows' in said and '3 files: 60 rows, 0 of them not scored' in said
    scored = pd.concat([pd.read_parquet(d / f'out/{i}.parquet') for i in range(3)], ignore_index=True)
    learn = load_learner(d / 'run/learner.pkl')
    expected, marginals = learn.predict_df(df), learn.get_marginals(df)
    for name in expected:
        got, want = (c.astype(object).where(c.notna(), None).tolist() for c in (scored[name], expected[name]))
        assert all(a == b or a == pytest.approx(b, abs=1e-3) for a, b in zip(got, want)), name
    np.testing.assert_allclose(scored['camera_blocked:p:True'], marginals['camera_blocked', True], atol=1e-5)
    drift = pd.read_csv(d / 'out/_drift.csv').set_index('column')
    valid = learn.get_marginals(pd.read_csv(d / 'run/valid.csv'))
    assert drift.training['camera_blocked:p:True'] == pytest.approx(valid['camera_blocked', True].mean(), abs=1e-6)
    assert drift.here['camera_blocked:p:True'] == pytest.approx(marginals['camera_blocked', True].mean(), abs=1e-6)
    (d / 'out/1.parquet').unlink()
    code, said = give('--run', d / 'run', '--in', d / 'in', '--out', d / 'out', '--keep', 'id')
    assert code == 0 and '3 files, 2 of them finished before: 60 rows' in said


def test_other_files_of_a_folder_are_told(run, tmp_path):
    d, df = run
    df[['img']][:4].to_parquet(tmp_path / 'a.parquet')
    args = '--run', d / 'run', '--in', tmp_path, '--out', tmp_path / 'out', '--quiet'
    assert 'other files' not in give(*args)[1]
    for name in ('a.csv', 'b.txt', '.hidden', '_SUCCESS'):
        (tmp_path / name).write_text('img')
    code, said = give(*args)
    assert (
        code == 0
        and '2 other files of the folders are not read' in said
        and '\n1 file, 1 of them finished before: 4 rows, ' in said
    )


def test_bytes_and_torn_pictures(run, tmp_path):
    d, df = run
    pictures = [(d / name).read_bytes() for name in df.img[:3]] + [b'torn']
    pd.DataFrame(dict(picture=pictures, id=range(4))).to_parquet(tmp_path / 'a.parquet')
    args = '--in', tmp_path / 'a.parquet', '--out', tmp_path / 'out', '--column', 'picture', '--keep', 'id', '--quiet'
    code, said = give('--run', d / 'run', *args)
    assert code == 0 and '4 rows, 1 of them not scored' in said
    scored = pd.read_parquet(tmp_path / 'out/a.parquet')
    assert scored.error.notna().tolist() == [False, False, False, True] and 'picture' not in scored


@pytest.mark.parametrize(
    'args, why',
    [
        (['--run', 'nowhere', '--in', 'in', '--out', 'o'], 'is no run folder'),
        (['--run', 'run', '--in', 'none/*.parquet', '--out', 'o'], 'names no file'),
        (['--run', 'run', '--in', 'in', '--out', 'o', '--column', 'img2'], "has no column 'img2'"),
        (['--run', 'run', '--in', 'run/valid.csv', '--out', 'o'], 'cannot be read as Parquet'),
        (
            ['--run', 'run', '--in', 'in', '--out', 'labels.csv'],
            "cannot write to 'labels.csv': 'labels.csv' is a file.",
        ),
        (
            ['--run', 'run', '--in', 'in', '--out', 'labels.csv/o'],
            "labels.csv' is a file. Name another folder with --out",
        ),
    ],
)
def test_errors_are_sentences(run, monkeypatch, args, why):
    monkeypatch.chdir(run[0])
    labels, names = Path('labels.csv').read_bytes(), set(Path('.').iterdir())
    code, said = give(*args)
    assert code == 2 and why in said and 'Traceback' not in said
    assert said.startswith('condmtl_predict: error: ') and len(said.splitlines()) == 1
    assert Path('labels.csv').read_bytes() == labels and set(Path('.').iterdir()) == names
