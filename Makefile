# `make run` and `make test` work on a fresh clone; a second call installs nothing.
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= report
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt

.PHONY: run full test lint sweep studies bench clean

run: $(VENV)/.installed
	$(BIN)/convscope report --out $(OUT)

# the same, with everything measured afresh: every study trained again, no answer in a hurry; half an hour or so
full: $(VENV)/.installed
	$(BIN)/python tools/studies.py --work $(OUT)-studies
	$(BIN)/convscope report --answers full --studies $(OUT)-studies --fresh --out $(OUT)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

sweep: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m sweep --timeout 3600 $(ARGS)

# the trainings that ship, which answers read; gone on with where they were interrupted
studies: $(VENV)/.installed
	$(BIN)/python tools/studies.py --ship --work studies $(ARGS)

# the peer keeps to old releases of its own dependencies, so it gets an environment of its own
bench:
	$(MAKE) VENV=.venv-bench .venv-bench/.installed-bench
	.venv-bench/bin/python benchmarks/features.py $(ARGS)

clean:
	rm -rf $(VENV) .venv-bench build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "convscope needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# a stamp a set of extras: made again when what is asked for changes
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	touch $@

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e '.[$*]'
	touch $@ $(VENV)/.installed
