"""Models of transformers: which there are, how to load one, how to run it block by block."""

import importlib
import pkgutil

from mlcalib.models import families
from mlcalib.models.base import Adapter, ScaleGroup

__all__ = ["Adapter", "ScaleGroup", "find_adapter"]


def adapters() -> list[Adapter]:
    """Return the adapter of every family: each module of ``families`` has one."""
    found = pkgutil.iter_modules(families.__path__, f"{families.__name__}.")
    return [importlib.import_module(module.name).adapter for module in found]


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
        "To add it, write python/mlcalib/models/families/<family>.py with one Adapter literal, as "
        "in python/mlcalib/models/families/llama.py."
    )
