"Version, requirements and extras out of settings.ini; the rest is in pyproject.toml."

from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

cfg = ConfigParser(interpolation=None)
cfg.read_string((Path(__file__).parent / 'settings.ini').read_text(encoding='utf-8'))
cfg = cfg['DEFAULT']
extras = {k.removesuffix('_requirements'): v.splitlines() for k, v in cfg.items() if k.endswith('_requirements')}

setup(version=cfg['version'], install_requires=cfg['requirements'].splitlines(), extras_require=extras)
