"""Means, medians and shares with their 95 % confidence intervals.

Values come as matrices [samples, draws]; NaN marks what is undefined and is left out, never replaced.
"""

from dataclasses import dataclass
from math import hypot, sqrt
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import optimize, special, stats

Values = Float[np.ndarray, "samples draws"]
Statistic = Literal["mean", "median"]

SMALLEST = 1e-300
"""Probabilities below are this."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % confidence interval; NaN limits where there is too little to say."""

    value: float
    low: float
    high: float


def mean_interval(values: Values, confidence: float = 0.95) -> Interval:
    r"""The mean over samples and draws, for a population of both: samples and draws are crossed and both vary.

    With $s_r, s_c$ the standard deviations of the means of samples and of draws, and $s_e$ that of what neither
    explains, $h^2 = t_{n-1}^2 \max(s_r^2 / n - s_e^2 / nD, 0) + t_{D-1}^2 s_c^2 / D$ is the square of half its width:
    the squares of the half widths that either would have alone (`zou2008construction`), in which what is left counts
    once. With one draw it is Student's interval over samples. Simulated coverage is 0.945 to 0.99 for 2 to 30 draws and
    20 to 500 samples, whatever varies; where draws vary, few of them make wide intervals, as they must.
    """
    return estimate_of(values).interval(confidence)


NO_INTERVAL = Interval(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Estimate:
    """A mean with what makes it uncertain.

    Attributes:
        mean: it.
        parts: independent parts of its variance, each with its degrees of freedom; None for a single sample.
    """

    mean: float
    parts: tuple[tuple[float, int], ...] | None

    def half(self, tail: float) -> float:
        """Half the width of the interval that leaves so much on either side; NaN where nothing is known."""
        if self.parts is None:
            return np.nan
        # What `scipy.stats.t.ppf` returns, without the checks that it makes first.
        return hypot(*(float(special.stdtrit(freedom, tail)) * sqrt(part) for part, freedom in self.parts if part))

    def interval(self, confidence: float = 0.95) -> Interval:
        """The mean with its interval."""
        half = self.half((1 - confidence) / 2)
        return Interval(self.mean, self.mean - half, self.mean + half)

    def chance(self, threshold: float) -> float:
        """How often an estimate would lie this far from a threshold, or farther, if the truth stood at it.

        That is where the one-sided interval ends at the threshold.
        """
        apart = abs(self.mean - threshold)
        if self.parts is None or np.isnan(apart):
            return np.nan
        if not any(part for part, _ in self.parts):
            return 0.0 if apart else 0.5

        def beyond(log: float) -> float:
            return self.half(float(np.exp(log))) - apart

        surest, least = np.log(SMALLEST), np.log(0.5)
        return float(np.exp(optimize.brentq(beyond, surest, least))) if beyond(surest) > 0 else SMALLEST


def estimate_of(values: Values) -> Estimate:
    """The mean over samples and draws; see `mean_interval`."""
    values = _defined(values)
    if values.size == 0:
        return Estimate(np.nan, None)
    # The same where nothing is undefined, in a fraction of the time.
    mean_over = np.nanmean if np.isnan(values).any() else np.mean
    mean = float(mean_over(values))
    samples, draws = values.shape
    if samples < 2:
        return Estimate(mean, None)
    of_samples = _variance(mean_over(values, 1))
    if draws == 1:
        return Estimate(mean, ((of_samples, samples - 1),))
    rest = _rest(values) / values.size
    return Estimate(mean, ((max(of_samples - rest, 0.0), samples - 1), (_variance(mean_over(values, 0)), draws - 1)))


def difference_of(
    first: Float[np.ndarray, "samples draws"], second: Float[np.ndarray, "samples other_draws"], *, matched: bool
) -> Estimate:
    r"""The mean of first - second over the same samples.

    Args:
        first: [samples, draws].
        second: likewise.
        matched: whether the draws of both are the same ones. Else each has its own, whose spread counts for itself:
            $h^2 = t_{n-1}^2 \max(s_d^2 / n - s_{e1}^2 / n D_1 - s_{e2}^2 / n D_2, 0) + \sum_i t_{D_i-1}^2 s_i^2 / D_i$
            with $s_d$ of the differences between means of samples and $s_i$ of the means of draws.
    """
    if matched:
        return estimate_of(first - second)
    apart = over_draws(first) - over_draws(second)
    known = ~np.isnan(apart[:, 0])
    if known.sum() < 2:
        return Estimate(mean_of(apart), None)
    drawn = [each for each in (_defined(first[known]), _defined(second[known])) if each.shape[1] > 1]
    of_samples = _variance(apart[known, 0]) - sum(_rest(each) / each.size for each in drawn)
    of_draws = ((_variance(np.nanmean(each, 0)), each.shape[1] - 1) for each in drawn)
    return Estimate(mean_of(apart), ((max(float(of_samples), 0.0), int(known.sum()) - 1), *of_draws))


def _variance(levels: Float[np.ndarray, " levels"]) -> float:
    """Of the mean of the levels."""
    return float(np.var(levels, ddof=1)) / len(levels)


def _rest(values: Values) -> float:
    """The variance of what neither samples nor draws explain; 0 where too little is known to tell."""
    mean_over = np.nanmean if np.isnan(values).any() else np.mean
    mean, of_samples, of_draws = mean_over(values), mean_over(values, 1), mean_over(values, 0)
    left = values - of_samples[:, None] - of_draws + mean
    freedom = int((~np.isnan(values)).sum()) - len(of_samples) - len(of_draws) + 1
    return float(np.nansum(np.square(left))) / freedom if freedom > 0 else 0.0


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


def share_interval(hits: Float[np.ndarray, " samples"], confidence: float = 0.95) -> Interval:
    """The share of hits, each 0 or 1, with its exact interval (`clopper1934use`), which is wide if all are alike."""
    exact = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(confidence)
    return Interval(float(hits.mean()), float(exact.low), float(exact.high))


def over_draws(values: Values) -> Float[np.ndarray, "samples 1"]:
    """The mean of each sample over the draws in which it is defined; NaN if it is in none."""
    known = ~np.isnan(values).all(1)
    each = np.full((len(values), 1), np.nan)
    each[known, 0] = np.nanmean(values[known], 1)
    return each


def mean_of(values: Values) -> float:
    """The mean of what is defined; NaN if nothing is."""
    return float(np.nanmean(values)) if (~np.isnan(values)).any() else np.nan


def _defined(values: Values) -> Float[np.ndarray, "known_samples known_draws"]:
    """Without the samples and draws of which nothing is defined."""
    unknown = np.isnan(values)
    if not unknown.any():
        return values
    values = values[~unknown.all(1)]
    return values[:, ~np.isnan(values).all(0)] if len(values) else values
