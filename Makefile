# Each target sets up what it needs in .venv; a second run is quick.
#   make demo | test | test-lowest | arrangements | lint | coverage | mutate | outputs | bench | docs | release | install | clean        PYTHON=/path/to/python3.x picks another Python
PYTHON  ?= python3
VENV    ?= .venv
WORKERS ?= 2
SAMPLE  ?= 150
PINS    ?=

BIN  := $(VENV)/bin
META := pyproject.toml settings.ini setup.py
export PIP_DISABLE_PIP_VERSION_CHECK := 1
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := test
.PHONY: demo test test-lowest arrangements lint coverage mutate outputs bench docs release install clean

demo: $(VENV)/.base  ## train on a small embedded data set, print the table, write pictures; DEMO=quick: on fewer
	@$(BIN)/python -W ignore -m fastai_condmtl.tools.demo $(DEMO:%=--%)

test: $(VENV)/.dev  ## the notebooks, then pytest; both run to their end, and the last lines list what failed
	@$(BIN)/python tests/helpers/run.py $(WORKERS)

lint: $(VENV)/.dev  ## style and types
	@$(BIN)/ruff check -q .
	@$(BIN)/mypy

coverage: $(VENV)/.dev  ## the lines and branches of each module that pytest runs
	@rm -f .coverage .coverage.*
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --cov=fastai_condmtl --cov-config=.coveragerc --cov-report=term

mutate: $(VENV)/.dev  ## which of SAMPLE mutants a module the tests notice: see tests/MUTATION.md; SAMPLE=100000 tries all
	@for m in core.conditions core.questions core.bound loss.conditional loss.masked_mean tasks.thresholds tasks.votes data.target_block evaluate.metrics; do OMP_NUM_THREADS=1 $(BIN)/python -W ignore tests/helpers/mutate.py --module $$m --sample $(SAMPLE); done

test-lowest:  ## the same with the lowest versions that settings.ini allows, in .venv-lowest (PYTHON: 3.10 to 3.12, which they were built for)
	@$(MAKE) test VENV=.venv-lowest PINS=tests/lowest.txt

arrangements: $(VENV)/.dev  ## what trains, on other processors, threads, seeds and, where .venv-lowest is there, the lowest torch: see tests/helpers/arrangements.py
	@$(BIN)/python -W ignore tests/helpers/arrangements.py

outputs: $(VENV)/.dev  ## run the notebooks and keep what they print and draw
	@find nbs -name '*.ipynb' -not -path '*/[_.]*' | sort | OMP_NUM_THREADS=1 PYTHONWARNINGS=ignore xargs -P $(WORKERS) -I{} $(BIN)/nbdev-test {} --n-workers 0 --save
	@$(BIN)/nbdev-clean
	@$(BIN)/python docs/shrink.py

bench: $(VENV)/.dev  ## run the benchmarks one after the other, renew their sections of benchmarks/RESULTS.md
	@$(BIN)/python benchmarks/run.py

docs: $(VENV)/.docs  ## the site, in _site
	@$(BIN)/python docs/build.py

release:  ## VERSION=0.2.0: the version and the changelog's date, wheel and source archive in dist, checked in an environment of the core alone
	@PYTHON=$(PYTHON) $(PYTHON) docs/release.py $(VERSION)

install: $(VENV)/.dev  ## the package, editable, with all that its developers need

clean:  ## what the other targets made, but for their environments
	@rm -rf build dist *.egg-info _site _docs _proc demo_out .pytest_cache .hypothesis .ruff_cache .mypy_cache .coverage .coverage.*
	@find . -name __pycache__ -type d -not -path './.venv*/*' -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# fastai brings the torch and torchvision that go together: one install, never torch first.
$(VENV)/.base: $(META) | $(BIN)/pip
	@echo "Installing into $(VENV) (the first time: some minutes, some GB) ..." >&2
	@$(BIN)/python -m pip install -qq -e .
	@touch $@

$(VENV)/.dev: $(META) $(PINS) | $(BIN)/pip
	@echo "Installing into $(VENV), with what tests need (the first time: some minutes, some GB) ..." >&2
	@$(BIN)/python -m pip install -qq -e '.[dev]' $(PINS:%=-c %)
	@touch $@ $(VENV)/.base

$(VENV)/.docs: $(META) | $(BIN)/pip
	@echo "Installing into $(VENV), with what the docs need (the first time: some minutes, some GB) ..." >&2
	@$(BIN)/python -m pip install -qq -e '.[docs]'
	@touch $@ $(VENV)/.base

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3,10) or sys.exit(f"fastai_condmtl needs Python 3.10 or newer, and $(PYTHON) is {v[0]}.{v[1]}: make $(MAKECMDGOALS) PYTHON=/path/to/python3")'
	@$(PYTHON) -m venv $(VENV) || { echo "Could not make $(VENV). On Debian and Ubuntu: apt install python3-venv" >&2; rm -rf $(VENV); exit 1; }
