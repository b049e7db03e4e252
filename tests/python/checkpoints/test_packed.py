"""Models on packed weights, from checkpoint folders."""

import copy
import gc
import json
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import tiny_llama, tiny_model
from transformers import AutoModelForCausalLM

import mlcalib
from mlcalib._core import GridSpec, rtn
from mlcalib.checkpoints import save_checkpoint
from mlcalib.checkpoints.packed import PackedLinear, load_to_run, loading
from mlcalib.common.compat import cache_name
from mlcalib.formats import formats
from mlcalib.models import find_adapter
from mlcalib.models.experts import unfuse

IDS = torch.arange(40)[None] * 3 % 128


@pytest.fixture
def save(tokenizer, tmp_path):
    def save(model, quantized, name="compressed-tensors", out="out", **options):
        form = formats.get(name)()
        save_checkpoint(model, tokenizer, tmp_path / out, form, quantized, {"a": 1}, **options)
        return tmp_path / out

    return save


def quantize(model, spec, *, leave_out=("lm_head",)):
    return {
        name: rtn(module.weight.detach(), spec)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in leave_out
    }


def dequantized(model, quantized):
    """A copy in float32 whose linears hold what the codes say, not rounded again."""
    model = copy.deepcopy(model).float()
    for name, linear in quantized.items():
        model.get_submodule(name).weight.data = linear.dequantize()
    return model


@torch.no_grad()
def logits(model):
    """Of all tokens at once, and of one after the other on the cache."""
    whole = model(IDS).logits.float()
    cache, steps = None, []
    for token in IDS[0]:
        given = model(token.view(1, 1), use_cache=True, **{cache_name(): cache})
        cache = given[cache_name()]
        steps.append(given.logits.float())
    return whole, torch.cat(steps, 1)


def assert_same_logits(loaded, expected, tolerance=1e-5):
    for found, wanted in zip(logits(loaded), logits(expected), strict=True):
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


def packed_names(model):
    return {name for name, module in model.named_modules() if isinstance(module, PackedLinear)}


@pytest.mark.parametrize("form", ["compressed-tensors", "gptq", "awq"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_logits_are_those_of_the_dequantized_model(save, form, bits, symmetric):
    if form == "awq" and (bits == 8 or symmetric):
        pytest.skip("awq holds 4 bits, asymmetric")
    dtype = torch.float16 if form != "compressed-tensors" else torch.bfloat16
    model = tiny_llama(dtype=dtype)
    quantized = quantize(model, GridSpec(bits, 32, symmetric, scale_dtype=dtype))
    loaded = mlcalib.load(save(model, quantized, form), "float32")
    assert packed_names(loaded) == quantized.keys()
    assert_same_logits(loaded, dequantized(model, quantized))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_is_the_checkpoints(save, dtype, tied):
    model = tiny_llama(dtype=dtype, tied=tied)
    quantized = quantize(model, GridSpec(4, -1, scale_dtype=dtype))
    loaded = mlcalib.load(save(model, quantized))
    assert loaded.dtype == dtype
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}[dtype]
    assert_same_logits(loaded, dequantized(model, quantized), tolerance)


@pytest.mark.parametrize("name", ["llama-bias", "qwen2", "gemma2", "mixtral", "qwen3_moe"])
def test_architectures(save, name):
    model = tiny_model(name)
    adapter = find_adapter(type(model).__name__)
    unfused = copy.deepcopy(model)
    unfuse(unfused, adapter)
    spec = GridSpec(4, 16, symmetric=True, scale_dtype=torch.float32)
    quantized = {
        name: rtn(linear.weight.detach(), spec) for name, linear in adapter.named_linears(unfused)
    }
    folder = save(unfused, quantized, saved=adapter.saved)
    loaded = mlcalib.load(folder)
    assert packed_names(loaded) == quantized.keys()
    assert_same_logits(loaded, dequantized(unfused, quantized))


@pytest.mark.parametrize(
    ("load", "where"), [(mlcalib.load, "meta"), (load_to_run, torch.device("meta"))]
)
def test_elsewhere_than_on_the_cpu_linears_are_dequantized(save, load, where, caplog, monkeypatch):
    model = tiny_llama(dtype=torch.bfloat16)
    quantized = quantize(model, GridSpec(4, 32, scale_dtype=torch.bfloat16))
    folder = str(save(model, quantized))
    monkeypatch.setattr(loading, "choose_device", torch.device)
    there = load(folder, "float32", where)
    assert {each.device.type for each in there.parameters()} == {"meta"}
    assert not packed_names(there)
    assert f"on meta {len(quantized)} linears hold dequantized weights in float32" in caplog.text
    packed = mlcalib.load(folder, "float32", "cpu")
    expected = dequantized(model, quantized)
    for name in quantized:
        linear = packed.get_submodule(name).dequantized(torch.float32, torch.device("cpu"))
        assert torch.equal(linear.weight, expected.get_submodule(name).weight)


def test_generation(save):
    model = tiny_llama()
    quantized = quantize(model, GridSpec(4, 32, scale_dtype=torch.float32), leave_out=())
    loaded = mlcalib.load(save(model, quantized))
    assert isinstance(loaded.lm_head, PackedLinear)
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    ids = loaded.generate(IDS[:, :8], **options)
    assert torch.equal(ids, dequantized(model, quantized).generate(IDS[:, :8], **options))


@pytest.mark.usefixtures("registered")
def test_from_pretrained_packs_when_asked(save):
    model = tiny_llama()
    quantized = quantize(model, GridSpec(4, 32, scale_dtype=torch.float32))
    folder = save(model, quantized)
    packed = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=mlcalib.PackedConfig()
    )
    assert packed_names(packed) == quantized.keys()
    dense = save(model, quantized, "dense", "dense")
    with pytest.raises(ValueError, match="mlcalib does require the model to be pre-quantized"):
        AutoModelForCausalLM.from_pretrained(dense, quantization_config=mlcalib.PackedConfig())


def test_loading_says_nothing(save, caplog):
    model = tiny_llama()
    mlcalib.load(save(model, quantize(model, GridSpec(4, 32, scale_dtype=torch.float32))))
    assert not caplog.records


def test_copies_casts_and_state(save):
    model = tiny_llama()
    quantized = quantize(model, GridSpec(4, 32, scale_dtype=torch.float32))
    loaded = mlcalib.load(save(model, quantized))
    assert_same_logits(copy.deepcopy(loaded), loaded)
    name, linear = next(iter(quantized.items()))
    module = loaded.get_submodule(name)
    assert f"{name}.packed" in loaded.state_dict()
    back = module.to(torch.bfloat16).quantized()
    assert torch.equal(back.codes, linear.codes)
    assert torch.equal(back.grid.scale, linear.grid.scale)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    with pytest.raises(RuntimeError, match="pass no gradient"):
        module(torch.ones(1, 64, requires_grad=True))
    with pytest.raises(ValueError, match="not serializable"):
        loaded.save_pretrained(name)


def test_what_cannot_be_loaded_is_refused(save, tmp_path):
    model = tiny_llama()
    quantized = quantize(model, GridSpec(4, 32, scale_dtype=torch.float32))
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        mlcalib.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no quantization_config"):
        mlcalib.load(save(model, quantized, "dense", "dense"))
    folder = save(model, quantized)
    with pytest.raises(ValueError, match="dtype is 'int8', expected one of: auto, float32"):
        mlcalib.load(folder, "int8")
    tensors = load_file(folder / "model.safetensors")
    first = "model.layers.0.mlp.up_proj"
    save_file(
        {name.replace(first, "model.other"): tensor for name, tensor in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(
        NotImplementedError, match=r"of model\.other, where LlamaForCausalLM has no"
    ):
        mlcalib.load(folder)


def test_a_weight_of_another_shape_than_the_models_is_refused(save):
    model = tiny_llama()
    folder = save(model, quantize(model, GridSpec(4, 32, scale_dtype=torch.float32)))
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 96
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"_proj: the weight is \[.*but the model's linear is \["):
        mlcalib.load(folder)


def test_only_public_names_are_attributes():
    with pytest.raises(AttributeError, match="no attribute 'PackedConfigs'"):
        mlcalib.PackedConfigs  # noqa: B018


def test_packed_weights_do_not_keep_the_codes_they_are_made_of():
    quantized = rtn(torch.randn(64, 64), GridSpec(4, 32, False))
    codes = quantized.codes
    alive = weakref.ref(codes)
    linear = PackedLinear.of(quantized)
    del codes, quantized
    gc.collect()
    assert alive() is None
    assert linear.quantized().codes.shape == (64, 64)
