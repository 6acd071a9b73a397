"""Iterative removal of features: how much of the probability is lost while superpixels go, the most relevant first?"""

from collections.abc import Iterator

import torch

from harness.case import Case
from harness.metrics.curves import curve_scores, curves, score_of
from harness.metrics.perturbation import Removal, order_of
from harness.metrics.preprocessing import first_reason
from harness.registry import metric
from harness.types import Count, Score


@metric(
    family="faithfulness",
    direction="higher",
    headline="area_beyond_random",
    chance=0.0,
    cite="rieger2020irof",
    question="How much of the probability is lost while superpixels go?",
    misleads="Superpixels follow edges, and so do some maps; quotients blow up where the probability is small.",
)
def irof(case: Case, *, fill: str = "mean", superpixels: Count = 100) -> Iterator[Score]:
    r"""IROF (`rieger2020irof`): $1 - \int p_t(x^k) / p_t(x)$ while superpixels are removed one by one.

    By the trapezoidal rule over the fraction removed: `area_over_curve` of the most relevant first, at most 1, and of a
    random order, mode `random`; `area_beyond_random` is their difference, 0 in expectation for a random map. On
    probabilities only: a quotient of logits means nothing. Signals are cut into pieces; features of a table are single.

    Undefined where a map does not differ between superpixels or is not finite, except for the random order; quotients,
    where $p_t(x)$ is 0.

    Args:
        case: what to test.
        fill: what stands in the place of a superpixel; see `harness.metrics.perturbation.Removal`.
        superpixels: about how many there are, each as relevant as its mean.
    """
    removing = Removal(fill, superpixels=superpixels if case.x.ndim > 2 else 0).on(case)
    relevance, undefined = order_of(removing)
    # One by one also where SLIC made more of them than it was asked for.
    most = int(removing.counts.max())
    found = curves(removing, relevance, [count / most for count in range(most + 1)], ("most_first", "random"))
    fractions = [count / removing.nominal for count in range(removing.nominal + 1)]
    shown = torch.tensor(fractions, dtype=torch.float64, device=case.x.device)
    yield from curve_scores({order: curve.at(shown) for order, curve in found.items()}, fractions, undefined)

    whole = removing.untouched()["probability"]
    nothing = first_reason({"no probability to lose": whole == 0})
    undefined = first_reason(undefined, nothing)
    lost, random = (1 - found[order].area("probability") / whole for order in ("most_first", "random"))
    yield score_of("area_over_curve", lost, undefined, mode="most_first")
    yield score_of("area_over_curve", random, nothing, mode="random")
    yield score_of("area_beyond_random", lost - random, undefined)
