# On a fresh machine (python3 >= 3.11, git, make): `make demo` and `make test`.
#
# torch from PyPI includes CUDA on Linux (several GB). Without an NVIDIA GPU, use the CPU build:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# pytest-xdist: one worker per core; --dist loadfile, so that the tests of a file share their fixtures
WORKERS ?= auto
# pytest rewrites the asserts of every test file, which takes 8 seconds in each worker where it may not keep them.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test lint types unit long browser slow docs clean

demo: .venv/.installed
	$(BIN)/recycledb demo demo

# In parallel: mypy uses one core, and the tests sometimes wait for disks and servers.
test: .venv/.installed
	$(MAKE) --jobs=2 lint types unit

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow setuptools' package-dir mapping, so it gets a copy of the installed layout.
types: .venv/.installed
	rm -rf build/types && mkdir -p build/types
	cp -rs $(CURDIR)/recycledb build/types/
	ln -s $(CURDIR)/cli $(CURDIR)/migrations build/types/recycledb/
	MYPYPATH=build/types $(BIN)/mypy -p recycledb

unit: .venv/.installed
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

# The slower ones: all cases on DuckDB, all of each matrix, kills and faults. CI runs them too.
long: .venv/.installed
	$(BIN)/pytest -m "long and not slow and not browser" -n $(WORKERS) --dist loadfile

# Tests of the HTML pages in headless Chromium (Debian: apt-get install chromium).
browser: .venv/.installed
	$(BIN)/pytest -m browser

# Minutes each; by hand.
slow: .venv/.installed
	$(BIN)/pytest -m slow

docs: .venv/.installed
	$(BIN)/python docs/generate.py

.venv/.installed: pyproject.toml constraints.txt tools/make_venv.py
	$(PYTHON) tools/make_venv.py .venv
	$(PIP) install --quiet --constraint constraints.txt $(INDEX) torch
	$(PIP) install --quiet --constraint constraints.txt $(INDEX) --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist demo *.egg-info .mypy_cache .ruff_cache .pytest_cache
