"""GGUF files, whole and damaged."""

import struct

import pytest
from small_models import tiny_llama
from test_checking import errors
from test_gguf import SPECS, written

import mlcalib


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
