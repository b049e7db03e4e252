"""Static ranges of activations: what a checkpoint stores of the input of each linear."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mlcalib.models import Adapter
from mlcalib.quantization.prefixes import BlockStatistics, Prefix
from mlcalib.quantization.solve import longest
from mlcalib.statistics import StatisticSet, histogram_edges


@dataclass(frozen=True)
class Bound:
    """The range of one tensor of activations.

    Attributes:
        largest: the largest magnitude that is held; 0 where no token was seen.
        clipped: language → the share of its calibration values that are larger, at most: values
            are known up to a bin of the histogram.
    """

    largest: float
    clipped: dict[str, float] = field(default_factory=dict)


def bound_of(
    by_language: Mapping[str, StatisticSet], clip: float, divided: Tensor | None = None
) -> float:
    """Return the magnitude above which at most a share of each language's values lies.

    Args:
        by_language: language → statistics with a ``range``, and a ``histogram`` if clip is not 0.
        clip: the share; 0 holds every value.
        divided: what channels are divided by before they are rounded, float32 [channels].
    """
    found = [0.0]
    for each in by_language.values():
        if not each.tokens:
            continue
        largest = _largest(each, divided)
        if not clip:
            found.append(float(largest.max()))
            continue
        edges, counts = _bins(each, largest, divided)
        order = edges.argsort(descending=True)
        above = counts[order].cumsum(0)  # with the bin itself
        fits = above <= clip * counts.sum()
        found.append(float(edges[order][int(fits.sum())]))
    return max(found)


def share_clipped(statistics: StatisticSet, bound: float, divided: Tensor | None = None) -> float:
    """Return the share of values whose magnitude is above a bound, at most; see ``bound_of``."""
    largest = _largest(statistics, divided)
    if float(largest.max()) <= bound:
        return 0.0
    edges, counts = _bins(statistics, largest, divided)
    return float(counts[edges > bound].sum() / counts.sum())


def _largest(statistics: StatisticSet, divided: Tensor | None) -> Tensor:
    """Return the largest magnitude of each channel."""
    state = statistics.view("range")
    largest = torch.maximum(state["high"].abs(), state["low"].abs())
    return largest if divided is None else largest / divided.to(largest.device)


def _bins(
    statistics: StatisticSet, largest: Tensor, divided: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the upper edge of each bin of each channel, and how many values it has."""
    state = statistics.view("histogram")
    unit = state["unit"] if divided is None else state["unit"] / divided.to(largest.device)
    upper = histogram_edges()[1:].to(largest.device)
    edges = torch.minimum(upper * unit[:, None], largest[:, None])
    return edges.flatten(), state["counts"].flatten()


def input_bounds(
    adapter: Adapter,
    block_name: str,
    block: nn.Module,
    statistics: BlockStatistics,
    mixture: Collection[Prefix],
    divided: Mapping[str, Tensor],
    clip: float,
) -> dict[str, Bound]:
    """Return linear (name in the model) → the range of its input, of the longest texts.

    Shares are of all languages that there is text of, those that decide no range too.

    Experts of a block have one for each of their places, as readers of such checkpoints take it.

    Args:
        adapter: the model's family.
        block_name: name of the block in the model.
        block: the block.
        statistics: of its inputs, before their channels are scaled.
        mixture: the texts that decide the ranges.
        divided: input → what its channels are divided by, where they are scaled.
        clip: see ``bound_of``.
    """
    linears = adapter.linears_of(block)
    languages = {each.language for each in mixture}
    largest: dict[str, float] = {}
    texts: dict[str, dict[str, StatisticSet]] = {}
    for name, by_prefix in statistics.items():
        place = _place(adapter, linears[name][0])
        deciding = longest({each: by_prefix[each] for each in by_prefix if each in mixture})
        own = bound_of(deciding, clip, divided.get(name))
        others = {each: by_prefix[each] for each in by_prefix if each.language not in languages}
        texts[name] = deciding | longest(others)
        largest[place] = max(largest.get(place, 0.0), own)
    found: dict[str, Bound] = {}
    for name, by_language in texts.items():
        bound = largest[_place(adapter, linears[name][0])]
        clipped = {
            language: share_clipped(each, bound, divided.get(name))
            for language, each in by_language.items()
            if each.tokens
        }
        found |= {f"{block_name}.{member}": Bound(bound, clipped) for member in linears[name]}
    return found


def _place(adapter: Adapter, member: str) -> str:
    """Return the name of a linear; of an expert's without the expert's number."""
    expert = adapter.expert_of(member)
    if expert is None:
        return member
    return expert.rpartition(".")[0] + member.removeprefix(expert)
