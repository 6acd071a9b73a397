"""Two lists of scores of the same samples: by how much they differ, how surely, and in how many samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import stats

from harness.statistics.intervals import Interval, Values, mean_interval, over_draws

Test = Literal["wilcoxon", "sign_flip"]
Differences = Float[np.ndarray, " samples"]

FLIPS = 2**13
"""Sign flips: all of them up to 13 samples, else as many at random."""

ROUNDING = 1e-12
"""Of the largest sum: two that differ by less are the same."""


@dataclass(frozen=True)
class Contrast:
    """What is known of first - second.

    Attributes:
        difference: the mean, with an interval over samples and draws.
        median: of the differences of samples.
        superiority: the share of samples in which the first is above; ties count half.
        rank_biserial: the ranks of the positive differences less those of the negative ones, over all; -1 to 1.
        p: of no difference, by the test over samples, with these draws. NaN for fewer than two samples.
        samples: in how many both are known.
    """

    difference: Interval
    median: float
    superiority: float
    rank_biserial: float
    p: float
    samples: int


def contrast(first: Values, second: Values, test: Test = "wilcoxon") -> Contrast:
    """Compare two matrices of the same samples, whose draws match where there are as many."""
    if first.shape[1] != second.shape[1]:
        first, second = over_draws(first), over_draws(second)
    apart = first - second
    each = over_draws(apart)[:, 0]
    known = each[~np.isnan(each)]
    if len(known) == 0:
        return Contrast(mean_interval(apart), np.nan, np.nan, np.nan, np.nan, 0)
    above = float((known > 0).mean() + (known == 0).mean() / 2)
    p = TESTS[test](known) if len(known) > 1 else np.nan
    return Contrast(mean_interval(apart), float(np.median(known)), above, rank_biserial(known), p, len(known))


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


def told(contrast: Contrast, p: float, smallest: float = 0.0, level: float = 0.05) -> Mapping[str, bool]:
    """What can be said: `above`, `below` (beyond the smallest effect of interest) or `equivalent` (within it).

    Above or below needs a p-value under the level and an interval, which knows of draws, on that side.

    Args:
        contrast: the two.
        p: adjusted for all comparisons that are made.
        smallest: effect of interest; nothing is equivalent without one.
        level: of the p-value.
    """
    low, high = contrast.difference.low, contrast.difference.high
    sure = p < level
    return {
        "above": sure and low > smallest,
        "below": sure and high < -smallest,
        "equivalent": -smallest < low and high < smallest,
    }


@lru_cache(maxsize=4)
def _flips(samples: int) -> Float[np.ndarray, "flips samples"]:
    if 2**samples <= FLIPS:
        bits = np.arange(2**samples)[:, None] >> np.arange(samples) & 1
    else:
        bits = np.random.default_rng(0).integers(0, 2, (FLIPS, samples), dtype=np.int8)
    return 2.0 * bits - 1.0
