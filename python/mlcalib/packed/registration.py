"""Lets ``from_pretrained`` of transformers keep weights packed, without importing transformers.

transformers (5.20 to 5.23) chooses the reader of a quantized checkpoint in ``get_hf_quantizer`` and
has no hook in it, so that function is wrapped: as soon as its module is imported, or at once.
"""

import functools
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_MODULE = "transformers.quantizers.auto"
_CALLER = "transformers.modeling_utils"  # has the function by its own name


def register() -> None:
    """Wrap ``get_hf_quantizer``, now or when transformers is imported."""
    if (module := sys.modules.get(_MODULE)) is not None:
        _wrap(module)
    else:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds the module as Python does, and has it wrapped when it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            sys.meta_path.remove(self)
            _wrap(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _wrap(module: ModuleType) -> None:
    original = module.get_hf_quantizer

    @functools.wraps(original)
    def get_hf_quantizer(
        config: Any, quantization_config: Any, device_map: Any, *rest: Any, **named: Any
    ) -> Any:
        from mlcalib.packed.config import packed_section

        section = packed_section(config, quantization_config, device_map)
        if section is not None:
            config.quantization_config, quantization_config = section, None
        return original(config, quantization_config, device_map, *rest, **named)

    for user in (module, sys.modules.get(_CALLER)):
        if getattr(user, "get_hf_quantizer", None) is original:
            user.get_hf_quantizer = get_hf_quantizer  # type: ignore[union-attr]
