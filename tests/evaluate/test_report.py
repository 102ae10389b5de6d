"Tests of evaluate/report, evaluate/report_figures and evaluate/report_page"

import base64
import importlib.util
import os
import re
import shutil
from io import BytesIO
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
import numpy as np
import pandas as pd
import pytest
import torch
from kinds_of_task import KINDS, flow as flow_of_kinds, table as table_of_kinds
from fastai.callback.core import Callback
from fastai.vision.all import Image, Learner, Resize, load_learner
from scaled_logits import HALF, Scale, learner, quiet, table
from sklearn.metrics import accuracy_score, confusion_matrix
from sklearn.tree import DecisionTreeClassifier
from torch import nn
from fastai_condmtl.tabular.all import (
    BoundedRegressionBlock,
    ConditionalTabularDataLoaders,
    CountBlock,
    FlowPrediction,
    UnboundedRegressionBlock,
    conditional_tabular_learner,
)
from fastai_condmtl.all import (
    BinaryBlock,
    BoundedRegressionBlock,
    ConditionalInterpretation,
    Flow,
    FlowError,
    MultiLabelBlock,
    SingleLabelBlock,
    SkillRecorder,
)
from fastai_condmtl.vision.all import ConditionalDataLoaders
from fastai_condmtl.evaluate.report import SECTIONS, judge_once, of_training_labels
from fastai_condmtl.evaluate.report_figures import of_cascade, of_items
from fastai_condmtl.evaluate.report_page import Section, page_html

EVIL = '<script>alert("x")</script>'
VOID = {'meta', 'img', 'br', 'hr', 'link', 'input'}

CHROMIUM = os.environ.get('CHROMIUM') or next(
    (path for name in ('chromium', 'chromium-browser', 'google-chrome') if (path := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec('playwright') is None, reason='needs Chromium and playwright'
)


class Page(HTMLParser):
    "What a browser would find: well nested tags, texts, addresses"

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.addresses = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ('src', 'href')]
        assert not [name for name, _ in attrs if name.startswith('on')]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1:] != ['style']:
            self.texts.append(data.strip())

    @property
    def pictures(self):
        "The drawings of the page, as XML"
        head = 'data:image/svg+xml;base64,'
        return [base64.b64decode(a[len(head) :]).decode() for a in self.addresses if a.startswith(head)]


def page_of(learn, folder, *args, **kwargs):
    return Page(learn.report(folder / 'report.html', *args, **kwargs).read_text(encoding='utf-8'))


class Forwards(Callback):
    "Counts the rows that were predicted"

    n_rows = 0

    def after_pred(self):
        self.n_rows += len(self.pred)


def test_the_rows_are_predicted_once(tmp_path):
    learn = learner(Forwards())
    page_of(learn, tmp_path)
    assert learn.forwards.n_rows == len(learn.dls.valid_ds)
    page_of(learn, tmp_path, dl=table()[:40])
    assert learn.forwards.n_rows == len(learn.dls.valid_ds) + 40


def test_the_file_asks_for_nothing_else_and_is_the_same_again(tmp_path):
    learn = learner()
    page = page_of(learn, tmp_path)
    text = (tmp_path / 'report.html').read_text(encoding='utf-8')
    assert not {'script', 'link', 'iframe', 'object'} & set(page.tags)
    assert all(address.startswith(('data:image/', '#s')) for address in page.addresses)
    assert not re.search(r'url\(|@import|https?:', text)
    assert len(page.pictures) >= 8
    for picture in page.pictures:
        assert not [node.tag for node in ET.fromstring(picture).iter() if node.tag.endswith('script')]
    learn.report(tmp_path / 'again.html')
    assert (tmp_path / 'again.html').read_text(encoding='utf-8') == text


def test_scores_confusions_and_lost_rows_are_those_by_hand(tmp_path):
    df = table()
    learn = learner(df=df)
    valid = df.iloc[HALF]
    logits, labels = valid[['z0', 'z1']].astype(float).to_numpy(), valid[['a', 'b']].astype(bool).to_numpy()
    asked = labels[:, 0]
    accuracy = accuracy_score(labels[asked, 1], logits[asked, 1] > 0)
    page = page_of(learn, tmp_path, n_boot=0)
    assert f'▲ {accuracy:.3f}' in page.texts or f'▼ {accuracy:.3f}' in page.texts or f'{accuracy:.3f}' in page.texts
    lost = int((asked & (logits[:, 0] <= 0)).sum())
    in_vain = int((~asked & (logits[:, 0] > 0)).sum())
    assert f'a: {lost} rows of b lost, {in_vain} asked in vain' in page.texts
    matrix = confusion_matrix(labels[asked, 1], logits[asked, 1] > 0)
    drawn = [re.findall(r'>(\d+)</text>', picture) for picture in page.pictures]
    assert [str(n) for n in matrix.ravel()] in drawn


def test_scores_of_collected_rows_are_those_of_evaluate():
    pytest.importorskip('mapie')
    learn = learner()
    quiet(learn, 'search_thresholds')
    quiet(learn, 'calibrate')
    quiet(learn, 'conformal', 0.8)
    with learn.no_bar(), learn.no_logging():
        told, plain = judge_once(learn, None, 1, 50), learn.evaluate(n_boot=50)
    pd.testing.assert_frame_equal(pd.DataFrame(told.scores), pd.DataFrame(plain))
    assert told.scores.cross_fit == plain.cross_fit and told.scores.own_sets == plain.own_sets


def test_baselines_stand_beside_trivial_and_the_rows_are_predicted_once(tmp_path):
    "The column holds what scikit-learn reaches when it is fitted by hand on the training rows that count"
    df = table()
    learn = learner(Forwards(), df=df)
    page = page_of(learn, tmp_path, n_boot=0, baselines={'a tree': DecisionTreeClassifier(max_depth=1)})
    assert learn.forwards.n_rows == len(df)  # the training rows for the fit, and the rows of the report
    head = page.texts.index('trivial')
    assert page.texts[head + 1] == 'a tree' and any(
        'Column a tree: DecisionTreeClassifier' in text for text in page.texts
    )
    x, valid = df[['z0', 'z1']].astype(np.float32).to_numpy(), np.isin(np.arange(len(df)), HALF)
    asked = df.a.to_numpy(dtype=bool)
    fitted = DecisionTreeClassifier(max_depth=1).fit(x[~valid & asked], df.b[~valid & asked].astype(int))
    by_hand = accuracy_score(df.b[valid & asked].astype(int), fitted.predict(x[valid & asked]))
    row = page.texts.index('b', head)
    assert f'{by_hand:.3f}' in page.texts[row : row + 8]
    with pytest.raises(FlowError, match='is a class: write DecisionTreeClassifier'):
        learn.report(tmp_path / 'r.html', baselines={'a tree': DecisionTreeClassifier})
    with pytest.raises(FlowError, match='which acc= did not keep'):
        learn.evaluate(acc=judge_once(learn, None, 1, 0).acc, baselines={'a tree': DecisionTreeClassifier()})


def test_calibration_of_collected_rows_is_that_of_new_ones():
    learn = learner(s=3.0)
    with learn.no_bar(), learn.no_logging():
        told = judge_once(learn, None, 1, 0)
        new, collected = learn.plot_reliability('b'), learn.plot_reliability('b', acc=told.acc)
    for a, b in zip(new.lines, collected.lines):
        np.testing.assert_allclose(a.get_xydata(), b.get_xydata(), atol=1e-6)


def test_hardest_and_surest_are_those_of_the_interpretation():
    learn = learner()
    with learn.no_bar(), learn.no_logging():
        told = judge_once(learn, None, 1, 0)
        titles = [card.title for card in of_items(told, 2).cards]
    interp = ConditionalInterpretation.from_learner(learn)
    for largest, name, shown in ((True, 'hardest', titles[:2]), (False, 'surest', titles[2:])):
        losses, rows = interp.top_losses(None, 2, largest)
        index = learn.dls.valid_ds.items.index[rows.tolist()]
        assert shown == [f'{name}: row {i}, loss {loss:.3g}' for i, loss in zip(index, losses.tolist())]


class Wide(Scale):
    "Some logits of every task, out of two numbers"

    def __init__(self, c):
        super().__init__()
        self.fixed = nn.Parameter(torch.randn(2, c, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return x @ self.fixed * self.s


def evil_learner(*blocks, df=None, **kwargs):
    "A learner of any tasks, whose logits are mixed from `z0` and `z1`"
    from fastai.vision.all import DataBlock, IndexSplitter, TransformBlock
    from scaled_logits import Z

    df = table() if df is None else df
    flow = Flow(kwargs.pop('name', 'f'), *blocks)
    block = DataBlock(blocks=(TransformBlock, flow), get_x=Z(), splitter=IndexSplitter(HALF))
    dls = block.dataloaders(df, bs=50, num_workers=0)
    res = learner(dls=dls, **kwargs)
    res.model = Wide(dls.flow.c)
    return res


def test_nothing_that_a_table_says_becomes_a_part_of_the_page(tmp_path):
    df = table()
    rng = np.random.default_rng(0)
    df['kind'] = pd.Series(np.array([EVIL, '{{ 7 * 7 }}', '$x_1$'])[rng.integers(0, 3, len(df))]).where(df.a == True)
    df['tags'] = [';'.join(rng.choice([EVIL, 'b&c', '"d"'], 2, replace=False)) for _ in range(len(df))]
    a = BinaryBlock('a')
    tags = MultiLabelBlock('tags', label_delim=';')
    learn = evil_learner(a, SingleLabelBlock('kind') | a, tags, df=df, name=EVIL.replace('.', ''))
    page = page_of(learn, tmp_path, title=EVIL)
    text = (tmp_path / 'report.html').read_text(encoding='utf-8')
    assert '<script' not in text and 'script' not in page.tags and '>49<' not in text
    assert EVIL in page.texts  # the title
    assert any('{{ 7 * 7 }}' in found for found in page.texts)
    assert any('$x_1$' in picture for picture in page.pictures)
    assert not any('<script' in picture for picture in page.pictures)


@needs_browser
@pytest.mark.parametrize('width', [390, 1200])
def test_a_browser_shows_it_on_a_phone_in_the_dark_and_on_paper(tmp_path, width):
    from playwright.sync_api import sync_playwright

    df = table().assign(kind=np.array([EVIL, 'a_very_long_name_without_any_blank_' * 3])[np.arange(600) % 2])
    path = evil_learner(BinaryBlock('a'), SingleLabelBlock('kind'), df=df).report(tmp_path / 'r.html', n_boot=40)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox', '--disable-gpu'])
        page = browser.new_page(viewport=dict(width=width, height=800), color_scheme='dark')
        trouble, asked = [], []
        page.on('console', lambda message: trouble.append(message.text))
        page.on('dialog', lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
        page.on('request', lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        ground = lambda: page.evaluate('getComputedStyle(document.body).backgroundColor')
        assert page.evaluate('document.documentElement.scrollWidth') <= width
        assert page.evaluate('[...document.images].every(image => image.complete && image.naturalWidth > 0)')
        assert ground() == 'rgb(20, 24, 30)'
        page.emulate_media(media='print')
        assert ground() == 'rgb(255, 255, 255)'
        browser.close()
    assert not trouble and [url for url in asked if not url.startswith('data:')] == [path.as_uri()]


def test_private_items_stay_at_home(tmp_path):
    learn = learner()
    shown, bare = page_of(learn, tmp_path), page_of(learn, tmp_path, n_items=0)
    cards = lambda page: [found for found in page.texts if found.startswith(('hardest:', 'surest:'))]
    assert len(cards(shown)) == 6 and not cards(bare) and 'article' not in bare.tags


def test_a_flow_of_one_task_loses_no_rows(tmp_path):
    learn = evil_learner(BinaryBlock('a'))
    assert 'Where rows get lost' not in page_of(learn, tmp_path).texts


def test_a_task_without_rows_is_told_and_not_drawn(tmp_path):
    df = table()
    df.loc[HALF, 'b'] = None
    page = page_of(evil_learner(BinaryBlock('a'), BinaryBlock('b'), df=df), tmp_path)
    assert '–' in page.texts and len([t for t in page.texts if t == 'b']) >= 2
    assert not [picture for picture in page.pictures if '>b, 0 rows<' in picture]


def test_numbers_and_labels_have_their_pictures(tmp_path):
    df = table()
    rng = np.random.default_rng(0)
    df['n'] = rng.uniform(0, 9, len(df))
    df['tags'] = rng.choice(['u', 'v', 'u;v', ''], len(df))
    blocks = BoundedRegressionBlock('n', y_range=(0, 9)), MultiLabelBlock('tags', label_delim=';', na=[])
    learn = evil_learner(*blocks, df=df)
    with learn.no_bar(), learn.no_logging():
        told = judge_once(learn, None, 1, 40)
        figures = {s.title: len(s.figures) for make in SECTIONS if (s := make(told)) is not None}
    assert figures['Numbers'] == 1 and figures['Thresholds'] == 1 and figures['Confusions'] == 2
    assert of_cascade(told) is None


def learner_of_pictures(folder, flow, n=120):
    "A learner of any tasks on small pictures of noise"
    df, rng = table_of_kinds(n, seed=1), np.random.default_rng(0)
    df['picture'] = [f'{i}.png' for i in range(n)]
    for name in df.picture:
        Image.fromarray(rng.integers(0, 255, (60, 64, 3), dtype=np.uint8)).save(folder / name)
    df['valid'] = df.index % 2 == 0
    dls = ConditionalDataLoaders.from_df(
        df, flow, path=folder, fn_col='picture', valid_col='valid', bs=32, num_workers=0, item_tfms=Resize(32)
    )
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, dls.flow.c))
    return Learner(dls, model, metrics=dls.flow.metrics())


def test_every_kind_of_task_has_a_place_on_the_page(tmp_path):
    learn = learner_of_pictures(tmp_path, flow_of_kinds([kind for kind in KINDS if kind != 'words']))
    with learn.no_bar(), learn.no_logging():
        told = judge_once(learn, None, 1, 40)
        sections = {s.title: s for make in SECTIONS if (s := make(told)) is not None}
    alts = {title: [figure.alt.partition(': ')[2] for figure in s.figures] for title, s in sections.items()}
    blocks = told.flow.tasks
    assert alts['Thresholds'] == [path for path in told.flow.paths if blocks[path].thresholded]
    confused = {alt.partition(',')[0] for alt in alts['Confusions']}
    votes = {'all.votes', 'all.dispersed'}
    assert confused | set(alts['Numbers']) | votes == set(told.flow.paths) and not confused & set(alts['Numbers'])
    assert len(sections['Labels'].tables[0].rows) == len(told.flow.paths)
    page = page_of(learn, tmp_path, n_boot=40, n_items=2)
    assert len(page.pictures) >= len(told.flow.paths)
    photos = [address for address in page.addresses if address.startswith('data:image/jpeg;base64,')]
    assert len(photos) == 4
    assert Image.open(BytesIO(base64.b64decode(photos[0].partition(',')[2]))).size[0] > 100


def test_numbers_are_told_as_the_table_has_them():
    "Labels of 0 to 8 are 0 to 8, also where the table is not at hand and the scale was single precision"
    rng = np.random.default_rng(3)
    x = rng.normal(size=60)
    df = pd.DataFrame(dict(x=x, size=rng.integers(0, 9, 60) / 1.0, share=rng.random(60).round(2), n=rng.poisson(3, 60)))
    df.loc[:5, 'size'] = [0.0, 8.0, 0.0, 8.0, 0.0, 0.0]
    flow = Flow('f', UnboundedRegressionBlock('size'), BoundedRegressionBlock('share'), CountBlock('n'))
    dls = ConditionalTabularDataLoaders.from_df(df, flow, cont_names=['x'], cat_names=[], valid_idx=range(30, 60), bs=8)
    told = judge_once(conditional_tabular_learner(dls, [8], members=1), None, 1, 0)
    cells = {row[0].text: row[2].text for row in of_training_labels(told).tables[0].rows}
    train = df[:30]
    for name in ('size', 'share', 'n'):
        want = f'{train[name].min():.4g} to {train[name].max():.4g}, mean {train[name].mean():.4g}'
        assert cells[name] == want, (name, cells[name])
    for y, size in zip(dls.train_ds.packed(), dls.train_ds.items.index):
        assert 'size -0' not in str(FlowPrediction(dls.flow, y).tree())
        assert str(FlowPrediction(dls.flow, y)['size']) == str(df['size'][size])


def test_skill_is_drawn_where_somebody_looked_on(tmp_path):
    learn = learner(SkillRecorder())
    assert 'Training' not in page_of(learn, tmp_path).texts
    with learn.no_bar(), learn.no_logging():
        learn.fit(2)
    page = page_of(learn, tmp_path).texts
    assert 'epochs of the last fit' in page and page[page.index('epochs of the last fit') + 1] == '2'
    assert 'Training' in page_of(learn, tmp_path).texts


def test_an_exported_learner_reports_on_new_rows(tmp_path):
    learn = learner()
    learn.export(tmp_path / 'learner.pkl')
    loaded = load_learner(tmp_path / 'learner.pkl')
    page = page_of(loaded, tmp_path, dl=table(seed=1))
    assert '600' in page.texts and 'Scores' in page.texts and 'Labels' not in page.texts


def test_labels_that_contradict_the_flow_are_told(tmp_path):
    df = table()
    df.loc[~df.a.astype(bool), 'b'] = True
    learn = learner(df=df)
    findings = learn.dls.flow.audit(df.drop(index=HALF)).lines()
    texts = page_of(learn, tmp_path).texts
    assert findings and all(line in texts for line in findings)


def test_what_cannot_be_written_or_counted_is_said_before_the_work(tmp_path):
    learn = learner(Forwards())
    for kwargs in (dict(file=tmp_path / 'no' / 'r.html'), dict(file=tmp_path)):
        with pytest.raises(FlowError, match='name a file in a folder that exists'):
            learn.report(**kwargs)
    for name in ('n_boot', 'n_items'):
        for value in (True, -1, 1.5, 'a'):
            with pytest.raises(FlowError, match=name):
                learn.report(tmp_path / 'r.html', **{name: value})
    with pytest.raises(FlowError, match='empty'):
        learn.report(tmp_path / 'r.html', dl=table()[:0])
    assert learn.forwards.n_rows == 0 and not list(tmp_path.iterdir())


def test_ten_tasks_stay_small(tmp_path):
    df = table()
    for i in range(10):
        df[f't{i}'] = df.a if i % 2 else df.b
    learn = evil_learner(*[BinaryBlock(f't{i}') for i in range(10)], df=df)
    learn.report(tmp_path / 'r.html')
    assert (tmp_path / 'r.html').stat().st_size < 2_000_000


def test_a_section_without_anything_is_a_title():
    assert Page(page_html('t', 'about', [], [Section('empty')])).texts == ['t', 't', 'about', 'empty', 'empty']


@pytest.mark.parametrize(
    'score, low, high, lower, said',
    [
        (0.8, 0.7, 0.9, (), 'better'),
        (0.5, 0.7, 0.9, (), ''),  # the score itself is not beyond the trivial one, whatever the interval says
        (0.8, 0.55, 0.9, (), ''),
        (0.3, 0.2, 0.4, (), 'worse'),
        (0.3, 0.2, 0.4, ('mae',), 'better'),
        (0.8, None, None, (), 'better'),
    ],
)
def test_a_sign_needs_the_score_and_its_whole_interval(score, low, high, lower, said):
    from types import SimpleNamespace

    from fastai_condmtl.evaluate.report import verdict

    ends = {} if low is None else dict(ci_low=low, ci_high=high)
    assert verdict(SimpleNamespace(metric_name='mae', metric_res=score, baseline=0.6, **ends), lower) == said
