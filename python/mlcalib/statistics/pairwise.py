"""Sums whose bits do not depend on who has added which part of a text."""

from collections.abc import Sequence
from typing import NamedTuple

from mlcalib.statistics import StatisticSet

LEAF_TOKENS = 2048
"""Tokens of a text that are added up one after the other; what they sum to is added in pairs."""


class Node(NamedTuple):
    """What 2^level leaves of a text add up to, of which ``position`` times as many stand before.

    The last leaf of a text, and with it the last node, may have fewer tokens.
    """

    level: int
    position: int
    statistics: StatisticSet


class PairwiseSum:
    """Adds up the leaves of a text as a binary tree that where they stand decides.

    Leaves 2i and 2i + 1 are added to each other, and what comes of that likewise. So every process
    can add up leaves that follow each other, and who puts their nodes together gets the bits that
    one process alone would have. Of n leaves, log2 n nodes are kept at most.
    """

    def __init__(self, nodes: Sequence[Node] = ()) -> None:
        """Begin with nodes, which become the sum's own."""
        self.nodes = list(nodes)

    def push(self, node: Node) -> None:
        """Add what follows; it becomes the sum's own."""
        level, position, statistics = node
        while self.nodes and self.nodes[-1][:2] == (level, position - 1) and position % 2:
            left = self.nodes.pop().statistics
            left.merge(statistics)
            level, position, statistics = level + 1, position // 2, left
        self.nodes.append(Node(level, position, statistics))

    def copy(self) -> "PairwiseSum":
        """Return a copy that goes on by itself."""
        return PairwiseSum(
            [each._replace(statistics=each.statistics.copy()) for each in self.nodes]
        )

    def total(self) -> StatisticSet:
        """Return the sum of at least one node; nothing can be added after that."""
        first, *others = [each.statistics for each in self.nodes]
        for each in others:
            first.merge(each)
        self.nodes = []
        return first


def leaf_sequences(seq_len: int) -> int:
    """Return how many sequences of a text make a leaf."""
    return max(1, LEAF_TOKENS // seq_len)


def nodes_of(leaves: range) -> int:
    """Return to how many nodes leaves that follow each other add up."""
    count, first = 0, leaves.start
    while first < leaves.stop:
        size = 1
        while first % (2 * size) == 0 and first + 2 * size <= leaves.stop:
            size *= 2
        first, count = first + size, count + 1
    return count
