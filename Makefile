# What one does here. Every target first sets up what it needs in .venv, once, and again when
# pyproject.toml or constraints.txt change.
#
#   make demo         the whole road in minutes: data, training, evaluation, molecular dynamics
#   make test         the fast tests;  make test ARGS="-k neighbors" for some of them
#   make test-slow    the long ones
#   make lint types   ruff, mypy
#   make wheel-test   build the wheel and use it in an environment that holds nothing else
#   make peers        mace-torch and nequip, to be measured against, each in an environment in .peers
#   make test-peers   the tests that need them
#   make setup        everything that developing needs;  make clean removes all of it

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# torch comes first and alone, so that nothing but its pin decides which build is taken.
PIP := -m pip install -qq --no-compile --disable-pip-version-check -c constraints.txt
# Bytecode is made of what is imported, once: with none, importing torch takes half a minute.
export PYTHONDONTWRITEBYTECODE :=
# What is set up here is tested, not another tree that the caller's environment names.
unexport PYTHONPATH
WHEEL_TEST := build/wheel-test
# One process per core. Each takes neighbouring tests, which share what modules prepare once.
PARALLEL := -n auto --maxprocesses 8 --dist worksteal
# Their requirements contradict each other, so each has an environment of its own.
PEERS := mace-torch==0.3.16 nequip==0.19.1
PEERS_INSTALLED := $(foreach peer,$(PEERS),.peers/$(firstword $(subst ==, ,$(peer)))/.installed)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-slow peers test-peers lint types wheel wheel-test clean

help:
	@sed -n '4,11s/^# *//p' Makefile

setup: $(VENV)/.developer

$(VENV)/.torch: constraints.txt
	@command -v $(PYTHON) > /dev/null || \
	  { echo "Clebsch needs Python 3.11 or newer; there is no $(PYTHON) here. Say where one is: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Clebsch needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Say where one is: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu install python3-venv" >&2; exit 1; }
	@echo "Installing torch into $(VENV) ..."
	@$(BIN)/python $(PIP) torch
	@touch $@

$(VENV)/.package: $(VENV)/.torch pyproject.toml
	@echo "Installing Clebsch into $(VENV) ..."
	@$(BIN)/python $(PIP) -e '.[demo]'
	@$(BIN)/clebsch presets > /dev/null # makes bytecode of what every command imports
	@touch $@

$(VENV)/.developer: $(VENV)/.package
	@echo "Installing what tests and checks need into $(VENV) ..."
	@$(BIN)/python $(PIP) -e '.[demo,dev,tensorboard]'
	@touch $@

demo: $(VENV)/.package
	$(BIN)/clebsch demo $(ARGS)

# One thread per process: most structures in tests are too small for more.
test: $(VENV)/.developer
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-slow: $(VENV)/.developer
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(VENV)/.developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.developer
	$(BIN)/mypy

# One alone: make peers PEERS=nequip==0.19.1
peers: $(PEERS_INSTALLED)

# Peers run on the very torch that Clebsch runs on.
.peers/%/.installed: constraints.txt
	@$(PYTHON) -m venv .peers/$*
	@echo "Installing torch into .peers/$* ..."
	@.peers/$*/bin/python $(PIP) torch
	@echo "Installing $(filter $*==%,$(PEERS)) into .peers/$* ..."
	@.peers/$*/bin/python $(PIP) $(filter $*==%,$(PEERS))
	@touch $@

test-peers: $(VENV)/.developer $(PEERS_INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m peers $(PARALLEL) $(ARGS)

wheel: $(VENV)/.developer
	rm -rf build/lib build/bdist.* dist
	$(BIN)/python -m build --wheel --outdir dist . > build.log 2>&1 || { cat build.log; exit 1; }
	@rm -f build.log; ls dist

wheel-test: wheel
	rm -rf $(WHEEL_TEST)
	$(PYTHON) -m venv $(WHEEL_TEST)
	$(WHEEL_TEST)/bin/python $(PIP) torch
	$(WHEEL_TEST)/bin/python $(PIP) dist/clebsch-*.whl
	cd $(WHEEL_TEST) && bin/clebsch --version
	cd $(WHEEL_TEST) && bin/python -I "$(CURDIR)/tests/packaging/use_installed.py"

clean:
	rm -rf $(VENV) .peers build dist build.log src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
