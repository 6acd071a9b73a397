"""Relevance propagation where zennit and captum agree, and literal twins to judge by where they do not."""

from functools import partial

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from captum.attr._utils.lrp_rules import Alpha1_Beta0_Rule, EpsilonRule, GammaRule
from torch import nn
from zennit import composites, rules
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.layer import Sum
from zennit.types import Linear

import literal_lrp as twin
from harness.methods import lrp
from harness.space import InputSpace

TABLE, IMAGE = InputSpace("table"), InputSpace("image")
BOXED = InputSpace("image", mean=(0.4, 0.5), std=(0.5, 0.6))
ZPLUS = twin.alpha_beta(1, 0)


class Summed(nn.Sequential):
    """A residual block whose sum is a module, as zennit needs it; `Skip` of the twins adds by a function."""

    def __init__(self, *layers):
        super().__init__(*layers)
        self.sum = Sum()

    def forward(self, x):
        y = x
        for layer in list(self)[:-1]:
            y = layer(y)
        return self.sum(torch.stack([x, y], dim=-1))


def built(make, shape=(6,), seed=0):
    """The network of these layers with biases and batch norms that matter, signed inputs and their targets."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = twin.lively(nn.Sequential(*make()))
        return model, torch.rand(4, *shape, dtype=torch.float64) * 1.5 - 0.75, torch.arange(4) % 4


def mlp(activation=nn.ReLU, seed=0):
    return built(lambda: (nn.Linear(6, 8), activation(), nn.Linear(8, 7), activation(), nn.Linear(7, 4)), seed=seed)


def cnn():
    """Convolutions with batch norms behind them, a residual block, both kinds of pooling and two linear layers."""
    block = Summed(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3, eps=0.0), nn.ReLU())
    stem = (nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3, eps=0.0), nn.ReLU(), block, nn.MaxPool2d(2))
    pooled = (nn.Conv2d(3, 8, 2), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten())
    return *stem, *pooled, nn.Linear(8, 6), nn.BatchNorm1d(6, eps=0.0), nn.Tanh(), nn.Linear(6, 4)


def exactly(z):
    """A stabilizer that changes nothing but zeros."""
    return torch.where(z == 0, 1.0, z)


def zennit_maps(composite, model, x, target, start=None):
    """What zennit sends back to the input from the target logit, or from another start."""
    leaf = x.clone().requires_grad_()
    with composite.context(model) as hooked:
        logits = hooked(leaf)
        chosen = torch.zeros_like(logits).scatter(1, target[:, None], 1.0)
        (maps,) = torch.autograd.grad(logits, leaf, chosen * (logits.detach() if start is None else start))
    return maps


def by_rules(everywhere, entry=None):
    """The composite of one zennit rule for all linear modules, and perhaps another one for the first."""
    layer_map = [(Linear, everywhere), *composites.layer_map_base(exactly)]
    if entry is None:
        return composites.LayerMapComposite(layer_map, [SequentialMergeBatchNorm()])
    return composites.SpecialFirstLayerMapComposite(layer_map, [(Linear, entry)], [SequentialMergeBatchNorm()])


def judged(model, x, target, dense, convolution=None, entry=None, start=None):
    return twin.literal(model, x, target, twin.Rules(dense, convolution or dense, entry), start)


def assert_close(maps, expected, tolerance=1e-9):
    scale = expected.abs().max()
    assert scale > 1e-6, "nothing is compared"
    torch.testing.assert_close(maps / scale, expected / scale, rtol=0, atol=tolerance)


def assert_wrong(maps, expected):
    assert (maps - expected).norm() > 0.02 * expected.norm()


STABLE = {"stabilizer": exactly}
EPSILON, PLUS = rules.Epsilon(exactly), rules.ZPlus(**STABLE)
FLAT, SQUARED = rules.Flat(**STABLE), rules.WSquare(**STABLE, zero_params="bias")
LOW, HIGH = (bound[None] for bound in BOXED.bounds(torch.zeros(1, 2, 1, 1, dtype=torch.float64)))
BOX = rules.ZBox(LOW, HIGH, **STABLE)
CHOSEN = {"epsilon": 0.1, "stabilizer": exactly, "canonizers": [SequentialMergeBatchNorm()]}
GAMMA, ALPHA_BETA = partial(rules.Gamma, **STABLE), partial(rules.AlphaBeta, **STABLE)

AGREED = {
    "lrp_0": (by_rules(EPSILON), lrp.lrp_0),
    "epsilon": (by_rules(rules.Epsilon(0.1)), partial(lrp.lrp_epsilon, epsilon=0.1)),
    "gamma": (by_rules(GAMMA(0.25)), partial(lrp.lrp_gamma, gamma=0.25)),
    "gamma 3": (by_rules(GAMMA(3.0)), partial(lrp.lrp_gamma, gamma=3.0)),
    "alpha 2 beta 1": (by_rules(ALPHA_BETA(2.0, 1.0)), lrp.lrp_alpha_beta),
    "alpha 3 beta 2": (by_rules(ALPHA_BETA(3.0, 2.0)), partial(lrp.lrp_alpha_beta, alpha=3.0, beta=2.0)),
    "z plus": (by_rules(PLUS), lrp.lrp_z_plus),
    "flat": (by_rules(EPSILON, FLAT), partial(lrp.lrp_epsilon, epsilon=0.0, input_rule="flat")),
    "w square": (by_rules(EPSILON, SQUARED), partial(lrp.lrp_epsilon, epsilon=0.0, input_rule="w2")),
    "z box": (by_rules(EPSILON, BOX), partial(lrp.lrp_epsilon, epsilon=0.0, input_rule="box")),
    "deep taylor": (by_rules(PLUS, BOX), lrp.deep_taylor),
    "epsilon plus": (composites.EpsilonPlus(**CHOSEN), partial(lrp.lrp_epsilon_plus, epsilon=0.1)),
    "epsilon plus flat": (
        composites.EpsilonPlusFlat(**CHOSEN),
        partial(lrp.lrp_epsilon_plus, epsilon=0.1, input_rule="flat"),
    ),
    "epsilon gamma box": (
        composites.EpsilonGammaBox(LOW, HIGH, **CHOSEN),
        partial(lrp.lrp_epsilon_gamma_box, epsilon=0.1),
    ),
    "epsilon alpha 2 beta 1": (
        composites.EpsilonAlpha2Beta1(**CHOSEN),
        partial(lrp.lrp_epsilon_alpha2_beta1, epsilon=0.1),
    ),
    "epsilon alpha 2 beta 1 flat": (
        composites.EpsilonAlpha2Beta1Flat(**CHOSEN),
        partial(lrp.lrp_epsilon_alpha2_beta1, epsilon=0.1, input_rule="flat"),
    ),
}


@pytest.mark.parametrize("name", AGREED)
def test_agrees_with_zennit(name):
    composite, explain = AGREED[name]
    model, x, target = built(cnn, (2, 6, 6))
    space = {} if explain is lrp.lrp_0 else {"space": BOXED}
    assert_close(explain(model, x, target, **space), zennit_maps(composite, model, x, target))


def test_zennit_leaves_the_epsilon_of_a_batch_norm_behind_when_it_folds_it():
    model, x, target = built(lambda: (nn.Linear(6, 8), nn.BatchNorm1d(8, eps=0.1), nn.ReLU(), nn.Linear(8, 4)))
    expected = judged(model, x, target, twin.epsilon(0))
    assert_close(lrp.lrp_0(model, x, target), expected)
    zennit = zennit_maps(by_rules(EPSILON), model, x, target)
    # It then has a variance of 1 and the same epsilon.
    assert_wrong(zennit, expected)
    model[1].eps = 1e-12
    assert_close(zennit_maps(by_rules(EPSILON), model, x, target), lrp.lrp_0(model, x, target))


def test_excitation_backprop_agrees_with_zennit_once_its_biases_win_nothing():
    layers = (nn.Conv2d, 2, 3, 3), (nn.ReLU,), (nn.AvgPool2d, 2), (nn.Flatten,), (nn.Linear, 12, 4)
    model, x, target = built(lambda: [make(*sizes) for make, *sizes in layers], (2, 6, 6))
    composite = composites.ExcitationBackprop(stabilizer=exactly, zero_params="bias")
    maps = lrp.excitation_backprop(model, x, target)
    assert_close(maps, zennit_maps(composite, model, x, target, start=1.0))
    by_default = zennit_maps(composites.ExcitationBackprop(stabilizer=exactly), model, x, target, start=1.0)
    assert_wrong(by_default, judged(model, x, target, twin.alpha_beta(1, 0, bias=False), start=1.0))


@pytest.mark.parametrize(
    ("everywhere", "explain", "rule"),
    [
        (EPSILON, lrp.lrp_0, twin.epsilon(0)),
        (GAMMA(0.25), partial(lrp.lrp_gamma, space=TABLE), twin.gamma(0.25)),
        (PLUS, partial(lrp.lrp_z_plus, space=TABLE), ZPLUS),
    ],
    ids=["lrp_0", "gamma", "z plus"],
)
class TestIsRightWhereZennitIsNot:
    def check(self, everywhere, explain, rule, network):
        model, x, target = network
        expected = judged(model, x, target, rule)
        zennit = zennit_maps(by_rules(everywhere), model, x, target)
        assert_close(explain(model, x, target), expected)
        assert_wrong(zennit, expected)
        return zennit, expected

    def test_functional_rectifiers_are_no_difference(self, everywhere, explain, rule):
        # The gradient of a rectifier happens to pass relevance as the rule does.
        model, x, target = mlp(lambda: Functional(F.relu))
        expected = zennit_maps(by_rules(everywhere), model, x, target)
        assert_close(explain(model, x, target), expected)

    def test_functional_addition_doubles_relevance_at_skips(self, everywhere, explain, rule):
        linear, wide = partial(nn.Linear, bias=False), 30
        block = (linear, wide, wide), (nn.ReLU,), (linear, wide, wide), (linear, wide, 4)
        network = built(lambda: [make(*sizes) for make, *sizes in block], (wide,))
        network[0][2] = twin.Skip(network[0][2])
        zennit, expected = self.check(everywhere, explain, rule, network)
        # Exactly, because nothing else takes relevance here.
        torch.testing.assert_close(zennit.sum(1), 2 * expected.sum(1), rtol=1e-9, atol=1e-9)

    def test_functional_mean_spreads_relevance_evenly(self, everywhere, explain, rule):
        def layers(mean):
            return built(lambda: (nn.Conv2d(2, 4, 3), nn.ReLU(), mean, nn.Flatten(), nn.Linear(4, 4)), (2, 4, 4))

        model, x, target = layers(Functional(lambda x: x.mean((2, 3))))
        expected = judged(layers(nn.AvgPool2d(2))[0], x, target, rule)
        assert_close(explain(model, x, target), expected)
        assert_wrong(zennit_maps(by_rules(everywhere), model, x, target), expected)

    def test_a_module_that_is_used_twice_remembers_one_input(self, everywhere, explain, rule):
        self.check(everywhere, explain, rule, twin.network("reused"))

    def test_batch_norm_behind_an_activation_is_passed_over(self, everywhere, explain, rule):
        network = built(lambda: (nn.Linear(6, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 4)))
        self.check(everywhere, explain, rule, network)

    def test_what_a_sigmoid_adds_at_zero_goes_to_the_input(self, everywhere, explain, rule):
        self.check(everywhere, explain, rule, mlp(nn.Sigmoid))


class Functional(nn.Module):
    """An operator that is no module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_zennit_counts_the_square_of_the_bias_in_w_square():
    model, x, target = mlp()
    composite = by_rules(EPSILON, rules.WSquare(**STABLE))
    expected = judged(model, x, target, twin.epsilon(0), entry=twin.squared)
    assert_close(lrp.lrp_epsilon(model, x, target, space=TABLE, epsilon=0.0, input_rule="w2"), expected)
    assert_wrong(zennit_maps(composite, model, x, target), expected)


def test_zennit_takes_the_first_module_that_was_made_for_the_one_that_takes_the_input():
    class Reversed(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if len(self) < 3 else self[0](F.relu(self[2](x)))

    model, x, target = built(lambda: (nn.Linear(6, 4), nn.ReLU(), nn.Linear(6, 6)))
    ordered = nn.Sequential(*model[::-1])
    expected = judged(ordered, x, target, twin.epsilon(0), entry=twin.flat)
    shuffled = Reversed(*model)
    assert_close(lrp.lrp_epsilon(shuffled, x, target, space=TABLE, epsilon=0.0, input_rule="flat"), expected)
    assert_close(zennit_maps(by_rules(EPSILON, FLAT), ordered, x, target), expected)
    assert_wrong(zennit_maps(by_rules(EPSILON, FLAT), shuffled, x, target), expected)


# captum. It replaces weights and lets biases be, so that what it computes depends on their signs.


def captum_maps(rule, model, x, target):
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.rule = rule()
    return captum.attr.LRP(model).attribute(x.clone().requires_grad_(), target=target).detach()


def with_biases(change, network):
    for module in network[0].modules():
        if getattr(module, "bias", None) is not None:
            module.bias.data = change(module.bias.data)
    return network


def positive_logits(network):
    """The samples without signs, explained for their highest logit, which is positive."""
    model, x, _ = network
    logits, target = model(x.abs()).max(1)
    assert (logits > 0).all()
    return model, x.abs(), target


def images(seed=0):
    layers = (nn.Conv2d, 2, 3, 3), (nn.ReLU,), (nn.MaxPool2d, 2), (Flattened, 12, 4)
    return built(lambda: [make(*sizes) for make, *sizes in layers], (2, 6, 6), seed)


class Flattened(nn.Linear):
    """A linear layer on images, because captum knows no module that flattens."""

    def forward(self, x):
        return super().forward(x.flatten(1))


captum_warns = pytest.mark.filterwarnings("ignore:Setting backward hooks on ReLU")


@captum_warns
@pytest.mark.parametrize("value", [1e-9, 0.1])
@pytest.mark.parametrize("network", [mlp, partial(mlp, nn.Tanh), images], ids=["mlp", "tanh", "images"])
def test_epsilon_agrees_with_captum(network, value):
    model, x, target = network()
    maps = lrp.lrp_epsilon(model, x, target, space=IMAGE if x.ndim == 4 else TABLE, epsilon=value)
    # Its maximum pool has an epsilon of 1e-9 too.
    assert_close(maps, captum_maps(partial(EpsilonRule, value), model, x, target), 1e-6)


@captum_warns
@pytest.mark.parametrize("network", [mlp, images])
def test_gamma_agrees_with_captum_on_positive_numbers_without_positive_biases(network):
    model, x, target = positive_logits(with_biases(lambda bias: -bias.abs() / 20, network(seed=4)))
    maps = lrp.lrp_gamma(model, x, target, space=IMAGE if x.ndim == 4 else TABLE)
    assert_close(maps, captum_maps(GammaRule, model, x, target), 1e-6)


@captum_warns
@pytest.mark.parametrize("network", [mlp, images])
def test_z_plus_agrees_with_captum_on_positive_numbers_without_negative_biases(network):
    model, x, target = positive_logits(with_biases(torch.abs, network()))
    maps = lrp.lrp_z_plus(model, x, target, space=IMAGE if x.ndim == 4 else TABLE)
    assert_close(maps, captum_maps(Alpha1_Beta0_Rule, model, x, target), 1e-6)


@captum_warns
def test_excitation_backprop_agrees_with_captum_without_biases():
    model, x, target = positive_logits(mlp())
    logit = model(x).detach().gather(1, target[:, None])
    maps = captum_maps(partial(Alpha1_Beta0_Rule, set_bias_to_zero=True), model, x, target)
    assert_close(lrp.excitation_backprop(model, x, target) * logit, maps, 1e-6)


@captum_warns
@pytest.mark.parametrize(
    ("rule", "explain", "literal"),
    [(GammaRule, lrp.lrp_gamma, twin.gamma(0.25)), (Alpha1_Beta0_Rule, lrp.lrp_z_plus, ZPLUS)],
    ids=["gamma", "z plus"],
)
@pytest.mark.parametrize("signs", ["inputs", "biases"])
def test_is_right_where_captum_needs_numbers_of_one_sign(rule, explain, literal, signs):
    network = mlp(seed=1)
    model, x, target = positive_logits(network) if signs == "biases" else with_biases(torch.zeros_like, network)
    expected = judged(model, x, target, literal)
    assert_close(explain(model, x, target, space=TABLE), expected)
    assert_wrong(captum_maps(rule, model, x, target), expected)
