"""Columns of every make, and a network that says what it is told to."""

import numpy as np
import pandas as pd
import torch
from oracle import series


def hard_series(values, rng, index):
    "One column, in dtypes that files leave: Arrow's, narrow ones, categories; of blanks alone, too."
    known = [v for v in values if v is not None]
    ways = [lambda: series(values, rng, index)]
    typed = lambda dtype: lambda: pd.Series(values, index=index, dtype=dtype)
    if not known:
        ways += [typed(d) for d in ('float32', 'Int8', 'boolean', 'category', 'string[pyarrow]', 'int64[pyarrow]')]
    elif all(isinstance(v, str) for v in known):
        ways += [typed('string[pyarrow]'), lambda: pd.Series(values, index=index, dtype='str').astype('category')]
    elif all(isinstance(v, bool) for v in known):
        ways += [typed('bool[pyarrow]'), lambda: typed(object)().astype('category')]
    elif all(isinstance(v, (int, float)) for v in known):
        ways += [typed('float32'), typed('double[pyarrow]'), lambda: typed('Float64')().astype('category')]
        ways += [lambda: pd.Series([None if v is None else np.float32(v) for v in values], index=index, dtype=object)]
        if all(v == int(v) for v in known):
            ways += [typed('int16[pyarrow]'), typed('Int8'), lambda: typed('Int64')().astype('category')]
            ways += [lambda: pd.Series([None if v is None else np.int8(v) for v in values], index=index, dtype=object)]
    return rng.choice(ways)()


class Row(torch.nn.Module):
    "Says of each row what it was told to, by the row's number."

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, cat, cont):
        return self.logits[cont[:, 0].long()]
