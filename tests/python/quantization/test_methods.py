"""Quantizers as objects, by name, and schemes: one recipe, however it is asked for."""

import inspect
import json

import pytest
import torch
from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme
from small_models import save_tiny_llama

import mlcalib
from mlcalib.common.gguf_types import MIXES
from mlcalib.formats import formats
from mlcalib.quantization.quantize_checkpoint import plan_checkpoint
from mlcalib.quantization.scheme import SCHEMES, choose
from mlcalib.quantizers import quantizers

OBJECTS = {
    "gptq": mlcalib.GPTQ(bits=3, group_size=32, damp=0.02),
    "awq": mlcalib.AWQ(group_size=32, points=4, clip=False),
    "smoothquant": mlcalib.SmoothQuant(alpha=0.4),
    "rtn": mlcalib.RTN(bits=5, group_size=16, range="mse"),
}
KEYWORDS = {
    "gptq": {"bits": 3, "group_size": 32, "damp": 0.02},
    "awq": {"group_size": 32, "points": 4, "clip": False},
    "smoothquant": {"alpha": 0.4},
    "rtn": {"bits": 5, "group_size": 16, "range": "mse"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", tokenizer)


@pytest.fixture(scope="module")
def text(folder):
    return mlcalib.calibration(folder, "en,sw", "sample", tokens=128, seq_len=32)


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_gives_what_name_and_keywords_give(name, folder, text):
    assert type(OBJECTS[name]) is quantizers.get(name).Options
    common = {"format": "dense", "progress": False}
    one = mlcalib.quantize(folder, text, method=OBJECTS[name], **common)
    other = mlcalib.quantize(folder, text, method=name, **KEYWORDS[name], **common)
    assert one.recipe == other.recipe
    assert one.losses == other.losses
    for layer, linear in one.linears.items():
        assert torch.equal(linear.codes, other.linears[layer].codes)
        assert torch.equal(linear.grid.scale, other.linears[layer].grid.scale)


def test_the_records_are_the_same(folder, text, tmp_path):
    asked = {"overrides": {"down_proj": {"group_size": 64}}, "progress": False, "format": "dense"}
    mlcalib.quantize_checkpoint(
        folder, tmp_path / "one", text, method=mlcalib.GPTQ(group_size=32, symmetric=True), **asked
    )
    mlcalib.quantize_checkpoint(
        folder, tmp_path / "other", text, group_size=32, symmetric=True, **asked
    )
    records = []
    for name in ("one", "other"):
        records.append(json.loads((tmp_path / name / "mlcalib.json").read_text()))
        del records[-1]["seconds"]
    assert records[0] == records[1]


def test_a_plan_takes_an_object_and_a_scheme(folder, text):
    plans = [
        plan_checkpoint(folder, text, memory=1.0, **asked)
        for asked in (
            {"method": mlcalib.GPTQ(symmetric=True, group_size=32)},
            {"scheme": "W4A16", "group_size": 32},
        )
    ]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    "kind", [mlcalib.GPTQ, mlcalib.AWQ, mlcalib.SmoothQuant, mlcalib.RTN, mlcalib.QuantizerOptions]
)
def test_the_signature_has_each_option(kind):
    parameters = inspect.signature(kind).parameters
    assert list(parameters) == list(kind.model_fields)
    assert {"bits", "group_size", "symmetric", "range"} <= parameters.keys()
    assert all(name in kind.__doc__ for name in parameters)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (mlcalib.GPTQ, {"bit": 4}, "Unknown option 'bit'. Did you mean 'bits'? Available: bits, "),
        (mlcalib.GPTQ, {"bits": 9}, "bits is 9, expected 2 to 8."),
        (mlcalib.GPTQ, {"bits": "four"}, "bits is 'four', expected a valid integer."),
        (mlcalib.GPTQ, {"damp": "much"}, "damp is 'much', expected a valid number."),
        (mlcalib.GPTQ, {"damp": -1.0}, "damp is -1"),
        (mlcalib.GPTQ, {"order": "x"}, "order is 'x', expected 'activation' or 'natural'."),
        (mlcalib.GPTQ, {"correction": 2}, "correction is 2, expected at most 1 or 'auto'."),
        (mlcalib.GPTQ, {"static_grid": False}, "static_grid=False fits grids as groups are reach"),
        (mlcalib.AWQ, {"points": 0}, "points is 0, expected at least 1."),
        (mlcalib.SmoothQuant, {"alpha": 2}, "alpha is 2.0, expected 0 to 1, or 'search'."),
        (mlcalib.SmoothQuant, {"alpha": "x"}, "alpha is 'x', expected a valid number or 'search'."),
        (mlcalib.RTN, {"range": "gram"}, "range is 'gram', expected 'minmax' or 'mse'."),
        (
            mlcalib.RTN,
            {"bits": None, "range": 3},
            "bits is None, expected a valid integer. range is 3, expected 'minmax' or 'mse'.",
        ),
    ],
)
def test_wrong_options_say_what_was_given_and_expected(kind, options, message):
    with pytest.raises(ValueError) as raised:
        kind(**options)
    assert type(raised.value) is ValueError  # not pydantic's
    assert str(raised.value).startswith(message)
    with pytest.raises(ValueError) as by_name:
        mlcalib.quantize("/nowhere", method=kind.method, **options)
    assert str(by_name.value) == str(raised.value)


def test_what_is_no_method():
    with pytest.raises(ValueError, match=r"came beside it; write GPTQ\(damp=...\)"):
        mlcalib.quantize("/nowhere", method=mlcalib.GPTQ(), damp=0.02)
    with pytest.raises(TypeError, match="the class GPTQ, expected the name of a quantizer"):
        mlcalib.quantize("/nowhere", method=mlcalib.GPTQ)
    with pytest.raises(ValueError, match="its class needs the attribute method"):
        mlcalib.quantize("/nowhere", method=mlcalib.QuantizerOptions())


@pytest.mark.parametrize("name", sorted(SCHEMES.keys() - {"NF4", "NF4_DOUBLE", *MIXES}))
def test_a_scheme_means_what_compressed_tensors_means_by_it(name):
    preset = preset_name_to_scheme(name, ["Linear"])
    method, options, saved = choose(None, name, None, {})
    weights = preset.weights
    assert (options["bits"], options["symmetric"]) == (weights.num_bits, weights.symmetric)
    assert options["group_size"] == (weights.group_size or -1)
    rounding = ("compressed-tensors-int8", "compressed-tensors-fp8")
    rounds = saved in rounding or formats.get(saved).static_inputs
    assert (preset.input_activations is not None) == rounds
    assert options.get("per_tensor", False) == (weights.strategy == "tensor")
    assert (options.get("numbers", "integer") != "integer") == (weights.type == "float")
    assert quantizers.get(method).Options(**options).bits == weights.num_bits


def test_schemes_are_recipes(folder, text):
    int8 = mlcalib.quantize(folder, text, scheme="W8A8", progress=False).recipe
    assert (int8["method"], int8["format"]) == ("smoothquant", "compressed-tensors-int8")
    asked = {"group_size": 32, "progress": False}
    four = mlcalib.quantize(folder, text, scheme="W4A16", method="rtn", format="gptq", **asked)
    assert four.recipe["options"] == {
        "bits": 4, "group_size": 32, "symmetric": True, "range": "minmax", "numbers": "integer",
        "super_block": 0, "scale_bits": 0, "per_tensor": False, "mix": "",
    }  # fmt: skip
    assert (four.recipe["method"], four.recipe["format"]) == ("rtn", "gptq")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"scheme": "W4A6"}, "Unknown scheme 'W4A6'. Did you mean 'W4A16'. Available: W4A16, W4A1"),
        ({"scheme": "W4A16", "bits": 8}, "which means bits=4, but bits=8 was given; leave one"),
        ({"scheme": "W8A8", "format": "gptq"}, "only the format 'compressed-tensors-int8' holds"),
        ({"scheme": "W4A16", "method": mlcalib.GPTQ()}, "give one of them, or the method by name"),
    ],
)
def test_a_scheme_that_cannot_be(asked, message):
    with pytest.raises(ValueError, match=message):
        mlcalib.quantize("/nowhere", **asked)
