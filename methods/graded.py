"""Maps of known quality, for networks whose right maps are known: what metrics are examined with."""

from collections.abc import Sequence
from math import prod
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.random import Draws
from harness.registry import method

Wrong = Literal["moved", "white", "picture"]
Change = Literal["none", "negated", "inverted", "rescaled"]


@method(family="control", needs=("truth",))
def graded(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    baseline: Float[Tensor, "n *shape"],
    ids: Sequence[str],
    quality: float = 1.0,
    wrong: Wrong = "moved",
    change: Change = "none",
) -> Float[Tensor, "n *shape"]:
    r"""The right map and a wrong one: $a = q\,t / \|t\| + (1 - q)\,z / \|z\|$ with a quality $q$ in [0, 1].

    $t$ are the network's own `contributions(x, target, baseline)`. By default $z$ is the same map, moved around the
    torus to a random place: as plausible, and wrong. `white` is standard normal noise, `picture` the sample less the
    baseline, which asks no network. Each is that of the sample alone, the same for all qualities and seeds. Of a table,
    features are shifted.

    Args:
        model: a network that knows its contributions.
        x: the samples.
        target: the explained class of each.
        baseline: beside what they contribute.
        ids: of the samples.
        quality: q.
        wrong: what z is.
        change: `negated`: $-a$; `inverted`: $\max a - a$, by which large values become small and none negative;
            `rescaled`: times a factor between 0.01 and 100 that is another one for each sample.

    Raises:
        ValueError: a quality outside [0, 1].
    """
    if not 0 <= quality <= 1:
        raise ValueError(f"graded: expected a quality in [0, 1], got {quality}")
    draws = Draws.of(ids, "graded", device=x.device)
    truth: Tensor = model.contributions(x, target, baseline)  # type: ignore[operator]
    if wrong == "moved":
        other = _moved(truth, draws)
    else:
        other = draws.normal(*x.shape[1:]).to(x.dtype) if wrong == "white" else x - baseline
    maps = quality * _unit(truth) + (1 - quality) * _unit(other)
    if change == "negated":
        maps = -maps
    if change == "inverted":
        maps = _wide(maps.flatten(1).amax(1), maps) - maps
    if change == "rescaled":
        maps = maps * _wide(10 ** (4 * draws.uniform(1, draw=1)[:, 0] - 2), maps)
    return maps


def _moved(maps: Float[Tensor, "n *shape"], draws: Draws) -> Float[Tensor, "n *shape"]:
    """Each map moved around the torus to a place of its own, never to where it was, all channels alike."""
    first = min(2, maps.ndim - 1)
    place = 1 + draws.integers(prod(maps.shape[first:]) - 1, 1, draw=2)[:, 0]
    for axis in range(first, maps.ndim):
        size = maps.shape[axis]
        by, place = place % size, place // size
        source = (torch.arange(size, device=maps.device) - by[:, None]) % size
        shape = [len(maps), *(size if each == axis else 1 for each in range(1, maps.ndim))]
        maps = maps.gather(axis, source.view(shape).expand_as(maps))
    return maps


def _unit(maps: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *shape"]:
    length = maps.flatten(1).norm(dim=1)
    return maps / _wide(torch.where(length > 0, length, 1), maps)


def _wide(values: Float[Tensor, " n"], maps: Float[Tensor, "n *shape"]) -> Float[Tensor, "n *ones"]:
    return values.to(maps).view(-1, *(1,) * (maps.ndim - 1))
