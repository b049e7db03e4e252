"""Whether raters agree."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence


def krippendorff_alpha(units: Iterable[Sequence[Hashable]]) -> float | None:
    """Return Krippendorff's alpha for nominal data.

    1 - D_o / D_e over the coincidence matrix (Krippendorff, *Computing Krippendorff's
    Alpha-Reliability*, 2011): any number of raters, who need not have rated everything.

    Args:
        units: for each unit the values that its raters gave, without those that are missing. A unit
            of fewer than two values pairs with nothing and is left out.

    Returns:
        1 for perfect agreement, 0 for that of chance, below 0 for less; None where it is not
        defined: no unit has two values, or all values are the same.
    """
    totals: Counter[Hashable] = Counter()
    observed = 0.0
    for values in units:
        size = len(values)
        if size < 2:
            continue
        counts = Counter(values)
        totals.update(counts)
        observed += sum(count * (size - count) for count in counts.values()) / (size - 1)
    size = totals.total()
    expected = sum(count * (size - count) for count in totals.values())
    if not expected:
        return None
    return 1 - (size - 1) * observed / expected
