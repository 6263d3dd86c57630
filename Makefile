PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENV := $(VENV)/.ready

.PHONY: env demo test tiny check format fuzz clean

env: $(ENV)

# No build isolation: an editable meson build needs its tools at import time to rebuild the kernels.
$(ENV): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet 'meson-python>=0.18' 'meson>=1.6' 'ninja>=1.11' 'cython>=3.1'
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install --quiet --no-build-isolation --editable . --group dev
	touch $@

demo: env
	$(BIN)/python -m demo

tiny: env
	$(BIN)/python -m pytest -q tests/test_tiny.py

test: env check
	$(BIN)/python -m pytest -q

FUZZ_SECONDS ?= 600

# atheris has wheels for Linux alone, so it is no dependency: without it there is no coverage.
fuzz: env
	$(BIN)/python -m pip install --quiet 'atheris>=3.0' || true
	PYTHONPATH="$(CURDIR):$(CURDIR)/tests" $(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS)

clean:
	rm -rf $(VENV) build .demo

C_SOURCES = $(shell git ls-files 'cython_kernels/csrc/*.[ch]' 'cython_kernels/csrc/*.inc' 'tests/*.c')

check: env
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint cython_kernels
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)
	$(BIN)/codespell

format: env
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .
	$(BIN)/clang-format -i $(C_SOURCES)
