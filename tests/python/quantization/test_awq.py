"""AWQ in the pipeline: scales are folded, the model stays the same, losses are of what was done."""

import copy

import pytest
import torch
from small_models import tiny_llama, tiny_model

import mlcalib
from mlcalib.models import find_adapter
from reference import oracle

IDS = {
    "en": [[(7 * i + j * j) % 360 for j in range(80)] for i in range(3)],
    "sw": [[(11 * i + 5 * j) % 360 for j in range(50)] for i in range(2)],
}
INPUTS = torch.tensor([[5, 9, 200, 31, 77, 8, 301, 4, 16, 55]])


@pytest.fixture
def model():
    return tiny_llama(vocabulary=384)


@pytest.fixture
def calibration():
    return mlcalib.calibration(None, corpus=IDS, seq_len=32)


@pytest.fixture
def quantize(model, calibration, tokenizer):
    def quantize(model=model, **options):
        defaults = {"method": "awq", "group_size": 32, "format": "dense", "progress": False}
        return mlcalib.quantize(model, calibration, tokenizer=tokenizer, **(defaults | options))

    return quantize


@torch.no_grad()
def logits(model):
    return model(INPUTS).logits


def total_loss(quantized):
    return sum(linear.loss for linear in quantized.linears.values())


@pytest.mark.parametrize("objective", ["linear", "block"])
@pytest.mark.parametrize("propagate", ["float", "quantized"])
def test_losses_per_language_add_up(quantize, calibration, objective, propagate):
    quantized = quantize(objective=objective, propagate=propagate)
    for name, linear in quantized.linears.items():
        total = sum(
            calibration.tokens[code] * loss for code, loss in quantized.losses[name].items()
        )
        assert total == pytest.approx(linear.loss, rel=1e-3)


def test_scales_are_found_for_every_group_and_recorded(quantize):
    quantized = quantize(bits=3)
    assert len(quantized.scales) == 2 * 4
    assert quantized.metadata("compressed-tensors")["scales"] == quantized.scales
    for source, found in quantized.scales.items():
        assert source.startswith("model.layers.")
        assert 0 <= found["exponent"] < 1
        assert found["loss"] <= found["unscaled"]
    assert any(found["exponent"] > 0 for found in quantized.scales.values())


def test_the_float_model_with_the_scales_is_the_model(quantize, model):
    """With 8 bits and every row a few channels wide, what is left is the folding."""
    before = logits(model)
    quantized = quantize(bits=8, group_size=8)
    assert any(found["exponent"] > 0 for found in quantized.scales.values())
    norms = [copy.deepcopy(block.input_layernorm.weight) for block in model.model.layers]
    folded = [block.input_layernorm.weight for block in quantized.model.model.layers]
    assert not any(map(torch.equal, norms, folded))
    assert (logits(quantized.model) - before).abs().max() < 0.02 * before.abs().max()
    assert torch.equal(logits(model), before)  # the caller's model is as it was


def test_less_loss_than_without_scales_and_than_without_clip(quantize):
    losses = {
        (points, clip): total_loss(quantize(bits=3, points=points, clip=clip, propagate="float"))
        for points in (1, 20)  # one point: no scale
        for clip in (False, True)
    }
    rtn = total_loss(quantize(method="rtn", bits=3, propagate="float"))
    assert losses[1, False] == pytest.approx(rtn, rel=1e-4)
    assert losses[20, False] < losses[1, False]
    assert losses[1, True] < losses[1, False]
    assert losses[20, True] < losses[1, True]


def test_the_block_objective_takes_the_least_error_of_the_attention(quantize, model, calibration):
    """The first scale group of the first block, against the search of the authors' code."""
    found = quantize(bits=3, objective="block", clip=False).scales
    adapter = find_adapter("LlamaForCausalLM")
    block, text = model.model.layers[0], []
    with torch.no_grad():
        for language in calibration.ids:
            text += [ids for ids, _ in calibration.sequences(language)]
        hidden = [model.model.embed_tokens(ids) for ids in text]
        positions = model.model.rotary_emb(hidden[0], torch.arange(32)[None])
        mask = {"attention_mask": None, "position_embeddings": positions}
        normed = [block.input_layernorm(state) for state in hidden]
        outputs = [block.self_attn(state, **mask)[0] for state in normed]
        pairs = [pair for code in calibration.ids for pair in calibration.sequences(code)]
        counted = [state[0, :count] for state, (_, count) in zip(normed, pairs, strict=True)]
        mean = torch.cat(counted).double().abs().mean(0)
        losses = []
        for scale in oracle.awq_scales(mean, 20):
            changed = copy.deepcopy(block.self_attn)
            for name in adapter.linears["attention"]:
                linear = changed.get_submodule(name.removeprefix("self_attn."))
                rounded = oracle.round_groups(linear.weight.double() * scale, 3, 32) / scale
                linear.weight.data = rounded.float()
            errors = [
                changed(state, **mask)[0] - output
                for state, output in zip(normed, outputs, strict=True)
            ]
            losses.append(float(torch.cat(errors).square().mean()))
    got = found["model.layers.0.input_layernorm"]
    best = min(range(20), key=losses.__getitem__)
    assert got["exponent"] * 20 == pytest.approx(best)
    assert got["loss"] == pytest.approx(losses[best], rel=1e-3)
    assert got["unscaled"] == pytest.approx(losses[0], rel=1e-3)


def test_skipped_linears_are_scaled_but_not_rounded(quantize, model):
    before = logits(model)
    quantized = quantize(bits=8, group_size=8, ignore=["self_attn", "down_proj"])
    assert set(quantized.scales) == {
        f"model.layers.{block}.post_attention_layernorm" for block in (0, 1)
    }
    assert (logits(quantized.model) - before).abs().max() < 0.02 * before.abs().max()


def test_an_expert_without_tokens_keeps_the_model(quantize):
    model = tiny_model("qwen3_moe", vocabulary=384)
    before = logits(model)
    quantized = quantize(model, bits=8, group_size=8, symmetric=True)
    assert (logits(quantized.model) - before).abs().max() < 0.05 * before.abs().max()


def test_ranges_of_inputs_are_recorded(quantize, model, calibration):
    ranges = quantize(propagate="float").ranges
    seen = {}
    handle = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(
        lambda _, args: seen.setdefault("x", []).append(args[0][0])
    )
    with torch.no_grad():
        for ids, _ in calibration.sequences("en"):
            model(ids)
    handle.remove()
    counts = [count for _, count in calibration.sequences("en")]
    x = torch.cat([each[:count] for each, count in zip(seen["x"], counts, strict=True)])
    low, high = ranges["model.layers.1.mlp.down_proj"]["en"]
    assert (low, high) == pytest.approx((float(x.min()), float(x.max())), rel=1e-5)
    assert set(ranges["model.layers.1.mlp.down_proj"]) == {"en", "sw"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"range": "gram_block"}, "minmax"),
        ({"points": 0}, "points is 0, expected at least 1"),
        ({"objective": "layer"}, "'linear' or 'block'"),
    ],
)
def test_wrong_options(quantize, options, message):
    with pytest.raises(ValueError, match=message):
        quantize(**options)


def test_awq_needs_calibration(model, tokenizer):
    with pytest.raises(ValueError, match="awq needs calibration text"):
        mlcalib.quantize(model, method="awq", tokenizer=tokenizer)
