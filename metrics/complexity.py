"""On how few positions does the map stand? Descriptors: a concise map is easier to read, and may be wrong."""

from collections.abc import Iterator
from math import log
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from harness.case import Case
from harness.metrics.preprocessing import first_reason, reduce_channels, undefined_as_nan
from harness.registry import metric
from harness.types import Score

Fraction = Annotated[float, Field(ge=0, lt=1)]


@metric(
    family="complexity",
    direction=None,
    headline="gini",
    cite="chalasani2020concise",
    question="How unequally is relevance spread over positions?",
    misleads="Sparse is not faithful.",
)
def sparseness(case: Case) -> Iterator[Score]:
    r"""Gini index (`chalasani2020concise`): $\sum_k (2k - d - 1) |a|_{(k)} / (d \sum_i |a_i|)$, $|a|_{(k)}$ ascending.

    $d$ positions, absolute values summed over channels. 0 for a map that is constant, $1 - 1/d$ for one on a single
    position. Undefined where a map is zero everywhere or not finite.
    """
    sizes, undefined = _sizes(case)
    count = sizes.shape[1]
    weights = 2 * torch.arange(1, count + 1, device=sizes.device) - count - 1
    values = (sizes.sort(1).values * weights).sum(1) / (count * sizes.sum(1))
    yield _score("gini", values, undefined)


@metric(
    family="complexity",
    direction=None,
    headline="entropy",
    cite="bhatt2020evaluating",
    question="Over how many positions is relevance spread?",
    misleads="Simple is not faithful; it grows with the number of positions, which `normalized_entropy` does not.",
)
def entropy(case: Case) -> Iterator[Score]:
    r"""Entropy of relevance (`bhatt2020evaluating`): $H = -\sum_i p_i \log p_i$, $p_i = |a_i| / \sum_j |a_j|$, in nats.

    $d$ positions, absolute values summed over channels. 0 for a map on a single position, $\log d$ for one that is
    constant. `normalized_entropy` is $H / \log d$, in [0, 1]. It sees where the mass of the map is, and not how values
    are distributed, as the entropy of their histogram in `efficient_parameter_randomization` does.

    Undefined where a map is zero everywhere or not finite; normalized, also where there is one position only.
    """
    sizes, undefined = _sizes(case)
    values = torch.special.entr(sizes / sizes.sum(1, keepdim=True)).sum(1)
    yield _score("entropy", values, undefined)
    single = {"a single position": torch.full_like(values, sizes.shape[1] == 1, dtype=torch.bool)}
    yield _score("normalized_entropy", values / (log(sizes.shape[1]) or 1), first_reason(undefined, single))


@metric(
    family="complexity",
    direction=None,
    headline="effective_fraction",
    cite="nguyen2020quantitative",
    question="How much of the map is not next to nothing?",
    misleads="Few positions are not the right ones; a single large value makes all others small.",
)
def effective_complexity(case: Case, *, relative_epsilon: Fraction = 0.01) -> Iterator[Score]:
    r"""Effective complexity: how many positions have $|a_i| > \epsilon \max_j |a_j|$; their share is the headline.

    `nguyen2020quantitative` count the most relevant features that suffice to keep the prediction. Common code counts
    those above a threshold, which goes by the map alone; ours is relative, so that the scale of a map does not count.
    Absolute values are summed over channels. Yields

    - `effective_complexity`: the number, from 1 to $d$;
    - `effective_fraction`: the number over $d$. With $\epsilon = 0$ this is what `zero_fraction` leaves.

    Undefined where a map is zero everywhere or not finite.

    Args:
        case: what to describe.
        relative_epsilon: $\epsilon$.
    """
    sizes, undefined = _sizes(case)
    counts = (sizes > relative_epsilon).double().sum(1)
    yield _score("effective_complexity", counts, undefined)
    yield _score("effective_fraction", counts / sizes.shape[1], undefined)


def _sizes(case: Case) -> tuple[Float[Tensor, "n d"], dict[str, Bool[Tensor, " n"]]]:
    """The absolute map in units of its own largest value, in [0, 1], and why it has none."""
    sizes = reduce_channels(case.maps.double(), "abs_sum").flatten(1)
    largest = sizes.amax(1)  # not a number where one value is not
    undefined = first_reason({"not finite": ~largest.isfinite()}, {"the map is zero everywhere": largest == 0})
    return sizes / largest[:, None], undefined


def _score(measure: str, values: Float[Tensor, " n"], undefined: dict[str, Bool[Tensor, " n"]]) -> Score:
    return Score(measure, undefined_as_nan(values, undefined), undefined, channels="abs_sum", sign="absolute")
