# Set-up happens by itself: every target that needs the virtual environment makes it first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
WORKERS ?= 2

.PHONY: help demo test lint lint-deploy types bench bench-swarm bench-peers bench-budgets mutants soak nightly bundle fleet-test fleet-test-short clean

help:            ## what there is
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(STAMP): pyproject.toml
	@sh tests/setup/system.sh
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "spore needs Python 3.11 or later; set PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)   ## six real agents, killed and restarted; every promise checked from outside
	$(BIN)/spore demo

test: $(STAMP)   ## all tests
	$(BIN)/pytest -n $(WORKERS) -q

lint: $(STAMP)   ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy --strict
	$(BIN)/mypy

lint-deploy: $(STAMP) ## the playbooks: ansible-lint's strictest profile
	cd deploy/ansible && PATH="$(CURDIR)/$(BIN):$$PATH" ansible-lint --offline --profile production

bundle: $(STAMP) ## what hosts without internet are installed from: dist/spore-bundle.tar.gz
	@$(BIN)/python deploy/bundle.py $(BUNDLE)

fleet-test: $(STAMP) ## the roll-out, on hosts of its own with systemd and sshd (root)
	$(BIN)/python -m tests.fleet full

fleet-test-short: $(STAMP) ## what CI runs of it: three hosts, installed, upgraded under load, a bad release
	$(BIN)/python -m tests.fleet short

bench: $(STAMP)  ## figures: pytest-benchmark, then whole agents
	$(BIN)/pytest -q -p no:xdist tests/bench_*.py --benchmark-only --benchmark-columns=min,median,max,rounds
	$(BIN)/python tests/bench_agents.py
	$(BIN)/python tests/bench_agreement.py

bench-swarm: $(STAMP) ## one to many over 200 Mbit/s each, in network namespaces (root); SWARM="push many" for a part
	$(BIN)/python tests/bench_swarm.py $(SWARM)

bench-budgets: $(STAMP) ## three priorities on one uplink of 200 Mbit/s, then a critical one (root: network namespaces)
	$(BIN)/python tests/bench_budgets.py

bench-peers: $(STAMP) ## our data path beside rsync, nginx + curl, aria2 and Syncthing; PEERS="large --rounds 1" for less
	$(BIN)/python tests/bench_peers.py $(PEERS)

mutants: $(STAMP) ## break the code on purpose; every breakage must be caught
	$(BIN)/python tests/mutants/run.py

soak: $(STAMP)   ## the long forms: 200 kills, 50 database versions, many seeds
	$(BIN)/pytest -n $(WORKERS) -q -m soak

nightly: $(STAMP) ## thousands of seeds; fleets of 1,000 and 10,000 nodes; the figures of agreement
	$(BIN)/python tests/nightly.py

clean:           ## remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
