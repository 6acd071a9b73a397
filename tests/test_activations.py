"""The layers that introspections look at, and what they return."""

import pytest
import torch
from torch import nn

from cases import SHAPES, network
from harness import NotApplicableError
from harness.methods.activations import activations, layers_of, watching
from harness.networks import CNN, CifarResNet, VisionTransformer


def named(model, x, *given, **options):
    return [layer.name for layer in layers_of(model.eval(), x, *given, **options)]


def test_layers_stand_behind_what_follows_their_weights():
    x = torch.rand(2, 1, 28, 28)
    assert named(CNN((1, 28, 28), 10, batch_norm=True), x) == ["hidden1", "hidden2", "fc1", "softmax_linear"]
    # Convolution, norm, ReLU6 and pooling are one layer, and what only flattens is none.
    assert named(*network("modules")[:2]) == ["3", "5", "7"]


def test_what_everything_passes_through_are_whole_blocks_of_a_residual_network():
    names = named(CifarResNet((3, 32, 32), 10, depth=8), torch.rand(1, 3, 32, 32))
    # A block ends in a function, so that the stage of one block and the block are the same tensor.
    assert names == ["bn1", "layer1", "layer2", "layer3", "linear"]


def test_channels_of_tokens_are_their_last_axis():
    model, x = VisionTransformer((1, 28, 28), 10).eval(), torch.rand(3, 1, 28, 28)
    found = layers_of(model, x, ["layers.0", "head"])
    assert [(layer.name, layer.channels) for layer in found] == [("layers.0", 2), ("head", 1)]
    outputs = activations(model, x, found, chunk=2)
    assert outputs["layers.0"].shape == (3, 64, 17)
    torch.testing.assert_close(outputs["head"], model(x).detach())


def test_there_are_at_most_so_many_and_the_ends_are_among_them():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(20)))
    x = torch.rand(1, 4)
    assert named(model, x, most=5) == ["0", "5", "10", "14", "19"]
    assert named(model, x, most=1) == ["19"]
    assert len(named(model, x)) == 8


@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_are_those_of_the_modules_in_the_order_of_the_samples(shape):
    model, x, _ = network(shape, torch.float64)
    found = layers_of(model, x)
    seen = {}
    handles = [
        model.get_submodule(layer.name).register_forward_hook(
            lambda _module, _inputs, output, layer=layer: seen.__setitem__(layer.name, output.clone())
        )
        for layer in found
    ]
    model(x)
    for handle in handles:
        handle.remove()
    outputs = activations(model, x, found, chunk=2)
    assert list(outputs) == [layer.name for layer in found]
    for layer in found:
        torch.testing.assert_close(outputs[layer.name], seen[layer.name].movedim(layer.channels, 1))
    pooled = activations(model, x, found, chunk=3, of=lambda output: output.flatten(1).sum(1))
    for layer in found:
        torch.testing.assert_close(pooled[layer.name], outputs[layer.name].flatten(1).sum(1))


def test_a_layer_is_what_it_returned_and_not_what_was_written_into_it():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).eval()
    x = torch.randn(5, 3)
    before = (x @ model[0].weight.T + model[0].bias).detach()
    assert before.min() < 0
    torch.testing.assert_close(activations(model, x, layers_of(model, x, ["0"]), 5)["0"], before)
    with watching(model, layers_of(model, x, ["0"])) as outputs:
        leaf = x.clone().requires_grad_()
        model(leaf)
        (gradient,) = torch.autograd.grad(outputs["0"].sum(), leaf)
    torch.testing.assert_close(gradient, model[0].weight.sum(0).detach().expand(5, 3))


def test_hooks_are_gone_after_it_also_if_the_network_raises():
    model = nn.Sequential(nn.Linear(3, 2)).eval()
    layers = layers_of(model, torch.rand(1, 3))
    with pytest.raises(RuntimeError), watching(model, layers):
        model(torch.rand(1, 4))
    assert not model[0]._forward_hooks


def test_an_unknown_layer_is_refused_with_the_nearest_name():
    model, x, _ = network("functional")
    with pytest.raises(NotApplicableError, match="no layer 'blok'; did you mean block"):
        layers_of(model, x, ["blok"])
