# Everything runs in .venv, made from the locks. Needs only Python 3.11 or later, and the network the first time.
#   make run          answer the example on the embedded stack and print the cost report
#   make test         the whole test suite, against a real Kafka
#   EMBED=0           leaves out the embedder (gigabytes of torch on Linux): the semantic tier is then off
SHELL := /bin/sh
.DEFAULT_GOAL := help

EMBED ?= 1
SOUND = import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c '$(SOUND)' >/dev/null 2>&1 && { echo $$p; break; }; done)
BIN := .venv/bin
LOCK := $(if $(filter 0,$(EMBED)),requirements.lock,requirements-embed.lock)
SETUP := .venv/done-$(basename $(LOCK))
UV = $(BIN)/uv pip
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
# pip tells each of its retries: what failed is shown, and not how often.
ERRORS = .venv/install-errors
SHOW_ERRORS = grep -v '^WARNING: Retrying' $(ERRORS) >&2
# uv does not know pip's settings; whoever has set them has set them for both.
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
LINKS = $(if $(filter-out 0 false no off,$(PIP_NO_INDEX)),--no-index) \
	$(foreach place,$(PIP_FIND_LINKS),$(if $(findstring ://,$(place))$(wildcard $(place)),--find-links $(place)))
define WAYS_ROUND

What $(LOCK) names could not be installed: the lines above say which package, and why. Nothing was started.
Where its index can't be reached, each of these is a way round, for pip and uv alike:

    PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels make $(MAKECMDGOALS)
        a folder of wheels, filled by the same Python on a machine that is like this one:
        python3 -m pip download -d wheels -r requirements-uv.lock && python3 -m pip download -d wheels -r $(LOCK)
    PIP_INDEX_URL=ADDRESS make $(MAKECMDGOALS)
        a mirror (its certificate: PIP_CERT, and SSL_CERT_FILE for uv)
    HTTPS_PROXY=ADDRESS make $(MAKECMDGOALS)
        a proxy

EMBED=0 leaves out the embedder, by far the largest part. What is there already is not fetched again.
endef
export WAYS_ROUND
# PyPI's own resolver never runs here: the locks name every package with its hashes.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	--no-emit-index-url --no-emit-find-links $(UPGRADE)

.PHONY: help setup run test faults lint format types imports build check-wheel examples lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(SETUP) ## .venv with everything that the locks name

.venv/done-tools: requirements-uv.lock
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or later with venv was found. Install one (Debian and Ubuntu: apt install python3-venv)," \
		"or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP_INSTALL) --require-hashes --only-binary :all: -r requirements-uv.lock 2>$(ERRORS) \
		|| echo "uv can't be installed here: going on with pip, which is slower"
	@touch $@

# A package that is asked for by hash can't be another one than was tested.
$(SETUP): $(LOCK) pyproject.toml .venv/done-tools
	@echo "Installing what $(LOCK) names into .venv"
	@{ if $(BIN)/uv --version >/dev/null 2>&1; then \
		$(UV) install --quiet --compile-bytecode --python $(BIN)/python --require-hashes $(LINKS) -r $(LOCK) \
		&& $(UV) install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e . ; \
	else \
		$(PIP_INSTALL) --require-hashes -r $(LOCK) && $(PIP_INSTALL) --no-deps --no-build-isolation -e . ; \
	fi; } 2>$(ERRORS) || { $(SHOW_ERRORS); echo "$$WAYS_ROUND" >&2; exit 1; }
	@touch $@

run: $(SETUP) ## answer examples/support.jsonl on the embedded stack, then print the cost report
	$(BIN)/inference-engine run examples/support.jsonl -o answers.jsonl
	$(BIN)/inference-engine report

test: $(SETUP) ## the whole test suite, against a real Kafka (make test ARGS="-k exact")
	$(BIN)/python -m pytest $(ARGS)

faults: $(SETUP) ## break everything and print what was lost (make faults ARGS="--seeds 100 --only random-kills")
	$(BIN)/python -m tests.faults $(ARGS)

lint: $(SETUP) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(SETUP) ## let ruff write
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(SETUP) ## mypy, strict
	$(BIN)/mypy

imports: $(SETUP) ## import-linter: a room imports only the rooms below it
	$(BIN)/lint-imports --no-cache

examples: $(SETUP) ## run every program of examples/ against an embedded stack of its own
	$(BIN)/python examples/run_all.py

build: $(SETUP) ## wheel and sdist in dist/
	@rm -rf dist
	$(BIN)/python -m hatchling build

check-wheel: build ## install the wheel elsewhere and import every room from there
	@rm -rf build/wheel
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-index --target build/wheel dist/*.whl
	$(BIN)/python -P .ci/check_wheel.py build/wheel

lock: .venv/done-tools ## compile the locks from pyproject.toml (make lock UPGRADE=--upgrade)
	$(COMPILE) pyproject.toml --group dev --extra embed --extra onnx -o requirements-embed.lock
	$(COMPILE) pyproject.toml --group dev -c requirements-embed.lock -o requirements.lock
	echo 'uv' | $(COMPILE) - -o requirements-uv.lock

clean: ## remove .venv, builds and caches; the data folder stays (inference-engine down stops what runs)
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
