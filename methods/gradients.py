"""Methods made of plain gradients."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.random import Draws
from harness.registry import method
from harness.types import Count


def input_gradient(
    model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"]
) -> Float[Tensor, "n *shape"]:
    r"""$\nabla_x f_t(x)$ for each sample. Leaves `.grad` of parameters and of `x` alone."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        # The clone lets a model whose first operation is in place write into something that is no leaf.
        logits = model(leaf.clone())
        (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), leaf)
    return gradient


@method(family="gradient", cite="simonyan2013deep")
def gradient(model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
    r"""Gradient of the target logit: $\nabla_x f_t(x)$.

    Signed, unlike the saliency of `simonyan2013deep`, which takes the absolute value and the largest channel.
    """
    return input_gradient(model, x, target)


@method(family="gradient", cite="shrikumar2016not", conserves="output")
def input_x_gradient(
    model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"]
) -> Float[Tensor, "n *shape"]:
    r"""Input times gradient: $x \odot \nabla_x f_t(x)$.

    Sums to $f_t(x)$ on piecewise linear networks without biases; what the biases contribute is missing.
    """
    return x.detach() * input_gradient(model, x, target)


@method(family="gradient", cite="sundararajan2017axiomatic", conserves="difference")
def integrated_gradients(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    baseline: Float[Tensor, "n *shape"],
    steps: Count = 32,
) -> Float[Tensor, "n *shape"]:
    r"""Integrated gradients: $(x - b) \odot \int_0^1 \nabla_x f_t(b + t (x - b)) \, dt$.

    The integral is taken by Gauss-Legendre quadrature, which is exact for polynomials of degree $2n - 1$ in $t$.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        baseline: $b$, in the units of `x`.
        steps: $n$, the points of the quadrature and so the forward and backward passes.
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    x = x.detach()
    difference = x - baseline
    total = torch.zeros_like(x)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        total += float(weight) * input_gradient(model, baseline + float(node) * difference, target)
    return difference * total


@method(family="gradient", cite="smilkov2017smoothgrad", stochastic=True)
def smoothgrad(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    draws: Draws,
    samples: Count = 25,
    noise: float = 0.15,
) -> Float[Tensor, "n *shape"]:
    r"""SmoothGrad: the mean of $\nabla_x f_t(x + \epsilon)$, $\epsilon \sim N(0, \sigma^2)$.

    The mean of signed gradients, not of their squares.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        draws: the noise.
        samples: the number of noisy copies.
        noise: $\sigma$ as a fraction of the sample's own range, $\max x - \min x$.
    """
    flat = x.flatten(1)
    sigma = noise * (flat.amax(1) - flat.amin(1)).view(-1, *(1,) * (x.ndim - 1))
    total = torch.zeros_like(x)
    for index in range(samples):
        epsilon = draws.normal(*x.shape[1:], draw=index).to(x.dtype)
        total += input_gradient(model, x + sigma * epsilon, target)
    return total / samples
