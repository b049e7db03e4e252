"""Scratch memory of a GPTQ solve on the CPU: its peak above weights and Gram, result included.

python benchmarks/python/gptq_memory.py ROWS COLUMNS [--linears 3]
"""

import argparse
from pathlib import Path

import torch

from mlcalib import _core

PROCESS = Path("/proc/self")


def resident(key: str) -> float:
    """Return a size of this process, in MB."""
    lines = (PROCESS / "status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=int, help="of all linears")
    parser.add_argument("columns", type=int)
    parser.add_argument("--linears", type=int, default=1, help="solved together")
    arguments = parser.parse_args()
    rows, columns = arguments.rows, arguments.columns
    weights = list(torch.randn(rows, columns).chunk(arguments.linears))
    x = torch.randn(512, columns)
    gram = x.T @ x
    options = _core.GptqOptions(_core.GridSpec(4, 64))
    _core.gptq(torch.randn(8, 64), torch.eye(64), options)  # what a first call loads
    (PROCESS / "clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    before = resident("VmRSS")
    _core.gptq(weights, gram, options)
    print(f"scratch {resident('VmHWM') - before:.0f} MB; Gram {gram.nbytes / 1e6:.0f} MB, ", end="")
    print(f"weights {4 * rows * columns / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
