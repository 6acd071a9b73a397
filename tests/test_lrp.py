"""Layer-wise relevance propagation against literal twins, its identities, and every way to write a network."""

import contextlib
import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import literal_lrp as twin
from cases import relu_mlp
from harness.methods import lrp
from harness.methods.composites import ruled_gradients
from harness.methods.gradients import input_x_gradient
from harness.methods.integrated import integrated_gradients
from harness.methods.propagation import Propagation
from harness.methods.relevance import LRP
from harness.methods.rules import Epsilon
from harness.space import InputSpace
from harness.types import NotApplicableError

CLOSE = {"rtol": 1e-10, "atol": 1e-10}
KINDS = {2: "table", 3: "signal", 4: "image"}
ZPLUS, EPSILON, BOX = twin.alpha_beta(1, 0), twin.epsilon(0.1), twin.box(twin.LOW, twin.HIGH)


def both(rule):
    return rule, rule


def declared(kind):
    return InputSpace(kind, mean=(0.4,), std=(0.5,))


# Name -> (method, options, rules of the twin for linear layers, convolutions and the input).
TABLE = {
    "lrp_0": (lrp.lrp_0, {}, both(twin.epsilon(0))),
    **{f"epsilon {e}": (lrp.lrp_epsilon, {"epsilon": e}, both(twin.epsilon(e))) for e in (1e-6, 0.1, 0.5)},
    **{f"gamma {g}": (lrp.lrp_gamma, {"gamma": g}, both(twin.gamma(g))) for g in (0.0, 0.25, 3.0)},
    **{
        f"alpha {a} beta {b}": (lrp.lrp_alpha_beta, {"alpha": a, "beta": b}, both(twin.alpha_beta(a, b)))
        for a, b in ((2.0, 1.0), (1.0, 0.0), (3.0, 2.0))
    },
    "z plus": (lrp.lrp_z_plus, {}, both(ZPLUS)),
    "epsilon and flat": (lrp.lrp_epsilon, {"epsilon": 0.1, "input_rule": "flat"}, (*both(EPSILON), twin.flat)),
    "gamma and w2": (lrp.lrp_gamma, {"input_rule": "w2"}, (*both(twin.gamma(0.25)), twin.squared)),
    "alpha beta and box": (lrp.lrp_alpha_beta, {"input_rule": "box"}, (*both(twin.alpha_beta(2, 1)), BOX)),
    "epsilon plus": (lrp.lrp_epsilon_plus, {"epsilon": 0.1}, (EPSILON, ZPLUS)),
    "epsilon plus flat": (lrp.lrp_epsilon_plus, {"epsilon": 0.1, "input_rule": "flat"}, (EPSILON, ZPLUS, twin.flat)),
    "epsilon gamma box": (lrp.lrp_epsilon_gamma_box, {"epsilon": 0.1}, (EPSILON, twin.gamma(0.25), BOX)),
    "epsilon alpha beta": (lrp.lrp_epsilon_alpha2_beta1, {"epsilon": 0.1}, (EPSILON, twin.alpha_beta(2, 1))),
    "epsilon alpha beta flat": (
        lrp.lrp_epsilon_alpha2_beta1,
        {"epsilon": 0.1, "input_rule": "flat"},
        (EPSILON, twin.alpha_beta(2, 1), twin.flat),
    ),
    "deep taylor": (lrp.deep_taylor, {}, (*both(ZPLUS), BOX)),
    "deep taylor without a range": (lrp.deep_taylor, {"space": InputSpace("table")}, (*both(ZPLUS), twin.squared)),
    "excitation": (lrp.excitation_backprop, {}, both(twin.alpha_beta(1, 0, bias=False))),
}
DISTINCT = ("lrp_0", "epsilon 0.1", "gamma 0.25", "alpha 2.0 beta 1.0", "excitation")
ENTERED = ("gamma and w2", "epsilon plus flat", "deep taylor")
LAYERED = ["ReLU", "skip_at_input", *(name for name in twin.NETWORKS if twin.NETWORKS[name][1] != (6,))]
PAIRS = [(method, name) for method in TABLE for name in twin.NETWORKS if method in DISTINCT or name in LAYERED]


def explain(name, model, x, target):
    method, options, _ = TABLE[name]
    needs_space = method not in (lrp.lrp_0, lrp.excitation_backprop)
    space = {"space": declared(KINDS[x.ndim])} if needs_space and "space" not in options else {}
    return method(model, x, target, **options, **space)


def is_close(maps, expected):
    scale = expected.abs().max()
    assert scale > 1e-6, "nothing is compared"
    return bool(((maps - expected).abs() <= 1e-9 * scale).all())


def assert_close(maps, expected):
    assert is_close(maps, expected), (maps - expected).abs().max() / expected.abs().max()


def formula(method, model, x, target):
    return twin.literal(model, x, target, twin.Rules(*TABLE[method][2]), 1.0 if method == "excitation" else None)


@pytest.mark.parametrize(
    ("method", "name"),
    [p if p[0] in DISTINCT or p[1] == "residual" else pytest.param(*p, marks=pytest.mark.slow) for p in PAIRS],
)
def test_equals_its_formula(method, name):
    model, x, target = twin.network(name)
    assert_close(explain(method, model, x, target), formula(method, model, x, target))


# Identities on networks without biases, with biases, and on single layers.


@pytest.fixture
def mlp_batch():
    """Inputs of `relu_mlp()` and their targets."""
    x = torch.randn(10, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.arange(10) % 5


def logit(model, x, target):
    return model(x).gather(1, target[:, None])[:, 0].detach()


def test_is_input_x_gradient_and_integrated_gradients_without_biases(mlp_batch):
    model, (x, target) = relu_mlp(), mlp_batch
    maps = lrp.lrp_0(model, x, target)
    torch.testing.assert_close(maps, input_x_gradient(model, x, target), **CLOSE)
    baseline = torch.zeros_like(x)
    torch.testing.assert_close(maps, integrated_gradients(model, x, target, baseline=baseline, steps=3), **CLOSE)
    torch.testing.assert_close(maps.sum(1), logit(model, x, target), **CLOSE)


@pytest.mark.parametrize("method", ["gamma 0.0", "epsilon 1e-06"])
def test_gamma_of_zero_and_a_vanishing_epsilon_are_lrp_0(method):
    model, x, target = twin.network("residual")
    tolerance = {"rtol": 0, "atol": 1e-10 if method == "gamma 0.0" else 1e-4}
    torch.testing.assert_close(explain(method, model, x, target), lrp.lrp_0(model, x, target), **tolerance)


def test_an_infinite_gamma_is_z_plus_exactly_where_the_explained_logit_is_positive(mlp_batch):
    # Behind a rectifier relevance arrives only where the output is positive; at the logit the sign decides.
    model, (x, target) = relu_mlp(bias=0.5), mlp_batch
    space = declared("table")
    gamma_maps = lrp.lrp_gamma(model, x, target, space=space, gamma=1e10)
    plus, positive = lrp.lrp_z_plus(model, x, target, space=space), logit(model, x, target) > 0
    assert positive.any()
    assert (~positive).any()
    torch.testing.assert_close(gamma_maps[positive], plus[positive], rtol=1e-6, atol=1e-8)
    assert all((a - b).norm() > 0.01 * b.norm() for a, b in zip(gamma_maps[~positive], plus[~positive], strict=True))


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0, 3.0])
def test_alpha_beta_conserves_where_every_unit_has_both_signs_and_no_bias(alpha, mlp_batch):
    model, (x, target) = relu_mlp(), mlp_batch
    maps = lrp.lrp_alpha_beta(model, x, target, space=declared("table"), alpha=alpha, beta=alpha - 1)
    torch.testing.assert_close(maps.sum(1), logit(model, x, target), rtol=1e-9, atol=1e-9)


def test_alpha_beta_loses_what_meets_a_dead_denominator():
    model = nn.Sequential(nn.Linear(3, 1, bias=False)).double()
    model[0].weight.data = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    x = torch.ones(1, 3, dtype=torch.float64)
    maps = lrp.lrp_alpha_beta(model, x, torch.tensor([0]), space=declared("table"))
    torch.testing.assert_close(maps, 2 * model[0].weight.data, **CLOSE)


@pytest.mark.parametrize("bias", [0.0, 0.5])
def test_excitation_backprop_is_a_distribution_over_inputs(bias, mlp_batch):
    model, (x, target) = relu_mlp(bias=bias), mlp_batch
    maps = lrp.excitation_backprop(model, x.abs(), target)
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum(1), torch.ones(10, dtype=torch.float64), **CLOSE)


def test_excitation_backprop_is_z_plus_divided_by_the_logit_without_biases(mlp_batch):
    model, (x, target) = relu_mlp(), mlp_batch
    plus = lrp.lrp_z_plus(model, x, target, space=declared("table"))
    maps = lrp.excitation_backprop(model, x, target) * logit(model, x, target)[:, None]
    torch.testing.assert_close(maps, plus, **CLOSE)


@pytest.mark.parametrize("method", [lrp.lrp_epsilon, lrp.lrp_gamma, lrp.lrp_alpha_beta, lrp.lrp_z_plus])
def test_flat_is_uniform_on_one_dense_layer(method):
    model, x, target = twin.network("Tanh")
    only = nn.Sequential(model[0])
    maps = method(only, x, target, space=declared("table"), input_rule="flat")
    torch.testing.assert_close(maps, (logit(only, x, target) / 6)[:, None].expand_as(x), **CLOSE)


@pytest.mark.parametrize("method", ["lrp_0", "gamma 0.25", "z plus", "alpha 2.0 beta 1.0"])
def test_a_residual_network_conserves_and_nothing_doubles_at_its_skips(method, mlp_batch):
    inner = relu_mlp((20, 30, 20))
    model = nn.Sequential(twin.Skip(*inner), nn.ReLU(), twin.Skip(*relu_mlp((20, 30, 20), seed=1)), *relu_mlp((20, 5)))
    maps = explain(method, model, *mlp_batch)
    torch.testing.assert_close(maps.sum(1), logit(model, *mlp_batch), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["ReLU", "GELU", "Tanh", "residual", "before_batch_norm", "groups", "signal"])
def test_relevance_and_what_biases_take_sum_to_the_logit(name):
    model, x, target = twin.network(name)
    absorbed = {}
    for module in model.modules():
        if isinstance(module, twin.NORMS):
            scale = module.weight / (module.running_var + module.eps).sqrt()
            absorbed[module.bias] = module.bias - module.running_mean * scale
        elif getattr(module, "bias", None) is not None:
            absorbed[module.bias] = module.bias
    for sample, t in zip(x.split(1), target.split(1), strict=True):
        rules = LRP(Epsilon(0.0), Epsilon(0.0)).rules()
        gradient, *others = ruled_gradients(model, sample, t, rules, "test", also=tuple(absorbed))
        ledger = sum((g * taken).sum() for g, taken in zip(others, absorbed.values(), strict=True))
        assert ledger.abs() > 1e-3
        torch.testing.assert_close((sample * gradient).sum() + ledger, logit(model, sample, t)[0], **CLOSE)


# What must not make numbers that are none, and what must not matter.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["ReLU", "residual", "before_batch_norm"])
def test_zeros_and_dead_denominators_give_finite_maps_of_the_same_dtype(name, dtype):
    original, x, target = twin.network(name)
    x = x.clone()
    x[0], x[1, ..., 0], x[2] = 0, 0, x[2].abs()
    for sign in (0, 1, -1):
        model = copy.deepcopy(original).to(dtype)
        for module in model.modules():
            if sign and isinstance(module, (nn.Linear, nn.Conv2d)):
                module.weight.data = sign * module.weight.data.abs()
                module.bias = None
        maps = {method: explain(method, model, x.to(dtype), target) for method in (*DISTINCT, *ENTERED)}
        assert [method for method, each in maps.items() if not each.isfinite().all()] == []
        assert {each.dtype for each in maps.values()} == {dtype}


def test_a_unit_that_is_exactly_zero_gets_and_gives_nothing_and_in_lrp_0_gives_what_it_does_near_zero():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1)).double()
    model[0].weight.data = torch.tensor([[1.0, -1.0], [1.0, 2.0]], dtype=torch.float64)
    model[1].weight.data, model[1].bias.data[:] = torch.tensor([[1.0, 0.5]], dtype=torch.float64), 0.25
    x, target = torch.ones(1, 2, dtype=torch.float64), torch.tensor([0])
    for method in (*DISTINCT[1:], *ENTERED):
        assert_close(explain(method, model, x, target), formula(method, model, x, target))
    nearby = x + torch.tensor([[1e-12, 0.0]], dtype=torch.float64)
    assert_close(lrp.lrp_0(model, x, target), formula("lrp_0", model, nearby, target).round(decimals=9))


@pytest.mark.parametrize("method", [*DISTINCT, *ENTERED])
def test_each_sample_is_explained_by_itself_with_frozen_parameters_and_without_gradients(method):
    model, x, target = twin.network("residual")
    expected = explain(method, model, x, target)
    one_by_one = [explain(method, model, *each) for each in zip(x.split(1), target.split(1), strict=True)]
    torch.testing.assert_close(torch.cat(one_by_one), expected, **CLOSE)
    frozen = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        torch.testing.assert_close(explain(method, frozen, x, target), expected, rtol=0, atol=0)
    assert not expected.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("rule", [Epsilon(0.0), Epsilon(0.1)])
@pytest.mark.parametrize("name", twin.NETWORKS)
def test_the_forward_pass_keeps_its_values_to_the_last_bit(name, rule):
    model, x, _ = twin.network(name)
    leaf = x.clone().requires_grad_().clone()
    with Propagation(LRP(rule, rule).rules(), leaf):
        ruled = model(leaf).detach()
    torch.testing.assert_close(ruled, model(x).detach(), rtol=0, atol=0)


def test_box_is_exact_however_near_to_their_bounds_inputs_lie():
    # It does not depend on where zero is, and above a lowest value of zero nothing cancels.
    model, _, target = twin.network("ReLU")
    model = copy.deepcopy(model)
    model[0].weight.data[:4].abs_()
    moved = copy.deepcopy(model)
    moved[0].bias.data += moved[0].weight.data.sum(1)
    x, near = torch.arange(1.0, 25.0).view(4, 6).double() * 2**-50, InputSpace("table", (1.0,), (1.0,))
    expected = lrp.deep_taylor(model, x, target, space=InputSpace("table", (0.0,), (1.0,)))
    assert_close(lrp.deep_taylor(moved, x - 1, target, space=near), expected)


# However a network is written, its maps are the same.


class Written(nn.Module):
    """The layers of another network, called by a function of one's own."""

    def __init__(self, layers, function):
        super().__init__()
        self.layers, self.function = layers, function

    def forward(self, x):
        return self.function(self.layers, x)


def dense(function):
    """A stack of linear layers with two activations, each layer called by the function."""

    def forward(layers, x):
        x = F.relu(function(layers[0], x))
        x = F.relu(function(layers[2], x))
        return function(layers[4], x)

    return "ReLU", forward


def convolved(function):
    """A convolution with the batch norm behind it, called by the function, and the rest of `residual`."""
    return "residual", lambda layers, x: layers[2:](function(layers[0], layers[1], x))


def normalized(x, norm):
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.1, norm.eps)


def folded(conv, norm, x):
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return F.conv2d(x, conv.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale, padding=1)


def frozen(conv, norm, x):
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return conv(x) * scale[:, None, None] + (norm.bias - norm.running_mean * scale)[:, None, None]


def read_first(conv, norm, x):
    z = conv(x)
    assert not z.isnan().any()
    return norm(z)


def read_later(conv, norm, x):
    z = conv(x)
    return norm(z) + 0 * z.mean()


LAST = {"memory_format": torch.channels_last}
SPELLINGS = {
    "linear": dense(lambda layer, x: F.linear(x, layer.weight, layer.bias)),
    "linear by keyword": dense(lambda layer, x: F.linear(bias=layer.bias, input=x, weight=layer.weight)),
    "a token of a sequence": dense(lambda layer, x: layer(x[:, None])[:, 0]),
    "tokens first": dense(lambda layer, x: layer(x[None, :, None]).transpose(0, 1).flatten(1)),
    "activation in place": ("ReLU", lambda layers, x: layers[4](layers[2](layers[0](x).relu_()).clamp_(min=0))),
    "x W + b": dense(lambda layer, x: x @ layer.weight.T + layer.bias),
    "b + x W": dense(lambda layer, x: layer.bias + torch.matmul(x, layer.weight.T)),
    "b added in place": dense(lambda layer, x: F.linear(x, layer.weight).add_(layer.bias)),
    "addmm": dense(lambda layer, x: torch.addmm(layer.bias, x, layer.weight.T)),
    "functional batch norm": convolved(lambda conv, norm, x: normalized(conv(x), norm)),
    "batch norm folded": convolved(folded),
    "batch norm of constants": convolved(frozen),
    "batch norm in another module": convolved(lambda conv, norm, x: nn.Sequential(nn.Sequential(norm))(conv(x))),
    "dropout before batch norm": convolved(lambda conv, norm, x: norm(F.dropout(conv(x), 0.5, training=False))),
    "clone before batch norm": convolved(lambda conv, norm, x: norm(conv(x).clone())),
    "other memory before batch norm": convolved(lambda conv, norm, x: norm(conv(x).contiguous(**LAST))),
    "convolution read before batch norm": convolved(read_first),
    "convolution read after batch norm": convolved(read_later),
    "input moved": ("residual", lambda layers, x: layers(x.transpose(2, 3).flatten(1).view(-1, 2, 4, 4).mT)),
    "channels reordered twice": ("residual", lambda layers, x: layers(x[:, [1, 0]].flip(1))),
    "flattened by view": ("residual", lambda layers, x: layers[8](layers[:7](x).view(x.size(0), -1))),
}


@pytest.mark.parametrize(
    "spelling", [s if n % 3 == 0 else pytest.param(s, marks=pytest.mark.slow) for n, s in enumerate(SPELLINGS)]
)
def test_is_the_same_however_the_network_is_written(spelling):
    name, forward = SPELLINGS[spelling]
    model, x, target = twin.network(name)
    written = Written(model, forward)
    torch.testing.assert_close(written(x), model(x), **CLOSE)
    methods = (*DISTINCT, *ENTERED)
    different = [
        method
        for method in methods
        if not is_close(explain(method, written, x, target), explain(method, model, x, target))
    ]
    assert different == []


def test_the_range_of_the_input_follows_it_into_a_view():
    model, x, target = twin.network("ReLU")
    x, space = x.view(4, 2, 3, 1), InputSpace("image", mean=(0.4, 0.5), std=(0.5, 0.6))
    maps = [
        lrp.deep_taylor(Written(model, partial(lambda move, layers, x: layers(move(x)), move)), x, target, space=space)
        for move in (lambda x: x.view(x.size(0), -1), lambda x: x.flatten(1))
    ]
    assert_close(*maps)


@pytest.mark.parametrize("rule", ["flat", "w2", "box"])
def test_relevance_and_range_of_the_input_follow_it_through_normalization(rule):
    model, x, target = twin.network("ReLU")
    inside = InputSpace("table", mean=(0.45,), std=(0.25,))
    expected = lrp.lrp_z_plus(model, (0.3 - x) * 2, target, space=inside, input_rule=rule)
    normalizing = Written(model, lambda layers, x: layers((0.3 - x) / 4 * 8.0))
    assert_close(lrp.lrp_z_plus(normalizing, x, target, space=declared("table"), input_rule=rule), expected)


@pytest.mark.parametrize("method", DISTINCT)
def test_a_linear_layer_whose_input_is_overwritten_later_is_explained_by_what_it_saw_or_refused(method):
    model, x, target = twin.network("ReLU")
    frozen = copy.deepcopy(model).requires_grad_(False)

    def forward(rectify, layers, x):
        a = layers[0](x)
        z = layers[2](a)
        return layers[4](z + rectify(a)[:, :7])

    in_place, aside = (Written(frozen, partial(forward, rectify)) for rectify in (F.relu_, F.relu))
    with contextlib.suppress(NotApplicableError):
        assert_close(explain(method, in_place, x, target), explain(method, aside, x, target))
