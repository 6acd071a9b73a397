"""Methods that change how a gradient passes a rectifier."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from harness.methods.operators import Rule, Rules, prove_coverage
from harness.registry import method


def ruled_gradient(
    model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"], rule: Rule, name: str
) -> Float[Tensor, "n *shape"]:
    """The gradient of the target logit in which every rectifier propagates by `rule`.

    Raises:
        NotApplicableError: the model has an operator that no rule covers.
    """
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        with Rules(rule):
            logits = model(leaf.clone())
        prove_coverage(logits, leaf, model, name)
        (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), leaf)
    return gradient


def _deconvnet_rule(gradient: Float[Tensor, "*s"], passed: Bool[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    return gradient.clamp(min=0)


def _guided_rule(gradient: Float[Tensor, "*s"], passed: Bool[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    return gradient.clamp(min=0) * passed


@method(family="backward rule", cite="zeiler2014visualizing")
def deconvnet(model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
    r"""DeconvNet: at each rectifier, $R_{in} = \max(0, R_{out})$, whatever the forward pass did there.

    Max-pooling passes back to its winners. ReLU and ReLU6 in any form; refused by name on other activations.
    """
    return ruled_gradient(model, x, target, _deconvnet_rule, "deconvnet")


@method(family="backward rule", cite="springenberg2014striving")
def guided_backprop(
    model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"]
) -> Float[Tensor, "n *shape"]:
    r"""Guided backpropagation: at each rectifier, $R_{in} = \max(0, R_{out}) \cdot 1[\text{forward passed}]$.

    ReLU and ReLU6 in any form; refused by name on other activations.
    """
    return ruled_gradient(model, x, target, _guided_rule, "guided_backprop")
