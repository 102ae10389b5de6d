"`condmtl_train --guess`: a first flow, and the line with which to go on"

import pandas as pd, pytest
from fastai_condmtl.all import Flow, FlowError
from fastai_condmtl.datasets.machines import machines
from fastai_condmtl.datasets.reviews import reviews
from fastai_condmtl.datasets.synthetic import save_scenes
from fastai_condmtl.tools.cli import condmtl_train
from fastai_condmtl.tools.cli_common import status
from fastai_condmtl.tools.cli_guess import READ_BY_GUESS, check_guess_options, values_in_words
from fastai_condmtl.tools.cli_options import train_parser


def give(*args):
    return status(condmtl_train, [str(arg) for arg in args])


def test_of_pictures(tmp_path):
    save_scenes(tmp_path, n=100, seed=1)
    args = '--guess', tmp_path / 'labels.csv', '--flow', tmp_path / 'guess.json'
    code, said = give(*args, '--images', tmp_path, '--ignore', 'scene')
    assert code == 0 and 'Labelled in' in said and f"--flow {tmp_path / 'guess.json'} --images {tmp_path}" in said
    flow = Flow.from_json(tmp_path / 'guess.json')
    assert {b.name: str(b.given) for b in flow.tasks}['door_open'] == '~camera_blocked'
    assert all(b.note for b in flow.tasks)
    assert give(*args)[0] == 2  # not written over


@pytest.mark.parametrize(
    'table, args, tasks, goes_on',
    [
        (reviews(200), ['--text', 'text'], ['complaint', 'cause', 'refund', 'stars', 'language'], ' --text text\n'),
        (machines(500), ['--tasks', 'Machine failure', 'OSF'], ['Machine failure', 'OSF'], 'flow.json\n'),
    ],
)
def test_of_texts_and_tables(tmp_path, table, args, tasks, goes_on):
    table.to_csv(tmp_path / 't.csv', index=False)
    code, said = give('--guess', tmp_path / 't.csv', '--flow', tmp_path / 'flow.json', *args)
    assert code == 0 and said.endswith(goes_on)
    assert [task.name for task in Flow.from_json(tmp_path / 'flow.json').tasks] == tasks
    for option in ('--tasks', '--ignore'):
        code, said = give('--guess', tmp_path / 't.csv', '--flow', tmp_path / 'other.json', option, 'stras')
        assert code == 2 and f"condmtl_train: error: {option} 'stras' is no column of" in said
        assert sorted(file.name for file in tmp_path.iterdir()) == ['flow.json', 't.csv']


@pytest.mark.parametrize(
    'args, told',
    [
        (['--lr', '1e-2'], '--lr is for a training, and --guess trains nothing: leave it out here, and add it to'),
        (['--epochs', '3', '--valid-col', 'split'], '--epochs, --valid-col are for a training, and'),
        (['--out', 'q.json'], 'to the command that --guess prints; --flow names the file that it writes'),
        (['--cat', 'city'], '--cat is for a training'),
    ],
)
def test_options_of_a_training_are_refused(tmp_path, args, told):
    pd.DataFrame(dict(a=[0, 1] * 10, city=['x', 'y'] * 10)).to_csv(tmp_path / 't.csv', index=False)
    code, said = give('--guess', tmp_path / 't.csv', '--flow', tmp_path / 'flow.json', *args)
    assert code == 2 and said.startswith('condmtl_train: error: ') and told in said
    assert not (tmp_path / 'flow.json').exists()


def test_each_option_is_read_by_a_guess_or_refused(tmp_path):
    known = {option for option in train_parser()._option_string_actions if option.startswith('--')}
    assert set(READ_BY_GUESS) < known
    for option in known - {*READ_BY_GUESS, '--help', '--version', '--auto', '--csv'}:
        with pytest.raises(FlowError, match=f'{option} is for a training'):
            check_guess_options(['--guess', option])
    check_guess_options(READ_BY_GUESS)


def test_modules_of_the_user_are_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame(dict(a=[0, 1] * 10)).to_csv('t.csv', index=False)
    (tmp_path / 'mine_for_guess.py').write_text("open('imported', 'w').close()")
    assert give('--guess', 't.csv', '--register', 'mine_for_guess')[0] == 0 and (tmp_path / 'imported').exists()


def test_values_in_words_are_what_a_table_may_hold():
    found = values_in_words(['-1', 'none', '2.5', 'inf'])
    assert found == ['-1', 'none', '2.5', 'inf', -1, 2.5]
    assert pd.Series([-1, 0]).isin(found).tolist() == [True, False]
