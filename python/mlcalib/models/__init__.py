"""Models of transformers: which there are, how to load one, how to run it block by block."""

import importlib
import pkgutil

from mlcalib.models.base import Adapter, ScaleGroup

__all__ = ["Adapter", "ScaleGroup", "find_adapter"]

_NOT_FAMILIES = {"base", "experts", "folding", "loading", "running"}


def adapters() -> list[Adapter]:
    """Return the adapter of every family: each module of this package that has one."""
    families = [m.name for m in pkgutil.iter_modules(__path__) if m.name not in _NOT_FAMILIES]
    return [importlib.import_module(f"{__name__}.{family}").adapter for family in families]


def find_adapter(architecture: str) -> Adapter:
    """Return the adapter for a class name of transformers, e.g. ``LlamaForCausalLM``.

    Raises:
        NotImplementedError: no family has it.
    """
    known: list[str] = []
    for adapter in adapters():
        if architecture in adapter.architectures:
            return adapter
        known += adapter.architectures
    raise NotImplementedError(
        f"The architecture {architecture} is not supported; supported are: {', '.join(known)}. "
        "To add it, write python/mlcalib/models/<family>.py with one Adapter literal, as in "
        "python/mlcalib/models/llama.py."
    )
