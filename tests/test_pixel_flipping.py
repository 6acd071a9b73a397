"""Pixel flipping: closed forms on linear models, a slow literal twin, symmetries, and the interval of chance."""

import itertools

import numpy as np
import pytest
import torch

from cases import Linear, case_of, network, rows, values
from harness.random import Draws
from harness.statistics import mean_interval


def linear_case(weight, x, maps, **arguments):
    """Two classes whose logits are +w.x/2 and -w.x/2, so that the logit of the first is half of w.x."""
    model = Linear(torch.stack([weight.flatten(), -weight.flatten()]) / 2)
    return case_of(model, x, torch.zeros(len(x), dtype=torch.int64), maps, **arguments)


@pytest.fixture
def linear():
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(1, 4, 4, generator=generator, dtype=torch.float64)
    return weight, torch.rand(6, 1, 4, 4, generator=generator, dtype=torch.float64)


def test_the_optimal_order_gives_the_sorted_cumulative_sum(linear):
    weight, x = linear
    frame = rows(linear_case(weight, x, weight * x), "pixel_flipping", fill="black", steps=16)
    contributions = (weight * x).flatten(1).sort(dim=1, descending=True).values / 2
    left = contributions.sum(1, keepdim=True) - torch.nn.functional.pad(contributions.cumsum(1), (1, 0))
    curve = values(frame, "logit", mode="most_first").view(17, 6).T
    torch.testing.assert_close(curve, left, rtol=0, atol=1e-12)


def test_no_order_beats_the_exact_attribution_on_a_linear_model(linear):
    weight, x = linear
    best = values(
        rows(linear_case(weight, x, weight * x), "pixel_flipping", fill="black"), "symmetric_relevance_gain_logit"
    )
    generator = torch.Generator().manual_seed(4)
    for _ in range(20):
        other = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        gain = values(
            rows(linear_case(weight, x, other), "pixel_flipping", fill="black"), "symmetric_relevance_gain_logit"
        )
        assert (gain <= best + 1e-12).all()


def test_a_slow_literal_twin_agrees_on_a_network():
    model, x, target = network("functional", torch.float64)
    maps = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps, size = 6, 144
    frame = rows(case_of(model, x, target, maps), "pixel_flipping", fill="white", steps=steps)
    for sample in range(len(x)):
        relevance = maps[sample].sum(0).flatten()
        for mode, sign in (("most_first", -1), ("least_first", 1)):
            order = sorted(range(size), key=lambda pixel, sign=sign: sign * float(relevance[pixel]))
            curve = []
            for step in range(steps + 1):
                image = x[sample].clone()
                for pixel in order[: round(step / steps * size)]:
                    image[:, pixel // 12, pixel % 12] = 1.0
                logits = model(image[None])[0].detach()
                curve.append(float(logits.softmax(0)[target[sample]]))
                got = frame[
                    (frame["mode"] == mode)
                    & (frame["sample"] == f"s{sample}")
                    & (frame["step"] == round(step / steps * size) / size)
                ]
                got = got.set_index("measure")["value"]
                assert got["probability"] == pytest.approx(curve[-1], abs=1e-10)
                assert got["logit"] == pytest.approx(float(logits[target[sample]]), abs=1e-10)
                assert got["log_odds"] == pytest.approx(np.log(curve[-1] / (1 - curve[-1])), abs=1e-8)
                assert got["correct"] == float(logits.argmax() == target[sample])
            area = sum((a + b) / 2 for a, b in itertools.pairwise(curve)) / steps
            if mode == "most_first":
                most = area
        gain = values(frame, "symmetric_relevance_gain")[sample]
        assert float(gain) == pytest.approx(area - most, abs=1e-10)


@pytest.mark.parametrize("ties", [False, True])
def test_reversing_a_map_flips_the_sign_exactly(ties):
    model, x, target = network("modules")
    maps = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    maps = maps.round() if ties else maps
    gains = [
        values(rows(case_of(model, x, target, sign * maps), "pixel_flipping", fill="blur"), "symmetric_relevance_gain")
        for sign in (1, -1)
    ]
    assert torch.equal(gains[0], -gains[1])
    assert (gains[0] != 0).any()


def test_strictly_increasing_transforms_change_nothing():
    model, x, target = network("modules", torch.float64)
    maps = torch.randn(x[:, :1].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).round()
    frames = [rows(case_of(model, x, target, m), "pixel_flipping", fill="black") for m in (maps, maps.exp() * 3 - 1)]
    assert frames[0].equals(frames[1])


def test_a_constant_map_has_no_order_and_says_so():
    model, x, target = network("modules")
    maps = torch.ones_like(x)
    maps[1] = torch.randn(x[1].shape, generator=torch.Generator().manual_seed(0))
    frame = rows(case_of(model, x, target, maps), "pixel_flipping", fill="black")
    gain = frame[frame["measure"] == "symmetric_relevance_gain"]
    assert list(gain["reason"].isna()) == [False, True, False, False, False]
    assert gain["reason"].iloc[0] == "constant map"
    assert frame.loc[frame["mode"] == "random", "value"].notna().all()


def test_the_random_order_is_the_same_for_all_methods_and_no_other_order():
    model, x, target = network("modules")
    first, second = (
        rows(case_of(model, x, target, name), "pixel_flipping", fill="black")
        for name in ("gradient", "input_magnitude")
    )
    same = [
        torch.equal(values(first, "logit", mode=m), values(second, "logit", mode=m)) for m in ("random", "most_first")
    ]
    assert same == [True, False]


@pytest.mark.slow
def test_the_interval_of_a_random_map_covers_zero_as_often_as_it_says():
    """200 seeds of the random control: the 95 % interval of its gain covers 0 in 92 to 98 % of cases."""
    model, x, target = network("modules", n=120)
    ids = [f"s{index}" for index in range(len(x))]
    covered, means = 0, []
    for seed in range(200):
        maps = Draws.of(ids, seed, "method", "random", 0).normal(*x.shape[1:]).to(x.dtype)
        frame = rows(case_of(model, x, target, maps, seed=seed), "pixel_flipping", fill="black", steps=4)
        interval = mean_interval(values(frame, "symmetric_relevance_gain").numpy()[:, None])
        covered += interval.low <= 0 <= interval.high
        means.append(interval.value)
    assert 184 <= covered <= 196
    assert abs(np.mean(means)) < 4 * np.std(means, ddof=1) / np.sqrt(200)
