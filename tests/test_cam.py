"""Grad-CAM against class activation maps, captum, and an upsampling written with NumPy."""

import captum.attr
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from cases import network, relu_mlp
from harness.methods.cam import grad_cam, last_spatial_layer
from harness.types import NotApplicableError

CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("sides", [(9, 14), (20,)], ids=["image", "signal"])
def test_equals_the_class_activation_map_per_position(sides, stride, relu):
    model, x, target = GlobalPooling(len(sides), stride), normal(5, 2, *sides), torch.arange(5)
    activation = model.last(model.first(x).tanh())
    weights = model.head.weight[target] / activation[0, 0].numel()
    coarse = torch.einsum("nk,nk...->n...", weights, activation)[:, None]
    assert (coarse < 0).any()
    expected = upsampled(coarse.clamp(min=0) if relu else coarse, *sides)
    torch.testing.assert_close(grad_cam(model, x, target, relu=relu), expected, **CLOSE)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("name", "layer"), [("modules", "0"), ("modules", "4"), ("functional", "block")])
def test_agrees_with_captum(name, layer, relu):
    model, x, target = network(name, torch.float64)
    reference = captum.attr.LayerGradCam(model, model.get_submodule(layer))
    coarse = reference.attribute(x, target=target, relu_attributions=relu).detach()
    expected = F.interpolate(coarse, size=x.shape[2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(grad_cam(model, x, target, layer=layer, relu=relu), expected, **CLOSE)


@pytest.mark.parametrize(("name", "layer"), [("modules", "5"), ("functional", "block"), ("signal", "2")])
def test_finds_the_last_layer_with_positions(name, layer):
    model, x, target = network(name, torch.float64)
    assert last_spatial_layer(model, x) == layer
    torch.testing.assert_close(grad_cam(model, x, target), grad_cam(model, x, target, layer=layer), rtol=0, atol=0)


def test_finds_the_last_block_of_a_residual_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torchvision.models.resnet18(weights=None).double().eval()
    x, target = normal(1, 3, 64, 64), torch.tensor([7])
    assert last_spatial_layer(model, x) == "layer4"
    expected = captum.attr.LayerGradCam(model, model.layer4).attribute(x, target=target).detach()
    torch.testing.assert_close(grad_cam(model, x, target), upsampled(expected, 64, 64), **CLOSE)


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


class Fails(nn.Module):
    """A network that breaks at one of its calls."""

    def __init__(self, at):
        super().__init__()
        self.at = at
        self.network = GlobalPooling(2, 1)

    def forward(self, x):
        self.at -= 1
        if self.at == 0:
            raise RuntimeError("broken on purpose")
        return self.network(x)


def hooks_of(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [hook for module in model.modules() for kind in kinds for hook in getattr(module, kind)]


@pytest.mark.parametrize("at", [1, 2], ids=["looking for the layer", "explaining"])
def test_leaves_no_hooks_after_an_exception(at):
    model = Fails(at)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        grad_cam(model, normal(1, 2, 8, 8), torch.tensor([0]))
    assert model.at == 0
    assert not hooks_of(model)


def test_leaves_no_hooks():
    model = GlobalPooling(2, 1)
    grad_cam(model, normal(1, 2, 8, 8), torch.tensor([0]))
    assert not hooks_of(model)


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
        ("", "the logits do not use layer 'beside'"),
    ],
)
def test_a_layer_that_cannot_serve_is_refused_by_name(layer, message):
    with pytest.raises(NotApplicableError, match=message):
        grad_cam(Auxiliary().eval(), torch.rand(2, 1, 9, 9), torch.tensor([0, 1]), layer=layer)
