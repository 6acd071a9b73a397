"""Pixel flipping: does removing what the map calls relevant change the output more than removing the rest?"""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from harness.case import Case
from harness.metrics.perturbation import grid, outputs, removal_ranks, removed, unit_sums
from harness.metrics.preprocessing import degenerate, first_reason, reduce_channels, undefined_as_nan
from harness.registry import metric
from harness.types import Count, NotApplicableError, Score

ORDERS: tuple[Literal["most_first", "least_first", "random"], ...] = ("most_first", "least_first", "random")


@metric(family="faithfulness", direction="higher", headline="symmetric_relevance_gain", version=2)
def pixel_flipping(case: Case, *, fill: str, steps: Count = 32, patch: Count = 1) -> Iterator[Score]:
    r"""Pixel flipping (`bach2015pixel`) and its symmetric relevance gain (`bluecher2024decoupling`).

    Pixels, all channels together, are replaced by `fill` in the order of the signed map (`most_first`,
    `least_first`) and in a random order that is the same for all methods. The whole curve is recorded from the
    untouched sample (step 0) to nothing left (step 1): `logit`, `probability`, `log_odds`, `correct`.

    `symmetric_relevance_gain` is $\int g_{least} - \int g_{most}$ of the probability curves by the trapezoidal
    rule over the fraction removed, in [-1, 1]; a random map has expectation 0 on every model.
    `symmetric_relevance_gain_logit` is the same of the logit curves. Both undefined for a constant map, which
    has no order. `area` is that under the probability curve of each order.

    Args:
        case: what to test.
        fill: what stands in the place of a removed pixel, named in pixel space.
        steps: equal fractions in which everything is removed.
        patch: side of the square patches that are removed together, each as relevant as its mean; 1: single pixels.

    Raises:
        NotApplicableError: patches of a table, whose features have no neighbours.
    """
    if patch > 1 and case.x.ndim == 2:
        raise NotApplicableError("features of a table have no neighbours to make patches of")
    relevance = reduce_channels(case.maps, "sum")
    units = grid(tuple(relevance.shape[1:]), patch, relevance.device)
    broken = degenerate(relevance)
    undefined = first_reason(broken)
    flat = relevance.nan_to_num(0, 0, 0)
    # Single pixels as they are: sums of one value each would only be slower.
    flat = flat.flatten(1) if patch == 1 else unit_sums(flat, units) / units.flatten().bincount()
    ties = case.draws("pixel_flipping", "ties")
    size = flat.shape[1]
    positions = {
        "most_first": removal_ranks(flat, ties),
        "least_first": removal_ranks(-flat, ties),
        "random": case.draws("pixel_flipping", "random order").permutation(size),
    }
    fills = case.fill(fill)
    fractions = [step / steps for step in range(steps + 1)]
    start, end = (outputs(case.logits(inputs), case.target) for inputs in (case.x, fills))

    areas = {}
    for mode in ORDERS:
        curve = [start]
        for fraction in fractions[1:-1]:
            where = (positions[mode] < round(fraction * size))[:, units.flatten()].view_as(relevance)
            curve.append(outputs(case.logits(removed(case.x, fills, where)), case.target))
        curve.append(end)
        reasons = {} if mode == "random" else undefined
        for fraction, point in zip(fractions, curve, strict=True):
            for measure, values in point.items():
                yield Score(
                    measure,
                    undefined_as_nan(values, reasons),
                    reasons,
                    channels="sum",
                    sign="signed",
                    mode=mode,
                    step=fraction,
                )
        areas[mode] = {measure: _area(curve, measure) for measure in ("probability", "logit")}
        area = undefined_as_nan(areas[mode]["probability"], reasons)
        yield Score("area", area, reasons, channels="sum", sign="signed", mode=mode)

    for name, measure in (
        ("symmetric_relevance_gain", "probability"),
        ("symmetric_relevance_gain_logit", "logit"),
    ):
        gain = areas["least_first"][measure] - areas["most_first"][measure]
        yield Score(name, undefined_as_nan(gain, undefined), undefined, channels="sum", sign="signed")


def _area(curve: list[dict[str, Float[Tensor, " n"]]], measure: str) -> Float[Tensor, " n"]:
    """The area under a curve at equal steps from 0 to 1, by the trapezoidal rule."""
    return torch.trapezoid(torch.stack([point[measure] for point in curve]), dx=1 / (len(curve) - 1), dim=0)
