# Two commands for a stranger: `make train` and `make test`. Everything happens in .venv.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(shell find aaren_rl agents envs experiments scripts -type f -not -name '*.pyc') pyproject.toml README.md LICENSE

# One pip at a time in one environment.
.NOTPARALLEL:
.PHONY: train test test-slow check format clean

train: .venv/.installed
	$(BIN)/python scripts/train.py --env hopper-medium --preset quick

# One thread a worker: threads of several workers that wait for each other take twice as long.
test: .venv/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(or $(PYTEST_WORKERS),2) --dist worksteal

test-slow: .venv/.installed-dev
	$(BIN)/pytest -m slow

# mypy starts in a folder without sources, so that what it checks is what was installed. Benchmarks are not installed.
check: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd .venv && bin/mypy --config-file ../pyproject.toml -p aaren_rl
	cd benchmarks && ../.venv/bin/mypy --config-file ../pyproject.toml --cache-dir ../.venv/.mypy_cache .

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Installed, not editable: a file missing from the package fails here, not on a user's machine.
.venv/.installed: .venv/.dependencies $(SOURCES)
	rm -rf build
	$(BIN)/pip install --quiet --no-deps --force-reinstall .
	rm -rf build *.egg-info
	touch $@

.venv/.installed-dev: .venv/.dependencies-dev .venv/.installed
	touch $@

.venv/.dependencies: pyproject.toml constraints.txt | .venv
	@echo "installing aaren-rl and what it needs into .venv (some minutes the first time)"
	$(BIN)/pip install --quiet -c constraints.txt .
	touch $@

.venv/.dependencies-dev: pyproject.toml constraints.txt .venv/.dependencies
	@echo "installing the development tools into .venv"
	$(BIN)/pip install --quiet -c constraints.txt '.[dev]'
	touch $@

.venv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "aaren-rl needs Python 3.10 or newer; pass PYTHON=python3.11, say")'
	$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
