"""Scales folded into random models of every architecture: the logits stay."""

import copy
from dataclasses import replace

import pytest
import torch
from small_models import ARCHITECTURES, tiny_model
from torch import nn
from transformers.models.llama.modeling_llama import repeat_kv

from mlcalib.models import Adapter, ScaleGroup, find_adapter
from mlcalib.models.experts import unfuse
from mlcalib.models.folding import fold, source_channels

IDS = torch.arange(32)[None] * 5 % 128


def opened(name, **options):
    """Return a model with its experts apart, and its adapter."""
    model = tiny_model(name, **options)
    adapter = find_adapter(type(model).__name__)
    unfuse(model, adapter)
    return model, adapter


@torch.no_grad()
def logits(model):
    return model(IDS).logits


def random_scales(adapter, block, group, generator):
    read = adapter.linears_of(block)[group.inputs[0]][0]
    scales = torch.rand(adapter.linear(block, read).in_features, generator=generator) * 3 + 0.3
    channels = source_channels(adapter, block, group)
    return scales if channels is None else scales[channels]


def fold_all(model, adapter):
    generator = torch.Generator().manual_seed(1)
    folded = []
    for name, block in adapter.named_blocks(model):
        for group in adapter.scale_groups_of(block):
            fold(adapter, block, group, random_scales(adapter, block, group, generator))
            folded.append((name, group))
    return folded


def change(model, adapter):
    """Return the largest change of the logits by folding, as a fraction of the largest logit."""
    before = logits(model)
    fold_all(model, adapter)
    return ((logits(model) - before).abs().max() / before.abs().max()).item()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_stay(name):
    model, adapter = opened(name)
    for key, parameter in model.named_parameters():  # ones and zeros would hide errors
        assert parameter.unique().numel() > parameter.numel() // 2, key
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    assert change(model, adapter) < 1e-5
    scaled = {key for key, value in model.state_dict().items() if not value.equal(weights[key])}
    linears = {f"{linear}.weight" for linear, _ in adapter.named_linears(model)}
    assert linears <= scaled or name == "olmo2"
    assert not any("q_norm" in key or "k_norm" in key or "embed" in key for key in scaled)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_input_behind_a_norm_or_a_linear_has_one_group(name):
    model, adapter = opened(name)
    for _, block in adapter.named_blocks(model):
        inputs = [key for group in adapter.scale_groups_of(block) for key in group.inputs]
        alone = {"attention", "mlp"} if name == "olmo2" else set()  # it has no norm before these
        assert sorted(inputs) == sorted(set(adapter.linears_of(block)) - alone)


def swapped(adapter, old, new):
    """Return the adapter with one scale group replaced."""
    groups = [new if group.source == old else group for group in adapter.scale_groups]
    return replace(adapter, scale_groups=tuple(groups))


def without_readers(adapter):
    groups = tuple(replace(group, readers=()) for group in adapter.experts.scale_groups)
    return replace(adapter, experts=replace(adapter.experts, scale_groups=groups))


MLP = ScaleGroup("post_attention_layernorm", ("mlp",))
BROKEN = {
    "Gemma's norms are 1 + weight": (
        "gemma2",
        lambda adapter: replace(
            adapter, scale_groups=tuple(replace(each, offset=0.0) for each in adapter.scale_groups)
        ),
    ),
    "Gemma's MLP has a norm of its own": (
        "gemma2",
        lambda adapter: swapped(adapter, "pre_feedforward_layernorm", MLP),
    ),
    "Cohere's MLP reads the norm of the attention": (
        "cohere",
        lambda adapter: replace(
            adapter,
            linears={
                **adapter.linears,
                "attention and mlp": adapter.linears["attention and mlp"][:3],
            },
        ),
    ),
    "OLMo-2's norms stand behind": (
        "olmo2",
        lambda adapter: replace(adapter, scale_groups=(MLP,)),
    ),
    "routers read what experts read": ("mixtral", without_readers),
    "so do the gates of shared experts": ("qwen2_moe", without_readers),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_shows(rule):
    name, breaking = BROKEN[rule]
    model, adapter = opened(name)
    assert change(model, breaking(adapter)) > 1e-3


@pytest.mark.parametrize("name", ["qwen2", "llama-bias"])
def test_a_bias_that_is_not_scaled_shows(name):
    model, adapter = opened(name)
    before = logits(model)
    biases = {
        linear: linear.bias for linear in (block.self_attn.v_proj for block in model.model.layers)
    }
    fold_all(model, adapter)
    for linear, bias in biases.items():
        assert not torch.equal(linear.bias, bias)
        linear.bias = bias
    assert (logits(model) - before).abs().max() > 1e-3


def test_heads_that_share_values_share_scales():
    model, adapter = opened("llama")
    block = model.model.layers[0]
    group = adapter.scale_groups_of(block)[1]
    channels = source_channels(adapter, block, group)
    read = repeat_kv(torch.arange(32).view(1, 2, 1, 16), 2).flatten()
    assert channels.dtype == torch.int64
    assert torch.equal(channels, read)
    scales = torch.ones(64)
    scales[5] = 2.0
    with pytest.raises(ValueError, match=r"share one channel of 'self_attn\.v_proj' differ"):
        fold(adapter, block, group, scales)
    assert source_channels(adapter, block, adapter.scale_groups_of(block)[0]) is None


def test_channels_that_fit_no_heads_are_refused():
    model, adapter = opened("llama")
    block = model.model.layers[0]
    group = ScaleGroup("self_attn.v_proj", ("mlp output",))
    block.mlp.down_proj = nn.Linear(80, 64)
    with pytest.raises(NotImplementedError, match="makes 32 channels and mlp output reads 80"):
        source_channels(adapter, block, group)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        (torch.ones(63), r"torch\.float32 \[63\], expected torch\.float32 \[64\]"),
        (torch.ones(64, dtype=torch.float64), r"torch\.float64 \[64\], expected torch\.float32"),
        (torch.ones(64).index_fill(0, torch.tensor([3]), 0.0), "1 of 64 scales are not positive"),
        (torch.ones(64).index_fill(0, torch.tensor([1, 2]), torch.inf), "2 of 64 scales are not"),
        (torch.full([64], torch.nan), "64 of 64 scales are not positive and finite"),
    ],
)
def test_bad_scales_are_refused(scales, message):
    model, adapter = opened("llama")
    block = model.model.layers[0]
    before = copy.deepcopy(block.state_dict())
    with pytest.raises(ValueError, match=message):
        fold(adapter, block, adapter.scale_groups_of(block)[0], scales)
    assert all(value.equal(before[key]) for key, value in block.state_dict().items())


@pytest.mark.parametrize("name", ["gemma2", "mixtral", "qwen2"])
def test_a_model_that_shares_the_parameters_is_not_changed(name):
    model, adapter = opened(name, dtype=torch.bfloat16)
    before = logits(model)
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    fold_all(twin, adapter)
    assert torch.equal(logits(model), before)
    assert {parameter.dtype for parameter in twin.parameters()} == {torch.bfloat16}
    assert not torch.equal(logits(twin), before)  # weights are rounded to bfloat16 again


@pytest.mark.parametrize("name", ["cohere", "mixtral", "qwen2"])
def test_powers_of_two_change_no_bit_in_bfloat16(name):
    model, adapter = opened(name, dtype=torch.bfloat16)
    before = logits(model)
    generator = torch.Generator().manual_seed(1)
    for _, block in adapter.named_blocks(model):
        for group in adapter.scale_groups_of(block):
            scales = random_scales(adapter, block, group, generator)
            fold(adapter, block, group, scales.log2().round().exp2())
    assert torch.equal(logits(model), before)


def test_the_bias_of_a_norm_is_scaled():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(6), nn.Linear(6, 4)
            for parameter in self.parameters():
                nn.init.normal_(parameter)

    group = ScaleGroup("norm", ("x",))
    adapter = Adapter(("Model",), "blocks", {"x": ("linear",)}, (group,))
    block, x = Block(), torch.randn(5, 6)
    expected = block.linear(block.norm(x))
    fold(adapter, block, group, torch.rand(6) + 0.5)
    torch.testing.assert_close(block.linear(block.norm(x)), expected)
