# Everything a newcomer needs: `make help`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUPPLY := $(VENV)/supply
.DEFAULT_GOAL := help
.PHONY: help install run demo image up down dist test test-fast guards model faults chaos bench bench-quick bench-check bench-peers check format lock lock-jars lock-images check-images sbom audit-deps ci clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(VENV)/installed ## create the virtual environment in .venv

$(VENV)/installed: requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

run: install ## PostgreSQL, Kafka, consumer and relay; Ctrl-C ends all (or: DATABASE_URL=... KAFKA_BOOTSTRAP_SERVERS=... make run)
	@exec $(BIN)/orchestrator run --embedded

demo: install ## 20,000 commands while both processes are killed; then an audit
	@exec $(BIN)/orchestrator demo

image: ## build the container image vap-orchestrator
	sed '$(UNPINNED)' Dockerfile | DOCKER_BUILDKIT=1 docker build $(DOCKER_BUILD_ARGS) --tag vap-orchestrator \
		--build-arg VERSION="$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" \
		--build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null || echo unknown)" --file - .
# BY_TAG=1: without the digests, where the images are only known by their names.
UNPINNED := $(if $(BY_TAG),s/@sha256:[0-9a-f]*//)

up: image deploy/.env ## PostgreSQL, Kafka, consumer, relay and Prometheus in containers (CONSUMERS=2 RELAYS=2: two of each)
	sed '$(UNPINNED)' deploy/compose.yaml | $(COMPOSE) up --detach --wait --scale consumer=$(CONSUMERS) --scale relay=$(RELAYS)

deploy/.env: # random passwords, for this user alone
	@umask 077; for login in POSTGRES OWNER CONSUMER RELAY; do \
		echo "$${login}_PASSWORD=$$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')"; \
	done >$@.new && mv $@.new $@

down: deploy/.env ## end those containers; the data stays in volumes
	$(COMPOSE) down <deploy/compose.yaml
COMPOSE := docker compose --project-directory deploy --file -
CONSUMERS ?= 1
RELAYS ?= 1

dist: install ## build wheel and sdist of the library in build/dist
	cd outbox && ../$(BIN)/python -m hatchling build -d ../build/dist

test: install ## all tests on real servers (TEST_BACKEND=docker|embedded forces one kind, WORKERS=1 one process)
	$(BIN)/python -m pytest -n $(WORKERS)
# Tests wait more than they work: on 2 cores 4 of them at once take half the time of 2.
WORKERS ?= 4

test-fast: install ## what needs no server, in 20 seconds: unit tests and the layering of imports
	$(BIN)/python -m pytest -n 2 tests/unit

guards: install ## remove the protocol's guards one by one and check that tests fail
	$(BIN)/python -m tests.guards

model: install ## check the formal models of the protocol, and each guard's removal (BOUND=small: 5 minutes)
	$(BIN)/python -m tests.model $(BOUND:%=--%)

faults: install ## every row of the fault matrix, slow ones too, then the guards; prints the matrix
	@$(BIN)/python -m pytest --faults -n $(WORKERS); faults=$$?; $(BIN)/python -m tests.guards && exit $$faults

chaos: install ## 100,000 commands under 200 SIGKILLs and other faults at random (SEED=7 repeats one, SCENARIOS= KILLS= shorten it)
	@$(BIN)/python -m tests.chaos $(SEED:%=--seed %) $(SCENARIOS:%=--scenarios %) $(KILLS:%=--kills %)

bench: install ## measure everything beside the machine's limits, and compare with the targets (15 minutes; report in bench/results)
	@$(BIN)/python -m bench $(ROUNDS:%=--rounds %) $(ONLY:%=--only %)

bench-quick: install ## the same with fewer rows, in 3 minutes (report in build/bench)
	@$(BIN)/python -m bench --quick --output build/bench

bench-check: install ## only the ratios that a change could spoil, in 3 minutes (report in build/bench)
	@$(BIN)/python -m bench --check --output build/bench

bench-peers: install ## the same beside a naive service, a common polling outbox and Debezium (report in bench/results/peers)
	@$(BIN)/python -m bench --peers $(ROUNDS:%=--rounds %) $(ONLY:%=--only %) --output bench/results/peers

check: install ## format, lint and types; the Dockerfile too
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

format: install ## format, and fix what lint can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(SUPPLY)/installed: requirements-supply.txt
	$(PYTHON) -m venv $(SUPPLY)
	$(SUPPLY)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-supply.txt
	@touch $@

lock: $(SUPPLY)/installed ## update requirements*.txt from pyproject.toml (UPGRADE= keeps the versions that still fit)
	$(COMPILE) --extra embedded --extra test --extra bench --extra otel --extra dev --output-file requirements-dev.txt pyproject.toml
	$(COMPILE_AS_DEV) --output-file requirements.txt pyproject.toml
	$(COMPILE_AS_DEV) --extra embedded --output-file requirements-embedded.txt pyproject.toml
	$(COMPILE_AS_DEV) --extra supply --output-file requirements-supply.txt pyproject.toml
	$(COMPILE_AS_DEV) --only-build-deps --build-deps-for wheel --output-file requirements-build.txt pyproject.toml
# With the oldest Python: what only that one needs, a newer one leaves out.
COMPILE = $(SUPPLY)/bin/pip-compile --quiet $(UPGRADE) --generate-hashes --allow-unsafe --strip-extras --no-header --no-emit-options
COMPILE_AS_DEV = $(COMPILE) --constraint requirements-dev.txt
UPGRADE ?= --upgrade

lock-jars: install ## update the SHA-256 of Kafka's jars from Maven Central (a new version: first write the lock's first line)
	rm -rf build/maven
	M2_REPO=build/maven $(BIN)/python -m testkit.lock_jars $(JARS)
JARS := $(wildcard orchestrator/embedded/*.lock bench/peers/*.lock)

lock-images: ## update the digests of the images in Dockerfile and compose file, where their registry answers
	@for image in $$(sed -nE 's/$(NAMED).*/\2/p' $(PINNED) | sort -u); do \
		digest=$$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$$image") || exit 1; \
		echo "$$image@$$digest"; \
		sed -i -E "s|$$image(@sha256:[0-9a-f]+)?( \|$$)|$$image@$$digest\2|" $(PINNED); \
	done

check-images: ## fail if one of them has no digest
	@! sed -E '/@sha256:[0-9a-f]{64}( |$$)/d' $(PINNED) | grep -E '$(NAMED)' || { \
		echo "these images are named without a digest: run make lock-images" >&2; exit 1; }
PINNED := Dockerfile deploy/compose.yaml
NAMED := ^(FROM| +image:) ([^ @]+:[^ @]+)

sbom: $(SUPPLY)/installed ## write the components of the image to build/sbom.cdx.json (CycloneDX)
	@mkdir -p build
	@# -W: the tool warns that a requirements file does not say who needs whom.
	$(SUPPLY)/bin/python -W ignore -m cyclonedx_py requirements --pyproject pyproject.toml --output-reproducible --validate \
		--output-file build/sbom.cdx.json requirements.txt

audit-deps: $(SUPPLY)/installed ## check all locked packages for known vulnerabilities
	@# --strict: a package that the service does not know is a failure, not a pass.
	@$(SUPPLY)/bin/pip-audit --strict --require-hashes --disable-pip --progress-spinner off $(AUDITED:%=--requirement %) || { \
		echo "audit-deps: a vulnerability, or the service could not be asked; the last lines above say which" >&2; exit 1; }
AUDITED := $(wildcard requirements*.txt)

ci: check test ## check and test: what every push must pass

clean: ## remove the environment, the embedded servers' data and caches
	rm -rf $(VENV) .data build .pytest_cache .mypy_cache .ruff_cache .hypothesis
