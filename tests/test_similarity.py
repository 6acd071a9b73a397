"""Similarities of values and what is done to maps before them: against scipy, numpy, counting and closed forms."""

import numpy as np
import pytest
import torch
from sample_maps import each_map, generator, normal, partner
from scipy import stats

from harness.metrics.preprocessing import (
    degenerate,
    first_reason,
    min_max,
    percentile_clip,
    reduce_channels,
    undefined_as_nan,
)
from harness.metrics.similarity import cosine, pearson, ranks, spearman, top_k
from harness.metrics.structure import hog, ssim

MEASURES = {
    "pearson": pearson,
    "spearman": spearman,
    "cosine": cosine,
    "top_k": top_k,
    "ssim": lambda a, b: ssim(a, b, data_range=1.0),
    "hog": hog,
}
each_measure = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)


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
    pairs = [(a.double().numpy().ravel(), b.double().numpy().ravel()) for a, b in zip(maps, partner(maps), strict=True)]
    expected = torch.tensor([reference(a, b)[0] for a, b in pairs])
    tolerance = 1e-8 if maps.double().mean() > 1e5 and measure is pearson else 1e-10
    torch.testing.assert_close(measure(maps, partner(maps)), expected, rtol=0, atol=tolerance)


@each_map
def test_cosine_agrees_with_its_definition(maps):
    other = partner(maps)
    expected = [
        np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
        for a, b in zip(maps.flatten(1).double().numpy(), other.flatten(1).double().numpy(), strict=True)
    ]
    torch.testing.assert_close(cosine(maps, other), torch.tensor(expected), rtol=0, atol=1e-12)


def literal_top_k(a, b, fraction):
    """Places are given away from the largest value down; values that are equal get equal shares."""

    def weights(row):
        count = max(1, round(fraction * len(row)))
        left, result = float(count), [0.0] * len(row)
        for value in sorted(set(row), reverse=True):
            places = [place for place, other in enumerate(row) if other == value]
            share = min(1.0, left / len(places))
            for place in places:
                result[place] = share
            left -= share * len(places)
        return result, count

    (first, count), (second, _) = weights(a), weights(b)
    return sum(map(min, first, second)) / count


@each_map
@pytest.mark.parametrize("fraction", [0.1, *(pytest.param(each, marks=pytest.mark.slow) for each in (0.001, 0.5, 1.0))])
def test_top_k_agrees_with_counting(maps, fraction):
    other = partner(maps)
    rows = zip(maps.flatten(1).tolist(), other.flatten(1).tolist(), strict=True)
    expected = torch.tensor([literal_top_k(a, b, fraction) for a, b in rows], dtype=torch.float64)
    torch.testing.assert_close(top_k(maps, other, fraction=fraction), expected, rtol=0, atol=1e-12)


def test_top_k_of_maps_without_ties_is_the_overlap_of_sets():
    a, b = normal(6, 20, 20), normal(6, 20, 20, seed=1) + normal(6, 20, 20)
    largest = [[set(row.topk(40).indices.tolist()) for row in maps.flatten(1)] for maps in (a, b)]
    expected = [len(first & second) / 40 for first, second in zip(*largest, strict=True)]
    assert top_k(a, b).tolist() == expected
    assert top_k(a, -a).tolist() == [0.0] * 6


def test_ties_at_the_boundary_share_what_is_left():
    # Two places: one for 3, and the other for three values of 2.
    a = torch.tensor([[3.0, 2.0, 2.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    assert float(top_k(a, a.flip(1), fraction=0.2)) == 0
    assert float(top_k(a, a.roll(1, 1), fraction=0.2)) == pytest.approx((1 / 3 + 1 / 3 + 1 / 3) / 2)
    assert float(top_k(a, torch.zeros_like(a), fraction=0.2)) == pytest.approx((0.2 + 3 * 0.2) / 2)


def test_independent_maps_have_their_fraction_of_top_k_in_common():
    a, b = normal(400, 1000), normal(400, 1000, seed=1)
    # Hypergeometric: k/d = 0.1, variance (1 - k/d)^2 k/d d/(d - 1) / k.
    limit = 4 * (0.9**2 / 999 / 400) ** 0.5
    assert abs(float(top_k(a, b).mean()) - 0.1) < limit


@pytest.mark.parametrize("shape", [(4, 30), (4, 3, 17), (4, 5, 6), (4, 3, 5, 6)])
@pytest.mark.parametrize("measure", [pearson, spearman, cosine, top_k])
def test_measures_of_values_take_maps_of_every_shape(shape, measure):
    a, b = normal(*shape), normal(*shape, seed=1)
    assert torch.equal(measure(a, b), measure(a.flatten(1), b.flatten(1)))


@each_map
@each_measure
def test_equal_maps_give_exactly_one(maps, measure):
    assert torch.equal(measure(maps, maps.clone()), torch.ones(len(maps), dtype=torch.float64))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("measure", [pearson, spearman, cosine, top_k])
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
    assert torch.equal(cosine(maps, -maps), minus_one)


def test_what_each_measure_is_blind_to():
    a, b = normal(5, 12, 12), normal(5, 12, 12, seed=1)
    assert torch.equal(top_k(a.exp(), b**3), top_k(a, b))
    torch.testing.assert_close(cosine(3 * a, b / 7), cosine(a, b), rtol=0, atol=1e-13)
    assert torch.equal(spearman(a.exp(), b**3), spearman(a, b))
    torch.testing.assert_close(pearson(3 * a - 2, b / 7), pearson(a, b), rtol=0, atol=1e-13)


@pytest.mark.parametrize("constant", [0.0, 1.0, -2.5])
@pytest.mark.parametrize("measure", [pearson, spearman, hog])
def test_a_constant_map_has_no_correlation(measure, constant):
    flat, maps = torch.full((3, 12, 17), constant, dtype=torch.float64), normal(3, 12, 17)
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


@each_map
def test_percentile_clip_agrees_with_numpy_in_the_precision_of_the_maps(maps):
    maps = maps.abs()
    top = np.percentile(maps.flatten(1).double().numpy(), 99, axis=1).reshape(-1, 1, 1)
    expected = torch.tensor(np.minimum(maps.double().numpy() / top, 1))
    rounding = 4 * torch.finfo(maps.dtype).eps
    torch.testing.assert_close(percentile_clip(maps).double(), expected, rtol=rounding, atol=0)


def test_min_max_scales_each_map_by_its_own_ends():
    maps = torch.stack([normal(6, 7), 5 * normal(6, 7, seed=1) - 3, torch.full((6, 7), 2.0, dtype=torch.float64)])
    scaled = min_max(maps)
    for raw, done in zip(maps[:2], scaled[:2], strict=True):
        torch.testing.assert_close(done, (raw - raw.min()) / (raw.max() - raw.min()), rtol=1e-14, atol=0)
        assert (float(done.min()), float(done.max())) == (0, 1)
    assert torch.equal(scaled[2], torch.zeros(6, 7, dtype=torch.float64))


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


@pytest.mark.parametrize("size", [5, 30, 784, 1000])
def test_a_constant_whose_mean_is_rounded_still_has_no_correlation(size):
    constant, other = torch.full((1, size), 0.1, dtype=torch.float64), torch.rand(1, size, dtype=torch.float64)
    for measure in (pearson, spearman):
        assert measure(constant, other).isnan()
        assert measure(constant, constant).isnan()
