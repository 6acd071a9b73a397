"""Correlation over random subsets of what they cost and what the map says: one size, or a range of sizes."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from harness.case import Case
from harness.metrics.curves import score_of
from harness.metrics.perturbation import LARGEST, Removal, Removing, about, relevance_of
from harness.metrics.preprocessing import first_reason
from harness.metrics.road import Fraction
from harness.metrics.similarity import pearson, spearman
from harness.metrics.subsets import same_drops, same_sums, subset_drops, subset_ranks, subset_sums
from harness.registry import metric
from harness.types import Count, NonNegative, Score

CORRELATIONS = {"pearson": pearson, "spearman": spearman}


@metric(
    family="faithfulness",
    direction="higher",
    headline="pearson",
    chance=0.0,
    cite="bhatt2020evaluating",
    question="Does the map predict what random subsets cost?",
    misleads="One size of subsets and one fill; shared cost of the fill hides what the map knows.",
)
def faithfulness_correlation(
    case: Case, *, fill: str, fraction: Fraction = 0.2, subsets: Count = 100, patch: NonNegative = 0
) -> Iterator[Score]:
    r"""Faithfulness correlation (`bhatt2020evaluating`): $\sum_{i \in S} a_i$ and $f_t(x) - f_t(x_{S \leftarrow b})$.

    Over random subsets $S$ of one size, drawn anew for each sample and the same for all methods. Yields `pearson` and
    `spearman`, 1 for exact attributions of a linear model, 0 in expectation for a random map. One size is one point of
    `sensitivity_n`, and the choice matters. Undefined where the map is not finite, or where it, or what subsets cost,
    does not differ between subsets.

    Args:
        case: what to test.
        fill: what stands in the place of what is removed; see `harness.metrics.perturbation.Removal`.
        fraction: the size of the subsets, of the units; at least one unit, and less than all.
        subsets: how many.
        patch: side of the square patches that are removed together; 0 makes about 1,024 of them, or fewer.
    """
    removing = Removal(fill, patch or about(case, LARGEST)).on(case)
    # One size is no curve.
    yield from (replace(score, step=None) for score in _correlations(removing, [fraction], subsets))


@metric(
    family="faithfulness",
    direction="higher",
    headline="mean_pearson",
    chance=0.0,
    cite="ancona2018towards",
    question="Does the map predict what subsets of each size cost?",
    misleads="Large subsets leave inputs unlike data; small ones lie within the noise of the logit.",
)
def sensitivity_n(
    case: Case, *, fill: str, sizes: Count = 6, subsets: Count = 50, patch: NonNegative = 0
) -> Iterator[Score]:
    r"""Sensitivity-n (`ancona2018towards`): correlation over subsets of $n$ units, for $n$ from 1 to 80 % of them.

    A map has the property for $n$ if $\sum_{i \in S} a_i = f_t(x) - f_t(x_{S \leftarrow fill})$ for every $S$ with
    $|S| = n$; how nearly it has is `pearson` (and `spearman`) over random subsets, step the fraction removed, at
    sizes that grow by an equal factor. `mean_pearson` is the mean over sizes: 1 for exact attributions of a linear
    model, 0 in expectation for a random map. Methods differ in where they are good: occlusion at small $n$, gradients
    that saturate nowhere. Undefined where the map is not finite, or where it, or what subsets cost, does not
    differ between subsets; `mean_pearson`, where that is so at every size.

    Args:
        case: what to test.
        fill: what stands in the place of what is removed; see `harness.metrics.perturbation.Removal`.
        sizes: how many, fewer where they coincide.
        subsets: how many random subsets; the same orders serve all sizes and methods.
        patch: side of the square patches that are removed together; 0 makes about 1,024 of them, or fewer.
    """
    removing = Removal(fill, patch or about(case, LARGEST)).on(case)
    last = max(0.8 * removing.nominal, 1)
    numbers = sorted({round(last ** (index / max(sizes - 1, 1))) for index in range(sizes)})
    scores = list(_correlations(removing, [number / removing.nominal for number in numbers], subsets))
    yield from scores
    points = torch.stack([score.values for score in scores if score.measure == "pearson"])
    known = ~points.isnan()
    mean = points.nan_to_num(0).sum(0) / known.sum(0)
    yield score_of("mean_pearson", mean, first_reason({"undefined at every size": ~known.any(0)}))


def _correlations(removing: Removing, fractions: list[float], subsets: int) -> Iterator[Score]:
    relevance, broken = relevance_of(removing.case)
    sums, ranks = removing.sums(relevance), subset_ranks(removing, subsets)
    for fraction in fractions:
        wanted = (fraction * removing.counts).round().long()
        size = wanted.clamp(min=1).minimum((removing.counts - 1).clamp(min=1))
        drops = subset_drops(removing, ranks, size, fraction)["logit"]
        said = subset_sums(sums, ranks < size[:, None, None])
        undefined = first_reason(broken, same_sums(said, "subset"), same_drops(removing, drops, "subset"))
        for measure, correlation in CORRELATIONS.items():
            yield score_of(measure, correlation(said, drops), undefined, step=fraction)
