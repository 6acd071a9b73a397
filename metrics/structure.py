"""Similarities that look at where values lie next to each other: SSIM and HOG."""

from dataclasses import dataclass, replace
from math import pi

import torch
from jaxtyping import Bool, Float, Int
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
        variance: in each window.
        data_range: see `ssim`.
        sigma: see `ssim`.
        sample_covariance: see `ssim`.
    """

    values: Float[Tensor, "n *axes"]
    mean: Float[Tensor, "n *inner"]
    mean_square: Float[Tensor, "n *inner"]
    variance: Float[Tensor, "n *inner"]
    data_range: float
    sigma: float
    sample_covariance: bool

    def similarity(self, other: "Windows") -> Float[Tensor, " n"]:
        """The mean structural similarity of each pair."""
        c1, c2 = (0.01 * self.data_range) ** 2, (0.03 * self.data_range) ** 2
        product = self.mean * other.mean
        covariance = _correction(self.values, self.sigma, self.sample_covariance) * (
            _blurred(self.values * other.values, self.sigma) - product
        )
        luminance = (2 * product + c1) / (self.mean_square + other.mean_square + c1)
        structure = (2 * covariance + c2) / (self.variance + other.variance + c2)
        return (luminance * structure).flatten(1).mean(1)

    def moved(self, index: Int[Tensor, "n d"]) -> "Windows":
        """Other values are next to each other then, so their windows are new."""
        values = self.values.flatten(1).gather(1, index).view_as(self.values)
        return windows(values, self.data_range, self.sigma, self.sample_covariance)


@dataclass(frozen=True)
class Channelwise(Prepared):
    """The mean over channels of the similarity of each.

    Attributes:
        inner: one row for each channel of each map.
        channels: of a map.
    """

    inner: Windows
    channels: int

    def similarity(self, other: "Channelwise") -> Float[Tensor, " n"]:
        """The mean of those of the channels."""
        return self.inner.similarity(other.inner).view(-1, self.channels).mean(1)

    def moved(self, index: Int[Tensor, "n d"]) -> "Channelwise":
        """All channels of a map together."""
        return replace(self, inner=self.inner.moved(index.repeat_interleave(self.channels, 0)))

    def rolled(self) -> "Channelwise":
        """As many rows further as a map has channels."""
        inner = self.inner
        for _ in range(self.channels):
            inner = inner.rolled()
        return replace(self, inner=inner)

    def everywhere(self) -> Bool[Tensor, " n"]:
        """A mask that holds all maps."""
        return self.inner.everywhere()[:: self.channels]


def windows(
    maps: Float[Tensor, "n *axes"], data_range: float, sigma: float = 1.5, sample_covariance: bool = False
) -> Windows:
    """See `ssim`."""
    values = maps.double().contiguous()
    mean = _blurred(values, sigma)
    square = mean * mean
    variance = _correction(values, sigma, sample_covariance) * (_blurred(values * values, sigma) - square)
    return Windows(values, mean, square, variance, data_range, sigma, sample_covariance)


def ssim(
    a: Float[Tensor, "n *axes"],
    b: Float[Tensor, "n *axes"],
    *,
    data_range: float,
    sigma: float = 1.5,
    sample_covariance: bool = False,
) -> Float[Tensor, " n"]:
    """Structural similarity (`wang2004image`) with a Gaussian window cut at 3.5 standard deviations.

    Mean over the positions whose window lies inside: scikit-image's `structural_similarity(gaussian_weights=True)`,
    for images and for signals.

    Args:
        a: maps.
        b: maps.
        data_range: the length of the range that the values can take; enters the two constants.
        sigma: of the window, in positions.
        sample_covariance: with N positions in a window, covariances are times N / (N - 1), as in scikit-image by
            default; else they are those of the population.
    """
    first, second = (windows(maps, data_range, sigma, sample_covariance) for maps in (a, b))
    return first.similarity(second)


def _correction(values: Float[Tensor, "n *axes"], sigma: float, sample_covariance: bool) -> float:
    size = (2 * _radius(sigma) + 1) ** (values.ndim - 1)
    return size / (size - 1) if sample_covariance else 1.0


def _radius(sigma: float) -> int:
    return int(3.5 * sigma + 0.5)


def _blurred(values: Float[Tensor, "n *axes"], sigma: float) -> Float[Tensor, "n *inner"]:
    """Gaussian means over the windows that lie inside. The axes come out in another order, the same for all maps.

    One axis after the other, each in blocks that a matrix multiplies: much faster than a convolution in float64.
    """
    radius = _radius(sigma)
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
