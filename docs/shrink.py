"Pictures in notebooks' outputs with 128 colours: a third of the size, and nobody sees it. Run by `make outputs`"

import base64, io, json
from pathlib import Path
from PIL import Image


def small(data):
    "A PNG (base64) with a palette; None if it has one, or is hardly smaller with it"
    raw, out = base64.b64decode(''.join(data)), io.BytesIO()
    picture = Image.open(io.BytesIO(raw))
    if picture.mode == 'P':
        return None
    few = picture.convert('RGB').quantize(128, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(out, 'PNG', optimize=True)
    return base64.b64encode(out.getvalue()).decode() if len(out.getvalue()) < 0.9 * len(raw) else None


def main():
    for nb in (Path(__file__).resolve().parents[1] / 'nbs').rglob('*.ipynb'):
        doc, changed = json.loads(nb.read_text(encoding='utf-8')), False
        for output in (output for cell in doc['cells'] for output in cell.get('outputs', [])):
            data = output.get('data', {})
            if 'image/png' in data and (new := small(data['image/png'])) is not None:
                data['image/png'], changed = new, True
        if changed:
            nb.write_text(json.dumps(doc, indent=1, sort_keys=True, ensure_ascii=False) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
