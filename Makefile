# Needs Python 3.11 or later and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo
# what pip is given; the stamps are remade when the dependencies change
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all lint format bench docs page clean

help:
	@echo "make demo      install into .venv, simulate a small session, process it, compare with the truth"
	@echo "make test      lint, types and the tests"
	@echo "make test-all  the same, and the tests that take long"
	@echo "make lint      ruff and mypy only"
	@echo "make bench     Weft beside RELION on the same movies"
	@echo "make docs      write the reference pages again"
	@echo "make page      build the web page again after a change of its sources (installing does it too)"
	@echo "make clean     remove .venv and the demonstration"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Weft needs Python 3.11 or later, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# the web page is built by the installation, and again when its sources change
PAGE := hatch_build.py $(shell find src/weft/web/app -name node_modules -prune -o -type f -print)

$(VENV)/.installed: pyproject.toml constraints.txt $(PAGE) | $(BIN)/python
	@echo "installing Weft into $(VENV); the first time takes a few minutes"
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt $(PAGE) | $(BIN)/python
	@echo "installing Weft and what its tests need into $(VENV); the first time takes a few minutes"
	$(PIP_INSTALL) -e '.[test]'
	@touch $@ $(VENV)/.installed

# serves the dashboard at the end, until Ctrl-C; SERVE=0 exits instead
demo: $(VENV)/.installed
	$(BIN)/weft demo $(DEMO) $(if $(filter 0,$(SERVE)),--no-serve,--serve)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict src

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# pytest runs last, so that its summary is the last line; files side by side, tests of a file in order
SIDE_BY_SIDE ?= 2
test: lint
	$(BIN)/python -m pytest -m 'not slow' -n $(SIDE_BY_SIDE) --dist loadfile

test-all: lint
	$(BIN)/python -m pytest -n $(SIDE_BY_SIDE) --dist loadfile

bench: $(VENV)/.installed-test
	$(BIN)/python benchmarks/motion.py
	$(BIN)/python benchmarks/ctf.py

page: $(VENV)/.installed
	$(BIN)/python hatch_build.py

docs: $(VENV)/.installed
	$(BIN)/python docs/make_reference.py

clean:
	rm -rf $(VENV) demo
