"""Whether a measured difference is more than chance: paired bootstrap, McNemar, Holm.

Tokens of one document are not independent, so documents are what is drawn. Both models of a pair
are measured on the same documents, so differences are taken document by document.

A plain percentile interval is too narrow where documents are few (with 5 of them a 95 % interval
holds the truth 83 % of the time, with 3 of them 74 %). Deviations are therefore widened as
Student's t widens those of a normal mean, by sqrt(n / (n - 1)) · t / z, which is 1.01 at 200
documents and 2.7 at 3; see Hesterberg, "What Teachers Should Know about the Bootstrap" (2015,
arXiv 1411.5279), section 4.3, on narrowness bias. p is held to the same.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

LEVEL = 0.95
_CHUNK = 1 << 22  # counts drawn at a time: 32 MiB


@dataclass(frozen=True)
class Difference:
    """A difference, and what resampling the documents says about it.

    Attributes:
        value: the difference, as measured.
        low: lower end of its 95 % interval; None where a single document leaves it open.
        high: upper end, likewise.
        p: two-sided probability of a difference this far from 0 by chance; None likewise.
        n: documents (or items).
        seed: of the resampling.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    n: int
    seed: int

    @property
    def significant(self) -> bool:
        """Whether p is below 0.05; False where there is no p."""
        return self.p is not None and self.p < 1 - LEVEL


@dataclass(frozen=True)
class Part:
    """Ratios of models on one set of documents, as measured and on resamples of the documents.

    Attributes:
        value: [models], or a single number, as measured.
        deviations: [models, resamples], or [resamples], from ``value``; NaN where n is 1.
        n: documents.
    """

    value: Floats
    deviations: Floats
    n: int

    def contrast(self, weights: ArrayLike) -> "Part":
        """Return a weighted sum over [models], such as +1 of one and -1 of another."""
        weights = np.asarray(weights, dtype=np.float64)
        return Part(weights @ self.value, weights @ self.deviations, self.n)


def paired_ratio(
    first: ArrayLike, second: ArrayLike, size: ArrayLike, *, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """Return Σ(second - first) / Σ size with its interval, by a paired bootstrap over documents.

    With losses in nats and token counts: the rise of the mean token loss.

    Args:
        first: [n] sums over each document, of the model compared against.
        second: [n] of the other model, same documents in the same order.
        size: [n] what they are sums over, such as scored tokens; not all 0.
        resamples: how often documents are drawn.
        seed: of the draws.

    Returns:
        The difference. A single document has no interval and no p.

    Raises:
        ValueError: lengths that differ, no documents, NaN or Inf, sizes that are negative or sum
            to 0, no resamples.
    """
    first, second = _pair(first, second)
    return combine([resample(second - first, size, resamples=resamples, seed=seed)], seed)


def paired_mean(
    first: ArrayLike, second: ArrayLike, *, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """Return mean(second) - mean(first) likewise: [n] items (1 right, 0 wrong) of each."""
    first, second = _pair(first, second)
    # Items that fare alike are interchangeable: a few kinds of them instead of thousands.
    values, repeats = np.unique(second - first, return_counts=True)
    drawn = resample(values, np.ones_like(values), resamples=resamples, seed=seed, repeats=repeats)
    return combine([drawn], seed)


def interval(
    values: ArrayLike, size: ArrayLike, *, resamples: int = 10_000, seed: int = 0
) -> Difference:
    """Return Σ values / Σ size likewise: a ratio of one model, as its difference from 0."""
    values = _vector(values, "values")
    return paired_ratio(np.zeros_like(values), values, size, resamples=resamples, seed=seed)


def resample(
    values: ArrayLike,
    size: ArrayLike,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    stream: int = 0,
    repeats: ArrayLike | None = None,
) -> Part:
    """Draw documents with replacement; all rows of ``values`` see the same draws.

    Args:
        values: [n] sums over each document, or [models, n].
        size: [n] what they are sums over.
        resamples: how often documents are drawn.
        seed: of the draws.
        stream: draws with another number are independent; one for each language, say.
        repeats: [n] how many documents, all alike, each stands for. Default: one.

    Returns:
        Σ values / Σ size as measured, and how far each resample is from it, times
        sqrt(n / (n - 1)), since resampling finds the variance too small by that.

    Raises:
        ValueError: as ``paired_ratio``.
    """
    size = _vector(size, "size")
    values = np.asarray(values, dtype=np.float64)
    if values.shape[-1] != len(size):
        raise ValueError(f"There are {len(size)} sizes for {values.shape[-1]} documents.")
    if not np.isfinite(values).all():
        raise ValueError("A document has NaN or Inf; a mean over documents needs finite numbers.")
    if (size < 0).any() or size.sum() == 0:
        raise ValueError(f"Sizes of documents must be 0 or more and not all 0; got {size[:5]} ….")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, expected 1 or more.")
    each = np.ones(len(size)) if repeats is None else _vector(repeats, "repeats")
    n = int(each.sum())
    measured = values @ each / (size @ each)
    if n == 1:
        return Part(measured, np.full((*measured.shape, resamples), np.nan), n)
    draws = np.random.default_rng([seed, stream])
    residuals = np.vstack([(values - measured[..., None] * size).reshape(-1, len(size)), size])
    sums = np.empty((len(residuals), resamples))
    step = max(1, _CHUNK // len(size))
    for start in range(0, resamples, step):
        stop = min(start + step, resamples)
        counts = draws.multinomial(n, each / n, size=stop - start)
        sums[:, start:stop] = residuals @ counts.T
    # A resample may hold nothing but documents without a scored token; it says nothing.
    total = np.where(sums[-1] > 0, sums[-1], np.inf)
    deviations = sums[:-1] / total * math.sqrt(n / (n - 1))
    return Part(measured, deviations.reshape(*measured.shape, resamples), n)


def combine(parts: Sequence[Part], seed: int) -> Difference:
    """Return the sum of independent parts with its interval.

    The mean over languages is one: its parts are the languages' differences over their number.
    Degrees of freedom are Welch's and Satterthwaite's. A part of a single document is taken to vary
    from document to document as the others do on average; if all are, there is no interval.

    Args:
        parts: of each language, say; of different draws, and with as many resamples.
        seed: of the draws.
    """
    value, n = float(sum(each.value for each in parts)), sum(each.n for each in parts)
    known = [each for each in parts if each.n > 1]
    if not known:
        return Difference(value, None, None, None, n, seed)
    by_part = np.array([each.deviations for each in known] + _single(parts, known, seed))
    deviations, variances = by_part.sum(axis=0), (by_part**2).mean(axis=1)
    least = 2 / (len(deviations) + 1)  # the measured sample counts as a resample
    error = math.sqrt(variances.sum())
    if error <= 1e-14 * abs(value):  # documents that all agree, but for rounding
        return Difference(value, value, value, least if value else 1.0, n, seed)
    freedom = np.array([each.n - 1 for each in known], dtype=np.float64)
    freedom = np.append(freedom, np.full(len(parts) - len(known), freedom.sum()))
    degrees = math.floor(variances.sum() ** 2 / (variances**2 / freedom).sum() + 1e-9)
    wide = value + deviations * (_t_quantile(degrees) / NormalDist().inv_cdf((1 + LEVEL) / 2))
    low, high = np.quantile(wide, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    beyond = min(np.count_nonzero(wide <= 0), np.count_nonzero(wide >= 0))
    counted = min(1.0, least * (1 + int(beyond)))
    p = max(counted, _t_two_sided(value / error, degrees))
    return Difference(value, float(low), float(high), p, n, seed)


def _single(parts: Sequence[Part], known: Sequence[Part], seed: int) -> list[Floats]:
    """Return deviations of the parts of a single document: normal, as wide as one of the others."""
    by_document = [float((each.deviations**2).mean()) * each.n for each in known]
    error = math.sqrt(math.fsum(by_document) / len(known))
    draws = np.random.default_rng([seed, len(parts)])
    return [draws.normal(0.0, error, known[0].deviations.shape) for each in parts if each.n == 1]


def mcnemar(first: ArrayLike, second: ArrayLike) -> float:
    """Return the exact two-sided p of McNemar's test on paired right (1) or wrong (0) items.

    Items on which both agree say nothing; of the others, each side wins as a fair coin falls.

    Raises:
        ValueError: other numbers of items, or values other than 0 and 1.
    """
    from scipy import stats

    first, second = _vector(first, "first"), _vector(second, "second")
    if first.shape != second.shape:
        raise ValueError(f"There are {len(first)} and {len(second)} items; expected the same.")
    if not np.isin(np.concatenate([first, second]), (0, 1)).all():
        raise ValueError("McNemar's test takes items that are 0 (wrong) or 1 (right).")
    gained, lost = int((second > first).sum()), int((second < first).sum())
    differ = gained + lost
    return float(stats.binomtest(gained, differ).pvalue) if differ else 1.0


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """Return p-values adjusted for their number (Holm 1979), in the order given.

    Those below 0.05 keep the chance of even one false finding among all of them below 0.05.

    Raises:
        ValueError: a value that is not a probability.
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise ValueError(f"The p-value of {name} is {p}, expected 0 to 1.")
    adjusted, least = {}, 0.0
    for at, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        least = max(least, min(1.0, p_values[name] * (len(p_values) - at)))
        adjusted[name] = least
    return {name: adjusted[name] for name in p_values}


def _t_quantile(degrees: int) -> float:
    """Upper quantile of Student's t at ``LEVEL``, two-sided."""
    from scipy import special

    return float(special.stdtrit(_degrees(degrees), (1 + LEVEL) / 2))


def _t_two_sided(t: float, degrees: int) -> float:
    """P(|T| > |t|) of Student's t."""
    from scipy import special

    return float(2 * special.stdtr(_degrees(degrees), -abs(t)))


def _degrees(degrees: int) -> float:
    """Take Student's t to be normal where there are very many degrees of freedom."""
    return degrees if degrees <= 10_000 else math.inf


def _pair(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    first, second = _vector(first, "first"), _vector(second, "second")
    if first.shape != second.shape:
        raise ValueError(
            f"The first model has {len(first)} documents, the second {len(second)}; a paired test "
            "needs the same documents of both."
        )
    return first, second


def _vector(values: ArrayLike, name: str) -> Floats:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1 or not len(vector):
        what = "no documents" if not vector.size else f"shape {list(vector.shape)}"
        raise ValueError(f"'{name}' has {what}; expected one number for each document.")
    return vector
