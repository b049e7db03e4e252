#!/usr/bin/env bash
# test_torch.sh PYTHON VERSION VENV: builds mlcalib against that torch, as `pip install
# --no-build-isolation .` does, and runs the core's tests in C++ and in $CORE_TESTS. torch comes from pip's
# index: of most versions a CUDA build of gigabytes. $MLCALIB_CUDA=ON builds the CUDA backend too.
set -euo pipefail
python=$1 version=$2 venv=$3 build=build/torch-$2
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
libraries() { stat --format='%n %i %Y %s' "$venv"/lib/python3*/site-packages/torch/lib/*.so; }

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "== torch $version into $venv"
pip install "torch==$version"
for group in build core-tests; do
  "$venv/bin/python" scripts/requirements.py "$group" | pip install --requirement /dev/stdin
done

echo "== pip install --no-build-isolation ."
before=$(libraries)
pip install --no-build-isolation --config-settings=build-dir="$build" \
  --config-settings=cmake.define.MLCALIB_TESTS=ON --config-settings=cmake.define.MLCALIB_CUDA="${MLCALIB_CUDA:-OFF}" .
[ "$before" = "$(libraries)" ] || { echo "test_torch: installing mlcalib replaced torch" >&2 && exit 1; }
echo "torch's $(wc -l <<<"$before") libraries are the same files, by inode, time and size"

"$venv/bin/python" -I -c 'import mlcalib, torch; print("imported with torch", torch.__version__)'
"$venv/bin/ctest" --test-dir "$build" --output-on-failure
OMP_NUM_THREADS=1 "$venv/bin/python" -m pytest -n "$(nproc)" --dist loadfile -o filterwarnings=default $CORE_TESTS
