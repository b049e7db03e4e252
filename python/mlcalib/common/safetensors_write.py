"""Safetensors files written piece by piece: from tensors, or from other files without loading them.

The same bytes as safetensors' own ``save_file`` gives.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from mlcalib.common.safetensors_read import INDEX, SINGLE, TensorEntry, data_start, read_header

_CHUNK = 1 << 24
# Files hold tensors by falling alignment: this is safetensors' own order of dtypes, then by name.
_ORDER = (
    *("BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"),
    *("F8_E4M3FNUZ", "F8_E5M2FNUZ", "I16", "U16", "F16", "BF16", "I32", "U32", "F32"),
    *("C64", "F64", "I64", "U64"),
)
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
}


@dataclass(frozen=True)
class Piece:
    """A tensor to be written.

    Attributes:
        dtype: safetensors' name.
        shape: its shape.
        size: bytes.
        chunks: gives its bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    size: int
    chunks: Callable[[], Iterator[memoryview | bytes]]


def tensor_piece(tensor: Tensor) -> Piece:
    """Return a tensor in memory as a piece.

    Raises:
        ValueError: a dtype that no checkpoint holds.
    """
    if tensor.dtype not in _NAMES:
        raise ValueError(
            f"a tensor is {tensor.dtype}; expected one of {', '.join(map(str, _NAMES))}"
        )

    def chunks() -> Iterator[memoryview]:
        flat = tensor.detach().cpu().contiguous().flatten()
        yield flat.view(torch.uint8).numpy().data

    size = tensor.numel() * tensor.element_size()
    return Piece(_NAMES[tensor.dtype], tuple(tensor.shape), size, chunks)


def file_pieces(path: str | Path) -> dict[str, Piece]:
    """Return the tensors of a safetensors file as pieces; read when they are written.

    Raises:
        ValueError: the file is damaged.
    """
    header = read_header(path)
    start = data_start(path)

    def piece(entry: TensorEntry) -> Piece:
        def chunks() -> Iterator[bytes]:
            with Path(path).open("rb") as file:
                file.seek(start + entry.begin)
                for at in range(entry.begin, entry.end, _CHUNK):
                    yield file.read(min(_CHUNK, entry.end - at))

        return Piece(entry.dtype, entry.shape, entry.end - entry.begin, chunks)

    return {name: piece(entry) for name, entry in header.items()}


def write_safetensors(
    path: str | Path, pieces: Mapping[str, Piece], metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file; whole or not at all, and safe on disk when this returns.

    Args:
        path: the file; one that is there is replaced.
        pieces: by name.
        metadata: of the header.

    Raises:
        OSError: the file cannot be written, as on a full disk; names it.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            _write(file, pieces, metadata)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_checkpoint_files(
    folder: Path, pieces: Mapping[str, Piece], max_shard_size: int | str
) -> None:
    """Write model.safetensors, or shards and their index."""
    from huggingface_hub import split_state_dict_into_shards_factory

    split = split_state_dict_into_shards_factory(
        dict(pieces),
        get_storage_size=lambda piece: piece.size,
        get_storage_id=lambda _: None,
        filename_pattern=SINGLE.replace(".safetensors", "{suffix}.safetensors"),
        max_shard_size=max_shard_size,
    )
    for file, names in split.filename_to_tensors.items():
        # transformers asks for the format key.
        write_safetensors(folder / file, {name: pieces[name] for name in names}, {"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")


def _write(file: BinaryIO, pieces: Mapping[str, Piece], metadata: Mapping[str, str]) -> None:
    ordered = sorted(pieces, key=lambda name: (-_ORDER.index(pieces[name].dtype), name))
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name in ordered:
        piece = pieces[name]
        span = [end, end + piece.size]
        header[name] = {"dtype": piece.dtype, "shape": piece.shape, "data_offsets": span}
        end += piece.size
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    file.write(len(raw).to_bytes(8, "little") + raw)
    _copy(file, (pieces[name] for name in ordered))


def _copy(file: BinaryIO, pieces: Iterable[Piece]) -> None:
    for piece in pieces:
        for chunk in piece.chunks():
            file.write(chunk)
