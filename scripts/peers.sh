#!/usr/bin/env bash
# peers.sh PYTHON VENV_PYTHON TEXT OUT: mlcalib beside other tools, in one run, on one text.
# VENV_PYTHON has mlcalib; each other tool gets an environment of its own in OUT/envs.
# BITS=4 GROUP_SIZE=64 TOKENS=20480 SCORED=1024 ITERS=10 TOOLS="mlcalib-fast llm-compressor …"
set -euo pipefail
python=$1 own=$2 text=$3 out=$4
here=$(realpath "$(dirname "$0")/../benchmarks/peers")
bits=${BITS:-4}
tools=${TOOLS:-mlcalib-fast mlcalib-best llm-compressor gptqmodel gptqmodel-gptaq}
[ -d "$text/en" ] || { echo "$text has no folder en; give a folder with LANGUAGE/{calib,eval}.txt (TEXT=)" >&2; exit 1; }
mkdir -p "$out"
out=$(realpath "$out") text=$(realpath "$text") own=$(realpath -s "$own")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1

# Each with torch first and by exact version, so that a CPU wheel that is at hand stays.
make_env() {
  local env=$out/envs/$1
  shift
  [ -e "$env/ready" ] && return
  echo "== $env: installing $*" >&2
  [ -x "$env/bin/python" ] || "$python" -m venv "$env"
  pip() { "$env/bin/python" -m pip --disable-pip-version-check --quiet install "$@"; }
  pip torch==2.13.0
  printf 'torch==2.13.0\n' >"$env/constraints.txt"
  pip --constraint "$env/constraints.txt" setuptools wheel ninja packaging
  BUILD_CUDA_EXT=0 pip --constraint "$env/constraints.txt" --no-build-isolation "$@" accelerate
  touch "$env/ready"
}

python_of() {
  case $1 in
    mlcalib-*) echo "$own" ;;
    llm-compressor) make_env llm-compressor llmcompressor==0.14.0.1; echo "$out/envs/llm-compressor/bin/python" ;;
    gptqmodel*) make_env gptqmodel gptqmodel==7.6.0; echo "$out/envs/gptqmodel/bin/python" ;;
    auto-round) make_env auto-round auto-round==0.16.1; echo "$out/envs/auto-round/bin/python" ;;
    *) echo "TOOLS has '$1'; there are mlcalib-fast, mlcalib-balanced, mlcalib-best, llm-compressor, gptqmodel," \
      "gptqmodel-gptaq and auto-round" >&2; return 1 ;;
  esac
}

results=$out/W$bits
rm -rf "$results"
mkdir -p "$results"
"$own" "$here/prepare.py" "$text" "$out" --tokens "${TOKENS:-20480}" >"$out/prepare.log" 2>&1
for tool in $tools; do
  run=$(python_of "$tool")
  echo "== $tool (log: $results/$tool.log)" >&2
  # In the folder of results, because GPTQModel leaves logs in the folder where it is started.
  (cd "$results" && "$run" "$here/tools.py" "$tool" "$out" "$results/$tool" --bits "$bits" \
    --group-size "${GROUP_SIZE:-64}" --iters "${ITERS:-10}") >"$results/$tool.log" 2>&1 || { tail -n 20 "$results/$tool.log" >&2; exit 1; }
done
"$own" "$here/score.py" "$text" "$out" "$results" --scored "${SCORED:-1024}" 2>"$results/score.log" |
  tee "$results/table.md"
