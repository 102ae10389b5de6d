"A number with its noun, in the singular where there is one"

import numpy as np, pytest
from fastai_condmtl.core.errors import counted


@pytest.mark.parametrize(
    'n, noun, want',
    [
        (0, 'row', '0 rows'),
        (1, 'row', '1 row'),
        (np.int64(1), 'target column', '1 target column'),
        (2, 'other file', '2 other files'),
        (1, 'class', '1 class'),
        (3, 'class', '3 classes'),
        (2, 'batch', '2 batches'),
        (2, 'category', '2 categories'),
        (1, 'family', '1 family'),
        (2, 'epoch', '2 epochs'),
    ],
)
def test_one_and_many(n, noun, want):
    assert counted(n, noun) == want


def test_long_numbers():
    assert (counted(1_234_567, 'row', ','), counted(1, 'row', ',')) == ('1,234,567 rows', '1 row')
