"""What a checkpoint writes down of a block that was quantized."""

from collections.abc import Container, Mapping
from typing import Any

from torch import nn

from mlcalib.checkpoints.record import layer_record, resources
from mlcalib.common.ranks import Ranks
from mlcalib.models import Adapter
from mlcalib.quantization.input_bounds import Bound
from mlcalib.quantization.job import BlockView, Text
from mlcalib.quantization.prefixes import BlockStatistics
from mlcalib.quantization.solve import longest
from mlcalib.quantization.variant import Variant, VariantBlock


def block_record(
    block: BlockView,
    own: nn.Module,
    own_text: BlockStatistics,
    solved: VariantBlock[Text],
    variant: Variant,
    bounds: Mapping[str, Bound],
    ranks: Ranks,
) -> dict[str, Any]:
    """Return a block's record.

    Args:
        block: as the job met it.
        own: with what was made of its weights.
        own_text: statistics of the mixture it was quantized with.
        solved: what became of its linears.
        variant: the way it was quantized.
        bounds: linear (name in the model) → the largest of its inputs, where inputs are quantized
            with scales that are fixed.
        ranks: the processes of the run.
    """
    adapter, name = block.adapter, block.name
    ranges = input_ranges(adapter, name, own, own_text)
    shrinkage = _shrinkage(adapter, name, own, solved.shrinkage)
    statistics = _of_experts(adapter, name, own, own_text, "diagonal" if block.diagonal else "gram")
    losses = _losses(solved)
    languages = {prefix.language for prefix in variant.mixture}
    layers = {}
    for layer, linear in solved.linears.items():
        of_text = losses["calibration"].get(layer, {})
        layers[layer] = layer_record(
            linear,
            {language: loss for language, loss in of_text.items() if language in languages},
            ranges.get(layer, {}),
            shrinkage.get(layer),
            solved.divergence.get(layer),
            statistics.get(layer),
            bounds[layer].clipped if layer in bounds else None,
        )
    record = {
        **losses,
        "layers": layers,
        "scales": solved.scaled.found,
        "expert_tokens": _expert_tokens(adapter, name, own, own_text),
        "made_with": resources(ranks),
    }
    if block.cache is not None:
        record["kv_cache"] = block.cache.describe(variant.activation_clip)
    return record


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


def _expert_tokens(
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


def _of_experts(
    adapter: Adapter, block_name: str, block: nn.Module, inputs: Container[str], statistic: str
) -> dict[str, str]:
    """Return linear of an expert (name in the model) → what losses of languages are taken from."""
    return {
        f"{block_name}.{member}": statistic
        for name, members in adapter.linears_of(block).items()
        if name in inputs
        for member in members
        if adapter.expert_of(member) is not None
    }


def _shrinkage(
    adapter: Adapter, block_name: str, block: nn.Module, shares: Mapping[str, float]
) -> dict[str, float]:
    """Return linear (name in the model) → the share of its input's tokens that was lent."""
    linears = adapter.linears_of(block)
    return {
        f"{block_name}.{member}": share
        for name, share in shares.items()
        for member in linears[name]
    }


def _losses(solved: VariantBlock[Text]) -> dict[str, dict[str, dict[str, float]]]:
    """Return kind of text → linear → language → loss per token."""
    found: dict[str, dict[str, dict[str, float]]] = {"calibration": {}, "heldout": {}}
    for layer, losses in solved.losses.items():
        for (kind, language), loss in losses.items():
            found[kind].setdefault(layer, {})[language] = loss
    return found
