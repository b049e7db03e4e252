"""Statistics of all ranks added up, to the same bits as those of one process."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mlcalib._core import Statistic
from mlcalib.common.ranks import Ranks, balanced
from mlcalib.statistics import StatisticSet
from mlcalib.statistics.pairwise import Node, PairwiseSum

Key = TypeVar("Key", bound=Hashable)


def sum_over_ranks(
    found: Mapping[Key, PairwiseSum],
    like: Mapping[Key, StatisticSet],
    ranks: Ranks,
    device: torch.device,
) -> dict[Key, StatisticSet]:
    """Return the sums over all ranks, everywhere the same bits; collective.

    Each sum is put together by one rank, which the others send their nodes, and who sends it back.
    Grams are sent as they are kept, one triangle of each.

    Args:
        found: what this rank has added up, everywhere with the same keys in the same order. Those
            of rank 0 come first in the text, those of rank 1 follow, ….
        like: an empty set of each kind.
        ranks: the processes of the run.
        device: where tokens were added.
    """
    if ranks.alone:
        return {key: each.total() for key, each in found.items()}
    keys = list(found)
    told: list[list[list[tuple[int, int, bool]]]] = ranks.gathered(
        [
            [(node.level, node.position, node.statistics.tokens > 0) for node in each.nodes]
            for each in found.values()
        ]
    )
    owners = balanced([like[key].channels ** 2 for key in keys], ranks.size)
    sending: list[Callable[[], None]] = []
    for index, key in enumerate(keys):
        if owners[index] != ranks.rank:
            for node in found[key].nodes:
                if node.statistics.tokens > 0:
                    sending += send_set(owners[index], node.statistics, ranks, device)
    sums = {
        key: _together(found[key], [each[index] for each in told], like[key], ranks, device)
        if owners[index] == ranks.rank
        else like[key].empty_like()
        for index, key in enumerate(keys)
    }
    for wait in sending:
        wait()
    for owner in range(ranks.size):
        own = [sums[key] for index, key in enumerate(keys) if owners[index] == owner]
        tell_all(owner, own, ranks, device)
    return sums


def tell_all(owner: int, sets: Sequence[StatisticSet], ranks: Ranks, device: torch.device) -> None:
    """Give all ranks the statistics of one of them; collective.

    Args:
        owner: the rank that has them.
        sets: its own; elsewhere empty ones of the same kinds and channels, which are filled.
        ranks: the processes of the run.
        device: where tokens were added.
    """
    kept = _kept(sets, device)
    ranks.broadcast(owner, [tensor for _, tensors in kept for tensor in tensors.values()])
    _load(kept)


def send_set(
    to: int, statistics: StatisticSet, ranks: Ranks, device: torch.device
) -> list[Callable[[], None]]:
    """Begin to send a set to a rank, which calls ``receive_set``; see ``Ranks.send``."""
    return ranks.send(to, _tensors(statistics, device))


def receive_set(sender: int, statistics: StatisticSet, ranks: Ranks, device: torch.device) -> None:
    """Fill an empty set with one of the same kinds and channels that a rank sends."""
    kept = _kept([statistics], device)
    ranks.receive(sender, [tensor for _, tensors in kept for tensor in tensors.values()])
    _load(kept)


def _together(
    own: PairwiseSum,
    told: Sequence[Sequence[tuple[int, int, bool]]],
    like: StatisticSet,
    ranks: Ranks,
    device: torch.device,
) -> StatisticSet:
    """Return what the nodes of all ranks add up to, in the order of the text."""
    total, mine = PairwiseSum(), iter(own.nodes)
    for rank, nodes in enumerate(told):
        for level, position, some in nodes:
            if rank == ranks.rank:
                total.push(next(mine))
                continue
            statistics = like.empty_like()
            if some:
                receive_set(rank, statistics, ranks, device)
            total.push(Node(level, position, statistics))
    return total.total() if total.nodes else like.empty_like()


def _tensors(statistics: StatisticSet, device: torch.device) -> list[Tensor]:
    return [tensor for _, found in _kept([statistics], device) for tensor in found.values()]


def _kept(
    sets: Sequence[StatisticSet], device: torch.device
) -> list[tuple[Statistic, dict[str, Tensor]]]:
    return [(each, each.packed(device)) for found in sets for each in found.each()]


def _load(kept: Sequence[tuple[Statistic, dict[str, Tensor]]]) -> None:
    for statistic, tensors in kept:
        statistic.load_packed(tensors)
