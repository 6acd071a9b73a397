"""Rewritten networks are the same function by other weights, and whatever is not is passed over."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cases import Functional, Linear
from harness.metrics.equivalent_networks import batch_norm_folded, unit_duplicated, units_permuted
from harness.metrics.implementation_invariance import REWRITINGS
from harness.metrics.rewriting import Original
from harness.networks import CifarResNet
from harness.types import NotApplicableError


def lively(model, seed=0):
    """In double precision, with batch norms that do something."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.double().eval()


def build(*layers):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively(nn.Sequential(*(layer() for layer in layers)))


def of(kind, *args, **kwargs):
    return lambda: kind(*args, **kwargs)


CHAINS = {
    "convolutions": ((2, 8, 8), of(nn.Conv2d, 2, 6, 3), of(nn.ReLU), of(nn.Conv2d, 6, 4, 6), of(nn.Flatten)),
    "flattened": ((2, 8, 8), of(nn.Conv2d, 2, 6, 3), of(nn.ReLU), of(nn.Flatten), of(nn.Linear, 216, 4)),
    "signal": ((2, 8), of(nn.Conv1d, 2, 6, 3), of(nn.Tanh), of(nn.Flatten), of(nn.Linear, 36, 4)),
    "batch norm": ((5,), of(nn.Linear, 5, 7), of(nn.BatchNorm1d, 7), of(nn.ReLU), of(nn.Linear, 7, 4)),
    "depthwise": (
        (2, 8, 8),
        of(nn.Conv2d, 2, 6, 1, bias=False),
        of(nn.BatchNorm2d, 6),
        of(nn.Conv2d, 6, 6, 3, groups=6),
        of(nn.PReLU, 6, 0.1),
        of(nn.Conv2d, 6, 4, 6),
        of(nn.Flatten),
    ),
    "square": ((6,), of(nn.Linear, 6, 6), of(nn.GELU), of(nn.Linear, 6, 6), of(nn.GELU), of(nn.Linear, 6, 4)),
}
NORMED = {
    "group norm": (of(nn.Conv2d, 2, 6, 3), of(nn.GroupNorm, 3, 6), of(nn.ReLU), of(nn.Conv2d, 6, 4, 6), of(nn.Flatten)),
    "layer norm": (of(nn.Flatten), of(nn.Linear, 128, 6), of(nn.LayerNorm, 6), of(nn.ReLU), of(nn.Linear, 6, 4)),
}


def same_function(model, rewritten, shape):
    fresh = 3 * torch.randn(9, *shape, dtype=torch.float64)
    torch.testing.assert_close(rewritten(fresh), model(fresh), rtol=1e-11, atol=1e-11)


def batch(shape, n=3):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", CHAINS)
def test_reversed_units_are_the_same_function_by_other_weights(name):
    shape, *layers = CHAINS[name]
    model = build(*layers)
    rewritten = units_permuted(Original(model, batch(shape)))
    same_function(model, rewritten, shape)
    assert torch.equal(rewritten[0].weight, model[0].weight.flip(0))
    for old, new in zip(model, rewritten, strict=True):
        if isinstance(old, nn.BatchNorm1d | nn.BatchNorm2d):
            assert torch.equal(new.running_var, old.running_var.flip(0))


@pytest.mark.parametrize("name", NORMED)
def test_units_behind_a_norm_of_groups_can_be_reversed_but_not_duplicated(name):
    model = build(*NORMED[name])
    model[1 if name == "group norm" else 2].weight.data.normal_()
    same_function(model, units_permuted(Original(model, batch((2, 8, 8)))), (2, 8, 8))
    with pytest.raises(NotApplicableError, match="units cannot be duplicated: none of the 1 pairs of consecutive"):
        unit_duplicated(Original(model, batch((2, 8, 8))))


@pytest.mark.parametrize("name", CHAINS)
def test_a_duplicated_unit_shares_its_outgoing_weights(name):
    shape, *layers = CHAINS[name]
    model = build(*layers)
    rewritten = unit_duplicated(Original(model, batch(shape)))
    same_function(model, rewritten, shape)
    weights = rewritten[0].weight
    assert len(weights) == len(model[0].weight) + 1
    copied = [unit for unit in range(len(weights) - 1) if torch.equal(weights[unit], weights[-1])]
    assert len(copied) == 1
    assert torch.equal(weights[:-1], model[0].weight)
    sizes = [getattr(rewritten[0], size, None) for size in ("out_channels", "out_features")]
    assert len(weights) in sizes


def test_the_unit_that_says_most_is_duplicated_with_half_of_its_outgoing_weights():
    model = build(of(nn.Linear, 5, 7), of(nn.ReLU), of(nn.Linear, 7, 4))
    model[0].bias.data[3], model[0].bias.data[5] = 50, -1000
    model[0].weight.data[5] *= 100
    rewritten = unit_duplicated(Original(model, batch((5,))))
    assert torch.equal(rewritten[0].weight[-1], model[0].weight[3])
    outgoing = model[2].weight.detach().clone()
    outgoing[:, 3] /= 2
    torch.testing.assert_close(rewritten[2].weight, torch.cat([outgoing, outgoing[:, 3:4]], 1), rtol=0, atol=0)


def test_a_folded_batch_norm_is_gone_and_the_layer_has_its_formula():
    model = build(*CHAINS["batch norm"][1:])
    rewritten = batch_norm_folded(Original(model, batch((5,))))
    same_function(model, rewritten, (5,))
    assert isinstance(rewritten[1], nn.Identity)
    norm = model[1]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(rewritten[0].weight, scale[:, None] * model[0].weight)
    torch.testing.assert_close(rewritten[0].bias, scale * (model[0].bias - norm.running_mean) + norm.bias)


def test_all_batch_norms_of_a_residual_network_are_folded():
    model = lively(CifarResNet((3, 12, 12), 4, depth=8))
    rewritten = batch_norm_folded(Original(model, batch((3, 12, 12))))
    same_function(model, rewritten, (3, 12, 12))
    assert not [module for module in rewritten.modules() if isinstance(module, nn.BatchNorm2d)]


class Shared(nn.Module):
    """The output of the second convolution goes to its batch norm and past it."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        hidden = self.conv2(F.relu(self.bn1(self.conv1(x))))
        return (hidden + F.relu(self.bn2(hidden))).mean((2, 3))


def test_a_batch_norm_whose_input_others_read_is_not_folded():
    model = lively(Shared())
    rewritten = batch_norm_folded(Original(model, batch((2, 8, 8))))
    same_function(model, rewritten, (2, 8, 8))
    assert isinstance(rewritten.bn1, nn.Identity)
    assert isinstance(rewritten.bn2, nn.BatchNorm2d)


class Recurrent(nn.Module):
    """A convolution with its batch norm, twice the same."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        for _ in range(2):
            x = F.relu(self.norm(self.conv(x if x.shape[1] == 4 else self.stem(x))))
        return x.mean((2, 3))


def test_layers_that_are_called_twice_keep_their_batch_norm():
    with pytest.raises(NotApplicableError, match="no batch norm follows a linear layer or convolution"):
        batch_norm_folded(Original(lively(Recurrent()), batch((2, 8, 8))))


def test_a_pair_of_layers_that_is_not_connected_is_passed_over():
    model = lively(CifarResNet((3, 12, 12), 4, depth=8))
    rewritten = units_permuted(Original(model, batch((3, 12, 12))))
    same_function(model, rewritten, (3, 12, 12))
    assert torch.equal(rewritten.conv1.weight, model.conv1.weight)
    old, new = model.layer1[0], rewritten.layer1[0]
    assert torch.equal(new.conv1.weight, old.conv1.weight.flip(0))
    assert torch.equal(new.conv2.weight, old.conv2.weight.flip(1))


class Silent(nn.Module):
    """A residual whose units are silent on positive inputs and nowhere else."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.first.weight.data, self.first.bias.data = -torch.eye(4), torch.zeros(4)

    def forward(self, x):
        hidden = F.relu(self.first(x))
        return hidden + self.second(hidden)


def test_units_that_are_silent_on_the_samples_count_as_well():
    model, x = Silent().double().eval(), torch.rand(6, 4, dtype=torch.float64) + 0.5
    with pytest.raises(NotApplicableError, match="units cannot be permuted: none of the 1 pairs"):
        units_permuted(Original(model, x))


class Faint(nn.Module):
    """Units that go to the next layer and past it, and are a small share of the logits."""

    def __init__(self, passage, share=1e-6, bias=0):
        super().__init__()
        self.first, self.second, self.passage = nn.Linear(4, 4), nn.Linear(4, 4), passage
        self.share, self.bias = share, bias

    def forward(self, x):
        hidden = F.relu(self.first(self.passage(x)))
        return self.bias + x + self.share * (hidden + self.second(hidden))


def test_a_pair_that_hardly_matters_is_told_in_double_precision():
    with pytest.raises(NotApplicableError, match="units cannot be permuted: none of the 1 pairs"):
        units_permuted(Original(Faint(nn.Identity()), batch((4,)).float()))


@pytest.mark.parametrize(
    "passage", [torch.Tensor.float, lambda x: x.float().to(x.dtype)], ids=["it fails in double", "it narrows inside"]
)
def test_a_network_that_does_not_run_in_double_precision_is_checked_in_its_own(passage):
    # Nothing shows there that this is no rewriting.
    assert isinstance(units_permuted(Original(Faint(passage), batch((4,)).float())), Faint)


class Narrow(nn.Module):
    """A norm of all units that is computed in single precision, as published transformers do."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 64), nn.Linear(64, 4)

    def forward(self, x):
        hidden = F.gelu(self.first(x))
        scale = hidden.float().square().mean(1, keepdim=True).rsqrt()
        return self.second(hidden * scale.to(x.dtype))


def test_the_rounding_of_a_network_that_narrows_inside_is_no_difference():
    torch.manual_seed(0)
    model, x = Narrow(), batch((5,)).float()
    torch.testing.assert_close(units_permuted(Original(model, x))(x), model(x))


def test_a_large_bias_hides_no_difference_and_makes_none():
    with pytest.raises(NotApplicableError, match="units cannot be permuted"):
        units_permuted(Original(Faint(nn.Identity(), 1e-4, 1e6).double(), batch((4,))))
    shape, *layers = CHAINS["square"]
    model = build(*layers)
    model[-1].bias.data += 1e6
    same_function(model, units_permuted(Original(model, batch(shape))), shape)


@pytest.mark.parametrize("value", [0, torch.nan])
def test_logits_that_are_always_the_same_tell_nothing(value):
    with pytest.raises(NotApplicableError, match="cannot be checked: the logits are always the same, or not finite"):
        Original(Linear(torch.full((4, 9), float(value))), torch.rand(3, 9))


class Reshapes(nn.Module):
    """A forward pass that knows how many units there are."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        return self.second(F.relu(self.first(x)).view(-1, 6, 36).mean(2))


def test_a_forward_pass_that_fails_with_more_units_is_passed_over():
    model = lively(Reshapes())
    same_function(model, units_permuted(Original(model, batch((2, 8, 8)))), (2, 8, 8))
    with pytest.raises(NotApplicableError, match="units cannot be duplicated"):
        unit_duplicated(Original(model, batch((2, 8, 8))))


@pytest.mark.parametrize("rewriting", [units_permuted, unit_duplicated])
def test_a_rewriting_has_tensors_of_its_own_only_where_it_differs(rewriting):
    model = build(*CHAINS["square"][1:])
    rewritten = rewriting(Original(model, batch((6,))))
    shared = {name for name, tensor in model.named_parameters() if rewritten.get_parameter(name) is tensor}
    assert shared == {"2.bias", "4.weight", "4.bias"}


@pytest.mark.parametrize(
    "parametrization", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.orthogonal]
)
@pytest.mark.parametrize("name", ["square", "batch norm"])
def test_weights_that_are_computed_of_others_are_left_alone(name, parametrization):
    shape, *layers = CHAINS[name]
    model = build(*layers)
    for layer in model:
        if isinstance(layer, nn.Linear):
            parametrization(layer)
    state = copy.deepcopy(model.state_dict())
    for rewriting in REWRITINGS.values():
        try:
            same_function(model, rewriting(Original(model, batch(shape))), shape)
        except NotApplicableError:
            continue
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)


def test_the_trained_network_is_left_alone():
    model = Functional().eval()
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(3, 2, 8, 8)
    rewritten = batch_norm_folded(Original(model, x))
    for rewriting in (units_permuted, unit_duplicated):
        with pytest.raises(NotApplicableError):
            rewriting(Original(model, x))
    assert rewritten is not model
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
