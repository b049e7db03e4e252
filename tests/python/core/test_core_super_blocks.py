"""Grids whose scales and minima are codes themselves: those of K-quants, and others of the kind."""

import pickle

import pytest
import torch
from core_data import NEARLY_ALL, random_gram, random_weight, share_equal

from mlcalib import _core as core
from mlcalib._core import GridSpec
from reference import oracle

HALF = torch.float16
GRIDS = {
    "Q2_K": (2, 16, False, 256, 4),
    "Q3_K": (3, 16, True, 256, 6),
    "Q4_K": (4, 32, False, 256, 6),
    "Q6_K": (6, 16, True, 256, 8),
    "small": (3, 24, False, 72, 5),
}
COLUMNS = 328  # whose last super-block and last group are shorter


def spec_of(name, search="minmax"):
    bits, size, symmetric, block, scale_bits = GRIDS[name]
    return GridSpec(bits, size, symmetric, search, HALF, super_block=block, scale_bits=scale_bits)


def options(spec):
    return {
        "bits": spec.bits,
        "group_size": spec.group_size,
        "symmetric": spec.symmetric,
        "super_block": spec.super_block,
        "scale_bits": spec.scale_bits,
    }


def multiples(values, most):
    """Whether values [rows, groups] are whole multiples, at most so many, of one float16 number.

    Negative ones at most one fewer than the value of largest magnitude, which then is negative.
    """
    top = values.gather(1, values.abs().argmax(1, keepdim=True))
    step = (top / most).half().float()
    codes = values / step
    return bool((codes == codes.round()).all()) and bool(((-most < codes) & (codes <= most)).all())


@pytest.mark.parametrize("name", GRIDS)
def test_scales_and_minima_are_multiples_of_one_number_in_a_super_block(name):
    spec = spec_of(name, "mse")
    grid = core.fit_grid(random_weight(50, COLUMNS), spec)
    most = 2 ** (spec.scale_bits - 1) if spec.symmetric else 2**spec.scale_bits - 1
    width = spec.super_block // spec.group_size
    assert spec.has_minima != spec.symmetric
    assert grid.zero.dtype == (torch.uint8 if spec.symmetric else torch.float32)
    assert (grid.scale != 0).all()
    negative = (grid.scale < 0).double().mean()
    assert 0.4 < negative < 0.6 if spec.symmetric else negative == 0
    for first in range(0, grid.scale.shape[1], width):
        assert multiples(grid.scale[:, first : first + width], most)
        assert spec.symmetric or multiples(grid.zero[:, first : first + width], most)


@pytest.mark.parametrize("search", ["minmax", "mse", "gram", "gram_block"])
@pytest.mark.parametrize("name", ["Q3_K", "Q6_K"])
def test_the_level_more_of_a_symmetric_group_is_on_the_side_of_its_larger_extreme(name, search):
    """What is mirrored has the mirrored scales, and the same codes."""
    weight, gram, spec = (
        random_weight(20, COLUMNS, 5),
        random_gram(COLUMNS, 5),
        spec_of(name, search),
    )
    grid, mirrored = core.fit_grid(weight, spec, gram), core.fit_grid(-weight, spec, gram)
    assert torch.equal(mirrored.scale, -grid.scale)
    assert torch.equal(core.quantize(-weight, mirrored), core.quantize(weight, grid))
    for first in range(0, COLUMNS, spec.group_size):
        part = weight[:, first : first + spec.group_size]
        larger_is_positive = part.amax(1) > -part.amin(1)
        assert torch.equal(grid.scale[:, first // spec.group_size] < 0, larger_is_positive)


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("name", GRIDS)
def test_gptq_matches_the_oracle(name, static):
    weight, gram = random_weight(96, COLUMNS, 1), random_gram(COLUMNS, 1)
    order = "activation" if static else "natural"
    spec = spec_of(name, "gram")
    found = core.gptq(weight, gram, core.GptqOptions(spec, order=order, static_grid=static))
    codes, scale, zero, loss = oracle.gptq(
        weight, gram, order=order, static_grid=static, **options(spec)
    )
    near = [
        ((mine.double() - wanted).abs() <= 1e-5 * wanted.abs() + 1e-9).all(1)
        for mine, wanted in ((found.grid.scale, scale), (found.grid.zero, zero))
    ]
    same = near[0] & near[1]
    assert same.double().mean() >= (0.9 if static else 0.5)  # a tie of ranges moves a super-block
    assert share_equal(found.codes[same], codes[same]) >= (NEARLY_ALL if static else 0.99)
    assert found.loss == pytest.approx(loss, rel=5e-3)
    assert found.loss == pytest.approx(oracle.loss(weight, found.dequantize(), gram), rel=1e-4)
    assert found.loss < 0.95 * core.rtn(weight, spec, gram).loss


@pytest.mark.parametrize("name", GRIDS)
def test_codes_are_the_nearest_levels(name):
    weight, spec = random_weight(60, COLUMNS, 3), spec_of(name)
    grid = core.fit_grid(weight, spec)
    scale, zero = (
        each.repeat_interleave(spec.group_size, 1)[:, :COLUMNS] for each in (grid.scale, grid.zero)
    )
    codes = core.quantize(weight, grid)
    wanted = oracle.nearest(
        weight.double(), scale.double(), zero.double(), 2**spec.bits - 1, minima=spec.has_minima
    )
    values = core.dequantize(codes, grid)
    assert share_equal(values, wanted.float()) >= 0.999  # float32 rounds the quotient
    level = scale * codes - zero if spec.has_minima else scale * (codes.float() - zero)
    assert torch.equal(values, level)


@pytest.mark.parametrize("name", GRIDS)
def test_refitting_and_output_grams_work_too(name):
    weight, gram, spec = random_weight(48, COLUMNS, 1), random_gram(COLUMNS, 1), spec_of(name)
    once = core.gptq(weight, gram, core.GptqOptions(spec))
    refitted = core.gptq(weight, gram, core.GptqOptions(spec, refit=2))
    assert refitted.loss < once.loss
    assert torch.equal(refitted.grid.zero, once.grid.zero)
    (sided,) = core.gptq([weight], gram, [random_gram(48)], core.GptqOptions(spec))
    assert sided.grid.zero.dtype == once.grid.zero.dtype


@pytest.mark.parametrize("name", ["Q2_K", "Q6_K"])
def test_awq_chooses_scales_for_them(name):
    spec, weight = spec_of(name, "gram"), random_weight(64, 512, 2)
    gram = random_gram(512, 2)
    found = core.awq_scale(
        [core.LinearGroup([weight], gram)], gram.diagonal().sqrt(), core.AwqOptions(spec, points=4)
    )
    scaled = gram / (found.scale[:, None] * found.scale)
    rounded = core.rtn(weight * found.scale, spec, scaled)
    assert rounded.loss == pytest.approx(found.loss, rel=1e-3)
    assert found.loss <= found.unscaled


def test_zeros_and_tiny_groups_have_finite_levels():
    weight = torch.zeros(3, 256)
    weight[1, :16], weight[2, 40] = 1e-30, 1.0
    for name in ("Q2_K", "Q3_K"):
        linear = core.rtn(weight, spec_of(name, "mse"))
        values = linear.dequantize()
        assert (values[:2].abs() <= 1e-6).all()
        assert values[2, 40] == pytest.approx(1, abs=0.02)
        assert (values[2, 48:] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"super_block": 256, "scale_bits": 6, "group_size": 48}, "super_block is 256, expected a"),
        ({"super_block": 256, "scale_bits": 6, "group_size": -1}, "a multiple of group_size"),
        ({"super_block": -32, "scale_bits": 6, "group_size": 32}, "super_block is -32"),
        ({"super_block": 256, "group_size": 32}, "scale_bits is 0, expected 2 to 8"),
        ({"scale_bits": 6}, "scale_bits is 6, expected 0 without a super_block"),
        (
            {"super_block": 256, "scale_bits": 6, "group_size": 32, "numbers": "nf4",
             "symmetric": True},
            "numbers is 'nf4', expected 'integer' with a super_block",
        ),
    ],
)  # fmt: skip
def test_what_there_is_not_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GridSpec(**arguments)


def test_there_is_no_packed_product():
    linear = core.rtn(random_weight(32, 256), spec_of("Q4_K"))
    with pytest.raises(NotImplementedError, match="no product of packed weights of super-blocks"):
        core.pack_linear(linear)


def test_minima_of_another_type_are_refused():
    linear = core.rtn(random_weight(4, 256), spec_of("Q4_K"))
    grid = core.Grid(linear.grid.scale, linear.grid.zero.byte(), linear.grid.spec)
    with pytest.raises(TypeError, match=r"zero Byte, expected float32 and float32 \(minima\)"):
        core.dequantize(linear.codes, grid)


def test_a_spec_survives_pickling():
    spec = spec_of("Q2_K")
    again = pickle.loads(pickle.dumps(spec))
    assert again.__getstate__() == spec.__getstate__()
    assert (again.super_block, again.scale_bits) == (256, 4)
