"""Grids of other numbers than integers: NF4, floats of 4 and 8 bits, and what scales may be."""

import pickle

import pytest
import torch
from core_data import NEARLY_ALL, random_gram, random_weight, share_equal

from mlcalib import _core as core
from mlcalib._core import GridSpec
from reference import oracle

POWERS, FP8 = torch.float8_e8m0fnu, torch.float8_e4m3fn
SCALES = {torch.float32: "any", POWERS: "powers", FP8: "e4m3"}
GRIDS = {
    "nf4": GridSpec(4, 64, True, numbers="nf4"),
    "e2m1": GridSpec(4, 32, True, numbers="e2m1"),
    "mxfp4": GridSpec(4, 32, True, scale_dtype=POWERS, numbers="e2m1"),
    "nvfp4": GridSpec(4, 16, True, scale_dtype=FP8, numbers="e2m1"),
    "fp8": GridSpec(8, -1, True, numbers="e4m3"),
    "fp8-groups": GridSpec(8, 48, True, numbers="e4m3"),
    "mxfp8": GridSpec(8, 32, True, scale_dtype=POWERS, numbers="e4m3"),
}


def with_range(spec, search):
    return GridSpec(
        spec.bits, spec.group_size, True, search, spec.scale_dtype, spec.numbers, spec.global_scale
    )


def by_column(values, columns, group_size):
    width = columns if group_size == -1 else group_size
    return values.repeat_interleave(width, 1)[:, :columns]


@pytest.mark.parametrize("numbers", ["nf4", "e2m1", "e4m3"])
def test_the_numbers_of_all_codes(numbers):
    bits = 8 if numbers == "e4m3" else 4
    wanted = oracle.NUMBERS[numbers].float()
    codes = torch.arange(len(wanted), dtype=torch.uint8)[None]
    codes = codes[:, wanted.isfinite()]
    grid = core.Grid(
        torch.ones(1, 1),
        torch.zeros(1, 1, dtype=torch.uint8),
        GridSpec(bits, -1, True, numbers=numbers),
    )
    values = core.dequantize(codes, grid)
    assert torch.equal(values[0], wanted[wanted.isfinite()])
    back = core.quantize(values, grid)
    assert torch.equal(core.dequantize(back, grid), values)
    assert torch.equal(back[values != 0], codes[values != 0])


@pytest.mark.parametrize("numbers", ["nf4", "e2m1", "e4m3"])
def test_between_two_numbers_lies_what_the_format_says(numbers):
    """Midpoints and their neighbours: of NF4 the lower one, of floats the even code."""
    bits = 8 if numbers == "e4m3" else 4
    table = oracle.NUMBERS[numbers].float()
    table = table[table.isfinite()].unique()
    middle = (table[1:] + table[:-1]) / 2
    inf = torch.tensor(torch.inf)
    x = torch.cat([middle, middle.nextafter(inf), middle.nextafter(-inf), 2 * table])[None]
    grid = core.Grid(
        torch.ones(1, 1),
        torch.zeros(1, 1, dtype=torch.uint8),
        GridSpec(bits, -1, True, numbers=numbers),
    )
    wanted = oracle.nearest_code(x.double(), numbers)
    if numbers == "nf4":  # float32 rounds the midpoints themselves
        wanted[:, : len(middle)] = torch.arange(len(middle))
        wanted[:, len(middle) : 2 * len(middle)] = torch.arange(len(middle)) + 1
        wanted[:, 2 * len(middle) : 3 * len(middle)] = torch.arange(len(middle))
    assert torch.equal(core.quantize(x, grid), wanted.to(torch.uint8))


def test_fp8_is_torchs():
    x = random_weight(64, 500, 1) * torch.logspace(-4, 2, 500)
    grid = core.Grid(
        torch.ones(64, 1),
        torch.zeros(64, 1, dtype=torch.uint8),
        GridSpec(8, -1, True, numbers="e4m3"),
    )
    wanted = x.clamp(-448, 448).to(FP8).float()
    assert torch.equal(core.dequantize(core.quantize(x, grid), grid), wanted)


@pytest.mark.parametrize("search", ["minmax", "mse", "gram"])
@pytest.mark.parametrize("name", GRIDS)
def test_ranges_match_the_oracle(name, search):
    weight, gram = random_weight(100, 192), random_gram(192)
    spec = with_range(GRIDS[name], search)
    grid = core.fit_grid(weight, spec, gram)
    assert (grid.zero == 0).all()
    importance = gram.diagonal().double() if search == "gram" else None
    width = 192 if spec.group_size == -1 else spec.group_size
    agree = []
    for group, first in enumerate(range(0, 192, width)):
        part = slice(first, first + width)
        scale, _ = oracle.fit_group(
            weight.double()[:, part],
            spec.bits,
            True,
            None if importance is None else importance[part],
            search != "minmax",
            numbers=spec.numbers,
            scales=SCALES[spec.scale_dtype],
            global_scale=grid.spec.global_scale,
        )
        agree.append((grid.scale[:, group] - scale).abs() <= 1e-6 * scale)
    assert torch.cat(agree).double().mean() >= (1 if search == "minmax" else 0.99)


@pytest.mark.parametrize("name", GRIDS)
def test_codes_are_the_nearest_levels(name):
    weight, spec = random_weight(60, 200, 3), GRIDS[name]
    grid = core.fit_grid(weight, spec)
    scale = by_column(grid.scale, 200, spec.group_size)
    codes = core.quantize(weight, grid)
    wanted = oracle.nearest_code(weight.double() / scale.double(), spec.numbers)
    assert share_equal(codes, wanted) >= 0.9999  # float32 rounds the quotient
    values = core.dequantize(codes, grid)
    assert torch.equal(values, (scale * oracle.NUMBERS[spec.numbers][codes.long()]).float())


@pytest.mark.parametrize("order", ["activation", "natural"])
@pytest.mark.parametrize("name", GRIDS)
def test_gptq_matches_the_oracle(name, order):
    weight, gram, spec = random_weight(96, 192, 1), random_gram(192, 1), GRIDS[name]
    found = core.gptq(weight, gram, core.GptqOptions(with_range(spec, "gram"), order=order))
    codes, scale, _, loss = oracle.gptq(
        weight,
        gram,
        bits=spec.bits,
        group_size=spec.group_size,
        symmetric=True,
        order=order,
        numbers=spec.numbers,
        scales=SCALES[spec.scale_dtype],
        global_scale=found.grid.spec.global_scale,
    )
    same = ((found.grid.scale - scale).abs() <= 1e-6 * scale).all(1)
    assert same.double().mean() >= 0.95
    assert share_equal(found.codes[same], codes[same]) >= NEARLY_ALL
    assert found.loss == pytest.approx(loss, rel=2e-3)
    error = weight - found.dequantize()
    assert found.loss == pytest.approx(oracle.loss(weight, found.dequantize(), gram), rel=1e-4)
    assert core.losses(error, [gram])[0] == pytest.approx(found.loss, rel=1e-4)
    rounded = core.rtn(weight, with_range(spec, "gram"), gram)
    assert found.loss < 0.9 * rounded.loss


@pytest.mark.parametrize("name", GRIDS)
def test_refitting_two_sides_and_running_grids_work_too(name):
    weight, gram, spec = random_weight(48, 192, 1), random_gram(192, 1), GRIDS[name]
    once = core.gptq(weight, gram, core.GptqOptions(spec)).loss
    assert core.gptq(weight, gram, core.GptqOptions(spec, refit=2)).loss <= once * 1.0001
    running = core.gptq(weight, gram, core.GptqOptions(spec, order="natural", static_grid=False))
    assert running.loss < core.rtn(weight, spec, gram).loss
    (sided,) = core.gptq([weight], gram, [random_gram(48)], core.GptqOptions(spec))
    assert sided.grid.spec.global_scale == running.grid.spec.global_scale


def test_powers_of_two_are_powers_of_two():
    weight = random_weight(40, 128) * 1e-3
    options = core.GptqOptions(with_range(GRIDS["mxfp4"], "gram"), refit=1)
    for grid in (
        core.fit_grid(weight, with_range(GRIDS["mxfp4"], "mse")),
        core.gptq(weight, random_gram(128), options).grid,
    ):
        mantissa, _ = torch.frexp(grid.scale)
        assert (mantissa == 0.5).all()
        assert torch.equal(grid.scale.to(POWERS).float(), grid.scale)


def test_fp8_scales_are_fp8_numbers_divided_by_one_float():
    weight = random_weight(40, 128) * 1e-3
    grid = core.fit_grid(weight, with_range(GRIDS["nvfp4"], "mse"))
    divisor = grid.spec.global_scale
    assert divisor == torch.tensor(448 * 6) / weight.abs().max()
    numbers = (grid.scale * divisor).to(FP8)
    assert torch.equal(numbers.float() / divisor, grid.scale)
    # Linears that are solved together have the same, as readers that fuse them need.
    pair = core.gptq([weight, 2 * weight], random_gram(128), core.GptqOptions(GRIDS["nvfp4"]))
    assert pair[0].grid.spec.global_scale == pair[1].grid.spec.global_scale == divisor / 2
    zeros = core.fit_grid(torch.zeros(3, 32), GRIDS["nvfp4"])
    assert (core.dequantize(core.quantize(torch.zeros(3, 32), zeros), zeros) == 0).all()


@pytest.mark.parametrize("name", ["nf4", "e2m1", "mxfp4", "nvfp4", "fp8"])
def test_awq_chooses_scales_for_them(name):
    spec = with_range(GRIDS[name], "gram")
    weight, gram = random_weight(64, 192, 2), random_gram(192, 2)
    mean = gram.diagonal().sqrt()
    found = core.awq_scale(
        [core.LinearGroup([weight], gram)], mean, core.AwqOptions(spec, points=4)
    )
    scaled = gram / (found.scale[:, None] * found.scale)
    rounded = core.rtn(weight * found.scale, spec, scaled)
    assert rounded.loss == pytest.approx(found.loss, rel=1e-3)
    assert found.loss <= found.unscaled


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"numbers": "fp4"}, "numbers is 'fp4', expected 'integer', 'nf4', 'e2m1' or 'e4m3'"),
        ({"numbers": "nf4", "bits": 3, "symmetric": True}, "bits is 3, expected 4 with"),
        ({"numbers": "e4m3", "symmetric": True}, "bits is 4, expected 8 with numbers='e4m3'"),
        ({"numbers": "nf4"}, "numbers='nf4' has no zero points; pass symmetric=True"),
        ({"scale_dtype": POWERS}, "scale_dtype is Float8_e8m0fnu, expected float32"),
        (
            {"numbers": "nf4", "symmetric": True, "scale_dtype": FP8},
            "scale_dtype is Float8_e4m3fn, expected float32",
        ),
        ({"global_scale": 2.0}, "global_scale is 2, expected a positive float32 with scale_dtype"),
        (
            {"numbers": "e2m1", "symmetric": True, "scale_dtype": FP8, "global_scale": 1e-60},
            "global_scale is 1e-60, expected a positive float32",
        ),
    ],
)
def test_what_numbers_do_not_have_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GridSpec(**arguments)


def test_there_is_no_packed_product():
    linear = core.rtn(random_weight(32, 64), GRIDS["nf4"])
    with pytest.raises(NotImplementedError, match="no product of packed nf4 weights"):
        core.pack_linear(linear)


def test_a_spec_survives_pickling():
    spec = core.fit_grid(random_weight(4, 16), GRIDS["nvfp4"]).spec
    again = pickle.loads(pickle.dumps(spec))
    assert again.__getstate__() == spec.__getstate__()
