"Guesses against tables whose conditions are known, since they made the gaps."

import numpy as np, pandas as pd, pytest, re
from PIL import Image
from fastai_condmtl.all import *
from fastai_condmtl.core.plan import Plan
from fastai_condmtl.data.guess import guess_flow
from fastai_condmtl.datasets.synthetic import digits_flow, digits_table, save_scenes, security_flow, security_scenes
from fastai_condmtl.tools.cli import condmtl_train


def given(flow):
    return {b.name: None if b.given is None else str(b.given) for b in flow.tasks}


def kinds(flow):
    return {b.name: type(b).__name__ for b in flow.tasks}


def leaves(flow, gates=()):
    for t in flow.tasks:
        if isinstance(t, Flow):
            yield from leaves(t, gates + ((t.given,) if t.given is not None else ()))
        else:
            yield t, gates + ((t.given,) if t.given is not None else ())


@pytest.mark.parametrize('seed', range(4))
def test_security(seed):
    "Of every table of scenes, whatever its gaps, the flow that was written by hand."
    df = security_scenes(n=250, seed=seed)[1].drop(columns='scene')
    guess = guess_flow(df).flow
    hand = list(leaves(security_flow()))
    assert given(guess) == {t.name: ' & '.join(map(str, g)) or None for t, g in hand}
    assert kinds(guess) == {t.name: type(t).__name__ for t, _ in hand}


def test_security_masks_as_the_flow_by_hand(tmp_path):
    "From the file, with pictures: the same packed labels as those of the flow that was written by hand."
    df = save_scenes(tmp_path, n=300, seed=3)
    guess = guess_flow(pd.read_csv(tmp_path / 'labels.csv'), ignore=['scene'], files=[tmp_path / f for f in df.img])
    assert guess.fn_col == 'img' and not guess.left_out
    a, b = (f.bind(df) for f in (guess.flow, security_flow()))
    ya, yb = a.encode(df), b.encode(df)
    for p in b.paths:
        np.testing.assert_array_equal(
            ya[..., a.slices[a.path(p.rpartition('.')[2])].targets], yb[..., b.slices[p].targets]
        )


def test_digits():
    cond, hand = given(guess_flow(digits_table()[1]).flow), given(digits_flow())
    words = lambda c: sorted(re.findall(r'\w+', c or ''))
    assert (
        cond.pop('has_loop') == "digit.ne('four')" and hand.pop('has_loop') is None
    )  # the table has no label there, which the flow does not say
    assert {k: words(v) for k, v in cond.items()} == {k: words(v) for k, v in hand.items()}


@pytest.mark.parametrize('seed', range(8))
def test_blanks_at_random_mean_nothing(seed):
    rng = np.random.default_rng(seed)
    n = 400
    df = pd.DataFrame(
        {
            **{f'b{i}': rng.integers(0, 2, n) for i in range(6)},
            **{f'k{i}': rng.choice(list('pqrst'), n) for i in range(3)},
            **{f'x{i}': rng.normal(size=n) for i in range(4)},
        }
    ).astype(object)
    df = df.mask(rng.random(df.shape) < rng.choice([0.05, 0.3, 0.7, 0.95], df.shape[1]))
    assert set(given(guess_flow(df).flow).values()) == {None}


def random_tree(rng, n):
    "A table whose blanks come from a random forest of conditions; and these conditions."
    df, true, conds = pd.DataFrame(index=range(n)), {}, {}
    for i in range(8):
        kind = 'b' if rng.random() < 0.7 else 'k'
        name, vals = f'{kind}{i}', rng.integers(0, 2, n) if kind == 'b' else rng.choice(list('pqr'), n)
        ok, conds[name] = np.ones(n, dtype=bool), None
        if true and rng.random() < 0.75:
            q = rng.choice(list(true))
            v = rng.choice(pd.Series(df[q].dropna()).unique())
            if (true[q] & (df[q] == v)).sum() > 0.15 * n:
                ok = (true[q] & (df[q] == v)).to_numpy()
                conds[name] = (q if v == 1 else f'~{q}') if q[0] == 'b' else f"{q}.eq('{v}')"
        df[name], true[name] = pd.Series(vals).where(ok), pd.Series(ok)
    return df, conds


@pytest.mark.parametrize('seed', range(6))
def test_random_trees(seed):
    "Chains of conditions over blanks at random: each task is given its own parent, not the parent's parent."
    rng = np.random.default_rng(seed)
    df, conds = random_tree(rng, 1500)
    df = df.astype(object).mask(rng.random(df.shape) < 0.08)
    assert given(guess_flow(df).flow) == conds


def test_parents_come_first_and_no_circles():
    rng = np.random.default_rng(1)
    n = 600
    p, q = rng.integers(0, 2, n), rng.integers(0, 2, n)
    df = pd.DataFrame(
        dict(
            child=pd.Series(rng.integers(0, 2, n)).where(p == 1),
            a=pd.Series(p).where((q == 1) | (p == 0)),
            parent=p,
            b=pd.Series(q).where((p == 1) | (q == 0)),
        )
    )
    flow = guess_flow(df).flow
    Plan(flow)  # a circle would be an error here
    names = list(given(flow))
    assert given(flow)['child'] == 'parent' and names.index('parent') < names.index('child')


def test_counts_are_those_of_the_table():
    "The sentence's numbers, counted with pandas."
    df = security_scenes(n=400, seed=5)[1].drop(columns='scene')
    why = guess_flow(df).why['door_locked']
    numbers = list(map(int, re.findall(r'\d+', why.partition('Labelled')[2])))
    shut, opened, unknown = df[df.door_open == 0], df[df.door_open == 1], df[df.door_open.isna()]
    assert (
        numbers == [x for part in (shut, opened, unknown) for x in (part.door_locked.notna().sum(), len(part))]
        and '~door_open' in why
    )


def test_wrong_labels_are_forgiven_up_to_a_point():
    rng = np.random.default_rng(0)
    n = 1000
    a = rng.integers(0, 2, n)
    df = pd.DataFrame(dict(a=a, b=pd.Series(rng.integers(0, 2, n)).where(a == 1)))
    off = np.flatnonzero(a == 0)
    df.loc[off[:5], 'b'] = 1
    assert given(guess_flow(df).flow)['b'] == 'a'
    df.loc[off[:60], 'b'] = 1
    assert given(guess_flow(df).flow)['b'] is None


def test_left_out_and_odd_names(tmp_path):
    n = 40
    rng = np.random.default_rng(0)
    df = pd.DataFrame(
        {
            'id': range(n),
            'file': [f'{i}.JPG' for i in range(n)],
            'note': [f'text {i}' for i in range(n)],
            'blank': None,
            'same': 1,
            'day': pd.date_range('2024', periods=n),
            'is_valid': rng.random(n) < 0.2,
            'loss.of,load': rng.integers(0, 2, n),
            'ok': rng.integers(0, 2, n),
            'other': rng.integers(0, 2, n),
        }
    )
    guess = guess_flow(df, ignore=['other'])
    assert guess.fn_col == 'file' and set(guess.left_out) == {'id', 'note', 'blank', 'same', 'day', 'is_valid'}
    assert [(b.name, b.cols) for b in guess.flow.tasks] == [('los_of_load', ['loss.of,load']), ('ok', ['ok'])]
    text = guess.flow.to_json()
    assert all(w in text for w in ("Left out column 'id'", "Image files: column 'file'")) and Flow.from_json(text).bind(
        df
    ).encode(df).shape == (n, 2, 2)
    assert all(t.note for t in guess.flow.tasks) and 'Left out' in repr(guess)


def test_boxes_need_one_size(tmp_path):
    df = pd.DataFrame(dict(f=['0.png', '1.png'], face_x=[1.0, 30], face_y=[2.0, 9], face_w=[3.0, 9], face_h=[4.0, 8]))
    files = [tmp_path / f for f in df.f]
    for f in files:
        Image.new('RGB', (40, 20)).save(f)
    ranges = lambda: {b.name: (b.given_range, b.draws) for b in guess_flow(df, files=files).flow.tasks}
    assert ranges() == dict(
        face_x=((0, 40), 'face.x1'), face_y=((0, 20), 'face.y1'), face_w=((0, 40), 'face.w'), face_h=((0, 20), 'face.h')
    )
    Image.new('RGB', (41, 20)).save(files[1])
    assert set(ranges().values()) == {(None, None)}


def test_errors():
    with pytest.raises(FlowError, match='nothing to guess'):
        guess_flow(pd.DataFrame())
    with pytest.raises(FlowError, match="'c' is not a column"):
        guess_flow(pd.DataFrame(dict(a=[1])), ignore=['c'])
    with pytest.raises(FlowError, match="no column looks like a task: 'a'"):
        guess_flow(pd.DataFrame(dict(a=[1, 1])))
    with pytest.raises(FlowError, match='stands twice'):
        guess_flow(pd.DataFrame([[1, 2]], columns=['a', 'a']))


def test_a_constant_side_is_no_part_of_a_box(tmp_path):
    rng, n = np.random.default_rng(0), 200
    df = pd.DataFrame(
        dict(
            face_x1=rng.integers(0, 30, n),
            face_y1=5,
            face_w=rng.integers(1, 30, n),
            face_h=rng.integers(1, 30, n),
            eye_x=rng.integers(0, 60, n),
            eye_y=rng.integers(0, 60, n),
        )
    )
    Image.new('RGB', (64, 64)).save(tmp_path / 'a.png')
    guess = guess_flow(df, files=[tmp_path / 'a.png'])
    assert (
        'nothing to learn' in guess.left_out['face_y1']
        and not any('box' in w for w in guess.why.values())
        and 'point' in guess.why['eye_x']
    )
    bound = guess.flow.bind(df)
    assert set(FlowPrediction(bound, bound.encode(df)[0]).shapes()) == {'eye'} and all(
        b.draws is None for p, b in bound.tasks.items() if p.startswith('face')
    )
    guess = guess_flow(df.assign(face_y1=rng.integers(0, 30, n)), files=[tmp_path / 'a.png'])
    bound = guess.flow.bind(d := df.assign(face_y1=np.arange(n) % 30))
    x, y, w, h = FlowPrediction(bound, bound.encode(d)[0]).shapes()['face']
    np.testing.assert_allclose(
        [x, y, w, h], d.loc[0, ['face_x1', 'face_y1', 'face_w', 'face_h']].astype(float) / 64, atol=1e-6
    )


def test_names_of_columns_that_are_no_text():
    guess = guess_flow(pd.DataFrame({0: [0, 1] * 50, 'a.b': [1, 0] * 50}))
    assert 'Called' not in guess.why['0'] and "Called 'a_b', since 'a.b' cannot be a name" in guess.why['a_b']
    assert [b.cols for b in guess.flow.tasks] == [[0], ['a.b']]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('cli')
    df = save_scenes(path / 'pictures', n=40, size=32)[['img']].assign(size=['1', '2', '3', 'm'] * 10)
    df.to_csv(path / 'mix.v2.csv', index=False)
    df[df['size'] != 'm'].to_csv(path / 'test.csv', index=False)
    Flow('f', SingleLabelBlock('size')).to_json(path / 'flow.json')
    return path


def test_guess_takes_any_file_name(folder, tmp_path):
    condmtl_train([str(a) for a in ('--guess', folder / 'mix.v2.csv', '--flow', tmp_path / 'guess.json')])
    assert Flow.from_json(tmp_path / 'guess.json').name == 'mix_v2'
