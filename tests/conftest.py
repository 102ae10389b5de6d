"Every test starts from the same seeds, on one CPU thread, and draws no window."
import os, random, sys
from pathlib import Path

os.environ.setdefault('MPLBACKEND', 'Agg')  # sub-processes too
import numpy as np, pytest, torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
torch.set_num_threads(1)  # tests run side by side
settings.register_profile('ci', derandomize=True, deadline=None, max_examples=50, database=None, print_blob=True)
settings.load_profile('ci')

def pytest_collection_modifyitems(items):
    if torch.cuda.is_available(): return
    for item in items:
        if item.get_closest_marker('gpu'): item.add_marker(pytest.mark.skip(reason='needs CUDA'))

@pytest.fixture(autouse=True)
def _same_start():
    "Seeds before, figures closed after."
    random.seed(42)
    np.random.seed(42)
    torch.manual_seed(42)
    yield
    if 'matplotlib.pyplot' in sys.modules: sys.modules['matplotlib.pyplot'].close('all')

@pytest.fixture(scope='session')
def root(): return ROOT

@pytest.fixture(scope='session')
def shared_data():
    "The folder of data sets that do not come with the repository."
    path = Path(os.environ.get('FASTAI_CONDMTL_DATA') or ROOT.parent/'shared'/'data')
    if not path.is_dir(): pytest.skip(f'no data sets at {path}: set FASTAI_CONDMTL_DATA to the folder that holds them')
    return path
