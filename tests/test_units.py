"""What is removed as one: patches, superpixels and sums over them, against plain loops and scikit-image."""

import numpy as np
import pytest
import torch
from skimage.segmentation import slic

from harness.space import InputSpace
from harness.units import patches, superpixels, unit_sizes, unit_sums

IMAGENET = InputSpace("image", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth(n, channels, height, width):
    """Pictures in [0, 1] with structure of a few pixels."""
    coarse = uniform(n, channels, 5, 5)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")


@pytest.mark.parametrize("axes", [(7, 8), (6, 6), (5, 9), (1, 10), (11,), (2, 3), (4, 5, 6)])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 20])
def test_patches_are_numbered_line_by_line_and_cut_off_at_the_far_border(axes, side):
    found = patches(axes, side, torch.device("cpu"))
    assert found.shape == axes
    numbers = {}
    for place in np.ndindex(*axes):
        corner = tuple(at // side for at in place)
        assert numbers.setdefault(corner, len(numbers)) == found[place]
    assert len(numbers) == np.prod([np.ceil(size / side) for size in axes])


@pytest.mark.parametrize("count", [4, 20, 10_000])
def test_superpixels_are_those_that_slic_makes_of_the_pixels_in_colour(count):
    pixels = smooth(4, 3, 20, 26)
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    found = superpixels((pixels - mean) / std, IMAGENET, count)
    for picture, labels in zip(pixels, found, strict=True):
        expected = slic(picture.permute(1, 2, 0).numpy(), n_segments=min(count, 520), compactness=10, start_label=0)
        np.testing.assert_array_equal(labels, expected)
        assert labels.unique().tolist() == list(range(int(labels.max()) + 1))
    assert (len({int(labels.max()) for labels in found}) > 1) == (count == 20)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_pictures_that_have_no_colours_are_compared_as_they_are(channels):
    pixels = smooth(3, channels, 21, 18)
    space = InputSpace("image", mean=(0.5,) * channels, std=(0.25,) * channels, low=-1.0, high=3.0)
    found = superpixels(((4 * pixels - 1) - 0.5) / 0.25, space, 12)
    for picture, labels in zip(pixels, found, strict=True):
        expected = slic(
            picture.permute(1, 2, 0).numpy(), n_segments=12, compactness=0.1, start_label=0, channel_axis=-1
        )
        np.testing.assert_array_equal(labels, expected)


def test_superpixels_do_not_depend_on_the_normalization_nor_on_the_batch():
    pixels = smooth(3, 3, 24, 24)
    plain = InputSpace("image", mean=(0.0,) * 3, std=(1.0,) * 3)
    mean, std = (torch.tensor(values).double().view(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    found = superpixels(pixels, plain, 16)
    assert torch.equal(superpixels((pixels - mean) / std, IMAGENET, 16), found)
    assert torch.equal(superpixels(pixels[2:], plain, 16), found[2:])
    single = superpixels(pixels.float(), plain, 16)
    assert single.shape == (3, 24, 24)
    assert single.dtype == torch.int64
    assert (single == superpixels(pixels.float().double(), plain, 16)).all()


def test_values_beyond_the_valid_range_count_as_its_ends():
    plain = InputSpace("image", mean=(0.0,) * 3, std=(1.0,) * 3)
    pixels = smooth(2, 3, 24, 24) * 3 - 1
    assert torch.equal(superpixels(pixels, plain, 16), superpixels(pixels.clamp(0, 1), plain, 16))
    assert not torch.equal(superpixels(pixels, plain, 16), superpixels((pixels + 1) / 3, plain, 16))


def test_where_no_range_is_declared_that_of_each_sample_serves():
    pixels = smooth(3, 3, 24, 24)
    low, high = pixels.flatten(1).amin(1).view(3, 1, 1, 1), pixels.flatten(1).amax(1).view(3, 1, 1, 1)
    plain = InputSpace("image", mean=(0.0,) * 3, std=(1.0,) * 3)
    expected = superpixels((pixels - low) / (high - low), plain, 16)
    assert torch.equal(superpixels(7 * pixels - 2, InputSpace("image"), 16), expected)


@pytest.mark.parametrize(("length", "count"), [(24, 5), (24, 24), (7, 3), (7, 100), (10, 1), (9, 2)])
def test_a_signal_is_cut_into_pieces_whose_lengths_differ_by_one_at_most(length, count):
    found = superpixels(uniform(3, 2, length), InputSpace("signal"), count)
    assert found.shape == (3, length)
    assert torch.equal(found, found[:1].expand_as(found))
    pieces = found[0].tolist()
    assert pieces == sorted(pieces)
    lengths = [pieces.count(piece) for piece in range(min(count, length))]
    assert sum(lengths) == length
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) >= 1


@pytest.mark.parametrize("count", [1, 3, 100])
def test_features_of_a_table_are_units_by_themselves_whatever_is_asked_for(count):
    found = superpixels(uniform(4, 9), InputSpace("table"), count)
    assert torch.equal(found, torch.arange(9).expand(4, -1))


def test_sums_and_sizes_of_units_are_those_of_a_loop():
    units = torch.tensor([[0, 2, 2, 1, 0, 2, 2], [0, 0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 1, 0, 1], [3, 0, 1, 2, 4, 4, 1]])
    values = uniform(4, 7) - 0.5
    sums, sizes = unit_sums(values, units), unit_sizes(units)
    assert sums.shape == sizes.shape == (4, 5)
    for sample in range(4):
        for unit in range(5):
            members = [float(values[sample, place]) for place in range(7) if units[sample, place] == unit]
            assert float(sums[sample, unit]) == pytest.approx(sum(members), abs=1e-15)
            assert int(sizes[sample, unit]) == len(members)


def test_sums_of_single_precision_are_taken_in_double():
    values = torch.full((1, 4096), 0.1).float()
    values[0, 0] = 1e8
    found = unit_sums(values, torch.zeros(1, 4096, dtype=torch.int64))
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(values.double().numpy().sum(), rel=1e-12)
