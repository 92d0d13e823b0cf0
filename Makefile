# Everything runs in an environment of its own, made on first use and renewed when pyproject.toml
# changes. Another Python or another place: `PYTHON=python3.12 VENV=/tmp/env make test`.

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= experiments/configs/digits/probmask.py
SEEDS ?= 0,1,2
CONSTRAINTS ?=
ONE_CASE_IN ?= 8
NOTEBOOK_TIMEOUT ?= 600
# One process a core, each with tests that lie together, since these share what is compiled.
PARALLEL ?= -n logical --maxprocesses=8 --dist=worksteal

python := $(VENV)/bin/python
pip_install := $(python) -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

.PHONY: run language test test-fast test-notebooks test-slow test-oldest test-tpu pytest-tpu
.PHONY: lint types docs clean python-ok
.NOTPARALLEL:

run: $(VENV)/experiments.stamp
	$(python) -m experiments.run $(CONFIG)

# A small language model, dense and sparse in three ways, on the source of Python's own library.
language: small := dense gradual probmask transposable
language: $(VENV)/experiments.stamp
	$(python) -m experiments.sweep $(small:%=experiments/configs/python/%.py) --seeds=$(SEEDS) --out=runs/language

# Unit tests, doctests, then the notebooks.
test: test-fast test-notebooks

test-fast: $(VENV)/test.stamp
	$(python) -m pytest $(PARALLEL)

test-notebooks: $(VENV)/test.stamp
	$(if $(wildcard notebooks/*.ipynb),$(python) -m pytest $(PARALLEL) --nbmake --nbmake-timeout=$(NOTEBOOK_TIMEOUT) notebooks,@echo 'no notebooks to run')

test-slow: $(VENV)/test.stamp
	$(python) -m pytest -m slow

# The fast tests on the oldest versions that pyproject.toml allows, an eighth of the cases of each file
# (all: `make test-oldest ONE_CASE_IN=1`).
test-oldest:
	ONE_CASE_IN=$(ONE_CASE_IN) $(MAKE) test-fast VENV=$(VENV)-oldest CONSTRAINTS=tests/oldest.txt

# Compiles for TPUs that need not be there. libtpu is large and changes what JAX looks for at its
# start, hence an environment of its own.
test-tpu:
	$(MAKE) pytest-tpu VENV=$(VENV)-tpu

pytest-tpu: $(VENV)/tpu.stamp
	$(python) -m pytest -m slow tests/test_tpu_compile.py tests/test_steps_tpu.py tests/experiments/costs/test_ahead.py

lint: $(VENV)/lint.stamp
	$(VENV)/bin/ruff check

types: $(VENV)/lint.stamp $(VENV)/experiments.stamp
	$(VENV)/bin/pyrefly check --python-interpreter-path $(python)

docs: $(VENV)/docs.stamp
	$(VENV)/bin/pdoc --docformat google --output-directory dist/docs jaxprune

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-tpu .pytest_cache dist

$(VENV)/tpu.stamp: pyproject.toml | $(VENV)/pyvenv.cfg
	$(pip_install) --editable '.[experiments]' 'jax[tpu]' pytest hypothesis
	@touch $@

$(VENV)/%.stamp: pyproject.toml $(CONSTRAINTS) | $(VENV)/pyvenv.cfg
	$(pip_install) --editable '.[$*]'
	@touch $@

$(VENV)/pyvenv.cfg: | python-ok
	$(PYTHON) -m venv $(VENV)

# The reasons why a fresh machine could fail later with a less clear message.
define check_python
import os, sys
venv = "$(VENV)"
version = "%d.%d" % sys.version_info[:2]
if sys.version_info < (3, 11):
    sys.exit("jaxprune needs Python 3.11 or newer, $(PYTHON) is %s: set PYTHON=python3.12, say" % version)
try:
    import ensurepip, venv as _
except ImportError:
    sys.exit("$(PYTHON) lacks the venv module: install it (on Debian: apt install python%s-venv)" % version)
if os.path.exists(venv + "/pyvenv.cfg") and not os.path.isdir("%s/lib/python%s" % (venv, version)):
    sys.exit("%s is not an environment of Python %s: remove it, or set VENV= to another folder" % (venv, version))
endef
export check_python

python-ok:
	@command -v $(PYTHON) >/dev/null || { echo '$(PYTHON) is not installed: jaxprune needs Python 3.11 or newer'; exit 1; }
	@$(PYTHON) -c "$$check_python"
