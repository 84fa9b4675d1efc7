# tritloom: `make demo` writes a story with a simulated accelerator, `make test` checks everything.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

# PyPI's torch for Linux carries gigabytes of CUDA libraries. A CPU wheel from pip's configured
# sources is preferred where there is one; elsewhere: make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

# Pythons that the plain package is also tested with, where they are installed (make plain-others): the oldest and the newest.
OLDEST := python3.10
NEWEST := python3.15 python3.14 python3.13 python3.12

# What `make demo` runs: make demo MODEL=models/stories-4m-g128
MODEL ?= models/stories-4m

# The tests start hundreds of Python processes, each of which would compile all sources again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo board-demo test quick briefly lint types unit formal flows plain plain-others same-python results digests boards ledger equality random fuzz link-faults upload mutants netlist calibrate clean \
  distclean

help:
	@echo "make demo    generate a story on a simulated accelerator (installs what it needs, no PyTorch)"
	@echo "make board-demo  the same at the simulated pins of an ULX3S: UART, SDRAM (two minutes)"
	@echo "make test    lint, types and all tests but the proofs and the longest flows (installs the test tools too)"
	@echo "make quick   what is done every few minutes: lint, types, and the tests that compile no simulation (a minute and a half)"
	@echo "make formal  prove properties of the hardware for all time (about two minutes; make test leaves it out)"
	@echo "make flows   what make test leaves out for its time: FuseSoC's simulation and synthesis, boards on lines with errors, more of the same"
	@echo "make plain   test the package without generator and simulator, from its wheel (PYTHON=python3.10: with that one)"
	@echo "make plain-others  the same on the oldest and the newest Python that are installed (about five minutes each)"
	@echo "make setup   install everything into $(VENV)"
	@echo "make digests   say which stored results still hold, after a change of the hardware (about ten minutes)"
	@echo "make boards    place and route whole boards again, and simulate one at its pins, where that holds no more (ten minutes each)"
	@echo "make ledger    write docs/results.md from docs/results/"
	@echo "make results   measure again what holds no more of all stored results, JOBS=2 at a time (hours; goes on when interrupted)"
	@echo "make equality  the long run behind docs/results/equality.json (about half an hour)"
	@echo "make random    random models on random machines, all against the integer model (about a quarter of an hour)"
	@echo "make fuzz      100,000 mutated model files and images over all readers (about a quarter of an hour)"
	@echo "make link-faults  a million faults on the line between host and board (some minutes)"
	@echo "make upload    how long the image of stories-27m takes over the UART (half a minute)"
	@echo "make mutants   single lines of the hardware changed, each must fail its test; runs what has no stored result (half an hour)"
	@echo "make netlist   units, a whole machine and whole boards as synthesised netlists, under the tests of the RTL (half an hour)"
	@echo "make calibrate  measure machines by synthesis and fit the cost model to them (about half an hour)"
	@echo "make clean   remove what was built; distclean removes $(VENV) too"

# The stamps are older than pyproject.toml exactly when something must be installed.
setup: $(VENV)/.stamp-all

VERSION := import sys; print("%d.%d" % sys.version_info[:2])
OFFLINE := echo "the packages could not be installed, see above: is there a network, or a mirror in pip's configuration?" >&2

# An environment that another Python has made is not taken instead of the one that was asked for.
same-python:
	@[ "$(origin PYTHON)" = file ] || [ ! -e $(VENV)/bin/python ] \
	  || [ "`$(PYTHON) -c '$(VERSION)'`" = "`$(BIN)/python -c '$(VERSION)'`" ] \
	  || { echo "$(VENV) is of Python `$(BIN)/python -c '$(VERSION)'`, not of $(PYTHON): make distclean first" >&2; exit 1; }

$(VENV)/.stamp-python: | same-python
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: apt-get install python3 python3-venv, or make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Python 3.10 or newer is needed, $(PYTHON) is older: make PYTHON=python3.10 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { echo "python3-venv is missing: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@touch $@

$(VENV)/.stamp-demo: pyproject.toml $(VENV)/.stamp-python
	@for tool in g++ make perl; do command -v $$tool >/dev/null \
	  || { echo "$$tool is missing: apt-get install g++ make perl" >&2; exit 1; }; done
	@echo "Installing the generator and the simulator into $(VENV) (460 MB, about a minute)"
	@$(PIP) --no-compile --editable '.[gen,sim]' || { $(OFFLINE); exit 1; }
	@touch $@

$(VENV)/.stamp-all: pyproject.toml $(VENV)/.stamp-demo
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "The tests need Python 3.11 or newer: make distclean, then make PYTHON=python3.11 test" >&2; exit 1; }
	@echo "Installing the test and bitstream tools into $(VENV) (2 GB, a few minutes)"
	@$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[gen,sim,build,test]' || { $(OFFLINE); exit 1; }
	@$(BIN)/python -m compileall -q $(VENV)/lib/python3*/site-packages/amaranth $(VENV)/lib/python3*/site-packages/numpy
	@touch $@

demo: same-python $(VENV)/.stamp-demo
	@$(BIN)/tritloom run $(MODEL) --prompt "Once upon a time, there was a little fox"

board-demo: same-python $(VENV)/.stamp-demo
	@$(BIN)/tritloom run models/stories-260k --board ulx3s --backend uart --port sim --tokens 32

# pyright takes one core only and leaves the other to the tests.
test: same-python setup lint
	@$(MAKE) --no-print-directory -j 2 types unit

# Tests that compile a simulation or take long are marked, or fail here (tests/conftest.py).
quick: same-python setup lint
	@$(MAKE) --no-print-directory -j 2 types briefly

briefly: setup
	$(BIN)/pytest -q --quick -p no:xdist

lint: setup
	$(BIN)/ruff check .

types: setup
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

# Not in `unit`: they take about five minutes.
flows: setup
	$(BIN)/pytest -q -m long

formal: setup
	$(BIN)/pytest -q -n 2 --dist worksteal -m formal

unit: setup
	$(BIN)/pytest -q -n 2 --dist worksteal -m "not formal and not long"

# Emits all machines that have stored results; those whose Verilog is the same stay current.
digests: setup
	$(BIN)/python -m tritloom.sim.bench.current

# Of sim/bench/boards.py's rows those whose Verilog, pins or tools are others now; projections always.
boards: setup
	$(BIN)/python -m tritloom.sim.bench.boards

ledger: setup
	$(BIN)/python -m tritloom.sim.bench.ledger

JOBS ?= 2
results: setup
	$(BIN)/python -m tritloom.sim.bench.remeasure $(JOBS)

# An environment a version; the package itself is built and installed each time, not linked.
plain:
	@version=`$(PYTHON) -c '$(VERSION)'` && at=build/plain/$$version && if [ ! $$at/.stamp -nt pyproject.toml ]; then \
	  rm -rf $$at && mkdir -p build/plain && $(PYTHON) -m venv $$at \
	  && $$at/bin/python -m pip install -qq --disable-pip-version-check 'setuptools>=77' '.[plain]' || { $(OFFLINE); exit 1; }; touch $$at/.stamp; fi; \
	  rm -rf build/lib build/bdist.* \
	  && $$at/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall . \
	  && echo "The plain package on Python $$version" && $$at/bin/python -m pytest -q -p no:cacheprovider tests

plain-others:
	@for wanted in "$(OLDEST)" "$(NEWEST)"; do found=; for name in $$wanted; do \
	    for python in $$name $$HOME/.pyenv/versions/*/bin/$$name; do \
	      if $$python -c 'import venv, ensurepip' 2>/dev/null; then found=$$python; break 2; fi; done; done; \
	  if [ "$$found" ]; then $(MAKE) --no-print-directory plain PYTHON=$$found || exit 1; \
	  else echo "skipped: the plain package was not tested on $$wanted, which is not installed"; fi; done

# Several machines, two models, prompts of awkward lengths; runs what holds no more.
equality: setup
	$(BIN)/python -m tritloom.sim.check.equality

# Random shapes, machines and work; each prints its seed.
random: setup
	$(BIN)/python -m tritloom.sim.check.random_machines

# Mutated files; each has a number that reproduces it: --first N --files 1.
fuzz: setup
	cd tests && ../$(BIN)/python fuzz.py --store

# A run has a number that reproduces it: --first N --faults 1.
link-faults: setup
	cd tests && ../$(BIN)/python link_faults.py --store

# In the line's own time.
upload: setup
	cd tests && PYTHONPATH=../src ../$(BIN)/python upload.py --store

# Mutations of rtl/, JOBS at a time; one by name: python mutants.py NAME, in tests.
mutants: setup
	cd tests && PYTHONPATH=../src ../$(BIN)/python mutants.py --store --missing --jobs $(JOBS)

# Tests of every unit on its netlist of ECP5 cells, then the machine of stories-260k, then two boards with
# it at their pins; docs/results/netlist.json keeps what came of machine and boards. A board alone: python netlist.py ulx3s --store, in tests.
netlist: setup
	cd tests && ../$(BIN)/python netlist.py --store

calibrate: setup
	$(BIN)/python -m tritloom.gen.fit.calibrate

clean:
	rm -rf build .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) src/tritloom.egg-info
