"The options of `condmtl_train`"

import re
import pytest
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.tools.cli import condmtl_train
from fastai_condmtl.tools.cli_common import status
from fastai_condmtl.tools.cli_options import INPUTS, READ_FOR, check_kind, train_parser


def test_every_example_is_taken():
    "What `--help` shows can be given"
    parser = train_parser()
    examples = re.findall(r'^  condmtl_train (.*?)(?:  |$)', parser.epilog, re.M)
    assert len(examples) == 10
    for example in examples:
        parser.parse_args(example.split())


@pytest.mark.parametrize(
    'args, says',
    [
        ('--bs 1', 'argument --bs: 1 is less than 2'),
        ('--n-boot -1', 'argument --n-boot: n_boot=-1 must be how many draws of the rows, or 0'),
        (
            '--n-boot 5',
            'argument --n-boot: n_boot=5 draws are too few for the ends of a 95% interval, which may then leave out '
            'the estimate itself: write --n-boot 200 (0: no interval)',
        ),
        ('--n-boot ten', "argument --n-boot: 'ten' is no whole number"),
        ('--seed -1', 'argument --seed: -1 is less than 0'),
        ('--seed 1.5', "argument --seed: invalid number value: '1.5'"),
        ('--valid-pct nan', 'argument --valid-pct: nan is less than 0'),
        ('--augment some', "argument --augment: invalid choice: 'some'"),
        ('--siz 32', 'unrecognized arguments: --siz 32'),  # no option is guessed from its beginning
    ],
)
def test_numbers_and_choices_are_checked(args, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = status(condmtl_train, ['--csv', 't.csv', '--flow', 'f.json', *args.split()])
    assert code == 2 and said.splitlines()[-1].startswith(f'condmtl_train: error: {says}')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'args, named',
    [
        ('', []),
        ('--size 224', ['--size']),  # also where it is the value that is taken anyway
        ('--size=32', ['--size']),
        ('--text arch size', ['--text']),
        ('--register a --register b', ['--register']),
    ],
)
def test_the_options_that_were_given_are_known(args, named):
    assert train_parser().parse_args(args.split()).named == named


@pytest.mark.parametrize('args', ['--text --size 3', '--out --size 3'])
def test_no_option_is_the_value_of_another(args):
    assert status(train_parser().parse_args, args.split())[0] == 2


def test_options_are_those_of_the_process(monkeypatch):
    monkeypatch.setattr('sys.argv', ['condmtl_train', '--size', '32', '--csv', 't.csv'])
    assert sorted(train_parser().parse_args().named) == ['--csv', '--size']


@pytest.mark.parametrize(
    'args, says',
    [
        ('', '--csv, --flow missing'),
        ('--csv t.csv', '--flow missing'),
        ('--auto t.csv --csv t.csv', '--auto and --csv each name the table of another job'),
        ('--auto t.csv --guess t.csv', '--auto and --guess each name the table of another job'),
        ('--auto t.csv --flow f.json', '--auto guesses the flow: leave --flow out'),
        ('--csv t.csv --flow f.json --tasks a', '--tasks goes with --auto or --guess'),
        ('--csv t.csv --flow f.json --na none', '--na goes with --auto or --guess'),
    ],
)
def test_what_does_not_say_the_job_is_refused(args, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = status(condmtl_train, args.split())
    assert code == 2 and said.splitlines()[-1].startswith(f'condmtl_train: error: {says}')
    assert not list(tmp_path.iterdir())


def test_an_option_is_read_for_its_kinds_and_refused_for_the_others():
    meant = {
        '--size': 'pictures',
        '--encoder': 'texts',
        '--cont': 'columns of a table',
        '--column': 'pictures or texts',
    }
    for option, words in meant.items():
        for kind in INPUTS:
            if kind in READ_FOR[option]:
                check_kind([option, '--epochs'], kind, 'why')
                continue
            with pytest.raises(FlowError) as error:
                check_kind(['--epochs', option], kind, 'why', {READ_FOR[option][0]: ', or else'})
            assert str(error.value) == f'{option} is for {words}, and why: leave it out, or else'
