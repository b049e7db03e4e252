"""A random model of Llama-3.1-8B's shape through ``mlcalib.quantize`` on a GPU.

    python benchmarks/python/llama_cuda.py [--blocks 8] [--sequences 13] [--json OUT]

Ten languages, each with its own Gram of every input, and so many sequences of 2,048 random tokens
of each; GPTQ (float and quantized propagation) and AWQ, 4 bits, group 128. Prints seconds of each
phase and peak memory. The weights are made on the GPU. Needs mlcalib built with MLCALIB_CUDA.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import mlcalib
from mlcalib import _core
from mlcalib.calibration_sets import CalibrationSet, from_ids

LENGTH = 2048
LANGUAGES = ("en", "fr", "sw", "zh", "xh", "st", "zu", "yo", "ig", "ha")
RUNS: tuple[dict[str, Any], ...] = (
    {"method": "gptq", "propagate": "float"},
    {"method": "gptq", "propagate": "quantized"},
    {"method": "awq", "propagate": "float"},
)


def random_llama(blocks: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_attention_heads=32,
        num_key_value_heads=8,
        num_hidden_layers=blocks,
        vocab_size=128256,
        max_position_embeddings=LENGTH,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def random_text(sequences: int) -> CalibrationSet:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(128000, (len(LANGUAGES), sequences, LENGTH), generator=generator)
    return from_ids(dict(zip(LANGUAGES, ids.tolist(), strict=True)), seq_len=LENGTH)


def measure(model: LlamaForCausalLM, text: CalibrationSet, run: dict[str, Any]) -> dict[str, Any]:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held, start = torch.cuda.memory_allocated(), time.perf_counter()
    quantized = mlcalib.quantize(
        model, text, tokenizer=tokenizer, group_size=128, device="cuda", progress=False, **run
    )
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return {
        "run": " ".join(run.values()),
        "blocks": model.config.num_hidden_layers,
        "tokens": sum(text.tokens.values()),
        "seconds": round(seconds, 2),
        "a block": round(seconds / model.config.num_hidden_layers, 3),
        **{phase: round(spent, 2) for phase, spent in quantized.seconds.items()},
        "model GB": round(held / 1e9, 1),
        "peak GB": round(torch.cuda.max_memory_allocated() / 1e9, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, default=8, help="of Llama-3.1-8B's 32")
    parser.add_argument("--sequences", type=int, default=13, help="of each language")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or _core.build_info()["cuda"] == "none":
        sys.exit(
            "This needs a GPU, and mlcalib built with MLCALIB_CUDA=ON: see docs/design/cuda.md."
        )
    model, text = random_llama(arguments.blocks), random_text(arguments.sequences)
    print(
        f"{torch.cuda.get_device_name()}: {arguments.blocks} of 32 blocks of Llama-3.1-8B's shape"
    )
    for run in RUNS:
        row = measure(model, text, run)
        print(json.dumps(row), flush=True)
        if arguments.json:
            with arguments.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
