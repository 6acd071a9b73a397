"""Views of flipping curves, each against its published formula in plain loops, in both directions."""

import itertools
import math

import numpy as np
import pytest
import torch
from skimage.segmentation import slic
from test_imputation import dense_solve

from cases import Linear, case_of, network, rows, values
from harness.metrics import perturbation
from harness.types import NotApplicableError

N = 4


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_case(shape=(3, 6, 8), maps=None, **arguments):
    """Three classes on smooth inputs, and maps that are as good as none: (case, what gives probabilities)."""
    x = torch.rand(N, shape[0], *(4,) * (len(shape) - 1), generator=torch.Generator().manual_seed(0)).double()
    mode = {2: "linear", 3: "bilinear"}[len(shape)]
    x = torch.nn.functional.interpolate(x, size=shape[1:], mode=mode)
    weight = normal(3, math.prod(shape), seed=1) / 3
    maps = 0.5 + normal(N, *shape, seed=2) if maps is None else maps
    return case_of(Linear(weight), x, torch.arange(N) % 3, maps, **arguments), weight.numpy()


def output(weight, image, target, measure="probability"):
    logits = weight @ image.ravel()
    if measure == "logit":
        return logits[target]
    if measure == "correct":
        return float(logits.argmax() == target)
    return np.exp(logits[target]) / np.exp(logits).sum()


def pixels_by(relevance, sign=-1):
    """The places of a map, the most relevant first; the least with the other sign."""
    return sorted(np.ndindex(*relevance.shape), key=lambda place: sign * relevance[place])


def samples_of(case):
    for sample in range(len(case.x)):
        yield f"s{sample}", case.x[sample].numpy(), case.maps[sample].sum(0).numpy(), sample % 3


def one(frame, measure, **where):
    (found,) = values(frame, measure, **where).tolist()
    return found


def patches_of(axes, side):
    groups = {}
    for place in np.ndindex(*axes):
        groups.setdefault(tuple(at // side for at in place), []).append(place)
    return list(groups.values())


def without(image, places, fill):
    result = image.copy()
    for place in places:
        result[(slice(None), *place)] = fill[(slice(None), *place)] if isinstance(fill, np.ndarray) else fill
    return result


@pytest.mark.parametrize(("shape", "patch", "regions"), [((3, 6, 8), 3, 4), ((3, 6, 8), 4, 100), ((2, 20), 3, 5)])
def test_region_perturbation_is_the_mean_fall_with_the_untouched_sample_counted(shape, patch, regions):
    case, weight = linear_case(shape)
    frame = rows(case, "region_perturbation", fill="black", patch=patch, regions=regions)
    groups = patches_of(shape[1:], patch)
    steps = min(regions, len(groups))
    for name, image, relevance, target in samples_of(case):
        for measure, suffix in (("probability", ""), ("logit", "_logit")):
            areas = {}
            for mode, sign in (("most_first", -1), ("least_first", 1)):
                groups.sort(key=lambda places, sign=sign: sign * np.mean([relevance[place] for place in places]))
                total = 0.0
                for count in range(steps + 1):
                    now = without(image, [place for group in groups[:count] for place in group], 0.0)
                    fallen = output(weight, image, target, measure) - output(weight, now, target, measure)
                    total += fallen
                    expected = output(weight, now, target, measure)
                    step = count / len(groups)
                    assert one(frame, measure, mode=mode, sample=name, step=step) == pytest.approx(expected, abs=1e-12)
                areas[mode] = total / (steps + 1)
                found = one(frame, f"area_over_perturbation_curve{suffix}", mode=mode, sample=name)
                assert found == pytest.approx(areas[mode], abs=1e-12)
            found = one(frame, f"area_between_perturbation_curves{suffix}", sample=name)
            assert found == pytest.approx(areas["most_first"] - areas["least_first"], abs=1e-12)


@pytest.mark.parametrize("regions", [2, 6])
def test_the_exact_map_attains_the_maximum_over_all_orders_of_patches(regions):
    shape, patch = (1, 4, 6), 2
    case, weight = linear_case(shape)
    target = torch.arange(N) % 3
    maps = torch.tensor(weight).view(3, *shape)[target] * case.x
    frame = rows(linear_case(shape, maps)[0], "region_perturbation", fill="black", patch=patch, regions=regions)
    worst = rows(linear_case(shape, -maps)[0], "region_perturbation", fill="black", patch=patch, regions=regions)
    groups = patches_of(shape[1:], patch)
    for name, image, _, label in samples_of(case):
        game = [sum(weight[label].reshape(shape)[0][at] * image[0][at] for at in group) for group in groups]
        areas = []
        for order in itertools.permutations(range(6)):
            lost = [sum(game[unit] for unit in order[:count]) for count in range(regions + 1)]
            areas.append(sum(lost) / (regions + 1))
        ranked = sorted(game, reverse=True)
        closed = sum((regions - rank) * worth for rank, worth in enumerate(ranked[:regions])) / (regions + 1)
        found = one(frame, "area_over_perturbation_curve_logit", mode="most_first", sample=name)
        assert found == pytest.approx(closed, abs=1e-12)
        assert found == pytest.approx(max(areas), abs=1e-12)
        least = one(frame, "area_over_perturbation_curve_logit", mode="least_first", sample=name)
        assert least == pytest.approx(min(areas), abs=1e-12)
        assert one(worst, "area_over_perturbation_curve_logit", mode="most_first", sample=name) == least
        for measure in ("area_between_perturbation_curves_logit", "area_between_perturbation_curves"):
            assert one(worst, measure, sample=name) == -one(frame, measure, sample=name)
        assert one(frame, "area_between_perturbation_curves_logit", sample=name) == pytest.approx(
            max(areas) - min(areas), abs=1e-12
        )


def evaluation_of_rise(start, finish, relevance, steps, score):
    """As in the source of RISE: pixels of `finish` replace those of `start`, the most salient first."""
    order, size = pixels_by(relevance), relevance.size
    scores, image = np.empty(steps + 1), start.copy()
    for step in range(steps + 1):
        scores[step] = score(image)
        for place in order[step * size // steps : (step + 1) * size // steps]:
            image[(slice(None), *place)] = finish[(slice(None), *place)]
    return (scores.sum() - scores[0] / 2 - scores[-1] / 2) / (len(scores) - 1)


@pytest.mark.parametrize(("shape", "steps"), [((3, 6, 8), 48), ((3, 6, 8), 12), ((2, 20), 10)])
@pytest.mark.parametrize("fill", ["mean", "blur", "noise"])
def test_deletion_and_insertion_are_those_of_rise(shape, steps, fill):
    case, weight = linear_case(shape)
    gone = case.fill(fill).numpy()
    frames = {name: rows(case, name, fill=fill, steps=steps) for name in ("deletion", "insertion")}
    for index, (name, image, relevance, target) in enumerate(samples_of(case)):

        def score(picture, target=target):
            return output(weight, picture, target)

        deleted = evaluation_of_rise(image, gone[index], relevance, steps, score)
        inserted = evaluation_of_rise(gone[index], image, relevance, steps, score)
        assert one(frames["deletion"], "area", mode="most_first", sample=name) == pytest.approx(deleted, abs=1e-12)
        assert one(frames["insertion"], "area", mode="least_first", sample=name) == pytest.approx(inserted, abs=1e-12)
        random = one(frames["deletion"], "area", mode="random", sample=name)
        assert one(frames["insertion"], "area", mode="random", sample=name) == random
        assert one(frames["deletion"], "area_below_random", sample=name) == pytest.approx(random - deleted, abs=1e-12)
        assert one(frames["insertion"], "area_above_random", sample=name) == pytest.approx(inserted - random, abs=1e-12)


class Share(torch.nn.Module):
    """The probability of class 0 is affine in the mean of the input."""

    def __init__(self, offset, slope):
        super().__init__()
        self.offset, self.slope = offset, slope

    def forward(self, x):
        share = (self.offset + self.slope * x.flatten(1).mean(1)).clamp(1e-15, 1)
        return torch.stack([share.log(), (1 - share).clamp(min=1e-15).log()], 1)


@pytest.mark.parametrize(("offset", "slope", "area"), [(0.3, 0.0, 0.3), (0.0, 1.0, 0.5), (0.2, 0.6, 0.5)])
@pytest.mark.parametrize("units", [{}, {"patch": 2}, {"steps": 5}])
def test_a_constant_curve_has_its_own_height_and_a_straight_one_its_middle(offset, slope, area, units):
    x, target = torch.ones(2, 1, 6, 8, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    for metric, mode in (("deletion", "most_first"), ("insertion", "least_first")):
        frame = rows(case_of(Share(offset, slope), x, target, normal(2, 1, 6, 8)), metric, fill="black", **units)
        for order in (mode, "random"):
            torch.testing.assert_close(
                values(frame, "area", mode=order), torch.full((2,), area).double(), atol=1e-7, rtol=0
            )


@pytest.mark.parametrize("metric", ["deletion", "insertion"])
def test_the_gain_over_random_is_best_for_the_exact_map_and_worst_for_its_reverse(metric):
    gain = {"deletion": "area_below_random", "insertion": "area_above_random"}[metric]
    x, target = (
        torch.rand(N, 1, 6, 8, generator=torch.Generator().manual_seed(0)).double(),
        torch.zeros(N, dtype=torch.int64),
    )
    model, weight = Linear(torch.stack([normal(48, seed=1), torch.zeros(48)])), normal(1, 6, 8, seed=1)

    def gain_of(maps):
        return values(rows(case_of(model, x, target, maps), metric, fill="black", steps=48), gain)

    best, worst = gain_of(weight * x), gain_of(-weight * x)
    assert (best > 0).all()
    assert (worst < 0).all()
    for seed in range(10):
        other = gain_of(normal(N, 1, 6, 8, seed=seed))
        assert (other <= best).all()
        assert (other >= worst).all()


@pytest.mark.parametrize("more", [False, True], ids=["as_many_as_asked_for", "more_than_asked_for"])
def test_irof_is_the_area_over_the_relative_curve_of_superpixels_one_by_one(more):
    case, weight = linear_case((3, 16, 19))
    frame = rows(case, "irof", fill="white", superpixels=12)
    checked = 0
    for name, image, relevance, target in samples_of(case):
        labels = slic(image.transpose(1, 2, 0), n_segments=12, compactness=10, start_label=0)
        units = sorted(set(labels.ravel()), key=lambda unit: -relevance[labels == unit].mean())
        if (len(units) > 12) != more:
            continue
        now, curve = image.copy(), [1.0]
        for unit in units:
            now[:, labels == unit] = 1.0
            curve.append(output(weight, now, target) / output(weight, image, target))
        expected = 1 - sum((a + b) / 2 for a, b in itertools.pairwise(curve)) / len(units)
        found = one(frame, "area_over_curve", mode="most_first", sample=name)
        assert found == pytest.approx(expected, abs=1e-12)
        random = one(frame, "area_over_curve", mode="random", sample=name)
        assert one(frame, "area_beyond_random", sample=name) == pytest.approx(expected - random, abs=1e-12)
        checked += 1
    assert checked > 0


def test_irof_of_a_sample_without_any_probability_to_lose_is_undefined_and_says_so():
    x = torch.tensor([0.1, 1.0], dtype=torch.float64).view(2, 1, 1, 1).expand(2, 1, 6, 8).contiguous()
    weight = 20 * torch.tensor([[-1.0], [1.0]], dtype=torch.float64).expand(2, 48)
    case = case_of(Linear(weight), x, torch.zeros(2, dtype=torch.int64), normal(2, 1, 6, 8))
    assert case.logits(x).softmax(1)[1, 0] == 0
    frame = rows(case, "irof", fill="black", superpixels=4)
    for measure in ("area_over_curve", "area_beyond_random"):
        assert (
            frame.loc[frame["measure"] == measure, "reason"].notna().tolist()
            == frame.loc[frame["measure"] == measure, "sample"].eq("s1").tolist()
        )


def test_irof_takes_pieces_of_signals_and_features_of_tables():
    case, weight = linear_case((2, 20))
    x, table_weight = normal(N, 7), normal(3, 7, seed=3)
    table = case_of(Linear(table_weight), x, torch.arange(N) % 3, normal(N, 7, seed=4))
    for each, matrix, size, pieces in ((case, weight, 20, 5), (table, table_weight.numpy(), 7, 7)):
        frame = rows(each, "irof", fill="mean", superpixels=5)
        for sample in range(N):
            image, target = each.x[sample].numpy(), sample % 3
            relevance = (each.maps[sample].sum(0) if each.x.ndim > 2 else each.maps[sample]).numpy()
            units = np.arange(size) * pieces // size
            order = sorted(range(pieces), key=lambda unit: -relevance[units == unit].mean())
            curve = []
            for count in range(pieces + 1):
                now = np.where(np.isin(units, order[:count]), 0.0, image)
                curve.append(output(matrix, now, target) / output(matrix, image, target))
            expected = 1 - np.trapezoid(curve) / pieces
            found = one(frame, "area_over_curve", mode="most_first", sample=f"s{sample}")
            assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("fractions", [(0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9), (0.5,), (0.9, 0.25, 0.9)])
def test_road_imputes_whole_pixels_by_a_dense_solve_of_each_picture(fractions, monkeypatch):
    monkeypatch.setattr(perturbation, "NOISE", 0.0)
    case, weight = linear_case((3, 7, 9))
    frame = rows(case, "road", fractions=fractions)
    distinct = sorted(set(fractions))
    for name, image, relevance, target in samples_of(case):
        means = {}
        for mode, sign in (("most_first", -1), ("least_first", 1)):
            found = []
            for fraction in distinct:
                missing = np.zeros((7, 9), dtype=bool)
                for place in pixels_by(relevance, sign)[: round(fraction * 63)]:
                    missing[place] = True
                filled = dense_solve(image, missing)
                for measure in ("correct", "probability", "logit"):
                    expected = output(weight, filled, target, measure)
                    got = one(frame, measure, mode=mode, sample=name, step=fraction)
                    assert got == pytest.approx(expected, abs=1e-9)
                found.append([output(weight, filled, target, each) for each in ("correct", "probability")])
            means[mode] = np.mean(found, axis=0)
        gaps = [one(frame, measure, sample=name) for measure in ("accuracy_gap", "confidence_gap")]
        assert gaps == pytest.approx(list(means["least_first"] - means["most_first"]), abs=1e-9)


def test_the_noise_of_road_is_small_and_reversing_the_map_reverses_its_gaps_exactly(monkeypatch):
    case, _ = linear_case((3, 7, 9))
    noisy = rows(case, "road", fractions=(0.2, 0.6))
    reversed_ = rows(linear_case((3, 7, 9), -case.maps)[0], "road", fractions=(0.2, 0.6))
    monkeypatch.setattr(perturbation, "NOISE", 0.0)
    smooth = rows(linear_case((3, 7, 9))[0], "road", fractions=(0.2, 0.6))
    difference = values(noisy, "confidence_gap") - values(smooth, "confidence_gap")
    assert 0 < difference.abs().max() < 0.1
    for gap in ("accuracy_gap", "confidence_gap"):
        assert torch.equal(values(noisy, gap), -values(reversed_, gap))
    assert (values(noisy, "confidence_gap") != 0).all()


@pytest.mark.parametrize(("shape", "patch"), [((3, 6, 8), 1), ((3, 6, 8), 3), ((2, 20), 1), ((2, 20), 2)])
def test_comprehensiveness_and_sufficiency_are_the_mean_losses_without_and_with_nothing_but_the_top(shape, patch):
    case, weight = linear_case(shape)
    fractions = (0.5, 0.1, 0.25)
    comprehensive, sufficient = (
        rows(case, name, fill="white", fractions=fractions, patch=patch)
        for name in ("comprehensiveness", "sufficiency")
    )
    groups = patches_of(shape[1:], patch)
    for name, image, relevance, target in samples_of(case):
        groups.sort(key=lambda places: -np.mean([relevance[place] for place in places]))
        whole, losses = output(weight, image, target), []
        for fraction in sorted(fractions):
            count = round(fraction * len(groups))
            top, rest = ([at for group in part for at in group] for part in (groups[:count], groups[count:]))
            losses.append([whole - output(weight, without(image, part, 1.0), target) for part in (top, rest)])
            at = {"sample": name, "step": fraction, "mode": "most_first"}
            found = one(comprehensive, "comprehensiveness_at_fraction", **at)
            assert found == pytest.approx(losses[-1][0], abs=1e-12)
            at = {"sample": name, "step": 1 - fraction, "mode": "least_first"}
            assert one(sufficient, "sufficiency_at_fraction", **at) == pytest.approx(losses[-1][1], abs=1e-12)
        lost = np.mean(losses, axis=0)
        found = one(comprehensive, "comprehensiveness", mode="most_first", sample=name)
        assert found == pytest.approx(lost[0], abs=1e-12)
        assert one(sufficient, "sufficiency", mode="least_first", sample=name) == pytest.approx(lost[1], abs=1e-12)
        random = [
            one(frame, measure, mode="random", sample=name)
            for frame, measure in ((comprehensive, "comprehensiveness"), (sufficient, "sufficiency"))
        ]
        beyond = one(comprehensive, "comprehensiveness_beyond_random", sample=name)
        below = one(sufficient, "sufficiency_below_random", sample=name)
        assert [beyond, below] == pytest.approx([lost[0] - random[0], random[1] - lost[1]], abs=1e-12)


HEADLINES = {
    "region_perturbation": "area_between_perturbation_curves",
    "deletion": "area_below_random",
    "insertion": "area_above_random",
    "irof": "area_beyond_random",
    "road": "accuracy_gap",
    "comprehensiveness": "comprehensiveness_beyond_random",
    "sufficiency": "sufficiency_below_random",
}
each_metric = pytest.mark.parametrize("metric", HEADLINES)


@each_metric
def test_the_exact_map_is_better_than_its_reverse_and_random_maps_lie_between(metric):
    shape = (1, 9, 9)
    x, weight = torch.rand(60, *shape, generator=torch.Generator().manual_seed(0)).double(), normal(1, *shape, seed=1)
    model = Linear(torch.stack([weight.flatten(), -weight.flatten()]) / 4)
    target = model(x).argmax(1)
    signs = (1 - 2 * target.double()).view(-1, 1, 1, 1)
    options = {"patch": 2, "regions": 10, "fill": "black"} if metric == "region_perturbation" else {"fill": "black"}

    def mean_of(maps):
        return float(values(rows(case_of(model, x, target, maps), metric, **options), HEADLINES[metric]).mean())

    exact = signs * weight * x
    assert mean_of(-exact) < -0.01 < 0.01 < mean_of(exact)
    assert mean_of(-exact) < mean_of(normal(60, *shape, seed=3)) < mean_of(exact)


@each_metric
def test_a_map_without_an_order_has_no_value_and_says_why(metric):
    _, weight = linear_case((3, 9, 12))
    maps = normal(N, 3, 9, 12, seed=2)
    maps[1], maps[2, 0, 3, 4], maps[3, 1, 2, 2] = 0.7, torch.nan, torch.inf
    case, _ = linear_case((3, 9, 12), maps)
    frame = rows(case, metric, fill="white")
    headline = frame[frame["measure"] == HEADLINES[metric]]
    assert headline["reason"].astype(object).fillna("").tolist() == ["", "constant map", "not finite", "not finite"]
    assert headline["value"].isna().tolist() == [False, True, True, True]
    assert frame.loc[frame["mode"] == "random", "value"].notna().all()
    ordered = frame[frame["mode"] != "random"]
    assert (ordered["value"].isna() == ordered["sample"].isin(["s1", "s2", "s3"])).all()
    assert weight.shape == (3, 324)


@each_metric
@pytest.mark.parametrize("name", ["signal", "table"])
def test_signals_and_tables_work_or_are_not_applicable_with_the_reason(metric, name):
    case = case_of(*network(name, torch.float64), "input_x_gradient")
    if metric == "region_perturbation" and name == "table":
        with pytest.raises(NotApplicableError, match="features of a table have no neighbours to make patches of"):
            rows(case, metric, fill="mean")
        return
    found = values(rows(case, metric, fill="mean"), HEADLINES[metric])
    assert found.isfinite().all()
    assert len(found) == 5


@pytest.mark.parametrize("fractions", [(), (0.0,), (1.0,), (0.5, 1.2), (-0.1,)])
@pytest.mark.parametrize("metric", ["road", "comprehensiveness", "sufficiency"])
def test_fractions_lie_strictly_between_nothing_and_everything(metric, fractions):
    case, _ = linear_case()
    with pytest.raises(ValueError, match="fractions"):
        rows(case, metric, fill="black", fractions=fractions)
