# make demo | test | check | format | docs | docs-links | bench | bench-check | bench-micro.  Each installs first, once, into .venv.
PYTHON ?= python3.11
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.bigjko-installed
PEERS := $(VENV)/.bigjko-peers-installed
SPHINX := $(VENV)/.bigjko-docs-installed
SITE := docs/_build
OUT ?= runs/diabetes-$(shell date +%Y%m%d-%H%M%S)

# One thread a worker: two workers that each start a thread per core only wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

# Threads that spin while they wait cost ten times the time on a machine whose cores are shared: OMP_WAIT_POLICY.
.PHONY: demo test check format docs docs-links install bench bench-check bench-micro
.DEFAULT_GOAL := test

demo: install
	OMP_WAIT_POLICY=passive $(BIN)/bigjko run examples/diabetes.toml --out "$(OUT)"

test: check
	$(PYTEST) -m "not slow"
	$(PYTEST) -m slow

check: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The site, in docs/_build/html: a warning is an error, the notebook is run, and every link inside leads somewhere.
docs: $(SPHINX)
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -E -W --keep-going -d $(SITE)/doctrees docs $(SITE)/html
	$(BIN)/python docs/links.py $(SITE)/html

# Links to other sites, too, which asks the network.
docs-links: docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -b linkcheck -d $(SITE)/doctrees docs $(SITE)/links

# About 25 minutes on 2 idle cores; bench-check more than 5, and bench-micro one.
bench: $(PEERS)
	$(BIN)/python bench/tables.py --record

bench-check: $(PEERS)
	$(BIN)/python bench/tables.py --check

# Without the options of the tests: no shape is checked at a call, and benchmarks are timed.
bench-micro: install
	PYTHONPATH=bench $(BIN)/python -m pytest -o addopts= -o filterwarnings= -o testpaths= bench/test_micro.py

install: $(INSTALLED)

# The constraint keeps torch at the pinned release; .venv is made if it is not there, and reused if it is.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e '.[all,dev]'
	touch $@

$(PEERS): $(INSTALLED)
	$(BIN)/python -m pip install -c constraints.txt -e '.[bench]'
	touch $@

$(SPHINX): $(INSTALLED)
	$(BIN)/python -m pip install -c constraints.txt -e '.[docs]'
	touch $@
