"""Rows of data in files: JSON lines, JSON arrays and Parquet, also compressed."""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from importlib.resources.abc import Traversable
from typing import Any

from mlcalib.common.json_text import items, loads
from mlcalib.common.optional import optional
from mlcalib.common.text_files import COMPRESSED, byte_pieces, lines, text_pieces

Columns = Callable[[Sequence[str]], Sequence[str]]
"""The columns that a file has → those to be read."""

Refused = Callable[[str, str], None]
"""Takes what a line or an item is called that holds no row, and where it is with the reason."""


def stem_and_kind(name: str) -> tuple[str, str]:
    """Return a file's name in lower case before and after its last dot, compression aside.

    ``Calib.JSONL.gz`` gives ``calib`` and ``jsonl``.
    """
    name = name.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    stem, _, kind = name.rpartition(".")
    return stem, kind


def file_rows(
    file: Traversable, columns: Columns | None = None, refused: Refused | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the rows of a file, each with the place to name in messages, as they are read.

    Args:
        file: ``.parquet``; ``.json`` with an array of JSON objects; or else a JSON object on each
            line, where blank lines are passed over. Each may end in ``.gz`` or ``.zst``, and be in
            any case.
        columns: chooses which columns of a Parquet file are read; None for all of them.
        refused: is told of each line or item that holds no row; None to raise an error there.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a Parquet file, and pyarrow is not installed.
        ValueError: see ``text_files.text_pieces``; a line or an item that is no JSON object; an
            array that goes wrong, or not a Parquet file; names the file and the line or row.
    """
    kind = stem_and_kind(file.name)[1]
    if kind == "parquet":
        return _parquet_rows(file, columns)
    if kind == "json" and _is_array(file):
        return _array_rows(file, refused)
    return _line_rows(file, refused)


def _is_array(file: Traversable) -> bool:
    """Return whether a file holds an array; many that are called .json hold JSON lines."""
    begun = (piece.lstrip() for piece in text_pieces(file))
    return next((text[0] for text in begun if text), "") == "["


def _array_rows(file: Traversable, refused: Refused | None) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        for row in items(text_pieces(file)):
            number += 1
            where = f"{file}, row {number}"
            if isinstance(row, dict):
                yield where, row
            elif refused is None:
                raise _no_object(where, row)
            else:
                refused("rows that are no JSON object", f"{where}: a {type(row).__name__}")
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{file} is not a JSON array: {error.msg}, after {number:,} rows; mend it there, or "
            "write a row on each line (.jsonl), where what is wrong with one is left out."
        ) from error


def _no_object(where: str, row: Any) -> ValueError:
    return ValueError(f"{where}, is a JSON {type(row).__name__}; an object was expected.")


def _line_rows(file: Traversable, refused: Refused | None) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    for line in lines(file):  # enumerate would keep a line while its row is used
        number += 1
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = loads(line.lstrip("\ufeff"))  # of files that were put end to end
        except ValueError as error:
            if refused is None:
                raise ValueError(f"{where}, is not JSON: {error}.") from error
            refused("lines that are not JSON", f"{where}: {error}")
            continue
        del line
        if isinstance(row, dict):
            yield where, row
        elif refused is None:
            raise _no_object(where, row)
        else:
            array = "; call a file that holds an array .json" if isinstance(row, list) else ""
            refused("lines that are no JSON object", f"{where}: a {type(row).__name__}{array}")


def _parquet_rows(
    file: Traversable, columns: Columns | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    parquet = optional("pyarrow.parquet", "parquet", f"Reading {file}")
    arrow = optional("pyarrow", "parquet", f"Reading {file}")
    packed = file.name.lower().endswith(COMPRESSED)
    with io.BytesIO() if packed else file.open("rb") as stream:
        if packed:
            stream.writelines(byte_pieces(file))
            stream.seek(0)
        try:
            table = parquet.ParquetFile(stream)
            chosen = None if columns is None else columns(table.schema_arrow.names)
            batches = table.iter_batches(columns=chosen)
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"{file}, row {number}", row
        except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is not a readable Parquet file: {error}") from error
