"""Coefficients, penalties and transformations against what they are by definition."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import rotate, shift
from torchvision.transforms.functional import InterpolationMode, affine

from harness.methods.image_parameters import Box, Coefficients, frequencies, hartley
from harness.methods.image_regularizers import frequency_penalty, moved, spectral_slope, total_variation
from harness.space import InputSpace

SHAPES = [(2, 3, 6, 8), (2, 1, 7, 5), (2, 2, 9), (2, 2, 12)]
RGB = InputSpace("image", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positions(shape):
    return list(itertools.product(*(range(side) for side in shape)))


def signed(index, sides):
    """The frequency of a coefficient in cycles a position, along each axis: above half a cycle it is negative."""
    return [(i if i <= (side - 1) // 2 else i - side) / side for i, side in zip(index, sides, strict=True)]


def literal_waves(sides):
    """Cos and sin of 2 pi f p for all frequencies f (rows) and positions p."""
    phases = [
        [2 * math.pi * sum(k * p / side for k, p, side in zip(f, at, sides, strict=True)) for at in positions(sides)]
        for f in positions(sides)
    ]
    phases = torch.tensor(phases, dtype=torch.float64)
    return phases.cos(), phases.sin()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_hartley_transform_is_its_sum_keeps_norms_and_is_its_own_inverse(shape):
    x = normal(*shape)
    cos, sin = literal_waves(shape[2:])
    literal = x.flatten(2) @ (cos + sin).T / math.prod(shape[2:]) ** 0.5
    torch.testing.assert_close(hartley(x), literal.view(shape))
    torch.testing.assert_close(hartley(x).norm(), x.norm())
    torch.testing.assert_close(hartley(hartley(x)), x)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_frequency_penalty_is_its_sum_over_frequencies(shape):
    x, sides = normal(*shape), shape[2:]
    cos, sin = literal_waves(sides)
    for one, penalty in zip(x, frequency_penalty(x), strict=True):
        total = 0.0
        for channel in one.flatten(1):
            for row, f in enumerate(positions(sides)):
                power = ((channel @ cos[row]) ** 2 + (channel @ sin[row]) ** 2) / len(channel)
                total += sum(k**2 for k in signed(f, sides)) * power
        torch.testing.assert_close(penalty, total / one.numel())
    torch.testing.assert_close(frequency_penalty(torch.ones(shape)), torch.zeros(2), atol=1e-9, rtol=0)


def test_total_variation_is_its_loops():
    image, signal = normal(1, 2, 4, 5), normal(1, 2, 6)
    down = [abs(image[0, c, i + 1, j] - image[0, c, i, j]) for c in range(2) for i in range(3) for j in range(5)]
    right = [abs(image[0, c, i, j + 1] - image[0, c, i, j]) for c in range(2) for i in range(4) for j in range(4)]
    torch.testing.assert_close(total_variation(image)[0], sum(down) / len(down) + sum(right) / len(right))
    along = [abs(signal[0, c, i + 1] - signal[0, c, i]) for c in range(2) for i in range(5)]
    torch.testing.assert_close(total_variation(signal)[0], sum(along) / len(along))


@pytest.mark.parametrize("fourier", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_coefficients_and_images_are_one_to_one_and_all_images_are_valid(shape, fourier):
    x = uniform(*shape) * 0.9 + 0.05
    kind = {4: "image", 3: "signal"}[len(shape)]
    pixels = Coefficients(Box.of(InputSpace(kind, (0.0,), (1.0,)), x), fourier)
    torch.testing.assert_close(pixels.images(pixels.of(x)), x)
    code = normal(*shape) * 0.3
    torch.testing.assert_close(pixels.of(pixels.images(code)), code)
    wild = pixels.images(100 * code)
    assert wild.min() >= 0
    assert wild.max() <= 1


def test_the_box_is_the_declared_one_and_else_that_of_the_data():
    x = normal(5, 3, 4, 4) * 0.1
    declared, own = Box.of(RGB, x), Box.of(InputSpace("image"), x)
    for channel in range(3):
        assert declared.low[channel].item() == pytest.approx((0 - RGB.mean[channel]) / RGB.std[channel])
        assert declared.high[channel].item() == pytest.approx((1 - RGB.mean[channel]) / RGB.std[channel])
        assert own.low[channel].item() == x[:, channel].min().item()
        assert own.high[channel].item() == x[:, channel].max().item()
    nothing = Coefficients(declared, True).images(torch.zeros(1, 3, 4, 4, dtype=torch.float64))
    torch.testing.assert_close(nothing, x.mean((0, 2, 3)).view(1, 3, 1, 1).expand(1, 3, 4, 4))


def test_one_step_in_fourier_coefficients_is_large_at_low_frequencies():
    x = uniform(1, 1, 16, 16)
    pixels = Coefficients(Box.of(InputSpace("image", (0.0,), (1.0,)), x), True)
    sizes = {}
    for f in (1, 2, 4):
        code = torch.zeros_like(x)
        code[0, 0, 0, f] = 1
        sizes[f] = (pixels.images(code).logit() - pixels.images(0 * code).logit()).norm().item()
    assert sizes[1] / sizes[2] == pytest.approx(2)
    assert sizes[1] / sizes[4] == pytest.approx(4)


@pytest.mark.parametrize(
    ("down", "right", "angle", "scale"),
    [(0, 0, 0, 1), (2, -1, 0, 1), (0, 0, 30, 1), (0, 0, 0, 1.3), (1, 3, -17, 0.8)],
)
def test_images_move_as_in_torchvision(down, right, angle, scale):
    x = normal(2, 3, 9, 12)
    beyond = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64).view(3, 1, 1)
    ones = torch.ones(2, dtype=torch.float64)
    ours = moved(x, torch.tensor([[down, right]] * 2, dtype=torch.float64), angle * ones, scale * ones, beyond)
    # torchvision turns clockwise.
    how = {"shear": [0.0], "interpolation": InterpolationMode.BILINEAR}
    theirs = affine(x - beyond, -angle, [right, down], scale, **how) + beyond
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


def test_images_turn_and_signals_shift_as_in_scipy():
    x = normal(1, 1, 11, 11)
    x[..., :3], x[..., -3:], x[..., :3, :], x[..., -3:, :] = 0, 0, 0, 0
    one, nothing = torch.ones(1, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)
    ours = moved(x, torch.zeros(1, 2, dtype=torch.float64), 25 * one, one, nothing)[0, 0]
    theirs = rotate(x[0, 0].numpy(), 25, reshape=False, order=1)
    np.testing.assert_allclose(ours.numpy(), theirs, atol=1e-9)
    signal = normal(1, 2, 10)
    ours = moved(signal, 3 * one[:, None], 40 * one, 2 * one, torch.full((2, 1), 7.0, dtype=torch.float64))
    np.testing.assert_allclose(ours[0].numpy(), shift(signal[0].numpy(), (0, 3), order=1, cval=7.0), atol=1e-9)


def test_each_image_of_a_batch_moves_by_its_own_draw():
    x, beyond = normal(3, 1, 8, 8), torch.zeros(1, 1, 1, dtype=torch.float64)
    draws = normal(3, 2).round(), 20 * normal(3, seed=1), 1 + 0.1 * normal(3, seed=2)
    together = moved(x, *draws, beyond)
    for index in range(3):
        alone = moved(x[index : index + 1], *(each[index : index + 1] for each in draws), beyond)
        torch.testing.assert_close(together[index], alone[0])


@pytest.mark.parametrize("slope", [0.0, -2.0, -3.0])
def test_the_spectral_slope_is_that_of_noise_made_to_have_it(slope):
    white = hartley(normal(40, 1, 64, 64))
    made = hartley(white * frequencies(white).clamp(min=1 / 64) ** (slope / 2))
    assert spectral_slope(made).mean().item() == pytest.approx(slope, abs=0.15)
    assert spectral_slope(torch.ones(1, 1, 8, 8)).isnan().all()
