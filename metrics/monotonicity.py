"""Monotonicity, by both of its definitions: along an insertion, and as a correlation."""

from collections.abc import Iterator

import torch

from harness.case import Case
from harness.metrics.curves import curve_scores, curves, score_of, steps_of
from harness.metrics.perturbation import PATCHES, Outputs, Removal, about, order_of, relevance_of, rounding
from harness.metrics.preprocessing import first_reason
from harness.metrics.similarity import spearman
from harness.metrics.subsets import drops_of, one, same_drops, same_sums
from harness.registry import metric
from harness.types import Count, NonNegative, Score


@metric(
    family="faithfulness",
    direction="higher",
    headline="rising_beyond_random",
    chance=0.0,
    cite="arya2019one",
    question="Does the output never fall while units are inserted in increasing absolute relevance?",
    misleads="Evidence against counts like evidence for; beyond some tens of steps no map is `monotonic`.",
)
def monotonicity(case: Case, *, fill: str, steps: Count = 32, patch: Count = 1) -> Iterator[Score]:
    r"""Monotonicity (`arya2019one`): does the output never fall while units are inserted in increasing $|a_i|$?

    From the fill to the sample, by the mean absolute relevance over units. `monotonic` is 1 if the logit never falls
    from one step to the next, else 0, as in the source, and says little beyond some tens of steps; `rising_share` is
    the share of the steps in which it does not fall, in [0, 1], and that of the random order stands beside it (mode
    `random`); `rising_beyond_random` is the difference, 0 in expectation for a random map. What falls by no more than
    rounding does not fall. Undefined where the absolute map does not differ between units or is not finite, except for
    the random order.

    Args:
        case: what to test.
        fill: into what units are inserted; see `harness.metrics.perturbation.Removal`.
        steps: in how many; no more than there are units.
        patch: side of the square patches that are inserted together; 1: single pixels.

    Raises:
        NotApplicableError: patches of a table, whose features have no neighbours.
    """
    removing = Removal(fill, patch).on(case)
    relevance, undefined = order_of(removing, "absolute")
    fractions = steps_of(steps, removing.nominal)
    # What is inserted last is removed first.
    found = curves(removing, relevance, fractions, ("most_first", "random"))
    yield from curve_scores(found, fractions, undefined, "absolute")
    shares = {}
    for order, curve in found.items():
        logit = curve.outputs["logit"]
        level = rounding(case, logit.abs().amax(1, keepdim=True))
        rises = (-logit.diff(dim=1) >= -level).double().masked_fill(level.isnan(), torch.nan)
        reasons = {} if order == "random" else undefined
        for measure, values in (("monotonic", rises.amin(1)), ("rising_share", rises.mean(1))):
            yield score_of(measure, values, reasons, "absolute", order)
        shares[order] = rises.mean(1)
    yield score_of("rising_beyond_random", shares["most_first"] - shares["random"], undefined, "absolute")


@metric(
    family="faithfulness",
    direction="higher",
    headline="spearman",
    version=2,
    chance=0.0,
    cite="nguyen2020quantitative",
    question="Does the size of relevance rank units by how much they matter?",
    misleads="Blind to signs by design.",
)
def monotonicity_correlation(
    case: Case, *, fill: str = "noise", imputations: Count = 10, patch: NonNegative = 0
) -> Iterator[Score]:
    r"""Monotonicity by correlation (`nguyen2020quantitative`): $|a_i|$ and $E (f_t(x) - f_t(x_{i \sim U}))^2$.

    Spearman over units, with the mean over draws of a uniform value for the whole unit's positions; the source
    divides by $f_t(x)^2$, which changes no order. 1 if the map ranks units by how much they matter, either way; 0 in
    expectation for a random map. Blind to signs by design. Undefined where the map is not finite, or where its size, or
    what units cost, does not differ between units.

    Args:
        case: what to test.
        fill: what stands in the place of a unit; one that is not random is a single draw.
        imputations: over how many draws the square is averaged.
        patch: side of the square patches; 0 makes about 49 of them, single features of a table.
    """
    removing = Removal(fill, patch or about(case, PATCHES), imputations=imputations).on(case)
    relevance, broken = relevance_of(case, "absolute")

    def alone() -> Outputs:
        each_draw = removing.each_draw(removing.sizes.shape[1], one(removing))
        squares = [drops_of(removing, left)["logit"] ** 2 for left in each_draw]
        return {"logit": torch.stack(squares).mean(0)}

    effect = removing.once("squares of each unit alone", alone)["logit"]
    means = removing.means(relevance)
    undefined = first_reason(broken, same_sums(means, "unit"), same_drops(removing, effect.sqrt(), "unit"))
    yield score_of("spearman", spearman(means, effect), undefined, "absolute")
