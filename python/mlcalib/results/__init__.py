"""What was measured: rows, generations, and which differences are more than chance."""

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
