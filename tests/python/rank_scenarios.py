"""What three processes of torchrun do together for ``test_ranks``; results are in files."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import mlcalib
from mlcalib.common.ranks import Ranks
from mlcalib.common.torchrun import joined_ranks
from mlcalib.quantization.quantize_checkpoint import plan_checkpoint, quantize_checkpoint
from mlcalib.quantization.shared_sink import SharedSink
from mlcalib.statistics import pairwise

# In sequences of 32 tokens: 17 and 9, of which 4 make a leaf of a sum.
LEAF = 128
LONG = {
    code: [[(7 * i + j * j + start) % 360 for j in range(53)] for i in range(count)]
    for start, (code, count) in enumerate({"en": 10, "sw": 5}.items())
}
OPTIONS = {
    "gptq": {"method": "gptq"},
    "gptq-float": {"method": "gptq", "propagate": "float", "hidden_states": "disk"},
    "corrected": {"method": "gptq", "correction": 0.5},
    # 4 and 2 sequences, of which 4 make a leaf.
    "fisher": {"method": "gptq", "correction": "auto", "fisher_tokens": 180},
    "fisher-worst": {"method": "gptq", "fisher_tokens": 500, "objective": "worst"},
    "fisher-text": {"method": "gptq", "fisher_tokens": 10_000, "fisher_labels": "text"},
    "fisher-awq": {"method": "awq", "propagate": "float", "fisher_tokens": 10_000},
    "fisher-mixtral": {
        "method": "gptq",
        "model": "mixtral",
        "format": "dense",
        "fisher_tokens": 10_000,
    },
    "awq": {"method": "awq", "symmetric": True},
    "awq-block": {"method": "awq", "objective": "block", "probe_tokens": 128},
    "rtn": {"method": "rtn"},
    "turns": {"method": "awq", "memory": 1e-6},
    "mixtral": {"method": "gptq", "model": "mixtral", "format": "dense"},
    "mixtral-awq": {"method": "awq", "model": "mixtral", "format": "dense"},
    "mixtral-diagonal": {
        "method": "gptq",
        "model": "mixtral",
        "format": "dense",
        "memory": 1e-6,
    },
    "mixtral-awq-diagonal": {
        "method": "awq",
        "propagate": "float",
        "model": "mixtral",
        "format": "dense",
        "memory": 1e-6,
    },
    "mixtral-skipped": {
        "method": "awq",
        "model": "mixtral",
        "format": "dense",
        "ignore": [r"\.experts\."],
    },
    "mixtral-turns": {"method": "gptq", "model": "mixtral", "format": "dense", "memory": "turns"},
}


THREE = ("gptq", "fisher-text", "awq", "mixtral", "mixtral-diagonal")
SIZES = {name: (1, 2, 3) if name in THREE else (1, 2) for name in OPTIONS}


class Stopped(Exception):  # noqa: N818 - not an error of ours
    """Stands for the end of all ranks between two blocks."""


def quantize(folder, out, ranks, options):
    """Quantize as the scenario of a name asks."""
    given = {"group_size": 32, "model": "llama", **options}
    text = None
    if given["method"] != "rtn":
        text = mlcalib.calibration(None, corpus=LONG, seq_len=32)
    model = folder / given.pop("model")
    if given.get("memory") == "turns":  # as much as one language at a time takes
        del given["memory"]
        plan = plan_checkpoint(model, text, ranks=ranks, **given)
        given["memory"] = (plan.total - min(plan.needs.statistics.values()) + 1) / 1e9
        plan = plan_checkpoint(model, text, ranks=ranks, **given)
        assert (len(plan.groups), plan.diagonal) == (2, False), plan.table()
    quantize_checkpoint(model, folder / out, text, ranks=ranks, progress=False, **given)


def interrupted(folder, ranks):
    """Stop all ranks after two blocks, and let the first go on by itself."""
    keep, kept = SharedSink.keep, []

    def keeping(sink, *given):
        keep(sink, *given)
        kept.append(given)
        if len(kept) == 2:
            raise Stopped

    SharedSink.keep = keeping
    try:
        quantize(folder, "resumed", ranks, {"method": "gptq"})
    except Stopped:
        SharedSink.keep = keep
    if ranks.writes:
        quantize(folder, "resumed", Ranks(), {"method": "gptq"})


def unlike(folder, ranks):
    """Return what is said where ranks were given different options."""
    try:
        quantize(folder, "unlike", ranks, {"method": "gptq", "damp": 0.01 + 0.01 * ranks.rank})
    except ValueError as error:
        return str(error)
    return ""


def main(folder):
    """Run all scenarios."""
    torch.set_num_threads(1)
    pairwise.LEAF_TOKENS = LEAF
    told = {}
    with joined_ranks() as every:
        groups = {}
        for size in (1, 2, 3):
            if every.rank < size:
                store = dist.PrefixStore(f"of {size}", every._store)
                groups[size] = Ranks(every.rank, size, store, local_size=size)
        for size, ranks in groups.items():
            for name in [name for name in OPTIONS if size in SIZES[name]]:
                options = OPTIONS[name]
                quantize(folder, f"{name}-{size}", ranks, options)
            if size < 3:
                spec = json.loads((folder / "study.json").read_text())
                mlcalib.study(spec, folder / f"study-{size}", ranks=ranks, progress=False, echo=str)
        if 2 in groups:
            quantize(folder, "gptq-2-again", groups[2], OPTIONS["gptq"])
        told["unlike"] = unlike(folder, every)
        interrupted(folder, every)
        (folder / f"told-{every.rank}.json").write_text(json.dumps(told))
        every.wait()
        if every.rank == 1:
            raise OSError(28, "No space left on device")
        every.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
