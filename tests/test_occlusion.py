"""Occlusion against a loop over samples, windows and positions, a closed form, and captum."""

from itertools import product

import captum.attr
import pytest
import torch
from torch import nn

from cases import Linear, network
from harness.methods.perturbation import occlusion
from harness.types import InputError

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smooth_model(shape):
    """A non-linear network with five outputs for inputs of this shape."""
    size = torch.Size(shape).numel()
    return nn.Sequential(Linear(normal(8, size, seed=2)), nn.Tanh(), Linear(normal(5, 8, seed=3)))


def starts_along(side, window, stride):
    """Where windows begin: at multiples of the stride as long as they fit, and flush with the end."""
    inside = [start for start in range(side) if start % stride == 0 and start + window <= side]
    return sorted({*inside, max(side - window, 0)})


def literal(model, x, target, baseline, window, stride):
    """For each sample and position the mean drop over the windows that cover it, one forward pass at a time."""
    axes = x.shape[2:] or x.shape[1:]
    maps = torch.zeros(len(x), *axes, dtype=x.dtype)
    corners = list(product(*(starts_along(side, window, stride) for side in axes)))
    for index, label in enumerate(target):
        original = model(x[index : index + 1])[0, label]
        drops = {}
        for corner in corners:
            covered = torch.zeros(axes, dtype=torch.bool)
            covered[tuple(slice(start, start + window) for start in corner)] = True
            mixed = torch.where(covered, baseline[index], x[index])
            drops[corner] = (original - model(mixed[None])[0, label]).item()
        for position in product(*(range(side) for side in axes)):
            covering = [
                drops[corner]
                for corner in corners
                if all(start <= at < start + window for start, at in zip(corner, position, strict=True))
            ]
            maps[(index, *position)] = sum(covering) / len(covering)
    return maps if x.ndim == 2 else maps[:, None]


@pytest.mark.parametrize(
    ("shape", "window", "stride"),
    [
        ((2, 6, 7), 1, 1),
        ((2, 6, 7), 3, 1),
        ((2, 6, 7), 3, 2),
        ((2, 6, 7), 4, 3),
        ((2, 6, 7), 5, 5),
        ((2, 3, 7), 5, 2),
        ((1, 4, 4), 9, 1),
        ((2, 11), 4, 3),
        ((2, 11), 3, 3),
        ((10,), 1, 1),
        ((10,), 4, 3),
    ],
)
def test_equals_a_loop_over_samples_windows_and_positions(shape, window, stride):
    model, x, target = smooth_model(shape), normal(3, *shape), torch.tensor([4, 0, 2])
    baseline = normal(3, *shape, seed=4)
    maps = occlusion(model, x, target, baseline=baseline, window=window, stride=stride)
    torch.testing.assert_close(maps, literal(model, x, target, baseline, window, stride), **CLOSE)


@pytest.mark.parametrize(
    ("shape", "window", "stride"), [((1, 15, 9), 3, 2), ((2, 28), 4, 2), ((1, 6, 7), 1, 1), ((5,), 1, 1)]
)
def test_a_window_is_by_default_a_seventh_of_the_longest_side_and_moves_by_half(shape, window, stride):
    model, x, target = smooth_model(shape), normal(2, *shape), torch.tensor([1, 3])
    maps = occlusion(model, x, target, baseline=torch.zeros_like(x))
    expected = occlusion(model, x, target, baseline=torch.zeros_like(x), window=window, stride=stride)
    torch.testing.assert_close(maps, expected, rtol=0, atol=0)


def test_single_positions_of_a_linear_model_show_weight_times_difference(linear_image):
    model, weight, x, target = linear_image
    baseline = x.flip(0)
    maps = occlusion(model, x, target, baseline=baseline, window=1, stride=1)
    torch.testing.assert_close(maps, (weight[target] * (x - baseline)).sum(1, keepdim=True), **CLOSE)


def test_single_features_of_a_linear_table_show_weight_times_difference():
    weight, x, target = normal(5, 9), normal(5, 9, seed=2), torch.arange(5)
    maps = occlusion(Linear(weight), x, target, baseline=x.flip(0), window=1, stride=1)
    torch.testing.assert_close(maps, weight[target] * (x - x.flip(0)), **CLOSE)


@pytest.mark.parametrize(
    ("name", "window", "stride"),
    [("modules", 3, 3), ("modules", 4, 2), ("functional", 2, 1), ("signal", 6, 3), ("table", 3, 2)],
)
def test_agrees_with_captum_where_the_strides_reach_the_border(name, window, stride):
    model, x, target = network(name, torch.float64)
    channels, axes = (x.shape[1:2], x.shape[2:]) if x.ndim > 2 else ((), x.shape[1:])
    with torch.no_grad():
        expected = captum.attr.Occlusion(model).attribute(
            x,
            sliding_window_shapes=(*channels, *(window for _ in axes)),
            strides=(*(1 for _ in channels), *(stride for _ in axes)),
            baselines=x.flip(0),
            target=target,
        )
    maps = occlusion(model, x, target, baseline=x.flip(0), window=window, stride=stride)
    # captum adds up in float32.
    torch.testing.assert_close(maps.expand_as(x).float(), expected, rtol=1e-5, atol=1e-6)


def test_builds_no_graph_and_stores_no_gradients():
    model, x, target = network("functional", torch.float64)
    maps = occlusion(model, x.requires_grad_(), target, baseline=torch.zeros_like(x), window=6)
    assert not maps.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_writes_into_its_input_gives_the_map_of_one_that_does_not():
    class Shifted(nn.Module):
        def __init__(self, inplace):
            super().__init__()
            self.inplace, self.inner = inplace, smooth_model((1, 5, 5))

        def forward(self, x):
            return self.inner(x.sub_(0.5).mul_(4) if self.inplace else (x - 0.5) * 4)

    x, target = normal(3, 1, 5, 5), torch.tensor([0, 1, 2])
    kept = x.clone()
    maps = [occlusion(Shifted(inplace), x, target, baseline=torch.zeros_like(x)) for inplace in (True, False)]
    torch.testing.assert_close(*maps, **CLOSE)
    torch.testing.assert_close(x, kept, rtol=0, atol=0)


def test_positions_between_windows_are_an_error_and_no_nan():
    x = normal(1, 1, 6, 6)
    with pytest.raises(InputError, match="stride 3 is larger than the window 2: use at most 2"):
        occlusion(smooth_model((1, 6, 6)), x, torch.tensor([0]), baseline=x, window=2, stride=3)


def test_a_table_is_occluded_feature_by_feature():
    x, weight = normal(2, 12), normal(3, 12, seed=4)
    maps = occlusion(Linear(weight), x, torch.tensor([0, 2]), baseline=torch.zeros_like(x))
    torch.testing.assert_close(maps, weight[[0, 2]] * x, **CLOSE)
