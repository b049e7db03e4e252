"""Say what memory it takes to quantize folders, in a process that does nothing else.

python depth_memory.py OUT FOLDER...

Prints, as JSON, for each folder the bytes by which the process grew at most.
"""

import gc
import json
import sys
from concurrent.futures import Executor, Future
from pathlib import Path

import torch
from small_text import IDS

import mlcalib
from mlcalib.quantization import read_ahead

PROCESS = Path("/proc/self")


class AtOnce(Executor):
    """Reads a block ahead before the one in work is begun: on a busy machine it may come later.

    So the peak is the highest that there can be, whatever else runs.
    """

    def __init__(self, *_):
        """Take what a pool of threads takes."""

    def submit(self, run, *args):
        """Do it now."""
        done = Future()
        done.set_result(run(*args))
        return done


def resident(key: str) -> int:
    """Return a size of this process, in bytes."""
    lines = (PROCESS / "status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def main() -> None:
    """Quantize each folder by itself."""
    calibration = mlcalib.calibration(None, corpus=IDS, seq_len=32)
    out, folders = Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]]
    torch.set_num_threads(1)
    read_ahead.ThreadPoolExecutor = AtOnce
    taken = []
    for index, folder in enumerate(folders):
        gc.collect()  # what the model before has left would make room for this one
        (PROCESS / "clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
        before = resident("VmRSS")
        mlcalib.quantize_checkpoint(
            folder,
            out / str(index),
            calibration,
            method="rtn",
            group_size=32,
            format="dense",
            device="cpu",
            progress=False,
        )
        taken.append(resident("VmHWM") - before)
    print(json.dumps(taken))


if __name__ == "__main__":
    main()
