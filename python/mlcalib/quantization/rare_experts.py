"""Statistics for experts of which the calibration text shows too little."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import nn

from mlcalib.common.ranks import Ranks
from mlcalib.models import Adapter
from mlcalib.models.experts import Expert
from mlcalib.quantization.prefixes import Mixture
from mlcalib.statistics import StatisticSet
from mlcalib.statistics.summed import receive_set, send_set

PSEUDO_TOKENS = 1 / 16
"""Tokens that are added to each expert's own, per channel; docs/reference/models.md."""

LEVELLED = 0.5
"""How much of what is added to the Gram of an expert's input is alike in all channels."""


def shrink_experts(
    adapter: Adapter,
    block: nn.Module,
    mixed: Mapping[str, StatisticSet],
    mixture: Mixture,
    owners: Mapping[str, int] = MappingProxyType({}),
    ranks: Ranks | None = None,
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
        owners: input of an expert → the rank that alone has its Gram, and shrinks it; empty where
            all have them, and do the same.
        ranks: the processes of the run; with ``owners`` this is collective.

    Returns:
        Input → the share of its tokens that were added.
    """
    ranks = Ranks() if ranks is None else ranks
    device = next(block.parameters()).device
    shares = {}
    for inputs, last in _alike(adapter, block, mixed):
        tokens = sum(own.tokens for own in inputs.values())
        if not tokens:
            continue
        here = {
            name: own for name, own in inputs.items() if owners.get(name, ranks.rank) == ranks.rank
        }
        layer = _added_up(here, sorted({owners[name] for name in inputs if owners}), ranks, device)
        weight = sum(w * p.tokens for p, w in mixture.items()) / sum(p.tokens for p in mixture)
        added = PSEUDO_TOKENS * next(iter(inputs.values())).channels * weight
        if layer is not None:
            layer.level_gram(1.0 if last else LEVELLED)
        for name, own in inputs.items():
            if own.tokens or not last:
                shares[name] = added / (own.tokens + added)
                if layer is not None and name in here:
                    own.merge(layer, added / tokens, ("gram",) if last else None)
    return shares


def _added_up(
    here: Mapping[str, StatisticSet], owners: Sequence[int], ranks: Ranks, device: torch.device
) -> StatisticSet | None:
    """Return the sum of the inputs of all ranks; None where this rank has none.

    Each rank that has some adds them to what those before it have added up, so that the order of
    the sum is that of the experts whoever has them; the last sends it to the others.

    Args:
        here: the inputs of this rank.
        owners: the ranks that have some, which are as the experts ordered; empty where this rank
            has all.
        ranks: the processes of the run.
        device: where tokens were added.
    """
    if not here:
        return None
    layer = next(iter(here.values())).empty_like()
    at = owners.index(ranks.rank) if owners else 0
    if at > 0:
        receive_set(owners[at - 1], layer, ranks, device)
    for own in here.values():
        layer.merge(own)
    *earlier, last = owners or [ranks.rank]
    following = earlier if ranks.rank == last else [owners[at + 1]]
    for wait in [wait for rank in following for wait in send_set(rank, layer, ranks, device)]:
        wait()
    if ranks.rank != last:
        layer = layer.empty_like()
        receive_set(last, layer, ranks, device)
    return layer


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
