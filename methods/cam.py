"""Class activation maps: weighted sums of the channels of one layer.

All take `layer`, the name of the module whose output is $A$; without one, the last layer that holds positions and
through which everything passes is found while the network runs (`harness.methods.layers`). Which one it was is
remarked with the cell. Sums are upsampled to the input linearly along each axis (bilinear for images). The papers
apply a ReLU to the sum; here that is an option, because the ReLU turns many maps of a randomized network into zeros.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.methods.backward import guided_backprop
from harness.methods.composites import rounding
from harness.methods.layers import features
from harness.registry import method
from harness.types import NotApplicableError


@method(family="cam", cite="zhou2016learning", needs=("spatial",))
def cam(
    model: nn.Module, x: Float[Tensor, "n c *axes"], target: Int[Tensor, " n"], *, relu: bool = False
) -> Float[Tensor, "n 1 *axes"]:
    r"""CAM: $\sum_k w_{tk} A^k$ with $w$ the weights of the linear layer behind the global average pooling.

    Only for networks that end so: features A, their mean over positions, one linear layer. Then its mean over
    positions, at the size of the features, is the logit without its bias.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        relu: whether negative values of the sum become zero.

    Raises:
        NotApplicableError: the network does not end in global average pooling and a linear layer.
    """
    seen = features(model, x, target, "", "cam")
    linear, pooled = seen.run.trace.linear, seen.activation.flatten(2).mean(2)
    ends = linear is not None and linear[2].grad_fn is not None and linear[2].shape == seen.run.logits.shape
    if linear is None or not ends or not _equal(linear[0], pooled) or not _equal(linear[2], seen.run.logits):
        raise NotApplicableError("cam: the model does not end in global average pooling and one linear layer")
    return seen.map(linear[1].detach()[target], x, relu)


@method(family="cam", cite="selvaraju2017grad", needs=("spatial",), version=2)
def grad_cam(
    model: nn.Module,
    x: Float[Tensor, "n c *axes"],
    target: Int[Tensor, " n"],
    *,
    layer: str = "",
    relu: bool = False,
) -> Float[Tensor, "n 1 *axes"]:
    r"""Grad-CAM: $\sum_k w_k A^k$ with $w_k$ the mean over positions of $\partial f_t / \partial A^k$.

    Where the layer is followed by global average pooling and a linear layer, this is CAM divided by the number of
    positions.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        layer: the name of the module whose output is A; by default the last one with positions left.
        relu: whether negative values of the sum become zero, as in the paper.

    Raises:
        NotApplicableError: no layer has more than one position, or `layer` does not exist, has no positions or
            is not used by the logits.
    """
    seen = features(model, x, target, layer, "grad_cam")
    return seen.map(seen.gradient.flatten(2).mean(2), x, relu)


@method(family="cam", cite="selvaraju2017grad", needs=("spatial",))
def guided_grad_cam(
    model: nn.Module, x: Float[Tensor, "n c *axes"], target: Int[Tensor, " n"], *, layer: str = ""
) -> Float[Tensor, "n c *axes"]:
    r"""Guided Grad-CAM: guided backpropagation times the upsampled, rectified Grad-CAM.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        layer: as for `grad_cam`.

    Raises:
        NotApplicableError: one of the two does not apply.
    """
    seen = features(model, x, target, layer, "guided_grad_cam")
    weights = seen.map(seen.gradient.flatten(2).mean(2), x, relu=True)
    return guided_backprop(model, x, target) * weights


@method(family="cam", cite="chattopadhay2018grad", needs=("spatial",))
def grad_cam_plus_plus(
    model: nn.Module,
    x: Float[Tensor, "n c *axes"],
    target: Int[Tensor, " n"],
    *,
    layer: str = "",
    relu: bool = False,
) -> Float[Tensor, "n 1 *axes"]:
    r"""Grad-CAM++: $w_k = \sum_p \alpha_p \max(0, g_p)$, $\alpha = \frac{g^2}{2 g^2 + g^3 \sum_p A_p}$.

    With $g = \partial f_t / \partial A^k$ at each position p. The paper derives the weights for the score $e^{f_t}$,
    whose own factor $e^{f_t}$ scales the whole map of a sample and is left out, as its authors do. $\alpha$ is zero
    where $g$ is.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        layer: as for `grad_cam`.
        relu: whether negative values of the sum become zero, as in the paper.

    Raises:
        NotApplicableError: as for `grad_cam`.
    """
    seen = features(model, x, target, layer, "grad_cam_plus_plus")
    gradient, total = seen.gradient.flatten(2), seen.activation.flatten(2).sum(2, keepdim=True)
    # g^2 / (2 g^2 + g^3 s) without its powers, which underflow.
    divisor = 2 + gradient * total
    alpha = torch.where((gradient != 0) & (divisor != 0), 1 / divisor, 0.0)
    return seen.map((alpha * gradient.clamp(min=0)).sum(2), x, relu)


@method(family="cam", cite="draelos2020hirescam", needs=("spatial",))
def hires_cam(
    model: nn.Module,
    x: Float[Tensor, "n c *axes"],
    target: Int[Tensor, " n"],
    *,
    layer: str = "",
    relu: bool = False,
) -> Float[Tensor, "n 1 *axes"]:
    r"""HiResCAM: $\sum_k \frac{\partial f_t}{\partial A^k} \odot A^k$, without a mean over positions.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        layer: as for `grad_cam`.
        relu: whether negative values of the sum become zero, as in the paper's pictures.

    Raises:
        NotApplicableError: as for `grad_cam`.
    """
    seen = features(model, x, target, layer, "hires_cam")
    return seen.map(seen.gradient, x, relu)


@method(family="cam", cite="jiang2021layercam", needs=("spatial",))
def layer_cam(
    model: nn.Module,
    x: Float[Tensor, "n c *axes"],
    target: Int[Tensor, " n"],
    *,
    layer: str = "",
    relu: bool = False,
) -> Float[Tensor, "n 1 *axes"]:
    r"""LayerCAM: $\sum_k \max(0, \frac{\partial f_t}{\partial A^k}) \odot A^k$.

    The scaling by a hyperbolic tangent, which the paper adds for pictures of its first layers, is left out.

    Args:
        model: returns logits [n, classes].
        x: the samples.
        target: the explained class of each.
        layer: as for `grad_cam`.
        relu: whether negative values of the sum become zero, as in the paper.

    Raises:
        NotApplicableError: as for `grad_cam`.
    """
    seen = features(model, x, target, layer, "layer_cam")
    return seen.map(seen.gradient.clamp(min=0), x, relu)


def _equal(one: Tensor, other: Tensor) -> bool:
    relative, absolute = rounding(other.detach())
    return one.shape == other.shape and torch.allclose(one, other, relative, absolute)
