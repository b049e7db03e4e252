#!/usr/bin/env bash
# build_docs.sh PYTHON VENV DOCS_VENV OUT: the site of docs/, into OUT/html. VENV has mlcalib; DOCS_VENV is made
# here, and holds Sphinx and what it needs beside what is in VENV.
set -euo pipefail
python=$1 venv=$2 own=$3 out=$4
if [ ! -e "$own/ready" ] || [ constraints.txt -nt "$own/ready" ]; then
  [ -x "$own/bin/python" ] || "$python" -m venv "$own"
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  printf 'import site; site.addsitedir("%s")\n' "$site" \
    >"$("$own/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/mlcalib-venv.pth"
  "$own/bin/python" scripts/requirements.py docs >"$own/requirements.txt"
  "$own/bin/python" -m pip --disable-pip-version-check --quiet install \
    --constraint constraints.txt --requirement "$own/requirements.txt"
  touch "$own/ready"
fi
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
"$own/bin/python" -m sphinx -b html -W --keep-going --quiet -d "$out/doctrees" docs "$out/html"
echo "$out/html/index.html"
