"""Part importance: do the parts that the map calls relevant cost the most when the sample is drawn without them?"""

from collections.abc import Iterator

from harness.case import Case
from harness.metrics.curves import score_of
from harness.metrics.perturbation import Removal, outputs_of, relevance_of
from harness.metrics.preprocessing import first_reason
from harness.metrics.similarity import pearson, spearman
from harness.metrics.subsets import drops_of, same_drops, same_sums
from harness.registry import metric
from harness.types import Score


@metric(
    family="localization",
    direction="higher",
    headline="spearman",
    needs=("parts",),
    chance=0.0,
    cite="hesse2023funnybirds",
    question="Does the map know which parts cost the most?",
    misleads="Parts that say the same cost nothing one by one; a few parts make a coarse correlation.",
)
def part_importance(case: Case) -> Iterator[Score]:
    r"""Correlation over the parts $P$ of a sample of $\sum_{i \in P} a_i$ and $f_t(x) - f_t(x_{\setminus P})$.

    $x_{\setminus P}$ is the sample drawn without the part (`hesse2023funnybirds`, single deletion): what was behind it
    is seen, nothing is filled in, and the network has been trained on such samples. Channels are summed, signs kept.
    Yields `spearman` and `pearson`, both 0 on average for noise of mean zero, and 1 where the order of the parts is
    right, or their shares. Undefined where the map is not finite or does not differ between parts, and where no drop
    does.

    Args:
        case: what to test.
    """
    assert case.parts is not None  # for the metric says that it needs them
    where, without = case.parts
    relevance, broken = relevance_of(case)
    sums = (where.double() * relevance[:, None].double()).flatten(2).sum(2)
    known = case.shared_here("parts")
    if "outputs" not in known:
        known["outputs"] = outputs_of(case, without.shape[1], lambda rows, part: without[rows, part])
    removing = Removal("zero").on(case)
    drops = drops_of(removing, known["outputs"])["logit"]
    undefined = first_reason(broken, same_sums(sums, "part"), same_drops(removing, drops, "part"))
    for measure, correlation in (("spearman", spearman), ("pearson", pearson)):
        yield score_of(measure, correlation(sums, drops), undefined)
