"""Files written piece by piece are those that safetensors writes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mlcalib.common.safetensors_write import (
    file_pieces,
    tensor_piece,
    write_checkpoint_files,
    write_safetensors,
)

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]
TENSORS = st.dictionaries(
    st.text("abc.é", min_size=1, max_size=6),
    st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)),
    min_size=1,
    max_size=8,
)


def make(described):
    return {
        name: torch.randint(0, 2, shape).to(dtype) for name, (dtype, shape) in described.items()
    }


@settings(max_examples=50, deadline=None)
@given(TENSORS)
def test_the_same_bytes_as_safetensors(tmp_path_factory, described):
    folder = tmp_path_factory.mktemp("bytes")
    tensors = make(described)
    save_file(tensors, folder / "a", {"format": "pt"})
    pieces = {name: tensor_piece(tensor) for name, tensor in tensors.items()}
    write_safetensors(folder / "b", pieces, {"format": "pt"})
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
    # Taken from other files, in any order, it is the same file again.
    halves = list(pieces)[: len(pieces) // 2], list(pieces)[len(pieces) // 2 :]
    merged = {}
    for index, names in enumerate(halves):
        part = folder / f"part{index}"
        write_safetensors(part, {name: pieces[name] for name in names}, {"other": "x"})
        merged |= file_pieces(part)
    write_safetensors(folder / "c", merged, {"format": "pt"})
    assert (folder / "c").read_bytes() == (folder / "a").read_bytes()


def test_shards_hold_what_fits(tmp_path):
    tensors = {f"layer.{index}": torch.full((10,), float(index)) for index in range(5)}
    pieces = {name: tensor_piece(tensor) for name, tensor in tensors.items()}
    write_checkpoint_files(tmp_path, pieces, 80)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    loaded = {}
    for file in files:
        loaded |= load_file(tmp_path / file)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    write_safetensors(path, {"a": tensor_piece(torch.ones(2))}, {})
    before = path.read_bytes()

    def broken():
        yield b"1234"
        raise OSError(28, "No space left on device")

    piece = tensor_piece(torch.ones(2))
    object.__setattr__(piece, "chunks", broken)
    with pytest.raises(OSError, match=r"cannot write .*file: No space left on device"):
        write_safetensors(path, {"a": piece}, {})
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_an_unknown_dtype_is_named():
    with pytest.raises(ValueError, match="complex64"):
        tensor_piece(torch.ones(2, dtype=torch.complex64))
