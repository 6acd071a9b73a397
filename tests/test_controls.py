"""Controls against scikit-image, SciPy, the normal distribution, and a model that must not be asked."""

import math

import numpy as np
import pytest
import scipy.stats
import skimage.filters
import torch
from torch import nn

import harness
from harness.case import Explainer
from harness.methods.controls import center_gaussian, constant, input_magnitude, oracle, parameter_noise, random, sobel
from harness.random import Draws
from harness.registry import METHODS
from harness.space import InputSpace
from harness.types import NotApplicableError


class Untouchable(nn.Module):
    def forward(self, x):
        raise AssertionError("a control asked the model")


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def explain(name, x, call=0, seed=0, samples=None):
    """The map of a control as a study obtains it, for a model that raises when called."""
    samples = samples or [f"sample {i}" for i in range(len(x))]
    target = torch.zeros(len(x), dtype=torch.long)
    space = InputSpace.undeclared(x)
    return Explainer(METHODS[name], {}).maps(Untouchable(), x, target, space, samples, seed, call=call)


@pytest.mark.parametrize("shape", [(3, 9, 12), (1, 28, 28), (2, 1, 5)])
def test_sobel_is_that_of_scikit_image_on_the_mean_of_the_channels(shape):
    x = normal(4, *shape)
    expected = np.stack([skimage.filters.sobel(image, mode="nearest") for image in x.mean(1).numpy()])
    maps = explain("sobel", x)[:, 0]
    torch.testing.assert_close(maps, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_input_magnitude_is_the_absolute_value():
    x = torch.tensor([[-2.0, 0.0, 3.0]])
    torch.testing.assert_close(explain("input_magnitude", x), torch.tensor([[2.0, 0.0, 3.0]]), rtol=0, atol=0)


def test_constant_is_one_everywhere():
    torch.testing.assert_close(explain("constant", normal(2, 3, 4, 4)), torch.ones(2, 3, 4, 4).double())


def test_random_is_standard_normal_and_independent_between_samples():
    noise = explain("random", torch.zeros(2, 3, 100, 100, dtype=torch.float64)).flatten(1).numpy()
    assert scipy.stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    assert abs(scipy.stats.pearsonr(*noise).statistic) < 4 / noise.shape[1] ** 0.5


def test_random_does_not_depend_on_input_model_or_batch():
    x = normal(3, 2, 5, 5)
    noise = explain("random", x)
    torch.testing.assert_close(explain("random", 0 * x), noise, rtol=0, atol=0)
    torch.testing.assert_close(explain("random", x[1:2], samples=["sample 1"]), noise[1:2], rtol=0, atol=0)


@pytest.mark.parametrize("other", [{"call": 1}, {"seed": 1}, {"samples": ["another sample"]}])
def test_random_is_new_for_another_call_seed_or_sample(other):
    x = torch.zeros(1, 10_000, dtype=torch.float64)
    pair = torch.cat([explain("random", x), explain("random", x, **other)]).numpy()
    assert abs(scipy.stats.pearsonr(*pair).statistic) < 4 / x.shape[1] ** 0.5


def test_random_takes_its_numbers_from_the_draws_it_is_given():
    x, draws = torch.zeros(2, 7, dtype=torch.float64), Draws.of(["a", "b"], "key")
    noise = random(Untouchable(), x, torch.zeros(2, dtype=torch.long), draws=draws)
    torch.testing.assert_close(noise, draws.normal(7), rtol=0, atol=0)


@pytest.mark.parametrize("control", [center_gaussian, constant, input_magnitude, sobel])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_the_type_and_leaves_the_input_as_it_was(control, dtype):
    x = normal(2, 3, 6, 6).to(dtype)
    before = x.clone()
    assert control(Untouchable(), x, torch.tensor([0, 1])).dtype == dtype
    assert torch.equal(x, before)


@pytest.mark.parametrize("sides", [(8, 20), (7, 5), (1, 4), (30,)])
def test_center_gaussian_is_a_product_of_normal_densities(sides):
    maps = center_gaussian(Untouchable(), normal(2, 3, *sides), torch.tensor([0, 1]))
    expected = np.ones(sides)
    for place in np.ndindex(*sides):
        for at, side in zip(place, sides, strict=True):
            density = scipy.stats.norm(loc=(side - 1) / 2, scale=side / 4)
            expected[place] *= density.pdf(at) / density.pdf((side - 1) / 2)
    torch.testing.assert_close(maps, torch.from_numpy(expected).expand(2, 1, *sides), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(maps, maps.flip(*range(2, maps.ndim)), rtol=1e-12, atol=1e-12)


class Everything(nn.Module):
    """A parameter, a buffer of each kind, and a module inside; must not run."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(normal(2, 3).float())
        self.register_buffer("moving", normal(3, seed=2).float())
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("hidden", normal(3, seed=3).float(), persistent=False)
        self.inner = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    def forward(self, x):
        raise AssertionError("parameter noise asked the model")


def noise(model, x):
    return parameter_noise(model, x, torch.zeros(len(x), dtype=torch.long))


PARTS = [*Everything().state_dict(), "hidden"]


@pytest.mark.parametrize("name", PARTS)
def test_parameter_noise_changes_with_each_parameter_and_buffer(name):
    model, x = Everything(), normal(1, 10_000).float()
    before = noise(model, x)
    tensor = {**dict(model.named_parameters()), **dict(model.named_buffers())}[name].data
    # The last element by its last bit.
    last = tensor.view(-1)[-1:]
    last.copy_(last + 1 if not tensor.is_floating_point() else torch.nextafter(last, torch.tensor([math.inf])))
    pair = torch.cat([before, noise(model, x)]).numpy()
    assert abs(scipy.stats.pearsonr(*pair).statistic) < 4 / x.shape[1] ** 0.5


def test_parameter_noise_is_standard_normal_and_of_each_sample_alone():
    model, x = Everything(), normal(3, 2, 70, 70).float()
    x[2] = x[0]
    x[1] = x[0]
    x[1, 0, 0, 0] += 1e-3
    maps = noise(model, x)
    assert scipy.stats.kstest(maps[:2].flatten().numpy(), "norm").pvalue > 1e-3
    assert abs(scipy.stats.pearsonr(*maps[:2].flatten(1).numpy()).statistic) < 4 / maps[0].numel() ** 0.5
    assert torch.equal(maps[2], maps[0])
    assert torch.equal(noise(model, x[1:2]), maps[1:2])
    whole = x[:1].round()
    pair = torch.cat([noise(model, whole), noise(model, whole.flip(-1))]).flatten(1).numpy()
    assert abs(scipy.stats.pearsonr(*pair).statistic) < 0.05
    assert torch.equal(noise(model.requires_grad_(False), x), maps)


def test_parameter_noise_is_the_same_in_both_types_and_for_every_class():
    model, x = Everything(), normal(2, 3, 5, 5).float()
    maps = noise(model, x)
    double = parameter_noise(model.double(), x.double(), torch.tensor([3, 1]))
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), maps, rtol=1e-6, atol=1e-6)


def test_the_oracle_shows_the_masks_of_its_samples():
    x, masks = normal(3, 2, 4, 5), (normal(3, 1, 4, 5, seed=2) > 0).float()
    maps = oracle(Untouchable(), x, torch.arange(3), masks=masks)
    assert maps.dtype == x.dtype
    torch.testing.assert_close(maps, masks.double(), rtol=0, atol=0)


def test_the_oracle_is_refused_where_there_are_no_masks():
    with pytest.raises(NotApplicableError, match="oracle"):
        harness.explain(nn.Flatten().eval(), normal(3, 2, 4, 5), torch.arange(3), method="oracle")
