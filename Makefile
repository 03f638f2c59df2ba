.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
# Where pip finds the CPU build of PyTorch; empty takes the registry's default build.
TORCH_INDEX ?=

.PHONY: help quickstart test test-all test-gpu test-kubernetes promtool lint format reference docs assets clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/pip install --quiet --editable ".[dev]"
	@touch $@

quickstart: $(VENV)/installed ## Install into .venv and train the embedded miniature for a first look, on Ray
	$(BIN)/tempflow train shapes_tempflow_budget name=quickstart-$$(date +%Y%m%d-%H%M%S)

# Tests that start no Ray run in two processes. The others start processes of their own and use both cores already.
test: $(VENV)/installed-dev lint promtool ## Lint, types and the test suite
	$(BIN)/pytest -n 2 --durations=20 tests/unit tests/parity tests/gpu
	$(BIN)/pytest --durations=20 tests/integration tests/chaos

test-all: $(VENV)/installed-dev lint promtool ## Also the slow and the chaos tests
	$(BIN)/pytest -n 2 --durations=20 -m "not gpu" tests/unit tests/parity tests/gpu
	$(BIN)/pytest --durations=20 -m "not gpu" tests/integration tests/chaos

promtool:
	@command -v promtool > /dev/null || echo "promtool is missing, so a test is skipped; apt install prometheus brings it"

test-gpu: $(VENV)/installed-dev ## Tests that need a CUDA device
	$(BIN)/pytest -m gpu tests/gpu tests/unit

# IMAGE is an image of deploy/Dockerfile that the cluster's nodes can pull. The cluster is the one that kubectl talks to.
test-kubernetes: $(VENV)/installed-dev ## Tests on a Kubernetes cluster with KubeRay: make test-kubernetes IMAGE=…
	TEMPFLOW_TEST_IMAGE=$(IMAGE) $(BIN)/pytest -m kubernetes --durations=0 tests/kubernetes

lint: $(VENV)/installed-dev ## Style, format and types, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed-dev ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

reference: $(VENV)/installed ## Write the reference pages of docs/ again, from the settings and the command line
	$(BIN)/python -m docs.build

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/pip install --quiet --editable ".[docs]"
	@touch $@

docs: $(VENV)/installed-docs reference ## Build the documentation as a site, build/site/index.html, which needs no network to read
	$(BIN)/zensical build --strict

assets: $(VENV)/installed ## Rebuild the miniature's weights from a seed (about an hour and a half on two cores)
	$(BIN)/python -m system.miniature.build

clean: ## Remove the environment and caches; runs/ stays
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
