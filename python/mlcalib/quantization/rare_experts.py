"""Statistics for experts of which the calibration text shows too little."""

from collections.abc import Iterator, Mapping

from torch import nn

from mlcalib.models import Adapter
from mlcalib.models.experts import Expert
from mlcalib.quantization.propagation import Mixture
from mlcalib.statistics import StatisticSet

PSEUDO_TOKENS = 1 / 16
"""Tokens that are added to each expert's own, per channel; docs/reference/models.md."""

LEVELLED = 0.5
"""How much of what is added to the Gram of an expert's input is alike in all channels."""


def shrink_experts(
    adapter: Adapter, block: nn.Module, mixed: Mapping[str, StatisticSet], mixture: Mixture
) -> dict[str, float]:
    """Shrink what is known of each expert's inputs towards what is known of all experts together.

    A Gram of n tokens says little of an input with more than n channels. With Ḡ the mean Gram of a
    token over all experts of the block, n₀ · T is added to the Gram of every expert: n₀ is
    ``PSEUDO_TOKENS`` for each channel, and T lies between Ḡ and the mean of its diagonal in every
    channel (``LEVELLED``). So an expert with many tokens is hardly moved, and one without any gets
    the statistics of all, n₀ tokens of them. What the last linear of an expert reads are hidden
    units of its own: there T is the mean of the diagonal alone, and an expert without tokens is
    left without, and rounded.

    Args:
        adapter: the model's family.
        block: with experts, or nothing is done.
        mixed: input → the mixture of its statistics, which is changed.
        mixture: its weights: n₀ tokens weigh what those of the mixture do on average.

    Returns:
        Input → the share of its tokens that were added.
    """
    shares = {}
    for inputs, last in _alike(adapter, block, mixed):
        layer = inputs[next(iter(inputs))].empty_like()
        for own in inputs.values():
            layer.merge(own)
        if not layer.tokens:
            continue
        weight = sum(w * p.tokens for p, w in mixture.items()) / sum(p.tokens for p in mixture)
        added = PSEUDO_TOKENS * layer.channels * weight
        layer.level_gram(1.0 if last else LEVELLED)
        for name, own in inputs.items():
            if own.tokens or not last:
                shares[name] = added / (own.tokens + added)
                own.merge(layer, added / layer.tokens, ("gram",) if last else None)
    return shares


def _alike(
    adapter: Adapter, block: nn.Module, mixed: Mapping[str, StatisticSet]
) -> Iterator[tuple[dict[str, StatisticSet], bool]]:
    """Yield the inputs of experts of one list that are of one kind, and whether it is the last."""
    found: dict[tuple[str, bool], dict[str, StatisticSet]] = {}
    for name, members in adapter.linears_of(block).items():
        expert = adapter.expert_of(members[0])
        module = None if expert is None else block.get_submodule(expert)
        if expert is not None and isinstance(module, Expert) and name in mixed:
            last = members[0].rpartition(".")[2] in module.names[-1]
            found.setdefault((expert.rpartition(".")[0], last), {})[name] = mixed[name]
    for (_, last), inputs in found.items():
        yield inputs, last
