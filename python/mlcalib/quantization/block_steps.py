"""What a pass does at one block: gather, solve, keep, and move the text on."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from mlcalib.common.stopwatch import Stopwatch
from mlcalib.quantization.fisher import Felt, Fisher
from mlcalib.quantization.gathering import Gathered, Gatherer, Part, of_kind
from mlcalib.quantization.job import BlockView, Job, Outcome, Text
from mlcalib.quantization.measure import Measure
from mlcalib.quantization.places import Places
from mlcalib.quantization.probe import Probe
from mlcalib.quantization.propagation import Flow
from mlcalib.quantization.read_ahead import Blocks
from mlcalib.quantization.solve import References
from mlcalib.quantization.source import Source, copied
from mlcalib.quantization.weight_check import check_block

Propagate = Literal["quantized", "float"]


@dataclass
class BlockSteps:
    """Takes one block of a pass after the other.

    Attributes:
        source: the model.
        names: its blocks.
        blocks: those that are taken, with weights.
        jobs: what is done with each.
        flow: the calibration text on its way; None where no job needs any.
        gatherer: of its statistics.
        propagate: see ``run_pass``.
        measure: what else is done with each block.
        stopwatch: gets the time that all jobs share.
        fisher: gathers what the loss feels, where a job asks for it.
        shared: statistics of weights that blocks share.
    """

    source: Source
    names: Sequence[str]
    blocks: Blocks
    jobs: Sequence[Job]
    flow: Flow | None
    gatherer: Gatherer | None
    propagate: Propagate
    measure: Measure | None
    stopwatch: Stopwatch
    fisher: Fisher | None
    shared: Places

    def run(self, name: str, waiting: Sequence[Job]) -> None:
        """Take a block: solve it for the jobs that wait for it, and move the text through it."""
        index = self.names.index(name)
        adapter, flow, measure = self.source.adapter, self.flow, self.measure
        with ExitStack() as stack:
            with self.stopwatch.timed("load"):
                block = stack.enter_context(self.blocks.block(name))
                check_block(adapter, name, block)
            probes = [job.probe(flow, name) for job in waiting]
            open_for = waiting or (measure is not None and not measure.has(name))
            found = Gathered(mixed=[None] * len(waiting))
            if open_for and self.gatherer is not None:
                found = self.gatherer.gather(name, block, waiting)
                self.shared.add_to(name, found, waiting)
            if measure is not None and open_for:
                heldout = measure.begin(name, block, found.statistics)
                _add(found.measured, of_kind("heldout", heldout))
            elif measure is not None and measure.position == index:
                measure.skip(name, block)
            own = self._run_jobs(name, block, waiting, probes, found)
            moves = flow is not None and flow.position == index
            if flow is not None and moves and not found.advanced:
                self._advance(flow, name, block, own, waiting, measured=bool(open_for))
        if flow is not None and moves:
            flow.turn()
        if measure is not None and open_for:
            measure.end(name)

    def _run_jobs(
        self,
        name: str,
        block: nn.Module,
        waiting: Sequence[Job],
        probes: Sequence[Probe | None],
        found: Gathered,
    ) -> nn.Module:
        """Return the block as the last job left it; each is kept when it is measured."""
        felt = Felt()
        if self.fisher is not None and waiting:
            with self.stopwatch.timed("gradients"):
                felt = self.fisher.gather(name, block)
        view = BlockView(
            self.source.adapter,
            name,
            block,
            found.statistics,
            found.measured,
            earlier=self.names[: self.names.index(name)],
            languages=felt.languages,
            in_turns=found.in_turns,
            owners=found.owners,
            diagonal=self.gatherer is not None and self.gatherer.diagonal,
            later=found.later,
            cache=found.cache,
        )
        own = block
        outcomes: list[Outcome] = []
        for job, probe in zip(waiting, probes, strict=True):
            own_view = replace(
                view,
                mixed=found.mixed.pop(0),
                fisher=felt.mixtures.get(id(job)),
                texts=felt.texts.get(id(job), {}),
            )
            outcome = job.run(own_view, probe)
            own = outcome.block
            if found.in_turns:
                outcomes.append(outcome)
            else:
                outcome.keep()
        if outcomes and self.gatherer is not None:
            for measured in self.gatherer.again(name, block, Part(found.inputs)):
                for outcome in outcomes:
                    outcome.measure(measured)
            found.advanced = self.gatherer.advance
            for outcome in outcomes:
                outcome.keep()
        return own

    def _advance(
        self,
        flow: Flow,
        name: str,
        block: nn.Module,
        own: nn.Module,
        waiting: Sequence[Job],
        *,
        measured: bool,
    ) -> None:
        """Move the text through a block: as it was, or as the job left it."""
        if self.propagate == "float":
            flow.advance(name, block)
            return
        if not measured:
            flow.advance_float(name, block)
        if not waiting:
            own = copied(block)
            self.jobs[0].restore(name, own)
        flow.advance(name, own)


def _add(measured: References[Text], further: References[Text]) -> None:
    for name, by_text in further.items():
        measured[name] = {**measured.get(name, {}), **by_text}
