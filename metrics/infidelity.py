"""Infidelity: how well does the map predict what perturbations do to the output?"""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from harness.case import Case
from harness.metrics.perturbation import Removal, Removing, batches, outputs_of, rounding, unknown
from harness.metrics.preprocessing import first_reason, undefined_as_nan
from harness.metrics.subsets import drops_of
from harness.registry import metric
from harness.types import Count, NonNegative, Score

PART = 7
"""Where no side is given, squares have this part of the longest one."""


@metric(
    family="faithfulness",
    direction="lower",
    headline="relative_infidelity",
    version=2,
    summary_statistic="median",
    cite="yeh2019infidelity",
    question="How well does the map predict what perturbations do to the output?",
    misleads="The raw one depends on the scale of the map; all depend on whether it holds contributions or gradients.",
)
def infidelity(
    case: Case,
    *,
    fill: str,
    perturbation: Literal["squares", "squares_of_gradients", "gaussian"] = "squares",
    samples: Count = 100,
    side: NonNegative = 0,
    deviation: float = 0.1,
) -> Iterator[Score]:
    r"""Infidelity (`yeh2019infidelity`): $E_I (I^\top a - \Delta)^2$ with $\Delta = f_t(x) - f_t(x - I)$.

    `squares`: a random square of the sample is replaced by `fill` (a stretch of a signal, a random half of the
    features of a table), and the map says the sum of $a$ over it in place of $I^\top a$, because its values are
    contributions (captum: `multiply_by_inputs`). `squares_of_gradients`: the same for maps that are gradients,
    $I^\top a$. `gaussian`: normal noise, which has a meaning for gradients only.

    The scale of a map enters quadratically, so methods are compared after the best one, $\beta = E (I^\top a) \Delta
    / E (I^\top a)^2$: `scaled_infidelity`, and as a share of $E \Delta^2$, `relative_infidelity`, in [0, 1], 0 for
    exact attributions of a linear model. `infidelity` is the raw one, `best_scale` is $\beta$: where it is negative,
    the map points the wrong way, and its `relative_infidelity` is 1, as without a map. Perturbations are the same for
    all methods.

    Undefined where the map or an output is not finite, or no perturbation changes the output; all but the raw one also
    where the map says 0 of every perturbation, as a map of zeros does.

    Args:
        case: what to test.
        fill: what stands in the place of squares; see `harness.metrics.perturbation.Removal`.
        perturbation: what is done to the sample, and how the map is read.
        samples: how many perturbations.
        side: of the squares, in positions; 0: a seventh of the longest side.
        deviation: of the noise, as a fraction of the valid range.
    """
    maps = "contributions" if perturbation == "squares" else "gradients"
    removing = Removal(fill).on(case)
    law = _Noise(case, samples, deviation) if perturbation == "gaussian" else _Squares(removing, samples, side)
    left = removing.once(law.key, lambda: outputs_of(case, samples, law.inputs))
    drops = drops_of(removing, left)["logit"]
    level = rounding(case, removing.untouched()["logit"].abs())
    said = torch.cat([law.said(maps, *batch) for batch in batches(case, samples)]).view(samples, -1).T

    broken = first_reason(
        {"not finite": ~said.isfinite().all(1)},
        unknown(drops),
        {"no perturbation changes the output": drops.abs().amax(1) <= level},
    )
    silent = first_reason(broken, {"the map says 0 of every perturbation": ~said.any(1)})
    scale = (said * drops).mean(1) / (said**2).mean(1)
    scaled = ((scale[:, None] * said - drops) ** 2).mean(1)
    for name, values, reasons in (
        ("infidelity", ((said - drops) ** 2).mean(1), broken),
        ("scaled_infidelity", scaled, silent),
        ("relative_infidelity", torch.where(scale > 0, scaled / (drops**2).mean(1), torch.ones_like(scale)), silent),
        ("best_scale", scale, silent),
    ):
        yield Score(name, undefined_as_nan(values, reasons), reasons, normalization=maps)


class _Squares:
    """Random squares replaced by a fill."""

    def __init__(self, removing: Removing, samples: int, side: int) -> None:
        self.case, self.removing = removing.case, removing
        case, axes = self.case, self.case.axes
        self.side = side or max(max(axes) // PART, 1)
        self.key = ("squares", samples, self.side)
        draws = case.draws("infidelity", "squares")
        if case.x.ndim == 2:
            self.kept = draws.bits(samples, axes[0]) & 1
        else:
            corners = draws.uniform(samples, len(axes))
            room = torch.tensor([max(size - self.side, 0) + 1 for size in axes], device=case.x.device)
            self.kept = (corners * room).long()

    def where(self, rows: Int[Tensor, " m"], version: Int[Tensor, " m"]) -> Bool[Tensor, "m *axes"]:
        """What is replaced."""
        kept = self.kept[rows, version]
        if self.case.x.ndim == 2:
            return kept == 1
        where = torch.ones(len(rows), *self.case.x.shape[2:], dtype=torch.bool, device=kept.device)
        for axis, size in enumerate(self.case.x.shape[2:]):
            distance = torch.arange(size, device=kept.device) - kept[:, axis, None]
            inside = (distance >= 0) & (distance < self.side)
            where &= inside.view(len(rows), *(size if each == axis else 1 for each in range(where.ndim - 1)))
        return where

    def inputs(self, rows: Int[Tensor, " m"], version: Int[Tensor, " m"]) -> Float[Tensor, "m ..."]:
        """The perturbed samples."""
        return self.removing.without(rows, self.where(rows, version).flatten(1))

    def said(self, maps: str, rows: Int[Tensor, " m"], version: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
        """What the map says of it."""
        relevance = self.case.maps[rows].double()
        if maps == "gradients":
            return (relevance * (self.case.x[rows] - self.inputs(rows, version))).flatten(1).sum(1)
        where = self.where(rows, version)
        return (relevance * (where if relevance.ndim == 2 else where[:, None])).flatten(1).sum(1)


class _Noise:
    """Normal noise on the whole sample."""

    def __init__(self, case: Case, samples: int, deviation: float) -> None:
        self.case, self.key = case, ("noise", samples, deviation)
        self.deviation = deviation * case.space.scale(case.x)
        self.draws = case.draws("infidelity", "noise")

    def noise(self, rows: Int[Tensor, " m"], version: Int[Tensor, " m"]) -> Float[Tensor, "m ..."]:
        """I, in the units of the model's input."""
        x = self.case.x
        normal = torch.empty_like(x[rows])
        for draw in version.unique().tolist():
            here = version == draw
            normal[here] = self.draws[rows[here]].normal(*x.shape[1:], draw=int(draw)).to(x.dtype)
        return self.deviation[rows] * normal

    def inputs(self, rows: Int[Tensor, " m"], version: Int[Tensor, " m"]) -> Float[Tensor, "m ..."]:
        """The perturbed samples."""
        return self.case.x[rows] - self.noise(rows, version)

    def said(self, _maps: str, rows: Int[Tensor, " m"], version: Int[Tensor, " m"]) -> Float[Tensor, " m"]:
        """What the map says of it."""
        return (self.case.maps[rows].double() * self.noise(rows, version)).flatten(1).sum(1)
