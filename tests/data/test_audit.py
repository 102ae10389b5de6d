"""Counts and findings of `audit` against a plain loop over rows; trees and drawings by what they hold: nodes,
texts, colours and boxes."""

import re
import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, torch
from PIL import Image
from fastai.vision.all import Resize
from hypothesis import given
from fastai_condmtl.vision.all import *
from fastai_condmtl.data.audit import Audit
from fastai_condmtl.data.findings import Finding
from oracle import Oracle, build, frame, k_and, n_rows, raw_row, told
from random_flows import checks, random_spec, random_table, rngs

pytestmark = pytest.mark.filterwarnings('ignore')
COUNTS = ['labelled', 'applicable', 'unknown', 'masked', 'labelled_if_false', 'positive_if_false']


# ---- audit: counts
# ----------------------------------------------------------------------------------------------------
def audited(spec, table):
    "{path: {what: positions}} by a loop over rows."
    o, res = Oracle(spec), {}
    for i in range(n_rows(table)):
        cells = {p: o.cell(p, v) for p, v in raw_row(table, i).items()}
        for path, (t, pre, conds) in o.entries.items():
            state, v = k_and([o.evaluate(c, p, cells) for c, p in conds]), cells[path]
            known = o.labelled(v)
            something = known and (
                any(told(t, x) is True for x in v.values())
                if isinstance(v, dict)
                else t['kind'] != 'binary' or told(t, v) is True
            )
            here = dict(
                labelled=known,
                applicable=state is True,
                unknown=state is None,
                masked=known and state is True,
                labelled_if_false=known and state is False,
                positive_if_false=something and state is False,
                gap=known and state is None,
            )
            for what, yes in here.items():
                res.setdefault(path, {}).setdefault(what, []).extend([i] * yes)
    return res


@checks(80)
@given(rngs)
def test_counts_on_random_tables(rng):
    spec = random_spec(rng, max_tasks=8, na=True, unsure=True)
    table = random_table(rng, spec, n=rng.randint(5, 25))
    audit = build(spec, rng).audit(frame(spec, table, rng))
    want, rows = audited(spec, table), audit.table.set_index('task_path')
    assert list(audit.table.columns) == ['task_path', 'kind', *COUNTS, 'balance'] and list(rows.index) == list(want)
    for path, w in want.items():
        kind = Oracle(spec).entries[path][0]['kind']
        assert {c: rows[c][path] for c in COUNTS} == {c: len(w[c]) for c in COUNTS}, path
        assert list(audit.rows(path, 'gap')) == w['gap'], path
        false = audit.rows(path, 'contradiction'), audit.rows(path, 'idle')
        if kind == 'binary':
            assert list(false[0]) == w['positive_if_false'], path
        else:
            assert set(w['positive_if_false']) <= set(false[0]) | set(false[1]) <= set(w['labelled_if_false']), path
        found = {f.kind for f in audit.findings if f.task_path == path}
        assert ('no_rows' in found) == (not w['masked']) and bool(w['gap']) == ('gap' in found), (path, found)
        if 'Binary' == rows.kind[path] and w['masked']:
            t = Oracle(spec).entries[path][0]
            scored = [table[path][i] for i in w['masked'] if told(t, table[path][i]) is not None]
            yes = sum(told(t, v) for v in scored)
            assert ('one_class' in found) == (bool(scored) and yes in (0, len(scored))), path
            assert ('untold' in found) == (not scored), path
            share = 100 * sum(scored) / max(1, len(scored))
            assert float(re.search(r'[\d.]+', rows.balance[path])[0]) == pytest.approx(share, abs=0.06)
    for f in audit.findings:
        assert (
            f.task_path in want and f.text and isinstance(f.serious, bool) and set(f.rows) <= set(range(n_rows(table)))
        ), f


@checks(20)
@given(rngs)
def test_audit_of_a_bound_flow_and_any_index(rng):
    spec = random_spec(rng, max_tasks=5, unsure=True)
    df, fl = frame(spec, random_table(rng, spec), rng), build(spec, rng)
    first, named = fl.audit(df), fl.audit(df.set_axis([rng.choice('abc') for _ in range(len(df))]))
    pd.testing.assert_frame_equal(first.table, named.table)
    assert first.findings == named.findings and str(first)


# ---- audit: each kind of finding
# --------------------------------------------------------------------------------------
a, b, c = (BinaryBlock(x) for x in 'abc')


def kinds(audit, task=None):
    return {f.kind for f in audit.findings if task in (None, f.task_path)}


def cols(n=40, **kw):
    return pd.DataFrame({k: list(v) * (n // len(v)) for k, v in kw.items()}, dtype=object)


def test_a_sound_table_has_no_findings():
    audit = Flow('f', a, b | a, SingleLabelBlock('k') | a, UnboundedRegressionBlock('r') | b).audit(
        cols(400, a=[1, 1, 0, 1], b=[1, 0, None, 1], k=['u', 'v', None, 'v'], r=[1.0, None, None, 3.0])
    )
    assert audit.findings == [] or not audit.findings


def test_contradiction():
    df = cols(a=[1, 0], b=[1, 0])
    df.loc[[3, 9], 'b'] = 1
    audit = Flow('f', a, b | a).audit(df)
    assert (
        audit.rows('b', 'contradiction') == [3, 9]
        and [f.serious for f in audit.findings if f.kind == 'contradiction'] == [True]
        and audit.rows('a') == []
    )
    assert 'contradiction' not in kinds(
        Flow('f', a, b | a).audit(df.assign(b=df.b.where(df.a == 1, 0)))
    )  # a column that says no throughout
    k = SingleLabelBlock('k', vocab=['u', 'v'])
    assert Flow('f', a, k | ~a).audit(df.assign(k=[None] * 12 + ['u'] + [None] * 27)).rows('k', 'contradiction') == [12]
    m = MultiLabelBlock('m', vocab=['u', 'v'])
    assert Flow('f', a, m | a).audit(df.assign(m=[None] * 11 + ['u'] + ['', ''] * 14)).rows('m', 'contradiction') == [
        11
    ]


def test_contradiction_of_inferred_labels():
    df = cols(8, a=[1, 0, None, 0], b=[1, 1, 1, None], c=[None, None, 1, 1])
    audit = Flow('f', a, b | a, c | ~a, infer_labels=True).audit(df)
    assert sorted(set(audit.rows('a', 'contradiction')) | set(audit.rows('b', 'contradiction'))) == [1, 2, 5, 6]


@pytest.mark.parametrize('n_none, found', [(0, False), (1, True), (7, True), (8, False), (20, False)])
def test_none_of(n_none, found):
    "40 rows with a yes: fewer than 20 % without any of its children are an oversight, more are not."
    df = pd.DataFrame(
        dict(a=[1] * 40 + [0] * 20, b=[0] * n_none + [1] * (40 - n_none) + [None] * 20, c=[0] * 40 + [None] * 20),
        dtype=object,
    )
    df.loc[39, 'c'] = 1
    audit = Flow('f', a, b | a, c | a).audit(df)
    assert audit.rows('a', 'none_of') == (list(range(n_none)) if found else [])
    assert all(f.serious and str(n_none) in f.text for f in audit.findings if f.kind == 'none_of')


def test_none_of_asks_for_two_children_of_it_alone():
    df = pd.DataFrame(dict(a=[1] * 40, b=[0, 0] + [1] * 38, c=[0, 0] + [0, 1] * 19, d=[1] * 39 + [0]), dtype=object)
    assert Flow('f', a, b | a).audit(df).rows('a', 'none_of') == []
    assert Flow('f', a, b | ~a, c | ~a).audit(df.assign(a=0)).rows('a', 'none_of') == []
    assert Flow('f', a, b | a, c | a).audit(df).rows('a', 'none_of') == [0, 1]
    df.loc[0, 'c'] = None  # a gap says nothing
    assert Flow('f', a, b | a, c | a).audit(df).rows('a', 'none_of') == [1]
    assert Flow('f', a, Flow('g', b, c) | a).audit(df).rows('a', 'none_of') == [1]


def test_none_of_leaves_children_that_ask_for_more_alone():
    "What `c` is given is not exactly `a`: with `b` alone there is one child."
    df = pd.DataFrame(dict(a=[1] * 40, b=[0, 0] + [1] * 38, c=[0, 0] + [0, 1] * 19, d=[1] * 39 + [0]), dtype=object)
    assert Flow('f', a, BinaryBlock('d'), b | a, c | task('a') & task('d')).audit(df).rows('a', 'none_of') == []


def test_few_one_class_no_rows_and_gaps():
    df = cols(a=[1, 0, None, 1], b=[1, 1, 1, 1], c=[None] * 4, k=['u', None, None, 'v'])
    df.loc[:10, 'k'] = None
    f = Flow('f', a, b, c, SingleLabelBlock('k', vocab=['u', 'v', 'w']), BinaryBlock('d', 'b') | a)
    audit = f.audit(df, few=10)
    assert (
        {'one_class'} <= kinds(audit, 'b')
        and {'no_rows'} <= kinds(audit, 'c')
        and {'few'} <= kinds(audit, 'k')
        and kinds(audit, 'a') == set()
    )
    assert audit.rows('d', 'gap') == list(range(2, 40, 4)) and audit.rows('d', 'contradiction') == list(range(1, 40, 4))
    assert 'few' in kinds(f.audit(df, few=11), 'a') and 'few' not in kinds(f.audit(df, few=10), 'a')
    assert 'few' in kinds(f.audit(df, few=1), 'k')


def test_a_column_filled_throughout_is_idle():
    audit = Flow('f', a, UnboundedRegressionBlock('r') | a).audit(cols(a=[1, 0, 1, 0], r=[1.0, 2.0, 3.0, 4.0]))
    assert (
        kinds(audit, 'r') == {'idle'}
        and audit.rows('r', 'idle') == list(range(1, 40, 2))
        and not any(f.serious for f in audit.findings)
    )


def test_ai4i(shared_data, capsys):
    if not (shared_data / 'ai4i2020.csv').exists():
        pytest.skip('ai4i2020.csv is not there')
    df, fail = pd.read_csv(shared_data / 'ai4i2020.csv'), BinaryBlock('Machine failure')
    modes = ['TWF', 'HDF', 'PWF', 'OSF', 'RNF']
    audit = Flow('ai4i', fail, *[BinaryBlock(m) | fail for m in modes]).audit(df)
    no = df['Machine failure'] == 0
    assert (
        audit.rows('RNF', 'contradiction') == np.flatnonzero(no & (df.RNF == 1)).tolist()
        and len(audit.rows('RNF', 'contradiction')) == 18
    )
    assert (
        audit.rows('Machine failure', 'none_of') == np.flatnonzero(~no & (df[modes].sum(1) == 0)).tolist()
        and len(audit.rows('Machine failure')) == 9
    )
    assert (audit.table.masked == [len(df)] + [339] * 5).all() and (
        audit.table.labelled_if_false == [0] + [int(no.sum())] * 5
    ).all()
    ax = audit.show()
    text, drawn = capsys.readouterr().out, ' '.join(t.get_text() for t in ax.texts)
    assert (
        all(f.text in text for f in audit.findings)
        and all(m in drawn for m in ['Machine failure', *modes])
        and '339' in drawn
    )


def test_audit_asks_for_rows_of_a_task():
    audit = Flow('f', a, b | a).audit(cols(a=[1, 0], b=[1, 1]))
    assert audit.rows('b') == audit.rows('b', 'contradiction') == list(range(1, 40, 2))
    with pytest.raises(FlowError, match="'zz'"):
        audit.rows('zz')
    with pytest.raises(FlowError, match="'b'"):
        Flow('f', a, b | a).audit(cols(a=[1]))


# ---- a flow drawn
# -----------------------------------------------------------------------------------------------------
def nested_flow():
    a, k, m = BinaryBlock('a'), SingleLabelBlock('k', vocab=list('uvw')), MultiLabelBlock('m', vocab=['hat', 'scarf'])
    inner = Flow(
        'g', m, BoundedRegressionBlock('r', y_range=(0, 8)), *[BinaryBlock(f'inp {i}') for i in (10, 2, 1)]
    ) | k.ne('u')
    return Flow('f', a, k | a, inner, BinaryBlock('late', vocab=('shut', 'open')) | any_of(m.has('hat'), k.eq('w')))


TABLE = pd.DataFrame(
    dict(a=[True, False] * 3, k=list('uvwuvw'), m=['hat', ''] * 3, r=[1.0, 2] * 3, late=['shut', 'open'] * 3)
    | {f'inp {i}': [True, False] * 3 for i in (1, 2, 10)}
)
CONDITIONS = ['a', "k.ne('u')", "any_of(m.has('hat'), k.eq('w'))"]
NAMES = ['a', 'k', 'm', 'r', 'inp 10', 'inp 2', 'inp 1', 'late', 'g']


def test_show_and_plot(capsys):
    flow = nested_flow()
    flow.show()
    text = capsys.readouterr().out
    assert all(x in text for x in NAMES + CONDITIONS) and text.index('inp 10:') < text.index('inp 2:') < text.index(
        'inp 1:'
    )
    _, mine = plt.subplots()
    for ax in (flow.plot(), flow.bind(TABLE).plot(), flow.plot(ax=mine)):
        words = [t.get_text() for t in ax.texts]
        assert all(any(re.search(rf'(^|\W){re.escape(n)}($|\W)', w) for w in words) for n in NAMES) and all(
            any(c in w for w in words) for c in CONDITIONS
        )
    assert ax is mine
    ax.figure.canvas.draw()


# ---- trees
# ------------------------------------------------------------------------------------------------------------
BOUND = nested_flow().bind(TABLE)


def logits_for(a=3.0, k=(0, 2, 1), m=(1, -1), r=0.0, inp=(1.0, -2.0, 3.0), late=0.5):
    z, s = torch.zeros(1, BOUND.c), BOUND.slices
    for p, v in dict(
        a=a, k=k, late=late, **{'g.m': m, 'g.r': r}, **{f'g.inp {i}': v for i, v in zip((10, 2, 1), inp)}
    ).items():
        z[0, s[p].logits] = torch.tensor(v)
    return z


def prediction(**kw):
    z = logits_for(**kw)
    acts = BOUND.loss_func.activation(z)
    flow_order = torch.cat(
        [z[0, BOUND.slices[p].logits] for p in BOUND.paths]
    )  # a prediction's logits stand as its activations do
    return FlowPrediction(BOUND, BOUND.loss_func.decodes(acts)[0], activations=acts[0], logits=flow_order)


def truth(**row):
    return FlowPrediction(
        BOUND, torch.as_tensor(BOUND.encode(pd.DataFrame([{c: row.get(c) for c in TABLE.columns}], dtype=object)))[0]
    )


def lines(tree):
    return [re.sub('^[│├└─ ]*', '', l) for l in str(tree).splitlines() if l.strip()]


def test_tree_text():
    assert lines(prediction().tree()) == [
        'f',
        'a: yes (0.95)',
        'k: v (0.67)',
        'g',
        'm: hat 0.73',
        'r: 4',
        'inp 10: yes (0.73)',
        'inp 2: no (0.88)',
        'inp 1: yes (0.95)',
        'late: open (0.62)',
    ]
    assert [n.split(':')[0] for n in lines(prediction(k=(3, 0, 0)).tree())] == ['f', 'a', 'k'] and lines(
        prediction(a=-3.0).tree()
    ) == ['f', 'a: no (0.95)']
    assert 'late' in str(prediction(k=(0, 0, 3), m=(-1, 1)).tree()) and 'late' not in str(prediction(m=(-1, 1)).tree())


def test_order_is_that_of_writing():
    names = ['inp 2', 'inp 10', 'inp 1', 'z', 'B', 'a', 'ü']
    for order in (names, names[::-1]):
        bound = Flow('f', *[BinaryBlock(n) for n in order]).bind(pd.DataFrame({n: [True, False] for n in names}))
        assert [l.split(':')[0] for l in lines(FlowPrediction(bound, torch.ones(2, 7)).tree())] == ['f', *order]
    numbers = [f'inp {i}' for i in range(1, 25)]
    bound = Flow('f', *[BinaryBlock(n) for n in numbers]).bind(pd.DataFrame({n: [True, False] for n in numbers}))
    assert [l.split(':')[0] for l in lines(FlowPrediction(bound, torch.ones(2, 24)).tree())] == ['f', *numbers]


def test_what_a_tree_may_show():
    p = prediction()
    tag = lambda path, **kw: p.tree(**kw)[path].tag
    assert [float(x) for x in re.findall(r'0\.\d+', tag('k', top_k=3))] == [0.67, 0.24, 0.09] and re.findall(
        '[uvw]', tag('k', top_k=3)
    ) == ['v', 'w', 'u']
    assert re.findall('[uvw]', tag('k', top_k=2)) == ['v', 'w'] and tag('k', top_k=99) == tag('k', top_k=3)
    assert (
        not re.search(r'0\.\d', str(p.tree(probability=False)))
        and 'open' not in str(p.tree(decoded=False))
        and '0.62' in tag('late', decoded=False)
    )
    assert (
        'logit' not in str(p.tree())
        and 'given' not in str(p.tree())
        and all(x in str(p.tree(condition=True)) for x in CONDITIONS)
    )
    assert (
        [float(x) for x in re.findall(r'-?\d+\.\d', tag('k', logits=True).split('logits')[1])] == [0.0, 2.0, 1.0]
        and '3.0' in tag('a', logits=True)
        and '0.5' in tag('late', logits=True)
    )
    plain = FlowPrediction(BOUND, torch.as_tensor(BOUND.encode(TABLE))[2])
    assert (
        lines(plain.tree(logits=True))[1:3] == ['a: yes', 'k: w']
        and isinstance(p.tree(), FlowTree)
        and p.tree().get_node(p.tree()['a'].identifier).tag == tag('a')
    )


def test_nodes_hold_what_they_say():
    p, t = prediction(), truth(a=True, k='w', m='hat', **{'inp 2': True, 'inp 1': True}, late='open')
    tree = p.tree(truth=t)
    want = dict(a=(True, True, True, False), k=('v', 'w', True, True), late=('open', 'open', True, False))
    want |= {
        'g.m': (['hat'], ['hat'], True, False),
        'g.inp 2': (False, True, True, True),
        'g.inp 1': (True, True, True, False),
        'g.inp 10': (True, None, False, False),
    }
    for path, (value, true, known, wrong) in want.items():
        d = tree[path].data
        assert (d['path'], d['value'], d['truth'], d['known'], d['wrong']) == (path, value, true, known, wrong), path
        assert ('truth' in tree[path].tag) == wrong, tree[path].tag
    assert 'truth w' in tree['k'].tag and p.tree()['k'].data['value'] == 'v'
    assert (
        prediction(m=(1, 1)).tree(truth=t)['g.m'].data['wrong']
        and prediction(m=(-1, -1)).tree(truth=t)['g.m'].data['wrong']
    )


def test_labelled_but_not_reached():
    t = truth(a=True, k='v', m='hat', r=2.0, late='shut')
    tree = prediction(a=-3.0).tree(truth=t)
    for path, word in {'k': 'v', 'g.m': 'hat', 'g.r': '2', 'late': 'shut'}.items():
        assert (
            'not reached' in tree[path].tag
            and f'truth {word}' in tree[path].tag
            and tree[path].data['wrong']
            and tree[path].data['value'] is None
        )
    assert tree['a'].data['wrong'] and not any('inp' in l for l in lines(tree))
    right = prediction(a=-3.0).tree(truth=truth(a=False))
    assert lines(right) == ['f', 'a: no (0.95)'] and not right['a'].data['wrong']


# ---- pictures
# ---------------------------------------------------------------------------------------------------------
W, H, SIZE = 32, 24, 24


def box(name, width, draws):
    return BoundedRegressionBlock(name, y_range=(0, width), draws=draws)


@pytest.fixture(scope='module')
def pics(tmp_path_factory):
    path, rng, rows = tmp_path_factory.mktemp('pics'), np.random.default_rng(0), []
    for i in range(20):
        on = i % 3 > 0
        Image.fromarray(rng.integers(0, 255, (H, W, 3), dtype=np.uint8)).save(path / f'{i}.png')
        rows.append(
            {
                'img': f'{i}.png',
                'on': on,
                'x': 4.0 + i if on else None,
                'y': 6.0 if on else None,
                'w': 8.0 if on else None,
                'h': 3.0 + i / 2 if on else None,
                'nx': 5.0 + i,
                'ny': 20.0 - i / 2,
                'inp 2': i % 2 if on else None,
                'inp 10': 1 if on else None,
                'is_valid': i >= 8,
            }
        )
    return path, pd.DataFrame(rows)


def make(pics):
    path, df = pics
    on = BinaryBlock('on')
    face = (
        Flow(
            'face',
            box('x', W, 'x1'),
            box('y', H, 'y1'),
            box('w', W, 'w'),
            box('h', H, 'h'),
            BinaryBlock('inp 2'),
            BinaryBlock('inp 10'),
        )
        | on
    )
    flow = Flow('lamp', on, face, box('nx', W, 'nose.x'), box('ny', H, 'nose.y'))
    return ConditionalDataLoaders.from_df(
        df,
        flow,
        path=path,
        fn_col='img',
        valid_col='is_valid',
        item_tfms=Resize(SIZE, method='squish'),
        bs=4,
        num_workers=0,
    )


@pytest.fixture(scope='module')
def learn(pics):
    return conditional_vision_learner(make(pics), 'test_resnet', pretrained=False)


def drawn():
    """Of each picture in turn: (boxes as (x, y, w, h) shares, points as (x, y) shares), with their colours; and
    the texts beside it."""
    axes, out = [ax for ax in plt.gcf().axes], []
    for i, ax in enumerate(axes):
        if not ax.images:
            continue
        share = lambda x: (np.asarray(x) + 0.5) / SIZE
        boxes = [
            (*share(p.get_xy()), p.get_width() / SIZE, p.get_height() / SIZE, tuple(p.get_edgecolor()))
            for p in ax.patches
        ]
        points = [(*share(l.get_xydata()[0]), l.get_color()) for l in ax.lines if len(l.get_xydata()) == 1] + [
            (*share(o), 'c') for c in ax.collections for o in c.get_offsets()
        ]
        out.append(
            (
                boxes,
                points,
                [
                    (t.get_text(), t.get_color())
                    for t in [*ax.texts, *(axes[i + 1].texts if i + 1 < len(axes) and not axes[i + 1].images else [])]
                ],
            )
        )
    return out


def rect(r):
    return (r.x / W, r.y / H, r.w / W, r.h / H)


def test_show_batch_draws(pics):
    path, df = pics
    make(pics).valid.show_batch(max_n=4)
    got = drawn()
    assert len(got) == 4
    for (boxes, points, texts), r in zip(got, df[df.is_valid].itertuples()):
        assert (
            len(boxes) == r.on and len(points) == 1 and points[0][:2] == pytest.approx((r.nx / W, r.ny / H), abs=1e-4)
        )
        if r.on:
            assert boxes[0][:4] == pytest.approx(rect(r), abs=1e-4)
        assert not any('✗' in t for t, _ in texts) and sum('inp 10' in t for t, _ in texts) == r.on
        if r.on:
            assert [i for t, _ in texts for i in re.findall(r'inp \d+', t)] == ['inp 2', 'inp 10']


def test_show_results_draws_both_and_marks_what_is_wrong(pics, learn):
    path, df = pics
    learn.loss_func.thresholds = dict(on=0.0)  # yes, always: every face is drawn
    try:
        with learn.no_bar(), learn.no_logging():
            learn.show_results(max_n=4, shuffle=False)
            preds = [learn.predict(path / f'{i}.png')[0] for i in range(8, 12)]
    finally:
        learn.loss_func.thresholds = dict(on=0.5)
    got = drawn()
    assert len(got) == 4
    for (boxes, points, texts), r, p in zip(got, df[df.is_valid].itertuples(), preds):
        shapes = p.shapes()
        (face,) = [v for v in shapes.values() if len(v) == 4]
        assert face == pytest.approx(
            (p['face.x'] / W, p['face.y'] / H, p['face.w'] / W, p['face.h'] / H), abs=1e-4
        ) and shapes['nose'] == pytest.approx((p['nx'] / W, p['ny'] / H), abs=1e-4)
        want = [face] + [rect(r)] * r.on
        assert len(boxes) == len(want) and all(any(b[:4] == pytest.approx(w, abs=2e-2) for b in boxes) for w in want)
        assert (
            len(points) == 2
            and any(q[:2] == pytest.approx((r.nx / W, r.ny / H), abs=1e-4) for q in points)
            and len({b[4] for b in boxes}) == len(boxes)
            and len({q[2] for q in points}) == 2
        )
        (on,) = [(t, c) for t, c in texts if re.search(r'\bon: ', t)]
        assert ('✗' in on[0]) == (not r.on) and (on[1] != 'black') == (not r.on)


def test_shapes(pics, learn):
    path, df = pics
    flow = learn.dls.flow
    y = torch.as_tensor(flow.encode(df))
    for i in (0, 1, 4):
        got, r = FlowPrediction(flow, y[i]).shapes(), df.iloc[i]
        assert (
            got['nose'] == pytest.approx((r.nx / W, r.ny / H))
            and len(got) == 1 + r.on
            and (not r.on or [v for v in got.values() if len(v) == 4][0] == pytest.approx(rect(r)))
        )


def test_shapes_by_corners_and_groups():
    names = dict(l='eye.x1', t='eye.y1', r='eye.x2', b='eye.y2', px='x', py='y', qx='q.x', qy='q.y')
    f, on = Flow('f', *[box(n, 8, d) for n, d in names.items()]), BinaryBlock('on')
    df = pd.DataFrame(
        [
            dict(l=1.0, t=2.0, r=5.0, b=8.0, px=0.0, py=8.0, qx=4.0, qy=2.0),
            dict(l=1.0, t=2.0, r=None, b=8.0, px=None, py=8.0, qx=4.0, qy=2.0),
        ]
    )
    bound = f.bind(df)
    got = [FlowPrediction(bound, y).shapes() for y in torch.as_tensor(bound.encode(df))]
    assert (
        got[0]['eye'] == pytest.approx((1 / 8, 2 / 8, 4 / 8, 6 / 8))
        and got[0]['q'] == pytest.approx((0.5, 0.25))
        and sorted(map(len, got[0].values())) == [2, 2, 4]
    )
    assert pytest.approx((0.0, 1.0)) in got[0].values()
    assert list(got[1]) == ['q']  # half a box is none


@pytest.mark.parametrize('make', [lambda: BoundedRegressionBlock('x', draws='x1'), lambda: box('x', 8, 'zz')])
def test_draws_that_cannot_be(make):
    with pytest.raises(FlowError, match="'x'"):
        make()


# ---- explain
# ----------------------------------------------------------------------------------------------------------
def quietly(learn, f, *args, **kw):
    with learn.no_bar(), learn.no_logging():
        return f(*args, **kw)


def test_explain(pics, learn):
    path, df = pics
    valid = df[df.is_valid].reset_index(drop=True)
    for items, files in ((df[3:6], [3, 4, 5]), ([path / '3.png', path / '17.png'], [3, 17]), (None, range(8, 20))):
        tree = quietly(learn, learn.explain, items)
        assert isinstance(tree, FlowTree) and len(tree.children(tree.root)) == len(files)
        for i, n in enumerate(files):
            pred, _, acts = quietly(learn, learn.predict, path / f'{n}.png')
            mine = {p for p, v in pred.items() if v is not None}
            assert {k[1] for k in tree.nodes if isinstance(k, tuple) and k[0] == i} >= mine
            for p in mine:
                v = tree[(i, p)].data['value']
                assert v == (pytest.approx(pred[p], rel=1e-3) if isinstance(pred[p], float) else pred[p]), (n, p)
            on = tree[(i, 'on')].tag
            assert (
                ('yes' if pred['on'] else 'no') in on
                and f'{pred.probabilities["on"] if pred["on"] else 1 - pred.probabilities["on"]:.2f}' in on
                and 'logit' in on
            )
    assert len(quietly(learn, learn.explain, df, max_n=2).children(tree.root)) == 2
    short = str(quietly(learn, learn.explain, df[:3], logits=False, probability=False, condition=False))
    assert 'logit' not in short and 'given' not in short and '(' not in short


def test_explain_shows_the_models_logits(pics, learn):
    "Each node its own, whatever the order in which the model gives them."
    path, df = pics
    learn.loss_func.thresholds = dict(on=0.0)
    try:
        tree = quietly(learn, learn.explain, df[:4])
    finally:
        learn.loss_func.thresholds = dict(on=0.5)
    learn.model.eval()
    dl = learn.dls.test_dl(df[:4])
    with torch.no_grad():
        z = torch.cat([learn.model(torch.Tensor(x)) for x, *_ in dl])
    for i in range(4):
        for p, s in learn.dls.flow.slices.items():
            assert (
                f'logit {float(z[i, s.logits]):.1f}' in tree[(i, p)].tag.replace('-0.0', '0.0')
                or abs(float(z[i, s.logits])) < 0.051
            ), tree[(i, p)].tag


def test_no_items(pics, learn):
    "A tree, or a plain word: no error from the depths."
    path, df = pics
    try:
        assert len(quietly(learn, learn.explain, df[:0]).nodes) == 1
    except FlowError:
        pass


def test_explain_shows_the_way(pics, learn):
    path, df = pics
    learn.loss_func.thresholds = dict(on=0.0)
    try:
        text = str(quietly(learn, learn.explain, df[:2]))
    finally:
        learn.loss_func.thresholds = dict(on=0.5)
    assert text.count('given on') == 2 and text.index('inp 2:') < text.index('inp 10:')
    assert text.count('face') == 2


# ---- what a review found
# ----------------------------------------------------------------------------------------------
def test_findings_are_merged_only_where_they_are_alike():
    "By hand: 'a' has 5 yes and 7 no, 'b' 40 and 3, of 'tags' c1 is in 55 of 58 rows and c2 in 53"
    nan = [None]
    df = pd.DataFrame(
        dict(
            a=[1] * 5 + [0] * 7 + nan * 48,
            b=[1] * 40 + [0] * 3 + nan * 17,
            tags=['c1'] * 5 + ['c2'] * 3 + ['c1,c2'] * 50 + nan * 2,
        ),
        dtype=object,
    )
    told = list(Flow('f', BinaryBlock('a'), BinaryBlock('b'), MultiLabelBlock('tags')).audit(df).lines())
    assert told == [
        "· a: label has 5 yes and 7 no in the rows that count: scores will be noisy",
        "· b: label has 40 yes and 3 no in the rows that count: scores will be noisy",
        "· tags: label 'c1' has 55 yes and 3 no in the rows that count: scores will be noisy",
        "· tags: label 'c2' has 53 yes and 5 no in the rows that count: scores will be noisy",
    ]
    a = BinaryBlock('a')
    df = pd.DataFrame(dict(a=[0] * 50 + [1] * 50, b=[1] * 2 + [0] * 98, c=[1] * 3 + [0] * 97))
    told = [
        t
        for t in Flow(
            'f', a, Flow('x', BinaryBlock('b')) | a, Flow('y', BinaryBlock('b2', 'b')) | a, BinaryBlock('c') | a
        )
        .audit(df)
        .lines()
        if 'say yes' in t
    ]
    assert told == [
        '! b, b2, c: 2 to 3 rows say yes where the condition `a` is false: they do not count; correct them, or change '
        'the condition'
    ]


def test_findings_on_one_row_and_on_several_are_alike():
    "The number they begin with may be 1: the line is that of several"
    text = 'where other labels imply an answer'
    found = [Finding('a', 'contradiction', f'1 row {text}'), Finding('b', 'contradiction', f'3 rows {text}')]
    flow = Flow('f', BinaryBlock('a'), BinaryBlock('b')).bind(pd.DataFrame(dict(a=[0, 1], b=[0, 1])))
    audit = Audit(flow, pd.DataFrame(dict(task_path=['a', 'b'])), found, 5)
    assert audit.lines() == [f'! a, b: 1 to 3 rows {text}']
    audit = Audit(flow, audit.table[:1], found[:1], 1)
    assert (
        audit.lines() == [f'! a: 1 row {text}'] and audit.headline() == 'f: 1 row, 1 task; 1 finding to mend, 0 to know'
    )


def test_verbs_follow_the_number_they_begin_with():
    "By hand: of `a` two rows are no; b says yes in one of them, c in both, k is labelled in one, m in one"
    a = BinaryBlock('a')
    df = pd.DataFrame(
        dict(
            a=[0] * 2 + [1] * 50,
            b=[1, 0] + [0, 1] * 25,
            c=[1, 1] + [0, 1] * 25,
            k=['u', None] + ['u', 'v'] * 25,
            m=[None, None, 3] + [None] * 49,
        ),
        dtype=object,
    )
    kinds = (BinaryBlock('b'), BinaryBlock('c'), SingleLabelBlock('k'), UnboundedRegressionBlock('m'))
    flow = lambda *blocks: Flow('f', a, *[block | a for block in blocks])
    where = 'where the condition `a` is false: they do not count'
    (b,) = flow(kinds[0]).audit(df, few=1).findings
    assert b.text.startswith(f'1 row says yes {where}')
    both = flow(*kinds[:2]).audit(df, few=1)
    assert both.lines() == [f'! b, c: 1 to 2 rows say yes {where}; correct them, or change the condition']
    lines = flow(*kinds[2:]).audit(df, few=1).lines()
    assert lines[0] == '! m: the one row that counts has the value 3: there is nothing to learn'
    assert lines[1] == f'· k: 1 row is labelled {where} (a column filled throughout?)'


def test_rows_of_weight_0_do_not_count_in_an_audit():
    df = pd.DataFrame(dict(a=[1, 0] * 20 + [1] * 60, b=[1.0] * 99 + [5.0], w=[0.0] * 40 + [1.0] * 59 + [0.0]))
    flow = Flow('f', BinaryBlock('a', weight_col='w'), UnboundedRegressionBlock('b', weight_col='w'))
    audit = flow.audit(df)
    assert audit.table.masked.tolist() == [59, 59] == (flow.bind(df).encode(df).mask > 0).sum(
        0
    ).tolist() and audit.table.labelled.tolist() == [100, 100]
    assert audit.table.balance.tolist() == ['yes 100.0%', '1 to 1, mean 1'] and [f.kind for f in audit.findings] == [
        'one_class',
        'one_class',
    ]
    none = flow.audit(df.assign(w=0.0))
    assert none.table.masked.tolist() == [0, 0] and all('weight 0' in f.text for f in none.findings)


def test_a_table_that_lacks_a_column_is_not_audited():
    df = pd.DataFrame(dict(a=[1, 0], b=[0, 1], w=[1.0, 2.0]))
    flow = Flow('f', BinaryBlock('a'), BinaryBlock('b', weight_col='w')).bind(df)
    for c in 'bw':
        with pytest.raises(FlowError, match=f"task 'b' reads.*column '{c}', which the table does not have"):
            flow.audit(df.drop(columns=c))


@pytest.mark.parametrize('words', [(1, 2), (0, 1), (True, False), (2.0, 1.0), ('n', 'y'), None])
def test_a_no_is_told_with_its_own_probability(words):
    "P(yes) is .1: beside a no stands .90, and .10 beside a yes, whatever the words are"
    words_ = words or (False, True)
    flow = Flow('f', BinaryBlock('a', vocab=words)).bind(pd.DataFrame(dict(a=list(words_))))
    no, yes = (
        FlowPrediction(flow, torch.tensor([[v], [1.0]]), torch.tensor([0.1])).tree()['a'].tag for v in (0.0, 1.0)
    )
    assert no.endswith('(0.90)') and yes.endswith('(0.10)'), (no, yes)


# ---- values where nobody was asked
# ------------------------------------------------------------------------------
def pets(n=100, age=0):
    rng = np.random.default_rng(0)
    pet = np.arange(n) % 2 == 0
    kinds = np.where(pet, rng.choice(['cat', 'dog'], n), 'none')
    return pd.DataFrame(dict(a=pet, kind=kinds, age=np.where(pet, rng.integers(1, 9, n), age)))


@pytest.mark.parametrize('age', [0, -1, 99])
def test_a_value_that_stands_where_a_condition_is_false(age):
    df = pets(200, age)
    df.loc[[0, 2], ['kind', 'age']] = ['none', age]  # two of 100 rows where it is true
    flow = Flow('f', a, SingleLabelBlock('kind') | a, UnboundedRegressionBlock('age') | a)
    audit = flow.audit(df)
    found = {f.task_path: f for f in audit.findings if f.kind == 'na'}
    assert list(found) == ['kind', 'age'] and not found['kind'].serious
    assert "100 of 100 labels where the condition `a` is false are 'none', and 2 of 100" in found['kind'].text
    assert "write na='none'" in found['kind'].text and f'write na={age}' in found['age'].text and '2%' in str(audit)
    assert audit.rows('age', 'na') == [0, 2]
    told = Flow('f', a, SingleLabelBlock('kind', na='none') | a, UnboundedRegressionBlock('age', na=age) | a).audit(df)
    assert not kinds(told) and told.table.labelled_if_false.tolist() == [0, 0, 0]
    assert told.table.masked.tolist() == [200, 98, 98]


def test_a_value_that_stands_everywhere_is_a_value():
    df = pets(200)
    df.loc[df.index[::4], 'age'] = 0
    flow = Flow('f', a, UnboundedRegressionBlock('age') | a)
    assert 'na' not in kinds(flow.audit(df))
    assert 'na' not in kinds(flow.audit(df.assign(age=5)))  # filled throughout with an answer
    assert 'na' not in kinds(Flow('f', a, b | a).audit(df.assign(b=df.a & (df.age > 3))))  # a no is an answer


def test_a_value_of_na_that_no_cell_holds():
    df = pets()
    kind, age = SingleLabelBlock('kind', na=('none', 'nnone')), UnboundedRegressionBlock('age')
    audit = Flow('f', a, Flow('g', kind, age, UnboundedRegressionBlock('age2', 'age'), na=(0, -9)) | a).audit(df)
    texts = {(f.task_path, f.text) for f in audit.findings if f.kind == 'na'}
    assert texts == {
        ('g.kind', "no cell holds 'nnone', a value of na=: correct it, or leave it out"),
        (
            'g.age',
            'no cell holds -9, a value of na=, nor the other task that takes it from its flow: correct it, '
            'or leave it out',
        ),
    }


def test_many_labels_are_looked_at_once(monkeypatch):
    "A hundred times the labels ask no more often which cells are certain"
    calls, certain = [], MultiLabelBlock.certain

    def counted(self, vals):
        calls.append(vals.shape)
        return certain(self, vals)

    monkeypatch.setattr(MultiLabelBlock, 'certain', counted)
    counts = []
    for n in (10, 1000):
        labels = [f'l{i}' for i in range(n)]
        df = pd.DataFrame(dict(x=[labels[:1], labels[1:3], labels, []] * 5))
        calls.clear()
        found = Flow('f', MultiLabelBlock('x')).audit(df)
        counts.append(len(calls))
        assert len(found.findings) == n
    assert counts[0] == counts[1]
