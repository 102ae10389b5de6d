"""Labels that are encoded in pieces are those of memory, to the last bit: random flows and tables, cut anywhere,
against `Flow.bind` and `encode` of the whole table; the file against what was written by hand"""

import os, pickle, random, signal, subprocess, sys, textwrap, warnings
from multiprocessing import get_context
import numpy as np, pandas as pd, pytest, torch
from fastai_condmtl.all import (
    BinaryBlock,
    BoundedRegressionBlock,
    CountBlock,
    Flow,
    FlowError,
    FlowWarning,
    MultiLabelBlock,
    PackedLabels,
    SingleLabelBlock,
    UnboundedRegressionBlock,
)
from fastai_condmtl.data import packed as packed_module, pieces as pieces_module
from fastai_condmtl.data.file_facts import write_facts
from fastai_condmtl.data.packed import MAGIC, encode_pieces
from fastai_condmtl.data.pieces import LEAF, Numbers, mean_and_std
from oracle import build, frame
from random_flows import ALL_KINDS, random_spec, random_table, rows_for_trees

pytestmark = pytest.mark.filterwarnings('ignore::fastai_condmtl.core.errors.FlowWarning')
PARQUET = pytest.importorskip('pyarrow.parquet')


def cut(rng, df, k):
    "A table in `k` pieces at random places"
    ends = sorted(rng.randint(1, max(len(df) - 1, 1)) for _ in range(k - 1))
    parts = [df.iloc[a:b] for a, b in zip([0, *ends], [*ends, len(df)])]
    return [part for part in parts if len(part)]


def learnt(bound, y):
    "What a data set learns beside the binding"
    bound.learn_constants(y)
    bound.learn_units(y)
    return bound


def same(ours, theirs):
    "Two bound flows know the same"
    assert str(ours) == str(theirs)
    assert ours.paths == theirs.paths and ours.target_slices == theirs.target_slices and ours.slices == theirs.slices
    for path, block in theirs.tasks.items():
        mine = ours.tasks[path]
        assert (mine.vocab, mine.lo, mine.span, mine.n_out) == (block.vocab, block.lo, block.span, block.n_out), path
        assert pickle.dumps(vars(mine).get('parents')) == pickle.dumps(vars(block).get('parents'))
    assert ours.plan.conds == theirs.plan.conds and ours.plan.natural == theirs.plan.natural
    assert repr(ours.constants) == repr(theirs.constants) and ours.untold == theirs.untold
    assert ours.loss_units == theirs.loss_units


@pytest.mark.parametrize('seed', range(32))
def test_random_flows(seed, tmp_path):
    rng = random.Random(seed)
    spec = random_spec(
        rng, max_tasks=6, infer=seed % 3 == 0, losses=True, kinds=ALL_KINDS, na=seed % 2 == 0, trees=seed % 4 == 1
    )
    table = random_table(rng, spec, max(rng.choice([5, 40, 200]), rows_for_trees(spec)))
    df, flow = frame(spec, table, rng), build(spec, rng)
    on = np.array([rng.random() < 0.3 for _ in range(len(df))])
    on[rng.randrange(len(df))] = False
    df = df.assign(is_valid_=on)
    train = np.flatnonzero(~on)
    try:
        bound = flow.bind(df, None if len(train) == len(df) else train)
        y = bound.encode(df)
    except FlowError:
        with pytest.raises(FlowError):
            encode_pieces(flow, cut(rng, df, 3), tmp_path / 'labels.packed', valid_col='is_valid_')
        return
    learnt(bound, y[torch.from_numpy(train)])
    packed = encode_pieces(flow, cut(rng, df, rng.choice([1, 2, 5])), tmp_path / 'labels.packed', valid_col='is_valid_')
    assert torch.equal(packed[:].as_subclass(torch.Tensor), y.as_subclass(torch.Tensor))
    assert list(packed.positions('train')) == train.tolist()
    same(packed.flow, bound)
    assert os.listdir(tmp_path) == ['labels.packed']


def a_flow():
    seen = BinaryBlock('seen')
    kind = SingleLabelBlock('kind', class_weights='balanced')
    return Flow(
        'f',
        seen,
        Flow('toy', kind, MultiLabelBlock('tags', label_delim=','), UnboundedRegressionBlock('size')) | seen,
        CountBlock('n') | kind.ne('ball'),
        BoundedRegressionBlock('x') | ~seen,
    )


def a_table(n=1000, seed=0):
    rng = np.random.default_rng(seed)
    gap = lambda values: [None if out else value for value, out in zip(values, rng.random(n) < 0.2)]
    return pd.DataFrame(
        dict(
            seen=gap(rng.choice(['yes', 'no'], n).tolist()),
            kind=gap(rng.choice(['ball', 'cube', 'kite'], n, p=[0.7, 0.2, 0.1]).tolist()),
            tags=gap(rng.choice(['a', 'a,b', 'b', ''], n).tolist()),
            size=gap(rng.normal(40, 9, n).tolist()),
            n=gap(rng.poisson(3, n).tolist()),
            x=gap(rng.random(n).tolist()),
            is_valid=rng.random(n) < 0.25,
        )
    )


def write(df, folder, k=3):
    for i, part in enumerate(np.array_split(np.arange(len(df)), k)):
        df.iloc[part].to_parquet(folder / f'{i}.parquet', row_group_size=97)
    return folder / '*.parquet'


@pytest.mark.parametrize('piece', [1, 13, 400, 10_000])
def test_parquet(tmp_path, monkeypatch, piece):
    "Files, row groups and pieces that cut the table in other places than each other"
    df = a_table()
    files = write(df, tmp_path)
    monkeypatch.setattr(pieces_module.ParquetPieces.__init__, '__defaults__', (piece,))
    packed = a_flow().encode_parquet(files, tmp_path / 'labels.packed', valid_col='is_valid')
    whole = pd.concat([pd.read_parquet(file) for file in sorted(tmp_path.glob('*.parquet'))], ignore_index=True)
    train = np.flatnonzero(~df.is_valid)
    bound = a_flow().bind(whole, train)
    y = bound.encode(whole)
    assert torch.equal(packed[:].as_subclass(torch.Tensor), y.as_subclass(torch.Tensor))
    same(packed.flow, learnt(bound, y[torch.from_numpy(train)]))
    assert packed.flow.tasks['toy.kind'].class_weights == bound.tasks['toy.kind'].class_weights
    assert packed.cells.itemsize == 5 * bound.n_targets


@pytest.mark.parametrize('n', [1, 9, 127, 128, 129, LEAF - 1, LEAF, LEAF + 8, 2 * LEAF + 3, 5 * LEAF + 77])
@pytest.mark.parametrize('k', [1, 3])
def test_sums_are_those_of_numpy(tmp_path, n, k):
    labels = np.random.default_rng(n).lognormal(3, 2, n)
    parts = [Numbers(tmp_path) for _ in range(k)]
    for part, of_part in zip(parts, np.array_split(labels, k)):
        for some in np.array_split(of_part, 4):
            part.add(some)
    # before version 2, NumPy added in another order
    exact = int(np.__version__[0]) > 1
    expected = (n, labels.mean(), labels.std())
    assert mean_and_std(parts) == (expected if exact else pytest.approx(expected, rel=1e-15))


def test_mirror_partners_have_one_scale(tmp_path):
    df = pd.DataFrame(
        dict(left=np.random.default_rng(0).normal(3, 2, 500), right=np.random.default_rng(1).normal(5, 1, 500))
    )
    flow = Flow('f', UnboundedRegressionBlock('left'), UnboundedRegressionBlock('right'), mirror=[('left', 'right')])
    packed = encode_pieces(flow, [df[:123], df[123:]], tmp_path / 'p')
    bound = flow.bind(df)
    y = bound.encode(df)
    assert torch.equal(packed[:].as_subclass(torch.Tensor), y.as_subclass(torch.Tensor))
    same(packed.flow, learnt(bound, y))


def test_weights_of_rows_take_four_bytes(tmp_path):
    df = a_table().assign(w=np.random.default_rng(3).random(1000))
    flow = Flow('f', BinaryBlock('seen', weight_col='w'), CountBlock('n'))
    packed = encode_pieces(flow, [df[:300], df[300:]], tmp_path / 'p')
    bound = flow.bind(df)
    y = bound.encode(df)
    assert packed.cells.itemsize == 8 * 2
    assert torch.equal(packed[:].as_subclass(torch.Tensor), y.as_subclass(torch.Tensor))


def test_a_bound_flow_encodes_with_what_it_knows(tmp_path):
    df = a_table()
    bound = a_flow().bind(df[:600])
    files = write(df[:500], tmp_path)
    packed = bound.encode_parquet(files, tmp_path / 'p')
    y = bound.encode(df[:500])
    assert torch.equal(packed[:].as_subclass(torch.Tensor), y.as_subclass(torch.Tensor))


def test_a_bound_flow_encodes_no_piece_at_all(tmp_path):
    bound = a_flow().bind(a_table())
    packed = encode_pieces(bound, [], tmp_path / 'p')
    assert len(packed) == len(packed.positions('train')) == len(packed.rows('train')) == 0
    assert str(packed.flow) == str(bound)


def test_counts_beyond_the_sample(tmp_path, monkeypatch):
    "What is counted stays exact where the sample is small; constants are near"
    df = a_table(5000)
    df['rare'] = [0.0] * 4999 + [1.0]
    flow = Flow(
        'f', SingleLabelBlock('kind', class_weights='balanced'), BinaryBlock('rare'), UnboundedRegressionBlock('size')
    )
    bound = flow.bind(df)
    y = bound.encode(df)
    learnt(bound, y)
    monkeypatch.setattr(packed_module, 'SAMPLE', 500)
    packed = encode_pieces(flow, [df[:1234], df[1234:]], tmp_path / 'p')
    assert torch.equal(packed[:].as_subclass(torch.Tensor), y.as_subclass(torch.Tensor))
    assert packed.flow.tasks['kind'].class_weights == bound.tasks['kind'].class_weights
    assert packed.flow.untold == bound.untold == {}
    assert packed.flow.constants['size'] == pytest.approx(bound.constants['size'], abs=0.15)
    assert packed.flow.constants['size'] != bound.constants['size']
    assert packed.flow.loss_units['size'] == pytest.approx(bound.loss_units['size'], rel=0.2)


@pytest.mark.parametrize(
    'change, text',
    [
        (dict(n=-1), "task 'n', row 777"),
        (dict(x='far'), 'row 777'),
        (dict(seen='perhaps'), 'seen'),
    ],
)
def test_errors_name_the_row_of_the_whole_table(tmp_path, change, text):
    df = a_table().astype(object)
    for col, value in change.items():
        df.loc[777, col] = value
    with pytest.raises(FlowError, match=text):
        encode_pieces(a_flow(), [df[:250], df[250:500], df[500:]], tmp_path / 'p')
    assert os.listdir(tmp_path) == []


def test_a_file_that_lacks_a_column(tmp_path):
    df = a_table()
    df[:500].to_parquet(tmp_path / '0.parquet')
    df[500:].drop(columns='size').to_parquet(tmp_path / '1.parquet')
    with pytest.raises(FlowError, match=r"1\.parquet.*'size'"):
        a_flow().encode_parquet(tmp_path / '*.parquet', tmp_path / 'p')


def test_a_table_that_grows_meanwhile(tmp_path):
    class Grows:
        n = 0

        def __iter__(self):
            self.n += 1
            yield a_table(100 + 50 * self.n)

    with pytest.raises(FlowError, match='150 rows when it was read first and has 200'):
        encode_pieces(a_flow(), Grows(), tmp_path / 'p')


def test_killed(tmp_path):
    "A process that is killed leaves the old file as it was; the next run cleans up and writes its own"
    df = a_table(20_000)
    files = write(df, tmp_path)
    target = tmp_path / 'out' / 'labels.packed'
    target.parent.mkdir()
    old = a_flow().encode_parquet(tmp_path / '0.parquet', target)
    before = target.read_bytes()
    code = f"""
        import sys, time
        sys.path[:0] = {[os.path.dirname(__file__), *sys.path]!r}
        from fastai_condmtl.data import packed, pieces
        from test_packed import a_flow
        pieces.ParquetPieces.__init__.__defaults__ = (500,)
        add = packed.PackedWriter.add
        def slow(self, *args):
            add(self, *args)
            self.file.flush()
            print('piece', flush=True)
            time.sleep(.05)
        packed.PackedWriter.add = slow
        a_flow().encode_parquet({str(files)!r}, {str(target)!r})
    """
    for n_pieces in (1, 4):
        with subprocess.Popen(
            [sys.executable, '-W', 'ignore', '-c', textwrap.dedent(code)], stdout=subprocess.PIPE
        ) as process:
            for _ in range(n_pieces):
                assert process.stdout.readline() == b'piece\n'
            process.send_signal(signal.SIGKILL)
        assert target.read_bytes() == before
        assert len(os.listdir(target.parent)) == 2
    assert len(PackedLabels(target)) == len(old)
    with pytest.warns(FlowWarning, match='was ended before it was done: .* encoded anew'):
        packed = a_flow().encode_parquet(files, target)
    assert os.listdir(target.parent) == ['labels.packed']
    bound = a_flow().bind(df)
    assert torch.equal(packed[:].as_subclass(torch.Tensor), bound.encode(df).as_subclass(torch.Tensor))


def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(place, flow, pieces, target):
    "Encode in a process that is killed at a place"
    nth = iter(range(10))

    def third(self, *args):
        add(self, *args)
        if next(nth) == 2:
            self.file.flush()
            kill()

    add, write_facts = packed_module.PackedWriter.add, packed_module.write_facts

    def after_facts(file, *args):
        write_facts(file, *args)
        file.flush()
        kill()

    if place == 'binding':
        pieces_module.Witness.add = kill
    elif place == 'rows':
        packed_module.PackedWriter.add = third
    elif place == 'positions':
        packed_module.PackedWriter.write_positions = kill
    elif place == 'keys':
        packed_module.KeyWriter.write = kill
    elif place == 'facts':
        packed_module.write_facts = after_facts
    else:
        os.replace = kill
    encode_pieces(flow, pieces, target, valid_col='is_valid', key_col='key')


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')
@pytest.mark.parametrize('place', ['binding', 'rows', 'positions', 'keys', 'facts', 'name'])
def test_killed_at_every_stage(tmp_path, place):
    "No file takes the name before it is whole; what is left behind opens only where all of it was written"
    df = a_table().assign(key=[f'k{i}' for i in range(1000)])
    pieces, target = [df[:300], df[300:310], df[310:700], df[700:]], tmp_path / 'labels.packed'
    for old in (None, encode_pieces(a_flow(), [df[:90]], tmp_path / 'old.packed', valid_col='is_valid')):
        if old is not None:
            target.write_bytes((tmp_path / 'old.packed').read_bytes())
            (tmp_path / 'old.packed').unlink()
        process = get_context('fork').Process(target=killed_at, args=(place, a_flow(), pieces, target))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        if old is None:
            with pytest.raises(FlowError, match='there is no file'):
                PackedLabels(target)
        else:
            assert len(PackedLabels(target)) == 90
        left = [file for file in tmp_path.iterdir() if file.suffix == '.tmp']
        assert len(left) == (place != 'binding')
        for file in left:
            if place in ('facts', 'name'):
                assert len(PackedLabels(file)) == 1000
            else:
                with pytest.raises(FlowError, match='lacks a part'):
                    PackedLabels(file)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter('always')
            packed = encode_pieces(a_flow(), pieces, target, valid_col='is_valid', key_col='key')
        assert sum('was ended before it was done' in str(w.message) for w in told) == len(left)
        assert not [file for file in tmp_path.iterdir() if file.suffix == '.tmp']
        y = a_flow().bind(df, np.flatnonzero(~df.is_valid)).encode(df)
        assert torch.equal(packed[:].as_subclass(torch.Tensor), y.as_subclass(torch.Tensor))
        assert packed.keys.some(0, 1000) == df.key.tolist()
        target.unlink()


@pytest.mark.parametrize('cut_at', [0.0, 0.3, 0.9, 0.999])
def test_a_file_cut_anywhere_does_not_open(tmp_path, cut_at):
    packed = encode_pieces(a_flow(), [a_table(50)], tmp_path / 'p')
    whole = packed.path.read_bytes()
    for damaged in (whole[: int(cut_at * len(whole))], whole + b'x', whole[: int(cut_at * len(whole))] + whole[-200:]):
        (tmp_path / 'damaged').write_bytes(damaged)
        with pytest.raises(FlowError, match='lacks a part|in place of'):
            PackedLabels(tmp_path / 'damaged')


@pytest.mark.parametrize(
    'change',
    [
        dict(n_rows=10**12),
        dict(n_rows=51),
        dict(n_rows=-1),
        dict(n_rows='50'),
        dict(n_rows=True),
        dict(n_targets=0),
        dict(n_targets=10**9),
        dict(n_targets=None),
        dict(mask='O'),
        dict(mask=['u1']),
        dict(sides=[50]),
        dict(sides=[51, 0, 0]),
        dict(sides=3),
        dict(positions=[0, 0, 10**9]),
        dict(positions=[0, 0, -8]),
        dict(position='O'),
        dict(flow=[0, 10**9]),
        dict(flow=None),
        dict(keys=None),
        dict(keys=dict(n=10**9, start=0, size=0, digest='')),
        dict(keys=dict(n=1, start=0, size=0)),
    ],
)
def test_a_file_that_tells_of_what_it_does_not_hold(tmp_path, change):
    packed = encode_pieces(a_flow(), [a_table(50)], tmp_path / 'p', valid_pct=0.5)
    with open(tmp_path / 'p', 'rb') as file, open(tmp_path / 'other', 'wb') as other:
        other.write(file.read(packed.facts['flow'][0] + packed.facts['flow'][1]))
        write_facts(other, {k: v for k, v in (packed.facts | change).items() if k != 'size'}, MAGIC)
    with pytest.raises(FlowError, match="other' (does not tell|tells of parts).*copy it again, or encode it anew"):
        PackedLabels(tmp_path / 'other')


@pytest.mark.parametrize('kind', [str, int, float])
def test_groups_stand_on_one_side(tmp_path, kind):
    "Whatever the pieces, and whatever type a piece gives the groups"
    df = a_table(2000)
    df['who'] = np.random.default_rng(1).integers(0, 200, len(df))
    pieces = [df[:700], df[700:701].astype(dict(who=kind)), df[701:].astype(dict(who=object))]
    packed = encode_pieces(a_flow(), pieces, tmp_path / 'p', valid_pct=0.3, seed=5, group_col='who')
    sides = [set(df.who.iloc[np.asarray(packed.positions(side))]) for side in ('train', 'valid')]
    assert not sides[0] & sides[1] and 35 < len(sides[1]) < 85
    whole = encode_pieces(a_flow(), [df], tmp_path / 'q', valid_pct=0.3, seed=5, group_col='who')
    assert list(whole.positions('valid')) == list(packed.positions('valid'))
    other = encode_pieces(a_flow(), [df], tmp_path / 'q', valid_pct=0.3, seed=6, group_col='who')
    assert list(other.positions('valid')) != list(packed.positions('valid'))


def test_groups_that_cannot_be_drawn(tmp_path):
    df = a_table(100).assign(who='a')
    df.loc[60, 'who'] = None
    with pytest.raises(FlowError, match="group_col='who' is blank in row 60 .*give each row a group"):
        encode_pieces(a_flow(), [df[:50], df[50:]], tmp_path / 'p', valid_pct=0.3, group_col='who')
    with pytest.raises(FlowError, match=r"group_col='who' draws groups .* valid_pct=.1"):
        encode_pieces(a_flow(), [df], tmp_path / 'p', valid_col='is_valid', group_col='who')
    with pytest.raises(FlowError, match="'whom'"):
        encode_pieces(a_flow(), [df], tmp_path / 'p', valid_pct=0.3, group_col='whom')


def test_rows_of_the_file_by_hand(tmp_path):
    df = pd.DataFrame(dict(a=[1.0, None, 0.0], x=[0.0, 5.0, 10.0]))
    encode_pieces(Flow('f', BinaryBlock('a'), BoundedRegressionBlock('x')), [df], tmp_path / 'p')
    raw = (tmp_path / 'p').read_bytes()
    values = [np.frombuffer(raw, '<f4', 2, 10 * i).tolist() for i in range(3)]
    masks = [list(raw[10 * i + 8 : 10 * i + 10]) for i in range(3)]
    assert values == [[1, 0], [0, 0.5], [0, 1]] and masks == [[1, 1], [0, 1], [1, 1]]
