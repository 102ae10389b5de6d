"""Mirrored labels against tables that are mirrored by hand, over all kinds, and against what is seen in pictures that
fastai's transforms have turned"""

import json, pickle, warnings
import numpy as np, pandas as pd, pytest, torch
from fastai.learner import Learner
from fastai.vision.all import (
    DataBlock,
    Dihedral,
    DihedralItem,
    Flip,
    FlipItem,
    ImageBlock,
    IndexSplitter,
    RandomResizedCrop,
    Resize,
    aug_transforms,
    nn,
    set_seed,
)
from hypothesis import given, strategies as st
from PIL import Image
from oracle import build, frame, mirrored_table, n_rows, walk
from random_flows import ALL_KINDS, add_mirrors, checks, random_spec, random_table, rngs
from fastai_condmtl.vision.all import *
from fastai_condmtl.tabular.all import TabularRowBlock
from fastai_condmtl.core.mirror_rule import mirrored, mirrored_values
import fastai_condmtl.all  # noqa: F401  methods of flows and learners

SIDES = {'left': 'right', 'far left': 'far right'}
OTHER = SIDES | {v: k for k, v in SIDES.items()}
W = 32


def turned(word):
    return OTHER.get(word, word)


def made(rng, n=24):
    "A table with each kind of side, and gaps"
    side = lambda *more: rng.choice(['left', 'right', 'front', *more], n)
    df = pd.DataFrame(
        dict(
            img=[f'{i}.png' for i in range(n)],
            gate=rng.integers(0, 2, n),
            pose=side('far left', 'far right'),
            way=rng.choice(['left', 'right'], n),
            lit=[','.join(rng.choice(['left', 'right', 'top'], rng.integers(0, 4), replace=False)) for _ in range(n)],
            lamp_l=rng.integers(0, 2, n),
            lamp_r=rng.integers(0, 2, n),
            lane=rng.integers(0, 5, n),
            up=rng.integers(0, 5, n),
            x=rng.uniform(0, W, n),
            z=rng.uniform(3, 9, n),
            yaw=rng.normal(10, 20, n),
            n=rng.poisson(2, n),
            vote_l=rng.integers(0, 4, n),
            vote_r=rng.integers(0, 4, n),
            vote_none=rng.integers(0, 4, n),
            left_open=rng.integers(0, 2, n),
            right_open=rng.integers(0, 2, n),
            left_gaze=side(),
            right_gaze=side(),
            left_tilt=rng.normal(2, 1, n),
            right_tilt=rng.normal(-2, 1, n),
            left_size=rng.uniform(0, 5, n),
            right_size=rng.uniform(2, 9, n),
        )
    ).astype(object)
    gaps = rng.random(df.shape) < 0.15
    gaps[:, df.columns.get_loc('img')] = False
    for c in ('vote_l', 'vote_r', 'vote_none'):
        gaps[:, df.columns.get_loc(c)] = gaps[:, df.columns.get_loc('vote_l')]
    df = df.mask(gaps)
    df.loc[0, 'pose'], df.loc[1, 'pose'], df.loc[2, 'pose'], df.loc[3, 'pose'] = (
        'left',
        'right',
        'far left',
        'far right',
    )
    df.loc[0, 'lit'], df.loc[0, 'way'], df.loc[1, 'way'] = 'left,right', 'left', 'right'
    for c in ('left_gaze', 'right_gaze'):
        df.loc[0, c], df.loc[1, c] = 'left', 'right'
    return df


def eye(side):
    is_open = BinaryBlock('open', col=f'{side}_open')
    return Flow(
        f'{side}_eye',
        is_open,
        SingleLabelBlock('gaze', f'{side}_gaze', mirror={'left': 'right'}) | is_open,
        UnboundedRegressionBlock('tilt', f'{side}_tilt', mirror='negate', loss='l1'),
        BoundedRegressionBlock('size', f'{side}_size', loss='huber') | is_open,
    )


def flow():
    gate = BinaryBlock('gate')
    pose = SingleLabelBlock('pose', mirror=SIDES)
    way = BinaryBlock('way', vocab=('left', 'right'), mirror={'left': 'right'})
    return Flow(
        'f',
        gate,
        pose | gate,
        way,
        MultiLabelBlock('lit', mirror={'left': 'right'}) | gate,
        MultiLabelBlock('lamps', cols=['lamp_l', 'lamp_r'], mirror={'lamp_l': 'lamp_r'}),
        OrdinalBlock('lane', vocab=range(5), mirror='reverse'),
        OrdinalBlock('height', 'up', vocab=range(5)),
        BoundedRegressionBlock('x', y_range=(0, W), mirror='reverse') | pose.isin(['left', 'right']),
        BoundedRegressionBlock('z'),
        UnboundedRegressionBlock('yaw', mirror='negate') | task('lane').between(1, 3),
        CountBlock('n'),
        VotesBlock('vote', cols=dict(left='vote_l', right='vote_r', none='vote_none'), mirror={'left': 'right'}),
        eye('left'),
        eye('right'),
        mirror=[('left_eye', 'right_eye')],
    )


def by_hand(df):
    "The table of the mirrored pictures, cell by cell"
    res = df.copy()
    blank = lambda v: v is None or v != v
    for i in range(len(df)):
        row = df.iloc[i]
        say = {}
        for c in ('pose', 'way', 'left_gaze', 'right_gaze'):
            say[c] = turned(row[c])
        say['lit'] = row.lit if blank(row.lit) else ','.join(turned(w) for w in row.lit.split(','))
        say['lane'] = row.lane if blank(row.lane) else 4 - row.lane
        say['x'] = row.x if blank(row.x) else W - row.x
        for c in ('yaw', 'left_tilt', 'right_tilt'):
            say[c] = row[c] if blank(row[c]) else -row[c]
        for left, right in (('lamp_l', 'lamp_r'), ('vote_l', 'vote_r')):
            say[left], say[right] = row[right], row[left]
        for c in ('open', 'gaze', 'tilt', 'size'):
            own = {s: say.get(f'{s}_{c}', row[f'{s}_{c}']) for s in ('left', 'right')}
            say[f'left_{c}'], say[f'right_{c}'] = own['right'], own['left']
        for c, v in say.items():
            res.iat[i, res.columns.get_loc(c)] = v
    return res


def table_and_hand(rng, n=24):
    df = made(rng, n)
    return df, by_hand(df)


def same(a, b, atol=1e-5):
    a, b = (torch.Tensor(x) for x in (a, b))
    assert torch.equal(a[..., 1, :], b[..., 1, :])
    counts = a[..., 1, :] > 0
    torch.testing.assert_close(a[..., 0, :][counts], b[..., 0, :][counts], atol=atol, rtol=1e-5)


@checks(25)
@given(st.integers(0, 10**6))
def test_packed_labels_of_a_mirror_are_those_of_the_table_by_hand(seed):
    df, hand = table_and_hand(np.random.default_rng(seed))
    f = flow().bind(df)
    y, wanted = f.encode(df), f.encode(hand)
    same(mirrored(y, f.mirror), wanted)
    same(mirrored(mirrored(y, f.mirror), f.mirror), y)
    where = torch.from_numpy(np.random.default_rng(seed).random(len(df)) < 0.5)
    some = mirrored(y, f.mirror, where)
    for i, there in enumerate(where):
        same(some[i], wanted[i] if there else y[i])
    logits = torch.randn(len(df), f.c, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(f.loss_func(logits, mirrored(y, f.mirror)), f.loss_func(logits, wanted))


@checks(10)
@given(st.integers(0, 10**6))
def test_activations_go_with_their_labels(seed):
    "What is decided of turned activations is the mirror of what was decided"
    df, _ = table_and_hand(np.random.default_rng(seed))
    f = flow().bind(df)
    acts = f.loss_func.activation(torch.randn(40, f.c, generator=torch.Generator().manual_seed(seed)))
    there = mirrored_values(acts, f.mirror_of_acts)
    torch.testing.assert_close(mirrored_values(there, f.mirror_of_acts), acts)
    decided = f.loss_func.decodes(acts)
    same(f.loss_func.decodes(there), mirrored(decided, f.mirror))


def random_mirrored(rng, n=None, asked=False):
    "A random flow of all kinds with mirrors, its table, and the table of the mirrored pictures by the oracle"
    spec = random_spec(rng, max_tasks=8, losses=True, kinds=ALL_KINDS, na=True, unsure=True)
    add_mirrors(rng, spec, asked)
    table = random_table(rng, spec, n)
    return spec, table, mirrored_table(spec, table)


@checks(25)
@given(rngs)
def test_random_flows_are_mirrored_as_the_oracle_mirrors_their_tables(rng):
    spec, table, hand = random_mirrored(rng)
    df = frame(spec, table, rng, series=as_objects)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        f = build(spec, rng).bind(df)
        y, wanted = f.encode(df), f.encode(frame(spec, hand, rng, series=as_objects))
    changes = any(t.get('mirror') for _, t, *_ in walk(spec)) or '_twin' in ' '.join(f.paths)
    assert (f.mirror is not None) == changes
    if not changes:
        return
    same(mirrored(y, f.mirror), wanted)
    same(mirrored(wanted, f.mirror), y)
    logits = torch.randn(len(y), f.c, generator=torch.Generator().manual_seed(n_rows(table)))
    torch.testing.assert_close(
        f.loss_func(logits, mirrored(y, f.mirror)), f.loss_func(logits, wanted), atol=1e-5, rtol=1e-4
    )
    if not any(t['kind'] == 'votes' and 1 in t['vocab'] for _, t, *_ in walk(spec)):  # files refuse numbers as keys
        assert Flow.from_json(f.flow.to_json()).bind(df).mirror == f.mirror


@checks(25)
@given(rngs)
def test_a_condition_that_a_mirror_may_change_is_refused_and_no_other_changes(rng):
    "Tasks that conditions ask have mirrors, too: what binds is applicable to a picture and to its mirror image alike"
    spec, table, hand = random_mirrored(rng, asked=True)
    df = frame(spec, table, rng, series=as_objects)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            f = build(spec, rng).bind(df)
        except FlowError as e:
            assert 'which a mirror changes' in str(e) or 'change places in a mirror' in str(e), e
            return
        if f.mirror is not None:
            same(mirrored(f.encode(df), f.mirror), f.encode(frame(spec, hand, rng, series=as_objects)))


def as_objects(values, rng, index):
    return pd.Series(values, index=index, dtype=object)


# ---- pictures
def marked(rng):
    "A picture whose corner tells whether and how it was turned: three corners of different colours"
    a = np.zeros((W, W, 3), dtype=np.uint8)
    a[: W // 2, : W // 2, 0] = 255
    a[: W // 2, W // 2 :, 1] = 255
    a[W // 2 :, : W // 2, 2] = 255
    return Image.fromarray(a)


def is_mirrored(x):
    "Of one tensor picture: is the order of its colours round the centre turned round?"
    quarter = x.shape[-1] // 4
    spots = [
        x[:, i, j] for i, j in ((quarter, quarter), (quarter, -quarter), (-quarter, -quarter), (-quarter, quarter))
    ]
    order = ['rgb'[int(s.argmax())] if float(s.max()) > 0.3 else 'k' for s in spots]
    at = order.index('r')
    order = order[at:] + order[:at]
    assert order in (['r', 'g', 'k', 'b'], ['r', 'b', 'k', 'g']), order
    return order[1] == 'b'


@pytest.fixture(scope='module')
def pics(tmp_path_factory):
    path, rng = tmp_path_factory.mktemp('mirror'), np.random.default_rng(0)
    df, hand = table_and_hand(rng, 32)
    for name in df.img:
        marked(rng).save(path / name)
    return path, df, hand


TFMS = dict(
    flip=dict(batch_tfms=[Flip()]),
    always=dict(batch_tfms=[Flip(p=1.0)]),
    item=dict(item_tfms=[Resize(W), FlipItem()]),
    dihedral=dict(batch_tfms=[Dihedral()]),
    dihedral_item=dict(item_tfms=[Resize(W), DihedralItem()]),
    both=dict(item_tfms=[Resize(W), FlipItem()], batch_tfms=[Flip()]),
    aug=dict(batch_tfms=aug_transforms(max_lighting=0.0, max_rotate=5.0, max_warp=0.05, max_zoom=1.05)),
    aug_vert=dict(
        batch_tfms=aug_transforms(flip_vert=True, max_lighting=0.0, max_rotate=5.0, max_warp=0.0, max_zoom=1.0)
    ),
    none=dict(),
)


def loaders(pics, tfms, points=False, **kwargs):
    path, df, _ = pics
    f = flow()
    if points:
        f.tasks += (
            KeypointsBlock('corners', cols=['ax', 'ay', 'bx', 'by'], points=['a', 'b'], flip_pairs=[('a', 'b')]),
        )
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        block = DataBlock(
            blocks=(ImageBlock, f),
            get_x=lambda r: path / r.img,
            splitter=IndexSplitter(range(8)),
            **{'item_tfms': Resize(W), **tfms},
        )
        return block.dataloaders(df, bs=8, num_workers=0, **kwargs)


@pytest.mark.parametrize('name', sorted(TFMS))
def test_a_batch_has_the_loss_of_mirrored_pictures_labelled_by_hand(pics, name):
    path, df, hand = pics
    set_seed(1)
    dls = loaders(pics, TFMS[name])
    f, seen = dls.flow, set()
    dl = dls.train.new(shuffle=False, drop_last=False)
    rows = df.iloc[8:].reset_index(drop=True), hand.iloc[8:].reset_index(drop=True)
    for _ in range(3):
        at = 0
        for x, y in dl:
            there = [is_mirrored(one) for one in x]
            seen |= {*there}
            mixed = pd.concat([rows[int(m)].iloc[[at + i]] for i, m in enumerate(there)])
            wanted = f.encode(mixed)
            assert type(y).__name__ == 'TensorConditional'
            same(y, wanted)
            logits = torch.randn(len(y), f.c)
            torch.testing.assert_close(f.loss_func(logits, y), f.loss_func(logits, wanted), atol=1e-5, rtol=1e-5)
            at += len(y)
    assert seen == {'none': {False}, 'always': {True}}.get(name, {False, True})
    for x, y in dls.valid:  # nothing is drawn there
        same(y, f.encode(df.iloc[:8]))


@checks(8)
@given(rngs)
def test_a_batch_of_a_random_flow_has_the_loss_of_mirrored_pictures(rng):
    "Random flows, and a transform at random; which picture is mirrored is seen in it"
    spec, table, hand = random_mirrored(rng, n=12)
    name = rng.choice(sorted(TFMS))
    df, by_hand = (frame(spec, t, rng, series=as_objects) for t in (table, hand))
    shown = marked(None)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        block = DataBlock(
            blocks=(ImageBlock, build(spec, rng)),
            get_x=lambda row: shown,
            splitter=lambda items: (list(range(12)), [0, 1]),
            **{'item_tfms': Resize(W), **TFMS[name]},
        )
        dls = block.dataloaders(df, bs=6, num_workers=0)
        f, at = dls.flow, 0
        for x, y in dls.train.new(shuffle=False, drop_last=False):
            there = [is_mirrored(one) for one in x]
            wanted = f.encode(pd.concat([(by_hand if m else df).iloc[[at + i]] for i, m in enumerate(there)]))
            same(y, wanted)
            logits = torch.randn(len(y), f.c)
            torch.testing.assert_close(f.loss_func(logits, y), f.loss_func(logits, wanted), atol=1e-5, rtol=1e-4)
            at += len(y)


def test_with_points_and_a_crop(pics):
    path, df, hand = pics
    df = df.assign(ax=4.0, ay=5.0, bx=20.0, by=9.0)
    dls = loaders((path, df, hand), dict(batch_tfms=[Flip(p=1.0)]), points=True)
    s = dls.flow.slices['corners'].targets
    x, y = dls.train.new(shuffle=False).one_batch()
    same(y[:, :, : s.start], dls.flow.encode(hand.iloc[8:16].assign(ax=4.0, ay=5.0, bx=20.0, by=9.0))[:, :, : s.start])
    # a is where b was, seen from the other side
    assert torch.Tensor(y)[0, 0, s].tolist() == pytest.approx(
        [1 - 2 * 20 / W, 2 * 9 / W - 1, 1 - 2 * 4 / W, 2 * 5 / W - 1]
    )
    cropped = loaders(pics, dict(item_tfms=RandomResizedCrop(W, min_scale=0.9), batch_tfms=[Flip()]))
    assert cropped.one_batch()[1].shape[-1] == cropped.flow.n_targets


# ---- what is said is kept, and what is wrong is told
def test_files_keep_it(pics, tmp_path):
    dls = loaders(pics, TFMS['flip'])
    f = dls.flow
    again = Flow.from_json(f.flow.to_json())
    assert again.to_json() == f.flow.to_json() and '"mirror": [["left_eye", "right_eye"]]' in f.flow.to_json()
    b = again.bind(pics[1], range(8, 32))
    assert b.mirror == f.mirror == pickle.loads(pickle.dumps(b)).mirror
    assert json.loads(Flow('f', BinaryBlock('a', mirror=False), mirror=False).to_json())['tasks'][0]['mirror'] is False
    from fastai_condmtl.core.bound import BoundFlow
    import fastai_condmtl.deploy.bound_dict  # noqa: F401

    assert BoundFlow.from_dict(json.loads(json.dumps(f.to_dict()))).mirror == f.mirror


WRONG = [
    (lambda g, s: [SingleLabelBlock('side', mirror={'left': 'rihgt'})], "task 'side'.*'rihgt'.*did you mean 'right'"),
    (lambda g, s: [BinaryBlock('gate', mirror={'no': 'yes'})], "task 'gate'.*'no'.*vocab"),
    (
        lambda g, s: [s, BinaryBlock('gate') | s.eq('left')],
        "'gate' is given `side.eq\\('left'\\)`, which a mirror changes",
    ),
    (
        lambda g, s: [g | task('m').has('left'), MultiLabelBlock('m', 'side', mirror={'left': 'right'})],
        'mirror changes',
    ),
    (lambda g, s: [g | (task('z') > 4), UnboundedRegressionBlock('z', 'x', mirror='negate')], 'mirror changes'),
    (lambda g, s: [g | (task('z') > 3), OrdinalBlock('z', 'o', mirror='reverse')], 'mirror changes'),
]


@pytest.mark.parametrize('i', range(len(WRONG)))
def test_what_cannot_be_mirrored_is_an_error_at_binding(i):
    tasks, text = WRONG[i]
    df = pd.DataFrame(dict(side=['left', 'right', 'front'], gate=[0, 1, 1], x=[1.0, 3, 8], o=[1, 2, 4]))
    tasks = tasks(BinaryBlock('gate'), SingleLabelBlock('side', mirror={'left': 'right'}))
    with pytest.raises(FlowError, match=text):
        Flow('f', *tasks).bind(df)


def test_nothing_changes_places_with_itself():
    flow = Flow('f', Flow('a', Flow('b', BinaryBlock('x'))), mirror=[('b', 'a.b')])
    with pytest.raises(FlowError, match="'b' and 'a.b', of which one lies within the other: name two that stand"):
        flow.bind(pd.DataFrame(dict(x=[0, 1])))


def test_conditions_that_a_mirror_leaves_alone():
    df = pd.DataFrame(dict(side=['left', 'right', 'front'], gate=[0, 1, 1], x=[1.0, 3, 8], o=[1, 2, 3]))
    side = SingleLabelBlock('side', mirror={'left': 'right'})
    for cond in (
        side.isin(['right', 'left']),
        side.ne('front'),
        ~side.eq('front'),
        any_of(side.eq('left'), side.eq('right')),
    ):
        assert Flow('f', side, BinaryBlock('gate') | cond).bind(df).mirror
    yaw = UnboundedRegressionBlock('x', mirror='negate')
    assert Flow('f', yaw, BinaryBlock('gate') | yaw.between(-2, 2)).bind(df).mirror
    order = OrdinalBlock('o', mirror='reverse')
    assert Flow('f', order, BinaryBlock('gate') | order.eq(2)).bind(df).mirror
    with pytest.raises(FlowError, match='mirror changes'):
        Flow('f', yaw, BinaryBlock('gate') | yaw.between(-2, 3)).bind(df)


def test_partners_learn_from_both():
    df = pd.DataFrame(dict(l=[1.0, 2, 3], r=[5.0, 9, None], a=['u', 'v', 'u'], b=['w', 'w', 'v'])).astype(object)
    f = Flow(
        'f',
        UnboundedRegressionBlock('l'),
        UnboundedRegressionBlock('r'),
        SingleLabelBlock('a'),
        SingleLabelBlock('b'),
        mirror=[('l', 'r'), ('a', 'b')],
    ).bind(df)
    numbers = np.array([1, 2, 3, 5, 9.0])
    assert f.tasks['l'].lo == f.tasks['r'].lo == pytest.approx(numbers.mean())
    assert f.tasks['l'].span == pytest.approx(numbers.std()) and f.tasks['a'].vocab == f.tasks['b'].vocab == [*'uvw']
    f = Flow('f', UnboundedRegressionBlock('l'), UnboundedRegressionBlock('r'), mirror=[('l', 'r')]).bind(df, [0])
    assert f.tasks['l'].lo == f.tasks['r'].lo == pytest.approx(3.0)  # of the training rows


def test_tables_without_pictures_have_no_mirror():
    df = pd.DataFrame(dict(side=['left', 'right'] * 4, x=np.arange(8.0)))
    from fastai.data.all import TransformBlock, RandomSplitter

    block = DataBlock(
        blocks=(TransformBlock, SingleLabelBlock('side', mirror={'left': 'right'})),
        get_x=lambda r: torch.tensor([float(r.x)]),
        splitter=RandomSplitter(seed=0),
    )
    dls = block.dataloaders(df, bs=4, num_workers=0)
    assert dls.train.one_batch()[1].shape == (4, 2, 1)


# ---- warnings before the training
def told(f, df, *tfms):
    from fastai_condmtl.learn.sides import told_sides

    return ' '.join(told_sides(f.bind(df), list(tfms)))


def test_what_is_said_is_not_asked():
    df = pd.DataFrame(
        dict(side=['left', 'right', 'top left', 'top right'], left_eye=[0, 1, 1, 0], right_eye=[1, 0, 1, 0])
    )
    eyes = BinaryBlock('left_eye'), BinaryBlock('right_eye')
    side = lambda **kw: SingleLabelBlock('side', **kw)
    all_sides = {'left': 'right', 'top left': 'top right'}
    silent = told(Flow('f', side(mirror=all_sides), *eyes, mirror=[('left_eye', 'right_eye')]), df, Flip())
    assert silent == ''
    assert told(Flow('f', side(mirror=False), *eyes, mirror=False), df, Flip(), Dihedral()) == ''
    text = told(Flow('f', side(), *eyes), df, Flip())
    assert "mirror={'left': 'right', 'top left': 'top right'}" in text and "'left_eye'" in text
    text = told(Flow('f', side(mirror={'left': 'right'}), *eyes, mirror=[('left_eye', 'right_eye')]), df, Flip())
    assert "'top left'" in text and "'left'," not in text and 'left_eye' not in text
    assert "mirror=[('left_eye', 'right_eye')]" in told(Flow('f', *eyes), df, Flip())
    assert told(Flow('f', Flow('g', eyes[0], mirror=False), eyes[1]), df, Flip()).count('_eye') == 2 - 1
    points = KeypointsBlock('p', cols=['a', 'b', 'c', 'd'], points=['left', 'right'], mirror=False)
    where = pd.DataFrame(dict.fromkeys('abcd', [1.0, 9.0]))
    assert told(Flow('f', points), where, Flip()) == ''


@pytest.mark.parametrize('tfm', [Dihedral(), DihedralItem(), *aug_transforms(flip_vert=True)[:1]])
def test_upside_down_beside_a_mirror_is_told(tfm):
    df = pd.DataFrame(dict(side=['left', 'right']))
    f = Flow('f', SingleLabelBlock('side', mirror={'left': 'right'}))
    assert "upside down as well, and mirror= of 'side'" in told(f, df, tfm) and told(f, df, Flip()) == ''


def test_tasks_that_change_places_are_no_sides_of_the_picture():
    "A half turn leaves the left eye what it is, as `flip_pairs` leave points; labels that are sides are told"
    df = pd.DataFrame(
        dict(
            left_eye=[0, 1, 1, 0],
            right_eye=[1, 0, 1, 0],
            left_gaze=['left', 'right'] * 2,
            right_gaze=['left', 'right'] * 2,
        )
    )
    eyes = BinaryBlock('left_eye'), BinaryBlock('right_eye')
    assert told(Flow('f', *eyes, mirror=[('left_eye', 'right_eye')]), df, Dihedral()) == ''
    gaze = [SingleLabelBlock(f'{side}_gaze', mirror={'left': 'right'}) for side in ('left', 'right')]
    pairs = [('left_eye', 'right_eye'), ('left_gaze', 'right_gaze')]
    text = told(Flow('f', *eyes, *gaze, mirror=pairs), df, DihedralItem())
    assert "mirror= of 'left_gaze', 'right_gaze' follows mirrors only" in text and '_eye' not in text


# ---- views
class Sees(nn.Module):
    "Answers by what it sees: which half is red, and where the middle of the red is; logits set by hand"

    def __init__(self, flow):
        super().__init__()
        self.flow, self.c, self.scale = flow, flow.c, nn.Parameter(torch.ones(1))

    def forward(self, x):
        red = x[:, 0].float().clamp(min=0)
        red = red / red.sum((1, 2), keepdim=True)
        at = torch.linspace(-1 + 1 / W, 1 - 1 / W, W, device=x.device)
        cx, cy = (red.sum(1) * at).sum(1), (red.sum(2) * at).sum(1)
        res = torch.zeros(len(x), self.c, device=x.device)
        s = lambda name: self.flow.slices[name].logits
        res[:, s('side')] = torch.stack([-4 * cx, 4 * cx], 1)
        res[:, s('x')] = torch.logit((cx[:, None] + 1) / 2)
        res[:, s('yaw')] = (cx[:, None] * 20 - self.flow.tasks['yaw'].lo) / self.flow.tasks['yaw'].span
        res[:, s('place')] = torch.stack([cx, cy, cx + 0.1, cy], 1)
        res[:, s('l_lit')], res[:, s('r_lit')] = -5 * cx[:, None], 5 * cx[:, None]
        res[:, s('marks')] = torch.stack([-3 * cx, 3 * cx, cy], 1)
        return res * self.scale


def squares(path):
    "Pictures with one red square each, and a table of where it is"
    rng, rows = np.random.default_rng(0), []
    for i in range(12):
        a = np.zeros((W, W, 3), dtype=np.uint8)
        x, y = rng.integers(2, W - 8, 2)
        a[y : y + 6, x : x + 6, 0] = 255
        Image.fromarray(a).save(path / f'{i}.png')
        side = 'left' if x < W / 2 else 'right'
        rows.append([f'{i}.png', side, float(x), float(x), x + 3, y + 3, x + 4, y + 3, 0, 1, 'left,top'])
    df = pd.DataFrame(rows, columns='img side x yaw px py qx qy l_lit r_lit marks'.split())
    df.loc[0, 'side'], df.loc[1, 'side'] = 'left', 'right'
    return df


def flow_of_squares():
    "All that a square can be asked"
    return Flow(
        'f',
        SingleLabelBlock('side', vocab=['left', 'right'], mirror={'left': 'right'}),
        BoundedRegressionBlock('x', y_range=(0, W), mirror='reverse'),
        UnboundedRegressionBlock('yaw', mirror='negate'),
        KeypointsBlock('place', cols=['px', 'py', 'qx', 'qy'], points=['p', 'q']),
        BinaryBlock('l_lit'),
        BinaryBlock('r_lit'),
        MultiLabelBlock('marks', vocab=['left', 'right', 'top'], mirror={'left': 'right'}),
        mirror=[('l_lit', 'r_lit')],
    )


@pytest.mark.parametrize('n_inp_labels', [True, False])
@pytest.mark.parametrize(
    'tfms',
    [
        [Flip(p=1.0)],
        [Dihedral(p=1.0, draw=1)],
        aug_transforms(max_lighting=0.0, max_rotate=0.0, max_zoom=1.0, max_warp=0.0, p_affine=0.0),
    ],
)
def test_tta_moves_views_back(tmp_path, tfms, n_inp_labels):
    "A network that sees exactly what it says gives the same for all views, once they are moved back"
    df = squares(tmp_path)
    df.loc[0, 'marks'] = 'left,right,top'
    block = DataBlock(
        blocks=(ImageBlock, flow_of_squares()),
        get_x=lambda r: tmp_path / r.img,
        splitter=IndexSplitter(range(6)),
        batch_tfms=tfms,
    )
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        dls = block.dataloaders(df, bs=4, num_workers=0)
        learn = Learner(dls, Sees(dls.flow))
        with learn.no_bar(), learn.no_logging():
            dl = None if n_inp_labels else dls.test_dl(df.iloc[:6])
            plain, labels = learn.get_preds(dl=dl)
            preds, targs = learn.tta(dl=dl, n=3)
            biggest, _ = learn.tta(dl=dl, n=2, use_max=True)
            both = learn.tta(dl=dl, n=2, beta=None)[0]
    s = dls.flow.slices['place'].acts
    q = [s.start + 2]  # its place beside p is the network's own idea, which no mirror turns
    others = [c for c in range(dls.c) if c not in q]
    torch.testing.assert_close(preds[:, others], plain[:, others], atol=2e-3, rtol=0)
    torch.testing.assert_close(biggest[:, others], plain[:, others], atol=2e-3, rtol=0)
    torch.testing.assert_close(both[0][:, others], plain[:, others], atol=2e-3, rtol=0)
    if n_inp_labels:
        assert torch.equal(torch.Tensor(targs), torch.Tensor(labels))
    else:
        assert targs is None


class SeesBeside(Sees):
    "Reads a row beside the picture, and heeds the picture"

    def forward(self, x, *row):
        return super().forward(x) + 0 * sum(part.sum() for part in row)


def test_tta_of_a_picture_beside_a_row(tmp_path):
    df = squares(tmp_path)
    df['weight'] = np.random.default_rng(0).normal(size=12)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        dls = DataBlock(
            blocks=(ImageBlock, TabularRowBlock([], ['weight']), flow_of_squares()),
            n_inp=2,
            getters=[lambda row: tmp_path / row.img, itself, itself],
            splitter=IndexSplitter(range(6)),
            batch_tfms=[Flip(p=1.0)],
        ).dataloaders(df, bs=4, num_workers=0)
        learn = Learner(dls, SeesBeside(dls.flow))
        with learn.no_bar(), learn.no_logging():
            plain, labels = learn.get_preds()
            preds, targs = learn.tta(n=2, beta=0.0)
            first = dls.train.new(shuffle=False, drop_last=False).one_batch()
    s = dls.flow.slices['place'].acts
    seen = [c for c in range(dls.c) if c != s.start + 2]  # the second point is the network's own idea
    torch.testing.assert_close(preds[:, seen], plain[:, seen], atol=2e-3, rtol=0)
    assert torch.equal(torch.Tensor(targs), torch.Tensor(labels))
    side = dls.flow.slices['side'].targets.start  # the batch is mirrored: so are its labels, and not its rows
    assert first[-1][:, 0, side].tolist() == [float(label == 'left') for label in df.side[6:10]]


def itself(row):
    return row


class Looks(nn.Module):
    "Says where the middle of the red is"

    def __init__(self, flow):
        super().__init__()
        self.slices, self.scale = flow.slices, nn.Parameter(torch.ones(1))

    def forward(self, x):
        red = x[:, 0].float().clamp(min=0)
        red, size = red / red.sum((1, 2), keepdim=True), x.shape[-1]
        at = torch.linspace(-1 + 1 / size, 1 - 1 / size, size, device=x.device)
        place = torch.stack([(red.sum(1) * at).sum(1), (red.sum(2) * at).sum(1)], 1)
        res = torch.zeros(len(x), 6, device=x.device)
        res[:, self.slices['p'].logits] = place
        res[:, self.slices['b'].logits] = torch.cat([place - 0.1, place + 0.1], 1)
        return 2 * res.atanh() * self.scale  # a sigmoid takes it to -1 to 1


def spots(path, **tfms):
    "A learner that sees where a spot is, in eight pictures that both train and validate"
    rng, rows, size = np.random.default_rng(1), [], 2 * W
    for i in range(8):
        a = np.zeros((size, size, 3), dtype=np.uint8)
        x, y = rng.integers(26, 36, 2)
        a[y : y + 4, x : x + 4, 0] = 255
        Image.fromarray(a).save(path / f'{i}.png')
        rows.append([f'{i}.png', x + 2, y + 2, x - 1, y - 1, 3, 3])
    df = pd.DataFrame(rows, columns='img px py bx by w h'.split())
    f = Flow('f', KeypointsBlock('p', cols=['px', 'py']), BoxBlock('b', cols=['bx', 'by', 'w', 'h']))
    block = DataBlock(blocks=(ImageBlock, f), get_x=lambda r: path / r.img, splitter=IndexSplitter(range(8)), **tfms)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        dls = block.dataloaders(pd.concat([df, df], ignore_index=True), bs=4, num_workers=0)
        return Learner(dls, Looks(dls.flow))


@pytest.mark.parametrize(
    'tfms',
    [
        dict(batch_tfms=[Dihedral()]),
        dict(batch_tfms=aug_transforms(max_lighting=0.0, max_rotate=30.0, max_zoom=1.3, max_warp=0.2, p_affine=1.0)),
        dict(item_tfms=[Resize(2 * W), DihedralItem()]),
        dict(item_tfms=RandomResizedCrop(2 * W, min_scale=0.8, ratio=(1.0, 1.0))),
    ],
)
@pytest.mark.filterwarnings('ignore')
def test_points_come_back_from_turns_zooms_and_crops(tmp_path, tfms):
    learn = spots(tmp_path, **tfms)
    set_seed(3)
    with learn.no_bar(), learn.no_logging():
        wanted = learn.get_preds()[0]
        preds = learn.tta(n=4, beta=0.0)[0]
    dls = learn.dls
    at = dls.flow.slices['p'].acts
    torch.testing.assert_close(preds[:, at], wanted[:, at], atol=0.01, rtol=0)
    box = preds[:, dls.flow.slices['b'].acts]
    assert (box[:, 2:] > box[:, :2]).all() and ((box[:, :2] + box[:, 2:]) / 2 - preds[:, at]).abs().max() < 0.02


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('handed_over', [False, True])
def test_views_of_rows_that_a_loader_shuffles_come_back_by_their_own_corners(tmp_path, handed_over):
    learn = spots(tmp_path, batch_tfms=[Dihedral()])
    set_seed(3)
    with learn.no_bar(), learn.no_logging():
        wanted, labels = learn.get_preds()
        rows = dict(dl=learn.dls.train) if handed_over else dict(ds_idx=0)
        assert learn.dls.train.shuffle
        preds, targs = learn.tta(n=4, beta=0.0, **rows)
    at = learn.dls.flow.slices['p'].acts
    torch.testing.assert_close(preds[:, at], wanted[:, at], atol=0.01, rtol=0)
    torch.testing.assert_close(torch.Tensor(targs)[:, 1], torch.Tensor(labels)[:, 1])


def test_classes_that_nest_are_mirrored_together():
    df = pd.DataFrame(dict(side=['left', 'right', 'mid'] * 2, part=['l1', 'r1', 'm', 'l2', 'r2', 'm']))
    side = lambda **kw: SingleLabelBlock('side', **kw)
    part = lambda within, **kw: SingleLabelBlock('part', within=within, **kw)
    both = dict(mirror={'l1': 'r1', 'l2': 'r2'})
    s = side(mirror={'left': 'right'})
    f = Flow('f', s, part(s, **both)).bind(df)
    by_hand = df.replace({'left': 'right', 'right': 'left', 'l1': 'r1', 'r1': 'l1', 'l2': 'r2', 'r2': 'l2'})
    same(mirrored(f.encode(df), f.mirror), f.encode(by_hand))
    for over, kw in ((s, {}), (side(), both)):
        with pytest.raises(FlowError, match="'part' lies within 'side', and a mirror"):
            Flow('f', over, part(over, **kw)).bind(df)


def test_partners_have_one_unit():
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(x=np.arange(20.0), l=rng.normal(0, 1, 20), r=rng.normal(5, 3, 20), o=rng.normal(0, 2, 20)))
    from fastai.data.all import TransformBlock

    tasks = [UnboundedRegressionBlock(c, loss='mse') for c in 'lro']
    units = {}
    for kw in ({}, dict(mirror=[('l', 'r')])):
        block = DataBlock(
            blocks=(TransformBlock, Flow('f', *tasks, **kw)),
            get_x=lambda r: torch.tensor([float(r.x)]),
            splitter=lambda d: (list(range(15)), list(range(15, 20))),
        )
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            f = block.dataloaders(df, bs=4, num_workers=0).flow
        units[bool(kw)] = f.loss_units
    assert units[True]['l'] == pytest.approx(units[True]['r']) and units[True]['o'] == pytest.approx(units[False]['o'])
    # standardised over both, the best constant of both loses 1
    assert units[True]['l'] == pytest.approx(1.0, rel=1e-4)
