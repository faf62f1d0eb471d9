# `make demo` and `make test` need nothing but Python 3.11 or newer; .venv is made where it is missing.
# Another Python has an environment of its own: make test PYTHON=python3.13 VENV=build/python3.13
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SITE := "import sysconfig; print(sysconfig.get_path('purelib'))"

.PHONY: demo test coverage check docs clean

# An empty stamp file says which extras the environment has, so that a changed setup.cfg installs again.
$(VENV)/demo.stamp: setup.cfg setup.py pyproject.toml
	@echo "installing into $(VENV); the first time takes some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/dev.stamp: setup.cfg setup.py pyproject.toml
	@echo "installing into $(VENV); the first time takes some minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ $(VENV)/demo.stamp

# anndata needs pandas 2, so its tests have an environment of their own, which adds packages to those of VENV.
$(VENV)/anndata.stamp: $(VENV)/dev.stamp
	$(BIN)/python -m venv $(VENV)/anndata
	$(BIN)/python -c $(SITE) > $$($(VENV)/anndata/bin/python -c $(SITE))/dev.pth
	$(VENV)/anndata/bin/python -m pip install --quiet --disable-pip-version-check 'anndata>=0.12'
	touch $@

demo: $(VENV)/demo.stamp
	$(BIN)/wsi-idc demo

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site of the documents, in site/; a test builds it too.
docs: $(VENV)/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# A test for each core, each with one thread. The tests of SLURM run by themselves, because its jobs use the cores;
# each of the two processes has its own SLURM, since a job waits as long as it computes.
test: check $(VENV)/anndata.stamp
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --ignore=tests/slurm
	$(BIN)/pytest --numprocesses 2 tests/slurm
	$(VENV)/anndata/bin/python -m pytest tests/export/test_scverse.py

# Takes a third longer than the tests alone.
coverage: check
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --ignore=tests/slurm --cov --cov-report=term

clean:
	rm -rf .venv build site *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache
