"""The product of activations and packed weights, as Python calls it."""

import copy
import pickle

import pytest
import torch
from core_data import activations, random_weight
from hypothesis import given
from hypothesis import strategies as st

from mlcalib import _core as core

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def quantized(rows, columns, spec, seed=0):
    return core.rtn(random_weight(rows, columns, seed), spec)


specs = st.builds(
    core.GridSpec,
    bits=st.integers(2, 8),
    group_size=st.sampled_from([-1, 1, 5, 8, 16, 33, 64, 128]),
    symmetric=st.booleans(),
    scale_dtype=st.sampled_from(DTYPES),
)


@given(spec=specs, rows=st.integers(1, 100), columns=st.integers(1, 200))
def test_what_was_packed_is_unpacked(spec, rows, columns):
    linear = quantized(rows, columns, spec)
    back = core.unpack_linear(core.pack_linear(linear), rows, columns, spec)
    assert torch.equal(back.codes, linear.codes)
    assert torch.equal(back.grid.scale, linear.grid.scale)
    assert torch.equal(back.grid.zero, linear.grid.zero)


@given(
    spec=specs,
    rows=st.integers(1, 100),
    columns=st.integers(1, 200),
    tokens=st.integers(0, 40),
    dtype=st.sampled_from(DTYPES),
    has_bias=st.booleans(),
    seed=st.integers(0, 100),
)
def test_the_product_is_that_of_the_dequantized_weight(
    spec, rows, columns, tokens, dtype, has_bias, seed
):
    linear = quantized(rows, columns, spec, seed)
    weight = linear.dequantize().double()
    x = activations(tokens, columns, seed).to(dtype)
    bias = random_weight(1, rows, seed + 1)[0].to(dtype) if has_bias else None
    y = core.packed_linear(x, core.pack_linear(linear), rows, columns, spec, bias)
    assert y.dtype == dtype
    assert y.shape == (tokens, rows)
    wanted = x.double() @ weight.T + (0 if bias is None else bias.double())
    # Sums differ by their order; one token's take the zero point off sums of x.
    sums = x.double().abs() @ weight.abs().T
    sums += x.double().abs().sum(1, keepdim=True) * weight.abs().max()
    rounding = {torch.float32: 1e-7, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    assert ((y.double() - wanted).abs() <= 2e-6 * sums + rounding * wanted.abs() + 1e-7).all()


@pytest.mark.parametrize("tokens", [1, 7, 300])
def test_threads_change_nothing(tokens):
    spec = core.GridSpec(4, 64)
    packed = core.pack_linear(quantized(700, 576, spec))
    x = activations(tokens, 576)
    one = core.packed_linear(x, packed, 700, 576, spec)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(core.packed_linear(x, packed, 700, 576, spec), one)
    finally:
        torch.set_num_threads(threads)


def test_leading_dimensions_and_strides_are_kept():
    spec = core.GridSpec(8, 16)
    linear = quantized(10, 24, spec)
    packed = core.pack_linear(linear)
    x = activations(2 * 3 * 48, 24).view(2, 3, 48, 24)
    y = core.packed_linear(x, packed, 10, 24, spec)
    assert y.shape == (2, 3, 48, 10)
    columns = x.flatten(0, 2).T.contiguous().T
    assert torch.equal(core.packed_linear(columns, packed, 10, 24, spec), y.flatten(0, 2))


@pytest.mark.parametrize("spec", [core.GridSpec(), core.GridSpec(8, -1, True, "mse")])
@pytest.mark.parametrize("remake", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_spec_survives_copies(spec, remake):
    same = remake(spec)
    for field in ("bits", "group_size", "symmetric", "range", "scale_dtype"):
        assert getattr(same, field) == getattr(spec, field)


SPEC = core.GridSpec(4, 16)


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, r"\[10, 33\] of 4 bits in groups of 16 takes uint8 \[1", {"columns": 33}),
        (ValueError, r"is Byte \[1, 704\].*takes uint8 \[2, 704\]", {"rows": 33}),
        (ValueError, "of 8 bits", {"spec": core.GridSpec(8, 16)}),
        (ValueError, r"bias has shape \[11\], expected \[10\]", {"bias": torch.zeros(11)}),
        (TypeError, "bias is BFloat16 but x is Float", {"bias": torch.zeros(10).bfloat16()}),
        (TypeError, "x is Double", {"dtype": torch.float64}),
        (NotImplementedError, "packed_linear.*meta", {"device": "meta"}),
    ],
)
def test_what_does_not_fit_is_refused(error, message, change):
    packed = core.pack_linear(quantized(10, 24, SPEC))
    arguments = {"rows": 10, "columns": 24, "spec": SPEC, "bias": None} | change
    x = torch.zeros(2, arguments["columns"], dtype=arguments.pop("dtype", None))
    device = arguments.pop("device", "cpu")
    with pytest.raises(error, match=message):
        core.packed_linear(x.to(device), packed.to(device), **arguments)


@pytest.mark.parametrize("columns", [1, 17, 23, 25, 32])  # of no more bytes, and of more
def test_tokens_of_other_columns_are_refused(columns):
    packed = core.pack_linear(quantized(10, 24, SPEC))
    with pytest.raises(ValueError, match=rf"x has shape \[2, {columns}\], expected \[..., 24\]"):
        core.packed_linear(torch.zeros(2, columns), packed, 10, 24, SPEC)


def test_a_grid_that_does_not_describe_its_codes_is_refused():
    linear = quantized(10, 24, SPEC)
    codes, grid = linear.codes, linear.grid
    with pytest.raises(ValueError, match="codes go up to 16, but 4 bits hold at most 15"):
        core.pack_linear(core.QuantizedLinear(torch.full_like(codes, 16), grid))
    symmetric = core.GridSpec(4, 16, symmetric=True)
    wrong = core.Grid(grid.scale, torch.zeros_like(grid.zero), symmetric)
    with pytest.raises(ValueError, match="zero points are not all 8"):
        core.pack_linear(core.QuantizedLinear(codes, wrong))
    narrow = core.GridSpec(4, 16, scale_dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="exact in BFloat16"):
        core.pack_linear(core.QuantizedLinear(codes, core.Grid(grid.scale, grid.zero, narrow)))
    with pytest.raises(ValueError, match=r"codes has shape \[10, 40\]"):
        core.pack_linear(core.QuantizedLinear(torch.zeros(10, 40, dtype=torch.uint8), grid))
