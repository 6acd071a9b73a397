"""Class activation maps against their definition, loops written out, captum, and pytorch-grad-cam."""

import captum.attr
import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torch.nn.functional as F
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from cases import network, relu_mlp
from closed_forms import normal
from harness.methods.cam import cam, grad_cam, grad_cam_plus_plus, guided_grad_cam, hires_cam, layer_cam
from harness.methods.perturbation import score_cam
from harness.types import NotApplicableError

CLOSE = {"rtol": 1e-10, "atol": 1e-12}
SHAPES = pytest.mark.parametrize("sides", [(9, 14), (20,)], ids=["image", "signal"])
RELU = pytest.mark.parametrize("relu", [False, True])


def upsampled(coarse, *sides):
    """Linear interpolation along each of the last axes between the centres of cells, constant outside of them."""
    fine = coarse.detach().numpy()
    for axis, side in zip(range(-len(sides), 0), sides, strict=True):
        cells = fine.shape[axis]
        centres = (np.arange(side) + 0.5) * cells / side - 0.5
        fine = np.apply_along_axis(lambda line, at=centres: np.interp(at, np.arange(len(line)), line), axis, fine)
    return torch.from_numpy(fine)


class GlobalPooling(nn.Module):
    """Two convolutions, the mean over positions, a linear layer: what class activation maps were made for."""

    def __init__(self, dimensions, stride):
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d)[dimensions - 1]
        self.first = convolution(2, 4, 3, padding=1)
        self.last = convolution(4, 6, 3, stride=stride, padding=1)
        self.head = nn.Linear(6, 5)
        for seed, parameter in enumerate(self.parameters()):
            parameter.data = 0.5 * normal(*parameter.shape, seed=seed)

    def forward(self, x):
        return self.head(self.last(self.first(x).tanh()).flatten(2).mean(2))


class Halves(nn.Module):
    """Signed features, and a readout whose gradient is another one at each position."""

    def __init__(self, *sides, stride=3, channels=4):
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d)[len(sides) - 1]
        self.front = nn.Sequential(convolution(2, 3, 3, padding=1), nn.Tanh(), convolution(3, channels, 3, stride, 1))
        cells = int(np.prod([-(-side // stride) for side in sides]))
        self.back = nn.Sequential(nn.Tanh(), nn.Flatten(), nn.Linear(channels * cells, 5))
        for seed, parameter in enumerate(self.parameters()):
            parameter.data = 0.7 * normal(*parameter.shape, seed=seed)
        self.eval()

    def forward(self, x):
        return self.back(self.front(x))


def opened(model, x, target):
    """Features and the gradient of the target logit, as arrays [n, k, *grid]: the network is cut into two."""
    features = model.front(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.back(features).gather(1, target[:, None]).sum(), features)
    return features.detach().numpy(), gradient.numpy()


def summed(weigh, features, gradients):
    """The sum over channels of features, weighed one channel of one sample at a time."""
    maps = [
        sum(weigh(gradient, channel) * channel for channel, gradient in zip(*pair, strict=True))
        for pair in zip(features, gradients, strict=True)
    ]
    return torch.from_numpy(np.stack(maps))[:, None]


def plus_plus(gradient, channel):
    """The weight of a channel by the formula of Grad-CAM++, position by position."""
    return sum(g**2 / (2 * g**2 + g**3 * channel.sum()) * max(g, 0) for g in gradient.ravel())


WEIGHTS = {
    grad_cam: lambda gradient, channel: gradient.mean(),
    grad_cam_plus_plus: plus_plus,
    hires_cam: lambda gradient, channel: gradient,
    layer_cam: lambda gradient, channel: np.where(gradient > 0, gradient, 0),
}


@RELU
@pytest.mark.parametrize("method", WEIGHTS)
@SHAPES
def test_equals_a_loop_over_samples_and_channels(sides, method, relu):
    model, x, target = Halves(*sides), normal(5, 2, *sides), torch.arange(5)
    features, gradients = opened(model, x, target)
    assert (features < 0).any()
    assert (gradients < 0).any()
    coarse = summed(WEIGHTS[method], features, gradients)
    assert (coarse < 0).any()
    expected = upsampled(coarse.clamp(min=0) if relu else coarse, *sides)
    torch.testing.assert_close(method(model, x, target, layer="front", relu=relu), expected, **CLOSE)


def test_the_gradient_of_the_features_is_that_of_finite_differences():
    model, x, target = Halves(4, 5, stride=1), normal(1, 2, 4, 5), torch.tensor([3])
    features, step = model.front(x).detach(), 1e-6
    slopes = torch.zeros_like(features)
    for place in range(features.numel()):
        moved = step * F.one_hot(torch.tensor(place), features.numel()).view_as(features)
        slopes.view(-1)[place] = (model.back(features + moved) - model.back(features - moved))[0, 3] / (2 * step)
    expected = (slopes * features).sum(1, keepdim=True)
    torch.testing.assert_close(hires_cam(model, x, target, layer="front"), expected, rtol=1e-6, atol=1e-7)


@RELU
@pytest.mark.parametrize("stride", [1, 3])
@SHAPES
def test_equals_the_class_activation_map_per_position(sides, stride, relu):
    model, x, target = GlobalPooling(len(sides), stride), normal(5, 2, *sides), torch.arange(5)
    activation = model.last(model.first(x).tanh())
    positions = activation[0, 0].numel()
    coarse = torch.einsum("nk,nk...->n...", model.head.weight[target], activation)[:, None]
    assert (coarse < 0).any()
    expected = upsampled(coarse.clamp(min=0) if relu else coarse, *sides)
    torch.testing.assert_close(cam(model, x, target, relu=relu), expected, **CLOSE)
    torch.testing.assert_close(grad_cam(model, x, target, relu=relu), expected / positions, **CLOSE)
    torch.testing.assert_close(hires_cam(model, x, target, relu=relu), expected / positions, **CLOSE)


@SHAPES
def test_plus_plus_has_a_closed_form_behind_global_pooling(sides):
    model, x, target = GlobalPooling(len(sides), 1), normal(5, 2, *sides), torch.arange(5)
    activation = model.last(model.first(x).tanh()).detach().flatten(2)
    positions = activation.shape[2]
    g = model.head.weight.detach()[target] / positions
    alpha = 1 / (2 + g * activation.sum(2))
    expected = torch.einsum("nk,nkp->np", positions * alpha * g.clamp(min=0), activation)
    torch.testing.assert_close(grad_cam_plus_plus(model, x, target).flatten(1), expected, **CLOSE)


def test_plus_plus_does_not_lose_small_gradients():
    """With small gradients the divisor is 2 g^2: the weights are g / 2, also where g^3 underflows."""
    model, x, target = Halves(9, 14), normal(5, 2, 9, 14), torch.arange(5)
    model.back[2].weight.data *= 1e-150
    coarse = summed(lambda gradient, channel: np.maximum(gradient, 0).sum() / 2, *opened(model, x, target))
    expected, maps = upsampled(coarse, 9, 14), grad_cam_plus_plus(model, x, target, layer="front")
    torch.testing.assert_close(maps * 1e150, expected * 1e150, **CLOSE)


class Ends(nn.Module):
    """The same features, read in one of several ways."""

    def __init__(self, end):
        super().__init__()
        self.features, self.head, self.last = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6, 5), nn.Linear(5, 5)
        self.scores, self.whole, self.end = nn.Conv2d(6, 5, 1), nn.Linear(6 * 8 * 8, 5), end
        self.double()

    def forward(self, x):
        z = self.features(x)
        return {
            "pooled": lambda: self.head(z.mean((2, 3))),
            "by a module": lambda: self.head(F.adaptive_avg_pool2d(z, 1).flatten(1)),
            "by a sum": lambda: self.head(z.flatten(2).sum(2) / 64),
            "whole": lambda: self.whole(z.flatten(1)),
            "maximum": lambda: self.head(z.amax((2, 3))),
            "two layers": lambda: self.last(self.head(z.mean((2, 3))).relu()),
            "two linear layers": lambda: self.last(self.head(z.mean((2, 3)))),
            "scores": lambda: self.scores(z).mean((2, 3)),
            "scaled": lambda: self.head(z.mean((2, 3))) * 2,
            "rectified behind": lambda: self.head(z.mean((2, 3)).relu()),
            "probabilities": lambda: self.head(z.mean((2, 3))).softmax(1),
        }[self.end]()


@pytest.mark.parametrize("end", ["pooled", "by a module", "by a sum"])
def test_cam_knows_global_pooling_in_any_form(end):
    model, x, target = Ends(end), normal(3, 2, 8, 8), torch.tensor([4, 0, 2])
    expected = torch.einsum("nk,nkhw->nhw", model.head.weight[target], model.features(x)).detach()[:, None]
    torch.testing.assert_close(cam(model, x, target), expected, **CLOSE)


@pytest.mark.parametrize(
    "end",
    ["whole", "maximum", "two layers", "two linear layers", "scores", "scaled", "rectified behind", "probabilities"],
)
def test_cam_refuses_other_ends(end):
    with pytest.raises(NotApplicableError, match="cam: the model does not end in global average pooling and one lin"):
        cam(Ends(end), normal(3, 2, 8, 8), torch.tensor([4, 0, 2]))


@pytest.mark.parametrize("chunk", [1, 64])
@pytest.mark.parametrize("softmax", [False, True])
@RELU
@SHAPES
def test_score_cam_equals_a_loop_over_channels(sides, relu, softmax, chunk):
    model, x, target = Halves(*sides), normal(3, 2, *sides), torch.tensor([4, 0, 2])
    baseline = 0.3 * normal(3, 2, *sides, seed=8)
    model.front[2].weight.data[1], model.front[2].bias.data[1] = 0, 0
    features = model.front(x).detach()
    coarse = torch.zeros_like(features[:, :1])
    for n in range(3):
        empty = model(baseline[n : n + 1])[0, target[n]]
        increases = []
        for channel in features[n]:
            shown = upsampled(channel, *sides)
            spread = shown.max() - shown.min()
            shown = (shown - shown.min()) / spread if spread > 0 else torch.zeros_like(shown)
            seen = baseline[n] + shown * (x[n] - baseline[n])
            increases.append((model(seen[None])[0, target[n]] - empty).item())
        assert increases[1] == 0
        weights = np.exp(increases) / np.exp(increases).sum() if softmax else increases
        for weight, channel in zip(weights, features[n], strict=True):
            coarse[n, 0] += weight * channel
    expected = upsampled(coarse.clamp(min=0) if relu else coarse, *sides)
    options = {"baseline": baseline, "softmax": softmax, "relu": relu, "chunk": chunk, "layer": "front"}
    torch.testing.assert_close(score_cam(model, x, target, **options), expected, **CLOSE)


def test_score_cam_shows_nothing_through_a_constant_channel_at_any_level():
    model, zero, x = Halves(9, 14), Halves(9, 14), normal(3, 2, 9, 14)
    for each, level in ((model, 0.3), (zero, 0.0)):
        each.front[2].weight.data[1:], each.front[2].bias.data[1:] = 0, level
        # The readout of constant channels is a constant, which differences do not see.
        each.back[2].bias.data -= each.back[2].weight.data.view(5, 4, -1)[:, 1:].sum((1, 2)) * np.tanh(level)
    torch.testing.assert_close(zero(x), model(x))
    options = {"baseline": torch.zeros_like(x), "softmax": False, "layer": "front"}
    maps = [score_cam(each, x, torch.tensor([4, 0, 2]), **options) for each in (model, zero)]
    torch.testing.assert_close(*maps, **CLOSE)


@RELU
@pytest.mark.parametrize(
    ("name", "layer"), [("modules", "0"), ("modules", "4"), ("functional", "block"), ("signal", "2")]
)
def test_agrees_with_captum(name, layer, relu):
    model, x, target = network(name, torch.float64)
    reference = captum.attr.LayerGradCam(model, model.get_submodule(layer))
    coarse = reference.attribute(x, target=target, relu_attributions=relu).detach()
    expected = upsampled(coarse, *x.shape[2:])
    torch.testing.assert_close(grad_cam(model, x, target, layer=layer, relu=relu), expected, **CLOSE)


class Rectified(nn.Module):
    """Convolutions with rectifiers that are modules, which captum and pytorch-grad-cam need."""

    def __init__(self, stride=1):
        super().__init__()
        self.first, self.one = nn.Conv2d(2, 6, 3, padding=1), nn.ReLU()
        self.second, self.two = nn.Conv2d(6, 5, 3, stride, 1), nn.ReLU()
        self.read, self.three, self.head = nn.Conv2d(5, 6, 3), nn.ReLU(), nn.Linear(6, 4)
        for seed, parameter in enumerate(self.parameters()):
            parameter.data = 0.5 * normal(*parameter.shape, seed=seed)

    def forward(self, x):
        z = self.two(self.second(self.one(self.first(x))))
        return self.head(self.three(self.read(z)).mean((2, 3)))


def test_guided_grad_cam_agrees_with_captum():
    """By itself captum upsamples to the nearest position unless told otherwise."""
    model, x, target = Rectified(2), normal(4, 2, 9, 12), torch.arange(4)
    maps = guided_grad_cam(model, x, target, layer="two")
    reference = captum.attr.GuidedGradCam(model, model.two)
    expected = reference.attribute(x, target=target, interpolate_mode="bilinear")
    torch.testing.assert_close(maps, expected.detach(), **CLOSE)


def in_unit_range(maps):
    """Each map rectified and stretched to [0, 1], as pytorch-grad-cam returns it."""
    maps = maps.clamp(min=0).flatten(1)
    return (maps - maps.amin(1, keepdim=True)) / (maps.amax(1, keepdim=True) - maps.amin(1, keepdim=True))


LIBRARY = {
    grad_cam: pytorch_grad_cam.GradCAM,
    grad_cam_plus_plus: pytorch_grad_cam.GradCAMPlusPlus,
    hires_cam: pytorch_grad_cam.HiResCAM,
    layer_cam: pytorch_grad_cam.LayerCAM,
    score_cam: pytorch_grad_cam.ScoreCAM,
}


@pytest.mark.parametrize(
    ("method", "stride"),
    [(method, stride) for method in LIBRARY for stride in (1, 2) if (method, stride) != (score_cam, 2)],
)
def test_agrees_with_pytorch_grad_cam(method, stride):
    """In its units, and where its epsilons do not matter.

    It adds 1e-6 to the divisor of Grad-CAM++, which has g^2 in it, so logits are scaled up. Its Score-CAM upsamples
    with the corners aligned, so only the case without upsampling is the same; its baseline is zero, and it takes the
    softmax of scores instead of increases, which is the same.
    """
    model, x, target = Rectified(stride).eval(), normal(4, 2, 9, 12), torch.arange(4)
    model.head.weight.data *= 1e4 if method is grad_cam_plus_plus else 1
    options = {"baseline": torch.zeros_like(x)} if method is score_cam else {}
    maps = method(model, x, target, layer="two", relu=True, **options)
    assert (maps.flatten(1).amax(1) > 0).all()
    with LIBRARY[method](model=model, target_layers=[model.two]) as reference:
        expected = torch.from_numpy(reference(x, targets=[ClassifierOutputTarget(each) for each in target.tolist()]))
    torch.testing.assert_close(in_unit_range(maps), expected.flatten(1).double(), rtol=1e-5, atol=1e-5)


def test_an_unknown_layer_is_named_with_the_nearest():
    model, x, target = GlobalPooling(2, 1), normal(1, 2, 8, 8), torch.tensor([0])
    with pytest.raises(NotApplicableError, match=r"grad_cam: the model has no layer 'lost'; did you mean last\?"):
        grad_cam(model, x, target, layer="lost")


def test_refuses_a_network_without_positions():
    with pytest.raises(NotApplicableError, match="no layer of the model returns channels with more than one position"):
        grad_cam(relu_mlp(), normal(3, 20), torch.arange(3))


def in_place_after_the_layer(inplace):
    """The rectifier writes into the output of layer `0`."""
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(inplace=inplace), nn.Conv2d(6, 4, 3), nn.Flatten(2))
    for seed, parameter in enumerate(model.parameters()):
        parameter.data = normal(*parameter.shape, seed=seed)
    return nn.Sequential(*model, nn.AdaptiveAvgPool1d(1), nn.Flatten())


def test_an_operation_in_place_behind_the_layer_does_not_reach_it():
    x, target = normal(4, 2, 8, 8), torch.arange(4)
    maps = grad_cam(in_place_after_the_layer(True), x, target, layer="0")
    expected = grad_cam(in_place_after_the_layer(False), x, target, layer="0")
    torch.testing.assert_close(maps, expected, rtol=0, atol=0)
    rectified = grad_cam(in_place_after_the_layer(False), x, target, layer="1")
    assert (maps - rectified).norm() > 0.1 * maps.norm()


def test_a_first_operation_in_place_leaves_the_input_as_it_was():
    model, x, target = network("in_place", torch.float64)
    x = x - 0.5
    before = x.clone()
    maps = grad_cam(model, x, target)
    assert torch.equal(x, before)
    model.relu.inplace = False
    torch.testing.assert_close(maps, grad_cam(model, x, target), rtol=0, atol=0)


def test_frozen_parameters_and_no_grad_give_the_same_map_and_no_gradients_are_stored():
    model, x, target = network("functional", torch.float64)
    expected = grad_cam(model, x, target)
    model.requires_grad_(False)
    with torch.no_grad():
        torch.testing.assert_close(grad_cam(model, x, target), expected, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


class Fails(GlobalPooling):
    def forward(self, x):
        super().forward(x)
        raise RuntimeError("broken on purpose")


def test_leaves_no_hooks_after_an_exception():
    model = Fails(2, 1)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        grad_cam(model, normal(1, 2, 8, 8), torch.tensor([0]))
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


class Auxiliary(nn.Module):
    """A layer that runs last and that the logits do not use, one that never runs, and one that returns a pair."""

    def __init__(self):
        super().__init__()
        self.first, self.unused, self.beside = (nn.Conv2d(1, 3, 3) for _ in range(3))
        self.pair = nn.MaxPool2d(2, return_indices=True)
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        features, _ = self.pair(self.first(x))
        self.beside(x)
        return self.head(features.mean((2, 3)))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("head", "layer 'head' returns no channels with positions"),
        ("unused", "layer 'unused' returns no channels with positions"),
        ("pair", "layer 'pair' returns no channels with positions"),
        ("beside", "the logits do not use layer 'beside'"),
    ],
)
def test_a_layer_that_cannot_serve_is_refused_by_name(layer, message):
    with pytest.raises(NotApplicableError, match=message):
        grad_cam(Auxiliary().eval(), torch.rand(2, 1, 9, 9), torch.tensor([0, 1]), layer=layer)
