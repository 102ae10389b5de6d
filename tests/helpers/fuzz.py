"""Hostile tables, flows, images and files of flows, as many as time allows: each must end in a right answer or in
one clear error. `python tests/helpers/fuzz.py --minutes 10 --seed 0` prints the count tried and the count wrong,
with the seed of each."""

from __future__ import annotations
import contextlib, datetime as dt, io, json, math, os, pickle, random, re, signal, sys, tempfile, time, warnings
from collections import Counter
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
import numpy as np, pandas as pd, torch
from PIL import Image
from fastai_condmtl.all import *
from fastai_condmtl.core.errors import FlowError
from fastai_condmtl.tasks.box import BoxBlock
from fastai_condmtl.tasks.keypoints import KeypointsBlock
from oracle import Oracle, build, resolve, walk
from random_flows import random_spec, random_table


class Wrong(AssertionError):
    "What a case must not do"


class Hang(BaseException):
    "A case that takes too long"


# ---- what a cell says, told row by row and value by value
# -------------------------------------------------------------
MISSING, BAD, EITHER = 'missing', 'bad', 'either'


def missing(v):
    v = item(v)
    try:
        return v is None or v is pd.NA or v is pd.NaT or bool(v != v)
    except Exception:
        return False


def same(a, b):
    a, b = item(a), item(b)
    try:
        return type(a == b) in (bool, np.bool_) and bool(a == b) and hash(a) == hash(b)
    except Exception:
        return False


def item(v):
    """A tensor or array of one value is that value; a whole number of NumPy is one of Python, which can be compared
    with `Decimal`, and a date or duration of NumPy is one of pandas, whatever its unit"""
    if isinstance(v, (torch.Tensor, np.ndarray)) and v.ndim == 0:
        v = v[()] if isinstance(v, np.ndarray) else v.item()
    if isinstance(v, np.integer) and not isinstance(v, np.timedelta64):
        return int(v)
    if isinstance(v, (np.datetime64, np.timedelta64)):
        try:
            return pd.Timestamp(v) if isinstance(v, np.datetime64) else pd.Timedelta(v)
        except ValueError:
            return v
    return v


def half(v):
    "Does text hold half of a character?"
    return isinstance(v, str) and any('\ud800' <= letter <= '\udfff' for letter in v)


def hashable(v):
    v = item(v)
    try:
        hash(v)
    except Exception:
        return False
    return getattr(v, 'ndim', 0) == 0 or isinstance(v, np.generic)


def says_binary(v, words):
    v = item(v)
    for i, w in enumerate(words or ()):
        if same(v, w):
            return bool(i)
    return True if same(v, 1) else False if same(v, 0) else BAD


WORDS_OF_TRUTH = [('no', 'yes'), ('false', 'true'), ('n', 'y'), ('0', '1'), ('-1', '1')]


def says_yes_or_no(values):
    """What each cell of a column without words of its own says. Two words of one pair are no and yes. Of words
    beside other things, and of -1, the
    library may say either: what it makes of them depends on the block's other columns"""
    known = [item(v) for v in values if not missing(v)]
    words = {v.strip().lower() for v in known if isinstance(v, str)}
    pair = next((p for p in WORDS_OF_TRUTH if words and words <= set(p)), None)

    def one(v):
        v = item(v)
        if missing(v):
            return None
        if isinstance(v, str) and pair is not None:
            alone = all(isinstance(w, str) for w in known) and len(set(known)) <= len(words)
            return v.strip().lower() == pair[1] if alone else EITHER
        return EITHER if same(v, -1) else says_binary(v, None)

    return [one(v) for v in values]


def says_number(v, _=None):
    v = item(v)
    if isinstance(
        v, (complex, np.complexfloating, dt.date, dt.timedelta, np.datetime64, np.timedelta64)
    ) or not isinstance(v, (bool, np.bool_, int, float, np.number, Decimal, Fraction)):
        return BAD
    try:
        x = float(v)
    except (OverflowError, ValueError):
        return BAD
    return x if math.isfinite(x) else BAD


def has_an_order(v):
    "Is it a number that is larger or smaller than others?"
    return isinstance(v, (int, float, np.number, np.bool_, Fraction)) and not isinstance(v, np.complexfloating)


def says_count(v, _=None):
    x = says_number(v)
    return x if x is BAD or 0 <= x <= 2**53 and x % 1 == 0 else BAD


def says_coordinates(v, n, in_pairs=False):
    """The n numbers of a list, None where missing. They may stand in lists within it, as corners and points do
    (`in_pairs`: they are about to), where a gap is a whole point"""
    v = item(v)
    if not isinstance(v, (list, tuple, np.ndarray, torch.Tensor)) or getattr(v, 'ndim', 1) == 0:
        return BAD
    numbers, is_list = [], lambda x: isinstance(x, (list, tuple)) or getattr(x, 'ndim', 0) > 0
    items = list(map(item, v))
    nested = not in_pairs and any(map(is_list, items))
    for x in items:
        if nested and not is_list(x) and not missing(x):
            return BAD
        numbers += [x] if not nested else [None, None] if missing(x) else list(x)
    read = [None if missing(x) else says_number(x) for x in numbers]
    return BAD if BAD in read or len(read) != n else read


def says_class(v, vocab):
    v = item(v)
    if not hashable(v) or half(v):
        return BAD
    return v if vocab is None else next((w for w in vocab if same(v, w)), BAD)


def says_labels(v, vocab, delim):
    v = item(v)
    if isinstance(v, str):
        ls = [l for p in v.split(delim) if (l := p.strip())]
    elif isinstance(v, (list, tuple, set, frozenset)) or isinstance(v, np.ndarray) and v.ndim == 1:
        ls = list(v)
    elif isinstance(v, (int, float)) and not isinstance(v, bool):
        ls = [str(int(v)) if isinstance(v, int) or v.is_integer() else str(v)]
    else:
        return EITHER
    ls = list(map(item, ls))
    if any(missing(l) or not hashable(l) or half(l) for l in ls):
        return BAD
    if vocab is None:
        return ls
    found = [next((w for w in vocab if same(l, w)), BAD) for l in ls]
    return BAD if BAD in found else found


def read_column(task, column):
    "What each cell of a column says: a label, None where missing, BAD, or EITHER"
    kind, vocab = task['kind'], task.get('vocab') if task.get('vocab_given', True) else None
    if kind == 'cols' or kind == 'binary' and not task.get('vocab'):
        return says_yes_or_no([column.iloc[i] for i in range(len(column))])

    def one(v):
        if missing(v):
            return None
        if kind == 'binary':
            return says_binary(v, task.get('vocab'))
        if kind == 'count':
            return says_count(v)
        if kind == 'multi':
            return says_labels(v, vocab, task.get('label_delim', ','))
        if kind in ('bounded', 'unbounded'):
            x, r = says_number(v), task.get('y_range')
            return (
                BAD
                if x is not BAD
                and kind == 'bounded'
                and r
                and not r[0] - 1e-6 * abs(r[0]) <= x <= r[1] + 1e-6 * abs(r[1])
                else x
            )
        x = says_class(v, vocab)
        return BAD if kind == 'ordinal' and vocab is None and not has_an_order(item(v)) and x is not BAD else x

    return [one(column.iloc[i]) for i in range(len(column))]


# ---- what is hostile
# --------------------------------------------------------------------------------------------------
class OddEq:
    "Compares with nothing"

    def __eq__(self, o):
        raise RuntimeError('compared')

    def __hash__(self):
        return 7

    def __repr__(self):
        return 'OddEq()'


class OddHash:
    "Cannot be hashed, in an odd way"

    def __hash__(self):
        raise ValueError('hashed')

    def __repr__(self):
        return 'OddHash()'


GAPS = [None, float('nan'), pd.NA, pd.NaT, np.datetime64('NaT'), Decimal('NaN'), np.float32('nan')]
NUMBERS = [
    0,
    1,
    2,
    -1,
    1e300,
    -1e308,
    5e-324,
    10**400,
    2**63,
    -(2**70),
    np.int8(1),
    np.uint64(2**64 - 1),
    np.float16(1),
    np.float32(0.1),
    Decimal('1'),
    Decimal('0.5'),
    Fraction(1, 2),
    0.1,
    -0.0,
    2**24 + 1,
    1e16,
]
ODD = [
    float('inf'),
    -float('inf'),
    np.float32('inf'),
    Decimal('Infinity'),
    1 + 0j,
    2j,
    True,
    False,
    np.True_,
    b'1',
    b'\xff',
    bytearray(b'1'),
    [],
    [1],
    [None],
    ['a', ['b']],
    {},
    {'a': 1},
    set(),
    {'red'},
    frozenset({1}),
    (),
    (1,),
    (float('nan'),),
    len,
    object,
    np.array(1),
    np.array([1, 2]),
    np.zeros((2, 2)),
    np.array(['red'], dtype=object),
    torch.tensor(1.0),
    torch.tensor([1.0, 2.0]),
    pd.Timestamp('2020-01-01'),
    pd.Timedelta(1, 'D'),
    dt.date(2020, 1, 1),
    dt.time(1),
    PurePosixPath('x'),
    Ellipsis,
    NotImplemented,
    ValueError('x'),
    np.str_('red'),
    np.bytes_(b'red'),
    pd.Interval(0, 1),
    pd.Period('2020'),
    range(3),
    memoryview(b'x'),
    slice(1),
    OddEq(),
    OddHash(),
    Image.new('L', (2, 2)),
    np.datetime64('2020-01-01'),
]
TEXT = [
    '',
    ' ',
    'nan',
    'None',
    'NA',
    '1',
    '0',
    'True',
    'yes',
    'no',
    'red',
    'Red',
    ' red ',
    'a,b',
    ',',
    ',,',
    ';',
    'a|b',
    '\x00',
    'a\x00b',
    '\ud800',
    '\U0001f600',
    '👩\u200d👩\u200d👧',
    'שלום',
    'ا\u0644',
    '\u202ered',
    'e\u0301',
    '\xe9',
    '\ufeff',
    '\n',
    'a\nb',
    "'",
    '"',
    '\\',
    '%s',
    '{x}',
    '{',
    '<b>',
    '=1+1',
    'x.png',
    '../x',
    'loss',
    'a.b',
    'a' * 5000,
    '１',
    'ﬁ',
    'ß',
    'İ',
    '\u2028',
    '$x_1$',
]
CELLS = GAPS + NUMBERS + ODD + TEXT
NAMES = [
    'x',
    'a b',
    ' x',
    'שם',
    '😀',
    'e\u0301',
    'é',
    "o'clock",
    'a"b',
    'a|b',
    '~a',
    'a & b',
    'any_of',
    'task',
    'x\x00y',
    '{0}',
    '%d',
    '<b>',
    'a\\',
    'a\tb',
    'true',
    'None',
    'class',
    '1',
    '-',
    'a' * 300,
    '\u202ea',
    'a;b',
    'ﬁ',
    '$a$',
    'a:b',
    '"',
    "'",
    'a\u2028b',
    '(',
    'not',
]
WORDS = [
    'red',
    'Red',
    ' red',
    '',
    ' ',
    'a b',
    'a,b',
    'a;b',
    'a|b',
    '\x00',
    '\ud800',
    '😀',
    'שלום',
    'e\u0301',
    'é',
    "'",
    '"',
    '\\',
    'None',
    'nan',
    'True',
    '1',
    1,
    0,
    -1,
    2.5,
    True,
    2**80,
    10**400,
    (1, 'a'),
    (),
    dt.date(2020, 1, 1),
    pd.Timestamp('2020-01-01'),
    Decimal('1.5'),
    b'x',
    'x.png',
    'a' * 2000,
    1e300,
    '{',
    '%s',
    float('inf'),
    frozenset({1}),
    np.float32(0.1),
    np.int64(7),
    '\n',
    '1.0',
    'no',
    'yes',
]
DTYPES = [
    object,
    object,
    'category',
    'string',
    'str',
    'Int64',
    'Float64',
    'boolean',
    'float32',
    'float16',
    'int8',
    'float64',
    'bool',
    'complex128',
    'datetime64[ns]',
    'string[pyarrow]',
    'arrow',
    'Sparse[float64]',
]


def typed(col, rng):
    "A column in another dtype, where its cells can be held by it"
    d = rng.choice(DTYPES)
    if not all(
        v is pd.NA
        or v is pd.NaT
        or isinstance(v, (str, bool, float, Decimal, type(None), np.number))
        or isinstance(v, int)
        and abs(v) < 2**63
        for v in col
    ):
        return col  # pandas itself does not survive some
    try:
        if d == 'arrow':
            import pyarrow as pa

            return pd.Series(
                pd.arrays.ArrowExtensionArray(pa.array(col.tolist(), from_pandas=True)), index=col.index, name=col.name
            )
        if d == 'category' and rng.random() < 0.3:
            return col.astype(pd.CategoricalDtype(ordered=True))
        return col.astype(d)
    except Exception:
        return col


def odd_index(n, rng):
    return rng.choice(
        [
            None,
            [7] * n,
            [str(i) for i in range(n)],
            list(range(n))[::-1],
            pd.MultiIndex.from_arrays([[1] * n, list(range(n))]),
            pd.date_range('2020', periods=n),
            [None] * n,
            [float('nan')] * n,
            ['é😀\x00'] * n,
        ]
    )


def rename(spec, rng, p=0.5):
    "The same flow with hostile names: of tasks, flows and classes"
    names, used = {}, set()

    def new(name):
        if name not in names:
            left = [n for n in NAMES if n not in used]
            names[name] = rng.choice(left) if left and rng.random() < p else name
            used.add(names[name])
        return names[name]

    entries, words = {}, {}
    for path, t, *_ in walk(spec):
        entries[path] = t
        if (
            t['kind'] not in ('single', 'ordinal', 'multi')
            or rng.random() > p
            or t['kind'] == 'ordinal'
            and not t['vocab_given']
        ):
            continue
        kinds, pick = [w for w in WORDS if t['kind'] != 'multi' or isinstance(w, str)], []
        for w in rng.sample(kinds, len(kinds)):
            if len(pick) < len(t['vocab']) and not any(same(w, x) for x in pick):
                pick.append(w)
        if not t['vocab_given']:
            try:
                sorted(pick)
            except Exception:
                continue
        words[path] = list(zip(t['vocab'], pick))
    put = lambda path, v: next((b for a, b in words.get(path, ()) if type(a) is type(v) and a == v), v)

    def cond(c, prefixes):
        if not c:
            return c
        kind, *rest = c
        if kind != 'atom':
            return (kind, *[cond(x, prefixes) for x in rest])
        name, op, arg = rest
        path = resolve(name, prefixes, entries)
        t = entries[path]
        if t['kind'] in ('single', 'ordinal', 'multi'):
            arg = (
                tuple(put(path, a) for a in arg)
                if op in ('isin', 'has_any', 'has_all') or op == 'between'
                else put(path, arg)
            )
        return ('atom', '.'.join(map(new, name.split('.'))), op, arg)

    def node(x, prefixes):
        res = dict(x, given=cond(x['given'], prefixes))
        if x['kind'] == 'flow':
            return dict(
                res,
                name=new(x['name']) if prefixes != ('',) or x is not spec else x['name'],
                items=[
                    node(i, ((prefixes[0] + x['name'] + '.',) + prefixes) if x is not spec else prefixes)
                    for i in x['items']
                ],
            )
        path = prefixes[0] + x['name']
        if path in words:
            res['vocab'] = [b for _, b in words[path]]
        if x['kind'] != 'cols':
            res.update(name=new(x['name']), col=res['col'] or x['name'])
        else:
            res.update(name=new(x['name']))
        return res

    return node(spec, ('',))


# ---- what must hold of any answer
# -------------------------------------------------------------------------------------
@contextlib.contextmanager
def within(seconds):
    "Raise `Hang` after so many seconds"

    def stop(*_):
        raise Hang(f'more than {seconds} s')

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


FIXES = re.compile(
    (
        r"correct|leave|use |name |give|write|hand over|add |convert|turn|make|rename|keep|check|replace|parse|say "
        r"|label|fill|drop|take|compare|pick|unpack|put |install|set |must |multiply|there (is|are) |did you "
        r"mean|look|holds|call |update|condition on "
    ),
    re.I,
)


def clear(e, *names):
    "An error says where and what to do"
    text = str(e)
    if len(text) < 25 or not FIXES.search(text):
        raise Wrong(f"unclear error: {text!r}")
    if len(text) > 8000:
        raise Wrong(f"an error of {len(text)} characters: {text[:200]!r}")
    if names and not any(n in text or repr(n) in text or repr(n)[1:-1] in text for n in names):
        raise Wrong(f"the error names none of {names[:5]}: {text[:300]!r}")
    return text


def attempt(f, *names):
    "`f()`, or the text of its one clear error"
    try:
        return f(), None
    except FlowError as e:
        return None, clear(e, *names)


def same_labels(a, b, what):
    "Packed labels that count are equal"
    a, b = (x.as_subclass(torch.Tensor).numpy() for x in (a, b))
    equal(a[:, 1], b[:, 1], what)
    equal(a[:, 0] * a[:, 1], b[:, 0] * b[:, 1], what)


def equal(a, b, what):
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or not np.array_equal(a, b):
        raise Wrong(
            f"{what}: {a.tolist() if a.size < 40 else a.shape} instead of {b.tolist() if b.size < 40 else b.shape}"
        )


# ---- cases
# ------------------------------------------------------------------------------------------------------------
def hostile_table(rng):
    """A flow and its table with hostile names and cells; the spec that the oracle reads, the bad cells, and
    points or boxes beside"""
    spec = rename(random_spec(rng, rng.choice([1, 3, 8])), rng, rng.choice([0, 0.3, 1]))
    if rng.random() < 0.15 and not any(t.get('nan_is_empty') for _, t, *_ in walk(spec)):
        spec['infer_labels'] = True  # a blank that means none implies nothing, which the oracle does not know
    whole = rng.random() < 0.8
    n = rng.choice([1, 2, 3]) if not whole else rng.randint(5, 9)
    df = as_objects(spec, random_table(rng, spec, n, whole), rng)
    share = rng.choice([0, 0, 0.03, 0.2])
    for c in df.columns:
        if rng.random() < 0.6 and share:
            col = df[c].astype(object).copy()
            for i in range(len(col)):
                if rng.random() < share:
                    col.iat[i] = rng.choice(rng.choice([GAPS, NUMBERS, ODD, TEXT]))
            df[c] = col
        if rng.random() < 0.4:
            df[c] = typed(df[c], rng)
    if (index := odd_index(len(df), rng)) is not None:
        df.index = index
    return spec, df


def as_objects(spec, table, rng):
    "The table as a DataFrame, cells as they are"
    cols = {}

    def column(vs):
        col = pd.Series([None] * len(vs), dtype=object)
        for i, v in enumerate(vs):
            col.iat[i] = rng.choice(GAPS) if v is None else v
        return col

    for path, t, *_ in walk(spec):
        vs, name = table[path], t.get('col') or t['name']
        if t['kind'] == 'cols':
            cols |= {c: column([r[j] for r in vs]) for j, c in enumerate(t['vocab'])}
            continue
        if t['kind'] == 'binary' and t.get('vocab'):
            vs = [v if v is None else t['vocab'][v] for v in vs]
        elif t['kind'] == 'multi' and rng.random() < 0.5:
            vs = [v if v is None else t.get('label_delim', ',').join(v) for v in vs]
        cols[name] = column(vs)
    return pd.DataFrame(cols)


def raw_table(spec, df):
    "What the table says: path → labels; the bad cells `(path, column, row)`, and cells of which nothing is asked"
    raw, bad, either = {}, [], False
    for path, t, *_ in walk(spec):
        cols = t['vocab'] if t['kind'] == 'cols' else [t.get('col') or t['name']]
        read = [read_column(t, df[c]) for c in cols]
        for c, vs in zip(cols, read):
            bad += [(path, c, i) for i, v in enumerate(vs) if v is BAD]
            either |= any(v is EITHER for v in vs)
        raw[path] = [list(r) for r in zip(*read)] if t['kind'] == 'cols' else read[0]
    return raw, bad, either


def inferred(spec, raw, bound):
    """The spec with the vocabularies that the table was found to have, after a check that they are just that; the
    reason why the library had to refuse, if it had"""
    for path, t, *_ in walk(spec):
        if t['kind'] not in ('single', 'ordinal', 'multi') or t.get('vocab_given', True):
            continue
        vocab, seen = (
            list(bound.tasks[path].vocab),
            [l for v in raw[path] if v is not None for l in (v if t['kind'] == 'multi' else [v])],
        )
        if lost := [v for v in seen if not any(v is w or same(v, w) for w in vocab)]:
            raise Wrong(f"'{path}': {lost[0]!r} is not in the inferred vocabulary {vocab}")
        if (
            t['kind'] == 'ordinal'
            and not isinstance(bound.tasks[path], str)
            and all(isinstance(v, (int, float)) for v in vocab)
            and vocab != sorted(vocab)
        ):
            raise Wrong(f"'{path}': order {vocab}")
        t['vocab'], t['vocab_given'] = vocab, True


def index_in(vocab, v):
    return next((i for i, w in enumerate(vocab) if v is w or same(v, w)), None)


def expected(spec, raw, bound):
    """Packed values (natural) and mask, row by row; and rows whose labels contradict each other, of which
    `infer_labels` promises nothing"""
    o, n = Oracle(spec), len(next(iter(raw.values())))
    vals, mask, clash = (
        np.zeros((n, bound.n_targets)),
        np.zeros((n, bound.n_targets), dtype=bool),
        np.zeros(n, dtype=bool),
    )
    for i in range(n):
        for p, r in o.row({q: v[i] for q, v in raw.items()}).items():
            clash[i] |= r['clash']
            t, s = o.entries[p][0], bound.slices[p].targets
            if len(r['mask']) != s.stop - s.start:
                continue  # a vocabulary without labels has one column that never counts
            mask[i, s] = r['mask']
            for j, (v, m) in enumerate(zip(r['value'], r['mask'])):
                if m:
                    vals[i, s.start + j] = index_in(t['vocab'], v) if t['kind'] in ('single', 'ordinal') else float(v)
    return vals, mask, clash


def may_refuse(text, spec, raw, df):
    """Errors that tables without a bad cell may end in: the flow asks for what the table does not hold, or cannot
    be scaled"""
    if 'the condition `' in text:  # asks for a class that an inferred vocabulary lacks
        return not all(t.get('vocab_given', True) for _, t, *_ in walk(spec)) or 'stands' in text
    if 'too large' in text or 'cannot be told in single precision' in text:
        return any(
            v is not None and abs(v) > (1e30 if 'too large' in text else 1e3)
            for p, t, *_ in walk(spec)
            if t['kind'] in ('bounded', 'unbounded', 'count')
            for v in raw[p]
        )
    if 'more than float32 holds' in text:
        numbers = [t for _, t, *_ in walk(spec) if t['kind'] in ('bounded', 'unbounded', 'count')]
        cells = [says_number(v) for t in numbers for v in df[t.get('col') or t['name']]]
        return any(v is not BAD and abs(v) > 1e30 for v in cells)
    if 'names of picture files' in text:
        return True
    if 'only numbers have an order' in text:
        return any(t['kind'] == 'ordinal' for _, t, *_ in walk(spec))
    if 'not numbers' in text or 'does not hold numbers' in text:
        return any(
            df[t.get('col') or t['name']].dtype not in (object, float)
            for _, t, *_ in walk(spec)
            if t['kind'] in ('bounded', 'unbounded', 'count')
        )
    return False


def case_table(rng):
    spec, df = hostile_table(rng)
    raw, bad, either = raw_table(spec, df)
    names = [p for p, *_ in walk(spec)] + [spec['name']]
    flow, err = attempt(lambda: build(spec, random.Random(rng.random())))
    if err:
        return 'refused flow'
    bound, err = attempt(lambda: flow.bind(df), *names)
    y = None
    if not err:
        y, err = attempt(lambda: bound.encode(df), *names)
    if err:
        if bad:
            m = re.search(r'row (\d+)', err)
            if (
                m
                and not any(int(m[1]) == i for _, _, i in bad)
                and not either
                and not re.search('the condition|text in brackets', err)
            ):
                raise Wrong(f"blames row {m[1]}, bad are {bad[:5]}: {err[:300]}")
            return 'one clear error'
        if either or may_refuse(err, spec, raw, df):
            return 'refused'
        raise Wrong(f"refuses a table that is fine: {err[:500]}")
    if bad:
        raise Wrong(
            f"reads {df[bad[0][1]].iloc[bad[0][2]]!r} of dtype {df[bad[0][1]].dtype} as a label of '{bad[0][0]}' "
            f"({type(bound.tasks[bad[0][0]]).__name__})"
        )
    if either:
        return 'read'
    inferred(spec, raw, bound)
    try:
        vals, mask, clash = expected(spec, raw, bound)
    except (
        ValueError
    ) as e:  # the oracle compares classes by place only; the library numbers also with numbers between them
        if 'is not in list' in str(e):
            return 'read'
        raise
    got = y.as_subclass(torch.Tensor).double().numpy()
    if not np.isfinite(got).all():
        raise Wrong(f"values that are not finite: {got[~np.isfinite(got)][:3]}")
    got, vals, mask = got[~clash], vals[~clash], mask[~clash]
    equal(got[:, 1] > 0, mask, 'wrong mask')
    nat = bound.to_units(torch.from_numpy(got)).numpy()[:, 0]
    slack = (
        1e-5
        * np.maximum(
            np.abs(vals),
            np.concatenate(
                [[max(abs(b.unscale(0.0)), abs(b.unscale(1.0)))] * b.n_targets for b in bound.tasks.values()]
            ),
        )
        + 1e-300
    )
    if (wrong := mask & ~(np.abs(nat - vals) <= slack)).any():
        raise Wrong(f"wrong value: {nat[wrong][:3]} instead of {vals[wrong][:3]}")
    around(flow, bound, df, y, spec)
    return 'right'


def same_after_pickling(values):
    "True if all that `values` hold equals its copy; some classes equal nothing but themselves, or cannot be compared"
    try:
        return pickle.loads(pickle.dumps(values)) == values
    except RuntimeError:
        return False


def around(flow, bound, df, y, spec):
    "Round trips: table, JSON, pickle; what prints and what looks at the table"
    for o in (flow, bound, list(flow.tasks), bound.plan.conds):
        repr(o), str(o)
    if same_after_pickling([getattr(b, 'vocab', None) for b in bound.tasks.values()]):
        equal(pickle.loads(pickle.dumps(bound)).encode(df), y, 'pickled')  # some classes equal nothing but themselves
    if not spec.get('infer_labels') and not any(
        t['kind'] in ('bounded', 'unbounded') for _, t, *_ in walk(spec)
    ):  # floats come back rounded to what float32 holds, which may move them across a limit that they stand on
        own = bound.to_frame(y)
        same_labels(bound.encode(own), y, 'through to_frame')
    else:
        bound.to_frame(y)
    text, err = attempt(flow.to_json)
    if not err:
        again = Flow.from_json(text)
        if again.to_json() != text or 'np.' not in repr(flow) and repr(again) != repr(flow):
            raise Wrong(f"another flow out of its JSON: {again!r} instead of {flow!r}")
        equal(again.bind(df).encode(df), y, 'through JSON')
        with tempfile.TemporaryDirectory() as d:
            _, err = attempt(lambda: flow.to_json(Path(d) / 'f.json'))
            if not err and Flow.from_json(Path(d) / 'f.json').to_json() != text:
                raise Wrong('another flow out of its file')
    audit = flow.audit(df)
    str(audit), repr(audit)
    for i in range(min(2, len(df))):
        repr(FlowPrediction(bound, y[i]))


def case_points(rng):
    "Points and boxes, in lists and in columns, given a binary task"
    n, k = rng.randint(1, 6), rng.randint(1, 3)
    gate = [rng.choice([True, False, None]) for _ in range(n)]
    odd = rng.choice([0, 0, 0.1])

    def number():
        return (
            rng.choice(rng.choice([GAPS, NUMBERS, ODD, TEXT]))
            if rng.random() < odd
            else rng.choice([None, rng.randint(9, 90), rng.randint(9, 90), rng.random() * 50 + 9])
        )

    in_cols, kind = rng.random() < 0.5, rng.choice(['points', 'xywh', 'xyxy'])
    w = 2 * k if kind == 'points' else 4
    rows = [[number() for _ in range(w)] for _ in range(n)]
    cells = [None if rng.random() < 0.2 else r for r in rows]
    if odd and not in_cols and rng.random() < 0.5:
        cells[rng.randrange(n)] = rng.choice(CELLS)
    names = [f'c{j}' for j in range(w)]
    if in_cols:
        df = pd.DataFrame({c: pd.Series([r[j] for r in rows], dtype=object) for j, c in enumerate(names)})
    else:
        col = pd.Series([None] * n, dtype=object)
        for i, c in enumerate(cells):
            col.iat[i] = (
                [(r[0], r[1]) for r in zip(c[::2], c[1::2])]
                if kind == 'points' and isinstance(c, list) and len(c) == w and c is rows[i]
                else c
            )
        df = pd.DataFrame({'p': col})
    df['g'] = pd.Series(gate, dtype=object)
    block = (
        KeypointsBlock('p', cols=names if in_cols else None, n_points=k)
        if kind == 'points'
        else BoxBlock('p', cols=names if in_cols else None, fmt=kind)
    )
    flow = Flow('f', g := BinaryBlock('g'), block | g)

    def read(i):
        r = rows[i] if in_cols else cells[i]
        if not in_cols and missing(r):
            return [None] * w
        return says_coordinates(r, w, kind == 'points' and r is rows[i])

    want = [read(i) for i in range(n)]
    out, err = attempt(lambda: (b := flow.bind(df), b.encode(df)), 'p', 'g', 'f')
    if err:
        if BAD in want:
            return 'one clear error'
        neg = kind != 'points' and any(
            None not in r and (min(r[2:]) < 0 if kind == 'xywh' else r[2] < r[0] or r[3] < r[1]) for r in want
        )
        if neg or 'look like shares' in err or 'more than float32 holds' in err:
            return 'refused'
        raise Wrong(f"refuses {df.to_dict('list')}: {err}")
    if BAD in want:
        raise Wrong(f"reads {rows[want.index(BAD)] if in_cols else cells[want.index(BAD)]!r} as coordinates ({kind})")
    y = out[1].as_subclass(torch.Tensor).double().numpy()
    if not np.isfinite(y).all():
        raise Wrong('values that are not finite')
    for i, r in enumerate(want):
        if kind == 'xywh' and None not in r:
            r = [r[0], r[1], r[0] + r[2], r[1] + r[3]]
        known = [
            all(x is not None for x in (r[j - j % 2 : j - j % 2 + 2] if kind == 'points' else r)) for j in range(w)
        ]
        equal(y[i, 1, 1:] > 0, [k and gate[i] is True for k in known], f'wrong mask of {kind}')
        if gate[i] is True:
            np.testing.assert_allclose(
                y[i, 0, 1:], [x if m else 0 for x, m in zip(r, known)], rtol=1e-5, atol=1e-37
            )  # float32 has nothing smaller
    same_labels(out[0].encode(out[0].to_frame(out[1])), out[1], 'through to_frame') if kind != 'xywh' else out[
        0
    ].to_frame(out[1])
    return 'right'


def odd_frame(rng):
    "Any table at all"
    n = rng.choice([0, 1, 2, 5, 30, 60])
    cols = rng.sample(
        NAMES
        + [
            'g',
            'lost',
            'n_x',
            'error',
            'a.b',
            'a,b',
            '',
            ' ',
            'x.png',
            'id',
            'is_valid',
            'count',
            'stars',
            'box_x1',
            'box_y1',
            'box_w',
            'box_h',
        ],
        rng.randint(1, 6),
    )
    df = {}
    for c in cols:
        pool = rng.choice(
            [
                [0, 1],
                [0, 1, None],
                ['yes', 'no'],
                ['yes', 'no', None],
                ['a', 'b', 'c'],
                ['a,b', 'a', 'b', 'c,a'],
                [1.0, 2.0, 3.0],
                list(range(40)),
                [0.1, 0.5, 0.9],
                [f'{i}.png' for i in range(50)],
                ['low', 'medium', 'high'],
                TEXT,
                GAPS,
                GAPS + NUMBERS,
                CELLS,
                [True, False],
                [['a'], ['a', 'b'], []],
            ]
        )
        col = pd.Series([None] * n, dtype=object)
        for i in range(n):
            col.iat[i] = rng.choice(pool)
        df[c] = typed(col, rng)
    df = pd.DataFrame(df)
    if rng.random() < 0.1 and len(cols) > 1:
        df.columns = rng.choice(
            [
                [cols[0]] * len(cols),
                [None, *cols[1:]],
                [(1, c) for c in cols],
                [dt.date(2020, 1, 1), *cols[1:]],
                [1.5, *cols[1:]],
                pd.MultiIndex.from_arrays([cols, cols[::-1]]),
                list(range(len(cols))),
            ]
        )
    if (index := odd_index(n, rng)) is not None:
        df.index = index
    return df


def case_guess(rng):
    "A flow guessed from any table fits it; the command line tells errors in one line"
    df = odd_frame(rng)
    guess, err = attempt(lambda: guess_flow(df))
    if not err:
        repr(guess), str(guess.flow.audit(df))
        bound = guess.flow.bind(df)
        y = bound.encode(df).as_subclass(torch.Tensor)
        if not torch.isfinite(y).all():
            raise Wrong('values that are not finite')
        text, no_file = attempt(guess.flow.to_json)
        if not no_file and repr(Flow.from_json(text)) != repr(guess.flow):
            raise Wrong('another flow out of its JSON')
    with tempfile.TemporaryDirectory() as d:
        csv = Path(d) / 't.csv'
        try:
            df.to_csv(csv, index=False)
        except Exception:
            csv.write_bytes(
                rng.choice(
                    [
                        b'',
                        b'\xff\xfe',
                        b'\x00',
                        b'a,b\n1',
                        b'a\n"',
                        b'a,a\n1,2\n',
                        b'\n\n',
                        b'a;b\n1;2\n',
                        os.urandom(200),
                    ]
                )
            )
        from fastai_condmtl.tools.cli import condmtl_train

        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            try:
                condmtl_train(['--guess', str(csv), '--flow', str(Path(d) / 'f.json')])
            except SystemExit as e:
                if e.code != 2:
                    raise Wrong(f'exit status {e.code}')
                if 'error:' not in said.getvalue():
                    raise Wrong(f'no error told: {said.getvalue()[:200]}')
            else:
                Flow.from_json(Path(d) / 'f.json')
    return 'one clear error' if err else 'right'


def case_json(rng):
    "A file of a flow with parts cut out, changed and put elsewhere: a flow, or one clear error"
    spec = rename(random_spec(rng, 5), rng)
    flow, err = attempt(lambda: build(spec, random.Random(rng.random())))
    if err:
        return 'refused flow'
    text, err = attempt(flow.to_json)
    if err:
        return 'no file'
    if rng.random() < 0.3:
        i, j = sorted(rng.randrange(len(text)) for _ in range(2))
        text = rng.choice(
            [
                text[:i],
                text[i:j],
                text[:i] + text[j:],
                text[:i] + rng.choice(TEXT) + text[i:],
                '[' * 3000,
                '{"a":' * 3000,
            ]
        )
    else:
        d = json.loads(text)
        for _ in range(rng.randint(1, 3)):
            o = d
            while True:
                keys = list(o) if isinstance(o, dict) else list(range(len(o)))
                if not keys:
                    break
                k = rng.choice(keys)
                if isinstance(o[k], (dict, list)) and o[k] and rng.random() < 0.7:
                    o = o[k]
                    continue
                o[k] = rng.choice(
                    [
                        None,
                        1,
                        -1,
                        1e308,
                        '',
                        'x',
                        [],
                        {},
                        [1],
                        {'a': 1},
                        True,
                        [None],
                        {'tuple': 1},
                        {'float': 'x'},
                        {'date': 1},
                        {'timestamp': 'x'},
                        'a & ',
                        'x.eq(1',
                        '(' * 500 + 'a' + ')' * 500,
                        '~' * 3000 + 'a',
                        rng.choice(NAMES),
                        rng.choice(TEXT),
                    ]
                )
                break
        text = json.dumps(d)
    res, err = attempt(lambda: Flow.from_json(text if text.lstrip()[:1] in ('{', '[') else '{' + text))
    if not err:
        repr(res)
        attempt(res.to_json)
    return 'one clear error' if err else 'right'


# ---- images
# -----------------------------------------------------------------------------------------------------------
def odd_image(path, rng):
    """Write something called a picture; its colour (r, g, b) if it has one, None where only an error is right,
    'any' where both are"""
    colour = tuple(rng.randrange(0, 256, 15) for _ in range(3))
    size = rng.choice([(1, 1), (1, 300), (300, 1), (7, 5), (40, 30), (1, 10000)])
    im = Image.new('RGB', size, colour)
    gray = sum(colour) // 3

    def save(im, fmt='PNG', **kw):
        im.save(path, fmt, **kw)
        return colour

    def data(kind='PNG'):
        b = io.BytesIO()
        Image.new('RGB', (64, 64), colour).save(b, kind)
        return b.getvalue()

    def bomb():
        import struct, zlib

        chunk = lambda t, b: struct.pack('>I', len(b)) + t + b + struct.pack('>I', zlib.crc32(t + b))
        path.write_bytes(
            b'\x89PNG\r\n\x1a\n'
            + chunk(b'IHDR', struct.pack('>IIBBBBB', 100000, 100000, 8, 2, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(b'\0' * 1000))
            + chunk(b'IEND', b'')
        )

    def palette():
        p = im.quantize(4)
        p.save(path, 'PNG', transparency=0)
        return colour

    def sixteen():
        Image.fromarray(np.full((size[1] % 50 + 1, size[0] % 50 + 1), gray * 257, dtype=np.uint16)).save(
            path, rng.choice(['PNG', 'TIFF'])
        )
        return (gray,) * 3

    def exif():
        e = Image.Exif()
        e[0x112] = rng.randint(1, 8)
        im.save(path, 'JPEG', exif=e, quality=100, subsampling=0)
        return colour

    def animated():
        im.save(path, 'GIF', save_all=True, append_images=[Image.new('RGB', size, (0, 0, 0))] * 3, loop=0)
        return colour

    def truncated():
        b = data(rng.choice(['PNG', 'JPEG', 'GIF', 'BMP', 'TIFF', 'WEBP']))
        path.write_bytes(b[: rng.randrange(len(b))])
        return 'any'

    def flipped():
        b = bytearray(data(rng.choice(['PNG', 'JPEG', 'GIF', 'BMP', 'TIFF', 'WEBP'])))
        for _ in range(rng.randint(1, 20)):
            b[rng.randrange(len(b))] = rng.randrange(256)
        path.write_bytes(b)
        return 'any'

    def loop():
        path.symlink_to(path.name)

    return rng.choice(
        [
            lambda: save(im),
            lambda: save(im),
            lambda: save(im.convert('RGBA')),
            lambda: save(im.convert('CMYK'), 'JPEG', quality=100),
            lambda: save(im.convert('CMYK'), 'TIFF'),
            palette,
            sixteen,
            sixteen,
            exif,
            animated,
            truncated,
            truncated,
            flipped,
            flipped,
            lambda: (save(im.convert('L')), (round(0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]),) * 3)[1],
            lambda: (save(im.convert('1')), 'any')[1],
            lambda: (save(im.convert('LA')), 'any')[1],
            lambda: (save(im.convert('F'), 'TIFF'), 'any')[1],
            lambda: (save(im.convert('I'), 'TIFF'), 'any')[1],
            bomb,
            lambda: path.write_bytes(b'') or None,
            lambda: path.write_text('<svg xmlns="http://www.w3.org/2000/svg"/>') and None,
            lambda: path.write_text('<html>') and None,
            lambda: path.mkdir(),
            loop,
            lambda: os.mkfifo(path),
            lambda: None,
            lambda: path.symlink_to('/dev/zero'),
            lambda: path.symlink_to('gone.png'),
        ]
    )()


def case_image(rng):
    "A picture is read as it is, or one clear error names its file; `bad_images='skip'` leaves just the unreadable out"
    from fastai.vision.all import Resize
    from fastai_condmtl.vision.data import ConditionalDataLoaders
    from fastai_condmtl.data.pictures import OpenImage

    with tempfile.TemporaryDirectory() as d:
        names = [
            rng.choice(
                [
                    'a.png',
                    'é😀.jpg',
                    'a b.png',
                    '%s.png',
                    "o'.png",
                    '{x}.gif',
                    'a\nb.png',
                    'שם.png',
                    '.png',
                    'x' * 200 + '.png',
                    'a.PNG',
                    '*.png',
                    '-rf.png',
                ]
            ),
            'b.png',
        ]
        want = [odd_image(Path(d) / names[0], rng), (9, 9, 9)]
        Image.new('RGB', (20, 20), (9, 9, 9)).save(Path(d) / 'b.png')
        im, err = attempt(lambda: OpenImage()(Path(d) / names[0]), names[0])
        if want[0] is None and not err:
            raise Wrong(f'reads {names[0]!r}')
        if want[0] not in (None, 'any'):
            if err:
                raise Wrong(f'refuses a picture: {err}')
            if (far := np.abs(np.asarray(im.convert('RGB'), dtype=int).reshape(-1, 3) - want[0]).max()) > 16:
                raise Wrong(f'colours are off by {far}, {np.asarray(im).reshape(-1)[:3]} instead of {want[0]}')
        df = pd.DataFrame(dict(f=names[:1] + ['b.png'] * 3, x=[1, 0, 1, 0]))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            dls, e = attempt(
                lambda: ConditionalDataLoaders.from_df(
                    df,
                    BinaryBlock('x'),
                    path=d,
                    fn_col='f',
                    splitter=lambda o: ([0, 1, 2], [3]),
                    item_tfms=Resize(8),
                    bs=3,
                    num_workers=0,
                    bad_images='skip',
                )
            )
        if e:
            raise Wrong(f"bad_images='skip' ends in {e}")
        if len(dls.train_ds) != (2 if err else 3):
            raise Wrong(f"bad_images='skip' keeps {len(dls.train_ds)} rows of 3, error {err}")
        xb, yb = dls.train.one_batch() if not err else next(iter(dls.valid))
        if not torch.isfinite(xb).all() or xb.shape[1:] != (3, 8, 8):
            raise Wrong(f'a batch of {xb.shape}')

        def all_read():
            return next(
                iter(
                    ConditionalDataLoaders.from_df(
                        df,
                        BinaryBlock('x'),
                        path=d,
                        fn_col='f',
                        splitter=lambda o: ([0, 1, 2], [3]),
                        item_tfms=Resize(8),
                        bs=3,
                        num_workers=0,
                    ).train
                )
            )

        if bool(attempt(all_read, names[0])[1]) != bool(err):
            raise Wrong(f"a batch tells another thing than the picture alone: {err}")
        from fastai_condmtl.data.guess_shapes import shared_size

        shared_size([Path(d) / n for n in names])
    return 'one clear error' if err else 'right'


CASES = dict(table=case_table, points=case_points, guess=case_guess, json=case_json, image=case_image)


def run(name, seed, seconds=20):
    "One case: how it ended; raises `Wrong`"
    rng = random.Random(f'{name} {seed}')
    with warnings.catch_warnings(record=True) as seen, within(seconds):
        warnings.simplefilter('always')
        try:
            res = CASES[name](rng)
        except Wrong:
            raise
        except Hang as e:
            raise Wrong(f'hangs: {e}') from e
        except Exception as e:
            raise Wrong(f'{type(e).__name__}: {str(e)[:500]}') from e
    if noise := [w for w in seen if issubclass(w.category, RuntimeWarning) and 'fastai_condmtl' in w.filename]:
        raise Wrong(f'warns: {noise[0].message} ({Path(noise[0].filename).name}:{noise[0].lineno})')
    return res


def main():
    import argparse

    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--minutes', type=float, default=10)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--cases', nargs='+', default=list(CASES), choices=list(CASES))
    p.add_argument('--only', type=int, help='this one seed, with its traceback')
    a = p.parse_args()
    torch.set_num_threads(1)
    if a.only is not None:
        for c in a.cases:
            print(c, run(c, a.only))
        return
    end, ends, wrong, i = time.time() + a.minutes * 60, Counter(), [], a.seed
    while time.time() < end:
        for c in a.cases:
            try:
                ends[c, run(c, i)] += 1
            except Wrong as e:
                ends[c, 'WRONG'] += 1
                wrong.append((c, i, str(e)))
                print(f'WRONG {c} --only {i}: {str(e)[:600]!r}', flush=True)
        i += 1
    print(f'{sum(ends.values())} tried, {len(wrong)} wrong')
    for (c, end), n in sorted(ends.items()):
        print(f'  {c:8} {end:16} {n}')
    return len(wrong) > 0


if __name__ == '__main__':
    sys.exit(main())
