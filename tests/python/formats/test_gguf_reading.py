"""GGUF files read back as checkpoints: mlcalib's own, and those of gguf's own quantizer."""

import copy
import json

import gguf
import numpy as np
import pytest
import torch
from foreign_reader import from_transformers
from small_models import tiny_llama
from test_checkpoints import quantize
from test_gguf import SPECS, logits, small, written
from test_packed import assert_same_logits, dequantized, packed_names
from test_packed_formats import same
from transformers import AutoModelForCausalLM, AutoTokenizer

import mlcalib
from mlcalib.checkpoints import load_quantized, open_checkpoint

FAMILIES = ["llama", "llama-bias", "mistral", "qwen2", "qwen3"]


def all_same(left, right):
    return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)


@pytest.mark.parametrize("kind", sorted(SPECS))
@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_written_is_read(name, kind, tmp_path):
    model = small(name)
    written(model, kind, tmp_path / "out")
    checkpoint = open_checkpoint(tmp_path / "out")
    found = {each: checkpoint.linear(each) for each in checkpoint.linears}
    assert all_same(found, quantize(model, SPECS[kind]))
    state = model.state_dict()
    assert {name.removesuffix(".weight") for name in state} == {
        name.removesuffix(".weight") for name in [*found, *checkpoint.others]
    }
    for each in checkpoint.others:
        assert torch.equal(checkpoint.tensor(each), state[each])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tied", [True, False])
def test_the_dtype_is_that_of_the_matrices(dtype, tied, tmp_path):
    written(small("llama", dtype, tied=tied), "Q4_0", tmp_path / "out")
    checkpoint = open_checkpoint(tmp_path / "out/model.gguf")
    assert checkpoint.dtype == dtype
    assert checkpoint.config["tie_word_embeddings"] == tied
    assert ("lm_head.weight" in checkpoint.others) == (not tied)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize("name", FAMILIES)
def test_loaded_on_packed_weights(name, kind, tmp_path):
    model = small(name)
    written(model, kind, tmp_path / "out")
    loaded = mlcalib.load(tmp_path / "out")
    quantized = quantize(model, SPECS[kind])
    assert packed_names(loaded) == quantized.keys()
    expected = dequantized(model, quantized)
    if name == "mistral":  # its window is the file's context
        expected.config.sliding_window = None
    difference = (logits(loaded) - logits(expected)).abs().max()
    assert difference <= 1e-5 * logits(expected).abs().max()


def foreign_file(path, model, kinds):
    """A file as llama-quantize writes it: scales of either sign, more bits for what is outside.

    Args:
        path: of a file of mlcalib's, which gives all but the tensors.
        model: the weights.
        kinds: part of a tensor's name → type; float32 otherwise.
    """
    reader = gguf.GGUFReader(path)
    out = path.parent.with_name("foreign.gguf")
    writer = gguf.GGUFWriter(out, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind, *parts = field.types
            sub_type = parts[-1] if parts else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=sub_type)
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        saved, values = names.get_name(name, try_suffixes=(".weight", ".bias")), tensor.numpy()
        if (count := heads.get(name.split(".")[-2])) is not None:
            values = values.reshape(count, 2, -1, values.shape[1]).swapaxes(1, 2)
            values = values.reshape(tensor.shape)
        kind = next((kinds[part] for part in kinds if part in saved), None)
        if kind is None or values.ndim == 1:
            writer.add_tensor(saved, values)
        else:
            kind = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(saved, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.fixture
def foreign(tmp_path):
    def foreign(kinds, **options):
        model = tiny_llama(vocabulary=400, hidden=64, intermediate=128, **options)
        own = tmp_path / "-".join(["own", *kinds.values()])
        written(model, "Q4_0", own)
        return foreign_file(own / "model.gguf", model, kinds)

    return foreign


@torch.no_grad()
def reference(file):
    """Logits of transformers' own dequantization."""
    path = {"gguf_file": file.name, "dtype": torch.float32}
    return logits(AutoModelForCausalLM.from_pretrained(file.parent, **path))


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_files_of_other_tools_keep_their_codes(kind, foreign, tmp_path):
    file = foreign({"blk": kind, "token_embd": "Q8_0", "output.": "Q8_0"})
    checkpoint = open_checkpoint(file)
    assert len(checkpoint.linears) == 15  # the head too
    found = load_quantized(file)
    if kind == "Q4_0":  # whose largest weight has code 0, whatever its sign
        assert any((linear.grid.scale < 0).any() for linear in found.values())
    for form in ("compressed-tensors", "gptq", "gptq-v2", "gguf", "awq"):
        if form == "awq":  # 4 bits and one grid
            with pytest.raises(ValueError, match="awq holds"):
                mlcalib.convert(file, tmp_path / form, form)
            continue
        mlcalib.convert(file, tmp_path / form, form)
        assert all_same_codes(load_quantized(tmp_path / form), found)
        assert mlcalib.check(tmp_path / form).ok
    expected = reference(file)
    assert torch.equal(logits(from_transformers(tmp_path / "compressed-tensors")), expected)
    for path in (file, tmp_path / "gptq"):
        loaded = mlcalib.load(path, "float32")
        assert (logits(loaded) - expected).abs().max() <= 1e-5 * expected.abs().max()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "gptq")
    again = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert tokenizer("Soko hufunguliwa").input_ids == again("Soko hufunguliwa").input_ids


def all_same_codes(left, right):
    """Whatever dtype the scales are in."""
    return left.keys() == right.keys() and all(
        torch.equal(left[name].codes, right[name].codes)
        and torch.equal(left[name].grid.scale, right[name].grid.scale)
        and torch.equal(left[name].grid.zero, right[name].grid.zero)
        for name in left
    )


def test_what_is_outside_of_blocks_may_be_in_any_type(foreign):
    file = foreign({"blk": "Q4_0", "token_embd": "Q5_0", "output.": "Q5_1"})
    checkpoint = open_checkpoint(file)
    assert len(checkpoint.linears) == 14
    assert checkpoint.dtype == torch.float32
    expected = reference(file)
    difference = (logits(mlcalib.load(file)) - expected).abs().max()
    assert difference <= 1e-5 * expected.abs().max()


def test_codes_that_no_grid_holds_are_refused(foreign, tmp_path):
    file = foreign({"blk": "MXFP4"})
    with pytest.raises(ValueError, match=r"layers\.0\..* is in blocks of MXFP4; the codes of Q4_0"):
        open_checkpoint(file)
    file = foreign({"blk": "Q4_1"})
    with pytest.raises(ValueError, match=r"_proj: a block of Q4_1 has a minimum that is no"):
        mlcalib.convert(file, tmp_path / "out", "gptq")
    assert not (tmp_path / "out").exists()


def test_a_file_without_codes_is_no_checkpoint(foreign):
    file = foreign({})
    with pytest.raises(ValueError, match="no quantized linears"):
        open_checkpoint(file)


def test_scaled_positions_and_other_architectures_are_refused(foreign, tmp_path):
    model = small("llama")
    model.config.rope_parameters = {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    }  # fmt: skip
    written(model, "Q4_0", tmp_path / "scaled")
    with pytest.raises(NotImplementedError, match=r"scales positions \(llama3\)"):
        open_checkpoint(tmp_path / "scaled")
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "gemma2")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(NotImplementedError, match="GGUF files of 'gemma2' are not read yet"):
        open_checkpoint(tmp_path / "other.gguf")


def test_linear_scaling_of_positions_is_read(tmp_path):
    model = small("llama")
    rope = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
    model.config.rope_parameters = rope
    model = type(model)(copy.deepcopy(model.config)).eval()
    written(model, "Q8_0", tmp_path / "out")
    assert open_checkpoint(tmp_path / "out").config["rope_parameters"] == rope
    expected = dequantized(model, quantize(model, SPECS["Q8_0"]))
    assert_same_logits(mlcalib.load(tmp_path / "out"), expected)


def test_scales_that_are_not_finite_are_named(tmp_path):
    written(small("llama"), "Q4_0", tmp_path / "out")
    path = tmp_path / "out/model.gguf"
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.ffn_up.weight")
    data = bytearray(path.read_bytes())
    data[tensor.data_offset + 18 : tensor.data_offset + 20] = b"\x00\x7c"  # infinity
    path.write_bytes(data)
    (finding,) = mlcalib.check(path).findings
    assert finding.message == "blk.1.ffn_up.weight has values or scales that are not finite"


def test_a_converted_checkpoint_keeps_its_record(tmp_path):
    written(small("llama"), "Q4_0", tmp_path / "in")
    mlcalib.convert(tmp_path / "in", tmp_path / "out", "gptq", dtype="float16")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["dtype"] == "float16"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert json.loads((tmp_path / "out/mlcalib.json").read_text()) == {"a": 1}


def test_one_file_of_several_has_to_be_named(tmp_path):
    written(small("llama"), "Q4_0", tmp_path / "out")
    (tmp_path / "out/other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"2 GGUF files, model.gguf, other.gguf; give the one"):
        open_checkpoint(tmp_path / "out")
    (finding,) = mlcalib.check(tmp_path / "out").findings
    assert "give the one" in finding.message
    assert mlcalib.check(tmp_path / "out/model.gguf").ok
