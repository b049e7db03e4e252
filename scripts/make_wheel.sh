#!/usr/bin/env bash
# make_wheel.sh PYTHON DIST: a manylinux wheel for a Python, into DIST; in an environment of its own, with the
# torch of constraints.txt. CMAKE_ARGS=-DMLCALIB_CUDA=OFF leaves the GPU out where that torch has CUDA.
set -euo pipefail
python=$1 dist=$2
tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
venv=.venv-wheel-$tag work=build/wheel-$tag
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet install "$@"; }
pip "$("$python" scripts/requirements.py torch)" numpy
"$venv/bin/python" scripts/requirements.py wheel >"$venv/wheel.txt"
pip --requirement "$venv/wheel.txt"
rm -rf "$work" && mkdir -p "$work" "$dist"
PATH=$PWD/$venv/bin:$PATH "$venv/bin/python" -m build --no-isolation --wheel --outdir "$work" \
  -Cbuild-dir="build/release-$tag" . | tail -n 1
PATH=$PWD/$venv/bin:$PATH scripts/repair_wheel.sh "$work"
mv "$work"/*.whl "$dist"
