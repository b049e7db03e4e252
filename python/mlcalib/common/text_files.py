"""Text in files, read in pieces: compressed or plain, in UTF-8 or what a mark at the start says."""

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from typing import BinaryIO, cast

import zstandard

COMPRESSED = (".gz", ".zst")

LINE_END = re.compile(r"\r\n|\r|\n")

_PIECE = 2**20  # bytes
_ZSTD_PIECE = 2**8  # compressed bytes, of which each four can stand for 128 KiB
_MOST_EXPANSION = 100  # text has 3 to 10, and the same row over and over about 50
_SMALL = 4 * 2**20  # bytes that any file may expand to
# Those of UTF-32 first: one of them begins like one of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def lines(file: Traversable) -> Iterator[str]:
    r"""Give the lines of a file, which end in ``\n``, ``\r\n`` or ``\r``, without their ends.

    Raises:
        FileNotFoundError, ValueError: see ``text_pieces``.
    """
    # Not splitlines: a form feed or U+2028 inside a document or a JSON string ends no line.
    return parts_between(file, LINE_END)


def parts_between(file: Traversable, ends: re.Pattern[str]) -> Iterator[str]:
    r"""Give the text of a file between what a pattern finds; no more than a part is in memory.

    Args:
        file: see ``text_pieces``.
        ends: what ends a part; of more than one character only where that is ``\r\n``.

    Raises:
        FileNotFoundError, ValueError: see ``text_pieces``.
    """
    begun: list[str] = []
    held = ""
    for piece in text_pieces(file):
        text = held + piece
        held = "\r" if text.endswith("\r") else ""  # the rest of the line's end may follow
        text = text.removesuffix(held)
        start = 0
        for end in ends.finditer(text):
            begun.append(text[start : end.start()])
            yield _joined(begun)
            start = end.end()
        begun.append(text[start:])
    ended = ends.fullmatch(held) is not None
    begun += [] if ended else [held]
    yield _joined(begun)
    if ended:
        yield ""


def _joined(parts: list[str]) -> str:
    """Return the parts as one, and empty the list: a long part is not to be there twice."""
    text = "".join(parts)
    parts.clear()
    return text


def text_pieces(file: Traversable) -> Iterator[str]:
    """Give the text of a file, without a byte order mark, in pieces of about a mebibyte.

    A file that begins with the mark of UTF-16 or UTF-32 is read as that.

    Raises:
        FileNotFoundError: no such file.
        ValueError: invalid UTF-8, of which file, line and byte are named; UTF-16 or UTF-32 without
            its mark; see also ``byte_pieces``.
    """
    encoding = _encoding(file)
    decoder = codecs.getincrementaldecoder(encoding)()
    read = characters = nulls = 0
    for piece in _with_end(byte_pieces(file)):
        read += len(piece)
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            at = read - len(error.object) + error.start
            raise ValueError(
                f"{file} is not valid {encoding.upper()}: byte 0x{error.object[error.start]:02x} "
                f"on line {_line_at(file, encoding, at)} (byte {at} of the file); convert the file "
                "to UTF-8."
            ) from error
        nulls += text.count("\0")
        text = text if characters else text.removeprefix("\ufeff")
        characters += len(text)
        if nulls * 4 > characters:  # half of ASCII in UTF-16
            raise ValueError(
                f"{file} looks like UTF-16 or UTF-32 without a byte order mark, or no text at all: "
                "over a quarter of it is null characters; convert the file to UTF-8."
            )
        yield text


def byte_pieces(file: Traversable) -> Iterator[bytes]:
    """Give the bytes of a file, decompressed, in pieces of bounded size.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a ``.gz`` or ``.zst`` that is damaged or cut off, or expands to far more than
            text does; names it.
    """
    name = file.name.lower()
    with cast(BinaryIO, file.open("rb")) as stream:
        if not name.endswith(COMPRESSED):
            yield from _read(stream, _PIECE)
            return
        size = stream.seek(0, 2)
        stream.seek(0)
        expanded = 0
        try:
            for piece in _unzipped(stream) if name.endswith(".gz") else _unpacked(stream):
                expanded += len(piece)
                if expanded > max(_SMALL, _MOST_EXPANSION * size):
                    raise ValueError(
                        f"{file} has {size:,} bytes and expands to more than {expanded:,}, which "
                        "no text does; where it is meant, decompress it first."
                    )
                yield piece
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            kind = name.rpartition(".")[2]
            raise ValueError(f"{file} is not a readable .{kind} file: {error}.") from error


def _read(stream: BinaryIO | gzip.GzipFile, size: int) -> Iterator[bytes]:
    while piece := stream.read(size):
        yield piece


def _unzipped(stream: BinaryIO) -> Iterator[bytes]:
    with gzip.open(stream) as unzipped:
        yield from _read(unzipped, _PIECE)


def _unpacked(stream: BinaryIO) -> Iterator[bytes]:
    """Decompress all frames of a .zst file."""
    frame = None
    for piece in _read(stream, _ZSTD_PIECE):
        packed = piece
        while packed:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(packed)
            packed = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("it ends inside a frame")


def _encoding(file: Traversable) -> str:
    start = b""
    for piece in byte_pieces(file):
        start += piece
        if len(start) >= 4:
            break
    return next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8")


def _with_end(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Give pieces that are not empty, and an empty one at the end."""
    yield from filter(None, pieces)
    yield b""


def _line_at(file: Traversable, encoding: str, position: int) -> int:
    """Return the line on which a byte of a file is; what stands before it is valid."""
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    line, last = 1, ""
    for piece in byte_pieces(file):
        text = decoder.decode(piece[:position])
        position -= len(piece[:position])
        line += len(LINE_END.findall(text)) - (last == "\r" and text.startswith("\n"))
        last = text[-1:] or last
        if not position:
            break
    return line
