"""What is done to raw maps before they are compared: channels, sign and scale, each by name, in one place."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Channels = Literal["sum", "abs_sum", "each", "kept"]


def reduce_channels(maps: Float[Tensor, "n *shape"], channels: Channels) -> Float[Tensor, "n *axes"]:
    """One value a position: `sum` keeps sign and completeness, `abs_sum` is the sum of absolute values.

    `kept` leaves channels that are an axis of their own, frequency, as they are. `each` stands for maps that are
    compared channel by channel, in labels of scores. Tables [n, f] have no channels.
    """
    maps = maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps
    maps = maps.abs() if channels == "abs_sum" else maps
    return maps.sum(1) if maps.ndim > 2 and channels != "kept" else maps


def percentile_clip(maps: Float[Tensor, "n *axes"], percentile: float = 99.0) -> Float[Tensor, "n *axes"]:
    """Scale non-negative maps to [0, 1] by their own percentile, clipping above it; zero maps stay zero.

    Clipping makes ties among the largest values, so rank measures must not be computed on the result.
    """
    flat = maps.flatten(1)
    top = _percentile(flat, percentile)
    # A map with fewer non-zero values than the percentile leaves is scaled by its largest one.
    top = torch.where(top > 0, top, flat.amax(1, keepdim=True))
    scaled = (flat / top.clamp(min=torch.finfo(maps.dtype).tiny)).clamp(max=1)
    return scaled.view_as(maps)


def diverging_clip(maps: Float[Tensor, "n *axes"], percentile: float = 99.0) -> Float[Tensor, "n *axes"]:
    """Scale maps of both signs by the absolute value of their percentile, clipped to [-3, 1] as drawn by PAIR's code.

    What `adebayo2018sanity` compared by rank, with ties among the largest values; zero maps stay zero.
    """
    flat = maps.flatten(1)
    span = _percentile(flat, percentile).abs().clamp(min=torch.finfo(maps.dtype).tiny)
    return (flat / span).clamp(-3, 1).view_as(maps)


def _percentile(flat: Float[Tensor, "n d"], percentile: float) -> Float[Tensor, "n 1"]:
    """Linear interpolation between order statistics, as torch and numpy do; the largest ones are enough."""
    place = percentile / 100 * (flat.shape[1] - 1)
    below, share = int(place), place - int(place)
    largest = flat.topk(flat.shape[1] - below, dim=1).values
    return largest[:, -1:].lerp(largest[:, -2:-1], share) if share else largest[:, -1:]


def min_max(maps: Float[Tensor, "n *axes"]) -> Float[Tensor, "n *axes"]:
    """Scale maps to [0, 1] by their own smallest and largest value; constant maps become zero."""
    # By halves, because the span of a map that explodes may be beyond what its type holds.
    flat = maps.flatten(1) / 2
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    span = (high - low).clamp(min=torch.finfo(maps.dtype).tiny)
    return ((flat - low) / span).view_as(maps)


def degenerate(maps: Float[Tensor, "n *axes"], name: str = "") -> dict[str, Bool[Tensor, " n"]]:
    """Reason -> the maps it holds for: not finite, or the same value everywhere (no order, no variance)."""
    flat = maps.flatten(1)
    low, high = flat.amin(1), flat.amax(1)  # not a number where one value is not
    broken = ~(low.isfinite() & high.isfinite())
    flat_everywhere = ~broken & (low == high)
    suffix = f" ({name})" if name else ""
    return {f"not finite{suffix}": broken, f"constant map{suffix}": flat_everywhere}


def first_reason(*groups: dict[str, Bool[Tensor, " n"]]) -> dict[str, Bool[Tensor, " n"]]:
    """The reasons of all groups, each sample keeping only its first one; empty reasons are dropped."""
    result: dict[str, Bool[Tensor, " n"]] = {}
    taken: Bool[Tensor, " n"] | None = None
    for reason, where in (item for group in groups for item in group.items()):
        fresh = where if taken is None else where & ~taken
        taken = fresh if taken is None else taken | fresh
        if fresh.any():
            result[reason] = result[reason] | fresh if reason in result else fresh
    return result


def undefined_as_nan(values: Float[Tensor, " n"], undefined: dict[str, Bool[Tensor, " n"]]) -> Float[Tensor, " n"]:
    """The values, with NaN wherever there is a reason."""
    for where in undefined.values():
        values = values.masked_fill(where, torch.nan)
    return values
