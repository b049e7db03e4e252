#!/usr/bin/env bash
# gpu_check.sh [OUT]: what a machine with a GPU can say about mlcalib, within 10 minutes and without a
# network. It builds mlcalib with CUDA for that GPU alone, runs the tests of the CUDA kernels, measures the
# kernels, and looks for bad memory accesses and races. Results go to OUT (default: $OUT, else
# build/gpu-check): gpu_check.json, gpu_check.md and a log of each step.
#
# Needs Python with torch for CUDA, numpy, pytest, hypothesis, scikit-build-core, CMake and ninja, and nvcc
# of torch's CUDA version. Wheels of what is missing may lie in the folder $WHEELS (default: .wheels).
# PYTHON names the Python; ONLY="devices model" runs these steps alone, after the build. DRY_RUN=1 builds
# for sm_90 and skips what needs a GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} out=${1:-${OUT:-build/gpu-check}} wheels=${WHEELS:-.wheels}
site=$PWD/build/gpu-check-site
mkdir -p "$out" && rm -rf "$site" && mkdir -p "$site"
out=$(cd "$out" && pwd)
: > "$out/steps.jsonl"

# step NAME SECONDS COMMAND…: runs it for at most so long; its result is saved before the next begins.
step() {
  local name=$1 limit=$2 start rc
  shift 2
  [[ -z ${ONLY:-} || " wheels build import $ONLY " == *" $name "* ]] || return 0
  echo "== $name (at most $limit s)"
  start=$(date +%s.%N)
  timeout --kill-after=10 "$limit" "$@" > "$out/$name.log" 2>&1
  rc=$?
  "$python" - "$name" "$rc" "$limit" "$start" >> "$out/steps.jsonl" <<'PYTHON'
import json, sys, time
name, rc, limit, start = sys.argv[1:]
seconds = round(time.time() - float(start), 1)
print(json.dumps({"step": name, "rc": int(rc), "limit": int(limit), "seconds": seconds}))
PYTHON
  tail -n "${TAIL:-15}" "$out/$name.log"
  return $rc
}

dry=${DRY_RUN:+yes}
arch=90
[ "$dry" ] || arch=$("$python" -c 'import torch; print("".join(map(str, torch.cuda.get_device_capability())))') || exit 1

if compgen -G "$wheels/*.whl" > /dev/null; then
  step wheels 60 "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$wheels"/*.whl
fi
step build 240 "$python" -m pip install --verbose --no-build-isolation --no-deps --no-compile --target "$site" \
  --config-settings=build-dir=build/gpu-check-cmake --config-settings=cmake.define.MLCALIB_CUDA=ON \
  --config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES="$arch-real" . || exit 1

# Tests and benchmarks stand apart from the sources, so that the installed package is what they import.
export PYTHONPATH=$site PYTHONUNBUFFERED=1
pytest=("$python" -m pytest -p no:cacheprovider -o filterwarnings=default -q)
step import 60 "$python" scripts/gpu_check_device.py "$out/device.json"
if [ ! "$dry" ]; then
  step tests 120 "${pytest[@]}" --durations=5 tests/python/core/test_cuda.py
  step devices 120 "${pytest[@]}" --durations=5 tests/python/models/test_devices.py \
    tests/python/quantization/test_runs_on_devices.py
  step model 90 "$python" benchmarks/python/llama_cuda.py --json "$out/model.jsonl"
  step kernels 100 "$python" benchmarks/python/kernels_cuda.py --json "$out/kernels.jsonl"
  step block 40 "$python" benchmarks/python/block_cuda.py --json "$out/block.jsonl"
  small='test_gram and 77 or test_packing and 33 or rounding and 33 and gram or several_linears or test_awq and 130'
  for tool in memcheck racecheck; do
    step "$tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 "${pytest[@]}" tests/python/core/test_cuda.py -k "$small"
  done
fi
"$python" scripts/gpu_check_report.py "$out"
