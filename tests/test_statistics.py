"""Intervals cover what they claim to, and verdicts change exactly at their thresholds."""

import re
from math import comb

import numpy as np
import pytest
from scipy import stats

from harness.statistics import DEFAULT, Interval, Thresholds, left_above, mean_interval, median_interval, survival

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
def test_with_several_draws_it_is_welch_and_satterthwaites_over_samples_and_draws(draws):
    values = crossed(np.random.default_rng(0), 30, draws, (0.5, 0.2, 0.3))
    of_samples = sum((row.mean() - values.mean()) ** 2 for row in values) / 29 / 30
    of_draws = sum((column.mean() - values.mean()) ** 2 for column in values.T) / (draws - 1) / draws
    freedom = (of_samples + of_draws) ** 2 / (of_samples**2 / 29 + of_draws**2 / (draws - 1))
    low, high = stats.t(freedom, values.mean(), np.sqrt(of_samples + of_draws)).interval(0.95)
    assert limits(mean_interval(values)) == pytest.approx((values.mean(), low, high), rel=1e-12)


COVERAGE = [
    (samples, draws, shares)
    for samples, draws, every in [
        (50, 1, [(1, 0, 0), (0.5, 0, 0.5), (0, 0, 1)]),
        (200, 1, [(1, 0, 0), (0.5, 0, 0.5), (0, 0, 1)]),
        (100, 3, [(1, 0, 0), (0.8, 0.1, 0.1), (0.3, 0.4, 0.3), (0, 1, 0), (0, 0, 1)]),
        (200, 3, [(1, 0, 0), (0.8, 0.1, 0.1), (0.3, 0.4, 0.3), (0, 1, 0), (0, 0, 1)]),
        (100, 10, [(1, 0, 0), (0.5, 0.4, 0.1), (0.3, 0.4, 0.3), (0, 1, 0), (0, 0, 1)]),
        (200, 10, [(1, 0, 0), (0.5, 0.4, 0.1), (0.3, 0.4, 0.3), (0, 1, 0), (0, 0, 1)]),
    ]
    for shares in every
]


@pytest.mark.parametrize(("samples", "draws", "shares"), COVERAGE)
def test_the_interval_of_the_mean_covers_the_mean_of_the_population(samples, draws, shares):
    runs = 1000
    generator = np.random.default_rng(2)
    hits = sum(holds(mean_interval(crossed(generator, samples, draws, shares)), 0) for _ in range(runs))
    # Three standard errors of a simulated share beyond 0.92 and 0.995.
    error = 3 * np.sqrt(0.05 * 0.95 / runs)
    assert 0.92 - error < hits / runs < 0.995 + error


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


FLOOR, CEILING = 0.1, 0.9


def similarities(left=0.0, samples=100, draws=10, noise=0.0, ceiling=CEILING, random=FLOOR, output=0.0, undefined=0):
    """What `survival` is told, in which the share `left` of the similarity above chance survives."""
    generator = np.random.default_rng(0)

    def around(mean, count):
        errors = crossed(generator, samples, count, (0.4, 0.2, 0.4))
        return mean + noise * (errors - errors.mean())

    test = around(FLOOR + left * (ceiling - FLOOR), draws)
    test.flat[:undefined] = NAN
    return {
        "test": test,
        "floor_shift": around(FLOOR, draws),
        "ceiling": np.full((samples, 1), ceiling),
        "floor_random": around(random, draws - 1),
        "output": np.full((samples, draws), output),
    }


def judged(*arguments, thresholds=DEFAULT, **named):
    return survival(**similarities(*arguments, **named), thresholds=thresholds)


BELOW = r"at most \d+% of the similarity above chance survives: necessary for trusting the map, not sufficient"
ABOVE = r"at least \d+% of the similarity above chance survives"
BETWEEN = r"\d+% to \d+% of the similarity above chance survives"


@pytest.mark.parametrize(
    ("left", "verdict", "reason"),
    [
        (-0.5, "PASS", BELOW),
        (0.0, "PASS", BELOW),
        (0.35, "INCONCLUSIVE", BETWEEN),
        (1.0, "FAIL", ABOVE),
    ],
)
def test_how_much_survives_decides_the_verdict(left, verdict, reason):
    result = judged(left, noise=0.05)
    assert result.verdict == verdict
    assert re.fullmatch(reason, result.reason)
    assert result.survival.value == pytest.approx(left, abs=1e-12)
    assert result.survival.low < result.survival.value < result.survival.high


@pytest.mark.parametrize(("left", "verdict"), [(0.195, "PASS"), (0.505, "FAIL")])
def test_the_limits_of_the_interval_must_pass_the_thresholds_and_not_its_middle(left, verdict):
    assert judged(left).verdict == verdict
    wide = judged(left, noise=0.3)
    assert wide.verdict == "INCONCLUSIVE"
    assert wide.survival.value == pytest.approx(left, abs=1e-12)


THRESHOLDS = {
    "pass": ({"left": 0.1999}, "PASS", {"left": 0.2001}, "INCONCLUSIVE", BETWEEN),
    "fail": ({"left": 0.4999}, "INCONCLUSIVE", {"left": 0.5001}, "FAIL", ABOVE),
    "draws": ({"draws": 10}, "PASS", {"draws": 9}, "INCONCLUSIVE", "9 draws, a verdict needs 10"),
    "ceiling": ({"ceiling": 0.501}, "PASS", {"ceiling": 0.499}, "INVALID", "uninformative: .* agree to 0.50 only"),
    "random": ({"random": 0.849}, "PASS", {"random": 0.851}, "FAIL", "two randomized networks give the same map.*"),
    "output": ({"output": 0.499}, "PASS", {"output": 0.511}, "INVALID", ".*output hardly changed .correlation 0.51."),
    "undefined": ({"undefined": 100}, "PASS", {"undefined": 101}, "INVALID", "10% of the comparisons are undefined.*"),
}


@pytest.mark.parametrize(("before", "verdict", "after", "other", "reason"), THRESHOLDS.values(), ids=THRESHOLDS)
def test_the_verdict_changes_at_each_threshold(before, verdict, after, other, reason):
    assert judged(**before).verdict == verdict
    result = judged(**after)
    assert result.verdict == other
    assert re.fullmatch(reason, result.reason)


@pytest.mark.parametrize(
    ("case", "verdict"),
    [
        ({"left": 1.0, "ceiling": 1.0, "random": 1.0}, "FAIL"),
        ({"left": 0.0, "random": CEILING}, "FAIL"),
        ({"left": 0.0, "random": 1.0}, "FAIL"),
        ({"left": 0.0, "ceiling": 0.0}, "INVALID"),
        ({"left": 0.0, "ceiling": -0.3}, "INVALID"),
        ({"left": 1.0, "output": 1.0}, "INVALID"),
        ({"left": 1.0, "undefined": 500}, "INVALID"),
        ({"left": 0.0, "draws": 2}, "INCONCLUSIVE"),
        ({"left": 1.0, "draws": 3}, "INCONCLUSIVE"),
    ],
)
def test_controls_get_the_verdict_that_is_known_beforehand(case, verdict):
    assert judged(**case).verdict == verdict


@pytest.mark.parametrize("missing", ["test", "floor_shift", "floor_random", "ceiling", "output"])
def test_what_is_unknown_makes_the_verdict_invalid_and_no_number(missing):
    given = similarities(0.0)
    given[missing] = np.full_like(given[missing], NAN)
    result = survival(**given)
    assert result.verdict == "INVALID"
    assert np.isnan(limits(result.survival)).all()


def simulated(generator, left, samples=200, draws=10):
    """Similarities with known survival: samples differ in their ceiling, draws and single values in what is left."""
    ceiling = 0.6 + 0.4 * generator.random((samples, 1))
    floor = 0.05 * crossed(generator, samples, draws, (0.1, 0.1, 0.8))
    noise = 0.15 * crossed(generator, samples, draws, (0.3, 0.3, 0.4))
    return {
        "test": floor + left * (ceiling - floor) + noise,
        "floor_shift": floor,
        "ceiling": ceiling,
        "floor_random": floor[:, 1:],
        "output": np.zeros((samples, draws)),
    }


def test_survival_is_a_ratio_of_means_over_what_is_defined_in_both():
    given = simulated(np.random.default_rng(0), 0.3)
    test, floor, ceiling = given["test"], given["floor_shift"], given["ceiling"]
    test[2, 4:] = NAN
    known = ~np.isnan(test)
    ratio = (test - floor)[known].mean() / (ceiling - floor)[known].mean()
    assert survival(**given).survival.value == pytest.approx(ratio, rel=1e-12)


def test_thresholds_are_those_that_are_given():
    strict, lax = Thresholds(pass_below=0.05, fail_above=0.2), Thresholds(pass_below=0.4, fail_above=0.9)
    assert [judged(0.3, thresholds=each).verdict for each in (strict, Thresholds(), lax)] == [
        "FAIL",
        "INCONCLUSIVE",
        "PASS",
    ]


def test_without_twins_nothing_is_asked_of_random_networks_and_of_the_output():
    given = similarities(0.0)
    del given["floor_random"], given["output"]
    assert survival(**given).verdict == "PASS"
    same = similarities(1.0, ceiling=1.0)
    del same["floor_random"], same["output"]
    assert survival(**same).verdict == "FAIL"


@pytest.mark.parametrize("classes", [2, 3])
def test_few_logits_correlate_by_chance_and_that_does_not_make_a_test_invalid(classes):
    """Over two logits a correlation is +1 or -1: all samples of a draw mostly share it, and ten signs may lean."""
    generator = np.random.default_rng(classes)
    invalid, leaning = 0, 0
    for _ in range(200):
        given = similarities(0.0)
        logits = generator.standard_normal((2, 1, 10, classes))
        a, b = logits + 0.1 * generator.standard_normal((2, 100, 10, classes))
        a, b = (v - v.mean(-1, keepdims=True) for v in (a, b))
        given["output"] = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
        leaning += given["output"].mean() > 0.5
        invalid += survival(**given).verdict == "INVALID"
    # Only ten equal signs in ten draws look like an output that did not change.
    assert invalid < leaning
    assert invalid <= 0.02 * 200
    given["output"] = np.ones((100, 10))
    assert survival(**given).verdict == "INVALID"


def test_the_chance_of_a_verdict_is_the_tail_beyond_its_threshold():
    """With one draw the interval is Student's, and so is the chance: scipy's one-sided test against the threshold."""
    values = 0.1 * np.random.default_rng(0).standard_normal((50, 1))
    zeros, ones = np.zeros((50, 1)), np.ones((50, 1))
    passed = survival(values, zeros, ones, thresholds=Thresholds(draws=1))
    expected = stats.ttest_1samp(values[:, 0], 0.2, alternative="less").pvalue
    assert (passed.verdict, passed.chance) == ("PASS", pytest.approx(expected, rel=1e-9))
    failed = survival(values + 0.6, zeros, ones, thresholds=Thresholds(draws=1))
    expected = stats.ttest_1samp(values[:, 0] + 0.6, 0.5, alternative="greater").pvalue
    assert (failed.verdict, failed.chance) == ("FAIL", pytest.approx(expected, rel=1e-9))
    assert np.isnan(survival(values + 0.3, zeros, ones, thresholds=Thresholds(draws=1)).chance)


def test_what_is_left_above_a_floor_of_other_draws_is_a_ratio_of_means():
    generator = np.random.default_rng(0)
    floor, ceiling = 0.1 + 0.05 * generator.standard_normal((60, 10)), np.full((60, 1), 0.9)
    each = floor.mean(1, keepdims=True)
    for left in (0.0, 0.4, 1.0):
        test = each + left * (ceiling - each) + np.zeros((1, 3))
        assert limits(left_above(test, floor, ceiling)) == pytest.approx((left, left, left), abs=1e-9)
    test = 0.5 + 0.1 * generator.standard_normal((60, 3))
    expected = (test - each).mean() / (ceiling - each).mean()
    assert left_above(test, floor, ceiling).value == pytest.approx(expected, rel=1e-12)
    assert np.isnan(left_above(np.full((60, 3), NAN), floor, ceiling).value)


def test_verdicts_are_calibrated():
    """200 samples, 10 draws: wrong verdicts in at most 5 % of runs, and the clear cases are decided in 90 %."""
    generator = np.random.default_rng(4)
    runs, covered, counts = 300, 0, {}
    for left in (0.0, 0.2, 0.35, 0.5, 1.0):
        results = [survival(**simulated(generator, left)) for _ in range(runs)]
        covered += sum(holds(result.survival, left) for result in results)
        counts[left] = {v: sum(r.verdict == v for r in results) / runs for v in ("PASS", "FAIL", "INCONCLUSIVE")}
    assert 0.92 < covered / (5 * runs) < 0.99
    assert max(counts[left]["PASS"] for left in (0.2, 0.35, 0.5, 1.0)) <= 0.05
    assert max(counts[left]["FAIL"] for left in (0.0, 0.2, 0.35, 0.5)) <= 0.05
    assert counts[0.0]["PASS"] >= 0.9
    assert counts[1.0]["FAIL"] >= 0.9


def test_logits_of_which_nothing_is_known_do_not_pass_for_an_output_that_did_not_change():
    given = similarities(0.0)
    given["output"] = np.full_like(given["output"], NAN)
    result = survival(**given)
    assert result.verdict == "INVALID"
    assert result.reason == "how far the network's own output changed is unknown (constant or infinite logits)"


def test_one_sample_is_judged_by_nothing_and_its_reason_has_no_nan():
    result = judged(0.0, samples=1)
    assert (result.verdict, result.reason) == ("INCONCLUSIVE", "one sample has no interval")
    assert result.survival.value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("ceiling", [0.6, 0.8])
def test_a_ceiling_that_chance_reaches_places_nothing(ceiling):
    """Else the ratio would turn around: what is more alike than chance would count as less."""
    given = similarities(0.0, ceiling=ceiling, random=0.1)
    given["floor_shift"] = np.full_like(given["floor_shift"], 0.8)
    given["test"] = np.full_like(given["test"], 0.9)
    result = survival(**given)
    assert (result.verdict, np.isnan(result.survival.value)) == ("INVALID", True)
    assert result.reason == f"chance alone reaches the ceiling of {ceiling:.2f}: nothing to lie between"
    assert np.isnan(left_above(given["test"], given["floor_shift"], given["ceiling"]).value)


def test_two_networks_that_agree_fail_however_few_draws_there_are():
    assert judged(1.0, ceiling=1.0, random=1.0, draws=2).verdict == "FAIL"


def test_the_chance_that_two_networks_agree_by_chance_is_the_tail_beyond_its_threshold():
    given = similarities(1.0, ceiling=1.0)
    floor = 0.98 + 0.01 * np.random.default_rng(0).standard_normal((100, 1))
    given["floor_random"] = floor
    expected = stats.ttest_1samp(1 - floor[:, 0], 0.05, alternative="less").pvalue
    result = survival(**given)
    assert (result.verdict, result.chance) == ("FAIL", pytest.approx(expected, rel=1e-9))


def test_what_is_left_above_a_floor_uses_every_draw_that_is_defined():
    floor, ceiling = np.array([[0.1, NAN], [0.3, 0.1], [NAN, NAN]]), np.ones((3, 1))
    test = np.array([[0.55], [0.6], [0.9]])
    found = left_above(test, floor, ceiling)
    assert found.value == pytest.approx((0.45 + 0.4) / (0.9 + 0.8), rel=1e-12)
