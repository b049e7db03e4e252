"""GGUF headers that lie: bytes made here, each wrong in one thing."""

import struct

import gguf  # noqa: F401 (whose import takes memory too)
import pytest
from memory import peak

from mlcalib.common.gguf_read import read_gguf

U8, U32, TEXT, ARRAY, U64 = 0, 4, 8, 9, 10
F32, Q4_0 = 0, 2


def text(content):
    raw = content if isinstance(content, bytes) else content.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(name, kind, content):
    return text(name) + struct.pack("<I", kind) + content


def array(kind, count, content=b""):
    return struct.pack("<IQ", kind, count) + content


def tensor(name="a", shape=(4,), kind=F32, begin=0):
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, begin)


def file_of(values=(), tensors=(), data=b"", version=3, counts=None):
    header = b"GGUF" + struct.pack("<I", version)
    header += struct.pack("<QQ", *(counts or (len(tensors), len(values))))
    header += b"".join([*values, *tensors])
    return header + bytes(-len(header) % 32) + data


ONE = value("general.architecture", TEXT, text("llama"))
LIES = {
    "begin with GGUF": b"GGML" + bytes(40),
    "version is 1": file_of(version=1),
    "version is 50331648": file_of(version=3 << 24),
    "its counts has 8 bytes, and only 0": file_of()[:16],
    "tensor  has 4 bytes, and only 0": file_of(counts=(2**60, 0)),
    "the type of  has 4 bytes, and only 0": file_of(counts=(0, 2**60)),
    "a has 1152921504606846976 bytes": file_of([value("a", TEXT, struct.pack("<Q", 2**60))]),
    "over 2,097,152 values": file_of([value("a", ARRAY, array(U8, 2**60))]),
    "a has 1000000 bytes": file_of([value("a", ARRAY, array(U8, 10**6))]),
    "a has 8 bytes, and only": file_of([value("a", ARRAY, array(TEXT, 10**6))]),
    "array of arrays": file_of([value("a", ARRAY, array(ARRAY, 1) * 2000)]),
    "a is of type 77": file_of([value("a", 77, bytes(8))]),
    "a is of type 13": file_of([value("a", ARRAY, array(13, 1, bytes(8)))]),
    "is there twice": file_of([ONE, ONE]),
    "value is not UTF-8": file_of([value(b"\xff", U32, bytes(4))]),
    "a is not UTF-8": file_of([value("a", TEXT, text(b"\xff"))]),
    "tensor a is there twice": file_of([], [tensor(), tensor()], bytes(16)),
    "has 4294967295 dimensions": file_of([], [text("a") + b"\xff" * 4]),
    "type 99, which": file_of([], [tensor(kind=99)], bytes(16)),
    "shape": file_of([], [tensor(shape=(2**40, 2**40))], bytes(16)),
    "in blocks of 32": file_of([], [tensor(shape=(33,), kind=Q4_0)], bytes(64)),
    "begins at byte 7": file_of([], [tensor(begin=7)], bytes(64)),
    "tensor a ends at": file_of([], [tensor(shape=(2**40,))], bytes(16)),
    "the file at 80": file_of([], [tensor(begin=2**63)], bytes(16)),
    "alignment is 0": file_of([value("general.alignment", U32, bytes(4))]),
    "alignment is 3": file_of([value("general.alignment", U32, struct.pack("<I", 3))]),
    "alignment is 'x'": file_of([value("general.alignment", TEXT, text("x"))]),
}


@pytest.mark.parametrize("message", LIES)
def test_a_file_that_lies_is_refused_before_memory_is_taken(message, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(LIES[message])
    taken, said = peak(lambda: read_gguf(path))
    assert said.startswith(f"{path} is not a usable GGUF file: ")
    assert message in said
    assert taken < 2**20


def test_a_file_that_does_not_is_read(tmp_path):
    path = tmp_path / "model.gguf"
    values = [
        ONE,
        value("n", U64, struct.pack("<Q", 7)),
        value("names", ARRAY, array(TEXT, 2, text("a") + text("bé"))),
        value("numbers", ARRAY, array(U8, 3, bytes(3))),
        value("general.alignment", U32, struct.pack("<I", 32)),
    ]
    tensors = [tensor(shape=(2, 3)), tensor("b", (32, 1), Q4_0, begin=32), tensor("c", (0, 4))]
    numbers = struct.pack("<6f", *range(6))
    path.write_bytes(file_of(values, tensors, numbers + bytes(8) + bytes(range(18))))
    found = read_gguf(path)
    assert found.values == {"general.architecture": "llama", "n": 7, "general.alignment": 32}
    assert found.texts("names") == ("a", "bé")
    assert [each.data.shape for each in found.tensors] == [(3, 2), (1, 18), (4, 0)]
    assert found.tensors[0].data.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert found.tensors[1].data.tolist() == [list(range(18))]
    with pytest.raises(ValueError, match="numbers is an array of type 0"):
        found.texts("numbers")


def test_arrays_are_not_kept(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(file_of([value("a", ARRAY, array(TEXT, 2**16, text("token") * 2**16))]))
    taken, said = peak(lambda: read_gguf(path))
    assert not said
    assert taken < path.stat().st_size
