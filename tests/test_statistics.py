"""Intervals cover what they claim to."""

from math import comb

import numpy as np
import pytest
from scipy import special, stats

from harness.statistics import (
    Estimate,
    Interval,
    difference_of,
    estimate_of,
    mean_interval,
    median_interval,
    share_interval,
)

NAN = np.nan


def crossed(generator, samples, draws, shares):
    """Zero-mean values with the given shares of variance: of samples, of draws, of neither."""
    row, column, rest = np.sqrt(shares)
    values = row * generator.standard_normal((samples, 1)) + rest * generator.standard_normal((samples, draws))
    return values + column * generator.standard_normal((1, draws))


def limits(interval):
    return interval.value, interval.low, interval.high


def holds(interval, value):
    return interval.low <= value <= interval.high


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("samples", [2, 5, 200])
def test_with_one_draw_the_interval_of_the_mean_is_students(samples, confidence):
    values = np.random.default_rng(0).exponential(size=(samples, 1))
    student = stats.ttest_1samp(values[:, 0], 0).confidence_interval(confidence)
    assert limits(mean_interval(values, confidence)) == pytest.approx((values.mean(), *student), rel=1e-12)


@pytest.mark.parametrize("draws", [2, 3, 9, 40])
def test_with_several_draws_half_widths_add_by_their_squares_and_what_neither_explains_counts_once(draws):
    values = crossed(np.random.default_rng(0), 30, draws, (0.5, 0.2, 0.3))
    mean, rows, columns = values.mean(), values.mean(1), values.mean(0)
    left = sum((values[i, j] - rows[i] - columns[j] + mean) ** 2 for i in range(30) for j in range(draws))
    of_samples = sum((row - mean) ** 2 for row in rows) / 29 / 30 - left / 29 / (draws - 1) / 30 / draws
    of_draws = sum((column - mean) ** 2 for column in columns) / (draws - 1) / draws
    half = np.sqrt(stats.t.ppf(0.975, 29) ** 2 * of_samples + stats.t.ppf(0.975, draws - 1) ** 2 * of_draws)
    assert limits(mean_interval(values)) == pytest.approx((mean, mean - half, mean + half), rel=1e-12)


SHARES = [
    *((1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0, 0.5), (0.5, 0.4, 0.1), (0.3, 0.4, 0.3), (0.8, 0.1, 0.1)),
    # Where samples and draws matter as much as each other, which is where intervals are worst.
    *((0.9, 0.03, 0.07), (0.9, 0.01, 0.09), (0.6, 0.002, 0.398), (0.1, 0.01, 0.89)),
]


@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("draws", [1, 2, 3, 5, 10, 30])
@pytest.mark.parametrize("samples", [20, 100, 500])
def test_the_interval_of_the_mean_covers_the_mean_of_the_population(samples, draws, shares):
    """Of 20,000 runs; their means of samples and of draws have the laws that those of normal values have."""
    if draws == 1:
        shares = (shares[0], 0, 1 - shares[0])
    generator, runs = np.random.default_rng(2), 20_000
    row, column, rest = shares
    of_rest = (
        rest * generator.chisquare(max((samples - 1) * (draws - 1), 1), runs) / max((samples - 1) * (draws - 1), 1)
    )
    of_rows = (row + rest / draws) * generator.chisquare(samples - 1, runs) / (samples - 1)
    of_columns = (column + rest / samples) * generator.chisquare(max(draws - 1, 1), runs) / max(draws - 1, 1)
    means = np.sqrt(row / samples + column / draws + rest / samples / draws) * generator.standard_normal(runs)
    of_rows = of_rows / samples
    if draws > 1:
        of_rows = np.maximum(of_rows - of_rest / samples / draws, 0)
    several = draws > 1
    square = special.stdtrit(samples - 1, 0.975) ** 2 * of_rows
    square += special.stdtrit(draws - 1, 0.975) ** 2 * of_columns / draws if several else 0
    covered = np.mean(np.abs(means) <= np.sqrt(square))
    parts = ((of_rows[0], samples - 1), (of_columns[0] / draws, draws - 1))[: 2 if several else 1]
    assert Estimate(0.0, parts).interval().high == pytest.approx(np.sqrt(square[0]))
    assert 0.93 <= covered <= 0.99


@pytest.mark.parametrize("draws", [3, 10])
def test_so_it_does_on_values_that_are_drawn_one_by_one(draws):
    generator = np.random.default_rng(2)
    for shares in ((0.3, 0.4, 0.3), (0.9, 0.03, 0.07), (0, 0, 1)):
        hits = np.mean([holds(mean_interval(crossed(generator, 60, draws, shares)), 0) for _ in range(1000)])
        # Three standard errors beyond the limits.
        assert 0.93 - 0.021 <= hits <= 0.99 + 0.01


def test_a_chance_is_where_a_one_sided_interval_ends():
    values = crossed(np.random.default_rng(0), 40, 5, (0.5, 0.2, 0.3))
    found = estimate_of(values)
    for confidence in (0.5, 0.9, 0.99):
        assert found.chance(found.interval(confidence).high) == pytest.approx((1 - confidence) / 2, rel=1e-9)
    student = estimate_of(values[:, :1])
    assert 2 * student.chance(0.1) == pytest.approx(stats.ttest_1samp(values[:, 0], 0.1).pvalue, rel=1e-9)
    assert student.chance(1e9) < 1e-30
    assert np.isnan(estimate_of(values[:1]).chance(0.0))
    assert (Estimate(1.0, ((0.0, 3),)).chance(0.5), Estimate(1.0, ((0.0, 3),)).chance(1.0)) == (0.0, 0.5)


@pytest.mark.parametrize("draws", [(1, 1), (4, 4), (3, 10)])
def test_draws_of_two_runs_count_each_for_itself(draws):
    generator = np.random.default_rng(3)
    runs, hits = 600, 0
    for _ in range(runs):
        images = generator.standard_normal((50, 1))
        shared = [0.5 * (count > 1) * generator.standard_normal((1, count)) for count in draws]
        one, other = (images + each + 0.5 * generator.standard_normal((50, each.size)) for each in shared)
        hits += holds(difference_of(one, other, matched=False).interval(), 0)
    assert 0.93 - 3 * np.sqrt(0.07 / runs) <= hits / runs <= 1


def test_matched_draws_are_paired():
    values = crossed(np.random.default_rng(0), 40, 5, (0.5, 0.2, 0.3))
    assert limits(difference_of(values + 1, values, matched=True).interval()) == pytest.approx((1, 1, 1))
    apart = difference_of(values + 1, values, matched=False).interval()
    assert apart.high - apart.low > 0.5


def test_with_one_draw_the_interval_says_nothing_about_other_draws():
    generator = np.random.default_rng(0)
    hits = sum(holds(mean_interval(crossed(generator, 100, 1, (0.5, 0.5, 0))), 0) for _ in range(500))
    assert hits / 500 < 0.3


@pytest.mark.parametrize("draws", [1, 4, 12])
def test_the_mean_and_its_interval_follow_units(draws):
    values = crossed(np.random.default_rng(0), 20, draws, (0.4, 0.3, 0.3))
    value, low, high = limits(mean_interval(values))
    assert limits(mean_interval(3 * values - 2)) == pytest.approx((3 * value - 2, 3 * low - 2, 3 * high - 2), rel=1e-9)
    assert limits(mean_interval(-values)) == pytest.approx((-value, -high, -low), rel=1e-9)


@pytest.mark.parametrize("draws", [1, 4, 12])
def test_samples_and_draws_of_which_nothing_is_defined_are_left_out(draws):
    values = crossed(np.random.default_rng(0), 20, draws, (0.4, 0.3, 0.3)) + 5
    holes = np.full((23, draws + 1), NAN)
    holes[3:, :draws] = values
    assert limits(mean_interval(holes)) == pytest.approx(limits(mean_interval(values)), rel=1e-12)


@pytest.mark.parametrize("draws", [4, 12])
def test_single_undefined_values_are_left_out_and_not_replaced(draws):
    values = crossed(np.random.default_rng(0), 50, draws, (0.4, 0.3, 0.3)) + 5
    holed = values.copy()
    holed[np.random.default_rng(1).random(values.shape) < 0.3] = NAN
    full, interval = mean_interval(values), mean_interval(holed)
    assert interval.value == pytest.approx(np.nanmean(holed), rel=1e-12)
    # Any replacement by zero would move the mean of 5 by 1.5.
    assert interval.low == pytest.approx(full.low, abs=0.2)
    assert interval.high == pytest.approx(full.high, abs=0.2)


@pytest.mark.parametrize("shape", [(0, 1), (4, 1), (4, 3), (4, 12)])
def test_nothing_defined_has_no_mean(shape):
    np.testing.assert_equal(limits(mean_interval(np.full(shape, NAN))), (NAN, NAN, NAN))
    np.testing.assert_equal(limits(median_interval(np.full(shape, NAN)[:, 0])), (NAN, NAN, NAN))


@pytest.mark.parametrize("draws", [1, 3, 12])
def test_one_sample_has_a_mean_and_no_limits(draws):
    np.testing.assert_equal(limits(mean_interval(np.full((1, draws), 2.0))), (2.0, NAN, NAN))


@pytest.mark.parametrize("draws", [1, 3, 12])
def test_equal_values_have_an_interval_without_width(draws):
    assert mean_interval(np.full((9, draws), 0.25)) == Interval(0.25, 0.25, 0.25)


def miss(samples, rank):
    """How often the order statistics `rank` and `samples + 1 - rank` do not hold the median, exactly."""
    return 2 * sum(comb(samples, below) for below in range(rank)) / 2**samples


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("samples", [*range(1, 30), 100, 201])
def test_the_interval_of_the_median_is_the_narrowest_pair_that_holds_it_often_enough(samples, confidence):
    values = np.arange(1.0, samples + 1)
    ranks = [rank for rank in range(1, samples // 2 + 1) if miss(samples, rank) <= 1 - confidence]
    expected = (max(ranks), samples + 1 - max(ranks)) if ranks else (NAN, NAN)
    interval = median_interval(np.random.default_rng(0).permutation(values), confidence)
    np.testing.assert_equal(limits(interval), ((samples + 1) / 2, *expected))


@pytest.mark.parametrize("samples", [6, 25, 60])
def test_the_interval_of_the_median_covers_as_often_as_the_binomial_says(samples):
    runs = 4000
    values = np.random.default_rng(3).exponential(size=(runs, samples))
    hits = sum(holds(median_interval(row), np.log(2)) for row in values) / runs
    expected = 1 - max(p for p in (miss(samples, rank) for rank in range(1, samples // 2 + 1)) if p <= 0.05)
    print(f"median of {samples}: {hits:.4f}, exactly {expected:.4f}")
    assert hits == pytest.approx(expected, abs=3 * np.sqrt(expected * (1 - expected) / runs))


def test_the_median_leaves_out_what_is_undefined():
    values = np.random.default_rng(0).standard_normal(31)
    holed = np.insert(values, [0, 4, 31], NAN)
    assert median_interval(holed) == median_interval(values)
    assert median_interval(holed).value == np.median(values)


@pytest.mark.parametrize("spread", [0.0, 0.9])
@pytest.mark.parametrize("share", [25 / 784, 0.1, 0.5, 0.97])
@pytest.mark.parametrize("samples", [2, 20, 125])
def test_a_share_of_hits_misses_its_chance_in_five_of_a_hundred_runs_at_most(samples, share, spread):
    """To the last bit: over all numbers of hits, of which some samples have more chance than others."""
    width = spread * min(share, 1 - share)
    chances = np.linspace(share - width, share + width, samples)
    probability = np.ones(1)
    for chance in chances:
        probability = np.convolve(probability, [1 - chance, chance])
    assert probability.sum() == pytest.approx(1, abs=1e-12)
    found = [share_interval((np.arange(samples) < hits).astype(float)) for hits in range(samples + 1)]
    below, above = (
        sum(probability[[bad(each) for each in found]]) for bad in (lambda i: i.high < share, lambda i: i.low > share)
    )
    assert below <= 0.025
    assert above <= 0.025


def test_a_share_of_hits_that_are_all_alike_has_the_limits_by_hand():
    none, all_of_them = share_interval(np.zeros(20)), share_interval(np.ones(20))
    assert limits(none) == pytest.approx((0, 0, 1 - 0.025 ** (1 / 20)))
    assert limits(all_of_them) == pytest.approx((1, 0.025 ** (1 / 20), 1))
