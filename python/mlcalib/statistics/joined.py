"""Tokens of several sequences in one update, for devices that multiply many at once."""

import torch
from torch import Tensor

from mlcalib.statistics import StatisticSet

_TOKENS = 4096  # kTokens of cpp/src/cuda/gram.cpp: what a GPU sums in one product


def tokens_at_once(device: torch.device) -> int | None:
    """Return how many tokens an update on a device should have; None where all are alike."""
    return None if device.type == "cpu" else _TOKENS


class JoinedUpdates:
    """Adds one text to statistics, piece by piece as it comes or in updates of a given size.

    With a size, which tokens an update has depends on the text alone, and not on the pieces in
    which it came. Fewer tokens than that wait, as copies, because a model may write over its
    activations.
    """

    def __init__(self, statistics: StatisticSet, size: int | None) -> None:
        """Begin a text.

        Args:
            statistics: what the text is added to.
            size: tokens of an update; None adds each piece by itself.
        """
        self._statistics, self._size = statistics, size
        self._waiting: list[tuple[Tensor, Tensor | None]] = []  # pieces, and their references

    def update(self, x: Tensor, reference: Tensor | None = None) -> None:
        """Add x [tokens, channels]; see ``StatisticSet.update``.

        Every piece of a text has a reference, or none has one.
        """
        if self._size is None:
            self._statistics.update(x, reference)
            return
        count = sum(len(piece) for piece, _ in self._waiting) + len(x)
        rest = count % self._size
        if rest < count:
            x, reference = self._taken(x, reference)
            for first in range(0, count - rest, self._size):
                now = slice(first, first + self._size)
                self._statistics.update(x[now], None if reference is None else reference[now])
        if kept := min(rest, len(x)):
            like = None if reference is None else reference[-kept:].clone()
            self._waiting.append((x[-kept:].clone(), like))

    def copy(self) -> "JoinedUpdates":
        """Return a copy that goes on by itself, with what waits."""
        copied = JoinedUpdates(self._statistics.copy(), self._size)
        copied._waiting = list(self._waiting)
        return copied

    def finish(self) -> StatisticSet:
        """Add what waits, and return the statistics of the whole text."""
        if self._waiting:
            self._statistics.update(*self._taken(*self._waiting.pop()))
        return self._statistics

    def _taken(self, x: Tensor, reference: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return what waits, and behind it a last piece; nothing waits any more."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return x, reference
        likes = [like for _, like in waiting if like is not None]
        joined = torch.cat([*(piece for piece, _ in waiting), x])
        return joined, None if reference is None else torch.cat([*likes, reference])
