"`check_block`: all kinds of the library pass, and a kind with one broken hook fails by the name of the hook"

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kinds_of_task import KINDS, table

from fastai_condmtl.all import *
from fastai_condmtl.core.columns import numbers
from fastai_condmtl.core.question_text import never_true

# They train the product with the conditions above, so alone they refuse to bind; that they pass in a flow is tested
# in loss/test_whole_space.py
NEED_A_CONDITION = {'whole', 'detach', 'both'}


@pytest.fixture(scope='module')
def df():
    return table(60)


@pytest.mark.parametrize('kind', sorted(set(KINDS) - NEED_A_CONDITION))
def test_kinds_of_the_library_pass(kind, df):
    check_block(KINDS[kind]('t'), df)


@pytest.mark.parametrize('kind', sorted(NEED_A_CONDITION))
def test_kinds_that_need_a_condition_say_so(kind, df):
    with pytest.raises(FlowError, match='whole_space'):
        check_block(KINDS[kind]('t'), df)


def test_a_block_within_another_is_told_how_it_is_checked(df):
    "The error's own line passes"
    kinds = df.assign(t=['a', 'b', None] * 20)
    with pytest.raises(FlowError) as error:
        check_block(SingleLabelBlock('t', within='over'), kinds)
    line = re.search(r'check_block\(.*?, df\)', str(error.value))[0]
    eval(line, globals() | dict(df=kinds))


def test_what_is_no_block_is_refused(df):
    with pytest.raises(FlowError, match='takes a block'):
        check_block('b0', df)


class Number(ConditionalBlock):
    "A number, standardised: each hook once, with a faultless default for the subclasses below"

    ops = ('gt', 'le')
    metrics = ('mae', 'r2')
    lower_is_better = ('mae',)
    exact = False

    def __init__(self, name, col=None, *, power: float = 2.0, **kwargs):
        super().__init__(name, col, **kwargs)
        self.power = power

    def setup(self, df, train):
        x = numbers(self, train, self.cols[0])
        self.lo, self.span = float(np.nanmean(x)), float(np.nanstd(x))

    def encode(self, df):
        x = numbers(self, df, self.cols[0])
        known = ~np.isnan(x)
        return np.where(known, x, 0.0)[:, None], known[:, None]

    def to_cell(self, vals):
        return float(vals[0])

    def scale(self, x):
        return (x - self.lo) / self.span

    def unscale(self, x):
        return x * self.span + self.lo

    def loss(self, logits, targets, weight=None):
        res = (logits - targets).abs() ** self.power
        return res if weight is None else (res * weight).sum()

    def activate(self, logits):
        return logits

    def decide(self, acts):
        return acts

    def parse_question(self, op, value):
        return float(super().parse_question(op, value))

    def answer(self, op, value, vals, known, scaled=False):
        x = vals[:, 0] if scaled else self.scale(vals[:, 0]).astype(np.float32)
        true = x > float(np.float32(self.scale(value)))
        if op == 'le':
            true = ~true
        return true & known[:, 0], ~true & known[:, 0]

    def summarise(self, acts, targets):
        return acts[..., None]

    def score(self, name, summary, true, mask, threshold=None):
        x, y = summary[mask, 0].astype(float), true[mask].astype(float)
        if not len(y):
            return float('nan')
        error = np.abs(x - y).mean() if name == 'mae' else 1 - ((x - y) ** 2).sum() / ((y - y.mean()) ** 2).sum()
        return float(error)

    def fit_baseline(self, vals, mask):
        return float((vals * mask).sum() / mask.sum())

    def baseline(self, name, constant, vals):
        return np.full((*vals.shape, 1), constant)


def test_a_kind_of_ones_own_passes(df):
    check_block(Number('z'), df)
    with pytest.raises(FlowError, match='register_block'):  # a file may name it only when its user says so
        Flow.from_json(Flow('f', Number('z')).to_json())


FAULTS = {}


def fault(hook):
    "Keep a subclass as a fault of a hook"

    def keep(cls):
        FAULTS[cls.__name__] = (cls, hook)
        return cls

    return keep


@fault('encode')
class KnowsBlanks(Number):
    def encode(self, df):
        vals, known = super().encode(df)
        return vals, np.ones_like(known)


@fault('encode')
class DependsOnOtherRows(Number):
    def encode(self, df):
        vals, known = super().encode(df)
        return vals - vals[known].min(), known


@fault('encode')
class NotFiniteWhereBlank(Number):
    def encode(self, df):
        return numbers(self, df, self.cols[0])[:, None], super().encode(df)[1]


@fault('encode')
class OneDimension(Number):
    def encode(self, df):
        vals, known = super().encode(df)
        return vals[:, 0], known[:, 0]


@fault('setup')
class ChangesTheBlock(Number):
    def __init__(self, name, col=None, **kwargs):
        super().__init__(name, col, **kwargs)
        self.learnt = []

    def setup(self, df, train):
        super().setup(df, train)
        self.learnt.append(self.lo)


@fault('setup')
class ForgetsInAPickle(Number):
    def __getstate__(self):
        return {**vars(self), 'lo': 0.0}


@fault('loss')
class IgnoresWeights(Number):
    def loss(self, logits, targets, weight=None):
        res = super().loss(logits, targets)
        return res if weight is None else res.sum()


@fault('loss')
class MeanOfWeights(Number):
    def loss(self, logits, targets, weight=None):
        res = super().loss(logits, targets, weight)
        return res if weight is None else res / weight.sum()


@fault('loss')
class NotANumberAtBlanks(Number):
    def loss(self, logits, targets, weight=None):
        blank = targets == 0  # a number of the table hardly ever is its mean
        return super().loss(logits, targets.where(~blank, float('nan')), weight)


@fault('loss')
class Uphill(Number):
    def loss(self, logits, targets, weight=None):
        return -super().loss(logits, targets, weight)


@fault('loss')
class WithoutGradient(Number):
    def loss(self, logits, targets, weight=None):
        return super().loss(logits.detach(), targets, weight)


@fault('loss')
class Overflows(Number):
    def loss(self, logits, targets, weight=None):
        res = (logits.exp().exp() - targets) ** 2
        return res if weight is None else (res * weight).sum()


@fault('activate')
class AnotherShape(Number):
    def activate(self, logits):
        return torch.stack([logits, logits], -1)


@fault('decide')
class NotFinite(Number):
    def decide(self, acts):
        return acts / 0.0


@fault('decide')
class OneDecision(Number):
    def decide(self, acts):
        return acts.mean(0)


@fault('answer')
class TrueWhereUnknown(Number):
    def answer(self, op, value, vals, known, scaled=False):
        true, false = super().answer(op, value, vals, known | True, scaled)
        return true, false & known[:, 0]


@fault('answer')
class ForgetsTheScale(Number):
    def answer(self, op, value, vals, known, scaled=False):
        true = vals[:, 0] > value
        if op == 'le':
            true = ~true
        return true & known[:, 0], ~true & known[:, 0]


@fault('answer')
class BothAnswers(Number):
    def answer(self, op, value, vals, known, scaled=False):
        true, _ = super().answer(op, value, vals, known, scaled)
        return true, known[:, 0]


@fault('answer')
class ArraysForTensors(Number):
    def answer(self, op, value, vals, known, scaled=False):
        true, false = super().answer(op, value, vals, known, scaled)
        return np.asarray(true), np.asarray(false)


@fault('answer')
class AnswersAnotherQuestion(Number):
    "`gt` of the value is false, and `le` too"

    def answer(self, op, value, vals, known, scaled=False):
        return super().answer('gt', value, vals, known, scaled)


@fault('parse_question')
class RefusesItsOps(Number):
    def parse_question(self, op, value):
        if op == 'le':
            raise FlowError('not asked here')
        return super().parse_question(op, value)


@fault('parse_question')
class RefusesInOtherWords(Number):
    def parse_question(self, op, value):
        if op == 'le':
            raise FlowError('this is never asked')
        return super().parse_question(op, value)


@fault('implied_labels')
class ImpliesTooMuch(Number):
    def implied_labels(self, op, value, truth):
        return [(0, value)]


@fault('state_probs')
class DoNotSumToOne(Number):
    def state_probs(self, variable, acts, vals):
        return np.full((len(acts), 2), 0.7)


@fault('state_probs')
class OtherWayRound(Number):
    def state_probs(self, variable, acts, vals):
        return super().state_probs(variable, acts, vals)[:, ::-1]


@fault('score')
class CountsMaskedCells(Number):
    def score(self, name, summary, true, mask, threshold=None):
        return super().score(name, summary, true, mask | mask.any()) if mask.any() else float('nan')


@fault('score')
class CountsMaskedPredictions(Number):
    def score(self, name, summary, true, mask, threshold=None):
        if name != 'mae' or not mask.any():
            return super().score(name, summary, true, mask)
        return float((np.abs(summary[..., 0] - true)[mask].sum() + np.abs(summary[~mask]).sum()) / mask.size)


@fault('score')
class NothingIsZero(Number):
    def score(self, name, summary, true, mask, threshold=None):
        return super().score(name, summary, true, mask) if mask.any() else 0.0


@fault('score')
class LowerIsNotSaidToBeBetter(Number):
    lower_is_better = ()


@fault('summarise')
class TooMuch(Number):
    def summarise(self, acts, targets):
        return torch.stack([acts, targets], -1)


@fault('baseline')
class OneNumber(Number):
    def baseline(self, name, constant, vals):
        return constant


@fault('__init__')
class LosesAnArgument(Number):
    def __init__(self, name, col=None, *, threshold: float = 0.5, **kwargs):
        super().__init__(name, col, **kwargs)
        self.cut = threshold


@fault('__init__')
class KeepsAnotherValue(Number):
    def __init__(self, name, col=None, *, power: float = 2.0, **kwargs):
        super().__init__(name, col, power=power + 1, **kwargs)


@fault('unscale')
class StaysOnTheLossScale(Number):
    def unscale(self, x):
        return x * self.span


@fault('scale')
class ScaleIsNotFinite(Number):
    def scale(self, x):
        return super().scale(x) * 1e40

    def unscale(self, x):
        return super().unscale(x / 1e40)


@fault('to_cell')
class WritesOtherNumbers(Number):
    def to_cell(self, vals):
        return round(float(vals[0]))


@fault('to_columns')
class WritesAnotherColumn(Number):
    def to_columns(self, vals, known):
        return {'number': np.where(known[:, 0], vals[:, 0], np.nan)}


@fault('family')
class ListAsFamily(Number):
    @property
    def family(self):
        return ['number', self.power]


@fault('decided')
class DecidesTwice(Number):
    def decided(self, summary, threshold=None):
        return summary[..., 0] + 1


@fault('describe')
class DescribesNothing(Number):
    def describe(self):
        return None


@fault('probability')
class TellsAnArray(Number):
    def probability(self, acts):
        return acts


@fault('matching_acts')
class MatchesNothing(Number):
    def matching_acts(self, new):
        return []


@fault('metrics')
class WithoutScore(Number):
    metrics = ()


@pytest.mark.parametrize('name', FAULTS)
def test_a_broken_hook_is_named(name, df):
    cls, hook = FAULTS[name]
    with pytest.raises(FlowError, match=rf'{name}\.{hook}\b'):
        check_block(cls('z'), df)


class Focal(BinaryBlock):
    "A kind that is `thresholded` and has no thresholds"

    def thresholds(self):
        return None


class Certain(BinaryBlock):
    "Decides the other way round"

    def decide(self, acts, threshold):
        return 1 - super().decide(acts, threshold)


class Percent(BinaryBlock):
    "Probabilities from 0 to 100"

    def activate(self, logits):
        return 100 * super().activate(logits)


class Negative(BinaryBlock):
    "A log-likelihood with the wrong sign"

    def nll(self, logits, targets, smooth=0.0):
        return -super().nll(logits, targets, smooth)


class Halved(BinaryBlock):
    "Logits that lead to other activations"

    def logits_at(self, acts):
        return super().logits_at(acts) / 2


class Strangers(MultiLabelBlock):
    "Labels that stand nowhere"

    def columns_of(self, label):
        return [self.n_targets]


class AllAtOnce(MultiLabelBlock):
    "A score of a label that is none of one label"

    def label_scores(self, name, summary, true, mask, threshold=None):
        return np.array([*super().label_scores(name, summary, true, mask, threshold), np.nan])


class Last(SingleLabelBlock):
    "Implies a class of an answer that several have"

    def implied_labels(self, op, value, truth):
        return [(0, float(self.n_out - 1))]


@pytest.mark.parametrize(
    'block, hook',
    [
        (Focal('b0'), 'thresholds'),
        (Certain('b0'), 'decide'),
        (Percent('b0'), 'activate'),
        (Negative('b0'), 'nll'),
        (Halved('b0'), 'logits_at'),
        (Strangers('tags'), 'columns_of'),
        (AllAtOnce('tags'), 'label_scores'),
        (Last('k'), 'implied_labels'),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, ConditionalBlock) else x,
)
def test_broken_kinds_with_classes_are_named(block, hook, df):
    with pytest.raises(FlowError, match=rf'{type(block).__name__}\.{hook}\b'):
        check_block(block, df)


def required_of(cls):
    return [k for k in dir(ConditionalBlock) if getattr(getattr(ConditionalBlock, k), 'required', False)]


@pytest.mark.parametrize('hook', required_of(Number))
def test_a_hook_that_is_not_written_is_named(hook, df):
    lacking = type('Lacking', (Number,), {hook: getattr(ConditionalBlock, hook)})
    with pytest.raises(FlowError, match=rf'Lacking\.{hook} is not written.*05_own_block.*check_block'):
        check_block(lacking('z'), df)


class Mute(Number):
    "Nobody asks it"

    ops = ()
    answer = ConditionalBlock.answer


def test_a_kind_without_questions_answers_none(df):
    check_block(Mute('z'), df)


def test_gradient_of_a_faultless_kind_is_that_of_torch():
    "The base of the faults is sound: its loss is PyTorch's"
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(9, 2, generator=rng), torch.randn(9, 2, generator=rng)
    w = torch.rand(9, 2, generator=rng)
    assert torch.allclose(Number('z').loss(x, y, w), (F.mse_loss(x, y, reduction='none') * w).sum())


class ShareOfOthers(VotesBlock):
    "Its question about a share is answered with the share of the other answers"

    def answer(self, op, value, vals, known, scaled=False):
        true, false = super().answer(op, value, vals, known, scaled)
        return (false, true) if op == 'share' else (true, false)


class SharesAsDecided(VotesBlock):
    "Decides of a summary that somebody gave each answer"

    def decided(self, summary, threshold=None):
        return summary[..., 0]


class CertainOfOne(VotesBlock):
    "A share has a probability although labels tell it"

    def question_states(self, op, value):
        return super().question_states('eq', (value[0],)) if op == 'share' else super().question_states(op, value)


@pytest.mark.parametrize(
    'broken, told',
    [
        (ShareOfOthers, "ShareOfOthers.answer: 'share' with"),
        (SharesAsDecided, 'SharesAsDecided.decided: what it decides of a summary'),
        (CertainOfOne, "CertainOfOne.state_probs: labels that are certain give 'share'"),
    ],
)
def test_votes_with_a_broken_hook_fail_by_its_name(broken, told, df):
    with pytest.raises(FlowError, match=told):
        check_block(broken('t', cols=['v0', 'v1', 'v2']), df)


class NothingIsAbove(Number):
    def parse_question(self, op, value):
        if op == 'gt':
            raise never_true(self.path, op, value, 'numbers are negative')
        return super().parse_question(op, value)


def test_a_question_that_no_label_answers_with_yes_is_left_out(df):
    check_block(NothingIsAbove('z'), df)
