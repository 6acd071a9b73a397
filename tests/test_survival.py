"""Verdicts change exactly at their thresholds, say why, and are calibrated."""

import re

import numpy as np
import pytest
from scipy import stats
from test_statistics import crossed, holds, limits

from harness.statistics import DEFAULT, SAME_MAP, Thresholds, left_above, survival

NAN = np.nan


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


def test_two_random_networks_give_the_same_map_only_if_the_interval_says_so():
    sure, unsure = judged(0.0, random=0.86), judged(0.0, random=0.86, noise=0.3)
    assert (sure.verdict, unsure.verdict) == ("FAIL", "PASS")
    assert sure.reason == SAME_MAP
    assert sure.chance == 0


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
    floor = 0.96 + 0.05 * np.random.default_rng(0).standard_normal((100, 1))
    given["floor_random"] = floor
    expected = stats.ttest_1samp(1 - floor[:, 0], 0.05, alternative="less").pvalue
    result = survival(**given)
    assert (result.verdict, result.chance) == ("FAIL", pytest.approx(expected, rel=1e-9))


def test_what_is_left_above_a_floor_uses_every_draw_that_is_defined():
    floor, ceiling = np.array([[0.1, NAN], [0.3, 0.1], [NAN, NAN]]), np.ones((3, 1))
    test = np.array([[0.64], [0.6], [0.9]])
    found = left_above(test, floor, ceiling)
    assert found.value == pytest.approx((0.54 + 0.4) / (0.9 + 0.8), rel=1e-12)
