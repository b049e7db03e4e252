#!/usr/bin/env bash
# fuzz.sh PYTHON VENV FUZZ_VENV OUT MINUTES JOBS: the fuzzers of tests/fuzz on all that reads files from
# outside. VENV has mlcalib; FUZZ_VENV is made here, and holds atheris beside what is in VENV.
set -euo pipefail
python=$1 venv=$2 own=$3 out=$4 minutes=$5 jobs=$6
if [ ! -e "$own/ready" ]; then
  [ -x "$own/bin/python" ] || "$python" -m venv "$own"
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  printf 'import site; site.addsitedir("%s")\n' "$site" \
    >"$("$own/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/mlcalib-venv.pth"
  "$own/bin/python" -m pip --disable-pip-version-check --quiet install --no-deps atheris==3.0.0
  touch "$own/ready"
fi
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
exec "$own/bin/python" tests/fuzz/run.py "$out" "$minutes" --jobs "$jobs"
