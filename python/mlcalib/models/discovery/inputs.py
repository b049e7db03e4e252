"""Which linears of a block are quantized, and which of them read one tensor."""

from torch import nn

from mlcalib.models.discovery.trace import Call
from mlcalib.models.experts import ExpertList

SMALLEST = 16
"""Linears with fewer outputs or inputs, such as gates of a head or an expert, stay as they are."""


def expert_paths(block: nn.Module) -> tuple[str, ...]:
    """Return the paths of the lists of experts in a block."""
    return tuple(
        name for name, module in block.named_modules() if isinstance(module, ExpertList)
    )


def inputs_of(call: Call) -> dict[str, tuple[str, ...]]:
    """Return input → the linears that read it, in the order they ran; an input is called by them.

    Left out are linears that did not run, small ones, and those that choose experts.
    """
    block = call.module
    lists = {path: block.get_submodule(path) for path in expert_paths(block)}
    routers = {sum(1 for _ in experts.experts()) for experts in lists.values()}
    found: list[tuple[list[str], object]] = []
    for reading in call.readings:
        if reading.name in lists:
            for expert, _ in lists[reading.name].experts():
                for names in lists[reading.name].inputs(expert):
                    found.append(([f"{reading.name}.{name}" for name in names], None))
        inside = any(reading.name.startswith(f"{path}.") for path in lists)
        if inside or not _is_quantized(reading.module, routers):
            continue
        if any(reading.name in names for names, _ in found):
            continue  # it ran before
        group = next(
            (
                names
                for names, first in found
                if first is not None and first.reads(reading.read, reading.version)
            ),
            None,
        )
        if group is None:
            found.append(([reading.name], reading))
        else:
            group.append(reading.name)
    return {names[0]: tuple(names) for names, _ in found}


def _is_quantized(module: nn.Module, routers: set[int]) -> bool:
    return (
        isinstance(module, nn.Linear)
        and min(module.weight.shape) >= SMALLEST
        and module.out_features not in routers
    )
