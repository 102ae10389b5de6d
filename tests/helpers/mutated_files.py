"""Files from hands that nobody knows, changed at random: each is read as what it is, or refused by one clear error.
`python tests/helpers/mutated_files.py --n 100000 --seed 0` prints how they ended, and of each that ended otherwise its
kind and its seed; `--kind flow --only 17` reads that one again.

A file may do no more than name and set values. What is a finding: another exception than `FlowError` (the one error
that all these readers document), more than five seconds, more than a gigabyte, a file opened that is not the one that
was handed over, anything written, a module imported or a program started. Python's audit hook tells the latter.

Of `--n` mutations each kind reads its share, by how long one takes:
- `flow`: JSON for `Flow.from_json`; all of them, and what is read is written and read again
- `safe`: a file of `learn.save_safe` whose network is handed over: flow, what its blocks have learnt, thresholds,
  temperatures, sets, pictures, weights; a twentieth
- `network`: the same with a network that the file names, which takes tens of milliseconds; a five-hundredth
- `texts`: the same with a transformer and its tokenizer; a five-hundredth
- `thresholds`: JSON of `learn.save_thresholds`; a twentieth
- `pictures`: index and pixels of a cache, also entries with other values and a check sum that fits; a twentieth
- `packed`: packed labels, all but their flow: that is a pickle, which its documentation says to trust; a twentieth

Learners (`learn.export`), checkpoints and run folders are pickles for those who trust each other, and not read here."""

from __future__ import annotations
import argparse, contextlib, io, json, os, random, re, resource, sys, tempfile, time, warnings, zlib
from collections import Counter
from copy import deepcopy
from pathlib import Path
import numpy as np, pandas as pd, torch
from PIL import Image
from torch import nn
from fastai.layers import ConvLayer
from fastai.vision.all import DataBlock, ImageBlock, IndexSplitter, Normalize, PILImage, Resize, imagenet_stats
from fastai_condmtl.vision.all import *
from fastai_condmtl.data.cache import ENTRY, PictureCache, check_sums
from fastai_condmtl.data.packed import MAGIC, PackedLabels, encode_pieces
from fastai_condmtl.deploy.predictor import Predictor
from fastai_condmtl.deploy.safe import FORMAT, load_safe, read_header
from fastai_condmtl.loss.sets import SetLimits
from fastai_condmtl.tasks.votes import VotesBlock
from fuzz import Hang, Wrong, within

ROOT = Path(__file__).resolve().parents[2]
SECONDS, MEMORY = 5, 2**30


# ---- what a reader may not do --------------------------------------------------------------------------------------
PROGRAMS = ('os.exec', 'os.fork', 'os.posix_spawn', 'os.spawn', 'os.startfile', 'os.system', 'pty.', 'subprocess.')
NETWORK = ('ftplib.', 'http.', 'smtplib.', 'socket.connect', 'socket.getaddrinfo', 'socket.gethostbyname', 'urllib.')
CHANGES = ('os.chmod', 'os.chown', 'os.link', 'os.mkdir', 'os.remove', 'os.rename', 'os.rmdir', 'os.symlink', 'shutil.')
CODE = ('code.__new__', 'ctypes.dlopen', 'pickle.find_class', 'webbrowser.')
READABLE = (
    sys.prefix,
    sys.base_prefix,
    str(ROOT),
    '/dev/null',
    '/dev/urandom',
    '/etc/localtime',
    '/usr/share/zoneinfo',
)


class Watch:
    "What this process opens, imports and starts while a file is read"

    def __init__(self):
        self.is_hooked, self.is_on, self.folder, self.seen, self.known = False, False, '', [], frozenset()

    @contextlib.contextmanager
    def on(self, folder):
        if not self.is_hooked:  # a hook stays for good
            sys.addaudithook(self.hook)
            self.is_hooked = True
        self.folder, self.seen, self.is_on = str(folder), [], True
        try:
            yield self.seen
        finally:
            self.is_on = False

    def hook(self, event, args):
        if self.is_on and (told := self.why_not(event, args)):
            self.seen.append(told)

    def why_not(self, event, args):
        "What a reader does that it may not; None where it may"
        if event == 'open':
            return self.why_not_open(*args[:3])
        if event == 'import':
            return None if args[0].partition('.')[0] in self.known else f'imports {args[0]!r}'
        if event == 'exec':
            name = getattr(args[0], 'co_filename', '<?>')
            return None if os.path.exists(name) or name.startswith('<frozen') else f'runs code of {name}'
        return event if event.startswith((*PROGRAMS, *NETWORK, *CHANGES, *CODE)) else None

    def why_not_open(self, path, mode, flags):
        if not isinstance(path, (str, bytes)) or '__pycache__' in (path := os.path.abspath(os.fsdecode(path))):
            return None
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR):
            return f'writes {path}'
        return None if path.startswith((self.folder, *READABLE)) else f'opens {path}'


WATCH = Watch()


@contextlib.contextmanager
def at_most(n_bytes):
    "No more than so much memory beyond what the process has"
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path('/proc/self/statm').read_text().split()[0]) if os.path.exists('/proc/self/statm') else None
    if pages is not None:
        limit = pages * resource.getpagesize() + n_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit if before[1] < 0 else min(limit, before[1]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def lacked_memory(error):
    "True if memory ran out on the way to an error"
    while error is not None:
        if isinstance(error, MemoryError) or re.search('allocate|bad_alloc|out of memory', str(error)[:5000]):
            return True
        error = error.__cause__ or error.__context__
    return False


# ---- mutations -----------------------------------------------------------------------------------------------------
def changed_bytes(content, rng, head=None):
    "Bytes flipped, cut, doubled, put elsewhere; `head`: every other time within so many of the first"
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        end = len(content) if head is None or rng.random() < 0.5 else min(head, len(content))
        if not end:
            return bytes(content)
        start = rng.randrange(end)
        stop = min(start + rng.choice([1, 1, 2, 8, 100, 5000]), end)
        how = rng.randrange(8)
        if how < 3:
            content[start] ^= 1 << rng.randrange(8)
        elif how == 3:
            del content[start:stop]
        elif how == 4:
            content[start:start] = content[start:stop]
        elif how == 5:
            content[start:stop] = rng.choice([b'\0', b'\xff', b'9', b'"', b'[', b'{']) * (stop - start)
        elif how == 6:
            content[start:start] = rng.randbytes(rng.choice([1, 4, 50]))
        else:
            del content[start:]
    return bytes(content)


DEEP = 100_000
LONG = {  # what `json.dumps` does not write: mark → text that takes its place
    '@lists': '[' * DEEP + ']' * DEEP,
    '@dicts': '{"a":' * DEEP + '1' + '}' * DEEP,
    '@open': '[' * DEEP,
    '@some lists': '[' * 150 + '1' + ']' * 150,
    '@many lists': '[' * 900 + '1' + ']' * 900,
    '@many tuples': '{"tuple":[' * 400 + '1' + ']}' * 400,
    '@flows': '{"flow":"f","tasks":[' * 150 + '{"name":"y","block":"BinaryBlock"}' + ']}' * 150,
    '@many flows': '{"flow":"f","tasks":[' * 400 + '{"name":"y","block":"BinaryBlock"}' + ']}' * 400,
    '@digits': '1' * 4000,
    '@more digits': '1' * 5000,
    '@beyond floats': '-1e400',
}
NUMBERS = [
    *(0, -1, 1, 2, 3, 7, 100, 1.0, 0.5, -0.0, 1.5, 1e-320, 1e300, 1e308, -1e308),
    *(float('nan'), float('inf'), -float('inf'), True, False, None),
    *(2**11, 2**14, 2**16, 2**16 + 1, 2**24, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63)),
    *(10**5, 10**6, 10**7, 10**9, 10**12, 10**18, 10**30, 10**300, 10**400, -(10**400)),
]
CONDITIONS = [
    *('gate', '~gate', 'gate & kind', 'x > 0x' + 'f' * 5000, 'x > 1' + '0' * 400, 'x > 1' + '0' * 5000, 'x > 1e999'),
    *('~' * 400 + 'gate', '~' * 5000 + 'gate', '(' * 90 + 'gate' + ')' * 90, '(' * 5000 + 'gate', '& ' * 90 + 'gate'),
    *(' & '.join(['gate'] * 200), 'any_of(' * 90 + 'gate' + ')' * 90, 'kind.isin([' + '1,' * 30_000 + '])', 'x > True'),
    *('kind.eq(1j)', "kind.eq(b'a')", "kind.eq(f'{gate}')", 'kind.eq(...)', 'kind.eq(-inf)', "kind.eq(timestamp('x'))"),
    *("kind.eq(timestamp('2020-01-01'))", "kind.eq(date('2020-13-01'))", 'kind.eq(' + '(' * 80 + ')' * 80 + ')'),
    *('x.between(inf, -inf)', 'x.between(1)', 'x.share(1) > .5', 'shape.share([]) > .5', 'shape.share("disk") > 2'),
    *('lambda: 0', 'gate.__class__', 'gate if kind else x', '[gate for x in y]', 'gate := 1', 'yield', 'await gate'),
    *('__import__("os").system("true")', 'exec("1")', 'kind.eq(__import__("evil_module"))', 'os.system("true")'),
    *(
        'gate\0',
        'gate\n&\nkind',
        '#',
        'gate #',
        '\ufeffgate',
        'ｇａｔｅ',
        'task("gate")',
        'task(task("gate"))',
        'task(1)',
    ),
]
WORDS = [
    *('', ' ', 'x', 'a.b', 'gate', 'kind', 'f', '\0', '\n', '\ud800', 'é😀', '\u202e', '１', 'loss', 'a' * 5000),
    *('a' * 200_000, '1' * 5000, 'nan', 'null', 'true', '%s%n', '{0.__class__}', '{{7*7}}', "'; --", '<script>'),
    *('BinaryBlock', 'SingleLabelBlock', 'MultiLabelBlock', 'OrdinalBlock', 'UnboundedRegressionBlock', 'CountBlock'),
    *('BoundedRegressionBlock', 'KeypointsBlock', 'BoxBlock', 'VotesBlock', 'MaskedLMBlock', 'ConditionalBlock'),
    *('Sigmoid', 'Flow', 'os.system', 'builtins.eval', 'evil_module.Evil', 'evil_module', '__import__("evil_module")'),
    *('/etc/passwd', '/dev/zero', '../../x', '~', 'file:///etc/passwd', 'http://127.0.0.1:9/x', 'hf-hub:a/b'),
    *('local-dir:/tmp', 'float64', 'float32', 'int64', 'bool', 'O', 'object', 'f8,f8', '>f4', 'V100000000', 'M8[ns]'),
    *('U100000000', 'balanced', 'focal', 'train', 'mse', 'huber', 'resnet18', 'vit_b_16', 'get_model', 'crop', 'pad'),
]
VALUES = [
    *([], {}, [[]], [None], [1] * 5000, ['a'] * 3, {'': 0}, {'a': None}, [float('nan')] * 2, [[1, 2], [3]], [1, 'a']),
    *(
        {'tuple': 1},
        {'tuple': [[1]]},
        {'tuple': []},
        {'float': 'x'},
        {'float': [1]},
        {'float': 'nan'},
        {'float': 'inf'},
    ),
    *({'date': 1}, {'date': 'never'}, {'date': '2020-01-01'}, {'timestamp': 'x'}, {'timestamp': 1e300}),
    *({'timestamp': None}, {'timestamp': []}, {'timestamp': 10**30}, {'timestamp': '2020-01-01 Europe/Oslo'}),
    *({'timestamp': '1 ' * 20_000}, {'timestamp': 'a' * 100_000}, {'timestamp': True}, {'tuple': [{'date': 'x'}]}),
    *({'list': 1}, {'list': [[]]}, {'pairs': 1}, {'pairs': [1]}, {'pairs': [[[], 1]]}, {'pairs': [[{'list': []}, 1]]}),
    *({'array': [1], 'dtype': 'O'}, {'array': [1], 'dtype': 'f8,f8'}, {'array': [[1], [1, 2]], 'dtype': 'float64'}),
    *({'array': ['x'], 'dtype': 'int64'}, {'array': [1], 'dtype': 'V100000000'}, {'array': [1], 'dtype': 7}),
    *({'array': [10**30], 'dtype': 'int8'}, {'array': [], 'dtype': 'bool'}, {'array': {}, 'dtype': 'float32'}),
]
NAMES = ['', 'x', 'name', 'flow', 'block', 'given', 'tasks', 'format', 'version', 'self', 'args', 'kwargs', '__class__']
NAMES += ['__init__', 'config', 'vocab', 'note', 'na', 'weight_col', 'n_points', 'hidden', 'mirror', 'uses', 'within']


def places(tree):
    "All values of a tree: pairs of what holds it and its key there"
    found, left = [], [tree]
    while left:
        holder = left.pop()
        for key in holder if isinstance(holder, dict) else range(len(holder)):
            found.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                left.append(holder[key])
    return found


def any_value(rng, others):
    "Something that may stand in a file, of whatever type; one of `others`, too"
    return deepcopy(rng.choice(rng.choice([NUMBERS, NUMBERS, WORDS, WORDS, CONDITIONS, VALUES, list(LONG), others])))


def change_tree(tree, rng, others=(None,)):
    "Keys dropped and renamed; values doubled, wrapped, put elsewhere, and taken out of `any_value`; in place"
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if not (found := places(tree)):
            return
        holder, key = rng.choice(found)
        how = rng.randrange(10)
        if how == 0:
            del holder[key]
        elif how == 1 and isinstance(holder, dict):
            names = [*NAMES, *(key for _, key in found if isinstance(key, str))]
            holder[rng.choice(names)] = holder.pop(key) if rng.random() < 0.5 else any_value(rng, others)
        elif how == 1:
            holder.insert(key, deepcopy(holder[key]))
        elif how == 2:
            other, its_key = rng.choice(found)
            holder[key] = deepcopy(other[its_key])
        elif how == 3:
            value = holder[key]
            holder[key] = rng.choice([[value], [value] * 3, {'a': value}, {'tuple': [value]}, {'list': [value]}])
        else:
            holder[key] = any_value(rng, others)


def as_text(tree, rng):
    "JSON of a tree, at times with a key that stands twice"
    text = json.dumps(tree)
    for mark, long in LONG.items():
        text = text.replace(f'"{mark}"', long)
    keys = re.findall(r'"\w+":', text[:5000]) if rng.random() < 0.05 else []
    return text.replace(rng.choice(keys), rng.choice(keys), 1) if keys else text


# ---- files that are as they should be ------------------------------------------------------------------------------
def flows():
    "Small flows, which together have all that a file can say of one"
    gate, kind = BinaryBlock('gate', threshold=0.4, vocab=('no', 'yes')), SingleLabelBlock('kind', vocab=['a', 'b', 3])
    stars = OrdinalBlock('stars', vocab=[1, 2, 3], mirror='reverse') | any_of(~gate, kind.ne('b'))
    unsure = BinaryBlock('deep', uncertain={-1: 0.6}, pos_weight=3.0) | stars.between(1, 2)
    unsure.note = ['a remark', 'of two lines']
    yield Flow('f', gate, kind | gate, stars, unsure, infer_labels=True)
    x = BoundedRegressionBlock('x', y_range=(0, 64), loss='huber', hidden=4)
    tags = MultiLabelBlock('tags', vocab=['p', 'q'], threshold=[0.2, 0.7], tune='f1_micro') | kind.isin(['a', 'b'])
    z = UnboundedRegressionBlock('z', normalise=False, weight=2) | (tags.has('q') & (x > 31))
    more = Flow('more', tags, x, z, features='neck', weight_col='w', na=('none', -1))
    yield Flow('f', kind, more, CountBlock('n', uses='kind', weight_col='w', detach_uses=True))
    sub = SingleLabelBlock('sub', within=('kind', {'a1': 'a', 'b1': 'b'}), label_smoothing=0.1, decode='joint')
    votes = VotesBlock('shape', cols={'disk': 'd', 'ball': 'e'}, loss='dirichlet')
    disks = votes.share('disk') > 0.3
    days = SingleLabelBlock('days', vocab=[pd.Timestamp('2024-02-29'), (1, 'a'), None, 2.5, True], loss='focal')
    yield Flow('f', kind, sub, votes, days | disks)
    eyes = Flow('eyes', BinaryBlock('left'), BinaryBlock('right', col=(1, 'r')), mirror=[('left', 'right')])
    points = KeypointsBlock('points', n_points=2, flip_pairs=[('1', '2')], outside='clamp')
    listed = MultiLabelBlock('listed', cols=['c 1', 'c 2'], vocab=['p', 'q'], mirror={'p': 'q'})
    yield Flow('f', eyes, points, BoxBlock('box', fmt='xyxy'), listed, normalise=True)


def table(n=24):
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(i=range(n), gate=rng.choice(['no', 'yes'], n), kind=rng.choice(list('abc'), n)))
    df['tags'], df['z'] = rng.choice(['p', 'p,q', 'q', ''], n), rng.normal(5, 2, n)
    df['stars'], df['n'], df['deep'] = rng.integers(1, 4, n), rng.integers(0, 5, n), rng.integers(0, 2, n)
    df['valid'], df['key'] = np.arange(n) % 3 == 0, [f'row {i}' for i in range(n)]
    return df


def small_flow():
    gate, kind, stars = BinaryBlock('gate', vocab=('no', 'yes')), SingleLabelBlock('kind'), OrdinalBlock('stars')
    tags = MultiLabelBlock('tags', threshold=0.4) | kind.isin(['a', 'b'])
    more = Flow('more', tags, UnboundedRegressionBlock('z'))
    return Flow('f', gate, kind | gate, more, stars, CountBlock('n') | (stars > 1), BinaryBlock('deep') | ~gate)


def picture(row):
    return PILImage.create(np.full((16, 16, 3), 5 * int(row['i']), dtype=np.uint8))


def small_body(pretrained=False):
    layers = ConvLayer(3, 4, stride=2), ConvLayer(4, 4, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(4, 1))


def learner(folder, arch, size, **kwargs):
    dls = DataBlock(
        blocks=(ImageBlock, small_flow()),
        get_x=picture,
        splitter=IndexSplitter(range(8)),
        item_tfms=Resize(size, method='squish'),
        batch_tfms=[Normalize.from_stats(*imagenet_stats, cuda=False)],
    ).dataloaders(table(), bs=8, num_workers=0, device='cpu')
    learn = conditional_vision_learner(dls, arch, pretrained=False, normalize=False, path=folder, **kwargs)
    learn.loss_func.temperatures = {'kind': 1.7}
    learn.loss_func.decisions.limits = {'gate': SetLimits(0.9, ((0.5, 0.6),), 3)}
    return learn


class Mutated:
    "A kind of file: it writes one as it should be, writes mutations of it, and reads what stands there"

    share = 20  # one of so many mutations
    kind: object = None  # what a file of this kind is read as

    def __init__(self, folder):
        self.folder, self.others = Path(folder), [str(Path(folder).parent / 'bait' / 'flow.json')]
        self.folder.mkdir(parents=True)
        self.write()

    def write(self):
        raise NotImplementedError

    def mutate(self, rng):
        raise NotImplementedError

    def read(self):
        raise NotImplementedError

    def check(self, found):
        "Raise unless what was read is of the kind"
        if type(found) is not self.kind:
            raise Wrong(f'is read as {type(found).__name__}')


class FlowFile(Mutated):
    share, kind = 1, Flow

    def write(self):
        self.path, self.contents = self.folder / 'flow.json', [flow.to_json().encode() for flow in flows()]
        self.path.write_bytes(self.contents[0])

    def mutate(self, rng):
        content = rng.choice(self.contents)
        if rng.random() < 0.3:
            content = changed_bytes(content, rng)
        else:
            tree = json.loads(content)
            change_tree(tree, rng, self.others)
            content = as_text(tree, rng).encode('utf-8', 'surrogatepass')
        self.path.write_bytes(content)

    def read(self):
        return Flow.from_json(self.path)

    def check(self, found):
        "What was read is written, and read as the same"
        super().check(found)
        repr(found)
        try:
            text = found.to_json()
        except FlowError:
            return
        if Flow.from_json(text).to_json() != text:
            raise Wrong(f'another flow out of its JSON: {text[:500]}')


class SafeFile(Mutated):
    kind = Predictor

    def write(self):
        self.learn = learner(self.folder, small_body, 16, lin_ftrs=[8])
        self.model = deepcopy(self.learn.model)
        self.keep(self.learn)

    def keep(self, learn):
        self.path = learn.save_safe(self.folder / 'a.safetensors')
        self.content = self.path.read_bytes()
        self.header = read_header(self.path)
        n = 8 + int.from_bytes(self.content[:8], 'little')
        self.outer, self.weights = json.loads(self.content[8:n]), self.content[n:]

    def mutate(self, rng):
        how = rng.random()
        if how < 0.2:
            self.path.write_bytes(changed_bytes(self.content, rng, len(self.content) - len(self.weights)))
            return
        outer = deepcopy(self.outer)
        if how < 0.35:
            change_tree(outer, rng, self.others)
        else:
            header = deepcopy(self.header)
            change_tree(self.part(header, rng), rng, self.others)
            outer['__metadata__'] = {FORMAT: as_text(header, rng)}
        head = json.dumps(outer).encode()
        self.path.write_bytes(len(head).to_bytes(8, 'little') + head + self.weights)

    def part(self, header, rng):
        "What to change of a header: all of it, or one of its parts"
        parts = [header[key] for key in ('flow', 'learnt', 'pictures', 'limits')]
        return header if rng.random() < 0.4 else rng.choice(parts)

    def read(self):
        return load_safe(self.path, self.model)

    def check(self, found):
        "What was read says of itself what it is, and predicts"
        super().check(found)
        repr(found)
        try:
            found.predict_df([Image.new('RGB', (16, 12))])
        except FlowError:
            return


class NetworkFile(SafeFile):
    share = 500

    def write(self):
        from torchvision.models import squeezenet1_1

        with contextlib.suppress(ImportError):
            import timm  # noqa: F401  files name its architectures, too, and the import takes seconds
        self.keep(learner(self.folder, squeezenet1_1, 64))
        assert self.header['network'] is not None

    def part(self, header, rng):
        if rng.random() < 0.3:
            network = header['network']
            arguments = network.setdefault('args', {})
            names = ['concat_pool', 'pool', 'lin_ftrs', 'ps', 'first_bn', 'bn_final', 'lin_first', 'n_in']
            arguments[rng.choice(names)] = rng.choice([0, 1, 4, 0.5, True, False, [8], [8, 8], [2**16] * 3, [1] * 5000])
        return header if rng.random() < 0.1 else header['network']

    def read(self):
        return load_safe(self.path)


class TextsFile(SafeFile):
    share = 500

    def write(self):
        from fastai_condmtl.datasets.tiny_encoder import save_tiny_encoder
        from fastai_condmtl.text.all import ConditionalTransformerDataLoaders, conditional_transformer_learner
        from fastai_condmtl.text.transformer_safe import TextPredictor

        df = table()
        df['text'] = [f'{kind} of {tags} at {n}' for kind, tags, n in zip(df.kind, df.tags, df.n)]
        encoder = save_tiny_encoder(self.folder / 'encoder', df.text, 60, 8, 1, 16)
        dls = ConditionalTransformerDataLoaders.from_df(
            df, small_flow(), encoder, splitter=IndexSplitter(range(8)), bs=8, num_workers=0
        )
        self.kind = TextPredictor
        self.keep(conditional_transformer_learner(dls, path=self.folder))

    def mutate(self, rng):
        "Also the JSON of the tokenizer, which keeps its length"
        whole, (start, stop) = self.weights, self.outer['texts.tokenizer']['data_offsets']
        if rng.random() < 0.4:
            tree = json.loads(whole[start:stop])
            change_tree(tree, rng, self.others)
            text = as_text(tree, rng).encode().ljust(stop - start)[: stop - start]
            self.weights = whole[:start] + text + whole[stop:]
        super().mutate(rng)
        self.weights = whole

    def part(self, header, rng):
        return rng.choice([header, header['network'], header['network']['encoder'], header['texts']])

    def read(self):
        return load_safe(self.path)

    def check(self, found):
        Mutated.check(self, found)
        repr(found)
        try:
            found.predict_df(['a of p at 3'])
        except FlowError:
            return


class ThresholdsFile(Mutated):
    kind = dict

    def write(self):
        self.learn = learner(self.folder, small_body, 16, lin_ftrs=[8])
        self.path = self.learn.save_thresholds(self.folder / 'thresholds.json')
        self.contents = [self.path.read_bytes()]

    mutate = FlowFile.mutate

    def read(self):
        self.learn.load_thresholds(self.path)
        return dict(self.learn.loss_func.thresholds)

    def check(self, found):
        super().check(found)
        for path, threshold in found.items():
            if (
                threshold.numel() not in (1, self.learn.dls.flow.tasks[path].n_targets)
                or not threshold.isfinite().all()
            ):
                raise Wrong(f'the threshold of {path!r} is {threshold}')


class PictureFiles(Mutated):
    kind = list

    def write(self):
        rng = np.random.default_rng(0)
        self.files = [self.folder / f'{i}.png' for i in range(4)]
        for i, file in enumerate(self.files):
            Image.fromarray(rng.integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)).save(file)
        with contextlib.redirect_stdout(io.StringIO()):
            cache = PictureCache(self.folder / 'cache', 20).build(self.files)
        self.index, self.pixels = cache.folder / 'index', cache.folder / 'pixels'
        self.whole = self.index.read_bytes(), self.pixels.read_bytes()

    def mutate(self, rng):
        index, pixels = self.whole
        how = rng.random()
        if how < 0.3:
            index = changed_bytes(index, rng)
        elif how < 0.5:
            pixels = changed_bytes(pixels, rng)
        else:
            index = index[: ENTRY.itemsize] + self.forged(index[ENTRY.itemsize :], pixels, rng)
        self.index.write_bytes(index)
        self.pixels.write_bytes(pixels)

    def forged(self, entries, pixels, rng):
        "Entries with other values, whose check sums fit"
        entries = np.frombuffer(entries, ENTRY).copy()
        for _ in range(rng.choice([1, 1, 2, 4])):
            entry, name = entries[rng.randrange(len(entries)) :][:1], rng.choice(ENTRY.names[2:-1])
            if name == 'mode':
                entry[name] = rng.choice([b'', b'L', b'P', b'1', b'F', b'RGBA', b'LAB', b'I;16', b'evil', b'\xff\xfe'])
            else:
                limits = np.iinfo(ENTRY[name])
                value = rng.choice([0, 1, -1, 7, 10**5, 2**31 - 1, 2**40, limits.min, limits.max, limits.max - 50])
                entry[name] = min(max(value, limits.min), limits.max)
            if rng.random() < 0.7:
                start, length = int(entry['start'][0]), int(entry['length'][0])
                entry['crc'] = zlib.crc32(memoryview(pixels)[start : start + length])
        entries['check'] = check_sums(entries)
        return entries.tobytes()

    def read(self):
        cache = PictureCache(self.folder / 'cache', 20)
        return [cache.get(file) for file in self.files]

    def check(self, found):
        super().check(found)
        for one in found:
            if one is not None and (type(one) is not PILImage or np.asarray(one).size > 10**6):
                raise Wrong(f'a picture is read as {one!r}')


class PackedFile(Mutated):
    kind = PackedLabels

    def write(self):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            packed = encode_pieces(small_flow(), [table()], self.folder / 'p', valid_col='valid', key_col='key')
        self.path, self.content, self.facts = packed.path, packed.path.read_bytes(), packed.facts
        length = int.from_bytes(self.content[-len(MAGIC) - 8 : -len(MAGIC)], 'little')
        self.rows = self.content[: -len(MAGIC) - 8 - length]

    def mutate(self, rng):
        if rng.random() < 0.4:
            self.path.write_bytes(changed_bytes(self.content, rng))
            return
        rows = changed_bytes(self.rows, rng) if rng.random() < 0.2 else self.rows
        facts = deepcopy(self.facts)
        change_tree(facts, rng, self.others)
        text = as_text(facts, rng).encode()
        for _ in range(2):  # the size of the file is right, unless it was changed
            size = len(rows) + len(text) + 8 + len(MAGIC)
            text = re.sub(rb'"size": \d+\}$', b'"size": %d}' % size, text)
        self.path.write_bytes(rows + text + len(text).to_bytes(8, 'little') + MAGIC)

    def read(self):
        packed = PackedLabels(self.path)
        repr(packed), packed[np.arange(len(packed))]
        for side in ('train', 'valid', 'test'):
            np.asarray(packed.positions(side))
        if packed.keys is not None:
            packed.keys.some(0, 10**9)
        return packed


KINDS = dict(
    flow=FlowFile,
    safe=SafeFile,
    network=NetworkFile,
    texts=TextsFile,
    thresholds=ThresholdsFile,
    pictures=PictureFiles,
    packed=PackedFile,
)


# ---- one after the other -------------------------------------------------------------------------------------------
def prepared(name, folder):
    "A kind of file with all that it takes to read one loaded, beside a bait that none may touch"
    folder = Path(folder)
    bait = folder / 'bait'
    if not bait.is_dir():
        bait.mkdir()
        Flow('bait', BinaryBlock('x')).to_json(bait / 'flow.json')
        (bait / 'evil_module.py').write_text('raise SystemExit("imported")')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        kind = KINDS[name](folder / name)
        kind.check(kind.read())
    WATCH.known = frozenset(module.partition('.')[0] for module in sys.modules) | sys.stdlib_module_names | {'timm'}
    return kind


def why_wrong(kind, rng, seconds=SECONDS):
    "Read one mutation: how it ended, and what is wrong with that (None: nothing)"
    kind.mutate(rng)
    wrong, ended, started = None, 'read', time.monotonic()
    with WATCH.on(kind.folder) as seen:
        try:
            with within(seconds):
                kind.check(kind.read())
        except FlowError as e:
            ended, wrong = 'refused', f'takes too much memory: {str(e)[:500]}' if lacked_memory(e) else None
        except KeyboardInterrupt:
            raise
        except Hang as e:
            wrong = f'hangs: {e}'
        except BaseException as e:
            wrong = f'{type(e).__name__}: {str(e)[:500]}'
    took = time.monotonic() - started
    if seen:
        wrong = f'does what it may not: {seen[0]}'
    elif wrong is None and took > seconds:
        wrong = f'takes {took:.0f} s'
    return ended, wrong


def read_mutated(kind, n, seed=0, told=lambda seed, wrong: None, seconds=SECONDS):
    "How `n` mutations ended; what went wrong, by seed"
    ends, wrongs = Counter(), {}
    with at_most(MEMORY), bait_on_path(kind.folder.parent / 'bait'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for i in range(seed, seed + n):
            ended, wrong = why_wrong(kind, random.Random(f'{type(kind).__name__} {i}'), seconds)
            ends[ended if wrong is None else 'WRONG'] += 1
            if wrong is not None:
                wrongs[i] = wrong
                told(i, wrong)
    return ends, wrongs


@contextlib.contextmanager
def bait_on_path(folder):
    "A module that no file may import could be imported by its name"
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=100_000)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--kind', nargs='+', default=list(KINDS), choices=list(KINDS))
    p.add_argument('--only', type=int, help='this one seed, with its traceback')
    a = p.parse_args()
    torch.set_num_threads(1)
    n_wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for name in a.kind:
            kind = prepared(name, folder)
            if a.only is not None:
                kind.mutate(random.Random(f'{type(kind).__name__} {a.only}'))
                kind.check(kind.read())
                continue
            started, n = time.monotonic(), -(-a.n // kind.share)
            told = lambda seed, wrong: print(f'WRONG --kind {name} --only {seed}: {wrong!r}', flush=True)
            ends, wrongs = read_mutated(kind, n, a.seed, told)
            n_wrong += len(wrongs)
            print(f'{name:10} {n:7} in {time.monotonic() - started:.0f} s:', dict(ends), flush=True)
    return n_wrong > 0


if __name__ == '__main__':
    sys.exit(main())
