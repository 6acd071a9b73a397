"""Curves of the output while units are removed in one order, from which all flipping metrics are read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from harness.metrics.perturbation import ORDERS, Order, Outputs, Removing, unknown
from harness.metrics.preprocessing import first_reason, undefined_as_nan
from harness.types import Score

Spacing = Literal["linear", "logarithmic"]
Reasons = Mapping[str, Bool[Tensor, " n"]]


@dataclass(frozen=True)
class Curve:
    """The outputs while units are removed in one order.

    Attributes:
        removed: the fraction of the units of each sample that is gone at each step.
        outputs: what the model says then.
    """

    removed: Float[Tensor, "n steps"]
    outputs: Outputs

    def at(self, fractions: Float[Tensor, " some"]) -> "Curve":
        """The same at the step of each sample that is nearest to each fraction."""
        steps = (self.removed[:, None] - fractions[:, None]).abs().argmin(2)
        outputs = {name: values.gather(1, steps) for name, values in self.outputs.items()}
        return Curve(self.removed.gather(1, steps), outputs)

    def area(self, measure: str) -> Float[Tensor, " n"]:
        """The mean height of a curve by the trapezoidal rule: its area over the fraction removed, per fraction."""
        span = self.removed[:, -1] - self.removed[:, 0]
        return torch.trapezoid(self.outputs[measure], self.removed, dim=1) / span


def steps_of(steps: int, units: int, spacing: Spacing = "linear") -> tuple[float, ...]:
    """The fractions removed, from 0 to 1, of whole units: equal ones, or growing by an equal factor from one unit.

    No more steps than there are units.
    """
    if spacing == "linear":
        numbers = {round(step * units / steps) for step in range(1, steps + 1)}
    else:
        numbers = {round(units ** (step / (steps - 1))) for step in range(steps) if steps > 1} | {units}
    return tuple(number / units for number in sorted({0, *numbers}))


def curves(
    removing: Removing,
    relevance: Float[Tensor, "n *axes"],
    fractions: Sequence[float],
    orders: Sequence[Order] = ORDERS,
) -> dict[Order, Curve]:
    """One curve for each order, at the same fractions; the first of them is 0.

    The random order, and the ends that all orders have in common, are computed once for all methods.
    """
    wanted = torch.tensor(fractions, dtype=torch.float64, device=relevance.device)
    numbers = (wanted * removing.counts[:, None]).round().long()
    removed = numbers.double() / removing.counts[:, None]
    whole = len(fractions) - (fractions[-1] == 1)

    def along(order: Order) -> Outputs:
        ranks = removing.ranks(order, relevance)

        def gone(rows: Tensor, version: Tensor) -> Tensor:
            return ranks[rows] < numbers[rows, version + 1, None]

        return removing.outputs(whole - 1, gone) if whole > 1 else {}

    def nothing_left() -> Outputs:
        return removing.outputs(1, lambda rows, _: removing.sizes[rows] >= 0)

    def joined(between: Outputs) -> Outputs:
        parts: list[Mapping[str, Tensor]] = [{name: value[:, None] for name, value in removing.untouched().items()}]
        parts += [between] if between else []
        if whole < len(fractions):
            parts.append(removing.once("nothing left", nothing_left))
        return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}

    def between(order: Order) -> Outputs:
        if order != "random":
            return along(order)
        return removing.once(("random", *fractions[1:whole]), lambda: along("random"))

    return {order: Curve(removed, joined(between(order))) for order in orders}


def curve_scores(
    found: Mapping[Order, Curve], fractions: Sequence[float], undefined: Reasons, sign: str = "signed"
) -> Iterator[Score]:
    """Every point of every curve. The random order needs no map, so that none makes it undefined."""
    for order, curve in found.items():
        for index, fraction in enumerate(fractions):
            for measure, values in curve.outputs.items():
                yield score_of(
                    measure, values[:, index], {} if order == "random" else undefined, sign, order, float(fraction)
                )


def score_of(
    measure: str,
    values: Float[Tensor, " n"],
    undefined: Reasons,
    sign: str = "signed",
    mode: Order | None = None,
    step: float | None = None,
) -> Score:
    """A score of maps summed over channels, NaN wherever there is a reason, be it that an output is not finite."""
    reasons = first_reason(dict(undefined), unknown(values))
    return Score(measure, undefined_as_nan(values, reasons), reasons, channels="sum", sign=sign, mode=mode, step=step)
