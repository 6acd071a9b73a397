"""How much of a map survives when a network is randomized, and the verdict on it."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from harness.statistics.intervals import (
    NO_INTERVAL,
    Estimate,
    Interval,
    Values,
    estimate_of,
    mean_interval,
    mean_of,
    over_draws,
)

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "INVALID", ""]

FALSE_VERDICTS = 0.025
"""How often a limit of an interval at 95 % lies on the wrong side: the nominal rate of false verdicts."""


@dataclass(frozen=True)
class Thresholds:
    """Where verdicts change: conventions of this harness, which can be set where tables are read.

    Attributes:
        pass_below: PASS if the upper limit of the survival is below.
        fail_above: FAIL if the lower limit is above; a stage of a cascade is sensitive if the upper one is below.
        ceiling_above_random: FAIL if two randomized networks agree to within this of the ceiling.
        degenerate_at_most: INVALID if a larger share of the comparisons is undefined.
        ceiling_at_least: INVALID if two calls on the trained network agree less.
        output_at_most: INVALID if the correlation of trained and randomized logits is clearly above.
        draws: INCONCLUSIVE with fewer.
    """

    pass_below: float = 0.2
    fail_above: float = 0.5
    ceiling_above_random: float = 0.05
    degenerate_at_most: float = 0.1
    ceiling_at_least: float = 0.5
    output_at_most: float = 0.5
    draws: int = 10


DEFAULT = Thresholds()


@dataclass(frozen=True)
class Survival:
    """The verdict of a randomization test, with the reason in words and the number behind it.

    Attributes:
        verdict: PASS is necessary for trusting a map, not sufficient; empty where nothing is judged.
        reason: why, in words.
        survival: how much of the similarity above chance is left, with its interval.
        chance: how often a survival this far on its side of the threshold is seen if the truth stands at it;
            NaN where nothing is decided.
    """

    verdict: Verdict
    reason: str
    survival: Interval
    chance: float = np.nan


SAME_MAP = "two randomized networks give the same map: it does not depend on parameters"


def survival(
    test: Values,
    floor_shift: Values,
    ceiling: Float[np.ndarray, "samples 1"],
    *,
    floor_random: Float[np.ndarray, "pairs_samples pairs"] | None = None,
    output: Float[np.ndarray, "output_samples output_draws"] | None = None,
    thresholds: Thresholds = DEFAULT,
) -> Survival:
    r"""How much of a map survives a randomization: $r = (s - F) / (C - F)$, a ratio of means.

    F is the shift floor, C the re-run ceiling. PASS if the upper limit of r is below 0.2; FAIL if the lower limit is
    above 0.5, or if two randomized networks agree to within 0.05 of the ceiling (its upper limit, too); else, or with
    fewer than 10 draws, INCONCLUSIVE. INVALID if more than 10 % of the pairs are undefined, the network's own output
    clearly did not change, C is below 0.5 or not above F, or any of these is unknown; r is then NaN.

    Args:
        test: similarity of maps before and after the randomization.
        floor_shift: with the latter shifted on the torus.
        ceiling: of two calls before it.
        floor_random: of pairs of randomized networks; None where there are none, as of one network for other classes.
        output: correlation of logits before and after; None where the network stays the same.
        thresholds: the conventions.
    """
    top = mean_of(ceiling)
    undefined = float(np.isnan(test).mean()) if test.size else 1.0
    floors = [mean_of(floor) for floor in (floor_shift, floor_random) if floor is not None]
    invalid = _invalid(undefined, output, top, floors, thresholds)
    if invalid:
        return Survival("INVALID", invalid, NO_INTERVAL)
    linearized = _linearized(test - floor_shift, ceiling - floor_shift)
    r = mean_interval(linearized)
    if floor_random is not None:
        apart = estimate_of(top - floor_random)
        # Of a single sample there is no interval.
        most = apart.mean if apart.parts is None else apart.interval().high
        if most < thresholds.ceiling_above_random:
            return Survival("FAIL", SAME_MAP, r, apart.chance(thresholds.ceiling_above_random))
    if test.shape[1] < thresholds.draws:
        return Survival("INCONCLUSIVE", f"{test.shape[1]} draws, a verdict needs {thresholds.draws}", r)
    return _judge(r, estimate_of(linearized), thresholds)


def _invalid(
    undefined: float, output: Values | None, ceiling: float, floors: list[float], thresholds: Thresholds
) -> str:
    """Why nothing can be concluded, or empty."""
    if undefined > thresholds.degenerate_at_most:
        return f"{undefined:.0%} of the comparisons are undefined (constant maps)"
    if output is not None:
        change = mean_interval(output)
        if np.isnan(change.value):
            return "how far the network's own output changed is unknown (constant or infinite logits)"
        # Over two or three logits a correlation is nearly +1 or -1 by chance, so the mean alone says little.
        least = change.value if np.isnan(change.low) else change.low
        if not least <= thresholds.output_at_most:
            return f"the network's own output hardly changed (correlation {change.value:.2f})"
    if not ceiling >= thresholds.ceiling_at_least:
        return f"uninformative: two calls on the same network agree to {ceiling:.2f} only"
    if any(map(math.isnan, floors)):
        return "the level of chance is unknown: a floor has no defined value (it needs two draws)"
    return f"chance alone reaches the ceiling of {ceiling:.2f}: nothing to lie between" if floors[0] >= ceiling else ""


def _judge(r: Interval, estimate: Estimate, thresholds: Thresholds) -> Survival:
    if r.high < thresholds.pass_below:
        left = f"at most {max(r.high, 0):.0%} of the similarity above chance survives"
        reason = f"{left}: necessary for trusting the map, not sufficient"
        return Survival("PASS", reason, r, estimate.chance(thresholds.pass_below))
    if r.low > thresholds.fail_above:
        reason = f"at least {r.low:.0%} of the similarity above chance survives"
        return Survival("FAIL", reason, r, estimate.chance(thresholds.fail_above))
    if np.isnan(r.low):
        return Survival("INCONCLUSIVE", "one sample has no interval", r)
    return Survival("INCONCLUSIVE", f"{r.low:.0%} to {r.high:.0%} of the similarity above chance survives", r)


def left_above(
    test: Values,
    floor: Float[np.ndarray, "samples floor_draws"],
    ceiling: Float[np.ndarray, "samples 1"],
) -> Interval:
    """The ratio of means (test - floor) / (ceiling - floor) with its interval; see `shares_above`."""
    return mean_interval(shares_above(test, floor, ceiling))


def shares_above(
    test: Values,
    floor: Float[np.ndarray, "samples floor_draws"],
    ceiling: Float[np.ndarray, "samples 1"],
) -> Values:
    """Values whose mean is the ratio of means (test - floor) / (ceiling - floor), the floor averaged for each sample.

    Their interval is that of the ratio by the delta method, and differences of such values are paired comparisons. For
    a test whose floor was measured in other draws than its own, such as a stage of a cascade. NaN where the ceiling is
    not above the floor.
    """
    each = over_draws(floor)
    above = test - each
    if np.isnan(above).all() or not mean_of(ceiling - each) > 0:
        return np.full_like(test, np.nan)
    return _linearized(above, ceiling - each)


def _linearized(numerator: Values, denominator: Float[np.ndarray, "samples #draws"]) -> Values:
    """Values whose mean is the ratio of two means, and whose interval is its interval by the delta method."""
    denominator = np.where(np.isnan(numerator), np.nan, denominator)
    scale = np.nanmean(denominator)
    ratio = np.nanmean(numerator) / scale
    values: Values = ratio + (numerator - ratio * denominator) / scale
    return values
