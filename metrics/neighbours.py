"""Samples in a small box around each sample, and how far input, output and map move on the way to them."""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from harness.case import Case
from harness.metrics.preprocessing import first_reason

Radius = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Changes:
    """How far something moves from each sample to each of its neighbours, and how large it is at the sample.

    Attributes:
        absolute: Euclidean distances.
        size: Euclidean norm at the sample itself.
    """

    absolute: Float[Tensor, "n neighbours"]
    size: Float[Tensor, " n"]

    @property
    def relative(self) -> Float[Tensor, "n neighbours"]:
        """The distances over the size."""
        return self.absolute / self.size[:, None]


@dataclass(frozen=True)
class Neighbourhood:
    """The neighbours of each sample of a case, by how much they differ from it.

    Attributes:
        inputs: in the units of the model's input.
        outputs: all logits.
        maps: whole raw maps of the frozen target, with the same noise of the method.
        same_prediction: where the largest logit is that of the sample's.
    """

    inputs: Changes
    outputs: Changes
    maps: Changes
    same_prediction: Bool[Tensor, "n neighbours"]

    @property
    def counted(self) -> Bool[Tensor, "n neighbours"]:
        """The neighbours that count: another input, the same prediction."""
        return self.same_prediction & (self.inputs.absolute > 0)

    @property
    def undefined(self) -> dict[str, Bool[Tensor, " n"]]:
        """Why a sample has no neighbours whose maps can be compared with its own."""
        return first_reason(
            {"not finite": ~self.maps.size.isfinite()},
            {"no neighbour differs from the sample": ~(self.inputs.absolute > 0).any(1)},
            {"no neighbour keeps the prediction": ~self.counted.any(1)},
            {"not finite (neighbour)": (self.counted & ~self.maps.absolute.isfinite()).any(1)},
        )


def neighbourhood(case: Case, neighbours: int, radius: float) -> Neighbourhood:
    r"""What happens around each sample: $x' = x + d$, $d$ uniform in $[-r, r]$ times the width of the valid range.

    What would leave the valid range, where one is declared, stops at its end; so distances are those that were gone.
    Neighbours are the same for all methods, their maps are computed once for all metrics, and only distances are kept.

    Args:
        case: model, method and samples.
        neighbours: how many of each sample.
        radius: $r$; where no range is declared, that of each sample serves.
    """
    key = ("neighbourhood", neighbours, radius)
    if key not in case.kept:
        # Maps first, because there may be none of other samples.
        moved = [_distance(case.explain(x=_neighbour(case, radius, draw)), case.maps) for draw in range(neighbours)]
        maps = Changes(torch.stack(moved, 1), _size(case.maps))
        known: dict[object, Any] = case.shared_here("neighbours")
        if key not in known:
            known[key] = _without_maps(case, neighbours, radius)
        inputs, outputs, same_prediction = known[key]
        case.kept[key] = Neighbourhood(inputs, outputs, maps, same_prediction)
    found: Neighbourhood = case.kept[key]
    return found


def _without_maps(case: Case, neighbours: int, radius: float) -> tuple[Changes, Changes, Bool[Tensor, "n neighbours"]]:
    logits = case.logits(case.x)
    inputs, outputs, same_prediction = [], [], []
    for draw in range(neighbours):
        neighbour = _neighbour(case, radius, draw)
        theirs = case.logits(neighbour)
        inputs.append(_distance(neighbour, case.x))
        outputs.append(_distance(theirs, logits))
        same_prediction.append(theirs.argmax(1) == logits.argmax(1))
    return (
        Changes(torch.stack(inputs, 1), _size(case.x)),
        Changes(torch.stack(outputs, 1), _size(logits)),
        torch.stack(same_prediction, 1),
    )


def _neighbour(case: Case, radius: float, draw: int) -> Float[Tensor, "n ..."]:
    """One neighbour of each sample."""
    x = case.x
    uniform = case.draws("neighbours").uniform(*x.shape[1:], draw=draw).to(x.dtype)
    neighbour = x + radius * case.space.scale(x) * (2 * uniform - 1)
    if case.space.mean is None:
        return neighbour
    low, high = case.space.bounds(x)
    # A value that is outside already is not pulled in: that might be farther than the radius.
    return neighbour.clamp(torch.minimum(low, x), torch.maximum(high, x))


def _distance(one: Float[Tensor, "n *shape"], other: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
    return _size(one.double() - other.double())


def _size(values: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
    return values.flatten(1).double().norm(dim=1)
