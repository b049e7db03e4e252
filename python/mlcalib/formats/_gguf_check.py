"""A GGUF file: can it be read, and does llama.cpp know what is in it."""

from pathlib import Path
from typing import Any

import numpy as np

from mlcalib.common.optional import optional
from mlcalib.formats._gguf_reader import GGUF_GRIDS, read_gguf
from mlcalib.formats._readers import Facts

_SECTION = {"quant_method": "gguf"}
_BLOCKS = {"Q4_0": (18, 1), "Q4_1": (20, 2), "Q8_0": (34, 1)}  # bytes; float16 at their start


def inspect(file: Path) -> tuple[Facts, list[str]]:
    """Return what is known of a file, and what is wrong with it, tensor by tensor.

    Raises:
        ImportError: the package gguf is missing.
    """
    gguf = optional("gguf", "gguf", "checking a GGUF file")
    try:
        reader = read_gguf(file)
    except ValueError as error:
        return Facts(_SECTION), [str(error)]
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
        if not _finite(tensor):
            errors.append(f"{tensor.name} has values or scales that are not finite")
        if tensor.tensor_type.name in GGUF_GRIDS and len(tensor.shape) == 2:
            specs[tensor.name] = GGUF_GRIDS[tensor.tensor_type.name]
            shapes[tensor.name] = (int(tensor.shape[1]), int(tensor.shape[0]))
    return Facts(_SECTION, specs, shapes), errors


def _finite(tensor: Any) -> bool:
    """Return whether values, or scales and minima of blocks that mlcalib knows, are finite."""
    kind, data = tensor.tensor_type.name, tensor.data
    if kind in ("F32", "F16"):
        return bool(np.isfinite(data).all())
    if kind not in _BLOCKS:
        return True
    size, halves = _BLOCKS[kind]
    heads = data.reshape(-1, size)[:, : 2 * halves].copy()
    return bool(np.isfinite(heads.view(np.float16)).all())


def _small_fields(reader: Any) -> dict[str, Any]:
    return {name: field for name, field in reader.fields.items() if len(field.data) == 1}
