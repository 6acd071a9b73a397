"""What keeps the image that excites a unit most from being noise: penalties, and transformations to be robust to."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from harness.methods.image_parameters import frequencies


def frequency_penalty(x: Float[Tensor, "n c *axes"]) -> Float[Tensor, " n"]:
    r"""$\frac{1}{c N} \sum_f |f|^2 |\hat x_f|^2$, f in cycles a position; $\hat x$ is the orthonormal transform."""
    power = torch.fft.fftn(x, dim=tuple(range(2, x.ndim)), norm="ortho").abs().square()
    return (power * frequencies(x).square()).flatten(1).mean(1)


def total_variation(x: Float[Tensor, "n c *axes"]) -> Float[Tensor, " n"]:
    """The mean absolute difference of neighbours along each axis of positions, summed over these axes."""
    return sum((x.diff(dim=axis).abs().flatten(1).mean(1) for axis in range(2, x.ndim)), x.new_zeros(len(x)))


def moved(
    x: Float[Tensor, "n c *axes"],
    shift: Float[Tensor, "n axes"],
    angle: Float[Tensor, " n"],
    scale: Float[Tensor, " n"],
    beyond: Float[Tensor, "c ..."],
) -> Float[Tensor, "n c *axes"]:
    """Each image turned and scaled about its centre and then shifted, by linear interpolation.

    Args:
        x: images, or signals, which are only shifted.
        shift: along each axis of positions, in positions.
        angle: in degrees, counterclockwise as images are shown.
        scale: above 1 things become larger.
        beyond: what lies beyond the edge.
    """
    image = (x - beyond).unsqueeze(2) if x.ndim == 3 else x - beyond
    if x.ndim == 3:
        shift, angle, scale = F.pad(shift, (1, 0)), torch.zeros_like(angle), torch.ones_like(scale)
    height, width = image.shape[2:]
    cos, sin = angle.deg2rad().cos() / scale, angle.deg2rad().sin() / scale
    # From where each pixel comes, in pixels from the centre: the inverse of what is done to the image.
    turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    origin = -(turn @ shift.flip(1).unsqueeze(2))
    # `affine_grid` counts in halves of each side.
    halves = x.new_tensor([width / 2, height / 2])
    theta = torch.cat([turn * halves / halves[:, None], origin / halves[:, None]], 2)
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    result = F.grid_sample(image, grid, align_corners=False)
    return (result.squeeze(2) if x.ndim == 3 else result) + beyond


def spectral_slope(x: Float[Tensor, "n c *axes"]) -> Float[Tensor, " n"]:
    """The slope of the logarithm of power over that of frequency; about -2 for photographs, 0 for white noise.

    Power is summed over channels and averaged over rings of equal frequency, one cycle a side wide, up to half a cycle
    a position. NaN where a ring has no power.
    """
    spectrum = torch.fft.fftn(x, dim=tuple(range(2, x.ndim)), norm="ortho").abs().square().sum(1).flatten(1)
    side = min(x.shape[2:])
    ring = (frequencies(x) * side).round().long().flatten()
    count = torch.bincount(ring, minlength=side // 2 + 1)
    power = spectrum.new_zeros(len(x), len(count)).index_add(1, ring, spectrum) / count
    log_power, log_frequency = power[:, 1 : side // 2 + 1].log(), torch.arange(1, side // 2 + 1).to(x).log()
    centred = log_frequency - log_frequency.mean()
    slope = (log_power * centred).sum(1) / centred.square().sum()
    return torch.where(slope.isfinite(), slope, torch.nan)
