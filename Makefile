# Plain make and Python 3.11 or newer are enough; everything else goes into $(VENV).
#
#   make env    build the environment (other targets do it when needed)
#   make demo   the main job end to end on embedded real data
#   make test   lint, format, types, tests
#   make bench  speed against peers, written to benchmarks/results/
#   make docs   the documentation, written to site/
#   make clean  remove what can be built again (the environment and your runs stay)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# What pip is asked for as torch. To choose another build, put pip's own options here, for example
#   make env TORCH="torch==2.13.0 --index-url ADDRESS"
TORCH ?= torch==2.13.0

# Test processes, one thread each.
WORKERS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

ENV := $(VENV)/.env-stamp
DOCS := $(VENV)/.docs-stamp

.PHONY: env demo test bench docs clean

env: $(ENV)

# torch goes first and alone, so that nothing else decides which build of it comes.
$(ENV): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is older than Python 3.11; name another one: make env PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

demo: $(ENV)
	$(BIN)/consilience demo

test: $(ENV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(ONE_THREAD) $(BIN)/pytest -n $(WORKERS)

bench: $(ENV)
	mkdir -p benchmarks/results
	$(BIN)/consilience bench evaluation -o benchmarks/results/evaluation.json
	$(BIN)/consilience bench matching -o benchmarks/results/matching.json
	$(BIN)/consilience bench romo -o benchmarks/results/romo.json
	$(BIN)/consilience bench views -o benchmarks/results/views.json
	$(BIN)/consilience bench sgraf -o benchmarks/results/sgraf.json

docs: $(DOCS)
	$(BIN)/zensical build --clean --strict

$(DOCS): $(ENV)
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	@touch $@

clean:
	rm -rf build dist site .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
