"""The convention of Adebayo et al. against what its notebooks do, by SciPy and scikit-image, map by map."""

import numpy as np
import pytest
import torch
from sample_maps import MAPS, generator, normal, tied
from scipy import stats
from skimage.feature import hog as skimage_hog
from skimage.metrics import structural_similarity

from harness.metrics.comparison import compare, ready, shifted
from harness.metrics.preprocessing import diverging_clip
from harness.metrics.structure import ssim

SHAPES = {
    "image": (5, 3, 28, 28),
    "not square": (4, 3, 12, 17),
    "large image": (3, 3, 50, 49),
    "grey image": (5, 1, 28, 28),
    "signal": (5, 3, 30),
    "grey signal": (4, 1, 101),
    "table": (5, 40),
}
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
each_convention = pytest.mark.parametrize("convention", ["harness", "adebayo2018"])
LABELS = {
    "adebayo2018": [
        ("spearman", "sum", "signed", "diverging_clip"),
        ("spearman", "sum", "up_to_sign", "diverging_clip"),
        ("ssim", "each", "signed", "min_max_range_2"),
        ("hog", "sum", "signed", "min_max_rank"),
        ("spearman", "abs_sum", "absolute", "percentile_clip"),
    ],
    "harness": [
        ("spearman", "sum", "signed", "none"),
        ("spearman", "sum", "up_to_sign", "none"),
        ("hog", "sum", "signed", "min_max"),
        ("spearman", "abs_sum", "absolute", "none"),
        ("ssim", "abs_sum", "absolute", "percentile_clip"),
    ],
}


def lopsided(*shape, seed=0):
    """Maps with large values of both signs, so that clipping meets both ends."""
    maps = normal(*shape, seed=seed) ** 3
    return torch.where(maps < 0, 5 * maps, maps)


def diverging(image):
    """PAIR's `VisualizeImageDiverging`, of the sum over channels."""
    span = abs(np.percentile(image, 99))
    return np.clip((image + span) / (2 * span), -1, 1)


def grayscale(image):
    """PAIR's `VisualizeImageGrayscale`, of the sum of absolute values."""
    low, high = np.min(image), np.percentile(image, 99)
    return np.clip((image - low) / (high - low), 0, 1)


def scaled(image):
    return (image - image.min()) / (image.max() - image.min())


def similarities(a, b, convention):
    """What is promised for one pair of maps, by measure and sign."""
    original = convention == "adebayo2018"
    channels = a.ndim > 1
    total, magnitude = ([m.sum(0) if channels else m for m in maps] for maps in ((a, b), (np.abs(a), np.abs(b))))
    views = {"signed": total, "absolute": magnitude}
    if original and channels and len(a) > 1:
        views = {"signed": map(diverging, total), "absolute": map(grayscale, magnitude)}
    found = {("spearman", sign): stats.spearmanr(*(m.ravel() for m in pair))[0] for sign, pair in views.items()}
    found["spearman", "up_to_sign"] = abs(found["spearman", "signed"])
    if channels and original:
        pair = scaled(a), scaled(b)
        found["ssim", "signed"] = structural_similarity(*pair, gaussian_weights=True, channel_axis=0, data_range=2.0)
    elif channels:
        pair = [np.minimum(m / np.percentile(m, 99), 1) for m in magnitude]
        options = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 1.0}
        found["ssim", "absolute"] = structural_similarity(*pair, **options)
    if a.ndim == 3:
        cell = min(16, min(a.shape[1:]) // 3)
        options = {"orientations": 9, "pixels_per_cell": (cell, cell), "cells_per_block": (3, 3)}
        features = [skimage_hog(scaled(m), block_norm="L2-Hys", **options) for m in total]
        found["hog", "signed"] = (stats.spearmanr if original else stats.pearsonr)(*features)[0]
    return found


def scores(a, b, convention="adebayo2018"):
    """By measure and sign; `a` and `b` are maps or were made ready."""
    sides = [
        ready(maps, whose, convention=convention) if isinstance(maps, torch.Tensor) else maps
        for maps, whose in ((a, "a"), (b, "b"))
    ]
    return {(score.measure, score.sign): score for score in compare(*sides)}


def reasons(score):
    return {reason: where.nonzero().flatten().tolist() for reason, where in score.undefined.items()}


@pytest.mark.parametrize("shape", [(11, 11), (28, 28), (16, 33), (74, 75), (11,), (40,)])
@pytest.mark.parametrize(("data_range", "sigma"), [(1.0, 1.5), (2.0, 1.5), (255.0, 0.8)])
def test_ssim_with_sample_covariances_is_that_of_scikit_image(shape, data_range, sigma):
    a = torch.rand(3, *shape, generator=generator(), dtype=torch.float64) * data_range
    b = (a + 0.3 * data_range * normal(3, *shape)).clamp(0, data_range)
    options = {"gaussian_weights": True, "use_sample_covariance": True, "sigma": sigma, "data_range": data_range}
    expected = [structural_similarity(x.numpy(), y.numpy(), **options) for x, y in zip(a, b, strict=True)]
    found = ssim(a, b, data_range=data_range, sigma=sigma, sample_covariance=True)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-10)


DIVERGING = {
    "both ends": lopsided(4, 30, 31),
    "ties": tied(4, 16, 16, values=9),
    "mirrored ties": -tied(4, 16, 16, values=30),
    "negative": -lopsided(4, 16, 16).abs() - 0.01,
    "a value at the percentile": normal(4, 101),
} | {name: MAPS[name] for name in ("smooth", "heavy tails", "tied float32", "negative zero")}


@pytest.mark.parametrize("maps", DIVERGING.values(), ids=DIVERGING)
def test_the_diverging_clip_has_the_ranks_of_what_was_drawn(maps):
    for found, image in zip(diverging_clip(maps).numpy(), maps.double().numpy(), strict=True):
        assert np.array_equal(stats.rankdata(found), stats.rankdata(diverging(image)))
        literal = np.clip(image / abs(np.percentile(image, 99)), -3, 1)
        np.testing.assert_allclose(found, literal, rtol=0, atol=1e-12 if maps.dtype == torch.float64 else 2e-6)


def test_the_diverging_clip_keeps_zero_maps_and_the_sign_of_sparse_ones():
    maps = torch.zeros(2, 20, 20)
    maps[1, 0, :2] = torch.tensor([2.0, -3.0])
    found = diverging_clip(maps)
    assert not found[0].any()
    assert torch.equal(found[1].sign(), maps[1].sign())


@each_shape
@each_convention
@pytest.mark.parametrize("make", [lopsided, normal])
def test_both_conventions_are_what_they_say_pair_by_pair(shape, convention, make):
    a, b = make(*shape), make(*shape, seed=1) + 0.5 * make(*shape)
    pairs = zip(a.numpy(), b.numpy(), strict=True)
    expected = [similarities(*pair, convention) for pair in pairs]
    found = scores(a, b, convention)
    assert set(found) == set(expected[0])
    for name, score in found.items():
        # scikit-image sums magnitudes in float32.
        tolerance = 1e-4 if name[0] == "hog" else 1e-10
        wanted = torch.tensor([float(each[name]) for each in expected], dtype=torch.float64)
        torch.testing.assert_close(score.values, wanted, rtol=0, atol=tolerance, msg=str(name))


@each_convention
@pytest.mark.parametrize("channels", [1, 3])
def test_labels_say_what_was_done(convention, channels):
    found = scores(normal(3, channels, 16, 16), normal(3, channels, 16, 16, seed=1), convention)
    grey = convention == "adebayo2018" and channels == 1
    assert [(s.measure, s.channels, s.sign, s.normalization) for s in found.values()] == [
        (*label[:3], "none") if grey and label[0] == "spearman" else label for label in LABELS[convention]
    ]


def test_without_a_name_the_convention_is_that_of_the_harness():
    a, b = lopsided(4, 3, 16, 16), lopsided(4, 3, 16, 16, seed=1)
    found = {(s.measure, s.sign): s for s in compare(ready(a, "a"), ready(b, "b"))}
    for name, score in scores(a, b, "harness").items():
        assert torch.equal(found[name].values, score.values)
        assert found[name].normalization == score.normalization


@each_shape
def test_equal_maps_give_exactly_one(shape):
    for maps in (normal(*shape, dtype=torch.float32), tied(*shape)):
        for name, score in scores(maps, maps.clone()).items():
            assert (score.values == 1).all(), name


@each_shape
def test_shifting_what_is_ready_is_making_ready_what_is_shifted(shape):
    a, b = lopsided(*shape), lopsided(*shape, seed=1)
    words = torch.rand(len(b), max(len(shape) - 2, 1), generator=generator(), dtype=torch.float64)
    found, plain = scores(a, ready(b, "b", convention="adebayo2018").shifted(words)), scores(a, b)
    for name, score in scores(a, shifted(b, words)).items():
        torch.testing.assert_close(found[name].values, score.values, rtol=0, atol=1e-13)
        assert not torch.equal(plain[name].values, score.values)


@each_shape
def test_rolled_compares_each_sample_with_the_one_before(shape):
    a, b = lopsided(*shape), lopsided(*shape, seed=1)
    b[1] = 0
    found = scores(a, ready(b, "b", convention="adebayo2018").rolled())
    for name, score in scores(a, torch.stack([b[index - 1] for index in range(len(b))])).items():
        torch.testing.assert_close(found[name].values, score.values, rtol=0, atol=1e-13, equal_nan=True)
        assert reasons(found[name]) == reasons(score) == {"constant map (b)": [2]}


@each_shape
def test_broken_maps_are_nan_for_a_reason_and_alone(shape):
    first, *middle, last = shape
    a, b = lopsided(first + 3, *middle, last), lopsided(first + 3, *middle, last, seed=1)
    clean = scores(a[[0, -1]], b[[0, -1]])
    a[1], b[2], b[3].flatten()[0] = 0.7, torch.inf, torch.nan
    expected = {"constant map (a)": [1], "not finite (b)": [2, 3]}
    for name, score in scores(a, b).items():
        assert reasons(score) == expected
        assert score.values.isnan().nonzero().flatten().tolist() == [1, 2, 3]
        torch.testing.assert_close(score.values[[0, -1]], clean[name].values, rtol=0, atol=1e-13)


def test_a_map_that_is_constant_once_it_is_clipped_says_so():
    flat = torch.ones(2, 3, 28, 28)
    flat[0, :, 5, 5] = 2
    flat[1] = torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(1))
    other = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    first, second = (ready(maps, "a", convention="adebayo2018") for maps in (flat, other))
    for score in compare(first, second):
        told = {reason: where.tolist() for reason, where in score.undefined.items()}
        assert told == ({"constant once it is clipped (a)": [True, False]} if score.measure == "spearman" else {})
        assert score.values.isnan().tolist() == [score.measure == "spearman", False]


@pytest.mark.parametrize("convention", ["harness", "adebayo2018"])
def test_maps_that_explode_are_compared_as_if_they_were_small(convention):
    maps = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(3))
    large = maps / maps.abs().amax() * 1e38
    assert (large.amax() - large.amin()).isfinite()
    huge = large * 3  # finite, but its span is not
    assert huge.isfinite().all()
    assert (huge.amax() - huge.amin()).isinf()
    other = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(4))
    small, big = (
        {
            (s.measure, s.sign): s.values
            for s in compare(
                ready(m[:, :1], "a", convention=convention), ready(other[:, :1], "b", convention=convention)
            )
        }
        for m in (large, huge)
    )
    for key, values in small.items():
        assert torch.allclose(values, big[key], atol=1e-6), key
        assert values.isfinite().all()
