"""Statistics of activations, which are added up per language and mixed."""

import functools
from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from mlcalib import _core

__all__ = [
    "StatisticSet",
    "compares",
    "grows_with_square",
    "histogram_edges",
    "mix",
    "quantile",
    "statistic_bytes",
]

_LOWEST, _OCTAVES, _BINS_OF_OCTAVE = -16, 32, 4  # of cpp/src/histogram.hpp
_GRAMS = ("gram", "saliency_gram", "output_gram")  # of cpp/src/statistics/gram.cpp
_TILE = 96  # of cpp/src/cpu/kernels/kernels.hpp
_BLOCK_ROWS = 1024  # of cpp/src/cuda/kernels/kernels.hpp

Key = TypeVar("Key", bound=Hashable)


class StatisticSet:
    """Statistics of several kinds of one input of linears, all of the same activations.

    Attributes:
        half: some of the kinds, of the first half of the text by itself, where they are kept. What
            is done to the set is done to it, too.
    """

    half: "StatisticSet | None" = None

    def __init__(self, names: Iterable[str], channels: int) -> None:
        """Make an empty set.

        Args:
            names: the kinds of statistic, e.g. ``gram``.
            channels: the number of channels of the input.

        Raises:
            ValueError: a kind is unknown.
        """
        self._channels = channels
        self._statistics = {name: _core.make_statistic(name, channels) for name in names}

    @property
    def channels(self) -> int:
        """The number of channels of the input."""
        return self._channels

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of statistic."""
        return tuple(self._statistics)

    @property
    def tokens(self) -> float:
        """The number of tokens that were added, counted with their weights."""
        return max((statistic.tokens for statistic in self._statistics.values()), default=0.0)

    def update(self, x: Tensor, reference: Tensor | None = None) -> None:
        """Add the tokens of some activations.

        Args:
            x: the activations [..., channels].
            reference: the activations of the float model for these tokens, in the shape of ``x``.
                Kinds that compare the two need it.

        Raises:
            ValueError: ``x`` has another number of channels, or the reference is missing; on the
                CPU also if there is NaN or Inf, which on a GPU ``check_finite`` finds.
        """
        _core.update(list(self._statistics.values()), x, reference)

    def check_finite(self) -> None:
        """Wait for the device, if tokens were added there, and look for NaN and Inf in them.

        Raises:
            ValueError: there were some; the statistics can no longer be used.
        """
        for statistic in self._statistics.values():
            statistic.check_finite()

    def each(self) -> list[_core.Statistic]:
        """Return the statistics, in the order of their kinds."""
        return list(self._statistics.values())

    def merge(
        self, other: "StatisticSet", weight: float = 1.0, kinds: Iterable[str] | None = None
    ) -> None:
        """Add ``weight`` times another set: all kinds, which it must have too, or only some."""
        for name in self._statistics if kinds is None else kinds:
            self._statistics[name].merge(other._statistics[name], weight)
        if kinds is None and self.half is not None and other.half is not None:
            self.half.merge(other.half, weight)

    def empty_like(self) -> "StatisticSet":
        """Return an empty set of the same kinds."""
        made = StatisticSet(self._statistics, self._channels)
        made.half = None if self.half is None else self.half.empty_like()
        return made

    def copy(self) -> "StatisticSet":
        """Return a copy, which can be changed by itself."""
        copied = self.empty_like()
        copied.merge(self)
        return copied

    def only(self, kinds: Iterable[str]) -> "StatisticSet":
        """Return the set of some of the kinds, which are the same statistics and no copies."""
        part = StatisticSet((), self._channels)
        part._statistics = {name: self._statistics[name] for name in kinds}
        return part

    def drop(self, names: Iterable[str]) -> None:
        """Forget the statistics of some kinds, if it has them."""
        names = list(names)
        for name in names:
            self._statistics.pop(name, None)
        if self.half is not None:
            self.half.drop(names)

    def rescale(self, factors: Tensor) -> None:
        """Turn the statistics into those of activations times ``factors`` [channels], positive."""
        for statistic in self._statistics.values():
            statistic.rescale(factors)
        if self.half is not None:
            self.half.rescale(factors)

    def state(self, name: str) -> dict[str, Tensor]:
        """Return copies of the tensors of one kind; see ``_core.Statistic``."""
        return self._statistics[name].state()

    def view(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one kind, which are valid until the set changes.

        Do not write to them. They are a copy only if the statistic is kept in another layout, as a
        Gram is.
        """
        return self._statistics[name].view()

    def level_gram(self, share: float) -> None:
        """Move the Gram towards the mean of its diagonal in every channel, and zeros beside it.

        Args:
            share: how far, from 0 to 1.
        """
        statistic = self._statistics["gram"]
        state = statistic.state()
        gram = state["gram"]
        level = gram.diagonal().mean()
        gram.mul_(1 - share).diagonal().add_(share * level)
        statistic.load(state)

    def gram(self) -> Tensor:
        """Return the Gram, float32 [channels, channels]; every call unpacks it again."""
        return self._statistics["gram"].view()["gram"]


def losses(change: Tensor, sets: Iterable[StatisticSet]) -> list[float]:
    """Return tr(D G Dᵀ) for the Gram G of each set, without unpacking it.

    Of a set that has no Gram but ``moments``, only the diagonal of G is known; the channels are
    then taken to have nothing to do with each other: Σ G_cc ‖D_c‖² over the channels c.

    Args:
        change: D [out, channels], float32.
        sets: statistics with a Gram or with moments.

    Raises:
        ValueError: a Gram has another number of channels than the change.
    """
    sets = list(sets)
    whole = [each._statistics["gram"] for each in sets if "gram" in each.kinds]
    exact = iter(_core.losses(change, whole) if whole else ())
    if len(whole) == len(sets):
        return list(exact)
    squares = change.double().square().sum(0)
    return [
        next(exact) if "gram" in each.kinds else float(squares @ each.view("moments")["square"])
        for each in sets
    ]


def compares(kinds: Iterable[str]) -> bool:
    """Return whether any of the kinds compares activations with those of the float model."""
    return any(_core.make_statistic(kind, 1).compares for kind in kinds)


def mix(statistics: Mapping[Key, StatisticSet], weights: Mapping[Key, float]) -> StatisticSet:
    """Return Σ weight · statistics over the keys of ``weights``: a mixture, without a new pass."""
    mixed = next(iter(statistics.values())).empty_like()
    for key, weight in weights.items():
        mixed.merge(statistics[key], weight)
    return mixed


def histogram_edges() -> Tensor:
    """Return the edges of the bins of ``histogram``, float32 [129], from 0 to infinity."""
    steps = torch.arange(_OCTAVES * _BINS_OF_OCTAVE)
    mantissas = 1 + (steps % _BINS_OF_OCTAVE) / _BINS_OF_OCTAVE
    edges = torch.ldexp(mantissas, _LOWEST + steps // _BINS_OF_OCTAVE)
    return torch.cat([torch.zeros(1), edges[1:], torch.tensor([torch.inf])])


def quantile(histogram: Mapping[str, Tensor], share: float) -> Tensor:
    """Return the magnitude below which a share of the activations of each channel lies.

    Args:
        histogram: the state of a statistic ``histogram``.
        share: the share, from 0 to 1.

    Returns:
        float32 [channels]: the upper edge of the bin that holds the quantile, at most 25 % above
        it; infinity in the last bin.

    Raises:
        ValueError: the histogram has no tokens, or the share is not from 0 to 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}, expected a share from 0 to 1.")
    below = histogram["counts"].cumsum(1)
    tokens = below[:, -1:]
    if not (tokens > 0).all():
        raise ValueError("the histogram has no tokens; update it first.")
    held = below * (1 + 1e-12) >= (share * tokens).clamp(min=tokens.new_tensor(1e-12))
    edges = histogram_edges().to(held.device)
    return edges[1 + held.int().argmax(1)] * histogram["unit"]


def statistic_bytes(kind: str, channels: int, device: torch.device) -> int:
    """Return the bytes that a statistic of an input takes on a device; of a Gram one triangle."""
    square, line, constant = _size_of(kind)
    pairs = _pairs_of_gram(channels, device) if kind in _GRAMS else channels**2
    return square * pairs + line * channels + constant


def grows_with_square(kind: str) -> bool:
    """Return whether a statistic has a number for each pair of channels, as a Gram has."""
    return _size_of(kind)[0] > 0


def _pairs_of_gram(channels: int, device: torch.device) -> int:
    """Return how many sums the core keeps: those of tiles on the CPU, of block rows elsewhere."""
    if device.type == "cpu":
        tiles = -(-channels // _TILE)
        return tiles * (tiles + 1) // 2 * _TILE**2
    blocks, rest = divmod(channels, _BLOCK_ROWS)
    whole = blocks * _BLOCK_ROWS
    return whole * (2 * channels - whole + _BLOCK_ROWS) // 2 + rest**2


@functools.cache
def _size_of(kind: str) -> tuple[int, int, int]:
    """Return the bytes of a statistic by the powers of its channels: square, line, constant."""
    one, two, three = (
        sum(each.nbytes for each in _core.make_statistic(kind, channels).state().values())
        for channels in (1, 2, 3)
    )
    square = (three - 2 * two + one) // 2
    line = two - one - 3 * square
    return square, line, one - square - line
