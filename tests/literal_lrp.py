"""Layer-wise relevance propagation written from its formulas: relevance of one sample at a time, output by output.

Numbers are Python floats, every linear operator is a table of weights, and nothing here knows the methods under test.
"""

import math
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import nn


def ratio(part, whole):
    """What a dead denominator would share is lost."""
    return part / whole if whole else 0.0


# A rule: (inputs, their weights, bias) of one output -> the fraction of its relevance that each input gets.


def epsilon(value):
    def rule(a, w, b):
        c = [a_j * w_j for a_j, w_j in zip(a, w, strict=True)]
        z = sum(c) + b
        return [ratio(c_j, z + (value if z >= 0 else -value)) for c_j in c]

    return rule


def gamma(value):
    def rule(a, w, b):
        c = [a_j * w_j for a_j, w_j in zip(a, w, strict=True)]
        z = sum(c) + b
        part = (lambda number: max(number, 0.0)) if z > 0 else (lambda number: min(number, 0.0))
        whole = z + value * (sum(part(c_j) for c_j in c) + part(b))
        return [ratio(c_j + value * part(c_j), whole) if z else 0.0 for c_j in c]

    return rule


def alpha_beta(alpha, beta, bias=True):
    def rule(a, w, b):
        b = b if bias else 0.0
        c = [a_j * w_j for a_j, w_j in zip(a, w, strict=True)]
        up = sum(max(c_j, 0.0) for c_j in c) + max(b, 0.0)
        down = sum(min(c_j, 0.0) for c_j in c) + min(b, 0.0)
        return [alpha * ratio(max(c_j, 0.0), up) - beta * ratio(min(c_j, 0.0), down) for c_j in c]

    return rule


def flat(a, w, b):
    return [1 / len(a)] * len(a)


def squared(a, w, b):
    return [ratio(w_j**2, sum(w_i**2 for w_i in w)) for w_j in w]


def box(low, high):
    """The range of the input is known, the same for all of them."""

    def rule(a, w, b):
        c = [a_j * w_j - low * max(w_j, 0.0) - high * min(w_j, 0.0) for a_j, w_j in zip(a, w, strict=True)]
        return [ratio(c_j, sum(c)) for c_j in c]

    return rule


@dataclass(frozen=True)
class Rules:
    """Which rule a linear layer, a convolution and the operator that takes the input follow."""

    dense: object
    convolution: object
    entry: object = None


@dataclass
class Dense:
    """A linear operator: for each output its inputs, their weights and its bias. Without a kind, it is proportional."""

    inputs: list
    weights: list
    bias: list
    kind: str = ""
    takes_input: bool = False

    def values(self, a):
        return [
            sum(a[j] * w_j for j, w_j in zip(inputs, weights, strict=True)) + b
            for inputs, weights, b in zip(self.inputs, self.weights, self.bias, strict=True)
        ]

    def back(self, a, relevance, rules):
        rule = getattr(rules, self.kind) if self.kind else epsilon(0.0)
        rule = rules.entry if self.takes_input and rules.entry else rule
        result = [0.0] * len(a)
        for k, inputs in enumerate(self.inputs):
            fractions = rule([a[j] for j in inputs], self.weights[k], self.bias[k])
            for j, fraction in zip(inputs, fractions, strict=True):
                result[j] += fraction * relevance[k]
        return result

    def folded(self, scale, shift):
        """With `scale[k] * z_k + shift[k]` behind it."""
        self.weights = [[w_j * s for w_j in weights] for weights, s in zip(self.weights, scale, strict=True)]
        self.bias = [b * s + t for b, s, t in zip(self.bias, scale, shift, strict=True)]


@dataclass
class Activation:
    """Passes relevance on; what it adds at zero takes its share."""

    function: object

    def values(self, a):
        return [self.function(z) for z in a]

    def back(self, a, relevance, rules):
        offset = self.function(0.0)
        return [ratio(self.function(z) - offset, self.function(z)) * r for z, r in zip(a, relevance, strict=True)]


@dataclass
class Maximum:
    """The winner of each window takes all."""

    windows: list

    def values(self, a):
        return [max(a[j] for j in window) for window in self.windows]

    def back(self, a, relevance, rules):
        result = [0.0] * len(a)
        for window, r in zip(self.windows, relevance, strict=True):
            result[max(window, key=lambda j: a[j])] += r
        return result


@dataclass
class Chain:
    """One operator after the other."""

    steps: list

    def values(self, a):
        for step in self.steps:
            a = step.values(a)
        return a

    def back(self, a, relevance, rules):
        inputs = [a]
        for step in self.steps:
            inputs.append(step.values(inputs[-1]))
        for step, a in zip(self.steps[::-1], inputs[-2::-1], strict=True):
            relevance = step.back(a, relevance, rules)
        return relevance


class Residual(Chain):
    """The sum of a chain and its input, each of which gets its proportion."""

    def values(self, a):
        return [a_j + b_j for a_j, b_j in zip(a, super().values(a), strict=True)]

    def back(self, a, relevance, rules):
        branch = super().values(a)
        shares = [ratio(r, a_j + b_j) for a_j, b_j, r in zip(a, branch, relevance, strict=True)]
        through = super().back(a, [b_j * s for b_j, s in zip(branch, shares, strict=True)], rules)
        return [a_j * s + r for a_j, s, r in zip(a, shares, through, strict=True)]


class Skip(nn.Sequential):
    """As a network: its input plus what its layers make of it."""

    def forward(self, x):
        return x + super().forward(x)


ACTIVATIONS = {
    nn.ReLU: lambda _: lambda z: max(z, 0.0),
    nn.Hardtanh: lambda _: lambda z: min(max(z, -1.0), 1.0),
    nn.LeakyReLU: lambda module: lambda z: max(z, 0.0) + module.negative_slope * min(z, 0.0),
    nn.PReLU: lambda module: lambda z: max(z, 0.0) + module.weight.item() * min(z, 0.0),
    nn.Tanh: lambda _: math.tanh,
    nn.GELU: lambda _: lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2,
    nn.SiLU: lambda _: lambda z: z / (1 + math.exp(-z)),
    nn.Sigmoid: lambda _: lambda z: 1 / (1 + math.exp(-z)),
    nn.Softplus: lambda _: lambda z: math.log1p(math.exp(z)),
    nn.LogSigmoid: lambda _: lambda z: -math.log1p(math.exp(-z)),
}
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
FOLDED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)


def table_of(module, shape):
    """A linear module on inputs of this shape as a table: unit vectors are pushed through it, one by one."""
    units = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    at_zero = module(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
    weight = (module(units).flatten(1) - at_zero).T
    # With ones in the place of its weights, the module shows which inputs an output is connected to.
    ones = {name: torch.full_like(value, float(name == "weight")) for name, value in module.named_parameters()}
    connected = torch.func.functional_call(module, ones, (units,)).flatten(1).T != 0
    inputs = [row.nonzero().flatten().tolist() for row in connected]
    kind = "dense" if isinstance(module, nn.Linear) else "convolution" if isinstance(module, FOLDED) else ""
    return Dense(inputs, [w[j].tolist() for w, j in zip(weight, inputs, strict=True)], at_zero.tolist(), kind)


def affine_of(norm, shape):
    """Scale and shift of each element under a batch norm in evaluation."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * scale
    return [each.repeat_interleave(math.prod(shape[1:])).tolist() for each in (scale, shift)]


def windows_of(module, shape):
    places = torch.arange(math.prod(shape), dtype=torch.float64).view(shape)
    size = module.kernel_size
    places = places.unfold(-2, size, module.stride).unfold(-2, size, module.stride)
    return [window.int().tolist() for window in places.reshape(-1, size * size)]


def chain_of(model, shape, first=True, kind=Chain):
    """The twin of a sequential network; batch norms are folded into the linear module before them."""
    steps, before, x = [], None, torch.zeros(1, *shape, dtype=torch.float64)
    for module in model:
        shape = tuple(x.shape[1:])
        if isinstance(module, Skip):
            steps.append(chain_of(module, shape, not steps and first, Residual))
        elif type(module) in ACTIVATIONS:
            steps.append(Activation(ACTIVATIONS[type(module)](module)))
        elif isinstance(module, NORMS) and isinstance(before, FOLDED):
            steps[-1].folded(*affine_of(module, shape))
        elif isinstance(module, NORMS):
            scale, shift = affine_of(module, shape)
            steps.append(Dense([[j] for j in range(len(scale))], [[s] for s in scale], shift))
        elif isinstance(module, nn.MaxPool2d):
            steps.append(Maximum(windows_of(module, shape)))
        elif not isinstance(module, (nn.Flatten, nn.Dropout, nn.Identity)):
            steps.append(table_of(module, shape))
            steps[-1].takes_input = first and not steps[:-1]
        before = before if isinstance(module, (nn.Dropout, nn.Identity)) else module
        x = module(x)
    return kind(steps)


@torch.no_grad()
def literal(model, x, target, rules, start=None):
    """The relevance of `x`, which starts with the target logit, or with `start`."""
    chain = chain_of(model, tuple(x.shape[1:]))
    maps = []
    for sample, t in zip(x.flatten(1).tolist(), target.tolist(), strict=True):
        logits = chain.values(sample)
        relevance = [0.0] * len(logits)
        relevance[t] = logits[t] if start is None else start
        maps.append(chain.back(sample, relevance, rules))
    return torch.tensor(maps, dtype=torch.float64).view_as(x)


# What the twins are compared on.

LOW, HIGH = -0.8, 1.2


def lively(model):
    """In float64 and evaluation mode, with biases and batch norms that matter."""
    for module in model.double().eval().modules():
        if isinstance(module, NORMS):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        elif getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias, std=0.5)
    return model


def mlp(activation):
    return nn.Sequential(nn.Linear(6, 8), activation(), nn.Linear(8, 7), activation(), nn.Linear(7, 4))


def residual():
    """A residual block in which a batch norm follows a convolution, and a maximum."""
    block = Skip(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
    stem = (nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU())
    return nn.Sequential(*stem, block, nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4, 4))


def before_batch_norm():
    """Batch norms that follow an activation or a linear layer, strides and a mean."""
    stem = (nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 2, stride=2))
    head = (nn.Linear(4, 6), nn.BatchNorm1d(6), nn.SiLU(), nn.Linear(6, 4))
    return nn.Sequential(*stem, nn.AvgPool2d(2), nn.Flatten(), *head)


def groups():
    """Groups, dilation, a transposed convolution and overlapping maxima."""
    stem = (nn.Conv2d(2, 4, 3, padding=2, dilation=2, groups=2), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2, stride=2))
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 4))


def transposed():
    stem = (nn.ConvTranspose2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3, stride=3))
    return nn.Sequential(*stem, nn.Flatten(), nn.Linear(4, 4))


def signal():
    return nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.GELU(), nn.Flatten(), nn.Linear(12, 4))


def skip_at_input():
    """The input is read by a linear layer and by the sum behind it."""
    return nn.Sequential(Skip(nn.Linear(6, 6)), nn.ReLU(), nn.Linear(6, 4))


def reused():
    layer, activation = nn.Linear(6, 6), nn.ReLU()
    return nn.Sequential(layer, activation, layer, activation, nn.Linear(6, 4))


BETWEEN = {
    **{module.__name__: module for module in (nn.ReLU, nn.Hardtanh, nn.LeakyReLU, nn.Tanh, nn.GELU, nn.SiLU)},
    **{module.__name__: module for module in (nn.Sigmoid, nn.Softplus, nn.LogSigmoid)},
    "PReLU with a negative slope": partial(nn.PReLU, init=-0.5),
}
NETWORKS = {
    **{name: (partial(mlp, activation), (6,)) for name, activation in BETWEEN.items()},
    **{build.__name__: (build, (2, 4, 4)) for build in (residual, before_batch_norm, groups, transposed)},
    "signal": (signal, (2, 6)),
    **{build.__name__: (build, (6,)) for build in (skip_at_input, reused)},
}


@cache
def network(name, n=4, seed=0):
    """A small network and signed inputs within the declared range: (model, x, target)."""
    build, shape = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = lively(build())
        return model, torch.rand(n, *shape, dtype=torch.float64) * (HIGH - LOW) + LOW, torch.arange(n) % 4
