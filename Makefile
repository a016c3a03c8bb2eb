# The interpreter that makes the environment: make demo PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MAIN := $(BIN)/python -m hgdpo_jax.main

.PHONY: demo test test-slow faults toon-weights

# The whole method on toon portraits; the last line says where the report is.
demo: $(VENV)/installed
	$(MAIN) --config=configs/toon.py

test: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

test-slow: $(VENV)/installed-test
	$(BIN)/python -m pytest -m slow

# Fifty kill -9, a full disk, damaged files and more, against undisturbed runs.
faults: $(VENV)/installed-test
	$(BIN)/python tests/faults.py

# Trains the weights that ship in hgdpo_jax/toon/weights again.
toon-weights: $(VENV)/installed
	$(MAIN) --config=configs/toon_base.py
	$(MAIN) --config=configs/toon_scorer.py
	$(MAIN) --config=configs/toon_judge.py
	$(MAIN) --config=configs/toon_oracle.py
	$(BIN)/python -m hgdpo_jax.toon.package workdir

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/installed: setup.py | $(BIN)/pip
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: setup.py | $(BIN)/pip
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $(VENV)/installed $@
