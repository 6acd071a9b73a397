"""Pearson correlations of images, of which a constant one has none."""

import torch
from jaxtyping import Float
from torch import Tensor


def centred(vectors: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    """Vectors minus their own mean, float64, and zero where rounding alone is left."""
    vectors = vectors.double()
    moved = vectors - vectors.mean(-1, keepdim=True)
    left = moved.norm(dim=-1, keepdim=True) > 1e-6 * vectors.norm(dim=-1, keepdim=True)
    return torch.where(left, moved, 0)


def correlation(one: Float[Tensor, "n *shape"], other: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
    """Pearson correlation of the images of each pair over all their values; NaN where one of them is constant."""
    one, other = (centred(each.flatten(1)) for each in (one, other))
    return (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))
