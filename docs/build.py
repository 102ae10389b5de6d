"""The documentation site: the notebooks as committed, to Markdown in `_docs`, to mkdocs-material in `_site`.

nbdev adds the reference of every exported symbol and drops what `#| hide` hides; plain cells keep the outputs they
were committed with.
"""

import base64, logging, os, posixpath, re, shutil, sys, yaml
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from fastcore.nbio import read_nb
from latex2mathml.converter import convert as to_mathml
from mkdocs.commands.build import build
from mkdocs.config import load_config
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import nbglob
from nbdev.serve import proc_nbs
import links, renderer
from rooms import opening, read_rooms

ROOT = Path(__file__).resolve().parents[1]
PAGES, SITE = ROOT / '_docs', ROOT / '_site'
ESC = r'\_'


@dataclass
class Page:
    "What is known of a page that was written"

    notebook: str  # below `nbs`
    path: str  # below `_docs`
    title: str
    description: str


def page(nb):
    "The path of a notebook's page below `_docs`"
    return nbpath2html(nb).with_suffix('.md')


def to_page(url, path):
    "The link to a notebook that stands on the page `path` as a link to the notebook's page"
    folder = posixpath.dirname(path)
    target = page(Path(posixpath.normpath(posixpath.join(folder, url))))
    return posixpath.relpath(target.as_posix(), folder or '.')


def fence(text, lang='text'):
    "A block of code, whose fence is longer than any in it"
    ticks = '`' * max(3, *(len(own) + 1 for own in re.findall('`+', text) or ['']))
    return f'{ticks}{lang}\n{text.rstrip()}\n{ticks}'


def anchor(symbol):
    return symbol.lower().replace('_', '-')


def joined(lines):
    return lines if isinstance(lines, str) else ''.join(lines)


def output(out, stem, n):
    "One cell output as Markdown; a picture goes to a file beside the page"
    if out['output_type'] == 'stream':
        return fence(joined(out['text'])) if out['name'] == 'stdout' else ''
    if out['output_type'] == 'error':
        sys.exit(f'{stem}: a committed output is an error, {out["ename"]}: {out["evalue"]}')
    data = {k: joined(v) for k, v in out['data'].items()}
    if 'image/png' in data:
        file = stem.with_name(f'{stem.name}_{n}.png')
        file.write_bytes(base64.b64decode(data['image/png']))
        return f'![]({file.name})'
    if 'text/html' in data:
        plain = data['text/html'].replace('border="1" ', '')
        # pandas' own style; that of a `Styler` stays
        return re.sub(r'<style scoped>.*?</style>|\n\s*(?=\n)', '', plain, flags=re.S)
    return data.get('text/markdown') or fence(data.get('text/plain', ''))


def heading(m):
    """A symbol's heading, with the anchor that links to it name. Markdown would take `__or__` for bold: escaped
    in the text, hyphens in the anchor."""
    return f'{m[1]} {m[2].replace("_", ESC)} {{#{anchor(m[2])}}}'


def formulas(text):
    """`$...$` and `$$...$$` outside of code as MathML, which browsers draw without a script. A formula in a sentence is
    wrapped in a `span`: Markdown ends the paragraph at a line that begins with any other tag."""

    def math(m):
        if m[1]:
            return to_mathml(m[1].strip(), display='block')
        return f'<span>{to_mathml(m[2].strip(), display="inline")}</span>' if m[2] else m[0]

    return re.sub(
        r'```.*?```|`[^`\n]*`|\$\$(.+?)\$\$|(?<![\\$\w])\$(?!\s)([^$\n]+?)(?<!\s)\$(?![\w$])', math, text, flags=re.S
    )


def write_page(nb, processed):
    "Write the page of one notebook"
    path = page(nb)
    stem = (PAGES / path).with_suffix('')
    stem.parent.mkdir(parents=True, exist_ok=True)
    title, description, parts = parts_of(processed, stem)
    text = with_links(nb, '\n\n'.join(filter(None, parts)))
    stem.with_suffix('.md').write_text(text + '\n', encoding='utf-8')
    return Page(nb.as_posix(), path.as_posix(), title, description)


def parts_of(processed, stem):
    "Title, description, and the cells of a notebook that nbdev has processed, as Markdown"
    title, description, parts = processed.stem, '', []
    for cell in read_nb(processed).cells:
        src = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M).strip()
        if cell.cell_type == 'raw':
            meta = yaml.safe_load(cell.source.strip().strip('-')) or {}
            title, description = meta.get('title', title), meta.get('description', '')
            parts += [f'# {title}', description]
        elif cell.cell_type == 'markdown':
            parts.append(formulas(src))
        else:
            if src and '#| echo: false' not in cell.source:
                parts.append(fence(src, 'python'))
            outs = [output(out, stem, f'{len(parts)}_{i}') for i, out in enumerate(cell.get('outputs', []))]
            if 'show_doc(' in src:
                outs = [re.sub(r'^(#{2,4}) (\S+)$', heading, out, flags=re.M) for out in outs]
            parts += outs
    return title, description, parts


def with_links(nb, text):
    "The text of a notebook's page with links that lead to other pages, and to the repository where there is none"
    folder, config = page(nb).parent.as_posix(), get_config()
    of_notebooks = config.nbs_path.name

    def outside(m):  # links to files of the repository that are no pages
        target = posixpath.normpath(posixpath.join(of_notebooks, nb.parent.as_posix(), m[1]))
        if target.startswith(f'{of_notebooks}/'):
            return m[0]
        return f']({config.git_url}/blob/{config.branch}/{target})'

    def relative(m):  # links to other notebooks, and those that nbdev makes of `symbol`
        url, mark = m[1], m[2] or ''
        if url.endswith('.ipynb'):
            return f']({to_page(url, page(nb).as_posix())}{mark})'
        target = Path(url.lstrip('/')).with_suffix('.md')
        return f']({posixpath.relpath(target.as_posix(), folder)}{anchor(mark)})'

    text = re.sub(r'\]\((\.\./[^)#\s]+)\)', outside, text)
    return re.sub(r'\]\(((?!\w+:)[^)#\s]+\.ipynb|/[^)#\s]+\.html)(#[^)\s]*)?\)', relative, text)


def settle(pages):
    "Links to symbols without a heading of their own (methods) lead to their page"
    texts = {page.path: (PAGES / page.path).read_text(encoding='utf-8') for page in pages}
    anchors = {path: set(re.findall(r'\{#([^}\s]+)\}', text)) for path, text in texts.items()}
    for path, text in texts.items():

        def known(m, path=path):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(path), m[1]))
            return m[0] if m[2] in anchors.get(target, {m[2]}) else f']({m[1]})'

        (PAGES / path).write_text(re.sub(r'\]\(([^)#\s]+\.md)#([^)\s]+)\)', known, text), encoding='utf-8')


def write_openings(pages):
    "Write the first page of each room, and return the navigation: front page, then rooms and chapters of chapters.yml"
    way, rooms = read_rooms()
    written = {p.notebook: p for p in pages}
    named = Counter(['index.ipynb', *(nb for room in rooms for nb in room.notebooks)])
    wrong = sorted(nb for nb in {*named, *written} if named[nb] != 1 or nb not in written)
    if wrong:
        sys.exit(f'docs/chapters.yml must name each notebook of nbs/ once, and does not so with {", ".join(wrong)}')
    navigation = [{'Home': 'index.md'}]
    for room in rooms:
        first = f'{room.folder}/index.md'
        text = re.sub(
            r'\]\(([^)\s]+\.ipynb)\)',
            lambda m, first=first: f']({to_page(m[1], first)})',
            opening(room, way, rooms, written),
        )
        (PAGES / first).parent.mkdir(exist_ok=True)
        (PAGES / first).write_text(formulas(text) + '\n', encoding='utf-8')
        chapters = [{written[nb].title: written[nb].path} for nb in room.notebooks]
        navigation.append({room.title: [first, *chapters]})
    return navigation


def main():
    os.chdir(ROOT)
    for made in (PAGES, SITE):
        shutil.rmtree(made, ignore_errors=True)
    folder = get_config().nbs_path
    nbs = [path.relative_to(folder) for path in sorted(nbglob(folder, as_path=True))]
    if not nbs:
        sys.exit('no notebooks to make pages of')
    renderer.use()
    links.use()
    processed = proc_nbs(n_workers=0, force=True)
    pages = [write_page(nb, processed / nb) for nb in nbs]
    settle(pages)
    shutil.copy(ROOT / 'docs' / 'extra.css', PAGES / 'extra.css')
    if (folder / 'images').is_dir():
        shutil.copytree(folder / 'images', PAGES / 'images')
    logging.basicConfig(level=logging.WARNING, format='%(levelname)s: %(message)s')
    build(load_config('mkdocs.yml', strict=True, nav=write_openings(pages), repo_url=get_config().git_url))
    print(f'{len(pages)} pages: {SITE.relative_to(ROOT)}/index.html')


if __name__ == '__main__':
    main()
