"""A GGUF file: can it be read, and does llama.cpp know what is in it."""

import re
from collections.abc import Collection, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mlcalib.common.errors import printable
from mlcalib.common.gguf_read import GgufFile, GgufTensor, read_gguf
from mlcalib.common.optional import optional
from mlcalib.formats._gguf_blocks import GGUF_GRIDS, block_bytes, fields
from mlcalib.formats._gguf_names import architecture_names
from mlcalib.formats._readers import Facts
from mlcalib.formats._section import Problem

_SECTION = {"quant_method": "gguf"}


def inspect(file: Path) -> tuple[Facts, list[Problem]]:
    """Return what is known of a file, and what is wrong with it, tensor by tensor.

    Raises:
        ImportError: the package gguf is missing.
    """
    gguf = optional("gguf", "gguf", "checking a GGUF file")
    try:
        reader = read_gguf(file)
    except ValueError as error:
        return Facts(_SECTION), [("damaged", str(error))]
    values = reader.values
    problems: list[Problem] = list(_part_of_a_model(file, values))
    if not problems:
        problems += _as_a_model(file, values, reader, gguf.MODEL_ARCH_NAMES.values())
    specs, shapes = {}, {}
    for tensor in reader.tensors:
        if not _finite(tensor):
            problem = f"{printable(tensor.name)} has values or scales that are not finite"
            problems.append(("damaged", problem))
        if tensor.tensor_type.name in GGUF_GRIDS and len(tensor.shape) == 2:
            specs[tensor.name] = GGUF_GRIDS[tensor.tensor_type.name]
            shapes[tensor.name] = (tensor.shape[1], tensor.shape[0])
    section = {**_SECTION, "architecture": str(values.get("general.architecture"))}
    return Facts(section, specs, shapes), problems


def _part_of_a_model(file: Path, values: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield why a file is no model by itself."""
    if (kind := values.get("general.type", "model")) != "model":
        yield (
            "unread",
            f"{file} holds no model, but what its general.type calls {printable(repr(kind))}",
        )
    if isinstance(count := values.get("split.count"), int) and count > 1:
        yield (
            "unread",
            (f"{file} is one of {count} parts; put them together with llama-gguf-split --merge"),
        )


def _as_a_model(
    file: Path, values: Mapping[str, Any], reader: GgufFile, architectures: Collection[str]
) -> Iterator[Problem]:
    """Yield what a model's file lacks; of its tensors, where mlcalib knows the architecture."""
    architecture = values.get("general.architecture")
    if architecture not in architectures:
        version = metadata.version("gguf")
        yield (
            "refused",
            (
                f"llama.cpp (as of the package gguf {version}): {file} has architecture "
                f"{printable(repr(architecture))}, which it does not know"
            ),
        )
    for key in ("tokenizer.ggml.model", "tokenizer.ggml.tokens"):
        if key not in reader.values and key not in reader.arrays:
            yield "damaged", f"{file} has no {key}: there is no tokenizer"
    if architecture not in architecture_names().values():
        return
    names = {tensor.name for tensor in reader.tensors}
    if "token_embd.weight" not in names:
        yield "damaged", f"{file} has no token_embd.weight"
    blocks = values.get(f"{architecture}.block_count")
    found = {each[1] for name in names if (each := re.match(r"blk\.(\d+)\.", name))}
    if not isinstance(blocks, int) or found != {str(block) for block in range(min(blocks, 10_000))}:
        yield "damaged", f"{file} has block_count {blocks!r}, but tensors of {len(found)} blocks"


def _finite(tensor: GgufTensor) -> bool:
    """Return whether values, or scales and minima of blocks that mlcalib knows, are finite."""
    kind, data = tensor.tensor_type.name, tensor.data
    if kind in ("F32", "F16"):
        return bool(np.isfinite(data).all())
    if kind not in GGUF_GRIDS:
        return True
    blocks = data.reshape(-1, block_bytes(kind))
    numbers = [
        blocks[:, at : at + size].copy() for field, at, size in fields(kind) if field in ("d", "m")
    ]
    return all(bool(np.isfinite(each.view(np.float16)).all()) for each in numbers)
