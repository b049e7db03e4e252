"""Scale groups of a block: proposed from what reads what, kept if a numerical proof holds."""

import copy
from collections.abc import Iterator, Mapping
from itertools import product

import torch
from torch import Tensor, nn

from mlcalib.models.base import Adapter, ScaleGroup
from mlcalib.models.discovery.inputs import expert_paths
from mlcalib.models.discovery.trace import Call, Reading, is_same
from mlcalib.models.folding import fold, source_channels
from mlcalib.models.running import first_output

TOLERANCE = 1e-5
"""Largest difference of outputs, in float64, relative to the largest output."""


class _OneBlock(Adapter):
    """What folding asks an adapter, of the block that is looked at."""

    def __init__(self, linears: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__((), "", linears, ())


def proved_scale_groups(call: Call, linears: Mapping[str, tuple[str, ...]]) -> tuple[ScaleGroup, ...]:
    """Return the scale groups of a block that leave its output as it is, in the order they run.

    Args:
        call: of the block, with made-up weights in float64.
        linears: input → its readers.
    """
    adapter, expected = _OneBlock(linears), _output(call, call.module)
    found = []
    for choices in _proposals(call, linears):
        proved = next((each for each in choices if _holds(adapter, call, each, expected)), None)
        if proved is not None:
            found += _for_every_expert(call, proved)
    return tuple(found)


def _proposals(call: Call, linears: Mapping[str, tuple[str, ...]]) -> Iterator[list[ScaleGroup]]:
    """Yield the candidates for each tensor that linears read, the likeliest first."""
    lists = expert_paths(call.module)
    first: dict[str, Reading] = {}
    for reading in call.readings:
        first.setdefault(reading.name, reading)
    done: set[str] = set()
    for key, members in linears.items():
        reading = first.get(members[0])
        if key in done or reading is None:
            continue  # of an expert that did not run, whose like is looked at
        inside = next((path for path in lists if key.startswith(f"{path}.")), None)
        if inside is not None and _reads_list_input(call, inside, members[0]):
            reading, keys = first[inside], _first_keys(inside, call, linears)
        else:
            keys = [key]
        if inside is None:
            keys += [
                other
                for path in lists
                if path in first and first[path].reads(reading.read, reading.version)
                for other in _first_keys(path, call, linears)
            ]
        done |= set(keys)
        readers = tuple(
            each.name
            for each in call.readings
            if each.reads(reading.read, reading.version)
            and _has_matrix(each.module)
            and not any(each.name in linears[other] for other in keys)
        )
        yield [
            ScaleGroup(source, tuple(keys), readers, offset)
            for source, offset in _sources(call, reading, members)
        ]


def _sources(
    call: Call, reading: Reading, members: tuple[str, ...]
) -> Iterator[tuple[str, float]]:
    """Yield (module, offset) of what may make a tensor: what gave it; else linears beside."""
    for each in call.readings:
        if each.gave is not None and is_same(each.gave, reading.read):
            yield from product([each.name], (0.0, 1.0) if _is_norm(each.module) else (0.0,))
    parent = members[0].rpartition(".")[0]
    before = []
    for each in call.readings:
        if each is reading or each.name == members[0]:
            break
        beside = each.name.rpartition(".")[0].startswith(parent.rpartition(".")[0] or parent)
        if isinstance(each.module, nn.Linear) and beside and each.name not in before:
            before.append(each.name)
    channels = call.module.get_submodule(members[0]).in_features
    for name in reversed(before):
        made = call.module.get_submodule(name).out_features
        if made == channels or (made < channels and channels % made == 0):
            yield name, 0.0


def _holds(adapter: Adapter, call: Call, group: ScaleGroup, expected: Tensor) -> bool:
    """Return whether the block gives the same after random scales have been folded."""
    shared = {id(each): each for each in (*call.module.parameters(), *call.module.buffers())}
    block = copy.deepcopy(call.module, shared)
    generator = torch.Generator().manual_seed(2)
    try:
        linears = [name for key in group.inputs for name in adapter.linears_of(block)[key]]
        channels = adapter.linear(block, linears[0]).in_features
        of_source = source_channels(adapter, block, group)
        made = channels if of_source is None else int(of_source.max()) + 1
        scales = 0.5 + 1.5 * torch.rand(made, generator=generator)
        scales = scales if of_source is None else scales[of_source]
        fold(adapter, block, group, scales)
        found = _output(call, block)
    except (NotImplementedError, ValueError, RuntimeError):
        return False  # shapes do not fit
    difference = float((found - expected).abs().max())
    return difference <= TOLERANCE * float(expected.abs().max())


def _output(call: Call, block: nn.Module) -> Tensor:
    assert call.before is not None
    args, kwargs = copy.deepcopy(call.before)
    return first_output(block(*args, **kwargs)).double()


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 1


def _has_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2


def _reads_list_input(call: Call, path: str, linear: str) -> bool:
    name = linear.removeprefix(f"{path}.")
    return name in call.module.get_submodule(path).inputs(name.partition(".")[0])[0]


def _first_keys(path: str, call: Call, linears: Mapping[str, tuple[str, ...]]) -> list[str]:
    experts = call.module.get_submodule(path)
    names = [f"{path}.{experts.inputs(expert)[0][0]}" for expert, _ in experts.experts()]
    return [name for name in names if name in linears]


def _for_every_expert(call: Call, group: ScaleGroup) -> Iterator[ScaleGroup]:
    """Yield a group; one inside an expert for every expert of its list."""
    for path in expert_paths(call.module):
        if group.source.startswith(f"{path}."):
            name = group.source.removeprefix(f"{path}.").partition(".")[0]
            for expert, _ in call.module.get_submodule(path).experts():
                yield ScaleGroup(
                    group.source.replace(f"{path}.{name}.", f"{path}.{expert}."),
                    tuple(key.replace(f"{path}.{name}.", f"{path}.{expert}.") for key in group.inputs),
                )
            return
    yield group
