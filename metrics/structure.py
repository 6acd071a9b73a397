"""Similarities that look at where values lie next to each other: SSIM and HOG."""

from dataclasses import dataclass
from math import pi

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from harness.metrics.similarity import Prepared, Vectors, centred, ranked

WINDOW = 11
"""Values a side that the window of SSIM spans at its default width, the least that a map must have."""

CELL, LEAST_CELL, CELLS, ORIENTATIONS = 16, 4, 3, 9
LEAST_SIDE = LEAST_CELL * CELLS
"""Pixels a side that a map must have for a HOG descriptor."""

BLOCK = 64
EPSILON, HYSTERESIS = 1e-5, 0.2


@dataclass(frozen=True)
class Windows(Prepared):
    """Maps with the mean and the variance in each Gaussian window that lies inside.

    Attributes:
        values: the maps.
        mean: in each window.
        mean_square: the square of it.
        variance: in each window, of the population.
        data_range: see `ssim`.
        sigma: see `ssim`.
    """

    values: Float[Tensor, "n *axes"]
    mean: Float[Tensor, "n *inner"]
    mean_square: Float[Tensor, "n *inner"]
    variance: Float[Tensor, "n *inner"]
    data_range: float
    sigma: float

    def similarity(self, other: "Windows") -> Float[Tensor, " n"]:
        """The mean structural similarity of each pair."""
        c1, c2 = (0.01 * self.data_range) ** 2, (0.03 * self.data_range) ** 2
        product = self.mean * other.mean
        covariance = _blurred(self.values * other.values, self.sigma) - product
        luminance = (2 * product + c1) / (self.mean_square + other.mean_square + c1)
        structure = (2 * covariance + c2) / (self.variance + other.variance + c2)
        return (luminance * structure).flatten(1).mean(1)

    def moved(self, index: Int[Tensor, "n d"]) -> "Windows":
        """Other values are next to each other then, so their windows are new."""
        values = self.values.flatten(1).gather(1, index).view_as(self.values)
        return windows(values, self.data_range, self.sigma)


def windows(maps: Float[Tensor, "n *axes"], data_range: float, sigma: float = 1.5) -> Windows:
    """See `ssim`."""
    values = maps.double().contiguous()
    mean = _blurred(values, sigma)
    square = mean * mean
    return Windows(values, mean, square, _blurred(values * values, sigma) - square, data_range, sigma)


def ssim(
    a: Float[Tensor, "n *axes"], b: Float[Tensor, "n *axes"], *, data_range: float, sigma: float = 1.5
) -> Float[Tensor, " n"]:
    """Structural similarity (`wang2004image`) with a Gaussian window cut at 3.5 standard deviations.

    Population covariances, mean over the positions whose window lies inside: scikit-image's
    `structural_similarity(gaussian_weights=True, use_sample_covariance=False)`, for images and for signals.

    Args:
        a: maps.
        b: maps.
        data_range: the length of the range that the values can take; enters the two constants.
        sigma: of the window, in positions.
    """
    return windows(a, data_range, sigma).similarity(windows(b, data_range, sigma))


def _blurred(values: Float[Tensor, "n *axes"], sigma: float) -> Float[Tensor, "n *inner"]:
    """Gaussian means over the windows that lie inside. The axes come out in another order, the same for all maps.

    One axis after the other, each in blocks that a matrix multiplies: much faster than a convolution in float64.
    """
    radius = int(3.5 * sigma + 0.5)
    for _ in range(values.ndim - 1):
        inner = values.shape[-1] - 2 * radius
        blocks = -(-inner // BLOCK)
        size = -(-inner // blocks)
        place = torch.arange(size + 2 * radius, dtype=torch.float64, device=values.device)
        distance = place[:, None] - place[:size] - radius
        band = (-0.5 * (distance / sigma) ** 2).exp() * (distance.abs() <= radius)
        band /= band.sum(0)
        covered = pad(values, (0, blocks * size - inner)).unfold(-1, size + 2 * radius, size)
        values = (covered @ band).flatten(-2)[..., :inner].movedim(-1, 1)
    return values


@dataclass(frozen=True)
class Descriptors(Vectors):
    """HOG descriptors, centred, beside the maps that they are of.

    Attributes:
        maps: the maps.
        pixels_per_cell: see `hog`.
        rank: see `hog`.
    """

    maps: Float[Tensor, "n h w"]
    pixels_per_cell: int | None
    rank: bool

    def moved(self, index: Int[Tensor, "n d"]) -> "Descriptors":
        """Other values are next to each other then, so their gradients are new."""
        maps = self.maps.flatten(1).gather(1, index).view_as(self.maps)
        return descriptors(maps, self.pixels_per_cell, self.rank)


def descriptors(maps: Float[Tensor, "n h w"], pixels_per_cell: int | None = None, rank: bool = False) -> Descriptors:
    """See `hog`."""
    features = hog_descriptors(maps, pixels_per_cell)
    vectors = ranked(features) if rank else centred(features)
    constant = features.amax(1) == features.amin(1)
    return Descriptors(vectors.values, vectors.squares.masked_fill(constant, torch.nan), maps, pixels_per_cell, rank)


def hog(
    a: Float[Tensor, "n h w"], b: Float[Tensor, "n h w"], *, pixels_per_cell: int | None = None, rank: bool = False
) -> Float[Tensor, " n"]:
    """Pearson correlation of the HOG descriptors of each pair; NaN where a descriptor is constant.

    A descriptor is constant where the map has no gradient, as in a constant map and in a checkerboard.

    Args:
        a: maps.
        b: maps.
        pixels_per_cell: see `hog_descriptors`.
        rank: Spearman instead, as in the code of `adebayo2018sanity`.
    """
    first, second = (descriptors(maps, pixels_per_cell, rank) for maps in (a, b))
    return first.similarity(second)


def hog_descriptors(maps: Float[Tensor, "n h w"], pixels_per_cell: int | None = None) -> Float[Tensor, "n d"]:
    r"""Histograms of oriented gradients (`dalal2005histograms`), float64: scikit-image's `feature.hog`.

    In each cell, the gradient magnitudes of its pixels are summed in 9 bins of orientation over 180 degrees. Each
    block of 3 x 3 cells is scaled to $v / \sqrt{|v|^2 + \epsilon^2}$, cut at 0.2 and scaled again (L2-Hys).

    Args:
        maps: of at least 3 cells a side; what is left of the last cells at the right and at the bottom is unused.
        pixels_per_cell: a side; by default 16, or in maps too small for that a third of the shorter side.

    Raises:
        ValueError: the maps are too small.
    """
    side = min(maps.shape[1:])
    cell = pixels_per_cell or min(CELL, side // CELLS)
    if side < max(CELLS * cell, LEAST_SIDE if pixels_per_cell is None else 0):
        least = LEAST_SIDE if pixels_per_cell is None else CELLS * cell
        raise ValueError(f"expected maps of at least {least} pixels a side for HOG, got {tuple(maps.shape[1:])}")
    histograms = _orientation_histograms(maps, cell)
    blocks = histograms.unfold(1, CELLS, 1).unfold(2, CELLS, 1).permute(0, 1, 2, 4, 5, 3).flatten(3)
    blocks = blocks / ((blocks * blocks).sum(3, keepdim=True) + EPSILON**2).sqrt()
    blocks = blocks.clamp(max=HYSTERESIS)
    blocks = blocks / ((blocks * blocks).sum(3, keepdim=True) + EPSILON**2).sqrt()
    return blocks.flatten(1)


def _orientation_histograms(maps: Float[Tensor, "n h w"], cell: int) -> Float[Tensor, "n rows columns orientations"]:
    """Mean gradient magnitude in each bin of orientation, in each cell."""
    n, rows, columns = len(maps), maps.shape[1] // cell, maps.shape[2] // cell

    def in_cells(part: Float[Tensor, "n h w"]) -> Float[Tensor, "cells pixels"]:
        whole = part[:, : rows * cell, : columns * cell].unflatten(1, (rows, cell)).unflatten(3, (columns, cell))
        return whole.transpose(2, 3).reshape(-1, cell * cell).double()

    down, right = torch.zeros_like(maps), torch.zeros_like(maps)
    down[:, 1:-1] = maps[:, 2:] - maps[:, :-2]
    right[:, :, 1:-1] = maps[:, :, 2:] - maps[:, :, :-2]
    down, right = in_cells(down), in_cells(right)
    # Orientations lie in [-90, 90] degrees, and the bin around 90 is met from both ends: ten bins for nine.
    angle = torch.atan2(torch.where(right < 0, -down, down), right.abs())
    index = (angle * (ORIENTATIONS / pi)).floor().long() + 5
    magnitude = down.hypot(right)
    # As integers, because their sum does not depend on the order in which a device adds.
    scale = 2.0 ** (62 - (cell * cell).bit_length())
    largest = magnitude.view(n, -1).amax(1).clamp(min=1e-200).repeat_interleave(rows * columns)[:, None]
    votes = torch.zeros(len(index), ORIENTATIONS + 1, dtype=torch.long, device=maps.device)
    votes.scatter_add_(1, index, (magnitude * (scale / largest)).long())
    sums = votes.double() * (largest / (scale * cell**2))
    around = sums[:, :1] + sums[:, -1:]
    return torch.cat([sums[:, 5:-1], around, sums[:, 1:5]], 1).view(n, rows, columns, ORIENTATIONS)
