"""Imputation: planes, dense solves of the linear system, numpy's interpolation, scikit-image, and the noise on top."""

import numpy as np
import pytest
import torch
from skimage.restoration import inpaint_biharmonic

import harness
from cases import Linear, case_of, network, rows, values
from harness import InputSpace
from harness.metrics import imputation, perturbation
from harness.metrics.imputation import biharmonic, linear
from harness.metrics.perturbation import Removal
from harness.types import InputError

WEIGHTS = {(row, column): 1 / 12 if row and column else 1 / 6 for row in (-1, 0, 1) for column in (-1, 0, 1)}
del WEIGHTS[0, 0]

each_shape = pytest.mark.parametrize(
    "shape", [(1, 7, 7), (2, 9, 13), (3, 16, 5), (2, 1, 12), (1, 11, 1), (2, 2, 2), (1, 19, 20), (1, 3, 40), (1, 17, 9)]
)


def uniform(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def neighbours_of(row, column, axes):
    for (down, right), weight in WEIGHTS.items():
        if 0 <= row + down < axes[0] and 0 <= column + right < axes[1]:
            yield (row + down, column + right), weight


def dense_solve(picture, missing):
    """One picture [c, h, w]: the linear system of all missing pixels, written down and solved as a whole."""
    places = [tuple(place) for place in np.argwhere(missing)]
    index = {place: number for number, place in enumerate(places)}
    matrix, right = np.zeros((len(places), len(places))), np.zeros((len(places), len(picture)))
    for place, number in index.items():
        for other, weight in neighbours_of(*place, missing.shape):
            matrix[number, number] += weight
            if other in index:
                matrix[number, index[other]] -= weight
            else:
                right[number] += weight * picture[:, other[0], other[1]]
    result = picture.copy()
    for place, found in zip(places, np.linalg.solve(matrix, right), strict=True):
        result[:, place[0], place[1]] = found
    return result


def masks_of(axes, seed=0):
    """Random masks of several densities, a hole that touches the border, a half, a frame, islands, one pixel left."""
    height, width = axes
    masks = [uniform(height, width, seed=seed + number) < share for number, share in enumerate((0.1, 0.5, 0.9, 0.97))]
    border, half, frame, islands, one = (torch.zeros(axes, dtype=torch.bool) for _ in range(5))
    border[: (height + 1) // 2, width // 3 :] = True
    half[:, : width // 2] = True
    frame[[0, -1]] = frame[:, [0, -1]] = True
    islands[::2, ::3] = True
    one[...] = True
    one[height // 3, width // 2] = False
    masks = [mask for mask in (*masks, border, half, frame, islands, one) if not mask.all()]
    return torch.stack(masks)


@each_shape
def test_imputation_solves_the_linear_system_of_each_picture(shape):
    missing = masks_of(shape[1:])
    x = uniform(len(missing), *shape, seed=1) * 3 - 1
    found = linear(x, missing)
    for picture, mask, filled in zip(x.numpy(), missing.numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(filled, dense_solve(picture, mask), rtol=0, atol=1e-9)


@pytest.mark.parametrize("axes", [(15, 15), (21, 34), (40, 33)])
def test_a_plane_is_reproduced_where_holes_do_not_touch_the_border(axes):
    masks = [uniform(*axes, seed=number) < share for number, share in enumerate((0.3, 0.9))]
    hole = torch.zeros(axes, dtype=torch.bool)
    hole[2:-2, 3:-1] = True
    hole[axes[0] // 2, axes[1] // 2] = False
    missing = torch.stack([*masks, hole, ~hole & (uniform(*axes) < 0.5) | hole])
    missing[:, [0, -1]] = False
    missing[:, :, [0, -1]] = False
    down, right = torch.meshgrid(*(torch.arange(size).double() for size in axes), indexing="ij")
    planes = torch.stack([0.3 * down - 0.7 * right + 2, -0.11 * down + 5]).expand(len(missing), -1, -1, -1)
    torch.testing.assert_close(linear(planes, missing), planes, rtol=0, atol=1e-9)
    assert missing.flatten(1).any(1).all()


@pytest.mark.parametrize("place", [(3, 4), (0, 0), (0, 6), (5, 0), (5, 6), (0, 3), (5, 2), (2, 0), (4, 6)])
def test_a_single_pixel_is_the_weighted_mean_of_the_neighbours_that_it_has(place):
    x = uniform(1, 2, 6, 7)
    missing = torch.zeros(1, 6, 7, dtype=torch.bool)
    missing[0, place[0], place[1]] = True
    near = list(neighbours_of(*place, (6, 7)))
    total = sum(weight for _, weight in near)
    assert len(near) == {0: 8, 1: 5, 2: 3}[(place[0] in (0, 5)) + (place[1] in (0, 6))]
    expected = sum(weight * x[0, :, row, column] for (row, column), weight in near) / total
    found = linear(x, missing)
    torch.testing.assert_close(found[0, :, place[0], place[1]], expected, rtol=0, atol=1e-12)
    assert torch.equal(found[~missing[:, None].expand_as(x)], x[~missing[:, None].expand_as(x)])


@pytest.mark.parametrize("axes", [(9, 12), (33, 31), (12,)])
@pytest.mark.parametrize("impute", [linear, biharmonic])
def test_each_sample_is_imputed_by_itself(impute, axes):
    missing = uniform(6, *axes, seed=2) < torch.tensor([0.02, 0.3, 0.6, 0.9, 0.5, 1.1]).view(-1, *(1,) * len(axes))
    x = uniform(6, 2, *axes) * torch.tensor([1e-6, 1.0, 1e3, 1.0, 0.0, 1.0]).view(-1, 1, *(1,) * len(axes))
    together = impute(x, missing)
    for row in range(len(x)):
        alone = impute(x[row : row + 1], missing[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("axes", [(9, 12), (33, 31), (12,)])
@pytest.mark.parametrize("impute", [linear, biharmonic])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_known_values_stay_and_nothing_known_is_zero(impute, axes, dtype):
    x = uniform(3, 2, *axes, dtype=dtype) + 1
    missing = torch.stack([torch.zeros(axes).bool(), torch.ones(axes).bool(), uniform(*axes, seed=5) < 0.7])
    found = impute(x, missing)
    where = missing[:, None].expand_as(x)
    assert found.dtype == dtype
    assert torch.equal(found[0], x[0])
    assert torch.equal(found[1], torch.zeros_like(x[1]))
    assert torch.equal(found[~where], x[~where])
    assert (found[2][where[2]] != x[2][where[2]]).all()


def test_what_was_at_a_missing_position_has_no_part_in_it():
    for axes in ((20, 21), (15,)):
        x, missing = uniform(3, 2, *axes), uniform(3, *axes, seed=1) < 0.6
        spoiled = x.masked_fill(missing[:, None], torch.nan)
        assert torch.equal(linear(spoiled, missing), linear(x, missing))


@pytest.mark.parametrize("length", [1, 2, 9, 30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_signals_are_interpolated_as_numpy_does_with_constant_ends(length, dtype):
    x = uniform(40, 3, length, dtype=dtype)
    missing = uniform(40, length, seed=1) < torch.linspace(0.1, 0.95, 40)[:, None]
    found, places = linear(x, missing), np.arange(length)
    for signal, mask, filled in zip(x.double().numpy(), missing.numpy(), found.numpy(), strict=True):
        for channel, values_found in zip(signal, filled, strict=True):
            known = np.interp(places, places[~mask], channel[~mask]) if not mask.all() else np.zeros(length)
            np.testing.assert_allclose(values_found, known, rtol=0, atol=1e-14 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("axes", [(24, 31), (64, 64)])
def test_single_precision_is_far_more_exact_than_the_noise(axes):
    missing = masks_of(axes)
    x = uniform(len(missing), 2, *axes, seed=4)
    error = (linear(x.float(), missing).double() - linear(x, missing)).abs().max()
    assert error < 1e-3


@pytest.mark.parametrize("axes", [(8, 900), (1, 2000), (2000, 1)])
def test_a_gap_in_a_long_thin_picture_is_bridged_by_a_straight_line(axes):
    long = axes.index(max(axes))
    missing = torch.ones(1, *axes, dtype=torch.bool)
    for end in (0, axes[long] - 1):
        missing.select(long + 1, end)[:] = False
    line = torch.linspace(0.5, 1, axes[long], dtype=torch.float64)
    line = (line if long else line[:, None]).expand(1, 1, *axes)
    torch.testing.assert_close(linear(line, missing), line, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_solved_in_single(dtype):
    missing = masks_of((24, 31))
    x = uniform(len(missing), 2, 24, 31, seed=4).to(dtype)
    found = linear(x, missing)
    assert found.dtype == dtype
    assert torch.equal(found, linear(x.float(), missing).to(dtype))


@pytest.mark.slow
@pytest.mark.parametrize("side", [224, 65])
def test_many_pictures_are_solved_together_by_a_bounded_number_of_sweeps(side, monkeypatch):
    calls = []
    sweep = imputation._neighbours
    monkeypatch.setattr(imputation, "_neighbours", lambda values: calls.append(len(values)) or sweep(values))
    missing = torch.rand(64, 1, generator=torch.Generator().manual_seed(0))[:, :, None] > uniform(64, side, side)
    missing[:4] = False
    missing[:4, 5:-5, 3:-40] = True
    x = uniform(64, 1, side, side, dtype=torch.float32)
    linear(x[:1], missing[:1])
    alone = len(calls)
    calls.clear()
    linear(x, missing)
    assert len(calls) < 1500
    assert len(calls) < 3 * alone
    assert set(calls) == {64, 1}


@pytest.mark.parametrize("axes", [(12, 9), (14,)])
def test_inpainting_is_that_of_scikit_image_sample_by_sample(axes):
    x = uniform(4, 3, *axes)
    missing = uniform(4, *axes, seed=1) < torch.tensor([0.1, 0.4, 0.6, 0.3]).view(-1, *(1,) * len(axes))
    found = biharmonic(x, missing)
    for sample, mask, filled in zip(x.numpy(), missing.numpy(), found.numpy(), strict=True):
        expected = np.stack([inpaint_biharmonic(channel, mask) for channel in sample])
        np.testing.assert_allclose(filled, expected, rtol=0, atol=1e-12)


SPACE = InputSpace("image", mean=(0.4, 0.5), std=(0.25, 2.0), low=(0.0, -1.0), high=(1.0, 3.0))


def removed_by(case, gone, draw=0, fill="noisy_linear"):
    return Removal(fill).on(case).without(torch.arange(len(case.x)), gone, draw)


def test_the_noise_is_a_hundredth_of_the_valid_range_and_only_where_something_is_missing(monkeypatch):
    model, x, target = network("modules", torch.float64, n=60)
    case = case_of(model, x, target, torch.zeros_like(x), space=SPACE)
    gone = uniform(60, 144) < 0.6
    noisy = removed_by(case, gone)
    monkeypatch.setattr(perturbation, "NOISE", 0.0)
    smooth = removed_by(case, gone)
    torch.testing.assert_close(smooth, linear(x, gone.view(60, 12, 12)), rtol=0, atol=0)
    where = gone.view(60, 1, 12, 12).expand_as(x)
    noise = noisy - smooth
    assert torch.equal(noisy[~where], x[~where])
    for channel, width in ((0, 1 / 0.25), (1, 4 / 2.0)):
        drawn = noise[:, channel][where[:, channel]]
        error = 4 / np.sqrt(2 * len(drawn))
        assert float(drawn.std()) == pytest.approx(0.01 * width, rel=error)
        assert abs(float(drawn.mean())) < 4 * 0.01 * width / np.sqrt(len(drawn))
    assert torch.corrcoef(torch.stack([noise[:, 0][where[:, 0]], noise[:, 1][where[:, 1]]]))[0, 1].abs() < 0.05


def test_the_noise_is_keyed_by_sample_and_draw_and_is_the_same_for_all_methods():
    model, x, target = network("modules", torch.float64)
    gone = uniform(1, 144).expand(5, -1) < 0.6
    first = case_of(model, x, target, "gradient", space=SPACE)
    other = case_of(model, x, target, "input_magnitude", space=SPACE, chunk=2)
    noisy = removed_by(first, gone)
    assert torch.equal(noisy, removed_by(other, gone))
    assert not torch.equal(noisy, removed_by(first, gone, draw=1))
    assert not torch.equal(noisy, removed_by(case_of(model, x, target, "gradient", space=SPACE, seed=1), gone))
    alike = case_of(model, x[:1].expand_as(x), target, "gradient", space=SPACE)
    assert len({tuple(row.flatten().tolist()) for row in removed_by(alike, gone)}) == 5
    last = case_of(model, x[3:4], target[3:4], "gradient", space=SPACE, samples=["s3"])
    torch.testing.assert_close(removed_by(last, gone[3:4]), noisy[3:4], rtol=1e-10, atol=0)


def test_draws_alternate_without_mixing_up_their_noise():
    case = case_of(*network("modules", torch.float64), "gradient", space=SPACE)
    removing, gone = Removal("noisy_linear").on(case), uniform(5, 144) < 0.6
    drawn = [removing.without(torch.arange(5), gone, draw) for draw in (0, 1, 0, 1)]
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[0], drawn[1])


def test_noise_where_no_range_is_declared_is_a_hundredth_of_that_of_the_sample(monkeypatch):
    model, x, target = network("modules", torch.float64)
    x = x * torch.tensor([1.0, 10.0, 0.1, 100.0, 1.0], dtype=torch.float64).view(-1, 1, 1, 1)
    case = case_of(model, x, target, "gradient", space=InputSpace("image"))
    gone = torch.arange(144).expand(5, -1) > 20
    noisy = removed_by(case, gone)
    monkeypatch.setattr(perturbation, "NOISE", 0.0)
    noise = (noisy - removed_by(case, gone))[gone.view(5, 1, 12, 12).expand_as(x)].view(5, -1)
    spread = x.flatten(1).amax(1) - x.flatten(1).amin(1)
    torch.testing.assert_close(noise.std(1), 0.01 * spread, rtol=4 / np.sqrt(2 * noise.shape[1]), atol=0)


@pytest.mark.parametrize("fill", ["noisy_linear", "inpaint"])
@pytest.mark.parametrize("name", ["modules", "signal"])
def test_flipping_with_an_imputation_runs_through_the_imputed_inputs(fill, name, monkeypatch):
    monkeypatch.setattr(perturbation, "NOISE", 0.0)
    _, x, target = network(name, torch.float64)
    maps = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.randn(4, x[0].numel(), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    frame = rows(case_of(Linear(weight), x, target, maps), "pixel_flipping", fill=fill, steps=3)
    relevance = maps.sum(1).flatten(1)
    size = relevance.shape[1]
    for step in range(4):
        count = round(step * size / 3)
        missing = relevance.argsort(1, descending=True).argsort(1).view(5, *x.shape[2:]) < count
        changed = (linear if fill == "noisy_linear" else biharmonic)(x, missing)
        expected = (changed.flatten(1) @ weight.T)[torch.arange(5), target]
        found = values(frame, "logit", mode="most_first", step=count / size)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("fill", ["noisy_linear", "inpaint"])
def test_a_table_refuses_imputations_and_says_why(fill):
    model, x, _ = network("table")
    space = InputSpace("table", mean=(0.0,), std=(1.0,))
    reason = f"fill {fill!r} needs neighbours, and a table has none: use one of: mean, zero"
    assert space.refusal(fill, "fill") == reason
    with pytest.raises(InputError, match=reason):
        harness.evaluate(
            model,
            x,
            methods=["gradient"],
            metrics=[{"metric": "pixel_flipping", "fill": fill}],
            space=space,
        )


def test_a_default_imputation_that_a_table_cannot_have_is_not_applicable():
    model, x, _ = network("table")
    space = InputSpace("table", mean=(0.0,), std=(1.0,))
    results = harness.evaluate(model, x, methods=["gradient"], metrics=["road"], space=space)
    cell = results.cells.iloc[0]
    assert cell["status"] == "not_applicable"
    assert "needs neighbours, and a table has none" in cell["reason"]


@pytest.mark.parametrize("name", ["noisy_linear", "inpaint"])
def test_a_baseline_refuses_imputations_by_name(name):
    space = InputSpace("image", mean=(0.0,), std=(1.0,))
    assert space.refusal(name, "fill") == ""
    assert space.refusal(name).startswith(f"unknown fill {name!r}; known: black, grey, white, mean, noise, zero, blur")
    assert name not in space.refusal(name).partition("known: ")[2]
    model, x, target = network("modules")
    with pytest.raises(InputError, match=f"unknown fill '{name}'"):
        harness.explain(model, x, target, method="integrated_gradients", baseline=name, space=space)
    with pytest.raises(InputError, match=f"unknown fill '{name}'"):
        case_of(model, x, target, "gradient").fill(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", [9, 28, 40])
def test_holes_in_black_next_to_ink_are_black_and_finite(dtype, side):
    """Where everything around is zero the right side of the system is, too, whatever a coarser guess says."""
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(40, 1, side, side, dtype=dtype)
    x[:, :, side // 2, side // 2 - 2 : side // 2 + 2] = 1.0
    missing = torch.rand(40, side, side, generator=generator) < torch.linspace(0.02, 0.98, 40)[:, None, None]
    missing[:, side // 2 - 1 : side // 2 + 2, side // 2 - 3 : side // 2 + 3] = False
    filled = linear(x, missing)
    assert filled.isfinite().all()
    for row in range(0, 40, 13):
        expected = dense_solve(x[row].double().numpy(), missing[row].numpy())
        np.testing.assert_allclose(filled[row].numpy(), expected, atol=1e-3 if dtype == torch.float32 else 1e-9)
