"""Does the map stay when the input hardly moves and the prediction stays? Descriptors: a constant map is the best.

All three look at the same neighbours of each sample, without those of which another class is predicted. Both maps are
of the frozen target and made with the same noise of the method, so that noise that ignores its input counts as robust.
A maximum over draws bounds the one over the whole box from below, and grows with their number.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from harness.case import Case
from harness.metrics.neighbours import Neighbourhood, Radius, neighbourhood
from harness.metrics.perturbation import rounding
from harness.metrics.preprocessing import first_reason, undefined_as_nan
from harness.registry import metric
from harness.types import Count, Score

CONSTANT = "A constant map is perfectly robust: read it beside faithfulness"


@metric(
    family="robustness",
    direction=None,
    headline="max_sensitivity",
    summary_statistic="median",
    cite="yeh2019infidelity",
    question="How much of the map changes when the input hardly does?",
    misleads=f"{CONSTANT}. Where the output is steep, a faithful map has to change.",
)
def max_sensitivity(case: Case, *, neighbours: Count = 10, radius: Radius = 0.02) -> Iterator[Score]:
    r"""Max-sensitivity (`yeh2019infidelity`): $\max_{x'} \|A(x') - A(x)\|_2 / \|A(x)\|_2$ over neighbours of $x$.

    Over whole raw maps, $x'$ uniform in a box. Yields

    - `max_sensitivity`: in [0, inf), 0 for a map that does not change, about $\sqrt 2$ for unrelated ones of a size;
    - `average_sensitivity`: the mean in place of the maximum (`bhatt2020evaluating`);
    - `unscaled_max_sensitivity`, `unscaled_average_sensitivity`: without the division, as in the source, in units of
      the map;
    - `prediction_unchanged`: the share of neighbours of which the same class is predicted. Only those count.

    Both maps are made with the same noise, so that a stochastic method has none of its own in this. Undefined where
    no neighbour counts, a map is not finite, or (for what is divided by its norm) the map of $x$ is zero everywhere.

    Args:
        case: what to describe.
        neighbours: how many of each sample.
        radius: half the side of the box, as a fraction of the valid range.
    """
    around = neighbourhood(case, neighbours, radius)
    yield _prediction_unchanged(around)
    undefined, empty = around.undefined, _without_zero_maps(around)
    relative, absolute = around.maps.relative, around.maps.absolute
    yield _score("max_sensitivity", _largest(relative, around.counted), empty)
    yield _score("average_sensitivity", _mean(relative, around.counted), empty)
    yield _score("unscaled_max_sensitivity", _largest(absolute, around.counted), undefined)
    yield _score("unscaled_average_sensitivity", _mean(absolute, around.counted), undefined)


@metric(
    family="robustness",
    direction=None,
    headline="local_lipschitz",
    summary_statistic="median",
    cite="alvarezmelis2018robustness",
    question="How steep is the map around the sample?",
    misleads=f"{CONSTANT}. It has the unit of the map over that of the input: no comparison between scales.",
)
def local_lipschitz(case: Case, *, neighbours: Count = 10, radius: Radius = 0.02) -> Iterator[Score]:
    r"""Local Lipschitz estimate (`alvarezmelis2018robustness`): $\max_{x'} \|A(x') - A(x)\|_2 / \|x' - x\|_2$.

    Neighbours, noise, `prediction_unchanged` and what is undefined as in `max_sensitivity`. A map of zeros that stays
    one has 0.

    Args:
        case: what to describe.
        neighbours: how many of each sample.
        radius: half the side of the box, as a fraction of the valid range.
    """
    around = neighbourhood(case, neighbours, radius)
    yield _prediction_unchanged(around)
    slopes = around.maps.absolute / around.inputs.absolute
    yield _score("local_lipschitz", _largest(slopes, around.counted), around.undefined)


@metric(
    family="robustness",
    direction=None,
    headline="relative_input_stability",
    summary_statistic="median",
    cite="agarwal2022rethinking",
    question="Does the map change by a larger part than the input and the output do?",
    misleads=f"{CONSTANT}. Large values mean unstable, whatever the name says.",
)
def relative_stability(case: Case, *, neighbours: Count = 10, radius: Radius = 0.02) -> Iterator[Score]:
    r"""Relative stability (`agarwal2022rethinking`): the relative change of the map over that of input or output.

    With $\rho(v, v') = \|v' - v\|_2 / \|v\|_2$ of whole raw maps $A$, inputs in the model's own units and all logits
    $h$. Yields

    - `relative_input_stability`: $\max_{x'} \rho(A(x), A(x')) / \rho(x, x')$;
    - `relative_output_stability`: $\max_{x'} \rho(A(x), A(x')) / \rho(h(x), h(x'))$.

    Both are 0 for a map that does not change and 1 for one that is proportional to what it is compared with. The source
    divides element by element before it takes norms, $\|(A(x') - A(x)) / A(x)\|$. That has no value where the map or
    the input is 0, and black pixels and rectified maps are 0 nearly everywhere; with a small constant in its place the
    number is that of these pixels, over the constant. So norms are divided here. The source takes the change of the
    output as it is, in units of a logit; here it is relative as well, so that the scale of logits does not count.

    Neighbours, noise, `prediction_unchanged` and what is undefined as in `max_sensitivity`; and where all that is
    divided by is 0. Neighbours whose outputs differ by no more than rounding have no quotient of the second kind.

    Args:
        case: what to describe.
        neighbours: how many of each sample.
        radius: half the side of the box, as a fraction of the valid range.
    """
    around = neighbourhood(case, neighbours, radius)
    yield _prediction_unchanged(around)
    empty, maps = _without_zero_maps(around), around.maps.relative

    black = first_reason(empty, {"the input is zero everywhere": around.inputs.size == 0})
    yield _score("relative_input_stability", _largest(maps / around.inputs.relative, around.counted), black)

    outputs = around.outputs
    changed = around.counted & (outputs.absolute > rounding(case, outputs.size)[:, None])
    silent = first_reason(
        empty,
        {"the output is zero": outputs.size == 0},
        {"not finite (output)": (around.counted & ~outputs.relative.isfinite()).any(1)},
        {"no neighbour changes the output": ~changed.any(1)},
    )
    yield _score("relative_output_stability", _largest(maps / outputs.relative, changed), silent)


def _prediction_unchanged(around: Neighbourhood) -> Score:
    return Score("prediction_unchanged", around.same_prediction.double().mean(1))


def _without_zero_maps(around: Neighbourhood) -> dict[str, Bool[Tensor, " n"]]:
    return first_reason(around.undefined, {"the map is zero everywhere": around.maps.size == 0})


def _largest(values: Float[Tensor, "n neighbours"], counted: Bool[Tensor, "n neighbours"]) -> Float[Tensor, " n"]:
    return values.masked_fill(~counted, -torch.inf).amax(1)


def _mean(values: Float[Tensor, "n neighbours"], counted: Bool[Tensor, "n neighbours"]) -> Float[Tensor, " n"]:
    return values.masked_fill(~counted, 0).sum(1) / counted.sum(1)


def _score(measure: str, values: Float[Tensor, " n"], undefined: dict[str, Bool[Tensor, " n"]]) -> Score:
    return Score(measure, undefined_as_nan(values, undefined), undefined)
