"""Whole GGUF files of many families: that they are those which llama.cpp was seen to read right."""

import json
import logging
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from small_gguf import (
    CASES,
    file_digest,
    gguf_class,
    gguf_config,
    gguf_model,
    write_gguf_model,
)
from small_tokenizer import make_tokenizer
from test_gguf import GGUF, SPECS

import mlcalib
from mlcalib.common.gguf_types import BLOCK_TYPES
from mlcalib.formats import types_in_mix
from mlcalib.formats._gguf_families import written_classes
from mlcalib.formats._gguf_inside import inside_classes
from mlcalib.formats._gguf_names import architecture_name
from mlcalib.formats._gguf_refused import refused_classes
from mlcalib.models import adapter_for
from mlcalib.models.experts import unfuse

PROVED = json.loads(Path(__file__).with_name("gguf_families.json").read_text())

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("case", CASES)
def test_the_file_is_the_one_whose_logits_llama_cpp_gave(case, tmp_path):
    """After a change: scripts/interop/gguf_families.py shows it again, and renews the digests.

    The types of a mix are found for all linears of these models, too.
    """
    model = gguf_model(case)
    name = type(model).__name__
    if architecture_name(model.config, name) not in gguf.MODEL_ARCH_NAMES.values():
        with pytest.raises(NotImplementedError, match="has no names for the tensors"):
            write_gguf_model(model, tmp_path)
        return
    adapter = adapter_for(model)
    unfuse(model, adapter)
    assert file_digest(write_gguf_model(model, tmp_path, adapter)) == PROVED[case]
    type_of = types_in_mix("Q4_K_M", model.config, name)
    for linear, module in adapter.named_linears(model):
        assert type_of(linear, module.in_features) in BLOCK_TYPES


def test_every_class_that_is_written_has_a_case_or_holds_a_class_that_has():
    shown = {gguf_class(case).__name__ for case in CASES}
    assert set(written_classes()) - set(inside_classes()) <= shown


def test_classes_that_are_not_written_are_told_why():
    assert not set(refused_classes()) & set(written_classes())
    config = gguf_config("llama")
    for name, why in (
        ("PhimoeForCausalLM", r"RMS\) and another router"),
        ("PersimmonForCausalLM", "converter knows no class of this name"),
    ):
        with pytest.raises(NotImplementedError, match=f"files of {name} are not written: .*{why}"):
            GGUF.check_model(config, name, make_tokenizer())


def refused(config, case, match):
    with pytest.raises(NotImplementedError, match=match):
        GGUF.check_model(config, gguf_class(case).__name__, make_tokenizer())


@pytest.mark.parametrize(
    ("case", "options", "match"),
    [
        ("qwen3, yarn", {"attention_bias": True}, r"biases \(attention_bias\)"),
        ("gemma", {"tie_word_embeddings": False}, "a head of its own"),
        ("gemma2", {"query_pre_attn_scalar": 40}, r"query_pre_attn_scalar=40 \(it takes 32\)"),
        ("gemma3", {"use_bidirectional_attention": True}, "attention to later tokens"),
        ("command-r", {"use_qk_norm": True}, "norms of q and k"),
        ("smollm3", {"no_rope_layers": [1] * 5}, "other blocks than every fourth"),
        ("qwen3moe", {"decoder_sparse_step": 2}, "blocks without experts"),
        ("qwen2moe", {"norm_topk_prob": True}, "norm_topk_prob=True"),
        ("olmoe", {"num_key_value_heads": 2}, "fewer heads"),
        ("exaone4", {"sliding_window": 8}, "sliding windows"),
        ("llama", {"hidden_act": "gelu"}, "the activation 'gelu'"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "several kinds"),
        ("phi2", {"qk_layernorm": True}, "norms of q and k"),
        ("deepseek2", {"topk_method": "group_limited_greedy"}, "topk_method"),
        ("deepseek2", {"q_lora_rank": None}, "queries of full rank in 2 blocks"),
        ("falcon", {"alibi": True}, "alibi"),
        ("falcon", {"bias": True}, "biases"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "post_layernorm=True"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "attention of another scale"),
        ("mamba", {"expand": 3}, "expand=3"),
        ("lfm2", {"layer_types": ["conv", "conv"]}, "blocks that are all alike"),
        ("dots1", {"num_key_value_heads": 2}, "fewer heads"),
        ("afmoe", {"mup_enabled": False}, "mup_enabled=False"),
        ("exaone-moe", {"mlp_layer_types": ["sparse", "dense"] * 2}, "blocks without experts"),
        ("inside, llama4", {"attention_chunk_size": 64}, "attention in chunks of 64"),
        ("inside, qwen35", {"linear_num_value_heads": 4}, "more heads of values than of keys"),
        ("nemotron_h, experts", {"moe_latent_size": 32}, "experts of a narrower width"),
        ("minicpm3", {"scale_emb": 1}, "scales of"),
        ("kimi-linear", {"q_lora_rank": 32}, "queries of rank 32"),
        ("kimi-linear", {"linear_num_heads": 2}, "another number of heads"),
        ("kimi-linear", {"norm_topk_prob": False}, "do not sum to 1"),
        ("kimi-linear", {"mlp_layer_types": ["sparse", "dense"]}, "blocks without experts"),
        ("gemma3n", {"laurel_rank": 32}, r"laurel_rank=32 \(it takes 64\)"),
        ("gemma3n", {"num_kv_shared_layers": 3}, "other blocks than the first 20"),
        ("gemma3n", {"layer_types": ["sliding_attention"] * 22}, "later ones read"),
        ("gemma3n", {"activation_sparsity_pattern": [0.0] * 22}, "few hidden units in other"),
        ("gemma3n", {"intermediate_size": [256] * 21 + [128]}, "MLPs of several sizes"),
        ("gemma3n", {"altup_correct_scale": False}, "altup_correct_scale=False"),
        ("deepseek2-ocr", {"topk_method": "group_limited_greedy"}, "topk_method"),
        ("deepseek2-ocr", {"num_key_value_heads": 2}, "fewer heads"),
        ("step35", {"layer_types": ["full_attention"] * 3}, "blocks that are all alike"),
        ("step35", {"query_pre_attn_scalar": 8}, "query_pre_attn_scalar=8"),
        ("step35", {"swiglu_limits_shared": [1, 0, 0]}, "limits of blocks without experts"),
        ("mimo2", {"routed_scaling_factor": 1.5}, "do not sum to 1"),
        ("mimo2", {"layer_types": ["sliding_attention"] * 3}, "blocks that are all alike"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused_before_anything_runs(case, options, match):
    config = gguf_config(case)
    for name, value in options.items():
        setattr(config.get_text_config(), name, value)
    refused(config, case, match)


def test_positions_that_llama_cpp_scales_otherwise_are_refused_or_said(caplog):
    config = gguf_config("llama, yarn")
    config.rope_parameters["beta_fast"] = 16
    refused(config, "llama, yarn", "rope_type 'yarn' with beta_fast=16")
    config = gguf_config("qwen3, yarn")
    config.rope_parameters["truncate"] = False
    with caplog.at_level(logging.WARNING):
        GGUF.check_model(config, "Qwen3ForCausalLM", make_tokenizer())
    assert "truncate=False" in caplog.text
    config = gguf_config("hunyuan_vl")
    rope = config.text_config.rope_parameters
    rope["mrope_section"] = [4] * 4
    with caplog.at_level(logging.WARNING):
        GGUF.check_model(config, "HunYuanVLForConditionalGeneration", make_tokenizer())
    assert "position 0 in the fourth" in caplog.text
    del rope["mrope_section"]
    refused(config, "hunyuan_vl", "positions without sections")
    rope |= {"mrope_section": [4, 8, 4], "alpha": None}
    refused(config, "hunyuan_vl", "without alpha")
    config = gguf_config("mimo2")
    config.rope_parameters["sliding_attention"]["partial_rotary_factor"] = 0.5
    refused(config, "mimo2", "partial_rotary_factor of")
    config = gguf_config("step35")
    config.text_config.rope_parameters["full_attention"]["partial_rotary_factor"] = 1.0
    refused(config, "step35", "partial_rotary_factor of")


RTN = {"method": "rtn", "format": "gguf", "group_size": 32, "symmetric": True, "progress": False}


def test_a_package_without_an_architecture_is_told(monkeypatch):
    monkeypatch.setattr(gguf, "MODEL_ARCH_NAMES", {0: "llama"})
    refused(
        gguf_config("glm4"), "glm4", "has no names for the tensors of 'glm4'.*install a newer one"
    )


def test_codes_of_experts_lie_in_one_tensor(tmp_path):
    ours = mlcalib.quantize(gguf_model("qwen3moe"), tokenizer=make_tokenizer(), **RTN)
    ours.save(tmp_path / "out")
    found = {each.name: each for each in gguf.GGUFReader(tmp_path / "out/model.gguf").tensors}
    stack = found["blk.1.ffn_gate_exps.weight"]
    assert stack.tensor_type == gguf.GGMLQuantizationType.Q4_0
    weights = gguf.dequantize(stack.data, stack.tensor_type)
    experts = ours.model.model.layers[1].mlp.experts
    for number in range(6):
        expected = experts.get_submodule(f"{number}.gate_proj").weight
        assert torch.equal(torch.from_numpy(weights[number]), expected.float())


@pytest.mark.parametrize(
    "case",
    [
        "gpt2",
        "gptneox",
        "falcon, groups",
        "qwen3next",
        "granitemoe, shared",
        "inside, llama",
        "glm4, 4v",
    ],
)
def test_codes_move_as_weights_do(case, tmp_path):
    """Rows that lie otherwise in llama.cpp, and linears that come apart there."""
    ours = mlcalib.quantize(gguf_model(case), tokenizer=make_tokenizer(), **RTN)
    ours.save(tmp_path / "codes")
    float_file = write_gguf_model(ours.model, tmp_path / "weights", ours.adapter)
    weights = {each.name: each.data for each in gguf.GGUFReader(float_file).tensors}
    kinds = set()
    for each in gguf.GGUFReader(tmp_path / "codes/model.gguf").tensors:
        kinds.add(each.tensor_type.name)
        found = gguf.dequantize(each.data, each.tensor_type)
        assert np.array_equal(found, weights[each.name]), each.name
    assert kinds == {"F32", "Q4_0"}


def test_a_mix_gives_experts_in_one_tensor_their_types(tmp_path):
    model = gguf_model("qwen3moe, of 256")
    ours = mlcalib.quantize(
        model, tokenizer=make_tokenizer(), format="gguf", scheme="Q4_K_M", method="rtn",
        progress=False,
    )  # fmt: skip
    ours.save(tmp_path / "out")
    found = {each.name: each for each in gguf.GGUFReader(tmp_path / "out/model.gguf").tensors}
    experts = ours.model.model.layers[1].mlp.experts
    for name, kind in (("gate", "Q4_K"), ("up", "Q4_K"), ("down", "Q6_K")):
        stack = found[f"blk.1.ffn_{name}_exps.weight"]
        assert stack.tensor_type.name == kind
        weights = gguf.dequantize(stack.data, stack.tensor_type)
        for number in range(6):
            expected = experts.get_submodule(f"{number}.{name}_proj").weight
            assert torch.equal(torch.from_numpy(weights[number]), expected.float())


def test_experts_of_one_block_cannot_differ():
    """As those of another tool's checkpoint may, which is to be converted."""
    names = [f"model.layers.1.mlp.experts.{number}.up_proj" for number in range(2)]
    shapes = dict.fromkeys(names, (64, 64))
    GGUF.check(dict.fromkeys(names, SPECS["Q4_0"]), shapes)
    with pytest.raises(ValueError, match=r"experts\.1\.up_proj would be Q8_0"):
        GGUF.check(dict(zip(names, (SPECS["Q4_0"], SPECS["Q8_0"]), strict=True)), shapes)
    with pytest.raises(ValueError, match="would be left in floating point"):
        GGUF.check({names[0]: SPECS["Q4_0"]}, shapes)


def test_a_name_with_phi_3_in_it_is_kept_for_the_tokenizer_that_llama_cpp_expects(tmp_path):
    model = gguf_model("phi3")
    reader = gguf.GGUFReader(write_gguf_model(model, tmp_path))
    assert reader.fields["general.name"].contents() == "model"
