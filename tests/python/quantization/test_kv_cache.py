"""FP8 scales of keys and values: from text of each language into checkpoints that others read."""

import json
from dataclasses import replace

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from small_models import tiny_llama
from test_checkpoints import logits
from transformers import AutoModelForCausalLM, DynamicCache

import mlcalib
from mlcalib.checkpoints import load_quantized
from mlcalib.checkpoints.packed.loading import load_to_run
from mlcalib.common.ranks import Ranks
from mlcalib.formats import formats
from mlcalib.models.kv_cache import cache_argument
from mlcalib.quantization.recipe import Recipe, check_ranks
from mlcalib.quantizers import quantizers

ATTENTION = [f"model.layers.{index}.self_attn" for index in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    out = tmp_path_factory.mktemp("models") / "tiny"
    tiny_llama(vocabulary=384).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def text(folder):
    return mlcalib.calibration(folder, "en,sw", "sample", tokens=512, seq_len=32)


def quantized_from(folder, text, **options):
    asked = {"group_size": 32, "symmetric": True, "kv_cache": "fp8", "progress": False}
    return mlcalib.quantize(folder, text, **{**asked, **options})


def cached(folder, text, language):
    """Layer → the keys and values that transformers' own cache gets of a language's text."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found = {}
    for ids, _ in text.sequences(language):
        cache = DynamicCache()
        with torch.no_grad():
            name = cache_argument(model.model.layers[0].self_attn)
            model(ids, use_cache=True, **{name: cache})
        for index, layer in enumerate(cache.layers):
            found.setdefault((index, "k"), []).append(layer.keys)
            found.setdefault((index, "v"), []).append(layer.values)
    return {key: torch.cat(each) for key, each in found.items()}


def test_ranges_are_those_of_what_is_cached(folder, text):
    quantized = quantized_from(folder, text, propagate="float")
    assert list(quantized.kv_cache) == ATTENTION
    bounds = {}
    for language in ("en", "sw"):
        for (index, kind), x in cached(folder, text, language).items():
            told = quantized.kv_cache[ATTENTION[index]][kind]
            low, high = told["range"][language]
            assert low == pytest.approx(float(x.min()), rel=1e-4)
            assert high == pytest.approx(float(x.max()), rel=1e-4)
            assert told["clipped"][language] == 0
            at = ATTENTION[index], kind
            bounds[at] = max(bounds.get(at, 0.0), -low, high)
    for (name, kind), bound in bounds.items():
        assert quantized.kv_cache[name][kind]["bound"] == bound


def test_in_memory_and_block_by_block_are_the_same(folder, text, tmp_path):
    quantized = quantized_from(folder, text, activation_clip=0.01)
    quantized.save(tmp_path / "a")
    record = mlcalib.quantize_checkpoint(
        folder,
        tmp_path / "b",
        text,
        group_size=32,
        symmetric=True,
        kv_cache="fp8",
        activation_clip=0.01,
        progress=False,
    )
    assert record["kv_cache"] == quantized.kv_cache
    shares = [
        share
        for kinds in record["kv_cache"].values()
        for each in kinds.values()
        for share in each["clipped"].values()
    ]
    assert 0.001 < max(shares) <= 0.01
    first, second = (load_file(tmp_path / each / "model.safetensors") for each in "ab")
    assert first.keys() == second.keys()
    for name in ATTENTION:
        for kind in "kv":
            scale = first[f"{name}.{kind}_scale"]
            assert torch.equal(scale, second[f"{name}.{kind}_scale"])
            bound = record["kv_cache"][name][kind]["bound"]
            assert scale.shape == (1,)
            assert float(scale) * 448 == pytest.approx(bound, rel=1e-6)
    section = json.loads((tmp_path / "b" / "config.json").read_text())["quantization_config"]
    scheme = section["kv_cache_scheme"]
    assert (scheme["num_bits"], scheme["type"], scheme["strategy"]) == (8, "float", "tensor")
    card = (tmp_path / "b" / "README.md").read_text()
    assert "scales for a cache in FP8" in card
    assert "kv_cache='fp8'" in card


@pytest.mark.parametrize("scheme", [None, "FP8", "NVFP4"])
def test_the_section_and_the_weights_are_read_by_others(scheme, folder, text, tmp_path):
    options = {} if scheme is None else {"scheme": scheme, "group_size": -1, "symmetric": True}
    if scheme == "NVFP4":
        options["group_size"] = 16
    quantized = quantized_from(folder, text, dtype="bfloat16", **options)
    quantized.save(tmp_path / "out")
    report = mlcalib.check(tmp_path / "out")
    assert report.status == 0, report
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert logits(loaded).isfinite().all()
    section = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    read = QuantizationConfig.model_validate(section).kv_cache_scheme
    assert (read.num_bits, read.type, read.strategy) == (8, "float", "tensor")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for name in ATTENTION:
        for kind in "kv":
            held = float(stored[f"{name}.{kind}_scale"]) * 448
            assert held >= quantized.kv_cache[name][kind]["bound"] * (1 - 1e-6)
    all_linears = load_quantized(tmp_path / "out")
    assert all(
        torch.equal(each.codes, quantized.linears[name].codes) for name, each in all_linears.items()
    )


def test_evaluations_round_keys_and_values(folder, text, tmp_path):
    quantized = quantized_from(folder, text)
    quantized.save(tmp_path / "out")
    found = logits(load_to_run(str(tmp_path / "out")))
    plain = logits(quantized.model)
    assert not torch.equal(found, plain)
    attention = [quantized.model.get_submodule(name) for name in ATTENTION]
    for path, module in zip(ATTENTION, attention, strict=True):
        bounds = {kind: each["bound"] for kind, each in quantized.kv_cache[path].items()}
        name = cache_argument(module)
        module.register_forward_pre_hook(rounding(name, bounds), with_kwargs=True)
    torch.testing.assert_close(found, logits(quantized.model), rtol=0, atol=1e-3)
    packed = mlcalib.load(tmp_path / "out")
    torch.testing.assert_close(logits(packed), logits(quantized.model), rtol=0, atol=1e-3)
    made = packed.generate(torch.arange(8)[None], max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert made.shape == (1, 12)


def rounding(name, bounds):
    class Cache:
        @staticmethod
        def update(keys, values, *_, **__):
            return tuple(
                (x / (bound / 448)).to(torch.float8_e4m3fn).float() * (bound / 448)
                for x, bound in ((keys, bounds["k"]), (values, bounds["v"]))
            )

    return lambda _, args, kwargs: (args, {**kwargs, name: Cache()})


def test_converting_keeps_the_scales_where_there_is_a_place(folder, text, tmp_path):
    quantized = quantized_from(folder, text)
    quantized.save(tmp_path / "out")
    mlcalib.convert(tmp_path / "out", tmp_path / "same", "compressed-tensors")
    first, second = (load_file(tmp_path / each / "model.safetensors") for each in ("out", "same"))
    assert first.keys() == second.keys()
    section = json.loads((tmp_path / "same" / "config.json").read_text())["quantization_config"]
    assert section["kv_cache_scheme"]["num_bits"] == 8
    with pytest.raises(ValueError, match="scales of keys and values, for which gptq has no place"):
        mlcalib.convert(tmp_path / "out", tmp_path / "gptq", "gptq")
    with pytest.raises(ValueError, match="Gptq has no place for the scales of keys and values"):
        quantized.save(tmp_path / "gptq", "gptq")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kv_cache": "int8"}, "kv_cache is 'int8', expected 'fp8'"),
        ({"format": "gptq"}, "gptq has no place for the scales of keys and values"),
        ({"format": ["compressed-tensors", "awq"], "symmetric": False}, "awq has no place"),
    ],
)
def test_what_cannot_be_is_refused(options, told, folder, text):
    with pytest.raises(ValueError, match=told):
        quantized_from(folder, text, **options)


def test_ranges_need_text(folder):
    with pytest.raises(ValueError, match="ranges of keys and values, which calibration text shows"):
        quantized_from(folder, None, method="rtn")


def test_ranks_are_refused():
    class Two(Ranks):
        alone, size = False, 2

    options = quantizers.get("rtn").Options()
    rounding = quantizers.get("rtn")(options, torch.float32)
    recipe = Recipe(rounding, {}, formats.get("compressed-tensors")(), {}, 0.0, {}, kv_cache=True)
    with pytest.raises(NotImplementedError, match="not shared over ranks"):
        check_ranks(recipe, Two())
    check_ranks(replace(recipe, kv_cache=False), Two())


@pytest.mark.parametrize("scheme", [None, "FP8", "NVFP4"])
def test_ranges_are_known_where_inputs_are_gathered_one_after_the_other(scheme, folder, text):
    options = {} if scheme is None else {"scheme": scheme, "group_size": -1, "symmetric": True}
    if scheme == "NVFP4":
        options["group_size"] = 16
    quantized = quantized_from(folder, text, method="gptq", correction=0.25, **options)
    assert list(quantized.kv_cache) == ATTENTION
    assert all(told["k"]["range"].keys() == {"en", "sw"} for told in quantized.kv_cache.values())
    ranges = quantized.metadata("dense")["layers"]
    assert all(each["input_range"].keys() == {"en", "sw"} for each in ranges.values())
    static = [each.input_bound > 0 for each in quantized.linears.values()]
    assert all(static) if scheme else not any(static)
