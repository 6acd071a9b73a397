"""Monotonicity by both definitions: insertions whose outcome is known, and twins that insert by hand."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from cases import Linear, case_of, network, rows, values
from harness.types import InputError, NotApplicableError


def random_maps(shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear_case(shape, contributions, n=5, maps=None):
    """A linear model of samples of ones: what stands at a position is what inserting it into black adds."""
    weight = torch.stack([contributions, -contributions]).double().flatten(1)
    x = torch.ones(n, *shape, dtype=torch.float64)
    maps = contributions.double().expand_as(x).clone() if maps is None else maps
    return case_of(Linear(weight), x, torch.zeros(n, dtype=torch.int64), maps)


def positions_by_patch(axes, side):
    found = {}
    for place in np.ndindex(*axes):
        found.setdefault(tuple(at // side for at in place), []).append(place)
    return list(found.values())


def without(x, places, level):
    image = x.clone()
    for place in places:
        image[(..., *place)] = level
    return image


def logit_of(model, image, target):
    with torch.no_grad():
        return float(model(image[None])[0, target])


@pytest.mark.parametrize(("shape", "patch"), [((2, 6, 6), 1), ((1, 7, 8), 3), ((2, 24), 1), ((2, 24), 5), ((9,), 1)])
@pytest.mark.parametrize("steps", [1, 5, 100])
def test_contributions_that_are_not_negative_never_let_the_output_fall(shape, patch, steps):
    case = linear_case(shape, random_maps(shape).abs())
    frame = rows(case, "monotonicity", fill="black", patch=patch, steps=steps)
    for mode in ("most_first", "random"):
        for measure in ("monotonic", "rising_share"):
            assert values(frame, measure, mode=mode).tolist() == [1.0] * 5
    assert values(frame, "rising_beyond_random").tolist() == [0.0] * 5
    case = linear_case(shape, -random_maps(shape).abs())
    frame = rows(case, "monotonicity", fill="black", patch=patch, steps=steps)
    for mode in ("most_first", "random"):
        for measure in ("monotonic", "rising_share"):
            assert values(frame, measure, mode=mode).tolist() == [0.0] * 5


def test_the_last_to_be_inserted_is_what_the_map_calls_most_relevant_whatever_its_sign():
    contributions = torch.tensor([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, -3.5, -4.0])
    frame = rows(linear_case((8,), contributions), "monotonicity", fill="black", steps=8)
    assert values(frame, "monotonic", mode="most_first").tolist() == [0.0] * 5
    assert values(frame, "rising_share", mode="most_first").tolist() == [0.75] * 5
    inserted = [sum(contributions[: 8 - gone].tolist()) for gone in range(9)]
    for gone, expected in enumerate(inserted):
        assert values(frame, "logit", mode="most_first", step=gone / 8).tolist() == pytest.approx([expected] * 5)


def test_one_step_that_falls_is_enough_not_to_be_monotonic():
    contributions = torch.tensor([1.0, 2.0, 3.0, -0.5, 4.0, 5.0])
    ranked = torch.tensor([[1.0, 2.0, -3.0, 4.0, 5.0, -6.0]], dtype=torch.float64).repeat(5, 1)
    frame = rows(linear_case((6,), contributions, maps=ranked), "monotonicity", fill="black", steps=6)
    assert values(frame, "monotonic", mode="most_first").tolist() == [0.0] * 5
    assert values(frame, "rising_share", mode="most_first").tolist() == pytest.approx([5 / 6] * 5)
    assert values(frame, "rising_share", mode="random").tolist() == pytest.approx([5 / 6] * 5)
    assert values(frame, "rising_beyond_random").tolist() == [0.0] * 5
    # Two at a time, none of the steps falls: (1 + 2), (3 - 0.5), (4 + 5).
    frame = rows(linear_case((6,), contributions, maps=ranked), "monotonicity", fill="black", steps=3)
    assert values(frame, "monotonic", mode="most_first").tolist() == [1.0] * 5


def test_a_map_that_knows_where_the_output_falls_beats_the_random_order_and_one_that_misleads_does_not():
    contributions = torch.cat([torch.full((8,), -1.0), torch.full((4,), 5.0)])
    gains = []
    for sign in (1, -1):
        relevance = (sign * contributions).double().expand(200, 12) + 10 + torch.rand(200, 12) / 100
        frame = rows(linear_case((12,), contributions, 200, relevance), "monotonicity", fill="black", steps=4)
        gains.append(values(frame, "rising_beyond_random"))
        # Three at a time: (-, -, -), (-, -, -), (-, -, +), (+, +, +), or the other way round.
        assert values(frame, "rising_share", mode="most_first").tolist() == [0.5] * 200
    chance = 1 - (8 * 7 * 6) / (12 * 11 * 10)
    share = values(frame, "rising_share", mode="random")
    assert abs(float(share.mean()) - chance) < 4 * float(share.std()) / 200**0.5


@pytest.mark.parametrize("steps", [4, 11])
@pytest.mark.parametrize(("name", "patch"), [("functional", 1), ("functional", 5), ("signal", 1), ("table", 1)])
def test_a_slow_literal_twin_of_the_insertion_agrees(name, patch, steps):
    model, x, target = network(name, torch.float64)
    maps = random_maps(x.shape)
    frame = rows(case_of(model, x, target, maps), "monotonicity", fill="white", patch=patch, steps=steps)
    shares = []
    for sample in range(len(x)):
        relevance = (maps[sample].sum(0) if x.ndim > 2 else maps[sample]).abs()
        units = positions_by_patch(relevance.shape, patch)
        units.sort(key=lambda places: np.mean([float(relevance[place]) for place in places]))
        logits = []
        for count in sorted({0, *(round(step * len(units) / steps) for step in range(1, steps + 1))}):
            left = len(units) - count
            out = [place for places in units[left:] for place in places]
            logits.insert(0, logit_of(model, without(x[sample], out, 1.0), target[sample]))
        rises = [after >= before for before, after in pairwise(logits)]
        shares.append(np.mean(rises))
        assert values(frame, "logit", mode="most_first", sample=f"s{sample}").tolist() == pytest.approx(logits[::-1])
        assert values(frame, "rising_share", mode="most_first")[sample].item() == pytest.approx(shares[-1])
        assert values(frame, "monotonic", mode="most_first")[sample].item() == float(all(rises))
    assert 0 < np.mean(shares) < 1


def test_the_random_reference_is_read_from_its_own_curve_and_is_the_same_for_all_methods():
    model, x, target = network("functional", torch.float64)
    case = case_of(model, x, target, random_maps(x.shape))
    frame = rows(case, "monotonicity", fill="black", steps=9)
    points = frame[(frame["measure"] == "logit") & (frame["mode"] == "random")]
    logits = points.pivot(index="sample", columns="step", values="value").to_numpy()
    rises = logits[:, :-1] >= logits[:, 1:]
    assert values(frame, "rising_share", mode="random").tolist() == pytest.approx(rises.mean(1).tolist())
    assert values(frame, "monotonic", mode="random").tolist() == rises.all(1).tolist()
    own = values(frame, "rising_share", mode="most_first")
    difference = own - values(frame, "rising_share", mode="random")
    torch.testing.assert_close(values(frame, "rising_beyond_random"), difference, rtol=0, atol=0)
    other = rows(case_of(model, x, target, random_maps(x.shape, 2)), "monotonicity", fill="black", steps=9)
    first, second = (each[each["mode"] == "random"].reset_index(drop=True) for each in (frame, other))
    assert first.equals(second)


def test_random_maps_rise_as_often_as_the_random_order():
    shape, n = (1, 5, 5), 600
    contributions = random_maps(shape) + 0.5
    case = linear_case(shape, contributions, n, random_maps((n, *shape), 7))
    gain = values(rows(case, "monotonicity", fill="black", steps=12), "rising_beyond_random")
    assert gain.std() > 0
    assert abs(float(gain.mean())) < 4 * float(gain.std()) / n**0.5


@pytest.mark.parametrize(("fall", "rises"), [(4.0, 1.0), (64.0, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_falls_by_no_more_than_rounding_does_not_fall(fall, rises, dtype):
    # The largest logit is 2, a step falls by `fall` units in its last place, and a level is 16 of them.
    fall = fall * 2 * torch.finfo(dtype).eps
    weight = torch.tensor([[-fall], [0.0]], dtype=dtype)
    model = Linear(weight, torch.tensor([2.0, 0.0], dtype=dtype))
    x = torch.ones(1, 1, 1, 2, dtype=dtype)
    model.forward = lambda x: torch.nn.functional.linear(x[:, 0, 0, :1], weight, model.bias)
    maps = torch.tensor([[[[1.0, 2.0]]]], dtype=dtype)
    frame = rows(case_of(model, x, torch.zeros(1, dtype=torch.int64), maps), "monotonicity", fill="black", steps=2)
    assert values(frame, "monotonic", mode="most_first").tolist() == [rises]
    assert values(frame, "rising_share", mode="most_first").tolist() == [0.5 + rises / 2]


class Counting(torch.nn.Module):
    """The output is looked up by how many features are there."""

    def __init__(self, levels):
        super().__init__()
        self.levels = levels

    def forward(self, x):
        level = self.levels[x.sum(1).long()]
        return torch.stack([level, 0 * level], 1)


@pytest.mark.parametrize(("deepest", "rises"), [(-100.0, 1.0), (-1.0, 0.0)])
def test_rounding_is_that_of_the_largest_logit_of_the_whole_curve(deepest, rises):
    fall = 64 * torch.finfo(torch.float64).eps
    model = Counting(torch.tensor([deepest, 0.0, 1.0 + fall, 1.0], dtype=torch.float64))
    maps = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    case = case_of(model, torch.ones_like(maps), torch.zeros(1, dtype=torch.int64), maps)
    frame = rows(case, "monotonicity", fill="black", steps=3)
    assert values(frame, "monotonic", mode="most_first").tolist() == [rises]


@pytest.mark.parametrize("metric", ["monotonicity", "monotonicity_correlation"])
def test_signs_and_increasing_transforms_of_a_map_change_nothing(metric):
    model, x, target = network("functional", torch.float64)
    maps = random_maps((len(x), 1, 12, 12))
    signs = random_maps(maps.shape, 3).sign()
    for other in (-maps, maps * signs, maps * 100, maps**3):
        first, second = (rows(case_of(model, x, target, each), metric, fill="black", patch=1) for each in (maps, other))
        np.testing.assert_allclose(first["value"], second["value"], rtol=0, atol=1e-12)
    assert set(first.loc[first["measure"].isin(["monotonic", "spearman"]), "sign"]) == {"absolute"}


@pytest.mark.parametrize(("shape", "patch"), [((1, 5, 5), 1), ((1, 20), 1), ((9,), 0)])
def test_the_size_of_the_weights_is_what_noise_shows_of_a_linear_model(shape, patch):
    weight = torch.logspace(0, 1, int(np.prod(shape)), dtype=torch.float64).view(shape)
    weight = weight * random_maps(shape).sign()
    x = torch.full((2, *shape), 0.5, dtype=torch.float64)
    for maps, expected in ((weight, 1.0), (1 / weight, -1.0)):
        case = case_of(Linear(weight.view(1, -1)), x, torch.zeros(2, dtype=torch.int64), maps.expand_as(x).clone())
        many, single = (
            values(rows(case, "monotonicity_correlation", imputations=count, patch=patch), "spearman") * expected
            for count in (100, 1)
        )
        # E (w u)^2 with u uniform in [-1/2, 1/2] is w^2 / 12: single draws rank worse.
        assert many.min() > 0.97
        assert single.max() < 0.95


@pytest.mark.parametrize(("name", "patch"), [("functional", 5), ("signal", 3), ("table", 0)])
def test_a_slow_literal_twin_of_the_correlation_agrees(name, patch):
    model, x, target = network(name, torch.float64)
    maps = random_maps(x.shape)
    case = case_of(model, x, target, maps)
    frame = rows(case, "monotonicity_correlation", patch=patch, imputations=7)
    fills = [case.fill("noise", draw) for draw in range(7)]
    assert len({float(fill.sum()) for fill in fills}) == 7
    for sample in range(len(x)):
        relevance = (maps[sample].sum(0) if x.ndim > 2 else maps[sample]).abs()
        means, effects = [], []
        for places in positions_by_patch(relevance.shape, patch or 1):
            means.append(np.mean([float(relevance[place]) for place in places]))
            squares = []
            for fill in fills:
                image = x[sample].clone()
                for place in places:
                    image[(..., *place)] = fill[(sample, ..., *place)]
                before, after = (logit_of(model, each, target[sample]) for each in (x[sample], image))
                squares.append((before - after) ** 2 / before**2)
            effects.append(np.mean(squares))
        found = values(frame, "spearman")[sample].item()
        assert found == pytest.approx(spearmanr(means, effects).statistic, abs=1e-10)


def test_the_square_is_averaged_and_not_the_change():
    # Noise around the middle: feature 0 changes the output a lot and by 0 on average, the others by a constant.
    weight = torch.tensor([[10.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    model = Linear(weight)
    model.forward = lambda x: 10 * x[:, :1] + (x[:, 1:] != 0.5).double().sum(1, keepdim=True)
    x = torch.full((8, 4), 0.5, dtype=torch.float64)
    maps = torch.tensor([[4.0, 1.0, 1.0, 1.0]], dtype=torch.float64).repeat(8, 1)
    frame = rows(case_of(model, x, torch.zeros(8, dtype=torch.int64), maps), "monotonicity_correlation", imputations=50)
    assert values(frame, "spearman").tolist() == pytest.approx([1.0] * 8)


def test_random_maps_correlate_with_nothing_in_expectation():
    shape, n = (1, 5, 5), 400
    contributions = random_maps(shape)
    case = linear_case(shape, contributions, n, random_maps((n, *shape), 7))
    found = values(rows(case, "monotonicity_correlation", fill="black"), "spearman")
    assert float(found.std()) == pytest.approx(24**-0.5, rel=0.2)
    assert abs(float(found.mean())) < 4 * float(found.std()) / n**0.5


def test_changes_are_computed_once_for_all_methods_and_once_where_the_fill_is_no_draw():
    model, x, target = network("functional", torch.float64)
    first, second = (case_of(model, x, target, random_maps(x.shape, seed)) for seed in (1, 2))
    second.source = first.source
    rows(first, "monotonicity_correlation", patch=4, imputations=3)
    assert first.passes.forward == 5 * (1 + 3 * 9)
    shared = rows(second, "monotonicity_correlation", patch=4, imputations=3)
    assert second.passes.forward == 0
    apart = case_of(model, x, target, second.maps)
    assert shared.equals(rows(apart, "monotonicity_correlation", patch=4, imputations=3))
    rows(second, "monotonicity_correlation", patch=4, imputations=4)
    assert second.passes.forward == 5 * 4 * 9
    rows(second, "monotonicity_correlation", patch=4, imputations=3, fill="black")
    assert second.passes.forward == 5 * (4 * 9 + 9)


@pytest.mark.parametrize("metric", ["monotonicity", "monotonicity_correlation"])
@pytest.mark.parametrize("chunk", [1, 3])
def test_the_size_of_the_chunks_does_not_matter(metric, chunk):
    model, x, target = network("modules", torch.float64)
    options = {"steps": 6} if metric == "monotonicity" else {"imputations": 2}
    small, large = (
        rows(case_of(model, x, target, random_maps(x.shape), chunk=each), metric, fill="noise", patch=3, **options)
        for each in (chunk, 64)
    )
    np.testing.assert_allclose(small["value"], large["value"], rtol=0, atol=1e-9)


def reasons_of(frame, measure, mode=None):
    mine = frame[(frame["measure"] == measure) & (frame["mode"].isna() if mode is None else frame["mode"] == mode)]
    return [None if reason != reason else reason for reason in mine["reason"]]


def test_what_orders_nothing_is_undefined_with_its_reason_and_the_random_order_is_not():
    maps = random_maps((5, 2, 6, 6))
    maps[0, 0, 0, 0], maps[1], maps[2] = torch.nan, 3.0, 0.0
    maps[3], maps[3, 0, ::2, ::2] = 1.0, -3.0
    case = linear_case((2, 6, 6), random_maps((2, 6, 6)), maps=maps)
    expected = ["not finite", "constant map", "constant map", "constant map", None]
    frame = rows(case, "monotonicity", fill="black")
    for measure in ("monotonic", "rising_share"):
        assert reasons_of(frame, measure, "most_first") == expected
        assert reasons_of(frame, measure, "random") == [None] * 5
    assert reasons_of(frame, "rising_beyond_random") == expected
    assert reasons_of(rows(case, "monotonicity_correlation", patch=1), "spearman") == expected


def test_a_correlation_needs_units_that_differ_in_the_map_and_in_their_effect():
    maps = torch.zeros(5, 2, 6, 6, dtype=torch.float64)
    maps[:, 0, ::2, ::2] = 1.0
    case = linear_case((2, 6, 6), random_maps((2, 6, 6)), maps=maps)
    frame = rows(case, "monotonicity_correlation", patch=2)
    assert reasons_of(frame, "spearman") == ["the same sum in every unit"] * 5
    blank = case_of(Linear(torch.zeros(2, 72, dtype=torch.float64)), case.x, case.target, random_maps(case.x.shape))
    frame = rows(blank, "monotonicity_correlation", patch=2)
    assert reasons_of(frame, "spearman") == ["the same drop for every unit"] * 5


def test_patches_of_a_table_and_noise_without_a_range_are_refused():
    model, x, target = network("table", torch.float64)
    case = case_of(model, x, target, "gradient")
    with pytest.raises(NotApplicableError, match="no neighbours to make patches of"):
        rows(case, "monotonicity", fill="black", patch=2)
    case.space = case.space.undeclared(x)
    with pytest.raises(InputError, match="fill 'noise' needs the pixel space"):
        rows(case, "monotonicity_correlation")
