"""How alike two batches of maps are, one number a pair, on the device that the maps are on.

All are symmetric, at most 1, and exactly 1 for equal maps. Correlations are NaN where a map is constant.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d


def ranks(values: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Ranks from 1 to d in each row, ties sharing their average rank, float64."""
    size = values.shape[1]
    ordered, order = values.sort(1)
    position = torch.arange(size, device=values.device).expand_as(order)
    starts = torch.ones_like(order, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    ends = starts.roll(-1, 1)
    first = torch.where(starts, position, 0).cummax(1).values
    last = torch.where(ends, position, size).flip(1).cummin(1).values.flip(1)
    average = (first + last).double() / 2 + 1
    return torch.empty_like(average).scatter_(1, order, average)


def pearson(a: Float[Tensor, "n *shape"], b: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
    r"""Pearson correlation of each pair: $\sum \hat a \hat b / \sqrt{\sum \hat a^2 \sum \hat b^2}$, centred."""
    a, b = (v.flatten(1).double() for v in (a, b))
    # Rounding the mean of a constant leaves residues that would correlate.
    constant = (a.amax(1) == a.amin(1)) | (b.amax(1) == b.amin(1))
    a, b = (v - v.mean(1, keepdim=True) for v in (a, b))
    # One square root of the product: for equal maps it gives back the sum itself, so the quotient is exactly 1.
    scale = ((a * a).sum(1) * (b * b).sum(1)).sqrt()
    return ((a * b).sum(1) / scale).clamp(-1, 1).masked_fill(constant, torch.nan)


def spearman(a: Float[Tensor, "n *shape"], b: Float[Tensor, "n *shape"]) -> Float[Tensor, " n"]:
    """Spearman rank correlation of each pair: Pearson correlation of average ranks."""
    return pearson(ranks(a.flatten(1)), ranks(b.flatten(1)))


def ssim(
    a: Float[Tensor, "n h w"], b: Float[Tensor, "n h w"], *, data_range: float, sigma: float = 1.5
) -> Float[Tensor, " n"]:
    """Structural similarity (`wang2004image`) with a Gaussian window cut at 3.5 standard deviations.

    Population covariances, mean over the positions whose window lies inside: scikit-image's
    `structural_similarity(gaussian_weights=True, use_sample_covariance=False)`.

    Args:
        a: maps.
        b: maps.
        data_range: the length of the range that the values can take; enters the two constants.
        sigma: of the window, in pixels.
    """
    radius = int(3.5 * sigma + 0.5)
    axis = torch.arange(-radius, radius + 1, dtype=torch.float64, device=a.device)
    window = (-0.5 * (axis / sigma) ** 2).exp()
    window /= window.sum()

    def blur(values: Float[Tensor, "n h w"]) -> Float[Tensor, "n inner_h inner_w"]:
        columns = conv2d(values[:, None], window.view(1, 1, -1, 1))
        return conv2d(columns, window.view(1, 1, 1, -1))[:, 0]

    a, b = a.double(), b.double()
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a * mean_a, blur(b * b) - mean_b * mean_b
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a * mean_a + mean_b * mean_b + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).flatten(1).mean(1)
