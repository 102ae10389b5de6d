"""The oracle itself, against rows worked out by hand: a test is worth no more than what it compares with."""

import random
import pytest
from oracle import And, Any, Not, Oracle, a_task, atom, flow, frame, k_and, k_not, k_or, resolve, walk

T, F, U = True, False, None


def test_kleene_tables():
    assert [k_not(x) for x in (T, F, U)] == [F, T, U]
    assert [[k_and((a, b)) for b in (T, F, U)] for a in (T, F, U)] == [[T, F, U], [F, F, F], [U, F, U]]
    assert [[k_or((a, b)) for b in (T, F, U)] for a in (T, F, U)] == [[T, T, T], [T, F, U], [T, U, U]]
    assert k_and([]) is True and k_or([]) is False


def security():
    "The flow that opens DESIGN.md, in short."
    box = lambda part: [a_task('bounded', f'{part}_{c}', y_range=(0, 64)) for c in ('x1', 'w')]
    face = flow(
        'face_regression', *box('face'), a_task('multi', 'facial_characteristics', vocab=['blue_eyes', 'smile'])
    )
    body = flow('body_regression', *box('body'), a_task('single', 'shirt_type', vocab=['red', 'blue']))
    return flow(
        'security',
        a_task('binary', 'camera_blocked'),
        a_task('binary', 'door_open', Not(atom('camera_blocked'))),
        a_task('binary', 'door_locked', Not(atom('door_open'))),
        a_task('binary', 'person_present', atom('door_open')),
        flow('person_regression', face, body, given=atom('person_present')),
    )


P = 'person_regression.'
TOP = ['camera_blocked', 'door_open', 'door_locked', 'person_present']


def masks(spec, **labels):
    "Paths with a gt mask, for a row where every task not named is missing."
    o = Oracle(spec)
    raw = {p: [None] * len(t['vocab']) if t['kind'] == 'cols' else None for p, t, *_ in walk(spec)}
    out = o.row(raw | {next(p for p in raw if p.split('.')[-1] == k): v for k, v in labels.items()})
    return [p for p, r in out.items() if any(r['mask'])]


@pytest.mark.parametrize(
    'labels, expect',
    [
        (dict(), []),
        (dict(camera_blocked=T), ['camera_blocked']),
        (
            dict(camera_blocked=T, door_open=T, person_present=T, face_x1=3),
            ['camera_blocked'],
        ),  # a label where the condition is false
        (dict(camera_blocked=F, door_open=T), ['camera_blocked', 'door_open']),
        (dict(camera_blocked=F, door_open=T, door_locked=T), ['camera_blocked', 'door_open']),
        (dict(camera_blocked=F, door_open=F, door_locked=F), ['camera_blocked', 'door_open', 'door_locked']),
        (
            dict(camera_blocked=F, door_locked=F, person_present=T),
            ['camera_blocked'],
        ),  # door_open missing: out under both signs
        (dict(door_open=T, person_present=T), []),  # camera_blocked missing
        (
            dict(camera_blocked=F, door_open=T, person_present=T, face_x1=0),
            ['camera_blocked', 'door_open', 'person_present', P + 'face_regression.face_x1'],
        ),
        (
            dict(camera_blocked=F, door_open=T, person_present=F, face_x1=0),
            ['camera_blocked', 'door_open', 'person_present'],
        ),
        (dict(camera_blocked=F, door_open=T, face_x1=0, shirt_type='red'), ['camera_blocked', 'door_open']),
        (
            dict(camera_blocked=F, door_open=T, person_present=T, facial_characteristics=[], shirt_type='red'),
            [
                'camera_blocked',
                'door_open',
                'person_present',
                P + 'face_regression.facial_characteristics',
                P + 'body_regression.shirt_type',
            ],
        ),
    ],
)
def test_security_rows(labels, expect):
    assert masks(security(), **labels) == expect


def test_reached_on_decoded():
    o = Oracle(security())
    cells = {
        p: dict(blue_eyes=T, smile=F) if p.endswith('characteristics') else 'red' if p.endswith('type') else 1.0
        for p in o.paths
    }
    top = lambda *bits: [p for p, r in o.reached(cells | dict(zip(TOP, bits))).items() if r and p in TOP]
    assert top(T, T, T, T) == ['camera_blocked']
    assert top(F, F, T, T) == ['camera_blocked', 'door_open', 'door_locked']
    assert top(F, T, T, F) == ['camera_blocked', 'door_open', 'person_present']
    assert all(o.reached(cells | dict(zip(TOP, (F, T, T, T))))[p] for p in o.paths if p != 'door_locked')


@pytest.mark.parametrize(
    'op, arg, value, expect',
    [
        ('eq', 'b', 'b', T),
        ('ne', 'b', 'b', F),
        ('isin', ('a', 'c'), 'b', F),
        ('isin', ('a', 'b'), 'b', T),
        ('eq', 'b', None, U),
        ('ne', 'b', None, U),
    ],
)
def test_single_label_atoms(op, arg, value, expect):
    o = Oracle(flow('f', a_task('single', 's', vocab=['a', 'b', 'c']), a_task('binary', 'x', atom('s', op, arg))))
    assert o.evaluate(atom('s', op, arg), ('',), dict(s=value, x=T)) is expect


@pytest.mark.parametrize(
    'op, arg, value, expect',
    [
        ('has', 'a', [T, U], T),
        ('has', 'b', [T, U], U),
        ('has_any', ('a', 'b'), [T, U], T),
        ('has_any', ('a', 'b'), [F, U], U),
        ('has_all', ('a', 'b'), [F, U], F),
        ('has_all', ('a', 'b'), [T, U], U),
        ('has_all', ('a', 'b'), [T, T], T),
        ('has', 'a', [U, U], U),
    ],
)
def test_multi_label_atoms(op, arg, value, expect):
    o = Oracle(flow('f', a_task('cols', 'm', vocab=['a', 'b'])))
    assert o.evaluate(atom('m', op, arg), ('',), {'m': o.cell('m', value)}) is expect


@pytest.mark.parametrize(
    'op, arg, expect',
    [('gt', 2, F), ('ge', 2, T), ('lt', 2, F), ('le', 2, T), ('between', (1, 3), T), ('between', (3, 4), F)],
)
def test_regression_atoms(op, arg, expect):
    o = Oracle(flow('f', a_task('unbounded', 'n')))
    assert (
        o.evaluate(atom('n', op, arg), ('',), dict(n=2.0)) is expect
        and o.evaluate(atom('n', op, arg), ('',), dict(n=None)) is None
    )


def test_or_with_a_gap():
    spec = flow(
        'f',
        a_task('binary', 'a'),
        a_task('binary', 'b'),
        a_task('binary', 'x', Any(atom('a'), atom('b'))),
        a_task('binary', 'y', Not(And(atom('a'), atom('b')))),
    )
    assert masks(spec, a=T, x=F, y=F) == ['a', 'x']  # true or unknown = true; not (true and unknown) = unknown
    assert masks(spec, a=F, x=F, y=F) == ['a', 'y']


def test_names_from_the_inside_out():
    paths = ['x', 'f.x', 'f.g.x', 'f.g.only']
    assert (
        resolve('x', ('f.g.', 'f.', ''), paths) == 'f.g.x'
        and resolve('x', ('f.', ''), paths) == 'f.x'
        and resolve('x', ('',), paths) == 'x'
    )
    assert (
        resolve('g.x', ('f.', ''), paths) == 'f.g.x'
        and resolve('only', ('',), paths) == 'f.g.only'
        and resolve('f.x', ('f.g.', 'f.', ''), paths) == 'f.x'
    )
    with pytest.raises(LookupError):
        resolve('typo', ('',), paths)


def test_infer_labels_by_hand():
    spec = security() | dict(infer_labels=True)
    assert masks(spec, face_x1=3) == [
        P + 'face_regression.face_x1'
    ]  # fills person, door and camera, trains none of them
    assert masks(spec | dict(infer_labels='train'), face_x1=3) == [
        'camera_blocked',
        'door_open',
        'person_present',
        P + 'face_regression.face_x1',
    ]
    assert masks(spec, door_locked=T) == ['door_locked'] and masks(security(), door_locked=T) == []
    assert masks(spec, door_locked=T, person_present=T) == []  # they force opposite values of door_open
    assert masks(spec, camera_blocked=T, door_open=F) == ['camera_blocked']


def test_frame_keeps_every_value():
    spec = flow(
        'f',
        a_task('binary', 'b', vocab=('no', 'yes')),
        a_task('single', 's', vocab=[1, 2]),
        a_task('cols', 'm', vocab=['u', 'v']),
        a_task('unbounded', 'n', col='num'),
    )
    table = dict(b=[T, F, U], s=[1, None, 2], m=[[T, U], [F, T], [U, U]], n=[0.5, None, -2])
    for seed in range(20):
        df = frame(spec, table, random.Random(seed))
        assert list(df.columns) == ['b', 's', 'u', 'v', 'num'] and df.isna().to_numpy().tolist() == [
            [F, F, F, T, F],
            [F, T, F, F, T],
            [T, F, T, T, F],
        ]
        assert df.b[0] == 'yes' and df.s[2] == 2 and df.num[2] == -2
