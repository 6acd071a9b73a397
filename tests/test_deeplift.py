"""DeepLIFT against literal twins and closed forms, its sum on whatever has a rule, and captum where it is right."""

import warnings
from functools import partial

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cases import network, relu_mlp
from closed_forms import Read, normal
from harness import NotApplicableError
from harness.methods.deeplift import deeplift
from harness.methods.gradients import gradient
from harness.methods.operators import FAMILIES

EXACT = {"rtol": 1e-12, "atol": 1e-12}
IMAGE, SIGNAL, TOKENS, TABLE = (4, 3, 9, 9), (4, 3, 15), (4, 6, 8), (6, 12)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def batch(shape, scale=1.5):
    """Samples, baselines and targets."""
    return scale * normal(*shape), scale * normal(*shape, seed=2), torch.arange(shape[0]) % 4


@torch.no_grad()
def output(model, x, target):
    return model(x.clone()).gather(1, target[:, None])[:, 0]


def assert_sums(model, x, baseline, target, **tolerance):
    """The map adds up; it is zero without a difference, and near the tangent for a small one."""
    maps = deeplift(model, x, target, baseline=baseline)
    change = output(model, x, target) - output(model, baseline, target)
    assert change.abs().max() > 1e-3
    torch.testing.assert_close(maps.flatten(1).sum(1), change, **(tolerance or {"rtol": 1e-12, "atol": 5e-13}))
    same = deeplift(model, x, target, baseline=x.clone())
    torch.testing.assert_close(same, torch.zeros_like(x), rtol=0, atol=0)


def assert_tangent(model, x, target, size=1e-7, tolerance=1e-4):
    """Near the baseline the map is difference times gradient."""
    baseline = x - size * normal(*x.shape, seed=7)
    expected = (x - baseline) / size * gradient(model, x.clone(), target)
    maps = deeplift(model, x, target, baseline=baseline)
    torch.testing.assert_close(maps / size, expected, rtol=tolerance, atol=tolerance)


def literal(layers, activation, x, baseline, target):
    """Multipliers layer by layer, unit by unit, on linear layers with an element-wise function between them."""
    maps = torch.zeros_like(x)
    for sample in range(len(x)):
        a, b, secants = x[sample], baseline[sample], []
        for layer in layers[:-1]:
            z, reference = layer(a[None])[0].detach(), layer(b[None])[0].detach()
            a, b = activation(z[None])[0], activation(reference[None])[0]
            secants.append([])
            for unit in range(len(z)):
                change = float(z[unit] - reference[unit])
                at = z.clone().requires_grad_()
                slope = torch.autograd.grad(activation(at[None])[0, unit], at)[0][unit]
                secants[-1].append(float((a[unit] - b[unit]).detach()) / change if change else float(slope))
        multipliers = layers[-1].weight[target[sample]].tolist()
        for layer, slopes in zip(layers[-2::-1], secants[::-1], strict=True):
            weight, units = layer.weight.tolist(), range(len(slopes))
            behind = [multiplier * slope for multiplier, slope in zip(multipliers, slopes, strict=True)]
            multipliers = [sum(behind[k] * weight[k][j] for k in units) for j in range(len(weight[0]))]
        maps[sample] = torch.tensor(multipliers, dtype=x.dtype) * (x[sample] - baseline[sample])
    return maps


DIRECT = "relu hardtanh leaky_relu elu selu gelu silu mish logsigmoid softsign tanhshrink hardshrink softshrink".split()
ACTIVATIONS = {
    **{name: getattr(F, name) for name in DIRECT},
    "relu6": lambda z: F.relu6(6 * z),
    "clamp": lambda z: z.clamp(-0.5, 0.7),
    "clamp_min": lambda z: z.clamp_min(-0.2),
    "clamp_max": lambda z: z.clamp_max(0.2),
    "threshold": lambda z: F.threshold(z, 0.3, 0.1),
    "maximum": lambda z: torch.maximum(z, torch.full_like(z, 0.1)),
    "minimum": lambda z: torch.minimum(z, torch.full_like(z, 0.1)),
    "prelu": lambda z: F.prelu(z, normal(z.shape[1], seed=4)),
    "celu": partial(F.celu, alpha=0.5),
    "hardswish": lambda z: F.hardswish(3 * z),
    "softplus": partial(F.softplus, beta=2, threshold=3),
    "sigmoid": torch.sigmoid,
    "hardsigmoid": lambda z: F.hardsigmoid(4 * z),
    "tanh": torch.tanh,
}


def test_the_table_below_has_every_activation_that_the_harness_claims_to_know():
    known = {name for name, family in FAMILIES.items() if family == "activation"}
    assert set(ACTIVATIONS) == known - {"log_sigmoid"}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_rescale_equals_its_definition_and_sums_for_every_activation(name):
    layers = relu_mlp((12, 8, 6, 4), bias=0.5)[::2]
    # A unit in which the changes of two inputs cancel has no change, and passes its gradient.
    layers[0].weight.data[0] = torch.tensor([1.0, 1.0] + [0.0] * 10)
    activation = ACTIVATIONS[name]
    model = nn.Sequential(layers[0], Function(activation), layers[1], Function(activation), layers[2]).eval()
    x, baseline, target = batch((3, 12))
    x[:, :2], baseline[:, :2] = torch.tensor([0.5, -1.0]), torch.tensor([-1.0, 0.5])
    assert_sums(model, x, baseline, target)
    assert_tangent(model, x, target)
    assert_tangent(model, x, target, size=1e-15, tolerance=0.02)
    maps = deeplift(model, x, target, baseline=baseline)
    torch.testing.assert_close(maps, literal(layers, activation, x, baseline, target), **EXACT)


def into_its_own_tensor(x):
    z = 2 * x
    z += x
    F.silu(z, inplace=True)
    z -= 1
    z *= 3
    return z


def through_views(x):
    z = x.clone()
    z[:, 0].exp_()
    z[:, 1] = z[:, 1].sigmoid()
    z.flatten(1)[:, 40:].relu_()
    return z


def halves(x):
    left, right = x.chunk(2, -1)
    return left * F.silu(right)


OPERATORS = {
    **{name: getattr(torch, name) for name in "exp erf square sin cos".split()},
    "log": lambda x: (x.exp() + 1).log(),
    "sqrt": lambda x: (x.exp() + 1).sqrt(),
    "reciprocal": lambda x: 1 / (x.exp() + 1),
    "product": lambda x: x * x.flip(-1),
    "gated halves": halves,
    "matrix product": lambda x: x.unflatten(-1, (3, 4)) @ x.unflatten(-1, (4, 3)),
    "einsum": lambda x: torch.einsum("ni,nj->nij", x, x),
    "addmm": lambda x: torch.addmm(x, x, normal(12, 12), beta=0.5, alpha=2.0),
    "baddbmm": lambda x: torch.baddbmm(x[:, None, :4], x[:, None], x.sin()[:, :, None] * x[:, None, :4]),
    "division": lambda x: x / (x.flip(1) ** 2 + 1),
    "division by keyword": lambda x: torch.div(input=x, other=x.exp() + 1),
    "softmax": lambda x: 3 * x.softmax(1),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "home-made softmax": lambda x: x.exp() / x.exp().sum(1, keepdim=True),
    "layer norm": nn.LayerNorm(12).double(),
    "rms norm": nn.RMSNorm(12).double(),
    "group norm": nn.GroupNorm(3, 12).double(),
    "home-made layer norm": lambda x: home_made(x),
    "vector norm": lambda x: torch.linalg.vector_norm(x, 2, 1, keepdim=True),
    "vector norm by keyword": lambda x: torch.linalg.vector_norm(x=x, ord=2, dim=1)[:, None],
    "normalize": lambda x: F.normalize(x, dim=1),
    "concatenation by keyword": lambda x: torch.cat(tensors=[x.relu(), x.sigmoid()], dim=1),
    "max pool without a batch axis": lambda x: F.max_pool1d(x, 3, 2),
    "in place": into_its_own_tensor,
}


def home_made(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred * (centred.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()


@pytest.mark.parametrize("name", OPERATORS)
def test_sums_through_every_operator(name):
    model = Read(lambda x, layer: OPERATORS[name](layer(x)), nn.Linear(12, 12))
    x, baseline, target = batch(TABLE)
    assert_sums(model, x, baseline, target)
    assert_tangent(model, x, target)


IMAGES = {
    "2": nn.MaxPool2d(2),
    "overlapping": nn.MaxPool2d(3, 1),
    "stride and padding": nn.MaxPool2d(3, 2, 1),
    "dilation and ceil": nn.MaxPool2d(2, 2, 1, 2, ceil_mode=True),
    "adaptive": nn.AdaptiveMaxPool2d((2, 3)),
    "by keyword": lambda x: F.max_pool2d(input=x, kernel_size=3, stride=2, padding=1),
    "of rectified": lambda x: F.max_pool2d(x.relu(), 2),
    "instance norm": nn.InstanceNorm2d(3, affine=True).double(),
    "local response norm": nn.LocalResponseNorm(2),
    "views": through_views,
    "group norm": nn.GroupNorm(3, 3).double(),
}


@pytest.mark.parametrize("name", IMAGES)
def test_sums_on_images(name):
    model = Read(lambda x, layer: IMAGES[name](layer(x)), nn.Conv2d(3, 3, 3, padding=1))
    x, baseline, target = batch(IMAGE)
    assert_sums(model, x, baseline, target, rtol=1e-12, atol=2e-12)


@pytest.mark.parametrize("pool", [nn.MaxPool1d(3, 2, 1, ceil_mode=True), nn.AdaptiveMaxPool1d(4)])
def test_sums_on_signals(pool):
    model = Read(lambda x, layer: pool(layer(x)), nn.Conv1d(3, 4, 3))
    assert_sums(model, *batch(SIGNAL))


@pytest.mark.parametrize(
    "name", ["modules", "functional", "in_place", "gelu", "tanh", "gated", "vit", "signal", "table"]
)
def test_sums_on_the_networks_of_the_contract(name):
    model, x, target = network(name, torch.float64)
    assert_sums(model, x, 1 - x.flip(0), target)
    assert_tangent(model, x, target)


def test_one_module_used_often_and_in_place_is_the_same_as_modules_of_its_own():
    def often(x, layer, relu):
        z = relu(layer(x))
        return relu(relu(layer(z)).add_(z))

    def once(x, layer, relu):
        z = F.relu(layer(x))
        return F.relu(F.relu(layer(z)) + z)

    layer, (x, baseline, target) = nn.Conv2d(3, 3, 3, padding=1), batch(IMAGE)
    model = Read(often, layer, nn.ReLU(inplace=True))
    assert_sums(model, x, baseline, target, rtol=1e-12, atol=2e-12)
    maps = deeplift(Read(once, layer, nn.ReLU()), x, target, baseline=baseline)
    torch.testing.assert_close(deeplift(model, x, target, baseline=baseline), maps, **EXACT)


def single(function, x, baseline, target=0):
    """The map of one output of a function of one sample."""
    x, baseline = (torch.tensor([numbers], dtype=torch.float64) for numbers in (x, baseline))
    return deeplift(Function(function), x, torch.tensor([target]), baseline=baseline)[0]


def test_a_product_gives_each_factor_its_change_times_the_mean_of_the_other():
    maps = single(lambda x: x[:, :1] * x[:, 1:], [3.0, 5.0], [1.0, -2.0])
    torch.testing.assert_close(maps, torch.tensor([2 * 1.5, 7 * 2.0]).double(), **EXACT)


def test_everything_of_a_minimum_goes_to_the_smaller():
    maps = single(lambda x: x[:, :1] - F.relu(x[:, :1] - x[:, 1:]), [5.0, 3.0], [0.0, 0.0])
    torch.testing.assert_close(maps, torch.tensor([0.0, 3.0]).double(), **EXACT)


def test_a_maximum_goes_to_the_winner_of_the_sample_where_it_grew_and_of_the_baseline_where_it_fell():
    x, baseline, target = batch((4, 2, 9))
    model = Read(lambda x: F.max_pool1d(x, 3, 2))
    weight = normal(8, 4, seed=9).view(2, 4, 4)
    expected = torch.zeros_like(x)
    for sample, channel, window in torch.cartesian_prod(torch.arange(4), torch.arange(2), torch.arange(4)).tolist():
        places = range(2 * window, 2 * window + 3)
        a, b = x[sample, channel], baseline[sample, channel]
        best, best0 = max(places, key=a.__getitem__), max(places, key=b.__getitem__)
        change = a[best] - b[best0]
        expected[sample, channel, best if change >= 0 else best0] += change * weight[channel, window, target[sample]]
    torch.testing.assert_close(deeplift(model, x, target, baseline=baseline), expected, **EXACT)


def test_a_root_of_zero_that_stays_zero_gives_no_nan():
    assert_sums(Read(lambda x: F.relu(x).sqrt()), *batch(TABLE))


HIDDEN = {
    "a detached sum": lambda x: x + x.detach().exp(),
    "a detached maximum": lambda x: x - x.detach().amax(1, keepdim=True),
    "a detached concatenation": lambda x: torch.cat([x, x.detach().sigmoid()], 1),
    "rounding": lambda x: x + (x.round() - x).detach(),
    "a count": lambda x: x + (x > 0).double().sum(1, keepdim=True),
    "a floor": lambda x: torch.div(x, 0.5, rounding_mode="floor") + x,
    "without gradients": lambda x: x + torch.no_grad()(torch.exp)(x),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_refuses_what_depends_on_the_input_behind_the_back_of_autograd(name):
    """Its change is part of the difference, and nothing passes it back: the map cannot add up."""
    x, baseline, target = batch(TABLE)
    with pytest.raises(NotApplicableError, match="deeplift"):
        deeplift(Read(HIDDEN[name]), x, target, baseline=baseline)


FORKS = {
    "another layer": lambda x, left, right: left(x) if x.mean() > 0 else right(x),
    "another slope": lambda x, left, right: F.leaky_relu(left(x), 0.1 if x.mean() > 0 else 0.3),
    "a number read off": lambda x, left, right: left(x) * float(x.detach().max()),
    "an item": lambda x, left, right: left(x).clamp(max=x.mean().item()),
    "another activation": lambda x, left, right: left(x).relu() if x.mean() > 0 else right(x).tanh(),
    "one activation more": lambda x, left, right: left(x) if x.mean() > 0 else left(x).relu(),
}


@pytest.mark.parametrize("name", FORKS)
@pytest.mark.parametrize("sign", [1, -1])
def test_refuses_a_model_that_goes_another_way_for_the_baseline(name, sign):
    model = Read(FORKS[name], nn.Linear(12, 12), nn.Linear(12, 12))
    x = sign * normal(*TABLE).abs()
    with pytest.raises(NotApplicableError, match="deeplift: "):
        deeplift(model, x, torch.arange(len(x)) % 4, baseline=-x)


def test_the_same_way_for_both_is_no_obstacle():
    def cautious(x, layer):
        return layer(x).relu() if bool((x.abs() >= 0).all()) else x

    assert_sums(Read(cautious, nn.Linear(12, 12)), *batch(TABLE))


def stack(*modules, shape=IMAGE):
    """The modules, then a rectified layer and four outputs."""
    body = nn.Sequential(*modules, nn.Flatten()).double()
    features = body(torch.zeros(shape).double()).shape[1]
    return Read(lambda x, body: body(x), nn.Sequential(*body, nn.Linear(features, 6), nn.ELU(), nn.Linear(6, 4)))


def reference(model, x, baseline, target):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return captum.attr.DeepLift(model).attribute(x, baseline, target=target).detach()


SUPPORTED = {
    **{f"{kind.__name__}": (nn.Conv2d(3, 4, 3), kind(), nn.Conv2d(4, 4, 3), kind()) for kind in (nn.ReLU, nn.ELU)},
    **{f"{kind.__name__}": (nn.Conv2d(3, 4, 3), kind()) for kind in (nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus)},
    "MaxPool1d": (nn.Conv1d(3, 4, 3), nn.MaxPool1d(2)),
    "MaxPool2d": (nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2), nn.ReLU()),
}


@pytest.mark.parametrize("name", SUPPORTED)
def test_agrees_with_captum_on_the_modules_that_it_supports_used_once_and_apart(name):
    shape = SIGNAL if name == "MaxPool1d" else IMAGE
    model, (x, other, target) = stack(*SUPPORTED[name], shape=shape), batch(shape)
    for baseline in (torch.zeros_like(x), other, x + 0.1 * other):
        maps = deeplift(model, x, target, baseline=baseline)
        torch.testing.assert_close(maps, reference(model, x, baseline, target), **EXACT)


CAPTUM_LOSES = {
    "a functional rectifier": (nn.Conv2d(3, 4, 3), Function(F.relu)),
    "ReLU6": (nn.Conv2d(3, 4, 3), nn.ReLU6()),
    "GELU": (nn.Conv2d(3, 4, 3), nn.GELU()),
    "a softmax": (nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Softmax(1)),
    "a product": (nn.Conv2d(3, 4, 3), Function(lambda z: z * z.flip(1))),
    "overlapping windows": (nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 1)),
    "one of its modules right behind another": (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)),
}


@pytest.mark.parametrize("name", CAPTUM_LOSES)
def test_adds_up_where_captum_does_not_without_a_word(name):
    model, (x, baseline, target) = stack(*CAPTUM_LOSES[name]), batch(IMAGE)
    change = output(model, x, target) - output(model, baseline, target)
    theirs = reference(model, x, baseline, target).flatten(1).sum(1)
    assert (theirs - change).abs().max() > 0.05 * change.abs().max()
    assert_sums(model, x, baseline, target)


def test_captum_asks_for_modules_that_are_used_once():
    relu = nn.ReLU()
    model, (x, baseline, target) = (
        Read(lambda x, a, b: relu(b(relu(a(x)))), nn.Linear(12, 12), nn.Linear(12, 12)),
        batch(TABLE),
    )
    model.relu = relu
    with pytest.raises(RuntimeError, match="used more than once"):
        reference(model, x, baseline, target)
    assert_sums(model, x, baseline, target)
