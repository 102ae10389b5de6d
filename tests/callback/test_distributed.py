"""Two gloo processes on CPU against one process: the same gradients, metrics, thresholds, tables and balancing
weights. One launch serves all tests."""

import os, socket, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.learner import load_learner
import many_ranks as one

HERE = Path(__file__).resolve().parents[1] / 'helpers'
pytestmark = pytest.mark.filterwarnings('ignore')


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def launch(*args, ranks=2, limit=240):
    "`python *args`, once for each rank; what each printed. None outlives the limit"
    env = os.environ | dict(
        WORLD_SIZE=str(ranks),
        MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(free_port()),
        ACCELERATE_USE_CPU='true',
        OMP_NUM_THREADS='1',
        PYTHONPATH=os.pathsep.join([str(HERE.parent), *sys.path]),
    )
    ps = [
        subprocess.Popen(
            [sys.executable, *map(str, args)],
            env=env | dict(RANK=str(r), LOCAL_RANK=str(r)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for r in range(ranks)
    ]
    said, end = [], time.time() + limit
    try:
        for p in ps:
            said.append(p.communicate(timeout=max(1, end - time.time()))[0])
    finally:
        for p in ps:
            p.kill()
    assert [p.returncode for p in ps] == [0] * ranks, '\n'.join(said)[-6000:]
    return said


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "`(one process, [rank 0, rank 1], what they printed, folder)`"
    folder = tmp_path_factory.mktemp('ranks')
    torch.manual_seed(0)
    res = dict(trained=one.all_(folder, ranks=False))
    said = launch(HERE / 'many_ranks.py', folder)
    two = [torch.load(folder / f'rank{r}.pt', weights_only=False) for r in range(2)]
    return res, two, said, folder


def same(a, b, tol=1e-6, at=''):
    "Equal to `tol`, whatever is in it"
    if isinstance(a, dict):
        assert list(a) == list(b), at
        for k in a:
            same(a[k], b[k], tol, f'{at}.{k}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), at
        for i, (x, y) in enumerate(zip(a, b)):
            same(x, y, tol, f'{at}[{i}]')
    elif isinstance(a, pd.DataFrame):
        pd.testing.assert_frame_equal(pd.DataFrame(a), pd.DataFrame(b), rtol=tol, atol=tol, obj=at)
    elif isinstance(a, (torch.Tensor, np.ndarray, float)):
        np.testing.assert_allclose(
            np.asarray(a, dtype=float), np.asarray(b, dtype=float), rtol=tol, atol=tol, err_msg=at
        )
    else:
        assert a == b, at


# ---- training
# -----------------------------------------------------------------------------------------------------------
def test_the_first_gradients_are_those_of_all_rows(runs):
    res, two, *_ = runs
    for r in two:
        same(r['trained']['grads'], res['trained']['grads'])
    assert len(res['trained']['grads']) > 4 and all(g.abs().sum() > 0 for g in res['trained']['grads'].values())


def test_a_branch_without_rows_on_one_process(runs):
    "Rank 0 has no row for the branch in any batch: it runs on two, so that its parameters take part."
    res, two, *_ = runs
    assert set(two[0]['trained']['ran']) == {2} and max(two[1]['trained']['ran']) > 2


def test_weights_metrics_and_thresholds_after_fine_tune(runs):
    res, two, *_ = runs
    for r in two:
        for k in ('weights', 'metrics', 'thresholds', 'table'):
            same(r['trained'][k], res['trained'][k], 1e-5 if k == 'weights' else 1e-6, k)
    same(two[0]['trained']['weights'], two[1]['trained']['weights'], 0)
    assert any((t != 0.5).any() for t in res['trained']['thresholds'].values())


def test_the_bias_of_a_stock_head_trains_as_on_one_process(tmp_path):
    "It starts at the trivial predictor of all training rows on both, gets the gradients of all, and is exported"
    alone = one.with_added_bias(tmp_path)
    launch(HERE / 'many_ranks.py', tmp_path, 'bias')
    two = [torch.load(tmp_path / f'bias{r}.pt', weights_only=False) for r in range(2)]
    name = next(name for name in alone['begun'] if name.startswith('1.') and name.endswith('bias'))
    for r in two:
        same(r, alone, 1e-5)
    same(two[0], two[1], 0)
    assert ((alone['weights'][name] - alone['begun'][name]).abs() > 1e-4).any()
    for file in ('bias0.pkl', 'bias2.pkl'):
        same(load_learner(tmp_path / file).model.state_dict()[name], alone['weights'][name], 1e-5)


# ---- what may happen on the way
# -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope='module')
def more(tmp_path_factory):
    "`(one process, [rank 0, rank 1], folder)` of `more`"
    folder = tmp_path_factory.mktemp('more')
    one.draw(folder / 'pictures')
    alone = one.more(folder)
    launch(HERE / 'many_ranks.py', folder, 'more')
    return alone, [torch.load(folder / f'more{r}.pt', weights_only=False) for r in range(2)], folder


def test_an_export_in_mid_fit_holds_the_weights_of_that_moment_and_changes_nothing(more):
    alone, two, folder = more
    for r in (alone, *two):
        same(r['mid_fit']['with_exports'], r['mid_fit']['without'], 0)
        same(r['mid_fit'], alone['mid_fit'], 1e-6)
    for name in ('batch', 'epoch0', 'epoch1'):
        files = [load_learner(folder / f'ranks{n}_{name}.pkl') for n in (0, 2)]
        first, second = (dict(learn.model.state_dict()) for learn in files)
        same(second, first, 1e-6)
        assert (name == 'epoch1') == all(torch.equal(first[k], v) for k, v in alone['mid_fit']['without'].items())
        for learn in files:
            learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__ == 'ExportAt'])
        first, second = (learn.predict(one.table().iloc[50])[2] for learn in files)
        same(second, first, 1e-6)


def test_mixup_with_given_draws_trains_as_on_one_process(more):
    alone, two, _ = more
    for r in two:
        same(r['mixed'], alone['mixed'], 1e-6)
    same(two[0]['mixed']['weights'], two[1]['mixed']['weights'], 0)
    assert max((v - alone['mid_fit']['without'][k]).abs().max() for k, v in alone['mixed']['weights'].items()) > 1e-4


def test_cached_pictures_train_as_on_one_process(more):
    "Both processes begin to build the cache at once: each picture stands in it once"
    alone, two, _ = more
    for r in two:
        same(r['cached'], alone['cached'], 1e-6)
    assert alone['cached']['n_cached'] == 30 and alone['cached']['table'].num_samples.max() == 9


# ---- what is asked of a trained learner
# ---------------------------------------------------------------------------------
@pytest.mark.parametrize('where', ['inside', 'outside'])
def test_tables_and_predictions(runs, where):
    res, two, _, folder = runs
    if where not in res:
        res[where] = one.judged(one.trained_learner(), False)
    want = res[where]
    assert want['evaluate'].num_samples.max() == one.N - one.N_TRAIN  # 31 rows, though 32 were dealt out
    for rank, r in enumerate(two):
        for k in want:
            if k != 'one' or rank == 0:
                same(r[where][k], want[k], at=k)


def test_rows_of_predict_df_are_the_rows_of_the_table(runs):
    _, two, *_ = runs
    for r in two:
        assert list(r['inside']['predict_df'].index) == list(range(50, 57))


def test_search_and_calibration(runs):
    res, two, *_ = runs
    want = one.tuned()
    for r in two:
        same(r['tuned'], want)


# ---- balancing
# ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize('method', one.METHODS)
def test_balancing(runs, method):
    """All processes hold equal weights in each step, and these are those of one process that is given all rows of
    the step."""
    _, two, *_ = runs
    same(two[0][method]['weights'], two[1][method]['weights'], 0)
    same(two[0][method]['model'], two[1][method]['model'], 0)
    if method == 'pcgrad':
        return  # draws an order in each step: on one process other numbers come up
    want = one.balanced(method)
    for k in want:
        same(two[0][method][k], want[k], 1e-5, k)
    assert np.nanstd(want['weights']) > 0


# ---- files
# --------------------------------------------------------------------------------------------------------------
def test_one_process_writes(runs):
    _, two, _, folder = runs
    assert not [f.name for f in folder.rglob('*') if 'tmp' in f.name]
    state = torch.load(folder / 'models' / 'saved.pth')
    same(dict(state), {k: v for k, v in torch.load(folder / 'weights.pth')['weights'].items()})
    for name in ('inside', 'outside'):
        learn = load_learner(folder / f'{name}.pkl')
        assert [type(cb).__name__ for cb in learn.cbs if type(cb).__name__ == 'DistributedTrainer'] == []
        same(learn.predict(one.table().iloc[50])[2], two[0]['inside']['one'])


def test_checkpoint_goes_on(runs):
    """Broken off after three batches and started again: weights of a run that was not, though each process has
    dropout of its own."""
    _, two, *_ = runs
    for r in two:
        same(r['on'], r['whole'], 0)
    same(two[0]['on']['weights'], two[1]['on']['weights'], 0)


def test_one_process_speaks(runs):
    said = runs[2]
    assert 'thresholds: ' in said[0] and 'thresholds: ' not in said[1]
    assert 'rank 1 is done' in said[1]
