"""One pass over a model, block by block, for any number of variants; goes on where it stopped."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn
from tqdm.auto import tqdm

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.checkpoints.record import layer_record
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.quantization.hidden_states import HiddenStates
from mlcalib.quantization.job import Job, packed, restore
from mlcalib.quantization.propagation import BlockStatistics, Flow, Prefix, Probe
from mlcalib.quantization.solve import (
    References,
    check_block,
    expert_tokens,
    input_ranges,
    references,
)
from mlcalib.quantization.source import Source, copied
from mlcalib.quantization.variant import VariantBlock
from mlcalib.statistics import compares

Propagate = Literal["quantized", "float"]

Text = tuple[str, str]
"""Whose text a loss is measured on: kind (``calibration``, ``heldout``) and language."""


class Measure(Protocol):
    """What else is learnt of each block, from other text that moves through the model beside."""

    @property
    def position(self) -> int:
        """Blocks that the other text is behind."""

    def start(self, index: int) -> None:
        """Get ready for a pass whose first open block is the one with this index."""

    def has(self, block_name: str) -> bool:
        """Return whether a block is done."""

    def begin(
        self, block_name: str, block: nn.Module, statistics: BlockStatistics
    ) -> References[str]:
        """Look at a block with its float weights; return Grams of the other text per language."""

    def end(self, block_name: str) -> None:
        """Keep what was learnt of the block, and go on to the next."""

    def skip(self, block_name: str, block: nn.Module) -> None:
        """Take the other text through a block that is done."""


@torch.no_grad()
def run_pass(
    source: Source,
    jobs: Sequence[Job],
    text: CalibrationSet | None,
    *,
    prefixes: Iterable[Prefix] = (),
    propagate: Propagate,
    hidden: HiddenStates | None = None,
    measure: Measure | None = None,
    stopwatch: Stopwatch,
    progress: bool,
) -> None:
    """Quantize every block for every job; each finished block is safe on disk before the next.

    Args:
        source: the model.
        jobs: with ``propagate="quantized"`` one.
        text: all calibration text; None where no job needs any.
        prefixes: those of all mixtures; by default all of the text.
        propagate: whether statistics are gathered behind float or behind quantized blocks.
        hidden: where hidden states live; by default in memory, so that a run that goes on takes
            the text through the finished blocks once more.
        measure: what else is done with each block.
        stopwatch: gets the time that all jobs share.
        progress: show a bar.

    Raises:
        ValueError: NaN or Inf in weights or activations; names the layer.
        torch.linalg.LinAlgError: a Gram that is not positive definite; names the layer.
        OSError: the disk is full; nothing that was finished is lost.
    """
    adapter = source.adapter
    names = [name for name, _ in adapter.named_blocks(source.model)]
    waiting = {name: [job for job in jobs if not job.parts.has(name)] for name in names}
    needed = [name for name in names if waiting[name] or (measure and not measure.has(name))]
    if not needed:
        return
    first = names.index(needed[0])
    if measure is not None:
        measure.start(first)
    flow = None
    if text is not None:
        hidden = hidden or HiddenStates()
        if hidden.position > first:
            hidden.restart()
        with source.embedding():
            flow = Flow(
                source.model,
                adapter,
                text,
                stopwatch,
                prefixes=prefixes,
                hidden=hidden,
                compares=any(compares(job.variant.kinds) for job in jobs),
            )
    one = _Pass(source, jobs, flow, propagate, measure, stopwatch)
    with tqdm(total=len(names), desc="quantizing", unit="block", disable=not progress) as bar:
        for index, name in enumerate(names[: names.index(needed[-1]) + 1]):
            behind = [each for each in (flow, measure) if each and each.position <= index]
            if name in needed or behind:
                one.run(index, name, waiting[name])
            bar.update()


@dataclass
class _Pass:
    """What ``run_pass`` was given."""

    source: Source
    jobs: Sequence[Job]
    flow: Flow | None
    propagate: Propagate
    measure: Measure | None
    stopwatch: Stopwatch

    def run(self, index: int, name: str, waiting: Sequence[Job]) -> None:
        """Take a block: solve it for the jobs that wait for it, and move the text through it."""
        adapter, flow, measure = self.source.adapter, self.flow, self.measure
        with ExitStack() as stack:
            with self.stopwatch.timed("load"):
                block = stack.enter_context(self.source.block(name))
                check_block(adapter, name, block)
            probes = [job.variant.probe(flow, name) for job in waiting]
            open_for = waiting or (measure is not None and not measure.has(name))
            statistics = self._statistics(name, block) if open_for else {}
            moves = flow is not None and flow.position == index
            if flow is not None and moves and not open_for and self.propagate == "float":
                flow.advance(name, block)
            measured: References[Text] = {}
            if open_for:
                measured = _of_kind("calibration", references(statistics))
                if measure is not None:
                    _add(measured, _of_kind("heldout", measure.begin(name, block, statistics)))
            elif measure is not None and measure.position == index:
                measure.skip(name, block)
            own = block
            for job, probe in zip(waiting, probes, strict=True):
                own = copied(block)
                self._solve(job, name, own, statistics, measured, probe)
            if flow is not None and moves and self.propagate == "quantized":
                if not open_for:
                    flow.advance_float(name, block)
                if not waiting:
                    own = copied(block)
                    restore(self.jobs[0], adapter, name, own)
                flow.advance(name, own)
        if flow is not None and moves:
            flow.turn()
        if measure is not None and open_for:
            measure.end(name)

    def _statistics(self, name: str, block: nn.Module) -> BlockStatistics:
        if self.flow is None:
            return {}
        variants = [job.variant for job in self.jobs]
        needs = (kind for variant in variants for kind in variant.kinds)
        kinds = dict.fromkeys(("gram", "range", *needs))  # at least what is measured
        skipped = set.intersection(*(variant.skipped for variant in variants)) if variants else ()
        advance = self.propagate == "float"
        return self.flow.collect(name, block, kinds, skipped=skipped, advance=advance)

    def _solve(
        self,
        job: Job,
        name: str,
        block: nn.Module,
        statistics: BlockStatistics,
        measured: References[Text],
        probe: Probe | None,
    ) -> None:
        adapter = self.source.adapter
        solved = job.variant.solve(adapter, name, block, statistics, measured, probe, job.stopwatch)
        with job.stopwatch.timed("write"):
            own = {
                input_name: {prefix: by_prefix[prefix] for prefix in job.variant.mixture}
                for input_name, by_prefix in statistics.items()
                if job.variant.mixture
            }
            record = {
                **_losses(solved),
                "layers": _layers(job, solved, input_ranges(adapter, name, block, own)),
                "scales": solved.scales,
                "expert_tokens": expert_tokens(adapter, name, block, own),
            }
            job.parts.write(name, packed(job, adapter, name, block, solved.linears), record)


def _of_kind(kind: str, given: References[str]) -> References[Text]:
    return {
        name: {(kind, language): reference for language, reference in by_language.items()}
        for name, by_language in given.items()
    }


def _add(measured: References[Text], further: References[Text]) -> None:
    for name, by_text in further.items():
        measured[name] = {**measured.get(name, {}), **by_text}


def _losses(solved: VariantBlock[Text]) -> dict[str, dict[str, dict[str, float]]]:
    """Return kind of text → linear → language → loss per token."""
    found: dict[str, dict[str, dict[str, float]]] = {"calibration": {}, "heldout": {}}
    for layer, losses in solved.losses.items():
        for (kind, language), loss in losses.items():
            found[kind].setdefault(layer, {})[language] = loss
    return found


def _layers(
    job: Job,
    solved: VariantBlock[Text],
    ranges: Mapping[str, Mapping[str, tuple[float, float]]],
) -> dict[str, Any]:
    languages = {prefix.language for prefix in job.variant.mixture}
    return {
        layer: layer_record(
            linear,
            {
                language: loss
                for (kind, language), loss in solved.losses[layer].items()
                if kind == "calibration" and language in languages
            },
            ranges.get(layer, {}),
        )
        for layer, linear in solved.linears.items()
    }
