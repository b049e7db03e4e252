"""Safetensors headers, and the index of a folder of files."""

import json
import random
from pathlib import Path

import harness
import mutators

with harness.instrumented():
    from mlcalib.common.safetensors_read import INDEX, SINGLE, read_header, validate_folder

from safetensors import safe_open

SHARD = "model-00001-of-00001.safetensors"


def read(folder: Path, data: bytes) -> None:
    """Read a file that begins with 0 as weights, one that begins with 1 as an index."""
    file = folder / SINGLE
    index = data[:1] == b"\1"
    try:
        if index:
            (folder / INDEX).write_bytes(data[1:])
            (folder / SHARD).write_bytes(safetensors({"a": ("U8", [3], 3)}))
            validate_folder(folder)
        else:
            file.write_bytes(data[1:])
            header = read_header(file)
            with safe_open(file, "pt") as opened:  # what is not refused can be loaded
                harness.promise(set(opened.keys()) == set(header), "other tensors than safetensors")
                for name in header:
                    harness.promise(
                        list(opened.get_slice(name).get_shape()) == [*header[name].shape],
                        "another shape than safetensors",
                    )
    finally:
        for each in (file, folder / INDEX, folder / SHARD):
            each.unlink(missing_ok=True)


def mutate(data: bytes, seed: int) -> bytes:
    """Change the header, and mostly its length with it."""
    draw = random.Random(seed)
    kind, content = data[:1], data[1:]
    if kind == b"\1":
        return kind + mutators.json_value(content, draw)
    if draw.random() < 0.05 or len(content) < 8:
        return kind + mutators.raw(content, draw)
    length = int.from_bytes(content[:8], "little")
    header, values = content[8 : 8 + length], content[8 + length :]
    change = draw.choice([mutators.json_value, mutators.json_value, mutators.raw])
    header = change(header, draw)
    if draw.random() < 0.1:
        values = values[: draw.randrange(len(values) + 1)] + bytes(draw.randrange(9))
    return b"\0" + len(header).to_bytes(8, "little") + header + values


def safetensors(tensors: dict[str, tuple[str, list[int], int]], **metadata: str) -> bytes:
    """Return a file of zeros: name → dtype, shape and bytes."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    content = json.dumps(header).encode()
    return len(content).to_bytes(8, "little") + content + bytes(at)


def seeds() -> list[bytes]:
    """Return files of one and of several tensors, and an index."""
    files = [
        safetensors({}),
        safetensors({"a": ("F32", [2, 3], 24)}, format="pt"),
        safetensors({"a": ("BF16", [4], 8), "b": ("F4", [4], 2), "c": ("I64", [], 8)}),
        safetensors({"a": ("U8", [0, 5], 0), "b": ("F8_E4M3", [3, 1], 3)}, record="{}"),
    ]
    index = {"metadata": {"total_size": 3}, "weight_map": {"a": SHARD}}
    return [*(b"\0" + file for file in files), b"\1" + json.dumps(index).encode()]


WORDS = ["dtype", "shape", "data_offsets", "__metadata__", "F32", "F4", "BOOL", "version ", "{}"]

if __name__ == "__main__":
    harness.fuzz(read, seeds(), mutate, WORDS)
