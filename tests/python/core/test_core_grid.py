"""Grids, rounding to them, and the loss of what was rounded."""

import math

import pytest
import torch
from core_data import random_gram, random_weight
from hypothesis import given
from hypothesis import strategies as st

from mlcalib import _core as core
from reference import oracle

seeds = st.integers(0, 2**32 - 1)


@st.composite
def weights(draw, sizes=(1e-30, 1e-3, 1.0, 1e20)):
    rows, columns = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    size = draw(st.sampled_from(sizes))
    return random_weight(rows, columns, draw(seeds)) * size


@st.composite
def specs(draw, ranges=("minmax", "mse")):
    return core.GridSpec(
        bits=draw(st.integers(2, 8)),
        group_size=draw(st.sampled_from([-1, 1, 7, 16, 64])),
        symmetric=draw(st.booleans()),
        range=draw(st.sampled_from(ranges)),
    )


def by_column(values, columns, group_size):
    """The value of each column's group."""
    width = columns if group_size == -1 else group_size
    return values.repeat_interleave(width, 1)[:, :columns]


@given(weights(), specs())
def test_a_grid_fits_its_weight(weight, spec):
    grid = core.fit_grid(weight, spec)
    groups = 1 if spec.group_size == -1 else math.ceil(weight.shape[1] / spec.group_size)
    assert grid.scale.shape == grid.zero.shape == (weight.shape[0], groups)
    assert spec.groups(weight.shape[1]) == groups
    assert grid.scale.dtype == torch.float32
    assert grid.zero.dtype == torch.uint8
    assert (grid.scale > 0).all()
    if spec.symmetric:
        assert (grid.zero == 2 ** (spec.bits - 1)).all()
    else:
        assert (grid.zero.int() < 2**spec.bits).all()


@given(weights(), specs())
def test_codes_are_the_nearest_levels(weight, spec):
    grid = core.fit_grid(weight, spec)
    codes = core.quantize(weight, grid)
    scale = by_column(grid.scale, weight.shape[1], spec.group_size).double()
    zero = by_column(grid.zero, weight.shape[1], spec.group_size).double()
    levels = scale[..., None] * (torch.arange(2.0**spec.bits) - zero[..., None])
    distance = (weight.double()[..., None] - levels).abs()
    chosen = distance.gather(2, codes.long()[..., None])[..., 0]
    assert (chosen <= distance.amin(2) + 1e-5 * scale).all()
    assert torch.equal(core.dequantize(codes, grid), (scale * (codes - zero)).float())


@given(weights(), specs())
def test_what_is_on_the_grid_stays(weight, spec):
    grid = core.fit_grid(weight, spec)
    codes = core.quantize(weight, grid)
    assert torch.equal(core.quantize(core.dequantize(codes, grid), grid), codes)


@given(weights(), st.integers(2, 8))
def test_an_error_is_at_most_half_a_step(weight, bits):
    grid = core.fit_grid(weight, core.GridSpec(bits=bits, group_size=-1))
    error = (weight - core.dequantize(core.quantize(weight, grid), grid)).abs()
    # An asymmetric zero is itself rounded, by up to half a step.
    assert (error <= grid.scale * 1.0001).all()


@pytest.mark.parametrize("search", ["minmax", "mse", "gram"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, -1])
def test_matches_the_oracle(search, symmetric, bits, group_size):
    weight, gram = random_weight(100, 80), random_gram(80)
    spec = core.GridSpec(bits, group_size, symmetric, search)
    grid = core.fit_grid(weight, spec, gram)
    width = 80 if group_size == -1 else group_size
    importance = gram.diagonal().double() if search == "gram" else None
    agree = []
    for group, first in enumerate(range(0, 80, width)):
        part = slice(first, min(first + width, 80))
        scale, zero = oracle.fit_group(
            weight.double()[:, part],
            bits,
            symmetric,
            None if importance is None else importance[part],
            search != "minmax",
        )
        same_scale = (grid.scale[:, group] - scale).abs() <= 1e-6 * scale
        agree.append(same_scale & (grid.zero[:, group] == zero))
    # A search may choose the other of two ranges that lose the same but for rounding.
    assert torch.cat(agree).double().mean() >= (1 if search == "minmax" else 0.99)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_search_pays(bits, symmetric):
    weight, gram = random_weight(64, 128), random_gram(128).diagonal().diag()

    def loss(search):
        return core.rtn(weight, core.GridSpec(bits, 64, symmetric, search), gram).loss

    assert loss("gram") < loss("mse")
    assert loss("gram") < loss("minmax")


def test_a_uniform_gram_searches_by_squared_error():
    weight, gram = random_weight(64, 128), torch.eye(128) * 4
    by_gram, by_error = (
        core.fit_grid(weight, core.GridSpec(3, 32, range=search), gram)
        for search in ("gram", "mse")
    )
    assert torch.equal(by_gram.scale, by_error.scale)
    assert torch.equal(by_gram.zero, by_error.zero)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scales_are_what_the_checkpoint_holds(dtype):
    weight = random_weight(64, 128)
    exact = core.fit_grid(weight, core.GridSpec(4, 32))
    rounded = core.fit_grid(weight, core.GridSpec(4, 32, scale_dtype=dtype))
    assert torch.equal(rounded.scale, exact.scale.to(dtype).float())
    assert not torch.equal(rounded.scale, exact.scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_are_rounded_as_floats(dtype):
    weight, gram = random_weight(40, 96).to(dtype), random_gram(96)
    spec = core.GridSpec(4, 32, range="gram")
    half, single = core.rtn(weight, spec, gram), core.rtn(weight.float(), spec, gram)
    assert torch.equal(half.codes, single.codes)
    assert torch.equal(half.grid.scale, single.grid.scale)
    assert half.loss == single.loss


@given(weights(sizes=(1e-3, 1.0)), specs(ranges=("minmax", "mse", "gram")), seeds)
def test_losses_are_the_traces(weight, spec, seed):
    grams = [random_gram(weight.shape[1], seed + i) for i in range(3)]
    solved = core.rtn(weight, spec, grams[0])
    error = (weight.double() - solved.dequantize().double()).abs()
    found = core.losses(weight, solved, grams)
    assert solved.loss == found[0]
    for each, gram in zip(found, grams, strict=True):
        wanted = oracle.loss(weight, solved.dequantize(), gram)
        size = float((error @ gram.abs().double() * error).sum())
        assert math.isclose(each, wanted, rel_tol=1e-5, abs_tol=1e-6 * size)


def test_rtn_without_a_gram_has_no_loss():
    rounded = core.rtn(random_weight(4, 32), core.GridSpec(4, 32))
    assert rounded.loss is None
    assert rounded.damp == 0
    assert rounded.dead_channels == 0


def test_a_linear_can_be_put_together_again():
    weight = random_weight(4, 32)
    rounded = core.rtn(weight, core.GridSpec(4, 32))
    grid = core.Grid(rounded.grid.scale, rounded.grid.zero, rounded.grid.spec)
    again = core.QuantizedLinear(rounded.codes, grid)
    assert torch.equal(again.dequantize(), rounded.dequantize())
    assert again.loss is None


def test_a_linear_is_replaced_in_part():
    known = {"loss": 2.0, "damp": 0.5, "dead_channels": 3, "input_bound": 7.0, "correction": 0.25}
    rounded = core.rtn(random_weight(4, 32), core.GridSpec(4, 32))
    linear = core.QuantizedLinear(rounded.codes, rounded.grid, **known)
    grid = core.Grid(2 * rounded.grid.scale, rounded.grid.zero, rounded.grid.spec)
    other = linear.replaced(grid=grid, input_bound=1.0, correction=0.0)
    assert torch.equal(other.dequantize(), 2 * linear.dequantize())
    changed = {**known, "input_bound": 1.0, "correction": 0.0}
    for found, wanted in (
        (other, changed),
        (linear, known),  # is left as it was
        (linear.replaced(), known),
        (linear.to(torch.device("cpu")), known),
    ):
        assert {name: getattr(found, name) for name in known} == wanted


def test_specs_say_what_they_are():
    spec = core.GridSpec(3, 64, True, "mse", torch.bfloat16)
    assert (spec.bits, spec.group_size, spec.symmetric) == (3, 64, True)
    assert (spec.range, spec.scale_dtype) == ("mse", torch.bfloat16)
    default = core.GridSpec()
    assert (default.bits, default.group_size, default.symmetric) == (4, 128, False)
    assert (default.range, default.scale_dtype) == ("minmax", torch.float32)
    options = core.GptqOptions()
    assert (options.damp, options.block, options.order) == (0.01, 128, "activation")
    assert options.static_grid
    assert options.grid.range == "gram"
