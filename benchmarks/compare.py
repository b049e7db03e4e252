"""Compare two runs of benchmarks/python/kernels.py --json, such as those of two commits.

    python benchmarks/compare.py BEFORE.json AFTER.json

What counts is how the ratio to torch changed: both were slowed alike by whatever else ran.
"""

import argparse
import json
from pathlib import Path


def read(path: Path) -> dict[tuple[str, ...], dict[str, float]]:
    """Return (kernel, size, ISA, threads) → result."""
    results = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    keys = ("kernel", "size", "isa", "threads")
    return {tuple(str(result[key]) for key in keys): result for result in results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    arguments = parser.parse_args()
    before, after = read(arguments.before), read(arguments.after)
    if not before.keys() & after.keys():
        parser.error("the files have no kernel, size, instruction set and thread count in common")
    print("| kernel | size | ISA | threads | ratio before | ratio after | change | ours ms |")
    print("|---|---|---|--:|--:|--:|--:|---|")
    for key in [key for key in before if key in after]:
        old, new = before[key], after[key]
        change = new["ratio"] / old["ratio"] - 1
        print(
            f"| {' | '.join(key)} | {old['ratio']:.2f} | {new['ratio']:.2f} | {change:+.0%} | "
            f"{old['ours_ms']:.1f} → {new['ours_ms']:.1f} |"
        )
    for name, keys in (("before", before.keys() - after.keys()), ("after", after.keys() - before)):
        for key in sorted(keys):
            print(f"only {name}: {', '.join(key)}")


if __name__ == "__main__":
    main()
