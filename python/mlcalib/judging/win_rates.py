"""How often the second model's answers are better than the first's, per language."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev
from typing import Literal

Verdict = Literal["first", "second", "tie"]
"""Whose answer is better: the first model's, the second's, or neither's."""

ALL = "all"
"""All languages together, where win rates are per language."""

SCORES: dict[str, float] = {"first": 0.0, "tie": 0.5, "second": 1.0}

DEFINITION = (
    "An item's score is the mean of its verdicts: 1 where the second model's answer is better, ½ "
    "for a tie, 0 where the first's is. Win rate: the mean score of the items; W-T-L: items with a "
    "score above, at and below ½. Intervals: Wilson score, 95 %, over items; ties and means of "
    "several verdicts make scores vary less than wins and losses would, which makes it wide."
)


@dataclass(frozen=True)
class WinRate:
    """The second model against the first, in one language.

    Attributes:
        rate: mean score of the items, in [0, 1]; above ½ the second model is better.
        low: lower end of its 95 % interval.
        high: upper end.
        wins: items with a score above ½.
        ties: items with a score of ½.
        losses: items with a score below ½.
        verdicts: verdicts behind them.
        stderr: standard error of the rate, over items; None of a single one.
    """

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    verdicts: int
    stderr: float | None

    @property
    def n(self) -> int:
        """Number of items."""
        return self.wins + self.ties + self.losses

    @property
    def text(self) -> str:
        """The rate and its interval in per cent, for tables."""
        return f"{100 * self.rate:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(rate: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of the mean of ``n`` values in [0, 1].

    It is that of a proportion (Wilson 1927). The variance of values in [0, 1] is at most that of
    zeros and ones with the same mean, so for others it is wider than it need be.

    Raises:
        ValueError: no values.
    """
    if n < 1:
        raise ValueError("An interval of a mean needs one value or more.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def win_rate(items: Iterable[Sequence[Verdict]]) -> WinRate:
    """Return the win rate of the second model.

    Args:
        items: the verdicts on each item, by several raters or in both orders.

    Raises:
        ValueError: no item has a verdict.
    """
    judged = [verdicts for verdicts in items if verdicts]
    scores = [fmean(SCORES[verdict] for verdict in verdicts) for verdicts in judged]
    if not scores:
        raise ValueError("There is no verdict, and so no win rate.")
    rate = fmean(scores)
    low, high = wilson(rate, len(scores))
    wins, losses = sum(score > 0.5 for score in scores), sum(score < 0.5 for score in scores)
    ties = len(scores) - wins - losses
    stderr = stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None
    return WinRate(rate, low, high, wins, ties, losses, sum(map(len, judged)), stderr)
