# The interpreter that makes the environment: make demo PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MAIN := $(BIN)/python -m hgdpo_jax.main

.PHONY: demo test test-oldest test-slow faults ablations bench accelerator toon-weights

# The whole method on toon portraits; the last line says where the report is.
demo: $(VENV)/installed
	$(MAIN) --config=configs/toon.py

test: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The tests with the oldest versions that pyproject.toml allows. With the newest: make test PYTHON=python3.13 VENV=.venv-newest
test-oldest:
	test -d .venv-oldest || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet uv
	VIRTUAL_ENV=.venv-oldest .venv-oldest/bin/uv pip install --quiet --resolution lowest-direct --editable '.[test]'
	.venv-oldest/bin/python -m pytest -n 2 --dist loadfile

test-slow: $(VENV)/installed-test
	$(BIN)/python -m pytest -m slow

# Fifty kill -9 for one process and for two, a full disk, damaged files and more, against undisturbed runs.
faults: $(VENV)/installed-test
	$(BIN)/python tests/faults.py

# The paper's tables in miniature, on toon portraits: all rows with three seeds of training, then the report that joins
# them; about 80 minutes on two cores. A row that is done stays done: after a stop, run it again.
ROWS := n20_sml n20 n2 n5 n10 n20_l2 n20_l5 n20_l10 n20_2k n20_50k n20_beta4x n20_beta20x sft_winners
ablations: $(VENV)/installed
	for seed in 0 1 2; do for row in $(ROWS); do \
		$(MAIN) --config=configs/toon_ablations.py:$$row-$$seed || exit; \
	done; done
	$(MAIN) --config=configs/toon_ablations.py:n20_sml-0 --stage=sweep_scale
	$(BIN)/python -m hgdpo_jax.report workdir/runs/*-[012]

# This project beside PyTorch's libraries on this machine, about 40 minutes on two cores, and where the demo's time goes.
bench: $(VENV)/installed-test
	$(BIN)/python -m benchmarks

# Checks and times everything on this machine's accelerator, an estimated 7 minutes on an H100. For CUDA 12:
# make accelerator ACCELERATOR=cuda12
ACCELERATOR ?= cuda13
accelerator: $(VENV)/installed-test
	$(BIN)/pip install --quiet 'jax[$(ACCELERATOR)]'
	$(BIN)/python -m benchmarks.accelerator

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

$(VENV)/installed: pyproject.toml setup.py | $(BIN)/pip
	$(BIN)/pip install --quiet --editable '.[toon]'
	touch $@

$(VENV)/installed-test: pyproject.toml setup.py | $(BIN)/pip
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $(VENV)/installed $@
