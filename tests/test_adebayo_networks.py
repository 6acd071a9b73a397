"""The networks of Adebayo et al.: their layers, and the distribution that their parameters are drawn from."""

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from harness.networks import AdebayoCNN, AdebayoMLP

LAYERS = {
    AdebayoCNN: {
        "hidden1.0": (32, 1, 5, 5),
        "hidden2.0": (64, 32, 5, 5),
        "fc1.1": (1024, 64 * 7 * 7),
        "softmax_linear": (10, 1024),
    },
    AdebayoMLP: {"hidden.1": (2500, 784), "hidden.3": (1500, 2500), "hidden.5": (500, 1500), "output": (10, 500)},
}
each_network = pytest.mark.parametrize("build", LAYERS)


def seeded(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build((1, 28, 28), 10)


@each_network
def test_layers_have_the_published_sizes(build):
    found = {name: tuple(parameter.shape) for name, parameter in seeded(build).named_parameters()}
    expected = {}
    for layer, shape in LAYERS[build].items():
        expected |= {f"{layer}.weight": shape, f"{layer}.bias": shape[:1]}
    assert found == expected


@each_network
def test_logits_are_those_of_the_layers_one_after_the_other(build):
    model, x = seeded(build).double().eval(), torch.rand(3, 1, 28, 28, dtype=torch.float64)
    weights = list(model.parameters())
    *hidden, last = zip(weights[::2], weights[1::2], strict=True)
    values = x
    for weight, bias in hidden:
        if weight.ndim == 4:
            values = F.max_pool2d(F.conv2d(values, weight, bias, padding=2).relu(), 2)
        else:
            values = F.linear(values.flatten(1), weight, bias).relu()
    torch.testing.assert_close(model(x), F.linear(values, *last), rtol=1e-10, atol=1e-10)


@each_network
def test_weights_are_normal_and_cut_at_two_standard_deviations(build):
    for name, parameter in seeded(build).named_parameters():
        values = parameter.detach().double().flatten()
        if parameter.ndim == 1:
            assert (parameter == 0.1).all(), name
            continue
        deviation = 0.1 if build is AdebayoCNN else 2 / parameter.shape[1] ** 0.5
        cut = stats.truncnorm(-2, 2, scale=deviation)
        assert 1.9 * deviation < values.abs().max() <= 2 * deviation * (1 + 1e-6), name
        assert abs(values.mean()) < 4 * cut.std() / len(values) ** 0.5, name
        kurtosis = 3 + float(cut.stats("k"))
        assert abs(values.std() / cut.std() - 1) < 4 * ((kurtosis - 1) / 4 / len(values)) ** 0.5, name
        assert stats.kstest(values[:20_000].numpy(), cut.cdf).pvalue > 1e-3, name


@each_network
def test_weights_come_from_the_generator_of_torch_and_from_nowhere_else(build):
    first, again, other = (dict(seeded(build, seed).named_parameters()) for seed in (0, 0, 1))
    for name, parameter in first.items():
        assert torch.equal(parameter, again[name])
        assert torch.equal(parameter, other[name]) == name.endswith("bias")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one, two = (build((1, 28, 28), 10).state_dict() for _ in range(2))
    assert not any(torch.equal(one[name], two[name]) for name in one if name.endswith("weight"))
