"""Whole checkpoint folders, read by transformers itself."""

import copy
import json

import pytest
import torch
from foreign_reader import from_transformers
from safetensors import safe_open
from small_models import tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from mlcalib._core import GridSpec, rtn
from mlcalib.checkpoints import load_quantized, save_checkpoint
from mlcalib.common.safetensors_read import validate_folder
from mlcalib.formats import formats

IDS = torch.arange(40)[None] * 3 % 128


def quantize(model, spec, *, leave_out=("lm_head",)):
    return {
        name: rtn(module.weight.detach(), spec)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in leave_out
    }


@torch.no_grad()
def logits(model):
    return model(IDS).logits.float()


def expected_logits(model, quantized):
    """Logits of a copy of the model whose linears hold the dequantized weights."""
    model = copy.deepcopy(model)
    for name, linear in quantized.items():
        weight = model.get_submodule(name).weight
        weight.data = linear.dequantize().to(weight.dtype)
    return logits(model)


@pytest.fixture
def save(tokenizer, tmp_path):
    def save(model, quantized, name="compressed-tensors", out="out", **options):
        form = formats.get(name)()
        save_checkpoint(model, tokenizer, tmp_path / out, form, quantized, {"a": 1}, **options)
        return tmp_path / out

    return save


@pytest.fixture
def small(save):
    """A model, and its linears on a 4 bit asymmetric grid."""
    model = tiny_llama()
    return model, quantize(model, GridSpec(4, 32, scale_dtype=torch.float32))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_transformers_computes_the_same_logits(save, dtype, symmetric, group_size, bits, tied):
    model = tiny_llama(dtype=dtype, tied=tied)
    quantized = quantize(model, GridSpec(bits, group_size, symmetric, scale_dtype=dtype))
    loaded = from_transformers(save(model, quantized))
    assert loaded.dtype == dtype
    assert torch.equal(logits(loaded), expected_logits(model, quantized))
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_rows_and_columns_need_not_fill_words(save, symmetric, bits):
    model = tiny_llama(intermediate=101)
    spec = GridSpec(bits, -1, symmetric, scale_dtype=torch.float32)
    quantized = quantize(model, spec)
    loaded = from_transformers(save(model, quantized))
    assert torch.equal(logits(loaded), expected_logits(model, quantized))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_dense_checkpoint_is_an_ordinary_one(save, dtype, tied):
    model = tiny_llama(dtype=dtype, tied=tied)
    quantized = quantize(model, GridSpec(3, 48, scale_dtype=dtype))
    out = save(model, quantized, "dense")
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    loaded = from_transformers(out)
    assert loaded.dtype == dtype
    assert torch.equal(logits(loaded), expected_logits(model, quantized))
    with pytest.raises(ValueError, match="no quantization_config"):
        load_quantized(out)


def test_an_untied_head_can_be_quantized_and_any_linear_left_out(save):
    model = tiny_llama()
    left_out = ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj")
    spec = GridSpec(4, 32, symmetric=True, scale_dtype=torch.float32)
    quantized = quantize(model, spec, leave_out=left_out)
    out = save(model, quantized, order="activation")
    section = json.loads((out / "config.json").read_text())["quantization_config"]
    assert sorted(section["ignore"]) == sorted(left_out)
    assert section["config_groups"]["group_0"]["weights"]["actorder"] == "static"
    loaded = from_transformers(out)
    assert torch.equal(logits(loaded), expected_logits(model, quantized))


@pytest.mark.parametrize("symmetric", [True, False])
def test_what_was_saved_is_read_back(save, symmetric):
    model = tiny_llama(dtype=torch.bfloat16)
    quantized = quantize(model, GridSpec(8, 32, symmetric, scale_dtype=torch.bfloat16))
    back = load_quantized(save(model, quantized, max_shard_size=20_000))
    assert back.keys() == quantized.keys()
    for name, linear in quantized.items():
        assert torch.equal(back[name].codes, linear.codes)
        assert torch.equal(back[name].grid.scale, linear.grid.scale)
        assert torch.equal(back[name].grid.zero, linear.grid.zero)


def test_large_checkpoints_are_sharded(save, small):
    model, quantized = small
    out = save(model, quantized, max_shard_size=20_000)
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == shards
    assert validate_folder(out) == {k: out / v for k, v in index["weight_map"].items()}
    whole = save(model, quantized, out="whole")
    assert not (whole / "model.safetensors.index.json").exists()
    loaded = from_transformers(out)
    assert torch.equal(logits(loaded), expected_logits(model, quantized))


def test_the_folder_holds_everything_else(save, small, tokenizer):
    model, quantized = small
    model.generation_config = GenerationConfig(max_new_tokens=7)
    out = save(model, quantized)
    assert json.loads((out / "mlcalib.json").read_text()) == {"a": 1}
    assert GenerationConfig.from_pretrained(out).max_new_tokens == 7
    text = "umntu ngumntu ngabantu 人"
    assert AutoTokenizer.from_pretrained(out)(text).input_ids == tokenizer(text).input_ids
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_chat_template_is_kept(tmp_path, tokenizer, small):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    model, quantized = small
    save_checkpoint(model, tokenizer, tmp_path / "o", formats.get("dense")(), quantized, {})
    assert AutoTokenizer.from_pretrained(tmp_path / "o").chat_template == tokenizer.chat_template


def test_generation_settings_in_an_old_config_do_not_stop_the_save(save, small, tmp_path):
    model, quantized = small
    model.save_pretrained(tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    (tmp_path / "old" / "config.json").write_text(json.dumps(config | {"temperature": 0.7}))
    (tmp_path / "old" / "generation_config.json").unlink()
    out = save(AutoModelForCausalLM.from_pretrained(tmp_path / "old"), quantized)
    assert GenerationConfig.from_pretrained(out).temperature == 0.7


def test_a_tied_head_is_not_written(save):
    model = tiny_llama(tied=True)
    out = save(model, quantize(model, GridSpec(4, 32, scale_dtype=torch.float32)))
    assert "lm_head.weight" not in validate_folder(out)


def test_saving_leaves_the_model_as_it_was(save, small):
    model, quantized = small
    model.config.quantization_config = {"quant_method": "gguf"}
    model.config.dtype = None
    model.config.architectures = None
    before = copy.deepcopy(model)
    save(model, quantized)
    assert model.config.to_dict() == before.config.to_dict()
    assert model.generation_config.to_dict() == before.generation_config.to_dict()
    assert all(map(torch.equal, model.state_dict().values(), before.state_dict().values()))
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]


@pytest.mark.parametrize("name", ["compressed-tensors", "dense"])
def test_a_model_loaded_from_gguf_is_saved(save, small, name):
    """transformers itself refuses to: the config of such a model still says gguf."""
    model, quantized = small
    model.config.quantization_config = {"quant_method": "gguf", "gguf_file": "model.gguf"}
    loaded = from_transformers(save(model, quantized, name))
    assert torch.equal(logits(loaded), expected_logits(model, quantized))


def test_a_failure_while_writing_leaves_nothing(save, small, tmp_path, monkeypatch):
    from mlcalib.common import safetensors_write as safetensors_writing

    written = []
    write = safetensors_writing.write_safetensors

    def fail_on_the_second(path, pieces, metadata):
        if written:
            raise OSError(28, "No space left on device")
        write(path, pieces, metadata)
        written.append(path)

    monkeypatch.setattr(safetensors_writing, "write_safetensors", fail_on_the_second)
    with pytest.raises(OSError, match="No space left"):
        save(*small, max_shard_size=20_000)
    assert written
    assert list(tmp_path.iterdir()) == []


def test_existing_output_is_kept(save, small, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("")
    with pytest.raises(FileExistsError):
        save(*small)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "precious"]


def test_linears_that_do_not_belong_are_refused(save, small):
    model, quantized = small
    first = next(iter(quantized))
    with pytest.raises(ValueError, match="no weight for nowhere"):
        save(model, quantized | {"nowhere": quantized[first]})
    with pytest.raises(ValueError, match=r"codes \[128, 64\] cannot replace a weight \[64, 64\]"):
        save(model, {first: quantized["model.layers.0.mlp.up_proj"]})
    with pytest.raises(ValueError, match="no linear"):
        save(model, {})
    with pytest.raises(ValueError, match=r"float32, but a model in torch\.bfloat16"):
        save(tiny_llama(dtype=torch.bfloat16), quantized)


def test_asymmetric_linears_on_different_grids_are_refused(save, small):
    """transformers 5.23 reads all of them by the first config group."""
    model, quantized = small
    other = quantize(model, GridSpec(8, 32, symmetric=True, scale_dtype=torch.float32))
    first, second = list(quantized)[:2]
    with pytest.raises(
        ValueError, match=rf"4 bits, .*asymmetric \({first}\), 8 bits.*\({second}\)"
    ):
        save(model, {first: quantized[first], second: other[second]})


def test_a_tied_head_cannot_be_quantized(save):
    model = tiny_llama(tied=True)
    with pytest.raises(ValueError, match="lm_head is tied to another weight; untie it"):
        save(model, quantize(model, GridSpec(4, 32, scale_dtype=torch.float32), leave_out=()))


def test_metadata_must_be_finite(small, tokenizer, tmp_path):
    form = formats.get("dense")()
    with pytest.raises(ValueError, match="JSON"):
        save_checkpoint(small[0], tokenizer, tmp_path / "o", form, small[1], {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_a_section_called_mixed_precision_is_read_group_by_group(save, small):
    out = save(*small)
    config = json.loads((out / "config.json").read_text())
    section = config["quantization_config"]
    assert section["format"] == "pack-quantized"
    section["format"] = "mixed-precision"
    (out / "config.json").write_text(json.dumps(config))
    back = load_quantized(out)
    assert back.keys() == small[1].keys()
    section["config_groups"]["group_0"]["format"] = "float-quantized"
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="expected pack-quantized int weights"):
        load_quantized(out)
