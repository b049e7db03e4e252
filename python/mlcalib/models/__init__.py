"""Models of transformers: which there are, how to load one, how to run it block by block."""

import importlib
import pkgutil
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from mlcalib.models import families
from mlcalib.models.base import Adapter, GgufArchitecture, ScaleGroup
from mlcalib.models.rows import Rows

__all__ = [
    "Adapter",
    "GgufArchitecture",
    "Rows",
    "ScaleGroup",
    "adapter_for",
    "find_adapter",
    "gguf_architectures",
]

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_GROUP = "mlcalib.families"


def adapters() -> Iterator[Adapter]:
    """Yield the adapter of every family.

    Each module of ``families`` has one; then come those of other distributions, by the entry-point
    group ``mlcalib.families``.

    Raises:
        TypeError: an entry point gives something else than an ``Adapter``.
    """
    for module in pkgutil.iter_modules(families.__path__, f"{families.__name__}."):
        yield importlib.import_module(module.name).adapter
    for point in sorted(entry_points(group=_GROUP)):
        found = point.load()
        if not isinstance(found, Adapter):
            raise TypeError(
                f"The entry point '{point.name}' of the group '{_GROUP}' is a "
                f"{type(found).__name__} ({point.value}), expected an Adapter."
            )
        yield found


def find_adapter(architecture: str) -> Adapter:
    """Return the adapter for a class name of transformers, e.g. ``LlamaForCausalLM``.

    Raises:
        NotImplementedError: no family has it.
    """
    if (found := _known(architecture)) is not None:
        return found
    known = [name for each in adapters() for name in each.architectures]
    raise NotImplementedError(
        f"The architecture {architecture} has no family file; {', '.join(known)} have one. To add "
        "it, write a file with an Adapter literal, like that of Llama in "
        "python/mlcalib/models/families/llama.py; docs/how-to/add-a-model.md shows how."
    )


def adapter_for(model: "PreTrainedModel") -> Adapter:
    """Return the adapter of a model: of its family's file, or else discovered by running it.

    Raises:
        NotImplementedError: it could not be discovered; says why.
    """
    from mlcalib.models.discovery import discover

    known = _known(type(model).__name__)
    return discover(model) if known is None else known


def _known(architecture: str) -> Adapter | None:
    return next((each for each in adapters() if architecture in each.architectures), None)


def gguf_architectures() -> dict[str, GgufArchitecture]:
    """Return class name of transformers → how GGUF files hold its models, of all families."""
    found: dict[str, GgufArchitecture] = {}
    for adapter in adapters():
        found = {**adapter.gguf, **found}  # the first that has a class, as in find_adapter
    return found
