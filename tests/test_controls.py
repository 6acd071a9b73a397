"""Controls against scikit-image, the normal distribution, and a model that must not be asked."""

import numpy as np
import pytest
import scipy.stats
import skimage.filters
import torch
from torch import nn

from harness.case import Explainer
from harness.methods.controls import constant, input_magnitude, random, sobel
from harness.random import Draws
from harness.registry import METHODS
from harness.space import InputSpace


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


@pytest.mark.parametrize("control", [constant, input_magnitude, sobel])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_the_type_and_leaves_the_input_as_it_was(control, dtype):
    x = normal(2, 3, 6, 6).to(dtype)
    before = x.clone()
    assert control(Untouchable(), x, torch.tensor([0, 1])).dtype == dtype
    assert torch.equal(x, before)
