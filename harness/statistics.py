"""Intervals and verdicts: every statistic of the harness is here, and everything else calls it.

Values come as matrices [samples, draws]; NaN marks what is undefined and is left out, never replaced.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy import special, stats

Values = Float[np.ndarray, "samples draws"]
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
class Interval:
    """An estimate with its 95 % confidence interval; NaN limits where there is too little to say."""

    value: float
    low: float
    high: float


def mean_interval(values: Values, confidence: float = 0.95) -> Interval:
    r"""The mean over samples and draws, for a population of both: a t-interval for crossed random effects.

    $\mathrm{se}^2 = s_r^2 / n + s_c^2 / D$ with $s_r$, $s_c$ the standard deviations of the means of samples and of
    draws, degrees of freedom by Welch and Satterthwaite; with one draw it is Student's interval over samples.
    Simulated coverage is 0.92 to 0.99 from three draws on, 0.94 to 0.99 from ten on. A two-way percentile
    bootstrap does worse at the numbers of draws that are affordable: 0.90 to 0.999 at ten.
    """
    estimate = _estimate(values)
    if estimate.error == 0 or np.isnan(estimate.error):
        return Interval(estimate.mean, *(2 * [estimate.mean + estimate.error]))
    # What `scipy.stats.t.ppf` returns, without the checks that it makes first.
    half = float(special.stdtrit(estimate.freedom, (1 + confidence) / 2) * estimate.error)
    return Interval(estimate.mean, estimate.mean - half, estimate.mean + half)


@dataclass(frozen=True)
class _Estimate:
    """A mean with its standard error, NaN for a single sample, and the degrees of freedom of that."""

    mean: float
    error: float
    freedom: float

    def chance(self, threshold: float) -> float:
        """How often an estimate would lie this far from a threshold, or farther, if the truth stood at it."""
        if self.error == 0:
            return 0.0
        return float(stats.t.sf(abs(self.mean - threshold) / self.error, self.freedom))


def _estimate(values: Values) -> _Estimate:
    values = _defined(values)
    if values.size == 0:
        return _Estimate(np.nan, np.nan, np.nan)
    # The same where nothing is undefined, in a fraction of the time.
    mean_over = np.nanmean if np.isnan(values).any() else np.mean
    mean = float(mean_over(values))
    samples, draws = values.shape
    if samples < 2:
        return _Estimate(mean, np.nan, np.nan)
    parts = [(np.var(mean_over(values, 1), ddof=1) / samples, samples - 1)]
    if draws > 1:
        parts.append((np.var(mean_over(values, 0), ddof=1) / draws, draws - 1))
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return _Estimate(mean, 0.0, np.nan)
    freedom = variance**2 / sum(part**2 / df for part, df in parts)
    return _Estimate(mean, float(np.sqrt(variance)), float(freedom))


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


MANY = 1000.0
"""Samples, of which t and normal distributions are the same."""


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
NO_INTERVAL = Interval(np.nan, np.nan, np.nan)


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
        apart = _estimate(top - floor_random)
        # Of a single sample there is no interval.
        most = apart.mean if np.isnan(apart.error) else mean_interval(top - floor_random).high
        if most < thresholds.ceiling_above_random:
            return Survival("FAIL", SAME_MAP, r, apart.chance(thresholds.ceiling_above_random))
    if test.shape[1] < thresholds.draws:
        return Survival("INCONCLUSIVE", f"{test.shape[1]} draws, a verdict needs {thresholds.draws}", r)
    return _judge(r, _estimate(linearized), thresholds)


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


def _judge(r: Interval, estimate: _Estimate, thresholds: Thresholds) -> Survival:
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


def over_draws(values: Values) -> Float[np.ndarray, "samples 1"]:
    """The mean of each sample over the draws in which it is defined; NaN if it is in none."""
    known = ~np.isnan(values).all(1)
    each = np.full((len(values), 1), np.nan)
    each[known, 0] = np.nanmean(values[known], 1)
    return each


def mean_of(values: Values) -> float:
    """The mean of what is defined; NaN if nothing is."""
    return float(np.nanmean(values)) if (~np.isnan(values)).any() else np.nan


def _linearized(numerator: Values, denominator: Float[np.ndarray, "samples #draws"]) -> Values:
    """Values whose mean is the ratio of two means, and whose interval is its interval by the delta method."""
    denominator = np.where(np.isnan(numerator), np.nan, denominator)
    scale = np.nanmean(denominator)
    ratio = np.nanmean(numerator) / scale
    values: Values = ratio + (numerator - ratio * denominator) / scale
    return values


def _defined(values: Values) -> Float[np.ndarray, "known_samples known_draws"]:
    """Without the samples and draws of which nothing is defined."""
    unknown = np.isnan(values)
    if not unknown.any():
        return values
    values = values[~unknown.all(1)]
    return values[:, ~np.isnan(values).all(0)] if len(values) else values


def kendall(
    first: Float[np.ndarray, "pairs methods"], second: Float[np.ndarray, "pairs methods"]
) -> Float[np.ndarray, " pairs"]:
    r"""Kendall's $\tau_a$ of each pair of rows: the mean over pairs of their entries of the product of signs."""
    return (signs(first) * signs(second)).mean(1)


def kendall_b(
    first: Float[np.ndarray, "pairs methods"], second: Float[np.ndarray, "pairs methods"]
) -> Float[np.ndarray, " pairs"]:
    r"""Kendall's $\tau_b$ of each pair of rows, which does not count ties; NaN where a row has one value only."""
    one, other = signs(first), signs(second)
    with np.errstate(invalid="ignore"):
        return (one * other).sum(1) / np.sqrt(np.square(one).sum(1) * np.square(other).sum(1))


def signs(rows: Float[np.ndarray, "*rows methods"]) -> Float[np.ndarray, "*rows couples"]:
    """In each row the order of every two entries: -1, 0 or 1."""
    one, other = np.triu_indices(rows.shape[-1], 1)
    orders: np.ndarray = np.sign(rows[..., one] - rows[..., other])
    return orders


def samples_needed(differences: Float[np.ndarray, " samples"], power: float = 0.8, level: float = 0.05) -> float:
    r"""How many paired samples show a difference that is as large as here, by a two-sided t-test.

    The smallest $n$, two at least, for which $P(T > t_{n-1, 1-\alpha/2})$ reaches the power where $T$ is noncentral
    $t$ with $\sqrt n\, m / s$. Infinite where the mean difference $m$ is not above zero, NaN where one sample is known.
    """
    known = differences[~np.isnan(differences)]
    if len(known) < 2:
        return np.nan
    mean, spread = float(known.mean()), float(known.std(ddof=1))
    if mean <= 0:
        return np.inf
    # A normal test needs a few less, and where it needs many, the same.
    wanted = stats.norm.ppf(1 - level / 2) + stats.norm.ppf(power)
    count = max(float(np.ceil((wanted * spread / mean) ** 2)), 2.0)
    while count < MANY and spread and _power(mean / spread, count, level) < power:
        count += 1
    return count


def _power(effect: float, count: float, level: float) -> float:
    """How often a paired t-test of so many samples finds an effect that is so many standard deviations, on its side."""
    least = stats.t.ppf(1 - level / 2, count - 1)
    return float(stats.nct.sf(least, count - 1, effect * count**0.5))


def krippendorff(ranks: Float[np.ndarray, "raters units"]) -> float:
    r"""Krippendorff's $\alpha = 1 - D_o / D_e$ of ranks that raters gave the same units, with squared differences.

    1 where all agree, 0 where they agree as by chance. $D_o$ is the mean squared difference between two raters of one
    unit, $D_e$ that between any two ranks (`krippendorff2004content`).
    """
    raters, size = len(ranks), ranks.size
    observed = 2 * ranks.var(0, ddof=1).mean() if raters > 1 else np.nan
    expected = 2 * ranks.var() * size / (size - 1) if size > 1 else np.nan
    return float(1 - observed / expected) if expected else np.nan


def resampled(samples: int, times: int = 1000) -> Iterator[Int[np.ndarray, " samples"]]:
    """Which samples are drawn, with replacement, again and again: the same ones whoever asks."""
    generator = np.random.default_rng(0)
    return (generator.integers(0, samples, samples) for _ in range(times))


def resampled_means(
    values: Float[np.ndarray, "*rows samples"], chunk: int = 64
) -> Float[np.ndarray, "one_and_resampled *rows"]:
    """The mean of each row over the samples, and below it over those that are drawn in each `resampled`.

    How often each sample is drawn, times the values, is one product of matrices. Rows that are equal have equal means.
    """
    samples = values.shape[-1]
    # A product may round the same sum in two ways, and ties would be broken.
    rows, place = np.unique(values.reshape(-1, samples), axis=0, return_inverse=True)
    picks, means = resampled(samples), [np.ones((1, samples)) @ rows.T]
    while some := list(islice(picks, chunk)):
        means.append(np.stack([np.bincount(pick, minlength=samples) for pick in some]).astype(float) @ rows.T)
    return (np.concatenate(means) / samples)[:, place].reshape(-1, *values.shape[:-1])


def basic_bootstrap(
    statistic: Callable[[Int[np.ndarray, " picked"]], float], samples: int, *, least: float, most: float = 1.0
) -> Interval:
    """A statistic of the samples, in [least, most], with its basic bootstrap interval.

    Args:
        statistic: of the samples with these indices.
        samples: how many there are.
        least: the smallest value it can have.
        most: the largest one.
    """
    drawn = np.array([statistic(pick) for pick in resampled(samples)])
    return basic_interval(statistic(np.arange(samples)), drawn, least=least, most=most)


def basic_interval(
    value: float, drawn: Float[np.ndarray, " resampled"], *, least: float, most: float = 1.0
) -> Interval:
    """A value in [least, most] with its basic bootstrap interval, from what it is in resampled samples.

    Rankings of resampled samples are noisier than those of the samples, so that a percentile interval would be shifted.
    """
    low, high = np.clip(2 * value - np.quantile(drawn, [0.975, 0.025]), least, most)
    return Interval(value, float(low), float(high))
