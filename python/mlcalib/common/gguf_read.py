"""GGUF files, checked before anything loads them.

The layout is that of llama.cpp's ``docs/gguf.md``. The reader of the package gguf believes what a
file says: it counts through as many values as a number in it tells, whether they are there or not,
and keeps about a kilobyte for each token. This one knows where arrays are, and reads none.
"""

import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mlcalib.common.errors import printable
from mlcalib.common.optional import optional

_VALUES = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_PLAIN = {
    "F16": np.float16, "F32": np.float32, "F64": np.float64, "I8": np.int8, "I16": np.int16,
    "I32": np.int32, "I64": np.int64,
}  # fmt: skip
_MOST_VALUES = 2**21  # in arrays; of the largest vocabularies 2¹⁸ tokens, twice as many merges, …
_MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
_MAX_ELEMENTS = 2**63
_ALIGNMENTS = [2**power for power in range(32)]


@dataclass(frozen=True, eq=False)
class GgufTensor:
    """A tensor of a file.

    Attributes:
        name: in the file.
        tensor_type: a ``gguf.GGMLQuantizationType``.
        shape: as the file has it: the innermost dimension first.
        begin: the byte of the file at which it begins.
        file: the file.
    """

    name: str
    tensor_type: Any
    shape: tuple[int, ...]
    begin: int
    file: Path

    @property
    def data(self) -> NDArray[Any]:
        """A map of its values, or of the bytes of its blocks; outermost dimension first."""
        gguf = optional("gguf", "gguf", "reading a GGUF file")
        shape = tuple(reversed(self.shape))
        kind = _PLAIN.get(self.tensor_type.name)
        if kind is None:
            kind, shape = np.uint8, gguf.quant_shape_to_byte_shape(shape, self.tensor_type)
        if 0 in shape:
            return np.zeros(shape, kind)
        return np.memmap(self.file, kind, "r", self.begin, shape)


@dataclass(frozen=True, eq=False)
class GgufFile:
    """What the header of a file says.

    Attributes:
        values: name → value, but for arrays.
        arrays: name → (type of its values, how many, the byte at which they begin).
        tensors: in the order of the file.
        file: the file.
    """

    values: dict[str, Any]
    arrays: dict[str, tuple[int, int, int]]
    tensors: list[GgufTensor]
    file: Path

    def texts(self, name: str) -> tuple[str, ...]:
        """Return an array of texts.

        Raises:
            ValueError: it is no array of texts, or they are no UTF-8.
        """
        kind, count, begin = self.arrays[name]
        if kind != _STRING:
            raise ValueError(f"{name} is an array of type {kind}, expected text")
        with self.file.open("rb") as stream:
            stream.seek(begin)
            sizes = (int.from_bytes(stream.read(8), "little") for _ in range(count))
            return tuple(stream.read(size).decode() for size in sizes)


def read_gguf(file: Path) -> GgufFile:
    """Read the header of a file, and no tensors.

    Every count, length and place in the file is checked first: nothing is read, or counted, that
    the file is too short for. Names and single texts are valid UTF-8.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, or no GGUF file.
        ImportError: the package gguf is missing.
    """
    gguf = optional("gguf", "gguf", "reading a GGUF file")
    try:
        with file.open("rb") as stream:
            return _Header(stream, file, gguf).read()
    except ValueError as error:
        raise ValueError(f"{file} is not a usable GGUF file: {error}") from error


class _Header:
    """Goes through the header of a file.

    Args:
        stream: the file, opened.
        file: its path.
        gguf: the package, which knows the types of tensors.
    """

    def __init__(self, stream: BinaryIO, file: Path, gguf: Any) -> None:
        self._stream = stream
        self._file = file
        self._size = file.stat().st_size
        self._types = {kind.value: (kind, *pair) for kind, pair in gguf.GGML_QUANT_SIZES.items()}
        self._alignment: int = gguf.GGUF_DEFAULT_ALIGNMENT
        self._values: dict[str, Any] = {}
        self._arrays: dict[str, tuple[int, int, int]] = {}
        self._counted = 0  # values in arrays, so far

    def read(self) -> GgufFile:
        """Return what it says; raise a ValueError where the file is not so."""
        if self._take(4, "its mark") != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self._number(4, "its version")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}; 2 and 3 in little-endian order are read")
        tensors, values = self._number(8, "its counts"), self._number(8, "its counts")
        for _ in range(values):
            name = self._string("the name of a value")
            if name in self._values or name in self._arrays:
                raise ValueError(f"{printable(name)} is there twice")
            self._value(name)
        if (alignment := self._values.get("general.alignment", self._alignment)) not in _ALIGNMENTS:
            raise ValueError(f"general.alignment is {alignment!r}, which is no power of two")
        self._alignment = alignment
        found: dict[str, tuple[GgufTensor, int]] = {}
        for _ in range(tensors):
            tensor, size = self._tensor()
            if tensor.name in found:
                raise ValueError(f"tensor {printable(tensor.name)} is there twice")
            found[tensor.name] = tensor, size
        start = -(-self._stream.tell() // self._alignment) * self._alignment
        placed = [self._placed(start, *each) for each in found.values()]
        return GgufFile(self._values, self._arrays, placed, self._file)

    def _placed(self, start: int, tensor: GgufTensor, size: int) -> GgufTensor:
        """Return a tensor with its place in the file, not among the tensors."""
        begin = start + tensor.begin
        if begin + size > self._size:
            shown = printable(tensor.name)
            raise ValueError(
                f"tensor {shown} ends at byte {begin + size}, the file at {self._size}"
            )
        return replace(tensor, begin=begin)

    def _value(self, name: str) -> None:
        shown = printable(name)
        kind = self._number(4, f"the type of {shown}")
        if kind == _ARRAY:
            self._array(name)
        elif kind == _STRING:
            self._values[name] = self._string(shown)
        else:
            form = self._form(kind, shown)
            self._values[name] = struct.unpack(form, self._take(struct.calcsize(form), shown))[0]

    def _array(self, name: str) -> None:
        shown = printable(name)
        kind, count = self._number(4, shown), self._number(8, shown)
        self._arrays[name] = kind, count, self._stream.tell()
        self._counted += count
        if self._counted > _MOST_VALUES:
            raise ValueError(f"its arrays have over {_MOST_VALUES:,} values, the last is {shown}")
        if kind == _ARRAY:
            raise ValueError(f"{shown} is an array of arrays, which no tool writes")
        if kind == _STRING:
            for _ in range(count):
                self._skip(self._number(8, shown), shown)
        else:
            self._skip(count * struct.calcsize(self._form(kind, shown)), shown)

    def _tensor(self) -> tuple[GgufTensor, int]:
        """Return the next tensor, which begins where it does among the tensors, and its bytes."""
        name = self._string("the name of a tensor")
        shown = f"tensor {printable(name)}"
        dimensions = self._number(4, shown)
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"{shown} has {dimensions} dimensions, at most {_MOST_DIMENSIONS} are")
        shape = [self._number(8, shown) for _ in range(dimensions)]
        kind, begin = self._number(4, shown), self._number(8, shown)
        if kind not in self._types:
            raise ValueError(f"{shown} is of type {kind}, which the package gguf does not know")
        elements = 1
        for size in shape:
            elements *= size
        known, block, width = self._types[kind]
        if elements >= _MAX_ELEMENTS or (shape[0] if shape else 1) % block:
            raise ValueError(f"{shown} has shape {shape} in blocks of {block}")
        if begin % self._alignment:
            raise ValueError(f"{shown} begins at byte {begin}, no multiple of {self._alignment}")
        tensor = GgufTensor(name, known, tuple(shape), begin, self._file)
        return tensor, elements // block * width

    def _form(self, kind: int, what: str) -> str:
        if kind not in _VALUES:
            raise ValueError(f"{what} is of type {kind}, which does not exist")
        return _VALUES[kind]

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
