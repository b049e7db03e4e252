"""What vLLM's loaders make room for, restated from ``create_weights``, beside what is written.

Paths are below vllm/model_executor/layers/quantization. A tensor of another shape or dtype fails in
vLLM's weight loader (``param_data.shape == loaded_weight.shape`` in model_executor/parameter.py);
a dtype is cast.
"""

import pytest
import torch
from test_formats import random_linear

from mlcalib._core import GridSpec
from mlcalib.checkpoints.check import Facts, verdicts
from mlcalib.formats import formats

HALF, INT = torch.float16, torch.int32
ROWS, COLUMNS = 128, 256


def gptq_marlin(bits, size, zeros):
    """GPTQMarlinLinearMethod, gptq_marlin.py (AutoGPTQLinearMethod, auto_gptq.py)."""
    pack, groups = 32 // bits, COLUMNS // (COLUMNS if size == -1 else size)
    return {
        "qweight": (INT, (COLUMNS // pack, ROWS)),
        "g_idx": (INT, (COLUMNS,)),
        "qzeros": (INT, (groups, ROWS // pack)),
        "scales": (HALF, (groups, ROWS)),
    }


def awq_marlin(bits, size, zeros):
    """AWQMarlinLinearMethod, awq_marlin.py (AutoAWQMarlinLinearMethod, auto_awq.py)."""
    pack, groups = 32 // bits, COLUMNS // (COLUMNS if size == -1 else size)
    return {
        "qweight": (INT, (COLUMNS, ROWS // pack)),
        "qzeros": (INT, (groups, ROWS // pack)),
        "scales": (HALF, (groups, ROWS)),
    }


def wna16(bits, size, zeros):
    """CompressedTensorsWNA16, compressed_tensors/schemes/compressed_tensors_wNa16.py.

    Its weight_g_idx is for ``actorder: group``, which is not written.
    """
    pack, groups = 32 // bits, COLUMNS // (COLUMNS if size == -1 else size)
    room = {
        "weight_packed": (INT, (ROWS, COLUMNS // pack)),
        "weight_scale": (HALF, (ROWS, groups)),
        "weight_shape": (torch.int64, (2,)),
    }
    if zeros:
        room["weight_zero_point"] = (INT, (ROWS // pack, groups))
    return room


def w8a8(bits, size, zeros):
    """CompressedTensorsW8A8Int8, compressed_tensors/schemes/compressed_tensors_w8a8_int8.py.

    Its scales are float32, into which others are copied.
    """
    return {"weight": (torch.int8, (ROWS, COLUMNS)), "weight_scale": (HALF, (ROWS, 1))}


LOADERS = {
    "gptq": (gptq_marlin, [(4, 128, True), (8, 64, True), (4, -1, True)]),
    "awq": (awq_marlin, [(4, 128, False), (4, 32, False), (4, -1, False)]),
    "compressed-tensors": (wna16, [(4, 128, True), (4, 64, False), (8, -1, True)]),
    "compressed-tensors-int8": (w8a8, [(8, -1, True)]),
}


@pytest.mark.parametrize(
    ("form", "bits", "size", "symmetric"),
    [(form, *grid) for form, (_, grids) in LOADERS.items() for grid in grids],
)
def test_loaders_of_vllm_have_room_for_every_tensor_and_no_other(form, bits, size, symmetric):
    spec = GridSpec(bits, size, symmetric, scale_dtype=HALF)
    written = formats.get(form)().pack("a", random_linear(spec, ROWS, COLUMNS))
    found = {
        name.removeprefix("a."): (tensor.dtype, tuple(tensor.shape))
        for name, tensor in written.items()
    }
    assert found == LOADERS[form][0](bits, size, not symmetric)


def section_of(form, spec):
    return formats.get(form)().quantization_config({"a": spec}, "activation", ["lm_head"])


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_marlin_takes_the_config(bits):
    """is_gptq_marlin_compatible, gptq_marlin.py: without all four it falls back to plain kernels.

    desc_act must be false: ``has_g_idx`` asks for kernels with act-order.
    """
    section = section_of("gptq", GridSpec(bits, 128, True, scale_dtype=HALF))
    assert section["quant_method"] == "gptq"
    assert all(section[key] is not None for key in ("bits", "group_size", "sym", "desc_act"))
    assert (section["bits"], section["sym"]) in {(4, True), (8, True)}  # TYPE_MAP
    assert section["desc_act"] is False


def test_awq_marlin_takes_the_config():
    """is_awq_marlin_compatible, awq_marlin.py; check_marlin_supported with has_zp."""
    section = section_of("awq", GridSpec(4, 128, scale_dtype=HALF))
    assert section["quant_method"] == "awq"
    assert section["bits"] in (4, 8)
    assert section["zero_point"] is True
    assert section["group_size"] in (-1, 32, 64, 128)


def test_w8a8_is_dynamic_by_token():
    """_is_dynamic_token_w8a8 and is_activation_quantization_format, compressed_tensors.py."""
    section = section_of("compressed-tensors-int8", GridSpec(8, -1, True, scale_dtype=HALF))
    assert section["format"] == "int-quantized"  # among those with activations
    (group,) = section["config_groups"].values()
    weights, activations = group["weights"], group["input_activations"]
    assert weights["num_bits"] == activations["num_bits"] == 8
    assert weights["type"] == activations["type"] == "int"
    assert weights["strategy"] in ("tensor", "channel")
    assert weights["symmetric"]
    assert not weights["dynamic"]
    assert activations["strategy"] == "token"
    assert activations["dynamic"] is True


@pytest.mark.parametrize(
    ("shape", "fits"), [((64, 128), True), ((72, 128), False), ((64, 120), False)]
)
def test_int8_kernels_want_sixteens(shape, fits):
    """cutlass_scaled_mm, csrc/quantization/w8a8/cutlass/scaled_mm_entry.cu: strides % 16 == 0.

    vllm/_custom_ops.py takes ``triton_scaled_mm`` where B is not ``cutlass_compatible_b``.
    """
    spec = GridSpec(8, -1, True, scale_dtype=HALF)
    section = section_of("compressed-tensors-int8", spec)
    found = verdicts(Facts(section, {"a": spec}, {"a": shape}, HALF))
    assert found["SGLang"].loads == fits
    assert found["vLLM"].loads
    assert any("Triton" in reason for reason in found["vLLM"].reasons) == (not fits)
    assert found["transformers"].loads
