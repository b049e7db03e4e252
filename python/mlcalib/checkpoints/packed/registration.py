"""Lets ``from_pretrained`` of transformers keep weights packed, without importing transformers.

What chooses the reader of a quantized checkpoint is wrapped: as soon as its module is imported, or
at once.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from mlcalib.common import compat


def register() -> None:
    """Have checkpoints read by mlcalib, from now on or once transformers is imported."""
    if compat.READERS in sys.modules:
        compat.before_reader(_choose)
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds the module as Python does, and has it wrapped when it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != compat.READERS:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            sys.meta_path.remove(self)
            compat.before_reader(_choose)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _choose(config: Any, given: Any, device_map: Any) -> compat.Section | None:
    from mlcalib.checkpoints.packed.config import packed_section

    return packed_section(config, given, device_map)
