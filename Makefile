# make demo and make test do all the set-up themselves, on a bare Debian machine with Python 3.11.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= $(shell nproc)

DEBIAN := libeigen3-dev libgtest-dev libbenchmark-dev ccache clang-format
CPP := $(shell find cpp tests/cpp benchmarks/cpp -name '*.[ch]pp' 2>/dev/null)

.PHONY: help demo test test-cpp test-asan test-python lint bench install clean

help:
	@echo "make demo   quantize SmolLM2-135M three ways and compare per language (into demo/)"
	@echo "make test   all tests (C++ and Python)"
	@echo "make lint   formatters, linters, types, layers, stubs"
	@echo "make bench  benchmarks"
	@echo "make clean  remove what was built (not .venv)"

# Everything that is not Python. apt-get only as root.
build/debian: Makefile scripts/install_debian.sh
	scripts/install_debian.sh $(DEBIAN)
	mkdir -p build && touch $@

# torch first: its CPU wheel, before anything could ask for another.
$(VENV)/ready: pyproject.toml scripts/make_venv.sh
	scripts/make_venv.sh $(PYTHON) $(VENV)
	touch $@

# Editable: Python changes count at once; C++ changes are compiled here, incrementally. The C++ tests
# are part of the same build, so that they test the objects that are shipped.
install: build/debian $(VENV)/ready
	$(BIN)/pip install --quiet --no-build-isolation --no-deps --config-settings=cmake.define.MLCALIB_TESTS=ON --editable . 2>&1 | (grep -v WARNING || true)

demo: install
	rm -rf demo
	$(BIN)/mlcalib demo --out demo

test: test-cpp test-python

test-cpp: install
	$(BIN)/ctest --test-dir build/release --output-on-failure --parallel $(JOBS)

test-python: install
	$(BIN)/python -m pytest

test-asan: install
	$(BIN)/cmake --preset asan
	$(BIN)/cmake --build --preset asan --parallel $(JOBS)
	$(BIN)/ctest --preset asan --parallel $(JOBS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_includes.py
	$(BIN)/python -m mypy.stubtest mlcalib._core --mypy-config-file pyproject.toml --allowlist tests/stubtest_allowlist.txt

bench: install
	$(BIN)/cmake --preset release
	$(BIN)/cmake --build --preset release --parallel $(JOBS)
	build/release-cpp/benchmarks/cpp/mlcalib_benchmarks
	$(BIN)/python benchmarks/python/quantize_smollm2.py

clean:
	rm -rf build demo dist
