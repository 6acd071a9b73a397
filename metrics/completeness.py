"""Completeness: does the map add up to what it claims to distribute?"""

from collections.abc import Iterator

from harness.case import Case
from harness.metrics.preprocessing import first_reason, undefined_as_nan
from harness.registry import metric
from harness.types import NotApplicableError, Score


@metric(family="axioms", direction="lower", headline="relative_residual", needs=("claim",), summary_statistic="median")
def completeness(case: Case, *, floor: float = 1e-3) -> Iterator[Score]:
    r"""Completeness residual $\delta = \sum_i a_i - c$ (`sundararajan2017axiomatic`), on raw maps.

    $c$ is what the method claims to distribute: $f_t(x)$, or $f_t(x) - f_t(b)$. Yields

    - `residual`: $\delta$, in units of the logit;
    - `relative_residual`: $|\delta| / \max(|c|, \tau)$ with $\tau = $ `floor` $\cdot (|f_t(x)| + |f_t(b)|)$;
    - `denominator_floored`: 1 where $\tau$ took the place of $|c|$, else 0;
    - `residual_to_mass`: $|\delta| / \sum_i |a_i|$, undefined for a map of zeros.

    A small residual is consistency, not quality. Not applicable to methods that claim nothing.

    Args:
        case: what to test.
        floor: the smallest denominator, as a fraction of the size of the outputs that are subtracted.

    Raises:
        NotApplicableError: the method claims that its map sums to nothing in particular.
    """
    output = case.logits(case.x).gather(1, case.target[:, None])[:, 0].double()
    scale, claim = output.abs(), output
    if case.explainer.conserves == "difference":
        if case.baseline is None:
            raise NotApplicableError(f"{case.explainer.method.name} claims a difference but has no baseline")
        reference = case.logits(case.baseline).gather(1, case.target[:, None])[:, 0].double()
        scale, claim = output.abs() + reference.abs(), output - reference
    flat = case.maps.flatten(1).double()
    residual = flat.sum(1) - claim
    tau, mass = floor * scale, flat.abs().sum(1)

    broken = first_reason({"not finite": ~residual.isfinite()})
    yield Score("residual", undefined_as_nan(residual, broken), broken)
    nothing = first_reason(broken, {"the claim is zero": (claim == 0) & (tau == 0)})
    denominator = claim.abs().maximum(tau)
    yield Score("relative_residual", undefined_as_nan(residual.abs() / denominator, nothing), nothing)
    yield Score("denominator_floored", (claim.abs() < tau).double())
    empty = first_reason(broken, {"the map is zero everywhere": mass == 0})
    yield Score("residual_to_mass", undefined_as_nan(residual.abs() / mass, empty), empty)
