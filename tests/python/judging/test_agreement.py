"""Krippendorff's alpha against published values, and win rates."""

import random

import pytest

from mlcalib.judging import krippendorff_alpha, wilson, win_rate

N = None

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011): two observers and binary data
# without missing values, 0.095; four observers, nominal data with missing values, 0.743.
BINARY = [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]
FOUR = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]
# The worked example of Wikipedia's article, three observers, 0.691.
THREE = [
    [N, N, N, N, N, 3, 4, 1, 2, 1, 1, 3, 3, N, 3],
    [1, N, 2, 1, 3, 3, 4, 3, N, N, N, N, N, N, N],
    [N, N, 2, 1, 3, 4, 4, N, 2, 1, 1, 3, 3, N, 4],
]


def units(raters):
    return [[value for value in unit if value is not N] for unit in zip(*raters, strict=True)]


@pytest.mark.parametrize(("raters", "alpha"), [(BINARY, 0.095), (FOUR, 0.743), (THREE, 0.691)])
def test_published_values(raters, alpha):
    assert krippendorff_alpha(units(raters)) == pytest.approx(alpha, abs=5e-4)


def test_alpha_at_its_ends():
    assert krippendorff_alpha([["a", "a"], ["b", "b", "b"], ["c"]]) == 1
    assert krippendorff_alpha([["a", "b"], ["b", "a"]]) == pytest.approx(-0.5)
    assert krippendorff_alpha([["a", "a"], ["a", "a", "a"]]) is None
    assert krippendorff_alpha([["a"], []]) is None
    draw = random.Random(0)
    chance = [[draw.choice("abc") for _ in range(3)] for _ in range(3000)]
    assert krippendorff_alpha(chance) == pytest.approx(0, abs=0.03)


def test_wilson_is_the_textbook_s():
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3.
    for wins, n, low, high in [
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)
    ]:  # fmt: skip
        assert wilson(wins / n, n) == pytest.approx((low, high), abs=1e-4)


def test_win_rate_counts_items_not_verdicts():
    rate = win_rate([["second", "second", "first"], ["tie"], [], ["first", "second"], ["first"]])
    assert (rate.wins, rate.ties, rate.losses, rate.n, rate.verdicts) == (1, 2, 1, 4, 7)
    assert rate.rate == pytest.approx((2 / 3 + 0.5 + 0.5 + 0) / 4)
    assert (rate.low, rate.high) == wilson(rate.rate, 4)
    with pytest.raises(ValueError, match="no verdict"):
        win_rate([[]])


@pytest.mark.parametrize("raters", [1, 3])
@pytest.mark.parametrize("chances", [(0.5, 0.2, 0.3), (0.1, 0.6, 0.3), (0.9, 0.05, 0.05)])
def test_intervals_cover(raters, chances):
    """Simulated: of 95 % intervals, 95 % or more hold the true rate."""
    draw = random.Random(f"{raters} {chances}")
    truth = chances[0] + chances[1] / 2
    runs, covered = 400, 0
    for _ in range(runs):
        rate = win_rate(
            [draw.choices(("second", "tie", "first"), chances, k=raters) for _ in range(40)]
        )
        covered += rate.low <= truth <= rate.high
    assert covered / runs >= 0.93  # 0.95 less two standard errors of 400 runs
