"What a cache keeps of a picture, by brute force: the size of the small one, its mark, and the entry's sums"

import hashlib
import numpy as np
from PIL import Image
from fastai.vision.core import PILImage
from fastai_condmtl.data.cache_format import ENTRY, check_sums, file_size, key_of, marked, shrunk_size


def test_sides_are_the_nearest_that_keep_the_middle():
    for width in range(1, 60, 3):
        for height in range(1, 60, 4):
            for px in (1, 6, 11, 30):
                short, size = min(width, height), shrunk_size((width, height), px)
                if short <= px:
                    assert size == (width, height)
                    continue
                assert min(size) == px and all((side - px) % 2 == 0 for side in size)
                assert all(abs(side - old * px / short) <= 1 for side, old in zip(size, (width, height)))


def test_each_bit_of_an_entry_shows():
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, ENTRY.itemsize, dtype=np.uint8)
    whole = check_sums(raw.view(ENTRY))[0]
    n_bits = 8 * (ENTRY.itemsize - ENTRY['check'].itemsize)
    changed = np.repeat(raw[None], n_bits, 0)
    changed[np.arange(n_bits), np.arange(n_bits) // 8] ^= (1 << np.arange(n_bits) % 8).astype(np.uint8)
    assert (check_sums(changed.view(ENTRY)[:, 0]) != whole).all()


def test_a_key_is_the_hash_of_the_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = key_of('a/ü.png')
    digest = hashlib.blake2b(f'{tmp_path}/a/ü.png'.encode(), digest_size=16).digest()
    assert first.to_bytes(8, 'little') + second.to_bytes(8, 'little') == digest
    assert len({key_of(f'{folder}/{i}.png') for folder in 'ab' for i in range(500)}) == 1000


def test_a_mark_counts_for_the_size_that_it_was_made_for():
    picture = marked(PILImage(Image.new('RGB', (20, 10))), (40, 20))
    assert file_size(picture) == file_size(picture.copy()) == (40, 20)
    for other in (picture.crop((0, 0, 10, 10)), picture.resize((10, 5))):
        assert file_size(other) == other.size
