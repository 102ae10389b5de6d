"""Bars of our own stand in a terminal and in a notebook, and not in a pipe, nor where a learner shows none"""

import sys

import numpy as np
import pandas as pd
import pytest
from fastprogress import fastprogress

from fastai_condmtl.core.bars import shows_bars, under_bar
from fastai_condmtl.learn.accumulate import progress
from fastai_condmtl.tabular.all import *


@pytest.fixture
def terminal(monkeypatch):
    def say(is_terminal):
        monkeypatch.setattr(sys.stdout, 'isatty', lambda: is_terminal, raising=False)
        monkeypatch.delenv('PYCHARM_HOSTED', raising=False)

    return say


@pytest.mark.parametrize('is_terminal', [True, False])
def test_a_bar_stands_in_a_terminal_only(terminal, capsys, is_terminal):
    terminal(is_terminal)
    assert shows_bars() is is_terminal
    assert list(under_bar([1, 2, 3], comment='rows')) == [1, 2, 3]
    assert ('100.00% [3/3' in capsys.readouterr().out) is is_terminal


def test_what_silences_fastprogress_silences_ours(terminal, capsys, monkeypatch):
    terminal(True)
    monkeypatch.setattr(fastprogress, 'NO_BAR', True)
    assert list(under_bar(iter('ab'), 2)) == ['a', 'b'] and capsys.readouterr().out == ''


def learner():
    n = 60
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(x=rng.normal(size=n), a=rng.integers(0, 2, n), b=rng.integers(0, 2, n)))
    flow = Flow('f', BinaryBlock('a'), BinaryBlock('b'), SingleLabelBlock('k', col='c'))
    df['c'] = rng.choice(list('uvw'), n)
    dls = ConditionalTabularDataLoaders.from_df(df, flow, cont_names=['x'], valid_idx=range(30, n), bs=10)
    return df, conditional_tabular_learner(dls, layers=[4], tune=None)


@pytest.mark.parametrize('is_terminal', [True, False])
def test_no_bar_holds_for_all_that_takes_long(terminal, capsys, is_terminal):
    df, learn = learner()
    terminal(is_terminal)
    with learn.no_bar(), learn.no_logging():
        capsys.readouterr()
        assert list(progress(learn, [1, 2], 'thresholds')) == [1, 2]
        learn.evaluate(n_boot=40)
        learn.search_thresholds()
        learn.calibrate()
        learn.predict_df(df)
        learn.get_marginals(df)
        learn.fill_labels(df)
        learn.explain(df[:3])
        learn.label_next(df, 3)
        learn.dls.flow.audit(df)
    told = capsys.readouterr().out
    assert '%' not in told and '█' not in told


def test_between_terminals_and_pipes_a_learner_with_bars(terminal, capsys):
    _, learn = learner()
    for is_terminal in (True, False):
        terminal(is_terminal)
        assert list(progress(learn, [1, 2], 'temperatures')) == [1, 2]
        assert ('temperatures' in capsys.readouterr().out) is is_terminal
