# tritloom: `make demo` writes a story with a simulated accelerator, `make test` checks everything.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

# PyPI's torch for Linux carries gigabytes of CUDA libraries. A CPU wheel from pip's configured
# sources is preferred where there is one; elsewhere: make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

.PHONY: help setup demo test lint types unit results digests equality random fuzz calibrate clean distclean

help:
	@echo "make demo    generate a story on a simulated accelerator (installs what it needs, no PyTorch)"
	@echo "make test    lint, types and all tests (installs the test tools too)"
	@echo "make setup   install everything into $(VENV)"
	@echo "make digests   say which stored results still hold, after a change of the hardware (about ten minutes)"
	@echo "make results   measure again what holds no more of all stored results, JOBS=2 at a time (hours; goes on when interrupted)"
	@echo "make equality  the long run behind docs/results/equality.json (about half an hour)"
	@echo "make random    random models on random machines, all against the integer model (about a quarter of an hour)"
	@echo "make fuzz      100,000 mutated model files and images over all readers (about a quarter of an hour)"
	@echo "make calibrate  measure machines by synthesis and fit the cost model to them (about half an hour)"
	@echo "make clean   remove what was built; distclean removes $(VENV) too"

# The stamps are older than pyproject.toml exactly when something must be installed.
setup: $(VENV)/.stamp-all

$(VENV)/.stamp-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "python3-venv is missing: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@touch $@

$(VENV)/.stamp-demo: pyproject.toml $(VENV)/.stamp-python
	@for tool in g++ make perl; do command -v $$tool >/dev/null \
	  || { echo "$$tool is missing: apt-get install g++ make perl" >&2; exit 1; }; done
	@echo "Installing the generator and the simulator into $(VENV) (300 MB, about a minute)"
	@$(PIP) --no-compile --editable '.[gen,sim]'
	@touch $@

$(VENV)/.stamp-all: pyproject.toml $(VENV)/.stamp-demo
	@echo "Installing the test and bitstream tools into $(VENV) (1.6 GB, a few minutes)"
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[gen,sim,build,test]'
	@$(BIN)/python -m compileall -q $(VENV)/lib/python3*/site-packages/amaranth $(VENV)/lib/python3*/site-packages/numpy
	@touch $@

demo: $(VENV)/.stamp-demo
	@$(BIN)/tritloom run models/stories-4m --prompt "Once upon a time, there was a little fox"

test: setup lint types unit

lint: setup
	$(BIN)/ruff check .

types: setup
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

unit: setup
	$(BIN)/pytest -q -n 2 --dist worksteal

# Emits all machines that have stored results; those whose Verilog is the same stay current.
digests: setup
	$(BIN)/python -m tritloom.sim.stored

JOBS ?= 2
results: setup
	$(BIN)/python -m tritloom.sim.remeasure $(JOBS)

# Several machines, two models, prompts of awkward lengths; runs what holds no more.
equality: setup
	$(BIN)/python -m tritloom.sim.equality

# Random shapes, machines and work; each prints its seed.
random: setup
	cd tests && ../$(BIN)/python random_machine.py

# Mutated files; each has a number that reproduces it: --first N --files 1.
fuzz: setup
	cd tests && ../$(BIN)/python fuzz.py --store

calibrate: setup
	$(BIN)/python -m tritloom.gen.calibrate

clean:
	rm -rf build .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) src/tritloom.egg-info
