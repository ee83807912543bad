# make demo | test | lint | bench | clean. The environment is made on first use, and again when
# pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

# a second environment, with what the measurements compare with
UPSTREAM_VENV ?= .venv-upstream
UPSTREAM_STAMP := $(UPSTREAM_VENV)/.stamp

# processes of the test run; each keeps to one thread, since threads of two runs on one core stall
TEST_PROCESSES ?= 2
TEST_OPTIONS ?=
DEMO_OPTIONS ?=
BENCH_OPTIONS ?= --write

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test lint bench clean

help:
	@echo "make install  create $(VENV) with the tested versions of everything"
	@echo "make demo     train on furniture meshes, write new ones to out/"
	@echo "make test     linter, type checker and the whole test suite"
	@echo "make lint     linter and type checker only"
	@echo "make bench    measure against meshgpt-pytorch 1.8.1: docs/performance.md"
	@echo "make clean    remove the environments, caches and out/"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV) (about 1.7 GB, a minute or two)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,demo,simplify,formats]'
	@touch $@

# threads that wait asleep: where something else runs too, spinning ones cost tenfold
demo: $(STAMP)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python examples/furniture.py --out out $(DEMO_OPTIONS)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) $(TEST_OPTIONS)

bench: $(STAMP) $(UPSTREAM_STAMP)
	$(BIN)/python -m benchmarks run --upstream $(UPSTREAM_VENV)/bin/python $(BENCH_OPTIONS)

# the same versions of everything, but for what upstream pins itself
$(UPSTREAM_STAMP): constraints.txt
	@echo "installing meshgpt-pytorch 1.8.1 into $(UPSTREAM_VENV) (about 1.3 GB)"
	@rm -rf $(UPSTREAM_VENV)
	@$(PYTHON) -m venv $(UPSTREAM_VENV)
	@grep -v '^taylor-series-linear-attention' constraints.txt >$(UPSTREAM_VENV)/constraints.txt
	@$(UPSTREAM_VENV)/bin/python -m pip install --quiet --constraint $(UPSTREAM_VENV)/constraints.txt meshgpt-pytorch==1.8.1 torch
	@touch $@

clean:
	rm -rf $(VENV) $(UPSTREAM_VENV) out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
