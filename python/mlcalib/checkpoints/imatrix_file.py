"""Importance matrices as files of llama.cpp: the GGUF-based layout and the one before July 2025.

Layouts are those of ``save_imatrix``, ``save_imatrix_legacy`` and their loaders in llama.cpp's
``tools/imatrix/imatrix.cpp``. A file holds one mixture: languages are not told apart any more.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlcalib.common.errors import printable
from mlcalib.common.files import atomic_path
from mlcalib.common.gguf_read import read_gguf
from mlcalib.common.optional import optional

Layout = Literal["gguf", "dat"]
Floats = NDArray[np.float32]


class Importance(NamedTuple):
    """Of one tensor of a GGUF file, whose experts are one tensor.

    Attributes:
        sums: float32 [experts or 1, in], of the input's channels; None where a file has none.
        squares: float32 [experts or 1, in], of their squares.
        counts: float32 [experts or 1], tokens; whole numbers.
    """

    sums: Floats | None
    squares: Floats
    counts: Floats


@dataclass(frozen=True, eq=False)
class ImportanceFile:
    """What a file holds.

    Attributes:
        entries: tensor of a GGUF file → its importance.
        datasets: what text it comes from.
        chunks: of text.
        chunk_size: tokens of a chunk; 1 where the file does not tell, and counts are of chunks.
    """

    entries: Mapping[str, Importance]
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int

    def save(self, path: str | Path, *, layout: Layout | None = None) -> None:
        """Write a file for ``llama-quantize --imatrix``; whole or not at all.

        Args:
            path: the file.
            layout: ``gguf``, or ``dat`` (llama.cpp before July 2025, which keeps no sums, and one
                count for all experts); None takes ``dat`` for a name that ends in .dat and ``gguf``
                for others.

        Raises:
            ValueError: an unknown layout; experts of a legacy file, which does not tell how many,
                in the GGUF-based one.
            OSError: the file cannot be written.
        """
        layout = layout or ("dat" if Path(path).suffix == ".dat" else "gguf")
        writers = {"gguf": _write_gguf, "dat": _write_dat}
        if layout not in writers:
            raise ValueError(f"layout is '{layout}', expected 'gguf' or 'dat'")
        for name, entry in self.entries.items():
            if layout == "gguf" and "_exps." in name and entry.sums is None:
                raise ValueError(
                    f"{name}: a legacy file does not tell how many experts there are, which the "
                    "GGUF-based layout wants to know; gather it again"
                )
        try:
            with atomic_path(path) as partial:
                writers[layout](partial, self)
        except struct.error as error:
            raise ValueError(
                f"{path}: the legacy layout has 32 bits for counts of chunks, which are too many "
                "here; give a name that ends in .gguf"
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> "ImportanceFile":
        """Read a file of mlcalib or llama.cpp, in either layout.

        Mean squares, ``squares / counts``, are what both layouts keep. A legacy file has them times
        its number of chunks, which stand for counts then, and all experts in one row.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or holds something else.
            ImportError: the package gguf is missing, for the GGUF-based layout.
        """
        path = Path(path)
        with path.open("rb") as file:
            modern = file.read(4) == b"GGUF"
        try:
            found = _read_gguf(path) if modern else _read_dat(path)
            _check_counts(found)
            for name, entry in found.entries.items():
                _check(printable(name), entry)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
            raise ValueError(f"{path} is not a usable importance matrix: {kind}{error}") from error
        return found


def _check_counts(found: ImportanceFile) -> None:
    if found.chunks < 0 or found.chunk_size < 1:
        raise ValueError(f"it has {found.chunks} chunks of {found.chunk_size} tokens")


def _check(name: str, entry: Importance) -> None:
    if any(part is not None and part.dtype != np.float32 for part in entry):
        raise ValueError(f"{name} has sums, squares or counts that are not float32")
    rows = len(entry.squares)
    others = [entry.counts.shape == (rows,)]
    others += [entry.sums.shape == entry.squares.shape] if entry.sums is not None else []
    if not all(others):
        raise ValueError(f"{name} has sums, squares and counts of shapes that do not fit")
    for values in (entry.squares, entry.counts):
        if not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(f"{name} has squares or counts that are negative or not finite")


def _write_gguf(path: Path, content: ImportanceFile) -> None:
    gguf = optional("gguf", "gguf", "an importance matrix")
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", list(content.datasets))
    writer.add_uint32("imatrix.chunk_count", content.chunks)
    writer.add_uint32("imatrix.chunk_size", content.chunk_size)
    for name, entry in sorted(content.entries.items()):
        writer.add_tensor(f"{name}.in_sum2", entry.squares)
        writer.add_tensor(f"{name}.counts", entry.counts[:, None])
        if entry.sums is not None:
            writer.add_tensor(f"{name}.in_sum", entry.sums)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read_gguf(path: Path) -> ImportanceFile:
    reader = read_gguf(path)
    values = reader.values
    if (kind := values.get("general.type")) != "imatrix":
        raise ValueError(f"general.type is {kind!r}, expected 'imatrix'")
    tensors: dict[str, Any] = {each.name: np.array(each.data) for each in reader.tensors}
    entries = {}
    for key, value in tensors.items():
        name, _, part = key.rpartition(".")
        if part == "in_sum2":
            squares, sums = np.atleast_2d(value), tensors.get(f"{name}.in_sum")
            counts = tensors[f"{name}.counts"].reshape(-1)
            entries[name] = Importance(
                None if sums is None else np.atleast_2d(sums), squares, counts
            )
    return ImportanceFile(
        entries,
        reader.texts("imatrix.datasets") if "imatrix.datasets" in reader.arrays else (),
        int(values["imatrix.chunk_count"]),
        int(values["imatrix.chunk_size"]),
    )


def _write_dat(path: Path, content: ImportanceFile) -> None:
    """Write mean squares times the number of chunks; one number of chunks for all experts."""
    seen = {name: entry for name, entry in sorted(content.entries.items()) if entry.counts.any()}
    parts = [struct.pack("<i", len(seen))]
    for name, entry in seen.items():
        calls = -(-int(entry.counts.max()) // content.chunk_size)
        counts = entry.counts[:, None]
        # Experts that no token reached weigh all channels alike.
        means = np.where(counts > 0, entry.squares / np.maximum(counts, 1), 1.0) * calls
        encoded = name.encode()
        parts += [struct.pack("<i", len(encoded)), encoded]
        parts += [struct.pack("<ii", calls, means.size), means.astype("<f4").tobytes()]
    encoded = (content.datasets or ("",))[0].encode()
    parts += [struct.pack("<ii", content.chunks, len(encoded)), encoded]
    path.write_bytes(b"".join(parts))


def _read_dat(path: Path) -> ImportanceFile:
    data = path.read_bytes()
    at = 0

    def take(size: int) -> memoryview:
        nonlocal at
        if size < 0 or at + size > len(data):
            raise ValueError(f"it ends, or lies about a length, at byte {at} of {len(data)}")
        at += size
        return memoryview(data)[at - size : at]

    def number() -> int:
        value: int = struct.unpack("<i", take(4))[0]
        return value

    entries = {}
    for _ in range(number()):
        name, calls = bytes(take(number())).decode(), number()
        squares = np.frombuffer(take(4 * number()), "<f4").astype(np.float32)
        entries[name] = Importance(None, squares[None], np.array([calls], np.float32))
    if at == len(data):  # llama.cpp wrote neither for a while
        return ImportanceFile(entries, (), 0, 1)
    chunks, dataset = number(), bytes(take(number())).decode()
    return ImportanceFile(entries, (dataset,), chunks, 1)
