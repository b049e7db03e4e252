import json
import struct

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from memory import peak
from safetensors import SafetensorError, deserialize
from safetensors.torch import save, save_file

from mlcalib.checkpoints import load_quantized
from mlcalib.common.safetensors_read import data_start, read_header, validate_folder

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.ones(5, dtype=torch.bfloat16),
    "c": torch.zeros(0, 4),
    "d": torch.tensor(3),
}


def file_of(header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def write(path, content):
    path.write_bytes(content)
    return path


def test_a_header_lists_the_tensors(tmp_path):
    save_file(TENSORS, tmp_path / "x.safetensors", {"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    assert {name: entry.shape for name, entry in header.items()} == {
        name: tuple(tensor.shape) for name, tensor in TENSORS.items()
    }
    assert header["b"].dtype == "BF16"
    assert header["b"].end - header["b"].begin == 10


def test_the_header_of_very_many_tensors_takes_little_memory(tmp_path):
    header = {
        f"model.layers.{n}.self_attn.q_proj.weight": entry("BF16", (2, 4), (16 * n, 16 * n + 16))
        for n in range(10**4)
    }
    path = write(tmp_path / "x.safetensors", file_of(header, bytes(16 * 10**4)))
    taken, said = peak(lambda: read_header(path))
    assert not said
    assert taken < 4 * data_start(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "first 8 bytes"),
        (b"abc", "first 8 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(100), "first 8 bytes"),
        (b"<!DOCTYPE html><html>login</html>", "first 8 bytes"),
        (file_of(b"{}", length=2**63), "first 8 bytes"),
        (file_of(b"{}", length=3), "first 8 bytes"),
        (file_of(b"{]"), "not a JSON object"),
        (file_of(b"\xff\xff"), "not a JSON object"),
        (file_of(b"{} {}"), "Extra data"),
        (file_of(b'{"__metadata__": {},}'), "not a JSON object"),
        (file_of(b'{"__metadata__": {}'), "Expecting ','"),
        (file_of(b'{"__metadata__" {}}'), "Expecting ':'"),
        (file_of(b"{1: {}}"), "Expecting a name"),
        (file_of(b"[" * 10**6), "not a JSON object"),
        (file_of([1]), "not a JSON object"),
        (file_of({"a": 1}), "tensor a lacks"),
        (file_of({"a": {"dtype": "F32", "shape": [2]}}), "tensor a lacks"),
        (file_of({"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}), "tensor a lacks"),
        (file_of({"a": entry(offsets=(0, 4, 8))}), "tensor a lacks"),
        (file_of({"a": entry(shape=(-2,))}), "not a count"),
        (file_of({"a": entry(shape=(2.0,))}), "not a count"),
        (file_of({"a": entry(shape=(True,))}), "not a count"),
        (file_of({"a": entry(offsets=(8, 0))}, bytes(8)), "does not fill"),
        (file_of({"a": entry(dtype="F33")}, bytes(8)), "unknown dtype 'F33'"),
        (file_of({"a": entry(dtype=["F32"])}, bytes(8)), "unknown dtype"),
        (file_of({"a": entry(shape=(3,))}, bytes(8)), "does not fill"),
        (file_of({"a": entry()}, bytes(7)), "take 8 bytes, the file has 7"),
        (file_of({"a": entry()}, bytes(9)), "take 8 bytes, the file has 9"),
        (file_of({"a": entry(), "b": entry()}, bytes(8)), "tensor b starts at byte 0, not at 8"),
        (file_of({"a": entry(offsets=(8, 16))}, bytes(16)), "tensor a starts at byte 8, not at 0"),
        (file_of({"a": entry(shape=(2**62,), offsets=(0, 2**64))}), "take 18446744073709551616"),
        (file_of({"a": entry(shape=(2**62,) * 9**5)}), "does not fill"),
        (file_of(b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}"), "nested more than 100 levels"),
        (file_of(b'{"a": ' + b"9" * 5000 + b"}"), "not a JSON object"),
        (file_of({"\ud800": 1}), r"tensor \\ud800 lacks"),
        (file_of({"a": entry(dtype="\ud800" * 999)}, bytes(8)), "unknown dtype"),
        (file_of({"__metadata__": {"a": 1}}), "the library safetensors refuses it"),
        (file_of({"__metadata__": [1], "a": entry()}, bytes(8)), "safetensors refuses it"),
    ],
)
def test_truncated_and_foreign_files_are_refused(tmp_path, content, message):
    path = write(tmp_path / "x.safetensors", content)
    with pytest.raises(ValueError, match=message) as error:
        read_header(path)
    assert str(path) in str(error.value)
    assert len(str(error.value).encode()) < 1000  # and can be printed
    assert "Download or convert it again" in str(error.value)


CONTENT = save(TENSORS, {"format": "pt"})


@given(st.integers(0, len(CONTENT) - 1), st.binary(max_size=9))
@example(len(CONTENT) - 1, b"")
def test_what_is_accepted_safetensors_can_load(tmp_path_factory, position, patch):
    content = CONTENT[:position] + patch + CONTENT[position + len(patch) :] * bool(patch)
    path = write(tmp_path_factory.getbasetemp() / "fuzzed.safetensors", content)
    try:
        names = set(read_header(path))
    except ValueError:
        return
    try:
        assert {name for name, _ in deserialize(content)} == names
    except SafetensorError as error:
        pytest.fail(f"safetensors refuses {content[:200]!r}: {error}")


def write_shards(folder, weight_map=None):
    save_file({"a": TENSORS["a"]}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": TENSORS["b"]}, folder / "model-00002-of-00002.safetensors")
    if weight_map is None:
        weight_map = {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        }
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_a_folder_tells_the_file_of_each_tensor(tmp_path):
    write_shards(tmp_path)
    assert {name: file.name for name, file in validate_folder(tmp_path).items()} == {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
    }
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert validate_folder(str(tmp_path)) == dict.fromkeys(TENSORS, tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({}, "no weight_map"),
        ([], "no weight_map"),
        ({"a": "../model-00001-of-00002.safetensors"}, "not a safetensors file beside it"),
        ({"a": "/etc/passwd"}, "not a safetensors file beside it"),
        ({"a": "pytorch_model.bin"}, "not a safetensors file beside it"),
        ({"a": 3}, "not a safetensors file beside it"),
        ({"a": "model-00003-of-00003.safetensors"}, "lacks model-00003"),
        ({"c": "model-00001-of-00002.safetensors"}, "lacks c, which"),
        ({"\ud800": "model-00001-of-00002.safetensors"}, r"lacks \\ud800, which"),
        ({"a": "\ud800.safetensors"}, r"lacks \\ud800.safetensors"),
        ({"a": "\ud800"}, "not a safetensors file beside it"),
    ],
)
def test_an_index_that_does_not_hold_is_refused(tmp_path, weight_map, message):
    write_shards(tmp_path, weight_map)
    with pytest.raises(ValueError, match=message):
        validate_folder(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00", "[" * 10**6, '{"a": ' * 500 + "}" * 500])
def test_an_index_that_is_not_json_is_refused(tmp_path, text):
    write_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json"):
        validate_folder(tmp_path)


def test_a_truncated_shard_is_named(tmp_path):
    write_shards(tmp_path)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors is not a usable"):
        validate_folder(tmp_path)


def test_pickles_are_not_opened(tmp_path):
    write(tmp_path / "pytorch_model.bin", b"cos\nsystem\n")
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin, a pickle.*convert it to safetensors"
    ):
        validate_folder(tmp_path)


def test_a_config_cannot_redirect_to_a_pickle(tmp_path):
    write(tmp_path / "weights.bin", b"cos\nsystem\n")
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": "weights.bin"}))
    with pytest.raises(ValueError, match="remove its transformers_weights"):
        validate_folder(tmp_path)


def test_folders_without_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor"):
        validate_folder(tmp_path)
    with pytest.raises(ValueError, match="not a folder"):
        validate_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "no quantization_config"),
        ({"quantization_config": "awq"}, "no quantization_config"),
        ({"quantization_config": {"quant_method": "nowhere"}}, "nowhere"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "dtype None"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors"}, "dtype": "float32"},
            "does not describe groups",
        ),
    ],
)
def test_checkpoints_that_are_not_quantized_are_refused(tmp_path, config, message):
    save_file(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        load_quantized(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_quantized(tmp_path)
