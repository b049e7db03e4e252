"""One pass over a model, block by block, for any number of variants; goes on where it stopped."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.calibration_sets import CalibrationSet
from mlcalib.flow import BlockStatistics, Flow, Prefix, Probe, Stopwatch
from mlcalib.formats import Format
from mlcalib.hidden_states import HiddenStates
from mlcalib.layer_names import saved_name
from mlcalib.models import Adapter
from mlcalib.parts import Parts
from mlcalib.records import layer_record
from mlcalib.solving import References, check_block, expert_tokens, input_ranges, references
from mlcalib.sources import Source, copied
from mlcalib.variants import Variant, VariantBlock

Propagate = Literal["quantized", "float"]

Text = tuple[str, str]
"""Whose text a loss is measured on: kind (``calibration``, ``heldout``) and language."""


@dataclass
class Job:
    """A variant on its way to a checkpoint.

    Attributes:
        variant: what solves, and on what.
        checkpoint_format: how its linears are held.
        specs: the grid of each linear.
        parts: its finished blocks.
        stopwatch: time spent on it alone.
    """

    variant: Variant
    checkpoint_format: Format
    specs: Mapping[str, GridSpec]
    parts: Parts
    stopwatch: Stopwatch = field(default_factory=Stopwatch)


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
            flow = Flow(source.model, adapter, text, stopwatch, prefixes=prefixes, hidden=hidden)
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


def packed(
    job: Job,
    adapter: Adapter,
    block_name: str,
    block: nn.Module,
    linears: Mapping[str, QuantizedLinear],
) -> dict[str, Tensor]:
    """Return the tensors of a quantized block, by their names in the checkpoint, in order."""
    found: dict[str, Tensor] = {}
    whole = job.checkpoint_format.file is not None  # packed when the file is written
    for key, tensor in block.state_dict().items():
        layer = f"{block_name}.{key.removesuffix('.weight')}"
        if layer not in linears:
            found[f"{block_name}.{key}"] = tensor
        elif whole:
            linear = linears[layer]
            found[f"{layer}.codes"] = linear.codes
            found[f"{layer}.scale"], found[f"{layer}.zero"] = linear.grid.scale, linear.grid.zero
        else:
            found |= job.checkpoint_format.pack(layer, linears[layer])
    if whole:
        return found
    return {saved_name(name, adapter.saved_names): tensor for name, tensor in found.items()}


def finished_linear(
    job: Job, adapter: Adapter, tensors: Mapping[str, Tensor], layer: str
) -> QuantizedLinear:
    """Return a linear of a finished block.

    Args:
        job: what made it.
        adapter: the model's family.
        tensors: of the block's part.
        layer: its name in the model.
    """
    spec = job.specs[layer]
    if job.checkpoint_format.file is not None:
        grid = Grid(tensors[f"{layer}.scale"], tensors[f"{layer}.zero"], spec)
        return QuantizedLinear(tensors[f"{layer}.codes"], grid)
    name = saved_name(layer, adapter.saved_names)
    return job.checkpoint_format.unpack(name, tensors, spec)


def restore(job: Job, adapter: Adapter, block_name: str, block: nn.Module) -> None:
    """Give a block the weights that its finished part holds, as ``Variant.solve`` leaves them."""
    tensors = job.parts.tensors(block_name)
    names = {} if job.checkpoint_format.file is not None else adapter.saved_names
    for path, module in block.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            layer = f"{block_name}.{path}".removesuffix(".")
            value = tensors.get(saved_name(f"{layer}.{key}", names))
            if value is None:
                value = finished_linear(job, adapter, tensors, layer).dequantize()
            setattr(module, key, nn.Parameter(value.to(parameter.dtype), requires_grad=False))


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
