#!/usr/bin/env bash
# repair_wheel.sh DIST: gives the wheel in DIST the manylinux tag that its symbols allow. Nothing is put into it:
# torch, and the OpenMP that torch brings, are those of the environment it is installed in.
set -euo pipefail
dist=$1
raw=$(ls "$dist"/*-linux_x86_64.whl)
auditwheel repair --only-plat --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcu*' --exclude libgomp.so.1 \
  --wheel-dir "$dist" "$raw"
rm "$raw"
ls "$dist"/*-manylinux_*.whl
