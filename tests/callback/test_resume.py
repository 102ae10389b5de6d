"A training that is killed goes on and ends with the weights of one that was not; what was half written never counts."

import os, random, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.tracker import SaveModelCallback
from fastai.data.all import DataBlock, RandomSplitter, TransformBlock
from fastai.learner import Learner, load_learner
from fastai.torch_core import set_seed
import fastai.callback.schedule  # noqa: F401
from torch import nn
from fastai_condmtl.tasks.binary import BinaryBlock
from fastai_condmtl.tasks.single_label import SingleLabelBlock
from fastai_condmtl.tasks.regression import UnboundedRegressionBlock
from fastai_condmtl.callback.balance import TaskBalance
from fastai_condmtl.callback.resume import Checkpoint
from fastai_condmtl.callback.schedule import TaskLR, WeightSchedule
from fastai_condmtl.callback.thresholds import ThresholdSearch
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.core.files import atomic_write, write_csv, write_text
from fastai_condmtl.core.flow import Flow
import fastai_condmtl.data.target_block  # noqa: F401


class Row:
    "The inputs, with noise that each reading draws anew"

    def __call__(self, r):
        return (
            torch.tensor(r[list('pqrs')].to_numpy(dtype=np.float32))
            + 0.05 * torch.randn(4)
            + random.gauss(0, 0.05)
            + np.random.normal(0, 0.05)
        )


def table(n=96):
    rng = np.random.default_rng(0)
    df = pd.DataFrame(rng.normal(size=(n, 4)), columns=list('pqrs'))
    df['a'] = df.p > 0
    df['b'], df['c'] = np.where(df.p > 0, df.q + df.r, np.nan), np.where(df.q > 0, 'x', 'y')
    return df


def flow():
    a = BinaryBlock('a')
    return Flow('f', a, UnboundedRegressionBlock('b') | a, SingleLabelBlock('c'))


def make(seed=7, split_seed=1, bs=8, flow=flow, balance='uncertainty'):
    set_seed(seed)
    dls = DataBlock(blocks=(TransformBlock, flow()), get_x=Row(), splitter=RandomSplitter(seed=split_seed)).dataloaders(
        table(), bs=bs, num_workers=0, device='cpu'
    )
    net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, dls.c))
    cbs = [ThresholdSearch(verbose=False)] + ([TaskBalance(balance)] if balance else [])
    return Learner(dls, net, cbs=cbs, splitter=lambda m: [list(m[:2].parameters()), list(m[2:].parameters())])


def fine_tune(learn, *cbs, epochs=2):
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(epochs, base_lr=1e-2, cbs=list(cbs))
    return {k: v.clone() for k, v in learn.model.state_dict().items()}


def same(a, b):
    assert a.keys() == b.keys()
    for k in a:
        assert torch.equal(a[k], b[k]), k


class Fuse:
    "A counter that no checkpoint brings back"

    def __init__(self, n):
        self.n = n


class Crash(Callback):
    def __init__(self, n, event='after_step'):
        self.fuse, self.event = Fuse(n), event

    def _count(self, event):
        if event != self.event or not self.learn.training and event == 'after_step':
            return
        self.fuse.n -= 1
        if not self.fuse.n:
            raise KeyboardInterrupt

    def after_step(self):
        self._count('after_step')

    def before_validate(self):
        self._count('before_validate')

    def after_epoch(self):
        self._count('after_epoch')


def until_done(path, make=make, every=3, seed=0, **kwargs):
    "Crash after a random number of steps, again and again"
    rng, n, least = random.Random(seed), 0, every + 1 if isinstance(every, int) else 11  # some of it must be kept
    while True:
        learn = make()
        at = rng.randint(least, least + 8)
        try:
            return learn, fine_tune(learn, Crash(at), Checkpoint(path, every=every, verbose=False), **kwargs), n
        except KeyboardInterrupt:
            n += 1
        assert n < 40


@pytest.mark.trains
@pytest.mark.parametrize('every', [1, 3, 7, 'epoch'])
def test_interrupted_at_random_ends_with_equal_weights(tmp_path, every):
    whole, broken = make(), None
    weights = fine_tune(whole)
    broken, got, n = until_done(tmp_path / 'last.pth', every=every)
    assert n >= 2
    same(got, weights)
    assert {p: t.tolist() for p, t in broken.loss_func.thresholds.items()} == {
        p: t.tolist() for p, t in whole.loss_func.thresholds.items()
    }
    assert broken.recorder.values == whole.recorder.values and broken.recorder.lrs == whole.recorder.lrs
    for s, t in zip(broken.opt.state_dict()['state'], whole.opt.state_dict()['state']):
        for k in t:
            assert torch.equal(torch.as_tensor(s[k]), torch.as_tensor(t[k])), k
    scores = []
    for learn in (broken, whole):
        set_seed(0)
        scores.append(list(learn.evaluate().metric_res))  # what is read is noisy
    assert scores[0] == scores[1]


@pytest.mark.trains
@pytest.mark.parametrize('balance', ['dwa', 'famo', 'gradvac', 'upgrad'])
def test_balancers_go_on(tmp_path, balance):
    if balance in ('gradvac', 'upgrad'):
        pytest.importorskip('torchjd')
    new = lambda: make(balance=balance)
    whole = new()
    weights = fine_tune(whole)
    broken, got, n = until_done(tmp_path / 'last.pth', new, every=2)
    assert n >= 2
    same(got, weights)
    np.testing.assert_array_equal(broken.task_balance.weights.to_numpy(), whole.task_balance.weights.to_numpy())


def test_schedules_of_rates_and_weights_go_on(tmp_path):
    from fastai.callback.schedule import SchedCos

    def new():
        learn = make(balance=None)
        learn.add_cbs([TaskLR({'b': 0.3}), WeightSchedule('c', SchedCos(0, 1))])
        return learn

    weights = fine_tune(new())
    same(until_done(tmp_path / 'last.pth', new, every=2)[1], weights)


def test_trackers_keep_the_best(tmp_path):
    def new(path):
        learn = make()
        learn.path = path
        learn.add_cb(SaveModelCallback(monitor='valid_loss', fname='best'))
        return learn

    whole = new(tmp_path / '1')
    weights = fine_tune(whole, epochs=4)
    broken, got, n = until_done(tmp_path / 'last.pth', lambda: new(tmp_path / '2'), every=3, epochs=4)
    same(got, weights)
    assert broken.save_model.best == whole.save_model.best


@pytest.mark.parametrize(
    'folder, file, said',
    [
        ('', 'models/last.pth', 'models/last.pth'),
        ('other', 'last.pth', '{tmp}/last.pth'),
        (None, 'last.pth', 'last.pth'),  # the folder where one stands, and a file as it is called from there
    ],
)
def test_a_file_in_the_folder_of_the_learner_is_called_as_it_is_there(
    tmp_path, capsys, monkeypatch, folder, file, said
):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        learn = make()
        learn.path = Path('.') if folder is None else tmp_path / folder
        fine_tune(learn, Checkpoint(file if folder is None else tmp_path / file))
    printed = capsys.readouterr().out
    assert [line.split(': ')[0] for line in printed.splitlines()] == [said.format(tmp=tmp_path)] * (
        printed.count('going on') + printed.count('was finished')
    )
    assert 'this training was finished' in printed


@pytest.mark.parametrize('event', ['before_validate', 'after_epoch'])
def test_interrupted_between_training_and_checkpoint(tmp_path, event):
    weights = fine_tune(make())
    for n in (1, 2, 3):
        path = tmp_path / f'{event}{n}.pth'
        with pytest.raises(KeyboardInterrupt):
            fine_tune(make(), Crash(n, event), Checkpoint(path, every=4, verbose=False))
        same(fine_tune(make(), Checkpoint(path, every=4, verbose=False)), weights)


def test_finished_training_is_not_repeated(tmp_path, capsys):
    weights = fine_tune(make(), Checkpoint(tmp_path / 'a.pth'))
    stamp = (tmp_path / 'a.pth').stat().st_mtime_ns
    learn = make(seed=99)
    learn.add_cb(Crash(1))
    same(fine_tune(learn, Checkpoint(tmp_path / 'a.pth')), weights)
    assert 'this training was finished' in capsys.readouterr().out and (tmp_path / 'a.pth').stat().st_mtime_ns == stamp
    learn.remove_cb(Crash)
    with learn.no_bar(), learn.no_logging():  # more fits with one callback are counted on
        cb = Checkpoint(tmp_path / 'a.pth', verbose=False)
        learn.fine_tune(2, 1e-2, cbs=cb)
        learn.fit(1, 1e-3, cbs=cb)
    last = {k: v.clone() for k, v in learn.model.state_dict().items()}
    again, cb = make(), Checkpoint(tmp_path / 'a.pth', verbose=False)
    fine_tune(again, cb)
    with again.no_bar(), again.no_logging():
        again.fit(1, 1e-3, cbs=cb)
    same(again.model.state_dict(), last)


def test_lr_find_is_no_fit(tmp_path):
    learn = make()
    learn.add_cb(Checkpoint(tmp_path / 'a.pth'))
    with learn.no_bar(), learn.no_logging():
        learn.lr_find(num_it=8, show_plot=False)
        assert not (tmp_path / 'a.pth').exists()
        learn.get_preds()
        learn.validate()
        assert not (tmp_path / 'a.pth').exists()
        learn.fit(1)
        stamp = (tmp_path / 'a.pth').stat().st_mtime_ns
        learn.get_preds()
        learn.validate()
        assert (tmp_path / 'a.pth').stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    'change, says',
    [
        (dict(split_seed=2), "training rows was '77, labels .*a split wants a seed"),
        (dict(bs=16), 'batches of training rows'),
        (
            dict(flow=lambda: Flow('f', BinaryBlock('a'), UnboundedRegressionBlock('b'), SingleLabelBlock('c'))),
            "task 'b' was 'UnboundedRegressionBlock . a' and is 'UnboundedRegressionBlock'",
        ),
    ],
)
def test_another_training_is_an_error(tmp_path, change, says):
    fine_tune(make(), Checkpoint(tmp_path / 'a.pth'))
    with pytest.raises(FlowError, match=says) as e:
        fine_tune(make(**change), Checkpoint(tmp_path / 'a.pth'))
    assert 'resume=False' in str(e.value)
    fine_tune(make(**change), Checkpoint(tmp_path / 'a.pth', resume=False))


def test_another_network_is_an_error(tmp_path):
    fine_tune(make(), Checkpoint(tmp_path / 'a.pth'))
    learn = make(balance=None)
    learn.model[4] = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, learn.dls.c))
    with pytest.raises(FlowError, match='belongs to another network'):
        fine_tune(learn, Checkpoint(tmp_path / 'a.pth'))


def test_checkpoints_run_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f'touch {tmp_path}/owned',)

    torch.save(dict(version=1, evil=Evil()), tmp_path / 'a.pth')
    with pytest.raises(FlowError, match='no checkpoint that can be read'):
        fine_tune(make(), Checkpoint(tmp_path / 'a.pth'))
    assert not (tmp_path / 'owned').exists()


HERE = Path(__file__).resolve().parent
SCRIPT = '''
import sys; sys.path[:0] = {tests!r}
import torch; torch.set_num_threads(1)
from test_resume import *
class Slow(Callback):
    def after_step(self): time.sleep(.1) # however quick the machine, the first two moments fall into the training
print('ready', flush=True)
weights = fine_tune(make(), Slow(), Checkpoint({path!r}, every=2, verbose=False), epochs=3)
torch.save(weights, {out!r})
'''


def test_killed_again_and_again(tmp_path):
    "SIGKILL at random moments, which may fall into the writing of the checkpoint"
    path, out, rng, kills = tmp_path / 'last.pth', tmp_path / 'out.pth', random.Random(1), 0
    code = SCRIPT.format(tests=[str(HERE), str(HERE.parent / 'helpers')], path=str(path), out=str(out))
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
    for i in range(12):
        p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, env=env, cwd=tmp_path)
        p.stdout.readline()  # imports are done
        try:
            p.wait(rng.uniform(0.3, 1.5) if kills < 6 else 60)
        except subprocess.TimeoutExpired:
            p.send_signal(signal.SIGKILL)
            p.wait()
            kills += 1
        p.stdout.close()
        if path.exists():
            torch.load(path, weights_only=False)  # always whole
        if out.exists():
            break
    assert out.exists() and kills >= 2
    same(torch.load(out), fine_tune(make(), epochs=3))
    assert [f.name for f in tmp_path.iterdir() if f.suffix == '.tmp'] == []


def test_export_and_save_never_replace_a_good_file(tmp_path):
    learn = make()
    fine_tune(learn)
    learn.path = tmp_path
    learn.export('a.pkl')
    learn.save('a')
    good, good2 = (tmp_path / 'a.pkl').read_bytes(), (tmp_path / 'models' / 'a.pth').read_bytes()

    class Stubborn(Callback):
        def __reduce__(self):
            raise RuntimeError('does not want to be pickled')

    learn.add_cb(Stubborn())
    with pytest.raises(RuntimeError, match='does not want'):
        learn.export('a.pkl')
    assert (tmp_path / 'a.pkl').read_bytes() == good and [f.name for f in tmp_path.iterdir()] == ['a.pkl', 'models']
    assert len(learn.dls.train_ds) == 77 and learn.opt is not None
    learn.remove_cb(Stubborn)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)  # it lives on
    with pytest.raises(Exception):
        learn.save('a', pickle_module=None, no_such=1)
    assert (tmp_path / 'models' / 'a.pth').read_bytes() == good2
    learn.export('a.pkl')
    learn.save('a')
    assert (tmp_path / 'a.pkl').read_bytes() != good
    with pytest.warns(UserWarning):
        loaded = load_learner(tmp_path / 'a.pkl')
    same(loaded.model.state_dict(), learn.model.state_dict())
    learn.load('a')


def test_killed_while_writing(tmp_path):
    write_text(tmp_path / 'a', 'good')
    code = (
        f"from fastai_condmtl.core.files import atomic_write\nwith atomic_write({str(tmp_path / 'a')!r}) as f:\n  h "
        "= open(f, 'w')\n  print('ready', flush=True)\n  while True: h.write('bad'*10000); h.flush()"
    )
    for _ in range(2):
        p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE)
        p.stdout.readline()
        time.sleep(0.02)
        p.send_signal(signal.SIGKILL)
        p.wait()
        p.stdout.close()
        assert (tmp_path / 'a').read_text() == 'good'
        assert len(list(tmp_path.iterdir())) == 2  # what the one before left is gone
    write_text(tmp_path / 'a', 'new')
    assert [f.name for f in tmp_path.iterdir()] == ['a']


def test_atomic_write_keeps_links_and_modes(tmp_path):
    (tmp_path / 'real').write_text('1')
    (tmp_path / 'real').chmod(0o640)
    (tmp_path / 'link').symlink_to(tmp_path / 'real')
    write_csv(pd.DataFrame({'a': [1]}), tmp_path / 'link', index=False)
    assert (
        (tmp_path / 'link').is_symlink()
        and (tmp_path / 'real').read_text() == 'a\n1\n'
        and (tmp_path / 'real').stat().st_mode & 0o777 == 0o640
    )
    with pytest.raises(ZeroDivisionError):
        with atomic_write(tmp_path / 'none') as f:
            f.write_text('x')
            1 / 0
    assert not (tmp_path / 'none').exists()


def test_killed_between_the_last_epoch_of_a_fit_and_its_end(tmp_path, monkeypatch):
    """Then thresholds are searched on predictions made anew, and the random numbers of the fit that follows are
    what they would have been"""

    class Killed(BaseException):
        pass

    write = Checkpoint.write

    def killed(self, epoch, batch, done=False):
        write(self, epoch, batch, done)
        if self.fits == 0 and epoch == self.n_epoch and not done:
            raise Killed

    want, path = fine_tune(make()), tmp_path / 'last.pth'
    monkeypatch.setattr(Checkpoint, 'write', killed)
    with pytest.raises(BaseException):
        fine_tune(make(), Checkpoint(path, verbose=False))
    monkeypatch.setattr(Checkpoint, 'write', write)
    assert path.exists()
    same(fine_tune(make(), Checkpoint(path, verbose=False)), want)
