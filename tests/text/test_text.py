"""Texts as input: alignment where rows are sorted by length, masked words against torch's own cross entropy, what is
shown, and bad input. Reference values are
computed here by brute force, by torch, or by fastai's own pieces; never by the library's."""

import contextlib, io, json, math, os, pickle, subprocess, sys, textwrap
from collections import Counter
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch
import torch.nn.functional as F
from torch import nn
from fastai.text.all import (
    AWD_LSTM,
    ColReader,
    DataBlock,
    Learner,
    RandomSplitter,
    SortedDL,
    TensorText,
    TextBlock,
    awd_lstm_clas_config,
    defaults,
    set_seed,
    text_classifier_learner,
)
from fastai_condmtl.text.data import TextColumns
from fastai_condmtl.text.all import (
    BinaryBlock,
    ConditionalInterpretation,
    ConditionalTextDataLoaders,
    Flow,
    FlowError,
    FlowPrediction,
    FlowWarning,
    MaskedLMBlock,
    MaskTokens,
    SingleLabelBlock,
    TensorConditional,
    UnboundedRegressionBlock,
    average_folds,
    compare,
    conditional_lm_learner,
    conditional_text_learner,
    equip,
    fit_folds,
)
from fastai_condmtl.datasets.reviews import review_flow, reviews
from fastai_condmtl.text.masks import MASK, unpack

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings('ignore')
SMALL = awd_lstm_clas_config | dict(emb_sz=24, n_hid=48, n_layers=1)
FILL = 'This lamp was a gift for my sister. It broke after two days. I want my xxmask back.'
SPECIAL = {*defaults.text_spec_tok, MASK, 'xxfake'}


def quietly(f, *args, **kwargs):
    with contextlib.redirect_stdout(io.StringIO()):
        return f(*args, **kwargs)


def texts_dls(df, flow, **kwargs):
    return ConditionalTextDataLoaders.from_df(df, flow, **(dict(seed=0, bs=32, num_workers=0) | kwargs))


@pytest.fixture(scope='module')
def df():
    return reviews(500)


def both_flow():
    language = SingleLabelBlock('language')
    return Flow(
        'review',
        BinaryBlock('complaint'),
        language,
        MaskedLMBlock('word', n_masks=5, mask_prob=0.2, weight=2.0) | language.eq('en'),
        UnboundedRegressionBlock('stars'),
    )


@pytest.fixture(scope='module')
def dls(df):
    return texts_dls(df, both_flow())


@pytest.fixture(scope='module')
def trained(df):
    "A transformer that has learnt the reviews and their words."
    set_seed(0, reproducible=True)
    learn = conditional_lm_learner(texts_dls(df, both_flow()), d_model=64, n_layers=1, dropout=0.05)
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(16, 1e-2)
    return learn


# ---- rows stay what they are, whatever order they are read in


class Reader(nn.Module):
    "Tells the number that stands in a text: 'row 17' is 17. Texts of other lengths do not disturb it"

    def __init__(self, dls, flow):
        super().__init__()
        (b,) = flow.tasks.values()
        self.nums = nn.Parameter(
            torch.tensor(
                [(float(w[1:]) - b.mean) / b.std if w[0] == 'n' and w[1:].isdigit() else 0.0 for w in dls.vocab]
            )
        )

    def forward(self, x):
        return self.nums[x.as_subclass(torch.Tensor)].sum(1, keepdim=True)


@pytest.fixture(scope='module')
def numbered():
    rng = np.random.default_rng(0)
    return pd.DataFrame(dict(num=np.arange(120.0)), index=[f'id{i}' for i in range(120)]).assign(
        text=[' '.join(['word'] * int(rng.integers(1, 40)) + [f'n{i}']) for i in range(120)]
    )


def reading(df, **kwargs):
    dls = texts_dls(df, UnboundedRegressionBlock('num'), min_freq=1, bs=16, rules=[], valid_pct=0.5, **kwargs)
    return equip(Learner(dls, Reader(dls, dls.flow)), tune=None)


def test_rows_stay_aligned_though_sorted_by_length(numbered):
    learn = reading(numbered)
    assert isinstance(learn.dls.valid, SortedDL)
    lens = [(x != 1).sum(1) for x, _ in learn.dls.valid]
    assert (torch.cat(lens).diff() <= 0).all() and len(set(torch.cat(lens).tolist())) > 20  # it does sort
    with learn.no_bar():
        assert learn.evaluate(metrics='mae').metric_res[0] < 1e-3
        shuffled = numbered.sample(frac=1, random_state=1)
        pred = learn.predict_df(shuffled.drop(columns='num'))
        assert pred.index.equals(shuffled.index)
        np.testing.assert_allclose(pred.num, shuffled.num, atol=1e-3)
        holes = shuffled.assign(num=shuffled.num.where(np.arange(120) % 3 > 0))
        full, filled, _ = learn.fill_labels(holes, min_confidence=0)
        np.testing.assert_allclose(full.num, shuffled.num, atol=1e-3)
        assert filled.num.tolist() == holes.num.isna().tolist()
        preds, targs, dec = learn.get_preds(with_decoded=True)
        np.testing.assert_allclose(preds[:, 0], targs[:, 0, 0], atol=1e-4)
        tree = learn.explain(shuffled[:5])
    assert [f'{v:.0f}' for v in shuffled.num[:5]] == [f"{tree[(i, 'num')].data['value']:.0f}" for i in range(5)]


def test_the_worst_row_is_the_one_that_was_spoilt(numbered):
    spoilt = numbered.copy()
    learn = reading(spoilt)
    row = learn.dls.valid_ds.items.index[7]
    spoilt.loc[row, 'num'] += 500
    learn = reading(spoilt)
    with learn.no_bar():
        interp = ConditionalInterpretation.from_learner(learn)
        losses, at = interp.top_losses('num', 3)
    assert learn.dls.valid_ds.items.index[at[0].item()] == row and losses[0] > 100 * losses[1]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        interp.plot_top_losses('num', 1)
    assert f'{numbered.text[row].split()[-1]}' in out.getvalue() and 'loss of num' in out.getvalue()


@pytest.mark.parametrize('batch', [0, 1, 2])
def test_long_texts_are_read_alike_in_any_batch(df, batch):
    dls = texts_dls(df, review_flow(), seq_len=8)
    learn = conditional_text_learner(dls, AWD_LSTM, pretrained=False, config=SMALL, seq_len=8, start=None)
    stock = text_classifier_learner(dls, AWD_LSTM, pretrained=False, config=SMALL, seq_len=8)
    stock.model.load_state_dict(learn.model.state_dict())
    x = [b[0] for b in dls.valid][batch]
    order = torch.randperm(len(x))
    learn.model.eval()
    stock.model.eval()
    with torch.no_grad():
        alone = torch.cat([stock.model(r[r != 1][None])[0] for r in x])  # fastai's encoder on each text by itself
        torch.testing.assert_close(learn.model(x)[0], alone, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(learn.model(x[order])[0], alone[order], atol=1e-6, rtol=1e-4)


def test_a_prediction_does_not_depend_on_padding(trained):
    m, vocab = trained.model.eval(), trained.dls.vocab
    x = trained.dls.valid.one_batch()[0]
    short = x[-1:][:, x[-1] != 1]
    front = torch.cat([torch.ones(1, 5, dtype=x.dtype), short, torch.ones(1, 9, dtype=x.dtype)], 1)
    with torch.no_grad():
        torch.testing.assert_close(m(front.as_subclass(TensorText)), m(short), atol=1e-4, rtol=1e-4)


# ---- fastai's own pieces


def test_a_flow_is_the_target_of_a_stock_block(df):
    block = DataBlock(
        blocks=(TextBlock.from_df('text', n_workers=0), review_flow()),
        get_x=ColReader('text'),
        splitter=RandomSplitter(seed=0),
    )
    dls = block.dataloaders(df, bs=32, num_workers=0)
    learn = equip(text_classifier_learner(dls, AWD_LSTM, pretrained=False, config=SMALL))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    x, y = dls.one_batch()
    assert type(x) is TensorText and type(y) is TensorConditional
    ours = texts_dls(df, review_flow())
    assert ours.vocab == dls.vocab  # fastai's own words, in its order
    assert torch.equal(ours.valid.one_batch()[0], dls.valid.one_batch()[0]) and torch.equal(
        ours.valid.one_batch()[1], dls.valid.one_batch()[1]
    )
    assert isinstance(learn.predict(df.text[0])[0], FlowPrediction)


@pytest.mark.trains
def test_a_classifier_learns_the_reviews(df):
    set_seed(0, reproducible=True)
    learn = conditional_text_learner(
        texts_dls(reviews(600), review_flow()), AWD_LSTM, pretrained=False, config=SMALL, drop_mult=0.1
    )
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(6, 3e-2)
        res = learn.evaluate(metrics='accuracy').set_index('task_path')
        table = learn.search_thresholds()
        temps = learn.calibrate()
        pred = learn.predict('The courier left the box in the rain. I want my money back.')[0]
    assert (
        res.metric_res['complaint'] >= 0.9
        and res.metric_res['language'] >= 0.95
        and res.metric_res['about.cause'] > res.baseline['about.cause'] + 0.2
    )
    assert set(table.task_path) == {'complaint', 'about.refund'} and 'complaint' in set(temps.task_path)
    assert pred['complaint'] is True and pred['cause'] == 'delivery'


def test_what_is_shown(trained, df):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), trained.no_bar():
        trained.dls.valid.show_batch(max_n=3)
        trained.show_results(max_n=3)
    text = out.getvalue()
    assert (
        text.count('complaint') >= 4
        and 'xxbos' not in text
        and 'xxpad' not in text
        and 'xxmaj' not in text
        and '✗' in text
    )
    from fastai_condmtl.text.show import TextTrees

    p = trained.predict('a <b> c')[0]
    page = TextTrees(['a <b> c'], [p.tree()], ['loss <1>'])._repr_html_()
    assert 'a &lt;b&gt; c' in page and 'loss &lt;1&gt;' in page and '<b>' not in page


@pytest.mark.trains
def test_other_weights_from_a_file_drop_temperatures(df, tmp_path):
    dls = texts_dls(df, review_flow())
    learn = conditional_text_learner(dls, AWD_LSTM, pretrained=False, path=tmp_path)
    learn.save('before')
    for p in learn.model.parameters():
        p.data.add_(0.01)
    learn.loss_func.temperatures = {path: 2.0 for path, b in dls.flow.tasks.items() if b.nll is not None}
    with pytest.warns(FlowWarning, match='other weights'):
        learn.load('before')
    assert not learn.loss_func.temperatures


def test_a_fresh_process(trained, df, tmp_path):
    """The core does without texts; fastai imported after ours breaks nothing; what was exported predicts and
    shows the same."""
    trained.export(tmp_path / 'learn.pkl')
    with trained.no_bar():
        want, here = trained.predict(FILL), trained.predict_df(df[:20])
    df[:20].to_json(tmp_path / 'df.json')
    (tmp_path / 'run.py').write_text(
        textwrap.dedent(f"""
        import io, json, sys
        import fastai_condmtl.all, fastai_condmtl.vision.all, fastai_condmtl.callback.tracking
        early = [m for m in sys.modules if m.startswith('fastai.text')]
        from fastai_condmtl.text.all import *
        from fastai.text.all import *
        torch.set_num_threads(1)
        learn = load_learner(r'{tmp_path}/learn.pkl')
        df = pd.read_json(r'{tmp_path}/df.json')
        with learn.no_bar():
            p, table, dl = learn.predict({FILL!r}), learn.predict_df(df), learn.dls.test_dl(df, with_labels=True)
            dl.show_batch(max_n=2); learn.show_results(dl=dl, max_n=2)
        stars, complaint = table.stars.tolist(), table.complaint.astype(bool).tolist()
        print(json.dumps([early, p[0]['word'], p[2].double().sum().item(), complaint, stars]))
        """)
    )
    res = subprocess.run(
        [sys.executable, '-W', 'ignore', str(tmp_path / 'run.py')],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    assert res.returncode == 0, res.stderr[-2000:]
    early, words, total, complaint, stars = json.loads(res.stdout.strip().split('\n')[-1])
    assert (
        early == []
        and words == want[0]['word']
        and len(words) == 1
        and math.isclose(total, want[2].double().sum().item(), rel_tol=1e-4)
    )
    assert complaint == here.complaint.astype(bool).tolist()
    np.testing.assert_allclose(stars, here.stars, rtol=1e-4)
    assert res.stdout.count('complaint: ') >= 2 and res.stdout.count('language: ') >= 2


def test_tracked_with_texts(df, tmp_path):
    pytest.importorskip('tensorboard')
    from fastai_condmtl.callback.tracking import ConditionalTensorBoard
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    learn = conditional_lm_learner(
        texts_dls(df[:120], both_flow()), d_model=16, n_layers=1, cbs=ConditionalTensorBoard(tmp_path)
    )
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
    acc = EventAccumulator(str(tmp_path), size_guidance=dict(tensors=0))
    acc.Reload()
    tags = acc.Tags()
    assert 'word/valid_loss' in tags['scalars'] and 'complaint/worst/text_summary' in tags['tensors']
    worst = acc.Tensors('complaint/worst/text_summary')[0].tensor_proto.string_val[0].decode()
    assert 'xxbos' in worst and 'complaint' in worst


def test_several_columns_of_text(df):
    two = df.assign(title=[f'Title {i % 5}' for i in range(len(df))], text_length=7)
    dls = texts_dls(two.rename(columns=dict(text='body')), review_flow(), text_col=['title', 'body'])
    text = dls.train.show_batch(max_n=1, show=False)[2][0][0]
    assert text.startswith('xxbos xxfld 1 xxmaj title') and 'xxfld 2' in text
    learn = conditional_lm_learner(dls, d_model=16, n_layers=1)
    with learn.no_bar():
        raw = two.rename(columns=dict(text='body'))
        rows = learn.predict_df(raw)  # read as they were in training
        train = learn.get_preds(dl=learn.dls.train.new(shuffle=False, drop_last=False), with_decoded=True)[2]
    at = [raw.index.get_loc(i) for i in learn.dls.train_ds.items.index]
    assert (learn.dls.flow.to_frame(train).language.to_numpy() == rows.language.to_numpy()[at]).all()
    with learn.no_bar():
        for item in (dict(body='a text'), raw.drop(columns='title').iloc[0], raw.drop(columns='title')[:1]):
            with pytest.raises(FlowError, match="no column 'title'"):
                learn.predict(item)
        with pytest.raises(FlowError, match="no column 'title'"):
            learn.predict_df(raw.drop(columns='title'))


# ---- masked words


def words_of(b, vocab):
    return unpack(b[0], len(vocab))


def test_loss_is_torchs_cross_entropy_over_masked_words(dls):
    flow, loss = dls.flow, dls.loss_func
    s, V = flow.slices['word'], len(dls.vocab)
    torch.manual_seed(0)
    for b in dls.train:
        pred = torch.randn(len(b[0]), dls.c, requires_grad=True)
        y = b[1].as_subclass(torch.Tensor)
        target = torch.where(y[:, 1, s.targets] > 0, y[:, 0, s.targets].long(), -100)
        want = F.cross_entropy(pred[:, s.logits].reshape(-1, V), target.reshape(-1), ignore_index=-100)
        only = y.clone()
        only[:, 1] = 0
        only[:, 1, s.targets] = y[:, 1, s.targets]
        got = loss(pred, only)
        torch.testing.assert_close(got, 2 * want)  # its weight
        g = torch.autograd.grad(got, pred, retain_graph=True)[0]
        torch.testing.assert_close(g, torch.autograd.grad(2 * want, pred)[0])
        torch.testing.assert_close(loss.per_task(pred, y)[flow.paths.index('word')], want)
        total = sum(t.weight * l for t, l in zip(flow.tasks.values(), loss.per_task(pred, y)))
        torch.testing.assert_close(loss(pred, y), total)
        rows = F.cross_entropy(
            pred[:, s.logits].reshape(-1, V), target.reshape(-1), ignore_index=-100, reduction='none'
        ).reshape(len(y), -1)
        mine = loss.per_sample(pred, y)[:, flow.paths.index('word')]
        n = (target >= 0).sum(1)
        torch.testing.assert_close(mine[n > 0], (rows.sum(1) / n)[n > 0])
        assert mine[n == 0].isnan().all() and (n == 0).any()


def test_masks_are_what_they_say(dls, df):
    vocab, s = dls.vocab, dls.flow.slices['word'].targets
    never = torch.tensor([w in SPECIAL for w in vocab])
    for dl in (dls.train, dls.valid):
        for b in dl:
            shown, whole, asked = words_of(b, vocab)
            y = b[1].as_subclass(torch.Tensor)
            n = asked.sum(1)
            assert not never[whole[asked]].any() and not (whole[asked] == 1).any() and not (shown[asked] == 1).any()
            assert (n <= 5).all() and torch.equal(y[:, 1, s].sum(1).long(), n)
            for i in range(len(y)):  # the words, in their order, by brute force
                assert y[i, 0, s][: n[i]].long().tolist() == whole[i][asked[i]].tolist() and y[i, 1, s].tolist() == [
                    1.0
                ] * int(n[i]) + [0.0] * int(5 - n[i])
            assert torch.equal(shown[~asked], whole[~asked])
            lang = y[:, :, dls.flow.slices['language'].targets][..., 0]
            en = (lang[:, 1] > 0) & (lang[:, 0] == dls.flow.tasks['language'].vocab.index('en'))
            assert (
                (n[en] > 0).all() and (n[~en] == 0).all() and (~en).any()
            )  # only where the condition is known to hold


@pytest.mark.parametrize('split', [0, 1])
def test_statistics_of_masks(split):
    vocab = defaults.text_spec_tok + [MASK] + [f'w{i}' for i in range(200)]
    flow = Flow('f', MaskedLMBlock('word', 'text', vocab=vocab, n_masks=200)).bind(pd.DataFrame(dict(text=['a'] * 300)))
    tfm, dl = MaskTokens(), type('Data', (), dict(flow=flow, vocab=vocab))()
    tfm.setup(dl)
    torch.manual_seed(0)
    x = torch.randint(10, len(vocab), (300, 200))
    y = torch.zeros(300, 2, 200)
    y[:, 1] = 1
    shown, whole, asked = unpack(tfm((TensorText(x), y.as_subclass(TensorConditional)), split_idx=split)[0], len(vocab))
    within = lambda k, n, p: abs(k - n * p) < 4 * math.sqrt(n * p * (1 - p))
    n = int(asked.sum())
    assert within(n, x.numel(), 0.15)
    masked, same = shown[asked] == vocab.index(MASK), shown[asked] == whole[asked]
    assert within(int(masked.sum()), n, 0.8)
    assert within(int(same.sum()), n, 0.1 + 0.1 / 200)  # kept, or replaced by itself
    assert within(int((~masked & ~same).sum()), n, 0.1 * (1 - 1 / 200))
    other = shown[asked][~masked & ~same]
    assert (other >= 10).all() and other.unique().numel() > 150
    from scipy.stats import chisquare

    assert chisquare(asked.sum(0).numpy()).pvalue > 1e-4  # no place is preferred
    assert np.corrcoef(asked[:, :-1].flatten(), asked[:, 1:].flatten())[0, 1] < 0.03  # nor neighbours of masks


def test_validation_masks_stay_training_masks_change(df):
    dls = texts_dls(df, both_flow())
    first, again = [[torch.as_tensor(b[0]) for b in dl] for dl in (dls.valid, dls.valid)]
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    one = dls.valid.new(bs=1)
    rows = [tuple(int(t) for t in r if t != 1) for b in first for r in b]
    assert rows == [tuple(int(t) for t in b[0][0] if t != 1) for b in one]  # whatever else is in the batch
    x = torch.as_tensor(dls.train.new(shuffle=False).one_batch()[0])
    assert not torch.equal(x, torch.as_tensor(dls.train.new(shuffle=False).one_batch()[0]))
    other = Flow('f', MaskedLMBlock('word', n_masks=4, seed=1))
    seeds = [
        torch.as_tensor(texts_dls(df, f).valid.one_batch()[0])
        for f in (other, Flow('f', MaskedLMBlock('word', n_masks=4)))
    ]
    assert not torch.equal(*seeds)


@pytest.mark.trains
def test_scores_of_masked_words(trained, df):
    dls, s, vocab = trained.dls, trained.dls.flow.slices['word'], trained.dls.vocab
    with trained.no_bar():
        res = trained.evaluate().set_index(['task_path', 'metric_name'])
    trained.model.eval()
    hits, top5, nll, truth, n_rows = [], [], [], [], 0
    for b in dls.valid:
        with torch.no_grad():
            p = trained.model(b[0])
        p = p[:, s.logits].reshape(len(p), 5, -1)
        m = b[1].as_subclass(torch.Tensor)[:, 1, s.targets] > 0
        t = b[1].as_subclass(torch.Tensor)[:, 0, s.targets][m].long()
        hits.append(p[m].argmax(1) == t)
        top5.append((p[m].topk(5).indices == t[:, None]).any(1))
        truth += t.tolist()
        nll.append(F.cross_entropy(p[m], t, reduction='none'))
        n_rows += int(m.any(1).sum())
    r = res.loc['word']
    assert math.isclose(r.metric_res['accuracy'], torch.cat(hits).float().mean(), rel_tol=1e-5) and math.isclose(
        r.metric_res['accuracy_5'], torch.cat(top5).float().mean(), rel_tol=1e-5
    )
    assert (
        math.isclose(r.metric_res['perplexity'], torch.cat(nll).mean().exp(), rel_tol=1e-4)
        and r.num_samples['accuracy'] == n_rows
    )
    items = dls.train_ds.items
    count = Counter(
        t
        for toks, l in zip(items['_tokens_'], items.language)
        if l == 'en'
        for t in toks
        if t in vocab and t not in SPECIAL
    )
    common = vocab.index(count.most_common(1)[0][0])
    assert math.isclose(r.baseline['accuracy'], np.mean(np.array(truth) == common), rel_tol=1e-6)
    answers = [w for w in vocab if w not in SPECIAL]
    p = {w: (count[w] + 1) / (sum(count.values()) + len(answers)) for w in answers}
    assert math.isclose(
        r.baseline['perplexity'], math.exp(-np.mean([math.log(p[vocab[t]]) for t in truth])), rel_tol=1e-5
    )
    assert (
        r.metric_res['accuracy'] > r.baseline['accuracy'] + 0.1
        and r.metric_res['perplexity'] < 0.5 * r.baseline['perplexity']
    )
    assert (
        res.metric_res['complaint', 'accuracy'] >= 0.9 and res.metric_res['language', 'accuracy'] >= 0.95
    )  # beside the words
    html = trained.evaluate(metrics=['perplexity']).show().to_html()
    assert 'seagreen' in html and 'crimson' not in html  # less is more


@pytest.mark.trains
def test_other_tasks_are_judged_on_whole_texts(trained):
    flow, V = trained.dls.flow, len(trained.dls.vocab)
    x, _ = trained.dls.valid.one_batch()
    shown, whole, asked = unpack(x, V)
    rest = [i for p, s in flow.slices.items() if p != 'word' for i in range(s.logits.start, s.logits.stop)]
    with torch.no_grad():
        trained.model.eval()
        torch.testing.assert_close(trained.model(x)[:, rest], trained.model(whole)[:, rest], atol=1e-5, rtol=1e-5)
        out, pad = trained.model[0](whole)
        assert (
            trained.model[1].pooled(*trained.model[0](shown)) - trained.model[1].pooled(out, pad)
        ).abs().max() > 1e-3  # masks would have mattered


@pytest.mark.trains
def test_fill_in(trained):
    vocab, s = trained.dls.vocab, trained.dls.flow.slices['word']
    with trained.no_bar():
        p, dec, acts = trained.predict(FILL)
        tree = trained.explain([FILL], top_k=3)
        none = trained.predict(FILL.replace('xxmask', 'money'))[0]
        table = trained.predict_df(pd.DataFrame(dict(text=[FILL, 'Great value.'], x=1)))
        german = trained.predict('Schon wieder Kessel aus diesem Laden. Ich will mein xxmask zurück.')[0]
    text = 'xxbos xxmaj this lamp was a gift for my sister . xxmaj it broke after two days . i want my xxmask back .'
    tokens = text.split()
    ids, at = torch.tensor([[vocab.index(t) for t in tokens]]), tokens.index(MASK)
    with torch.no_grad():
        out, _ = trained.model.eval()[0](ids)
        want = trained.model[1].decoder(trained.model[1].words(out[0, at]))  # the place of the mask, by hand
    want[[w in SPECIAL for w in vocab]] = -torch.inf
    best = want.softmax(0)
    torch.testing.assert_close(acts[s.acts][: len(vocab)], best, atol=1e-5, rtol=1e-4)
    word = vocab[int(best.argmax())]
    assert (
        p['word'] == [word]
        and none['word'] == []
        and table.word[0] == word
        and table.word.isna().tolist() == [False, True]
    )
    (told,) = p.probabilities['word']
    assert next(iter(told)) == word and math.isclose(told[word], best.max(), rel_tol=1e-4)
    said = tree[(0, 'word')].tag
    assert (
        said.startswith(f'word: {word} ({best.max():.2f}; ')
        and said.count(';') == 2
        and "given language.eq('en')" in said
    )
    assert german['language'] == 'de' and german['word'] is None  # not reached


def test_an_encoder_learns_from_words_alone_and_moves(df, tmp_path):
    dls = texts_dls(df, Flow('words', MaskedLMBlock('word', n_masks=4)), path=tmp_path)
    learn = conditional_lm_learner(dls, d_model=32, n_layers=1)
    assert [m.name for m in learn.metrics] == ['word.accuracy'] and dls.c == 4 * len(dls.vocab)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
    learn.save_encoder('enc')
    other = conditional_lm_learner(
        texts_dls(df, review_flow(), text_vocab=dls.vocab, path=tmp_path), d_model=32, n_layers=1
    )
    other.load_encoder('enc')
    for a, b in zip(learn.model[0].state_dict().values(), other.model[0].state_dict().values()):
        assert torch.equal(a, b)
    frozen = [p.requires_grad for p in other.model[0].emb.parameters()]
    assert frozen == [False]  # as load_encoder of fastai does
    with other.no_bar(), other.no_logging():
        other.fine_tune(1)


def test_tables_and_tools_meet_masked_words(trained, df):
    flow = trained.dls.flow
    with trained.no_bar():
        full, filled, report = trained.fill_labels(df[:40], min_confidence=0)
        assert (
            'word' not in set(report.task_path)
            and list(full.columns) == list(df.columns)
            and full.text.equals(df.text[:40])
        )
        assert 'word' not in set(trained.calibrate().task_path)
        assert not any(c[0] == 'word' and c[1] != 'P(reached)' for c in trained.get_marginals(df[:5]).columns)
        interp = ConditionalInterpretation.from_learner(trained)
        with pytest.raises(FlowError, match='no classes by name'):
            interp.plot_confusion_matrix('word')
    bound = both_flow()
    again = pickle.loads(pickle.dumps(trained.dls.flow))
    assert again.tasks['word'].vocab == flow.tasks['word'].vocab
    assert texts_dls(df, bound, stratify=True).flow.c == flow.c
    from fastai_condmtl.core.flow import Flow as AnyFlow

    assert str(AnyFlow.from_json(bound.to_json())) == str(bound)


def test_half_precision_takes_it(trained):
    x, y = trained.dls.valid.one_batch()
    with torch.autocast('cpu', torch.bfloat16):
        pred = trained.model.train()(x)
    assert torch.isfinite(trained.dls.loss_func(pred, y))
    trained.model.eval()


# ---- bad input


def test_bad_texts(df):
    gone = df.copy()
    gone.loc[7, 'text'] = None
    with pytest.raises(
        FlowError, match=r"row 7 \(and 0 more\), column 'text': there is no text.*dropna\(subset=\['text'\]\)"
    ):
        texts_dls(gone, review_flow())
    odd = df.assign(text=df.text.astype(object))
    odd.at[3, 'text'] = ['a']
    with pytest.raises(FlowError, match="row 3, column 'text', value .*a list is no text"):
        texts_dls(odd, review_flow())
    with pytest.raises(FlowError, match="text_col='txt' is not a column of the table: did you mean 'text'"):
        texts_dls(df, review_flow(), text_col='txt')
    with pytest.raises(FlowError, match='text_col=9: the table has 6 columns'):
        texts_dls(df, review_flow(), text_col=9)
    with pytest.raises(FlowError, match='the table is empty'):
        texts_dls(df[:0], review_flow())
    with pytest.raises(FlowError, match="task 'complaint' reads column 'complaint'"):
        texts_dls(df.drop(columns='complaint'), review_flow())
    with pytest.raises(FlowError, match='its first two words must be'):
        texts_dls(df, review_flow(), text_vocab=['a', 'b'])
    with pytest.raises(FlowError, match="text_vocab lacks 'xxmask'"):
        texts_dls(df, both_flow(), text_vocab=texts_dls(df, review_flow()).vocab)
    with pytest.raises(FlowError, match='nothing is left of the text'):
        texts_dls(df.assign(text=['', *df.text[1:]]), review_flow(), rules=[])
    empty = texts_dls(df.assign(text=['', ' ', *df.text[2:]]), review_flow())  # an empty text is a text
    learn = conditional_lm_learner(empty, d_model=16, n_layers=1)
    with learn.no_bar():
        assert torch.isfinite(learn.predict('')[2]).all()
        with pytest.raises(FlowError, match="row 1, column 'text': there is no text"):
            learn.predict_df(pd.DataFrame(dict(text=['a', None])))


def test_a_column_that_is_blank_beside_text_is_empty(df):
    "As if it held ''; in a table, and row by row; blank in all columns is an error"
    two = df.assign(title='hello')
    two.loc[[2, 5], 'title'] = None
    get = TextColumns(['title', 'text'])
    assert get.texts(two) == get.texts(two.fillna({'title': ''})) == [get(two.iloc[i]) for i in range(len(two))]
    assert get.texts(two)[2] == f'xxfld 1  xxfld 2 {df.text[2]}'
    two.loc[5, 'text'] = None
    for read in (lambda: get.texts(two), lambda: get(two.iloc[5])):
        with pytest.raises(FlowError, match=r"row 5.*columns 'title', 'text': there is no text.*how='all'"):
            read()


def test_bad_learners(df, dls):
    with pytest.raises(FlowError, match='use conditional_lm_learner'):
        conditional_text_learner(dls, AWD_LSTM, pretrained=False)
    with pytest.raises(FlowError, match='multiple of n_heads'):
        conditional_lm_learner(dls, d_model=30)
    with pytest.raises(FlowError, match='a text is masked once'):
        texts_dls(df, Flow('f', MaskedLMBlock('a'), MaskedLMBlock('b')))
    with pytest.raises(FlowError, match='does not answer|cannot|no condition|answers no'):
        texts_dls(df, Flow('f', MaskedLMBlock('a'), BinaryBlock('complaint') | MaskedLMBlock('a').eq('x')))
    with pytest.raises(FlowError, match='needs the words of the data'):
        DataBlock(
            blocks=(TextBlock.from_df('text', n_workers=0), Flow('f', MaskedLMBlock('a', 'text'))),
            get_x=ColReader('text'),
        ).dataloaders(df)
    with pytest.raises(FlowError, match='take no label_smoothing'):
        MaskedLMBlock('a', label_smoothing=0.1)


def test_from_csv(df, tmp_path):
    df.to_csv(tmp_path / 'labels.csv', index=False)
    a, b = (
        ConditionalTextDataLoaders.from_csv(tmp_path, review_flow(), seed=0, bs=32, num_workers=0),
        texts_dls(df, review_flow()),
    )
    assert (
        a.path == tmp_path
        and torch.equal(a.valid.one_batch()[1], b.valid.one_batch()[1])
        and torch.equal(a.valid.one_batch()[0], b.valid.one_batch()[0])
    )


# ---- rows as dicts, and the balance of tasks


def test_predict_takes_rows_as_dicts(trained, df):
    with trained.no_bar():
        want = trained.predict(df.text[3])
        for item in (df.iloc[3], df.iloc[3].to_dict(), dict(text=df.text[3])):
            got = trained.predict(item)
            assert repr(got[0]) == repr(want[0]) and torch.allclose(got[2], want[2], atol=1e-5)
        with pytest.raises(FlowError, match='predict takes one item such as the data was built from, not a tuple'):
            trained.predict((df.text[3],))


@pytest.mark.parametrize(
    'make',
    [
        lambda dls, **kw: conditional_text_learner(dls, AWD_LSTM, pretrained=False, config=SMALL, **kw),
        lambda dls, **kw: conditional_lm_learner(dls, d_model=16, n_layers=1, n_heads=2, **kw),
    ],
    ids=['text', 'lm'],
)
def test_balance_as_in_other_applications(df, make):
    from fastai_condmtl.callback.balance import TaskBalance

    learn = make(texts_dls(df[:80], review_flow(), bs=16), balance='uncertainty')
    assert sum(isinstance(cb, TaskBalance) for cb in learn.cbs) == 1
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3)
    assert np.isfinite(learn.recorder.values[-1][:2]).all()


def test_csv_lines_that_end_in_a_comma(tmp_path):
    for name, end in (('a', ''), ('b', ',')):
        (tmp_path / f'{name}.csv').write_text('\n'.join(['good,text', *(f'{i % 2},row {i}{end}' for i in range(20))]))
    a, b = (
        ConditionalTextDataLoaders.from_csv(
            tmp_path, BinaryBlock('good'), f'{name}.csv', seed=0, bs=4, num_workers=0, min_freq=1
        )
        for name in 'ab'
    )
    assert (
        a.vocab == b.vocab
        and torch.equal(a.valid.one_batch()[0], b.valid.one_batch()[0])
        and torch.equal(a.valid.one_batch()[1], b.valid.one_batch()[1])
    )


class ShortForLong:
    "A tokenizer that makes short texts of long ones, and the other way round"

    def __call__(self, items):
        return (['word'] * (41 - len(words := text.split())) + words[-1:] for text in items)


def test_learners_that_sort_texts_otherwise_are_compared_row_by_row(numbered):
    learn_a = reading(numbered)
    learn_b = reading(numbered, tok_tfm=ShortForLong)
    orders = [list(learn.dls.valid.get_idxs()) for learn in (learn_a, learn_b)]
    assert orders[0] != orders[1]
    with learn_a.no_bar(), learn_b.no_bar():
        for df in (None, numbered):
            found = compare(learn_a, learn_b, df, metrics='mae', n_boot=40)
            assert found.num_samples[0] == (60 if df is None else 120) and max(found.a[0], found.b[0]) < 1e-3


def test_groups_of_folds_are_those_of_their_rows(numbered):
    "Out of fold, texts stand as in the table, where their groups are looked up"
    df = numbered.assign(who=np.arange(120) // 3)
    words = list(reading(df).dls.vocab)
    fit = lambda valid: reading(df, valid_idx=valid, text_vocab=words)
    folds = fit_folds(fit, UnboundedRegressionBlock('num'), df, 3, seed=0, group_col='who')
    rows = average_folds(folds, tune=None).out_of_fold
    labels = rows.flow.to_units(rows.packed()[0])[:, 0, 0].numpy().round().astype(int)
    assert labels.tolist() == np.concatenate(folds.parts).tolist()
    assert rows.groups.tolist() == (labels // 3).tolist()
