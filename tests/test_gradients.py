"""Gradient methods against closed forms, identities of ReLU networks, and captum."""

import captum.attr
import pytest
import torch
from torch import nn
from torch.special import ndtr

from cases import Linear, network, relu_mlp
from harness.methods.gradients import gradient, input_x_gradient, integrated_gradients, smoothgrad
from harness.random import Draws

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def draws_for(x, *parts):
    return Draws.of([f"sample {i}" for i in range(len(x))], *parts)


METHODS = {
    "gradient": gradient,
    "input_x_gradient": input_x_gradient,
    "integrated_gradients": lambda m, x, t: integrated_gradients(m, x, t, baseline=torch.full_like(x, 0.3), steps=3),
    "smoothgrad": lambda m, x, t: smoothgrad(m, x, t, draws=draws_for(x), samples=3),
}
every_method = pytest.mark.parametrize("explain", METHODS.values(), ids=METHODS.keys())


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def explained(model, x, target):
    with torch.no_grad():
        return model(x).gather(1, target[:, None])[:, 0]


@pytest.fixture
def mlp_batch():
    """Inputs of `relu_mlp()` and their targets."""
    return normal(10, 20), torch.arange(10) % 5


def test_gradient_of_a_linear_model_is_its_weight(linear_image):
    model, weight, x, target = linear_image
    torch.testing.assert_close(gradient(model, x, target), weight[target], **EXACT)


def test_input_x_gradient_of_a_linear_model_is_weight_times_input(linear_image):
    model, weight, x, target = linear_image
    torch.testing.assert_close(input_x_gradient(model, x, target), weight[target] * x, **EXACT)


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_integrated_gradients_of_a_linear_model_are_exact_for_any_steps(linear_image, steps):
    model, weight, x, target = linear_image
    baseline = normal(*x.shape)
    maps = integrated_gradients(model, x, target, baseline=baseline, steps=steps)
    torch.testing.assert_close(maps, weight[target] * (x - baseline), **EXACT)


def test_smoothgrad_of_a_linear_model_is_its_weight(linear_image):
    model, weight, x, target = linear_image
    torch.testing.assert_close(smoothgrad(model, x, target, draws=draws_for(x)), weight[target], **EXACT)


def test_input_x_gradient_sums_to_the_output_without_biases(mlp_batch):
    model = relu_mlp()
    torch.testing.assert_close(input_x_gradient(model, *mlp_batch).sum(1), explained(model, *mlp_batch), **EXACT)


@pytest.mark.parametrize("steps", [1, 5])
def test_input_x_gradient_equals_integrated_gradients_from_zero_without_biases(mlp_batch, steps):
    model, (x, target) = relu_mlp(), mlp_batch
    maps = integrated_gradients(model, x, target, baseline=torch.zeros_like(x), steps=steps)
    torch.testing.assert_close(input_x_gradient(model, x, target), maps, **EXACT)


def test_input_x_gradient_misses_exactly_what_the_biases_contribute(mlp_batch):
    model, (x, target) = relu_mlp(bias=0.5), mlp_batch
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    missing = []
    for sample, label in zip(x, target, strict=True):
        derivatives = torch.autograd.grad(model(sample)[label], biases)
        missing.append(sum((b * d).sum() for b, d in zip(biases, derivatives, strict=True)).detach())
    missing = torch.stack(missing)
    assert (missing.abs() > 1e-3).all()
    total = input_x_gradient(model, x, target).sum(1) + missing
    torch.testing.assert_close(total, explained(model, x, target), **EXACT)


class Quadratic(nn.Module):
    """f_k(x) = x^T A_k x."""

    def __init__(self, matrices):
        super().__init__()
        self.matrices = matrices

    def forward(self, x):
        return torch.einsum("ni,kij,nj->nk", x, self.matrices, x)


class Power(nn.Module):
    """f_0(x) = sum_i x_i^d."""

    def __init__(self, degree):
        super().__init__()
        self.degree = degree

    def forward(self, x):
        return (x**self.degree).sum(1, keepdim=True)


def test_integrated_gradients_of_a_quadratic_are_exact_with_one_point():
    matrices, x, baseline = normal(3, 6, 6, seed=2), normal(4, 6), normal(4, 6, seed=3)
    target = torch.tensor([0, 1, 2, 0])
    symmetric = (matrices + matrices.mT)[target]
    expected = (x - baseline) * torch.einsum("nij,nj->ni", symmetric, (x + baseline) / 2)
    maps = integrated_gradients(Quadratic(matrices), x, target, baseline=baseline, steps=1)
    torch.testing.assert_close(maps, expected, **EXACT)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_integrated_gradients_are_exact_for_gradients_of_degree_2n_minus_1_and_no_more(steps):
    x, baseline, target = 1 + normal(4, 6).abs(), -normal(4, 6, seed=3).abs(), torch.zeros(4, dtype=torch.long)

    def error(degree):
        maps = integrated_gradients(Power(degree), x, target, baseline=baseline, steps=steps)
        return ((maps - (x**degree - baseline**degree)).abs() / (x - baseline) ** degree).max()

    assert error(2 * steps) < 1e-13
    assert error(2 * steps + 1) > 1e-5


def completeness_error(model, x, target, steps):
    baseline = normal(*x.shape, seed=4)
    change = explained(model, x, target) - explained(model, baseline, target)
    return (integrated_gradients(model, x, target, baseline=baseline, steps=steps).sum(1) - change).abs().mean()


def test_completeness_error_falls_with_the_steps_on_a_network_with_kinks(mlp_batch):
    few, more, many = (completeness_error(relu_mlp(bias=0.5), *mlp_batch, steps) for steps in (4, 32, 256))
    assert few > 4 * more > 16 * many > 1e-8


def test_completeness_error_vanishes_on_a_smooth_network(mlp_batch):
    smooth = nn.Sequential(*[nn.Tanh() if isinstance(layer, nn.ReLU) else layer for layer in relu_mlp(bias=0.5)])
    assert completeness_error(smooth, *mlp_batch, 4) > 1e-4
    assert completeness_error(smooth, *mlp_batch, 96) < 1e-10


def test_smoothgrad_of_one_relu_is_its_weight_times_a_normal_probability():
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
    maps = smoothgrad(model, x, target, draws=draws_for(x), samples=samples, noise=noise)
    standard_error = (probability * (1 - probability) / samples).sqrt()
    assert ((maps[:, 0] - probability).abs() < 4 * standard_error).all()
    torch.testing.assert_close(maps, maps[:, :1] * weight, **EXACT)


def test_smoothgrad_noise_depends_on_the_sample_and_not_on_the_batch(mlp_batch):
    model, (x, target) = relu_mlp(bias=0.5), mlp_batch
    draws = draws_for(x)
    together = smoothgrad(model, x, target, draws=draws, samples=4)
    alone = [
        smoothgrad(model, x[i : i + 1], target[i : i + 1], draws=draws[i : i + 1], samples=4) for i in range(len(x))
    ]
    torch.testing.assert_close(together, torch.cat(alone), **EXACT)


def test_smoothgrad_noise_differs_between_samples_copies_and_calls(mlp_batch):
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


networks = pytest.mark.parametrize("name", ["modules", "functional", "gelu", "signal", "table"])


@networks
@pytest.mark.parametrize(
    ("explain", "reference", "options"),
    [(gradient, captum.attr.Saliency, {"abs": False}), (input_x_gradient, captum.attr.InputXGradient, {})],
)
def test_agrees_with_captum(name, explain, reference, options):
    model, x, target = network(name, torch.float64)
    expected = reference(model).attribute(x.clone().requires_grad_(), target=target, **options).detach()
    torch.testing.assert_close(explain(model, x, target), expected, rtol=1e-10, atol=1e-10)


# captum rounds the weights of the quadrature to float32; those of two points, a half each, survive that.
@networks
@pytest.mark.parametrize(("steps", "tolerance"), [(2, 1e-10), (7, 1e-7)])
def test_integrated_gradients_agree_with_captum(name, steps, tolerance):
    model, x, target = network(name, torch.float64)
    expected = captum.attr.IntegratedGradients(model).attribute(
        x, x.flip(0), target=target, n_steps=steps, method="gausslegendre", internal_batch_size=len(x)
    )
    maps = integrated_gradients(model, x, target, baseline=x.flip(0), steps=steps)
    torch.testing.assert_close(maps, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


class Shift(nn.Module):
    """Normalizes its input, in place or not."""

    def __init__(self, inplace):
        super().__init__()
        self.inplace = inplace

    def forward(self, x):
        return x.sub_(0.5).mul_(4) if self.inplace else (x - 0.5) * 4


@every_method
@pytest.mark.parametrize("first", [Shift, nn.ReLU])
def test_a_first_operation_in_place_changes_neither_the_map_nor_the_input(explain, first, mlp_batch):
    x, target = mlp_batch
    before = x.clone()
    in_place, copying = (nn.Sequential(first(inplace=inplace), relu_mlp(bias=0.5)) for inplace in (True, False))
    torch.testing.assert_close(explain(in_place, x, target), explain(copying, x, target), rtol=0, atol=0)
    assert torch.equal(x, before)


@every_method
def test_frozen_parameters_and_no_grad_give_the_same_map_and_no_gradients_are_stored(explain, mlp_batch):
    model, (x, target) = relu_mlp(bias=0.5), mlp_batch
    expected = explain(model, x, target)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    model.requires_grad_(False)
    with torch.no_grad():
        torch.testing.assert_close(explain(model, x, target), expected, rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert x.grad is None
    assert not x.requires_grad
