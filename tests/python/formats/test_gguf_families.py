"""Whole GGUF files of many families: that they are those which llama.cpp was seen to read right."""

import json
import logging
from pathlib import Path

import gguf
import pytest
import torch
from small_gguf import CASES, file_digest, gguf_model, write_gguf_model
from small_tokenizer import make_tokenizer
from test_gguf import GGUF, SPECS

import mlcalib
from mlcalib.common.gguf_types import BLOCK_TYPES
from mlcalib.formats import types_in_mix
from mlcalib.formats._gguf_families import family_of, written_classes
from mlcalib.models import adapter_for
from mlcalib.models.experts import unfuse

PROVED = json.loads(Path(__file__).with_name("gguf_families.json").read_text())

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("case", CASES)
def test_the_file_is_the_one_whose_logits_llama_cpp_gave(case, tmp_path):
    """After a change: scripts/interop/gguf_families.py shows it again, and renews the digests."""
    name = family_of(type(gguf_model(case)).__name__).name
    if name not in gguf.MODEL_ARCH_NAMES.values():
        with pytest.raises(NotImplementedError, match="has no names for the tensors"):
            write_gguf_model(gguf_model(case), tmp_path)
        return
    assert file_digest(write_gguf_model(gguf_model(case), tmp_path)) == PROVED[case]


def test_every_class_that_is_written_has_a_case():
    shown = {type(gguf_model(case)).__name__ for case in CASES}
    assert set(written_classes()) <= shown


@pytest.mark.parametrize("case", CASES)
def test_mixes_know_the_tensors_of_every_class_that_is_written(case):
    model = gguf_model(case)
    adapter = adapter_for(model)
    unfuse(model, adapter)
    type_of = types_in_mix("Q4_K_M", model.config, type(model).__name__)
    for name, linear in adapter.named_linears(model):
        assert type_of(name, linear.in_features) in BLOCK_TYPES


def refused(model, match):
    with pytest.raises(NotImplementedError, match=match):
        GGUF.check_model(model.config, type(model).__name__, make_tokenizer())


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
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused_before_anything_runs(case, options, match):
    model = gguf_model(case)
    for name, value in options.items():
        setattr(model.config, name, value)
    refused(model, match)


def test_positions_that_llama_cpp_scales_otherwise_are_refused_or_said(caplog):
    model = gguf_model("llama, yarn")
    model.config.rope_parameters["beta_fast"] = 16
    refused(model, "rope_type 'yarn' with beta_fast=16")
    model = gguf_model("qwen3, yarn")
    model.config.rope_parameters["truncate"] = False
    with caplog.at_level(logging.WARNING):
        GGUF.check_model(model.config, "Qwen3ForCausalLM", make_tokenizer())
    assert "truncate=False" in caplog.text


def test_other_classes_are_refused_with_those_that_are_written():
    config = gguf_model("llama").config
    with pytest.raises(NotImplementedError, match="GGUF files of ApertusForCausalLM are not"):
        GGUF.check_model(config, "ApertusForCausalLM", make_tokenizer())


RTN = {"method": "rtn", "format": "gguf", "group_size": 32, "symmetric": True, "progress": False}


def test_a_package_without_an_architecture_is_told(monkeypatch):
    monkeypatch.setattr(gguf, "MODEL_ARCH_NAMES", {0: "llama"})
    refused(gguf_model("glm4"), "has no names for the tensors of 'glm4'.*install a newer one")


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
