"""What is done to raw maps before they are compared: channels, sign and scale, each by name, in one place."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Channels = Literal["sum", "abs_sum"]


def reduce_channels(maps: Float[Tensor, "n *shape"], channels: Channels) -> Float[Tensor, "n *axes"]:
    """One value a position: `sum` keeps sign and completeness, `abs_sum` is the sum of absolute values.

    Tables [n, f] have no channels and keep their shape.
    """
    maps = maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps
    maps = maps.abs() if channels == "abs_sum" else maps
    return maps.sum(1) if maps.ndim > 2 else maps


def percentile_clip(maps: Float[Tensor, "n *axes"], percentile: float = 99.0) -> Float[Tensor, "n *axes"]:
    """Scale non-negative maps to [0, 1] by their own percentile, clipping above it; zero maps stay zero.

    Clipping makes ties among the largest values, so rank measures must not be computed on the result.
    """
    flat = maps.flatten(1)
    top = flat.quantile(percentile / 100, dim=1, keepdim=True)
    # A map with fewer non-zero values than the percentile leaves is scaled by its largest one.
    top = torch.where(top > 0, top, flat.amax(1, keepdim=True))
    scaled = (flat / top.clamp(min=torch.finfo(maps.dtype).tiny)).clamp(max=1)
    return scaled.view_as(maps)


def degenerate(maps: Float[Tensor, "n *axes"], name: str = "") -> dict[str, Bool[Tensor, " n"]]:
    """Reason -> the maps it holds for: not finite, or the same value everywhere (no order, no variance)."""
    flat = maps.flatten(1)
    broken = ~flat.isfinite().all(1)
    flat_everywhere = ~broken & (flat.amax(1) == flat.amin(1))
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
