# Needs Python 3.11 or newer, pip, make; everything else goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Two processes share the tests, one test at a time: many of them wait, for Ray or for deadlines. Not
# `--dist loadgroup`: pytest-xdist 3.8 waits forever where one of its processes dies.
SHARED := -n 2 --maxschedchunk 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-deep lint chaos mutants clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## install into .venv: again only when pyproject.toml or constraints.txt changed

demo: $(STAMP) ## migrate a real index to a better model on this machine: CPU only, no cluster
	$(BIN)/python examples/demo/run.py

test: $(STAMP) ## the tests that take under 12 minutes on two cores
	$(BIN)/python -m pytest $(SHARED)

test-deep: $(STAMP) ## the rest: jobs killed at every point, faults in every request, simulated histories
	$(BIN)/python -m pytest $(SHARED) -m "deep and not gpu"

lint: $(STAMP) ## ruff, mypy --strict, and which module may import which
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

chaos: $(STAMP) ## kill, tear, flip and race everything; bench/results/*chaos.json and the tables of docs/faults.md
	$(BIN)/python bench/chaos.py --page
	$(BIN)/python bench/lazy_chaos.py --page

mutants: $(STAMP) ## change the code by the hundred: each change fails a test, or docs/mutants.md explains it
	$(BIN)/python bench/mutants.py

clean: ## remove .venv and everything made by tools; data/ stays
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mutants .*_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first and alone, so that pip settles which build of it before all that depends on it.
# `ray --version` last: new releases of click have broken Ray's command line before.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "reembed needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." >&2; \
	  echo "Say which to use: make $(firstword $(MAKECMDGOALS) setup) PYTHON=python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[cpu,serve,demo,dev]"
	$(BIN)/ray --version
	@touch $(STAMP)
