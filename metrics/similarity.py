"""How alike two batches of maps are, one number a pair, on the device that the maps are on.

All are symmetric, at most 1, and exactly 1 for equal maps. Correlations are NaN where a map is constant. What can
be computed of one batch alone is a `Prepared`; what is left for a pair is cheap.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

P = TypeVar("P", bound="Prepared")


class Prepared(ABC):
    """A batch of maps, made ready to be compared with others: a dataclass of tensors with one row a map."""

    @abstractmethod
    def similarity(self: P, other: P) -> Float[Tensor, " n"]:
        """How alike the maps of each pair are, float64; the other was prepared in the same way."""

    @abstractmethod
    def moved(self, index: Int[Tensor, "n d"]) -> "Prepared":
        """The same maps with their positions rearranged: position p takes the value of position index[p]."""

    def rolled(self: P) -> P:
        """The same maps one row further: row i holds what row i - 1 held."""
        return replace(self, **{name: value.roll(1, 0) for name, value in self._tensors().items()})  # type: ignore[type-var]

    def everywhere(self) -> Bool[Tensor, " n"]:
        """A mask that holds all maps."""
        rows = next(iter(self._tensors().values()))
        return torch.ones(len(rows), dtype=torch.bool, device=rows.device)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class Vectors(Prepared):
    r"""Rows and their sums of squares; the similarity is $\sum a b / \sqrt{\sum a^2 \sum b^2}$.

    Attributes:
        values: the rows.
        squares: their sums of squares; NaN for a row that has no similarity to any.
    """

    values: Float[Tensor, "n d"]
    squares: Float[Tensor, " n"]

    def similarity(self, other: "Vectors") -> Float[Tensor, " n"]:
        """The cosine of the angle between the rows of each pair."""
        # One square root of the product: for equal maps it gives back the sum itself, so the quotient is exactly 1.
        scale = (self.squares * other.squares).sqrt()
        return (torch.linalg.vecdot(self.values, other.values) / scale).clamp(-1, 1)

    def moved(self, index: Int[Tensor, "n d"]) -> "Vectors":
        """By a look-up: sums do not depend on positions."""
        return replace(self, values=self.values.gather(1, index))


@dataclass(frozen=True)
class Largest(Prepared):
    """Which values are among the k largest.

    Attributes:
        weights: 1 for those above the k-th largest value, 0 below; those that equal it share what is left equally.
        total: the sums of the weights, k but for rounding.
    """

    weights: Float[Tensor, "n d"]
    total: Float[Tensor, " n"]

    def similarity(self, other: "Largest") -> Float[Tensor, " n"]:
        """The share of their weights that each pair has in common."""
        # By the sums and not by k: shares of it are rounded, and equal maps give exactly 1.
        return 2 * self.weights.minimum(other.weights).sum(1) / (self.total + other.total)

    def moved(self, index: Int[Tensor, "n d"]) -> "Largest":
        """By a look-up: the largest values stay the largest."""
        return replace(self, weights=self.weights.gather(1, index))


def vectors(maps: Float[Tensor, "n *shape"]) -> Vectors:
    """The maps as they are."""
    values = maps.flatten(1).double()
    return Vectors(values, torch.linalg.vecdot(values, values))


def centred(maps: Float[Tensor, "n *shape"]) -> Vectors:
    """The maps less their means."""
    values = maps.flatten(1).double()
    result = vectors(values - values.mean(1, keepdim=True))
    # Rounding the mean of a constant leaves residues that would correlate.
    return replace(result, squares=result.squares.masked_fill(values.amax(1) == values.amin(1), torch.nan))


def ranked(maps: Float[Tensor, "n *shape"]) -> Vectors:
    """The ranks of the maps, less their means: multiples of 1/2, so float64 sums them without error."""
    order = ranks(maps.flatten(1))
    return vectors(order - (order.shape[1] + 1) / 2)


def largest(maps: Float[Tensor, "n *shape"], fraction: float) -> Largest:
    """See `top_k`."""
    values = maps.flatten(1)
    count = max(1, round(fraction * values.shape[1]))
    boundary = values.topk(count, 1).values[:, -1:]
    above, tied = values > boundary, values == boundary
    share = (count - above.sum(1, keepdim=True)).double() / tied.sum(1, keepdim=True)
    weights = above + tied * share
    return Largest(weights, weights.sum(1))


def ranks(values: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Ranks from 1 to d in each row, ties sharing their average rank, float64."""
    ordered, order = _sorted(values)
    n, size = values.shape
    starts = torch.ones_like(order, dtype=torch.bool)
    torch.ne(ordered[:, 1:], ordered[:, :-1], out=starts[:, 1:])
    average = torch.arange(1, size + 1, dtype=torch.float64, device=values.device).repeat(n)
    # Those that equal the one before them. The first of such a run is one place behind the value that it repeats.
    tied = (~starts).flatten().nonzero()[:, 0]
    opens = starts.flatten()[tied - 1]
    length = torch.cat([opens.nonzero()[:, 0], tied.new_full((1,), len(tied))]).diff()
    shared = average[tied[opens] - 1] + length / 2
    average.scatter_(0, tied[opens] - 1, shared)
    average.scatter_(0, tied, shared.repeat_interleave(length, output_size=len(tied)))
    average = average.view(n, size)
    return torch.empty_like(average).scatter_(1, order, average)


def _sorted(values: Float[Tensor, "n d"]) -> tuple[Tensor, Int[Tensor, "n d"]]:
    """Something that is ordered as the values are, in ascending order, and where each came from."""
    if values.dtype != torch.float32:
        ordered, order = values.sort(1)
        return ordered, order
    # One integer for value and place: sorting these is many times faster than sorting pairs. The bits of floats are
    # ordered as the floats are once those behind a minus sign are flipped; adding 0 makes one zero of both.
    bits = (values + 0.0).view(torch.int32)
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() << 32 | torch.arange(values.shape[1], device=values.device)
    if keys.device.type == "cpu":
        keys.numpy().sort(axis=1)  # vectorized, and torch's is not
    else:
        keys = keys.sort(1).values
    return keys >> 32, keys & 0xFFFFFFFF


def pearson(a: Float[Tensor, "n *shape"], b: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
    r"""Pearson correlation of each pair: $\sum \hat a \hat b / \sqrt{\sum \hat a^2 \sum \hat b^2}$, centred."""
    return centred(a).similarity(centred(b))


def spearman(a: Float[Tensor, "n *shape"], b: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
    """Spearman rank correlation of each pair: Pearson correlation of average ranks."""
    return ranked(a).similarity(ranked(b))


def cosine(a: Float[Tensor, "n *shape"], b: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
    r"""Cosine of the angle between each pair, $\sum a b / \sqrt{\sum a^2 \sum b^2}$; NaN where a map is zero."""
    return vectors(a).similarity(vectors(b))


def top_k(a: Float[Tensor, "n *shape"], b: Float[Tensor, "n *shape"], *, fraction: float = 0.1) -> Float[Tensor, " n"]:
    r"""The share of the k largest values that each pair has in common: $\sum_p \min(w_p^a, w_p^b) / k$, in [0, 1].

    $w$ is 1 for the k largest values. Values that tie for the last places share them equally, so no order of
    positions decides. Independent maps without ties have k / d on average.

    Args:
        a: maps.
        b: maps.
        fraction: of the d positions, in (0, 1]; k is the nearest integer, and at least 1.
    """
    return largest(a, fraction).similarity(largest(b, fraction))
