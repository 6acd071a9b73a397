"""Methods that watch the gradient while noise is added to the input."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.methods.gradients import input_gradient
from harness.random import Draws
from harness.registry import method
from harness.types import Count


def noisy_copies(
    x: Float[Tensor, "n *shape"], draws: Draws, samples: int, noise: float
) -> Iterator[Float[Tensor, "n *shape"]]:
    r"""$x + \epsilon$, `samples` times, with $\epsilon \sim N(0, \sigma^2)$ from the draws 0 to `samples` - 1.

    `noise` is $\sigma$ as a fraction of the sample's own range, $\max x - \min x$.
    """
    flat = x.flatten(1)
    sigma = noise * (flat.amax(1) - flat.amin(1)).view(-1, *(1,) * (x.ndim - 1))
    for index in range(samples):
        yield x + sigma * draws.normal(*x.shape[1:], draw=index).to(x.dtype)


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
    total = torch.zeros_like(x)
    for copy in noisy_copies(x, draws, samples, noise):
        total += input_gradient(model, copy, target)
    return total / samples


@method(family="gradient", cite="hooker2019benchmark", stochastic=True)
def smoothgrad_squared(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    draws: Draws,
    samples: Count = 25,
    noise: float = 0.15,
) -> Float[Tensor, "n *shape"]:
    r"""SmoothGrad-squared: the mean of $(\nabla_x f_t(x + \epsilon))^2$, $\epsilon \sim N(0, \sigma^2)$.

    `hooker2019benchmark`. The squares are taken element by element, so that no value is negative and the map says
    nothing about direction. With the same noise it is `vargrad` plus the square of `smoothgrad`.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        draws: the noise.
        samples: the number of noisy copies.
        noise: $\sigma$ as a fraction of the sample's own range, $\max x - \min x$.
    """
    total = torch.zeros_like(x)
    for copy in noisy_copies(x, draws, samples, noise):
        total += input_gradient(model, copy, target).square()
    return total / samples


@method(family="gradient", cite="adebayo2018local", stochastic=True)
def vargrad(
    model: nn.Module,
    x: Float[Tensor, "n *shape"],
    target: Int[Tensor, " n"],
    *,
    draws: Draws,
    samples: Count = 25,
    noise: float = 0.15,
) -> Float[Tensor, "n *shape"]:
    r"""VarGrad: the variance of $\nabla_x f_t(x + \epsilon)$ over $\epsilon \sim N(0, \sigma^2)$.

    `adebayo2018local`. The variance of the `samples` gradients themselves, divided by their number and not by one
    less; it is summed up by Welford's recurrence, because the mean of squares minus the square of the mean loses
    all digits, and may become negative, where the mean is large. No value is negative; zero everywhere if there is
    but one copy or the model is linear as far as the noise reaches.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        draws: the noise.
        samples: the number of noisy copies.
        noise: $\sigma$ as a fraction of the sample's own range, $\max x - \min x$.
    """
    mean, squares = torch.zeros_like(x), torch.zeros_like(x)
    for count, copy in enumerate(noisy_copies(x, draws, samples, noise), 1):
        change = input_gradient(model, copy, target) - mean
        mean += change / count
        squares += change.square() * ((count - 1) / count)
    return squares / samples
