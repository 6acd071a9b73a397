"""Gradients under noise against closed forms, the identity that binds them, and captum with the same noise."""

import captum.attr
import pytest
import torch
from torch import nn
from torch.special import ndtr

from cases import Linear, network, relu_mlp
from closed_forms import EXACT, Power, Quadratic, draws_for, normal
from harness.methods.smoothing import noisy_copies, smoothgrad, smoothgrad_squared, vargrad

every_method = pytest.mark.parametrize("explain", [smoothgrad, smoothgrad_squared, vargrad])


def test_smoothgrad_of_a_linear_model_is_its_weight(linear_image):
    model, weight, x, target = linear_image
    torch.testing.assert_close(smoothgrad(model, x, target, draws=draws_for(x)), weight[target], **EXACT)


def test_a_linear_model_has_no_variance_and_the_squares_of_its_weight(linear_image):
    model, weight, x, target = linear_image
    assert vargrad(model, x, target, draws=draws_for(x)).abs().max() < 1e-28
    squared = smoothgrad_squared(model, x, target, draws=draws_for(x))
    torch.testing.assert_close(squared, weight[target] ** 2, **EXACT)


@pytest.mark.slow
@every_method
def test_of_one_relu_they_are_moments_of_a_coin_that_falls_as_often_as_the_noise_leaves_it_on(explain):
    # The last feature has no weight: it sets the range of a sample, and so its noise, and nothing else.
    weight = torch.tensor([[1.0, -2.0, 0.5, 0.0]], dtype=torch.float64)
    x = torch.tensor([[0.2, -0.1, 0.2, spread] for spread in (1.0, 4.0, -9.0)], dtype=torch.float64)
    x = torch.cat([x, -x])
    model = nn.Sequential(Linear(weight), nn.ReLU())
    noise, samples = 0.2, 1500
    sigma = noise * (x.amax(1) - x.amin(1))
    probability = ndtr(x @ weight[0] / (sigma * weight.norm()))
    assert probability.std() > 0.2

    target = torch.zeros(len(x), dtype=torch.long)
    maps = explain(model, x, target, draws=draws_for(x), samples=samples, noise=noise)
    # 4 standard errors of the frequency, and what they make of frequency times (1 - frequency).
    error = 4 * (probability * (1 - probability) / samples).sqrt()
    expected, bound, factor = {
        smoothgrad: (probability, error, weight),
        smoothgrad_squared: (probability, error, weight**2),
        vargrad: (probability * (1 - probability), error * (1 - 2 * probability).abs() + error**2, weight**2),
    }[explain]
    assert ((maps[:, 0] - expected).abs() < bound).all()
    torch.testing.assert_close(maps, maps[:, :1] * factor, **EXACT)


@pytest.mark.parametrize("name", ["modules", "gelu", "signal", "table"])
@pytest.mark.parametrize("samples", [1, 2, 7])
def test_the_mean_square_is_the_variance_plus_the_square_of_the_mean(name, samples):
    model, x, target = network(name, torch.float64)
    mean, squared, variance = (
        explain(model, x, target, draws=draws_for(x), samples=samples)
        for explain in (smoothgrad, smoothgrad_squared, vargrad)
    )
    torch.testing.assert_close(squared, variance + mean**2, rtol=1e-10, atol=1e-14)
    assert squared.min() >= 0
    assert variance.min() >= 0
    assert (variance.max() > 0) == (samples > 1)


class Steep(Quadratic):
    """A quadratic on top of a slope that is many orders of magnitude larger than its own."""

    slope = 1e9

    def forward(self, x):
        return super().forward(x) + self.slope * x.sum(1, keepdim=True)


def test_a_large_mean_does_not_cancel_the_variance():
    matrices, x, target = torch.eye(6).double()[None], normal(3, 6), torch.zeros(3, dtype=torch.long)
    flat, steep = (vargrad(model(matrices), x, target, draws=draws_for(x)) for model in (Quadratic, Steep))
    assert steep.min() > 0
    torch.testing.assert_close(steep, flat, rtol=1e-5, atol=0)
    # The textbook formula has nothing left here.
    mean, squared = (
        explain(Steep(matrices), x, target, draws=draws_for(x)) for explain in (smoothgrad, smoothgrad_squared)
    )
    assert ((squared - mean**2 - flat).abs() > flat).any()


@every_method
def test_noise_is_a_fraction_of_the_range_of_the_sample_itself(explain):
    x, target = normal(2, 6), torch.zeros(2, dtype=torch.long)
    both = torch.cat([x[:1], 10 * x[:1]])
    draws = draws_for(x)[:1]
    small, large = (explain(Power(2), each[None], target[:1], draws=draws) for each in both)
    torch.testing.assert_close(large, small * (10 if explain is smoothgrad else 100), **EXACT)
    without = explain(Power(2), x, target, draws=draws_for(x), noise=0.0)
    expected = {smoothgrad: 2 * x, smoothgrad_squared: 4 * x**2, vargrad: 0 * x}[explain]
    torch.testing.assert_close(without, expected, **EXACT)


def test_noise_depends_on_the_sample_and_not_on_the_batch(mlp_batch):
    model, (x, target) = relu_mlp(bias=0.5), mlp_batch
    draws = draws_for(x)
    together = smoothgrad(model, x, target, draws=draws, samples=4)
    alone = [
        smoothgrad(model, x[i : i + 1], target[i : i + 1], draws=draws[i : i + 1], samples=4) for i in range(len(x))
    ]
    torch.testing.assert_close(together, torch.cat(alone), **EXACT)


def test_noise_differs_between_samples_copies_and_calls():
    # The gradient of x^2 / 2 is x: a map shows the mean of its own noise.
    x, target = torch.zeros(2, 8, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    x[:, 0] = 1

    def noise(samples, call):
        return smoothgrad(
            Quadratic(torch.eye(8).double()[None] / 2), x, target, draws=draws_for(x, call), samples=samples
        )

    one, two = noise(1, call=0), noise(2, call=0)
    for other in (one.flip(0), two, noise(1, call=1)):
        assert (one - other).abs().min() > 1e-6


@pytest.mark.parametrize("name", ["modules", "functional", "gelu", "signal", "table"])
@pytest.mark.parametrize(
    ("explain", "kind"), [(smoothgrad, "smoothgrad"), (smoothgrad_squared, "smoothgrad_sq"), (vargrad, "vargrad")]
)
def test_agrees_with_captum_given_the_same_noise(name, explain, kind, monkeypatch):
    model, x, target = network(name, torch.float64)
    copies = torch.stack(list(noisy_copies(x, draws_for(x), 6, 0.15)), 1)
    noise = (copies - x[:, None]).flatten(0, 1)
    monkeypatch.setattr(torch, "normal", lambda mean, deviation: noise)
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(model))
    expected = tunnel.attribute(x, nt_type=kind, nt_samples=6, stdevs=1.0, target=target, abs=False)
    maps = explain(model, x, target, draws=draws_for(x), samples=6)
    torch.testing.assert_close(maps, expected.detach(), rtol=1e-10, atol=1e-12)
