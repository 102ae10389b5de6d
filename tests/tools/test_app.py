"""The page to try a model: what it decides, what it writes, what it answers to bad files, and the page itself in
a headless Chromium. Pages that open at the same time want the same port: a file of tests runs on one worker."""

import importlib.util, io, json, os, random, re, runpy, shutil, struct, sys, threading, zlib
from html.parser import HTMLParser
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import (
    Callback,
    CategoryBlock,
    ColReader,
    DataBlock,
    ImageBlock,
    Learner,
    PILImage,
    PILImageBW,
    RandomSplitter,
    Resize,
    TransformBlock,
    load_learner,
)
from PIL import Image
from torch import nn
import core_only
from fastai_condmtl.all import BinaryBlock, BoundedRegressionBlock, Flow, FlowError, MultiLabelBlock, SingleLabelBlock
from fastai_condmtl.tools.app import Page as Shown, Viewer, find_examples, load_exported, main, make_app, read_picture
from fastai_condmtl.tools.page import cuts, decide, picture_html, tree_html
from fastai_condmtl.datasets.synthetic import save_scenes, security_flow

CHROMIUM = os.environ.get('CHROMIUM') or next(
    (p for n in ('chromium', 'chromium-browser', 'google-chrome') if (p := shutil.which(n))), None
)
needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec('gradio') is None, reason="needs Gradio: pip install 'fastai_condmtl[app]'"
)
needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec('playwright') is None, reason='needs Chromium and playwright'
)
NASTY, NAME = (
    '<img src=x onerror=alert(1)>',
    '<svg onload=alert(1)>',
)  # a class or label; a task, whose name may not hold 'error'


def tiny(dls, n_in=3):
    "A learner of one convolution."
    return Learner(
        dls,
        nn.Sequential(nn.Conv2d(n_in, 4, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, dls.c)),
        loss_func=dls.loss_func,
    )


def blocks(path, flow, df, cls=None, **kwargs):
    return DataBlock(
        blocks=(ImageBlock() if cls is None else ImageBlock(cls), flow),
        get_x=ColReader('img', pref=f'{path}/'),
        splitter=RandomSplitter(seed=0),
        item_tfms=Resize(32),
    ).dataloaders(df, bs=8, num_workers=0, **kwargs)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    path = tmp_path_factory.mktemp('scenes')
    return path, save_scenes(path, n=24)


@pytest.fixture(scope='module')
def learn(scenes):
    torch.manual_seed(0)
    res = tiny(blocks(scenes[0], security_flow(), scenes[1]))
    res.loss_func.thresholds['person_present'] = torch.tensor([0.48251])
    return res


@pytest.fixture(scope='module')
def exported(learn, scenes):
    learn.export(scenes[0] / 'model.pkl')
    return scenes[0] / 'model.pkl'


class Page(HTMLParser):
    "Tasks with their depth in the lists and their text; all tags"

    def __init__(self, html):
        super().__init__()
        self.tags, self.tasks, self.text, self.stack = [], {}, {}, []
        self.feed(html)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag in ('img', 'rect', 'circle'):
            return
        attrs = dict(attrs)
        self.stack.append((tag, attrs.get('data-task')))
        if attrs.get('data-task'):
            self.tasks[attrs['data-task']] = sum(t == 'ul' for t, _ in self.stack)

    def handle_endtag(self, tag):
        if tag not in ('img', 'rect', 'circle'):
            assert self.stack.pop()[0] == tag

    def handle_data(self, data):
        for _, task in self.stack:
            if task:
                self.text[task] = self.text.get(task, '') + data + ' '


# ---- what it decides


@pytest.mark.parametrize('mode', ['RGB', 'L', 'RGBA', 'P'])
@pytest.mark.parametrize('cls', [None, PILImageBW])
def test_same_answer_as_predict(scenes, tmp_path, mode, cls):
    """A photograph of any size and mode, also for a model of gray pictures: the page answers what `learn.predict`
    does on the file."""
    learn = tiny(blocks(scenes[0], security_flow(), scenes[1], cls), 1 if cls else 3)
    Image.open(scenes[0] / '3.png').resize((90, 61)).convert(mode).save(tmp_path / 'x.png')
    logits, seen = Viewer(learn)(read_picture(tmp_path / 'x.png'))
    with learn.no_bar():
        pred, _, acts = learn.predict(tmp_path / 'x.png')
    got = decide(learn.loss_func, logits)
    assert dict(got) == dict(pred)
    assert torch.equal(got.activations, acts)
    assert seen.size == (32, 32)


class LooksOn(Callback):
    "Would notice that a prediction made no validation, so that `learn.predict` takes fastai's way"

    def after_pred(self):
        pass


@pytest.mark.parametrize('cls', [None, PILImageBW])
@pytest.mark.parametrize('exported', [False, True])
def test_prepared_directly_as_by_a_loader(scenes, tmp_path, monkeypatch, cls, exported):
    "The same logits and pixels, to the last bit; no loader is made, and the network runs once a picture"
    learn = tiny(blocks(scenes[0], security_flow(), scenes[1], cls), 1 if cls else 3)
    if exported:
        learn.export(tmp_path / 'x.pkl')
        learn = load_learner(tmp_path / 'x.pkl')
    viewer, pictures = Viewer(learn), [read_picture(scenes[0] / f'{i}.png').resize((50 + i, 41)) for i in range(3)]
    calls = dict(loaders=0, network=0)
    test_dl = type(learn.dls).test_dl

    def counted(*args, **kwargs):
        calls['loaders'] += 1
        return test_dl(*args, **kwargs)

    monkeypatch.setattr(type(learn.dls), 'test_dl', counted)
    hook = learn.model.register_forward_hook(lambda *args: calls.update(network=calls['network'] + 1))
    direct = [viewer(picture) for picture in pictures]
    assert calls == dict(loaders=0, network=3)
    learn.add_cb(LooksOn())
    by_loader = [viewer(picture) for picture in pictures]
    assert calls == dict(loaders=3, network=6)
    hook.remove()
    for (logits, seen), (other_logits, other_seen) in zip(direct, by_loader):
        assert torch.equal(logits, other_logits)
        assert seen.mode == other_seen.mode and seen.tobytes() == other_seen.tobytes()


def test_decides_as_a_learner_with_these_thresholds(learn, scenes):
    "Thresholds of the sliders give what the learner would say had they been its own; its own stay."
    kept = {p: torch.as_tensor(t).clone() for p, t in learn.loss_func.thresholds.items()}
    viewer, rng, seen = Viewer(learn), random.Random(0), set()
    for i in range(20):
        logits, _ = viewer(read_picture(scenes[0] / f'{i}.png'))
        ts = {p: [rng.choice([rng.random(), 0.0, 1.0]) for _ in t] for p, t in cuts(learn.loss_func).items()}
        got = decide(learn.loss_func, logits, ts)
        assert all(torch.equal(torch.as_tensor(learn.loss_func.thresholds[p]), t) for p, t in kept.items())
        learn.loss_func.thresholds = {p: torch.tensor(t) for p, t in ts.items()}
        with learn.no_bar():
            assert dict(learn.predict(scenes[0] / f'{i}.png')[0]) == dict(got)
        learn.loss_func.thresholds = dict(kept)
        seen.add(len(got.reached))
    assert len(seen) > 2  # the thresholds did open and close branches


def test_calibrated_and_by_several_at_once(learn, scenes):
    "Temperatures count; eight visitors at once get what one would."
    learn.loss_func.temperatures = {'door_open': 3.0}
    viewer, ims = Viewer(learn), [read_picture(scenes[0] / f'{i}.png') for i in range(8)]
    want, got = [viewer(im)[0] for im in ims], [None] * 8

    def ask(i):
        got[i] = viewer(ims[i])[0]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(a, b) for a, b in zip(want, got))
    logit = want[0][learn.dls.flow.slices['door_open'].logits].item()
    assert decide(learn.loss_func, want[0]).probabilities['door_open'] == pytest.approx(
        1 / (1 + np.exp(-logit / 3)), abs=1e-6
    )
    learn.loss_func.temperatures = {}


# ---- what it writes


@pytest.mark.parametrize('seed', range(6))
def test_tree_says_what_the_prediction_says(learn, seed):
    """Reached tasks, nested as their paths are, each with value, probability, P(reached) and condition; the rest
    is folded away."""
    flow, g = learn.dls.flow, torch.Generator().manual_seed(seed)
    pred = decide(learn.loss_func, torch.randn(flow.c, generator=g))
    html = tree_html(pred, cuts(learn.loss_func))
    page = Page(html)
    assert list(page.tasks) == list(pred.reached)
    assert page.tasks == {p: p.count('.') + 1 for p in pred.reached}
    for p, v in pred.reached.items():
        assert (
            'yes'
            if v is True
            else 'no'
            if v is False
            else ', '.join(v) or 'none'
            if isinstance(v, list)
            else f'{v:.4g}'
            if isinstance(v, float)
            else v
        ) in page.text[p]
        r = pred.marginals[p].reached
        assert abs(float(re.search(r'P\(reached\) [<>]?([\d.]+)', page.text[p])[1]) - r) <= 0.005
        if isinstance(v, bool):
            assert f'{pred.probabilities[p]:.2f}' in page.text[p]
    if 'door_open' in pred.reached:
        assert 'given  ~camera_blocked' in page.text['door_open']
    folded = html.partition('<details')[2]
    assert all((f'>{p}</span>' in folded) == (v is None) for p, v in pred.items())


def test_whatever_labels_are_called(learn):
    "Names, classes, labels, words and conditions are text: no tag or template of theirs reaches the page."
    a = BinaryBlock(NAME, 'a', vocab=('${1+1}', NASTY))
    flow = Flow(
        '{{name}} & co',
        a,
        SingleLabelBlock('k', vocab=[NASTY, '</ul>', '`b`']) | a,
        MultiLabelBlock('m', vocab=[NASTY, '"', "'"]) | ~a,
    )
    bound = flow.bind(pd.DataFrame(dict(a=[0, 1], k=['</ul>', None], m=['', '"'])))
    for up in (9.0, -9.0):
        logits = torch.full((bound.c,), up)
        html = tree_html(decide(bound.loss_func, logits), cuts(bound.loss_func)) + picture_html('', (8, 8), None, NASTY)
        assert set(Page(html).tags) <= {
            'section',
            'h2',
            'ul',
            'li',
            'div',
            'span',
            'strong',
            'code',
            'details',
            'summary',
            'figure',
            'figcaption',
            'img',
        }
        assert '${' not in html and '{{' not in html and '`' not in html and '<img src=x' not in html
        assert (NASTY if up > 0 else '${1+1}') in Page(html).text[NAME]


def test_shapes_are_drawn_where_they_are(learn):
    "Boxes and points as shares of the picture; none where they are not reached."
    here = BinaryBlock('here')
    point = [BoundedRegressionBlock(f'nose_{c}', y_range=(0, 50), draws=f'nose.{c}', given=here) for c in 'xy']
    box = [
        BoundedRegressionBlock(f'box_{c}', y_range=(0, 50), draws=f'box.{c}', given=here)
        for c in ('x1', 'y1', 'x2', 'y2')
    ]
    bound = Flow('f', here, *point, *box).bind(
        pd.DataFrame({c: [1.0] for c in ('here', 'nose_x', 'nose_y', 'box_x1', 'box_y1', 'box_x2', 'box_y2')})
    )
    logits = torch.zeros(bound.c)
    for p, v in dict(here=0.9, nose_x=0.25, nose_y=0.75, box_x1=0.1, box_y1=0.2, box_x2=0.5, box_y2=0.8).items():
        logits[bound.slices[p].logits] = float(np.log(v / (1 - v)))
    html = picture_html('', (400, 200), decide(bound.loss_func, logits), 'x.png')
    assert (
        html.count('cx="25.00%" cy="75.00%"') == 2
        and html.count('x="10.00%" y="20.00%" width="40.00%" height="60.00%"') == 2
    )
    assert '<svg' not in picture_html('', (400, 200), decide(bound.loss_func, logits, {'here': [0.95]}), 'x.png')


# ---- bad files, bad learners, bad arguments


def bad_files(path, whole):
    jpg = io.BytesIO()
    Image.open(io.BytesIO(whole)).resize((300, 200)).save(jpg, 'JPEG')
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    bomb = (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(b''))
        + chunk(b'IEND', b'')
    )
    for name, data in {
        'text.jpg': b'my shopping list\n' * 9,
        'empty.png': b'',
        'half.png': whole[: len(whole) // 2],
        'half.jpg': jpg.getvalue()[:900],
        'head.png': whole[:20],
        'bomb.png': bomb,
        'random.webp': bytes(range(256)),
        'drawing.svg': b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    }.items():
        (path / name).write_bytes(data)


@pytest.mark.parametrize(
    'name,says',
    [
        ('text.jpg', 'not a picture'),
        ('empty.png', r'empty \(0 bytes\)'),
        ('half.png', 'damaged or cut off'),
        ('half.jpg', 'damaged or cut off'),
        ('head.png', 'not a picture|damaged'),
        ('bomb.png', 'too many pixels'),
        ('random.webp', 'not a picture'),
        ('drawing.svg', 'not a picture'),
        ('gone.png', 'There is no file'),
    ],
)
def test_bad_file(scenes, tmp_path, name, says):
    bad_files(tmp_path, (scenes[0] / '1.png').read_bytes())
    with pytest.raises(FlowError, match=f'({says}).*: (choose|copy|make)') as e:
        read_picture(tmp_path / name)
    assert f'“{name}”' in str(e.value) and str(tmp_path) not in str(
        e.value
    )  # where the server keeps files is nobody's business


def test_as_the_model_was_trained(tmp_path):
    "fastai does not turn a picture by its EXIF orientation, in training or in predict; so the page must not either."
    im = Image.new('RGB', (40, 20), 'red')
    im.paste('blue', (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    im.save(tmp_path / 'x.png', exif=exif)
    assert np.array_equal(np.asarray(read_picture(tmp_path / 'x.png')), np.asarray(PILImage.create(tmp_path / 'x.png')))


def test_no_other_formats(tmp_path, monkeypatch):
    "PostScript under a picture's name is not handed to an interpreter; a file that would need gigabytes is refused."
    (tmp_path / 'cat.png').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n')
    monkeypatch.setattr('subprocess.check_call', lambda *a, **k: pytest.fail('something was run'))
    with pytest.raises(FlowError, match='not a picture'):
        read_picture(tmp_path / 'cat.png')
    Image.new('L', (7000, 7000)).save(tmp_path / 'big.png')
    with pytest.raises(FlowError, match='too many pixels'):
        read_picture(tmp_path / 'big.png')


def test_examples(scenes, tmp_path):
    "A folder in natural order, evenly thinned out; a list as it is; errors name what is wrong."
    assert [p.name for p in find_examples(scenes[0], 4)] == ['0.png', '6.png', '12.png', '18.png']
    assert [p.name for p in find_examples([scenes[0] / '5.png'])] == ['5.png'] and find_examples(None) == []
    for bad, says in ((tmp_path / 'no', 'no folder'), (tmp_path, 'no picture'), ([tmp_path / 'x.png'], 'no example')):
        with pytest.raises(FlowError, match=says):
            find_examples(bad)
    df = pd.DataFrame(dict(img=[str(scenes[0] / '5.png')]))
    for table in (df, dict(df)):
        with pytest.raises(FlowError, match=rf"not a {type(table).__name__}: write list\(examples\['column'\]\)$"):
            find_examples(table)
    assert [p.name for p in find_examples(df.img)] == ['5.png']


def test_other_learners(scenes):
    "A learner without a flow, or one that takes no picture, is told so at once."
    df = scenes[1].assign(kind=scenes[1].scene)
    plain = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_x=ColReader('img', pref=f'{scenes[0]}/'),
        get_y=ColReader('kind'),
        item_tfms=Resize(32),
    ).dataloaders(df, bs=8, num_workers=0)
    with pytest.raises(FlowError, match='no flow'):
        Viewer(Learner(plain, nn.Flatten(), loss_func=nn.CrossEntropyLoss()))
    numbers = DataBlock(
        blocks=(TransformBlock, BinaryBlock('door_open')),
        get_x=lambda r: torch.ones(3),
        splitter=RandomSplitter(seed=0),
    ).dataloaders(df, bs=8, num_workers=0)
    with pytest.raises(FlowError, match='hand over one whose input is an image'):
        Viewer(Learner(numbers, nn.Linear(3, 1), loss_func=numbers.loss_func))


def test_a_picture_of_the_wrong_size(scenes):
    "A model without Resize that takes one size only says so, and goes on working."
    dls = DataBlock(
        blocks=(ImageBlock, security_flow()),
        get_x=ColReader('img', pref=f'{scenes[0]}/'),
        splitter=RandomSplitter(seed=0),
    ).dataloaders(scenes[1], bs=8, num_workers=0)
    viewer = Viewer(Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, dls.c)), loss_func=dls.loss_func))
    want = viewer(read_picture(scenes[0] / '1.png'))[0]
    with pytest.raises(FlowError, match=r'500 × 400 pixels .*Resize'):
        viewer(Image.new('RGB', (500, 400)))
    assert torch.equal(viewer(read_picture(scenes[0] / '1.png'))[0], want)


def test_command_line(scenes, exported, tmp_path, capsys, monkeypatch):
    "--help shows an example; a file that is missing, no learner, or short of code is one line, not a traceback."
    with pytest.raises(SystemExit) as e:
        main(['--help'])
    said = capsys.readouterr().out
    assert (
        e.value.code == 0
        and 'condmtl_app demo_out/security.pkl --examples' in said
        and all(o in said for o in ('--host', '--port', '--share', '--examples'))
    )
    (tmp_path / 'text.pkl').write_text('hello')
    torch.save({'a': 1}, tmp_path / 'dict.pkl')
    for name in ('no_such_module', 'no_such_class'):
        fake = type('Fake', (), {'__module__': name, '__qualname__': 'Gone'})
        monkeypatch.setitem(sys.modules, name, m := type(sys)(name))
        m.Gone = fake
        torch.save(fake(), tmp_path / f'{name}.pkl')
        del m.Gone
    monkeypatch.delitem(sys.modules, 'no_such_module')
    for args, says in (
        ([str(tmp_path / 'no.pkl')], 'there is no file'),
        ([str(tmp_path / 'text.pkl')], 'is not an exported learner'),
        ([str(tmp_path / 'dict.pkl')], 'is not an exported learner'),
        ([str(tmp_path / 'no_such_module.pkl')], 'needs code that is not here'),
        ([str(tmp_path / 'no_such_class.pkl')], 'needs code that is not here'),
        ([str(exported), '--examples', str(tmp_path / 'no')], 'is no folder'),
    ):
        if 'folder' in says and importlib.util.find_spec('gradio') is None:
            continue
        with pytest.raises(SystemExit) as e:
            main(args)
        said = capsys.readouterr().err
        assert e.value.code == 2 and says in said and 'Traceback' not in said
    monkeypatch.setitem(sys.modules, 'gradio', None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"pip install 'fastai_condmtl\[app\]'"):
        make_app(load_exported(exported))


# ---- the page itself


@pytest.fixture(scope='module')
def site(scenes, exported):
    "The page of an exported learner, and how often its model ran."
    learn, calls = load_learner(exported), []
    app = make_app(learn, [scenes[0] / f'{i}.png' for i in range(5)])
    learn.model.register_forward_hook(lambda *args: calls.append(1))
    app.launch(prevent_thread_lock=True, quiet=True)
    yield app.local_url, learn, calls
    app.close()


@pytest.fixture(scope='module')
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        b = p.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                '--no-sandbox',
                '--disable-gpu',
                '--disable-quic',
                '--no-first-run',
                '--disable-background-networking',
                '--disable-component-update',
                '--disable-sync',
            ],
        )
        yield b
        b.close()


def visit(browser, url, **kwargs):
    page = browser.new_context(**kwargs).new_page()
    page.set_default_timeout(60_000)
    page.seen, page.trouble = [], []
    page.on('request', lambda r: page.seen.append(r.url))
    page.on('pageerror', lambda e: page.trouble.append(str(e)))
    page.on('dialog', lambda d: (page.trouble.append(f'dialog {d.message}'), d.dismiss()))
    page.goto(url)
    page.wait_for_selector('.cm-start')
    return page


def tasks(page):
    return page.eval_on_selector_all('[data-task]', 'es => es.map(e => e.dataset.task)')


def uploads(page):
    return [u for u in page.seen if '/upload?' in u]


def upload(page, file):
    page.set_input_files('#cm-drop input[type=file]', str(file))


def knob(page, name, kind='range'):
    return page.get_by_label(f"{'range slider' if kind == 'range' else 'number input'} for {name}", exact=True)


def wait_for(page, want):
    page.wait_for_function(
        'want => JSON.stringify([...document.querySelectorAll("[data-task]")].map(e => e.dataset.task)) == want',
        arg=json.dumps(list(want), separators=(',', ':')),
    )


@needs_gradio
@needs_browser
def test_upload_slide_read(site, browser, scenes):
    """Drop a picture, move sliders by key and by number, put them back: each time the tree of a learner with
    these thresholds; the model ran once a file; a second visitor sees nothing of it."""
    url, learn, calls = site
    own = dict(learn.loss_func.thresholds)

    def want(**ts):
        learn_ = load_learner(scenes[0] / 'model.pkl')
        learn_.loss_func.thresholds = {**own, **{k: torch.tensor([v]) for k, v in ts.items()}}
        with learn_.no_bar():
            return list(learn_.predict(scenes[0] / '2.png')[0].reached)

    page, other = visit(browser, url), visit(browser, url)
    calls.clear()
    upload(page, scenes[0] / '2.png')
    wait_for(page, want())
    assert 1 <= sum(calls) == len(uploads(page)), (
        page.seen
    )  # how often a busy browser sends a file is its own affair; each is looked at once
    knob(page, 'camera_blocked').focus()
    page.keyboard.press('Home')  # threshold 0: blocked, whatever the probability
    wait_for(page, ['camera_blocked'])
    assert 'Not asked (13)' in page.inner_text('.cm-gone summary')
    knob(page, 'camera_blocked', 'number').fill('1')
    knob(page, 'door_open', 'number').fill('0')
    knob(page, 'person_present', 'number').fill('0')
    wait_for(page, all_ := want(camera_blocked=1.0, door_open=0.0, person_present=0.0))
    assert len(all_) == 13 and page.locator('.cm-picture rect.cm-line').count() == 2
    knob(page, 'door_open', 'number').fill('')  # being typed
    knob(page, 'door_open', 'number').fill('7')
    wait_for(page, want(camera_blocked=1.0, door_open=1.0))
    assert 'door_locked' in tasks(page) and not page.locator('.cm-picture rect').count()
    page.get_by_role('button', name='Back to').click()
    wait_for(page, want())
    assert sum(calls) == len(uploads(page)), page.seen  # moving sliders never asked the model again
    assert knob(other, 'camera_blocked', 'number').input_value() == '0.5' and not tasks(other)
    upload(other, scenes[0] / '2.png')
    wait_for(other, want())
    assert learn.loss_func.thresholds.keys() == own.keys() and all(
        torch.equal(torch.as_tensor(learn.loss_func.thresholds[k]), torch.as_tensor(v)) for k, v in own.items()
    )
    assert not page.trouble and not other.trouble
    page.context.close(), other.context.close()


@needs_gradio
@needs_browser
def test_examples_and_bad_files_in_the_page(site, browser, scenes, tmp_path, capfd):
    """An example is one click; a bad file is one message, after which the next picture works; nothing on the
    server's console."""
    url, learn, _ = site
    bad_files(tmp_path, (scenes[0] / '1.png').read_bytes())
    page = visit(browser, url)
    for i in (3, 0):
        page.get_by_role('button', name=f'Example {i}.png').click()
        page.wait_for_selector(f'.cm-picture figcaption:has-text("{i}.png")')
        with learn.no_bar():
            assert tasks(page) == list(learn.predict(scenes[0] / f'{i}.png')[0].reached)
    for name, says in (('text.jpg', 'is not a picture'), ('empty.png', 'is empty'), ('half.png', 'damaged or cut off')):
        upload(page, tmp_path / name)
        page.wait_for_selector(f'[role=alert]:has-text("“{name}” "):has-text("{says}")')
        assert not tasks(page) and not page.locator('.cm-picture').count()
    upload(page, scenes[0] / '4.png')
    page.wait_for_selector('[data-task=camera_blocked]')
    assert 'Traceback' not in ''.join(capfd.readouterr()) and not page.trouble
    page.context.close()


def contrast(page, selector):
    "The lowest contrast (WCAG) of texts against the page behind them."
    return page.evaluate(
        '''sel => {
        const ctx = document.createElement('canvas').getContext('2d', {willReadFrequently: true})
        const rgb = (over, under) => { ctx.fillStyle = under; ctx.fillRect(0,0,1,1); ctx.fillStyle = over;
            ctx.fillRect(0,0,1,1); return [...ctx.getImageData(0,0,1,1).data].slice(0,3) }
        const lum = c => c.map(v => (v /= 255) <= .04045 ? v/12.92 : ((v + .055)/1.055)**2.4)
            .reduce((s,v,i) => s + v*[.2126,.7152,.0722][i], 0)
        const back = getComputedStyle(document.body).backgroundColor
        return Math.min(...[...document.querySelectorAll(sel)].map(e => {
            const [a,b] = [lum(rgb(getComputedStyle(e).color, back)), lum(rgb(back, back))]
                .sort((x,y) => y - x); return (a + .05)/(b + .05) }))
    }''',
        selector,
    )


@needs_gradio
@needs_browser
@pytest.mark.parametrize('width,scheme', [(1280, 'light'), (390, 'dark')])
def test_layout_and_nothing_from_elsewhere(site, browser, scenes, width, scheme):
    """Fits the window, is readable in light and dark, lists are lists to a screen reader, and every request goes
    to the page's own server."""
    url, learn, _ = site
    page = visit(browser, url, viewport=dict(width=width, height=844), color_scheme=scheme)
    upload(page, scenes[0] / '2.png')
    page.wait_for_selector('[data-task=camera_blocked]')
    knob(page, 'camera_blocked', 'number').fill('1')
    page.wait_for_selector('[data-task=door_open]')
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    box = lambda s: page.locator(s).first.bounding_box()
    tree, drop, sliders = box('#cm-tree'), box('#cm-drop'), box('.cm-cuts')
    if width < 900:
        assert drop['y'] < tree['y'] < sliders['y']
    else:
        assert tree['x'] > drop['x'] + drop['width'] - 1 and abs(tree['y'] - drop['y']) < 60
    dark = (
        sum(int(v) for v in re.findall(r'\d+', page.evaluate('getComputedStyle(document.body).backgroundColor'))[:3])
        < 200
    )
    assert dark == (scheme == 'dark')
    assert (
        contrast(
            page, '.cm-tree .cm-note, .cm-tree .cm-name, .cm-tree .cm-num, .cm-tree summary, .cm-tree h2, figcaption'
        )
        > 4.5
    )
    meter = page.get_by_role('meter', name='P(camera_blocked)')
    with learn.no_bar():
        p = learn.predict(scenes[0] / '2.png')[0].probabilities['camera_blocked']
    assert float(meter.get_attribute('aria-valuenow')) == pytest.approx(p, abs=1e-4)
    share = page.evaluate(
        'e => e.querySelector(".cm-fill").getBoundingClientRect().width / e.getBoundingClientRect().width',
        meter.element_handle(),
    )
    assert share == pytest.approx(p, abs=0.01)
    assert page.get_by_role('listitem').filter(has_text='camera_blocked').count()
    assert all(u.startswith((url, 'data:', 'blob:')) for u in page.seen), [
        u for u in page.seen if not u.startswith((url, 'data:', 'blob:'))
    ]
    page.context.close()


@needs_gradio
@needs_browser
def test_nasty_names_in_the_page(scenes, browser):
    "Names that are HTML, templates or scripts show as they are written, in the tree and on the sliders."
    df = scenes[1].assign(words='${alert(2)},{{alert}},' + NASTY)
    df['a'] = 1
    flow = Flow(NAME, BinaryBlock(NAME, 'a'), MultiLabelBlock('words'))
    learn = tiny(blocks(scenes[0], flow, df))
    learn.loss_func.thresholds['words'] = torch.zeros(3)
    app = make_app(learn)
    app.launch(prevent_thread_lock=True, quiet=True)
    try:
        page = visit(browser, app.local_url)
        upload(page, scenes[0] / '1.png')
        page.wait_for_selector('[data-task=words]')
        text = page.inner_text('#cm-tree')
        assert all(w in text for w in (NAME, NASTY, '${alert(2)}', '{{alert}}'))
        assert page.inner_text('h1') == NAME and page.title() == NAME
        assert all(knob(page, n).count() for n in (NAME, 'words: ${alert(2)}', 'words: {{alert}}', f'words: {NASTY}'))
        assert not page.locator('img[src=x], svg[onload]').count() and not page.trouble
        page.context.close()
    finally:
        app.close()


@needs_gradio
def test_many_thresholds(scenes):
    "A flow of more thresholds than sliders: the page says so."
    import gradio as gr

    df = scenes[1].assign(**{f'c{i}': i % 2 for i in range(9)})
    app = make_app(tiny(blocks(scenes[0], Flow('many', *[BinaryBlock(f'c{i}') for i in range(9)]), df)), max_sliders=4)
    parts = list(app.blocks.values())
    assert sum(isinstance(b, gr.Slider) for b in parts) == 4 and any(
        'first 4 of 9' in str(getattr(b, 'value', '')) for b in parts
    )


@needs_gradio
def test_switch_of_what_is_not_sure(scenes):
    "With prediction sets, a switch leaves undecided what `predict(abstain=True)` does; without, there is no switch"
    torch.manual_seed(0)
    flow = Flow('door', BinaryBlock('camera_blocked'), SingleLabelBlock('shirt_type'))
    learn = tiny(blocks(scenes[0], flow, scenes[1]))
    switches = lambda: [b for b in make_app(learn).blocks.values() if type(b).__name__ == 'Checkbox']
    assert switches() == []
    file = scenes[0] / '3.png'
    page = Shown(learn)
    assert 'undecided' not in page.look(file, *page.positions(), True)[2]
    with learn.no_bar():
        learn.conformal(0.6)
        told = [learn.predict(file, abstain=abstain)[0] for abstain in (False, True)]
    assert told[1].undecided and not told[0].undecided  # it was never trained
    (switch,) = switches()
    assert switch.label == 'Leave undecided what is not sure' and switch.value is False
    page = Shown(learn)
    kept, _, off = page.look(file, *page.positions(), False)
    on = page.show(kept, *page.positions(), True)[1]
    cut = cuts(learn.loss_func)
    assert (off, on) == tuple(tree_html(pred, cut) for pred in told)
    assert 'undecided' in on and 'undecided' not in off


@needs_gradio
def test_space(root, exported, scenes, tmp_path):
    "The files of the Space run as they are beside a learner; its header names them."
    import gradio as gr, yaml

    space = root / 'examples' / 'space'
    header = yaml.safe_load((space / 'README.md').read_text(encoding='utf-8').split('---')[1])
    assert (
        header['sdk'] == 'gradio'
        and int(header['sdk_version'].split('.')[0]) >= 6
        and (space / header['app_file']).is_file()
    )
    assert len(header['short_description']) <= 60
    assert (space / 'requirements.txt').read_text(encoding='utf-8').splitlines() == core_only.settings()[
        ''
    ]  # the Space brings Gradio, and the folder of the package lies beside
    shutil.copyfile(space / 'app.py', tmp_path / 'app.py')
    shutil.copyfile(exported, tmp_path / 'model.pkl')
    (tmp_path / 'pictures').mkdir()
    shutil.copyfile(scenes[0] / '1.png', tmp_path / 'pictures' / '1.png')
    app = runpy.run_path(str(tmp_path / 'app.py'))['demo']
    assert isinstance(app, gr.Blocks) and any(
        'Example 1.png' in str(getattr(b, 'value', '')) for b in app.blocks.values()
    )
