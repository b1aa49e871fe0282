# `make demo` needs nothing but Python 3.10 or later and the network (and Java 17 for the Spark part).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# torch comes first and alone: where the package index offers a build for the CPU, no CUDA packages follow it.
TORCH := torch==2.13.0

.PHONY: help venv demo test test-fast lint types bench docs

help:
	@echo "make demo    train in four frameworks, rank, register, serve and ask the models"
	@echo "make test    the tests, fast ones first"
	@echo "make lint    ruff: rules and format"
	@echo "make types   mypy, strict"
	@echo "make bench   bare, mlflow-autolog and MLflow's own autologging side by side (BENCH='sklearn --repeat 5')"
	@echo "make docs    the documentation in site/, with no warnings; its tables are those of real trainings"
	@echo "make venv    the environment in $(VENV), with all frameworks"

# -- environment: one stamp for each set of extras; a changed pyproject.toml installs again ---------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	    f"Python 3.10 or later is needed, {sys.executable} is {sys.version.split()[0]}; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: | $(BIN)/python
	@echo "Installing PyTorch and the other frameworks into $(VENV): once, for some minutes"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	@touch $@

$(VENV)/.installed-%: pyproject.toml $(VENV)/.torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[all,$*]"
	@touch $@

venv: $(VENV)/.installed-demo

# -- demo -------------------------------------------------------------------------------------------------------------

demo: $(VENV)/.installed-demo
	@$(BIN)/python examples/demo.py

# -- checks -----------------------------------------------------------------------------------------------------------

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

test-fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -x tests/test_architecture.py tests/core

test: $(VENV)/.installed-test
	@# Whole processes and servers beside the rest, in a process of their own: most of their time is waiting. All but the
	@# examples, so that both take as long.
	@$(BIN)/python -m pytest -q --durations=25 tests/system --ignore=tests/system/test_examples.py \
	    >$(VENV)/system-tests.log 2>&1 & system=$$!; \
	$(BIN)/python -m pytest -q --durations=25 tests/test_architecture.py tests/test_docs.py tests/core tests/flavors \
	    tests/system/test_examples.py; rest=$$?; \
	wait $$system; system=$$?; cat $(VENV)/system-tests.log; exit $$((rest || system))

# -- figures ----------------------------------------------------------------------------------------------------------

BENCH ?=

bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/bench.py $(BENCH)

# -- documentation ----------------------------------------------------------------------------------------------------

docs: $(VENV)/.installed-test $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
