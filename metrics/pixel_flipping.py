"""Pixel flipping: does removing what the map calls relevant change the output more than removing the rest?"""

from collections.abc import Iterator

from harness.case import Case
from harness.metrics.curves import Spacing, curve_scores, curves, score_of, steps_of
from harness.metrics.perturbation import Removal, Superpixels, order_of
from harness.registry import metric
from harness.types import Count, Score


@metric(
    family="faithfulness",
    direction="higher",
    headline="symmetric_relevance_gain",
    chance=0.0,
    version=3,
    cite="bach2015pixel",
    question="Does removing what the map calls relevant change the output more than removing the rest?",
    misleads="What is left is unlike all that the network has seen: compare fills and units, see the random order.",
)
def pixel_flipping(
    case: Case,
    *,
    fill: str,
    steps: Count = 32,
    spacing: Spacing = "linear",
    patch: Count = 1,
    superpixels: Superpixels = 0,
    imputations: Count = 1,
) -> Iterator[Score]:
    r"""Pixel flipping (`bach2015pixel`) and its symmetric relevance gain (`bluecher2024decoupling`).

    Units, all channels together, are replaced by `fill` in the order of the mean signed relevance over each
    (`most_first`, `least_first`) and in a random order that is the same for all methods. The whole curve is recorded
    from the untouched sample (step 0) to nothing left (step 1): `logit`, `probability`, `log_odds`, `correct`.

    `symmetric_relevance_gain` is $\int g_{least} - \int g_{most}$ of the probability curves by the trapezoidal
    rule over the fraction removed, in [-1, 1]; a random map has expectation 0 on every model.
    `symmetric_relevance_gain_logit` is the same of the logit curves. `area` is that under the probability curve of
    each order; of the random order it is the R-OMS of the fill, the confidence that the model keeps in its prediction
    when it loses the same amount at random. Undefined where a map does not differ between units, and so has no order,
    or is not finite, except for the random order.

    Args:
        case: what to test.
        fill: what stands in the place of a removed unit; see `harness.metrics.perturbation.Removal`.
        steps: in how many everything is removed; no more than there are units.
        spacing: equal fractions, or numbers of units that grow by an equal factor.
        patch: side of the square patches that are removed together; 1: single pixels.
        superpixels: about how many superpixels are removed instead of patches, or pieces of a signal; 0: patches.
        imputations: over how many draws of a random fill outputs are averaged.

    Raises:
        InputError: both patches and superpixels.
        NotApplicableError: patches of a table, whose features have no neighbours.
    """
    removing = Removal(fill, patch, superpixels, imputations).on(case)
    relevance, undefined = order_of(removing)
    fractions = steps_of(steps, removing.nominal, spacing)
    found = curves(removing, relevance, fractions)
    yield from curve_scores(found, fractions, undefined)
    for order, curve in found.items():
        yield score_of("area", curve.area("probability"), {} if order == "random" else undefined, mode=order)
    for name, measure in (
        ("symmetric_relevance_gain", "probability"),
        ("symmetric_relevance_gain_logit", "logit"),
    ):
        gain = found["least_first"].area(measure) - found["most_first"].area(measure)
        yield score_of(name, gain, undefined)
