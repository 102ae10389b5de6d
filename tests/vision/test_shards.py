"""Pictures in tar shards: the samples are those that webdataset reads, each row comes once an epoch on any number of
workers and processes, with its own label, in an order that follows from the seed. Each picture carries its row's number
in its pixels"""

import pickle
import numpy as np, pandas as pd, pytest, torch
from PIL import Image
from fastai.vision.all import Learner, Resize, load_learner
from torch import nn
from fastai_condmtl.vision.all import (
    BinaryBlock,
    BoundedRegressionBlock,
    ConditionalDataLoaders,
    Flow,
    FlowError,
    PackedLabels,
)
from fastai_condmtl.data import shards as shards_module
from fastai_condmtl.data.shards import Order, Shards

wds = pytest.importorskip('webdataset')
pytest.importorskip('pyarrow')
pytestmark = pytest.mark.filterwarnings('ignore::fastai_condmtl.core.errors.FlowWarning')
N = 203


def picture(i):
    "A picture whose first pixel says `i`"
    return np.full((4, 4, 3), (i % 256, i // 256, 7), dtype=np.uint8)


def number(x):
    "The numbers that pictures `(n, 3, h, w)` carry"
    x = (x[:, :, 0, 0] * 255).round().long()
    return (x[:, 0] + 256 * x[:, 1]).tolist()


def table():
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(dark=rng.integers(0, 2, N), row=np.arange(N), is_valid=rng.random(N) < 0.2)).astype(object)
    df.loc[rng.random(N) < 0.2, 'dark'] = None
    return df


def flow():
    return Flow('f', dark := BinaryBlock('dark'), BoundedRegressionBlock('row', y_range=(0, N)) | dark)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Shards as webdataset writes them, and packed labels from their json"
    folder = tmp_path_factory.mktemp('shards')
    with wds.ShardWriter(f'{folder}/%04d.tar', maxcount=37, verbose=0) as writer:
        for i, row in table().iterrows():
            writer.write({'__key__': f'{i:06d}', 'png': picture(i), 'json': row.to_dict()})
    flow().encode_shards(folder / '*.tar', folder / 'labels.packed', valid_col='is_valid')
    return folder


def loaders(folder, **kwargs):
    packed = PackedLabels(folder / 'labels.packed')
    kwargs = dict(bs=8, num_workers=0) | kwargs
    return ConditionalDataLoaders.from_shards(folder / '*.tar', packed, path=folder, **kwargs)


def epoch(dl):
    "Rows of a pass in order, each held to its own label"
    y_true = flow().bind(table()).encode(table()).as_subclass(torch.Tensor)
    rows = []
    for x, y in dl:
        rows += (here := number(x.as_subclass(torch.Tensor)))
        assert torch.equal(y.cpu().as_subclass(torch.Tensor), y_true[here])
    return rows


TRAIN, VALID = (np.flatnonzero(table().is_valid == side).tolist() for side in (False, True))


def test_samples_are_those_of_webdataset(folder):
    shards = Shards(folder / '*.tar', folder / 'labels.packed.shards')
    theirs = list(wds.WebDataset(shards.files, shardshuffle=False))
    assert len(shards) == len(theirs) == N and len(shards.files) == 6
    for i, sample in enumerate(theirs):
        assert shards.picture(i) == sample['png'] and shards.label(i) == sample['json']


def test_labels_are_those_of_memory(folder):
    packed = PackedLabels(folder / 'labels.packed')
    y = flow().bind(table(), TRAIN).encode(table())
    assert torch.equal(packed[:].as_subclass(torch.Tensor), y.as_subclass(torch.Tensor))
    assert list(packed.positions('train')) == TRAIN and list(packed.positions('valid')) == VALID


@pytest.mark.parametrize('num_workers', [0, 2])
def test_each_row_once(folder, num_workers):
    dls = loaders(folder, num_workers=num_workers, drop_last=False)
    assert epoch(dls.valid) == VALID
    first, second = epoch(dls.train), epoch(dls.train)
    assert sorted(first) == sorted(second) == TRAIN and first != second and first != TRAIN
    again = loaders(folder, num_workers=2 - num_workers, drop_last=False)
    again.one_batch()  # a look does not move the order
    assert [epoch(again.train), epoch(again.train)] == [first, second]
    again.train.go_to(1)
    assert epoch(again.train) == second
    assert epoch(loaders(folder, seed=1, drop_last=False).train) != first


@pytest.mark.parametrize('shuffle', [False, True])
def test_two_ranks_see_each_row_once(folder, monkeypatch, shuffle):
    distributed = pytest.importorskip('fastai_condmtl.callback.distributed')
    monkeypatch.setattr(distributed.DistributedDL, '_broadcast', None)  # nothing is sent from rank to rank
    seen = []
    for rank in range(2):
        dl = distributed.DistributedDL(loaders(folder, drop_last=False).train.new(shuffle=shuffle), rank, 2)
        seen.append(epoch(dl))
    assert len(seen[0]) == len(seen[1]) == -(-len(TRAIN) // 2)
    both = seen[0] + seen[1]
    assert sorted(both[: len(TRAIN)]) == TRAIN  # one row more where they do not divide evenly
    if shuffle:
        assert both[: len(TRAIN)] == epoch(loaders(folder, drop_last=False).train)


def test_no_list_of_positions_travels(folder):
    dls = loaders(folder)
    assert isinstance(dls.train.get_idxs(), Order)
    parts = [dls.train_ds, dls.valid_ds, Order(10**9, 3)]
    sizes = [len(pickle.dumps(part)) for part in parts]
    assert isinstance(dls.train_ds.tls[1].items.idx, np.memmap)
    assert max(sizes) < 20_000
    assert pickle.loads(pickle.dumps(dls.valid_ds))[3][1].tolist() == dls.valid_ds[3][1].tolist()


@pytest.mark.parametrize('n', [1, 5, 16, 17, 100, 101])
def test_order_by_hand(monkeypatch, n):
    "Small blocks, so that there are several: a permutation, of which a part is a slice"
    monkeypatch.setattr(shards_module, 'BLOCK', 5)
    monkeypatch.setattr(shards_module, 'MIXED', 3)
    for seed in (None, 0, 7):
        whole = list(Order(n, seed))
        assert sorted(whole) == list(range(n))
        for start in range(0, n, 3):
            assert list(Order(n, seed).part(start, n)) == whole[start:]
            assert list(Order(n, seed).part(start, start + 2 * n)) == (whole * 3)[start : start + 2 * n]
    blocks = [set(np.array(list(Order(100, 0))[i : i + 15]) // 5) for i in range(0, 100, 15)]
    assert all(len(block) <= 3 for block in blocks)


def test_it_trains_and_goes_on_without_shards(folder):
    dls = loaders(folder, item_tfms=Resize(8))
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, dls.c))
    learn = Learner(dls, net, loss_func=dls.loss_func)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    preds, y = learn.get_preds(dl=dls.valid)
    assert len(preds) == len(VALID)
    learn.export('learner.pkl')
    again = load_learner(folder / 'learner.pkl')
    Image.fromarray(picture(5)).save(folder / 'one.png')
    dl = again.dls.test_dl([folder / 'one.png'])
    assert len(again.get_preds(dl=dl)[0]) == 1


def test_errors(folder, tmp_path):
    packed = PackedLabels(folder / 'labels.packed')
    with pytest.raises(FlowError, match="203 rows of .* 37 samples in shards differ: row 37, '000037', has no sample"):
        ConditionalDataLoaders.from_shards(folder / '0000.tar', packed)
    with pytest.raises(FlowError, match='takes packed labels and got a DataFrame'):
        ConditionalDataLoaders.from_shards(folder / '*.tar', table())
    with pytest.raises(FlowError, match='nothing.tar'):
        Shards(tmp_path / 'nothing.tar', tmp_path / 'i')
    (tmp_path / 'no.tar').write_bytes(b'no tar' * 200)
    with pytest.raises(FlowError, match="no.tar' is no tar file"):
        Shards(tmp_path / 'no.tar', tmp_path / 'i')
    with wds.TarWriter(str(tmp_path / 'bare.tar')) as writer:
        writer.write({'__key__': 'one', 'json': dict(dark=1)})
    with pytest.raises(FlowError, match="sample 'one' has no picture"):
        Shards(tmp_path / 'bare.tar', tmp_path / 'i')
    with pytest.raises(FlowError, match="'size', and no json"):
        Flow('f', BinaryBlock('size')).encode_shards(folder / '*.tar', tmp_path / 'p')


def test_shards_that_changed_are_indexed_again(tmp_path):
    def write(n):
        with wds.TarWriter(str(tmp_path / 'a.tar')) as writer:
            for i in range(n):
                writer.write({'__key__': str(i), 'png': picture(i)})

    write(3)
    assert len(Shards(tmp_path / 'a.tar', tmp_path / 'i')) == 3
    write(5)
    assert len(Shards(tmp_path / 'a.tar', tmp_path / 'i')) == 5


@pytest.mark.parametrize('content', [b'', b'written by another version' * 9])
def test_an_index_that_is_none_says_what_to_do(folder, tmp_path, content):
    (tmp_path / 'i').write_bytes(content)
    with pytest.raises(FlowError) as e:
        Shards(folder / '*.tar', tmp_path / 'i')
    assert str(e.value) == (
        f"'{tmp_path / 'i'}' is no file that Shards(files, index) has written, or lacks a part: delete it, and it is "
        "made anew"
    )
    (tmp_path / 'i').unlink()
    assert len(Shards(folder / '*.tar', tmp_path / 'i')) == N


def test_rows_whose_groups_are_in_no_table_are_told(folder):
    "Shards keep which side a group stands on, not which rows belong together: intervals say that they do not know"
    from fastai_condmtl.vision.all import FlowWarning, equip

    packed = flow().encode_shards(folder / '*.tar', folder / 'of_groups.packed', valid_pct=0.3, group_col='row')
    dls = ConditionalDataLoaders.from_shards(folder / '*.tar', packed, path=folder, bs=8, num_workers=0)
    learn = equip(Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(48, dls.c))), tune=None)
    with pytest.warns(FlowWarning, match="no column 'row', which says of the training data which rows belong together"):
        learn.evaluate(metrics='accuracy', n_boot=40)
