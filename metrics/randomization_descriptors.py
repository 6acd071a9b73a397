"""Two descendants of the parameter randomization test, as descriptors: neither says that a map is good."""

from collections.abc import Iterator
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from harness.case import Case
from harness.metrics.cascade import BatchNormPolicy, Randomization, cascade, check_parameters, full
from harness.metrics.comparison import compare, ready
from harness.metrics.preprocessing import degenerate, first_reason, reduce_channels, undefined_as_nan
from harness.registry import metric
from harness.types import Count, Score


@metric(
    family="randomization",
    direction=None,
    headline="entropy_rise",
    cite="hedstrom2024fresh",
    question="Does the map become more complex when the network is randomized?",
    misleads="Complexity of the map is not its dependence on weights: it ranks, and judges nothing.",
)
def efficient_parameter_randomization(
    case: Case,
    *,
    full_draws: Count = 3,
    bins: Annotated[int, Field(ge=2)] = 100,
    batch_norm: BatchNormPolicy = "recalibrate",
) -> Iterator[Score]:
    r"""Efficient MPRT: the relative rise of a map's complexity, $(H(A_r) - H(A)) / H(A)$, when all is randomized.

    $H$ is the entropy of the histogram of the map, channels summed, with bins of equal width over the map's own range
    (`hedstrom2024fresh`). It sees how values are distributed and not where they are: a method that permutes pixels
    goes unnoticed, one large pixel makes $H$ nearly zero and the ratio unbounded, and a map of high entropy cannot
    score. For noise it is 0 up to chance. `entropy` is $H$ itself in nats, of the trained network's map.

    Undefined where a map is constant or not finite.

    Args:
        case: what to describe.
        full_draws: twins.
        bins: of the histogram, at least 2.
        batch_norm: as in `parameter_randomization`.

    Raises:
        NotApplicableError: the model has no parameters.
    """
    check_parameters(case)
    ours, undefined = _entropy(case.maps, bins, "trained network")
    yield Score("entropy", undefined_as_nan(ours, undefined), undefined, channels="sum", sign="signed")
    for draw in range(full_draws):
        stage = full(case, draw, Randomization(batch_norm))
        maps = case.explain(stage.model, call=(stage.mode, draw, stage.index))
        theirs, broken = _entropy(maps, bins, "compared network")
        reasons = first_reason(undefined, broken)
        values = undefined_as_nan((theirs - ours) / ours, reasons)
        where: dict[str, Any] = {"mode": stage.mode, "stage": stage.name, "stage_index": stage.index, "draw": draw}
        yield Score("entropy_rise", values, reasons, channels="sum", sign="signed", **where)


def histogram_entropy(maps: Float[Tensor, "n *axes"], bins: int) -> Float[Tensor, " n"]:
    """The entropy of each map's histogram with bins of equal width over its own range, in nats, from 0 to log(bins)."""
    flat = maps.flatten(1).double()
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    place = ((flat - low) / (high - low) * bins).long().clamp(0, bins - 1)
    counts = torch.zeros(len(flat), bins, dtype=torch.int64, device=flat.device)
    counts.scatter_add_(1, place, torch.ones_like(place))
    return torch.special.entr(counts.double() / flat.shape[1]).sum(1)


def _entropy(
    maps: Float[Tensor, "n ..."], bins: int, whose: str
) -> tuple[Float[Tensor, " n"], dict[str, Bool[Tensor, " n"]]]:
    summed = reduce_channels(maps, "sum")
    undefined = first_reason(degenerate(summed, whose))
    return histogram_entropy(summed.nan_to_num(0, 0, 0), bins), undefined


@metric(
    family="randomization",
    direction=None,
    headline="spearman",
    cite="hedstrom2024fresh",
    question="Does the map, freed of its noise, depend on what the network has learnt?",
    misleads="Smoothing makes any two maps more alike: compare with the shifted map.",
)
def smooth_parameter_randomization(
    case: Case,
    *,
    samples: Count = 50,
    noise: Annotated[float, Field(ge=0)] = 0.1,
    cascade_draws: Count = 1,
    batch_norm: BatchNormPolicy = "recalibrate",
) -> Iterator[Score]:
    r"""Smooth MPRT: the randomization test of maps averaged over noisy inputs, from the input up (`hedstrom2024fresh`).

    $\bar A(x) = \frac{1}{N} \sum_i A(x + \epsilon_i)$, $\epsilon_i \sim N(0, (\sigma (x_{max} - x_{min}))^2)$, the same
    $\epsilon_i$ at every stage. So it tests another method than the one that is named, its smoothed version, at N
    times the cost. Undefined where a smoothed map is constant or not finite.

    Args:
        case: what to describe.
        samples: N.
        noise: sigma, as a fraction of the range of each input.
        cascade_draws: twins, each through a bottom-up cascade; its last stage is `all`.
        batch_norm: as in `parameter_randomization`.

    Raises:
        NotApplicableError: the model has no parameters.
    """
    check_parameters(case)
    kind = case.space.kind
    ours = ready(_smoothed(case, case.model, samples, noise, ()), "trained network", ("spearman",), kind=kind)
    for draw in range(cascade_draws):
        for stage in cascade(case, "bottom_up", draw, Randomization(batch_norm)):
            smoothed = _smoothed(case, stage.model, samples, noise, (stage.mode, draw, stage.index))
            theirs = ready(smoothed, "compared network", ("spearman",), kind=kind)
            where: dict[str, Any] = {"stage": stage.name, "stage_index": stage.index, "draw": draw}
            yield from compare(ours, theirs, mode=stage.mode, **where)
        yield from compare(ours, theirs, mode="full", **{**where, "stage": "all"})


def _smoothed(
    case: Case, model: nn.Module, samples: int, noise: float, call: tuple[object, ...]
) -> Float[Tensor, "n ..."]:
    flat = case.x.flatten(1)
    scale = (flat.amax(1) - flat.amin(1)).view(-1, *(1,) * (case.x.ndim - 1)) * noise
    normal = case.draws("smooth_parameter_randomization")
    total: Tensor | None = None
    for index in range(samples):
        x = case.x + scale * normal.normal(*case.x.shape[1:], draw=index).to(case.x.dtype)
        maps = case.explain(model, x, call=("smooth", *call, index))
        total = maps if total is None else total + maps
    assert total is not None
    return total / samples
