"""Metrics in simulated worlds: each fault is found where it is and nowhere else, and numbers of samples are right."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from harness.marking import (
    FAULTS,
    LOW,
    MIDDLE,
    NEGLIGIBLE,
    QUALITIES,
    SAME,
    TRUTH,
    WRONG,
    Answers,
    rank_agreement,
)
from harness.statistics import krippendorff, samples_needed

NAN, N = np.nan, 200
ARRAYS = ("noise", "picture", "negated", "inverted", "rescaled", "in_company", "again")


def perfect(samples=N, spread=0.2, own=0.1, seed=0, chance=0.0):
    """A metric that scores quality; samples differ in how much by `spread`, and its own noise is `own`."""
    draw = np.random.default_rng(seed).standard_normal
    slope, shift = 1 + spread * draw(samples), spread * draw(samples)

    def scores(quality):
        return chance + slope * quality + shift + own * draw(samples)

    graded = {quality: scores(quality) for quality in QUALITIES}
    middle, again = graded[MIDDLE], scores(MIDDLE) - scores(LOW)
    return Answers(
        graded,
        noise=scores(0.0),
        picture=scores(0.0),
        negated=scores(-TRUTH),
        inverted=scores(-TRUTH / 2),
        rescaled=middle.copy(),
        in_company=middle.copy(),
        again=again,
        chance=chance,
    )


def exact(samples=N):
    """A metric that gives each quality its number, and nothing else has a part in it."""
    return perfect(samples, spread=0.0, own=0.0)


def graded(world, scores):
    """The world with other scores of some qualities; the same of the middle one in company and at another scale."""
    found = replace(world, graded={**world.graded, **scores})
    middle = found.graded[MIDDLE]
    return replace(found, rescaled=middle.copy(), in_company=middle.copy())


def some(values, count, value=NAN):
    values = values.copy()
    values[:count] = value
    return values


def standard(seed=3, samples=N):
    """Numbers whose mean is exactly 0 and whose standard deviation is exactly 1."""
    z = np.random.default_rng(seed).standard_normal(samples)
    return (z - z.mean()) / z.std(ddof=1)


def errors_above(errors, seed=3):
    """Numbers whose mean is exactly so many of its standard errors above zero."""
    return 0.1 * (standard(seed) + errors / N**0.5)


def range_of(world):
    every = np.concatenate([*world.graded.values(), world.noise, world.picture, world.negated, world.inverted])
    return every.max() - every.min()


def undefined(count):
    world = perfect()
    return graded(world, {MIDDLE: some(world.graded[MIDDLE], count)})


def undefined_noise(count):
    return replace(perfect(), noise=some(perfect().noise, count))


def blind(above_wrong, above_noise):
    """All worse maps score the same; the truth is so many standard errors above them, and above noise."""
    truth = errors_above(0, seed=4)
    wrong, noise = truth - errors_above(above_wrong), truth - errors_above(above_noise)
    scores = dict.fromkeys(QUALITIES, wrong) | {TRUTH: truth}
    return Answers(scores, noise, noise, noise - 1, noise - 1, wrong, wrong, wrong)


def order(excess, errors):
    """One step in the wrong order by this part of what the truth gains, which is so many standard errors."""
    world = exact()
    step = excess * (1 + standard() * N**0.5 / errors)
    return graded(world, {QUALITIES[2]: world.graded[QUALITIES[1]] + step})


def picture(excess, errors):
    """A copy of the input scores more than the truth by this part of what the truth gains, which is so many errors."""
    world = exact()
    return replace(world, picture=world.graded[TRUTH] + excess * (1 + standard() * N**0.5 / errors))


def chance(errors):
    return replace(perfect(), noise=errors_above(errors))


def reversal(negated, inverted):
    """Reversed maps score so many standard errors above noise."""
    world = perfect()
    return replace(world, negated=world.noise + errors_above(negated), inverted=world.noise + errors_above(inverted))


def moved(field, count, by):
    """So many samples of the map of middle quality score more by this part of the range of all scores."""
    world = perfect()
    scores = world.graded[MIDDLE].copy()
    scores[:count] += by * range_of(world)
    return replace(world, **{field: scores})


WORLDS = [
    ("undefined", undefined(21), undefined(20)),
    ("undefined", undefined_noise(21), undefined_noise(20)),
    ("blind", blind(3.9, 100), blind(4.1, 100)),
    ("blind", blind(100, 3.9), blind(100, 4.1)),
    ("order", order(1.1 * NEGLIGIBLE, 4.1), order(1.1 * NEGLIGIBLE, 3.9)),
    ("order", order(1.1 * NEGLIGIBLE, 1e6), order(0.9 * NEGLIGIBLE, 1e6)),
    ("chance", chance(4.1), chance(3.9)),
    ("chance", chance(-4.1), chance(-3.9)),
    ("chance", replace(perfect(chance=0.3), chance=0.0), replace(perfect(chance=0.3), chance=None)),
    ("picture", picture(1.1 * NEGLIGIBLE, 4.1), picture(1.1 * NEGLIGIBLE, 3.9)),
    ("picture", picture(1.1 * NEGLIGIBLE, 1e6), picture(0.9 * NEGLIGIBLE, 1e6)),
    ("reversal", reversal(4.1, 4.1), reversal(4.1, 3.9)),
    ("reversal", reversal(4.1, 50), reversal(-50, 4.1)),
    ("scale", moved("rescaled", 3, 1.1 * SAME), moved("rescaled", 2, 1.1 * SAME)),
    ("scale", moved("rescaled", N, -1.1 * SAME), moved("rescaled", N, -0.9 * SAME)),
    ("company", moved("in_company", 3, 1.1 * SAME), moved("in_company", 2, 50.0)),
    ("company", moved("in_company", N, -1.1 * SAME), moved("in_company", N, 0.9 * SAME)),
]


@pytest.mark.parametrize(("fault", "world", "nearby"), WORLDS, ids=[f"{i}-{w[0]}" for i, w in enumerate(WORLDS)])
def test_a_fault_is_found_where_it_is_and_not_nearby(fault, world, nearby):
    assert world.faults() == (fault,)
    assert nearby.faults() == ()


def test_there_is_a_world_for_every_fault():
    assert {fault for fault, _, _ in WORLDS} == set(FAULTS)


@pytest.mark.parametrize("seed", range(30))
def test_a_metric_that_scores_quality_passes(seed):
    world = perfect(seed=seed)
    assert world.faults() == ()
    assert world.gain == pytest.approx(1, abs=5 * (0.2**2 + 2 * 0.1**2) ** 0.5 / N**0.5)
    assert world.reversed_gain(world.negated) == pytest.approx(-1, abs=0.2)
    assert world.reversed_gain(world.inverted) == pytest.approx(-0.5, abs=0.2)
    assert world.reversed_gain(world.noise) == 0
    assert world.reversed_gain(world.graded[TRUTH]) == pytest.approx(1, rel=1e-12)


def test_a_metric_that_never_errs_passes_although_its_differences_have_no_standard_error():
    world = exact()
    assert world.faults() == ()
    assert world.reliability == 1
    assert (world.least_quality, world.least_loss) == (QUALITIES[-2], round(TRUTH - QUALITIES[1], 6))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_marks_do_not_depend_on_the_unit_of_the_scores(scale):
    for fault, world, nearby in WORLDS:
        for each, expected in ((world, (fault,)), (nearby, ())):
            other = Answers(
                {quality: scale * scores for quality, scores in each.graded.items()},
                *(scale * each.__dict__[name] for name in ARRAYS),
                None if each.chance is None else scale * each.chance,
            )
            assert other.faults() == expected


def test_a_metric_of_absolute_values_does_not_see_a_reversal():
    world = perfect()
    truth = world.graded[TRUTH]
    assert replace(world, negated=truth, inverted=truth).faults() == ("reversal",)
    assert replace(world, negated=truth).faults() == ()
    assert world.reversed_gain(truth) == pytest.approx(1, rel=1e-12)


def test_reversed_maps_may_have_no_score_as_long_as_one_of_them_has():
    world, nothing = perfect(), np.full(N, NAN)
    assert replace(world, negated=nothing).faults() == ()
    assert replace(world, inverted=nothing).faults() == ()
    assert replace(world, negated=nothing, inverted=nothing).faults() == ("reversal",)


def test_a_score_that_is_undefined_in_company_only_is_another_score():
    world = undefined(5)
    assert world.faults() == ()
    assert replace(world, in_company=world.graded[MIDDLE][::-1].copy()).faults() == ("company",)
    assert replace(world, rescaled=some(world.graded[MIDDLE], 8)).faults() == ("scale",)
    assert replace(world, rescaled=some(world.graded[MIDDLE], 7)).faults() == ()


def test_several_faults_are_all_named():
    noise = np.random.default_rng(0).standard_normal((len(QUALITIES) + len(ARRAYS), N))
    world = Answers(dict(zip(QUALITIES, noise, strict=False)), *noise[len(QUALITIES) :], 1.0)
    assert world.faults() == ("blind", "chance", "reversal", "scale", "company")
    right = perfect()
    upside_down = graded(right, {quality: -scores for quality, scores in right.graded.items()})
    assert upside_down.faults() == ("blind", "order", "picture", "reversal")


def test_noise_that_is_at_chance_but_for_rounding_is_at_chance():
    assert replace(exact(), noise=np.full(N, 0.1 + 0.2 - 0.3)).faults() == ()


def test_a_step_is_negligible_beside_what_the_truth_gains_over_a_wrong_map():
    world = replace(order(1.5 * NEGLIGIBLE, 1e6), noise=np.full(N, -9.0), negated=np.full(N, -10.0), chance=None)
    assert world.faults() == ("order",)


def test_all_is_undefined_where_no_sample_has_a_score():
    nothing = np.full(N, NAN)
    world = Answers(dict.fromkeys(QUALITIES, nothing), *len(ARRAYS) * [nothing], 0.0)
    assert world.faults() == ("undefined",)
    numbers = [
        world.gain,
        world.reversed_gain(nothing),
        world.needed(TRUTH, WRONG),
        world.least_quality,
        world.least_loss,
    ]
    assert all(math.isnan(each) for each in [*numbers, world.needed_if_averaged, world.reliability])
    assert math.isnan(rank_agreement(world.graded, perfect().graded))


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
