"""Deletion and insertion: how soon does the output fall, or rise, when the most relevant goes, or comes, first?"""

from collections.abc import Iterator

from harness.case import Case
from harness.metrics.curves import curve_scores, curves, score_of, steps_of
from harness.metrics.perturbation import Order, Removal, Superpixels, order_of
from harness.registry import metric
from harness.types import Count, Score


@metric(
    family="faithfulness",
    direction="higher",
    headline="area_below_random",
    chance=0.0,
    cite="petsiuk2018rise",
    question="How soon does the output fall when the most relevant goes first?",
    misleads="Rewards maps that find adversarial pixels.",
)
def deletion(
    case: Case, *, fill: str = "mean", steps: Count = 32, patch: Count = 1, superpixels: Superpixels = 0
) -> Iterator[Score]:
    r"""Deletion (`petsiuk2018rise`): area under the probability while the most relevant units are removed first.

    `area`, mode `most_first`, in [0, 1], by the trapezoidal rule over the fraction removed; that of a random order
    beside it (mode `random`), and `area_below_random`, how far it lies below, which is 0 in expectation for a random
    map. Undefined where a map does not differ between units or is not finite, except for the random order.

    Low for maps that find adversarial pixels, too: compare units and fills. The source took 224 pixels a step.

    Args:
        case: what to test.
        fill: what stands in the place of a removed unit, zero in the units of a normalized input in the source.
        steps: in how many everything is removed.
        patch: side of the square patches that are removed together; 1: single pixels.
        superpixels: about how many superpixels are removed instead of patches; 0: patches.

    Raises:
        InputError: both patches and superpixels.
        NotApplicableError: patches of a table, whose features have no neighbours.
    """
    yield from _areas(case, Removal(fill, patch, superpixels), steps, "most_first", "area_below_random", -1)


@metric(
    family="faithfulness",
    direction="higher",
    headline="area_above_random",
    chance=0.0,
    cite="petsiuk2018rise",
    question="How soon does the output rise when the most relevant comes first?",
    misleads="Rewards blobs that cover the object, whatever decides.",
)
def insertion(
    case: Case, *, fill: str = "blur", steps: Count = 32, patch: Count = 1, superpixels: Superpixels = 0
) -> Iterator[Score]:
    r"""Insertion (`petsiuk2018rise`): area under the probability while the most relevant units are inserted first.

    Inserting the most relevant into the fill passes through the same inputs as removing the least relevant from the
    sample: `area`, mode `least_first`, in [0, 1], that of a random order, and `area_above_random`, 0 in expectation
    for a random map. Steps are fractions removed, as everywhere. Undefined where a map does not differ between units or
    is not finite, except for the random order.

    High for blobs that cover the object, whatever decides. The source blurs with a standard deviation of 5 of 224
    pixels, this a tenth of the longest side.

    Args:
        case: what to test.
        fill: into what units are inserted.
        steps: in how many everything is inserted.
        patch: side of the square patches that are inserted together; 1: single pixels.
        superpixels: about how many superpixels are inserted instead of patches; 0: patches.

    Raises:
        InputError: both patches and superpixels.
        NotApplicableError: patches of a table, whose features have no neighbours.
    """
    yield from _areas(case, Removal(fill, patch, superpixels), steps, "least_first", "area_above_random", 1)


def _areas(case: Case, removal: Removal, steps: int, order: Order, gain: str, sign: int) -> Iterator[Score]:
    removing = removal.on(case)
    relevance, undefined = order_of(removing)
    fractions = steps_of(steps, removing.nominal)
    found = curves(removing, relevance, fractions, (order, "random"))
    yield from curve_scores(found, fractions, undefined)
    area, random = (found[each].area("probability") for each in (order, "random"))
    yield score_of("area", area, undefined, mode=order)
    yield score_of("area", random, {}, mode="random")
    yield score_of(gain, sign * (area - random), undefined)
