"""What somebody leaves behind in a model is noticed, named and undone; what a model does by itself is not."""

import numpy as np
import pytest
import torch
from torch import nn

import harness
from harness.snapshot import Snapshot
from harness.types import NotApplicableError, Score

TRACES = {}


def trace(function):
    TRACES[function.__name__.replace("_", " ")] = function
    return function


class Net(nn.Module):
    """Remembers its last output, as some networks do."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.last = None

    def forward(self, x):
        self.last = self.norm(self.layer(x)).relu()
        return self.head(self.last)


@trace
def the_values_of_layer_weight(model):
    model.layer.weight.data[0, 0] += 1e-3


@trace
def the_values_of_norm_running_mean(model):
    model.norm.running_mean.add_(1)


@trace
def forward_hooks_of_layer(model):
    model.layer.register_forward_hook(lambda *_: None)


@trace
def backward_pre_hooks_of_the_model(model):
    model.register_full_backward_pre_hook(lambda *_: None)


@trace
def modules_of_the_model(model):
    model.head = nn.Linear(5, 3)


@trace
def parameters_of_head(model):
    model.head.bias = None


@trace
def buffers_of_norm(model):
    model.norm.running_var = torch.ones(5)


@trace
def the_mode_of_norm(model):
    model.norm.train()


@trace
def requires_grad_of_head_bias(model):
    model.head.bias.requires_grad_(False)


@trace
def the_gradient_of_layer_weight(model):
    model.layer.weight.grad = torch.zeros(5, 6)


def named(words):
    return (
        words.replace("layer weight", "layer.weight")
        .replace("norm running", "norm.running")
        .replace("running mean", "running_mean")
        .replace("head bias", "head.bias")
        .replace("requires grad", "requires_grad")
    )


@pytest.mark.parametrize("words", TRACES)
def test_each_trace_is_named_and_undone(words):
    model = Net().eval()
    state, before = {name: value.clone() for name, value in model.state_dict().items()}, Snapshot(model)
    x = torch.randn(4, 6)
    expected = model(x)
    assert before.changes() == ""
    TRACES[words](model)
    assert named(words) in before.changes()
    before.restore()
    assert before.changes() == ""
    assert torch.equal(model(x), expected)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_what_is_not_a_number_is_no_change():
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([float("nan"), float("-inf")]))
    before = Snapshot(model)
    assert before.changes() == ""
    model.mask[0] = 0
    assert before.changes() == "the values of mask"


def test_many_changes_are_counted():
    model = Net().eval()
    before = Snapshot(model)
    for parameter in model.parameters():
        parameter.data += 1
    assert (
        before.changes() == "the values of layer.weight, the values of layer.bias, the values of norm.weight and 3 more"
    )


@pytest.mark.parametrize("words", TRACES)
def test_a_method_that_leaves_a_trace_fails_alone(words):
    model = Net().eval()

    @harness.method(family="test", cite="")
    def careless(model, x, target):
        """Leaves something behind."""
        TRACES[words](model)
        return x * 1.0

    x = torch.randn(5, 6)
    alone = harness.evaluate(model, x, methods=["gradient"], metrics=["sparseness", "entropy"])
    both = harness.evaluate(model, x, methods=["careless", "gradient"], metrics=["sparseness", "entropy"])
    failed = both.failures.set_index("metric")["error"]
    assert failed["sparseness"].startswith("RuntimeError: careless left a trace in the model: ")
    assert named(words) in failed["sparseness"]
    assert failed["sparseness"].endswith("It was restored for what comes next")
    mine = both.records[both.records["method"] == "gradient"]
    np.testing.assert_array_equal(mine["value"], alone.records["value"])


def test_a_metric_that_leaves_a_trace_fails_alone_and_maps_are_made_again():
    calls = []

    def method(model, x, target):
        """Counts its calls."""
        calls.append(len(x))
        return x * 1.0

    @harness.metric(family="test", direction=None, headline="one")
    def careless_metric(case):
        """Writes into the weights."""
        case.model.head.weight.data.zero_()
        yield Score("one", torch.ones(len(case.x)))

    results = harness.evaluate(
        Net().eval(), torch.randn(5, 6), methods=[method], metrics=["careless_metric", "zero_fraction"]
    )
    assert results.failures["metric"].tolist() == ["careless_metric"]
    assert "careless_metric, or method called by it, left a trace" in results.failures["error"][0]
    assert len(calls) == 2


def test_a_method_that_does_not_apply_leaves_nothing_either():
    model = Net().eval()

    @harness.method(family="test", cite="")
    def hesitates(model, x, target):
        """Begins, and finds that it does not apply."""
        model.layer.weight.data.zero_()
        raise NotApplicableError("not to this network")

    x = torch.randn(5, 6)
    alone = harness.evaluate(model, x, methods=["gradient"], metrics=["sparseness"])
    both = harness.evaluate(model, x, methods=["hesitates", "gradient"], metrics=["sparseness"])
    assert both.cells["status"].tolist() == ["not_applicable", "done"]
    mine = both.records[both.records["method"] == "gradient"]
    np.testing.assert_array_equal(mine["value"], alone.records["value"])
