"""One pass over a model, block by block, for any number of jobs; goes on where it stopped."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn
from tqdm.auto import tqdm

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.models.device import CPU, move_block
from mlcalib.quantization.hidden_states import HiddenStates
from mlcalib.quantization.job import BlockView, Job, Text
from mlcalib.quantization.propagation import BlockStatistics, Flow, Prefix
from mlcalib.quantization.solve import (
    References,
    check_block,
    check_finite,
    check_shared,
    references,
)
from mlcalib.quantization.source import Source, copied
from mlcalib.quantization.text_check import check_text
from mlcalib.statistics import compares

Propagate = Literal["quantized", "float"]


class Measure(Protocol):
    """What else is learnt of each block, from other text that moves through the model beside."""

    @property
    def kinds(self) -> Iterable[str]:
        """Statistics of the calibration text that it looks at."""

    @property
    def position(self) -> int:
        """Blocks that the other text has come through."""

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
def run_pass(  # noqa: PLR0913 - what a pass is made of
    source: Source,
    jobs: Sequence[Job],
    text: CalibrationSet | None,
    *,
    prefixes: Iterable[Prefix] = (),
    propagate: Propagate,
    hidden: HiddenStates | None = None,
    measure: Measure | None = None,
    stopwatch: Stopwatch,
    description: str | None,
    device: torch.device = CPU,
) -> None:
    """Let every job do its work on every block; a block is kept before the next is begun.

    Args:
        source: the model.
        jobs: with ``propagate="quantized"`` one.
        text: all calibration text; None where no job needs any.
        prefixes: those of all mixtures; by default all of the text.
        propagate: ``float`` takes the text through float blocks; ``quantized`` through blocks as
            the job leaves them, so that each is calibrated on the already quantized model, at the
            price of a second forward.
        hidden: where hidden states live; by default in memory, so that a run that goes on takes
            the text through the finished blocks once more.
        measure: what else is done with each block.
        stopwatch: gets the time that all jobs share.
        description: what the progress bar says; None shows none.
        device: where blocks run, statistics are kept and linears are solved.

    Raises:
        ValueError: NaN or Inf in weights or activations, or a weight that two linears share; names
            the layer.
        torch.linalg.LinAlgError: a Gram that is not positive definite; names the layer.
        OSError: the disk is full; nothing that was finished is lost.
    """
    adapter = source.adapter
    check_shared(source.model, adapter)
    names = [name for name, _ in adapter.named_blocks(source.model)]
    waiting = {name: [job for job in jobs if not job.has(name)] for name in names}
    needed = [name for name in names if waiting[name] or (measure and not measure.has(name))]
    if not needed:
        return
    for name in source.outside_names():
        check_finite(name, source.tensor(name))
    first = names.index(needed[0])
    if measure is not None:
        measure.start(first)
    flow = None
    if text is not None:
        check_text(source.model, text)
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
                compares=any(compares(job.kinds) for job in jobs),
                device=device,
            )
    one = _Pass(source, jobs, flow, propagate, measure, stopwatch, device)
    disabled = description is None
    with tqdm(total=len(names), desc=description, unit="block", disable=disabled) as bar:
        for index, name in enumerate(names[: names.index(needed[-1]) + 1]):
            moving = [each for each in (flow, measure) if each and each.position <= index]
            if name in needed or moving:
                one.run(index, name, waiting[name])
            if len(jobs) == 1:
                bar.set_postfix_str(jobs[0].note(), refresh=False)
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
    device: torch.device

    def run(self, index: int, name: str, waiting: Sequence[Job]) -> None:
        """Take a block: solve it for the jobs that wait for it, and move the text through it."""
        adapter, flow, measure = self.source.adapter, self.flow, self.measure
        with ExitStack() as stack:
            with self.stopwatch.timed("load"):
                block = stack.enter_context(self.source.block(name))
                move_block(block, self.device)
                check_block(adapter, name, block)
            probes = [job.probe(flow, name) for job in waiting]
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
            own, view = block, BlockView(adapter, name, block, statistics, measured)
            for job, probe in zip(waiting, probes, strict=True):
                own = job.run(view, probe)
            if flow is not None and moves and self.propagate == "quantized":
                if not open_for:
                    flow.advance_float(name, block)
                if not waiting:
                    own = copied(block)
                    self.jobs[0].restore(name, own)
                flow.advance(name, own)
        if flow is not None and moves:
            flow.turn()
        if measure is not None and open_for:
            measure.end(name)

    def _statistics(self, name: str, block: nn.Module) -> BlockStatistics:
        if self.flow is None:
            return {}
        measured = self.measure.kinds if self.measure is not None else ()
        kinds = dict.fromkeys([*(kind for job in self.jobs for kind in job.kinds), *measured])
        skipped = set.intersection(*(job.skipped for job in self.jobs)) if self.jobs else ()
        advance = self.propagate == "float"
        return self.flow.collect(name, block, kinds, skipped=skipped, advance=advance)


def _of_kind(kind: str, given: References[str]) -> References[Text]:
    return {
        name: {(kind, language): reference for language, reference in by_language.items()}
        for name, by_language in given.items()
    }


def _add(measured: References[Text], further: References[Text]) -> None:
    for name, by_text in further.items():
        measured[name] = {**measured.get(name, {}), **by_text}
