# SPDX-License-Identifier: Apache-2.0
# make quickstart   environment, small training, evaluation, export, deployment, pictures
# make test         environment with the test extra, ruff, mypy, the tests that take seconds
# make test-all     the same with the tests that are marked slow: fresh processes, minutes of training
# Needs Python 3.10 or newer with venv; PYTHON=python3.12 chooses another one. JOBS=4 runs the tests
# in four processes, of one thread each: Paddle's threads, which wait in a loop, would take the cores
# from each other.

PYTHON ?= python3
VENV ?= .venv
OUT ?= output/quickstart
JOBS ?= 2
BIN = $(VENV)/bin

# A Paddle that is already in the environment (a GPU build, say) is kept: two of them beside each
# other break both.
HAS_PADDLE = $(BIN)/python -c "import importlib.util as u, sys; sys.exit(u.find_spec('paddle') is None)"

.PHONY: quickstart test test-all format clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.base: $(BIN)/python setup.py pyproject.toml
	if $(HAS_PADDLE); then extra=""; else extra="[cpu]"; fi; \
	$(BIN)/python -m pip install --quiet --editable ".$$extra"
	touch $@

$(VENV)/.test: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

quickstart: $(VENV)/.base
	$(BIN)/python -m paddleseg_deeplab.cli.quickstart --save_dir $(OUT)

test: SELECTED = -m "not slow"
test test-all: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(SELECTED)

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(OUT) build dist *.egg-info
