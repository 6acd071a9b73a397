"""Faithfulness estimate: do the units that the map puts first cost the most, a few at a time?"""

from collections.abc import Iterator

import torch
from torch import Tensor

from harness.case import Case
from harness.metrics.curves import score_of
from harness.metrics.faithfulness_correlation import CORRELATIONS
from harness.metrics.perturbation import LARGEST, Removal, about, order_of
from harness.metrics.preprocessing import first_reason
from harness.metrics.subsets import drops_of, same_drops, same_sums, subset_sums
from harness.registry import metric
from harness.types import Count, NonNegative, Score


@metric(
    family="faithfulness",
    direction="higher",
    headline="pearson",
    chance=0.0,
    cite="alvarezmelis2018towards",
    question="Do the units that the map puts first cost the most, a few at a time?",
    misleads="Few groups decide the correlation; ties of sparse maps make it coarse.",
)
def faithfulness_estimate(case: Case, *, fill: str, groups: Count = 32, patch: NonNegative = 0) -> Iterator[Score]:
    r"""Faithfulness estimate (`alvarezmelis2018towards`): correlation of relevance and probability drop.

    Units are taken in the order of the map, in groups of the same number; each group is removed from the untouched
    sample, the others stay. Yields `pearson` and `spearman` over groups of $\sum_{i \in G} a_i$ and $p_t(x) -
    p_t(x_{G \leftarrow fill})$, and `pearson_logit` of the drop of the logit, which is 1 for exact attributions of a
    linear model. 0 in expectation for a random map. Undefined where the map is not finite, or where it, or what groups
    cost, does not differ between groups.

    Args:
        case: what to test.
        fill: what stands in the place of what is removed; see `harness.metrics.perturbation.Removal`.
        groups: how many; one unit each, if there are no more of them, as in the source.
        patch: side of the square patches that are removed together; 0 makes about 1,024 of them, or fewer.
    """
    removing = Removal(fill, patch or about(case, LARGEST)).on(case)
    relevance, broken = order_of(removing)
    ranks, count = removing.ranks("most_first", relevance), removing.nominal
    groups = min(groups, count)
    group = ranks * groups // count

    def gone(rows: Tensor, version: Tensor) -> Tensor:
        return group[rows] == version[:, None]

    drops = drops_of(removing, removing.outputs(groups, gone))
    numbers = torch.arange(groups, device=group.device)
    said = subset_sums(removing.sums(relevance), group[:, None] == numbers[:, None])
    for output, suffix in (("probability", ""), ("logit", "_logit")):
        undefined = first_reason(broken, same_sums(said, "group"), same_drops(removing, drops[output], "group", output))
        for measure, correlation in CORRELATIONS.items():
            yield score_of(f"{measure}{suffix}", correlation(said, drops[output]), undefined)
