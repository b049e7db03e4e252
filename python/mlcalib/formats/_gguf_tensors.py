"""Tensors of a model as llama.cpp's graphs read them: other names, other orders of rows.

As llama.cpp's converter does it (``modify_tensors`` in ``conversion``). Rows of packed codes move
like rows of numbers; nothing here touches the order of a row.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mlcalib.formats._gguf_family import GgufFamily
from mlcalib.formats._gguf_inside import PARTS

Stored = tuple[str, Tensor, str | None]
"""Name, values, and the type of packed blocks (uint8 [rows, bytes]) or None for a plain tensor."""
_ONE_OF = re.compile(r"\.(experts|altup_projections|altup_unembed_projections)\.(\d+)\.")
"""Of what lies in one tensor: experts of a block, or projections of Gemma 3n."""


def stored_tensors(
    config: Any, architecture: str, family: GgufFamily, names: Any, tensors: Iterable[Stored]
) -> Iterator[Stored]:
    """Yield the tensors of a file.

    Args:
        config: the model's.
        architecture: its class in transformers.
        family: how llama.cpp holds it.
        names: gguf's map of names.
        tensors: by their names in the model. A tied head is not among them.

    Raises:
        ValueError: a tensor without a name in such files, or experts that are not alike.
    """
    stacks: dict[str, dict[int, Stored]] = {}
    more = family.more(config)
    counts = {"experts": more.get("expert_count", 0)}
    for name, values, kind in _arranged(family, config, tensors):
        if (known := stored_name(name, family.names, names)) is None:
            raise ValueError(f"{name} has no name in GGUF files of {architecture}")
        saved = family.renamed(known, config)
        if (one := _ONE_OF.search(name)) is not None:
            alike = stacks.setdefault(saved, {})
            alike[int(one[2])] = (name, values, kind)
            if len(alike) == counts.get(one[1], more.get("altup.num_inputs", 0) - 1):
                yield _stacked(saved, stacks.pop(saved))
            continue
        offset = family.norm_offset and saved.endswith("norm.weight") and "ssm_" not in saved
        yield saved, values.float() + family.norm_offset if offset else values, kind
        if saved == "token_embd.weight" and family.head == "own" and config.tie_word_embeddings:
            yield "output.weight", values, kind
    if stacks:
        saved, some = next(iter(stacks.items()))
        raise ValueError(f"{saved} needs {counts['experts']} experts, and {len(some)} were given")
    for saved, shape in family.unread(config).items():
        yield saved, torch.zeros(shape, dtype=torch.float16), None


def _arranged(family: GgufFamily, config: Any, tensors: Iterable[Stored]) -> Iterator[Stored]:
    """Yield tensors whose rows lie as llama.cpp reads them; the parts of those that come apart."""
    for name, values, kind in tensors:
        ordered = family.rows(name, values, config)
        whole = next((part for part in family.splits if part in name), None)
        if whole is None:
            yield name, ordered, kind
            continue
        parts = family.splits[whole]
        rows = family.shares(config) if family.shares else [len(ordered) // len(parts)] * len(parts)
        for part, some in zip(parts, torch.split(ordered, rows), strict=True):
            yield name.replace(whole, part), some, kind


def stored_name(name: str, known: Mapping[str, str], names: Any) -> str | None:
    """Return what a file calls a tensor of a model, or the one that has it and other experts'.

    Args:
        name: in the model.
        known: see ``GgufFamily.names``.
        names: gguf's map of names.

    Returns:
        None where it has no name.
    """
    name = _ONE_OF.sub(r".\1.", name)
    for pattern, other in known.items():
        name = re.sub(pattern, other, name)
    # Converters leave out what says which model of several a language model is.
    inside = (name, *(name.replace(part, "") for part in PARTS))
    tried = (names.get_name(each, try_suffixes=(".weight", ".bias")) for each in inside)
    return next((found for found in tried if found is not None), None)


def expert_group(name: str) -> str | None:
    """Return what the linears have in common that lie in one tensor, or None."""
    return _ONE_OF.sub(r".\1.", name) if _ONE_OF.search(name) else None


def _stacked(saved: str, experts: dict[int, Stored]) -> Stored:
    kinds = {kind for _, _, kind in experts.values()}
    if len(kinds) > 1:
        first = next(iter(experts.values()))[0]
        raise ValueError(f"the experts beside {first} are not alike; GGUF holds them in one tensor")
    together = torch.stack([experts[number][1] for number in sorted(experts)])
    return saved, together, kinds.pop()
