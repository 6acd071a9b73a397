"""Completeness: does the map add up to what it claims to distribute?"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from harness.case import Case
from harness.metrics.perturbation import outputs, unknown
from harness.metrics.preprocessing import first_reason, undefined_as_nan
from harness.registry import metric
from harness.types import Count, NotApplicableError, Score

Steps = Annotated[Sequence[Count], Field(min_length=2)]


@metric(
    family="axioms",
    direction="lower",
    headline="relative_residual",
    needs=("claim",),
    summary_statistic="median",
    cite="sundararajan2017axiomatic",
    question="Does the map add up to what it claims to distribute?",
    misleads="A small residual is consistency, not quality: maps of pure noise can be made to add up.",
)
def completeness(case: Case, *, floor: float = 1e-3) -> Iterator[Score]:
    r"""Completeness residual $\delta = \sum_i a_i - c$ (`sundararajan2017axiomatic`), on raw maps.

    $c$ is what the method claims to distribute: $f_t(x)$, or $f_t(x) - f_t(b)$. Yields

    - `residual`: $\delta$, in units of the logit;
    - `relative_residual`: $|\delta| / \max(|c|, \tau)$ with $\tau = $ `floor` $\cdot (|f_t(x)| + |f_t(b)|)$;
    - `denominator_floored`: 1 where $\tau$ took the place of $|c|$, else 0;
    - `residual_to_mass`: $|\delta| / \sum_i |a_i|$, undefined for a map of zeros.

    A map of zeros has a `relative_residual` of 1, but where the claim is below $\tau$. Undefined where a map, or the
    output for the baseline, is not finite; relative to the claim, also where all outputs that it is made of are 0.

    A small residual is consistency, not quality. Not applicable to methods that claim nothing.

    Args:
        case: what to test.
        floor: the smallest denominator, as a fraction of the size of the outputs that are subtracted.

    Raises:
        NotApplicableError: the method claims that its map sums to nothing in particular.
    """
    claim, scale = _claim(case)
    flat = case.maps.flatten(1).double()
    residual = flat.sum(1) - claim
    tau, mass = floor * scale, flat.abs().sum(1)

    broken = first_reason(unknown(claim), {"not finite": ~residual.isfinite()})
    yield Score("residual", undefined_as_nan(residual, broken), broken)
    relative, nothing = _relative(residual, claim, tau)
    yield Score("relative_residual", undefined_as_nan(relative, nothing), nothing)
    floored, lost = (claim.abs() < tau).double(), first_reason(unknown(claim))
    yield Score("denominator_floored", undefined_as_nan(floored, lost), lost)
    empty = first_reason(broken, {"the map is zero everywhere": mass == 0})
    yield Score("residual_to_mass", undefined_as_nan(residual.abs() / mass, empty), empty)


@metric(
    family="axioms",
    direction="lower",
    headline="last_relative_residual",
    needs=("claim",),
    summary_statistic="median",
    cite="sundararajan2017axiomatic",
    question="How fast does the residual fall with more steps or samples?",
    misleads="Residuals of single samples rise and fall: read the median.",
)
def completeness_convergence(case: Case, *, steps: Steps = (4, 8, 16, 32, 64), floor: float = 1e-3) -> Iterator[Score]:
    r"""How the completeness residual of a method falls with its steps or samples: $|\delta_n| / \max(|c|, \tau)$.

    The method is run again with each number in the place of its option `steps` or `samples`. `relative_residual` as
    in `completeness`, stage the number; `last_relative_residual` is that of the largest, and `halvings` how often the
    residual was halved for each doubling, from the first number to the last: about 1 at the kinks of rectifiers, 1/2
    for independent samples, more on a smooth path. Undefined where a map is not finite or the
    claim is 0, as in `completeness`; `halvings`, also where a residual is 0.

    Args:
        case: what to test.
        steps: the numbers.
        floor: the smallest denominator, as a fraction of the size of the outputs that are subtracted.

    Raises:
        NotApplicableError: the method has neither steps nor samples, or claims that its map sums to nothing.
    """
    options = case.explainer.method.options
    option = next((name for name in ("steps", "samples") if name in options), None)
    if option is None:
        raise NotApplicableError(f"{case.explainer.method.name} has no steps or samples to converge with")
    claim, scale = _claim(case)
    found: list[Tensor] = []
    for index, number in enumerate(sorted(set(steps))):
        explainer = replace(case.explainer, options={**case.explainer.options, option: number})
        residual = replace(case, explainer=explainer).explain().flatten(1).double().sum(1) - claim
        relative, nothing = _relative(residual, claim, floor * scale)
        values = undefined_as_nan(relative, nothing)
        found.append(values)
        yield Score("relative_residual", values, nothing, stage=f"{number} {option}", stage_index=index)
    yield Score("last_relative_residual", found[-1], nothing)
    fallen = (found[0] / found[-1]).log2() / math.log2(max(steps) / min(steps))
    unknown = first_reason({"a residual is 0, or undefined": ~fallen.isfinite()})
    yield Score("halvings", undefined_as_nan(fallen, unknown), unknown)


def _claim(case: Case) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """What the method claims to distribute, and the size of the outputs that are subtracted.

    Raises:
        NotApplicableError: it claims a difference to a baseline that it does not have.
    """
    output = outputs(case.logits(case.x), case.target)["logit"]
    if case.explainer.conserves != "difference":
        return output, output.abs()
    if case.baseline is None:
        raise NotApplicableError(f"{case.explainer.method.name} claims a difference but has no baseline")
    reference = outputs(case.logits(case.baseline), case.target)["logit"]
    return output - reference, output.abs() + reference.abs()


def _relative(
    residual: Float[Tensor, " n"], claim: Float[Tensor, " n"], tau: Float[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], dict[str, Bool[Tensor, " n"]]]:
    broken = {**unknown(claim), "not finite": ~residual.isfinite()}
    nothing = first_reason(broken, {"the claim is zero": (claim == 0) & (tau == 0)})
    return residual.abs() / claim.abs().maximum(tau), nothing
