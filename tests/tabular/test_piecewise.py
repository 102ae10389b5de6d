"Numbers in pieces against a loop over cells, and against NumPy's interpolation"

import numpy as np, pytest, torch
from fastai_condmtl.tabular.piecewise import FAR, PiecewiseNumbers, quantile_edges

KINDS = dict(
    normal=lambda rng: rng.normal(size=300),
    skewed=lambda rng: rng.gamma(1, 5, 300) ** 2,
    few=lambda rng: rng.choice([0.0, 1.0, 7.0], 300, p=[0.9, 0.05, 0.05]),
    two=lambda rng: rng.integers(0, 2, 300) * 1.0,
    blanks=lambda rng: np.where(rng.random(300) < 0.2, np.nan, rng.normal(size=300)),
    close=lambda rng: 1 + rng.integers(0, 3, 300) * 1e-9,  # one number in single precision
)


def progress(x, edges):
    "How far `x` has come through each piece, cell by cell"
    edges = [edge for edge in edges if not np.isnan(edge)]
    res = []
    for k, (left, right) in enumerate(zip(edges[:-1], edges[1:])):
        share = (x - left) / (right - left)
        low, high = (-FAR if k == 0 else 0), (FAR if k == len(edges) - 2 else 1)
        res.append(min(max(share, low), high))
    return res


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('n_pieces', [2, 16])
def test_pieces_are_those_of_a_loop(kind, n_pieces):
    rng = np.random.default_rng(0)
    column = KINDS[kind](rng).astype(np.float32)[:, None]
    edges = quantile_edges(column, n_pieces)[0]
    numbers = PiecewiseNumbers(column, n_pieces, 3)
    own = edges[~np.isnan(edges)]
    assert (np.diff(own) > 0).all() and (len(own) <= n_pieces + 1)
    x = np.concatenate([rng.uniform(-3, 8, 40), own]).astype(np.float32)
    found = numbers.pieces(torch.from_numpy(x)[:, None])[:, 0].numpy()
    if len(own) < 2:
        assert numbers.varies.tolist() == [0] and np.isfinite(found).all()
        return
    wanted = np.array([progress(value, own) for value in x.astype(float)])
    np.testing.assert_allclose(found[:, : len(own) - 1], wanted, rtol=1e-3, atol=1e-4)
    assert (found[:, len(own) - 1 :] == 0).all()


def test_pieces_hold_equally_many_rows():
    column = np.random.default_rng(0).gamma(1, 5, 4000)[:, None]
    edges = quantile_edges(column, 16)[0]
    assert np.histogram(column, edges)[0].tolist() == pytest.approx([250] * 16, abs=1)


def test_a_new_embedding_is_a_line_that_weights_bend():
    rng = np.random.default_rng(1)
    columns = rng.normal(size=(200, 2)).astype(np.float32)
    numbers, x = PiecewiseNumbers(columns, 8, 4), torch.from_numpy(columns[:20])
    lines = [x[:, [j]] * numbers.line[j] + numbers.bias[j] for j in range(2)]
    torch.testing.assert_close(numbers(x), torch.cat(lines, 1))
    heights = rng.normal(size=9)
    with torch.no_grad():
        numbers.line.zero_()
        numbers.bias.fill_(float(heights[0]))
        numbers.weight[1, :, 2] = torch.from_numpy(np.diff(heights))
    wanted = np.interp(columns[:20, 1], quantile_edges(columns, 8)[1], heights)
    np.testing.assert_allclose(numbers(x)[:, 4 + 2].detach(), wanted, atol=1e-5)


def test_without_rows_the_edges_come_with_weights():
    columns = np.random.default_rng(2).normal(size=(50, 3)).astype(np.float32)
    empty, full = PiecewiseNumbers(columns[:0]), PiecewiseNumbers(columns)
    assert empty(torch.randn(4, 3)).isfinite().all()
    empty.load_state_dict(full.state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(empty(x), full(x))
