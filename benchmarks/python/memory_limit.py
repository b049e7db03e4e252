"""Quantize a model that is larger than the memory allowed, under a memory cgroup.

    python benchmarks/python/memory_limit.py FOLDER [--limit 4] [--languages en,sw] [--tokens 1024]

Writes a Llama of 3.2 B parameters with random bfloat16 weights (6.4 GB) to FOLDER/model, then runs
`mlcalib quantize` on it in a process of its own, inside a cgroup (v1, or v2 where memory is
delegated) that kills what takes more than --limit GiB. Needs root. The limit counts the process's
resident memory, and page cache only as far as the kernel will not give it up.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoConfig, LlamaConfig

from mlcalib.common.safetensors_write import Piece, tensor_piece, write_checkpoint_files
from mlcalib.models.loading import find_smollm2, load_tokenizer, skeleton

SHAPE = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
}


def write_model(folder: Path, layers: int) -> int:
    """Write a random Llama a tensor at a time; return its bytes."""
    folder.mkdir(parents=True)
    config = LlamaConfig(**{**SHAPE, "num_hidden_layers": layers}, dtype=torch.bfloat16)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    load_tokenizer(str(find_smollm2())).save_pretrained(folder)
    assert AutoConfig.from_pretrained(folder).hidden_size == SHAPE["hidden_size"]
    pieces = {}
    for seed, (name, like) in enumerate(skeleton(str(folder)).state_dict().items()):
        if name != "lm_head.weight":
            pieces[name] = random_piece(like.shape, seed, 1.0 if "norm" in name else 0.0)
    write_checkpoint_files(folder, pieces, "2GB")
    return sum(piece.size for piece in pieces.values())


def random_piece(shape: torch.Size, seed: int, centre: float) -> Piece:
    like = tensor_piece(torch.empty(shape, dtype=torch.bfloat16, device="meta"))

    def chunks() -> Iterator[memoryview | bytes]:
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(shape, generator=generator, dtype=torch.float32) * 0.02 + centre
        yield from tensor_piece(values.bfloat16()).chunks()

    return Piece(like.dtype, like.shape, like.size, chunks)


def limited(limit: int) -> Path:
    """Make a memory cgroup and return the file that takes a process into it."""
    first = Path("/sys/fs/cgroup/memory")
    root = first if first.is_dir() else Path("/sys/fs/cgroup")
    group = root / f"mlcalib-{os.getpid()}"
    group.mkdir()
    name = "memory.limit_in_bytes" if first.is_dir() else "memory.max"
    (group / name).write_text(str(limit))
    return group / "cgroup.procs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=float, default=4.0, help="GiB")
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"])
    parser.add_argument("--languages", default="en,sw")
    parser.add_argument("--corpus", default="sample")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--propagate", default="float")
    arguments = parser.parse_args()
    model = arguments.folder / "model"
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    if not size:
        size = write_model(model, arguments.layers)
    procs = limited(int(arguments.limit * 2**30))
    mlcalib = Path(sys.executable).with_name("mlcalib")
    command = [
        *(str(mlcalib), "quantize", str(model), "--out", str(arguments.folder / "quantized")),
        *("--languages", arguments.languages, "--corpus", arguments.corpus),
        *("--tokens", str(arguments.tokens), "--propagate", arguments.propagate),
        *("--hidden-states", "disk"),
    ]
    start = time.perf_counter()
    done = subprocess.run(
        command, preexec_fn=lambda: procs.write_text(str(os.getpid())), check=False
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    procs.parent.rmdir()
    result = {
        "exit status": done.returncode,
        "model GB": round(size / 1e9, 2),
        "limit GiB": arguments.limit,
        "peak resident GiB": round(peak / 2**30, 2),
        "seconds": round(time.perf_counter() - start),
    }
    print(json.dumps(result))
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
