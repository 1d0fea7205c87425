# Two commands set everything up on a fresh machine that has Python 3.10-3.12 with venv, and nothing else:
#   make run    train TD-JEPA on its default data set, evaluate it, write a report
#   make test   run every test
# The virtual environment is made once; a stamp file in it remembers what was installed.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PYTEST_ARGS ?=

BIN := $(VENV)/bin
# setuptools warns that an editable install is editable
# compiling all 26,000 files of the dependencies takes two minutes of processor time, and most are never imported
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
SOURCES := worldmodels agents envs perception benchmarks tests

# MuJoCo picks its renderer when it is imported and fails if that renderer's library is missing, so look first.
# Without any, states, training and evaluation still work; only pictures and videos are left out.
MUJOCO_GL ?= $(shell $(PYTHON) -c 'import ctypes; ctypes.CDLL("libEGL.so.1")' 2>/dev/null && echo egl || echo disabled)
export MUJOCO_GL
export RL_WARNINGS ?= 0
# Where it is set, every process would compile all that it imports anew: 40 s of a core each
export PYTHONDONTWRITEBYTECODE :=

.PHONY: run test lint format bench clean help

help:
	@echo "make run    train, evaluate and report on the default data set (ARGS='steps=200' adds settings)"
	@echo "make test   lint-imports and pytest (PYTEST_ARGS='-k actor' selects)"
	@echo "make lint   ruff, pyright, codespell, lint-imports, file sizes;  make format  repairs what ruff can"
	@echo "make bench  updates per second against the straightforward implementation"
	@echo "make clean  remove the virtual environment and caches (never runs/ or data/)"

run: $(VENV)/.installed
	$(BIN)/python -m worldmodels.run agent=td_jepa env=ogbench $(ARGS)

# A process a core, each of one thread: two OpenMP threads that share a busy core are many times slower than one.
test: $(VENV)/.installed-test
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/codespell
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_house.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.update_speed $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find $(SOURCES) conf -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else \
	  f"worldmodels needs Python 3.10, 3.11 or 3.12; {sys.executable} is {v[0]}.{v[1]}. Use: make PYTHON=/path/to/python3.12")'
	@$(PYTHON) -m venv $(VENV) || { echo "Could not make $(VENV). On Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(PIP) 'pip>=23.1'   # older ones (Python 3.10 brings 23.0.1) lose their way among these dependencies

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[test]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[dev]'
	@touch $(VENV)/.installed $(VENV)/.installed-test $@
