"""What scores are made of, item by item, and tests on the items of two models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from mlcalib.results.scores import LOWER_IS_BETTER
from mlcalib.results.significance import Floats, Part, combine, mcnemar, resample

MCNEMAR, BOOTSTRAP = "McNemar", "bootstrap"


@dataclass(frozen=True)
class Items:
    """What a score is made of, item by item (or document by document).

    Attributes:
        values: [n] e.g. 1 right and 0 wrong, or a document's summed loss; None or NaN where an item
            says nothing. The score is their sum over that of the sizes; perplexity is the
            exponential of that.
        sizes: [n] e.g. a document's scored tokens; None for 1 each.
    """

    values: ArrayLike
    sizes: ArrayLike | None = None


def sign(metric: str) -> int:
    """Return 1 for a metric of which more is better, and -1 for the others."""
    return -1 if metric in LOWER_IS_BETTER else 1


def relative_change(
    old: Items, new: Items, metric: str, where: str, resamples: int, seeds: Sequence[int]
) -> Part | None:
    """Return the relative change with its resamples; None where a resample gives the float 0."""
    (before, size), (after, other) = _arrays(old), _arrays(new)
    if before.shape != after.shape:
        raise ValueError(
            f"{where}: the float model has {len(before)} items, the quantized one {len(after)}; "
            "score both on the same items."
        )
    # Items that fare alike are interchangeable: a few kinds of them instead of thousands.
    kinds, repeats = np.unique(np.stack([before, after, size, other]), axis=1, return_counts=True)
    sums = resample(
        kinds,
        np.ones(len(repeats)),
        resamples=resamples,
        seed=seeds[0],
        stream=seeds[1],
        repeats=repeats,
    )
    totals = np.concatenate([sums.value[:, None], sums.value[:, None] + sums.deviations], axis=1)
    if (totals[2:] <= 0).any():
        return None
    ratios = totals[:2] / totals[2:]
    measured, drawn = ratios[:, 0], ratios[:, 1:]
    if metric == "perplexity":
        measured, drawn = np.exp(measured), np.exp(drawn)
    if (drawn[0] <= 0).any() or measured[0] <= 0:
        return None
    change = _relative(measured, metric)
    return Part(change, _relative(drawn, metric) - change, sums.n)


def _relative(pair: Floats, metric: str) -> Floats:
    change: Floats = 100 * (pair[1] / pair[0] - 1) * sign(metric)
    return change


def _arrays(items: Items) -> tuple[Floats, Floats]:
    """Return values and sizes, both 0 for an item that says nothing."""
    values = np.asarray(items.values, dtype=np.float64)
    sizes = np.ones_like(values) if items.sizes is None else np.asarray(items.sizes, np.float64)
    known = ~np.isnan(values)
    return np.where(known, values, 0), np.where(known, sizes, 0)


class Alone(NamedTuple):
    """The test of no change in one cell, by itself.

    Attributes:
        n: items; 0 where there is no test.
        test: ``McNemar``, ``bootstrap``, or empty.
        p: two-sided; None where there is none.
    """

    n: int
    test: str
    p: float | None


def of_no_change(old: Items, new: Items, part: Part | None, seed: int) -> Alone:
    """Test right and wrong answers by McNemar, and anything else by the bootstrap.

    Args:
        old: of the float model.
        new: of the other, the same items.
        part: what ``relative_change`` returned; without it answers alone have a test.
        seed: of the bootstrap.
    """
    if (pair := answers(old, new)) is not None:
        return Alone(np.size(old.values), MCNEMAR, mcnemar(*pair))
    return Alone(0, "", None) if part is None else Alone(part.n, BOOTSTRAP, combine([part], seed).p)


def answers(old: Items, new: Items) -> Floats | None:
    """Return [2, n] what both have right (1) or wrong (0); None if that is not what items are.

    Items that say nothing of one of the two are left out.
    """
    if old.sizes is not None or new.sizes is not None:
        return None
    pair: Floats = np.stack([np.asarray(each.values, dtype=np.float64) for each in (old, new)])
    both = pair[:, ~np.isnan(pair).any(axis=0)]
    return both if both.size and np.isin(both, (0, 1)).all() else None
