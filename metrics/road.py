"""Remove and debias: is the prediction lost with the most relevant pixels when those that are left fill the gaps?"""

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field

from harness.case import Case
from harness.metrics.curves import curve_scores, curves, score_of
from harness.metrics.perturbation import Removal, order_of
from harness.registry import metric
from harness.types import Count, Score

Fraction = Annotated[float, Field(gt=0, lt=1)]
"""An option that is a fraction, above 0 and below 1: something, and not everything."""

Fractions = Annotated[Sequence[Fraction], Field(min_length=1)]
"""An option that is a list of fractions."""

REMOVED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)


@metric(
    family="faithfulness",
    direction="higher",
    headline="accuracy_gap",
    chance=0.0,
    cite="rong2022consistent",
    question="Is the prediction lost with the most relevant pixels when the rest fills the gaps?",
    misleads="Large holes are filled by flat colour, which a network sees; accuracy is coarse with few samples.",
)
def road(
    case: Case, *, fill: str = "noisy_linear", fractions: Fractions = REMOVED, patch: Count = 1
) -> Iterator[Score]:
    r"""ROAD (`rong2022consistent`): accuracy after the most, or least, relevant pixels were imputed from the rest.

    `correct` at each fraction for the most relevant, least relevant and random pixels first; a pixel is removed with
    all its channels. `accuracy_gap` is the mean over the fractions of `correct`, least relevant first, less that of
    most relevant first, in [-1, 1], and `confidence_gap` the same of the probability: 0 in expectation for a random
    map. Undefined where a map does not differ between units or is not finite, except for the random order.

    Accuracy is agreement with the class that is explained. Missing pixels solve a linear system together, to which
    normal noise of 1 % of the valid range is added, so that the shape of what was removed is hard to see.

    Args:
        case: what to test.
        fill: what stands in the place of a removed pixel; see `harness.metrics.perturbation.Removal`.
        fractions: of the pixels that are removed.
        patch: side of the square patches that are removed together; 1: single pixels.

    Raises:
        NotApplicableError: patches of a table, whose features have no neighbours.
    """
    removing = Removal(fill, patch).on(case)
    relevance, undefined = order_of(removing)
    steps = (0.0, *sorted(set(fractions)))
    found = curves(removing, relevance, steps)
    yield from curve_scores(found, steps, undefined)
    for name, measure in (("accuracy_gap", "correct"), ("confidence_gap", "probability")):
        most, least = (found[order].outputs[measure][:, 1:].mean(1) for order in ("most_first", "least_first"))
        yield score_of(name, least - most, undefined)
