"""Two lists of scores of the same samples: by how much they differ, how surely, and in how many samples."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import stats

from harness.statistics.intervals import Interval, Statistic, estimate_of, median_interval, over_draws

Test = Literal["wilcoxon", "sign_flip"]
Told = Literal["above", "below", "equivalent", ""]
Differences = Float[np.ndarray, " samples"]

FLIPS = 2**13
"""Sign flips: all of them up to 13 samples, else as many at random."""

ROUNDING = 1e-12
"""Of the largest sum: two that differ by less are the same."""


@dataclass(frozen=True)
class Contrast:
    """What is known of first - second.

    Attributes:
        difference: the mean, with an interval over samples and draws, or the median, with one over samples.
        median: of the differences of samples.
        superiority: the share of samples in which the first is above; ties count half.
        rank_biserial: the ranks of the positive differences less those of the negative ones, over all; -1 to 1.
        p: of no difference: by the test over samples with these draws or, where there are several, by the interval
            over samples and draws, whichever is larger. NaN for fewer than two samples.
        samples: in how many both are known.
    """

    difference: Interval
    median: float
    superiority: float
    rank_biserial: float
    p: float
    samples: int


def contrast(
    first: Float[np.ndarray, "samples draws"],
    second: Float[np.ndarray, "samples other_draws"],
    test: Test = "wilcoxon",
    statistic: Statistic = "mean",
) -> Contrast:
    """Compare two matrices of the same samples, whose draws match where there are as many."""
    if first.shape[1] != second.shape[1]:
        first, second = over_draws(first), over_draws(second)
    apart = first - second
    each = over_draws(apart)[:, 0]
    known = each[~np.isnan(each)]
    estimate = estimate_of(apart)
    difference = estimate.interval() if statistic == "mean" else median_interval(known)
    if len(known) == 0:
        return Contrast(difference, np.nan, np.nan, np.nan, np.nan, 0)
    above = float((known > 0).mean() + (known == 0).mean() / 2)
    p = TESTS[test](known) if len(known) > 1 else np.nan
    if apart.shape[1] > 1 and statistic == "mean":
        p = max(p, min(2 * estimate.chance(0.0), 1.0))
    return Contrast(difference, float(np.median(known)), above, rank_biserial(known), p, len(known))


def wilcoxon(differences: Differences) -> float:
    """Wilcoxon's signed-rank test, two-sided: are differences symmetric about zero? Zeros are left out."""
    return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0


def sign_flip(differences: Differences) -> float:
    """The share of sign flips of the differences whose mean is as far from zero; of random ones, this one included."""
    sums = np.abs(_flips(len(differences)) @ differences)
    seen = int((sums >= np.abs(differences.sum()) - ROUNDING * np.abs(differences).sum()).sum())
    itself = 0 if 2 ** len(differences) <= FLIPS else 1
    return (seen + itself) / (len(sums) + itself)


TESTS = {"wilcoxon": wilcoxon, "sign_flip": sign_flip}


def sign_test(differences: Differences, allowed: float) -> float:
    """Whether the median of differences is beyond what is allowed, on either side: the exact sign test, two-sided."""
    beyond = max(int((differences > allowed).sum()), int((differences < -allowed).sum()))
    return min(2 * float(stats.binom.sf(beyond - 1, len(differences), 0.5)), 1.0)


def rank_biserial(differences: Differences) -> float:
    """The matched-pairs rank-biserial correlation (`kerby2014simple`); 0 where nothing differs."""
    apart = differences[differences != 0]
    ranks = stats.rankdata(np.abs(apart))
    return float((np.sign(apart) * ranks).sum() / ranks.sum()) if len(apart) else 0.0


def holm(p: Float[np.ndarray, " family"]) -> Float[np.ndarray, " family"]:
    """P-values by Holm (`holm1979simple`): together false at most as often as one alone. NaN belongs to no family."""
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted


def told(contrast: Contrast, p: float, smallest: float = 0.0, level: float = 0.05) -> Told:
    """What can be said of a difference: above or below zero, equivalent, or nothing.

    `above` and `below` need a p-value under the level and an interval beyond the smallest effect of interest;
    `equivalent` an interval within it.

    Args:
        contrast: the two.
        p: adjusted for all comparisons that are made.
        smallest: effect of interest; nothing is equivalent without one.
        level: of the p-value.
    """
    low, high = contrast.difference.low, contrast.difference.high
    if -smallest < low and high < smallest:
        return "equivalent"
    if p < level and low > smallest:
        return "above"
    return "below" if p < level and high < -smallest else ""


@lru_cache(maxsize=4)
def _flips(samples: int) -> Float[np.ndarray, "flips samples"]:
    if 2**samples <= FLIPS:
        bits = np.arange(2**samples)[:, None] >> np.arange(samples) & 1
    else:
        bits = np.random.default_rng(0).integers(0, 2, (FLIPS, samples), dtype=np.int8)
    return 2.0 * bits - 1.0
