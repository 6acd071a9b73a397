"""Rankings of methods: by each sample, by each metric, and how far they can be trusted. Rank 1 is the best."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

from harness.statistics.resampling import resampled_means

Ranks = Float[np.ndarray, "raters items"]


def ranks_of(scores: Float[np.ndarray, "*raters items"]) -> Float[np.ndarray, "*raters items"]:
    """Ranks along the last axis, 1 for the highest score, ties sharing the mean of theirs."""
    ranks: np.ndarray = stats.rankdata(-scores, axis=-1)
    return ranks


def kendall_w(ranks: Ranks) -> float:
    r"""Kendall's $W$, how far raters agree on the order of items: 0 not at all, 1 fully; ties are allowed for.

    $W = 12 S / (m^2 (n^3 - n) - m \sum (t^3 - t))$ with $S$ the squared deviations of the sums of ranks
    (`kendall1939problem`). NaN where no rater tells any two items apart, and for a single item or rater.
    """
    raters, items = ranks.shape
    sums = ranks.sum(0)
    ties = sum(((counts := np.unique(row, return_counts=True)[1]) ** 3 - counts).sum() for row in ranks)
    most = raters**2 * (items**3 - items) - raters * ties
    return float(12 * np.square(sums - sums.mean()).sum() / most) if most and raters > 1 else np.nan


@dataclass(frozen=True)
class Place:
    """Where an item stands among others, if samples are drawn again.

    Attributes:
        rank: by the mean over samples.
        low: the lowest rank number in 95 % of the resamples.
        high: the highest one.
        best: how often it is first; ties share.
    """

    rank: float
    low: float
    high: float
    best: float


def places(scores: Float[np.ndarray, "items samples"]) -> list[Place]:
    """The place of each item by its mean score, over 1,000 resamples of the samples."""
    return places_of(resampled_means(scores))


def places_of(means: Float[np.ndarray, "one_and_resampled items"]) -> list[Place]:
    """The same of means, the first row of all samples and below it those of resamples."""
    ranks = ranks_of(means)
    drawn = ranks[1:]
    best = firsts(drawn).mean(0)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0, method="inverted_cdf")
    return [Place(*map(float, each)) for each in zip(ranks[0], low, high, best, strict=True)]


def firsts(ranks: Ranks) -> Ranks:
    """Of each rater, 1 for the item that is first; ties share."""
    first = ranks == ranks.min(1, keepdims=True)
    shares: np.ndarray = first / first.sum(1, keepdims=True)
    return shares


def nemenyi(items: int, blocks: int, level: float = 0.05) -> float:
    r"""Nemenyi's critical difference of mean ranks, $q_\alpha \sqrt{k (k + 1) / 6 N}$ (`demsar2006statistical`).

    Args:
        items: how many are ranked, $k$.
        blocks: how often, independently: models or data sets, never the samples of one, $N$.
        level: of the largest difference among them.
    """
    return float(
        stats.studentized_range.ppf(1 - level, items, np.inf) / np.sqrt(2) * np.sqrt(items * (items + 1) / (6 * blocks))
    )


def cliques(ranks: Float[np.ndarray, " items"], apart: Bool[np.ndarray, "items items"]) -> list[list[int]]:
    """The largest runs of two or more items, neighbours by rank, of which no two are told apart."""
    order = np.argsort(ranks, kind="stable")
    found: list[list[int]] = []
    last = -1
    for start in range(len(order)):
        end = start
        while end + 1 < len(order) and not apart[np.ix_(order[start : end + 2], order[start : end + 2])].any():
            end += 1
        if end > start and end > last:
            found.append([int(item) for item in order[start : end + 1]])
            last = end
    return found
