"""Methods that change how a gradient passes an activation."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from harness.methods.composites import DECONVNET, GUIDED, ruled_gradients
from harness.registry import method


@method(family="backward rule", cite="zeiler2014visualizing", version=2)
def deconvnet(model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"]) -> Float[Tensor, "n *shape"]:
    r"""DeconvNet: at each rectifier, $R_{in} = \max(0, R_{out})$, whatever the forward pass did there.

    Max-pooling passes back to its winners, everything else its gradient. Rectifiers are ReLU and its relatives (leaky,
    bounded, smooth) in any form; refused by name on other activations, for which nothing is reconstructed.
    """
    return ruled_gradients(model, x, target, DECONVNET, "deconvnet")[0]


@method(family="backward rule", cite="springenberg2014striving", version=2)
def guided_backprop(
    model: nn.Module, x: Float[Tensor, "n *shape"], target: Int[Tensor, " n"]
) -> Float[Tensor, "n *shape"]:
    r"""Guided backpropagation: at each activation, $R_{in} = \max(0, R_{out}) \cdot \sigma'(z)$.

    For a ReLU that is the rule of the paper, $\max(0, R_{out}) \cdot 1[z > 0]$; other activations of a single number,
    in any form, keep their own derivative. Everything else passes its gradient; a `clamp` that does not cut at zero is
    no activation.
    """
    return ruled_gradients(model, x, target, GUIDED, "guided_backprop")[0]
