"""Occlusion faithfulness: do the patches that the map calls relevant cost the most when they are occluded?"""

from collections.abc import Iterator

from harness.case import Case
from harness.metrics.curves import score_of
from harness.metrics.perturbation import PATCHES, Removal, about, relevance_of
from harness.metrics.preprocessing import first_reason
from harness.metrics.similarity import pearson, spearman
from harness.metrics.subsets import same_drops, same_sums, single_drops
from harness.registry import metric
from harness.types import NonNegative, Score


@metric(
    family="faithfulness",
    direction="higher",
    headline="pearson",
    chance=0.0,
    version=2,
    question="Does the map know which patches cost the most?",
    misleads="Occlusion with the same patch and fill wins by construction.",
)
def occlusion_faithfulness(case: Case, *, fill: str, patch: NonNegative = 0) -> Iterator[Score]:
    r"""Correlation over patches $P$ of $\sum_{i \in P} a_i$ and $f_t(x) - f_t(x_{P \leftarrow fill})$, a sample each.

    All channels of a patch are occluded together. Yields `pearson` and `spearman`, both 1 for exact
    attributions of a linear model. Occlusion with the same window and fill shares the operator with this metric and
    scores high by construction. Undefined where the map is not finite or does not differ between
    patches, or no drop does.

    Args:
        case: what to test.
        fill: what stands in the place of a patch; see `harness.metrics.perturbation.Removal`.
        patch: side of the square patches; 0 makes about 49 of them, whatever the size of the input.
    """
    removing = Removal(fill, patch or about(case, PATCHES)).on(case)
    relevance, broken = relevance_of(case)
    drops, sums = single_drops(removing)["logit"], removing.sums(relevance)
    undefined = first_reason(
        broken,
        same_sums(sums, "patch"),
        same_drops(removing, drops, "patch"),
    )
    for measure, correlation in (("pearson", pearson), ("spearman", spearman)):
        yield score_of(measure, correlation(sums, drops), undefined)
