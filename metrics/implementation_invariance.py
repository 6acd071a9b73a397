"""Implementation invariance: networks that compute the same function must be explained alike."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from harness.case import Case
from harness.metrics.equivalent_networks import batch_norm_folded, unit_duplicated, units_permuted
from harness.metrics.preprocessing import first_reason, undefined_as_nan
from harness.metrics.rewriting import relative_difference, rewritten_networks
from harness.registry import metric
from harness.types import NotApplicableError, Score

REWRITINGS = {
    "units permuted": units_permuted,
    "unit duplicated": unit_duplicated,
    "batch norm folded": batch_norm_folded,
}


@metric(
    family="invariance",
    direction="lower",
    headline="relative_difference",
    summary_statistic="median",
    cite="sundararajan2017axiomatic",
    question="Is the map the same for the same function, built in another way?",
    misleads="In float32, kinks of rectifiers move single samples; the median does not mind.",
)
def implementation_invariance(case: Case) -> Iterator[Score]:
    r"""Implementation invariance: $\|A(f, x) - A(f', x)\|_2 / \|A(f, x)\|_2$ where $f' = f$.

    `sundararajan2017axiomatic`. $f'$ is a rewriting of the network that computes the same function on all inputs: the
    units of a hidden layer in another order, a hidden unit twice with half of its outgoing weights each, batch norms
    folded into the layers before them. Over whole raw maps; 0 is invariance. Yields `relative_difference` for each
    rewriting, told apart by `stage`, and last, without a stage, the largest of them: the headline. A rewriting that
    the network or the method does not allow is undefined with the reason, and does not count for the headline.

    Rewritings are checked in double precision where the network runs in it. Maps are made in its own, and what lies at
    the kink of a rectifier or ties in a pooling, rounding may turn over: in single precision, single samples of an
    invariant method may differ by some per cent. In double precision they do not.

    Necessary, and weak: these are a few of the networks that compute the same function, and a method that ignores the
    model passes. Undefined where the map of the trained network is zero or one of the two is not finite.

    Args:
        case: what to test.

    Raises:
        NotApplicableError: no rewriting applies, with the reasons.
    """
    scores, lacks = [], []
    for stage, network in rewritten_networks(case, REWRITINGS).items():
        try:
            if isinstance(network, str):
                raise NotApplicableError(network)
            scores.append(relative_difference("relative_difference", case.maps, case.explain(network), stage))
            yield scores[-1]
        except NotApplicableError as lack:
            lacks.append(f"{stage}: {lack}")
            everywhere = torch.ones(len(case.x), dtype=torch.bool)
            nothing = torch.full((len(case.x),), torch.nan, dtype=torch.float64)
            yield Score("relative_difference", nothing, {str(lack): everywhere}, stage=stage)
    if not scores:
        raise NotApplicableError("; ".join(lacks))
    # Last and always there, so that it is the headline in every block of samples.
    undefined = first_reason(*(dict(score.undefined) for score in scores))
    largest = torch.stack([score.values for score in scores]).nan_to_num().amax(0)
    yield replace(scores[0], values=undefined_as_nan(largest, undefined), undefined=undefined, stage=None)
