"""Path methods against closed forms, each other, their expectations and captum."""

from collections import defaultdict
from functools import partialmethod

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

from cases import Linear, network, relu_mlp
from closed_forms import EXACT, Power, Quadratic, draws_for, explained, normal
from harness.methods.gradients import input_x_gradient
from harness.methods.integrated import expected_gradients, integrated_gradients
from harness.random import Draws

networks = pytest.mark.parametrize("name", ["modules", "functional", "gelu", "signal", "table"])


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_integrated_gradients_of_a_linear_model_are_exact_for_any_steps(linear_image, steps):
    model, weight, x, target = linear_image
    baseline = normal(*x.shape)
    maps = integrated_gradients(model, x, target, baseline=baseline, steps=steps)
    torch.testing.assert_close(maps, weight[target] * (x - baseline), **EXACT)


@pytest.mark.parametrize("steps", [1, 5])
def test_input_x_gradient_equals_integrated_gradients_from_zero_without_biases(mlp_batch, steps):
    model, (x, target) = relu_mlp(), mlp_batch
    maps = integrated_gradients(model, x, target, baseline=torch.zeros_like(x), steps=steps)
    torch.testing.assert_close(input_x_gradient(model, x, target), maps, **EXACT)


@pytest.mark.parametrize("steps", [1, 2])
def test_integrated_gradients_of_a_quadratic_are_exact(steps):
    matrices, x, baseline = normal(3, 6, 6, seed=2), normal(4, 6), normal(4, 6, seed=3)
    target = torch.tensor([0, 1, 2, 0])
    symmetric = (matrices + matrices.mT)[target]
    expected = (x - baseline) * torch.einsum("nij,nj->ni", symmetric, (x + baseline) / 2)
    maps = integrated_gradients(Quadratic(matrices), x, target, baseline=baseline, steps=steps)
    torch.testing.assert_close(maps, expected, **EXACT)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_integrated_gradients_are_exact_for_gradients_of_degree_2n_minus_1_and_no_more(steps):
    x, baseline, target = 1 + normal(4, 6).abs(), -normal(4, 6, seed=3).abs(), torch.zeros(4, dtype=torch.long)

    def error(degree):
        maps = integrated_gradients(Power(degree), x, target, baseline=baseline, steps=steps)
        return ((maps - (x**degree - baseline**degree)).abs() / (x - baseline) ** degree).max()

    assert error(2 * steps) < 1e-13
    assert error(2 * steps + 1) > 1e-5


def test_without_the_input_factor_the_mean_gradient_is_left(mlp_batch):
    model, (x, target) = smooth_mlp(), mlp_batch
    baseline = normal(*x.shape, seed=4)
    baseline[:, 0] = x[:, 0]
    with_factor, without = (
        integrated_gradients(model, x, target, baseline=baseline, input_factor=factor) for factor in (True, False)
    )
    torch.testing.assert_close(without * (x - baseline), with_factor, **EXACT)
    assert without[:, 0].abs().min() > 1e-6
    means = integrated_gradients(Power(3), x, 0 * target, baseline=baseline, input_factor=False)
    torch.testing.assert_close(means, x**2 + x * baseline + baseline**2, **EXACT)


def completeness_error(model, x, target, steps):
    baseline = normal(*x.shape, seed=4)
    change = explained(model, x, target) - explained(model, baseline, target)
    return (integrated_gradients(model, x, target, baseline=baseline, steps=steps).sum(1) - change).abs().mean()


def test_completeness_error_falls_with_the_steps_on_a_network_with_kinks(mlp_batch):
    few, more, many = (completeness_error(relu_mlp(bias=0.5), *mlp_batch, steps) for steps in (4, 32, 256))
    assert few > 4 * more > 16 * many > 1e-8


def smooth_mlp():
    return nn.Sequential(*[nn.Tanh() if isinstance(layer, nn.ReLU) else layer for layer in relu_mlp(bias=0.5)])


def test_completeness_error_vanishes_on_a_smooth_network(mlp_batch):
    assert completeness_error(smooth_mlp(), *mlp_batch, 4) > 1e-4
    assert completeness_error(smooth_mlp(), *mlp_batch, 96) < 1e-10


# captum rounds the weights of the quadrature to float32; those of two points, a half each, survive that.
@networks
@pytest.mark.parametrize(("steps", "tolerance"), [(2, 1e-10), (7, 1e-7)])
@pytest.mark.parametrize("factor", [True, False])
def test_integrated_gradients_agree_with_captum(name, steps, tolerance, factor):
    model, x, target = network(name, torch.float64)
    expected = captum.attr.IntegratedGradients(model, multiply_by_inputs=factor).attribute(
        x, x.flip(0), target=target, n_steps=steps, method="gausslegendre", internal_batch_size=len(x)
    )
    maps = integrated_gradients(model, x, target, baseline=x.flip(0), steps=steps, input_factor=factor)
    torch.testing.assert_close(maps, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


# --- expected gradients ----------------------------------------------------------------------------------------------


class Recorded(Draws):
    """Draws that keep what was taken from them in `taken`."""

    def take(self, kind, *arguments, **options):
        # From plain draws, because normal numbers are themselves made of uniform ones.
        drawn = getattr(Draws(self.key, self.samples), kind)(*arguments, **options)
        self.__dict__.setdefault("taken", defaultdict(list))[kind].append(drawn)
        return drawn

    integers = partialmethod(take, "integers")
    uniform = partialmethod(take, "uniform")
    normal = partialmethod(take, "normal")


def recorded(x, *parts):
    draws = draws_for(x, *parts)
    return Recorded(draws.key, draws.samples)


def repeated(row, count):
    """One sample many times over, each with draws of its own."""
    x = row.expand(count, -1)
    return x, torch.zeros(count, dtype=torch.long), draws_for(x)


def assert_mean(values, expected):
    """Each mean over the first axis is within 4.5 of its standard errors of what is expected."""
    error = values.std(0) / len(values) ** 0.5
    assert ((values.mean(0) - expected).abs() < 4.5 * error + 1e-12).all()


def test_from_one_background_sample_they_become_integrated_gradients(mlp_batch):
    model, (x, target) = smooth_mlp(), mlp_batch
    background = normal(1, 20, seed=4)
    exact = integrated_gradients(model, x, target, baseline=background.expand_as(x), steps=96)

    def error(samples):
        maps = expected_gradients(model, x, target, background=background, draws=draws_for(x), samples=samples)
        return (maps - exact).square().mean().sqrt()

    # Strata make the error fall by 64 ** 1.5 = 512; independent values would by 8.
    assert error(8) > 1e-3
    assert error(512) < error(8) / 200


def test_of_a_linear_model_they_are_its_weight_times_the_distance_to_the_mean_of_what_was_drawn(linear_image):
    model, weight, x, target = linear_image
    background, draws = normal(4, *x.shape[1:], seed=4), recorded(x)
    maps = expected_gradients(model, x, target, background=background, draws=draws, samples=6)
    (chosen,) = draws.taken["integers"]
    assert chosen.shape == (len(x), 6)
    torch.testing.assert_close(maps, weight[target] * (x - background[chosen].mean(1)), **EXACT)


def test_every_background_sample_is_drawn_as_often_and_for_each_sample_and_draw_anew():
    # With x = 0 and w = 1 an element of the map is minus the share of the draws that took its background sample.
    weight, background = torch.ones(1, 5, dtype=torch.float64), torch.eye(5, dtype=torch.float64)
    x, target, draws = repeated(torch.zeros(1, 5, dtype=torch.float64), 3000)
    counts = -8 * expected_gradients(Linear(weight), x, target, background=background, draws=draws, samples=8)
    torch.testing.assert_close(counts, counts.round(), **EXACT)
    torch.testing.assert_close(counts.sum(1), torch.full((3000,), 8.0, dtype=torch.float64), **EXACT)
    assert_mean(counts, 8 / 5)
    # Binomial, hence independent from draw to draw: variance n p (1 - p).
    assert counts.var(0).numpy() == pytest.approx(np.full(5, 8 * 0.2 * 0.8), rel=0.1)


@pytest.mark.parametrize("samples", [1, 2, 5])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_stratified_draws_leave_the_expectation_as_it_is(samples, noise):
    """Of a quadratic, and of cubes, on which neither fixed midpoints nor a wrong range of alpha would be right."""
    matrix, row, background = normal(1, 5, 5, seed=2), normal(1, 5), normal(3, 5, seed=4)
    x, target, draws = repeated(row, 6000)
    options = {"background": background, "draws": draws, "samples": samples, "noise": noise}
    variance = (noise * float(row.max() - row.min())) ** 2

    symmetric = (matrix + matrix.mT)[0]
    expected = ((row - background) * ((row + background) / 2 @ symmetric)).mean(0) + variance * symmetric.diag() / 2
    assert_mean(expected_gradients(Quadratic(matrix), x, target, **options), expected)

    cubes = row[0] ** 3 + 3 * row[0] * variance - (background**3).mean(0)
    assert_mean(expected_gradients(Power(3), x, target, **options), cubes)


def test_stratified_draws_vary_less_than_independent_ones():
    x, target, draws = repeated(normal(1, 5), 2000)
    background = torch.zeros(1, 5, dtype=torch.float64)

    def variance(samples):
        maps = expected_gradients(Power(3), x, target, background=background, draws=draws, samples=samples)
        return maps.var(0)

    # Independent draws would give a tenth, strata give about a thousandth.
    assert (variance(10) < variance(1) / 400).all()


def test_in_expectation_they_sum_to_the_output_less_the_mean_output_of_the_background():
    model, row, background = relu_mlp(bias=0.5), normal(1, 20), normal(4, 20, seed=4)
    x, target, draws = repeated(row, 2000)
    maps = expected_gradients(model, x, target, background=background, draws=draws, samples=3)
    change = explained(model, row, target[:1]) - explained(model, background, target[:4]).mean()
    assert_mean(maps.sum(1), float(change))
    assert maps.sum(1).std() > 0.1  # which is why a single map claims nothing


def test_noise_background_and_position_are_drawn_independently_of_each_other():
    x = normal(4000, 2)
    draws, target = recorded(x), torch.zeros(4000, dtype=torch.long)
    expected_gradients(Power(2), x, target, background=normal(7, 2), draws=draws, samples=1, noise=0.1)
    drawn = [draws.taken[name][0].reshape(4000, -1).double().T for name in ("integers", "uniform", "normal")]
    # Squares as well: numbers made of the same bits may depend on each other only by their size.
    correlations = torch.corrcoef(torch.cat([*drawn, drawn[2] ** 2])) - torch.eye(6)
    assert correlations.abs().max() < 4.5 / 4000**0.5


@networks
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_agrees_with_gradient_shap_of_captum_given_the_same_draws(name, noise, monkeypatch):
    model, x, target = network(name, torch.float64)
    background, draws, samples = 1 - x[:3], recorded(x), 4
    options = {"samples": samples, "noise": noise}
    maps = expected_gradients(model, x, target, background=background, draws=draws, **options)
    (chosen,), (uniform,) = draws.taken["integers"], draws.taken["uniform"]
    alphas = (torch.arange(samples) + uniform) / samples
    sigma = noise * (x.flatten(1).amax(1) - x.flatten(1).amin(1)).view(-1, 1, *(1,) * (x.ndim - 1))
    epsilon = sigma * torch.stack(draws.taken["normal"], 1) if noise else torch.zeros(len(x), samples, *x.shape[1:])
    monkeypatch.setattr(np.random, "choice", lambda *_: chosen.flatten().numpy())
    monkeypatch.setattr(np.random, "uniform", lambda *_: alphas.flatten().numpy())
    monkeypatch.setattr(torch, "normal", lambda *_: epsilon.flatten(0, 1).double())
    expected = captum.attr.GradientShap(model).attribute(x, background, n_samples=samples, stdevs=1.0, target=target)
    torch.testing.assert_close(maps, expected.detach(), rtol=1e-10, atol=1e-10)
