"""How ranks share what is solved of a block: whole inputs, or rows of their linears."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from mlcalib.common.ranks import balanced

ROWS = 48
"""Rows are shared in multiples of this: as many are solved at once on the CPU."""


@dataclass(frozen=True)
class Part:
    """Some rows of the linears that read one input, which one rank solves.

    Attributes:
        task: index of the input among those that are solved.
        first: the first of the rows, counted through all linears of the input.
        last: the row behind the last.
        owner: the rank.
    """

    task: int
    first: int
    last: int
    owner: int

    def rows_of(self, sizes: Sequence[int]) -> list[tuple[int, int, int]]:
        """Return which rows of which linears these are: (index, first, last).

        Args:
            sizes: rows of each linear of the input.
        """
        found, start = [], 0
        for index, size in enumerate(sizes):
            first, last = max(self.first - start, 0), min(self.last - start, size)
            if first < last:
                found.append((index, first, last))
            start += size
        return found


def parts_of(
    shapes: Sequence[tuple[int, int]],
    size: int,
    whole: Container[int] = (),
    owners: Mapping[int, int] = MappingProxyType({}),
) -> list[Part]:
    """Share out the linears of inputs, so that the rank with most to do has as little as possible.

    Every input is given to one rank at first. While that makes the longest share shorter, the
    input whose part costs most is split between one rank more. Each of them then factors its Gram.

    Args:
        shapes: of each input the rows of all its linears together, and its channels.
        size: number of ranks.
        whole: indexes of inputs whose rows must not be split.
        owners: index of an input → the rank that must have all of it.
    """
    counts = [1] * len(shapes)
    best = _assigned(shapes, counts, size, owners)
    while size > 1 and shapes:
        costs = [_cost(shape, count) for shape, count in zip(shapes, counts, strict=True)]
        task = max(range(len(costs)), key=costs.__getitem__)
        if (
            task in whole
            or task in owners
            or counts[task] == min(size, -(-shapes[task][0] // ROWS))
        ):
            break
        counts[task] += 1
        found = _assigned(shapes, counts, size, owners)
        if found[0] < best[0]:
            best = found
    return best[1]


def _cost(shape: tuple[int, int], parts: int) -> float:
    """Return multiplications of one part: those of the factor and those of its rows."""
    rows, channels = shape
    return channels**3 / 3 + rows / parts * channels**2


def _assigned(
    shapes: Sequence[tuple[int, int]],
    counts: Sequence[int],
    size: int,
    given: Mapping[int, int],
) -> tuple[float, list[Part]]:
    """Return the cost of the longest share, and the parts, those of an input in order."""
    pieces = [
        (task, shape[0] * part // count // ROWS * ROWS if part < count else shape[0])
        for task, (shape, count) in enumerate(zip(shapes, counts, strict=True))
        for part in range(1, count + 1)
    ]
    costs = [_cost(shapes[task], counts[task]) for task, _ in pieces]
    decided = {piece: given[task] for piece, (task, _) in enumerate(pieces) if task in given}
    owners = balanced(costs, size, decided)
    load = [0.0] * size
    parts: list[Part] = []
    for (task, last), cost, owner in zip(pieces, costs, owners, strict=True):
        first = parts[-1].last if parts and parts[-1].task == task else 0
        parts.append(Part(task, first, last, owner))
        load[owner] += cost
    return max(load), parts
