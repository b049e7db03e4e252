"""Every kernel of the CUDA backend against the CPU: on a GPU, or emulated on the stand-in device.

Large shapes, and TF32, are a GPU's alone.
"""

from contextlib import contextmanager

import pytest
import torch
from core_data import NEARLY_ALL, activations, random_gram, random_weight, share_equal
from devices import DEVICES

from mlcalib import _core as core
from mlcalib.models.device import free_memory
from mlcalib.statistics import statistic_bytes

if not DEVICES:
    pytest.skip("no GPU that the core was built for (docs/design/cuda.md)", allow_module_level=True)

DEVICE = DEVICES[0]
on_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="needs CUDA")
SHAPES = [(5, 96, 32), (130, 320, 64), (64, 200, 128), (33, 150, -1), (512, 1536, 128)]
if DEVICE == "standin":
    SHAPES = [(5, 96, 32), (40, 192, 64), (33, 150, -1)]


def states(name, x, device, repeats=1):
    statistic = core.make_statistic(name, x.shape[1])
    for _ in range(repeats):
        statistic.update(x.to(device))
    state = statistic.state()
    assert all(tensor.device.type == device for key, tensor in state.items() if key != "tokens")
    return {key: tensor.cpu() for key, tensor in state.items()}


# More channels than one product has rows, and more tokens than it sums.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "channels"), [(1, 1), (77, 130), (5000, 96), (300, 2500)])
def test_gram(tokens, channels, dtype):
    x = activations(tokens, channels).to(dtype)
    found = states("gram", x, DEVICE, repeats=2)["gram"]
    wanted = 2 * (x.double().T @ x.double())
    size = wanted.diagonal().sqrt()
    assert ((found - wanted).abs() <= 1e-5 * size[:, None] * size).all()
    assert torch.equal(found, found.T)


# Shorter than a block row, and of several.
@pytest.mark.parametrize("channels", [130, 2100])
def test_a_gram_moves_between_devices_bit_for_bit(channels):
    x = activations(50, channels)
    here, there = (core.make_statistic("gram", channels) for _ in range(2))
    there.update(x.to(DEVICE))
    state = there.state()
    here.load({key: tensor.cpu() for key, tensor in state.items()})
    assert torch.equal(here.state()["gram"], state["gram"].cpu())
    here.update(x)
    state = here.state()
    there.load({key: tensor.to(DEVICE) for key, tensor in state.items()})
    assert torch.equal(there.state()["gram"].cpu(), state["gram"])
    there.load({**state, "gram": state["gram"].to(DEVICE).T})  # symmetric, in other strides
    there.merge(there)
    there.rescale(torch.full((channels,), 0.5, device=DEVICE))
    assert torch.equal(there.state()["gram"].cpu(), state["gram"] / 2)
    assert there.tokens == 200


# What --plan says of it: at most one piece of the device's allocator more for each tensor.
@pytest.mark.parametrize("channels", [130, 1024, 2100, 3072])
@pytest.mark.parametrize("name", core.statistic_names())
def test_a_statistic_takes_the_memory_that_the_plan_counts(name, channels):
    x = torch.ones(1, channels, device=DEVICE)
    statistic = core.make_statistic(name, channels)
    before = free_memory(x.device)[0]
    statistic.update(x, x)
    taken = before - free_memory(x.device)[0]
    assert 0 <= taken - statistic_bytes(name, channels, x.device) <= 5 * 512


@on_cuda
def test_gram_takes_no_tf32_and_repeats():
    x = activations(500, 256)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        found, again = (states("gram", x, DEVICE)["gram"] for _ in range(2))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert torch.equal(found, again)
    wanted = x.double().T @ x.double()
    size = wanted.diagonal().sqrt()
    assert ((found - wanted).abs() <= 1e-5 * size[:, None] * size).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 33, 576])
def test_moments_range_and_histogram(channels, dtype):
    x = activations(3000, channels).to(dtype)
    for name in ("moments", "range", "histogram"):
        found, wanted = states(name, x, DEVICE), states(name, x, "cpu")
        for key, tensor in wanted.items():
            tolerance = 1e-6 * tensor.abs().max().item() if name == "moments" else 0
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=tolerance)


@contextmanager
def waiting_is_an_error():
    if DEVICE != "cuda":  # only CUDA can tell
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", core.statistic_names())
def test_no_update_waits_for_the_gpu_and_who_reads_finds_nan(name, dtype):
    x = activations(5000, 96).to(DEVICE, dtype)
    statistic, other = (core.make_statistic(name, 96) for _ in range(2))
    damaged = x.clone()
    damaged[3, 5], damaged[4999, 95] = torch.nan, torch.inf
    with waiting_is_an_error():
        for _ in range(3):
            statistic.update(x, x)
        if DEVICE == "cuda":
            with pytest.raises(RuntimeError, match="synchroniz"):
                statistic.check_finite()
    statistic.check_finite()
    with waiting_is_an_error():
        other.update(damaged, x)
        statistic.update(x, damaged)
    statistic.merge(other)
    for read in (statistic.check_finite, statistic.state, statistic.view):
        with pytest.raises(ValueError, match=f"to the statistic {name} held 4 NaN or Inf"):
            read()


# More languages than one launch has, channels of more than one block of rows.
@pytest.mark.parametrize("languages", [1, 18])
def test_losses_of_statistics(languages):
    change = random_weight(300, 2100).to(DEVICE)
    grams, wanted = [], []
    for seed in range(languages):
        x = activations(200 + seed, 2100, seed).to(DEVICE, torch.bfloat16)
        grams.append(core.make_statistic("gram", 2100))
        grams[-1].update(x)
        wanted.append((x.double() @ change.double().T).square().sum().item())
    empty = core.make_statistic("gram", 2100)
    found = core.losses(change, [*grams, empty, grams[0]])
    assert found == pytest.approx([*wanted, 0, wanted[0]], rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("tokens", "channels"), [(77, 130), (5000, 96)])
def test_deviation(tokens, channels, dtype):
    x = activations(tokens, channels).to(dtype)
    reference = (x.float() * 1.01 + 0.02).to(dtype)
    statistic = core.make_statistic("deviation", channels)
    for _ in range(2):
        statistic.update(x.to(DEVICE), reference.to(DEVICE))
    wide, change = x.double(), reference.double() - x.double()
    size = (change.square().sum(0)[:, None] * wide.square().sum(0)).sqrt()
    found = statistic.state()["deviation"].cpu()
    assert ((found - 2 * (change.T @ wide)).abs() <= 4e-5 * size).all()


def test_a_statistic_lives_where_its_first_tokens_were():
    x = activations(40, 32)
    total, part = core.make_statistic("gram", 32), core.make_statistic("gram", 32)
    part.update(x.to(DEVICE))
    total.merge(part, 2.0)
    total.merge(core.make_statistic("gram", 32))
    total.rescale(torch.full((32,), 2.0))
    assert total.state()["gram"].device.type == DEVICE
    wanted = 8 * (x.double().T @ x.double())
    torch.testing.assert_close(total.state()["gram"].cpu().double(), wanted, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match=rf"tokens on {DEVICE}:0 and cannot take others from cpu"):
        total.update(x)


@pytest.mark.parametrize(("rows", "columns", "group_size"), SHAPES)
@pytest.mark.parametrize("chosen", ["minmax", "mse", "gram", "gram_block"])
@pytest.mark.parametrize(("bits", "symmetric"), [(3, False), (4, True), (8, False)])
def test_rounding_is_the_same_bit_for_bit(rows, columns, group_size, chosen, bits, symmetric):
    if chosen == "gram_block" and group_size == -1 and columns > 1000:
        pytest.skip("slow on the CPU")
    weight, gram = random_weight(rows, columns), random_gram(columns)
    spec = core.GridSpec(bits, group_size, symmetric, chosen)
    wanted = core.rtn(weight, spec, gram)
    found = core.rtn(weight.to(DEVICE), spec, gram.to(DEVICE))
    assert torch.equal(found.grid.scale.cpu(), wanted.grid.scale)
    assert torch.equal(found.grid.zero.cpu(), wanted.grid.zero)
    assert torch.equal(found.codes.cpu(), wanted.codes)
    assert torch.equal(found.dequantize().cpu(), wanted.dequantize())
    assert found.loss == pytest.approx(wanted.loss, rel=1e-4)


# The factorisation and the products between blocks are not the CPU's.
@pytest.mark.parametrize(("rows", "columns", "group_size"), SHAPES)
@pytest.mark.parametrize("chosen", ["minmax", "gram", "gram_block"])
@pytest.mark.parametrize(
    "options",
    [{}, {"order": "natural"}, {"order": "natural", "static_grid": False}, {"block": 50}],
    ids=["activation", "natural", "running", "block"],
)
def test_gptq_is_nearly_the_same(rows, columns, group_size, chosen, options):
    weight, gram = random_weight(rows, columns), random_gram(columns)
    solve = core.GptqOptions(core.GridSpec(4, group_size, range=chosen), **options)
    wanted = core.gptq(weight, gram, solve)
    found = core.gptq(weight.to(DEVICE), gram.to(DEVICE), solve)
    assert share_equal(found.codes.cpu(), wanted.codes) >= NEARLY_ALL
    assert found.loss == pytest.approx(wanted.loss, rel=5e-3)
    error = core.losses(weight.to(DEVICE), found, [gram.to(DEVICE)])[0]
    assert found.loss == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize(("rows", "columns", "group_size"), SHAPES)
def test_two_sided_gptq_is_nearly_the_same(rows, columns, group_size):
    weight, gram, output = random_weight(rows, columns), random_gram(columns), random_gram(rows, 1)
    solve = core.GptqOptions(core.GridSpec(4, group_size, range="gram"))
    (wanted,) = core.gptq([weight], gram, [output], solve)
    on_device = [weight.to(DEVICE)], gram.to(DEVICE), [output.to(DEVICE)]
    (found,) = core.gptq(*on_device, solve)
    assert share_equal(found.codes.cpu(), wanted.codes) >= NEARLY_ALL
    assert torch.equal(found.grid.zero.cpu(), wanted.grid.zero)


# From the same codes both go the same way, but for a rounding of sums now and then.
@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize(("rows", "columns", "group_size"), SHAPES)
def test_sweeps_are_nearly_the_same(rows, columns, group_size, two_sided):
    weight, gram, output = random_weight(rows, columns), random_gram(columns), random_gram(rows, 1)
    solve = core.GptqOptions(core.GridSpec(4, group_size, range="gram"), sweeps=2)
    outputs = [[output]] if two_sided else []
    (wanted,) = core.gptq([weight], gram, *outputs, solve)
    on_device = [[each.to(DEVICE) for each in outputs[0]]] if two_sided else []
    (found,) = core.gptq([weight.to(DEVICE)], gram.to(DEVICE), *on_device, solve)
    assert share_equal(found.codes.cpu(), wanted.codes) >= NEARLY_ALL
    torch.testing.assert_close(found.grid.scale.cpu(), wanted.grid.scale, rtol=1e-2, atol=0)
    if not two_sided:
        assert found.loss == pytest.approx(wanted.loss, rel=5e-3)


# More columns than two panels of the feedback.
@pytest.mark.parametrize("options", [{}, {"order": "natural", "static_grid": False}])
def test_gptq_of_several_panels_is_nearly_the_same(options):
    weight, gram = random_weight(64, 2600), random_gram(2600)
    solve = core.GptqOptions(core.GridSpec(4, 128, range="minmax"), **options)
    wanted = core.gptq(weight, gram, solve)
    found = core.gptq(weight.to(DEVICE), gram.to(DEVICE), solve)
    assert share_equal(found.codes.cpu(), wanted.codes) >= NEARLY_ALL
    assert found.loss == pytest.approx(wanted.loss, rel=5e-3)


def test_gptq_of_several_linears_is_that_of_each():
    weights = [random_weight(rows, 256, rows).to(DEVICE) for rows in (64, 33, 7)]
    gram = random_gram(256).to(DEVICE)
    for weight, found in zip(weights, core.gptq(weights, gram), strict=True):
        alone = core.gptq(weight, gram)
        assert share_equal(found.codes, alone.codes) >= NEARLY_ALL
        assert torch.equal(found.grid.scale, alone.grid.scale)


@pytest.mark.parametrize("chosen", ["minmax", "mse", "gram"])
@pytest.mark.parametrize(("rows", "columns", "group_size"), SHAPES[1:])
def test_awq(rows, columns, group_size, chosen):
    x = activations(3 * columns, columns)
    weights = [random_weight(rows, columns, seed) for seed in (0, 1)]
    gram, mean = (x.double().T @ x.double()).float(), x.abs().mean(0)
    options = core.AwqOptions(core.GridSpec(4, group_size, range=chosen))
    wanted = core.awq_scale([core.LinearGroup(weights, gram)], mean, options)
    group = core.LinearGroup([weight.to(DEVICE) for weight in weights], gram.to(DEVICE))
    found = core.awq_scale([group], mean.to(DEVICE), options)
    torch.testing.assert_close(found.scores, wanted.scores, rtol=2e-3, atol=0)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-3)
    assert found.unscaled == pytest.approx(wanted.unscaled, rel=1e-3)
    assert found.scale.device.type == DEVICE


def in_full_and_with_tf32(compute):
    """What is computed while torch forbids TF32, and while it allows it."""
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        results = []
        for torch.backends.cuda.matmul.allow_tf32 in (False, True):
            results.append(compute())
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return results


def deviation(weight, x):
    statistic = core.make_statistic("deviation", x.shape[1])
    statistic.update(x, x * 1.01 + 0.1)
    return [statistic.state()["deviation"]]


def corrected(weight, x):
    gram = gram_in_full(x)
    return core.corrected([weight], gram, 0.01 * gram.roll(1, 0))


def refitted(weight, x):
    found = core.gptq(weight, gram_in_full(x), core.GptqOptions(core.GridSpec(3, 64), refit=2))
    return [found.codes, found.grid.scale]


def awq_scaled(weight, x):
    options = core.AwqOptions(core.GridSpec(4, 64))
    group = core.LinearGroup([weight], gram_in_full(x))
    found = core.awq_scale([group], x.abs().mean(0), options)
    return [found.scale, found.scores, torch.tensor([found.loss, found.unscaled])]


def lost(weight, x):
    return [torch.tensor(core.losses(weight, [gram_in_full(x)]))]


def gram_in_full(x):
    x = x.double()
    return (x.T @ x).float()


@on_cuda
@pytest.mark.parametrize("compute", [deviation, corrected, refitted, awq_scaled, lost])
def test_nothing_takes_tf32(compute):
    weight, x = random_weight(512, 512).to(DEVICE), activations(2048, 512).to(DEVICE)
    full, tf32 = in_full_and_with_tf32(lambda: compute(weight, x))
    for a, b in zip(full, tf32, strict=True):
        assert torch.equal(a, b)


def test_no_rows_and_no_tokens():
    packed = core.pack(torch.zeros(0, 64, dtype=torch.uint8, device=DEVICE), 4)
    assert core.unpack(packed, 4, 64).shape == (0, 64)
    for name in ("gram", "moments", "range", "histogram"):
        statistic = core.make_statistic(name, 64)
        statistic.update(torch.zeros(0, 64, device=DEVICE))
        assert statistic.tokens == 0
    with pytest.raises(ValueError, match="at least one row"):
        core.rtn(torch.zeros(0, 64, device=DEVICE), core.GridSpec(4, 32))


def test_out_of_memory_stays_torchs_own_error():
    statistic = core.make_statistic("gram", 1 << 20)  # 4 TB
    with pytest.raises(torch.OutOfMemoryError):
        statistic.update(torch.ones(1, 1 << 20, device=DEVICE))
    assert statistic.tokens == 0


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [1, 33, 300])
def test_packing(bits, columns):
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(1 << bits, (9, columns), generator=generator).to(torch.uint8)
    packed = core.pack(codes.to(DEVICE), bits)
    assert torch.equal(packed.cpu(), core.pack(codes, bits))
    assert torch.equal(core.unpack(packed, bits, columns).cpu(), codes)


def test_two_devices_are_not_mixed():
    weight, gram = random_weight(8, 64), random_gram(64)
    with pytest.raises(ValueError, match=rf"gram is on cpu but weight is on {DEVICE}:0"):
        core.gptq(weight.to(DEVICE), gram)
