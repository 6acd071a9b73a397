"""FullGrad: biases complete input x gradient to the output exactly, wherever the network hides them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cases import network, relu_mlp
from closed_forms import Read, normal
from harness import NotApplicableError
from harness.methods.full_grad import full_grad
from harness.methods.gradients import input_x_gradient
from harness.methods.operators import FAMILIES

IMAGE, SIGNAL, TOKENS, TABLE = (4, 3, 8, 8), (4, 3, 15), (4, 6, 8), (6, 12)


def assert_identity(model, x, target=None):
    """The map adds up to the output, and the gradient alone does not."""
    target = torch.arange(len(x)) % 4 if target is None else target
    with torch.no_grad():
        output = model(x.clone()).gather(1, target[:, None])[:, 0]
    alone = input_x_gradient(model, x.clone(), target).flatten(1).sum(1)
    assert ((alone - output).abs() > 1e-3).all()
    maps = full_grad(model, x, target)
    torch.testing.assert_close(maps.flatten(1).sum(1), output, rtol=1e-12, atol=1e-12)
    return maps


@pytest.mark.parametrize("name", ["modules", "functional", "in_place", "gelu", "tanh", "signal", "table"])
def test_is_the_output_on_the_networks_of_the_contract(name):
    model, x, target = network(name, torch.float64)
    maps = assert_identity(model, x - 0.5, target)
    assert maps.shape == (x.shape if x.ndim == 2 else (len(x), 1, *x.shape[2:]))


DIRECT = "relu hardtanh leaky_relu elu selu gelu silu mish logsigmoid softsign tanhshrink hardshrink softshrink".split()
ACTIVATIONS = {
    **{name: getattr(F, name) for name in DIRECT},
    "relu6": lambda z: F.relu6(6 * z),
    "clamp": lambda z: z.clamp(0.3, 0.8),
    "clamp_min": lambda z: z.clamp_min(0.2),
    "clamp_max": lambda z: z.clamp_max(0.2),
    "threshold": lambda z: F.threshold(z, 0.3, 0.1),
    "maximum": lambda z: torch.maximum(z, torch.full_like(z, 0.1)),
    "minimum": lambda z: torch.minimum(z, torch.full_like(z, 0.1)),
    "prelu": lambda z: F.prelu(z, normal(z.shape[1], seed=4)),
    "celu": F.celu,
    "hardswish": lambda z: F.hardswish(3 * z),
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
}


def test_the_table_above_has_every_activation_that_the_harness_claims_to_know():
    known = {name for name, family in FAMILIES.items() if family == "activation"}
    assert set(ACTIVATIONS) == known - {"log_sigmoid"}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_is_the_output_with_every_activation(name):
    convolutions = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    assert_identity(Read(lambda x, a, b: b(ACTIVATIONS[name](a(x))), *convolutions), normal(*IMAGE))


def set_apart(z):
    z[:, 0] += 1
    z[:, 1].sub_(0.3)
    z.view(len(z), -1).mul_(2)
    z[:, 2].sigmoid_()
    return z


def assigned(z):
    z[:, 0] = 0.7
    return z


def assigned_to(z):
    ones = torch.ones_like(z)
    ones[:, 0] = z[:, 0]
    return ones


LAYERS = {
    "batch norm behind a convolution": lambda x, a, norm: norm(a(x)).relu(),
    "batch norm of the input": lambda x, a, norm: a(norm(x)).relu(),
    "residual": lambda x, a, norm: F.relu(x + norm(F.relu(a(x)))),
    "one layer three times": lambda x, a, norm: a(a(a(x).relu()).relu()),
    "in place": lambda x, a, norm: set_apart(a(x)).relu(),
    "max pool of signed numbers": lambda x, a, norm: F.max_pool2d(a(x), 3, 2, 1),
    "average pool": lambda x, a, norm: F.avg_pool2d(a(x), 2).relu(),
    "strides": lambda x, a, norm: a(x)[:, :, ::2, ::2].relu(),
    "larger maps than the input": lambda x, a, norm: a(F.interpolate(x, scale_factor=2.0, mode="bilinear")).relu(),
    "one position": lambda x, a, norm: a(x).mean((2, 3), keepdim=True).relu(),
    "no positions": lambda x, a, norm: a(x).mean((2, 3)).sub(0.1).relu(),
    "an added constant": lambda x, a, norm: (a(x) + normal(3, 8, 8)).relu(),
    "a constant less something": lambda x, a, norm: (1 - a(x)).relu(),
    "a constant by keyword": lambda x, a, norm: torch.add(input=a(x), other=normal(3, 8, 8), alpha=2).relu(),
    "a constant added to the input": lambda x, a, norm: a(x + normal(8)).relu(),
    "a constant in a matrix product": lambda x, a, norm: torch.addmm(normal(5), x.flatten(1), normal(192, 5)).relu(),
    "a concatenated constant": lambda x, a, norm: a(torch.cat([x[:, :2], torch.ones_like(x[:, :1])], 1)).relu(),
    "a stacked constant": lambda x, a, norm: torch.stack([x, torch.ones_like(x)], 1).relu(),
    "padding by a constant": lambda x, a, norm: a(F.pad(x, (1, 1, 1, 1), value=0.5)).relu(),
    "a constant filled in": lambda x, a, norm: x.masked_fill(torch.arange(8) > 4, 0.5).relu(),
}


@pytest.mark.parametrize("name", LAYERS)
def test_is_the_output_wherever_a_bias_is(name):
    assert_identity(Read(LAYERS[name], nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)), normal(*IMAGE))


@pytest.mark.parametrize("assign", [assigned, assigned_to])
def test_an_assigned_constant_is_counted_or_refused_never_left_out(assign):
    model = Read(lambda x, a: assign(a(x)).relu(), nn.Conv2d(3, 3, 3, padding=1))
    try:
        assert_identity(model, normal(*IMAGE))
    except NotApplicableError as lack:
        assert "full_grad" in str(lack)  # noqa: PT017


def test_is_the_output_on_signals_with_pooling():
    model = Read(lambda x, a, norm: F.max_pool1d(norm(a(x)).relu(), 3, 2), nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4))
    assert_identity(model, normal(*SIGNAL))


BIAS_FREE = {
    "rectified": lambda x, a, b: b(F.relu(a(x))),
    "residual": lambda x, a, b: F.relu(x + b(F.leaky_relu(a(x)))),
    "pooled": lambda x, a, b: b(F.max_pool2d(a(x).relu_(), 2)),
}


@pytest.mark.parametrize("name", BIAS_FREE)
def test_without_biases_it_is_input_x_gradient_to_the_last_bit(name):
    model = Read(BIAS_FREE[name], *(nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(2)))
    x, target = normal(*IMAGE), torch.arange(4)
    expected = input_x_gradient(model, x, target).sum(1, keepdim=True)
    assert expected.abs().max() > 0
    torch.testing.assert_close(full_grad(model, x, target), expected, rtol=0, atol=0)


def literal(first, second, head, x, target, activation):
    """A small network with every pre-activation exposed: what each bias adds at each position, and where it goes."""
    leaf = x.clone().requires_grad_()
    z1 = F.conv2d(leaf, first.weight, padding=1)
    with_bias1 = z1 + first.bias[:, None, None]
    tangent = activation(with_bias1)
    pooled = F.avg_pool2d(tangent, 2)
    z2 = F.conv2d(pooled, second.weight)
    with_bias2 = z2 + second.bias[:, None, None]
    out = activation(with_bias2)
    logits = out.mean((2, 3)) @ head.weight.T + head.bias
    exposed = [leaf, with_bias1, tangent, with_bias2, out]
    by_input, by_1, by_tangent, by_2, by_out = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), exposed)

    def beyond(z):
        at = z.detach().requires_grad_()
        value = activation(at)
        return (value - torch.autograd.grad(value.sum(), at)[0] * at).detach()

    total = (x * by_input).sum(1)
    for share in (
        by_1 * first.bias[:, None, None],
        by_tangent * beyond(with_bias1),
        by_2 * second.bias[:, None, None],
        by_out * beyond(with_bias2),
    ):
        total = total + resized(share.sum(1), *x.shape[2:])
    return total + head.bias[target][:, None, None] / total[0].numel()


def resized(share, rows, columns):
    """Linear interpolation between pixel centres, by the ratio of areas, then the rest spread evenly; in loops."""
    result = torch.zeros(len(share), rows, columns, dtype=share.dtype)

    def weights(size, at, new):
        centre = min(max((at + 0.5) * size / new - 0.5, 0), size - 1)
        low = int(centre)
        return [(low, 1 - (centre - low)), (min(low + 1, size - 1), centre - low)]

    for i in range(rows):
        for j in range(columns):
            for (r, v), (c, w) in [
                (a, b) for a in weights(share.shape[1], i, rows) for b in weights(share.shape[2], j, columns)
            ]:
                result[:, i, j] += v * w * share[:, r, c] * share[0].numel() / (rows * columns)
    missing = share.sum((1, 2)) - result.sum((1, 2))
    return result + missing[:, None, None] / (rows * columns)


@pytest.mark.parametrize("activation", [F.relu, F.gelu, torch.sigmoid])
def test_equals_its_definition_position_by_position(activation):
    layers = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 4, 2), nn.Linear(4, 4)
    model = Read(lambda x, a, b, c: c(activation(b(F.avg_pool2d(activation(a(x)), 2))).mean((2, 3))), *layers)
    model.forward = lambda x: model.function(x, *model.layers)
    x, target = normal(*IMAGE), torch.arange(4)
    expected = literal(*model.layers, x, target, activation).detach()
    torch.testing.assert_close(full_grad(model, x, target)[:, 0], expected, rtol=1e-12, atol=1e-12)


def test_the_biases_of_a_table_are_spread_over_its_features(mlp_batch):
    model, (x, target) = relu_mlp(bias=0.5), mlp_batch
    maps, plain = full_grad(model, x, target), input_x_gradient(model, x, target)
    missing = model(x).gather(1, target[:, None]) - plain.sum(1, keepdim=True)
    torch.testing.assert_close(maps, (plain + missing / 20).detach(), rtol=1e-12, atol=1e-12)


def test_a_linear_layer_behind_the_positions_is_not_taken_for_one_whose_channels_come_first():
    """Its second axis holds positions and its last one none: the bias goes to the positions, or evenly to all."""
    x, target = normal(*IMAGE), torch.arange(4)
    behind = Read(lambda x, a: a(x.permute(0, 2, 3, 1)), nn.Linear(3, 3))
    first = Read(lambda x, a: a(x).permute(0, 2, 3, 1), nn.Conv2d(3, 3, 1))
    first.layers[0].weight.data = behind.layers[0].weight.data[:, :, None, None]
    maps, placed = full_grad(behind, x, target), full_grad(first, x, target)
    plain = input_x_gradient(behind, x, target).sum(1, keepdim=True)
    evenly = plain + (placed - plain).mean((2, 3), keepdim=True)
    assert min((maps - placed).abs().max(), (maps - evenly).abs().max()) < 1e-12


BATCH_ELSEWHERE = {
    "second": lambda x, a: a(x.permute(2, 0, 1)).relu().transpose(0, 1),
    "second, as many positions as samples": lambda x, a: a(x[..., : len(x)].permute(2, 0, 1)).relu().transpose(0, 1),
    "folded into the positions": lambda x, a: a(x.transpose(1, 2).flatten(0, 1)).relu().unflatten(0, (len(x), -1)),
}


@pytest.mark.parametrize("name", BATCH_ELSEWHERE)
def test_a_batch_axis_that_is_not_the_first_is_followed_or_refused_never_mixed_up(name):
    model, x = Read(BATCH_ELSEWHERE[name], nn.Linear(6, 5)), normal(*TOKENS)
    try:
        assert_identity(model, x)
    except NotApplicableError as lack:
        assert "full_grad" in str(lack)  # noqa: PT017


REFUSED = {
    "a product": (lambda x: x * x.roll(1, 1), "mul"),
    "a gate": (lambda x: x * x.sigmoid(), "mul"),
    "a division": (lambda x: x / (x.relu() + 1), "div"),
    "a square": (torch.square, "square"),
    "an exponential": (torch.exp, "exp"),
    "a softmax": (lambda x: x.softmax(-1), "softmax"),
    "layer norm": (lambda x: F.layer_norm(x, (8,)), "layer_norm"),
    "group norm": (lambda x: F.group_norm(x, 3), "group_norm"),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), "matmul"),
    "a norm": (lambda x: F.normalize(x), "linalg_vector_norm"),
    "a floor": (lambda x: x + torch.div(x, 0.5, rounding_mode="floor"), "div"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_by_name_what_is_not_affine_between_kinks(name):
    function, operator = REFUSED[name]
    with pytest.raises(NotApplicableError, match=f"full_grad has no rule for: .*{operator}"):
        full_grad(Read(function), normal(*IMAGE), torch.arange(4))


@pytest.mark.parametrize("function", [lambda x: x + x.detach(), lambda x: x - x.detach().amax(1, keepdim=True)])
def test_refuses_what_is_hidden_from_autograd(function):
    with pytest.raises(NotApplicableError, match="full_grad"):
        full_grad(Read(function), normal(*IMAGE), torch.arange(4))
