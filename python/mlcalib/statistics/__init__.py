"""Statistics of activations, added up per language and mixed."""

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

from torch import Tensor

from mlcalib import _core

__all__ = ["StatisticSet", "mix"]

Key = TypeVar("Key", bound=Hashable)


class StatisticSet:
    """The statistics of one input: several kinds, fed with the same activations."""

    def __init__(self, names: Iterable[str], channels: int) -> None:
        """Start empty.

        Args:
            names: kinds of statistic, e.g. ``gram``.
            channels: channels of the input.

        Raises:
            ValueError: an unknown kind.
        """
        self._channels = channels
        self._statistics = {name: _core.make_statistic(name, channels) for name in names}

    @property
    def tokens(self) -> float:
        """Tokens seen."""
        return max((statistic.tokens for statistic in self._statistics.values()), default=0.0)

    def update(self, x: Tensor) -> None:
        """Add the tokens of x [..., channels].

        Raises:
            ValueError: NaN or Inf; another number of channels.
        """
        _core.update(list(self._statistics.values()), x)

    def merge(self, other: "StatisticSet", weight: float = 1.0) -> None:
        """Add ``weight`` times another set of the same kinds."""
        for name, statistic in self._statistics.items():
            statistic.merge(other._statistics[name], weight)

    def empty_like(self) -> "StatisticSet":
        """Return an empty set of the same kinds."""
        return StatisticSet(self._statistics, self._channels)

    def copy(self) -> "StatisticSet":
        """Return another set with the same tokens."""
        copied = self.empty_like()
        copied.merge(self)
        return copied

    def rescale(self, factors: Tensor) -> None:
        """Make them those of activations multiplied by ``factors`` [channels], positive."""
        for statistic in self._statistics.values():
            statistic.rescale(factors)

    def state(self, name: str) -> dict[str, Tensor]:
        """Return copies of the tensors of one kind; see ``_core.Statistic``."""
        return self._statistics[name].state()

    def view(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one kind; good until they change, and not to be written to."""
        return self._statistics[name].view()

    def gram(self) -> Tensor:
        """Return the Gram, float32 [channels, channels]; not a copy: not to be written to."""
        return self._statistics["gram"].view()["gram"]


def mix(statistics: Mapping[Key, StatisticSet], weights: Mapping[Key, float]) -> StatisticSet:
    """Return Σ weight · statistics over the keys of ``weights``: any mixture, no new pass."""
    mixed = next(iter(statistics.values())).empty_like()
    for key, weight in weights.items():
        mixed.merge(statistics[key], weight)
    return mixed
