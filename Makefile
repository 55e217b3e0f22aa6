# `make serve` and `make test` do everything from a fresh clone; the second time they start at once.
PYTHON ?= python3
VENV ?= .venv
CONFIG ?= serve_config.yaml
BIN = $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

RESULTS ?= .bench/results
# of `make chaos`, in a row
RUNS ?= 1
# of `make soak`
MINUTES ?= 60

# of `make train`: a file of groups, and BEIR folders (training/README.md)
TRAIN_ON ?=
HELD_OUT ?=
MIX ?= 0.75
TRAINED ?= .bench/training

export RAY_USAGE_STATS_ENABLED = 0

.PHONY: serve test test-clusters clients chaos soak check bench train format clean

serve: $(VENV)/.installed ## install, then serve on http://127.0.0.1:8000
	$(BIN)/rerank-service serve $(CONFIG)

test: $(VENV)/.installed-dev ## install, then run the tests
	$(BIN)/python -m pytest $(PYTEST)

test-clusters: $(VENV)/.installed-dev ## services and clusters started and ended as a whole; about five minutes
	$(BIN)/python -m pytest -m cluster $(PYTEST)

clients: $(VENV)/.installed-dev ## every vendor's own client against a running service; installs them once, about 1 GB
	$(BIN)/python -m tests.clients

chaos: $(VENV)/.installed-dev ## break replicas, ingresses, the controller, a node and the head under load; fifteen minutes a run
	$(BIN)/python -m tests.load --runs $(RUNS)

soak: $(VENV)/.installed-bench ## an hour of mixed traffic: memory, descriptors and metric series must stay flat
	@mkdir -p $(RESULTS)
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) --json $(RESULTS)/soak.json

check: $(VENV)/.installed-dev ## lint, format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/.installed-bench ## engines, the service, then its peers side by side; over an hour on two cores
	@mkdir -p $(RESULTS)
	$(BIN)/rerank-service bench engine
	$(BIN)/python -m benchmarks.service --json $(RESULTS)/service-cpu.json
	$(BIN)/python -m benchmarks.peers --json $(RESULTS)/peers-cpu.json $(PEERS)

train: $(VENV)/.installed-bench ## a candidate for a better embedded default (training/README.md); about an hour on two cores
	@test -n '$(TRAIN_ON)' -a -n '$(HELD_OUT)' || { echo "make train TRAIN_ON=groups.jsonl.gz HELD_OUT='FOLDER ...'"; exit 2; }
	$(BIN)/python -m training train $(TRAIN_ON) late --out $(TRAINED)
	$(BIN)/python -m training train $(TRAIN_ON) later --start $(TRAINED)/late.safetensors --out $(TRAINED)
	$(BIN)/python -m training choose $(TRAIN_ON) later --out $(TRAINED)
	$(BIN)/python -m training judge $(HELD_OUT) --model default --model later@$(MIX) --out $(TRAINED)
	$(BIN)/python -m training compare later@$(MIX) --without nq-heldout --out $(TRAINED)

format: $(VENV)/.installed-dev ## rewrite the code the way `make check` wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what this file made
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; give one with: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (a minute or a few, the first time only)"
	$(PIP_INSTALL) --editable '.[embedded]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (a minute or a few, the first time only)"
	$(PIP_INSTALL) --editable '.[embedded,dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV) (a minute or a few, the first time only)"
	$(PIP_INSTALL) --editable '.[embedded,bench]'
	@touch $@ $(VENV)/.installed
