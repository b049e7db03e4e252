"""Importance matrices read back from files of both layouts."""

import struct

import core_data  # noqa: F401 (its hypothesis profile)
import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory import peak
from small_models import tiny_llama, tiny_model
from test_imatrix import calibration, read_dat

import mlcalib
from mlcalib.checkpoints.imatrix_file import Importance, ImportanceFile


def entries_equal(left, right):
    assert left.keys() == right.keys()
    for name, entry in left.items():
        for found, wanted in zip(entry, right[name], strict=True):
            if wanted is None:
                assert found is None
            else:
                np.testing.assert_array_equal(found, wanted)
                assert found.dtype == np.float32


@given(
    experts=st.integers(1, 3), channels=st.integers(1, 5), size=st.integers(1, 9),
    seed=st.integers(0, 99), sums=st.booleans(),
)  # fmt: skip
def test_what_a_gguf_file_holds_is_read(tmp_path_factory, experts, channels, size, seed, sums):
    generator = np.random.default_rng(seed)

    def draw(*shape):
        return generator.random(shape, np.float32)

    entries = {
        f"blk.{block}.ffn_up.weight": Importance(
            draw(experts, channels) if sums else None,
            draw(experts, channels),
            np.floor(draw(experts) * 9),
        )
        for block in range(2)
    }
    path = tmp_path_factory.mktemp("imatrix") / "out.gguf"
    ImportanceFile(entries, ("a", "b"), 7, size).save(path)
    found = ImportanceFile.load(path)
    assert (found.datasets, found.chunks, found.chunk_size) == (("a", "b"), 7, size)
    entries_equal(found.entries, entries)


@given(
    rows=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_what_a_dat_file_holds_is_read_and_written_again(tmp_path_factory, rows, seed):
    folder = tmp_path_factory.mktemp("imatrix")
    generator = np.random.default_rng(seed)
    parts = [struct.pack("<i", len(rows))]
    for number, (calls, channels) in enumerate(rows):
        name = f"blk.{number}.attn_q.weight".encode()
        values = (generator.random(channels, np.float32) * 2**-4).astype("<f4") * calls
        parts += [struct.pack("<i", len(name)), name, struct.pack("<ii", calls, channels)]
        parts.append(values.astype("<f4").tobytes())
    parts += [struct.pack("<ii", 5, 4), b"text"]
    (folder / "in.dat").write_bytes(b"".join(parts))
    found = ImportanceFile.load(folder / "in.dat")
    assert (found.chunks, found.chunk_size, found.datasets) == (5, 1, ("text",))
    means, _, _ = read_dat(folder / "in.dat", 512)
    for name, entry in found.entries.items():
        np.testing.assert_allclose(entry.squares[0] / entry.counts[0], means[name], rtol=1e-6)
    found.save(folder / "out.dat")
    again, _, _ = read_dat(folder / "out.dat", 512)
    for name, mean in means.items():
        np.testing.assert_allclose(again[name], mean, rtol=1e-6)
    found.save(folder / "out.gguf")
    entries_equal(ImportanceFile.load(folder / "out.gguf").entries, found.entries)


def test_a_matrix_goes_through_both_layouts(tmp_path):
    matrix = mlcalib.imatrix(tiny_llama(), calibration(), progress=False)
    matrix.save(tmp_path / "out.gguf")
    matrix.save(tmp_path / "out.dat")
    found, legacy = (ImportanceFile.load(tmp_path / f"out.{kind}") for kind in ("gguf", "dat"))
    entries_equal(found.entries, matrix.mix())
    assert legacy.datasets == found.datasets
    assert legacy.chunks == found.chunks
    for name, entry in found.entries.items():
        mean = entry.squares / entry.counts[:, None]
        other = legacy.entries[name]
        np.testing.assert_allclose(other.squares / other.counts[:, None], mean, rtol=1e-6)


def test_experts_of_a_legacy_file_cannot_be_told_apart(tmp_path):
    text = calibration(8)
    mlcalib.imatrix(tiny_model("mixtral"), text, progress=False).save(tmp_path / "out.dat")
    found = ImportanceFile.load(tmp_path / "out.dat")
    found.save(tmp_path / "again.dat")
    assert (tmp_path / "again.dat").read_bytes() == (tmp_path / "out.dat").read_bytes()
    with pytest.raises(ValueError, match="does not tell how many experts"):
        found.save(tmp_path / "again.gguf")


@pytest.mark.parametrize("layout", ["gguf", "dat"])
def test_damaged_files_are_named(layout, tmp_path):
    path = tmp_path / f"out.{layout}"
    mlcalib.imatrix(tiny_llama(), calibration(8), progress=False).save(path)
    data = path.read_bytes()
    for length in (0, 3, 30, len(data) // 2, len(data) - 2):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="not a usable importance matrix"):
            ImportanceFile.load(path)
    path.write_bytes(data[:4] + b"\xff\xff\xff\x7f" + data[8:])
    with pytest.raises(ValueError, match="not a usable importance matrix"):
        ImportanceFile.load(path)


def test_other_gguf_files_are_no_importance_matrices(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_type("model")
    writer.add_tensor("a.in_sum2", np.ones((1, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"general\.type is 'model', expected 'imatrix'"):
        ImportanceFile.load(tmp_path / "model.gguf")


def modern(path, chunk_size=1, kind=np.float32, datasets=("a",)):
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", list(datasets))
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", chunk_size)
    writer.add_tensor("a.in_sum2", np.ones((1, 4), kind))
    writer.add_tensor("a.counts", np.full((1, 1), 1e30, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 0}, "1 chunks of 0 tokens"),
        ({"kind": np.float16}, "not float32"),
        ({"datasets": [1, 2]}, "array of type"),
    ],
)
def test_other_values_are_told(options, message, tmp_path):
    modern(tmp_path / "a.gguf", **options)
    with pytest.raises(
        ValueError, match=rf"a\.gguf is not a usable importance matrix: .*{message}"
    ):
        ImportanceFile.load(tmp_path / "a.gguf")


def test_counts_that_the_legacy_layout_cannot_hold_are_told(tmp_path):
    modern(tmp_path / "a.gguf")
    found = ImportanceFile.load(tmp_path / "a.gguf")
    with pytest.raises(ValueError, match=r"a\.dat: the legacy layout has 32 bits"):
        found.save(tmp_path / "a.dat")
    assert not (tmp_path / "a.dat").exists()


def test_a_legacy_file_takes_twice_its_size(tmp_path):
    path = tmp_path / "a.dat"
    entry = Importance(None, np.ones((1, 2**20), np.float32), np.ones(1, np.float32))
    ImportanceFile({"a": entry}, (), 1, 1).save(path)
    taken, said = peak(lambda: ImportanceFile.load(path))
    assert not said
    assert taken < 2.5 * path.stat().st_size
    path.write_bytes(struct.pack("<iiB", 1, 1, 97) + struct.pack("<ii", 1, 2**29))
    taken, said = peak(lambda: ImportanceFile.load(path))
    assert "lies about a length" in said
    assert taken < 2**20
