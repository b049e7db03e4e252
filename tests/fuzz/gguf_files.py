"""Small GGUF files, and where their numbers are."""

import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import mutators
import numpy as np

_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


def written(architecture: str, values: dict[str, Any], tensors: dict[str, Any]) -> bytes:
    """Return a file.

    Args:
        architecture: its ``general.architecture``.
        values: name → (name of a method of ``gguf.GGUFWriter``, value).
        tensors: name → array, or (array, type to quantize it in).
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        for name, (method, value) in values.items():
            getattr(writer, method)(name, value)
        for name, content in tensors.items():
            if isinstance(content, tuple):
                kind = gguf.GGMLQuantizationType[content[1]]
                writer.add_tensor(name, gguf.quantize(content[0], kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, content)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def changed(data: bytes, draw: random.Random) -> bytes:
    """Change a count, length, type, place or value of a file, or its bytes."""
    places, names = _places(data)
    kind = draw.random()
    if kind < 0.6 and places:
        return mutators.count(data, draw, places)
    if kind < 0.8 and len(names) > 1:  # a name that another has, or one that is somewhat different
        (at, size), (start, length) = draw.choice(names), draw.choice(names)
        new = data[start : start + length]
        if draw.random() < 0.3:
            new = mutators.raw(new, draw)[:64]
        return data[: at - 8] + len(new).to_bytes(8, "little") + new + data[at + size :]
    if kind < 0.85:
        return data[: draw.randrange(len(data) + 1)]
    return mutators.raw(data, draw)


def _places(data: bytes) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return (start, bytes) of the numbers of a file and of its strings, as far as it is whole."""
    numbers: list[tuple[int, int]] = []
    strings: list[tuple[int, int]] = []
    at = 4

    def number(size: int) -> int:
        nonlocal at
        numbers.append((at, size))
        at += size
        if at > len(data):
            raise EOFError
        return int.from_bytes(data[at - size : at], "little")

    def string() -> None:
        nonlocal at
        size = number(8)
        strings.append((at, size))
        at += size
        if at > len(data):
            strings.pop()
            raise EOFError

    def value(kind: int) -> None:
        if kind == _STRING:
            string()
        elif kind == _ARRAY:
            kind, count = number(4), number(8)
            for _ in range(min(count, 99)):
                value(kind)
        else:
            number(_WIDTHS[kind])

    try:
        number(4)
        tensors, values = number(8), number(8)
        for _ in range(values):
            string()
            value(number(4))
        for _ in range(tensors):
            string()
            for _ in range(min(number(4), 9)):
                number(8)
            number(4)
            number(8)
    except (EOFError, KeyError):
        numbers.pop()
    return numbers, strings


def floats(*shape: int) -> Any:
    """Return random float32."""
    return np.random.default_rng(0).random(shape, np.float32)
