# Two commands do everything on a fresh machine with Python 3.11 or newer:
#   make demo    sets up, trains the demo in minutes, writes sounds to listen to
#   make test    sets up, checks style, runs all tests
# and `make docs` builds the documentation site, which make test does too.

PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo_output
LIBTPU ?= 0.0.42.1
BIN := $(VENV)/bin

.PHONY: setup demo test lint format docs docs-links clean

setup: $(VENV)/installed

$(VENV)/installed: requirements.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("pf_jax needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@echo "Installing into $(VENV), which takes a minute or two ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: setup
	@echo "Training a small model on procedural music, in minutes:"
	$(BIN)/python -m experiments.train --config=demo --workdir=$(DEMO)/run
	@echo && echo "To compare its bits per sample with, a Markov model:"
	$(BIN)/python -m experiments.baseline --config=demo
	@echo && echo "Sounds of the model:"
	$(BIN)/python -m experiments.sample --checkpoint=$(DEMO)/run --num_samples=4 --seconds=6 --output=$(DEMO)/samples
	@echo && echo "Open this in a browser: file://$(abspath $(DEMO))/samples/index.html"

# The TPU compiler, for the tests of what would run on a TPU. It is kept apart: installed beside JAX,
# it would tell at every start that there is no TPU here.
$(VENV)/tpu/libtpu: $(VENV)/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/tpu libtpu==$(LIBTPU) || echo "libtpu is not to be had here: its tests are skipped"

test: setup lint $(VENV)/tpu/libtpu
	TPU_LIBRARY_PATH=$$(find "$(CURDIR)/$(VENV)/tpu" -name libtpu.so 2>/dev/null) $(BIN)/python -m pytest -n auto --dist=loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/python -m sphinx -W --keep-going -b html docs build/docs

# Are links to other places alive? Needs a network, so it is no part of the tests.
docs-links: setup
	$(BIN)/python -m sphinx -b linkcheck docs build/links

clean:
	rm -rf $(VENV) $(DEMO) build/docs build/links
