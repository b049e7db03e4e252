"""GPTQ against the float64 oracle, and what must hold of it whatever the input."""

import itertools

import pytest
import torch
from core_data import NEARLY_ALL, random_gram, random_weight, share_equal
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcalib import _core as core
from reference import oracle

STATIC = {"order": "activation", "static_grid": True}
STATIC_NATURAL = {"order": "natural", "static_grid": True}
RUNNING = {"order": "natural", "static_grid": False}
MODES = [
    pytest.param(STATIC, id="activation"),
    pytest.param(STATIC_NATURAL, id="natural"),
    pytest.param(RUNNING, id="running"),
]


def options(mode, **spec) -> core.GptqOptions:
    spec = {"bits": 4, "group_size": 64, "range": "gram"} | spec
    return core.GptqOptions(core.GridSpec(**spec), **mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("rows", "columns", "spec"),
    [
        pytest.param(576, 576, {"bits": 4}, id="576x576-4bit"),
        pytest.param(192, 1536, {"bits": 3}, id="192x1536-3bit"),
        pytest.param(600, 200, {"symmetric": True, "range": "mse"}, id="600x200-symmetric"),
        pytest.param(
            1000, 130, {"bits": 2, "group_size": -1, "range": "minmax"}, id="1000x130-row-2bit"
        ),
    ],
)
def test_matches_the_oracle(rows, columns, spec, mode):
    weight, gram = random_weight(rows, columns), random_gram(columns)
    solved = core.gptq(weight, gram, options(mode, **spec))
    used = solved.grid.spec
    some = slice(None, None, rows // 96)  # rows are independent, and the oracle is slow
    codes, scale, zero, loss = oracle.gptq(
        weight[some],
        gram,
        bits=used.bits,
        group_size=used.group_size,
        symmetric=used.symmetric,
        search=used.range,
        **mode,
    )
    assert share_equal(solved.codes[some], codes) >= NEARLY_ALL
    # Grids of the weight itself depend on no sum that an instruction set makes its own way.
    same = 1 if mode["static_grid"] else NEARLY_ALL
    assert share_equal(solved.grid.zero[some], zero) >= same
    close = (solved.grid.scale[some] - scale).abs() <= 1e-4 * scale
    assert close.double().mean() >= same
    assert oracle.loss(weight[some], solved.dequantize()[some], gram) == pytest.approx(loss, 2e-3)


@pytest.mark.parametrize("mode", MODES)
def test_reports_the_loss_of_its_codes(mode):
    weight, gram = random_weight(130, 320), random_gram(320)
    solved = core.gptq(weight, gram, options(mode))
    loss = oracle.loss(weight, solved.dequantize(), gram)
    assert solved.loss == pytest.approx(loss, rel=1e-4)
    assert core.losses(weight, solved, [gram, gram / 2]) == pytest.approx(
        [loss, loss / 2], rel=1e-4
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("factor", [4.0**-10, 4.0**10, 3.0])
def test_the_scale_of_the_gram_does_not_matter(mode, factor):
    weight, gram = random_weight(96, 192), random_gram(192)
    solved = core.gptq(weight, gram, options(mode))
    scaled = core.gptq(weight, gram * factor, options(mode))
    # A power of four moves no bit of the Cholesky factor; others round differently.
    assert share_equal(solved.codes, scaled.codes) >= (NEARLY_ALL if factor == 3 else 1)
    assert scaled.loss == pytest.approx(solved.loss * factor, rel=2e-3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("search", ["minmax", "mse"])
def test_a_diagonal_gram_rounds(mode, search):
    weight = random_weight(70, 192)
    gram = random_gram(192).diagonal().diag()
    solved = core.gptq(weight, gram, options(mode, range=search))
    rounded = core.rtn(weight, solved.grid.spec, gram)
    assert torch.equal(solved.codes, rounded.codes)
    assert torch.equal(solved.grid.scale, rounded.grid.scale)
    assert torch.equal(solved.grid.zero, rounded.grid.zero)
    assert solved.loss == pytest.approx(rounded.loss, rel=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [1, 64, 100])
def test_rows_are_independent(mode, rows):
    weight, gram = random_weight(200, 192), random_gram(192)
    solved = core.gptq(weight, gram, options(mode))
    part = core.gptq(weight[-rows:], gram, options(mode))
    assert torch.equal(part.codes, solved.codes[-rows:])
    assert torch.equal(part.grid.scale, solved.grid.scale[-rows:])


@pytest.mark.parametrize("mode", MODES)
def test_weights_together_are_each_alone(mode):
    gram = random_gram(320)
    weights = [random_weight(rows, 320, seed) for seed, rows in enumerate([192, 64, 5])]
    together = core.gptq(weights, gram, options(mode))
    for weight, solved in zip(weights, together, strict=True):
        alone = core.gptq(weight, gram, options(mode))
        assert torch.equal(solved.codes, alone.codes)
        assert torch.equal(solved.grid.scale, alone.grid.scale)
        assert torch.equal(solved.grid.zero, alone.grid.zero)
        assert solved.loss == pytest.approx(alone.loss, rel=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_loses_no_more_than_rounding(mode, bits, seed):
    weight, gram = random_weight(64, 256, seed), random_gram(256, seed)
    chosen = options(mode, bits=bits)
    assert core.gptq(weight, gram, chosen).loss < core.rtn(weight, chosen.grid, gram).loss


def test_activation_order_follows_a_permutation_of_channels():
    # Whole-row groups of extremes and a Gram of integers: no sum depends on the order of channels.
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-7, 8, (300, 120), generator=generator).float()
    x *= torch.randint(1, 5, (120,), generator=generator)
    weight, gram = random_weight(90, 120), gram_of_integers(x)
    assert gram.diagonal().unique().numel() == 120
    chosen = options(STATIC, group_size=-1, range="minmax")
    permutation = torch.randperm(120, generator=generator)
    solved = core.gptq(weight, gram, chosen)
    permuted = core.gptq(weight[:, permutation], gram[permutation][:, permutation], chosen)
    assert torch.equal(permuted.codes, solved.codes[:, permutation])
    assert permuted.loss == solved.loss


def gram_of_integers(x):
    gram = x.T @ x
    assert torch.equal(gram.double(), x.double().T @ x.double())
    # Ties of the diagonal would be visited in the order of the channels.
    return gram + torch.arange(len(gram)).float().diag()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("block", [1, 32, 100, 10**6])
def test_blocks_do_not_change_codes(mode, block):
    weight, gram = random_weight(200, 320), random_gram(320)
    solved = core.gptq(weight, gram, options(mode))
    other = core.gptq(weight, gram, options(mode | {"block": block}))
    assert share_equal(other.codes, solved.codes) >= NEARLY_ALL
    assert other.loss == pytest.approx(solved.loss, rel=2e-3)


@pytest.mark.parametrize("mode", MODES)
def test_threads_do_not_change_codes(mode):
    weight, gram = random_weight(200, 320), random_gram(320)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = core.gptq(weight, gram, options(mode))
        torch.set_num_threads(3)
        three = core.gptq(weight, gram, options(mode))
    finally:
        torch.set_num_threads(threads)
    assert share_equal(one.codes, three.codes) >= NEARLY_ALL
    assert one.loss == pytest.approx(three.loss, rel=2e-3)


@pytest.mark.parametrize("mode", MODES)
def test_dead_channels_are_rounded_and_counted(mode):
    weight, gram = random_weight(64, 128), random_gram(128)
    dead = torch.tensor([0, 17, 127])
    gram[dead] = 0
    gram[:, dead] = 0
    solved = core.gptq(weight, gram, options(mode))
    assert solved.dead_channels == 3
    assert solved.damp == 0.01
    assert torch.equal(solved.codes[:, dead], core.quantize(weight, solved.grid)[:, dead])
    assert solved.dequantize()[:, dead].abs().max() > 0.5


def test_damping_rises_where_the_gram_is_indefinite():
    weight = random_weight(64, 128)
    direction = torch.nn.functional.normalize(random_weight(1, 128, 1))
    # Eigenvalues 1, but one of -0.03.
    gram = torch.eye(128) - 1.03 * direction.T @ direction
    solved = core.gptq(weight, gram, options(STATIC))
    assert solved.damp == pytest.approx(0.1)
    assert solved.loss == pytest.approx(oracle.loss(weight, solved.dequantize(), gram), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_weights_are_solved_as_floats(dtype):
    weight, gram = random_weight(70, 128).to(dtype), random_gram(128)
    solved, wanted = (core.gptq(w, gram, options(STATIC)) for w in (weight, weight.float()))
    assert torch.equal(solved.codes, wanted.codes)
    assert solved.loss == wanted.loss


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scales_are_what_the_checkpoint_holds(mode, dtype):
    weight, gram = random_weight(70, 200), random_gram(200)
    scale = core.gptq(weight, gram, options(mode, scale_dtype=dtype)).grid.scale
    assert torch.equal(scale, scale.to(dtype).float())


def test_gradients_and_layouts_are_no_matter():
    weight, gram = random_weight(70, 128), random_gram(128)
    wanted = core.gptq(weight, gram, options(STATIC))
    strided = weight.T.contiguous().T.requires_grad_()
    solved = core.gptq(strided, gram.T.contiguous().T, options(STATIC))
    assert torch.equal(solved.codes, wanted.codes)
    assert not solved.grid.scale.requires_grad
    with torch.inference_mode():
        assert torch.equal(core.gptq(weight, gram, options(STATIC)).codes, wanted.codes)


def damped_energy(weight, quantized, gram, damp=0.01):
    d = weight.double() - quantized.dequantize().double()
    h = gram.double() + torch.eye(len(gram)) * damp * gram.double().diagonal().mean()
    return (d @ h * d).sum(1)


@pytest.mark.parametrize("group_size", [32, 48, -1])  # 48 leaves a shorter last group
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_refit_is_the_least_squares_solution(group_size, symmetric):
    weight, gram = random_weight(40, 160), random_gram(160)
    spec = core.GridSpec(3, group_size, symmetric, "gram")
    solved = core.gptq(weight, gram, core.GptqOptions(spec))
    refitted = core.gptq(weight, gram, core.GptqOptions(spec, refit=1))
    assert torch.equal(refitted.codes, solved.codes)
    assert torch.equal(refitted.grid.zero, solved.grid.zero)
    h = gram.double() + torch.eye(160) * 0.01 * gram.double().diagonal().mean()
    root = torch.linalg.cholesky(h)
    width = 160 if group_size == -1 else group_size
    for row in range(40):
        zero = solved.grid.zero[row].double().repeat_interleave(width)[:160]
        unit = solved.codes[row].double() - zero
        members = torch.arange(160) // width == torch.arange(solved.grid.scale.shape[1])[:, None]
        design = (members * unit) @ root
        scale = torch.linalg.lstsq(design.T, (weight[row].double() @ root)[:, None]).solution
        assert torch.allclose(refitted.grid.scale[row].double(), scale[:, 0], rtol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_later_rounds_solve_on_the_refitted_grids(mode):
    """Each round is a refit and, but for the last, a solve: more rounds than one change codes."""
    weight, gram = random_weight(64, 256), random_gram(256)
    one, three = (core.gptq(weight, gram, options(mode | {"refit": rounds})) for rounds in (1, 3))
    assert not torch.equal(three.codes, one.codes)
    assert three.loss < one.loss


@given(st.integers(0, 2**16), st.sampled_from([2, 3, 4]), st.booleans())
@settings(max_examples=15)
def test_more_rounds_never_lose_more(seed, bits, static_grid):
    weight, gram = random_weight(24, 128, seed), random_gram(128, seed % 5)
    spec = core.GridSpec(bits, 32, range="gram")
    order = "activation" if static_grid else "natural"
    energies = []
    for rounds in range(4):
        options = core.GptqOptions(spec, order=order, static_grid=static_grid, refit=rounds)
        solved = core.gptq(weight, gram, options)
        energies.append(damped_energy(weight, solved, gram))
        wanted = oracle.loss(weight, solved.dequantize(), gram)
        assert solved.loss == pytest.approx(wanted, rel=1e-3)
    for before, after in itertools.pairwise(energies):
        assert (after <= before * (1 + 1e-4)).all()
    assert energies[-1].sum() < 0.99 * energies[0].sum()


def test_a_refit_keeps_the_scales_of_the_checkpoint_and_of_empty_groups():
    weight, gram = random_weight(16, 96), random_gram(96)
    weight[3, :32] = 0
    spec = core.GridSpec(4, 32, range="gram", scale_dtype=torch.bfloat16)
    refitted = core.gptq(weight, gram, core.GptqOptions(spec, refit=2))
    assert torch.equal(refitted.grid.scale, refitted.grid.scale.bfloat16().float())
    assert refitted.grid.scale.isfinite().all()
    assert (refitted.grid.scale > 0).all()
    assert (refitted.dequantize()[3, :32].abs() < 0.2).all()


def test_refit_is_a_number_of_rounds():
    with pytest.raises(ValueError, match="refit is -1, expected a number of rounds"):
        core.GptqOptions(refit=-1)
