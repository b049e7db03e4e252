"""How evenly the core's loops are split over many threads, by counting; nothing is timed.

    python benchmarks/python/core_splits.py

torch gives each thread one run of consecutive items of a loop, of equal length. The speed-up is at
most all work divided by that of the thread with most.
"""

from collections.abc import Sequence

TILE, ROWS = 96, 48  # of Grams, and of what GPTQ and AWQ solve at once


def speed_up(work: Sequence[int], threads: int) -> float:
    """Return all work over that of the busiest thread, where items are dealt as torch does."""
    length = -(-len(work) // threads)
    shares = [sum(work[first : first + length]) for first in range(0, len(work), length)]
    return sum(work) / max(shares)


def main() -> None:
    """Print two tables."""
    threads = (2, 16, 64)
    head = " | ".join(f"{each} threads" for each in threads)
    print(f"| tiles of a Gram, channels | split by | {head} |\n| --: | --- | --: | --: | --: |")
    for channels in (2048, 4096, 14336):
        tiles = -(-channels // TILE)
        splits = {
            "columns": [j + 1 for j in range(tiles)],
            "tiles": [1] * (tiles * (tiles + 1) // 2),
        }
        for name, work in splits.items():
            found = " | ".join(f"{speed_up(work, each):.1f}" for each in threads)
            print(f"| {channels:,} | {name} | {found} |")
    print(f"\n| rows solved, in tiles of {ROWS} | {head} |\n| --: | --: | --: | --: |")
    for rows in (1024, 4096, 6144, 14336, 28672):
        found = " | ".join(f"{speed_up([1] * -(-rows // ROWS), each):.1f}" for each in threads)
        print(f"| {rows:,} | {found} |")


if __name__ == "__main__":
    main()
