"""Methods made of the gradient at the input itself."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.registry import method
from harness.types import NonNegative


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


@method(family="gradient", cite="gupta2019simple")
def competitive_gradients(
    model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"], *, rivals: NonNegative = 9
) -> Float[Tensor, "n *shape"]:
    r"""Competitive gradient times input: $x \odot \nabla_x f_t(x)$ where no other class has more of it, else zero.

    With $a^k = x \odot \nabla_x f_k(x)$, an element of $a^t$ stays if it is positive and $\max_k a^k$, or negative and
    $\min_k a^k$ (`gupta2019simple`). Read element by element, so that each channel of a pixel competes on its own;
    a tie counts as won by all who share it. One forward pass and a backward pass for each class that competes;
    memory does not grow with their number.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        rivals: how many of the other classes compete, those with the highest logits; 0 for all, as in the paper, at
            the cost of a backward pass each.
    """
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf.clone())

    def contribution(classes: Int[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
        chosen = torch.zeros_like(logits).scatter(1, classes[:, None], 1)
        (gradient,) = torch.autograd.grad(logits, leaf, chosen, retain_graph=True)
        return leaf.detach() * gradient

    # The target comes first, whatever its logit, and then its rivals.
    ranked = logits.detach().scatter(1, target[:, None], torch.inf).argsort(dim=1, descending=True, stable=True)
    others = ranked[:, 1:]
    own = contribution(target)
    highest, lowest = own, own
    for classes in others[:, : rivals or None].unbind(1):
        other = contribution(classes)
        highest, lowest = torch.maximum(highest, other), torch.minimum(lowest, other)
    lost = (own > 0) & (own < highest) | (own < 0) & (own > lowest)
    return own.masked_fill(lost, 0)
