"""A GGUF file: can it be read, and does llama.cpp know what is in it."""

from pathlib import Path
from typing import Any

from mlcalib._core import GridSpec
from mlcalib.checking.readers import Facts
from mlcalib.optional import optional

_GRIDS = {"Q4_0": (4, True), "Q4_1": (4, False), "Q8_0": (8, True)}


def find(path: Path) -> Path | None:
    """Return the GGUF file that a path is or holds; None for a folder in the other layout."""
    if path.is_file() and path.suffix == ".gguf":
        return path
    if path.is_dir() and not (path / "config.json").is_file():
        return next(iter(sorted(path.glob("*.gguf"))), None)
    return None


def inspect(file: Path) -> tuple[Facts, list[str]]:
    """Return what is known of a file, and what is wrong with it. Tensors are mapped, not read.

    Raises:
        ImportError: the package gguf is missing.
    """
    gguf = optional("gguf", "gguf", "checking a GGUF file")
    try:
        reader = gguf.GGUFReader(file)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, UnicodeError) as error:
        return Facts("gguf"), [f"{file} is not a usable GGUF file: {type(error).__name__}: {error}"]
    values = {name: field.contents() for name, field in _small_fields(reader).items()}
    architecture = values.get("general.architecture")
    errors = []
    if architecture not in gguf.MODEL_ARCH_NAMES.values():
        errors.append(f"{file} has architecture {architecture!r}, which llama.cpp does not know")
    for key in ("tokenizer.ggml.model", "tokenizer.ggml.tokens"):
        if key not in reader.fields:
            errors.append(f"{file} has no {key}: there is no tokenizer")
    names = {tensor.name for tensor in reader.tensors}
    if "token_embd.weight" not in names:
        errors.append(f"{file} has no token_embd.weight")
    blocks = values.get(f"{architecture}.block_count")
    found = {int(name.split(".")[1]) for name in names if name.startswith("blk.")}
    if not isinstance(blocks, int) or found != set(range(min(blocks, 10_000))):
        errors.append(f"{file} has block_count {blocks!r}, but tensors of {len(found)} blocks")
    specs, shapes = {}, {}
    for tensor in reader.tensors:
        if tensor.tensor_type.name in _GRIDS and len(tensor.shape) == 2:
            specs[tensor.name] = GridSpec(*_grid(tensor))
            shapes[tensor.name] = (int(tensor.shape[1]), int(tensor.shape[0]))
    return Facts("gguf", {}, specs, shapes), errors


def _grid(tensor: Any) -> tuple[int, int, bool]:
    bits, symmetric = _GRIDS[tensor.tensor_type.name]
    return bits, 32, symmetric


def _small_fields(reader: Any) -> dict[str, Any]:
    return {name: field for name, field in reader.fields.items() if len(field.data) == 1}
