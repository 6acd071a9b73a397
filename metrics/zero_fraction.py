"""How much of the map is exactly zero?"""

from collections.abc import Iterator

from harness.case import Case
from harness.metrics.preprocessing import degenerate, reduce_channels, undefined_as_nan
from harness.registry import metric
from harness.types import Score


@metric(
    family="complexity",
    direction=None,
    headline="zero_fraction",
    question="How much of the map is exactly zero?",
    misleads="Sparse is not faithful.",
)
def zero_fraction(case: Case) -> Iterator[Score]:
    r"""The share of positions where the map is zero in all channels, in [0, 1].

    Two maps that are zero at the same positions, a share $q$ of all, and unrelated elsewhere have a rank correlation of
    absolute values of $3q / (3q + (1 - q)^2)$: what multiplying by an input with a black background does by itself.

    Undefined where a map is not finite.
    """
    values = reduce_channels(case.maps, "abs_sum")
    broken = {reason: where for reason, where in degenerate(values).items() if "finite" in reason and where.any()}
    yield Score("zero_fraction", undefined_as_nan((values == 0).flatten(1).double().mean(1), broken), broken)
