"What a run folder may hold instead of a run: each command says it in one sentence, and leaves no file"

import json, shutil, sys
import numpy as np, pandas as pd, pytest, torch
from fastai_condmtl.all import BinaryBlock, Flow
from fastai_condmtl.tools.app import main as condmtl_app
from fastai_condmtl.tools.cli import condmtl_train
from fastai_condmtl.tools.cli_common import status
from fastai_condmtl.tools.cli_predict import condmtl_predict
from fastai_condmtl.tools.cli_run import condmtl_evaluate, condmtl_explain


def files_in(folder) -> dict:
    "Each file with what it holds"
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob('*') if file.is_file()}


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    d = tmp_path_factory.mktemp('table')
    df = pd.DataFrame(dict(age=np.arange(60) % 7, works=['yes', 'no', 'no'] * 20))
    df.to_csv(d / 'people.csv', index=False)
    Flow('people', BinaryBlock('works', vocab=['no', 'yes'])).to_json(d / 'flow.json')
    args = ['--csv', d / 'people.csv', '--flow', d / 'flow.json', '--out', d / 'run', '--epochs', 1, '--quiet']
    code, said = status(condmtl_train, [str(arg) for arg in args])
    assert code == 0, said
    return d


@pytest.fixture
def refused(trained, tmp_path, monkeypatch):
    "Give a command that must fail, in a folder with a copy of the run, and get its one sentence; no file changes"
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)

    def sentence(name, *more):
        if name == 'predict':
            pytest.importorskip('pyarrow', reason='needs pyarrow (extra parquet)')
            pd.read_csv('people.csv').to_parquet('people.parquet')
        commands = dict(
            evaluate=(condmtl_evaluate, ['--run', 'run', '--out', 'out']),
            explain=(condmtl_explain, ['--run', 'run', '--out', 'out']),
            predict=(condmtl_predict, ['--run', 'run', '--out', 'out', '--in', 'people.parquet']),
            app=(condmtl_app, ['run/learner.pkl']),
        )
        function, args = commands[name]
        before = files_in(tmp_path)
        code, said = status(function, [*args, *more])
        (line,) = said.splitlines()
        head = f'condmtl_{name}: error: '
        assert code == 2 and line.startswith(head)
        assert files_in(tmp_path) == before and not (tmp_path / 'out').exists()
        return line.removeprefix(head)

    return sentence


def write_pickle_of_gone_module(file, monkeypatch):
    "A learner of code that is not here"
    module = type(sys)('a_gone_module')
    module.Gone = type('Gone', (), {'__module__': 'a_gone_module', '__qualname__': 'Gone'})
    monkeypatch.setitem(sys.modules, 'a_gone_module', module)
    torch.save(module.Gone(), file)
    monkeypatch.delitem(sys.modules, 'a_gone_module')


@pytest.mark.parametrize('command', ['evaluate', 'explain', 'predict', 'app'])
@pytest.mark.parametrize('how', ['empty', 'text', 'cut off', 'another object', 'a gone module'])
def test_a_broken_learner(refused, tmp_path, monkeypatch, command, how):
    file = tmp_path / 'run/learner.pkl'
    whole = file.read_bytes()
    if how == 'another object':
        torch.save({'a': 1}, file)
    elif how == 'a gone module':
        write_pickle_of_gone_module(file, monkeypatch)
    else:
        file.write_bytes({'empty': b'', 'text': b'broken', 'cut off': whole[: len(whole) // 2]}[how])
    said = refused(command)
    needs_code = "learner.pkl' needs code that is not here: install what it was trained with"
    no_learner = "learner.pkl' is not an exported learner: export one with learn.export('model.pkl')"
    is_read_apart = command == 'predict' and how in ('empty', 'text', 'cut off')  # by a scorer
    expected = needs_code if how == 'a gone module' else no_learner
    assert ("learner.pkl' is no file of learn.export (" if is_read_apart else expected) in said, said
    assert 'miniz' not in said  # no advice of torch


@pytest.mark.parametrize('command', ['evaluate', 'explain', 'predict'])
@pytest.mark.parametrize(
    'text, says',
    [
        ('{', "'run/run.json' is no JSON: "),
        ('[1]', "'run/run.json' holds no options of condmtl_train: train again"),
        (None, "'run' is no run folder: it must hold learner.pkl and run.json, as condmtl_train --out run writes them"),
    ],
)
def test_broken_options(refused, tmp_path, command, text, says):
    file = tmp_path / 'run/run.json'
    file.unlink() if text is None else file.write_text(text)
    assert refused(command).startswith(says)


@pytest.mark.parametrize(
    'command, option, says',
    [
        ('evaluate', '--images', '--images is for pictures, and '),
        ('evaluate', '--fn-col', '--fn-col is for pictures, and '),
        ('explain', '--images', '--images is for pictures, and '),
        ('predict', '--images', '--images is for pictures, and '),
        ('predict', '--column', '--column is for pictures or texts, and '),
    ],
)
def test_an_option_for_other_inputs_is_refused(refused, command, option, says):
    assert refused(command, option, 'age') == says + "'run' reads columns of a table: leave it out"


def test_the_run_itself_can_be_opened(trained):
    "So that what is refused above is refused for its own fault"
    assert json.loads((trained / 'run/run.json').read_text())['kind'] == 'table'
    assert 'named' not in json.loads((trained / 'run/run.json').read_text())
    code, said = status(condmtl_evaluate, ['--run', str(trained / 'run'), '--quiet'])
    assert code == 0, said
