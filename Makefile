# What a bare machine needs: Python 3.11 to 3.13 with pip and venv, and make. Nothing is compiled.
#
#   make demo    let an agent live on this machine, with pretended sats
#   make test    the tests
#   make e2e     the tests that run the installed command in real processes
#   make check   format, lint, types, and which package may import which
#   make sim SEED=n    one simulated market, replayed from its seed
#   make bench   the benchmarks
#   make lightning     a market that settles over real Lightning channels, on a chain of its own (Debian: apt-get)
#   make deep    the tests that take long
#   make docs    the site of the docs, in build/docs
#   make dist    the wheel and the source distribution, in dist/
#   make binary  Pylon as one file, in dist/, with a model inside (MODEL=none: without)
#   make soak MINUTES=30   two homes, a hundred agents, and somebody killed every 20 seconds
#   make clean   remove what make has made

SHELL := /bin/sh
VENV ?= .venv
SEED ?= 1
MODEL ?= smollm2-135m
MINUTES ?= 30
JOBS ?= 2
BIN := $(VENV)/bin
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

# The build's own requirements are held to the same versions as everything else (by the second name since pip 25.3).
PIP := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
       $(BIN)/python -m pip

.PHONY: help demo test e2e check sim bench lightning deep soak docs dist binary clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.runtime
	@$(BIN)/pylon models pull >/dev/null
	@$(BIN)/pylon demo

test: $(VENV)/.test
	@$(BIN)/python -m pytest tests --ignore=tests/e2e -m "not e2e and not deep" -n $(JOBS) -q

e2e: $(VENV)/.test
	@$(BIN)/pylon models pull >/dev/null
	@$(BIN)/python -m pytest tests/e2e -m "not deep" -n $(JOBS) -q

check: $(VENV)/.check
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python docs/generate.py --check

sim: $(VENV)/.test
	@$(BIN)/python -m pylon.testing.sim --seed $(SEED)

bench: $(VENV)/.test
	@$(BIN)/pylon models pull >/dev/null
	@$(BIN)/python -m benchmarks

lightning: $(VENV)/.test
	@$(BIN)/python -m tests.lightning.install >/dev/null
	@$(BIN)/python -m pytest tests/lightning --ignore=tests/lightning/test_conformance.py -q

deep: $(VENV)/.deep
	@$(BIN)/pylon models pull >/dev/null
	@$(BIN)/python -m pytest tests -m deep -q --timeout=3600

# Nothing of it is fetched; whatever refers to what is not there is an error.
docs: $(VENV)/.docs
	@$(BIN)/python docs/generate.py --check
	@$(BIN)/sphinx-build -W --keep-going -q -d build/doctrees -b html docs build/docs
	@echo "build/docs/index.html"

dist: $(VENV)/.test
	@$(BIN)/python packaging/distribution.py

binary: | $(BIN)/python
	@$(BIN)/python packaging/binary.py --model $(MODEL)

soak: $(VENV)/.deep
	@$(BIN)/pylon models pull >/dev/null
	@mkdir -p build
	@$(BIN)/python -m pylon.testing.soak --minutes $(MINUTES) --seed $(SEED) \
	    --report build/soak.json --plot build/soak.svg

clean:
	@rm -rf $(VENV) build dist .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The first python that is suitable; PYTHON=... names another one.
$(BIN)/python:
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
	    if "$$python" -c '$(SUITABLE)' >/dev/null 2>&1; then \
	        echo "making $(VENV) with $$("$$python" --version)" >&2; \
	        exec "$$python" -m venv --clear $(VENV); \
	    fi; \
	done; \
	echo "no Python 3.11, 3.12 or 3.13 with venv found; name one: make PYTHON=/path/to/python3 ..." >&2; \
	exit 1

# pip notices what is there already, so that each of these adds to the one before it.
$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the runtime" >&2
	@$(PIP) install -qq --editable .
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the runtime and its tests" >&2
	@$(PIP) install -qq --editable '.[test]'
	@touch $@ $(VENV)/.runtime

# Compiles llama.cpp: some ten minutes, once for each version of Python.
$(VENV)/.deep: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the runtime, its tests and the engine in process" >&2
	@$(PIP) install -qq --editable '.[test,llamacpp,deep]'
	@touch $@ $(VENV)/.test $(VENV)/.runtime

$(VENV)/.check: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the runtime, its tests and its checks" >&2
	@$(PIP) install -qq --editable '.[test,check]'
	@touch $@ $(VENV)/.test $(VENV)/.runtime

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the runtime and what builds its docs" >&2
	@$(PIP) install -qq --editable '.[docs]'
	@touch $@ $(VENV)/.runtime
