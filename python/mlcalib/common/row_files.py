"""Rows of data in files: JSON lines and Parquet."""

import json
from collections.abc import Callable, Iterator, Sequence
from importlib.resources.abc import Traversable
from typing import Any

from mlcalib.common.optional import optional

Columns = Callable[[Sequence[str]], Sequence[str]]
"""The columns that a file has → those to be read."""


def file_rows(
    file: Traversable, columns: Columns | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the rows of a file, each with the place to name in messages.

    Args:
        file: ``.parquet``, or else a JSON object on each line; blank lines are passed over.
        columns: chooses which columns of a Parquet file are read; None for all of them.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a Parquet file, and pyarrow is not installed.
        ValueError: invalid UTF-8, a line that is no JSON object, or not a Parquet file; names the
            file and the line.
    """
    if file.name.endswith(".parquet"):
        return _parquet_rows(file, columns)
    return _json_rows(file)


def decode(file: Traversable) -> str:
    """Return the text of a file in UTF-8, without a byte order mark.

    Raises:
        FileNotFoundError: no such file.
        ValueError: invalid UTF-8; names the file, the line and the byte.
    """
    content = file.read_bytes()
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{file} is not valid UTF-8: byte 0x{content[error.start]:02x} on line {line} (byte "
            f"{error.start} of the file); convert the file to UTF-8."
        ) from error


def _json_rows(file: Traversable) -> Iterator[tuple[str, dict[str, Any]]]:
    # Not splitlines: JSON may hold U+2028 and the like unescaped.
    for number, line in enumerate(decode(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}, is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}, is a JSON {type(row).__name__}; an object was expected.")
        yield where, row


def _parquet_rows(
    file: Traversable, columns: Columns | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    parquet = optional("pyarrow.parquet", "parquet", f"Reading {file}")
    arrow = optional("pyarrow", "parquet", f"Reading {file}")
    with file.open("rb") as stream:
        try:
            table = parquet.ParquetFile(stream)
            chosen = None if columns is None else columns(table.schema_arrow.names)
            batches = table.iter_batches(columns=chosen)
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"{file}, row {number}", row
        except (arrow.ArrowException, OSError) as error:
            raise ValueError(f"{file} is not a readable Parquet file: {error}") from error
