"""GGUF files, whole and damaged."""

import struct

import pytest
from small_models import tiny_llama
from test_checking import errors
from test_gguf import SPECS, written

import mlcalib
from mlcalib.checkpoints import open_checkpoint


@pytest.mark.parametrize("kind", sorted(SPECS))
def test_gguf_files(kind, tmp_path):
    written(tiny_llama(vocabulary=400), kind, tmp_path / "out")
    for path in (tmp_path / "out", tmp_path / "out/model.gguf"):
        report = mlcalib.check(path)
        assert report.findings == ()
        assert report.linears == 14
        assert report.readers["llama.cpp"].loads


@pytest.mark.parametrize("length", [0, 3, 20, 1000, 20_000])
def test_truncated_gguf_files(length, tmp_path):
    written(tiny_llama(vocabulary=400), "Q4_0", tmp_path / "out")
    path = tmp_path / "out/model.gguf"
    data = path.read_bytes()
    assert length < len(data)
    path.write_bytes(data[:length])
    assert "not a usable GGUF file" in errors(path)


def test_a_gguf_file_that_lies_about_its_counts(tmp_path):
    written(tiny_llama(vocabulary=400), "Q4_0", tmp_path / "out")
    path = tmp_path / "out/model.gguf"
    data = path.read_bytes()
    for at in (8, 16):  # tensors, values
        path.write_bytes(data[:at] + struct.pack("<Q", 2**60) + data[at + 8 :])
        assert "not a usable GGUF file" in errors(path)


def renamed(data, old, new):
    """Change a name in a file, which is as long as the old one."""
    assert len(old) == len(new)
    assert old in data
    return data.replace(old, new)


def after(data, name, content):
    """Put other bytes behind the name and the type of a value."""
    at = data.index(name) + len(name) + 4
    return data[:at] + content + data[at + len(content) :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda data: after(data, b"llama.block_count", b"\xff\xff\xff\x7f"),
            "block_count 2147483647",
        ),
        (lambda data: renamed(data, b"blk.1.", b"blk.x."), "block_count 2, but tensors of 1 block"),
        (lambda data: after(data, b"embedding_length", b"\x20\0\0\0"), "of shape"),
        (lambda data: after(data, b"head_count", bytes(4)), "transformers cannot make a model"),
    ],
)
def test_values_that_fit_no_tensors_are_told(change, message, tmp_path):
    written(tiny_llama(vocabulary=400), "Q4_0", tmp_path / "out")
    path = tmp_path / "out/model.gguf"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        open_checkpoint(path)
    assert str(path) in str(error.value)


def test_an_array_in_place_of_the_architecture_is_told(tmp_path):
    name = b"general.architecture"
    kind = struct.pack("<IIQ", 9, 4, 1) + bytes(4)  # an array of one number
    header = b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, len(name)) + name + kind
    (tmp_path / "model.gguf").write_bytes(header + bytes(64))
    with pytest.raises(NotImplementedError, match=r"model\.gguf: GGUF files of None"):
        open_checkpoint(tmp_path / "model.gguf")
    assert "has architecture None" in str(mlcalib.check(tmp_path / "model.gguf"))
