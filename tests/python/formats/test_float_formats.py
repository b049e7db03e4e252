"""NF4, MXFP4 and NVFP4 as compressed-tensors and bitsandbytes read them, and back."""

import json

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import (
    QuantizationConfig,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import (
    calculate_qparams,
    compute_dynamic_scales_and_zp,
    generate_gparam,
)
from core_data import random_gram, random_weight

from mlcalib import _core
from mlcalib._core import GptqOptions, GridSpec
from mlcalib.formats import formats

NAMES = ("mxfp4", "nvfp4", "nvfp4-w4a4", "fp8", "fp8-static")
MXFP4, NVFP4, W4A4, FP8, STATIC = (formats.get(f"compressed-tensors-{name}")() for name in NAMES)
NF4 = formats.get("bitsandbytes")()
SPECS = {
    MXFP4: GridSpec(4, 32, True, scale_dtype=torch.float8_e8m0fnu, numbers="e2m1"),
    NVFP4: GridSpec(4, 16, True, scale_dtype=torch.float8_e4m3fn, numbers="e2m1"),
    W4A4: GridSpec(4, 16, True, scale_dtype=torch.float8_e4m3fn, numbers="e2m1"),
    FP8: GridSpec(8, -1, True, scale_dtype=torch.bfloat16, numbers="e4m3"),
    STATIC: GridSpec(8, -1, True, scale_dtype=torch.bfloat16, numbers="e4m3", per_tensor=True),
    NF4: GridSpec(4, 64, True, scale_dtype=torch.bfloat16, numbers="nf4"),
}
PRESETS = {
    MXFP4: "MXFP4A16",
    NVFP4: "NVFP4A16",
    W4A4: "NVFP4",
    FP8: "FP8_DYNAMIC",
    STATIC: "FP8",
}
FP4 = pytest.mark.parametrize("form", [MXFP4, NVFP4], ids=NAMES[:2])
INPUTS = pytest.mark.parametrize("form", [W4A4, STATIC], ids=["nvfp4-w4a4", "fp8-static"])
FLOATS = pytest.mark.parametrize("form", PRESETS, ids=NAMES)
ALL = pytest.mark.parametrize(
    "form", SPECS, ids=["mxfp4", "nvfp4", "nvfp4-w4a4", "fp8", "fp8-static", "nf4"]
)


def solved(form, rows=24, columns=128, seed=0):
    weight = (random_weight(rows, columns, seed) * 0.05).bfloat16()
    linear = _core.gptq(weight, random_gram(columns), GptqOptions(SPECS[form]))
    return weight, linear.replaced(input_bound=7.3) if form.static_inputs else linear


@ALL
def test_unpack_returns_what_was_packed(form):
    _, linear = solved(form)
    config = json.loads(json.dumps(form.quantization_config({"a": SPECS[form]}, "natural", [])))
    spec = type(form).of_config(config).read_specs(config, ["a"], torch.bfloat16)["a"]
    back = form.unpack("a", form.pack("a", linear), spec)
    assert torch.equal(back.codes, linear.codes)
    assert torch.equal(back.grid.scale, linear.grid.scale)
    assert torch.equal(back.grid.zero, linear.grid.zero)
    own = GridSpec.__getstate__(linear.grid.spec)
    assert GridSpec.__getstate__(back.grid.spec) == own
    again = form.pack("a", back)
    packed = form.pack("a", linear)
    assert all(torch.equal(again[name].float(), each.float()) for name, each in packed.items())


@FLOATS
def test_the_compressed_tensors_library_reads_what_was_packed(form):
    _, linear = solved(form)
    config = form.quantization_config({"a": SPECS[form]}, "natural", ["lm_head"])
    scheme = QuantizationConfig.model_validate(config).config_groups["group_0"]
    preset = preset_name_to_scheme(PRESETS[form], ["Linear"])
    for name in ("weights", "input_activations"):
        ours, theirs = (getattr(each, name) for each in (scheme, preset))
        exclude = {"observer"}  # which says how scales were found
        assert (ours and ours.model_dump(exclude=exclude)) == (
            theirs and theirs.model_dump(exclude=exclude)
        )
    state = {name.removeprefix("a."): tensor for name, tensor in form.pack("a", linear).items()}
    library = BaseCompressor.get_value_from_registry(config["format"])
    assert library.can_compress(torch.nn.Linear, scheme)
    weight = library.decompress(state, scheme)["weight"]
    assert torch.equal(weight, linear.dequantize().to(weight.dtype))


@INPUTS
def test_inputs_up_to_the_bound_are_held(form):
    _, linear = solved(form)
    back = form.unpack("a", form.pack("a", linear), SPECS[form])
    assert back.input_bound == pytest.approx(7.3, rel=1e-2)
    assert back.input_bound >= 7.3 * (1 - 1e-6)


def test_inputs_are_rounded_as_the_compressed_tensors_library_rounds_them():
    _, linear = solved(W4A4)
    tensors = W4A4.pack("a", linear)
    arguments = preset_name_to_scheme("NVFP4", ["Linear"]).input_activations
    divisor = tensors["a.input_global_scale"]
    x = torch.randn(2, 9, 128, generator=torch.Generator().manual_seed(1)) * 2
    x[0, 0, :16] = 0
    x[1, 3, 40] = 30.0  # clipped: larger than the bound
    module = torch.nn.Linear(128, 8)
    scale, zero = compute_dynamic_scales_and_zp(x, arguments, module, divisor)
    wanted = fake_quantize(x, scale, zero, arguments, global_scale=divisor)
    found = W4A4.input_rounding("a", tensors)(x)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    assert W4A4.input_rounding("a", tensors)(x.bfloat16()).dtype == torch.bfloat16


@INPUTS
def test_a_linear_without_a_range_of_its_input_is_refused(form):
    _, linear = solved(form)
    with pytest.raises(ValueError, match="a: the range of its input is not known"):
        form.pack("a", linear.replaced(input_bound=0.0))


@INPUTS
def test_a_damaged_range_is_told(form):
    _, linear = solved(form)
    tensors = form.pack("a", linear)
    (name,) = (each for each in tensors if "input" in each)
    for value in (torch.zeros(1), torch.ones(2), torch.tensor([torch.inf])):
        with pytest.raises(ValueError, match=f"{name} is .* expected a positive number"):
            form.unpack("a", tensors | {name: value}, SPECS[form])
    del tensors[name]
    with pytest.raises(ValueError, match=f"no tensor {name}"):
        form.unpack("a", tensors, SPECS[form])


def test_rows_with_several_scales_are_no_tensor_with_one():
    _, linear = solved(STATIC)
    scale = linear.grid.scale.clone()
    scale[3] *= 2
    grid = _core.Grid(scale, linear.grid.zero, linear.grid.spec)
    with pytest.raises(ValueError, match="its rows have several scales"):
        STATIC.pack("a", _core.QuantizedLinear(linear.codes, grid, input_bound=1.0))


@FP4
def test_rounding_is_that_of_the_compressed_tensors_library(form):
    weight = (random_weight(48, 128, 5) * 0.05).float()
    linear = _core.rtn(weight, SPECS[form])
    arguments = preset_name_to_scheme(PRESETS[form], ["Linear"])
    groups = weight.view(48, -1, SPECS[form].group_size)
    low, high = groups.amin(-1), groups.amax(-1)
    divisor = generate_gparam(weight.min(), weight.max()) if form is NVFP4 else None
    scale, zero = calculate_qparams(low, high, arguments.weights, divisor)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
    if divisor is not None:
        state["weight_global_scale"] = divisor
    library = BaseCompressor.get_value_from_registry(form.layout_name)
    wanted = library.compress(state, arguments)
    found = form.pack("a", linear)
    for name in ("weight_scale", "weight_global_scale"):
        if name in wanted:
            assert torch.equal(found[f"a.{name}"].float(), wanted[name].float())
    # It keeps the sign of zero, which is another code for the same number.
    again = {**wanted, "weight_packed": found["a.weight_packed"]}
    values = [library.decompress(dict(each), arguments)["weight"] for each in (wanted, again)]
    assert torch.equal(*values)


@pytest.mark.parametrize(
    ("form", "spec", "message"),
    [
        (MXFP4, GridSpec(4, 32, True), "holds grids of e2m1 numbers, not of integer"),
        (MXFP4, SPECS[NVFP4], "mxfp4-pack-quantized holds groups of 32; given 4 bits"),
        (NVFP4, SPECS[MXFP4], "nvfp4-pack-quantized holds groups of 16"),
        (NF4, GridSpec(4, 16, True, numbers="nf4"), "NF4 in blocks of 32, 64"),
        (FP8, SPECS[STATIC], "holds scales of rows or groups, and a has others; save with compr"),
        (STATIC, SPECS[FP8], "holds one scale for each tensor, and a has others; save with dense"),
        (formats.get("gptq")(), SPECS[NF4], "not of nf4 .*bitsandbytes-double or dense"),
    ],
)
def test_grids_that_do_not_fit_are_refused(form, spec, message):
    def check():
        form.check_numbers({"a": spec})
        form.check({"a": spec}, {"a": (8, 128)})

    with pytest.raises(ValueError, match=message):
        check()


def test_nf4_that_is_damaged_is_told():
    _, linear = solved(NF4)
    good, spec = NF4.pack("a", linear), SPECS[NF4]
    state = "a.weight.quant_state.bitsandbytes__nf4"
    for name, value, message in (
        (state, torch.tensor([1, 2], dtype=torch.uint8), "does not say blocksize and shape"),
        ("a.weight", torch.zeros(3, 1, dtype=torch.uint8), r"a\.weight is torch\.uint8 \[3, 1\]"),
        ("a.weight.absmax", torch.zeros(2), "absmax is"),
        ("a.weight.quant_map", torch.arange(16.0), "other numbers than NormalFloat"),
    ):
        with pytest.raises(ValueError, match=message):
            NF4.unpack("a", {**good, name: value}, spec)


@pytest.mark.parametrize("kind", [{"load_in_8bit": True}, {"load_in_4bit": True}])
def test_other_weights_of_bitsandbytes_are_refused(kind):
    with pytest.raises(ValueError, match="cannot be read; expected nf4"):
        type(NF4).of_config({"quant_method": "bitsandbytes", **kind})


def quantized_by_bitsandbytes(weight, *, nested):
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, state = functional.quantize_4bit(
        weight, blocksize=64, quant_type="nf4", compress_statistics=nested
    )
    tensors = {f"a.weight.{name}": each for name, each in state.as_dict(packed=True).items()}
    return {"a.weight": packed, **tensors}, functional.dequantize_4bit(packed, state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_that_of_bitsandbytes(dtype):
    weight = random_weight(200, 640, 9).to(dtype)
    wanted, values = quantized_by_bitsandbytes(weight, nested=False)
    spec = GridSpec(4, 64, True, scale_dtype=dtype, numbers="nf4")
    linear = _core.rtn(weight, spec)
    found = NF4.pack("a", linear)
    state = "a.weight.quant_state.bitsandbytes__nf4"
    assert found.keys() == wanted.keys()
    for name in found.keys() - {state}:
        assert torch.equal(found[name], wanted[name]), name
    assert json.loads(bytes(found[state].tolist())) == json.loads(bytes(wanted[state].tolist()))
    assert torch.equal(linear.dequantize().to(dtype), values)


def test_double_quantization_of_bitsandbytes_is_read():
    weight = random_weight(200, 640, 9).bfloat16()
    tensors, values = quantized_by_bitsandbytes(weight, nested=True)
    linear = NF4.unpack("a", tensors, SPECS[NF4])
    assert linear.grid.spec.scale_dtype == torch.float32
    assert torch.equal(linear.dequantize().bfloat16(), values)


def test_bitsandbytes_reads_what_gptq_chose():
    functional = pytest.importorskip("bitsandbytes.functional")
    _, linear = solved(NF4)
    tensors = {name.removeprefix("a."): each for name, each in NF4.pack("a", linear).items()}
    packed = tensors.pop("weight")
    stripped = {name.removeprefix("weight."): each for name, each in tensors.items()}
    state = functional.QuantState.from_dict(stripped, torch.device("cpu"))
    values = functional.dequantize_4bit(packed, state)
    assert torch.equal(values, linear.dequantize().bfloat16())
