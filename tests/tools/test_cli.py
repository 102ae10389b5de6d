"""The commands as a user gives them: files, numbers that agree with the library's, and a sentence where something
is wrong."""

import json, os, re, shutil, subprocess, sys
from pathlib import Path
from urllib.error import URLError
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from sklearn.metrics import accuracy_score
from fastai.vision.all import Learner, load_learner
from fastai_condmtl.all import *
from fastai_condmtl.tools import cli, cli_common, cli_run
from fastai_condmtl.tools.cli import condmtl_train
from fastai_condmtl.tools.cli_inputs import Pictures
from fastai_condmtl.tools.cli_options import train_parser
from fastai_condmtl.tools.cli_run import condmtl_evaluate, condmtl_explain
from fastai_condmtl.datasets.synthetic import save_scenes, security_flow

SMALL = '--arch squeezenet1_1 --no-pretrained --size 32 --bs 16 --epochs 1 --workers 0 --quiet'.split()


@pytest.fixture
def call(capsys):
    "Give a command, get its exit status, what it printed and what it complained of."

    def give(command, *args):
        capsys.readouterr()
        try:
            command([str(a) for a in args])
            status = 0
        except SystemExit as e:
            status = e.code or 0
        return status, *capsys.readouterr()

    return give


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    d = tmp_path_factory.mktemp('scenes')
    save_scenes(d, n=100, seed=1)
    security_flow().to_json(d / 'flow.json')
    return d


def train_args(d, *more):
    return ['--csv', d / 'labels.csv', '--flow', d / 'flow.json', '--images', d, *SMALL, *more]


@pytest.fixture(scope='module')
def run(scenes):
    condmtl_train([str(a) for a in train_args(scenes, '--out', scenes / 'run')])
    return scenes / 'run'


def test_run_folder(run, scenes):
    names = {f.name for f in run.iterdir()}
    assert names >= set(cli.RUN_FILES) and (run / 'audit.txt').read_text().startswith('security: 100 rows, 14 tasks')
    for f in ('results.png', 'flow.png'):
        with Image.open(run / f) as im:
            assert np.asarray(im.convert('L')).std() > 5 and min(im.size) > 200  # something is drawn
    report = (run / 'report.html').read_text(encoding='utf-8')
    assert '<h1>security</h1>' in report and 'camera_blocked' in report and 'data:image/jpeg' in report
    assert Flow.from_json(run / 'flow.json').to_json() == security_flow().to_json()
    history = pd.read_csv(run / 'history.csv')
    assert len(history) == 1 and {'valid_loss', 'camera_blocked.accuracy'} <= set(history.columns)


def test_numbers_agree(run, scenes):
    "evaluation.csv against decisions counted by hand, and thresholds.json against the learner's."
    learn, valid = load_learner(run / 'learner.pkl'), pd.read_csv(run / 'valid.csv')
    pred = learn.predict_df(valid.assign(img=[str(scenes / f) for f in valid.img]))
    table = pd.read_csv(run / 'evaluation.csv').set_index(['task_path', 'metric_name'])
    known = valid.camera_blocked.notna()
    if 'camera_blocked' not in moved(run):
        assert table.loc[('camera_blocked', 'accuracy'), 'metric_res'] == accuracy_score(
            valid.camera_blocked[known] == 1, pred.camera_blocked[known].astype(bool)
        )
    assert table.loc[('camera_blocked', 'accuracy'), 'num_samples'] == known.sum()
    asked = (valid.camera_blocked == 0) & valid.door_open.notna()
    assert table.loc[('door_open', 'accuracy'), 'num_samples'] == asked.sum()
    saved = json.loads((run / 'thresholds.json').read_text())['thresholds']
    assert {p: t for p, t in saved.items() if not isinstance(t, list)} == pytest.approx(
        {
            p: float(learn.loss_func.thresholds.get(p, torch.tensor([0.5]))[0])
            for p, t in saved.items()
            if not isinstance(t, list)
        }
    )
    labels = pd.read_csv(scenes / 'labels.csv')
    assert set(valid.img) < set(labels.img) and len(valid) == pytest.approx(20, abs=4)


def moved(run):
    return [p for p, t in json.loads((run / 'thresholds.json').read_text())['thresholds'].items() if t != 0.5]


def test_evaluate_again_and_on_other_rows(run, scenes, call, tmp_path):
    code, out, _ = call(condmtl_evaluate, '--run', run, '--workers', 0, '--quiet', '--out', tmp_path / 'a')
    assert code == 0 and 'camera_blocked' in out
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / 'a/evaluation.csv'), pd.read_csv(run / 'evaluation.csv'))
    df = pd.read_csv(scenes / 'labels.csv').iloc[:20].rename(columns={'img': 'picture'}).drop(columns='shirt_type')
    df.to_csv(tmp_path / 'other.csv', index=False)
    code, out, err = call(
        condmtl_evaluate,
        '--run',
        run,
        '--csv',
        tmp_path / 'other.csv',
        '--workers',
        0,
        '--quiet',
        '--out',
        tmp_path / 'b',
        '--n-boot',
        40,
    )
    assert code == 0 and "note: no column 'shirt_type'" in err
    table = pd.read_csv(tmp_path / 'b/evaluation.csv')
    assert (
        table.num_samples.max() == df.camera_blocked.notna().sum()
        and 'ci_low' in table
        and (table[table.task_path.str.contains('shirt')].num_samples == 0).all()
    )
    assert len(pd.read_csv(tmp_path / 'b/predictions.csv')) == 20


def test_evaluate_with_other_thresholds(run, call, tmp_path):
    data = json.loads((run / 'thresholds.json').read_text())
    data['thresholds']['camera_blocked'] = 1.0
    (tmp_path / 't.json').write_text(json.dumps(data))
    assert (
        call(
            condmtl_evaluate,
            '--run',
            run,
            '--workers',
            0,
            '--quiet',
            '--out',
            tmp_path,
            '--thresholds',
            tmp_path / 't.json',
        )[0]
        == 0
    )
    assert not pd.read_csv(tmp_path / 'predictions.csv').camera_blocked.any()
    (tmp_path / 't.json').write_text('{')
    code, _, err = call(
        condmtl_evaluate, '--run', run, '--workers', 0, '--out', tmp_path / 'x', '--thresholds', tmp_path / 't.json'
    )
    assert code == 2 and 'is no JSON' in err


def test_explain(run, scenes, call, tmp_path):
    code, out, _ = call(
        condmtl_explain, '--run', run, scenes / '3.png', scenes / '4.png', '--workers', 0, '--out', tmp_path, '--logits'
    )
    assert code == 0 and '├── 3.png' in out and 'logit' in out and (tmp_path / 'trees.txt').read_text().strip() in out
    yes = load_learner(run / 'learner.pkl').predict(scenes / '3.png')[0]['camera_blocked']
    assert re.search(rf"3\.png\n.*camera_blocked: {'yes' if yes else 'no'}", out)
    for f in ('0_3.png', '1_4.png'):
        with Image.open(tmp_path / f) as im:
            assert np.asarray(im.convert('L')).std() > 5
    code, out, _ = call(condmtl_explain, '--run', run, '--max-n', 2, '--workers', 0)
    assert code == 0 and out.count('── camera_blocked') == 2 and 'more (--max-n)' in out


@pytest.mark.parametrize('taken, why', [('0_3.png', 'holds 0_3.png already'), ('trees.txt', 'holds trees.txt already')])
def test_explain_tells_a_taken_folder_before_its_work(run, scenes, call, tmp_path, monkeypatch, taken, why):
    args = ['--run', run, scenes / '3.png', '--workers', 0, '--out', tmp_path]
    (tmp_path / taken).write_text('mine')
    with monkeypatch.context() as patched:
        patched.setattr(Learner, 'explain', lambda *args, **kwargs: pytest.fail('work that is lost'))
        code, out, err = call(condmtl_explain, *args)
    fix = 'name another folder with --out, or write over it with --force'
    assert (code, out, err) == (2, '', f"condmtl_explain: error: '{tmp_path}' {why}: {fix}\n")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(taken, 'mine')]
    code, out, err = call(condmtl_explain, *args, '--force')
    assert (code, err) == (0, '') and {file.name for file in tmp_path.iterdir()} == {'0_3.png', 'trees.txt'}
    code, out, err = call(condmtl_explain, *args[:-1], scenes / 'labels.csv')
    assert code == 2 and out == '' and "labels.csv' is a file. Name another folder with --out" in err


@pytest.mark.parametrize('command, file', [(condmtl_evaluate, 'evaluation.csv'), (condmtl_explain, 'trees.txt')])
def test_a_taken_folder_is_told_before_the_learner_is_loaded(run, call, tmp_path, monkeypatch, command, file):
    (tmp_path / file).write_text('mine')
    monkeypatch.setattr(cli_run, 'load_exported', lambda *args, **kwargs: pytest.fail('work that is lost'))
    code, out, err = call(command, '--run', run, '--out', tmp_path)
    assert (code, out) == (2, '') and f"'{tmp_path}' holds {file} already: name another folder with --out" in err
    code, out, err = call(command, '--run', run, '--out', tmp_path / file)
    assert (code, out) == (2, '') and f"'{tmp_path / file}' is a file. Name another folder with --out" in err
    code, out, err = call(command, '--run', tmp_path, '--out', tmp_path)
    assert (code, out) == (2, '') and 'is no run folder' in err


def test_split_column_suffix_and_timm(scenes, call, tmp_path):
    pytest.importorskip('timm')
    df = pd.read_csv(scenes / 'labels.csv').assign(
        img=lambda d: d.img.str.removesuffix('.png'), held=lambda d: d.index < 30
    )
    df.to_csv(tmp_path / 'l.csv', index=False)
    args = [
        '--csv',
        tmp_path / 'l.csv',
        '--flow',
        scenes / 'flow.json',
        '--images',
        scenes,
        *SMALL,
        '--arch',
        'test_resnet',
        '--suff',
        '.png',
        '--fn-col',
        'img',
        '--valid-col',
        'held',
        '--augment',
        'light',
        '--out',
        tmp_path / 'run',
    ]
    code, out, err = call(condmtl_train, *args)
    assert (code, err) == (0, '') and '70 rows to learn from, 30 to judge by' in out
    assert set(pd.read_csv(tmp_path / 'run/valid.csv').img) == set(range(30))
    assert call(condmtl_evaluate, '--run', tmp_path / 'run', '--workers', 0, '--quiet')[0] == 0
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / 'run/evaluate/evaluation.csv'), pd.read_csv(tmp_path / 'run/evaluation.csv')
    )


def test_groups_and_a_third_part(scenes, call, tmp_path):
    "Groups stay whole; rows that neither trained nor tuned are scored in a folder of their own, against `n` by pandas"
    df = pd.read_csv(scenes / 'labels.csv').assign(burst=np.arange(100) // 5, held=np.arange(100) < 20)
    df.to_csv(scenes / 'bursts.csv', index=False)
    args = ['--csv', scenes / 'bursts.csv', '--flow', scenes / 'flow.json', '--images', scenes, *SMALL]
    code, out, err = call(condmtl_train, *args, '--group-col', 'burst', '--test-col', 'held', '--out', tmp_path / 'run')
    assert (code, err) == (0, '') and '20 rows that neither trained nor tuned' in out
    valid, test = (pd.read_csv(tmp_path / 'run' / file) for file in ('valid.csv', 'test/test.csv'))
    assert list(test.index) == list(range(20)) and set(test.burst) == {0, 1, 2, 3}
    assert not set(valid.burst) & set(test.burst) and (valid.groupby('burst').size() == 5).all()
    table = pd.read_csv(tmp_path / 'run/test/evaluation.csv').set_index(['task_path', 'metric_name'])
    assert table.loc[('camera_blocked', 'accuracy'), 'num_samples'] == df.camera_blocked[:20].notna().sum()
    code, out, err = call(condmtl_train, *args, '--group-col', 'burts', '--out', tmp_path / 'other')
    assert code == 2 and "did you mean 'burst'" in err


def test_fine_tuning_and_narrow_lines(scenes, tmp_path, capsys):
    "With bars: two fits, losses on the terminal, all metrics in one table."
    from fastai.vision.all import resnet18  # noqa: F401

    args = train_args(scenes, '--epochs', 2, '--out', tmp_path)
    options = train_parser().parse_args([str(arg) for arg in args if arg != '--quiet'])
    inputs = Pictures(options, pd.read_csv(scenes / 'labels.csv'))
    learn = inputs.learner(inputs.loaders(security_flow()))
    learn.path = tmp_path
    options.pretrained = True
    cli.fit(options, learn, inputs)
    history = pd.read_csv(tmp_path / 'history.csv')
    assert list(history.epoch) == [0, 0, 1] and 'door_open.accuracy' in history
    out = capsys.readouterr().out
    assert 'train_loss' in out and 'door_open.accuracy' not in out and hasattr(learn, 'progress')


BLOCK = '''
from fastai_condmtl.tasks.binary import BinaryBlock
from fastai_condmtl.core.block_json import register_block
@register_block
class Mine(BinaryBlock): "Of my own"
'''


def test_register(scenes, call, tmp_path, monkeypatch):
    (tmp_path / 'my_blocks_of_test.py').write_text(BLOCK)
    (tmp_path / 'flow.json').write_text(
        json.dumps(
            dict(
                format='fastai_condmtl.flow',
                version=1,
                flow='f',
                tasks=[dict(name='camera_blocked', block='my_blocks_of_test.Mine')],
            )
        )
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    args = [
        '--csv',
        scenes / 'labels.csv',
        '--flow',
        'flow.json',
        '--images',
        scenes,
        *SMALL,
        '--out',
        tmp_path / 'run',
    ]
    code, _, err = call(condmtl_train, *args)
    assert code == 2 and 'register_block(Mine)' in err
    assert 'no such module' in call(condmtl_train, *args, '--register', 'nowhere_blocks')[2]
    assert call(condmtl_train, *args, '--register', 'my_blocks_of_test')[0] == 0
    assert call(condmtl_explain, '--run', 'run', '--workers', 0)[0] == 0  # the run remembers what to import


def wrong(d):  # name → (arguments, what is said)
    base = dict(csv=d / 'labels.csv', flow=d / 'flow.json', images=d, out=d / 'other')
    w = lambda **kw: SMALL + [x for k, v in {**base, **kw}.items() for x in (f"--{k.replace('_', '-')}", v)]
    return {
        'no csv': (w(csv=d / 'none.csv'), 'there is no file'),
        'a folder as csv': (w(csv=d), 'cannot be read as a CSV'),
        'a picture as csv': (w(csv=d / '0.png'), 'cannot be read as a CSV'),
        'an empty csv': (w(csv=d / 'empty.csv'), 'cannot be read as a CSV'),
        'only a head': (w(csv=d / 'head.csv'), 'holds no rows'),
        'no flow': (w(flow=d / 'none.json'), "no file"),
        'a csv as flow': (w(flow=d / 'labels.csv'), 'is no JSON'),
        'a column lacks': (w(csv=d / 'lacks.csv'), "task 'door_open' reads column 'door_open'"),
        'a bad label': (w(csv=d / 'bad.csv'), "task 'door_open', row 3.*'ajar'"),
        'a bad number': (w(csv=d / 'badnum.csv'), "face_x1', row 7.*'12px'"),
        'no folder': (w(images=d / 'none'), 'there is no folder'),
        'no images': (w(images=d / 'run'), '100 of 100 images are missing'),
        'one image lacks': (
            w(csv=d / 'gone.csv'),
            "1 of 100 images are missing, such as '.*gone.png'.*--skip-bad-images",
        ),
        'no such file column': (w(fn_col='imgg'), "did you mean 'img'"),
        'no file column': (w(csv=d / 'nofiles.csv'), 'say which one it is with --fn-col'),
        'blank file names': (w(csv=d / 'blank.csv'), 'blank in 1 row, the first in line 4'),
        'an architecture': (w(arch='resnt18'), "did you mean 'resnet18' or 'resnet1"),
        'the folder is full': (w(out=d / 'run'), 'write over it with --force'),
        'no folder to write': (w(out=d / 'labels.csv'), 'cannot write'),
        'a split column': (w(valid_col='held'), "--valid-col 'held'"),
        'an unreadable image': (w(csv=d / 'broken.csv'), "cannot read image '.*broken.png'.* --skip-bad-images$"),
        'the same in a worker': (
            w(csv=d / 'broken.csv', workers=1),
            "cannot read image '.*broken.png'.* --skip-bad-images$",
        ),
        'no epochs': (w(epochs=0), '0 is less than 1'),
        'too few rows': (w(csv=d / 'two.csv', valid_pct=0.1), 'too few|valid'),
        'no such option': (SMALL + ['--cvs', 'x'], 'missing|cvs'),
        'nothing': ([], '--csv, --flow missing'),
        'a forgotten folder': ([x for x in w() if x not in ('--images', d)], "column 'img' .*--images"),
        'two kinds of inputs': (w(text='scene'), 'two kinds of inputs'),
        'an option for texts': (w(encoder='e'), '--encoder is for texts, and --images says .*: leave it out$'),
        'an option for tables': (w(cont='scene'), '--cont is for columns of a table, and --images says .*in Python'),
        'frozen, and nothing learnt before': (w(freeze_epochs=1), '--freeze-epochs is for networks with pretrained'),
        'two jobs': (w(auto=d / 'labels.csv'), '--auto and --csv'),
        'a flow beside a guess': (['--auto', 'l.csv', '--flow', 'f.json'], 'leave --flow out'),
    }


@pytest.mark.parametrize('name', wrong(Path('.')))
def test_wrong_input(name, scenes, run, call):
    df = pd.read_csv(scenes / 'labels.csv')
    tables = dict(
        lacks=df.drop(columns='door_open'),
        bad=df.assign(door_open=df.door_open.astype(object).where(df.index != 3, 'ajar')),
        badnum=df.assign(face_x1=df.face_x1.astype(object).where(df.index != 7, '12px')),
        gone=df.assign(img=df.img.where(df.index != 5, 'gone.png')),
        blank=df.assign(img=df.img.where(df.index != 2)),
        nofiles=df.drop(columns='img'),
        broken=df.assign(img=df.img.where(df.index % 2 > 0, 'broken.png')),
        two=df.iloc[:2],
        head=df.iloc[:0],
    )
    for k, t in tables.items():
        t.to_csv(scenes / f'{k}.csv', index=False)
    (scenes / 'broken.png').write_text('no picture')
    (scenes / 'empty.csv').write_text('')
    shutil.rmtree(scenes / 'other', ignore_errors=True)
    args, says = wrong(scenes)[name]
    code, out, err = call(condmtl_train, *args)
    assert code == 2 and 'Traceback' not in out + err and re.search(says, err, re.S), err
    assert err.strip().splitlines()[-1].startswith('condmtl_train: error: ')
    assert not (scenes / 'other').exists()  # no folder for what was not trained


def test_skipped_images_are_told(scenes, call, tmp_path):
    df = pd.read_csv(scenes / 'labels.csv').iloc[:40]
    df.assign(img=df.img.where(df.index != 5, 'gone.png')).to_csv(tmp_path / 'l.csv', index=False)
    code, out, err = call(
        condmtl_train,
        '--csv',
        tmp_path / 'l.csv',
        '--flow',
        scenes / 'flow.json',
        '--images',
        scenes,
        *SMALL,
        '--skip-bad-images',
        '--out',
        tmp_path / 'run',
    )
    assert code == 0 and 'note: left out 1 of 40 rows' in err and 'gone.png' in err


def test_weights_that_cannot_be_had(scenes, call, tmp_path, monkeypatch):
    import fastai_condmtl.vision.learner as vl

    make = vl.conditional_vision_learner

    def offline(*args, pretrained=True, **kwargs):
        if pretrained:
            raise URLError('no net')
        return make(*args, pretrained=False, **kwargs)

    monkeypatch.setattr(vl, 'conditional_vision_learner', offline)
    args = [a for a in train_args(scenes, '--out', tmp_path / 'run') if a != '--no-pretrained']
    code, _, err = call(condmtl_train, *args)
    assert code == 2 and 'no net' in err and '--no-pretrained' in err


def test_run_folders_that_are_none(run, scenes, call, tmp_path):
    for command, args, says in [
        (condmtl_evaluate, ['--run', scenes], 'is no run folder'),
        (condmtl_explain, ['--run', run, 'nowhere.png'], 'no file or folder'),
        (condmtl_explain, ['--run', run, tmp_path], 'holds no images'),
        (condmtl_explain, ['--run', run, scenes / 'labels.csv', '--workers', 0], 'cannot read image'),
        (condmtl_evaluate, ['--run', run, '--csv', 'none.csv'], 'there is no file'),
        (condmtl_explain, [], '--run'),
    ]:
        code, out, err = call(command, *args)
        assert code == 2 and says in err and 'Traceback' not in out + err


def test_help(call):
    for command in (condmtl_train, condmtl_evaluate, condmtl_explain):
        code, out, _ = call(command, '--help')
        assert code == 0 and f'examples:\n  {command.__name__}' in out and max(map(len, out.splitlines())) < 150
    assert re.search(r'\d+\.\d+', call(condmtl_train, '--version')[1])


def test_as_a_process(tmp_path, root):
    "Without a terminal, from a folder that is not the repository."
    res = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'fastai_condmtl.tools.cli', '--guess', 'none.csv'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(root)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (res.returncode, res.stderr.splitlines()[-1]) == (
        2,
        "condmtl_train: error: there is no file 'none.csv': check the path",
    ) and 'Traceback' not in res.stderr


@pytest.mark.slow
def test_trains_as_a_process(scenes, tmp_path, root):
    "The command loads the methods that it calls, and the transforms that warn of coordinates"
    args = [*train_args(scenes, '--augment', 'full'), '--out', tmp_path / 'run']
    res = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'fastai_condmtl.tools.cli', *map(str, args)],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(root)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert res.returncode == 0, res.stderr
    assert 'are plain numbers, which stay as they are while' in res.stderr
    assert {f.name for f in (tmp_path / 'run').iterdir()} == set(cli.RUN_FILES)


def test_few_rows_and_a_column_that_says_which_judge(scenes, call, tmp_path):
    "25 rows to learn from are one batch, whatever share --valid-pct would take; what the package warns of is told"
    df = pd.read_csv(scenes / 'labels.csv').iloc[:60].assign(judge=np.arange(60) >= 25, door_locked=np.nan)
    df.to_csv(tmp_path / 'l.csv', index=False)
    args = [
        '--csv',
        tmp_path / 'l.csv',
        '--flow',
        scenes / 'flow.json',
        '--images',
        scenes,
        '--arch',
        'squeezenet1_1',
        '--no-pretrained',
        '--size',
        32,
        '--epochs',
        1,
        '--workers',
        0,
        '--quiet',
        '--valid-col',
        'judge',
        '--augment',
        'full',
    ]
    code, out, err = call(condmtl_train, *args, '--out', tmp_path / 'run')
    assert code == 0, err
    assert '25 rows to learn from, 35 to judge by' in out and len(pd.read_csv(tmp_path / 'run/valid.csv')) == 35
    assert (
        "note: no training row counts for 'door_locked'" in err
        and 'are plain numbers, which stay as they are while' in err
    )
    assert all(l.startswith('condmtl_train: note: ') for l in err.strip().splitlines())


def test_lines_that_end_in_a_comma(scenes, tmp_path):
    text = (scenes / 'labels.csv').read_text().splitlines()
    (tmp_path / 'l.csv').write_text('\n'.join([text[0], *(l + ',' for l in text[1:])]))
    pd.testing.assert_frame_equal(cli_common.read_table(tmp_path / 'l.csv'), pd.read_csv(scenes / 'labels.csv'))
    (tmp_path / 'l.csv').write_text('\n'.join([text[0], *(l + ',' for l in text[1:]), text[1] + ',0']))
    with pytest.raises(FlowError, match='hold more cells than the first line names columns: name each column there'):
        cli_common.read_table(tmp_path / 'l.csv')
    (tmp_path / 'l.csv').write_text('\n'.join([*text, text[1] + ',0']))
    with pytest.raises(FlowError, match='cannot be read as a CSV'):
        cli_common.read_table(tmp_path / 'l.csv')


def run_tools(f, *args, capsys):
    with pytest.raises(SystemExit) as e:
        f([str(a) for a in args])
    return e.value.code, capsys.readouterr().err


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('cli')
    df = save_scenes(path / 'pictures', n=40, size=32)[['img']].assign(size=['1', '2', '3', 'm'] * 10)
    df.to_csv(path / 'mix.v2.csv', index=False)
    df[df['size'] != 'm'].to_csv(path / 'test.csv', index=False)
    Flow('f', SingleLabelBlock('size')).to_json(path / 'flow.json')
    return path


def test_another_csv_with_words_that_look_like_numbers(folder):
    condmtl_train(
        [
            str(a)
            for a in (
                '--csv',
                folder / 'mix.v2.csv',
                '--flow',
                folder / 'flow.json',
                '--images',
                folder / 'pictures',
                '--arch',
                'squeezenet1_1',
                '--no-pretrained',
                '--epochs',
                1,
                '--size',
                32,
                '--workers',
                0,
                '--quiet',
                '--out',
                folder / 'run',
            )
        ]
    )
    condmtl_evaluate(
        [
            str(a)
            for a in (
                '--run',
                folder / 'run',
                '--csv',
                folder / 'test.csv',
                '--images',
                folder / 'pictures',
                '--workers',
                0,
                '--quiet',
                '--out',
                folder / 'scores',
            )
        ]
    )
    pred = pd.read_csv(folder / 'scores' / 'predictions.csv')
    assert (
        pred.img.tolist() == pd.read_csv(folder / 'test.csv').img.tolist()
        and pd.read_csv(folder / 'scores' / 'evaluation.csv').num_samples.max() == 30
    )


@pytest.mark.parametrize('arch, size', [('vit_b_16', 32), ('squeezenet1_1', 8)])
def test_an_architecture_that_does_not_fit_is_said_so(folder, tmp_path, capsys, arch, size):
    code, err = run_tools(
        condmtl_train,
        '--csv',
        folder / 'mix.v2.csv',
        '--flow',
        folder / 'flow.json',
        '--images',
        folder / 'pictures',
        '--arch',
        arch,
        '--no-pretrained',
        '--epochs',
        1,
        '--size',
        size,
        '--workers',
        0,
        '--out',
        tmp_path / 'run',
        capsys=capsys,
    )
    assert code == 2 and f'--arch {arch}' in err and 'Traceback' not in err
