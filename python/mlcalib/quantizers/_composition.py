"""Compositions: one quantizer scales the channels of inputs, and another one solves."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from mlcalib.quantizers import quantizers
from mlcalib.quantizers.base import QuantizerOptions

_GRID = (
    "bits",
    "group_size",
    "symmetric",
    "numbers",
    "super_block",
    "scale_bits",
    "per_tensor",
    "mix",
)
_SHARED = (*_GRID, "fisher_tokens", "fisher_labels")


def _scaling(given: Any) -> Any:
    """Return the options of a quantizer that scales.

    Args:
        given: an object with options, the name of a quantizer, a mapping with ``method`` and
            options, or None for no scales.

    Raises:
        ValueError: the quantizer is unknown, or one that does not scale.
    """
    if isinstance(given, str):
        given = {"method": given}
    if isinstance(given, Mapping):
        options = dict(given)
        given = quantizers.get(str(options.pop("method", ""))).Options(**options)
    if given is None:
        return None
    name = given.method if isinstance(given, QuantizerOptions) else ""
    if not name or not quantizers.get(name).scales:
        names = " or ".join(name for name in quantizers.names() if quantizers.get(name).scales)
        raise ValueError(
            f"scales is {name or repr(given)}, which scales no channels; give {names}."
        )
    return given


def _written(scales: QuantizerOptions | None) -> Any:
    """Return scales as records hold them, and as they can be given: by name, or as a mapping."""
    if scales is None:
        return None
    options = scales.model_dump(exclude_unset=True)
    return {"method": scales.method, **options} if options else scales.method


Scales = Annotated[
    QuantizerOptions | None, BeforeValidator(_scaling), PlainSerializer(_written, return_type=Any)
]
"""The options of a quantizer that scales, or None."""


def for_solver(scales: QuantizerOptions, solver: QuantizerOptions) -> QuantizerOptions:
    """Return the options with which scales are searched for: for the grids that are solved.

    Args:
        scales: of the quantizer that scales.
        solver: of the quantizer that solves, whose grid and whose gradients are taken.

    Raises:
        ValueError: the one was given another grid than the other has.
    """
    common = [name for name in _SHARED if name in type(scales).model_fields]
    for name in common:
        own, solved = getattr(scales, name), getattr(solver, name)
        if name in scales.model_fields_set and own != solved:
            raise ValueError(
                f"{scales.method} is to scale with {name} {own}, and {solver.method} to solve with "
                f"{name} {solved}; give {name} to {solver.method} alone."
            )
    taken = {name: getattr(solver, name) for name in common}
    return type(scales)(**{**scales.model_dump(exclude_unset=True), **taken})
