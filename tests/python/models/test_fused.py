"""Linears that make several tensors: the rows that another linear reads are found and scaled."""

import pytest
import torch
from small_models import tiny_llama
from test_folding import fold_all, logits
from tiny_architectures import architectures, tiny_models
from torch import nn
from transformers import FalconConfig, FalconForCausalLM, OlmoConfig, OlmoForCausalLM

import mlcalib
from mlcalib.models import Rows, ScaleGroup, find_adapter
from mlcalib.models.discovery import discover
from mlcalib.models.experts import unfuse_all
from mlcalib.models.folding import fold, source_channels

FUSED = {
    "Phi3ForCausalLM": {
        "self_attn.qkv_proj": Rows(128, 64, 64, 1),
        "mlp.gate_up_proj": Rows(96, 96, 96, 1),
    },
    "GlmForCausalLM": {"mlp.gate_up_proj": Rows(96, 96, 96, 1)},
    "GPTNeoXForCausalLM": {"attention.query_key_value": Rows(32, 16, 48, 4)},
    "DeepseekV3ForCausalLM": {"self_attn.kv_b_proj": Rows(16, 16, 32, 4)},
}


def tiny(name):
    made = (each for _, each in tiny_models(name, architectures()[name]))
    return next(each for each in made if isinstance(each, nn.Module))


def rows_of(adapter, model):
    groups = adapter.scale_groups_of(adapter.named_blocks(model)[0][1])
    return {group.source: group.rows for group in groups if group.rows is not None}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FUSED)
def test_the_rows_that_are_read_are_found_and_fold(name):
    model = tiny(name)
    adapter = discover(model)
    unfuse_all(model)
    assert rows_of(adapter, model) == FUSED[name]
    before = logits(model)
    block = adapter.named_blocks(model)[0][1]
    for group in adapter.scale_groups_of(block):
        if group.rows is not None:
            old = block.get_submodule(group.source).weight.clone()
            fold(adapter, block, group, torch.full((group.rows.made,), 2.0))
            old[group.rows.index()] /= 2
            assert torch.equal(block.get_submodule(group.source).weight, old)
    fold_all(model, adapter)
    assert (logits(model) - before).abs().max() < 1e-3 * before.abs().max()


@pytest.mark.parametrize("groups", [1, 2])
def test_heads_that_share_values_inside_of_a_fused_linear(groups):
    config = FalconConfig(
        **{"vocab_size": 120, "hidden_size": 64, "num_hidden_layers": 1, "alibi": False},
        **{"num_attention_heads": 4, "num_kv_heads": groups, "new_decoder_architecture": True},
    )
    model = FalconForCausalLM(config).eval()
    adapter = discover(model)
    (rows,) = rows_of(adapter, model).values()
    assert rows.made == groups * 16
    fused = next(each for each in adapter.scale_groups_of(model.transformer.h[0]) if each.rows)
    shared = source_channels(adapter, model.transformer.h[0], fused)
    assert shared.tolist() == [16 * (c // (64 // groups)) + c % 16 for c in range(64)]


def test_values_that_a_model_clips_are_not_scaled():
    for clip, found in ((None, True), (8.0, False)):
        config = OlmoConfig(
            **{"vocab_size": 120, "hidden_size": 64, "intermediate_size": 96, "clip_qkv": clip},
            **{"num_hidden_layers": 1, "num_attention_heads": 4, "pad_token_id": 0},
        )
        model = OlmoForCausalLM(config)
        groups = discover(model).scale_groups_of(model.model.layers[0])
        assert ("self_attn.v_proj" in {group.source for group in groups}) == found


def test_rows_that_are_not_there_are_an_error():
    model = tiny_llama()
    group = ScaleGroup("mlp.up_proj", ("mlp output",), rows=Rows(128, 128, 128, 1))
    adapter = find_adapter("LlamaForCausalLM")
    with pytest.raises(NotImplementedError, match="has no rows 128 to 255"):
        fold(adapter, model.model.layers[0], group, torch.ones(128))


@pytest.mark.filterwarnings("ignore")
def test_awq_scales_them_and_says_so(tokenizer):
    texts = {"en": torch.arange(48).view(2, 24).tolist(), "sw": torch.arange(24)[None].tolist()}
    ours = mlcalib.quantize(
        tiny("Phi3ForCausalLM"),
        mlcalib.calibration(None, corpus=texts, seq_len=24),
        method="awq",
        tokenizer=tokenizer,
        group_size=16,
        progress=False,
    )
    assert ours.scales["model.layers.0.mlp.gate_up_proj (rows 96 to 191)"].keys() >= {
        "exponent",
        "loss",
    }
