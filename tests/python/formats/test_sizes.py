"""What a format says that a linear takes, against the tensors that it packs."""

import pytest
import torch

from mlcalib import _core
from mlcalib._core import GridSpec
from mlcalib.common.gguf_types import BLOCK_TYPES
from mlcalib.formats import formats
from mlcalib.quantization.recipe import bits_per_weight

ROWS, COLUMNS = 32, 512
HALF = {"scale_dtype": torch.bfloat16}
CASES = [
    *(("compressed-tensors", GridSpec(bits, 64, True, **HALF)) for bits in range(2, 9)),
    ("compressed-tensors", GridSpec(4, 128, False, **HALF)),
    ("compressed-tensors", GridSpec(8, -1, True, **HALF)),
    ("compressed-tensors-int8", GridSpec(8, -1, True, **HALF)),
    ("compressed-tensors-fp8", GridSpec(8, -1, True, numbers="e4m3", **HALF)),
    (
        "compressed-tensors-mxfp4",
        GridSpec(4, 32, True, scale_dtype=torch.float8_e8m0fnu, numbers="e2m1"),
    ),
    (
        "compressed-tensors-nvfp4",
        GridSpec(4, 16, True, scale_dtype=torch.float8_e4m3fn, numbers="e2m1"),
    ),
    (
        "compressed-tensors-nvfp4-w4a4",
        GridSpec(4, 16, True, scale_dtype=torch.float8_e4m3fn, numbers="e2m1"),
    ),
    (
        "compressed-tensors-fp8-static",
        GridSpec(8, -1, True, numbers="e4m3", per_tensor=True, **HALF),
    ),
    ("bitsandbytes", GridSpec(4, 64, True, numbers="nf4", **HALF)),
    *(
        ("bitsandbytes-double", GridSpec(4, size, True, scale_dtype=torch.uint8, numbers="nf4"))
        for size in (32, 64, 512)  # 2 blocks of scales, one, and a part of one
    ),
    *(("awq", GridSpec(4, 128, each, scale_dtype=torch.float16)) for each in (True, False)),
    *(("gptq", GridSpec(bits, 128, True, scale_dtype=torch.float16)) for bits in (2, 3, 4, 8)),
    *(
        ("gptq-v2", GridSpec(bits, 64, each, scale_dtype=torch.float16))
        for bits in (3, 4)
        for each in (True, False)
    ),
    *(
        ("gguf", GridSpec(**kind.options(), scale_dtype=torch.float16))
        for kind in BLOCK_TYPES.values()
    ),
]
BESIDE = ("weight_shape", "quant_map", "bitsandbytes__nf4", "g_idx")
"""Tensors of a few bytes, or that repeat what the config says."""


@pytest.mark.parametrize(("name", "spec"), CASES)
def test_bits_are_those_of_the_packed_tensors(name, spec):
    form = formats.get(name)()
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    linear = _core.rtn(weight, _core.with_global_scale(spec, [weight])).replaced(input_bound=2.0)
    stored = {
        key: tensor
        for key, tensor in form.pack("linear", linear).items()
        if not key.endswith(BESIDE)
    }
    bits = 8 * sum(tensor.numel() * tensor.itemsize for tensor in stored.values())
    assert form.bits(spec, ROWS, COLUMNS) == bits


def test_all_formats_that_hold_codes_are_looked_at():
    holding = {name for name in formats.names() if formats.get(name).codes is not None}
    assert holding == {name for name, _ in CASES}


def test_scales_in_float32_count_as_those_of_a_model_of_16_bits():
    form = formats.get("compressed-tensors")()
    single, half = (GridSpec(4, 64, True, scale_dtype=d) for d in (torch.float32, torch.bfloat16))
    assert form.bits(single, ROWS, COLUMNS) == form.bits(half, ROWS, COLUMNS)


def test_a_mix_weighs_linears_by_their_weights():
    form = formats.get("dense")()
    specs = {"a": GridSpec(4, 64, True, **HALF), "b": GridSpec(8, 64, True, **HALF)}
    shapes = {"a": (96, 64), "b": (32, 64), "left out": (999, 64)}
    assert bits_per_weight(form, specs, shapes) == (96 * 4.25 + 32 * 8.25) / 128
    assert bits_per_weight(form, {}, shapes) == 0.0
