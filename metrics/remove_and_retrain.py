"""Remove and retrain: can a network still learn the task when what the map calls relevant is gone from all samples?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from harness.case import Case
from harness.metrics.curves import score_of
from harness.metrics.perturbation import Order, Removal, Removing, order_of, outputs, relevance_of
from harness.metrics.road import Fractions
from harness.registry import metric
from harness.types import Count, Distinct, Score

REMOVED = (0.1, 0.3, 0.5, 0.7, 0.9)
Orders = Annotated[Sequence[Order], Field(min_length=1), Distinct]


@metric(
    family="faithfulness",
    direction="higher",
    headline="loss_beyond_random",
    chance=0.0,
    needs=("recipe",),
    uses=("recipe",),
    cite="hooker2019benchmark",
    question="Can a network still learn the task when what the map calls relevant is gone?",
    misleads="The shape of what is removed can tell the class: read it beside `mask_leakage`.",
)
def remove_and_retrain(
    case: Case,
    *,
    fill: str = "mean",
    fractions: Fractions = REMOVED,
    orders: Orders = ("most_first", "random"),
    retrainings: Count = 1,
    patch: Count = 1,
) -> Iterator[Score]:
    r"""ROAR (`hooker2019benchmark`): accuracy of networks trained and tested without the most relevant fraction.

    All samples of the training part are explained (the predicted class), their most relevant units are replaced, and
    a new network is trained on them by the model's recipe; what is tested is treated alike. `correct` of each
    held-out sample, by fraction (step), order (mode) and training (draw); step 0 is the recipe on untouched samples.
    Removing the least relevant first instead (`orders: [least_first]`) keeps the most relevant, which the source
    calls KAR.

    `loss_beyond_random` is the mean over fractions of the `correct` after removal in random order less that in order of
    the map, in [-1, 1]; 0 in expectation for a random map. It needs both orders. Undefined where the map of the
    held-out sample does not differ between units or is not finite.

    A network that is trained again may read the class from the *shape* of what was removed: see `mask_leakage`. Every
    trained network is kept on disk as soon as it is trained, so that a run that was interrupted goes on with the next.

    Args:
        case: what to test.
        fill: what stands in the place of what is removed; see `harness.metrics.perturbation.Removal`.
        fractions: of the units that are removed.
        orders: in which they are.
        retrainings: how many networks, of different initial weights, for each fraction and order; the source took five.
        patch: side of the square patches that are removed together; 1: single pixels.

    Raises:
        NotApplicableError: patches of a table, whose features have no neighbours.
    """
    learnt, labels = case.source.training, case.source.labels_of(case.samples)
    sides = [_Side(each, Removal(fill, patch)) for each in (case.on(learnt), case)]
    _, undefined = order_of(sides[1].removing)
    correct: dict[tuple[Order, float], list[Tensor]] = {}
    for fraction in (0.0, *sorted(set(fractions))):
        for order in orders:
            training, held_out = (side.without(order, fraction) for side in sides)
            what = "at random" if order == "random" else f"of {case.explainer.method.name}, {order.replace('_', ' ')}"
            purpose = f"without {fraction:.0%} {what}" if fraction else "again"
            for draw in range(retrainings):
                network = case.train(training, learnt.y, draw, purpose)
                hits = outputs(case.logits(held_out, network), labels)["correct"]
                correct.setdefault((order, fraction), []).append(hits)
                reasons = {} if order == "random" or not fraction else undefined
                yield replace(score_of("correct", hits, reasons, mode=order, step=fraction), draw=draw)
    if {"most_first", "random"} <= set(orders):
        most, random = (
            torch.stack([hits for fraction in set(fractions) for hits in correct[order, fraction]]).mean(0)
            for order in ("most_first", "random")
        )
        yield score_of("loss_beyond_random", random - most, undefined)


@dataclass
class _Side:
    """The training samples, or those that are held out, and what is left of them."""

    case: Case
    removal: Removal

    @cached_property
    def removing(self) -> Removing:
        """How units are removed from them."""
        return self.removal.on(self.case)

    @cached_property
    def ranks(self) -> dict[Order, Int[Tensor, "m units"]]:
        """When each unit goes, by order, as far as it has been asked for."""
        return {}

    def without(self, order: Order, fraction: float) -> Float[Tensor, "m ..."]:
        """The samples without a fraction of their units."""
        if not fraction:
            return self.case.x
        if order not in self.ranks:
            relevance = None if order == "random" else relevance_of(self.case)[0]
            self.ranks[order] = self.removing.ranks(order, relevance)
        gone = self.ranks[order] < (fraction * self.removing.counts).round()[:, None]
        rows = torch.arange(len(self.case.x), device=gone.device)
        return torch.cat([self.removing.without(part, gone[part]) for part in rows.split(self.case.chunk)])
