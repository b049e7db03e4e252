"""Blocks that work alike: of one class, with modules, shapes and settings of the same values."""

import re

from torch import nn

Kind = tuple[tuple[object, ...], ...]
"""What blocks of a kind have in common."""

_PLACE = re.compile(r"(^|_)(idx|index|id|number)$")
"""Settings that say where in the model a module stands."""


def kind_of(block: nn.Module) -> Kind:
    """Return a block's kind: of each module the class, the shapes and the plain settings."""
    return tuple(
        (
            name,
            type(module).__qualname__,
            tuple((key, tuple(each.shape)) for key, each in module.named_parameters(recurse=False)),
            tuple(
                (key, value)
                for key, value in vars(module).items()
                if isinstance(value, bool | int | float | str)
                and key != "training"
                and not _PLACE.search(key)
            ),
        )
        for name, module in block.named_modules()
    )
