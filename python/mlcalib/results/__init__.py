"""Results: rows of numbers, generated texts, and which differences are more than chance."""

from mlcalib.results.rows import (
    Results,
    Row,
    joined,
    read_results,
    read_rows,
    write_results,
    write_rows,
)

__all__ = [
    "Results",
    "Row",
    "joined",
    "read_results",
    "read_rows",
    "write_results",
    "write_rows",
]
