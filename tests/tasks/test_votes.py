"""Votes: the likelihood against SciPy's, masks and weights against sums by hand, shares in conditions, expected votes
along the path, bad cells; and the tree of Galaxy Zoo 2 on its own votes"""

import pickle, re
import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st
from scipy.stats import dirichlet_multinomial, multinomial
from fastai_condmtl.all import *

ANSWERS = ['smooth', 'disk', 'star']


def shape(**kwargs):
    return VotesBlock('shape', cols={a: f'n_{a}' for a in ANSWERS}, **kwargs)


def round_(**kwargs):
    return VotesBlock('round', cols=['very', 'little'], **kwargs)


def flow(**kwargs):
    s = shape(**kwargs)
    return Flow('g', s, round_() | s.eq('smooth'))


def votes(n=30, seed=0):
    rng = np.random.default_rng(seed)
    first = rng.multinomial(20, [0.5, 0.3, 0.2], n) * (rng.random((n, 1)) < 0.9)
    second = np.stack([rng.binomial(k, 0.4) if k else 0 for k in first[:, 0]])
    return pd.DataFrame(
        dict(
            zip(
                [f'n_{a}' for a in ANSWERS] + ['very', 'little'],
                [*first.T, second, first[:, 0] - second],
            )
        )
    )


def scipy_nll(probs, counts):
    "Without the constant: what is left where everybody gives the answer that is certain"
    uniform = np.full(len(probs), 1 / len(probs))
    constant = multinomial.logpmf(counts, counts.sum(), uniform) - (counts * np.log(uniform)).sum()
    return constant - multinomial.logpmf(counts, counts.sum(), probs)


def test_the_loss_is_the_likelihood_by_vote():
    "The sum of all rows' multinomial log-likelihoods over the sum of their votes, by SciPy; a task at a time"
    df, bound = votes(), flow().bind(votes())
    loss, y = ConditionalLoss(bound), bound.encode(df)
    logits = torch.randn(len(df), bound.c, generator=torch.Generator().manual_seed(0))
    per_task = loss.per_task(logits, y)
    acts = loss.activation(logits).double().numpy()
    for k, cols in enumerate(([f'n_{a}' for a in ANSWERS], ['very', 'little'])):
        counts, probs = df[cols].to_numpy(), acts[:, list(bound.slices.values())[k].acts]
        probs = probs / probs.sum(1, keepdims=True)
        expected = sum(scipy_nll(p, c) for p, c in zip(probs, counts) if c.sum()) / counts.sum()
        assert float(per_task[k]) == pytest.approx(expected, rel=1e-5)
    assert float(loss(logits, y)) == pytest.approx(float(per_task.sum()), rel=1e-5)


def test_over_dispersion_is_the_dirichlet_multinomial():
    df = votes()
    bound = Flow('g', shape(loss='dirichlet')).bind(df)
    loss, y = ConditionalLoss(bound), bound.encode(df)
    counts = df[[f'n_{a}' for a in ANSWERS]].to_numpy()

    def scipys(logits):
        alpha = 1 + 100 / (1 + np.exp(-logits.double().numpy()))
        return (
            -sum(dirichlet_multinomial.logpmf(c, a, c.sum()) for a, c in zip(alpha, counts) if c.sum()) / counts.sum()
        )

    one, two = (torch.randn(len(df), 3, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    assert float(loss(one, y) - loss(two, y)) == pytest.approx(scipys(one) - scipys(two), rel=1e-4)


def test_who_was_asked():
    "All zero and blank are no label; the follow-up counts where somebody gave its answer"
    df = pd.DataFrame(
        dict(
            n_smooth=[3, 0, 0, None],
            n_disk=[1, 4, 0, None],
            n_star=[0, 0, 0, None],
            very=[2, 1, 0, 1],
            little=[1, 0, 0, 0],
        )
    )
    y = flow().bind(df).encode(df)
    assert y.mask[:, 0].tolist() == [4, 4, 0, 0]  # the weight of a row: its votes
    assert y.mask[:, 3].tolist() == [3, 0, 0, 0]
    assert flow().bind(df).encode(df, weighted=False).mask[:, 0].tolist() == [1, 1, 0, 0]


def test_a_row_with_more_votes_says_more():
    "The gradient of the loss at equal logits is the mean share by vote"
    df = pd.DataFrame(dict(n_smooth=[30, 0], n_disk=[0, 10], n_star=[0, 0]))
    bound = Flow('g', shape()).bind(df)
    logits = torch.zeros(2, 3, requires_grad=True)
    ConditionalLoss(bound)(logits, bound.encode(df)).backward()
    assert torch.allclose(logits.grad.sum(0), torch.tensor([1 / 3 - 0.75, 1 / 3 - 0.25, 1 / 3]), atol=1e-6)


def test_shares_in_conditions_are_one_rule():
    "Of labels the share of the votes, of decisions the predicted share, against NumPy"
    s = shape()
    asked = Flow(
        'g', s, BinaryBlock('a') | (s.share('disk') > 0.3), BinaryBlock('b') | s.share('star').between(0.1, 0.2)
    )
    df = votes().assign(a=1, b=0)
    df.loc[0, 'a'] = 0
    bound = asked.bind(df)
    y = bound.encode(df)
    counts = df[[f'n_{a}' for a in ANSWERS]].to_numpy()
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    there = counts.sum(1) > 0
    assert y.mask[:, 3].bool().tolist() == (there & (share[:, 1] > 0.3)).tolist()
    assert y.mask[:, 4].bool().tolist() == (there & (share[:, 2] >= 0.1) & (share[:, 2] <= 0.2)).tolist()
    logits = torch.randn(50, bound.c, generator=torch.Generator().manual_seed(0))
    decoded = ConditionalLoss(bound).decodes(ConditionalLoss(bound).activation(logits))
    probs = (
        logits[:, :3].softmax(1)
        if bound.slices['shape'].logits.start == 0
        else logits[:, bound.slices['shape'].logits].softmax(1)
    )
    assert torch.equal(decoded.mask[:, 3].bool(), probs[:, 1] > 0.3)


def test_conditions_of_shares_are_written_and_read():
    s = shape()
    asked = Flow('g', s, BinaryBlock('a') | (s.share('disk') >= 0.3) & ~s.eq('star'))
    assert str(asked.tasks[1].given) == "(shape.share('disk') >= 0.3) & ~shape.eq('star')"
    again = Flow.from_json(asked.to_json())
    assert repr(again) == repr(asked) and again.to_json() == asked.to_json()
    assert repr(pickle.loads(pickle.dumps(asked))) == repr(asked)


def test_plurality_decides_and_ties_go_to_the_first():
    bound = flow().bind(votes())
    block = bound.tasks['shape']
    decided = block.decide(torch.tensor([[0.4, 0.4, 0.2], [0.1, 0.3, 0.6]]))
    assert (decided > 0).tolist() == [[True, False, False], [False, False, True]]
    assert torch.allclose(decided.abs(), torch.tensor([[0.4, 0.4, 0.2], [0.1, 0.3, 0.6]]))


def test_expected_shares_along_the_path():
    "An answer is that of one random volunteer: P(reached) of the follow-up is the share of its answer"
    bound = flow().bind(votes())
    loss = ConditionalLoss(bound)
    logits = torch.randn(4, bound.c, generator=torch.Generator().manual_seed(0))
    acts = loss.activation(logits)
    reached = bound.diagrams(acts, loss.decide(acts))
    assert np.allclose(reached[:, 1], acts[:, 0].numpy(), atol=1e-6)


def test_what_is_predicted_has_the_columns_of_the_table():
    df, bound = votes(), flow().bind(votes())
    back = bound.to_frame(bound.encode(df))
    asked = df[[f'n_{a}' for a in ANSWERS]].sum(1) > 0
    assert np.array_equal(back.loc[asked, 'n_disk'], df.loc[asked, 'n_disk'])
    assert back.loc[~asked, 'n_disk'].isna().all()
    loss = ConditionalLoss(bound)
    acts = loss.activation(torch.randn(5, bound.c))
    shares = bound.to_frame(loss.decodes(acts))[[f'n_{a}' for a in ANSWERS]]
    assert np.allclose(shares.sum(1), 1, atol=1e-5) and (shares >= 0).all(None)


def test_scores_by_hand():
    df = pd.DataFrame(dict(n_smooth=[3, 1], n_disk=[1, 1], n_star=[0, 2]))
    block = Flow('g', shape()).bind(df).tasks['shape']
    acts = np.array([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]])
    true, mask = df.to_numpy(float), np.ones((2, 3), dtype=bool)
    assert block.score('mae', acts[..., None], true, mask) == pytest.approx((0.25 + 0.25) / 6)
    assert block.score('accuracy', acts[..., None], true, mask) == 1
    by_hand = -(3 * np.log(0.5) + np.log(0.5) + np.log(0.25) * 2 + 2 * np.log(0.5)) / 8
    assert block.score('log_loss', acts[..., None], true, mask) == pytest.approx(by_hand)
    assert np.allclose(block.fit_baseline(true, mask), np.array([4, 2, 2]) / 8)


def test_the_cascade_follows_the_plurality():
    "`evaluate` and `cascade_report` reach the follow-up where its answer has most of the predicted shares, by hand"
    from fastai_condmtl.learn.accumulate import Accumulator

    df, bound = votes(), flow().bind(votes())
    y, loss, acc = bound.encode(df), ConditionalLoss(bound), Accumulator(bound)
    logits = torch.randn(len(df), bound.c, generator=torch.Generator().manual_seed(0))
    acc.parts.append(acc.pack(logits, y, loss))
    _, decided = acc.packed()
    assert torch.allclose(decided, loss.decide(loss.activation(logits)), atol=1e-6)
    smooth = logits[:, bound.slices['shape'].logits].argmax(1).numpy() == 0
    assert acc.reached()[:, 1].tolist() == smooth.tolist() and 0 < smooth.sum() < len(df)


@pytest.mark.parametrize(
    'cells, told',
    [
        (dict(n_disk=[1, -1]), "row 1, column 'n_disk', value -1.*must not be negative"),
        (dict(n_disk=[1, float('inf')]), "row 1, column 'n_disk', value inf.*not a finite number"),
        (dict(n_disk=[1, None]), "row 1, column 'n_disk'.*write 0 where nobody gave this one"),
        (dict(n_disk=[1, 'many']), "row 1, column 'n_disk', value 'many'"),
    ],
)
def test_bad_votes_are_told_with_their_row(cells, told):
    df = pd.DataFrame(dict(n_smooth=[3, 1], n_disk=[1, 1], n_star=[0, 2]) | cells)
    with pytest.raises(FlowError, match=f"task 'shape', {told}"):
        Flow('g', shape()).bind(df).encode(df)


def test_votes_that_are_too_large_are_told_with_their_column():
    df = pd.DataFrame(dict(n_smooth=[3, 0], n_disk=[1, 1e300], n_star=[0, 2]))
    with pytest.raises(FlowError, match=r"task 'shape', row 1, column 'n_disk', value 1e\+300"):
        Flow('g', shape()).bind(df).encode(df)


@pytest.mark.parametrize('na', [0, 0.0, 3, (-1, 0)])
def test_a_number_of_votes_is_no_blank(na):
    "0 votes of one answer are no label by themselves, and yet a number of votes: na=0 of a flow needs na=() here"
    df = votes()
    for flow in (Flow('g', shape(na=na)), Flow('g', shape(), na=na)):
        with pytest.raises(FlowError, match=r"task 'shape': (0|0.0|3) stands in na=.*answer"):
            flow.bind(df)
    assert Flow('g', shape(na=()), na=na).bind(df) and Flow('g', shape(na=(-1, 'none'))).bind(df)


def test_shares_that_no_row_has():
    s, df = shape(), votes().assign(a=1)
    for asked in (s.share('disk').between(0.5, 0.2), s.share('disk') > 1, s.share('disk') < 0):
        with pytest.raises(FlowError, match='is never true'):
            Flow('g', s, BinaryBlock('a') | asked).bind(df)
    assert Flow('g', s, BinaryBlock('a') | (s.share('disk') >= 1)).bind(df)


def test_a_column_that_is_not_there():
    with pytest.raises(FlowError, match=r"'shape' reads column 'n_star'.*Name the column with cols="):
        Flow('g', shape()).bind(votes().drop(columns='n_star'))


def test_bad_blocks():
    with pytest.raises(FlowError, match='two or more answers'):
        VotesBlock('v', cols=['a'])
    with pytest.raises(FlowError, match="loss='poisson'"):
        VotesBlock('v', cols=['a', 'b'], loss='poisson')
    with pytest.raises(FlowError, match="for the answer 'dusk'.*did you mean 'disk'"):
        s = shape()
        Flow('g', s, BinaryBlock('a') | s.eq('dusk')).bind(votes().assign(a=1))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 12), st.booleans())
def test_any_votes_have_a_finite_loss(seed, n_answers, n_rows, dispersed):
    "Large counts, zeros and blanks: loss and gradient are finite, and rows without votes have none"
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 10 ** rng.integers(1, 6), (n_rows, n_answers)) * rng.integers(0, 2, (n_rows, 1))
    df = pd.DataFrame(counts, columns=[f'c{i}' for i in range(n_answers)])
    bound = Flow('g', VotesBlock('v', cols=list(df), loss='dirichlet' if dispersed else 'multinomial')).bind(df)
    logits = (torch.randn(n_rows, n_answers, generator=torch.Generator().manual_seed(seed)) * 5).requires_grad_()
    loss = ConditionalLoss(bound)(logits, bound.encode(df))
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()
    assert (logits.grad[torch.from_numpy(counts.sum(1) == 0)] == 0).all()


# The decision tree of Galaxy Zoo 2: eleven questions, each put to the volunteers who gave the answer above it


def galaxy_zoo(df, **kwargs):
    "Its flow"

    def ask(name):
        cols = [c for c in df if c.startswith(name) and c.endswith('_count')]
        return VotesBlock(name, cols={re.search(r'_a(\d\d)_', c)[1]: c for c in cols}, **kwargs)

    features, edge_on, bar, spiral, bulge = map(ask, ('t01', 't02', 't03', 't04', 't05'))
    odd, rounded, odd_feature, bulge_shape, winding, arms = map(ask, ('t06', 't07', 't08', 't09', 't10', 't11'))
    disk, smooth = features.eq('02'), features.eq('01')
    face_on, has_arms = edge_on.eq('05'), spiral.eq('08')
    return Flow(
        'galaxy',
        features,
        odd | any_of(disk, smooth),
        rounded | smooth,
        odd_feature | odd.eq('14'),
        Flow(
            'disk',
            edge_on,
            bulge_shape | edge_on.eq('04'),
            Flow('face_on', bar, spiral, bulge, Flow('arms', winding, arms) | has_arms) | face_on,
        )
        | disk,
    )


@pytest.mark.parametrize(
    'cols', [{1: 'a', 2: 'b'}, {'x': 'a', 2.5: 'b'}, {True: 'a', None: 'b'}, {('u', 1): 'a', 'v': ('t', 'b')}]
)
def test_answers_of_any_name_go_through_a_file(cols):
    "Answers and columns come back as what they were, and so do their conditions"
    shape = VotesBlock('shape', cols=cols)
    flow = Flow('f', shape, BinaryBlock('hangs') | shape.eq(list(cols)[1]))
    again = Flow.from_json(flow.to_json())
    assert next(iter(again.tasks)).answer_cols == cols and again.to_json() == flow.to_json()
    assert list(map(type, next(iter(again.tasks)).vocab)) == list(map(type, cols))
    df = pd.DataFrame([[3, 0, 1], [1, 2, 0]], columns=pd.Index([*cols.values(), 'hangs'], tupleize_cols=False))
    assert torch.equal(again.bind(df).encode(df), flow.bind(df).encode(df))


@pytest.mark.parametrize('ask', [lambda s: s.eq(0.5), lambda s: s.ne(0.5), lambda s: s.isin([0.5]), lambda s: ~s])
def test_a_share_is_compared_and_not_equal(ask):
    shape = VotesBlock('shape', cols={'p': 'a', 'q': 'b'})
    with pytest.raises(FlowError, match=r"shape\.share\('p'\) (>|<=) .5"):
        ask(shape.share('p'))


@pytest.mark.data
class TestGalaxyZoo:
    @pytest.fixture(scope='class')
    def df(self, shared_data):
        return pd.read_csv(shared_data / 'galaxyzoo2' / 'table5.csv.gz')

    def test_a_question_was_put_to_those_who_gave_the_answer_above(self, df):
        "Nearly every galaxy with votes on a question has votes on the answer above it"
        bound = galaxy_zoo(df).bind(df)
        y = bound.encode(df)
        assert len(bound.paths) == 11 and len(df) == 19761
        for path, block in bound.tasks.items():
            voted = (df[block.cols].sum(1) > 0).to_numpy()
            counted = (y.mask[:, bound.slices[path].targets.start] > 0).numpy()
            assert not (counted & ~voted).any()
            assert counted.sum() >= 0.99 * voted.sum(), path

    def test_the_loss_at_the_overall_shares(self, df):
        "By SciPy, on all galaxies"
        part = df.sample(300, random_state=0).reset_index(drop=True)
        bound = Flow('g', next(iter(galaxy_zoo(df).tasks))).bind(df)
        counts = part[bound.tasks['t01'].cols].to_numpy()
        share = df[bound.tasks['t01'].cols].sum().to_numpy() / df[bound.tasks['t01'].cols].to_numpy().sum()
        logits = torch.from_numpy(np.log(share)).float().expand(len(part), -1)
        loss = float(ConditionalLoss(bound)(logits, bound.encode(part)))
        assert loss == pytest.approx(sum(scipy_nll(share, c) for c in counts if c.sum()) / counts.sum(), rel=1e-4)
        assert np.allclose(bound.tasks['t01'].fit_baseline(df[bound.tasks['t01'].cols].to_numpy(), 1), share)

    def test_expected_votes_along_the_path(self, df):
        "P(reached) is the product of shares on the way, by hand"
        bound = galaxy_zoo(df).bind(df)
        loss = ConditionalLoss(bound)
        acts = loss.activation(torch.randn(3, bound.c, generator=torch.Generator().manual_seed(0)))
        reached = dict(zip(bound.paths, bound.diagrams(acts, loss.decide(acts)).T))
        share = {p: acts[:, s.acts].double().numpy() for p, s in bound.slices.items()}
        by_hand = share['t01'][:, 1] * share['disk.t02'][:, 1] * share['disk.face_on.t04'][:, 0]
        assert np.allclose(reached['disk.face_on.arms.t11'], by_hand, atol=1e-6)
        assert np.allclose(reached['t06'], share['t01'][:, :2].sum(1), atol=1e-6)


# ---- what the mean of folds and the labels of a table give
@pytest.mark.parametrize('loss', ['multinomial', 'dirichlet'])
def test_logits_of_shares_give_these_shares_row_by_row(loss):
    df, rng = votes(), np.random.default_rng(3)
    block = Flow('g', shape(loss=loss)).bind(df).tasks['shape']
    shares = torch.from_numpy(rng.dirichlet([2, 3, 4], 6)).float()
    logits = block.logits_at(shares)
    assert torch.allclose(block.activate(logits), shares, atol=1e-5)
    for row, own in zip(shares, logits):
        assert torch.allclose(block.logits_at(row[None])[0], own, atol=1e-5)


def test_labels_that_are_certain_are_the_shares_of_each_row():
    block = Flow('g', shape()).bind(votes()).tasks['shape']
    counts = torch.tensor([[6.0, 2, 0], [1, 1, 2], [0, 0, 0]])
    decided = torch.tensor([[0.75, -0.25, -0.0], [-0.25, -0.25, 0.5], [0, 0, 0]])  # a minus: another answer has more
    expected = [[0.75, 0.25, 0], [0.25, 0.25, 0.5], [0, 0, 0]]
    for vals in (counts, decided):
        assert block.certain_acts(vals).tolist() == pytest.approx(np.array(expected), abs=1e-6)


def test_scores_of_an_answer_are_those_of_a_loop():
    "`mae` of the share of votes; and average precision of the plurality by scikit-learn"
    from sklearn.metrics import average_precision_score

    rng, block = np.random.default_rng(1), Flow('g', shape()).bind(votes()).tasks['shape']
    true, acts = rng.multinomial(10, [0.5, 0.3, 0.2], 40).astype(np.float32), rng.dirichlet([2, 2, 2], 40)
    mask = np.repeat(rng.random((40, 1)) < 0.7, 3, 1)
    counts = np.flatnonzero(mask[:, 0])
    for j in range(3):
        by_hand = np.mean([abs(acts[i, j] - true[i, j] / true[i].sum()) for i in counts])
        assert block.score_label('mae', j, acts[..., None], true, mask) == pytest.approx(by_hand)
        ranked = block.score_label('average_precision', j, acts[..., None], true, mask, None, acts)
        is_first = true[counts].argmax(1) == j
        assert ranked == pytest.approx(average_precision_score(is_first, acts[counts, j]))
    assert {*block.label_metrics} >= {'mae', 'average_precision'}


def test_questions_in_a_mirror_have_the_key_of_those_that_ask_the_other_side():
    sides = VotesBlock('s', cols=dict(left='n_l', right='n_r', none='n_n'), mirror=[('left', 'right')])
    df = pd.DataFrame(dict(n_l=[3, 0], n_r=[1, 4], n_n=[0, 1]))
    block = Flow('g', sides).bind(df).tasks['s']
    asked = lambda op, value: block.parse_question(op, value)
    for op, of_left, of_right in [('eq', 'left', 'right'), ('share', ('left', 'gt', 0.5), ('right', 'gt', 0.5))]:
        left, right = asked(op, of_left), asked(op, of_right)
        assert block.question_key(op, left, True) == block.question_key(op, right)
        assert block.question_key(op, left) != block.question_key(op, right)
    assert block.question_key('share', asked('share', ('left', 'gt', 0.5))) != block.question_key(
        'share', asked('share', ('left', 'gt', 0.25))
    )
