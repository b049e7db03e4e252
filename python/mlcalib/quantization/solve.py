"""Solve the linears of a block, and find beforehand what would spoil it."""

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor, nn

from mlcalib._core import QuantizedLinear
from mlcalib.common.errors import named
from mlcalib.common.stopwatch import Stopwatch
from mlcalib.models import Adapter
from mlcalib.quantization.fisher import BlockFisher
from mlcalib.quantization.propagation import BlockStatistics, Mixture, Prefix
from mlcalib.quantization.scale import ScaledBlock
from mlcalib.quantizers import Quantizer
from mlcalib.quantizers.base import Sensitivity
from mlcalib.statistics import StatisticSet, losses, mix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_log = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Change:
    """What solving changes of a linear, made when it is asked for: it is as large as the weight.

    Attributes:
        weight: before.
        result: after.
        scales: what the channels of its input were divided by, or None.
    """

    weight: Tensor
    result: QuantizedLinear
    scales: Tensor | None

    def __call__(self) -> Tensor:
        """Return D, float32 [out, in], for inputs without scales."""
        change = self.weight.float() - self.result.dequantize()
        return change if self.scales is None else change.div_(self.scales)


@dataclass
class SolvedBlock(Generic[Key]):
    """What became of a block.

    Attributes:
        linears: name → codes and grid.
        losses: name → whose text → tr(D G Dᵀ) per token; without calibration none, nor of a text of
            which an expert saw no token.
        loss: sum of the losses per token on the mixture.
        changes: input → linear → its change; where losses are measured later.
        divergence: linear → language → what it costs the model, in nats per token; where what the
            loss feels of each language is known (see ``BlockFisher.divergence``).
    """

    linears: dict[str, QuantizedLinear] = field(default_factory=dict)
    losses: dict[str, dict[Key, float]] = field(default_factory=dict)
    loss: float = 0.0
    changes: dict[str, dict[str, Change]] = field(default_factory=dict)
    divergence: dict[str, dict[str, float]] = field(default_factory=dict)

    def measure(self, measured: "References[Key]") -> None:
        """Add the losses on further text."""
        for name, changes in self.changes.items():
            if grams := measured.get(name):
                for layer, change in changes.items():
                    self.losses[layer] |= losses_per_token(change(), grams)


References = dict[str, dict[Key, StatisticSet]]
"""Input → whose text → its statistics, whose Grams losses are measured with."""


def input_ranges(
    adapter: Adapter, block_name: str, block: nn.Module, statistics: BlockStatistics
) -> dict[str, dict[str, tuple[float, float]]]:
    """Return linear (name in the model) → language → the extremes of its input over all channels.

    Of the longest text of each language. A language of which no token reached the input has none.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {}
    linears = adapter.linears_of(block)
    for name, by_prefix in statistics.items():
        extremes = {}
        for language, each in longest(by_prefix).items():
            if each.tokens:
                state = each.view("range")
                extremes[language] = (float(state["low"].min()), float(state["high"].max()))
        found |= {f"{block_name}.{member}": extremes for member in linears[name]}
    return found


def longest(by_prefix: Mapping[Prefix, StatisticSet]) -> dict[str, StatisticSet]:
    """Return language → the statistics of the longest of its prefixes."""
    ordered = sorted(by_prefix, key=lambda prefix: prefix.tokens)
    return {prefix.language: by_prefix[prefix] for prefix in ordered}


def references(statistics: BlockStatistics) -> References[str]:
    """Return what losses per language are measured with: the longest text of each language.

    A language of which no token reached an input is left out there.
    """
    return {
        name: {language: each for language, each in longest(by_prefix).items() if each.tokens}
        for name, by_prefix in statistics.items()
    }


def mix_block(statistics: BlockStatistics, mixture: Mixture) -> dict[str, StatisticSet]:
    """Return input → the mixture of its statistics."""
    return {name: mix(by_prefix, mixture) for name, by_prefix in statistics.items()}


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
) -> SolvedBlock[Key]:
    """Solve the linears of a block and replace their weights by the dequantized ones.

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
    """
    solved = SolvedBlock[Key]()
    unfelt: list[str] = []
    for name, members in adapter.linears_of(block).items():
        together = _by_quantizer(block_name, members, quantizer, exceptions)
        own, grams = mixed.get(name), measured.get(name, {})
        for solver, alike in together:
            linears = [adapter.linear(block, member) for member in alike]
            weights = [linear.weight.detach() for linear in linears]
            felt = sensitivity(fisher, name, alike) if solver.fisher_tokens else None
            if felt is None and solver.fisher_tokens and own is not None:
                unfelt += alike
            with stopwatch.timed("solve"), named(f"{block_name}.{alike[0]}"):
                results = _solve(solver, weights, own, felt)
            for member, linear, weight, result in zip(
                alike, linears, weights, results, strict=True
            ):
                layer = f"{block_name}.{member}"
                solved.linears[layer] = result
                dequantized = result.dequantize()
                with stopwatch.timed("losses"):
                    change = scaled.unscaled(name, weight.float() - dequantized)
                    solved.losses[layer] = losses_per_token(change, grams)
                    if fisher is not None and fisher.languages:
                        change = scaled.unscaled_output(member, change)
                        solved.divergence[layer] = fisher.divergences(name, member, change)
                if measured_later:
                    kept = Change(weight, result, scaled.scales.get(name))
                    solved.changes.setdefault(name, {})[layer] = kept
                if own is not None and own.tokens:
                    known = result.loss if felt is None else None  # else of weighted tokens
                    loss = losses(dequantized.sub(weight), [own])[0] if known is None else known
                    solved.loss += loss / own.tokens
                linear.weight = nn.Parameter(dequantized.to(weight.dtype), requires_grad=False)
    if unfelt:
        _log.warning(
            "%s: no gradient of the loss came through %d linears, such as %s; they are solved "
            "without. More fisher_tokens reach more experts.",
            block_name,
            len(unfelt),
            unfelt[0],
        )
    return solved


def _solve(
    solver: Quantizer,
    weights: Sequence[Tensor],
    own: StatisticSet | None,
    felt: Sensitivity | None,
) -> list[QuantizedLinear]:
    """Solve linears of one input, which without any token is rounded."""
    if own is not None and own.tokens == 0:
        return solver.round(weights)
    if felt is not None:  # else left out: a plug-in need not know of it
        return solver.solve(weights, own, felt)
    return solver.solve(weights, own)


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


def expert_tokens(
    adapter: Adapter, block_name: str, block: nn.Module, statistics: BlockStatistics
) -> dict[str, dict[str, int]]:
    """Return expert (name in the model) → language → tokens that were routed to it."""
    linears = adapter.linears_of(block)
    return {
        f"{block_name}.{expert}": {
            language: round(each.tokens) for language, each in longest(by_prefix).items()
        }
        for name, by_prefix in statistics.items()
        if (expert := adapter.expert_of(linears[name][0])) is not None
    }


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


def check_shared(model: "PreTrainedModel", adapter: Adapter) -> None:
    """Find linears that share a weight, with each other or with an embedding.

    Args:
        model: its weights are compared by identity, and may be on the meta device.
        adapter: its family.

    Raises:
        ValueError: there are some; names the layers.
    """
    names = {
        id(module.weight): name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }
    for name, linear in adapter.named_linears(model):
        if name in adapter.places:
            continue  # solved at the first of its places
        other = names.setdefault(id(linear.weight), name)
        if other != name:
            raise ValueError(
                f"{name} and {other} share one weight; quantizing one would change the other. "
                "Untie them first."
            )


def check_block(adapter: Adapter, block_name: str, block: nn.Module) -> None:
    """Find NaN or Inf in the weights of a block: of its linears, norms and all else.

    Raises:
        ValueError: there are some; names the layer.
    """
    named = {
        f"{member}.weight": f"{block_name}.{member}"
        for members in adapter.linears_of(block).values()
        for member in members
    }
    for name, parameter in block.named_parameters():
        check_finite(named.get(name, f"{block_name}.{name}"), parameter)


def check_finite(name: str, tensor: Tensor) -> None:
    """Refuse a tensor of a model with NaN or Inf in it.

    Raises:
        ValueError: names it.
    """
    if tensor.is_floating_point() and not (finite := torch.isfinite(tensor)).all():
        raise ValueError(
            f"{name}: the weight holds {int((~finite).sum())} NaN or Inf; the model is damaged, or "
            f"its dtype ({tensor.dtype}) cannot hold it. Get it again, or load it as float32."
        )
