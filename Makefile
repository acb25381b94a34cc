# make run, make test, make test-ptx, make fuzz, make lab, make site: each sets up its own environment in .venv first (once).
# make gpu-report takes a machine as it finds it: .venv if there is one, else PYTHON.
.DEFAULT_GOAL := help
.PHONY: help setup run test test-ptx test-oldest fuzz lab site gpu-report clean

# The first Python that is new enough; name another with `make PYTHON=... run`.
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11 python,\
    $(shell $(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)) python3)
VENV := .venv/bin/python

help:
	@echo "make run    set up, then run every notebook on a simulated cohort; results in build/"
	@echo "make test   set up, then run the whole test suite"
	@echo "make test-ptx  set up, then the tests of the kernels as compiled for a GPU, in the emulator (docs/EMULATOR.md)"
	@echo "make test-oldest  the tests of kernels, models and commands with the lowest versions that are allowed (.venv-oldest)"
	@echo "make fuzz   set up, then the property tests with random examples (MINUTES=20 SEED=...)"
	@echo "make lab    set up, then open JupyterLab on the notebooks"
	@echo "make site   set up, then the executed notebooks and their pages as a site that opens from disk"
	@echo "make gpu-report  test and measure the kernels on an NVIDIA GPU (9 minutes)"
	@echo "make clean  remove build/ (the environment stays)"

setup:
	@command -v $(PYTHON) >/dev/null || { echo "smml: no Python found; install Python 3.11 or newer from your system's packages or python.org"; exit 1; }
	@$(PYTHON) scripts/setup_environment.py

run: setup
	@$(VENV) scripts/run_notebooks.py

test: setup
	@SMML_FAST=1 OMP_NUM_THREADS=1 $(VENV) -m pytest -n 2 --dist loadfile --nbmake --nbmake-timeout=170 notebooks tests

test-ptx: setup
	@SMML_FAST=1 OMP_NUM_THREADS=1 $(VENV) -m pytest -n 2 --dist loadfile -p smml_kernels.emulator.plugin \
	    tests/kernels/test_relation.py tests/kernels/test_fusion.py tests/kernels/test_exchange.py tests/kernels/test_dice_ce.py \
	    tests/kernels/test_surroundings.py

# The lowest versions in pyproject.toml are those for the lowest Python.
OLDEST_PYTHON ?= python3.11
test-oldest:
	@$(OLDEST_PYTHON) scripts/setup_environment.py --oldest
	@SMML_FAST=1 OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n 2 --dist loadfile \
	    tests/kernels tests/losses tests/models tests/inference tests/training tests/test_cli.py

fuzz: setup
	@OMP_NUM_THREADS=1 $(VENV) scripts/fuzz.py --minutes $(or $(MINUTES),20) $(if $(SEED),--seed $(SEED))

lab: setup
	@$(VENV) -m jupyter lab --notebook-dir=notebooks

site: setup
	@$(VENV) scripts/build_site.py

gpu-report:
	@$(or $(wildcard $(VENV)),$(PYTHON)) scripts/gpu_report.py $(if $(OUTPUT),--output $(OUTPUT))

clean:
	rm -rf build
