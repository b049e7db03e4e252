"""Time and peak memory of one study against separate `mlcalib quantize` runs of the same settings.

    python benchmarks/python/study_against_runs.py TEXT WORK paper [--separate 16]
    python benchmarks/python/study_against_runs.py TEXT WORK mixtures [--separate 4]

`paper` is the grid of the preset paper-small with 40,960 tokens in each setting; `mixtures` are 20
mixtures of the ten languages from one set of per-language statistics, 4,096 tokens each, for GPTQ
and AWQ. Only quantization is timed: no evaluation, no layer measures. Each run is a process of its
own; --separate of the variants are run alone, spread evenly; their mean is scaled to all. Every
checkpoint that was made both ways is compared byte by byte. What was measured is kept in WORK, not
measured again. Processor time is what to compare on a machine that does other things too.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from mlcalib import _core
from mlcalib.common.sha256 import file_sha256
from mlcalib.languages import language_set
from mlcalib.models.loading import find_smollm2, load_model, load_tokenizer
from mlcalib.studies import read_study, settings_of, variants_of

MLCALIB = str(Path(sys.executable).with_name("mlcalib"))


def mixtures() -> list[dict[str, Any]]:
    """Return 20 mixtures: even, each language favoured fourfold, nine more drawn at random."""
    codes = list(language_set("multi10").weights)
    found = [dict.fromkeys(codes, 1.0)]
    found += [{**dict.fromkeys(codes, 1.0), code: 4.0} for code in codes]
    generator = torch.Generator().manual_seed(0)
    for _ in range(9):
        drawn = torch.rand(len(codes), generator=generator).tolist()
        found.append(
            {code: round(0.1 + share, 3) for code, share in zip(codes, drawn, strict=True)}
        )
    return [
        {
            "languages": ",".join(f"{code}:{share}" for code, share in shares.items()),
            "tokens_per_language": 4096,
            "name": f"mix{index:02}",
        }
        for index, shares in enumerate(found)
    ]


def study_spec(kind: str, model: Path, text: Path) -> dict[str, Any]:
    spec = read_study("paper-small").model_dump(exclude_defaults=True, mode="json")
    spec |= {"models": [str(model)], "corpus": f"files:{text}", "tokens": 40_960}
    spec |= {"evaluation": None, "layers": None, "allow_short": False}
    if kind == "mixtures":
        spec |= {"name": "mixtures", "settings": mixtures()}
    return spec


def measured(command: list[str]) -> dict[str, float]:
    """Run a command; return wall and processor time in seconds, and the peak of resident memory."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    return {
        "wall": time.perf_counter() - start,
        "processor": usage.ru_utime + usage.ru_stime,
        "peak MB": usage.ru_maxrss / 1024,
    }


def separate(spec: dict[str, Any], name: str, out: Path) -> list[str]:
    study = read_study(spec)
    variant = variants_of(study)[name]
    setting = settings_of(study)[variant.setting or ""]
    budget = ["--tokens", str(setting.tokens)]
    if setting.tokens_per_language is not None:
        budget = ["--tokens-per-language", str(setting.tokens_per_language)]
    return [
        *(MLCALIB, "quantize", spec["models"][0], "--out", str(out), "--method", variant.method),
        *("--bits", "4", "--group-size", "64", "--propagate", "float"),
        *("--languages", setting.languages, "--corpus", spec["corpus"], *budget),
    ]


def kept(path: Path, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a file holds, or what a run gives, which then goes there."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run()))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def run_study(path: Path, out: Path) -> dict[str, Any]:
    found: dict[str, Any] = measured([MLCALIB, "study", str(path), "--out", str(out)])
    weights = out.glob("*/checkpoints/*/model.safetensors")
    return found | {"sha256": {each.parent.name: file_sha256(each) for each in weights}}


def run_alone(spec: dict[str, Any], name: str, out: Path) -> dict[str, Any]:
    found: dict[str, Any] = measured(separate(spec, name, out))
    found["sha256"] = file_sha256(out / "model.safetensors")
    shutil.rmtree(out)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("kind", choices=["paper", "mixtures"])
    parser.add_argument("--separate", type=int, help="variants that are run alone; default: all")
    parser.add_argument("--only", choices=["study", "separate"], help="one half; the other later")
    arguments = parser.parse_args()
    model = arguments.work / "smollm2"
    if not model.is_dir():
        load_model(str(find_smollm2())).save_pretrained(model)
        load_tokenizer(str(find_smollm2())).save_pretrained(model)
    spec = study_spec(arguments.kind, model, arguments.text.resolve())
    path = arguments.work / f"{arguments.kind}.yaml"
    path.write_text(yaml.safe_dump(spec))
    threads = torch.get_num_threads()
    results = arguments.work / f"{arguments.kind}-{_core.isa()}-{threads}-threads"
    print(f"{results.name}, load {os.getloadavg()[0]:.1f}", flush=True)
    names = list(variants_of(read_study(spec)))
    step = len(names) / (arguments.separate or len(names))
    chosen = [names[int(index * step)] for index in range(arguments.separate or len(names))]
    runs, whole = {}, {}
    if arguments.only != "separate":
        out = arguments.work / arguments.kind
        whole = kept(results / "study.json", lambda: run_study(path, out))
        print("study", {key: whole[key] for key in ("wall", "processor", "peak MB")}, flush=True)
    for name in chosen if arguments.only != "study" else []:
        alone = arguments.work / f"alone-{name}"
        runs[name] = kept(results / f"{name}.json", lambda: run_alone(spec, name, alone))  # noqa: B023
        print(name, runs[name], flush=True)
    if not (runs and whole):
        return
    scale = len(names) / len(chosen)
    for key in ("wall", "processor"):
        total = sum(run[key] for run in runs.values()) * scale
        print(
            f"{key}: study {whole[key]:.0f} s, {len(names)} separate runs {total:.0f} s "
            f"({len(chosen)} measured): ratio {whole[key] / total:.3f}"
        )
    peak = max(run["peak MB"] for run in runs.values())
    print(f"peak: study {whole['peak MB']:.0f} MB, separate {peak:.0f} MB")
    different = [name for name, run in runs.items() if run["sha256"] != whole["sha256"][name]]
    print(f"checkpoints that differ: {different or 'none'} of {len(chosen)}")


if __name__ == "__main__":
    main()
