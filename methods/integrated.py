"""Methods that integrate gradients along straight paths."""

from itertools import repeat

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.methods.gradients import input_gradient
from harness.methods.smoothing import noisy_copies
from harness.random import Draws
from harness.registry import method
from harness.types import Count


@method(
    family="gradient",
    cite="sundararajan2017axiomatic",
    conserves="difference",
    conserves_if=lambda options: options["input_factor"],
)
def integrated_gradients(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    baseline: Float[Tensor, "n *shape"],
    steps: Count = 32,
    input_factor: bool = True,
) -> Float[Tensor, "n *shape"]:
    r"""Integrated gradients: $(x - b) \odot \int_0^1 \nabla_x f_t(b + t (x - b)) \, dt$.

    The integral is taken by Gauss-Legendre quadrature, which is exact for polynomials of degree $2n - 1$ in $t$.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        baseline: $b$, in the units of `x`.
        steps: $n$, the points of the quadrature and so the forward and backward passes.
        input_factor: whether to multiply by $x - b$; without it the map is the mean gradient along the path, which
            is not blind to where $x$ equals $b$, and adds up to nothing in particular.
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    x = x.detach()
    difference = x - baseline
    total = torch.zeros_like(x)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        total += float(weight) * input_gradient(model, baseline + float(node) * difference, target)
    return difference * total if input_factor else total


@method(family="gradient", cite="erion2021improving", stochastic=True, needs=("background",))
def expected_gradients(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    background: Float[Tensor, "m *shape"],
    draws: Draws,
    samples: Count = 25,
    noise: float = 0.0,
) -> Float[Tensor, "n *shape"]:
    r"""Expected gradients: $E_{b, \alpha} [(x - b) \odot \nabla_x f_t(b + \alpha (x - b))]$, $\alpha \sim U(0, 1)$.

    `erion2021improving`; with `noise` it is GradientSHAP (`lundberg2017unified`), in which $x + \epsilon$ takes the
    place of $x$ throughout. In expectation the map sums to $f_t(x) - E_b f_t(b)$ (with noise, to
    $E_\epsilon f_t(x + \epsilon) - E_b f_t(b)$); a single map misses that by the error of its draws, which is why it
    claims no completeness.

    The background sample $b$ is drawn anew for each sample and draw, with replacement. The values of $\alpha$ are
    stratified: the $i$-th of `samples` is uniform in $[i, i + 1) /$ `samples`. As $b$ does not depend on the
    stratum, the mean over the strata has the same expectation as with independent values, and no larger variance.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        background: samples that stand for the data, such as training samples, in the units of `x`.
        draws: which background samples, which $\alpha$, and the noise.
        samples: the number of draws and so of forward and backward passes.
        noise: standard deviation of $\epsilon$ as a fraction of the sample's own range, $\max x - \min x$.
    """
    x = x.detach()
    # The first draws are those of the noise.
    chosen = draws.integers(len(background), samples, draw=samples)
    strata = torch.arange(samples, device=x.device)
    alphas = ((strata + draws.uniform(samples, draw=samples + 1)) / samples).to(x.dtype)
    copies = noisy_copies(x, draws, samples, noise) if noise else repeat(x, samples)
    total = torch.zeros_like(x)
    for copy, rows, alpha in zip(copies, chosen.unbind(1), alphas.unbind(1), strict=True):
        start = background[rows]
        difference = copy - start
        point = start + alpha.view(-1, *(1,) * (x.ndim - 1)) * difference
        total += difference * input_gradient(model, point, target)
    return total / samples
