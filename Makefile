# Every target makes .venv by itself and does nothing twice. Needs: Python 3.11 or newer with venv, make, git.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export ZOOGRAFT_DATA_DIR ?= $(CURDIR)/.zoograft
THREADS ?= 1
JOBS ?= 2

.PHONY: demo up test lint types bench chaos lock screenshots clean help

help:
	@echo "make demo    install, then run the whole job on real data (about two minutes after installing)"
	@echo "make up      install, then serve API and dashboard on one port with a supervisor"
	@echo "make test    install, then lint, type-check and test"
	@echo "make bench   measure every promise of speed       make chaos   the full kill test"
	@echo "make clean   remove what these commands made"

$(READY): pyproject.toml requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found; set PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[workers,dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/zoograft demo

up: $(READY)
	$(BIN)/zoograft up

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy

test: lint types
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

bench: $(READY)
	$(BIN)/python -m benchmarks.run_all

chaos: $(READY)
	$(BIN)/python -m benchmarks.chaos --full

lock: $(READY)
	$(BIN)/python -m pip install --quiet --upgrade --upgrade-strategy eager -e '.[workers,dev]'
	$(BIN)/python -m pip freeze --exclude-editable --disable-pip-version-check > requirements.lock

screenshots: $(READY)
	$(BIN)/python -m docs.screenshots

clean:
	rm -rf $(VENV) .zoograft build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
