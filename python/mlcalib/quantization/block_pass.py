"""One pass over a model, block by block, for any number of jobs; goes on where it stopped."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import partial

import torch

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.common.progress import progress_bar
from mlcalib.common.ranks import Ranks
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.models import Adapter
from mlcalib.models.device import short_of_memory
from mlcalib.quantization.block_steps import BlockSteps, Propagate
from mlcalib.quantization.gathering import Gatherer, kinds_of
from mlcalib.quantization.hidden_states import (
    HiddenStates,
    HiddenStatesOnDisk,
    PinnedHiddenStates,
)
from mlcalib.quantization.job import Job
from mlcalib.quantization.measure import Measure
from mlcalib.quantization.memory import REMEDIES
from mlcalib.quantization.memory_needs import OtherText, tokens_of
from mlcalib.quantization.pass_plan import plan_pass
from mlcalib.quantization.places import Places
from mlcalib.quantization.prefixes import Prefix
from mlcalib.quantization.read_ahead import Blocks
from mlcalib.quantization.reading import Reading
from mlcalib.quantization.source import Source
from mlcalib.quantization.weight_check import check_finite, check_shared

_log = logging.getLogger(__name__)


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
    device: str = "cpu",
    memory: float | None = None,
    ranks: Ranks | None = None,
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
        device: where blocks run, statistics are kept and linears are solved; see
            ``Source.places``.
        memory: GB that the pass may take there; None for nine tenths of what is free. Where that
            is too little, warnings say what is done without; results are the same.
        ranks: the processes of the run: each takes its share of the text through the blocks, and
            solves its share of their linears. All of this is then collective, and jobs, measure and
            what they keep agree on what is done.

    Raises:
        ValueError: NaN or Inf in weights or activations, or a weight that two linears share; names
            the layer.
        torch.linalg.LinAlgError: a Gram that is not positive definite; names the layer.
        OSError: the disk is full; nothing that was finished is lost.
        torch.OutOfMemoryError: names the block, what was held, and what takes less.
    """
    adapter, prefixes = source.adapter, list(prefixes)
    ranks = Ranks() if ranks is None else ranks
    check_shared(source.model, adapter)
    names = [name for name, _ in adapter.named_blocks(source.model)]
    waiting = {name: [job for job in jobs if not job.has(name)] for name in names}
    _wait_from_first_place(adapter, names, jobs, waiting)
    needed = [name for name in names if waiting[name] or (measure and not measure.has(name))]
    if not needed:
        return
    for name in source.outside_names():
        check_finite(name, source.tensor(name))
    first = names.index(needed[0])
    if measure is not None:
        measure.start(first)
    places = source.places(device)
    on_disk = isinstance(hidden, HiddenStatesOnDisk)
    other, kinds = None, kinds_of(jobs)
    if measure is not None:
        other = OtherText(len(measure.text.ids), tokens_of(measure.text), tuple(measure.kinds))
        kinds = tuple(dict.fromkeys([*kinds, *measure.kinds]))
    plan = plan_pass(
        source,
        jobs,
        text,
        places,
        prefixes,
        other=other,
        on_disk=on_disk,
        memory=memory,
        ranks=ranks,
    )
    for step in plan.steps:
        _log.warning("%s", step)
    flow, gatherer, fisher, shared = None, None, None, Places()
    if text is not None:
        reading = Reading(source, text, jobs, prefixes, places, ranks, stopwatch, description)
        reading.check()
        fisher = reading.fisher(waiting, by_text=plan.fisher_by_text)
        several = len(set(places.values())) > 1
        in_memory = partial(PinnedHiddenStates, wait=several) if plan.on_host else HiddenStates
        if adapter.places and any(waiting[name] for name in names):
            shared = reading.shared(kinds, in_memory())
        flow = reading.flow(first, hidden or in_memory())
        gatherer = Gatherer(
            flow,
            jobs,
            kinds,
            plan.groups,
            propagate == "float",
            stopwatch,
            ranks=ranks,
            apart=plan.apart,
            diagonal=plan.diagonal,
        )
    # Text that is behind moves through blocks that are done.
    start = min([first, *(each.position for each in (flow, measure) if each is not None)])
    taken = names[start : names.index(needed[-1]) + 1]
    disabled = description is None
    with (
        progress_bar(
            total=len(names), initial=start, desc=description, unit="block", disable=disabled
        ) as bar,
        closing(Blocks(source, taken, places, ahead=plan.ahead)) as blocks,
    ):
        steps = BlockSteps(
            source,
            names,
            blocks,
            jobs,
            flow,
            gatherer,
            propagate,
            measure,
            stopwatch,
            fisher,
            shared,
        )
        for name in taken:
            held = f"block {name} at work:\n{plan.table()}\n"
            with short_of_memory(places[name], held, REMEDIES):
                steps.run(name, waiting[name])
            if len(jobs) == 1:
                bar.set_postfix_str(jobs[0].note(), refresh=False)
            bar.update()


def _wait_from_first_place(
    adapter: Adapter,
    names: Sequence[str],
    jobs: Sequence[Job],
    waiting: dict[str, list[Job]],
) -> None:
    """Let a job begin again at the first block that shares weights, if later blocks wait for it.

    What was made of shared weights is in no file by itself.
    """
    shared = {*adapter.places.values(), *adapter.places}
    places = [any(linear.startswith(f"{name}.") for linear in shared) for name in names]
    start = places.index(True) if shared else len(names)
    for job in jobs:
        if any(job in waiting[name] for name in names[start:]):
            for name in names[start:]:
                waiting[name] = [each for each in jobs if each is job or each in waiting[name]]
