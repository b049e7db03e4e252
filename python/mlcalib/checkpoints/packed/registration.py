"""Lets ``from_pretrained`` of transformers keep weights packed, without importing transformers.

What chooses the reader of a quantized checkpoint is wrapped: as soon as its module is imported, or
at once.
"""

from functools import cache
from typing import Any

from mlcalib.common import compat
from mlcalib.common.imports import when_imported


@cache  # once
def register_packed() -> None:
    """Let ``from_pretrained`` of transformers keep quantized weights packed, in this process.

    Checkpoints in ``compressed-tensors``, ``gptq`` and ``awq`` that go to the CPU are then read by
    mlcalib; those that it cannot hold packed, and those loaded with a config of transformers' own,
    are read as before. It does not matter whether transformers has been imported, and to call this
    again changes nothing.
    """
    when_imported(compat.READERS, lambda: compat.before_reader(_choose))


def _choose(config: Any, given: Any, device_map: Any) -> compat.Section | None:
    from mlcalib.checkpoints.packed.config import packed_section

    return packed_section(config, given, device_map)
