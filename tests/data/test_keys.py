"Keys of packed labels and of samples in shards: what is missing, doubled or elsewhere is named before a training"

import random
import numpy as np, pandas as pd, pytest
from fastai_condmtl.vision.all import BinaryBlock, ConditionalDataLoaders, Flow, FlowError, PackedLabels
from fastai_condmtl.data import keys as keys_module
from fastai_condmtl.data.keys import Keys, KeyWriter, check_once, check_same_keys

pytest.importorskip('pyarrow')
pytestmark = pytest.mark.filterwarnings('ignore::fastai_condmtl.core.errors.FlowWarning')
N = 40


def written(path, texts, cuts=()):
    writer, ends = KeyWriter(path.parent), [0, *sorted(cuts), len(texts)]
    with open(path, 'wb') as file:
        file.write(b'123')
        for start, stop in zip(ends, ends[1:]):
            writer.add(texts[start:stop])
        facts = writer.write(file)
    return Keys(path, facts)


@pytest.mark.parametrize('seed', range(8))
def test_against_lists(tmp_path, monkeypatch, seed):
    "Small pieces and parts, so that there are several"
    monkeypatch.setattr(keys_module, 'SOME', 7)
    monkeypatch.setattr(keys_module, 'PART', 11)
    rng = random.Random(seed)
    texts = [''.join(rng.choices('ab图 /', k=rng.randint(0, 4))) for _ in range(rng.choice([0, 1, 30, 100]))]
    distinct = list(dict.fromkeys(texts))
    keys = written(tmp_path / 'k', texts, [rng.randint(0, len(texts)) for _ in range(3)])
    assert [keys[i] for i in range(len(keys))] == keys.some(0, 10**6) == texts
    assert all(keys.find(text) == texts.index(text) for text in distinct) and keys.find('none') is None
    if len(distinct) < len(texts):
        with pytest.raises(FlowError, match='have one key') as told:
            check_once(keys, 'row')
        assert any(repr(text) in str(told.value) for text in texts if texts.count(text) > 1)
    once = written(tmp_path / 'once', distinct)
    check_once(once, 'row')
    check_same_keys(once, written(tmp_path / 'again', distinct, [len(distinct) // 2]), 'p')
    if len(distinct) > 2:
        out = rng.randrange(len(distinct))
        fewer = written(tmp_path / 'fewer', distinct[:out] + distinct[out + 1 :])
        with pytest.raises(FlowError, match=f'row {out}, .* has no sample') as told:
            check_same_keys(once, fewer, 'p')
        assert repr(distinct[out]) in str(told.value)
        with pytest.raises(FlowError, match=f'sample {out}, .* has no row'):
            check_same_keys(fewer, once, 'p')


def test_a_damaged_key_is_told(tmp_path):
    keys = written(tmp_path / 'k', ['a', 'b', 'c'])
    content = (tmp_path / 'k').read_bytes()
    (tmp_path / 'k').write_bytes(content.replace(b'a\nb', b'\xff\nb'))
    with pytest.raises(FlowError, match='keys 0 to 3 are damaged.*copy'):
        keys.some(0, 3)


def table():
    rng = np.random.default_rng(0)
    return pd.DataFrame(dict(key=[f'day{i % 2}/{i:03}' for i in range(N)], dark=rng.integers(0, 2, N)))


def flow():
    return Flow('f', BinaryBlock('dark'))


def write_shards(folder, keys):
    wds = pytest.importorskip('webdataset')
    with wds.ShardWriter(f'{folder}/%04d.tar', maxcount=13, verbose=0) as writer:
        for key in keys:
            writer.write({'__key__': key, 'png': np.zeros((4, 4, 3), np.uint8), 'json': dict(dark=1)})
    return folder / '*.tar'


def packed_of(df, folder):
    for i, part in enumerate((df[:17], df[17:])):
        part.to_parquet(folder / f'{i}.parquet')
    return flow().encode_parquet(folder / '*.parquet', folder / 'labels.packed', key_col='key')


def test_rows_are_samples(tmp_path):
    df = table()
    packed = packed_of(df, tmp_path)
    files = write_shards(tmp_path, df.key)
    dls = ConditionalDataLoaders.from_shards(files, packed, bs=8, num_workers=0)
    assert len(dls.train_ds) == N
    assert PackedLabels(packed.path).keys.some(0, N) == df.key.tolist()
    assert packed[:].shape == (N, 2, 1) and packed.cells.itemsize == 5


@pytest.mark.parametrize(
    'change, told',
    [
        (lambda keys: keys[:5] + keys[6:], "row 5, 'day1/005', has no sample"),
        (lambda keys: keys[:5] + ['new'] + keys[5:], "sample 5, 'new', has no row"),
        (lambda keys: keys[:5] + ['new'] + keys[6:], "sample 5, 'new', has no row"),
        (lambda keys: keys[:-1], "row 39, 'day1/039', has no sample"),
        (lambda keys: [*keys, 'last'], "sample 40, 'last', has no row"),
        (lambda keys: keys[:20] + ['day1/003'] + keys[21:], "sample 20 has the key 'day1/003', and so has sample 3"),
        (lambda keys: keys[::-1], "row 0 is 'day0/000' and sample 0 is 'day1/039'"),
    ],
)
def test_what_differs_is_named(tmp_path, change, told):
    df = table()
    packed = packed_of(df, tmp_path)
    files = write_shards(tmp_path, change(df.key.tolist()))
    with pytest.raises(FlowError, match=told):
        ConditionalDataLoaders.from_shards(files, packed, bs=8, num_workers=0)


def test_keys_of_a_table(tmp_path):
    df = table()
    with pytest.raises(FlowError, match="row 3 and row 30 have one key, 'day1/003'"):
        packed_of(df.assign(key=[*df.key[:30], df.key[3], *df.key[31:]]), tmp_path)
    assert not (tmp_path / 'labels.packed').exists()
    with pytest.raises(FlowError, match="key_col='key', row 20, value (nan|None)"):
        packed_of(df.assign(key=[*df.key[:20], None, *df.key[21:]]), tmp_path)
    with pytest.raises(FlowError, match="key_col='key', row 0.*value 0.0"):
        packed_of(df.assign(key=np.arange(N) / 2), tmp_path)
    assert packed_of(df.assign(key=range(N)), tmp_path).keys[7] == '7'
    df.drop(columns='key').to_parquet(tmp_path / '0.parquet')
    with pytest.raises(FlowError, match="0.parquet.*'key'"):
        flow().encode_parquet(tmp_path / '*.parquet', tmp_path / 'q', key_col='key')


def test_shards_that_were_written_anew_in_another_order(tmp_path):
    "As many samples as before, of which each would get the label of another one"
    keys = table().key.tolist()
    files = write_shards(tmp_path, keys)
    packed = flow().encode_shards(files, tmp_path / 'labels.packed')
    ConditionalDataLoaders.from_shards(files, packed, bs=8, num_workers=0)
    write_shards(tmp_path, keys[1:] + keys[:1])
    with pytest.raises(FlowError, match="row 0 is 'day0/000' and sample 0 is 'day1/001'"):
        ConditionalDataLoaders.from_shards(files, packed, bs=8, num_workers=0)


def test_shards_that_count_their_samples_from_0(tmp_path):
    "Labels beside pictures need no keys that differ"
    wds = pytest.importorskip('webdataset')
    for shard in range(2):
        with wds.TarWriter(str(tmp_path / f'{shard}.tar')) as writer:
            for i in range(5):
                writer.write({'__key__': f'{i}', 'png': np.zeros((4, 4, 3), np.uint8), 'json': dict(dark=i % 2)})
    packed = flow().encode_shards(tmp_path / '*.tar', tmp_path / 'labels.packed')
    assert len(ConditionalDataLoaders.from_shards(tmp_path / '*.tar', packed, bs=4, num_workers=0).train_ds) == 10


def test_without_keys_their_number_is_compared(tmp_path):
    df = table()
    df.to_parquet(tmp_path / '0.parquet')
    packed = flow().encode_parquet(tmp_path / '0.parquet', tmp_path / 'labels.packed')
    assert packed.keys is None
    files = write_shards(tmp_path, df.key[:-1])
    with pytest.raises(FlowError, match='39 samples in 3 shards, and 40 rows'):
        ConditionalDataLoaders.from_shards(files, packed, bs=8, num_workers=0)
