"""Sparseness, entropy and effective complexity: closed forms, and the definitions written out as loops."""

import math

import numpy as np
import pytest
import torch
from sample_maps import generator, normal
from scipy import stats

from cases import Linear, case_of, rows, values
from harness import METRICS
from harness.entries import OptionError

METRIC_OF = {
    "gini": "sparseness",
    "entropy": "entropy",
    "normalized_entropy": "entropy",
    "effective_complexity": "effective_complexity",
    "effective_fraction": "effective_complexity",
}
EVERY = ("sparseness", "entropy", "effective_complexity")
SHAPES = [(6, 3, 5, 7), (6, 1, 5, 7), (6, 2, 11), (6, 13)]


def found(maps, measure, **options):
    return values(frame_of(maps, METRIC_OF[measure], **options), measure)


def frame_of(maps, metric, **options):
    model = Linear(normal(2, maps[0].numel()))
    return rows(case_of(model, normal(*maps.shape), torch.zeros(len(maps), dtype=torch.int64), maps), metric, **options)


def literal_sizes(maps):
    """The sum of absolute values over the channels of each position, as lists of floats."""
    return [
        [sum(abs(value) for value in column) for column in each.flatten(1).T.tolist()]
        if each.ndim > 1
        else [abs(value) for value in each.tolist()]
        for each in maps
    ]


def lively(shape):
    """Maps of both signs with ties, zeros and one value that dwarfs the others."""
    maps = normal(*shape) * (torch.rand(shape, generator=generator()) < 0.6)
    maps.view(6, -1)[1] = (torch.arange(maps[1].numel()) % 3).double()
    maps.view(6, -1)[2, 0] = 1e6
    return maps


@pytest.mark.parametrize("shape", [(3, 1, 4, 6), (3, 1, 24), (3, 24)])
def test_one_position_and_a_constant_are_the_two_ends(shape):
    single = torch.zeros(shape, dtype=torch.float64)
    single.view(3, -1)[torch.arange(3), torch.tensor([0, 7, 23])] = torch.tensor([1.0, -2.0, 1e-9]).double()
    ends = {"gini": (1 - 1 / 24, 0), "entropy": (0, math.log(24)), "normalized_entropy": (0, 1)}
    ends |= {"effective_complexity": (1, 24), "effective_fraction": (1 / 24, 1)}
    for measure, (lowest, highest) in ends.items():
        assert found(single, measure).tolist() == pytest.approx([lowest] * 3, abs=1e-15)
        constant = torch.full(shape, -0.3, dtype=torch.float64)
        assert found(constant, measure).tolist() == pytest.approx([highest] * 3, abs=1e-14)


@pytest.mark.parametrize("count", [1, 2, 5, 24])
def test_equal_values_on_some_positions_count_these(count):
    maps = torch.zeros(1, 24, dtype=torch.float64)
    maps[0, torch.randperm(24, generator=generator())[:count]] = 0.7
    assert float(found(maps, "gini")) == pytest.approx(1 - count / 24, abs=1e-14)
    assert float(found(maps, "entropy")) == pytest.approx(math.log(count), abs=1e-14)
    assert float(found(maps, "effective_complexity")) == count


@pytest.mark.parametrize("shape", SHAPES)
def test_gini_is_half_the_relative_mean_difference(shape):
    maps = lively(shape)
    expected = []
    for sizes in literal_sizes(maps):
        differences = sum(abs(one - other) for one in sizes for other in sizes)
        expected.append(differences / (2 * len(sizes) * sum(sizes)))
    assert found(maps, "gini").tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_entropy_is_that_of_scipy(shape):
    maps = lively(shape)
    expected = [stats.entropy(sizes) for sizes in literal_sizes(maps)]
    assert found(maps, "entropy").tolist() == pytest.approx(expected, abs=1e-12)
    expected = [stats.entropy(sizes, base=len(sizes)) for sizes in literal_sizes(maps)]
    assert found(maps, "normalized_entropy").tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.5])
@pytest.mark.parametrize("shape", SHAPES)
def test_effective_complexity_counts_what_is_above_the_threshold(shape, epsilon):
    maps = lively(shape)
    expected = [sum(size > epsilon * max(sizes) for size in sizes) for sizes in literal_sizes(maps)]
    counts = found(maps, "effective_complexity", relative_epsilon=epsilon)
    assert counts.tolist() == expected
    positions = len(literal_sizes(maps)[0])
    shares = found(maps, "effective_fraction", relative_epsilon=epsilon)
    assert shares.tolist() == pytest.approx([count / positions for count in expected], abs=1e-15)
    if epsilon == 0:
        zero = values(frame_of(maps, "zero_fraction"), "zero_fraction")
        torch.testing.assert_close(shares, 1 - zero, rtol=0, atol=1e-15)


def test_the_threshold_itself_does_not_count_and_one_per_cent_is_the_default():
    maps = torch.tensor([[1.0, 0.5, 0.5, 0.25]], dtype=torch.float64)
    assert float(found(maps, "effective_complexity", relative_epsilon=0.5)) == 1
    assert float(found(maps, "effective_complexity", relative_epsilon=0.49)) == 3
    maps = torch.tensor([[1.0, 0.011, -0.011, 0.009]], dtype=torch.float64)
    assert float(found(maps, "effective_complexity")) == 3


@pytest.mark.parametrize("factor", [-3.0, 1e-300, 1e300])
@pytest.mark.parametrize("measure", METRIC_OF)
def test_scale_and_order_of_positions_do_not_count(measure, factor):
    maps = normal(5, 1, 6, 7)
    shuffled = maps.flatten(2)[:, :, torch.randperm(42, generator=generator())].view_as(maps)
    torch.testing.assert_close(found(factor * shuffled, measure), found(maps, measure), rtol=1e-12, atol=0)


def test_channels_that_cancel_are_not_zero():
    maps = normal(2, 1, 4, 4).expand(2, 2, 4, 4) * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
    for measure in METRIC_OF:
        torch.testing.assert_close(found(maps, measure), found(maps[:, :1], measure), rtol=1e-12, atol=0)


def test_a_sparser_map_is_sparser_by_all_of_them():
    dense = normal(20, 1, 12, 12)
    sparse = dense * (torch.rand(dense.shape, generator=generator()) < 0.2)
    assert (found(sparse, "gini") > found(dense, "gini") + 0.1).all()
    for measure in ("entropy", "normalized_entropy", "effective_complexity", "effective_fraction"):
        assert (found(sparse, measure) < found(dense, measure)).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("metric", EVERY)
def test_no_values_for_a_map_of_zeros_or_one_that_is_not_finite(metric, value):
    maps = torch.ones(4, 2, 4, 4, dtype=torch.float64)
    maps[1, 0, 1, 2] = value
    maps[2] = 0
    maps[3] = -0.0
    frame = frame_of(maps, metric)
    assert set(frame["measure"]) == {measure for measure, of in METRIC_OF.items() if of == metric}
    for _, one in frame.groupby("measure"):
        assert one["value"].isna().tolist() == [False, True, True, True]
        zero = "the map is zero everywhere"
        assert [None if reason != reason else reason for reason in one["reason"]] == [None, "not finite", zero, zero]


def test_of_a_single_position_only_the_normalized_entropy_is_undefined():
    maps = torch.tensor([[2.0], [0.0]], dtype=torch.float64)
    frame = frame_of(maps, "entropy")
    assert values(frame, "entropy")[0] == 0
    reasons = frame.loc[frame["measure"] == "normalized_entropy", "reason"].tolist()
    assert reasons == ["a single position", "the map is zero everywhere"]
    assert found(maps, "gini")[0] == 0
    assert found(maps, "effective_complexity")[0] == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("measure", METRIC_OF)
def test_the_type_of_the_map_does_not_count(measure, dtype):
    maps = (normal(3, 2, 6, 7) * 1000).to(dtype)
    maps[0] = 60000
    np.testing.assert_array_equal(found(maps, measure), found(maps.double(), measure))


@pytest.mark.parametrize("epsilon", [-0.1, 1.0])
def test_a_threshold_outside_the_map_is_refused(epsilon):
    with pytest.raises(OptionError, match="relative_epsilon"):
        METRICS["effective_complexity"].resolve({"relative_epsilon": epsilon})


def test_the_table_says_that_they_only_describe():
    for name in EVERY:
        assert METRICS[name].direction is None
        assert METRICS[name].family == "complexity"
        assert METRIC_OF[METRICS[name].headline] == name
