"""Scale groups of a block: proposed from what reads what, kept if a numerical proof holds."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from mlcalib.models.base import Adapter, ScaleGroup
from mlcalib.models.discovery.fused import rows_read
from mlcalib.models.discovery.inputs import expert_lists
from mlcalib.models.discovery.trace import Call, Reading, is_same
from mlcalib.models.folding import fold, source_channels
from mlcalib.models.rows import Rows
from mlcalib.models.running import first_output

TOLERANCE = 1e-5
"""Largest difference of outputs, in float64, relative to the largest output."""
_LARGEST, _RATIO = 2.0, 1 / 128
"""Of random scales, and the smallest to it: what is divided by these gets large, so that a model
that clips it is noticed."""


def proved_scale_groups(
    call: Call, linears: Mapping[str, tuple[str, ...]]
) -> tuple[ScaleGroup, ...]:
    """Return the scale groups of a block that leave its output as it is, in the order they run.

    Args:
        call: of the block, with made-up weights in float64.
        linears: input → its readers.
    """
    proof = _Proof(call, linears)
    found: list[ScaleGroup] = []
    for proposed in _proposals(call, linears):
        candidates = (each for each in proposed if not call.shared & _touched(each, linears))
        found += _for_every_expert(call, next(filter(proof.holds, candidates), None))
    return tuple(found)


def _touched(group: ScaleGroup, linears: Mapping[str, tuple[str, ...]]) -> set[str]:
    read = (name for key in group.inputs for name in linears[key])
    return {group.source, *group.readers, *read}


class _Proof:
    """A block, and what it gives as it is."""

    def __init__(self, call: Call, linears: Mapping[str, tuple[str, ...]]) -> None:
        self._call = call
        self._adapter = Adapter((), "", linears, ())  # what folding asks of one
        self._expected = self._output(call.module)

    def holds(self, group: ScaleGroup) -> bool:
        """Return whether the block gives the same after random scales have been folded."""
        module, adapter = self._call.module, self._adapter
        shared = {id(each): each for each in (*module.parameters(), *module.buffers())}
        block = copy.deepcopy(module, shared)
        modules = dict(block.named_modules())
        group = replace(group, inputs=tuple(key for key in group.inputs if key in modules))
        reader = adapter.linear(block, group.inputs[0])
        try:
            of_source = source_channels(adapter, block, group)
            made = reader.in_features if of_source is None else int(of_source.max()) + 1
            generator = torch.Generator().manual_seed(2)
            scales = _LARGEST * _RATIO ** torch.rand(made, generator=generator)
            fold(adapter, block, group, scales if of_source is None else scales[of_source])
            found = self._output(block)
        except (NotImplementedError, ValueError, RuntimeError):
            return False  # the shapes do not fit
        difference = float((found - self._expected).abs().max())
        return difference <= TOLERANCE * float(self._expected.abs().max())

    def _output(self, block: nn.Module) -> Tensor:
        assert self._call.before is not None  # of the first of a kind
        args, kwargs = copy.deepcopy(self._call.before)
        return first_output(block(*args, **kwargs)).double()


def _proposals(
    call: Call, linears: Mapping[str, tuple[str, ...]]
) -> Iterator[Iterator[ScaleGroup]]:
    """Yield, for each tensor that linears read, the candidates: the likeliest first."""
    lists = expert_lists(call.module)
    first: dict[str, Reading] = {}
    for reading in call.readings:
        first.setdefault(reading.name, reading)
    done: set[str] = set()
    for key, members in linears.items():
        if key in done or key not in first:
            continue  # of an expert that did not run, whose like is looked at
        reading, keys = first[key], [key]
        for path in (each for each in lists if each in first):
            entries = _entries(call, path, linears)
            if key in entries:  # an expert gets some rows of what the list of experts reads
                reading, keys = first[path], entries
                keys += [name for name in linears if _reads_too(first.get(name), reading)]
            elif first[path].reads(reading.read, reading.version):
                keys += entries
        done |= set(keys) | _alike(call, key)
        taken = {name for each in keys for name in linears[each]}
        others = (each for each in call.readings if each.reads(reading.read, reading.version))
        readers = tuple(
            each.name for each in others if _dimensions(each.module) == 2 and each.name not in taken
        )
        yield (
            ScaleGroup(source, tuple(keys), readers, offset, rows)
            for source, offset, rows in _sources(call, reading, members[0])
        )


def _reads_too(one: Reading | None, other: Reading) -> bool:
    return one is not None and other.reads(one.read, one.version)


def _sources(call: Call, reading: Reading, reader: str) -> Iterator[tuple[str, float, Rows | None]]:
    """Yield (module, offset, rows of it): what gave the tensor; or else linears before, beside."""
    for each in call.readings:
        dimensions = _dimensions(each.module)
        if dimensions and each.gave is not None and is_same(each.gave, reading.read):
            yield each.name, 0.0, None
            if dimensions == 1:  # a norm, which may multiply by 1 + its weight
                yield each.name, 1.0, None
    beside = reader.rpartition(".")[0].rpartition(".")[0] or reader.rpartition(".")[0]
    read = call.module.get_submodule(reader)
    channels = read.in_features if isinstance(read, nn.Linear) else 0
    before: list[tuple[str, nn.Linear]] = []
    for each in call.readings:
        if each.name == reader:
            break
        if isinstance(each.module, nn.Linear) and each.name.startswith(beside):
            before.append((each.name, each.module))
    made = {name: linear.out_features for name, linear in reversed(before)}
    yield from ((name, 0.0, None) for name in made if channels % made[name] == 0)
    for name, outputs in made.items():
        around = call.module.get_submodule(name.rpartition(".")[0])
        yield from ((name, 0.0, rows) for rows in rows_read(outputs, channels, around))


def _dimensions(module: nn.Module) -> int:
    weight = getattr(module, "weight", None)
    return weight.dim() if isinstance(weight, Tensor) else 0


def _entries(call: Call, path: str, linears: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return the inputs of a list's experts."""
    experts = expert_lists(call.module)[path]
    names = [f"{path}.{experts.inputs(expert)[0][0]}" for expert in range(experts.count)]
    return [name for name in names if name in linears]


def _alike(call: Call, name: str) -> set[str]:
    """Return what a name inside an expert is in every expert of its list; {} outside of one."""
    for path, experts in expert_lists(call.module).items():
        if name.startswith(f"{path}."):
            inside = name.removeprefix(f"{path}.").partition(".")[2]
            return {f"{path}.{expert}.{inside}" for expert in range(experts.count)}
    return set()


def _for_every_expert(call: Call, group: ScaleGroup | None) -> Iterator[ScaleGroup]:
    """Yield a group; one inside an expert for every expert of its list."""
    if group is None:
        return
    for path, experts in expert_lists(call.module).items():
        if group.source.startswith(f"{path}."):
            ran = f"{path}.{group.source.removeprefix(f'{path}.').partition('.')[0]}."
            for expert in range(experts.count):
                mine = f"{path}.{expert}."
                keys = tuple(key.replace(ran, mine) for key in group.inputs)
                yield replace(group, source=group.source.replace(ran, mine), inputs=keys)
            return
    yield group
