#!/usr/bin/env bash
# test_wheel.sh PYTHON DIST WORK: installs the wheel in DIST into an empty environment, and then builds
# the sdist there, the way in which the error for a foreign torch says to. Neither may touch torch.
set -euo pipefail
python=$1 dist=$2 work=$3
fail() { echo "test_wheel: $*" >&2 && exit 1; }

[ "$(ls "$dist"/*.whl "$dist"/*.tar.gz | wc -l)" = 2 ] || fail "expected one wheel and one sdist in $dist"
"$python" -m zipfile --list "$dist"/*.whl >"$dist/contents"
grep -E 'libtorch|libc10|gomp|libmlcalib|\.hpp' "$dist/contents" && fail "the wheel holds what is not Python's"

# The sdist lies as a clone would, with its environment beside it: ccache then knows its objects.
rm -rf "$work" && mkdir -p "$work"
tar --extract --gzip --file "$dist"/*.tar.gz --directory "$work" --strip-components=1
"$python" -m venv "$work/.venv"
venv=$PWD/$work/.venv
export PIP_CONSTRAINT=$PWD/constraints.txt
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
# What a replaced torch would change, whatever its version.
torch() { stat --format='%i %Y %s' "$venv"/lib/python3*/site-packages/torch/lib/libtorch_cpu.so; }

pip install "$("$python" scripts/requirements.py torch)"
before=$(torch)
pip install "$dist"/*.whl
[ "$before" = "$(torch)" ] || fail "installing the wheel replaced torch"
"$venv/bin/python" -I scripts/check_installed.py

# As if it had been built with another torch.
sed -i 's/^TORCH_VERSION = .*/TORCH_VERSION = "2.12.0"/' "$venv"/lib/python3*/site-packages/mlcalib/_build.py
"$venv/bin/python" -I -c 'import mlcalib' 2>"$work/error" && fail "a foreign torch was accepted"
grep '^    pip install .*scikit-build-core\|^    pip install --no-build-isolation' "$work/error" >"$work/mend"
[ "$(wc -l <"$work/mend")" = 2 ] || { cat "$work/error" && fail "the error does not say how to mend it"; }
echo "running what the error says:" && cat "$work/mend"
(cd "$work" && PATH=$venv/bin:$PATH PIP_QUIET=1 bash -eu mend)
[ "$before" = "$(torch)" ] || fail "installing the sdist replaced torch"
"$venv/bin/python" -I scripts/check_installed.py
echo "wheel and sdist: both install and work, and leave torch alone"
