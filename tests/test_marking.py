"""Metrics in simulated worlds: each fault is found where it is and nowhere else, and numbers of samples are right."""

import math
from dataclasses import replace

import numpy as np
import pytest

from harness.marking import (
    FAULTS,
    MIDDLE,
    NEGLIGIBLE,
    QUALITIES,
    SAME,
    TRUTH,
    WRONG,
    Answers,
    rank_agreement,
)
from made_answers import ARRAYS, NAN, N, errors_above, exact, graded, perfect, some, standard


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
