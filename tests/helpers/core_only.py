"""Which packages the core install brings, and a process that finds no others.

python tests/helpers/core_only.py import          imports every module of the package; prints those that miss an extra
python tests/helpers/core_only.py minute FOLDER   goes through the README's example
python tests/helpers/core_only.py extras FOLDER   calls whatever needs an extra; prints what each was missing
"""

import importlib.util
import json
import os
import re
import sys
import warnings
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PKG = ROOT / 'fastai_condmtl'
TOOLS = {'pip', 'setuptools', 'wheel'}  # venv or a build brings them

# what is installed by what -------------------------------------------------------------------------------------------


def settings():
    "Requirements by the name of their extra, '' being the core's"
    cfg = ConfigParser(interpolation=None)
    cfg.read_string((ROOT / 'settings.ini').read_text(encoding='utf-8'))
    res = {k.removesuffix('_requirements'): v for k, v in cfg['DEFAULT'].items() if k.endswith('_requirements')}
    res[''] = cfg['DEFAULT']['requirements']
    return {k: [line for line in v.splitlines() if line.strip()] for k, v in res.items()}


def brought(lines):
    "Names of the distributions that these requirements bring, with all that those require"
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    todo = [Requirement(line) for line in lines]
    seen = set()
    while todo:
        req = todo.pop()
        key = (canonicalize_name(req.name), frozenset(req.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            required = metadata.requires(req.name) or []
        except metadata.PackageNotFoundError:
            required = []
        for r in map(Requirement, required):
            if r.marker is None or any(r.marker.evaluate({'extra': e}) for e in ('', *req.extras)):
                todo.append(r)
    return {name for name, _ in seen}


def importable(dists):
    "Importable names of these distributions that nothing else brings"
    from packaging.utils import canonicalize_name

    found = metadata.packages_distributions().items()
    return {name for name, of in found if {canonicalize_name(d) for d in of} <= dists}


def beyond_core():
    "Importable names that some extra brings and the core install does not"
    wanted = settings()
    core = brought(wanted.pop('')) | TOOLS
    return importable(brought(sum(wanted.values(), [])) - core)


# a process without them ----------------------------------------------------------------------------------------------


class Without:
    "A finder of modules that does not find some"

    def __init__(self, finder, names):
        self.finder = finder
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in self.names:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)


def modules():
    "Every module of the package, by its file"
    for path in sorted(PKG.rglob('*.py')):
        parts = path.relative_to(ROOT).with_suffix('').parts
        yield '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def import_all():
    "`{module: [package, extra]}` of the modules that miss an extra"
    res = {}
    for name in modules():
        try:
            importlib.import_module(name)
        except ImportError as e:
            res[name] = missing(e)
    return res


def missing(error):
    "Package and extra that a `MissingExtra` names; another error is raised"
    from fastai_condmtl.core.extras import MissingExtra

    if not isinstance(error, MissingExtra):
        raise error
    return re.search(r"needs the package (\w+): pip install 'fastai_condmtl\[(\w+)\]'$", str(error)).groups()


def readme_code():
    "The README's example, with a small network without downloaded weights, for one epoch"
    code = '\n'.join(re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(encoding='utf-8'), re.S))
    smaller = {
        'conditional_vision_learner(dls, resnet18)': 'conditional_vision_learner(dls, squeezenet1_1, pretrained=False)',
        'fine_tune(3)': 'fine_tune(1)',
        "fn_col='img',": "fn_col='img', num_workers=0,",
        "'security.pkl'": "path/'security.pkl'",
    }
    for old, new in smaller.items():
        assert old in code, old
        code = code.replace(old, new)
    return code


def minute(folder):
    "The README's example, the learner that it exports, and what `DataParallel` needs"
    from fastai_condmtl.datasets.synthetic import save_scenes

    df = save_scenes(folder, n=80)
    names = dict(df=df, path=folder, img=folder / df.img[0])
    exec(readme_code(), names)
    learn = names['learn']
    with learn.no_bar(), learn.parallel_ctx(balance_memory=True):
        learn.fit(1)
    again = names['load_learner'](folder / 'security.pkl')
    return repr(again.predict(names['img'])[0])


def needs_extras(folder):
    "`{call: [package, extra]}` of whatever needs an extra"
    from fastai.vision.all import squeezenet1_1
    from fastai_condmtl.vision.all import ConditionalDataLoaders, ConditionalTensorBoard, ConditionalWandb
    from fastai_condmtl.vision.all import BinaryBlock, Flow, SingleLabelBlock, conditional_vision_learner, load_safe
    from fastai_condmtl.tools.app import make_app
    from fastai_condmtl.tools.cli_inputs import find_arch
    from fastai_condmtl.deploy.named_network import make_network
    from fastai_condmtl.deploy.shards import score_shards
    from fastai_condmtl.evaluate.conformal import limit_of
    from fastai_condmtl.datasets.synthetic import save_scenes
    from fastai_condmtl.datasets.tiny_encoder import save_tiny_encoder
    from fastai_condmtl.tabular.rows import conditional_image_tabular_learner
    from fastai_condmtl.text.transformer_data import TransformerTextBlock

    df = save_scenes(folder, n=24)
    flow = Flow('f', BinaryBlock('camera_blocked'), SingleLabelBlock('shirt_type'))
    dls = ConditionalDataLoaders.from_df(df, flow, path=folder, fn_col='img', num_workers=0, bs=8)
    make = lambda **kwargs: conditional_vision_learner(dls, squeezenet1_1, pretrained=False, **kwargs)
    learn = make()
    calls = {
        'Flow.from_xlsform': lambda: Flow.from_xlsform(folder / 'form.xlsx'),
        'learn.to_onnx': lambda: learn.to_onnx(folder / 'a.onnx'),
        'learn.save_safe': lambda: learn.save_safe(folder / 'a.safetensors'),
        'load_safe': lambda: load_safe(folder / 'a.safetensors'),
        'learn.conformal': lambda: limit_of([0.1] * 20, 0.8),
        'score_shards': lambda: score_shards(learn.scorer(), [folder / 'a.parquet'], folder / 'out'),
        'score_shards(ray=True)': lambda: score_shards(
            learn.scorer(), [folder / 'a.parquet'], folder / 'out', ray=True
        ),
        'a network of timm in a file': lambda: make_network(dict(arch='resnet18d', timm=True), dls.flow),
        'conditional_vision_learner': lambda: conditional_vision_learner(dls, 'resnet18d'),
        'conditional_image_tabular_learner': lambda: conditional_image_tabular_learner(dls, 'resnet18d'),
        '--arch': lambda: find_arch('resnet18d'),
        'ConditionalTensorBoard': ConditionalTensorBoard,
        'ConditionalWandb': ConditionalWandb,
        'make_app': lambda: make_app(learn),
        'TransformerTextBlock': lambda: TransformerTextBlock('an-encoder'),
        'save_tiny_encoder': lambda: save_tiny_encoder(folder / 'encoder', ['a text']),
        'balance': lambda: make(balance='upgrad'),
        'fastai_condmtl.callback.distributed': lambda: importlib.import_module('fastai_condmtl.callback.distributed'),
    }
    res = {}
    for what, call in calls.items():
        try:
            call()
        except ImportError as e:
            res[what] = missing(e)
        else:
            res[what] = None
    return res


def main(task, folder=None):
    os.environ.setdefault('MPLBACKEND', 'Agg')
    sys.path.insert(0, str(ROOT))
    warnings.filterwarnings('ignore')
    hidden = beyond_core()
    sys.meta_path[:] = [Without(f, hidden) for f in sys.meta_path]
    looked_for = hidden & {'accelerate', 'onnx', 'safetensors', 'timm', 'transformers', 'wandb'}
    there = [name for name in sorted(looked_for) if importlib.util.find_spec(name)]
    assert not there, there
    tasks = {'import': import_all, 'minute': minute, 'extras': needs_extras}
    print('\n' + json.dumps(tasks[task](*[] if folder is None else [Path(folder)])))


if __name__ == '__main__':
    main(*sys.argv[1:])
