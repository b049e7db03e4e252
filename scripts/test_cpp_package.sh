#!/usr/bin/env bash
# test_cpp_package.sh PYTHON BUILD WORK: installs the C++ parts of BUILD, builds and runs examples/cpp
# against them, and tries what must fail. PYTHON only says where its torch is.
set -euo pipefail
python=$1 build=$2 work=$3
cmake=$(dirname "$python")/cmake
torch=$("$python" -c 'import torch; print(torch.utils.cmake_prefix_path)')
rm -rf "$work" && mkdir -p "$work"
fail() { echo "test_cpp_package: $*" >&2 && exit 1; }

"$cmake" --install "$build" --prefix "$work/prefix" >"$work/install.log"
find "$work/prefix" -name '*.py' -o -name '_core*' | grep . && fail "the prefix holds Python parts"

"$cmake" -S examples/cpp -B "$work/example" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_PREFIX_PATH="$PWD/$work/prefix;$torch" >"$work/configure.log" 2>&1 || {
  cat "$work/configure.log" && fail "examples/cpp does not configure"
}
"$cmake" --build "$work/example"
"$work/example/languages" | tee "$work/output"
awk '/^rtn/ {rtn = $2} /^gptq on the mixture/ {gptq = $5} END {exit !(0 < gptq && gptq < rtn)}' \
  "$work/output" || fail "GPTQ lost to rounding"

# Another Torch than the one built with: refused, with what to do.
mkdir -p "$work/other"
echo 'set(Torch_FOUND TRUE)' >"$work/other/TorchConfig.cmake"
echo 'set(PACKAGE_VERSION 1.0.0)' >"$work/other/TorchConfigVersion.cmake"
"$cmake" -S examples/cpp -B "$work/mismatch" -G Ninja -DTorch_DIR="$PWD/$work/other" \
  -DCMAKE_PREFIX_PATH="$PWD/$work/prefix" >"$work/mismatch.log" 2>&1 &&
  fail "a foreign Torch was accepted"
tr -s ' \n' ' ' <"$work/mismatch.log" | grep -q 'built with Torch .* but Torch 1.0.0 was found .* -DTorch_DIR=' || {
  cat "$work/mismatch.log" && fail "the message for a foreign Torch does not say what to do"
}

# The extension refuses a Python whose torch the wheel could not ask for, before it compiles.
mkdir -p "$work/foreign/torch"
printf '__version__ = "3.0.0+cpu"\nclass utils:\n    cmake_prefix_path = "none"\n' \
  >"$work/foreign/torch/__init__.py"
PYTHONPATH=$work/foreign "$cmake" -S . -B "$work/extension" -G Ninja -DPython_EXECUTABLE="$python" \
  >"$work/extension.log" 2>&1 && fail "the extension was configured with a foreign torch"
tr -s ' \n' ' ' <"$work/extension.log" | grep -q "torch 3.0.0+cpu was found .* pip install 'torch>=" || {
  cat "$work/extension.log" && fail "the message for a foreign torch does not say what to do"
}

# C++ alone configures without any Python, from a libtorch.
"$cmake" -S . -B "$work/libtorch" -G Ninja -DMLCALIB_PYTHON=OFF -DTorch_DIR="$torch/Torch" \
  -DCMAKE_DISABLE_FIND_PACKAGE_Python=ON >"$work/libtorch.log" 2>&1 || {
  cat "$work/libtorch.log" && fail "C++ alone needs a Python"
}
echo "C++ package: the example runs; foreign torches are refused; no Python is needed"
