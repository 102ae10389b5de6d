"README.md from nbs/index.ipynb: its text, its code, and the outputs that were committed"

import re
from pathlib import Path
from fastcore.nbio import read_nb

ROOT = Path(__file__).resolve().parents[1]


def readme(root=ROOT):
    "The text of README.md"
    parts = ['<!-- made from nbs/index.ipynb by docs/readme.py: edit there -->']
    for cell in read_nb(root / 'nbs' / 'index.ipynb').cells:
        src = '\n'.join(line for line in cell.source.split('\n') if not line.startswith('#|')).strip()
        if cell.cell_type == 'markdown':
            parts.append(src)
        elif cell.cell_type == 'code' and '#| hide' not in cell.source:
            parts += [f'```python\n{src}\n```', *filter(None, map(output, cell.outputs))]
    text = re.sub(r'\]\((images|tutorials|guide)/', r'](nbs/\1/', '\n\n'.join(parts))
    return text.replace('](../', '](') + '\n'


def output(out):
    "An output as Markdown; empty where it has no text"
    data = out.get('data', {})
    text = ''.join(out.get('text') or data.get('text/markdown') or data.get('text/plain') or '').rstrip()
    return f'```text\n{text}\n```' if text and 'text/markdown' not in data else text


if __name__ == '__main__':
    (ROOT / 'README.md').write_text(readme(), encoding='utf-8')
