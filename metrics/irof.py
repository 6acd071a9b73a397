"""Iterative removal of features: how much of the probability is lost while superpixels go, the most relevant first?"""

from collections.abc import Iterator

from harness.case import Case
from harness.metrics.curves import curve_scores, curves, score_of
from harness.metrics.perturbation import Removal, relevance_of
from harness.registry import metric
from harness.types import Count, Score


@metric(
    family="faithfulness",
    direction="higher",
    headline="area_beyond_random",
    cite="rieger2020irof",
    question="How much of the probability is lost while superpixels go?",
    misleads="Superpixels follow edges, and so do some maps; quotients blow up where the probability is small.",
)
def irof(case: Case, *, fill: str = "mean", superpixels: Count = 100) -> Iterator[Score]:
    r"""IROF (`rieger2020irof`): $1 - \int p_t(x^k) / p_t(x)$ while superpixels are removed one by one.

    By the trapezoidal rule over the fraction removed: `area_over_curve` of the most relevant first, at most 1, and of a
    random order, mode `random`; `area_beyond_random` is their difference, 0 in expectation for a random map. On
    probabilities only: a quotient of logits means nothing. Signals are cut into pieces; features of a table are single.

    Args:
        case: what to test.
        fill: what stands in the place of a superpixel; see `harness.metrics.perturbation.Removal`.
        superpixels: about how many there are, each as relevant as its mean.
    """
    removing = Removal(fill, superpixels=superpixels if case.x.ndim > 2 else 0).on(case)
    relevance, undefined = relevance_of(case)
    fractions = [count / removing.nominal for count in range(removing.nominal + 1)]
    found = curves(removing, relevance, fractions, ("most_first", "random"))
    yield from curve_scores(found, fractions, undefined)
    lost, random = (
        1 - found[order].area("probability") / found[order].outputs["probability"][:, 0]
        for order in ("most_first", "random")
    )
    yield score_of("area_over_curve", lost, undefined, mode="most_first")
    yield score_of("area_over_curve", random, {}, mode="random")
    yield score_of("area_beyond_random", lost - random, undefined)
