"""The share of zeros: counted position by position, and the rank correlation that common zeros make by themselves."""

import pytest
import torch
from sample_maps import generator, normal
from scipy import stats

from cases import Linear, case_of, rows, values
from harness.metrics.comparison import compare, ready


def found_for(maps):
    model = Linear(normal(2, maps[0].numel()))
    case = case_of(model, normal(*maps.shape), torch.zeros(len(maps), dtype=torch.int64), maps)
    return rows(case, "zero_fraction")


@pytest.mark.parametrize("shape", [(6, 3, 5, 7), (6, 1, 5, 7), (6, 2, 11), (6, 13)])
def test_a_position_counts_where_all_its_channels_are_zero(shape):
    maps = normal(*shape) * (torch.rand(shape, generator=generator()) < 0.4)
    maps[0] = 0
    maps[1] = -0.0
    maps[2] = 1
    maps.view(6, -1)[3] = torch.arange(maps[3].numel()) - 2.0
    maps[4] *= 1e-300
    expected = []
    for each in maps:
        columns = each.flatten(1).T.tolist() if each.ndim > 1 else [[value] for value in each.tolist()]
        expected.append(sum(all(value == 0 for value in column) for column in columns) / len(columns))
    assert expected[:3] == [1, 1, 0]
    assert values(found_for(maps), "zero_fraction").tolist() == pytest.approx(expected, abs=1e-15)


def test_values_that_cancel_over_channels_are_not_zero():
    maps = normal(2, 1, 4, 4).expand(2, 2, 4, 4) * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)
    assert values(found_for(maps), "zero_fraction").tolist() == [0, 0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_map_that_is_not_finite_has_no_share_and_a_constant_one_has(value):
    maps = torch.zeros(3, 2, 4, 4, dtype=torch.float64)
    maps[1, 0, 1, 2] = value
    frame = found_for(maps)
    assert frame["value"].isna().tolist() == [False, True, False]
    assert frame["reason"].isna().tolist() == [True, False, True]
    assert frame["reason"][1] == "not finite"
    assert frame["value"][0] == frame["value"][2] == 1


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.8, 0.95])
def test_common_zeros_alone_make_the_rank_correlation_that_is_stated(share):
    n, side = 100, 80
    zeros = torch.zeros(side * side, dtype=torch.bool)
    zeros[: round(share * side * side)] = True
    a, b = (normal(n, 1, side, side, seed=seed).masked_fill(zeros.view(side, side), 0) for seed in (0, 1))
    assert values(found_for(a), "zero_fraction").tolist() == pytest.approx([share] * n, abs=1e-12)
    measured = {score.sign: score.values for score in compare(ready(a, "a", ["spearman"]), ready(b, "b", ["spearman"]))}
    correlation = measured["absolute"]
    expected = 3 * share / (3 * share + (1 - share) ** 2)
    assert abs(correlation.mean() - expected) < 4 * correlation.std() / n**0.5
    literal = stats.spearmanr(a[0].abs().flatten(), b[0].abs().flatten())[0]
    assert float(correlation[0]) == pytest.approx(literal, abs=1e-10)
