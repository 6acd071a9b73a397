"""SSIM and HOG: against scikit-image, a literal re-implementation and closed forms."""

import math

import numpy as np
import pytest
import torch
from sample_maps import each_map, generator, normal, partner
from scipy import stats
from skimage.feature import hog as skimage_hog
from skimage.metrics import structural_similarity

from harness.metrics.preprocessing import min_max
from harness.metrics.structure import hog, hog_descriptors, ssim

OPTIONS = {"gaussian_weights": True, "use_sample_covariance": False}


@pytest.mark.parametrize("shape", [(11, 11), (28, 28), (16, 33), (74, 75), (150, 12), (11,), (40,), (1000,)])
@pytest.mark.parametrize("data_range", [1.0, 2.0, 255.0])
def test_ssim_agrees_with_scikit_image(shape, data_range):
    a = torch.rand(4, *shape, generator=generator(), dtype=torch.float64) * data_range
    b = (a + 0.3 * data_range * normal(4, *shape)).clamp(0, data_range)
    expected = [
        structural_similarity(x.numpy(), y.numpy(), sigma=1.5, data_range=data_range, **OPTIONS)
        for x, y in zip(a, b, strict=True)
    ]
    torch.testing.assert_close(ssim(a, b, data_range=data_range), torch.tensor(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.8, 1.5, 2.5])
@pytest.mark.parametrize("shape", [(30, 30), (30,)])
def test_the_window_of_ssim_follows_its_sigma(sigma, shape):
    a, b = torch.rand(2, 1, *shape, generator=generator(), dtype=torch.float64)
    expected = structural_similarity(a[0].numpy(), b[0].numpy(), sigma=sigma, data_range=1.0, **OPTIONS)
    assert float(ssim(a, b, data_range=1.0, sigma=sigma)) == pytest.approx(expected, abs=1e-10)


@each_map
def test_ssim_of_hard_maps_agrees_with_scikit_image(maps):
    a, b = min_max(maps), min_max(partner(maps))
    expected = [
        structural_similarity(x.double().numpy(), y.double().numpy(), sigma=1.5, data_range=1.0, **OPTIONS)
        for x, y in zip(a, b, strict=True)
    ]
    torch.testing.assert_close(ssim(a, b, data_range=1.0), torch.tensor(expected), rtol=0, atol=1e-10)


def test_ssim_of_constant_maps_is_their_luminance():
    a, b = torch.full((1, 20, 20), 0.2, dtype=torch.float64), torch.full((1, 20, 20), 0.6, dtype=torch.float64)
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert float(ssim(a, b, data_range=1.0)) == pytest.approx(expected, abs=1e-12)


@each_map
@pytest.mark.parametrize("cell", [3, 4, None])
def test_descriptors_agree_with_scikit_image(maps, cell):
    maps = min_max(maps)
    side = cell or min(16, min(maps.shape[1:]) // 3)
    # scikit-image sums magnitudes in float32.
    expected = np.stack([skimage_hog(m.double().numpy(), pixels_per_cell=(side, side)) for m in maps])
    torch.testing.assert_close(hog_descriptors(maps.double(), cell), torch.tensor(expected), rtol=0, atol=2e-6)


@pytest.mark.parametrize("side", [12, 13, 28, 32, 47, 48, 49, 64, 224])
def test_hog_agrees_with_scikit_image_at_every_side(side):
    a = min_max(normal(3, side, side, dtype=torch.float32) ** 3)
    b = min_max(a + 0.1 * normal(3, side, side, seed=1, dtype=torch.float32))
    cell = min(16, side // 3)
    first, second = (np.stack([skimage_hog(m.numpy(), pixels_per_cell=(cell, cell)) for m in x]) for x in (a, b))
    expected = torch.tensor([np.corrcoef(x, y)[0, 1] for x, y in zip(first, second, strict=True)])
    torch.testing.assert_close(hog(a, b), expected.double(), rtol=0, atol=1e-5)


@each_map
def test_hog_takes_pearson_or_spearman_of_the_descriptors(maps):
    other = partner(maps)
    descriptors = zip(hog_descriptors(maps).numpy(), hog_descriptors(other).numpy(), strict=True)
    pairs = [(stats.pearsonr(x, y)[0], stats.spearmanr(x, y)[0]) for x, y in descriptors]
    expected = torch.tensor(pairs, dtype=torch.float64)
    torch.testing.assert_close(hog(maps, other), expected[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(hog(maps, other, rank=True), expected[:, 1], rtol=0, atol=1e-12)


def literal_hog(image, cell):
    """Dalal and Triggs, pixel by pixel."""
    height, width = image.shape
    rows, columns = height // cell, width // cell
    histogram = np.zeros((rows, columns, 9))
    for y in range(rows * cell):
        for x in range(columns * cell):
            down = image[y + 1, x] - image[y - 1, x] if 0 < y < height - 1 else 0.0
            right = image[y, x + 1] - image[y, x - 1] if 0 < x < width - 1 else 0.0
            degrees = math.degrees(math.atan2(down, right)) % 180
            histogram[y // cell, x // cell, int(degrees // 20) % 9] += math.hypot(down, right) / cell**2
    blocks = []
    for row in range(rows - 2):
        for column in range(columns - 2):
            block = histogram[row : row + 3, column : column + 3].ravel()
            block = np.minimum(block / np.sqrt((block**2).sum() + 1e-10), 0.2)
            blocks.append(block / np.sqrt((block**2).sum() + 1e-10))
    return np.concatenate(blocks)


@each_map
def test_descriptors_agree_with_their_definition(maps):
    maps = min_max(maps)[:2].double()
    cell = min(16, min(maps.shape[1:]) // 3)
    expected = torch.tensor(np.stack([literal_hog(m.numpy(), cell) for m in maps]))
    torch.testing.assert_close(hog_descriptors(maps), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("degrees", "expected"), [(0, 0), (19, 0), (21, 1), (90, 4), (130, 6), (179, 8), (181, 0)])
def test_a_ramp_has_one_orientation(degrees, expected):
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(60.0), indexing="ij")
    angle = math.radians(degrees)
    ramp = (x * math.cos(angle) + y * math.sin(angle)).double()
    # The middle cell of nine sees no border.
    histogram = hog_descriptors(ramp[None], 20).view(3, 3, 9)[1, 1]
    assert histogram.nonzero().flatten().tolist() == [expected]


def test_a_gradient_just_below_the_axis_is_in_the_last_bin():
    # Its angle rounds to 180 degrees, which lies in no bin.
    maps = (torch.arange(60, dtype=torch.float64) - 30).repeat(1, 60, 1)
    maps[:, :, 30] = -1e-20 * torch.arange(60)
    histogram = hog_descriptors(maps, 20).view(3, 3, 9)[1, 1]
    assert histogram.nonzero().flatten().tolist() == [0, 8]
    assert float(histogram[8] / histogram[0]) > 1 / 19


def test_descriptors_are_blind_to_an_affine_change():
    maps = normal(4, 28, 28)
    torch.testing.assert_close(hog_descriptors(5 * maps - 3), hog_descriptors(maps), rtol=0, atol=1e-8)
    torch.testing.assert_close(hog_descriptors(-maps), hog_descriptors(maps), rtol=0, atol=1e-12)


def test_maps_without_gradients_have_no_hog():
    checkerboard = (torch.arange(28)[:, None] + torch.arange(28)).remainder(2).double()
    columns = torch.arange(28).remainder(2).double().expand(28, 28)
    other = normal(2, 28, 28)
    for rank in (False, True):
        assert hog(torch.stack([checkerboard, columns]), other, rank=rank).isnan().all()
        assert not hog(other, other.flip(0), rank=rank).isnan().any()


@pytest.mark.parametrize(
    ("shape", "cell", "least"), [((2, 11, 30), None, 12), ((2, 40, 11), None, 12), ((2, 23, 40), 8, 24)]
)
def test_hog_needs_three_cells_a_side(shape, cell, least):
    with pytest.raises(ValueError, match=rf"expected maps of at least {least} pixels a side for HOG, got \({shape[1]}"):
        hog(normal(*shape), normal(*shape), pixels_per_cell=cell)
