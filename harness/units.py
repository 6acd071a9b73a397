"""What is removed or hidden as one: square patches, superpixels, pieces of a signal, features of a table."""

import numpy as np
import torch
from jaxtyping import Float, Int
from skimage.segmentation import slic
from torch import Tensor

from harness.space import InputSpace

COMPACTNESS = {3: 10.0}
"""Of SLIC, by the number of channels: colours are compared in CIELAB, which goes to 100, others as they are."""


def patches(axes: tuple[int, ...], side: int, device: torch.device) -> Int[Tensor, "*axes"]:
    """The number of the square patch of `side` that each position lies in; patches at the border may be smaller."""
    index = torch.zeros(axes, dtype=torch.int64, device=device)
    for axis, size in enumerate(axes):
        patch = torch.arange(size, device=device) // side
        index = index * (-(-size // side)) + patch.view(-1, *(1,) * (len(axes) - axis - 1))
    return index


def superpixels(x: Float[Tensor, "n *shape"], space: InputSpace, count: int) -> Int[Tensor, "n ..."]:
    """The unit of each position, 0 to about `count` - 1: superpixels (`achanta2012slic`), pieces, or features.

    Samples may have different numbers of superpixels; those of each are numbered from 0 without gaps.
    """
    axes = x.shape[2:] or x.shape[1:]
    if len(axes) == 1:
        pieces = min(count, axes[0]) if x.ndim > 2 else axes[0]
        return (torch.arange(axes[0], device=x.device) * pieces // axes[0]).expand(len(x), -1)
    pixels = space.within_box(x).clamp(0, 1).movedim(1, -1).double().cpu().numpy()
    labels = [
        slic(picture, min(count, axes[0] * axes[1]), COMPACTNESS.get(x.shape[1], 0.1), start_label=0, channel_axis=-1)
        for picture in pixels
    ]
    return torch.from_numpy(np.stack(labels)).to(x.device)


def unit_sizes(units: Int[Tensor, "n d"]) -> Int[Tensor, "n units"]:
    """How many positions each unit of each sample has; 0 for those that a sample does not have."""
    sizes = units.new_zeros(len(units), int(units.max()) + 1)
    return sizes.scatter_add_(1, units, torch.ones_like(units))


def unit_sums(values: Float[Tensor, "n d"], units: Int[Tensor, "n d"]) -> Float[Tensor, "n units"]:
    """The sum of the values over each unit, float64."""
    values = values.double()
    return values.new_zeros(len(values), int(units.max()) + 1).scatter_add_(1, units, values)
