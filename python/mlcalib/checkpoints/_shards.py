"""Safetensors files written as tensors come, in bounded memory."""

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from mlcalib.common.safetensors_read import INDEX, SINGLE


def save_tensors(
    tensors: Iterable[tuple[str, Tensor]], folder: Path, max_shard_size: int = 2 * 10**9
) -> None:
    """Write model.safetensors, or shards and their index.

    Args:
        tensors: by name; at most a shard of them is held in memory.
        folder: where.
        max_shard_size: of a file, in bytes; one larger tensor still fits.
    """
    shards: list[dict[str, int]] = []  # tensor → bytes, of each file
    pending: dict[str, Tensor] = {}

    def flush() -> None:
        # transformers asks for the format key.
        save_file(pending, folder / f"shard-{len(shards)}", {"format": "pt"})
        shards.append({name: tensor.nbytes for name, tensor in pending.items()})
        pending.clear()

    for name, tensor in tensors:
        held = sum(each.nbytes for each in pending.values())
        if pending and held + tensor.nbytes > max_shard_size:
            flush()
        pending[name] = tensor.contiguous()
    flush()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / SINGLE)
        return
    places = {}
    for number, shard in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        places.update(dict.fromkeys(shard, file))
    total = sum(size for shard in shards for size in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")
