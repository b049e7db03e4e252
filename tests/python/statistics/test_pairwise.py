"""Sums in pairs: the same bits whoever adds up which leaves, in one process and over ranks."""

import datetime
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from mlcalib.common.ranks import Ranks
from mlcalib.quantization.dealing import dealt
from mlcalib.statistics import StatisticSet, statistic_bytes
from mlcalib.statistics.pairwise import Node, PairwiseSum, nodes_of
from mlcalib.statistics.summed import sum_over_ranks

KINDS = ("gram", "moments", "range", "histogram")
CHANNELS = 40


def leaf(index):
    """Statistics of a few tokens; every fifth leaf has none, as an expert's may."""
    statistics = StatisticSet(KINDS, CHANNELS)
    if index % 5 != 4:
        generator = torch.Generator().manual_seed(index)
        statistics.update(torch.randn(7, CHANNELS, generator=generator) * 10 ** (index % 3))
    return statistics


def summed(leaves):
    found = PairwiseSum()
    for index in leaves:
        found.push(Node(0, index, leaf(index)))
    return found


def same(a, b):
    return a.tokens == b.tokens and all(
        value.equal(b.state(kind)[name]) for kind in KINDS for name, value in a.state(kind).items()
    )


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 13])
def test_leaves_can_be_cut_anywhere(count):
    alone = summed(range(count)).total()
    for first in range(count + 1):
        for second in range(first, count + 1):
            together = PairwiseSum()
            for part in (range(first), range(first, second), range(second, count)):
                for node in summed(part).nodes:
                    together.push(node)
            assert same(together.total(), alone)


def test_nodes_are_counted_beforehand():
    for first in range(9):
        for last in range(first, 24):
            leaves = range(first, last)
            found = PairwiseSum()
            for index in leaves:
                found.push(Node(0, index, StatisticSet((), 1)))
            assert nodes_of(leaves) == len(found.nodes)


def test_few_nodes_are_kept_and_a_copy_goes_on_by_itself():
    sums = summed(range(63))
    assert len(sums.nodes) == 6
    copy = sums.copy()
    copy.push(Node(0, 63, leaf(63)))
    assert len(copy.nodes) == 1
    assert same(sums.total(), summed(range(63)).total())
    assert same(copy.total(), summed(range(64)).total())


def test_sums_one_after_the_other_would_not_be_the_same_bits():
    other = StatisticSet(KINDS, CHANNELS)
    for index in range(13):
        other.merge(leaf(index))
    assert not same(other, summed(range(13)).total())


def over_ranks(size, work):
    """Return what each of several ranks, here threads, makes of ``work(ranks)``."""
    store = dist.HashStore()
    store.set_timeout(datetime.timedelta(seconds=60))
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: work(Ranks(rank, size, store)), range(size)))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_get_the_bits_of_one_process(size):
    counts = {"one": 13, "two": 2, "none": 0}

    def work(ranks):
        of_rank = dealt(counts, 2048, ranks.rank, size)
        found = {key: summed(leaves) for key, leaves in of_rank.items()}
        like = {key: StatisticSet(KINDS, CHANNELS) for key in counts}
        return sum_over_ranks(found, like, ranks, torch.device("cpu")), ranks.traffic

    results = over_ranks(size, work)
    for key in ("one", "two"):
        expected = summed(range(counts[key])).total()
        assert all(same(sums[key], expected) for sums, _ in results)
    assert all(sums["none"].tokens == 0 for sums, _ in results)


def test_grams_are_sent_as_triangles():
    channels = 960

    def work(ranks):
        own = StatisticSet(("gram",), channels)
        own.update(torch.randn(3, channels))
        like = StatisticSet(("gram",), channels)
        found = {"x": PairwiseSum([Node(0, ranks.rank, own)])}
        sum_over_ranks(found, {"x": like}, ranks, torch.device("cpu"))
        return ranks.traffic

    triangle = statistic_bytes("gram", channels, torch.device("cpu"))
    for sent in over_ranks(2, work):
        assert 2 * triangle <= sent < 2 * triangle + 2000
        assert sent < 2 * 4 * channels**2 * 0.6


def test_every_sequence_has_one_rank_and_shares_are_even():
    counts = {f"l{n}": 8 + 4 * (n % 3) for n in range(10)}
    for size in (1, 2, 3, 8):
        shares = [dealt(counts, 512, rank, size) for rank in range(size)]
        for code, count in counts.items():
            assert [index for share in shares for index in share[code]] == list(range(count))
        loads = [sum(map(len, share.values())) for share in shares]
        assert max(loads) - min(loads) <= 4  # sequences of a leaf


def test_all_hear_what_each_says():
    def work(ranks):
        tensors = [torch.full((3,), float(ranks.rank)), torch.full((2**19,), ranks.rank)]
        ranks.broadcast(2, tensors)
        return ranks.gathered(ranks.rank * "x"), ranks.of_first(ranks.rank), tensors

    for said, first, tensors in over_ranks(3, work):
        assert (said, first) == (["", "x", "xx"], 0)
        assert all((tensor == 2).all() for tensor in tensors)


def test_what_differs_is_named_on_every_rank():
    def work(ranks):
        with pytest.raises(
            ValueError, match="rank 0 and rank 1 do not do the same: torch is 1 and"
        ):
            ranks.check_same({"same": 3, "torch": 1 if ranks.rank == 0 else 2})
        return True

    assert over_ranks(2, work) == [True, True]
