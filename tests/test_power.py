"""How many samples an exam says are needed, and how far samples and metrics agree: by simulation and by loops."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from harness.marking import (
    LOW,
    MIDDLE,
    QUALITIES,
    TRUTH,
    WRONG,
    rank_agreement,
)
from harness.statistics import krippendorff, samples_needed
from made_answers import NAN, N, exact, graded, perfect, some, standard

# How many samples.


def effect(size, samples=1000):
    """Differences whose mean is exactly so many of their standard deviations."""
    return standard(samples=samples) + size


@pytest.mark.parametrize("size", [0.1, 0.2, 0.35, 0.5, 0.8])
def test_so_many_samples_find_the_difference_in_four_of_five_studies(size):
    needed = samples_needed(effect(size))
    tests = np.random.default_rng(1).standard_normal((3000, int(needed))) + size
    assert (stats.ttest_1samp(tests, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.03)


def power_of_t(size, samples, level):
    """Of a paired two-sided t-test on the side of the effect, by the noncentral t distribution."""
    edge = stats.t.ppf(1 - level / 2, samples - 1)
    return stats.nct.sf(edge, samples - 1, size * samples**0.5)


@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("level", [0.01, 0.05])
@pytest.mark.parametrize("size", [0.1, 0.3, 0.6])
def test_the_number_is_the_smallest_with_which_a_t_test_has_that_power(size, level, power):
    by_t = next(samples for samples in itertools.count(2) if power_of_t(size, samples, level) >= power)
    needed = samples_needed(effect(size), power, level)
    # Beyond a thousand by the normal distribution, which is the same then.
    assert needed == by_t if by_t < 1000 else by_t - 5 <= needed <= by_t


def test_samples_needed_where_there_is_little_to_say():
    assert samples_needed(effect(-0.3)) == math.inf
    assert samples_needed(np.zeros(5)) == math.inf
    assert math.isnan(samples_needed(np.array([1.0])))
    assert math.isnan(samples_needed(np.array([1.0, NAN, NAN])))
    assert math.isnan(samples_needed(np.array([])))
    gaps = np.insert(effect(0.3), [0, 7, 7], NAN)
    assert samples_needed(gaps) == samples_needed(effect(0.3)) == 90


def test_two_samples_at_least_are_needed():
    assert samples_needed(np.ones(5)) == 2
    assert samples_needed(effect(50)) == 2
    assert exact().needed_if_averaged == 2


def test_needed_and_the_least_steps_are_those_of_the_paired_differences():
    for seed, own in itertools.product(range(5), (0.1, 1.0, 4.0)):
        world = perfect(own=own, seed=seed)

        def told(better, worse, world=world):
            paired = world.graded[better] - world.graded[worse]
            return paired.mean() > 0 and power_of_t(paired.mean() / paired.std(ddof=1), N, 0.05) >= 0.8

        qualities = [quality for quality in QUALITIES if quality > WRONG and told(quality, WRONG)]
        losses = [TRUTH - quality for quality in QUALITIES if quality < TRUTH and told(TRUTH, quality)]
        assert world.least_quality == pytest.approx(min(qualities, default=NAN), nan_ok=True)
        assert world.least_loss == pytest.approx(min(losses, default=NAN), nan_ok=True)
        difference = world.graded[MIDDLE] - world.graded[LOW]
        assert world.needed(MIDDLE, LOW) == samples_needed(difference)


def averaging(between, own, mean=0.5, samples=1000, seed=0, uneven=False):
    """Differences of middle and low quality whose variance has two known parts, twice with other draws.

    Their mean over samples and both draws is exactly `mean`, so that the number of samples is linear in the variance.
    """
    draw = np.random.default_rng(seed).standard_normal
    of_sample, own_of_each = between**0.5 * draw(samples), np.full(samples, own)
    if uneven:
        own_of_each = own * 2 * (np.arange(samples) % 2)
    first, again = (of_sample + own_of_each**0.5 * draw(samples) for _ in range(2))
    shift = mean - (first + again).mean() / 2
    world = exact(samples)
    return graded(replace(world, again=again + shift), {MIDDLE: first + shift, LOW: np.zeros(samples)})


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize(("between", "own"), [(1.0, 0.1), (1.0, 4.0), (4.0, 1.0), (1.0, 6.0)])
def test_averaging_draws_leaves_the_variance_between_samples(between, own, uneven):
    truth = 2.8015852**2 * between / 0.01**2
    found = [averaging(between, own, 0.01, 3000, seed, uneven).needed_if_averaged for seed in range(300)]
    assert np.mean(found) == pytest.approx(truth, abs=4 * np.std(found) / 300**0.5)
    assert 4 * np.std(found) / 300**0.5 < 0.05 * truth


def test_averaging_does_nothing_for_a_metric_without_draws_and_everything_for_one_with_nothing_else():
    world = averaging(1.0, 0.0)
    assert world.needed_if_averaged == world.needed(MIDDLE, LOW)
    world = averaging(0.0, 1.0, samples=20_000)
    assert world.needed(MIDDLE, LOW) == pytest.approx(2.8015852**2 / 0.5**2, rel=0.1)
    assert world.needed_if_averaged <= 3


def test_averaging_where_there_is_little_to_say():
    first = averaging(1.0, 1.0, samples=50)
    gaps = replace(first, again=some(first.again, 10))
    known = averaging(1.0, 1.0, samples=40)
    known = graded(known, {MIDDLE: first.graded[MIDDLE][10:], LOW: np.zeros(40)})
    assert gaps.needed_if_averaged == replace(known, again=first.again[10:]).needed_if_averaged
    assert math.isnan(replace(first, again=some(first.again, 49)).needed_if_averaged)
    assert math.isnan(replace(first, again=np.full(50, NAN)).needed_if_averaged)
    assert averaging(1.0, 1.0, mean=-0.5).needed_if_averaged == math.inf
    assert replace(exact(), again=np.full(N, LOW - MIDDLE - 0.1)).needed_if_averaged == math.inf


# Agreement.


def literal_alpha(ranks):
    """Krippendorff's alpha with squared differences, by all pairs: of two raters of a unit, and of any two values."""
    raters, units = ranks.shape
    observed = [
        np.mean(
            [(ranks[one, unit] - ranks[other, unit]) ** 2 for one, other in itertools.permutations(range(raters), 2)]
        )
        for unit in range(units)
    ]
    expected = [(one - other) ** 2 for one, other in itertools.permutations(ranks.flatten(), 2)]
    return 1 - np.mean(observed) / np.mean(expected)


@pytest.mark.parametrize(("raters", "units"), [(2, 3), (2, 7), (3, 2), (9, 7), (30, 5)])
@pytest.mark.parametrize("tied", [False, True])
def test_krippendorffs_alpha_is_that_of_a_loop_over_all_pairs(raters, units, tied):
    values = np.random.default_rng(raters).standard_normal((raters, units)) + np.arange(units)
    ranks = stats.rankdata(values.round() if tied else values, axis=1)
    assert krippendorff(ranks) == pytest.approx(literal_alpha(ranks), rel=1e-12)


def test_krippendorffs_alpha_is_one_for_agreement_about_zero_for_chance_and_negative_for_opposites():
    assert krippendorff(np.tile(np.arange(1.0, 8.0), (5, 1))) == 1
    ranks = np.random.default_rng(0).permuted(np.tile(np.arange(1.0, 8.0), (4000, 1)), axis=1)
    assert abs(krippendorff(ranks)) < 0.002
    # Observed (4 + 0 + 4) / 3, expected 48 / 30.
    assert krippendorff(np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])) == pytest.approx(1 - (8 / 3) / (48 / 30))
    few = [krippendorff(np.random.default_rng(s).permuted(ranks[:5], axis=1)) for s in range(2000)]
    assert abs(np.mean(few)) < 1 / 35 + 4 * np.std(few) / 2000**0.5


def test_krippendorffs_alpha_of_one_rater_or_of_ties_only_is_unknown():
    assert math.isnan(krippendorff(np.array([[1.0, 2.0, 3.0]])))
    assert math.isnan(krippendorff(np.full((4, 3), 2.0)))
    assert math.isnan(krippendorff(np.zeros((0, 7))))


def test_reliability_is_the_agreement_of_the_samples_on_the_order_of_the_qualities():
    world = perfect(own=1.0, samples=40)
    world = graded(world, {LOW: some(world.graded[LOW], 3)})
    scores = np.stack([world.graded[quality] for quality in QUALITIES], 1)[3:]
    assert world.reliability == pytest.approx(literal_alpha(stats.rankdata(scores, axis=1)), rel=1e-12)
    assert 0.1 < world.reliability < 0.9
    shifted = {quality: values + np.linspace(0, 9, 40) for quality, values in world.graded.items()}
    assert graded(world, shifted).reliability == pytest.approx(world.reliability, rel=1e-12)


def test_rank_agreement_is_the_mean_of_kendalls_tau_over_samples():
    one, other = perfect(own=0.5, seed=1), perfect(own=0.5, seed=2)
    rows = [np.stack([each.graded[quality] for quality in QUALITIES], 1) for each in (one, other)]
    taus = [stats.kendalltau(first, second).statistic for first, second in zip(*rows, strict=True)]
    assert rank_agreement(one.graded, other.graded) == pytest.approx(np.mean(taus), rel=1e-12)
    assert rank_agreement(one.graded, one.graded) == 1
    reverse = {quality: -scores for quality, scores in one.graded.items()}
    assert rank_agreement(one.graded, reverse) == -1
    gaps = {**other.graded, LOW: some(other.graded[LOW], 20)}
    assert rank_agreement(one.graded, gaps) == pytest.approx(np.mean(taus[20:]), rel=1e-12)


def test_ties_are_no_disagreement_and_a_metric_that_tells_nothing_agrees_with_none():
    one = perfect(own=0.5, seed=1)
    coarse = {quality: np.round(scores) for quality, scores in one.graded.items()}
    rows = [np.stack([each[quality] for quality in QUALITIES], 1) for each in (one.graded, coarse)]
    taus = [stats.kendalltau(first, second).statistic for first, second in zip(*rows, strict=True)]
    assert rank_agreement(one.graded, coarse) == pytest.approx(np.nanmean(taus), rel=1e-12)
    assert rank_agreement(coarse, coarse) == 1
    assert math.isnan(rank_agreement(one.graded, dict.fromkeys(QUALITIES, np.zeros(N))))


def test_the_share_of_the_variance_that_is_the_metrics_own():
    for own in (0.0, 0.1, 0.3):
        world = perfect(samples=20_000, spread=0.5, own=own)
        between = 0.5**2 * (MIDDLE - LOW) ** 2
        assert world.own_share == pytest.approx(2 * own**2 / (2 * own**2 + between), abs=0.02)
