# make demo and make test do all the set-up themselves, on a bare Debian machine with Python 3.11.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= $(shell nproc)

DEBIAN := libeigen3-dev libgtest-dev libbenchmark-dev ccache clang-format
# Of Python, what needs no model.
export CORE_TESTS := $(wildcard tests/python/core/test_core_*.py) tests/python/package/test_install.py
CPP := $(shell find cpp tests/cpp benchmarks/cpp examples/cpp -name '*.[ch]pp' -o -name '*.cu' -o -name '*.cuh')

# Objects of one clone serve the next, and the sdist that test-wheel builds.
export CCACHE_BASEDIR := $(CURDIR)

.PHONY: help demo test test-cpp test-python test-standin test-isa test-asan test-clang test-oldest test-newest \
        peers test-docs docs notebooks test-docs-browser test-torch test-browser test-interop fuzz sweep example-cpp wheel wheels test-wheel lint tidy cuda-check bench lock install clean

help:
	@echo "make demo   quantize SmolLM2-135M three ways and compare per language (into demo/)"
	@echo "make test   all tests (C++ and Python)"
	@echo "make test-standin  what runs on a GPU, on a stand-in for one"
	@echo "make test-isa     the core's tests on AVX2 and on the baseline"
	@echo "make test-oldest  the Python tests with the lowest versions that pyproject.toml admits; also test-newest"
	@echo "make test-torch TORCH=2.12.1  the core's tests with another torch (gigabytes)"
	@echo "make test-clang   the C++ core and its tests, compiled by clang 16"
	@echo "make test-browser  the rating page in chromium (fetched where it is missing)"
	@echo "make test-interop  foreign readers on checkpoints in every format, as a table"
	@echo "make fuzz MINUTES=10  fuzzers on all that reads files from outside"
	@echo "make sweep  every class of transformers, as a tiny model: found, quantized and read again"
	@echo "make docs   the documentation as a site, into build/docs/html; make test-docs runs its code"
	@echo "make notebooks  run the notebooks of docs/notebooks again and keep their outputs (a quarter of an hour)"
	@echo "make lint   formatters, linters, types, layers, stubs"
	@echo "make tidy   clang-tidy over cpp/ (minutes)"
	@echo "make wheel  a wheel and an sdist, into dist/; make test-wheel tries both in an empty environment"
	@echo "make wheels PYTHONS=\"python3.12 python3.13\"  wheels for other Pythons, each in its own environment"
	@echo "make example-cpp  install the C++ library under build/, build and run examples/cpp against it"
	@echo "make cuda-check  compile the CUDA kernels with nvcc, without a GPU"
	@echo "make bench  benchmarks"
	@echo "make peers TEXT=FOLDER  other tools beside mlcalib, each in its own environment (gigabytes; an hour)"
	@echo "make lock   renew constraints.txt, the versions that these commands install"
	@echo "make clean  remove what was built (not .venv)"

# Libraries of the C++ tests, the formatter and the compiler cache. apt-get only as root.
build/debian: Makefile scripts/install_debian.sh
	scripts/install_debian.sh $(DEBIAN)
	mkdir -p build && touch $@

$(VENV)/demo $(VENV)/dev: $(VENV)/%: pyproject.toml constraints.txt scripts/make_venv.sh
	scripts/make_venv.sh $(PYTHON) $(VENV) $*
	touch $@

# Editable: Python changes count at once; C++ changes are compiled here, incrementally. The C++ tests
# are part of the same build, so that they test the objects that are shipped.
BUILD = scripts/build_extension.sh $(VENV) --config-settings=cmake.define.MLCALIB_TESTS
install: build/debian $(VENV)/dev
	$(BUILD)=ON

# The extension and what it runs with; no tests, and nothing from Debian.
demo: $(VENV)/demo
	$(BUILD)=OFF
	rm -rf demo
	$(BIN)/mlcalib demo --out demo

# Renews constraints.txt and prints what changed.
lock: $(VENV)/demo
	$(BIN)/python scripts/lock.py

test: test-cpp test-python test-standin

test-cpp: install
	$(BIN)/ctest --test-dir build/release --output-on-failure

# Processes of one thread each: most tests are too small for threads.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
test-python: install
	$(PYTEST)

# The tests that need a GPU, on a device of torch that needs none: docs/design/cuda.md, "The stand-in device".
STANDIN = build/release/tests/cpp/standin/mlcalib_standin.so
DEVICE_TESTS = tests/python/core/test_cuda.py tests/python/models/test_devices.py \
               tests/python/models/test_standin.py tests/python/quantization/test_runs_on_devices.py
test-standin: install
	@if [ ! -f $(STANDIN) ]; then echo "no stand-in device: mlcalib was built for CUDA"; exit; fi; \
	MLCALIB_STANDIN=$(CURDIR)/$(STANDIN) $(PYTEST) --dist load $(DEVICE_TESTS)

# The core's tests on lesser instruction sets than the processor's own.
test-isa: install
	isas=$$($(BIN)/python -c "from mlcalib import _core; print(*{'avx2', 'baseline'} & {*_core.available_isas()})"); \
	for isa in $$isas; do \
	  echo "== MLCALIB_ISA=$$isa"; export MLCALIB_ISA=$$isa; \
	  $(BIN)/ctest --test-dir build/release --output-on-failure; \
	  $(PYTEST) $(CORE_TESTS); \
	done

# The Python tests with the lowest and the newest versions that pyproject.toml admits.
test-oldest test-newest: test-%: wheel
	scripts/test_window.sh $(PYTHON) $* dist .venv-$*

# The core's tests with another torch, in an environment of its own: make test-torch TORCH=2.12.1
test-torch: build/debian
	scripts/test_torch.sh $(PYTHON) $(TORCH) .venv-torch-$(TORCH)

test-browser: install
	scripts/install_debian.sh chromium chromium-driver
	$(BIN)/python -m pytest -m browser

# The site. Warnings are errors: links without a target, docstrings that cannot be read.
docs: install
	scripts/build_docs.sh $(PYTHON) $(VENV) .venv-docs build/docs

# Every block of code on its pages; part of test-python too.
test-docs: install
	$(PYTEST) --dist load tests/python/pages

# Five pages, wide and narrow, light and dark; pictures in build/docs/pictures.
test-docs-browser: docs
	scripts/install_debian.sh chromium chromium-driver
	$(BIN)/python tests/python/pages/look_at_pages.py build/docs/html build/docs/pictures

# With SmolLM2, whose outputs the site shows.
notebooks: install
	$(BIN)/python scripts/run_notebooks.py docs/notebooks/*.ipynb

# What transformers, GPTQModel, gguf and others read from what mlcalib writes; its own environment.
# INTEROP_SMALL=1 leaves SmolLM2 out, INTEROP_LLAMA_CPP=0 llama.cpp, which is compiled.
test-interop: install
	scripts/test_interop.sh $(PYTHON) $(BIN)/python .venv-interop build/interop

# Whatever the bytes of a file: what it reads, or an error that names it, in bounded memory.
MINUTES ?= 10
fuzz: install
	scripts/fuzz.sh $(PYTHON) $(VENV) .venv-fuzz build/fuzz $(MINUTES) $(JOBS)

# Every causal and image-text class of transformers, tiny: found, quantized, read again (minutes).
sweep: install
	PYTHONPATH=tests/python:tests/sweep $(BIN)/python tests/sweep/run.py --jobs $(JOBS) --out build/sweep

test-clang: install
	scripts/install_debian.sh clang-16 libomp-16-dev
	$(BIN)/cmake --preset clang
	$(BIN)/cmake --build build/clang
	build/clang/tests/cpp/mlcalib_tests

test-asan: install
	$(BIN)/cmake --preset asan
	$(BIN)/cmake --build --preset asan --parallel $(JOBS)
	$(BIN)/ctest --preset asan --parallel $(JOBS)

# The C++ parts of the tree that the Python tests run.
example-cpp: install
	scripts/test_cpp_package.sh $(BIN)/python build/release build/cpp-package

wheel: install
	rm -rf dist
	$(BIN)/python -m build --no-isolation --sdist --wheel --outdir dist . | tail -n 1
	PATH=$(BIN):$$PATH scripts/repair_wheel.sh dist

# The same for other Pythons, each with a torch of its own (gigabytes): make wheels PYTHONS="python3.12 python3.13"
PYTHONS ?= $(PYTHON)
wheels: build/debian
	for each in $(PYTHONS); do scripts/make_wheel.sh $$each dist; done

test-wheel: wheel
	scripts/test_wheel.sh $(PYTHON) dist build/test-wheel

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_includes.py
	$(BIN)/python -m mypy.stubtest mlcalib._core mlcalib._build --mypy-config-file pyproject.toml --allowlist tests/stubtest_allowlist.txt

tidy: build/debian $(VENV)/dev
	$(BIN)/cmake --preset tidy
	$(BIN)/cmake --build --preset tidy --parallel $(JOBS)

# Python alone: nvcc is fetched where it is missing.
cuda-check: $(VENV)/dev
	$(BIN)/python scripts/check_cuda.py

# What it measured is kept by commit; benchmarks/compare.py compares the kernels of two.
bench: RESULTS = build/bench/$(shell git describe --always --dirty)
bench: install
	$(BIN)/cmake --preset release
	$(BIN)/cmake --build --preset release --parallel $(JOBS)
	mkdir -p $(RESULTS)
	build/release-cpp/benchmarks/cpp/mlcalib_benchmarks --benchmark_out=$(RESULTS)/core.json
	$(BIN)/python benchmarks/python/kernels.py --json $(RESULTS)/kernels.json
	$(BIN)/python benchmarks/python/quantize_smollm2.py

# Other tools beside mlcalib; TEXT has LANGUAGE/{calib,eval}.txt. BITS, TOKENS, SCORED, ITERS and TOOLS: scripts/peers.sh
peers: install
	scripts/peers.sh $(PYTHON) $(BIN)/python $(or $(TEXT),../shared/data/text) build/peers

clean:
	rm -rf build demo dist
