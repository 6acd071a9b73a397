"""Comprehensiveness and sufficiency: what is lost without the most relevant part, and what with nothing but it?"""

from collections.abc import Iterator

from harness.case import Case
from harness.metrics.curves import curves, score_of
from harness.metrics.perturbation import Order, Removal, order_of
from harness.metrics.road import Fractions
from harness.registry import metric
from harness.types import Count, Score

BINS = (0.01, 0.05, 0.1, 0.2, 0.5)


@metric(
    family="faithfulness",
    direction="higher",
    headline="comprehensiveness_beyond_random",
    chance=0.0,
    version=2,
    cite="deyoung2020eraser",
    question="What is lost without the most relevant part?",
    misleads="As deletion; probabilities that are nearly 1 hide small losses.",
)
def comprehensiveness(case: Case, *, fill: str, fractions: Fractions = BINS, patch: Count = 1) -> Iterator[Score]:
    r"""Comprehensiveness (`deyoung2020eraser`): mean over $k$ of $p_t(x) - p_t(x \setminus top_k)$.

    At each fraction (step), and `comprehensiveness`, their mean, in [-1, 1], for the most relevant units and for random
    ones (mode `random`); `comprehensiveness_beyond_random` is the difference, 0 in expectation for a random map.
    Undefined where a map does not differ between units or is not finite, except for the random order.

    Of few units, a fraction is the nearest number of them that is neither none nor all: what removes nothing costs
    nothing, whatever the map.

    Args:
        case: what to test.
        fill: what stands in the place of what is removed; see `harness.metrics.perturbation.Removal`.
        fractions: k, of the units.
        patch: side of the square patches that are removed together; 1: single pixels.

    Raises:
        NotApplicableError: patches of a table, whose features have no neighbours.
    """
    yield from _losses(case, Removal(fill, patch), sorted(set(fractions)), "most_first", "comprehensiveness", 1)


@metric(
    family="faithfulness",
    direction="higher",
    headline="sufficiency_below_random",
    chance=0.0,
    version=2,
    cite="deyoung2020eraser",
    question="What is lost with nothing but the most relevant part?",
    misleads="As insertion; most of the input is not like data.",
)
def sufficiency(case: Case, *, fill: str, fractions: Fractions = BINS, patch: Count = 1) -> Iterator[Score]:
    r"""Sufficiency (`deyoung2020eraser`): mean over $k$ of $p_t(x) - p_t(top_k)$, all but the most relevant removed.

    At each fraction (step: of what is removed), and `sufficiency`, their mean, in [-1, 1], for keeping the most
    relevant (mode `least_first`: what goes first) and for keeping random units (mode `random`);
    `sufficiency_below_random` is the difference, 0 in expectation for a random map. Undefined where a map does not
    differ between units or is not finite, except for the random order.

    Of few units, a fraction is the nearest number of them that is neither none nor all, as in `comprehensiveness`.

    Args:
        case: what to test.
        fill: what stands in the place of what is removed; see `harness.metrics.perturbation.Removal`.
        fractions: k, of the units that are kept.
        patch: side of the square patches that are kept together; 1: single pixels.

    Raises:
        NotApplicableError: patches of a table, whose features have no neighbours.
    """
    removed = sorted({1 - fraction for fraction in fractions})
    yield from _losses(case, Removal(fill, patch), removed, "least_first", "sufficiency", -1)


def _losses(case: Case, removal: Removal, removed: list[float], order: Order, name: str, sign: int) -> Iterator[Score]:
    removing = removal.on(case)
    relevance, undefined = order_of(removing)
    units = removing.nominal
    numbers = [min(max(round(fraction * units), 1), max(units - 1, 1)) for fraction in removed]
    found = curves(removing, relevance, [number / units for number in (0, *numbers)], (order, "random"))
    means = {}
    for each, curve in found.items():
        reasons = {} if each == "random" else undefined
        probability = curve.outputs["probability"]
        losses = probability[:, :1] - probability[:, 1:]
        for index, step in enumerate(removed):
            yield score_of(f"{name}_at_fraction", losses[:, index], reasons, mode=each, step=step)
        means[each] = losses.mean(1)
        yield score_of(name, means[each], reasons, mode=each)
    beyond = f"{name}_beyond_random" if sign > 0 else f"{name}_below_random"
    yield score_of(beyond, sign * (means[order] - means["random"]), undefined)
