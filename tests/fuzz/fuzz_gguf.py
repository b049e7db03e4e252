"""GGUF files of models: what ``check`` says of them, and the linears that are read back."""

import functools
import importlib.metadata
import random
from pathlib import Path
from typing import Any

import harness
from gguf_files import changed, floats, written
from transformers import logging

# What is installed does not change here, and is asked for all the time.
importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)

with harness.instrumented():
    from mlcalib.checkpoints import open_checkpoint
    from mlcalib.checkpoints.check import check


def read(folder: Path, data: bytes) -> None:
    """Check a file, and read all of its tensors."""
    file = folder / "model.gguf"
    file.write_bytes(data)
    try:
        str(check(file)).encode()
        checkpoint = open_checkpoint(file)
        for name in checkpoint.linears:
            checkpoint.linear(name)
        for name in checkpoint.others:
            checkpoint.tensor(name)
    finally:
        file.unlink()


def mutate(data: bytes, seed: int) -> bytes:
    """Change a number, a name or bytes."""
    return changed(data, random.Random(seed))


def model(kind: str, *, tied: bool = False, **more: Any) -> bytes:
    """Return a Llama of one block and eight tokens."""
    values = {
        "general.type": ("add_string", "model"),
        "llama.context_length": ("add_uint32", 64),
        "llama.embedding_length": ("add_uint32", 32),
        "llama.block_count": ("add_uint32", 1),
        "llama.feed_forward_length": ("add_uint32", 64),
        "llama.attention.head_count": ("add_uint32", 2),
        "llama.attention.head_count_kv": ("add_uint32", 1),
        "llama.attention.layer_norm_rms_epsilon": ("add_float32", 1e-5),
        "llama.rope.freq_base": ("add_float32", 1e4),
        "llama.rope.dimension_count": ("add_uint32", 16),
        "llama.vocab_size": ("add_uint32", 8),
        "tokenizer.ggml.model": ("add_string", "gpt2"),
        "tokenizer.ggml.tokens": ("add_array", [*"abcdefgh"]),
        "tokenizer.ggml.token_type": ("add_array", [1] * 8),
        "tokenizer.ggml.merges": ("add_array", ["a b"]),
        **more,
    }
    tensors: dict[str, Any] = {"token_embd.weight": floats(8, 32), "output_norm.weight": floats(32)}
    if not tied:
        tensors["output.weight"] = (floats(8, 32), "Q8_0")
    for name, shape in {
        "attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32),
        "ffn_gate": (64, 32), "ffn_up": (64, 32), "ffn_down": (32, 64),
    }.items():  # fmt: skip
        tensors[f"blk.0.{name}.weight"] = (floats(*shape), kind)
    for name in ("attn_norm", "ffn_norm"):
        tensors[f"blk.0.{name}.weight"] = floats(32)
    return written("llama", values, tensors)


def seeds() -> list[bytes]:
    """Return files in each type that is read, and ones that are refused."""
    scaling = {
        "llama.rope.scaling.type": ("add_string", "linear"),
        "llama.rope.scaling.factor": ("add_float32", 2.0),
        "general.alignment": ("add_uint32", 64),
    }
    return [
        model("Q4_0"),
        model("Q8_0", tied=True, **scaling),
        model("Q4_1", **{"llama.attention.key_length": ("add_uint32", 16)}),
        model("Q5_0"),
        model("F16"),
        written("imatrix", {}, {}),
    ]


WORDS = [
    "GGUF", "llama", "qwen2", "blk.0.", ".weight", "rope_freqs.weight", "general.alignment",
    "llama.block_count", "llama.expert_count", "split.count", "tokenizer.ggml.tokens",
]  # fmt: skip

if __name__ == "__main__":
    logging.set_verbosity_error()
    harness.fuzz(read, seeds(), mutate, WORDS)
