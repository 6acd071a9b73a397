"""One transformer block and its relevance by the published rules, every quantity carried as relevance itself.

Linear layers by LRP-epsilon, sums in proportion, GELU passes, layer norm with its scale constant; at a softmax
R_i = x_i (R_i - s_i sum_j R_j), at a product of two tensors half to each (AttnLRP), or all to the values (constant
attention weights).
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Pre-norm attention and two linear layers on tokens [n, t, w], then the mean token and a linear head."""

    def __init__(self, width, heads, classes, seed=0):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, classes)
        self.double().eval()
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data = drawn / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.3 * drawn
            if "norm" in name and "weight" in name:
                parameter.data += 1

    def attend(self, x):
        query, key, value = (split(layer(x), self.heads) for layer in (self.query, self.key, self.value))
        weights = (query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])).softmax(-1)
        return self.output(joined(weights @ value))

    def forward(self, x):
        x = x + self.attend(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


def split(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).flatten(2)


def linear(layer, a, relevance, epsilon):
    z = layer(a)
    share = relevance / torch.where(z < 0, z - epsilon, z + epsilon)
    return torch.einsum("...j,kj,...k->...j", a, layer.weight, share)


def layer_norm(layer, x, relevance):
    """The affine part and the subtraction of the mean are linear, and the scale only multiplies."""
    size = x.shape[-1]
    centring = torch.eye(size, dtype=x.dtype) - 1 / size
    centred = x @ centring
    scaled = layer.weight * centred / (x.var(-1, keepdim=True, correction=0) + layer.eps).sqrt()
    relevance = relevance * scaled / (scaled + layer.bias)
    return torch.einsum("...j,ij,...i->...j", x, centring, relevance / centred)


def both_factors(left, right, relevance):
    """Half of the relevance of left @ right to each factor, in proportion to the terms of the sum."""
    share = relevance / (left @ right) / 2
    terms = torch.einsum("...ji,...ip,...jp->...jip", left, right, share)
    return terms.sum(-1), terms.sum(-3)


@torch.no_grad()
def relevance_of(model, x, target, epsilon, through_softmax):
    """The relevance of the tokens."""
    normed1 = model.norm1(x)
    query, key, value = (split(layer(normed1), model.heads) for layer in (model.query, model.key, model.value))
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    weights = scores.softmax(-1)
    mixed = weights @ value
    attended = model.output(joined(mixed))
    middle = x + attended
    normed2 = model.norm2(middle)
    hidden = model.up(normed2)
    widened = F.gelu(hidden)
    added = model.down(widened)
    last = middle + added
    mean = last.mean(1)

    relevance = F.one_hot(target, model.head.out_features) * model.head(mean)
    relevance = linear(model.head, mean, relevance, epsilon)
    relevance = relevance[:, None] * last / last.sum(1, keepdim=True)
    behind = relevance * added / last
    behind = linear(model.down, widened, behind, epsilon)
    behind = linear(model.up, normed2, behind, epsilon)
    relevance = relevance * middle / last + layer_norm(model.norm2, middle, behind)

    behind = linear(model.output, joined(mixed), relevance * attended / middle, epsilon)
    behind = split(behind, model.heads)
    if through_softmax:
        of_weights, of_value = both_factors(weights, value, behind)
        of_scores = scores * (of_weights - weights * of_weights.sum(-1, keepdim=True))
        of_query, of_key = both_factors(query, key.transpose(-2, -1), of_scores)
        of_key = of_key.transpose(-2, -1)
        parts = [(model.query, of_query), (model.key, of_key), (model.value, of_value)]
    else:
        of_value = torch.einsum("...ji,...ip,...jp->...ip", weights, value, behind / mixed)
        parts = [(model.value, of_value)]
    behind = sum(linear(layer, normed1, joined(part), epsilon) for layer, part in parts)
    return relevance * x / middle + layer_norm(model.norm1, x, behind)


def logarithmic_mean(a, b):
    return a if math.isclose(a, b, rel_tol=1e-13) else (a - b) / (math.log(a) - math.log(b))


def rescaled_softmax(z, z0, target, log):
    """The contributions of scores to the change of one probability, or of its logarithm.

    With l the logarithmic means of the probabilities, which are the secants of the logarithm,
    dp_i = l_i (dz_i - dZ), Z the logarithm of the sum of exponentials; as the dp_i sum to 0, dZ is the mean of the
    dz_j weighted by l_j.
    """
    p, p0 = ([math.exp(a) / sum(map(math.exp, scores)) for a in scores] for scores in (z, z0))
    means = [logarithmic_mean(a, b) for a, b in zip(p, p0, strict=True)]
    factor = 1 if log else means[target]
    return [factor * ((i == target) - means[i] / sum(means)) * (z[i] - z0[i]) for i in range(len(z))]


def rescaled_layer_norm(x, x0, target, eps):
    """The contributions of inputs to the change of one output: a product of the centred sample and its scale."""
    size = len(x)
    c, c0 = ([number - sum(numbers) / size for number in numbers] for numbers in (x, x0))
    variance, variance0 = (sum(number**2 for number in numbers) / size for numbers in (c, c0))
    scale, scale0 = (1 / math.sqrt(number + eps) for number in (variance, variance0))
    secant = (scale - scale0) / (variance - variance0)
    result = []
    for i in range(size):
        # What input i changes: each centred number, and by them the variance.
        centred = [(x[i] - x0[i]) * ((j == i) - 1 / size) for j in range(size)]
        spread = sum((c[j] + c0[j]) * centred[j] for j in range(size)) / size
        result.append(centred[target] * (scale + scale0) / 2 + (c[target] + c0[target]) / 2 * secant * spread)
    return result
