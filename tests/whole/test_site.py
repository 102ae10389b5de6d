"""The site as a visitor meets it: built from the notebooks, every page in a headless Chromium at desktop and
phone width."""

import ast, functools, http.server, importlib.util, os, posixpath, re, shutil, subprocess, sys, threading
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlparse
import pytest
from filelock import FileLock  # torch brings it

CHROMIUM = os.environ.get('CHROMIUM') or next(
    (p for n in ('chromium', 'chromium-browser', 'google-chrome') if (p := shutil.which(n))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(importlib.util.find_spec(m) is None for m in ('material', 'latex2mathml')),
        reason="building the site needs pip install 'fastai_condmtl[docs]'",
    ),
]


@pytest.fixture(scope='module')
def site(root, tmp_path_factory):
    built = (
        tmp_path_factory.getbasetemp().parent / 'site_built'
        if 'PYTEST_XDIST_WORKER' in os.environ
        else tmp_path_factory.getbasetemp() / 'site_built'
    )
    with FileLock(f'{built}.lock'):  # once, whichever worker comes first
        if not built.exists():
            r = subprocess.run(
                [sys.executable, '-W', 'ignore', root / 'docs' / 'build.py'],
                cwd=root,
                capture_output=True,
                text=True,
                env={**os.environ, 'OMP_NUM_THREADS': '1'},
            )
            assert r.returncode == 0, r.stdout[-3000:] + r.stderr[-3000:]
            built.touch()
    return root / '_site'


@pytest.fixture(scope='module')
def pages(site):
    return sorted(p for p in site.rglob('*.html') if p.name != '404.html')


class Parsed(HTMLParser):
    "Links, images and anchors of a page"

    def __init__(self, html):
        super().__init__()
        self.refs, self.ids = [], set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[k] for k in ('id', 'name') if attrs.get(k)}
        self.refs += [attrs[k] for k in ('href', 'src') if attrs.get(k) and tag != 'form']


def test_no_broken_link(site, pages):
    "Every link inside the site leads to a file and to an anchor that is there."
    parsed, broken = {p: Parsed(p.read_text(encoding='utf-8')) for p in pages}, []
    for p, page in parsed.items():
        for ref in page.refs:
            url = urlparse(urljoin(f'http://site/{p.relative_to(site).as_posix()}', ref))
            if url.netloc != 'site' or url.scheme not in ('http', 'https'):
                continue
            target = site / unquote(url.path).lstrip('/')
            if target.is_dir():
                target /= 'index.html'
            if (
                not target.exists()
                or url.fragment
                and target in parsed
                and unquote(url.fragment) not in parsed[target].ids
            ):
                broken.append((p.relative_to(site).as_posix(), ref))
    assert not broken


def test_every_module_has_its_page(site, root):
    import html, json

    for nb in (root / 'nbs').rglob('*.ipynb'):
        if not nb.name.startswith('_') and 'checkpoints' not in str(nb):
            title = (
                ''.join(json.loads(nb.read_text(encoding='utf-8'))['cells'][0]['source']).split('\n')[0].lstrip('# ')
            )
            title = html.escape(title, quote=False)
            assert any(
                f'<title>{title}' in p.read_text(encoding='utf-8') or title == 'fastai_condmtl'
                for p in site.rglob('index.html')
            ), nb


def rooms_of(root):
    yaml = pytest.importorskip('yaml')
    return yaml.safe_load((root / 'docs' / 'chapters.yml').read_text(encoding='utf-8'))


def chapters_of(folder, room):
    return [posixpath.normpath(posixpath.join(folder, o)) for o in room['chapters']]


def test_chapters_name_every_notebook_once(root):
    there = {p.relative_to(root / 'nbs').with_suffix('').as_posix() for p in (root / 'nbs').rglob('*.ipynb')}
    there = {o for o in there if not re.search(r'(^|/)[_.]|checkpoints', o)} - {'index'}
    rooms = rooms_of(root)['rooms']
    named = [o for folder, room in rooms.items() for o in chapters_of(folder, room)]
    assert sorted(named) == sorted(there)


def test_every_room_opens_with_its_picture(site, root):
    """Its paragraph, its place on the way of the data, and a link to each of its chapters, in the picture and in the
    list; its title in the navigation opens it."""
    told = rooms_of(root)
    home = Parsed((site / 'index.html').read_text(encoding='utf-8'))
    for folder, room in told['rooms'].items():
        html = (site / folder / 'index.html').read_text(encoding='utf-8')
        assert f'{folder}/' in home.refs, folder
        article = html[html.index('<article') : html.index('</article>')]
        first, *pictures = re.split(r'(?=<svg class="way)', article)
        assert len(re.sub('<[^>]*>', '', first).split()) > 30, folder
        assert len(pictures) == 2, folder
        names = [re.sub(r'(?<=/)\d+_', '', o) for o in chapters_of(folder, room)]  # nbdev's addresses
        chapters = [posixpath.relpath(o, folder) + '/' for o in names]
        for drawn in (o.split('</svg>')[0] for o in pictures):
            linked = re.findall(r'href="([^"]*)"', drawn)
            assert linked[-len(chapters) :] == chapters, folder
            filled = re.findall(r'<a class="here" href="../([^"]*)/"', drawn)
            assert filled == ([folder] if 'station' in room else []), folder
            assert [f'>{o}</text>' in drawn for o in told['way']] == [True] * len(told['way'])
        listed = re.findall(r'<li>\s*<p>\s*<a href="([^"]*)"|<li>\s*<a href="([^"]*)"', pictures[-1].split('</svg>')[1])
        assert [a or b for a, b in listed] == chapters, folder


def test_every_room_stands_at_a_station(root):
    told = rooms_of(root)
    assert {room.get('station') for room in told['rooms'].values()} - {None} == set(told['way'])
    assert [o for o, room in told['rooms'].items() if 'station' not in room] == ['guide', 'tutorials']


def test_formulas_and_tables(pages):
    "Formulas are MathML, with none left as source; parameters stand in tables."
    text = {
        p: re.sub(r'<(pre|code|script|style)\b.*?</\1>', '', p.read_text(encoding='utf-8'), flags=re.S) for p in pages
    }
    assert sum('<math' in t for t in text.values()) >= 3
    for p, t in text.items():
        assert '$$' not in t and 'merror' not in t and not re.search(r'\\(frac|sum|lambda|ell)\b', t), p
        assert not re.search(r'^<math[^>]* display="inline"', t, flags=re.M), f'{p}: a formula breaks its sentence'
    assert any('<td>Labelled data' in t for t in text.values())


@pytest.fixture(scope='module')
def browser():
    if CHROMIUM is None or importlib.util.find_spec('playwright') is None:
        pytest.skip('needs Chromium and playwright')
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        b = p.chromium.launch(
            executable_path=CHROMIUM,
            args=['--no-sandbox', '--disable-gpu', '--disable-quic', '--disable-dev-shm-usage'],
        )
        yield b
        b.close()


@pytest.fixture(scope='module')
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            return None

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()


VIEWS = {1280: 'light', 390: 'dark'}  # width of the window: scheme
MEASURED = """() => ({wide: document.scrollingElement.scrollWidth - window.innerWidth,
    lost: [...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.src),
    out: [...document.querySelectorAll('article img, article pre, article table')].filter(e => {
        let r = e.getBoundingClientRect();
        for (let p = e.parentElement; p; p = p.parentElement)
            if (['auto','scroll'].includes(getComputedStyle(p).overflowX)) return false;
        return r.right > window.innerWidth + 1; }).map(e => e.outerHTML.slice(0, 80)),
    cut: [...document.querySelectorAll('article pre > code')].filter(e => e.scrollWidth > e.clientWidth + 2)
        .map(e => e.innerText.slice(0, 80))})"""


def test_every_page_in_a_browser(browser, address, site, pages):
    """Nothing is asked from elsewhere, nothing fails, every picture is there, nothing is wider than the window, and on
    a screen code fits its column. A page is loaded once, and measured in each view"""
    page, wrong = browser.new_page(), []
    page.on('console', lambda m: wrong.append((page.url, m.text)) if m.type == 'error' else None)
    page.on('pageerror', lambda e: wrong.append((page.url, str(e))))
    page.on(
        'request',
        lambda r: None if r.url.startswith((address, 'data:', 'blob:')) else wrong.append((page.url, 'asks ' + r.url)),
    )
    page.on('response', lambda r: wrong.append((page.url, f'{r.status} {r.url}')) if r.status >= 400 else None)
    for p in pages:
        page.goto(f'{address}/{p.relative_to(site).as_posix()}', wait_until='load')
        for width, scheme in VIEWS.items():
            page.set_viewport_size(dict(width=width, height=900))
            page.emulate_media(color_scheme=scheme)
            seen = page.evaluate(MEASURED)
            if seen['wide'] > 1 or seen['lost'] or seen['out'] or (width > 1000 and seen['cut']):
                wrong.append((p.relative_to(site).as_posix(), width, seen))
    page.close()
    assert not wrong


@pytest.mark.parametrize('width, scheme', [(1280, 'light'), (1280, 'dark'), (390, 'light'), (390, 'dark')])
def test_pictures_of_rooms_can_be_read(browser, address, root, width, scheme):
    "One of the two pictures is seen; every name lies in its frame, is large enough, and stands out from what it is on."
    page, wrong = browser.new_page(viewport=dict(width=width, height=900), color_scheme=scheme), []
    for folder in rooms_of(root)['rooms']:
        page.goto(f'{address}/{folder}/', wait_until='load')
        seen = page.evaluate("""() => {
            let light = c => { let [r, g, b] = c.match(/[0-9.]+/g).map(Number); return (.3*r + .59*g + .11*b)/255; },
                shown = [...document.querySelectorAll('svg.way')].filter(e => e.getBoundingClientRect().width),
                page = light(getComputedStyle(document.body).backgroundColor), bad = [];
            for (let a of document.querySelectorAll('svg.way a')) {
                let [box, text] = ['rect', 'text'].map(o => a.querySelector(o)),
                    [b, t] = [box, text].map(e => e.getBoundingClientRect());
                if (!b.width) continue;
                let here = a.classList.contains('here'),
                    ground = here ? light(getComputedStyle(box).fill) : page;
                if (t.left < b.left || t.right > b.right || t.height < 11
                    || Math.abs(light(getComputedStyle(text).fill) - ground) < .25) bad.push(text.textContent); }
            for (let e of document.querySelectorAll('svg.way :is(path, text, rect)')) {
                let r = e.getBoundingClientRect(), s = e.closest('svg').getBoundingClientRect();
                if (r.left < s.left - 1 || r.right > s.right + 1) bad.push(e.outerHTML); }
            return [shown.length, bad]; }""")
        if seen != [1, []]:
            wrong.append((folder, seen))
    page.close()
    assert not wrong


def test_search_finds(browser, address):
    page = browser.new_page(viewport=dict(width=1280, height=900))
    page.goto(address)
    box = page.locator('input.md-search__input')
    box.click()
    box.press_sequentially(
        'cascade_report'
    )  # typed, since the search listens to keys: a value that is filled in may never be seen
    page.wait_for_selector('.md-search-result__item', timeout=60_000)
    assert 'cascade' in page.inner_text('.md-search-result__list').lower()
    page.close()


def test_code_in_docstrings_ends_on_its_line(root):
    "A span of code that runs over the end of a line is shown with the stray marks of emphasis"
    torn = []
    for file in sorted((root / 'fastai_condmtl').rglob('*.py')):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                lines = (ast.get_docstring(node) or '').splitlines()
                torn += [(file.name, getattr(node, 'name', ''), line) for line in lines if line.count('`') % 2]
    assert not torn


def test_factories_have_an_entry(site):
    "The call of every example has its arguments told on the page of its class"
    for room, name in dict(
        vision='ConditionalDataLoaders', tabular='ConditionalTabularDataLoaders', text='ConditionalTextDataLoaders'
    ).items():
        html = (site / room / 'data' / 'index.html').read_text(encoding='utf-8')
        _, _, entry = html.partition(f'id="{name.lower()}.from-df"')
        table, _, _ = entry.partition('</table>')
        told = re.sub('<[^>]*>', ' ', table)
        assert entry and all(word in told for word in ('valid_pct', 'group_col', 'test_pct', 'stratify')), room
