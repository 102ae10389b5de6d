"Guesses against tables whose conditions are known, since they made the gaps."

import json, re
import numpy as np, pandas as pd, pytest
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


# ---- values where nobody was asked
# ------------------------------------------------------------------------------
def nas(flow):
    return {t.name: (str(t.given), t.na) for t in flow.tasks if t.na is not None}


def households(word, number, n=300, seed=0):
    rng = np.random.default_rng(seed)
    pet = rng.random(n) < 0.5
    kinds = np.where(pet, rng.choice(['cat', 'dog', 'bird'], n), word)
    ages = np.where(pet, rng.integers(1, 15, n), number)
    return pd.DataFrame(dict(has_pet=np.where(pet, 'yes', 'no'), kind=kinds, age=ages, rooms=rng.integers(0, 9, n)))


@pytest.mark.parametrize('word', ['none', 'not asked', 'N/A', '-', ' skipped '])
@pytest.mark.parametrize('number', [0, -1, 99])
def test_values_where_nobody_was_asked(word, number):
    df = households(word, number)
    guess = guess_flow(df)
    assert nas(guess.flow) == dict(kind=('has_pet', (word.strip(),)), age=('has_pet', (number,)))
    n_pets = int((df.has_pet == 'yes').sum())
    assert f'in {300 - n_pets} of {300 - n_pets} rows where has_pet is false' in guess.why['age']
    assert f'{number!r} seems to mean' in guess.why['age'] and '2% may differ' in guess.why['age']
    gaps = df.assign(kind=df.kind.where(df.has_pet == 'yes'), age=df.age.where(df.has_pet == 'yes').astype('Int64'))
    y = [f.bind(t).encode(t) for f, t in ((guess.flow, df), (guess_flow(gaps).flow, gaps))]
    np.testing.assert_array_equal(*y)  # as if the cells were blank
    again = Flow.from_json(guess.flow.to_json())
    assert nas(again) == nas(guess.flow) and guess.diff(again).empty


@pytest.mark.parametrize('word, number', [(None, None), ('none', -1)])
def test_values_where_two_conditions_together_say_that_nobody_was_asked(word, number):
    "The condition that blanks tell; the counts by hand"
    rng, n = np.random.default_rng(0), 500
    kind, product = rng.choice(['complaint', 'other'], n), rng.choice(list('abcd'), n)
    asked = (kind == 'complaint') & np.isin(product, ['a', 'b'])
    df = pd.DataFrame(dict(kind=kind, product=product))
    df['refund'] = pd.Series(rng.integers(0, 2, n)).astype(object).where(asked, number)
    df['how_bad'] = pd.Series(rng.choice(['lo', 'hi'], n)).astype(object).where(asked, word)
    guess = guess_flow(df)
    both = "kind.eq('complaint') & product.isin(['a', 'b'])"
    assert given(guess.flow) == dict(kind=None, product=None, refund=both, how_bad=both)
    assert kinds(guess.flow)['refund'] == 'BinaryBlock'
    if word:
        assert nas(guess.flow) == dict(refund=(both, (number,)), how_bad=(both, (word,)))
        assert f'in {n - asked.sum()} of {n - asked.sum()} rows where {both} is false' in guess.why['refund']
        df.loc[np.flatnonzero(~asked)[:60], 'refund'] = 1
        assert 'refund' not in nas(guess_flow(df).flow)


def test_some_rows_may_differ_and_more_may_not():
    df = households('none', 0)
    no, yes = np.flatnonzero(df.has_pet == 'no'), np.flatnonzero(df.has_pet == 'yes')
    df.loc[yes[:2], 'age'], df.loc[no[:2], 'kind'] = 0, 'cat'
    assert set(nas(guess_flow(df).flow)) == {'kind', 'age'} and 'in 2 of' in guess_flow(df).why['age']
    df.loc[yes[:8], 'age'], df.loc[no[:8], 'kind'] = 0, 'cat'
    assert nas(guess_flow(df).flow) == {}


def test_answers_stay_answers():
    "Values of which one follows from another column, but which no table writes for 'not asked'."
    rng = np.random.default_rng(0)
    n = 400
    red, size = rng.random(n) < 0.4, rng.integers(0, 5, n)
    df = pd.DataFrame(
        dict(
            is_red=red,
            colour=np.where(red, 'red', rng.choice(['blue', 'green'], n)),
            speed=np.where(red, 3, rng.integers(4, 9, n)),
            size=size,
            none_at_random=rng.choice(['none', 'a', 'b'], n),
            minus=rng.choice([-1, 0, 1, 2], n),
        )
    )
    assert nas(guess_flow(df).flow) == {} and set(given(guess_flow(df).flow).values()) == {None}


@pytest.mark.parametrize('seed', range(6))
def test_labels_at_random_mean_nothing(seed):
    rng = np.random.default_rng(seed)
    n = 300
    df = pd.DataFrame(
        {
            **{f'b{i}': rng.integers(0, 2, n) for i in range(6)},
            **{f'k{i}': rng.choice(['none', 'p', 'q'], n, p=[0.8, 0.1, 0.1]) for i in range(4)},
            **{f'x{i}': np.where(rng.random(n) < 0.9, 0, rng.integers(-1, 9, n)) for i in range(4)},
        }
    )
    flow = guess_flow(df).flow
    assert nas(flow) == {} and set(given(flow).values()) == {None}


def test_values_that_the_user_names():
    df = households('weg', 0).assign(rooms=7, owner=['weg', 'me', 'you'] * 100)
    guess = guess_flow(df, na=('weg', -7))
    assert {t.name: t.na for t in guess.flow.tasks if t.na} == dict(kind=('weg',), age=(0,), owner=('weg',))
    assert given(guess.flow) == dict(has_pet=None, kind='has_pet', age='has_pet', owner=None)
    with pytest.raises(FlowError, match="guess_flow.*na="):
        guess_flow(df, na=[None])


def test_diff_and_edit_by_hand():
    df = households('none', 0)
    guess = guess_flow(df)
    pet = BinaryBlock('has_pet')
    flow = Flow('f', pet, Flow('g', SingleLabelBlock('kind'), CountBlock('years', 'age', na=0), na='none') | pet)
    assert {tuple(row) for row in guess.diff(flow).values.tolist()} == {
        ('rooms', 'task', 'there', 'not there'),
        ('age', 'task', 'there', 'not there'),
        ('years', 'task', 'not there', 'there'),
    }
    other = guess.edit('kind', SingleLabelBlock('kind') | ~pet).edit('rooms')
    assert guess.diff(other).values.tolist()[:2] == [
        ['kind', 'given', 'has_pet', '~has_pet'],
        ['kind', 'na', "'none'", ''],
    ]
    assert other.flow.bind(df).paths == ['has_pet', 'kind', 'age'] and len(guess.flow.tasks) == 4
    for task, match in (('has_pet', "'has_pet'"), ('kin', "did you mean 'kind'")):
        with pytest.raises(FlowError, match=match):
            guess.edit(task)


@pytest.mark.data
def test_coffee_leaves(shared_data):
    "BRACOL writes 0 as the severity of healthy leaves, and a no for each stress."
    df = pd.read_csv(shared_data / 'bracol' / 'dataset-full.csv')
    guess = guess_flow(df, ignore=['id'])
    assert nas(guess.flow) == dict(severity=('predominant_stress.ne(0)', (0,)))
    flags = ['miner', 'rust', 'phoma', 'cercospora']
    assert given(guess.flow) == dict(predominant_stress=None) | dict.fromkeys(
        [*flags, 'severity'], 'predominant_stress.ne(0)'
    )
    odd = int(((df.severity == 0) & (df.predominant_stress != 0)).sum())
    assert (
        odd == 2 and f'in {odd} of {int((df.predominant_stress != 0).sum())} where it is true' in guess.why['severity']
    )
    counted = guess.flow.audit(df).table.set_index('task_path').masked
    assert counted['severity'] == counted['miner'] - 2 == 1473


@pytest.mark.data
def test_posts(shared_data):
    "EDOS writes none where a post is not sexist."
    df = pd.read_csv(shared_data / 'edos' / 'edos_labelled_aggregated.csv').drop(columns='text')
    flow = guess_flow(df).flow
    cond = "label_sexist.eq('sexist')"
    assert nas(flow) == dict(label_category=(cond, ('none',)), label_vector=(cond, ('none',)))
    assert [len(b.vocab) for b in flow.bind(df).tasks.values()] == [2, 4, 11]


@pytest.mark.data
def test_skip_logic_of_a_survey(shared_data):
    "NHANES, by the documentation of its questionnaire"
    df = pd.read_csv(shared_data / 'nhanes' / 'NHANES.csv')
    conds = given(guess_flow(df, ignore=['ID']).flow)
    want = dict(SmokeNow='Smoke100', SmokeAge='Smoke100', DiabetesAge='Diabetes', AgeFirstMarij='Marijua')
    want |= dict(RegularMarij='Marijua', AgeRegMarij='RegularMarij')  # which implies Marijua
    assert {name: conds[name] for name in want} == want
    assert 'SexEver' not in conds['HardDrugs']  # never yes there, of 222, and asked all the same


def test_the_code_of_a_guess_makes_its_flow():
    "Names that Python does not take as they are, values of every kind, conditions of several parts"
    rng = np.random.default_rng(0)
    n = 400
    asked, kind = rng.random(n) < 0.6, rng.choice(["it's", 'b"c', 'd'], n)
    df = pd.DataFrame({'class': np.where(asked, 'yes', 'no'), 'a b': kind, 'a_b': rng.integers(0, 90, n), '2nd': kind})
    df['flow'] = pd.Series(rng.random(n)).where(asked & (kind == "it's"))
    df['BinaryBlock'] = pd.Series(rng.random(n) < 0.5).where(df.a_b >= 18)
    df['none'] = np.where(asked, rng.choice(['x', 'y'], n), 'not put')
    guess = guess_flow(df, "it's", na=['not put'])
    made: dict = {}
    exec(guess.code(), made)
    without = lambda flow: [{k: v for k, v in t.items() if k != 'note'} for t in json.loads(flow.to_json())['tasks']]
    assert without(made['flow']) == without(guess.flow) and made['flow'].name == "it's"
    assert sum(task.given is not None for task in guess.flow.tasks) >= 3
    comments = ' '.join(line[2:] for line in guess.code().splitlines() if line.startswith('# '))
    assert all(' '.join(why.split()) in comments for why in guess.why.values())


def test_codes_of_all_columns_are_answers_amid_other_numbers():
    "7 and 9 refuse a scale from 1 to 5, and are cigarettes a day; a dict says it column by column"
    rng, n = np.random.default_rng(0), 400
    df = pd.DataFrame(dict(job=rng.choice([1, 2, 3, 4, 5, 7, 9], n), cigarettes=rng.choice([*range(1, 25), 77, 99], n)))
    tasks = {block.name: block for block in guess_flow(df, na=(7, 9, 77, 99)).flow.tasks}
    assert set(tasks['job'].na) == {7, 9} and set(tasks['cigarettes'].na) == {77, 99}
    assert "'cigarettes' has numbers below and above 7, 9" in ' '.join(guess_flow(df, na=(7, 9, 77, 99)).flow.note)
    tasks = {block.name: block for block in guess_flow(df, na=dict(cigarettes=(7, 99))).flow.tasks}
    assert set(tasks['cigarettes'].na) == {7, 99} and not tasks['job'].na
    with pytest.raises(FlowError, match="na=: 'jop' is no column with a task: did you mean 'job'"):
        guess_flow(df, na=dict(jop=9))


CORNERS = (
    'x1 y1 x2 y2|box_x1 box_y1 box_x2 box_y2|xmin ymin xmax ymax|left top right bottom|x_min y_min x_max y_max|'
    'XMin YMin XMax YMax|hat_left hat_top hat_right hat_bottom'
)


def box_table(names, n=60):
    rng = np.random.default_rng(0)
    low = rng.integers(0, 50, (n, 2))
    numbers = np.concatenate([low, low + rng.integers(0, 50, (n, 2))], 1)
    return pd.DataFrame(numbers, columns=names.split()).astype('Int64').assign(ok=[0, 1] * (n // 2))


@pytest.mark.parametrize('names', CORNERS.split('|'))
def test_columns_that_are_a_box_are_told_by_their_names(names):
    df = box_table(names).sample(frac=1, axis=1, random_state=0)
    df.loc[3, names.split()] = pd.NA
    guess, first = guess_flow(df), names.split()[0]
    assert [block.name for block in guess.flow.tasks] == list(df.columns)
    assert all(
        f"part of the box '{first.split('_')[0] if first[0] in 'bh' else 'box'}'" in guess.why[c] for c in names.split()
    )
    line = guess.why[first].partition('Of pictures, ')[2].partition(' takes the box')[0]
    block = eval(line)
    assert isinstance(block, BoxBlock) and block.cols == names.split()
    values, known = Flow('f', block).bind(df).tasks[block.name].read_labels(df)
    np.testing.assert_array_equal(values[known.all(1)], df[names.split()].dropna().to_numpy(float))


def test_width_and_height_are_a_box_and_other_columns_none():
    df = box_table('x y width height')
    line = guess_flow(df).why['x'].partition('Of pictures, ')[2].partition(' takes the box')[0]
    assert eval(line).fmt == 'xywh'
    told = lambda df: ' '.join(guess_flow(df).why.values())
    assert 'part of' not in told(df.rename(columns=dict(width='z')))  # x and y may be anything
    assert 'part of' not in told(box_table('x2 y2 x1 y1').assign(x2=lambda df: df.x2 - 1))  # right before left
    assert 'part of' not in told(df.assign(width=-df.width))
    both = pd.concat(
        [box_table('x1 y1 x2 y2'), box_table('box_x1 box_y1 box_x2 box_y2')[CORNERS.split('|')[1].split()]],
        axis=1,
    )
    assert told(both).count('Of pictures') == 1


def nearly(n_labelled, n_false=440, n_true=560, labelled_true=560):
    "`b` is labelled in so many rows where `a` is no, and in so many where it is yes"
    a = [0] * n_false + [1] * n_true
    known = [True] * n_labelled + [False] * (n_false - n_labelled) + [True] * labelled_true
    known += [False] * (n_true - labelled_true)
    kind = np.where(np.array(a) == 1, 'car', 'van')
    return pd.DataFrame(dict(a=a, kind=kind, b=[i % 2 if k else None for i, k in enumerate(known)]), dtype=object)


@pytest.mark.parametrize('n_labelled, labelled_true', [(9, 560), (12, 560), (12, 300), (44, 560)])
@pytest.mark.parametrize('col', ['a', 'kind'])
def test_a_condition_with_more_exceptions_than_mistakes_is_told_and_not_guessed(n_labelled, labelled_true, col):
    guess = guess_flow(nearly(n_labelled, labelled_true=labelled_true)[[col, 'b']])
    cond = dict(a='a', kind="kind.eq('car')")[col]
    assert [task.given for task in guess.flow.tasks] == [None, None]
    assert guess.why['b'].endswith(
        f'. No condition: labelled in {n_labelled + labelled_true} of 1000 rows. Almost: labelled in {labelled_true} '
        f'of 560 rows where {cond}, in {n_labelled} of 440 where not; up to 2% may be mistakes, correct them if they '
        'are.'
    )


@pytest.mark.parametrize(
    'n_labelled, labelled_true, guessed',
    [
        (8, 560, True),  # within the tolerance
        (45, 560, False),  # more than a tenth of the rows
        (40, 120, False),  # more than a tenth of the labels
    ],
)
def test_what_is_no_near_miss(n_labelled, labelled_true, guessed):
    guess = guess_flow(nearly(n_labelled, labelled_true=labelled_true)[['a', 'b']])
    assert 'Almost' not in guess.why['b']
    assert (guess.flow.tasks[1].given is not None) == guessed
