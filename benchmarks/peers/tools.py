"""Quantize the prepared model with one tool, by its public interface alone.

    python benchmarks/peers/tools.py TOOL PREPARED OUT [--bits 4] [--group-size 64] [--iters 10]

Run in the environment of the tool. Writes OUT.safetensors, the dequantized weights of the linears
by name, and OUT.json: options, versions, processor seconds and peak memory of this process.
"""

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]  # linear → weight, or language → token ids


def linears(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the linears of blocks: all but the head."""
    for name, module in model.named_modules():
        if hasattr(module, "in_features") and name != "lm_head" and ".layers." in f".{name}":
            yield name, module


def together(ids: Tensors) -> torch.Tensor:
    """Return all sequences, int64 [sequences, seq_len]; languages one after the other."""
    return torch.cat(list(ids.values()))


def held(model: Any) -> Tensors:
    """Return weights that a tool left dequantized in the model."""
    return {name: module.weight.detach().float().clone() for name, module in linears(model)}


def by_identity(model: Any) -> Tensors:
    """Return what packed linears make of the unit vectors: their weights."""
    found = {}
    with torch.inference_mode():
        for name, module in linears(model):
            eye = torch.eye(module.in_features, dtype=model.dtype)
            found[name] = module(eye).float().T.contiguous().clone()
    return found


def mlcalib(folder: Path, ids: Tensors, options: Any) -> Tensors:
    import mlcalib

    corpus = {code: each.tolist() for code, each in ids.items()}
    text = mlcalib.calibration(None, corpus=corpus, seq_len=len(corpus["en"][0]))
    quality = options.tool.removeprefix("mlcalib-")
    quantized = mlcalib.quantize(
        folder, text, quality=quality, bits=options.bits, group_size=options.group_size
    )
    return {name: linear.dequantize() for name, linear in quantized.linears.items()}


def llm_compressor(folder: Path, ids: Tensors, options: Any) -> Tensors:
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = {
        "num_bits": options.bits,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": options.group_size,
        "observer": "imatrix_mse",
    }
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    recipe = GPTQModifier(config_groups=groups, ignore=["lm_head"], actorder="static")
    rows = together(ids).tolist()
    ones = [[1] * len(row) for row in rows]
    oneshot(
        model=model,
        dataset=Dataset.from_dict({"input_ids": rows, "attention_mask": ones}),
        recipe=recipe,
        max_seq_length=len(rows[0]),
        num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,
    )
    return held(model)


def gptqmodel(folder: Path, ids: Tensors, options: Any) -> Tensors:
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization.config import GPTAQConfig

    more = {"gptaq": GPTAQConfig(device="cpu")} if options.tool == "gptqmodel-gptaq" else {}
    config = QuantizeConfig(
        bits=options.bits, group_size=options.group_size, sym=False, device="cpu", **more
    )
    model = GPTQModel.load(str(folder), config, dtype=torch.float32)
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in together(ids)]
    model.quantize(rows, batch_size=1)
    with TemporaryDirectory() as saved:
        model.save(saved)
        packed = GPTQModel.load(  # which reads packed weights in 16 bits alone
            saved, device="cpu", backend=BACKEND.GPTQ_TORCH, dtype=torch.float16
        )
        return by_identity(packed.model)


def auto_round(folder: Path, ids: Tensors, options: Any) -> Tensors:
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = together(ids)
    rounding = AutoRound(
        model,
        AutoTokenizer.from_pretrained(folder),
        scheme=f"W{options.bits}A16",
        group_size=options.group_size,
        sym=False,
        dataset=[row[None] for row in rows],
        iters=options.iters,
        seqlen=rows.shape[1],
        nsamples=len(rows),
        batch_size=8,
        device_map="cpu",
        amp=False,
    )
    quantized, _ = rounding.quantize()
    return held(quantized)


TOOLS: dict[str, tuple[Callable[..., Tensors], tuple[str, ...]]] = {
    "mlcalib-fast": (mlcalib, ("mlcalib",)),
    "mlcalib-balanced": (mlcalib, ("mlcalib",)),
    "mlcalib-best": (mlcalib, ("mlcalib",)),
    "llm-compressor": (llm_compressor, ("llmcompressor", "compressed-tensors")),
    "gptqmodel": (gptqmodel, ("gptqmodel",)),
    "gptqmodel-gptaq": (gptqmodel, ("gptqmodel",)),
    "auto-round": (auto_round, ("auto-round",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--iters", type=int, default=10, help="of auto-round, for each block")
    options = parser.parse_args()
    quantize, packages = TOOLS[options.tool]
    ids = load_file(options.prepared / "ids.safetensors")
    torch.manual_seed(0)
    start = time.perf_counter()
    weights = quantize(options.prepared / "float", ids, options)
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    save_file(weights, options.out.with_suffix(".safetensors"))
    record = {
        "tool": options.tool,
        "options": {k: v for k, v in vars(options).items() if k in ("bits", "group_size", "iters")},
        "versions": {name: version(name) for name in (*packages, "torch", "transformers")},
        "cpu_seconds": sum(each.ru_utime + each.ru_stime for each in spent),
        "seconds": time.perf_counter() - start,
        "peak_bytes": 1024 * max(each.ru_maxrss for each in spent),
        "threads": torch.get_num_threads(),
    }
    options.out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
