"""Intervals and verdicts: every statistic of the harness is here, and everything else calls it.

Values come as matrices [samples, draws]; NaN marks what is undefined and is left out, never replaced.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import stats

Values = Float[np.ndarray, "samples draws"]
Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE", "INVALID"]

RESAMPLES = 10_000
DRAWS_FOR_BOOTSTRAP = 10

PASS_BELOW = 0.2
FAIL_ABOVE = 0.5
CEILING_ABOVE_RANDOM = 0.05
DEGENERATE_AT_MOST = 0.1
CEILING_AT_LEAST = 0.5
OUTPUT_AT_MOST = 0.5


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval; NaN limits where there is too little to say."""

    value: float
    low: float
    high: float


def mean_interval(values: Values, confidence: float = 0.95) -> Interval:
    r"""The mean over samples and draws, for a population of both.

    From 10 draws on the two-way (pigeonhole) percentile bootstrap, resampling samples and draws. Below that it is
    too narrow, so a t-interval: $\mathrm{se}^2 = s_r^2 / n + s_c^2 / D$ with $s_r$, $s_c$ the standard deviations
    of the means of samples and of draws, degrees of freedom by Welch and Satterthwaite. With one draw this is
    Student's interval of the mean over samples.
    """
    values = _defined(values)
    if values.size == 0:
        return Interval(np.nan, np.nan, np.nan)
    mean = float(np.nanmean(values))
    samples, draws = values.shape
    if samples < 2:
        return Interval(mean, np.nan, np.nan)
    if draws >= DRAWS_FOR_BOOTSTRAP:
        low, high = np.quantile(_bootstrap_means(values), [(1 - confidence) / 2, (1 + confidence) / 2])
        return Interval(mean, float(low), float(high))
    parts = [(np.nanvar(np.nanmean(values, 1), ddof=1) / samples, samples - 1)]
    if draws > 1:
        parts.append((np.nanvar(np.nanmean(values, 0), ddof=1) / draws, draws - 1))
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Interval(mean, mean, mean)
    freedom = variance**2 / sum(part**2 / df for part, df in parts)
    half = float(stats.t.ppf((1 + confidence) / 2, freedom) * np.sqrt(variance))
    return Interval(mean, mean - half, mean + half)


def median_interval(values: Float[np.ndarray, " samples"], confidence: float = 0.95) -> Interval:
    """The median of the samples, with the distribution-free interval between two order statistics."""
    values = np.sort(values[~np.isnan(values)])
    if len(values) == 0:
        return Interval(np.nan, np.nan, np.nan)
    below = int(stats.binom.ppf((1 - confidence) / 2, len(values), 0.5))
    # The interval between the order statistics k and n+1-k misses with probability 2 P(B < k).
    if below < 1:
        return Interval(float(np.median(values)), np.nan, np.nan)
    return Interval(float(np.median(values)), float(values[below - 1]), float(values[-below]))


@dataclass(frozen=True)
class Survival:
    """The verdict of a randomization test, with the reason in words and the numbers behind it.

    Attributes:
        verdict: PASS is necessary for trusting a map, not sufficient.
        reason: why, in words.
        survival: how much of the similarity above chance is left, with its interval.
        similarity: of trained and randomized maps.
        floor_shift: what chance gives for maps of this smoothness.
        floor_random: what two randomized networks give.
        ceiling: what a second call gives.
    """

    verdict: Verdict
    reason: str
    survival: Interval
    similarity: float
    floor_shift: float
    floor_random: float
    ceiling: float


def survival(
    test: Values,
    floor_shift: Values,
    floor_random: Float[np.ndarray, "pairs_samples pairs"],
    ceiling: Float[np.ndarray, "samples 1"],
    output_similarity: float,
) -> Survival:
    r"""How much of a map survives the randomization of its network: $r = (s - F) / (C - F)$, a ratio of means.

    F is the shift floor, C the re-run ceiling. PASS if the upper limit of r is below 0.2; FAIL if the lower limit
    is above 0.5, or if two randomized networks agree to within 0.05 of the ceiling; else INCONCLUSIVE. INVALID if
    more than 10 % of the pairs are undefined, the network's own output did not change, or C is below 0.5. The
    thresholds are conventions of this harness, and the constants of this module.

    Args:
        test: similarity of trained and randomized maps.
        floor_shift: with the randomized map shifted on the torus.
        floor_random: of pairs of randomized networks; one draw less.
        ceiling: of two calls on the trained network.
        output_similarity: mean correlation of trained and randomized logits.
    """
    with np.errstate(invalid="ignore"):
        s, shift, random, top = (
            float(np.nanmean(v)) if np.isfinite(v).any() else np.nan for v in (test, floor_shift, floor_random, ceiling)
        )
    undefined = float(np.isnan(test).mean())
    r = _survival_interval(test, floor_shift, ceiling)
    verdict, reason = _judge(r, random, top, undefined, output_similarity, test.shape[1])
    return Survival(verdict, reason, r, s, shift, random, top)


def _judge(
    r: Interval, random: float, ceiling: float, undefined: float, output: float, draws: int
) -> tuple[Verdict, str]:
    if undefined > DEGENERATE_AT_MOST:
        return "INVALID", f"{undefined:.0%} of the comparisons are undefined (constant maps)"
    if output > OUTPUT_AT_MOST:
        return "INVALID", f"the network's own output hardly changed (correlation {output:.2f})"
    if ceiling < CEILING_AT_LEAST:
        return "INVALID", f"uninformative: two calls on the same network agree to {ceiling:.2f} only"
    if ceiling - random < CEILING_ABOVE_RANDOM:
        return "FAIL", "two randomized networks give the same map: it does not depend on parameters"
    if draws < DRAWS_FOR_BOOTSTRAP:
        return "INCONCLUSIVE", f"{draws} draws, a verdict needs {DRAWS_FOR_BOOTSTRAP}"
    if r.high < PASS_BELOW:
        return "PASS", f"at most {max(r.high, 0):.0%} of the similarity above chance survives"
    if r.low > FAIL_ABOVE:
        return "FAIL", f"at least {r.low:.0%} of the similarity above chance survives"
    return "INCONCLUSIVE", f"{r.low:.0%} to {r.high:.0%} of the similarity above chance survives"


def _survival_interval(test: Values, floor: Values, ceiling: Float[np.ndarray, "samples 1"]) -> Interval:
    if test.shape[0] < 2 or test.shape[1] < 2 or not np.isfinite(ceiling).any():
        return Interval(np.nan, np.nan, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        s, f, c = (_bootstrap_means(v) for v in (test, floor, np.broadcast_to(ceiling, test.shape)))
        means = [np.nanmean(v) for v in (test, floor, ceiling)]
        value = (means[0] - means[1]) / (means[2] - means[1])
        low, high = np.nanquantile((s - f) / (c - f), [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


def _defined(values: Values) -> Float[np.ndarray, "known_samples known_draws"]:
    """Without the samples and draws of which nothing is defined."""
    values = values[~np.isnan(values).all(1)]
    return values[:, ~np.isnan(values).all(0)] if len(values) else values


def _bootstrap_means(values: Values) -> Float[np.ndarray, " resamples"]:
    """Means over resampled samples and draws; the same resamples for every matrix of one shape, so pairs stay pairs."""
    samples, draws = values.shape
    rows, columns = _resamples(samples, 0), _resamples(draws, 1)
    known = ~np.isnan(values)
    total = ((rows @ np.where(known, values, 0)) * columns).sum(1)
    count = ((rows @ known.astype(np.float64)) * columns).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return total / count


@lru_cache(maxsize=16)
def _resamples(size: int, axis: int) -> Float[np.ndarray, "resamples size"]:
    """How often each of `size` items is drawn in each resample."""
    generator = np.random.Generator(np.random.Philox(key=[size, axis]))
    return generator.multinomial(size, np.full(size, 1 / size), size=RESAMPLES).astype(np.float64)
