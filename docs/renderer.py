"How the site shows a function or class: its signature in a line, what it does, and a table of its parameters"

import inspect, re, textwrap
from fastcore.docments import DocmentTbl, MarkdownRenderer
from nbdev import showdoc


def signature(name, sym):
    "`name(a, b=1)`, without annotations, in lines that fit the page; properties have none"
    try:
        ps = inspect.signature(sym).parameters.values()
    except (TypeError, ValueError):
        return name
    arguments = ', '.join(str(p.replace(annotation=p.empty)) for p in ps if p.name != 'self')
    line = f'{name}({arguments})'
    if len(line) <= 110:
        return line
    indent = ' ' * 4
    wrapped = textwrap.fill(arguments, 110, initial_indent=indent, subsequent_indent=indent, break_long_words=False)
    return f'{name}(\n{wrapped}\n)'


def table(sym):
    "The parameters as Markdown, empty where none is documented"
    t = DocmentTbl(sym)
    return re.sub(r'\| (NoneType|inspect\._empty) \|', '|  |', t._repr_markdown_()) if t.has_docment else ''


class TableRenderer(showdoc.BasicMarkdownRenderer):
    def _repr_markdown_(self):
        full = MarkdownRenderer._repr_markdown_(self)
        doc = re.sub(r'^```python\n.*?\n```\n*', '', full, flags=re.S)
        src = showdoc.NbdevLookup().code(self.fn)
        link = showdoc._ext_link(src, 'source', 'style="float:right; font-size:smaller"') if src else ''
        sig = '' if isinstance(self.sym, property) else f'```python\n{signature(self.nm, self.sym)}\n```'
        return '\n\n'.join(
            filter(
                None,
                [
                    '---',
                    link,
                    f"{'#' * self.title_level} {self.nm}",
                    sig,
                    doc.strip(),
                    '' if isinstance(self.sym, property) else table(self.sym),
                ],
            )
        )


def use():
    "From now on `show_doc` shows tables"
    showdoc.BasicMarkdownRenderer = TableRenderer
