"""Every test starts from the same seeds, on one CPU thread, and draws no window. `tests/helpers/arrangements.py`
runs what trains with other seeds and threads:
FASTAI_CONDMTL_SEED and FASTAI_CONDMTL_THREADS say which."""

import os, random, sys
from pathlib import Path

os.environ.setdefault('MPLBACKEND', 'Agg')  # sub-processes too
import numpy as np, pytest, torch
from hypothesis import settings
import fastai_condmtl.all  # noqa: F401  methods of flows and of learners, whichever file is run

ROOT = Path(__file__).resolve().parents[1]
SEED = int(os.environ.get('FASTAI_CONDMTL_SEED', 42))
torch.set_num_threads(int(os.environ.get('FASTAI_CONDMTL_THREADS', 1)))  # one, since tests run side by side


def shift_torch_seeds(by):
    """Networks start elsewhere, also those of tests and fixtures that set a seed of their own; data that NumPy
    draws stay"""
    plain = torch.random.manual_seed

    def manual_seed(seed):
        return plain(int(seed) + by)

    torch.manual_seed = torch.random.manual_seed = manual_seed


if SEED != 42:
    shift_torch_seeds(SEED - 42)
settings.register_profile('ci', derandomize=True, deadline=None, max_examples=50, database=None, print_blob=True)
settings.load_profile('ci')


LONGEST = ('test_site.py', 'test_habits.py')  # these begin first, so that no worker waits for another at the end


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker('gpu'):
            item.add_marker(pytest.mark.skip(reason='needs CUDA'))


@pytest.fixture(autouse=True)
def _same_start():
    "Seeds before, figures closed after."
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(42)  # `shift_torch_seeds` makes it SEED
    yield
    if 'matplotlib.pyplot' in sys.modules:
        sys.modules['matplotlib.pyplot'].close('all')


@pytest.fixture(scope='session')
def root():
    return ROOT


@pytest.fixture(scope='session')
def shared_data():
    "The folder of data sets that do not come with the repository."
    path = Path(os.environ.get('FASTAI_CONDMTL_DATA') or ROOT.parent / 'shared' / 'data')
    if not path.is_dir():
        pytest.skip(f'no data sets at {path}: set FASTAI_CONDMTL_DATA to the folder that holds them')
    return path
