"""AWQ's scale and clip search against the float64 oracle, which runs the activations."""

import pytest
import torch
from core_data import activations, gram_of, random_weight
from hypothesis import given
from hypothesis import strategies as st

from mlcalib import _core as core
from reference import oracle

SHAPES = [(64, 96, 32), (130, 192, 64), (48, 320, 128), (300, 576, 64)]
POINTS = 20


def case(rows, columns, seed=0):
    """Two weights, their activations, the Gram and the mean |x|."""
    x = activations(3 * columns, columns, seed)
    weights = [random_weight(rows, columns, seed), random_weight(rows // 2, columns, seed + 1)]
    return weights, x, gram_of(x), x.double().abs().mean(0)


@pytest.mark.parametrize(("rows", "columns", "group_size"), SHAPES)
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_same_exponent_and_loss_as_the_oracle(rows, columns, group_size, bits, seed):
    weights, x, gram, mean = case(rows, columns, seed)
    # All scored exactly: which candidates the sketch lets through is another matter.
    options = core.AwqOptions(core.GridSpec(bits, group_size), points=POINTS, exact=POINTS)
    found = core.awq_scale([core.LinearGroup(weights, gram)], mean, options)
    scales = oracle.awq_scales(mean, POINTS)
    wanted = oracle.awq_losses(weights, x, scales, bits=bits, group_size=group_size)
    best = min(range(POINTS), key=lambda point: wanted[point])
    assert found.exponent * POINTS == pytest.approx(best)
    assert found.loss == pytest.approx(wanted[best], rel=1e-3)
    assert found.unscaled == pytest.approx(wanted[0], rel=1e-3)
    assert torch.allclose(found.scale, scales[round(found.exponent * POINTS)].float(), rtol=1e-5)


@pytest.mark.parametrize("seed", range(8))
def test_the_sketch_costs_next_to_nothing(seed):
    weights, _, gram, mean = case(130, 192, seed)
    group = [core.LinearGroup(weights, gram)]
    spec = core.GridSpec(4, 64)
    best = core.awq_scale(group, mean, core.AwqOptions(spec, exact=POINTS)).loss
    assert core.awq_scale(group, mean, core.AwqOptions(spec)).loss <= 1.01 * best


def test_the_loss_from_the_gram_is_the_loss_from_the_activations():
    # In float64 on both sides: the identity itself, not the rounding of its arithmetic.
    weights, x, _, mean = case(64, 96)
    scale = oracle.awq_scales(mean, POINTS)[10]
    gram = x.double().T @ x.double()
    by_gram = 0.0
    for weight in weights:
        rounded = oracle.round_groups(weight.double() * scale, 4, 32) / scale
        by_gram += oracle.loss(weight, rounded, gram)
    (by_activations,) = oracle.awq_losses(weights, x, scale[None], bits=4, group_size=32)
    assert by_gram == pytest.approx(by_activations, rel=1e-12)
    # And the core's, given the same candidate: fp32 sums and codes.
    options = core.AwqOptions(core.GridSpec(4, 32), points=2)
    found = core.awq_scale([core.LinearGroup(weights, gram.float())], mean, options)
    losses = oracle.awq_losses(weights, x, core.awq_candidates(mean, 2), bits=4, group_size=32)
    assert found.loss == pytest.approx(min(losses), rel=1e-6)


@pytest.mark.parametrize(("sketch", "bound"), [(32, 0.1), (128, 0.03), (192, 1e-4)])
def test_the_sketch_estimates_the_losses(sketch, bound):
    weights, x, gram, mean = case(130, 192)
    options = core.AwqOptions(core.GridSpec(4, 64), sketch=sketch)
    found = core.awq_scale([core.LinearGroup(weights, gram)], mean, options)
    wanted = torch.tensor(
        oracle.awq_losses(weights, x, oracle.awq_scales(mean, POINTS), bits=4, group_size=64)
    )
    assert ((found.scores - wanted).abs() <= bound * wanted).all()
    again = core.awq_scale([core.LinearGroup(weights, gram)], mean, options)
    assert torch.equal(again.scores, found.scores)


@given(st.integers(0, 2**16), st.sampled_from(["minmax", "mse", "gram"]), st.booleans())
def test_never_worse_than_no_scale(seed, search, symmetric):
    weights, _, gram, mean = case(32, 64, seed)
    spec = core.GridSpec(3, 32, symmetric, search)
    found = core.awq_scale([core.LinearGroup(weights, gram)], mean, core.AwqOptions(spec))
    unscaled = sum(core.rtn(weight, spec, gram).loss for weight in weights)
    assert found.unscaled == pytest.approx(unscaled, rel=1e-5)
    assert found.loss <= found.unscaled


def test_the_loss_is_that_of_the_scaled_weights_and_inputs():
    weights, _, gram, mean = case(64, 96)
    spec = core.GridSpec(4, 32, False, "gram")
    found = core.awq_scale([core.LinearGroup(weights, gram)], mean, core.AwqOptions(spec))
    folded = gram / (found.scale[:, None] * found.scale)
    total = sum(core.rtn(weight * found.scale, spec, folded).loss for weight in weights)
    assert found.loss == pytest.approx(total, rel=1e-4)


def test_groups_add_up():
    weights, _, gram, mean = case(64, 96)
    other = gram_of(activations(300, 96, 9))
    options = core.AwqOptions(core.GridSpec(4, 32), exact=POINTS)
    apart = [core.LinearGroup([weights[0]], gram), core.LinearGroup([weights[1]], other)]
    found = core.awq_scale(apart, mean, options)
    single = [core.awq_scale([group], mean, options) for group in apart]
    assert found.unscaled == pytest.approx(sum(each.unscaled for each in single), rel=1e-6)
    assert torch.allclose(found.scores, sum(each.scores for each in single), rtol=1e-9)


def test_candidates():
    mean = torch.tensor([0.5, 2.0, 0.0, 8.0])
    candidates = core.awq_candidates(mean, 10)
    assert torch.equal(candidates[0], torch.ones(4))
    assert torch.allclose(candidates, oracle.awq_scales(mean, 10).float())
    assert (candidates[:, 2] == 1).all()
    assert torch.allclose(candidates[5], torch.tensor([0.5, 1.0, 1.0, 2.0]))
    shared = torch.tensor([0, 0, 1, 1])
    pooled = core.awq_candidates(mean, 10, shared)
    assert torch.allclose(pooled, oracle.awq_scales(mean, 10, shared).float())
    assert torch.equal(pooled[:, 0], pooled[:, 1])
    assert torch.equal(core.awq_candidates(torch.zeros(3), 4), torch.ones(4, 3))


@pytest.mark.parametrize("symmetric", [False, True])
def test_clip_has_the_least_output_error_of_the_shrunk_ranges(symmetric):
    weights, _, gram, _ = case(64, 96)
    spec = core.GridSpec(3, 32, symmetric)
    grid = core.awq_clip(weights[0], gram, spec)
    assert grid.spec.range == "gram_block"
    for g in range(3):
        part = slice(32 * g, 32 * g + 32)
        block = gram[part, part].double()
        scale, zero = oracle.fit_group(
            weights[0][:, part].double(), 3, symmetric, None, search=True, gram=block
        )
        same = (grid.scale[:, g].double() - scale).abs() <= 1e-6 * scale
        assert same.double().mean() > 0.98  # near ties
        assert ((grid.zero[:, g] == zero) | ~same).all()
    minmax = core.rtn(weights[0], spec, gram)
    codes = core.quantize(weights[0], grid)
    (clipped,) = core.losses(weights[0], core.QuantizedLinear(codes, grid), [gram])
    assert clipped < minmax.loss


def test_a_block_of_uncorrelated_channels_is_its_diagonal():
    weight = random_weight(64, 96)
    gram = torch.diag(torch.rand(96) + 0.1)
    block = core.fit_grid(weight, core.GridSpec(3, 32, range="gram_block"), gram)
    diagonal = core.fit_grid(weight, core.GridSpec(3, 32, range="gram"), gram)
    assert torch.equal(block.scale, diagonal.scale)
    assert torch.equal(block.zero, diagonal.zero)


W, G, M = random_weight(4, 64), gram_of(activations(99, 64)), torch.ones(64)
GROUP = core.LinearGroup([W], G)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: core.awq_scale([], M), "groups is empty"),
        (lambda: core.awq_scale([core.LinearGroup([], G)], M), "a group has no weights"),
        (lambda: core.awq_scale([GROUP], M[:3]), r"\[4, 64\] but mean has 3 channels"),
        (lambda: core.awq_scale([GROUP], -M), "mean goes down to -1, expected a mean of"),
        (lambda: core.awq_scale([GROUP], M * float("nan")), "mean holds 64 NaN"),
        (lambda: core.awq_scale([core.LinearGroup([W], G * 0)], M), "the Gram is zero"),
        (lambda: core.awq_candidates(M, 20, torch.arange(3)), r"source_of is Long \[3\], expected"),
        (lambda: core.awq_clip(W, G[:9, :9], core.GridSpec(4, 32)), r"gram has shape \[9, 9\]"),
        (lambda: core.AwqOptions(points=0), "points is 0, expected a positive"),
        (lambda: core.AwqOptions(exact=0), "exact is 0, expected a positive"),
        (lambda: core.AwqOptions(sketch=-1), "sketch is -1, expected a positive"),
        (
            lambda: core.AwqOptions(core.GridSpec(range="gram_block")),
            "range is 'gram_block', expected 'minmax', 'mse' or 'gram' for the scale search",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
