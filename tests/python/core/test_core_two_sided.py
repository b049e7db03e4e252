"""GPTQ with Grams of outputs' gradients against the float64 oracle, and what must hold of it."""

import pytest
import torch
from core_data import NEARLY_ALL, random_gram, random_weight, share_equal

from mlcalib import _core as core
from reference import oracle

BLOCK = 48  # rows that are solved together


def options(output_damp=1.0, **spec) -> core.GptqOptions:
    spec = {"bits": 4, "group_size": 64, "range": "gram"} | spec
    return core.GptqOptions(core.GridSpec(**spec), output_damp=output_damp)


def loss_of(weight, solved, output, gram) -> float:
    return oracle.two_sided_loss(output, weight - solved.dequantize(), gram)


@pytest.mark.parametrize(
    ("rows", "columns", "bits", "output_damp"),
    [(192, 320, 4, 1.0), (100, 200, 3, 0.1), (47, 130, 2, 0.01), (145, 64, 4, 1.0)],
)
def test_matches_the_oracle(rows, columns, bits, output_damp):
    weight, gram, output = random_weight(rows, columns), random_gram(columns), random_gram(rows, 1)
    (solved,) = core.gptq([weight], gram, [output], options(output_damp, bits=bits))
    codes, scale, zero, loss = oracle.two_sided(
        weight,
        gram,
        output,
        output_damp=output_damp,
        block=BLOCK,
        bits=bits,
        group_size=64,
    )
    # A code that goes the other way moves all later rows of its column a little.
    assert share_equal(solved.codes, codes) >= NEARLY_ALL
    assert share_equal(solved.grid.zero, zero) == 1
    assert torch.allclose(solved.grid.scale.double(), scale, rtol=1e-4)
    assert loss_of(weight, solved, output, gram) == pytest.approx(loss, rel=5e-3)


@pytest.mark.parametrize("rows", [30, 48, 130])
def test_outputs_that_are_felt_alike_change_nothing(rows):
    weight, gram = random_weight(rows, 192), random_gram(192)
    (solved,) = core.gptq([weight], gram, [torch.eye(rows)], options())
    alone = core.gptq(weight, gram, options())
    assert torch.equal(solved.codes, alone.codes)
    assert torch.equal(solved.grid.scale, alone.grid.scale)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_two_sided_loss_is_less(bits):
    weight, gram, output = random_weight(240, 320), random_gram(320), random_gram(240, 1)
    (solved,) = core.gptq([weight], gram, [output], options(0.01, bits=bits))
    alone = core.gptq(weight, gram, options(bits=bits))
    assert loss_of(weight, solved, output, gram) < 0.9 * loss_of(weight, alone, output, gram)


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20])
def test_the_scale_of_the_output_gram_does_not_matter(factor):
    weight, gram, output = random_weight(100, 192), random_gram(192), random_gram(100, 1)
    (solved,) = core.gptq([weight], gram, [output], options())
    (scaled,) = core.gptq([weight], gram, [output * factor], options())
    assert share_equal(solved.codes, scaled.codes) == 1


def test_the_order_of_rows_does_not_matter():
    weight, gram, output = random_weight(100, 192), random_gram(192), random_gram(100, 1)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    (solved,) = core.gptq([weight], gram, [output], options())
    (moved,) = core.gptq([weight[order]], gram, [output[order][:, order]], options())
    assert torch.equal(moved.codes, solved.codes[order])


@pytest.mark.parametrize("block", [16, 100, 1000])
def test_the_block_of_columns_hardly_matters(block):
    weight, gram, output = random_weight(100, 320), random_gram(320), random_gram(100, 1)
    spec = core.GridSpec(4, 64, range="gram")
    (solved,) = core.gptq([weight], gram, [output], core.GptqOptions(spec))
    (other,) = core.gptq([weight], gram, [output], core.GptqOptions(spec, block=block))
    assert share_equal(solved.codes, other.codes) >= NEARLY_ALL


def test_threads_do_not_matter():
    weight, gram, output = random_weight(300, 320), random_gram(320), random_gram(300, 1)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found += core.gptq([weight], gram, [output], options())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each.codes, found[0].codes) for each in found)


def test_linears_together_are_each_alone():
    weights = [random_weight(rows, 192, rows) for rows in (64, 33, 7)]
    outputs = [random_gram(rows, 1) for rows in (64, 33, 7)]
    gram = random_gram(192)
    together = core.gptq(weights, gram, outputs, options())
    for weight, output, found in zip(weights, outputs, together, strict=True):
        (alone,) = core.gptq([weight], gram, [output], options())
        assert torch.equal(found.codes, alone.codes)
        assert found.loss is None


@pytest.mark.parametrize(
    ("outputs", "further", "message"),
    [
        ([], {}, "0 output Grams for 1 weights"),
        ([torch.eye(9)], {}, r"output gram.*\[9, 9\]"),
        ([torch.full((10, 10), torch.nan)], {}, "output gram"),
        ([torch.zeros(10, 10)], {}, "Gram is zero"),
        ([-torch.eye(10)], {}, "not positive definite"),
        ([torch.eye(10)], {"refit": 1}, "refit must be 0"),
        ([torch.eye(10)], {"order": "natural", "static_grid": False}, "static_grid true"),
    ],
)
def test_refuses(outputs, further, message):
    chosen = core.GptqOptions(core.GridSpec(4, 64), **further)
    with pytest.raises((ValueError, torch.linalg.LinAlgError), match=message):
        core.gptq([random_weight(10, 64)], random_gram(64), outputs, chosen)


@pytest.mark.parametrize("damp", [0.0, -1.0, float("nan")])
def test_output_damp_is_positive(damp):
    with pytest.raises(ValueError, match="output_damp"):
        options(damp)
