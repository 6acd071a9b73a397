"""The comparisons of two batches of maps that the randomization tests report, as scores."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from harness.metrics.preprocessing import (
    Channels,
    degenerate,
    first_reason,
    percentile_clip,
    reduce_channels,
    undefined_as_nan,
)
from harness.metrics.similarity import spearman, ssim
from harness.types import Score

SSIM_WINDOW = 11
VIEWS: tuple[tuple[Channels, str], ...] = (("sum", "signed"), ("abs_sum", "absolute"))


def compare(a: Float[Tensor, "n *shape"], b: Float[Tensor, "n *shape"], **labels: Any) -> Iterator[Score]:
    """Spearman of signed and of absolute maps, and SSIM of absolute ones clipped at their 99th percentile.

    SSIM is for images of at least 11 pixels a side; other maps get the rank correlations only. A pair in which
    a map is constant or not finite has no similarity: NaN with the reason.

    Args:
        a: raw maps of the trained network.
        b: raw maps to compare with.
        labels: further fields of the scores (role, mode, stage, draw).
    """
    for channels, sign in VIEWS:
        first, second = reduce_channels(a, channels), reduce_channels(b, channels)
        undefined = first_reason(degenerate(first, "trained network"), degenerate(second, "compared network"))
        view: dict[str, Any] = {"channels": channels, "sign": sign, "undefined": undefined, **labels}
        # What a measure does to a broken map is no number of ours; zeros in, NaN out.
        first, second = first.nan_to_num(0, 0, 0), second.nan_to_num(0, 0, 0)
        values = undefined_as_nan(spearman(first, second), undefined)
        yield Score("spearman", values, normalization="none", **view)
        if sign == "absolute" and first.ndim == 3 and min(first.shape[1:]) >= SSIM_WINDOW:
            values = ssim(percentile_clip(first), percentile_clip(second), data_range=1.0)
            yield Score("ssim", undefined_as_nan(values, undefined), normalization="percentile_clip", **view)


def shifted(maps: Float[Tensor, "n *shape"], words: Float[Tensor, "n axes"]) -> Float[Tensor, "n *shape"]:
    """Each map moved around the torus by its own random offset, never by zero.

    The null that keeps what makes maps look alike by chance: their values and their smoothness. Permuting
    pixels would destroy the smoothness and understate chance more than tenfold.

    Args:
        maps: [n,c,h,w], [n,c,t] or, for tables, [n,f].
        words: uniform numbers in (0, 1), one for each position axis.
    """
    start = 2 if maps.ndim > 2 else 1
    for axis, word in zip(range(start, maps.ndim), words.unbind(1), strict=True):
        size = maps.shape[axis]
        offset = 1 + (word * (size - 1)).long().clamp(max=max(size - 2, 0))
        index = (torch.arange(size, device=maps.device) - offset[:, None]) % size
        index = index.view(len(maps), *(size if a == axis else 1 for a in range(1, maps.ndim)))
        maps = maps.gather(axis, index.expand_as(maps))
    return maps
