"""The cache of pictures: against PIL by hand, under kills, damage and changes of files, and from many processes"""

import multiprocessing, os, pickle, random, signal, time, zlib
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from fastai.vision.core import BILINEAR, NEAREST, PILImage, PILImageBW, PILMask
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.data import cache as cache_module
from fastai_condmtl.data.cache import OpenCached, PictureCache
from fastai_condmtl.data.cache_format import ENTRY, check_sums, file_size, shrunk_size
from fastai_condmtl.data.pictures import OpenImage

pytestmark = pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')


def draw(path, size=(50, 40), mode='RGB', seed=0, **kwargs):
    n_bands = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], n_bands), dtype=np.uint8)
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(noise.squeeze(), mode=mode).save(path, **kwargs)
    return path


def by_hand(fn, px, cls=PILImage, resample=BILINEAR):
    "Decoded and shrunk by PIL alone"
    picture = Image.open(fn).convert(cls._open_args['mode'])
    short = min(picture.size)
    if px is None or short <= px:
        return np.asarray(picture)
    sides = []
    for side in picture.size:  # the nearest number of pixels that differs from px by an even one
        exact = side * px / short
        sides.append(min((n for n in range(px, int(exact) + 4, 2)), key=lambda n: abs(n - exact)))
    return np.asarray(picture.resize(sides, resample))


def some(tmp_path, n=12, seed=0):
    sizes = [(64, 48), (50, 81), (90, 41), (64, 64), (33, 57), (20, 10), (121, 120)]
    return [draw(tmp_path / f'{i}.png', sizes[i % 7], seed=seed + i) for i in range(n)]


def holds(cache, files):
    "True if the cache has all files, each with its own pixels"
    for fn in files:
        found = cache.get(fn)
        if found is None or not np.array_equal(np.asarray(found), by_hand(fn, cache.px, cache.cls)):
            return False
    return True


@pytest.mark.parametrize('px', [None, 1, 7, 20, 48, 500])
def test_pixels_are_those_of_pil(tmp_path, px):
    files = some(tmp_path)
    cache = PictureCache(tmp_path / 'c', px).build(files)
    assert holds(cache, files)
    for fn in files:
        assert type(cache.get(fn)) is PILImage
        assert file_size(cache.get(fn)) == Image.open(fn).size
    assert holds(PictureCache(tmp_path / 'c', px), files)  # by another one, which reads the index


@pytest.mark.parametrize('cls', [PILImage, PILImageBW, PILMask])
@pytest.mark.parametrize('mode', ['RGB', 'L', 'RGBA', 'LA'])
def test_modes_become_those_of_the_class(tmp_path, cls, mode):
    fn = draw(tmp_path / 'a.png', (40, 30), mode)
    cache = PictureCache(tmp_path / 'c', 16, cls).build([fn], OpenImage(cls))
    found = cache.get(fn)
    assert (type(found), found.mode) == (cls, cls._open_args['mode'])
    assert np.array_equal(np.asarray(found), by_hand(fn, 16, cls, NEAREST if cls is PILMask else BILINEAR))


def test_sixteen_bits_and_rotation_are_as_without(tmp_path):
    gray = tmp_path / 'a.png'
    Image.fromarray(np.arange(0, 60000, 50, dtype=np.uint16).reshape(30, 40)).save(gray)
    turned, exif = tmp_path / 'b.jpg', Image.Exif()
    exif[0x0112] = 6  # fastai reads pixels as they are stored
    draw(turned, (60, 40), exif=exif)
    cache, plain = PictureCache(tmp_path / 'c', None), OpenImage(PILImage)
    cache.build([gray, turned], plain)
    for fn in (gray, turned):
        assert cache.get(fn).size == plain(fn).size == Image.open(fn).size
        assert np.array_equal(np.asarray(cache.get(fn)), np.asarray(plain(fn)))


class Native(PILImage):
    _open_args = {'mode': None}


@pytest.mark.parametrize('mode', ['L', '1', 'RGBA', 'LA', 'CMYK'])
def test_modes_of_files_are_kept_where_the_class_has_none(tmp_path, mode):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 45, 3), dtype=np.uint8)).convert(mode)
    fn = tmp_path / ('a.tif' if mode == 'CMYK' else 'a.png')
    picture.save(fn)
    cache = PictureCache(tmp_path / 'c', 16, Native).build([fn], OpenImage(Native))
    want = picture.resize(shrunk_size(picture.size, 16), BILINEAR)
    assert cache.get(fn).mode == mode
    assert np.array_equal(np.asarray(cache.get(fn)), np.asarray(want))


def test_what_raw_pixels_do_not_hold_is_an_error(tmp_path):
    fn = tmp_path / 'a.png'
    Image.new('P', (20, 20)).save(fn)
    with pytest.raises(FlowError, match=r"a\.png' is opened in PIL's mode 'P'.*leave cache= out"):
        PictureCache(tmp_path / 'c', 16, Native).build([fn], OpenImage(Native))


def test_equal_names_in_two_folders(tmp_path, monkeypatch):
    files = [draw(tmp_path / d / 'x.png', seed=i) for i, d in enumerate('ab')]
    cache = PictureCache(tmp_path / 'c', 20).build(files)
    assert holds(cache, files)
    monkeypatch.chdir(tmp_path / 'a')
    assert np.array_equal(np.asarray(cache.get('x.png')), by_hand(files[0], 20))
    assert np.array_equal(np.asarray(cache.get('../b/x.png')), by_hand(files[1], 20))


def test_a_changed_file_is_done_anew(tmp_path, capsys):
    files = some(tmp_path, 4)
    cache = PictureCache(tmp_path / 'c', 20).build(files)
    assert capsys.readouterr().out.startswith('cache: 4 of 4 pictures, shorter side 20 px, about 0.1 MB in ')
    draw(files[1], (70, 50), seed=99)
    assert [cache.get(fn) is None for fn in files] == [False, True, False, False]
    opened = []
    cache.build(files, lambda fn: opened.append(fn) or PILImage.create(fn))
    assert opened == [str(files[1])]
    assert capsys.readouterr().out.startswith('cache: 1 of 4 pictures')
    assert holds(cache, files)
    cache.build(files, lambda fn: pytest.fail('nothing has changed'))
    assert capsys.readouterr().out == ''


def test_a_change_of_equal_size_right_after_the_build_shows(tmp_path):
    fn = tmp_path / 'a.bmp'  # of equal size whatever it shows
    for seed in range(12):
        draw(fn, seed=seed)
        cache = PictureCache(tmp_path / 'c', 20).build([fn])
        assert holds(cache, [fn])
        draw(fn, seed=seed + 100)
        assert cache.get(fn) is None


def test_a_file_with_the_time_of_a_coarse_disk_is_waited_for(tmp_path, monkeypatch):
    fn, slept = draw(tmp_path / 'a.png'), []
    second = int(time.time()) * 10**9
    os.utime(fn, ns=(second, second))
    monkeypatch.setattr(cache_module.time, 'sleep', slept.append)
    PictureCache(tmp_path / 'c', 20).build([fn])
    assert 1 <= sum(slept) <= 2


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path):
    fn, seeds = draw(tmp_path / 'a.png', seed=0), iter([1, 2])

    def change(fn):
        picture = PILImage.create(fn)
        if (seed := next(seeds, None)) is not None:
            draw(Path(fn), (30 + seed, 40), seed=seed)
        return picture

    cache = PictureCache(tmp_path / 'c', 20).build([fn], change)
    assert holds(cache, [fn])
    assert file_size(cache.get(fn)) == (32, 40)


@pytest.mark.parametrize('others', [dict(px=21), dict(cls=PILImageBW), dict(resample=NEAREST)])
def test_other_settings_are_another_cache(tmp_path, others):
    files = some(tmp_path, 3)
    one = PictureCache(tmp_path / 'c', 20).build(files)
    other = PictureCache(tmp_path / 'c', **{'px': 20, **others})
    assert other.get(files[0]) is None
    assert one.folder != other.folder


def test_a_create_of_ones_own_that_changes_is_another_cache(tmp_path):
    def of(brightness):
        class Own(PILImage):
            @classmethod
            def create(cls, fn, **kwargs):
                return cls(Image.open(fn).convert('RGB').point(lambda v: v))

        if brightness:

            class Own(PILImage):
                @classmethod
                def create(cls, fn, **kwargs):
                    return cls(Image.open(fn).convert('RGB').rotate(brightness))

        return PictureCache(tmp_path, 20, Own)

    assert of(0).folder == of(0).folder != of(1).folder


# kills ---------------------------------------------------------------------------------------------------------------


def build_slowly(folder, files):
    def slow(fn):
        time.sleep(random.random() * 0.004)
        return PILImage.create(fn)

    cache = PictureCache(folder, 20)
    write = cache_module._append
    cache_module._append = lambda *args: (time.sleep(0.001), write(*args))
    cache.__class__._write.__defaults__ = (4000, 0.5)  # bytes at once: writes often
    cache.build(files, slow)


def test_fifty_kills_lose_nothing_and_change_nothing(tmp_path):
    "What was there before a kill is there after it; what is there is right; in the end all is there"
    fork, rng = multiprocessing.get_context('fork'), random.Random(0)
    files = [draw(tmp_path / f'{i}.png', (44, 40), seed=i) for i in range(400)]
    truth = {fn: by_hand(fn, 20) for fn in files}
    known, kills, grew = set(), 0, 0
    while kills < 50:
        child = fork.Process(target=build_slowly, args=(tmp_path / 'c', files))
        child.start()
        time.sleep(rng.random() * 0.6)
        child.kill()
        child.join()
        kills += child.exitcode == -signal.SIGKILL
        cache, now = PictureCache(tmp_path / 'c', 20), set()
        for fn in files:
            picture = cache.get(fn)
            if picture is not None:
                assert np.array_equal(np.asarray(picture), truth[fn])
                now.add(fn)
        assert known <= now
        grew += len(now) > len(known)
        known = now
        if len(known) == len(files):  # begin again, until there were fifty
            for part in cache.folder.iterdir():
                part.unlink()
            known = set()
    assert grew >= 10
    cache.build(files)
    assert holds(cache, files)


def test_an_index_that_ends_anywhere_is_gone_on_with(tmp_path):
    files = some(tmp_path, 4)
    cache = PictureCache(tmp_path / 'c', 20).build(files)
    whole = (cache.folder / 'index').read_bytes()
    assert len(whole) == 5 * ENTRY.itemsize
    for end in [0, 1, 50, 95, 96, 97, 191, 192, 193, 300, len(whole) - 1]:
        (cache.folder / 'index').write_bytes(whole[:end])
        assert len(cache.load().entries) == max(end // ENTRY.itemsize - 1, 0)
        assert holds(cache.build(files), files)
        assert holds(cache.load(), files)


def test_no_change_of_a_byte_gives_a_wrong_picture(tmp_path):
    files, rng = some(tmp_path, 5), np.random.default_rng(0)
    cache = PictureCache(tmp_path / 'c', 20).build(files)
    truth, n_errors = [by_hand(fn, 20) for fn in files], 0
    for name in ('index', 'pixels'):
        file = cache.folder / name
        whole = file.read_bytes()
        for place in rng.choice(len(whole), 120, replace=False):
            changed = bytearray(whole)
            changed[place] ^= rng.integers(1, 256)
            file.write_bytes(changed)
            try:
                found = [cache.load().get(fn) for fn in files]
            except FlowError as e:
                assert 'delete this folder' in str(e) and str(cache.folder) in str(e)
                n_errors += 1
                continue
            assert all(f is None or np.array_equal(np.asarray(f), t) for f, t in zip(found, truth))
        file.write_bytes(whole)
    assert n_errors == 240
    assert holds(cache.load(), files)


@pytest.mark.parametrize('harm', ['short', 'empty', 'gone', 'zeros', 'swapped'])
def test_pixels_that_are_not_those_of_the_index(tmp_path, harm):
    files = some(tmp_path, 5)
    cache = PictureCache(tmp_path / 'c', 20).build(files)
    pixels = cache.folder / 'pixels'
    whole = pixels.read_bytes()
    if harm == 'gone':
        pixels.unlink()
    else:
        other = dict(short=whole[:-1], empty=b'', zeros=bytes(len(whole)), swapped=whole[4000:] + whole[:4000])
        pixels.write_bytes(other[harm])
    with pytest.raises(FlowError, match='is damaged.*delete this folder'):
        for fn in files:
            PictureCache(tmp_path / 'c', 20).get(fn)
    with pytest.raises(FlowError, match='delete this folder'):
        for fn in files:
            OpenCached(PictureCache(tmp_path / 'c', 20))(fn)


@pytest.mark.parametrize(
    'change',
    [
        dict(width=10**5, height=10**5),
        dict(width=-1),
        dict(height=0),
        dict(file_width=0),
        dict(file_height=-(2**31)),
        dict(mode=b'L'),
        dict(mode=b'1'),
        dict(mode=b'I;16'),
        dict(mode=b'evil'),
        dict(mode=b'\xff\xfe'),
        dict(mode=b''),
        dict(start=-9),
        dict(length=5),
        dict(length=-1),
    ],
)
def test_an_entry_that_somebody_has_made_up(tmp_path, change):
    "Its check sums fit"
    (file,) = some(tmp_path, 1)
    cache = PictureCache(tmp_path / 'c', 20).build([file])
    index, pixels = (cache.folder / name for name in ('index', 'pixels'))
    entry = np.frombuffer(index.read_bytes()[ENTRY.itemsize :], ENTRY).copy()
    for name, value in change.items():
        entry[name] = value
    start, length = int(entry['start'][0]), int(entry['length'][0])
    entry['crc'] = zlib.crc32(memoryview(pixels.read_bytes())[start : start + length])
    entry['check'] = check_sums(entry)
    index.write_bytes(index.read_bytes()[: ENTRY.itemsize] + entry.tobytes())
    with pytest.raises(FlowError, match='is damaged.*delete this folder'):
        PictureCache(tmp_path / 'c', 20).get(file)


def test_an_index_of_another_make(tmp_path):
    files = some(tmp_path, 2)
    cache = PictureCache(tmp_path / 'c', 20).build(files)
    other = PictureCache(tmp_path / 'c', 21).build(files)
    (cache.folder / 'index').write_bytes((other.folder / 'index').read_bytes())
    with pytest.raises(FlowError, match='delete this folder'):
        cache.load()


# many processes ------------------------------------------------------------------------------------------------------


def build_counting(folder, files, log):
    def count(fn):
        with open(log, 'a') as file:
            file.write(f'{fn}\n')
        return PILImage.create(fn)

    cache = PictureCache(folder, 20).build(files, count)
    os._exit(0 if holds(cache, files) else 1)


def test_several_processes_build_each_picture_once(tmp_path):
    fork, files = multiprocessing.get_context('fork'), some(tmp_path, 60)
    children = [fork.Process(target=build_counting, args=(tmp_path / 'c', files, tmp_path / 'log')) for _ in range(5)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 5
    assert sorted((tmp_path / 'log').read_text().split()) == sorted(map(str, files))
    assert holds(PictureCache(tmp_path / 'c', 20), files)


def has_all(cache, files):
    os._exit(0 if cache.get(files[0]) is not None and holds(cache, files) else 1)


@pytest.mark.parametrize('how', ['fork', 'spawn'])
def test_a_worker_reads_the_cache(tmp_path, how):
    files = some(tmp_path, 5)
    cache = PictureCache(tmp_path / 'c', 20).build(files)
    child = multiprocessing.get_context(how).Process(target=has_all, args=(cache, files))
    child.start()
    child.join()
    assert child.exitcode == 0


def test_a_pickle_has_no_folder_and_shrinks_alike(tmp_path):
    files = some(tmp_path)
    opened = OpenCached(PictureCache(tmp_path / 'c', 20))
    opened.cache.build(files)
    loaded = pickle.loads(pickle.dumps(opened))
    assert str(tmp_path).encode() not in pickle.dumps(opened)
    for fn in files:
        assert loaded.cache.get(fn) is None
        assert np.array_equal(np.asarray(loaded(fn)), np.asarray(opened.cache.get(fn)))
        assert file_size(loaded(fn)) == file_size(opened(fn)) == Image.open(fn).size
        for other in (fn.read_bytes(), np.asarray(Image.open(fn)), Image.open(fn)):
            assert np.array_equal(np.asarray(loaded(other)), np.asarray(opened.cache.get(fn)))
            assert file_size(loaded(other)) == Image.open(fn).size


def test_a_picture_that_is_handed_over_stands_for_itself(tmp_path):
    fn = draw(tmp_path / 'a.png', (80, 60))
    opened = OpenCached(PictureCache(tmp_path / 'c', 20))
    opened.cache.build([fn])
    small = opened(fn)
    assert (small.size, file_size(small)) == ((26, 20), (80, 60))
    assert file_size(opened(small)) == (26, 20)
    assert file_size(small) == (80, 60)


def test_hashes_that_share_a_half_are_told_apart(tmp_path, monkeypatch):
    files = some(tmp_path, 2)
    monkeypatch.setattr(cache_module, 'key_of', lambda fn: (7, 2**64 - 1 - int(Path(fn).stem)))
    assert holds(PictureCache(tmp_path / 'c', 20).build(files), files)


# where it cannot be --------------------------------------------------------------------------------------------------


def test_an_unreadable_picture_ends_the_build_and_what_was_done_stays(tmp_path):
    files = some(tmp_path, 40)
    files[30].write_bytes(b'no picture')
    cache = PictureCache(tmp_path / 'c', 20)
    with pytest.raises(FlowError, match=r"cannot read image '.*30\.png'"):
        cache.build(files, OpenImage(PILImage))
    assert holds(cache.load(), files[:30])
    files[30].unlink()
    with pytest.raises(FlowError, match=r"there is no image file '.*30\.png'"):
        cache.build(files, OpenImage(PILImage))
    draw(files[30])
    assert holds(cache.build(files, OpenImage(PILImage)), files)


def test_a_full_disk_is_told_before(tmp_path, monkeypatch):
    files = some(tmp_path)
    monkeypatch.setattr(cache_module.shutil, 'disk_usage', lambda folder: type('', (), {'free': 1000}))
    with pytest.raises(FlowError, match="cannot be written: it needs about .* 0.0 GB are free.*cache='folder'"):
        PictureCache(tmp_path / 'c', 20).build(files, lambda fn: pytest.fail('nothing is decoded'))


def test_a_folder_that_cannot_be_written(tmp_path):
    files = some(tmp_path, 1)
    (tmp_path / 'c').write_text('a file')
    with pytest.raises(FlowError, match="cannot be written.*cache='folder'"):
        PictureCache(tmp_path / 'c', 20).build(files)


def test_a_write_that_fails_leaves_a_cache_that_is_whole(tmp_path, monkeypatch):
    files, real, n = some(tmp_path, 30), cache_module._to_disk, iter(range(100))

    def fails(file):
        file.flush()
        if next(n) == 3:
            raise OSError(28, 'No space left on device')

    monkeypatch.setattr(PictureCache._write, '__defaults__', (4000, 9.0))
    monkeypatch.setattr(cache_module, '_to_disk', fails)
    cache = PictureCache(tmp_path / 'c', 20)
    with pytest.raises(FlowError, match='cannot be written.*No space left'):
        cache.build(files)
    monkeypatch.setattr(cache_module, '_to_disk', real)
    there = [fn for fn in files if cache.load().get(fn) is not None]
    assert 0 < len(there) < 30 and holds(cache, there)
    assert holds(cache.build(files), files)


def test_many_entries_are_found_without_a_loop(tmp_path):
    "The index of many pictures is sorted once; a look-up does not copy it"
    cache, rng = PictureCache(tmp_path / 'c', 20).build(files := some(tmp_path, 3)), np.random.default_rng(0)
    entries = np.zeros(10**5, ENTRY)
    entries['first'], entries['second'], entries['length'] = *rng.integers(0, 2**63, (2, 10**5)), 1
    entries['check'] = cache_module.check_sums(entries)
    with (cache.folder / 'index').open('ab') as index:
        index.write(entries.tobytes())
    cache.load()
    assert len(cache.entries) == 10**5 + 3 and cache.firsts.flags.c_contiguous
    assert holds(cache, files)
