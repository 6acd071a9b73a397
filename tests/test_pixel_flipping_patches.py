"""Pixel flipping in square patches and the area of its curves: a slow literal twin on linear models."""

import math

import numpy as np
import pytest
import torch

from cases import Linear, case_of, network, rows, values
from harness.types import NotApplicableError


def linear_case(shape, n=5):
    """Two logits, and maps whose mean is far from zero: smaller patches at the border have a smaller sum."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(2, math.prod(shape), generator=generator, dtype=torch.float64) / 5
    x = torch.rand(n, *shape, generator=generator, dtype=torch.float64)
    maps = 1 + torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    return case_of(Linear(weight), x, torch.arange(n) % 2, maps), weight, maps


def positions_by_patch(axes, side):
    patches = {}
    for place in np.ndindex(*axes):
        patches.setdefault(tuple(at // side for at in place), []).append(place)
    return list(patches.values())


def literal_curve(weight, x, target, relevance, sign, patch, steps):
    """The fractions removed, and logit and probability of one sample there; what is removed is white."""
    patches = positions_by_patch(relevance.shape, patch)
    patches.sort(key=lambda places: sign * np.mean([relevance[place] for place in places]))
    logits, probabilities = [], []
    counts = sorted({round(step / steps * len(patches)) for step in range(steps + 1)})
    for count in counts:
        image = x.copy()
        for places in patches[:count]:
            for place in places:
                image[(slice(None), *place)] = 1.0
        output = weight @ image.ravel()
        logits.append(output[target])
        probabilities.append(math.exp(output[target]) / sum(math.exp(value) for value in output))
    return [count / len(patches) for count in counts], logits, probabilities


@pytest.mark.parametrize(
    ("shape", "patch"), [((2, 7, 8), 3), ((1, 6, 6), 2), ((3, 5, 9), 4), ((2, 6, 6), 1), ((2, 7), 3), ((1, 20), 2)]
)
@pytest.mark.parametrize("steps", [1, 4, 9])
def test_a_slow_literal_twin_agrees_on_a_linear_model(shape, patch, steps):
    case, weight, maps = linear_case(shape)
    frame = rows(case, "pixel_flipping", fill="white", steps=steps, patch=patch)
    for sample in range(len(case.x)):
        areas = {}
        for mode, sign in (("most_first", -1), ("least_first", 1)):
            relevance, x = maps[sample].sum(0).numpy(), case.x[sample].numpy()
            removed, *curves = literal_curve(weight.numpy(), x, sample % 2, relevance, sign, patch, steps)
            for measure, curve in zip(("logit", "probability"), curves, strict=True):
                found = values(frame, measure, mode=mode, sample=f"s{sample}")
                assert found.tolist() == pytest.approx(curve, abs=1e-12)
                areas[mode, measure] = np.trapezoid(curve, removed)
            area = values(frame, "area", mode=mode, sample=f"s{sample}")
            assert area.tolist() == pytest.approx([areas[mode, "probability"]], abs=1e-12)
        for measure, name in (("probability", ""), ("logit", "_logit")):
            gain = values(frame, f"symmetric_relevance_gain{name}", sample=f"s{sample}")
            expected = areas["least_first", measure] - areas["most_first", measure]
            assert gain.tolist() == pytest.approx([expected], abs=1e-12)


@pytest.mark.parametrize(("shape", "patch"), [((2, 7, 8), 3), ((2, 7), 3)])
def test_the_random_order_removes_whole_patches_too(shape, patch):
    case, _, _ = linear_case(shape)
    patches = positions_by_patch(shape[1:], patch)
    marks = torch.zeros(len(patches), *shape, dtype=torch.float64)
    for mark, places in zip(marks, patches, strict=True):
        for place in places:
            mark[(slice(None), *place)] = 1.0
    total = [1 + 3**index for index in range(len(patches))]
    weight = torch.stack([sum(t * m / m.sum() for t, m in zip(total, marks, strict=True)), torch.zeros(shape)])
    blank = torch.ones_like(case.x)
    case = case_of(Linear(weight.double().flatten(1)), blank, torch.zeros(5, dtype=torch.int64), case.maps)
    frame = rows(case, "pixel_flipping", fill="black", steps=len(patches), patch=patch)
    curves = values(frame, "logit", mode="random").view(len(patches) + 1, 5)
    removed = -curves.diff(dim=0)
    for sample in range(5):
        assert sorted(removed[:, sample].tolist()) == pytest.approx(total, rel=1e-9)
    assert len({tuple(removed[:, sample].argsort().tolist()) for sample in range(5)}) > 1


@pytest.mark.parametrize("name", ["modules", "signal", "table"])
def test_single_pixels_are_patches_of_one(name):
    case = case_of(*network(name), "gradient")
    default = rows(case, "pixel_flipping", fill="mean", steps=5)
    assert rows(case, "pixel_flipping", fill="mean", steps=5, patch=1).equals(default)


@pytest.mark.parametrize("patch", [1, 5])
def test_an_area_is_that_under_the_recorded_curve_and_their_difference_the_gain(patch):
    model, x, target = network("functional", torch.float64)
    frame = rows(case_of(model, x, target, "gradient"), "pixel_flipping", fill="blur", steps=6, patch=patch)
    areas = {}
    for mode in ("most_first", "least_first", "random"):
        points = frame[(frame["measure"] == "probability") & (frame["mode"] == mode)]
        curve = torch.tensor(points["value"].to_numpy()).view(-1, len(x))
        removed = torch.tensor(points["step"].unique())
        areas[mode] = values(frame, "area", mode=mode)
        torch.testing.assert_close(areas[mode], torch.trapezoid(curve, removed, dim=0), rtol=0, atol=1e-14)
    gain = areas["least_first"] - areas["most_first"]
    torch.testing.assert_close(values(frame, "symmetric_relevance_gain"), gain, rtol=0, atol=1e-14)
    assert (gain != 0).all()


def test_a_constant_map_has_the_area_of_the_random_order_only():
    case, _, maps = linear_case((2, 7, 8))
    maps[1] = 2.0
    frame = rows(case, "pixel_flipping", fill="black", patch=3)
    for mode, undefined in (("most_first", True), ("least_first", True), ("random", False)):
        area = values(frame, "area", mode=mode)
        assert area.isnan().tolist() == [False, undefined, False, False, False]
    assert set(frame.loc[frame["value"].isna(), "reason"]) == {"constant map"}


def test_patches_of_a_table_are_not_applicable():
    case = case_of(*network("table"), "gradient")
    with pytest.raises(NotApplicableError, match="no neighbours to make patches of"):
        rows(case, "pixel_flipping", fill="mean", patch=2)
