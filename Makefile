# `make serve` and `make test` work in a fresh clone: the first run installs everything (cluster/install.sh), and later runs
# start at once.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= serve_config.yaml
BIN = $(VENV)/bin
# torch's build: auto, cpu, cuda, or a build for older drivers such as cu126 (cluster/install.sh)
TORCH ?= auto

RESULTS ?= .bench/results
# consecutive runs of `make chaos`
RUNS ?= 1
# duration of `make soak`
MINUTES ?= 60

# inputs of `make train`: a file of groups, and BEIR folders (training/README.md)
TRAIN_ON ?=
HELD_OUT ?=
TRAINED ?= .bench/training

export RAY_USAGE_STATS_ENABLED = 0

.PHONY: serve tools test test-unit test-engine test-service test-clusters validate client clients pylate chaos soak check docs bench train \
	format clean

serve: $(VENV)/.installed ## install, then serve on http://127.0.0.1:8000
	$(BIN)/rerank-service serve $(CONFIG)

tools: $(VENV)/.installed-tools ## install what batches, evaluation and benchmarks need: the extra `tools`

test: $(VENV)/.installed-dev ## install, then run the tests, or those in PYTEST="..."
ifdef PYTEST
	$(BIN)/python -m pytest $(PYTEST)
else
	@echo "Running three groups of tests at the same time (ten to eighteen minutes on two cores)"
	@$(MAKE) --jobs 3 --keep-going $(if $(filter output-sync,$(.FEATURES)),--output-sync) test-service test-unit test-engine
endif

# The service tests often wait for Ray, so that the other two groups have the cores.
test-service: $(VENV)/.installed-dev ## run the tests of a service on Ray
	$(BIN)/python -m pytest tests/service

test-unit: $(VENV)/.installed-dev ## run the unit tests, except those of the engine
	$(BIN)/python -m pytest tests/unit --ignore tests/unit/engine

test-engine: $(VENV)/.installed-dev ## run the tests of the engine, of the GPU path without a GPU, and of the page
	$(BIN)/python -m pytest tests/unit/engine tests/gpu_less tests/page

test-clusters: $(VENV)/.installed-dev ## run the tests that start and stop whole services and clusters; about six minutes
	$(BIN)/python -m pytest -m cluster $(PYTEST)

validate: $(VENV)/.installed-dev ## check the Kubernetes manifests, or those in MANIFESTS="FILE..."
	$(BIN)/python -m cluster.validate $(MANIFESTS)

pylate: $(VENV)/.installed-dev ## make the ColBERT checkpoints of the tests, and record pylate's numbers for them anew
	$(BIN)/python -m tests.colbert make .bench/colbert
	$(PYTHON) -m venv .bench/pylate
	.bench/pylate/bin/python -m pip install --quiet torch==2.13.0 transformers==5.3.0 sentence-transformers==5.3.0 \
		pandas ujson scipy fastkmeans accelerate datasets
	.bench/pylate/bin/python -m pip install --quiet --no-deps pylate==1.6.0
	.bench/pylate/bin/python tests/colbert.py record .bench/colbert tests/unit/engine/kinds/pylate.json

client: $(BIN)/python ## build the Python client alone as a wheel in dist/
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
		cp -R rerank_service/client/. LICENSE "$$folder" && \
		$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist "$$folder"
	@ls dist/rerank_service_client-*.whl

clients: $(VENV)/.installed-dev ## run other vendors' clients against a running service; installs the clients once, about 3 GB
	$(BIN)/python -m tests.clients

chaos: $(VENV)/.installed-dev ## break replicas, ingresses, the controller, a node and the head under load; 20 minutes per run
	$(BIN)/python -m tests.load --runs $(RUNS)

soak: $(VENV)/.installed-tools ## send mixed traffic for an hour and record memory, descriptors and metric series, which must stay flat
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) --json $(RESULTS)/soak.json

check: $(VENV)/.installed-dev docs ## check lint, format, types, import contracts and documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(VENV)/.installed-docs ## build the documentation as a site in site/; fails on broken links
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky -q -b html -c docs/site . site
	@echo "open site/index.html or: $(BIN)/python -m http.server --bind 127.0.0.1 --directory site 8080"

bench: $(VENV)/.installed-tools ## measure the engines, the service and other servers, one after the other; over an hour on two cores
	$(BIN)/rerank-service bench engine
	$(BIN)/python -m benchmarks.service --json $(RESULTS)/service-cpu.json
	$(BIN)/python -m benchmarks.peers --json $(RESULTS)/peers-cpu.json $(PEERS)

train: $(VENV)/.installed-tools ## train a candidate for a better embedded default (training/README.md); about an hour on two cores
	@test -n '$(TRAIN_ON)' -a -n '$(HELD_OUT)' || { echo "make train TRAIN_ON=groups.jsonl.gz HELD_OUT='FOLDER ...'"; exit 2; }
	$(BIN)/python -m training $(TRAIN_ON) $(TRAINED)/groups
	$(BIN)/rerank-service tune all-MiniLM-L6-v2 --train $(TRAINED)/groups/train --dev $(TRAINED)/groups/dev \
		$(HELD_OUT:%=--held-out %) --rate 0.001 --output $(TRAINED)/tuned

format: $(VENV)/.installed-dev ## fix and format the code as `make check` requires
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the installation, built wheels and the site
	rm -rf $(VENV) dist site

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (takes about a minute, the first time only)"
	@PYTHON=$(PYTHON) cluster/install.sh --editable $(VENV) $(TORCH)
	@touch $@

# the base installation with an extra: dev, tools or docs
$(VENV)/.installed-%: pyproject.toml constraints.txt
	@echo "Installing into $(VENV) with the extra '$*' (takes about a minute, the first time only)"
	@PYTHON=$(PYTHON) cluster/install.sh --editable $(VENV) $(TORCH) $*
	@touch $@ $(VENV)/.installed
