"""Statistics of weights that several blocks share: those of all their places, added up."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.common.progress import progress_bar
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.models import Adapter
from mlcalib.models.device import move_block
from mlcalib.quantization.gathering import Gathered, of_kind
from mlcalib.quantization.hidden_states import HiddenStates
from mlcalib.quantization.job import Job
from mlcalib.quantization.prefixes import BlockStatistics, Prefix
from mlcalib.quantization.propagation import Flow
from mlcalib.quantization.solve import mix_block, references
from mlcalib.quantization.source import Source
from mlcalib.statistics import StatisticSet, compares


@dataclass
class Places:
    """What was gathered of shared weights before the first of them is solved.

    Attributes:
        found: first block of a weight → input there → statistics of that input at all places.
    """

    found: dict[str, BlockStatistics] = field(default_factory=dict)

    def add_to(self, name: str, gathered: Gathered, waiting: Sequence[Job]) -> None:
        """Put the statistics of all places in the place of those that a first block has gathered.

        Where languages take turns, losses are still measured on what the first block reads.
        """
        if (own := self.found.get(name)) is None or not waiting:
            return
        gathered.statistics |= own
        if not gathered.in_turns:
            gathered.measured |= of_kind("calibration", references(own))
            return
        for job, mixed in zip(waiting, gathered.mixed, strict=True):
            if mixed is not None and job.mixture:
                mixed.update(mix_block(own, job.mixture))


@torch.no_grad()
def gather_places(
    source: Source,
    text: CalibrationSet,
    prefixes: Iterable[Prefix],
    kinds: Sequence[str],
    devices: Mapping[str, torch.device],
    stopwatch: Stopwatch,
    *,
    hidden: HiddenStates,
    progress: bool,
) -> Places:
    """Run the text through the float model as far as the last place, a block at a time.

    Args:
        source: a model whose blocks share weights.
        text: the calibration text.
        prefixes: see ``run_pass``.
        kinds: statistics.
        devices: block → where it runs.
        stopwatch: gets the time.
        hidden: keeps hidden states, of this run alone.
        progress: whether a bar is shown.

    Raises:
        NotImplementedError: statistics that compare with the float model's activations.
    """
    if compares(kinds):
        raise NotImplementedError(
            "What is compared with the float model's activations is not added up over the places "
            "of weights that blocks share; leave out correction."
        )
    adapter, places = source.adapter, Places()
    firsts = _firsts(adapter)
    names = [name for name, _ in adapter.named_blocks(source.model)]
    last = max(names.index(_block(linear, names)) for linear in adapter.places)
    with source.embedding():
        flow = Flow(
            source.model,
            adapter,
            text,
            stopwatch,
            prefixes=prefixes,
            hidden=hidden,
            devices=devices,
        )
    input_of: dict[str, str] = {}  # linear → its input in its block
    taken = names[: last + 1]
    for name in progress_bar(taken, desc="shared weights", unit="block", disable=not progress):
        with source.block(name) as block:
            move_block(block, devices[name])
            linears = adapter.linears_of(block)
            inputs = {
                key: firsts[f"{name}.{member}"]
                for key, members in linears.items()
                for member in members
                if f"{name}.{member}" in firsts
            }
            input_of |= {f"{name}.{member}": key for key in inputs for member in linears[key]}
            others = {
                f"{name}.{member}"
                for key, members in linears.items()
                for member in members
                if key not in inputs
            }
            statistics = flow.collect(name, block, kinds, skipped=others, advance=True)
            for key, first in inputs.items():
                block_name = _block(first, names)
                _add(places, block_name, input_of[first], statistics[key])
        flow.turn()
    return places


def _add(
    places: Places, block_name: str, key: str, statistics: Mapping[Prefix, StatisticSet]
) -> None:
    found = places.found.setdefault(block_name, {}).setdefault(key, {})
    for prefix, each in statistics.items():
        if prefix in found:
            found[prefix].merge(each)
        else:
            found[prefix] = each


def _firsts(adapter: Adapter) -> dict[str, str]:
    """Return each place of a shared weight, the first one too → the first."""
    return {**adapter.places, **{first: first for first in adapter.places.values()}}


def _block(linear: str, names: Sequence[str]) -> str:
    return next(name for name in names if linear.startswith(f"{name}."))
