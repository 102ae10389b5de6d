"""AI4I 2020: whether a machine fails, and why, by a flow, by hand, by a network a task and by gradient boosting

python benchmarks/real/ai4i.py [--quick]   reads ai4i2020.csv out of FASTAI_CONDMTL_DATA"""

import pandas as pd
from common import DATA, Bench, Task, main
from fastai_condmtl.datasets.machines import MACHINE_CATS, MACHINE_CONTS, MODES, machines_flow

PUBLISHED = 'published: no figures that we know of for these splits and scores'


def bench():
    df = pd.read_csv(DATA / 'ai4i2020.csv')
    failed = lambda df: (df['Machine failure'] == 1).to_numpy()
    tasks = {'failure': Task('Machine failure'), **{f'mode.{m}': Task(m, asked=failed) for m in MODES}}
    return Bench(df, machines_flow, tasks, MACHINE_CATS, MACHINE_CONTS, strata='Machine failure')


if __name__ == '__main__':
    main(bench(), 'AI4I 2020, split by failure:', PUBLISHED)
