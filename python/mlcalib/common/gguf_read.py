"""GGUF files, checked before anything loads them.

The layout is that of llama.cpp's ``docs/gguf.md``. The package gguf believes what a file says: it
counts through as many values as a number in it tells, whether they are there or not.
"""

from pathlib import Path
from typing import Any, BinaryIO

from mlcalib.common.errors import printable
from mlcalib.common.optional import optional

_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # type → of a value
_STRING, _ARRAY = 8, 9
_MOST_VALUES = 2**22  # in arrays; of the largest vocabularies 2¹⁸ tokens, twice as many merges, …
_MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
_MAX_ELEMENTS = 2**63


def read_gguf(file: Path) -> Any:
    """Return a ``gguf.GGUFReader``, which maps a file and reads no tensors.

    Every count, length and place in the file is checked first: nothing is read, or counted, that
    the file is too short for. Names and single strings are valid UTF-8.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, or no GGUF file.
        ImportError: the package gguf is missing.
    """
    gguf = optional("gguf", "gguf", "reading a GGUF file")
    try:
        with file.open("rb") as stream:
            _Header(stream, file.stat().st_size, gguf).check()
        return gguf.GGUFReader(file)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise ValueError(f"{file} is not a usable GGUF file: {kind}{error}") from error


def single_values(reader: Any) -> dict[str, Any]:
    """Return the values of a file by name, but for arrays."""
    fields = reader.fields.items()
    return {name: field.contents() for name, field in fields if len(field.types) == 1}


class _Header:
    """Goes through the header of a file.

    Args:
        stream: the file.
        size: its bytes.
        gguf: the package, which knows the types of tensors.
    """

    def __init__(self, stream: BinaryIO, size: int, gguf: Any) -> None:
        self._stream = stream
        self._size = size
        self._sizes = {kind.value: pair for kind, pair in gguf.GGML_QUANT_SIZES.items()}
        self._alignment = gguf.GGUF_DEFAULT_ALIGNMENT
        self._values = 0  # in arrays, so far

    def check(self) -> None:
        """Raise a ValueError where the file is not as it says."""
        if self._take(4, "its mark") != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self._number(4, "its version")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}; 2 and 3 in little-endian order are read")
        tensors, values = self._number(8, "its counts"), self._number(8, "its counts")
        names: set[str] = set()
        for _ in range(values):
            self._new(names, name := self._string("the name of a value"))
            self._value(name)
        names = set()
        ends = [self._tensor(names) for _ in range(tensors)]
        start = -(-self._stream.tell() // self._alignment) * self._alignment
        for name, end in ends:
            if start + end > self._size:
                raise ValueError(
                    f"tensor {printable(name)} ends at byte {start + end}, the file at {self._size}"
                )

    def _value(self, name: str) -> None:
        shown = printable(name)
        kind = self._number(4, f"the type of {shown}")
        if kind == _ARRAY:
            self._array(name)
        elif kind == _STRING:
            self._string(shown)
        else:
            content = self._take(self._width(kind, shown), shown)
            if name == "general.alignment":
                self._align(kind, content)

    def _array(self, name: str) -> None:
        shown = printable(name)
        kind, count = self._number(4, shown), self._number(8, shown)
        self._values += count
        if self._values > _MOST_VALUES:
            raise ValueError(f"its arrays have over {_MOST_VALUES:,} values, the last is {shown}")
        if kind == _ARRAY:
            raise ValueError(f"{shown} is an array of arrays, which no tool writes")
        if kind == _STRING:
            for _ in range(count):
                self._skip(self._number(8, shown), shown)
        else:
            self._skip(count * self._width(kind, shown), shown)

    def _tensor(self, names: set[str]) -> tuple[str, int]:
        """Return the name of the next tensor, and where it ends among the tensors."""
        self._new(names, name := self._string("the name of a tensor"))
        shown = f"tensor {printable(name)}"
        dimensions = self._number(4, shown)
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"{shown} has {dimensions} dimensions, at most {_MOST_DIMENSIONS} are")
        shape = [self._number(8, shown) for _ in range(dimensions)]
        kind, begin = self._number(4, shown), self._number(8, shown)
        if kind not in self._sizes:
            raise ValueError(f"{shown} is of type {kind}, which the package gguf does not know")
        elements = 1
        for size in shape:
            elements *= size
        block, width = self._sizes[kind]
        if elements >= _MAX_ELEMENTS or (shape[0] if shape else 1) % block:
            raise ValueError(f"{shown} has shape {shape} in blocks of {block}")
        if begin % self._alignment:
            raise ValueError(f"{shown} begins at byte {begin}, no multiple of {self._alignment}")
        return name, begin + elements // block * width

    def _align(self, kind: int, content: bytes) -> None:
        self._alignment = int.from_bytes(content, "little")
        if kind != 4 or self._alignment == 0 or self._alignment & (self._alignment - 1):
            raise ValueError("general.alignment is no power of two in 32 bits")

    def _new(self, names: set[str], name: str) -> None:
        if name in names:
            raise ValueError(f"{printable(name)} is there twice")
        names.add(name)

    def _width(self, kind: int, what: str) -> int:
        if kind not in _BYTES:
            raise ValueError(f"{what} is of type {kind}, which does not exist")
        return _BYTES[kind]

    def _string(self, what: str) -> str:
        content = self._take(self._number(8, what), what)
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{what} is not UTF-8") from error

    def _number(self, size: int, what: str) -> int:
        return int.from_bytes(self._take(size, what), "little")

    def _take(self, size: int, what: str) -> bytes:
        self._check_room(size, what)
        return self._stream.read(size)

    def _skip(self, size: int, what: str) -> None:
        self._check_room(size, what)
        self._stream.seek(size, 1)

    def _check_room(self, size: int, what: str) -> None:
        left = self._size - self._stream.tell()
        if size > left:
            raise ValueError(f"{what} has {size} bytes, and only {left} are left in the file")
