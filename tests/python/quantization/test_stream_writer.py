"""The last linear of a block makes up for errors of all that the block returns."""

from functools import partial

import pytest
import torch
import transformers
from small_models import tiny_model

from mlcalib.models import adapter_for
from mlcalib.models.running import embed, run_block, watching
from mlcalib.quantization.stream_writer import find_stream_writer


def second_block(model):
    """A block, its adapter, hidden states for it, and how it is run."""
    adapter = adapter_for(model)
    name, block = adapter.named_blocks(model)[1]
    with torch.no_grad():
        state, inputs = embed(model, adapter, torch.arange(24)[None] % 100)
    return adapter, block, state, partial(run_block, block, inputs=inputs[name])


def found_in(model):
    adapter, block, state, run = second_block(model)
    with torch.no_grad():
        return find_stream_writer(adapter, block, partial(run, state))


@pytest.mark.parametrize("architecture", ["llama", "llama-bias", "qwen3", "cohere"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_last_linear_where_nothing_comes_behind(architecture, dtype):
    found = found_in(tiny_model(architecture).to(dtype))
    assert found.name == "mlp output"
    assert found.inverse.shape == (128, 64)


@pytest.mark.parametrize("architecture", ["gemma2", "olmo2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_is_none_behind_a_norm(architecture, dtype):
    assert found_in(tiny_model(architecture).to(dtype)) is None


@pytest.mark.parametrize("multiplier", [1.0, 0.22, -3.0])
@torch.no_grad()
def test_a_reference_asks_for_what_the_block_lacks(multiplier):
    model = tiny_model("llama")
    adapter, block, state, plain = second_block(model)
    linear = block.mlp.down_proj
    block.mlp.register_forward_hook(lambda _, __, output: multiplier * output)
    read = []

    def see(name, x, _):
        if name == "mlp output":
            read.append(x)

    with watching(adapter, block, see):
        output = plain(state)
    found = find_stream_writer(adapter, block, partial(plain, state))
    wanted = output + torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    reference = found.reference(read[0], wanted, output)
    reached = multiplier * (reference - read[0]) @ linear.weight.t()
    torch.testing.assert_close(reached[None], wanted - output, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_what_is_switched_off_writes_nothing():
    model = tiny_model("llama")
    _, block, _, _ = second_block(model)
    block.mlp.register_forward_hook(lambda _, __, output: 0 * output)
    assert found_in(model) is None


@torch.no_grad()
def test_weights_of_zeros_or_nan_have_no_inverse():
    for value in (0, torch.nan):
        model = tiny_model("llama")
        _, block, _, _ = second_block(model)
        block.mlp.down_proj.weight.fill_(value)
        assert found_in(model) is None


def test_a_model_that_is_discovered_has_one():
    sizes = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2}
    config = transformers.GraniteConfig(**sizes, **heads, residual_multiplier=0.22)
    torch.manual_seed(0)
    model = transformers.GraniteForCausalLM(config).eval()
    found = found_in(model)
    weight = model.model.layers[1].mlp.down_proj.weight
    unit = 0.22 * weight.detach() @ found.inverse
    torch.testing.assert_close(unit, torch.eye(32), rtol=0, atol=1e-3)
