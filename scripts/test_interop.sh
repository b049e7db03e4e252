#!/usr/bin/env bash
# test_interop.sh PYTHON VENV_PYTHON VENV OUT: foreign readers on what mlcalib writes, in a table.
# VENV_PYTHON has mlcalib; VENV is made here, has no mlcalib, and holds torch at 2.13.0.
set -euo pipefail
python=$1 own=$2 venv=$3 out=$4
here=$(dirname "$0")/interop
export GPTQMODEL_CPU_WORKERS=2 HF_HUB_OFFLINE=1
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
if [ ! -e "$venv/ready" ]; then
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  pip install torch==2.13.0
  printf 'torch==2.13.0\n' >"$venv/constraints.txt"
  pip install --constraint "$venv/constraints.txt" setuptools wheel ninja packaging
  # No kernels to compile: its torch linears are what reads here.
  BUILD_CUDA_EXT=0 pip install --constraint "$venv/constraints.txt" --no-build-isolation \
    gptqmodel optimum accelerate transformers compressed-tensors bitsandbytes gguf safetensors
  # The version of compressed-tensors before zero points changed, beside the newest.
  pip install --no-deps --target "$venv/compressed-tensors-0.17" 'compressed-tensors==0.17.*'
  # llama.cpp is compiled: seven minutes of one core, without its tools and at a low optimization.
  if [ "${INTEROP_LLAMA_CPP:-1}" = 1 ]; then
    CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_CURL=OFF
      -DGGML_OPENMP=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DCMAKE_C_FLAGS_RELEASE=-O2" \
      pip install --no-deps llama-cpp-python diskcache
  fi
  touch "$venv/ready"
fi
mkdir -p "$out"
"$own" "$here/write.py" "$out/cases" ${INTEROP_SMALL:+--small}
"$venv/bin/python" "$here/read.py" "$out/cases" "$out/newest.jsonl" >"$out/newest.log" 2>&1
PYTHONPATH="$venv/compressed-tensors-0.17" "$venv/bin/python" "$here/read.py" "$out/cases" \
  "$out/0.17.jsonl" --only "transformers, compressed-tensors" >"$out/0.17.log" 2>&1
if [ "${INTEROP_LLAMA_CPP:-1}" = 1 ]; then
  "$own" "$here/gguf_families.py" write "$out/families"
  "$venv/bin/python" "$here/gguf_families.py" read "$out/families" 2>"$out/families.log" |
    tee "$out/families.md"
fi
"$own" "$here/table.py" "$out/newest.jsonl" "$out/0.17.jsonl" | tee "$out/table.md"
