"""Similarity to edges: by SciPy and scikit-image, exactly one for edges themselves, and zero for noise."""

import numpy as np
import pytest
import torch
from sample_maps import normal
from scipy import ndimage, stats
from skimage.feature import hog
from skimage.filters import sobel
from skimage.metrics import structural_similarity

from cases import Linear, case_of, rows, values
from harness.edges import edge_strength
from harness.metrics.comparison import shifted

each_convention = pytest.mark.parametrize("convention", ["harness", "adebayo2018"])
each_channels = pytest.mark.parametrize("channels", [1, 3])


def case_for(x, maps):
    model = Linear(normal(2, x[0].numel(), seed=9).to(x.dtype))
    return case_of(model, x, torch.zeros(len(x), dtype=torch.int64), maps)


def pictures(n, channels, height=20, width=23):
    """Smooth images, in float64."""
    noise = normal(n, channels, height, width, seed=3).numpy()
    return torch.tensor(ndimage.gaussian_filter(noise, (0, 0, 1.5, 1.5)))


def edges_of(image):
    return sobel(image.mean(0), mode="nearest")


def spread(image):
    return (image - image.min()) / (image.max() - image.min())


def similarities(attribution, edges, convention):
    """Of one map [c, h, w] to edges [h, w] that stand in each of its channels."""
    edges = np.broadcast_to(edges, attribution.shape)
    first, second = np.abs(attribution).sum(0), edges.sum(0)
    cell = min(edges.shape[1:]) // 3
    features = [hog(spread(m.sum(0)), pixels_per_cell=(cell, cell)) for m in (attribution, edges)]
    clipped = [np.minimum(m / np.percentile(m, 99), 1) for m in (first, second)]
    options = {"gaussian_weights": True, "channel_axis": 0}
    if convention == "harness":
        options |= {"use_sample_covariance": False, "data_range": 1.0}
        correlation, rank = stats.pearsonr(*features)[0], (first, second)
        structure = structural_similarity(*(m[None] for m in clipped), **options)
    else:
        correlation, rank = stats.spearmanr(*features)[0], clipped if len(attribution) > 1 else (first, second)
        structure = structural_similarity(spread(attribution), spread(edges), data_range=2.0, **options)
    return {"spearman": stats.spearmanr(*(m.ravel() for m in rank))[0], "ssim": structure, "hog": correlation}


@pytest.mark.parametrize("shape", [(3, 9, 12), (1, 28, 28), (2, 3, 3)])
def test_edge_strength_is_that_of_scikit_image_inside_and_at_the_replicated_border(shape):
    x = normal(4, *shape)
    found = edge_strength(x)[:, 0].numpy()
    for each, image in zip(found, x.numpy(), strict=True):
        np.testing.assert_allclose(each[1:-1, 1:-1], sobel(image.mean(0))[1:-1, 1:-1], rtol=0, atol=1e-12)
        padded = np.pad(image.mean(0), 1, mode="edge")
        np.testing.assert_allclose(each, sobel(padded)[1:-1, 1:-1], rtol=0, atol=1e-12)


@each_convention
@each_channels
def test_the_edges_themselves_score_exactly_one(convention, channels):
    frame = rows(case_for(pictures(4, channels), "sobel"), "edge_similarity", convention=convention)
    for measure in ("spearman", "ssim", "hog"):
        assert values(frame, measure, role="test").tolist() == [1.0] * 4
        assert (values(frame, measure, role="floor_shift") < 0.9).all()


@each_convention
@each_channels
def test_noise_scores_zero_but_for_chance(convention, channels):
    x = pictures(150, channels, 28, 28)
    frame = rows(case_for(x, "random"), "edge_similarity", convention=convention, measures=["spearman"])
    for role in ("test", "floor_shift"):
        found = values(frame, "spearman", role=role)
        assert len(found) == 150
        assert abs(found.mean()) < 4 / (150 * (28 * 28 - 1)) ** 0.5


@each_convention
@each_channels
@pytest.mark.parametrize("pixels", [1, 3])
def test_scores_are_those_of_scipy_and_scikit_image_also_for_shifted_edges(convention, channels, pixels):
    x = pictures(4, pixels)
    maps = normal(4, channels, 20, 23) + 20 * pictures(4, channels).abs()
    case = case_for(x, maps)
    edges = torch.tensor(np.stack([edges_of(image) for image in x.numpy()]))
    moved = shifted(edges[:, None], case.draws("edge_similarity", "shift").uniform(2))[:, 0]
    frame = rows(case, "edge_similarity", convention=convention)
    for role, theirs in (("test", edges), ("floor_shift", moved)):
        pairs = zip(maps.numpy(), theirs.numpy(), strict=True)
        expected = [similarities(*pair, convention) for pair in pairs]
        for measure in ("spearman", "ssim", "hog"):
            found = values(frame, measure, role=role).tolist()
            tolerance = 1e-3 if measure == "hog" else 1e-10
            assert found == pytest.approx([each[measure] for each in expected], abs=tolerance), (role, measure)


@each_convention
def test_signed_ranks_are_left_out(convention):
    case = case_for(pictures(3, 3), normal(3, 3, 20, 23))
    frame = rows(case, "edge_similarity", convention=convention, measures=["spearman", "ssim", "hog", "cosine"])
    found = set(frame[["measure", "sign"]].itertuples(index=False, name=None))
    structure = "absolute" if convention == "harness" else "signed"
    expected = {("spearman", "absolute"), ("cosine", "absolute"), ("ssim", structure), ("hog", "signed")}
    assert found == expected
    assert len(frame) == 3 * 2 * 4


@each_convention
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_without_edges_is_nan_for_that_reason_and_alone(convention, dtype):
    x, maps = pictures(8, 3).to(dtype), normal(8, 3, 20, 23).to(dtype)
    for sample, level in enumerate((0.1, 0.3, -0.7, 1.9, 0.0), 1):
        x[sample] = level
    maps[6] = 0.5
    frame = rows(case_for(x, maps), "edge_similarity", convention=convention)
    for role, measure in ((r, m) for r in ("test", "floor_shift") for m in ("spearman", "ssim", "hog")):
        assert values(frame, measure, role=role).isnan().tolist() == [False, *[True] * 6, False]
    found = frame[frame["value"].isna()].groupby("sample")["reason"].unique()
    flat = {f"s{sample}": ["constant map (edges)"] for sample in range(1, 6)}
    assert {sample: list(each) for sample, each in found.items()} == {**flat, "s6": ["constant map (map)"]}


def test_flat_regions_have_no_edges_at_all():
    tiles = torch.rand(2, 3, 7, 7, generator=torch.Generator().manual_seed(0)).repeat_interleave(32, 2)
    edges = edge_strength(tiles.repeat_interleave(32, 3))
    inside = edges.view(2, 7, 32, 7, 32)[:, :, 1:-1, :, 1:-1]
    assert (inside == 0).all()
    assert (edges > 0).any()
