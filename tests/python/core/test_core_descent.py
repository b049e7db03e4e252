"""Coordinate descent on codes and scales against the float64 oracle, and what must hold of it."""

import pytest
import torch
from core_data import NEARLY_ALL, random_gram, random_weight, share_equal
from hypothesis import given
from hypothesis import strategies as st

from mlcalib import _core as core
from reference import oracle

TILE = 48  # rows that are gone through together


def options(sweeps, **spec) -> core.GptqOptions:
    spec = {"bits": 3, "group_size": 64, "range": "gram"} | spec
    return core.GptqOptions(core.GridSpec(**spec), sweeps=sweeps)


def damped(gram, share):
    return gram + share * gram.diagonal().mean() * torch.eye(len(gram))


def loss_of(weight, solved, output, gram) -> float:
    """Return what descent makes less: with both Grams as the solver damps them."""
    return oracle.two_sided_loss(
        damped(output, 1.0), weight - solved.dequantize(), damped(gram, solved.damp)
    )


def levels_of(solved, columns):
    width = solved.grid.spec.group_size
    return [
        each.float().repeat_interleave(width, 1)[:, :columns]
        for each in (solved.grid.scale, solved.grid.zero)
    ]


@pytest.mark.parametrize(
    ("rows", "columns", "bits", "sweeps"), [(60, 130, 3, 1), (100, 64, 4, 1), (30, 70, 2, 2)]
)
def test_matches_the_oracle(rows, columns, bits, sweeps):
    weight, gram, output = random_weight(rows, columns), random_gram(columns), random_gram(rows, 1)
    (before,) = core.gptq([weight], gram, [output], options(0, bits=bits))
    (solved,) = core.gptq([weight], gram, [output], options(sweeps, bits=bits))
    codes, scale = oracle.descend(
        weight,
        damped(gram, solved.damp),
        damped(output, 1.0),
        before.codes,
        (before.grid.scale, before.grid.zero),
        bits=bits,
        group_size=64,
        sweeps=sweeps,
        tile=TILE,
    )
    assert share_equal(solved.codes, codes) >= NEARLY_ALL
    assert share_equal(solved.codes, before.codes) < NEARLY_ALL
    torch.testing.assert_close(solved.grid.scale.double(), scale, rtol=1e-3, atol=0)
    assert not torch.allclose(solved.grid.scale, before.grid.scale, rtol=1e-2)
    assert torch.equal(solved.grid.zero, before.grid.zero)


def test_rows_by_themselves_match_the_oracle():
    weight, gram = random_weight(60, 130), random_gram(130)
    before, solved = (core.gptq(weight, gram, options(sweeps)) for sweeps in (0, 1))
    codes, scale = oracle.descend(
        weight,
        damped(gram, solved.damp),
        torch.eye(60),
        before.codes,
        (before.grid.scale, before.grid.zero),
        bits=3,
        group_size=64,
        sweeps=1,
        tile=TILE,
    )
    assert share_equal(solved.codes, codes) >= NEARLY_ALL
    torch.testing.assert_close(solved.grid.scale.double(), scale, rtol=1e-3, atol=0)


SPECS = [
    {},
    {"group_size": -1},
    {"symmetric": True},
    {"scale_dtype": torch.float16, "group_size": 30},
    {"scale_dtype": torch.bfloat16},
    {"bits": 4, "numbers": "nf4", "symmetric": True},
    {"bits": 4, "numbers": "e2m1", "symmetric": True},
    {"bits": 8, "numbers": "e4m3", "symmetric": True},
]
# Scales that depend on each other, or have few values, stay: those of K-quants, whose zero is a
# float, one scale for all rows, scales that are quantized themselves, and powers of two.
HELD = [
    {"bits": 4, "group_size": 32, "super_block": 256, "scale_bits": 6, "symmetric": False},
    {"bits": 4, "group_size": -1, "per_tensor": True, "symmetric": True},
    {"bits": 4, "numbers": "nf4", "symmetric": True, "scale_dtype": torch.uint8},
    {"bits": 4, "numbers": "e2m1", "symmetric": True, "scale_dtype": torch.float8_e8m0fnu},
]


@pytest.mark.parametrize("spec", [*SPECS, *HELD], ids=str)
def test_every_sweep_makes_the_loss_less_until_none_can(spec):
    weight, gram, output = random_weight(100, 256), random_gram(256), random_gram(100, 1)
    found = [core.gptq([weight], gram, [output], options(n, **spec))[0] for n in (0, 1, 3, 99, 100)]
    losses = [loss_of(weight, each, output, gram) for each in found]
    assert losses[0] > losses[1] > losses[2] >= losses[3] * (1 - 1e-6)
    assert torch.equal(found[3].codes, found[4].codes)  # nothing is left to change
    assert all(torch.equal(each.grid.scale, found[1].grid.scale) for each in found[2:])
    assert torch.equal(found[0].grid.scale, found[1].grid.scale) == (spec in HELD)
    if "scale_dtype" in spec and spec["scale_dtype"].is_floating_point:
        assert torch.equal(found[1].grid.scale.to(spec["scale_dtype"]).float(), found[1].grid.scale)


def test_no_code_alone_can_make_it_less_in_the_end():
    weight, gram, output = random_weight(60, 100), random_gram(100), random_gram(60, 1)
    (solved,) = core.gptq([weight], gram, [output], options(1000))
    scale, zero = (each.double() for each in levels_of(solved, 100))
    h, o = damped(gram, solved.damp).double(), damped(output, 1.0).double()
    error = scale * (solved.codes.double() - zero) - weight.double()
    gradient = o @ error @ h
    curvature = o.diagonal()[:, None] * h.diagonal()
    for step in (-1, 1):
        possible = (solved.codes.int() + step >= 0) & (solved.codes.int() + step <= 7)
        gained = -(2 * step * scale * gradient + scale**2 * curvature)
        assert float(gained[possible].max()) <= 1e-6 * float((gradient * error).sum())


@given(
    rows=st.integers(1, 100),
    columns=st.integers(1, 150),
    sweeps=st.integers(1, 4),
    bits=st.integers(2, 5),
    seed=st.integers(0, 99),
)
def test_the_loss_of_rows_by_themselves_is_never_more(rows, columns, sweeps, bits, seed):
    weight, gram = random_weight(rows, columns, seed), random_gram(columns)
    before, solved = (
        core.gptq(weight, gram, options(each, bits=bits, group_size=32)) for each in (0, sweeps)
    )
    assert loss_of(weight, solved, torch.eye(rows), gram) <= (1 + 1e-6) * loss_of(
        weight, before, torch.eye(rows), gram
    )
    assert solved.loss == pytest.approx(oracle.loss(weight, solved.dequantize(), gram), rel=1e-3)
    assert int(solved.codes.max()) < 2**bits


def test_outputs_that_are_felt_alike_change_nothing():
    weight, gram = random_weight(100, 192), random_gram(192)
    (solved,) = core.gptq([weight], gram, [torch.eye(100)], options(3))
    assert torch.equal(solved.codes, core.gptq(weight, gram, options(3)).codes)


@pytest.mark.parametrize("two_sided", [False, True])
def test_threads_do_not_matter(two_sided):
    weight, gram, output = random_weight(300, 320), random_gram(320), random_gram(300, 1)
    outputs = [[output]] if two_sided else []
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found += core.gptq([weight], gram, *outputs, options(2))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each.codes, found[0].codes) for each in found)


def test_linears_together_are_each_alone():
    weights = [random_weight(rows, 192, rows) for rows in (64, 33, 7)]
    gram = random_gram(192)
    for weight, found in zip(weights, core.gptq(weights, gram, options(2)), strict=True):
        assert torch.equal(found.codes, core.gptq(weight, gram, options(2)).codes)


def test_it_comes_after_refits():
    weight, gram = random_weight(100, 192), random_gram(192)
    spec = core.GridSpec(3, 64)
    refit = core.gptq(weight, gram, core.GptqOptions(spec, refit=2))
    solved = core.gptq(weight, gram, core.GptqOptions(spec, refit=2, sweeps=3))
    assert solved.loss < refit.loss
    assert torch.equal(solved.grid.zero, refit.grid.zero)


def test_sweeps_are_not_negative():
    with pytest.raises(ValueError, match="sweeps is -1"):
        options(-1)
