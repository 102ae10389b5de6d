"The options of `condmtl_train`"

import re
import pytest
from fastai_condmtl.tools.cli_common import status
from fastai_condmtl.tools.cli_options import train_parser


def test_every_example_is_taken():
    "What `--help` shows can be given"
    parser = train_parser()
    examples = re.findall(r'^  condmtl_train (.*?)(?:  |$)', parser.epilog, re.M)
    assert len(examples) == 10
    for example in examples:
        parser.parse_args(example.split())


@pytest.mark.parametrize(
    'args, says',
    [('--bs 1', '1 is less than 2'), ('--n-boot -1', 'is less than 0'), ('--augment some', 'invalid choice')],
)
def test_numbers_and_choices_are_checked(args, says):
    code, said = status(train_parser().parse_args, args.split())
    assert code == 2 and says in said
