"""Which linears of a block are quantized, and which of them read one tensor."""

from collections.abc import Mapping

from torch import nn

from mlcalib.models.discovery.trace import Call, Reading
from mlcalib.models.experts import ExpertList

SMALLEST = 16
"""Linears with fewer outputs or inputs, such as gates of a head or an expert, stay as they are."""


def expert_lists(block: nn.Module) -> dict[str, ExpertList]:
    """Return path → list of experts of a block."""
    return {
        name: module for name, module in block.named_modules() if isinstance(module, ExpertList)
    }


def inputs_of(call: Call) -> dict[str, tuple[str, ...]]:
    """Return input → the linears that read it, in the order they ran; an input is called by them.

    Left out are linears that did not run, small ones, those that choose experts, and experts that
    another block has, too.
    """
    lists = expert_lists(call.module)
    routers = {experts.count for experts in lists.values()}
    found: list[tuple[list[str], Reading | None]] = []
    for reading in call.readings:
        if reading.name in lists:
            experts = lists[reading.name]
            if any(each.startswith(f"{reading.name}.") for each in call.shared):
                continue
            found += [
                ([f"{reading.name}.{name}" for name in names], None)
                for expert in range(experts.count)
                for names in experts.inputs(expert)
            ]
        inside = any(reading.name.startswith(f"{path}.") for path in lists)
        ran_before = any(reading.name in names for names, _ in found)
        if inside or ran_before or not _is_quantized(reading.module, routers):
            continue
        together = (
            names
            for names, first in found
            if first is not None and first.reads(reading.read, reading.version)
        )
        if (names := next(together, None)) is None:
            found.append(([reading.name], reading))
        else:
            names.append(reading.name)
    return {names[0]: tuple(names) for names, _ in found}


def left_out(call: Call, linears: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Return linear of a block that stays in floating point → why."""
    taken = {name for names in linears.values() for name in names}
    ran = {reading.name for reading in call.readings}
    found = {}
    for name, module in call.module.named_modules():
        if isinstance(module, nn.Linear) and name not in taken:
            found[name] = "is small or chooses experts" if name in ran else "does not run on text"
            if name in call.shared:
                found[name] = "several blocks share"
    return found


def _is_quantized(module: nn.Module, routers: set[int]) -> bool:
    return (
        isinstance(module, nn.Linear)
        and min(module.weight.shape) >= SMALLEST
        and module.out_features not in routers
    )
