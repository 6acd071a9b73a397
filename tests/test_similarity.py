"""Similarities and what is done to maps before them: against scipy, scikit-image, numpy and closed forms."""

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from skimage.metrics import structural_similarity

from harness.metrics.comparison import compare, shifted
from harness.metrics.preprocessing import degenerate, first_reason, percentile_clip, reduce_channels, undefined_as_nan
from harness.metrics.similarity import pearson, ranks, spearman, ssim

MEASURES = {"pearson": pearson, "spearman": spearman, "ssim": lambda a, b: ssim(a, b, data_range=1.0)}
each_measure = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def tied(*shape, seed=0, values=5):
    return torch.randint(-2, values - 2, shape, generator=generator(seed)).double()


def sobel(n=3, side=28):
    """Edges of a sparse drawing: mostly zero, many equal values."""
    drawing = (normal(n, side, side) > 1.5).numpy().astype(np.float32)
    return torch.tensor(np.array([np.hypot(ndimage.sobel(d, 0), ndimage.sobel(d, 1)) for d in drawing]))


MAPS = {
    "normal": normal(5, 16, 16),
    "float32": normal(5, 16, 16, dtype=torch.float32),
    "smooth": torch.tensor(ndimage.gaussian_filter(normal(5, 40, 40).numpy(), (0, 4, 4))),
    "tied": tied(5, 16, 16),
    "tied float32": (tied(5, 16, 16) / 3).float(),
    "mostly zero": normal(5, 28, 28, dtype=torch.float32).relu() * (tied(5, 28, 28) > 1),
    "tiny": normal(5, 16, 16, dtype=torch.float32) * 1e-38,
    "huge": normal(5, 16, 16, dtype=torch.float32) * 1e30,
    "far from zero": normal(5, 16, 16) + 1e6,
    "sobel": sobel(),
}
each_map = pytest.mark.parametrize("maps", MAPS.values(), ids=MAPS)


@each_map
def test_ties_share_their_average_rank(maps):
    expected = stats.rankdata(maps.flatten(1).numpy(), axis=1)
    assert torch.equal(ranks(maps.flatten(1)), torch.tensor(expected))


@pytest.mark.parametrize("row", [[3.0], [2.0, 2.0], [0.0, -0.0, 1.0], [1.0, 1.0, 0.0, 0.0], [float("inf"), 0.0, 1.0]])
def test_ranks_of_short_rows(row):
    assert ranks(torch.tensor([row]))[0].tolist() == stats.rankdata(row).tolist()


@each_map
@pytest.mark.parametrize(("measure", "reference"), [(pearson, stats.pearsonr), (spearman, stats.spearmanr)])
def test_correlations_agree_with_scipy(maps, measure, reference):
    # scipy works in the precision it is given, and we in float64.
    other = normal(*maps.shape, seed=1) + (maps / maps.abs().max()).double()
    expected = [reference(a.double().numpy().ravel(), b.numpy().ravel())[0] for a, b in zip(maps, other, strict=True)]
    tolerance = 1e-8 if maps.double().mean() > 1e5 and measure is pearson else 1e-10
    torch.testing.assert_close(measure(maps, other), torch.tensor(expected), rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", [(4, 30), (4, 3, 17), (4, 5, 6), (4, 3, 5, 6)])
@pytest.mark.parametrize("measure", [pearson, spearman])
def test_correlations_take_maps_of_every_shape(shape, measure):
    a, b = normal(*shape), normal(*shape, seed=1)
    assert torch.equal(measure(a, b), measure(a.flatten(1), b.flatten(1)))


@pytest.mark.parametrize("shape", [(11, 11), (28, 28), (16, 33)])
@pytest.mark.parametrize("data_range", [1.0, 2.0, 255.0])
def test_ssim_agrees_with_scikit_image(shape, data_range):
    a = torch.rand(4, *shape, generator=generator(), dtype=torch.float64) * data_range
    b = (a + 0.3 * data_range * normal(4, *shape)).clamp(0, data_range)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": data_range}
    expected = [structural_similarity(x.numpy(), y.numpy(), **options) for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(ssim(a, b, data_range=data_range), torch.tensor(expected), rtol=0, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.8, 1.5, 2.5])
def test_the_window_of_ssim_follows_its_sigma(sigma):
    a, b = torch.rand(2, 1, 30, 30, generator=generator(), dtype=torch.float64)
    options = {"gaussian_weights": True, "sigma": sigma, "use_sample_covariance": False, "data_range": 1.0}
    expected = structural_similarity(a[0].numpy(), b[0].numpy(), **options)
    assert float(ssim(a, b, data_range=1.0, sigma=sigma)) == pytest.approx(expected, abs=1e-10)


@each_map
@each_measure
def test_equal_maps_give_exactly_one(maps, measure):
    assert torch.equal(measure(maps, maps.clone()), torch.ones(len(maps), dtype=torch.float64))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("measure", [pearson, spearman])
def test_equal_tables_give_exactly_one_at_every_size(measure, seed):
    maps = normal(50, 2 + 37 * seed, seed=seed, dtype=torch.float32)
    assert torch.equal(measure(maps, maps.clone()), torch.ones(50, dtype=torch.float64))


@each_measure
def test_equal_maps_give_exactly_one_in_any_memory_layout(measure):
    maps = normal(3, 20, 14, dtype=torch.float32)
    strided = maps.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(measure(maps, strided), torch.ones(3, dtype=torch.float64))


@each_map
@each_measure
def test_similarity_is_symmetric_and_at_most_one(maps, measure):
    other = maps.flip(1)
    assert torch.equal(measure(maps, other), measure(other, maps))
    assert (measure(maps, other) <= 1).all()


@each_measure
def test_a_pair_does_not_depend_on_its_batch(measure):
    a, b = normal(6, 20, 20), normal(6, 20, 20, seed=1)
    alone = torch.cat([measure(a[i : i + 1], b[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(measure(a, b), alone, rtol=0, atol=1e-14)


def test_reversed_ranks_give_minus_one():
    maps = normal(5, 12, 12)
    minus_one = -torch.ones(5, dtype=torch.float64)
    assert torch.equal(spearman(maps, -maps), minus_one)
    assert torch.equal(spearman(maps, (-maps).exp()), minus_one)
    assert torch.equal(pearson(maps, -maps), minus_one)


def test_spearman_is_blind_to_monotone_rescaling_and_pearson_to_affine():
    a, b = normal(5, 12, 12), normal(5, 12, 12, seed=1)
    assert torch.equal(spearman(a.exp(), b**3), spearman(a, b))
    torch.testing.assert_close(pearson(3 * a - 2, b / 7), pearson(a, b), rtol=0, atol=1e-13)


@pytest.mark.parametrize("constant", [0.0, 1.0, -2.5])
@pytest.mark.parametrize("measure", [pearson, spearman])
def test_a_constant_map_has_no_correlation(measure, constant):
    flat, maps = torch.full((3, 6, 7), constant, dtype=torch.float64), normal(3, 6, 7)
    for pair in ((flat, maps), (maps, flat), (flat, flat)):
        assert measure(*pair).isnan().all()


@pytest.mark.parametrize("constant", [0.1, 1 / 3, 1e20])
def test_a_constant_map_has_no_rank_correlation_where_its_mean_is_rounded(constant):
    assert spearman(torch.full((3, 6, 7), constant, dtype=torch.float64), normal(3, 6, 7)).isnan().all()


@pytest.mark.parametrize("q", [0.0, 0.2, 0.5, 0.821, 0.95])
def test_shared_zeros_alone_give_the_absolute_rank_correlation_of_the_closed_form(q):
    size = 40_000
    kept = torch.arange(size) >= round(q * size)
    a, b = normal(4, size) * kept, normal(4, size, seed=1) * kept
    absolute, signed = spearman(a.abs(), b.abs()), spearman(a, b)
    expected = 3 * q / (3 * q + (1 - q) ** 2)
    # The standard error of a rank correlation of independent rows is 1/sqrt(d), and 1/sqrt(d (1 - q)) if only
    # that share of them adds to it.
    limit = 4 / size**0.5
    assert float((absolute - expected).abs().max()) < limit
    assert float(signed.abs().max()) < limit / (1 - q) ** 0.5


def test_channels_are_reduced_with_and_without_sign():
    maps = torch.tensor([[[1.0, -2.0], [-3.0, -4.0]]])
    assert reduce_channels(maps, "sum").tolist() == [[-2.0, -6.0]]
    assert reduce_channels(maps, "abs_sum").tolist() == [[4.0, 6.0]]
    table = torch.tensor([[1.0, -2.0]])
    assert reduce_channels(table, "sum").tolist() == [[1.0, -2.0]]
    assert reduce_channels(table, "abs_sum").tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("percentile", [50.0, 95.0, 99.0, 100.0])
@pytest.mark.parametrize("shape", [(4, 33), (4, 20, 21)])
def test_percentile_clip_agrees_with_numpy(percentile, shape):
    maps = normal(*shape).abs() * 1e-6
    top = np.percentile(maps.flatten(1).numpy(), percentile, axis=1).reshape(-1, *(1,) * (len(shape) - 1))
    expected = torch.tensor(np.minimum(maps.numpy() / top, 1))
    torch.testing.assert_close(percentile_clip(maps, percentile), expected, rtol=1e-12, atol=0)


def test_percentile_clip_scales_a_very_sparse_map_by_its_largest_value_and_leaves_zeros():
    maps = torch.zeros(2, 20, 20)
    maps[0, 3, 4], maps[0, 5, 5] = 4.0, 1.0
    expected = torch.zeros(2, 20, 20)
    expected[0, 3, 4], expected[0, 5, 5] = 1.0, 0.25
    assert torch.equal(percentile_clip(maps), expected)


def test_degenerate_maps_are_named_once():
    maps = normal(5, 4, 4)
    maps[1], maps[2, 0, 0], maps[3] = 0.5, torch.nan, torch.inf
    found = degenerate(maps, "a")
    assert {reason: where.tolist() for reason, where in found.items()} == {
        "not finite (a)": [False, False, True, True, False],
        "constant map (a)": [False, True, False, False, False],
    }
    assert set(degenerate(maps)) == {"not finite", "constant map"}


def test_each_sample_keeps_its_first_reason_only():
    masks = torch.rand(5, 200, generator=generator()) < 0.3
    groups = {"a": masks[0], "b": masks[1]}, {"c": masks[2], "a": masks[3]}, {"none": masks[4] & False}
    result = first_reason(*groups)
    assert set(result) == {"a", "b", "c"}
    order = [("a", masks[0]), ("b", masks[1]), ("c", masks[2]), ("a", masks[3])]
    for sample in range(200):
        expected = [reason for reason, where in order if where[sample]][:1]
        assert [reason for reason, where in result.items() if where[sample]] == expected
    values = undefined_as_nan(torch.ones(200), result)
    assert torch.equal(values.isnan(), masks[:4].any(0))
    assert torch.equal(values[~values.isnan()], torch.ones(int((~masks[:4].any(0)).sum())))


def test_no_reasons_leave_no_mask():
    assert first_reason() == {}
    assert first_reason({"a": torch.zeros(3, dtype=torch.bool)}) == {}


def test_compare_reports_both_signs_and_clips_only_for_ssim():
    a, b = normal(4, 3, 16, 16), normal(4, 3, 16, 16, seed=1)
    scores = {(s.measure, s.channels, s.sign, s.normalization): s.values for s in compare(a, b, draw=2)}
    absolute = a.abs().sum(1), b.abs().sum(1)
    expected = {
        ("spearman", "sum", "signed", "none"): spearman(a.sum(1), b.sum(1)),
        ("spearman", "abs_sum", "absolute", "none"): spearman(*absolute),
        ("ssim", "abs_sum", "absolute", "percentile_clip"): ssim(*map(percentile_clip, absolute), data_range=1.0),
    }
    assert set(scores) == set(expected)
    for name, values in expected.items():
        assert torch.equal(scores[name], values), name
    assert {score.draw for score in compare(a, b, draw=2)} == {2}


@pytest.mark.parametrize("shape", [(4, 3, 10, 30), (4, 3, 40), (4, 9)])
def test_compare_has_no_ssim_of_small_images_signals_and_tables(shape):
    assert [score.measure for score in compare(normal(*shape), normal(*shape, seed=1))] == ["spearman"] * 2


def test_compare_gives_nan_and_one_reason_to_a_pair_with_a_degenerate_map():
    a, b = normal(5, 2, 12, 12), normal(5, 2, 12, 12, seed=1)
    a[1], b[1], b[2], a[3] = 0, torch.nan, 0, torch.inf
    clean = {(s.measure, s.sign): s.values for s in compare(a[[0, 4]], b[[0, 4]])}
    for score in compare(a, b):
        assert {reason: where.nonzero().flatten().tolist() for reason, where in score.undefined.items()} == {
            "constant map (trained network)": [1],
            "constant map (compared network)": [2],
            "not finite (trained network)": [3],
        }
        assert score.values.isnan().tolist() == [False, True, True, True, False]
        torch.testing.assert_close(score.values[[0, 4]], clean[score.measure, score.sign], rtol=0, atol=1e-14)


SHIFTS = {"image": (6, 3, 5, 7), "signal": (6, 3, 11), "table": (6, 13)}


def axes_of(shape):
    return range(2 if len(shape) > 2 else 1, len(shape))


@pytest.mark.parametrize("shape", SHIFTS.values(), ids=SHIFTS)
@pytest.mark.parametrize("seed", range(5))
def test_shifted_is_a_roll_on_the_torus_by_the_samples_own_offset(shape, seed):
    maps, axes = normal(*shape), list(axes_of(shape))
    words = torch.rand(len(maps), len(axes), generator=generator(seed), dtype=torch.float64)
    moved = shifted(maps, words)
    for sample, word in enumerate(words):
        offsets = [1 + int(w * (shape[axis] - 1)) for w, axis in zip(word.tolist(), axes, strict=True)]
        rolled = maps[sample].roll(offsets, [axis - 1 for axis in axes])
        assert torch.equal(moved[sample], rolled)
    assert torch.equal(moved.flatten(1).sort(1).values, maps.flatten(1).sort(1).values)


@pytest.mark.parametrize("shape", SHIFTS.values(), ids=SHIFTS)
@pytest.mark.parametrize("word", [2.0**-33, 0.5, 1 - 2.0**-33, 1.0])
def test_no_word_leaves_any_axis_where_it_is(shape, word):
    # A word just below one is one in float32.
    axes = list(axes_of(shape))
    for axis in axes:
        line = torch.arange(shape[axis], dtype=torch.float64)
        maps = line.view(-1, *(1,) * (len(shape) - 1 - axis)).expand(shape)
        for dtype in (torch.float32, torch.float64):
            moved = shifted(maps, torch.full((len(maps), len(axes)), word, dtype=dtype))
            assert (moved != maps).all()


@pytest.mark.parametrize("size", [2, 5])
def test_offsets_are_uniform_over_all_but_zero(size):
    words = torch.rand(20_000, 1, generator=generator(), dtype=torch.float64)
    moved = shifted(torch.eye(size, dtype=torch.float64)[:1].expand(20_000, -1), words)
    counts = moved.sum(0)
    assert float(counts[0]) == 0
    assert size == 2 or stats.chisquare(counts[1:].numpy()).pvalue > 0.01


@pytest.mark.parametrize("size", [5, 30, 784, 1000])
def test_a_constant_whose_mean_is_rounded_still_has_no_correlation(size):
    constant, other = torch.full((1, size), 0.1, dtype=torch.float64), torch.rand(1, size, dtype=torch.float64)
    for measure in (pearson, spearman):
        assert measure(constant, other).isnan()
        assert measure(constant, constant).isnan()
