"""Curves while units are removed: a slow literal twin, what they do not depend on, and what chance gives."""

import itertools
import math

import numpy as np
import pytest
import torch
from skimage.segmentation import slic

from cases import Linear, case_of, network, rows, values
from harness.metrics.curves import Curve, curves, steps_of
from harness.metrics.perturbation import Removal
from harness.random import Draws
from harness.space import InputSpace
from harness.types import InputError, NotApplicableError

ORDERS = ("most_first", "least_first", "random")
MEASURES = ("logit", "probability", "log_odds", "correct")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth(n, channels=3, side=16):
    """Pictures of which SLIC makes different numbers of superpixels."""
    coarse = torch.rand(n, channels, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.nn.functional.interpolate(coarse, size=(side, side + 3), mode="bilinear")


def smooth_case(n=6, **arguments):
    """A linear model with three classes on smooth pictures, and maps that are not zero in the mean."""
    x = smooth(n)
    weight = normal(3, x[0].numel(), seed=1) / 10
    return case_of(Linear(weight), x, torch.arange(n) % 3, 1 + normal(n, 3, 16, 19, seed=2), **arguments), weight


def literal_outputs(weight, image, target):
    logits = [float(row @ image.ravel()) for row in weight.numpy()]
    exponentials = [math.exp(logit) for logit in logits]
    others = sum(value for index, value in enumerate(exponentials) if index != target)
    return {
        "logit": logits[target],
        "probability": exponentials[target] / sum(exponentials),
        "log_odds": math.log(exponentials[target] / others),
        "correct": float(logits[target] == max(logits)),
    }


@pytest.mark.parametrize(
    ("steps", "units", "expected"),
    [(1, 1, [0, 1]), (1, 50, [0, 50]), (4, 8, [0, 2, 4, 6, 8]), (5, 3, [0, 1, 2, 3]), (100, 1, [0, 1])],
)
def test_linear_steps_are_equal_and_never_more_than_there_are_units(steps, units, expected):
    assert steps_of(steps, units) == tuple(number / units for number in expected)


@pytest.mark.parametrize("units", [1, 2, 7, 49, 100, 50176])
@pytest.mark.parametrize("steps", [1, 2, 3, 15, 32, 1000])
def test_steps_begin_at_nothing_end_at_everything_and_are_whole_units(steps, units):
    for spacing in ("linear", "logarithmic"):
        found = steps_of(steps, units, spacing)
        numbers = [fraction * units for fraction in found]
        assert found[0] == 0
        assert found[-1] == 1
        assert all(abs(number - round(number)) < 1e-9 for number in numbers)
        assert all(round(after) > round(before) for before, after in itertools.pairwise(numbers))
        # What grows from one unit to all of them has two steps at least.
        assert len(found) <= min(steps if spacing == "linear" else max(steps, 2), units) + 1
    linear = np.array(steps_of(steps, units))
    for place in np.arange(steps + 1) / steps:
        assert np.abs(linear - place).min() <= 0.5 / units + 1e-12


def test_logarithmic_steps_grow_by_an_equal_factor_from_one_unit():
    assert steps_of(7, 64, "logarithmic") == tuple(number / 64 for number in (0, 1, 2, 4, 8, 16, 32, 64))
    assert steps_of(3, 10_000, "logarithmic") == (0, 1e-4, 1e-2, 1)
    numbers = [fraction * 50176 for fraction in steps_of(15, 50176, "logarithmic")][1:]
    assert numbers == pytest.approx([round(float(number)) for number in np.geomspace(1, 50176, 15)], abs=1e-6)


@pytest.mark.parametrize("spacing", ["linear", "logarithmic"])
def test_a_slow_literal_twin_agrees_on_superpixels_of_which_each_sample_has_its_own_number(spacing):
    case, weight = smooth_case()
    frame = rows(case, "pixel_flipping", fill="white", steps=5, spacing=spacing, superpixels=14)
    nominal = [round(14 * step / 5) for step in range(6)] if spacing == "linear" else [0, 1, 2, 4, 7, 14]
    numbers_of_units = set()
    for sample in range(len(case.x)):
        picture, relevance = case.x[sample].numpy(), case.maps[sample].sum(0).numpy()
        labels = slic(picture.transpose(1, 2, 0), n_segments=14, compactness=10, start_label=0)
        units = sorted(set(labels.ravel()), key=lambda unit: relevance[labels == unit].mean(), reverse=True)
        numbers_of_units.add(len(units))
        areas = {}
        for mode, order in (("most_first", units), ("least_first", units[::-1])):
            counts = [round(number / 14 * len(units)) for number in nominal]
            found = []
            for count, number in zip(counts, nominal, strict=True):
                image = picture.copy()
                for unit in order[:count]:
                    image[:, labels == unit] = 1.0
                expected = literal_outputs(weight, image, sample % 3)
                found.append(expected["probability"])
                for measure in MEASURES:
                    got = values(frame, measure, mode=mode, sample=f"s{sample}", step=number / 14)
                    assert got.tolist() == pytest.approx([expected[measure]], abs=1e-10)
            areas[mode] = sum(
                (found[i] + found[i + 1]) / 2 * (counts[i + 1] - counts[i]) / len(units) for i in range(5)
            )
            assert values(frame, "area", mode=mode, sample=f"s{sample}").tolist() == pytest.approx([areas[mode]])
        gain = values(frame, "symmetric_relevance_gain", sample=f"s{sample}")
        assert gain.tolist() == pytest.approx([areas["least_first"] - areas["most_first"]], abs=1e-12)
    assert len(numbers_of_units) > 1


def test_the_fractions_of_a_curve_are_those_that_are_truly_gone():
    case, _ = smooth_case()
    removing = Removal("white", superpixels=14).on(case)
    curve = curves(removing, case.maps.sum(1), steps_of(5, 14))["most_first"]
    for removed, count in zip(curve.removed, removing.counts, strict=True):
        assert removed.tolist() == [round(number / 14 * int(count)) / int(count) for number in (0, 3, 6, 8, 11, 14)]
    assert int(removing.counts.min()) < int(removing.counts.max())


def test_an_area_is_the_mean_height_also_of_a_curve_that_ends_early():
    removed = torch.tensor([[0, 0.1, 0.5], [0, 0.2, 0.4]], dtype=torch.float64)
    constant, straight = torch.full((2, 3), 0.7, dtype=torch.float64), 1 - removed
    curve = Curve(removed, {"constant": constant, "straight": straight})
    assert curve.area("constant").tolist() == pytest.approx([0.7, 0.7], abs=1e-15)
    assert curve.area("straight").tolist() == pytest.approx([0.75, 0.8], abs=1e-15)


def test_superpixels_of_a_signal_are_pieces_of_it():
    weight, x = normal(2, 40, seed=1) / 4, normal(3, 2, 20, seed=2)
    case = case_of(Linear(weight), x, torch.tensor([0, 1, 0]), normal(3, 2, 20, seed=3))
    frame = rows(case, "pixel_flipping", fill="white", steps=3, superpixels=3)
    pieces = np.repeat([0, 1, 2], [7, 7, 6])
    for sample in range(3):
        relevance = case.maps[sample].sum(0).numpy()
        order = sorted(range(3), key=lambda piece: relevance[pieces == piece].mean(), reverse=True)
        for count in range(4):
            signal = x[sample].numpy().copy()
            signal[:, np.isin(pieces, order[:count])] = 1.0
            expected = literal_outputs(weight, signal, sample % 2)["logit"]
            found = values(frame, "logit", mode="most_first", sample=f"s{sample}", step=count / 3)
            assert found.tolist() == pytest.approx([expected], abs=1e-12)


@pytest.mark.parametrize("fill", ["noise", "noisy_linear"])
def test_outputs_are_averaged_over_draws_of_the_fill(fill):
    model, x, target = network("functional", torch.float64)
    case = case_of(model, x, target, normal(*x.shape))
    averaged = rows(case, "pixel_flipping", fill=fill, steps=2, patch=3, imputations=3)
    removing, relevance = Removal(fill, 3).on(case), case.maps.sum(1)
    for order, (step, fraction) in itertools.product(ORDERS, enumerate((0, 0.5, 1))):
        gone = removing.ranks(order, relevance) < 8 * step
        logits = [model(removing.without(torch.arange(5), gone, draw)).detach() for draw in range(3)]
        each = {
            "logit": [logit[torch.arange(5), target] for logit in logits],
            "probability": [logit.softmax(1)[torch.arange(5), target] for logit in logits],
            "correct": [(logit.argmax(1) == target).double() for logit in logits],
        }
        assert (each["logit"][0] != each["logit"][1]).all() == (step > 0)
        for measure, draws in each.items():
            found = values(averaged, measure, mode=order, step=fraction)
            torch.testing.assert_close(found, torch.stack(draws).mean(0), rtol=0, atol=1e-10)


def test_the_noise_fill_of_a_draw_is_that_of_the_space():
    model, x, target = network("functional", torch.float64)
    case = case_of(model, x, target, "gradient", space=InputSpace("image", (0.5,) * 2, (0.25,) * 2))
    everything = torch.ones(5, 144, dtype=torch.bool)
    for draw in (0, 2):
        uniform = Draws.of(case.samples, 0, "fill", "noise").uniform(*x.shape[1:], draw=draw)
        found = Removal("noise").on(case).without(torch.arange(5), everything, draw)
        torch.testing.assert_close(found, (uniform - 0.5) / 0.25, rtol=0, atol=1e-12)


def test_a_fill_without_randomness_is_drawn_once():
    passes = []
    for imputations in (1, 5):
        case = case_of(*network("functional"), normal(5, 2, 12, 12).float())
        frame = rows(case, "pixel_flipping", fill="mean", steps=4, imputations=imputations)
        passes.append((case.passes.forward, frame))
    assert passes[0][0] == passes[1][0]
    assert passes[0][1].equals(passes[1][1])


@pytest.mark.slow
@pytest.mark.parametrize("fill", ["blur", "noise", "noisy_linear", "inpaint"])
@pytest.mark.parametrize("units", [{}, {"patch": 5}, {"superpixels": 10}])
def test_the_size_of_a_chunk_changes_nothing(fill, units):
    model, _, target = network("functional", torch.float64)
    x = smooth(3, 2, 9)
    found = []
    for chunk in (64, 3, 1):
        case = case_of(model, x, target[:3], normal(*x.shape), chunk=chunk)
        frame = rows(case, "pixel_flipping", fill=fill, steps=2, imputations=2, **units)
        found.append(torch.tensor(frame["value"].to_numpy(copy=True)))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("fill", ["black", "blur", "noise", "noisy_linear", "inpaint"])
@pytest.mark.parametrize("units", [{}, {"superpixels": 9}])
def test_a_sample_does_not_depend_on_what_else_is_there(fill, units):
    whole, weight = smooth_case()
    frame = rows(whole, "pixel_flipping", fill=fill, steps=3, imputations=2, **units)
    part = torch.tensor([4, 1])
    alone = case_of(Linear(weight), whole.x[part], whole.target[part], whole.maps[part], samples=["s4", "s1"])
    subset = rows(alone, "pixel_flipping", fill=fill, steps=3, imputations=2, **units)
    keys = ["sample", "measure", "mode", "step"]
    merged = subset.merge(frame, on=keys, how="left", suffixes=("", "_of_all"))
    assert len(merged) == len(subset)
    np.testing.assert_allclose(merged["value"], merged["value_of_all"], rtol=0, atol=1e-9)


def test_what_has_no_part_of_a_method_is_computed_once_for_all_of_them():
    model, x, target = network("modules")
    first, second = (case_of(model, x, target, normal(5, 2, 12, 12, seed=seed).float()) for seed in (1, 2))
    second.source = first.source
    options = {"fill": "black", "steps": 8}
    frames = [rows(case, "pixel_flipping", **options) for case in (first, second)]
    # Untouched, nothing left, and seven steps between them in each order.
    assert first.passes.forward == 5 * (1 + 1 + 3 * 7)
    assert second.passes.forward == 5 * 2 * 7
    for measure in MEASURES:
        curves_found = [values(frame, measure, mode="random") for frame in frames]
        assert torch.equal(*curves_found)
    assert not torch.equal(*(values(frame, "logit", mode="most_first") for frame in frames))
    before = second.passes.forward
    rows(second, "pixel_flipping", fill="white", steps=8)
    assert second.passes.forward - before == 5 * (1 + 3 * 7)
    before = second.passes.forward
    rows(second, "pixel_flipping", fill="black", steps=4)
    assert second.passes.forward - before == 5 * 3 * 3


@pytest.mark.parametrize("other", [{"patch": 3}, {"superpixels": 14}, {"imputations": 2}, {"fill": "mean"}])
def test_what_is_shared_is_that_of_the_same_removal(other):
    case, weight = smooth_case()
    rows(case, "pixel_flipping", fill="noise", steps=4)
    fresh = case_of(Linear(weight), case.x, case.target, case.maps)
    frames = [rows(each, "pixel_flipping", **{"fill": "noise", "steps": 4, **other}) for each in (case, fresh)]
    assert frames[0].equals(frames[1])


def test_what_is_shared_is_that_of_the_samples_at_hand():
    model, x, target = network("modules", torch.float64)
    maps = normal(5, 2, 12, 12)
    case = case_of(model, x, target, maps)
    rows(case, "pixel_flipping", fill="black", steps=4)
    other = case_of(model, x.flip(0), target, maps, samples=[f"t{index}" for index in range(5)])
    other.source = case.source
    fresh = case_of(model, x.flip(0), target, maps, samples=other.samples)
    assert rows(other, "pixel_flipping", fill="black", steps=4).equals(
        rows(fresh, "pixel_flipping", fill="black", steps=4)
    )


@pytest.mark.parametrize("units", [{}, {"patch": 3}, {"superpixels": 14}])
def test_reversing_a_map_swaps_its_curves_exactly_also_with_ties(units):
    case, weight = smooth_case()
    maps = case.maps.round()
    found = [
        rows(case_of(Linear(weight), case.x, case.target, sign * maps), "pixel_flipping", fill="blur", **units)
        for sign in (1, -1)
    ]
    for measure in (*MEASURES, "area"):
        for mode, other in (("most_first", "least_first"), ("least_first", "most_first"), ("random", "random")):
            assert torch.equal(values(found[0], measure, mode=mode), values(found[1], measure, mode=other))
    for gain in ("symmetric_relevance_gain", "symmetric_relevance_gain_logit"):
        assert torch.equal(values(found[0], gain), -values(found[1], gain))


@pytest.mark.parametrize("transform", [lambda m: m**3 + m, lambda m: 1e3 * m - 7, torch.atan, lambda m: m.exp()])
def test_strictly_increasing_transforms_of_a_map_change_nothing(transform):
    case, weight = smooth_case()
    maps = case.maps.sum(1, keepdim=True).round()
    frames = [
        rows(case_of(Linear(weight), case.x, case.target, each), "pixel_flipping", fill="blur", steps=9)
        for each in (maps, transform(maps))
    ]
    assert frames[0].equals(frames[1])


def test_patches_and_scale_are_ordered_by_means():
    """A patch at the border is smaller: with a constant added, an order by sums would change and one by means not."""
    case, weight = smooth_case()
    for units in ({"patch": 5}, {"superpixels": 14}):
        frames = [
            rows(case_of(Linear(weight), case.x, case.target, maps), "pixel_flipping", fill="black", **units)
            for maps in (case.maps, 3 * case.maps + 100)
        ]
        assert frames[0].equals(frames[1])


def test_ties_are_broken_at_random_and_the_same_way_for_all_methods():
    weight, x = 2.0 ** torch.arange(12, dtype=torch.float64).expand(2, -1), torch.ones(200, 1, 3, 4).double()
    maps = torch.zeros_like(x)
    maps[:, :, 0, 0] = 1
    case = case_of(Linear(weight * torch.tensor([[1.0], [0.0]])), x, torch.zeros(200, dtype=torch.int64), maps)
    frame = rows(case, "pixel_flipping", fill="black", steps=12)
    curve = values(frame, "logit", mode="most_first").view(13, 200).T
    order = (-curve.diff(dim=1)).log2().round()
    assert (order[:, 0] == 0).all()
    assert (order.sort(1).values == torch.arange(12)).all()
    assert (order[:, 1:].mean(0) - 6).abs().max() < 4 * math.sqrt(10 / 200)
    doubled = case_of(case.model, x, case.target, 2 * maps)
    assert rows(doubled, "pixel_flipping", fill="black", steps=12).equals(frame)


@pytest.mark.parametrize("units", [{}, {"patch": 5}, {"superpixels": 14}])
def test_a_random_order_is_linear_in_expectation_on_a_linear_model(units):
    x = smooth(1).expand(500, -1, -1, -1)
    weight = normal(2, x[0].numel(), seed=1) / 10
    case = case_of(Linear(weight), x, torch.zeros(500, dtype=torch.int64), torch.randn(500, 1, 16, 19).double())
    frame = rows(case, "pixel_flipping", fill="white", steps=4, **units)
    sizes = Removal("white", **units).on(case).sizes[0]
    count = int((sizes > 0).sum())
    whole, nothing = float(weight[0] @ x[0].flatten()), float(weight[0].sum())
    for step in sorted(frame["step"].dropna().unique()):
        curve = values(frame, "logit", mode="random", step=step).numpy()
        removed = round(step * count) / count
        error = 4 * curve.std(ddof=1) / math.sqrt(500) + 1e-9
        assert abs(curve.mean() - (whole + removed * (nothing - whole))) < error


@pytest.mark.parametrize(("fill", "steps"), [("black", 3), ("noise", 3), ("noisy_linear", 2)])
@pytest.mark.parametrize("units", [{}, {"patch": 3}, {"superpixels": 10}])
def test_a_random_map_gains_nothing_in_expectation(fill, steps, units):
    model, x, target = network("functional", torch.float64, n=300)
    x = smooth(300, 2, 9)
    maps = Draws.of([f"s{index}" for index in range(300)], 7, "a map").normal(*x.shape[1:])
    frame = rows(case_of(model, x, target, maps), "pixel_flipping", fill=fill, steps=steps, **units)
    for gain in ("symmetric_relevance_gain", "symmetric_relevance_gain_logit"):
        found = values(frame, gain).numpy()
        assert abs(found.mean()) < 4 * found.std(ddof=1) / math.sqrt(300)
        assert found.std() > 0


def test_patches_and_superpixels_exclude_each_other_and_need_neighbours():
    with pytest.raises(InputError, match="patches or superpixels, not both: patch=2, superpixels=5"):
        Removal("mean", patch=2, superpixels=5).on(case_of(*network("modules"), "gradient"))
    for units in ({"patch": 2}, {"superpixels": 5}):
        with pytest.raises(NotApplicableError, match="no neighbours to make patches of"):
            rows(case_of(*network("table"), "gradient"), "pixel_flipping", fill="mean", **units)


def test_points_of_irof_do_not_depend_on_how_many_superpixels_others_have():
    model, x, target = network("functional", torch.float64)
    x = torch.nn.functional.interpolate(x[:, :, ::4, ::4], size=(24, 24), mode="bicubic") * 2
    case = case_of(model, x, target, "gradient")
    assert len(set(Removal("black", superpixels=40).on(case).counts.tolist())) > 1
    together = rows(case, "irof", fill="black", superpixels=40)
    for row in range(len(x)):
        case = case_of(model, x[row : row + 1], target[row : row + 1], "gradient", samples=[f"s{row}"])
        alone = rows(case, "irof", fill="black", superpixels=40)
        theirs = together[together["sample"] == f"s{row}"]
        np.testing.assert_allclose(theirs["value"].to_numpy(), alone["value"].to_numpy(), rtol=0, atol=1e-9)
