"""How far weights are moved to make up for errors of the inputs that they meet."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from mlcalib import _core
from mlcalib._core import CorrectionOptions
from mlcalib.statistics import StatisticSet

_DIGITS = 3  # of a strength: its last bits depend on the order of sums


def corrected(
    weights: Sequence[Tensor],
    statistics: StatisticSet,
    gram: Tensor,
    strength: float | Literal["auto"],
) -> tuple[list[Tensor], float]:
    """Return what weights of one input are rounded from (``_core.corrected``), and the strength.

    Args:
        weights: [out, in] each.
        statistics: with ``gram`` and ``deviation``, and for ``auto`` with ``half``.
        gram: theirs, which is unpacked already.
        strength: from 0 to 1, or ``auto`` for ``held_out_strength``.
    """
    if strength == "auto":
        strength = held_out_strength(weights, statistics)
    options = CorrectionOptions(strength)
    return _core.corrected(list(weights), gram, _deviation(statistics), options), strength


def held_out_strength(weights: Sequence[Tensor], statistics: StatisticSet) -> float:
    """Return the strength of a correction that is best for text that it was not made from.

    A correction D = W E (G + λI)⁻¹ is made from each half of the text. On the other half, with G'
    and E', the squared error of the outputs changes by s² tr(D G' Dᵀ) - 2 s tr(D (W E')ᵀ), which is
    least for s = tr(D (W E')ᵀ) / tr(D G' Dᵀ), over both halves and all weights. If that is S / (S +
    N) of a signal S and a noise N, with the whole text the noise is half of it, and s is 2 s / (1 +
    s).

    Args:
        weights: [out, in] each.
        statistics: with ``gram`` and ``deviation``; ``half`` has both of the first half.

    Raises:
        ValueError: there is no half.
    """
    if statistics.half is None:
        raise ValueError(
            "correction is 'auto', but the statistics have no half of the text to try it on; give "
            "a number from 0 to 1."
        )
    first = statistics.half.gram(), _deviation(statistics.half)
    second = statistics.gram() - first[0], _deviation(statistics) - first[1]
    full = CorrectionOptions(1.0)
    gained = spent = 0.0
    for (gram, deviation), (other, missed) in ((first, second), (second, first)):
        if not gram.diagonal().any():
            return 0.0  # a text of one token has one half
        targets = _core.corrected(list(weights), gram, deviation, full)
        for weight, target in zip(weights, targets, strict=True):
            change = target - weight.float()
            gained += float((change * (weight.float() @ missed)).double().sum())
            spent += float((change @ other * change).double().sum())
    share = min(1.0, max(0.0, gained / spent)) if spent > 0 else 0.0
    return round(2 * share / (1 + share), _DIGITS)


def _deviation(statistics: StatisticSet) -> Tensor:
    return statistics.view("deviation")["deviation"]
