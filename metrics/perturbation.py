"""The common machinery of perturbation metrics: orders, units, outputs."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from harness.random import Draws


def removal_ranks(relevance: Float[Tensor, "n d"], draws: Draws) -> Int[Tensor, "n d"]:
    """The position of each unit when the most relevant goes first; ties in a random order with its own key.

    The ranks of `-relevance` are those of least relevant first, with the same tie order, so that reversing a
    map swaps the two orders exactly.
    """
    size = relevance.shape[1]
    shuffle = draws.permutation(size)
    order = relevance.gather(1, shuffle).argsort(stable=True, dim=1, descending=True)
    return shuffle.gather(1, order).argsort(1)


def removed(
    x: Float[Tensor, "n *shape"], fill: Float[Tensor, "n *shape"], where: Bool[Tensor, "n *axes"]
) -> Float[Tensor, "n *shape"]:
    """`x` with all channels together replaced by `fill` at the marked positions."""
    return torch.where(where if x.ndim == 2 else where.unsqueeze(1), fill, x)


def grid(axes: tuple[int, ...], side: int, device: torch.device) -> Int[Tensor, "*axes"]:
    """The number of the square patch of `side` that each position lies in; patches at the border may be smaller."""
    index = torch.zeros(axes, dtype=torch.int64, device=device)
    for axis, size in enumerate(axes):
        patch = torch.arange(size, device=device) // side
        index = index * (-(-size // side)) + patch.view(-1, *(1,) * (len(axes) - axis - 1))
    return index


def unit_sums(maps: Float[Tensor, "n *axes"], units: Int[Tensor, "*axes"]) -> Float[Tensor, "n units"]:
    """The sum of each map over each unit."""
    flat, index = maps.flatten(1).double(), units.flatten()
    return flat.new_zeros(len(flat), int(index.max()) + 1).index_add_(1, index, flat)


def outputs(logits: Float[Tensor, "n classes"], target: Int[Tensor, " n"]) -> dict[str, Float[Tensor, " n"]]:
    """What is recorded of an output: `logit`, `probability`, `log_odds` and `correct` (is it still the target?)."""
    chosen = target[:, None]
    logits = logits.double()
    logit = logits.gather(1, chosen)[:, 0]
    others = logits.scatter(1, chosen, -torch.inf).logsumexp(1)
    return {
        "logit": logit,
        "probability": logits.softmax(1).gather(1, chosen)[:, 0],
        "log_odds": logit - others,
        "correct": (logits.argmax(1) == target).double(),
    }
