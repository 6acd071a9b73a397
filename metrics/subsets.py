"""What the output loses without some units of the input: single ones, or random subsets that all methods share."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from harness.metrics.perturbation import Outputs, Removing, rounding, unknown

VALUES = 2**22
"""How many numbers are drawn, sorted or summed at once."""


def drops_of(removing: Removing, left: Outputs) -> Outputs:
    """What each version loses of what the untouched sample has."""
    return {name: removing.untouched()[name][:, None] - values for name, values in left.items()}


def single_drops(removing: Removing) -> Outputs:
    """What is lost without each unit, the others in their place; computed once for all methods."""
    alone = removing.once("each unit alone", lambda: removing.outputs(removing.sizes.shape[1], one(removing)))
    return drops_of(removing, alone)


def one(removing: Removing) -> Callable[[Int[Tensor, " m"], Int[Tensor, " m"]], Bool[Tensor, "m units"]]:
    """Marks the unit that has the number of the version, of each sample."""
    number = torch.arange(removing.sizes.shape[1], device=removing.sizes.device)
    return lambda _, version: number == version[:, None]


def same_drops(
    removing: Removing, drops: Float[Tensor, "n k"], of: str, output: str = "logit"
) -> dict[str, Bool[Tensor, " n"]]:
    """Where what is lost correlates with nothing: it is unknown, or differs by nothing but the rounding of outputs."""
    size = removing.untouched()[output].abs().maximum(drops.abs().amax(1))
    same = drops.amax(1) - drops.amin(1) <= rounding(removing.case, size)
    return {**unknown(drops), f"the same drop for every {of}": same}


def same_sums(sums: Float[Tensor, "n k"], of: str) -> dict[str, Bool[Tensor, " n"]]:
    """Where sums of the map differ by nothing but rounding, in the type that maps have at least."""
    level = torch.finfo(torch.float32).eps * sums.abs().amax(1)
    return {f"the same sum in every {of}": sums.amax(1) - sums.amin(1) <= level}


def subset_ranks(removing: Removing, subsets: int) -> Int[Tensor, "n subsets units"]:
    """Random orders of the units of each sample; the first k of each are a random subset of size k, for every k."""
    known = removing.case.shared_here("subsets")
    key = (removing.removal.patch, removing.removal.superpixels, subsets)
    if key not in known:
        absent, draws = removing.sizes == 0, removing.case.draws("perturbation", "subsets")
        n, units = absent.shape
        # The largest thing that is kept, so in the smallest type that holds it.
        kind = torch.int16 if units < 2**15 else torch.int32
        found = torch.empty(n, subsets, units, dtype=kind, device=absent.device)
        for part in torch.arange(n, device=absent.device).split(max(VALUES // (subsets * units), 1)):
            # By unit first, so that the numbers of a sample do not depend on how many units others have.
            bits = draws[part].bits(units, subsets).transpose(1, 2).masked_fill(absent[part, None], 2**32)
            found[part] = bits.argsort(2).argsort(2).to(kind)
        known[key] = found
    ranks: Tensor = known[key]
    return ranks


def subset_drops(
    removing: Removing, ranks: Int[Tensor, "n subsets units"], size: Int[Tensor, " n"], key: object
) -> Outputs:
    """What is lost without the first `size` units of each order; computed once for all methods."""

    def without() -> Outputs:
        return removing.outputs(ranks.shape[1], lambda rows, version: ranks[rows, version] < size[rows, None])

    return drops_of(removing, removing.once(("subsets", ranks.shape[1], key), without))


def subset_sums(sums: Float[Tensor, "n units"], chosen: Bool[Tensor, "n subsets units"]) -> Float[Tensor, "n subsets"]:
    """The sum of the map over each subset."""
    size = max(VALUES // chosen[0].numel(), 1)
    parts = zip(chosen.split(size), sums.double().split(size), strict=True)
    return torch.cat([torch.einsum("nku,nu->nk", each.double(), theirs) for each, theirs in parts])
