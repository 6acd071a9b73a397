"""Numbers as colours: what figures and the report show of maps, pictures and matrices."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps

from harness.types import Artifact

CLIP_PERCENTILE = 99.5
DIVERGING = "RdBu_r"
SEQUENTIAL = "Greys"
"""Of matrices that are nowhere below zero: white where they are zero, black where they are largest."""

Pixels = UInt8[np.ndarray, "... 3"]


@dataclass(frozen=True)
class HeatMap:
    """A matrix in colours.

    Attributes:
        pixels: [rows, columns, 3].
        low: the number of the first colour.
        high: that of the last one.
        signed: whether colours are diverging, with white at zero.
    """

    pixels: Pixels
    low: float
    high: float
    signed: bool


def pictures_of(artifact: Artifact) -> Pixels:
    """The pictures or maps of an artifact as pixels [k, h, w, 3].

    Pictures of one channel are grey, of three red, green and blue; of any other number the mean is shown. Of maps the
    sum over channels is shown: red where it is positive, blue where it is negative and white where it is zero, each map
    scaled by its own 99.5th percentile of absolute values.
    """
    values = artifact.values.numpy()
    if artifact.kind == "maps":
        return np.stack([coloured(each) for each in np.nan_to_num(values.sum(1).astype(np.float64))])
    pixels = values if values.shape[1] in (1, 3) else values.mean(1, keepdims=True).astype(np.uint8)
    return np.moveaxis(np.broadcast_to(pixels, (len(pixels), 3, *pixels.shape[2:])), 1, -1)


def limit_of(values: np.ndarray) -> float:
    """Where the colours of a map end: the 99.5th percentile of its absolute values.

    The largest one of a map with fewer values than that beside zero, and 0 for one that is zero everywhere.
    """
    return float(np.percentile(np.abs(values), CLIP_PERCENTILE) or np.abs(values).max())


def coloured(values: Float[np.ndarray, "*shape"], limit: float | None = None) -> Pixels:
    """Signed numbers as red and blue, darkest at the limit: by default the 99.5th percentile of absolute values."""
    limit = limit or limit_of(values) or 1.0
    return _bytes(colormaps[DIVERGING]((np.clip(values / limit, -1, 1) + 1) / 2))


def heat_map(artifact: Artifact) -> HeatMap:
    """A matrix in colours of its own scale, from zero on or with zero in the middle; grey where it has no number."""
    values = artifact.values.numpy().astype(np.float64)
    known = values[np.isfinite(values)]
    top = float(np.abs(known).max()) if known.size else 0.0
    signed = bool((known < 0).any())
    shades = coloured(values, top or 1.0) if signed else _bytes(colormaps[SEQUENTIAL](values / (top or 1.0)))
    shades = np.where(np.isfinite(values)[..., None], shades, np.uint8(128)).astype(np.uint8)
    return HeatMap(shades, -top if signed else 0.0, top, signed)


def _bytes(shades: Float[np.ndarray, "*shape 4"]) -> Pixels:
    return (shades[..., :3] * 255).round().astype(np.uint8)
