"""Text and rows of data in files: plain, JSON lines and Parquet, also compressed."""

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from importlib.resources.abc import Traversable
from typing import Any

import zstandard

from mlcalib.common.optional import optional

Columns = Callable[[Sequence[str]], Sequence[str]]
"""The columns that a file has → those to be read."""

Refused = Callable[[str, str], None]
"""Takes what a line is called that holds no row, and where it is with the reason."""

_COMPRESSED = (".gz", ".zst")
_LINE_END = re.compile(r"\r\n|\r|\n")
# Those of UTF-32 first: one of them begins like one of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def stem_and_kind(name: str) -> tuple[str, str]:
    """Return a file's name in lower case before and after its last dot, compression aside.

    ``Calib.JSONL.gz`` gives ``calib`` and ``jsonl``.
    """
    name = name.lower()
    for ending in _COMPRESSED:
        name = name.removesuffix(ending)
    stem, _, kind = name.rpartition(".")
    return stem, kind


def file_rows(
    file: Traversable, columns: Columns | None = None, refused: Refused | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the rows of a file, each with the place to name in messages.

    Args:
        file: ``.parquet``, or else a JSON object on each line; blank lines are passed over. Either
            may end in ``.gz`` or ``.zst``, and be in any case.
        columns: chooses which columns of a Parquet file are read; None for all of them.
        refused: is told of each line that holds no row; None to raise an error there.

    Raises:
        FileNotFoundError: no such file.
        ImportError: a Parquet file, and pyarrow is not installed.
        ValueError: see ``decode``; a line that is no JSON object, or not a Parquet file; names the
            file and the line.
    """
    if stem_and_kind(file.name)[1] == "parquet":
        return _parquet_rows(file, columns)
    return _json_rows(file, refused)


def decode(file: Traversable) -> str:
    """Return the text of a file in UTF-8, without a byte order mark.

    A file that begins with the mark of UTF-16 or UTF-32 is read as that.

    Raises:
        FileNotFoundError: no such file.
        ValueError: invalid UTF-8, of which file, line and byte are named; UTF-16 or UTF-32 without
            its mark; a damaged ``.gz`` or ``.zst``.
    """
    content = _content(file)
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode(encoding, errors="replace")
        line = len(_LINE_END.findall(before)) + 1
        raise ValueError(
            f"{file} is not valid {encoding.upper()}: byte 0x{content[error.start]:02x} on line "
            f"{line} (byte {error.start} of the file); convert the file to UTF-8."
        ) from error
    if text.count("\0") * 4 > len(text):  # half of ASCII in UTF-16
        raise ValueError(
            f"{file} looks like UTF-16 or UTF-32 without a byte order mark, or no text at all: "
            "over a quarter of it is null characters; convert the file to UTF-8."
        )
    return text


def lines_of(text: str) -> Iterator[str]:
    r"""Give the lines of a text, which end in ``\n``, ``\r\n`` or ``\r``, without their ends."""
    # Not splitlines: a form feed or U+2028 inside a document or a JSON string ends no line.
    start = 0
    for end in _LINE_END.finditer(text):
        yield text[start : end.start()]
        start = end.end()
    yield text[start:]


def _content(file: Traversable) -> bytes:
    """Return the bytes of a file, decompressed.

    Raises:
        ValueError: it is damaged, or cut off; names it.
    """
    content = file.read_bytes()
    name = file.name.lower()
    try:
        if name.endswith(".gz"):
            return gzip.decompress(content)
        if name.endswith(".zst"):
            return _unpacked(content)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        kind = name.rpartition(".")[2]
        raise ValueError(f"{file} is not a readable .{kind} file: {error}.") from error
    return content


def _unpacked(content: bytes) -> bytes:
    """Decompress all frames of a .zst file."""
    parts = []
    while content:
        frame = zstandard.ZstdDecompressor().decompressobj()
        parts.append(frame.decompress(content))
        if not frame.eof:
            raise EOFError("it ends inside a frame")
        content = frame.unused_data
    return b"".join(parts)


def _json_rows(file: Traversable, refused: Refused | None) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines_of(decode(file)), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line.lstrip("\ufeff"))  # of files that were put end to end
        except (ValueError, RecursionError) as error:
            if refused is None:
                raise ValueError(f"{where}, is not JSON: {error}.") from error
            refused("lines that are not JSON", f"{where}: {error}")
            continue
        if isinstance(row, dict):
            yield where, row
        elif refused is None:
            raise ValueError(f"{where}, is a JSON {type(row).__name__}; an object was expected.")
        else:
            refused("lines that are no JSON object", f"{where}: a {type(row).__name__}")


def _parquet_rows(
    file: Traversable, columns: Columns | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    parquet = optional("pyarrow.parquet", "parquet", f"Reading {file}")
    arrow = optional("pyarrow", "parquet", f"Reading {file}")
    packed = file.name.lower().endswith(_COMPRESSED)
    with io.BytesIO(_content(file)) if packed else file.open("rb") as stream:
        try:
            table = parquet.ParquetFile(stream)
            chosen = None if columns is None else columns(table.schema_arrow.names)
            batches = table.iter_batches(columns=chosen)
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield f"{file}, row {number}", row
        except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is not a readable Parquet file: {error}") from error
