"""The rules of readers that cannot run here, restated from their sources, on what mlcalib writes.

Each rule names the file it comes from. vLLM: paths below vllm/model_executor/layers/quantization.
"""

import itertools
import re

import pytest
import torch
from small_models import tiny_llama, tiny_model

import mlcalib
from mlcalib._core import GridSpec
from mlcalib.checkpoints.check import Facts, verdicts
from mlcalib.formats import formats
from mlcalib.formats._readers import marlin, tile_note

HALF = torch.float16
LEAVES = {
    "self_attn.q_proj": (128, 128),
    "self_attn.k_proj": (64, 128),
    "self_attn.v_proj": (64, 128),
    "self_attn.o_proj": (128, 128),
    "mlp.gate_proj": (256, 128),
    "mlp.up_proj": (256, 128),
    "mlp.down_proj": (128, 256),
}
SHAPES = {f"model.layers.{i}.{leaf}": shape for i in range(2) for leaf, shape in LEAVES.items()}
FUSED = {  # packed_modules_mapping, vllm/model_executor/models/llama.py
    "qkv_proj": ["q_proj", "k_proj", "v_proj"],
    "gate_up_proj": ["gate_proj", "up_proj"],
}


def section_of(form, specs, ignore=("lm_head",)):
    return formats.get(form)().quantization_config(specs, "activation", list(ignore))


def facts_of(form, spec, shapes=None):
    shapes = shapes or SHAPES
    specs = dict.fromkeys(shapes, spec)
    section = section_of(form, specs)
    return Facts(section, specs, shapes, HALF)


def vllm_gptq(section):
    """AutoGPTQConfig.from_config and __init__, auto_gptq.py."""
    bits, _ = section["bits"], section["desc_act"]
    if (bits, section["sym"]) not in {(4, True), (8, True)}:
        return False
    return section["group_size"] in [-1, 32, 64, 128]  # verify_marlin_supported, marlin_utils.py


def vllm_awq(section):
    """AutoAWQConfig.from_config, get_quant_method, auto_awq.py: plain kernels if not Marlin."""
    assert section["version"] == "gemm"
    return section["bits"] == 4 and section["zero_point"] and section["group_size"] is not None


def vllm_compressed_tensors(section):
    """CompressedTensorsWNA16, compressed_tensors/schemes/compressed_tensors_wNa16.py."""
    (group,) = section["config_groups"].values()
    weights = group["weights"]
    assert group["input_activations"] is None
    assert weights["dynamic"] is False
    assert weights["strategy"] in ("channel", "group")
    assert weights["actorder"] != "group"  # has_g_idx
    size = -1 if weights["group_size"] is None else weights["group_size"]
    # query_marlin_supported_quant_types: uint4 with zero points; uint4b8 and uint8b128 without.
    types = {4, 8} if weights["symmetric"] else {4}
    if weights["num_bits"] not in {4, 8}:  # CompressedTensorsHumming, compressed_tensors_humming.py
        return weights["symmetric"]
    return weights["num_bits"] in types and size in [-1, 32, 64, 128]


RULES = {"gptq": vllm_gptq, "awq": vllm_awq, "compressed-tensors": vllm_compressed_tensors}


@pytest.mark.parametrize("form", sorted(RULES))
def test_verdicts_are_those_of_vllms_rules(form):
    seen = set()
    for bits, size, symmetric in itertools.product(
        [2, 3, 4, 5, 6, 7, 8], [-1, 16, 32, 64, 128], [True, False]
    ):
        spec = GridSpec(bits, size, symmetric, scale_dtype=HALF)
        try:
            formats.get(form)().check(dict.fromkeys(SHAPES, spec), SHAPES)
        except ValueError:
            continue
        facts = facts_of(form, spec)
        loads = verdicts(facts)["vLLM"].loads
        assert loads == bool(RULES[form](facts.section)), (bits, size, symmetric)
        seen.add(loads)
    assert True in seen
    assert (False in seen) == (form != "awq")


def test_the_default_of_quantize_meets_the_rules_of_all_three_loaders():
    """4 bits in groups of 128; symmetric for GPTQ, whose Marlin loader knows no other."""
    for form, symmetric in (("gptq", True), ("awq", False), ("compressed-tensors", True)):
        facts = facts_of(form, GridSpec(4, 128, symmetric, scale_dtype=HALF))
        assert verdicts(facts)["vLLM"].loads
        assert tile_note(facts) is None
        for reader in ("transformers", "SGLang"):
            assert verdicts(facts)[reader].loads


@pytest.mark.parametrize(
    ("rows", "columns", "fits"),
    [(64, 128, True), (128, 64, True), (64, 64, False), (576, 576, False), (1536, 576, True)],
)
def test_tiles_are_those_of_marlin(rows, columns, fits):
    """marlin_padded_nk in utils/marlin_utils.py: (n % 64, k % 128) or (n % 128, k % 64)."""
    facts = Facts({}, {}, {"model.layers.0.mlp.down_proj": (rows, columns)})
    assert (tile_note(facts) is None) == fits


def test_linears_that_are_fused_fill_tiles_together():
    names = ["q_proj", "k_proj", "v_proj"]
    shapes = {f"a.{name}": (32, 128) for name in names}
    assert "a.q_proj (96 by 128)" in tile_note(Facts({}, {}, shapes))
    assert tile_note(Facts({}, {}, {**shapes, "a.k_proj": (64, 128)})) is None


def test_marlin_reasons():
    assert marlin(4, 128, zero_points=True) is None
    assert "no 8 bits with zero points" in marlin(8, 128, zero_points=True)
    assert "not 16" in marlin(4, 16, zero_points=False)


def fused_name(name):
    parent, _, leaf = name.rpartition(".")
    for fused, leaves in FUSED.items():
        if leaf in leaves:
            return f"{parent}.{fused}"
    return name


def gptq_override(dynamic, prefix):
    """get_dynamic_override, utils/gptq_utils.py; vLLM asks by the fused linear's name."""
    for pattern, values in dynamic.items():
        if pattern.startswith("-:"):
            if re.match(pattern.removeprefix("-:"), prefix):
                return False
        elif re.match(pattern.removeprefix("+:"), prefix):
            return values
    return None


def gptq_is_quantized(prefix, listed):
    """is_layer_gptq_quantized, utils/gptq_utils.py: names anywhere in a name, shard by shard."""
    parent, _, leaf = prefix.rpartition(".")
    shards = [f"{parent}.{part}" for part in FUSED.get(leaf, [leaf])]
    found = {any(name in shard for name in listed) for shard in shards}
    assert len(found) == 1
    return found.pop()


def test_vllm_finds_the_grid_of_every_gptq_linear():
    base, other = (GridSpec(bits, 64, True, scale_dtype=HALF) for bits in (4, 8))
    special = {name for name in SHAPES if "layers.1.self_attn" in name or name.endswith("0.mlp.up")}
    left = {"model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"}
    specs = {name: other if name in special else base for name in SHAPES if name not in left}
    section = section_of("gptq", specs, (*left, "lm_head"))
    (listed,) = section["modules_in_block_to_quantize"]
    for name in SHAPES:
        prefix = fused_name(name)
        override = gptq_override(section["dynamic"], prefix)
        assert (override is False) == (name in left)
        assert gptq_is_quantized(prefix, listed) == (name not in left)
        if name not in left:
            assert (override or section)["bits"] == specs[name].bits


def test_vllm_skips_the_awq_linears_that_were_left_out():
    """is_layer_skipped, utils/quant_utils.py: with skip_with_substr, shard by shard."""
    left = [f"model.layers.1.self_attn.{leaf}" for leaf in ("q_proj", "k_proj", "v_proj")]
    left.append("model.layers.0.mlp.down_proj")
    specs = dict.fromkeys(set(SHAPES) - set(left), GridSpec(4, 64, scale_dtype=HALF))
    skipped = section_of("awq", specs, [*left, "lm_head"])["modules_to_not_convert"]
    for name in SHAPES:
        assert any(part in name for part in skipped) == (name in left)


def test_optimum_makes_the_same_linears():
    """GPTQQuantizer.convert_model, optimum/gptq/quantizer.py: names end with a listed one."""
    left = ["model.layers.0.mlp.down_proj"]
    specs = dict.fromkeys(set(SHAPES) - set(left), GridSpec(4, 64, True, scale_dtype=HALF))
    (listed,) = section_of("gptq", specs, left)["modules_in_block_to_quantize"]
    for name in SHAPES:
        assert any(name.endswith(part) for part in listed) == (name not in left)


@pytest.mark.parametrize(
    ("form", "spec", "reader", "reason"),
    [
        ("gptq", GridSpec(4, 48, True), "transformers", "GPTQModel has groups"),
        ("gptq", GridSpec(3, 32, True), "vLLM", "not symmetric with 3"),
        ("gptq", GridSpec(4, 32, False), "vLLM", "not asymmetric with 4"),
        ("gptq", GridSpec(4, 32, False), "SGLang", "read zero points as version 1"),
        ("compressed-tensors", GridSpec(8, 32, False), "vLLM", "no 8 bits with zero points"),
        ("compressed-tensors", GridSpec(4, 48, True), "SGLang", "not 48"),
        ("awq", GridSpec(4, 64, False), "llama.cpp", "reads GGUF only"),
    ],
)
def test_reasons(form, spec, reader, reason):
    shapes = {"model.layers.0.mlp.down_proj": (192, 192)}
    verdict = verdicts(facts_of(form, spec, shapes))[reader]
    assert verdict.loads is False
    assert any(reason in text for text in verdict.reasons)


def test_transformers_needs_dequantize_for_packed_zero_points():
    facts = facts_of("compressed-tensors", GridSpec(4, 64, False, scale_dtype=HALF))
    assert verdicts(facts)["transformers"].loads
    section = {key: value for key, value in facts.section.items() if key != "dequantize"}
    verdict = verdicts(Facts(section, facts.specs, facts.shapes))["transformers"]
    assert not verdict.loads
    assert '"dequantize": true' in verdict.reasons[0]


def test_codes_that_gguf_holds_too_are_told():
    facts = facts_of("gptq", GridSpec(4, 32, True, scale_dtype=HALF))
    assert "--format gguf" in verdicts(facts)["llama.cpp"].reasons[0]
    facts = facts_of("gptq", GridSpec(4, 64, True, scale_dtype=HALF))
    assert "--format gguf" not in verdicts(facts)["llama.cpp"].reasons[0]


def test_quantize_tells_before_it_starts_who_will_not_load_the_result(caplog, tokenizer):
    model = tiny_llama(dtype=HALF)
    quantized = mlcalib.quantize(
        model, tokenizer=tokenizer, method="rtn", group_size=32, format="gptq", progress=False
    )
    told = [record.getMessage() for record in caplog.records]
    assert [text.partition(" will")[0] for text in told] == ["vLLM", "SGLang"]
    assert "not asymmetric with 4" in told[0]
    assert quantized.linears


def test_quantize_says_nothing_where_all_will_load_it(caplog, tokenizer):
    for form, symmetric in (("gptq", True), ("awq", False), ("compressed-tensors", False)):
        options = {"method": "rtn", "group_size": 32, "symmetric": symmetric, "format": form}
        mlcalib.quantize(tiny_llama(dtype=HALF), tokenizer=tokenizer, progress=False, **options)
    assert not caplog.records


def test_gguf_is_refused_before_any_forward(tokenizer):
    model = tiny_model("gemma2")
    with pytest.raises(
        NotImplementedError, match="is not written to GGUF with query_pre_attn_scalar"
    ):
        mlcalib.quantize(
            model,
            tokenizer=tokenizer,
            method="rtn",
            group_size=32,
            symmetric=True,
            format="gguf",
            progress=False,
        )


@pytest.mark.parametrize(
    ("leaf", "refusing"),
    [("wk", {"vLLM"}), ("weights_proj", {"vLLM", "SGLang"}), ("wq_b", set())],
)
def test_what_readers_keep_in_floating_point_is_told(leaf, refusing):
    """wk_weights_proj with quant_config=None, vllm/model_executor/models/deepseek_v2.py."""
    spec = GridSpec(4, 32, True, scale_dtype=HALF)
    indexer = {f"model.layers.{i}.self_attn.indexer.{leaf}": (128, 128) for i in range(2)}
    told = verdicts(facts_of("compressed-tensors", spec, SHAPES | indexer))
    assert {name for name in ("vLLM", "SGLang") if not told[name].loads} == refusing
    assert told["transformers"].loads
    if refusing:
        assert f"0.self_attn.indexer.{leaf} and 1 more has to stay" in told["vLLM"].reasons[0]
