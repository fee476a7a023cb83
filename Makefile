# make train    set up .venv, then train a hopper; make train ARGS="--env-id AntBulletEnv-v0"
# make smarts   put what the scripts for several agents need into .venv as well
# make test     set up .venv with the test tools, then run the tests
# make lint     ruff and mypy
# make docs     set up .venv with the site's tools alone, then build the site: open site/index.html
# PYTHON=python3.12 make train    with another Python (3.10 or newer)

PYTHON ?= python3
SCRIPT ?= ddpg_continuous.py
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train smarts test lint docs clean

train: $(VENV)/.installed
	$(BIN)/python $(SCRIPT) $(ARGS)

smarts: $(VENV)/.installed-smarts

test: $(VENV)/.installed-tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 $(ARGS)

lint: $(VENV)/.installed-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.installed: requirements.txt requirements-no-deps.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-no-deps.txt
	touch $@

$(VENV)/.installed-smarts: requirements-smarts.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --requirement requirements-smarts.txt --requirement requirements.txt
	touch $@

$(VENV)/.installed-tests: tests/requirements.txt docs/requirements.txt $(VENV)/.installed-smarts
	$(BIN)/python -m pip install --quiet --requirement tests/requirements.txt --requirement docs/requirements.txt --requirement requirements-smarts.txt --requirement requirements.txt
	touch $@

$(VENV)/.installed-docs: docs/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement $<
	touch $@

clean:
	rm -rf $(VENV) site
