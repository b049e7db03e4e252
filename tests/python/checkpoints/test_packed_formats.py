"""The gptq and awq layouts, read by loops over bits as their readers' sources describe them."""

import json

import core_data  # noqa: F401 (its hypothesis profile)
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_formats import random_linear

from mlcalib._core import Grid, GridSpec, QuantizedLinear
from mlcalib.formats import formats
from mlcalib.formats._layout import with_fused

GPTQ, GPTQ_V2, AWQ = (formats.get(name)() for name in ("gptq", "gptq-v2", "awq"))
HALVES = [torch.float16, torch.bfloat16]


@st.composite
def linears(draw, bits=(2, 3, 4, 8)):
    width = draw(st.sampled_from(bits))
    multiple = 32 if width == 3 else 32 // width
    size = multiple * draw(st.sampled_from([1, 2]))
    groups = draw(st.integers(1, 3))
    spec = GridSpec(
        width,
        draw(st.sampled_from([size, -1])),
        draw(st.booleans()),
        scale_dtype=draw(st.sampled_from(HALVES)),
    )
    rows = multiple * draw(st.integers(1, 2))
    return random_linear(spec, rows, size * groups, seed=draw(st.integers(0, 99)))


def same(left, right):
    return (
        torch.equal(left.codes, right.codes)
        and torch.equal(left.grid.scale, right.grid.scale)
        and torch.equal(left.grid.zero, right.grid.zero)
        and left.grid.spec.scale_dtype == right.grid.spec.scale_dtype
    )


def stream(words, bits, count):
    """Codes of an LSB-first bit stream."""
    value = sum((word % 2**32) << (32 * i) for i, word in enumerate(words))
    return [value >> (bits * i) & (2**bits - 1) for i in range(count)]


def read_gptq(tensors, bits, version):
    """GPTQQuantLinear.dequantize_weight, gptqmodel/nn_modules/qlinear/__init__.py."""
    qweight, qzeros = tensors["a.qweight"], tensors["a.qzeros"]
    group = tensors["a.g_idx"].long()
    scales = tensors["a.scales"]
    codes = torch.tensor([stream(column, bits, len(group)) for column in qweight.T.tolist()])
    zeros = torch.tensor([stream(row, bits, scales.shape[1]) for row in qzeros.tolist()])
    zeros = (zeros + (version == 1)) % 2**bits
    return (scales[group] * (codes.T - zeros[group])).T


@given(linears())
def test_gptq_comes_back_in_both_versions(linear):
    spec = linear.grid.spec
    for form in (GPTQ, GPTQ_V2):
        assert same(form.unpack("a", form.pack("a", linear), spec), linear)


@given(linears())
def test_a_gptq_reader_dequantizes_the_same_weights(linear):
    spec = linear.grid.spec
    expected = linear.dequantize().to(spec.scale_dtype)
    assert torch.equal(read_gptq(GPTQ_V2.pack("a", linear), spec.bits, 2), expected)
    version = 1 if spec.symmetric else 2
    assert torch.equal(read_gptq(GPTQ.pack("a", linear), spec.bits, version), expected)
    form = GPTQ.quantization_config({"a": spec}, "activation", [])["checkpoint_format"]
    assert form == {1: "gptq", 2: "gptq_v2"}[version]


@pytest.mark.parametrize(
    ("bits", "word"), [(2, 0x55555555), (4, 0x77777777), (8, 0x7F7F7F7F), (3, 0xDB6DB6DB)]
)
def test_symmetric_zeros_of_version_1_are_the_words_of_autogptq(bits, word):
    linear = random_linear(GridSpec(bits, 32, True, scale_dtype=torch.float16), 32, 32)
    assert GPTQ.pack("a", linear)["a.qzeros"][0, 0].item() % 2**32 == word


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_version_1_zeros_of_gptqmodel_are_read_though_they_borrow(bits):
    """convert_gptq_v2_to_v1_format_module subtracts a word of ones, zero points 0 or not."""
    linear = random_linear(GridSpec(bits, 32, scale_dtype=torch.float16), 32, 64)
    linear.grid.zero[::3] = 0
    tensors = GPTQ_V2.pack("a", linear)
    ones = sum(1 << shift for shift in range(0, 32, bits))
    tensors["a.qzeros"] = tensors["a.qzeros"] - ones
    reader = type(GPTQ).of_config({"checkpoint_format": "gptq"})
    assert same(reader.unpack("a", tensors, linear.grid.spec), linear)


@given(linears(bits=(4,)))
def test_awq_comes_back_and_reads_as_autoawq_does(linear):
    spec = linear.grid.spec
    tensors = AWQ.pack("a", linear)
    assert same(AWQ.unpack("a", tensors, spec), linear)
    # dequantize_gemm, awq/utils/packing_utils.py
    reverse = [0, 4, 1, 5, 2, 6, 3, 7]

    def unpacked(words):
        nibbles = (words[:, :, None] >> torch.arange(0, 32, 4)) & 15
        return nibbles[:, :, reverse].reshape(len(words), -1)

    scales = tensors["a.scales"]
    size = len(linear.codes[0]) // len(scales)
    zeros = unpacked(tensors["a.qzeros"]).repeat_interleave(size, 0)
    weight = (unpacked(tensors["a.qweight"]) - zeros) * scales.repeat_interleave(size, 0)
    assert torch.equal(weight.T, linear.dequantize().to(spec.scale_dtype))


SHAPES = {f"model.layers.{i}.{leaf}": (64, 64) for i in range(3) for leaf in (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"
)}  # fmt: skip


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_configs_describe_the_grids(bits, symmetric):
    for form in (GPTQ, GPTQ_V2, AWQ):
        spec = GridSpec(bits, 32, symmetric, scale_dtype=torch.float16)
        if form is AWQ and bits != 4:
            with pytest.raises(ValueError, match=f"4 bits, not {bits}"):
                form.check({"a": spec}, {"a": (64, 64)})
            continue
        section = json.loads(json.dumps(form.quantization_config({"a": spec}, "natural", ["b"])))
        reader = formats.get(section["quant_method"]).of_config(section)
        back = reader.read_specs(section, ["a"], torch.float16)["a"]
        assert (back.bits, back.group_size) == (bits, 32)
        # AWQ always stores zero points, so that a reader sees an asymmetric grid.
        assert back.symmetric == (symmetric and form is not AWQ)


def test_other_grids_are_dynamic_by_the_names_that_vllm_fuses():
    base, other = (GridSpec(bits, 32, True, scale_dtype=torch.float16) for bits in (4, 8))
    left_out = "model.layers.0.mlp.down_proj"
    specs = {
        name: other if name.startswith("model.layers.1.self_attn") else base
        for name in SHAPES
        if name != left_out
    }
    section = GPTQ.quantization_config(specs, "natural", [left_out, "lm_head"])
    back = GPTQ.read_specs(section, specs, torch.float16)
    assert {name: spec.bits for name, spec in back.items()} == {
        name: spec.bits for name, spec in specs.items()
    }
    with pytest.raises(ValueError, match=r"leaves out model\.layers\.0\.mlp\.down_proj"):
        GPTQ.read_specs(section, [left_out], torch.float16)
    fused = GPTQ.read_specs(section, ["model.layers.1.self_attn.qkv_proj"], torch.float16)
    assert [spec.bits for spec in fused.values()] == [8]
    fused = GPTQ.read_specs(section, ["model.layers.0.self_attn.qkv_proj"], torch.float16)
    assert [spec.bits for spec in fused.values()] == [4]
    (listed,) = section["modules_in_block_to_quantize"]
    assert set(listed) == set(specs)


def test_the_names_that_vllm_gives_fused_linears():
    names = ["l.mlp.gate_proj", "l.mlp.up_proj", "l.mlp.experts.0.w1", "l.mlp.experts.1.w1"]
    assert with_fused(names)[4:] == ["l.mlp.gate_up_proj", "l.mlp.experts"]
    assert set(with_fused(names[::-1])) == set(with_fused(names))
    assert with_fused(["l.self_attn.q_proj"]) == ["l.self_attn.q_proj"]


@pytest.mark.parametrize(
    ("form", "spec", "shape", "message"),
    [
        (GPTQ, GridSpec(5, 32), (64, 64), "2, 3, 4 or 8 bits, not 5"),
        (GPTQ, GridSpec(4, 48), (64, 64), "group_size 48 does not divide"),
        (GPTQ, GridSpec(4, -1), (64, 60), "8 input channels, but a has 60"),
        (GPTQ, GridSpec(4, -1), (60, 64), "8 output channels, but a has 60"),
        (GPTQ, GridSpec(3, -1), (64, 48), "32 input channels, but a has 48"),
        (AWQ, GridSpec(4, -1), (60, 64), "8 output channels, but a has 60"),
        (AWQ, GridSpec(4, 48), (64, 64), "group_size 48 does not divide"),
    ],
)
def test_what_does_not_fit_is_refused(form, spec, shape, message):
    with pytest.raises(ValueError, match=message):
        form.check({"a": spec}, {"a": shape})


def test_mixtures_that_do_not_fit_are_refused():
    specs = {"a": GridSpec(4, 32, True), "b": GridSpec(4, 32)}
    shapes = dict.fromkeys(specs, (64, 64))
    with pytest.raises(ValueError, match="--format gptq-v2"):
        GPTQ.check(specs, shapes)
    GPTQ_V2.check(specs, shapes)
    AWQ.check(specs, shapes)  # both have stored zero points
    with pytest.raises(ValueError, match="one group_size"):
        AWQ.check(specs | {"b": GridSpec(4, 64)}, shapes)
    with pytest.raises(ValueError, match=r"'gptq'.*use gptq_v2"):
        type(GPTQ)(1).check(specs, shapes)


def test_damaged_tensors_are_named():
    spec = GridSpec(4, 32, True, scale_dtype=torch.float16)
    for form in (GPTQ, AWQ):
        tensors = form.pack("a", random_linear(spec, 64, 64))
        for name, tensor in tensors.items():
            if name != "a.g_idx":
                with pytest.raises(ValueError, match=name):
                    form.unpack("a", {k: v for k, v in tensors.items() if k != name}, spec)
            with pytest.raises(ValueError, match=r"a\.\w+ (is|puts)|no matrix|of a;"):
                form.unpack("a", tensors | {name: tensor[:-1]}, spec)
    permuted = GPTQ.pack("a", random_linear(spec, 64, 64))
    permuted["a.g_idx"] = permuted["a.g_idx"].flip(0)
    with pytest.raises(ValueError, match="desc_act"):
        GPTQ.unpack("a", permuted, spec)


def test_zeros_of_the_wrong_version_are_named():
    spec = GridSpec(4, 32, True, scale_dtype=torch.float16)
    tensors = GPTQ_V2.pack("a", random_linear(spec, 64, 64))
    with pytest.raises(ValueError, match="is checkpoint_format wrong"):
        GPTQ.unpack("a", tensors, spec)


@pytest.mark.parametrize(
    ("form", "section", "message"),
    [
        ("gptq", {"checkpoint_format": "marlin"}, "'marlin' cannot be read"),
        ("gptq", {"bits": 4, "sym": True}, "no 'group_size'"),
        ("gptq", {"bits": 5, "group_size": 32, "sym": True}, "found 5, 32"),
        ("gptq", {"bits": 4, "group_size": None, "sym": True}, "found 4, None"),
        ("awq", {"version": "gemv"}, "'gemv' cannot be read"),
        ("awq", {"bits": 8, "group_size": 32}, "found 8, 32"),
        ("awq", {"bits": 4, "group_size": 32, "zero_point": False}, "32, False"),
    ],
)
def test_sections_that_cannot_be_read_are_refused(form, section, message):
    with pytest.raises(ValueError, match=message):
        formats.get(form).of_config(section).read_specs(section, ["a"], torch.float16)


def test_a_scale_dtype_is_one_that_readers_have_kernels_for():
    for form in (GPTQ, GPTQ_V2, AWQ):
        assert form.scale_dtype(torch.float32) == torch.float16
        assert form.scale_dtype(torch.bfloat16) == torch.bfloat16
        with pytest.raises(ValueError, match="load it in"):
            form.scale_dtype(torch.int8)


def test_a_symmetric_grid_off_centre_is_refused():
    spec = GridSpec(4, -1, symmetric=True, scale_dtype=torch.float16)
    grid = Grid(torch.ones(8, 1), torch.full((8, 1), 7, dtype=torch.uint8), spec)
    with pytest.raises(ValueError, match="not all 8"):
        GPTQ.pack("a", QuantizedLinear(torch.ones(8, 8, dtype=torch.uint8), grid))


@pytest.mark.parametrize("form", [GPTQ, GPTQ_V2, AWQ])
def test_scales_that_the_checkpoint_cannot_hold_are_refused(form):
    spec = GridSpec(4, -1, symmetric=True, scale_dtype=torch.float16)
    for scale in (1e6, 0.1):  # infinite, or rounded
        grid = Grid(torch.full((8, 1), scale), torch.full((8, 1), 8, dtype=torch.uint8), spec)
        with pytest.raises(ValueError, match=r"a\.b: .*finite and exact"):
            form.pack("a.b", QuantizedLinear(torch.ones(8, 8, dtype=torch.uint8), grid))
