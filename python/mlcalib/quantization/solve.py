"""Solve the linears of a block."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Generic

import torch
from torch import Tensor, nn

from mlcalib._core import QuantizedLinear
from mlcalib.common.errors import named
from mlcalib.common.ranks import Ranks
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.models import Adapter
from mlcalib.quantization.fisher import BlockFisher
from mlcalib.quantization.pieces import Change, Key, Piece, added, joined, shared
from mlcalib.quantization.prefixes import BlockStatistics, Mixture, Prefix, longest_texts
from mlcalib.quantization.scale import ScaledBlock
from mlcalib.quantization.shares import Part, parts_of
from mlcalib.quantizers import Quantizer
from mlcalib.quantizers.base import Sensitivity
from mlcalib.statistics import StatisticSet, losses, mix

_log = logging.getLogger(__name__)


@dataclass
class SolvedBlock(Generic[Key]):
    """What became of a block.

    Attributes:
        linears: name → codes and grid.
        losses: name → whose text → tr(D G Dᵀ) per token; without calibration none, nor of a text of
            which an expert saw no token.
        loss: sum of the losses per token on the mixture.
        changes: input → linear → what was changed by this rank, in rows; where losses are measured
            later.
        divergence: linear → language → what it costs the model, in nats per token; where what the
            loss feels of each language is known (see ``BlockFisher.divergence``).
        ranks: the processes of the run.
    """

    linears: dict[str, QuantizedLinear] = field(default_factory=dict)
    losses: dict[str, dict[Key, float]] = field(default_factory=dict)
    loss: float = 0.0
    changes: dict[str, dict[str, list[Change]]] = field(default_factory=dict)
    divergence: dict[str, dict[str, float]] = field(default_factory=dict)
    ranks: Ranks = field(default_factory=Ranks)

    def add(self, other: "SolvedBlock[Key]") -> None:
        """Take in what became of other linears of the block."""
        self.linears |= other.linears
        self.losses |= other.losses
        self.loss += other.loss
        self.changes |= other.changes
        self.divergence |= other.divergence

    def measure(self, measured: "References[Key]") -> None:
        """Add the losses on further text; collective."""
        own: dict[str, dict[Key, float]] = {}
        for name, changes in self.changes.items():
            if grams := measured.get(name):
                for layer, rows in changes.items():
                    own[layer] = added(losses_per_token(change(), grams) for change in rows)
        every = self.ranks.gathered(own)
        for layer in dict.fromkeys(layer for each in every for layer in each):
            self.losses[layer] |= added(each[layer] for each in every if layer in each)


References = dict[str, dict[Key, StatisticSet]]
"""Input → whose text → its statistics, whose Grams losses are measured with."""


def longest(by_prefix: Mapping[Prefix, StatisticSet]) -> dict[str, StatisticSet]:
    """Return language → the statistics of the longest of its prefixes."""
    return {language: by_prefix[prefix] for language, prefix in longest_texts(by_prefix).items()}


def references(statistics: BlockStatistics) -> References[str]:
    """Return what losses per language are measured with: the longest text of each language.

    A language of which no token reached an input is left out there, and all are where another rank
    has what losses are measured with.
    """
    return {
        name: {
            language: each
            for language, each in longest(by_prefix).items()
            if each.tokens and {"gram", "moments"} & set(each.kinds)
        }
        for name, by_prefix in statistics.items()
    }


def mix_block(statistics: BlockStatistics, mixture: Mixture) -> dict[str, StatisticSet]:
    """Return input → the mixture of its statistics."""
    return {name: mix(by_prefix, mixture) for name, by_prefix in statistics.items()}


@dataclass(frozen=True)
class _Task:
    """Linears of one input that are solved with one quantizer.

    Attributes:
        name: of the input.
        members: names of the linears in the block.
        layers: names of the linears in the model.
        linears: they themselves.
        solver: the quantizer.
        mixed: statistics of the input; None without calibration.
        felt: what the loss feels of them, where the quantizer asks for it and it is known.
    """

    name: str
    members: list[str]
    layers: list[str]
    linears: list[nn.Linear]
    solver: Quantizer
    mixed: StatisticSet | None
    felt: Sensitivity | None

    @property
    def rows(self) -> list[int]:
        """Outputs of each linear."""
        return [linear.weight.shape[0] for linear in self.linears]

    @property
    def unfelt(self) -> bool:
        """Whether the quantizer asked what the loss feels, and nothing came."""
        return self.solver.fisher_tokens > 0 and self.felt is None and self.mixed is not None

    def solve(self, weights: Sequence[Tensor]) -> list[QuantizedLinear]:
        """Solve weights, all rows of the linears or some."""
        with named(self.layers[0]):
            if self.mixed is not None and self.mixed.tokens == 0:
                return self.solver.round(weights)
            if self.felt is not None:  # else left out: a plug-in need not know of it
                return self.solver.solve(weights, self.mixed, self.felt)
            return self.solver.solve(weights, self.mixed)


def solve_block(  # noqa: PLR0913 - what a solution is made of
    adapter: Adapter,
    block_name: str,
    block: nn.Module,
    mixed: Mapping[str, StatisticSet],
    measured: References[Key],
    quantizer: Quantizer,
    exceptions: Mapping[str, Quantizer | None],
    stopwatch: Stopwatch,
    scaled: ScaledBlock,
    *,
    fisher: BlockFisher | None = None,
    measured_later: bool = False,
    ranks: Ranks | None = None,
    owners: Mapping[str, int] = MappingProxyType({}),
    inputs: Collection[str] | None = None,
) -> SolvedBlock[Key]:
    """Solve the linears of a block and replace their weights by the dequantized ones; collective.

    Args:
        adapter: the model's family.
        block_name: name of the block in the model.
        block: its linears get new weights.
        mixed: input → statistics to solve with; empty without calibration.
        measured: statistics whose Grams losses are measured with, of inputs without scales.
        quantizer: what solves.
        exceptions: linear (its name in the model) → what solves it instead; None leaves it alone.
        stopwatch: gets the times.
        scaled: what ``scale_block`` did before.
        fisher: what the loss feels of the block, where a quantizer asks for it.
        measured_later: keep the changes, for losses on further text.
        ranks: the processes of the run, which share the work; each gets all that comes of it.
        owners: input → the rank that alone can solve it, because it has the statistics.
        inputs: those whose linears are solved; None for all.
    """
    tasks = [
        _Task(
            name,
            alike,
            [f"{block_name}.{member}" for member in alike],
            [adapter.linear(block, member) for member in alike],
            solver,
            mixed.get(name),
            sensitivity(fisher, name, alike) if solver.fisher_tokens else None,
        )
        for name, members in adapter.linears_of(block).items()
        if inputs is None or name in inputs
        for solver, alike in _by_quantizer(block_name, members, quantizer, exceptions)
    ]
    solved = SolvedBlock[Key](ranks=Ranks() if ranks is None else ranks)
    shapes = [(sum(task.rows), task.linears[0].in_features) for task in tasks]
    # Scales of FP8 are divided by a number that all rows decide together, as they do on one scale;
    # those in uint8 are quantized together; with an output Gram, rows make up for the errors of
    # others, and a strength of the correction is chosen for all of them.
    whole = {
        index
        for index, task in enumerate(tasks)
        if task.solver.spec.scale_dtype in (torch.float8_e4m3fn, torch.uint8)
        or task.solver.spec.per_tensor
        or task.solver.fisher_tokens
        or task.solver.halves
    }
    own: list[Piece[Key]] = []
    given = {index: owners[task.name] for index, task in enumerate(tasks) if task.name in owners}
    for part in parts_of(shapes, solved.ranks.size, whole, given):
        if part.owner == solved.ranks.rank:
            task = tasks[part.task]
            grams = measured.get(task.name, {})
            for piece, change in _solve_part(task, part, grams, scaled, fisher, stopwatch):
                own.append(piece)
                if measured_later:
                    of_input = solved.changes.setdefault(task.name, {})
                    of_input.setdefault(piece.layer, []).append(change)
    with stopwatch.timed("share"):
        pieces = shared(own, solved.ranks, next(block.parameters()).device)
    for task in tasks:
        for layer, linear in zip(task.layers, task.linears, strict=True):
            _take(solved, layer, linear, pieces[layer])
    _say_unfelt(block_name, [layer for task in tasks if task.unfelt for layer in task.layers])
    return solved


def _solve_part(
    task: _Task,
    part: Part,
    grams: Mapping[Key, StatisticSet],
    scaled: ScaledBlock,
    fisher: BlockFisher | None,
    stopwatch: Stopwatch,
) -> Iterator[tuple[Piece[Key], Change]]:
    """Solve some rows of linears of one input, and measure what that costs."""
    rows = part.rows_of(task.rows)
    weights = [task.linears[index].weight.detach()[first:last] for index, first, last in rows]
    with stopwatch.timed("solve"):
        results = task.solve(weights)
    for (index, first, _), weight, result in zip(rows, weights, results, strict=True):
        change, member = Change(weight, result, scaled.scales.get(task.name)), task.members[index]
        divergence: dict[str, float] = {}
        measured: dict[Key, float] = {}
        with stopwatch.timed("losses"):
            if grams or (fisher is not None and fisher.languages):
                moved = change()
                measured = losses_per_token(moved, grams)
                if fisher is not None:
                    moved = scaled.unscaled_output(member, moved)
                    divergence = fisher.divergences(task.name, member, moved)
        loss = None
        if task.mixed is not None and task.mixed.tokens:
            loss = result.loss if task.felt is None else None  # else of weighted tokens
            if loss is None:
                loss = losses(result.dequantize().sub(weight), [task.mixed])[0]
            loss /= task.mixed.tokens
        yield Piece(task.layers[index], first, result, loss, measured, divergence), change


def _take(
    solved: SolvedBlock[Key],
    layer: str,
    linear: nn.Linear,
    pieces: Sequence[Piece[Key]],
) -> None:
    """Give a linear the weights of its pieces, and note what they cost."""
    result = joined(pieces)
    solved.linears[layer] = result
    solved.losses[layer] = added(each.losses for each in pieces)
    if pieces[0].divergence:
        solved.divergence[layer] = pieces[0].divergence
    solved.loss += sum(each.loss or 0.0 for each in pieces)
    weight = result.dequantize().to(linear.weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=False)


def _say_unfelt(block_name: str, layers: Sequence[str]) -> None:
    if layers:
        _log.warning(
            "%s: no gradient of the loss came through %d linears, such as %s; they are solved "
            "without. More fisher_tokens reach more experts.",
            block_name,
            len(layers),
            layers[0].removeprefix(f"{block_name}."),
        )


def sensitivity(
    fisher: BlockFisher | None, name: str, members: Sequence[str]
) -> Sensitivity | None:
    """Return how much the loss feels linears of one input; None where it was not seen to."""
    if fisher is None or name not in fisher.inputs:
        return None
    return Sensitivity(fisher.inputs[name], [fisher.outputs.get(member) for member in members])


def losses_per_token(change: Tensor, measured: Mapping[Key, StatisticSet]) -> dict[Key, float]:
    """Return key → tr(D G Dᵀ) per token.

    Args:
        change: D [out, in], float32.
        measured: statistics with a Gram, each with at least one token.
    """
    sums = losses(change, measured.values()) if measured else []
    return {key: loss / measured[key].tokens for key, loss in zip(measured, sums, strict=True)}


def _by_quantizer(
    block_name: str,
    members: Sequence[str],
    quantizer: Quantizer,
    exceptions: Mapping[str, Quantizer | None],
) -> list[tuple[Quantizer, list[str]]]:
    """Return the linears of one input that are solved together, in one call of their quantizer."""
    together: dict[int, tuple[Quantizer, list[str]]] = {}
    for member in members:
        if (solver := exceptions.get(f"{block_name}.{member}", quantizer)) is not None:
            together.setdefault(id(solver), (solver, []))[1].append(member)
    return list(together.values())
