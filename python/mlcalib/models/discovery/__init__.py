"""An adapter made from the model itself: its blocks are run, and what they do is looked at."""

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mlcalib.common import compat
from mlcalib.models.base import Adapter, Experts, Origin, ScaleGroup
from mlcalib.models.conversion import Conversion
from mlcalib.models.discovery.checks import check_share, check_tied, note_shared
from mlcalib.models.discovery.inputs import expert_lists, inputs_of, left_out
from mlcalib.models.discovery.scales import proved_scale_groups
from mlcalib.models.discovery.synthetic import on_meta, synthetic
from mlcalib.models.discovery.trace import Call, language_models, trace
from mlcalib.models.experts import unfuse_all
from mlcalib.models.kinds import Kind, kind_of
from mlcalib.models.running import other_arguments, with_hidden

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["DiscoveredAdapter", "discover"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """What is known of blocks of one kind.

    Attributes:
        linears: see ``Adapter.linears_of``.
        scale_groups: see ``Adapter.scale_groups_of``.
        experts: paths of lists of experts.
        output: the tuple or list that a block returned, whose hidden states are to be replaced;
            None where it returned nothing but these.
    """

    linears: Mapping[str, tuple[str, ...]]
    scale_groups: tuple[ScaleGroup, ...]
    experts: tuple[str, ...]
    output: tuple[Any, ...] | list[Any] | None = field(repr=False, compare=False)


@dataclass(frozen=True)
class DiscoveredAdapter(Adapter):
    """An ``Adapter`` whose blocks are of kinds that were found by running them.

    Attributes:
        names: of the blocks, in the order in which they run. Blocks that do not run on text are
            not among them, and stay in floating point.
        layouts: kind → what is known of its blocks.
        conversion: between tensors of the model and of its checkpoints.
        tied: tensors of blocks that are another block's, which checkpoints leave out.
    """

    names: tuple[str, ...] = ()
    layouts: Mapping[Kind, Layout] = field(default_factory=dict, repr=False)
    conversion: Conversion | None = field(default=None, repr=False, compare=False)
    tied: frozenset[str] = field(default=frozenset(), repr=False)
    _known: WeakKeyDictionary[nn.Module, Layout] = field(
        default_factory=WeakKeyDictionary, repr=False, compare=False
    )

    def named_blocks(self, model: "PreTrainedModel") -> list[tuple[str, nn.Module]]:
        """See ``Adapter.named_blocks``."""
        return [(name, model.get_submodule(name)) for name in self.names]

    def layout(self, block: nn.Module) -> Layout:
        """Return what is known of a block.

        Raises:
            NotImplementedError: no block of the model that was looked at is of its kind.
        """
        if block not in self._known:
            if (kind := kind_of(block)) not in self.layouts:
                raise NotImplementedError(
                    f"A {type(block).__name__} is unlike all blocks that were looked at; open the "
                    "model again."
                )
            self._known[block] = self.layouts[kind]
        return self._known[block]

    def linears_of(self, block: nn.Module) -> dict[str, tuple[str, ...]]:
        """See ``Adapter.linears_of``."""
        return dict(self.layout(block).linears)

    def scale_groups_of(self, block: nn.Module) -> list[ScaleGroup]:
        """See ``Adapter.scale_groups_of``."""
        return list(self.layout(block).scale_groups)

    def has_experts(self, block: nn.Module) -> bool:
        """See ``Adapter.has_experts``."""
        return bool(self.layout(block).experts)

    def experts_of(self, block: nn.Module) -> Experts | None:
        """See ``Adapter.experts_of``: no family's."""
        return None

    def expert_of(self, linear: str) -> str | None:
        """See ``Adapter.expert_of``."""
        paths = {path for layout in self.layouts.values() for path in layout.experts}
        inside = any(linear.startswith(f"{path}.") for path in paths)
        parent = linear.rpartition(".")[0]
        return parent if inside and parent.rpartition(".")[2].isdecimal() else None

    def passed_on(self, block: nn.Module, hidden: Tensor) -> Any:
        """See ``Adapter.passed_on``."""
        return with_hidden(self.layout(block).output, hidden)

    def saved(self, name: str) -> str:
        """See ``Adapter.saved``."""
        return self._conversion.file_name(name)

    def saved_tensors(
        self, tensors: Mapping[str, Tensor], floating: Collection[str]
    ) -> dict[str, Tensor]:
        """See ``Adapter.saved_tensors``."""
        held = {name: tensors[name] for name in floating if name not in self.tied}
        found = self._conversion.to_files(held)
        for name, tensor in tensors.items():
            if name not in floating:
                linear, dot, part = name.rpartition(".")
                found[f"{self.saved(linear)}{dot}{part}"] = tensor
        return found

    def loaded_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See ``Adapter.loaded_tensors``."""
        return self._conversion.to_model(tensors)

    def origins(self, expected: Collection[str], stored: Mapping[str, Tensor]) -> dict[str, Origin]:
        """See ``Adapter.origins``."""
        return self._conversion.origins(stored)

    @property
    def _conversion(self) -> Conversion:
        assert self.conversion is not None
        return self.conversion


def discover(model: "PreTrainedModel") -> DiscoveredAdapter:
    """Find out what an adapter says by running a model that looks the same for 16 tokens.

    Its weights are made up: neither time nor memory depends much on the model's size. Scale groups
    are proposed by what reads what, and each is kept only if the block gives the same output, to
    1e-5 in float64, after random scales have been folded.

    Args:
        model: of transformers, on whatever device, the meta device included.

    Raises:
        NotImplementedError: the model does not run on token ids alone; it has no list of blocks
            that hand hidden states on; a block runs more than once; nothing would be quantized.
    """
    conversion = Conversion(on_meta(model))
    runs, calls = _traced(model, conversion)
    if runs:
        _log.warning(
            "%s does not run on token ids alone; the language model inside of it (%s) is "
            "quantized, on text as it runs by itself",
            type(model).__name__,
            runs,
        )
    shared = note_shared(calls)
    tied = shared.keys() & set(compat.tied_weights(model))
    check_tied(compat.tied_weights(model), calls)
    layouts: dict[Kind, Layout] = {}
    left: dict[str, str] = {}
    for call in calls:
        if call.kind not in layouts:
            linears = inputs_of(call)
            with torch.no_grad():
                groups = proved_scale_groups(call, linears)
            given = call.gave if isinstance(call.gave, tuple | list) else None
            left |= left_out(call, linears)
            layouts[call.kind] = Layout(linears, groups, tuple(expert_lists(call.module)), given)
    quantized = {
        kind: {name for names in layout.linears.values() for name in names}
        for kind, layout in layouts.items()
    }
    check_share(type(model).__name__, calls, quantized)
    inside = {f"{c.name}.{linear}.weight" for c in calls for linear in quantized[c.kind]}
    places = {
        name.removesuffix(".weight"): first.removesuffix(".weight")
        for name, first in shared.items()
        if {name, first} <= inside
    }
    layouts |= {call.changed: layouts[call.kind] for call in calls if call.changed is not None}
    _log.info(
        "%s has no family file; %d blocks of %d kinds were found at %s",
        type(model).__name__,
        len(calls),
        len(layouts),
        calls[0].name.rpartition(".")[0],
    )
    for reason in dict.fromkeys(left.values()):
        names = [name for name, why in left.items() if why == reason]
        _log.info("in floating point stays what %s: %s", reason, ", ".join(names))
    if places:
        _log.info(
            "solved once, for all blocks that share it, and not scaled: %s",
            ", ".join(dict.fromkeys(places.values())),
        )
    return DiscoveredAdapter(
        architectures=(type(model).__name__,),
        blocks=calls[0].name.rpartition(".")[0],
        linears={},
        scale_groups=(),
        handed_over=dict(_handed_over(calls)),
        filled=frozenset(_filled(calls)),
        runs=runs,
        places=places,
        names=tuple(call.name for call in calls),
        layouts=layouts,
        conversion=conversion,
        tied=frozenset(tied),
    )


def _traced(model: "PreTrainedModel", conversion: Conversion) -> tuple[str, list[Call]]:
    """Return what runs on token ids alone (its path in the model), and the calls of its blocks.

    Raises:
        NotImplementedError: see ``trace``, of the whole model.
    """
    reasons = []
    for path in ("", *language_models(model)):
        for dtype in (torch.float64, torch.float32):  # some blocks run in float32 alone
            own = synthetic(model, dtype)
            unfuse_all(own)
            conversion.learn(own)
            try:
                calls = trace(own.get_submodule(path))
            except NotImplementedError as error:
                reasons.append(error)
                continue
            for call in calls:
                call.name = f"{path}.{call.name}".removeprefix(".")
            return path, calls
    raise reasons[1]


def _handed_over(calls: list[Call]) -> Iterator[tuple[int | str, int]]:
    """Yield (argument, element of the output of the block before) where one is the other."""
    for before, call in pairwise(calls):
        if isinstance(before.gave, tuple | list):
            for place, value in other_arguments(call.args, call.kwargs).places.items():
                for index, given in enumerate(before.gave[1:], 1):
                    if isinstance(value, Tensor) and value is given:
                        yield place, index


def _filled(calls: list[Call]) -> Iterator[int | str]:
    """Yield the arguments, no tensors, that hold other tensors after a call than before."""
    for call in calls:
        if call.before is None:
            continue
        now = other_arguments(call.args, call.kwargs).places
        for place, value in other_arguments(*call.before).places.items():
            held = now.get(place)
            if not isinstance(value, Tensor) and len(_tensors(value)) != len(_tensors(held)):
                yield place


def _tensors(value: Any, depth: int = 0) -> list[Tensor]:
    """Return the tensors that an argument holds: nested, or in an object such as a cache."""
    if isinstance(value, Tensor):
        return [value]
    if depth > 4 or isinstance(value, nn.Module):
        return []
    if isinstance(value, Mapping):
        inner = list(value.values())
    elif isinstance(value, list | tuple | set):
        inner = list(value)
    else:
        inner = []
    inner += list(getattr(value, "__dict__", {}).values())
    return [each for part in inner for each in _tensors(part, depth + 1)]
