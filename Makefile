# Two commands on a fresh machine (python3 >= 3.11, git, make): `make demo` and `make test`.
#
# PyPI's torch for Linux comes with CUDA (several GB). Without an NVIDIA GPU, take the CPU build:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# pytest-xdist: as many workers as there are cores, each file in one of them, which makes what its tests share
WORKERS ?= auto

.PHONY: demo test lint types unit browser slow docs clean

demo: .venv/.installed
	$(BIN)/recycledb demo demo

# Side by side: mypy keeps one core busy, and the tests wait for disks and servers now and then.
test: .venv/.installed
	$(MAKE) --jobs=2 lint types unit

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy does not follow setuptools' package-dir mapping, so it gets the tree as it is installed.
types: .venv/.installed
	rm -rf build/types && mkdir -p build/types
	cp -rs $(CURDIR)/recycledb build/types/
	ln -s $(CURDIR)/cli $(CURDIR)/migrations build/types/recycledb/
	MYPYPATH=build/types $(BIN)/mypy -p recycledb

unit: .venv/.installed
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

# The pages, in a real headless Chromium (Debian: apt-get install chromium).
browser: .venv/.installed
	$(BIN)/pytest -m browser

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
