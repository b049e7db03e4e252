"""Solve the linears of a block, and find beforehand what would spoil it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mlcalib import _core
from mlcalib._core import QuantizedLinear
from mlcalib.errors import named
from mlcalib.flow import BlockStatistics, Stopwatch
from mlcalib.models import Adapter
from mlcalib.quantizers import Quantizer
from mlcalib.statistics import StatisticSet, mix

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Solved:
    """What the pipeline gives.

    Attributes:
        linears: name → codes and grid.
        losses: name → language → tr(D G Dᵀ) per token with that language's Gram; no language
            without calibration, nor one of which an expert saw no token.
        ranges: name → language → least and largest value of its input on that language's text.
        scales: source of a scale group → how its scales were found.
        expert_tokens: expert → language → tokens that were routed to it.
        stopwatch: time per phase (forward, gram, solve, losses).
    """

    linears: dict[str, QuantizedLinear] = field(default_factory=dict)
    losses: dict[str, dict[str, float]] = field(default_factory=dict)
    ranges: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    scales: dict[str, dict[str, float]] = field(default_factory=dict)
    expert_tokens: dict[str, dict[str, int]] = field(default_factory=dict)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)


def input_ranges(
    adapter: Adapter, block_name: str, block: nn.Module, statistics: BlockStatistics
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return linear (name in the model) → language → the extremes of its input over all channels.

    A language of which no token reached the input has none.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    linears = adapter.linears_of(block)
    for name, by_language in statistics.items():
        extremes = {}
        for language, each in by_language.items():
            if each.tokens:
                state = each.state("range")
                extremes[language] = (float(state["low"].min()), float(state["high"].max()))
        found |= {f"{block_name}.{member}": extremes for member in linears[name]}
    return found


def solve_block(
    adapter: Adapter,
    block_name: str,
    block: nn.Module,
    statistics: BlockStatistics,
    quantizer: Quantizer,
    exceptions: Mapping[str, Quantizer | None],
    solved: Solved,
) -> float:
    """Solve the linears of a block and replace their weights by the dequantized ones.

    Args:
        adapter: the model's family.
        block_name: name of the block in the model.
        block: its linears get new weights.
        statistics: of its inputs; empty without calibration.
        quantizer: what solves.
        exceptions: linear (its name in the model) → what solves it instead; None leaves it alone.
        solved: gets codes, losses and times.

    Returns:
        The sum of the losses per token.
    """
    total = 0.0
    for name, members in adapter.linears_of(block).items():
        together = _by_quantizer(block_name, members, quantizer, exceptions)
        if not together:
            continue
        by_language = statistics.get(name, {})
        if by_language and (expert := adapter.expert_of(members[0])) is not None:
            tokens = {language: round(each.tokens) for language, each in by_language.items()}
            solved.expert_tokens[f"{block_name}.{expert}"] = tokens
        with solved.stopwatch.timed("solve"):
            mixed = mix(by_language, dict.fromkeys(by_language, 1.0)) if by_language else None
        unseen = mixed is not None and mixed.tokens == 0
        by_language = {code: each for code, each in by_language.items() if each.tokens}
        with solved.stopwatch.timed("losses"):
            grams = [each.gram() for each in by_language.values()]  # copies: once for all members
        for solver, alike in together:
            linears = [adapter.linear(block, member) for member in alike]
            weights = [linear.weight.detach() for linear in linears]
            with solved.stopwatch.timed("solve"), named(f"{block_name}.{alike[0]}"):
                results = solver.round(weights) if unseen else solver.solve(weights, mixed)
            for member, linear, weight, result in zip(
                alike, linears, weights, results, strict=True
            ):
                layer = f"{block_name}.{member}"
                solved.linears[layer] = result
                with solved.stopwatch.timed("losses"):
                    solved.losses[layer] = losses_per_token(weight, result, grams, by_language)
                if mixed is not None and result.loss is not None:
                    total += result.loss / mixed.tokens
                dequantized = result.dequantize().to(weight.dtype)
                linear.weight = nn.Parameter(dequantized, requires_grad=False)
    return total


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


def losses_per_token(
    weight: Tensor,
    quantized: QuantizedLinear,
    grams: list[Tensor],
    by_language: Mapping[str, StatisticSet],
) -> dict[str, float]:
    """Return language → tr(D G Dᵀ) per token, D the change of the weight.

    Args:
        weight: [out, in].
        quantized: what became of it.
        grams: of the languages in ``by_language``, copied once for all linears of an input.
        by_language: statistics of the input, each with at least one token.
    """
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
