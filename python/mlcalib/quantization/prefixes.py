"""Beginnings of calibration texts, of which statistics are kept and mixed."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mlcalib.calibration_sets import CalibrationSet
from mlcalib.statistics import StatisticSet


class Prefix(NamedTuple):
    """The first so many tokens of a language's calibration text."""

    language: str
    tokens: int


Mixture = Mapping[Prefix, float]
"""What a calibration setting is made of: prefixes of text, and what their statistics weigh."""

BlockStatistics = dict[str, dict[Prefix, StatisticSet]]
"""Input of a block → prefix → its statistics."""


def half_of(prefix: Prefix) -> Prefix:
    """Return the first half of a text, at least a token."""
    return Prefix(prefix.language, max(1, prefix.tokens // 2))


def longest_texts(prefixes: Iterable[Prefix]) -> dict[str, Prefix]:
    """Return language → the longest of its prefixes."""
    ordered = sorted(prefixes, key=lambda prefix: prefix.tokens)
    return {prefix.language: prefix for prefix in ordered}


def mixture_of(calibration: CalibrationSet) -> Mixture:
    """Return what a calibration set mixes: all its text."""
    return {
        Prefix(language, tokens): calibration.weights.get(language, 1.0)
        for language, tokens in calibration.tokens.items()
    }


def with_halves(
    by_prefix: dict[Prefix, StatisticSet], halves: Mapping[Prefix, Prefix]
) -> dict[Prefix, StatisticSet]:
    """Put the statistics that corrections are made of beside those of the whole prefix."""
    for prefix, half in halves.items():
        if prefix in by_prefix:
            found = by_prefix[half]
            by_prefix[prefix].half = found.only(
                kind for kind in ("gram", "deviation") if kind in found.kinds
            )
    return {prefix: each for prefix, each in by_prefix.items() if not halves or prefix in halves}
