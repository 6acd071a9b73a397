"""Agreement of rankings between setups, from rows with known areas; Kendall's tau and its interval against scipy."""

import numpy as np
import pytest
import scipy.stats
import torch

from harness import Results
from harness.agreement import agreement, fills, setups
from harness.plan import Cell
from harness.rows import rows_of
from harness.statistics import basic_bootstrap, kendall, resampled, resampled_by, resampled_means, signs
from harness.store import Memory, Part
from harness.types import Score

N = 40
METHODS = ("gradient", "smoothgrad", "grad_cam", "lrp_0")


def written(areas, *, random=0.4, start=0.9, family="gradient", options=None):
    """A run of pixel flipping: (method, fill, patch) -> mean areas, most and least relevant first."""
    store, cells = Memory(), []
    chance = np.random.default_rng(0)
    for index, ((method, fill, patch), (most, least)) in enumerate(areas.items()):
        label = f"pixel_flipping[fill={fill},patch={patch}]"
        cell = Cell(f"{index:032x}", "net", 0, "data", method, label, 0)
        noise = torch.from_numpy(0.001 * chance.normal(size=N))
        scores = [Score("probability", torch.full((N,), start).double(), mode="random", step=0.0)]
        for mode, level in (("most_first", most), ("least_first", least), ("random", random)):
            scores.append(Score("area", level + noise, mode=mode, channels="sum", sign="signed"))
        info = {
            "status": "done",
            "metric_function": "pixel_flipping",
            "metric_version": 3,
            "direction": "higher",
            "metric_options": {"fill": fill, "patch": patch, "superpixels": 0} if options is None else options,
            "method_family": "control" if method == "sobel" else family,
        }
        rows = rows_of(scores, [f"s{row:03}" for row in range(N)], torch.zeros(N, dtype=torch.int64))
        store.put(cell, Part(rows, info))
        cells.append(cell)
    manifest = {"study": {"name": "made"}, "run": "made", "environment": {}, "subjects": []}
    return [row for stack in Results(manifest, tuple(cells), store).stacks() for row in setups(stack)]


def levels(orders, methods=METHODS):
    """(fill, patch) -> the order of the methods by each score, best first; as areas."""
    found = {}
    for (fill, patch), (most, least) in orders.items():
        for method in methods:
            found[method, fill, patch] = (0.1 * most.index(method), 1 - 0.1 * least.index(method))
    return found


A, B, C, D = METHODS
BACK = METHODS[::-1]


def taus(frame):
    return {(row["comparison"], row["ranked_by"]): row["tau"] for _, row in frame.iterrows()}


def test_the_same_ranking_everywhere_agrees_and_the_reverse_does_not():
    same = written(levels({("mean", 1): (METHODS, METHODS), ("blur", 1): (METHODS, METHODS)}))
    found = agreement(same)
    assert set(found["tau"]) == {1.0}
    assert set(found["comparison"]) == {"other fill, same unit", "any two setups", "both orders in one setup"}
    turned = taus(agreement(written(levels({("mean", 1): (METHODS, METHODS), ("blur", 1): (BACK, BACK)}))))
    assert turned["other fill, same unit", "symmetric gain"] == -1
    assert turned["both orders in one setup", "one order each"] == 1


def test_fills_units_and_all_setups_are_compared_each_by_themselves():
    swapped = (B, A, C, D)
    found = agreement(
        written(
            levels(
                {
                    ("mean", 1): (METHODS, METHODS),
                    ("blur", 1): (swapped, METHODS),
                    ("mean", 4): (BACK, METHODS),
                    ("blur", 4): (BACK, METHODS),
                }
            )
        )
    )
    tau = taus(found)
    one_swap = scipy.stats.kendalltau([0, 1, 2, 3], [1, 0, 2, 3]).statistic
    assert tau["other fill, same unit", "most relevant first"] == pytest.approx((one_swap + 1) / 2)
    assert tau["other unit, same fill", "most relevant first"] == pytest.approx((-1 - one_swap) / 2)
    assert tau["any two setups", "least relevant first"] == 1
    pairs = found.set_index(["comparison", "ranked_by"])["pairs"]
    assert pairs["any two setups", "symmetric gain"] == 6
    assert pairs["other fill, same unit", "symmetric gain"] == 2


def test_controls_and_methods_that_are_not_in_every_setup_are_left_out():
    areas = levels({("mean", 1): (METHODS, METHODS), ("blur", 1): (METHODS, METHODS)})
    areas |= {("sobel", fill, 1): (0.0, 0.0) for fill in ("mean", "blur")} | {("rise", "mean", 1): (0.5, 0.5)}
    assert set(agreement(written(areas))["methods"]) == {4}


def test_two_methods_or_nine_samples_say_nothing():
    few = levels({("mean", 1): (METHODS, METHODS), ("blur", 1): (METHODS, METHODS)}, methods=(A, B))
    assert agreement(written(few)).empty
    rows = written(levels({("mean", 1): (METHODS, METHODS), ("blur", 1): (METHODS, METHODS)}))
    for row in rows:
        for order in ("most_first", "least_first"):
            row[order] = np.where(np.arange(N) < 9, row[order], np.nan)
    assert agreement(rows).empty


def test_confidence_under_random_removal_is_told_once_for_each_setup():
    frame = fills(written(levels({("mean", 1): (METHODS, METHODS), ("blur", 4): (BACK, BACK)}), random=0.3))
    assert list(frame["fill"]) == ["mean", "blur"]
    assert list(frame["unit"]) == ["patches of 1", "patches of 4"]
    assert frame["random_confidence"].tolist() == pytest.approx([0.3, 0.3], abs=1e-3)
    assert frame["untouched"].tolist() == pytest.approx([0.9, 0.9])
    assert (frame["low"] < frame["random_confidence"]).all()


def test_kendall_is_that_of_scipy():
    chance = np.random.default_rng(1)
    first, second = chance.normal(size=(2, 20, 6))
    expected = [scipy.stats.kendalltau(a, b).statistic for a, b in zip(first, second, strict=True)]
    assert kendall(first, second).tolist() == pytest.approx(expected)
    assert kendall(first, first).tolist() == [1.0] * 20
    assert kendall(first, -first).tolist() == [-1.0] * 20


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    chance = np.random.default_rng(2)
    hits = 0
    for _ in range(200):
        values = chance.normal(size=60)
        interval = basic_bootstrap(lambda pick, values=values: float(values[pick].mean()), 60, least=-5.0, most=5.0)
        hits += interval.low <= 0 <= interval.high
    # Binomial with 200 tries: 0.95 within 4 standard errors.
    assert abs(hits / 200 - 0.95) < 4 * (0.95 * 0.05 / 200) ** 0.5


def test_means_of_resampled_samples_are_those_of_each_one_and_ties_stay_ties():
    values = np.random.default_rng(3).normal(size=(3, 5, 70))
    values[:, 4] = values[:, 1]
    means = resampled_means(values)
    expected = [values.mean(2), *(values[..., pick].mean(2) for pick in resampled(70))]
    np.testing.assert_allclose(means, expected, rtol=0, atol=1e-15)
    assert (means[..., 4] == means[..., 1]).all()
    assert (signs(means)[..., 6] == 0).all()


def test_medians_of_resampled_samples_are_those_of_each_one():
    values = np.random.default_rng(3).normal(size=(3, 5, 70))
    expected = [np.median(values, 2), *(np.median(values[..., pick], 2) for pick in resampled(70))]
    assert np.array_equal(resampled_by("median", values), expected)
    assert np.array_equal(resampled_by("mean", values), resampled_means(values))


def test_samples_are_drawn_as_in_one_piece():
    # So were the published tables made.
    assert (np.array(list(resampled(33))) == np.random.default_rng(0).integers(0, 33, (1000, 33))).all()


def test_tau_and_its_interval_are_those_of_every_pair_of_setups_by_itself():
    rows = written(levels({(fill, patch): (METHODS, BACK) for fill in ("mean", "blur") for patch in (1, 4)}))
    chance = np.random.default_rng(4)
    for row in rows:
        row["most_first"], row["least_first"] = chance.normal(size=(2, N))
    areas = {(row["method"], row["metric"]): -row["most_first"] for row in rows}
    setups_of = list(dict.fromkeys(row["metric"] for row in rows))
    scores = np.array([[areas[method, label] for method in METHODS] for label in setups_of])

    def tau(pick):
        means = scores[..., pick].mean(2)
        return np.mean([kendall(means[[i]], means[[j]])[0] for i in range(4) for j in range(i)])

    expected = basic_bootstrap(tau, N, least=-1.0)
    found = agreement(rows).set_index(["comparison", "ranked_by"]).loc["any two setups", "most relevant first"]
    assert tuple(found[["tau", "low", "high"]]) == pytest.approx((expected.value, expected.low, expected.high))
