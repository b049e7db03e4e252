"""Print the rows of read.py as a table; fail where a reader fails or integer weights differ."""

import json
import sys
from pathlib import Path


def cell(value: float | None) -> str:
    """Return a difference as text."""
    if value is None:
        return "-"
    return "0" if value == 0 else f"{value:.2g}"


def main() -> None:
    """Read the files named; what is known to fail, and why, is in docs/reference/formats.md."""
    rows = [
        json.loads(line)
        for file in sys.argv[1:]
        for line in Path(file).read_text().split("\n")
        if line
    ]
    rows.sort(
        key=lambda row: (row["model"], row["format"], row["reader"], row["version"], row["bits"])
    )
    print("| model | format | bits | symmetric | group | reader | version | weights | logits |")
    print("|---|---|---|---|---|---|---|---|---|")
    failed = []
    for row in rows:
        keys = ("model", "format", "bits", "symmetric", "group", "reader", "version")
        start = [str(row[key]) for key in keys]
        end = [row["error"], ""] if "error" in row else [cell(row["weights"]), cell(row["logits"])]
        print("| " + " | ".join(start + end) + " |")
        integer = not (row["format"] == "gguf" and not row["symmetric"])
        if "error" in row or (integer and row["weights"]):
            failed.append(row)
    print(f"\n{len(rows)} readings, {len(failed)} failed or differ in weights")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
