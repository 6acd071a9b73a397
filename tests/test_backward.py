"""Guided backprop and DeconvNet against literal twins, other libraries, and every way to write an activation."""

from functools import partial

import captum.attr
import pytest
import torch
import torch.nn.functional as F
import torchvision
import zennit.composites
from torch import Tensor, nn

from cases import Linear, network, relu_mlp
from harness.methods.backward import deconvnet, guided_backprop
from harness.methods.composites import DECONVNET, GUIDED
from harness.methods.gradients import gradient
from harness.methods.propagation import Propagation

CLOSE = {"rtol": 1e-10, "atol": 1e-12}

# What each method does at a rectifier, given the gradient behind it and where the forward pass was not cut off.
RULES = {guided_backprop: lambda r, passed: r.clamp(min=0) * passed, deconvnet: lambda r, passed: r.clamp(min=0)}
both = pytest.mark.parametrize("explain", RULES, ids=lambda method: method.__name__)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal_mlp(model, x, target, rule, high=torch.inf):
    """The rule by matrix algebra on a stack of linear layers with a rectifier, cut off at `high`, between them."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    passed = []
    for layer in layers[:-1]:
        z = x @ layer.weight.T + layer.bias
        passed.append((z > 0) & (z < high))
        x = z.clamp(0, high)
    relevance = layers[-1].weight[target]
    for layer, where in zip(layers[-2::-1], passed[::-1], strict=True):
        relevance = rule(relevance, where) @ layer.weight
    return relevance.detach()


@torch.no_grad()
def literal_cnn(model, x, target, rule):
    """The rule on `Functional`, layer by layer: each linear layer transposed, maxima put back, gradients added."""
    z1 = model.norm(model.stem(x))
    a1 = z1.clamp(min=0)
    z2 = a1 + model.block(a1)
    pooled, winners = F.max_pool2d(z2.clamp(min=0), 2, return_indices=True)
    relevance = (model.head.weight[target] / pooled[0, 0].numel())[:, :, None, None].expand_as(pooled)
    relevance = rule(F.max_unpool2d(relevance, winners, 2), z2 > 0)
    relevance = rule(relevance + F.conv_transpose2d(relevance, model.block.weight, padding=1), z1 > 0)
    scale = model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()
    return F.conv_transpose2d(relevance * scale[:, None, None], model.stem.weight, padding=1)


def assert_differs(maps, others):
    assert (maps - others).norm() > 0.05 * others.norm()


@both
@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_equals_its_definition_on_a_relu_network(explain, bias, mlp_batch):
    model = relu_mlp(bias=bias)
    torch.testing.assert_close(explain(model, *mlp_batch), literal_mlp(model, *mlp_batch, RULES[explain]), **CLOSE)


@both
def test_equals_its_definition_through_convolution_batch_norm_residual_and_pooling(explain):
    model, x, target = network("functional", torch.float64)
    torch.testing.assert_close(explain(model, x, target), literal_cnn(model, x, target, RULES[explain]), **CLOSE)
    # The twin itself is right: without a rule it is the gradient.
    plain = literal_cnn(model, x, target, lambda r, passed: r * passed)
    torch.testing.assert_close(plain, gradient(model, x, target), **CLOSE)


class Spelled(nn.Module):
    """A stack of layers with an activation between them that is written in one particular way."""

    def __init__(self, layers, activation):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.activation = activation

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def spelled(activation):
    return Spelled(relu_mlp(bias=0.5)[::2], activation)


SPELLINGS = {
    "one nn.ReLU": (nn.ReLU(), torch.inf),
    "one nn.ReLU in place": (nn.ReLU(inplace=True), torch.inf),
    "F.relu": (F.relu, torch.inf),
    "F.relu by keyword": (lambda z: F.relu(input=z), torch.inf),
    "F.relu in place": (partial(F.relu, inplace=True), torch.inf),
    "F.relu_": (F.relu_, torch.inf),
    "torch.relu": (torch.relu, torch.inf),
    "torch.relu_": (torch.relu_, torch.inf),
    "Tensor.relu": (Tensor.relu, torch.inf),
    "Tensor.relu_": (Tensor.relu_, torch.inf),
    "nn.ReLU6": (nn.ReLU6(), 6),
    "nn.ReLU6 in place": (nn.ReLU6(inplace=True), 6),
    "F.relu6": (F.relu6, 6),
    "nn.Hardtanh": (nn.Hardtanh(0.0, 6.0), 6),
    "F.hardtanh": (lambda z: F.hardtanh(z, 0.0, 6.0), 6),
    "F.hardtanh by keyword": (lambda z: F.hardtanh(z, min_val=0.0, max_val=6.0), 6),
    "F.hardtanh in place": (lambda z: F.hardtanh(z, 0.0, 6.0, inplace=True), 6),
    "F.hardtanh_": (lambda z: F.hardtanh_(z, 0.0, 6.0), 6),
    "aten": (torch.ops.aten.relu, torch.inf),
    "aten overload": (torch.ops.aten.relu.default, torch.inf),
    "clamp": (lambda z: z.clamp(min=0), torch.inf),
    "clamp on both sides": (lambda z: torch.clamp(z, 0, 6), 6),
    "clamp in place": (lambda z: z.clamp_(0), torch.inf),
    "clamp_min": (lambda z: torch.clamp_min(z, 0), torch.inf),
    "maximum": (lambda z: torch.maximum(z, torch.zeros_like(z)), torch.inf),
    "threshold": (lambda z: F.threshold(z, 0, 0), torch.inf),
    "in place on a view": (lambda z: _clamped_view(z), torch.inf),
    "part by part": (lambda z: _clamped_halves(z), torch.inf),
}


def _clamped_view(z):
    z[:, :].clamp_(min=0)
    return z


def _clamped_halves(z):
    z[:, ::2] = z[:, ::2].relu()
    z[:, 1::2] = z[:, 1::2].relu()
    return z


SMOOTH = {
    "nn.GELU": nn.GELU(),
    "F.gelu by tanh": partial(F.gelu, approximate="tanh"),
    "F.silu": F.silu,
    "F.silu in place": partial(F.silu, inplace=True),
    "nn.Hardswish": nn.Hardswish(),
    "F.leaky_relu": partial(F.leaky_relu, negative_slope=0.2),
    "nn.ELU": nn.ELU(),
    "F.softplus": F.softplus,
    "Tensor.tanh": Tensor.tanh,
    "torch.sigmoid": torch.sigmoid,
    "nn.Hardsigmoid": nn.Hardsigmoid(),
    "hardtanh": F.hardtanh,
}


@pytest.mark.parametrize("activation", SMOOTH.values(), ids=SMOOTH.keys())
def test_guided_backprop_keeps_the_derivative_of_other_activations(activation, mlp_batch):
    model, (x, target) = spelled(activation), mlp_batch
    layers = list(model.layers)
    slopes, a = [], x
    for layer in layers[:-1]:
        z = layer(a).detach().requires_grad_()
        a = activation(z.clone())
        slopes.append(torch.autograd.grad(a.sum(), z)[0])
        a = a.detach()
    relevance = layers[-1].weight[target]
    for layer, slope in zip(layers[-2::-1], slopes[::-1], strict=True):
        relevance = (relevance.clamp(min=0) * slope) @ layer.weight
    torch.testing.assert_close(guided_backprop(model, x, target), relevance.detach(), **CLOSE)


@pytest.mark.parametrize("limit", [lambda z: z.clamp(-1, 1), lambda z: z.clamp_min(-0.5), lambda z: z.clamp(max=1)])
def test_guided_backprop_passes_the_gradient_of_a_limit_that_is_no_rectifier(limit, mlp_batch):
    model, (x, target) = spelled(limit), mlp_batch
    torch.testing.assert_close(guided_backprop(model, x, target), gradient(model, x, target), **CLOSE)


@pytest.mark.parametrize("name", ["nn.GELU", "F.silu in place", "F.leaky_relu", "F.softplus"])
def test_deconvnet_takes_smooth_rectifiers_for_rectifiers(name, mlp_batch):
    model, (x, target) = spelled(SMOOTH[name]), mlp_batch
    torch.testing.assert_close(deconvnet(model, x, target), literal_mlp(model, x, target, RULES[deconvnet]), **CLOSE)


@both
@pytest.mark.parametrize(("activation", "high"), SPELLINGS.values(), ids=SPELLINGS.keys())
def test_equals_its_definition_however_the_rectifier_is_written(explain, activation, high, mlp_batch):
    model, (x, target) = spelled(activation), mlp_batch
    # Large, so that in every layer some units lie above 6.
    x = 8 * x
    maps = explain(model, x, target)
    torch.testing.assert_close(maps, literal_mlp(model, x, target, RULES[explain], high), **CLOSE)
    assert_differs(maps, gradient(model, x, target))


def test_a_unit_exactly_at_a_bound_passes_nothing_as_in_torch():
    x = torch.tensor([[-1.0, 0.0, 3.0, 6.0, 7.0]])
    model, target = nn.Sequential(nn.ReLU6(), Linear(torch.ones(1, 5))), torch.tensor([0])
    maps = guided_backprop(model, x, target)
    torch.testing.assert_close(maps, torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]]), rtol=0, atol=0)
    torch.testing.assert_close(maps, gradient(model, x, target), rtol=0, atol=0)


class Aliased(nn.Module):
    """Adds a rectified tensor to itself; in place, the second term is what was the rectifier's input."""

    def __init__(self, inplace):
        super().__init__()
        self.first, self.second = relu_mlp((20, 30, 5), bias=0.5)[::2]
        self.inplace = inplace

    def forward(self, x):
        z = self.first(x)
        rectified = F.relu(z, inplace=self.inplace)
        return self.second(rectified + (z if self.inplace else rectified))


@both
def test_aliases_see_what_a_rectifier_in_place_wrote(explain, mlp_batch):
    torch.testing.assert_close(explain(Aliased(True), *mlp_batch), explain(Aliased(False), *mlp_batch), **CLOSE)


def with_positive_weights(model, skip=0):
    for layer in list(model[::2])[skip:]:
        layer.weight.data.abs_()
    return model


def test_guided_backprop_equals_the_gradient_when_all_upper_weights_are_positive(mlp_batch):
    model = with_positive_weights(relu_mlp(bias=0.5), skip=1)
    expected = gradient(model, *mlp_batch)
    assert (expected < 0).any()
    torch.testing.assert_close(guided_backprop(model, *mlp_batch), expected, **CLOSE)


def test_deconvnet_equals_the_gradient_when_nothing_is_negative(mlp_batch):
    model, (x, target) = with_positive_weights(relu_mlp()), mlp_batch
    torch.testing.assert_close(deconvnet(model, x.abs(), target), gradient(model, x.abs(), target), **CLOSE)


@pytest.fixture
def modular():
    """A network whose rectifiers are modules, each used once, as other libraries need it: (model, x, target)."""
    model, x, target = network("modules", torch.float64)
    model[2] = nn.ReLU()
    return model, x, target


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
@pytest.mark.parametrize(
    ("explain", "reference"),
    [(guided_backprop, captum.attr.GuidedBackprop), (deconvnet, captum.attr.Deconvolution)],
)
def test_agrees_with_captum_on_relu_modules(explain, reference, modular):
    model, x, target = modular
    maps = explain(model, x, target)
    expected = reference(model).attribute(x.clone().requires_grad_(), target=target).detach()
    torch.testing.assert_close(maps, expected, rtol=1e-10, atol=1e-10)
    assert_differs(maps, gradient(model, x, target))


@pytest.mark.parametrize(
    ("explain", "composite"),
    [(guided_backprop, zennit.composites.GuidedBackprop), (deconvnet, zennit.composites.DeconvNet)],
)
def test_agrees_with_zennit_on_relu_modules(explain, composite, modular):
    model, x, target = modular
    maps = explain(model, x, target)
    leaf = x.clone().requires_grad_()
    with composite().context(model) as hooked:
        (expected,) = torch.autograd.grad(hooked(leaf).gather(1, target[:, None]).sum(), leaf)
    torch.testing.assert_close(maps, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")
@pytest.mark.parametrize(
    ("explain", "reference"),
    [(guided_backprop, captum.attr.GuidedBackprop), (deconvnet, captum.attr.Deconvolution)],
)
def test_is_right_where_captum_returns_the_gradient_without_a_word(explain, reference, mlp_batch):
    model, (x, target) = spelled(F.relu), mlp_batch
    plain = gradient(model, x, target)
    silent = reference(model).attribute(x.clone().requires_grad_(), target=target).detach()
    torch.testing.assert_close(silent, plain, **CLOSE)
    assert_differs(explain(model, x, target), plain)
    torch.testing.assert_close(explain(model, x, target), literal_mlp(model, x, target, RULES[explain]), **CLOSE)


def intercepted(rule, function):
    """`function` with `rule` on top of autograd: an interception that has nothing in common with ours."""

    def rectify(z, *args, **kwargs):
        # On a clone: in place, there would be no tensor left to hook before the rectifier.
        out = function(z.clone(), *args, **kwargs)
        if rule is RULES[deconvnet]:
            # The value of the rectifier, the gradient of the identity.
            out = z + (out - z).detach()
        out.register_hook(lambda gradient: gradient.clamp(min=0))
        return out

    return rectify


@both
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_equals_another_interception_on_torchvision_networks(explain, name, monkeypatch):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.get_model(name, weights=None).double().eval()
    x, target = normal(2, 3, 64, 64), torch.tensor([3, 500])
    maps, plain = explain(model, x, target), gradient(model, x, target)
    for rectifier in ("relu", "relu6", "hardtanh"):
        monkeypatch.setattr(F, rectifier, intercepted(RULES[explain], getattr(F, rectifier)))
    expected = gradient(model, x, target)
    assert_differs(maps, plain)
    torch.testing.assert_close(maps / expected.norm(), expected / expected.norm(), **CLOSE)


@pytest.mark.parametrize("rules", [GUIDED, DECONVNET])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["modules", "functional", "in_place", "signal", "table"])
def test_the_forward_pass_keeps_its_values_to_the_last_bit(name, dtype, rules):
    model, x, _ = network(name, dtype)
    x = 10 * x - 5
    plain = model(x.clone())
    leaf = x.clone().requires_grad_().clone()
    with Propagation(rules, leaf):
        ruled = model(leaf).detach()
    torch.testing.assert_close(ruled, plain, rtol=0, atol=0)


@both
def test_frozen_parameters_and_no_grad_give_the_same_map_and_no_gradients_are_stored(explain, mlp_batch):
    model, (x, target) = relu_mlp(bias=0.5), mlp_batch
    expected = explain(model, x, target)
    model.requires_grad_(False)
    with torch.no_grad():
        torch.testing.assert_close(explain(model, x, target), expected, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


@both
def test_a_first_rectifier_in_place_leaves_the_input_as_it_was(explain):
    model, x, target = network("in_place", torch.float64)
    x = x - 0.5
    before = x.clone()
    maps = explain(model, x, target)
    assert torch.equal(x, before)
    model.relu.inplace = False
    torch.testing.assert_close(maps, explain(model, x, target), rtol=0, atol=0)


@both
def test_numbers_parameters_and_buffers_scale_like_any_linear_layer(explain, mlp_batch):
    class Normalized(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.register_buffer("mean", torch.full((20,), 0.1).double())
            self.register_buffer("std", torch.linspace(0.5, 2, 20).double())
            self.scale = nn.Parameter(torch.tensor(3.0).double())

        def forward(self, x):
            return self.scale * self.inner((x - self.mean) / self.std * 0.5) / 2

    class Unscaled(Normalized):
        def forward(self, x):
            return self.inner(x)

    model, (x, target) = relu_mlp(bias=0.5), mlp_batch
    normalized = Normalized(model)
    inside = (x - normalized.mean) / normalized.std * 0.5
    expected = explain(Unscaled(model), inside, target) * 3 / 2 * 0.5 / normalized.std
    torch.testing.assert_close(explain(normalized, x, target), expected)
