"""Grids with one scale for all weights that are fitted together."""

import pickle

import pytest
import torch
from core_data import NEARLY_ALL, random_gram, random_weight, share_equal

from mlcalib import _core as core
from mlcalib._core import GridSpec
from reference import oracle

GRIDS = {"e4m3": (8, "e4m3"), "e2m1": (4, "e2m1"), "nf4": (4, "nf4"), "integer": (6, "integer")}
RANGES = ["minmax", "mse", "gram", "gram_block"]


def spec_of(name, search="minmax", dtype=torch.float32):
    bits, numbers = GRIDS[name]
    return GridSpec(bits, -1, True, search, dtype, numbers, per_tensor=True)


def wanted_scale(weight, gram, name, search):
    bits, numbers = GRIDS[name]
    double = gram.double()
    return oracle.fit_tensor(
        weight.double(),
        bits,
        double.diagonal() if search == "gram" else None,
        search != "minmax",
        double if search == "gram_block" else None,
        numbers,
    )


@pytest.mark.parametrize("search", RANGES)
@pytest.mark.parametrize("name", GRIDS)
def test_ranges_match_the_oracle(name, search):
    weight, gram = random_weight(50, 120), random_gram(120)
    grid = core.fit_grid(weight, spec_of(name, search), gram)
    scale, zero = wanted_scale(weight, gram, name, search)
    assert grid.scale.shape == (50, 1)
    torch.testing.assert_close(grid.scale.double(), scale.expand(50, 1), rtol=1e-6, atol=0)
    assert (grid.zero == zero).all()


@pytest.mark.parametrize("name", GRIDS)
def test_codes_are_the_nearest_levels_and_lose_what_is_told(name):
    weight, gram, spec = random_weight(40, 100, 1), random_gram(100), spec_of(name, "mse")
    rounded = core.rtn(weight, spec, gram)
    scale, zero = rounded.grid.scale.double(), rounded.grid.zero.double()
    wanted = oracle.nearest(weight.double(), scale, zero, 2**spec.bits - 1, spec.numbers)
    assert share_equal(rounded.dequantize(), wanted.float()) >= 0.999
    assert rounded.loss == pytest.approx(oracle.loss(weight, rounded.dequantize(), gram), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_scale_is_rounded_before_codes_are_chosen(dtype):
    grid = core.fit_grid(random_weight(8, 64), spec_of("e4m3", "mse", dtype))
    assert torch.equal(grid.scale, grid.scale.to(dtype).float())


@pytest.mark.parametrize("search", ["minmax", "gram", "gram_block"])
@pytest.mark.parametrize("order", ["activation", "natural", "as reached"])
@pytest.mark.parametrize("name", ["e4m3", "integer"])
def test_gptq_matches_the_oracle(name, order, search):
    weight, gram, spec = random_weight(60, 150, 1), random_gram(150, 1), spec_of(name, search)
    reached = order == "as reached"
    order = "natural" if reached else order
    options = core.GptqOptions(spec, order=order, static_grid=not reached)
    found = core.gptq(weight, gram, options)
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(150)
    scale, zero = wanted_scale(weight, damped, name, search)
    torch.testing.assert_close(found.grid.scale.double(), scale.expand(60, 1), rtol=1e-6, atol=0)
    codes, *_, loss = oracle.gptq(
        weight,
        gram,
        bits=spec.bits,
        group_size=-1,
        symmetric=True,
        order=order,
        numbers=spec.numbers,
        grid=(scale.expand(60, 1), torch.full((60, 1), float(zero))),
    )
    assert share_equal(found.codes, codes) >= NEARLY_ALL
    assert found.loss == pytest.approx(loss, rel=2e-3)
    assert found.loss < core.rtn(weight, spec, gram).loss


def test_weights_solved_together_share_a_scale_whichever_way():
    weights = [random_weight(24, 96, 1), 3 * random_weight(48, 96, 2)]
    gram, spec = random_gram(96), spec_of("e4m3", "mse")
    alone = core.fit_grid(torch.cat(weights), spec).scale[0, 0]
    outputs = [random_gram(24, 3), random_gram(48, 4)]
    for found in (
        core.gptq(weights, gram, core.GptqOptions(spec)),
        core.gptq(weights, gram, outputs, core.GptqOptions(spec)),
    ):
        assert all((each.grid.scale == alone).all() for each in found)
        assert [len(each.codes) for each in found] == [24, 48]


def test_refitting_keeps_one_scale_and_lowers_the_loss():
    weight, gram, spec = random_weight(48, 128, 1), random_gram(128, 1), spec_of("integer")
    once = core.gptq(weight, gram, core.GptqOptions(spec))
    refitted = core.gptq(weight, gram, core.GptqOptions(spec, refit=2))
    assert len(refitted.grid.scale.unique()) == 1
    assert refitted.loss < once.loss
    assert refitted.loss == pytest.approx(
        oracle.loss(weight, refitted.dequantize(), gram), rel=1e-3
    )


def test_a_weight_of_zeros_stays_zeros():
    found = core.gptq(torch.zeros(5, 32), random_gram(32), core.GptqOptions(spec_of("e4m3", "mse")))
    assert (found.dequantize() == 0).all()


def test_specs_are_pickled_and_linears_know_their_input_bound():
    spec = pickle.loads(pickle.dumps(spec_of("e4m3")))
    assert spec.per_tensor
    assert not GridSpec().per_tensor
    rounded = core.rtn(random_weight(4, 32), spec)
    assert rounded.input_bound == 0
    linear = core.QuantizedLinear(rounded.codes, rounded.grid, input_bound=3.5)
    assert linear.to(torch.device("cpu")).input_bound == 3.5


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"group_size": 32, "symmetric": True}, "group_size is 32, expected -1"),
        ({"group_size": -1}, "no zero points; pass symmetric=True"),
        (
            {
                "group_size": -1,
                "symmetric": True,
                "numbers": "e2m1",
                "scale_dtype": torch.float8_e4m3fn,
            },
            "expected float32, bfloat16 or float16 with per_tensor=True",
        ),
    ],
)
def test_what_has_several_scales_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        GridSpec(4, per_tensor=True, **options)


def test_the_search_of_awq_is_refused():
    gram = random_gram(32)
    group = core.LinearGroup([random_weight(4, 32)], gram)
    with pytest.raises(ValueError, match="scale channels by smoothquant"):
        core.awq_scale([group], gram.diagonal(), core.AwqOptions(spec_of("integer")))
