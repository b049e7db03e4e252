"""The heart: block by block, gather statistics per language, solve, go on."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from mlcalib import _core
from mlcalib._core import QuantizedLinear
from mlcalib.calibration_sets import CalibrationSet
from mlcalib.errors import named
from mlcalib.models import Adapter
from mlcalib.models.running import BlockInputs, embed, run_block, run_to_last_input, watching
from mlcalib.quantizers import Quantizer
from mlcalib.statistics import StatisticSet, mix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Propagate = Literal["quantized", "float"]
BlockStatistics = dict[str, dict[str, StatisticSet]]
"""Input of a block → language → its statistics."""


@dataclass
class Solved:
    """What the pipeline gives.

    Attributes:
        linears: name → codes and grid.
        losses: name → language → tr(D G Dᵀ) per token with that language's Gram; no language
            without calibration.
        seconds: phase (forward, gram, solve, losses) → time.
    """

    linears: dict[str, QuantizedLinear] = field(default_factory=dict)
    losses: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to a phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(phase, time.perf_counter() - start)

    def add(self, phase: str, seconds: float) -> None:
        """Add time to a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds


@torch.no_grad()
def quantize_blocks(
    model: "PreTrainedModel",
    adapter: Adapter,
    quantizer: Quantizer,
    calibration: CalibrationSet | None,
    *,
    propagate: Propagate,
    progress: bool,
) -> Solved:
    """Quantize every linear of the model's blocks; their weights become the dequantized ones.

    Args:
        model: its blocks' linears get new weights; nothing else changes.
        adapter: its family.
        quantizer: what solves.
        calibration: None for a quantizer that needs none.
        propagate: ``float`` gathers the statistics of a block from the float model; ``quantized``
            from the model whose earlier blocks are quantized, at the price of a second forward.
        progress: show a bar.

    Raises:
        ValueError: NaN or Inf in weights or activations; names the layer.
        torch.linalg.LinAlgError: a Gram that is not positive definite; names the layer.
    """
    check_weights(model, adapter)
    solved = Solved()
    flow = _Flow(model, adapter, calibration, solved) if calibration is not None else None
    blocks = adapter.named_blocks(model)
    with tqdm(blocks, desc="quantizing", unit="block", disable=not progress) as bar:
        for name, block in bar:
            statistics: BlockStatistics = {}
            if flow is not None:
                kinds = dict.fromkeys(("gram", *quantizer.needs))  # losses need the Gram
                statistics = flow.collect(name, block, kinds, advance=propagate == "float")
            loss = _solve_block(adapter, name, block, statistics, quantizer, solved)
            if flow is not None and propagate == "quantized":
                flow.advance(block)
            bar.set_postfix_str(f"{name.rpartition('.')[2]}, loss/token {loss:.3g}")
    return solved


class _Flow:
    """The hidden states of every sequence of the calibration set, moving from block to block."""

    def __init__(
        self,
        model: "PreTrainedModel",
        adapter: Adapter,
        calibration: CalibrationSet,
        solved: Solved,
    ) -> None:
        self._adapter = adapter
        self._calibration = calibration
        self._solved = solved
        self._hidden: dict[str, list[Tensor]] = {}  # language → [1, seq_len, hidden size] each
        self._inputs: BlockInputs  # the same for every sequence: they have one shape
        with solved.timed("forward"):
            for language in calibration.ids:
                self._hidden[language] = []
                for ids, _ in calibration.sequences(language):
                    state, self._inputs = embed(model, adapter, ids)
                    self._hidden[language].append(state)

    def collect(
        self, block_name: str, block: nn.Module, kinds: Mapping[str, None], *, advance: bool
    ) -> BlockStatistics:
        """Return the block's statistics; with ``advance`` its outputs become the hidden states."""
        solved, linears = self._solved, self._adapter.linears
        statistics: BlockStatistics = {
            name: {
                language: StatisticSet(kinds, self._adapter.linear(block, members[0]).in_features)
                for language in self._hidden
            }
            for name, members in linears.items()
        }
        in_statistics = 0.0
        language, counted = "", 0  # of the sequence that runs

        def see(name: str, x: Tensor) -> None:
            nonlocal in_statistics
            start = time.perf_counter()
            with named(f"input of {block_name}.{linears[name][0]}, text in '{language}'"):
                statistics[name][language].update(x[0, :counted])
            in_statistics += time.perf_counter() - start

        start = time.perf_counter()
        with watching(self._adapter, block, see):
            for language, states in self._hidden.items():
                sequences = self._calibration.sequences(language)
                for index, (_, counted) in enumerate(sequences):  # noqa: B007 - read by see
                    if advance:
                        states[index] = run_block(block, states[index], self._inputs)
                    else:
                        run_to_last_input(self._adapter, block, states[index], self._inputs)
        solved.add("gram", in_statistics)
        solved.add("forward", time.perf_counter() - start - in_statistics)
        return statistics

    def advance(self, block: nn.Module) -> None:
        """Move the hidden states through the block as it is now."""
        with self._solved.timed("forward"):
            for states in self._hidden.values():
                for index, state in enumerate(states):
                    states[index] = run_block(block, state, self._inputs)


def _solve_block(
    adapter: Adapter,
    block_name: str,
    block: nn.Module,
    statistics: Mapping[str, Mapping[str, StatisticSet]],
    quantizer: Quantizer,
    solved: Solved,
) -> float:
    """Solve and replace the linears of a block; return the sum of their losses per token."""
    total = 0.0
    for name, members in adapter.linears.items():
        linears = [adapter.linear(block, member) for member in members]
        weights = [linear.weight.detach() for linear in linears]
        by_language = statistics.get(name, {})
        with solved.timed("solve"), named(f"{block_name}.{members[0]}"):
            mixed = mix(by_language, dict.fromkeys(by_language, 1.0)) if by_language else None
            results = quantizer.solve(weights, mixed)
        for member, linear, weight, result in zip(members, linears, weights, results, strict=True):
            layer = f"{block_name}.{member}"
            solved.linears[layer] = result
            with solved.timed("losses"):
                solved.losses[layer] = _losses(weight, result, by_language)
            if mixed is not None and result.loss is not None:
                total += result.loss / mixed.tokens
            linear.weight = nn.Parameter(result.dequantize().to(weight.dtype), requires_grad=False)
    return total


def _losses(
    weight: Tensor, quantized: QuantizedLinear, by_language: Mapping[str, StatisticSet]
) -> dict[str, float]:
    grams = [statistics.gram() for statistics in by_language.values()]
    sums = _core.losses(weight, quantized, grams) if grams else []
    return {
        language: loss / statistics.tokens
        for (language, statistics), loss in zip(by_language.items(), sums, strict=True)
    }


def check_weights(model: "PreTrainedModel", adapter: Adapter) -> None:
    """Find, before the first forward, what would spoil the run.

    Raises:
        ValueError: NaN or Inf in a weight, or a weight that two layers share; names the layer.
    """
    names = {
        id(module.weight): name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }
    for name, linear in adapter.named_linears(model):
        other = names.setdefault(id(linear.weight), name)
        if other != name:
            raise ValueError(
                f"{name} and {other} share one weight; quantizing one would change the other. "
                "Untie them first."
            )
        if not torch.isfinite(linear.weight).all():
            bad = int((~torch.isfinite(linear.weight)).sum())
            raise ValueError(
                f"{name}: the weight holds {bad} NaN or Inf; the model is damaged, or its dtype "
                f"({linear.weight.dtype}) cannot hold it. Get it again, or load it as float32."
            )
