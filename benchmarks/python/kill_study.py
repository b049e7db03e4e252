"""Kill a study again and again, fill its disk, and compare what comes out byte by byte.

    python benchmarks/python/kill_study.py WORK [--kills 20] [--model smollm2]

An undisturbed study first; then the same one, killed (kill -9) after random times until --kills
kills have hit it, and run to its end; then once more on a tmpfs that is too small (needs root),
which is enlarged after the error.
"""

import argparse
import filecmp
import random
import subprocess
import sys
import time
from pathlib import Path

import yaml

from mlcalib.models.loading import find_smollm2, load_model, load_tokenizer

MLCALIB = str(Path(sys.executable).with_name("mlcalib"))
SPEC = {
    "name": "killed",
    "corpus": "sample",
    "tokens": 1024,
    "seq_len": 256,
    "allow_short": True,
    "hidden_states": "disk",
    "settings": ["en", "multi10"],
    "quantizers": [{"method": method, "group_size": 64} for method in ("gptq", "awq")],
    "evaluation": {"languages": "en,sw", "tokens": 256},
    "layers": {"languages": "en,sw", "tokens": 256},
}


def start(spec: Path, out: Path) -> subprocess.Popen[str]:
    command = [MLCALIB, "study", str(spec), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def files(out: Path) -> dict[str, Path]:
    """Return what must be equal: everything but times."""
    names = {"mlcalib.json", "costs.json", "README.md"}
    kept = [path for path in out.rglob("*") if path.is_file() and path.name not in names]
    inside = ("checkpoints", "layers.json")
    return {
        str(path.relative_to(out)): path
        for path in kept
        if any(part in inside for part in path.relative_to(out).parts)
    }


def compare(a: Path, b: Path) -> None:
    first, second = files(a), files(b)
    if first.keys() != second.keys():
        sys.exit(f"not the same files: {sorted(first.keys() ^ second.keys())[:5]}")
    different = [
        name for name in first if not filecmp.cmp(first[name], second[name], shallow=False)
    ]
    if different:
        sys.exit(f"different: {different[:5]}")
    print(f"{len(first)} files are the same, byte by byte", flush=True)


def kill(spec: Path, out: Path, kills: int, longest: float) -> None:
    """Kill runs after random times until so many were hit; then let one run to its end."""
    generator = random.Random(0)
    hit = 0
    while hit < kills:
        process = start(spec, out)
        deadline = time.perf_counter() + generator.uniform(3, longest)
        while time.perf_counter() < deadline and process.poll() is None:
            time.sleep(0.01)
        if process.poll() is None:
            process.kill()
            hit += 1
        process.communicate()
        done = len(list(out.rglob("blocks/*.safetensors")))
        ready = len(list(out.glob("*/checkpoints/*/mlcalib.json")))
        print(f"kill {hit}: {done} blocks and {ready} checkpoints finished", flush=True)
        if process.returncode == 0:
            print(f"it ended after {hit} kills; begin again with a shorter time", flush=True)
            break
    process = start(spec, out)
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(errors)
    print(f"{hit} kills, then finished")


def fill(spec: Path, reference: Path, disk: Path) -> None:
    """Run out of disk, say so, and go on when there is room."""
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", disk], check=True)
    try:
        process = start(spec, disk / "study")
        _, errors = process.communicate()
        print(f"exit status {process.returncode}: {errors.strip().splitlines()[-1]}", flush=True)
        if not process.returncode:
            sys.exit("the disk was not full")
        subprocess.run(["mount", "-o", "remount,size=4g", disk], check=True)
        process = start(spec, disk / "study")
        _, errors = process.communicate()
        if process.returncode:
            sys.exit(errors)
        compare(reference, disk / "study")
    finally:
        subprocess.run(["umount", disk], check=True)
        disk.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--longest", type=float, default=40, help="seconds before a kill, at most")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    model = arguments.work / "smollm2"
    if not model.is_dir():
        load_model(str(find_smollm2())).save_pretrained(model)
        load_tokenizer(str(find_smollm2())).save_pretrained(model)
    spec = arguments.work / "killed.yaml"
    spec.write_text(yaml.safe_dump({**SPEC, "models": [str(model)]}))
    process = start(spec, arguments.work / "whole")
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(errors)
    kill(spec, arguments.work / "killed", arguments.kills, arguments.longest)
    compare(arguments.work / "whole", arguments.work / "killed")
    fill(spec, arguments.work / "whole", arguments.work / "disk")


if __name__ == "__main__":
    main()
