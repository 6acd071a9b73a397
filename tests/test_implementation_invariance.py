"""Implementation invariance: rewritten networks are the same function and other networks, and who looks is caught."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import harness
from cases import Functional, Linear, case_of, network, rows, values
from harness.catalogue import METHODS
from harness.metrics.implementation_invariance import REWRITINGS
from harness.metrics.equivalent_networks import batch_norm_folded, unit_duplicated, units_permuted
from harness.networks import CifarResNet
from harness.registry import Method
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
    rewritten = units_permuted(model, batch(shape))
    same_function(model, rewritten, shape)
    assert torch.equal(rewritten[0].weight, model[0].weight.flip(0))
    for old, new in zip(model, rewritten, strict=True):
        if isinstance(old, nn.BatchNorm1d | nn.BatchNorm2d):
            assert torch.equal(new.running_var, old.running_var.flip(0))


@pytest.mark.parametrize("name", NORMED)
def test_units_behind_a_norm_of_groups_can_be_reversed_but_not_duplicated(name):
    model = build(*NORMED[name])
    model[1 if name == "group norm" else 2].weight.data.normal_()
    same_function(model, units_permuted(model, batch((2, 8, 8))), (2, 8, 8))
    with pytest.raises(NotApplicableError, match="units cannot be duplicated: none of the 1 pairs of consecutive"):
        unit_duplicated(model, batch((2, 8, 8)))


@pytest.mark.parametrize("name", CHAINS)
def test_a_duplicated_unit_shares_its_outgoing_weights(name):
    shape, *layers = CHAINS[name]
    model = build(*layers)
    rewritten = unit_duplicated(model, batch(shape))
    same_function(model, rewritten, shape)
    weights = rewritten[0].weight
    assert len(weights) == len(model[0].weight) + 1
    copied = [unit for unit in range(len(weights) - 1) if torch.equal(weights[unit], weights[-1])]
    assert len(copied) == 1
    assert torch.equal(weights[:-1], model[0].weight)
    sizes = [getattr(rewritten[0], size, None) for size in ("out_channels", "out_features")]
    assert len(weights) in sizes


def test_the_outgoing_weights_of_a_duplicated_unit_are_halved():
    model = build(of(nn.Linear, 5, 7), of(nn.ReLU), of(nn.Linear, 7, 4))
    model[0].weight.data[3] *= 100
    rewritten = unit_duplicated(model, batch((5,)))
    outgoing = model[2].weight.detach().clone()
    outgoing[:, 3] /= 2
    torch.testing.assert_close(rewritten[2].weight, torch.cat([outgoing, outgoing[:, 3:4]], 1), rtol=0, atol=0)


def test_a_folded_batch_norm_is_gone_and_the_layer_has_its_formula():
    model = build(*CHAINS["batch norm"][1:])
    rewritten = batch_norm_folded(model, batch((5,)))
    same_function(model, rewritten, (5,))
    assert isinstance(rewritten[1], nn.Identity)
    norm = model[1]
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(rewritten[0].weight, scale[:, None] * model[0].weight)
    torch.testing.assert_close(rewritten[0].bias, scale * (model[0].bias - norm.running_mean) + norm.bias)


def test_all_batch_norms_of_a_residual_network_are_folded():
    model = lively(CifarResNet((3, 12, 12), 4, depth=8))
    rewritten = batch_norm_folded(model, batch((3, 12, 12)))
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
    rewritten = batch_norm_folded(model, batch((2, 8, 8)))
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
        batch_norm_folded(lively(Recurrent()), batch((2, 8, 8)))


def test_a_pair_of_layers_that_is_not_connected_is_passed_over():
    model = lively(CifarResNet((3, 12, 12), 4, depth=8))
    rewritten = units_permuted(model, batch((3, 12, 12)))
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
        units_permuted(model, x)


class Reshapes(nn.Module):
    """A forward pass that knows how many units there are."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        return self.second(F.relu(self.first(x)).view(-1, 6, 36).mean(2))


def test_a_forward_pass_that_fails_with_more_units_is_passed_over():
    model = lively(Reshapes())
    same_function(model, units_permuted(model, batch((2, 8, 8))), (2, 8, 8))
    with pytest.raises(NotApplicableError, match="units cannot be duplicated"):
        unit_duplicated(model, batch((2, 8, 8)))


UNITS, FOLDED = {"units permuted", "unit duplicated"}, {"batch norm folded"}
APPLIES = {
    "modules": UNITS | FOLDED,
    "functional": FOLDED,
    "in_place": UNITS,
    "gated": UNITS,
    "vit": UNITS,
    "signal": UNITS,
    "table": UNITS,
}


@pytest.mark.parametrize("name", APPLIES)
@pytest.mark.parametrize(
    "method", ["gradient", "integrated_gradients", "input_x_gradient", "lrp_epsilon", "smoothgrad"]
)
def test_methods_that_follow_the_function_are_invariant_where_a_rewriting_applies(name, method):
    model, x, target = network(name, torch.float64)
    options = {"baseline": "black"} if method == "integrated_gradients" else {}
    frame = rows(case_of(model, x, target, (method, options)), "implementation_invariance")
    known = frame[frame["value"].notna()]
    assert set(known["stage"].dropna()) == APPLIES[name]
    assert known["value"].max() < 1e-9
    assert known["stage"].isna().sum() == len(x)


def test_noise_made_of_the_weights_is_caught_by_every_rewriting():
    model, x, target = network("modules", torch.float64)
    frame = rows(case_of(model, x, target, "parameter_noise"), "implementation_invariance")
    assert set(frame["stage"].dropna()) == set(REWRITINGS)
    assert frame["value"].min() > 0.5


def first_layer(model, x, target):
    """Blind to the order of the units, and to nothing else."""
    return x * next(model.parameters()).abs().sum()


def test_each_rewriting_is_told_apart_and_the_largest_is_the_headline(monkeypatch):
    monkeypatch.setitem(METHODS._entries, "first_layer", Method("first_layer", first_layer, "test", 1, ()))
    model, x, target = network("modules", torch.float64)
    frame = rows(case_of(model, x, target, "first_layer"), "implementation_invariance")
    each = {stage: values(frame, "relative_difference", stage=stage) for stage in REWRITINGS}
    total = float(model[0].weight.detach().abs().sum())
    assert each["units permuted"].max() < 1e-12
    units = model[0].weight.detach().abs().flatten(1).sum(1) / total
    assert float((units - each["unit duplicated"][0]).abs().min()) < 1e-12
    scale = model[1].weight.abs() / (model[1].running_var + model[1].eps).sqrt()
    folded = float((model[0].weight.abs() * scale[:, None, None, None]).sum().detach())
    torch.testing.assert_close(each["batch norm folded"], torch.full((5,), abs(folded / total - 1)).double())
    assert frame["stage"].isna().iloc[-5:].all()
    largest = torch.stack(list(each.values())).amax(0)
    assert torch.equal(torch.tensor(frame["value"].to_numpy(copy=True))[-5:], largest)


def test_a_rewriting_that_does_not_apply_is_undefined_and_no_part_of_the_headline():
    frame = rows(case_of(*network("functional", torch.float64), "gradient"), "implementation_invariance")
    skipped = frame[frame["stage"].isin(["units permuted", "unit duplicated"])]
    assert skipped["value"].isna().all()
    assert skipped["reason"].astype(str).str.contains("none of the 2 pairs of consecutive layers is connected").all()
    assert torch.equal(
        torch.tensor(frame[frame["stage"].isna()]["value"].to_numpy(copy=True)),
        values(frame, "relative_difference", stage="batch norm folded"),
    )


def test_a_network_without_any_rewriting_is_not_applicable_with_all_reasons():
    model, x, target = Linear(torch.randn(4, 9)).eval(), torch.rand(3, 9), torch.arange(3)
    message = "units permuted: .* 0 pairs .*; unit duplicated: .*; batch norm folded: no batch norm follows"
    with pytest.raises(NotApplicableError, match=message):
        rows(case_of(model, x, target, "gradient"), "implementation_invariance")


def test_undefined_maps_are_undefined_in_the_headline_too():
    model, x, target = network("modules", torch.float64)
    maps = torch.ones_like(x)
    maps[0], maps[1, 0, 0, 0] = 0, torch.nan
    frame = rows(case_of(model, x, target, maps), "implementation_invariance")
    headline = frame[frame["stage"].isna()]
    assert list(headline["reason"].astype(object)[:2]) == ["the map is zero everywhere", "not finite (trained network)"]
    assert headline["value"].tolist()[2:] == [0.0, 0.0, 0.0]


def test_the_table_of_headlines_shows_the_largest():
    model, x, _ = network("modules")
    results = harness.evaluate(model, x, methods=["parameter_noise"], metrics=["implementation_invariance"])
    records = results.records
    largest = records[records["stage"].isna()]["value"].median()
    assert float(results.table("headlines")["value"].iloc[0]) == pytest.approx(largest)


def test_the_trained_network_is_left_alone():
    model = Functional().eval()
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(3, 2, 8, 8)
    rewritten = batch_norm_folded(model, x)
    for rewriting in (units_permuted, unit_duplicated):
        with pytest.raises(NotApplicableError):
            rewriting(model, x)
    assert rewritten is not model
    torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
