"""A tenth kind of task, written from CONTRIBUTING and the tutorial alone by somebody who had not seen the code: a
direction in degrees, which goes round. What made them stop is held here: bounds that go round, residuals on the
shorter way, two logits a column"""

import numpy as np, pandas as pd, pytest, torch
from fastai.tabular.all import Categorify, Normalize
from fastai_condmtl.core.columns import numbers
from fastai_condmtl.tabular.all import *


def _around(a, b):
    "Degrees from angle to angle, the short way"
    d = abs(a - b) % 360
    return np.minimum(d, 360 - d)


_slack = 1e-3


def _as_degrees(block, value):
    "A bound of a condition, checked"
    try:
        value = float(value)
    except (TypeError, ValueError):
        value = float('nan')
    if not 0 <= value <= 360:
        raise FlowError(f"task '{block.path or block.name}': {value:g} is no angle: write degrees from 0 to 360")
    return value


def _way(lo, hi):
    "Degrees on the way from `lo` up to `hi`"
    return 360 if (lo, hi) == (0, 360) else (hi - lo) % 360


class AngleBlock(ConditionalBlock):
    "A direction in degrees, from 0 to 360, where 359 is near 1; `between(350, 10)` goes through 0"

    n_out = 2  # sine and cosine
    ops = ('between',)
    metrics = ('mae',)
    lower_is_better = ('mae',)
    exact = False
    goes_round = True  # `between(350, 10)` goes through 0

    # labels
    def encode(self, df):
        x = numbers(self, df, self.cols[0])
        known = ~np.isnan(x)
        wrong = known & ~((x >= 0) & (x <= 360))
        if wrong.any():
            raise self.bad(
                df,
                self.cols[0],
                int(wrong.argmax()),
                'an angle is from 0 to 360 degrees: correct the cell (-10 is 350), or leave it blank',
            )
        return np.where(known, x % 360, 0.0)[:, None], known[:, None]

    def to_cell(self, vals):
        return float(vals[0])

    def difference(self, a, b):
        return (a - b + 180) % 360 - 180

    def describe(self):
        return 'degrees'

    # network
    def loss(self, logits, targets, weight=None):
        rad = torch.deg2rad(targets.float())
        aim = torch.stack([rad.sin(), rad.cos()], -1)
        res = 1 - (self.activate(logits.float()) * aim).sum(-1)
        return res if weight is None else (res * weight).sum()

    def activate(self, logits):
        return logits * (logits.square().sum(-1, keepdim=True) + 1e-8).rsqrt()

    def decide(self, acts):
        deg = torch.rad2deg(torch.atan2(acts[..., 0].float(), acts[..., 1].float())) % 360
        return torch.where(deg < 360, deg, 0.0)  # -1e-9 % 360 is rounded to 360

    def certain_acts(self, vals):
        rad = torch.deg2rad(vals)
        return torch.stack([rad.sin(), rad.cos()], -1).flatten(1)

    # questions
    def parse_question(self, op, value):
        super().parse_question(op, value)
        return [_as_degrees(self, v) for v in value]

    def answer(self, op, value, vals, known, scaled=False):
        lo, hi = value
        x, known = vals[:, 0], known[:, 0]
        # a decision has the precision of a float32 sine: bounds count, within a thousandth of a degree
        yes = (x - lo + _slack) % 360 <= _way(lo, hi) + 2 * _slack
        return yes & known, ~yes & known

    def implied_labels(self, op, value, truth):
        return [(0, value[0])] if truth and value[0] == value[1] else []

    # scores
    def summarise(self, acts, targets):
        return self.decide(acts)[..., None]

    def score(self, name, summary, true, mask, threshold=None):
        if not mask.any():
            return float('nan')
        return float(_around(summary[mask, 0].astype(float), true[mask].astype(float)).mean())

    def fit_baseline(self, vals, mask):
        rad = np.deg2rad(vals[mask > 0].astype(float))
        return float(np.rad2deg(np.arctan2(np.sin(rad).sum(), np.cos(rad).sum())) % 360)

    def baseline(self, name, constant, vals):
        return np.full((*vals.shape, 1), constant)


register_block(AngleBlock)


def winds(n=200, seed=0):
    rng = np.random.default_rng(seed)
    wind = rng.normal(0, 40, n) % 360
    north = (wind >= 315) | (wind <= 45)
    df = pd.DataFrame(
        dict(site=rng.choice(['a', 'b'], n), wind=wind, snow=np.where(north, rng.integers(0, 2, n), np.nan))
    )
    df['x'], df['y'] = np.sin(np.deg2rad(wind)), np.cos(np.deg2rad(wind))
    df.loc[:9, 'wind'] = np.nan
    return df


def flow():
    wind = AngleBlock('wind')
    return Flow('weather', wind, BinaryBlock('snow') | wind.between(315, 45))


def test_it_holds_what_the_library_builds_on():
    check_block(AngleBlock('wind'), winds())


def test_its_condition_goes_round():
    "By NumPy; through JSON, and written in line"
    df = winds()
    y = flow().bind(df).encode(df)
    north = (df.wind >= 315) | (df.wind <= 45)
    assert y.mask[:, 1].bool().tolist() == (north & df.snow.notna()).tolist()
    again = Flow.from_json(flow().to_json())
    assert torch.equal(again.bind(df).encode(df), y)
    with pytest.raises(FlowError, match='is no angle'):
        wind = AngleBlock('wind')
        Flow('f', wind, BinaryBlock('snow') | wind.between(-350, 10)).bind(df)
    number = UnboundedRegressionBlock('x')
    with pytest.raises(FlowError, match='the lower bound comes first'):
        number.between(350, 10)


def test_what_else_it_can_be_asked_is_told():
    with pytest.raises(FlowError, match=r'cannot be asked .gt: ask for an interval by .between\(lo, hi\)'):
        AngleBlock('wind') > 10


def test_residuals_go_the_shorter_way():
    df = winds()
    dls = ConditionalTabularDataLoaders.from_df(
        df, flow(), cat_names=['site'], cont_names=['x', 'y'], procs=[Categorify, Normalize], bs=32, seed=0
    )
    learn = conditional_tabular_learner(dls, [16])
    with learn.no_bar():
        learn.fit(2, 1e-2)
        found = ConditionalInterpretation.from_learner(learn).residuals('wind')
        score = learn.evaluate(metrics=None).set_index('task_path').metric_res['wind']
    assert found.residual.abs().max() <= 180
    assert found.residual.abs().mean() == pytest.approx(score, rel=1e-3)
