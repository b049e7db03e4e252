"""Lets ``from_pretrained`` of transformers keep weights packed, without importing transformers.

What chooses the reader of a quantized checkpoint is wrapped: as soon as its module is imported, or
at once.
"""

from typing import Any

from mlcalib.common import compat
from mlcalib.common.imports import when_imported


def register() -> None:
    """Have checkpoints read by mlcalib, from now on or once transformers is imported."""
    when_imported(compat.READERS, lambda: compat.before_reader(_choose))


def _choose(config: Any, given: Any, device_map: Any) -> compat.Section | None:
    from mlcalib.checkpoints.packed.config import packed_section

    return packed_section(config, given, device_map)
