"""The page of a learner as a Hugging Face Space: put `model.pkl`, which learn.export wrote, and a folder
`pictures` beside this file."""

from pathlib import Path
from fastai_condmtl.tools.app import load_exported, make_app

here = Path(__file__).parent
demo = make_app(load_exported(here / 'model.pkl'), examples=here / 'pictures' if (here / 'pictures').is_dir() else None)

if __name__ == '__main__':
    demo.launch()
