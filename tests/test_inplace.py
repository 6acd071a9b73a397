"""What may write over its input does, and nothing else does."""

import operator

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import TypeCheckError
from torch import nn

from harness.inplace import in_place
from harness.networks import CifarResNet


class Written(nn.Module):
    """A network of one convolution; `body` says what is done with its output."""

    def __init__(self, body):
        super().__init__()
        self.layer, self.other, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1), nn.ReLU()
        self.gone = nn.Identity()
        self.body = body

    def forward(self, x):
        return self.body(self, x)


BODIES = {
    "function": (lambda net, x: F.relu(net.layer(x)), 1),
    "torch's function": (lambda net, x: torch.relu(net.layer(x)), 1),
    "method": (lambda net, x: net.layer(x).relu(), 1),
    "module": (lambda net, x: net.act(net.layer(x)), 1),
    "options": (lambda net, x: F.leaky_relu(net.layer(x), negative_slope=0.3), 1),
    "behind a folded batch norm": (lambda net, x: net.act(net.gone(net.layer(x))), 1),
    "functional convolution": (lambda net, x: F.silu(F.conv2d(x, net.layer.weight)), 1),
    "sum": (lambda net, x: x + net.layer(x), 1),
    "torch's sum": (lambda net, x: torch.add(net.layer(x), x), 1),
    "sum with itself": (lambda net, x: operator.add(*[net.layer(x)] * 2), 1),
    "number": (lambda net, x: 1 + net.layer(x), 1),
    "rectified sum": (lambda net, x: F.relu(net.layer(x) + net.other(x)), 2),
    "module in two places": (lambda net, x: net.act(x) + net.act(net.layer(x)), 2),
    "the input": (lambda net, x: F.relu(x), 0),
    "the input through an identity": (lambda net, x: F.relu(net.gone(x)), 0),
    "read again": (lambda net, x: (lambda y: F.relu(y) * y)(net.layer(x)), 0),
    "read through a view": (lambda net, x: (lambda y: F.relu(y).flatten(1) * y.flatten(1))(net.layer(x)), 0),
    "read behind an identity": (lambda net, x: (lambda y: F.relu(net.gone(y)) * y)(net.layer(x)), 0),
    "a view": (lambda net, x: (lambda y: F.relu(y[:, :1]) * y[:, :1].detach())(net.layer(x)), 0),
    "scaled sum": (lambda net, x: torch.add(net.layer(x), x, alpha=2), 0),
    "depends on values": (lambda net, x: F.relu(net.layer(x)) if x.sum() > 0 else x, 0),
    "nothing of the kind": (lambda net, x: net.layer(x).exp(), 0),
}


@pytest.mark.parametrize("name", BODIES)
def test_values_stay_and_only_what_nothing_else_reads_is_written_over(name):
    body, expected = BODIES[name]
    torch.manual_seed(0)
    network, x = Written(body).eval(), torch.randn(2, 3, 5, 5)
    kept = x.clone()
    made = in_place(network)
    assert (made is not None) == bool(expected)
    if made is None:
        return
    with torch.inference_mode():
        assert torch.equal(made(x), network(x))
    assert torch.equal(x, kept)
    assert not network.act.inplace
    assert writes(made) == expected


def writes(traced):
    """How many nodes write over their input."""
    modules = [traced.get_submodule(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    calls = [node for node in traced.graph.nodes if node.op == "call_function"]
    by_module = sum(getattr(module, "inplace", False) for module in modules)
    return by_module + sum(
        node.target in (torch.relu_, torch.Tensor.add_) or node.kwargs.get("inplace", False) for node in calls
    )


def test_networks_whose_shapes_are_checked_are_traced_too():
    """The package is checked during tests, which what stands for a tensor while a graph is traced would not pass."""
    network = CifarResNet((3, 8, 8), 10, depth=8).eval()
    made, x = in_place(network), torch.randn(2, 3, 8, 8)
    assert made is not None
    # Each block has two rectifiers, of which the second takes a sum.
    assert writes(made) == 1 + 3 * 3
    with torch.inference_mode():
        assert torch.equal(made(x), network(x))
    with pytest.raises(TypeCheckError):
        network(torch.randn(3, 8, 8))


def test_what_has_hooks_is_left_alone():
    seen = []
    network = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()).eval()
    network[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert in_place(network) is None
