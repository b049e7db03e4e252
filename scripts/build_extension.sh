#!/usr/bin/env bash
# build_extension.sh VENV [pip's options]: compiles mlcalib and installs it into VENV, editable. Shows the
# compiler's steps as they come, and all that was said where it fails.
set -euo pipefail
venv=$1 log=build/install.log
shift
mkdir -p build
echo "== compiling mlcalib (without a compiler cache 1 to 4 minutes on two cores; $log)"
if ! "$venv/bin/python" -m pip --disable-pip-version-check install --verbose --no-build-isolation --no-deps \
  "$@" --editable . 2>&1 | tee "$log" | { grep --line-buffered -oE '\[[0-9]+/[0-9]+\] .*' || true; }; then
  cat "$log" >&2
  exit 1
fi
