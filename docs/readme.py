"README.md from nbs/index.ipynb: its text, its code, and the outputs that were committed"

from pathlib import Path
from fastcore.nbio import read_nb

ROOT = Path(__file__).resolve().parents[1]


def readme(root=ROOT):
    "The text of README.md"
    parts = ['<!-- made from nbs/index.ipynb by docs/readme.py: edit there -->']
    for cell in read_nb(root / 'nbs' / 'index.ipynb').cells:
        src = '\n'.join(l for l in cell.source.split('\n') if not l.startswith('#|')).strip()
        if cell.cell_type == 'markdown':
            parts.append(src)
        elif cell.cell_type == 'code' and '#| hide' not in cell.source:
            parts.append(f'```python\n{src}\n```')
            for o in cell.outputs:
                text = (
                    o.get('text') or o.get('data', {}).get('text/markdown') or o.get('data', {}).get('text/plain') or ''
                )
                text = ''.join(text).rstrip()
                if text:
                    parts.append(text if 'text/markdown' in o.get('data', {}) else f'```text\n{text}\n```')
    return (
        ('\n\n'.join(parts) + '\n')
        .replace('](images/', '](nbs/images/')
        .replace('](tutorials/', '](nbs/tutorials/')
        .replace('](guide/', '](nbs/guide/')
        .replace('](../', '](')
    )


if __name__ == '__main__':
    (ROOT / 'README.md').write_text(readme(), encoding='utf-8')
