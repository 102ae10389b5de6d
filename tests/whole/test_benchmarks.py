"""The benchmarks compare our loss with one that is fused by hand. `compare` stops where values or gradients differ, so
that each flow is also a test: what an expert writes for these tasks equals ours. Of the others, what `make bench` would
find out after an hour: that they still run with what they import."""

import importlib, sys
from pathlib import Path
import pytest, torch
from fastai_condmtl.datasets.faces import save_faces

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture
def benchmark(monkeypatch):
    "Modules of benchmarks by their name, each imported as a run of it is"
    monkeypatch.syspath_prepend(BENCHMARKS)
    n_threads, before = torch.get_num_threads(), set(sys.modules)
    yield importlib.import_module
    torch.set_num_threads(n_threads)
    for name in set(sys.modules) - before:
        if name.startswith('bench_') or name == 'timing':
            del sys.modules[name]


@pytest.fixture
def bench_loss(benchmark):
    return benchmark('bench_loss')


def test_our_loss_is_the_hand_fused_one(bench_loss, capsys):
    once = dict(rounds=1, inner=1)
    bench_loss.compare('two kinds', *bench_loss.table(6, 8), 9, **once)
    scenes = bench_loss.security_scenes(256, size=16)[1]
    bench_loss.compare('security', bench_loss.security_flow(), scenes, 9, **once)
    bench_loss.compare('each kind', *bench_loss.mixed(), 9, by_hand=bench_loss.hand_mixed, same=False, **once)
    printed = capsys.readouterr().out
    assert printed.count('waits for the device: none') == 3, printed


def test_a_wrong_loss_is_noticed(bench_loss):
    def wrong(bound, linear):
        step = bench_loss.hand_fused(bound, linear)
        return lambda x, y: step(x, y) * 1.01

    with pytest.raises(AssertionError):
        bench_loss.compare('wrong', *bench_loss.table(2, 2), 9, by_hand=wrong, rounds=1, inner=1)


def test_each_choice_of_the_ablation_trains(benchmark, tmp_path):
    ablation = benchmark('bench_ablation')
    save_faces(tmp_path / 'faces', n=300)
    for runs in (ablation.scenes(tmp_path, n=200, epochs=1), ablation.faces(tmp_path / 'faces' / 'MTFL', epochs=1)):
        right, off = runs[-1][1]()
        assert 0 <= right <= 100 and 0 <= off <= 100
