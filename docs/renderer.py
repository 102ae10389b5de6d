"How the site shows a function or class: its signature in a line, what it does, and a table of its parameters"

import inspect, re, textwrap
from fastcore.basics import ifnone
from fastcore.docments import DocmentTbl, MarkdownRenderer, docments
from nbdev import showdoc


def signature(name, sym):
    "`name(a, b=1)`, without annotations, in lines that fit the page; the name alone where Python knows no signature"
    try:
        parameters = inspect.signature(sym).parameters.values()
    except (TypeError, ValueError):
        return name
    arguments = ', '.join(str(p.replace(annotation=p.empty)) for p in parameters if p.name != 'self')
    line = f'{name}({arguments})'
    if len(line) <= 110:
        return line
    indent = ' ' * 4
    wrapped = textwrap.fill(arguments, 110, initial_indent=indent, subsequent_indent=indent, break_long_words=False)
    return f'{name}(\n{wrapped}\n)'


def documented(sym):
    "The table of the parameters; fastcore alone takes a comment beside `**kwargs` for what is given back"
    parameters = DocmentTbl(sym)
    for name, told in docments(sym, full=True, args_kwargs=True).items():
        if name in parameters.dm:
            parameters.dm[name]['docment'] = ifnone(told.docment, inspect._empty)
    return parameters


def table(sym):
    "The parameters as Markdown, empty where none is documented"
    parameters = documented(sym)
    if not parameters.has_docment:
        return ''
    return re.sub(r'\| (NoneType|inspect\._empty) \|', '|  |', parameters._repr_markdown_())


def first_paragraph(doc):
    "What fastcore wrote of a docstring, with all lines of its first paragraph in italics and not the first alone"
    first, *below = doc.split('\n\n')
    lines = first.split('\n')
    if len(lines) > 1 and lines[0].startswith('*') and lines[0].endswith('*'):
        first = f"*{' '.join([lines[0][1:-1], *map(str.strip, lines[1:])])}*"
    return '\n\n'.join([first, *below])


def told_methods(cls):
    """`(name, method)` of the public methods that stand in the body of a class and have documented parameters. What is
    patched has a cell, and an entry, of its own"""
    for name in vars(cls):
        method = getattr(cls, name)
        code = getattr(getattr(method, '__func__', method), '__code__', None)
        in_body = getattr(code, 'co_qualname', '') == f'{cls.__name__}.{name}'  # Python 3.11; older ones leave them out
        if in_body and not name.startswith('_') and method.__doc__ and documented(method).has_docment:
            yield name, method


class TableRenderer(showdoc.BasicMarkdownRenderer):
    def _repr_markdown_(self):
        "The entry of a symbol; of a class, those of its methods below it"
        own = self.entry()
        if not isinstance(self.sym, type):
            return own
        level = self.title_level + 1
        below = [
            TableRenderer(method, name=f'{self.nm}.{name}', title_level=level).entry()
            for name, method in told_methods(self.sym)
        ]
        return '\n\n'.join([own, *below])

    def entry(self):
        "Heading, signature, what it does, and the table of its parameters"
        full = MarkdownRenderer._repr_markdown_(self)
        doc = first_paragraph(re.sub(r'^```python\n.*?\n```\n*', '', full, flags=re.S).strip())
        src = showdoc.NbdevLookup().code(self.fn)
        link = showdoc._ext_link(src, 'source', 'style="float:right; font-size:smaller"') if src else ''
        parts = ['---', link, f"{'#' * self.title_level} {self.nm}"]
        if isinstance(self.sym, property):
            parts.append(doc)
        else:
            parts += [f'```python\n{signature(self.nm, self.sym)}\n```', doc, table(self.sym)]
        return '\n\n'.join(filter(None, parts))


def use():
    "From now on `show_doc` shows tables: it looks its renderer up by this name"
    showdoc.BasicMarkdownRenderer = TableRenderer
