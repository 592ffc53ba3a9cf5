# `make help` lists the targets. Everything runs from $(VENV), which is built when missing or when its inputs changed.
VENV ?= .venv
PYTHON ?= python3
BIN := $(abspath $(VENV))/bin
WORKERS ?= 2
OLDEST ?= .venv-oldest
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-oldest lint format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## build $(VENV) with everything (6 GB; VENV=path puts or finds it elsewhere)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@inputs="$$(cat pyproject.toml constraints.txt | cksum)"; \
	if [ "$$(cat $(VENV)/.inputs 2>/dev/null)" != "$$inputs" ]; then \
		echo "Installing into $(VENV) (a few minutes)"; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' \
			&& echo "$$inputs" > $(VENV)/.inputs && echo "$(CURDIR)" > $(VENV)/.project; \
	elif [ "$$(cat $(VENV)/.project 2>/dev/null)" != "$(CURDIR)" ]; then \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e . && echo "$(CURDIR)" > $(VENV)/.project; \
	fi

demo: setup ## train six tasks on rendered scenes (three minutes on two cores), then test
	$(BIN)/python -m mtl_lightning fit --config configs/scenes.yaml
	$(BIN)/python -m mtl_lightning test --config configs/scenes.yaml

test: lint ## ruff, mypy and the tests (not the slow ones)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

test-all: lint ## the slow tests too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "slow or not slow"

test-oldest: ## the tests on the lowest versions of pyproject.toml, in an environment of their own ($(OLDEST))
	@test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	@inputs="$$(cat pyproject.toml constraints-oldest.txt | cksum)"; \
	if [ "$$(cat $(OLDEST)/.inputs 2>/dev/null)" != "$$inputs" ]; then \
		echo "Installing into $(OLDEST) (a few minutes)"; \
		$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e '.[test]' \
			&& echo "$$inputs" > $(OLDEST)/.inputs; \
	fi
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n $(WORKERS)

lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove caches and the environment; runs stay
	rm -rf .venv .venv-oldest .pytest_cache .mypy_cache .ruff_cache *.egg-info build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
