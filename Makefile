# Everything a newcomer needs: `make help`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help install run demo test guards check format lock ci clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(VENV)/installed ## make the virtual environment in .venv

$(VENV)/installed: requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

run: install ## PostgreSQL, Kafka, consumer and relay; Ctrl-C ends all (or: DATABASE_URL=... KAFKA_BOOTSTRAP_SERVERS=... make run)
	@exec $(BIN)/orchestrator run --embedded

demo: install ## 20,000 scenarios, both processes killed on the way, audited
	@exec $(BIN)/orchestrator demo

test: install ## all tests on real servers (TEST_BACKEND=docker|embedded forces one kind)
	$(BIN)/python -m pytest

guards: install ## take the protocol's guards out one by one and see the tests fail
	$(BIN)/python -m tests.guards

check: install ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install ## format, and fix what lint can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: install ## renew requirements*.txt from pyproject.toml
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip-compile $(COMPILE) --output-file requirements.txt pyproject.toml
	$(BIN)/pip-compile $(COMPILE) --all-extras --output-file requirements-dev.txt pyproject.toml
COMPILE := --quiet --upgrade --generate-hashes --strip-extras --no-header --no-emit-index-url --no-emit-trusted-host

ci: check test ## what CI runs

clean: ## remove the environment, the embedded servers' data and caches
	rm -rf $(VENV) .data .pytest_cache .mypy_cache .ruff_cache .hypothesis
