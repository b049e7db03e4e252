"""Importance matrices of llama.cpp, in both layouts."""

import random
import struct
from pathlib import Path

import harness
import mutators
from gguf_files import changed, floats, written

with harness.instrumented():
    from mlcalib.checkpoints.imatrix_file import ImportanceFile


def read(folder: Path, data: bytes) -> None:
    """Read a file; what is read can be written and read again."""
    file, again = folder / "imatrix", folder / "again.dat"
    file.write_bytes(data)
    try:
        found = ImportanceFile.load(file)
        found.save(again)
        ImportanceFile.load(again)
    finally:
        file.unlink()
        again.unlink(missing_ok=True)


def mutate(data: bytes, seed: int) -> bytes:
    """Change a number or bytes."""
    draw = random.Random(seed)
    if data.startswith(b"GGUF"):
        return changed(data, draw)
    if draw.random() < 0.7 and len(data) >= 4:
        places = [(at, 4) for at in range(len(data) - 3)]
        return mutators.count(data, draw, places)
    return mutators.raw(data, draw)


def legacy(ends: bool) -> bytes:
    """Return a file of the layout before July 2025, with or without the text at its end."""
    parts = [struct.pack("<i", 2)]
    for name in (b"blk.0.attn_q.weight", b"a"):
        parts += [struct.pack("<i", len(name)), name, struct.pack("<ii4f", 3, 4, 1, 2, 3, 4)]
    return b"".join([*parts, struct.pack("<ii", 3, 4), b"text"] if ends else parts)


def modern(experts: int, sums: bool) -> bytes:
    """Return a file of the GGUF-based layout."""
    values = {
        "general.type": ("add_string", "imatrix"),
        "imatrix.datasets": ("add_array", ["a", "b"]),
        "imatrix.chunk_count": ("add_uint32", 3),
        "imatrix.chunk_size": ("add_uint32", 512),
    }
    tensors = {}
    for name in ("blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"):
        tensors[f"{name}.in_sum2"] = floats(experts, 4)
        tensors[f"{name}.counts"] = floats(experts, 1) * 0 + 9
        if sums:
            tensors[f"{name}.in_sum"] = floats(experts, 4)
    return written("imatrix", values, tensors)


def seeds() -> list[bytes]:
    """Return files of both layouts."""
    return [legacy(True), legacy(False), modern(1, True), modern(3, False)]


WORDS = [
    "GGUF", "general.type", "imatrix", "imatrix.datasets", "imatrix.chunk_count", ".in_sum2",
    ".in_sum", ".counts", "blk.0.",
]  # fmt: skip

if __name__ == "__main__":
    harness.fuzz(read, seeds(), mutate, WORDS)
