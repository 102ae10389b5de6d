"Tests of tasks/single_label"

import numpy as np
import pandas as pd
import pytest
from fastai_condmtl.all import BinaryBlock, Flow, FlowError, MultiLabelBlock, OrdinalBlock, SingleLabelBlock, task
from fastai_condmtl.data.mask_facts import mask_facts
import fastai_condmtl.all  # noqa: F401  methods of flows and learners


# ---- a second review: conditions, kinds, scores
# ---------------------------------------------------------------------------
def table(**cols):
    return pd.DataFrame({c: pd.Series(v, dtype=object) for c, v in cols.items()})


def refused(why, *tasks, **cols):
    with pytest.raises(FlowError, match=why):
        Flow('f', *tasks).bind(table(**cols)).loss_func


def test_two_codes_of_one_class():
    res = mask_facts(np.array([[1, 2, 0, 3]]), {0: None, 1: 'cat', 2: 'cat', 3: 'dog'})
    assert list(res) == [f'{n}{e}' for n in ('cat', 'dog') for e in ('', '_share', '_x', '_y', '_w', '_h')] and (
        res['cat_share'],
        res['cat_x'],
        res['cat_w'],
        res['dog_share'],
        res['dog_x'],
    ) == (0.5, 0, 2, 0.25, 3)
    assert mask_facts(np.array([[True, False]]), ['bg', 'x'])['x_share'] == 0.5


def test_classes_that_nobody_knows():
    for o in (OrdinalBlock('o'), SingleLabelBlock('o')):
        refused(
            "compares task 'o', of which the table has no label: name its classes with vocab=",
            o,
            BinaryBlock('z') | (o > 3 if isinstance(o, OrdinalBlock) else o.eq(3)),
            o=[None, None],
            z=[1, 0],
        )


@pytest.mark.parametrize('gap', [float('nan'), np.float32('nan'), pd.NaT, pd.NA])
def test_a_gap_is_no_class(gap):
    for ask in (
        lambda: task('k').eq(gap),
        lambda: SingleLabelBlock('k').ne(gap),
        lambda: task('k').isin(['a', gap]),
        lambda: MultiLabelBlock('k').has(gap),
    ):
        with pytest.raises(FlowError, match='is a missing value, and no class can be that'):
            ask()


def test_large_vocabularies_are_read_at_once():
    "Counted, not timed: no value is compared with all that came before."

    class Counted(str):
        n = 0

        def __eq__(self, o):
            Counted.n += 1
            return str.__eq__(self, o)

        __hash__ = str.__hash__

    SingleLabelBlock('a', vocab=[Counted(i) for i in range(3000)])
    assert Counted.n < 30_000
