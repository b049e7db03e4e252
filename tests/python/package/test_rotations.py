"""Rotations of the benchmark folded into random models of every family; Grams rotated with them."""

import importlib.util
from pathlib import Path

import pytest
import torch
from core_data import NEARLY_ALL, share_equal
from small_models import ARCHITECTURES, tiny_model

import mlcalib
from mlcalib import _core as core
from mlcalib.models import find_adapter
from mlcalib.models.experts import unfuse

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "python" / "rotations.py"
spec = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
rotations = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rotations)

IDS = torch.arange(32)[None] * 5 % 128
NORMS_BEHIND = {"gemma2", "olmo2"}


def opened(name):
    """Return a model with its experts apart."""
    model = tiny_model(name)
    unfuse(model, find_adapter(type(model).__name__))
    return model


@pytest.mark.parametrize("rotation", rotations.ROTATIONS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_stay_where_no_norm_stands_behind(name, rotation):
    model = opened(name)
    change = rotations.largest_change(model, rotations.rotate(model, rotation, 0)[0], IDS)
    if name in NORMS_BEHIND and rotation != "heads":
        assert change > 1e-2
    else:
        assert change < 1e-12


@pytest.mark.parametrize("rotation", rotations.ROTATIONS)
def test_what_is_rotated(rotation):
    model = opened("llama-bias")
    before = model.double().state_dict()
    after = rotations.rotate(model, rotation, 0)[0].state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    linears = {f"self_attn.{name}_proj" for name in "qkvo"}
    linears |= {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    readers = {"self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj", "mlp.up_proj"}
    values = {"self_attn.v_proj.weight", "self_attn.v_proj.bias", "self_attn.o_proj.weight"}
    stream = {f"{each}.weight" for each in linears}
    stream |= {"self_attn.o_proj.bias", "mlp.down_proj.bias"}
    stream |= {"input_layernorm.weight", "post_attention_layernorm.weight"}
    expected = {"residual": stream, "heads": values, "both": stream | values}[rotation]
    assert readers <= linears
    of_blocks = {f"model.layers.{block}.{name}" for block in range(2) for name in expected}
    ends = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert changed == of_blocks | (set() if rotation == "heads" else ends)


@pytest.mark.parametrize("channels", [1, 9, 16, 48, 576])
def test_rotations_are_orthogonal(channels):
    generator = torch.Generator().manual_seed(3)
    q = rotations.random_rotation(channels, generator)
    eye = torch.eye(channels, dtype=torch.float64)
    torch.testing.assert_close(q @ q.T, eye)
    if channels > 1:
        assert q.abs().max() < 1
        kept = rotations.keeping_the_mean(channels, generator)
        torch.testing.assert_close(kept @ kept.T, eye)
        torch.testing.assert_close(kept.sum(1), torch.ones(channels, dtype=torch.float64))
        assert not torch.allclose(kept, eye, atol=0.1)


@pytest.mark.parametrize("rotation", rotations.ROTATIONS)
@pytest.mark.parametrize("name", ["llama", "qwen2", "cohere"])
def test_grams_are_rotated_instead_of_gathered(name, rotation):
    model = opened(name).double()
    rotated, changes = rotations.rotate(model, rotation, 0)
    ids = torch.randint(128, (4, 64), generator=torch.Generator().manual_seed(4))
    with rotations.Double():
        before, after = rotations.gather(model, ids), rotations.gather(rotated, ids)
    made = {key: rotations.rotated_gram(gram, changes.get(key)) for key, gram in before.items()}
    options = core.GptqOptions(core.GridSpec(bits=3, group_size=32, range="gram"))
    for key, gram in after.items():
        torch.testing.assert_close(made[key], gram, rtol=0, atol=1e-12 * float(gram.max()))
        assert torch.equal(before[key], made[key]) == (key not in changes)
        weight = rotated.get_submodule(key).weight.detach().float()
        codes = [core.gptq(weight, each.float(), options).codes for each in (made[key], gram)]
        assert share_equal(*codes) >= NEARLY_ALL


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_solves_as_quantize_does(name, tokenizer):
    """Grams of all text, and mlcalib's defaults."""
    model = opened(name)
    ids = torch.randint(128, (6, 32), generator=torch.Generator().manual_seed(5))
    quantized = mlcalib.quantize(
        model,
        mlcalib.calibration(None, corpus={"en": ids.tolist()}, seq_len=32),
        propagate="float",
        tokenizer=tokenizer,
        bits=3,
        group_size=32,
        format="dense",
        progress=False,
    )
    rotations.solve(model, rotations.gather(model, ids), bits=3, group_size=32)
    for key, linear in find_adapter(type(model).__name__).named_linears(model):
        other = quantized.model.get_submodule(key).weight
        assert share_equal(linear.weight, other) >= NEARLY_ALL
