"""How evenly the core's loops are split over many threads, from what tasks cost one thread.

    python benchmarks/python/core_splits.py

torch gives each thread one run of consecutive items of a loop, of equal length, and waits for the
last. The speed-up of loops that follow each other is at most all work divided by the sum, over the
loops, of the thread with most. What parts of a solve cost is measured here, on one thread; a
*queue* is the same loops with each item given to whoever is free, which is as good as it gets
without other items. Nothing is timed on many threads: memory that they share, and waiting itself,
are left out.
"""

import heapq
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from mlcalib import _core
from mlcalib._core import GptqOptions, GridSpec

TILE, ROWS, PRODUCT, BLOCK, GROUP = 96, 48, 8, 128, 128  # PRODUCT: with AVX-512
STRIP, CHUNK, CHUNK_BEFORE = 1024, 64, 21  # columns and tiles of rows of AWQ's search
THREADS = (2, 16, 64)

Loop = Sequence[float]
"""What each item costs; one item is work that only one thread does."""


def dealt(work: Loop, threads: int) -> float:
    """Return what the busiest thread has, where items are dealt as torch does."""
    length = -(-len(work) // threads)
    return max(sum(work[first : first + length]) for first in range(0, len(work), length))


def queued(work: Loop, threads: int) -> float:
    """Return when the last thread is done, where each takes the next item when it is free."""
    free = [0.0] * threads
    for cost in work:
        heapq.heapreplace(free, free[0] + cost)
    return max(free)


def speed_up(loops: Sequence[Loop], threads: int, how: Callable[[Loop, int], float]) -> float:
    """Return all work over what is waited for."""
    return sum(map(sum, loops)) / sum(how(loop, threads) for loop in loops)


def fastest(call: Callable[[], object]) -> float:
    """Return the processor seconds of the fastest of some calls."""
    seconds = []
    for _ in range(5):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds)


class Costs:
    """Seconds of the parts of a solve with so many columns, on one thread."""

    def __init__(self, columns: int) -> None:
        """Measure: what does not depend on rows is the factorisation."""
        torch.manual_seed(0)
        x = torch.randn(2 * columns, columns)
        gram, weight = x.T @ x, torch.randn(12 * ROWS, columns)
        spec = GridSpec(4, GROUP, range="gram")
        options = GptqOptions(spec)
        few, many = (
            fastest(lambda rows=rows: _core.gptq([weight[:rows]], gram, options))
            for rows in (4 * ROWS, 12 * ROWS)
        )
        tile = (many - few) / 8
        self.columns, self.factor = columns, max(few - 4 * tile, 0.0)
        self.fit = fastest(lambda: _core.fit_grid(weight, spec, gram)) / 12
        # Products of the factorisation and of the solve are those of one kernel.
        product = self.factor / (columns**3 / 3)
        self.feed = product * ROWS * columns * (columns - BLOCK) / 2
        self.solve = max(tile - self.fit - self.feed, 0.0)

    def loops(self, rows: int, *, strips: bool) -> Iterator[Loop]:
        """Give the loops of a solve, with items that are whole tiles of rows, or parts of them."""
        tiles, blocks = -(-rows // ROWS), -(-self.columns // BLOCK)
        size = -(-self.columns // ROWS)
        parts = ROWS // PRODUCT if strips else 1
        whole = sum(t * (size - t) for t in range(size))
        for t in range(size):  # the factorisation, a row of tiles at a time
            yield [self.factor * t / whole / parts] * ((size - t) * parts)
        groups = self.columns // GROUP
        if strips:
            yield [self.fit / groups] * (tiles * groups)
        else:
            yield from ([self.fit / groups] * tiles for _ in range(groups))
        parts = -(-BLOCK // PRODUCT)
        for block in range(blocks):
            feed = self.feed * block / (blocks * (blocks - 1) / 2)
            solve = self.solve / blocks
            if strips:
                yield [feed / parts] * (tiles * parts)
                yield [solve] * tiles
            else:
                yield [feed + solve] * tiles


def search(rows: int, columns: int, *, strips: bool) -> Iterator[Loop]:
    """Give the loops in which AWQ rounds a candidate: tiles of rows, or parts of their columns."""
    tiles, chunk = -(-rows // ROWS), CHUNK if strips else CHUNK_BEFORE
    parts = -(-columns // STRIP) if strips else 1
    for first in range(0, tiles, chunk):
        yield [1 / parts] * (min(chunk, tiles - first) * parts)


def main() -> None:
    """Print tables."""
    torch.set_num_threads(1)
    head = " | ".join(f"{each} threads" for each in THREADS)
    print(f"| tiles of a Gram, channels | split by | {head} |\n| --: | --- | --: | --: | --: |")
    for channels in (2048, 4096, 14336):
        tiles = -(-channels // TILE)
        splits: dict[str, list[float]] = {
            "columns": [j + 1 for j in range(tiles)],
            "tiles": [1] * (tiles * (tiles + 1) // 2),
        }
        for name, work in splits.items():
            found = " | ".join(f"{speed_up([work], each, dealt):.1f}" for each in THREADS)
            print(f"| {channels:,} | {name} | {found} |")
    measured = []
    print(f"\n| GPTQ, rows × columns | items | {head} |\n| --: | --- | --: | --: | --: |")
    for columns, rows_of in ((1536, (576,)), (4096, (1024, 4096, 14336))):
        costs = Costs(columns)
        shares = [
            f"{name} {1e3 * each:.2f} ms"
            for name, each in (
                ("factor", costs.factor),
                ("of a tile: fit", costs.fit),
                ("feedback", costs.feed),
                ("solve", costs.solve),
            )
        ]
        measured.append(f"{columns:,} columns: {', '.join(shares)}")
        for rows in rows_of:
            for name, strips, how in (
                ("tiles of rows, dealt", False, dealt),
                ("tiles of rows, from a queue", False, queued),
                ("parts of tiles, dealt", True, dealt),
                ("parts of tiles, from a queue", True, queued),
            ):
                loops = list(costs.loops(rows, strips=strips))
                found = " | ".join(f"{speed_up(loops, each, how):.1f}" for each in THREADS)
                print(f"| {rows:,} × {columns:,} | {name} | {found} |", flush=True)
    print("\n".join(["", *measured]))
    print(f"\n| AWQ's search, rows × columns | items | {head} |\n| --: | --- | --: | --: | --: |")
    for rows, columns in ((1024, 4096), (6144, 4096), (4096, 14336), (28672, 4096)):
        for name, strips in (("tiles of rows", False), ("parts of tiles", True)):
            loops = list(search(rows, columns, strips=strips))
            found = " | ".join(f"{speed_up(loops, each, dealt):.1f}" for each in THREADS)
            print(f"| {rows:,} × {columns:,} | {name} | {found} |")


if __name__ == "__main__":
    main()
