"""Correlations over subsets and groups: closed forms on linear models, and twins that read what the model saw."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from cases import Linear, case_of, network, rows, values
from harness import METRICS
from harness.study import choose
from harness.types import InputError

EVERY = {
    "faithfulness_correlation": ({"fraction": 0.2}, ("pearson", "spearman")),
    "sensitivity_n": ({}, ("pearson", "spearman", "mean_pearson")),
    "faithfulness_estimate": ({"groups": 9}, ("pearson_logit", "spearman_logit")),
}
every_metric = pytest.mark.parametrize("metric", EVERY)


def linear_case(shape, n=6, sign=1, level=0.5):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(4, *shape, generator=generator, dtype=torch.float64)
    x = torch.rand(n, *shape, generator=generator, dtype=torch.float64)
    target = torch.arange(n) % 4
    return case_of(Linear(weight.flatten(1)), x, target, sign * weight[target] * (x - level))


def with_maps(case, maps):
    """The same samples with other maps, beside the first as the engine puts methods beside each other."""
    other = case_of(case.model, case.x, case.target, maps, chunk=case.chunk)
    other.source = case.source
    return other


def random_maps(shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def watched(case, metric, **options):
    """The rows, and for each sample the positions that were gone in each version of it that the model saw."""
    seen = []
    handle = case.model.register_forward_hook(lambda module, inputs, output: seen.extend(inputs[0].clone()))
    frame = rows(case, metric, **options)
    handle.remove()
    removed = [[] for _ in case.x]
    images = torch.stack(seen)
    alike = torch.stack([(images == x).flatten(1).sum(1) for x in case.x], 1)
    for image, sample in zip(images, alike.argmax(1).tolist(), strict=True):
        changed = image != case.x[sample]
        gone = changed.any(0) if changed.ndim > 1 else changed
        assert (image[..., gone] == 0).all()
        removed[sample].append(gone.numpy())
    return frame, [[gone for gone in each if gone.any()] for each in removed]


def patch_number(axes, side):
    number = np.zeros(axes, dtype=int)
    for row in range(axes[0]):
        for column in range(axes[1]):
            number[row, column] = row // side * 100 + column // side
    return np.unique(number, return_inverse=True)[1].reshape(axes)


def literal_drop(model, x, target, gone):
    image = x.clone()
    image[..., torch.from_numpy(gone)] = 0
    with torch.no_grad():
        return (model(x[None]) - model(image[None]))[0], (model(x[None]).softmax(1) - model(image[None]).softmax(1))[0]


@every_metric
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("shape", "patch"), [((2, 6, 6), 1), ((2, 6, 6), 4), ((2, 24), 1), ((2, 24), 5), ((9,), 0)])
def test_exact_maps_of_a_linear_model_have_1_and_reversed_ones_minus_1(metric, sign, shape, patch):
    options, measures = EVERY[metric]
    frame = rows(linear_case(shape, sign=sign), metric, fill="grey", patch=patch, **options)
    for measure in measures:
        found = values(frame, measure)
        torch.testing.assert_close(found, torch.full_like(found, sign), rtol=0, atol=1e-9)


@pytest.mark.parametrize("fraction", [0.001, 0.02, 0.5, 0.9, 0.999])
def test_exact_maps_of_a_linear_model_have_1_for_subsets_of_every_size(fraction):
    frame = rows(linear_case((2, 6, 6)), "faithfulness_correlation", fill="grey", fraction=fraction)
    torch.testing.assert_close(values(frame, "pearson"), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-9)


@every_metric
def test_no_random_map_is_closer_than_the_exact_one(metric):
    options, measures = EVERY[metric]
    exact = linear_case((2, 6, 6))
    worse = with_maps(exact, exact.maps + random_maps(exact.maps.shape))
    for measure in measures:
        best, noisy = (values(rows(case, metric, fill="grey", **options), measure) for case in (exact, worse))
        assert best.mean() > noisy.mean() > 0.1


@every_metric
def test_scale_and_shift_of_a_map_change_nothing_where_all_subsets_have_one_size(metric):
    model, x, target = network("functional", torch.float64)
    maps = random_maps(x.shape)
    options = {"groups": 12} if metric == "faithfulness_estimate" else {}
    expected = rows(case_of(model, x, target, maps), metric, fill="mean", **options)
    for other in (7 * maps - 3, maps / 1000 + 5):
        frame = rows(case_of(model, x, target, other), metric, fill="mean", **options)
        np.testing.assert_allclose(frame["value"], expected["value"], rtol=0, atol=1e-9)


@every_metric
def test_random_maps_have_0_in_expectation(metric):
    case = linear_case((1, 5, 5), n=250)
    case = with_maps(case, random_maps(case.x.shape))
    options = {"groups": 9} if metric == "faithfulness_estimate" else {"subsets": 15}
    frame = rows(case, metric, fill="black", **options)
    for measure in dict.fromkeys(frame["measure"]):
        found = values(frame, measure).view(-1, 250).mean(0)
        error = float(found.std()) / 250**0.5
        assert error < 0.03
        assert abs(float(found.mean())) < 4 * error


@pytest.mark.parametrize(("patch", "subsets"), [(1, 12), (5, 40)])
@pytest.mark.parametrize("metric", ["faithfulness_correlation", "sensitivity_n"])
def test_a_slow_literal_twin_of_the_subsets_agrees(metric, patch, subsets):
    model, x, target = network("functional", torch.float64)
    maps = random_maps(x.shape)
    frame, removed = watched(case_of(model, x, target, maps), metric, fill="black", patch=patch, subsets=subsets)
    number = patch_number((12, 12), patch)
    for sample in range(len(x)):
        points = {}
        for gone in removed[sample]:
            units = {int(unit) for unit in number[gone]}
            assert gone.sum() == sum((number == unit).sum() for unit in units)
            said = sum(float(maps[sample, channel][torch.from_numpy(gone)].sum()) for channel in range(2))
            drop = literal_drop(model, x[sample], target, gone)[0][target[sample]]
            points.setdefault(len(units), []).append((said, float(drop)))
        mine = frame[frame["sample"] == f"s{sample}"]
        curve = metric == "sensitivity_n"
        assert len(points) == (mine["step"].nunique() if curve else 1)
        found = []
        for size, pairs in sorted(points.items()):
            here = mine[np.isclose(mine["step"], size / (number.max() + 1)) if curve else mine["step"].isna()]
            assert len(pairs) == subsets
            for measure, correlation in (("pearson", pearsonr), ("spearman", spearmanr)):
                [value] = values(here, measure).tolist()
                assert value == pytest.approx(correlation(*zip(*pairs, strict=True)).statistic, abs=1e-9)
            found.append(pearsonr(*zip(*pairs, strict=True)).statistic)
        if metric == "sensitivity_n":
            assert values(mine, "mean_pearson").tolist() == pytest.approx([np.mean(found)], abs=1e-9)


@pytest.mark.parametrize(("patch", "groups"), [(1, 10), (5, 4), (5, 100)])
def test_a_slow_literal_twin_of_the_groups_agrees(patch, groups):
    model, x, target = network("functional", torch.float64)
    maps = random_maps(x.shape) + 0.5
    case = case_of(model, x, target, maps)
    frame, removed = watched(case, "faithfulness_estimate", fill="black", patch=patch, groups=groups)
    number = patch_number((12, 12), patch)
    units = number.max() + 1
    for sample in range(len(x)):
        relevance = maps[sample].sum(0).numpy()
        order = sorted(range(units), key=lambda unit: -relevance[number == unit].mean())
        sums, logits, probabilities = [], [], []
        for group in range(min(groups, units)):
            mine = [u for place, u in enumerate(order) if place * min(groups, units) // units == group]
            gone = np.isin(number, mine)
            logit, probability = literal_drop(model, x[sample], target, gone)
            sums.append(relevance[gone].sum())
            logits.append(float(logit[target[sample]]))
            probabilities.append(float(probability[target[sample]]))
            assert any((gone == each).all() for each in removed[sample])
        for suffix, drops in (("", probabilities), ("_logit", logits)):
            for measure, correlation in (("pearson", pearsonr), ("spearman", spearmanr)):
                [value] = values(frame, measure + suffix, sample=f"s{sample}").tolist()
                assert value == pytest.approx(correlation(sums, drops).statistic, abs=1e-9)


@pytest.mark.parametrize("groups", [2, 7, 35, 36, 99])
def test_groups_partition_the_units_in_the_order_of_the_map_evenly(groups):
    case = linear_case((2, 6, 6))
    _, removed = watched(case, "faithfulness_estimate", fill="black", groups=groups)
    for sample, parts in enumerate(removed):
        relevance = case.maps[sample].sum(0).numpy()
        sizes = [int(gone.sum()) for gone in parts]
        assert len(parts) == min(groups, 36)
        assert sum(parts).tolist() == np.ones((6, 6)).tolist()
        assert max(sizes) - min(sizes) <= 1
        for before, after in pairwise(parts):
            assert relevance[before].min() >= relevance[after].max()


def test_subsets_have_the_sizes_of_a_geometric_row_and_each_lies_in_a_larger_one():
    case = linear_case((2, 6, 6))
    frame, removed = watched(case, "sensitivity_n", fill="black", subsets=20, sizes=5)
    expected = sorted({round(size) for size in np.geomspace(1, 0.8 * 36, 5)})
    assert sorted(frame["step"].dropna().unique() * 36) == pytest.approx(expected)
    for masks in removed:
        by_size = {size: [gone for gone in masks if gone.sum() == size] for size in expected}
        assert [len(each) for each in by_size.values()] == [20] * len(expected)
        for small, large in pairwise(by_size.values()):
            assert all(any((inner <= outer).all() for outer in large) for inner in small)
    assert removed[0][-1].tolist() != removed[1][-1].tolist()


def test_sizes_that_coincide_are_there_once():
    frame = rows(linear_case((9,)), "sensitivity_n", fill="black", sizes=20)
    assert frame["step"].dropna().unique() * 9 == pytest.approx(range(1, 8))
    assert rows(linear_case((9,)), "sensitivity_n", fill="black", sizes=1)["step"].dropna().unique() * 9 == 1


@pytest.mark.parametrize(("fraction", "size"), [(0.001, 1), (0.2, 7), (0.49, 18), (0.97, 35), (0.999, 35)])
def test_subsets_have_the_nearest_size_that_is_neither_none_nor_all(fraction, size):
    _, removed = watched(linear_case((2, 6, 6)), "faithfulness_correlation", fill="black", fraction=fraction)
    assert {int(gone.sum()) for masks in removed for gone in masks} == {size}
    assert [len(masks) for masks in removed] == [100] * 6


@pytest.mark.parametrize("fraction", [-0.2, 0.0, 1.0, 20.0])
def test_a_fraction_that_is_nothing_or_everything_is_refused(fraction):
    entry = {"metric": "faithfulness_correlation", "fill": "black", "fraction": fraction}
    with pytest.raises(InputError, match=r"metrics\[0\].fraction: .*option 'fraction' expects float, got"):
        choose(METRICS, [entry], "metrics")


def test_every_unit_is_in_as_many_subsets_as_chance_says():
    case = linear_case((2, 6, 6))
    _, removed = watched(case, "faithfulness_correlation", fill="black", fraction=0.25, subsets=400)
    counts = sum(gone.astype(int) for masks in removed for gone in masks)
    expected, deviation = 2400 / 4, (2400 * 0.25 * 0.75) ** 0.5
    assert abs(counts - expected).max() < 4.5 * deviation
    assert counts.std() > deviation / 3
    assert len({gone.tobytes() for masks in removed for gone in masks}) > 2390


def test_where_no_side_is_given_there_are_at_most_1024_patches():
    model = Linear(torch.ones(2, 50 * 70, dtype=torch.float64))
    x = 0.5 + torch.rand(1, 1, 50, 70, dtype=torch.float64)
    case = case_of(model, x, torch.zeros(1, dtype=torch.int64), x)
    _, [removed] = watched(case, "faithfulness_correlation", fill="black", fraction=0.0001, subsets=30)
    assert {int(gone.sum()) for gone in removed} == {4}
    assert all(np.ptp(np.argwhere(gone), axis=0).tolist() == [1, 1] for gone in removed)


@pytest.mark.parametrize("metric", ["faithfulness_correlation", "sensitivity_n"])
def test_subsets_are_the_same_for_all_methods_and_in_every_batch(metric):
    case = linear_case((2, 6, 6))
    _, removed = watched(case, metric, fill="black", subsets=15)
    other = with_maps(linear_case((2, 6, 6)), random_maps(case.x.shape))
    _, again = watched(other, metric, fill="black", subsets=15)
    assert [[gone.tolist() for gone in masks] for masks in removed] == [[g.tolist() for g in m] for m in again]
    part = case_of(case.model, case.x[2:4], case.target[2:4], case.maps[2:4], samples=["s2", "s3"])
    _, alone = watched(part, metric, fill="black", subsets=15)
    assert [[gone.tolist() for gone in masks] for masks in alone] == [[g.tolist() for g in m] for m in removed[2:4]]


def test_one_size_is_one_point_of_sensitivity_n():
    case = case_of(*network("functional", torch.float64), "gradient")
    points = rows(case, "sensitivity_n", fill="black", subsets=30)
    for fraction in points["step"].dropna().unique()[1:]:
        alone = rows(case, "faithfulness_correlation", fill="black", subsets=30, fraction=float(fraction))
        for measure in ("pearson", "spearman"):
            expected = values(points, measure, step=fraction)
            torch.testing.assert_close(values(alone, measure), expected, rtol=0, atol=1e-12)


def test_what_subsets_cost_is_computed_once_for_all_methods():
    first = linear_case((2, 6, 6))
    rows(first, "faithfulness_correlation", fill="black", subsets=20)
    assert first.passes.forward == 6 * (1 + 20)
    second = with_maps(first, random_maps(first.x.shape))
    rows(second, "faithfulness_correlation", fill="black", subsets=20)
    assert second.passes.forward == 0
    rows(second, "faithfulness_correlation", fill="grey", subsets=20)
    assert second.passes.forward == 6 * 20
    rows(second, "sensitivity_n", fill="black", subsets=20, sizes=3)
    assert second.passes.forward == 6 * (20 + 3 * 20)
    rows(first, "sensitivity_n", fill="black", subsets=20, sizes=3)
    assert first.passes.forward == 6 * (1 + 20)
    rows(first, "faithfulness_estimate", fill="black", groups=9)
    assert first.passes.forward == 6 * (1 + 20 + 9)


def test_what_is_shared_between_fills_patches_and_numbers_of_subsets_is_not_mixed_up():
    model, x, target = network("functional", torch.float64)
    shared = case_of(model, x, target, "gradient")
    for options in ({"fill": "black"}, {"fill": "white"}, {"patch": 3}, {"subsets": 7}, {"fraction": 0.5}):
        given = {"fill": "black", "patch": 2, "subsets": 20, "fraction": 0.3, **options}
        fresh = rows(case_of(model, x, target, "gradient"), "faithfulness_correlation", **given)
        assert rows(shared, "faithfulness_correlation", **given).equals(fresh)


@every_metric
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_the_size_of_the_chunks_does_not_matter(metric, chunk, fill):
    model, x, target = network("modules", torch.float64)
    maps = random_maps(x.shape)
    options = {"groups": 9} if metric == "faithfulness_estimate" else {"subsets": 9}
    small, large = (
        rows(case_of(model, x, target, maps, chunk=each), metric, fill=fill, patch=2, **options) for each in (chunk, 64)
    )
    np.testing.assert_allclose(small["value"], large["value"], rtol=0, atol=1e-9)


@every_metric
def test_a_map_of_one_channel_is_the_map_summed_over_channels(metric):
    model, x, target = network("modules", torch.float64)
    maps = random_maps(x.shape)
    for options in ({"patch": 1}, {"patch": 5}):
        whole, single = (
            rows(case_of(model, x, target, each), metric, fill="black", **options)
            for each in (maps, maps.sum(1, keepdim=True))
        )
        np.testing.assert_allclose(whole["value"], single["value"], rtol=0, atol=1e-10)


def reasons_of(frame, measure):
    mine = frame[frame["measure"] == measure]
    return mine.loc[mine["step"] == mine["step"].iloc[0] if mine["step"].notna().any() else slice(None), "reason"]


@every_metric
def test_what_cannot_be_correlated_is_undefined_with_its_reason(metric):
    case = linear_case((2, 6, 6), n=7)
    maps, x = case.maps.clone(), case.x.clone()
    maps[0] = 2.0
    maps[1, 0, 0, 0] = torch.nan
    maps[2, 1, 3, 3] = torch.inf
    maps[3] = 0.0
    maps[3, 0, ::2, ::2] = 1.0
    x[4] = 0.0
    frame = rows(case_of(case.model, x, case.target, maps), metric, fill="black", patch=2)
    measure, part = ("pearson_logit", "group") if metric == "faithfulness_estimate" else ("pearson", "subset")
    found = list(reasons_of(frame, measure).astype(object))
    both = "not finite"
    alike = "the same mean in every unit" if metric == "faithfulness_estimate" else "the same sum in every subset"
    assert found[:5] == [
        "constant map",
        both,
        both,
        alike,
        f"the same drop for every {part}",
    ]
    assert reasons_of(frame, measure).iloc[5:].isna().all()
    if metric == "sensitivity_n":
        mean = list(reasons_of(frame, "mean_pearson").astype(object))
        assert mean[:5] == ["undefined at every size"] * 5


@every_metric
def test_sums_that_differ_by_rounding_alone_correlate_with_nothing(metric):
    case = linear_case((1, 6, 6))
    maps = torch.zeros_like(case.x)
    for place, value in enumerate((0.1, 0.2, 0.3, 0.0)):
        for patch in range(9):
            turned = (place + patch) % 4
            maps[:, 0, patch // 3 * 2 + turned // 2, patch % 3 * 2 + turned % 2] = value
    options = {"groups": 9} if metric == "faithfulness_estimate" else {}
    frame = rows(with_maps(case, maps), metric, fill="black", patch=2, **options)
    assert frame["value"].isna().all()


@every_metric
def test_drops_that_differ_by_rounding_alone_correlate_with_nothing(metric):
    x = torch.full((3, 1, 6, 6), 0.1, dtype=torch.float64)
    model = Linear(torch.full((2, 36), 0.7, dtype=torch.float64))
    case = case_of(model, x, torch.zeros(3, dtype=torch.int64), random_maps(x.shape))
    options = {"groups": 9} if metric == "faithfulness_estimate" else {}
    frame = rows(case, metric, fill="black", **options)
    assert values(frame, EVERY[metric][1][0]).isnan().all()


def test_the_mean_over_sizes_is_that_of_the_sizes_where_it_is_defined():
    case = linear_case((2, 6, 6), n=20)
    maps = torch.zeros_like(case.x)
    maps[:, :, 2, 3] = 1.0
    frame = rows(with_maps(case, maps), "sensitivity_n", fill="black", subsets=3)
    points = values(frame, "pearson").view(-1, 20)
    assert 0 < int(points.isnan().sum()) < points.numel()
    torch.testing.assert_close(values(frame, "mean_pearson"), points.nanmean(0), equal_nan=True)


def test_one_group_or_one_subset_correlates_with_nothing():
    case = linear_case((2, 6, 6))
    frame = rows(case, "faithfulness_estimate", fill="black", groups=1)
    assert set(frame["reason"]) == {"the same sum in every group"}
    frame = rows(case, "faithfulness_correlation", fill="black", subsets=1)
    assert set(frame["reason"]) == {"the same sum in every subset"}
