"""From one format into another and back: the same codes, scales and zero points."""

import json

import gguf
import pytest
import torch
from foreign_reader import from_transformers
from safetensors.torch import load_file, save_file
from small_models import tiny_llama
from small_tokenizer import make_tokenizer
from test_checkpoints import expected_logits, logits, quantize
from test_packed_formats import same
from transformers import AutoModelForCausalLM

import mlcalib
from mlcalib._core import GridSpec
from mlcalib.checkpoints import load_quantized, save_checkpoint, save_tensors
from mlcalib.common.safetensors_read import validate_folder
from mlcalib.formats import formats

HALF = torch.float16


def saved(folder, form, spec, model=None, **options):
    model = model or tiny_llama(dtype=HALF)
    quantized = quantize(model, spec, **options)
    record = {"recipe": {"format": form}}
    save_checkpoint(model, make_tokenizer(), folder, formats.get(form)(), quantized, record)
    return model, quantized


def all_same(left, right):
    return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)


PACKED = ["compressed-tensors", "gptq", "gptq-v2", "awq"]


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("size", [32, -1])
@pytest.mark.parametrize("source", PACKED)
def test_codes_are_the_same_in_every_format(source, size, symmetric, tmp_path):
    spec = GridSpec(4, size, symmetric, scale_dtype=HALF)
    _, quantized = saved(
        tmp_path / "in", source, spec, leave_out=("lm_head", "model.layers.0.mlp.up_proj")
    )
    before = load_file(tmp_path / "in/model.safetensors")
    for target in PACKED:
        mlcalib.convert(tmp_path / "in", tmp_path / target, target)
        assert all_same(load_quantized(tmp_path / target), quantized)
        mlcalib.convert(tmp_path / target, tmp_path / f"{target} back", source)
        after = load_file(tmp_path / f"{target} back/model.safetensors")
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
        config, again = (
            json.loads((tmp_path / name / "config.json").read_text())
            for name in ("in", f"{target} back")
        )
        for section in (config["quantization_config"], again["quantization_config"]):
            for key in ("ignore", "modules_to_not_convert"):
                section[key] = sorted(section.get(key) or [])
        if symmetric or source == "awq" or "awq" not in target:
            # An AWQ file cannot tell that zero points are fixed, but all of them say it.
            assert again == config
        assert (tmp_path / target / "tokenizer.json").is_file()
        assert json.loads((tmp_path / target / "mlcalib.json").read_text()) == {
            "recipe": {"format": target}
        }


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_what_can_hold_other_bits_does(bits, tmp_path):
    spec = GridSpec(bits, 32, True, scale_dtype=HALF)
    _, quantized = saved(tmp_path / "in", "gptq", spec)
    mlcalib.convert(tmp_path / "in", tmp_path / "v2", "gptq-v2")
    assert all_same(load_quantized(tmp_path / "v2"), quantized)
    with pytest.raises(ValueError, match=f"4 bits, not {bits}"):
        mlcalib.convert(tmp_path / "in", tmp_path / "awq", "awq")
    mlcalib.convert(tmp_path / "in", tmp_path / "ct", "compressed-tensors")
    assert all_same(load_quantized(tmp_path / "ct"), quantized)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "v2", "ct"}


def test_transformers_computes_the_same_from_what_was_converted(tmp_path):
    model, quantized = saved(tmp_path / "in", "awq", GridSpec(4, 32, scale_dtype=HALF))
    mlcalib.convert(tmp_path / "in", tmp_path / "out", "compressed-tensors")
    loaded = from_transformers(tmp_path / "out")
    assert torch.equal(logits(loaded), expected_logits(model, quantized))


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_go_into_gguf(bits, tmp_path):
    spec = GridSpec(bits, 32, True, scale_dtype=HALF)
    model, quantized = saved(
        tmp_path / "in", "gptq", spec, tiny_llama(dtype=HALF, vocabulary=400, tied=True)
    )
    mlcalib.convert(tmp_path / "in", tmp_path / "out", "gguf")
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file="model.gguf", dtype=HALF
    )
    assert torch.equal(logits(loaded), expected_logits(model, quantized))
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "out/model.gguf").tensors}
    assert "output.weight" not in names


def test_scales_that_would_be_rounded_are_refused(tmp_path):
    """As in GPTQModel's checkpoints of a bfloat16 model, whose scales are float16."""
    saved(tmp_path / "in", "gptq", GridSpec(4, 32, True, scale_dtype=HALF))
    config = json.loads((tmp_path / "in/config.json").read_text())
    config["dtype"] = "bfloat16"
    (tmp_path / "in/config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"float16 scales are not exact in torch\.bfloat16.*--dtype float16"
    ):
        mlcalib.convert(tmp_path / "in", tmp_path / "out", "compressed-tensors")
    mlcalib.convert(tmp_path / "in", tmp_path / "awq", "awq")  # whose scales may be float16
    mlcalib.convert(tmp_path / "in", tmp_path / "out", "compressed-tensors", dtype="float16")
    assert all_same(load_quantized(tmp_path / "out"), load_quantized(tmp_path / "in"))
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float16"


@pytest.mark.parametrize("form", [*PACKED, "compressed-tensors-int8", "gguf"])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_dense_is_what_readers_compute(form, dtype, tmp_path):
    bits, size = (8, -1) if form == "compressed-tensors-int8" else (4, 32)
    symmetric = form in ("compressed-tensors-int8", "gguf")
    spec = GridSpec(bits, size, symmetric, scale_dtype=HALF)
    _, quantized = saved(tmp_path / "in", form, spec, tiny_llama(vocabulary=384, dtype=HALF))
    mlcalib.convert(tmp_path / "in", tmp_path / "out", "dense", dtype=dtype)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == ("float16" if dtype == "auto" else dtype)
    state = load_file(tmp_path / "out/model.safetensors")
    assert not [name for name in state if name.endswith(("scales", "qweight", "weight_scale"))]
    for name, linear in quantized.items():
        expected = linear.dequantize().to(HALF if dtype == "auto" else torch.bfloat16)
        assert torch.equal(state[f"{name}.weight"], expected)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded(torch.arange(4)[None]).logits.isfinite().all()
    report = mlcalib.check(tmp_path / "out")
    assert (report.method, report.status) == ("", 0)
    assert json.loads((tmp_path / "out/mlcalib.json").read_text())["recipe"]["format"] == "dense"


def test_what_cannot_be_converted_is_refused(tmp_path):
    saved(tmp_path / "in", "gptq", GridSpec(4, 32, True, scale_dtype=HALF))
    with pytest.raises(ValueError, match="expected one of: auto"):
        mlcalib.convert(tmp_path / "in", tmp_path / "out", "awq", dtype="int8")
    tiny_llama().save_pretrained(tmp_path / "float")
    with pytest.raises(ValueError, match="no quantization_config"):
        mlcalib.convert(tmp_path / "float", tmp_path / "out", "awq")
    with pytest.raises(FileExistsError):
        mlcalib.convert(tmp_path / "in", tmp_path / "in", "awq")


def test_a_grid_that_does_not_fit_gguf_is_refused(tmp_path):
    saved(tmp_path / "in", "gptq", GridSpec(4, 64, True, scale_dtype=HALF))
    with pytest.raises(ValueError, match="group_size 64"):
        mlcalib.convert(tmp_path / "in", tmp_path / "out", "gguf")


def test_all_files_but_weights_and_settings_are_copied(tmp_path):
    saved(tmp_path / "in", "gptq", GridSpec(4, 32, True, scale_dtype=HALF))
    for name in ("modeling_x.py", "extra.bin", "README.md", "LICENSE"):
        (tmp_path / "in" / name).write_text("x")
    mlcalib.convert(tmp_path / "in", tmp_path / "out", "awq")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"modeling_x.py", "README.md", "LICENSE"} <= files
    assert not files & {"extra.bin", "quantize_config.json"}


@pytest.mark.parametrize("limit", [100, 250, 10**6])
def test_shards_hold_all_tensors(limit, tmp_path):
    tensors = {str(number): torch.full((10, 3), float(number)) for number in range(5)}
    tensors["big"] = torch.ones(100)
    save_tensors(iter(tensors.items()), tmp_path, limit)
    places = validate_folder(tmp_path)
    assert places.keys() == tensors.keys()
    assert (len(set(places.values())) == 1) == (limit == 10**6)
    for name, tensor in tensors.items():
        assert torch.equal(load_file(places[name])[name], tensor)
    assert not list(tmp_path.glob("shard-*"))


def test_the_command_converts(tmp_path):
    from typer.testing import CliRunner

    from mlcalib.cli import app

    saved(tmp_path / "in", "gptq", GridSpec(4, 32, True, scale_dtype=HALF))
    arguments = ["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--format", "awq"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "written to" in result.output
    assert all_same(load_quantized(tmp_path / "out"), load_quantized(tmp_path / "in"))


def test_shards_of_a_source_are_read(tmp_path):
    _, quantized = saved(tmp_path / "in", "gptq", GridSpec(4, 32, True, scale_dtype=HALF))
    tensors = load_file(tmp_path / "in/model.safetensors")
    (tmp_path / "in/model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, tmp_path / "in" / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "in/model.safetensors.index.json").write_text(json.dumps(index))
    mlcalib.convert(tmp_path / "in", tmp_path / "out", "awq")
    assert all_same(load_quantized(tmp_path / "out"), quantized)
