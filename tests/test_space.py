"""Input spaces: a fill means the same pixels under every normalization, and is refused where it means nothing."""

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from harness.random import Draws
from harness.space import InputSpace
from harness.types import InputError

SHAPES = {"image": (4, 3, 8, 6), "signal": (4, 3, 20), "table": (4, 3)}
NORMALIZATIONS = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "wild": ((-3.0, 0.0, 120.0), (0.01, 7.0, 60.0)),
}
BOXES = {"unit": (0.0, 1.0), "video": (16.0, 235.0), "symmetric": (-1.0, 1.0)}
DRAWS = Draws.of(["a", "b", "c", "d"], 0, "fill")

each_kind = pytest.mark.parametrize("kind", SHAPES)
each_normalization = pytest.mark.parametrize("normalization", NORMALIZATIONS)
each_box = pytest.mark.parametrize("box", BOXES)


def batch(kind, dtype=torch.float64):
    return torch.randn(SHAPES[kind], generator=torch.Generator().manual_seed(0), dtype=dtype)


def per_channel(values, kind):
    return torch.tensor(values, dtype=torch.float64).view(1, -1, *(1,) * (len(SHAPES[kind]) - 2))


def pixels_of_fill(name, kind, normalization, box, draws=DRAWS):
    """The fill, brought back from the model's units to pixels."""
    mean, std = NORMALIZATIONS[normalization]
    space = InputSpace(kind, mean, std, *BOXES[box])
    return space.fill(name, batch(kind), draws) * per_channel(std, kind) + per_channel(mean, kind)


def exactly(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@each_kind
@each_normalization
@each_box
@pytest.mark.parametrize(("name", "fraction"), [("black", 0.0), ("grey", 0.5), ("white", 1.0)])
def test_levels_are_the_same_fraction_of_the_box_under_every_normalization(kind, normalization, box, name, fraction):
    low, high = BOXES[box]
    level = torch.full(SHAPES[kind], low + fraction * (high - low), dtype=torch.float64)
    exactly(pixels_of_fill(name, kind, normalization, box), level)


@each_kind
@each_normalization
def test_mean_is_the_mean_of_each_channel_and_zero_for_the_model(kind, normalization):
    mean, std = NORMALIZATIONS[normalization]
    exactly(pixels_of_fill("mean", kind, normalization, "unit"), per_channel(mean, kind).expand(SHAPES[kind]))
    filled = InputSpace(kind, mean, std).fill("mean", batch(kind), DRAWS)
    assert torch.equal(filled, torch.zeros(SHAPES[kind], dtype=torch.float64))


@each_kind
@each_normalization
@each_box
def test_noise_is_the_same_uniform_pixels_under_every_normalization(kind, normalization, box):
    low, high = BOXES[box]
    expected = low + (high - low) * DRAWS.uniform(*SHAPES[kind][1:])
    exactly(pixels_of_fill("noise", kind, normalization, box), expected)


def test_noise_is_uniform_over_the_whole_box():
    space = InputSpace("image", (0.5,) * 3, (0.25,) * 3, low=-1.0, high=3.0)
    noise = space.fill("noise", torch.zeros(4, 3, 40, 40), DRAWS).numpy() * 0.25 + 0.5
    assert stats.kstest(noise.ravel(), stats.uniform(-1, 4).cdf, method="asymp").pvalue > 0.01


def test_noise_is_keyed_by_the_sample_and_not_by_its_batch():
    space = InputSpace("image", *NORMALIZATIONS["imagenet"])
    whole = space.fill("noise", batch("image"), DRAWS, draw=2)
    ids = ["d", "b"]
    part = space.fill("noise", batch("image")[:2], Draws.of(ids, 0, "fill"), draw=2)
    assert torch.equal(part, whole[[3, 1]])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole, space.fill("noise", batch("image"), DRAWS, draw=3))


@each_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_fill_has_the_shape_and_type_of_the_input_and_leaves_it_alone(kind, dtype):
    space = InputSpace(kind, *NORMALIZATIONS["imagenet"])
    x = batch(kind, dtype)
    for name in space.fills:
        filled = space.fill(name, x, DRAWS)
        assert (filled.shape, filled.dtype) == (x.shape, dtype), name
        assert torch.equal(x, batch(kind, dtype)), name


@each_kind
def test_fills_other_than_blur_do_not_look_at_the_input(kind):
    space = InputSpace(kind, *NORMALIZATIONS["imagenet"])
    for name in set(space.fills) - {"blur"}:
        assert torch.equal(space.fill(name, batch(kind), DRAWS), space.fill(name, 5 - batch(kind), DRAWS)), name


@each_kind
def test_a_declared_space_has_every_fill_and_an_undeclared_one_those_without_pixels(kind):
    blur = () if kind == "table" else ("blur",)
    declared = InputSpace(kind, *NORMALIZATIONS["imagenet"])
    assert declared.fills == ("black", "grey", "white", "mean", "noise", "zero", *blur)
    assert InputSpace.undeclared(batch(kind)).fills == ("zero", *blur)


@each_kind
@pytest.mark.parametrize("name", ["black", "grey", "white", "mean", "noise"])
def test_without_a_declared_space_pixel_fills_are_refused_with_the_way_out(kind, name):
    space = InputSpace.undeclared(batch(kind))
    with pytest.raises(InputError, match=rf"fill '{name}' needs the pixel space, and none is declared: pass space="):
        space.fill(name, batch(kind), DRAWS)


def test_zero_needs_no_declared_space():
    x = batch("image")
    assert torch.equal(InputSpace.undeclared(x).fill("zero", x, DRAWS), torch.zeros_like(x))


def test_an_unknown_fill_names_the_nearest():
    with pytest.raises(InputError, match=r"unknown fill 'gray'; did you mean grey\?"):
        InputSpace("image", (0.0,), (1.0,)).fill("gray", batch("image"), DRAWS)
    with pytest.raises(InputError, match=r"unknown fill 'xyz'; known: black, blur, grey, mean, noise, white, zero"):
        InputSpace("image").fill("xyz", batch("image"), DRAWS)


@pytest.mark.parametrize("shape", [(3,), (1, 2, 3, 4, 5)])
def test_other_numbers_of_axes_are_refused(shape):
    with pytest.raises(InputError, match=r"expected x of shape \[n,c,h,w\], \[n,c,t\] or \[n,f\], got \["):
        InputSpace.undeclared(torch.zeros(shape))


@pytest.mark.parametrize(
    ("space", "fill"),
    [
        (InputSpace("image", (0.5,), (0.5,)), "black"),
        (InputSpace("image"), "zero"),
        (InputSpace("signal", (0.5,), (0.5,)), "zero"),
        (InputSpace("table", (0.5,), (0.5,)), "zero"),
    ],
)
def test_the_default_fill_is_black_only_where_black_means_something(space, fill):
    assert space.default_fill == fill


def gaussian(x, sigma, radius):
    filtered = [[ndimage.gaussian_filter(c, sigma, mode="mirror", radius=radius) for c in s] for s in x.numpy()]
    return torch.tensor(np.array(filtered))


@pytest.mark.parametrize(
    ("shape", "sigma", "radius"),
    [
        ((2, 3, 20, 20), 2.0, (6, 6)),
        ((2, 1, 28, 28), 2.8, (8, 8)),
        ((2, 2, 12, 30), 3.0, (9, 9)),
        # The radius ends where the reflection does: one below the side.
        ((2, 2, 5, 30), 3.0, (4, 9)),
        ((2, 2, 30, 1), 3.0, (9, 0)),
    ],
)
def test_blur_of_an_image_is_a_gaussian_of_a_tenth_of_its_longest_side(shape, sigma, radius):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exactly(InputSpace.undeclared(x).fill("blur", x, DRAWS), gaussian(x, (sigma, sigma), radius))


@pytest.mark.parametrize("length", [3, 40, 101])
def test_blur_of_a_signal_is_a_gaussian_of_a_tenth_of_its_length(length):
    x = torch.randn(2, 3, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exactly(InputSpace.undeclared(x).fill("blur", x, DRAWS), gaussian(x, length / 10, round(3 * length / 10)))


def test_blur_does_not_depend_on_the_normalization():
    x = batch("image")
    mean, std = (per_channel(v, "image") for v in NORMALIZATIONS["wild"])
    blurred = InputSpace("image", *NORMALIZATIONS["wild"]).fill("blur", x, DRAWS) * std + mean
    torch.testing.assert_close(blurred, InputSpace("image").fill("blur", x * std + mean, DRAWS))


@pytest.mark.parametrize("space", [InputSpace("table"), InputSpace("table", (0.0,) * 3, (1.0,) * 3)])
def test_a_table_has_no_blur(space):
    with pytest.raises(InputError, match="fill 'blur' needs neighbours, and a table has none"):
        space.fill("blur", batch("table"), DRAWS)


def test_a_fill_owns_its_memory():
    x = torch.rand(2, 1, 3, 3)
    filled = InputSpace("image", (0.3,), (0.5,)).fill("mean", x, Draws.of(["a", "b"], 0))
    filled[0] = 9
    assert (filled[1] != 9).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": (0.5,)}, "mean and std come together"),
        ({"mean": (0.5, 0.5), "std": (0.5,)}, "mean and std come together"),
        ({"mean": (0.5,), "std": (0.0,)}, "expected low < high and std > 0"),
        ({"mean": (0.5,), "std": (1.0,), "low": 1.0, "high": 1.0}, "expected low < high and std > 0"),
    ],
)
def test_a_space_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        InputSpace("image", **arguments)


def test_inputs_that_cannot_come_from_a_space_are_refused():
    space = InputSpace("image", (0.5, 0.4), (1.0, 1.0))
    with pytest.raises(InputError, match=r"kind 'image' has inputs with 4 axes, got x of shape \[3, 2, 9\]"):
        space.check(torch.rand(3, 2, 9))
    with pytest.raises(InputError, match="the space declares 2 channels, x has 3"):
        space.check(torch.rand(1, 3, 4, 4))
    space.check(torch.rand(1, 2, 4, 4))
