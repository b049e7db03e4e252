"""Paired bootstrap, McNemar and Holm: coverage, laws, and values known from elsewhere."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from mlcalib.results.significance import (
    _t_quantile,
    _t_two_sided,
    combine,
    holm,
    interval,
    mcnemar,
    paired_mean,
    paired_ratio,
    resample,
)

numbers = st.floats(-50, 50).map(lambda value: round(value, 3))
documents = st.integers(2, 12).flatmap(
    lambda n: st.tuples(
        arrays(float, n, elements=numbers),
        arrays(float, n, elements=numbers),
        arrays(float, n, elements=st.integers(1, 400)),
    )
)


def quick(first, second, size, **options):
    return paired_ratio(first, second, size, **{"resamples": 200, **options})


@pytest.mark.parametrize(("n", "least"), [(3, 0.9), (6, 0.91), (30, 0.92)])
def test_intervals_hold_the_truth_as_often_as_they_say(n, least):
    draws = np.random.default_rng(n)
    inside = false = 0
    trials = 400
    for trial in range(trials):
        size = draws.integers(50, 400, n)
        second = size * draws.normal(0, 0.15, n)
        found = paired_ratio(np.zeros(n), second, size, resamples=300, seed=trial)
        inside += found.low <= 0 <= found.high
        false += found.significant
    assert least < inside / trials < 0.985
    assert 0.01 < false / trials < 1 - least


def test_the_value_and_the_spread_are_those_of_a_ratio_of_sums():
    draws = np.random.default_rng(5)
    size = draws.integers(50, 400, 200)
    first = draws.normal(3, 1, 200) * size
    second = first + draws.normal(0.1, 0.5, 200) * size
    found = paired_ratio(first, second, size)
    ratio = (second - first).sum() / size.sum()
    residual = second - first - ratio * size
    error = math.sqrt((residual**2).sum() * 200 / 199) / size.sum()
    assert found.value == pytest.approx(ratio, rel=1e-12)
    assert found.high - found.low == pytest.approx(2 * 1.972 * error, rel=0.05)
    assert (found.n, found.seed) == (200, 0)
    assert found.p == pytest.approx(math.erfc(ratio / error / math.sqrt(2)), abs=0.01)


@settings(max_examples=40, deadline=None)
@given(documents, st.randoms(use_true_random=False), st.floats(0.1, 10), st.floats(-3, 3))
def test_laws(given_documents, random, factor, shift):
    first, second, size = given_documents
    found = quick(first, second, size)
    assert found == quick(first, second, size)
    assert found.low <= found.high
    assert 2 / 201 <= found.p <= 1

    tolerance = 1e-9 * (1 + np.abs(np.concatenate([first, second])).max())
    back = quick(second, first, size)
    assert back.value == -found.value
    np.testing.assert_allclose([back.low, back.high], [-found.high, -found.low], atol=tolerance)
    assert back.p == pytest.approx(found.p, abs=1e-6)

    shifted = quick(first + shift * size, second + shift * size, size)
    np.testing.assert_allclose(
        [shifted.value, shifted.low, shifted.high],
        [found.value, found.low, found.high],
        atol=tolerance,
    )
    scaled = quick(factor * first, factor * second, factor * size)
    np.testing.assert_allclose([scaled.low, scaled.high], [found.low, found.high], atol=tolerance)
    order = list(range(len(size)))
    random.shuffle(order)
    assert quick(first[order], second[order], size[order]).value == pytest.approx(found.value)


def test_seeds_change_the_interval_and_nothing_else():
    draws = np.random.default_rng(0)
    first, second = draws.normal(size=(2, 20))
    one, other = (paired_mean(first, second, seed=seed) for seed in (0, 1))
    assert one.value == other.value
    assert one.low != other.low
    assert one.low == pytest.approx(other.low, abs=0.05)


def test_models_without_a_difference():
    found = quick([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [4, 5, 6])
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert not found.significant


def test_a_difference_that_all_documents_share_is_as_sure_as_resamples_can_say():
    found = quick([0.0] * 30, [2.0, 4.0] * 15, [1, 2] * 15)
    assert (found.value, found.low, found.high) == (2, 2, 2)
    assert found.p == 2 / 201


def test_one_document_has_no_interval():
    found = paired_ratio([1.0], [3.0], [4])
    assert (found.value, found.low, found.high, found.p, found.n) == (0.5, None, None, None, 1)
    assert not found.significant


def test_few_documents_say_little():
    """All three agree, yet a coin falls alike three times in a quarter of all cases."""
    assert paired_mean([0.0] * 3, [0.1, 0.3, 0.2]).p > 0.05
    assert paired_mean([0.0] * 12, [0.1, 0.3, 0.2] * 4).p < 0.001


def test_parts_are_independent_and_their_variances_add():
    draws = np.random.default_rng(1)
    losses, size = draws.normal(size=(4, 3, 50)), np.ones(50)
    parts = [resample(losses[at], size, stream=at).contrast([-0.25, 0.25, 0]) for at in range(4)]
    found = combine(parts, 0)
    differences = losses[:, 1] - losses[:, 0]
    assert found.value == pytest.approx(differences.mean())
    error = math.sqrt((differences.var(axis=1, ddof=1) / 50).sum()) / 4
    assert found.high - found.low == pytest.approx(2 * 1.97 * error, rel=0.05)
    assert found.n == 200
    alike = [resample(losses[0], size).contrast([-0.25, 0.25, 0]) for _ in range(4)]
    assert combine(alike, 0).high - combine(alike, 0).value > 1.5 * (found.high - found.value)


def test_a_single_document_is_taken_to_vary_as_the_others_do():
    draws = np.random.default_rng(3)
    counts, spread, held = (1, 1, 4, 6, 9), 0.3, 0
    for _ in range(400):
        parts = [
            resample(draws.normal(0, spread, (1, n)), np.ones(n), resamples=300, stream=at)
            for at, n in enumerate(counts)
        ]
        found = combine([each.contrast([0.2]) for each in parts], 0)
        held += found.low <= 0 <= found.high
    assert 0.92 <= held / 400 <= 0.985
    assert found.n == sum(counts)
    alone = resample([0.1], [1.0], resamples=300)
    assert combine([alone, alone], 0).p is None


def test_rows_see_the_same_draws():
    losses = np.random.default_rng(2).normal(size=(3, 7))
    together = resample(losses, np.arange(1, 8), resamples=50)
    for at in range(3):
        alone = resample(losses[at], np.arange(1, 8), resamples=50)
        np.testing.assert_allclose(together.deviations[at], alone.deviations, atol=1e-14)


def test_items_that_fare_alike_are_drawn_together_to_the_same_end():
    draws = np.random.default_rng(3)
    first, second = draws.integers(0, 2, (2, 500)).astype(float)
    together = paired_mean(first, second)
    apart = paired_ratio(first, second, np.ones(500))
    assert together.value == pytest.approx(apart.value)
    np.testing.assert_allclose([together.low, together.high], [apart.low, apart.high], atol=0.006)
    assert together.p == pytest.approx(apart.p, abs=0.02)
    assert together.n == apart.n == 500


def test_an_interval_of_one_model():
    found = interval([2.0, 4.0, 9.0, 5.0], [1, 2, 3, 2])
    assert found.value == 2.5
    assert 1.5 < found.low < 2.5 < found.high < 3.6


def test_t_against_tables():
    table = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 7: 2.3646, 30: 2.0423, 1000: 1.9623}
    for degrees, quantile in table.items():
        assert _t_quantile(degrees) == pytest.approx(quantile, abs=5e-5)
        assert _t_two_sided(-quantile, degrees) == pytest.approx(0.05, abs=1e-5)
    assert _t_two_sided(5.8409, 3) == pytest.approx(0.01, abs=1e-6)
    assert _t_two_sided(3.6460, 30) == pytest.approx(0.001, abs=1e-6)
    assert _t_two_sided(0, 5) == 1
    assert _t_two_sided(1.959964, 20_000) == pytest.approx(0.05, abs=1e-6)


def test_mcnemar():
    assert mcnemar([1] * 5, [1] * 5) == 1
    assert mcnemar([1, 1, 1, 0] + [1] * 9, [0, 0, 0, 1] + [1] * 9) == 10 / 16
    assert mcnemar([0] * 6, [1] * 6) == 2 / 64
    first, second = [1] * 40 + [0] * 60, [0] * 40 + [1] * 60
    assert mcnemar(first, second) == pytest.approx(
        0.0568879, abs=1e-7
    )  # scipy's binomtest(40, 100)
    assert mcnemar(second, first) == mcnemar(first, second)
    assert 0 < mcnemar([0] * 2600 + [1] * 2400, [1] * 2600 + [0] * 2400) < 0.005


def test_holm():
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert holm(p) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(holm(p)) == list(p)
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@given(st.dictionaries(st.integers(), st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_none_and_bonferroni_and_keeps_the_order(p):
    adjusted = holm(p)
    for name in p:
        assert p[name] <= adjusted[name] <= min(1, p[name] * len(p))
    for one in p:
        assert all(adjusted[one] <= adjusted[other] for other in p if p[one] <= p[other])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_ratio([1, 2], [1], [1, 1]), "first model has 2 documents, the second 1"),
        (lambda: paired_ratio([1, 2], [1, 3], [1]), "1 sizes for 2 documents"),
        (lambda: paired_ratio([1, math.nan], [1, 2], [1, 1]), "NaN or Inf"),
        (lambda: paired_ratio([1], [2], [0]), "not all 0"),
        (lambda: paired_ratio([1, 1], [2, 2], [3, -1]), "must be 0 or more"),
        (lambda: paired_mean([], []), "no documents"),
        (lambda: paired_mean([1, 2], [2, 3], resamples=0), "resamples is 0"),
        (lambda: mcnemar([1, 0], [1]), "2 and 1 items"),
        (lambda: mcnemar([1, 0.5], [1, 0]), "0 .wrong. or 1 .right."),
        (lambda: holm({"a": 1.5}), "p-value of a is 1.5"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
