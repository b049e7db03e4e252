"""Runs all fuzzers for some minutes together; ends with 1 if one found something.

    python tests/fuzz/run.py OUT MINUTES [--jobs N]

The minutes are those of the processors, so that a busy machine tries as much as an idle one, later.

What a fuzzer has learnt stays in OUT/NAME/corpus, and what it found in OUT/NAME/findings: an input,
and beside it what happened.
"""

import argparse
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
_START = 1800  # seconds by the clock for the imports, which take minutes on a busy machine
_BUSY = 10  # seconds by the clock, at most, for one of the processor


class Outcome(NamedTuple):
    """What one fuzzer did.

    Attributes:
        name: of the fuzzer.
        executions: inputs tried.
        seconds: time by the clock that it took, with its start.
        coverage: places in mlcalib's code that libFuzzer saw run.
        findings: names of what it found.
    """

    name: str
    executions: int
    seconds: float
    coverage: int
    findings: list[str]


def main() -> int:
    """Run them, print a table, and return the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--jobs", type=int, default=1, help="fuzzers at a time")
    given = parser.parse_args()
    files = sorted(HERE.glob("fuzz_*.py"))
    seconds = max(1, int(60 * given.minutes / math.ceil(len(files) / given.jobs)))
    with ThreadPoolExecutor(given.jobs) as pool:
        outcomes = list(pool.map(lambda file: _run(file, given.out, seconds), files))
    print(f"{seconds} s of the processor for each, beside its start")
    print(f"{'fuzzer':<12} {'executions':>11} {'wall s':>8} {'coverage':>9} {'findings':>9}")
    for each in outcomes:
        print(
            f"{each.name:<12} {each.executions:>11,} {each.seconds:>8.0f} {each.coverage:>9,} "
            f"{len(each.findings):>9}"
        )
    for each in outcomes:
        for finding in each.findings:
            print(f"{each.name}: {given.out / each.name / 'findings' / finding}")
    return int(any(each.findings for each in outcomes))


def _run(file: Path, out: Path, seconds: int) -> Outcome:
    name = file.stem.removeprefix("fuzz_")
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(file), str(folder), str(seconds)]
    start = time.perf_counter()
    shared = Path("/dev/shm")  # no disk is to limit how fast it goes
    with (
        (folder / "log").open("wb") as log,
        tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as scratch,
    ):
        try:
            status = subprocess.run(
                command, stdout=log, stderr=log, timeout=_BUSY * seconds + _START, check=False,
                env={**os.environ, "TMPDIR": scratch},
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            status = 124
    said = (folder / "log").read_text(encoding="utf-8", errors="replace")
    findings = sorted(
        path.name for path in (folder / "findings").glob("*") if path.suffix != ".txt"
    )
    executions = _last(r"stat::number_of_executed_units: (\d+)", said)
    coverage = _last(r"\bcov: (\d+)", said)
    if (status and not findings) or not executions:
        findings.append(f"../log (it ended with {status})")
    elif not coverage:
        findings.append("../log (mlcalib's code is not instrumented, so nothing guides the fuzzer)")
    return Outcome(name, executions, time.perf_counter() - start, coverage, findings)


def _last(pattern: str, text: str) -> int:
    return int((re.findall(pattern, text) or [0])[-1])


if __name__ == "__main__":
    sys.exit(main())
