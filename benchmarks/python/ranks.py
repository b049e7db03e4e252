"""One process against two and three: codes, losses, seconds, memory and bytes sent.

    python benchmarks/python/ranks.py MODEL [--ranks 1,2,3] [--tokens 20480] [--weak]

Quantizes a model with gptq and awq, with float and quantized propagation, one thread for each
rank. With ``--weak`` the tokens are as many times ``--tokens`` as there are ranks. Results are
compared with those of one rank. Seconds by phase are those of rank 0; CPU seconds are those of all
processes, with starting and loading, and change little where other work takes the processors.
Memory is that of the largest process.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from safetensors import safe_open

PHASES = ("forward", "gram", "sum", "scale", "solve", "losses", "share")


def run(model: str, out: Path, ranks: int, tokens: int, method: str, propagate: str) -> Any:
    """Quantize over ranks; return seconds, those of all processors, the most bytes, the print."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
    command += ["-m", "mlcalib", "quantize", model, "--out", str(out), "--group-size", "64"]
    command += ["--languages", "multi10", "--tokens", str(tokens), "--seq-len", "512"]
    command += ["--method", method, "--propagate", propagate]
    start = time.perf_counter()
    done = subprocess.run(
        command,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    processors = used.ru_utime + used.ru_stime
    return time.perf_counter() - start, processors, used.ru_maxrss * 1024, done.stdout


def same_tensors(a: Path, b: Path) -> tuple[int, int]:
    """Return how many bytes of two checkpoints' tensors are equal, and of how many."""
    equal = total = 0
    for path in a.glob("*.safetensors"):
        with safe_open(path, "pt") as one, safe_open(b / path.name, "pt") as other:
            for name in one.keys():  # noqa: SIM118
                alike = one.get_tensor(name) == other.get_tensor(name)
                equal, total = equal + int(alike.sum()), total + alike.numel()
    return equal, total


def losses(folder: Path) -> list[float]:
    """Return the loss of each linear in each language."""
    record = json.loads((folder / "mlcalib.json").read_text())
    layers = record["layers"].values()
    return [loss for layer in layers for loss in layer["loss_per_token"].values()]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--ranks", default="1,2,3")
    parser.add_argument("--tokens", type=int, default=20480)
    parser.add_argument("--weak", action="store_true")
    parser.add_argument("--methods", default="gptq,awq")
    parser.add_argument("--propagate", default="float,quantized")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ranks-"))
    columns = ["ranks", "tokens", "equal", "losses", "seconds", "CPU s", *PHASES, "MB", "sent"]
    print(f"| method | {' | '.join(columns)} |\n| --- |{' --: |' * len(columns)}")
    for method in given.methods.split(","):
        for propagate in given.propagate.split(","):
            for ranks in map(int, given.ranks.split(",")):
                tokens = given.tokens * (ranks if given.weak else 1)
                out = folder / f"{method}-{propagate}-{ranks}"
                asked = (given.model, out, ranks, tokens, method, propagate)
                with get_context("spawn").Pool(1) as pool:  # its children's peak, and no others'
                    seconds, processors, peak, said = pool.apply(run, asked)
                spent = json.loads((out / "mlcalib.json").read_text())["seconds"]
                first = folder / f"{method}-{propagate}-1"
                compared = "", ""
                if first.is_dir() and not given.weak:
                    equal, total = same_tensors(first, out)
                    pairs = zip(losses(first), losses(out), strict=True)
                    apart = max(abs(b / a - 1) for a, b in pairs if a)
                    compared = f"{equal / total:.4%}", f"{apart:.1e}"
                sent = next((line.split()[-2] for line in said.splitlines() if "sent" in line), "0")
                parts = " | ".join(f"{spent.get(phase, 0):.1f}" for phase in PHASES)
                print(
                    f"| {method}, {propagate} | {ranks} | {tokens:,} | {' | '.join(compared)} | "
                    f"{seconds:.0f} | {processors:.0f} | {parts} | {peak / 1e6:,.0f} | {sent} MB |",
                    flush=True,
                )
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
