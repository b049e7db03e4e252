"""Block by block: statistics, propagation, losses, and what goes wrong."""

import copy

import pytest
import torch
from small_models import tiny_llama
from small_pass import quantize_blocks

import mlcalib
from mlcalib import _core
from mlcalib.models import find_adapter
from mlcalib.quantizers import Quantizer, quantizers
from mlcalib.quantizers.base import QuantizerOptions
from mlcalib.statistics import StatisticSet

ADAPTER = find_adapter("LlamaForCausalLM")


@pytest.fixture
def model():
    return tiny_llama(vocabulary=384)


@pytest.fixture
def quantize(model, calibration, tokenizer):
    def quantize(model=model, calibration=calibration, **options):
        options = {"group_size": 32, "progress": False, **options}
        return mlcalib.quantize(model, calibration, tokenizer=tokenizer, **options)

    return quantize


class Recording(Quantizer):
    """Rounds, and keeps the Grams that it was given."""

    needs = ("gram",)

    def __init__(self):
        super().__init__(QuantizerOptions(bits=2, group_size=-1), torch.float32)
        self.seen = []

    def solve(self, weights, statistics):
        self.seen.append((statistics.tokens, statistics.gram()))
        return [_core.rtn(weight, self.spec) for weight in weights]


def recorded(model, calibration, propagate):
    quantizer = Recording()
    quantize_blocks(model, quantizer, calibration, propagate=propagate)
    return quantizer.seen


def float_grams(model, calibration):
    """The Grams of a plain forward over the counted tokens."""
    grams = {}
    for name, linear in ADAPTER.named_linears(model):

        def hook(_, args, name=name):
            x = args[0][0, :counted].double()
            grams[name] = grams.get(name, 0) + x.T @ x

        linear.register_forward_pre_hook(hook)
    with torch.no_grad():
        for language in calibration.ids:
            for ids, counted in calibration.sequences(language):  # noqa: B007 - read by hook
                model(ids)
    return grams


def test_float_propagation_sees_the_float_model(model, calibration):
    expected = float_grams(copy.deepcopy(model), calibration)
    seen = recorded(model, calibration, "float")
    blocks = ADAPTER.named_blocks(model)
    firsts = [
        f"{name}.{members[0]}"
        for name, block in blocks
        for members in ADAPTER.linears_of(block).values()
    ]
    for name, (tokens, gram) in zip(firsts, seen, strict=True):
        assert tokens == sum(calibration.tokens.values())
        torch.testing.assert_close(gram.double(), expected[name], rtol=1e-4, atol=1e-4)


def test_quantized_propagation_sees_the_quantized_model(model, calibration):
    seen = recorded(model, calibration, "quantized")
    for (_, a), (_, b) in zip(seen[:4], recorded(model, calibration, "float")[:4], strict=True):
        assert torch.equal(a, b)  # nothing comes before the first block
    damaged = copy.deepcopy(model)
    for name, linear in ADAPTER.named_linears(damaged):
        if name.startswith("model.layers.0."):
            linear.weight.data = _core.rtn(linear.weight, Recording().spec).dequantize()
    expected = float_grams(damaged, calibration)
    linears = ADAPTER.linears_of(model.model.layers[1])
    for members, (_, gram) in zip(linears.values(), seen[4:], strict=True):
        reference = expected[f"model.layers.1.{members[0]}"]
        torch.testing.assert_close(gram.double(), reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("propagate", ["float", "quantized"])
@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_losses_per_language_add_up(quantize, calibration, method, propagate):
    quantized = quantize(method=method, propagate=propagate)
    tokens = calibration.tokens
    assert len(quantized.losses) == 14
    for name, linear in quantized.linears.items():
        total = sum(tokens[code] * loss for code, loss in quantized.losses[name].items())
        assert total == pytest.approx(linear.loss, rel=1e-3)


def test_gptq_loses_less_than_rtn_on_its_own_calibration(quantize):
    losses = {
        method: sum(linear.loss for linear in quantize(method=method).linears.values())
        for method in ("gptq", "rtn")
    }
    assert losses["gptq"] < 0.9 * losses["rtn"]


@pytest.mark.parametrize("propagate", ["float", "quantized"])
def test_the_same_bits_again(quantize, propagate):
    first, second = quantize(propagate=propagate), quantize(propagate=propagate)
    for name, linear in first.linears.items():
        assert torch.equal(linear.codes, second.linears[name].codes)
        assert torch.equal(linear.grid.scale, second.linears[name].grid.scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_model_given_is_not_changed_and_the_result_holds_what_codes_say(quantize, dtype):
    model = tiny_llama(vocabulary=384, dtype=dtype)
    before = copy.deepcopy(model.state_dict())
    quantized = quantize(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    for name, linear in quantized.linears.items():
        weight = quantized.model.get_submodule(name).weight
        assert torch.equal(weight, linear.dequantize().to(dtype))
        assert not torch.equal(weight, before[f"{name}.weight"])
    assert quantized.model.lm_head.weight is model.lm_head.weight


def test_rtn_needs_no_text_and_says_so(quantize):
    quantized = quantize(calibration=None, method="rtn")
    assert quantized.calibration is None
    assert all(linear.loss is None for linear in quantized.linears.values())
    assert set(map(len, quantized.losses.values())) == {0}
    with pytest.raises(ValueError, match="gptq needs calibration text"):
        quantize(calibration=None, method="gptq")


def test_nan_in_a_weight_is_found_before_any_forward(quantize, model):
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = float("nan")
    model.forward = None
    with pytest.raises(
        ValueError, match=r"^model\.layers\.1\.mlp\.up_proj: the weight holds 1 NaN"
    ):
        quantize()


def test_inf_in_activations_names_the_layer_and_the_language(quantize, model):
    for linear in (model.model.layers[1].mlp.up_proj, model.model.layers[1].mlp.gate_proj):
        linear.weight.data *= 1e25
    with pytest.raises(
        ValueError, match=r"model\.layers\.1\.mlp\.down_proj, text in 'en': x holds"
    ):
        quantize()


def test_a_gram_that_is_not_positive_definite_names_the_layer(quantize, monkeypatch):
    monkeypatch.setattr(StatisticSet, "gram", lambda self: -torch.eye(self._channels))
    with pytest.raises(
        torch.linalg.LinAlgError, match=r"^model\.layers\.0\.self_attn\.q_proj: the G"
    ):
        quantize()


def test_tied_weights_are_refused(quantize, model):
    layers = model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    with pytest.raises(
        ValueError, match=r"layers\.1\.mlp\.up_proj and .*layers\.0.* share one weight"
    ):
        quantize()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 48}, r"group_size 48 does not divide 64 input channels of .*q_proj"),
        ({"bits": 5, "format": "gptq"}, "gptq holds 2, 3, 4 or 8 bits, not 5"),
        ({"bits": 9}, "bits is 9, expected 2 to 8"),
        ({"method": "gtpq"}, "Unknown quantizer 'gtpq'. Did you mean 'gptq'"),
        ({"format": "ggml"}, "Unknown format 'ggml'"),
        ({"propagate": "both"}, "propagate is 'both'"),
        ({"damping": 0.1}, "Unknown option 'damping'"),
        ({"damp": -1.0}, "damp is -1, expected a positive fraction"),
        ({"order": "activation", "static_grid": False}, "static_grid=False"),
    ],
)
def test_bad_options_are_refused_before_any_forward(quantize, model, options, message):
    model.forward = None
    with pytest.raises(ValueError, match=message):
        quantize(**options)


def test_three_bits_fit_the_dense_format(quantize):
    assert quantize(bits=3, format="dense").linears["model.layers.0.mlp.up_proj"].codes.max() <= 7


def test_a_third_party_quantizer_needs_one_class(quantize):
    @quantizers.register("test-zero")
    class Zero(Quantizer):
        def solve(self, weights, statistics):
            grids = [_core.fit_grid(weight, self.spec) for weight in weights]
            return [_core.QuantizedLinear(g.zero.repeat_interleave(32, 1), g) for g in grids]

    quantized = quantize(calibration=None, method="test-zero")
    assert quantized.model.model.layers[0].mlp.down_proj.weight.abs().max() == 0
