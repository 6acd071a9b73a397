"""Region perturbation: how far does the output fall while the most relevant regions are replaced, one after another?"""

from collections.abc import Iterator

import torch

from harness.case import Case
from harness.metrics.curves import curve_scores, curves, score_of
from harness.metrics.perturbation import Removal, order_of
from harness.registry import metric
from harness.types import Count, Score


@metric(
    family="faithfulness",
    direction="higher",
    headline="area_between_perturbation_curves",
    chance=0.0,
    cite="samek2017evaluating",
    question="How far does the output fall while the most relevant regions are replaced by noise?",
    misleads="Noise is what the network never saw; one fill and one size of regions.",
)
def region_perturbation(
    case: Case, *, fill: str = "noise", patch: Count = 9, regions: Count = 100, imputations: Count = 1
) -> Iterator[Score]:
    r"""Region perturbation (`samek2017evaluating`): $\mathrm{AOPC} = \frac{1}{L+1} \sum_{k=0}^{L} f_t(x) - f_t(x^k)$.

    $x^k$ is the sample without its first $k$ patches, the most relevant (`most_first`), the least relevant or random
    ones first. Yields the curves, `area_over_perturbation_curve` of each order, in probability, and
    `area_between_perturbation_curves`, that of the most relevant first less that of the least relevant first, in
    [-1, 1], 0 in expectation for a random map; `..._logit` are the same of the logit.

    Undefined where a map does not differ between patches or is not finite, except for the random order.

    Unlike in the source, patches lie on a grid from the first corner on, and are as relevant as their mean. It took
    ten draws of the noise.

    Args:
        case: what to test.
        fill: what stands in the place of a patch; see `harness.metrics.perturbation.Removal`.
        patch: side of the square patches.
        regions: L; all of them, if a sample has fewer.
        imputations: over how many draws of a random fill outputs are averaged.

    Raises:
        NotApplicableError: a table, whose features have no neighbours.
    """
    removing = Removal(fill, patch, imputations=imputations).on(case)
    relevance, undefined = order_of(removing)
    units = removing.nominal
    fractions = [count / units for count in range(min(regions, units) + 1)]
    found = curves(removing, relevance, fractions)
    yield from curve_scores(found, fractions, undefined)
    for measure, suffix in (("probability", ""), ("logit", "_logit")):
        fallen = {
            order: (curve.outputs[measure][:, :1] - curve.outputs[measure]).mean(1) for order, curve in found.items()
        }
        for order, values in fallen.items():
            reasons = {} if order == "random" else undefined
            yield score_of(f"area_over_perturbation_curve{suffix}", values, reasons, mode=order)
        between = torch.sub(fallen["most_first"], fallen["least_first"])
        yield score_of(f"area_between_perturbation_curves{suffix}", between, undefined)
