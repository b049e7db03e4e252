"""Compile every CUDA kernel for every architecture, without a GPU and without a CUDA torch.

    python scripts/check_cuda.py [--arch 80 90 100] [--jobs 2]

Prints the static shared memory and the registers of each kernel, and fails where a kernel does not
compile, spills, or contracts a product and a sum (codes would then differ from the CPU's). nvcc is
`$NVCC`, the one on the path, or NVIDIA's wheels from PyPI, installed into build/nvcc; without any
of these nothing is checked, and the last line says so.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from requirements import group

ROOT = Path(__file__).parent.parent
CUDA = ROOT / "cpp/src/cuda"
WHEELS = ROOT / "build/nvcc"
# What ptxas -v says of one kernel.
KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\w+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def find_nvcc() -> str | None:
    """Return the path of nvcc, after installing it if it must be."""
    named = os.environ.get("NVCC") or shutil.which("nvcc")
    if named:
        return named
    installed = WHEELS / "nvidia/cu13/bin/nvcc"
    if not installed.exists():
        print("check_cuda: no nvcc on the path; installing NVIDIA's wheels into build/nvcc")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        done = subprocess.run([*pip, "--target", str(WHEELS), *group("nvcc")], check=False)
        if done.returncode != 0:
            return None
        for program in [*installed.parent.iterdir(), *WHEELS.glob("nvidia/cu13/nvvm/bin/*")]:
            if program.is_file():
                program.chmod(0o755)
    return str(installed)


def options() -> list[str]:
    """Return the options that CMake gives to nvcc, from the one place where they are."""
    text = (CUDA / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(
        r"target_compile_options\(mlcalib_cuda_kernels PRIVATE(.*?)\)", text, re.DOTALL
    )
    assert found, "cpp/src/cuda/CMakeLists.txt has no options for the kernels"
    return found[1].split()


def compile_for(nvcc: str, source: Path, archs: list[str]) -> tuple[list[list[str]], list[str]]:
    """Return a row of the table for each kernel, and what is wrong."""
    codes = [f"-gencode=arch=compute_{a},code=[sm_{a},compute_{a}]" for a in archs]
    with tempfile.TemporaryDirectory() as folder:
        keep = ["--keep", f"--keep-dir={folder}", "-o", f"{folder}/{source.stem}.o"]
        command = [nvcc, "-std=c++20", "-O3", *options(), *codes, "-Xptxas=-v", *keep, "-c"]
        done = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        if done.returncode != 0:
            return [], [f"{source.name} does not compile:\n{said}"]
        wrong = [
            f"{ptx.name} contracts: {line.strip()}"
            for ptx in sorted(Path(folder).glob("*.ptx"))
            for line in ptx.read_text(encoding="utf-8").splitlines()
            if re.match(r"\s*(fma|mad)\.\w+(\.\w+)?\.f32|\s*div\.(full|approx)", line)
        ]
    rows: dict[str, list[str]] = {}
    for each in KERNEL.finditer(said):
        shared = re.search(r"(\d+) bytes smem", each["rest"])
        spilled = int(each["stores"]) + int(each["loads"])
        name = readable(each["name"])
        row = rows.setdefault(name, [source.name, name, shared[1] if shared else "0"])
        row.append(each["registers"])
        if spilled:
            wrong.append(f"{source.name}: {name} spills {spilled} bytes on sm_{each['arch']}")
    if not rows:
        wrong.append(f"{source.name}: ptxas reported no kernel:\n{said}")
    return list(rows.values()), wrong


def readable(mangled: str) -> str:
    """Return a kernel's own name and template arguments."""
    done = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True)
    name = done.stdout.replace("(anonymous namespace)::", "").replace("mlcalib::cuda::", "")
    return name.removeprefix("void ").split("(")[0].strip()


def main() -> None:
    """Compile all, print the table, and exit with 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", nargs="+", default=["80", "90", "100"])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    if nvcc is None:
        print("check_cuda: SKIPPED, no kernel was compiled: no nvcc here, and none from PyPI")
        return
    sources = sorted((CUDA / "kernels").glob("*.cu"))
    with ThreadPoolExecutor(arguments.jobs) as pool:
        found = list(pool.map(lambda source: compile_for(nvcc, source, arguments.arch), sources))
    table = [["file", "kernel", "static shared bytes"]]
    table[0] += [f"registers sm_{arch}" for arch in arguments.arch]
    table.append(["---"] * len(table[0]))
    table += [row for rows, _ in found for row in rows]
    for row in table:
        print(f"| {' | '.join(row)} |")
    wrong = [line for _, lines in found for line in lines]
    for line in wrong:
        print(f"check_cuda: {line}", file=sys.stderr)
    print(
        f"check_cuda: {len(sources)} files for sm {', '.join(arguments.arch)}: "
        f"{'FAILED' if wrong else 'compiled'}, not run"
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
