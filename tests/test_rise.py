"""RISE against a loop, its masks against scikit-image, and its expectation on a linear model."""

import math

import numpy as np
import pytest
import scipy.stats
import skimage.transform
import torch

from cases import Linear, network
from closed_forms import draws_for, explained, normal
from harness.methods.perturbation import BLOCK, _interpolations, _masks, rise
from harness.types import InputError

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def one_mask(draws, sides, index, cells, keep, smooth=True):
    return _masks(draws, sides, range(index, index + 1), cells, keep, smooth=smooth)[:, 0]


def numbers_of(draws, index, size):
    """Of one mask; they are drawn in blocks."""
    return draws.uniform(BLOCK, size, draw=index // BLOCK)[:, index % BLOCK].numpy()


def parts_of(draws, sides, index, cells, keep):
    """The binary grid of a mask and its shift, from the same numbers: the grid row by row, then the shifts."""
    numbers = numbers_of(draws, index, cells ** len(sides) + len(sides))
    grids = (numbers[:, : -len(sides)] < keep).astype(float).reshape(-1, *(cells,) * len(sides))
    shifts = [
        [int(u * math.ceil(side / cells)) for u, side in zip(row, sides, strict=True)]
        for row in numbers[:, -len(sides) :]
    ]
    return grids, shifts


def by_skimage(grid, shift, sides):
    """The generator of the authors: one cell more, resized by scikit-image, cut out at the shift.

    They mirror the outer half of a border cell at its middle (mode "reflect") instead of continuing it.
    """
    cells = len(grid)
    large = skimage.transform.resize(
        grid, [(cells + 1) * math.ceil(side / cells) for side in sides], order=1, mode="edge", anti_aliasing=False
    )
    return large[tuple(slice(at, at + side) for at, side in zip(shift, sides, strict=True))]


@pytest.mark.parametrize(
    ("sides", "cells"), [((14, 14), 7), ((20, 9), 4), ((9, 31), 3), ((5, 6), 7), ((24,), 5), ((7,), 7), ((6, 6), 1)]
)
def test_masks_are_those_of_the_authors_but_for_borders(sides, cells):
    draws = draws_for(range(20), "masks")
    for index in (0, 1, BLOCK - 1, 3 * BLOCK + 2):
        masks = one_mask(draws, sides, index, cells, 0.4)
        for mask, grid, shift in zip(masks, *parts_of(draws, sides, index, cells, 0.4), strict=True):
            torch.testing.assert_close(mask, torch.from_numpy(by_skimage(grid, shift, sides)), **CLOSE)


def test_every_shift_of_less_than_a_cell_occurs_equally_often():
    _, shifts = parts_of(draws_for(range(4000), "shifts"), (20, 9), 0, 4, 0.5)
    for axis, size in ((0, 5), (1, 3)):
        counts = np.bincount([shift[axis] for shift in shifts], minlength=size)
        assert len(counts) == size
        assert scipy.stats.chisquare(counts).pvalue > 1e-3
    assert _interpolations(20, 4).shape == (5, 20, 4)
    assert _interpolations(9, 4).shape == (3, 9, 4)


@pytest.mark.parametrize(("sides", "keep"), [((12, 20), 0.5), ((12, 20), 0.1), ((30,), 0.8)])
def test_masks_keep_the_same_share_of_each_position(sides, keep):
    draws = draws_for(range(400), "masks")
    masks = torch.stack([one_mask(draws, sides, index, 4, keep) for index in range(10)]).flatten(0, 1)
    assert 0 <= masks.min() < masks.max() <= 1 + 1e-12
    error = masks.std(0) / len(masks) ** 0.5
    assert ((masks.mean(0) - keep).abs() < 4.5 * error).all()
    cell = max(-(-side // 4) for side in sides)
    steps = [masks.diff(dim=axis).abs().max() for axis in range(1, masks.ndim)]
    # Linear between the middles of cells: five of them on (4 + 1) cells of length, so no step is larger than this.
    assert max(steps) <= 4 / 5 / min(-(-side // 4) for side in sides) + 1e-9
    assert max(steps) > 0.1 / cell


def test_masks_of_a_table_are_independent():
    draws = draws_for(range(500), "masks")
    masks = torch.stack([one_mask(draws, (5,), index, 7, 0.3, smooth=False) for index in range(8)]).flatten(0, 1)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    error = (0.3 * 0.7 / len(masks)) ** 0.5
    assert ((masks.mean(0) - 0.3).abs() < 4 * error).all()
    correlations = torch.corrcoef(masks.T)[~torch.eye(5, dtype=torch.bool)]
    assert (correlations.abs() < 4 / len(masks) ** 0.5).all()


def masks_by_hand(draws, axes, index, cells, keep):
    if len(axes) == 1 and cells is None:
        return torch.from_numpy(numbers_of(draws, index, axes[0]) < keep).double()
    grids, shifts = parts_of(draws, axes, index, cells, keep)
    return torch.from_numpy(np.stack([by_skimage(*pair, axes) for pair in zip(grids, shifts, strict=True)]))


@pytest.mark.parametrize("chunk", [1, 53, 200])
@pytest.mark.parametrize("name", ["modules", "functional", "signal", "table"])
def test_equals_a_loop_over_masks(name, chunk):
    model, x, target = network(name, torch.float64, n=3)
    x = x[..., :-1] if name == "functional" else x
    baseline, draws = normal(*x.shape, seed=7), draws_for(x, "rise")
    axes, table = x.shape[2:] or x.shape[1:], name == "table"
    shape = (x if table else x[:, :1]).shape
    masks = [masks_by_hand(draws, axes, index, None if table else 3, 0.3).reshape(shape) for index in range(40)]
    scores = [explained(model, mask * x + (1 - mask) * baseline, target) for mask in masks]
    expected = torch.zeros(shape, dtype=x.dtype)
    for n in range(len(x)):
        mean = sum(each[n] for each in scores) / 40
        # The mean goes past the sum; with the same number of masks at each position that changes nothing.
        expected[n] = mean + sum((score[n] - mean) * mask[n] for score, mask in zip(scores, masks, strict=True)) / 12
    options = {"baseline": baseline, "draws": draws, "samples": 40, "cells": 3, "keep": 0.3}
    torch.testing.assert_close(rise(model, x, target, chunk=chunk, **options), expected, **CLOSE)


def linear_table(bias):
    weight, x = normal(4, 6), normal(120, 6, seed=2)
    return Linear(weight, bias), weight, x, torch.arange(120) % 4


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0.5, 0.2])
def test_expectation_on_a_linear_model(keep):
    """E S_i = f(b) + p sum_j w_j (x_j - b_j) + (1 - p) w_i (x_i - b_i); with b = 0 that is p f + (1 - p) w_i x_i."""
    bias = normal(4, seed=5)
    model, weight, x, target = linear_table(bias)
    baseline = normal(*x.shape, seed=3)
    change = weight[target] * (x - baseline)
    expected = explained(model, baseline, target)[:, None] + keep * change.sum(1, keepdim=True) + (1 - keep) * change
    maps = [
        rise(model, x, target, baseline=baseline, draws=draws_for(x, run), samples=50, keep=keep) for run in range(20)
    ]
    runs = torch.stack(maps)
    score = (runs.mean(0) - expected) / (runs.std(0) / 20**0.5)
    # Of Student's distribution with 19 degrees of freedom, whose standard deviation is sqrt(19 / 17).
    assert abs(score.std() - (19 / 17) ** 0.5) < 0.15
    assert abs(score.mean()) < 0.15
    wrong = (runs.mean(0) - expected - 0.1 * change) / (runs.std(0) / 20**0.5)
    assert wrong.std() > score.std() + 0.01


def test_the_paper_version_on_a_linear_model_without_bias():
    model, weight, x, target = linear_table(None)
    maps = rise(
        model, x, target, baseline=torch.zeros_like(x), draws=draws_for(x), samples=10_000, keep=0.5, chunk=30_000
    )
    expected = 0.5 * weight[target] * x + 0.5 * explained(model, x, target)[:, None]
    errors = (maps - expected).abs().flatten()
    assert errors.median() < 0.05 * expected.abs().median()
    assert torch.corrcoef(torch.stack([maps.flatten(), expected.flatten()]))[0, 1] > 0.999


def test_more_masks_are_less_noise():
    model, x, target = network("modules", torch.float64, n=2)
    options = {"baseline": torch.zeros_like(x), "cells": 3}
    spread = [
        torch.stack([rise(model, x, target, draws=draws_for(x, run), samples=count, **options) for run in range(12)])
        .std(0)
        .mean()
        for count in (10, 90)
    ]
    assert spread[0] / spread[1] == pytest.approx(3, rel=0.3)


@pytest.mark.parametrize("keep", [0.0, 1.0, -0.1, 1.5])
def test_a_probability_is_between_zero_and_one(keep):
    x = normal(1, 4)
    with pytest.raises(InputError, match=f"rise: keep is a probability between 0 and 1, got {keep}"):
        rise(Linear(normal(2, 4)), x, torch.tensor([0]), baseline=x, draws=draws_for(x), keep=keep)


def test_a_constant_model_has_a_constant_map_however_often_positions_are_kept():
    x = normal(3, 6, 6)[:, None]
    model = Linear(torch.zeros(2, 36).double(), torch.tensor([7.0, -3.0]).double())
    maps = rise(model, x, torch.tensor([0, 1, 0]), baseline=torch.zeros_like(x), draws=draws_for(x, "rise"), samples=20)
    expected = torch.tensor([7.0, -3.0, 7.0]).double().view(3, 1, 1, 1).expand_as(x)
    torch.testing.assert_close(maps, expected, **CLOSE)


def test_explains_the_probability_where_that_is_asked_for():
    model, x, target = network("table", torch.float64)
    options = {"baseline": torch.zeros_like(x), "draws": draws_for(x, "rise"), "samples": 30}
    of_softmax = rise(torch.nn.Sequential(model, torch.nn.Softmax(1)), x, target, **options)
    torch.testing.assert_close(rise(model, x, target, probability=True, **options), of_softmax, **CLOSE)
    assert (of_softmax - rise(model, x, target, **options)).abs().max() > 0.01
