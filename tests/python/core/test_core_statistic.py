"""A statistic is something you can add: the laws of that, for every one that is registered."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from core_data import activations, gram_of
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcalib import _core as core
from mlcalib.statistics import histogram_edges, quantile, statistic_bytes

names = st.sampled_from(core.statistic_names())
# Sums; a range adds up as extremes do.
SUMS = ["deviation", "gram", "histogram", "moments"]
sums = st.sampled_from(SUMS)
# No subnormal products: they have fewer bits.
weights = st.floats(-4, 4, width=32).map(lambda weight: weight if abs(weight) > 1e-6 else 0.0)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def inputs(draw, count):
    """``count`` inputs of as many channels, some without tokens."""
    channels = draw(st.integers(1, 70) | st.sampled_from([192, 193, 260]))
    return [activations(draw(st.integers(0, 40)), channels, draw(seeds)) for _ in range(count)]


def statistic_of(name, *xs):
    statistic = core.make_statistic(name, xs[0].shape[-1])
    for x in xs:
        statistic.update(x, reference_of(x))
    return statistic


def reference_of(x):
    """The same tokens in another model; linear, so that pieces and factors commute with it."""
    return x * torch.linspace(0.5, 1.5, x.shape[-1], device=x.device).to(x.dtype)


def sum_of(*terms):
    """The weighted sum of (weight, statistic) pairs."""
    total = core.make_statistic(terms[0][1].name, terms[0][1].channels)
    for weight, statistic in terms:
        total.merge(statistic, weight)
    return total


def assert_close(a, b, size):
    """Equal but for the rounding of fp32 sums of terms as large as those of ``size``."""
    assert a.tokens == pytest.approx(b.tokens, rel=1e-12, abs=1e-9)
    limit = size.state()
    for key, tensor in a.state().items():
        if a.name == "range":
            assert torch.equal(tensor, b.state()[key]), key
            continue
        bound = limit[key].abs().max() * 1e-5 + 1e-30
        assert ((tensor - b.state()[key]).abs() <= bound).all(), key


def assert_same(a, b):
    for key, tensor in a.state().items():
        assert torch.equal(tensor, b.state()[key]), key


@given(names, inputs(1), st.data())
def test_updates_in_pieces_add_up(name, xs, data):
    (x,) = xs
    cut = data.draw(st.integers(0, len(x)))
    whole = statistic_of(name, x)
    assert_close(statistic_of(name, x[:cut], x[cut:]), whole, whole)
    assert whole.tokens == len(x)


@given(names, inputs(2))
def test_merging_is_updating(name, xs):
    whole = statistic_of(name, *xs)
    merged = statistic_of(name, xs[0])
    merged.merge(statistic_of(name, xs[1]))
    assert_close(merged, whole, whole)


@given(names, inputs(2))
def test_merging_commutes(name, xs):
    a, b = (statistic_of(name, x) for x in xs)
    assert_same(sum_of((1, a), (1, b)), sum_of((1, b), (1, a)))


@given(names, inputs(3))
def test_merging_associates(name, xs):
    a, b, c = (statistic_of(name, x) for x in xs)
    left = sum_of((1, sum_of((1, a), (1, b))), (1, c))
    right = sum_of((1, a), (1, sum_of((1, b), (1, c))))
    assert_close(left, right, left)


@given(names, inputs(1))
def test_an_empty_statistic_changes_nothing(name, xs):
    (x,) = xs
    statistic = statistic_of(name, x)
    empty = core.make_statistic(name, x.shape[1])
    assert_same(sum_of((1, statistic), (3, empty)), statistic)
    assert_same(sum_of((1, empty), (1, statistic)), statistic)


@given(sums, inputs(2), weights)
def test_a_weight_scales(name, xs, weight):
    a, b = (statistic_of(name, x) for x in xs)
    mixed = sum_of((1, a), (weight, b))
    assert mixed.tokens == pytest.approx(len(xs[0]) + weight * len(xs[1]))
    for key, tensor in mixed.state().items():
        if key == "unit":  # of the bins; no sum
            continue
        wanted = a.state()[key].double() + weight * b.state()[key].double()
        size = a.state()[key].abs().double() + abs(weight) * b.state()[key].abs().double()
        assert ((tensor - wanted).abs() <= 1e-6 * size).all(), key


@given(names, inputs(2))
def test_a_weight_of_zero_adds_nothing(name, xs):
    a, b = (statistic_of(name, x) for x in xs)
    before = {key: tensor.clone() for key, tensor in a.state().items()}
    a.merge(b, 0.0)
    for key, tensor in before.items():
        assert torch.equal(tensor, a.state()[key]), key


@given(sums, inputs(2), weights, weights)
def test_a_mixture_is_linear(name, xs, first, second):
    a, b = (statistic_of(name, x) for x in xs)
    twice = sum_of((2, sum_of((first, a), (second, b))))
    once = sum_of((2 * first, a), (2 * second, b))
    assert_close(twice, once, sum_of((2 * abs(first), a), (2 * abs(second), b)))


@given(names, inputs(2))
def test_a_state_loads(name, xs):
    a, b = (statistic_of(name, x) for x in xs)
    loaded = statistic_of(name, xs[1])
    loaded.load(a.state())
    assert_same(loaded, a)
    # And goes on as the one it was taken from.
    loaded.merge(b)
    a.merge(b)
    assert_same(loaded, a)


@given(names, inputs(2))
@settings(max_examples=30)
def test_a_state_is_a_copy(name, xs):
    statistic = statistic_of(name, xs[0])
    state = statistic.state()
    before = {key: tensor.clone() for key, tensor in state.items()}
    loaded = core.make_statistic(name, statistic.channels)
    loaded.load(state)
    statistic.update(xs[1], reference_of(xs[1]))
    loaded.update(xs[1], reference_of(xs[1]))
    for key, tensor in before.items():
        assert torch.equal(tensor, state[key]), key
        state[key].fill_(-1)
    assert_same(loaded, statistic)


def scattered(tensor):
    """The same values in memory of another order, with gaps."""
    if tensor.dim() == 0:
        return tensor
    wide = torch.full((*reversed(tensor.shape), 2), -7, dtype=tensor.dtype)
    return wide[..., 0].permute(*reversed(range(tensor.dim()))).copy_(tensor)


@given(names, inputs(2))
def test_a_state_loads_whatever_its_strides(name, xs):
    a = statistic_of(name, xs[0])
    state = {key: scattered(tensor) for key, tensor in a.state().items()}
    assert not any(t.is_contiguous() for t in state.values() if t.numel() > 1 and min(t.shape) > 1)
    loaded = core.make_statistic(name, a.channels)
    loaded.load(state)
    for statistic in (loaded, a):
        statistic.update(xs[1], reference_of(xs[1]))
        statistic.rescale(torch.full((a.channels,), 2.0))
    assert_same(loaded, a)


def test_a_state_loads_once_repeated():
    """A tensor whose rows are one: what is written to a row must not reach the others."""
    statistic = core.make_statistic("histogram", 3)
    state = statistic.state()
    statistic.load(state | {"counts": torch.zeros(1, 128, dtype=torch.float64).expand(3, 128)})
    statistic.update(torch.tensor([[1.0, 2.0, 4.0]]))
    assert (statistic.state()["counts"].sum(1) == 1).all()


@pytest.mark.parametrize("name", ["histogram", "moments", "range"])
def test_a_state_on_two_devices_is_refused(name):
    statistic = statistic_of(name, activations(5, 4))
    before = statistic.state()
    keys = [key for key in before if key != "tokens"]
    state = before | {keys[-1]: before[keys[-1]].to("meta")}
    with pytest.raises(ValueError, match=r"is on .* but '.*' is on .*, expected one device"):
        statistic.load(state)
    for key, tensor in statistic.state().items():
        assert torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("name", core.statistic_names())
def test_a_merge_that_fails_changes_nothing(name):
    statistic, other = (statistic_of(name, activations(5, 4, seed)) for seed in (1, 2))
    before = statistic.state()
    other.rescale(torch.full((4,), 2.0))
    failing = {"histogram": 1.0, "range": -1.0}.get(name, float("nan"))
    with pytest.raises(ValueError, match=r"cannot merge|weight is nan"):
        statistic.merge(other, failing)
    for key, tensor in statistic.state().items():
        assert torch.equal(tensor, before[key]), key


def test_before_its_first_tokens_a_statistic_takes_no_memory():
    statistic = core.make_statistic("gram", 1 << 20)  # 4 TB
    assert statistic.tokens == 0
    statistic.merge(core.make_statistic("gram", 1 << 20))
    gram = core.make_statistic("gram", 3)
    assert core.losses(torch.ones(2, 3), [gram]) == [0.0]


@pytest.mark.parametrize("channels", [1, 96, 200])
@pytest.mark.parametrize("name", core.statistic_names())
def test_a_statistic_takes_the_memory_that_the_plan_counts(name, channels):
    x = torch.ones(3, channels)
    statistic = core.make_statistic(name, channels)
    with torch.profiler.profile(profile_memory=True) as profile:
        statistic.update(x, x)
    taken = sum(event.self_cpu_memory_usage for event in profile.events())
    numbers = 8  # tokens: not among the tensors
    assert taken == statistic_bytes(name, channels, torch.device("cpu")) - numbers


def test_an_empty_histogram_merges_into_one_that_was_rescaled():
    statistic, empty = (core.make_statistic("histogram", 4) for _ in range(2))
    statistic.update(activations(5, 4))
    statistic.rescale(torch.full((4,), 2.0))
    before = statistic.state()
    statistic.merge(empty)
    for key, tensor in statistic.state().items():
        assert torch.equal(tensor, before[key]), key


@pytest.mark.parametrize("name", core.statistic_names())
def test_threads_share_a_statistic(name):
    """Updates, merges and readings of several threads: none is lost, and none is seen half done."""
    x = torch.ones(600, 90)
    shared, other = (core.make_statistic(name, 90) for _ in range(2))
    other.update(x, x + 1)
    counted = "low" if name == "range" else next(key for key in other.state() if key != "unit")
    once = other.state()[counted]
    rounds = 20

    def update():
        for _ in range(rounds):
            core.update([shared, other], x, x + 1)

    def merge():
        for _ in range(rounds):
            shared.merge(other, 0.0)
            other.merge(shared, 0.0)

    def read():
        for _ in range(rounds):
            state = shared.state()
            tokens = state["tokens"] / 600
            assert name == "range" or torch.equal(state[counted], once * tokens)
            assert shared.tokens % 1 == 0

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(run) for run in (update, update, merge, read)]:
            done.result()
    assert shared.tokens == 2 * rounds * 600
    assert torch.equal(shared.state()[counted], once * (1 if name == "range" else 2 * rounds))


@given(inputs(1))
def test_a_gram_is_the_sum_of_products(xs):
    (x,) = xs
    gram = statistic_of("gram", x).state()["gram"]
    assert gram.dtype == torch.float32
    assert torch.equal(gram, gram.T)
    wanted = gram_of(x)
    size = wanted.diagonal().sqrt()
    assert ((gram - wanted).abs() <= 1e-5 * size[:, None] * size).all()


@given(st.integers(1, 260), st.integers(1, 60), seeds)
def test_a_gram_of_half_types_is_exact(channels, tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    # Quarters: their products and the sums of these are floats.
    x = torch.randint(-32, 33, (tokens, channels), generator=generator) / 4
    wanted = gram_of(x)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(statistic_of("gram", x.to(dtype)).state()["gram"], wanted)


@pytest.mark.parametrize("name", core.statistic_names())
def test_tokens_are_all_dimensions_but_the_last(name):
    x = activations(24, 40)
    wanted = statistic_of(name, x)
    for shaped in (x.view(2, 3, 4, 40), x.T.contiguous().T, x.repeat(1, 2)[:, :40]):
        assert_close(statistic_of(name, shaped), wanted, wanted)
        assert statistic_of(name, shaped).tokens == 24
    assert statistic_of(name, x[0]).tokens == 1
    assert statistic_of(name, x.clone().requires_grad_()).state()["tokens"].item() == 24


@pytest.mark.parametrize("name", core.statistic_names())
def test_collected_in_inference_mode_and_merged_outside(name):
    x = activations(24, 40)
    with torch.inference_mode():
        inside = statistic_of(name, x.clone())
    inside.merge(statistic_of(name, x))
    inside.update(x, reference_of(x))
    wanted = statistic_of(name, x, x, x)
    assert_close(inside, wanted, wanted)
    assert not inside.state()["tokens"].is_inference()


@pytest.mark.parametrize("name", core.statistic_names())
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_or_inf_adds_nothing(name, value):
    statistic = statistic_of(name, activations(24, 40))
    before = statistic.state()
    x = activations(8, 40)
    x[3, 9] = value
    with pytest.raises(ValueError, match=r"x holds 1 NaN or Inf of 320 values.*\[3, 9\]"):
        statistic.update(x, reference_of(x))
    for key, tensor in statistic.state().items():
        assert torch.equal(tensor, before[key]), key


@given(inputs(1), seeds)
def test_a_deviation_is_the_cross_gram_less_the_gram(xs, seed):
    (x,) = xs
    reference = activations(*x.shape, seed)
    statistic = core.make_statistic("deviation", x.shape[1])
    assert statistic.compares
    statistic.update(x, reference)
    found = statistic.state()["deviation"]
    wide, other = x.double(), reference.double()
    size = ((other - wide).square().sum(0)[:, None] * wide.square().sum(0)).sqrt()
    assert ((found - (other.T @ wide - wide.T @ wide)).abs() <= 1e-5 * size + 1e-30).all()
    statistic.update(x, x)
    assert torch.equal(statistic.state()["deviation"], found)


def test_what_compares_needs_a_reference_of_the_same_tokens():
    x = activations(24, 40)
    gram, deviation = (core.make_statistic(name, 40) for name in ("gram", "deviation"))
    assert not gram.compares
    for reference, message in (
        (None, r"deviation compares x .* which are missing; pass reference="),
        (x[:3], r"reference has shape \[3, 40\], expected \[24, 40\]"),
        (x.log(), r"reference holds \d+ NaN or Inf"),
    ):
        with pytest.raises(ValueError, match=message):
            core.update([gram, deviation], x, reference)
        assert gram.tokens == deviation.tokens == 0
    with pytest.raises(TypeError, match="reference is Double"):
        deviation.update(x, x.double())


def test_moments_are_those_of_the_tokens():
    x = activations(999, 70)
    state = statistic_of("moments", x[:400], x[400:]).state()
    for key, wanted in (
        ("sum", x.double().sum(0)),
        ("absolute", x.double().abs().sum(0)),
        ("square", x.double().square().sum(0)),
    ):
        assert state[key].dtype == torch.float64
        assert ((state[key] - wanted).abs() <= 1e-6 * x.double().abs().sum(0).max()).all()
    gram = statistic_of("gram", x).state()["gram"].diagonal()
    assert torch.allclose(state["square"].float(), gram, rtol=1e-5)


@given(inputs(2), st.floats(0.01, 4))
def test_a_range_holds_the_extremes(xs, weight):
    both = sum_of((1, statistic_of("range", xs[0])), (weight, statistic_of("range", xs[1])))
    x = torch.cat(xs)
    state = both.state()
    if len(x) == 0:
        assert (state["low"] == float("inf")).all()
        assert (state["high"] == -float("inf")).all()
    else:
        assert torch.equal(state["low"], x.amin(0))
        assert torch.equal(state["high"], x.amax(0))
    with pytest.raises(ValueError, match="weight -1: extremes cannot be taken away"):
        both.merge(both, -1)


@given(inputs(1), st.floats(2**-10, 4, width=32))
def test_a_histogram_counts_magnitudes(xs, unit):
    (x,) = xs
    statistic = core.make_statistic("histogram", x.shape[1])
    statistic.rescale(torch.full((x.shape[1],), unit))
    statistic.update(x, reference_of(x))
    state = statistic.state()
    assert state["counts"].dtype == torch.float64
    assert (state["counts"].sum(1) == len(x)).all()
    assert (state["unit"] == unit).all()
    magnitudes = (x.abs() / unit).T.contiguous()
    bins = torch.bucketize(magnitudes, histogram_edges(), right=True) - 1
    wanted = torch.zeros_like(state["counts"])
    wanted.scatter_add_(1, bins, torch.ones_like(magnitudes).double())
    assert torch.equal(state["counts"], wanted)


@given(inputs(1).filter(lambda xs: len(xs[0])), st.floats(0.01, 1))
def test_a_quantile_is_within_its_bin(xs, share):
    (x,) = xs
    found = quantile(statistic_of("histogram", x).state(), share)
    rank = max(math.ceil(share * len(x)), 1)
    wanted = x.abs().sort(0).values[rank - 1]
    assert (found >= wanted).all()
    assert (found <= (wanted * 1.25).clamp(min=histogram_edges()[1])).all()


def test_a_quantile_of_what_was_rescaled():
    x = activations(100, 24)
    statistic = statistic_of("histogram", x)
    before = quantile(statistic.state(), 0.9)
    statistic.rescale(torch.full((24,), 8.0))
    assert torch.equal(quantile(statistic.state(), 0.9), 8 * before)


def test_a_quantile_needs_tokens_and_a_share():
    state = statistic_of("histogram", activations(3, 4)).state()
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="expected a share from 0 to 1"):
            quantile(state, share)
    with pytest.raises(ValueError, match="no tokens"):
        quantile(core.make_statistic("histogram", 4).state(), 0.5)


def test_histograms_with_other_bins_do_not_merge():
    one, two = (statistic_of("histogram", activations(5, 4)) for _ in range(2))
    two.rescale(torch.full((4,), 2.0))
    with pytest.raises(ValueError, match=r"rescaled by different factors.*Merge them first"):
        one.merge(two)
    fresh = core.make_statistic("histogram", 4)
    fresh.merge(two, 0.5)
    assert torch.equal(fresh.state()["unit"], two.state()["unit"])


@given(names.filter(lambda name: name != "histogram"), inputs(1), seeds)
def test_rescaling_is_scaling_the_activations(name, xs, seed):
    (x,) = xs
    factors = torch.randn(x.shape[1], generator=torch.Generator().manual_seed(seed)).exp()
    scaled = statistic_of(name, x)
    scaled.rescale(factors)
    wanted = statistic_of(name, x * factors).state()
    for key, tensor in scaled.state().items():
        size = statistic_of("gram", x * factors).state()["gram"].diagonal().sum() + 1
        assert torch.allclose(tensor, wanted[key], rtol=1e-5, atol=1e-5 * float(size)), key


def test_rescaling_needs_positive_factors():
    statistic = statistic_of("gram", activations(4, 8))
    with pytest.raises(ValueError, match=r"factors go down to 0, expected positive"):
        statistic.rescale(torch.zeros(8))
    with pytest.raises(ValueError, match=r"factors have shape \[7\], expected \[8\]"):
        statistic.rescale(torch.ones(7))


@given(inputs(1))
def test_statistics_of_one_pass_are_those_of_several(xs):
    (x,) = xs
    together = [core.make_statistic(name, x.shape[1]) for name in core.statistic_names()]
    core.update(together, x, reference_of(x))
    for statistic in together:
        assert_same(statistic, statistic_of(statistic.name, x))


def test_one_pass_over_many_tokens_and_one_that_fails():
    x = activations(3000, 300)
    together = [core.make_statistic(name, 300) for name in core.statistic_names()]
    core.update(together, x, reference_of(x))
    for statistic in together:
        assert_same(statistic, statistic_of(statistic.name, x))
    x[2999, 299] = float("nan")
    before = [statistic.state() for statistic in together]
    with pytest.raises(ValueError, match=r"x holds 1 NaN or Inf"):
        core.update(together, x, reference_of(x))
    for statistic, state in zip(together, before, strict=True):
        for key, tensor in statistic.state().items():
            assert torch.equal(tensor, state[key])


def test_a_million_tokens_do_not_drift():
    """Positive activations: all products add up, the worst case for fp32 sums."""
    generator = torch.Generator().manual_seed(0)
    gram, moments = (core.make_statistic(name, 48) for name in ("gram", "moments"))
    wanted = torch.zeros(48, 48, dtype=torch.float64)
    total = torch.zeros(48, dtype=torch.float64)
    for _ in range(250):
        x = torch.rand(4000, 48, generator=generator) + 0.5
        core.update([gram, moments], x)
        wanted += x.double().T @ x.double()
        total += x.double().sum(0)
    assert gram.tokens == 1e6
    # 3e-6 when this was written, a third less than adding up batches by addmm.
    assert ((gram.state()["gram"] - wanted).abs() / wanted).max() < 1e-5
    assert ((moments.state()["sum"] - total).abs() / total).max() < 1e-6


@pytest.mark.parametrize("name", core.statistic_names())
def test_what_is_packed_shares_memory_and_can_be_given_back(name):
    cpu = torch.device("cpu")
    one, other = (statistic_of(name, activations(20, 200, seed)) for seed in (1, 2))
    whole = core.make_statistic(name, 200)
    whole.merge(one)
    whole.merge(other)
    packed, theirs = one.packed(cpu), other.packed(cpu)
    assert packed.keys() == {*one.adds, "tokens"}
    for part, adds in one.adds.items():
        combine = {"sum": torch.add, "least": torch.minimum, "greatest": torch.maximum}.get(adds)
        if combine is not None:
            packed[part].copy_(combine(packed[part], theirs[part]))
    packed["tokens"] += theirs["tokens"]
    one.load_packed(packed)
    assert_same(one, whole)
    assert one.tokens == 40
    empty = core.make_statistic(name, 200)
    assert {part: kept.shape for part, kept in empty.packed(cpu).items()} == {
        part: kept.shape for part, kept in packed.items()
    }
    with pytest.raises(ValueError, match="unlike what packed"):
        core.make_statistic(name, 200).load_packed(packed)
    with pytest.raises(ValueError, match="unlike what packed"):
        one.load_packed({**packed, next(iter(one.adds)): torch.zeros(3)})
